//! Canonical values: from what a side prints, and back.
//!
//! [`normalise`] is the one place that says which values of a kind are equal. The readers ([`from_postgres`],
//! [`from_json`],
//! [`from_avro`]) parse and then normalise; the writers print what the readers read back as the same canonical value.
//!
//! Readers never fail. What has no canonical form (`NaN`, `infinity`, text in a typed field) stays [`Value::Text`],
//! so that
//! it is compared, logged and written to PostgreSQL as it is; only [`to_json`] refuses it, because Salesforce would.
//!
//! Invariants, held by property tests: normalising twice gives what normalising once gives; a canonical value
//! survives the
//! way to a side and back; no number passes through a binary float unless the side itself sent one.

mod array;
mod avro;
mod json;
mod number;
mod time;

use std::borrow::Cow;
use std::fmt::Write as _;

use crate::change::{FieldKind, Str, Value};

pub use avro::from_avro;
pub use json::{ValueError, from_json, to_json};

/// Object ids of PostgreSQL types whose text needs more than trimming.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const TEXT: u32 = 25;
    pub(super) const MONEY: u32 = 790;
    pub(super) const BPCHAR: u32 = 1042;
    pub(super) const VARCHAR: u32 = 1043;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
}

/// The canonical value of `kind` that `value` stands for. Idempotent.
///
/// * Texts, picklists and ids: trimmed; empty is null; ids of 15 characters become 18.
/// * [`FieldKind::Boolean`]: null is false.
/// * [`FieldKind::Integer`], [`FieldKind::Number`]: rounded half away from zero, by decimal digits.
/// * [`FieldKind::DateTime`]: the second that the moment lies in. [`FieldKind::Time`]: the millisecond.
/// * A text in any other kind is parsed; if it cannot be, it stays a text.
pub fn normalise(kind: &FieldKind, value: Value) -> Value {
    match kind {
        FieldKind::Text { .. } | FieldKind::Picklist | FieldKind::MultiPicklist | FieldKind::Relationship { .. } => {
            trimmed(into_text(value))
        }
        FieldKind::Id | FieldKind::Reference { .. } => long_id(trimmed(into_text(value))),
        FieldKind::Boolean => match trimmed(value) {
            Value::Null | Value::Int(0) => Value::Bool(false),
            Value::Int(1) => Value::Bool(true),
            Value::Text(text) => boolean(&text).map_or(Value::Text(text), Value::Bool),
            Value::Bool(b) => Value::Bool(b),
            other => into_text(other),
        },
        FieldKind::Integer => number_of(value, 0),
        FieldKind::Number { scale } => number_of(value, *scale),
        FieldKind::Date => match trimmed(value) {
            Value::Text(text) => time::parse_date(&text).map_or(Value::Text(text), Value::Date),
            Value::Timestamp(micros) => {
                time::day_of(micros).map_or_else(|| into_text(Value::Timestamp(micros)), Value::Date)
            }
            value @ (Value::Null | Value::Date(_)) => value,
            other => into_text(other),
        },
        FieldKind::DateTime => match trimmed(value) {
            Value::Text(text) => time::parse_moment(&text).map_or(Value::Text(text), second),
            Value::Timestamp(micros) => second(micros),
            Value::Date(days) => match i64::from(days).checked_mul(time::DAY) {
                Some(micros) => Value::Timestamp(micros),
                None => into_text(Value::Date(days)),
            },
            Value::Null => Value::Null,
            other => into_text(other),
        },
        FieldKind::Time => match trimmed(value) {
            Value::Text(text) => time::parse_time_of_day(&text).map_or(Value::Text(text), millisecond),
            Value::Time(micros) if (0..time::DAY).contains(&micros) => millisecond(micros),
            Value::Null => Value::Null,
            other => into_text(other),
        },
    }
}

/// The canonical value of a column's text as PostgreSQL prints it (`DateStyle` ISO, any `TimeZone`, `bytea_output`
/// hex).
///
/// `type_oid` is the column's type, or the base type of a domain. A null has no text: use `normalise(kind,
/// Value::Null)`.
pub fn from_postgres(kind: &FieldKind, type_oid: u32, text: &str) -> Value {
    match kind {
        FieldKind::Text { .. }
        | FieldKind::Picklist
        | FieldKind::Relationship { .. }
        | FieldKind::Id
        | FieldKind::Reference { .. } => normalise(kind, plain_text(type_oid, text)),
        FieldKind::MultiPicklist => match type_oid {
            oid::TEXT | oid::VARCHAR | oid::BPCHAR => trimmed_str(text),
            _ => match array::joined(text) {
                Some(joined) => trimmed_str(&joined),
                None => normalise(kind, plain_text(type_oid, text)),
            },
        },
        FieldKind::Boolean => match text {
            "t" => Value::Bool(true),
            "f" => Value::Bool(false),
            _ => normalise(kind, Value::Text(Str::new(text))),
        },
        FieldKind::Integer => number::parse(text, 0).unwrap_or_else(|| unparsed_number(type_oid, text, 0)),
        FieldKind::Number { scale } => {
            number::parse(text, *scale).unwrap_or_else(|| unparsed_number(type_oid, text, *scale))
        }
        FieldKind::Date => time::parse_date(text).map_or_else(|| normalise(kind, trimmed_str(text)), Value::Date),
        FieldKind::DateTime => time::parse_moment(text).map_or_else(|| normalise(kind, trimmed_str(text)), second),
        FieldKind::Time => {
            time::parse_time_of_day(text).map_or_else(|| normalise(kind, trimmed_str(text)), millisecond)
        }
    }
}

