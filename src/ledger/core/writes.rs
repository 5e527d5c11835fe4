//! What a side needs, as tickets and writes.

use crate::causality::{self, Held, InFlight, RecordState};
use crate::change::{Body, FieldId, MappingDef, Offset, RecordId, Side, Ticket, Value, WriteKind};
use crate::error::Result;
use crate::flow::{Write, WriteValue};

use super::{Core, untold};

impl Core {
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

pub(super) fn write_of(state: &RecordState, mapping: &MappingDef, ticket: &Ticket) -> Write {
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
