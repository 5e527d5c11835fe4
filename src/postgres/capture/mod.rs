//! Capture: PostgreSQL's logical replication stream into the change log.
//!
//! The stream is read by one task. `assemble` turns its messages into events, synchronously; `stream` reads, offers batches and
//! acknowledges; `spool` keeps what is streamed of transactions in progress until they commit; `watch` looks at what the stream
//! does not tell. The server is told to forget only what the change log has on disk (`acknowledge`), and after each start
//! the slot must continue exactly where the log ends ([`super::slot::check_continuity`]).
//!
//! Our own transactions come back here too and are marked, not filtered out: they tell what a later edit had seen.

mod acknowledge;
mod assemble;
mod ours;
mod plan;
mod spool;
mod status;
mod stream;
pub mod trigger_log;
mod truncates;
mod watch;
pub(crate) mod watermark;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use assemble::{ACTOR_PREFIX, MARKER_PREFIX};
pub use status::{CaptureSnapshot, CaptureStatus, SlotStatus};
pub use watermark::CaptureHandle;

use super::connect::{Session, database_error};
use super::endpoint::Endpoint;
use super::publication::Published;
use super::{slot, wire};
use crate::change::{Catalog, FieldId, Lsn, MappingId, Position, StreamId};
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};
use crate::flow::Intake;
use assemble::Assembler;
use spool::Spool;
use stream::{Start, Stream};
use watch::Watch;
use watermark::Windows;

/// Prefix of the messages that move an idle database's log.
const HEARTBEAT_PREFIX: &str = "tidelock.heartbeat";

/// What to capture, and from where on.
#[derive(Clone)]
pub struct CaptureConfig {
    /// The database. Its role needs REPLICATION.
    pub endpoint: Endpoint,
    /// The replication slot; it must exist ([`slot::ensure_slot`]).
    pub slot: String,
    /// The publication; it must have existed before the slot ([`slot::ensure_publication`]).
    pub publication: String,
    /// The link's name, by which our own transactions are recognised.
    pub link: String,
    /// The number that the log gave this stream ([`slot::stream_identity`]).
    pub stream: StreamId,
    /// The timeline on which the log continues, if it is known; a server on another one is not captured from.
    pub timeline: Option<u32>,
    /// What is mapped.
    pub catalog: Arc<Catalog>,
    /// Of mappings whose rows are to be read again for new fields, and of which none has been read: the first of those fields.
    /// What the stream holds may be older than their columns.
    pub unread: Vec<(MappingId, FieldId)>,
    /// How the tables were published when the link last looked; none if it could not.
    pub published: Option<Published>,
    /// Whether row filters of the publication are on purpose.
    pub row_filters: bool,
    /// The last position of this stream in the log; none if it has none yet.
    pub durable: Option<Position>,
    /// How often to write a heartbeat into the server's log, and to look at the slot and the publication, if at all. A heartbeat
    /// moves the slot where other databases of the same server write and this one does not.
    pub heartbeat: Option<Duration>,
    /// The folder, of capture alone, where large transactions are kept until they commit, which the server then sends while they
    /// are in progress; without one it keeps them itself. Whatever is in it is removed.
    pub spool: Option<PathBuf>,
    /// Our clock.
    pub clock: SharedClock,
}

/// A capture that is ready to run once. After it ends with an error to be retried, make another from the durable position.
pub struct Capture {
    config: CaptureConfig,
    handle: CaptureHandle,
}

impl Capture {
    /// A capture that reports to the handle, and takes its backfills from it.
    pub fn new(config: CaptureConfig, handle: CaptureHandle) -> Self {
        Self { config, handle }
    }

    /// Runs until cancelled or until something fails. When cancelled: stops reading, waits until what it offered is
    /// durable, acknowledges it, and ends the session in order.
    ///
    /// # Errors
    /// [`Kind::Unavailable`]: try again from the durable position. [`Kind::StreamLost`]: the slot does not continue where the log
    /// ends. [`Kind::Configuration`], [`Kind::Denied`]: a person must act. [`Kind::Protocol`]: unknown bytes.
    pub async fn run<I: Intake>(self, intake: &I, cancel: CancellationToken) -> Result<()> {
        let (status, clock) = (Arc::clone(self.handle.status()), Arc::clone(&self.config.clock));
        let ended = self.run_connected(intake, &cancel).await;
        status.disconnected(clock.now());
        match ended {
            Err(_) if cancel.is_cancelled() => {
                // Nothing is lost: what was not acknowledged is sent again.
                ended.or_else(|error| if error.kind() == Kind::Unavailable { Ok(()) } else { Err(error) })
            }
            other => other,
        }
    }

    async fn run_connected<I: Intake>(self, intake: &I, cancel: &CancellationToken) -> Result<()> {
        let Self { config, handle } = self;
        let durable = config.durable_lsn()?;
        let windows = Windows::new(handle.clone(), config.unread.iter().copied());
        let assembler = Assembler::new(config.stream, &config.link, Arc::clone(&config.catalog), windows)?;
        let opening = open(&config, durable, Arc::clone(handle.status()));
        let (connection, start, session) = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            opened = opening => opened?,
        };
        handle.status().connected.store(true, Relaxed);
        let mut watching = JoinSet::new();
        match config.heartbeat {
            Some(every) => {
                watching.spawn(Watch::new(config, handle).run(session, every));
            }
            None => session.close().await?,
        }
        // Dropping the set ends the watch with the stream.
        let ended = Stream::new(connection, assembler, intake, start).run(cancel).await;
        drop(watching);
        ended
    }
}

