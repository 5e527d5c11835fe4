//! Batches of writes against a small server.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::change::{
    DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, MappingDef, MappingId, Policy, RecordId,
    Str, Value, WriteKind,
};
use crate::flow::WriteValue;
use crate::salesforce::limits::BudgetOptions;
use crate::salesforce::stub::{Answer, Asked, Stub, refusal};

const NAME: FieldId = FieldId(2);
const AMOUNT: FieldId = FieldId(3);
const KEY: FieldId = FieldId(4);
const PARENT: FieldId = FieldId(5);
const FIXED: FieldId = FieldId(6);
const STAMP: FieldId = FieldId(7);

fn field(id: u16, name: &str, kind: FieldKind) -> FieldDef {
    FieldDef {
        id: FieldId(id),
        name: name.into(),
        column: name.to_lowercase(),
        kind,
        policy: Policy::LastWriteWins,
        owner: None,
        foreign_edit: ForeignEdit::Revert,
        createable: true,
        updateable: true,
    }
}

fn mapping(id: u16, sobject: &str, rank: u16) -> MappingDef {
    let text = || FieldKind::Text { length: 80 };
    let parent = FieldKind::Relationship { relationship: "Account".into(), external_id: "Key__c".into() };
    let fields = vec![
        FieldDef { createable: false, updateable: false, ..field(1, "Id", FieldKind::Id) },
        field(2, "Name", text()),
        field(3, "Amount__c", FieldKind::Number { scale: 2 }),
        field(4, "Key__c", text()),
        field(5, "Account.Key__c", parent),
        FieldDef { updateable: false, ..field(6, "Fixed__c", text()) },
        FieldDef {
            createable: false,
            updateable: false,
            owner: Some(Side::Salesforce),
            ..field(7, "SystemModstamp", FieldKind::DateTime)
        },
    ];
    MappingDef {
        id: MappingId(id),
        name: sobject.to_lowercase(),
        sobject: sobject.into(),
        schema: "salesforce".into(),
        table: sobject.to_lowercase(),
        key_columns: vec!["id".into()],
        fields,
        next_field: FieldId(8),
        owner: None,
        external_id: Some(KEY),
        delete: DeletePolicy::UpdateWins,
        truncate: crate::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank,
    }
}

fn catalog() -> Arc<Catalog> {
    let keyless = MappingDef { external_id: None, ..mapping(3, "Note__c", 2) };
    Arc::new(Catalog {
        mappings: vec![mapping(1, "Account", 0), mapping(2, "Contact", 1), keyless],
        next_mapping: MappingId(4),
        ..Catalog::default()
    })
}

fn target(stub: &Stub) -> SalesforceTarget {
    let budget = Budget::new(BudgetOptions::default(), stub.rest.clock().clone());
    SalesforceTarget::new(stub.rest.clone(), catalog(), budget, TargetOptions::default())
}

fn write(ticket: u64, mapping: u16, kind: WriteKind, values: &[(FieldId, Value)]) -> Write {
    Write {
        ticket: Offset(ticket),
        mapping: MappingId(mapping),
        record: RecordId(ticket),
        kind,
        key: None,
        salesforce_id: (kind != WriteKind::Create).then(|| id(ticket).into()),
        external_id: (kind == WriteKind::Create).then(|| smol_str::format_smolstr!("k{ticket}")),
        values: values
            .iter()
            .map(|(field, value)| WriteValue { field: *field, expected: Value::Null, value: value.clone() })
            .collect(),
    }
}

fn create(ticket: u64) -> Write {
    write(ticket, 1, WriteKind::Create, &[(NAME, Value::text(format!("n{ticket}")))])
}

fn update(ticket: u64) -> Write {
    write(ticket, 1, WriteKind::Update, &[(NAME, Value::text(format!("n{ticket}")))])
}

fn delete(ticket: u64) -> Write {
    write(ticket, 1, WriteKind::Delete, &[])
}

/// An 18-character id whose last digits are `n`.
fn id(n: u64) -> String {
    crate::salesforce::id18(&format!("001{n:012}")).to_string()
}

