//! No silent loss, told from the entries alone.
//!
//! This knows nothing of the rules' code and decides nothing. It follows, per record and register (a field, or the record's
//! existence), what each side holds by its own stream's word, and which value stands by the log's word. A change must then
//!
//! * replace a value that its author held, or
//! * come to the value that stands, or
//! * be named by a decision behind it, as the winner over what stood or as the loser (a parked one is a loser that may yet
//!   win), or
//! * delete a record of which its author had seen everything.
//!
//! Besides: a side's changes of a record are numbered without holes, PostgreSQL's come in the order of its log, and the
//! value that a change says was there before is the one that the side held.

use std::collections::BTreeMap;

use crate::change::{
    Body, Catalog, Change, ChangeOrigin, ConflictKind, Decision, Dot, Echo, FieldDef, FieldId, FieldKind, ForeignEdit,
    Lsn, MappingId, Notice, Offset, Operation, Outcome, Position, RecordId, Ruling, Side, StreamId, Subject, Ticket,
    Value, Vector, WriteKind, WriteResult,
};
use crate::clock::Micros;

/// Takes what is wrong.
type Report<'a> = &'a mut dyn FnMut(Offset, String);

/// A value and the change that it comes from.
type Held = (Value, Dot);

/// One field of a record, or its existence.
struct Register {
    stands: Value,
    dots: Vec<Dot>,
    holds: [Held; 2],
    parked: Option<(Value, Vec<Dot>)>,
    ignored: Option<Side>,
}

impl Register {
    fn new(value: Value) -> Self {
        let held = (value.clone(), Dot::NOBODY);
        Self { stands: value, dots: vec![Dot::NOBODY], holds: [held.clone(), held], parked: None, ignored: None }
    }

    fn seen_by(&self, side: Side) -> bool {
        self.dots.contains(&self.holds[side.index()].1)
    }

    fn take(&mut self, value: Value, dots: Vec<Dot>) {
        (self.stands, self.dots) = (value, dots);
    }

    /// Holding an equal value is having seen it.
    fn settle(&mut self) {
        for (value, dot) in &self.holds {
            if *value == self.stands && !self.dots.contains(dot) {
                self.dots.push(*dot);
            }
        }
    }
}

/// How many closed writes of a record may echo yet, at most.
const CLOSED_MAX: usize = 3;

/// A write under way.
struct Flying {
    offset: Offset,
    ticket: Ticket,
    /// How many changes of the side were known when it was planned.
    known: u64,
    /// The write before it has landed again since.
    overtaken: bool,
}

/// What the entries have told of one record.
struct Record {
    existence: Register,
    fields: BTreeMap<FieldId, Register>,
    counts: Vector,
    flying: [Option<Flying>; 2],
    /// Closed writes to Salesforce, which may echo yet.
    closed: Vec<Flying>,
    image_at: Micros,
}

impl Record {
    fn new() -> Self {
        Self {
            existence: Register::new(Value::Bool(false)),
            fields: BTreeMap::new(),
            counts: Vector::default(),
            flying: [None, None],
            closed: Vec::new(),
            image_at: 0,
        }
    }

    fn field(&mut self, field: FieldId) -> &mut Register {
        self.fields.entry(field).or_insert_with(|| Register::new(Value::Null))
    }

    /// The write is over. `landed`: those before it are, too.
    fn remember(&mut self, flying: Flying, landed: bool) {
        if flying.ticket.side == Side::Postgres {
            return;
        }
        if landed {
            self.closed.clear();
        }
        self.closed.push(flying);
        if self.closed.len() > CLOSED_MAX {
            self.closed.remove(0);
        }
    }

    fn settle(&mut self) {
        self.existence.settle();
        self.fields.values_mut().for_each(Register::settle);
    }
}

/// A change whose decisions are still being read.
struct Open {
    offset: Offset,
    change: Change,
    decisions: Vec<Decision>,
}

/// The fate of every change so far.
#[derive(Default)]
pub struct Trail {
    catalog: Catalog,
    records: BTreeMap<RecordId, Record>,
    open: Option<Open>,
    /// What a person's decision replaces and the next entry has to name.
    owed: Option<(RecordId, FieldId, Vec<Dot>)>,
    /// The place of PostgreSQL's last event.
    place: Option<(StreamId, Lsn, u32)>,
    followed: u64,
}

impl Trail {
    /// How many changes of a register were followed.
    pub fn followed(&self) -> u64 {
        self.followed
    }

