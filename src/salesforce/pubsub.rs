//! The Pub/Sub API: subscribing to a topic, and the schemas of its events.
//!
//! A [`Subscription`] asks for events ahead of need and never has more than a hundred outstanding. When everything asked
//! for has come, it asks again well within the minute that the server waits. The server says something at least every 270
//! seconds, so a stream that is silent for longer is taken for dead.
//!
//! What goes wrong is a [`Trouble`], told by the `error-code` trailer first and by the gRPC status second: what to do
//! follows from it alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::auth::{Auth, Session};
use super::avro::EventSchema;
use super::check_secure;
use crate::error::{Error, Kind, Result};
use crate::protocol::eventbus::pub_sub_client::PubSubClient;
use crate::protocol::eventbus::{FetchRequest, FetchResponse, ReplayPreset, SchemaRequest, TopicInfo, TopicRequest};

/// The most events that may be asked for and not yet delivered.
const OUTSTANDING_MAX: i32 = 100;

/// More are asked for when no more than this many are outstanding.
const OUTSTANDING_LOW: i32 = 60;

/// After this long without asking, we ask again: the server ends a call that has asked for nothing for a minute.
const ASK_AGAIN: Duration = Duration::from_secs(50);

/// A response that comes this long after we asked was sent with that in view.
const SETTLED: Duration = Duration::from_secs(10);

/// The largest message that is taken. The server's limit is 3 MB.
const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All error codes begin so.
const CODE_PREFIX: &str = "sfdc.platform.eventbus.grpc.";

/// Where the Pub/Sub API is.
#[derive(Debug, Clone)]
pub struct PubSubOptions {
    /// `https://api.pubsub.salesforce.com:7443`, or `http://` for this machine.
    pub endpoint: String,
    /// Certificates to trust besides the system's, PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// The longest that a call with one answer may take.
    pub timeout: Duration,
    /// A stream that is silent for longer is taken for dead. The server's own limit is 270 seconds.
    pub silence_max: Duration,
    /// How often an HTTP/2 ping finds out whether a quiet connection still lives; `None` leaves it to TCP and to
    /// `silence_max`, for servers and proxies that take pings for abuse.
    pub ping_every: Option<Duration>,
}

impl Default for PubSubOptions {
    fn default() -> Self {
        Self {
            endpoint: "https://api.pubsub.salesforce.com:7443".into(),
            extra_ca_pem: None,
            timeout: Duration::from_secs(30),
            silence_max: Duration::from_mins(5),
            ping_every: Some(Duration::from_mins(1)),
        }
    }
}

/// What went wrong with a call, by what is to be done about it.
#[derive(Debug)]
pub enum Trouble {
    /// Connect again, after a while.
    Retry(Error),
    /// Get another token, then connect again.
    Reauthenticate(Error),
    /// A limit is used up: connect again after a longer while.
    Wait(Error),
    /// The server no longer has what comes after the replay id.
    Lost(Error),
    /// A person must change something, or it is a bug.
    Fatal(Error),
}

impl Trouble {
    /// The error.
    pub fn error(&self) -> &Error {
        match self {
            Self::Retry(e) | Self::Reauthenticate(e) | Self::Wait(e) | Self::Lost(e) | Self::Fatal(e) => e,
        }
    }

    /// The error, taken out.
    pub fn into_error(self) -> Error {
        match self {
            Self::Retry(e) | Self::Reauthenticate(e) | Self::Wait(e) | Self::Lost(e) | Self::Fatal(e) => e,
        }
    }

    /// The trouble that an error of logging in is.
    pub(crate) fn of_login(error: Error) -> Self {
        match error.kind() {
            Kind::Unavailable => Self::Retry(error),
            Kind::Limited => Self::Wait(error),
            _ => Self::Fatal(error),
        }
    }

