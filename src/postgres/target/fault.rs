//! What an error of the server means for a transaction of ours: the one table from SQLSTATEs to what is done.

use tokio_postgres::error::{DbError, SqlState};

use crate::change::Str;
use crate::error::{Error, Kind};

/// Why a statement, and so its transaction, did not go through.
#[derive(Debug)]
pub(super) enum Fault {
    /// One row, or several, are not acceptable: narrowed down, then refused.
    Row(Refusal),
    /// Somebody holds a lock that one row needs, or several: narrowed down, then put off. Outside of a statement that can be undone
    /// alone, like [`Fault::Busy`].
    Locked(Error),
    /// Another session was in the way. Nothing took effect; the transaction is tried again.
    Busy(Error),
    /// The table is no longer as it was described, or prepared statements are gone: looked at anew, then tried again.
    Stale(Error),
    /// Everything else. What took effect is unknown.
    Fatal(Error),
}

/// Why the server does not accept a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The SQLSTATE.
    pub(super) code: Str,
    /// The server's message, with the constraint where it names one.
    pub(super) message: Str,
}

impl Refusal {
    /// A refusal by SQLSTATE and message.
    pub(super) fn new(code: &str, message: impl AsRef<str>) -> Self {
        Self { code: Str::new(code), message: Str::new(message.as_ref()) }
    }

    /// Whether another write of the same batch may still mend it: a parent that is yet to come, a unique value that is yet
    /// to be freed.
    pub(super) fn may_mend(&self) -> bool {
        self.code == SqlState::FOREIGN_KEY_VIOLATION.code() || self.code == SqlState::UNIQUE_VIOLATION.code()
    }
}

impl Fault {
    /// What an error of a statement means. `doing` says what was being done, for a person.
    pub(super) fn of(error: tokio_postgres::Error, doing: &str) -> Self {
        match error.as_db_error() {
            Some(refused) => Self::of_server(refused, doing),
            None => Self::Fatal(lost(error, doing)),
        }
    }

    fn of_server(error: &DbError, doing: &str) -> Self {
        let code = error.code().code();
        let say = |kind, advice: &str| {
            let text = format!("PostgreSQL, while {doing}: {} ({code}){advice}", error.message());
            Error::new(kind, text)
        };
        match meaning(code) {
            Meaning::Row => Self::Row(Refusal::new(code, row_message(error))),
            Meaning::Locked => Self::Locked(say(Kind::Unavailable, "; it is tried again")),
            Meaning::Busy => Self::Busy(say(Kind::Unavailable, "; it is tried again")),
            Meaning::Stale => Self::Stale(say(
                Kind::Configuration,
                "; check that the table still has its mapped columns (`tidelock check`)",
            )),
            Meaning::Unavailable => Self::Fatal(say(Kind::Unavailable, "")),
            Meaning::Denied => Self::Fatal(say(Kind::Denied, "; grant it to the role that Tidelock connects as")),
            Meaning::Configuration => Self::Fatal(say(Kind::Configuration, &at(error))),
        }
    }

    /// The error that leaves the target when nothing more is tried.
    pub(super) fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Row(refusal) => Error::new(
                Kind::Configuration,
                format!("PostgreSQL, while {doing}: {} ({})", refusal.message, refusal.code),
            ),
            Self::Locked(error) | Self::Busy(error) | Self::Stale(error) | Self::Fatal(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// The error of a connection that broke.
pub(super) fn lost(error: tokio_postgres::Error, doing: &str) -> Error {
    Error::new(Kind::Unavailable, format!("the connection to PostgreSQL broke while {doing}")).caused_by(error)
}

enum Meaning {
    Row,
    Locked,
    Busy,
    Stale,
    Unavailable,
    Denied,
    Configuration,
}

fn meaning(code: &str) -> Meaning {
    match code {
        // Lock not available.
        "55P03" => Meaning::Locked,
        // Serialization failure, deadlock, statement timeout or cancel.
        "40001" | "40P01" | "57014" => Meaning::Busy,
        // A cached plan's result changed; a prepared statement is gone; column, table or type missing or of another type.
        "0A000" | "26000" | "42703" | "42P01" | "42704" | "42804" | "42846" => Meaning::Stale,
        // Read-only transaction: the server has become a standby.
        "25006" => Meaning::Unavailable,
        "42501" => Meaning::Denied,
        _ => match code.get(..2).unwrap_or_default() {
            // Connection, insufficient resources, operator intervention, system error, other invalid transaction states.
            "08" | "53" | "57" | "58" | "25" => Meaning::Unavailable,
            "28" => Meaning::Denied,
            // Syntax or access rule, prerequisite state, catalog or schema name, configuration file, internal error.
            "42" | "55" | "3D" | "3F" | "F0" | "XX" => Meaning::Configuration,
            // Data and constraint errors, limits, and whatever a trigger raises, under a code of its own or not.
            _ => Meaning::Row,
        },
    }
}

fn row_message(error: &DbError) -> String {
    let mut text = error.message().to_owned();
    if let Some(column) = error.column().filter(|name| !text.contains(name)) {
        text = format!("{text} (column {column})");
    }
    if let Some(constraint) = error.constraint().filter(|name| !text.contains(name)) {
        text = format!("{text} (constraint {constraint})");
    }
    text
}

/// Where a broken function of the user's stands: the first line of the server's context.
fn at(error: &DbError) -> String {
    match error.where_().and_then(|context| context.lines().next()) {
        Some(line) => format!(", in {line}"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_mean_what_the_table_says() {
        for code in ["22001", "23505", "23514", "P0001", "21000", "44000", "54000", "HC001", ""] {
            assert!(matches!(meaning(code), Meaning::Row), "{code}");
        }
        assert!(matches!(meaning("55P03"), Meaning::Locked));
        assert!(matches!(meaning("40P01"), Meaning::Busy));
        assert!(matches!(meaning("57P01"), Meaning::Unavailable));
        assert!(matches!(meaning("57014"), Meaning::Busy));
        assert!(matches!(meaning("42703"), Meaning::Stale));
        assert!(matches!(meaning("42883"), Meaning::Configuration));
        assert!(matches!(meaning("42501"), Meaning::Denied));
    }

    #[test]
    fn only_references_and_unique_values_may_mend() {
        assert!(Refusal::new("23503", "").may_mend());
        assert!(Refusal::new("23505", "").may_mend());
        assert!(!Refusal::new("23514", "").may_mend());
    }
}
