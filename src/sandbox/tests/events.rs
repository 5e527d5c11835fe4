//! Change events through the Pub/Sub API, decoded by an independent decoder.

use std::time::Duration;

use serde_json::{Value as Json, json};
use tonic::Code;

use super::support::{Start, Subscriber, start, start_with};
use crate::protocol::eventbus::FetchRequest;
use crate::sandbox::{Config, NoOpUpdate};

#[tokio::test]
async fn a_record_is_told_of_from_its_creation_to_its_end() {
    let org = start().await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    let fields = json!({"Name": "Acme", "BillingStreet": "Quay 1", "BillingCity": "Porto", "NumberOfEmployees": 3});
    let id = org.create("Account", fields).await;
    let event = events.event().await;
    assert_eq!(event.header("changeType"), "CREATE");
    assert_eq!(event.header("recordIds"), json!([id]));
    assert_eq!(event.header("entityName"), "Account");
    assert_eq!(event.header("changeOrigin"), "com/salesforce/api/rest/66.0;client=tests");
    assert_eq!(event.header("sequenceNumber"), 1);
    assert_eq!(event.header("changedFields"), json!([]));
    assert_eq!(event.header("commitTimestamp").as_i64().unwrap() % 1000, 0);
    assert_eq!((event.get("Name"), event.get("BillingAddress.City")), (json!("Acme"), json!("Porto")));
    assert_eq!(event.get("Phone"), Json::Null);
    org.ok("PATCH", &format!("/sobjects/Account/{id}"), json!({"Industry": "Energy", "BillingCity": null})).await;
    let event = events.event().await;
    assert_eq!(event.header("changeType"), "UPDATE");
    // Industry is field 11 and LastModifiedDate field 22; the city is member 1 of field 4.
    assert_eq!(event.header("changedFields"), json!(["0x400800", "4-0x02"]));
    assert_eq!(event.header("nulledFields"), json!(["4-0x02"]));
    assert_eq!((event.get("Industry"), event.get("Name")), (json!("Energy"), Json::Null));
    org.ok("DELETE", &format!("/sobjects/Account/{id}"), Json::Null).await;
    let event = events.event().await;
    assert_eq!((event.header("changeType"), event.get("LastModifiedDate")), (json!("DELETE"), Json::Null));
    org.running.admin("POST", "/undelete", &json!({"ids": [id], "user": "Bob Seller"})).unwrap();
    let event = events.event().await;
    assert_eq!((event.header("changeType"), event.get("Industry")), (json!("UNDELETE"), json!("Energy")));
    assert_eq!(event.get("LastModifiedById"), event.header("commitUser"));
}

#[tokio::test]
async fn a_transaction_is_told_in_order_with_equal_changes_merged() {
    let org = start().await;
    let ids = org.commit(
        "Ann Admin",
        json!([
            {"op": "create", "object": "Account", "fields": {"Name": "A"}},
            {"op": "create", "object": "Account", "fields": {"Name": "B"}},
        ]),
    );
    let mut events = org.subscribe("/data/ChangeEvents", Start::Latest).await;
    org.commit(
        "Bob Seller",
        json!([
            {"op": "update", "id": ids[0], "fields": {"Rating": "Hot"}},
            {"op": "create", "object": "Contact", "fields": {"LastName": "C", "AccountId": ids[1]}},
            {"op": "update", "id": ids[1], "fields": {"Rating": "Hot"}},
        ]),
    );
    let (first, second) = (events.event().await, events.event().await);
    assert_eq!(first.header("recordIds"), json!(ids));
    assert_eq!(first.header("changeOrigin"), "com/salesforce/api/soap/66.0;client=SfdcInternalAPI/");
    assert_eq!((first.header("sequenceNumber"), second.header("sequenceNumber")), (json!(1), json!(2)));
    assert_eq!(first.header("transactionKey"), second.header("transactionKey"));
    assert_eq!(second.header("entityName"), "Contact");
    // The person who changed them is another than the one who made them.
    assert_eq!(first.get("LastModifiedById"), first.header("commitUser"));
    // An update that changes nothing is silent; one that changes the same record twice is told once.
    org.commit("Bob Seller", json!([{"op": "update", "id": ids[0], "fields": {"Rating": "Hot"}}]));
    org.commit(
        "Bob Seller",
        json!([
            {"op": "update", "id": ids[0], "fields": {"Rating": "Cold"}},
            {"op": "update", "id": ids[0], "fields": {"Site": "x"}},
        ]),
    );
    let event = events.event().await;
    assert_eq!((event.get("Rating"), event.get("TickerSymbol")), (json!("Cold"), json!("X")));
    assert_eq!(event.get("LastModifiedById"), Json::Null);
}

