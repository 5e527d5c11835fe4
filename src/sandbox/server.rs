//! The one port of the sandbox: REST and gRPC, plain and TLS, told apart by what the client sends first.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State as Shared;
use axum::http::{HeaderMap, HeaderValue, Request as HttpRequest, Response as HttpResponse, StatusCode, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::Value as Json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::config::Config;
use super::org::Org;
use super::pubsub::Bus;
use super::refusal::Refusal;
use super::rest::{self, Request, Response};
use super::{admin, auth, cert, time, url};
use crate::error::{Error, Kind, Result};
use crate::protocol::eventbus::pub_sub_server::PubSubServer;
use crate::task::Tasks;

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a new connection may take to say something, and to shake hands.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that are open at one time.
const MAX_CONNECTIONS: usize = 1024;
/// Bytes of a request's body.
const MAX_BODY_BYTES: usize = 50_000_000;
/// How long running requests may take to end at a shutdown.
const DRAIN: Duration = Duration::from_secs(5);

/// The stand-in org, before it is started.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox;

impl Sandbox {
    /// Starts an org. It runs until `token` is cancelled or the [`Running`] is stopped or dropped.
    pub async fn start(config: Config, token: CancellationToken) -> Result<Running> {
        let identity = cert::identity(config.certificate.as_ref())?;
        let listen = config.listen;
        let listener = TcpListener::bind(listen).await.map_err(|e| {
            Error::new(Kind::Configuration, format!("the sandbox cannot listen on {listen}; choose another port"))
                .caused_by(e)
        })?;
        let unknown = |e| Error::new(Kind::Unavailable, "the sandbox's port is not known").caused_by(e);
        let address = listener.local_addr().map_err(unknown)?;
        let org = Arc::new(Org::new(config)?);
        let router = Router::new()
            .route_service("/eventbus.v1.PubSub/{method}", PubSubServer::new(Bus::new(org.clone())))
            .fallback(answer)
            .with_state(org.clone());
        let token = token.child_token();
        let mut tasks = Tasks::new(token.clone());
        let tls = TlsAcceptor::from(identity.tls);
        tasks.spawn("sandbox", accept(listener, tls, router, token.clone()));
        tracing::info!(%address, "the sandbox is listening");
        Ok(Running { address, certificate_pem: identity.certificate_pem, org, token, tasks })
    }
}

/// An org that is running. Dropping it ends it at once.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// The certificates to trust, as PEM.
    pub certificate_pem: String,
    org: Arc<Org>,
    token: CancellationToken,
    tasks: Tasks,
}

impl Running {
    /// `http://host:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `https://host:port`.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The org's 18-character id.
    pub fn org_id(&self) -> &str {
        &self.org.id
    }

