//! `tidelock conflicts`: what was decided, and deciding what waits.

use clap::Subcommand;
use serde_json::json;

use crate::audit::{Conflict, Lens};
use crate::change::{Offset, Side};
use crate::config::Config;
use crate::error::Result;

use super::output::{self, Output, short};
use super::{Verdict, blocking, person, remote};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists conflicts that wait for a person, or all of them.
    List {
        /// Also those that are decided.
        #[arg(long)]
        all: bool,
        /// Also the differences found when the two sides were first joined.
        #[arg(long)]
        initial_merge: bool,
    },
    /// Decides a conflict that waits.
    Resolve {
        /// The conflict's number, as listed.
        conflict: u64,
        /// Whose value stands.
        #[arg(long, value_enum, required_unless_present = "value", conflicts_with = "value")]
        take: Option<SideName>,
        /// A value of your own, as text that fits the field; empty is null.
        #[arg(long)]
        value: Option<String>,
        /// The name that goes on record (default: $USER).
        #[arg(long = "by")]
        by: Option<String>,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum SideName {
    Postgres,
    Salesforce,
}

impl From<SideName> for Side {
    fn from(name: SideName) -> Self {
        match name {
            SideName::Postgres => Self::Postgres,
            SideName::Salesforce => Self::Salesforce,
        }
    }
}

pub(super) async fn run(command: Command, config: &Config, output: Output) -> Result<Verdict> {
    match command {
        Command::List { all, initial_merge } => {
            let log = remote::open_for_reading(config).await?;
            let conflicts = blocking(move || Lens::new(&*log)?.conflicts(all, initial_merge)).await?;
            if output.is_json() { output::json(&conflicts)? } else { print(&conflicts, all)? }
        }
        Command::Resolve { conflict, take, value, by } => {
            let choice = match (take, value) {
                (Some(side), _) => json!({ "take": Side::from(side).name() }),
                (None, value) => json!({ "value": value }),
            };
            let by = person(by);
            remote::act(config, remote::Action::Resolve { conflict: Offset(conflict), choice, by: by.clone() }).await?;
            if output.is_json() {
                output::json(&json!({ "resolved": conflict, "by": by }))?;
            } else {
                output::line(&format!("conflict {conflict} is decided, by {by}"))?;
            }
        }
    }
    Ok(Verdict::Good)
}

fn print(conflicts: &[Conflict], all: bool) -> Result<()> {
    if conflicts.is_empty() {
        return output::line(if all {
            "no conflicts"
        } else {
            "no conflict waits for a person (--all shows those that are decided)"
        });
    }
    let mut table = output::table(&["conflict", "at", "record", "field", "kind", "stands", "does not", "decided by"]);
    for c in conflicts {
        table.add_row([
            c.conflict.to_string(),
            c.at.get(..19).unwrap_or(&c.at).to_owned(),
            record_name(c),
            c.field.to_string(),
            c.conflict_kind.to_owned(),
            format!("{} ({})", short(&c.stands), c.stands_from),
            format!("{} ({})", short(&c.lost), c.lost_from),
            c.decided_by.clone(),
        ]);
    }
    output::line(&table.to_string())
}

fn record_name(c: &Conflict) -> String {
    match &c.key {
        Some(key) => format!("{}/{key}", c.mapping),
        None => format!("{} #{}", c.mapping, c.record.0),
    }
}
