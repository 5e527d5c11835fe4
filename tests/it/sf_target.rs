//! Writes to Salesforce, and what is asked of an org before a link runs, against the sandbox.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelock::change::{
    Catalog, DeletePolicy, FieldDef, FieldId, FieldKind, ForeignEdit, InitialMerge, MappingDef, MappingId, Offset,
    Policy, RecordId, Str, Value, WriteKind,
};
use tidelock::error::Kind;
use tidelock::flow::{Target, Write, WriteValue, Written};
use tidelock::mapping::Severity;
use tidelock::salesforce::auth::{Auth, AuthOptions, Flow};
use tidelock::salesforce::describe::{Describer, list_sobjects};
use tidelock::salesforce::http_client;
use tidelock::salesforce::limits::{Budget, BudgetOptions, Headroom};
use tidelock::salesforce::preflight::check;
use tidelock::salesforce::pubsub::{PubSub, PubSubOptions};
use tidelock::salesforce::rest::{Rest, RestOptions};
use tidelock::salesforce::target::{SalesforceTarget, TargetOptions};
use tidelock::sandbox::{Config, OrgFile, Running, Sandbox};
use tokio_util::sync::CancellationToken;

const ORG: &str = r#"
[[objects]]
name = "Account"
[[objects.fields]]
name = "Key__c"
type = "string"
length = 40
external_id = true
unique = true
[[objects.fields]]
name = "Ticker__c"
type = "string"
length = 20
unique = true

[[objects]]
name = "Contact"
[[objects.fields]]
name = "Key__c"
type = "string"
length = 40
external_id = true
unique = true

[[objects]]
name = "Silent__c"
events = false
[[objects.fields]]
name = "Key__c"
type = "string"
length = 40
external_id = true

[[validations]]
object = "Account"
error_if = "NumberOfEmployees < 0"
message = "Employees cannot be negative"
"#;

const ACCOUNT: u16 = 1;
const CONTACT: u16 = 2;

/// Fields of both mappings: the external id has the same number in each.
const KEY: u16 = 1;
const NAME: u16 = 2;
const EMPLOYEES: u16 = 3;
const TICKER: u16 = 4;
const PARENT: u16 = 5;
const FAX: u16 = 6;
const REVENUE: u16 = 7;

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

fn mapping(id: u16, sobject: &str, rank: u16, fields: Vec<FieldDef>) -> MappingDef {
    MappingDef {
        id: MappingId(id),
        name: sobject.to_lowercase(),
        sobject: sobject.into(),
        schema: "salesforce".into(),
        table: sobject.to_lowercase(),
        key_columns: vec!["id".into()],
        fields,
        next_field: FieldId(20),
        owner: None,
        external_id: Some(FieldId(KEY)),
        delete: DeletePolicy::UpdateWins,
        truncate: tidelock::change::TruncatePolicy::default(),
        initial_merge: InitialMerge::Salesforce,
        rank,
    }
}

fn catalog() -> Catalog {
    let text = || FieldKind::Text { length: 80 };
    let parent = FieldKind::Relationship { relationship: "Account".into(), external_id: "Key__c".into() };
    let account = vec![
        field(KEY, "Key__c", text()),
        field(NAME, "Name", text()),
        field(EMPLOYEES, "NumberOfEmployees", FieldKind::Integer),
        field(TICKER, "Ticker__c", text()),
        field(FAX, "Fax", text()),
        field(REVENUE, "AnnualRevenue", FieldKind::Number { scale: 0 }),
    ];
    let contact =
        vec![field(KEY, "Key__c", text()), field(NAME, "LastName", text()), field(PARENT, "Account.Key__c", parent)];
    Catalog {
        mappings: vec![mapping(ACCOUNT, "Account", 0, account), mapping(CONTACT, "Contact", 1, contact)],
        next_mapping: MappingId(3),
        ..Catalog::default()
    }
}

struct Org {
    sandbox: Running,
    rest: Rest,
}

