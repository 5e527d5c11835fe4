//! How a mapping's rows are asked for, and what an answer says of one.

use std::collections::HashMap;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::copy_text;
use crate::change::{FieldDef, FieldKind, Key, MappingDef, Str, Value};
use crate::error::{Error, Kind, Result};
use crate::mapping;
use crate::postgres::capture::watermark::ChunkRow;
use crate::postgres::connect::{Session, database_error};

/// A column of the table.
struct Column {
    /// What it is declared as, for a cast.
    declared: String,
    /// Its type, a domain's base type.
    type_oid: u32,
}

/// What is read, and how.
pub(super) struct Reading {
    /// `SELECT key columns, mapped columns FROM table`.
    select: String,
    /// The table, as it stands behind `FROM`.
    table: String,
    /// The key columns, quoted, in key order.
    key_columns: Vec<String>,
    key_types: Vec<String>,
    /// By ascending id.
    fields: Vec<(FieldDef, u32)>,
    /// What rows must be like: the publication's row filter, or `true`.
    filter: String,
}

/// Columns with their declared types and what domains are made of.
const COLUMNS: &str = "WITH RECURSIVE base (attname, declared, typ) AS ( \
       SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypid FROM pg_catalog.pg_attribute a \
       JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
       WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped \
     UNION ALL \
       SELECT b.attname, b.declared, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ \
       WHERE t.typtype = 'd') \
     SELECT b.attname::text, b.declared, b.typ FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ \
     WHERE t.typtype <> 'd'";

impl Reading {
    pub(super) async fn of(session: &Session, mapping: &MappingDef, publication: Option<&str>) -> Result<Self> {
        let MappingDef { schema, table, .. } = mapping;
        let doing = format!("looking at the table {schema}.{table}");
        let rows = session.query(COLUMNS, &[schema, table]).await.map_err(|e| database_error(&doing, e))?;
        let columns: HashMap<String, Column> =
            rows.iter().map(|row| (row.get(0), Column { declared: row.get(1), type_oid: row.get(2) })).collect();
        let find = |name: &String| {
            columns.get(name).ok_or_else(|| {
                let message = format!("the table {schema}.{table} has no column `{name}`, or does not exist");
                Error::new(Kind::Configuration, message)
            })
        };
        let key_types =
            mapping.key_columns.iter().map(|c| Ok(find(c)?.declared.clone())).collect::<Result<Vec<_>>>()?;
        let fields = mapping.fields.iter().map(|f| Ok((f.clone(), find(&f.column)?.type_oid)));
        let mut fields = fields.collect::<Result<Vec<_>>>()?;
        fields.sort_by_key(|(field, _)| field.id);
        let relkind = "SELECT c.relkind::text FROM pg_catalog.pg_class c \
                       JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2";
        let row = session.query_one(relkind, &[schema, table]).await.map_err(|e| database_error(&doing, e))?;
        // Children of an inherited table are tables of their own in the stream; partitions are their root.
        let only = if row.get::<_, &str>(0) == "p" { "" } else { "ONLY " };
        let key_columns: Vec<String> = mapping.key_columns.iter().map(|c| escape_identifier(c)).collect();
        let field_columns = fields.iter().map(|(field, _)| escape_identifier(&field.column));
        let list: Vec<String> = key_columns.iter().cloned().chain(field_columns).collect();
        let table = format!("{only}{}.{}", escape_identifier(schema), escape_identifier(table));
        let select = format!("SELECT {} FROM {table}", list.join(", "));
        // Version 14 has no row filters, and no such column.
        let filter = "SELECT pg_catalog.to_jsonb(t) ->> 'rowfilter' FROM pg_catalog.pg_publication_tables t \
                      WHERE t.pubname = $1 AND t.schemaname = $2 AND t.tablename = $3";
        let (schema, name) = (&mapping.schema, &mapping.table);
        let row =
            session.query_opt(filter, &[&publication, schema, name]).await.map_err(|e| database_error(&doing, e))?;
        let filter = row.and_then(|row| row.get::<_, Option<String>>(0)).unwrap_or_else(|| "true".to_owned());
        Ok(Self { select, table, key_columns, key_types, fields, filter })
    }

    /// The query of how many rows the planner expects: an answer in JSON.
    pub(super) fn estimate_sql(&self) -> String {
        format!("EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE ({})", self.table, self.filter)
    }

    /// The query of the key that ends a range of so many rows; no row if there are fewer.
    pub(super) fn boundary_sql(&self, after: &str, rows: usize) -> Result<String> {
        let keys = self.key_columns.join(", ");
        let range = self.range(after, None)?;
        let before = rows.saturating_sub(1);
        Ok(format!("SELECT {keys} FROM {} {range} ORDER BY {keys} OFFSET {before} LIMIT 1", self.table))
    }

