//! Whether an existing table can hold what is mapped to it.

use super::describe::{ColumnDescription, TableDescription};
use super::finding::Finding;
use super::mirror::{qualified, quote_ident};
use crate::change::{FieldDef, FieldKind, MappingDef};
use crate::config::suggest;

const INT2: u32 = 21;
const INT4: u32 = 23;
const INT8: u32 = 20;
const FLOAT4: u32 = 700;
const MONEY: u32 = 790;
const DATE: u32 = 1082;
const BIT: u32 = 1560;
const VARBIT: u32 = 1562;

/// What is wrong with a table as such.
pub(super) fn table_findings(table: &TableDescription, subject: &str, findings: &mut Vec<Finding>) {
    let name = qualified(&table.schema, &table.table);
    if table.key_columns.is_empty() {
        findings.push(Finding::error(
            subject,
            format!("the table {}.{} has no primary key, so its rows cannot be told apart", table.schema, table.table),
            format!("run: ALTER TABLE {name} ADD COLUMN id serial PRIMARY KEY"),
        ));
    }
    if table.replica_identity == 'n' {
        findings.push(Finding::error(
            subject,
            format!(
                "the table {}.{} has REPLICA IDENTITY NOTHING, so its updates cannot be captured",
                table.schema, table.table
            ),
            format!("run: ALTER TABLE {name} REPLICA IDENTITY DEFAULT"),
        ));
    }
}

/// What is wrong with the columns of a mapping's fields. Columns that are not there yet are not an error here.
pub(super) fn column_findings(mapping: &MappingDef, table: &TableDescription, findings: &mut Vec<Finding>) {
    for field in &mapping.fields {
        let subject = format!("{}.{}", mapping.name, field.name);
        match table.column(&field.column) {
            None => findings.push(missing_column(mapping, field, table, &subject)),
            Some(column) if column.generated => findings.push(Finding::error(
                subject,
                format!("the column {} is computed by the database and cannot be written", column.name),
                "map another column, or make it an ordinary one",
            )),
            Some(column) => findings.extend(unsuitable(field, column, &subject)),
        }
    }
}

fn missing_column(mapping: &MappingDef, field: &FieldDef, table: &TableDescription, subject: &str) -> Finding {
    let unmapped =
        table.columns.iter().map(|c| c.name.as_str()).filter(|c| mapping.fields.iter().all(|f| f.column != *c));
    let meant = suggest::nearest(&field.column, unmapped)
        .map_or_else(String::new, |meant| format!("; or did you mean column = \"{meant}\"?"));
    Finding::warning(
        subject,
        format!("the table {}.{} has no column {} yet", table.schema, table.table, field.column),
        format!("run `tidelock init`, which adds it{meant}"),
    )
}

/// Why a column of this type does not keep all that the field can hold.
fn unsuitable(field: &FieldDef, column: &ColumnDescription, subject: &str) -> Option<Finding> {
    let (kind, oid) = (&field.kind, column.type_oid);
    let length = column
        .type_name
        .strip_prefix("character varying(")
        .or_else(|| column.type_name.strip_prefix("character("))
        .and_then(|rest| rest.strip_suffix(')'))
        .and_then(|n| n.parse::<u32>().ok());
    let better = match (kind, oid) {
        (FieldKind::Number { .. } | FieldKind::Integer, MONEY | BIT | VARBIT)
        | (FieldKind::Number { scale: 1.. }, INT2 | INT4 | INT8) => "numeric",
        (FieldKind::Number { .. }, FLOAT4) => "double precision",
        (FieldKind::DateTime, DATE) => "timestamp",
        (FieldKind::Text { length: needed @ 1.. }, _) if length.is_some_and(|n| n < *needed) => "text",
        (FieldKind::Id | FieldKind::Reference { .. }, _) if length.is_some_and(|n| n < 18) => "varchar(18)",
        _ => return None,
    };
    Some(Finding::warning(
        subject,
        format!("the column {} is {} and cannot hold all that the field can", column.name, column.type_name),
        format!("change it: ALTER COLUMN {} TYPE {better}", quote_ident(&column.name)),
    ))
}
