//! What one change event says about mapped rows: pure, from bytes and catalog alone.
//!
//! For an update only what changed is told; for a create or undelete every mapped field that the schema knows, null where
//! it is null. What an event cannot tell (a long text told as a difference, a compound's composed name) is listed as
//! [`Untold`], for the capture to read. A gap names records to read again, or a whole object.

use std::collections::HashMap;
use std::sync::Arc;

use apache_avro::types::Value as Avro;

use super::avro::{EventSchema, Header, member_name};
use super::bitmap::FieldSet;
use super::id18;
use crate::change::{
    Catalog, FieldDef, FieldId, FieldKind, MappingDef, MappingId, Offset, Str, Transaction, Value, Who,
};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::flow::{Own, RowOperation};
use crate::mapping::{from_avro, normalise};

/// The record id of an overflow event.
const OVERFLOW_ID: &str = "000000000000000AAA";

/// By what our own changes are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Us {
    /// The client name that our calls carry.
    pub(crate) client_name: String,
    /// The user that we act as.
    pub(crate) user_id: Str,
}

impl Us {
    /// Whether a change is marked as ours: by our client name, or by our user where no client is named.
    pub(crate) fn own(&self, change_origin: &str, commit_user: &str) -> Own {
        let client = change_origin.split(';').find_map(|part| part.strip_prefix("client="));
        let ours = match client {
            Some(client) => {
                let rest = client.strip_prefix(self.client_name.as_str());
                if let Some((first, last)) = rest.and_then(|rest| rest.strip_prefix('/')).and_then(tickets) {
                    return Own::Tickets(first, last);
                }
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            None => !commit_user.is_empty() && id18(commit_user) == self.user_id,
        };
        if ours { Own::Marked } else { Own::No }
    }
}

/// The tickets that a call of ours named behind its client name.
fn tickets(text: &str) -> Option<(Offset, Offset)> {
    let (first, last) = text.split_once('-')?;
    Some((Offset(first.parse().ok()?), Offset(last.parse().ok()?)))
}

/// An event, as far as it can be understood by itself.
#[derive(Debug)]
pub(crate) struct Heard {
    /// The header.
    pub(crate) header: Header,
    /// Whether it is marked as ours.
    pub(crate) own: Own,
    /// What it says.
    pub(crate) says: Says,
}

impl Heard {
    /// When it was committed, in microseconds.
    pub(crate) fn committed_at(&self) -> Micros {
        self.header.commit_timestamp.saturating_mul(1_000)
    }

    /// Who did it.
    pub(crate) fn who(&self) -> Who {
        Who {
            user: id18(&self.header.commit_user),
            role: Str::default(),
            application: Str::new(&self.header.change_origin),
        }
    }

    /// Its place in its transaction.
    pub(crate) fn transaction(&self) -> Transaction {
        Transaction {
            id: Str::new(&self.header.transaction_key),
            index: u32::try_from(self.header.sequence_number).unwrap_or_default(),
            last: false,
        }
    }

    /// The records, by their ids of 18 characters.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Str> {
        self.header.record_ids.iter().map(|id| id18(id))
    }
}

/// What an event says.
#[derive(Debug)]
pub(crate) enum Says {
    /// Nothing about mapped rows.
    Nothing,
    /// This happened to each of its records.
    Rows {
        /// What happened.
        operation: RowOperation,
        /// The values, by mapping.
        told: Vec<Told>,
    },
    /// Something happened to each of its records: they must be read.
    Reread(Vec<MappingId>),
    /// Something happened to records that it does not name: all must be read.
    Sweep(Vec<MappingId>),
}

/// What an event tells of its records for one mapping.
#[derive(Debug)]
pub(crate) struct Told {
    /// The mapping.
    pub(crate) mapping: MappingId,
    /// The values, by ascending field id.
    pub(crate) fields: Vec<(FieldId, Value)>,
    /// What must be read to know it.
    pub(crate) untold: Vec<Untold>,
}

/// A field that changed, and whose value the event does not tell.
#[derive(Debug)]
pub(crate) struct Untold {
    /// The field.
    pub(crate) field: FieldId,
    /// The SHA-256 of the value in lower hex, where the event tells that.
    pub(crate) sha256: Option<String>,
}

/// Understands events.
#[derive(Debug)]
pub(crate) struct Hearing {
    catalog: Arc<Catalog>,
    plans: HashMap<String, Arc<Plan>>,
    /// Whether an event of a mapped object had a schema that none had before, since last asked.
    new_schema: bool,
    /// By what our own changes are known.
    pub(crate) us: Us,
}

/// What to take from the events of one schema.
#[derive(Debug)]
struct Plan {
    entity: String,
    takes: Vec<Take>,
    wanted: Vec<bool>,
}

/// What one mapping takes.
#[derive(Debug)]
struct Take {
    mapping: MappingId,
    /// For each field of the schema.
    slots: Vec<Slot>,
    /// Fields that no event carries and that follow from the header.
    implied: Vec<(FieldId, Implied)>,
}

