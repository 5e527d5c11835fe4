//! `tidelock dead-letters`: writes that a side refused.

use clap::Subcommand;
use serde_json::json;

use crate::audit::{DeadLetter, Lens};
use crate::change::Offset;
use crate::config::Config;
use crate::error::Result;
use crate::ledger::DeadLetterAction;

use super::output::{self, Output, short};
use super::{Verdict, blocking, person, remote};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Lists them.
    List,
    /// Tries one again, or all.
    Retry(Which),
    /// Lets the side keep what it holds, until the record's value changes again.
    Discard(Which),
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// The dead letter's number, as listed.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    dead_letter: Option<u64>,
    /// All there are.
    #[arg(long)]
    all: bool,
    /// The name that goes on record (default: $USER).
    #[arg(long = "by")]
    by: Option<String>,
}

pub(super) async fn run(command: Command, config: &Config, output: Output) -> Result<Verdict> {
    match command {
        Command::List => {
            let letters = list(config).await?;
            if output.is_json() { output::json(&letters)? } else { print(&letters)? }
        }
        Command::Retry(which) => act(config, output, which, DeadLetterAction::Retry, "retried").await?,
        Command::Discard(which) => act(config, output, which, DeadLetterAction::Discard, "discarded").await?,
    }
    Ok(Verdict::Good)
}

async fn list(config: &Config) -> Result<Vec<DeadLetter>> {
    let log = remote::open_for_reading(config).await?;
    blocking(move || Lens::new(&*log)?.dead_letters()).await
}

async fn act(config: &Config, output: Output, which: Which, action: DeadLetterAction, done: &str) -> Result<()> {
    let by = person(which.by);
    let letters = match which.dead_letter {
        Some(letter) => vec![Offset(letter)],
        None => list(config).await?.into_iter().map(|l| l.dead_letter).collect(),
    };
    for letter in &letters {
        remote::act(config, remote::Action::DeadLetter { letter: *letter, action, by: by.clone() }).await?;
    }
    if output.is_json() {
        output::json(&json!({ done: letters, "by": by }))
    } else {
        output::line(&format!("{} dead letters {done}, by {by}", letters.len()))
    }
}

fn print(letters: &[DeadLetter]) -> Result<()> {
    if letters.is_empty() {
        return output::line("no dead letters");
    }
    let mut table = output::table(&["dead letter", "at", "record", "side", "code", "message", "write"]);
    for letter in letters {
        let record = match &letter.key {
            Some(key) => format!("{}/{key}", letter.mapping),
            None => format!("{} #{}", letter.mapping, letter.record.0),
        };
        table.add_row([
            letter.dead_letter.to_string(),
            letter.at.get(..19).unwrap_or(&letter.at).to_owned(),
            record,
            letter.side.to_string(),
            letter.code.to_string(),
            short(&letter.message),
            letter.write.what.clone(),
        ]);
    }
    output::line(&table.to_string())
}
