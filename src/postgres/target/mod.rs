//! Writes to PostgreSQL: each batch is one transaction, and takes effect exactly once.
//!
//! * **Once.** The highest ticket of a batch is stored in `tidelock.replay` by the batch's own transaction, so that after
//!   a crash or a lost answer [`Target::resume`] tells what took effect. One session at a time may write for a link: it
//!   holds an advisory lock, and each transaction checks that the cursor is where it left it.
//! * **Compare and set.** Rows are locked and compared, canonically, with what the log believes. A row that differs holds
//!   an edit that capture has not delivered yet; the write is skipped and decided again. A row that a user holds locked is
//!   not waited for: its write is put off, and the others go on. So they do where another lock of a user's is in the way (of an
//!   insert with the same unique value, of a parent), once `lock_timeout` has told that it is.
//! * **Told by the stream.** Two logical messages enclose the transaction; the closing one lists the tickets that were
//!   applied, skipped and refused. So capture recognises our own changes and learns what became of them.
//! * **One bad row costs one row.** A statement that fails on its data is halved under savepoints until the row at fault
//!   stands alone; it is refused, and the rest commits. Rows that exchange unique values are carried out together.

mod at_once;
mod backend;
mod exchange;
mod fault;
mod plan;
mod rebuild;
mod table;
mod texts;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use at_once::Hope;
use backend::Backend;
use fault::Fault;
use plan::{Fate, Tables};
pub use rebuild::{Rebuild, Rebuilt};
use table::Table;
use tokio_postgres::error::SqlState;
use transaction::Attempt;

use super::connect::Session;
use super::endpoint::Endpoint;
use super::introspect::table_details;
use super::marks::Marks;
use crate::change::{Catalog, MappingDef, MappingId, Side, Str};
use crate::error::{Error, Kind, Result};
use crate::flow::{Confirmation, Mended, Resumed, Target, Write, Written};

/// What the server shows as `application_name` of the session that writes.
pub const APPLICATION_NAME: &str = "tidelock";

/// The first number of the advisory locks ("tide"); the second is the hash of the link's name.
const ADVISORY_CLASS: i32 = 0x7469_6465;

/// How often a transaction is tried again before the error goes to the caller.
const ATTEMPTS_MAX: u32 = 5;

/// The first pause between two attempts; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(40);

/// How a target goes about it.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// The link's name, as in the logical messages.
    pub link: String,
    /// Names the change log that the tickets' offsets belong to. A new log starts with a cursor of its own.
    pub log: String,
    /// Where the messages go that mark our transactions.
    pub marks: Marks,
    /// The most writes in a transaction.
    pub batch_limit: usize,
    /// The longest that a statement may run.
    pub statement_timeout: Duration,
    /// The longest that a statement may wait for a user's lock.
    pub lock_timeout: Duration,
    /// After how long an older session of ours that still holds the link's lock is ended.
    pub takeover_after: Duration,
    /// The identity of the stream that the log has read: no other database than its own is written to.
    pub stream: Option<Str>,
    /// After how long waiting for the link's lock is an error.
    pub takeover_timeout: Duration,
}

impl TargetOptions {
    /// The usual options for a link and its log.
    pub fn new(link: impl Into<String>, log: impl Into<String>) -> Self {
        Self {
            link: link.into(),
            log: log.into(),
            marks: Marks::default(),
            batch_limit: 1_000,
            statement_timeout: Duration::from_mins(1),
            lock_timeout: Duration::from_secs(5),
            stream: None,
            takeover_after: Duration::from_secs(5),
            takeover_timeout: Duration::from_secs(15),
        }
    }
}

/// The PostgreSQL side of replay.
pub struct PostgresTarget {
    endpoint: Endpoint,
    catalog: Arc<Catalog>,
    options: TargetOptions,
    backend: Option<Backend>,
    /// The server process of our last session, which may live on for a while.
    previous: Option<i32>,
    tables: Tables,
    hope: Hope,
}

impl PostgresTarget {
    /// A target that is not connected yet.
    pub fn new(endpoint: Endpoint, catalog: Arc<Catalog>, options: TargetOptions) -> Self {
        Self { endpoint, catalog, options, backend: None, previous: None, tables: Tables::new(), hope: Hope::default() }
    }

    /// Takes another catalog into use. The tables are looked at anew.
    pub fn set_catalog(&mut self, catalog: Arc<Catalog>) {
        self.catalog = catalog;
        self.tables.clear();
    }

    /// The session, if no earlier call left it with an unknown outcome.
    fn writable(&mut self) -> Result<&mut Backend> {
        match &mut self.backend {
            Some(backend) if !backend.in_transaction => Ok(backend),
            _ => Err(Error::new(Kind::Unavailable, "the session with PostgreSQL must be resumed before it writes")),
        }
    }

