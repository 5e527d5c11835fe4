//! One link, from opening its log to draining it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::change::{Catalog, FieldId, Key, MappingDef, MappingId, Notice, Position, Side, Str};
use crate::clock::{self, Micros, SharedClock};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::http;
use crate::ledger::core::{Core, OpenedStream};
use crate::ledger::{self, Ledger, keys};
use crate::log::reader::ReaderPool;
use crate::log::rocks::{RocksLog, RocksOptions};
use crate::postgres::backfill::{Backfill as PostgresBackfill, BackfillProgress, KnownKeys, KnownRows};
use crate::postgres::capture::{Capture as PostgresCapture, CaptureConfig, CaptureHandle};
use crate::postgres::connect::Session;
use crate::postgres::endpoint::Endpoint;
use crate::postgres::publication::Published;
use crate::postgres::slot;
use crate::postgres::target::{PostgresTarget, TargetOptions as PostgresTargetOptions};
use crate::replay::{Runner, Settings};
use crate::salesforce::backfill::{Backfill as SalesforceBackfill, Copies, Known, Place, Progress};
use crate::salesforce::capture::{ALL_CHANGES, Capture as SalesforceCapture, CaptureSetup, Start};
use crate::salesforce::capture_status::CaptureStatus as SalesforceStatus;
use crate::salesforce::limits::{Budget, BudgetOptions};
use crate::salesforce::target::{SalesforceTarget, TargetOptions as SalesforceTargetOptions};
use crate::task::Tasks;

use super::catalog;
use super::connect::{Org, endpoint, salesforce};
use super::partial::Partial;
use super::republished::Republished;
use super::supervise::supervise;
use super::timeline;
use crate::status::{Handle, Identity, Parts, Totals};

/// The folder of the log's directory where large transactions are kept until they commit.
const SPOOL: &str = "spool";
/// How long a shutdown waits for each stage.
const DRAIN: Duration = Duration::from_secs(20);
/// Rows that are copied from PostgreSQL at once.
const COPY_ROWS: usize = 1_000;
/// Tables of PostgreSQL that are copied at a time, with a session each.
const COPIES_MAX: usize = 4;
/// How often Salesforce's clock is compared, and records of which only part is known are asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Records of which only part is known that are looked up at once.
const PARTIAL_PAGE: usize = 1_000;
/// How far the clocks must have drifted to be put on record again.
const DRIFT: Micros = 500_000;

/// How much of the log's id goes into the external ids that it makes: enough to tell the logs of one org apart.
const PREFIX_LENGTH: usize = 8;

/// A link that is open: its log is owned, its rules are in force, and nothing runs yet.
pub struct Link {
    config: Config,
    clock: SharedClock,
    catalog: Arc<Catalog>,
    ledger: Ledger,
    thread: JoinHandle<()>,
    pool: ReaderPool,
    log_id: String,
    org: Org,
    endpoint: Endpoint,
    http: Option<TcpListener>,
    /// Why the configuration is not known to be in force, while that is so.
    unconfigured: watch::Sender<Option<String>>,
}

/// Why a run ended.
enum Ended {
    /// Somebody asked it to.
    Asked,
    /// The configuration asks for other mappings or rules than those in force, which can be had now, or tables have to be read
    /// again.
    Outdated(Box<Config>),
}

impl Link {
    /// Opens the log and puts the configuration in force. Both sides are asked what they have; where one cannot be reached,
    /// the catalog that the log knows is used, so that an outage of one side does not hold the other up.
    pub async fn open(config: Config) -> Result<Self> {
        let opened = Self::open_unless(config, &CancellationToken::new()).await?;
        opened.ok_or_else(|| Error::new(Kind::Internal, "opening was given up, and nobody asked for that"))
    }

    /// Like [`Link::open`]; none if it was cancelled first, and then the log is closed. A side may take a call and not answer for
    /// a long time.
    pub async fn open_unless(config: Config, cancel: &CancellationToken) -> Result<Option<Self>> {
        let clock = clock::system();
        match cancel.run_until_cancelled(check_before_creating(&config)).await {
            Some(checked) => checked?,
            None => return Ok(None),
        }
        let directory = config.link.log.clone();
        let log = blocking(move || RocksLog::open_or_create(&directory, RocksOptions::default())).await?;
        let log_id = log.id().to_owned();
        let log: crate::log::SharedLog = Arc::new(log);
        let pool = ReaderPool::start(Arc::clone(&log))?;
        let (ledger, thread) = ledger::start(log, Arc::clone(&clock))?;
        match cancel.run_until_cancelled(prepare(&config, &ledger, &log_id)).await {
            Some(Ok((org, http, catalog, unconfigured))) => Ok(Some(Self {
                unconfigured: watch::Sender::new(unconfigured),
                endpoint: endpoint(&config),
                config,
                clock,
                catalog,
                ledger,
                thread,
                pool,
                log_id,
                org,
                http,
            })),
            Some(Err(error)) => close(ledger, thread, pool).await.and(Err(error)),
            None => close(ledger, thread, pool).await.map(|()| None),
        }
    }

