//! From the log to a side.
//!
//! A [`Runner`] reads the log in order from its cursor. Every entry about a record is a reason to look at that record: the
//! ledger plans what the side needs (nothing, most often), and the plan is durable as tickets before the side sees it. So the
//! log itself is the queue, and nothing has to be remembered about what waits: a ticket that closes, a dead letter that is
//! retried, a conflict that is decided are entries too, and the record is looked at again.
//!
//! Invariants: at most one write per record and side is under way; a cursor never passes a record that still needs a look;
//! a write whose effect is unknown is resolved by the target (a transaction that committed or did not) or sent again where
//! that is harmless.

mod attempts;
mod order;
mod runner;
mod status;

pub use runner::{Runner, Settings};
pub use status::ReplayStatus;
