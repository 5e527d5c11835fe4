//! The rules of order, causality and conflicts. Pure: state and entry in, state and decisions out.
//!
//! Both sides are sets of registers (a record's fields, and whether it exists), each with one totally ordered stream that
//! contains our own writes too. So the log knows for every edit what its author saw: the value that the side held at that
//! place of its stream. No clock is needed for that.
//!
//! * [`state`]: what is known of one record: per register the current value with the dots that carry it, and what each side
//!   holds.
//! * [`observe`]: what an event of a side's stream means for a record: nothing, an echo, a change, or an echo and a change.
//! * [`apply`]: the fold. One entry, one record state; the decisions that follow are returned and belong in the log right
//!   behind the entry.
//! * [`plan`]: what has to be written to a side so that it holds the current values.
//!
//! Invariants, tested as properties: convergence, no silent loss, no flip-flop, causal order per record, once, determinism.

pub mod apply;
pub mod observe;
pub mod plan;
pub mod state;
mod state_codec;

pub use apply::{Context, apply, resolve};
pub use observe::{Seen, observe};
pub use plan::plan;
pub use state::{Dots, Held, InFlight, Parked, RecordState, Refused, Register};
