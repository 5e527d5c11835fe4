//! From one [`Write`] to one element of a collection call: which verb carries it, and what its body says.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use crate::change::{Catalog, FieldDef, FieldKind, MappingDef, Offset, Side, Str, Value, WriteKind};
use crate::flow::{Mended, Write, WriteValue, Written};
use crate::mapping::to_json;
use crate::salesforce::id18;

/// The request that carries rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// `PATCH /composite/sobjects/<sObject>/<ExternalIdField>`.
    Upsert,
    /// `POST /composite/sobjects`, for mappings without an external id field.
    Insert,
    /// `PATCH /composite/sobjects`, by record id.
    Update,
    /// `DELETE /composite/sobjects?ids=`.
    Delete,
}

/// One row, ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Its place in the batch.
    pub(super) index: usize,
    /// The ticket of its write.
    pub(super) ticket: Offset,
    /// What carries it.
    pub(super) verb: Verb,
    /// The object's API name.
    pub(super) sobject: Str,
    /// The external id field, for an upsert.
    pub(super) external_field: Str,
    /// The rank of its mapping: parents have lower ranks.
    pub(super) rank: u16,
    /// The record id, for an update or delete.
    pub(super) id: Option<Str>,
    /// What names the record within a call, in a form that is equal when Salesforce takes two names as the same.
    pub(super) name: String,
    /// The fields to send. Empty for a delete.
    pub(super) body: Map<String, Json>,
    /// Fields whose null a create leaves out, so that the org's defaults apply, and that an update may set.
    pub(super) left_out: Vec<Str>,
    /// Names in the body that Salesforce takes when it creates a record, and not when the upsert finds one.
    pub(super) create_only: Vec<Str>,
    /// Whether this only clears the left out fields of a record that an upsert found.
    pub(super) clears: bool,
}

/// What becomes of a write before anything is sent.
#[derive(Debug)]
pub(super) enum Prepared {
    /// It is sent.
    Send(Row),
    /// It is answered at once.
    Answer(Written),
}

fn refused(code: &str, message: String) -> Prepared {
    Prepared::Answer(Written::Refused { code: code.into(), message: message.into() })
}

fn retry(code: &str, message: &str) -> Prepared {
    Prepared::Answer(Written::Retry { code: code.into(), message: message.into(), mended: Mended::Perhaps })
}

/// Prepares the write at `index` of a batch.
pub(super) fn prepare(index: usize, write: &Write, catalog: &Catalog) -> Prepared {
    let Some(mapping) = catalog.mapping(write.mapping) else {
        return refused("NOT_MAPPED", format!("mapping {} is not in the configuration in force", write.mapping.0));
    };
    match write.kind {
        WriteKind::Create => create(index, write, mapping),
        WriteKind::Update => update(index, write, mapping),
        WriteKind::Delete => match &write.salesforce_id {
            Some(id) => Prepared::Send(row(index, write, Verb::Delete, mapping, Some(id))),
            None => retry("NO_SALESFORCE_ID", "the record's Salesforce id is not known yet, so it cannot be deleted"),
        },
    }
}

fn row(index: usize, write: &Write, verb: Verb, mapping: &MappingDef, id: Option<&Str>) -> Row {
    let id = id.map(|id| id18(id));
    Row {
        index,
        ticket: write.ticket,
        verb,
        sobject: Str::new(&mapping.sobject),
        external_field: Str::default(),
        rank: mapping.rank,
        name: id.as_deref().unwrap_or_default().to_owned(),
        id,
        body: Map::new(),
        left_out: Vec::new(),
        create_only: Vec::new(),
        clears: false,
    }
}

