//! The real binary, killed again and again while people edit both sides, the database crashes and the org hangs up.
//!
//! The editors keep their own ledger of what each of them saw and wrote: in PostgreSQL in the edit's own transaction, in the
//! org from the commit's own answer. From that ledger, and not from the log's word, every edit is accounted for.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelock::clock::{self, Micros};
use tidelock::demo::server::ServerSettings;
use tidelock::postgres::Session;
use tidelock::postgres::endpoint::Endpoint;
use tidelock::sandbox::Running;
use tokio::time::{Instant, sleep};

use super::link::{Dice, Link, Setup};

const MAPPINGS: &str = r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
policy = "last_write_wins"
fields = [
  "LastName",
  "Phone",
  { name = "Title", policy = "salesforce_wins" },
  { name = "MobilePhone", policy = "postgres_wins" },
  { name = "Department", policy = "review" },
  "External_ID__c",
]
"#;

const FIELDS: [&str; 4] = ["Phone", "Title", "MobilePhone", "Department"];
const CONTACTS: usize = 10;
/// Contacts that are also deleted, and in the org undeleted. No field of theirs waits for a person.
const MORTAL: usize = 6;
const MORTAL_FIELDS: usize = 3;
/// The folder of the editors in PostgreSQL: what they saw and wrote or deleted, and every value that a column ever had.
const LEDGER: &str = "
    CREATE SCHEMA editors;
    CREATE TABLE editors.edit (contact text, field text, saw text, wrote text PRIMARY KEY);
    CREATE TABLE editors.deletion (contact text, at timestamptz DEFAULT clock_timestamp(), saw jsonb);
    CREATE TABLE editors.held (n bigserial, id int, field text, value text);
    CREATE FUNCTION editors.hold() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        field text;
        value text;
    BEGIN
        FOREACH field IN ARRAY ARRAY['phone', 'title', 'mobilephone', 'department'] LOOP
            value := to_jsonb(NEW) ->> field;
            IF value IS DISTINCT FROM to_jsonb(OLD) ->> field THEN
                INSERT INTO editors.held (id, field, value) VALUES (NEW.id, field, value);
            END IF;
        END LOOP;
        RETURN NULL;
    END $$;
    CREATE TRIGGER held AFTER UPDATE ON salesforce.contact FOR EACH ROW EXECUTE FUNCTION editors.hold();
    ALTER TABLE salesforce.contact ENABLE ALWAYS TRIGGER held;";

/// One edit: whose record and field, what its author saw and what they wrote.
#[derive(Debug, Clone)]
struct Edit {
    contact: String,
    field: String,
    saw: Option<String>,
    wrote: String,
}

/// One deletion: whose record, and the values that its author saw, by field.
#[derive(Debug, Clone)]
struct Deletion {
    contact: String,
    at: Micros,
    saw: Json,
}

/// Everything that the editors did.
#[derive(Debug, Default)]
struct Done {
    edits: Vec<Edit>,
    deletions: Vec<Deletion>,
    /// Whose record was taken out of the org's recycle bin, and when.
    undeletions: Vec<(String, Micros)>,
}

/// How often which was done by [`work_and_crash`].
#[derive(Debug, Default)]
struct Crashes {
    kills: u64,
    database: u64,
    hangups: u64,
    born: u64,
}

/// What a test's editors share.
struct Editors {
    /// The org's last known id of each contact.
    ids: Mutex<BTreeMap<String, String>>,
    /// What the org has committed.
    org: Mutex<Done>,
    stop: tokio_util::sync::CancellationToken,
}

/// The contact with this number: those that are never deleted come first.
fn name(n: usize) -> String {
    if n < CONTACTS { format!("C-{n:03}") } else { format!("M-{:03}", n - CONTACTS) }
}

/// A contact, and a field of it that may be edited.
fn pick(dice: &mut Dice) -> (String, &'static str) {
    let n = dice.below((CONTACTS + MORTAL) as u64) as usize;
    let fields = if n < CONTACTS { FIELDS.len() } else { MORTAL_FIELDS };
    (name(n), FIELDS[dice.below(fields as u64) as usize])
}

fn pick_mortal(dice: &mut Dice) -> String {
    name(CONTACTS + dice.below(MORTAL as u64) as usize)
}

