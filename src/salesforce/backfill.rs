//! Copying an object's rows into the log, page after page: what was there before capture began, and whole objects again
//! where the stream could not tell.
//!
//! Each page is one batch with a [`Notice::Backfill`] that says how far it has come, so that copying goes on from there
//! after a restart. How far is a text that [`Backfill`] alone reads (see [`Place`]); an unfinished copy of either kind is
//! resumed by handing it back to [`Backfill::run`].
//!
//! One copy of an object runs at a time. [`Copies`] knows them; when the stream asks for an object to be read again while a
//! copy is under way, the copy is told to go round once more, and every place it notes from then on says so.
//!
//! What was deleted and is in the recycle bin no more is told by nothing but its absence. So whoever reads an object again asks
//! what the log takes for alive ([`Known`]), looks once more for those records that were not among the rows, and tells of
//! those that are not there.
//!
//! Rows that are read carry no place of the stream: their position has an empty replay id. The log merges them by stamp. What
//! has no stamp of its own, above all a record that is not there, has the latest second that was surely over or under way when
//! it was read, so that an event of that same second still counts as later. It is read after that second has passed the moment
//! of asking, so that it counts as later than what had been told by then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::reread::{Page, Range, ReadRow, RowReader, cancelled};
use super::rest::{Rest, Rows};
use crate::change::{Catalog, MappingDef, MappingId, Notice, Position, Side, Str, StreamId, Transaction, Who};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Intake, Item, Own, Row, RowOperation};

/// What a place of a copy that reads an object again begins with.
const SWEEP: &str = "sweep:";

/// What a place ends with when the object is to be read once more after this copy.
const AGAIN: &str = "+sweep";

/// How far a copy has come: `[sweep:]<last id>[+sweep]`. Empty is the beginning of a backfill.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether the object is read again because the stream could not tell, and not for the first time.
    pub sweep: bool,
    /// Every row up to this id is done.
    pub after: Str,
    /// Whether the object is to be read once more afterwards.
    pub again: bool,
}

impl Place {
    /// The beginning of reading an object again.
    pub const fn sweep() -> Self {
        Self { sweep: true, after: Str::new_static(""), again: false }
    }

    /// The place from which on the object is read once more: at once after a copy that is `finished` or reads it again anyway,
    /// and otherwise after the copy.
    pub(crate) fn once_more(self, finished: bool) -> Self {
        if finished || self.sweep { Self::sweep() } else { Self { again: true, ..self } }
    }

    /// Reads what [`Place::to_text`] wrote.
    pub fn parse(text: &str) -> Self {
        let (sweep, text) = text.strip_prefix(SWEEP).map_or((false, text), |rest| (true, rest));
        let (text, again) = text.strip_suffix(AGAIN).map_or((text, false), |rest| (rest, true));
        Self { sweep, after: Str::new(text), again }
    }

    /// The text in [`Notice::Backfill`].
    pub fn to_text(&self) -> Str {
        let (before, after) = (if self.sweep { SWEEP } else { "" }, if self.again { AGAIN } else { "" });
        smol_str::format_smolstr!("{before}{}{after}", self.after)
    }
}

/// Microseconds in a second: events and stamps have whole ones.
const SECOND: Micros = 1_000_000;

/// The longest wait for the org's clock to have passed a moment; it is longer than this only where a clock was set.
const PASS_MAX: Duration = Duration::from_secs(5);

/// Ids that are asked for at once.
const KNOWN_AT_ONCE: usize = 2_000;

/// Ids, in time.
pub type Ids = Pin<Box<dyn Future<Output = Result<Vec<Str>>> + Send>>;

/// What the log takes for alive.
#[derive(Clone)]
pub struct Known(Arc<dyn Fn(MappingId, Str, usize) -> Ids + Send + Sync>);

impl Known {
    /// `ids` answers the Salesforce ids of a mapping's living records after an id, ascending, at most so many: fewer mean that
    /// there are no more.
    pub fn new(ids: impl Fn(MappingId, Str, usize) -> Ids + Send + Sync + 'static) -> Self {
        Self(Arc::new(ids))
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Known")
    }
}

/// The copies that are under way. Shared by everything that starts one.
#[derive(Debug, Default)]
pub struct Copies {
    active: Mutex<BTreeMap<MappingId, Place>>,
    /// Told when a copy ends.
    left: tokio::sync::Notify,
    /// Held while a place is noted in the log, so that the log's last word on an object is the latest place.
    gate: tokio::sync::Mutex<()>,
    known: Option<Known>,
}

