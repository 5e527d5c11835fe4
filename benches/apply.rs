//! How fast changes go from the change log into PostgreSQL: `cargo bench --bench apply`.
//!
//! `TIDELOCK_BENCH_ROWS` rows are changed in transactions of 100: 70 % updated, 20 % inserted, 10 % deleted, no row twice, in a
//! table of as many rows with a primary key and a unique Salesforce id. The changes are made once: in a private server that
//! publishes them, and, as if they had been captured from an org, in a change log. In turn two ways bring them to a fresh copy of
//! the table on a second private server: Tidelock replays the log, and the server itself subscribes (`CREATE SUBSCRIPTION`) to a
//! slot made before the changes. Tidelock is a process of its own, timed from its start until the last row is committed; a
//! subscription is timed from its creation until the last row shows. Each copy is then compared with the publisher's table.
//!
//! `TIDELOCK_BENCH_ROUNDS` says how often, `TIDELOCK_BENCH_DIRECTORY` on which disk the log is.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret as _, SecretString};
use support::contact::catalog;
use support::{Samples, failed, io, number, print_head, print_line, sample};
use tidelock::change::{FieldId, Key, Lsn, MappingId, Notice, Position, Side, Str, StreamId, Transaction, Value, Who};
use tidelock::clock;
use tidelock::config::Numbers;
use tidelock::demo::server::{PostgresServer, SUPERUSER, ServerSettings};
use tidelock::error::Result;
use tidelock::flow::{Batch, Event, Item, Own, Row, RowOperation};
use tidelock::ledger::{self, Ledger};
use tidelock::log::reader::ReaderPool;
use tidelock::log::{RocksLog, RocksOptions, SharedLog};
use tidelock::postgres::target::{PostgresTarget, TargetOptions};
use tidelock::postgres::{Endpoint, Host, Session, database_error, install};
use tidelock::replay::{Runner, Settings};
use tidelock::task::Tasks;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const PUBLICATION: &str = "bench";
/// What tells the program that it is to replay a log, and how.
const REPLAY: &str = "TIDELOCK_BENCH_REPLAY";
const EXPECTED: &str = "TIDELOCK_BENCH_EXPECTED";
const COMMITTED: &str = "committed";
/// Rows of a transaction: updated, deleted, inserted.
const UPDATES: u64 = 70;
const DELETES: u64 = 10;
const INSERTS: u64 = 20;
const CHANGED: u64 = UPDATES + DELETES + INSERTS;
/// Takes rows out of their order; no number of rows that makes sense is a multiple of it.
const STRIDE: u64 = 1_000_003;
/// The seconds of 2026-01-01 and of 2027-01-01 UTC.
const BEFORE: i64 = 1_767_225_600;
const AFTER: i64 = 1_798_761_600;
/// Events that the log takes in at once.
const EVENTS: usize = 2_000;
/// The longest that one run may take.
const PATIENCE: Duration = Duration::from_mins(10);

const TABLES: &str = "
CREATE TABLE contact (id bigserial PRIMARY KEY, sfid varchar(18), firstname text, lastname text, email text, phone text,
    accountid varchar(18), amount numeric(18,2), systemmodstamp timestamptz, description text);
CREATE UNIQUE INDEX hcu_idx_contact_sfid ON contact (sfid);
CREATE FUNCTION made(first bigint, last bigint) RETURNS SETOF contact LANGUAGE sql AS $$
    SELECT n, '003' || lpad(n::text, 12, '0') || 'AAA', 'First' || n % 1000, 'Last' || n, 'person' || n || '@example.com',
        '+49 30 ' || n * 7919, '001' || lpad((n % 50000)::text, 12, '0') || 'AAA', (n * 37 % 1000000)::numeric / 100,
        to_timestamp(1767225600 + n), 'What is to be said of contact ' || n || ' and of its dealings with us'
    FROM generate_series(first, last) n $$;
