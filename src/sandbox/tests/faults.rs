//! The faults that can be switched on.

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tonic::Code;

use super::support::{Start, Subscriber, start, start_with};
use crate::sandbox::{Config, Seed};

#[tokio::test]
async fn locked_rows_are_refused() {
    let org = start().await;
    let id = org.create("Account", json!({"Name": "A"})).await;
    org.running.admin("PATCH", "/faults", &json!({"locked_ids": [id]})).unwrap();
    let path = format!("/sobjects/Account/{id}");
    assert_eq!(org.refused("PATCH", &path, json!({"Name": "B"})).await, (400, "UNABLE_TO_LOCK_ROW".into()));
    org.running.admin("PUT", "/faults", &json!({})).unwrap();
    org.ok("PATCH", &path, json!({"Name": "B"})).await;
    assert!(org.running.admin("PATCH", "/faults", &json!({"nonsense": 1})).is_err());
}

#[tokio::test]
async fn a_write_can_be_applied_and_its_answer_lost() {
    let org = start().await;
    org.running.admin("PATCH", "/faults", &json!({"apply_then_drop": 1})).unwrap();
    assert!(org.send("POST", "/sobjects/Account", json!({"Name": "A"}), &[]).await.is_err());
    assert_eq!(org.query("SELECT COUNT() FROM Account").await["totalSize"], 1);
    org.create("Account", json!({"Name": "B"})).await;
}

#[tokio::test]
async fn requests_can_be_slow_unavailable_or_over_the_limit() {
    let org = start().await;
    org.running.admin("PATCH", "/faults", &json!({"rest_latency_ms": 60, "error_503_next": 1})).unwrap();
    let start = Instant::now();
    assert_eq!(org.refused("GET", "/limits", Json::Null).await, (503, "SERVER_UNAVAILABLE".into()));
    org.ok("GET", "/limits", Json::Null).await;
    assert!(start.elapsed() >= Duration::from_millis(120));
    org.running
        .admin("PUT", "/faults", &json!({"request_limit_exhausted": true, "event_limit_exhausted": true}))
        .unwrap();
    assert_eq!(org.refused("GET", "/limits", Json::Null).await, (403, "REQUEST_LIMIT_EXCEEDED".into()));
    let mut events = Subscriber::open(&org, "/data/ChangeEvents", Start::Latest, 1).await.unwrap();
    assert_eq!(events.response().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn streams_can_be_dropped_and_events_told_twice() {
    let org = start().await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    org.running.admin("PATCH", "/faults", &json!({"duplicate_events": 1.0})).unwrap();
    org.create("Account", json!({"Name": "A"})).await;
    let (first, second) = (events.event().await, events.event().await);
    assert_eq!(first.uuid, second.uuid);
    assert_ne!(first.replay_id, second.replay_id);
    org.running.admin("POST", "/drop-streams", &Json::Null).unwrap();
    assert_eq!(events.response().await.unwrap_err().code(), Code::Unavailable);
    org.running.admin("PUT", "/faults", &json!({"drop_stream_every": 2})).unwrap();
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Earliest).await;
    assert_eq!(events.response().await.unwrap().unwrap().events.len(), 2);
    assert_eq!(events.response().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn gaps_overflows_and_wildcards_are_told() {
    let org = start_with(Config { overflow_changes: 300, ..Config::default() }).await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    org.running.admin("PATCH", "/faults", &json!({"gap_next": 1})).unwrap();
    let id = org.create("Account", json!({"Name": "A"})).await;
    let event = events.event().await;
    assert_eq!((event.header("changeType"), event.header("recordIds")), (json!("GAP_CREATE"), json!([id])));
    assert_eq!(event.get("Name"), Json::Null);
    org.running.admin("POST", "/gap", &json!({"object": "Account", "change": "DELETE", "ids": [id]})).unwrap();
    assert_eq!(events.event().await.header("changeType"), "GAP_DELETE");
    org.running.admin("POST", "/wildcard", &json!({"object": "Account"})).unwrap();
    assert_eq!(events.event().await.header("recordIds"), json!(["001*"]));
    org.running.admin("POST", "/overflow", &json!({"object": "Account"})).unwrap();
    assert_eq!(events.event().await.header("recordIds"), json!(["000000000000000AAA"]));
    // Twenty new accounts have more fields than this org tells of in one transaction.
    let operations: Vec<Json> =
        (0..20).map(|n| json!({"op": "create", "object": "Account", "fields": {"Name": format!("A{n}")}})).collect();
    org.commit("Ann Admin", json!(operations));
    let mut kinds = Vec::new();
    while kinds.last() != Some(&json!("GAP_OVERFLOW")) {
        kinds.push(events.event().await.header("changeType"));
    }
    assert!((2..20).contains(&kinds.len()), "{kinds:?}");
}

#[tokio::test]
async fn an_org_begins_with_the_same_records_each_time() {
    let seed = Seed { accounts: 30, contacts: 40, opportunities: 20, cases: 10, seed: 9 };
    let dump = async || {
        let org = start_with(Config { seed, ..Config::default() }).await;
        let stats = org.running.admin("GET", "/stats", &Json::Null).unwrap();
        assert_eq!(stats["objects"]["Contact"]["records"], 40);
        assert_eq!(stats["events"]["told"], 0);
        let dump = org.running.admin("GET", "/dump/Contact", &Json::Null).unwrap();
        let names = dump["records"].as_array().unwrap().iter().map(|r| r["Email"].clone()).collect::<Vec<_>>();
        org.running.stop().await.unwrap();
        names
    };
    assert_eq!(dump().await, dump().await);
}
