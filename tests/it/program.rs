//! Every command of the real binary, against both sides.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelock::change::{Notice, Side};
use tidelock::demo::server::ServerSettings;
use tidelock::log::{RocksLog, RocksOptions};
use tidelock::sandbox::{OrgFile, Seed};
use tokio::time::sleep;

use super::link::{Link, MAPPINGS, PATIENCE, Setup, complaint, hangup, is_quiet, printed};

#[tokio::test(flavor = "multi_thread")]
async fn init_writes_a_configuration_then_the_mirror_and_can_be_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidelock.toml");
    let first = Command::new(env!("CARGO_BIN_EXE_tidelock")).arg("--config").arg(&path).arg("init").output().unwrap();
    assert!(first.status.success(), "{}", complaint(&first));
    let example = std::fs::read_to_string(&path).unwrap();
    assert!(example.contains("[[mapping]]") && printed(&first).contains("tidelock init"));

    let link = Link::new(Setup { initialise: false, ..Setup::default() }).await;
    let objects = "SELECT (SELECT count(*) FROM pg_class WHERE relname IN ('contact', 'account')) || ' ' || \
                   (SELECT count(*) FROM pg_publication) || ' ' || (SELECT count(*) FROM pg_replication_slots)";
    let planned = link.ok(&["init", "--dry-run"]);
    assert!(planned.contains("CREATE TABLE") && planned.contains("nothing was run"), "{planned}");
    assert_eq!(link.value(objects).await.as_deref(), Some("0 0 0"), "a dry run does nothing");
    let as_json = link.json(&["init", "--dry-run"]);
    assert_eq!(as_json["applied"], false);
    assert!(!as_json["steps"].as_array().unwrap().is_empty());

    link.ok(&["init"]);
    assert_eq!(link.value(objects).await.as_deref(), Some("2 1 1"));
    let schema = "SELECT string_agg(table_name || '.' || column_name || ' ' || data_type, ',' ORDER BY 1) FROM \
                  (SELECT * FROM information_schema.columns WHERE table_schema IN ('salesforce', 'tidelock') ORDER BY 1, 2, 3, 4) c";
    let made = link.value(schema).await;
    link.sql("INSERT INTO salesforce.account (name, external_id__c) VALUES ('Kept', 'kept')").await;
    let again = link.json(&["init"]);
    assert_eq!(again["steps"], json!([]), "nothing is left to do");
    assert_eq!(link.value(schema).await, made);
    assert_eq!(link.value("SELECT name FROM salesforce.account").await.as_deref(), Some("Kept"));
    assert!(link.ok(&["init", "--dry-run"]).contains("nothing to do"));
    // A slot alone that is missing is no "has everything".
    link.sql("SELECT pg_drop_replication_slot('tidelock_test')").await;
    let planned = link.ok(&["init", "--dry-run"]);
    assert!(planned.contains("slot tidelock_test is made") && !planned.contains("nothing to do"), "{planned}");
    assert_eq!(link.json(&["init", "--dry-run"])["slot_was_missing"], true);
    assert_eq!(link.value(objects).await.as_deref(), Some("2 1 0"), "a dry run does nothing");
    // What was dropped is made again, and what is there stays.
    link.sql("DROP PUBLICATION tidelock_test").await;
    link.ok(&["init"]);
    assert_eq!(link.value(objects).await.as_deref(), Some("2 1 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_wrong_and_what_to_do() {
    let link = Link::new(Setup { initialise: false, ..Setup::default() }).await;
    let before = link.json(&["check"]);
    assert!(before.as_array().unwrap().iter().all(|f| f["severity"] != "error"), "{before}");
    link.ok(&["init"]);
    let good = link.json(&["check"]);
    assert!(good.as_array().unwrap().iter().any(|f| f["severity"] == "ok"), "{good}");
    assert!(link.ok(&["check"]).contains("0 errors"));

    link.sql("ALTER TABLE salesforce.contact DROP COLUMN title").await;
    let output = link.tidelock(&["check"]);
    assert_eq!(output.status.code(), Some(3), "{}", printed(&output));
    let said = printed(&output);
    assert!(said.contains("ERROR") && said.contains("title") && said.contains("1 error,"), "{said}");
    let findings: Json = serde_json::from_str(&printed(&link.tidelock(&["check", "--output", "json"]))).unwrap();
    let error = findings.as_array().unwrap().iter().find(|f| f["severity"] == "error").unwrap();
    assert!(!error["advice"].as_str().unwrap().is_empty(), "{error}");
    let run = link.tidelock(&["run"]);
    assert_eq!(run.status.code(), Some(2), "a link with errors does not run: {}", complaint(&run));
    assert!(complaint(&run).contains("title"), "{}", complaint(&run));
    link.ok(&["init"]);
    link.ok(&["check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_a_mapping_hides_no_other() {
    let mappings = MAPPINGS.replace("\"Title\"", "\"Titel\"");
    let server = ServerSettings::default().with("wal_level", "replica");
    let link = Link::new(Setup { initialise: false, mappings, server, ..Setup::default() }).await;
    let output = link.tidelock(&["check"]);
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(3), "{said}{}", complaint(&output));
    for word in ["Titel", "wal_level", "login", "salesforce.account", "Account change events"] {
        assert!(said.contains(word), "nothing about {word}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_in_a_query_are_no_empty_answer() {
    let seed = Seed { seed: 3, contacts: 600, ..Seed::default() };
    let mut link = Link::new(Setup { seed, ..Setup::default() }).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A" }));
    link.start().await;
    link.settle().await;
    for (arguments, words) in [
        (["log", "query", "--kind", "chnage"], ["chnage", "change"]),
        (["log", "tail", "--kind", "chnage"], ["chnage", "notice"]),
        (["log", "query", "--mapping", "contcat"], ["contcat", "account, contact"]),
        (["log", "tail", "--mapping", "contcat"], ["contcat", "account, contact"]),
    ] {
        let output = link.tidelock(&arguments);
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?}: {said}");
    }
    assert!(!link.json_lines(&["log", "query", "--kind", "Change", "--mapping", "CONTACT"]).is_empty());
    assert_eq!(link.ok(&["log", "tail", "-n", "0"]), "");

    let all = link.json_lines(&["log", "query", "--limit", "1000000"]).len();
    assert!(all > 1_200, "{all}");
    let cut = link.tidelock(&["log", "query", "--output", "json"]);
    assert_eq!(printed(&cut).lines().count(), 1_000);
    assert!(complaint(&cut).contains("more than these 1000") && complaint(&cut).contains("--limit"));
    for arguments in
        [["log", "query", "--limit", "10"], ["log", "query", "--limit", "1000000"], ["log", "history", &id, "-ojson"]]
    {
        let output = link.tidelock(&arguments);
        assert_eq!((output.status.code(), complaint(&output)), (Some(0), String::new()), "{arguments:?}");
    }
}

fn signal(process: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &process.id().to_string()]).status().unwrap().success());
}

