//! Watermarks: how rows read by a backfill find their place in the stream (the method of Andreakis and Papapanagiotou,
//! "DBLog: A Watermark Based Change-Data-Capture Framework", 2020).
//!
//! A backfill commits a low message, reads a chunk of rows, and commits a high message. Capture collects the keys that the
//! stream touches between the two, and at the high one offers the chunk's other rows: what the chunk says of them holds at
//! that place.
//!
//! One thing a log cannot show: a transaction is written to the log just before other sessions can see it. If its commit
//! lies before the low message and the chunk's snapshot still did not see it, the chunk holds rows older than the stream has
//! told already. So the snapshot comes with the chunk and is compared with the transactions before the low message; if it
//! misses one, the chunk is read again.
//!
//! A copy may have several windows open at a time. Its chunks are taken in their order: one that does not begin where the last one ended is
//! read again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::status::CaptureStatus;
use crate::change::{FieldId, Key, MappingId, Notice, Side, Str, Value};
use crate::error::{Error, Kind, Result};
use crate::flow::{Item, Own, Row, RowOperation};

/// Prefix of the logical messages that mark a chunk.
pub(crate) const BACKFILL_PREFIX: &str = "tidelock.backfill";

/// Windows that may be announced at once.
pub(crate) const WINDOWS_MAX: usize = 16;
/// Keys that a window collects before its chunk is better read again.
const TOUCHED_MAX: usize = 65_536;
/// Transactions that are remembered. Only one whose commit waits for a synchronous standby for longer than these take could
/// be missed.
const RECENT_MAX: usize = 65_536;

/// A row as a backfill read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkRow {
    pub(crate) key: Key,
    pub(crate) salesforce_id: Option<Str>,
    pub(crate) fields: Vec<(FieldId, Value)>,
}

/// Rows that a backfill read between its two messages.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) rows: Vec<ChunkRow>,
    /// Keys that were looked for and are not there.
    pub(crate) missing: Vec<Key>,
    /// What the read could see.
    pub(crate) snapshot: Snapshot,
    /// Rows that were read.
    pub(crate) read: u64,
    /// The place behind which they were read.
    pub(crate) from: Str,
    /// Everything from there up to this place is read.
    pub(crate) after: Str,
    /// Whether it is the last chunk.
    pub(crate) finished: bool,
}

/// What became of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkOutcome {
    /// Its rows are durable in the change log.
    Durable,
    /// It must be read again.
    Again,
}

/// What a backfill announces before its low message.
#[derive(Debug)]
pub(crate) struct Window {
    /// The id in both messages.
    pub(crate) id: String,
    pub(crate) mapping: MappingId,
    /// How far the copy has come that the chunk is of.
    pub(crate) reached: Reached,
    /// The chunk, sent before the high message.
    pub(crate) chunk: oneshot::Receiver<Chunk>,
    pub(crate) outcome: oneshot::Sender<ChunkOutcome>,
}

/// How far a copy has come, as of the windows that have closed.
#[derive(Debug, Clone)]
pub(crate) struct Reached(Arc<Mutex<At>>);

#[derive(Debug)]
struct At {
    rows: u64,
    after: Str,
    /// The run of capture that took the last chunk.
    taken_by: Option<u64>,
}

impl Reached {
    pub(crate) fn new(rows: u64, after: Str) -> Self {
        Self(Arc::new(Mutex::new(At { rows, after, taken_by: None })))
    }

    /// Goes on to the end of a chunk; returns the rows read so far. None if it does not begin where the last one ended, or that one
    /// was taken by another run of capture, with which it may have been lost.
    fn advance(&self, chunk: &Chunk, run: u64) -> Option<u64> {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if at.after != chunk.from || at.taken_by.is_some_and(|taken_by| taken_by != run) {
            return None;
        }
        *at = At { rows: at.rows + chunk.read, after: chunk.after.clone(), taken_by: Some(run) };
        Some(at.rows)
    }
}

/// What a running capture shares with the rest: its status, and the windows that backfills announce. It outlives restarts.
#[derive(Debug, Clone, Default)]
pub struct CaptureHandle {
    status: Arc<CaptureStatus>,
    announced: Arc<Mutex<VecDeque<Window>>>,
    runs: Arc<AtomicU64>,
    republished: CancellationToken,
}

impl CaptureHandle {
    /// A handle for a capture that is yet to run.
    pub fn new() -> Self {
        Self::default()
    }

