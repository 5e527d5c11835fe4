//! The two sides, simulated: what really stands there, and their streams.
//!
//! PostgreSQL keeps values as they were written (its canonical form is made on capture), compares before it writes, and
//! commits a batch of ours as one transaction that ends with the list of what was applied and skipped. Salesforce stores the
//! canonical form, takes writes blindly, tells in an event only what changed, and tells nothing when nothing did.

use std::collections::{BTreeMap, BTreeSet};

use tidelock::change::{FieldId, FieldKind, Key, MappingDef, Offset, Str, Value, WriteKind};
use tidelock::clock::Micros;
use tidelock::flow::{RowOperation, Write, Written};

use super::rng::Rng;

pub(crate) const SECOND: Micros = 1_000_000;

/// The field that holds the Salesforce id.
pub(crate) const ID: usize = 0;
/// The external id field.
pub(crate) const EXTERNAL: usize = 1;
/// The first field that users edit freely.
pub(crate) const FREE: usize = 2;

/// The canonical form of a value, by the rules that both sides' code follows.
pub(crate) fn canonical(kind: &FieldKind, value: &Value) -> Value {
    match (kind, value) {
        (FieldKind::Text { .. }, Value::Text(text)) => {
            let text = text.trim();
            if text.is_empty() { Value::Null } else { Value::text(text) }
        }
        (FieldKind::Number { scale: 2 }, Value::Decimal(_) | Value::Int(_)) => {
            let text = value.to_string();
            let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
            let negative = whole.starts_with('-');
            let whole: i64 = whole.trim_start_matches('-').parse().unwrap();
            let fraction: i64 = format!("{fraction:0<3}")[..3].parse().unwrap();
            let cents = (whole * 1_000 + fraction + 5) / 10;
            let sign = if negative { "-" } else { "" };
            Value::number(&format!("{sign}{}.{:02}", cents / 100, cents % 100)).unwrap()
        }
        (FieldKind::DateTime, Value::Timestamp(at)) => Value::Timestamp(at.div_euclid(SECOND) * SECOND),
        _ => value.clone(),
    }
}

/// A value as a user may type it; few different ones, so that both sides often come to the same.
pub(crate) fn typed(kind: &FieldKind, rng: &mut Rng, fresh: u64) -> Value {
    if rng.percent(10) {
        return Value::Null;
    }
    let few = rng.percent(40);
    let n = if few { 1 + rng.below(3) as i64 } else { 100 + fresh as i64 };
    match kind {
        FieldKind::Number { .. } => {
            let sign = if rng.percent(20) { "-" } else { "" };
            Value::number(&format!("{sign}{n}.{:03}", [0, 4, 5, 995][rng.below(4)])).unwrap()
        }
        FieldKind::DateTime => Value::Timestamp(n * SECOND + rng.below(3) as i64 * 400_000),
        _ => match rng.below(8) {
            0 => Value::text(format!(" v{n} ")),
            1 => Value::text("  "),
            2 if !few => Value::text(format!("bad{n}")),
            _ => Value::text(format!("v{n}")),
        },
    }
}

/// What a side's validation does not take while the rule is in force.
pub(crate) fn refused(value: &Value) -> bool {
    value.as_text().is_some_and(|text| text.contains("bad"))
}

/// What a stream says.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    Row {
        operation: RowOperation,
        marked: bool,
        /// By ascending field, canonical.
        fields: Vec<(FieldId, Value)>,
        /// What stood there before, canonical: what the author saw.
        saw: Vec<Value>,
        /// The ticket that made it, if it is ours.
        ticket: Option<Offset>,
        /// The first and the last ticket of the call or transaction that it was made in.
        call: Option<(Offset, Offset)>,
        /// What our write had set before automation changed it.
        written: Vec<(FieldId, Value)>,
        key: Option<Key>,
        old_key: Option<Key>,
        id: Option<Str>,
    },
    Applied {
        applied: Vec<Offset>,
        skipped: Vec<Offset>,
    },
    /// The stream cannot tell what happened to this record.
    Gap {
        id: Str,
    },
    /// All rows have been read by here.
    Copied,
}