impl Org {
    async fn start() -> Self {
        let config = Config { org: OrgFile::from_toml(ORG).unwrap(), ..Config::default() };
        let sandbox = Sandbox::start(config, CancellationToken::new()).await.unwrap();
        let options = AuthOptions {
            login_url: sandbox.url(),
            client_id: "tidelock".into(),
            flow: Flow::ClientCredentials { client_secret: "tidelock-secret".into() },
            instance_url: None,
            timeout: Duration::from_secs(10),
        };
        let (http, clock) = (http_client(None).unwrap(), tidelock::clock::system());
        let auth = Auth::new(options, http.clone(), clock.clone()).unwrap();
        let options = RestOptions {
            api_version: "66.0".into(),
            client_name: "tidelock".into(),
            timeout: Duration::from_secs(10),
        };
        let rest = Rest::new(auth, http, clock, options).unwrap();
        Self { sandbox, rest }
    }

    fn target(&self) -> SalesforceTarget {
        let budget = Budget::new(BudgetOptions::default(), self.rest.clock().clone());
        SalesforceTarget::new(self.rest.clone(), Arc::new(catalog()), budget, TargetOptions::default())
    }

    fn faults(&self, faults: &Json) {
        self.sandbox.admin("PATCH", "/faults", faults).unwrap();
    }

    /// The records of an object, by external id.
    fn records(&self, sobject: &str) -> BTreeMap<String, Json> {
        let dump = self.sandbox.admin("GET", &format!("/dump/{sobject}"), &Json::Null).unwrap();
        let records = dump.as_array().or_else(|| dump["records"].as_array()).cloned().unwrap();
        let count = records.len();
        let by_key: BTreeMap<String, Json> =
            records.into_iter().map(|r| (r["Key__c"].as_str().unwrap_or_default().to_owned(), r)).collect();
        assert_eq!(by_key.len(), count, "two records have the same external id");
        by_key
    }
}

fn value(id: u16, value: impl Into<Value>) -> WriteValue {
    WriteValue { field: FieldId(id), expected: Value::Null, value: value.into() }
}

fn text(id: u16, text: &str) -> WriteValue {
    value(id, Value::text(text))
}

fn write(ticket: u64, mapping: u16, kind: WriteKind, values: Vec<WriteValue>) -> Write {
    Write {
        ticket: Offset(ticket),
        mapping: MappingId(mapping),
        record: RecordId(ticket),
        kind,
        key: None,
        salesforce_id: None,
        external_id: None,
        values,
    }
}

fn create(ticket: u64, mapping: u16, key: &str, mut values: Vec<WriteValue>) -> Write {
    values.insert(0, text(KEY, key));
    Write { external_id: Some(key.into()), ..write(ticket, mapping, WriteKind::Create, values) }
}

fn account(ticket: u64, key: &str) -> Write {
    create(ticket, ACCOUNT, key, vec![text(NAME, key)])
}

fn update(ticket: u64, id: &Str, values: Vec<WriteValue>) -> Write {
    Write { salesforce_id: Some(id.clone()), ..write(ticket, ACCOUNT, WriteKind::Update, values) }
}

fn delete(ticket: u64, id: &Str) -> Write {
    Write { salesforce_id: Some(id.clone()), ..write(ticket, ACCOUNT, WriteKind::Delete, vec![]) }
}

fn id_of(written: &Written) -> Str {
    match written {
        Written::Done { salesforce_id: Some(id) } => id.clone(),
        other => panic!("{other:?}"),
    }
}

fn code_of(written: &Written) -> &str {
    match written {
        Written::Refused { code, .. } | Written::Retry { code, .. } => code,
        other => panic!("{other:?}"),
    }
}

fn is_refused(written: &Written) -> bool {
    matches!(written, Written::Refused { .. })
}