    /// The mappings and rules in force.
    pub fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.catalog)
    }

    /// Keeps both sides in step until cancelled; then captures stop first, replay finishes what it has with the sides, and the
    /// log is closed last.
    ///
    /// A configuration that could not be put in force at the start, because a side could not be asked, is put in force when it
    /// can, by starting the link again. `started` is given the running link each time.
    pub async fn run(self, cancel: CancellationToken, mut started: impl FnMut(Arc<Handle>)) -> Result<()> {
        let mut link = self;
        while let Ended::Outdated(config) = link.run_once(cancel.clone(), &mut started).await? {
            match Self::open_unless(*config, &cancel).await? {
                Some(opened) => link = opened,
                None => break,
            }
        }
        Ok(())
    }

    /// Runs until cancelled, once; `started` is given the running link.
    pub async fn run_with(self, cancel: CancellationToken, started: impl FnOnce(Arc<Handle>)) -> Result<()> {
        self.run_once(cancel, started).await.map(drop)
    }

    async fn run_once(mut self, cancel: CancellationToken, started: impl FnOnce(Arc<Handle>)) -> Result<Ended> {
        let (capturing, replaying, serving) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut captures = Tasks::new(capturing.clone());
        let mut replays = Tasks::new(replaying.clone());
        let mut services = Tasks::new(serving.clone());

        let (postgres_stream, published, salesforce_stream) =
            match cancel.run_until_cancelled(self.open_streams()).await {
                Some(Ok(streams)) => streams,
                Some(Err(error)) => return self.close().await.and(Err(error)),
                None => return self.close().await.map(|()| Ended::Asked),
            };
        let outdated = CancellationToken::new();
        let postgres = CaptureHandle::new();
        let republished = postgres.republished().clone();
        let salesforce = self.salesforce_capture(&salesforce_stream);
        let to_postgres = self.to_postgres(postgres_stream.identity.clone());
        let to_salesforce = self.to_salesforce(&salesforce.status);
        let totals = Arc::new(Totals::default());
        let handle = Arc::new(Handle::from(Parts {
            identity: Identity { link: self.config.link.name.clone(), log: self.log_id.clone() },
            ledger: self.ledger.clone(),
            log: self.pool.reader(),
            clock: Arc::clone(&self.clock),
            catalog: Arc::clone(&self.catalog),
            postgres: Arc::clone(postgres.status()),
            salesforce: Arc::clone(&salesforce.status),
            replay: [to_postgres.status(), to_salesforce.status()],
            totals: Arc::clone(&totals),
            rest: self.org.rest.clone(),
            unconfigured: self.unconfigured.subscribe(),
        }));

        self.spawn_postgres(&mut captures, &postgres, &capturing, &postgres_stream, published);
        self.spawn_salesforce(&mut captures, salesforce, &totals, &capturing);
        replays.spawn("replay to postgres", to_postgres.run(replaying.clone()));
        replays.spawn("replay to salesforce", to_salesforce.run(replaying.clone()));
        match self.http.take() {
            Some(listener) => services.spawn("http", http::serve(listener, Arc::clone(&handle), serving.clone())),
            None => services.spawn("http", idle(serving.clone())),
        }
        if self.unconfigured.borrow().is_some() {
            let (config, org, known) = (self.config.clone(), self.org.clone(), Arc::clone(&self.catalog));
            let (told, outdated, serving) = (self.unconfigured.clone(), outdated.clone(), serving.clone());
            services.spawn("configuration", async move {
                watch_configuration(&config, &org, &known, &told, &outdated, &serving).await
            });
        }
        tracing::info!(link = %self.config.link.name, mappings = self.catalog.mappings.len(), "in step as of now; Ctrl-C or SIGTERM stops");
        started(handle);

        let captures = captures.run(DRAIN);
        let replays = replays.run(DRAIN);
        let services = services.run(DRAIN);
        tokio::pin!(captures, replays, services);
        let mut first = Ok(());
        let (mut captured, mut replayed, mut served) = (false, false, false);
        // Whichever ends first, by an error or because it was asked to, ends all, in order.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = outdated.cancelled() => {}
            () = republished.cancelled() => {}
            result = &mut captures => { captured = true; first = result; }
            result = &mut replays => { replayed = true; first = result; }
            result = &mut services => { served = true; first = result; }
        }
        tracing::info!("stopping: finishing what has been taken");
        capturing.cancel();
        if !captured {
            first = first.and(captures.await);
        }
        replaying.cancel();
        if !replayed {
            first = first.and(replays.await);
        }
        serving.cancel();
        if !served {
            first = first.and(services.await);
        }
        let config = Box::new(self.config.clone());
        self.close().await?;
        first?;
        let again = outdated.is_cancelled() || republished.is_cancelled();
        Ok(if again && !cancel.is_cancelled() { Ended::Outdated(config) } else { Ended::Asked })
    }

    async fn open_streams(&self) -> Result<(OpenedStream, Option<Published>, OpenedStream)> {
        let (postgres, published) = self.open_postgres().await?;
        Ok((postgres, published, self.open_salesforce().await?))
    }

    /// Closes the log.
    async fn close(self) -> Result<()> {
        close(self.ledger, self.thread, self.pool).await
    }

    // -- PostgreSQL --------------------------------------------------------------------------------------------------------

    /// Opens PostgreSQL's stream; and where the database could be asked, with how the tables are published.
    async fn open_postgres(&self) -> Result<(OpenedStream, Option<Published>)> {
        match self.prepare_postgres().await {
            Ok((identity, republished)) => {
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
                    Some(identity) => Ok((self.open_stream(Side::Postgres, identity).await?, None)),
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

    /// Opens a side's stream. One that takes the place of another leaves a gap, which is read again.
    async fn open_stream(&self, side: Side, identity: Str) -> Result<OpenedStream> {
        let opened = self.ledger.run(move |core| take_up(core, side, &identity)).await?;
        if let Some(replaced) = &opened.replaces {
            tracing::error!(%side, %replaced, "the stream is not the one that the log has read; every record is read again");
        }
        Ok(opened)
    }

    fn spawn_postgres(
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
            let publication = self.config.postgres.publication.clone();
            let (ledger, cancel) = (self.ledger.clone(), cancel.clone());
            let copying = supervise("copy from postgres", cancel.clone(), move || {
                let (after, rows) = done_so_far(&ledger, Side::Postgres, &mapping);
                let from = BackfillProgress { rows, after: after.unwrap_or_default(), finished: false };
                let backfill = PostgresBackfill::new(endpoint.clone(), mapping.clone(), COPY_ROWS, handle.clone())
                    .looking_for(known_rows(reader.clone(), mapping.id))
                    .published_by(&publication);
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
                PostgresCapture::new(config, handle).run(&ledger, cancel).await
            }
        });
        tasks.spawn("capture from postgres", capturing);
    }

    fn to_postgres(&self, stream: Str) -> Runner<PostgresTarget> {
        let options = PostgresTargetOptions {
            batch_limit: self.config.replay.postgres_batch as usize,
            stream: Some(stream),
            ..PostgresTargetOptions::new(&self.config.link.name, &self.log_id)
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

    fn settings(&self, linger: Duration) -> Settings {
        let replay = &self.config.replay;
        Settings {
            linger,
            attempts_max: replay.attempts,
            backoff_least: Duration::from_millis(replay.backoff_min_ms.into()),
            backoff_most: Duration::from_millis(replay.backoff_max_ms.into()),
            ..Settings::default()
        }
    }

    // -- Salesforce --------------------------------------------------------------------------------------------------------

    async fn open_salesforce(&self) -> Result<OpenedStream> {
        let session = self.org.rest.auth().session().await;
        let identity = match session {
            Ok(session) => Str::from(format!("{}/data/ChangeEvents", session.organization_id())),
            // The org cannot be reached: the stream that the log knows is taken up when it can.
            Err(error) if passes(error.kind()) => match known_stream(&self.ledger, Side::Salesforce).await? {
                Some(identity) => identity,
                None => return Err(error),
            },
            Err(error) => return Err(error),
        };
        let opened = self.open_stream(Side::Salesforce, identity).await?;
        self.read_placeless_again().await?;
        Ok(opened)
    }

    /// Rows may have been copied before any place in the stream was durable. The stream is then taken up at its latest event,
    /// and what was changed while the process was down is not in it: objects of which rows are in the log are read once more,
    /// deletions too, after the rows that are still to be copied for the first time.
    async fn read_placeless_again(&self) -> Result<()> {
        self.ledger
            .run(|core| {
                let meta = core.meta();
                if meta.positions[Side::Salesforce.index()].is_some() {
                    return Ok(());
                }
                let catalog = Arc::clone(&meta.catalog);
                let mut begun = meta.backfills.clone();
                // A copy that is only intended has read nothing that could be out of date.
                begun.retain(|b| b.side == Side::Salesforce && (b.rows > 0 || b.finished));
                begun.retain(|b| catalog.mapping(b.mapping).is_some());
                if begun.is_empty() {
                    return Ok(());
                }
                tracing::warn!(
                    "no place in the Salesforce stream is known; what was copied from Salesforce is read again"
                );
                let names = begun.iter().filter_map(|b| catalog.mapping(b.mapping)).map(|m| m.sobject.as_str());
                core.notice(Notice::Gap {
                    side: Side::Salesforce,
                    reason: "rows were copied before a place in the stream was known".into(),
                    scope: Str::from(names.collect::<Vec<_>>().join(",")),
                })?;
                for progress in begun {
                    let place = Place::parse(&progress.after).once_more(progress.finished);
                    core.notice(Notice::Backfill {
                        side: Side::Salesforce,
                        mapping: progress.mapping,
                        rows: if place.again { progress.rows } else { 0 },
                        after: place.to_text(),
                        finished: false,
                    })?;
                }
                Ok(())
            })
            .await
    }

    fn salesforce_capture(&self, opened: &OpenedStream) -> CaptureSetup {
        CaptureSetup {
            pubsub: self.org.pubsub.clone(),
            rest: self.org.rest.clone(),
            catalog: Arc::clone(&self.catalog),
            topic: ALL_CHANGES.into(),
            stream: opened.stream,
            last_commit: None,
            copies: Arc::new(Copies::knowing(known(self.pool.reader()))),
            status: Arc::new(SalesforceStatus::default()),
        }
    }

    fn spawn_salesforce(
        &self,
        tasks: &mut Tasks,
        setup: CaptureSetup,
        totals: &Arc<Totals>,
        cancel: &CancellationToken,
    ) {
        let backfill = SalesforceBackfill::new(
            self.org.rest.clone(),
            Arc::clone(&self.catalog),
            setup.stream,
            Arc::clone(&setup.copies),
        );
        let backfill = Arc::new(backfill);
        for mapping in self.to_copy(Side::Salesforce) {
            let (backfill, ledger, cancel) = (Arc::clone(&backfill), self.ledger.clone(), cancel.clone());
            let (status, totals) = (Arc::clone(&setup.status), Arc::clone(totals));
            let copying = supervise("copy from salesforce", cancel.clone(), move || {
                let (backfill, ledger, cancel) = (Arc::clone(&backfill), ledger.clone(), cancel.clone());
                let (status, totals, mapping) = (Arc::clone(&status), Arc::clone(&totals), mapping.clone());
                async move {
                    // What changes while rows are read must be in the stream, so the subscription comes first.
                    subscribed(&status, &cancel).await?;
                    let (after, rows) = done_so_far(&ledger, Side::Salesforce, &mapping);
                    let progress = |p: Progress| {
                        totals.set(Side::Salesforce, p.mapping, p.total.filter(|_| !p.finished));
                    };
                    backfill.run(mapping.id, &after.unwrap_or_default(), rows, &ledger, progress, &cancel).await
                }
            });
            tasks.spawn("copy from salesforce", copying);
        }
        {
            let (backfill, ledger, cancel) = (Arc::clone(&backfill), self.ledger.clone(), cancel.clone());
            let (rest, reader) = (self.org.rest.clone(), self.pool.reader());
            tasks.spawn("look after salesforce", async move {
                look_after(&backfill, &rest, &ledger, &reader, &cancel).await
            });
        }
        let (ledger, cancel) = (self.ledger.clone(), cancel.clone());
        let capturing = supervise("capture from salesforce", cancel.clone(), move || {
            let at = ledger.status().borrow().clone();
            let start = match &at.positions[Side::Salesforce.index()] {
                Some(Position::Salesforce { replay_id, .. }) => Start::After(replay_id.clone()),
                _ => Start::Latest,
            };
            let last_commit = Some(at.committed_at[Side::Salesforce.index()]).filter(|at| *at != 0);
            let capture = SalesforceCapture::new(CaptureSetup { last_commit, ..setup.clone() });
            capture.run(start, Arc::new(ledger.clone()), cancel.clone())
        });
        tasks.spawn("capture from salesforce", capturing);
    }

    fn to_salesforce(&self, status: &Arc<SalesforceStatus>) -> Runner<SalesforceTarget> {
        let share_percent = u8::try_from(self.config.salesforce.daily_calls_percent).unwrap_or(100);
        let budget = Budget::new(BudgetOptions { share_percent, ..BudgetOptions::default() }, Arc::clone(&self.clock));
        let target = SalesforceTarget::new(
            self.org.rest.clone(),
            Arc::clone(&self.catalog),
            budget,
            SalesforceTargetOptions {
                batch_limit: self.config.replay.salesforce_batch as usize,
                ..SalesforceTargetOptions::default()
            },
        );
        let targets = vec![target; self.config.salesforce.requests_in_flight.max(1) as usize];
        let (status, rest) = (Arc::clone(status), self.org.rest.clone());
        let stream_time =
            Arc::new(move || status.stream_time().map_or(0, |at| at - rest.clock_offset().ahead().unwrap_or(0)));
        let linger = Duration::from_millis(self.config.replay.salesforce_linger_ms.into());
        Runner::new(
            targets,
            self.ledger.clone(),
            self.pool.reader(),
            Arc::clone(&self.clock),
            self.settings(linger),
            stream_time,
        )
    }

    /// The mappings whose rows at a side have not all been read yet. What was begun is finished, whatever the configuration
    /// says of the first copy: rows are read again for other reasons too.
    fn to_copy(&self, side: Side) -> Vec<MappingDef> {
        let status = self.ledger.status().borrow().clone();
        let wanted = |m: &MappingDef| self.config.mappings.iter().any(|c| c.name == m.name && c.backfill);
        let unfinished = |m: &MappingDef| {
            let known = status.backfills.iter().find(|b| b.side == side && b.mapping == m.id);
            known.map_or_else(|| wanted(m), |b| !b.finished)
        };
        self.catalog.mappings.iter().filter(|m| unfinished(m)).cloned().collect()
    }
}

/// What stands for a service that is switched off.
async fn idle(cancel: CancellationToken) -> Result<()> {
    cancel.cancelled().await;
    Ok(())
}

/// Closes a log, and waits until it is closed: a process must not end while RocksDB still has threads at work.
async fn close(ledger: Ledger, thread: JoinHandle<()>, pool: ReaderPool) -> Result<()> {
    // Others may hold a handle yet: a request that is half read, a demo.
    ledger.stop().await;
    drop(ledger);
    blocking(move || {
        drop(pool);
        thread.join().map_err(|_| Error::new(Kind::Internal, "the ledger's thread panicked; this is a bug in Tidelock"))
    })
    .await
}

/// What a link needs besides its log, and why the configuration is not known to be in force, if it is not.
type Prepared = (Org, Option<TcpListener>, Arc<Catalog>, Option<String>);

/// Refuses mappings that do not fit before there is a log of them.
async fn check_before_creating(config: &Config) -> Result<()> {
    let directory = config.link.log.clone();
    if blocking(move || RocksLog::exists(&directory)).await? {
        return Ok(());
    }
    let described = catalog::describe(config, &salesforce(config)?).await?;
    catalog::compile_finished(config, &described, None).map(drop)
}

/// Puts together what a link needs besides its log.
async fn prepare(config: &Config, ledger: &Ledger, log_id: &str) -> Result<Prepared> {
    let org = salesforce(config)?;
    if let Some(known) = known_stream(ledger, Side::Salesforce).await? {
        // In another org every record that the log knows is missing, which says nothing about what was deleted.
        org.rest.auth().expect_org(org_of(&known));
    }
    let http = match config.http.address {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let (catalog, unconfigured) = configure(config, &org, ledger, log_id).await?;
    Ok((org, http, Arc::new(catalog), unconfigured))
}

/// The stream of a side that the log has read.
async fn known_stream(ledger: &Ledger, side: Side) -> Result<Option<Str>> {
    ledger.run(move |core| Ok(core.known_stream(side))).await
}

/// Waits until the org's changes are subscribed to.
async fn subscribed(status: &SalesforceStatus, cancel: &CancellationToken) -> Result<()> {
    while !status.connected() {
        tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(Kind::Cancelled, "stopped before the subscription was open")),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    Ok(())
}

/// How far copying a mapping has come: the key or id to go on after, and the rows so far.
fn done_so_far(ledger: &Ledger, side: Side, mapping: &MappingDef) -> (Option<Str>, u64) {
    let status = ledger.status();
    let status = status.borrow();
    let known = status.backfills.iter().find(|b| b.side == side && b.mapping == mapping.id);
    known.map_or((None, 0), |b| (Some(b.after.clone()).filter(|a| !a.is_empty()), b.rows))
}

/// Mappings of PostgreSQL that have got fields, or of which the stream may have left columns out, and of which no row has been
/// read again yet; with the first of those fields.
fn not_begun(ledger: &Ledger) -> Vec<(MappingId, FieldId)> {
    let status = ledger.status();
    let status = status.borrow();
    let begins = |after: &Str| after.is_empty() || *after == BackfillProgress::sweep();
    let waiting = status.backfills.iter().filter(|b| b.side == Side::Postgres && b.rows == 0 && begins(&b.after));
    // Where the stream has left something out, that may be any column.
    let first =
        |b: &ledger::BackfillProgress| if BackfillProgress::is_sweep(&b.after) { Some(FieldId(0)) } else { b.unread };
    waiting.filter_map(|b| Some((b.mapping, first(b)?))).collect()
}

/// The catalog in force from now on; and, where a side cannot be asked, why the configuration may not be what is in force.
async fn configure(config: &Config, org: &Org, ledger: &Ledger, log_id: &str) -> Result<(Catalog, Option<String>)> {
    let known = ledger.run(|core| Ok(core.meta().catalog.clone())).await?;
    let previous = Some(&*known).filter(|c| !c.mappings.is_empty());
    let described = match catalog::describe(config, org).await {
        // Before anything is put in force, and before what another database lacks is said to be missing.
        Ok(described) => check_database(config, ledger).await.map(|()| described),
        Err(error) => Err(error),
    };
    let mut catalog = match described {
        Ok(described) => catalog::compile_finished(config, &described, previous)?,
        Err(error) if previous.is_some() && passes(error.kind()) => {
            let why = format!(
                "the configuration has not been compared with what both sides have, so a change of its mappings or rules is not \
                 in force; it will be as soon as the sides can be asked: {}",
                error.explain()
            );
            tracing::error!("{why}; the link goes on with the mappings that the log knows");
            return Ok((Catalog::clone(&known), Some(why)));
        }
        Err(error) => return Err(error),
    };
    if catalog.external_id_prefix.is_empty() {
        catalog.external_id_prefix = Str::new(log_id.get(..PREFIX_LENGTH).unwrap_or(log_id));
    }
    let wanted = catalog.clone();
    let to_copy = |m: &&MappingDef| config.mappings.iter().any(|c| c.name == m.name && c.backfill);
    let to_copy: Vec<MappingId> = catalog.mappings.iter().filter(to_copy).map(|m| m.id).collect();
    ledger.run(move |core| put_in_force(core, &wanted, &to_copy)).await?;
    Ok((catalog, None))
}

/// Refuses another database than the one that the log has read.
async fn check_database(config: &Config, ledger: &Ledger) -> Result<()> {
    let Some(known) = known_stream(ledger, Side::Postgres).await? else { return Ok(()) };
    let session = Session::open(&endpoint(config)).await?;
    let found = slot::database_identity(&session).await?;
    session.close().await?;
    slot::check_database(&known, &found)
}

/// Whether a side that answers so will answer otherwise later.
fn passes(kind: Kind) -> bool {
    matches!(kind, Kind::Unavailable | Kind::Limited)
}

/// Asks both sides until they answer, and asks for the link to be started again where the configuration turns out to want
/// something else than what is in force. One that does not fit is told of, and tried again after it was mended.
async fn watch_configuration(
    config: &Config,
    org: &Org,
    known: &Catalog,
    told: &watch::Sender<Option<String>>,
    outdated: &CancellationToken,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(15));
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_wait()) => {}
        }
        let described = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            described = catalog::describe(config, org) => described,
        };
        match described.and_then(|described| catalog::compile_finished(config, &described, Some(known))) {
            Ok(wanted) if wanted == *known => {
                tracing::info!("the configuration has been compared with both sides: it is what is in force");
                told.send_replace(None);
                return Ok(());
            }
            Ok(_) => {
                tracing::info!(
                    "the sides can be asked again: the link starts again to put the changed configuration in force"
                );
                outdated.cancel();
                return Ok(());
            }
            Err(error) if passes(error.kind()) => {}
            Err(error) => {
                let why = format!("the configuration is not in force: {}", error.explain());
                let news = told.send_if_modified(|known| {
                    let news = known.as_ref() != Some(&why);
                    *known = Some(why.clone());
                    news
                });
                if news {
                    tracing::error!("{why}");
                }
            }
        }
    }
}

