//! Reads the log from async code: a few threads of its own, so that slow reads never hold up the runtime.
//!
//! The queue is bounded: a caller waits for a place in it. A caller that is cancelled leaves its job behind, which is then
//! skipped if it has not begun.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{ChangeLog, Page, ReadLimit, SharedLog, offset_at_time, page};
use crate::change::{Entry, Offset, RecordId};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};

/// Threads that read.
pub const THREADS: usize = 2;

/// Jobs that wait for a thread, at most.
pub const QUEUE_MAX: usize = 64;

type Job = Box<dyn FnOnce(&dyn ChangeLog) + Send>;

/// The threads. Dropping it waits for the reads that have begun; all others are [`Kind::Cancelled`].
pub struct ReaderPool {
    reader: LogReader,
    threads: Vec<JoinHandle<()>>,
}

/// Reads the log from async code. Clones share the threads.
#[derive(Clone)]
pub struct LogReader {
    queue: Arc<Queue>,
    places: Arc<Semaphore>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<(Job, OwnedSemaphorePermit)>,
    closed: bool,
}

impl Queue {
    /// Waits for the next job; `None` once the queue is closed.
    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if jobs.closed {
                return None;
            }
            if let Some((job, _place)) = jobs.waiting.pop_front() {
                return Some(job);
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Adds a job, unless the queue is closed.
    fn add(&self, job: Job, place: OwnedSemaphorePermit) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if !jobs.closed {
            jobs.waiting.push_back((job, place));
            self.changed.notify_one();
        }
    }

    fn close(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.closed = true;
        jobs.waiting.clear();
        self.changed.notify_all();
    }
}

impl ReaderPool {
    /// Starts the threads.
    pub fn start(log: SharedLog) -> Result<Self> {
        let reader = LogReader { queue: Arc::default(), places: Arc::new(Semaphore::new(QUEUE_MAX)) };
        let mut pool = Self { reader, threads: Vec::with_capacity(THREADS) };
        for n in 0..THREADS {
            let (log, queue) = (Arc::clone(&log), Arc::clone(&pool.reader.queue));
            let thread = std::thread::Builder::new()
                .name(format!("log-reader-{n}"))
                .spawn(move || {
                    while let Some(job) = queue.next() {
                        // The job's caller learns of a panic from the dropped answer.
                        if catch_unwind(AssertUnwindSafe(|| job(&*log))).is_err() {
                            tracing::error!("a read of the change log panicked; this is a bug in Tidelock");
                        }
                    }
                })
                .map_err(|e| Error::new(Kind::Storage, "cannot start a thread to read the change log").caused_by(e))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// A handle to read by.
    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }
}

impl Drop for ReaderPool {
    fn drop(&mut self) {
        self.reader.places.close();
        self.reader.queue.close();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads the change log panicked; this is a bug in Tidelock");
            }
        }
    }
}

impl LogReader {
    /// How many jobs wait for a thread.
    pub fn waiting(&self) -> usize {
        QUEUE_MAX - self.places.available_permits().min(QUEUE_MAX)
    }

    /// Runs `read` on one of the threads. Cancellation safe: a read that has begun ends without anybody hearing of it.
    pub async fn call<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn ChangeLog) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let closed = || Error::new(Kind::Cancelled, "the change log is being closed");
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let job = move |log: &dyn ChangeLog| {
            if !answer.is_closed() {
                // Nobody hears of it if the caller has gone meanwhile.
                drop(answer.send(read(log)));
            }
        };
        self.queue.add(Box::new(job), place);
        answered.await.map_err(|_| {
            let panicked = !self.places.is_closed();
            if panicked { Error::new(Kind::Internal, "a read of the change log panicked") } else { closed() }
        })?
    }

    /// [`ChangeLog::read`].
    pub async fn read(&self, from: Offset, limit: ReadLimit) -> Result<Page> {
        self.call(move |log| log.read(from, limit)).await
    }

    /// [`ChangeLog::read`], decoded.
    pub async fn entries(&self, from: Offset, limit: ReadLimit) -> Result<Vec<(Offset, Entry)>> {
        self.call(move |log| log.read(from, limit)?.entries().collect()).await
    }

    /// The entry at `offset`; `None` if there is none yet.
    pub async fn entry(&self, offset: Offset) -> Result<Option<Entry>> {
        self.call(move |log| entry(log, offset)).await
    }

    /// The entries about `record` from `from` on, at most `limit`, ascending.
    pub async fn history(&self, record: RecordId, from: Offset, limit: usize) -> Result<Vec<(Offset, Entry)>> {
        self.call(move |log| {
            let mut entries = Vec::new();
            for offset in log.record_offsets(record, from, limit)? {
                entries.extend(entry(log, offset)?.map(|entry| (offset, entry)));
            }
            Ok(entries)
        })
        .await
    }

    /// [`ChangeLog::record_offsets`].
    pub async fn record_offsets(&self, record: RecordId, from: Offset, limit: usize) -> Result<Vec<Offset>> {
        self.call(move |log| log.record_offsets(record, from, limit)).await
    }

    /// [`super::StateRead::state`].
    pub async fn state(&self, key: Vec<u8>) -> Result<Option<Vec<u8>>> {
        self.call(move |log| log.state(&key)).await
    }

    /// [`super::StateRead::states`].
    pub async fn states(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>> {
        self.call(move |log| log.states(&keys.iter().map(Vec::as_slice).collect::<Vec<_>>())).await
    }

    /// [`super::StateRead::scan_state`].
    pub async fn scan_state(
        &self,
        prefix: Vec<u8>,
        after: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        self.call(move |log| log.scan_state(&prefix, after.as_deref(), limit)).await
    }

    /// [`ChangeLog::transaction_offset`].
    pub async fn transaction_offset(&self, key: Vec<u8>) -> Result<Option<Offset>> {
        self.call(move |log| log.transaction_offset(&key)).await
    }

    /// [`ChangeLog::scan_transactions`].
    pub async fn scan_transactions(
        &self,
        prefix: Vec<u8>,
        after: Option<Vec<u8>>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Offset)>> {
        self.call(move |log| log.scan_transactions(&prefix, after.as_deref(), limit)).await
    }

    /// [`offset_at_time`].
    pub async fn offset_at_time(&self, time: Micros) -> Result<Offset> {
        self.call(move |log| offset_at_time(log, time)).await
    }
}