impl CaptureConfig {
    /// How far the slot may be acknowledged already.
    fn durable_lsn(&self) -> Result<Option<Lsn>> {
        match &self.durable {
            None => Ok(None),
            Some(Position::Postgres { stream, commit_lsn, index }) if *stream == self.stream => {
                Ok(Some(slot::acknowledgeable(*commit_lsn, *index)))
            }
            Some(other) => {
                Err(Error::new(Kind::Internal, format!("the position {other} is not of the stream to be captured")))
            }
        }
    }
}

type Opened = (wire::Replication<super::connect::BoxedStream>, Start, Session);

/// Connects, starts the stream, and makes sure that it continues where the log ends.
async fn open(config: &CaptureConfig, durable: Option<Lsn>, status: Arc<CaptureStatus>) -> Result<Opened> {
    let session = Session::brief(&config.endpoint).await?;
    slot::check_server(&session).await?;
    let (timeout, version) = server_settings(&session).await?;
    let mut connection = wire::connect(&config.endpoint).await?;
    let mut start = Start {
        address: config.endpoint.to_string(),
        slot: config.slot.clone(),
        publication: config.publication.clone(),
        durable: durable.unwrap_or_default(),
        is_new: durable.is_none(),
        status_every: stream::status_interval(timeout),
        silence_max: stream::silence_limit(timeout),
        status,
        clock: Arc::clone(&config.clock),
        spool: match &config.spool {
            Some(directory) => Some(Spool::open(directory).await?),
            None => None,
        },
    };
    if let Some(timeline) = config.timeline {
        check_timeline(&mut connection, config, timeline).await?;
    }
    let command = start_command(config, version, durable.unwrap_or_default());
    let started = tokio::time::timeout(config.endpoint.connect_timeout, connection.start_replication(&command)).await;
    let Ok(started) = started else {
        let message = format!("{} did not start the replication stream in time", start.address);
        return Err(Error::new(Kind::Unavailable, message));
    };
    started.map_err(|e| start.stream_ended(e))?;
    match continuing(config, &session, durable).await {
        Ok(from) => start.durable = from,
        Err(error) => {
            // In order, so that the slot is free at once for the person who looks into it.
            if let Err(ending) = connection.finish().await {
                tracing::debug!(error = %ending, "the refused replication session did not end in order");
            }
            return Err(error);
        }
    }
    tracing::info!(slot = config.slot, from = %start.durable, "capturing from PostgreSQL");
    Ok((connection, start, session))
}

/// Checks that this very connection leads to a server on the timeline that was looked at.
async fn check_timeline(
    connection: &mut wire::Replication<super::connect::BoxedStream>,
    config: &CaptureConfig,
    timeline: u32,
) -> Result<()> {
    let asking = connection.simple_query("IDENTIFY_SYSTEM");
    let answered = tokio::time::timeout(config.endpoint.connect_timeout, asking).await;
    let doing = "asking the server for its timeline";
    let rows = match answered {
        Ok(rows) => rows.map_err(|e| e.at(&config.endpoint).within(doing))?,
        Err(_) => {
            return Err(Error::new(Kind::Unavailable, format!("{doing}: {} does not answer", config.endpoint)));
        }
    };
    let found = rows.first().and_then(|row| row.get(1)).and_then(|text| text.as_deref()?.parse::<u32>().ok());
    if found == Some(timeline) {
        return Ok(());
    }
    let found = found.map_or_else(|| "an unknown one".to_owned(), |found| found.to_string());
    let message = format!("the server is on timeline {found}, and was on {timeline} a moment ago; connecting again");
    Err(Error::new(Kind::Unavailable, message))
}

/// Checks that the slot, started, continues where the log ends, and that everything mapped is published; returns up to where everything is durable.
async fn continuing(config: &CaptureConfig, session: &Session, durable: Option<Lsn>) -> Result<Lsn> {
    let slot = slot::read_slot(session, &config.slot).await?.ok_or_else(|| slot::missing(&config.slot))?;
    slot::check_continuity(&slot, durable)?;
    let tables: Vec<_> = config.catalog.mappings.iter().map(|m| (m.schema.clone(), m.table.clone())).collect();
    slot::check_publication(session, &config.publication, &tables, config.row_filters).await?;
    Ok(durable.or(slot.confirmed_flush_lsn).unwrap_or_default())
}

/// Transactions in progress are streamed by versions of the protocol that depend on the server's. Of its two-phase option nothing
/// is asked: without it a prepared transaction is sent at its COMMIT PREPARED, like any other, and never if it is rolled back, which is
/// what the log needs; with it the server would send it at its PREPARE, and it would have to be kept here until then.
fn start_command(config: &CaptureConfig, version: i32, from: Lsn) -> String {
    // The publication's name is an identifier within a literal.
    let publication = escape_literal(&escape_identifier(&config.publication));
    let streaming = match (&config.spool, version / 10_000) {
        (None, _) => "proto_version '1'",
        (Some(_), ..15) => "proto_version '2', streaming 'on'",
        (Some(_), 15) => "proto_version '3', streaming 'on'",
        (Some(_), _) => "proto_version '4', streaming 'parallel'",
    };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {from} ({streaming}, publication_names {}, messages 'true')",
        escape_identifier(&config.slot),
        publication.trim_start(),
    )
}

/// After how long of our silence the server ends the stream, zero for never; and its version as one number.
async fn server_settings(session: &Session) -> Result<(Duration, i32)> {
    let sql = "SELECT setting::bigint, pg_catalog.current_setting('server_version_num')::int FROM pg_catalog.pg_settings \
               WHERE name = 'wal_sender_timeout'";
    let row = session.query_one(sql, &[]).await.map_err(|e| database_error("reading the server's settings", e))?;
    Ok((Duration::from_millis(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0)), row.get(1)))
}
