//! How fast to read.
//!
//! The server writes each change to the socket by itself. A reader that waits in `read` is woken by every one of them,
//! and both sides pay. So while behind, reads are large and half a millisecond apart; when caught up, the reader waits in
//! `read` and sees a commit at once.

use std::time::{Duration, Instant};

/// The least time between two reads while behind. At 2 ms the socket's buffer would fill and the server would wait.
const GAP: Duration = Duration::from_micros(500);
/// A read that brought this much means that more is on its way.
const BEHIND_BYTES: usize = 16 * 1024;

/// Paces reads.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    not_before: Option<Instant>,
}

impl Pace {
    /// Notes that a read brought so many bytes.
    pub(crate) fn note(&mut self, bytes: usize) {
        self.not_before = (bytes >= BEHIND_BYTES).then(|| Instant::now() + GAP);
    }

    /// Waits until the next read is due. May be cancelled and called again.
    pub(crate) async fn wait(&self) {
        let Some(not_before) = self.not_before else { return };
        let remaining = not_before.saturating_duration_since(Instant::now());
        if !remaining.is_zero() {
            // The runtime's timer counts whole milliseconds, which is too coarse here.
            let sleep = tokio::task::spawn_blocking(move || std::thread::sleep(remaining));
            if let Err(error) = sleep.await {
                tracing::debug!(%error, "a pause between reads was cut short");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_only_while_behind() {
        let mut pace = Pace::default();
        pace.note(100);
        assert!(pace.not_before.is_none());
        let started = Instant::now();
        pace.note(BEHIND_BYTES);
        pace.wait().await;
        assert!(started.elapsed() + Duration::from_micros(50) >= GAP);
        pace.note(1);
        assert!(pace.not_before.is_none());
    }
}
