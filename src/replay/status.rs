//! What replay to a side is doing, for metrics and `status`.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::change::Offset;
use crate::clock::Micros;

/// Live figures of one [`super::Runner`].
#[derive(Debug, Default)]
pub struct ReplayStatus {
    cursor: AtomicU64,
    waiting_since: AtomicI64,
    pub(super) written: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) in_flight: AtomicU64,
    /// Records that need a write which waits for what the side tells next, writes of an earlier session of which it has not told,
    /// and writes that were put off.
    pub(super) behind: AtomicU64,
    open: AtomicBool,
}

impl ReplayStatus {
    /// The first offset that replay has not read.
    pub fn cursor(&self) -> Offset {
        Offset(self.cursor.load(Ordering::Relaxed))
    }

    /// When the oldest entry that replay has not finished was recorded; 0 when it has finished all.
    pub fn waiting_since(&self) -> Micros {
        self.waiting_since.load(Ordering::Relaxed)
    }

    /// Writes acknowledged by the side.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Batches carried out.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Writes that were put off to be tried again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Batches that failed as a whole.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Writes that became dead letters.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Writes that are with the side just now, and records that may need one as soon as the side has told what became of the
    /// last.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed) + self.behind.load(Ordering::Relaxed)
    }

    /// Whether the circuit breaker is open: the side is failing as a whole, and only probes are sent.
    pub fn breaker_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    pub(super) fn at(&self, cursor: Offset, waiting_since: Micros) {
        self.cursor.store(cursor.0, Ordering::Relaxed);
        self.waiting_since.store(waiting_since, Ordering::Relaxed);
    }

    pub(super) fn set_open(&self, open: bool) -> bool {
        self.open.swap(open, Ordering::Relaxed) != open
    }
}
