//! The guided tour: a private PostgreSQL, the sandbox org, and live edits on both.
//!
//! * [`server`]: a PostgreSQL server of one's own, gone when dropped, or when the program ends in any other way.
//! * [`world`]: that server, a sandbox with believable records, and a configuration that joins them.
//! * [`edits`]: people on both sides, with conflicts and deletes among what they do.
//! * [`compare`]: both sides, field by field, by their canonical values.

pub mod compare;
pub mod edits;
mod guardian;
pub mod server;
pub mod world;
