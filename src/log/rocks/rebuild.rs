//! Computes the state and the indexes anew, in the generation that is not in force.
//!
//! A crash before the generation's number is written leaves the old generation in force, and what was written of the new
//! one is emptied by the next rebuild.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use rocksdb::{ColumnFamily, FlushOptions, WriteBatch};

use super::failure::Doing;
use super::options::META;
use super::{Derived, Durable, GENERATION, RocksLog, indexed, rules, scan};
use crate::change::{Offset, RecordId};
use crate::error::{Error, Kind, Result};
use crate::log::{Append, ChangeLog as _, Rebuild, StateRead};

/// A rebuild under way.
pub(super) struct RocksRebuild<'a> {
    log: &'a RocksLog,
    generation: usize,
    families: Derived<'a>,
    next: Offset,
    committed: bool,
}

impl<'a> RocksRebuild<'a> {
    pub(super) fn new(log: &'a RocksLog) -> Result<Self> {
        rules::one_rebuild(log.rebuilding.swap(true, Ordering::AcqRel))?;
        let started = Self::start(log);
        if started.is_err() {
            log.rebuilding.store(false, Ordering::Release);
        }
        started
    }

    fn start(log: &'a RocksLog) -> Result<Self> {
        let generation = 1 - *log.generation.read().unwrap_or_else(PoisonError::into_inner);
        let families = log.families(generation)?;
        families.empty(log)?;
        Ok(Self { log, generation, families, next: log.head(), committed: false })
    }
}

impl Derived<'_> {
    /// Removes everything from the families.
    fn empty(self, log: &RocksLog) -> Result<()> {
        for family in [self.state, self.by_record, self.by_transaction] {
            empty(log, family)?;
        }
        Ok(())
    }
}

fn empty(log: &RocksLog, family: &ColumnFamily) -> Result<()> {
    let mut iterator = log.db.raw_iterator_cf(family);
    iterator.seek_to_last();
    iterator.status().map_err(|e| log.failed(Doing::Reading, e))?;
    let Some(last) = iterator.key() else { return Ok(()) };
    let end = [last, &[0]].concat();
    drop(iterator);
    let mut batch = WriteBatch::default();
    batch.delete_range_cf(family, [].as_slice(), end.as_slice());
    log.write(batch, Durable::WhenFlushed)?;
    log.db.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
    Ok(())
}

impl StateRead for RocksRebuild<'_> {
    fn state(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.log.db.get_cf(self.families.state, key).map_err(|e| self.log.failed(Doing::Reading, e))
    }

    fn states(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        self.log.lookup(self.families.state, keys, |value| Ok(value.to_vec()))
    }

    fn scan_state(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        scan::prefix(&self.log.db, self.families.state, prefix, after, limit, |value| Ok(value.to_vec()))
            .map_err(|e| e.into_error(self.log))
    }
}

impl Rebuild for RocksRebuild<'_> {
    fn write(&mut self, first: Offset, append: &Append) -> Result<()> {
        rules::follows(self.next, first)?;
        let mut batch = WriteBatch::with_capacity_bytes(append.bytes());
        self.families.fill(&mut batch, first, append);
        self.log.write(batch, Durable::WhenFlushed)?;
        self.next = Offset(first.0 + append.len() as u64);
        Ok(())
    }

    fn scan_transactions(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>> {
        scan::prefix(&self.log.db, self.families.by_transaction, &[], after, limit, indexed)
            .map_err(|e| e.into_error(self.log))
    }

    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>> {
        scan::records(&self.log.db, self.families.by_record, after, limit).map_err(|e| e.into_error(self.log))
    }

    fn commit(mut self: Box<Self>) -> Result<()> {
        let log = self.log;
        // No append may come between the check and the switch.
        let _writer = log.writer.lock().map_err(|_| rules::poisoned())?;
        if log.poisoned.load(Ordering::Acquire) {
            return Err(rules::poisoned());
        }
        rules::covers(self.next, log.tail())?;
        let mut flush = FlushOptions::default();
        flush.set_wait(true);
        let new = [self.families.state, self.families.by_record, self.families.by_transaction];
        log.db.flush_cfs_opt(&new, &flush).map_err(|e| log.failed(Doing::Writing, e))?;
        let number = u8::try_from(self.generation)
            .map_err(|e| Error::new(Kind::Internal, "a generation is 0 or 1").caused_by(e))?;
        let mut batch = WriteBatch::default();
        let meta = log.family(META)?;
        batch.put_cf(meta, GENERATION, [number]);
        // In the same place as the new generation's tables, or a reader that opens now could see it without them.
        log.write(batch, Durable::WhenFlushed)?;
        log.db.flush_cf_opt(meta, &flush).map_err(|e| log.failed(Doing::Writing, e))?;
        // Waits for readers of the old generation; later ones read the new one.
        *log.generation.write().unwrap_or_else(PoisonError::into_inner) = self.generation;
        self.committed = true;
        log.families(1 - self.generation)?.empty(log)
    }
}

impl Drop for RocksRebuild<'_> {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.families.empty(self.log)
        {
            // Nothing reads it, and the next rebuild empties it first.
            tracing::warn!(%error, "what an unfinished rebuild of the state has written could not be removed");
        }
        self.log.rebuilding.store(false, Ordering::Release);
    }
}
