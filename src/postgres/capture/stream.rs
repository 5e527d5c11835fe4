//! The running stream: one owner that reads, offers batches, takes receipts and sends statuses.
//!
//! Nothing here waits for one thing alone: while a batch waits for room in the log's inbox, statuses go on, so that the server
//! does not take us for dead. Several batches are under way; they become durable in order.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::acknowledge::Acknowledgement;
use super::assemble::{Assembler, Outgoing};
use super::spool::{Ended, Routed, Spool};
use super::status::CaptureStatus;
use super::truncates::{apart, truncates};
use super::watermark::{ChunkOutcome, tell_durable};
use crate::change::Lsn;
use crate::clock::{Micros, SharedClock};
use crate::error::{Error, Kind, Result};
use crate::flow::{Intake, Receipt};
use crate::postgres::connect::classify;
use crate::postgres::lost::Lost;
use crate::postgres::slot;
use crate::postgres::wire::{CopyFrame, Pace, Replication, ReplicationError, ServerError};

/// Batches that may be under way.
const IN_FLIGHT_MAX: usize = 6;
/// With so many under way, a batch that is not full waits and grows.
const IN_FLIGHT_BUSY: usize = 2;
/// How often the stream's progress is made durable when nothing of ours happens.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// How far the server's log may run ahead before its progress is made durable sooner.
const PROGRESS_BYTES: u64 = 16 * 1024 * 1024;
/// Messages of a transaction that was kept, after which it is seen what else is due.
const SPOOLED_APART: u32 = 1_024;
/// Statuses are sent at least this often.
const STATUS_EVERY_MAX: Duration = Duration::from_secs(1);

/// How often to send a status to a server that gives up on us after `timeout` (zero: never).
pub(super) fn status_interval(timeout: Duration) -> Duration {
    if timeout.is_zero() { STATUS_EVERY_MAX } else { STATUS_EVERY_MAX.min(timeout / 3).max(Duration::from_millis(10)) }
}

/// After how long without a word a server is taken for gone, though it was asked to answer: at least this long, since one that
/// reads its way through a large transaction may say nothing for a while.
const SILENCE_MIN: Duration = Duration::from_mins(2);

/// How long the server may say nothing, if it gives up on us after `timeout` (zero: never).
pub(super) fn silence_limit(timeout: Duration) -> Duration {
    SILENCE_MIN.max(timeout * 2)
}

/// A batch on its way to disk.
struct InFlight {
    receipt: Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>,
    durable: Option<Lsn>,
    outcomes: Vec<oneshot::Sender<ChunkOutcome>>,
}

/// What a stream is started with.
pub(super) struct Start {
    /// The server, for messages to people.
    pub(super) address: String,
    pub(super) slot: String,
    pub(super) publication: String,
    /// Everything before it is durable.
    pub(super) durable: Lsn,
    /// Whether the change log has nothing of this stream yet.
    pub(super) is_new: bool,
    pub(super) status_every: Duration,
    /// How long the server may say nothing.
    pub(super) silence_max: Duration,
    pub(super) status: Arc<CaptureStatus>,
    pub(super) clock: SharedClock,
    /// Where transactions in progress are kept, if they are streamed.
    pub(super) spool: Option<Spool>,
}

pub(super) struct Stream<'a, S, I> {
    connection: Replication<S>,
    assembler: Assembler,
    acknowledgement: Acknowledgement,
    intake: &'a I,
    in_flight: VecDeque<InFlight>,
    ticker: Interval,
    pace: Pace,
    start: Start,
    /// The server wants to be answered, and so wants what progress there is.
    reply_due: bool,
    progress_due: bool,
    last_progress: Instant,
    /// When something came from the server, or when we last began to listen for it.
    heard_at: Instant,
    server_time: Micros,
    /// Transactions that earlier runs had received.
    transactions_before: u64,
}

/// What happened while waiting.
enum Happened {
    Cancelled,
    Settled(Receipt),
    Ticked,
    Read(usize),
}