/// Edits in PostgreSQL until stopped. Edits whose commit is not answered are in the ledger there, or never were.
async fn edit_postgres(endpoint: Endpoint, editors: Arc<Editors>, mut dice: Dice, letter: char) -> u64 {
    let (mut n, mut born) = (0_u64, 0_u64);
    while !editors.stop.is_cancelled() {
        let Ok(session) = Session::open(&endpoint).await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while !editors.stop.is_cancelled() {
            n += 1;
            let done = if dice.chance(4) {
                born += 1;
                let key = format!("born-{letter}-{born}");
                // The name may be taken by a commit that was not answered: then it is there, once.
                let sql = format!(
                    "INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Born {letter}', '{key}') ON CONFLICT DO NOTHING"
                );
                session.batch_execute(&sql).await
            } else if dice.chance(3) {
                let contact = pick_mortal(&mut dice);
                session
                    .batch_execute(&format!(
                        "WITH gone AS (DELETE FROM salesforce.contact WHERE external_id__c = '{contact}' \
                         RETURNING phone, title, mobilephone) \
                         INSERT INTO editors.deletion (contact, saw) SELECT '{contact}', \
                         jsonb_build_object('Phone', phone, 'Title', title, 'MobilePhone', mobilephone) FROM gone"
                    ))
                    .await
            } else {
                let (contact, field) = pick(&mut dice);
                let column = field.to_lowercase();
                let wrote = format!("{letter}{n}");
                session
                    .batch_execute(&format!(
                        "BEGIN; \
                         INSERT INTO editors.edit SELECT external_id__c, '{field}', {column}, '{wrote}' FROM \
                         (SELECT external_id__c, {column} FROM salesforce.contact WHERE external_id__c = '{contact}' FOR UPDATE) c; \
                         UPDATE salesforce.contact SET {column} = '{wrote}' WHERE external_id__c = '{contact}'; \
                         COMMIT"
                    ))
                    .await
            };
            if done.is_err() {
                break;
            }
            sleep(Duration::from_millis(10 + dice.below(60))).await;
        }
    }
    born
}

