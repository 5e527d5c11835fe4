//! What an event, a plan, an answer or a person's word becomes as entries. No threads, no runtime.

use std::collections::HashSet;
use std::sync::Arc;

use crate::causality::apply::Choice;
use crate::causality::observe::Event as Observed;
use crate::causality::{self, Held, InFlight, RecordState, Seen};
use crate::change::codec;
use crate::change::{
    Bind, Body, Catalog, Change, ChangeOrigin, Decision, Dot, Echo, Entry, FieldId, FieldKind, MappingDef, MappingId,
    Notice, Offset, Operation, Outcome, Position, RecordId, Ruling, Side, Source, Str, StreamId, Subject, Ticket,
    Value, WriteKind, WriteResult,
};
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Item, Row, RowOperation, Write, WriteValue, Written};
use crate::log::{Append, ChangeLog, ReadLimit};

use super::fold::{Fold, delivered};
use super::keys::{self, StateKey};
use super::meta::Meta;

/// How a write went, for the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The write.
    pub ticket: Offset,
    /// Its record.
    pub record: RecordId,
    /// The side that was written to.
    pub side: Side,
    /// What became of it.
    pub result: WriteResult,
    /// The record's Salesforce id, where the answer told it.
    pub salesforce_id: Option<Str>,
}

impl Answer {
    /// The ledger's form of a target's answer; `None` where the answer comes in the stream or the write is tried again.
    pub fn of(write: &Write, side: Side, written: &Written) -> Option<Self> {
        let (result, salesforce_id) = match written {
            Written::Done { salesforce_id } => (WriteResult::Done, salesforce_id.clone()),
            Written::Refused { code, message } => {
                (WriteResult::Refused { code: code.clone(), message: message.clone() }, None)
            }
            Written::InStream | Written::Retry { .. } => return None,
        };
        Some(Self { ticket: write.ticket, record: write.record, side, result, salesforce_id })
    }
}

/// What a person does about a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLetterAction {
    /// Try the write again.
    Retry,
    /// Let the side keep what it holds.
    Discard,
}

/// Counts since the start, for metrics and receipts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Changes appended, by side.
    pub changes: [u64; 2],
    /// Echoes appended, by side.
    pub echoes: [u64; 2],
    /// Events dropped as delivered before, by side.
    pub duplicates: [u64; 2],
    /// Tickets appended, by side.
    pub tickets: [u64; 2],
    /// Writes skipped because the side held something else, by side.
    pub skipped: [u64; 2],
    /// Writes refused, by side.
    pub refused: [u64; 2],
    /// Conflicts met (decisions other than a person's or an agreement).
    pub conflicts: u64,
    /// Of these, parked for a person.
    pub parked: u64,
}

/// Entries and state that belong in the log as one append.
#[derive(Debug)]
pub struct Part {
    expected_tail: Offset,
    append: Append,
}

impl Part {
    /// Makes it durable. Returns the new tail.
    pub fn store(&self, log: &dyn ChangeLog) -> Result<Offset> {
        log.append(self.expected_tail, &self.append)
    }

    /// The buffer, emptied.
    pub fn recycle(mut self) -> Append {
        self.append.clear();
        self.append
    }
}

/// The state machine. Every call adds entries to the append under way; [`Core::commit`] makes them durable.
pub struct Core {
    pub(super) log: Arc<dyn ChangeLog>,
    clock: SharedClock,
    pub(super) fold: Fold,
    append: Append,
    /// Transaction keys of the append under way, and of the one handed over before it.
    transactions: [HashSet<StateKey>; 2],
    /// The offset that the next entry gets.
    next: Offset,
    /// Counts since the start.
    pub counts: Counts,
    /// Salesforce records of which only part is known, found since last asked.
    partial: Vec<(MappingId, Str)>,
    /// Records that the last plan left out, or fields of them, since it is not known yet what the side's row holds there.
    held_back: Vec<RecordId>,
    /// Records that the last plan left as they are, though what is under way to the side is out of date already.
    behind: Vec<RecordId>,
    /// Entries begun since the start: whether somebody has changed anything.
    pushes: u64,
}

impl Core {
    /// Continues a log where it stands.
    pub fn open(log: Arc<dyn ChangeLog>, clock: SharedClock) -> Result<Self> {
        let fold = Fold::open(&*log)?;
        let next = log.tail();
        Ok(Self {
            log,
            clock,
            fold,
            append: Append::new(),
            transactions: Default::default(),
            next,
            counts: Counts::default(),
            partial: Vec::new(),
            held_back: Vec::new(),
            behind: Vec::new(),
            pushes: 0,
        })
    }

    /// The first offset that is not durable.
    pub fn tail(&self) -> Offset {
        self.log.tail()
    }

    /// Everything about the link.
    pub fn meta(&self) -> &Meta {
        &self.fold.meta
    }

    /// The state of a record.
    pub fn record(&mut self, record: RecordId) -> Result<Option<&RecordState>> {
        self.fold.record(&*self.log, record)
    }

    /// How many entries were begun since the start, whether or not they came to be.
    pub fn pushes(&self) -> u64 {
        self.pushes
    }

    /// Bytes of entries that wait for [`Core::commit`].
    pub fn pending_bytes(&self) -> usize {
        self.append.bytes()
    }

    /// Makes everything since the last commit durable, as one batch. Returns the new tail.
    ///
    /// After an error the core must not be used again: what it believes is ahead of what is stored.
    pub fn commit(&mut self) -> Result<Offset> {
        let part = self.hand_over(Append::new());
        let tail = part.store(&*self.log)?;
        self.append = part.recycle();
        Ok(tail)
    }

    /// Gives everything since the last time away, to be stored by somebody else while this goes on; `buffer` is what it goes on
    /// with. Each part must be stored before the next is handed over, and after a failure the core must not be used again.
    pub fn hand_over(&mut self, buffer: Append) -> Part {
        let expected_tail = Offset(self.next.0 - self.append.len() as u64);
        if !self.append.is_empty() {
            self.fold.write_to(&mut self.append);
        }
        self.transactions.swap(0, 1);
        self.transactions[0].clear();
        Part { expected_tail, append: std::mem::replace(&mut self.append, buffer) }
    }

