//! Owned tasks: each has a name, is cancelled by its owner's token, and is waited for. A panic or an error in one stops
//! the whole set, because a link with a dead part would fall behind in silence.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Kind, Result};

/// A set of named tasks under one cancellation token.
pub struct Tasks {
    token: CancellationToken,
    set: JoinSet<(&'static str, Result<()>)>,
}

impl Tasks {
    /// An empty set. Cancelling `token` asks every task to finish what it has taken and end.
    pub fn new(token: CancellationToken) -> Self {
        Self { token, set: JoinSet::new() }
    }

    /// Starts a task. `name` appears in logs and errors.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Result<()>> + Send + 'static) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until a task fails, all have ended, or the token is cancelled; then cancels the rest and drains them for at
    /// most `deadline`. The first error is returned; being cancelled is not an error.
    pub async fn run(mut self, deadline: Duration) -> Result<()> {
        let mut first: Result<()> = Ok(());
        let cancelled = self.token.clone();
        loop {
            tokio::select! {
                ended = self.set.join_next() => match ended {
                    None => return first,
                    Some(ended) => {
                        first = outcome(ended);
                        if first.is_err() { break; }
                    }
                },
                () = cancelled.cancelled() => break,
            }
        }
        self.token.cancel();
        let drained = tokio::time::timeout(deadline, async {
            while let Some(ended) = self.set.join_next().await {
                let result = outcome(ended);
                if first.is_ok() {
                    first = result;
                }
            }
        })
        .await;
        if drained.is_err() {
            tracing::warn!(deadline_ms = deadline.as_millis() as u64, "tasks did not drain in time and were aborted");
            self.set.abort_all();
        }
        first
    }
}

fn outcome(ended: Result<(&'static str, Result<()>), tokio::task::JoinError>) -> Result<()> {
    match ended {
        Ok((_, Ok(()))) => Ok(()),
        Ok((_, Err(error))) if error.kind() == Kind::Cancelled => Ok(()),
        Ok((name, Err(error))) => Err(error.within(name)),
        Err(join) if join.is_cancelled() => Ok(()),
        Err(join) => Err(Error::new(Kind::Internal, "a task panicked; this is a bug in Tidelock").caused_by(join)),
    }
}
