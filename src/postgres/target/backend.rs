//! The target's session: settings, the lock that makes it the only writer of its link, the cursor, and prepared statements.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, SimpleQueryMessage, Statement};

use super::fault::Fault;
use super::{ADVISORY_CLASS, APPLICATION_NAME, TargetOptions};
use crate::change::{Lsn, Offset};
use crate::error::{Error, Kind, Result};
use crate::postgres::connect::Session;
use crate::postgres::endpoint::Endpoint;
use crate::postgres::slot;

/// Parameters of a prepared statement.
pub(super) type Parameters<'a> = [&'a (dyn ToSql + Sync)];

/// More statements than a link's mappings have shapes; beyond it the cache starts anew.
const STATEMENTS_MAX: usize = 512;

/// How long a statement waits for a user's lock in a transaction that has met one, in milliseconds.
const LOCK_TIMEOUT_AGAIN_MS: u32 = 50;

/// How often the lock is asked for while an older session holds it.
const LOCK_POLL: Duration = Duration::from_millis(100);

/// A connected session that holds the link's lock.
pub(super) struct Backend {
    session: Session,
    statements: HashMap<String, Statement>,
    call_timeout: Duration,
    /// Whether the transaction has a savepoint.
    savepoint: bool,
    /// The server process behind it.
    pub(super) pid: i32,
    /// The highest ticket committed, as the database says.
    pub(super) cursor: Option<Offset>,
    /// Where the server's log stood when the cursor was read: the transactions that it stands for come before.
    pub(super) told_by: Lsn,
    /// Whether a transaction is under way: after an error or a cancelled call its outcome is unknown.
    pub(super) in_transaction: bool,
    /// Whether its transactions carry a replication origin.
    pub(super) has_origin: bool,
}

/// An older session that holds the link's lock.
struct Holder {
    pid: i32,
    application: String,
    same_role: bool,
    address: String,
}

impl Backend {
    /// Connects, takes the link's lock and reads the cursor. `previous` is the server process of our own last session.
    pub(super) async fn open(endpoint: &Endpoint, options: &TargetOptions, previous: Option<i32>) -> Result<Self> {
        let call_timeout = options.statement_timeout + Duration::from_secs(5);
        let endpoint = endpoint.clone().with_application_name(APPLICATION_NAME);
        let session = Session::answering_within(&endpoint, call_timeout).await?;
        if let Some(known) = &options.stream {
            slot::check_database(known, &slot::database_identity(&session).await?)?;
        }
        let mut backend = Self {
            session,
            statements: HashMap::new(),
            call_timeout,
            savepoint: false,
            pid: 0,
            cursor: None,
            told_by: Lsn::default(),
            in_transaction: false,
            has_origin: false,
        };
        backend.configure(options).await?;
        backend.lock(options, previous).await?;
        backend.has_origin = backend.set_origin(options).await;
        (backend.cursor, backend.told_by) = backend.read_cursor(options).await?;
        Ok(backend)
    }

    async fn configure(&mut self, options: &TargetOptions) -> Result<()> {
        let doing = "setting up the session that writes";
        // The number of rows that an array brings is not known to a plan, nor how large the table will be when it is used again: rows
        // are always found by an index.
        let settings = format!(
            "SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; \
             SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
             SET default_transaction_deferrable = off; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; \
             SET jit = off; SET statement_timeout = {}; SET lock_timeout = {}; \
             SET idle_in_transaction_session_timeout = {}; SELECT pg_catalog.pg_backend_pid()",
            options.statement_timeout.as_millis(),
            options.lock_timeout.as_millis(),
            self.call_timeout.as_millis(),
        );
        let rows = self.simple(&settings, doing).await.map_err(|fault| fault.into_error(doing))?;
        self.pid = first_text(&rows).and_then(|pid| pid.parse().ok()).unwrap_or_default();
        Ok(())
    }

