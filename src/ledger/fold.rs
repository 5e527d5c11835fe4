//! State as a fold over the log.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use smallvec::SmallVec;

use crate::causality::{self, Context, RecordState};
use crate::change::codec::Writer;
use crate::change::{
    Body, Change, ChangeOrigin, Decision, Entry, FieldId, Lsn, MappingDef, Notice, Offset, Operation, Position,
    RecordId, Ruling, Side, Str, Subject, Value, WriteResult,
};
use crate::error::{Error, Kind, Result};
use crate::log::{Append, StateRead};

use super::keys::{self, StateKey};
use super::meta::{KEYS, Meta, Reconcile};

/// Record states kept in memory between appends, per generation; two generations are kept.
const CACHED_RECORDS: usize = 256;

/// A value of the indexes: a record's number, most often.
type Indexed = SmallVec<[u8; 16]>;
type Map<K, V> = HashMap<K, V, RandomState>;

/// The state, folded so far. It reads what it needs from the store that each call names, always the same one, and collects
/// what it changes.
pub struct Fold {
    /// Everything about the link.
    pub meta: Meta,
    meta_changed: [bool; KEYS.len()],
    records: Map<RecordId, Box<RecordState>>,
    older: Map<RecordId, Box<RecordState>>,
    changed: Vec<RecordId>,
    pending: Map<StateKey, Option<Indexed>>,
    /// What the last [`Fold::write_to`] added, which may be on its way to the store still.
    handed_over: Map<StateKey, Option<Indexed>>,
    known: Map<StateKey, Option<RecordId>>,
    /// Whether the last entry folded is the first of its transaction in the log.
    begins_transaction: bool,
}

/// What of a record state is indexed.
struct Names {
    key: Option<crate::change::Key>,
    salesforce_id: Option<Str>,
    external_id: Option<Value>,
    tickets: [Option<Offset>; 2],
    dead: [Option<Offset>; 2],
    partial: bool,
}

impl Fold {
    /// The fold as it stands in a store.
    pub fn open(store: &dyn StateRead) -> Result<Self> {
        let parts = store.states(&KEYS.each_ref().map(|k| &k[..]))?;
        let meta = Meta::decode(&parts).map_err(|e| corrupt("the link's state", e))?;
        Ok(Self {
            meta,
            meta_changed: [false; KEYS.len()],
            records: Map::default(),
            older: Map::default(),
            changed: Vec::new(),
            pending: Map::default(),
            handed_over: Map::default(),
            known: Map::default(),
            begins_transaction: false,
        })
    }

    /// What is not, or may not be, in the store yet.
    fn unstored(&self, key: &[u8]) -> Option<&Option<Indexed>> {
        self.pending.get(key).or_else(|| self.handed_over.get(key))
    }

    /// A value of the state other than a record's: as this append leaves it so far, else as stored.
    pub fn get(&self, store: &dyn StateRead, key: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.unstored(key) {
            Some(value) => Ok(value.as_deref().map(<[u8]>::to_vec)),
            None => store.state(key),
        }
    }

    /// The record that an identity key leads to.
    pub fn lookup(&self, store: &dyn StateRead, key: &[u8]) -> Result<Option<RecordId>> {
        if let Some(value) = self.unstored(key) {
            return Ok(value.as_deref().map(|value| RecordId(keys::number(value))));
        }
        match self.known.get(key) {
            Some(record) => Ok(*record),
            None => Ok(store.state(key)?.map(|value| RecordId(keys::number(&value)))),
        }
    }

    /// The state of a record, loaded when needed.
    pub fn record(&mut self, store: &dyn StateRead, record: RecordId) -> Result<Option<&RecordState>> {
        self.load(store, record)?;
        Ok(self.loaded(record))
    }

    /// The state of a record that was loaded in this append.
    pub fn loaded(&self, record: RecordId) -> Option<&RecordState> {
        self.records.get(&record).map(|state| &**state)
    }

