//! The threads that own the ledger, and their handle.
//!
//! Jobs are taken in order from a bounded queue and folded. What is ready up to a cap becomes one append with one sync, by a
//! thread of its own while the next is folded; then everybody is answered and the readers are woken. An error that leaves the
//! fold ahead of the store ends the threads: every later call gets an error, and the link starts again from what is stored.

use std::future::Future;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

use crate::change::{Offset, Position};
use crate::clock::{Micros, SharedClock};
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Intake, Receipt};
use crate::log::{Append, ChangeLog};

use super::core::{Core, Counts, Part};
use super::meta::BackfillProgress;

/// Jobs that may wait.
const QUEUE: usize = 64;
/// Jobs that may share one sync.
const JOBS_MAX: usize = 1_024;
/// Bytes of entries that may share one sync.
const BYTES_MAX: usize = 256 << 10;

type Reply = Box<dyn FnOnce(Result<Offset>) + Send>;
type Work = Box<dyn FnOnce(&mut Core) -> (Reply, Option<Error>) + Send>;

enum Job {
    Work(Work),
    /// Nothing is taken any more, whoever still holds a handle.
    Stop,
}

/// What is known of the link, as of the last append.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The log's first unwritten offset.
    pub tail: Offset,
    /// The place of the last event of each side that is in the log.
    pub positions: [Option<Position>; 2],
    /// When that event was committed.
    pub committed_at: [Micros; 2],
    /// How far replay to each side has read, as far as the log tells.
    pub cursors: [Offset; 2],
    /// Counts since the start.
    pub counts: Counts,
    /// Copying progress.
    pub backfills: Vec<BackfillProgress>,
    /// Appends (and so syncs) since the start.
    pub appends: u64,
}

/// A handle to the ledger's thread. Clones are of the same thread; it ends when the last is dropped, or by [`Ledger::stop`].
#[derive(Clone)]
pub struct Ledger {
    jobs: mpsc::Sender<Job>,
    status: watch::Receiver<Status>,
}

/// Starts the thread that owns `log`'s writes.
pub fn start(log: Arc<dyn ChangeLog>, clock: SharedClock) -> Result<(Ledger, JoinHandle<()>)> {
    let core = Core::open(Arc::clone(&log), clock)?;
    let (jobs, inbox) = mpsc::channel(QUEUE);
    let (told, status) = watch::channel(Status::default());
    told.send_replace(status_of(&core, log.tail(), 0));
    // Without room in between: what is taken is what the writer has begun to store.
    let (parts, handed_over) = std::sync::mpsc::sync_channel(0);
    let (emptied, buffers) = std::sync::mpsc::channel();
    let writer = spawn("ledger-writer", move || Writer { log, told, emptied, appends: 0 }.run(&handed_over))?;
    let owner = Owner { core, parts, buffers };
    let thread = spawn("ledger", move || {
        owner.run(inbox);
        if writer.join().is_err() {
            tracing::error!("the thread that writes the change log has failed; start again");
        }
    })?;
    Ok((Ledger { jobs, status }, thread))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| Error::new(Kind::Internal, "cannot start the ledger's threads").caused_by(e))
}

/// Folds: what it makes of the jobs it hands over to the writer, and goes on while that is being synced.
struct Owner {
    core: Core,
    parts: std::sync::mpsc::SyncSender<HandedOver>,
    buffers: std::sync::mpsc::Receiver<Append>,
}

/// A part of the log, and who waits for it.
struct HandedOver {
    part: Part,
    replies: Vec<Reply>,
    /// The link once it is stored; all but the tail and the number of appends.
    status: Status,
}

impl Owner {
    fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        while let Some(Job::Work(work)) = inbox.blocking_recv() {
            let mut replies = Vec::new();
            let mut failed = self.take(work, &mut replies);
            let mut stops = false;
            while failed.is_none() && !stops && replies.len() < JOBS_MAX && self.core.pending_bytes() < BYTES_MAX {
                match inbox.try_recv() {
                    Ok(Job::Work(work)) => failed = self.take(work, &mut replies),
                    Ok(Job::Stop) => stops = true,
                    Err(_) => break,
                }
            }
            if let Some(error) = failed {
                return refuse(replies, &error);
            }
            let part = self.core.hand_over(self.buffers.try_recv().unwrap_or_default());
            let status = status_of(&self.core, Offset::default(), 0);
            if let Err(unsent) = self.parts.send(HandedOver { part, replies, status }) {
                // The writer has failed, and has said so.
                return unsent.0.replies.into_iter().for_each(|reply| reply(Err(gone())));
            }
            if stops {
                return;
            }
        }
    }

    fn take(&mut self, work: Work, replies: &mut Vec<Reply>) -> Option<Error> {
        let (reply, failed) = work(&mut self.core);
        replies.push(reply);
        failed
    }
}