    /// What capture is doing.
    pub fn status(&self) -> &Arc<CaptureStatus> {
        &self.status
    }

    /// Notes that somebody has changed what the publication publishes.
    pub(super) fn republish(&self) {
        self.republished.cancel();
    }

    /// Is cancelled when somebody has changed what the publication publishes: the link is to be started again, so that the
    /// tables are read again.
    pub fn republished(&self) -> &CancellationToken {
        &self.republished
    }

    /// Announces a window; capture opens it when its low message comes.
    pub(crate) fn announce(&self, window: Window) -> Result<()> {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        announced.retain(|w| !w.outcome.is_closed());
        if announced.len() >= WINDOWS_MAX {
            return Err(Error::new(Kind::Unavailable, "too many backfills run at once"));
        }
        announced.push_back(window);
        Ok(())
    }

    fn claim(&self, id: &str) -> Option<Window> {
        let mut announced = self.announced.lock().unwrap_or_else(PoisonError::into_inner);
        let place = announced.iter().position(|w| w.id == id)?;
        announced.remove(place)
    }
}

/// A window between its low and its high message.
#[derive(Debug)]
struct OpenWindow {
    window: Window,
    touched: HashSet<Key>,
    /// How many transactions had come before it.
    opened_at: u64,
    spoiled: bool,
}

/// The windows of a running capture.
#[derive(Debug, Default)]
pub(super) struct Windows {
    handle: CaptureHandle,
    /// Which of the handle's runs of capture this is.
    run: u64,
    open: Vec<OpenWindow>,
    recent: VecDeque<u32>,
    transactions: u64,
    /// By mapping, the first of the fields whose columns no backfill has begun to read.
    unread: HashMap<MappingId, FieldId>,
}

/// A window that closed with a chunk to offer.
pub(super) struct Closed {
    mapping: MappingId,
    chunk: Chunk,
    rows_total: u64,
    outcome: oneshot::Sender<ChunkOutcome>,
}

impl Closed {
    /// What the chunk tells: its rows, and how far the backfill has come with them.
    pub(super) fn into_items(self) -> (impl Iterator<Item = Item>, oneshot::Sender<ChunkOutcome>) {
        let Self { mapping, chunk, rows_total, outcome } = self;
        let row = move |operation, key, salesforce_id, fields| {
            Item::Row(Row { mapping, operation, key: Some(key), old_key: None, salesforce_id, fields, own: Own::No })
        };
        let missing = chunk.missing.into_iter().map(move |key| row(RowOperation::Missing, key, None, Vec::new()));
        let read = chunk.rows.into_iter().map(move |r| row(RowOperation::Backfill, r.key, r.salesforce_id, r.fields));
        let notice = Item::Notice(Notice::Backfill {
            side: Side::Postgres,
            mapping,
            rows: rows_total,
            after: chunk.after,
            finished: chunk.finished,
        });
        (missing.chain(read).chain(std::iter::once(notice)), outcome)
    }
}

impl Windows {
    pub(super) fn new(handle: CaptureHandle, unread: impl IntoIterator<Item = (MappingId, FieldId)>) -> Self {
        let run = handle.runs.fetch_add(1, Relaxed);
        Self { handle, run, unread: unread.into_iter().collect(), ..Self::default() }
    }

    /// The first of a mapping's fields whose columns the stream may not have yet. A backfill looks for its columns before it
    /// begins, so that whatever was done before they were there comes before its first message.
    pub(super) fn unread(&self, mapping: MappingId) -> Option<FieldId> {
        self.unread.get(&mapping).copied()
    }

