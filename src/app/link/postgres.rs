//! The PostgreSQL side of a link: its stream, its copies, its capture and its target.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::app::supervise::supervise;
use crate::app::timeline;
use crate::change::{FieldId, MappingId, Side, Str};
use crate::error::{Error, Kind, Result};
use crate::ledger::core::OpenedStream;
use crate::ledger::{self, Ledger};
use crate::postgres::backfill::{Backfill, BackfillProgress};
use crate::postgres::capture::{Capture, CaptureConfig, CaptureHandle};
use crate::postgres::connect::Session;
use crate::postgres::publication::Published;
use crate::postgres::slot;
use crate::postgres::target::{PostgresTarget, TargetOptions};
use crate::replay::Runner;
use crate::task::Tasks;

use super::Link;
use super::known::{COPY_ROWS, known_rows};
use super::republished::Republished;
use super::stream::{done_so_far, known_stream};

/// The folder of the log's directory where large transactions are kept until they commit.
const SPOOL: &str = "spool";
/// Tables of PostgreSQL that are copied at a time, with a session each.
const COPIES_MAX: usize = 4;

impl Link {
    /// Opens PostgreSQL's stream; and where the database could be asked, with how the tables are published.
    pub(super) async fn open_postgres(&self) -> Result<(OpenedStream, Option<Published>)> {
        let prepared = if self.by_triggers() {
            self.prepare_triggers().await.map(|identity| (identity, None))
        } else {
            self.prepare_postgres().await.map(|(identity, republished)| (identity, Some(republished)))
        };
        match prepared {
            Ok((identity, None)) => Ok((self.open_stream(Side::Postgres, identity).await?, None)),
            Ok((identity, Some(republished))) => {
                let slot = &self.config.postgres.slot;
                let opened = match timeline::take_up(&self.ledger, &self.endpoint, slot, &identity).await? {
                    Some(opened) => opened,
                    None => self.open_stream(Side::Postgres, identity).await?,
                };
                let publication = &self.config.postgres.publication;
                Ok((opened, Some(republished.settle(&self.ledger, &self.endpoint, publication).await?)))
            }
            // The database cannot be reached: the stream that the log knows is taken up when it can.
            Err(error) if error.kind() == Kind::Unavailable => {
                match known_stream(&self.ledger, Side::Postgres).await? {
                    Some(identity) if self.is_captured_from(&identity) => {
                        Ok((self.open_stream(Side::Postgres, identity).await?, None))
                    }
                    Some(_) => Err(Self::needs_database(error)),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Makes sure that publication and slot are there, in this order, and tells what makes the stream this one. A slot that the
    /// log has read from before is never made again here: what came in between would be lost in silence.
    async fn prepare_postgres(&self) -> Result<(Str, Republished)> {
        let settings = &self.config.postgres;
        let tables: Vec<(String, String)> =
            self.catalog.mappings.iter().map(|m| (m.schema.clone(), m.table.clone())).collect();
        let session = Session::open(&self.endpoint).await?;
        slot::check_server(&session).await?;
        let identity = slot::stream_identity(&session, &settings.slot).await?;
        let known = known_stream(&self.ledger, Side::Postgres).await?;
        if let Some(known) = &known {
            slot::check_database(known, &identity)?;
        }
        self.leave_triggers(&session, known.as_deref()).await?;
        let read_before = known.is_some_and(|known| slot::same_stream(&known, &identity));
        if read_before && slot::read_slot(&session, &settings.slot).await?.is_none() {
            let text = format!(
                "the replication slot `{}` is gone, and with it the changes since the log last read it; \
                 start the link with a new log (`log` in [link]), so that every row is read again",
                settings.slot
            );
            return Err(Error::new(Kind::StreamLost, text));
        }
        let republished = Republished::look(&session, &settings.publication, &tables).await?;
        slot::ensure_publication(&session, &settings.publication, &tables).await?;
        let republished = republished.now(&session, &settings.publication, &tables).await?;
        slot::ensure_slot(&session, &settings.slot).await?;
        if settings.failover_slot {
            slot::ensure_failover(&session, &self.endpoint, &settings.slot).await?;
        }
        session.close().await?;
        Ok((identity, republished))
    }

    pub(super) fn spawn_postgres(
        &self,
        tasks: &mut Tasks,
        handle: &CaptureHandle,
        cancel: &CancellationToken,
        opened: &OpenedStream,
        published: Option<Published>,
    ) {
        let room = Arc::new(Semaphore::new(COPIES_MAX));
        for mapping in self.to_copy(Side::Postgres) {
            let room = Arc::clone(&room);
            let (endpoint, handle, reader) = (self.endpoint.clone(), handle.clone(), self.pool.reader());
            let (ledger, cancel, marks) = (self.ledger.clone(), cancel.clone(), self.marks());
            let publication = Some(self.config.postgres.publication.clone()).filter(|_| !self.by_triggers());
            let copying = supervise("copy from postgres", cancel.clone(), move || {
                let (after, rows) = done_so_far(&ledger, Side::Postgres, &mapping);
                let from = BackfillProgress { rows, after: after.unwrap_or_default(), finished: false };
                let backfill = Backfill::new(endpoint.clone(), mapping.clone(), COPY_ROWS, handle.clone())
                    .looking_for(known_rows(reader.clone(), mapping.id))
                    .marked_by(marks.clone());
                let backfill = match &publication {
                    Some(publication) => backfill.published_by(publication),
                    None => backfill,
                };
                let (room, cancel) = (Arc::clone(&room), cancel.clone());
                async move {
                    let _room = tokio::select! {
                        () = cancel.cancelled() => return Ok(()),
                        room = room.acquire() => room,
                    };
                    backfill.run(from, &cancel, |_| {}).await.map(drop)
                }
            });
            tasks.spawn("copy from postgres", copying);
        }
        if self.by_triggers() {
            self.spawn_trigger_capture(tasks, handle, cancel, opened);
            return;
        }
        let config = CaptureConfig {
            endpoint: self.endpoint.clone(),
            slot: self.config.postgres.slot.clone(),
            publication: self.config.postgres.publication.clone(),
            link: self.config.link.name.clone(),
            stream: opened.stream,
            timeline: None,
            catalog: Arc::clone(&self.catalog),
            unread: Vec::new(),
            published,
            row_filters: self.config.postgres.row_filters,
            durable: None,
            heartbeat: Some(Duration::from_secs(self.config.postgres.heartbeat_seconds.into())),
            spool: Some(self.config.link.log.join(SPOOL)),
            clock: Arc::clone(&self.clock),
        };
        let (ledger, handle, cancel) = (self.ledger.clone(), handle.clone(), cancel.clone());
        let capturing = supervise("capture from postgres", cancel.clone(), move || {
            let (config, handle) = (config.clone(), handle.clone());
            let (ledger, cancel) = (ledger.clone(), cancel.clone());
            async move {
                // Another server may answer than the one before: a standby that was promoted.
                let (opened, timeline) = tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    taken = timeline::take_up_again(&ledger, &config.endpoint, &config.slot) => taken?,
                };
                let OpenedStream { stream, position: durable, .. } = opened;
                let config = CaptureConfig { stream, timeline, durable, unread: not_begun(&ledger), ..config };
                Capture::new(config, handle).run(&ledger, cancel).await
            }
        });
        tasks.spawn("capture from postgres", capturing);
    }

    pub(super) fn to_postgres(&self, stream: Str) -> Runner<PostgresTarget> {
        let options = TargetOptions {
            batch_limit: self.config.replay.postgres_batch as usize,
            stream: Some(stream),
            marks: self.marks(),
            ..TargetOptions::new(&self.config.link.name, &self.log_id)
        };
        let target = PostgresTarget::new(self.endpoint.clone(), Arc::clone(&self.catalog), options);
        let never = Arc::new(|| 0);
        Runner::new(
            vec![target],
            self.ledger.clone(),
            self.pool.reader(),
            Arc::clone(&self.clock),
            self.settings(Duration::ZERO),
            never,
        )
    }
}

/// Mappings of PostgreSQL that have got fields, or of which the stream may have left columns out, and of which no row has been
/// read again yet; with the first of those fields.
pub(super) fn not_begun(ledger: &Ledger) -> Vec<(MappingId, FieldId)> {
    let status = ledger.status();
    let status = status.borrow();
    let begins = |after: &Str| after.is_empty() || *after == BackfillProgress::sweep();
    let waiting = status.backfills.iter().filter(|b| b.side == Side::Postgres && b.rows == 0 && begins(&b.after));
    // Where the stream has left something out, that may be any column.
    let first =
        |b: &ledger::BackfillProgress| if BackfillProgress::is_sweep(&b.after) { Some(FieldId(0)) } else { b.unread };
    waiting.filter_map(|b| Some((b.mapping, first(b)?))).collect()
}
