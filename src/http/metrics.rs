//! Metrics as Prometheus reads them. Every name is in this file.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::error::{Error, Kind, Result};
use crate::status::{Copying, Direction, Figures, Reconciling};

#[derive(Debug)]
struct Scrape(Figures);

/// The figures in OpenMetrics text.
pub(super) fn encode(figures: Figures) -> Result<String> {
    let mut registry = Registry::with_prefix("tidelock");
    registry.register_collector(Box::new(Scrape(figures)));
    let mut text = String::new();
    text::encode(&mut text, &registry)
        .map_err(|e| Error::new(Kind::Internal, "metrics cannot be written").caused_by(e))?;
    Ok(text)
}

type Read = fn(&Direction) -> u64;

const COUNTERS: [(&str, &str, Read); 7] = [
    ("changes", "Changes captured, by the side they come from", |d| d.changes),
    ("echoes", "Our own writes seen again, by the side that shows them", |d| d.echoes),
    ("duplicates_dropped", "Events dropped as delivered before, by the side they come from", |d| d.duplicates),
    ("writes", "Writes made, by the side they come from", |d| d.written),
    ("retries", "Writes put off to be tried again", |d| d.retries),
    ("write_failures", "Batches of writes that failed as a whole", |d| d.failures),
    ("writes_refused", "Writes that became dead letters", |d| d.refused),
];

const GAUGES: [(&str, &str, Read); 4] = [
    ("lag_entries", "Log entries that replay to the other side has not read", |d| d.lag_entries),
    ("writes_in_flight", "Writes that are with the other side just now", |d| d.in_flight),
    ("capture_connected", "Whether capture is connected to its side", |d| u64::from(d.capture_connected)),
    ("source_lag_bytes", "Bytes of the source's stream that are not yet durable in the log", |d| d.source_lag_bytes),
];

type ReadReconcile = fn(&Reconciling) -> u64;

const RECONCILE: [(&str, &str, ReadReconcile); 4] = [
    ("reconcile_running", "Whether a mapping's rows are being compared with the log", |r| u64::from(!r.finished)),
    ("reconcile_compared", "Rows compared with the log, by the last comparison", |r| r.compared),
    ("reconcile_equal", "Rows that were as the log believed, by the last comparison", |r| r.equal),
    ("reconcile_repaired", "Records that were not, by the last comparison", |r| r.repaired),
];

type ReadCopying = fn(&Copying) -> Option<u64>;

const COPYING: [(&str, &str, ReadCopying); 3] = [
    ("copy_rows", "Rows and records read by the last copy of what a side has", |c| Some(c.rows)),
    (
        "copy_rows_expected",
        "Rows and records that a copy under way has before it or behind it, where that is known",
        |c| c.total,
    ),
    ("copy_finished", "Whether the last copy of what a side has is complete", |c| Some(u64::from(c.finished))),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let figures = &self.0;
        let directions = [&figures.to_salesforce, &figures.to_postgres];
        for (name, help, read) in COUNTERS {
            let kind = ConstCounter::new(0_u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for direction in directions {
                ConstCounter::new(read(direction)).encode(family.encode_family(&labels(direction))?)?;
            }
        }
        for (name, help, read) in GAUGES {
            let kind = ConstGauge::new(0_i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for direction in directions {
                ConstGauge::new(read(direction) as i64).encode(family.encode_family(&labels(direction))?)?;
            }
        }
        let kind = ConstGauge::new(0.0_f64).metric_type();
        let mut family = encoder.encode_descriptor(
            "lag_seconds",
            "How long the oldest entry not yet replayed has waited",
            None,
            kind,
        )?;
        for direction in directions {
            ConstGauge::new(direction.lag_seconds).encode(family.encode_family(&labels(direction))?)?;
        }
        let mut family = encoder.encode_descriptor(
            "source_lag_seconds",
            "For how long the source has been ahead of what is durable in the log",
            None,
            kind,
        )?;
        for direction in directions {
            ConstGauge::new(direction.source_lag_seconds).encode(family.encode_family(&labels(direction))?)?;
        }
        if let Some(slot) = &figures.slot {
            let help = "Bytes of its log that PostgreSQL keeps for the replication slot";
            gauge(&mut encoder, "slot_retained_bytes", help, slot.retained_bytes)?;
            if let Some(safe) = slot.safe_bytes {
                let help = "Bytes that PostgreSQL may yet write before it can invalidate the replication slot";
                gauge(&mut encoder, "slot_safe_bytes", help, u64::try_from(safe).unwrap_or(0))?;
            }
            let help = "Whether most of the replication slot's room is used up";
            gauge(&mut encoder, "slot_endangered", help, u64::from(slot.endangered))?;
        }
        if let Some(schema) = &figures.schema {
            let to_do = schema.differences.iter().filter(|difference| difference.to_do).count() as u64;
            let help = "Fields of the org that the tables have no room for; `tidelock plan` shows them";
            gauge(&mut encoder, "schema_differences", help, to_do)?;
            let help = "Whether the mappings do not fit the org any more, so that those in force go on";
            gauge(&mut encoder, "schema_problem", help, u64::from(schema.problem.is_some()))?;
        }
        for (name, help, read) in RECONCILE {
            let kind = ConstGauge::new(0_i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for copy in &figures.backfills {
                let Some(reconcile) = &copy.reconcile else { continue };
                ConstGauge::new(read(reconcile) as i64).encode(family.encode_family(&of_copy(copy))?)?;
            }
        }
        for (name, help, read) in COPYING {
            let kind = ConstGauge::new(0_i64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for copy in &figures.backfills {
                let Some(value) = read(copy) else { continue };
                ConstGauge::new(value as i64).encode(family.encode_family(&of_copy(copy))?)?;
            }
        }
        gauge(&mut encoder, "log_entries", "Entries in the change log", figures.log_entries)?;
        gauge(&mut encoder, "log_bytes", "Bytes of the change log on disk", figures.log_bytes)?;
        gauge(&mut encoder, "log_queue", "Jobs that wait for the log's writer", figures.queued)?;
        gauge(&mut encoder, "records", "Records that the log knows", figures.records)?;
        gauge(&mut encoder, "conflicts_open", "Conflicts that wait for a person", figures.conflicts_open)?;
        gauge(&mut encoder, "dead_letters", "Refused writes that wait for a person", figures.dead_letters)?;
        counter(&mut encoder, "conflicts", "Conflicts met", figures.conflicts)?;
        counter(&mut encoder, "log_syncs", "Appends to the change log, each synced", figures.appends)?;
        if let Some(api) = &figures.api {
            counter(&mut encoder, "api_calls", "Salesforce API calls made by this process", api.calls)?;
            gauge(
                &mut encoder,
                "api_used",
                "Salesforce API calls that the org counts for the last 24 hours",
                api.used,
            )?;
            gauge(&mut encoder, "api_limit", "Salesforce API calls that the org allows in 24 hours", api.limit)?;
        }
        Ok(())
    }
}

fn labels(direction: &Direction) -> [(&'static str, String); 1] {
    [("from", direction.from.clone())]
}

fn of_copy(copy: &Copying) -> [(&'static str, String); 2] {
    [("side", copy.side.clone()), ("mapping", copy.mapping.clone())]
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let gauge = ConstGauge::new(value as i64);
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}

fn counter(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: u64) -> fmt::Result {
    let counter = ConstCounter::new(value);
    let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    counter.encode(metric)
}