CREATE PROCEDURE change(rows bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 0 .. rows / 100 - 1 LOOP
        UPDATE contact SET phone = '+49 89 ' || id * 104729, amount = (id * 91 % 1000000)::numeric / 100,
            systemmodstamp = to_timestamp(1798761600 + id)
        WHERE id = ANY (ARRAY(SELECT 1 + i::bigint * 1000003 % rows FROM generate_series(t * 80, t * 80 + 69) i));
        DELETE FROM contact
        WHERE id = ANY (ARRAY(SELECT 1 + i::bigint * 1000003 % rows FROM generate_series(t * 80 + 70, t * 80 + 79) i));
        INSERT INTO contact SELECT * FROM made(rows + t * 20 + 1, rows + t * 20 + 20);
        COMMIT;
    END LOOP;
END $$;";
/// What a table holds but for the key, which each server gives itself, in a form to compare.
const CONTENT: &str = "SELECT count(*) || ' rows, ' || sum(hashtextextended(
    (sfid, firstname, lastname, email, phone, accountid, amount, systemmodstamp, description)::text, 0)) FROM contact";

fn main() -> ExitCode {
    if support::is_test() {
        return ExitCode::SUCCESS;
    }
    let done = match std::env::var_os(REPLAY) {
        Some(log) => runtime().and_then(|runtime| runtime.block_on(replay(Path::new(&log)))),
        None => runtime().and_then(|runtime| compare(&runtime)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.explain());
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> Result<Runtime> {
    Runtime::new().map_err(|e| io("start the runtime", e))
}

// -- the log ---------------------------------------------------------------------------------------------------------------

fn salesforce_id(n: u64) -> Str {
    format!("003{n:012}AAA").into()
}

fn cents(cents: u64) -> Value {
    Value::number(&format!("{}.{:02}", cents / 100, cents % 100)).unwrap_or_default()
}

/// The values of a row as `made` makes it.
fn made(n: u64) -> Vec<(FieldId, Value)> {
    let values = [
        Value::Text(salesforce_id(n)),
        Value::text(format!("First{}", n % 1000)),
        Value::text(format!("Last{n}")),
        Value::text(format!("person{n}@example.com")),
        Value::text(format!("+49 30 {}", n * 7919)),
        Value::text(format!("001{:012}AAA", n % 50_000)),
        cents(n * 37 % 1_000_000),
        Value::Timestamp((BEFORE + n as i64) * 1_000_000),
        Value::text(format!("What is to be said of contact {n} and of its dealings with us")),
    ];
    values.into_iter().enumerate().map(|(field, value)| (FieldId(field as u16), value)).collect()
}

/// The values that `change` sets.
fn changed(n: u64) -> Vec<(FieldId, Value)> {
    vec![
        (FieldId(4), Value::text(format!("+49 89 {}", n * 104_729))),
        (FieldId(6), cents(n * 91 % 1_000_000)),
        (FieldId(7), Value::Timestamp((AFTER + n as i64) * 1_000_000)),
    ]
}

/// Takes events into the log as they are made.
struct Intake<'a> {
    ledger: &'a Ledger,
    streams: [StreamId; 2],
    events: Vec<Event>,
    side: Side,
    transaction: u64,
    index: u32,
}

impl Intake<'_> {
    async fn add(
        &mut self,
        side: Side,
        operation: RowOperation,
        n: u64,
        fields: Vec<(FieldId, Value)>,
        last: bool,
    ) -> Result<()> {
        if side != self.side || self.events.len() >= EVENTS {
            self.flush().await?;
            self.side = side;
        }
        let id: Str = self.transaction.to_string().into();
        let (stream, index) = (self.streams[side.index()], self.index);
        let position = match side {
            Side::Postgres => Position::Postgres { stream, commit_lsn: Lsn(self.transaction), index },
            Side::Salesforce => Position::Salesforce { stream, replay_id: id.clone(), index },
        };
        let row = Row {
            mapping: MappingId(0),
            operation,
            key: (side == Side::Postgres).then(|| Key::from_parts([n.to_string().as_str()])),
            old_key: None,
            salesforce_id: Some(salesforce_id(n)),
            fields,
            own: Own::No,
        };
        let transaction = Transaction { id, index, last };
        let (committed_at, who) = (AFTER * 1_000_000, Who::default());
        self.events.push(Event { position, transaction, committed_at, who, item: Item::Row(row) });
        self.index += 1;
        if last {
            self.transaction += 1;
            self.index = 0;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let events = std::mem::take(&mut self.events);
        if events.is_empty() {
            return Ok(());
        }
        let batch = Batch { side: self.side, events };
        self.ledger.run(move |core| core.intake(&batch)).await.map(drop)
    }
}

/// Makes a log in which both sides held the same rows and Salesforce has changed them, with nothing written to PostgreSQL yet.
async fn prepare(directory: &Path, rows: u64) -> Result<()> {
    let log: SharedLog = Arc::new(RocksLog::open_or_create(directory, RocksOptions::default())?);
    let (ledger, thread) = ledger::start(log, clock::system())?;
    let streams = ledger
        .run(|core| {
            core.configure(&catalog(Some(Side::Salesforce)))?;
            Ok([core.open_stream(Side::Postgres, "bench")?.stream, core.open_stream(Side::Salesforce, "bench")?.stream])
        })
        .await?;
    let (events, side) = (Vec::new(), Side::Postgres);
    let mut writer = Intake { ledger: &ledger, streams, events, side, transaction: 1, index: 0 };
    for n in 1..=rows {
        writer.add(Side::Postgres, RowOperation::Backfill, n, made(n), true).await?;
    }
    for n in 1..=rows {
        writer.add(Side::Salesforce, RowOperation::Backfill, n, made(n), true).await?;
    }
    writer.flush().await?;
    // What both sides hold has been looked at already.
    ledger
        .run(|core| {
            let cursor = core.tail();
            core.notice(Notice::ReplayAt { side: Side::Postgres, cursor })
        })
        .await?;
    let place = |i: u64| 1 + i * STRIDE % rows;
    for t in 0..rows / CHANGED {
        let first = t * (UPDATES + DELETES);
        for i in first..first + UPDATES {
            let n = place(i);
            writer.add(Side::Salesforce, RowOperation::Update, n, changed(n), false).await?;
        }
        for i in first + UPDATES..first + UPDATES + DELETES {
            writer.add(Side::Salesforce, RowOperation::Delete, place(i), Vec::new(), false).await?;
        }
        for n in rows + t * INSERTS + 1..=rows + (t + 1) * INSERTS {
            let last = n == rows + (t + 1) * INSERTS;
            writer.add(Side::Salesforce, RowOperation::Insert, n, made(n), last).await?;
        }
    }
    writer.flush().await?;
    settle(directory).await?;
    drop(ledger);
    thread.join().map_err(|_| failed("the ledger panicked"))
}

/// Waits until the log's files stay as they are: its compactions belong to the capture that is not measured.
async fn settle(directory: &Path) -> Result<()> {
    let mut before = Vec::new();
    loop {
        let mut files: Vec<_> = fs::read_dir(directory)
            .map_err(|e| io("list the log", e))?
            .flatten()
            .map(|entry| (entry.file_name(), entry.metadata().map_or(0, |metadata| metadata.len())))
            .collect();
        files.sort();
        if files == before {
            return Ok(());
        }
        before = files;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).map_err(|e| io("create a directory", e))?;
    for entry in fs::read_dir(from).map_err(|e| io("list a directory", e))?.flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target).map_err(|e| io("copy a file", e))?;
        }
    }
    Ok(())
}

