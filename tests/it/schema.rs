//! Fields that are added, changed and removed in the org under a link that runs.
#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value as Json, json};
use tidelock::sandbox::OrgFile;

use super::link::{Link, Setup, printed};

/// A mapping of everything, and one with a list.
const EVERY_FIELD: &str = r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["*"]
exclude = ["Description", "ReportsToId"]
"#;

const LISTED: &str = r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["LastName", "Phone", "Code__c", "External_ID__c"]
"#;

const CODE: &str = r#"
[[objects]]
name = "Contact"
[[objects.fields]]
name = "Code__c"
length = 5
"#;

fn setup(mappings: &str, link: &str) -> Setup {
    let objects = OrgFile::from_toml(CODE).unwrap();
    Setup { objects, ..Setup::with_mappings(mappings) }.with_link(link)
}

/// Adds a field of contacts to the org, or changes one.
fn field(link: &Link, field: Json) {
    link.org.admin("POST", "/fields", &json!({ "object": "Contact", "field": field })).unwrap();
}

fn remove(link: &Link, field: &str) {
    link.org.admin("DELETE", "/fields", &json!({ "object": "Contact", "field": field })).unwrap();
}

fn contact(link: &Link, name: &str, fields: Json) -> String {
    let mut all = json!({ "LastName": name, "External_ID__c": name });
    all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    link.create("Contact", all)
}

async fn column(link: &Link, column: &str, name: &str) -> Option<String> {
    link.value(&format!("SELECT {column} FROM salesforce.contact WHERE external_id__c = '{name}'")).await
}

async fn column_type(link: &Link, column: &str) -> Option<String> {
    link.value(&format!(
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'salesforce.contact'::regclass \
         AND attname = '{column}' AND NOT attisdropped"
    ))
    .await
}

/// What the link says of a field.
fn said_of(link: &Link, field: &str) -> Option<Json> {
    let status = link.status()?;
    status["schema"]["differences"].as_array()?.iter().find(|d| d["field"] == field).cloned()
}

fn dead_letters(link: &Link) -> usize {
    link.json(&["dead-letters", "list"]).as_array().unwrap().len()
}