    /// Adds an entry and the decisions that follow from it. Returns the entry's offset.
    fn push(&mut self, body: Body) -> Result<Offset> {
        self.pushes += 1;
        let recorded_at = self.clock.now().max(self.fold.meta.recorded_at);
        let offset = self.next;
        let entry = Entry { recorded_at, body };
        let decisions = self.fold.fold(&*self.log, offset, &entry)?;
        let transaction = self.fold.transaction_key(&entry.body);
        self.append.push(&entry, transaction.as_deref());
        self.transactions[0].extend(transaction);
        self.next = offset.next();
        self.count(&entry.body);
        for decision in decisions {
            self.push(Body::Decision(decision))?;
        }
        Ok(offset)
    }

    fn count(&mut self, body: &Body) {
        match body {
            Body::Change(change) => self.counts.changes[change.source.side.index()] += 1,
            Body::Echo(echo) => self.counts.echoes[echo.source.side.index()] += 1,
            Body::Ticket(ticket) => self.counts.tickets[ticket.side.index()] += 1,
            Body::Outcome(outcome) => match outcome.result {
                WriteResult::Skipped => self.counts.skipped[outcome.side.index()] += 1,
                WriteResult::Refused { .. } => self.counts.refused[outcome.side.index()] += 1,
                _ => {}
            },
            Body::Decision(decision) => match decision.ruling {
                Ruling::Person { .. } | Ruling::Agreed => {}
                Ruling::Parked => {
                    self.counts.conflicts += 1;
                    self.counts.parked += 1;
                }
                _ => self.counts.conflicts += 1,
            },
            Body::Bind(_) | Body::Notice(_) => {}
        }
    }

    // -- capture -----------------------------------------------------------------------------------------------------------

    /// Takes a batch of captured events. Returns how many were dropped as delivered before.
    pub fn intake(&mut self, batch: &Batch) -> Result<u64> {
        self.preload(batch)?;
        let before = self.counts.duplicates[batch.side.index()];
        for event in &batch.events {
            self.event(batch.side, event)?;
        }
        self.reach(batch)?;
        Ok(self.counts.duplicates[batch.side.index()] - before)
    }

    /// A batch that is durable is durable with its last place, whether or not that event left an entry: the source will be
    /// told to forget everything up to there.
    fn reach(&mut self, batch: &Batch) -> Result<()> {
        // Everything that PostgreSQL's capture offers has a place in the stream, rows of a backfill too; what is read from
        // Salesforce has none.
        let placed = |event: &&Event| match &event.item {
            Item::Progress => false,
            _ if batch.side == Side::Postgres => true,
            Item::Row(row) => !row.operation.is_image(),
            Item::Applied { .. } => true,
            Item::Notice(_) => false,
        };
        let Some(last) = batch.events.iter().rev().find(placed) else { return Ok(()) };
        self.at(batch.side, &last.position)
    }

    /// Puts a place on record that is beyond what entries tell.
    fn at(&mut self, side: Side, position: &Position) -> Result<()> {
        let known = self.meta().positions[side.index()].as_ref();
        if known.is_none_or(|known| known != position && !delivered(known, position)) {
            self.push(Body::Notice(Notice::StreamAt { side, position: position.clone() }))?;
        }
        Ok(())
    }

    /// Reads the identities and states of a batch's rows with two batched reads.
    fn preload(&mut self, batch: &Batch) -> Result<()> {
        let mut wanted = Vec::with_capacity(batch.events.len());
        for event in &batch.events {
            if let Item::Row(row) = &event.item {
                if let Some(key) = &row.key {
                    wanted.push(keys::by_key(row.mapping, key));
                } else if let Some(id) = &row.salesforce_id {
                    wanted.push(keys::by_salesforce_id(row.mapping, id));
                }
            }
        }
        if wanted.len() > 1 {
            let mut records = self.fold.preload_keys(&*self.log, wanted)?;
            records.sort_unstable();
            records.dedup();
            self.fold.preload(&*self.log, &records)?;
        }
        Ok(())
    }

    fn event(&mut self, side: Side, event: &Event) -> Result<()> {
        match &event.item {
            Item::Row(row) => self.row(side, event, row),
            Item::Applied { applied, skipped, refused } => {
                self.applied(side, event, applied, skipped)?;
                refused.iter().try_for_each(|(ticket, code, message)| self.refused(side, *ticket, code, message))
            }
            Item::Progress => self.at(side, &event.position),
            Item::Notice(notice) => self.push(Body::Notice(notice.clone())).map(|_| ()),
        }
    }

