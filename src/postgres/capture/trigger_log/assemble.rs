//! Logged rows in, events for the change log out. No input or output here.
//!
//! Invariants:
//! * A row's place counts every logged row of its batch, mapped or not, so that the same row has the same position whenever the
//!   batch is read again.
//! * A transaction's last event leaves only when the next begins, marked as the last.
//! * Chunks of backfills come after all rows of the batch: a window ends there, so that they have no part in the places of rows,
//!   which are the same without them. What was touched up to there is left out of them.

use std::collections::HashMap;

use tokio::sync::oneshot;

use super::hstore::{self, Columns};
use super::table::{LoggedTable, Wanted};
use crate::change::{FieldId, Key, Lsn, Position, Side, Str, StreamId, Transaction, TruncatePolicy, Value, Who};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Item, Row, RowOperation};
use crate::postgres::capture::assemble::{MARKER_PREFIX, Watermark, shortened};
use crate::postgres::capture::ours::Ours;
use crate::postgres::capture::truncates;
use crate::postgres::capture::watermark::{BACKFILL_PREFIX, ChunkOutcome, Windows};

/// A batch for the change log is full at so many events, or so many bytes of logged rows.
const BATCH_EVENTS: usize = 500;
const BATCH_BYTES: usize = 256 * 1024;

