//! `tidelock init`: a first configuration, or what the configuration needs in the database.

use std::path::Path;

use serde_json::json;

use crate::app::{self, Evolution};
use crate::change::Catalog;
use crate::config::{self, Capture, Config};
use crate::error::{Error, Kind, Result};
use crate::mapping::{Difference, Scope};
use crate::postgres::connect::Session;
use crate::postgres::{install, slot};

use super::output::{self, Output};
use super::{Verdict, blocking};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Shows what would be run in the database, and runs nothing.
    #[arg(long)]
    dry_run: bool,
    /// Makes existing columns wider too, where the org's fields have become so: everything that `tidelock plan` shows a
    /// statement for.
    #[arg(long)]
    apply: bool,
}

pub(super) async fn run(arguments: Arguments, path: &Path, output: Output) -> Result<Verdict> {
    if !path.exists() {
        return first_configuration(path, output);
    }
    let config = super::load(path)?;
    let altered = if arguments.apply { alter(&config, arguments.dry_run).await? } else { Altered::default() };
    let done = match install(&config, arguments.dry_run, arguments.apply).await {
        Ok(done) => done,
        Err(error) => {
            // What was done is told, whatever the rest comes to.
            altered.tell(&arguments, output)?;
            return Err(error);
        }
    };
    let verdict = if altered.failed.is_empty() { Verdict::Good } else { Verdict::Problems };
    if output.is_json() {
        output::json(
            &json!({ "applied": !arguments.dry_run, "altered": altered.done, "failed": altered.failures(), "steps": done.steps, "slot": done.slot,
                "slot_was_missing": done.slot_was_missing, "slot_was_there": done.slot_was_there }),
        )?;
        return Ok(verdict);
    }
    show(altered.done.iter().chain(&done.steps), &altered.failed)?;
    let schema = &config.postgres.schema;
    if arguments.dry_run && done.slot_was_missing {
        output::line(&format!("-- and the replication slot {} is made\n", done.slot))?;
    }
    if arguments.dry_run && done.slot_was_there {
        output::line(&format!("-- and the replication slot {} is dropped: triggers capture changes\n", done.slot))?;
    }
    let count = altered.done.len() + done.steps.len();
    let to_do = count > 0 || done.slot_was_missing || done.slot_was_there;
    output::line(&match (arguments.dry_run, to_do) {
        (true, false) => format!("nothing to do: the schema {schema} has everything that capture needs"),
        (true, true) => "nothing was run; leave out --dry-run to run it".into(),
        (false, _) if config.postgres.capture == Capture::Trigger => format!(
            "{count} steps run; triggers log changes in {schema}._trigger_log; `tidelock check`, then `tidelock run`",
        ),
        (false, _) => format!(
            "{count} steps run; publication {} and slot {} are there; `tidelock check`, then `tidelock run`",
            config.postgres.publication, config.postgres.slot
        ),
    })?;
    Ok(verdict)
}

fn first_configuration(path: &Path, output: Output) -> Result<Verdict> {
    std::fs::write(path, config::example())
        .map_err(|e| Error::new(Kind::Storage, format!("cannot write {}", path.display())).caused_by(e))?;
    if output.is_json() {
        output::json(&json!({ "written": path }))?;
    } else {
        output::line(&format!(
            "wrote {}: fill in your database, org and mappings, then run `tidelock init` again to create the mirror",
            path.display()
        ))?;
    }
    Ok(Verdict::Good)
}

/// What an installation did, or would do.
pub(crate) struct Installed {
    /// The steps.
    pub(crate) steps: Vec<install::Step>,
    /// The slot's name.
    pub(crate) slot: String,
    /// Whether there was no such slot, and is to be one.
    pub(crate) slot_was_missing: bool,
    /// Whether there was such a slot, and is to be none.
    pub(crate) slot_was_there: bool,
    /// The catalog that the tables were made for.
    pub(crate) catalog: Catalog,
}

/// What was, or would be, done to columns of tables that are there.
#[derive(Default)]
struct Altered {
    done: Vec<install::Step>,
    failed: Vec<(String, String)>,
}

impl Altered {
    fn failures(&self) -> Vec<serde_json::Value> {
        self.failed.iter().map(|(sql, error)| json!({ "sql": sql, "error": error })).collect()
    }

    fn tell(&self, arguments: &Arguments, output: Output) -> Result<()> {
        if self.done.is_empty() && self.failed.is_empty() {
            return Ok(());
        }
        if output.is_json() {
            let told = json!({ "applied": !arguments.dry_run, "altered": self.done, "failed": self.failures() });
            return output::json(&told);
        }
        show(self.done.iter(), &self.failed)
    }
}