impl Copies {
    /// Copies that find out what is gone from what is known. Without it, only what is in the recycle bin is found.
    pub fn knowing(known: Known) -> Self {
        Self { known: Some(known), ..Self::default() }
    }

    /// Holds back the notes of all copies until it is dropped.
    pub(crate) async fn gate(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// Asks for an object to be read again. Returns the place to note in the log, and the copy that the caller must start:
    /// none when one is under way, which goes round once more. The caller holds the gate.
    pub(crate) fn ask(self: &Arc<Self>, mapping: MappingId) -> (Place, Option<Entered>) {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = active.get_mut(&mapping) {
            place.again = true;
            return (place.clone(), None);
        }
        active.insert(mapping, Place::sweep());
        (Place::sweep(), Some(Entered { copies: self.clone(), mapping }))
    }

    /// Enters a copy, if no other is under way; it leaves when the guard is dropped.
    fn try_enter(self: &Arc<Self>, mapping: MappingId, place: &Place) -> Option<Entered> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if active.contains_key(&mapping) {
            return None;
        }
        active.insert(mapping, place.clone());
        Some(Entered { copies: self.clone(), mapping })
    }

    /// Enters a copy, when the one that is under way has ended.
    pub(crate) async fn enter(self: &Arc<Self>, mapping: &MappingDef, place: Place) -> Entered {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // From here on, an end is not missed.
            left.as_mut().enable();
            if let Some(entered) = self.try_enter(mapping.id, &place) {
                return entered;
            }
            tracing::info!(sobject = %mapping.sobject, "the object is being read already; its copy goes on afterwards");
            left.await;
        }
    }
}

/// A copy that is under way.
#[derive(Debug)]
pub(crate) struct Entered {
    copies: Arc<Copies>,
    mapping: MappingId,
}

impl Entered {
    fn place(&self) -> Place {
        let active = self.copies.active.lock().unwrap_or_else(PoisonError::into_inner);
        active.get(&self.mapping).cloned().unwrap_or_default()
    }

    /// Moves on; whether another round is asked for is kept.
    fn move_to(&self, after: Str) -> Place {
        let mut active = self.copies.active.lock().unwrap_or_else(PoisonError::into_inner);
        let place = active.entry(self.mapping).or_default();
        place.after = after;
        place.clone()
    }

    /// Begins the round that was asked for.
    fn go_round(&self) -> Place {
        let mut active = self.copies.active.lock().unwrap_or_else(PoisonError::into_inner);
        let place = active.entry(self.mapping).or_default();
        *place = Place::sweep();
        place.clone()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.copies.active.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mapping);
        self.copies.left.notify_waiters();
    }
}

/// How far a copy has come, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The mapping.
    pub mapping: MappingId,
    /// Rows copied so far.
    pub rows: u64,
    /// Rows that there were when the copy began, or that were copied since, where the server could say; more may come.
    pub total: Option<u64>,
    /// Whether it is complete.
    pub finished: bool,
}

/// Copies rows of an org into the log. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Backfill {
    reader: RowReader,
    catalog: Arc<Catalog>,
    stream: StreamId,
    copies: Arc<Copies>,
}

impl Backfill {
    /// A copier. `copies` is shared with the capture of the same org.
    pub fn new(rest: Rest, catalog: Arc<Catalog>, stream: StreamId, copies: Arc<Copies>) -> Self {
        Self { reader: RowReader::new(rest), catalog, stream, copies }
    }

    pub(crate) fn reader(&self) -> &RowReader {
        &self.reader
    }

    /// Copies a mapping's rows, from where [`Notice::Backfill`] last said it was (`after` and `rows`; empty and 0 at first).
    ///
    /// Waits while another copy of the object is under way. `progress` is called after each page. Returns when every page is durable, or with [`Kind::Cancelled`].
    pub async fn run<I: Intake>(
        &self,
        mapping: MappingId,
        after: &str,
        rows: u64,
        intake: &I,
        progress: impl Fn(Progress) + Send + Sync,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mapping = self.mapping(mapping)?;
        let entered = tokio::select! {
            entered = self.copies.enter(mapping, Place::parse(after)) => entered,
            () = cancel.cancelled() => return Err(cancelled("waiting for another copy")),
        };
        let total = self.reader.count(mapping, cancel).await;
        self.copy(mapping, &entered, rows, total, intake, &progress, cancel).await
    }

