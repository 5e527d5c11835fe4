//! `tidelock status`.

use serde_json::Value as Json;

use crate::audit::Lens;
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::status::{Direction, Figures, Schema};

use super::output::{self, Output};
use super::{Verdict, blocking, remote};

pub(super) async fn run(config: &Config, output: Output) -> Result<Verdict> {
    let figures = if let Some(json) = remote::get(config, "/status").await? {
        read(json)?
    } else {
        let log = remote::open_for_reading(config).await?;
        blocking(move || Figures::of_log(&*log, Lens::new(&*log)?.meta())).await?
    };
    if output.is_json() {
        output::json(&figures)?;
        return Ok(Verdict::Good);
    }
    print(config, &figures)?;
    Ok(Verdict::Good)
}

fn read(json: Json) -> Result<Figures> {
    serde_json::from_value(json)
        .map_err(|e| Error::new(Kind::Protocol, "the running link is of another version of tidelock").caused_by(e))
}

fn print(config: &Config, figures: &Figures) -> Result<()> {
    let state = if figures.running { "running" } else { "not running" };
    output::line(&format!(
        "link {}: {state}; log of {} entries; {} conflicts wait for a person; {} dead letters",
        config.link.name, figures.log_entries, figures.conflicts_open, figures.dead_letters
    ))?;
    if let Some(why) = &figures.unconfigured {
        output::line(why)?;
    }
    if let Some(schema) = &figures.schema {
        for line in schema_lines(schema) {
            output::line(&line)?;
        }
    }
    let mut table = output::table(&[
        "direction",
        "captured",
        "echoes",
        "duplicates",
        "behind",
        "behind s",
        "written",
        "retries",
        "state",
    ]);
    for direction in [&figures.to_salesforce, &figures.to_postgres] {
        table.add_row(row(direction));
    }
    output::line(&table.to_string())?;
    if let Some(slot) = &figures.slot {
        let room = slot.safe_bytes.map_or_else(String::new, |safe| format!(", and may lose it after {safe} more"));
        let danger = if slot.endangered { ": most of its room is used up" } else { "" };
        output::line(&format!("PostgreSQL keeps {} bytes of its log for the slot{room}{danger}", slot.retained_bytes))?;
    }
    for copy in &figures.backfills {
        output::line(&format!(
            "copying {} from {}: {}{} rows{}",
            copy.mapping,
            copy.side,
            copy.rows,
            copy.total.filter(|_| !copy.finished).map_or_else(String::new, |total| format!(" of {total}")),
            if copy.finished { ", complete" } else { "" }
        ))?;
        if let Some(reconcile) = &copy.reconcile {
            output::line(&format!(
                "compar{} {} at {} with the log: {} compared, {} equal, {} repaired; because {}",
                if reconcile.finished { "ed" } else { "ing" },
                copy.mapping,
                copy.side,
                reconcile.compared,
                reconcile.equal,
                reconcile.repaired,
                reconcile.cause
            ))?;
        }
    }
    if let Some(api) = &figures.api {
        output::line(&format!(
            "API calls: {} by this link since its start; the org has used {} of {}",
            api.calls, api.used, api.limit
        ))?;
    }
    Ok(())
}

fn schema_lines(schema: &Schema) -> Vec<String> {
    let to_do = || schema.differences.iter().filter(|difference| difference.to_do);
    let mut lines = Vec::from_iter(schema.problem.clone());
    lines.extend(to_do().map(|d| {
        let failed = d.failed.as_ref().map_or_else(String::new, |why| format!("; it could not be done: {why}"));
        format!("{}.{}: {}{failed}", d.mapping, d.field, d.message)
    }));
    if to_do().next().is_some() {
        lines.push("`tidelock plan` shows what is to be done".to_owned());
    }
    lines
}

fn row(direction: &Direction) -> Vec<String> {
    vec![
        format!("{} -> {}", direction.from, direction.to),
        direction.changes.to_string(),
        direction.echoes.to_string(),
        direction.duplicates.to_string(),
        format!("{} entries", direction.lag_entries),
        format!("{:.1}", direction.lag_seconds),
        direction.written.to_string(),
        direction.retries.to_string(),
        direction.state.clone(),
    ]
}