fn entry(log: &dyn ChangeLog, offset: Offset) -> Result<Option<Entry>> {
    let page = log.read(offset, ReadLimit::ONE)?;
    page.iter().next().map(|(offset, body)| page::decode(offset, body)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Append, MemoryLog};

    fn log() -> SharedLog {
        let log = MemoryLog::new();
        let mut append = Append::new();
        for n in 0..10_u8 {
            append.push_encoded(&[n], Some(RecordId(u64::from(n % 2))), Some(&[n]));
            append.put(&[n], &[n]);
        }
        log.append(Offset(0), &append).unwrap();
        Arc::new(log)
    }

    #[tokio::test]
    async fn reads_go_through_the_threads() {
        let pool = ReaderPool::start(log()).unwrap();
        let reader = pool.reader();
        let mut set = tokio::task::JoinSet::new();
        for n in 0..200_u8 {
            let reader = reader.clone();
            set.spawn(async move { reader.state(vec![n % 10]).await.unwrap().unwrap() == [n % 10] });
        }
        assert!(set.join_all().await.into_iter().all(|same| same));
        assert_eq!(reader.read(Offset(3), ReadLimit::entries(4)).await.unwrap().len(), 4);
        assert_eq!(reader.record_offsets(RecordId(1), Offset(2), 2).await.unwrap(), [Offset(3), Offset(5)]);
        assert_eq!(reader.transaction_offset(vec![7]).await.unwrap(), Some(Offset(7)));
        assert_eq!(reader.scan_state(vec![], Some(vec![7]), 9).await.unwrap().len(), 2);
        assert_eq!(reader.waiting(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_threads_go_on() {
        let pool = ReaderPool::start(log()).unwrap();
        let reader = pool.reader();
        for _ in 0..2 * THREADS {
            let error = reader.call::<()>(|_| panic!("on purpose")).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Internal);
        }
        assert_eq!(reader.call(|log| Ok(log.tail())).await.unwrap(), Offset(10));
    }

    #[tokio::test]
    async fn closing_waits_for_what_runs_and_cancels_the_rest() {
        let log = log();
        let pool = ReaderPool::start(Arc::clone(&log)).unwrap();
        let reader = pool.reader();
        let (begun, mut beginning) = tokio::sync::mpsc::unbounded_channel();
        let mut gates = Vec::new();
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..THREADS {
            let (open, gate) = std::sync::mpsc::channel::<()>();
            gates.push(open);
            let (reader, begun) = (reader.clone(), begun.clone());
            set.spawn(async move {
                reader
                    .call(move |log| {
                        begun.send(()).unwrap();
                        assert!(gate.recv().is_err());
                        Ok(log.tail())
                    })
                    .await
            });
        }
        for _ in 0..THREADS {
            beginning.recv().await.unwrap();
        }
        let waiting = tokio::task::JoinSet::from_iter([{
            let reader = reader.clone();
            async move { reader.call(|log| Ok(log.tail())).await }
        }]);
        while reader.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        let closing = std::thread::spawn(move || drop(pool));
        assert_eq!(waiting.join_all().await[0].as_ref().unwrap_err().kind(), Kind::Cancelled);
        gates.clear();
        assert!(set.join_all().await.into_iter().all(|tail| tail.unwrap() == Offset(10)));
        closing.join().unwrap();
        assert_eq!(reader.state(vec![1]).await.unwrap_err().kind(), Kind::Cancelled);
        assert_eq!(Arc::strong_count(&log), 1, "the threads have let go of the log");
    }
}
