//! `[[mapping]]`: one sObject and one table, and their fields.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::{Document, hint};
use super::link::NAME_MAX;
use crate::change::{DeletePolicy, ForeignEdit, InitialMerge, Policy, Side, TruncatePolicy};

/// Which way a mapping's edits go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Both ways.
    #[default]
    ReadWrite,
    /// From Salesforce only. In PostgreSQL an edit is reverted, a deleted row is put back (with a new primary key), and a new
    /// row is removed again; each is on record.
    ReadOnly,
}

/// One sObject and one table, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["sobject", "fields"]))]
pub struct MappingConfig {
    /// Its name in the CLI and the log; the sObject's name in lower case if left out.
    pub name: String,
    /// The sObject's API name.
    pub sobject: String,
    /// The table; the sObject's name in lower case if left out.
    pub table: String,
    /// Which way edits go.
    pub access: Access,
    /// The external id field by which records born in PostgreSQL are created in Salesforce, exactly once. Only a read_only
    /// mapping can do without.
    pub external_id: Option<String>,
    /// The fields: names, or tables with what is special about a field. `"*"` is every field of the sObject that can be mapped
    /// and is not listed beside it.
    #[schemars(length(min = 1))]
    pub fields: Vec<FieldConfig>,
    /// Fields that `"*"` leaves out.
    pub exclude: Vec<String>,
    /// How conflicts end here, if other than the link says.
    pub policy: Option<Policy>,
    /// What wins between a delete and an unseen edit, if other than the link says.
    pub delete: Option<DeletePolicy>,
    /// What a TRUNCATE of the table comes to: `stop` refuses it, `propagate` deletes each record, `ignore` keeps the records and
    /// writes their rows again.
    pub truncate: TruncatePolicy,
    /// Whose values stand when two populated sides are joined, if other than the link says.
    pub initial_merge: Option<InitialMerge>,
    /// Whether what exists already is copied when the mapping begins.
    pub backfill: bool,
}

impl Default for MappingConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            sobject: String::new(),
            table: String::new(),
            access: Access::default(),
            external_id: None,
            fields: Vec::new(),
            exclude: Vec::new(),
            policy: None,
            delete: None,
            truncate: TruncatePolicy::default(),
            initial_merge: None,
            backfill: true,
        }
    }
}

/// One field, as configured: `"Phone"`, or a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldConfig {
    /// The sObject field's API name, or `Relationship.ExternalId` to name a parent by its external id.
    pub name: String,
    /// The column, if it is not the field's name in lower case.
    pub column: Option<String>,
    /// How its conflicts end, if other than the mapping says.
    pub policy: Option<Policy>,
    /// The only side whose edits count.
    pub owner: Option<Side>,
    /// What happens to the other side's edits.
    pub foreign_edit: Option<ForeignEdit>,
}

/// What stands for every field in a mapping's list.
pub const EVERY_FIELD: &str = "*";

impl MappingConfig {
    /// Whether fields are mapped that are not listed.
    pub fn has_every_field(&self) -> bool {
        self.fields.iter().any(|field| field.name == EVERY_FIELD)
    }
}

impl FieldConfig {
    /// A field of which nothing is special.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The column that the mirror has for it.
    pub fn column_name(&self) -> String {
        self.column.clone().unwrap_or_else(|| default_column(&self.name))
    }
}

/// The column that Heroku Connect gives a field: its name in lower case, `sfid` for `Id`, `account__ext__c` for
/// `Account.Ext__c`, cut to the 63 bytes that PostgreSQL keeps.
pub fn default_column(field: &str) -> String {
    if field.eq_ignore_ascii_case("Id") {
        return "sfid".to_owned();
    }
    let mut column = field.to_ascii_lowercase().replace('.', "__");
    column.truncate(column.floor_char_boundary(NAME_MAX));
    column
}

/// A field's table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "FieldTable")]
struct FieldTable {
    /// The sObject field's API name, or `Relationship.ExternalId` to name a parent by its external id.
    name: String,
    /// The column, if it is not the field's name in lower case.
    column: Option<String>,
    /// How its conflicts end, if other than the mapping says.
    policy: Option<Policy>,
    /// The only side whose edits count.
    owner: Option<Side>,
    /// What happens to the other side's edits; needs `owner`.
    foreign_edit: Option<ForeignEdit>,
}

impl<'de> Deserialize<'de> for FieldConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;

        impl<'de> serde::de::Visitor<'de> for NameOrTable {
            type Value = FieldConfig;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("field names, or tables like { name = \"Phone\", column = \"phone\" }")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<FieldConfig, E> {
                Ok(FieldConfig::named(name))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<FieldConfig, A::Error> {
                let FieldTable { name, column, policy, owner, foreign_edit } =
                    FieldTable::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(FieldConfig { name, column, policy, owner, foreign_edit })
            }
        }

        deserializer.deserialize_any(NameOrTable)
    }
}

impl JsonSchema for FieldConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Field".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A field: its API name, or a table with what is special about it.",
            "anyOf": [{ "type": "string", "minLength": 1 }, generator.subschema_for::<FieldTable>()],
        })
    }
}