#[tokio::test]
async fn a_record_is_created_updated_and_deleted() {
    let org = Org::start().await;
    let mut target = org.target();
    assert_eq!(target.resume().await.unwrap().committed, None);
    let values = vec![text(NAME, "Acme"), value(EMPLOYEES, Value::Int(12)), value(FAX, Value::Null)];
    let id = id_of(&target.write(&[create(1, ACCOUNT, "a", values)]).await.unwrap()[0]);
    let record = &org.records("Account")["a"];
    assert_eq!((record["Id"].as_str(), record["Name"].as_str()), (Some(id.as_str()), Some("Acme")));
    assert_eq!(record["NumberOfEmployees"], 12);

    let values = vec![text(NAME, "Acme & Söhne"), value(EMPLOYEES, Value::Null), value(REVENUE, Value::Int(5))];
    assert_eq!(id_of(&target.write(&[update(2, &id, values)]).await.unwrap()[0]), id);
    let record = &org.records("Account")["a"];
    assert_eq!((record["Name"].as_str(), &record["NumberOfEmployees"]), (Some("Acme & Söhne"), &Json::Null));

    assert_eq!(id_of(&target.write(&[delete(3, &id)]).await.unwrap()[0]), id);
    assert!(org.records("Account").is_empty());
    // Deleting it again is success; to update it is news that the stream brings.
    assert_eq!(id_of(&target.write(&[delete(4, &id)]).await.unwrap()[0]), id);
    let answers = target.write(&[update(5, &id, vec![text(NAME, "late")])]).await.unwrap();
    assert!(matches!(&answers[0], Written::Retry { code, .. } if code == "ENTITY_IS_DELETED"));
    // Written again whole, it is a new record.
    let again = Write { salesforce_id: Some(id.clone()), ..account(6, "a") };
    let new = id_of(&target.write(&[again]).await.unwrap()[0]);
    assert_ne!(new, id);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_does_no_harm() {
    let org = Org::start().await;
    let mut target = org.target();
    let batch = [account(1, "a"), account(2, "b")];
    org.faults(&json!({ "apply_then_drop": 1 }));
    assert_eq!(target.write(&batch).await.unwrap_err().kind(), Kind::Unavailable);
    let made = org.records("Account");
    assert_eq!(made.len(), 2);
    let ids: Vec<Str> = target.write(&batch).await.unwrap().iter().map(id_of).collect();
    assert_eq!(ids[0], made["a"]["Id"].as_str().unwrap());
    assert_eq!(org.records("Account"), made);

    let changes = [update(3, &ids[0], vec![text(NAME, "x")]), delete(4, &ids[1])];
    org.faults(&json!({ "apply_then_drop": 1 }));
    assert_eq!(target.write(&changes).await.unwrap_err().kind(), Kind::Unavailable);
    org.faults(&json!({ "apply_then_drop": 1 }));
    assert_eq!(target.write(&changes).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(target.write(&changes).await.unwrap().iter().map(id_of).collect::<Vec<_>>(), ids);
    let left = org.records("Account");
    assert_eq!((left.len(), left["a"]["Name"].as_str()), (1, Some("x")));
    assert_eq!(target.status().failed_calls(), 3);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_away_is_unavailable_until_it_is_back() {
    let org = Org::start().await;
    let mut target = org.target();
    org.faults(&json!({ "error_503_next": 2 }));
    for _ in 0..2 {
        assert_eq!(target.write(&[account(1, "a")]).await.unwrap_err().kind(), Kind::Unavailable);
    }
    id_of(&target.write(&[account(1, "a")]).await.unwrap()[0]);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn rows_fail_one_by_one() {
    let org = Org::start().await;
    let mut target = org.target();
    let ids: Vec<Str> =
        target.write(&[account(1, "a"), account(2, "b"), account(3, "c")]).await.unwrap().iter().map(id_of).collect();
    org.faults(&json!({ "locked_ids": [ids[1]] }));
    let batch = [
        update(4, &ids[0], vec![text(NAME, "new"), text(TICKER, "T")]),
        update(5, &ids[1], vec![text(NAME, "new")]),
        update(6, &ids[2], vec![value(EMPLOYEES, Value::Int(-1))]),
        create(7, ACCOUNT, "d", vec![text(NAME, &"long ".repeat(60))]),
        create(8, ACCOUNT, "e", vec![]),
        create(9, ACCOUNT, "f", vec![text(NAME, "f"), text(TICKER, "T")]),
        create(10, ACCOUNT, "g", vec![text(NAME, "g"), value(EMPLOYEES, Value::text("many"))]),
        account(11, "h"),
    ];
    let answers = target.write(&batch).await.unwrap();
    id_of(&answers[0]);
    assert!(matches!(&answers[1], Written::Retry { code, .. } if code == "UNABLE_TO_LOCK_ROW"));
    let codes: Vec<&str> = answers[2..7].iter().map(code_of).collect();
    assert_eq!(
        codes,
        [
            "FIELD_CUSTOM_VALIDATION_EXCEPTION",
            "STRING_TOO_LONG",
            "REQUIRED_FIELD_MISSING",
            "DUPLICATE_VALUE",
            "VALUE_NOT_ACCEPTABLE"
        ]
    );
    assert!(answers[2..7].iter().all(is_refused));
    id_of(&answers[7]);
    let records = org.records("Account");
    assert_eq!(records.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b", "c", "h"]);
    assert_eq!((&records["a"]["Name"], &records["b"]["Name"]), (&json!("new"), &json!("b")));
    org.faults(&json!({ "locked_ids": [] }));
    id_of(&target.write(&batch[1..2]).await.unwrap()[0]);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_parent_is_found_by_its_external_id_once_it_is_there() {
    let org = Org::start().await;
    let mut target = org.target();
    let child =
        |ticket, key: &str, parent: &str| create(ticket, CONTACT, key, vec![text(NAME, key), text(PARENT, parent)]);
    let batch = [account(1, "p1"), child(2, "c1", "p1"), child(3, "c2", "p2")];
    let answers = target.write(&batch).await.unwrap();
    let parent = id_of(&answers[0]);
    id_of(&answers[1]);
    assert!(matches!(&answers[2], Written::Retry { code, .. } if code == "INVALID_FIELD"), "{:?}", answers[2]);
    assert_eq!(org.records("Contact")["c1"]["AccountId"], parent.as_str());
    target.write(&[account(4, "p2")]).await.unwrap();
    id_of(&target.write(&batch[2..]).await.unwrap()[0]);
    assert_eq!(org.records("Contact")["c2"]["AccountId"], org.records("Account")["p2"]["Id"]);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_create_that_finds_a_record_of_the_org_makes_it_equal() {
    let org = Org::start().await;
    let operation = json!({ "op": "create", "object": "Account",
        "fields": { "Name": "theirs", "Key__c": "a", "Fax": "1", "NumberOfEmployees": 3 } });
    org.sandbox.admin("POST", "/commit", &json!({ "user": "Ann Admin", "operations": [operation] })).unwrap();
    let values = vec![text(NAME, "ours"), value(FAX, Value::Null), value(EMPLOYEES, Value::Null)];
    id_of(&org.target().write(&[create(1, ACCOUNT, "a", values)]).await.unwrap()[0]);
    let record = &org.records("Account")["a"];
    assert_eq!(
        (&record["Name"], &record["Fax"], &record["NumberOfEmployees"]),
        (&json!("ours"), &Json::Null, &Json::Null)
    );
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn one_value_that_no_parser_takes_costs_only_its_row() {
    let org = Org::start().await;
    // The catalog is behind: in the org the field has become a number.
    let mut stale = catalog();
    stale.mappings[0].fields[2].kind = FieldKind::Text { length: 10 };
    let budget = Budget::new(BudgetOptions::default(), org.rest.clock().clone());
    let mut target = SalesforceTarget::new(org.rest.clone(), Arc::new(stale), budget, TargetOptions::default());
    let batch: Vec<Write> = (0..50)
        .map(|n| {
            let employees = if n == 31 { "many" } else { "7" };
            create(n, ACCOUNT, &format!("k{n}"), vec![text(NAME, "x"), text(EMPLOYEES, employees)])
        })
        .collect();
    let answers = target.write(&batch).await.unwrap();
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(is_refused(answer), n == 31, "{n}: {answer:?}");
    }
    assert_eq!(org.records("Account").len(), 49);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn an_expired_token_is_renewed_on_the_way() {
    let org = Org::start().await;
    let mut target = org.target();
    id_of(&target.write(&[account(1, "a")]).await.unwrap()[0]);
    org.sandbox.admin("POST", "/expire-tokens", &Json::Null).unwrap();
    id_of(&target.write(&[account(2, "b")]).await.unwrap()[0]);
    assert_eq!(org.records("Account").len(), 2);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_used_up_allocation_is_waited_for() {
    let org = Org::start().await;
    org.faults(&json!({ "request_limit_exhausted": true }));
    assert_eq!(org.target().write(&[account(1, "a")]).await.unwrap_err().kind(), Kind::Limited);
    assert!(org.records("Account").is_empty());
    org.faults(&json!({ "request_limit_exhausted": false }));
    id_of(&org.target().write(&[account(1, "a")]).await.unwrap()[0]);
    let headroom = Headroom::fetch(&org.rest).await.unwrap();
    let requests = headroom.api_requests.unwrap();
    assert!(requests.max == 100_000 && requests.remaining < requests.max, "{requests:?}");
    assert!(headroom.delivered_events.is_some());
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn several_instances_write_at_once() {
    let org = Org::start().await;
    let target = org.target();
    let mut tasks = tokio::task::JoinSet::new();
    for instance in 0..4 {
        let mut target = target.clone();
        tasks.spawn(async move {
            let batch: Vec<Write> = (0..200)
                .map(|n| {
                    let ticket = instance * 200 + n;
                    account(ticket, &format!("k{ticket}"))
                })
                .collect();
            target.write(&batch).await.unwrap().iter().map(id_of).collect::<Vec<_>>()
        });
    }
    let ids: std::collections::BTreeSet<Str> = tasks.join_all().await.into_iter().flatten().collect();
    assert_eq!((ids.len(), org.records("Account").len()), (800, 800));
    let status = target.status();
    assert_eq!((status.calls(), status.rows(), status.done()), (4, 800, 800));
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn every_object_of_the_org_is_described() {
    let org = Org::start().await;
    let describer = Describer::new(org.rest.clone());
    let all = list_sobjects(&org.rest).await.unwrap();
    assert!(all.iter().any(|sobject| sobject.name == "Account" && sobject.createable));
    for sobject in &all {
        let description = describer.describe(&sobject.name).await.unwrap().unwrap();
        assert_eq!(description.name, sobject.name);
        assert!(description.field("Id").is_some_and(|f| f.kind == Some(FieldKind::Id) && !f.createable));
    }
    let account = describer.describe("Account").await.unwrap().unwrap();
    let kind = |name: &str| account.field(name).unwrap().kind.clone();
    assert_eq!(kind("NumberOfEmployees"), Some(FieldKind::Integer));
    assert_eq!(kind("Key__c"), Some(FieldKind::Text { length: 40 }));
    assert_eq!(kind("BillingAddress"), None);
    assert_eq!(kind("SystemModstamp"), Some(FieldKind::DateTime));
    assert_eq!(account.field("BillingCity").unwrap().compound.as_deref(), Some("BillingAddress"));
    assert_eq!(describer.describe("Nope__c").await.unwrap(), None);
    org.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn the_org_is_checked_before_a_link_runs() {
    let org = Org::start().await;
    let pubsub =
        PubSub::new(PubSubOptions { endpoint: org.sandbox.url(), ..PubSubOptions::default() }, org.rest.auth().clone())
            .unwrap();
    let may_subscribe = |topic: String| {
        let pubsub = pubsub.clone();
        async move {
            match pubsub.topic(&topic).await {
                Ok(topic) => Ok(topic.can_subscribe),
                Err(trouble) => Err(trouble.into_error()),
            }
        }
    };
    let findings = check(&org.rest, &catalog(), None, &may_subscribe).await;
    let bad: Vec<String> = findings.iter().filter(|f| f.severity > Severity::Ok).map(ToString::to_string).collect();
    assert!(bad.is_empty(), "{bad:#?}");

    let mut wrong = catalog();
    wrong.mappings[0].fields[1].name = "Nome".into();
    wrong.mappings[0].fields[2].kind = FieldKind::Date;
    let key = vec![field(KEY, "Key__c", FieldKind::Text { length: 40 })];
    wrong.mappings.push(mapping(3, "Silent__c", 2, key));
    wrong.mappings.push(mapping(4, "Nope__c", 2, vec![]));
    let findings = check(&org.rest, &wrong, None, &may_subscribe).await;
    let of = |about: &str| {
        let finding = findings.iter().find(|f| f.subject == about).unwrap_or_else(|| panic!("{about}: {findings:#?}"));
        assert!(!finding.advice.is_empty());
        finding.severity
    };
    assert_eq!(of("Account.Nome"), Severity::Error);
    assert_eq!(of("Account.NumberOfEmployees"), Severity::Error);
    assert_eq!(of("Account"), Severity::Warning);
    assert_eq!(of("Silent__c.Key__c"), Severity::Warning);
    assert_eq!(of("Silent__c change events"), Severity::Error);
    assert_eq!(of("Nope__c"), Severity::Error);
    org.sandbox.stop().await.unwrap();
}
