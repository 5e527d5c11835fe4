//! Captured events, before the log has given them records, dots and offsets.

use std::future::Future;

use crate::change::{FieldId, Key, MappingId, Notice, Offset, Position, Side, Str, Transaction, Value, Who};
use crate::clock::Micros;
use crate::error::Result;

/// Part of a side's stream, in its order.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Whose stream.
    pub side: Side,
    /// The events, oldest first.
    pub events: Vec<Event>,
}

/// One event of a side's stream.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its place. Events at or before the log's position in the same stream are dropped as duplicates.
    pub position: Position,
    /// The side's transaction.
    pub transaction: Transaction,
    /// When the side committed it, in microseconds since the Unix epoch by the side's clock.
    pub committed_at: Micros,
    /// Who did it.
    pub who: Who,
    /// What it says.
    pub item: Item,
}

/// What an event says.
#[derive(Debug, Clone)]
pub enum Item {
    /// Something happened to a row.
    Row(Row),
    /// A transaction of ours says which of its tickets it applied, skipped and had refused (PostgreSQL's closing message).
    Applied {
        /// Tickets that took effect in this transaction.
        applied: Vec<Offset>,
        /// Tickets whose comparison failed; nothing was written for them.
        skipped: Vec<Offset>,
        /// Tickets that the side does not accept, with its error code and message; nothing was written for them.
        refused: Vec<(Offset, Str, Str)>,
    },
    /// The table of a mapping was emptied by one statement. It comes alone in its batch, with everything before it durable, and
    /// twice takes a place: the rows' ends come at the one before its own.
    Truncate {
        /// The mapping.
        mapping: MappingId,
    },
    /// The stream has come this far, with nothing for us in between.
    Progress,
    /// Something about the stream that belongs on record.
    Notice(Notice),
}

/// Something that happened to a row.
#[derive(Debug, Clone)]
pub struct Row {
    /// The row's mapping.
    pub mapping: MappingId,
    /// What happened.
    pub operation: RowOperation,
    /// The primary key, where the side has one (PostgreSQL; always present there).
    pub key: Option<Key>,
    /// The key before, if this event changed it.
    pub old_key: Option<Key>,
    /// The Salesforce id, 18 characters, where the side tells (Salesforce: always; PostgreSQL: the `sfid` column).
    pub salesforce_id: Option<Str>,
    /// The values that the event tells, canonical, by ascending field id. A field that is absent did not change or was not
    /// told. An insert, undelete or image tells every mapped field that the side knows.
    pub fields: Vec<(FieldId, Value)>,
    /// Whether the event is marked as ours.
    pub own: Own,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOperation {
    /// It was created.
    Insert,
    /// Some of its values were set.
    Update,
    /// It was deleted.
    Delete,
    /// It was restored.
    Undelete,
    /// It was read as it stands, when the two sides were joined. `committed_at` is its own stamp.
    Backfill,
    /// It was read as it stands because the stream could not tell, and the stream waited for it. `committed_at` is its own stamp.
    Image,
    /// It was read as it stands beside the stream. `committed_at` is its own stamp.
    Reread,
    /// It was looked for because the stream could not tell, and is not there.
    Missing,
}

impl RowOperation {
    /// Whether the row was read as it stands, outside of the stream's order.
    pub fn is_image(self) -> bool {
        self == Self::Backfill || self.is_reading()
    }

    /// Whether the row was read, or looked for, since something was not known of it.
    pub fn is_reading(self) -> bool {
        matches!(self, Self::Image | Self::Reread | Self::Missing)
    }
}

/// Whether an event carries our mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Own {
    /// No mark: a user's doing.
    #[default]
    No,
    /// Marked as made by us. Whether it is an echo follows from the tickets: a marked event without one is a user's.
    Marked,
    /// Marked as made by a call of ours that carried tickets from the first to the last of these. Others cannot be its echo:
    /// what such a call sets off in another record is the side's automation.
    Tickets(Offset, Offset),
}

impl Own {
    /// Whether it carries our mark.
    pub fn is_ours(self) -> bool {
        self != Self::No
    }

    /// Whether the event may come of the write of this ticket.
    pub fn may_be(self, ticket: Offset) -> bool {
        match self {
            Self::No => false,
            Self::Marked => true,
            Self::Tickets(first, last) => (first..=last).contains(&ticket),
        }
    }
}

/// The answer to a batch once it is durable in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The log's first unwritten offset after the batch.
    pub tail: Offset,
    /// Events that were dropped as delivered before.
    pub duplicates: u64,
    /// Whether a TRUNCATE in the batch emptied more rows than one append takes: it is to be offered again for the others.
    pub more: bool,
}

/// Takes batches into the log, in the order handed over.
///
/// # Contract
/// * [`Intake::offer`] waits while the log's inbox is full: that is the backpressure to the source.
/// * The future it returns resolves when the batch is synced to disk. Only then may the source be acknowledged.
/// * Several batches may be under way; they become durable in order.
/// * An error is final for the log: the caller stops and starts again from the durable position.
pub trait Intake: Send + Sync {
    /// Hands over a batch; resolves to a future of its durability.
    fn offer(
        &self,
        batch: Batch,
    ) -> impl Future<Output = Result<impl Future<Output = Result<Receipt>> + Send + 'static>> + Send;
}