#[derive(Debug, Clone)]
enum Slot {
    Skip,
    /// A field of its own.
    Whole(FieldId, FieldKind),
    /// A compound: a field mapped by the compound's own name, and its members.
    Compound(Option<(FieldId, FieldKind)>, Vec<Option<(FieldId, FieldKind)>>),
}

#[derive(Debug, Clone, Copy)]
enum Implied {
    Id,
    IsDeleted,
    SystemModstamp,
}

impl Hearing {
    pub(crate) fn new(catalog: Arc<Catalog>, us: Us) -> Self {
        Self { catalog, plans: HashMap::new(), new_schema: false, us }
    }

    /// Understands one event.
    pub(crate) fn hear(&mut self, schema_id: &str, schema: &EventSchema, payload: &[u8]) -> Result<Heard> {
        let broken = |e: super::avro::AvroError| {
            Error::new(
                Kind::Protocol,
                format!("a Salesforce event of schema {schema_id} ({}) cannot be read", schema.name()),
            )
            .caused_by(e)
        };
        let opened = schema.open(payload).map_err(broken)?;
        let plan = self.plan(schema_id, schema, &opened.header.entity_name);
        let own = self.us.own(&opened.header.change_origin, &opened.header.commit_user);
        let mappings = || plan.takes.iter().map(|take| take.mapping).collect::<Vec<_>>();
        let operation = match opened.header.change_type.as_str() {
            _ if plan.takes.is_empty() => None,
            "CREATE" => Some(RowOperation::Insert),
            "UPDATE" => Some(RowOperation::Update),
            "DELETE" => Some(RowOperation::Delete),
            "UNDELETE" => Some(RowOperation::Undelete),
            // Gaps, and kinds of events that may come later: something happened, and reading tells what.
            _ => None,
        };
        let ids = &opened.header.record_ids;
        let unnamed =
            opened.header.change_type == "GAP_OVERFLOW" || ids.is_empty() || ids.iter().any(|id| !is_record_id(id));
        let (header, values) =
            opened.body(|n| operation.is_some() && plan.wanted.get(n) == Some(&true)).map_err(broken)?;
        let says = match operation {
            _ if plan.takes.is_empty() => Says::Nothing,
            _ if unnamed => Says::Sweep(mappings()),
            None => Says::Reread(mappings()),
            Some(operation) => {
                let sets = Sets::of(&header).map_err(|e| {
                    Error::new(Kind::Protocol, format!("a Salesforce event of schema {schema_id} cannot be read"))
                        .caused_by(e)
                })?;
                let told = plan.takes.iter().map(|take| take.told(operation, &header, &values, &sets)).collect();
                Says::Rows { operation, told }
            }
        };
        Ok(Heard { header, own, says })
    }

    /// Whether an event of a mapped object had a schema that none had before, since this was last asked.
    pub(crate) fn take_new_schema(&mut self) -> bool {
        std::mem::take(&mut self.new_schema)
    }

    fn plan(&mut self, schema_id: &str, schema: &EventSchema, entity: &str) -> Arc<Plan> {
        if let Some(plan) = self.plans.get(schema_id)
            && plan.entity == entity
        {
            return plan.clone();
        }
        let mappings = self.catalog.mappings.iter().filter(|mapping| mapping.sobject.eq_ignore_ascii_case(entity));
        let takes: Vec<Take> = mappings.map(|mapping| Take::new(mapping, schema)).collect();
        let wanted = (0..schema.fields().len())
            .map(|n| takes.iter().any(|take| !matches!(take.slots.get(n), None | Some(Slot::Skip))))
            .collect();
        let plan = Arc::new(Plan { entity: entity.to_owned(), takes, wanted });
        self.new_schema |= !plan.takes.is_empty();
        self.plans.insert(schema_id.to_owned(), plan.clone());
        plan
    }
}