    /// Takes the advisory lock of the link. An older session of ours that is still there is given time to end, and then
    /// is ended; anybody else's lock is an error.
    async fn lock(&mut self, options: &TargetOptions, previous: Option<i32>) -> Result<()> {
        let waited = tokio::time::timeout(options.takeover_timeout, self.lock_patiently(options, previous)).await;
        let Ok(locked) = waited else {
            let who = match self.holder(options).await? {
                Some(holder) => {
                    format!("server process {} ({:?} at {})", holder.pid, holder.application, holder.address)
                }
                None => "another session".to_owned(),
            };
            let message = format!(
                "another session writes to this database for link {:?}: {who}; stop the other Tidelock, or give this \
                 one a link name of its own",
                options.link
            );
            return Err(Error::new(Kind::Unavailable, message));
        };
        locked
    }

    async fn lock_patiently(&mut self, options: &TargetOptions, previous: Option<i32>) -> Result<()> {
        let doing = "taking the lock of the link";
        let lock = format!(
            "SELECT pg_catalog.pg_try_advisory_lock({ADVISORY_CLASS}, pg_catalog.hashtext({}))",
            escape_literal(&options.link)
        );
        let mut waited = Duration::ZERO;
        let mut ended = None;
        loop {
            let rows = self.simple(&lock, doing).await.map_err(|fault| fault.into_error(doing))?;
            if first_text(&rows) == Some("t") {
                return Ok(());
            }
            if let Some(holder) = self.holder(options).await?
                && ended != Some(holder.pid)
                && holder.same_role
                && (Some(holder.pid) == previous
                    || (waited >= options.takeover_after && holder.application == APPLICATION_NAME))
            {
                tracing::warn!(
                    pid = holder.pid,
                    address = holder.address,
                    link = options.link,
                    "ending an older session that still holds the lock of this link"
                );
                let end = format!("SELECT pg_catalog.pg_terminate_backend({})", holder.pid);
                self.simple(&end, doing).await.map_err(|fault| fault.into_error(doing))?;
                ended = Some(holder.pid);
            }
            tokio::time::sleep(LOCK_POLL).await;
            waited += LOCK_POLL;
        }
    }

