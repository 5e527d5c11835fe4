//! The Pub/Sub API: subscriptions to change events, and what a client asks about topics and schemas.
//!
//! A subscription is a stream that is driven by its connection: it waits for requests, new events, the keepalive time
//! and orders to end, whichever comes first. Events are taken from the log when they can be sent, so a slow client holds
//! nothing back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};
use tokio_stream::Stream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Request, Response, Status, Streaming};

use super::auth;
use super::events::{number_of, replay_id};
use super::org::Org;
use crate::protocol::eventbus::pub_sub_server::PubSub;
use crate::protocol::eventbus::{
    ConsumerEvent, FetchRequest, FetchResponse, ManagedFetchRequest, ManagedFetchResponse, ProducerEvent,
    PublishRequest, PublishResponse, ReplayPreset, SchemaInfo, SchemaRequest, TopicInfo, TopicRequest,
};

/// Events that a call may have outstanding.
const MOST_PENDING: i32 = 100;
/// Payload bytes of one response.
const MOST_BYTES: usize = 3_000_000 - 100_000;

/// The service.
pub(crate) struct Bus {
    org: Arc<Org>,
}

impl Bus {
    pub(crate) fn new(org: Arc<Org>) -> Self {
        Self { org }
    }

    /// Checks the session that a call's metadata names.
    fn authenticate(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let get = |name: &str| metadata.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.trim().is_empty());
        let (Some(token), Some(_), Some(tenant)) = (get("accesstoken"), get("instanceurl"), get("tenantid")) else {
            let text = "One or more required authentication headers (accesstoken, instanceurl, tenantid) are missing.";
            return Err(refuse(&self.org, Code::Unauthenticated, "service.auth.headers.invalid", text));
        };
        let own = super::id::normalise(tenant).is_some_and(|id| id == self.org.id);
        if own && auth::session(&self.org, token).is_some() {
            return Ok(());
        }
        let text = "The client does not have valid authentication credentials. An authentication exception occurred.";
        Err(refuse(&self.org, Code::Unauthenticated, "service.auth.error", text))
    }

    fn topic(&self, name: &str) -> Result<Topic, Status> {
        topic(&self.org, name)
    }
}

fn rpc_id(org: &Org) -> String {
    org.with(|state| state.rng.uuid())
}

/// An error as the service gives it: a status, the name of the error in the trailers, and the call's id in the text.
fn refuse(org: &Org, code: Code, name: &str, text: &str) -> Status {
    let mut metadata = MetadataMap::new();
    if let Ok(value) = MetadataValue::try_from(format!("sfdc.platform.eventbus.grpc.{name}")) {
        metadata.insert("error-code", value);
    }
    Status::with_metadata(code, format!("{text} rpcId: {}", rpc_id(org)), metadata)
}

/// What a topic carries.
#[derive(Debug, Clone)]
struct Topic {
    /// By object index.
    objects: Vec<bool>,
    /// The schema, where the topic is of one object.
    schema_id: String,
}

