//! Both sides, field by field, by their canonical values. It reads the sides themselves and not the log.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use crate::change::{Catalog, FieldKind, MappingDef, Value};
use crate::error::Result;
use crate::mapping::{from_json, from_postgres};
use crate::postgres::connect::{Session, database_error};
use crate::sandbox::Running;

/// What comparing found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Records on both sides.
    pub records: u64,
    /// Values compared.
    pub values: u64,
    /// Differences, in words.
    pub differences: Vec<String>,
}

type Rows = BTreeMap<String, BTreeMap<String, Value>>;

/// Compares every mapped record and field of a database with a sandbox org. Rows without a Salesforce id are differences.
pub async fn compare(catalog: &Catalog, session: &Session, org: &Running) -> Result<Comparison> {
    let mut found = Comparison::default();
    for mapping in &catalog.mappings {
        let mut unborn = Vec::new();
        let postgres = postgres_rows(mapping, session, &mut unborn).await?;
        let salesforce = salesforce_rows(mapping, org)?;
        found
            .differences
            .extend(unborn.into_iter().map(|key| format!("{}: row {key} has no Salesforce id", mapping.name)));
        for (id, fields) in &salesforce {
            let Some(row) = postgres.get(id) else {
                found.differences.push(format!("{} {id}: only in Salesforce", mapping.name));
                continue;
            };
            found.records += 1;
            for (field, value) in fields {
                found.values += 1;
                let other = row.get(field).unwrap_or(&Value::Null);
                if other != value {
                    found
                        .differences
                        .push(format!("{} {id} {field}: postgres has {other}, salesforce has {value}", mapping.name));
                }
            }
        }
        found.differences.extend(
            postgres
                .keys()
                .filter(|id| !salesforce.contains_key(*id))
                .map(|id| format!("{} {id}: only in postgres", mapping.name)),
        );
    }
    Ok(found)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

async fn postgres_rows(mapping: &MappingDef, session: &Session, unborn: &mut Vec<String>) -> Result<Rows> {
    let columns: Vec<String> = mapping.fields.iter().map(|f| format!("{}::text", quoted(&f.column))).collect();
    let keys: Vec<String> = mapping.key_columns.iter().map(|k| format!("{}::text", quoted(k))).collect();
    let sql = format!(
        "SELECT {}, {} FROM {}.{}",
        keys.join(" || ',' || "),
        columns.join(", "),
        quoted(&mapping.schema),
        quoted(&mapping.table)
    );
    let rows = session.query(&sql, &[]).await.map_err(|e| database_error("comparing rows", e))?;
    let mut found = Rows::new();
    for row in rows {
        let mut fields = BTreeMap::new();
        let mut id = None;
        for (n, field) in mapping.fields.iter().enumerate() {
            let text: Option<&str> = row.get(n + 1);
            let value = text.map_or(Value::Null, |text| from_postgres(&field.kind, 25, text));
            let value = crate::mapping::normalise(&field.kind, value);
            if field.kind == FieldKind::Id {
                id = value.as_text().map(str::to_owned);
            }
            fields.insert(field.name.clone(), value);
        }
        match id {
            Some(id) => drop(found.insert(id, fields)),
            None => unborn.push(row.get(0)),
        }
    }
    Ok(found)
}

fn salesforce_rows(mapping: &MappingDef, org: &Running) -> Result<Rows> {
    let dump = org.admin("GET", &format!("/dump/{}", mapping.sobject), &Json::Null)?;
    let mut found = Rows::new();
    for record in dump["records"].as_array().into_iter().flatten() {
        let mut fields = BTreeMap::new();
        for field in &mapping.fields {
            if !matches!(field.kind, FieldKind::Relationship { .. }) {
                fields.insert(field.name.clone(), from_json(&field.kind, &record[&field.name]));
            }
        }
        found.insert(record["Id"].as_str().unwrap_or_default().to_owned(), fields);
    }
    Ok(found)
}