    fn row(&mut self, side: Side, event: &Event, row: &Row) -> Result<()> {
        let image = row.operation.is_image();
        // Rows copied from PostgreSQL have a place in its stream too, and behind it they are out of date.
        let chunk = matches!(row.operation, RowOperation::Backfill | RowOperation::Missing);
        let placed = !image || (side == Side::Postgres && chunk);
        let position = self.meta().positions[side.index()].as_ref();
        if placed && position.is_some_and(|p| delivered(p, &event.position)) {
            self.counts.duplicates[side.index()] += 1;
            return Ok(());
        }
        let catalog = Arc::clone(&self.meta().catalog);
        let Some(mapping) = catalog.mapping(row.mapping) else {
            return Err(Error::new(
                Kind::Internal,
                format!("an event names mapping {}, which is not configured", row.mapping.0),
            ));
        };
        if let (Side::Salesforce, false, Some(id)) = (side, image, &row.salesforce_id) {
            let transaction = &event.transaction;
            let item = keys::transaction_item(side, &transaction.id, transaction.index, id.as_bytes());
            if !transaction.id.is_empty() && self.seen_transaction(&item)? {
                self.counts.duplicates[side.index()] += 1;
                return Ok(());
            }
        }
        if image && self.outdated(side, event, row)? {
            return Ok(());
        }
        let compared = self.compared(side, event, row)?;
        let (event, row) = compared.as_ref().map_or((event, row), |(event, row)| (event, row));
        if side == Side::Postgres {
            self.rewind(side, event, row, mapping)?;
        }
        self.recognise(side, row, mapping)?;
        let (record, known) = match self.identify(side, row, event.committed_at, mapping)? {
            Some(record) => (record, true),
            // What Salesforce deleted is remembered: the answer that tells its id, or an image of it, may be on its way.
            None if side == Side::Postgres && matches!(row.operation, RowOperation::Delete | RowOperation::Missing) => {
                return Ok(());
            }
            None => (self.meta().next_record, false),
        };
        let observed = Observed {
            side,
            operation: row.operation,
            fields: &row.fields,
            own: row.own,
            committed_at: event.committed_at,
            automation: false,
        };
        let at = Placed { side, event, row, mapping, record };
        if let Some(ticket) = self.ended_unseen(&at)? {
            let (mapping, result) = (mapping.id, WriteResult::Silent);
            self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result }))?;
        }
        match self.observe(record, mapping, &observed)? {
            Seen::Echo(ticket) => {
                let state = self.fold.record(&*self.log, record)?;
                let creation = state.and_then(|s| s.in_flight(side)).is_some_and(|t| t.write == WriteKind::Create);
                self.echo(&at, ticket)?;
                let rest = Observed { automation: true, ..observed };
                if let Seen::Change(operation, fields) = self.observe(record, mapping, &rest)? {
                    self.change(&at, operation, fields, ChangeOrigin::Automation)?;
                }
                // It was matched with a row that was there, whose id an update does not tell.
                if creation && side == Side::Salesforce && row.operation == RowOperation::Update {
                    self.tell_id(record)?;
                }
                Ok(())
            }
            Seen::Change(operation, fields) => {
                let origin = match (row.operation, row.own) {
                    (RowOperation::Backfill, _) => ChangeOrigin::Backfill,
                    (RowOperation::Image | RowOperation::Reread | RowOperation::Missing, _) => ChangeOrigin::Repair,
                    (_, own) if own.is_ours() => ChangeOrigin::Automation,
                    _ => ChangeOrigin::Captured,
                };
                let fields = match operation {
                    Operation::Update if origin == ChangeOrigin::Repair => self.join(&at, fields)?,
                    _ => Some(fields),
                };
                fields.map_or(Ok(()), |fields| self.change(&at, operation, fields, origin))
            }
            Seen::Nothing if known => self.rebind(&at),
            Seen::Nothing => Ok(()),
        }
    }

    /// The write that made a row whose end is told, where the stream could not tell its beginning.
    fn ended_unseen(&mut self, at: &Placed<'_>) -> Result<Option<Offset>> {
        if at.side != Side::Salesforce || !matches!(at.row.operation, RowOperation::Delete | RowOperation::Missing) {
            return Ok(None);
        }
        let Some(state) = self.fold.record(&*self.log, at.record)? else { return Ok(None) };
        // What was seen missing before that is the end of an earlier row.
        let stale = at.row.operation == RowOperation::Missing && at.event.committed_at <= state.told_at(at.side);
        let its_own = !stale && state.salesforce_id.is_some() && state.salesforce_id == at.row.salesforce_id;
        let made = state.in_flight(at.side).filter(|t| t.write == WriteKind::Create && t.acknowledged_at.is_some());
        Ok(made.filter(|_| its_own && !state.exists_at(at.side)).map(|ticket| ticket.ticket))
    }

    fn observe(&mut self, record: RecordId, mapping: &MappingDef, observed: &Observed<'_>) -> Result<Seen> {
        Ok(match self.fold.record(&*self.log, record)? {
            Some(state) => causality::observe(state, mapping, observed),
            None => causality::observe(&RecordState::new(mapping.id), mapping, observed),
        })
    }

    fn seen_transaction(&self, key: &[u8]) -> Result<bool> {
        Ok(self.transactions.iter().any(|keys| keys.contains(key)) || self.log.transaction_offset(key)?.is_some())
    }

    /// The record that a row is: by primary key, then Salesforce id, then external id.
    fn identify(
        &mut self,
        side: Side,
        row: &Row,
        committed_at: crate::clock::Micros,
        mapping: &MappingDef,
    ) -> Result<Option<RecordId>> {
        // A key that was changed is looked for under both names: its change may have been told before.
        for key in row.old_key.iter().chain(&row.key) {
            if let Some(record) = self.fold.lookup(&*self.log, &keys::by_key(mapping.id, key))? {
                // A key that is used again after a delete names another row.
                let reused = (row.operation == RowOperation::Insert
                    || (row.operation == RowOperation::Reread && side == Side::Postgres))
                    && self.is_free_for_another(side, record, row)?;
                if !reused {
                    return Ok(Some(record));
                }
            }
        }
        // A record that was deleted before its external id was told may have another name.
        let mut buried = None;
        if let Some(id) = &row.salesforce_id
            && let Some(record) = self.fold.lookup(&*self.log, &keys::by_salesforce_id(mapping.id, id))?
            && self.free(side, record, row)?
        {
            let state = self.fold.record(&*self.log, record)?;
            let told = |s: &RecordState, f| s.field(f).is_some_and(|r| !r.held(Side::Salesforce).dot.is_nobody());
            let nameless = |s: &RecordState| mapping.external_id.is_some_and(|f| !told(s, f));
            // As [`causality::observe`] has it: what was read because the stream could not tell is newer within a second.
            let outdated = |s: &RecordState| match row.operation {
                RowOperation::Backfill | RowOperation::Reread => committed_at <= s.told_at(side),
                RowOperation::Image | RowOperation::Missing => committed_at < s.told_at(side),
                _ => false,
            };
            if !state.is_some_and(|s| s.key.is_none() && !s.exists() && nameless(s) && !outdated(s)) {
                return Ok(Some(record));
            }
            buried = Some(record);
        }
        let Some(field) = mapping.external_id else { return Ok(buried) };
        let told = row.fields.binary_search_by_key(&field, |(f, _)| *f).ok().and_then(|n| row.fields.get(n));
        if let Some((_, value)) = told.filter(|(_, v)| !v.is_null()) {
            let key = keys::by_external_id(mapping.id, &value.to_string());
            if let Some(record) = self.fold.lookup(&*self.log, &key)?
                && self.free(side, record, row)?
            {
                return Ok(Some(record));
            }
        }
        Ok(buried)
    }

    /// Whether a row under the key of a record that is not there may be another one. While the record is being made anew, it is
    /// so only if the row names another.
    fn is_free_for_another(&mut self, side: Side, record: RecordId, row: &Row) -> Result<bool> {
        let named = match &row.salesforce_id {
            Some(id) => self.fold.lookup(&*self.log, &keys::by_salesforce_id(row.mapping, id))?,
            None => None,
        };
        let names_another = named.is_some_and(|named| named != record);
        let state = self.fold.record(&*self.log, record)?;
        Ok(state.is_some_and(|s| !s.exists_at(Side::Postgres) && (names_another || s.in_flight(side).is_none())))
    }

    /// Whether an image is of a Salesforce record that was deleted since, and made anew under another id.
    fn outdated(&mut self, side: Side, event: &Event, row: &Row) -> Result<bool> {
        let (Side::Salesforce, Some(id)) = (side, &row.salesforce_id) else { return Ok(false) };
        let key = keys::by_salesforce_id(row.mapping, id);
        let Some(record) = self.fold.lookup(&*self.log, &key)? else { return Ok(false) };
        let state = self.fold.record(&*self.log, record)?;
        Ok(state.is_some_and(|s| s.salesforce_id.as_ref() != Some(id) && event.committed_at <= s.told_at(side)))
    }

    /// A Salesforce record of which only part is known may turn out, by its external id, to be one that PostgreSQL has told of.
    fn recognise(&mut self, side: Side, row: &Row, mapping: &MappingDef) -> Result<()> {
        let (Side::Salesforce, Some(id), Some(field)) = (side, &row.salesforce_id, mapping.external_id) else {
            return Ok(());
        };
        let told = row.fields.binary_search_by_key(&field, |(f, _)| *f).ok().and_then(|n| row.fields.get(n));
        let Some((_, value)) = told.filter(|(_, v)| !v.is_null()) else { return Ok(()) };
        let key = keys::by_external_id(mapping.id, &value.to_string());
        match self.fold.lookup(&*self.log, &key)? {
            Some(record) => self.absorb(record, id, false),
            None => Ok(()),
        }
    }

    /// Where `id` has been a record of its own, known in part only, and is now known to be `record`: what the stream told of it
    /// is told again of `record`, and the other one ends.
    ///
    /// With `written`, Salesforce has said so in answer to a write, and a record that was deleted since counts too.
    fn absorb(&mut self, record: RecordId, id: &Str, written: bool) -> Result<()> {
        let side = Side::Salesforce;
        let Some(state) = self.fold.record(&*self.log, record)? else { return Ok(()) };
        let (mapping, counts, mut vector) = (state.mapping, state.counts, state.seen(side));
        let unknown = !state.exists_at(side) && state.existence.held(side).dot.is_nobody();
        let known_fields: Vec<(FieldId, Value)> =
            state.fields.iter().map(|(f, r)| (*f, r.held(side).value.clone())).collect();
        let Some(part) = self.fold.lookup(&*self.log, &keys::by_salesforce_id(mapping, id))? else { return Ok(()) };
        let Some(position) = self.fold.meta.positions[side.index()].clone() else { return Ok(()) };
        let Some(other) = self.fold.record(&*self.log, part)? else { return Ok(()) };
        let lives = other.exists_at(side);
        if part == record || !unknown || other.key.is_some() || !(if lives { other.partial } else { written }) {
            return Ok(());
        }
        let source = Source {
            side,
            position,
            transaction: crate::change::Transaction::default(),
            committed_at: other.told_at(side),
            who: crate::change::Who::default(),
        };
        let mut fields = Vec::new();
        for (field, register) in &other.fields {
            let before = known_fields.iter().find(|(f, _)| f == field).map_or(Value::Null, |(_, v)| v.clone());
            let after = register.held(side).value.clone();
            if !register.held(side).dot.is_nobody() {
                fields.push(crate::change::FieldChange { field: *field, before, after });
            }
        }
        let (other_counts, mut other_vector) = (other.counts, other.seen(side));
        let ends = Dot { side, n: other_counts.get(side) + 1 };
        other_vector.include(ends);
        let begins = Dot { side, n: counts.get(side) + 1 };
        vector.include(begins);
        let change = |record, operation, dot, vector, fields, salesforce_id| Change {
            mapping,
            record,
            origin: ChangeOrigin::Captured,
            source: source.clone(),
            operation,
            key: None,
            salesforce_id,
            dot,
            vector,
            fields,
        };
        let end = change(part, Operation::Delete, ends, other_vector, Vec::new(), None);
        let begin = change(record, Operation::Update, begins, vector, fields, Some(id.clone()));
        let last = Dot { side, n: begins.n + 1 };
        vector.include(last);
        let gone = change(record, Operation::Delete, last, vector, Vec::new(), None);
        if lives {
            self.push(Body::Change(end))?;
        }
        self.push(Body::Change(begin))?;
        if lives {
            self.partial.push((mapping, id.clone()));
        } else {
            self.push(Body::Change(gone))?;
        }
        Ok(())
    }

    /// Whether a row of `side` may be this record: it is not another living row there.
    fn free(&mut self, side: Side, record: RecordId, row: &Row) -> Result<bool> {
        let Some(state) = self.fold.record(&*self.log, record)? else { return Ok(true) };
        Ok(!state.exists_at(side)
            || match side {
                Side::Postgres => state.key.is_none() || state.key == row.key,
                Side::Salesforce => state.salesforce_id.is_none() || state.salesforce_id == row.salesforce_id,
            })
    }

    fn source(at: &Placed<'_>) -> Source {
        Source {
            side: at.side,
            position: at.event.position.clone(),
            transaction: at.event.transaction.clone(),
            committed_at: at.event.committed_at,
            who: at.event.who.clone(),
        }
    }

    /// The identities that an entry about this row binds: those that are new.
    fn binds(&mut self, at: &Placed<'_>) -> Result<(Option<crate::change::Key>, Option<Str>)> {
        let state = self.fold.record(&*self.log, at.record)?;
        let key = at.row.key.clone().filter(|key| state.is_none_or(|s| s.key.as_ref() != Some(key)));
        // A mirror that is Salesforce's alone says by `sfid` whose rows it holds.
        let found = at.row.operation == RowOperation::Backfill && at.mapping.owner == Some(Side::Salesforce);
        let id = at.row.salesforce_id.clone().filter(|_| at.side == Side::Salesforce || found);
        let id = id.filter(|id| state.is_none_or(|s| s.salesforce_id.as_ref() != Some(id)));
        Ok((key, id))
    }

    fn rebind(&mut self, at: &Placed<'_>) -> Result<()> {
        let (key, salesforce_id) = self.binds(at)?;
        if at.row.operation == RowOperation::Delete || (key.is_none() && salesforce_id.is_none()) {
            return Ok(());
        }
        self.push(Body::Bind(Bind { mapping: at.mapping.id, record: at.record, key, salesforce_id }))?;
        if at.row.operation.is_image() {
            return Ok(());
        }
        // Delivered again, what came before it would look for the row under its old name.
        let (side, position) = (at.side, at.event.position.clone());
        self.push(Body::Notice(Notice::StreamAt { side, position })).map(|_| ())
    }

    fn echo(&mut self, at: &Placed<'_>, ticket: Offset) -> Result<()> {
        let (key, salesforce_id) = self.binds(at)?;
        let echo =
            Echo { mapping: at.mapping.id, record: at.record, source: Self::source(at), ticket, key, salesforce_id };
        self.push(Body::Echo(echo)).map(|_| ())
    }

    pub(super) fn change(
        &mut self,
        at: &Placed<'_>,
        operation: Operation,
        fields: Vec<crate::change::FieldChange>,
        origin: ChangeOrigin,
    ) -> Result<()> {
        let (key, salesforce_id) = self.binds(at)?;
        let (mut vector, counts) = match self.fold.record(&*self.log, at.record)? {
            Some(state) => (state.seen(at.side), state.counts),
            None => Default::default(),
        };
        let dot = Dot { side: at.side, n: counts.get(at.side) + 1 };
        vector.include(dot);
        let change = Change {
            mapping: at.mapping.id,
            record: at.record,
            origin,
            source: Self::source(at),
            operation,
            key,
            salesforce_id,
            dot,
            vector,
            fields,
        };
        self.push(Body::Change(change))?;
        if at.side == Side::Salesforce
            && self.fold.record(&*self.log, at.record)?.is_some_and(|s| s.partial)
            && let Some(id) = &at.row.salesforce_id
        {
            self.partial.push((at.mapping.id, id.clone()));
        }
        Ok(())
    }

    /// What an image tells for the first time of fields that were mapped later joins the two sides there, as a backfill does.
    /// Returns the rest of the image's fields, if there is a rest.
    fn join(
        &mut self,
        at: &Placed<'_>,
        fields: Vec<crate::change::FieldChange>,
    ) -> Result<Option<Vec<crate::change::FieldChange>>> {
        let Some(first) = self.meta().unread(at.side, at.mapping.id) else { return Ok(Some(fields)) };
        let Some(state) = self.fold.record(&*self.log, at.record)? else { return Ok(Some(fields)) };
        let (joined, rest): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|f| f.field >= first && untold(state, at.side, f.field));
        if joined.is_empty() {
            return Ok(Some(rest));
        }
        self.change(at, Operation::Update, joined, ChangeOrigin::Backfill)?;
        Ok(Some(rest).filter(|rest| !rest.is_empty()))
    }

    /// Salesforce records of which only part is known, found since this was last asked: they are to be read whole.
    pub fn take_partial(&mut self) -> Vec<(MappingId, Str)> {
        std::mem::take(&mut self.partial)
    }

    /// A transaction of ours says what it did. What its rows have not told already is an echo without effect.
    fn applied(&mut self, side: Side, event: &Event, applied: &[Offset], skipped: &[Offset]) -> Result<()> {
        for ticket in applied {
            if let Some((record, mapping)) = self.open_ticket(side, *ticket)? {
                let source = Source {
                    side,
                    position: event.position.clone(),
                    transaction: event.transaction.clone(),
                    committed_at: event.committed_at,
                    who: event.who.clone(),
                };
                let echo = Echo { mapping, record, source, ticket: *ticket, key: None, salesforce_id: None };
                self.push(Body::Echo(echo))?;
            }
        }
        for ticket in skipped {
            if let Some((record, mapping)) = self.open_ticket(side, *ticket)? {
                let skips = self.fold.record(&*self.log, record)?.map_or(0, |state| state.skips[side.index()]);
                let result = if skips < SKIPS_MAX { WriteResult::Skipped } else { mismatch(side) };
                let outcome = Outcome { mapping, record, side, ticket: *ticket, result };
                self.push(Body::Outcome(outcome))?;
            }
        }
        Ok(())
    }

    /// A transaction of ours had a write refused; the answer to it may have said so already, or have been lost.
    fn refused(&mut self, side: Side, ticket: Offset, code: &Str, message: &Str) -> Result<()> {
        if let Some((record, mapping)) = self.open_ticket(side, ticket)? {
            let result = WriteResult::Refused { code: code.clone(), message: message.clone() };
            self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result }))?;
        }
        Ok(())
    }

    /// An open ticket's record and mapping. What becomes of one whose mapping has been removed since concerns nobody.
    fn open_ticket(&mut self, side: Side, ticket: Offset) -> Result<Option<(RecordId, MappingId)>> {
        let Some(record) = self.fold.lookup(&*self.log, &keys::ticket(side, ticket))? else { return Ok(None) };
        let mapping = self.fold.record(&*self.log, record)?.map(|state| state.mapping);
        Ok(mapping.filter(|mapping| self.is_mapped(*mapping)).map(|mapping| (record, mapping)))
    }

    /// Whether a mapping is in force. An entry about another one cannot be folded.
    fn is_mapped(&self, mapping: MappingId) -> bool {
        self.meta().catalog.mapping(mapping).is_some()
    }

    // -- replay ------------------------------------------------------------------------------------------------------------

    /// Plans what `side` needs for these records, as tickets. `cursor` is how far replay to that side has read.
    pub fn plan(&mut self, side: Side, records: &[RecordId], cursor: Offset) -> Result<Vec<Write>> {
        self.fold.preload(&*self.log, records)?;
        let prefix = self.fold.meta.catalog.external_id_prefix.clone();
        let mut writes = Vec::new();
        self.held_back.clear();
        self.behind.clear();
        for record in records {
            self.fold.load(&*self.log, *record)?;
            let Some(state) = self.fold.loaded(*record) else { continue };
            let Some(mapping) = self.fold.meta.catalog.mapping(state.mapping) else { continue };
            if self.fold.meta.reconciling(side, mapping.id).is_some() {
                // What its row holds is not known just now.
                if causality::plan(state, mapping, *record, side, cursor, &prefix).is_some() {
                    self.held_back.push(*record);
                }
                continue;
            }
            let unread = self.fold.meta.unread(side, mapping.id);
            if unread == Some(FieldId(0)) && state.exists() && !state.exists_at(side) {
                // It may be there already: the external id would lead to it, and its values be written over unseen.
                self.held_back.push(*record);
                continue;
            }
            let read = unread.and_then(|first| without_unread(state, mapping, side, first));
            if read.is_some() {
                self.held_back.push(*record);
            }
            let mapping = read.as_ref().unwrap_or(mapping);
            if state.in_flight(side).is_some_and(|flying| outdated(state, mapping, side, flying)) {
                self.behind.push(*record);
            }
            let Some(ticket) = causality::plan(state, mapping, *record, side, cursor, &prefix) else { continue };
            let write = write_of(state, mapping, &ticket);
            let offset = self.push(Body::Ticket(ticket))?;
            writes.push(Write { ticket: offset, ..write });
        }
        Ok(writes)
    }

    /// The records that the last [`Core::plan`] left something out of, while the side's rows are read for the first time, or
    /// again: for fields that were mapped later, or to be compared. They are to be planned again when that is done.
    pub fn take_held_back(&mut self) -> Vec<RecordId> {
        std::mem::take(&mut self.held_back)
    }

    /// The records that the last [`Core::plan`] left as they are, though the side needs more than the write under way to it:
    /// what that one's echo or silence tells is waited for.
    pub fn take_behind(&mut self) -> Vec<RecordId> {
        std::mem::take(&mut self.behind)
    }

    /// The tickets of a side that were open when the process last stopped, as writes, oldest first; and whether the side had
    /// acknowledged them.
    pub fn open_writes(&mut self, side: Side) -> Result<Vec<(Write, bool)>> {
        let mut writes = Vec::new();
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.log.scan_state(&[keys::TICKET, side as u8], after.as_deref(), 1_000)?;
            let Some((last, _)) = page.last() else { return Ok(writes) };
            after = Some(last.clone());
            for (key, value) in &page {
                let (ticket, record) = (Offset(keys::number(key)), RecordId(keys::number(value)));
                let entry = self.ticket_entry(ticket)?;
                self.fold.load(&*self.log, record)?;
                let Some(state) = self.fold.loaded(record) else { continue };
                let Some(mapping) = self.fold.meta.catalog.mapping(state.mapping) else { continue };
                let Some(flying) = state.in_flight(side).filter(|t| t.ticket == ticket) else { continue };
                writes.push((Write { ticket, ..write_of(state, mapping, &entry) }, flying.acknowledged_at.is_some()));
            }
        }
    }

    /// Gives up every open ticket of a side, where nothing will ever tell what became of them: what is still needed is planned
    /// anew, by what the side turns out to hold.
    pub fn abandon_open(&mut self, side: Side, reason: &str) -> Result<()> {
        let answers: Vec<Answer> = self
            .open_writes(side)?
            .into_iter()
            .map(|(write, _)| Answer {
                ticket: write.ticket,
                record: write.record,
                side,
                result: WriteResult::Abandoned { reason: Str::new(reason) },
                salesforce_id: None,
            })
            .collect();
        self.answers(&answers)
    }

    fn ticket_entry(&self, ticket: Offset) -> Result<Ticket> {
        match read_entry(&*self.log, ticket)?.body {
            Body::Ticket(entry) => Ok(entry),
            _ => {
                Err(Error::new(Kind::Corrupt, format!("entry {ticket} should be a ticket; run `tidelock log verify`")))
            }
        }
    }

    /// Takes a target's answers.
    pub fn answers(&mut self, answers: &[Answer]) -> Result<()> {
        for answer in answers {
            let Some((record, mapping)) = self.open_ticket(answer.side, answer.ticket)? else {
                // The echo came first and has closed the ticket; the answer may still tell the id.
                self.bind_answer(answer)?;
                continue;
            };
            self.bind_answer(answer)?;
            let silent = answer.result == WriteResult::Silent;
            let outcome =
                Outcome { mapping, record, side: answer.side, ticket: answer.ticket, result: answer.result.clone() };
            self.push(Body::Outcome(outcome))?;
            if silent && answer.side == Side::Salesforce {
                self.tell_id(record)?;
            }
        }
        Ok(())
    }

    fn bind_answer(&mut self, answer: &Answer) -> Result<()> {
        let Some(id) = &answer.salesforce_id else { return Ok(()) };
        let Some(state) = self.fold.record(&*self.log, answer.record)? else { return Ok(()) };
        // A record that came back by itself while it was being created keeps its own id; the new one is another record.
        if state.salesforce_id.as_ref() == Some(id)
            || (state.salesforce_id.is_some() && state.exists_at(Side::Salesforce))
        {
            return Ok(());
        }
        let mapping = state.mapping;
        if !self.is_mapped(mapping) {
            return Ok(());
        }
        self.absorb(answer.record, id, true)?;
        self.push(Body::Bind(Bind { mapping, record: answer.record, key: None, salesforce_id: Some(id.clone()) }))?;
        Ok(())
    }

    /// A record that Salesforce matched without an event to show for it: its id is told by nobody else.
    fn tell_id(&mut self, record: RecordId) -> Result<()> {
        let Some(state) = self.fold.record(&*self.log, record)?.cloned() else { return Ok(()) };
        let catalog = Arc::clone(&self.meta().catalog);
        let Some(mapping) = catalog.mapping(state.mapping) else { return Ok(()) };
        let (Some(field), Some(id)) = (mapping.fields.iter().find(|f| f.kind == FieldKind::Id), &state.salesforce_id)
        else {
            return Ok(());
        };
        let after = Value::Text(id.clone());
        if state.held_value(Side::Salesforce, field.id) == &after {
            return Ok(());
        }
        let Some(position) = self.meta().positions[Side::Salesforce.index()].clone() else { return Ok(()) };
        let mut vector = state.seen(Side::Salesforce);
        let dot = Dot { side: Side::Salesforce, n: state.counts.salesforce + 1 };
        vector.include(dot);
        let before = state.held_value(Side::Salesforce, field.id).clone();
        let change = Change {
            mapping: mapping.id,
            record,
            origin: ChangeOrigin::Automation,
            source: Source {
                side: Side::Salesforce,
                position,
                transaction: crate::change::Transaction::default(),
                committed_at: state.last_commit[Side::Salesforce.index()],
                who: crate::change::Who::default(),
            },
            operation: Operation::Update,
            key: None,
            salesforce_id: None,
            dot,
            vector,
            fields: vec![crate::change::FieldChange { field: field.id, before, after }],
        };
        self.push(Body::Change(change)).map(|_| ())
    }

    // -- people and the link -----------------------------------------------------------------------------------------------

    /// Puts a catalog in force, if it is not already; what the log's external ids begin with never changes once it is given.
    /// Returns the mappings that have got fields: their rows are to be read again, and until then nothing is written over what a
    /// side holds in those fields.
    pub fn configure(&mut self, catalog: &Catalog) -> Result<Vec<MappingId>> {
        let known = Arc::clone(&self.meta().catalog);
        let mut catalog = catalog.clone();
        if !known.external_id_prefix.is_empty() {
            catalog.external_id_prefix = known.external_id_prefix.clone();
        }
        if *known != catalog {
            self.push(Body::Notice(Notice::Configured { catalog: Box::new(catalog.clone()) }))?;
        }
        Ok(catalog.grown_since(&known).map(|(mapping, _)| mapping).collect())
    }

    /// The identity of the stream of a side that was opened last.
    pub fn known_stream(&self, side: Side) -> Option<Str> {
        self.meta().stream(side).map(|s| s.identity.clone())
    }

    /// Opens a side's stream by its identity: its number, the place of its last event in the log, and the side's earlier
    /// stream if this one is new.
    pub fn open_stream(&mut self, side: Side, identity: &str) -> Result<OpenedStream> {
        let known = self.meta().stream(side).cloned();
        if let Some(stream) = known.as_ref().filter(|s| s.identity == identity) {
            let position = self.meta().positions[side.index()].clone();
            return Ok(OpenedStream { stream: stream.id, identity: stream.identity.clone(), position, replaces: None });
        }
        let stream = StreamId(self.meta().streams.len() as u32);
        let identity = Str::new(identity);
        self.push(Body::Notice(Notice::StreamOpened { stream, side, identity: identity.clone() }))?;
        Ok(OpenedStream { stream, identity, position: None, replaces: known.map(|s| s.identity) })
    }

    /// Opens another stream in the place of a side's lost one, which may have the same identity.
    pub fn replace_stream(&mut self, side: Side, identity: &str) -> Result<OpenedStream> {
        let replaces = self.known_stream(side);
        let stream = StreamId(self.meta().streams.len() as u32);
        let identity = Str::new(identity);
        self.push(Body::Notice(Notice::StreamOpened { stream, side, identity: identity.clone() }))?;
        Ok(OpenedStream { stream, identity, position: None, replaces })
    }

    /// Puts a notice on record.
    pub fn notice(&mut self, notice: Notice) -> Result<()> {
        self.push(Body::Notice(notice)).map(|_| ())
    }

    /// Ends the parked conflict whose decision entry is `conflict` by a person's choice; a value of their own is canonical.
    pub fn resolve(&mut self, conflict: Offset, choice: &Choice, person: &str) -> Result<()> {
        let unknown = || {
            Error::new(
                Kind::Configuration,
                format!("conflict {conflict} is not open; `tidelock conflicts list` shows those that are"),
            )
        };
        let entry = read_entry(&*self.log, conflict).map_err(|_| unknown())?;
        let Body::Decision(parked) = entry.body else { return Err(unknown()) };
        let Subject::Field(field) = parked.subject else { return Err(unknown()) };
        let catalog = Arc::clone(&self.meta().catalog);
        let system_of_record = catalog.system_of_record;
        let mapping = catalog.mapping(parked.mapping).ok_or_else(unknown)?;
        let state = self.fold.record(&*self.log, parked.record)?.ok_or_else(unknown)?;
        if state.field(field).and_then(|r| r.parked.as_ref()).is_none_or(|p| p.decision != conflict) {
            return Err(unknown());
        }
        let decisions: Vec<Decision> =
            causality::resolve(state, mapping, parked.record, field, choice.clone(), person, system_of_record);
        for decision in decisions {
            self.push(Body::Decision(decision))?;
        }
        Ok(())
    }

    /// Does what a person wants about a dead letter.
    pub fn dead_letter(&mut self, ticket: Offset, action: DeadLetterAction, person: &str) -> Result<()> {
        let unknown = || {
            let advice = "`tidelock dead-letters list` shows those there are";
            Error::new(Kind::Configuration, format!("there is no dead letter {ticket}; {advice}"))
        };
        let value = self.fold.get(&*self.log, &keys::numbered(keys::DEAD_LETTER, ticket.0))?.ok_or_else(unknown)?;
        let record = RecordId(value.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b)));
        let side = *Side::BOTH.get(usize::from(value.get(8).copied().unwrap_or_default())).ok_or_else(unknown)?;
        let mapping = self.fold.record(&*self.log, record)?.ok_or_else(unknown)?.mapping;
        if !self.is_mapped(mapping) {
            let text = format!(
                "dead letter {ticket} is of a mapping that has been removed, so nothing is written for it any more"
            );
            return Err(Error::new(Kind::Configuration, text));
        }
        let by = Str::new(person);
        let result = match action {
            DeadLetterAction::Retry => WriteResult::Retried { by },
            DeadLetterAction::Discard => WriteResult::GivenUp { by },
        };
        self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result })).map(|_| ())
    }
}

