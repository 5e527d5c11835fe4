//! Rows that are read to be compared with the log: each is taken as what the side holds, by the ordinary rules, after what the
//! side's own going back explains has been set right.

use crate::change::{Body, ChangeOrigin, MappingDef, Offset, Operation, RecordId, Side, Str, Who};
use crate::error::Result;
use crate::flow::{Event, Item, Row, RowOperation};
use crate::reconcile::{Past, Rewound, Told, rewind};

use super::intake::Placed;
use super::{Core, read_entry};
use crate::ledger::keys;

/// Offsets of a record's entries that are read at once.
const OFFSETS: usize = 1_000;

impl Core {
    /// The event and row as they are taken where their mapping is being compared: told because the stream could not tell, for
    /// the reason that is on record. `None` where nothing is compared. A row that was never told yet, in a mapping whose rows
    /// are still to be read for the first time, is joined like any other.
    pub(super) fn compared(&mut self, side: Side, event: &Event, row: &Row) -> Result<Option<(Event, Row)>> {
        if side != Side::Postgres || !matches!(row.operation, RowOperation::Backfill | RowOperation::Missing) {
            return Ok(None);
        }
        let Some(reconcile) = self.meta().reconciling(side, row.mapping) else { return Ok(None) };
        let cause = reconcile.cause.clone();
        if self.meta().unread(side, row.mapping).is_some_and(|first| first.0 == 0) && self.named(row)?.is_none() {
            return Ok(None);
        }
        let operation = match row.operation {
            RowOperation::Backfill => RowOperation::Reread,
            other => other,
        };
        let application = Str::from(format!("tidelock reconcile: {cause}"));
        let event = Event {
            position: event.position.clone(),
            transaction: event.transaction.clone(),
            committed_at: event.committed_at,
            who: Who { application, ..event.who.clone() },
            item: Item::Progress,
        };
        Ok(Some((event, Row { operation, ..row.clone() })))
    }

    /// The record that has the row's key.
    fn named(&mut self, row: &Row) -> Result<Option<RecordId>> {
        for key in row.old_key.iter().chain(&row.key) {
            let found = self.fold.lookup(&*self.log, &keys::by_key(row.mapping, key))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// The record that holds the external id which a row tells.
    pub(super) fn holder(&mut self, row: &Row, mapping: &MappingDef) -> Result<Option<RecordId>> {
        let told = row.fields.iter().find(|(field, value)| Some(*field) == mapping.external_id && !value.is_null());
        let Some((_, value)) = told else { return Ok(None) };
        self.fold.lookup(&*self.log, &keys::by_external_id(mapping.id, &value.to_string()))
    }

    /// Takes back what the log believes of a row whose side has gone back, before anything that is told of it is taken. Not in
    /// a mapping that is the side's own: what the owner holds is right.
    pub(super) fn rewind(&mut self, side: Side, event: &Event, row: &Row, mapping: &MappingDef) -> Result<()> {
        let reconcile = self.meta().reconciling(side, mapping.id);
        let Some((to, lost)) = reconcile.and_then(|r| Some((r.rewound_to?, r.lost))) else { return Ok(()) };
        if row.own.is_ours() {
            return Ok(());
        }
        let (record, told) = match (self.named(row)?, row.operation) {
            (Some(record), RowOperation::Missing) => (record, Told::Missing),
            (Some(record), RowOperation::Insert) => (record, Told::Inserted),
            (Some(record), RowOperation::Delete) => (record, Told::Deleted),
            (Some(record), _) => (record, Told::Row(&row.fields)),
            // A row under a new key that has the external id of a record: that record's own row is not there.
            (None, _) => match self.holder(row, mapping)? {
                Some(record) => (record, Told::Missing),
                None => return Ok(()),
            },
        };
        let Some(state) = self.fold.record(&*self.log, record)?.cloned() else { return Ok(()) };
        let equal = |fields: &[_]| fields.iter().all(|(field, value)| state.held_value(side, *field) == value);
        let as_believed = match told {
            Told::Row(fields) => state.exists_at(side) && equal(fields),
            _ => !state.exists_at(side),
        };
        if as_believed || mapping.owner == Some(side) {
            return Ok(());
        }
        let entries = self.entries_of(record)?;
        let past = Past::of(side, to, lost, entries.iter().map(|(offset, body)| (*offset, body)));
        let Some(past) = past else { return Ok(()) };
        let at = Placed { side, event, row, mapping, record };
        match rewind(&state, side, told, &past, mapping.external_id) {
            Rewound::Nothing => Ok(()),
            Rewound::To(operation, fields) => self.change(&at, operation, fields, ChangeOrigin::Rewound),
            Rewound::AnotherRow => self.change(&at, Operation::Delete, Vec::new(), ChangeOrigin::Rewound),
        }
    }

    /// Every entry about a record that is durable.
    fn entries_of(&self, record: RecordId) -> Result<Vec<(Offset, Body)>> {
        let (mut entries, mut from) = (Vec::new(), Offset(0));
        loop {
            let offsets = self.log.record_offsets(record, from, OFFSETS)?;
            for offset in &offsets {
                entries.push((*offset, read_entry(&*self.log, *offset)?.body));
            }
            match offsets.last() {
                Some(last) if offsets.len() == OFFSETS => from = last.next(),
                _ => return Ok(entries),
            }
        }
    }
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
