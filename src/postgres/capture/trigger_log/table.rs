//! A mapped table's columns, compiled once, for rows that triggers have logged.

use super::hstore::Columns;
use crate::change::{FieldId, FieldKind, Key, MappingDef, MappingId, Str, TruncatePolicy, Value};
use crate::error::{Error, Kind, Result};
use crate::mapping;
use crate::postgres::introspect::TableDetail;

/// What of a table's rows is taken, and as what.
#[derive(Debug)]
pub(super) struct LoggedTable {
    pub(super) mapping: MappingId,
    pub(super) truncate: TruncatePolicy,
    label: String,
    key: Vec<String>,
    /// By ascending field id.
    fields: Vec<LoggedField>,
}

#[derive(Debug)]
struct LoggedField {
    id: FieldId,
    name: String,
    column: String,
    kind: FieldKind,
    /// The column's type, a domain's base type.
    type_oid: u32,
}

/// What a row says.
pub(super) type Told = (Vec<(FieldId, Value)>, Option<Str>);

/// Which columns a row must tell.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted {
    /// All but those of fields from here on, which were mapped lately: what is logged may be older than their columns.
    Whole(Option<FieldId>),
    /// Those that it was logged with.
    Some,
}

impl LoggedTable {
    pub(super) fn new(mapping: &MappingDef, detail: &TableDetail) -> Result<Self> {
        let label = format!("{}.{}", mapping.schema, mapping.table);
        if mapping.key_columns.is_empty() {
            let message = format!("the mapping `{}` has no key columns; give {label} a primary key", mapping.name);
            return Err(Error::new(Kind::Configuration, message));
        }
        let mut fields: Vec<LoggedField> = mapping
            .fields
            .iter()
            .map(|field| LoggedField {
                id: field.id,
                name: field.name.clone(),
                column: field.column.clone(),
                kind: field.kind.clone(),
                // One that is gone may still be told by rows of earlier times.
                type_oid: detail.column(&field.column).map_or(0, |column| column.type_oid),
            })
            .collect();
        fields.sort_by_key(|field| field.id);
        Ok(Self { mapping: mapping.id, truncate: mapping.truncate, label, key: mapping.key_columns.clone(), fields })
    }

    /// The table, as `schema.table`.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// A row's key; none if the row does not tell it whole.
    pub(super) fn key(&self, row: &Columns) -> Option<Key> {
        let parts: Option<Vec<&str>> = self.key.iter().map(|column| row.get(column)?.as_deref()).collect();
        parts.map(Key::from_parts)
    }

    /// The key of a row whose `id` is its key.
    pub(super) fn key_of_id(&self, id: Option<&str>) -> Option<Key> {
        id.filter(|_| self.key == ["id"]).map(|id| Key::from_parts([id]))
    }

    /// The mapped values that a row tells, and its Salesforce id.
    pub(super) fn told(&self, row: &Columns, wanted: Wanted) -> Result<Told> {
        let mut fields = Vec::with_capacity(self.fields.len());
        let mut salesforce_id = None;
        for field in &self.fields {
            let value = match (row.get(&field.column), wanted) {
                (Some(Some(text)), _) => mapping::from_postgres(&field.kind, field.type_oid, text),
                (Some(None), _) => mapping::normalise(&field.kind, Value::Null),
                (None, Wanted::Some) => continue,
                (None, Wanted::Whole(unread)) if unread.is_some_and(|first| field.id >= first) => continue,
                (None, Wanted::Whole(_)) => return Err(self.missing(field)),
            };
            if field.kind == FieldKind::Id
                && let Value::Text(id) = &value
            {
                salesforce_id = Some(id.clone());
            }
            fields.push((field.id, value));
        }
        Ok((fields, salesforce_id))
    }

    /// The Salesforce id that a row tells.
    pub(super) fn salesforce_id(&self, row: &Columns) -> Option<Str> {
        let field = self.fields.iter().find(|field| field.kind == FieldKind::Id)?;
        let text = row.get(&field.column)?.as_deref()?;
        match mapping::from_postgres(&field.kind, field.type_oid, text) {
            Value::Text(id) => Some(id),
            _ => None,
        }
    }

    fn missing(&self, field: &LoggedField) -> Error {
        let message = format!(
            "the triggers of {} log no column `{}`, which the mapping needs for {}: it was dropped or renamed. Restore it, or \
             change the mapping and start again; nothing is lost meanwhile",
            self.label, field.column, field.name
        );
        Error::new(Kind::Configuration, message)
    }
}
