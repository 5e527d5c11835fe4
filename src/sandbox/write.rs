//! Transactions: what a request writes is checked, normalised, applied with the org's automation, and told as events.
//!
//! A transaction is a list of steps, each with the row that it replaced. A failed operation takes back its own steps; a
//! failed transaction takes back all. What is told follows from the first and the last state of each row.

use serde_json::{Map, Value as Json};
use smol_str::SmolStr;

use super::config::NoOpUpdate;
use super::normalise::normalise;
use super::refusal::Refusal;
use super::schema::{Field, ID, Kind, OnDelete};
use super::soql::View;
use super::standard::STAGES;
use super::state::State;
use super::table::{Row, get, key, put};
use super::value::Value;
use super::{id, tell};

/// Who writes, and by which interface.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) user: SmolStr,
    pub(crate) origin: String,
}

/// One operation of a transaction.
#[derive(Debug)]
pub(crate) enum Op<'a> {
    Create {
        object: usize,
        fields: &'a Map<String, Json>,
    },
    Update {
        object: usize,
        id: &'a str,
        fields: &'a Map<String, Json>,
    },
    Upsert {
        object: usize,
        field: usize,
        key: &'a Json,
        fields: &'a Map<String, Json>,
        update_only: bool,
    },
    Delete {
        object: Option<usize>,
        id: &'a str,
    },
    Undelete {
        id: &'a str,
    },
    /// An operation that cannot be tried. It keeps its place in the list of outcomes.
    Refused(Refusal),
}

/// What a successful operation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) id: SmolStr,
    pub(crate) created: bool,
}

/// How an operation ended.
pub(crate) type Outcome = Result<Done, Refusal>;

/// One replaced row.
pub(crate) struct Step {
    pub(crate) object: usize,
    pub(crate) position: usize,
    /// The row as it was; `None` when it was not there.
    pub(crate) before: Option<Row>,
    /// Told in an event of its own, after that of the steps before it.
    pub(crate) split: bool,
    /// Told although no value differs.
    pub(crate) forced: bool,
    /// Not told whatever differs.
    pub(crate) untold: bool,
}

/// Runs `ops` as one transaction, all of them or each that can be. Outcomes are in the order of `ops`.
pub(crate) fn transact(
    state: &mut State,
    actor: &Actor,
    now_ms: i64,
    ops: &[Op<'_>],
    all_or_none: bool,
) -> Vec<Outcome> {
    let mut transaction = Transaction { state, actor, now_ms: now_ms.div_euclid(1000) * 1000, steps: Vec::new() };
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(ops.len());
    for op in ops {
        let start = transaction.steps.len();
        let outcome = transaction.run(op);
        if outcome.is_err() {
            transaction.take_back(start);
        }
        outcomes.push(outcome);
    }
    if all_or_none && outcomes.iter().any(Result::is_err) {
        transaction.take_back(0);
        for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
            let message =
                "Record rolled back because not all records were valid and the request was using AllOrNone header";
            *outcome = Err(Refusal::new("ALL_OR_NONE_OPERATION_ROLLED_BACK", message));
        }
        return outcomes;
    }
    let (steps, now_ms) = (transaction.steps, transaction.now_ms);
    match &mut state.open {
        Some(open) => open.extend(steps),
        None => tell::tell(state, actor, now_ms, steps),
    }
    outcomes
}

/// Opens a transaction that the following calls of [`transact`] are parts of.
pub(crate) fn begin(state: &mut State) {
    state.open = Some(Vec::new());
}

/// Commits the open transaction and tells of it.
pub(crate) fn commit(state: &mut State, actor: &Actor, now_ms: i64) {
    let steps = state.open.take().unwrap_or_default();
    tell::tell(state, actor, now_ms.div_euclid(1000) * 1000, steps);
}

/// Takes back all of the open transaction.
pub(crate) fn roll_back(state: &mut State) {
    let steps = state.open.take().unwrap_or_default();
    undo(state, steps);
}