fn done(id: impl Into<Str>) -> Written {
    Written::Done { salesforce_id: Some(id.into()) }
}

/// A good result for every record: with its own id, or one made from the digits of its key.
fn all_well(asked: &Asked) -> Answer {
    let good = |id: String, created: bool| json!({ "id": id, "success": true, "created": created, "errors": [] });
    let results: Vec<Json> = if asked.method == Method::DELETE {
        let ids = asked.path.split_once("ids=").unwrap().1.split('&').next().unwrap();
        ids.split("%2C").map(|id| good(id.to_owned(), false)).collect()
    } else {
        let of = |record: &Json| match record["id"].as_str() {
            Some(id) => good(id.to_owned(), false),
            None => good(id(record["Key__c"].as_str().map_or(0, |k| k[1..].parse().unwrap())), true),
        };
        asked.records().iter().map(of).collect()
    };
    (200, Json::Array(results).to_string())
}

fn bad(code: &str, message: &str) -> Json {
    json!({ "success": false, "errors": [{ "statusCode": code, "message": message, "fields": [] }] })
}

#[tokio::test]
async fn a_batch_becomes_as_few_calls_as_its_kinds_and_is_answered_in_order() {
    let stub = Stub::start(all_well).await;
    let mut target = target(&stub);
    let batch = [create(1), update(2), create(3), delete(4), delete(5)];
    let answers = target.write(&batch).await.unwrap();
    assert_eq!(answers, (1..=5).map(|n| done(id(n))).collect::<Vec<_>>());
    let asked = stub.asked();
    let lines: Vec<String> = asked.iter().map(|a| format!("{} {}", a.method, a.path)).collect();
    assert_eq!(
        lines,
        [
            "PATCH composite/sobjects/Account/Key__c".to_owned(),
            "PATCH composite/sobjects".to_owned(),
            "PATCH composite/sobjects/Account/Key__c".to_owned(),
            format!("DELETE composite/sobjects?ids={}%2C{}&allOrNone=false", id(4), id(5)),
        ]
    );
    // Events that come of a call name its tickets.
    let marks: Vec<&str> = asked.iter().map(|a| a.call_options.as_str()).collect();
    assert_eq!(marks, ["client=tidelock/1-1", "client=tidelock/2-2", "client=tidelock/3-3", "client=tidelock/4-5"]);
    assert_eq!(
        asked[0].body,
        json!({ "allOrNone": false, "records": [{ "attributes": { "type": "Account" }, "Name": "n1", "Key__c": "k1" }] })
    );
    assert_eq!(asked[1].records(), [json!({ "attributes": { "type": "Account" }, "id": id(2), "Name": "n2" })]);
    let status = target.status();
    assert_eq!((status.calls(), status.rows(), status.done(), status.failed_calls()), (4, 5, 5, 0));
    assert_eq!(
        (target.side(), target.confirmation(), target.batch_limit()),
        (Side::Salesforce, Confirmation::Answer, 200)
    );
}

#[tokio::test]
async fn two_hundred_records_are_one_call_and_one_more_is_two() {
    let stub = Stub::start(all_well).await;
    let batch: Vec<Write> = (1..=201).map(update).collect();
    assert_eq!(target(&stub).write(&batch).await.unwrap().len(), 201);
    assert_eq!(stub.asked().iter().map(|a| a.records().len()).collect::<Vec<_>>(), [200, 1]);
    assert_eq!(target(&stub).write(&[]).await.unwrap(), []);
    assert_eq!(stub.asked().len(), 2);
}

#[tokio::test]
async fn no_call_has_more_records_than_the_limit() {
    let stub = Stub::start(all_well).await;
    let batch: Vec<Write> = (1..=8).map(update).collect();
    let budget = Budget::new(BudgetOptions::default(), stub.rest.clock().clone());
    let options = TargetOptions { batch_limit: 3, ..TargetOptions::default() };
    let target = SalesforceTarget::new(stub.rest.clone(), catalog(), budget, options);
    assert_eq!(target.batch_limit(), 3);
    for _ in 0..3 {
        let mut target = target.clone();
        target.write(&batch).await.unwrap();
        target.write(&batch).await.unwrap();
    }
    let calls: Vec<usize> = stub.asked().iter().map(|a| a.records().len()).collect();
    assert_eq!(calls, [3, 3, 2].repeat(6));
}

