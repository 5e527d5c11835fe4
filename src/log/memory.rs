//! A log in memory, for tests and simulations: the same contract, no disk.
//!
//! [`MemoryLog::reopen`] stands for a restart: the new handle sees everything that was appended, and the old one is fenced
//! off like a deposed writer. [`MemoryLog::fail_after`] stands for a disk that gives up.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::frame::{self, Chain, Follow};
use super::{Append, ChangeLog, LogStats, Page, ReadLimit, Rebuild, StateRead, rules};
use crate::change::{Offset, RecordId};
use crate::error::{Error, Kind, Result};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// The state and the indexes.
#[derive(Debug, Clone, Default)]
struct Derived {
    state: State,
    by_record: BTreeSet<(RecordId, Offset)>,
    by_transaction: BTreeMap<Vec<u8>, Offset>,
}

#[derive(Debug, Default)]
struct Inner {
    frames: Vec<Vec<u8>>,
    chain: Chain,
    derived: Derived,
    rebuilding: bool,
    appends_left: Option<u64>,
}

/// A log in memory.
#[derive(Debug, Default)]
pub struct MemoryLog {
    inner: Arc<Mutex<Inner>>,
    poisoned: AtomicBool,
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another handle to the same entries and state, as after a restart.
    pub fn reopen(&self) -> Self {
        self.lock().rebuilding = false;
        Self { inner: Arc::clone(&self.inner), poisoned: AtomicBool::new(false) }
    }

    /// Makes the append after the next `appends` ones fail, and with it every later one of the same handle. `None`: no more
    /// failures.
    pub fn fail_after(&self, appends: Option<u64>) {
        self.lock().appends_left = appends;
    }

    /// Puts other bytes in the place of a stored frame, as a bad disk would; `None` if there is no such entry.
    pub fn tamper(&self, offset: Offset, change: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
        let mut inner = self.lock();
        let frame = inner.frames.get_mut(usize::try_from(offset.0).ok()?)?;
        change(frame);
        Some(())
    }

    /// Data is never left half changed by a panic: whatever can fail comes before the first change.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Derived {
    fn records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Vec<(RecordId, Offset)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_record.range((start, Bound::Unbounded)).take(limit).copied().collect()
    }

    fn apply(&mut self, first: Offset, append: &Append) {
        for (n, entry) in (first.0..).zip(append.entries()) {
            if let Some(record) = entry.record {
                self.by_record.insert((record, Offset(n)));
            }
            if let Some(key) = entry.transaction {
                self.by_transaction.insert(key.to_vec(), Offset(n));
            }
        }
        for (key, value) in append.state() {
            match value {
                Some(value) => self.state.insert(key.to_vec(), value.to_vec()),
                None => self.state.remove(key),
            };
        }
    }
}