/// One event of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) said: Said,
    /// The transaction's number: an LSN, or a replay id.
    pub(crate) number: u64,
    pub(crate) index: u32,
    pub(crate) at: Micros,
}

/// A row of either side.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) alive: bool,
    /// As written, by field.
    pub(crate) values: Vec<Value>,
    /// When it was last touched.
    pub(crate) at: Micros,
}

/// What both simulated sides have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) mapping: MappingDef,
    pub(crate) stream: Vec<Told>,
    /// The validation rule is in force.
    pub(crate) strict: bool,
    /// How often automation may still interfere.
    pub(crate) automations: usize,
    /// How often a write of ours may yet set something off in another record.
    pub(crate) cascades: usize,
    /// Set to how many events may not be told.
    pub(crate) gaps: usize,
    pub(crate) number: u64,
}

impl Common {
    fn new(mapping: &MappingDef) -> Self {
        Self {
            mapping: mapping.clone(),
            stream: Vec::new(),
            strict: true,
            automations: 0,
            cascades: 0,
            gaps: 0,
            number: 0,
        }
    }

    pub(crate) fn kind(&self, field: usize) -> &FieldKind {
        &self.mapping.fields[field].kind
    }

    pub(crate) fn seen(&self, values: &[Value]) -> Vec<Value> {
        values.iter().enumerate().map(|(n, v)| canonical(self.kind(n), v)).collect()
    }

    fn named(&self, values: &[Value]) -> Vec<(FieldId, Value)> {
        self.seen(values).into_iter().enumerate().map(|(n, v)| (FieldId(n as u16), v)).collect()
    }
}

// -- PostgreSQL ------------------------------------------------------------------------------------------------------------

#[derive(Clone)]
pub(crate) struct Postgres {
    pub(crate) common: Common,
    pub(crate) rows: BTreeMap<u64, Stored>,
    next_key: u64,
    /// The highest ticket of a committed transaction.
    pub(crate) cursor: Option<Offset>,
}

pub(crate) fn key(n: u64) -> Key {
    Key::from_parts([n.to_string().as_str()])
}

impl Postgres {
    pub(crate) fn new(mapping: &MappingDef) -> Self {
        Self { common: Common::new(mapping), rows: BTreeMap::new(), next_key: 1, cursor: None }
    }

    /// A row that is there before capture begins.
    pub(crate) fn seed(&mut self, values: Vec<Value>, at: Micros) {
        self.rows.insert(self.next_key, Stored { alive: true, values, at });
        self.next_key += 1;
    }

    fn tell(&mut self, index: u32, at: Micros, said: Said) {
        let number = self.common.number;
        self.common.stream.push(Told { said, number, index, at });
    }

    fn row_said(&self, n: u64, operation: RowOperation, saw: Vec<Value>, old: Option<u64>) -> Said {
        let row = &self.rows[&n];
        let fields = if operation == RowOperation::Delete { Vec::new() } else { self.common.named(&row.values) };
        let id = row.values[ID].as_text().map(Str::new);
        Said::Row {
            operation,
            marked: false,
            fields,
            saw,
            ticket: None,
            call: None,
            written: Vec::new(),
            key: Some(key(n)),
            old_key: old.map(key),
            id,
        }
    }

    fn taken(&self, field: usize, value: &Value, but: Option<u64>) -> bool {
        !value.is_null() && self.rows.iter().any(|(k, r)| r.alive && Some(*k) != but && r.values[field] == *value)
    }

