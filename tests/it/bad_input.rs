//! Bad input of every kind: each has a clear message, and none loses anything.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::sandbox::{self, Client, Sandbox, Seed};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::link::{CLIENT, Link, MAPPINGS, PATIENCE, Setup, complaint, printed, say_skipped};

fn tidelock_with(text: &str, arguments: &[&str]) -> (PathBuf, Output) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tidelock.toml");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
    let output = command.arg("--config").arg(&path).args(arguments).stdin(Stdio::null()).output().unwrap();
    (path, output)
}

/// The command fails with this exit code, and says every one of these words.
#[track_caller]
fn refuses(link: &Link, arguments: &[&str], code: i32, words: &[&str]) {
    let output = link.tidelock(arguments);
    let said = complaint(&output) + &printed(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

// -- configuration ---------------------------------------------------------------------------------------------------------

#[test]
fn every_fault_of_a_configuration_has_its_line() {
    let text = "[link]\nname = \"Has Blanks\"\npolicy = \"coin_toss\"\n\n[postgres]\nhost = \"localhost\"\ndbname = \"x\"\n\
                user = \"x\"\nprot = 5432\n\n[salesforce]\nlogin_url = \"http://example.com\"\nclient_id = \"id\"\n\
                client_secret_env = \"TIDELOCK_TEST_NOT_SET\"\n\n[[mapping]]\nsobject = \"Contact\"\nfields = []\n";
    for command in ["run", "check", "status", "init"] {
        let (path, output) = tidelock_with(text, &[command]);
        let said = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{command}: {said}");
        for (line, word) in [
            (2, "name"),
            (3, "coin_toss"),
            (9, "prot"),
            (12, "https"),
            (14, "TIDELOCK_TEST_NOT_SET"),
            (18, "fields"),
            (16, "external_id"),
        ] {
            let place = format!("{}:{line}:", path.display());
            let told = said.lines().any(|l| l.contains(&place) && l.contains(word) && l.contains("write:"));
            assert!(told, "{command}: line {line} is not told, or not of {word}: {said}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_or_no_toml_is_told() {
    let output = Command::new(env!("CARGO_BIN_EXE_tidelock"))
        .args(["--config", "/nowhere/tidelock.toml", "run"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("/nowhere/tidelock.toml"), "{}", complaint(&output));
    let (path, output) = tidelock_with("[link]\nname = \"x\nlog = 5", &["run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains(&format!("{}:2:", path.display())), "{}", complaint(&output));
    let (_, output) = tidelock_with("", &["no-such-command"]);
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() {
    let mappings = MAPPINGS.replace("\"Title\"", "\"Nope__c\"");
    let link = Link::new(Setup { initialise: false, ..Setup::with_mappings(&mappings) }).await;
    refuses(&link, &["status"], 2, &["there is no change log"]);
    refuses(&link, &["log", "verify"], 2, &["there is no change log"]);
    refuses(&link, &["check"], 3, &["Nope__c"]);
    refuses(&link, &["init"], 2, &["Nope__c"]);
    refuses(&link, &["run"], 2, &["Nope__c"]);
    std::fs::write(
        link.config_path(),
        link.configuration().replace("\"Contact\"", "\"Contract__c\"").replace("Nope__c", "Title"),
    )
    .unwrap();
    refuses(&link, &["check"], 3, &["Contract__c"]);
    refuses(&link, &["run"], 2, &["Contract__c"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_without_a_key_is_refused() {
    let link = Link::new(Setup { initialise: false, ..Setup::default() }).await;
    link.sql(
        "CREATE SCHEMA salesforce; CREATE TABLE salesforce.contact (sfid varchar(18), lastname text, phone text, title text, \
         department text, mobilephone text, external_id__c text, accountid text)",
    )
    .await;
    refuses(&link, &["check"], 3, &["contact", "primary key"]);
    // Time and again, since a process that ends while its log is still being closed ends by a signal now and then.
    for _ in 0..10 {
        refuses(&link, &["run"], 2, &["contact", "primary key"]);
    }
    link.sql("ALTER TABLE salesforce.contact ADD COLUMN id serial PRIMARY KEY").await;
    link.ok(&["init"]);
    link.ok(&["check"]);
}

// -- servers ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told_and_not_repeated_for_ever() {
    let mut link = Link::new(Setup::default()).await;
    link.sql("CREATE ROLE sync SUPERUSER LOGIN REPLICATION PASSWORD 'right'").await;
    let mut endpoint = link.server.tcp_endpoint();
    endpoint.user = "sync".into();
    let password = link.path("password");
    let with_file = format!("heartbeat_seconds = 1\npassword_file = \"{}\"", password.display());
    let text = link.configuration_with(&endpoint, &link.org.url()).replace("heartbeat_seconds = 1", &with_file);
    std::fs::write(link.config_path(), &text).unwrap();
    std::fs::write(&password, "wrong-but-secret").unwrap();
    for command in ["check", "init", "run"] {
        refuses(&link, &[command], 1, &["password", "sync"]);
        let output = link.tidelock(&[command]);
        assert!(!(complaint(&output) + &printed(&output)).contains("wrong-but-secret"), "the password is told");
    }
    std::fs::write(&password, "right").unwrap();
    link.start().await;
    link.settle().await;
    // Changed while it runs, it ends with that message when it has to connect again.
    std::fs::write(&password, "wrong").unwrap();
    assert_eq!(link.terminate().await.code(), Some(0));
    refuses(&link, &["run"], 1, &["password"]);
    std::fs::write(&password, "right").unwrap();
    link.start().await;
    link.settle().await;
    link.verify();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_of_the_org_is_told() {
    let link = Link::new(Setup::default()).await;
    std::fs::write(link.path("client_secret"), "wrong-but-secret").unwrap();
    for command in ["check", "run"] {
        let output = link.tidelock(&[command]);
        let said = complaint(&output) + &printed(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("invalid_client") && !said.contains("wrong-but-secret"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_org_than_the_one_named_is_told() {
    let link = Link::new(Setup::default()).await;
    let name = |id: &str| {
        let text =
            link.configuration().replace("[salesforce]\n", &format!("[salesforce]\norganization_id = \"{id}\"\n"));
        std::fs::write(link.config_path(), text).unwrap();
    };
    name("00D0000000000ZZ");
    for command in ["init", "check", "run"] {
        refuses(&link, &[command], 2, &["organization_id", "00D0000000000ZZ", "00D000000000001EAA"]);
    }
    name("00D000000000001");
    link.ok(&["check"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_logical_decoding_is_told() {
    let server = ServerSettings::default().with("wal_level", "replica");
    let link = Link::new(Setup { server, initialise: false, ..Setup::default() }).await;
    refuses(&link, &["check"], 3, &["wal_level is replica", "logical"]);
    refuses(&link, &["init"], 2, &["wal_level", "logical"]);
    refuses(&link, &["run"], 2, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_comes_back_with_nothing_lost() {
    let mut link = Link::new(Setup::default()).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A", "Phone": "1" }));
    link.start().await;
    link.settle().await;
    link.sql("UPDATE salesforce.contact SET title = 'before' WHERE external_id__c = 'A'").await;
    link.server.stop_fast().await.unwrap();
    for phone in 2..6 {
        link.update("Contact", &id, json!({ "Phone": phone.to_string() }));
    }
    link.wait_until("it says so", |link| {
        link.get("/ready").is_some_and(|(status, body)| status == 503 && body.contains("postgres"))
    })
    .await;
    assert_eq!(link.get("/health").unwrap().0, 200);
    let status = link.ok(&["status"]);
    assert!(status.contains("capture not connected") || status.contains("failing"), "{status}");
    sleep(Duration::from_millis(500)).await;
    assert!(link.exited().is_none(), "an outage of one side is waited out:\n{}", link.said());
    link.server.start_again().await.unwrap();
    link.sql("UPDATE salesforce.contact SET department = 'after' WHERE external_id__c = 'A'").await;
    link.settle().await;
    let record = link.record("Contact", "A").unwrap();
    assert_eq!(
        (&record["Phone"], &record["Title"], &record["Department"]),
        (&json!("5"), &json!("before"), &json!("after"))
    );
    assert!(
        link.said().contains("cannot connect to PostgreSQL") || link.said().contains("a part failed"),
        "{}",
        link.said()
    );

    // Started while the database is away, it waits for it.
    assert_eq!(link.terminate().await.code(), Some(0));
    link.server.stop_immediate().await.unwrap();
    link.update("Contact", &id, json!({ "Phone": "6" }));
    link.spawn();
    link.wait_until("it runs", |link| link.get("/health").is_some()).await;
    link.server.start_again().await.unwrap();
    link.settle().await;
    link.verify();
}

/// The way to a side, which can be cut, and lead elsewhere afterwards.
struct Way {
    port: u16,
    to: SocketAddr,
    traffic: JoinSet<()>,
}

impl Way {
    async fn open(to: SocketAddr) -> Self {
        let mut way = Self { port: super::link::free_port(), to, traffic: JoinSet::new() };
        way.restore().await;
        way
    }

    async fn restore(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let to = self.to;
        self.traffic.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(to).await {
                        drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
                    }
                });
            }
        });
    }

    async fn cut(&mut self) {
        self.traffic.shutdown().await;
    }

    async fn lead_to(&mut self, to: SocketAddr) {
        self.cut().await;
        self.to = to;
        self.restore().await;
    }
}

/// The process ends, and says what it has found in the place of what the log has read.
async fn ends_with_another(link: &mut Link, what: &str) {
    let status = link.wait_for_exit().await;
    let said = link.said_last();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(what) && said.contains("new log"), "{said}");
}

/// In a copy that is not filled yet every row that the log knows is missing, and none was deleted.
#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_refused_and_nothing_is_deleted() {
    let trusting =
        ServerSettings::default().with_hba("local all all trust\nhost all,replication all 127.0.0.1/32 trust\n");
    let mut link = Link::new(Setup { server: trusting.clone(), ..Setup::default() }).await;
    let fresh = PostgresServer::start(trusting).await.unwrap();
    std::fs::write(link.config_path(), link.configuration_with(&fresh.endpoint(), &link.org.url())).unwrap();
    link.ok(&["init"]);
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut way = Way::open(at(link.server.port())).await;
    let mut endpoint = link.server.tcp_endpoint();
    (endpoint.port, endpoint.password) = (way.port, None);
    std::fs::write(link.config_path(), link.configuration_with(&endpoint, &link.org.url())).unwrap();

    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A", "Phone": "1" }));
    link.start().await;
    link.settle().await;
    way.lead_to(at(fresh.port())).await;
    link.update("Contact", &id, json!({ "Phone": "2" }));
    ends_with_another(&mut link, "another database").await;
    link.spawn();
    ends_with_another(&mut link, "another database").await;
    assert_eq!(link.record("Contact", "A").unwrap()["Phone"], "2");
    let rows = fresh.value("SELECT count(*) FROM salesforce.contact").await.unwrap();
    assert_eq!(rows.as_deref(), Some("0"), "the other database was written to");

    way.lead_to(at(link.server.port())).await;
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "A").unwrap()["Phone"], "2");
    link.verify();
}

/// Whether the link runs when it comes to another org, is started there, or cannot log in until long after its start.
#[tokio::test(flavor = "multi_thread")]
async fn another_org_is_refused_and_nothing_is_deleted() {
    let mut link = Link::new(Setup::default()).await;
    let other = sandbox::Config {
        org_id: "00D000000000002EAA".into(),
        clients: vec![Client::new(CLIENT.0, CLIENT.1, "integration@example.com")],
        ..sandbox::Config::default()
    };
    let other = Sandbox::start(other, CancellationToken::new()).await.unwrap();
    let mut way = Way::open(link.org.address).await;
    let url = format!("http://127.0.0.1:{}", way.port);
    std::fs::write(link.config_path(), link.configuration_with(&link.server.endpoint(), &url)).unwrap();
    link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A", "Phone": "1" }));
    link.start().await;
    link.settle().await;
    way.lead_to(other.address).await;
    ends_with_another(&mut link, "another org").await;
    link.spawn();
    ends_with_another(&mut link, "another org").await;
    way.cut().await;
    link.spawn();
    link.wait_until("it runs without an org", |link| link.get("/health").is_some()).await;
    way.restore().await;
    ends_with_another(&mut link, "another org").await;

    link.sql("UPDATE salesforce.contact SET phone = '2' WHERE external_id__c = 'A'").await;
    way.lead_to(link.org.address).await;
    link.start().await;
    link.settle().await;
    assert_eq!(link.record("Contact", "A").unwrap()["Phone"], "2");
    link.verify();
    other.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_org_that_goes_away_comes_back_with_nothing_lost() {
    let mut link = Link::new(Setup::default()).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A", "Phone": "1" }));
    let mut way = Way::open(link.org.address).await;
    let url = format!("http://127.0.0.1:{}", way.port);
    std::fs::write(link.config_path(), link.configuration_with(&link.server.endpoint(), &url)).unwrap();
    link.start().await;
    link.settle().await;
    way.cut().await;
    link.update("Contact", &id, json!({ "Phone": "2" }));
    for n in 0..50 {
        link.sql(&format!("UPDATE salesforce.contact SET title = 'title {n}' WHERE external_id__c = 'A'")).await;
    }
    link.wait_until("it says so", |link| {
        link.get("/ready").is_some_and(|(status, body)| status == 503 && body.contains("salesforce"))
    })
    .await;
    // The log takes what the org cannot, so that the database need not keep it.
    link.wait_until("the log has every edit", |link| {
        link.status().is_some_and(|s| s["to_salesforce"]["changes"].as_u64() >= Some(50))
    })
    .await;
    let behind = "SELECT pg_current_wal_flush_lsn() - confirmed_flush_lsn < 100000 FROM pg_replication_slots";
    timeout(PATIENCE, async {
        while link.value(behind).await.as_deref() != Some("t") {
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .expect("the slot moves on while the org is away");
    assert!(link.exited().is_none(), "{}", link.said());
    // It can be started, too, while the org is away.
    link.kill();
    link.spawn();
    link.wait_until("it runs", |link| link.get("/health").is_some()).await;
    sleep(Duration::from_millis(500)).await;
    assert!(link.exited().is_none(), "{}", link.said());
    way.restore().await;
    link.wait_until("everything has arrived", |link| {
        let record = link.record("Contact", "A").unwrap();
        (&record["Title"], &record["Phone"]) == (&json!("title 49"), &json!("2"))
    })
    .await;
    // Cut in the middle of whatever it is doing.
    way.cut().await;
    way.restore().await;
    link.settle().await;
    link.verify();
}

/// It stops in order at once, with and without a log, though nothing that it has asked has been answered.
#[tokio::test(flavor = "multi_thread")]
async fn an_org_that_never_answers_does_not_hold_up_a_stop() {
    let mut link = Link::new(Setup::default()).await;
    for with_log in [false, true] {
        if with_log {
            link.configure();
            link.start().await;
            link.settle().await;
            assert_eq!(link.terminate().await.code(), Some(0));
        }
        let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        std::fs::write(link.config_path(), link.configuration_with(&link.server.endpoint(), &url)).unwrap();
        link.spawn();
        let _call = timeout(PATIENCE, silent.accept()).await.expect("the org is called").unwrap();
        let asked = Instant::now();
        assert_eq!(link.terminate().await.code(), Some(0), "{}", link.said_last());
        assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
        assert_eq!(link.log_path().exists(), with_log);
    }
    link.configure();
    link.start().await;
    link.settle().await;
    link.verify();
}

// -- the log ---------------------------------------------------------------------------------------------------------------

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_a_log_is_refused() {
    let mut link = Link::new(Setup::default()).await;
    link.start().await;
    refuses(&link, &["run"], 2, &["another tidelock", "stop that one first"]);
    refuses(&link, &["log", "rebuild"], 2, &["another tidelock"]);
    link.settle().await;
    link.verify();
}

/// A small file system of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]).arg(at).output();
        mounted.is_ok_and(|o| o.status.success()).then(|| Self(at.to_owned()))
    }

    fn grow(&self, bytes: u64) {
        let options = format!("remount,size={bytes}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_the_link_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    let Some(small) = SmallDisk::mount(&disk, 256 << 20) else {
        say_skipped("no file system can be mounted here, so a full disk was NOT tested");
        return;
    };
    let seed = Seed { seed: 3, contacts: 400, ..Seed::default() };
    let mut link = Link::new(Setup { log: Some(disk.join("log")), seed, ..Setup::default() }).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A", "Phone": "1" }));
    link.start().await;
    link.settle().await;
    // Fill what is left, and again whatever the log gives back, while the edits go on.
    let filler = disk.join("filler");
    let fill = || Command::new("sh").arg("-c").arg(format!("cat /dev/zero >> {}", filler.display())).output().unwrap();
    assert!(!fill().status.success());
    let mut n = 0;
    while link.exited().is_none() && n < 400 {
        n += 1;
        fill();
        link.update("Contact", &id, json!({ "Phone": n.to_string() }));
        link.sql(&format!("UPDATE salesforce.contact SET department = 'd{n} {}'", "x".repeat(70))).await;
    }
    let status = link.wait_for_exit().await;
    assert_eq!(status.code(), Some(1), "{}", link.said_last());
    let said = link.said_last();
    assert!(said.contains("disk is full") && said.contains("nothing that was acknowledged is lost"), "{said}");
    // Still full: it says so again, or goes on for as long as what the end has freed lasts; either does no harm.
    link.spawn();
    link.wait_until("it ends again, or goes on", |link| {
        link.exited().is_some() || link.get("/ready").is_some_and(|(status, _)| status == 200)
    })
    .await;
    if let Some(status) = link.exited() {
        assert_eq!(status.code(), Some(1), "{}", link.said_last());
        assert!(link.said_last().contains("disk is full"), "{}", link.said_last());
    }
    link.kill();
    link.update("Contact", &id, json!({ "Phone": "while full" }));
    std::fs::remove_file(&filler).unwrap();
    small.grow(512 << 20);
    link.start().await;
    link.settle().await;
    let record = link.record("Contact", "A").unwrap();
    assert_eq!(
        (&record["Phone"], &record["Department"]),
        (&json!("while full"), &json!(format!("d{n} {}", "x".repeat(70))))
    );
    link.verify();
    drop(link);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_byte_is_found_and_named() {
    let mut link = Link::new(Setup::default()).await;
    let id = link.create("Contact", json!({ "LastName": "A", "External_ID__c": "A" }));
    link.start().await;
    link.settle().await;
    // So many that the damage is not in the last block, which is read when the log is opened.
    for n in 0..400 {
        link.update("Contact", &id, json!({ "Title": format!("unmistakable {n:03}") }));
    }
    link.settle().await;
    assert_eq!(link.terminate().await.code(), Some(0));
    link.verify();
    // Of a value that was soon replaced, only entries still have the text.
    let text = "unmistakable 020";
    let entries = link.json_lines(&["log", "query", "--field", "Title"]);
    let change = entries.iter().find(|e| e["kind"] == "change" && e.to_string().contains(text)).unwrap();
    let (file, at) = find(&link.log_path(), text.as_bytes()).expect("the text is in a file of the log");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at] ^= 0x20;
    std::fs::write(&file, &bytes).unwrap();
    let place = format!("{} was changed at {at}", file.display());
    let output = link.tidelock(&["log", "verify", "--output", "json"]);
    assert_eq!(output.status.code(), Some(3), "{place}: {}{}", complaint(&output), printed(&output));
    let report: Json = serde_json::from_str(&printed(&output)).unwrap();
    let problem = report["problems"].as_array().unwrap().iter().find(|p| p["offset"] == change["offset"]);
    let problem = problem.unwrap_or_else(|| panic!("{place}, and entry {} is not named: {report}", change["offset"]));
    assert!(problem["what"].as_str().unwrap().contains("checksum"), "{problem}");
    let output = link.tidelock(&["log", "verify"]);
    assert_eq!(output.status.code(), Some(3), "{place}: {}", complaint(&output));
    let said = printed(&output);
    assert!(said.contains("THE LOG IS NOT SOUND") && said.contains(&format!("entry {}:", change["offset"])), "{said}");
    assert!(!said.contains("checked") && !said.contains("is sound"), "{said}");
    // The link refuses it, or stops when it gets there: it does not go on with what is wrong.
    link.spawn();
    link.update("Contact", &id, json!({ "Title": "later" }));
    let wrong = timeout(Duration::from_secs(5), link.wait_for_exit()).await;
    if let Ok(status) = wrong {
        assert_eq!(status.code(), Some(1), "{}", link.said_last());
        assert!(link.said_last().contains("log verify"), "{}", link.said_last());
    }
    link.kill();
    // Mended, everything is there.
    bytes[at] ^= 0x20;
    std::fs::write(&file, &bytes).unwrap();
    link.start().await;
    link.settle().await;
    link.verify();
}

/// Where a text is in the files of a folder.
fn find(folder: &Path, text: &[u8]) -> Option<(PathBuf, usize)> {
    for entry in std::fs::read_dir(folder).unwrap().filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = find(&path, text) {
                return Some(found);
            }
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        if let Some(at) = bytes.windows(text.len()).position(|w| w == text) {
            return Some((path, at));
        }
    }
    None
}