#[tokio::test]
async fn automation_after_saving_is_told_on_its_own() {
    let org = start().await;
    let ids = org.commit("Ann Admin", json!([{"op": "create", "object": "Account", "fields": {"Name": "A"}}]));
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    org.commit("Ann Admin", json!([{"op": "update", "id": ids[0], "fields": {"Sic": "1"}}]));
    let (first, second) = (events.event().await, events.event().await);
    assert_eq!((first.get("Sic"), first.get("Touched__c")), (json!("1"), Json::Null));
    assert_eq!((second.get("Sic"), second.get("Touched__c")), (Json::Null, json!(1.0)));
    assert_eq!(first.header("transactionKey"), second.header("transactionKey"));
    assert_eq!(second.header("sequenceNumber"), 2);
}

#[tokio::test]
async fn compounds_locations_names_and_channels() {
    let org = start().await;
    let mut events = org.subscribe("/data/Money__chn", Start::Latest).await;
    let id =
        org.create("Invoice__c", json!({"Amount__c": 1, "Place__Latitude__s": 1.5, "Place__Longitude__s": 2.5})).await;
    org.create("Contact", json!({"LastName": "not on this channel"})).await;
    org.ok("PATCH", &format!("/sobjects/Invoice__c/{id}"), json!({"Place__Longitude__s": 3.5})).await;
    let event = events.event().await;
    assert_eq!((event.get("Place__c.Latitude"), event.get("Place__c.Longitude")), (json!(1.5), json!(2.5)));
    let event = events.event().await;
    assert_eq!((event.get("Place__c.Latitude"), event.get("Place__c.Longitude")), (Json::Null, json!(3.5)));
    let mut events = org.subscribe("/data/ContactChangeEvent", Start::Earliest).await;
    let event = events.event().await;
    assert_eq!(event.get("Name.LastName"), "not on this channel");
}

#[tokio::test]
async fn subscriptions_resume_after_an_event() {
    let org = start().await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Earliest).await;
    for name in ["A", "B", "C"] {
        org.create("Account", json!({"Name": name})).await;
    }
    let first = events.event().await;
    assert_eq!((first.replay_id.len(), &first.replay_id[8..]), (10, &[0, 0][..]));
    for id in [first.replay_id.clone(), first.replay_id[..8].to_vec()] {
        let mut resumed = org.subscribe("/data/AccountChangeEvent", Start::After(id)).await;
        assert_eq!(resumed.event().await.get("Name"), "B");
        assert_eq!(resumed.event().await.get("Name"), "C");
    }
    org.running.admin("POST", "/purge-events", &Json::Null).unwrap();
    let mut stale = org.subscribe("/data/AccountChangeEvent", Start::After(first.replay_id)).await;
    let status = stale.response().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.metadata().get("error-code").unwrap(),
        "sfdc.platform.eventbus.grpc.subscription.fetch.replayid.corrupted"
    );
    assert!(status.message().contains("rpcId: "));
}

fn code_of(status: &tonic::Status) -> String {
    let code = status.metadata().get("error-code").and_then(|v| v.to_str().ok()).unwrap_or_default();
    code.trim_start_matches("sfdc.platform.eventbus.grpc.").to_owned()
}