    pub(crate) fn user_insert(&mut self, mut values: Vec<Value>, at: Micros) {
        values[ID] = Value::Null;
        if self.taken(EXTERNAL, &values[EXTERNAL], None) {
            values[EXTERNAL] = Value::Null;
        }
        let n = self.next_key;
        self.next_key += 1;
        self.rows.insert(n, Stored { alive: true, values, at });
        self.common.number += 8;
        let said = self.row_said(n, RowOperation::Insert, vec![Value::Null; self.common.mapping.fields.len()], None);
        self.tell(0, at, said);
    }

    /// One transaction that sets fields of a row; perhaps its key too. What is not stored out of line may be left out.
    pub(crate) fn user_update(&mut self, n: u64, changes: &[(usize, Value)], rekey: bool, at: Micros, rng: &mut Rng) {
        let saw = self.common.seen(&self.rows[&n].values);
        let mut now = n;
        if rekey {
            now = self.next_key;
            self.next_key += 1;
            let row = self.rows.remove(&n).unwrap();
            self.rows.insert(now, row);
        }
        let row = self.rows.get_mut(&now).unwrap();
        for (field, value) in changes {
            row.values[*field] = value.clone();
        }
        row.at = at;
        self.common.number += 8;
        let mut said = self.row_said(now, RowOperation::Update, saw, rekey.then_some(n));
        if let Said::Row { fields, saw, .. } = &mut said {
            // An unchanged value that is stored out of line is not told.
            fields.retain(|(f, v)| usize::from(f.0) < FREE || saw[usize::from(f.0)] != *v || !rng.percent(20));
        }
        self.tell(0, at, said);
    }

    pub(crate) fn user_delete(&mut self, n: u64, at: Micros) {
        let saw = self.common.seen(&self.rows[&n].values);
        self.common.number += 8;
        let said = self.row_said(n, RowOperation::Delete, saw, None);
        self.tell(0, at, said);
        self.rows.remove(&n);
    }

    /// All rows as they stand, told at this place of the stream.
    pub(crate) fn copy(&mut self, at: Micros) {
        self.common.number += 8;
        let all: Vec<u64> = self.rows.keys().copied().collect();
        for (index, n) in all.into_iter().enumerate() {
            let saw = self.common.seen(&self.rows[&n].values);
            let said = self.row_said(n, RowOperation::Backfill, saw, None);
            self.tell(index as u32, at, said);
        }
    }

    /// The same after some of these keys were looked for: those that name no row are told as missing.
    pub(crate) fn compare(&mut self, known: &[u64], at: Micros) {
        self.common.number += 8;
        let missing: Vec<u64> = known.iter().copied().filter(|n| !self.rows.contains_key(n)).collect();
        for (index, n) in missing.into_iter().enumerate() {
            let said = Said::Row {
                operation: RowOperation::Missing,
                marked: false,
                fields: Vec::new(),
                saw: vec![Value::Null; self.common.mapping.fields.len()],
                ticket: None,
                call: None,
                written: Vec::new(),
                key: Some(key(n)),
                old_key: None,
                id: None,
            };
            self.tell(index as u32, at, said);
        }
        self.copy(at);
        self.common.number += 8;
        self.tell(0, at, Said::Copied);
    }

    /// Goes back to an earlier moment; the places of the log go on.
    pub(crate) fn go_back(&mut self, backup: &Self) {
        self.rows = backup.rows.clone();
        (self.next_key, self.cursor) = (backup.next_key, backup.cursor);
    }

