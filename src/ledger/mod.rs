//! The one owner of state: captured events in, entries and tickets out.
//!
//! [`Ledger`] is a handle to one thread that owns the log's writes. It takes what is ready up to a cap, folds it, appends
//! entries, state and positions as one batch, syncs once, then answers everybody and wakes the readers (group commit).
//!
//! * [`fold`]: an entry changes the state: record states, identities, indexes, positions. The same code runs live, for
//!   `log verify` and for `log rebuild`.
//! * [`core`]: what an event, a plan, an answer or a person's word becomes as entries. No threads, no runtime.
//! * [`thread`]: the owner thread and its handle.
//! * [`prefix`]: the state as it was at an earlier place of the log.
//! * [`verify`]: proves a log: chain, holes, fold equals state, no silent loss.
//!
//! Invariants: state is a fold over the log and nothing else; a position is stored in the same batch as the entries it
//! stands for; nothing is answered before it is synced; after a failed append nothing is ever appended again.

pub mod core;
pub mod fold;
pub mod keys;
pub mod meta;
pub mod prefix;
#[cfg(test)]
pub(crate) mod testing;
pub mod thread;
pub mod verify;

pub use self::core::{Answer, Core, DeadLetterAction};
pub use meta::{BackfillProgress, Meta, Reconcile};
pub use thread::{Ledger, Status, start};