    /// Reads a whole object again; the caller has entered the copy and noted its beginning in the log.
    pub(crate) async fn sweep<I: Intake>(
        &self,
        entered: Entered,
        intake: &I,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mapping = self.mapping(entered.mapping)?;
        self.copy(mapping, &entered, 0, None, intake, &|_| (), cancel).await
    }

    #[allow(clippy::too_many_arguments)]
    async fn copy<I: Intake>(
        &self,
        mapping: &MappingDef,
        entered: &Entered,
        mut rows: u64,
        total: Option<u64>,
        intake: &I,
        progress: &(impl Fn(Progress) + Send + Sync),
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut place = entered.place();
        let mut asked = self.latest_now();
        loop {
            // Reading again must see what was deleted; reading for the first time has no use for it.
            let seen = if place.sweep { Rows::All } else { Rows::Live };
            let range = Range { after: place.after.clone(), since: None };
            let newer_than = place.sweep.then_some(asked);
            let (Page { rows: page, finished }, read_at) = self.page(mapping, seen, &range, newer_than, cancel).await?;
            rows += page.len() as u64;
            let last = page.last().map_or_else(|| place.after.clone(), |row| row.id.clone());
            let operation = if place.sweep { RowOperation::Reread } else { RowOperation::Backfill };
            // What was edited just now may be edited again within the same second, which its stamp would not tell.
            let (fresh, whole): (Vec<&ReadRow>, Vec<&ReadRow>) =
                page.iter().partition(|row| place.sweep && row.stamp.is_some_and(|stamp| stamp >= read_at));
            let mut events: Vec<Event> =
                whole.into_iter().map(|row| self.read_row(mapping, row, operation, read_at)).collect();
            if place.sweep {
                let until = (!finished).then_some(&last);
                let mut ids = self.absent(mapping, &place.after, until, &page).await?;
                ids.extend(fresh.into_iter().map(|row| row.id.clone()));
                if !ids.is_empty() {
                    // To look for them takes its time, and what is read already must not wait.
                    let rows = std::mem::take(&mut events);
                    drop(intake.offer(Batch { side: Side::Salesforce, events: rows }).await?);
                    events = self.look_for(mapping, &ids, cancel).await?;
                }
            }
            let durable = {
                let _gate = self.copies.gate().await;
                place = entered.move_to(last);
                let done = finished && !place.again;
                if finished && place.again {
                    place = entered.go_round();
                    asked = self.latest_now();
                }
                events.push(self.event(self.now(), Item::Notice(backfill_notice(mapping.id, rows, &place, done))));
                (intake.offer(Batch { side: Side::Salesforce, events }).await?, done)
            };
            let (durable, done) = durable;
            tokio::select! {
                receipt = durable => receipt.map(drop)?,
                () = cancel.cancelled() => return Err(cancelled("copying rows from Salesforce")),
            }
            progress(Progress { mapping: mapping.id, rows, total: total.map(|total| total.max(rows)), finished: done });
            if done {
                tracing::info!(sobject = %mapping.sobject, rows, "all rows of the object are copied");
                return Ok(());
            }
        }
    }

    /// Reads again, page after page, what was changed or deleted at or after `since` (everything, where that is not known),
    /// and returns when it is durable. It notes no place: whoever calls it does so again after a crash.
    pub(crate) async fn since<I: Intake>(
        &self,
        mapping: &MappingDef,
        since: Option<Micros>,
        intake: &I,
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let mut range = Range { after: Str::default(), since };
        let mut rows = 0;
        let asked = self.latest_now();
        loop {
            let (page, read_at) = self.page(mapping, Rows::All, &range, Some(asked), cancel).await?;
            rows += page.rows.len() as u64;
            if let Some(last) = page.rows.last() {
                range.after = last.id.clone();
                let event = |row| self.read_row(mapping, row, RowOperation::Image, read_at);
                let events = page.rows.iter().map(event).collect();
                let durable = intake.offer(Batch { side: Side::Salesforce, events }).await?;
                tokio::select! {
                    receipt = durable => receipt.map(drop)?,
                    () = cancel.cancelled() => return Err(cancelled("reading changes again")),
                }
            }
            if page.finished {
                break;
            }
        }
        self.tell_absent(mapping, intake, cancel).await?;
        Ok(rows)
    }

