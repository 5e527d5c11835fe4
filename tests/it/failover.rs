//! A standby that is promoted in the database's place.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use tidelock::demo::server::PostgresServer;

use super::link::{Link, Setup};
use super::lost::healed;

async fn promote(standby: &PostgresServer) {
    let promoted = standby.value("SELECT pg_promote(true, 60)").await.unwrap();
    assert_eq!(promoted.as_deref(), Some("t"));
    // Its log goes on beyond everything that the old server had.
    for _ in 0..3 {
        standby.execute("CREATE TABLE filler (n int); DROP TABLE filler; SELECT pg_switch_wal()").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_has_all_is_followed() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    link.create("Contact", json!({ "LastName": "one", "External_ID__c": "one" }));
    link.settle().await;
    link.sql("UPDATE salesforce.contact SET phone = 'on the standby' WHERE external_id__c = 'one'").await;
    link.settle().await;
    link.kill();
    let level = link.server.standby().await.unwrap();

    promote(&level).await;
    link.server = level;
    link.configure();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET title = 'after the failover' WHERE external_id__c = 'one'").await;
    link.settle().await;
    let contact = link.record("Contact", "one").unwrap();
    assert_eq!((&contact["Phone"], &contact["Title"]), (&json!("on the standby"), &json!("after the failover")));
    // Taken up once more, on the timeline that the log knows by now.
    link.kill();
    link.sql("UPDATE salesforce.contact SET title = 'and again' WHERE external_id__c = 'one'").await;
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "one").unwrap()["Title"], json!("and again"));
    assert!(!link.said_last().contains("new timeline"), "{}", link.said_last());
    link.verify();
}

/// What the old server had and the new one lacks is written to it again; an edit made there takes nothing of that away unseen.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_that_was_behind_is_brought_up_to_date() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    for name in ["one", "two"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name }));
    }
    link.settle().await;
    link.kill();
    let behind = link.server.standby().await.unwrap();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET phone = 'not on the standby'").await;
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Three', 'three')").await;
    link.settle().await;
    link.kill();

    promote(&behind).await;
    link.server = behind;
    link.configure();
    link.sql("UPDATE salesforce.contact SET phone = 'on the standby' WHERE external_id__c = 'two'").await;
    link.start().await;
    healed(&mut link).await;
    link.settle().await;
    assert!(link.said_last().contains("timeline 2"), "{}", link.said_last());
    let phone = |link: &Link, name: &str| link.record("Contact", name).unwrap()["Phone"].clone();
    assert_eq!(phone(&link, "one"), json!("not on the standby"));
    let of_two = [json!("on the standby"), json!("not on the standby")];
    let conflicts = link.conflicts();
    let named = |c: &serde_json::Value| of_two.contains(&c["stands"]) && of_two.contains(&c["lost"]);
    assert!(conflicts.iter().any(named), "{conflicts:#?}");
    assert!(link.value("SELECT id FROM salesforce.contact WHERE external_id__c = 'three'").await.is_some());
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    link.sql("UPDATE salesforce.contact SET title = 'after all' WHERE external_id__c = 'one'").await;
    link.settle().await;
    assert_eq!(link.record("Contact", "one").unwrap()["Title"], json!("after all"));
    link.verify();
}
