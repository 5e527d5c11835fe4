//! The command line: one file per subcommand. Printing lives here and nowhere else.
//!
//! Exit codes: 0 done; 1 it failed; 2 the command line or the configuration is wrong; 3 a check or verification found
//! problems, or a plan something to do; 130 a signal ended it before it was done.

mod check;
mod conflicts;
mod dead_letters;
mod demo;
mod init;
mod log;
mod output;
mod plan;
mod progress;
mod remote;
mod replay;
mod run;
mod sandbox;
mod status;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Kind, Result};

pub use output::{Output, complain};
pub use progress::log_output;

/// Keeps a Salesforce org and a PostgreSQL database in step, both ways, through one ordered change log.
#[derive(Debug, Parser)]
#[command(name = "tidelock", version, max_term_width = 110)]
pub struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, env = "TIDELOCK_CONFIG", default_value = "tidelock.toml")]
    config: PathBuf,
    /// How to print results.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows everything at once: a private PostgreSQL, a sandbox org, live edits and conflicts on both sides.
    Demo(demo::Arguments),
    /// Runs a stand-in Salesforce org to try a mapping against.
    Sandbox(sandbox::Arguments),
    /// Writes a first configuration, or creates in the database what the configuration needs.
    Init(init::Arguments),
    /// Shows what the configuration and the org's fields ask of the database, and what it costs; changes nothing.
    Plan,
    /// Checks configuration, database and org, and says what to do about each finding.
    Check,
    /// Keeps both sides in step until it is stopped.
    Run,
    /// Shows how far both directions are.
    Status,
    /// Sends a range of the change log again: to a side, or into another database, as a mirror made from the log alone.
    ///
    /// What is already held is skipped, so that a range can be sent as often as one likes, and no value goes back to an older one.
    Replay(replay::Arguments),
    /// Reads, verifies and rebuilds the change log.
    #[command(subcommand)]
    Log(log::Command),
    /// Shows conflicts and decides those that wait for a person.
    #[command(subcommand)]
    Conflicts(conflicts::Command),
    /// Shows writes that a side refused, and tries them again or discards them.
    #[command(subcommand)]
    DeadLetters(dead_letters::Command),
}

/// What a command that did not fail has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Good,
    /// There are problems, and they have been printed.
    Problems,
    /// A signal ended it before it was done, and what is to be known of that has been printed.
    Interrupted,
}

impl Cli {
    /// Whether a person waits for the command's end, so that only what needs attention is logged.
    pub fn is_interactive(&self) -> bool {
        !matches!(self.command, Command::Run | Command::Sandbox(_))
    }

    /// Whether the command ends in order when it is asked to. The others can be ended at once at any time: what they change,
    /// they change as a whole.
    pub fn drains(&self) -> bool {
        match &self.command {
            Command::Run | Command::Sandbox(_) | Command::Demo(_) | Command::Replay(_) => true,
            Command::Log(command) => command.follows(),
            _ => false,
        }
    }

    /// Runs the command and turns its result into an exit code. Cancelling `cancel` ends a command that [drains](Cli::drains).
    pub async fn main(self, cancel: CancellationToken) -> u8 {
        match Box::pin(self.run(cancel)).await {
            Ok(Verdict::Good) => 0,
            Ok(Verdict::Problems) => 3,
            Ok(Verdict::Interrupted) => 130,
            Err(error) if output::reader_is_gone(&error) => 0,
            Err(error) => {
                complain(&error.explain());
                if error.kind() == Kind::Configuration { 2 } else { 1 }
            }
        }
    }

    async fn run(self, cancel: CancellationToken) -> Result<Verdict> {
        let output = self.output;
        match self.command {
            Command::Demo(arguments) => demo::run(arguments, output, cancel).await,
            Command::Sandbox(arguments) => sandbox::run(arguments, output, cancel).await,
            Command::Init(arguments) => init::run(arguments, &self.config, output).await,
            Command::Plan => plan::run(&load(&self.config)?, output).await,
            Command::Check => check::run(&load(&self.config)?, output).await,
            Command::Run => Box::pin(run::run(load(&self.config)?, cancel)).await,
            Command::Status => status::run(&load(&self.config)?, output).await,
            Command::Replay(arguments) => replay::run(arguments, load(&self.config)?, output, cancel).await,
            Command::Log(command) => log::run(command, &load(&self.config)?, output, cancel).await,
            Command::Conflicts(command) => conflicts::run(command, &load(&self.config)?, output).await,
            Command::DeadLetters(command) => dead_letters::run(command, &load(&self.config)?, output).await,
        }
    }
}

fn load(path: &std::path::Path) -> Result<Config> {
    Config::load(path).map_err(|errors| Error::new(Kind::Configuration, errors.to_string()))
}

/// Runs blocking work (the log's files) off the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::new(Kind::Internal, "a reading thread panicked; this is a bug in Tidelock").caused_by(e))?
}

/// The name under which a person's decision goes on record.
fn person(given: Option<String>) -> String {
    let user = || std::env::var("USER").ok().filter(|name| !name.is_empty());
    given.or_else(user).unwrap_or_else(|| "unknown".into())
}