fn topic(org: &Org, name: &str) -> Result<Topic, Status> {
    if name.trim().is_empty() {
        return Err(refuse(org, Code::InvalidArgument, "topic.validation.empty", "The topic name is empty."));
    }
    let found = org.with(|state| {
        let objects = &state.schema.objects;
        let stem = name.strip_prefix("/data/")?;
        if stem == "ChangeEvents" {
            return Some(Topic { objects: objects.iter().map(|o| o.events).collect(), schema_id: String::new() });
        }
        if let Some(channel) = stem.strip_suffix("__chn") {
            let channel = org.file.channels.iter().find(|c| c.name == channel)?;
            let listed = |object: &str| channel.objects.iter().any(|name| name == object);
            let carried = objects.iter().map(|o| o.events && listed(&o.name)).collect();
            return Some(Topic { objects: carried, schema_id: String::new() });
        }
        let index = objects.iter().position(|o| o.events && o.event_name() == stem)?;
        let schema_id = state.plans.get(index)?.schema_id.to_string();
        Some(Topic { objects: (0..objects.len()).map(|o| o == index).collect(), schema_id })
    });
    found.ok_or_else(|| {
        let text = format!("The topic {name} could not be found or its change events are not selected.");
        refuse(org, Code::NotFound, "topic.not.found", &text)
    })
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl PubSub for Bus {
    type SubscribeStream = Boxed<FetchResponse>;
    type PublishStreamStream = Boxed<PublishResponse>;
    type ManagedSubscribeStream = Boxed<ManagedFetchResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.authenticate(request.metadata())?;
        let subscription = Subscription::new(self.org.clone(), request.into_inner());
        Ok(Response::new(Box::pin(Unfold::new(subscription))))
    }

    async fn get_schema(&self, request: Request<SchemaRequest>) -> Result<Response<SchemaInfo>, Status> {
        self.authenticate(request.metadata())?;
        let schema_id = request.into_inner().schema_id;
        if schema_id.trim().is_empty() {
            let text = "The schema ID is blank or null.";
            return Err(refuse(&self.org, Code::InvalidArgument, "schema.validation.failed", text));
        }
        let found = self.org.with(|state| state.log.schema(&schema_id));
        let Some(schema) = found else {
            let text = format!("The schema {schema_id} could not be found.");
            return Err(refuse(&self.org, Code::InvalidArgument, "schema.validation.failed", &text));
        };
        Ok(Response::new(SchemaInfo { schema_json: schema.to_string(), schema_id, rpc_id: rpc_id(&self.org) }))
    }

    async fn get_topic(&self, request: Request<TopicRequest>) -> Result<Response<TopicInfo>, Status> {
        self.authenticate(request.metadata())?;
        let topic_name = request.into_inner().topic_name;
        let topic = self.topic(&topic_name)?;
        Ok(Response::new(TopicInfo {
            topic_name,
            tenant_guid: format!("core/sandbox/{}", self.org.id),
            can_publish: false,
            can_subscribe: true,
            schema_id: topic.schema_id,
            rpc_id: rpc_id(&self.org),
        }))
    }

    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        Err(Status::unimplemented("the sandbox has no platform events to publish"))
    }

    async fn publish_stream(
        &self,
        _: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        Err(Status::unimplemented("the sandbox has no platform events to publish"))
    }

    async fn managed_subscribe(
        &self,
        _: Request<Streaming<ManagedFetchRequest>>,
    ) -> Result<Response<Self::ManagedSubscribeStream>, Status> {
        Err(Status::unimplemented("the sandbox has no managed subscriptions"))
    }
}

/// A subscription that has been opened.
struct Open {
    name: String,
    topic: Topic,
    /// Events up to this number have been sent or are not for this topic.
    cursor: u64,
    pending: i32,
    /// Events sent, for the fault that ends streams.
    sent: u64,
    /// When something was sent last, or asked for last.
    last: Instant,
}

/// The state of one call of Subscribe.
struct Subscription {
    org: Arc<Org>,
    inbound: Streaming<FetchRequest>,
    inbound_open: bool,
    open: Option<Open>,
    tip: watch::Receiver<u64>,
    drops: watch::Receiver<u64>,
    ended: bool,
}

/// What a subscription was woken by.
enum Wake {
    Request(Option<FetchRequest>),
    Tip,
    Drop,
    Time,
}

impl Subscription {
    fn new(org: Arc<Org>, inbound: Streaming<FetchRequest>) -> Self {
        let (tip, drops) = (org.watch_tip(), org.watch_drops());
        Self { org, inbound, inbound_open: true, open: None, tip, drops, ended: false }
    }

    /// The next response of the call, or its end.
    async fn next(&mut self) -> Option<Result<FetchResponse, Status>> {
        if self.ended {
            return None;
        }
        let result = self.step().await;
        self.ended = !matches!(result, Some(Ok(_)));
        result
    }

