//! What must hold, checked by somebody who knows what every editor really saw.

use std::collections::{BTreeMap, BTreeSet};

use tidelock::change::{
    Body, Change, ChangeOrigin, Dot, Entry, FieldId, FieldKind, ForeignEdit, Offset, RecordId, Side, Value, WriteKind,
};
use tidelock::log::{ChangeLog, ReadLimit, StateRead};

use super::sides::{ID, Said, canonical};
use super::world::World;

pub(crate) fn entries(log: &dyn ChangeLog) -> Vec<(Offset, Entry)> {
    let mut all = Vec::new();
    let mut next = log.head();
    while next < log.tail() {
        let page = log.read(next, ReadLimit::default()).unwrap();
        all.extend(page.entries().map(Result::unwrap));
        next = page.next();
    }
    all
}

/// The log, for whoever looks for the cause of a failure.
pub(crate) fn print(world: &World) {
    for (offset, entry) in entries(&world.log).into_iter().take(400) {
        eprintln!("entry {offset}: {}", serde_json::to_string(&entry).unwrap());
    }
}

type Check = Result<(), String>;

macro_rules! must {
    ($holds:expr, $($why:tt)+) => {
        if !$holds {
            return Err(format!($($why)+));
        }
    };
}

/// Everything, when all is quiet and nothing waits for a person.
pub(crate) fn check(world: &mut World) -> Check {
    converged(world)?;
    let open = world.log.scan_state(&[tidelock::ledger::keys::OPEN_CONFLICT], None, 100).unwrap();
    must!(open.is_empty(), "nothing is parked, but the log says that conflicts are open: {open:?}");
    let entries = entries(&world.log);
    heard(world, &entries)?;
    no_return(world, &entries)?;
    proven(world)
}

/// The log proves itself: sound entries, the state is their fold, and nothing was lost in silence.
fn proven(world: &World) -> Check {
    let report = tidelock::ledger::verify::verify(&world.log, &mut |_, _| {}).map_err(|e| e.explain())?;
    must!(report.state_compared, "the state was not compared");
    match report.problems.first() {
        Some(problem) => Err(format!("verify: {:?}: {}", problem.offset, problem.what)),
        None => Ok(()),
    }
}

fn ignored(world: &World, field: usize) -> bool {
    let def = &world.catalog.mappings[0].fields[field];
    def.owner.is_some() && def.foreign_edit == ForeignEdit::Ignore
}

/// Both sides hold the same rows with the same canonical values, and the log knows it.
fn converged(world: &mut World) -> Check {
    let mut of_salesforce: BTreeMap<Value, Vec<Value>> = BTreeMap::new();
    for (id, row) in world.salesforce.rows.iter().filter(|(_, r)| r.alive) {
        of_salesforce.insert(Value::Text(id.clone()), row.values.clone());
    }
    let mut keys = BTreeMap::new();
    for (key, row) in &world.postgres.rows {
        let values = world.postgres.common.seen(&row.values);
        let Some(twin) = of_salesforce.remove(&values[ID]) else {
            return Err(format!("row {key} of PostgreSQL {values:?} has no living twin in Salesforce"));
        };
        for (n, (p, s)) in values.iter().zip(&twin).enumerate() {
            must!(p == s || ignored(world, n), "row {key}: field {n} differs: postgres {p:?}, salesforce {s:?}");
        }
        keys.insert(World::postgres_key(*key), (values, twin));
    }
    must!(of_salesforce.is_empty(), "Salesforce has rows that PostgreSQL has not: {of_salesforce:?}");
    for record in world.records() {
        let Some(state) = world.core.record(record).unwrap().cloned() else { continue };
        must!(state.in_flight.iter().all(Option::is_none), "record {} has a write in flight at rest", record.0);
        must!(!state.partial || !state.exists(), "record {} is known in part only", record.0);
        if !state.exists() {
            continue;
        }
        let Some((p, s)) = state.key.as_ref().and_then(|k| keys.remove(k)) else {
            return Err(format!("record {} exists, but has no row: {state:?}", record.0));
        };
        for (n, (p, s)) in p.iter().zip(&s).enumerate() {
            let field = FieldId(n as u16);
            let held = Side::BOTH.map(|side| state.held_value(side, field).clone());
            must!(
                held == [p.clone(), s.clone()],
                "record {}: the log believes {held:?} in field {n}, there is {p:?}, {s:?}",
                record.0
            );
            let current = state.field(field).map_or(Value::Null, |r| r.current.clone());
            must!(
                current == *s || ignored(world, n),
                "record {}: current {current:?} in field {n}, there is {s:?}",
                record.0
            );
        }
    }
    must!(keys.is_empty(), "rows without a record: {keys:?}");
    Ok(())
}

