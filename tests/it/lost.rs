//! A replication stream that is lost: found out before anything is passed over, and made up for by comparing rows.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value as Json, json};
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tokio::time::{Instant, sleep};

use super::link::{Link, PATIENCE, Setup, is_quiet};

const MAPPINGS: &str = r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
policy = "postgres_wins"
fields = ["LastName", "Phone", "Title", "External_ID__c"]
"#;

async fn phone(link: &Link, name: &str) -> Option<String> {
    link.value(&format!("SELECT phone FROM salesforce.contact WHERE external_id__c = '{name}'")).await
}

fn phone_in_org(link: &Link, name: &str) -> Option<String> {
    link.record("Contact", name).and_then(|contact| contact["Phone"].as_str().map(str::to_owned))
}

async fn set_phone(link: &Link, name: &str, phone: &str) {
    link.sql(&format!("UPDATE salesforce.contact SET phone = '{phone}' WHERE external_id__c = '{name}'")).await;
}

/// The last comparison of the contacts, once it is complete.
async fn reconciled(link: &mut Link) -> Json {
    let found = |link: &Link| {
        let status = link.status()?;
        let copies = status["backfills"].as_array()?.clone();
        let copy = copies.into_iter().find(|c| c["side"] == "postgres" && c["mapping"] == "contact")?;
        Some(copy["reconcile"].clone()).filter(|reconcile| reconcile["finished"] == true)
    };
    link.wait_until("the rows are compared", |link| found(link).is_some()).await;
    found(link).unwrap()
}

/// Waits until the rows are compared and what follows has been written; the comparison of the contacts. What is edited before
/// that, where the server went back, has not seen what was lost there.
pub(crate) async fn healed(link: &mut Link) -> Json {
    let reconcile = reconciled(link).await;
    link.wait_until("it is repaired", |link| link.status().is_some_and(|status| is_quiet(&status))).await;
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    reconcile
}

/// Edits that no stream will tell of, in the n-th round.
async fn edit_unseen(link: &Link, n: u32) {
    set_phone(link, "edited", &format!("postgres {n}")).await;
    set_phone(link, "both", &format!("postgres {n}")).await;
    link.sql(&format!("DELETE FROM salesforce.contact WHERE external_id__c = 'deleted {n}'")).await;
    link.sql(&format!("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Born', 'born {n}')")).await;
    for name in ["both", "org"] {
        let id = link.record("Contact", name).unwrap()["Id"].as_str().unwrap().to_owned();
        link.update("Contact", &id, json!({ "Phone": format!("salesforce {n}") }));
    }
}

/// All of these edits have arrived, and it is on record why they were looked for.
async fn has_healed(link: &mut Link, n: u32, cause: &str) {
    link.settle().await;
    let reconcile = reconciled(link).await;
    let why = reconcile["cause"].as_str().unwrap().to_owned();
    assert!(why.contains(cause), "{reconcile}");
    let count = |name: &str| reconcile[name].as_u64().unwrap();
    assert_eq!(count("compared"), count("equal") + count("repaired"), "{reconcile}");
    assert!(count("repaired") >= 4 && count("equal") >= 1, "{reconcile}");
    assert_eq!(phone_in_org(link, "edited"), Some(format!("postgres {n}")));
    assert_eq!(phone(link, "org").await, Some(format!("salesforce {n}")));
    assert_eq!(phone_in_org(link, "both"), Some(format!("postgres {n}")));
    let lost = format!("salesforce {n}");
    assert!(link.conflicts().iter().any(|c| c["field"] == "Phone" && c["lost"] == lost.as_str()), "{n}");
    assert!(
        link.record("Contact", &format!("deleted {n}")).is_none()
            && link.record("Contact", &format!("born {n}")).is_some()
    );
    let id = link.record("Contact", "edited").unwrap()["Id"].as_str().unwrap().to_owned();
    let history = link.history(&id);
    assert!(history.iter().any(|entry| entry["who"].as_str().is_some_and(|who| who.contains(&why))), "{history:#?}");
    assert!(link.said_last().contains(cause), "{}", link.said_last());
    assert!(link.ok(&["status"]).contains(cause));
    let (_, ready) = link.get("/ready").unwrap();
    assert_eq!(serde_json::from_str::<Json>(&ready).unwrap()["reconciling"], json!([]));
    let (_, metrics) = link.get("/metrics").unwrap();
    let metric = format!("tidelock_reconcile_repaired{{side=\"postgres\",mapping=\"contact\"}} {}", count("repaired"));
    assert!(metrics.contains(&metric), "{metrics}");
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    link.verify();
}