#[tokio::test]
async fn values_are_sent_as_their_fields_allow() {
    let stub = Stub::start(all_well).await;
    let mut target = target(&stub);
    let values = [
        (FieldId(1), Value::text("001000000000001AAA")),
        (NAME, Value::text("n")),
        (AMOUNT, Value::number("12.50").unwrap()),
        (PARENT, Value::text("p1")),
        (FIXED, Value::text("once")),
        (STAMP, Value::Timestamp(0)),
    ];
    let clear = [(NAME, Value::Null), (PARENT, Value::Null), (STAMP, Value::Timestamp(0))];
    let batch = [write(1, 2, WriteKind::Create, &values), write(2, 2, WriteKind::Update, &clear)];
    target.write(&batch).await.unwrap();
    let asked = stub.asked();
    assert_eq!(
        asked[0].records(),
        [json!({ "attributes": { "type": "Contact" }, "Name": "n", "Amount__c": 12.5, "Account": { "Key__c": "p1" },
            "Fixed__c": "once", "Key__c": "k1" })]
    );
    assert_eq!(
        asked[1].records(),
        [json!({ "attributes": { "type": "Contact" }, "id": id(2), "Name": null, "AccountId": null })]
    );
}

#[tokio::test]
async fn a_parent_is_taken_away_by_its_lookup_unless_the_row_says_which_it_is() {
    let stub = Stub::start(all_well).await;
    let mut catalog = Catalog::clone(&catalog());
    let reference = |id, name| field(id, name, FieldKind::Reference { to: vec!["Account".into()] });
    let by_name = |id, external: &str| {
        let kind = FieldKind::Relationship { relationship: "Payer__r".into(), external_id: external.into() };
        field(id, &format!("Payer__r.{external}"), kind)
    };
    let added = [reference(8, "AccountId"), by_name(9, "Key__c"), by_name(10, "Other__c")];
    catalog.mappings[1].fields.extend(added);
    let budget = Budget::new(BudgetOptions::default(), stub.rest.clock().clone());
    let mut target = SalesforceTarget::new(stub.rest.clone(), Arc::new(catalog), budget, TargetOptions::default());
    let (lookup, payer, other) = (FieldId(8), FieldId(9), FieldId(10));
    let parent = id(77);
    let batch = [
        write(1, 2, WriteKind::Update, &[(PARENT, Value::Null), (payer, Value::Null)]),
        write(2, 2, WriteKind::Update, &[(PARENT, Value::Null), (lookup, Value::text(&parent))]),
        write(3, 2, WriteKind::Update, &[(lookup, Value::text(&parent)), (PARENT, Value::Null)]),
        write(4, 2, WriteKind::Update, &[(payer, Value::Null), (other, Value::text("p1"))]),
        write(5, 2, WriteKind::Update, &[(lookup, Value::Null), (PARENT, Value::text("p1"))]),
    ];
    target.write(&batch).await.unwrap();
    let bodies = stub.asked()[0].records();
    let expected = |n, fields: &Json| {
        let mut body = json!({ "attributes": { "type": "Contact" }, "id": id(n) });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    assert_eq!(
        bodies,
        [
            expected(1, &json!({ "AccountId": null, "Payer__c": null })),
            expected(2, &json!({ "AccountId": parent })),
            expected(3, &json!({ "AccountId": parent })),
            expected(4, &json!({ "Payer__r": { "Other__c": "p1" } })),
            expected(5, &json!({ "Account": { "Key__c": "p1" } })),
        ]
    );
}

#[tokio::test]
async fn a_create_that_finds_its_record_takes_its_parent_away() {
    let stub = Stub::start(|asked| {
        if asked.path.ends_with("Key__c") {
            (200, json!([{ "id": id(7), "success": true, "created": false, "errors": [] }]).to_string())
        } else {
            all_well(asked)
        }
    })
    .await;
    let batch = [write(1, 2, WriteKind::Create, &[(NAME, Value::text("n")), (PARENT, Value::Null)])];
    assert_eq!(target(&stub).write(&batch).await.unwrap(), [done(id(7))]);
    assert_eq!(
        stub.asked()[1].records(),
        [json!({ "attributes": { "type": "Contact" }, "id": id(7), "AccountId": null })]
    );
}

#[tokio::test]
async fn what_cannot_be_sent_is_answered_without_a_call() {
    let stub = Stub::start(all_well).await;
    let mut target = target(&stub);
    let nothing_to_send = write(1, 1, WriteKind::Update, &[(STAMP, Value::Timestamp(0))]);
    let unmapped = Write { mapping: MappingId(9), ..create(2) };
    let unsendable = write(3, 1, WriteKind::Update, &[(AMOUNT, Value::text("NaN"))]);
    let fixed = write(4, 1, WriteKind::Update, &[(FIXED, Value::text("other"))]);
    let keyless = Write { external_id: None, ..create(5) };
    let idless = Write { salesforce_id: None, ..update(6) };
    let undeletable = Write { salesforce_id: None, ..delete(7) };
    let batch = [nothing_to_send, unmapped, unsendable, fixed, keyless, idless, undeletable];
    let answers = target.write(&batch).await.unwrap();
    let codes: Vec<&str> = answers
        .iter()
        .map(|written| match written {
            Written::Refused { code, .. } | Written::Retry { code, .. } => code.as_str(),
            Written::Done { .. } => "done",
            Written::InStream => "in stream",
        })
        .collect();
    assert_eq!(
        codes,
        [
            "done",
            "NOT_MAPPED",
            "VALUE_NOT_ACCEPTABLE",
            "FIELD_NOT_UPDATEABLE",
            "MISSING_EXTERNAL_ID",
            "NO_SALESFORCE_ID",
            "NO_SALESFORCE_ID"
        ]
    );
    assert!(stub.asked().is_empty());
    let (refused, retried) = (target.status().refused(), target.status().retried());
    assert_eq!((refused, retried), (4, 2));
}

#[tokio::test]
async fn a_mapping_without_an_external_id_is_inserted() {
    let stub = Stub::start(all_well).await;
    let batch = [Write { external_id: None, ..write(1, 3, WriteKind::Create, &[(NAME, Value::text("x"))]) }];
    assert_eq!(target(&stub).write(&batch).await.unwrap(), [done(id(0))]);
    assert_eq!((stub.asked()[0].method.clone(), stub.asked()[0].path.as_str()), (Method::POST, "composite/sobjects"));
}

#[tokio::test]
async fn one_rows_failure_is_its_own() {
    let stub = Stub::start(|asked| {
        let results: Vec<Json> = asked
            .records()
            .iter()
            .map(|record| match record["Name"].as_str().unwrap() {
                "n2" => bad("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access"),
                "n3" => bad("FIELD_CUSTOM_VALIDATION_EXCEPTION", "too small"),
                "n4" => bad("ENTITY_IS_DELETED", "entity is deleted"),
                _ => json!({ "id": record["id"], "success": true, "errors": [] }),
            })
            .collect();
        (200, Json::Array(results).to_string())
    })
    .await;
    let answers = target(&stub).write(&[update(1), update(2), update(3), update(4)]).await.unwrap();
    assert_eq!(answers[0], done(id(1)));
    assert!(matches!(&answers[1], Written::Retry { code, .. } if code == "UNABLE_TO_LOCK_ROW"));
    assert_eq!(
        answers[2],
        Written::Refused { code: "FIELD_CUSTOM_VALIDATION_EXCEPTION".into(), message: "too small".into() }
    );
    assert!(matches!(&answers[3], Written::Retry { code, .. } if code == "ENTITY_IS_DELETED"));
    assert_eq!(stub.asked().len(), 1);
}

#[tokio::test]
async fn one_poisonous_row_is_found_by_halving() {
    let stub = Stub::start(|asked| {
        if asked.records().iter().any(|record| record["Name"] == "n77") {
            (400, refusal("JSON_PARSER_ERROR", "Cannot deserialize instance of string"))
        } else {
            all_well(asked)
        }
    })
    .await;
    let mut target = target(&stub);
    let batch: Vec<Write> = (0..200).map(update).collect();
    let answers = target.write(&batch).await.unwrap();
    for (n, answer) in answers.iter().enumerate() {
        match n {
            77 => assert!(matches!(answer, Written::Refused { code, .. } if code == "JSON_PARSER_ERROR")),
            n => assert_eq!(*answer, done(id(n as u64))),
        }
    }
    assert!(stub.asked().len() <= 18, "{}", stub.asked().len());
    assert!(target.status().narrowed() > 0);
}

#[tokio::test]
async fn rows_that_an_error_names_are_found_at_once() {
    let stub = Stub::start(|asked| {
        let with = |name: &str| asked.records().iter().any(|record| record.get(name).is_some());
        let unknown_parent = asked.records().iter().any(|record| record["Account"]["Key__c"] == "p1");
        if with("Amount__c") {
            (400, refusal("INVALID_FIELD", "No such column 'Amount__c' on sobject of type Account"))
        } else if unknown_parent {
            let message = "Foreign key external ID: p1 not found for field Key__c in entity Account";
            (400, refusal("INVALID_FIELD", message))
        } else {
            all_well(asked)
        }
    })
    .await;
    let batch: Vec<Write> = (0..120)
        .map(|n| match n % 3 {
            0 => write(n, 1, WriteKind::Update, &[(AMOUNT, Value::Int(1))]),
            1 => write(n, 1, WriteKind::Update, &[(PARENT, Value::text("p1"))]),
            _ => update(n),
        })
        .collect();
    let answers = target(&stub).write(&batch).await.unwrap();
    for (n, answer) in answers.iter().enumerate() {
        match n % 3 {
            0 => assert!(matches!(answer, Written::Refused { .. }), "{answer:?}"),
            1 => assert!(matches!(answer, Written::Retry { .. }), "{answer:?}"),
            _ => assert_eq!(*answer, done(id(n as u64))),
        }
    }
    assert_eq!(stub.asked().len(), 3);
}

#[tokio::test]
async fn narrowing_down_has_a_bound() {
    let stub = Stub::start(|_| (400, refusal("JSON_PARSER_ERROR", "Unexpected character"))).await;
    let batch: Vec<Write> = (0..200).map(update).collect();
    let answers = target(&stub).write(&batch).await.unwrap();
    let refused = answers.iter().filter(|a| matches!(a, Written::Refused { .. })).count();
    let retried = answers.iter().filter(|a| matches!(a, Written::Retry { .. })).count();
    assert!(refused > 0 && retried > 0 && refused + retried == 200);
    assert!(stub.asked().len() <= 2 * PROBES_MAX + 10, "{}", stub.asked().len());
}

#[tokio::test]
async fn a_call_that_is_too_large_is_halved_and_later_ones_stay_smaller() {
    let stub = Stub::start(|asked| match asked.records().len() {
        0..=60 => all_well(asked),
        _ => (400, refusal("REQUEST_RUNNING_TOO_LONG", "Your request was running for too long")),
    })
    .await;
    let mut target = target(&stub);
    let batch: Vec<Write> = (0..200).map(update).collect();
    let well: Vec<Written> = (0..200).map(|n| done(id(n))).collect();
    assert_eq!(target.write(&batch).await.unwrap(), well);
    let sizes = |asked: Vec<Asked>| asked.iter().map(|a| a.records().len()).collect::<Vec<_>>();
    assert_eq!(sizes(stub.asked()), [200, 100, 50, 50, 100, 50, 50]);
    assert_eq!(target.write(&batch).await.unwrap(), well);
    assert!(stub.asked()[7].records().len() <= 100);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_effect_unknown_and_what_was_answered_is_not_sent_again() {
    let lost = Arc::new(Mutex::new(true));
    let lose = lost.clone();
    let stub = Stub::start(move |asked| {
        if asked.path.ends_with("/Contact/Key__c") && *lose.lock().unwrap() {
            (0, String::new())
        } else {
            all_well(asked)
        }
    })
    .await;
    let mut target = target(&stub);
    let batch = [create(1), write(2, 2, WriteKind::Create, &[(NAME, Value::text("c"))])];
    assert_eq!(target.write(&batch).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(target.status().failed_calls(), 1);
    *lost.lock().unwrap() = false;
    assert_eq!(target.write(&batch).await.unwrap(), [done(id(1)), done(id(2))]);
    let paths: Vec<String> = stub.asked().iter().map(|a| a.path.clone()).collect();
    let (account, contact) = ("composite/sobjects/Account/Key__c", "composite/sobjects/Contact/Key__c");
    assert_eq!(paths, [account, contact, contact]);
    // Another batch with the same records is sent as it is.
    assert_eq!(target.write(&[create(1)]).await.unwrap(), [done(id(1))]);
    assert_eq!(stub.asked().len(), 4);
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_unavailable() {
    let stub = Stub::with_timeout(Duration::from_millis(200), |asked| {
        // Blocks one of the server's threads for a moment, so that the client gives up.
        std::thread::sleep(Duration::from_millis(400));
        all_well(asked)
    })
    .await;
    assert_eq!(target(&stub).write(&[update(1)]).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn errors_of_a_whole_call_have_their_kind() {
    for (status, body, kind) in [
        (403, refusal("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded."), Kind::Limited),
        (403, refusal("REQUEST_LIMIT_EXCEEDED", "ConcurrentRequests Limit exceeded."), Kind::Limited),
        (503, "<html>maintenance</html>".to_owned(), Kind::Unavailable),
        (500, refusal("UNKNOWN_EXCEPTION", "ErrorId: 1"), Kind::Unavailable),
        (403, refusal("API_DISABLED_FOR_ORG", "not enabled"), Kind::Configuration),
        (401, refusal("INVALID_SESSION_ID", "Session expired or invalid"), Kind::Denied),
        (404, refusal("NOT_FOUND", "Provided external ID field does not exist"), Kind::Configuration),
        (200, "{}".to_owned(), Kind::Protocol),
        (200, "[]".to_owned(), Kind::Protocol),
    ] {
        let answer = body.clone();
        let stub = Stub::start(move |_| (status, answer.clone())).await;
        let error = target(&stub).write(&[update(1), update(2)]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{body}: {error}");
    }
}

#[tokio::test]
async fn a_limit_that_all_rows_meet_is_the_whole_calls() {
    let stub = Stub::start(|asked| {
        let full = asked.records().iter().all(|record| record["Name"] != "n9");
        let results = asked.records().into_iter().map(|record| {
            if full || record["Name"] != "n9" {
                bad("STORAGE_LIMIT_EXCEEDED", "storage limit exceeded")
            } else {
                json!({ "id": record["id"], "success": true, "errors": [] })
            }
        });
        (200, Json::Array(results.collect()).to_string())
    })
    .await;
    let mut target = target(&stub);
    assert_eq!(target.write(&[update(1), update(2)]).await.unwrap_err().kind(), Kind::Limited);
    let answers = target.write(&[update(1), update(9)]).await.unwrap();
    assert!(matches!(&answers[0], Written::Retry { code, .. } if code == "STORAGE_LIMIT_EXCEEDED"));
    assert_eq!(answers[1], done(id(9)));
}

#[tokio::test]
async fn a_record_that_someone_else_just_made_by_our_key_is_updated() {
    let stub = Stub::start(|asked| {
        if asked.path.ends_with("Key__c") {
            let message = format!("duplicate value found: Key__c duplicates value on record with id: {}", &id(7)[..15]);
            (200, json!([bad("DUPLICATE_VALUE", &message)]).to_string())
        } else {
            all_well(asked)
        }
    })
    .await;
    let values = [(NAME, Value::text("n")), (AMOUNT, Value::Null), (FIXED, Value::text("once"))];
    let batch = [write(1, 1, WriteKind::Create, &values)];
    assert_eq!(target(&stub).write(&batch).await.unwrap(), [done(id(7))]);
    let record =
        json!({ "attributes": { "type": "Account" }, "id": id(7), "Key__c": "k1", "Name": "n", "Amount__c": null });
    assert_eq!(stub.asked()[1].records(), [record]);
}

#[tokio::test]
async fn a_create_that_finds_its_record_clears_what_it_left_to_defaults() {
    let stub = Stub::start(|asked| {
        if asked.path.ends_with("Key__c") {
            (200, json!([{ "id": id(7), "success": true, "created": false, "errors": [] }]).to_string())
        } else {
            all_well(asked)
        }
    })
    .await;
    let batch = [write(1, 1, WriteKind::Create, &[(NAME, Value::text("n")), (AMOUNT, Value::Null)])];
    assert_eq!(target(&stub).write(&batch).await.unwrap(), [done(id(7))]);
    assert_eq!(
        stub.asked()[0].records(),
        [json!({ "attributes": { "type": "Account" }, "Name": "n", "Key__c": "k1" })]
    );
    assert_eq!(
        stub.asked()[1].records(),
        [json!({ "attributes": { "type": "Account" }, "id": id(7), "Amount__c": null })]
    );
}

#[tokio::test]
async fn a_detail_that_is_created_again_is_sent_without_its_fixed_parent() {
    let stub = Stub::start(|asked| {
        if asked.records()[0].get("Fixed__c").is_some() {
            let error =
                json!({ "statusCode": "INVALID_FIELD_FOR_INSERT_UPDATE", "message": "", "fields": ["Fixed__c"] });
            (200, json!([{ "success": false, "errors": [error] }]).to_string())
        } else {
            (200, json!([{ "id": id(1), "success": true, "created": false, "errors": [] }]).to_string())
        }
    })
    .await;
    let batch = [write(1, 1, WriteKind::Create, &[(NAME, Value::text("n")), (FIXED, Value::text("p"))])];
    assert_eq!(target(&stub).write(&batch).await.unwrap(), [done(id(1))]);
    assert_eq!(stub.asked().len(), 2);
}

#[tokio::test]
async fn duplicate_rules_are_overruled_only_when_told_so() {
    let stub = Stub::start(all_well).await;
    target(&stub).write(&[update(1)]).await.unwrap();
    let budget = Budget::new(BudgetOptions::default(), stub.rest.clock().clone());
    let options = TargetOptions { save_duplicates: true, ..TargetOptions::default() };
    let mut saving = SalesforceTarget::new(stub.rest.clone(), catalog(), budget, options);
    saving.write(&[update(1), delete(2)]).await.unwrap();
    let headers: Vec<String> = stub.asked().iter().map(|a| a.duplicate_rule.clone()).collect();
    assert_eq!(headers, ["", "allowSave=true", ""]);
}

#[tokio::test]
async fn a_spent_budget_sends_nothing() {
    let stub = Stub::start(all_well).await;
    let options = BudgetOptions { share_percent: 0, reserve_percent: 5 };
    let budget = Budget::new(options, stub.rest.clock().clone());
    let mut target = SalesforceTarget::new(stub.rest.clone(), catalog(), budget, TargetOptions::default());
    // Before the first answer nothing is known of the org's allocation.
    target.write(&[update(1)]).await.unwrap();
    let error = target.write(&[update(2)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Limited);
    assert!(stub.asked().iter().all(|a| a.records().iter().all(|record| record["Name"] != "n2")));
}

#[tokio::test]
async fn clones_share_counts_and_nothing_else() {
    let stub = Stub::start(all_well).await;
    let mut one = target(&stub);
    let mut two = one.clone();
    one.resume().await.unwrap();
    let (batch_one, batch_two) = ([update(1)], [update(2)]);
    let (first, second) = tokio::join!(one.write(&batch_one), two.write(&batch_two));
    assert_eq!((first.unwrap(), second.unwrap()), (vec![done(id(1))], vec![done(id(2))]));
    assert_eq!((one.status().calls(), two.status().done()), (2, 2));
}
