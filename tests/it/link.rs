//! A whole link for tests: a private PostgreSQL, an org in this process, and the real binary, which can be killed.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tidelock::app;
use tidelock::change::Catalog;
use tidelock::config::Config;
use tidelock::demo::compare::{Comparison, compare};
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::demo::world::Scratch;
use tidelock::mapping::Scope;
use tidelock::postgres::Session;
use tidelock::postgres::endpoint::{Endpoint, Host};
use tidelock::sandbox::{self, Client, OrgFile, Running, Sandbox, Seed};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How many links are up at a time.
static ROOM: Semaphore = Semaphore::const_new(3);
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);

pub(crate) const CLIENT: (&str, &str) = ("tidelock-test", "not-a-secret");
/// The longest that anything here is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Accounts and contacts, with a policy for each of the contact's fields that tests edit.
pub(crate) const MAPPINGS: &str = r#"
[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Site", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["LastName", "Phone", "Title", "Department", "MobilePhone", "External_ID__c", "AccountId"]
"#;

/// How a link is set up.
pub(crate) struct Setup {
    pub(crate) mappings: String,
    /// Lines under `[link]`.
    pub(crate) link: String,
    /// Lines under `[postgres]`.
    pub(crate) postgres: String,
    /// Lines under `[replay]`.
    pub(crate) replay: String,
    pub(crate) server: ServerSettings,
    pub(crate) seed: Seed,
    /// What the org has beyond the standard objects.
    pub(crate) objects: OrgFile,
    /// Whether `tidelock init` is run.
    pub(crate) initialise: bool,
    /// Where the log is, if not in the test's own folder.
    pub(crate) log: Option<PathBuf>,
    /// How often the org's stream says that nothing happened.
    pub(crate) keepalive: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mappings: MAPPINGS.into(),
            link: String::new(),
            postgres: String::new(),
            replay: "backoff_min_ms = 50\nbackoff_max_ms = 1000\nattempts = 1000\n".into(),
            server: ServerSettings::default(),
            seed: Seed { seed: 11, ..Seed::default() },
            objects: OrgFile::default(),
            initialise: true,
            log: None,
            keepalive: Duration::from_millis(500),
        }
    }
}

impl Setup {
    pub(crate) fn with_mappings(mappings: &str) -> Self {
        Self { mappings: mappings.into(), ..Self::default() }
    }

    pub(crate) fn with_link(mut self, lines: &str) -> Self {
        self.link.push_str(lines);
        self.link.push('\n');
        self
    }
}

/// Both sides, the configuration that joins them, and the process, while it runs.
pub(crate) struct Link {
    pub(crate) server: PostgresServer,
    pub(crate) org: Running,
    pub(crate) directory: Scratch,
    process: Option<Child>,
    setup: Setup,
    port: u16,
    starts: AtomicUsize,
    barriers: AtomicUsize,
    _room: SemaphorePermit<'static>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
        if std::thread::panicking() {
            eprintln!("what tidelock said:\n{}", self.said());
        }
    }
}

