//! The mirror tables, as Heroku Connect makes them, so that applications move over unchanged.
//!
//! Tables and columns are the API names in lower case; the record's Salesforce id is `sfid`; the primary key is a
//! serial
//! `id`; `_hc_lastop` and `_hc_err` are there for those who read them. Indexes are `hcu_idx_<table>_<column>`
//! (unique) and
//! `hc_idx_<table>_<column>`. All statements can be run again: what exists is left alone.

use super::describe::{SobjectDescription, SobjectField};
use crate::change::{FieldDef, FieldKind, MappingDef};
use crate::config::{NAME_MAX, Numbers};

/// Columns of every mirror table that belong to no field.
pub const SYSTEM_COLUMNS: [(&str, &str); 3] =
    [("id", "serial PRIMARY KEY"), ("_hc_lastop", "varchar(32)"), ("_hc_err", "text")];

/// An identifier in double quotes.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table with its schema, both quoted.
pub fn qualified(schema: &str, table: &str) -> String {
    format!("{}.{}", quote_ident(schema), quote_ident(table))
}

/// A text literal. Backslashes are not special (`standard_conforming_strings`, the default since 9.1).
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The statements that make or complete a mapping's schema, table, columns and indexes.
///
/// `sobjects` must hold the mapping's own sObject, for the types of its columns; parents named by an external id are
/// looked up
/// there too, and taken for text if they are missing.
pub fn statements(mapping: &MappingDef, sobjects: &[SobjectDescription], numbers: Numbers) -> Vec<String> {
    let table = qualified(&mapping.schema, &mapping.table);
    let columns: Vec<(String, String)> = mapping
        .fields
        .iter()
        .filter(|f| f.kind != FieldKind::Id)
        .chain(mapping.id_field())
        .map(|f| (quote_ident(&f.column), column_type(f, &mapping.sobject, sobjects, numbers)))
        .collect();
    let mut statements = vec![format!("CREATE SCHEMA IF NOT EXISTS {}", quote_ident(&mapping.schema))];
    let is_mapped = |name: &str| mapping.fields.iter().any(|f| f.column == name);
    // A table with any other key is its owner's: it exists, and gets nothing but the mapped columns.
    if mapping.key_columns == ["id"] && !is_mapped("id") {
        let system = SYSTEM_COLUMNS.iter().map(|(name, sql_type)| (quote_ident(name), (*sql_type).to_owned()));
        let all: Vec<String> = columns.iter().cloned().chain(system).map(|(name, t)| format!("{name} {t}")).collect();
        statements.push(format!("CREATE TABLE IF NOT EXISTS {table} (\n    {}\n)", all.join(",\n    ")));
    }
    let added: Vec<String> = columns.iter().map(|(name, t)| format!("ADD COLUMN IF NOT EXISTS {name} {t}")).collect();
    statements.push(format!("ALTER TABLE {table}\n    {}", added.join(",\n    ")));
    statements.extend(indexes(mapping, sobjects).into_iter().map(|(name, column, unique)| {
        format!(
            "CREATE {}INDEX IF NOT EXISTS {} ON {table} ({})",
            if unique { "UNIQUE " } else { "" },
            quote_ident(&name),
            quote_ident(&column)
        )
    }));
    statements
}

/// Name, column and uniqueness of each index.
fn indexes(mapping: &MappingDef, sobjects: &[SobjectDescription]) -> Vec<(String, String, bool)> {
    let sobject = sobjects.iter().find(|s| s.name.eq_ignore_ascii_case(&mapping.sobject));
    let mut indexes: Vec<(String, String, bool)> = Vec::new();
    for field in &mapping.fields {
        let described = sobject.and_then(|s| s.field(&field.name));
        let is_external_id = described.is_some_and(|d| d.external_id && d.unique);
        let unique = field.kind == FieldKind::Id || mapping.external_id == Some(field.id) || is_external_id;
        if unique || field.name == "SystemModstamp" {
            let prefix = if unique { "hcu_idx" } else { "hc_idx" };
            let name = index_name(prefix, &mapping.table, &field.column, &indexes);
            indexes.push((name, field.column.clone(), unique));
        }
    }
    indexes
}

/// The index's name cut to what PostgreSQL keeps. Where that is another's already, a number takes the place of the end.
fn index_name(prefix: &str, table: &str, column: &str, taken: &[(String, String, bool)]) -> String {
    let full = format!("{prefix}_{table}_{column}");
    let cut = |limit: usize| full.get(..full.floor_char_boundary(limit)).unwrap_or(&full).to_owned();
    let mut name = cut(NAME_MAX);
    let mut n = 1;
    while taken.iter().any(|(t, ..)| *t == name) {
        n += 1;
        let suffix = format!("_{n}");
        name = cut(NAME_MAX - suffix.len()) + &suffix;
    }
    name
}

/// The type of a field's column.
pub fn column_type(field: &FieldDef, sobject: &str, sobjects: &[SobjectDescription], numbers: Numbers) -> String {
    let find = |name: &str| sobjects.iter().find(|s| s.name.eq_ignore_ascii_case(name));
    let own = find(sobject);
    let described = match &field.kind {
        FieldKind::Relationship { relationship, external_id } => own
            .and_then(|s| s.relationship(relationship))
            .and_then(|reference| reference.reference_to.first())
            .and_then(|parent| find(parent))
            .and_then(|parent| parent.field(external_id)),
        _ => own.and_then(|s| s.field(&field.name)),
    };
    match described {
        Some(described) => described_type(described, numbers),
        None => kind_type(&field.kind, numbers),
    }
}

fn described_type(field: &SobjectField, numbers: Numbers) -> String {
    match field.sf_type.as_str() {
        "long" => "bigint".to_owned(),
        "double" | "currency" | "percent" if numbers == Numbers::Numeric && field.precision > 0 => {
            format!("numeric({},{})", field.precision, field.scale)
        }
        _ => field.kind.as_ref().map_or_else(|| "text".to_owned(), |kind| kind_type(kind, numbers)),
    }
}

fn kind_type(kind: &FieldKind, numbers: Numbers) -> String {
    match kind {
        FieldKind::Id | FieldKind::Reference { .. } => "varchar(18)",
        FieldKind::Text { length: length @ 1..=255 } => return format!("varchar({length})"),
        FieldKind::Text { .. } => "text",
        FieldKind::Picklist | FieldKind::Relationship { .. } => "varchar(255)",
        FieldKind::MultiPicklist => "varchar(4099)",
        FieldKind::Boolean => "boolean",
        FieldKind::Integer => "integer",
        FieldKind::Number { .. } if numbers == Numbers::Numeric => "numeric",
        FieldKind::Number { .. } => "double precision",
        FieldKind::Date => "date",
        FieldKind::DateTime => "timestamp without time zone",
        FieldKind::Time => "time without time zone",
    }
    .to_owned()
}

#[cfg(test)]
mod tests;