    /// Loads the state of a record, if there is one.
    pub fn load(&mut self, store: &dyn StateRead, record: RecordId) -> Result<()> {
        // A number that was never given needs no look at the store.
        if record >= self.meta.next_record || self.records.contains_key(&record) {
            return Ok(());
        }
        if let Some(state) = self.older.remove(&record) {
            self.records.insert(record, state);
        } else if let Some(bytes) = store.state(&keys::record(record))? {
            self.records.insert(record, decode(record, &bytes)?);
        }
        Ok(())
    }

    /// Loads many records with one batched read.
    pub fn preload(&mut self, store: &dyn StateRead, records: &[RecordId]) -> Result<()> {
        let missing: Vec<RecordId> =
            records.iter().copied().filter(|r| !self.records.contains_key(r) && !self.older.contains_key(r)).collect();
        if missing.len() < 2 {
            return Ok(());
        }
        let wanted: Vec<StateKey> = missing.iter().map(|r| keys::record(*r)).collect();
        let stored = store.states(&wanted.iter().map(|key| &key[..]).collect::<Vec<_>>())?;
        for (record, bytes) in missing.into_iter().zip(stored) {
            if let Some(bytes) = bytes {
                self.records.insert(record, decode(record, &bytes)?);
            }
        }
        Ok(())
    }

    /// Looks many identities up with one batched read, and keeps what the store says until the end of the append.
    pub fn preload_keys(&mut self, store: &dyn StateRead, wanted: Vec<StateKey>) -> Result<Vec<RecordId>> {
        let stored = store.states(&wanted.iter().map(|key| &key[..]).collect::<Vec<_>>())?;
        let mut found = Vec::with_capacity(wanted.len());
        for (key, value) in wanted.into_iter().zip(stored) {
            if let Some(value) = self.unstored(&key) {
                found.extend(value.as_deref().map(|value| RecordId(keys::number(value))));
            } else {
                let record = value.map(|value| RecordId(keys::number(&value)));
                self.known.insert(key, record);
                found.extend(record);
            }
        }
        Ok(found)
    }

    /// Folds one entry. The decisions returned belong in the log right behind it.
    pub fn fold(&mut self, store: &dyn StateRead, offset: Offset, entry: &Entry) -> Result<Vec<Decision>> {
        self.meta.recorded_at = entry.recorded_at;
        self.meta_changed[3] = true;
        let (mapping, record) = match &entry.body {
            Body::Change(c) => (c.mapping, c.record),
            Body::Echo(e) => (e.mapping, e.record),
            Body::Ticket(t) => (t.mapping, t.record),
            Body::Outcome(o) => (o.mapping, o.record),
            Body::Decision(d) => (d.mapping, d.record),
            Body::Bind(b) => (b.mapping, b.record),
            Body::Notice(notice) => {
                self.fold_notice(notice);
                return Ok(Vec::new());
            }
        };
        self.load(store, record)?;
        self.fold_link(&entry.body);
        let mut state = self.records.remove(&record).unwrap_or_else(|| Box::new(RecordState::new(mapping)));
        let catalog = Arc::clone(&self.meta.catalog);
        let def = catalog.mapping(mapping).ok_or_else(|| {
            Error::new(Kind::Corrupt, format!("entry {offset}: mapping {} is not in the log's catalog", mapping.0))
        })?;
        let before = Names::of(&state, def);
        let cx = Context {
            mapping: def,
            record,
            offset,
            recorded_at: entry.recorded_at,
            system_of_record: catalog.system_of_record,
            tolerance: i64::from(catalog.tolerance_ms) * 1_000,
            salesforce_ahead: self.meta.salesforce_ahead,
        };
        let decisions = causality::apply(&mut state, &entry.body, &cx);
        self.index(store, record, def, &before, &state, &entry.body, offset)?;
        self.records.insert(record, state);
        self.changed.push(record);
        Ok(decisions)
    }

