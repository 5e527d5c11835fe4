//! What an event of a side's stream means for a record.

use crate::change::{FieldChange, FieldId, MappingDef, Offset, Operation, Side, TicketValue, Value, WriteKind};
use crate::clock::Micros;
use crate::flow::{Own, RowOperation};

use super::state::{InFlight, RecordState, Register};

/// What an event means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that is not known already.
    Nothing,
    /// A write of ours coming back. What the event tells beyond it is observed again, after the echo is applied, with
    /// `automation` set.
    Echo(Offset),
    /// A change by the side's users or automation.
    Change(Operation, Vec<FieldChange>),
}

/// One event, resolved to a record.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// Whose stream.
    pub side: Side,
    /// What happened to the row.
    pub operation: RowOperation,
    /// What the event tells, canonical, by ascending field id.
    pub fields: &'a [(FieldId, Value)],
    /// Whether it carries our mark.
    pub own: Own,
    /// The side's commit time, or an image's own stamp.
    pub committed_at: Micros,
    /// The echo in this event has been applied already; what is left is automation.
    pub automation: bool,
}

/// Decides what `event` means for a record in `state`.
///
/// An image older than the last event or image of its side adds only what was never told; an event older than the last image
/// is part of that image. Within the same second, a copy counts as older, and one that was read because the stream could not tell
/// (which it then waits for) as newer. So does one that was read beside the stream, but for a record that the stream has ended
/// or of which only part is known.
pub fn observe(state: &RecordState, mapping: &MappingDef, event: &Event<'_>) -> Seen {
    let side = event.side;
    if !event.automation
        && event.own.is_ours()
        && let Some(ticket) = echoed(state, event)
    {
        return Seen::Echo(ticket.ticket);
    }
    let alive = state.exists_at(side);
    let image = event.operation.is_image();
    // Salesforce stamps an image with the last edit it contains, in whole seconds. PostgreSQL's images carry a place in its
    // stream instead.
    let told_at = state.told_at(side);
    let in_order = match event.operation {
        RowOperation::Backfill => false,
        // What restored a record that the stream has ended is on its way by the stream as well.
        RowOperation::Reread => !state.partial && alive,
        RowOperation::Missing => !state.partial,
        _ => true,
    };
    let late = image
        && side == Side::Salesforce
        && (event.committed_at < told_at || (event.committed_at == told_at && !in_order));
    let in_image = side == Side::Salesforce && event.committed_at < state.image_at[side.index()];
    if in_image && !image || late && event.committed_at <= state.image_at[side.index()] {
        return Seen::Nothing;
    }
    match event.operation {
        RowOperation::Delete if alive => Seen::Change(Operation::Delete, Vec::new()),
        RowOperation::Missing if alive && !late => Seen::Change(Operation::Delete, Vec::new()),
        // A record that is deleted before it was ever read: remembered, so that an image on its way does not revive it.
        RowOperation::Delete | RowOperation::Missing
            if state.counts == crate::change::Vector::default() && side == Side::Salesforce =>
        {
            Seen::Change(Operation::Delete, Vec::new())
        }
        RowOperation::Delete | RowOperation::Missing => Seen::Nothing,
        RowOperation::Insert
        | RowOperation::Undelete
        | RowOperation::Backfill
        | RowOperation::Image
        | RowOperation::Reread
            if !alive =>
        {
            if late && !state.existence.held(side).dot.is_nobody() {
                return Seen::Nothing;
            }
            let operation =
                if event.operation == RowOperation::Undelete { Operation::Undelete } else { Operation::Insert };
            Seen::Change(operation, differences(state, mapping, event, late))
        }
        RowOperation::Update if !alive && !event.automation => {
            // Told of a change to a record that it never told of: what is known is kept, the rest is still to come.
            if state.existence.held(side).dot.is_nobody() {
                // Where the row belongs to the other side it makes a difference that it was not created just now.
                let foreign = mapping.owner.is_some_and(|owner| owner != side);
                let whole = event.fields.len() >= mapping.fields.len() && !foreign;
                let operation = if whole { Operation::Insert } else { Operation::Update };
                Seen::Change(operation, differences(state, mapping, event, false))
            } else {
                Seen::Nothing
            }
        }
        _ => {
            let fields = differences(state, mapping, event, late);
            if fields.is_empty() && !(image && state.partial) {
                Seen::Nothing
            } else {
                Seen::Change(Operation::Update, fields)
            }
        }
    }
}