    /// One transaction of ours.
    pub(crate) fn write(&mut self, writes: &[Write], at: Micros, rng: &mut Rng) -> Vec<Written> {
        self.common.number += 8;
        let (mut applied, mut skipped, mut index) = (Vec::new(), Vec::new(), 0);
        let mut answers = Vec::new();
        let begins = self.common.stream.len();
        for write in writes {
            let bad =
                self.common.strict && write.values.iter().any(|v| refused(&v.value) && write.kind != WriteKind::Delete);
            let answer = if bad {
                Written::Refused { code: Str::new("23514"), message: Str::new("check constraint") }
            } else {
                Written::InStream
            };
            if bad {
                // Told by the answer alone.
            } else if self.write_one(write, &mut index, at, rng) {
                applied.push(write.ticket);
            } else {
                skipped.push(write.ticket);
            }
            answers.push(answer);
            self.cursor = self.cursor.max(Some(write.ticket));
        }
        let tickets = || writes.iter().map(|write| write.ticket);
        for told in &mut self.common.stream[begins..] {
            if let Said::Row { call, .. } = &mut told.said {
                *call = tickets().min().zip(tickets().max());
            }
        }
        self.tell(index, at, Said::Applied { applied, skipped });
        answers
    }

    fn write_one(&mut self, write: &Write, index: &mut u32, at: Micros, rng: &mut Rng) -> bool {
        let fields = self.common.mapping.fields.len();
        let n = match write.kind {
            WriteKind::Create => self.next_key,
            _ => match write.key.as_ref().and_then(|k| k.0.parse().ok()) {
                Some(n) => n,
                None => return false,
            },
        };
        let old = match (write.kind, self.rows.get(&n)) {
            (WriteKind::Create, _) => vec![Value::Null; fields],
            (_, None) => return false,
            (_, Some(row)) => row.values.clone(),
        };
        let saw = self.common.seen(&old);
        if write.kind != WriteKind::Create && write.values.iter().any(|v| saw[usize::from(v.field.0)] != v.expected) {
            return false;
        }
        let mut written = Vec::new();
        if write.kind == WriteKind::Delete {
            let mut said = self.row_said(n, RowOperation::Delete, saw, None);
            mark(&mut said, write, written);
            self.tell(*index, at, said);
            self.rows.remove(&n);
        } else {
            let mut values = old;
            for v in &write.values {
                let field = usize::from(v.field.0);
                if field < FREE && self.taken(field, &v.value, Some(n)) {
                    return false;
                }
                values[field] = v.value.clone();
                written.push((v.field, v.value.clone()));
            }
            if self.common.automations > 0 && rng.percent(25) {
                self.common.automations -= 1;
                let field = FREE + rng.below(fields - FREE);
                values[field] = typed(self.common.kind(field), rng, 900);
            }
            if write.kind == WriteKind::Create {
                self.next_key += 1;
            }
            self.rows.insert(n, Stored { alive: true, values, at });
            let operation = if write.kind == WriteKind::Create { RowOperation::Insert } else { RowOperation::Update };
            let mut said = self.row_said(n, operation, saw, None);
            mark(&mut said, write, written);
            self.tell(*index, at, said);
        }
        *index += 1;
        true
    }
}

fn mark(said: &mut Said, write: &Write, values: Vec<(FieldId, Value)>) {
    if let Said::Row { marked, ticket, call, written, .. } = said {
        *marked = true;
        *ticket = Some(write.ticket);
        *call = Some((write.ticket, write.ticket));
        *written = values;
    }
}

// -- Salesforce ------------------------------------------------------------------------------------------------------------

pub(crate) struct Salesforce {
    pub(crate) common: Common,
    pub(crate) rows: BTreeMap<Str, Stored>,
    next_id: u64,
    /// Tickets that took effect, and how often.
    pub(crate) landed: BTreeMap<Offset, u32>,
    /// Records whose events are not all told.
    pub(crate) untold: BTreeSet<Str>,
    /// Records that were restored.
    pub(crate) undeleted: BTreeSet<Str>,
}

impl Salesforce {
    pub(crate) fn new(mapping: &MappingDef) -> Self {
        Self {
            common: Common::new(mapping),
            rows: BTreeMap::new(),
            next_id: 1,
            landed: BTreeMap::new(),
            untold: BTreeSet::new(),
            undeleted: BTreeSet::new(),
        }
    }

