//! A mapped relation's columns, compiled once per relation so that a row costs little.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::change::{FieldId, FieldKind, Key, MappingDef, MappingId, Str, Value};
use crate::error::{Error, Kind, Result};
use crate::mapping;
use crate::postgres::pgoutput::{ColumnValue, Relation, ReplicaIdentity, Tuple};

/// A row's columns, in the relation's order.
pub(super) type Columns<'a> = SmallVec<[ColumnValue<'a>; 24]>;

/// What of a relation's rows is taken, and as what.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) mapping: MappingId,
    table: String,
    columns: usize,
    /// Where the key's columns stand, in key order.
    key: SmallVec<[usize; 2]>,
    /// By ascending field id.
    fields: Vec<FieldPlan>,
    /// Which of the fields is the Salesforce id.
    id_field: Option<usize>,
    /// What is wrong with a column that was left out, should it not come.
    lacks: Option<String>,
}

#[derive(Debug)]
struct FieldPlan {
    id: FieldId,
    kind: FieldKind,
    column: usize,
    type_oid: u32,
}

/// What a row says.
pub(super) type Told = (Vec<(FieldId, Value)>, Option<Str>);

impl Plan {
    /// Compiles the plan of a mapping for its relation. `base_types`: domains and what they are made of.
    ///
    /// A change is described as the table was at its time. So columns of fields from `unread` on, which were mapped lately and
    /// are yet to be read from the table, may be missing still: they are not told.
    pub(super) fn compile(
        mapping: &MappingDef,
        relation: &Relation,
        base_types: &HashMap<u32, u32>,
        unread: Option<FieldId>,
    ) -> Result<Self, String> {
        let table = format!("{}.{}", relation.schema, relation.name);
        let find = |name: &str| relation.columns.iter().position(|c| c.name == name);
        let mut key = SmallVec::new();
        for name in &mapping.key_columns {
            let column = find(name).ok_or_else(|| missing_column(mapping, &table, name, "its key"))?;
            if relation.replica_identity == ReplicaIdentity::Nothing
                || !relation.columns.get(column).is_some_and(|c| c.is_key)
            {
                return Err(no_identity(mapping, &table, name));
            }
            key.push(column);
        }
        if key.is_empty() {
            return Err(no_identity(mapping, &table, "(none)"));
        }
        let mut fields = Vec::with_capacity(mapping.fields.len());
        let mut lacks = None;
        for field in &mapping.fields {
            let Some(column) = find(&field.column) else {
                let missing = missing_column(mapping, &table, &field.column, &field.name);
                if unread.is_none_or(|first| field.id < first) {
                    return Err(missing);
                }
                lacks = Some(missing);
                continue;
            };
            let type_oid = relation.columns.get(column).map_or(0, |c| c.type_oid);
            let type_oid = base_types.get(&type_oid).copied().unwrap_or(type_oid);
            fields.push(FieldPlan { id: field.id, kind: field.kind.clone(), column, type_oid });
        }
        fields.sort_by_key(|f| f.id);
        let id_field = fields.iter().position(|f| f.kind == FieldKind::Id);
        Ok(Self { mapping: mapping.id, table, columns: relation.columns.len(), key, fields, id_field, lacks })
    }

    /// The table, as `schema.table`.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// What is wrong with the relation where it lacks a mapped column.
    #[inline]
    pub(super) fn lacks(&self) -> Option<&str> {
        self.lacks.as_deref()
    }

    /// A tuple's columns, for access by place.
    pub(super) fn columns<'a>(&self, tuple: &Tuple<'a>) -> Result<Columns<'a>> {
        if tuple.len() != self.columns {
            let message =
                format!("a row of {} has {} columns where {} were announced", self.table, tuple.len(), self.columns);
            return Err(Error::new(Kind::Protocol, message));
        }
        Ok(tuple.columns().collect())
    }

    /// The row's key. A large key column that did not change is told by the old row alone.
    pub(super) fn key(&self, columns: &Columns<'_>, old: Option<&Columns<'_>>) -> Result<Key> {
        let mut parts: SmallVec<[&str; 2]> = SmallVec::new();
        for place in &self.key {
            let part = match columns.get(*place) {
                Some(ColumnValue::UnchangedToast) => old.and_then(|old| old.get(*place)),
                other => other,
            };
            let Some(ColumnValue::Text(text)) = part else {
                let message = format!("a row of {} came without its whole key", self.table);
                return Err(Error::new(Kind::Protocol, message));
            };
            parts.push(self.utf8(text)?);
        }
        Ok(Key::from_parts(parts))
    }

    /// The mapped values that the row tells, and its Salesforce id. Unchanged large values are not told.
    pub(super) fn told(&self, columns: &Columns<'_>) -> Result<Told> {
        let mut fields = Vec::with_capacity(self.fields.len());
        let mut salesforce_id = None;
        for (n, field) in self.fields.iter().enumerate() {
            let value = match columns.get(field.column) {
                Some(ColumnValue::Text(text)) => mapping::from_postgres(&field.kind, field.type_oid, self.utf8(text)?),
                Some(ColumnValue::Null) => mapping::normalise(&field.kind, Value::Null),
                Some(ColumnValue::UnchangedToast) => continue,
                Some(ColumnValue::Binary(_)) | None => {
                    let message = format!("a row of {} has a column in a form that was not asked for", self.table);
                    return Err(Error::new(Kind::Protocol, message));
                }
            };
            if self.id_field == Some(n)
                && let Value::Text(id) = &value
            {
                salesforce_id = Some(id.clone());
            }
            fields.push((field.id, value));
        }
        Ok((fields, salesforce_id))
    }

    /// The Salesforce id of an old row that is told whole.
    pub(super) fn salesforce_id(&self, columns: &Columns<'_>) -> Result<Option<Str>> {
        let Some(field) = self.id_field.and_then(|n| self.fields.get(n)) else { return Ok(None) };
        let Some(ColumnValue::Text(text)) = columns.get(field.column) else { return Ok(None) };
        match mapping::from_postgres(&field.kind, field.type_oid, self.utf8(text)?) {
            Value::Text(id) => Ok(Some(id)),
            _ => Ok(None),
        }
    }

    fn utf8<'a>(&self, text: &'a [u8]) -> Result<&'a str> {
        std::str::from_utf8(text).map_err(|e| {
            Error::new(Kind::Protocol, format!("a value of {} is not UTF-8, as was agreed", self.table)).caused_by(e)
        })
    }
}

fn missing_column(mapping: &MappingDef, table: &str, column: &str, field: &str) -> String {
    format!(
        "the table {table} no longer has the column `{column}` in its stream, which the mapping `{}` needs for {field}: it \
         was dropped, renamed, is generated, or is left out of the publication's column list. Restore it, or change the \
         mapping and start again; nothing is lost meanwhile",
        mapping.name
    )
}

fn no_identity(mapping: &MappingDef, table: &str, column: &str) -> String {
    format!(
        "the key column `{column}` of the mapping `{}` is not of the replica identity of {table}, so updates and deletes \
         would not name their rows; give the table a primary key on it, or REPLICA IDENTITY FULL",
        mapping.name
    )
}
