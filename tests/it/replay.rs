//! A range of the change log once more: into another database, and to a side.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::process::Stdio;
use std::time::Duration;

use secrecy::ExposeSecret;
use serde_json::{Value as Json, json};
use tidelock::postgres::Session;
use tidelock::sandbox::Seed;
use tokio::time::sleep;

use super::link::{Link, Setup, complaint, printed};

/// Both mapped tables of a database, whole but for Heroku Connect's bookkeeping. An empty boolean is false.
const ROWS: &str = "
    SELECT 'account ' || (to_jsonb(t) - '_hc_lastop' - '_hc_err' || jsonb_build_object('isdeleted', coalesce(isdeleted, false)))::text
    FROM salesforce.account t
    UNION ALL
    SELECT 'contact ' || (to_jsonb(t) - '_hc_lastop' - '_hc_err' || jsonb_build_object('isdeleted', coalesce(isdeleted, false)))::text
    FROM salesforce.contact t ORDER BY 1";

fn target(link: &Link, database: &str) -> String {
    link.server.endpoint().with_database(database).to_connection_string().expose_secret().to_owned()
}

async fn query(link: &Link, database: &str, sql: &str) -> Vec<String> {
    let session = Session::open(&link.server.endpoint().with_database(database)).await.unwrap();
    let rows = session.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    session.close().await.unwrap();
    rows
}

async fn is_equal(link: &Link, database: &str) {
    let (own, made) = (query(link, "postgres", ROWS).await, query(link, database, ROWS).await);
    assert!(!own.is_empty());
    for (own, made) in own.iter().zip(&made) {
        assert_eq!(own, made);
    }
    assert_eq!(own.len(), made.len());
}

/// What `tidelock replay` with these arguments and `--target` did.
fn rebuild(link: &Link, database: &str, arguments: &[&str]) -> Json {
    let target = target(link, database);
    link.json(&[&["replay", "--target", target.as_str()][..], arguments].concat())
}