async fn arrives(link: &mut Link, name: &str, column: &str, value: &str) {
    let deadline = tokio::time::Instant::now() + super::link::PATIENCE;
    loop {
        let there = column_type(link, column).await.is_some();
        let found = if there { self::column(link, column, name).await } else { None };
        if found.as_deref() == Some(value) {
            return;
        }
        assert!(link.exited().is_none(), "{}", link.said_last());
        assert!(tokio::time::Instant::now() < deadline, "{name}.{column} is {found:?}; {:?}", link.status());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The plan as JSON, and its exit code.
fn plan(link: &Link) -> (Json, Option<i32>) {
    let output = link.tidelock(&["plan", "--output", "json"]);
    (serde_json::from_str(&printed(&output)).unwrap_or_default(), output.status.code())
}

/// By default the link goes on with what it knows, and says which values it does not take.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_told_and_taken_whole_when_it_has_a_column() {
    let mut link = Link::new(setup(EVERY_FIELD, "describe_seconds = 1")).await;
    let edited = contact(&link, "edited", json!({ "Phone": "1" }));
    contact(&link, "untouched", json!({}));
    link.start().await;
    link.settle().await;
    assert_eq!(plan(&link).1, Some(0), "{:#}", plan(&link).0);

    field(&link, json!({ "name": "Tier__c", "length": 20, "default": "None" }));
    link.update("Contact", &edited, json!({ "Tier__c": "Gold", "Phone": "2" }));
    link.wait_until("the field is told", |link| said_of(link, "Tier__c").is_some()).await;
    let said = said_of(&link, "Tier__c").unwrap();
    assert!(said["message"].as_str().unwrap().contains("none of its values are taken"), "{said}");
    assert!(link.get("/metrics").unwrap().1.contains("tidelock_schema_differences 1\n"));
    assert!(link.ok(&["status"]).contains("`tidelock plan` shows what is to be done"));
    assert!(link.said_last().contains("Contact.Tier__c is new (string)"), "{}", link.said_last());
    arrives(&mut link, "edited", "phone", "2").await;
    assert_eq!(column_type(&link, "tier__c").await, None, "nothing is done by itself");

    link.sql("ANALYZE salesforce.contact").await;
    let output = link.tidelock(&["plan"]);
    assert_eq!(output.status.code(), Some(3));
    let expected = "-- contact.Tier__c -> salesforce.contact.tier__c: Tier__c of Contact has no column yet: none of its values are \
                    taken until there is one, and then every record is read again\n\
                    --   cost: changes the catalogs only (ACCESS EXCLUSIVE lock for an instant); afterwards a link reads every \
                    record again at both sides (about 2 rows; an API call for each 2000 there)\n\
                    ALTER TABLE \"salesforce\".\"contact\" ADD COLUMN IF NOT EXISTS \"tier__c\" varchar(20);\n\n\
                    nothing was run; `tidelock init --apply` runs the statements above, each in a transaction of its own\n";
    assert_eq!(printed(&output), expected);
    assert_eq!(column_type(&link, "tier__c").await, None, "a plan changes nothing");

    // A restart does not ask for the column either.
    link.kill();
    link.start().await;
    assert!(link.ok(&["init", "--apply", "--dry-run"]).contains("ADD COLUMN IF NOT EXISTS \"tier__c\""));
    let applied = link.json(&["init", "--apply"]);
    assert_eq!(applied["altered"].as_array().unwrap().len(), 1, "{applied}");
    let again = link.json(&["init", "--apply"]);
    assert_eq!((&again["altered"], &again["steps"], &again["failed"]), (&json!([]), &json!([]), &json!([])));
    assert_eq!(plan(&link).1, Some(0));
    arrives(&mut link, "edited", "tier__c", "Gold").await;
    link.settle().await;
    link.sql("UPDATE salesforce.contact SET tier__c = 'Silver' WHERE external_id__c = 'untouched'").await;
    link.settle().await;
    assert_eq!(link.record("Contact", "untouched").unwrap()["Tier__c"], "Silver");
    assert_eq!(link.record("Contact", "edited").unwrap()["Tier__c"], "Gold");
    link.wait_until("nothing is left to tell", |link| said_of(link, "Tier__c").is_none()).await;
    assert_eq!(dead_letters(&link), 0);
    link.verify();
}

/// With `schema = "auto"` the link does it itself, and goes on all the while. An event with another schema is what tells it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_taken_by_itself_under_edits_on_both_sides() {
    let mut link = Link::new(setup(EVERY_FIELD, "schema = \"auto\"\ndescribe_seconds = 3600")).await;
    let ids: Vec<String> = (0..20).map(|n| contact(&link, &format!("c{n}"), json!({ "Phone": "0" }))).collect();
    link.start().await;
    link.settle().await;
    for (n, id) in ids.iter().enumerate() {
        if n == 8 {
            field(&link, json!({ "name": "Tier__c", "length": 20 }));
        }
        if n == 14 {
            field(&link, json!({ "name": "Vip__c", "type": "boolean" }));
        }
        let mut fields = json!({ "Phone": format!("org {n}") });
        if n >= 8 {
            fields["Tier__c"] = json!(format!("tier {n}"));
        }
        if n >= 14 {
            fields["Vip__c"] = json!(true);
        }
        link.update("Contact", id, fields);
        link.sql(&format!("UPDATE salesforce.contact SET title = 'row {n}' WHERE external_id__c = 'c{n}'")).await;
    }
    arrives(&mut link, "c8", "tier__c", "tier 8").await;
    arrives(&mut link, "c19", "vip__c", "t").await;
    link.settle().await;
    for n in 0..20 {
        let record = link.record("Contact", &format!("c{n}")).unwrap();
        assert_eq!(record["Title"], format!("row {n}"), "c{n}");
        assert_eq!(record["Phone"], format!("org {n}"), "c{n}");
        assert_eq!(record["Vip__c"], json!(n >= 14), "c{n}");
        let tier = if n >= 8 { json!(format!("tier {n}")) } else { Json::Null };
        assert_eq!(record["Tier__c"], tier, "c{n}");
    }
    link.sql("UPDATE salesforce.contact SET tier__c = 'from here' WHERE external_id__c = 'c1'").await;
    link.settle().await;
    assert_eq!(link.record("Contact", "c1").unwrap()["Tier__c"], "from here");
    assert_eq!(link.exited(), None);
    assert_eq!(plan(&link).1, Some(0), "{:#}", plan(&link).0);
    assert_eq!(dead_letters(&link), 0);
    link.verify();
}

