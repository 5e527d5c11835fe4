//! The fold: one entry, one record state, and the decisions that follow.

use crate::change::{
    Body, Change, ChangeOrigin, ConflictKind, Decision, DeletePolicy, Dot, Echo, FieldDef, FieldId, FieldKind,
    ForeignEdit, InitialMerge, MappingDef, Offset, Operation, Outcome, Policy, RecordId, Ruling, Side, Str, Subject,
    Value, WriteKind, WriteResult,
};
use crate::clock::Micros;

use super::state::{Dots, Held, InFlight, Parked, RecordState, Refused, Register};

/// The rules in force, and where the entry stands.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The record's mapping.
    pub mapping: &'a MappingDef,
    /// The record.
    pub record: RecordId,
    /// The entry's offset.
    pub offset: Offset,
    /// When the log took the entry.
    pub recorded_at: Micros,
    /// Whose value stands where clocks cannot tell.
    pub system_of_record: Side,
    /// How far apart two commits must be for `last_write_wins` to go by time.
    pub tolerance: Micros,
    /// How far Salesforce's clock is ahead of PostgreSQL's.
    pub salesforce_ahead: Micros,
}

/// Folds an entry into its record's state. The decisions returned belong in the log right behind the entry, in order.
///
/// A decision entry by a rule changes nothing here, since the change that it follows from has done so; one that parks a
/// conflict gives the parked value its name, and a person's is carried out.
pub fn apply(state: &mut RecordState, body: &Body, cx: &Context<'_>) -> Vec<Decision> {
    let mut decisions = Vec::new();
    match body {
        Body::Change(change) => apply_change(state, change, cx, &mut decisions),
        Body::Echo(echo) => apply_echo(state, echo, cx),
        Body::Ticket(ticket) => {
            let known = state.counts.get(ticket.side);
            state.in_flight[ticket.side.index()] = Some(InFlight::of(cx.offset, ticket, known));
        }
        Body::Outcome(outcome) => apply_outcome(state, outcome, cx),
        Body::Decision(decision) => apply_decision(state, decision, cx),
        Body::Bind(bind) => {
            bind_identity(state, bind.key.as_ref(), bind.salesforce_id.as_ref());
        }
        Body::Notice(_) => {}
    }
    state.existence.settle();
    state.fields.iter_mut().for_each(|(_, register)| register.settle());
    clear_superseded_refusals(state, cx.mapping);
    decisions
}

fn bind_identity(state: &mut RecordState, key: Option<&crate::change::Key>, salesforce_id: Option<&Str>) {
    if let Some(key) = key {
        state.key = Some(key.clone());
    }
    if let Some(id) = salesforce_id {
        state.salesforce_id = Some(id.clone());
    }
}

// -- rule 1: echo ----------------------------------------------------------------------------------------------------------

/// How many closed writes are remembered, where all but the last may have landed unseen.
const CLOSED_MAX: usize = 3;

fn apply_echo(state: &mut RecordState, echo: &Echo, cx: &Context<'_>) {
    let side = echo.source.side;
    bind_identity(state, echo.key.as_ref(), echo.salesforce_id.as_ref());
    state.skips[side.index()] = 0;
    state.last_commit[side.index()] = state.last_commit[side.index()].max(echo.source.committed_at);
    let flying = state.in_flight[side.index()].take_if(|t| t.ticket == echo.ticket);
    let again = state.closed.iter().position(|t| flying.is_none() && t.ticket == echo.ticket);
    let again = again.map(|n| state.closed.remove(n));
    if let (Some(_), Some(flying)) = (&again, &mut state.in_flight[side.index()]) {
        flying.overtaken = true;
    }
    if flying.is_some() {
        forget(state, side);
    }
    if let Some(ticket) = flying.or(again) {
        // An image that was read after the write landed has told what came of it.
        let in_image = side == Side::Salesforce && echo.source.committed_at < state.image_at[side.index()];
        let past = |held: &Held, ticket: &InFlight| in_image && changed_since(held, side, ticket);
        // Where the image told of the row itself, it told every field, those that are empty too.
        let whole = ticket.write == WriteKind::Create && past(state.existence.held(side), &ticket);
        land(state, cx.mapping, side, ticket, |held, ticket| !whole && !past(held, ticket));
    }
}