/// A side's stream, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedStream {
    /// The number that positions carry.
    pub stream: StreamId,
    /// What makes it this stream and no other.
    pub identity: Str,
    /// The place of its last event in the log.
    pub position: Option<Position>,
    /// The identity of the side's earlier stream, where this one is new in its place: what happened in between is unknown.
    pub replaces: Option<Str>,
}

/// How often in a row a write is skipped before it is a dead letter. What it met was committed before, so the stream has told
/// it by the time it tells of the skip, and the next write goes by it; a write that is skipped again with nothing told in
/// between meets something that the stream does not tell.
const SKIPS_MAX: u8 = 2;

fn mismatch(side: Side) -> WriteResult {
    WriteResult::Refused {
        code: Str::new("TIDELOCK_MISMATCH"),
        message: smol_str::format_smolstr!(
            "{side} holds something else than its stream has told, or another row has the same external id or Salesforce \
             id; compare the two sides, then retry"
        ),
    }
}

/// An event's row, resolved.
pub(super) struct Placed<'a> {
    pub(super) side: Side,
    pub(super) event: &'a Event,
    pub(super) row: &'a Row,
    pub(super) mapping: &'a MappingDef,
    pub(super) record: RecordId,
}

/// Whether a side has never told what it holds in a field.
fn untold(state: &RecordState, side: Side, field: FieldId) -> bool {
    state.field(field).is_none_or(|register| register.held(side).dot.is_nobody())
}

