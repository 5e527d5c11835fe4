//! What a captured event becomes: an echo, a change, both, or nothing.

use std::sync::Arc;

use crate::causality::observe::Event as Observed;
use crate::causality::{self, RecordState, Seen};
use crate::change::{
    Bind, Body, Change, ChangeOrigin, Dot, Echo, MappingDef, MappingId, Notice, Offset, Operation, Outcome, Position,
    RecordId, Side, Source, Str, WriteKind, WriteResult,
};
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Item, Row, RowOperation};
use crate::ledger::fold::delivered;
use crate::ledger::keys;

use super::{Core, untold};

/// An event's row, resolved.
pub(super) struct Placed<'a> {
    pub(super) side: Side,
    pub(super) event: &'a Event,
    pub(super) row: &'a Row,
    pub(super) mapping: &'a MappingDef,
    pub(super) record: RecordId,
}

impl Core {
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
            Item::Truncate { .. } if self.is_truncating() => false,
            _ if batch.side == Side::Postgres => true,
            Item::Row(row) => !row.operation.is_image(),
            Item::Applied { .. } | Item::Truncate { .. } => true,
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
            Item::Truncate { mapping } => self.truncate(side, event, *mapping),
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
        let operation = self.confirmed(side, row)?;
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
            operation,
            fields: &row.fields,
            own: row.own,
            committed_at: event.committed_at,
            automation: false,
        };
        let at = Placed { side, event, row, mapping, record };
        if side == Side::Salesforce && row.operation.is_reading() {
            let state = self.fold.record(&*self.log, record)?;
            let flying = state.and_then(|s| s.in_flight(side)).map(|t| t.ticket);
            self.unheard.extend(flying.map(|ticket| (record, ticket)));
        }
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

    /// Closes the write whose echo the stream could not tell, where this row was read after the stream had passed it: whatever it
    /// did is part of the row. Returns how the row is to be looked at then.
    fn confirmed(&mut self, side: Side, row: &Row) -> Result<RowOperation> {
        let read = side == Side::Salesforce && row.operation.is_reading() && !self.unconfirmed.is_empty();
        let id = row.salesforce_id.clone().filter(|_| read);
        let waiting = id.and_then(|id| self.unconfirmed.remove(&(row.mapping, id)));
        let Some((record, ticket)) = waiting else { return Ok(row.operation) };
        let state = self.fold.record(&*self.log, record)?;
        let Some(state) = state.filter(|s| s.in_flight(side).is_some_and(|t| t.ticket == ticket)) else {
            return Ok(row.operation);
        };
        // Of a record that it takes for alive, the stream has told up to the write at least: within a second the row is newer.
        let in_order = row.operation == RowOperation::Reread
            && !state.partial
            && state.exists_at(side)
            && state.salesforce_id == row.salesforce_id;
        let (mapping, result) = (state.mapping, WriteResult::Silent);
        self.push(Body::Outcome(Outcome { mapping, record, side, ticket, result }))?;
        Ok(if in_order { RowOperation::Image } else { row.operation })
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

    pub(super) fn observe(&mut self, record: RecordId, mapping: &MappingDef, observed: &Observed<'_>) -> Result<Seen> {
        Ok(match self.fold.record(&*self.log, record)? {
            Some(state) => causality::observe(state, mapping, observed),
            None => causality::observe(&RecordState::new(mapping.id), mapping, observed),
        })
    }

    fn seen_transaction(&self, key: &[u8]) -> Result<bool> {
        Ok(self.transactions.iter().any(|keys| keys.contains(key)) || self.log.transaction_offset(key)?.is_some())
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

    /// Salesforce records of which only part is known, or that a write may have changed unheard, found since this was last
    /// asked: they are to be read whole.
    pub fn take_partial(&mut self) -> Vec<(MappingId, Str)> {
        std::mem::take(&mut self.partial)
    }
}