    fn store(&mut self, mut values: Vec<Value>, at: Micros) -> Str {
        let id = Str::from(format!("003{:015}", self.next_id));
        self.next_id += 1;
        values[ID] = Value::Text(id.clone());
        let values = self.common.seen(&values);
        self.rows.insert(id.clone(), Stored { alive: true, values, at });
        id
    }

    pub(crate) fn seed(&mut self, values: Vec<Value>, at: Micros) {
        self.store(values, at);
    }

    fn tell(&mut self, at: Micros, said: Said, rng: &mut Rng) {
        self.common.number += 1 + rng.below(5) as u64;
        let number = self.common.number;
        let at = at.div_euclid(SECOND) * SECOND;
        let said = match said {
            Said::Row { id: Some(id), .. } if self.common.gaps > 0 && rng.percent(20) => {
                self.common.gaps -= 1;
                self.untold.insert(id.clone());
                Said::Gap { id }
            }
            said => said,
        };
        self.common.stream.push(Told { said, number, index: 1, at });
    }

    fn said(&self, id: &Str, operation: RowOperation, saw: Vec<Value>) -> Said {
        let now = self.common.named(&self.rows[id].values);
        let fields = match operation {
            RowOperation::Delete => Vec::new(),
            RowOperation::Update => now.into_iter().filter(|(f, v)| saw[usize::from(f.0)] != *v).collect(),
            _ => now,
        };
        Said::Row {
            operation,
            marked: false,
            fields,
            saw,
            ticket: None,
            call: None,
            written: Vec::new(),
            key: None,
            old_key: None,
            id: Some(id.clone()),
        }
    }

    fn holder(&self, external: &Value) -> Option<Str> {
        let found = self.rows.iter().find(|(_, r)| r.alive && !external.is_null() && r.values[EXTERNAL] == *external);
        found.map(|(id, _)| id.clone())
    }

    fn nothing(&self) -> Vec<Value> {
        vec![Value::Null; self.common.mapping.fields.len()]
    }

    pub(crate) fn user_insert(&mut self, mut values: Vec<Value>, at: Micros, rng: &mut Rng) {
        if self.holder(&values[EXTERNAL]).is_some() {
            values[EXTERNAL] = Value::Null;
        }
        let id = self.store(values, at);
        let said = self.said(&id, RowOperation::Insert, self.nothing());
        self.tell(at, said, rng);
    }

    pub(crate) fn user_update(&mut self, id: &Str, changes: &[(usize, Value)], at: Micros, rng: &mut Rng) {
        let saw = self.rows[id].values.clone();
        let mut values = saw.clone();
        for (field, value) in changes {
            values[*field] = canonical(self.common.kind(*field), value);
        }
        if values != saw {
            self.rows.insert(id.clone(), Stored { alive: true, values, at });
            let said = self.said(id, RowOperation::Update, saw);
            self.tell(at, said, rng);
        }
    }

    pub(crate) fn user_delete(&mut self, id: &Str, at: Micros, rng: &mut Rng) {
        let row = self.rows.get_mut(id).unwrap();
        row.alive = false;
        row.at = at;
        let saw = row.values.clone();
        let said = self.said(id, RowOperation::Delete, saw);
        self.tell(at, said, rng);
    }

    pub(crate) fn user_undelete(&mut self, id: &Str, at: Micros, rng: &mut Rng) {
        if self.holder(&self.rows[id].values[EXTERNAL]).is_some() {
            return;
        }
        self.undeleted.insert(id.clone());
        let row = self.rows.get_mut(id).unwrap();
        row.alive = true;
        row.at = at;
        let saw = row.values.clone();
        let said = self.said(id, RowOperation::Undelete, saw);
        self.tell(at, said, rng);
    }

