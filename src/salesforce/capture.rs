//! Capture: from the org's change events to the log.
//!
//! One task owns the stream. It reads a response, understands its events, reads again what they could not tell, hands the
//! whole over as one batch, and goes on; several batches may be on their way to disk. The place to resume from is that of
//! the last batch that is durable, so a broken connection, a crash or a restart loses nothing and repeats only what the log
//! drops as duplicates.
//!
//! Where the stream cannot tell:
//! * A gap event names records. They are read before anything after it is handed over, and their rows are in the gap's own
//!   batch: a crash cannot come between the gap and its rows.
//! * An overflow, or a wildcard instead of ids, concerns a whole object. Its batch notes the beginning of a copy
//!   ([`super::backfill`]), which runs beside the stream and is resumed after a restart.
//! * A replay id that the server no longer knows means that events are gone. What was changed since the last known commit,
//!   less an overlap, is read again, deletions too, and only then is the stream taken up at its oldest event; events that
//!   were captured before are left out by their commit time. Until the first new event is durable, the stored place is the
//!   lost one, so after a crash all of that is done again.
//!
//! The server may deliver an event twice, the second time under another replay id. The latest events are remembered by
//! their own id and content, and one that comes again is left out.
//!
//! No gap is silent: each leaves a [`Notice::Gap`] in the log.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backfill::{Backfill, Copies, backfill_notice};
use super::capture_event::{Heard, Hearing, Says, Us};
use super::capture_status::CaptureStatus;
use super::capture_tell::{Telling, from_hex, to_hex};
use super::pubsub::{From, PubSub, Subscription, Trouble};
use super::reread::{ReadRow, cancelled};
use super::rest::Rest;
use crate::backoff::Backoff;
use crate::change::{Catalog, MappingDef, MappingId, Notice, Position, Side, Str, StreamId, Transaction, Value, Who};
use crate::clock::Micros;
use crate::error::{Error, Kind, Result};
use crate::flow::{Batch, Event, Intake, Item, Receipt};
use crate::protocol::eventbus::FetchResponse;

/// The topic with the events of every selected object.
pub const ALL_CHANGES: &str = "/data/ChangeEvents";

/// Batches on their way to disk at once.
const IN_FLIGHT_MAX: usize = 32;

/// What is read again after the stream was lost begins this long before the last known commit: longer than a transaction.
const OVERLAP: Micros = 5 * 60 * 1_000_000;

/// A keepalive says that nothing was committed until this long before it.
const KEEPALIVE_LAG: Micros = 2_000_000;

/// A place without events of ours is noted at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// Events that are remembered, to know one that is delivered again.
const REMEMBERED_MAX: usize = 8_192;

/// Logins that may be refused one after the other before it is taken for a matter of permissions.
const REFUSALS_MAX: u32 = 3;

/// The topic of one object's events.
pub fn object_topic(sobject: &str) -> String {
    match sobject.strip_suffix("__c") {
        Some(custom) => format!("/data/{custom}__ChangeEvent"),
        None => format!("/data/{sobject}ChangeEvent"),
    }
}

/// Where a capture begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// New events only.
    Latest,
    /// The oldest event that the org keeps.
    Earliest,
    /// After the event of this replay id, in hex: what the log holds.
    After(Str),
}

/// What a capture works with.
#[derive(Debug, Clone)]
pub struct CaptureSetup {
    /// The stream.
    pub pubsub: PubSub,
    /// For what the stream cannot tell.
    pub rest: Rest,
    /// What is mapped.
    pub catalog: Arc<Catalog>,
    /// The topic: [`ALL_CHANGES`], [`object_topic`], or a custom channel.
    pub topic: String,
    /// The stream's number in positions.
    pub stream: StreamId,
    /// The commit time of the last Salesforce event in the log, if there is one: from where to read again if the stream is lost.
    pub last_commit: Option<Micros>,
    /// The copies under way, shared with [`Backfill`].
    pub copies: Arc<Copies>,
    /// Where to tell how it goes.
    pub status: Arc<CaptureStatus>,
}

