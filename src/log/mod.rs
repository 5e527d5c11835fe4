//! The change log: one ordered, durable list of entries, with the state they add up to.
//!
//! Everything that goes from one side to the other goes through here. This file is the contract; an implementation is
//! right when it passes `conformance`, which runs against each of them.
//!
//! **The log.** Entries are numbered by [`Offset`], from [`ChangeLog::head`] (the first that can be read) to just before
//! [`ChangeLog::tail`] (the first that is not written), without holes. An entry never changes. Each is framed with a
//! CRC32C and the chain value of the entry before it ([`frame`]), so that both bit rot and tampering are found, and the
//! first bad offset is named.
//!
//! **The state** is a fold over the entries: keys and values that [`ChangeLog::append`] changes together with the entries
//! that justify it. There is no other way to change it but [`ChangeLog::rebuild`], which computes it anew.
//!
//! **Indexes**: which entries are about a record, and which entry holds a place of a source transaction. They are derived
//! from the entries like the state, and rebuilt with it.
//!
//! **Invariants.**
//! 1. An append is atomic: all of its entries, index keys and state changes are there, or none.
//! 2. When `append` returns, what it wrote survives a crash of the machine. Only then do `tail`, `read` and the state show it.
//! 3. One process writes. A writer that has been deposed is fenced off by `expected_tail`.
//! 4. After a write or sync has failed, nothing more is written: what reached the disk is unknown, so only a fresh start,
//!    which reads it back, may go on. A failed sync is never tried again.
//! 5. A reader sees a prefix of the log, and never an entry whose bytes are not the ones that were appended.
//!
//! All methods block. An async caller goes through [`reader::LogReader`].

mod append;
#[cfg(test)]
mod conformance;
pub mod frame;
pub mod memory;
mod page;
pub mod reader;
pub mod rocks;
mod rules;
pub mod time;
pub mod verify;

use std::sync::Arc;

pub use append::{Append, AppendEntry, record_of};
pub use frame::{Chain, GENESIS};
pub use memory::MemoryLog;
pub use page::{Page, ReadLimit};
pub use reader::{LogReader, ReaderPool};
pub use rocks::{RocksLog, RocksOptions};
pub use time::offset_at_time;

use crate::change::{Offset, RecordId};
use crate::error::Result;

/// A log that is shared by its one writer and its readers.
pub type SharedLog = Arc<dyn ChangeLog>;