/// The mapping without the fields from `first` on of which `side` has not told what its row holds, so that nothing is written
/// over it unseen. `None` where that leaves nothing out.
fn without_unread(state: &RecordState, mapping: &MappingDef, side: Side, first: FieldId) -> Option<MappingDef> {
    let unread = |field: FieldId| field >= first && untold(state, side, field);
    if !state.exists_at(side) || !state.fields.iter().any(|(field, _)| unread(*field)) {
        return None;
    }
    let fields = mapping.fields.iter().filter(|f| !unread(f.id)).cloned().collect();
    Some(MappingDef { fields, ..mapping.clone() })
}

/// Whether a side would need another write if the one under way took effect just now.
fn outdated(state: &RecordState, mapping: &MappingDef, side: Side, flying: &InFlight) -> bool {
    let mut landed = state.clone();
    landed.in_flight[side.index()] = None;
    for value in &flying.values {
        if let Ok(n) = landed.fields.binary_search_by_key(&value.field, |(field, _)| *field) {
            landed.fields[n].1.held[side.index()] = Held { value: value.value.clone(), dot: value.dot };
        }
    }
    if flying.write != WriteKind::Update {
        let value = Value::Bool(flying.write == WriteKind::Create);
        landed.existence.held[side.index()] = Held { value, dot: flying.existence };
    }
    causality::plan(&landed, mapping, RecordId(0), side, Offset(0), "").is_some()
}

