//! Contact C-001 has Phone 111. PostgreSQL sets 222 while a Salesforce user sets 333, delivery is late and repeated, and the
//! process is killed and started again in between: both sides end with the same value, by each policy, and the log says why.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::link::{Link, PATIENCE, Setup};

const PHONE: &str = "SELECT phone FROM salesforce.contact WHERE external_id__c = 'C-001'";

fn mappings(policy: &str) -> String {
    format!(
        r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
policy = "{policy}"
fields = ["LastName", "Phone", "Title", "External_ID__c"]
"#
    )
}

/// A running link that has C-001 with Phone 111 on both sides.
async fn with_c001(policy: &str) -> (Link, String) {
    let mut link = Link::new(Setup::with_mappings(&mappings(policy))).await;
    let id = link.create("Contact", json!({ "LastName": "Tester", "Phone": "111", "External_ID__c": "C-001" }));
    link.start().await;
    link.settle().await;
    assert_eq!(link.value(PHONE).await.as_deref(), Some("111"));
    (link, id)
}

async fn set_222(link: &Link) {
    let statement = "UPDATE salesforce.contact SET phone = '222' WHERE external_id__c = 'C-001'";
    link.sql(&format!("BEGIN; SET LOCAL tidelock.actor = 'maria'; {statement}; COMMIT")).await;
}

/// Both edits in the same moment, with late and repeated delivery, and the process killed `killed_after` each start.
async fn clash(link: &mut Link, id: &str, killed_after: &[u64]) {
    // The org takes no call of ours before the user there has made the other edit.
    link.faults(json!({ "event_latency_ms": 700, "duplicate_events": 1.0, "rest_latency_ms": 60_000 }));
    set_222(link).await;
    let before = link.update("Contact", id, json!({ "Phone": "333" }));
    assert_eq!(before["Phone"], "111", "the clash came too late");
    link.faults(json!({ "rest_latency_ms": 0 }));
    for pause in killed_after {
        sleep(Duration::from_millis(*pause)).await;
        link.kill();
        link.spawn();
    }
}

fn phone_in_org(link: &Link) -> Json {
    link.record("Contact", "C-001").unwrap()["Phone"].clone()
}

fn phone_conflicts(link: &Link) -> Vec<Json> {
    link.conflicts().into_iter().filter(|c| c["field"] == "Phone").collect()
}

/// Both sides hold `stands`, the conflict names both values and who decided, and the history tells the whole story.
async fn explained(link: &mut Link, stands: &str, lost: &str, decided_by: &str) {
    link.settle().await;
    assert_eq!(link.value(PHONE).await.as_deref(), Some(stands));
    assert_eq!(phone_in_org(link), stands);

    let conflicts = phone_conflicts(link);
    assert_eq!(conflicts.len(), 1, "{conflicts:#?}");
    let conflict = &conflicts[0];
    assert_eq!(
        (&conflict["stands"], &conflict["lost"], &conflict["open"], &conflict["decided_by"]),
        (&json!(stands), &json!(lost), &json!(false), &json!(decided_by)),
        "{conflict}"
    );
    assert_eq!(conflict["conflict_kind"], "update_origin_differs");
    let table = link.ok(&["conflicts", "list", "--all"]);
    assert!(table.contains(stands) && table.contains(lost) && table.contains(decided_by), "{table}");

    let history = link.history(&format!("contact/{}", conflict["key"].as_str().unwrap()));
    let edits: Vec<&Json> = history.iter().filter(|e| e["kind"] == "change" && sets(e, &["222", "333"])).collect();
    assert_eq!(edits.len(), 2, "each edit is captured once: {history:#?}");
    let by = |value: &str| edits.iter().find(|e| sets(e, &[value])).unwrap();
    assert_eq!((&by("222")["side"], &by("333")["side"]), (&json!("postgres"), &json!("salesforce")));
    assert!(by("222")["who"].as_str().unwrap().contains("maria"), "{}", by("222"));
    assert!(by("333")["who"].as_str().is_some_and(|who| !who.is_empty()), "{}", by("333"));
    for edit in edits {
        assert_eq!(edit["fields"][0]["from"], "111", "neither had seen the other: {edit}");
    }
    assert!(history.iter().any(|e| e["kind"] == "decision" && e["who"] == decided_by), "{history:#?}");
    link.verify();
    unchanging(link).await;
}

