//! From what Salesforce says of one row to what the log is told.

use serde::Deserialize;

use super::row::{Row, Verb};
use crate::change::Str;
use crate::flow::{Mended, Written};
use crate::salesforce::errors::{Class, classify, duplicate_field, missing_column, record_id_in};
use crate::salesforce::id18;
use crate::salesforce::rest::ApiError;

/// The most of an error's message that is kept.
const MESSAGE_CHARS_MAX: usize = 1000;

/// One element of a collection call's answer.
#[derive(Debug, Deserialize)]
pub(super) struct ItemResult {
    #[serde(default)]
    pub(super) id: Option<String>,
    pub(super) success: bool,
    /// Whether an upsert made the record; absent elsewhere.
    #[serde(default)]
    pub(super) created: Option<bool>,
    #[serde(default)]
    pub(super) errors: Vec<ItemError>,
}

/// Why a row was not done.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ItemError {
    #[serde(rename = "statusCode", alias = "errorCode", default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) fields: Vec<String>,
}

impl From<ApiError> for ItemError {
    fn from(error: ApiError) -> Self {
        Self { code: error.code, message: error.message, fields: error.fields }
    }
}

impl ItemError {
    pub(super) fn class(&self, status: u16) -> Class {
        classify(status, &self.code, &self.message)
    }

    fn text(&self) -> Str {
        let mut text: String = self.message.chars().take(MESSAGE_CHARS_MAX).collect();
        if !self.fields.is_empty() {
            text.push_str(" [");
            text.push_str(&self.fields.join(", "));
            text.push(']');
        }
        text.into()
    }

    pub(super) fn refused(&self) -> Written {
        Written::Refused { code: Str::new(&self.code), message: self.text() }
    }

    pub(super) fn retry(&self) -> Written {
        let mended = match self.class(200) {
            Class::Reauthenticate | Class::Backoff | Class::Locked | Class::WaitForConcurrency | Class::Innocent => {
                Mended::ByTime
            }
            Class::WaitForLimit => Mended::ByRoom,
            _ => Mended::Perhaps,
        };
        Written::Retry { code: Str::new(&self.code), message: self.text(), mended }
    }
}

/// What follows from one row's result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is answered.
    Answer(Written),
    /// Nothing but a limit of the org stands in its way.
    Limited(Written),
    /// The record was made meanwhile, by whomever, under this id: it is to be updated.
    UpdateInstead(Str),
    /// The record was there already, so that fields which a create leaves to their defaults are still to be cleared.
    ClearLeftOut(Str),
    /// The record was there already, and some fields can be set at creation only: it is sent without them.
    WithoutCreateOnly,
    /// The record was there already, and what a create leaves to its defaults cannot be cleared: done but for that.
    NotCleared { written: Written, code: Str },
}

/// Judges one row's result.
pub(super) fn judge(row: &Row, result: ItemResult) -> Verdict {
    if result.success {
        let id = result.id.map(|id| id18(&id)).or_else(|| row.id.clone());
        return match id {
            Some(id) if result.created == Some(false) && !row.left_out.is_empty() => Verdict::ClearLeftOut(id),
            id => Verdict::Answer(Written::Done { salesforce_id: id }),
        };
    }
    match gravest(&result.errors) {
        Some(error) => judge_error(row, error),
        None => Verdict::Answer(Written::Retry {
            code: "NO_REASON".into(),
            message: "Salesforce did not do it and gave no reason".into(),
            mended: Mended::Perhaps,
        }),
    }
}

/// The error that decides: the first that retrying does not mend, or else the first.
fn gravest(errors: &[ItemError]) -> Option<&ItemError> {
    errors.iter().find(|error| !error.class(200).is_transient()).or_else(|| errors.first())
}