    /// What a status means.
    fn of_status(what: &str, status: &Status) -> Self {
        let code = status.metadata().get("error-code").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let said = if code.is_empty() { format!("{:?}", status.code()) } else { code.to_owned() };
        let error = |kind, advice: &str| {
            let message: String = status.message().chars().take(500).collect();
            Error::new(kind, format!("Salesforce Pub/Sub, {what}: {said}: {message}{advice}"))
        };
        let retry = || Self::Retry(error(Kind::Unavailable, ""));
        match code.strip_prefix(CODE_PREFIX).unwrap_or(code) {
            "service.auth.error" => Self::Reauthenticate(error(Kind::Denied, "")),
            "service.auth.headers.invalid" | "service.auth.refresh.invalid" => {
                Self::Fatal(error(Kind::Configuration, "; check the login and the instance URL"))
            }
            "service.tenant.license" => Self::Fatal(error(Kind::Denied, "; the org's edition has no Pub/Sub API")),
            "topic.meta.permission" | "schema.meta.permission" | "subscription.topic.cannot.subscribe" => {
                Self::Fatal(error(Kind::Denied, "; give the integration user View All on the captured objects"))
            }
            "topic.not.found" | "topic.validation.empty" => Self::Fatal(error(
                Kind::Configuration,
                "; topic names are case-sensitive, and Change Data Capture must be switched on for the objects",
            )),
            "schema.validation.failed" => Self::Fatal(error(Kind::Protocol, "")),
            "subscription.fetch.replayid.corrupted" | "subscription.fetch.replayid.validation.failed" => {
                Self::Lost(error(Kind::StreamLost, ""))
            }
            "subscription.limit.exceeded" => {
                Self::Wait(error(Kind::Limited, "; the org's daily allocation of delivered events is used up"))
            }
            "service.protection.triggered"
            | "service.protection.stream.limit.triggered"
            | "concurrent.client.limit.exceeded" => Self::Wait(error(Kind::Limited, "")),
            "subscription.fetch.replay.repeated"
            | "subscription.fetch.requested.events.invalid"
            | "subscription.fetch.topic.mismatch"
            | "subscription.fetch.request.invalid" => Self::Fatal(error(Kind::Internal, "; this is a bug in Tidelock")),
            "service.unavailable"
            | "topic.api.unavailable"
            | "schema.api.unavailable"
            | "subscription.fetch.overflow"
            | "subscription.internal.error" => retry(),
            _ => match status.code() {
                Code::Unauthenticated => Self::Reauthenticate(error(Kind::Denied, "")),
                Code::PermissionDenied => {
                    Self::Fatal(error(Kind::Denied, "; check the integration user's permissions"))
                }
                Code::NotFound => Self::Fatal(error(Kind::Configuration, "; check the topic's name")),
                Code::ResourceExhausted => Self::Wait(error(Kind::Limited, "")),
                Code::Unimplemented => Self::Fatal(error(Kind::Configuration, "; check the Pub/Sub endpoint")),
                Code::InvalidArgument if mentions_replay_id(status.message()) => {
                    Self::Lost(error(Kind::StreamLost, ""))
                }
                Code::InvalidArgument => Self::Fatal(error(Kind::Protocol, "")),
                _ if mentions_authentication(status.message()) => Self::Reauthenticate(error(Kind::Denied, "")),
                _ => retry(),
            },
        }
    }
}

fn mentions_replay_id(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["replay id", "replayid", "replay_id"].iter().any(|name| message.contains(name))
}

fn mentions_authentication(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("valid authentication credentials") || message.contains("authentication exception occurred")
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// New events only.
    Latest,
    /// The oldest event that is kept.
    Earliest,
    /// The event after this replay id.
    After(Vec<u8>),
}

/// The client. Clones share the connection and the schemas.
#[derive(Clone)]
pub struct PubSub {
    client: PubSubClient<Channel>,
    auth: Auth,
    options: Arc<PubSubOptions>,
    schemas: Arc<Mutex<HashMap<String, Arc<EventSchema>>>>,
}

impl std::fmt::Debug for PubSub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PubSub").field("endpoint", &self.options.endpoint).finish_non_exhaustive()
    }
}

