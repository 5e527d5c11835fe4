//! `tidelock log`: reading, verifying and rebuilding the change log.

use std::time::Duration;

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::app;
use crate::audit::{Described, Filter, Lens, RecordRef};
use crate::change::{Key, Offset, RecordId, Side};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::ledger::verify::{self, Report};

use super::conflicts::SideName;
use super::output::{self, Output, complain, entry_line};
use super::{Verdict, blocking, remote};

/// The kinds of entries.
const KINDS: [&str; 7] = ["change", "echo", "ticket", "outcome", "decision", "bind", "notice"];
/// How many entries are shown unless the command line says otherwise.
const QUERY_LIMIT: usize = 1_000;
const HISTORY_LIMIT: usize = 10_000;
/// How often `--follow` looks for more.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows the last entries.
    Tail {
        /// How many.
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
        /// Goes on showing what is added.
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Shows the entries that match.
    Query {
        /// From this offset on.
        #[arg(long)]
        from: Option<u64>,
        /// Recorded at this time or later (`2026-01-31T12:00:00Z`).
        #[arg(long)]
        since: Option<String>,
        /// Recorded before this time.
        #[arg(long)]
        until: Option<String>,
        /// Of this transaction: PostgreSQL's transaction number, or Salesforce's transaction key.
        #[arg(long, conflicts_with_all = ["from", "since", "until"])]
        transaction: Option<String>,
        /// At most so many; without it, 1000.
        #[arg(long)]
        limit: Option<usize>,
        #[command(flatten)]
        filter: FilterArguments,
    },
    /// Shows everything that happened to one record: who, when, from what, to what.
    History {
        /// `mapping/key`, a Salesforce id, or `#` and the record's number.
        record: String,
        /// At most so many entries; without it, 10000.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Proves the log: checksums, chain, no holes, state equals the fold over the entries, no edit lost in silence.
    Verify,
    /// Computes the state anew from the entries. The link must be stopped.
    Rebuild,
}

impl Command {
    /// Whether it goes on until it is stopped.
    pub(super) const fn follows(&self) -> bool {
        matches!(self, Self::Tail { follow: true, .. })
    }
}

#[derive(Debug, Default, clap::Args)]
pub(super) struct FilterArguments {
    /// About this mapping.
    #[arg(long)]
    mapping: Option<String>,
    /// From or to this side.
    #[arg(long, value_enum)]
    side: Option<SideName>,
    /// Of this kind.
    #[arg(long, ignore_case = true, value_parser = KINDS)]
    kind: Option<String>,
    /// Touching this sObject field.
    #[arg(long)]
    field: Option<String>,
    /// Whose author contains this text.
    #[arg(long)]
    who: Option<String>,
}

impl From<FilterArguments> for Filter {
    fn from(arguments: FilterArguments) -> Self {
        Self {
            mapping: arguments.mapping,
            side: arguments.side.map(Side::from),
            kind: arguments.kind,
            field: arguments.field,
            who: arguments.who,
            ..Self::default()
        }
    }
}

pub(super) async fn run(
    command: Command,
    config: &Config,
    output: Output,
    cancel: CancellationToken,
) -> Result<Verdict> {
    match command {
        Command::Tail { lines, follow, filter } => tail(config, output, lines, follow, filter.into(), cancel).await,
        Command::Query { from, since, until, transaction, limit, filter } => {
            let filter = Filter {
                from: from.map(Offset),
                since: since.as_deref().map(time).transpose()?,
                until: until.as_deref().map(time).transpose()?,
                ..filter.into()
            };
            let log = remote::open_for_reading(config).await?;
            let more = blocking(move || {
                let mut shown = 0;
                let mut more = false;
                let mut failed = Ok(());
                let lens = Lens::new(&*log)?;
                known_mapping(&lens, &filter)?;
                let each = |said: Described| {
                    // One more than is shown by default is looked for, to say that there is more; what was asked for ends there.
                    if shown == limit.unwrap_or(QUERY_LIMIT) {
                        more = limit.is_none();
                        return false;
                    }
                    failed = print(output, &said);
                    shown += 1;
                    failed.is_ok() && limit != Some(shown)
                };
                match transaction {
                    Some(id) => lens.transaction(&id, &filter, each)?,
                    None => lens.entries(&filter, each).map(drop)?,
                }
                failed.map(|()| more)
            })
            .await?;
            if more {
                say_more(QUERY_LIMIT);
            }
            Ok(Verdict::Good)
        }
        Command::History { record, limit } => {
            let name = record_ref(&record)?;
            let log = remote::open_for_reading(config).await?;
            let mut history = blocking(move || {
                let lens = Lens::new(&*log)?;
                lens.history(lens.record(&name)?, limit.unwrap_or(HISTORY_LIMIT + 1))
            })
            .await?;
            let more = limit.is_none() && history.len() > HISTORY_LIMIT;
            if more {
                history.truncate(HISTORY_LIMIT);
            }
            if output.is_json() {
                output::json(&history)?;
            } else {
                history.iter().try_for_each(|said| print(output, said))?;
            }
            if more {
                say_more(HISTORY_LIMIT);
            }
            Ok(Verdict::Good)
        }
        Command::Verify => verify_log(config, output).await,
        Command::Rebuild => rebuild(config, output).await,
    }
}

/// A list that was cut says so, but not where the list goes.
fn say_more(shown: usize) {
    complain(&format!("there is more than these {shown} entries; --limit says how many are shown"));
}

/// A mapping's name that the log does not know is a mistake, not an empty answer.
fn known_mapping(lens: &Lens<'_>, filter: &Filter) -> Result<()> {
    let Some(wanted) = &filter.mapping else { return Ok(()) };
    let known: Vec<&str> = lens.catalog().mappings.iter().map(|m| m.name.as_str()).collect();
    // Before a link has run, its log knows none.
    if known.is_empty() || known.iter().any(|name| name.eq_ignore_ascii_case(wanted)) {
        return Ok(());
    }
    let message = format!("there is no mapping `{wanted}`; there are: {}", known.join(", "));
    Err(Error::new(Kind::Configuration, message))
}

async fn tail(
    config: &Config,
    output: Output,
    lines: usize,
    follow: bool,
    filter: Filter,
    cancel: CancellationToken,
) -> Result<Verdict> {
    let log = remote::open_for_reading(config).await?;
    let wanted = filter.clone();
    let mut next = blocking(move || {
        let lens = Lens::new(&*log)?;
        known_mapping(&lens, &wanted)?;
        let last = if lines == 0 { Vec::new() } else { lens.last(&wanted, lines)? };
        last.iter().try_for_each(|said| print(output, said))?;
        Ok(log.tail())
    })
    .await?;
    if !follow {
        return Ok(Verdict::Good);
    }
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(Verdict::Good),
            () = tokio::time::sleep(FOLLOW_EVERY) => {}
        }
        let log = match remote::open_for_reading(config).await {
            Ok(log) => log,
            // Its owner is too busy for anybody to look now.
            Err(error) if error.kind() == Kind::Unavailable => continue,
            Err(error) => return Err(error),
        };
        let filter = Filter { from: Some(next), ..filter.clone() };
        next = blocking(move || {
            let mut failed = Ok(());
            let next = Lens::new(&*log)?.entries(&filter, |said| {
                failed = print(output, &said);
                failed.is_ok()
            })?;
            failed.map(|()| next)
        })
        .await?
        .max(next);
    }
}

