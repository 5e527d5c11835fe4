//! The synchronous heart of capture: messages of the stream in, events for the change log out. No input or output here.
//!
//! Invariants:
//! * A change's index counts every change and transactional message of its transaction, mapped or not, so that the same
//!   change has the same position whenever it is sent again, whatever is mapped by then.
//! * A transaction's last event leaves only with its commit, marked as the last.
//! * A chunk of a backfill leaves in one batch with its notice.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::ours::Ours;
use super::plan::{Columns, Plan};
use super::truncates;
use super::watermark::{BACKFILL_PREFIX, ChunkOutcome, Closed, Windows};
use crate::change::{
    Catalog, Key, Lsn, MappingDef, MappingId, Position, Side, Str, StreamId, Transaction, TruncatePolicy, Who,
};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Item, Own, Row, RowOperation};
use crate::postgres::pgoutput::{
    DecodeError, Decoder, Message, OldKind, OldTuple, Relation, RelationMessage, Tuple, builtin_type_oid,
};
use crate::postgres::slot::position_before;

/// Prefix of the messages that open and close our own transactions.
pub const MARKER_PREFIX: &str = "tidelock";
/// Prefix of the messages by which an application names who acts.
pub const ACTOR_PREFIX: &str = "tidelock.actor";

/// A batch is full at so many events, or so many bytes of messages.
const BATCH_EVENTS: usize = 500;
const BATCH_BYTES: usize = 128 * 1024;
/// The longest name of a user, role or application that is kept, in bytes.
const NAME_MAX: usize = 255;

/// A batch and what follows when it is durable.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) batch: Batch,
    /// How far the stream is durable then, if the batch completes a transaction.
    pub(super) durable: Option<Lsn>,
    /// Backfills that wait for it.
    pub(super) outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
}

/// What an application or the server's trigger says about who acts.
#[derive(serde::Deserialize)]
struct Actor {
    user: Option<String>,
    role: Option<String>,
    application: Option<String>,
}

/// The messages around a backfill's chunk.
#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Watermark {
    Low(String),
    High(String),
}

/// The transaction that is being received.
#[derive(Debug)]
struct Open {
    commit_lsn: Lsn,
    committed_at: Micros,
    xid: u32,
    id: Str,
    /// The next change's place.
    index: u32,
    who: Who,
    ours: Ours,
    /// Whether it has events among those not yet taken.
    has_events: bool,
    /// Whether it must stay in one batch.
    whole: bool,
}

/// Relations by oid: none for those that are not mapped; of those that do not fit, what is wrong. That matters only when a row of
/// theirs comes: a table that was changed in a subtransaction which was rolled back is told as well.
type Relations = HashMap<u32, Result<Option<Plan>, String>>;

/// Turns messages into events.
#[derive(Debug)]
pub(super) struct Assembler {
    stream: StreamId,
    link: String,
    catalog: Arc<Catalog>,
    decoder: Decoder,
    relations: Relations,
    /// Domains and what they are made of.
    base_types: HashMap<u32, u32>,
    open: Option<Open>,
    events: Vec<Event>,
    bytes: usize,
    /// The last transaction whose events are all among `events` or gone before.
    completed: Option<Lsn>,
    outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
    windows: Windows,
    /// How far the stream has been taken in, exclusive, at a place between transactions.
    passed: Lsn,
    last_commit_time: Micros,
    transactions: u64,
}

impl Assembler {
    pub(super) fn new(stream: StreamId, link: &str, catalog: Arc<Catalog>, windows: Windows) -> Result<Self> {
        for (n, mapping) in catalog.mappings.iter().enumerate() {
            let same = |m: &&crate::change::MappingDef| m.schema == mapping.schema && m.table == mapping.table;
            if let Some(other) = catalog.mappings.iter().skip(n + 1).find(same) {
                let message = format!(
                    "the mappings `{}` and `{}` both use the table {}.{}; a table can have one mapping",
                    mapping.name, other.name, mapping.schema, mapping.table
                );
                return Err(Error::new(Kind::Configuration, message));
            }
        }
        Ok(Self {
            stream,
            link: link.to_owned(),
            catalog,
            decoder: Decoder::new(),
            relations: HashMap::new(),
            base_types: HashMap::new(),
            open: None,
            events: Vec::with_capacity(BATCH_EVENTS),
            bytes: 0,
            completed: None,
            outcomes: Vec::new(),
            windows,
            passed: Lsn(0),
            last_commit_time: 0,
            transactions: 0,
        })
    }

    /// Whether nothing is held here: no open transaction, no event.
    pub(super) fn is_idle(&self) -> bool {
        self.open.is_none() && self.events.is_empty()
    }