/// Puts a catalog in force. Rows of mappings that have got fields are read again at both sides, from the beginning; and those
/// of new ones in `to_copy` for the first time.
fn put_in_force(core: &mut Core, catalog: &Catalog, to_copy: &[MappingId]) -> Result<()> {
    for mapping in core.configure(catalog)? {
        for side in Side::BOTH {
            read_again(core, side, mapping, Deletes::Told)?;
        }
    }
    for mapping in to_copy.iter().copied() {
        for side in Side::BOTH {
            if core.meta().backfill(side, mapping).is_none() {
                core.notice(Notice::Backfill { side, mapping, rows: 0, after: Str::default(), finished: false })?;
            }
        }
    }
    Ok(())
}

/// Opens a side's stream, and where it takes the place of another, notes in the same append what is lost with that: all rows
/// are to be read again, and nobody will tell what became of a transaction that was not heard of yet.
fn take_up(core: &mut Core, side: Side, identity: &str) -> Result<OpenedStream> {
    let opened = core.open_stream(side, identity)?;
    if let Some(replaced) = &opened.replaces {
        let reason = Str::new(format!("stream replaced: {replaced}"));
        core.notice(Notice::Gap { side, reason, scope: "every mapping".into() })?;
        let mappings: Vec<MappingId> = core.meta().catalog.mappings.iter().map(|m| m.id).collect();
        for mapping in mappings {
            read_again(core, side, mapping, Deletes::Lost)?;
        }
        if side == Side::Postgres {
            core.abandon_open(side, "the stream that would have told of it was replaced")?;
        }
    }
    Ok(opened)
}