/// Every event is in the log once, in order, with what its author really saw.
fn heard(world: &World, entries: &[(Offset, Entry)]) -> Check {
    let mut by_event: BTreeMap<(Side, u64, u32), Vec<(Offset, &Change)>> = BTreeMap::new();
    let mut echoes: BTreeSet<(Side, u64, u32)> = BTreeSet::new();
    let mut last: BTreeMap<(Side, RecordId), (u64, u32)> = BTreeMap::new();
    let mut records: BTreeMap<Offset, RecordId> = BTreeMap::new();
    for (offset, entry) in entries {
        let (source, record) = match &entry.body {
            Body::Change(change) => {
                let retold = change.source.transaction.id.is_empty();
                let read =
                    matches!(change.origin, ChangeOrigin::Repair | ChangeOrigin::Backfill | ChangeOrigin::Rewound);
                if retold || read {
                    continue;
                }
                let (number, index) = World::number(&change.source.position);
                by_event.entry((change.source.side, number, index)).or_default().push((*offset, change));
                (&change.source, change.record)
            }
            Body::Ticket(ticket) => {
                records.insert(*offset, ticket.record);
                continue;
            }
            Body::Echo(echo) => {
                let (number, index) = World::number(&echo.source.position);
                let fresh = echoes.insert((echo.source.side, number, index));
                must!(
                    fresh || echo.key.is_none() && echo.source.side == Side::Postgres,
                    "entry {offset}: event {number} is an echo twice"
                );
                (&echo.source, echo.record)
            }
            _ => continue,
        };
        let place = World::number(&source.position);
        let before = last.insert((source.side, record), place);
        must!(before.is_none_or(|b| b <= place), "entry {offset}: record {} is told out of order", record.0);
    }
    for side in Side::BOTH {
        for told in world.stream(side) {
            let Said::Row { marked, fields, saw, written, operation, ticket, .. } = &told.said else { continue };
            let changes = by_event.remove(&(side, told.number, told.index)).unwrap_or_default();
            must!(
                changes.len() < 2 || world.shape.seeded,
                "event {} of {side} is {} changes",
                told.number,
                changes.len()
            );
            if world.imaged || world.shape.seeded || world.shape.losses {
                continue;
            }
            let change = changes.first().map(|(_, c)| *c);
            // A write that was sent twice may land in a row that has become another record meanwhile; it is an edit there.
            let elsewhere = change.is_some_and(|c| ticket.is_some_and(|t| records.get(&t) != Some(&c.record)));
            if !marked && change.is_none() {
                let news = fields.iter().any(|(f, v)| saw[usize::from(f.0)] != *v);
                let existence = !matches!(operation, tidelock::flow::RowOperation::Update);
                must!(!news && !existence, "event {} of {side} ({told:?}) is not in the log", told.number);
            }
            for (field, value) in fields {
                let n = usize::from(field.0);
                let ours = written.iter().find(|(f, _)| f == field && !elsewhere).map(|(_, v)| v);
                let before = ours.unwrap_or(&saw[n]);
                let told_as = change.and_then(|c| c.fields.iter().find(|f| f.field == *field));
                match told_as {
                    Some(c) => must!(
                        (c.before == *before || told.said_is_whole()) && c.after == *value,
                        "event {} of {side}, field {n}: the log has {:?} to {:?}, but {before:?} became {value:?} ({told:?})",
                        told.number,
                        c.before,
                        c.after
                    ),
                    None => must!(
                        before == value || told.said_is_whole(),
                        "event {} of {side}, field {n}: {before:?} became {value:?} unheard ({told:?})",
                        told.number
                    ),
                }
            }
        }
    }
    Ok(())
}

