//! What passes between a side and the log: captured events on the way in, writes on the way out, and the two seams.
//!
//! A side's code knows these types and nothing of the other side, of the rules, or of the log's storage.
//!
//! Capture: a side reads its own stream, resolves rows to mappings and canonical values, and hands [`Batch`]es to an
//! [`Intake`]. The log decides what each event means (change, echo, duplicate) and answers when it is durable.
//!
//! Replay: the log plans a [`Write`] per record, which is durable as a ticket before the side sees it; the side's
//! [`Target`] carries out batches of writes and answers for each one. An [`Image`] is for a copy that no stream tells of.

mod captured;
mod image;
mod write;

pub use captured::{Batch, Event, Intake, Item, Own, Receipt, Row, RowOperation};
pub use image::Image;
pub use write::{Confirmation, Mended, Resumed, Target, Write, WriteValue, Written};
