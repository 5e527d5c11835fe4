//! How fast changes go from PostgreSQL's write-ahead log into the durable change log: `cargo bench --bench capture`.
//!
//! A private server is filled in transactions of 100 rows: `TIDELOCK_BENCH_ROWS` inserts, then half as many updates of random
//! rows. A slot for each run was made before, so every run drains the same stream, by TCP and from the start. In turn drain
//! it Tidelock's capture, whose every batch is synced to disk before it is acknowledged, and `pg_recvlogical`, which comes with the
//! server and writes the raw stream to /dev/null. Each is a process of its own, timed from its start until the last commit
//! is durable (Tidelock) or has arrived (pg_recvlogical). Last, Tidelock drains as many inserts in one transaction.
//!
//! `TIDELOCK_BENCH_ROUNDS` says how often, `TIDELOCK_BENCH_DIRECTORY` on which disk the log is.

mod support;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret as _, SecretString};
use support::capturing::{Capturing, PUBLICATION};
use support::contact::{SCHEMA, TABLE};
use support::{Samples, failed, io, number, print_head, print_line, sample};
use tidelock::change::Side;
use tidelock::demo::server::{PostgresServer, SUPERUSER, ServerSettings};
use tidelock::error::Result;
use tidelock::postgres::{Endpoint, Host, slot};
use tokio::runtime::Runtime;

/// What tells the program that it is to drain a slot, and how.
const CONSUME: &str = "TIDELOCK_BENCH_CONSUME";
const EXPECTED: &str = "TIDELOCK_BENCH_EXPECTED";
const LOG: &str = "TIDELOCK_BENCH_LOG";
const DURABLE: &str = "durable";

const TABLES: &str = "
CREATE TABLE contact (id bigserial PRIMARY KEY, sfid varchar(18), firstname text, lastname text, email text, phone text,
    accountid varchar(18), amount numeric(18,2), systemmodstamp timestamptz, description text);
CREATE FUNCTION fresh(bigint) RETURNS SETOF contact LANGUAGE sql AS $$
    SELECT nextval('contact_id_seq'), NULL, 'First' || n % 1000, 'Last' || n, 'person' || n || '@example.com',
        '+49 30 ' || (random() * 1e12)::bigint, '001' || lpad((n % 50000)::text, 12, '0') || 'AAA',
        (random() * 1e7)::numeric(18,2), now(), md5(n::text) || ' ' || md5((n + 1)::text)
    FROM generate_series(1, $1) n $$;
CREATE PROCEDURE fill(inserts bigint, updates bigint, INOUT total bigint) LANGUAGE plpgsql AS $$
DECLARE touched bigint;
BEGIN
    FOR n IN 1 .. inserts / 100 LOOP
        INSERT INTO contact SELECT * FROM fresh(100);
        COMMIT;
    END LOOP;
    total := inserts / 100 * 100;
    FOR n IN 1 .. updates / 100 LOOP
        UPDATE contact SET phone = '+49 89 ' || (random() * 1e15)::bigint, amount = (random() * 1e7)::numeric(18,2),
            systemmodstamp = now()
        WHERE id IN (SELECT 1 + floor(random() * inserts)::bigint FROM generate_series(1, 100));
        GET DIAGNOSTICS touched = ROW_COUNT;
        total := total + touched;
        COMMIT;
    END LOOP;
END $$;";