    async fn step(&mut self) -> Option<Result<FetchResponse, Status>> {
        loop {
            match self.deliver().await {
                Ok(Some(response)) => return Some(Ok(response)),
                Ok(None) => {}
                Err(status) => return Some(Err(status)),
            }
            match self.wait().await {
                Wake::Request(Some(request)) => {
                    if let Err(status) = self.request(&request) {
                        return Some(Err(status));
                    }
                }
                Wake::Request(None) => {
                    self.inbound_open = false;
                    if self.open.as_ref().is_none_or(|open| open.pending == 0) {
                        return None;
                    }
                }
                Wake::Tip => {}
                Wake::Drop => return Some(Err(self.unavailable())),
                Wake::Time => match self.keepalive() {
                    Some(response) => return Some(Ok(response)),
                    None => return None,
                },
            }
        }
    }

    fn unavailable(&self) -> Status {
        let text = "The service is unavailable. Try again later.";
        refuse(&self.org, Code::Unavailable, "service.unavailable", text)
    }

    async fn wait(&mut self) -> Wake {
        let pending = self.open.as_ref().is_some_and(|open| open.pending > 0);
        let patience = if pending { self.org.keepalive } else { self.org.idle_close };
        let deadline = self.open.as_ref().map_or_else(Instant::now, |open| open.last) + patience;
        tokio::select! {
            biased;
            changed = self.drops.changed() => match changed {
                Ok(()) | Err(_) => Wake::Drop,
            },
            request = self.inbound.message(), if self.inbound_open => Wake::Request(request.ok().flatten()),
            changed = self.tip.changed(), if pending => match changed {
                Ok(()) => Wake::Tip,
                Err(_) => Wake::Drop,
            },
            () = sleep_until(deadline) => Wake::Time,
        }
    }

    /// Takes in a request of the client.
    fn request(&mut self, request: &FetchRequest) -> Result<(), Status> {
        let refuse = |name: &str, text: &str| Err(refuse(&self.org, Code::InvalidArgument, name, text));
        if request.num_requested <= 0 {
            let text = "The number of requested events must be greater than zero.";
            return refuse("subscription.fetch.requested.events.invalid", text);
        }
        let asked = request.num_requested.min(MOST_PENDING);
        if let Some(open) = &mut self.open {
            if !request.topic_name.is_empty() && request.topic_name != open.name {
                let text = "The topic cannot be changed within a subscription.";
                return refuse("subscription.fetch.topic.mismatch", text);
            }
            if !request.replay_id.is_empty() {
                let text = "Replay options can be given in the first request alone.";
                return refuse("subscription.fetch.replay.repeated", text);
            }
            open.pending = (open.pending + asked).min(MOST_PENDING);
            open.last = Instant::now();
            return Ok(());
        }
        if self.org.with(|state| state.faults.event_limit_exhausted) {
            let text = "Your organization has exceeded its event delivery limit.";
            return Err(self::refuse(&self.org, Code::ResourceExhausted, "subscription.limit.exceeded", text));
        }
        let topic = topic(&self.org, &request.topic_name)?;
        let cursor = self.start(request)?;
        let name = request.topic_name.clone();
        self.open = Some(Open { name, topic, cursor, pending: asked, sent: 0, last: Instant::now() });
        Ok(())
    }

    /// The number that the subscription starts after.
    fn start(&self, request: &FetchRequest) -> Result<u64, Status> {
        let now_ms = self.org.now_ms();
        let invalid = |text: &str| {
            Err(refuse(&self.org, Code::InvalidArgument, "subscription.fetch.replayid.validation.failed", text))
        };
        match (request.replay_preset(), request.replay_id.as_slice()) {
            (ReplayPreset::Custom, []) => invalid("A custom replay preset needs a replay ID."),
            (ReplayPreset::Custom, id) => {
                let number = number_of(id);
                let found = self.org.with(|state| {
                    state.log.expire(now_ms);
                    number.filter(|number| state.log.can_resume(*number))
                });
                found.ok_or_else(|| self.corrupted())
            }
            (_, [_, ..]) => invalid("A replay ID needs the custom replay preset."),
            (ReplayPreset::Latest, []) => Ok(self.org.with(|state| state.log.tip())),
            (ReplayPreset::Earliest, []) => Ok(self.org.with(|state| {
                state.log.expire(now_ms);
                state.log.before_first()
            })),
        }
    }