    /// How many fields wait for a person.
    pub fn parked(&self) -> u64 {
        self.records.values().flat_map(|r| r.fields.values()).filter(|r| r.parked.is_some()).count() as u64
    }

    /// Takes the next entry.
    pub fn entry(&mut self, offset: Offset, body: &Body, report: Report<'_>) {
        if let Body::Decision(decision) = body {
            let person = matches!(decision.ruling, Ruling::Person { .. });
            match &mut self.open {
                Some(open) if !person && open.change.record == decision.record => {
                    open.decisions.push(decision.clone());
                    return;
                }
                _ => self.close(report),
            }
            self.person(offset, decision, report);
            return;
        }
        self.close(report);
        self.settle_debt(offset, report);
        match body {
            Body::Change(change) => {
                self.open = Some(Open { offset, change: change.clone(), decisions: Vec::new() });
            }
            Body::Echo(echo) => self.echo(echo),
            Body::Ticket(ticket) => {
                let record = self.record(ticket.record);
                let known = record.counts.get(ticket.side);
                record.flying[ticket.side.index()] =
                    Some(Flying { offset, ticket: ticket.clone(), known, overtaken: false });
            }
            Body::Outcome(outcome) => self.outcome(outcome),
            Body::Notice(Notice::Configured { catalog }) => self.catalog = (**catalog).clone(),
            Body::Notice(Notice::StreamOpened { side: Side::Postgres, .. }) => self.place = None,
            Body::Bind(_) | Body::Notice(_) | Body::Decision(_) => {}
        }
    }

    /// Nothing comes after.
    pub fn finish(&mut self, tail: Offset, report: Report<'_>) {
        self.close(report);
        self.settle_debt(tail, report);
    }

    fn record(&mut self, record: RecordId) -> &mut Record {
        self.records.entry(record).or_insert_with(Record::new)
    }

    /// The open change and its decisions are complete.
    fn close(&mut self, report: Report<'_>) {
        let Some(open) = self.open.take() else { return };
        self.in_order(&open, report);
        let Self { catalog, records, followed, .. } = self;
        let record = records.entry(open.change.record).or_insert_with(Record::new);
        let mut fate = Fate { open: &open, record, catalog, followed, report };
        fate.numbered();
        if open.change.origin == ChangeOrigin::Rewound {
            fate.goes_back();
        } else {
            fate.existence();
            fate.fields();
        }
        record.settle();
    }

    /// A database's changes come in the order of its log.
    fn in_order(&mut self, open: &Open, report: Report<'_>) {
        let captured = matches!(open.change.origin, ChangeOrigin::Captured | ChangeOrigin::Automation);
        if let (true, Position::Postgres { stream, commit_lsn, index }) = (captured, &open.change.source.position) {
            let place = (*stream, *commit_lsn, *index);
            if let Some((_, lsn, n)) = self.place.filter(|p| p.0 == *stream && *p > place) {
                report(open.offset, format!("the change at {commit_lsn}+{index} comes after the one at {lsn}+{n}"));
            }
            self.place = Some(place);
        }
    }

    // -- our own writes ----------------------------------------------------------------------------------------------------

    fn echo(&mut self, echo: &Echo) {
        let side = echo.source.side;
        let record = self.records.entry(echo.record).or_insert_with(Record::new);
        let flying = record.flying[side.index()].take_if(|f| f.offset == echo.ticket);
        let again = record.closed.iter().position(|f| flying.is_none() && f.offset == echo.ticket);
        let again = again.map(|n| record.closed.remove(n));
        if let (Some(_), Some(overtaken)) = (&again, &mut record.flying[side.index()]) {
            overtaken.overtaken = true;
        }
        let first = flying.is_some();
        if let Some(flying) = flying.or(again) {
            let past = side == Side::Salesforce && echo.source.committed_at < record.image_at;
            land(record, &self.catalog, &flying, past);
            record.remember(flying, first);
        }
        record.settle();
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let record = self.records.entry(outcome.record).or_insert_with(Record::new);
        let slot = &mut record.flying[outcome.side.index()];
        match outcome.result {
            WriteResult::Silent => {
                if let Some(flying) = slot.take_if(|f| f.offset == outcome.ticket) {
                    let known = !flying.overtaken && !flying.is_of_another_row(record);
                    if known {
                        land(record, &self.catalog, &flying, true);
                    }
                    record.remember(flying, known);
                }
            }
            WriteResult::Skipped | WriteResult::Abandoned { .. } | WriteResult::Refused { .. } => {
                if let Some(flying) = slot.take_if(|f| f.offset == outcome.ticket) {
                    record.remember(flying, false);
                }
            }
            WriteResult::Done | WriteResult::Retried { .. } | WriteResult::GivenUp { .. } => {}
        }
        record.settle();
    }

