//! TRUNCATE of mapped tables: what it comes to is the mapping's policy, and nothing of it is silent.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::json;
use tidelock::change::TruncatePolicy;
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::postgres::install::{Installation, MirrorTable, apply, plan};

use super::link::{Link, Setup};

fn mappings(truncate: &str) -> String {
    format!(
        r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["LastName", "Phone", "External_ID__c"]
truncate = "{truncate}"
"#
    )
}

/// The link goes on with another policy.
async fn restart(link: &mut Link, truncate: &str) {
    link.kill();
    link.setup_mappings(&mappings(truncate));
    link.ok(&["init"]);
    link.start().await;
}

async fn rows(link: &Link) -> String {
    link.value("SELECT coalesce(string_agg(external_id__c, ' ' ORDER BY external_id__c), '') FROM salesforce.contact")
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_comes_to_what_the_mapping_says() {
    let mut link = Link::new(Setup::with_mappings(&mappings("ignore"))).await;
    for name in ["a", "b", "c"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name }));
    }
    link.start().await;
    link.settle().await;

    // Ignored: Salesforce keeps its records, and their rows come back. An edit that came just before is not lost with them.
    link.sql(
        "BEGIN; UPDATE salesforce.contact SET phone = '1' WHERE external_id__c = 'a'; TRUNCATE salesforce.contact; \
         INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('d', 'd'); COMMIT",
    )
    .await;
    link.settle().await;
    assert_eq!(rows(&link).await, "a b c d");
    assert_eq!(link.record("Contact", "a").unwrap()["Phone"], "1");
    let conflicts = link.conflicts();
    let decided = conflicts.iter().filter(|c| c["decided_by"] == "truncate = \"ignore\"").count();
    assert_eq!(decided, 3, "{conflicts:?}");

    // Refused; and where it goes past the trigger, capture stops and says so.
    restart(&mut link, "stop").await;
    let refused = link.server.execute("TRUNCATE salesforce.contact").await.unwrap_err();
    assert!(refused.to_string().contains("TRUNCATE of salesforce.contact is refused"), "{refused}");
    link.sql("SET session_replication_role = replica; TRUNCATE salesforce.contact").await;
    assert!(!link.wait_for_exit().await.success());
    let said = link.said_last();
    assert!(said.contains("salesforce.contact was truncated") && said.contains("propagate"), "{said}");
    assert_eq!(link.records("Contact").iter().filter(|c| !c["External_ID__c"].is_null()).count(), 4);

    // A person has decided: each record is deleted, and what came after stays.
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('e', 'e')").await;
    restart(&mut link, "propagate").await;
    link.settle().await;
    assert_eq!(rows(&link).await, "e");
    for name in ["a", "b", "c", "d"] {
        assert!(link.record("Contact", name).is_none(), "{name}");
    }
    link.sql("TRUNCATE salesforce.contact").await;
    link.settle().await;
    assert!(link.record("Contact", "e").is_none());
    link.verify();
}

fn installation(truncate: TruncatePolicy) -> Installation {
    let table = MirrorTable {
        schema: "public".into(),
        table: "parts".into(),
        statements: Vec::new(),
        columns: Vec::new(),
        refused: Vec::new(),
        truncate,
    };
    Installation { publication: "p".into(), tables: vec![table], triggers: None }
}

/// The stream tells TRUNCATE of the whole table, and nothing where a partition is truncated alone.
#[tokio::test]
async fn a_partition_that_is_truncated_alone_is_told_or_refused() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server
        .execute(
            "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); \
             CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (10); \
             CREATE TABLE high PARTITION OF parts FOR VALUES FROM (10) TO (99) PARTITION BY RANGE (id); \
             CREATE TABLE nested PARTITION OF high FOR VALUES FROM (10) TO (99)",
        )
        .await
        .unwrap();
    server.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await.unwrap();
    let mut session = server.session().await.unwrap();
    for (policy, alone, whole) in [
        (TruncatePolicy::Stop, None, None),
        (TruncatePolicy::Ignore, None, Some("BTC")),
        // The rows one by one; with the whole table, the statement alone.
        (TruncatePolicy::Propagate, Some("BDDC"), Some("BTC")),
    ] {
        let steps = plan(&session, &installation(policy)).await.unwrap();
        apply(&mut session, &steps).await.unwrap();
        assert_eq!(plan(&session, &installation(policy)).await.unwrap(), vec![], "{policy:?}");
        for (statement, told) in [("TRUNCATE nested", alone), ("TRUNCATE high", alone), ("TRUNCATE parts", whole)] {
            server.execute("DELETE FROM parts; INSERT INTO parts VALUES (1), (11), (12)").await.unwrap();
            server.execute("SELECT pg_replication_slot_advance('s', pg_current_wal_lsn())").await.unwrap();
            match (server.execute(statement).await, told) {
                (Ok(()), Some(expected)) => {
                    let tags = "SELECT coalesce(string_agg(chr(get_byte(data, 0)), ''), '') FROM \
                                pg_logical_slot_get_binary_changes('s', NULL, NULL, 'proto_version', '1', 'publication_names', 'p') \
                                WHERE get_byte(data, 0) <> ascii('R')";
                    let told = server.value(tags).await.unwrap();
                    assert_eq!(told.as_deref(), Some(expected), "{policy:?} {statement}");
                }
                (Err(error), None) => assert!(error.to_string().contains("is refused"), "{error}"),
                (done, _) => panic!("{policy:?} {statement}: {done:?}"),
            }
        }
        // The mark of the whole table's TRUNCATE does not outlast it.
        let both = server.execute("BEGIN; TRUNCATE parts; INSERT INTO parts VALUES (1); TRUNCATE low; COMMIT").await;
        assert_eq!(both.is_ok(), policy == TruncatePolicy::Propagate, "{policy:?}: {both:?}");
    }
}
