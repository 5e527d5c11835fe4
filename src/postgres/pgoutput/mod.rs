//! The messages of the `pgoutput` plugin, protocol versions 1 to 4, decoded by a borrowed walk.
//!
//! Pure: bytes in, messages out, and the one bit of state that the format needs (whether a streamed transaction's segment
//! is open, since only there messages carry a transaction id of their own). Nothing is copied or allocated; tuples are
//! checked as a whole once and then walked without failure. Bytes that the protocol does not allow, left over bytes
//! included, are errors and never skipped; no input panics.
//!
//! Layouts: PostgreSQL documentation, "Logical Replication Message Formats".

mod message;
mod reader;
mod relation;
mod tuple;

pub use message::{Decoder, Message, OldKind, OldTuple, RelationMessage};
pub use reader::DecodeError;
pub(crate) use reader::POSTGRES_EPOCH;
pub use relation::{Relation, RelationColumn, ReplicaIdentity, builtin_type_oid};
pub use tuple::{ColumnValue, Tuple};
