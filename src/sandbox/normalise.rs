//! From a JSON value to the value that a field stores: checked, trimmed, rounded and put in its one form.

use serde_json::Value as Json;

use super::number::{self, NumberError};
use super::refusal::Refusal;
use super::schema::{Field, Kind};
use super::value::Value;
use super::{id, time};

/// The years that a date may be in.
const YEARS: std::ops::RangeInclusive<i64> = 1700..=4000;
/// Digits of an integer field.
const INT_DIGITS: u32 = 9;

/// The value of `field` that `given` stands for; `None` is null.
pub(crate) fn normalise(field: &Field, given: &Json) -> Result<Option<Value>, Refusal> {
    match given {
        Json::Null if field.kind == Kind::Boolean => Err(Refusal::new(
            "INVALID_TYPE_ON_FIELD_IN_RECORD",
            format!("{}: value not of required type: null", field.label),
        )
        .field(&field.name)),
        Json::Null => Ok(None),
        Json::Bool(value) if field.kind == Kind::Boolean => Ok(Some(Value::Bool(*value))),
        Json::String(text) if field.kind.is_text() => text_value(field, text),
        Json::String(text) => parsed(field, text),
        Json::Number(n) if field.kind == Kind::Int || field.kind.is_decimal() => numeric(field, &n.to_string()),
        Json::Number(n) => Err(cannot_read(field, "VALUE_NUMBER", &n.to_string())),
        Json::Bool(value) => {
            Err(cannot_read(field, if *value { "VALUE_TRUE" } else { "VALUE_FALSE" }, &value.to_string()))
        }
        Json::Array(_) => Err(cannot_read(field, "START_ARRAY", "[")),
        Json::Object(_) => Err(cannot_read(field, "START_OBJECT", "{")),
    }
}

/// A value that is not text, written as text.
fn parsed(field: &Field, text: &str) -> Result<Option<Value>, Refusal> {
    let text = text.trim();
    if text.is_empty() && field.kind != Kind::Boolean {
        return Ok(None);
    }
    let wrong = || cannot_read(field, "VALUE_STRING", text);
    match field.kind {
        Kind::Boolean if text.eq_ignore_ascii_case("true") || text == "1" => Ok(Some(Value::Bool(true))),
        Kind::Boolean if text.eq_ignore_ascii_case("false") || text == "0" => Ok(Some(Value::Bool(false))),
        Kind::Int | Kind::Double | Kind::Currency | Kind::Percent => numeric(field, text),
        Kind::Date => {
            let days = time::parse_date(text).ok_or_else(wrong)?;
            in_range(field, days).map(|()| Some(Value::Date(days)))
        }
        Kind::DateTime => {
            let ms = time::parse_datetime(text).ok_or_else(wrong)?;
            in_range(field, ms.div_euclid(time::DAY_MS))?;
            Ok(Some(Value::DateTime(ms.div_euclid(1000) * 1000)))
        }
        Kind::Time => time::parse_time(text).map(|ms| Some(Value::Time(ms))).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn text_value(field: &Field, given: &str) -> Result<Option<Value>, Refusal> {
    let text = given.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
        let message = format!("{}: text outside the supported character set", field.label);
        return Err(Refusal::new("TEXT_DATA_OUTSIDE_SUPPORTED_CHARSET", message).field(&field.name));
    }
    match field.kind {
        Kind::Id | Kind::Reference => {
            let id = id::normalise(text).ok_or_else(|| {
                let message = format!("{}: id value of incorrect type: {text}", field.label);
                Refusal::new("MALFORMED_ID", message).field(&field.name)
            })?;
            return Ok(Some(Value::Text(id)));
        }
        Kind::Email if !plausible_email(text) => {
            let message = format!("{}: invalid email address: {text}", field.label);
            return Err(Refusal::new("INVALID_EMAIL_ADDRESS", message).field(&field.name));
        }
        Kind::Picklist | Kind::MultiPicklist if field.restricted => return restricted(field, text),
        _ => {}
    }
    if text.chars().count() > field.length as usize {
        let shown: String = text.chars().take(80).collect();
        let message = format!("{}: data value too large: {shown} (max length={})", field.label, field.length);
        return Err(Refusal::new("STRING_TOO_LONG", message).field(&field.name));
    }
    Ok(Some(Value::Text(text.into())))
}

/// A restricted picklist's value in the spelling of its definition.
fn restricted(field: &Field, text: &str) -> Result<Option<Value>, Refusal> {
    let known = |part: &str| field.picklist.iter().find(|v| v.eq_ignore_ascii_case(part.trim()));
    let chosen: Option<Vec<&String>> = if field.kind == Kind::MultiPicklist {
        text.split(';').map(known).collect()
    } else {
        known(text).map(|value| vec![value])
    };
    let chosen = chosen.ok_or_else(|| {
        let message = format!("{}: bad value for restricted picklist field: {text}", field.label);
        Refusal::new("INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST", message).field(&field.name)
    })?;
    let chosen: Vec<&str> = chosen.into_iter().map(String::as_str).collect();
    Ok(Some(Value::Text(chosen.join(";").into())))
}

fn numeric(field: &Field, text: &str) -> Result<Option<Value>, Refusal> {
    let (precision, scale) = if field.kind == Kind::Int { (INT_DIGITS, 0) } else { (field.precision, field.scale) };
    let number = number::scaled(text, precision, scale).map_err(|error| match error {
        NumberError::Malformed => cannot_read(field, "VALUE_STRING", text),
        NumberError::OutOfRange => Refusal::new(
            "NUMBER_OUTSIDE_VALID_RANGE",
            format!("{}: value outside of valid range on numeric field: {text}", field.label),
        )
        .field(&field.name),
    })?;
    Ok(Some(if field.kind == Kind::Int { Value::Int(number as i64) } else { Value::Double(number) }))
}

fn in_range(field: &Field, days: i64) -> Result<(), Refusal> {
    if YEARS.contains(&time::civil_from_days(days).0) {
        return Ok(());
    }
    let message = format!("{}: invalid date: {}", field.label, time::format_date(days));
    Err(Refusal::new("DATE_OUT_OF_RANGE", message).field(&field.name))
}

fn plausible_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let clean =
        |s: &str| !s.is_empty() && !s.chars().any(|c| c.is_whitespace() || matches!(c, '@' | ',' | ';' | '<' | '>'));
    clean(local) && clean(domain) && domain.contains('.') && !domain.starts_with('.') && !domain.ends_with('.')
}