/// Captures an org's changes.
#[derive(Debug)]
pub struct Capture {
    setup: CaptureSetup,
}

impl Capture {
    /// A capture; nothing is sent yet.
    pub fn new(setup: CaptureSetup) -> Self {
        Self { setup }
    }

    /// Captures until cancelled, which is not an error, or until something happens that connecting again does not mend.
    ///
    /// May be dropped at any time; the log's last place is where to start again.
    pub async fn run<I: Intake + 'static>(self, start: Start, intake: Arc<I>, cancel: CancellationToken) -> Result<()> {
        let from = match start {
            Start::Latest => From::Latest,
            Start::Earliest => From::Earliest,
            Start::After(hex) => From::After(from_hex(&hex).ok_or_else(|| {
                Error::new(Kind::Corrupt, format!("the log's replay id {hex:?} is not hexadecimal; verify the log"))
            })?),
        };
        let setup = self.setup;
        let us = Us { client_name: setup.rest.client_name().to_owned(), user_id: Str::default() };
        let backfill = Backfill::new(setup.rest.clone(), setup.catalog.clone(), setup.stream, setup.copies.clone());
        if let Some(at) = setup.last_commit {
            setup.status.committed(at);
        }
        let mut running = Running {
            hearing: Hearing::new(setup.catalog.clone(), us),
            backfill,
            intake,
            cancel: cancel.child_token(),
            from,
            recovered: false,
            opened_at: None,
            ignored_before: Micros::MIN,
            remembered: Remembered::default(),
            place: (Str::default(), 0),
            progressed_at: None,
            in_flight: VecDeque::new(),
            sweeps: JoinSet::new(),
            backoff: Backoff::new(Duration::from_millis(250), Duration::from_secs(30)),
            refusals: 0,
            setup,
        };
        let ended = running.run().await;
        running.setup.status.set_connected(false);
        running.cancel.cancel();
        running.sweeps.shutdown().await;
        match ended {
            Err(error) if error.kind() == Kind::Cancelled && cancel.is_cancelled() => Ok(()),
            other => other,
        }
    }
}

/// A batch on its way to disk.
struct InFlight {
    durable: Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>,
    /// Where to resume once it is durable.
    replay_id: Option<Vec<u8>>,
    committed: Option<Micros>,
    stream_time: Micros,
}

/// A capture that runs.
struct Running<I> {
    setup: CaptureSetup,
    hearing: Hearing,
    backfill: Backfill,
    intake: Arc<I>,
    cancel: CancellationToken,
    /// Where to resume: the last durable place.
    from: From,
    /// Whether the stream was lost and read again, and nothing has been durable since.
    recovered: bool,
    /// When the first subscription to new events only was opened, by the org's clock, until a place is durable.
    opened_at: Option<Micros>,
    /// Events committed before this were captured before the stream was lost.
    ignored_before: Micros,
    remembered: Remembered,
    /// The last replay id handed over, and the index after its last row: enriched events may share a replay id.
    place: (Str, u32),
    progressed_at: Option<Instant>,
    in_flight: VecDeque<InFlight>,
    sweeps: JoinSet<Result<()>>,
    backoff: Backoff,
    refusals: u32,
}

/// An event's own id and a checksum of its content.
type Fingerprint = (String, u32);

/// The latest events that were handed over.
#[derive(Debug, Default)]
struct Remembered {
    known: HashSet<Fingerprint>,
    order: VecDeque<Fingerprint>,
}