    fn corrupted(&self) -> Status {
        let text = "The Replay ID validation failed. Ensure that the Replay ID is valid.";
        refuse(&self.org, Code::InvalidArgument, "subscription.fetch.replayid.corrupted", text)
    }

    /// The events that can be sent now, if any.
    async fn deliver(&mut self) -> Result<Option<FetchResponse>, Status> {
        // What is told from here on wakes the wait that follows.
        self.tip.mark_unchanged();
        let Some(open) = self.open.as_ref().filter(|open| open.pending > 0) else { return Ok(None) };
        let (latency_ms, every, waiting) = self.org.with(|state| {
            let waiting = state.log.after(open.cursor).any(|e| open.topic.objects.get(e.object) == Some(&true));
            (state.faults.event_latency_ms, state.faults.drop_stream_every, waiting)
        });
        if waiting && latency_ms > 0 {
            sleep(Duration::from_millis(latency_ms)).await;
        }
        let Some(open) = self.open.as_mut() else { return Ok(None) };
        if every > 0 && open.sent >= every {
            return Err(self.unavailable());
        }
        let room = if every > 0 { (every - open.sent).min(open.pending as u64) } else { open.pending as u64 };
        let taken = take(&self.org, open, room as usize);
        let Some(events) = taken else { return Err(self.corrupted()) };
        if events.is_empty() {
            return Ok(None);
        }
        open.sent += events.len() as u64;
        open.pending -= events.len() as i32;
        open.last = Instant::now();
        Ok(Some(FetchResponse {
            events,
            latest_replay_id: replay_id(open.cursor),
            rpc_id: rpc_id(&self.org),
            pending_num_requested: open.pending,
        }))
    }

    /// A sign of life; nothing when the client has asked for nothing for too long.
    fn keepalive(&mut self) -> Option<FetchResponse> {
        let open = self.open.as_mut().filter(|open| open.pending > 0)?;
        open.last = Instant::now();
        Some(FetchResponse {
            events: Vec::new(),
            latest_replay_id: replay_id(open.cursor),
            rpc_id: rpc_id(&self.org),
            pending_num_requested: open.pending,
        })
    }
}

/// Takes up to `room` events off the log and moves the cursor; `None` when events have been lost that were not read.
fn take(org: &Org, open: &mut Open, room: usize) -> Option<Vec<ConsumerEvent>> {
    org.with(|state| {
        if state.log.has_lost(open.cursor) {
            return None;
        }
        let (mut events, mut bytes, mut full) = (Vec::new(), 0, false);
        for event in state.log.after(open.cursor) {
            if open.topic.objects.get(event.object) != Some(&true) {
                continue;
            }
            bytes += event.payload.len() + 100;
            if events.len() >= room || (bytes > MOST_BYTES && !events.is_empty()) {
                full = true;
                break;
            }
            open.cursor = event.number;
            events.push(ConsumerEvent {
                event: Some(ProducerEvent {
                    id: event.uuid.to_string(),
                    schema_id: event.schema_id.to_string(),
                    payload: event.payload.to_vec(),
                    headers: Vec::new(),
                }),
                replay_id: replay_id(event.number),
            });
        }
        if !full && events.is_empty() {
            // Nothing on the way to the newest event was for this topic.
            open.cursor = open.cursor.max(state.log.tip());
        }
        Some(events)
    })
}

type Step = Pin<Box<dyn Future<Output = (Box<Subscription>, Option<Result<FetchResponse, Status>>)> + Send>>;

/// A subscription as a stream.
struct Unfold {
    step: Option<Step>,
}

impl Unfold {
    fn new(subscription: Subscription) -> Self {
        Self { step: Some(step(Box::new(subscription))) }
    }
}

fn step(mut subscription: Box<Subscription>) -> Step {
    Box::pin(async move {
        let next = subscription.next().await;
        (subscription, next)
    })
}

impl Stream for Unfold {
    type Item = Result<FetchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(pending) = self.step.as_mut() else { return Poll::Ready(None) };
        match pending.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((subscription, item)) => {
                self.step = item.is_some().then(|| step(subscription));
                Poll::Ready(item)
            }
        }
    }
}
