//! How long a commit on one side takes to be visible on the other: `cargo bench --bench latency`.
//!
//! A whole link runs in this process, between a private server and the sandbox org. On each side one record is edited
//! `TIDELOCK_BENCH_CHANGES_PER_SECOND` times a second for `TIDELOCK_BENCH_SECONDS`, accounts in PostgreSQL and contacts in
//! Salesforce. A change's time runs from when its commit was acknowledged until the other side, asked every millisecond or
//! two, shows its value or a later one.

mod support;

use std::collections::{HashMap, VecDeque};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use support::{Samples, failed, number, print_times, print_times_head, until};
use tidelock::app::{self, Link};
use tidelock::config::Config;
use tidelock::demo::world::{Size, World};
use tidelock::error::Result;
use tidelock::postgres::{Session, database_error, install, slot};
use tidelock::sandbox::Running;
use tidelock::status::{Direction, Handle};
use tidelock::task::Tasks;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

const MAPPINGS: &str = r#"[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
fields = ["Name", "Phone", "Industry", "AnnualRevenue", "BillingCity", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
fields = ["FirstName", "LastName", "Email", "Phone", "Title", "MobilePhone", "External_ID__c"]
"#;
/// Records on each side that are edited in turn.
const RECORDS: u32 = 50;
/// The pause between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// How long after the last edit its value must show.
const VISIBLE_WITHIN: Duration = Duration::from_secs(30);

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
    let per_second = number("TIDELOCK_BENCH_CHANGES_PER_SECOND", 100).max(1);
    let seconds = number("TIDELOCK_BENCH_SECONDS", 20).max(1);
    let rounds = number("TIDELOCK_BENCH_ROUNDS", 5).max(1);
    let cancel = CancellationToken::new();
    let size = Size { accounts: RECORDS, contacts: RECORDS, opportunities: 0, cases: 0 };
    let world = World::start(size, &cancel).await?;
    support::print_machine(world.directory.path())?;
    let (_, config) = world.configure(MAPPINGS)?;
    install_into(&config).await?;
    let linger = config.replay.salesforce_linger_ms;

    let mut link = Tasks::new(cancel.clone());
    let (started, handle) = oneshot::channel();
    let (opened, stop) = (Link::open(config).await?, cancel.clone());
    link.spawn("link", async move {
        // The receiver waits below for as long as the link is starting.
        opened.run_with(stop, |handle| drop(started.send(handle))).await
    });
    let measured = tokio::select! {
        measured = async {
            let handle = handle.await.map_err(|_| failed("the link ended before it ran"))?;
            until("copying both sides", Duration::from_mins(2), async || at_rest(&handle).await).await?;
            println!("{per_second} changes/s on each side, {rounds} rounds of {seconds} s, changes gathered for Salesforce for {linger} ms\n");
            let measured = measure(&world, per_second, seconds, rounds).await;
            drop(handle);
            measured
        } => measured,
        ended = link.run(Duration::from_mins(1)) => ended.and_then(|()| Err(failed("the link ended early"))),
    };
    cancel.cancel();
    world.org.stop().await?;
    measured
}

/// What `tidelock init` does.
async fn install_into(config: &Config) -> Result<()> {
    let org = app::salesforce(config)?;
    let described = app::describe(config, &org).await?;
    let catalog = app::compile(config, &described, None, tidelock::mapping::Scope::Wanted)?;
    let postgres = &config.postgres;
    let wanted = install::Installation::new(&catalog, &postgres.publication, &described.sobjects, postgres.numbers);
    let mut session = Session::open(&app::endpoint(config)).await?;
    let steps = install::plan(&session, &wanted).await?;
    install::apply(&mut session, &steps).await?;
    slot::ensure_slot(&session, &postgres.slot).await?;
    session.close().await
}

/// Whether everything has been copied and nothing is under way.
async fn at_rest(handle: &Handle) -> Result<bool> {
    let figures = handle.figures().await?;
    let quiet = |d: &Direction| d.lag_entries == 0 && d.in_flight == 0;
    Ok(figures.backfills.len() >= 4
        && figures.backfills.iter().all(|b| b.finished)
        && quiet(&figures.to_salesforce)
        && quiet(&figures.to_postgres))
}

async fn measure(world: &World, per_second: u64, seconds: u64, rounds: u64) -> Result<()> {
    let session = Session::open(&world.server.tcp_endpoint()).await?;
    let looking = Session::open(&world.server.tcp_endpoint()).await?;
    let accounts = ids(&session, "account").await?;
    let contacts = ids(&session, "contact").await?;
    print_times_head();
    let mut all = [Samples::default(), Samples::default()];
    for round in 0..rounds {
        // Numbers only grow, so that a later value can be told from an earlier one.
        let first = 1_000_000 * (round + 1);
        let edits = Edits { first, count: per_second * seconds, every: Duration::from_secs(1) / per_second as u32 };
        let [out, back] = [Shared::default(), Shared::default()];
        let (to_salesforce, to_postgres, (), ()) = tokio::try_join!(
            watch_salesforce(&world.org, &out),
            watch_postgres(&looking, &back),
            edit_postgres(&session, &accounts, &edits, &out),
            edit_salesforce(&world.org, &contacts, &edits, &back),
        )?;
        print_times(&format!("PostgreSQL -> Salesforce, {}", round + 1), &to_salesforce, 1);
        print_times(&format!("Salesforce -> PostgreSQL, {}", round + 1), &to_postgres, 1);
        all[0].extend(&to_salesforce);
        all[1].extend(&to_postgres);
    }
    print_times("PostgreSQL -> Salesforce, all", &all[0], 1);
    print_times("Salesforce -> PostgreSQL, all", &all[1], 1);
    session.close().await?;
    looking.close().await
}