impl Remembered {
    fn add(&mut self, event: Fingerprint) {
        if !event.0.is_empty() && self.known.insert(event.clone()) {
            self.order.push_back(event);
            if self.order.len() > REMEMBERED_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

/// Rows read for one response, by mapping and id.
type ReadRows = BTreeMap<MappingId, BTreeMap<Str, ReadRow>>;

impl<I: Intake + 'static> Running<I> {
    async fn run(&mut self) -> Result<()> {
        loop {
            let trouble = match self.follow().await? {
                // Nothing says where we were, so what came since we first listened may be lost.
                trouble @ (Trouble::Retry(_) | Trouble::Wait(_) | Trouble::Reauthenticate(_))
                    if self.from == From::Latest && self.opened_at.is_some() =>
                {
                    Trouble::Lost(
                        Error::new(Kind::StreamLost, "the first subscription broke before it told its place")
                            .caused_by(trouble.error().explain()),
                    )
                }
                trouble => trouble,
            };
            self.setup.status.set_connected(false);
            while !self.in_flight.is_empty() {
                self.settle_first().await?;
            }
            self.setup.status.count_reconnect();
            match trouble {
                Trouble::Fatal(error) => return Err(error),
                Trouble::Lost(error) => self.recover(error).await?,
                Trouble::Reauthenticate(error) => {
                    self.refusals += 1;
                    if self.refusals > REFUSALS_MAX {
                        return Err(
                            error.within("new tokens are refused too; check the user's and the app's IP restrictions")
                        );
                    }
                    self.pause(&error, Duration::ZERO).await?;
                }
                Trouble::Retry(error) => self.pause(&error, Duration::ZERO).await?,
                Trouble::Wait(error) => {
                    self.setup.status.set_limited(true);
                    // Allocations roll over 24 hours: asking often would only use more.
                    let minutes = 1u64 << self.backoff.failures().min(4);
                    self.pause(&error, Duration::from_secs(minutes.min(15) * 60)).await?;
                }
            }
        }
    }

    async fn pause(&mut self, error: &Error, at_least: Duration) -> Result<()> {
        let wait = self.backoff.next_wait().max(at_least);
        tracing::warn!(
            error = %error.explain(),
            wait_ms = wait.as_millis() as u64,
            topic = %self.setup.topic,
            "the Salesforce subscription ended and is opened again"
        );
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = self.cancel.cancelled() => Err(cancelled("the Salesforce capture")),
        }
    }

    /// Subscribes and takes responses until something goes wrong. An error is final; trouble is not.
    async fn follow(&mut self) -> Result<Trouble> {
        let cancel = self.cancel.clone();
        let mut subscription = tokio::select! {
            opened = self.setup.pubsub.subscribe(&self.setup.topic, &self.from) => match opened {
                Ok(subscription) => subscription,
                Err(trouble) => return self.renewed(trouble, None).await,
            },
            () = cancel.cancelled() => return Err(cancelled("the Salesforce capture")),
        };
        self.hearing.us.user_id.clone_from(subscription.session().user_id());
        self.setup.status.set_connected(true);
        self.setup.status.set_limited(false);
        if self.from == From::Latest && self.opened_at.is_none() {
            self.opened_at = Some(self.backfill.now());
        }
        tracing::info!(topic = %self.setup.topic, from = %describe(&self.from), "subscribed to Salesforce changes");
        loop {
            let waiting = !self.in_flight.is_empty();
            let room = self.in_flight.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(cancelled("the Salesforce capture")),
                receipt = first_durable(&mut self.in_flight), if waiting => self.settled(receipt?),
                Some(ended) = self.sweeps.join_next(), if !self.sweeps.is_empty() => sweep_ended(ended)?,
                response = subscription.next(), if room => {
                    let taken = match response {
                        Ok(response) => self.take(response).await?,
                        Err(trouble) => Some(trouble),
                    };
                    match taken {
                        None => self.backoff.succeeded(),
                        Some(trouble) => return self.renewed(trouble, Some(&subscription)).await,
                    }
                }
            }
        }
    }

    /// Gets another token where the trouble is that ours was refused.
    async fn renewed(&mut self, trouble: Trouble, subscription: Option<&Subscription>) -> Result<Trouble> {
        if !matches!(trouble, Trouble::Reauthenticate(_)) {
            return Ok(trouble);
        }
        let auth = self.setup.pubsub.auth();
        let renewing = async {
            let refused = match subscription {
                Some(subscription) => subscription.session().clone(),
                None => auth.session().await?,
            };
            auth.refresh(&refused).await
        };
        tokio::select! {
            renewed = renewing => Ok(match renewed {
                Ok(_) => trouble,
                Err(error) => Trouble::of_login(error),
            }),
            () = self.cancel.cancelled() => Err(cancelled("the Salesforce capture")),
        }
    }

