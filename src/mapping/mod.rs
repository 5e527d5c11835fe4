//! Fields, types and normalisation: from a side's values to canonical ones and back.
//!
//! Everything here is a pure function: no clock, no input or output, no state.
//!
//! * [`value`] turns what a side prints into [`crate::change::Value`] and back;
//! * [`describe`] says, in neutral words, what a side has;
//! * [`compile`] makes the [`crate::change::Catalog`] of a configuration and these descriptions, or says what is wrong;
//! * [`expand`] lists the fields that a mapping stands for;
//! * [`mirror`] writes the DDL of the tables, and [`evolution`] that of what has changed since.

mod columns;
pub mod compile;
pub mod describe;
pub mod evolution;
mod expand;
pub mod finding;
#[cfg(test)]
mod fixtures;
pub mod mirror;
mod resolve;
pub mod value;

pub use columns::has_room;
pub use compile::{check, compile, unfinished};
pub use describe::{ColumnDescription, SobjectDescription, SobjectField, TableDescription, field_kind};
pub use evolution::{Change, Difference, Effect, Remedy, differences, news};
pub use expand::{Scope, expand};
pub use finding::{Finding, Severity};
pub use value::{ValueError, from_avro, from_json, from_postgres, normalise, to_json, to_postgres, to_postgres_array};
