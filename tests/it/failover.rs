//! A standby that is promoted in the database's place.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use tidelock::demo::server::PostgresServer;

use super::link::{Link, Setup};

async fn promote(standby: &PostgresServer) {
    let promoted = standby.value("SELECT pg_promote(true, 60)").await.unwrap();
    assert_eq!(promoted.as_deref(), Some("t"));
    // Its log goes on beyond everything that the old server had.
    for _ in 0..3 {
        standby.execute("CREATE TABLE filler (n int); DROP TABLE filler; SELECT pg_switch_wal()").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_is_followed_if_it_has_all_and_refused_if_it_was_behind() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    link.create("Contact", json!({ "LastName": "one", "External_ID__c": "one" }));
    link.settle().await;
    link.kill();
    let behind = link.server.standby().await.unwrap();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET phone = 'not on the standby' WHERE external_id__c = 'one'").await;
    link.settle().await;
    link.kill();
    let level = link.server.standby().await.unwrap();

    promote(&behind).await;
    let server = std::mem::replace(&mut link.server, behind);
    drop(server);
    link.configure();
    link.spawn();
    let status = link.wait_for_exit().await;
    assert!(!status.success());
    let said = link.said_last();
    assert!(said.contains("timeline 2") && said.contains("new log"), "{said}");

    promote(&level).await;
    link.server = level;
    link.configure();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET title = 'after the failover' WHERE external_id__c = 'one'").await;
    link.settle().await;
    let contact = link.record("Contact", "one").unwrap();
    assert_eq!((&contact["Phone"], &contact["Title"]), (&json!("not on the standby"), &json!("after the failover")));
    // Taken up once more, on the timeline that the log knows by now.
    link.kill();
    link.sql("UPDATE salesforce.contact SET title = 'and again' WHERE external_id__c = 'one'").await;
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "one").unwrap()["Title"], json!("and again"));
    assert!(!link.said_last().contains("new timeline"), "{}", link.said_last());
    link.verify();
}
