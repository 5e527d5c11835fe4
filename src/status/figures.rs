//! What the link is doing, in numbers: for `status`, metrics and the demo.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::change::{Catalog, MappingId, RecordId, Side};
use crate::error::Result;
use crate::ledger::{BackfillProgress, Meta, keys};
use crate::log::ChangeLog;

/// Everything about a link in numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Whether a process runs the link.
    pub running: bool,
    /// Why the configuration is not known to be in force, while that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfigured: Option<String>,
    /// What the org's fields ask of the tables, once that was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Schema>,
    /// Entries in the log.
    pub log_entries: u64,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// Records that the log knows.
    pub records: u64,
    /// Conflicts met since the start.
    pub conflicts: u64,
    /// Conflicts that wait for a person.
    pub conflicts_open: u64,
    /// Writes that a side refused and that wait for a person.
    pub dead_letters: u64,
    /// Appends, and so syncs, since the start.
    pub appends: u64,
    /// Jobs that wait for the log's writer.
    pub queued: u64,
    /// From PostgreSQL to Salesforce.
    pub to_salesforce: Direction,
    /// From Salesforce to PostgreSQL.
    pub to_postgres: Direction,
    /// PostgreSQL's replication slot, once it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    /// Copying what was there before.
    pub backfills: Vec<Copying>,
    /// Salesforce's API allocation, once an answer has told it.
    pub api: Option<Api>,
}

/// One direction: captured at one side, written to the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Direction {
    /// The side that is captured.
    pub from: String,
    /// The side that is written to.
    pub to: String,
    /// Changes captured since the start.
    pub changes: u64,
    /// Our own writes seen again at the side that is captured.
    pub echoes: u64,
    /// Events dropped as delivered before.
    pub duplicates: u64,
    /// Entries that replay has not read.
    pub lag_entries: u64,
    /// How long the oldest entry that replay has not finished has waited.
    pub lag_seconds: f64,
    /// Writes made since the start.
    pub written: u64,
    /// Writes that were put off.
    pub retries: u64,
    /// Batches that failed as a whole.
    pub failures: u64,
    /// Writes refused since the start.
    pub refused: u64,
    /// Writes that are with the side just now.
    pub in_flight: u64,
    /// Whether capture is connected to its side.
    pub capture_connected: bool,
    /// How often capture connected anew.
    pub reconnects: u64,
    /// Bytes of the source's stream that are not yet durable in the log, where the source counts bytes.
    pub source_lag_bytes: u64,
    /// For how long the source has been ahead of what is durable in the log, where it is known.
    #[serde(default)]
    pub source_lag_seconds: f64,
    /// In words.
    pub state: String,
}

/// What the org's fields ask of the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// Why the mappings do not fit the org any more, if they do not: the link goes on with those in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The fields and columns that differ.
    pub differences: Vec<SchemaDifference>,
}

/// A field and a column that differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDifference {
    /// The mapping's name.
    pub mapping: String,
    /// The field's API name.
    pub field: String,
    /// The column.
    pub column: String,
    /// What that means for the values.
    pub message: String,
    /// Whether something is to be done.
    pub to_do: bool,
    /// Why the link could not do it itself, if it tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// PostgreSQL's replication slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Bytes of its log that the server keeps for it.
    pub retained_bytes: u64,
    /// Bytes that the server may yet write before it can invalidate the slot, if it has a limit.
    pub safe_bytes: Option<i64>,
    /// Whether most of that room is used up.
    pub endangered: bool,
}

/// Copying what was there before capture began.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Copying {
    /// The side that is copied from.
    pub side: String,
    /// The mapping's name.
    pub mapping: String,
    /// Rows read so far.
    pub rows: u64,
    /// Rows that there were when the copy began, or that were copied since, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Whether it is complete.
    pub finished: bool,
    /// The last comparison of the rows with the log, which this is or was part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile: Option<Reconciling>,
}