impl super::sides::Told {
    /// A row that begins to exist: what was held before its time may be what it holds now.
    fn said_is_whole(&self) -> bool {
        matches!(
            &self.said,
            Said::Row { operation: tidelock::flow::RowOperation::Insert | tidelock::flow::RowOperation::Undelete, .. }
        )
    }
}

/// No ticket carries a value back to a side that has moved past it.
fn no_return(world: &World, entries: &[(Offset, Entry)]) -> Check {
    // A change replaces what its side held: the dots that it follows, by record and field.
    let mut follows: BTreeMap<(RecordId, FieldId, Dot), BTreeSet<Dot>> = BTreeMap::new();
    let mut held: BTreeMap<(RecordId, FieldId, Side), Dot> = BTreeMap::new();
    let mut tickets: BTreeMap<Offset, &tidelock::change::Ticket> = BTreeMap::new();
    // Who ever came to a value: one that was set anew may return.
    let mut authors: BTreeMap<(RecordId, FieldId, &Value), BTreeSet<Dot>> = BTreeMap::new();
    for (offset, entry) in entries {
        match &entry.body {
            Body::Change(change) => {
                for field in &change.fields {
                    authors.entry((change.record, field.field, &field.after)).or_default().insert(change.dot);
                    let before = held.insert((change.record, field.field, change.source.side), change.dot);
                    // What a side holds again since it went back follows nothing.
                    if let Some(before) = before.filter(|_| change.origin != ChangeOrigin::Rewound) {
                        let mut past = follows.get(&(change.record, field.field, before)).cloned().unwrap_or_default();
                        past.insert(before);
                        follows.insert((change.record, field.field, change.dot), past);
                    }
                }
            }
            Body::Ticket(ticket) => {
                for value in &ticket.values {
                    // What is put back because the field belongs to the other side is meant to return.
                    if world.catalog.mappings[0].fields[usize::from(value.field.0)].owner.is_some() {
                        continue;
                    }
                    let at = held.get(&(ticket.record, value.field, ticket.side));
                    let past = at.and_then(|dot| follows.get(&(ticket.record, value.field, *dot)));
                    let anew = authors.get(&(ticket.record, value.field, &value.value));
                    let anew = past.is_some_and(|p| anew.is_some_and(|a| a.iter().any(|dot| !p.contains(dot))));
                    must!(
                        past.is_none_or(|p| !p.contains(&value.dot)) || anew || ticket.write == WriteKind::Create,
                        "entry {offset}: {} is written {} in field {}, which it has moved past",
                        ticket.side,
                        value.value,
                        value.field.0
                    );
                }
                tickets.insert(*offset, ticket);
            }
            Body::Echo(echo) => {
                if let Some(ticket) = tickets.get(&echo.ticket) {
                    let side = echo.source.side;
                    if ticket.write == WriteKind::Create && (echo.key.is_some() || echo.salesforce_id.is_some()) {
                        // Another row: what the one before it held is not what its editors see.
                        held.retain(|(record, _, at), _| (*record, *at) != (echo.record, side));
                    }
                    for value in &ticket.values {
                        held.insert((echo.record, value.field, side), value.dot);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// No conflict in a history where everybody had seen everything.
pub(crate) fn calm(world: &World) -> Check {
    for (offset, entry) in entries(&world.log) {
        if let Body::Decision(decision) = entry.body {
            return Err(format!("entry {offset}: a conflict where nobody was ahead: {decision:?}"));
        }
    }
    Ok(())
}

/// A written value that the side is known to hold is a write for nothing.
pub(crate) fn writes(world: &World) -> Check {
    for (side, write) in &world.plans {
        for value in &write.values {
            let create = write.kind != WriteKind::Update;
            must!(create || value.expected != value.value, "ticket {} writes what {side} holds", write.ticket);
            let kind: &FieldKind = &world.catalog.mappings[0].fields[usize::from(value.field.0)].kind;
            must!(canonical(kind, &value.value) == value.value, "ticket {} is not canonical", write.ticket);
        }
    }
    Ok(())
}
