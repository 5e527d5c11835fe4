//! A running sandbox with an HTTP and a gRPC client.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use apache_avro::types::Value as Avro;
use reqwest::{Client as Http, Method, StatusCode};
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::protocol::eventbus::pub_sub_client::PubSubClient;
use crate::protocol::eventbus::{FetchRequest, FetchResponse, ReplayPreset, SchemaRequest};
use crate::sandbox::{Config, OrgFile, Running, Sandbox};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Fixture {
    pub(super) running: Running,
    pub(super) http: Http,
    pub(super) token: String,
}

/// A custom object and a field of each interesting kind.
pub(super) const ORG: &str = r#"
[[objects]]
name = "Account"
[[objects.fields]]
name = "Tier__c"
type = "picklist"
restricted = true
values = ["Gold", "Silver"]
[[objects.fields]]
name = "Touched__c"
type = "double"
precision = 10
scale = 0
[[objects]]
name = "Invoice__c"
auto_number = "INV-"
[[objects.fields]]
name = "Account__c"
type = "reference"
reference_to = ["Account"]
child_relationship = "Invoices"
on_delete = "cascade"
[[objects.fields]]
name = "Amount__c"
type = "currency"
required = true
[[objects.fields]]
name = "Place__c"
type = "location"
[[objects.fields]]
name = "Key__c"
external_id = true
unique = true
case_sensitive = true
[[flows]]
object = "Account"
if_changed = "Site"
set = "TickerSymbol"
to = "upper(Site)"
[[flows]]
object = "Account"
when = "update"
if_changed = "Sic"
set = "Touched__c"
to = "increment(Touched__c)"
after = true
[[validations]]
object = "Invoice__c"
error_if = "Amount__c < 0"
message = "an invoice cannot be negative"
field = "Amount__c"
[[channels]]
name = "Money"
objects = ["Invoice__c", "Opportunity"]
"#;

pub(super) async fn start() -> Fixture {
    start_with(Config { org: OrgFile::from_toml(ORG).unwrap(), ..Config::default() }).await
}

pub(super) async fn start_with(config: Config) -> Fixture {
    let running = Sandbox::start(config, CancellationToken::new()).await.unwrap();
    let certificates = reqwest::Certificate::from_pem_bundle(running.certificate_pem.as_bytes()).unwrap();
    let http = Http::builder().tls_certs_merge(certificates).timeout(PATIENCE).build().unwrap();
    let mut fixture = Fixture { running, http, token: String::new() };
    fixture.login().await;
    fixture
}

impl Fixture {
    pub(super) async fn login(&mut self) {
        let form =
            [("grant_type", "client_credentials"), ("client_id", "tidelock"), ("client_secret", "tidelock-secret")];
        let url = format!("{}/services/oauth2/token", self.running.url());
        let answer: Json = self.http.post(url).form(&form).send().await.unwrap().json().await.unwrap();
        assert_eq!(answer["instance_url"], self.running.url());
        assert!(answer["issued_at"].is_string());
        self.token = answer["access_token"].as_str().unwrap().to_owned();
    }

    /// A request to the data API; an empty body is null.
    pub(super) async fn rest(&self, method: &str, path: &str, body: Json) -> (StatusCode, Json) {
        let response = self.send(method, path, body, &[]).await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, if text.is_empty() { Json::Null } else { serde_json::from_str(&text).unwrap() })
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Json,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<reqwest::Response> {
        let url = format!("{}/services/data/v66.0{path}", self.running.url());
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request =
            self.http.request(method, url).bearer_auth(&self.token).header("Sforce-Call-Options", "client=tests");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        request.send().await
    }

    /// A request that succeeds.
    pub(super) async fn ok(&self, method: &str, path: &str, body: Json) -> Json {
        let (status, answer) = self.rest(method, path, body).await;
        assert!(status.is_success(), "{method} {path}: {status} {answer}");
        answer
    }

    /// A request that is refused: the status and the code.
    pub(super) async fn refused(&self, method: &str, path: &str, body: Json) -> (u16, String) {
        let (status, answer) = self.rest(method, path, body).await;
        assert!(!status.is_success(), "{method} {path}: {status} {answer}");
        (status.as_u16(), answer[0]["errorCode"].as_str().unwrap_or_default().to_owned())
    }

    pub(super) async fn create(&self, object: &str, fields: Json) -> String {
        let answer = self.ok("POST", &format!("/sobjects/{object}"), fields).await;
        answer["id"].as_str().unwrap().to_owned()
    }

    pub(super) async fn query(&self, soql: &str) -> Json {
        let url = format!("{}/services/data/v66.0/query", self.running.url());
        let request = self.http.get(url).bearer_auth(&self.token).query(&[("q", soql)]);
        request.send().await.unwrap().json().await.unwrap()
    }

    pub(super) fn commit(&self, user: &str, operations: Json) -> Vec<String> {
        let body = json!({"user": user, "operations": operations});
        let answer = self.running.admin("POST", "/commit", &body).unwrap();
        let results = answer["results"].as_array().unwrap();
        results.iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    }