    /// Looks at the tables of mappings that have not been looked at.
    async fn take_in(&mut self, mappings: &[MappingId]) -> Result<()> {
        for id in mappings {
            if self.tables.contains_key(id) {
                continue;
            }
            let Some(mapping) = self.catalog.mapping(*id) else {
                return Err(Error::new(Kind::Internal, format!("a write names mapping {}, which is not mapped", id.0)));
            };
            let mapping = mapping.clone();
            let table = describe_in(self.writable()?.session(), &mapping).await?;
            self.tables.insert(*id, table);
        }
        Ok(())
    }

    async fn write_with_retries(&mut self, batch: &[Write]) -> Result<Vec<Fate>> {
        let mut mappings: Vec<MappingId> = batch.iter().map(|write| write.mapping).collect();
        mappings.sort_unstable();
        mappings.dedup();
        let mut immediate = false;
        let mut pause = PAUSE_FIRST;
        let mut tries = 0;
        loop {
            tries += 1;
            self.take_in(&mappings).await?;
            self.check_order(batch)?;
            let Some(backend) = self.backend.as_mut().filter(|backend| !backend.in_transaction) else {
                return self.writable().map(|_| Vec::new());
            };
            let attempt = Attempt::new(backend, &self.options, &self.tables, batch, immediate).run(&mut self.hope);
            let fault = match Box::pin(attempt).await {
                Ok(fates) => return Ok(fates),
                Err(fault) => fault,
            };
            let rolled_back = self.recover(&fault).await;
            let again = rolled_back && tries < ATTEMPTS_MAX;
            match fault {
                // A deferred constraint did not hold at the end, or could not be checked: once more, so that each row is on its own.
                Fault::Row(_) | Fault::Locked(_) if again && !immediate => immediate = true,
                Fault::Locked(error) | Fault::Busy(error) if again => {
                    tracing::info!(error = error.explain(), tries, "a batch is tried again");
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Fault::Stale(_) if again && tries < 3 => {}
                fault => return Err(fault.into_error("writing a batch")),
            }
        }
    }

    /// Rolls back after a fault that leaves the session usable; otherwise drops the session. Answers which.
    async fn recover(&mut self, fault: &Fault) -> bool {
        let Some(mut backend) = self.backend.take() else { return false };
        if matches!(fault, Fault::Fatal(_)) || backend.simple("ROLLBACK", "rolling back").await.is_err() {
            self.previous = Some(backend.pid);
            return false;
        }
        if matches!(fault, Fault::Stale(_)) {
            backend.forget_statements();
            self.tables.clear();
        }
        backend.in_transaction = false;
        self.backend = Some(backend);
        true
    }

    /// A ticket at or below the cursor could not be told from one that took effect.
    fn check_order(&self, batch: &[Write]) -> Result<()> {
        let cursor = self.backend.as_ref().and_then(|backend| backend.cursor);
        match batch.iter().find(|write| Some(write.ticket) <= cursor) {
            Some(write) => {
                let cursor = cursor.unwrap_or_default();
                let message = format!(
                    "ticket {} is not after the cursor {cursor} that the database holds for link {:?}; the change log \
                     is not the one that wrote last",
                    write.ticket, self.options.link
                );
                Err(Error::new(Kind::Internal, message))
            }
            None => Ok(()),
        }
    }
}

async fn describe_in(session: &Session, mapping: &MappingDef) -> Result<Table> {
    let details = table_details(session, &mapping.schema, std::slice::from_ref(&mapping.table)).await?;
    match details.first() {
        Some(detail) => Table::new(mapping, detail),
        None => Err(Error::new(
            Kind::Configuration,
            format!(
                "table {}.{} of mapping {:?} does not exist, or the role may not use its schema; run `tidelock init`",
                mapping.schema, mapping.table, mapping.name
            ),
        )),
    }
}

impl Target for PostgresTarget {
    fn side(&self) -> Side {
        Side::Postgres
    }

    fn confirmation(&self) -> Confirmation {
        Confirmation::Transaction
    }

    fn batch_limit(&self) -> usize {
        self.options.batch_limit
    }

    async fn resume(&mut self) -> Result<Resumed> {
        if let Some(backend) = self.backend.take() {
            self.previous = Some(backend.pid);
        }
        self.tables.clear();
        let backend = Box::pin(Backend::open(&self.endpoint, &self.options, self.previous)).await?;
        let resumed = Resumed { committed: backend.cursor, told_by: Some(backend.told_by) };
        self.previous = Some(backend.pid);
        self.backend = Some(backend);
        Ok(resumed)
    }

    async fn write(&mut self, batch: &[Write]) -> Result<Vec<Written>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let fates = Box::pin(self.write_with_retries(batch)).await?;
        Ok(fates
            .into_iter()
            .map(|fate| match fate {
                Fate::Refused(refusal) => Written::Refused { code: refusal.code, message: refusal.message },
                Fate::Locked => Written::Retry {
                    code: SqlState::LOCK_NOT_AVAILABLE.code().into(),
                    message: "somebody holds the row locked, or one that it depends on".into(),
                    mended: Mended::ByTime,
                },
                Fate::Open | Fate::Applied | Fate::Skipped => Written::InStream,
            })
            .collect())
    }
}