/// A logged row, as the triggers wrote it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged<'a> {
    pub(super) txid: u64,
    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE` or `MESSAGE`.
    pub(super) action: &'a str,
    /// The table, or a message's prefix.
    pub(super) table: &'a str,
    /// The row's `id`, where it has one that is a number.
    pub(super) record_id: Option<&'a str>,
    pub(super) old: Option<&'a str>,
    /// What is new, or a message's content.
    pub(super) values: Option<&'a str>,
    pub(super) actor: Option<&'a str>,
    pub(super) committed_at: Micros,
}

/// A batch for the change log, and who waits for it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) batch: Batch,
    pub(super) outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
}

#[derive(Default, serde::Deserialize)]
struct Actor {
    user: Option<String>,
    role: Option<String>,
    application: Option<String>,
    /// Whether an application had the row logged, as it stands.
    #[serde(default)]
    captured: bool,
}

/// The transaction whose rows are coming.
#[derive(Debug, Clone)]
struct Open {
    txid: u64,
    id: Str,
    committed_at: Micros,
    /// The next row's place in it.
    index: u32,
    ours: Ours,
    has_events: bool,
}

/// Turns logged rows into events.
#[derive(Debug)]
pub(super) struct Assembler {
    stream: StreamId,
    link: String,
    tables: HashMap<String, LoggedTable>,
    windows: Windows,
    /// Where the stream stood before the batch.
    base: Lsn,
    /// The last row's place in the batch, from 1.
    place: u32,
    open: Option<Open>,
    /// High messages of the batch, with their transactions.
    highs: Vec<(String, Open)>,
    events: Vec<Event>,
    bytes: usize,
    outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
    last: Option<(Lsn, u32)>,
    transactions: u64,
    last_commit_time: Micros,
}

impl Assembler {
    pub(super) fn new(stream: StreamId, link: &str, windows: Windows) -> Self {
        Self {
            stream,
            link: link.to_owned(),
            tables: HashMap::new(),
            windows,
            base: Lsn(0),
            place: 0,
            open: None,
            highs: Vec::new(),
            events: Vec::with_capacity(BATCH_EVENTS),
            bytes: 0,
            outcomes: Vec::new(),
            last: None,
            transactions: 0,
            last_commit_time: 0,
        }
    }

    /// Takes the tables as they are now, by name.
    pub(super) fn set_tables(&mut self, tables: HashMap<String, LoggedTable>) {
        self.tables = tables;
    }

    pub(super) fn transactions(&self) -> u64 {
        self.transactions
    }

    pub(super) fn last_commit_time(&self) -> Micros {
        self.last_commit_time
    }

    /// Begins a batch, which follows what the stream told up to `base`.
    pub(super) fn begin_batch(&mut self, base: Lsn) {
        self.base = base;
        self.place = 0;
        self.last = None;
    }

    /// The place of the batch's last event, if it has any.
    pub(super) fn last(&self) -> Option<(Lsn, u32)> {
        self.last
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= BATCH_EVENTS || self.bytes >= BATCH_BYTES
    }

    /// Takes the events; a transaction's last one so far stays behind, since it may turn out to be the last of all.
    pub(super) fn take(&mut self) -> Option<Outgoing> {
        let held = match &self.open {
            Some(open) if open.has_events => self.events.pop(),
            _ => None,
        };
        self.bytes = 0;
        let next: Vec<Event> = Vec::with_capacity(BATCH_EVENTS);
        let events = std::mem::replace(&mut self.events, next);
        self.events.extend(held);
        if events.is_empty() {
            return None;
        }
        let batch = Batch { side: Side::Postgres, events };
        Some(Outgoing { batch, outcomes: std::mem::take(&mut self.outcomes) })
    }

    /// A batch that says only how far the stream has come.
    pub(super) fn progress(&mut self, upto: Lsn, at: Micros) -> Outgoing {
        self.last = Some((upto, 0));
        let event = Event {
            position: Position::Postgres { stream: self.stream, commit_lsn: upto, index: 0 },
            transaction: Transaction { id: Str::default(), index: u32::MAX, last: true },
            committed_at: at,
            who: Who::default(),
            item: Item::Progress,
        };
        Outgoing { batch: Batch { side: Side::Postgres, events: vec![event] }, outcomes: Vec::new() }
    }

    /// Takes in the next row of the batch.
    pub(super) fn push(&mut self, row: &Logged<'_>) -> Result<()> {
        self.bytes += row.old.map_or(0, str::len) + row.values.map_or(0, str::len);
        if self.open.as_ref().is_none_or(|open| open.txid != row.txid) {
            self.commit();
            self.open = Some(Open {
                txid: row.txid,
                id: smol_str::format_smolstr!("{}", row.txid),
                committed_at: row.committed_at,
                index: 0,
                ours: Ours::default(),
                has_events: false,
            });
        }
        let index = self.next_index()?;
        match row.action {
            "MESSAGE" => self.message(index, row),
            "TRUNCATE" => self.truncate(row)?,
            _ => self.change(index, row)?,
        }
        Ok(())
    }

    /// All rows of the batch have come: what is left of it may leave, and with it the chunks whose windows end here.
    pub(super) fn end_batch(&mut self) -> Result<()> {
        self.commit();
        for (id, open) in std::mem::take(&mut self.highs) {
            let Some(closed) = self.windows.high(&id) else { continue };
            self.open = Some(Open { has_events: false, ..open });
            let (items, outcome) = closed.into_items();
            for item in items {
                let index = self.next_index()?;
                self.event(index, Who::default(), item);
            }
            self.outcomes.push(outcome);
            self.commit();
        }
        Ok(())
    }

    fn commit(&mut self) {
        let Some(open) = self.open.take() else { return };
        if open.has_events {
            if let Some(last) = self.events.last_mut() {
                last.transaction.last = true;
            }
            // The lower half, as the server's own stream tells it.
            self.windows.committed(open.txid as u32);
        }
        self.transactions += 1;
        self.last_commit_time = self.last_commit_time.max(open.committed_at);
    }

    /// The next row's place in its transaction; counts it in the batch too.
    fn next_index(&mut self) -> Result<u32> {
        let (Some(open), Some(place)) = (&mut self.open, self.place.checked_add(1)) else {
            return Err(Error::new(Kind::Internal, "a logged row without a transaction or a place"));
        };
        self.place = place;
        let index = open.index;
        open.index += 1;
        Ok(index)
    }

    fn event(&mut self, index: u32, who: Who, item: Item) {
        let Some(open) = &mut self.open else { return };
        open.has_events = true;
        self.last = Some((self.base, self.place));
        self.events.push(Event {
            position: Position::Postgres { stream: self.stream, commit_lsn: self.base, index: self.place },
            transaction: Transaction { id: open.id.clone(), index, last: false },
            committed_at: open.committed_at,
            who,
            item,
        });
    }

    fn message(&mut self, index: u32, row: &Logged<'_>) {
        let content = row.values.unwrap_or_default();
        match row.table {
            MARKER_PREFIX => self.marker(index, content),
            BACKFILL_PREFIX => self.watermark(content),
            _ => {}
        }
    }

    fn marker(&mut self, index: u32, content: &str) {
        let Some(open) = &mut self.open else { return };
        if let Some(item) = open.ours.take(&self.link, content.as_bytes()) {
            self.event(index, Who::default(), item);
        }
    }

    fn watermark(&mut self, content: &str) {
        match serde_json::from_str(content) {
            Ok(Watermark::Low(id)) => self.windows.low(&id),
            Ok(Watermark::High(id)) => self.highs.extend(self.open.clone().map(|open| (id, open))),
            Err(_) => tracing::warn!("a logged message with the backfill's prefix is not ours; passed over"),
        }
    }

    /// What it comes to is the mapping's policy. The log knows which rows went.
    fn truncate(&mut self, row: &Logged<'_>) -> Result<()> {
        // The rows' ends are told at the first of two places, and the second says that all are.
        let index = self.next_index()?;
        let Some(table) = self.tables.get(row.table) else { return Ok(()) };
        if table.truncate == TruncatePolicy::Stop {
            return Err(truncates::refused(table.label()));
        }
        let mapping = table.mapping;
        self.windows.spoil(mapping);
        self.event(index, Who::default(), Item::Truncate { mapping });
        Ok(())
    }

    fn change(&mut self, index: u32, row: &Logged<'_>) -> Result<()> {
        let Some(table) = self.tables.get(row.table) else { return Ok(()) };
        let actor: Actor = row.actor.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let Some(change) = Change::read(table, row, actor.captured, &self.windows)? else { return Ok(()) };
        let Change { operation, key, old_key, salesforce_id, fields } = change;
        let mapping = table.mapping;
        if !self.windows.is_idle() {
            self.windows.touch(mapping, &key);
            if let Some(old_key) = &old_key {
                self.windows.touch(mapping, old_key);
            }
        }
        let aside = |open: &Open| operation == RowOperation::Update && open.ours.is_aside(mapping, &key);
        if self.open.as_ref().is_some_and(aside) {
            return Ok(());
        }
        let own = self.open.as_ref().map(|open| open.ours.own()).unwrap_or_default();
        let item = Row { mapping, operation, key: Some(key), old_key, salesforce_id, fields, own };
        self.event(index, actor.who(), Item::Row(item));
        Ok(())
    }
}

impl Actor {
    fn who(self) -> Who {
        let name = |name: Option<String>| Str::new(shortened(name.as_deref().unwrap_or_default()));
        Who { user: name(self.user), role: name(self.role), application: name(self.application) }
    }
}

/// What a logged row says of a table's row.
struct Change {
    operation: RowOperation,
    key: Key,
    old_key: Option<Key>,
    salesforce_id: Option<Str>,
    fields: Vec<(FieldId, Value)>,
}

impl Change {
    /// Reads it; none for a row that an application had logged without a key that names it.
    fn read(table: &LoggedTable, row: &Logged<'_>, captured: bool, windows: &Windows) -> Result<Option<Self>> {
        let wrong = |what: &str| {
            let message =
                format!("the trigger log holds a row of {} with action {} that {what}", table.label(), row.action);
            Error::new(Kind::Protocol, message)
        };
        let read = |text: Option<&str>| match text {
            Some(text) => hstore::parse(text).map(Some).ok_or_else(|| wrong("is not an hstore")),
            None => Ok(None),
        };
        let (old, values) = (read(row.old)?, read(row.values)?);
        let keyless = || wrong("does not tell its whole key; did the key's columns change?");
        if let (Some(values), None, true) = (&values, &old, captured) {
            let Some(key) = table.key(values).or_else(|| table.key_of_id(row.record_id)) else {
                tracing::warn!(
                    table = table.label(),
                    "a row that an application had logged does not tell its key; passed over"
                );
                return Ok(None);
            };
            let (fields, salesforce_id) = table.told(values, Wanted::Some)?;
            return Ok(Some(Self { operation: RowOperation::Update, key, old_key: None, salesforce_id, fields }));
        }
        let whole = Wanted::Whole(windows.unread(table.mapping));
        let change = match (row.action, old, values) {
            ("INSERT", _, Some(new)) => {
                let (fields, salesforce_id) = table.told(&new, whole)?;
                let key = table.key(&new).ok_or_else(keyless)?;
                Self { operation: RowOperation::Insert, key, old_key: None, salesforce_id, fields }
            }
            ("UPDATE", Some(old), Some(changed)) => {
                let old_key = table.key(&old);
                let new = merged(old, changed);
                let (fields, salesforce_id) = table.told(&new, whole)?;
                let key = table.key(&new).ok_or_else(keyless)?;
                let old_key = old_key.filter(|old| *old != key);
                Self { operation: RowOperation::Update, key, old_key, salesforce_id, fields }
            }
            ("DELETE", Some(old), _) => {
                let key = table.key(&old).ok_or_else(keyless)?;
                let salesforce_id = table.salesforce_id(&old);
                Self { operation: RowOperation::Delete, key, old_key: None, salesforce_id, fields: Vec::new() }
            }
            _ => return Err(wrong("lacks its values")),
        };
        Ok(Some(change))
    }
}

fn merged(mut old: Columns, changed: Columns) -> Columns {
    old.extend(changed);
    old
}