/// At most `limit` items under `prefix` and after `after`.
fn scan<V: Clone>(map: &BTreeMap<Vec<u8>, V>, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<(Vec<u8>, V)> {
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    map.range::<[u8], _>((start, Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix))
        .take(limit)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

impl StateRead for MemoryLog {
    fn state(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().derived.state.get(key).cloned())
    }

    fn states(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        let inner = self.lock();
        Ok(keys.iter().map(|key| inner.derived.state.get(*key).cloned()).collect())
    }

    fn scan_state(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(scan(&self.lock().derived.state, prefix, after, limit))
    }
}

impl ChangeLog for MemoryLog {
    fn head(&self) -> Offset {
        Offset(0)
    }

    fn tail(&self) -> Offset {
        Offset(self.lock().frames.len() as u64)
    }

    fn chain(&self) -> Chain {
        self.lock().chain
    }

    fn append(&self, expected_tail: Offset, append: &Append) -> Result<Offset> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(rules::poisoned());
        }
        let mut inner = self.lock();
        let tail = Offset(inner.frames.len() as u64);
        rules::fence(tail, expected_tail, append)?;
        match &mut inner.appends_left {
            Some(0) => {
                self.poisoned.store(true, Ordering::Release);
                return Err(Error::new(Kind::Storage, "the change log could not be written (simulated)"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let mut chain = inner.chain;
        for entry in append.entries() {
            inner.frames.push([&frame::header(&chain, entry.body)[..], entry.body].concat());
            chain = frame::chain(&chain, entry.body);
        }
        inner.chain = chain;
        inner.derived.apply(tail, append);
        Ok(Offset(inner.frames.len() as u64))
    }

    fn read(&self, from: Offset, limit: ReadLimit) -> Result<Page> {
        let inner = self.lock();
        let mut page = Page::new(from);
        let start = usize::try_from(from.0).unwrap_or(usize::MAX);
        let mut follow = Follow::after(start.checked_sub(1).and_then(|n| inner.frames.get(n)).map(Vec::as_slice));
        for frame in inner.frames.get(start..).unwrap_or_default() {
            if !limit.takes(page.len(), page.bytes(), frame.len().saturating_sub(frame::HEADER_BYTES)) {
                break;
            }
            match follow.next(frame) {
                Ok(body) => page.push(body, follow.chain()),
                Err(_) if !page.is_empty() => break,
                Err(error) => return Err(error.at(from)),
            }
        }
        Ok(page)
    }

    fn record_offsets(&self, record: RecordId, from: Offset, limit: usize) -> Result<Vec<Offset>> {
        let inner = self.lock();
        let range = (record, from)..=(record, Offset(u64::MAX));
        Ok(inner.derived.by_record.range(range).map(|(_, offset)| *offset).take(limit).collect())
    }

    fn transaction_offset(&self, key: &[u8]) -> Result<Option<Offset>> {
        Ok(self.lock().derived.by_transaction.get(key).copied())
    }

    fn transaction_offsets(&self, keys: &[&[u8]]) -> Result<Vec<Option<Offset>>> {
        let inner = self.lock();
        Ok(keys.iter().map(|key| inner.derived.by_transaction.get(*key).copied()).collect())
    }

    fn scan_transactions(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>> {
        Ok(scan(&self.lock().derived.by_transaction, prefix, after, limit))
    }

    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>> {
        Ok(self.lock().derived.records(after, limit))
    }

    fn rebuild(&self) -> Result<Box<dyn Rebuild + '_>> {
        let mut inner = self.lock();
        rules::one_rebuild(std::mem::replace(&mut inner.rebuilding, true))?;
        Ok(Box::new(MemoryRebuild { log: self, next: Offset(0), derived: Derived::default() }))
    }

    fn stats(&self) -> Result<LogStats> {
        let inner = self.lock();
        Ok(LogStats { entries: inner.frames.len() as u64, ..LogStats::default() })
    }
}

/// A state that is being computed anew.
struct MemoryRebuild<'a> {
    log: &'a MemoryLog,
    next: Offset,
    derived: Derived,
}

impl StateRead for MemoryRebuild<'_> {
    fn state(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.derived.state.get(key).cloned())
    }

    fn states(&self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>> {
        Ok(keys.iter().map(|key| self.derived.state.get(*key).cloned()).collect())
    }

    fn scan_state(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        Ok(scan(&self.derived.state, prefix, after, limit))
    }
}

impl Rebuild for MemoryRebuild<'_> {
    fn write(&mut self, first: Offset, append: &Append) -> Result<()> {
        rules::follows(self.next, first)?;
        self.derived.apply(first, append);
        self.next = Offset(first.0 + append.len() as u64);
        Ok(())
    }

    fn scan_transactions(&self, after: Option<&[u8]>, limit: usize) -> Result<Vec<(Vec<u8>, Offset)>> {
        Ok(scan(&self.derived.by_transaction, &[], after, limit))
    }

    fn scan_records(&self, after: Option<(RecordId, Offset)>, limit: usize) -> Result<Vec<(RecordId, Offset)>> {
        Ok(self.derived.records(after, limit))
    }

    fn commit(mut self: Box<Self>) -> Result<()> {
        let mut inner = self.log.lock();
        rules::covers(self.next, Offset(inner.frames.len() as u64))?;
        inner.derived = std::mem::take(&mut self.derived);
        Ok(())
    }
}

impl Drop for MemoryRebuild<'_> {
    fn drop(&mut self) {
        self.log.lock().rebuilding = false;
    }
}
