//! Writes to a side, planned by the log.

use std::future::Future;

use crate::change::{FieldId, Key, Lsn, MappingId, Offset, RecordId, Side, Str, Value, WriteKind};
use crate::error::Result;

/// One value to write, and what the log believes the side holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteValue {
    /// Which field.
    pub field: FieldId,
    /// What the side is believed to hold (null for a create).
    pub expected: Value,
    /// What to write.
    pub value: Value,
}

/// One write to one record at one side. Its ticket is durable in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The ticket's offset: the write's name.
    pub ticket: Offset,
    /// The record's mapping.
    pub mapping: MappingId,
    /// The record.
    pub record: RecordId,
    /// What the write does.
    pub kind: WriteKind,
    /// The primary key, where known (PostgreSQL: absent for a create with a generated key).
    pub key: Option<Key>,
    /// The Salesforce id, where known (absent when Salesforce is to create it).
    pub salesforce_id: Option<Str>,
    /// The external id by which Salesforce matches the record, for a create there.
    pub external_id: Option<Str>,
    /// The values, by ascending field id. A delete carries every mapped field with what is expected, and no new value.
    pub values: Vec<WriteValue>,
}

/// How one write went, by the side's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The side acknowledged it.
    Done {
        /// The record's Salesforce id, where the answer tells it.
        salesforce_id: Option<Str>,
    },
    /// The answer comes in the side's stream (PostgreSQL): applied or skipped, by the closing message.
    InStream,
    /// Refused for a reason that retrying does not mend.
    Refused {
        /// The side's error code.
        code: Str,
        /// The side's message.
        message: Str,
    },
    /// Not done, and worth trying again after a while.
    Retry {
        /// The side's error code or condition.
        code: Str,
        /// The side's message.
        message: Str,
        /// What would mend it.
        mended: Mended,
    },
}

/// What it takes for a write to go through that was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mended {
    /// Nobody knows: it is given up after some attempts.
    Perhaps,
    /// Time alone: somebody holds a lock, or the side is overloaded.
    ByTime,
    /// Room under a limit that all writes to the side share.
    ByRoom,
}

/// How a target's writes are confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmation {
    /// Atomically: a batch is one transaction, and after a failure [`Target::resume`] tells exactly what took effect.
    Transaction,
    /// By answers: after a failure the same writes are sent again, which must be harmless.
    Answer,
}

/// What became of a side's earlier writes, as far as it says itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resumed {
    /// The highest ticket offset whose transaction committed. `None` where that is not known, or nothing was ever written.
    pub committed: Option<Offset>,
    /// The place up to which the side's stream has told of all those transactions.
    pub told_by: Option<Lsn>,
}

/// Carries out writes at one side.
///
/// # Contract
/// * At most one write per record is in a batch or in flight, and tickets are durable before [`Target::write`] sees them.
/// * Answers come one per write, in the batch's order.
/// * An `Err` from [`Target::write`] leaves the effect unknown. A [`Confirmation::Transaction`] target is asked to
///   [`Target::resume`]; an [`Confirmation::Answer`] target is sent the same writes again.
/// * Cancelling a call leaves the effect unknown, like an error.
pub trait Target: Send {
    /// The side.
    fn side(&self) -> Side;

    /// How writes are confirmed.
    fn confirmation(&self) -> Confirmation;

    /// The most writes in a batch.
    fn batch_limit(&self) -> usize;

    /// Connects, makes sure that no earlier session of ours is still writing, and returns what became of earlier writes.
    fn resume(&mut self) -> impl Future<Output = Result<Resumed>> + Send;

    /// Carries out a batch. Order within it: as given.
    fn write(&mut self, batch: &[Write]) -> impl Future<Output = Result<Vec<Written>>> + Send;
}