/// Whether it names one record: not a wildcard, and not the overflow's.
fn is_record_id(id: &str) -> bool {
    matches!(id.len(), 15 | 18) && id != OVERFLOW_ID && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// What changed, by the header's bitmaps.
struct Sets {
    nulled: FieldSet,
    diff: FieldSet,
    changed: FieldSet,
}

impl Sets {
    fn of(header: &Header) -> Result<Self, super::bitmap::BitmapError> {
        Ok(Self {
            nulled: FieldSet::parse(&header.nulled_fields)?,
            diff: FieldSet::parse(&header.diff_fields)?,
            changed: FieldSet::parse(&header.changed_fields)?,
        })
    }
}

impl Take {
    fn new(mapping: &MappingDef, schema: &EventSchema) -> Self {
        let taken = |name: &str| {
            let field = mapping.field_named(name)?;
            let captured = !matches!(field.kind, FieldKind::Relationship { .. }) && implied(field).is_none();
            captured.then(|| (field.id, field.kind.clone()))
        };
        let slots = schema.fields().iter().map(|field| match field.node.members() {
            None => taken(&field.name).map_or(Slot::Skip, |(id, kind)| Slot::Whole(id, kind)),
            Some(members) => {
                let whole = taken(&field.name);
                let parts: Vec<_> = members.iter().map(|m| taken(&member_name(&field.name, &m.name))).collect();
                if whole.is_none() && parts.iter().all(Option::is_none) {
                    Slot::Skip
                } else {
                    Slot::Compound(whole, parts)
                }
            }
        });
        let implied = mapping.fields.iter().filter_map(|field| implied(field).map(|what| (field.id, what)));
        Self { mapping: mapping.id, slots: slots.collect(), implied: implied.collect() }
    }

    fn told(&self, operation: RowOperation, header: &Header, values: &[Option<Avro>], sets: &Sets) -> Told {
        let mut told = Told { mapping: self.mapping, fields: Vec::new(), untold: Vec::new() };
        if operation == RowOperation::Delete {
            return told;
        }
        let all = operation != RowOperation::Update;
        for (n, (slot, value)) in self.slots.iter().zip(values).enumerate() {
            let value = value.as_ref().map_or(&Avro::Null, unwrapped);
            let touched = all || sets.changed.contains(n) || sets.nulled.contains(n);
            match slot {
                Slot::Whole(field, _) if sets.diff.contains(n) => {
                    told.untold.push(Untold { field: *field, sha256: sha256_of_diff(value) });
                }
                Slot::Whole(field, kind) if touched => told.fields.push((*field, from_avro(kind, value))),
                Slot::Skip | Slot::Whole(..) => {}
                Slot::Compound(whole, parts) => {
                    let touched = |m| all || sets.changed.contains_member(n, m) || sets.nulled.contains_member(n, m);
                    let any = all || sets.changed.touches(n) || sets.nulled.touches(n);
                    match (whole, value) {
                        // The text branch of a union: a business account's name.
                        (Some((field, kind)), Avro::String(_)) if any => {
                            told.fields.push((*field, from_avro(kind, value)));
                        }
                        (Some((field, kind)), Avro::Null) if any && !sets.changed.touches(n) => {
                            told.fields.push((*field, normalise(kind, Value::Null)));
                        }
                        // Composed from the members by the org's rules, which the event does not tell.
                        (Some((field, _)), _) if any => told.untold.push(Untold { field: *field, sha256: None }),
                        _ => {}
                    }
                    for (m, part) in parts.iter().enumerate() {
                        if let Some((field, kind)) = part
                            && touched(m)
                        {
                            told.fields.push((*field, from_avro(kind, member(value, m))));
                        }
                    }
                }
            }
        }
        for (field, what) in &self.implied {
            match what {
                // The id differs between the records of one event; `Told::for_record` puts it in.
                Implied::Id if all => told.fields.push((*field, Value::Null)),
                Implied::IsDeleted if all => told.fields.push((*field, Value::Bool(false))),
                Implied::SystemModstamp => {
                    let stamp = header.commit_timestamp.saturating_mul(1_000);
                    told.fields.push((*field, normalise(&FieldKind::DateTime, Value::Timestamp(stamp))));
                }
                Implied::Id | Implied::IsDeleted => {}
            }
        }
        told.fields.sort_by_key(|(field, _)| *field);
        told
    }
}

impl Told {
    /// The values for one of the event's records.
    pub(crate) fn for_record(&self, mapping: &MappingDef, id: &Str) -> Vec<(FieldId, Value)> {
        let mut fields = self.fields.clone();
        let id_field = mapping.id_field().map(|field| field.id);
        for (_, value) in fields.iter_mut().filter(|(field, _)| Some(*field) == id_field) {
            *value = Value::Text(id.clone());
        }
        fields
    }
}

fn implied(field: &FieldDef) -> Option<Implied> {
    match field.name.as_str() {
        _ if field.kind == FieldKind::Id => Some(Implied::Id),
        name if name.eq_ignore_ascii_case("IsDeleted") => Some(Implied::IsDeleted),
        name if name.eq_ignore_ascii_case("SystemModstamp") => Some(Implied::SystemModstamp),
        _ => None,
    }
}

fn unwrapped(value: &Avro) -> &Avro {
    match value {
        Avro::Union(_, inner) => unwrapped(inner),
        other => other,
    }
}

fn member(value: &Avro, m: usize) -> &Avro {
    match value {
        Avro::Record(members) => members.get(m).map_or(&Avro::Null, |(_, value)| unwrapped(value)),
        _ => &Avro::Null,
    }
}

/// The hash in a difference's second line, `+++ <SHA-256 of the new value>`.
fn sha256_of_diff(value: &Avro) -> Option<String> {
    let Avro::String(diff) = value else { return None };
    let hash = diff.lines().nth(1)?.strip_prefix("+++ ")?.trim();
    (hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hash.to_ascii_lowercase())
}

#[cfg(test)]
#[path = "capture_event_tests.rs"]
pub(crate) mod tests;