/// Whether what a side holds was told by a change that the log took after the ticket.
fn changed_since(held: &Held, side: Side, ticket: &InFlight) -> bool {
    held.dot.side == side && held.dot.n > ticket.known
}

/// The side now holds what the ticket carried, in those registers that `takes` allows.
///
/// A row that was made anew holds nothing in the fields that it was not given (a parked one, say): that is nobody's edit.
fn land(
    state: &mut RecordState,
    mapping: &MappingDef,
    side: Side,
    ticket: InFlight,
    takes: impl Fn(&Held, &InFlight) -> bool,
) {
    if ticket.write == WriteKind::Create && !state.exists_at(side) && takes(state.existence.held(side), &ticket) {
        let given = |field: FieldId| {
            let own = side == Side::Salesforce && mapping.field(field).is_some_and(|def| !def.createable);
            own || ticket.value(field).is_some()
        };
        for (_, register) in state.fields.iter_mut().filter(|(field, _)| !given(*field)) {
            register.held[side.index()] = Held::default();
        }
    }
    for value in &ticket.values {
        let held = &mut state.field_mut(value.field).held[side.index()];
        if takes(held, &ticket) {
            *held = Held { value: value.value.clone(), dot: value.dot };
        }
    }
    let held = &mut state.existence.held[side.index()];
    if ticket.write != WriteKind::Update && takes(held, &ticket) {
        *held = Held { value: Value::Bool(ticket.write == WriteKind::Create), dot: ticket.existence };
    }
    remember(state, side, ticket);
}

/// Once a write is known to have landed, those before it do not echo any more.
fn forget(state: &mut RecordState, side: Side) {
    if side == Side::Salesforce {
        state.closed.clear();
    }
}

/// A closed write to Salesforce may echo yet: again, or for the first time where only its second sending was answered.
fn remember(state: &mut RecordState, side: Side, ticket: InFlight) {
    if side == Side::Salesforce {
        state.closed.push(ticket);
        if state.closed.len() > CLOSED_MAX {
            state.closed.remove(0);
        }
    }
}

fn apply_outcome(state: &mut RecordState, outcome: &Outcome, cx: &Context<'_>) {
    let slot = outcome.side.index();
    match &outcome.result {
        WriteResult::Done => {
            if let Some(ticket) = state.in_flight[slot].as_mut().filter(|t| t.ticket == outcome.ticket) {
                ticket.acknowledged_at = Some(cx.recorded_at);
            }
        }
        WriteResult::Silent => {
            if let Some(ticket) = state.in_flight[slot].take_if(|t| t.ticket == outcome.ticket) {
                // Where the side's users changed something since, the stream has told it; where the write was at odds with
                // that, it would have echoed.
                let side = outcome.side;
                let other_row =
                    ticket.write == WriteKind::Create && changed_since(state.existence.held(side), side, &ticket);
                // A record that came back by itself meanwhile is not the one that was created; and after an earlier write
                // has landed again, nothing is known of this one: it is planned anew.
                let unknown = other_row || ticket.overtaken;
                if !unknown {
                    forget(state, side);
                }
                land(state, cx.mapping, side, ticket, |held, ticket| !unknown && !changed_since(held, side, ticket));
            }
        }
        WriteResult::Skipped | WriteResult::Abandoned { .. } => {
            if let Some(ticket) = state.in_flight[slot].take_if(|t| t.ticket == outcome.ticket) {
                if outcome.result == WriteResult::Skipped {
                    state.skips[slot] = state.skips[slot].saturating_add(1);
                }
                remember(state, outcome.side, ticket);
            }
        }
        WriteResult::Refused { .. } => {
            state.skips[slot] = 0;
            if let Some(ticket) = state.in_flight[slot].take_if(|t| t.ticket == outcome.ticket) {
                let mut fields: Vec<_> = ticket.values.iter().map(|v| (v.field, v.dot)).collect();
                // What was refused before is held back along with it, or the two would take turns for ever.
                if let Some(earlier) = state.refused[slot].take().filter(|r| r.write == ticket.write) {
                    fields.extend(earlier.fields.iter().filter(|(f, _)| ticket.value(*f).is_none()));
                    fields.sort_unstable_by_key(|(f, _)| *f);
                }
                state.refused[slot] = Some(Refused {
                    ticket: ticket.ticket,
                    write: ticket.write,
                    fields,
                    existence: ticket.existence,
                    discarded: false,
                });
                remember(state, outcome.side, ticket);
            }
        }
        WriteResult::Retried { .. } => {
            state.refused[slot].take_if(|r| r.ticket == outcome.ticket);
        }
        WriteResult::GivenUp { .. } => {
            if let Some(refused) = state.refused[slot].as_mut().filter(|r| r.ticket == outcome.ticket) {
                refused.discarded = true;
            }
        }
    }
}