/// The org's id in the identity of its stream.
fn org_of(identity: &str) -> &str {
    identity.split_once('/').map_or(identity, |(id, _)| id)
}

/// Whether what was deleted meanwhile has been told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Deletes {
    Told,
    Lost,
}

/// Notes that a mapping's rows at a side are to be read from the beginning, whatever has been read before.
pub(super) fn read_again(core: &mut Core, side: Side, mapping: MappingId, deletes: Deletes) -> Result<()> {
    let unfinished = core.meta().backfill(side, mapping).filter(|b| !b.finished);
    let after = match (side, unfinished) {
        (Side::Postgres, Some(b)) if BackfillProgress::is_sweep(&b.after) => BackfillProgress::sweep(),
        (Side::Postgres, _) if deletes == Deletes::Lost => BackfillProgress::sweep(),
        (Side::Postgres, _) => Str::default(),
        // A first copy goes on as one, and reads everything once more at its end.
        (Side::Salesforce, Some(b)) if b.rows > 0 => Place { again: true, ..Place::parse(&b.after) }.to_text(),
        // What was deleted, and a record that has not changed since it was last read, is told by a sweep alone.
        (Side::Salesforce, _) => Place::sweep().to_text(),
    };
    core.notice(Notice::Backfill { side, mapping, rows: 0, after, finished: false })
}