fn cannot_read(field: &Field, token: &str, value: &str) -> Refusal {
    let kind = field.kind.name();
    let shown: String = value.chars().take(80).collect();
    Refusal::unreadable(format!(
        "Cannot deserialize instance of {kind} from {token} value {shown} or request may be missing a required field \
         (field {})",
        field.name
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn field(kind: Kind) -> Field {
        Field::new("Any__c", kind)
    }

    fn ok(field: &Field, given: Json) -> Option<Value> {
        normalise(field, &given).unwrap()
    }

    fn code(field: &Field, given: Json) -> &'static str {
        normalise(field, &given).unwrap_err().code
    }

    #[test]
    fn text_is_trimmed_and_empty_text_is_null() {
        let mut name = field(Kind::Text);
        name.length = 5;
        assert_eq!(ok(&name, json!("  ab c ")), Some(Value::Text("ab c".into())));
        assert_eq!(ok(&name, json!("   ")), None);
        assert_eq!(ok(&name, json!("äöüßé")), Some(Value::Text("äöüßé".into())));
        assert_eq!(code(&name, json!("abcdef")), "STRING_TOO_LONG");
        assert_eq!(code(&name, json!(5)), "JSON_PARSER_ERROR");
        assert_eq!(code(&name, json!("a\u{0}b")), "TEXT_DATA_OUTSIDE_SUPPORTED_CHARSET");
    }

    #[test]
    fn every_type_has_one_form() {
        assert_eq!(ok(&field(Kind::Currency), json!(1.005)), Some(Value::Double(1.01)));
        assert_eq!(ok(&field(Kind::Currency), json!("12.345")), Some(Value::Double(12.35)));
        assert_eq!(ok(&field(Kind::Int), json!(7)), Some(Value::Int(7)));
        assert_eq!(code(&field(Kind::Int), json!(1_234_567_890_u64)), "NUMBER_OUTSIDE_VALID_RANGE");
        let at = ok(&field(Kind::DateTime), json!("2026-01-02T03:04:05.678+01:00")).unwrap();
        assert_eq!(at.plain(), "2026-01-02T02:04:05.000+0000");
        assert_eq!(ok(&field(Kind::Date), json!("2026-01-02")).unwrap().plain(), "2026-01-02");
        assert_eq!(code(&field(Kind::Date), json!("02.01.2026")), "JSON_PARSER_ERROR");
        assert_eq!(code(&field(Kind::Date), json!("0999-01-02")), "DATE_OUT_OF_RANGE");
        assert_eq!(ok(&field(Kind::Boolean), json!("true")), Some(Value::Bool(true)));
        assert_eq!(code(&field(Kind::Boolean), Json::Null), "INVALID_TYPE_ON_FIELD_IN_RECORD");
        assert_eq!(
            ok(&field(Kind::Reference), json!("001000000000001")),
            Some(Value::Text("001000000000001AAA".into()))
        );
        assert_eq!(code(&field(Kind::Reference), json!("nonsense")), "MALFORMED_ID");
        assert_eq!(code(&field(Kind::Email), json!("nobody")), "INVALID_EMAIL_ADDRESS");
        assert_eq!(ok(&field(Kind::Email), json!("a@b.example")), Some(Value::Text("a@b.example".into())));
    }

    #[test]
    fn restricted_picklists_take_their_values_alone() {
        let mut pick = field(Kind::Picklist);
        (pick.restricted, pick.picklist) = (true, vec!["Red".into(), "Green".into()]);
        assert_eq!(ok(&pick, json!("red")), Some(Value::Text("Red".into())));
        assert_eq!(code(&pick, json!("Blue")), "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST");
        pick.kind = Kind::MultiPicklist;
        assert_eq!(ok(&pick, json!("green;RED")), Some(Value::Text("Green;Red".into())));
        assert_eq!(code(&pick, json!("Green;Blue")), "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST");
    }
}