/// A value that the column has no room for waits as a dead letter, and is written when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_too_long_waits_for_a_wider_column() {
    let mut link = Link::new(setup(LISTED, "describe_seconds = 1")).await;
    let id = contact(&link, "long", json!({ "Code__c": "abc" }));
    link.start().await;
    link.settle().await;
    field(&link, json!({ "name": "Code__c", "length": 12 }));
    link.update("Contact", &id, json!({ "Code__c": "abcdefghijkl" }));
    link.wait_until("it is a dead letter", |link| dead_letters(link) == 1).await;
    link.wait_until("the field is told", |link| said_of(link, "Code__c").is_some()).await;
    assert_eq!(column(&link, "code__c", "long").await.as_deref(), Some("abc"));
    let (planned, code) = plan(&link);
    assert_eq!(code, Some(3));
    let difference = &planned["differences"][0];
    assert_eq!((&difference["change"], &difference["remedy"]["effect"]), (&json!("length"), &json!("metadata")));
    assert_eq!(
        difference["remedy"]["sql"],
        "ALTER TABLE \"salesforce\".\"contact\" ALTER COLUMN \"code__c\" TYPE varchar(12)"
    );
    assert_eq!(link.json(&["init"])["altered"], json!([]), "without --apply, columns stay as they are");
    assert_eq!(column_type(&link, "code__c").await.as_deref(), Some("character varying(5)"));
    link.ok(&["init", "--apply"]);
    arrives(&mut link, "long", "code__c", "abcdefghijkl").await;
    link.settle().await;
    assert_eq!(dead_letters(&link), 0);
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_widened_by_themselves_and_never_narrowed() {
    let mut link = Link::new(setup(LISTED, "schema = \"auto\"\ndescribe_seconds = 1")).await;
    let id = contact(&link, "long", json!({ "Code__c": "abc" }));
    link.start().await;
    link.settle().await;
    field(&link, json!({ "name": "Code__c", "length": 12 }));
    link.update("Contact", &id, json!({ "Code__c": "abcdefghijkl" }));
    arrives(&mut link, "long", "code__c", "abcdefghijkl").await;
    assert_eq!(column_type(&link, "code__c").await.as_deref(), Some("character varying(12)"));
    link.settle().await;
    assert_eq!(dead_letters(&link), 0);

    field(&link, json!({ "name": "Code__c", "length": 6 }));
    link.wait_until("it is noticed", |link| link.said_last().contains("length 6 instead of 12")).await;
    link.update("Contact", &id, json!({ "Code__c": "short" }));
    link.settle().await;
    assert_eq!(column_type(&link, "code__c").await.as_deref(), Some("character varying(12)"));

    // What the org has no room for waits likewise, until it has.
    link.sql("UPDATE salesforce.contact SET code__c = 'longer than 6'::varchar(12) WHERE external_id__c = 'long'")
        .await;
    link.wait_until("it is a dead letter", |link| dead_letters(link) == 1).await;
    field(&link, json!({ "name": "Code__c", "length": 12 }));
    link.settle().await;
    assert_eq!(link.record("Contact", "long").unwrap()["Code__c"], "longer than");
    assert_eq!(dead_letters(&link), 0);
    link.verify();
}

/// A field that is gone stops nothing: its column keeps what it holds, and it is taken up again when it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_field_is_left_out_and_comes_back() {
    let mut link = Link::new(setup(LISTED, "schema = \"auto\"\ndescribe_seconds = 1")).await;
    let id = contact(&link, "kept", json!({ "Code__c": "abc", "Phone": "1" }));
    link.start().await;
    link.settle().await;
    remove(&link, "Code__c");
    link.sql("UPDATE salesforce.contact SET code__c = 'gone', phone = '2' WHERE external_id__c = 'kept'").await;
    link.update("Contact", &id, json!({ "FirstName": "Ann" }));
    link.wait_until("it is told", |link| said_of(link, "Code__c").is_some()).await;
    link.wait_until("the rest of the row arrives", |link| link.record("Contact", "kept").unwrap()["Phone"] == "2")
        .await;
    link.arrive().await;
    assert_eq!(dead_letters(&link), 0);
    assert_eq!(column(&link, "code__c", "kept").await.as_deref(), Some("gone"), "a column is never taken away");

    // It is no reason not to start, either.
    link.kill();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET phone = '3' WHERE external_id__c = 'kept'").await;
    link.wait_until("rows arrive", |link| link.record("Contact", "kept").unwrap()["Phone"] == "3").await;
    link.wait_until("it is still told", |link| said_of(link, "Code__c").is_some()).await;
    let (planned, code) = plan(&link);
    assert_eq!(code, Some(3), "{planned}");
    assert_eq!(planned["problems"][0]["subject"], "contact.Code__c");
    assert!(link.ok(&["check"]).contains("has no field Code__c any more"));

    field(&link, json!({ "name": "Code__c", "length": 5 }));
    link.update("Contact", &id, json!({ "Code__c": "back" }));
    arrives(&mut link, "kept", "code__c", "back").await;
    link.settle().await;
    assert_eq!(plan(&link).1, Some(0));
    link.verify();
}