    // -- people ------------------------------------------------------------------------------------------------------------

    /// A person ends a parked conflict, by one entry per value that loses: with a value of their own, both do.
    fn person(&mut self, offset: Offset, decision: &Decision, report: Report<'_>) {
        let record = self.records.entry(decision.record).or_insert_with(Record::new);
        let Subject::Field(field) = decision.subject else {
            let register = &mut record.existence;
            let lost = |dot: &Dot| decision.loser_dots.contains(dot);
            if !register.dots.iter().any(lost) || register.dots.iter().any(|dot| !dot.is_nobody() && !lost(dot)) {
                report(offset, "somebody decided about a record's existence against something else than stood".into());
            }
            register.take(decision.winner.clone(), decision.winner_dots.clone());
            record.settle();
            return;
        };
        decision.winner_dots.iter().for_each(|dot| record.counts.include(*dot));
        let register = record.field(field);
        let mut losers = match register.parked.take() {
            Some((_, parked)) => register.dots.iter().copied().chain(parked).collect(),
            None => self.owed.take().filter(|o| (o.0, o.1) == (decision.record, field)).map_or(Vec::new(), |o| o.2),
        };
        if losers.is_empty() || decision.loser_dots.iter().any(|dot| !losers.contains(dot)) {
            report(offset, format!("a person decided about field {}, where no such conflict was open", field.0));
        }
        losers.retain(|dot| !decision.loser_dots.contains(dot) && !decision.winner_dots.contains(dot));
        register.take(decision.winner.clone(), decision.winner_dots.clone());
        record.settle();
        self.owed = (!losers.is_empty()).then_some((decision.record, field, losers));
    }

    /// What a person replaced is named.
    fn settle_debt(&mut self, offset: Offset, report: Report<'_>) {
        if let Some((_, field, dots)) = self.owed.take() {
            let dot = dots.first().copied().unwrap_or(Dot::NOBODY);
            report(offset, format!("a person replaced change {dot} of field {} without its being named", field.0));
        }
    }
}

impl Flying {
    /// Whether the log took this from the side since the write was planned.
    fn is_older_than(&self, held: &Held) -> bool {
        held.1.side == self.ticket.side && held.1.n > self.known
    }

    /// Whether the side has told of the row by itself since it was to be made.
    fn is_of_another_row(&self, record: &Record) -> bool {
        let existence = &record.existence.holds[self.ticket.side.index()];
        self.ticket.write == WriteKind::Create && self.is_older_than(existence)
    }
}

/// The side holds what the ticket carried; `unless_changed`: but for what the log took from the side since.
fn land(record: &mut Record, catalog: &Catalog, flying: &Flying, unless_changed: bool) {
    let side = flying.ticket.side;
    let other_row = unless_changed && flying.is_of_another_row(record);
    let changed = |held: &Held| flying.is_older_than(held);
    let write = flying.ticket.write;
    let existence = &mut record.existence.holds[side.index()];
    if write != WriteKind::Update && !(unless_changed && changed(existence)) {
        if write == WriteKind::Create && existence.0 == Value::Bool(false) {
            // A row that was made anew holds nothing in the fields that it was not given.
            let ticket = &flying.ticket;
            let given = |field: FieldId| {
                let def = definition(catalog, ticket.mapping, field);
                let own = side == Side::Salesforce && def.is_some_and(|def| !def.createable);
                own || ticket.values.iter().any(|v| v.field == field)
            };
            for (_, register) in record.fields.iter_mut().filter(|(field, _)| !given(**field)) {
                register.holds[side.index()] = (Value::Null, Dot::NOBODY);
            }
        }
        *existence = (Value::Bool(write == WriteKind::Create), flying.ticket.existence);
    }
    for value in &flying.ticket.values {
        let held = &mut record.field(value.field).holds[side.index()];
        if !(other_row || unless_changed && changed(held)) {
            *held = (value.value.clone(), value.dot);
        }
    }
}