    /// Goes through the ids of all rows and tells of the records that the log takes for alive and that are not there.
    async fn tell_absent<I: Intake>(&self, mapping: &MappingDef, intake: &I, cancel: &CancellationToken) -> Result<()> {
        if self.copies.known.is_none() {
            return Ok(());
        }
        let mut range = Range::default();
        loop {
            let page = self.reader.ids(mapping, &range, cancel).await?;
            let last = page.rows.last().map_or_else(|| range.after.clone(), |row| row.id.clone());
            let until = (!page.finished).then_some(&last);
            let missed = self.absent(mapping, &range.after, until, &page.rows).await?;
            let events = self.look_for(mapping, &missed, cancel).await?;
            if !events.is_empty() {
                let durable = intake.offer(Batch { side: Side::Salesforce, events }).await?;
                tokio::select! {
                    receipt = durable => receipt.map(drop)?,
                    () = cancel.cancelled() => return Err(cancelled("looking for deleted records")),
                }
            }
            if page.finished {
                return Ok(());
            }
            range.after = last;
        }
    }

    /// The records after an id, up to another or the end, that the log takes for alive and that are not among the rows that were
    /// read there. They are to be looked for once more: a row may have been made since.
    async fn absent(
        &self,
        mapping: &MappingDef,
        after: &Str,
        until: Option<&Str>,
        read: &[ReadRow],
    ) -> Result<Vec<Str>> {
        let Some(known) = &self.copies.known else { return Ok(Vec::new()) };
        let read: BTreeSet<&str> = read.iter().map(|row| row.id.as_str()).collect();
        let (mut from, mut missed) = (after.clone(), Vec::new());
        loop {
            let ids = (known.0)(mapping.id, from, KNOWN_AT_ONCE).await?;
            let Some(last) = ids.last().cloned() else { break };
            let more = ids.len() == KNOWN_AT_ONCE && until.is_none_or(|until| last < *until);
            missed.extend(
                ids.into_iter().filter(|id| until.is_none_or(|until| id <= until) && !read.contains(id.as_str())),
            );
            if !more {
                break;
            }
            from = last;
        }
        if !missed.is_empty() {
            tracing::info!(sobject = %mapping.sobject, records = missed.len(), "records of the log were not found in Salesforce");
        }
        Ok(missed)
    }

    /// Reads these records, whole, and says what they are.
    async fn look_for(&self, mapping: &MappingDef, ids: &[Str], cancel: &CancellationToken) -> Result<Vec<Event>> {
        let (asked, mut read_at) = (self.latest_now(), self.earliest_now());
        let mut rows = self.reader.by_ids(mapping, ids, cancel).await?;
        // A row that was edited just now may be edited again within the same second, which its stamp would not tell.
        let is_dated = |row: &ReadRow| row.stamp.is_some_and(|stamp| stamp < read_at);
        let undated: Vec<Str> = ids.iter().filter(|id| !rows.get(*id).is_some_and(is_dated)).cloned().collect();
        if !undated.is_empty() {
            rows.retain(|_, row| is_dated(row));
            self.pass(asked, cancel).await?;
            read_at = self.earliest_now();
            rows.extend(self.reader.by_ids(mapping, &undated, cancel).await?);
        }
        let told = ids.iter().map(|id| match rows.get(id) {
            Some(row) => self.read_row(mapping, row, RowOperation::Reread, read_at),
            None => self.event(read_at, Item::Row(missing(mapping, id))),
        });
        Ok(told.collect())
    }

    /// A page, and the stamp of those of its rows that have none. Where they are to be `newer_than` a moment by the org's
    /// clock, they are read when it has passed.
    async fn page(
        &self,
        mapping: &MappingDef,
        rows: Rows,
        range: &Range,
        newer_than: Option<Micros>,
        cancel: &CancellationToken,
    ) -> Result<(Page, Micros)> {
        let read_at = self.earliest_now();
        let page = self.reader.page(mapping, rows, range, cancel).await?;
        match newer_than.filter(|asked| read_at <= *asked) {
            Some(asked) if page.rows.iter().any(|row| row.stamp.is_none()) => {
                self.pass(asked, cancel).await?;
                let read_at = self.earliest_now();
                Ok((self.reader.page(mapping, rows, range, cancel).await?, read_at))
            }
            _ => Ok((page, read_at)),
        }
    }

