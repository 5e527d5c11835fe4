//! One chunk: which rows are in it, its two watermarks, and what is read between them.
//!
//! Chunks of a table are read at the same time and take their places in the stream in the order of their keys, so that how far a copy
//! has come is one key. Each finds where it ends before the next one begins; and puts its high watermark when the one before has.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::oneshot;
use tokio_postgres::SimpleQueryMessage;
use tokio_stream::StreamExt as _;

use super::reading::Reading;
use super::{Backfill, KnownKeys, SWEEP};
use crate::change::{Key, Str};
use crate::error::{Error, Kind, Result};
use crate::postgres::capture::watermark::{BACKFILL_PREFIX, Chunk, ChunkOutcome, ChunkRow, Reached, Snapshot, Window};
use crate::postgres::connect::Session;

/// A chunk whose rows take more bytes than this, as they come, ends early.
const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The fewest rows of a chunk. The first key may be empty, which as a place says that nothing is done.
pub(super) const CHUNK_ROWS_MIN: usize = 2;

/// How many rows a chunk is to have: fewer than there could be while they are large.
pub(super) struct Pace {
    rows: AtomicUsize,
    rows_max: usize,
}

impl Pace {
    pub(super) fn new(rows_max: usize) -> Self {
        Self { rows: AtomicUsize::new(rows_max), rows_max }
    }

    fn rows(&self) -> usize {
        self.rows.load(Relaxed)
    }

    /// Learns from a chunk for which `asked` rows were planned. Others were planned at the same time: it grows once for all.
    fn learn(&self, asked: usize, read: &Read) {
        if read.is_cut {
            self.rows.fetch_min(read.rows.len().max(CHUNK_ROWS_MIN), Relaxed);
        } else if read.bytes < CHUNK_BYTES_MAX / 4 {
            let more = asked.saturating_mul(2).min(self.rows_max);
            // Otherwise another chunk has been faster.
            let _grown = self.rows.compare_exchange(asked, more, Relaxed, Relaxed);
        }
    }
}

/// Hands from each chunk to the next where that begins, and when its turn has come.
pub(super) struct Relay {
    from: oneshot::Receiver<Str>,
    turn: oneshot::Receiver<()>,
}

/// A chunk's place in the relay.
pub(super) struct Leg {
    from: oneshot::Receiver<Str>,
    next: oneshot::Sender<Str>,
    turn: oneshot::Receiver<()>,
    passed: oneshot::Sender<()>,
}

impl Relay {
    pub(super) fn starting_at(place: Str) -> Self {
        let (next, from) = oneshot::channel();
        let (passed, turn) = oneshot::channel();
        // Both are taken, since their receivers are here.
        let _taken = (next.send(place), passed.send(()));
        Self { from, turn }
    }

    pub(super) fn leg(&mut self) -> Leg {
        let (next, from) = oneshot::channel();
        let (passed, turn) = oneshot::channel();
        let from = std::mem::replace(&mut self.from, from);
        let turn = std::mem::replace(&mut self.turn, turn);
        Leg { from, next, turn, passed }
    }
}

/// A chunk that is durable.
pub(super) struct Copied {
    pub(super) rows: u64,
    pub(super) after: Str,
    pub(super) finished: bool,
}

/// What a chunk is to hold.
enum Plan {
    /// Those of these rows, which the log knows, that are missing.
    Missing { keys: Vec<Key>, upto: Str },
    /// About so many rows: up to a key, or to the end of the table.
    Rows { rows: usize, upto: Option<Str> },
}

/// Rows that were read.
struct Read {
    rows: Vec<ChunkRow>,
    bytes: usize,
    /// Whether rows were left out because they are large.
    is_cut: bool,
    /// Whether there may be more before the end of the chunk's range.
    has_more: bool,
}

impl Backfill {
    /// Copies a chunk. None if there is nothing for it, or it must be read again, and with it those after it.
    pub(super) async fn copy_chunk(
        &self,
        reading: &Reading,
        pace: &Pace,
        reached: &Reached,
        leg: Leg,
    ) -> Result<Option<Copied>> {
        let Leg { from, next, turn, passed } = leg;
        let Ok(from) = from.await else { return Ok(None) };
        // Not before: a session is never held by a chunk that waits for one that has none.
        let session = self.sessions.lend().await?;
        let plan = self.plan(&session, reading, &from, pace.rows()).await?;
        match &plan {
            Plan::Missing { upto, .. } | Plan::Rows { upto: Some(upto), .. } => {
                let _gone = next.send(upto.clone());
            }
            Plan::Rows { upto: None, .. } => drop(next),
        }
        let id = window_id()?;
        let (chunk_tx, chunk) = oneshot::channel();
        let (outcome_tx, outcome) = oneshot::channel();
        let (mapping, reached) = (self.mapping.id, reached.clone());
        self.capture.announce(Window { id: id.clone(), mapping, reached, chunk, outcome: outcome_tx })?;
        let snapshot = self.begin(&session, &id).await?;
        let chunk = match plan {
            Plan::Missing { keys, upto } => {
                let missing = self.look_for(&session, reading, &keys).await?;
                Chunk { rows: Vec::new(), missing, snapshot, read: 0, from, after: upto, finished: false }
            }
            Plan::Rows { rows, upto } => {
                let read = self.read(&session, reading, &from, rows, upto.as_ref()).await?;
                pace.learn(rows, &read);
                chunk_of(read, snapshot, from, upto)
            }
        };
        session.batch_execute("COMMIT").await.map_err(|e| self.failed("reading rows", e))?;
        let copied = Copied { rows: chunk.read, after: chunk.after.clone(), finished: chunk.finished };
        if chunk_tx.send(chunk).is_err() || turn.await.is_err() {
            // Capture was restarted since, or the chunk before has not come to its end.
            session.give_back();
            return Ok(None);
        }
        session.batch_execute(&self.mark("high", &id)).await.map_err(|e| self.failed("writing a watermark", e))?;
        let _gone = passed.send(());
        let outcome = outcome.await;
        session.give_back();
        Ok((outcome == Ok(ChunkOutcome::Durable)).then_some(copied))
    }