fn print(output: Output, said: &Described) -> Result<()> {
    if output.is_json() { output::json(said) } else { output::line(&entry_line(said)) }
}

fn time(text: &str) -> Result<i64> {
    text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_microsecond).map_err(|e| {
        Error::new(Kind::Configuration, format!("`{text}` is not a time; write it like 2026-01-31T12:00:00Z"))
            .caused_by(e)
    })
}

/// How a record is named on the command line.
pub(super) fn record_ref(text: &str) -> Result<RecordRef> {
    if let Some(number) = text.strip_prefix('#') {
        let number =
            number.parse().map_err(|_| Error::new(Kind::Configuration, format!("`{text}` is not a record number")))?;
        return Ok(RecordRef::Record(RecordId(number)));
    }
    Ok(match text.split_once('/') {
        Some((mapping, key)) => RecordRef::Key(mapping.into(), Key::from_parts(key.split(','))),
        None => RecordRef::SalesforceId(text.into()),
    })
}

pub(super) fn bar(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}

async fn verify_log(config: &Config, output: Output) -> Result<Verdict> {
    let (log, folder) = remote::open_for_verifying(config).await?;
    let report = blocking(move || {
        let bar = bar(log.tail().0, "verifying");
        let mut progress = |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let report = match &folder {
            Some(folder) => {
                let scratch = app::open_new_log(&folder.path().join("log"))?;
                verify::verify_with(&*log, &*scratch, &mut progress)
            }
            None => verify::verify(&*log, &mut progress),
        };
        bar.finish_and_clear();
        report
    })
    .await?;
    if output.is_json() {
        output::json(&report)?;
    } else {
        output::line(&report_text(&report))?;
    }
    Ok(if report.problems.is_empty() { Verdict::Good } else { Verdict::Problems })
}

/// What a verification found, for people.
pub(super) fn report_text(report: &Report) -> String {
    let list = |counts: &std::collections::BTreeMap<&'static str, u64>| {
        counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
    };
    let mut lines = vec![format!(
        "{} entries ({}){}\n{} edits followed to their end; conflicts: {}; {} resolved by people or agreement, {} parked\n{}",
        report.tail.0 - report.head.0,
        list(&report.entries),
        if report.sound() { ": checksums, chain and order checked" } else { " could be read" },
        report.followed,
        if report.conflicts.is_empty() { "none".into() } else { list(&report.conflicts) },
        report.resolved,
        report.parked,
        match (report.state_compared, report.sound()) {
            (true, true) => "the state equals the fold over the entries; no edit is lost in silence: the log is sound",
            (false, true) => "the log is sound; the state could not be compared, since the log does not begin at 0",
            _ => "THE LOG IS NOT SOUND:",
        },
    )];
    for problem in &report.problems {
        let place = problem.offset.map_or_else(String::new, |offset| format!("entry {offset}: "));
        lines.push(format!("  {place}{}", problem.what));
    }
    if report.more_problems > 0 {
        lines.push(format!("  and {} more", report.more_problems));
    }
    lines.join("\n")
}

async fn rebuild(config: &Config, output: Output) -> Result<Verdict> {
    let log = remote::open_as_owner(config).await?;
    let entries = blocking(move || {
        let bar = bar(log.tail().0, "rebuilding");
        verify::rebuild(&*log, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })?;
        bar.finish_and_clear();
        Ok(log.tail().0 - log.head().0)
    })
    .await?;
    if output.is_json() {
        output::json(&json!({ "entries": entries }))?;
    } else {
        output::line(&format!("the state is computed anew from {entries} entries"))?;
    }
    Ok(Verdict::Good)
}
