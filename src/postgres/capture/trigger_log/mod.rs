//! Capture from triggers, for servers without logical replication: a `_trigger_log` as Heroku Connect keeps it, into the
//! change log.
//!
//! `install` puts the triggers there and notices when somebody took them away. `store` reads batches of what was committed
//! since, in an order that is that of the commits wherever it matters; `assemble` turns their rows into the same events that the
//! server's own stream would give. A batch's rows leave the trigger log only when the change log has them on disk.
//!
//! Our own writes come back here too and are marked, not filtered out; messages of ours (`Marks::TriggerLog`) enclose them.

mod assemble;
mod hstore;
pub mod install;
mod store;
mod table;

#[cfg(test)]
pub(super) mod tests;

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::assemble::{Assembler, Outgoing};
use self::store::{BatchBounds, Store, StreamRow};
use self::table::LoggedTable;
use super::status::CaptureStatus;
use super::truncates::{apart, truncates};
use super::watermark::{CaptureHandle, ChunkOutcome, Windows, tell_durable};
use crate::change::{Catalog, FieldId, Lsn, MappingId, Position, StreamId};
use crate::error::{Error, Kind, Result};
use crate::flow::{Intake, Receipt};
use crate::postgres::connect::Session;
use crate::postgres::endpoint::Endpoint;
use crate::postgres::introspect::table_details;

/// Batches that may be on their way into the change log.
const IN_FLIGHT_MAX: usize = 4;
/// How often the log is looked into though nobody has notified us: a pooler may keep notifications back.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What to capture, and from where on.
#[derive(Clone)]
pub struct TriggerCaptureConfig {
    /// The database.
    pub endpoint: Endpoint,
    /// The schema of the mirror tables and of the log.
    pub schema: String,
    /// The stream's id, as [`install::prepare`] has told it.
    pub id: String,
    /// The link's name, by which our own transactions are recognised.
    pub link: String,
    /// The number that the log gave this stream.
    pub stream: StreamId,
    /// What is mapped.
    pub catalog: Arc<Catalog>,
    /// As in [`super::CaptureConfig`].
    pub unread: Vec<(MappingId, FieldId)>,
    /// The last position of this stream in the change log; none if it has none yet.
    pub durable: Option<Position>,
    /// How often the stream says how far it has come though nothing happens, and the triggers are looked at.
    pub heartbeat: Duration,
    /// For how long rows stay in `_trigger_log_archive`; with 0 they do not go there at all.
    pub archive_days: u32,
}

/// A capture that is ready to run once. After it ends with an error to be retried, make another from the durable position.
pub struct TriggerCapture {
    config: TriggerCaptureConfig,
    handle: CaptureHandle,
}

struct InFlight {
    receipt: Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>,
    outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
}

impl TriggerCapture {
    /// A capture that reports to the handle, and takes its backfills from it.
    pub fn new(config: TriggerCaptureConfig, handle: CaptureHandle) -> Self {
        Self { config, handle }
    }

    /// Runs until cancelled or until something fails. When cancelled: stops reading, and waits until what it offered is durable.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: try again from the durable position. [`Kind::StreamLost`]: the trigger log does not continue where
    /// the change log ends. [`Kind::Configuration`], [`Kind::Denied`]: a person must act.
    pub async fn run<I: Intake>(self, intake: &I, cancel: CancellationToken) -> Result<()> {
        let status = Arc::clone(self.handle.status());
        let ended = self.run_connected(intake, &cancel).await;
        status.connected.store(false, Relaxed);
        status.batches_in_flight.store(0, Relaxed);
        // Nothing is lost: what was not finished is read again.
        ended.or_else(
            |error| if cancel.is_cancelled() && error.kind() == Kind::Unavailable { Ok(()) } else { Err(error) },
        )
    }