    /// Does what `method` on `/sandbox<path>` does, without a connection. An answer that is not a success is an error.
    pub fn admin(&self, method: &str, path: &str, body: &Json) -> Result<Json> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let segments: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let response = admin::handle(&self.org, method, &segments, &url::pairs(query), &body);
        if response.status >= 300 {
            let message = format!("the sandbox refused {method} {path}: {}", response.body);
            return Err(Error::new(Kind::Refused, message));
        }
        serde_json::from_str(&response.body)
            .map_err(|e| Error::new(Kind::Internal, "the sandbox gave an answer that is not JSON").caused_by(e))
    }

    /// Runs until the token that it was started with is cancelled.
    pub async fn run(self) -> Result<()> {
        self.tasks.run(DRAIN).await
    }

    /// Ends it.
    pub async fn stop(self) -> Result<()> {
        self.token.cancel();
        self.tasks.run(DRAIN).await
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, router: Router, token: CancellationToken) -> Result<()> {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let (tls, router, token) = (tls.clone(), router.clone(), token.clone());
                    connections.spawn(async move {
                        serve(stream, tls, router, token).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the sandbox could not take a connection");
                    sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            () = token.cancelled() => break,
        }
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, router: Router, token: CancellationToken) {
    let mut first = [0_u8; 1];
    if stream.set_nodelay(true).is_err() || !matches!(timeout(HELLO_TIMEOUT, stream.peek(&mut first)).await, Ok(Ok(1)))
    {
        return;
    }
    if first[0] == TLS_HANDSHAKE {
        match timeout(HELLO_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => speak(stream, true, router, token).await,
            Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake with the sandbox failed"),
            Err(_) => {}
        }
    } else {
        speak(stream, false, router, token).await;
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tls: bool,
    router: Router,
    token: CancellationToken,
) {
    let cut = CancellationToken::new();
    let service = Connection { router, link: Link { tls, cut: cut.clone() } };
    let builder = auto::Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::select! {
        ended = connection => if let Err(error) = ended {
            tracing::debug!(error, "a connection to the sandbox broke");
        },
        () = cut.cancelled() => {}
        () = token.cancelled() => {}
    }
}

/// What a request knows of its connection.
#[derive(Clone)]
struct Link {
    tls: bool,
    /// Cuts the connection.
    cut: CancellationToken,
}

/// The router with the connection made known to each request.
#[derive(Clone)]
struct Connection {
    router: Router,
    link: Link,
}

impl<B> Service<HttpRequest<B>> for Connection
where
    B: axum::body::HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = axum::routing::future::RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: HttpRequest<B>) -> Self::Future {
        request.extensions_mut().insert(self.link.clone());
        self.router.call(request)
    }
}

/// Answers everything that is not gRPC.
async fn answer(Shared(org): Shared<Arc<Org>>, request: HttpRequest<Body>) -> HttpResponse<Body> {
    let (parts, body) = request.into_parts();
    let link = parts.extensions.get::<Link>().cloned();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return http(Refusal::new("REQUEST_TOO_LARGE", "the request's body is too large").status(413).into());
    };
    let host = parts.headers.get(header::HOST).and_then(|h| h.to_str().ok()).map(str::to_owned);
    let host = host.or_else(|| parts.uri.authority().map(ToString::to_string)).unwrap_or_default();
    let scheme = if link.as_ref().is_some_and(|link| link.tls) { "https" } else { "http" };
    let call = Call {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &parts.headers,
        origin: format!("{scheme}://{host}"),
        body: body.to_vec(),
    };
    let response = if call.path == "/services/data" || call.path == "/services/data/" {
        rest::versions()
    } else if call.path.starts_with("/services/data/") {
        data(&org, call, link).await
    } else {
        other(&org, &call)
    };
    http(response)
}

struct Call<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    origin: String,
    body: Vec<u8>,
}