    /// The key by which the transaction index finds an entry that was just folded: it follows from the entry and the state.
    ///
    /// What Salesforce tells is looked up one by one, so each has a key. PostgreSQL's transactions follow one another, so the
    /// first entry of each leads to the rest.
    pub fn transaction_key(&self, body: &Body) -> Option<StateKey> {
        let (source, record) = match body {
            Body::Change(change) if matches!(change.origin, ChangeOrigin::Captured | ChangeOrigin::Automation) => {
                (&change.source, change.record)
            }
            Body::Echo(echo) => (&echo.source, echo.record),
            _ => return None,
        };
        let transaction = &source.transaction;
        if transaction.id.is_empty() || (source.side == Side::Postgres && !self.begins_transaction) {
            return None;
        }
        let id = self.loaded(record).and_then(|state| state.salesforce_id.as_ref());
        let number = record.0.to_be_bytes();
        let row = match (source.side, id) {
            (Side::Salesforce, Some(id)) => id.as_bytes(),
            _ => &number[..],
        };
        Some(keys::transaction_item(source.side, &transaction.id, transaction.index, row))
    }

    /// Positions, cursors and record numbers.
    fn fold_link(&mut self, body: &Body) {
        let source = match body {
            Body::Change(change) => {
                self.meta.next_record = RecordId(self.meta.next_record.0.max(change.record.0 + 1));
                self.count_difference(change);
                matches!(change.origin, ChangeOrigin::Captured | ChangeOrigin::Automation).then_some(&change.source)
            }
            Body::Echo(echo) => {
                if echo.source.side == Side::Postgres {
                    self.meta.applied = self.meta.applied.max(echo.ticket);
                }
                Some(&echo.source)
            }
            Body::Ticket(ticket) => {
                let cursor = &mut self.meta.cursors[ticket.side.index()];
                *cursor = (*cursor).max(ticket.cursor);
                None
            }
            _ => None,
        };
        if let Some(source) = source {
            if let Position::Postgres { commit_lsn, .. } = source.position {
                self.begins_transaction = self.meta.indexed != commit_lsn;
                self.meta.indexed = commit_lsn;
            }
            self.meta.positions[source.side.index()] = Some(source.position.clone());
            let committed_at = &mut self.meta.committed_at[source.side.index()];
            *committed_at = (*committed_at).max(source.committed_at);
        }
    }

    /// Counts a record whose row turned out to differ while its mapping is compared.
    fn count_difference(&mut self, change: &Change) {
        let read = matches!(change.origin, ChangeOrigin::Backfill | ChangeOrigin::Repair | ChangeOrigin::Rewound);
        let known = self.meta.backfills.iter_mut().filter(|_| read);
        let mut known = known.filter(|b| b.side == change.source.side && b.mapping == change.mapping);
        let reconcile = known.find_map(|b| b.reconcile.as_mut()).filter(|r| !r.finished);
        let Some(reconcile) = reconcile.filter(|r| r.last != Some(change.record)) else { return };
        reconcile.last = Some(change.record);
        let count =
            if change.operation == Operation::Delete { &mut reconcile.missing } else { &mut reconcile.differing };
        *count += 1;
        self.meta_changed[2] = true;
    }

