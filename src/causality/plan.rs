//! What has to be written to a side so that it holds the current values.

use crate::change::{
    Dot, FieldDef, FieldId, FieldKind, MappingDef, Offset, RecordId, Side, Str, Ticket, TicketValue, Value, Vector,
    WriteKind,
};

use super::state::{RecordState, Register};

/// The write that `side` needs for this record, if any; `cursor` is how far replay to that side has read, and `prefix` is what
/// the external ids that this log makes begin with (see [`crate::change::Catalog::external_id_prefix`]).
///
/// Never a value that the side is known to hold, never a parked or refused field, never while another write is under way, and
/// never to the side that owns the mapping.
pub fn plan(
    state: &RecordState,
    mapping: &MappingDef,
    record: RecordId,
    side: Side,
    cursor: Offset,
    prefix: &str,
) -> Option<Ticket> {
    if state.in_flight(side).is_some() || mapping.owner == Some(side) {
        return None;
    }
    let existence = state.existence.dots.iter().copied().max().unwrap_or(Dot::NOBODY);
    let ticket = |write, values: Vec<TicketValue>| {
        let mut vector = state.seen(side);
        vector.include(existence);
        for value in &values {
            vector.include(value.dot);
        }
        Some(Ticket {
            mapping: state.mapping,
            record,
            side,
            write,
            external_id: external_id(state, mapping, record, side, write, prefix),
            values,
            existence,
            vector,
            cursor,
        })
    };
    match (state.exists(), state.exists_at(side)) {
        (false, false) => None,
        (false, true) if refused_whole(state, side, WriteKind::Delete) => None,
        (false, true) => ticket(WriteKind::Delete, Vec::new()),
        (true, false) if state.partial || refused_whole(state, side, WriteKind::Create) => None,
        (true, false) if !nameable(state, mapping, side) => None,
        (true, false) => ticket(WriteKind::Create, creation(state, mapping, side)),
        (true, true) => {
            let values = stale(state, mapping, side);
            if values.is_empty() { None } else { ticket(WriteKind::Update, values) }
        }
    }
}

/// Whether a row made there could be told to be this record: a row of PostgreSQL gets its key from the database, so it must
/// carry the Salesforce id or the external id. A record that neither side has any longer is made in Salesforce first.
fn nameable(state: &RecordState, mapping: &MappingDef, side: Side) -> bool {
    side == Side::Salesforce
        || state.exists_at(Side::Salesforce)
        || mapping.external_id.and_then(|f| state.field(f)).is_some_and(|r| !r.current.is_null() && r.parked.is_none())
}

fn refused_whole(state: &RecordState, side: Side, write: WriteKind) -> bool {
    state.refused(side).is_some_and(|r| r.write == write)
}

pub(super) fn creation(state: &RecordState, mapping: &MappingDef, side: Side) -> Vec<TicketValue> {
    written(state, mapping)
        .filter(|(field, register)| writable(state, field, side, WriteKind::Create) && !register.current.is_null())
        .map(|(field, register)| carry(field.id, register))
        .collect()
}

fn stale(state: &RecordState, mapping: &MappingDef, side: Side) -> Vec<TicketValue> {
    let refused = state.refused(side);
    written(state, mapping)
        .filter(|(field, register)| {
            register.held(side).value != register.current
                && writable(state, field, side, WriteKind::Update)
                && register.ignored != Some(side)
                && !refused
                    .is_some_and(|r| r.fields.iter().any(|(f, dot)| *f == field.id && register.dots.contains(dot)))
        })
        .map(|(field, register)| carry(field.id, register))
        .collect()
}

fn carry(field: FieldId, register: &Register) -> TicketValue {
    TicketValue {
        field,
        value: register.current.clone(),
        dot: register.dots.iter().copied().max().unwrap_or(Dot::NOBODY),
    }
}

/// The mapped fields that are not parked, with their registers.
fn written<'a>(state: &'a RecordState, mapping: &'a MappingDef) -> impl Iterator<Item = (&'a FieldDef, &'a Register)> {
    state
        .fields
        .iter()
        .filter(|(_, register)| register.parked.is_none())
        .filter_map(|(field, register)| mapping.field(*field).map(|def| (def, register)))
}

/// Whether the side takes the field in such a write.
fn writable(state: &RecordState, field: &FieldDef, side: Side, write: WriteKind) -> bool {
    match (side, write) {
        // The id of a record that Salesforce has no longer says nothing; a record made anew has another.
        (Side::Postgres, _) => field.kind != FieldKind::Id || state.exists_at(Side::Salesforce),
        (Side::Salesforce, _) if field.kind == FieldKind::Id => false,
        (Side::Salesforce, WriteKind::Create) => field.createable,
        (Side::Salesforce, _) => field.updateable,
    }
}

/// The external id by which Salesforce matches a record that it is to create: the record's own, or one made from its number.
fn external_id(
    state: &RecordState,
    mapping: &MappingDef,
    record: RecordId,
    side: Side,
    write: WriteKind,
    prefix: &str,
) -> Option<Str> {
    if side != Side::Salesforce || write != WriteKind::Create {
        return None;
    }
    let field = mapping.external_id?;
    Some(match state.field(field).map(|r| &r.current) {
        // Two logs that write to one org number their records alike.
        Some(Value::Null) | None if prefix.is_empty() => {
            smol_str::format_smolstr!("tidelock-{}-{}", mapping.name, record.0)
        }
        Some(Value::Null) | None => smol_str::format_smolstr!("tidelock-{prefix}-{}-{}", mapping.name, record.0),
        Some(value) => smol_str::format_smolstr!("{value}"),
    })
}

/// What the log believes a side holds in each of a write's fields.
pub fn expected(state: &RecordState, side: Side, field: FieldId) -> Value {
    state.held_value(side, field).clone()
}

/// Everything a side must hold before a delete: each field that was ever set and is still mapped.
pub fn delete_expectations(state: &RecordState, mapping: &MappingDef, side: Side) -> Vec<(FieldId, Value)> {
    state
        .fields
        .iter()
        .filter(|(field, _)| mapping.field(*field).is_some())
        .map(|(field, register)| (*field, register.held(side).value.clone()))
        .collect()
}

/// The join of what both sides have changed: everything the log knows of the record.
pub fn known(state: &RecordState) -> Vector {
    state.counts
}