// -- the replay: a process of its own --------------------------------------------------------------------------------------

/// Replays a log until so many writes are committed, says so, and ends in order.
async fn replay(directory: &Path) -> Result<()> {
    let expected = number(EXPECTED, 0);
    let clock = clock::system();
    let log: SharedLog = Arc::new(RocksLog::open_or_create(directory, RocksOptions::default())?);
    let (ledger, thread) = ledger::start(Arc::clone(&log), Arc::clone(&clock))?;
    let readers = ReaderPool::start(log)?;
    let catalog = ledger.run(|core| Ok(Arc::clone(&core.meta().catalog))).await?;
    let target = PostgresTarget::new(endpoint_from_env(), catalog, TargetOptions::new("bench", "bench"));
    let runner =
        Runner::new(vec![target], ledger.clone(), readers.reader(), clock, Settings::default(), Arc::new(|| 0));
    let status = runner.status();
    let cancel = CancellationToken::new();
    let mut tasks = Tasks::new(cancel.clone());
    let stop = cancel.clone();
    tasks.spawn("replay", async move { runner.run(stop).await });
    tasks.spawn("wait", async move {
        while status.written() + status.refused() < expected {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        println!("{COMMITTED}");
        cancel.cancel();
        if status.refused() == 0 { Ok(()) } else { Err(failed("writes were refused")) }
    });
    tasks.run(Duration::from_mins(1)).await?;
    drop(ledger);
    drop(readers);
    thread.join().map_err(|_| failed("the ledger panicked"))
}

/// The server, from the variables that libpq goes by.
fn endpoint_from_env() -> Endpoint {
    let host = Host::Tcp(std::env::var("PGHOST").unwrap_or_default());
    let database = std::env::var("PGDATABASE").unwrap_or_default();
    let mut endpoint = Endpoint::new(host, database, SUPERUSER);
    endpoint.port = number("PGPORT", 5432) as u16;
    endpoint.password = std::env::var("PGPASSWORD").ok().map(SecretString::from);
    endpoint
}

// -- the comparison --------------------------------------------------------------------------------------------------------

/// What one run used.
struct Used {
    seconds: f64,
    /// Of the process that reads and sends: Tidelock, or the publisher's walsender.
    sender_cpu_seconds: f64,
    /// Of the server's process that changes the rows.
    server_cpu_seconds: f64,
    peak_mb: f64,
}

/// The runs of one way.
#[derive(Default)]
struct Runs {
    rate: Samples,
    sender_cpu: Samples,
    server_cpu: Samples,
    peak_mb: Samples,
}

impl Runs {
    fn add(&mut self, rows: u64, used: &Used) -> f64 {
        let rate = rows as f64 / used.seconds;
        self.rate.add(rate);
        self.sender_cpu.add(used.sender_cpu_seconds);
        self.server_cpu.add(used.server_cpu_seconds);
        self.peak_mb.add(used.peak_mb);
        rate
    }
}

fn compare(runtime: &Runtime) -> Result<()> {
    let rows = (number("TIDELOCK_BENCH_ROWS", 200_000) / CHANGED * CHANGED).max(1_000);
    let rounds = number("TIDELOCK_BENCH_ROUNDS", 5).max(1) as usize;
    let directory = std::env::var_os("TIDELOCK_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    support::print_machine(&directory)?;
    let directory = directory.join(format!("tidelock-bench-{}", std::process::id()));
    fs::create_dir(&directory).map_err(|e| io("create a directory", e))?;
    let compared = compare_in(runtime, &directory, rows, rounds);
    fs::remove_dir_all(&directory).map_err(|e| io("remove the logs", e))?;
    compared
}

fn compare_in(runtime: &Runtime, directory: &Path, rows: u64, rounds: usize) -> Result<()> {
    let bench = Bench::start(runtime, directory, rows, rounds)?;
    let version = bench.publisher.value("SELECT current_setting('server_version')")?;
    println!(
        "PostgreSQL {version}; {rows} rows changed in transactions of {CHANGED}; {rounds} pairs, each way first in turn\n"
    );
    let content = bench.publisher.value(CONTENT)?;
    let (mut ours, mut theirs, mut ratios) = (Runs::default(), Runs::default(), Samples::default());
    for round in 0..rounds {
        let first = round % 2 == 0;
        let mut rates = [0.0; 2];
        for tidelock in [first, !first] {
            let (database, session) = bench.copy()?;
            if tidelock {
                rates[0] = ours.add(rows, &bench.tidelock(&database)?);
            } else {
                rates[1] = theirs.add(rows, &bench.subscription(&session, round)?);
            }
            if session.value(CONTENT)? != content {
                return Err(failed("a copy differs from what it was to become"));
            }
            drop(session);
            bench.subscriber.execute(&format!("DROP DATABASE {database} WITH (FORCE)"))?;
        }
        ratios.add(rates[0] / rates[1]);
        println!(
            "pair {}: tidelock {:.0}/s, subscription {:.0}/s, ratio {:.2}",
            round + 1,
            rates[0],
            rates[1],
            rates[0] / rates[1]
        );
    }
    println!();
    print_head(&format!("{rows} rows"));
    print_line("tidelock, rows/s", &ours.rate, 0);
    print_line("tidelock, CPU s", &ours.sender_cpu, 2);
    print_line("tidelock, the server's session, CPU s", &ours.server_cpu, 2);
    print_line("tidelock, peak memory MB", &ours.peak_mb, 1);
    print_line("subscription, rows/s", &theirs.rate, 0);
    print_line("subscription, walsender CPU s", &theirs.sender_cpu, 2);
    print_line("subscription, apply worker CPU s", &theirs.server_cpu, 2);
    print_line("tidelock / subscription", &ratios, 2);
    Ok(())
}

/// A session that can be used without a runtime at hand.
struct Sql<'a> {
    runtime: &'a Runtime,
    session: Session,
}

impl<'a> Sql<'a> {
    fn open(runtime: &'a Runtime, server: &PostgresServer, database: &str) -> Result<Self> {
        let mut endpoint = server.endpoint();
        database.clone_into(&mut endpoint.database);
        Ok(Self { runtime, session: runtime.block_on(Session::open(&endpoint))? })
    }

    fn execute(&self, sql: &str) -> Result<()> {
        let done = self.runtime.block_on(self.session.batch_execute(sql));
        done.map_err(|e| database_error("running a statement", e))
    }

    /// The first value of the first row, as the server prints it.
    fn find(&self, sql: &str) -> Result<Option<String>> {
        let messages = self.runtime.block_on(self.session.simple_query(sql));
        let messages = messages.map_err(|e| database_error("running a query", e))?;
        Ok(messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        }))
    }

    fn value(&self, sql: &str) -> Result<String> {
        self.find(sql)?.ok_or_else(|| failed(format!("no answer to: {sql}")))
    }

    /// A process of the server, once there is one.
    fn process(&self, sql: &str) -> Result<Option<u32>> {
        for _ in 0..1_000 {
            if let Some(process) = self.find(sql)?.and_then(|pid| pid.parse().ok()) {
                return Ok(Some(process));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }
}

/// Both servers, and the prepared log.
struct Bench<'a> {
    runtime: &'a Runtime,
    /// Sessions before servers: they are dropped in this order.
    publisher: Sql<'a>,
    subscriber: Sql<'a>,
    publishing: PostgresServer,
    subscribing: PostgresServer,
    directory: &'a Path,
    log: PathBuf,
    rows: u64,
}