impl Call<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The token of the Authorization header, or of the query.
    fn token(&self) -> Option<String> {
        let header = self.header("authorization").unwrap_or_default();
        let bearer = ["Bearer ", "OAuth ", "bearer "].iter().find_map(|scheme| header.strip_prefix(scheme));
        bearer.map(|token| token.trim().to_owned()).or_else(|| {
            url::pairs(self.query).into_iter().find(|(key, _)| key == "oauth_token").map(|(_, value)| value)
        })
    }

    /// The value of `name` in a header such as `client=x, y=z`.
    fn option(&self, header: &str, name: &str) -> Option<&str> {
        let options = self.header(header)?.split(',').filter_map(|option| option.trim().split_once('='));
        options.into_iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Answers a request to the data API, with the faults that are switched on.
async fn data(org: &Arc<Org>, call: Call<'_>, link: Option<Link>) -> Response {
    let (latency_ms, unavailable) = org.with(|state| {
        let next = state.faults.error_503_next > 0;
        state.faults.error_503_next = state.faults.error_503_next.saturating_sub(1);
        (state.faults.rest_latency_ms, next || state.rng.chance(state.faults.error_503))
    });
    if latency_ms > 0 {
        sleep(Duration::from_millis(latency_ms)).await;
    }
    if unavailable {
        return Refusal::new("SERVER_UNAVAILABLE", "The server is temporarily unavailable.").status(503).into();
    }
    let invalid = || Refusal::new("INVALID_SESSION_ID", "Session expired or invalid").status(401);
    let Some(session) = call.token().and_then(|token| auth::session(org, &token)) else { return invalid().into() };
    let whole = format!("{}?{}", call.path, call.query);
    let Some((version, path, query)) = url::data_path(&whole) else {
        return Refusal::not_found("The requested resource does not exist").into();
    };
    let request = Request {
        method: call.method.to_ascii_uppercase(),
        path,
        query,
        version,
        client: call.option("sforce-call-options", "client").map(str::to_owned),
        batch_size: call.option("sforce-query-options", "batchSize").and_then(|n| n.parse().ok()),
        if_modified_since_ms: call.header("if-modified-since").and_then(time::parse_http),
        if_unmodified_since_ms: call.header("if-unmodified-since").and_then(time::parse_http),
        origin: org.instance_url.clone().unwrap_or(call.origin),
        org_id: org.id.to_string(),
        body: call.body,
        user: session.user.to_string(),
        now_ms: org.now_ms(),
        composite_origin: org.composite_origin,
        daily_requests: org.daily_requests,
    };
    let (response, cut) = org.with(|state| {
        let exhausted = state.faults.request_limit_exhausted;
        let mut response = if exhausted || state.requests >= org.daily_requests {
            Refusal::new("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.").status(403).into()
        } else {
            state.requests += 1;
            rest::handle(state, &request)
        };
        let used = if exhausted { org.daily_requests } else { state.requests };
        response.headers.push(("sforce-limit-info", format!("api-usage={used}/{}", org.daily_requests)));
        let counted = response.wrote && state.faults.apply_then_drop > 0;
        state.faults.apply_then_drop -= u64::from(counted);
        let cut = counted || (response.wrote && state.rng.chance(state.faults.apply_then_drop_probability));
        (response, cut)
    });
    if let (true, Some(link)) = (cut, link) {
        link.cut.cancel();
        // The connection ends before an answer can go out.
        std::future::pending::<()>().await;
    }
    response
}

/// Answers logins and the sandbox's own interface.
fn other(org: &Org, call: &Call<'_>) -> Response {
    let segments: Vec<String> = call.path.split('/').filter(|s| !s.is_empty()).map(|s| url::decode(s, false)).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let text = || String::from_utf8_lossy(&call.body).into_owned();
    let form = || url::pairs(&text());
    match (call.method, segments.as_slice()) {
        (method, ["sandbox", path @ ..]) => admin::handle(org, method, path, &url::pairs(call.query), &call.body),
        ("POST", ["services", "oauth2", "token"]) => {
            auth::token(org, &call.origin, &form(), call.header("authorization").and_then(auth::basic))
        }
        ("POST", ["services", "oauth2", "introspect"]) => auth::introspect(org, &form()),
        ("POST" | "GET", ["services", "oauth2", "revoke"]) => {
            let pairs = if call.method == "GET" { url::pairs(call.query) } else { form() };
            let token = pairs.into_iter().find(|(key, _)| key == "token").map(|(_, value)| value);
            auth::revoke(org, &token.unwrap_or_default())
        }
        ("GET" | "POST", ["services", "oauth2", "userinfo"]) | ("GET", ["id", _, _]) => {
            let token = call.token().or_else(|| form().into_iter().find(|(k, _)| k == "access_token").map(|(_, v)| v));
            match token.and_then(|token| auth::session(org, &token)) {
                Some(session) => auth::identity(org, &call.origin, &session),
                None => Response::new(403, "Bad_OAuth_Token"),
            }
        }
        ("POST", ["services", "Soap", "u", version, ..]) => auth::soap(org, &call.origin, version, &text()),
        _ => Refusal::not_found("The requested resource does not exist").into(),
    }
}

fn http(response: Response) -> HttpResponse<Body> {
    let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = HttpResponse::new(Body::from(response.body));
    *answer.status_mut() = status;
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        let json = HeaderValue::from_static("application/json;charset=UTF-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    for (name, value) in response.headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            answer.headers_mut().insert(name, value);
        }
    }
    answer
}
