//! Canonical values in Salesforce's REST representation.

use serde_json::Value as Json;

use super::{normalise, time};
use crate::change::{FieldKind, Str, Value};

/// Why Salesforce cannot be sent a value. Says nothing of the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// A number field holds `NaN`, an infinity or text.
    #[error("the value is not a finite number, and Salesforce takes no other; correct it in PostgreSQL")]
    NotANumber,
    /// A checkbox holds something other than true or false.
    #[error("the value is neither true nor false; correct it in PostgreSQL")]
    NotABoolean,
    /// A date field holds an infinity or text, or a year that Salesforce cannot be sent.
    #[error("the value is not a date in the years 1 to 9999; correct it in PostgreSQL")]
    NotADate,
    /// A date/time field holds an infinity or text, or a year that Salesforce cannot be sent.
    #[error("the value is not a date and time in the years 1 to 9999; correct it in PostgreSQL")]
    NotADateTime,
    /// A time field holds `24:00:00` or text.
    #[error("the value is not a time of day before 24:00; correct it in PostgreSQL")]
    NotATime,
}

impl ValueError {
    /// A stable code for dead letters.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotANumber => "VALUE_NOT_A_NUMBER",
            Self::NotABoolean => "VALUE_NOT_A_BOOLEAN",
            Self::NotADate => "VALUE_NOT_A_DATE",
            Self::NotADateTime => "VALUE_NOT_A_DATETIME",
            Self::NotATime => "VALUE_NOT_A_TIME",
        }
    }
}

/// The canonical value of a field in a REST answer (with serde_json's `arbitrary_precision`, so that no digit is lost).
pub fn from_json(kind: &FieldKind, json: &Json) -> Value {
    let value = match json {
        Json::Null => Value::Null,
        Json::Bool(b) => Value::Bool(*b),
        Json::Number(number) => match number.as_i64() {
            Some(n) => Value::Int(n),
            None => Value::number(number.as_str()).unwrap_or_else(|_| Value::text(number.as_str())),
        },
        Json::String(text) => Value::Text(Str::new(text)),
        Json::Array(_) | Json::Object(_) => Value::text(json.to_string()),
    };
    normalise(kind, value)
}

/// A canonical value for a REST request body.
///
/// A [`FieldKind::Relationship`] gives the external id alone; the caller nests it under the relationship and field
/// names.
pub fn to_json(kind: &FieldKind, value: &Value) -> Result<Json, ValueError> {
    match kind {
        FieldKind::Boolean => match value {
            Value::Bool(b) => Ok(Json::Bool(*b)),
            // Salesforce refuses a null checkbox; null means false.
            Value::Null => Ok(Json::Bool(false)),
            _ => Err(ValueError::NotABoolean),
        },
        _ if value.is_null() => Ok(Json::Null),
        FieldKind::Integer | FieldKind::Number { .. } => match value {
            Value::Int(n) => Ok(Json::from(*n)),
            Value::Decimal(text) => text.parse().map(Json::Number).map_err(|_| ValueError::NotANumber),
            _ => Err(ValueError::NotANumber),
        },
        FieldKind::Date => match value {
            Value::Date(days) => time::date_json(*days).map(Json::String).ok_or(ValueError::NotADate),
            _ => Err(ValueError::NotADate),
        },
        FieldKind::DateTime => match value {
            Value::Timestamp(micros) => time::moment_json(*micros).map(Json::String).ok_or(ValueError::NotADateTime),
            _ => Err(ValueError::NotADateTime),
        },
        FieldKind::Time => match value {
            Value::Time(micros) => time::time_json(*micros).map(Json::String).ok_or(ValueError::NotATime),
            _ => Err(ValueError::NotATime),
        },
        FieldKind::Text { .. }
        | FieldKind::Picklist
        | FieldKind::MultiPicklist
        | FieldKind::Id
        | FieldKind::Reference { .. }
        | FieldKind::Relationship { .. } => match value {
            Value::Text(text) => Ok(Json::String(text.to_string())),
            other => match super::into_text(other.clone()) {
                Value::Text(text) => Ok(Json::String(text.into())),
                _ => Ok(Json::Null),
            },
        },
    }
}
