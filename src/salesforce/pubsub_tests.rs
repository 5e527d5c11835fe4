//! Subscribing, against a small server.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Streaming};

use super::*;
use crate::protocol::eventbus::pub_sub_server::{PubSub as Service, PubSubServer};
use crate::protocol::eventbus::{
    ConsumerEvent, ManagedFetchRequest, ManagedFetchResponse, PublishRequest, PublishResponse, SchemaInfo,
};
use crate::salesforce::auth::tests::logged_in;

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Script = mpsc::Receiver<Result<FetchResponse, Status>>;

/// A server that plays scripts, one for each subscription, and notes what it is asked.
#[derive(Clone, Default)]
pub(crate) struct Stub {
    scripts: Arc<Mutex<std::collections::VecDeque<Script>>>,
    pub(crate) asked: Arc<Mutex<Vec<FetchRequest>>>,
    pub(crate) tokens: Arc<Mutex<Vec<String>>>,
    pub(crate) schemas: Arc<Mutex<HashMap<String, String>>>,
    pub(crate) schema_calls: Arc<AtomicUsize>,
}

impl Stub {
    /// The next subscription plays what is sent here.
    pub(crate) fn script(&self) -> mpsc::Sender<Result<FetchResponse, Status>> {
        let (sender, receiver) = mpsc::channel(64);
        self.scripts.lock().unwrap().push_back(receiver);
        sender
    }

    /// Serves on a free port until the tasks are dropped.
    pub(crate) async fn serve(&self, tasks: &mut JoinSet<()>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = tonic::transport::Server::builder().add_service(PubSubServer::new(self.clone()));
        tasks.spawn(async move { router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap() });
        url
    }
}

/// One subscription: notes every request, and says what the script says.
struct Play {
    script: Script,
    requests: Streaming<FetchRequest>,
    asked: Arc<Mutex<Vec<FetchRequest>>>,
}

impl Stream for Play {
    type Item = Result<FetchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(Some(Ok(request))) = Pin::new(&mut self.requests).poll_next(context) {
            self.asked.lock().unwrap().push(request);
        }
        self.script.poll_recv(context)
    }
}

/// A status with an error code of the Pub/Sub API.
pub(crate) fn coded(code: Code, name: &str) -> Status {
    let mut status = Status::new(code, format!("it failed. rpcId: {name}"));
    status.metadata_mut().insert("error-code", format!("{CODE_PREFIX}{name}").parse().unwrap());
    status
}

#[tonic::async_trait]
impl Service for Stub {
    type SubscribeStream = Answer<FetchResponse>;
    type PublishStreamStream = Answer<PublishResponse>;
    type ManagedSubscribeStream = Answer<ManagedFetchResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<FetchRequest>>,
    ) -> Result<Response<Answer<FetchResponse>>, Status> {
        let metadata = request.metadata();
        assert_eq!(metadata.get("tenantid").unwrap(), "00D000000000001EAA");
        assert!(metadata.get("instanceurl").unwrap().to_str().unwrap().starts_with("http://127.0.0.1"));
        self.tokens.lock().unwrap().push(metadata.get("accesstoken").unwrap().to_str().unwrap().to_owned());
        let Some(script) = self.scripts.lock().unwrap().pop_front() else {
            return Err(Status::unavailable("no script"));
        };
        Ok(Response::new(Box::pin(Play { script, requests: request.into_inner(), asked: self.asked.clone() })))
    }

    async fn get_schema(&self, request: Request<SchemaRequest>) -> Result<Response<SchemaInfo>, Status> {
        self.schema_calls.fetch_add(1, Ordering::SeqCst);
        let id = request.into_inner().schema_id;
        match self.schemas.lock().unwrap().get(&id) {
            Some(json) => {
                Ok(Response::new(SchemaInfo { schema_json: json.clone(), schema_id: id, rpc_id: String::new() }))
            }
            None => Err(coded(Code::InvalidArgument, "schema.validation.failed")),
        }
    }

    async fn get_topic(&self, request: Request<TopicRequest>) -> Result<Response<TopicInfo>, Status> {
        let topic_name = request.into_inner().topic_name;
        if topic_name == "/data/No" {
            return Err(coded(Code::NotFound, "topic.not.found"));
        }
        Ok(Response::new(TopicInfo { topic_name, can_subscribe: true, ..TopicInfo::default() }))
    }

    async fn publish(&self, _: Request<PublishRequest>) -> Result<Response<PublishResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn publish_stream(
        &self,
        _: Request<Streaming<PublishRequest>>,
    ) -> Result<Response<Answer<PublishResponse>>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn managed_subscribe(
        &self,
        _: Request<Streaming<ManagedFetchRequest>>,
    ) -> Result<Response<Answer<ManagedFetchResponse>>, Status> {
        Err(Status::unimplemented(""))
    }
}

async fn client(stub: &Stub, tasks: &mut JoinSet<()>, silence_max: Duration) -> PubSub {
    let endpoint = stub.serve(tasks).await;
    let auth = logged_in(tasks).await;
    PubSub::new(PubSubOptions { endpoint, silence_max, ..PubSubOptions::default() }, auth).unwrap()
}

fn response(count: usize, pending: i32) -> FetchResponse {
    FetchResponse {
        events: vec![ConsumerEvent::default(); count],
        latest_replay_id: vec![1],
        pending_num_requested: pending,
        ..FetchResponse::default()
    }
}