/// The fields whose told value is not what the side held. Of a late image, only what was never told. A null that
/// Salesforce says was set or restored counts as told even where nothing was known, or an image on its way would bring back what
/// was there before.
fn differences(state: &RecordState, mapping: &MappingDef, event: &Event<'_>, late: bool) -> Vec<FieldChange> {
    let side = event.side;
    let says_nulls = matches!(event.operation, RowOperation::Update | RowOperation::Undelete);
    let nulls_count = side == Side::Salesforce && says_nulls;
    let untold = |register: Option<&Register>| register.is_none_or(|r| r.held(side).dot.is_nobody());
    let mut changes = Vec::with_capacity(event.fields.len());
    for (field, after) in event.fields {
        let register = state.field(*field);
        let before = register.map_or(&Value::Null, |r| &r.held(side).value);
        if mapping.field(*field).is_some()
            && (before != after || (nulls_count && untold(register)))
            && (!late || untold(register))
        {
            changes.push(FieldChange { field: *field, before: before.clone(), after: after.clone() });
        }
    }
    changes
}

/// The ticket that a marked event is the echo of.
///
/// The mark alone does not tell: what our write to one record sets off in another carries it too. So the ticket must be one of
/// those that the mark names, where it names any, and an update must show a value of the ticket's. A write that landed twice
/// echoes twice, so the event may also be of a closed write: it is of the one that explains it best, the later one if in doubt.
fn echoed<'a>(state: &'a RecordState, event: &Event<'_>) -> Option<&'a InFlight> {
    let fits = |ticket: &&InFlight| {
        event.own.may_be(ticket.ticket)
            && match ticket.write {
                // A record that came back by itself is matched by its creation, or stands beside what that made: then the
                // creation changed at most what it set off here.
                WriteKind::Create if state.exists_at(event.side) && event.operation == RowOperation::Update => {
                    unexplained(state, event, ticket).0 == 0
                }
                WriteKind::Create => {
                    matches!(event.operation, RowOperation::Insert | RowOperation::Undelete | RowOperation::Update)
                }
                WriteKind::Update => event.operation == RowOperation::Update,
                WriteKind::Delete => event.operation == RowOperation::Delete,
            }
    };
    let update = event.operation == RowOperation::Update;
    let shows = |ticket: &&InFlight| !update || event.fields.iter().any(|(field, _)| ticket.value(*field).is_some());
    let agrees = |ticket: &&InFlight| {
        !update || event.fields.iter().any(|(field, value)| ticket.value(*field).is_some_and(|v| v.value == *value))
    };
    let flying = state.in_flight(event.side).filter(fits).filter(shows);
    let named = matches!(event.own, Own::Tickets(..));
    let explains = |ticket: &&InFlight| if named { shows(ticket) } else { agrees(ticket) };
    let closed = state.closed.iter().rev().filter(|_| event.side == Side::Salesforce).filter(fits).filter(explains);
    // Of those that explain it equally well, the first.
    flying.into_iter().chain(closed).min_by_key(|ticket| unexplained(state, event, ticket))
}

/// How badly a ticket explains an event: first by the values that it would have changed and that the event does not show, then
/// by those that the side's automation must have added or replaced.
fn unexplained(state: &RecordState, event: &Event<'_>, ticket: &InFlight) -> (usize, usize) {
    let shown = |field: FieldId| event.fields.iter().any(|(f, _)| *f == field);
    let missing = |v: &&TicketValue| !shown(v.field) && *state.held_value(event.side, v.field) != v.value;
    let automated = |(field, value): &&(FieldId, Value)| ticket.value(*field).is_none_or(|v| v.value != *value);
    (ticket.values.iter().filter(missing).count(), event.fields.iter().filter(automated).count())
}
