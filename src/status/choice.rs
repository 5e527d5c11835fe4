//! What a person wants to stand, as it is sent to a link.
//!
//! It is read strictly: what is not understood is refused, since a choice goes to both sides.

use serde_json::Value as Json;

use crate::audit::Lens;
use crate::causality::apply::Choice;
use crate::change::{Body, FieldDef, FieldKind, Offset, Side, Subject, Value};
use crate::error::{Error, Kind, Result};
use crate::ledger::core::read_entry;
use crate::log::ChangeLog;

/// A choice as it is sent to a running link: `{"take": side}` or `{"value": text, number, boolean or null}`, made canonical
/// for its field.
pub fn parse(log: &dyn ChangeLog, conflict: Offset, choice: &Json) -> Result<Choice> {
    let unknown = || refused(format!("{conflict} is not a conflict; `tidelock conflicts list` shows those there are"));
    if !(log.head()..log.tail()).contains(&conflict) {
        return Err(unknown());
    }
    let Body::Decision(decision) = read_entry(log, conflict)?.body else { return Err(unknown()) };
    let lens = Lens::new(log)?;
    let field = match decision.subject {
        Subject::Field(field) => lens.catalog().mapping(decision.mapping).and_then(|m| m.field(field)),
        Subject::Existence => None,
    };
    choose(field, choice)
}

/// The name under which a person's decision goes on record: an empty one names nobody.
pub fn person(name: &str) -> Result<&str> {
    let name = name.trim();
    if name.is_empty() { Err(refused("`by` is empty; give the name that goes on record")) } else { Ok(name) }
}

fn refused(text: impl Into<String>) -> Error {
    Error::new(Kind::Configuration, text)
}

/// A choice about `field`; none where the conflict is about something else.
fn choose(field: Option<&FieldDef>, choice: &Json) -> Result<Choice> {
    let form = || {
        refused("a choice is {\"take\": \"postgres\"}, {\"take\": \"salesforce\"} or {\"value\": a value of the field}")
    };
    let mut parts = choice.as_object().ok_or_else(form)?.iter();
    let (Some((key, wanted)), None) = (parts.next(), parts.next()) else { return Err(form()) };
    match (key.as_str(), wanted) {
        ("take", Json::String(side)) => Side::BOTH
            .into_iter()
            .find(|s| s.name() == side)
            .map(Choice::Side)
            .ok_or_else(|| refused(format!("`{side}` is not a side; write postgres or salesforce"))),
        ("value", wanted) => {
            let field = field.ok_or_else(|| refused("only a field can be given a value of its own; use --take"))?;
            value(field, wanted).map(Choice::Value)
        }
        _ => Err(form()),
    }
}

/// The canonical value of a field that `wanted` stands for.
fn value(field: &FieldDef, wanted: &Json) -> Result<Value> {
    let kind = &field.kind;
    let value = match (wanted, kind) {
        (Json::Null, _) => Value::Null,
        (Json::String(text), _) if text.is_empty() => Value::Null,
        (Json::String(text), _) => crate::mapping::from_postgres(kind, TEXT, text),
        (Json::Number(number), FieldKind::Integer | FieldKind::Number { .. }) => {
            crate::mapping::from_postgres(kind, TEXT, &number.to_string())
        }
        (Json::Bool(is), FieldKind::Boolean) => Value::Bool(*is),
        _ => return Err(misfit(field, wanted)),
    };
    let value = crate::mapping::normalise(kind, value);
    if fits(kind, &value) { Ok(value) } else { Err(misfit(field, wanted)) }
}

/// The object id of PostgreSQL's type `text`.
const TEXT: u32 = 25;

/// Whether a canonical value is one of the kind: what cannot be parsed stays a text.
fn fits(kind: &FieldKind, value: &Value) -> bool {
    match (kind, value) {
        (FieldKind::Id | FieldKind::Reference { .. }, Value::Text(id)) => {
            id.len() == 18 && id.bytes().all(|b| b.is_ascii_alphanumeric())
        }
        (FieldKind::Text { length }, Value::Text(text)) => *length == 0 || text.chars().count() <= *length as usize,
        (_, Value::Null)
        | (FieldKind::Picklist | FieldKind::MultiPicklist | FieldKind::Relationship { .. }, Value::Text(_))
        | (FieldKind::Boolean, Value::Bool(_))
        | (FieldKind::Integer, Value::Int(_))
        | (FieldKind::Number { .. }, Value::Int(_) | Value::Decimal(_))
        | (FieldKind::Date, Value::Date(_))
        | (FieldKind::DateTime, Value::Timestamp(_))
        | (FieldKind::Time, Value::Time(_)) => true,
        _ => false,
    }
}

