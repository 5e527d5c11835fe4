//! The loop that replays the log to one side.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::change::codec::{EntryKind, Outline};
use crate::change::{Body, Lsn, Notice, Offset, Position, RecordId, Side, Str, WriteResult, codec};
use crate::clock::{Micros, SharedClock};
use crate::error::{Disposition, Error, Kind, Result};
use crate::flow::{Confirmation, Mended, Resumed, Target, Write, Written};
use crate::ledger::{Answer, Ledger};
use crate::log::ReadLimit;
use crate::log::reader::LogReader;

use super::attempts::{Attempts, Next};
use super::{ReplayStatus, order};
use crate::backoff::Backoff;

/// Bounds and delays.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long to wait for more changes before a batch that is not full is sent.
    pub linger: Duration,
    /// How often a write that was not done, and that not time alone mends, is tried before it becomes a dead letter.
    pub attempts_max: u32,
    /// The first wait after a failure.
    pub backoff_least: Duration,
    /// The longest wait after a failure.
    pub backoff_most: Duration,
    /// How long a shutdown waits for writes that are with the side.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            linger: Duration::ZERO,
            attempts_max: 12,
            backoff_least: Duration::from_millis(100),
            backoff_most: Duration::from_secs(30),
            drain: Duration::from_secs(10),
        }
    }
}

/// Entries read at once.
const PAGE: usize = 2_000;
/// How far the cursor may run ahead of what the log knows of it.
const CURSOR_UNTOLD_MAX: u64 = 20_000;
/// How often acknowledged writes are looked at for silence.
const SILENCE_CHECK: Duration = Duration::from_millis(250);
/// How far the stream must be past an acknowledgement: commit times have whole seconds, and the clocks differ a little.
const SILENCE_MARGIN: Micros = 2_000_000;
/// How long a record is given to be read before the ledger is reminded of it.
const CONFIRM_AGAIN: Micros = 60_000_000;

/// The time up to which a side's stream has been read, by this machine's clock.
pub(super) type StreamTime = Arc<dyn Fn() -> Micros + Send + Sync>;

/// Replays the log to one side.
pub struct Runner<T> {
    side: Side,
    ledger: Ledger,
    log: LogReader,
    clock: SharedClock,
    settings: Settings,
    status: Arc<ReplayStatus>,
    stream_time: StreamTime,
    confirmation: Confirmation,
    batch_limit: usize,
    /// Targets that are idle. One for a side that takes transactions.
    idle: Vec<T>,
    calls: JoinSet<Call<T>>,
    /// The first offset that was not read.
    scanned: Offset,
    /// The cursor that the log knows.
    told: Offset,
    /// Where a range ends that is sent again. The cursor stays where it is then.
    until: Option<Offset>,
    /// Records to look at, in the order of the entries that called for it, with the first of those.
    waiting: VecDeque<RecordId>,
    waiting_at: HashMap<RecordId, Waiting>,
    /// Records whose write is with the side.
    busy: HashSet<RecordId>,
    /// Records that called for a look while busy.
    deferred: BTreeMap<RecordId, Waiting>,
    /// Writes that were planned, or have to be sent again.
    ready: VecDeque<Vec<Write>>,
    /// Batches that failed, each with the target that was at it: it alone knows what of them is answered already.
    failed: VecDeque<(T, Vec<Write>)>,
    /// Answers that are given later, so that the write is planned again then.
    delayed: Vec<(Instant, Answer)>,
    /// Records with fields that wait until the side's rows have been read again.
    held_back: BTreeMap<RecordId, Waiting>,
    /// Records whose write is answered and not yet told by the stream, and that need another one already.
    behind: BTreeMap<RecordId, Waiting>,
    attempts: HashMap<RecordId, Attempts>,
    /// Writes of an earlier process in a transaction that committed, of which the stream has not told yet. It tells nothing of
    /// those that were put off.
    untold: BTreeMap<Offset, Write>,
    /// The place of the side's stream by which it has told of them.
    told_by: Option<Lsn>,
    /// Acknowledged writes whose echo has not been seen: ticket, record, when.
    unechoed: BTreeMap<Offset, (RecordId, Micros)>,
    backoff: Backoff,
    resume_at: Option<Instant>,
    resumed: bool,
    gathering_since: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Waiting {
    offset: Offset,
    recorded_at: Micros,
}

struct Call<T> {
    target: T,
    writes: Vec<Write>,
    result: Result<Vec<Written>>,
}

impl<T: Target + 'static> Runner<T> {
    /// A runner over `targets`: one, or several for calls in parallel where the side answers each.
    pub fn new(
        targets: Vec<T>,
        ledger: Ledger,
        log: LogReader,
        clock: SharedClock,
        settings: Settings,
        stream_time: StreamTime,
    ) -> Self {
        let side = targets.first().map_or(Side::Postgres, Target::side);
        let confirmation = targets.first().map_or(Confirmation::Answer, Target::confirmation);
        let batch_limit = targets.first().map_or(200, Target::batch_limit).max(1);
        let cursor = ledger.status().borrow().cursors[side.index()];
        Self {
            side,
            backoff: Backoff::new(settings.backoff_least, settings.backoff_most),
            ledger,
            log,
            clock,
            settings,
            status: Arc::default(),
            stream_time,
            confirmation,
            batch_limit,
            idle: targets,
            calls: JoinSet::new(),
            scanned: cursor,
            told: cursor,
            until: None,
            waiting: VecDeque::new(),
            waiting_at: HashMap::new(),
            busy: HashSet::new(),
            deferred: BTreeMap::new(),
            ready: VecDeque::new(),
            failed: VecDeque::new(),
            delayed: Vec::new(),
            held_back: BTreeMap::new(),
            behind: BTreeMap::new(),
            attempts: HashMap::new(),
            untold: BTreeMap::new(),
            told_by: None,
            unechoed: BTreeMap::new(),
            resume_at: None,
            resumed: false,
            gathering_since: None,
        }
    }