impl<'a, S: AsyncRead + AsyncWrite + Send + Unpin, I: Intake> Stream<'a, S, I> {
    pub(super) fn new(connection: Replication<S>, mut assembler: Assembler, intake: &'a I, start: Start) -> Self {
        let mut ticker = tokio::time::interval(start.status_every);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        assembler.pass(start.durable);
        Self {
            connection,
            assembler,
            acknowledgement: Acknowledgement::starting_at(start.durable),
            intake,
            in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
            ticker,
            pace: Pace::default(),
            reply_due: false,
            progress_due: start.is_new,
            last_progress: Instant::now(),
            heard_at: Instant::now(),
            server_time: 0,
            transactions_before: start.status.transactions.load(Relaxed),
            start,
        }
    }

    /// Runs until cancelled, then waits for what is under way, tells the server, and ends the session in order.
    pub(super) async fn run(mut self, cancel: &CancellationToken) -> Result<()> {
        loop {
            let drained = self.take_in(cancel).await?;
            if self.reply_due {
                self.reply_due = false;
                self.send_status().await?;
            }
            if drained && self.assembler.is_ready() && self.in_flight.len() < IN_FLIGHT_BUSY {
                self.offer_events().await?;
            }
            self.offer_progress().await?;
            self.show();
            if !drained {
                // What has come and waits here is no silence.
                self.heard_at = Instant::now();
            }
            match self.wait(drained, cancel).await? {
                Happened::Cancelled => return self.finish().await,
                Happened::Settled(receipt) => self.settle(receipt).await?,
                Happened::Ticked => {
                    self.check_silence()?;
                    self.send_status().await?;
                }
                Happened::Read(bytes) => {
                    self.heard_at = Instant::now();
                    self.pace.note(bytes);
                    self.start.status.bytes.fetch_add(bytes as u64, Relaxed);
                }
            }
        }
    }