/// Judges one row by an error that is about it.
pub(super) fn judge_error(row: &Row, error: &ItemError) -> Verdict {
    let class = error.class(200);
    if row.clears && (!class.is_transient() || class == Class::Dependency) {
        let written = Written::Done { salesforce_id: row.id.clone() };
        return Verdict::NotCleared { written, code: Str::new(&error.code) };
    }
    if is_about_create_only(row, error) {
        return Verdict::WithoutCreateOnly;
    }
    let answer = match class {
        Class::Gone | Class::Missing if row.verb == Verb::Delete => Written::Done { salesforce_id: row.id.clone() },
        Class::WaitForLimit => return Verdict::Limited(error.retry()),
        Class::Duplicate => match existing(row, error) {
            Some(id) => return Verdict::UpdateInstead(id),
            None => error.refused(),
        },
        Class::DuplicateRule | Class::Schema | Class::RowFinal | Class::RestartQuery => error.refused(),
        // That a record is gone is a fact that capture brings; the log decides again when it has.
        Class::Gone
        | Class::Missing
        | Class::Reauthenticate
        | Class::Backoff
        | Class::Locked
        | Class::WaitForConcurrency
        | Class::Shrink
        | Class::Dependency
        | Class::Conflict
        | Class::Innocent
        | Class::HaltConfiguration
        | Class::Unknown => error.retry(),
    };
    Verdict::Answer(answer)
}

/// Whether an upsert is refused only because it found its record, and some of its fields can be set at creation only. That is
/// how a create of a detail record is refused when it is sent again after an answer that was lost.
fn is_about_create_only(row: &Row, error: &ItemError) -> bool {
    error.code == "INVALID_FIELD_FOR_INSERT_UPDATE"
        && row.verb == Verb::Upsert
        && !row.create_only.is_empty()
        && error.fields.iter().all(|field| row.create_only.iter().any(|name| name.eq_ignore_ascii_case(field)))
}

/// The record that has the row's own external id, where that is what is taken: another writer made it while ours was under
/// way. A value of another unique field that is taken belongs to another record, which we must not overwrite.
fn existing(row: &Row, error: &ItemError) -> Option<Str> {
    let by_external_id = row.verb == Verb::Upsert
        && duplicate_field(&error.message).is_some_and(|field| field.eq_ignore_ascii_case(&row.external_field));
    if by_external_id { record_id_in(&error.message).map(id18) } else { None }
}

/// The rows that an error of a whole call is about, where its text names something that only some rows have.
pub(super) fn culprits(rows: &[Row], error: &ItemError) -> Vec<bool> {
    let about: Box<dyn Fn(&Row) -> bool> = if let Some(column) = missing_column(&error.message) {
        let sobject = error.message.split_once("on sobject of type ").map(|(_, name)| first_word(name));
        Box::new(move |row: &Row| {
            row.sends(column) && sobject.is_none_or(|name| row.sobject.eq_ignore_ascii_case(name))
        })
    } else if let Some((external_field, value)) = unknown_parent(&error.message) {
        Box::new(move |row: &Row| row.names_parent(external_field, value))
    } else if let Some(sobject) = unknown_sobject(&error.message).filter(|_| error.code == "INVALID_TYPE") {
        Box::new(move |row: &Row| row.sobject.eq_ignore_ascii_case(sobject))
    } else {
        return Vec::new();
    };
    let named: Vec<bool> = rows.iter().map(about).collect();
    if named.contains(&true) { named } else { Vec::new() }
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or_default()
}

/// Field and value of `Foreign key external ID: <value> not found for field <field> in entity <object>`.
fn unknown_parent(message: &str) -> Option<(&str, &str)> {
    let (_, rest) = message.split_once("Foreign key external ID: ")?;
    let (value, rest) = rest.rsplit_once(" not found for field ")?;
    Some((first_word(rest), value))
}