fn contacts(link: &Link) {
    for name in ["edited", "both", "org", "untouched", "deleted 0", "deleted 1", "deleted 2", "deleted 3"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name, "Phone": "0" }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_was_dropped_made_again_or_advanced_is_made_up_for() {
    let mut link = Link::new(Setup::with_mappings(MAPPINGS)).await;
    contacts(&link);
    link.start().await;
    link.settle().await;
    let drop = "SELECT pg_drop_replication_slot('tidelock_test')";
    let make = "SELECT pg_create_logical_replication_slot('tidelock_test', 'pgoutput')";
    let advance = "SELECT pg_replication_slot_advance('tidelock_test', pg_current_wal_lsn())";
    for (n, (sql, cause)) in
        [(&[drop][..], "is gone"), (&[drop, make], "made again"), (&[advance], "advanced")].into_iter().enumerate()
    {
        link.kill();
        edit_unseen(&link, n as u32).await;
        free(&link.server).await;
        for sql in sql {
            link.sql(sql).await;
        }
        link.start().await;
        has_healed(&mut link, n as u32, cause).await;
    }

    // While the link runs. It starts again by itself.
    let deadline = Instant::now() + PATIENCE;
    let end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL";
    while link.server.execute(&format!("{end}; {drop}")).await.is_err() {
        assert!(Instant::now() < deadline, "the slot cannot be dropped");
        sleep(std::time::Duration::from_millis(5)).await;
    }
    edit_unseen(&link, 3).await;
    link.wait_until("it noticed", |link| link.said_last().contains("is gone")).await;
    has_healed(&mut link, 3, "is gone").await;
    assert_eq!(link.exited(), None);
}

/// Waits until nobody reads from a slot.
async fn free(server: &PostgresServer) {
    let deadline = Instant::now() + PATIENCE;
    while server.value("SELECT count(*) FROM pg_replication_slots WHERE active").await.unwrap().as_deref() != Some("0")
    {
        assert!(Instant::now() < deadline, "a slot is still read from");
        sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_server_invalidated_is_made_up_for() {
    let server = ServerSettings::default().with("max_slot_wal_keep_size", "1MB").with("min_wal_size", "32MB");
    let mut link = Link::new(Setup { server, ..Setup::with_mappings(MAPPINGS) }).await;
    contacts(&link);
    link.start().await;
    link.settle().await;
    link.kill();
    edit_unseen(&link, 0).await;
    invalidate(&link).await;
    link.start().await;
    has_healed(&mut link, 0, "invalidated").await;

    // A new log has read nothing from it.
    link.terminate().await;
    invalidate(&link).await;
    std::fs::remove_dir_all(link.log_path()).unwrap();
    link.start().await;
    link.settle().await;
}

/// Has the server give the slot up.
async fn invalidate(link: &Link) {
    let deadline = Instant::now() + PATIENCE;
    while link.value("SELECT wal_status FROM pg_replication_slots").await.as_deref() != Some("lost") {
        assert!(Instant::now() < deadline, "the slot is not invalidated");
        link.sql("CREATE TABLE filler AS SELECT generate_series(1, 1000) n; DROP TABLE filler; SELECT pg_switch_wal()")
            .await;
        link.sql("CHECKPOINT").await;
    }
}

/// The server process that makes the slot anew, and waits for a transaction that is open.
async fn making_the_slot(link: &mut Link, but: Option<&str>) -> String {
    let query = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%pg_create_logical_replication_slot%' \
                 AND state = 'active' AND pid <> pg_backend_pid()";
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(link.exited(), None, "{}", link.said_last());
        assert!(Instant::now() < deadline, "nobody makes the slot");
        match link.value(query).await {
            Some(pid) if Some(pid.as_str()) != but => return pid,
            _ => sleep(std::time::Duration::from_millis(20)).await,
        }
    }
}

/// What passes does not end the link, wherever it comes in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_while_a_loss_is_made_up_for_is_waited_for() {
    let mut link = Link::new(Setup::with_mappings(MAPPINGS)).await;
    contacts(&link);
    link.start().await;
    link.settle().await;
    link.kill();
    edit_unseen(&link, 0).await;
    free(&link.server).await;
    link.sql("SELECT pg_drop_replication_slot('tidelock_test')").await;
    let open = link.server.session().await.unwrap();
    open.batch_execute("BEGIN; CREATE TABLE never (n int)").await.unwrap();
    link.spawn();
    let first = making_the_slot(&mut link, None).await;
    link.sql(&format!("SELECT pg_terminate_backend({first})")).await;
    making_the_slot(&mut link, Some(&first)).await;
    link.server.stop_immediate().await.unwrap();
    // The org's side goes on meanwhile.
    link.wait_until("it says so", |link| {
        link.status().is_some_and(|s| s["to_salesforce"]["capture_connected"] == false)
    })
    .await;
    assert_eq!(link.exited(), None, "{}", link.said_last());
    link.server.start_again().await.unwrap();
    has_healed(&mut link, 0, "is gone").await;

    // And somebody who asks it to stop meanwhile is obeyed.
    link.kill();
    free(&link.server).await;
    link.sql("SELECT pg_drop_replication_slot('tidelock_test')").await;
    let open = link.server.session().await.unwrap();
    open.batch_execute("BEGIN; CREATE TABLE never (n int)").await.unwrap();
    link.spawn();
    making_the_slot(&mut link, None).await;
    assert!(link.terminate().await.success());
    open.batch_execute("ROLLBACK").await.unwrap();
    link.start().await;
    link.settle().await;
    link.verify();
}

/// Copies the server's files, at rest.
async fn back_up(link: &mut Link) -> PathBuf {
    let backup = link.path("backup");
    link.server.stop_fast().await.unwrap();
    copy(&link.server.directory().join("data"), &backup);
    link.server.start_again().await.unwrap();
    backup
}

/// Puts the server's files back.
async fn restore(link: &mut Link, backup: &PathBuf) {
    link.server.stop_fast().await.unwrap();
    let data = link.server.directory().join("data");
    std::fs::remove_dir_all(&data).unwrap();
    copy(backup, &data);
    std::fs::remove_dir_all(backup).unwrap();
    link.server.start_again().await.unwrap();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What both sides did since the backup is written to the restored server again, and what was done there since it was restored
/// is not taken for something that has seen it. Once the server is found out by where its log ends; once it has written more
/// than what was lost before anybody looks.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_is_brought_up_to_date() {
    let mut link = Link::new(Setup::with_mappings(MAPPINGS)).await;
    contacts(&link);
    link.start().await;
    link.settle().await;
    for (n, moved_on) in [(0, false), (1, true)] {
        link.terminate().await;
        let backup = back_up(&mut link).await;
        link.start().await;
        set_phone(&link, "edited", &format!("lost {n}")).await;
        set_phone(&link, "both", &format!("lost {n}")).await;
        link.sql(&format!("DELETE FROM salesforce.contact WHERE external_id__c = 'deleted {n}'")).await;
        link.sql(&format!("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Born', 'born {n}')"))
            .await;
        let id = link.record("Contact", "org").unwrap()["Id"].as_str().unwrap().to_owned();
        link.update("Contact", &id, json!({ "Phone": format!("org {n}") }));
        link.create("Contact", json!({ "LastName": "New", "External_ID__c": format!("new {n}") }));
        link.settle().await;
        link.kill();

        restore(&mut link, &backup).await;
        set_phone(&link, "both", &format!("since {n}")).await;
        set_phone(&link, "untouched", &format!("since {n}")).await;
        // It gets the key of a row that was lost.
        link.sql(&format!("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Later', 'later {n}')"))
            .await;
        if moved_on {
            for _ in 0..3 {
                link.sql("CREATE TABLE filler (n int); DROP TABLE filler; SELECT pg_switch_wal()").await;
            }
        }
        link.start().await;
        let reconcile = healed(&mut link).await;
        link.settle().await;
        let cause = if moved_on { "tidelock.replay" } else { "its log ends at" };
        assert!(reconcile["cause"].as_str().unwrap().contains(cause), "{reconcile}");
        assert_eq!(phone(&link, "edited").await, Some(format!("lost {n}")));
        assert_eq!(phone_in_org(&link, "edited"), Some(format!("lost {n}")));
        assert_eq!(phone(&link, "org").await, Some(format!("org {n}")));
        assert_eq!(phone_in_org(&link, "untouched"), Some(format!("since {n}")));
        let conflicts = link.conflicts();
        let lost = |c: &Json| c["stands"] == format!("since {n}").as_str() && c["lost"] == format!("lost {n}").as_str();
        assert!(conflicts.iter().any(lost), "{conflicts:#?}");
        for name in ["born", "new", "later"] {
            assert!(link.record("Contact", &format!("{name} {n}")).is_some(), "{name}");
        }
        assert!(link.record("Contact", &format!("deleted {n}")).is_none());
        assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
        link.verify();
    }
}
