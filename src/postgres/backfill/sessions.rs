//! The sessions that rows are copied through, shared by the tables of a link.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Kind, Result};
use crate::postgres::capture::watermark::WINDOWS_MAX;
use crate::postgres::connect::{Session, database_error};
use crate::postgres::endpoint::Endpoint;

/// How long one statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_mins(10);
/// How much longer a server that is there may take to say so.
const ANSWER_SLACK: Duration = Duration::from_secs(30);

/// A bounded number of sessions. They are lent for a chunk at a time, and whoever waits is served in turn: so a table has all of
/// them while it is the only one, and a large one leaves small ones their share.
#[derive(Clone)]
pub struct CopySessions {
    endpoint: Endpoint,
    most: usize,
    room: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Session>>>,
}

/// A session while it is lent. Unless it is given back it ends with this, since nobody knows what it is amid of.
pub(super) struct Lent {
    session: Session,
    idle: Arc<Mutex<Vec<Session>>>,
    room: OwnedSemaphorePermit,
}

impl CopySessions {
    /// At most so many, brought within 1 to 16.
    pub fn new(endpoint: Endpoint, most: usize) -> Self {
        let most = most.clamp(1, WINDOWS_MAX);
        Self { endpoint, most, room: Arc::new(Semaphore::new(most)), idle: Arc::default() }
    }

    /// How many there may be.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Waits for a session.
    pub(super) async fn lend(&self) -> Result<Lent> {
        let room = Arc::clone(&self.room).acquire_owned().await;
        let room = room.map_err(|_| Error::new(Kind::Internal, "the sessions that copy rows have ended"))?;
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let session = match idle.filter(|session| !session.is_closed()) {
            Some(session) => session,
            None => self.open().await?,
        };
        Ok(Lent { session, idle: Arc::clone(&self.idle), room })
    }

    /// Ends the sessions that nobody uses.
    pub(super) async fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        for session in idle {
            if let Err(error) = session.close().await {
                tracing::debug!(error = %error.explain(), "a session that has copied rows did not end in order");
            }
        }
    }

    /// A session that walks along the key's index: whatever the planner believes of a range of keys, its rows are few. A watermark
    /// waits until it is on the server's own disk, which gives the transactions before it time to become visible.
    async fn open(&self) -> Result<Session> {
        let session = Session::answering_within(&self.endpoint, STATEMENT_TIMEOUT + ANSWER_SLACK).await?;
        let settings = format!(
            "SET synchronous_commit = local; SET statement_timeout = {}; SET enable_seqscan = off; SET enable_bitmapscan = off; \
             SET enable_sort = off; SET enable_incremental_sort = off; SET max_parallel_workers_per_gather = 0; SET jit = off",
            STATEMENT_TIMEOUT.as_millis()
        );
        session
            .batch_execute(&settings)
            .await
            .map_err(|e| database_error("setting up a session that copies rows", e))?;
        Ok(session)
    }
}

impl Lent {
    /// Gives the session back. It must not be within a transaction.
    pub(super) fn give_back(self) {
        let Self { session, idle, room } = self;
        idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        drop(room);
    }
}

impl Deref for Lent {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}
