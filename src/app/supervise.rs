//! Parts that are started again when what they talk to goes away.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::error::{Disposition, Error, Result};

/// Runs a part until it ends by itself or is cancelled, and starts it again after a failure that passes.
pub(super) async fn supervise<F>(
    name: &'static str,
    cancel: CancellationToken,
    mut part: impl FnMut() -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let started = tokio::time::Instant::now();
        let Err(error) = part().await else { return Ok(()) };
        if cancel.is_cancelled() {
            return Ok(());
        }
        if !passes(&error) {
            return Err(error);
        }
        if started.elapsed() > Duration::from_mins(1) {
            backoff.succeeded();
        }
        let wait = backoff.next_wait();
        tracing::warn!(part = name, wait_ms = wait.as_millis() as u64, error = %error.explain(), "a part failed and is started again");
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Whether an error may be gone when the same is tried again.
pub(super) fn passes(error: &Error) -> bool {
    matches!(error.disposition(), Disposition::RestartPart | Disposition::Retry)
}