async fn until(what: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !what() {
        assert!(Instant::now() < deadline, "it did not come to be in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn never_more_than_a_hundred_events_are_outstanding() {
    let (stub, mut tasks) = (Stub::default(), JoinSet::new());
    let pubsub = client(&stub, &mut tasks, Duration::from_mins(1)).await;
    let script = stub.script();
    let mut subscription = pubsub.subscribe("/data/ChangeEvents", &From::After(vec![0, 7])).await.unwrap();
    let (mut owed, mut delivered) = (100, 0);
    for count in [1usize, 10, 28, 1, 0, 60, 100] {
        script.send(Ok(response(count, owed - count as i32))).await.unwrap();
        assert_eq!(subscription.next().await.unwrap().events.len(), count);
        delivered += count as i32;
        assert!(subscription.outstanding > OUTSTANDING_LOW && subscription.outstanding <= 100);
        let total = subscription.outstanding + delivered;
        until(|| stub.asked.lock().unwrap().iter().map(|r| r.num_requested).sum::<i32>() == total).await;
        owed = total - delivered;
    }
    let asked = stub.asked.lock().unwrap().clone();
    assert_eq!(
        (asked[0].topic_name.as_str(), asked[0].replay_preset, asked[0].replay_id.as_slice()),
        ("/data/ChangeEvents", 2, &[0, 7][..])
    );
    assert!(asked[1..].iter().all(|r| r.replay_preset == 0 && r.replay_id.is_empty() && r.num_requested > 0));
    drop(script);
    assert!(matches!(subscription.next().await, Err(Trouble::Retry(_))));
}

#[tokio::test]
async fn it_asks_again_before_the_server_gives_up_and_notices_silence() {
    let (stub, mut tasks) = (Stub::default(), JoinSet::new());
    let pubsub = client(&stub, &mut tasks, Duration::from_mins(5)).await;
    let script = stub.script();
    let mut subscription = pubsub.subscribe("/data/ChangeEvents", &From::Latest).await.unwrap();
    script.send(Ok(response(0, 100))).await.unwrap();
    subscription.next().await.unwrap();
    // The server's count and ours have come apart: it says that it owes nothing, long after we asked.
    subscription.pending = 0;
    subscription.asked_at -= Duration::from_secs(51);
    subscription.heard_at -= Duration::from_secs(20);
    let waited = tokio::time::timeout(Duration::from_millis(200), subscription.next()).await;
    assert!(waited.is_err());
    until(|| stub.asked.lock().unwrap().len() == 2).await;
    assert_eq!(stub.asked.lock().unwrap()[1].num_requested, 100);
    subscription.heard_at -= Duration::from_secs(301);
    assert!(matches!(subscription.next().await, Err(Trouble::Retry(e)) if e.to_string().contains("300 s")));
}

#[tokio::test]
async fn schemas_are_asked_for_once() {
    let (stub, mut tasks) = (Stub::default(), JoinSet::new());
    let pubsub = client(&stub, &mut tasks, Duration::from_mins(1)).await;
    let header = r#"{"type":"record","name":"XChangeEvent","fields":[{"name":"ChangeEventHeader","type":{"type":"record","name":"H","fields":[]}}]}"#;
    stub.schemas.lock().unwrap().insert("id".into(), header.into());
    stub.schemas.lock().unwrap().insert("bad".into(), "{}".into());
    for _ in 0..3 {
        assert_eq!(pubsub.schema("id").await.unwrap().name(), "XChangeEvent");
    }
    assert_eq!(stub.schema_calls.load(Ordering::SeqCst), 1);
    for id in ["bad", "unknown", ""] {
        assert!(matches!(pubsub.schema(id).await, Err(Trouble::Fatal(e)) if e.kind() == Kind::Protocol), "{id}");
    }
    assert!(pubsub.topic("/data/ChangeEvents").await.unwrap().can_subscribe);
    assert!(matches!(pubsub.topic("/data/No").await, Err(Trouble::Fatal(e)) if e.kind() == Kind::Configuration));
}

#[test]
fn troubles_follow_from_code_then_status() {
    let class = |status: &Status| match Trouble::of_status("Subscribe", status) {
        Trouble::Retry(_) => "retry",
        Trouble::Reauthenticate(_) => "reauthenticate",
        Trouble::Wait(_) => "wait",
        Trouble::Lost(_) => "lost",
        Trouble::Fatal(e) => match e.kind() {
            Kind::Denied => "denied",
            Kind::Configuration => "configuration",
            _ => "fatal",
        },
    };
    // The status is not what the code means, to show that the code goes first.
    for (name, expected) in [
        ("service.unavailable", "retry"),
        ("service.auth.error", "reauthenticate"),
        ("service.auth.headers.invalid", "configuration"),
        ("service.tenant.license", "denied"),
        ("topic.not.found", "configuration"),
        ("topic.meta.permission", "denied"),
        ("subscription.fetch.replayid.corrupted", "lost"),
        ("subscription.fetch.replayid.validation.failed", "lost"),
        ("subscription.limit.exceeded", "wait"),
        ("service.protection.triggered", "wait"),
        ("subscription.fetch.requested.events.invalid", "fatal"),
        ("subscription.internal.error", "retry"),
    ] {
        assert_eq!(class(&coded(Code::Internal, name)), expected, "{name}");
    }
    for (status, expected) in [
        (Status::unavailable("RST_STREAM"), "retry"),
        (Status::internal("The service is unavailable. Try again later"), "retry"),
        (Status::unknown("Authentication exception occurred"), "reauthenticate"),
        (Status::unauthenticated(""), "reauthenticate"),
        (Status::permission_denied(""), "denied"),
        (Status::resource_exhausted(""), "wait"),
        (Status::invalid_argument("The Replay ID validation failed"), "lost"),
        (Status::invalid_argument("num_requested"), "fatal"),
        (Status::unimplemented(""), "configuration"),
        (coded(Code::Unavailable, "something.new"), "retry"),
    ] {
        assert_eq!(class(&status), expected, "{status:?}");
    }
}