    /// Its live figures.
    pub fn status(&self) -> Arc<ReplayStatus> {
        Arc::clone(&self.status)
    }

    /// Replays until cancelled; then waits for the writes that are with the side, takes their answers, and leaves the cursor
    /// in the log. Failures of the side are waited out; an error is one of the log.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<()> {
        self.adopt_open_writes().await?;
        let mut tail = self.ledger.status();
        let mut silence = tokio::time::interval(SILENCE_CHECK);
        silence.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.advance().await?;
            self.tell_status();
            let wake = self.wake_at();
            let can_read = self.waiting.len() < PAGE;
            if can_read && self.scanned < tail.borrow_and_update().tail {
                continue;
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(call) = self.calls.join_next(), if !self.calls.is_empty() => self.finish(call).await?,
                changed = tail.changed(), if can_read => {
                    if changed.is_err() {
                        return Err(Error::new(Kind::Cancelled, "the ledger has stopped"));
                    }
                }
                () = tokio::time::sleep_until(wake) => {}
                _ = silence.tick() => self.close_silent().await?,
            }
        }
        self.drain().await
    }

    /// Looks at every record again that entries from `from` to before `to` are about, and sends what the side is not known to hold,
    /// until it has answered everything or this is cancelled. Answers whether it came to the end.
    pub async fn run_range(mut self, from: Offset, to: Offset, cancel: CancellationToken) -> Result<bool> {
        self.adopt_open_writes().await?;
        (self.scanned, self.until) = (from, Some(to));
        loop {
            self.advance().await?;
            let tail = self.ledger.status().borrow().tail;
            if self.scanned < tail && self.waiting.len() < PAGE && !cancel.is_cancelled() {
                continue;
            }
            if self.is_done() && self.scanned >= tail {
                let complete = self.held_back.is_empty();
                self.drain().await?;
                return Ok(complete);
            }
            let wake = self.wake_at();
            tokio::select! {
                () = cancel.cancelled() => {
                    self.drain().await?;
                    return Ok(false);
                }
                Some(call) = self.calls.join_next(), if !self.calls.is_empty() => self.finish(call).await?,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    /// Whether nothing waits, is planned or under way. What the side's stream tells of it is for the next run.
    fn is_done(&self) -> bool {
        self.waiting.is_empty()
            && self.ready.is_empty()
            && self.failed.is_empty()
            && self.delayed.is_empty()
            && self.calls.is_empty()
            && self.busy.is_empty()
            && self.deferred.is_empty()
    }

    /// Takes every step that needs no waiting.
    async fn advance(&mut self) -> Result<()> {
        loop {
            self.give_delayed().await?;
            // A side that is idle gets what is planned already before anything else is looked at.
            let mut moved = self.send().await?;
            moved |= self.read().await?;
            self.give_passed().await?;
            moved |= self.plan().await?;
            moved |= self.send().await?;
            if !moved {
                return Ok(());
            }
        }
    }

    /// The next time at which something is due.
    fn wake_at(&self) -> Instant {
        let far = Instant::now() + Duration::from_hours(1);
        let delayed = self.delayed.iter().map(|(at, _)| *at).min();
        let gathered = self.gathering_since.map(|since| since + self.settings.linger);
        [delayed, self.resume_at, gathered].into_iter().flatten().min().unwrap_or(far)
    }

    /// Tickets that were open when the process last stopped.
    async fn adopt_open_writes(&mut self) -> Result<()> {
        let side = self.side;
        let open = self.ledger.run(move |core| core.open_writes(side)).await?;
        if self.confirmation == Confirmation::Transaction {
            // Whether they took effect is asked of the side when it is connected.
            return Ok(());
        }
        let now = self.clock.now();
        let mut again = Vec::new();
        for (write, acknowledged) in open {
            if acknowledged {
                self.unechoed.insert(write.ticket, (write.record, now));
            } else {
                again.push(write);
            }
        }
        let limit = self.batch_limit;
        for chunk in again.chunks(limit) {
            self.busy.extend(chunk.iter().map(|w| w.record));
            self.ready.push_back(chunk.to_vec());
        }
        Ok(())
    }

    // -- reading the log ---------------------------------------------------------------------------------------------------

    async fn read(&mut self) -> Result<bool> {
        let tail = self.ledger.status().borrow().tail;
        if self.scanned >= tail || self.waiting.len() >= PAGE {
            return Ok(false);
        }
        let page = self.log.read(self.scanned, ReadLimit::entries(PAGE)).await?;
        let mut told = Offset(0);
        for (offset, bytes) in page.iter() {
            let unreadable = |e| {
                Error::new(Kind::Corrupt, format!("entry {offset} cannot be read; run `tidelock log verify`"))
                    .caused_by(e)
            };
            let Outline { recorded_at, kind, record } = codec::outline(bytes).map_err(unreadable)?;
            self.scanned = offset.next();
            let at = Waiting { offset, recorded_at };
            // Behind a range, what became of its own writes matters still.
            if self.until.is_some_and(|until| offset >= until) && kind != EntryKind::Outcome {
                continue;
            }
            match (kind, record) {
                (EntryKind::Ticket, _) => continue,
                (EntryKind::Change | EntryKind::Decision | EntryKind::Bind, Some(record)) => {
                    self.look_at(record, at);
                    continue;
                }
                _ => {}
            }
            let entry = codec::decode(bytes).map_err(unreadable)?;
            let record = match &entry.body {
                Body::Echo(echo) => {
                    if echo.source.side == self.side {
                        self.unechoed.remove(&echo.ticket);
                        self.attempts.remove(&echo.record);
                        told = told.max(echo.ticket);
                        self.untold.remove(&echo.ticket);
                    }
                    echo.record
                }
                Body::Outcome(outcome) => {
                    if outcome.side == self.side {
                        if outcome.result != WriteResult::Done {
                            self.unechoed.remove(&outcome.ticket);
                        }
                        self.untold.remove(&outcome.ticket);
                        if outcome.result == WriteResult::Skipped {
                            told = told.max(outcome.ticket);
                        }
                    }
                    outcome.record
                }
                Body::Notice(Notice::Backfill { side, finished: true, .. }) if *side == self.side => {
                    for (record, at) in std::mem::take(&mut self.held_back) {
                        self.look_at(record, at);
                    }
                    continue;
                }
                _ => continue,
            };
            self.look_at(record, at);
        }
        self.give_untold(told).await?;
        Ok(!page.is_empty())
    }

    /// The stream has told of this write, and so of all before it. What is still open of those was not done.
    async fn give_untold(&mut self, told: Offset) -> Result<()> {
        let later = self.untold.split_off(&told);
        let passed = std::mem::replace(&mut self.untold, later);
        self.not_done(passed).await
    }

    /// The same where the stream has come past all of their transactions.
    async fn give_passed(&mut self) -> Result<()> {
        let Some(told_by) = self.told_by else { return Ok(()) };
        let passed = match &self.ledger.status().borrow().positions[self.side.index()] {
            Some(Position::Postgres { commit_lsn, .. }) => *commit_lsn >= told_by,
            _ => false,
        };
        if !passed {
            return Ok(());
        }
        self.told_by = None;
        let passed = std::mem::take(&mut self.untold);
        self.not_done(passed).await
    }

    async fn not_done(&mut self, passed: BTreeMap<Offset, Write>) -> Result<()> {
        if passed.is_empty() {
            return Ok(());
        }
        let side = self.side;
        let answers: Vec<Answer> =
            passed.values().map(|write| abandoned(write, side, "it was put off by an earlier process")).collect();
        // Those that are closed already are left as they are.
        self.ledger.run(move |core| core.answers(&answers)).await
    }

    fn look_at(&mut self, record: RecordId, at: Waiting) {
        if self.busy.contains(&record) {
            self.deferred.entry(record).or_insert(at);
        } else if let std::collections::hash_map::Entry::Vacant(slot) = self.waiting_at.entry(record) {
            slot.insert(at);
            self.waiting.push_back(record);
        }
    }

    /// The first offset that a restart has to read again.
    fn cursor(&self) -> Offset {
        if self.until.is_some() {
            return self.told;
        }
        let waiting = self.waiting_at.values().map(|w| w.offset).min();
        let deferred = self.deferred.values().map(|w| w.offset).min();
        let held_back = self.held_back.values().map(|w| w.offset).min();
        [waiting, deferred, held_back].into_iter().flatten().min().unwrap_or(self.scanned).min(self.scanned)
    }

    fn tell_status(&self) {
        let waiting = self.waiting_at.values().chain(self.deferred.values());
        let oldest = waiting.chain(self.held_back.values()).chain(self.behind.values()).map(|w| w.recorded_at).min();
        let ahead: usize = self.ready.iter().map(Vec::len).sum();
        let behind = self.held_back.len() + self.behind.len() + self.untold.len() + self.delayed.len() + ahead;
        self.status.behind.store(behind as u64, Ordering::Relaxed);
        self.status.at(self.scanned, oldest.unwrap_or(0));
    }

    // -- planning ----------------------------------------------------------------------------------------------------------

    async fn plan(&mut self) -> Result<bool> {
        if !self.ready.is_empty() || self.resume_at.is_some() || !self.gathered() {
            return Ok(false);
        }
        // A transaction that fails gives back what was planned behind it, so the next one is planned while it runs.
        let may = match self.confirmation {
            Confirmation::Transaction => self.resumed,
            Confirmation::Answer => !self.idle.is_empty(),
        };
        if !may {
            return Ok(false);
        }
        let limit = self.batch_limit;
        let records: Vec<RecordId> = self.waiting.drain(..limit.min(self.waiting.len())).collect();
        self.gathering_since = None;
        if records.is_empty() {
            return Ok(false);
        }
        let called_by: HashMap<RecordId, Waiting> =
            records.iter().filter_map(|record| Some((*record, self.waiting_at.remove(record)?))).collect();
        let side = self.side;
        let mut rest = self.cursor();
        if self.ledger.status().borrow().backfills.iter().any(|b| b.side == side && b.holds_back()) {
            // Any of these may turn out to be held back, and must be looked at again after a restart.
            rest = called_by.values().map(|w| w.offset).min().unwrap_or(rest).min(rest);
        }
        let planned = self.ledger.run(move |core| {
            let mut writes = core.plan(side, &records, rest)?;
            order::sort(&mut writes, &core.meta().catalog);
            Ok((writes, core.take_held_back(), core.take_behind()))
        });
        let (writes, held_back, behind) = planned.await?;
        let earlier: HashMap<RecordId, Waiting> =
            called_by.keys().filter_map(|record| self.behind.remove_entry(record)).collect();
        for record in behind {
            if let Some(at) = earlier.get(&record).or_else(|| called_by.get(&record)) {
                self.behind.insert(record, *at);
            }
        }
        for record in held_back {
            if let Some(at) = called_by.get(&record) {
                self.held_back.entry(record).or_insert(*at);
            }
        }
        if writes.is_empty() {
            self.tell_cursor(rest).await?;
        } else {
            self.told = self.told.max(rest);
            self.busy.extend(writes.iter().map(|w| w.record));
            self.ready.push_back(writes);
        }
        Ok(true)
    }

    /// Whether the batch is full, or has waited long enough for more.
    fn gathered(&mut self) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        if self.settings.linger.is_zero() || self.waiting.len() >= self.batch_limit {
            return true;
        }
        self.gathering_since.get_or_insert_with(Instant::now).elapsed() >= self.settings.linger
    }

    /// Leaves the cursor in the log where it has come far without writes to show for it.
    async fn tell_cursor(&mut self, cursor: Offset) -> Result<()> {
        if cursor.0 < self.told.0 + CURSOR_UNTOLD_MAX {
            return Ok(());
        }
        self.told = cursor;
        let notice = Notice::ReplayAt { side: self.side, cursor };
        self.ledger.run(move |core| core.notice(notice)).await
    }

    // -- writing -----------------------------------------------------------------------------------------------------------

    async fn send(&mut self) -> Result<bool> {
        if self.resume_at.is_some_and(|at| at > Instant::now()) {
            return Ok(false);
        }
        self.resume_at = None;
        if self.confirmation == Confirmation::Transaction && !self.resumed && !self.idle.is_empty() {
            self.resume().await?;
            return Ok(self.resumed);
        }
        let Some((mut target, writes)) = self.next_batch() else { return Ok(false) };
        self.status.in_flight.fetch_add(writes.len() as u64, Ordering::Relaxed);
        self.calls.spawn(async move {
            let result = target.write(&writes).await;
            Call { target, writes, result }
        });
        Ok(true)
    }

    /// What is sent next, and by which target.
    fn next_batch(&mut self) -> Option<(T, Vec<Write>)> {
        if let Some(failed) = self.failed.pop_front() {
            return Some(failed);
        }
        if self.idle.is_empty() {
            return None;
        }
        let writes = self.ready.pop_front()?;
        self.idle.pop().map(|target| (target, writes))
    }

    /// Asks a transactional side what took effect, and gives the rest back to be planned anew.
    async fn resume(&mut self) -> Result<()> {
        let Some(target) = self.idle.first_mut() else { return Ok(()) };
        let Resumed { committed, told_by } = match target.resume().await {
            Ok(resumed) => resumed,
            Err(error) => return self.fail_or_end(error),
        };
        let side = self.side;
        let (open, applied) = self
            .ledger
            .run(move |core| {
                let applied = if side == Side::Postgres { core.meta().applied } else { Offset::default() };
                Ok((core.open_writes(side)?, applied))
            })
            .await?;
        if let Some(committed) = committed.filter(|committed| *committed < applied) {
            return self.fail_or_end(went_back(committed, applied));
        }
        let (done, lost): (Vec<Write>, Vec<Write>) = open
            .into_iter()
            .map(|(write, _)| write)
            .partition(|write| committed.is_some_and(|committed| write.ticket <= committed));
        let lost: Vec<Answer> =
            lost.iter().map(|write| abandoned(write, side, "its transaction did not commit")).collect();
        let put_off: HashSet<Offset> = self.delayed.iter().map(|(_, answer)| answer.ticket).collect();
        let done = done.into_iter().filter(|write| !put_off.contains(&write.ticket));
        self.untold = done.map(|write| (write.ticket, write)).collect();
        self.told_by = told_by;
        self.ready.clear();
        self.busy.clear();
        self.undefer_all();
        self.ledger.run(move |core| core.answers(&lost)).await?;
        self.resumed = true;
        self.succeed();
        Ok(())
    }

    fn undefer_all(&mut self) {
        for (record, at) in std::mem::take(&mut self.deferred) {
            self.look_at(record, at);
        }
    }

    async fn finish(&mut self, call: Result<Call<T>, tokio::task::JoinError>) -> Result<()> {
        let Call { target, writes, result } = call.map_err(|e| {
            Error::new(Kind::Internal, "a write to a side panicked; this is a bug in Tidelock").caused_by(e)
        })?;
        self.status.in_flight.fetch_sub(writes.len() as u64, Ordering::Relaxed);
        match result {
            Ok(written) => {
                self.idle.push(target);
                self.status.batches.fetch_add(1, Ordering::Relaxed);
                self.succeed();
                self.take_answers(&writes, &written).await
            }
            Err(error) => {
                self.fail(&error);
                if self.confirmation == Confirmation::Transaction {
                    self.idle.push(target);
                    self.resumed = false;
                } else {
                    self.failed.push_back((target, writes));
                }
                Ok(())
            }
        }
    }

    async fn take_answers(&mut self, writes: &[Write], written: &[Written]) -> Result<()> {
        let now = self.clock.now();
        let mut answers = Vec::new();
        for (write, written) in writes.iter().zip(written) {
            self.busy.remove(&write.record);
            match written {
                Written::Retry { code, message, mended } => {
                    answers.extend(self.put_off(write, code, message, *mended));
                }
                Written::Done { .. } => {
                    self.status.written.fetch_add(1, Ordering::Relaxed);
                    self.attempts.remove(&write.record);
                    self.unechoed.insert(write.ticket, (write.record, now));
                }
                Written::InStream => {
                    self.status.written.fetch_add(1, Ordering::Relaxed);
                }
                Written::Refused { .. } => {
                    self.status.refused.fetch_add(1, Ordering::Relaxed);
                    self.attempts.remove(&write.record);
                }
            }
            answers.extend(Answer::of(write, self.side, written));
            if let Some(at) = self.deferred.remove(&write.record) {
                self.look_at(write.record, at);
            }
        }
        if answers.is_empty() {
            return Ok(());
        }
        self.ledger.run(move |core| core.answers(&answers)).await
    }

    /// Puts a write off, or gives up on it. Where a limit is in its way, the others wait too: they would only meet it as well.
    fn put_off(&mut self, write: &Write, code: &Str, message: &Str, mended: Mended) -> Option<Answer> {
        let now = Instant::now();
        let attempts = self.attempts.entry(write.record).or_insert_with(|| Attempts::new(now));
        let wait = match attempts.failed(mended, now, &self.settings) {
            Next::Wait(wait) => wait,
            Next::GiveUp { attempts } => {
                self.attempts.remove(&write.record);
                self.status.refused.fetch_add(1, Ordering::Relaxed);
                let message = smol_str::format_smolstr!("{message} (given up after {attempts} attempts)");
                let result = WriteResult::Refused { code: code.clone(), message };
                return Some(Answer {
                    ticket: write.ticket,
                    record: write.record,
                    side: self.side,
                    result,
                    salesforce_id: None,
                });
            }
        };
        self.status.retries.fetch_add(1, Ordering::Relaxed);
        if mended == Mended::ByRoom {
            tracing::warn!(side = %self.side, %code, %message, wait_ms = wait.as_millis() as u64, "a limit was met; all writes to this side wait");
            self.resume_at = self.resume_at.max(Some(now + wait));
        }
        let reason = smol_str::format_smolstr!("{code}: {message}");
        self.delayed.push((now + wait, abandoned(write, self.side, &reason)));
        None
    }

    async fn give_delayed(&mut self) -> Result<()> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = self.delayed.drain(..).partition(|(at, _)| *at <= now);
        self.delayed = later;
        if due.is_empty() {
            return Ok(());
        }
        let answers: Vec<Answer> = due.into_iter().map(|(_, answer)| answer).collect();
        self.ledger.run(move |core| core.answers(&answers)).await
    }

    /// Closes acknowledged writes that the stream has passed without an echo: they made no difference, or it could not tell which.
    async fn close_silent(&mut self) -> Result<()> {
        if self.unechoed.is_empty() {
            return Ok(());
        }
        let passed = (self.stream_time)();
        let side = self.side;
        let silent: Vec<Answer> = self
            .unechoed
            .iter()
            .filter(|(_, (_, at))| passed > at + SILENCE_MARGIN)
            .map(|(ticket, (record, _))| Answer {
                ticket: *ticket,
                record: *record,
                side,
                result: WriteResult::Silent,
                salesforce_id: None,
            })
            .collect();
        if silent.is_empty() {
            return Ok(());
        }
        for answer in &silent {
            self.unechoed.remove(&answer.ticket);
        }
        let waiting = self.ledger.run(move |core| {
            core.answers(&silent)?;
            let mut waiting = Vec::new();
            for answer in silent {
                if core.is_open(side, answer.ticket)? {
                    waiting.push(answer);
                }
            }
            Ok(waiting)
        });
        // Their records are being read; until that has closed them, the ledger is reminded from time to time.
        let again = self.clock.now() + CONFIRM_AGAIN;
        for answer in waiting.await? {
            self.unechoed.insert(answer.ticket, (answer.record, again));
        }
        Ok(())
    }

    // -- failure -----------------------------------------------------------------------------------------------------------

    fn fail(&mut self, error: &Error) {
        self.status.failures.fetch_add(1, Ordering::Relaxed);
        let wait = self.backoff.next_wait();
        self.resume_at = Some(Instant::now() + wait);
        let (side, wait_ms, failures) = (self.side, wait.as_millis() as u64, self.backoff.failures());
        if failures >= 3 && self.status.set_open(true) {
            tracing::error!(%side, error = %error.explain(), "writes to this side keep failing; only probes are sent until one succeeds");
        } else {
            tracing::warn!(%side, failures, wait_ms, error = %error.explain(), "a write failed and will be tried again");
        }
    }

    /// A range is sent for somebody who waits for it: what does not pass by itself ends that.
    fn fail_or_end(&mut self, error: Error) -> Result<()> {
        if self.until.is_some() && !matches!(error.disposition(), Disposition::RestartPart | Disposition::Retry) {
            return Err(error);
        }
        self.fail(&error);
        Ok(())
    }

    fn succeed(&mut self) {
        self.backoff.succeeded();
        if self.status.set_open(false) {
            tracing::info!(side = %self.side, "writes to this side succeed again");
        }
    }

    async fn drain(mut self) -> Result<()> {
        let deadline = Instant::now() + self.settings.drain;
        while !self.calls.is_empty() {
            match tokio::time::timeout_at(deadline, self.calls.join_next()).await {
                Ok(Some(call)) => self.finish(call).await?,
                _ => break,
            }
        }
        // A write that was put off is planned again by the next process.
        for (at, _) in &mut self.delayed {
            *at = Instant::now();
        }
        self.give_delayed().await?;
        let cursor = self.cursor();
        if cursor > self.told {
            let notice = Notice::ReplayAt { side: self.side, cursor };
            self.ledger.run(move |core| core.notice(notice)).await?;
        }
        Ok(())
    }
}

/// A side that has less than its stream has told. Another write would hide that from whoever looks at the stream next.
fn went_back(committed: Offset, applied: Offset) -> Error {
    let message = format!(
        "tidelock.replay says that the last write was {committed}, and the server has already told of {applied}: it has gone back, \
         and nothing is written to it until its stream is opened again"
    );
    Error::new(Kind::StreamLost, message)
}

fn abandoned(write: &Write, side: Side, reason: &str) -> Answer {
    Answer {
        ticket: write.ticket,
        record: write.record,
        side,
        result: WriteResult::Abandoned { reason: Str::new(reason) },
        salesforce_id: None,
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
