//! `tidelock init`: a first configuration, or what the configuration needs in the database.

use std::path::Path;

use serde_json::json;

use crate::app;
use crate::change::Catalog;
use crate::config::{self, Capture, Config};
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::Session;
use crate::postgres::{install, slot};

use super::Verdict;
use super::output::{self, Output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Shows what would be run in the database, and runs nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(arguments: Arguments, path: &Path, output: Output) -> Result<Verdict> {
    if !path.exists() {
        return first_configuration(path, output);
    }
    let config = super::load(path)?;
    let done = install(&config, arguments.dry_run).await?;
    if output.is_json() {
        output::json(
            &json!({ "applied": !arguments.dry_run, "steps": done.steps, "slot": done.slot, "slot_was_missing": done.slot_was_missing,
                "slot_was_there": done.slot_was_there }),
        )?;
        return Ok(Verdict::Good);
    }
    for step in &done.steps {
        output::line(&format!("-- {}\n{};\n", step.reason, step.sql.trim_end().trim_end_matches(';')))?;
    }
    let schema = &config.postgres.schema;
    if arguments.dry_run && done.slot_was_missing {
        output::line(&format!("-- and the replication slot {} is made\n", done.slot))?;
    }
    if arguments.dry_run && done.slot_was_there {
        output::line(&format!("-- and the replication slot {} is dropped: triggers capture changes\n", done.slot))?;
    }
    let to_do = !done.steps.is_empty() || done.slot_was_missing || done.slot_was_there;
    output::line(&match (arguments.dry_run, to_do) {
        (true, false) => format!("nothing to do: the schema {schema} has everything that capture needs"),
        (true, true) => "nothing was run; leave out --dry-run to run it".into(),
        (false, _) if config.postgres.capture == Capture::Trigger => format!(
            "{} steps run; triggers log changes in {schema}._trigger_log; `tidelock check`, then `tidelock run`",
            done.steps.len(),
        ),
        (false, _) => format!(
            "{} steps run; publication {} and slot {} are there; `tidelock check`, then `tidelock run`",
            done.steps.len(),
            config.postgres.publication,
            config.postgres.slot
        ),
    })?;
    Ok(Verdict::Good)
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

/// Creates schema, tables, triggers, publication and slot, as far as they are missing, and takes away what the other way of
/// capturing changes has left.
pub(crate) async fn install(config: &Config, dry_run: bool) -> Result<Installed> {
    let org = app::salesforce(config)?;
    let described = app::describe(config, &org).await?;
    let catalog = app::compile(config, &described, None)?;
    let wanted = install::Installation::new(
        &catalog,
        &config.postgres.publication,
        &described.sobjects,
        config.postgres.numbers,
    );
    let triggers = config.postgres.capture == Capture::Trigger;
    let wanted = if triggers {
        wanted.logged_by_triggers(install::TriggerLog::new(&config.postgres.schema, &catalog))
    } else {
        wanted
    };
    let mut session = Session::open(&app::endpoint(config)).await?;
    let steps = install::plan(&session, &wanted).await?;
    let has_slot = slot::read_slot(&session, &config.postgres.slot).await?.is_some();
    let (slot_was_missing, slot_was_there) = (!has_slot && !triggers, has_slot && triggers);
    if !dry_run {
        install::apply(&mut session, &steps).await?;
        if slot_was_there {
            slot::drop_stream(&session, &config.postgres.slot, &config.postgres.publication).await?;
        }
        if !triggers {
            slot::ensure_slot(&session, &config.postgres.slot).await?;
        }
    }
    session.close().await?;
    Ok(Installed { steps, slot: config.postgres.slot.clone(), slot_was_missing, slot_was_there, catalog })
}
