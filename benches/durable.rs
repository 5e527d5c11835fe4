//! How long after its commit a change is durable in the log: `cargo bench --bench durable`.
//!
//! One session of a private server commits a row `TIDELOCK_BENCH_TRANSACTIONS_PER_SECOND` times a second for
//! `TIDELOCK_BENCH_SECONDS`, each commit synced by the server, while Tidelock captures it all. A change's time runs from when its
//! commit was acknowledged until the log has synced it, and may be less than nothing: it counts as nothing then.

mod support;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use support::capturing::{Capturing, PUBLICATION};
use support::contact::{SCHEMA, TABLE};
use support::{Samples, failed, number, print_times, print_times_head};
use tidelock::change::Side;
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::error::Result;
use tidelock::postgres::{database_error, slot};

const SLOT: &str = "durable";
/// Rows that are updated in turn.
const ROWS: i64 = 10_000;
/// How long after the last commit it must be durable.
const DURABLE_WITHIN: Duration = Duration::from_secs(30);

const SCHEMA_OF_TABLE: &str = "
CREATE TABLE contact (id bigserial PRIMARY KEY, sfid varchar(18), firstname text, lastname text, email text, phone text,
    accountid varchar(18), amount numeric(18,2), systemmodstamp timestamptz, description text);
INSERT INTO contact (lastname, email, description)
    SELECT 'Last' || n, 'person' || n || '@example.com', md5(n::text) || ' ' || md5((n + 1)::text)
    FROM generate_series(1, 10000) n;";

fn main() -> ExitCode {
    if support::is_test() {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.explain());
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let per_second = number("TIDELOCK_BENCH_TRANSACTIONS_PER_SECOND", 200).max(1);
    let seconds = number("TIDELOCK_BENCH_SECONDS", 20).max(1);
    let rounds = number("TIDELOCK_BENCH_ROUNDS", 5).max(1);
    let server = PostgresServer::start(ServerSettings::default()).await?;
    let directory = server.directory().join("tidelock-log");
    support::print_machine(server.directory())?;
    server.execute(SCHEMA_OF_TABLE).await?;
    let session = server.session().await?;
    slot::ensure_publication(&session, PUBLICATION, &[(SCHEMA.into(), TABLE.into())]).await?;
    slot::ensure_slot(&session, SLOT).await?;
    session.close().await?;

    let mut capturing = Capturing::start(server.tcp_endpoint(), SLOT.into(), &directory).await?;
    let commits = Arc::new(Commits::default());
    let (mut status, seen) = (capturing.ledger.status(), Arc::clone(&commits));
    capturing.tasks.spawn("watch", async move {
        while status.changed().await.is_ok() {
            seen.durable(status.borrow_and_update().counts.changes[Side::Postgres.index()] as usize);
        }
        Ok(())
    });
    let cancel = capturing.cancel.clone();
    let measured = async {
        let measured = measure(&server, &commits, per_second, seconds, rounds).await;
        cancel.cancel();
        measured
    };
    let (measured, captured) = tokio::join!(measured, capturing.run());
    captured.and(measured)
}

/// When each commit was acknowledged and when it was durable, by its number.
#[derive(Default)]
struct Commits(Mutex<Times>);

#[derive(Default)]
struct Times {
    committed: Vec<Instant>,
    durable: Vec<Instant>,
}

impl Commits {
    fn with<T>(&self, work: impl FnOnce(&mut Times) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn committed(&self) {
        let now = Instant::now();
        self.with(|times| times.committed.push(now));
    }

    fn durable(&self, count: usize) {
        let now = Instant::now();
        self.with(|times| times.durable.resize(count, now));
    }

    /// The times of the commits from `first` on, in milliseconds, once all are durable.
    fn from(&self, first: usize) -> Option<Samples> {
        self.with(|times| {
            let all = times.durable.len() >= times.committed.len();
            let pairs = times.committed.iter().zip(&times.durable).skip(first);
            let mut samples = Samples::default();
            samples.extend_by(pairs.map(|(from, to)| to.saturating_duration_since(*from).as_secs_f64() * 1e3));
            all.then_some(samples)
        })
    }
}

async fn measure(server: &PostgresServer, commits: &Commits, per_second: u64, seconds: u64, rounds: u64) -> Result<()> {
    let failed_query = |e| database_error("editing a contact", e);
    let session = server.session().await?;
    let statement = session.prepare("UPDATE contact SET phone = $1 WHERE id = $2").await.map_err(failed_query)?;
    println!("{per_second} transactions/s, {rounds} rounds of {seconds} s\n");
    print_times_head();
    let mut n = 0;
    for round in 0..rounds {
        let first = n as usize;
        let mut beat = tokio::time::interval(Duration::from_secs(1) / per_second as u32);
        for _ in 0..per_second * seconds {
            beat.tick().await;
            n += 1;
            session.execute(&statement, &[&n.to_string(), &(1 + n % ROWS)]).await.map_err(failed_query)?;
            commits.committed();
        }
        print_times(&format!("commit -> durable, {}", round + 1), &settled(commits, first).await?, 2);
    }
    print_times("commit -> durable, all", &settled(commits, 0).await?, 2);
    session.close().await
}

async fn settled(commits: &Commits, first: usize) -> Result<Samples> {
    let since = Instant::now();
    loop {
        if let Some(samples) = commits.from(first) {
            return Ok(samples);
        }
        if since.elapsed() > DURABLE_WITHIN {
            return Err(failed(format!("not all commits are durable after {} s", DURABLE_WITHIN.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