/// Keeps the measured clock offset on record, and has records read whole of which only part is known.
async fn look_after(
    backfill: &SalesforceBackfill,
    rest: &crate::salesforce::rest::Rest,
    ledger: &Ledger,
    reader: &crate::log::reader::LogReader,
    cancel: &CancellationToken,
) -> Result<()> {
    let mut told: Micros = ledger.run(|core| Ok(core.meta().salesforce_ahead)).await?;
    let mut partial = Partial::default();
    // Where to go on with looking through the log for such records.
    let mut look_from = Some(Vec::new());
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        if let Some(ahead) = rest.clock_offset().ahead().filter(|ahead| (ahead - told).abs() > DRIFT) {
            told = ahead;
            ledger.run(move |core| core.notice(Notice::ClockOffset { salesforce_ahead_us: ahead })).await?;
        }
        let (found, catalog) = ledger.run(|core| Ok((core.take_partial(), Arc::clone(&core.meta().catalog)))).await?;
        partial.add(found);
        if let Some(after) = look_from.take() {
            let (found, next) = known_partial(reader, catalog, after).await?;
            partial.add(found);
            look_from = next;
        }
        for records in partial.due(Instant::now()) {
            let Some((mapping, _)) = records.first().cloned() else { continue };
            match backfill.read_again(&records, ledger, cancel).await {
                Ok(()) if partial.read(mapping) => look_from = Some(Vec::new()),
                Ok(()) => {}
                Err(_) if cancel.is_cancelled() => return Ok(()),
                Err(error) => {
                    let wait_ms = partial.failed(mapping, Instant::now()).as_millis() as u64;
                    tracing::warn!(error = %error.explain(), records = records.len(), wait_ms, "records could not be read again yet");
                }
            }
        }
    }
}