    /// The copy of the rows behind a key, in the order of their keys: up to another key, or to the end of the table.
    pub(super) fn copy_sql(&self, after: &str, upto: Option<&Str>, limit: usize) -> Result<String> {
        let keys = self.key_columns.join(", ");
        Ok(format!("COPY ({} {} ORDER BY {keys} LIMIT {limit}) TO STDOUT", self.select, self.range(after, upto)?))
    }

    fn range(&self, after: &str, upto: Option<&Str>) -> Result<String> {
        let keys = self.key_columns.join(", ");
        let mut conditions = vec![format!("({})", self.filter)];
        if !after.is_empty() {
            conditions.push(format!("({keys}) > ({})", self.key_values(&Key(Str::new(after)))?));
        }
        if let Some(upto) = upto {
            conditions.push(format!("({keys}) <= ({})", self.key_values(&Key(upto.clone()))?));
        }
        Ok(format!("WHERE {}", conditions.join(" AND ")))
    }

    /// A key's values as SQL.
    fn key_values(&self, key: &Key) -> Result<String> {
        let parts = key.parts();
        if parts.len() != self.key_types.len() {
            let message = "a key that the log knows does not fit the table's key; start the link with a new log";
            return Err(Error::new(Kind::Configuration, message));
        }
        let values = parts.iter().zip(&self.key_types).map(|(part, ty)| format!("{}::{ty}", escape_literal(part)));
        Ok(values.collect::<Vec<String>>().join(", "))
    }

    /// The query of the places of those keys that name no row, by the database's own comparison.
    pub(super) fn missing_sql(&self, keys: &[Key]) -> Result<String> {
        if keys.is_empty() {
            return Ok("SELECT WHERE false".into());
        }
        let values = keys.iter().enumerate().map(|(n, key)| Ok(format!("({n}, {})", self.key_values(key)?)));
        let values = values.collect::<Result<Vec<String>>>()?.join(", ");
        let names: Vec<String> = (0..self.key_columns.len()).map(|n| format!("k{n}")).collect();
        let equal = self.key_columns.iter().zip(&names).map(|(column, name)| format!("t.{column} = known.{name}"));
        Ok(format!(
            "SELECT known.n FROM (VALUES {values}) AS known (n, {}) WHERE NOT EXISTS (SELECT FROM {} AS t WHERE ({}) AND {})",
            names.join(", "),
            self.table,
            self.filter,
            equal.collect::<Vec<String>>().join(" AND ")
        ))
    }

    /// The key in an answer to [`Reading::boundary_sql`].
    pub(super) fn key(&self, row: &SimpleQueryRow) -> Result<Key> {
        let parts: Option<Vec<&str>> = (0..self.key_columns.len()).map(|n| row.get(n)).collect();
        Ok(Key::from_parts(parts.ok_or_else(nameless)?))
    }

    /// The row in a line of [`Reading::copy_sql`].
    pub(super) fn row(&self, line: &[u8]) -> Result<ChunkRow> {
        let columns: Vec<_> = copy_text::columns(line)?.collect();
        let Some((key, values)) =
            columns.split_at_checked(self.key_columns.len()).filter(|(_, values)| values.len() == self.fields.len())
        else {
            return Err(Error::new(
                Kind::Protocol,
                "COPY gave a row with another number of columns than was asked for",
            ));
        };
        let parts: Option<Vec<&str>> = key.iter().map(Option::as_deref).collect();
        let key = Key::from_parts(parts.ok_or_else(nameless)?);
        let mut salesforce_id = None;
        let mut fields = Vec::with_capacity(self.fields.len());
        for ((field, type_oid), text) in self.fields.iter().zip(values) {
            let value = match text {
                Some(text) => mapping::from_postgres(&field.kind, *type_oid, text),
                None => mapping::normalise(&field.kind, Value::Null),
            };
            if field.kind == FieldKind::Id {
                salesforce_id = value.as_text().map(Str::new);
            }
            fields.push((field.id, value));
        }
        Ok(ChunkRow { key, salesforce_id, fields })
    }
}

fn nameless() -> Error {
    Error::new(Kind::Configuration, "a row has null in its key columns, so that nothing names it")
}

/// The rows that the planner expects, as [`Reading::estimate_sql`] is answered.
pub(super) fn estimated(answer: &[SimpleQueryMessage]) -> Option<u64> {
    let text = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })?;
    let plans: serde_json::Value = serde_json::from_str(text).ok()?;
    plans.get(0)?.get("Plan")?.get("Plan Rows")?.as_u64()
}