fn sets(entry: &Json, values: &[&str]) -> bool {
    let fields = entry["fields"].as_array();
    fields.is_some_and(|f| f.iter().any(|f| f["field"] == "Phone" && values.iter().any(|v| f["to"] == *v)))
}

/// Nothing goes on by itself: no event in the org, no write, no entry about a record.
async fn unchanging(link: &mut Link) {
    let doing = |link: &Link| {
        let status = link.status().unwrap();
        let counted = |direction: &str| {
            let d = &status[direction];
            (d["changes"].as_u64(), d["echoes"].as_u64(), d["written"].as_u64(), d["refused"].as_u64())
        };
        (link.events_told(), counted("to_salesforce"), counted("to_postgres"), status["conflicts"].as_u64())
    };
    // What is delivered late, or once more, comes within this time.
    let late = Duration::from_millis(800);
    let deadline = Instant::now() + PATIENCE;
    let mut before = doing(link);
    loop {
        sleep(late).await;
        let now = doing(link);
        if now == before {
            break;
        }
        assert!(Instant::now() < deadline, "it does not come to rest: {now:?}");
        before = now;
    }
    sleep(Duration::from_millis(2_500)).await;
    assert_eq!(doing(link), before, "it goes on by itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn salesforce_wins() {
    let (mut link, id) = with_c001("salesforce_wins").await;
    clash(&mut link, &id, &[150, 400]).await;
    explained(&mut link, "333", "222", "policy salesforce_wins").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_wins() {
    let (mut link, id) = with_c001("postgres_wins").await;
    clash(&mut link, &id, &[0, 900]).await;
    explained(&mut link, "222", "333", "policy postgres_wins").await;
}

/// Within the tolerance of the clocks the system of record's value stands, which is Salesforce's by default.
#[tokio::test(flavor = "multi_thread")]
async fn last_write_wins_in_the_same_moment() {
    let (mut link, id) = with_c001("last_write_wins").await;
    clash(&mut link, &id, &[300, 50, 50]).await;
    explained(&mut link, "333", "222", "policy last_write_wins").await;
}

/// Beyond it the later commit stands, though it is the earlier one that is heard of last.
#[tokio::test(flavor = "multi_thread")]
async fn last_write_wins_by_time() {
    let (mut link, id) = with_c001("last_write_wins").await;
    link.kill();
    link.faults(json!({ "event_latency_ms": 1_500, "duplicate_events": 1.0 }));
    assert_eq!(link.update("Contact", &id, json!({ "Phone": "333" }))["Phone"], "111");
    sleep(Duration::from_millis(3_200)).await;
    set_222(&link).await;
    link.spawn();
    explained(&mut link, "222", "333", "policy last_write_wins").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn review() {
    let (mut link, id) = with_c001("review").await;
    clash(&mut link, &id, &[200, 200]).await;
    link.wait_until("the conflict waits for a person", |link| {
        link.status().is_some_and(|status| status["conflicts_open"] == 1)
    })
    .await;
    let waiting = link.json(&["conflicts", "list"]);
    assert_eq!(waiting.as_array().unwrap().len(), 1, "{waiting}");
    let name = waiting[0]["conflict"].to_string();
    // The record's other fields flow on.
    link.sql("UPDATE salesforce.contact SET title = 'Buyer' WHERE external_id__c = 'C-001'").await;
    link.wait_until("the other field arrives", |link| link.record("Contact", "C-001").unwrap()["Title"] == "Buyer")
        .await;
    // Killed while it waits, it still waits.
    link.kill();
    link.start().await;
    assert_eq!(link.json(&["conflicts", "list"])[0]["conflict"].to_string(), name);
    // A mistake decides nothing: not by the running link, and not where none runs.
    let long = "9".repeat(500);
    let mistakes = [
        (vec![name.as_str(), "--value", &long], "at most 40 characters"),
        (vec![&name, "--take", "salesforce", "--by", ""], "`by` is empty"),
        (vec!["99999999", "--take", "salesforce"], "99999999 is not a conflict"),
        (vec!["99999999", "--value", "1"], "99999999 is not a conflict"),
        (vec!["0", "--take", "salesforce"], "0 is not a conflict"),
    ];
    for running in [false, true] {
        if running {
            link.start().await;
        } else {
            assert_eq!(link.terminate().await.code(), Some(0));
        }
        for (arguments, words) in &mistakes {
            let refused = link.tidelock(&[&["conflicts", "resolve"], &arguments[..]].concat());
            let said = super::link::complaint(&refused);
            assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {said}");
            assert!(said.contains(words), "{arguments:?}: {said}");
        }
        assert_eq!(link.json(&["conflicts", "list"])[0]["conflict"].to_string(), name);
    }
    link.ok(&["conflicts", "resolve", &name, "--take", "salesforce", "--by", "dana"]);
    let again = link.tidelock(&["conflicts", "resolve", &name, "--take", "postgres", "--by", "dana"]);
    assert_eq!(again.status.code(), Some(2), "a conflict is decided once");
    explained(&mut link, "333", "222", "dana").await;
}

/// A write takes effect, and its answer is lost: it is sent again, has no second effect, and nothing goes round.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_takes_effect_once() {
    let (mut link, _) = with_c001("last_write_wins").await;
    link.faults(json!({ "duplicate_events": 1.0, "event_latency_ms": 300 }));

    // An update.
    let told = link.events_told();
    link.faults(json!({ "apply_then_drop": 2 }));
    set_222(&link).await;
    link.wait_until("the update arrives", |link| phone_in_org(link) == "222").await;
    link.wait_until("it was tried again", |link| {
        link.status().unwrap()["to_salesforce"]["failures"].as_u64() > Some(0)
    })
    .await;
    link.wait_until("it is closed", |link| link.status().is_some_and(|s| super::link::is_quiet(&s))).await;
    // Each event is delivered twice, so that one commit of one write is two.
    assert_eq!(link.events_told() - told, 2, "one commit, told twice");

    // A record born in PostgreSQL.
    let statement =
        "INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Newcomer', 'C-002', '555')";
    link.faults(json!({ "apply_then_drop": 1 }));
    link.sql(statement).await;
    link.wait_until("the record is born", |link| link.record("Contact", "C-002").is_some()).await;
    link.kill();
    link.start().await;
    link.settle().await;
    let born =
        link.records("Contact").into_iter().filter(|r| r["External_ID__c"] == "C-002" || r["LastName"] == "Newcomer");
    assert_eq!(born.count(), 1, "the retry found what the first try had made");
    assert_eq!(
        link.value("SELECT count(*) FROM salesforce.contact WHERE external_id__c = 'C-002'").await.as_deref(),
        Some("1")
    );

    // A delete.
    link.faults(json!({ "apply_then_drop": 1 }));
    link.sql("DELETE FROM salesforce.contact WHERE external_id__c = 'C-002'").await;
    link.wait_until("the record is deleted", |link| link.record("Contact", "C-002").is_none()).await;
    link.settle().await;
    assert_eq!(link.conflicts(), Vec::<Json>::new());
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    let tickets =
        link.json_lines(&["log", "query", "--kind", "ticket", "--side", "salesforce", "--mapping", "contact"]);
    let updates = tickets.iter().filter(|t| sets(t, &["222"])).count();
    assert_eq!(updates, 1, "one write was planned, however often it was sent: {tickets:#?}");
    link.verify();
    unchanging(&mut link).await;
}

/// An account and its contact from one transaction of a database that knows neither's Salesforce id: the contact is written
/// after its account, and its lookup arrives set.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_arrives_with_its_parent_of_the_same_transaction() {
    // The child is mapped first and inserted first, so that neither order does it by luck.
    let mappings = r#"
[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["LastName", "External_ID__c", "AccountId", "Account.External_ID__c"]

[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Site", "External_ID__c"]
"#;
    let mut link = Link::new(Setup::with_mappings(mappings)).await;
    link.start().await;
    link.sql(
        "BEGIN; \
         INSERT INTO salesforce.contact (lastname, external_id__c, account__external_id__c) \
             SELECT 'Child ' || n, 'C-' || n, 'A-' || n FROM generate_series(1, 20) n; \
         INSERT INTO salesforce.account (name, external_id__c) SELECT 'Parent ' || n, 'A-' || n FROM generate_series(1, 20) n; \
         COMMIT",
    )
    .await;
    link.settle().await;
    for n in 1..=20 {
        let parent = link.record("Account", &format!("A-{n}")).unwrap();
        let child = link.record("Contact", &format!("C-{n}")).unwrap();
        assert_eq!(child["AccountId"], parent["Id"], "{child}");
    }
    // The id that the org gave comes back to the row.
    let joined = "SELECT count(*) FROM salesforce.contact c JOIN salesforce.account a ON c.accountid = a.sfid \
                  WHERE c.account__external_id__c = a.external_id__c";
    assert_eq!(link.value(joined).await.as_deref(), Some("20"));
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    assert_eq!(link.conflicts(), Vec::<Json>::new());
    // Written once each, parents first: no write was refused and tried again for want of its parent.
    let status = link.status().unwrap();
    assert_eq!((&status["to_salesforce"]["refused"], &status["to_salesforce"]["failures"]), (&json!(0), &json!(0)));
    let tickets =
        link.json_lines(&["log", "query", "--kind", "ticket", "--side", "salesforce", "--mapping", "contact"]);
    assert_eq!(tickets.len(), 20, "{tickets:#?}");
    link.verify();
}

/// A mapping that is read only gives Salesforce nothing: what is done to the mirror is undone there, and is on record.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_mirror_is_restored_and_the_org_is_left_alone() {
    let mappings = mappings("last_write_wins")
        + "\n[[mapping]]\nsobject = \"Case\"\naccess = \"read_only\"\nfields = [\"Subject\"]\n";
    let mut link = Link::new(Setup::with_mappings(&mappings)).await;
    let id = link.create("Case", json!({ "Subject": "Broken pump" }));
    link.start().await;
    link.settle().await;
    let known = "SELECT count(*) FROM salesforce.\"case\" WHERE subject = 'Broken pump'";
    assert_eq!(link.value(known).await.as_deref(), Some("1"));
    let before = link.records("Case");

    link.sql("DELETE FROM salesforce.\"case\" WHERE subject = 'Broken pump'").await;
    link.sql("INSERT INTO salesforce.\"case\" (subject) VALUES ('Invented')").await;
    link.settle().await;
    assert_eq!(link.value(known).await.as_deref(), Some("1"), "the deleted row is put back");
    let invented = "SELECT count(*) FROM salesforce.\"case\" WHERE subject = 'Invented'";
    assert_eq!(link.value(invented).await.as_deref(), Some("0"), "the new row is removed");
    assert_eq!(link.records("Case"), before, "the org's records are as they were");
    assert_eq!(
        link.json_lines(&["log", "query", "--kind", "ticket", "--side", "salesforce", "--mapping", "case"]),
        [Json::Null; 0]
    );

    let history = link.history(&id);
    let undone = history.iter().filter(|e| e["what"] == "foreign_edit in (record): kept stands, deleted does not");
    assert_eq!(undone.count(), 1, "{history:#?}");
    link.verify();
    unchanging(&mut link).await;
}
