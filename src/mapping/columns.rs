//! Whether an existing table can hold what is mapped to it.

use super::describe::{ColumnDescription, TableDescription};
use super::finding::Finding;
use super::mirror::{qualified, quote_ident};
use crate::change::{FieldDef, FieldKind, MappingDef, Value};
use crate::config::suggest;

/// What values a column has room for, by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// Text of any length.
    Text,
    /// Text of so many characters.
    Characters(u32),
    /// A list of texts.
    List,
    /// True or false.
    Boolean,
    /// Whole numbers of so many digits.
    Whole(u32),
    /// Numbers of so many digits, so many of them after the point.
    Digits { digits: u32, scale: u32 },
    /// Numbers of any size, exact.
    Number,
    /// Numbers as a double keeps them.
    Float,
    /// Days.
    Date,
    /// Moments.
    Moment,
    /// Times of day.
    Time,
    /// Another built-in kind, or a type that is not known here.
    Unknown,
}

/// The room of a type as `format_type` prints it.
pub(super) fn room(type_name: &str) -> Room {
    let (name, limits) = match type_name.split_once('(') {
        Some((name, rest)) => (name, rest.split_once(')').map_or(rest, |(inside, _)| inside)),
        None => (type_name, ""),
    };
    let mut limits = limits.split(',').map_while(|n| n.trim().parse::<u32>().ok());
    match (name, limits.next()) {
        ("character varying" | "character", Some(length)) => Room::Characters(length),
        ("text" | "citext" | "character varying", _) => Room::Text,
        ("text[]" | "character varying[]", _) => Room::List,
        ("boolean", _) => Room::Boolean,
        ("smallint", _) => Room::Whole(4),
        ("integer", _) => Room::Whole(9),
        ("bigint", _) => Room::Whole(19),
        ("numeric", Some(digits)) => Room::Digits { digits, scale: limits.next().unwrap_or(0) },
        ("numeric", None) => Room::Number,
        ("double precision", _) => Room::Float,
        ("date", _) => Room::Date,
        _ if type_name.starts_with("timestamp") => Room::Moment,
        _ if type_name.starts_with("time") => Room::Time,
        _ => Room::Unknown,
    }
}

/// Whether a column has room for a value that it had no room for before.
pub fn has_room(type_name: &str, labels: &[String], value: &Value) -> bool {
    let whole_digits = |text: &str| text.trim_start_matches('-').split('.').next().map_or(0, str::len) as u32;
    let number = match value {
        Value::Int(n) => Some(n.to_string()),
        Value::Decimal(text) => Some(text.to_string()),
        _ => None,
    };
    if value.is_null() {
        return true;
    }
    match (room(type_name), value) {
        (Room::Characters(length), Value::Text(text)) => text.chars().count() as u64 <= u64::from(length),
        (Room::Unknown, Value::Text(text)) if !labels.is_empty() => labels.iter().any(|label| label == text),
        (Room::Whole(4), Value::Int(n)) => i16::try_from(*n).is_ok(),
        (Room::Whole(9), Value::Int(n)) => i32::try_from(*n).is_ok(),
        (Room::Digits { digits, scale }, _) if number.is_some() => {
            number.is_some_and(|text| whole_digits(&text) <= digits.saturating_sub(scale))
        }
        (Room::Text | Room::Characters(_) | Room::List | Room::Unknown, _) => true,
        (_, value) => !matches!(value, Value::Text(_)),
    }
}

/// Digits after the point that a column keeps, where it keeps only so many.
pub(super) fn scale_kept(type_name: &str) -> Option<u32> {
    match room(type_name) {
        Room::Whole(_) => Some(0),
        Room::Digits { scale, .. } => Some(scale),
        _ => None,
    }
}

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
        (FieldKind::Number { scale }, _)
            if scale_kept(&column.type_name).is_some_and(|kept| kept < u32::from(*scale)) =>
        {
            return Some(Finding::warning(
                subject,
                format!("the column {} is {}: further digits are not taken", column.name, column.type_name),
                "`tidelock plan` shows how to change it",
            ));
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_by_characters_digits_and_labels() {
        let labels = ["Gold".to_owned()];
        for (type_name, value, fits) in [
            ("character varying(3)", Value::text("äöü"), true),
            ("character varying(3)", Value::text("four"), false),
            ("text", Value::text("four"), true),
            ("smallint", Value::Int(40_000), false),
            ("integer", Value::Int(40_000), true),
            ("integer", Value::Int(3_000_000_000), false),
            ("integer", Value::text("four"), false),
            ("numeric(5,2)", Value::Int(-999), true),
            ("numeric(5,2)", Value::Int(1000), false),
            ("numeric(5,2)", Value::Decimal("999.25".into()), true),
            ("numeric(5,2)", Value::Decimal("1000.25".into()), false),
            ("double precision", Value::Int(1000), true),
            ("double precision", Value::text("four"), false),
            ("salesforce.tier", Value::text("Gold"), true),
            ("salesforce.tier", Value::text("Silver"), false),
            ("boolean", Value::Null, true),
        ] {
            let labels = if type_name == "salesforce.tier" { &labels[..] } else { &[] };
            assert_eq!(has_room(type_name, labels, &value), fits, "{value} in {type_name}");
        }
    }
}
