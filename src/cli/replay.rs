//! `tidelock replay`: a range of the change log once more.

use clap::ValueEnum;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::audit;
use crate::change::{Offset, Side};
use crate::config::Config;
use crate::demo::world::Scratch;
use crate::error::{Error, Kind, Result};
use crate::log::SharedLog;
use crate::postgres::Endpoint;

use super::output::{self, Output, complain};
use super::{Verdict, blocking, log, remote};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The first entry of the range, by its offset in the log.
    #[arg(long)]
    from: u64,
    /// The entry before which the range ends (default: the end of the log). A mirror gets the values as they were there.
    #[arg(long)]
    to: Option<u64>,
    /// The side to send to, through tickets like every write. The link must not be running: it sends what a side lacks by itself.
    #[arg(long, value_enum, default_value_t = To::Postgres)]
    side: To,
    /// Another database than the link's, as a connection string: its tables are made as `tidelock init` makes them, and the records
    /// of the range are written there. The link may be running. Only with --side postgres.
    #[arg(long, env = "TIDELOCK_REPLAY_TARGET", hide_env_values = true)]
    target: Option<String>,
    /// Says what would be written, and writes nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Postgres,
    Salesforce,
}

impl From<To> for Side {
    fn from(to: To) -> Self {
        match to {
            To::Postgres => Self::Postgres,
            To::Salesforce => Self::Salesforce,
        }
    }
}

/// The range within the log as it stands.
#[derive(Debug, Clone, Copy)]
struct Range {
    from: Offset,
    to: Offset,
}

pub(super) async fn run(
    arguments: Arguments,
    config: Config,
    output: Output,
    cancel: CancellationToken,
) -> Result<Verdict> {
    let log = remote::open_for_reading(&config).await?;
    let range = range(&arguments, log.head(), log.tail())?;
    let side = Side::from(arguments.side);
    match &arguments.target {
        Some(_) if side == Side::Salesforce => {
            let message = "--target is a database; leave it out, or leave out --side salesforce";
            Err(Error::new(Kind::Configuration, message))
        }
        Some(target) => {
            let target = Endpoint::parse(target)?;
            let rebuilding = Box::pin(rebuild(&config, log, range, target, arguments.dry_run, output));
            match cancel.run_until_cancelled(rebuilding).await {
                Some(done) => done,
                None => Ok(interrupted()),
            }
        }
        None if arguments.dry_run => say(log, side, range, output).await,
        None => {
            drop(log);
            Box::pin(send(config, side, range, output, cancel)).await
        }
    }
}

fn interrupted() -> Verdict {
    complain(
        "not everything was written (stopped, or rows are still being compared by the link); the same command again goes on",
    );
    Verdict::Interrupted
}

fn range(arguments: &Arguments, head: Offset, tail: Offset) -> Result<Range> {
    let range = Range { from: Offset(arguments.from), to: arguments.to.map_or(tail, Offset) };
    if range.from < head || range.to > tail || range.from > range.to {
        let message = format!(
            "the log has entries from {head} to before {tail}, and the range is from {} to before {}; name one within",
            range.from, range.to
        );
        return Err(Error::new(Kind::Configuration, message));
    }
    Ok(range)
}

/// Says what a side lacks.
async fn say(log: SharedLog, side: Side, range: Range, output: Output) -> Result<Verdict> {
    let needs = blocking(move || {
        let records = audit::touched(&*log, range.from, range.to)?;
        audit::needs(&*log, side, records.into_keys())
    })
    .await?;
    if output.is_json() {
        output::json(&json!({ "side": side, "from": range.from, "to": range.to, "dry_run": true, "needs": needs }))?;
    } else {
        output::line(&format!(
            "{side} would be sent {} creates, {} updates and {} deletes; {} records would be skipped. Nothing was sent",
            needs.creates, needs.updates, needs.deletes, needs.skipped
        ))?;
    }
    Ok(Verdict::Good)
}

/// Sends a side what it lacks, as the log's owner.
async fn send(config: Config, side: Side, range: Range, output: Output, cancel: CancellationToken) -> Result<Verdict> {
    let Some(link) = app::Link::open_unless(config, &cancel).await? else { return Ok(interrupted()) };
    let sent = link.send_again(side, range.from, range.to, cancel).await?;
    if output.is_json() {
        output::json(&json!({ "side": side, "from": range.from, "to": range.to, "dry_run": false, "sent": sent }))?;
    } else {
        output::line(&format!(
            "{side} was sent {} writes, and refused {}{}",
            sent.written,
            sent.refused,
            if sent.refused > 0 { "; see `tidelock dead-letters list`" } else { "" }
        ))?;
    }
    if !sent.complete {
        return Ok(interrupted());
    }
    Ok(if sent.refused == 0 { Verdict::Good } else { Verdict::Problems })
}

/// Writes the range into another database.
async fn rebuild(
    config: &Config,
    log: SharedLog,
    range: Range,
    target: Endpoint,
    dry_run: bool,
    output: Output,
) -> Result<Verdict> {
    let directory = config.link.log.clone();
    let (log, log_id, _folder) = blocking(move || {
        let log_id = app::log_id(&directory)?.unwrap_or_default();
        let folder = if range.to < log.tail() { Some(Scratch::new("tidelock-replay")?) } else { None };
        let log = match &folder {
            Some(folder) => app::as_of(log, range.to, || app::open_new_log(&folder.path().join("log")))?,
            None => log,
        };
        Ok((log, log_id, folder))
    })
    .await?;
    let address = target.to_string();
    let bar = log::bar(0, "writing");
    let request = app::Request { log, log_id, from: range.from, target, dry_run };
    let done = app::rebuild(config, request, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    })
    .await;
    bar.finish_and_clear();
    let done = done?;
    if output.is_json() {
        output::json(
            &json!({ "target": address, "from": range.from, "to": range.to, "dry_run": dry_run, "rebuilt": done }),
        )?;
    } else {
        print(&address, &done, dry_run)?;
    }
    Ok(if done.rebuilt.is_complete() { Verdict::Good } else { Verdict::Problems })
}

fn print(address: &str, done: &app::Outcome, dry_run: bool) -> Result<()> {
    let rebuilt = &done.rebuilt;
    if let Some(why) = &done.untyped {
        output::line(&format!(
            "the org could not be asked, so new columns have types that follow from the log: {why}"
        ))?;
    }
    let (steps, would) = (done.steps.len(), if dry_run { "would be " } else { "" });
    output::line(&format!(
        "{address}: {steps} steps of its installation {would}run; of {} records {} {would}created, {} updated, {} deleted; {} skipped, \
         since the mirror holds them",
        done.records, rebuilt.created, rebuilt.updated, rebuilt.deleted, rebuilt.skipped
    ))?;
    if !rebuilt.edited.is_empty() {
        output::line(&format!("{} rows were left as they are: somebody else has written them", rebuilt.edited.len()))?;
    }
    for (record, why) in &rebuilt.refused {
        output::line(&format!("record #{}: {why}", record.0))?;
    }
    Ok(())
}