fn show<'a>(steps: impl Iterator<Item = &'a install::Step>, failed: &[(String, String)]) -> Result<()> {
    for step in steps {
        output::line(&format!("-- {}\n{};\n", step.reason, step.sql.trim_end().trim_end_matches(';')))?;
    }
    for (sql, error) in failed {
        output::line(&format!("-- FAILED, and nothing of it took effect: {error}\n-- {sql};\n"))?;
    }
    Ok(())
}

/// Makes columns fit the org's fields, as far as that takes nothing away.
async fn alter(config: &Config, dry_run: bool) -> Result<Altered> {
    let org = app::salesforce(config)?;
    let evolution = app::compare(config, &org, in_force(config).await?.as_ref()).await?;
    let step = |difference: &Difference| {
        let (sql, _) = difference.statement()?;
        Some(install::Step { reason: difference.message.clone(), sql: sql.to_owned() })
    };
    if dry_run {
        return Ok(Altered { done: evolution.differences.iter().filter_map(step).collect(), failed: Vec::new() });
    }
    let mut altered = Altered::default();
    for (difference, error) in app::alter(config, &evolution.differences, None).await? {
        match (error, step(difference)) {
            (Some(error), Some(step)) => altered.failed.push((step.sql, error.explain())),
            (None, Some(step)) => altered.done.push(step),
            (_, None) => {}
        }
    }
    Ok(altered)
}

/// The mappings and rules that the link's log has in force.
pub(super) async fn in_force(config: &Config) -> Result<Option<Catalog>> {
    let directory = config.link.log.clone();
    blocking(move || app::catalog_in_force(&directory)).await
}

/// What a database lacks besides columns of tables that are there.
#[derive(Default)]
pub(super) struct Todo {
    /// The statements.
    pub(super) steps: Vec<install::Step>,
    /// Whether the slot is to be made.
    pub(super) slot_is_missing: bool,
    /// Whether there is a slot that is to be none.
    pub(super) slot_is_left_over: bool,
}

impl Todo {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty() && !self.slot_is_missing && !self.slot_is_left_over
    }
}

/// Looks at what a database lacks besides columns of tables that are there.
pub(super) async fn todo(config: &Config, evolution: &Evolution) -> Result<Todo> {
    let wanted = installation(config, &evolution.described, &evolution.catalog, true);
    let session = Session::open(&app::endpoint(config)).await?;
    let todo = look(config, &session, &wanted).await?;
    session.close().await?;
    Ok(todo)
}

async fn look(config: &Config, session: &Session, wanted: &install::Installation) -> Result<Todo> {
    let steps = install::plan(session, wanted).await?;
    let has_slot = slot::read_slot(session, &config.postgres.slot).await?.is_some();
    let triggers = config.postgres.capture == Capture::Trigger;
    Ok(Todo { steps, slot_is_missing: !has_slot && !triggers, slot_is_left_over: has_slot && triggers })
}

/// What is to be in the database; `altered` leaves out columns of tables that are there, which have been seen to already.
fn installation(
    config: &Config,
    described: &app::Described,
    catalog: &Catalog,
    altered: bool,
) -> install::Installation {
    let settings = &config.postgres;
    let mut wanted = install::Installation::new(catalog, &settings.publication, &described.sobjects, settings.numbers);
    for table in wanted.tables.iter_mut().filter(|_| altered) {
        let is_there = described.tables.iter().any(|t| t.schema == table.schema && t.table == table.table);
        table.statements.retain(|sql| !is_there || !sql.starts_with("ALTER TABLE"));
    }
    if settings.capture == Capture::Trigger {
        wanted.logged_by_triggers(install::TriggerLog::new(&settings.schema, catalog))
    } else {
        wanted
    }
}

/// Creates schema, tables, triggers, publication and slot, as far as they are missing, and takes away what the other way of
/// capturing changes has left. `altered`: columns of tables that are there have been seen to already.
pub(crate) async fn install(config: &Config, dry_run: bool, altered: bool) -> Result<Installed> {
    let org = app::salesforce(config)?;
    let described = app::describe(config, &org).await?;
    let catalog = app::compile(config, &described, in_force(config).await?.as_ref(), Scope::Wanted)?;
    let wanted = installation(config, &described, &catalog, altered);
    let mut session = Session::open(&app::endpoint(config)).await?;
    let Todo { steps, slot_is_missing, slot_is_left_over } = look(config, &session, &wanted).await?;
    if !dry_run {
        install::apply(&mut session, &steps).await?;
        if slot_is_left_over {
            slot::drop_stream(&session, &config.postgres.slot, &config.postgres.publication).await?;
        }
        if config.postgres.capture != Capture::Trigger {
            slot::ensure_slot(&session, &config.postgres.slot).await?;
        }
    }
    session.close().await?;
    let slot = config.postgres.slot.clone();
    Ok(Installed { steps, slot, slot_was_missing: slot_is_missing, slot_was_there: slot_is_left_over, catalog })
}