    async fn run_connected<I: Intake>(self, intake: &I, cancel: &CancellationToken) -> Result<()> {
        let Self { config, handle } = self;
        let wake = Arc::new(Notify::new());
        let opening = async {
            let session = Session::listening(&config.endpoint, &wake).await?;
            let store = Store::open(session, &config.schema, &config.id).await?;
            Ok::<_, Error>(store)
        };
        let store = match cancel.run_until_cancelled(opening).await {
            Some(opened) => opened?,
            None => return Ok(()),
        };
        let durable = config.durable_place()?;
        check_continuity(&config.schema, &store.row, durable)?;
        let windows = Windows::new(handle.clone(), config.unread.iter().copied());
        let mut reader = Reader {
            assembler: Assembler::new(config.stream, &config.link, windows),
            told: durable.max(store.row.told),
            store,
            intake,
            in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
            status: Arc::clone(handle.status()),
            transactions_before: handle.status().transactions.load(Relaxed),
            config,
        };
        reader.look_at_tables().await?;
        tracing::info!(schema = reader.config.schema, from = %reader.store.row.done_lsn, "capturing from PostgreSQL's triggers");
        reader.status.connected.store(true, Relaxed);
        reader.run(&wake, cancel).await
    }
}

impl TriggerCaptureConfig {
    fn durable_place(&self) -> Result<Option<(Lsn, u32)>> {
        match &self.durable {
            None => Ok(None),
            Some(Position::Postgres { stream, commit_lsn, index }) if *stream == self.stream => {
                Ok(Some((*commit_lsn, *index)))
            }
            Some(other) => {
                Err(Error::new(Kind::Internal, format!("the position {other} is not of the stream to be captured")))
            }
        }
    }
}

/// Checks that the trigger log continues where the change log ends: at the end of the last batch that was finished, or within the
/// one that has been begun.
fn check_continuity(schema: &str, row: &StreamRow, durable: Option<(Lsn, u32)>) -> Result<()> {
    if durable == row.told || (durable > row.told && !went_back(row, durable)) {
        return Ok(());
    }
    let place = |place: Option<(Lsn, u32)>| {
        place.map_or_else(|| "nothing of it".to_owned(), |(lsn, index)| format!("it up to {lsn}+{index}"))
    };
    let why = if went_back(row, durable) {
        "the database was restored from a backup, or a standby that was behind was promoted. What it lost by that cannot be told \
         from what people deleted and edited, so nothing is done: start the link with a new log (`log` in [link]), which merges both \
         sides anew"
    } else {
        "the change log is an older copy, or something else has read the trigger log. When the link is started again, every row \
         is read again"
    };
    let message = format!(
        "the trigger log of schema {schema} has been read up to {}, and the change log has {}: {why}",
        place(row.told),
        place(durable),
    );
    Err(Error::new(Kind::StreamLost, message))
}

/// Whether the trigger log lacks what the change log has read of it.
fn went_back(row: &StreamRow, durable: Option<(Lsn, u32)>) -> bool {
    durable > row.told && durable > row.batch.as_ref().map(|batch| (batch.lsn, 0))
}

struct Reader<'a, I> {
    config: TriggerCaptureConfig,
    store: Store,
    assembler: Assembler,
    intake: &'a I,
    in_flight: VecDeque<InFlight>,
    status: Arc<CaptureStatus>,
    /// The last place of the stream that was offered.
    told: Option<(Lsn, u32)>,
    transactions_before: u64,
}