impl PubSub {
    /// A client; it connects when it is first used.
    pub fn new(options: PubSubOptions, auth: Auth) -> Result<Self> {
        let url = check_secure("the Salesforce Pub/Sub endpoint", &options.endpoint)?;
        let broken = |e: tonic::transport::Error| {
            Error::new(Kind::Configuration, format!("the Pub/Sub endpoint {:?} cannot be used", options.endpoint))
                .caused_by(e)
        };
        let mut endpoint = Endpoint::from_shared(options.endpoint.trim_end_matches('/').to_owned())
            .map_err(broken)?
            .connect_timeout(Duration::from_secs(15))
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .tcp_keepalive_interval(Some(Duration::from_secs(10)))
            .tcp_keepalive_retries(Some(3));
        if let Some(interval) = options.ping_every {
            endpoint = endpoint
                .http2_keep_alive_interval(interval)
                .keep_alive_timeout(Duration::from_secs(20))
                .keep_alive_while_idle(true);
        }
        if url.scheme() == "https" {
            let mut tls = ClientTlsConfig::new().with_native_roots();
            if let Some(pem) = &options.extra_ca_pem {
                tls = tls.ca_certificate(Certificate::from_pem(pem));
            }
            endpoint = endpoint.tls_config(tls).map_err(broken)?;
        }
        let client = PubSubClient::new(endpoint.connect_lazy()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client, auth, options: Arc::new(options), schemas: Arc::default() })
    }

    /// The login that calls are made with.
    pub fn auth(&self) -> &Auth {
        &self.auth
    }

    /// What the server knows of a topic. Its `schema_id` is empty where a topic has events of several objects.
    pub async fn topic(&self, name: &str) -> Result<TopicInfo, Trouble> {
        let session = self.auth.session().await.map_err(Trouble::of_login)?;
        let request = with_metadata(TopicRequest { topic_name: name.to_owned() }, &session)?;
        let answer = tokio::time::timeout(self.options.timeout, self.client.clone().get_topic(request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Trouble::of_status("GetTopic", &status)),
            Err(_) => Err(silent("GetTopic did not answer in time")),
        }
    }

    /// The schema of this id. A schema never changes, so each is asked for once.
    pub async fn schema(&self, id: &str) -> Result<Arc<EventSchema>, Trouble> {
        if let Some(schema) = self.schemas.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            return Ok(schema.clone());
        }
        if id.is_empty() {
            return Err(Trouble::Fatal(Error::new(Kind::Protocol, "a Salesforce event names no schema")));
        }
        let session = self.auth.session().await.map_err(Trouble::of_login)?;
        let request = with_metadata(SchemaRequest { schema_id: id.to_owned() }, &session)?;
        let answer = tokio::time::timeout(self.options.timeout, self.client.clone().get_schema(request)).await;
        let info = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(Trouble::of_status("GetSchema", &status)),
            Err(_) => return Err(silent("GetSchema did not answer in time")),
        };
        let schema = EventSchema::parse(&info.schema_json).map_err(|e| {
            Trouble::Fatal(
                Error::new(Kind::Protocol, format!("schema {id} of Salesforce events cannot be used")).caused_by(e),
            )
        })?;
        let schema = Arc::new(schema);
        self.schemas.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), schema.clone());
        Ok(schema)
    }

    /// Opens a subscription. Resolves when the server has taken the call.
    pub async fn subscribe(&self, topic: &str, from: &From) -> Result<Subscription, Trouble> {
        let session = self.auth.session().await.map_err(Trouble::of_login)?;
        let (preset, replay_id) = match from {
            From::Latest => (ReplayPreset::Latest, Vec::new()),
            From::Earliest => (ReplayPreset::Earliest, Vec::new()),
            From::After(replay_id) => (ReplayPreset::Custom, replay_id.clone()),
        };
        let (asking, asked) = mpsc::channel(4);
        let first = FetchRequest {
            topic_name: topic.to_owned(),
            replay_preset: preset.into(),
            replay_id,
            num_requested: OUTSTANDING_MAX,
            ..FetchRequest::default()
        };
        asking
            .try_send(first)
            .map_err(|_| Trouble::Fatal(Error::new(Kind::Internal, "a new channel takes nothing")))?;
        let request = with_metadata(ReceiverStream::new(asked), &session)?;
        // A server may hold back its headers until it has a message, so this waits as long as for any message.
        let answer = tokio::time::timeout(self.options.silence_max, self.client.clone().subscribe(request)).await;
        let responses = match answer {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(Trouble::of_status("Subscribe", &status)),
            Err(_) => return Err(silent("Subscribe did not answer in time")),
        };
        Ok(Subscription {
            asking,
            responses,
            topic: topic.to_owned(),
            outstanding: OUTSTANDING_MAX,
            pending: OUTSTANDING_MAX,
            asked_at: Instant::now(),
            heard_at: Instant::now(),
            silence_max: self.options.silence_max,
            session,
        })
    }
}

