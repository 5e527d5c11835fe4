//! Backfill: copying the rows that existed before capture began, while everything goes on.
//!
//! Rows are read by ranges of their key, several at a time ([`sessions`]), each between two watermark messages (see
//! `capture::watermark`): so a chunk's rows take their place in the stream without a lock, and without a snapshot that outlives the
//! chunk. A chunk and the notice of how far the backfill has come are durable together, in the order of the keys; after a crash it
//! resumes from the last notice's key.
//!
//! The snapshot that a slot exports is left alone. Rows read in it are as of the slot's start, so capture would have to wait for
//! all of them, while the server keeps its log and vacuum stands still; and it is gone with the connection that made the slot.
//!
//! Where a stream was lost, so were the deletes in it. Then the rows that the log knows are looked for first, in the same way,
//! and those that are not there any more are told as missing.

mod chunk;
mod copy_text;
mod reading;
mod sessions;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio_util::sync::CancellationToken;

use super::capture::CaptureHandle;
use super::capture::watermark::Reached;
use super::connect::database_error;
use super::endpoint::Endpoint;
use super::marks::Marks;
use crate::change::{Key, MappingDef, Str};
use crate::error::Result;
use chunk::{CHUNK_ROWS_MIN, Copied, Pace, Relay};
use reading::{Reading, estimated};
pub use sessions::CopySessions;

/// The most rows in a chunk: they leave in one batch.
const CHUNK_ROWS_MAX: usize = 50_000;
/// Chunks that are read at a time, unless sessions are shared.
const CHUNKS_AT_ONCE: usize = 4;
/// How long to wait before a chunk is read again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// What a place begins with while known rows are looked for; it is followed by the key that this has come to. No key begins so:
/// U+001E stands before U+001E or U+001F alone.
const SWEEP: &str = "\u{1e}sweep:";

/// Keys that the log has for living rows of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownKeys {
    /// Some of them.
    pub keys: Vec<Key>,
    /// The key to go on after; `None` at the end.
    pub last: Option<Str>,
}

/// Gives the keys that the log knows of after one (none at first), in an order of its own.
pub type KnownRows = Arc<dyn Fn(Option<Str>) -> Pin<Box<dyn Future<Output = Result<KnownKeys>> + Send>> + Send + Sync>;

/// How far a backfill has come. What a run ended or was interrupted with, another resumes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackfillProgress {
    /// Rows read so far.
    pub rows: u64,
    /// Rows that the server expects the table to have, where it tells.
    pub total: Option<u64>,
    /// Everything up to this key is done; empty before the first row.
    pub after: Str,
    /// Whether it is complete.
    pub finished: bool,
}

impl BackfillProgress {
    /// The place of a backfill that looks for the rows that are known before it reads those that are there.
    pub const fn sweep() -> Str {
        Str::new_static(SWEEP)
    }

    /// Whether a place is one where known rows are looked for.
    pub fn is_sweep(after: &str) -> bool {
        after.starts_with(SWEEP)
    }

    fn advance(&mut self, copied: Copied) {
        self.rows += copied.rows;
        self.total = self.total.map(|total| total.max(self.rows));
        (self.after, self.finished) = (copied.after, copied.finished);
    }
}

/// A backfill of one mapping's table.
pub struct Backfill {
    sessions: CopySessions,
    mapping: MappingDef,
    chunk_rows: usize,
    capture: CaptureHandle,
    known: Option<KnownRows>,
    marks: Marks,
    publication: Option<String>,
}

impl Backfill {
    /// A backfill through the capture that the handle belongs to. `chunk_rows` is brought within 2 to 50,000.
    pub fn new(endpoint: Endpoint, mapping: MappingDef, chunk_rows: usize, capture: CaptureHandle) -> Self {
        Self {
            sessions: CopySessions::new(endpoint, CHUNKS_AT_ONCE),
            mapping,
            chunk_rows: chunk_rows.clamp(CHUNK_ROWS_MIN, CHUNK_ROWS_MAX),
            capture,
            known: None,
            marks: Marks::default(),
            publication: None,
        }
    }

    /// The same through sessions that it shares with others.
    #[must_use]
    pub fn through(self, sessions: CopySessions) -> Self {
        Self { sessions, ..self }
    }

    /// The same with its watermarks where capture reads.
    #[must_use]
    pub fn marked_by(self, marks: Marks) -> Self {
        Self { marks, ..self }
    }

    /// The same with the rows that the log knows, for a backfill that begins by looking for them.
    #[must_use]
    pub fn looking_for(self, known: KnownRows) -> Self {
        Self { known: Some(known), ..self }
    }

    /// The same for those rows alone that the publication does not leave out by a row filter: the stream tells of no others.
    #[must_use]
    pub fn published_by(self, publication: &str) -> Self {
        Self { publication: Some(publication.to_owned()), ..self }
    }

    /// Runs to the end or until cancelled; returns how far it came. `on_progress` is called when a chunk is durable.
    ///
    /// # Errors
    /// [`Kind::Unavailable`](crate::error::Kind::Unavailable): run it again from the last progress. A capture that restarts meanwhile is waited for.
    pub async fn run(
        &self,
        from: BackfillProgress,
        cancel: &CancellationToken,
        mut on_progress: impl FnMut(&BackfillProgress) + Send,
    ) -> Result<BackfillProgress> {
        let mut progress = from;
        let copying = self.copy(&mut progress, &mut on_progress);
        cancel.run_until_cancelled(copying).await.transpose()?;
        Ok(progress)
    }

    async fn copy(
        &self,
        progress: &mut BackfillProgress,
        on_progress: &mut (impl FnMut(&BackfillProgress) + Send),
    ) -> Result<()> {
        let session = self.sessions.lend().await?;
        let reading = Reading::of(&session, &self.mapping, self.publication.as_deref()).await?;
        let answer = session.simple_query(&reading.estimate_sql()).await;
        progress.total = estimated(&answer.map_err(|e| self.failed("estimating how many rows there are", e))?);
        session.give_back();
        let pace = Pace::new(self.chunk_rows);
        loop {
            self.copy_on(&reading, &pace, progress, on_progress).await?;
            if progress.finished {
                break;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.sessions.close_idle().await;
        Ok(())
    }

    /// Copies chunk by chunk to the end, or until one must be read again.
    async fn copy_on(
        &self,
        reading: &Reading,
        pace: &Pace,
        progress: &mut BackfillProgress,
        on_progress: &mut (impl FnMut(&BackfillProgress) + Send),
    ) -> Result<()> {
        let reached = Reached::new(progress.rows, progress.after.clone());
        let mut relay = Relay::starting_at(progress.after.clone());
        let mut chunks = FuturesOrdered::new();
        let mut goes_on = true;
        loop {
            while goes_on && chunks.len() < self.sessions.most() {
                chunks.push_back(self.copy_chunk(reading, pace, &reached, relay.leg()));
            }
            match chunks.next().await.transpose()? {
                Some(Some(copied)) if goes_on => {
                    progress.advance(copied);
                    on_progress(progress);
                    if progress.finished {
                        return Ok(());
                    }
                }
                Some(_) => goes_on = false,
                None => return Ok(()),
            }
        }
    }

    fn failed(&self, doing: &str, error: tokio_postgres::Error) -> crate::error::Error {
        let MappingDef { schema, table, name, .. } = &self.mapping;
        database_error(&format!("backfill of {schema}.{table} (mapping `{name}`), {doing}"), error)
    }
}