    /// Whether a batch should leave now.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        (self.events.len() >= BATCH_EVENTS || self.bytes >= BATCH_BYTES) && !self.open.as_ref().is_some_and(|o| o.whole)
    }

    /// Whether a batch may leave early, because only whole transactions wait.
    pub(super) fn is_ready(&self) -> bool {
        self.open.is_none() && !self.events.is_empty()
    }

    /// How far the stream has been taken in, at a place between transactions.
    pub(super) fn passed(&self) -> Lsn {
        self.passed
    }

    pub(super) fn last_commit_time(&self) -> Micros {
        self.last_commit_time
    }

    pub(super) fn transactions(&self) -> u64 {
        self.transactions
    }

    /// The server has nothing for us before `lsn`, as a keepalive says. Within a transaction that is not known.
    pub(super) fn pass(&mut self, lsn: Lsn) {
        if self.open.is_none() {
            self.passed = self.passed.max(lsn);
        }
    }

    /// Takes the events out as a batch. The open transaction's last event so far stays behind, since it may turn out to be
    /// the last of all.
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
        let (durable, outcomes) = (self.completed.take(), std::mem::take(&mut self.outcomes));
        Some(Outgoing { batch: Batch { side: Side::Postgres, events }, durable, outcomes })
    }

    /// A batch that says only how far the stream has come.
    pub(super) fn progress(&self, upto: Lsn, at: Micros) -> Outgoing {
        let event = Event {
            position: position_before(self.stream, upto),
            transaction: Transaction { id: Str::default(), index: u32::MAX, last: true },
            committed_at: at,
            who: Who::default(),
            item: Item::Progress,
        };
        let batch = Batch { side: Side::Postgres, events: vec![event] };
        Outgoing { batch, durable: Some(upto), outcomes: Vec::new() }
    }

    /// Takes in one message of the plugin.
    pub(super) fn apply(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len();
        let message = self.decoder.decode(bytes).map_err(malformed)?;
        self.take_in(&message)
    }

    /// Takes in one message of a transaction that was streamed while it was in progress, after [`Assembler::begin`]; `aborted` are
    /// its subtransactions that were rolled back.
    pub(super) fn apply_streamed(&mut self, bytes: &[u8], aborted: &HashSet<u32>) -> Result<()> {
        self.bytes += bytes.len();
        let message = Decoder::within_segment().decode(bytes).map_err(malformed)?;
        match message {
            Message::Insert { xid: Some(xid), .. }
            | Message::Update { xid: Some(xid), .. }
            | Message::Delete { xid: Some(xid), .. }
            | Message::Truncate { xid: Some(xid), .. }
            | Message::Logical { xid: Some(xid), .. }
                if aborted.contains(&xid) =>
            {
                Ok(())
            }
            // What a relation looks like is told once, and holds for the rest of the transaction.
            message => self.take_in(&message),
        }
    }

    fn take_in(&mut self, message: &Message<'_>) -> Result<()> {
        match *message {
            Message::Insert { relation, new, .. } => self.insert(relation, &new),
            Message::Update { relation, old, new, .. } => self.update(relation, old.as_ref(), &new),
            Message::Delete { relation, old, .. } => self.delete(relation, &old),
            Message::Begin { final_lsn, committed_at, xid } => self.begin(final_lsn, committed_at, xid),
            Message::Commit { commit_lsn, end_lsn, .. } => self.commit(commit_lsn, end_lsn),
            Message::Relation { relation, .. } => {
                self.relation(&relation);
                Ok(())
            }
            Message::Type { oid, schema, name, .. } => {
                if schema == "pg_catalog"
                    && let Some(base) = builtin_type_oid(name)
                {
                    self.base_types.insert(oid, base);
                }
                Ok(())
            }
            Message::Logical { transactional: true, prefix, content, .. } => self.logical(prefix, content),
            // Not of any transaction: heartbeats. An origin says nothing that matters here: our own writes carry messages.
            Message::Logical { .. } | Message::Origin { .. } => Ok(()),
            Message::Truncate { relations, .. } => self.truncate(relations),
            Message::StreamStart { .. }
            | Message::StreamStop
            | Message::StreamCommit { .. }
            | Message::StreamAbort { .. }
            | Message::BeginPrepare { .. }
            | Message::Prepare { .. }
            | Message::CommitPrepared { .. }
            | Message::RollbackPrepared { .. }
            | Message::StreamPrepare { .. } => {
                Err(Error::new(Kind::Protocol, "the server streams transactions in a way that was not asked for"))
            }
        }
    }

    /// Opens a transaction.
    pub(super) fn begin(&mut self, commit_lsn: Lsn, committed_at: Micros, xid: u32) -> Result<()> {
        if self.open.is_some() {
            return Err(Error::new(Kind::Protocol, "a transaction begins within another in the replication stream"));
        }
        self.open = Some(Open {
            commit_lsn,
            committed_at,
            xid,
            id: smol_str::format_smolstr!("{xid}"),
            index: 0,
            who: Who::default(),
            ours: Ours::default(),
            has_events: false,
            whole: false,
        });
        Ok(())
    }

    /// Closes it.
    pub(super) fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> Result<()> {
        let open = self.open.take().filter(|open| open.commit_lsn == commit_lsn && end_lsn > commit_lsn);
        let Some(open) = open else {
            return Err(Error::new(Kind::Protocol, "a commit in the replication stream does not fit its transaction"));
        };
        if open.has_events {
            if let Some(last) = self.events.last_mut() {
                last.transaction.last = true;
            }
            self.completed = Some(commit_lsn);
            self.windows.committed(open.xid);
        }
        self.transactions += 1;
        self.last_commit_time = open.committed_at;
        self.passed = self.passed.max(end_lsn);
        Ok(())
    }

    fn relation(&mut self, message: &RelationMessage<'_>) {
        let mapping = self.catalog.mappings.iter().find(|m| m.schema == message.schema && m.table == message.name);
        let compile = |mapping: &MappingDef| {
            let unread = self.windows.unread(mapping.id);
            Plan::compile(mapping, &Relation::from(message), &self.base_types, unread)
        };
        self.relations.insert(message.oid, mapping.map(compile).transpose());
    }

    fn insert(&mut self, relation: u32, new: &Tuple<'_>) -> Result<()> {
        let index = self.next_index()?;
        let Some(plan) = plan(&self.relations, &self.windows, relation)? else { return Ok(()) };
        let columns = plan.columns(new)?;
        let key = plan.key(&columns, None)?;
        let (fields, salesforce_id) = plan.told(&columns)?;
        let mapping = plan.mapping;
        self.touch(mapping, &key);
        let row = Row {
            mapping,
            operation: RowOperation::Insert,
            key: Some(key),
            old_key: None,
            salesforce_id,
            fields,
            own: Own::No,
        };
        self.push_row(index, row)
    }

    fn update(&mut self, relation: u32, old: Option<&OldTuple<'_>>, new: &Tuple<'_>) -> Result<()> {
        let index = self.next_index()?;
        let Some(plan) = plan(&self.relations, &self.windows, relation)? else { return Ok(()) };
        let columns = plan.columns(new)?;
        let old: Option<Columns<'_>> = old.map(|old| plan.columns(&old.tuple)).transpose()?;
        let key = plan.key(&columns, old.as_ref())?;
        let old_key = old.as_ref().map(|old| plan.key(old, None)).transpose()?.filter(|old| *old != key);
        let (fields, salesforce_id) = plan.told(&columns)?;
        let mapping = plan.mapping;
        self.touch(mapping, &key);
        if let Some(old_key) = &old_key {
            self.touch(mapping, old_key);
        }
        if self.open.as_ref().is_some_and(|open| open.ours.is_aside(mapping, &key)) {
            return Ok(());
        }
        let row = Row {
            mapping,
            operation: RowOperation::Update,
            key: Some(key),
            old_key,
            salesforce_id,
            fields,
            own: Own::No,
        };
        self.push_row(index, row)
    }

    fn delete(&mut self, relation: u32, old: &OldTuple<'_>) -> Result<()> {
        let index = self.next_index()?;
        let Some(plan) = plan(&self.relations, &self.windows, relation)? else { return Ok(()) };
        let columns = plan.columns(&old.tuple)?;
        let key = plan.key(&columns, None)?;
        let salesforce_id = if old.kind == OldKind::Row { plan.salesforce_id(&columns)? } else { None };
        let mapping = plan.mapping;
        self.touch(mapping, &key);
        let row = Row {
            mapping,
            operation: RowOperation::Delete,
            key: Some(key),
            old_key: None,
            salesforce_id,
            fields: Vec::new(),
            own: Own::No,
        };
        self.push_row(index, row)
    }

    /// What it comes to is the mapping's policy. The log knows which rows went.
    fn truncate(&mut self, relations: &[[u8; 4]]) -> Result<()> {
        for oid in relations {
            // The rows' ends are told at the first of two places, and the second says that all are.
            self.next_index()?;
            let index = self.next_index()?;
            let Some(plan) = plan(&self.relations, &self.windows, u32::from_be_bytes(*oid))? else { continue };
            let mapping = plan.mapping;
            let policy = self.catalog.mapping(mapping).map(|m| m.truncate).unwrap_or_default();
            if policy == TruncatePolicy::Stop {
                return Err(truncates::refused(plan.table()));
            }
            self.windows.spoil(mapping);
            self.push(index, Item::Truncate { mapping })?;
        }
        Ok(())
    }

    fn logical(&mut self, prefix: &str, content: &[u8]) -> Result<()> {
        let index = self.next_index()?;
        match prefix {
            ACTOR_PREFIX => {
                if let Some(open) = &mut self.open {
                    name_actor(&mut open.who, content);
                }
                Ok(())
            }
            MARKER_PREFIX => self.marker(index, content),
            BACKFILL_PREFIX => self.watermark(content),
            _ => Ok(()),
        }
    }

    fn marker(&mut self, index: u32, content: &[u8]) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.ours.take(&self.link, content).map_or(Ok(()), |item| self.push(index, item))
    }

    fn watermark(&mut self, content: &[u8]) -> Result<()> {
        match serde_json::from_slice(content) {
            Ok(Watermark::Low(id)) => self.windows.low(&id),
            Ok(Watermark::High(id)) => {
                if let Some(closed) = self.windows.high(&id) {
                    return self.offer_chunk(closed);
                }
            }
            Err(_) => tracing::warn!("a logical message with the backfill's prefix is not ours; passed over"),
        }
        Ok(())
    }

    fn offer_chunk(&mut self, closed: Closed) -> Result<()> {
        if let Some(open) = &mut self.open {
            open.whole = true;
        }
        let (items, outcome) = closed.into_items();
        for item in items {
            let index = self.next_index()?;
            self.push(index, item)?;
        }
        self.outcomes.push(outcome);
        Ok(())
    }

    /// The place of the next change in its transaction.
    #[inline]
    fn next_index(&mut self) -> Result<u32> {
        let Some(open) = &mut self.open else {
            return Err(Error::new(
                Kind::Protocol,
                "a change stands outside any transaction in the replication stream",
            ));
        };
        let index = open.index;
        open.index += 1;
        Ok(index)
    }

    #[inline]
    fn touch(&mut self, mapping: MappingId, key: &Key) {
        if !self.windows.is_idle() {
            self.windows.touch(mapping, key);
        }
    }

    fn push_row(&mut self, index: u32, mut row: Row) -> Result<()> {
        row.own = self.open.as_ref().map(|open| open.ours.own()).unwrap_or_default();
        self.push(index, Item::Row(row))
    }

    fn push(&mut self, index: u32, item: Item) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Err(Error::new(Kind::Internal, "an event without its transaction"));
        };
        open.has_events = true;
        self.events.push(Event {
            position: Position::Postgres { stream: self.stream, commit_lsn: open.commit_lsn, index },
            transaction: Transaction { id: open.id.clone(), index, last: false },
            committed_at: open.committed_at,
            who: open.who.clone(),
            item,
        });
        Ok(())
    }
}