    /// Takes in what has arrived; returns whether that was all of it.
    async fn take_in(&mut self, cancel: &CancellationToken) -> Result<bool> {
        while self.in_flight.len() < IN_FLIGHT_MAX && !cancel.is_cancelled() {
            let frame = match self.connection.next_copy() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(true),
                Err(error) => return Err(self.start.stream_ended(error)),
            };
            match frame {
                CopyFrame::Data { start, message, .. } => {
                    self.acknowledgement.receive(start);
                    let routed = match &mut self.start.spool {
                        Some(spool) => spool.route(message)?,
                        None => Routed::Whole,
                    };
                    match routed {
                        Routed::Whole => self.assembler.apply(message)?,
                        Routed::Kept => {}
                        Routed::Full => {
                            if let Some(spool) = &mut self.start.spool {
                                spool.flush().await?;
                            }
                        }
                        Routed::Committed(commit) => self.take_in_spooled(commit, cancel).await?,
                    }
                    if self.assembler.is_full() {
                        self.offer_events().await?;
                    }
                }
                CopyFrame::Keepalive { wal_end, server_time, reply_requested } => {
                    if !self.start.spool.as_ref().is_some_and(Spool::in_segment) {
                        self.assembler.pass(wal_end);
                    }
                    self.acknowledgement.receive(wal_end);
                    self.server_time = server_time;
                    self.start.status.server_wal_end.fetch_max(wal_end.0, Relaxed);
                    self.reply_due |= reply_requested;
                    self.progress_due |= reply_requested;
                }
                CopyFrame::Notice(body) => {
                    let notice = ServerError::parse(body).map_err(|e| self.start.stream_ended(e.into()))?;
                    if let Some(lost) = slot::stream_warning(&self.start.slot, &self.start.publication, &notice) {
                        return Err(lost.caused_by(notice));
                    }
                }
                CopyFrame::Aside => {}
            }
        }
        Ok(false)
    }

    /// Takes in a transaction that was kept until its commit, as if it came just now.
    async fn take_in_spooled(&mut self, commit: Ended, cancel: &CancellationToken) -> Result<()> {
        let Some(spool) = &mut self.start.spool else { return Ok(()) };
        let mut replay = spool.take(commit.xid).await?;
        self.assembler.begin(commit.commit_lsn, commit.committed_at, commit.xid)?;
        let mut messages = 0u32;
        while let Some((message, aborted)) = replay.next().await? {
            self.assembler.apply_streamed(message, aborted)?;
            messages = messages.wrapping_add(1);
            if !self.assembler.is_full() && !messages.is_multiple_of(SPOOLED_APART) {
                continue;
            }
            if cancel.is_cancelled() {
                // It comes again as a whole.
                return Ok(());
            }
            self.keep_up().await?;
            if !self.assembler.is_full() {
                continue;
            }
            while self.in_flight.len() >= IN_FLIGHT_MAX {
                tokio::select! {
                    receipt = front(&mut self.in_flight) => self.settle(receipt?).await?,
                    _ = self.ticker.tick() => self.send_status().await?,
                }
            }
            self.offer_events().await?;
        }
        self.assembler.commit(commit.commit_lsn, commit.end_lsn)
    }

    /// Does what is due already, while what was received keeps us from listening: rows that are of no mapped table take time too.
    async fn keep_up(&mut self) -> Result<()> {
        self.heard_at = Instant::now();
        // The runtime looks at its clock between the turns of a task, and what is kept may be read in one.
        tokio::task::yield_now().await;
        loop {
            tokio::select! {
                biased;
                receipt = front(&mut self.in_flight) => self.settle(receipt?).await?,
                _ = self.ticker.tick() => self.send_status().await?,
                () = std::future::ready(()) => return Ok(()),
            }
        }
    }

    async fn offer_events(&mut self) -> Result<()> {
        match self.assembler.take() {
            Some(outgoing) if truncates(&outgoing.batch) => self.offer_apart(outgoing).await,
            Some(outgoing) => self.offer(outgoing).await,
            None => Ok(()),
        }
    }

    async fn offer_apart(&mut self, outgoing: Outgoing) -> Result<()> {
        let Outgoing { batch, durable, outcomes } = outgoing;
        self.settle_all().await?;
        for part in apart(batch) {
            loop {
                self.offer(Outgoing { batch: part.clone(), durable: None, outcomes: Vec::new() }).await?;
                if !self.settle_all().await? {
                    break;
                }
            }
        }
        if let Some(lsn) = durable {
            self.acknowledgement.make_durable(lsn)?;
        }
        tell_durable(outcomes);
        self.send_status().await
    }

    /// Waits for everything under way; returns whether the last batch is to be offered again.
    async fn settle_all(&mut self) -> Result<bool> {
        let mut more = false;
        while !self.in_flight.is_empty() {
            let happened = tokio::select! {
                receipt = front(&mut self.in_flight) => Happened::Settled(receipt?),
                _ = self.ticker.tick() => Happened::Ticked,
            };
            match happened {
                Happened::Settled(receipt) => {
                    more = receipt.more;
                    self.settle(receipt).await?;
                }
                _ => self.send_status().await?,
            }
        }
        Ok(more)
    }

    /// Hands a batch to the log. Meanwhile receipts are taken and statuses sent.
    async fn offer(&mut self, outgoing: Outgoing) -> Result<()> {
        let Outgoing { batch, durable, outcomes } = outgoing;
        self.start.status.events.fetch_add(batch.events.len() as u64, Relaxed);
        self.acknowledgement.receive(self.assembler.passed());
        let mut offering = pin!(self.intake.offer(batch));
        loop {
            let happened = tokio::select! {
                biased;
                offered = &mut offering => {
                    let receipt = Box::pin(offered?);
                    self.heard_at = Instant::now();
                    self.in_flight.push_back(InFlight { receipt, durable, outcomes });
                    return Ok(());
                }
                receipt = front(&mut self.in_flight) => Happened::Settled(receipt?),
                _ = self.ticker.tick() => Happened::Ticked,
            };
            match happened {
                Happened::Settled(receipt) => self.settle(receipt).await?,
                _ => self.send_status().await?,
            }
        }
    }

    /// When nothing of ours is under way, lets the log remember how far the stream has come, so that it can be
    /// acknowledged. Not for every commit of other tables: each time is an entry of the log.
    async fn offer_progress(&mut self) -> Result<()> {
        let (passed, durable) = (self.assembler.passed(), self.acknowledgement.durable().0);
        if !self.in_flight.is_empty() || !self.assembler.is_idle() {
            return Ok(());
        }
        if passed <= durable && !self.start.is_new {
            self.progress_due = false;
            return Ok(());
        }
        let is_due = self.progress_due
            || self.last_progress.elapsed() >= PROGRESS_EVERY
            || passed.0.saturating_sub(durable.0) >= PROGRESS_BYTES;
        if !is_due {
            return Ok(());
        }
        self.progress_due = false;
        self.start.is_new = false;
        self.last_progress = Instant::now();
        let at = self.server_time.max(self.assembler.last_commit_time());
        self.offer(self.assembler.progress(passed, at)).await
    }

    async fn wait(&mut self, drained: bool, cancel: &CancellationToken) -> Result<Happened> {
        let Self { connection, in_flight, ticker, pace, start, .. } = self;
        let read = async {
            pace.wait().await;
            connection.read().await
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Ok(Happened::Cancelled),
            receipt = front(in_flight) => Ok(Happened::Settled(receipt?)),
            _ = ticker.tick() => Ok(Happened::Ticked),
            read = read, if drained => read.map(Happened::Read).map_err(|e| start.stream_ended(e.into())),
        }
    }

    /// The oldest batch is durable.
    async fn settle(&mut self, receipt: Receipt) -> Result<()> {
        let Some(settled) = self.in_flight.pop_front() else {
            return Err(Error::new(Kind::Internal, "a receipt for no batch"));
        };
        self.start.status.duplicates.fetch_add(receipt.duplicates, Relaxed);
        if let Some(lsn) = settled.durable {
            self.acknowledgement.make_durable(lsn)?;
        }
        tell_durable(settled.outcomes);
        if self.in_flight.is_empty() { self.send_status().await } else { Ok(()) }
    }

    async fn send_status(&mut self) -> Result<()> {
        let mut status = self.acknowledgement.acknowledge(self.start.clock.now())?;
        status.reply = self.heard_at.elapsed() >= self.start.silence_max / 4;
        self.connection.send_status(status).await.map_err(|e| self.start.stream_ended(e.into()))?;
        self.show();
        Ok(())
    }

    /// A peer that is gone without a word, or whose packets are, is not waited for.
    fn check_silence(&self) -> Result<()> {
        if self.heard_at.elapsed() < self.start.silence_max {
            return Ok(());
        }
        let Start { address, slot, silence_max, .. } = &self.start;
        let message = format!(
            "the replication stream from {address}, slot `{slot}`, has said nothing for {} s, though the server was asked to \
             answer; connecting again",
            silence_max.as_secs_f64()
        );
        Err(Error::new(Kind::Unavailable, message))
    }

    fn show(&self) {
        let status = &self.start.status;
        let (assembler, at) = (&self.assembler, &self.acknowledgement);
        status.received_lsn.store(at.received().0.0, Relaxed);
        status.durable_lsn.store(at.durable().0.0, Relaxed);
        status.acknowledged_lsn.store(at.acknowledged().0.0, Relaxed);
        status.server_wal_end.fetch_max(at.received().0.0, Relaxed);
        status.last_commit_time.fetch_max(assembler.last_commit_time(), Relaxed);
        status.transactions.store(self.transactions_before + assembler.transactions(), Relaxed);
        status.batches_in_flight.store(self.in_flight.len() as u64, Relaxed);
    }

    /// Waits for what is under way, tells the server, and ends the session.
    async fn finish(mut self) -> Result<()> {
        self.settle_all().await?;
        self.send_status().await?;
        if let Err(error) = self.connection.finish().await {
            // Everything durable is acknowledged already, so this loses nothing.
            tracing::debug!(%error, "the replication session did not end in order");
        }
        Ok(())
    }
}

/// The oldest batch's receipt; waits for ever if there is none.
async fn front(in_flight: &mut VecDeque<InFlight>) -> Result<Receipt> {
    match in_flight.front_mut() {
        Some(oldest) => oldest.receipt.as_mut().await,
        None => std::future::pending().await,
    }
}

impl Start {
    /// What the end of the stream means.
    pub(super) fn stream_ended(&self, error: ReplicationError) -> Error {
        let Self { address, slot, publication, .. } = self;
        let context = format!("the replication stream from {address}, slot `{slot}`");
        match error {
            ReplicationError::Refused(refused) => {
                let known = slot::stream_error(slot, publication, &refused.code, &refused.message);
                let error =
                    known.unwrap_or_else(|| Error::new(classify(&refused.code), format!("{context} ended: {refused}")));
                // How it was lost says it all.
                if Lost::of(&error).is_some() { error } else { error.caused_by(refused) }
            }
            ReplicationError::Protocol(bad) => {
                Error::new(Kind::Protocol, format!("{context} does not keep to the protocol: {bad}")).caused_by(bad)
            }
            other => Error::new(Kind::Unavailable, format!("{context} ended: {other}")).caused_by(other),
        }
    }
}