    pub(super) async fn subscribe(&self, topic: &str, start: Start) -> Subscriber {
        Subscriber::open(self, topic, start, 100).await.unwrap()
    }
}

pub(super) enum Start {
    Latest,
    Earliest,
    After(Vec<u8>),
}

pub(super) struct Subscriber {
    client: PubSubClient<Channel>,
    metadata: tonic::metadata::MetadataMap,
    pub(super) requests: mpsc::Sender<FetchRequest>,
    pub(super) responses: Streaming<FetchResponse>,
    schemas: HashMap<String, apache_avro::Schema>,
    queue: VecDeque<(Avro, Vec<u8>, String)>,
}

impl Subscriber {
    pub(super) async fn open(fixture: &Fixture, topic: &str, start: Start, num_requested: i32) -> Result<Self, Status> {
        let channel = Channel::from_shared(fixture.running.url()).unwrap().connect().await.unwrap();
        let mut client = PubSubClient::new(channel);
        let (requests, inbound) = mpsc::channel(8);
        let (preset, replay_id) = match start {
            Start::Latest => (ReplayPreset::Latest, Vec::new()),
            Start::Earliest => (ReplayPreset::Earliest, Vec::new()),
            Start::After(id) => (ReplayPreset::Custom, id),
        };
        let first = FetchRequest {
            topic_name: topic.to_owned(),
            replay_preset: preset.into(),
            replay_id,
            num_requested,
            auth_refresh: String::new(),
        };
        requests.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(inbound));
        let metadata = request.metadata_mut();
        for (name, value) in [
            ("accesstoken", fixture.token.as_str()),
            ("instanceurl", &fixture.running.url()),
            ("tenantid", fixture.running.org_id()),
        ] {
            metadata.insert(name, MetadataValue::try_from(value).unwrap());
        }
        let metadata = metadata.clone();
        let responses = client.subscribe(request).await?.into_inner();
        Ok(Self { client, metadata, requests, responses, schemas: HashMap::new(), queue: VecDeque::new() })
    }

    pub(super) async fn more(&self, num_requested: i32) {
        self.requests.send(FetchRequest { num_requested, ..FetchRequest::default() }).await.unwrap();
    }

    /// The next response.
    pub(super) async fn response(&mut self) -> Result<Option<FetchResponse>, Status> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("no response in time")
    }

    /// The next event, decoded by an independent decoder, with its replay id.
    pub(super) async fn event(&mut self) -> Event {
        while self.queue.is_empty() {
            let response = self.response().await.unwrap().expect("the stream ended");
            for consumer in response.events {
                let event = consumer.event.unwrap();
                let schema = self.schema(&event.schema_id).await;
                let mut bytes = event.payload.as_slice();
                let datum = apache_avro::from_avro_datum(&schema, &mut bytes, None).unwrap();
                assert!(bytes.is_empty(), "bytes are left over after an event");
                self.queue.push_back((datum, consumer.replay_id, event.id));
            }
        }
        let (datum, replay_id, uuid) = self.queue.pop_front().unwrap();
        Event { datum, replay_id, uuid }
    }

    async fn schema(&mut self, id: &str) -> apache_avro::Schema {
        if let Some(schema) = self.schemas.get(id) {
            return schema.clone();
        }
        let mut request = Request::new(SchemaRequest { schema_id: id.to_owned() });
        *request.metadata_mut() = self.metadata.clone();
        let info = self.client.get_schema(request).await.unwrap().into_inner();
        let schema = apache_avro::Schema::parse_str(&info.schema_json).unwrap();
        self.schemas.insert(id.to_owned(), schema.clone());
        schema
    }
}

pub(super) struct Event {
    datum: Avro,
    pub(super) replay_id: Vec<u8>,
    pub(super) uuid: String,
}

impl Event {
    /// A value by its path, such as `BillingAddress.City`, as JSON.
    pub(super) fn get(&self, path: &str) -> Json {
        let mut at = &self.datum;
        for name in path.split('.') {
            let Avro::Record(fields) = inner(at) else { return Json::Null };
            at = &fields.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no field {path}")).1;
        }
        plain(inner(at))
    }

    pub(super) fn header(&self, name: &str) -> Json {
        self.get(&format!("ChangeEventHeader.{name}"))
    }
}

fn inner(value: &Avro) -> &Avro {
    match value {
        Avro::Union(_, value) => inner(value),
        other => other,
    }
}

fn plain(value: &Avro) -> Json {
    match value {
        Avro::String(text) | Avro::Enum(_, text) => json!(text),
        Avro::Boolean(b) => json!(b),
        Avro::Int(n) => json!(n),
        Avro::Long(n) => json!(n),
        Avro::Double(n) => json!(n),
        Avro::Array(items) => items.iter().map(|item| plain(inner(item))).collect(),
        Avro::Null => Json::Null,
        other => json!(format!("{other:?}")),
    }
}