    /// One write of ours takes effect, or is refused.
    pub(crate) fn write(&mut self, write: &Write, at: Micros, rng: &mut Rng) -> Written {
        let refuse = |code: &str| Written::Refused { code: Str::new(code), message: Str::new("not accepted") };
        if self.common.strict && write.values.iter().any(|v| refused(&v.value)) {
            return refuse("FIELD_CUSTOM_VALIDATION_EXCEPTION");
        }
        let (id, operation) = match write.kind {
            WriteKind::Create => {
                let external = write.external_id.clone().map_or(Value::Null, Value::Text);
                match self.holder(&external) {
                    Some(id) => (id, RowOperation::Update),
                    None => {
                        let mut values = self.nothing();
                        values[EXTERNAL] = external;
                        (self.store(values, at), RowOperation::Insert)
                    }
                }
            }
            _ => {
                let Some(id) = write.salesforce_id.clone() else { return refuse("MISSING_ARGUMENT") };
                match self.rows.get(&id) {
                    Some(row) if row.alive => {}
                    _ if write.kind == WriteKind::Delete => return Written::Done { salesforce_id: Some(id) },
                    _ => return refuse("ENTITY_IS_DELETED"),
                }
                let delete = write.kind == WriteKind::Delete;
                (id, if delete { RowOperation::Delete } else { RowOperation::Update })
            }
        };
        *self.landed.entry(write.ticket).or_default() += 1;
        let saw = if operation == RowOperation::Insert { self.nothing() } else { self.rows[&id].values.clone() };
        let mut written = Vec::new();
        if operation == RowOperation::Delete {
            let row = self.rows.get_mut(&id).unwrap();
            (row.alive, row.at) = (false, at);
        } else {
            let mut values = self.rows[&id].values.clone();
            for v in &write.values {
                let field = usize::from(v.field.0);
                assert_ne!(field, ID, "the record's own id is never written to Salesforce");
                values[field] = v.value.clone();
                written.push((v.field, v.value.clone()));
            }
            // (A second landing that automation changes beyond recognition cannot be told from another write's first.)
            let again = self.landed[&write.ticket] > 1;
            if self.common.automations > 0 && !again && rng.percent(30) {
                self.common.automations -= 1;
                let field = FREE + rng.below(values.len() - FREE);
                let value = canonical(self.common.kind(field), &typed(self.common.kind(field), rng, 800));
                // Automation that puts the very value back that we replaced shows nowhere in the stream; only comparing both
                // sides finds that.
                if values[field] == saw[field] || value != saw[field] {
                    values[field] = value;
                }
            }
            if values == saw {
                return Written::Done { salesforce_id: Some(id) };
            }
            self.rows.insert(id.clone(), Stored { alive: true, values, at });
        }
        let first = self.landed[&write.ticket] == 1;
        let mut said = self.said(&id, operation, saw);
        mark(&mut said, write, written);
        self.tell(at, said, rng);
        if first && self.common.cascades > 0 && rng.percent(40) {
            self.cascade(&id, write, at, rng);
        }
        Written::Done { salesforce_id: Some(id) }
    }

    /// Automation copies a value that we wrote to another record. Its event carries our mark.
    fn cascade(&mut self, from: &Str, write: &Write, at: Micros, rng: &mut Rng) {
        let others: Vec<Str> =
            self.rows.iter().filter(|(id, row)| *id != from && row.alive).map(|(id, _)| id.clone()).collect();
        let copied: Vec<usize> = write.values.iter().map(|v| usize::from(v.field.0)).filter(|f| *f >= FREE).collect();
        if others.is_empty() || copied.is_empty() {
            return;
        }
        self.common.cascades -= 1;
        let (id, field) = (rng.pick(&others).clone(), *rng.pick(&copied));
        let saw = self.rows[&id].values.clone();
        let mut values = saw.clone();
        values[field] = self.rows[from].values[field].clone();
        if values != saw {
            self.rows.insert(id.clone(), Stored { alive: true, values, at });
            let mut said = self.said(&id, RowOperation::Update, saw);
            mark(&mut said, write, Vec::new());
            self.tell(at, said, rng);
        }
    }
}
