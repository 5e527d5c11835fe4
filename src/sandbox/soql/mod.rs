//! The part of SOQL that clients send: parsed here, then bound to the org's schema and run.

mod lexer;
mod parser;
mod run;

pub(crate) use parser::{Function, parse, parse_condition};
pub(crate) use run::{Bound, Plan, Selected, View, bind_condition};

use super::refusal::Refusal;

/// A query that cannot be understood.
pub(crate) fn malformed(message: impl Into<String>) -> Refusal {
    Refusal::new("MALFORMED_QUERY", message)
}