/// Reads keys and values in key order: the state of a log, or one that is being rebuilt.
pub trait StateRead: Send + Sync {
    /// The value of `key`.
    fn state(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// The values of `keys`, in their order, looked up together; much faster than one by one.
    fn states(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>>;

    /// At most `limit` keys that start with `prefix` and come after `after` (which need not exist), in byte order, with
    /// their values. An empty prefix is every key. Fewer than `limit` means that there are no more.
    fn scan_state(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>>;
}

/// The change log. See the module for what it promises.
pub trait ChangeLog: StateRead + 'static {
    /// The first offset that can be read. Equal to [`Self::tail`] when the log is empty.
    fn head(&self) -> Offset;

    /// The first offset that is not written: everything before it is durable.
    fn tail(&self) -> Offset;

    /// The chain value of the last entry ([`GENESIS`] for an empty log): equal chains mean equal logs.
    fn chain(&self) -> Chain;

    /// Writes `append` at the tail and syncs it, and returns the new tail.
    ///
    /// The entries get the offsets from `expected_tail` on. State changes are applied in order, so the last one to a key
    /// stands. An append without anything in it does nothing.
    ///
    /// - [`crate::error::Kind::Internal`], with nothing written: the tail is not `expected_tail` (somebody else has
    ///   written), there are state changes without an entry, or an entry is larger than [`frame::BODY_BYTES_MAX`].
    /// - [`crate::error::Kind::Storage`]: it could not be written or synced, now or by an earlier append. The log takes
    ///   nothing more until it is opened again.
    fn append(&self, expected_tail: Offset, append: &Append) -> Result<Offset>;

    /// The entries from `from` on, as encoded by [`crate::change::codec`], as many as `limit` allows, and at least one if
    /// there is one. From the tail on the page is empty.
    ///
    /// Each is checked: its CRC32C, that no offset is missing, and that it is chained to its predecessor.
    /// [`crate::error::Kind::Corrupt`] names the bad offset, which is always `from`: good entries before a bad one are given
    /// first, as a page that ends there. So one can read past a bad entry, from the offset after it.
    fn read(&self, from: Offset, limit: ReadLimit) -> Result<Page>;

    /// The offsets of entries about `record`, ascending, from `from` on, at most `limit`.
    fn record_offsets(&self, record: RecordId, from: Offset, limit: usize) -> Result<Vec<Offset>>;

    /// The last entry that was appended with this transaction key.
    fn transaction_offset(&self, key: &[u8]) -> Result<Option<Offset>>;

    /// [`Self::transaction_offset`] of `keys`, in their order, looked up together.
    fn transaction_offsets(&self, keys: &[&[u8]]) -> Result<Vec<Option<Offset>>>;

    /// At most `limit` transaction keys that start with `prefix` and come after `after`, in byte order, with their offsets.
    fn scan_transactions(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>>;

    /// At most `limit` entries of the record index that come after `after`, by record and offset.
    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>>;

    /// Starts to compute the state and the indexes anew, from an empty state at [`Self::head`].
    ///
    /// Nothing that readers see changes before [`Rebuild::commit`]; dropping the rebuild, or a crash, leaves everything as
    /// it was. One at a time: a second one is [`crate::error::Kind::Internal`].
    fn rebuild(&self) -> Result<Box<dyn Rebuild + '_>>;

    /// Sizes for metrics and `status`.
    fn stats(&self) -> Result<LogStats>;
}

/// A state that is being computed anew; what has been written so far can be read as it will be.
pub trait Rebuild: StateRead {
    /// Adds what the entries from `first` on add up to: their index keys and state changes, in exactly the form in which
    /// they were first appended. The bodies are not written again.
    ///
    /// Calls follow the log without holes; another `first` is [`crate::error::Kind::Internal`].
    fn write(&mut self, first: Offset, append: &Append) -> Result<()>;

    /// [`ChangeLog::scan_transactions`] of every key written so far.
    fn scan_transactions(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>>;

    /// [`ChangeLog::scan_records`] of what is written so far.
    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>>;

    /// Puts the new state and indexes in the place of the old ones: after a crash either the old ones or the new ones are
    /// there, whole. Every entry up to the tail must have been written; otherwise it is [`crate::error::Kind::Internal`]
    /// and the old ones stay.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// How large the log is and how its storage is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Entries that can be read.
    pub entries: u64,
    /// Bytes on disk, all files.
    pub disk_bytes: u64,
    /// Bytes of memory that hold what is not yet written to its final file.
    pub write_buffer_bytes: u64,
    /// Bytes of memory that cache what has been read.
    pub cache_bytes: u64,
    /// Bytes that background work still has to rewrite; growing without end, the disk is too slow.
    pub pending_compaction_bytes: u64,
    /// Whether writes are being slowed down by background work just now.
    pub write_stalled: bool,
}

/// The first key at which two states differ, by a scan over both; `None` when they are equal byte for byte.
pub fn first_difference(one: &dyn StateRead, other: &dyn StateRead) -> Result<Option<Vec<u8>>> {
    const PAGE: usize = 1_000;
    let mut after: Option<Vec<u8>> = None;
    loop {
        let a = one.scan_state(&[], after.as_deref(), PAGE)?;
        let b = other.scan_state(&[], after.as_deref(), PAGE)?;
        if let Some((x, y)) = a.iter().zip(&b).find(|(x, y)| x != y) {
            return Ok(Some(x.0.clone().min(y.0.clone())));
        }
        let common = a.len().min(b.len());
        if let Some((key, _)) = a.get(common).or_else(|| b.get(common)) {
            return Ok(Some(key.clone()));
        }
        match a.into_iter().next_back() {
            Some((key, _)) if common == PAGE => after = Some(key),
            _ => return Ok(None),
        }
    }
}