    /// Reads these records again, whole, and returns when what they are is durable.
    pub async fn read_again<I: Intake>(
        &self,
        records: &[(MappingId, Str)],
        intake: &I,
        cancel: &CancellationToken,
    ) -> Result<()> {
        let mut by_mapping: BTreeMap<MappingId, Vec<Str>> = BTreeMap::new();
        for (mapping, id) in records {
            by_mapping.entry(*mapping).or_default().push(id.clone());
        }
        for (mapping, ids) in by_mapping {
            let mapping = self.mapping(mapping)?;
            let events = self.look_for(mapping, &ids, cancel).await?;
            let durable = intake.offer(Batch { side: Side::Salesforce, events }).await?;
            tokio::select! {
                receipt = durable => receipt.map(drop)?,
                () = cancel.cancelled() => return Err(cancelled("reading records again")),
            }
        }
        Ok(())
    }

    /// An event without a place in the stream.
    pub(crate) fn event(&self, committed_at: Micros, item: Item) -> Event {
        Event {
            position: Position::Salesforce { stream: self.stream, replay_id: Str::default(), index: 0 },
            transaction: Transaction::default(),
            committed_at,
            who: Who::default(),
            item,
        }
    }

    /// The time now by the org's clock, as far as it is known.
    pub(crate) fn now(&self) -> Micros {
        let rest = self.reader.rest();
        rest.clock().now() + rest.clock_offset().ahead().unwrap_or(0)
    }

    /// A row as it was read: with its own stamp, or, where the object has none, with that of the reading.
    fn read_row(&self, mapping: &MappingDef, row: &ReadRow, operation: RowOperation, read_at: Micros) -> Event {
        self.event(row.stamp.unwrap_or(read_at), Item::Row(row_of(mapping, row, operation)))
    }

    fn clock_doubt(&self) -> Micros {
        self.reader.rest().clock_offset().uncertainty().unwrap_or(0)
    }

    /// The second that it is at the org, or one before.
    fn earliest_now(&self) -> Micros {
        (self.now() - self.clock_doubt()).div_euclid(SECOND) * SECOND
    }

    /// The time that it is at the org, or later.
    fn latest_now(&self) -> Micros {
        self.now() + self.clock_doubt()
    }

    /// Waits until the second of [`Backfill::earliest_now`] is after a moment.
    async fn pass(&self, moment: Micros, cancel: &CancellationToken) -> Result<()> {
        let next = (moment.div_euclid(SECOND) + 1) * SECOND;
        let wait = u64::try_from(next - (self.now() - self.clock_doubt())).unwrap_or(0);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_micros(wait).min(PASS_MAX)) => Ok(()),
            () = cancel.cancelled() => Err(cancelled("reading records again")),
        }
    }

    fn mapping(&self, id: MappingId) -> Result<&MappingDef> {
        self.catalog
            .mapping(id)
            .ok_or_else(|| Error::new(Kind::Internal, format!("mapping {} to copy is not in the catalog", id.0)))
    }
}

/// A row that was read, as an event says it. One in the recycle bin is missing.
pub(crate) fn row_of(mapping: &MappingDef, row: &ReadRow, operation: RowOperation) -> Row {
    let (operation, fields) =
        if row.deleted { (RowOperation::Missing, Vec::new()) } else { (operation, row.values(mapping)) };
    Row {
        mapping: mapping.id,
        operation,
        key: None,
        old_key: None,
        salesforce_id: Some(row.id.clone()),
        fields,
        own: Own::No,
    }
}

/// A record that was looked for and is not there, as an event says it.
fn missing(mapping: &MappingDef, id: &Str) -> Row {
    Row {
        mapping: mapping.id,
        operation: RowOperation::Missing,
        key: None,
        old_key: None,
        salesforce_id: Some(id.clone()),
        fields: Vec::new(),
        own: Own::No,
    }
}

/// How far a copy has come, for the log.
pub(crate) fn backfill_notice(mapping: MappingId, rows: u64, place: &Place, finished: bool) -> Notice {
    Notice::Backfill { side: Side::Salesforce, mapping, rows, after: place.to_text(), finished }
}

#[cfg(test)]
#[path = "backfill_tests.rs"]
mod tests;