    async fn holder(&self, options: &TargetOptions) -> Result<Option<Holder>> {
        let doing = "looking who holds the lock of the link";
        let ask = format!(
            "SELECT a.pid, a.application_name, a.usename = current_user, coalesce(a.client_addr::text, 'local') \
             FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
             WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid::int8 = {ADVISORY_CLASS} \
             AND l.objid::int8 = pg_catalog.hashtext({})::int8 & 4294967295 \
             AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())",
            escape_literal(&options.link)
        );
        let rows = self.simple(&ask, doing).await.map_err(|fault| fault.into_error(doing))?;
        Ok(rows.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(Holder {
                pid: row.get(0)?.parse().ok()?,
                application: row.get(1).unwrap_or_default().to_owned(),
                same_role: row.get(2) == Some("t"),
                address: row.get(3).unwrap_or_default().to_owned(),
            }),
            _ => None,
        }))
    }

    /// Marks what the session writes with a replication origin, where the role may: other subscribers can leave it out then. It
    /// answers whether the session has one; that is never an error, since nothing of ours depends on it.
    async fn set_origin(&self, options: &TargetOptions) -> bool {
        let doing = "setting up the replication origin";
        let name =
            format!("pg_catalog.concat('tidelock_', current_database(), '_', {})", escape_literal(&options.link));
        let may = "SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(oid, 'EXECUTE')) FROM pg_catalog.pg_proc \
                   WHERE pronamespace = 'pg_catalog'::pg_catalog.regnamespace AND proname IN ('pg_replication_origin_create', \
                   'pg_replication_origin_session_setup', 'pg_replication_origin_xact_setup')";
        let make = format!(
            "SELECT pg_catalog.pg_replication_origin_create({name}) \
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_replication_origin WHERE roname = {name})"
        );
        let set = format!("SELECT pg_catalog.pg_replication_origin_session_setup({name})");
        let setting = async {
            if first_text(&self.simple(may, doing).await?) != Some("t") {
                return Ok(false);
            }
            self.simple(&make, doing).await?;
            self.simple(&set, doing).await.map(|_| true)
        };
        setting.await.unwrap_or_else(|fault: Fault| {
            let error = fault.into_error(doing);
            tracing::info!(error = error.explain(), "writes to PostgreSQL carry no replication origin");
            false
        })
    }

    async fn read_cursor(&mut self, options: &TargetOptions) -> Result<(Option<Offset>, Lsn)> {
        let doing = "reading the cursor (table tidelock.replay)";
        let read = format!(
            "INSERT INTO tidelock.replay (link, log) VALUES ({link}, {log}) ON CONFLICT DO NOTHING; \
             SELECT ticket, pg_catalog.pg_current_wal_insert_lsn() FROM tidelock.replay WHERE link = {link} AND log = {log}",
            link = escape_literal(&options.link),
            log = escape_literal(&options.log),
        );
        match self.simple(&read, doing).await {
            Ok(rows) => Ok((ticket(&rows)?, place(&rows)?)),
            Err(Fault::Stale(error)) => Err(Error::new(
                Kind::Configuration,
                "the database has no table tidelock.replay that this version can use; run `tidelock init`",
            )
            .caused_by(error)),
            Err(fault) => Err(fault.into_error(doing)),
        }
    }

    /// Several statements in one round trip, without parameters.
    pub(super) async fn simple(&self, statements: &str, doing: &str) -> Result<Vec<SimpleQueryMessage>, Fault> {
        self.bounded(self.session.simple_query(statements), doing).await
    }

    /// The prepared form of a statement. One that is not known yet is prepared under the savepoint: the table may be locked.
    pub(super) async fn prepare(&mut self, sql: &str, doing: &str) -> Result<Statement, Fault> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let set = self.savepoint();
        self.simple(set, doing).await?;
        let statement = self.bounded(self.session.prepare(sql), doing).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Marks a transaction as begun.
    pub(super) fn begun(&mut self) {
        self.in_transaction = true;
        self.savepoint = false;
    }

    /// Sets a savepoint and runs a prepared statement, in one round trip; answers how many rows it touched.
    pub(super) async fn execute_guarded(
        &mut self,
        statement: &Statement,
        parameters: &Parameters<'_>,
        doing: &str,
    ) -> Result<u64, Fault> {
        let set = self.savepoint();
        let both = async {
            let savepoint = self.session.batch_execute(set);
            let execute = self.session.execute(statement, parameters);
            // Both are on the wire before the first answer is read; the order is that of the first poll.
            let (saved, executed) = tokio::join!(biased; savepoint, execute);
            saved.and(executed)
        };
        self.bounded(both, doing).await
    }

    /// Sets a savepoint and runs a prepared statement for its rows, in one round trip.
    pub(super) async fn query_guarded(
        &mut self,
        statement: &Statement,
        parameters: &Parameters<'_>,
        doing: &str,
    ) -> Result<Vec<Row>, Fault> {
        let set = self.savepoint();
        let both = async {
            let savepoint = self.session.batch_execute(set);
            let query = self.session.query(statement, parameters);
            // Both are on the wire before the first answer is read; the order is that of the first poll.
            let (saved, rows) = tokio::join!(biased; savepoint, query);
            saved.and(rows)
        };
        self.bounded(both, doing).await
    }

    /// Sets a savepoint and runs prepared statements one after another, in one round trip; answers how many rows each touched. A lock
    /// is hardly waited for.
    pub(super) async fn execute_all(
        &mut self,
        calls: &[(&Statement, Vec<&(dyn ToSql + Sync)>, &str)],
    ) -> Result<Vec<u64>, Fault> {
        let set = format!("{}; SET LOCAL lock_timeout = {LOCK_TIMEOUT_AGAIN_MS}", self.savepoint());
        let session = &self.session;
        let mut savepoint = pin!(session.batch_execute(&set));
        let mut executes: Vec<_> =
            calls.iter().map(|(statement, parameters, _)| Box::pin(session.execute(*statement, parameters))).collect();
        let mut saved = None;
        let mut answers: Vec<Option<Result<u64, tokio_postgres::Error>>> = calls.iter().map(|_| None).collect();
        // All are on the wire before the first answer is read; the order is that of the first poll.
        let all = poll_fn(|cx| {
            if saved.is_none()
                && let Poll::Ready(done) = savepoint.as_mut().poll(cx)
            {
                saved = Some(done);
            }
            for (execute, answer) in executes.iter_mut().zip(&mut answers) {
                if answer.is_none()
                    && let Poll::Ready(done) = execute.as_mut().poll(cx)
                {
                    *answer = Some(done);
                }
            }
            let done = saved.is_some() && answers.iter().all(Option::is_some);
            if done { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        let doing = "writing a batch at once";
        self.bounded(all, doing).await?;
        saved.transpose().map_err(|error| Fault::of(error, doing))?;
        // Behind the first that failed, the others only say that it did.
        let answers = answers.into_iter().flatten().zip(calls);
        answers.map(|(answer, (.., doing))| answer.map_err(|error| Fault::of(error, doing))).collect()
    }

    /// The statements that set the savepoint anew.
    const fn savepoint(&mut self) -> &'static str {
        let set = if self.savepoint { "RELEASE SAVEPOINT tidelock; SAVEPOINT tidelock" } else { "SAVEPOINT tidelock" };
        self.savepoint = true;
        set
    }

    /// Undoes what the last guarded statement did.
    pub(super) async fn undo(&self, doing: &str) -> Result<(), Fault> {
        self.simple("ROLLBACK TO SAVEPOINT tidelock", doing).await.map(drop)
    }

    /// The same after a wait for a lock. From here on a lock is not waited for as long: there may be many to find out about.
    pub(super) async fn undo_wait(&self, doing: &str) -> Result<(), Fault> {
        let statements = format!("ROLLBACK TO SAVEPOINT tidelock; SET LOCAL lock_timeout = {LOCK_TIMEOUT_AGAIN_MS}");
        self.simple(&statements, doing).await.map(drop)
    }

    /// Forgets prepared statements, after the tables changed.
    pub(super) fn forget_statements(&mut self) {
        self.statements.clear();
    }

    /// The session, for queries over the catalogs.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
        doing: &str,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(self.call_timeout, call).await {
            Ok(answer) => answer.map_err(|error| Fault::of(error, doing)),
            Err(_) => Err(Fault::Fatal(Error::new(
                Kind::Unavailable,
                format!("PostgreSQL did not answer within {} s while {doing}", self.call_timeout.as_secs()),
            ))),
        }
    }
}

/// The first column of the first row.
pub(super) fn first_text(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// The place in the server's log in the last row of an answer, whose second column it is.
fn place(messages: &[SimpleQueryMessage]) -> Result<Lsn> {
    let place = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(1)?.parse().ok(),
        _ => None,
    });
    place.ok_or_else(|| Error::new(Kind::Protocol, "the server did not tell how far its log goes"))
}

/// The cursor in the last row of an answer, whose first column it is. No row at all means that somebody removed ours.
pub(super) fn ticket(messages: &[SimpleQueryMessage]) -> Result<Option<Offset>> {
    let row = messages.iter().rev().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0)),
        _ => None,
    });
    let removed = || {
        Error::new(
            Kind::Unavailable,
            "the row of this link in table tidelock.replay is gone; the cursor is read again before more is written",
        )
    };
    match row.ok_or_else(removed)? {
        None => Ok(None),
        Some(text) => text.parse().map(|offset| Some(Offset(offset))).map_err(|error: std::num::ParseIntError| {
            Error::new(Kind::Configuration, format!("table tidelock.replay holds ticket {text:?}, which is no offset"))
                .caused_by(error)
        }),
    }
}