/// Rule 5: a later change that supersedes what was refused clears it. What was not created is tried again as soon as it would
/// be created with anything else: a value that was missing may be there now.
fn clear_superseded_refusals(state: &mut RecordState, mapping: &MappingDef) {
    for side in Side::BOTH {
        let superseded = state.refused(side).is_some_and(|refused| {
            refused.fields.iter().any(|(field, dot)| !state.field(*field).is_some_and(|r| r.dots.contains(dot)))
                || (refused.write != WriteKind::Update && !state.existence.dots.contains(&refused.existence))
                || (refused.write != WriteKind::Delete && !state.exists())
                || (refused.write == WriteKind::Create
                    && !super::plan::creation(state, mapping, side)
                        .iter()
                        .map(|v| v.field)
                        .eq(refused.fields.iter().map(|(f, _)| *f)))
        });
        if superseded {
            state.refused[side.index()] = None;
        }
    }
}

// -- rules 2 and 3: changes ------------------------------------------------------------------------------------------------

fn apply_change(state: &mut RecordState, change: &Change, cx: &Context<'_>, decisions: &mut Vec<Decision>) {
    let side = change.source.side;
    bind_identity(state, change.key.as_ref(), change.salesforce_id.as_ref());
    state.counts.include(change.dot);
    state.skips[side.index()] = 0;
    let at = match side {
        Side::Postgres => change.source.committed_at,
        Side::Salesforce => change.source.committed_at - cx.salesforce_ahead,
    };
    if change.origin == ChangeOrigin::Rewound {
        go_back(state, change);
        return;
    }
    let image = matches!(change.origin, ChangeOrigin::Backfill | ChangeOrigin::Repair);
    let stamps = if image { &mut state.image_at } else { &mut state.last_commit };
    stamps[side.index()] = stamps[side.index()].max(change.source.committed_at);
    // An update of a row that was never told is of one that was there, and whose copy is still to come.
    let untold = !state.exists_at(side) && state.existence.held(side).dot.is_nobody();
    let foreign = cx.mapping.owner.is_some_and(|owner| owner != side);
    let found = foreign && untold && (image || change.operation == Operation::Update);
    let edit = Edit { side, dot: change.dot, at, origin: change.origin, operation: change.operation, found, cx };
    match change.operation {
        Operation::Delete => {
            state.partial = false;
            edit.delete(state, decisions);
        }
        Operation::Insert | Operation::Undelete => {
            state.partial = false;
            edit.exist(state, true, decisions);
            edit.fields(state, change, decisions);
        }
        Operation::Update => {
            if image {
                state.partial = false;
            }
            if untold {
                state.partial = true;
                edit.exist(state, true, decisions);
            }
            edit.update_of_deleted(state, decisions);
            edit.fields(state, change, decisions);
        }
    }
}

/// The side itself went back: it holds again what it held before, and nobody edited anything. What stands goes on standing, so
/// the side is written it, and an edit made there since has not seen it.
fn go_back(state: &mut RecordState, change: &Change) {
    let (slot, dot) = (change.source.side.index(), change.dot);
    let exists = match change.operation {
        Operation::Insert | Operation::Undelete => Some(true),
        Operation::Delete => Some(false),
        Operation::Update => None,
    };
    if let Some(exists) = exists {
        state.existence.held[slot] = Held { value: Value::Bool(exists), dot };
    }
    if exists == Some(false) && change.source.side == Side::Postgres {
        // The server gives the key once more, to another row.
        state.key = None;
    }
    if exists == Some(false) && !Side::BOTH.iter().any(|side| state.exists_at(*side)) {
        // Nobody is left to tell the rest of it.
        state.partial = false;
    }
    for field in &change.fields {
        state.field_mut(field.field).held[slot] = Held { value: field.after.clone(), dot };
    }
}