/// Stores: one append and one sync for each part.
struct Writer {
    log: Arc<dyn ChangeLog>,
    told: watch::Sender<Status>,
    emptied: std::sync::mpsc::Sender<Append>,
    appends: u64,
}

impl Writer {
    fn run(mut self, parts: &std::sync::mpsc::Receiver<HandedOver>) {
        while let Ok(HandedOver { part, replies, status }) = parts.recv() {
            match part.store(&*self.log) {
                Ok(tail) => {
                    self.appends += 1;
                    self.told.send_replace(Status { tail, appends: self.appends, ..status });
                    for reply in replies {
                        reply(Ok(tail));
                    }
                    // The owner may have ended; then nobody needs the buffer.
                    let _ended = self.emptied.send(part.recycle());
                }
                Err(error) => return refuse(replies, &error),
            }
        }
    }
}

fn refuse(replies: Vec<Reply>, error: &Error) {
    tracing::error!(error = %error.explain(), "the change log cannot be written; the link stops");
    for reply in replies {
        reply(Err(again(error)));
    }
}

fn status_of(core: &Core, tail: Offset, appends: u64) -> Status {
    let meta = core.meta();
    Status {
        tail,
        positions: meta.positions.clone(),
        committed_at: meta.committed_at,
        cursors: meta.cursors,
        counts: core.counts,
        backfills: meta.backfills.clone(),
        appends,
    }
}

fn again(error: &Error) -> Error {
    Error::new(error.kind(), error.explain())
}

fn gone() -> Error {
    Error::new(Kind::Storage, "the change log takes nothing more after an earlier failure; the link has to start again")
}

impl Ledger {
    /// Runs `work` on the owner thread and answers when what it appended is durable.
    ///
    /// A [`Kind::Configuration`] error is the caller's alone, unless the work has added something by then; any other ends the
    /// thread, and nothing of the work becomes durable.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(work).await?.await
    }

    /// Like [`Ledger::run`], in two steps: queued, then durable.
    async fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> Result<T> + Send + 'static,
    ) -> Result<impl Future<Output = Result<T>> + Send + 'static> {
        let (answer, answered) = oneshot::channel::<Result<T>>();
        let job: Work = Box::new(move |core| {
            let pushes = core.pushes();
            let (result, failed) = match work(core) {
                Err(error) if error.kind() != Kind::Configuration || core.pushes() != pushes => {
                    (Err(again(&error)), Some(error))
                }
                result => (result, None),
            };
            let reply: Reply = Box::new(move |durable| {
                // The caller may have gone; what it asked for is done all the same.
                drop(answer.send(durable.and(result)));
            });
            (reply, failed)
        });
        self.jobs.send(Job::Work(job)).await.map_err(|_| gone())?;
        Ok(async move { answered.await.map_err(|_| gone())? })
    }

    /// Ends the thread behind the jobs that wait already; later ones are refused. Somebody may still hold a handle then.
    pub async fn stop(&self) {
        // A thread that has ended needs no telling.
        let _ended = self.jobs.send(Job::Stop).await;
    }

    /// What is known of the link, as of the last append; changes when the log grows.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// How many jobs wait.
    pub fn queued(&self) -> usize {
        QUEUE - self.jobs.capacity()
    }
}

impl Intake for Ledger {
    async fn offer(&self, batch: Batch) -> Result<impl Future<Output = Result<Receipt>> + Send + 'static> {
        let status = self.status();
        let done = self.submit(move |core| Ok((core.intake(&batch)?, core.is_truncating()))).await?;
        Ok(async move {
            let (duplicates, more) = done.await?;
            let tail = status.borrow().tail;
            Ok(Receipt { tail, duplicates, more })
        })
    }
}

#[cfg(test)]
#[path = "thread_tests.rs"]
mod tests;