    /// Waits until the oldest batch is durable.
    async fn settle_first(&mut self) -> Result<()> {
        let receipt = tokio::select! {
            receipt = first_durable(&mut self.in_flight) => receipt?,
            () = self.cancel.cancelled() => return Err(cancelled("the Salesforce capture")),
        };
        self.settled(receipt);
        Ok(())
    }

    /// The oldest batch is durable: from now on its place is where to resume.
    fn settled(&mut self, receipt: Receipt) {
        let Some(settled) = self.in_flight.pop_front() else { return };
        let status = &self.setup.status;
        status.set_in_flight(self.in_flight.len());
        status.count_duplicates(receipt.duplicates);
        if let Some(replay_id) = settled.replay_id {
            self.from = From::After(replay_id);
            (self.recovered, self.opened_at) = (false, None);
        }
        if let Some(at) = settled.committed {
            status.committed(at);
        }
        status.passed(settled.stream_time);
    }

    /// Takes in one response: understands it, reads what it could not tell, and hands it over.
    async fn take(&mut self, response: FetchResponse) -> Result<Option<Trouble>> {
        // A response that was taken shows that the token is good.
        self.refusals = 0;
        if response.events.is_empty() {
            return self.keepalive(response.latest_replay_id).await.map(|()| None);
        }
        let mut heard = Vec::with_capacity(response.events.len());
        let mut new = Vec::with_capacity(response.events.len());
        for event in response.events {
            let Some(producer) = event.event else {
                return Err(Error::new(Kind::Protocol, "Salesforce sent an event without content"));
            };
            let schema = tokio::select! {
                schema = self.setup.pubsub.schema(&producer.schema_id) => match schema {
                    Ok(schema) => schema,
                    // Nothing of this response has been handed over, so it comes again.
                    Err(trouble) => return Ok(Some(trouble)),
                },
                () = self.cancel.cancelled() => return Err(cancelled("the Salesforce capture")),
            };
            let mut one = self.hearing.hear(&producer.schema_id, &schema, &producer.payload)?;
            let foreign = matches!(one.says, Says::Nothing);
            self.setup.status.count_event(one.own.is_ours(), foreign);
            if one.committed_at() < self.ignored_before {
                one.says = Says::Nothing;
            }
            let fingerprint = (producer.id, crc32c::crc32c(&producer.payload));
            if self.remembered.known.contains(&fingerprint) || !fingerprint.0.is_empty() && new.contains(&fingerprint) {
                self.setup.status.count_repeated();
                one.says = Says::Nothing;
            }
            new.push(fingerprint);
            heard.push((event.replay_id, one));
        }
        if self.hearing.take_new_schema() {
            self.setup.status.note_new_schema();
        }
        let read = self.read_untold(&heard).await?;
        self.hand_over(heard, &read).await?;
        for event in new {
            self.remembered.add(event);
        }
        Ok(None)
    }

    /// Reads the rows that the events name without telling.
    async fn read_untold(&mut self, heard: &[(Vec<u8>, Heard)]) -> Result<ReadRows> {
        let mut wanted: BTreeMap<MappingId, BTreeSet<Str>> = BTreeMap::new();
        for (_, one) in heard {
            let mappings: Vec<MappingId> = match &one.says {
                Says::Reread(mappings) => mappings.clone(),
                Says::Rows { told, .. } => told.iter().filter(|t| !t.untold.is_empty()).map(|t| t.mapping).collect(),
                Says::Nothing | Says::Sweep(_) => Vec::new(),
            };
            for mapping in mappings {
                wanted.entry(mapping).or_default().extend(one.ids());
            }
        }
        let mut read = ReadRows::new();
        for (id, records) in wanted {
            let Some(mapping) = self.setup.catalog.mapping(id) else { continue };
            let records: Vec<Str> = records.into_iter().collect();
            self.setup.status.count_rereads(records.len());
            read.insert(id, self.backfill.reader().by_ids(mapping, &records, &self.cancel).await?);
        }
        Ok(read)
    }