/// What becomes of one change.
struct Fate<'a> {
    open: &'a Open,
    record: &'a mut Record,
    catalog: &'a Catalog,
    followed: &'a mut u64,
    report: Report<'a>,
}

impl Fate<'_> {
    fn wrong(&mut self, what: impl Into<String>) {
        (self.report)(self.open.offset, what.into());
    }

    /// Nothing of a side is missing or there twice.
    fn numbered(&mut self) {
        let change = &self.open.change;
        let (dot, side) = (change.dot, change.source.side);
        let before = self.record.counts.get(side);
        if dot.side != side || dot.n != before + 1 {
            self.wrong(format!("the change is numbered {dot}, after {before} of {side}"));
        }
        self.record.counts.include(dot);
        if side == Side::Salesforce && matches!(change.origin, ChangeOrigin::Backfill | ChangeOrigin::Repair) {
            self.record.image_at = self.record.image_at.max(change.source.committed_at);
        }
    }

    /// The side holds again what it held before, which is nobody's edit.
    fn goes_back(&mut self) {
        let change = &self.open.change;
        let (side, dot) = (change.source.side, change.dot);
        if change.operation != Operation::Update {
            let exists = Value::Bool(change.operation != Operation::Delete);
            self.record.existence.holds[side.index()] = (exists, dot);
        }
        for field in &change.fields {
            let held = &mut self.record.field(field.field).holds[side.index()];
            let before = std::mem::replace(held, (field.after.clone(), dot));
            if before.0 != field.before {
                self.wrong(format!("{side} is said to have held another value of field {} before", field.field.0));
            }
        }
    }

    fn existence(&mut self) {
        let change = &self.open.change;
        let (side, dot) = (change.source.side, change.dot);
        match change.operation {
            Operation::Insert | Operation::Undelete => self.exists(true),
            Operation::Update => {
                let held = &self.record.existence.holds[side.index()];
                if held.0 == Value::Bool(false) && held.1.is_nobody() {
                    self.exists(true);
                }
                let existence = &mut self.record.existence;
                if existence.stands == Value::Bool(false) && !existence.seen_by(side) {
                    match self.open.decisions.iter().find(|d| d.conflict == ConflictKind::UpdateDeleted) {
                        Some(d) if d.winner_dots.contains(&dot) => {
                            existence.take(Value::Bool(true), vec![dot]);
                            existence.holds[side.index()] = (Value::Bool(true), dot);
                        }
                        Some(d) if d.loser_dots.contains(&dot) => {}
                        _ => self.wrong("an edit of a record that the other side had deleted was lost in silence"),
                    }
                }
            }
            Operation::Delete => {
                if self.deletes() {
                    self.exists(false);
                }
            }
        }
    }

    fn exists(&mut self, exists: bool) {
        let mut register = std::mem::replace(&mut self.record.existence, Register::new(Value::Bool(false)));
        self.register(&mut register, Subject::Existence, &Value::Bool(exists));
        self.record.existence = register;
    }

    /// What a delete's author had not seen is on record. Returns whether the delete goes on.
    fn deletes(&mut self) -> bool {
        let change = &self.open.change;
        let (side, dot) = (change.source.side, change.dot);
        if self.catalog.mapping(change.mapping).and_then(|m| m.owner).is_some_and(|owner| owner != side) {
            // Whoever does not own the mapping deletes nothing: that is named, or the record is gone already.
            return true;
        }
        let def = |field: &FieldId| definition(self.catalog, change.mapping, *field);
        let unseen: Vec<Dot> = self
            .record
            .fields
            .iter()
            .filter(|(field, r)| !r.seen_by(side) && def(field).is_some_and(|def| counts(def, r, side)))
            .flat_map(|(_, r)| r.dots.iter().copied())
            .collect();
        if unseen.is_empty() || self.record.existence.stands == Value::Bool(false) {
            return true;
        }
        let decision = self.open.decisions.iter().find(|d| {
            d.conflict == ConflictKind::DeleteOriginDiffers
                && (d.winner_dots.contains(&dot) || d.loser_dots.contains(&dot))
                && unseen.iter().all(|dot| d.winner_dots.contains(dot) || d.loser_dots.contains(dot))
        });
        match decision {
            Some(decision) if decision.loser_dots.contains(&dot) => {
                self.record.existence.holds[side.index()] = (Value::Bool(false), dot);
                false
            }
            Some(_) => true,
            None => {
                self.wrong("a record was deleted in silence, with edits that the one who deleted it had not seen");
                true
            }
        }
    }

    fn fields(&mut self) {
        for field in &self.open.change.fields {
            let id = field.field;
            let Some(def) = definition(self.catalog, self.open.change.mapping, id) else { continue };
            let side = self.open.change.source.side;
            let mut register = self.record.fields.remove(&id).unwrap_or_else(|| Register::new(Value::Null));
            if register.holds[side.index()].0 != field.before {
                self.wrong(format!("{side} is said to have held another value of {} before than it did", def.name));
            }
            let foreign = def.owner.is_some_and(|owner| owner != side);
            if foreign && field.after.is_null() && self.open.change.operation == Operation::Insert {
                // A row that begins without what only the other side gives.
                register.holds[side.index()] = (Value::Null, self.open.change.dot);
            } else {
                if !foreign {
                    register.ignored = None;
                }
                self.register(&mut register, Subject::Field(id), &field.after);
            }
            self.record.fields.insert(id, register);
        }
    }

    /// One register of the change: it replaces what its author held, or comes to the same, or a decision names it.
    fn register(&mut self, register: &mut Register, subject: Subject, value: &Value) {
        *self.followed += 1;
        let (side, dot) = (self.open.change.source.side, self.open.change.dot);
        let seen = register.seen_by(side);
        register.holds[side.index()] = (value.clone(), dot);
        let mut named = false;
        // A delete against unseen edits, and an edit against an unseen delete, are not between two values of one register.
        let between = |d: &&Decision| {
            d.subject == subject
                && !matches!(d.conflict, ConflictKind::DeleteOriginDiffers | ConflictKind::UpdateDeleted)
        };
        for decision in self.open.decisions.iter().filter(between) {
            let (wins, loses) = (decision.winner_dots.contains(&dot), decision.loser_dots.contains(&dot));
            let parked = register.parked.as_ref().is_some_and(|(_, dots)| *dots == decision.loser_dots);
            match &decision.ruling {
                Ruling::Agreed => continue,
                Ruling::Parked if loses => register.parked = Some((value.clone(), vec![dot])),
                Ruling::LaterOfSameSide if wins && parked => register.parked = Some((value.clone(), vec![dot])),
                _ if wins => {
                    if let Some(lost) = register.dots.iter().find(|d| !decision.loser_dots.contains(d) && **d != dot) {
                        (self.report)(
                            self.open.offset,
                            format!("change {lost} of {} was replaced unseen and unnamed", name(subject)),
                        );
                    }
                    register.take(value.clone(), vec![dot]);
                }
                Ruling::Owner { foreign_edit } if loses => {
                    register.ignored = (*foreign_edit == ForeignEdit::Ignore).then_some(side);
                }
                _ if loses => {}
                _ => continue,
            }
            named = true;
        }
        if !named {
            if seen {
                register.take(value.clone(), vec![dot]);
            } else if *value == register.stands {
                register.dots.push(dot);
            } else {
                self.wrong(format!(
                    "change {dot} of {} was lost in silence: nothing says what became of it",
                    name(subject)
                ));
            }
        }
        self.agreed(register, subject);
    }

    /// A parked value that is the one that stands, or that its side has given up, needs nobody any more.
    fn agreed(&mut self, register: &mut Register, subject: Subject) {
        for decision in self.open.decisions.iter().filter(|d| d.subject == subject && d.ruling == Ruling::Agreed) {
            match register.parked.take_if(|(_, dots)| *dots == decision.loser_dots) {
                Some((value, dots)) if value == register.stands => register.dots.extend(dots),
                Some(_) => {}
                None => {
                    self.wrong(format!("a conflict about {} is said to have ended that was not open", name(subject)));
                }
            }
        }
    }
}

fn definition(catalog: &Catalog, mapping: MappingId, field: FieldId) -> Option<&FieldDef> {
    catalog.mapping(mapping).and_then(|m| m.field(field))
}

/// Whether a value that the deleter had not seen stands in the way of a delete: one that only the other side gives does not.
fn counts(def: &FieldDef, register: &Register, side: Side) -> bool {
    let given = def.owner.is_some_and(|owner| owner != side) && !(def.createable || def.updateable);
    !given && def.kind != FieldKind::Id && register.ignored != Some(side)
}

fn name(subject: Subject) -> String {
    match subject {
        Subject::Field(field) => format!("field {}", field.0),
        Subject::Existence => "the record's existence".into(),
    }
}