/// The ruling on the existence of a record whose mapping has an owner.
const OWNER: Ruling = Ruling::Owner { foreign_edit: ForeignEdit::Revert };

struct Edit<'a> {
    side: Side,
    dot: Dot,
    /// The commit time by PostgreSQL's clock.
    at: Micros,
    origin: ChangeOrigin,
    operation: Operation,
    /// Whether this tells of a row that was there before the sides were joined, in a mapping that is the other side's.
    found: bool,
    cx: &'a Context<'a>,
}

impl Edit<'_> {
    fn fields(&self, state: &mut RecordState, change: &Change, decisions: &mut Vec<Decision>) {
        if state.fields.is_empty() {
            state.fields.reserve_exact(change.fields.len());
        }
        for field in &change.fields {
            if let Some(def) = self.cx.mapping.field(field.field) {
                self.set_field(state.field_mut(field.field), def, field.after.clone(), decisions);
            }
        }
    }

    fn decision(
        &self,
        subject: Subject,
        conflict: ConflictKind,
        ruling: Ruling,
        stands: (Value, Dots),
        lost: (Value, Dots),
    ) -> Decision {
        Decision {
            mapping: self.cx.mapping.id,
            record: self.cx.record,
            subject,
            conflict,
            about: self.cx.offset,
            ruling,
            winner: stands.0,
            winner_dots: stands.1.to_vec(),
            loser: lost.0,
            loser_dots: lost.1.to_vec(),
        }
    }

    fn own_dots(&self) -> Dots {
        Dots::from_slice(&[self.dot])
    }

    /// Rule 2 for one field.
    fn set_field(&self, register: &mut Register, def: &FieldDef, value: Value, decisions: &mut Vec<Decision>) {
        let before = register.held(self.side).dot;
        register.held[self.side.index()] = Held { value: value.clone(), dot: self.dot };
        if def.owner.is_some_and(|owner| owner != self.side) {
            if value.is_null() && self.operation == Operation::Insert {
                // A row that begins without a value that only the other side gives: nobody edited anything.
                return;
            }
            decisions.extend(self.foreign(register, def, value, before));
            return;
        }
        register.ignored = None;
        if register.dots.contains(&before) {
            self.take(register, value);
        } else if value == register.current {
            register.dots.push(self.dot);
        } else if let Some(earlier) = self.renew_challenge(register, &value) {
            let stands = (value, self.own_dots());
            let ruling = Ruling::LaterOfSameSide;
            decisions.push(self.decision(
                Subject::Field(def.id),
                ConflictKind::UpdateOriginDiffers,
                ruling,
                stands,
                earlier,
            ));
        } else {
            self.conflict(register, def, value, decisions);
        }
        self.agree(register, def, decisions);
    }

    fn take(&self, register: &mut Register, value: Value) {
        register.current = value;
        register.dots = self.own_dots();
        register.written_at = self.at;
    }

    /// While a value of this side is parked, its later edit takes that value's place: which of both stands still waits.
    /// Returns the earlier value; `None` where nothing of this side is parked.
    fn renew_challenge(&self, register: &mut Register, value: &Value) -> Option<(Value, Dots)> {
        let parked = register.parked.as_mut().filter(|p| p.side == self.side)?;
        let earlier_value = std::mem::replace(&mut parked.value, value.clone());
        let earlier_dots = std::mem::replace(&mut parked.dots, self.own_dots());
        Some((earlier_value, earlier_dots))
    }

    /// A side that has come round to the current value leaves nothing to decide.
    fn agree(&self, register: &mut Register, def: &FieldDef, decisions: &mut Vec<Decision>) {
        let Register { current, held, parked, .. } = register;
        let Some(parked) = parked.take_if(|p| p.value == *current || held[p.side.index()].value == *current) else {
            return;
        };
        let (parked, stands) = (*parked, (current.clone(), register.dots.clone()));
        if parked.value == register.current {
            register.dots.extend(parked.dots.iter().copied());
        }
        let lost = (parked.value, parked.dots);
        let mut decision = self.decision(Subject::Field(def.id), parked.conflict, Ruling::Agreed, stands, lost);
        decision.about = parked.decision;
        decisions.push(decision);
    }

    /// Rule 6: the field belongs to the other side.
    fn foreign(&self, register: &mut Register, def: &FieldDef, value: Value, before: Dot) -> Option<Decision> {
        if value == register.current {
            register.dots.push(self.dot);
            return None;
        }
        if value == Value::Bool(false) && register.dots.iter().all(|dot| dot.is_nobody()) {
            // A boolean has no null: false is what a row holds where nobody has set it yet.
            register.current = value;
            register.dots.push(self.dot);
            return None;
        }
        if self.is_found(register, before) {
            self.take(register, value);
            return None;
        }
        register.ignored = (def.foreign_edit == ForeignEdit::Ignore).then_some(self.side);
        let ruling = Ruling::Owner { foreign_edit: def.foreign_edit };
        let stands = (register.current.clone(), register.dots.clone());
        Some(self.decision(Subject::Field(def.id), ConflictKind::ForeignEdit, ruling, stands, (value, self.own_dots())))
    }

    /// Neither had seen the other, and the values differ.
    fn conflict(&self, register: &mut Register, def: &FieldDef, value: Value, decisions: &mut Vec<Decision>) {
        let same_side = register.dots.iter().any(|d| d.side == self.side && !d.is_nobody());
        let kind = if self.origin == ChangeOrigin::Backfill {
            ConflictKind::InitialMerge
        } else if self.operation == Operation::Insert {
            ConflictKind::InsertExists
        } else {
            ConflictKind::UpdateOriginDiffers
        };
        let (newcomer_wins, ruling) = if same_side {
            (Some(true), Ruling::LaterOfSameSide)
        } else if def.owner.is_some() {
            // Only the owner's edits come here.
            (Some(true), Ruling::Owner { foreign_edit: def.foreign_edit })
        } else if self.origin == ChangeOrigin::Backfill {
            match self.cx.mapping.initial_merge {
                InitialMerge::Salesforce => (Some(self.side == Side::Salesforce), Ruling::InitialMerge),
                InitialMerge::Postgres => (Some(self.side == Side::Postgres), Ruling::InitialMerge),
                InitialMerge::Review => (None, Ruling::Parked),
            }
        } else {
            let ruling = Ruling::Policy { policy: def.policy };
            match def.policy {
                Policy::SalesforceWins => (Some(self.side == Side::Salesforce), ruling),
                Policy::PostgresWins => (Some(self.side == Side::Postgres), ruling),
                Policy::LastWriteWins => (Some(self.later_than(register.written_at)), ruling),
                Policy::Review => (None, Ruling::Parked),
            }
        };
        let newcomer = (value, self.own_dots());
        let incumbent = (register.current.clone(), register.dots.clone());
        let subject = Subject::Field(def.id);
        match newcomer_wins {
            Some(true) => {
                self.take(register, newcomer.0.clone());
                decisions.push(self.decision(subject, kind, ruling, newcomer, incumbent));
            }
            Some(false) => decisions.push(self.decision(subject, kind, ruling, incumbent, newcomer)),
            None => {
                let (value, dots) = newcomer.clone();
                // The decision's own offset is filled in when its entry is folded.
                let parked = Parked { decision: self.cx.offset, conflict: kind, side: self.side, value, dots };
                if let Some(earlier) = register.parked.replace(Box::new(parked)) {
                    let lost = (earlier.value, earlier.dots);
                    decisions.push(self.decision(subject, kind, Ruling::LaterOfSameSide, newcomer.clone(), lost));
                }
                decisions.push(self.decision(subject, kind, ruling, incumbent, newcomer));
            }
        }
    }

    /// `last_write_wins`: by commit time, and by the system of record where the clocks cannot tell.
    fn later_than(&self, incumbent: Micros) -> bool {
        if (self.at - incumbent).abs() <= self.cx.tolerance {
            self.side == self.cx.system_of_record
        } else {
            self.at > incumbent
        }
    }

    /// Whether the mapping belongs to the other side.
    fn is_foreign(&self) -> bool {
        self.cx.mapping.owner.is_some_and(|owner| owner != self.side)
    }

    /// What was found stands until the owner's word: nobody made an edit. `before` is what the side held.
    fn is_found(&self, register: &Register, before: Dot) -> bool {
        self.found && before.is_nobody() && register.dots.iter().all(|dot| dot.is_nobody())
    }

    /// Rule 6 for the existence: what belongs to the other side is neither created nor deleted here.
    fn foreign_existence(&self, register: &mut Register, value: Value, before: Dot) -> Option<Decision> {
        if value == register.current {
            register.dots.push(self.dot);
            return None;
        }
        if self.is_found(register, before) {
            self.take(register, value);
            return None;
        }
        let stands = (register.current.clone(), register.dots.clone());
        let lost = (value, self.own_dots());
        Some(self.decision(Subject::Existence, ConflictKind::ForeignEdit, OWNER, stands, lost))
    }

    /// Rule 2 for the existence.
    fn exist(&self, state: &mut RecordState, exists: bool, decisions: &mut Vec<Decision>) {
        let value = Value::Bool(exists);
        let register = &mut state.existence;
        let before = register.held(self.side).dot;
        register.held[self.side.index()] = Held { value: value.clone(), dot: self.dot };
        if self.is_foreign() {
            decisions.extend(self.foreign_existence(register, value, before));
        } else if register.dots.contains(&before) {
            self.take(register, value);
        } else if value == register.current {
            register.dots.push(self.dot);
        } else {
            let same_side = register.dots.iter().any(|d| d.side == self.side && !d.is_nobody());
            let update_wins = self.cx.mapping.delete == DeletePolicy::UpdateWins;
            let (wins, ruling) = if same_side {
                (true, Ruling::LaterOfSameSide)
            } else if self.cx.mapping.owner.is_some() {
                (true, OWNER)
            } else {
                (exists == update_wins, Ruling::DeletePolicy { policy: self.cx.mapping.delete })
            };
            let newcomer = (value, self.own_dots());
            let incumbent = (register.current.clone(), register.dots.clone());
            let (stands, lost) = if wins {
                self.take(register, newcomer.0.clone());
                (newcomer, incumbent)
            } else {
                (incumbent, newcomer)
            };
            decisions.push(self.decision(Subject::Existence, ConflictKind::DeleteMissing, ruling, stands, lost));
        }
    }

    /// Rule 3: an update by a side that has not seen the other's delete.
    fn update_of_deleted(&self, state: &mut RecordState, decisions: &mut Vec<Decision>) {
        if state.exists() || state.existence.seen_by(self.side) {
            return;
        }
        let deleted = (state.existence.current.clone(), state.existence.dots.clone());
        let edited = (Value::Bool(true), self.own_dots());
        if self.is_foreign() {
            decisions.push(self.decision(Subject::Existence, ConflictKind::UpdateDeleted, OWNER, deleted, edited));
            return;
        }
        let ruling = Ruling::DeletePolicy { policy: self.cx.mapping.delete };
        let (stands, lost) = match self.cx.mapping.delete {
            DeletePolicy::UpdateWins => {
                self.take(&mut state.existence, Value::Bool(true));
                state.existence.held[self.side.index()] = Held { value: Value::Bool(true), dot: self.dot };
                (edited, deleted)
            }
            DeletePolicy::DeleteWins => (deleted, edited),
        };
        decisions.push(self.decision(Subject::Existence, ConflictKind::UpdateDeleted, ruling, stands, lost));
    }

    /// Rule 3: a delete, perhaps of what its author had not seen.
    fn delete(&self, state: &mut RecordState, decisions: &mut Vec<Decision>) {
        if self.is_foreign() {
            self.exist(state, false, decisions);
            return;
        }
        let unseen: Dots = state
            .fields
            .iter()
            .filter(|(field, r)| {
                !r.seen_by(self.side)
                    && self.cx.mapping.field(*field).is_some_and(|def| counts_as_unseen(def, r, self.side))
            })
            .flat_map(|(_, r)| r.dots.iter().copied())
            .collect();
        if !unseen.is_empty() && state.exists() {
            let owned = self.cx.mapping.owner.is_some();
            let ruling = if owned { OWNER } else { Ruling::DeletePolicy { policy: self.cx.mapping.delete } };
            let edited = (Value::Bool(true), unseen);
            let deleted = (Value::Bool(false), self.own_dots());
            if !owned && self.cx.mapping.delete == DeletePolicy::UpdateWins {
                state.existence.held[self.side.index()] = Held { value: Value::Bool(false), dot: self.dot };
                decisions.push(self.decision(
                    Subject::Existence,
                    ConflictKind::DeleteOriginDiffers,
                    ruling,
                    edited,
                    deleted,
                ));
                return;
            }
            decisions.push(self.decision(
                Subject::Existence,
                ConflictKind::DeleteOriginDiffers,
                ruling,
                deleted,
                edited,
            ));
        }
        self.exist(state, false, decisions);
    }
}

