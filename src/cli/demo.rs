//! `tidelock demo`: two live sides, one log, nothing lost.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::app::{self, Link};
use crate::audit::{Conflict, Filter, Lens};
use crate::config::Config;
use crate::demo::compare::{Comparison, compare};
use crate::demo::edits::{self, Made};
use crate::demo::world::{Size, World};
use crate::error::{Error, Kind, Result};
use crate::ledger::verify;
use crate::postgres::connect::Session;
use crate::status::{Direction, Figures, Handle};

use super::output::{self, Output, entry_line, short};
use super::{Verdict, blocking};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// How long the edits go on, in seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Accounts in the org; contacts are three times as many, opportunities and cases as many.
    #[arg(long, default_value_t = 800)]
    accounts: u32,
}

/// What is mapped in the demo: four objects, and a policy of each kind.
const MAPPINGS: &str = r#"[[mapping]]
sobject = "Account"
external_id = "External_ID__c"
policy = "postgres_wins"
fields = ["Name", "Phone", "Industry", "AnnualRevenue", "NumberOfEmployees", "BillingCity", "External_ID__c"]

[[mapping]]
sobject = "Contact"
external_id = "External_ID__c"
delete = "delete_wins"
fields = [
  "FirstName",
  "LastName",
  "Email",
  { name = "Phone", policy = "last_write_wins" },
  { name = "Title", policy = "salesforce_wins" },
  { name = "Department", policy = "review" },
  "MobilePhone",
  "Birthdate",
  "External_ID__c",
  "AccountId",
  "Account.External_ID__c",
]

[[mapping]]
sobject = "Opportunity"
external_id = "External_ID__c"
fields = ["Name", "StageName", "Amount", "CloseDate", "AccountId", "External_ID__c"]

[[mapping]]
sobject = "Case"
table = "case"
external_id = "External_ID__c"
fields = ["Subject", "Status", "Priority", "ContactId", "External_ID__c"]
"#;

/// How often one edit is made on each side.
const EDIT_PAUSE: Duration = Duration::from_millis(20);
/// The longest that a quiet link may take to finish what it has.
const QUIET_WITHIN: Duration = Duration::from_mins(2);

struct Demo {
    output: Output,
    cancel: CancellationToken,
}

pub(super) async fn run(arguments: Arguments, output: Output, cancel: CancellationToken) -> Result<Verdict> {
    let demo = Demo { output, cancel: cancel.clone() };
    let ended = tokio::select! {
        biased;
        // The world is dropped with this future, which stops the server and the org and removes their files.
        () = cancel.cancelled() => None,
        done = demo.tour(&arguments) => Some(done),
    };
    match ended {
        // The org, too, hears that it is over, and the tour may fail of that first.
        Some(done) if done.is_ok() || !cancel.is_cancelled() => done,
        _ => {
            demo.say("stopped; the private PostgreSQL, the org and their files are gone")?;
            Ok(Verdict::Good)
        }
    }
}

impl Demo {
    fn say(&self, text: &str) -> Result<()> {
        if self.output.is_json() { Ok(()) } else { output::line(text) }
    }

    fn head(&self, text: &str) -> Result<()> {
        self.say(&format!("\n==> {text}"))
    }

    async fn tour(&self, arguments: &Arguments) -> Result<Verdict> {
        let n = arguments.accounts;
        let size = Size { accounts: n, contacts: n * 3, opportunities: n, cases: n };
        self.head("Two sides: a private PostgreSQL server and a Salesforce org (the sandbox)")?;
        let world = World::start(size, &self.cancel).await?;
        let (path, config) = world.configure(MAPPINGS)?;
        self.say(&format!(
            "PostgreSQL in {}; org {} at {}",
            world.server.directory().display(),
            world.org.org_id(),
            world.org.url()
        ))?;
        self.say(&format!(
            "{} accounts, {} contacts, {} opportunities, {} cases in the org; configuration in {}",
            size.accounts,
            size.contacts,
            size.opportunities,
            size.cases,
            path.display()
        ))?;

        self.head("tidelock init: mirror tables, triggers, publication and replication slot")?;
        let installed = super::init::install(&config, false, false).await?;
        self.say(&format!(
            "{} steps: tables {}",
            installed.steps.len(),
            installed
                .catalog
                .mappings
                .iter()
                .map(|m| format!("{}.{}", m.schema, m.table))
                .collect::<Vec<_>>()
                .join(", ")
        ))?;

        self.head("tidelock run: capture on both sides, then copying what exists")?;
        let mut running = Running::start(config.clone()).await?;
        running.during(async |handle| self.copy(handle, u64::from(size.accounts * 6)).await).await?;

        self.head(&format!("{} seconds of edits on both sides, clashes and deletes among them", arguments.seconds))?;
        let made = running.during(async |handle| self.edit(&world, handle, arguments.seconds).await).await?;
        self.say(&format!(
            "edits made: {} in PostgreSQL, {} in Salesforce; {} clashes, {} records created, {} deleted",
            made.postgres, made.salesforce, made.clashes, made.created, made.deleted
        ))?;

        self.head("The edits have stopped; what waits for a person is decided, and both sides come to rest")?;
        let session = Session::open(&world.server.endpoint()).await?;
        let catalog = Arc::new(installed.catalog);
        let comparison = running.during(async |handle| self.settle(handle, &world, &session, &catalog).await).await?;
        session.close().await?;
        running.stop().await?;
        if !comparison.differences.is_empty() {
            comparison.differences.iter().take(20).try_for_each(|difference| self.say(difference))?;
            return Err(Error::new(
                Kind::Internal,
                format!("the sides differ in {} places", comparison.differences.len()),
            ));
        }
        self.say(&format!(
            "equal field by field: {} records, {} values compared",
            comparison.records, comparison.values
        ))?;
        self.explain(&config, &made, &comparison).await
    }