async fn end_of(mut process: Child) -> Option<i32> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        if tokio::time::Instant::now() > deadline {
            process.kill().unwrap();
            panic!("it goes on");
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// The first line that a process prints; nothing reads on after it.
fn first_line(process: &mut Child) -> (String, BufReader<ChildStdout>) {
    let mut reader = BufReader::with_capacity(64, process.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    (line, reader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_with_nothing_to_finish_ends_at_the_first_signal() {
    let link = Link::new(Setup { initialise: false, ..Setup::default() }).await;
    // An org that takes the call and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    std::fs::write(link.config_path(), link.configuration_with(&link.server.endpoint(), &url)).unwrap();
    for (name, arguments) in
        [("-INT", &["check"][..]), ("-TERM", &["init"]), (hangup(), &["check"]), ("-INT", &["init", "--dry-run"])]
    {
        let process = link.command().args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let called = tokio::time::timeout(PATIENCE, silent.accept()).await.expect("it calls the org").unwrap();
        signal(&process, name);
        assert_eq!(end_of(process).await, Some(130), "{arguments:?} after {name}");
        drop(called);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_are_at_work_hold_up_no_end() {
    let seed = Seed { seed: 3, contacts: 400, ..Seed::default() };
    let mut link = Link::new(Setup { seed, ..Setup::default() }).await;
    link.start().await;
    link.settle().await;
    let spawn = |arguments: &[&str]| {
        link.command().args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    // It prints more than a pipe holds, and nobody reads on: its thread waits for ever.
    let mut query = spawn(&["log", "query", "--limit", "1000000", "--output", "json"]);
    let unread = first_line(&mut query);
    signal(&query, "-INT");
    assert_eq!(end_of(query).await, Some(130));
    drop(unread);
    // One that drains takes the first signal as a request, and the second as an order.
    let mut tail = spawn(&["log", "tail", "--follow", "-n", "1000000", "--output", "json"]);
    let unread = first_line(&mut tail);
    signal(&tail, "-INT");
    signal(&tail, "-TERM");
    assert_eq!(end_of(tail).await, Some(130));
    drop(unread);
    let mut tail = spawn(&["log", "tail", "--follow", "-n", "1", "--output", "json"]);
    let reader = first_line(&mut tail);
    signal(&tail, hangup());
    assert_eq!(end_of(tail).await, Some(0));
    drop(reader);
    // A reader that goes away is no error.
    let mut query = spawn(&["log", "query", "--limit", "1000000", "--output", "json"]);
    drop(first_line(&mut query));
    assert_eq!(end_of(query).await, Some(0));
    link.settle().await;
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn status_log_and_metrics_tell_what_happens() {
    let mut link = Link::new(Setup::default()).await;
    let id = link.create("Contact", json!({ "LastName": "Tester", "Phone": "111", "External_ID__c": "C-001" }));
    link.start().await;
    link.settle().await;
    link.sql(
        "BEGIN; SET LOCAL tidelock.actor = 'maria'; UPDATE salesforce.contact SET phone = '222' WHERE external_id__c = 'C-001'; COMMIT",
    )
    .await;
    link.settle().await;
    link.update("Contact", &id, json!({ "Phone": "333", "Title": "Buyer" }));
    link.settle().await;

    let running = link.json(&["status"]);
    assert_eq!(running["running"], true);
    for direction in ["to_salesforce", "to_postgres"] {
        assert_eq!(running[direction]["state"], "in step", "{running}");
        assert!(
            running[direction]["changes"].as_u64() > Some(0) && running[direction]["written"].as_u64() > Some(0),
            "{running}"
        );
    }
    let text = link.ok(&["status"]);
    assert!(text.contains("link test: running") && text.contains("API calls"), "{text}");
    promised_metrics(&link);
    the_log_tells(&link, &id);

    assert_eq!(link.terminate().await.code(), Some(0));
    let stopped = link.json(&["status"]);
    assert_eq!(stopped["running"], false);
    assert_eq!(stopped["to_postgres"]["state"], "stopped");
    assert!(link.ok(&["status"]).contains("not running"));
    the_log_tells(&link, &id);
    link.ok(&["log", "rebuild"]);
    link.verify();
    the_log_tells(&link, &id);
    link.start().await;
    link.settle().await;
}

/// Two links were given the same port: what is asked of one is neither told nor done by the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_with_the_same_port_is_not_taken_for_this_one() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    let (own, other) = (link.log_path(), link.path("other-log"));
    drop(RocksLog::open_or_create(&other, RocksOptions::default()).unwrap());
    let name = |text: String| text.replace("name = \"test\"", "name = \"other\"");
    let moved = link.configuration().replace(own.to_str().unwrap(), other.to_str().unwrap());
    for text in [name(link.configuration()), moved.clone(), name(moved)] {
        std::fs::write(link.config_path(), text).unwrap();
        for arguments in
            [&["status"][..], &["dead-letters", "retry", "1"], &["conflicts", "resolve", "1", "--take", "postgres"]]
        {
            let output = link.tidelock(arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", printed(&output));
            assert!(complaint(&output).contains("is `test` with log"), "{arguments:?}: {}", complaint(&output));
        }
    }
    link.configure();
    assert_eq!(link.json(&["status"])["running"], true);
    assert_eq!(link.terminate().await.code(), Some(0));

    // Something else has the port: it is not taken for a link that is not running.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = link.configuration();
    let listen = text.lines().find(|line| line.starts_with("listen = ")).unwrap();
    std::fs::write(link.config_path(), text.replace(listen, &format!("listen = \"127.0.0.1:{port}\""))).unwrap();
    let output = link.tidelock(&["status"]);
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(complaint(&output).contains("does not answer"), "{}", complaint(&output));
    drop(silent);
    assert_eq!(link.json(&["status"])["running"], false);
}

fn promised_metrics(link: &Link) {
    let (status, text) = link.get("/metrics").unwrap();
    assert_eq!(status, 200);
    for name in ["changes", "echoes", "duplicates_dropped", "writes", "retries", "write_failures", "writes_refused"] {
        for side in ["postgres", "salesforce"] {
            let series = format!("tidelock_{name}_total{{from=\"{side}\"}}");
            assert!(text.contains(&series), "no {series} in {text}");
        }
    }
    for name in [
        "lag_entries",
        "lag_seconds",
        "writes_in_flight",
        "capture_connected",
        "source_lag_bytes",
        "source_lag_seconds",
    ] {
        assert!(text.contains(&format!("tidelock_{name}{{from=\"postgres\"}}")), "no {name} in {text}");
    }
    for name in [
        "log_entries",
        "log_bytes",
        "log_queue",
        "records",
        "conflicts_open",
        "dead_letters",
        "conflicts_total",
        "log_syncs_total",
        "api_calls_total",
        "api_used",
        "api_limit",
    ] {
        assert!(text.lines().any(|l| l.starts_with(&format!("tidelock_{name} "))), "no {name} in {text}");
    }
    for name in ["copy_rows", "copy_finished"] {
        for side in ["postgres", "salesforce"] {
            let series = format!("tidelock_{name}{{side=\"{side}\",mapping=\"contact\"}} ");
            assert!(text.contains(&series), "no {series} in {text}");
        }
    }
    assert!(text.contains("tidelock_capture_connected{from=\"salesforce\"} 1"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

fn the_log_tells(link: &Link, id: &str) {
    let tail = link.json_lines(&["log", "tail", "-n", "5"]);
    assert_eq!(tail.len(), 5);
    let offsets: Vec<u64> = tail.iter().map(|e| e["offset"].as_u64().unwrap()).collect();
    assert!(offsets.windows(2).all(|w| w[1] == w[0] + 1), "{offsets:?}");

    let by_maria = link.json_lines(&["log", "query", "--who", "maria", "--field", "phone"]);
    assert_eq!(by_maria.len(), 1, "{by_maria:#?}");
    let edit = &by_maria[0];
    assert_eq!(
        (&edit["kind"], &edit["side"], &edit["mapping"]),
        (&json!("change"), &json!("postgres"), &json!("contact"))
    );
    let phone = edit["fields"].as_array().unwrap().iter().find(|f| f["field"] == "Phone").unwrap();
    assert_eq!((&phone["from"], &phone["to"]), (&json!("111"), &json!("222")));
    for part in ["at", "committed_at", "position", "transaction", "dot", "vector"] {
        assert!(edit[part].is_string(), "{part}: {edit}");
    }
    let since = edit["at"].as_str().unwrap();
    assert!(!link.json_lines(&["log", "query", "--since", since, "--kind", "change"]).is_empty());
    assert!(link.json_lines(&["log", "query", "--until", since, "--who", "maria"]).is_empty());
    let from = edit["offset"].to_string();
    assert_eq!(link.json_lines(&["log", "query", "--from", &from, "--limit", "1"])[0]["offset"], edit["offset"]);

    // A transaction is found whole, by either side's name of it, and nothing else with it.
    for entry in link.json_lines(&["log", "query", "--kind", "change"]) {
        let Some(transaction) = entry["transaction"].as_str() else { continue };
        let found = link.json_lines(&["log", "query", "--transaction", transaction]);
        assert!(found.contains(&entry), "{entry} is not in {found:#?}");
        assert!(found.iter().all(|e| e["transaction"] == transaction && e["side"] == entry["side"]), "{found:#?}");
    }
    assert!(link.json_lines(&["log", "query", "--transaction", "0"]).is_empty());

    let key = link.history(id);
    let named = |name: &str| link.history(name);
    assert_eq!(named(&format!("#{}", edit["record"])), key);
    let phones: Vec<&Json> = key
        .iter()
        .filter(|e| e["kind"] == "change")
        .flat_map(|e| e["fields"].as_array().unwrap())
        .filter(|f| f["field"] == "Phone")
        .map(|f| &f["to"])
        .collect();
    assert_eq!(phones, ["111", "222", "333"].map(Json::from).iter().collect::<Vec<_>>());
    let text = link.ok(&["log", "history", id]);
    assert!(text.contains("111") && text.contains("222") && text.contains("maria"), "{text}");
    let unknown = link.tidelock(&["log", "history", "contact/999999"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", complaint(&unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_retried_and_discarded() {
    let mut link = Link::new(Setup::default()).await;
    link.sql("ALTER TABLE salesforce.contact ALTER COLUMN title TYPE text, ALTER COLUMN department TYPE text").await;
    for key in ["A", "B"] {
        link.create("Contact", json!({ "LastName": key, "External_ID__c": key, "Title": "short" }));
    }
    link.start().await;
    link.settle().await;
    let long = "x".repeat(200);
    for key in ["A", "B"] {
        link.sql(&format!("UPDATE salesforce.contact SET title = '{long}' WHERE external_id__c = '{key}'")).await;
    }
    link.wait_until("both are refused", |link| link.status().is_some_and(|s| s["dead_letters"] == 2)).await;
    // The rest of the record, and everything else, goes on.
    link.sql("UPDATE salesforce.contact SET phone = '5' WHERE external_id__c = 'A'").await;
    link.wait_until("the other field arrives", |link| link.record("Contact", "A").unwrap()["Phone"] == "5").await;
    let letters = link.json(&["dead-letters", "list"]);
    let letters = letters.as_array().unwrap();
    assert_eq!(letters.len(), 2, "{letters:#?}");
    assert_eq!((&letters[0]["code"], &letters[0]["side"]), (&json!("STRING_TOO_LONG"), &json!("salesforce")));
    let table = link.ok(&["dead-letters", "list"]);
    assert!(table.contains("STRING_TOO_LONG"), "{table}");
    assert!(link.get("/metrics").unwrap().1.contains("tidelock_dead_letters 2"));

    // Retried while nothing has changed, it is refused again.
    let first = letters[0]["dead_letter"].to_string();
    link.ok(&["dead-letters", "retry", &first, "--by", "dana"]);
    link.wait_until("it is refused again", |link| {
        let letters = link.json(&["dead-letters", "list"]);
        let letters = letters.as_array().unwrap();
        letters.len() == 2 && letters.iter().all(|l| l["dead_letter"].to_string() != first)
    })
    .await;
    let unknown = link.tidelock(&["dead-letters", "retry", &first, "--by", "dana"]);
    assert_eq!(unknown.status.code(), Some(2), "{}", complaint(&unknown));
    // Retried after the field was made longer, it arrives; and the one that is discarded does not.
    let letters = link.json(&["dead-letters", "list"]);
    let of = |record: &Json| {
        let letter = letters.as_array().unwrap().iter().find(|l| l["salesforce_id"] == record["Id"]).unwrap();
        letter["dead_letter"].to_string()
    };
    let (a, b) = (link.record("Contact", "A").unwrap(), link.record("Contact", "B").unwrap());
    link.org
        .admin("POST", "/fields", &json!({ "object": "Contact", "field": { "name": "Title", "length": 255 } }))
        .unwrap();
    link.ok(&["dead-letters", "discard", &of(&b), "--by", "dana"]);
    link.ok(&["dead-letters", "retry", &of(&a), "--by", "dana"]);
    link.wait_until("it arrives", |link| link.record("Contact", "A").unwrap()["Title"] == long.as_str()).await;
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    sleep(Duration::from_millis(500)).await;
    assert_eq!(link.record("Contact", "B").unwrap()["Title"], "short");
    // Discarded and retried without the process, too; and a later edit of a discarded value flows.
    link.kill();
    link.start().await;
    link.sql("UPDATE salesforce.contact SET title = 'new' WHERE external_id__c = 'B'").await;
    link.settle().await;
    let long = "y".repeat(300);
    link.sql(&format!("UPDATE salesforce.contact SET title = '{long}' WHERE external_id__c = 'B'")).await;
    link.wait_until("it is refused", |link| link.status().is_some_and(|s| s["dead_letters"] == 1)).await;
    assert_eq!(link.terminate().await.code(), Some(0));
    assert_eq!(link.json(&["status"])["dead_letters"], 1);
    link.org
        .admin("POST", "/fields", &json!({ "object": "Contact", "field": { "name": "Title", "length": 400 } }))
        .unwrap();
    link.ok(&["dead-letters", "retry", "--all", "--by", "dana"]);
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "B").unwrap()["Title"], long.as_str());
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_the_next_start_goes_on() {
    let mut link = Link::new(Setup::default()).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A" }));
    link.start().await;
    link.settle().await;
    link.faults(json!({ "rest_latency_ms": 150, "event_latency_ms": 100 }));
    for round in 0..4 {
        for n in 0..20 {
            link.sql(&format!("UPDATE salesforce.contact SET phone = '{round}-{n}' WHERE external_id__c = 'A'")).await;
            link.update("Contact", &id, json!({ "Title": format!("{round}-{n}") }));
        }
        let started = std::time::Instant::now();
        let status = link.terminate().await;
        assert_eq!(status.code(), Some(0), "{}", link.said_last());
        assert!(started.elapsed() < Duration::from_secs(20), "it took {:?} to drain", started.elapsed());
        link.verify();
        link.sql(&format!("UPDATE salesforce.contact SET department = 'down {round}' WHERE external_id__c = 'A'"))
            .await;
        link.start().await;
    }
    link.settle().await;
    let record = link.record("Contact", "A").unwrap();
    assert_eq!(
        (&record["Phone"], &record["Title"], &record["Department"]),
        (&json!("3-19"), &json!("3-19"), &json!("down 3"))
    );
    assert_eq!(link.conflicts(), Vec::<Json>::new());
    link.verify();
}

/// Rows of PostgreSQL that were there before: those that the org has are joined with it, the others are born there.
async fn joined(winner: &str, phone: &str) {
    let setup = Setup::default().with_link(&format!("initial_merge = \"{winner}\""));
    let mut link = Link::new(setup).await;
    for n in 0..6 {
        link.create("Contact", json!({ "LastName": format!("Both {n}"), "External_ID__c": format!("both-{n}"), "Phone": "from salesforce" }));
        link.sql(&format!("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Both {n}', 'both-{n}', 'from postgres')")).await;
        link.sql(&format!(
            "INSERT INTO salesforce.contact (lastname, external_id__c) VALUES ('Only {n}', 'only-pg-{n}')"
        ))
        .await;
        link.create("Contact", json!({ "LastName": format!("Only {n}"), "External_ID__c": format!("only-sf-{n}") }));
    }
    // The same value on both sides is no difference.
    link.create("Contact", json!({ "LastName": "Same", "External_ID__c": "same", "Phone": "1" }));
    link.sql("INSERT INTO salesforce.contact (lastname, external_id__c, phone) VALUES ('Same', 'same', '1')").await;
    // As if all of it had been there before Tidelock: a slot that begins here tells of none of these rows.
    link.sql("SELECT pg_drop_replication_slot('tidelock_test')").await;
    link.ok(&["init"]);
    link.start().await;
    let found = link.settle().await;
    assert_eq!(found.records, 6 * 3 + 1 + 1, "{found:?}");
    let keys: Vec<String> =
        link.records("Contact").iter().map(|r| r["External_ID__c"].as_str().unwrap().to_owned()).collect();
    let different: BTreeSet<&String> = keys.iter().collect();
    assert_eq!((keys.len(), different.len()), (19, 19), "{keys:?}");
    for n in 0..6 {
        let record = link.record("Contact", &format!("both-{n}")).unwrap();
        assert_eq!(record["Phone"], phone);
    }
    assert_eq!(link.json(&["conflicts", "list", "--all"]), json!([]), "joining is no stream of conflicts");
    let differences = link.conflicts();
    assert_eq!(differences.len(), 6, "{differences:#?}");
    assert!(
        differences
            .iter()
            .all(|d| d["conflict_kind"] == "initial_merge" && d["field"] == "Phone" && d["stands"] == phone)
    );
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    // The next start copies nothing again.
    let before = link.json(&["status"]);
    assert!(before["backfills"].as_array().unwrap().iter().all(|b| b["finished"] == true), "{before}");
    assert_eq!(link.terminate().await.code(), Some(0));
    link.start().await;
    link.settle().await;
    assert_eq!(link.records("Contact").len(), 19);
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_joined_with_salesforce_winning() {
    joined("salesforce", "from salesforce").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_joined_with_postgres_winning() {
    joined("postgres", "from postgres").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copying_goes_on_after_kills_where_it_was() {
    let seed = Seed { seed: 5, accounts: 300, contacts: 2_500, ..Seed::default() };
    let mut link = Link::new(Setup { seed, ..Setup::default() }).await;
    link.sql(
        "INSERT INTO salesforce.contact (lastname, external_id__c) SELECT 'Here ' || n, 'here-' || n FROM generate_series(1, 1200) n",
    )
    .await;
    for pause in [400, 300, 700, 1_000] {
        link.spawn();
        link.wait_until("it runs", |link| link.get("/health").is_some()).await;
        sleep(Duration::from_millis(pause)).await;
        link.kill();
    }
    link.start().await;
    link.wait_until("all is copied", |link| {
        link.status().is_some_and(|s| {
            let copies = s["backfills"].as_array().unwrap();
            copies.len() == 4 && copies.iter().all(|b| b["finished"] == true) && is_quiet(&s)
        })
    })
    .await;
    let found = link.settle().await;
    assert_eq!(found.records, 300 + 2_500 + 1_200 + 1, "every record is on both sides, once");
    let rows = link.value("SELECT count(*) || ' ' || count(DISTINCT sfid) FROM salesforce.contact").await;
    assert_eq!(rows.as_deref(), Some("3700 3700"));
    assert_eq!(link.records("Contact").len(), 3_700);
    assert_eq!(link.conflicts(), Vec::<Json>::new());
    link.verify();
}

/// However many tables there are, the database's sessions are left to others.
#[tokio::test(flavor = "multi_thread")]
async fn few_tables_are_copied_at_a_time() {
    let (mut mappings, mut objects) = (MAPPINGS.to_owned(), String::new());
    for n in 0..10 {
        objects += &format!("[[objects]]\nname = \"Thing{n}__c\"\n");
        mappings += &format!("[[mapping]]\nsobject = \"Thing{n}__c\"\nfields = [\"Name\"]\naccess = \"read_only\"\n");
    }
    let objects = OrgFile::from_toml(&objects).unwrap();
    let mut link = Link::new(Setup { objects, ..Setup::with_mappings(&mappings) }).await;
    let user = link.server.session().await.unwrap();
    let lock = "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT oid FROM pg_class WHERE relkind = 'r' \
                AND relnamespace = 'salesforce'::regnamespace LOOP EXECUTE 'LOCK TABLE ' || t; END LOOP; END $$";
    user.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
    link.spawn();
    let copying = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'EXPLAIN%'";
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while link.value(copying).await.as_deref() != Some("4") {
        assert!(tokio::time::Instant::now() < deadline, "{:?} tables are copied", link.value(copying).await);
        sleep(Duration::from_millis(10)).await;
    }
    // The others would be there by now.
    sleep(Duration::from_millis(300)).await;
    assert_eq!(link.value(copying).await.as_deref(), Some("4"));
    user.batch_execute("COMMIT").await.unwrap();
    link.wait_until("all is copied", |link| {
        link.status().is_some_and(|s| {
            let copies = s["backfills"].as_array().unwrap();
            copies.len() == 24 && copies.iter().all(|b| b["finished"] == true)
        })
    })
    .await;
    link.settle().await;
    link.verify();
}

/// Whoever reads the log sees how far copying has come, and how much there is.
#[tokio::test(flavor = "multi_thread")]
async fn copying_tells_how_far_it_has_come() {
    let seed = Seed { seed: 5, contacts: 10_000, ..Seed::default() };
    let mut link = Link::new(Setup { seed, ..Setup::default() }).await;
    // Five pages, so slow that one of the lines comes between the first and the last.
    link.faults(json!({ "rest_latency_ms": 500 }));
    link.spawn();
    link.wait_until("it runs", |link| link.get("/health").is_some()).await;
    link.faults(json!({ "rest_latency_ms": 2_000 }));
    link.wait_until("it tells", |link| {
        let said = link.said_last();
        said.lines().any(|line| line.contains("copying rows") && line.contains("total=10000"))
    })
    .await;
}

/// Rows were copied, and the org's stream had not told its place yet.
#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_down_is_read_where_no_place_in_the_stream_was_known() {
    let keepalive = Duration::from_hours(1);
    let mut link = Link::new(Setup { keepalive, ..Setup::default() }).await;
    let contact = |key: &str| json!({ "LastName": key, "External_ID__c": key });
    let (changed, deleted) = (link.create("Contact", contact("changed")), link.create("Contact", contact("deleted")));
    link.start().await;
    link.wait_until("all is copied to both sides", |link| {
        link.status().is_some_and(|s| {
            let copies = s["backfills"].as_array().unwrap();
            copies.len() == 4 && copies.iter().all(|b| b["finished"] == true) && is_quiet(&s)
        })
    })
    .await;
    link.kill();
    link.update("Contact", &changed, json!({ "Phone": "while down" }));
    link.commit("Bob Seller", json!([{ "op": "delete", "object": "Contact", "id": deleted }]));
    link.start().await;
    link.settle().await;
    let rows = "SELECT string_agg(external_id__c || ' ' || coalesce(phone, ''), ',') FROM salesforce.contact \
                WHERE external_id__c IN ('changed', 'deleted')";
    assert_eq!(link.value(rows).await.as_deref(), Some("changed while down"));
    link.verify();
}

/// An object that the stream could not tell of is read again to its end, though existing rows are not to be copied.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_read_goes_on_where_rows_are_not_copied() {
    let mappings = MAPPINGS.replace("sobject =", "backfill = false\nsobject =");
    let mut link = Link::new(Setup::with_mappings(&mappings)).await;
    link.start().await;
    let id = link.create("Contact", json!({ "LastName": "one", "External_ID__c": "one" }));
    link.settle().await;
    // What an overflow leaves in the log: the read is to begin, and the process is gone before its first page.
    let status = link.terminate().await;
    assert!(status.success());
    {
        let log = RocksLog::open_or_create(&link.log_path(), RocksOptions::default()).unwrap();
        let (ledger, thread) = tidelock::ledger::start(Arc::new(log), tidelock::clock::system()).unwrap();
        let mapping = link.catalog().await.mappings.iter().find(|m| m.sobject == "Contact").unwrap().id;
        let notice =
            Notice::Backfill { side: Side::Salesforce, mapping, rows: 0, after: "sweep:".into(), finished: false };
        ledger.run(move |core| core.notice(notice)).await.unwrap();
        drop(ledger);
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();
    }
    link.start().await;
    link.wait_until("the read has ended", |link| {
        link.status().is_some_and(|s| s["backfills"].as_array().unwrap().iter().any(|b| b["finished"] == true))
    })
    .await;
    assert!(link.records("Contact").iter().any(|r| r["Id"] == id.as_str()));
    link.settle().await;
}

/// Rows that others hold locked, at either side, are written when they are free, however often that takes.
#[tokio::test(flavor = "multi_thread")]
async fn locked_rows_make_no_dead_letters_and_hold_nothing_up() {
    let replay = "backoff_min_ms = 20\nbackoff_max_ms = 50\nattempts = 3\n".to_owned();
    let mut link = Link::new(Setup { replay, ..Setup::default() }).await;
    let ids: Vec<String> =
        ["A", "B"].map(|key| link.create("Contact", json!({ "LastName": key, "External_ID__c": key }))).into();
    link.start().await;
    link.settle().await;
    let retries = |link: &Link, to: &str| link.status().map_or(0, |s| s[to]["retries"].as_u64().unwrap());
    link.faults(json!({ "lock_rows": 1.0 }));
    link.sql("UPDATE salesforce.contact SET phone = 'from postgres' WHERE external_id__c = 'A'").await;
    link.wait_until("it was tried often", |link| retries(link, "to_salesforce") > 8).await;
    link.faults(json!({ "lock_rows": 0.0 }));
    link.settle().await;

    let user = link.server.session().await.unwrap();
    user.batch_execute("BEGIN; SELECT FROM salesforce.contact WHERE external_id__c = 'A' FOR UPDATE").await.unwrap();
    link.update("Contact", &ids[0], json!({ "Title": "locked" }));
    link.update("Contact", &ids[1], json!({ "Title": "free" }));
    link.wait_until("it was tried often", |link| retries(link, "to_postgres") > 8).await;
    let free = "SELECT title FROM salesforce.contact WHERE external_id__c = 'B'";
    assert_eq!(link.value(free).await.as_deref(), Some("free"));
    // A crash while a write is put off: the next process takes it up, once by the stream's place alone and once by another
    // write's echo.
    link.kill();
    link.start().await;
    let is_behind = |link: &mut Link| link.status().is_some_and(|s| s["to_postgres"]["state"] != "in step");
    link.wait_until("it says that a write waits", is_behind).await;
    link.wait_until("it was tried again", |link| retries(link, "to_postgres") > 2).await;
    link.kill();
    link.start().await;
    link.update("Contact", &ids[1], json!({ "Title": "free again" }));
    link.wait_until("it was tried again", |link| retries(link, "to_postgres") > 2).await;
    assert!(link.terminate().await.success());
    user.batch_execute("COMMIT").await.unwrap();
    link.start().await;
    link.settle().await;
    let title = "SELECT title FROM salesforce.contact WHERE external_id__c = 'A'";
    assert_eq!(link.value(title).await.as_deref(), Some("locked"));
    assert_eq!(link.json(&["dead-letters", "list"]), json!([]));
    link.verify();
}