fn malformed(error: DecodeError) -> Error {
    Error::new(Kind::Protocol, format!("the replication stream holds what pgoutput does not allow: {error}"))
        .caused_by(error)
}

/// The plan of a relation; none if it is not mapped. One that lacks a column serves until a backfill has begun to read that:
/// every change after it has the column.
fn plan<'a>(relations: &'a Relations, windows: &Windows, oid: u32) -> Result<Option<&'a Plan>> {
    match relations.get(&oid) {
        Some(Ok(Some(plan))) => match plan.lacks() {
            Some(missing) if windows.unread(plan.mapping).is_none() => Err(Error::new(Kind::Configuration, missing)),
            _ => Ok(Some(plan)),
        },
        Some(Ok(None)) => Ok(None),
        Some(Err(message)) => Err(Error::new(Kind::Configuration, message.clone())),
        None => {
            Err(Error::new(Kind::Protocol, "a change of a relation that was not announced in the replication stream"))
        }
    }
}

/// Takes over what a message says about who acts; what it leaves out stays as it was.
fn name_actor(who: &mut Who, content: &[u8]) {
    let set = |place: &mut Str, name: Option<&str>| {
        if let Some(name) = name {
            *place = Str::new(shortened(name));
        }
    };
    match serde_json::from_slice::<Actor>(content) {
        Ok(actor) => {
            set(&mut who.user, actor.user.as_deref());
            set(&mut who.role, actor.role.as_deref());
            set(&mut who.application, actor.application.as_deref());
        }
        Err(_) => set(&mut who.user, std::str::from_utf8(content).ok()),
    }
}

/// The longest start of the name within the limit.
pub(super) fn shortened(name: &str) -> &str {
    name.get(..name.floor_char_boundary(NAME_MAX)).unwrap_or(name)
}
