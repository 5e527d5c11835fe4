#![allow(clippy::unwrap_used)]

use super::*;
use crate::change::{
    Body, Change, ChangeOrigin, Dot, Echo, Lsn, MappingId, Offset, Position, RecordId, Source, StreamId, Ticket,
    TicketValue, Transaction, Vector, Who, WriteKind,
};

const SIDE: Side = Side::Postgres;
const EXTERNAL: FieldId = FieldId(0);
const PHONE: FieldId = FieldId(1);
const TITLE: FieldId = FieldId(2);

/// A record's entries, and the state that they add up to at PostgreSQL.
struct History {
    entries: Vec<Body>,
    state: RecordState,
}

fn value(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::text(text) }
}

fn source(lsn: u64) -> Source {
    Source {
        side: SIDE,
        position: Position::Postgres { stream: StreamId(0), commit_lsn: Lsn(lsn), index: 0 },
        transaction: Transaction::default(),
        committed_at: 0,
        who: Who::default(),
    }
}

impl History {
    fn new() -> Self {
        Self { entries: Vec::new(), state: RecordState::new(MappingId(0)) }
    }

    /// PostgreSQL tells this at a place of its stream.
    fn told(mut self, lsn: u64, operation: Operation, fields: &[(FieldId, &str)]) -> Self {
        let dot = Dot { side: SIDE, n: self.state.counts.get(SIDE) + 1 };
        let change = Change {
            mapping: MappingId(0),
            record: RecordId(0),
            origin: ChangeOrigin::Rewound,
            source: source(lsn),
            operation,
            key: None,
            salesforce_id: None,
            dot,
            vector: Vector::default(),
            fields: fields
                .iter()
                .map(|(field, after)| FieldChange {
                    field: *field,
                    before: self.state.held_value(SIDE, *field).clone(),
                    after: value(after),
                })
                .collect(),
        };
        self.fold(Body::Change(change));
        self
    }

    /// A write of ours lands there.
    fn landed(mut self, lsn: u64, write: WriteKind, fields: &[(FieldId, &str)]) -> Self {
        let values = fields.iter().map(|(f, v)| TicketValue { field: *f, value: value(v), dot: Dot::NOBODY }).collect();
        let ticket = Ticket {
            mapping: MappingId(0),
            record: RecordId(0),
            side: SIDE,
            write,
            values,
            existence: Dot::NOBODY,
            external_id: None,
            vector: Vector::default(),
            cursor: Offset(0),
        };
        let offset = Offset(self.entries.len() as u64);
        self.fold(Body::Ticket(ticket));
        let echo = Echo {
            mapping: MappingId(0),
            record: RecordId(0),
            source: source(lsn),
            ticket: offset,
            key: None,
            salesforce_id: None,
        };
        self.fold(Body::Echo(echo));
        self
    }

    fn fold(&mut self, body: Body) {
        let catalog = crate::ledger::testing::catalog(&["Phone", "Title"]);
        let cx = crate::causality::Context {
            mapping: &catalog.mappings[0],
            record: RecordId(0),
            offset: Offset(self.entries.len() as u64),
            recorded_at: 0,
            system_of_record: Side::Salesforce,
            tolerance: 0,
            salesforce_ahead: 0,
        };
        crate::causality::apply(&mut self.state, &body, &cx);
        self.entries.push(body);
    }

    /// What is found where the side went back to a place and the row is read now.
    fn rewound(&self, to: u64, row: Option<&[(FieldId, &str)]>) -> Rewound {
        let entries = self.entries.iter().enumerate().map(|(n, body)| (Offset(n as u64), body));
        let Some(past) = Past::of(SIDE, Lsn(to), Some(StreamId(0)), entries) else { return Rewound::Nothing };
        let row: Option<Vec<_>> = row.map(|row| row.iter().map(|(f, v)| (*f, value(v))).collect());
        let told = row.as_deref().map_or(Told::Missing, Told::Row);
        rewind(&self.state, SIDE, told, &past, Some(EXTERNAL))
    }
}

