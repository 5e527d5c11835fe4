//! Canonical values from the Avro records of Salesforce's event bus.

use apache_avro::types::Value as Avro;

use super::{normalise, time::DAY};
use crate::change::{FieldKind, Str, Value};

/// The canonical value of a field in a change event.
///
/// Dates and moments are longs of epoch milliseconds, times longs of milliseconds since midnight; unions are
/// unwrapped. The
/// parts of compound records must be handed over one by one; a record that arrives here whole becomes JSON text.
pub fn from_avro(kind: &FieldKind, value: &Avro) -> Value {
    normalise(kind, read(kind, value))
}

fn read(kind: &FieldKind, value: &Avro) -> Value {
    match value {
        Avro::Null => Value::Null,
        Avro::Union(_, inner) => read(kind, inner),
        Avro::Boolean(b) => Value::Bool(*b),
        Avro::Int(n) => whole(kind, i64::from(*n)),
        Avro::Long(n) => whole(kind, *n),
        Avro::Float(n) => shortest(&n.to_string(), f64::from(*n)),
        Avro::Double(n) => double(*n),
        Avro::String(text) | Avro::Enum(_, text) => Value::Text(Str::new(text)),
        Avro::Bytes(bytes) | Avro::Fixed(_, bytes) => Value::Bytes(bytes.clone()),
        Avro::Date(days) => Value::Date(*days),
        Avro::TimeMillis(millis) => Value::Time(i64::from(*millis) * 1_000),
        Avro::TimeMicros(micros) => Value::Time(*micros),
        Avro::TimestampMillis(millis) | Avro::LocalTimestampMillis(millis) => {
            Value::Timestamp(millis.saturating_mul(1_000))
        }
        Avro::TimestampMicros(micros) | Avro::LocalTimestampMicros(micros) => Value::Timestamp(*micros),
        Avro::Uuid(uuid) => Value::text(uuid.to_string()),
        Avro::Array(items) => list(kind, items),
        other => serde_json::Value::try_from(other.clone()).map_or(Value::Null, |json| Value::text(json.to_string())),
    }
}

/// A long means what the field's kind says.
fn whole(kind: &FieldKind, n: i64) -> Value {
    match kind {
        FieldKind::DateTime => Value::Timestamp(n.saturating_mul(1_000)),
        FieldKind::Date => i32::try_from(n.div_euclid(DAY / 1_000)).map_or(Value::Int(n), Value::Date),
        FieldKind::Time => Value::Time(n.saturating_mul(1_000)),
        _ => Value::Int(n),
    }
}

/// The shortest decimal that reads back as the same double; most doubles on the bus are whole or short.
fn double(n: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if n.fract() == 0.0 && n.abs() < EXACT {
        return Value::Int(n as i64);
    }
    Value::float(n).unwrap_or_else(|_| not_finite(n))
}

fn shortest(text: &str, n: f64) -> Value {
    Value::number(text).unwrap_or_else(|_| not_finite(n))
}

/// As PostgreSQL spells it.
fn not_finite(n: f64) -> Value {
    Value::text(if n.is_nan() {
        "NaN"
    } else if n > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    })
}

/// Lists of names (user preferences) are joined like a multi-select picklist.
fn list(kind: &FieldKind, items: &[Avro]) -> Value {
    let mut joined = String::new();
    for item in items {
        if let Value::Text(text) = super::into_text(read(kind, item)) {
            if !joined.is_empty() {
                joined.push(';');
            }
            joined.push_str(&text);
        }
    }
    Value::Text(joined.into())
}