    /// Shows the copying until it is complete and replayed.
    async fn copy(&self, handle: &Handle, total: u64) -> Result<()> {
        let bar = if self.output.is_json() { ProgressBar::hidden() } else { ProgressBar::new(total) };
        if let Ok(style) = ProgressStyle::with_template("copying {wide_bar} {human_pos}/{human_len} rows in the mirror")
        {
            bar.set_style(style);
        }
        loop {
            let figures = handle.figures().await?;
            bar.set_position(figures.to_postgres.written.min(total));
            if figures.backfills.len() >= 8 && figures.backfills.iter().all(|b| b.finished) && quiet(&figures) {
                bar.finish();
                return self.say(&format!(
                    "{} rows copied into the mirror, {} entries in the log",
                    figures.to_postgres.written, figures.log_entries
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn edit(&self, world: &World, handle: &Handle, seconds: u64) -> Result<Made> {
        let stop = self.cancel.child_token();
        let editing = edits::run(world.server.endpoint(), &world.org, EDIT_PAUSE, &stop);
        let showing = async {
            self.say("   s   PostgreSQL -> Salesforce               Salesforce -> PostgreSQL               conflicts  waiting")?;
            for second in 1..=seconds {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let f = handle.figures().await?;
                if second % 2 == 0 || second == seconds {
                    let side = |d: &Direction| {
                        format!("{:>6} changes {:>6} written {:>5.2} s", d.changes, d.written, d.lag_seconds)
                    };
                    self.say(&format!(
                        "{second:>4}   {}   {}   {:>9}  {:>7}",
                        side(&f.to_salesforce),
                        side(&f.to_postgres),
                        f.conflicts,
                        f.conflicts_open
                    ))?;
                }
            }
            stop.cancel();
            Ok::<(), Error>(())
        };
        let (made, shown) = tokio::join!(editing, showing);
        shown?;
        made
    }

    /// Decides what is parked, waits until nothing moves, and compares the sides themselves.
    async fn settle(
        &self,
        handle: &Handle,
        world: &World,
        session: &Session,
        catalog: &crate::change::Catalog,
    ) -> Result<Comparison> {
        let deadline = tokio::time::Instant::now() + QUIET_WITHIN;
        let mut decided = 0;
        loop {
            let open = handle.open_conflicts().await?;
            for conflict in &open {
                let side = if decided % 2 == 0 { "postgres" } else { "salesforce" };
                // An edit that was still on its way may have ended it meanwhile.
                match handle.resolve(conflict.conflict, json!({ "take": side }), "dana".into()).await {
                    Ok(()) => decided += 1,
                    Err(_) if handle.open_conflicts().await?.iter().all(|c| c.conflict != conflict.conflict) => {}
                    Err(error) => return Err(error),
                }
            }
            let figures = handle.figures().await?;
            if open.is_empty() && quiet(&figures) {
                let comparison = compare(catalog, session, &world.org).await?;
                if comparison.differences.is_empty() || tokio::time::Instant::now() > deadline {
                    self.say(&format!("{decided} conflicts were decided by a person (dana); nothing waits"))?;
                    return Ok(comparison);
                }
            } else if tokio::time::Instant::now() > deadline {
                return Err(Error::new(Kind::Internal, "the link did not come to rest in time"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn explain(&self, config: &Config, made: &Made, comparison: &Comparison) -> Result<Verdict> {
        self.head(
            "tidelock log verify: checksums, hash chain, no holes, state equals the fold, no edit lost in silence",
        )?;
        let directory = config.link.log.clone();
        let log = blocking(move || app::open_existing_log(&directory)).await?;
        let reading = Arc::clone(&log);
        let report = blocking(move || verify::verify(&*reading, &mut |_, _| {})).await?;
        self.say(&super::log::report_text(&report))?;
        let reading = Arc::clone(&log);
        let (conflicts, history, name) = blocking(move || {
            let lens = Lens::new(&*reading)?;
            let conflicts = lens.conflicts(true, false)?;
            let record = conflicts.iter().rev().find(|c| c.conflict_kind == "update_origin_differs").map(|c| c.record);
            let record = match record {
                Some(record) => Some(record),
                None => lens
                    .last(&Filter { kind: Some("change".into()), ..Filter::default() }, 1)?
                    .first()
                    .and_then(|e| e.record),
            };
            let name =
                record.and_then(|r| conflicts.iter().find(|c| c.record == r)).map_or_else(String::new, record_name);
            Ok((conflicts, record.map_or(Ok(Vec::new()), |r| lens.history(r, 200))?, name))
        })
        .await?;
        self.head(&format!("tidelock conflicts list --all: {} conflicts, the last ten", conflicts.len()))?;
        for conflict in conflicts.iter().rev().take(10).rev() {
            self.say(&conflict_line(conflict))?;
        }
        self.head(&format!("tidelock log history {name}: who, when, from what, to what"))?;
        for said in &history {
            self.say(&entry_line(said))?;
        }
        self.head("With your own database and org")?;
        self.say("tidelock init                 writes tidelock.toml; put in your database, org and mappings")?;
        self.say("tidelock init                 run again, makes the mirror, the publication and the slot")?;
        self.say("tidelock check                says what is missing on either side, and what to do")?;
        self.say(
            "tidelock run                  keeps both sides in step; status, log, conflicts, dead-letters look at it",
        )?;
        if self.output.is_json() {
            output::json(&json!({
                "edits": { "postgres": made.postgres, "salesforce": made.salesforce, "clashes": made.clashes },
                "records": comparison.records,
                "values": comparison.values,
                "differences": comparison.differences,
                "conflicts": conflicts,
                "verify": report,
            }))?;
        }
        Ok(if report.problems.is_empty() { Verdict::Good } else { Verdict::Problems })
    }
}

fn record_name(c: &Conflict) -> String {
    match &c.key {
        Some(key) => format!("{}/{key}", c.mapping),
        None => format!("#{}", c.record.0),
    }
}

fn conflict_line(c: &Conflict) -> String {
    format!(
        "{:>8}  {}  {:<16} {:<14} {:<22} {} stands, {} does not; {}",
        c.conflict,
        c.at.get(11..19).unwrap_or(&c.at),
        record_name(c),
        c.field,
        c.conflict_kind,
        short(&c.stands),
        short(&c.lost),
        c.decided_by
    )
}

/// Whether both directions have nothing left to do.
fn quiet(figures: &Figures) -> bool {
    let done = |d: &Direction| d.lag_entries == 0 && d.lag_seconds == 0.0 && d.in_flight == 0;
    done(&figures.to_salesforce) && done(&figures.to_postgres) && figures.queued == 0
}

/// A link that runs in this process.
struct Running {
    handle: Arc<Handle>,
    stop: CancellationToken,
    task: JoinSet<Result<()>>,
}

impl Running {
    async fn start(config: Config) -> Result<Self> {
        let stop = CancellationToken::new();
        let link = Link::open(config).await?;
        let (started, handle) = oneshot::channel();
        let mut task = JoinSet::new();
        let cancel = stop.clone();
        task.spawn(async move {
            link.run_with(cancel, |handle| {
                // Who asked may have gone.
                drop(started.send(handle));
            })
            .await
        });
        match handle.await {
            Ok(handle) => Ok(Self { handle, stop, task }),
            Err(_) => Err(ended(&mut task).await),
        }
    }

    /// Does `work` while the link runs; if the link ends meanwhile, its error is the answer.
    async fn during<T>(&mut self, work: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
        let handle = Arc::clone(&self.handle);
        tokio::select! {
            error = ended(&mut self.task) => Err(error),
            done = work(&handle) => match done {
                // The link is being closed: why is its to say.
                Err(error) if error.kind() == Kind::Cancelled => Err(ended(&mut self.task).await),
                done => done,
            },
        }
    }

    async fn stop(mut self) -> Result<()> {
        drop(self.handle);
        self.stop.cancel();
        match self.task.join_next().await {
            Some(Ok(result)) => result,
            _ => Err(Error::new(Kind::Internal, "the link panicked; this is a bug in Tidelock")),
        }
    }
}

/// Why the link ended, though nobody asked it to.
async fn ended(task: &mut JoinSet<Result<()>>) -> Error {
    match task.join_next().await {
        Some(Ok(Err(error))) => error,
        _ => Error::new(Kind::Internal, "the link ended unasked; this is a bug in Tidelock"),
    }
}