/// Comparing a side's rows with the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconciling {
    /// Why.
    pub cause: String,
    /// Rows that were read, and records whose row was looked for and is missing.
    pub compared: u64,
    /// Of these, those that are as the log believes.
    pub equal: u64,
    /// Those that are not, each with its entries in the log.
    pub repaired: u64,
    /// Whether it is complete.
    pub finished: bool,
}

impl Copying {
    /// How far copying a mapping has come.
    pub(super) fn of(progress: &BackfillProgress, catalog: &Catalog, total: Option<u64>) -> Self {
        let reconcile = progress.reconcile.as_ref().map(|reconcile| Reconciling {
            cause: reconcile.cause.to_string(),
            compared: progress.rows + reconcile.missing,
            equal: progress.rows.saturating_sub(reconcile.differing),
            repaired: reconcile.differing + reconcile.missing,
            finished: reconcile.finished,
        });
        Self {
            side: progress.side.to_string(),
            mapping: catalog.mapping(progress.mapping).map_or_else(String::new, |m| m.name.clone()),
            rows: progress.rows,
            total,
            finished: progress.finished,
            reconcile,
        }
    }

    /// The comparison of the rows with the log, while it is under way.
    pub fn reconciling(&self) -> Option<&Reconciling> {
        self.reconcile.as_ref().filter(|reconcile| !reconcile.finished)
    }
}

/// The rows that copies under way have before them, where that is known.
#[derive(Debug, Default)]
pub struct Totals(Mutex<BTreeMap<(Side, MappingId), u64>>);

impl Totals {
    /// Notes how many rows a copy has.
    pub fn set(&self, side: Side, mapping: MappingId, rows: Option<u64>) {
        let mut totals = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match rows {
            Some(rows) => drop(totals.insert((side, mapping), rows)),
            None => drop(totals.remove(&(side, mapping))),
        }
    }

    /// How many rows a copy has.
    pub fn get(&self, side: Side, mapping: MappingId) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&(side, mapping)).copied()
    }
}

/// Salesforce's API allocation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Api {
    /// Calls made by this process.
    pub calls: u64,
    /// Calls that the org counts for the last 24 hours.
    pub used: u64,
    /// Calls that the org allows in 24 hours.
    pub limit: u64,
}

impl Figures {
    /// What a log alone tells, where no process runs the link.
    pub fn of_log(log: &dyn ChangeLog, meta: &Meta) -> Result<Self> {
        let stats = log.stats()?;
        let direction = |from: Side| {
            let to = from.other();
            Direction {
                from: from.to_string(),
                to: to.to_string(),
                lag_entries: log.tail().0.saturating_sub(meta.cursors[to.index()].0),
                state: "stopped".into(),
                ..Direction::default()
            }
        };
        let RecordId(records) = meta.next_record;
        Ok(Self {
            log_entries: stats.entries,
            log_bytes: stats.disk_bytes,
            records,
            conflicts_open: count(log, keys::OPEN_CONFLICT)?,
            dead_letters: count(log, keys::DEAD_LETTER)?,
            to_salesforce: direction(Side::Postgres),
            to_postgres: direction(Side::Salesforce),
            backfills: meta.backfills.iter().map(|b| Copying::of(b, &meta.catalog, None)).collect(),
            ..Self::default()
        })
    }
}

/// How many records the log knows.
pub(super) fn records(log: &dyn ChangeLog) -> Result<u64> {
    Ok(crate::audit::Lens::new(log)?.meta().next_record.0)
}

/// How many keys of a kind there are.
pub(super) fn count(log: &dyn ChangeLog, kind: u8) -> Result<u64> {
    let (mut after, mut found): (Option<Vec<u8>>, u64) = (None, 0);
    loop {
        let page = log.scan_state(&[kind], after.as_deref(), 1_000)?;
        found += page.len() as u64;
        match page.into_iter().next_back() {
            Some((key, _)) => after = Some(key),
            None => return Ok(found),
        }
    }
}
