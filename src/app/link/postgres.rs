//! The PostgreSQL side of a link: its stream, its copies, its capture and its target.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::supervise::{passes, supervise};
use crate::app::timeline;
use crate::change::{FieldId, MappingId, Side, Str};
use crate::error::{Error, Result};
use crate::ledger::core::OpenedStream;
use crate::ledger::{self, Ledger};
use crate::postgres::backfill::{Backfill, BackfillProgress, CopySessions};
use crate::postgres::capture::{Capture, CaptureConfig, CaptureHandle};
use crate::postgres::connect::Session;
use crate::postgres::lost::{self, Known, Lost};
use crate::postgres::publication::{self, Published};
use crate::postgres::slot;
use crate::postgres::target::{PostgresTarget, TargetOptions};
use crate::replay::Runner;
use crate::status::Totals;
use crate::task::Tasks;

use super::Link;
use super::known::{COPY_ROWS, known_rows, told_at};
use super::republished::{self, Republished};
use super::stream::{done_so_far, doubt, known_stream, replace_lost};

/// The folder of the log's directory where large transactions are kept until they commit.
const SPOOL: &str = "spool";
/// How long making a slot may take, which waits for the transactions that run.
const SLOT_PATIENCE: Duration = Duration::from_mins(3);

/// PostgreSQL at a start.
struct Looked {
    identity: Str,
    lost: Option<Lost>,
    /// None if the stream is lost.
    republished: Option<Republished>,
}

impl Link {
    /// Opens PostgreSQL's stream; and where the database could be asked, with how the tables are published.
    pub(super) async fn open_postgres(&self) -> Result<(OpenedStream, Option<Published>)> {
        if self.by_triggers() {
            return Ok((self.open_trigger_log().await?, None));
        }
        match self.open_slot().await {
            Err(error) if passes(&error) => Ok((self.open_known_stream(error).await?, None)),
            opened => opened,
        }
    }

    /// Opens the stream of the replication slot, and makes up for it where it was lost.
    async fn open_slot(&self) -> Result<(OpenedStream, Option<Published>)> {
        let known = timeline::known(&self.ledger, self.names()).await?;
        let Looked { identity, lost, republished } = self.look_at_postgres(known.as_ref()).await?;
        if let Some(lost) = lost {
            return self.heal(identity, &lost).await;
        }
        let opened = match timeline::take_up(&self.ledger, known.as_ref(), &identity).await? {
            Some(opened) => opened,
            None => self.open_stream(Side::Postgres, identity).await?,
        };
        Ok((opened, self.settle(republished).await?))
    }

    /// The database cannot be reached, or went away on the way: the stream that the log knows is taken up when it can be. If that
    /// is lost, it turns out then, and the link starts again to make up for it.
    pub(super) async fn open_known_stream(&self, error: Error) -> Result<OpenedStream> {
        let Some(identity) = known_stream(&self.ledger, Side::Postgres).await? else { return Err(error) };
        if !self.is_captured_from(&identity) {
            return Err(Self::needs_database(error));
        }
        tracing::warn!(error = %error.explain(), "PostgreSQL's stream is not taken up yet; it is tried again");
        if self.republished {
            // The run that follows this one does not know.
            let tables = self.tables().iter().map(|(schema, table)| publication::label(schema, table)).collect();
            republished::doubt(&self.ledger, &self.config.postgres.publication, tables).await?;
        }
        self.open_stream(Side::Postgres, identity).await
    }

    /// The mapped tables, as schema and name.
    fn tables(&self) -> Vec<(String, String)> {
        self.catalog.mappings.iter().map(|m| (m.schema.clone(), m.table.clone())).collect()
    }

    /// The link and the log, as PostgreSQL's cursor table names them.
    fn names(&self) -> (String, String) {
        (self.config.link.name.clone(), self.log_id.clone())
    }

    /// Tells what makes the stream the one that it is, and whether it was lost. Where it was not, makes sure that publication and
    /// slot are there, in this order. A slot that the log has read from before is never just made again: what came in between
    /// would be lost in silence.
    async fn look_at_postgres(&self, known: Option<&Known>) -> Result<Looked> {
        let name = &self.config.postgres.slot;
        let session = Session::brief(&self.endpoint).await?;
        slot::check_server(&session).await?;
        let identity = slot::stream_identity(&session, name).await?;
        if let Some(known) = known {
            slot::check_database(&known.identity, &identity)?;
        }
        self.leave_triggers(&session, known.map(|known| known.identity.as_str())).await?;
        let mut lost = None;
        let read_before = known.is_some_and(|known| slot::same_stream(&known.identity, &identity));
        if let Some(known) = known.filter(|_| read_before) {
            lost = lost::look(&session, &self.endpoint, name, &identity, known).await?;
            lost = lost.or_else(|| self.lost.clone()).or_else(|| known.noted(name));
        } else {
            slot::drop_invalidated(&session, name).await?;
        }
        let mut republished = None;
        if lost.is_none() {
            republished = Some(self.publish(&session, read_before).await?);
            self.make_slot(&session).await?;
        }
        session.close().await?;
        Ok(Looked { identity, lost, republished })
    }