    /// Notes a committed transaction that had changes of mapped rows.
    pub(super) fn committed(&mut self, xid: u32) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(xid);
        self.transactions += 1;
        if !self.open.is_empty() {
            self.open.retain(|w| !w.window.outcome.is_closed());
        }
    }

    /// Whether keys need not be told at all.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn touch(&mut self, mapping: MappingId, key: &Key) {
        for open in self.open.iter_mut().filter(|w| w.window.mapping == mapping) {
            open.spoiled |= open.touched.len() >= TOUCHED_MAX;
            if open.spoiled {
                open.touched = HashSet::new();
            } else {
                open.touched.insert(key.clone());
            }
        }
    }

    /// Notes that any row of the mapping may have changed.
    pub(super) fn spoil(&mut self, mapping: MappingId) {
        for open in self.open.iter_mut().filter(|w| w.window.mapping == mapping) {
            open.spoiled = true;
        }
    }

    pub(super) fn low(&mut self, id: &str) {
        if let Some(window) = self.handle.claim(id) {
            let opened_at = self.transactions;
            self.unread.remove(&window.mapping);
            self.open.push(OpenWindow { window, touched: HashSet::new(), opened_at, spoiled: false });
        }
    }

    /// Closes the window. Ids that were not opened here are of a run that died, and are passed over.
    pub(super) fn high(&mut self, id: &str) -> Option<Closed> {
        let place = self.open.iter().position(|w| w.window.id == id)?;
        let OpenWindow { window, touched, opened_at, spoiled } = self.open.swap_remove(place);
        let Window { mapping, reached, mut chunk, outcome, .. } = window;
        if outcome.is_closed() {
            // The copy has begun anew, and may be further by now.
            return None;
        }
        let Ok(mut chunk) = chunk.try_recv() else { return None };
        let holds = !spoiled && !self.misses_one(&chunk.snapshot, opened_at);
        let Some(rows_total) = holds.then(|| reached.advance(&chunk, self.run)).flatten() else {
            // A backfill that is gone has no use for the answer.
            let _gone = outcome.send(ChunkOutcome::Again);
            return None;
        };
        chunk.rows.retain(|row| !touched.contains(&row.key));
        chunk.missing.retain(|key| !touched.contains(key));
        Some(Closed { mapping, chunk, rows_total, outcome })
    }

    /// Whether the snapshot does not see a transaction that the stream had told before the window opened.
    fn misses_one(&self, snapshot: &Snapshot, opened_at: u64) -> bool {
        let since = (self.transactions - opened_at) as usize;
        let before = self.recent.len().saturating_sub(since);
        self.recent.iter().take(before).any(|xid| !snapshot.sees(*xid))
    }
}