fn silent(what: &str) -> Trouble {
    Trouble::Retry(Error::new(Kind::Unavailable, format!("Salesforce Pub/Sub: {what}")))
}

fn with_metadata<T>(message: T, session: &Session) -> Result<Request<T>, Trouble> {
    let value = |text: &str| {
        MetadataValue::<Ascii>::try_from(text).map_err(|_| {
            Trouble::Fatal(Error::new(Kind::Protocol, "the Salesforce session has characters that no header can hold"))
        })
    };
    let mut request = Request::new(message);
    let mut token = value(session.token().expose_secret())?;
    token.set_sensitive(true);
    request.metadata_mut().insert("accesstoken", token);
    request.metadata_mut().insert("instanceurl", value(session.instance_url())?);
    request.metadata_mut().insert("tenantid", value(session.organization_id())?);
    Ok(request)
}

/// An open subscription.
pub struct Subscription {
    asking: mpsc::Sender<FetchRequest>,
    responses: tonic::Streaming<FetchResponse>,
    topic: String,
    /// How many events we have asked for and not yet had.
    outstanding: i32,
    /// How many the server last said that it owes.
    pending: i32,
    asked_at: Instant,
    heard_at: Instant,
    silence_max: Duration,
    session: Arc<Session>,
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscription")
            .field("topic", &self.topic)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    /// The session that it was opened with, to name when it is refused.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The next response, which may be without events. After an error the subscription is over.
    ///
    /// May be cancelled: nothing that was received is lost.
    pub async fn next(&mut self) -> Result<FetchResponse, Trouble> {
        loop {
            let ask_at = self.asked_at + ASK_AGAIN;
            let dead_at = self.heard_at + self.silence_max;
            tokio::select! {
                biased;
                message = self.responses.message() => return match message {
                    Ok(Some(response)) => {
                        self.received(&response)?;
                        Ok(response)
                    }
                    Ok(None) => Err(silent("the server ended the subscription")),
                    Err(status) => Err(Trouble::of_status("Subscribe", &status)),
                },
                () = tokio::time::sleep_until(dead_at) => {
                    let seconds = self.silence_max.as_secs();
                    return Err(silent(&format!("nothing was heard for {seconds} s, not even a keepalive")));
                }
                () = tokio::time::sleep_until(ask_at) => {
                    if self.heard_at > self.asked_at + SETTLED {
                        // Nothing of ours was on its way when the server last spoke, so its count is how it stands.
                        self.outstanding = self.pending;
                    }
                    self.ask(OUTSTANDING_MAX - self.outstanding)?;
                    self.asked_at = Instant::now();
                }
            }
        }
    }

    /// Counts what came, and asks for more in time.
    fn received(&mut self, response: &FetchResponse) -> Result<(), Trouble> {
        self.heard_at = Instant::now();
        let count = i32::try_from(response.events.len()).unwrap_or(i32::MAX);
        self.outstanding = self.outstanding.saturating_sub(count).max(0);
        self.pending = response.pending_num_requested.clamp(0, OUTSTANDING_MAX);
        if self.outstanding <= OUTSTANDING_LOW { self.ask(OUTSTANDING_MAX - self.outstanding) } else { Ok(()) }
    }

    /// Asks for `count` more.
    fn ask(&mut self, count: i32) -> Result<(), Trouble> {
        if count <= 0 {
            return Ok(());
        }
        let request = FetchRequest { topic_name: self.topic.clone(), num_requested: count, ..FetchRequest::default() };
        match self.asking.try_send(request) {
            Ok(()) => {
                self.outstanding += count;
                self.asked_at = Instant::now();
                Ok(())
            }
            // The connection takes nothing at the moment; the next response or timer asks again.
            Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(silent("the subscription takes no more requests")),
        }
    }
}

#[cfg(test)]
#[path = "pubsub_tests.rs"]
pub(crate) mod tests;