    /// Makes sure that every mapped table is published; tells what of that somebody has changed.
    async fn publish(&self, session: &Session, read_before: bool) -> Result<Republished> {
        let publication = &self.config.postgres.publication;
        let tables = self.tables();
        let republished = Republished::look(session, publication, &tables, self.republished, read_before).await?;
        let (_, statements) = slot::plan_publication(session, publication, &tables).await?;
        if !statements.is_empty() {
            // It waits for whoever makes an index of a table that is to be added, say.
            let patient = Session::open(&self.endpoint).await?;
            slot::ensure_publication(&patient, publication, &tables).await?;
            patient.close().await?;
        }
        republished.now(session, publication, &tables).await
    }

    async fn settle(&self, republished: Option<Republished>) -> Result<Option<Published>> {
        let Some(republished) = republished else { return Ok(None) };
        republished.settle(&self.ledger, &self.endpoint, &self.config.postgres.publication).await.map(Some)
    }

    /// Makes sure that there is a sound slot. Nothing but making it may take long.
    async fn make_slot(&self, session: &Session) -> Result<()> {
        let settings = &self.config.postgres;
        if slot::read_slot(session, &settings.slot).await?.is_none() {
            let patient = Session::answering_within(&self.endpoint, SLOT_PATIENCE).await?;
            slot::ensure_slot(&patient, &settings.slot).await?;
            patient.close().await?;
        } else {
            slot::ensure_slot(session, &settings.slot).await?;
        }
        if settings.failover_slot {
            slot::ensure_failover(session, &self.endpoint, &settings.slot).await?;
        }
        Ok(())
    }

    /// Goes on after the stream was lost. That every row is in doubt is durable first, then there is a slot again, then a new
    /// stream in the log: wherever this is cut short, the next start takes it up.
    async fn heal(&self, identity: Str, lost: &Lost) -> Result<(OpenedStream, Option<Published>)> {
        tracing::error!("{lost}; every row of the mapped tables is compared with the change log");
        let rewound_to = match lost {
            Lost::WentBack { replayed: Some(ticket), to, .. } => {
                Some(told_at(&self.pool.reader(), *ticket).await?.unwrap_or(*to))
            }
            Lost::WentBack { to, .. } => Some(*to),
            _ => None,
        };
        let cause = lost.to_string();
        self.ledger
            .run(move |core| {
                // That the server went back as well may have been found out since.
                if rewound_to.is_none() && core.meta().is_doubted(Side::Postgres) {
                    return Ok(());
                }
                doubt(core, Side::Postgres, &cause, rewound_to)
            })
            .await?;
        let session = Session::brief(&self.endpoint).await?;
        let republished = self.publish(&session, false).await?;
        if lost.needs_new_slot() {
            slot::drop_slot(&session, &self.config.postgres.slot).await?;
        }
        self.make_slot(&session).await?;
        session.close().await?;
        let opened = self.ledger.run(move |core| replace_lost(core, Side::Postgres, &identity)).await?;
        Ok((opened, self.settle(Some(republished)).await?))
    }

    pub(super) fn spawn_postgres(
        &self,
        tasks: &mut Tasks,
        handle: &CaptureHandle,
        cancel: &CancellationToken,
        opened: &OpenedStream,
        published: Option<Published>,
        totals: &Arc<Totals>,
    ) {
        let sessions = CopySessions::new(self.endpoint.clone(), self.config.postgres.copy_connections as usize);
        for mapping in self.to_copy(Side::Postgres) {
            let (sessions, totals) = (sessions.clone(), Arc::clone(totals));
            let (endpoint, handle, reader) = (self.endpoint.clone(), handle.clone(), self.pool.reader());
            let (ledger, cancel, marks) = (self.ledger.clone(), cancel.clone(), self.marks());
            let publication = Some(self.config.postgres.publication.clone()).filter(|_| !self.by_triggers());
            let copying = supervise("copy from postgres", cancel.clone(), move || {
                let (after, rows) = done_so_far(&ledger, Side::Postgres, &mapping);
                let from = BackfillProgress { rows, after: after.unwrap_or_default(), ..BackfillProgress::default() };
                let backfill = Backfill::new(endpoint.clone(), mapping.clone(), COPY_ROWS, handle.clone())
                    .through(sessions.clone())
                    .looking_for(known_rows(reader.clone(), mapping.id))
                    .marked_by(marks.clone());
                let backfill = match &publication {
                    Some(publication) => backfill.published_by(publication),
                    None => backfill,
                };
                let (cancel, totals, mapping) = (cancel.clone(), Arc::clone(&totals), mapping.id);
                async move {
                    let tell = |p: &BackfillProgress| {
                        totals.set(Side::Postgres, mapping, p.total.filter(|_| !p.finished));
                    };
                    backfill.run(from, &cancel, tell).await.map(drop)
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
        let names = self.names();
        let capturing = supervise("capture from postgres", cancel.clone(), move || {
            let (config, handle, names) = (config.clone(), handle.clone(), names.clone());
            let (ledger, cancel) = (ledger.clone(), cancel.clone());
            async move {
                // Another server may answer than the one before: a standby that was promoted.
                let (opened, timeline) = tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    taken = timeline::take_up_again(&ledger, &config.endpoint, &config.slot, names) => taken?,
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