#[tokio::test]
async fn the_flow_of_events_is_what_was_asked_for() {
    let org = start_with(Config { keepalive: Duration::from_millis(80), ..Config::default() }).await;
    let mut events = Subscriber::open(&org, "/data/AccountChangeEvent", Start::Latest, 2).await.unwrap();
    let alive = events.response().await.unwrap().unwrap();
    assert_eq!((alive.events.len(), alive.pending_num_requested, alive.latest_replay_id.len()), (0, 2, 10));
    let operations: Vec<Json> =
        (0..5).map(|n| json!({"op": "create", "object": "Account", "fields": {"Name": format!("A{n}")}})).collect();
    org.commit("Ann Admin", json!(operations));
    let response = loop {
        let response = events.response().await.unwrap().unwrap();
        // Another sign of life may have been on its way.
        if !response.events.is_empty() {
            break response;
        }
    };
    assert_eq!((response.events.len(), response.pending_num_requested), (2, 0));
    assert_eq!(response.latest_replay_id, response.events[1].replay_id);
    events.more(1000).await;
    let response = events.response().await.unwrap().unwrap();
    assert_eq!((response.events.len(), response.pending_num_requested), (3, 97));
    events
        .requests
        .send(FetchRequest { topic_name: "/data/ChangeEvents".into(), num_requested: 1, ..Default::default() })
        .await
        .unwrap();
    loop {
        match events.response().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without an error"),
            Err(status) => break assert_eq!(code_of(&status), "subscription.fetch.topic.mismatch"),
        }
    }
    for (topic, num_requested, start, code) in [
        ("/data/Nope", 1, Start::Latest, "topic.not.found"),
        ("/data/accountChangeEvent", 1, Start::Latest, "topic.not.found"),
        ("", 1, Start::Latest, "topic.validation.empty"),
        ("/data/ChangeEvents", 0, Start::Latest, "subscription.fetch.requested.events.invalid"),
        ("/data/ChangeEvents", 1, Start::After(Vec::new()), "subscription.fetch.replayid.validation.failed"),
        ("/data/ChangeEvents", 1, Start::After(vec![1, 2, 3]), "subscription.fetch.replayid.corrupted"),
        ("/data/ChangeEvents", 1, Start::After(vec![0; 10]), "subscription.fetch.replayid.corrupted"),
    ] {
        let mut events = Subscriber::open(&org, topic, start, num_requested).await.unwrap();
        assert_eq!(code_of(&events.response().await.unwrap_err()), code, "{topic}");
    }
}

#[tokio::test]
async fn an_idle_subscription_is_closed() {
    let org = start_with(Config { idle_close: Duration::from_millis(50), ..Config::default() }).await;
    let mut events = Subscriber::open(&org, "/data/AccountChangeEvent", Start::Latest, 1).await.unwrap();
    org.create("Account", json!({"Name": "A"})).await;
    assert_eq!(events.response().await.unwrap().unwrap().events.len(), 1);
    assert!(events.response().await.unwrap().is_none());
}

#[tokio::test]
async fn no_op_updates_can_be_told() {
    let org = start_with(Config { no_op_update: NoOpUpdate::Event, merge_events: false, ..Config::default() }).await;
    let create = json!([{"op": "create", "object": "Account", "fields": {"Name": "A"}}]);
    let ids = org.commit("Ann Admin", create);
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    org.commit("Ann Admin", json!([{"op": "update", "id": ids[0], "fields": {"Name": "A"}}]));
    assert_eq!(events.event().await.header("changedFields"), json!(["0x400000"]));
}

#[tokio::test]
async fn long_texts_are_told_as_differences() {
    let org = start().await;
    let lines: Vec<String> = (0..60).map(|n| format!("line {n} of a long description of the account")).collect();
    let id = org.create("Account", json!({"Name": "A", "Description": lines.join("\n")})).await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Latest).await;
    let mut changed = lines.clone();
    changed[30] = "another line".to_owned();
    org.ok("PATCH", &format!("/sobjects/Account/{id}"), json!({"Description": changed.join("\n")})).await;
    let event = events.event().await;
    assert_eq!(event.header("diffFields"), json!(["0x010000"]));
    assert_eq!(event.header("changedFields"), json!(["0x410000"]));
    let diff = event.get("Description");
    assert!(diff.as_str().unwrap().starts_with("--- \n+++ "), "{diff}");
    assert!(
        diff.as_str()
            .unwrap()
            .ends_with("@@ -31,1 +31,1 @@\n-line 30 of a long description of the account\n+another line")
    );
}