    async fn plan(&self, session: &Session, reading: &Reading, from: &Str, rows: usize) -> Result<Plan> {
        if let Some(after) = from.strip_prefix(SWEEP) {
            let after = Some(Str::new(after)).filter(|after| !after.is_empty());
            let KnownKeys { keys, last } = match &self.known {
                Some(known) => known(after).await?,
                None => KnownKeys::default(),
            };
            // At the end of them, the rows that are there come next.
            let upto = last.map_or_else(Str::default, |last| smol_str::format_smolstr!("{SWEEP}{last}"));
            return Ok(Plan::Missing { keys, upto });
        }
        let sql = reading.boundary_sql(from, rows)?;
        let answer = session.simple_query(&sql).await.map_err(|e| self.failed("looking for a range of rows", e))?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(Plan::Rows { rows, upto: row.map(|row| reading.key(row)).transpose()?.map(|key| key.0) })
    }

    /// Puts the low watermark and begins to read after it; tells what is seen from there.
    async fn begin(&self, session: &Session, id: &str) -> Result<Snapshot> {
        let sql = format!(
            "BEGIN; {}; COMMIT; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.pg_current_snapshot()::text",
            self.mark("low", id)
        );
        let answer = session.simple_query(&sql).await.map_err(|e| self.failed("beginning to read rows", e))?;
        let snapshot = answer.iter().rev().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let snapshot = snapshot.and_then(Snapshot::parse);
        snapshot.ok_or_else(|| Error::new(Kind::Protocol, "the server told no snapshot"))
    }

    fn mark(&self, which: &str, id: &str) -> String {
        self.marks.emit(BACKFILL_PREFIX, &format!("{{\"{which}\":\"{id}\"}}"))
    }

    /// Reads the rows of a range. Where they are more than was planned, or large, only the first of them.
    async fn read(
        &self,
        session: &Session,
        reading: &Reading,
        from: &Str,
        rows: usize,
        upto: Option<&Str>,
    ) -> Result<Read> {
        // Some may have come since the range was looked for.
        let limit = if upto.is_some() { rows.saturating_mul(2) } else { rows };
        let sql = reading.copy_sql(from, upto, limit)?;
        let lines = session.copy_out(&sql).await.map_err(|e| self.failed("reading rows", e))?;
        let mut lines = pin!(lines);
        let mut read = Read { rows: Vec::with_capacity(rows), bytes: 0, is_cut: false, has_more: false };
        while let Some(line) = lines.next().await {
            let line = line.map_err(|e| self.failed("reading rows", e))?;
            read.bytes += line.len();
            read.is_cut |= read.bytes > CHUNK_BYTES_MAX && read.rows.len() >= CHUNK_ROWS_MIN;
            if !read.is_cut {
                read.rows.push(reading.row(&line)?);
            }
        }
        read.has_more = read.is_cut || read.rows.len() == limit;
        Ok(read)
    }

    /// Looks for rows that the log knows; tells those that are not there.
    async fn look_for(&self, session: &Session, reading: &Reading, keys: &[Key]) -> Result<Vec<Key>> {
        let sql = reading.missing_sql(keys)?;
        let answer = session.simple_query(&sql).await.map_err(|e| self.failed("looking for rows", e))?;
        let numbers = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(numbers.filter_map(|n| keys.get(n.parse::<usize>().ok()?).cloned()).collect())
    }
}

fn chunk_of(read: Read, snapshot: Snapshot, from: Str, upto: Option<Str>) -> Chunk {
    let finished = upto.is_none() && !read.has_more;
    let last = || read.rows.last().map_or_else(|| from.clone(), |row| row.key.0.clone());
    let after = match upto {
        Some(upto) if !read.has_more => upto,
        _ => last(),
    };
    Chunk { read: read.rows.len() as u64, rows: read.rows, missing: Vec::new(), snapshot, from, after, finished }
}

/// An id that no other run, dead or alive, has used.
fn window_id() -> Result<String> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new(Kind::Internal, "the random generator failed"))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
