//! Sending a range of the log to a side again, while no link runs.

use tokio_util::sync::CancellationToken;

use crate::change::{Offset, Side};
use crate::error::{Error, Kind, Result};
use crate::replay::ReplayStatus;
use crate::salesforce::capture_status::CaptureStatus;

use super::Link;
use super::stream::known_stream;

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct SentAgain {
    /// Writes that the side has taken.
    pub written: u64,
    /// Writes that it refused: dead letters now.
    pub refused: u64,
    /// Whether everything was sent; not where it was cancelled.
    pub complete: bool,
}

impl Link {
    /// Sends a side what it is not known to hold of the records that entries from `from` to before `to` are about, by the way that
    /// every write takes. The captures do not run: what the side's stream tells of the writes is heard by the next run.
    pub async fn send_again(
        mut self,
        side: Side,
        from: Offset,
        to: Offset,
        cancel: CancellationToken,
    ) -> Result<SentAgain> {
        self.http = None;
        let sent = self.send_range(side, from, to, cancel).await;
        self.close().await.and(sent)
    }

    async fn send_range(&self, side: Side, from: Offset, to: Offset, cancel: CancellationToken) -> Result<SentAgain> {
        let Some(identity) = known_stream(&self.ledger, side).await? else {
            let message =
                format!("the change log has read nothing of {side} yet; start the link with `tidelock run` first");
            return Err(Error::new(Kind::Configuration, message));
        };
        let ended = |status: &ReplayStatus, complete| SentAgain {
            written: status.written(),
            refused: status.refused(),
            complete,
        };
        if side == Side::Postgres {
            let runner = self.to_postgres(identity);
            let status = runner.status();
            let complete = runner.run_range(from, to, cancel).await?;
            return Ok(ended(&status, complete));
        }
        let runner = self.to_salesforce(&std::sync::Arc::new(CaptureStatus::default()));
        let status = runner.status();
        let complete = runner.run_range(from, to, cancel).await?;
        Ok(ended(&status, complete))
    }
}