/// The text of a canonical value that PostgreSQL casts to the column's type; none is NULL.
///
/// Moments are ISO 8601 in UTC with the offset `+00`, which `timestamp` columns ignore and `timestamptz` columns
/// need. For a
/// column of an array type use [`to_postgres_array`].
pub fn to_postgres<'a>(kind: &FieldKind, value: &'a Value) -> Option<Cow<'a, str>> {
    let text: Str = match value {
        Value::Null if *kind == FieldKind::Boolean => return Some(Cow::Borrowed("false")),
        Value::Null => return None,
        Value::Text(text) | Value::Decimal(text) => return Some(Cow::Borrowed(text)),
        Value::Bool(b) => return Some(Cow::Borrowed(if *b { "true" } else { "false" })),
        Value::Int(n) => smol_str::format_smolstr!("{n}"),
        Value::Bytes(bytes) => hex(bytes),
        Value::Date(days) => time::date_text(*days),
        Value::Time(micros) => time::time_text(*micros),
        Value::Timestamp(micros) => time::moment_text(*micros),
    };
    Some(Cow::Owned(text.into()))
}

/// Like [`to_postgres`] for a column of an array type: `a;b` becomes `{"a","b"}`.
pub fn to_postgres_array(kind: &FieldKind, value: &Value) -> Option<String> {
    to_postgres(kind, value).map(|text| array::literal(&text))
}

/// The text that a value of another variant prints as; texts and null are left alone.
fn into_text(value: Value) -> Value {
    match value {
        Value::Null | Value::Text(_) => value,
        Value::Bool(b) => Value::Text(Str::new_static(if b { "true" } else { "false" })),
        Value::Int(n) => Value::Text(smol_str::format_smolstr!("{n}")),
        Value::Decimal(text) => Value::Text(text),
        Value::Bytes(bytes) => Value::Text(hex(&bytes)),
        Value::Date(days) => Value::Text(time::date_text(days)),
        Value::Time(micros) => Value::Text(time::time_text(micros)),
        Value::Timestamp(micros) => Value::Text(time::moment_text(micros)),
    }
}

fn hex(bytes: &[u8]) -> Str {
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text.into()
}

/// Salesforce trims control characters and blanks, not other white space.
fn trim(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

fn trimmed_str(text: &str) -> Value {
    let text = trim(text);
    if text.is_empty() { Value::Null } else { Value::Text(Str::new(text)) }
}

/// Trims a text without copying one that needs no trimming.
fn trimmed(value: Value) -> Value {
    match value {
        Value::Text(text) => {
            let inner = trim(&text);
            if inner.is_empty() {
                Value::Null
            } else if inner.len() == text.len() {
                Value::Text(text)
            } else {
                Value::Text(Str::new(inner))
            }
        }
        other => other,
    }
}

/// What a text field holds of a column's text: booleans as Salesforce spells them, moments in UTC, the rest as printed.
fn plain_text(type_oid: u32, text: &str) -> Value {
    match (type_oid, text) {
        (oid::BOOL, "t") => Value::Text(Str::new_static("true")),
        (oid::BOOL, "f") => Value::Text(Str::new_static("false")),
        (oid::TIMESTAMPTZ, text) if !text.ends_with("+00") => {
            time::parse_moment(text).map_or_else(|| trimmed_str(text), |micros| Value::Text(time::moment_text(micros)))
        }
        _ => trimmed_str(text),
    }
}

fn number_of(value: Value, scale: u8) -> Value {
    match trimmed(value) {
        value @ (Value::Null | Value::Int(_)) => value,
        Value::Decimal(text) => number::rounded(text, scale),
        Value::Text(text) => number::parse(&text, scale).unwrap_or(Value::Text(text)),
        Value::Bool(b) => Value::Int(i64::from(b)),
        other => into_text(other),
    }
}

/// A column's text that is not a plain number: money is one in disguise.
fn unparsed_number(type_oid: u32, text: &str, scale: u8) -> Value {
    match type_oid {
        oid::MONEY => number::parse_money(text, scale).unwrap_or_else(|| trimmed_str(text)),
        oid::BOOL if text == "t" => Value::Int(1),
        oid::BOOL if text == "f" => Value::Int(0),
        _ => number_of(trimmed_str(text), scale),
    }
}

fn second(micros: i64) -> Value {
    Value::Timestamp(micros.div_euclid(1_000_000).saturating_mul(1_000_000))
}

fn millisecond(micros: i64) -> Value {
    Value::Time(micros / 1_000 * 1_000)
}

fn boolean(text: &str) -> Option<bool> {
    let is = |words: &[&str]| words.iter().any(|w| text.eq_ignore_ascii_case(w));
    if is(&["t", "true", "y", "yes", "on", "1"]) {
        Some(true)
    } else if is(&["f", "false", "n", "no", "off", "0"]) {
        Some(false)
    } else {
        None
    }
}

/// The 18 characters of a Salesforce id of 15: three more say which of the 15 are capitals, five to a character.
fn long_id(value: Value) -> Value {
    const DIGITS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    match value {
        Value::Text(id) if id.len() == 15 && id.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            let mut long = id.to_string();
            for five in id.as_bytes().chunks(5) {
                let capitals =
                    five.iter().enumerate().fold(0, |bits, (n, b)| bits | (usize::from(b.is_ascii_uppercase()) << n));
                long.push(char::from(DIGITS.get(capitals).copied().unwrap_or(b'A')));
            }
            Value::Text(long.into())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