    fn fold_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Configured { catalog } => {
                let previous = std::mem::replace(&mut self.meta.catalog, Arc::new((**catalog).clone()));
                self.meta_changed[0] = true;
                for (mapping, first) in catalog.grown_since(&previous) {
                    for side in Side::BOTH {
                        let unread = &mut self.meta.backfill_mut(side, mapping).unread;
                        *unread = Some(unread.map_or(first, |earlier| earlier.min(first)));
                    }
                    self.meta_changed[2] = true;
                }
            }
            Notice::StreamOpened { stream, side, identity } => {
                self.meta.streams.push(super::meta::Stream { id: *stream, side: *side, identity: identity.clone() });
                self.meta.positions[side.index()] = None;
                if *side == Side::Postgres {
                    self.meta.indexed = Lsn::default();
                    self.meta.applied = Offset::default();
                }
                self.meta_changed[1] = true;
            }
            Notice::StreamAt { side, position } => self.meta.positions[side.index()] = Some(position.clone()),
            Notice::ReplayAt { side, cursor } => {
                let at = &mut self.meta.cursors[side.index()];
                *at = (*at).max(*cursor);
            }
            Notice::Backfill { side, mapping, rows, after, finished } => {
                // What is begun, and never was before, has read nothing yet.
                let first = self.meta.backfill(*side, *mapping).is_none() && *rows == 0 && after.is_empty();
                let known = self.meta.backfill_mut(*side, *mapping);
                if first {
                    known.unread = Some(FieldId(0));
                }
                (known.rows, known.after, known.finished) = (*rows, after.clone(), *finished);
                known.unread = known.unread.filter(|_| !finished);
                if let Some(reconcile) = known.reconcile.as_mut().filter(|_| *finished) {
                    reconcile.finished = true;
                }
                self.meta_changed[2] = true;
            }
            Notice::Reconcile { side, mapping, cause, lost, rewound_to } => {
                self.meta.backfill_mut(*side, *mapping).reconcile = Some(Reconcile {
                    cause: cause.clone(),
                    lost: *lost,
                    rewound_to: *rewound_to,
                    differing: 0,
                    missing: 0,
                    last: None,
                    finished: false,
                });
                self.meta_changed[2] = true;
            }
            Notice::ClockOffset { salesforce_ahead_us } => self.meta.salesforce_ahead = *salesforce_ahead_us,
            Notice::Gap { .. } => {}
        }
    }

    fn put(&mut self, key: StateKey, value: impl AsRef<[u8]>) {
        self.pending.insert(key, Some(Indexed::from_slice(value.as_ref())));
    }

    fn delete(&mut self, key: StateKey) {
        self.pending.insert(key, None);
    }

    /// Brings the indexes from `before` to the state after.
    #[allow(clippy::too_many_arguments)]
    fn index(
        &mut self,
        store: &dyn StateRead,
        record: RecordId,
        def: &MappingDef,
        before: &Names,
        state: &RecordState,
        body: &Body,
        offset: Offset,
    ) -> Result<()> {
        let (mapping, after, id) = (def.id, Names::of(state, def), record.0.to_be_bytes());
        if before.key != after.key {
            // The old key is forgotten only while it still leads here: another record may have taken it since.
            if let Some(key) = &before.key {
                let key = keys::by_key(mapping, key);
                if self.lookup(store, &key)? == Some(record) {
                    self.delete(key);
                }
            }
            if let Some(key) = &after.key {
                self.put(keys::by_key(mapping, key), id);
            }
        }
        if before.salesforce_id != after.salesforce_id
            && let Some(sfid) = &after.salesforce_id
        {
            self.put(keys::by_salesforce_id(mapping, sfid), id);
        }
        if before.external_id != after.external_id
            && let Some(external_id) = &after.external_id
        {
            self.put(keys::by_external_id(mapping, &external_id.to_string()), id);
        }
        if let Body::Ticket(ticket) = body
            && let Some(external_id) = &ticket.external_id
        {
            self.put(keys::by_external_id(mapping, external_id), id);
        }
        for side in Side::BOTH {
            let (old, new) = (before.tickets[side.index()], after.tickets[side.index()]);
            if old != new {
                if let Some(old) = old {
                    self.delete(keys::ticket(side, old));
                }
                if let Some(new) = new {
                    self.put(keys::ticket(side, new), id);
                }
            }
            let (old, new) = (before.dead[side.index()], after.dead[side.index()]);
            if old != new {
                if let Some(old) = old {
                    self.delete(keys::numbered(keys::DEAD_LETTER, old.0));
                }
                if let Some(new) = new {
                    let mut value = id.to_vec();
                    value.push(side as u8);
                    if let Body::Outcome(outcome) = body
                        && let WriteResult::Refused { code, message } = &outcome.result
                    {
                        let mut w = Writer { buffer: value };
                        w.text(code);
                        w.text(message);
                        value = w.buffer;
                    }
                    self.put(keys::numbered(keys::DEAD_LETTER, new.0), value);
                }
            }
        }
        if before.partial != after.partial {
            let key = keys::numbered(keys::PARTIAL, record.0);
            if after.partial { self.put(key, id) } else { self.delete(key) }
        }
        if let Body::Decision(decision) = body {
            self.index_decision(decision, record, state, offset);
        }
        Ok(())
    }

    /// Conflicts by the offset of their first decision: record, and whether a person must still decide.
    fn index_decision(&mut self, decision: &Decision, record: RecordId, state: &RecordState, offset: Offset) {
        let mut value = record.0.to_be_bytes().to_vec();
        let (about, open) = match &decision.ruling {
            Ruling::Parked => {
                (offset, matches!(decision.subject, Subject::Field(f) if parked_as(state, f) == Some(offset)))
            }
            Ruling::Person { .. } | Ruling::Agreed => (decision.about, false),
            _ => (offset, false),
        };
        value.push(u8::from(open));
        let key = keys::numbered(keys::OPEN_CONFLICT, about.0);
        if open {
            self.put(key, record.0.to_be_bytes());
        } else {
            self.delete(key);
        }
        self.put(keys::numbered(keys::CONFLICT, about.0), value);
    }

    /// Adds everything changed since the last call to the append. The fold goes on as if that were stored already; it must be
    /// before the next call.
    pub fn write_to(&mut self, append: &mut Append) {
        self.known.clear();
        for (key, value) in &self.pending {
            match value {
                Some(value) => append.put(key, value),
                None => append.delete(key),
            }
        }
        std::mem::swap(&mut self.pending, &mut self.handed_over);
        self.pending.clear();
        self.changed.sort_unstable();
        self.changed.dedup();
        for record in self.changed.drain(..) {
            if let Some(state) = self.records.get(&record) {
                append.put_with(&keys::record(record), |w| state.encode(w));
            }
        }
        for (part, changed) in self.meta_changed.iter_mut().enumerate() {
            if std::mem::take(changed) {
                append.put(&KEYS[part], &self.meta.encode(part));
            }
        }
        // The states that this append changed stay in memory until the next one.
        if self.records.len() > CACHED_RECORDS {
            self.older = std::mem::take(&mut self.records);
        }
    }
}