impl<'a> Bench<'a> {
    fn start(runtime: &'a Runtime, directory: &'a Path, rows: u64, rounds: usize) -> Result<Self> {
        let settings = || {
            ServerSettings::default()
                .with("max_replication_slots", "100")
                .with("shared_buffers", "512MB")
                .with("autovacuum", "off")
                .with("max_wal_size", "32GB")
                .with("checkpoint_timeout", "1d")
        };
        let publishing = runtime.block_on(PostgresServer::start(settings()))?;
        let subscribing = runtime.block_on(PostgresServer::start(settings()))?;
        let publisher = Sql::open(runtime, &publishing, SUPERUSER)?;
        let subscriber = Sql::open(runtime, &subscribing, SUPERUSER)?;
        let fill =
            format!("INSERT INTO contact SELECT * FROM made(1, {rows}); SELECT setval('contact_id_seq', {rows})");
        subscriber.execute("CREATE DATABASE base")?;
        let base = Sql::open(runtime, &subscribing, "base")?;
        for server in [&publisher, &base] {
            server.execute(TABLES)?;
            server.execute(&fill)?;
            server.execute("VACUUM FREEZE ANALYZE contact")?;
        }
        install(&base)?;
        drop(base);
        publisher.execute(&format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE contact"))?;
        for round in 0..rounds {
            publisher.value(&format!("SELECT pg_create_logical_replication_slot('round_{round}', 'pgoutput')"))?;
        }
        publisher.execute(&format!("CALL change({rows})"))?;
        support::warm(&publishing.directory().join("data/pg_wal"))?;
        let log = directory.join("prepared");
        runtime.block_on(prepare(&log, rows))?;
        Ok(Self { runtime, publisher, subscriber, publishing, subscribing, directory, log, rows })
    }

    /// A fresh copy of the table as it was before the changes.
    fn copy(&self) -> Result<(String, Sql<'a>)> {
        let database = "copy".to_owned();
        self.subscriber.execute(&format!("CREATE DATABASE {database} TEMPLATE base"))?;
        self.subscriber.execute("CHECKPOINT")?;
        let session = Sql::open(self.runtime, &self.subscribing, &database)?;
        session.value("SELECT sum(length(contact::text)) FROM contact")?;
        Ok((database, session))
    }

    fn tidelock(&self, database: &str) -> Result<Used> {
        let log = self.directory.join("replayed");
        copy_directory(&self.log, &log)?;
        let endpoint = self.subscribing.tcp_endpoint();
        let password = endpoint.password.as_ref().map(|p| p.expose_secret().to_owned()).unwrap_or_default();
        let program = std::env::current_exe().map_err(|e| io("find this program", e))?;
        let mut command = Command::new(program);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.subscribing.port().to_string());
        command.env("PGPASSWORD", password).env("PGDATABASE", database);
        command.env(REPLAY, &log).env(EXPECTED, self.rows.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let before = support::children_cpu_seconds();
        let started = Instant::now();
        let mut child = command.spawn().map_err(|e| io("start the replay", e))?;
        let ended = Arc::new(AtomicBool::new(false));
        let memory = sample(Arc::clone(&ended), child.id(), support::peak_memory_mb);
        let found = "SELECT pid FROM pg_stat_activity WHERE application_name = 'tidelock'";
        let server = self.subscriber.process(found)?.map(|pid| sample(Arc::clone(&ended), pid, support::cpu_seconds));
        let outcome = wait_for_line(&mut child);
        let seconds = started.elapsed().as_secs_f64();
        let status = child.wait().map_err(|e| io("wait for the replay", e))?;
        ended.store(true, Ordering::Relaxed);
        outcome?;
        if !status.success() {
            return Err(failed(format!("the replay failed: {status}")));
        }
        fs::remove_dir_all(&log).map_err(|e| io("remove a log", e))?;
        Ok(Used {
            seconds,
            sender_cpu_seconds: support::children_cpu_seconds() - before,
            server_cpu_seconds: server.map_or(f64::NAN, last),
            peak_mb: last(memory),
        })
    }

    fn subscription(&self, copy: &Sql<'_>, round: usize) -> Result<Used> {
        let endpoint = self.publishing.tcp_endpoint();
        let password = endpoint.password.as_ref().map(|p| p.expose_secret().to_owned()).unwrap_or_default();
        let port = self.publishing.port();
        let connection = format!("host=127.0.0.1 port={port} user={SUPERUSER} dbname={SUPERUSER} password={password}");
        let create = format!(
            "CREATE SUBSCRIPTION bench CONNECTION '{connection}' PUBLICATION {PUBLICATION} \
             WITH (create_slot = false, slot_name = 'round_{round}', copy_data = false)"
        );
        let ended = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        copy.execute(&create)?;
        let found = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'round_{round}'");
        let sender = self.publisher.process(&found)?.map(|pid| sample(Arc::clone(&ended), pid, support::cpu_seconds));
        let found = "SELECT pid FROM pg_stat_subscription";
        let server = copy.process(found)?.map(|pid| sample(Arc::clone(&ended), pid, support::cpu_seconds));
        let last_row = format!("SELECT 1 FROM contact WHERE id = {}", self.rows + self.rows / CHANGED * INSERTS);
        while copy.find(&last_row)?.is_none() {
            if started.elapsed() > PATIENCE {
                return Err(failed("the subscription does not come to its end"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let seconds = started.elapsed().as_secs_f64();
        ended.store(true, Ordering::Relaxed);
        let sender_cpu_seconds = sender.map_or(f64::NAN, last);
        let server_cpu_seconds = server.map_or(f64::NAN, last);
        copy.execute("DROP SUBSCRIPTION bench")?;
        Ok(Used { seconds, sender_cpu_seconds, server_cpu_seconds, peak_mb: f64::NAN })
    }
}

/// What `tidelock init` does for a table that is there.
fn install(base: &Sql<'_>) -> Result<()> {
    let mut wanted =
        install::Installation::new(&catalog(Some(Side::Salesforce)), "tidelock_bench", &[], Numbers::Numeric);
    wanted.tables.iter_mut().for_each(|table| table.statements.clear());
    base.runtime.block_on(async {
        let steps = install::plan(&base.session, &wanted).await?;
        for step in &steps {
            base.session.batch_execute(&step.sql).await.map_err(|e| database_error("installing", e))?;
        }
        Ok(())
    })
}

fn wait_for_line(child: &mut Child) -> Result<()> {
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line).map_err(|e| io("read what the replay says", e))?;
    }
    if line.trim() == COMMITTED { Ok(()) } else { Err(failed("the replay ended early")) }
}

fn last(sampler: JoinHandle<f64>) -> f64 {
    sampler.join().unwrap_or_default()
}