fn create(index: usize, write: &Write, mapping: &MappingDef) -> Prepared {
    let verb = if mapping.external_id.is_some() { Verb::Upsert } else { Verb::Insert };
    let mut row = row(index, write, verb, mapping, None);
    for (field, value) in mapped(write, mapping).filter(|(field, _)| field.createable) {
        if value.is_null() && field.kind != FieldKind::Boolean {
            if field.updateable {
                row.left_out.push(lookup_of(field).map_or_else(|| Str::new(&field.name), Str::from));
            }
        } else if let Err(written) = put(&mut row.body, field, value) {
            return Prepared::Answer(written);
        } else if !field.updateable {
            row.create_only.push(Str::new(body_name(field)));
        }
    }
    let named = named_lookups(&row.body, mapping);
    let mut told_once = BTreeSet::new();
    row.left_out.retain(|name| {
        !row.body.contains_key(name.as_str()) && !named.contains(name.as_str()) && told_once.insert(name.clone())
    });
    let Some(external) = mapping.external_id else {
        return Prepared::Send(row);
    };
    let Some(field) = mapping.field(external) else {
        return refused("NOT_MAPPED", format!("the external id field of mapping {} is not mapped", mapping.name));
    };
    let told = write.external_id.as_ref().filter(|id| !id.is_empty()).map(|id| external_value(&field.kind, id));
    let held = write.values.iter().find(|v| v.field == external).map(|v| v.value.clone()).filter(|v| !v.is_null());
    let Some(value) = told.or(held) else {
        return refused(
            "MISSING_EXTERNAL_ID",
            format!(
                "the record has no value in {}, by which Salesforce would know it again; give column {} a value or a default",
                field.name, field.column
            ),
        );
    };
    if let Err(written) = put(&mut row.body, field, &value) {
        return Prepared::Answer(written);
    }
    row.left_out.retain(|name| *name != field.name);
    row.create_only.retain(|name| *name != field.name);
    row.external_field = Str::new(&field.name);
    row.name = value.to_string().to_lowercase();
    Prepared::Send(row)
}

fn external_value(kind: &FieldKind, id: &str) -> Value {
    match kind {
        FieldKind::Number { .. } | FieldKind::Integer => Value::number(id).unwrap_or_else(|_| Value::text(id)),
        _ => Value::text(id),
    }
}

fn update(index: usize, write: &Write, mapping: &MappingDef) -> Prepared {
    let Some(id) = &write.salesforce_id else {
        return retry("NO_SALESFORCE_ID", "the record's Salesforce id is not known yet, so it cannot be updated");
    };
    let mut row = row(index, write, Verb::Update, mapping, Some(id));
    let mut cleared = Vec::new();
    for (field, value) in mapped(write, mapping) {
        if !field.updateable {
            if field.owner == Some(Side::Salesforce) {
                continue;
            }
            // To leave it out would answer "done" for a value that is never written.
            return refused(
                "FIELD_NOT_UPDATEABLE",
                format!("Salesforce does not take {} of {} on update", field.name, mapping.sobject),
            );
        }
        if let Err(written) = put(&mut row.body, field, value) {
            return Prepared::Answer(written);
        }
        if value.is_null() {
            cleared.extend(lookup_of(field));
        }
    }
    // A parent is taken away by its lookup: Salesforce takes no null in the place of the parent's own object.
    for lookup in cleared {
        row.body.entry(lookup).or_insert(Json::Null);
    }
    drop_overridden_lookups(&mut row.body, mapping);
    if row.body.is_empty() {
        return Prepared::Answer(Written::Done { salesforce_id: row.id });
    }
    Prepared::Send(row)
}

/// The values of a write whose fields are mapped and not the record's own id.
fn mapped<'a>(write: &'a Write, mapping: &'a MappingDef) -> impl Iterator<Item = (&'a FieldDef, &'a Value)> {
    write
        .values
        .iter()
        .filter_map(|WriteValue { field, value, .. }| mapping.field(*field).map(|field| (field, value)))
        .filter(|(field, _)| field.kind != FieldKind::Id)
}

/// Puts one value into a body, a parent's external id as an object of its own. A null external id has no place there.
fn put(body: &mut Map<String, Json>, field: &FieldDef, value: &Value) -> Result<(), Written> {
    let json = to_json(&field.kind, value).map_err(|error| Written::Refused {
        code: "VALUE_NOT_ACCEPTABLE".into(),
        message: smol_str::format_smolstr!("the value of {} cannot be written to Salesforce: {error}", field.name),
    })?;
    match &field.kind {
        FieldKind::Relationship { .. } if value.is_null() => {}
        FieldKind::Relationship { relationship, external_id } => {
            let mut parent = Map::new();
            parent.insert(external_id.clone(), json);
            body.insert(relationship.clone(), Json::Object(parent));
        }
        _ => {
            body.insert(field.name.clone(), json);
        }
    }
    Ok(())
}