fn to(operation: Operation, fields: &[(FieldId, &str, &str)]) -> Rewound {
    let fields = fields.iter().map(|(f, a, b)| FieldChange { field: *f, before: value(a), after: value(b) });
    Rewound::To(operation, fields.collect())
}

/// Inserted at 10, edited by a user at 20 and 30, written by us at 40.
fn edited() -> History {
    History::new()
        .told(10, Operation::Insert, &[(EXTERNAL, "x"), (PHONE, "1"), (TITLE, "")])
        .told(20, Operation::Update, &[(PHONE, "2")])
        .told(30, Operation::Update, &[(PHONE, "3")])
        .landed(40, WriteKind::Update, &[(TITLE, "t")])
}

#[test]
fn what_the_side_held_before_is_nobodys_edit() {
    let row = |phone, title| [(EXTERNAL, "x"), (PHONE, phone), (TITLE, title)];
    assert_eq!(
        edited().rewound(20, Some(&row("2", ""))),
        to(Operation::Update, &[(PHONE, "3", "2"), (TITLE, "t", "")])
    );
    // The side may have gone back to any place after that which is known.
    assert_eq!(
        edited().rewound(10, Some(&row("2", ""))),
        to(Operation::Update, &[(PHONE, "3", "2"), (TITLE, "t", "")])
    );
    assert_eq!(edited().rewound(0, Some(&row("1", ""))), to(Operation::Update, &[(PHONE, "3", "1"), (TITLE, "t", "")]));
    assert_eq!(edited().rewound(20, Some(&row("3", "t"))), Rewound::Nothing);
    // It told nothing after that place, so nothing of it was lost.
    assert_eq!(edited().rewound(40, Some(&row("2", ""))), Rewound::Nothing);
}

#[test]
fn an_edit_after_the_side_went_back_is_based_on_what_it_held_then() {
    let row = [(EXTERNAL, "x"), (PHONE, "new"), (TITLE, "t")];
    assert_eq!(edited().rewound(20, Some(&row)), to(Operation::Update, &[(PHONE, "3", "2")]));
    // Its field has not changed since: the edit has seen everything.
    let row = [(EXTERNAL, "x"), (PHONE, "3"), (TITLE, "new")];
    assert_eq!(edited().rewound(30, Some(&row)), to(Operation::Update, &[(TITLE, "t", "")]));
    assert_eq!(edited().rewound(35, Some(&[(EXTERNAL, "x"), (PHONE, "new")])), Rewound::Nothing);
}

#[test]
fn a_row_that_went_or_came_with_the_sides_own_log() {
    let born = || History::new().landed(30, WriteKind::Create, &[(EXTERNAL, "x"), (PHONE, "1")]);
    assert_eq!(born().rewound(20, None), to(Operation::Delete, &[]));
    assert_eq!(born().rewound(30, None), Rewound::Nothing, "it was deleted since");
    // Its key was given to another row since.
    assert_eq!(born().rewound(20, Some(&[(EXTERNAL, "y"), (PHONE, "7")])), Rewound::AnotherRow);
    assert_eq!(born().rewound(20, Some(&[(EXTERNAL, "x"), (PHONE, "7")])), to(Operation::Update, &[(PHONE, "1", "")]));
    // A delete by somebody who had seen neither of the lost edits.
    let lost = to(Operation::Update, &[(PHONE, "3", "2"), (TITLE, "t", "")]);
    assert_eq!(edited().rewound(20, None), lost);

    let deleted = edited().told(50, Operation::Delete, &[]);
    let row = [(EXTERNAL, "x"), (PHONE, "3"), (TITLE, "")];
    assert_eq!(deleted.rewound(30, Some(&row)), to(Operation::Insert, &[(TITLE, "t", "")]));
    assert_eq!(deleted.rewound(50, Some(&row)), Rewound::Nothing, "another row with its key");
    assert_eq!(deleted.rewound(30, None), Rewound::Nothing);
}