/// Commits one operation; `None` where the org did not let it.
fn commit(org: &Running, operation: Json) -> Option<Json> {
    let body = json!({ "user": "Bob Seller", "operations": [operation] });
    org.admin("POST", "/commit", &body).ok().map(|done| done["results"][0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_edit_is_lost_by_crashes() {
    survive(Setup::with_mappings(MAPPINGS), "no_edit_is_lost_by_crashes", 20).await;
}

/// The same without logical replication.
#[tokio::test(flavor = "multi_thread")]
async fn no_edit_is_lost_by_crashes_where_triggers_capture() {
    let setup = Setup {
        postgres: "capture = \"trigger\"".into(),
        server: ServerSettings::default().with("wal_level", "replica"),
        ..Setup::with_mappings(MAPPINGS)
    };
    survive(setup, "no_edit_is_lost_by_crashes_where_triggers_capture", 8).await;
}

async fn survive(setup: Setup, test: &str, crashes: u64) {
    let mut dice = Dice::new(test);
    let crashes: u64 = std::env::var("TIDELOCK_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(crashes).max(2);
    let mut link = Link::new(setup).await;
    let ids: BTreeMap<String, String> = (0..CONTACTS + MORTAL)
        .map(|n| (name(n), link.create("Contact", json!({ "LastName": name(n), "External_ID__c": name(n) }))))
        .collect();
    link.start().await;
    link.settle().await;
    link.sql(LEDGER).await;
    link.faults(json!({
        "event_latency_ms": 60, "duplicate_events": 0.2, "apply_then_drop_probability": 0.05, "lock_rows": 0.03, "error_503": 0.03
    }));

    let editors = Arc::new(Editors {
        ids: Mutex::new(ids),
        org: Mutex::default(),
        stop: tokio_util::sync::CancellationToken::new(),
    });
    let mut at_work = tokio::task::JoinSet::new();
    for letter in ['p', 'q'] {
        at_work.spawn(edit_postgres(
            link.server.endpoint(),
            Arc::clone(&editors),
            Dice::of(dice.below(u64::MAX)),
            letter,
        ));
    }
    let org_dice = Dice::of(dice.below(u64::MAX));
    let crashed = work_and_crash(&mut link, &editors, org_dice, &mut dice, crashes).await;
    let born_in_postgres: u64 = at_work.join_all().await.into_iter().sum();
    assert!(crashed.kills >= crashes && crashed.database > 0 && crashed.hangups > 0, "{crashed:?}");

    link.faults(json!({ "apply_then_drop_probability": 0.0, "lock_rows": 0.0, "error_503": 0.0 }));
    decide_and_settle(&mut link).await;
    let done = all_done(&link, &editors).await;
    eprintln!(
        "{} edits, {} deletions, {} undeletions, {crashed:?}, {} conflicts",
        done.edits.len(),
        done.deletions.len(),
        done.undeletions.len(),
        link.conflicts().len()
    );
    assert!(!done.deletions.is_empty() && !done.undeletions.is_empty(), "{done:?}");
    account_for_edits(&link, &done);
    account_for_deletions(&link, &done);
    captured_once(&link, &done.edits);
    nothing_reappears(&link).await;
    born_once(&link, born_in_postgres + crashed.born).await;
    link.verify();
    assert_eq!(link.terminate().await.code(), Some(0));
    link.verify();
}

/// Edits the org while the process is killed, the database crashes and the org hangs up.
async fn work_and_crash(
    link: &mut Link,
    editors: &Editors,
    mut org_dice: Dice,
    dice: &mut Dice,
    crashes: u64,
) -> Crashes {
    let mut done = Crashes::default();
    let mut n = 0_u64;
    while done.kills < crashes {
        let until = Instant::now() + Duration::from_millis(100 + dice.below(1_600));
        while Instant::now() < until {
            n += 1;
            if org_dice.chance(4) {
                done.born += 1;
                let fields = json!({ "LastName": "Born s", "External_ID__c": format!("born-s-{}", done.born) });
                commit(&link.org, json!({ "op": "create", "object": "Contact", "fields": fields }));
            } else {
                edit_org_once(&link.org, editors, &mut org_dice, n);
            }
            sleep(Duration::from_millis(5 + org_dice.below(40))).await;
        }
        if let Some(status) = link.exited() {
            panic!("it ended by itself, before kill {}: {status}: {}", done.kills + 1, link.said_last());
        }
        link.kill();
        done.kills += 1;
        // Each at least once, whatever the dice say.
        if done.kills == 1 || dice.chance(30) {
            link.server.stop_immediate().await.unwrap();
            done.database += 1;
            if dice.chance(50) {
                link.spawn();
                for _ in 0..5 {
                    n += 1;
                    edit_org_once(&link.org, editors, &mut org_dice, n);
                    sleep(Duration::from_millis(40)).await;
                }
                link.server.start_again().await.unwrap();
                continue;
            }
            link.server.start_again().await.unwrap();
        }
        if done.kills == 2 || dice.chance(30) {
            let what = if dice.chance(50) { "/drop-streams" } else { "/expire-tokens" };
            link.org.admin("POST", what, &Json::Null).unwrap();
            done.hangups += 1;
        }
        link.spawn();
        if dice.chance(30) {
            sleep(Duration::from_millis(dice.below(800))).await;
            link.org.admin("POST", "/drop-streams", &Json::Null).unwrap();
            done.hangups += 1;
        }
    }
    editors.stop.cancel();
    done
}

/// Edits a field, deletes a record, or takes one out of the recycle bin.
fn edit_org_once(org: &Running, editors: &Editors, dice: &mut Dice, n: u64) {
    // A record that was written again has a new id.
    let now = || clock::system().now();
    let id = |contact: &str| editors.ids.lock().unwrap()[contact].clone();
    let learn_ids = || {
        let dump = org.admin("GET", "/dump/Contact", &Json::Null).unwrap();
        let mut ids = editors.ids.lock().unwrap();
        for record in dump["records"].as_array().unwrap() {
            let (Some(contact), Some(id)) = (record["External_ID__c"].as_str(), record["Id"].as_str()) else {
                continue;
            };
            ids.entry(contact.to_owned()).and_modify(|known| id.clone_into(known));
        }
    };
    if dice.chance(3) {
        learn_ids();
        let contact = pick_mortal(dice);
        let operation = json!({ "op": "delete", "object": "Contact", "id": id(&contact) });
        let Some(done) = commit(org, operation) else { return };
        editors.org.lock().unwrap().deletions.push(Deletion { contact, at: now(), saw: done["before"].clone() });
    } else if dice.chance(4) {
        learn_ids();
        let contact = pick_mortal(dice);
        // Before it is done: a delete that follows it must not seem to come first.
        let at = now();
        if commit(org, json!({ "op": "undelete", "object": "Contact", "id": id(&contact) })).is_some() {
            editors.org.lock().unwrap().undeletions.push((contact, at));
        }
    } else {
        let (contact, field) = pick(dice);
        if !contact.starts_with("C-") {
            learn_ids();
        }
        let wrote = format!("s{n}");
        let operation = json!({ "op": "update", "object": "Contact", "id": id(&contact), "fields": { field: wrote } });
        let Some(done) = commit(org, operation) else { return };
        let saw = done["before"][field].as_str().map(str::to_owned);
        editors.org.lock().unwrap().edits.push(Edit { contact, field: field.into(), saw, wrote });
    }
}

/// Decides what waits for a person until nothing does and both sides are equal.
async fn decide_and_settle(link: &mut Link) {
    let mut decided = 0;
    loop {
        link.arrive().await;
        let waiting = link.json(&["conflicts", "list"]);
        let waiting = waiting.as_array().unwrap();
        if waiting.is_empty() {
            link.settle().await;
            return;
        }
        for conflict in waiting {
            let side = if decided % 2 == 0 { "postgres" } else { "salesforce" };
            link.ok(&["conflicts", "resolve", &conflict["conflict"].to_string(), "--take", side, "--by", "dana"]);
            decided += 1;
        }
    }
}

async fn all_done(link: &Link, editors: &Editors) -> Done {
    let mut done = std::mem::take(&mut *editors.org.lock().unwrap());
    for row in link.server.query("SELECT contact, field, saw, wrote FROM editors.edit").await.unwrap() {
        let [contact, field, saw, wrote] = <[Option<String>; 4]>::try_from(row).unwrap();
        done.edits.push(Edit { contact: contact.unwrap(), field: field.unwrap(), saw, wrote: wrote.unwrap() });
    }
    let deletions = "SELECT contact, (extract(epoch FROM at) * 1000000)::bigint, saw FROM editors.deletion";
    for row in link.server.query(deletions).await.unwrap() {
        let [contact, at, saw] = <[Option<String>; 3]>::try_from(row).unwrap().map(Option::unwrap);
        let saw = serde_json::from_str(&saw).unwrap();
        done.deletions.push(Deletion { contact, at: at.parse().unwrap(), saw });
    }
    done
}

/// Every edit's value is current, or somebody who saw it has overwritten it or deleted its record, or it is the recorded loser
/// of a conflict.
fn account_for_edits(link: &Link, done: &Done) {
    let edits = &done.edits;
    let mut seen: BTreeSet<(&str, &str, &str)> =
        edits.iter().filter_map(|e| Some((e.contact.as_str(), e.field.as_str(), e.saw.as_deref()?))).collect();
    for deletion in &done.deletions {
        let saw = FIELDS.iter().filter_map(|field| Some((*field, deletion.saw[field].as_str()?)));
        seen.extend(saw.map(|(field, value)| (deletion.contact.as_str(), field, value)));
    }
    let lost: BTreeSet<String> =
        link.conflicts().iter().map(|c| c["lost"].as_str().unwrap_or_default().to_owned()).collect();
    let records = link.records("Contact");
    let missing: Vec<&Edit> = edits
        .iter()
        .filter(|e| {
            let record = records.iter().find(|r| r["External_ID__c"] == e.contact.as_str());
            assert!(record.is_some() || !e.contact.starts_with("C-"), "{} is gone, and nobody deleted it", e.contact);
            record.is_none_or(|record| record[&e.field] != e.wrote.as_str())
                && !seen.contains(&(e.contact.as_str(), e.field.as_str(), e.wrote.as_str()))
                && !lost.contains(&e.wrote)
        })
        .collect();
    for edit in missing.iter().take(3) {
        eprintln!("{edit:?}");
        tell_history(link, &edit.contact);
    }
    assert!(missing.is_empty(), "{} of {} edits are lost in silence: {missing:#?}", missing.len(), edits.len());
}

/// The numbers that the log has given to a contact, and what it says about them.
fn numbers_of(link: &Link, contact: &str) -> BTreeSet<String> {
    let query = ["log", "query", "--kind", "change", "--field", "External_ID__c", "--limit", "1000000"];
    let named = |entry: &Json| {
        entry["fields"].as_array().into_iter().flatten().any(|f| f["field"] == "External_ID__c" && f["to"] == contact)
    };
    link.json_lines(&query).iter().filter(|entry| named(entry)).map(|entry| entry["record"].to_string()).collect()
}

fn tell_history(link: &Link, contact: &str) {
    for number in numbers_of(link, contact) {
        eprintln!("{contact}: {}", link.ok(&["log", "history", &format!("#{number}")]));
    }
}

/// A record that was deleted is gone, or was taken out of the recycle bin later, or its deletion is the recorded loser of a
/// conflict. And one that is gone was deleted after it was last taken out, or a conflict on record says so.
fn account_for_deletions(link: &Link, done: &Done) {
    let alive: BTreeSet<String> =
        link.records("Contact").iter().filter_map(|r| r["External_ID__c"].as_str().map(str::to_owned)).collect();
    let conflicts = link.conflicts();
    for contact in (CONTACTS..CONTACTS + MORTAL).map(name) {
        let deleted = done.deletions.iter().filter(|d| d.contact == contact).map(|d| d.at).max();
        let undeleted = done.undeletions.iter().filter(|(c, _)| *c == contact).map(|(_, at)| *at).max();
        let wanted = if alive.contains(&contact) { "deleted" } else { "kept" };
        let explained = if alive.contains(&contact) { deleted <= undeleted } else { deleted > undeleted };
        if explained {
            continue;
        }
        let numbers = numbers_of(link, &contact);
        let on_record = conflicts
            .iter()
            .any(|c| c["field"] == "(record)" && c["lost"] == wanted && numbers.contains(&c["record"].to_string()));
        if !on_record {
            tell_history(link, &contact);
            panic!(
                "nothing on record says why {contact} is not {wanted}: deleted {deleted:?}, undeleted {undeleted:?}"
            );
        }
    }
}

/// The log holds every edit as one change, and no change of a user's that nobody made. (A record that is undeleted tells its
/// values again.)
fn captured_once(link: &Link, edits: &[Edit]) {
    let mut captured: BTreeMap<String, u64> = BTreeMap::new();
    let query = ["log", "query", "--kind", "change", "--mapping", "contact", "--limit", "1000000"];
    for change in link.json_lines(&query).iter().filter(|change| change["what"] == "update") {
        for field in change["fields"].as_array().into_iter().flatten() {
            let is_edited = field["field"].as_str().is_some_and(|f| FIELDS.contains(&f));
            if let (true, Some(value)) = (is_edited, field["to"].as_str()) {
                *captured.entry(value.to_owned()).or_default() += 1;
            }
        }
    }
    let made: BTreeSet<&str> = edits.iter().map(|e| e.wrote.as_str()).collect();
    let twice: Vec<_> = captured.iter().filter(|(value, n)| **n > 1 || !made.contains(value.as_str())).collect();
    assert!(twice.is_empty(), "captured more than once, or made by nobody: {twice:?}");
    let never: Vec<_> = made.iter().filter(|value| !captured.contains_key(**value)).collect();
    assert!(never.is_empty(), "never captured: {never:?}");
}

/// No column ever got a value back that it had before.
async fn nothing_reappears(link: &Link) {
    let again = "SELECT id, field, value, count(*) FROM editors.held GROUP BY 1, 2, 3 HAVING count(*) > 1";
    let again = link.server.query(again).await.unwrap();
    assert!(again.is_empty(), "values came back: {again:?}");
}

/// Records that were born on either side are on both, once.
async fn born_once(link: &Link, tried: u64) {
    let mut names: Vec<String> =
        link.records("Contact").iter().map(|r| r["External_ID__c"].as_str().unwrap_or("none").to_owned()).collect();
    let (all, born) = (names.len(), names.iter().filter(|n| n.starts_with("born-")).count() as u64);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), all, "the org has a record twice");
    let mortal = names.iter().filter(|n| n.starts_with("M-")).count();
    assert!(mortal <= MORTAL);
    assert_eq!(all as u64, born + (CONTACTS + mortal) as u64, "the org has records that nobody made: {names:?}");
    assert!(born <= tried, "{born} of {tried}");
    let counted = "SELECT count(*) FROM salesforce.contact WHERE external_id__c LIKE 'born-%'";
    assert_eq!(link.value(counted).await, Some(born.to_string()));
}