/// The name under which a field's value is in a body.
fn body_name(field: &FieldDef) -> &str {
    match &field.kind {
        FieldKind::Relationship { relationship, .. } => relationship,
        _ => &field.name,
    }
}

/// The lookup behind a field that names a parent by its external id.
fn lookup_of(field: &FieldDef) -> Option<String> {
    match &field.kind {
        FieldKind::Relationship { relationship, .. } => Some(match relationship.strip_suffix("__r") {
            Some(custom) => format!("{custom}__c"),
            None => format!("{relationship}Id"),
        }),
        _ => None,
    }
}

/// The lookups whose parent a body names by its external id.
fn named_lookups(body: &Map<String, Json>, mapping: &MappingDef) -> BTreeSet<String> {
    mapping.fields.iter().filter(|field| body.contains_key(body_name(field))).filter_map(lookup_of).collect()
}

/// A lookup that is null while the same parent is named by its external id is left out: Salesforce takes only one of the two.
fn drop_overridden_lookups(body: &mut Map<String, Json>, mapping: &MappingDef) {
    for lookup in named_lookups(body, mapping) {
        if body.get(&lookup).is_some_and(Json::is_null) {
            body.remove(&lookup);
        }
    }
}

impl Row {
    /// The element of a collection call's `records`.
    pub(super) fn record(&self) -> Json {
        let mut record = Map::with_capacity(self.body.len() + 2);
        let mut attributes = Map::new();
        attributes.insert("type".into(), Json::from(self.sobject.as_str()));
        record.insert("attributes".into(), Json::Object(attributes));
        if self.verb == Verb::Update
            && let Some(id) = &self.id
        {
            record.insert("id".into(), Json::from(id.as_str()));
        }
        record.extend(self.body.iter().map(|(name, value)| (name.clone(), value.clone())));
        Json::Object(record)
    }

    /// About how many bytes it takes in a request.
    pub(super) fn size(&self) -> usize {
        fn size(json: &Json) -> usize {
            match json {
                Json::String(text) => text.len() + 2,
                Json::Object(map) => map.iter().map(|(name, value)| name.len() + 4 + size(value)).sum(),
                _ => 24,
            }
        }
        80 + self.body.iter().map(|(name, value)| name.len() + 4 + size(value)).sum::<usize>()
    }

    /// The update of the record with this id to all that the create was to give it.
    pub(super) fn updating(mut self, id: Str) -> Self {
        for name in self.create_only.drain(..) {
            self.body.remove(name.as_str());
        }
        self.body.extend(self.left_out.drain(..).map(|name| (name.to_string(), Json::Null)));
        Self { verb: Verb::Update, name: id.to_string(), id: Some(id), ..self }
    }

    /// The update of the record with this id that clears what the create left out.
    pub(super) fn clearing(mut self, id: Str) -> Self {
        self.body = self.left_out.drain(..).map(|name| (name.to_string(), Json::Null)).collect();
        Self { verb: Verb::Update, name: id.to_string(), id: Some(id), clears: true, ..self }
    }

    /// The same upsert for a record that is there.
    pub(super) fn without_create_only(mut self) -> Self {
        for name in self.create_only.drain(..) {
            self.body.remove(name.as_str());
        }
        self
    }

    /// Whether a field or relationship of this API name is sent.
    pub(super) fn sends(&self, name: &str) -> bool {
        self.body.keys().any(|key| key.eq_ignore_ascii_case(name))
    }

    /// Whether a parent is named by this external id.
    pub(super) fn names_parent(&self, external_field: &str, value: &str) -> bool {
        self.body.values().filter_map(Json::as_object).flatten().any(|(name, held)| {
            name.eq_ignore_ascii_case(external_field)
                && match held {
                    Json::String(text) => text.eq_ignore_ascii_case(value),
                    Json::Number(number) => number.to_string() == value,
                    _ => false,
                }
        })
    }
}