fn counts(done: &Json) -> (u64, u64, u64) {
    let count = |name: &str| done["rebuilt"][name].as_u64().unwrap();
    (count("created"), count("updated"), count("deleted"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_made_from_the_log_alone_and_never_goes_back() {
    let seed = Seed { seed: 5, accounts: 20, contacts: 400, ..Seed::default() };
    let mut link = Link::new(Setup { seed, ..Setup::default() }).await;
    link.start().await;
    let id = link.create("Contact", json!({ "LastName": "one", "External_ID__c": "one", "Phone": "1" }));
    let gone = link.create("Contact", json!({ "LastName": "gone", "External_ID__c": "gone" }));
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Born', 'born', '2')").await;
    link.settle().await;
    let earlier = link.json(&["status"])["log_entries"].as_u64().unwrap().to_string();
    link.update("Contact", &id, json!({ "Phone": "over\tthere \\ 'x'" }));
    link.sql("UPDATE salesforce.contact SET title = 'Ms', phone = NULL WHERE external_id__c = 'born'").await;
    link.sql("DELETE FROM salesforce.contact WHERE external_id__c = 'gone'").await;
    link.settle().await;

    link.sql("CREATE DATABASE made").await;
    let said = rebuild(&link, "made", &["--from", "0", "--dry-run"]);
    assert!(!said["rebuilt"]["steps"].as_array().unwrap().is_empty(), "{said}");
    let would = counts(&said);
    assert_eq!(
        query(&link, "made", "SELECT nspname::text FROM pg_namespace WHERE nspname = 'salesforce'").await.len(),
        0
    );
    // Cut short as by a crash, it goes on where it was; the link is running all the time.
    let target_url = target(&link, "made");
    let mut cut = link.command();
    cut.args(["replay", "--from", "0", "--target", &target_url]).stdout(Stdio::null());
    let mut cut = cut.spawn().unwrap();
    sleep(Duration::from_millis(700)).await;
    cut.kill().unwrap();
    cut.wait().unwrap();
    // The server notices in its own time that the session has gone.
    let mut done = Json::Null;
    link.wait_until("the mirror is made", |link| {
        let output = link.tidelock(&["replay", "--from", "0", "--target", &target_url, "--output", "json"]);
        if output.status.success() {
            done = serde_json::from_str(&printed(&output)).unwrap();
        }
        output.status.success()
    })
    .await;
    assert!(counts(&done).0 <= would.0 && would.0 > 400, "{done} {said}");
    is_equal(&link, "made").await;
    // A row that is made there by hand gets a key of its own.
    let sql = "INSERT INTO salesforce.contact (lastname) VALUES ('x') RETURNING \
               (id > (SELECT max(id) FROM salesforce.contact))::text";
    assert_eq!(query(&link, "made", sql).await, ["true"]);
    query(&link, "made", "DELETE FROM salesforce.contact WHERE lastname = 'x' RETURNING lastname").await;

    // Once more, and an older range of it: everything is there already.
    assert_eq!(counts(&rebuild(&link, "made", &["--from", "0"])), (0, 0, 0));
    assert_eq!(counts(&rebuild(&link, "made", &["--from", "0", "--to", &earlier])), (0, 0, 0));
    is_equal(&link, "made").await;

    // What has changed since, and no more.
    link.update("Contact", &id, json!({ "Phone": "3" }));
    link.sql("DELETE FROM salesforce.contact WHERE external_id__c = 'born'").await;
    link.create("Contact", json!({ "LastName": "two", "External_ID__c": "two" }));
    link.settle().await;
    let done = rebuild(&link, "made", &["--from", &earlier]);
    // The barrier is the second update.
    assert_eq!(counts(&done), (1, 2, 1), "{done}");
    is_equal(&link, "made").await;

    // As of an earlier place of the log.
    link.sql("CREATE DATABASE past").await;
    rebuild(&link, "past", &["--from", "0", "--to", &earlier]);
    let phones = "SELECT concat(external_id__c, ' ', phone) FROM salesforce.contact WHERE external_id__c IN ('one', 'born', 'gone') \
                  ORDER BY 1";
    assert_eq!(query(&link, "past", phones).await, ["born 2", "gone ", "one 1"]);
    rebuild(&link, "past", &["--from", "0"]);
    is_equal(&link, "past").await;

    // A row that somebody has edited there is left to them, and told.
    query(&link, "made", "UPDATE salesforce.contact SET phone = 'mine' WHERE external_id__c = 'one' RETURNING phone")
        .await;
    link.update("Contact", &id, json!({ "Phone": "4" }));
    link.settle().await;
    let output = link.tidelock(&["replay", "--from", "0", "--target", &target_url, "--output", "json"]);
    assert_eq!(output.status.code(), Some(3), "{}", complaint(&output));
    let done: Json = serde_json::from_str(&printed(&output)).unwrap();
    assert_eq!(done["rebuilt"]["edited"].as_array().unwrap().len(), 1, "{done}");
    let phone = "SELECT phone FROM salesforce.contact WHERE external_id__c = 'one'";
    assert_eq!(query(&link, "made", phone).await, ["mine"]);
    assert!(link.record("Contact", "gone").is_none() && !gone.is_empty());
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_cannot_be_sent_is_refused() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    link.create("Contact", json!({ "LastName": "one", "External_ID__c": "one" }));
    link.settle().await;
    link.sql("CREATE DATABASE taken").await;
    for sql in [
        "CREATE SCHEMA salesforce",
        "CREATE TABLE salesforce.contact (id serial PRIMARY KEY, lastname text)",
        "INSERT INTO salesforce.contact (lastname) VALUES ('theirs')",
    ] {
        query(&link, "taken", sql).await;
    }
    let (own, taken) = (target(&link, "postgres"), target(&link, "taken"));
    for (arguments, why) in [
        (vec!["--from", "0", "--target", own.as_str()], "own database"),
        (vec!["--from", "0", "--target", taken.as_str()], "rows that were not written from this log"),
        (vec!["--from", "1000000"], "name one within"),
        (vec!["--from", "5", "--to", "4"], "name one within"),
        (vec!["--from", "0", "--side", "salesforce", "--target", taken.as_str()], "leave it out"),
        (vec!["--from", "0"], "belongs to another tidelock"),
    ] {
        let output = link.tidelock(&[vec!["replay"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{}", complaint(&output));
        assert!(complaint(&output).contains(why), "{}", complaint(&output));
    }
    assert_eq!(query(&link, "taken", "SELECT lastname FROM salesforce.contact").await, ["theirs"]);
}

/// What a side holds is skipped; what it lacks is sent by the way of every write, and the next run hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_side_is_sent_what_it_lacks_and_no_more() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    for name in ["one", "two"] {
        link.create("Contact", json!({ "LastName": name, "External_ID__c": name, "Phone": "0" }));
    }
    link.settle().await;
    // Each side is kept from taking a write, and the link ends meanwhile.
    link.sql("ALTER TABLE tidelock.replay RENAME TO away").await;
    link.faults(json!({ "error_503": 1.0 }));
    let id = link.record("Contact", "one").unwrap()["Id"].as_str().unwrap().to_owned();
    link.update("Contact", &id, json!({ "Phone": "from salesforce" }));
    link.sql("UPDATE salesforce.contact SET phone = 'from postgres' WHERE external_id__c = 'two'").await;
    link.wait_until("both edits are in the log", |link| {
        let changes =
            |field: &str| link.json_lines(&["log", "query", "--field", "Phone", "--kind", "change", "--side", field]);
        let has = |side: &str, value: &str| changes(side).iter().any(|entry| entry.to_string().contains(value));
        has("salesforce", "from salesforce") && has("postgres", "from postgres")
    })
    .await;
    link.kill();
    link.faults(json!({ "error_503": 0.0 }));
    link.sql("ALTER TABLE tidelock.away RENAME TO replay").await;

    for side in ["postgres", "salesforce"] {
        link.json(&["replay", "--from", "0", "--side", side, "--dry-run"]);
        let sent = link.json(&["replay", "--from", "0", "--side", side]);
        assert_eq!(sent["sent"], json!({ "written": 1, "refused": 0, "complete": true }), "{side}");
        let again = link.json(&["replay", "--from", "0", "--side", side]);
        assert_eq!(again["sent"]["refused"], json!(0), "{side}: {again}");
    }
    let phone = "SELECT phone FROM salesforce.contact WHERE external_id__c = 'one'";
    assert_eq!(link.value(phone).await.as_deref(), Some("from salesforce"));
    assert_eq!(link.record("Contact", "two").unwrap()["Phone"], json!("from postgres"));

    link.start().await;
    link.settle().await;
    link.terminate().await;
    for side in ["postgres", "salesforce"] {
        let said = link.json(&["replay", "--from", "0", "--side", side, "--dry-run"]);
        let needs = &said["needs"];
        assert_eq!(
            (&needs["creates"], &needs["updates"], &needs["deletes"]),
            (&json!(0), &json!(0), &json!(0)),
            "{said}"
        );
        let sent = link.json(&["replay", "--from", "0", "--side", side]);
        assert_eq!(sent["sent"]["written"], json!(0), "{side}");
    }
    link.start().await;
    link.settle().await;
    assert_eq!(link.conflicts(), Vec::<Json>::new());
    link.verify();
}