impl<I: Intake> Reader<'_, I> {
    async fn run(&mut self, wake: &Notify, cancel: &CancellationToken) -> Result<()> {
        let mut beaten_at = Instant::now();
        let mut begun = self.store.row.batch.clone();
        // A place is known from the start.
        let mut beat_due = self.told.is_none();
        while !cancel.is_cancelled() {
            if beaten_at.elapsed() >= self.config.heartbeat {
                beaten_at = Instant::now();
                beat_due = true;
                self.look_at_tables().await?;
                if self.config.archive_days > 0 {
                    self.store.trim(self.config.archive_days).await?;
                }
            }
            let batch = match begun.take() {
                Some(batch) => Some(batch),
                None => self.store.begin(beat_due).await?,
            };
            if let Some(batch) = batch {
                if !self.deliver(&batch, beat_due, cancel).await? {
                    return Ok(());
                }
                beat_due = false;
                continue;
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = wake.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
        Ok(())
    }

    /// Looks at the mapped tables and at the triggers on them.
    async fn look_at_tables(&mut self) -> Result<()> {
        let schema = &self.config.schema;
        let names: Vec<String> = self.config.catalog.mappings.iter().map(|m| m.table.clone()).collect();
        install::check_triggers(self.store.session(), schema, &names, &self.store.row.tables).await?;
        let details = table_details(self.store.session(), schema, &names).await?;
        let mut tables = HashMap::with_capacity(names.len());
        for mapping in &self.config.catalog.mappings {
            let detail = details.iter().find(|detail| detail.table == mapping.table).ok_or_else(|| {
                let message = format!("the table {schema}.{} does not exist any more; restore it", mapping.table);
                Error::new(Kind::Configuration, message)
            })?;
            tables.insert(mapping.table.clone(), LoggedTable::new(mapping, detail)?);
        }
        self.assembler.set_tables(tables);
        Ok(())
    }

    /// Tells a batch to the change log, and finishes it once it is durable; false if cancelled before that.
    async fn deliver(&mut self, batch: &BatchBounds, beat: bool, cancel: &CancellationToken) -> Result<bool> {
        self.assembler.begin_batch(self.store.row.done_lsn);
        self.store.open_rows(batch).await?;
        loop {
            let page = self.store.fetch().await?;
            let mut told = 0;
            for row in store::rows(&page) {
                told += 1;
                self.assembler.push(&store::logged(row)?)?;
                if self.assembler.is_full() {
                    self.offer_events().await?;
                }
            }
            if told < store::PAGE {
                break;
            }
            if cancel.is_cancelled() {
                self.settle_all().await?;
                return Ok(false);
            }
        }
        self.store.close_rows().await?;
        self.assembler.end_batch()?;
        self.offer_events().await?;
        if beat && self.assembler.last().is_none() {
            let outgoing = self.assembler.progress(batch.lsn, self.assembler.last_commit_time());
            self.offer(outgoing).await?;
        }
        self.settle_all().await?;
        self.told = self.told.max(self.assembler.last());
        self.store.finish(batch, self.told, self.config.archive_days > 0).await?;
        self.show();
        Ok(true)
    }

    async fn offer_events(&mut self) -> Result<()> {
        match self.assembler.take() {
            Some(outgoing) if truncates(&outgoing.batch) => self.offer_apart(outgoing).await,
            Some(outgoing) => self.offer(outgoing).await,
            None => Ok(()),
        }
    }

    async fn offer_apart(&mut self, outgoing: Outgoing) -> Result<()> {
        let Outgoing { batch, outcomes } = outgoing;
        self.settle_all().await?;
        for part in apart(batch) {
            loop {
                self.offer(Outgoing { batch: part.clone(), outcomes: Vec::new() }).await?;
                if !self.settle_all().await? {
                    break;
                }
            }
        }
        tell_durable(outcomes);
        Ok(())
    }

    async fn offer(&mut self, outgoing: Outgoing) -> Result<()> {
        let Outgoing { batch, outcomes } = outgoing;
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.settle().await?;
        }
        self.status.events.fetch_add(batch.events.len() as u64, Relaxed);
        let receipt = Box::pin(self.intake.offer(batch).await?);
        self.in_flight.push_back(InFlight { receipt, outcomes });
        self.status.batches_in_flight.store(self.in_flight.len() as u64, Relaxed);
        Ok(())
    }

    /// Waits for everything under way; returns whether the last batch is to be offered again.
    async fn settle_all(&mut self) -> Result<bool> {
        let mut more = false;
        while !self.in_flight.is_empty() {
            more = self.settle().await?;
        }
        Ok(more)
    }

    /// Waits until the oldest batch is durable; returns whether it is to be offered again.
    async fn settle(&mut self) -> Result<bool> {
        let Some(InFlight { receipt, outcomes }) = self.in_flight.pop_front() else { return Ok(false) };
        let receipt = receipt.await?;
        self.status.duplicates.fetch_add(receipt.duplicates, Relaxed);
        self.status.batches_in_flight.store(self.in_flight.len() as u64, Relaxed);
        tell_durable(outcomes);
        Ok(receipt.more)
    }

    fn show(&self) {
        let (status, done) = (&self.status, self.store.row.done_lsn.0);
        for at in [&status.received_lsn, &status.durable_lsn, &status.acknowledged_lsn, &status.server_wal_end] {
            at.store(done, Relaxed);
        }
        status.last_commit_time.fetch_max(self.assembler.last_commit_time(), Relaxed);
        status.transactions.store(self.transactions_before + self.assembler.transactions(), Relaxed);
    }
}
