//! A link whose changes triggers capture, and the way there and back on a link that lives.

use serde_json::json;
use tidelock::demo::server::ServerSettings;

use super::link::{Link, Setup};

const TRIGGER: &str = "capture = \"trigger\"";

fn heroku() -> Setup {
    let server = ServerSettings::default().with("wal_level", "replica").with("max_wal_senders", "0");
    Setup { postgres: TRIGGER.into(), server, ..Setup::default() }
}

/// Edits of both sides, to the same and to other records.
async fn edit(link: &Link, n: u32) {
    link.sql(&format!(
        "BEGIN; INSERT INTO salesforce.account (name, external_id__c) VALUES ('New {n}', 'P-{n}'); \
         UPDATE salesforce.account SET phone = 'p{n}' WHERE external_id__c = 'A-1'; \
         DELETE FROM salesforce.account WHERE external_id__c = 'P-{}'; COMMIT",
        n.saturating_sub(1)
    ))
    .await;
    let id = link.record("Account", "A-1").unwrap()["Id"].as_str().unwrap().to_owned();
    link.update("Account", &id, json!({ "Site": format!("s{n}") }));
    link.create("Account", json!({ "Name": format!("Org {n}"), "External_ID__c": format!("S-{n}") }));
}

async fn count(link: &Link, query: &str) -> String {
    link.value(query).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_replication_is_kept_in_step() {
    let mut link = Link::new(heroku()).await;
    link.create("Account", json!({ "Name": "First", "External_ID__c": "A-1" }));
    link.sql("INSERT INTO salesforce.account (name, external_id__c) VALUES ('Here already', 'H-1')").await;
    let found = link.json(&["check"]);
    assert!(found.as_array().unwrap().iter().all(|f| f["severity"] != "error"), "{found}");
    link.start().await;
    link.settle().await;
    for n in 1..4 {
        edit(&link, n).await;
    }
    link.settle().await;
    let who = link.json_lines(&["log", "query", "--who", "postgres", "--kind", "change"]);
    assert!(!who.is_empty());
    let waiting =
        "SELECT (SELECT count(*) FROM salesforce._trigger_log) + (SELECT count(*) FROM salesforce._tidelock_log) = 0";
    let mut empty = String::new();
    for _ in 0..400 {
        empty = count(&link, waiting).await;
        if empty == "t" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    assert_eq!(empty, "t", "the trigger log is kept small");
    assert_ne!(count(&link, "SELECT count(*) FROM salesforce._trigger_log_archive WHERE state = 'SUCCESS'").await, "0");
    assert_eq!(link.terminate().await.code(), Some(0));
    // While nobody captures, triggers go on; when one was disabled, every row is read again.
    edit(&link, 4).await;
    link.start().await;
    link.settle().await;
    link.kill();
    link.sql(
        "ALTER TABLE salesforce.account DISABLE TRIGGER \"00_tidelock_log\"; \
         UPDATE salesforce.account SET phone = 'unseen' WHERE external_id__c = 'A-1'; \
         DELETE FROM salesforce.account WHERE external_id__c = 'P-3'",
    )
    .await;
    let found = link.tidelock(&["check"]);
    let said = super::link::printed(&found);
    assert!(said.contains("triggers of account were touched"), "{said}");
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Account", "A-1").unwrap()["Phone"], "unseen");
    assert!(link.record("Account", "P-3").is_none());
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_goes_over_to_triggers_and_back_and_misses_nothing() {
    let mut link = Link::new(Setup::default()).await;
    link.create("Account", json!({ "Name": "First", "External_ID__c": "A-1" }));
    link.start().await;
    link.settle().await;
    let slots = "SELECT count(*) FROM pg_replication_slots";
    let triggers = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE '00_tidelock%'";
    // With `init` and without, to triggers and back, with edits in between that neither captures.
    for (n, lines, init) in [(1, TRIGGER, true), (2, "", true), (3, TRIGGER, false), (4, "", false)] {
        edit(&link, n * 10).await;
        link.kill();
        edit(&link, n * 10 + 1).await;
        link.setup_postgres(lines);
        if init {
            link.ok(&["init"]);
        }
        edit(&link, n * 10 + 2).await;
        link.start().await;
        edit(&link, n * 10 + 3).await;
        link.settle().await;
        assert_eq!(link.record("Account", "A-1").unwrap()["Phone"], format!("p{}", n * 10 + 3).as_str());
        let by_triggers = !lines.is_empty();
        assert_eq!(count(&link, slots).await, if by_triggers { "0" } else { "1" }, "{n}");
        assert_eq!(count(&link, triggers).await == "0", n == 2, "{n}");
        link.verify();
    }
    assert!(link.said_last().contains("triggers still log changes that nobody reads"), "{}", link.said_last());
    link.terminate().await;
    link.ok(&["init"]);
    assert_eq!(count(&link, triggers).await, "0");
    link.verify();
}
