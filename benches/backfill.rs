//! How fast the rows of a table that exists already go into the durable change log: `cargo bench --bench backfill`.
//!
//! A private server holds `TIDELOCK_BENCH_ROWS` contacts. For each round and each number of connections in turn there is a new slot and a new
//! log; timed is the copy, from its start until its last chunk is durable, while capture reads the stream in which it takes
//! its places. Beside it stands what one connection takes to read the same columns by one `COPY` and drop them.
//!
//! `TIDELOCK_BENCH_ROUNDS` says how often, `TIDELOCK_BENCH_DIRECTORY` on which disk the log is.

mod support;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use support::contact::{SCHEMA, TABLE, catalog};
use support::{Samples, failed, io, number, print_head, print_line};
use tidelock::change::Side;
use tidelock::clock;
use tidelock::demo::server::{PostgresServer, ServerSettings};
use tidelock::error::Result;
use tidelock::ledger;
use tidelock::log::{RocksLog, RocksOptions, SharedLog};
use tidelock::postgres::backfill::{Backfill, BackfillProgress, CopySessions};
use tidelock::postgres::capture::{Capture, CaptureConfig, CaptureHandle};
use tidelock::postgres::{database_error, slot};
use tidelock::task::Tasks;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

const PUBLICATION: &str = "bench";
const SLOT: &str = "bench";
/// Rows of a chunk, as a link has them.
const CHUNK_ROWS: usize = 1_000;
const CONNECTIONS: [usize; 4] = [1, 2, 4, 8];

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
    let rows = number("TIDELOCK_BENCH_ROWS", 200_000).max(1_000);
    let rounds = number("TIDELOCK_BENCH_ROUNDS", 5).max(1);
    let directory = std::env::var_os("TIDELOCK_BENCH_DIRECTORY").map_or_else(std::env::temp_dir, PathBuf::from);
    support::print_machine(&directory)?;
    let server = start(rows).await?;
    let version = server.value("SHOW server_version").await?.unwrap_or_default();
    println!("PostgreSQL {version}; {rows} rows in chunks of {CHUNK_ROWS}, {rounds} rounds\n");

    let mut rates = CONNECTIONS.map(|_| Samples::default());
    let mut read = Samples::default();
    for _ in 0..rounds {
        for (connections, rates) in CONNECTIONS.into_iter().zip(&mut rates) {
            rates.add(rows as f64 / copy(&server, &directory, connections, rows).await?.as_secs_f64());
        }
        read.add(rows as f64 / read_alone(&server).await?.as_secs_f64());
    }
    print_head("rows/s");
    for (connections, rates) in CONNECTIONS.into_iter().zip(&rates) {
        print_line(&format!("copied by {connections} connections"), rates, 0);
    }
    print_line("read and dropped", &read, 0);
    println!("\npeak memory of all runs: {:.1} MB", support::peak_memory_mb(std::process::id()).unwrap_or(f64::NAN));
    Ok(())
}

/// A server with the table, of which no stream tells.
async fn start(rows: u64) -> Result<PostgresServer> {
    let settings = ServerSettings::default().with("shared_buffers", "256MB").with("max_wal_size", "16GB");
    let server = PostgresServer::start(settings).await?;
    let fill = format!(
        "CREATE TABLE contact (id bigserial PRIMARY KEY, sfid varchar(18), firstname text, lastname text, email text, phone text, \
         accountid varchar(18), amount numeric(18,2), systemmodstamp timestamptz, description text); \
         INSERT INTO contact SELECT n, NULL, 'First' || n % 1000, 'Last' || n, 'person' || n || '@example.com', \
         '+49 30 ' || (random() * 1e12)::bigint, '001' || lpad((n % 50000)::text, 12, '0') || 'AAA', \
         (random() * 1e7)::numeric(18,2), now(), md5(n::text) || ' ' || md5((n + 1)::text) FROM generate_series(1, {rows}) n; \
         ANALYZE contact"
    );
    server.execute(&fill).await?;
    let session = server.session().await?;
    slot::ensure_publication(&session, PUBLICATION, &[(SCHEMA.into(), TABLE.into())]).await?;
    session.close().await?;
    Ok(server)
}

/// Copies the table into a new log; returns how long that took.
async fn copy(server: &PostgresServer, directory: &Path, connections: usize, rows: u64) -> Result<Duration> {
    let session = server.session().await?;
    slot::ensure_slot(&session, SLOT).await?;
    let directory = directory.join(format!("tidelock-bench-{}", std::process::id()));
    let clock = clock::system();
    let log: SharedLog = Arc::new(RocksLog::open_or_create(&directory, RocksOptions::default())?);
    let (ledger, thread) = ledger::start(log, Arc::clone(&clock))?;
    let catalog = catalog(None);
    let wanted = catalog.clone();
    let opened = ledger
        .run(move |core| {
            core.configure(&wanted)?;
            core.open_stream(Side::Postgres, "bench")
        })
        .await?;
    let mapping = catalog.mappings.first().cloned().ok_or_else(|| failed("no mapping"))?;
    let config = CaptureConfig {
        endpoint: server.tcp_endpoint(),
        slot: SLOT.into(),
        publication: PUBLICATION.into(),
        link: "bench".into(),
        stream: opened.stream,
        catalog: Arc::new(catalog),
        unread: Vec::new(),
        published: None,
        row_filters: false,
        spool: Some(directory.join("spool")),
        durable: None,
        timeline: None,
        heartbeat: None,
        clock,
    };
    let (handle, cancel) = (CaptureHandle::new(), CancellationToken::new());
    let mut tasks = Tasks::new(cancel.clone());
    let (to, stop, shared) = (ledger.clone(), cancel.clone(), handle.clone());
    tasks.spawn("capture", async move { Capture::new(config, shared).run(&to, stop).await });
    let backfill = Backfill::new(server.tcp_endpoint(), mapping, CHUNK_ROWS, handle)
        .through(CopySessions::new(server.tcp_endpoint(), connections));
    let (timed, time) = tokio::sync::oneshot::channel();
    tasks.spawn("copy", async move {
        let started = Instant::now();
        let done = backfill.run(BackfillProgress::default(), &cancel, |_| {}).await?;
        // The receiver waits below.
        let _taken = timed.send((started.elapsed(), done.rows));
        cancel.cancel();
        Ok(())
    });
    tasks.run(Duration::from_mins(1)).await?;
    let (took, copied) = time.await.map_err(|_| failed("the copy ended early"))?;
    drop(ledger);
    thread.join().map_err(|_| failed("the ledger panicked"))?;
    std::fs::remove_dir_all(&directory).map_err(|e| io("remove the log", e))?;
    slot::drop_slot(&session, SLOT).await?;
    session.close().await?;
    if copied == rows { Ok(took) } else { Err(failed(format!("{copied} rows copied, {rows} expected"))) }
}

/// Reads the table's mapped columns through one connection.
async fn read_alone(server: &PostgresServer) -> Result<Duration> {
    let session = server.session().await?;
    let started = Instant::now();
    let reading = |e| database_error("reading the table", e);
    let lines = session.copy_out("COPY contact TO STDOUT").await.map_err(reading)?;
    let mut lines = pin!(lines);
    while let Some(line) = lines.next().await {
        line.map_err(reading)?;
    }
    let took = started.elapsed();
    session.close().await?;
    Ok(took)
}