/// What a query could see, as `pg_current_snapshot()` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The first transaction id not yet given.
    xmax: u64,
    /// Transactions that were in progress, ascending.
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xid,xid`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let _xmin: u64 = parts.next()?.parse().ok()?;
        let xmax = parts.next()?.parse().ok()?;
        let list = parts.next()?;
        let mut in_progress: Vec<u64> =
            list.split(',').filter(|x| !x.is_empty()).map(str::parse).collect::<Result<_, _>>().ok()?;
        in_progress.sort_unstable();
        Some(Self { xmax, in_progress })
    }

    /// Whether a transaction that committed not long ago was visible. `xid` is the id's lower half, as the stream tells it.
    fn sees(&self, xid: u32) -> bool {
        let ahead = xid.wrapping_sub(self.xmax as u32) as i32;
        let full = self.xmax.wrapping_add_signed(i64::from(ahead));
        full < self.xmax && self.in_progress.binary_search(&full).is_err()
    }
}

/// Tells backfills that their chunks are durable.
pub(super) fn tell_durable(outcomes: Vec<oneshot::Sender<ChunkOutcome>>) {
    for outcome in outcomes {
        // A backfill that is gone has no use for the answer.
        let _gone = outcome.send(ChunkOutcome::Durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announce(handle: &CaptureHandle, id: &str) -> (oneshot::Sender<Chunk>, oneshot::Receiver<ChunkOutcome>) {
        announce_of(handle, id, &Reached::new(0, Str::default()))
    }

    fn announce_of(
        handle: &CaptureHandle,
        id: &str,
        reached: &Reached,
    ) -> (oneshot::Sender<Chunk>, oneshot::Receiver<ChunkOutcome>) {
        let (chunk_tx, chunk) = oneshot::channel();
        let (outcome, outcome_rx) = oneshot::channel();
        let (mapping, reached) = (MappingId(1), reached.clone());
        handle.announce(Window { id: id.into(), mapping, reached, chunk, outcome }).unwrap();
        (chunk_tx, outcome_rx)
    }

    fn chunk(keys: &[&str], snapshot: &str) -> Chunk {
        let row = |key: &&str| ChunkRow { key: Key::from_parts([*key]), salesforce_id: None, fields: Vec::new() };
        Chunk {
            rows: keys.iter().map(row).collect(),
            missing: vec![Key::from_parts(["2"]), Key::from_parts(["7"])],
            snapshot: Snapshot::parse(snapshot).unwrap(),
            read: keys.len() as u64,
            from: Str::default(),
            after: Str::new(keys.last().unwrap()),
            finished: false,
        }
    }

    #[test]
    fn rows_touched_within_the_window_are_left_to_the_stream() {
        let handle = CaptureHandle::new();
        let mut windows = Windows::new(handle.clone(), []);
        let (chunk_tx, _outcome) = announce(&handle, "a");
        windows.touch(MappingId(1), &Key::from_parts(["0"]));
        windows.low("a");
        windows.touch(MappingId(1), &Key::from_parts(["2"]));
        windows.touch(MappingId(2), &Key::from_parts(["1"]));
        chunk_tx.send(chunk(&["0", "1", "2"], "10:10:")).unwrap();
        let closed = windows.high("a").unwrap();
        let keys: Vec<String> = closed.chunk.rows.iter().map(|r| r.key.to_string()).collect();
        assert_eq!(keys, ["0", "1"]);
        assert_eq!(closed.chunk.missing, [Key::from_parts(["7"])], "one that is there again by now is not missing");
        assert!(windows.high("a").is_none() && windows.high("b").is_none());
    }

    #[test]
    fn a_chunk_that_missed_an_earlier_commit_is_read_again() {
        for (snapshot, again) in [("9:12:", false), ("9:12:10", true), ("9:10:", true), ("9:11:9", false)] {
            let handle = CaptureHandle::new();
            let mut windows = Windows::new(handle.clone(), []);
            let (chunk_tx, mut outcome) = announce(&handle, "a");
            windows.committed(10);
            windows.low("a");
            // Committed within the window: its keys are touched, so it does not matter what the snapshot saw.
            windows.committed(9);
            chunk_tx.send(chunk(&["1"], snapshot)).unwrap();
            assert_eq!(windows.high("a").is_none(), again, "{snapshot}");
            assert_eq!(outcome.try_recv().ok(), again.then_some(ChunkOutcome::Again));
        }
    }

    #[test]
    fn chunks_of_a_copy_are_taken_in_their_order() {
        let handle = CaptureHandle::new();
        let reached = Reached::new(100, Str::default());
        let begun = |windows: &mut Windows, id: &str, from: &str, key: &str| {
            let (chunk_tx, outcome) = announce_of(&handle, id, &reached);
            windows.low(id);
            chunk_tx.send(Chunk { from: from.into(), ..chunk(&[key], "9:9:") }).unwrap();
            outcome
        };
        let mut windows = Windows::new(handle.clone(), []);
        let _outcome = begun(&mut windows, "a", "", "2");
        assert_eq!(windows.high("a").unwrap().rows_total, 101);
        let mut spoiled = begun(&mut windows, "b", "2", "4");
        windows.spoil(MappingId(1));
        let mut ahead = begun(&mut windows, "c", "4", "6");
        let mut gone = begun(&mut windows, "d", "2", "4");
        assert!(windows.high("b").is_none() && windows.high("c").is_none());
        assert_eq!(spoiled.try_recv(), Ok(ChunkOutcome::Again));
        assert_eq!(ahead.try_recv(), Ok(ChunkOutcome::Again), "the one before it was not taken");
        gone.close();
        assert!(windows.high("d").is_none(), "nobody waits for it");
        let _outcome = begun(&mut windows, "e", "2", "4");
        assert_eq!(windows.high("e").unwrap().rows_total, 102);
        // What the last run had taken may not have become durable.
        let mut windows = Windows::new(handle.clone(), []);
        let mut outcome = begun(&mut windows, "f", "4", "6");
        assert!(windows.high("f").is_none());
        assert_eq!(outcome.try_recv(), Ok(ChunkOutcome::Again));
    }

    #[test]
    fn snapshots_see_across_the_wrap_of_short_ids() {
        let snapshot = Snapshot::parse("4294967290:4294967300:4294967299").unwrap();
        assert!(snapshot.sees(4_294_967_290));
        assert!(snapshot.sees(2), "4294967298");
        assert!(!snapshot.sees(3), "4294967299 was in progress");
        assert!(!snapshot.sees(4), "4294967300 was not given yet");
        for bad in ["", "1:2", "1:x:", "1:2:3,y"] {
            assert!(Snapshot::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn windows_of_dead_backfills_are_forgotten() {
        let handle = CaptureHandle::new();
        let mut windows = Windows::new(handle.clone(), []);
        drop(announce(&handle, "a"));
        let waiting = announce(&handle, "b");
        assert_eq!(handle.announced.lock().unwrap().len(), 1);
        windows.low("b");
        drop(waiting);
        windows.committed(1);
        assert!(windows.is_idle());
    }
}