async fn ids(session: &Session, table: &str) -> Result<Vec<String>> {
    let sql = format!("SELECT sfid FROM salesforce.{table} WHERE sfid IS NOT NULL ORDER BY sfid");
    let rows = session.query(&sql, &[]).await.map_err(|e| database_error("reading the mirror", e))?;
    if rows.is_empty() { Err(failed("the mirror is empty")) } else { Ok(rows.iter().map(|row| row.get(0)).collect()) }
}

/// The edits of one side in one round.
struct Edits {
    first: u64,
    count: u64,
    every: Duration,
}

impl Edits {
    fn numbers(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.count
    }
}

/// Edits that are committed on one side and not yet seen on the other, by record.
#[derive(Default)]
struct Pending {
    records: HashMap<String, VecDeque<(u64, Instant)>>,
    times: Samples,
    /// When the last edit was made.
    finished: Option<Instant>,
}

#[derive(Default)]
struct Shared(Mutex<Pending>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Pending) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn committed(&self, id: &str, number: u64) {
        let now = Instant::now();
        self.with(|p| p.records.entry(id.to_owned()).or_default().push_back((number, now)));
    }

    /// The other side shows this number in a record, as of `at`.
    fn seen(&self, id: &str, number: u64, at: Instant) {
        self.with(|pending| {
            let Some(waiting) = pending.records.get_mut(id) else { return };
            let mut times = Vec::new();
            while let Some((_, since)) = waiting.pop_front_if(|(n, _)| *n <= number) {
                times.push(at.saturating_duration_since(since).as_secs_f64() * 1e3);
            }
            pending.records.retain(|_, waiting| !waiting.is_empty());
            for time in times {
                pending.times.add(time);
            }
        });
    }

    fn finish(&self) {
        self.with(|pending| pending.finished = Some(Instant::now()));
    }

    /// The records that are waited for; none at all once everything was seen.
    fn waiting(&self) -> Result<Option<Vec<String>>> {
        self.with(|pending| {
            let waiting: Vec<String> = pending.records.keys().cloned().collect();
            match pending.finished {
                Some(_) if waiting.is_empty() => Ok(None),
                Some(at) if at.elapsed() > VISIBLE_WITHIN => {
                    let text = format!("edits of {waiting:?} are not visible after {} s", VISIBLE_WITHIN.as_secs());
                    Err(failed(text))
                }
                _ => Ok(Some(waiting)),
            }
        })
    }

    fn take(&self) -> Samples {
        self.with(|pending| std::mem::take(&mut pending.times))
    }
}

async fn edit_postgres(session: &Session, accounts: &[String], edits: &Edits, pending: &Shared) -> Result<()> {
    let failed = |e| database_error("editing an account", e);
    let sql = "UPDATE salesforce.account SET phone = $1 WHERE sfid = $2";
    let statement = session.prepare(sql).await.map_err(failed)?;
    let mut beat = tokio::time::interval(edits.every);
    for (number, id) in edits.numbers().zip(accounts.iter().cycle()) {
        beat.tick().await;
        session.execute(&statement, &[&number.to_string(), id]).await.map_err(failed)?;
        pending.committed(id, number);
    }
    pending.finish();
    Ok(())
}

async fn edit_salesforce(org: &Running, contacts: &[String], edits: &Edits, pending: &Shared) -> Result<()> {
    let mut beat = tokio::time::interval(edits.every);
    for (number, id) in edits.numbers().zip(contacts.iter().cycle()) {
        beat.tick().await;
        let fields = json!({ "Phone": number.to_string() });
        let operation = json!({ "op": "update", "object": "Contact", "id": id, "fields": fields });
        org.admin("POST", "/commit", &json!({ "user": "Ann Admin", "operations": [operation] }))?;
        pending.committed(id, number);
    }
    pending.finish();
    Ok(())
}

async fn watch_salesforce(org: &Running, pending: &Shared) -> Result<Samples> {
    while let Some(waiting) = pending.waiting()? {
        if !waiting.is_empty() {
            let at = Instant::now();
            let dump = org.admin("GET", "/dump/Account", &Json::Null)?;
            for record in dump["records"].as_array().into_iter().flatten() {
                let number = record["Phone"].as_str().and_then(|text| text.parse().ok());
                if let (Some(id), Some(number)) = (record["Id"].as_str(), number) {
                    pending.seen(id, number, at);
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(pending.take())
}

async fn watch_postgres(session: &Session, pending: &Shared) -> Result<Samples> {
    let failed = |e| database_error("looking at the contacts", e);
    let sql = "SELECT sfid, phone FROM salesforce.contact WHERE sfid = ANY($1)";
    let statement = session.prepare(sql).await.map_err(failed)?;
    while let Some(waiting) = pending.waiting()? {
        if !waiting.is_empty() {
            for row in session.query(&statement, &[&waiting]).await.map_err(failed)? {
                let (id, phone): (&str, Option<&str>) = (row.get(0), row.get(1));
                if let Some(number) = phone.and_then(|text| text.parse().ok()) {
                    pending.seen(id, number, Instant::now());
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(pending.take())
}