/// The Salesforce ids of the records that the log takes for alive there.
fn known(reader: crate::log::reader::LogReader) -> Known {
    Known::new(move |mapping, after, limit| {
        let reader = reader.clone();
        Box::pin(async move {
            reader
                .call(move |log| {
                    let lens = crate::audit::Lens::new(log)?;
                    let prefix = keys::by_salesforce_id(mapping, "");
                    let mut last = keys::by_salesforce_id(mapping, &after).to_vec();
                    let mut ids = Vec::new();
                    loop {
                        let found = log.scan_state(&prefix, Some(&last), limit)?;
                        let more = found.len() == limit;
                        for (key, record) in &found {
                            let record = crate::change::RecordId(keys::number(record));
                            let name = key.get(prefix.len()..).and_then(|id| std::str::from_utf8(id).ok());
                            let state = lens.state(record)?.filter(|s| s.exists_at(Side::Salesforce));
                            let alive = state.is_some_and(|s| s.salesforce_id.as_deref() == name);
                            ids.extend(name.filter(|_| alive).map(Str::new));
                        }
                        match found.into_iter().next_back() {
                            Some((key, _)) if more && ids.len() < limit => last = key,
                            _ => break,
                        }
                    }
                    ids.truncate(limit);
                    Ok(ids)
                })
                .await
        })
    })
}

