//! Everything that speaks to PostgreSQL.
//!
//! [`endpoint`] and [`connect`] open every connection. [`wire`] and [`pgoutput`] are the replication protocol, [`slot`] what it
//! reads from, [`capture`] the stream into the change log (from the server's log, or from triggers), [`backfill`] what was there before,
//! [`marks`] how our own messages get into the stream.

pub mod alter;
pub mod backfill;
pub mod capture;
pub mod connect;
pub mod endpoint;
pub mod install;
pub mod introspect;
pub mod lost;
pub mod marks;
mod patience;
pub mod pgoutput;
pub mod preflight;
pub mod publication;
pub mod slot;
pub mod target;
mod tls;
pub mod wire;

pub use connect::{BoxedStream, ByteStream, Session, SessionDriver, classify, database_error, open_session};
pub use endpoint::{Endpoint, Host, SslMode};