    /// Hands a response's events over as one batch, and starts the copies that they ask for.
    async fn hand_over(&mut self, heard: Vec<(Vec<u8>, Heard)>, read: &ReadRows) -> Result<()> {
        let (mut events, mut starting) = (Vec::new(), Vec::new());
        let (mut committed, mut last) = (None, None);
        let copies = self.setup.copies.clone();
        let sweeping = heard.iter().any(|(_, one)| matches!(one.says, Says::Sweep(_)));
        // While the beginning of a copy is noted, no other copy's place may be.
        let gate = if sweeping { Some(copies.gate().await) } else { None };
        for (replay_id, one) in heard {
            let mut told =
                Telling { events: &mut events, heard: &one, stream: self.setup.stream, place: &mut self.place };
            told.at(&replay_id);
            match &one.says {
                Says::Nothing => {}
                Says::Rows { operation, told: by_mapping } => {
                    for (id, told_of) in one.ids().flat_map(|id| by_mapping.iter().map(move |t| (id.clone(), t))) {
                        let Some(mapping) = self.setup.catalog.mapping(told_of.mapping) else { continue };
                        let row = read.get(&mapping.id).and_then(|rows| rows.get(&id));
                        told.row(mapping, *operation, &id, told_of, row);
                    }
                }
                Says::Reread(mappings) => {
                    self.setup.status.count_gap();
                    told.gap(&one.ids().collect::<Vec<_>>().join(","));
                    for mapping in mappings.iter().filter_map(|id| self.setup.catalog.mapping(*id)) {
                        for id in one.ids() {
                            told.read(mapping, &id, read.get(&mapping.id).and_then(|rows| rows.get(&id)));
                        }
                    }
                }
                Says::Sweep(mappings) => {
                    self.setup.status.count_gap();
                    told.gap(&one.header.entity_name);
                    for mapping in mappings.iter().filter_map(|id| self.setup.catalog.mapping(*id)) {
                        let (place, entered) = self.setup.copies.ask(mapping.id);
                        told.push(one.committed_at(), Item::Notice(backfill_notice(mapping.id, 0, &place, false)));
                        starting.extend(entered);
                    }
                }
            }
            committed = committed.max(Some(one.committed_at()));
            last = Some((replay_id, one));
        }
        let Some((replay_id, one)) = last else { return Ok(()) };
        let here = to_hex(&replay_id);
        let told_last = events.last().is_some_and(|event| replay_id_of(event) == Some(here.as_str()));
        if !told_last {
            // The place of the last event, which said nothing for us: by itself it is not worth a write each time.
            if events.is_empty() && !self.may_progress() {
                self.note_time(one.committed_at());
                return Ok(());
            }
            let mut telling =
                Telling { events: &mut events, heard: &one, stream: self.setup.stream, place: &mut self.place };
            telling.at(&replay_id);
            telling.push(one.committed_at(), Item::Progress);
        }
        self.offer(events, Some(replay_id), committed, one.committed_at()).await?;
        drop(gate);
        for entered in starting {
            self.setup.status.count_sweep();
            let (backfill, intake, cancel) = (self.backfill.clone(), self.intake.clone(), self.cancel.clone());
            self.sweeps.spawn(async move { backfill.sweep(entered, &*intake, &cancel).await });
        }
        Ok(())
    }

    /// A response without events: the stream is alive and has come this far.
    async fn keepalive(&mut self, latest: Vec<u8>) -> Result<()> {
        let until = self.backfill.now() - KEEPALIVE_LAG;
        let here = to_hex(&latest);
        if latest.is_empty() || here == self.place.0 || !self.may_progress() {
            self.note_time(until);
            return Ok(());
        }
        self.place = (here.clone(), 1);
        let event = Event {
            position: Position::Salesforce { stream: self.setup.stream, replay_id: here, index: 0 },
            transaction: Transaction::default(),
            committed_at: until,
            who: Who::default(),
            item: Item::Progress,
        };
        self.offer(vec![event], Some(latest), None, until).await
    }