impl Names {
    fn of(state: &RecordState, def: &MappingDef) -> Self {
        let external_id = def.external_id.and_then(|field| state.field(field)).map(|register| register.current.clone());
        Self {
            key: state.key.clone(),
            salesforce_id: state.salesforce_id.clone(),
            external_id: external_id.filter(|value| !value.is_null()),
            tickets: Side::BOTH.map(|side| state.in_flight(side).map(|t| t.ticket)),
            dead: Side::BOTH.map(|side| state.refused(side).filter(|r| !r.discarded).map(|r| r.ticket)),
            partial: state.partial,
        }
    }
}

fn parked_as(state: &RecordState, field: crate::change::FieldId) -> Option<Offset> {
    state.field(field).and_then(|r| r.parked.as_ref()).map(|p| p.decision)
}

fn decode(record: RecordId, bytes: &[u8]) -> Result<Box<RecordState>> {
    RecordState::decode(bytes).map(Box::new).map_err(|e| corrupt(&format!("the state of record {}", record.0), e))
}

fn corrupt(what: &str, error: crate::change::codec::CodecError) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "{what} cannot be read; run `tidelock log verify`, and `tidelock log rebuild` if the entries are sound"
        ),
    )
    .caused_by(error)
}

/// Whether two positions are of one stream and `event` is not after `known`.
pub(super) fn delivered(known: &Position, event: &Position) -> bool {
    match (known, event) {
        (
            Position::Postgres { stream: a, commit_lsn, index },
            Position::Postgres { stream: b, commit_lsn: event_lsn, index: event_index },
        ) => a == b && (event_lsn, event_index) <= (commit_lsn, index),
        _ => false,
    }
}
