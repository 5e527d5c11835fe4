//! What capture is doing, readable at any time by status pages and metrics.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::change::Lsn;
use crate::clock::Micros;
use crate::postgres::slot::Slot;

/// Counters and places of a capture, kept over its restarts. Written by capture alone.
#[derive(Debug, Default)]
pub struct CaptureStatus {
    pub(super) connected: AtomicBool,
    pub(super) received_lsn: AtomicU64,
    pub(super) durable_lsn: AtomicU64,
    pub(super) acknowledged_lsn: AtomicU64,
    pub(super) server_wal_end: AtomicU64,
    pub(super) last_commit_time: AtomicI64,
    pub(super) transactions: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) duplicates: AtomicU64,
    pub(super) batches_in_flight: AtomicU64,
    slot: Mutex<Option<SlotStatus>>,
    behind_since: AtomicI64,
}

/// The slot as it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotStatus {
    /// How much of its log the server keeps for it.
    pub retained_bytes: u64,
    /// How much more may be written before it can be lost; none without a limit.
    pub safe_bytes: Option<i64>,
    /// Whether most of the room is used up.
    pub endangered: bool,
}

/// What [`CaptureStatus`] says at one moment. The places are not read at one instant, so a later one may be ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CaptureSnapshot {
    /// Whether the stream is running.
    pub connected: bool,
    /// How far the stream has been received.
    pub received_lsn: Lsn,
    /// How far it is durable in the change log.
    pub durable_lsn: Lsn,
    /// How far the server was told so.
    pub acknowledged_lsn: Lsn,
    /// How far the server has sent or read its own log.
    pub server_wal_end: Lsn,
    /// The commit time of the last transaction, in microseconds since the Unix epoch; 0 before the first.
    pub last_commit_time: Micros,
    /// Transactions received.
    pub transactions: u64,
    /// Events offered to the change log.
    pub events: u64,
    /// Bytes read from the server.
    pub bytes: u64,
    /// Events that the change log dropped because it had them.
    pub duplicates: u64,
    /// Batches offered and not yet durable.
    pub batches_in_flight: u64,
    /// The slot; none before the first look.
    pub slot: Option<SlotStatus>,
    /// Since when the server's log has been further than what is durable here; 0 if it is not known to be.
    pub behind_since: Micros,
}

impl CaptureStatus {
    /// What it says now.
    pub fn snapshot(&self) -> CaptureSnapshot {
        let lsn = |at: &AtomicU64| Lsn(at.load(Relaxed));
        CaptureSnapshot {
            connected: self.connected.load(Relaxed),
            acknowledged_lsn: lsn(&self.acknowledged_lsn),
            durable_lsn: lsn(&self.durable_lsn),
            received_lsn: lsn(&self.received_lsn),
            server_wal_end: lsn(&self.server_wal_end),
            last_commit_time: self.last_commit_time.load(Relaxed),
            transactions: self.transactions.load(Relaxed),
            events: self.events.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            duplicates: self.duplicates.load(Relaxed),
            batches_in_flight: self.batches_in_flight.load(Relaxed),
            slot: *self.slot.lock().unwrap_or_else(PoisonError::into_inner),
            behind_since: self.behind_since.load(Relaxed),
        }
    }

    /// From now on the source gets ahead.
    pub(super) fn disconnected(&self, now: Micros) {
        self.connected.store(false, Relaxed);
        self.batches_in_flight.store(0, Relaxed);
        // Where it was ahead before, that is the longer.
        let _already = self.behind_since.compare_exchange(0, now, Relaxed, Relaxed);
    }

    /// How far the stream is taken care of: what is received counts where nothing is under way.
    pub(super) fn reached(&self) -> Lsn {
        let idle = self.connected.load(Relaxed) && self.batches_in_flight.load(Relaxed) == 0;
        Lsn(if idle { &self.received_lsn } else { &self.durable_lsn }.load(Relaxed))
    }

    pub(super) fn set_slot(&self, slot: &Slot, behind_since: Micros) {
        let endangered = super::watch::danger(slot).is_some();
        let seen = SlotStatus { retained_bytes: slot.retained_bytes(), safe_bytes: slot.safe_wal_bytes, endangered };
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        self.behind_since.store(behind_since, Relaxed);
    }
}
