//! Tables for people, JSON for programs.

use comfy_table::{Cell, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::audit::Described;
use crate::error::{Error, Kind, Result};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// Tables and sentences.
    #[default]
    Text,
    /// One JSON document, or one per line for lists that have no end.
    Json,
}

impl Output {
    /// Whether programs are reading.
    pub const fn is_json(self) -> bool {
        matches!(self, Self::Json)
    }
}

/// Prints one JSON document.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|e| Error::new(Kind::Internal, "a result cannot be written as JSON").caused_by(e))?;
    line(&text)
}

/// Nobody reads our output any more (`tidelock log query | head`). It ends the command like an error, so that everything is
/// cleaned up on the way, and is none to whoever started us.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output any more")]
struct ReaderGone;

/// Whether a command ended because nobody reads its output.
pub(super) fn reader_is_gone(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<ReaderGone>)
}

/// Prints a line. A reader that has gone away gives the error that [`reader_is_gone`] knows.
pub(super) fn line(text: &str) -> Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Storage, "cannot write to standard output").caused_by(ReaderGone))
        }
        Err(error) => Err(Error::new(Kind::Storage, "cannot write to standard output").caused_by(error)),
    }
}

/// Writes a line to standard error, as far as anybody reads it: `eprintln!` would panic where nobody does.
pub fn complain(text: &str) {
    use std::io::Write;
    drop(writeln!(std::io::stderr().lock(), "tidelock: {text}"));
}

/// A table with a heading line and without a frame.
pub(super) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(heads.iter().map(Cell::new));
    table
}

/// An entry of the log, its fields in lines of their own.
pub(super) fn entry_line(said: &Described) -> String {
    let mut parts = vec![format!("{:>8}  {}  {:<8}", said.offset, said.at.get(..23).unwrap_or(&said.at), said.kind)];
    if let Some(side) = said.side.filter(|_| matches!(said.kind, "change" | "echo")) {
        parts.push(format!("{side:<10}"));
    }
    if let (Some(mapping), Some(record)) = (&said.mapping, said.record) {
        parts.push(format!("{mapping} #{}", record.0));
    }
    parts.push(said.what.clone());
    if !said.who.is_empty() {
        parts.push(format!("by {}", said.who));
    }
    let fields = said.fields.iter().map(|field| {
        let to = short(&field.to.to_string());
        match &field.from {
            Some(from) => format!("{:>12}{}: {} -> {to}", "", field.field, short(&from.to_string())),
            None => format!("{:>12}{} = {to}", "", field.field),
        }
    });
    std::iter::once(parts.join("  ")).chain(fields).collect::<Vec<_>>().join("\n")
}

/// A value cut to a length that fits a line.
pub(super) fn short(text: &str) -> String {
    const MOST: usize = 60;
    if text.chars().count() <= MOST {
        return text.replace('\n', " ");
    }
    let mut cut: String = text.chars().take(MOST - 1).map(|c| if c == '\n' { ' ' } else { c }).collect();
    cut.push('…');
    cut
}
