//! Our own replication connection: the frontend/backend protocol as far as logical replication needs it.
//!
//! It runs over any byte stream, so tests speak to it through an in-memory duplex. Frames are handed out as slices of one
//! read buffer, without a copy or an allocation per message. Invariants: no bytes from the server can panic it or make it
//! reserve more memory than has arrived plus one read; a read may be cancelled and loses nothing.
//!
//! Formats: PostgreSQL documentation, "Frontend/Backend Protocol".

mod frame;
mod pause;
mod replication;
mod server_error;
mod startup;

pub use frame::{CopyFrame, WireError};
pub(crate) use pause::Pace;
pub use replication::{Replication, StatusUpdate};
pub use server_error::ServerError;
pub use startup::{ReplicationError, connect};