/// Whether a field's unseen value stands in the way of a delete: values that are only told by the other side (ids, stamps,
/// formulas) do not, nor does one whose foreign edit was left where it is.
fn counts_as_unseen(def: &FieldDef, register: &Register, side: Side) -> bool {
    let system = def.owner.is_some_and(|owner| owner != side) && !(def.createable || def.updateable);
    !system && def.kind != FieldKind::Id && register.ignored != Some(side)
}

// -- a person's decisions --------------------------------------------------------------------------------------------------

fn apply_decision(state: &mut RecordState, decision: &Decision, cx: &Context<'_>) {
    let Subject::Field(field) = decision.subject else {
        if matches!(decision.ruling, Ruling::Person { .. }) {
            state.existence.current = decision.winner.clone();
            state.existence.dots = Dots::from_slice(&decision.winner_dots);
        }
        return;
    };
    match &decision.ruling {
        Ruling::Parked => {
            if let Some(parked) = state.field_mut(field).parked.as_mut().filter(|p| p.decision == decision.about) {
                parked.decision = cx.offset;
            }
        }
        Ruling::Person { .. } => {
            decision.winner_dots.iter().for_each(|dot| state.counts.include(*dot));
            let register = state.field_mut(field);
            register.current = decision.winner.clone();
            register.dots = Dots::from_slice(&decision.winner_dots);
            register.written_at = cx.recorded_at;
            register.parked = None;
        }
        _ => {}
    }
}

