//! What a link is doing, and what a person may want of one that runs.
//!
//! [`Figures`] are the numbers behind `status`, the metrics and the demo. A [`Handle`] reads them from a running link, and
//! carries a person's decisions to it.

pub mod choice;
mod figures;
mod handle;

pub use figures::{Api, Copying, Direction, Figures, Reconciling, Schema, SchemaDifference, Totals};
pub use handle::{Handle, Identity, LINK_HEADER, LOG_HEADER, Parts};