/// The keys of the rows that the log takes to be there.
fn known_rows(reader: crate::log::reader::LogReader, mapping: MappingId) -> KnownRows {
    Arc::new(move |after| {
        let reader = reader.clone();
        Box::pin(async move {
            reader
                .call(move |log| {
                    let place = |key: &str| keys::by_key(mapping, &Key(Str::new(key)));
                    let (prefix, after) = (place(""), after.as_deref().map(place));
                    let lens = crate::audit::Lens::new(log)?;
                    let mut known = KnownKeys::default();
                    for (key, record) in log.scan_state(&prefix, after.as_deref(), COPY_ROWS)? {
                        let name = String::from_utf8_lossy(key.get(prefix.len()..).unwrap_or_default());
                        let name = Key(Str::new(name));
                        let state = lens.state(crate::change::RecordId(keys::number(&record)))?;
                        if state.is_some_and(|s| s.exists_at(Side::Postgres) && s.key.as_ref() == Some(&name)) {
                            known.keys.push(name.clone());
                        }
                        known.last = Some(name.0);
                    }
                    Ok(known)
                })
                .await
        })
    })
}

/// Some of the records of which only part is known, after a place in the log's index, and the place to go on from. Those of
/// mappings that have been removed since are nobody's business any more.
async fn known_partial(
    reader: &crate::log::reader::LogReader,
    catalog: Arc<Catalog>,
    after: Vec<u8>,
) -> Result<(Vec<(MappingId, Str)>, Option<Vec<u8>>)> {
    reader
        .call(move |log| {
            let (mut found, mut last) = (Vec::new(), None);
            let lens = crate::audit::Lens::new(log)?;
            let after = Some(after.as_slice()).filter(|after| !after.is_empty());
            for (key, _) in log.scan_state(&[keys::PARTIAL], after, PARTIAL_PAGE)? {
                let state = lens.state(crate::change::RecordId(keys::number(&key)))?;
                let state = state.filter(|s| catalog.mapping(s.mapping).is_some());
                found.extend(state.and_then(|s| s.salesforce_id.clone().map(|id| (s.mapping, id))));
                last = Some(key);
            }
            Ok((found, last))
        })
        .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Error::new(Kind::Internal, "a thread of the log panicked; this is a bug in Tidelock").caused_by(e)
    })?
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