/// What a person wants to stand in a parked field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The value of this side.
    Side(Side),
    /// Another value.
    Value(Value),
}

/// The decision entries by which a person ends a parked conflict: one per value that loses. Empty when nothing is parked.
pub fn resolve(
    state: &RecordState,
    mapping: &MappingDef,
    record: RecordId,
    field: FieldId,
    choice: Choice,
    person: &str,
    system_of_record: Side,
) -> Vec<Decision> {
    let Some((register, parked)) = state.field(field).and_then(|r| r.parked.as_ref().map(|p| (r, p))) else {
        return Vec::new();
    };
    let incumbent = (register.current.clone(), register.dots.clone());
    let challenger = (parked.value.clone(), parked.dots.clone());
    let decision = |stands: (Value, Dots), lost: (Value, Dots)| Decision {
        mapping: mapping.id,
        record,
        subject: Subject::Field(field),
        conflict: parked.conflict,
        about: parked.decision,
        ruling: Ruling::Person { name: Str::new(person) },
        winner: stands.0,
        winner_dots: stands.1.to_vec(),
        loser: lost.0,
        loser_dots: lost.1.to_vec(),
    };
    match choice {
        Choice::Side(side) if side == parked.side => vec![decision(challenger, incumbent)],
        Choice::Side(_) => vec![decision(incumbent, challenger)],
        Choice::Value(value) if value == incumbent.0 => vec![decision(incumbent, challenger)],
        Choice::Value(value) if value == challenger.0 => vec![decision(challenger, incumbent)],
        Choice::Value(value) => {
            // A value of a person's own is a change of nobody's side; it takes the system of record's next dot.
            let dot = Dot { side: system_of_record, n: state.counts.get(system_of_record) + 1 };
            let own = (value, Dots::from_slice(&[dot]));
            vec![decision(own.clone(), challenger), decision(own, incumbent)]
        }
    }
}

/// Whether a ticket may be closed as silent: acknowledged, and the side's stream has passed that moment.
pub fn silent(ticket: &InFlight, stream_passed: Micros) -> bool {
    ticket.acknowledged_at.is_some_and(|at| stream_passed > at)
}