/// Values of another kind are for a person to make room for; until then those that do not fit wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_retyped_field_waits_for_a_person() {
    let mut link = Link::new(setup(EVERY_FIELD, "schema = \"auto\"\ndescribe_seconds = 1")).await;
    field(&link, json!({ "name": "Score__c", "type": "double", "precision": 10, "scale": 2 }));
    let id = contact(&link, "one", json!({ "Score__c": 1.5 }));
    link.ok(&["init"]);
    link.start().await;
    link.settle().await;
    assert_eq!(column(&link, "score__c", "one").await.as_deref(), Some("1.5"));
    field(&link, json!({ "name": "Score__c", "type": "string", "length": 30 }));
    link.update("Contact", &id, json!({ "Score__c": "very high" }));
    link.wait_until("it is told", |link| said_of(link, "Score__c").is_some()).await;
    link.wait_until("it is a dead letter", |link| dead_letters(link) == 1).await;
    assert_eq!(column_type(&link, "score__c").await.as_deref(), Some("double precision"));
    let (planned, code) = plan(&link);
    assert_eq!(code, Some(3));
    assert_eq!(planned["differences"][0]["change"], "type");
    let applied = link.json(&["init", "--apply"]);
    assert_eq!(applied["altered"], json!([]), "it is not done by itself");
    // Other fields and records go on.
    contact(&link, "two", json!({ "Phone": "2" }));
    link.arrive().await;
    assert_eq!(column(&link, "phone", "two").await.as_deref(), Some("2"));
    link.sql("ALTER TABLE salesforce.contact ALTER COLUMN score__c TYPE varchar(30) USING score__c::text").await;
    arrives(&mut link, "one", "score__c", "very high").await;
    link.settle().await;
    assert_eq!(dead_letters(&link), 0);
    assert_eq!(plan(&link).1, Some(0));
    link.verify();
}

/// What nobody has mapped is noticed too, and a mapping that does not fit any more is said not to, while it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_longer_fits_is_told_while_the_link_goes_on() {
    let mut link = Link::new(setup(LISTED, "describe_seconds = 1")).await;
    contact(&link, "one", json!({ "Phone": "1" }));
    link.start().await;
    link.settle().await;
    field(&link, json!({ "name": "Other__c", "length": 5 }));
    field(&link, json!({ "name": "External_ID__c", "external_id": false, "unique": false }));
    link.wait_until("it is told", |link| {
        let told = link.status().and_then(|s| s["schema"]["problem"].as_str().map(str::to_owned));
        told.is_some_and(|told| told.contains("contact.external_id") && told.contains("goes on with those in force"))
    })
    .await;
    assert!(link.said_last().contains("Contact.Other__c is new"), "{}", link.said_last());
    assert!(link.get("/metrics").unwrap().1.contains("tidelock_schema_problem 1\n"));
    assert_eq!(plan(&link).1, Some(3));
    link.sql("UPDATE salesforce.contact SET phone = '2' WHERE external_id__c = 'one'").await;
    link.wait_until("rows arrive", |link| link.record("Contact", "one").unwrap()["Phone"] == "2").await;
    field(&link, json!({ "name": "External_ID__c", "external_id": true, "unique": true }));
    link.wait_until("it fits again", |link| link.status().is_some_and(|s| s["schema"]["problem"].is_null())).await;
    link.settle().await;
    link.verify();
}
