//! Queries over the log: who changed a field, when, from what and to what, and how every conflict ended.
//!
//! Everything here reads: entries by offset, by record and by time, and the state that they add up to. Names come from the
//! catalog in the log itself, so no configuration file is needed to read one.

mod describe;
mod find;
mod range;

pub use describe::{Described, FieldLine, describe};
pub use find::{Conflict, DeadLetter, Filter, Lens, RecordRef};
pub use range::{Needs, images, needs, touched};
