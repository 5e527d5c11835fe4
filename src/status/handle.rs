//! A running link, as the HTTP port and the demo see it.

use std::sync::Arc;

use crate::audit::{Conflict, Lens};
use crate::change::{Offset, Side};
use crate::clock::SharedClock;
use crate::error::Result;
use crate::ledger::{DeadLetterAction, Ledger, keys};
use crate::log::reader::LogReader;
use crate::postgres::capture::CaptureStatus as PostgresCapture;
use crate::replay::ReplayStatus;
use crate::salesforce::capture_status::CaptureStatus as SalesforceCapture;
use crate::salesforce::rest::Rest;

use super::figures::{self, Api, Copying, Direction, Figures, Schema, Slot, Totals};

/// The header of a request that names the link it is for, and of each answer.
pub const LINK_HEADER: &str = "tidelock-link";
/// The header of a request that names the log it is for by its id, and of each answer.
pub const LOG_HEADER: &str = "tidelock-log";

/// Which link this is, so that one with the same port is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The link's name.
    pub link: String,
    /// Its log's id.
    pub log: String,
}

/// What a running link is made of, as far as it is looked at.
pub struct Parts {
    /// Which link it is.
    pub identity: Identity,
    /// The ledger.
    pub ledger: Ledger,
    /// The log.
    pub log: LogReader,
    /// The clock.
    pub clock: SharedClock,
    /// The mappings and rules in force.
    pub catalog: Arc<crate::change::Catalog>,
    /// Capture from PostgreSQL.
    pub postgres: Arc<PostgresCapture>,
    /// Capture from Salesforce.
    pub salesforce: Arc<SalesforceCapture>,
    /// Replay to each side, by side.
    pub replay: [Arc<ReplayStatus>; 2],
    /// How many rows the copies have.
    pub totals: Arc<Totals>,
    /// Calls to the org.
    pub rest: Rest,
    /// Why the configuration is not known to be in force, while that is so.
    pub unconfigured: tokio::sync::watch::Receiver<Option<String>>,
    /// What the org's fields ask of the tables.
    pub schema: tokio::sync::watch::Receiver<Option<Schema>>,
}

/// A running link.
pub struct Handle {
    parts: Parts,
}

impl From<Parts> for Handle {
    fn from(parts: Parts) -> Self {
        Self { parts }
    }
}

impl Handle {
    /// Which link it is.
    pub fn identity(&self) -> &Identity {
        &self.parts.identity
    }

    /// The link in numbers.
    pub async fn figures(&self) -> Result<Figures> {
        let (log_stats, open, dead, records) = self
            .parts
            .log
            .call(|log| {
                let open = figures::count(log, keys::OPEN_CONFLICT)?;
                let dead = figures::count(log, keys::DEAD_LETTER)?;
                Ok((log.stats()?, open, dead, figures::records(log)?))
            })
            .await?;
        let status = self.parts.ledger.status().borrow().clone();
        let usage = self.parts.rest.usage();
        Ok(Figures {
            running: true,
            unconfigured: self.parts.unconfigured.borrow().clone(),
            schema: self.parts.schema.borrow().clone(),
            log_entries: log_stats.entries,
            log_bytes: log_stats.disk_bytes,
            records,
            conflicts: status.counts.conflicts,
            conflicts_open: open,
            dead_letters: dead,
            appends: status.appends,
            queued: self.parts.ledger.queued() as u64,
            to_salesforce: self.direction(Side::Postgres, &status),
            to_postgres: self.direction(Side::Salesforce, &status),
            slot: self.parts.postgres.snapshot().slot.map(|slot| Slot {
                retained_bytes: slot.retained_bytes,
                safe_bytes: slot.safe_bytes,
                endangered: slot.endangered,
            }),
            backfills: self.copies(),
            api: Some(Api { calls: usage.calls(), used: usage.used(), limit: usage.limit() }),
        })
    }

    /// How far copying what was there before has come.
    pub fn copies(&self) -> Vec<Copying> {
        let status = self.parts.ledger.status();
        let status = status.borrow();
        let total = |side, mapping| self.parts.totals.get(side, mapping);
        let copying = |b| Copying::of(b, &self.parts.catalog, total(b.side, b.mapping));
        status.backfills.iter().map(copying).collect()
    }

    fn direction(&self, from: Side, status: &crate::ledger::Status) -> Direction {
        let to = from.other();
        let replay = &self.parts.replay[to.index()];
        let lag_entries = status.tail.0.saturating_sub(replay.cursor().0);
        let waiting_since = replay.waiting_since();
        let since = |at: crate::clock::Micros| {
            if at == 0 { 0.0 } else { (self.parts.clock.now() - at).max(0) as f64 / 1_000_000.0 }
        };
        let lag_seconds = since(waiting_since);
        let (connected, reconnects, source_lag_bytes, source_lag_seconds) = match from {
            Side::Postgres => {
                let capture = self.parts.postgres.snapshot();
                let bytes = capture.server_wal_end.0.saturating_sub(capture.durable_lsn.0);
                (capture.connected, 0, bytes, since(capture.behind_since))
            }
            Side::Salesforce => (self.parts.salesforce.connected(), self.parts.salesforce.reconnects(), 0, 0.0),
        };
        let state = if replay.breaker_open() {
            "failing"
        } else if !connected {
            "capture not connected"
        } else if status.backfills.iter().any(|b| b.side == to && b.reconciling().is_some()) {
            "waits until its rows are compared"
        } else if lag_entries == 0 && replay.in_flight() == 0 {
            "in step"
        } else {
            "catching up"
        };
        Direction {
            from: from.to_string(),
            to: to.to_string(),
            changes: status.counts.changes[from.index()],
            echoes: status.counts.echoes[from.index()],
            duplicates: status.counts.duplicates[from.index()],
            lag_entries,
            lag_seconds,
            written: replay.written(),
            retries: replay.retries(),
            failures: replay.failures(),
            refused: replay.refused(),
            in_flight: replay.in_flight(),
            capture_connected: connected,
            reconnects,
            source_lag_bytes,
            source_lag_seconds,
            state: state.into(),
        }
    }

    /// The conflicts that wait for a person.
    pub async fn open_conflicts(&self) -> Result<Vec<Conflict>> {
        self.parts.log.call(|log| Lens::new(log)?.conflicts(false, true)).await
    }

    /// Decides a parked conflict.
    pub async fn resolve(&self, conflict: Offset, choice: serde_json::Value, by: String) -> Result<()> {
        let by = super::choice::person(&by)?.to_owned();
        let choice = self.parts.log.call(move |log| super::choice::parse(log, conflict, &choice)).await?;
        self.parts.ledger.run(move |core| core.resolve(conflict, &choice, &by)).await
    }

    /// Retries or discards a dead letter.
    pub async fn dead_letter(&self, letter: Offset, action: DeadLetterAction, by: String) -> Result<()> {
        let by = super::choice::person(&by)?.to_owned();
        self.parts.ledger.run(move |core| core.dead_letter(letter, action, &by)).await
    }
}