#[tokio::test]
async fn a_new_field_makes_a_new_schema_and_old_events_stay_readable() {
    let org = start().await;
    org.create("Account", json!({"Name": "before"})).await;
    let field = json!({"object": "Account", "field": {"name": "Later__c", "type": "date"}});
    org.running.admin("POST", "/fields", &field).unwrap();
    org.create("Account", json!({"Name": "after", "Later__c": "2026-02-03"})).await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Earliest).await;
    assert_eq!(events.event().await.get("Name"), "before");
    assert_eq!(events.event().await.get("Later__c"), 20_487 * 86_400_000_i64);
    let describe = org.ok("GET", "/sobjects/Account/describe", Json::Null).await;
    assert!(describe["fields"].as_array().unwrap().iter().any(|f| f["name"] == "Later__c"));
}

#[tokio::test]
async fn a_field_gets_another_type_and_is_removed_under_use() {
    let org = start().await;
    let fields = json!({"object": "Account", "field": {"name": "Later__c", "type": "string"}});
    org.running.admin("POST", "/fields", &fields).unwrap();
    let number = org.create("Account", json!({"Name": "a", "Later__c": "12.5"})).await;
    let text = org.create("Account", json!({"Name": "b", "Later__c": "twelve"})).await;
    let fields = json!({"object": "Account", "field": {"name": "Later__c", "type": "double", "scale": 1}});
    org.running.admin("POST", "/fields", &fields).unwrap();
    let later = |answer: Json| answer["records"][0]["Later__c"].clone();
    assert_eq!(later(org.query(&format!("SELECT Later__c FROM Account WHERE Id = '{number}'")).await), 12.5);
    assert_eq!(later(org.query(&format!("SELECT Later__c FROM Account WHERE Id = '{text}'")).await), Json::Null);
    org.create("Account", json!({"Name": "c", "Later__c": 7})).await;

    let field = json!({"object": "Account", "field": "Later__c"});
    org.running.admin("DELETE", "/fields", &field).unwrap();
    assert!(org.running.admin("DELETE", "/fields", &field).is_err(), "it is gone already");
    let standard = json!({"object": "Account", "field": "Name"});
    assert!(org.running.admin("DELETE", "/fields", &standard).is_err());
    let (_, code) = org.refused("PATCH", &format!("/sobjects/Account/{number}"), json!({"Later__c": 1})).await;
    assert_eq!(code, "INVALID_FIELD");
    assert_eq!(org.query("SELECT Later__c FROM Account").await[0]["errorCode"], "INVALID_FIELD");
    let describe = org.ok("GET", "/sobjects/Account/describe", Json::Null).await;
    assert!(!describe.to_string().contains("Later__c"));
    let record = org.ok("GET", &format!("/sobjects/Account/{number}"), Json::Null).await;
    assert!(!record.to_string().contains("ater__c"), "{record}");
    org.create("Account", json!({"Name": "d"})).await;
    let mut events = org.subscribe("/data/AccountChangeEvent", Start::Earliest).await;
    for (name, value) in [("a", json!("12.5")), ("b", json!("twelve")), ("c", json!(7.0))] {
        let event = events.event().await;
        assert_eq!((event.get("Name"), event.get("Later__c")), (json!(name), value));
    }
    assert_eq!(events.event().await.get("Name"), "d");
    let fields = json!({"object": "Account", "field": {"name": "Later__c", "type": "string"}});
    org.running.admin("POST", "/fields", &fields).unwrap();
    assert_eq!(later(org.query(&format!("SELECT Later__c FROM Account WHERE Id = '{number}'")).await), Json::Null);
}