/// The object of `sObject type '<object>' is not supported`.
fn unknown_sobject(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("sObject type '")?;
    rest.split_once('\'').map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::change::Offset;

    fn row(verb: Verb) -> Row {
        Row {
            index: 0,
            ticket: Offset(0),
            verb,
            sobject: "Contact".into(),
            external_field: "Key__c".into(),
            rank: 0,
            id: matches!(verb, Verb::Update | Verb::Delete).then(|| "003000000000001AAA".into()),
            name: "n".into(),
            body: Map::new(),
            left_out: Vec::new(),
            create_only: Vec::new(),
            clears: false,
        }
    }

    fn results(json: &str) -> Vec<ItemResult> {
        serde_json::from_str(json).unwrap()
    }

    fn judged(verb: Verb, code: &str, message: &str) -> Verdict {
        let json = json!([{ "success": false, "errors": [{ "statusCode": code, "message": message, "fields": [] }] }]);
        judge(&row(verb), results(&json.to_string()).remove(0))
    }

    fn retried(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Answer(Written::Retry { .. }))
    }

    fn refused(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Answer(Written::Refused { .. }))
    }

    #[test]
    fn success_tells_the_id_in_its_long_form() {
        let [created, found, bare] = <[ItemResult; 3]>::try_from(results(
            r#"[{"id":"003000000000009","success":true,"created":true,"errors":[]},
                {"id":"003000000000009AAA","success":true,"created":false,"errors":[]},
                {"success":true}]"#,
        ))
        .unwrap();
        let done = |id: &str| Verdict::Answer(Written::Done { salesforce_id: Some(id.into()) });
        let mut upsert = row(Verb::Upsert);
        upsert.left_out.push("Fax".into());
        assert_eq!(judge(&upsert, created), done("003000000000009AAA"));
        assert_eq!(judge(&upsert, found), Verdict::ClearLeftOut("003000000000009AAA".into()));
        assert_eq!(judge(&row(Verb::Update), bare), done("003000000000001AAA"));
    }

    #[test]
    fn a_deleted_record_is_success_for_a_delete_and_news_for_an_update() {
        let done = Verdict::Answer(Written::Done { salesforce_id: Some("003000000000001AAA".into()) });
        assert_eq!(judged(Verb::Delete, "ENTITY_IS_DELETED", "entity is deleted"), done);
        assert!(retried(&judged(Verb::Update, "ENTITY_IS_DELETED", "entity is deleted")));
        assert!(retried(&judged(Verb::Upsert, "ENTITY_IS_DELETED", "entity is deleted")));
        // It may as well be a record that we are not allowed to see.
        assert!(retried(&judged(Verb::Delete, "INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")));
    }

    #[test]
    fn fields_for_creation_only_are_dropped_when_the_record_is_there() {
        let unwritable = |fields: &str| {
            let json = format!(
                r#"[{{"success":false,"errors":[{{"statusCode":"INVALID_FIELD_FOR_INSERT_UPDATE","message":"","fields":{fields}}}]}}]"#
            );
            results(&json).remove(0)
        };
        let mut detail = row(Verb::Upsert);
        assert!(refused(&judge(&detail, unwritable(r#"["Order__c"]"#))));
        detail.create_only.push("Order__c".into());
        assert_eq!(judge(&detail, unwritable(r#"["Order__c"]"#)), Verdict::WithoutCreateOnly);
        assert!(refused(&judge(&detail, unwritable(r#"["Order__c","Name"]"#))));
        detail.body.insert("Order__c".into(), json!("x"));
        detail.body.insert("Name".into(), json!("x"));
        let again = detail.without_create_only();
        assert!(again.sends("Name") && !again.sends("order__C"));
        assert!(refused(&judge(&again, unwritable(r#"["Order__c"]"#))));
    }

    #[test]
    fn what_cannot_be_cleared_does_not_undo_the_create() {
        let mut upsert = row(Verb::Upsert);
        upsert.left_out.push("OwnerId".into());
        let clearing = upsert.clearing("003000000000007AAA".into());
        assert_eq!(
            clearing.record(),
            json!({"attributes":{"type":"Contact"},"id":"003000000000007AAA","OwnerId":null})
        );
        let error = |code: &str| ItemError { code: code.into(), message: String::new(), fields: Vec::new() };
        for code in ["INVALID_CROSS_REFERENCE_KEY", "REQUIRED_FIELD_MISSING"] {
            assert!(matches!(judge_error(&clearing, &error(code)), Verdict::NotCleared { .. }), "{code}");
        }
        assert!(retried(&judge_error(&clearing, &error("UNABLE_TO_LOCK_ROW"))));
    }

    #[test]
    fn only_the_own_external_id_makes_a_duplicate_ours() {
        let own = "duplicate value found: key__C duplicates value on record with id: 003000000000007";
        assert_eq!(judged(Verb::Upsert, "DUPLICATE_VALUE", own), Verdict::UpdateInstead("003000000000007AAA".into()));
        let other = "duplicate value found: Email__c duplicates value on record with id: 003000000000007";
        assert!(refused(&judged(Verb::Upsert, "DUPLICATE_VALUE", other)));
        assert!(refused(&judged(Verb::Update, "DUPLICATE_VALUE", own)));
        assert!(refused(&judged(Verb::Upsert, "DUPLICATE_VALUE", "duplicate value found: <unknown>")));
        assert!(refused(&judged(Verb::Upsert, "DUPLICATE_EXTERNAL_ID", "more than one record found")));
    }

    #[test]
    fn transient_trouble_is_tried_again_and_the_rest_is_final() {
        for code in
            ["UNABLE_TO_LOCK_ROW", "UNKNOWN_EXCEPTION", "PROCESSING_HALTED", "INVALID_CROSS_REFERENCE_KEY", "NEWS"]
        {
            assert!(retried(&judged(Verb::Update, code, "")), "{code}");
        }
        for code in ["FIELD_CUSTOM_VALIDATION_EXCEPTION", "STRING_TOO_LONG", "DUPLICATES_DETECTED", "INVALID_FIELD"] {
            assert!(refused(&judged(Verb::Update, code, "")), "{code}");
        }
        let mended = |code: &str| match judged(Verb::Update, code, "") {
            Verdict::Answer(Written::Retry { mended, .. }) | Verdict::Limited(Written::Retry { mended, .. }) => mended,
            other => panic!("{other:?}"),
        };
        assert!(matches!(judged(Verb::Update, "STORAGE_LIMIT_EXCEEDED", ""), Verdict::Limited(_)));
        assert_eq!(mended("STORAGE_LIMIT_EXCEEDED"), Mended::ByRoom);
        for code in ["UNABLE_TO_LOCK_ROW", "SERVER_UNAVAILABLE"] {
            assert_eq!(mended(code), Mended::ByTime, "{code}");
        }
        for code in ["INVALID_CROSS_REFERENCE_KEY", "NEWS"] {
            assert_eq!(mended(code), Mended::Perhaps, "{code}");
        }
        let none = results(r#"[{"success":false,"errors":[]}]"#).remove(0);
        assert!(retried(&judge(&row(Verb::Update), none)));
    }

    #[test]
    fn the_gravest_of_several_errors_decides() {
        let both = r#"[{"success":false,"errors":[{"statusCode":"UNABLE_TO_LOCK_ROW","message":"busy"},
            {"statusCode":"STRING_TOO_LONG","message":"too long","fields":["Name"]}]}]"#;
        let verdict = judge(&row(Verb::Update), results(both).remove(0));
        let Verdict::Answer(Written::Refused { code, message }) = verdict else { panic!("{verdict:?}") };
        assert_eq!((code.as_str(), message.as_str()), ("STRING_TOO_LONG", "too long [Name]"));
    }

    #[test]
    fn a_whole_calls_error_may_name_its_rows() {
        let mut with = row(Verb::Update);
        with.body.insert("Nope__c".into(), json!(1));
        with.body.insert("Account".into(), json!({ "Key__c": "k 1" }));
        let without = row(Verb::Update);
        let rows = [without, with];
        let error =
            |code: &str, message: &str| ItemError { code: code.into(), message: message.into(), fields: Vec::new() };
        let named = vec![false, true];
        assert_eq!(
            culprits(&rows, &error("INVALID_FIELD", "No such column 'nope__c' on sobject of type Contact")),
            named
        );
        assert!(
            culprits(&rows, &error("INVALID_FIELD", "No such column 'Nope__c' on sobject of type Lead")).is_empty()
        );
        let parent = "Foreign key external ID: k 1 not found for field Key__c in entity Account";
        assert_eq!(culprits(&rows, &error("INVALID_FIELD", parent)), named);
        assert_eq!(culprits(&rows, &error("INVALID_TYPE", "sObject type 'Contact' is not supported.")), [true, true]);
        assert!(culprits(&rows, &error("JSON_PARSER_ERROR", "Unexpected character")).is_empty());
    }
}
