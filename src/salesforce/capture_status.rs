//! How the capture of an org's changes is doing, for metrics, for people, and for the ledger's question whether the stream
//! has passed a moment.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::clock::Micros;

/// Counters and marks of one capture. Shared; each is read on its own.
#[derive(Debug, Default)]
pub struct CaptureStatus {
    events: AtomicU64,
    own_events: AtomicU64,
    foreign_events: AtomicU64,
    duplicates: AtomicU64,
    repeated_events: AtomicU64,
    gap_events: AtomicU64,
    rereads: AtomicU64,
    sweeps: AtomicU64,
    recoveries: AtomicU64,
    reconnects: AtomicU64,
    in_flight: AtomicU64,
    connected: AtomicBool,
    limited: AtomicBool,
    last_commit_us: AtomicI64,
    stream_time_us: AtomicI64,
    new_schema: Notify,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*
    };
}

impl CaptureStatus {
    counters! {
        /// Events received, of mapped objects or not.
        events,
        /// Events that are marked as ours.
        own_events,
        /// Events of objects that are not mapped.
        foreign_events,
        /// Rows that the log had already, by its receipts.
        duplicates,
        /// Events that the server delivered once more under another replay id, and that were left out.
        repeated_events,
        /// Gap and overflow events, and events with wildcard ids.
        gap_events,
        /// Records read again because an event could not tell them.
        rereads,
        /// Whole objects read again.
        sweeps,
        /// Times that the stream was lost, and what had changed was read again.
        recoveries,
        /// Times that the subscription broke and was opened again.
        reconnects,
        /// Batches handed over and not yet durable.
        in_flight,
    }

    /// Whether there is a subscription.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether the subscription waits for a limit of the org, such as the daily allocation of delivered events.
    pub fn limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// The commit time of the latest event that is durable in the log, by the org's clock; `None` before the first.
    pub fn last_commit(&self) -> Option<Micros> {
        Some(self.last_commit_us.load(Ordering::Acquire)).filter(|at| *at != 0)
    }

    /// Everything that the org committed up to here, by its clock, and that its stream tells is durable in the log;
    /// `None` before the first event or keepalive.
    pub fn stream_time(&self) -> Option<Micros> {
        Some(self.stream_time_us.load(Ordering::Acquire)).filter(|at| *at != 0)
    }

    /// Waits until an event of a mapped object comes with a schema that none had before: the object's fields may have changed. What
    /// came since the last time is told at once.
    pub async fn new_schema(&self) {
        self.new_schema.notified().await;
    }

    pub(crate) fn note_new_schema(&self) {
        self.new_schema.notify_one();
    }

    pub(crate) fn count_event(&self, own: bool, foreign: bool) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.own_events.fetch_add(u64::from(own), Ordering::Relaxed);
        self.foreign_events.fetch_add(u64::from(foreign), Ordering::Relaxed);
    }

    pub(crate) fn count_repeated(&self) {
        self.repeated_events.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_gap(&self) {
        self.gap_events.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_rereads(&self, records: usize) {
        self.rereads.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_sweep(&self) {
        self.sweeps.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_recovery(&self) {
        self.recoveries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_reconnect(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_duplicates(&self, rows: u64) {
        self.duplicates.fetch_add(rows, Ordering::Relaxed);
    }

    pub(crate) fn set_in_flight(&self, batches: usize) {
        self.in_flight.store(batches as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn set_limited(&self, limited: bool) {
        self.limited.store(limited, Ordering::Relaxed);
    }

    pub(crate) fn committed(&self, at: Micros) {
        self.last_commit_us.fetch_max(at, Ordering::Release);
    }

    pub(crate) fn passed(&self, at: Micros) {
        self.stream_time_us.fetch_max(at, Ordering::Release);
    }
}