fn undo(state: &mut State, steps: Vec<Step>) {
    for step in steps.into_iter().rev() {
        let table = &mut state.tables[step.object];
        match step.before {
            Some(before) => {
                table.replace(step.position, before);
            }
            None => table.pop(),
        }
    }
}

struct Transaction<'a> {
    state: &'a mut State,
    actor: &'a Actor,
    /// In whole seconds, as all stamps are.
    now_ms: i64,
    steps: Vec<Step>,
}

type Assignments = Vec<(usize, Option<Value>)>;

impl Transaction<'_> {
    fn run(&mut self, op: &Op<'_>) -> Outcome {
        match op {
            Op::Create { object, fields } => self.create(*object, fields, None),
            Op::Update { object, id, fields } => {
                let position = self.existing(*object, id)?;
                self.update(*object, position, fields, None)
            }
            Op::Upsert { object, field, key, fields, update_only } => {
                self.upsert(*object, *field, key, fields, *update_only)
            }
            Op::Delete { object, id } => self.delete(*object, id),
            Op::Undelete { id } => self.undelete(id),
            Op::Refused(refusal) => Err(refusal.clone()),
        }
    }

    fn take_back(&mut self, start: usize) {
        let steps = self.steps.split_off(start);
        undo(self.state, steps);
    }

    fn view(&self) -> View<'_> {
        View { schema: &self.state.schema, tables: &self.state.tables, now_ms: self.now_ms }
    }

    /// The position of a record that is there and not deleted.
    fn existing(&self, object: usize, given: &str) -> Result<usize, Refusal> {
        let label = &self.state.schema.objects[object].label;
        let malformed = || Refusal::new("MALFORMED_ID", format!("{label} ID: id value of incorrect type: {given}"));
        let id = id::normalise(given).ok_or_else(malformed)?;
        if !id.starts_with(self.state.schema.objects[object].key_prefix.as_str()) {
            return Err(malformed());
        }
        let missing = || Refusal::new("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id").status(404);
        let table = &self.state.tables[object];
        let position = table.find(&id).ok_or_else(missing)?;
        if table.is_deleted(position) {
            return Err(Refusal::new("ENTITY_IS_DELETED", "entity is deleted").status(404));
        }
        Ok(position)
    }

    /// Refuses the write of a record that is locked.
    fn lock(&mut self, id: Option<&str>) -> Result<(), Refusal> {
        let faults = &self.state.faults;
        let named = id.is_some_and(|id| faults.locked_ids.iter().any(|locked| locked == id));
        if named || self.state.rng.chance(faults.lock_rows) {
            let which = id.unwrap_or("unknown");
            let message = format!("unable to obtain exclusive access to this record or 1 records: {which}");
            return Err(Refusal::new("UNABLE_TO_LOCK_ROW", message));
        }
        Ok(())
    }

    fn create(&mut self, object: usize, fields: &Map<String, Json>, key: Option<(usize, Value)>) -> Outcome {
        let assignments = self.assignments(object, fields, true, key)?;
        self.lock(None)?;
        let definition = &self.state.schema.objects[object];
        let system = definition.system.clone();
        let prefix = definition.key_prefix.clone();
        let mut row: Row = definition.fields.iter().map(|f| f.default.clone()).collect();
        let numbered = definition.fields.iter().position(|f| f.auto_number);
        let format = numbered.map(|f| definition.fields[f].picklist.first().cloned().unwrap_or_default());
        for (field, value) in &assignments {
            put(&mut row, *field, value.clone());
        }
        if let Some(field) = numbered {
            let number = self.state.tables[object].new_number();
            let text = format!("{}{number:08}", format.unwrap_or_default());
            put(&mut row, field, Some(Value::Text(text.into())));
        }
        if let Some(owner) = system.owner.filter(|owner| get(&row, *owner).is_none()) {
            put(&mut row, owner, Some(Value::Text(self.actor.user.clone())));
        }
        self.derive(object, None, &mut row, &assignments);
        self.apply_flows(object, None, &mut row)?;
        self.check(object, None, &row)?;
        let id = self.state.tables[object].new_id(&prefix);
        put(&mut row, ID, Some(Value::Text(id.clone())));
        put(&mut row, system.created_date, Some(Value::DateTime(self.now_ms)));
        put(&mut row, system.created_by, Some(self.author(&id)));
        self.stamp(object, &mut row, &id);
        let position = self.state.tables[object].insert(row);
        self.step(object, position, None, false);
        self.after_flows(object, position, None)?;
        Ok(Done { id, created: true })
    }

    /// Who is on record for a change. The first user of an org has made itself.
    fn author(&self, own: &SmolStr) -> Value {
        let user = if self.actor.user.is_empty() { own } else { &self.actor.user };
        Value::Text(user.clone())
    }

    fn stamp(&self, object: usize, row: &mut Row, id: &SmolStr) {
        let system = &self.state.schema.objects[object].system;
        put(row, system.modified_date, Some(Value::DateTime(self.now_ms)));
        put(row, system.modified_by, Some(self.author(id)));
        put(row, system.stamp, Some(Value::DateTime(self.now_ms)));
    }

    fn step(&mut self, object: usize, position: usize, before: Option<Row>, split: bool) {
        self.steps.push(Step { object, position, before, split, forced: false, untold: false });
    }

    fn update(&mut self, object: usize, position: usize, fields: &Map<String, Json>, skip: Option<usize>) -> Outcome {
        let assignments = self.assignments(object, fields, false, None)?;
        let before = self.state.tables[object].row(position).cloned().unwrap_or_default();
        let id: SmolStr = get(&before, ID).and_then(Value::text).unwrap_or_default().into();
        self.lock(Some(&id))?;
        let mut row = before.clone();
        for (field, value) in assignments.iter().filter(|(field, _)| Some(*field) != skip) {
            put(&mut row, *field, value.clone());
        }
        self.derive(object, Some(&before), &mut row, &assignments);
        self.apply_flows(object, Some(&before), &mut row)?;
        let done = Done { id: id.clone(), created: false };
        let same = row == before;
        if same && self.state.settings.no_op_update == NoOpUpdate::Silent {
            return Ok(done);
        }
        self.check(object, Some((position, &before)), &row)?;
        self.stamp(object, &mut row, &id);
        self.state.tables[object].replace(position, row);
        self.steps.push(Step {
            object,
            position,
            before: Some(before.clone()),
            split: false,
            forced: same && self.state.settings.no_op_update == NoOpUpdate::Event,
            untold: same && self.state.settings.no_op_update == NoOpUpdate::Stamp,
        });
        self.after_flows(object, position, Some(&before))?;
        Ok(done)
    }

    fn upsert(
        &mut self,
        object: usize,
        field: usize,
        given: &Json,
        fields: &Map<String, Json>,
        update_only: bool,
    ) -> Outcome {
        let definition = &self.state.schema.objects[object].fields[field];
        // Keys are numbers in some bodies and text in every path.
        let text = match given {
            Json::Number(n) if definition.kind.is_text() => Json::String(n.to_string()),
            other => other.clone(),
        };
        let name = definition.name.clone();
        let value = normalise(definition, &text)?
            .ok_or_else(|| Refusal::new("MISSING_ARGUMENT", format!("{name} not specified")))?;
        let found = self.matching(object, field, &value, None);
        match found.as_slice() {
            [] if update_only => Err(Refusal::not_found("The requested resource does not exist")),
            [] => self.create(object, fields, Some((field, value))),
            [position] => self.update(object, *position, fields, Some(field)),
            several => {
                let ids: Vec<&str> = several.iter().map(|p| self.state.id_at(object, *p)).collect();
                let message = format!("{name}: more than one record found for external id field: [{}]", ids.join(", "));
                Err(Refusal::new("DUPLICATE_EXTERNAL_ID", message).status(300))
            }
        }
    }

    /// The records, not deleted and not at `except`, whose `field` has `value`.
    fn matching(&self, object: usize, field: usize, value: &Value, except: Option<usize>) -> Vec<usize> {
        let table = &self.state.tables[object];
        let exact = self.state.schema.objects[object].fields[field].case_sensitive;
        let same = |position: &usize| {
            let own = table.row(*position).and_then(|row| get(row, field));
            Some(*position) != except
                && own.is_some_and(|own| if exact { own == value } else { own.order(value).is_eq() })
        };
        match table.lookup(field, &key(value)) {
            Some(rows) => rows.iter().copied().filter(same).collect(),
            None => (0..table.len()).filter(|p| !table.is_deleted(*p)).filter(same).collect(),
        }
    }

    /// The values that a body gives to fields, looked up and normalised.
    fn assignments(
        &self,
        object: usize,
        fields: &Map<String, Json>,
        create: bool,
        key: Option<(usize, Value)>,
    ) -> Result<Assignments, Refusal> {
        let definition = &self.state.schema.objects[object];
        let mut assignments: Assignments = Vec::with_capacity(fields.len() + 1);
        for (name, given) in fields {
            if name.eq_ignore_ascii_case("attributes") {
                continue;
            }
            if let Some(index) = definition.field(name) {
                let field = &definition.fields[index];
                check_writable(field, create)?;
                assignments.push((index, normalise(field, given)?));
            } else if let Some(index) = definition.relationship(name) {
                check_writable(&definition.fields[index], create)?;
                assignments.push((index, self.parent_by_key(&definition.fields[index], given)?));
            } else {
                return Err(Refusal::no_field(name, &definition.name));
            }
        }
        if let Some((field, value)) = key {
            assignments.retain(|(f, _)| *f != field);
            assignments.push((field, Some(value)));
        }
        for (index, value) in &assignments {
            let field = &definition.fields[*index];
            if let (Kind::Reference, Some(value)) = (field.kind, value) {
                self.check_reference(field, value)?;
            }
        }
        Ok(assignments)
    }

    /// The id of the parent that `{"Ext__c": value}` names.
    fn parent_by_key(&self, field: &Field, given: &Json) -> Result<Option<Value>, Refusal> {
        let Json::Object(given) = given else {
            return if given.is_null() { Ok(None) } else { Err(Refusal::unreadable("a relationship needs an object")) };
        };
        let typed = given.get("attributes").and_then(|a| a.get("type")).and_then(Json::as_str);
        let target = typed.or(field.reference_to.first().map(String::as_str)).unwrap_or_default();
        let object = self.state.schema.object(target).ok_or_else(|| Refusal::no_object(target))?;
        let definition = &self.state.schema.objects[object];
        let Some((name, value)) = given.iter().find(|(name, _)| *name != "attributes") else {
            return Ok(None);
        };
        let by = definition.field(name).ok_or_else(|| Refusal::no_field(name, target))?;
        let by_field = &definition.fields[by];
        if by != ID && !by_field.id_lookup {
            let message = format!("Field name provided, {name} is not an External ID or indexed field for {target}");
            return Err(Refusal::new("INVALID_FIELD", message));
        }
        let Some(value) = normalise(by_field, value)? else { return Ok(None) };
        let not_found = || {
            let message = format!(
                "Foreign key external ID: {} not found for field {} in entity {}",
                value.plain(),
                by_field.name,
                definition.name
            );
            Refusal::new("INVALID_FIELD", message)
        };
        let found = if by == ID {
            self.state.find(object, value.text().unwrap_or_default()).into_iter().collect()
        } else {
            self.matching(object, by, &value, None)
        };
        match found.as_slice() {
            [] => Err(not_found()),
            [position] => Ok(Some(Value::Text(self.state.id_at(object, *position).into()))),
            _ => Err(Refusal::new("DUPLICATE_EXTERNAL_ID", format!("{name}: more than one record found"))),
        }
    }

    fn check_reference(&self, field: &Field, value: &Value) -> Result<(), Refusal> {
        let id = value.text().unwrap_or_default();
        let target = self.state.schema.object_of_id(id);
        let fits =
            target.is_some_and(|t| field.reference_to.iter().any(|name| *name == self.state.schema.objects[t].name));
        let (Some(target), true) = (target, fits) else {
            let message = format!("{}: id value of incorrect type: {id}", field.label);
            return Err(Refusal::new("FIELD_INTEGRITY_EXCEPTION", message).field(&field.name));
        };
        let table = &self.state.tables[target];
        match table.find(id) {
            None => Err(Refusal::new("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id").field(&field.name)),
            Some(position) if table.is_deleted(position) => {
                Err(Refusal::new("ENTITY_IS_DELETED", "entity is deleted").field(&field.name))
            }
            Some(_) => Ok(()),
        }
    }

    fn apply_flows(&self, object: usize, before: Option<&Row>, row: &mut Row) -> Result<(), Refusal> {
        if self.state.rules.run(self.view(), object, false, before, row)? {
            self.derive(object, before, row, &Vec::new());
        }
        Ok(())
    }

    /// Runs the flows that run after the record is saved; what they change is told in an event of its own.
    fn after_flows(&mut self, object: usize, position: usize, before: Option<&Row>) -> Result<(), Refusal> {
        let saved = self.state.tables[object].row(position).cloned().unwrap_or_default();
        let mut row = saved.clone();
        if self.state.rules.run(self.view(), object, true, before, &mut row)? {
            self.check(object, Some((position, &saved)), &row)?;
            self.state.tables[object].replace(position, row);
            self.step(object, position, Some(saved), true);
        }
        Ok(())
    }

    /// What must hold of a row before it is saved: required values, unique values, the org's rules.
    fn check(&self, object: usize, at: Option<(usize, &Row)>, row: &Row) -> Result<(), Refusal> {
        let definition = &self.state.schema.objects[object];
        let missing: Vec<&str> = definition
            .fields
            .iter()
            .enumerate()
            .filter(|(index, f)| {
                !f.nillable
                    && f.createable
                    && get(row, *index).is_none()
                    && at.is_none_or(|(_, b)| get(b, *index).is_some())
            })
            .map(|(_, f)| f.name.as_str())
            .collect();
        if !missing.is_empty() {
            let refusal = Refusal::new(
                "REQUIRED_FIELD_MISSING",
                format!("Required fields are missing: [{}]", missing.join(", ")),
            );
            return Err(missing.iter().fold(refusal, |refusal, field| refusal.field(field)));
        }
        for (index, field) in definition.fields.iter().enumerate().filter(|(_, f)| f.unique) {
            let Some(value) = get(row, index) else { continue };
            if at.is_some_and(|(_, before)| get(before, index) == Some(value)) {
                continue;
            }
            if let Some(other) = self.matching(object, index, value, at.map(|(position, _)| position)).first() {
                let other = id::short(self.state.id_at(object, *other));
                let message =
                    format!("duplicate value found: {} duplicates value on record with id: {other}", field.name);
                return Err(Refusal::new("DUPLICATE_VALUE", message));
            }
        }
        self.state.rules.check(self.view(), object, row)
    }

    /// The values that the org works out itself. `given` are the fields that the request sets.
    fn derive(&self, object: usize, before: Option<&Row>, row: &mut Row, given: &Assignments) {
        let definition = &self.state.schema.objects[object];
        let at = |name: &str| definition.field(name).unwrap_or(ID);
        if let Some((name, field)) = definition.fields.iter().enumerate().find(|(_, f)| f.kind == Kind::PersonName) {
            let parts = field.parts.iter().filter(|part| part.member != "Salutation");
            let words: Vec<&str> =
                parts.filter_map(|part| part.field.and_then(|f| get(row, f)).and_then(Value::text)).collect();
            let text = words.join(" ");
            put(row, name, (!text.is_empty()).then(|| Value::Text(text.into())));
        }
        match definition.name.as_str() {
            "Opportunity" => {
                let (stage, probability) = (at("StageName"), at("Probability"));
                let name = get(row, stage).and_then(Value::text).unwrap_or_default();
                let known = STAGES.iter().find(|s| s.0.eq_ignore_ascii_case(name));
                let moved = before.is_none_or(|before| get(before, stage) != get(row, stage));
                if let Some((_, percent, closed, won, forecast)) = known.filter(|_| moved) {
                    if !given.iter().any(|(field, _)| *field == probability) {
                        put(row, probability, Some(Value::Double(f64::from(*percent))));
                    }
                    if !given.iter().any(|(field, _)| *field == at("ForecastCategoryName")) {
                        put(row, at("ForecastCategoryName"), Some(Value::Text((*forecast).into())));
                    }
                    put(row, at("IsClosed"), Some(Value::Bool(*closed)));
                    put(row, at("IsWon"), Some(Value::Bool(*won)));
                }
                let amount = get(row, at("Amount")).and_then(Value::number);
                let percent = get(row, probability).and_then(Value::number).unwrap_or_default();
                let expected = amount.map(|amount| Value::Double((amount * percent).round() / 100.0));
                put(row, at("ExpectedRevenue"), expected);
            }
            "Case" => {
                let closed = get(row, at("Status")).and_then(Value::text) == Some("Closed");
                let was = before.and_then(|before| get(before, at("IsClosed"))) == Some(&Value::Bool(true));
                put(row, at("IsClosed"), Some(Value::Bool(closed)));
                if closed != was {
                    put(row, at("ClosedDate"), closed.then_some(Value::DateTime(self.now_ms)));
                }
                let (account, contact) = (at("AccountId"), at("ContactId"));
                if before.is_none() && get(row, account).is_none() {
                    let parent = get(row, contact).and_then(Value::text).and_then(|id| {
                        let contacts = self.state.schema.object("Contact")?;
                        let found = self.state.tables[contacts].row(self.state.find(contacts, id)?)?;
                        get(found, self.state.schema.objects[contacts].field("AccountId")?).cloned()
                    });
                    put(row, account, parent);
                }
            }
            _ => {}
        }
    }

    fn delete(&mut self, object: Option<usize>, given: &str) -> Outcome {
        let malformed = || Refusal::new("MALFORMED_ID", format!("bad id {given}"));
        let id = id::normalise(given).ok_or_else(malformed)?;
        let object = object.or_else(|| self.state.schema.object_of_id(&id)).ok_or_else(malformed)?;
        let position = self.existing(object, &id)?;
        if self.state.schema.objects[object].system.deleted.is_none() {
            let message = "insufficient access rights on object id";
            return Err(Refusal::new("INSUFFICIENT_ACCESS_OR_READONLY", message));
        }
        self.lock(Some(&id))?;
        self.remove(object, position, 0)?;
        Ok(Done { id, created: false })
    }

    /// Deletes a record with all that goes with it.
    fn remove(&mut self, object: usize, position: usize, depth: usize) -> Result<(), Refusal> {
        const DEEPEST: usize = 20;
        let id: SmolStr = self.state.id_at(object, position).into();
        if depth > DEEPEST {
            return Err(Refusal::new("DELETE_FAILED", "too many levels of records would be deleted"));
        }
        let children = self.state.schema.children(object).to_vec();
        let mut cascade = Vec::new();
        for child in children {
            let rows = self.state.tables[child.object].children(child.field, &id).unwrap_or_default();
            let field = &self.state.schema.objects[child.object].fields[child.field];
            match field.on_delete {
                OnDelete::Restrict => {
                    if let Some(first) = rows.first() {
                        let message = format!(
                            "Your attempt to delete {id} could not be completed because it is associated with the \
                             following records: {}",
                            id::short(self.state.id_at(child.object, *first))
                        );
                        return Err(Refusal::new("DELETE_FAILED", message));
                    }
                }
                OnDelete::Cascade => cascade.extend(rows.into_iter().map(|row| (child.object, row))),
                OnDelete::Clear => {
                    for row in rows {
                        self.write_field(child.object, row, child.field, None);
                    }
                }
            }
        }
        if let Some(deleted) = self.state.schema.objects[object].system.deleted {
            self.write_field(object, position, deleted, Some(Value::Bool(true)));
        }
        for (child, row) in &cascade {
            if !self.state.tables[*child].is_deleted(*row) {
                self.remove(*child, *row, depth + 1)?;
            }
        }
        self.state.cascades.insert(id, cascade);
        Ok(())
    }

    /// Sets one field and the stamps, without automation.
    fn write_field(&mut self, object: usize, position: usize, field: usize, value: Option<Value>) {
        let before = self.state.tables[object].row(position).cloned().unwrap_or_default();
        let id: SmolStr = get(&before, ID).and_then(Value::text).unwrap_or_default().into();
        let mut row = before.clone();
        put(&mut row, field, value);
        self.stamp(object, &mut row, &id);
        self.state.tables[object].replace(position, row);
        self.step(object, position, Some(before), false);
    }

    fn undelete(&mut self, given: &str) -> Outcome {
        let malformed = || Refusal::new("MALFORMED_ID", format!("bad id {given}"));
        let id = id::normalise(given).ok_or_else(malformed)?;
        let object = self.state.schema.object_of_id(&id).ok_or_else(malformed)?;
        let missing = || Refusal::new("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id").status(404);
        let position = self.state.find(object, &id).ok_or_else(missing)?;
        if !self.state.tables[object].is_deleted(position) {
            return Err(Refusal::new("UNDELETE_FAILED", "Entity is not in the recycle bin"));
        }
        self.restore(object, position)?;
        Ok(Done { id, created: false })
    }

    fn restore(&mut self, object: usize, position: usize) -> Result<(), Refusal> {
        let id: SmolStr = self.state.id_at(object, position).into();
        if let Some(deleted) = self.state.schema.objects[object].system.deleted {
            self.write_field(object, position, deleted, Some(Value::Bool(false)));
        }
        let row = self.state.tables[object].row(position).cloned().unwrap_or_default();
        for (index, field) in self.state.schema.objects[object].fields.iter().enumerate().filter(|(_, f)| f.unique) {
            let Some(value) = get(&row, index) else { continue };
            if let Some(other) = self.matching(object, index, value, Some(position)).first() {
                let other = id::short(self.state.id_at(object, *other));
                let message =
                    format!("duplicate value found: {} duplicates value on record with id: {other}", field.name);
                return Err(Refusal::new("DUPLICATE_VALUE", message));
            }
        }
        for (child, row) in self.state.cascades.get(&id).cloned().unwrap_or_default() {
            if self.state.tables[child].is_deleted(row) {
                self.restore(child, row)?;
            }
        }
        Ok(())
    }
}

fn check_writable(field: &Field, create: bool) -> Result<(), Refusal> {
    let (allowed, verb) = if create { (field.createable, "create") } else { (field.updateable, "update") };
    if allowed {
        return Ok(());
    }
    let message = format!(
        "Unable to create/update fields: {}. Please check the security settings of this field and verify that it is \
         read/write for your profile or permission set.",
        field.name
    );
    tracing::debug!(verb, field = %field.name, "a read-only field was written");
    Err(Refusal::new("INVALID_FIELD_FOR_INSERT_UPDATE", message).field(&field.name))
}