fn misfit(field: &FieldDef, wanted: &Json) -> Error {
    let what = match &field.kind {
        FieldKind::Id | FieldKind::Reference { .. } => "a Salesforce id of 15 or 18 characters".into(),
        FieldKind::Text { length } => format!("a text of at most {length} characters"),
        FieldKind::Relationship { .. } => "the parent's external id, a text".into(),
        FieldKind::Picklist => "a text".into(),
        FieldKind::MultiPicklist => "texts joined by `;`".into(),
        FieldKind::Boolean => "true or false".into(),
        FieldKind::Integer => "a whole number".into(),
        FieldKind::Number { .. } => "a number".into(),
        FieldKind::Date => "a day like 2026-01-31".into(),
        FieldKind::DateTime => "a moment like 2026-01-31T12:00:00Z".into(),
        FieldKind::Time => "a time of day like 12:00:00".into(),
    };
    let shown: String = wanted.to_string().chars().take(60).collect();
    refused(format!("{shown} is no value for {}: it takes {what}, or null", field.name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::change::{FieldId, ForeignEdit, Policy};

    fn field(kind: FieldKind) -> FieldDef {
        FieldDef {
            id: FieldId(2),
            name: "Title".into(),
            column: "title".into(),
            kind,
            policy: Policy::Review,
            owner: None,
            foreign_edit: ForeignEdit::Revert,
            createable: true,
            updateable: true,
        }
    }

    fn text() -> FieldKind {
        FieldKind::Text { length: 5 }
    }

    fn chosen(kind: FieldKind, choice: Json) -> Result<Choice> {
        choose(Some(&field(kind)), &choice)
    }

    #[test]
    fn a_side_or_a_fitting_value_is_a_choice() {
        let to = || FieldKind::Reference { to: vec!["Account".into()] };
        for (kind, choice, expected) in [
            (text(), json!({ "take": "postgres" }), Choice::Side(Side::Postgres)),
            (text(), json!({ "take": "salesforce" }), Choice::Side(Side::Salesforce)),
            (text(), json!({ "value": "äöüßé" }), Choice::Value(Value::text("äöüßé"))),
            (text(), json!({ "value": null }), Choice::Value(Value::Null)),
            (text(), json!({ "value": "" }), Choice::Value(Value::Null)),
            (FieldKind::Integer, json!({ "value": 42 }), Choice::Value(Value::Int(42))),
            (FieldKind::Integer, json!({ "value": "42" }), Choice::Value(Value::Int(42))),
            (FieldKind::Number { scale: 2 }, json!({ "value": 12.5 }), Choice::Value(Value::number("12.5").unwrap())),
            (FieldKind::Boolean, json!({ "value": true }), Choice::Value(Value::Bool(true))),
            (FieldKind::Boolean, json!({ "value": "false" }), Choice::Value(Value::Bool(false))),
            (FieldKind::Boolean, json!({ "value": null }), Choice::Value(Value::Bool(false))),
            (FieldKind::Date, json!({ "value": "1970-01-02" }), Choice::Value(Value::Date(1))),
            (to(), json!({ "value": "001000000000001" }), Choice::Value(Value::text("001000000000001AAA"))),
        ] {
            assert_eq!(chosen(kind, choice.clone()).unwrap(), expected, "{choice}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_and_erases_nothing() {
        let to = || FieldKind::Reference { to: vec!["Account".into()] };
        for (kind, choice, words) in [
            (text(), json!({}), "a choice is"),
            (text(), json!(null), "a choice is"),
            (text(), json!("postgres"), "a choice is"),
            (text(), json!(["take"]), "a choice is"),
            (text(), json!({ "take": 5 }), "a choice is"),
            (text(), json!({ "take": null }), "a choice is"),
            (text(), json!({ "take": "mine" }), "`mine` is not a side"),
            (text(), json!({ "valeu": "x" }), "a choice is"),
            (text(), json!({ "take": "postgres", "value": "x" }), "a choice is"),
            (text(), json!({ "value": 42 }), "at most 5 characters"),
            (text(), json!({ "value": "123456" }), "at most 5 characters"),
            (text(), json!({ "value": { "a": 1 } }), "is no value for Title"),
            (text(), json!({ "value": ["a"] }), "is no value for Title"),
            (FieldKind::Integer, json!({ "value": "many" }), "a whole number"),
            (FieldKind::Integer, json!({ "value": true }), "a whole number"),
            (FieldKind::Number { scale: 2 }, json!({ "value": "NaN" }), "a number"),
            (FieldKind::Boolean, json!({ "value": "perhaps" }), "true or false"),
            (FieldKind::Boolean, json!({ "value": 1 }), "true or false"),
            (FieldKind::Date, json!({ "value": "tomorrow" }), "2026-01-31"),
            (FieldKind::DateTime, json!({ "value": "noon" }), "12:00:00Z"),
            (FieldKind::Time, json!({ "value": "noon" }), "12:00:00"),
            (to(), json!({ "value": "Acme" }), "15 or 18 characters"),
        ] {
            let error = chosen(kind, choice.clone()).unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration, "{choice}");
            assert!(error.to_string().contains(words), "{choice}: {error}");
        }
        let error = choose(None, &json!({ "value": "x" })).unwrap_err();
        assert!(error.to_string().contains("use --take"), "{error}");
    }

    #[test]
    fn nobody_decides_nothing() {
        assert_eq!(person(" dana ").unwrap(), "dana");
        for nobody in ["", " ", "\n"] {
            assert_eq!(person(nobody).unwrap_err().kind(), Kind::Configuration);
        }
    }
}