/// A port that is free now, outside of the range that the system gives to connections.
pub(crate) fn free_port() -> u16 {
    let start = 20_000 + (std::process::id() % 8_000) as u16;
    // Only the first to come sets it.
    let _first = NEXT_PORT.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
    loop {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The signal of a terminal that goes away, unless these tests were told to ignore it, as those who start them are then.
pub(crate) fn hangup() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    if ignored & 1 == 0 { "-HUP" } else { "-TERM" }
}

/// The link's settings in numbers, from its HTTP port.
pub(crate) type Status = Json;

impl Link {
    /// Starts both sides, writes the configuration and runs `tidelock init`. Nothing runs yet.
    pub(crate) async fn new(setup: Setup) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let directory = Scratch::new("tidelock-test").unwrap();
        let server = PostgresServer::start(setup.server.clone()).await.unwrap();
        let org = Sandbox::start(
            sandbox::Config {
                clients: vec![Client::new(CLIENT.0, CLIENT.1, "integration@example.com")],
                seed: setup.seed,
                org: setup.objects.clone(),
                keepalive: setup.keepalive,
                ..sandbox::Config::default()
            },
            CancellationToken::new(),
        )
        .await
        .unwrap();
        let port = free_port();
        let initialise = setup.initialise;
        let link = Self {
            server,
            org,
            directory,
            process: None,
            setup,
            port,
            starts: AtomicUsize::new(0),
            barriers: AtomicUsize::new(0),
            _room: room,
        };
        std::fs::write(link.path("client_secret"), CLIENT.1).unwrap();
        link.configure();
        if initialise {
            link.ok(&["init"]);
        }
        link
    }

    /// A file in the link's own folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn config_path(&self) -> PathBuf {
        self.path("tidelock.toml")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.setup.log.clone().unwrap_or_else(|| self.path("log"))
    }

    /// The configuration's text with other mappings or settings.
    pub(crate) fn configuration(&self) -> String {
        let url = self.org.url();
        self.configuration_with(&self.server.endpoint(), &url)
    }

    pub(crate) fn configuration_with(&self, endpoint: &Endpoint, org: &str) -> String {
        let host = match &endpoint.host {
            Host::Unix(path) => path.display().to_string(),
            Host::Tcp(host) => host.clone(),
        };
        let (log, secret) = (self.log_path(), self.path("client_secret"));
        let Setup { link, postgres, replay, mappings, .. } = &self.setup;
        format!(
            "[link]\nname = \"test\"\nlog = \"{}\"\n{link}\n\
             [postgres]\nhost = \"{host}\"\nport = {}\ndbname = \"{}\"\nuser = \"{}\"\nheartbeat_seconds = 1\n{postgres}\n\
             [salesforce]\nlogin_url = \"{org}\"\npubsub_endpoint = \"{org}\"\nauth = \"client_credentials\"\n\
             client_id = \"{}\"\nclient_secret_file = \"{}\"\n\n\
             [http]\nlisten = \"127.0.0.1:{}\"\n\n[replay]\n{replay}\n{mappings}",
            log.display(),
            endpoint.port,
            endpoint.database,
            endpoint.user,
            CLIENT.0,
            secret.display(),
            self.port,
        )
    }

    /// Writes the configuration file anew, with other mappings.
    pub(crate) fn setup_mappings(&mut self, mappings: &str) {
        mappings.clone_into(&mut self.setup.mappings);
        self.configure();
    }

    /// Writes the configuration file anew, with other lines under `[postgres]`.
    pub(crate) fn setup_postgres(&mut self, lines: &str) {
        lines.clone_into(&mut self.setup.postgres);
        self.configure();
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&self) {
        std::fs::write(self.config_path(), self.configuration()).unwrap();
    }

    /// Runs a command of the real binary to its end.
    pub(crate) fn tidelock(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// A command of the real binary with this link's configuration.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.arg("--config").arg(self.config_path()).env_remove("TIDELOCK_LOG").stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let output = self.tidelock(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} ended with {}: {said}{}", output.status, printed(&output));
        printed(&output)
    }

    /// Runs a command that must succeed, with JSON as its output: one document.
    pub(crate) fn json(&self, arguments: &[&str]) -> Json {
        let text = self.ok(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?} printed {text:?}: {error}"))
    }

    /// Like [`Link::json`], with a document on each line.
    pub(crate) fn json_lines(&self, arguments: &[&str]) -> Vec<Json> {
        let text = self.ok(&[arguments, &["--output", "json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    // -- the process -------------------------------------------------------------------------------------------------------

    /// Starts `tidelock run` and returns at once.
    pub(crate) fn spawn(&mut self) {
        self.spawn_by(|command| command);
    }

    /// Starts `tidelock run`, as a command that may be changed before.
    pub(crate) fn spawn_by(&mut self, change: impl FnOnce(Command) -> Command) {
        assert!(self.process.is_none(), "it runs already");
        let n = self.starts.fetch_add(1, Ordering::Relaxed);
        let log = File::create(self.path(&format!("stderr-{n:03}"))).unwrap();
        let mut command = self.command();
        command.arg("run").env("TIDELOCK_LOG", "info").stdout(Stdio::null());
        let mut command = change(command);
        self.process = Some(command.stderr(log).spawn().unwrap());
    }

    /// Starts `tidelock run`; returns when both directions are connected.
    pub(crate) async fn start(&mut self) {
        self.spawn();
        self.wait_until("it is ready", |link| {
            if let Some(status) = link.exited() {
                panic!("tidelock run ended with {status}:\n{}", link.said_last());
            }
            link.get("/ready").is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    /// How the process ended, if it has.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(|process| process.try_wait().unwrap())
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Ends the process in order, by SIGTERM.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        let id = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        self.wait_for_exit().await
    }

    /// Waits until the process ends by itself.
    pub(crate) async fn wait_for_exit(&mut self) -> ExitStatus {
        let mut found = None;
        self.wait_until("it ends", |link| {
            found = link.exited();
            found.is_some()
        })
        .await;
        self.process = None;
        found.unwrap()
    }

    /// Everything that every start has written to standard error.
    pub(crate) fn said(&self) -> String {
        let starts = self.starts.load(Ordering::Relaxed);
        (0..starts).fold(String::new(), |mut all, n| {
            let text = std::fs::read_to_string(self.path(&format!("stderr-{n:03}"))).unwrap_or_default();
            all += &format!("-- start {n}\n{text}");
            all
        })
    }

    /// What the last start has written to standard error.
    pub(crate) fn said_last(&self) -> String {
        let n = self.starts.load(Ordering::Relaxed).saturating_sub(1);
        std::fs::read_to_string(self.path(&format!("stderr-{n:03}"))).unwrap_or_default()
    }

    /// Asks the link's HTTP port.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// `GET /status`, while it runs.
    pub(crate) fn status(&self) -> Option<Status> {
        serde_json::from_str(&self.get("/status").filter(|(status, _)| *status == 200)?.1).ok()
    }

    /// Waits for a condition, with a deadline.
    pub(crate) async fn wait_until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}; status: {:?}", self.status());
            sleep(Duration::from_millis(25)).await;
        }
    }

    // -- both sides --------------------------------------------------------------------------------------------------------

    /// Runs SQL in a session of its own.
    pub(crate) async fn sql(&self, statement: &str) {
        self.server.execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {}", error.explain()));
    }

    /// One value of a query.
    pub(crate) async fn value(&self, query: &str) -> Option<String> {
        self.server.value(query).await.unwrap_or_else(|error| panic!("{query}: {}", error.explain()))
    }

    /// Commits operations in the org in a person's name; their results.
    pub(crate) fn commit(&self, user: &str, operations: Json) -> Json {
        let body = json!({ "user": user, "operations": operations });
        let done = self.org.admin("POST", "/commit", &body).unwrap_or_else(|error| panic!("{}", error.explain()));
        done["results"].clone()
    }

    /// Creates a record in the org; its id.
    pub(crate) fn create(&self, object: &str, fields: Json) -> String {
        let done = self.commit("Ann Admin", json!([{ "op": "create", "object": object, "fields": fields }]));
        done[0]["id"].as_str().unwrap().to_owned()
    }

    /// Updates a record in the org; the values that it had.
    pub(crate) fn update(&self, object: &str, id: &str, fields: Json) -> Json {
        let done = self.commit("Bob Seller", json!([{ "op": "update", "object": object, "id": id, "fields": fields }]));
        done[0]["before"].clone()
    }

    /// All living records of an object in the org.
    pub(crate) fn records(&self, object: &str) -> Vec<Json> {
        let dump = self.org.admin("GET", &format!("/dump/{object}"), &Json::Null).unwrap();
        dump["records"].as_array().unwrap().clone()
    }

    /// A record of the org by its external id.
    pub(crate) fn record(&self, object: &str, external_id: &str) -> Option<Json> {
        self.records(object).into_iter().find(|r| r["External_ID__c"] == external_id)
    }

    /// Switches faults of the org.
    pub(crate) fn faults(&self, faults: Json) {
        self.org.admin("PATCH", "/faults", &faults).unwrap();
    }

    /// How many events the org has told so far.
    pub(crate) fn events_told(&self) -> u64 {
        self.org.admin("GET", "/stats", &Json::Null).unwrap()["events"]["told"].as_u64().unwrap()
    }

    /// The mappings as the binary compiles them.
    pub(crate) async fn catalog(&self) -> Catalog {
        let config = Config::load(&self.config_path()).unwrap();
        let org = app::salesforce(&config).unwrap();
        let described = app::describe(&config, &org).await.unwrap();
        app::compile(&config, &described, None, Scope::Present).unwrap()
    }

    /// Like [`Link::arrive`], and both sides are equal then.
    pub(crate) async fn settle(&mut self) -> Comparison {
        let catalog = self.catalog().await;
        self.settle_by(&catalog).await
    }

    /// The same by mappings that are known, so that the configured database is not asked for them.
    pub(crate) async fn settle_by(&mut self, catalog: &Catalog) -> Comparison {
        self.arrive().await;
        let session = Session::open(&self.server.endpoint()).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let quiet = self.status().is_some_and(|status| is_quiet(&status));
            let found = compare(catalog, &session, &self.org).await.unwrap();
            if quiet && found.differences.is_empty() {
                session.close().await.unwrap();
                return found;
            }
            assert!(Instant::now() < deadline, "not in step: {found:?}, status {:?}", self.status());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until everything that was done so far has been captured at both sides and replayed. What waits for a person may
    /// still differ.
    ///
    /// A value that is written to one side and has arrived at the other proves that the first one's stream was read up to
    /// there, since each stream is read in order.
    pub(crate) async fn arrive(&mut self) {
        let n = self.barriers.fetch_add(1, Ordering::Relaxed);
        let (from_postgres, from_salesforce) = (format!("postgres {n}"), format!("salesforce {n}"));
        let there = self.value("SELECT count(*) FROM salesforce.account WHERE external_id__c = 'barrier'").await;
        let statement = if there.as_deref() == Some("0") {
            format!(
                "INSERT INTO salesforce.account (name, external_id__c, site) VALUES ('Barrier', 'barrier', '{from_postgres}')"
            )
        } else {
            format!("UPDATE salesforce.account SET site = '{from_postgres}' WHERE external_id__c = 'barrier'")
        };
        self.sql(&statement).await;
        self.wait_until("the barrier from postgres arrives", |link| {
            link.record("Account", "barrier").is_some_and(|r| r["Site"] == from_postgres.as_str())
        })
        .await;
        let id = self.record("Account", "barrier").unwrap()["Id"].as_str().unwrap().to_owned();
        self.update("Account", &id, json!({ "Site": from_salesforce }));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let quiet = self.status().is_some_and(|status| is_quiet(&status));
            let site = self.value("SELECT site FROM salesforce.account WHERE external_id__c = 'barrier'").await;
            if quiet && site.as_deref() == Some(&from_salesforce) {
                return;
            }
            assert!(Instant::now() < deadline, "the barrier is {site:?}, not {from_salesforce}: {:?}", self.status());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Proves the log; the link may be running.
    pub(crate) fn verify(&self) {
        let report = self.json(&["log", "verify"]);
        assert_eq!(report["problems"], json!([]), "{report}");
    }

    /// The conflicts on record, decided ones too.
    pub(crate) fn conflicts(&self) -> Vec<Json> {
        self.json(&["conflicts", "list", "--all", "--initial-merge"]).as_array().unwrap().clone()
    }

    /// Everything that happened to one record.
    pub(crate) fn history(&self, record: &str) -> Vec<Json> {
        self.json(&["log", "history", record]).as_array().unwrap().clone()
    }
}

/// Whether neither direction has anything left to do.
pub(crate) fn is_quiet(status: &Status) -> bool {
    let done = |d: &Json| {
        d["lag_entries"] == 0
            && d["lag_seconds"].as_f64() == Some(0.0)
            && d["in_flight"] == 0
            && d["capture_connected"] == true
    };
    done(&status["to_salesforce"]) && done(&status["to_postgres"]) && status["queued"] == 0
}

/// Says that a test did nothing, past the test harness, which keeps `eprintln!` of tests that pass to itself.
pub(crate) fn say_skipped(why: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "\n*** SKIPPED: {why} ***"));
}

/// What a command printed to standard output.
pub(crate) fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command printed to standard error.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A random generator whose seed is told, so that a failure can be repeated.
pub(crate) struct Dice(u64);

impl Dice {
    /// From `TIDELOCK_SEED`, or the process id.
    pub(crate) fn new(what: &str) -> Self {
        let given = std::env::var("TIDELOCK_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("{what}: TIDELOCK_SEED={seed}");
        Self::of(seed)
    }

    pub(crate) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