fn main() -> ExitCode {
    if support::is_test() {
        return ExitCode::SUCCESS;
    }
    let done = match std::env::var(CONSUME) {
        Ok(slot) => runtime().and_then(|runtime| runtime.block_on(consume(slot))),
        Err(_) => runtime().and_then(|runtime| compare(&runtime)),
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

// -- the consumer: a process of its own ------------------------------------------------------------------------------------

/// Drains a slot into a new log until so many changes are durable, says so, and ends in order.
async fn consume(slot: String) -> Result<()> {
    let expected = number(EXPECTED, 0);
    let directory = std::env::var_os(LOG).map(PathBuf::from).ok_or_else(|| failed("no directory for the log"))?;
    let mut capturing = Capturing::start(endpoint_from_env(), slot, &directory).await?;
    let mut status = capturing.ledger.status();
    let cancel = capturing.cancel.clone();
    capturing.tasks.spawn("wait", async move {
        let all = status.wait_for(|s| s.counts.changes[Side::Postgres.index()] >= expected).await;
        all.map_err(|_| failed("the log was closed too early"))?;
        println!("{DURABLE}");
        cancel.cancel();
        Ok(())
    });
    let captured = capturing.run().await?;
    if captured == expected { Ok(()) } else { Err(failed(format!("{captured} changes captured, {expected} expected"))) }
}

/// The server, from the same variables that pg_recvlogical goes by.
fn endpoint_from_env() -> Endpoint {
    let host = Host::Tcp(std::env::var("PGHOST").unwrap_or_default());
    let mut endpoint = Endpoint::new(host, SUPERUSER, SUPERUSER);
    endpoint.port = number("PGPORT", 5432) as u16;
    endpoint.password = std::env::var("PGPASSWORD").ok().map(SecretString::from);
    endpoint
}

// -- the comparison --------------------------------------------------------------------------------------------------------

/// What one run used.
struct Used {
    seconds: f64,
    cpu_seconds: f64,
    walsender_cpu_seconds: f64,
    peak_mb: f64,
}

/// The runs of one consumer.
#[derive(Default)]
struct Runs {
    rate: Samples,
    cpu: Samples,
    walsender_cpu: Samples,
    peak_mb: Samples,
}

impl Runs {
    fn add(&mut self, changes: u64, used: &Used) -> f64 {
        let rate = changes as f64 / used.seconds;
        self.rate.add(rate);
        self.cpu.add(used.cpu_seconds);
        self.walsender_cpu.add(used.walsender_cpu_seconds);
        self.peak_mb.add(used.peak_mb);
        rate
    }

    fn print(&self, name: &str) {
        print_line(&format!("{name}, changes/s"), &self.rate, 0);
        print_line(&format!("{name}, CPU s"), &self.cpu, 2);
        print_line(&format!("{name}, walsender CPU s"), &self.walsender_cpu, 2);
        print_line(&format!("{name}, peak memory MB"), &self.peak_mb, 1);
    }
}

fn compare(runtime: &Runtime) -> Result<()> {
    let rows = number("TIDELOCK_BENCH_ROWS", 200_000).max(1_000);
    let rounds = number("TIDELOCK_BENCH_ROUNDS", 5).max(1) as usize;
    let directory = std::env::var_os("TIDELOCK_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    support::print_machine(&directory)?;
    let bench = Bench::start(runtime, directory)?;
    let version = bench.value("SELECT current_setting('server_version')")?;
    println!("PostgreSQL {version}; {rows} inserts and {} updates in transactions of 100 rows", rows / 2);

    for round in 0..rounds {
        bench.make_slot(&format!("ours_{round}"))?;
        bench.make_slot(&format!("theirs_{round}"))?;
    }
    let changes = bench.value(&format!("CALL fill({rows}, {}, NULL)", rows / 2))?;
    let changes: u64 = changes.parse().map_err(|_| failed("the load did not say how many changes it made"))?;
    let end = bench.value("SELECT pg_current_wal_insert_lsn()")?;
    support::warm(&bench.server.directory().join("data/pg_wal"))?;
    println!("{changes} changes; {rounds} pairs, each consumer first in turn\n");

    let (mut ours, mut theirs, mut ratios) = (Runs::default(), Runs::default(), Samples::default());
    for round in 0..rounds {
        let first = round % 2 == 0;
        let mut rates = [0.0; 2];
        for tidelock in [first, !first] {
            if tidelock {
                rates[0] = ours.add(changes, &bench.tidelock(&format!("ours_{round}"), changes)?);
            } else {
                rates[1] = theirs.add(changes, &bench.pg_recvlogical(&format!("theirs_{round}"), &end)?);
            }
        }
        ratios.add(rates[0] / rates[1]);
        println!(
            "pair {}: tidelock {:.0}/s, pg_recvlogical {:.0}/s, ratio {:.2}",
            round + 1,
            rates[0],
            rates[1],
            rates[0] / rates[1]
        );
    }
    println!();
    print_head(&format!("{changes} changes"));
    ours.print("tidelock");
    theirs.print("pg_recvlogical");
    print_line("tidelock / pg_recvlogical", &ratios, 2);

    bench.make_slot("large")?;
    bench.value(&format!(
        "WITH made AS (INSERT INTO contact SELECT * FROM fresh({rows}) RETURNING 1) SELECT count(*) FROM made"
    ))?;
    let used = bench.tidelock("large", rows)?;
    println!(
        "\none transaction of {rows} inserts: {:.0} changes/s, CPU {:.2} s, walsender CPU {:.2} s, peak memory {:.1} MB",
        rows as f64 / used.seconds,
        used.cpu_seconds,
        used.walsender_cpu_seconds,
        used.peak_mb
    );
    Ok(())
}

/// The server and where logs are.
struct Bench<'a> {
    runtime: &'a Runtime,
    server: PostgresServer,
    directory: PathBuf,
}

impl<'a> Bench<'a> {
    fn start(runtime: &'a Runtime, directory: PathBuf) -> Result<Self> {
        let settings = ServerSettings::default()
            .with("max_replication_slots", "100")
            .with("shared_buffers", "256MB")
            .with("synchronous_commit", "off")
            .with("autovacuum", "off")
            .with("max_wal_size", "16GB")
            .with("checkpoint_timeout", "1d");
        let server = runtime.block_on(PostgresServer::start(settings))?;
        let bench = Self { runtime, server, directory };
        runtime.block_on(async {
            bench.server.execute(TABLES).await?;
            let session = bench.server.session().await?;
            slot::ensure_publication(&session, PUBLICATION, &[(SCHEMA.into(), TABLE.into())]).await?;
            session.close().await
        })?;
        Ok(bench)
    }

    fn value(&self, sql: &str) -> Result<String> {
        let value = self.runtime.block_on(self.server.value(sql))?;
        value.ok_or_else(|| failed(format!("no answer to: {sql}")))
    }

    fn make_slot(&self, name: &str) -> Result<()> {
        self.value(&format!("SELECT lsn FROM pg_create_logical_replication_slot('{name}', 'pgoutput')")).map(drop)
    }

    /// A command with the server's address and password in its environment.
    fn command(&self, program: &Path) -> Command {
        let endpoint = self.server.tcp_endpoint();
        let password = endpoint.password.as_ref().map(|p| p.expose_secret().to_owned()).unwrap_or_default();
        let mut command = Command::new(program);
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.server.port().to_string()).env("PGPASSWORD", password);
        command.stdin(Stdio::null());
        command
    }

    fn tidelock(&self, slot: &str, expected: u64) -> Result<Used> {
        let log = self.directory.join(format!("tidelock-bench-{}-{slot}", std::process::id()));
        let program = std::env::current_exe().map_err(|e| io("find this program", e))?;
        let mut command = self.command(&program);
        command.env(CONSUME, slot).env(EXPECTED, expected.to_string()).env(LOG, &log).stdout(Stdio::piped());
        let used = self.watch(command, slot, |child| {
            let mut line = String::new();
            if let Some(output) = child.stdout.take() {
                BufReader::new(output).read_line(&mut line).map_err(|e| io("read what the consumer says", e))?;
            }
            if line.trim() == DURABLE { Ok(()) } else { Err(failed("the consumer ended early")) }
        });
        std::fs::remove_dir_all(&log).map_err(|e| io("remove the log", e))?;
        used
    }

    fn pg_recvlogical(&self, slot: &str, end: &str) -> Result<Used> {
        let mut command = self.command(&self.server.bin().join("pg_recvlogical"));
        command.args(["--start", "--no-loop", "--no-password", "--file", "/dev/null", "--slot", slot, "--endpos", end]);
        command.args(["--username", SUPERUSER, "--dbname", SUPERUSER]);
        command.args(["--option", "proto_version=1", "--option", &format!("publication_names={PUBLICATION}")]);
        self.watch(command, slot, |child| child.wait().map(drop).map_err(|e| io("wait for pg_recvlogical", e)))
    }

    /// Runs a consumer: until `done` returns for the time, until it ends for what it used.
    fn watch(&self, mut command: Command, slot: &str, done: impl FnOnce(&mut Child) -> Result<()>) -> Result<Used> {
        let before = support::children_cpu_seconds();
        let started = Instant::now();
        let mut child = command.spawn().map_err(|e| io("start a consumer", e))?;
        let ended = Arc::new(AtomicBool::new(false));
        let memory = sample(Arc::clone(&ended), child.id(), support::peak_memory_mb);
        let walsender = self.walsender(slot)?.map(|process| sample(Arc::clone(&ended), process, support::cpu_seconds));
        let outcome = done(&mut child);
        let seconds = started.elapsed().as_secs_f64();
        let status = child.wait().map_err(|e| io("wait for a consumer", e))?;
        ended.store(true, Ordering::Relaxed);
        outcome?;
        if !status.success() {
            return Err(failed(format!("the consumer of {slot} failed: {status}")));
        }
        let last = |sampler: JoinHandle<f64>| sampler.join().unwrap_or_default();
        Ok(Used {
            seconds,
            cpu_seconds: support::children_cpu_seconds() - before,
            walsender_cpu_seconds: walsender.map_or(f64::NAN, last),
            peak_mb: last(memory),
        })
    }

    /// The server's process that streams from the slot, once there is one.
    fn walsender(&self, slot: &str) -> Result<Option<u32>> {
        let sql = format!("SELECT coalesce(max(active_pid), 0) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        for _ in 0..100 {
            let process: u32 = self.value(&sql)?.parse().unwrap_or_default();
            if process != 0 {
                return Ok(Some(process));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(None)
    }
}
