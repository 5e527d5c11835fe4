//! One link, from opening its log to draining it.

mod again;
mod configure;
mod known;
mod postgres;
mod republished;
mod salesforce;
mod schema;
mod stream;
mod trigger;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::Backoff;
use crate::change::{Catalog, MappingDef, Side};
use crate::clock::{self, SharedClock};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::http;
use crate::ledger::core::OpenedStream;
use crate::ledger::{self, Ledger};
use crate::log::reader::ReaderPool;
use crate::log::rocks::{RocksLog, RocksOptions};
use crate::postgres::capture::CaptureHandle;
use crate::postgres::endpoint::Endpoint;
use crate::postgres::lost::Lost;
use crate::postgres::publication::Published;
use crate::replay::Settings;
use crate::status::{Handle, Identity, Parts, Totals};
use crate::task::Tasks;

use super::catalog;
use super::connect::{Org, endpoint, salesforce};
pub use again::SentAgain;
use configure::{configure, watch_configuration};
use schema::Seen;
use stream::{known_stream, org_of};

/// How long a shutdown waits for each stage.
const DRAIN: Duration = Duration::from_secs(20);
/// The waits before the link starts again after PostgreSQL's stream was lost: whatever loses it may go on doing so.
const LOST_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

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
    /// How PostgreSQL's stream was lost in the run before this one, if that is what ended it.
    lost: Option<Lost>,
    /// Whether the run before this one has seen that somebody changed the publication.
    republished: bool,
    /// What is known of the org's fields, from one run to the next.
    seen: Seen,
}

/// Why a run ended.
enum Ended {
    /// Somebody asked it to.
    Asked,
    /// The configuration asks for other mappings or rules than those in force, which can be had now.
    Outdated(Box<Config>),
    /// Somebody has changed the publication, so that tables have to be read again.
    Republished(Box<Config>),
    /// PostgreSQL's stream was lost, which the next start makes up for.
    Lost(Box<Config>, Lost),
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
                lost: None,
                republished: false,
                seen: Seen::default(),
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
    /// can, by starting the link again; likewise, PostgreSQL's stream that was lost is made up for. `started` is given the
    /// running link each time.
    pub async fn run(self, cancel: CancellationToken, mut started: impl FnMut(Arc<Handle>)) -> Result<()> {
        let mut link = self;
        let mut losses = Backoff::new(LOST_AGAIN.0, LOST_AGAIN.1);
        loop {
            let seen = link.seen.clone();
            let (config, lost, republished) = match link.run_once(cancel.clone(), &mut started).await? {
                Ended::Asked => return Ok(()),
                Ended::Outdated(config) => (config, None, false),
                Ended::Republished(config) => (config, None, true),
                Ended::Lost(config, lost) => {
                    tracing::error!("{lost}; the link starts again");
                    let wait = tokio::time::sleep(losses.next_wait());
                    if cancel.run_until_cancelled(wait).await.is_none() {
                        return Ok(());
                    }
                    (config, Some(lost), false)
                }
            };
            match Self::open_unless(*config, &cancel).await? {
                Some(opened) => link = Self { lost, republished, seen, ..opened },
                None => return Ok(()),
            }
        }
    }

    /// Runs until cancelled, once; `started` is given the running link.
    pub async fn run_with(self, cancel: CancellationToken, started: impl FnOnce(Arc<Handle>)) -> Result<()> {
        match self.run_once(cancel, started).await? {
            Ended::Lost(_, lost) => Err(lost.into()),
            Ended::Asked | Ended::Outdated(_) | Ended::Republished(_) => Ok(()),
        }
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
        let evolving = self.evolving(&salesforce.status, &outdated);
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
            schema: self.seen.subscribe(),
        }));

        self.spawn_postgres(&mut captures, &postgres, &capturing, &postgres_stream, published, &totals);
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
        {
            let serving = serving.clone();
            services.spawn("schema", async move { evolving.run(&serving).await });
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
        let fits = match &first {
            Err(error) if error.kind() == Kind::Configuration && !cancel.is_cancelled() => self.fits().await,
            _ => true,
        };
        self.close().await?;
        if let Err(error) = first {
            return match Lost::of(&error) {
                Some(lost) if !cancel.is_cancelled() => Ok(Ended::Lost(config, lost.clone())),
                _ if !fits => {
                    tracing::warn!(error = %error.explain(), "the org's fields have changed; the link starts again with those there are");
                    Ok(Ended::Outdated(config))
                }
                _ => Err(error),
            };
        }
        Ok(match cancel.is_cancelled() {
            false if republished.is_cancelled() => Ended::Republished(config),
            false if outdated.is_cancelled() => Ended::Outdated(config),
            _ => Ended::Asked,
        })
    }

    async fn open_streams(&self) -> Result<(OpenedStream, Option<Published>, OpenedStream)> {
        let (postgres, published) = self.open_postgres().await?;
        Ok((postgres, published, self.open_salesforce().await?))
    }

    /// Closes the log.
    async fn close(self) -> Result<()> {
        close(self.ledger, self.thread, self.pool).await
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        Error::new(Kind::Internal, "a thread of the log panicked; this is a bug in Tidelock").caused_by(e)
    })?
}
