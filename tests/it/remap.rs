//! Mappings that change under a link that has run: a field added, a mapping removed.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value as Json, json};
use tidelock::config::Config;
use tokio_util::sync::CancellationToken;

use super::link::{Link, PATIENCE, Setup};

const FIELDS: &str = r#"fields = ["LastName", "Phone", "External_ID__c"]"#;
const WITH_EMAIL: &str = r#"fields = ["LastName", "Phone", "External_ID__c", "Email"]"#;

fn mappings(contact_fields: &str) -> String {
    format!(
        r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
policy = "postgres_wins"
{contact_fields}
"#
    )
}

/// A contact with an e-mail address in the org.
fn contact(link: &Link, name: &str, email: Option<&str>) -> String {
    link.create("Contact", json!({ "LastName": name, "External_ID__c": name, "Email": email }))
}

async fn email(link: &Link, name: &str) -> Option<String> {
    link.value(&format!("SELECT email FROM salesforce.contact WHERE external_id__c = '{name}'")).await
}

fn email_in_org(link: &Link, name: &str) -> Option<String> {
    link.record("Contact", name).unwrap()["Email"].as_str().map(str::to_owned)
}

/// Both sides have long had other values in a field that is mapped only now: they are read again and merged, and an edit made
/// before that takes nothing away unseen.
#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_added_is_read_again() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    contact(&link, "both", Some("salesforce@both.example"));
    contact(&link, "untouched", Some("salesforce@untouched.example"));
    contact(&link, "postgres", None);
    contact(&link, "edited", Some("salesforce@edited.example"));
    link.start().await;
    link.settle().await;
    link.sql("ALTER TABLE salesforce.contact ADD COLUMN email text").await;
    link.sql("UPDATE salesforce.contact SET email = 'postgres@both.example' WHERE external_id__c = 'both'").await;
    link.sql("UPDATE salesforce.contact SET email = 'postgres@postgres.example' WHERE external_id__c = 'postgres'")
        .await;
    link.arrive().await;
    link.kill();

    link.setup_mappings(&mappings(WITH_EMAIL));
    link.ok(&["init"]);
    // Taken in at the start, long before the org's value is read.
    link.faults(json!({ "rest_latency_ms": 300 }));
    link.sql("UPDATE salesforce.contact SET email = 'edit@edited.example' WHERE external_id__c = 'edited'").await;
    link.start().await;
    link.faults(json!({ "rest_latency_ms": 0 }));
    link.settle().await;

    for (name, stands) in [
        ("both", "salesforce@both.example"),
        ("untouched", "salesforce@untouched.example"),
        ("postgres", "postgres@postgres.example"),
    ] {
        assert_eq!(email(&link, name).await.as_deref(), Some(stands), "{name}");
        assert_eq!(email_in_org(&link, name).as_deref(), Some(stands), "{name}");
    }
    assert_eq!(email(&link, "edited").await, email_in_org(&link, "edited"));
    let about = |value: &str| {
        let conflicts: Vec<Json> = link.conflicts();
        conflicts.into_iter().any(|c| c["field"] == "Email" && (c["stands"] == value || c["lost"] == value))
    };
    assert!(about("salesforce@edited.example"), "{:#?}", link.conflicts());
    assert!(about("edit@edited.example"), "{:#?}", link.conflicts());
    assert!(about("postgres@both.example"), "{:#?}", link.conflicts());
    link.verify();

    // From here on it is a field like any other.
    link.sql("UPDATE salesforce.contact SET email = 'later@untouched.example' WHERE external_id__c = 'untouched'")
        .await;
    link.settle().await;
    assert_eq!(email_in_org(&link, "untouched").as_deref(), Some("later@untouched.example"));
    link.ok(&["log", "verify"]);
}

/// The stream still holds changes from before the column was there, which it describes as the table was then.
#[tokio::test(flavor = "multi_thread")]
async fn changes_from_before_a_new_column_are_taken_in() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    for name in ["edited", "untouched"] {
        contact(&link, name, Some(&format!("salesforce@{name}.example")));
    }
    link.start().await;
    link.settle().await;
    link.sql("UPDATE salesforce.contact SET phone = '1' WHERE external_id__c = 'edited'").await;
    link.arrive().await;
    link.kill();
    link.sql("UPDATE salesforce.contact SET phone = '2' WHERE external_id__c = 'edited'").await;
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Born', 'born', '3')").await;

    link.setup_mappings(&mappings(WITH_EMAIL));
    link.ok(&["init"]);
    link.sql("UPDATE salesforce.contact SET email = 'postgres@born.example' WHERE external_id__c = 'born'").await;
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "edited").unwrap()["Phone"], "2");
    assert_eq!(link.record("Contact", "born").unwrap()["Phone"], "3");
    for (name, stands) in [
        ("edited", "salesforce@edited.example"),
        ("untouched", "salesforce@untouched.example"),
        ("born", "postgres@born.example"),
    ] {
        assert_eq!(email(&link, name).await.as_deref(), Some(stands), "{name}");
        assert_eq!(email_in_org(&link, name).as_deref(), Some(stands), "{name}");
    }
    link.verify();
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));

    // What it still held was taken in for good, and a column that goes later is not taken for one that was not there yet.
    link.kill();
    link.start().await;
    link.settle().await;
    link.sql("ALTER TABLE salesforce.contact DROP COLUMN email").await;
    link.sql("UPDATE salesforce.contact SET phone = '4' WHERE external_id__c = 'edited'").await;
    assert_eq!(link.wait_for_exit().await.code(), Some(2), "{}", link.said_last());
    assert!(link.said_last().contains("no longer has the column `email`"), "{}", link.said_last());
}