fn write_of(state: &RecordState, mapping: &MappingDef, ticket: &Ticket) -> Write {
    let values = if ticket.write == WriteKind::Delete {
        let expected = causality::plan::delete_expectations(state, mapping, ticket.side);
        expected.into_iter().map(|(field, expected)| WriteValue { field, expected, value: Value::Null }).collect()
    } else {
        let expected = |field: FieldId| match ticket.write {
            WriteKind::Create => Value::Null,
            _ => state.held_value(ticket.side, field).clone(),
        };
        ticket
            .values
            .iter()
            .map(|v| WriteValue { field: v.field, expected: expected(v.field), value: v.value.clone() })
            .collect()
    };
    let create = ticket.write == WriteKind::Create;
    Write {
        ticket: Offset(0),
        mapping: ticket.mapping,
        record: ticket.record,
        kind: ticket.write,
        key: state.key.clone().filter(|_| !(create && ticket.side == Side::Postgres)),
        salesforce_id: state.salesforce_id.clone().filter(|_| !(create && ticket.side == Side::Salesforce)),
        external_id: ticket.external_id.clone(),
        values,
    }
}

/// One entry of a log.
pub fn read_entry(log: &dyn ChangeLog, offset: Offset) -> Result<Entry> {
    let page = log.read(offset, ReadLimit::ONE)?;
    let bytes = page.iter().next().map(|(_, bytes)| bytes);
    let bytes = bytes.ok_or_else(|| Error::new(Kind::Corrupt, format!("the log has no entry {offset}")))?;
    codec::decode(bytes).map_err(|e| {
        Error::new(Kind::Corrupt, format!("entry {offset} cannot be read; run `tidelock log verify`")).caused_by(e)
    })
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