/// Fills in what follows from the sObject's name, and checks all mappings against each other.
pub(super) fn check(mappings: &mut [MappingConfig], doc: &mut Document<'_>) {
    if mappings.is_empty() && !doc.has("mapping") {
        doc.fault("mapping", "nothing is mapped", "[[mapping]]");
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut tables: BTreeMap<String, usize> = BTreeMap::new();
    let mut sobjects: BTreeMap<String, usize> = BTreeMap::new();
    for (n, mapping) in mappings.iter_mut().enumerate() {
        let at = format!("mapping.{n}");
        if !doc.has(&format!("{at}.sobject")) {
            doc.missing(&at, "sobject");
        } else if !is_api_name(&mapping.sobject) {
            doc.fault(&format!("{at}.sobject"), "`sobject` is not an API name", hint("mapping", "sobject"));
        }
        let lower = mapping.sobject.to_ascii_lowercase();
        for (key, value) in [("name", &mut mapping.name), ("table", &mut mapping.table)] {
            if value.is_empty() {
                if doc.has(&format!("{at}.{key}")) {
                    doc.fault(&format!("{at}.{key}"), format!("`{key}` is empty"), hint("mapping", key));
                }
                value.clone_from(&lower);
            }
        }
        if mapping.table.len() > NAME_MAX {
            doc.fault(
                &format!("{at}.table"),
                "`table` is longer than the 63 bytes that PostgreSQL takes",
                hint("mapping", "table"),
            );
        }
        if !mapping.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
            let what = "a mapping's name holds letters, digits, dashes and underscores only";
            doc.fault(&format!("{at}.name"), what, hint("mapping", "name"));
        }
        for (seen, value, key) in [
            (&mut names, &mapping.name, "name"),
            (&mut tables, &mapping.table, "table"),
            (&mut sobjects, &lower, "sobject"),
        ] {
            if value.is_empty() {
                continue;
            }
            if let Some(first) = seen.insert(value.clone(), n + 1) {
                let what = format!("the {key} `{value}` is already that of mapping {first}");
                doc.fault(&format!("{at}.{key}"), what, format!("another {key}, or one [[mapping]] less"));
            }
        }
        if mapping.access == Access::ReadWrite && mapping.external_id.as_deref().is_none_or(str::is_empty) {
            let what = "the mapping has no `external_id`, by which Salesforce tells the records of rows that are born in \
                        PostgreSQL: they would be created twice";
            let write = "external_id = \"External_ID__c\" (a unique external id field), or access = \"read_only\"";
            doc.fault(&format!("{at}.external_id"), what, write);
        }
        check_fields(mapping, &at, doc);
    }
}

fn check_fields(mapping: &MappingConfig, at: &str, doc: &mut Document<'_>) {
    if !doc.has(&format!("{at}.fields")) {
        doc.missing(at, "fields");
    } else if mapping.fields.is_empty() {
        doc.fault(&format!("{at}.fields"), "`fields` names no field", hint("mapping", "fields"));
    }
    if !mapping.exclude.is_empty() && !mapping.has_every_field() {
        let what = "`exclude` says what \"*\" leaves out, and `fields` has no \"*\"";
        doc.fault(&format!("{at}.exclude"), what, "fields = [\"*\"], or leave out `exclude`");
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut columns: BTreeMap<String, usize> = BTreeMap::new();
    for (n, field) in mapping.fields.iter().enumerate() {
        let path = format!("{at}.fields.{n}");
        let name = &field.name;
        if *field == FieldConfig::named(EVERY_FIELD) && names.insert(EVERY_FIELD.to_owned(), n).is_none() {
            continue;
        }
        let is_relationship = name.contains('.');
        if !name.split('.').all(is_api_name) || name.split('.').count() > 2 {
            let what = format!("`{name}` is not a field's API name, nor a relationship and an external id");
            doc.fault(&path, what, "\"Phone\" or \"Account.External_ID__c\"");
            continue;
        }
        if let Some(first) = names.insert(name.to_ascii_lowercase(), n) {
            doc.fault(&path, format!("the field `{name}` is listed twice (also as number {})", first + 1), "it once");
            continue;
        }
        let column = field.column_name();
        if column.is_empty() || column.len() > NAME_MAX {
            doc.fault(&path, format!("the column of `{name}` must have 1 to 63 bytes"), "column = \"phone\"");
        } else if let Some(first) = columns.insert(column.clone(), n) {
            let other = mapping.fields.get(first).map_or("another field", |f| f.name.as_str());
            doc.fault(
                &path,
                format!("the column `{column}` of `{name}` is already that of `{other}`"),
                "column = another one",
            );
        }
        if field.foreign_edit.is_some() && field.owner.is_none() {
            let what = format!("`{name}` has `foreign_edit` but no `owner`, and only owned fields have foreign edits");
            doc.fault(&path, what, "owner = \"salesforce\" or owner = \"postgres\"");
        }
        if mapping.access == Access::ReadOnly && field.owner == Some(Side::Postgres) {
            let what = format!("`{name}` is owned by postgres, but the mapping is read_only");
            doc.fault(&path, what, "access = \"read_write\"");
        }
        if mapping.access == Access::ReadOnly && is_relationship {
            let what = format!("`{name}` names a parent for writing to Salesforce, but the mapping is read_only");
            doc.fault(&path, what, "access = \"read_write\"");
        }
        if is_relationship && field.owner == Some(Side::Salesforce) {
            let what = format!("`{name}` is never read from Salesforce, so Salesforce cannot own it");
            doc.fault(&path, what, "it without `owner`");
        }
    }
}

/// Whether this could be the API name of an sObject or a field.
fn is_api_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