/// While a side cannot be asked what it has, a changed configuration is said not to be in force, and the rest goes on; it is
/// put in force when the side answers again.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_configuration_waits_for_an_org_without_calls_left() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    contact(&link, "untouched", Some("salesforce@untouched.example"));
    link.start().await;
    link.settle().await;
    link.kill();
    link.setup_mappings(&mappings(WITH_EMAIL));
    link.ok(&["init"]);
    link.faults(json!({ "request_limit_exhausted": true }));
    link.spawn();
    let why = |link: &Link| link.status().and_then(|s| s["unconfigured"].as_str().map(str::to_owned));
    link.wait_until("it says that the configuration is not in force", |link| {
        assert_eq!(link.exited(), None, "{}", link.said_last());
        why(link).is_some_and(|why| why.contains("not in force"))
    })
    .await;
    assert!(link.said_last().contains("ERROR"), "{}", link.said_last());
    assert!(link.ok(&["status"]).contains("not in force"));
    link.sql("UPDATE salesforce.contact SET phone = '777' WHERE external_id__c = 'untouched'").await;
    link.wait_until("PostgreSQL is captured all the while", |link| {
        link.status().is_some_and(|s| s["to_salesforce"]["changes"].as_u64() > Some(0))
    })
    .await;
    link.faults(json!({ "request_limit_exhausted": false }));
    link.wait_until("the configuration is in force", |link| link.status().is_some() && why(link).is_none()).await;
    link.settle().await;
    assert_eq!(email(&link, "untouched").await.as_deref(), Some("salesforce@untouched.example"));
    assert_eq!(link.record("Contact", "untouched").unwrap()["Phone"], "777");
    link.verify();
}

/// What is wrong with a mapping is said before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_mapping_leaves_no_log() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    link.setup_mappings(&mappings(r#"fields = ["LastName", "NoSuchField", "External_ID__c"]"#));
    let output = link.tidelock(&["run"]);
    assert_eq!(output.status.code(), Some(2), "{}", super::link::complaint(&output));
    assert!(!link.log_path().join("LOCK").exists() && !link.log_path().exists(), "an empty log was made");
}

/// Somebody who still looks at a link does not keep it from closing its log.
#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_is_kept_does_not_hold_up_the_end() {
    let link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    let config = Config::load(&link.config_path()).unwrap();
    let opened = tidelock::app::Link::open(config).await.unwrap();
    let (started, handle) = tokio::sync::oneshot::channel();
    let cancel = CancellationToken::new();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(opened.run_with(cancel.clone(), |handle| drop(started.send(handle))));
    let handle = handle.await.unwrap();
    assert!(handle.figures().await.is_ok());
    cancel.cancel();
    let closed = tokio::time::timeout(PATIENCE, running.join_next()).await.expect("the link closes");
    closed.unwrap().unwrap().unwrap();
    assert!(handle.figures().await.is_err());
    link.verify();
}

/// Another slot does not tell what was done before it was made. Everything is read again, and what is not there any more is
/// deleted at the other side too.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_stream_is_made_up_for_with_its_deletes() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    for name in ["kept", "changed", "deleted"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name }));
    }
    link.start().await;
    link.settle().await;
    link.kill();
    link.sql("DELETE FROM salesforce.contact WHERE external_id__c = 'deleted'").await;
    link.sql("UPDATE salesforce.contact SET phone = '777' WHERE external_id__c = 'changed'").await;
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Born', 'born')").await;
    let other = link.configuration().replace("[postgres]\n", "[postgres]\nslot = \"another\"\n");
    std::fs::write(link.config_path(), other).unwrap();
    link.start().await;
    link.settle().await;
    assert!(link.record("Contact", "deleted").is_none(), "the delete was lost");
    assert_eq!(link.record("Contact", "changed").unwrap()["Phone"], "777");
    assert!(link.record("Contact", "kept").is_some() && link.record("Contact", "born").is_some());
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    link.verify();
}

/// A row that is told by PostgreSQL's stream before the org's rows were read does not take the place of the org's record in
/// silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_inserted_before_the_first_copy_is_merged() {
    let mut link = Link::new(Setup::with_mappings(&mappings(FIELDS))).await;
    link.create("Contact", json!({ "LastName": "One", "External_ID__c": "one", "Phone": "999" }));
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('One', 'one', '111')").await;
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Two', 'two', '222')").await;
    link.faults(json!({ "rest_latency_ms": 2_000 }));
    link.start().await;
    link.faults(json!({ "rest_latency_ms": 0 }));
    link.settle().await;
    assert_eq!(link.record("Contact", "one").unwrap()["Phone"], "999");
    assert_eq!(link.record("Contact", "two").unwrap()["Phone"], "222");
    let about = |c: &Json| c["field"] == "Phone" && c["stands"] == "999" && c["lost"] == "111";
    assert!(link.conflicts().iter().any(about), "{:#?}", link.conflicts());
    link.verify();
}
