//! A server for tests: logs everybody in, remembers what it was asked, and answers by a function.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Response, StatusCode, Uri};
use serde_json::Value as Json;
use tokio::task::JoinSet;

use super::auth::{Auth, AuthOptions, Flow};
use super::http_client;
use super::rest::{Rest, RestOptions};

/// One request, without logins.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    /// Path below `/services/data/v66.0/`, and query.
    pub(super) path: String,
    /// The JSON body, or null.
    pub(super) body: Json,
    /// The header `Sforce-Duplicate-Rule-Header`.
    pub(super) duplicate_rule: String,
    /// The headers `Sforce-Call-Options`, all of them.
    pub(super) call_options: String,
}

impl Asked {
    /// The records of a collection call.
    pub(super) fn records(&self) -> Vec<Json> {
        self.body["records"].as_array().cloned().unwrap_or_default()
    }
}

/// What is answered: a status and a body; status 0 breaks the connection.
pub(super) type Answer = (u16, String);

/// A running server and a client to it.
pub(super) struct Stub {
    pub(super) rest: Rest,
    asked: Arc<Mutex<Vec<Asked>>>,
    usage: Arc<Mutex<(u64, u64)>>,
    _tasks: JoinSet<()>,
}

impl Stub {
    /// Starts a server that answers by `answer`.
    pub(super) async fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::with_timeout(Duration::from_secs(5), answer).await
    }

    /// The same, with a client that waits no longer than `timeout`.
    pub(super) async fn with_timeout(
        timeout: Duration,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let usage = Arc::new(Mutex::new((18, 15_000)));
        let (log, answer, told) = (asked.clone(), Arc::new(answer), usage.clone());
        let app = axum::Router::new().fallback(
            move |method: Method, uri: Uri, headers: axum::http::HeaderMap, body: Bytes| {
                let (log, answer, told) = (log.clone(), answer.clone(), told.clone());
                async move {
                    let (status, text) = match uri.path() {
                        "/services/oauth2/token" => (
                            200,
                            format!(
                                r#"{{"access_token":"t","instance_url":"http://{address}","id":"http://x/id/00D000000000001/005000000000001"}}"#
                            ),
                        ),
                        "/services/oauth2/userinfo" => (403, String::new()),
                        _ => {
                            let asked = Asked {
                                method,
                                path: uri.to_string().trim_start_matches("/services/data/v66.0/").to_owned(),
                                body: serde_json::from_slice(&body).unwrap_or_default(),
                                duplicate_rule: headers
                                    .get("sforce-duplicate-rule-header")
                                    .map_or("", |v| v.to_str().unwrap())
                                    .to_owned(),
                                call_options: headers
                                    .get_all("sforce-call-options")
                                    .iter()
                                    .map(|v| v.to_str().unwrap())
                                    .collect(),
                            };
                            log.lock().unwrap().push(asked.clone());
                            answer(&asked)
                        }
                    };
                    if status == 0 {
                        // A body that ends before its stated length looks like a broken connection.
                        return Response::builder().header("content-length", "100").body(Body::from("[")).unwrap();
                    }
                    let (used, limit) = *told.lock().unwrap();
                    Response::builder()
                        .status(StatusCode::from_u16(status).unwrap())
                        .header("sforce-limit-info", format!("api-usage={used}/{limit}"))
                        .body(Body::from(text))
                        .unwrap()
                }
            },
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let options = AuthOptions {
            login_url: format!("http://{address}"),
            client_id: "key".into(),
            flow: Flow::ClientCredentials { client_secret: "secret".into() },
            instance_url: None,
            timeout: Duration::from_secs(5),
        };
        let (http, clock) = (http_client(None).unwrap(), crate::clock::system());
        let auth = Auth::new(options, http.clone(), clock.clone()).unwrap();
        let options = RestOptions { api_version: "66.0".into(), client_name: "tidelock".into(), timeout };
        let rest = Rest::new(auth, http, clock, options).unwrap();
        Self { rest, asked, usage, _tasks: tasks }
    }

    /// What the answers from now on say of the org's API requests.
    pub(super) fn set_usage(&self, used: u64, limit: u64) {
        *self.usage.lock().unwrap() = (used, limit);
    }

    /// What was asked so far.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// The body of a refusal.
pub(super) fn refusal(code: &str, message: &str) -> String {
    serde_json::json!([{ "errorCode": code, "message": message }]).to_string()
}