    /// Whether a place without events of ours may be noted now.
    fn may_progress(&mut self) -> bool {
        // The first place of all is noted at once: without it a broken connection would leave us nowhere.
        let due =
            self.progressed_at.is_none_or(|at| at.elapsed() >= PROGRESS_EVERY) || !matches!(self.from, From::After(_));
        if due {
            self.progressed_at = Some(Instant::now());
        }
        due
    }

    /// The stream has come to this moment; it counts once everything before it is durable.
    fn note_time(&mut self, at: Micros) {
        match self.in_flight.back_mut() {
            Some(last) => last.stream_time = last.stream_time.max(at),
            None => self.setup.status.passed(at),
        }
    }

    async fn offer(
        &mut self,
        events: Vec<Event>,
        replay_id: Option<Vec<u8>>,
        committed: Option<Micros>,
        stream_time: Micros,
    ) -> Result<()> {
        let offering = self.intake.offer(Batch { side: Side::Salesforce, events });
        let durable = tokio::select! {
            durable = offering => durable?,
            () = self.cancel.cancelled() => return Err(cancelled("the Salesforce capture")),
        };
        self.in_flight.push_back(InFlight { durable: Box::pin(durable), replay_id, committed, stream_time });
        self.setup.status.set_in_flight(self.in_flight.len());
        Ok(())
    }

    /// The server no longer has what comes next: reads again what was changed, and goes on from the oldest event.
    async fn recover(&mut self, lost: Error) -> Result<()> {
        if self.recovered {
            return Err(lost.within("the stream was lost again as soon as it was taken up at its oldest event"));
        }
        let known = self.setup.status.last_commit().or(self.opened_at);
        let since = known.map(|at| at - OVERLAP);
        let since_text = since.map_or_else(|| "ever".into(), |at| Value::Timestamp(at).to_string());
        tracing::error!(
            error = %lost.explain(),
            since = %since_text,
            "the Salesforce stream no longer has what comes after the last place; what was changed since then is read again"
        );
        self.setup.status.count_recovery();
        let mappings: Vec<MappingDef> = self.setup.catalog.mappings.clone();
        let now = self.backfill.now();
        let scope: Vec<&str> = mappings.iter().map(|mapping| mapping.sobject.as_str()).collect();
        let notice = Notice::Gap {
            side: Side::Salesforce,
            reason: Str::from(lost.explain()),
            scope: Str::from(scope.join(",")),
        };
        let notice = self.backfill.event(now, Item::Notice(notice));
        self.offer(vec![notice], None, None, 0).await?;
        for mapping in &mappings {
            let rows = self.backfill.since(mapping, since, &*self.intake, &self.cancel).await?;
            tracing::info!(sobject = %mapping.sobject, rows, "rows changed since the stream was lost are read");
        }
        while !self.in_flight.is_empty() {
            self.settle_first().await?;
        }
        self.from = From::Earliest;
        self.recovered = true;
        self.opened_at = None;
        self.ignored_before = since.unwrap_or(Micros::MIN);
        Ok(())
    }
}

/// The receipt of the oldest batch; never, where there is none. May be cancelled: the batch stays.
async fn first_durable(in_flight: &mut VecDeque<InFlight>) -> Result<Receipt> {
    match in_flight.front_mut() {
        Some(first) => (&mut first.durable).await,
        None => std::future::pending().await,
    }
}

fn sweep_ended(ended: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    match ended {
        Ok(result) => result.map_err(|e| e.within("reading an object again")),
        Err(join) if join.is_cancelled() => Ok(()),
        Err(join) => Err(Error::new(Kind::Internal, "a task panicked; this is a bug in Tidelock").caused_by(join)),
    }
}

fn replay_id_of(event: &Event) -> Option<&str> {
    match &event.position {
        Position::Salesforce { replay_id, .. } => Some(replay_id),
        Position::Postgres { .. } => None,
    }
}

fn describe(from: &From) -> String {
    match from {
        From::Latest => "new events only".into(),
        From::Earliest => "the oldest event".into(),
        From::After(replay_id) => format!("after {}", to_hex(replay_id)),
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
