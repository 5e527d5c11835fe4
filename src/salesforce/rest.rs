//! The REST client: every HTTP call to the org goes through [`Rest::call`].
//!
//! A call carries the token, the client name by which the org marks our changes (`Sforce-Call-Options`), and switches off
//! assignment rules. A refused token is renewed once and the call repeated, which is safe because nothing was done.
//! Everything else that fails is answered to the caller as a typed [`RestError`]; nothing is retried here, because only the
//! caller knows whether its call may be sent twice.
//!
//! On the way it keeps [`Usage`] (what the org says of its daily limit) and [`ClockOffset`] (from the `Date` header).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::auth::{Auth, Session};
use super::offset::ClockOffset;
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};

/// The most of one answer that is read. Salesforce's own limit on a query page or collection answer is far lower.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The longest request line that is sent; Salesforce takes 16,384 bytes for the URI and the headers together.
pub const URI_BYTES_MAX: usize = 12_000;

/// The most record ids that one retrieve takes.
pub const RETRIEVE_IDS_MAX: usize = 2_000;

/// The header that carries the client name.
pub const CALL_OPTIONS: &str = "sforce-call-options";

/// A record as REST gives it, without its `attributes`.
pub type Record = Map<String, Json>;

/// How calls are made.
#[derive(Debug, Clone)]
pub struct RestOptions {
    /// The API version, like `66.0`.
    pub api_version: String,
    /// The client name that the org puts into `changeOrigin`.
    pub client_name: String,
    /// The longest that one call may take.
    pub timeout: Duration,
}

/// What the org refuses, as it says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// The HTTP status.
    pub status: u16,
    /// The error code, like `INVALID_FIELD`; `HTTP_<status>` where the answer has none.
    pub code: String,
    /// The message.
    pub message: String,
    /// The fields it is about.
    pub fields: Vec<String>,
}

impl ApiError {
    /// What kind of trouble it is for a whole call: by code first, by status where the code says nothing.
    ///
    /// What a code means for one record of a write is another question, which the target answers.
    pub fn kind(&self) -> Kind {
        match self.code.as_str() {
            "INVALID_SESSION_ID" | "INVALID_AUTH_HEADER" | "API_DISABLED_FOR_ORG" | "INSUFFICIENT_ACCESS" => {
                Kind::Denied
            }
            "REQUEST_LIMIT_EXCEEDED" | "LIMIT_EXCEEDED" | "STORAGE_LIMIT_EXCEEDED" | "TOO_MANY_APEX_REQUESTS" => {
                Kind::Limited
            }
            "API_CURRENTLY_DISABLED" | "INSERT_UPDATE_DELETE_NOT_ALLOWED_DURING_MAINTENANCE" => Kind::Limited,
            "SERVER_UNAVAILABLE"
            | "SERVICE_UNAVAILABLE"
            | "UNKNOWN_EXCEPTION"
            | "INTERNAL_ERROR"
            | "QUERY_TIMEOUT"
            | "REQUEST_RUNNING_TOO_LONG"
            | "INVALID_QUERY_LOCATOR"
            | "UNABLE_TO_LOCK_ROW" => Kind::Unavailable,
            "MALFORMED_QUERY"
            | "INVALID_FIELD"
            | "INVALID_TYPE"
            | "NOT_FOUND"
            | "METHOD_NOT_ALLOWED"
            | "UNSUPPORTED_MEDIA_TYPE"
            | "INVALID_OPERATION" => Kind::Configuration,
            _ => match self.status {
                408 | 420 | 429 | 500..=599 => Kind::Unavailable,
                401 | 403 => Kind::Denied,
                300..=399 | 404 | 405 | 415 => Kind::Configuration,
                _ => Kind::Refused,
            },
        }
    }
}

impl From<ApiError> for Error {
    fn from(api: ApiError) -> Self {
        let kind = api.kind();
        let advice = match kind {
            Kind::Denied => "; check the API permissions of the integration user and the connected app's scopes",
            Kind::Configuration => "; the org's objects or fields are not what is configured",
            Kind::Limited => "; it is tried again when the limit allows",
            _ => "",
        };
        Self::new(kind, format!("Salesforce refused a call with {}: {}{advice}", api.code, api.message))
    }
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The org answered, and refused it. Nothing was done, but for what the answer's code says otherwise.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No answer that could be read: whether anything was done is not known. Or there is no session.
    #[error(transparent)]
    Link(#[from] Error),
}

impl From<RestError> for Error {
    fn from(error: RestError) -> Self {
        match error {
            RestError::Api(api) => api.into(),
            RestError::Link(error) => error,
        }
    }
}

/// A good answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status, 2xx; or 300 where several records match an external id, 304 where nothing was modified.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON of a known shape.
    pub fn json<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|e| {
            Error::new(
                Kind::Protocol,
                format!("Salesforce answered {} with a body that is not the expected JSON", self.status),
            )
            .caused_by(e)
        })
    }
}

/// What the org says of its daily API limit, and what we used.
#[derive(Debug, Default)]
pub struct Usage {
    used: AtomicU64,
    limit: AtomicU64,
    calls: AtomicU64,
}

impl Usage {
    /// Calls by everybody in the last 24 hours, as the org last said; 0 before the first answer.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The org's limit for 24 hours, as it last said; 0 before the first answer.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Calls that we have made since the start.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Takes over what a `Sforce-Limit-Info` header says.
    fn learn(&self, header: &str) {
        let Some((used, limit)) = parse_limit_info(header) else { return };
        self.used.store(used, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
    }
}

/// Used and limit of `api-usage=18/15000; per-app-api-usage=17/250(appName=x)`.
fn parse_limit_info(header: &str) -> Option<(u64, u64)> {
    let part = header.split([';', ',']).find_map(|part| part.trim().strip_prefix("api-usage="))?;
    let (used, limit) = part.split_once('/')?;
    Some((used.trim().parse().ok()?, limit.trim().parse().ok()?))
}

/// One page of a query.
#[derive(Debug)]
pub struct QueryPage {
    /// The rows, with `attributes` removed.
    pub records: Vec<Record>,
    /// All rows of the query. For `COUNT()` it is the count.
    pub total: u64,
    /// Where the next page is, for [`Rest::query_more`].
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct QueryAnswer {
    #[serde(rename = "totalSize")]
    total_size: u64,
    #[serde(rename = "nextRecordsUrl")]
    next_records_url: Option<String>,
    #[serde(default)]
    records: Vec<Record>,
}

/// Which rows a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// What is there.
    Live,
    /// Deleted ones in the recycle bin and archived ones too.
    All,
}

/// The REST client. Clones share session, usage and clock offset.
#[derive(Clone)]
pub struct Rest {
    inner: Arc<Inner>,
}

struct Inner {
    auth: Auth,
    http: reqwest::Client,
    options: RestOptions,
    call_options: HeaderValue,
    clock: SharedClock,
    usage: Usage,
    offset: ClockOffset,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rest").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Rest {
    /// A client; nothing is sent yet.
    pub fn new(auth: Auth, http: reqwest::Client, clock: SharedClock, options: RestOptions) -> Result<Self> {
        let name = &options.client_name;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(Error::new(
                Kind::Configuration,
                format!("the Salesforce client name {name:?} may have only letters, digits, '-', '_' and '.'"),
            ));
        }
        let version_ok = options.api_version.split_once('.').is_some_and(|(major, minor)| {
            [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        });
        if !version_ok {
            return Err(Error::new(
                Kind::Configuration,
                format!("the Salesforce API version {:?} must look like 66.0", options.api_version),
            ));
        }
        let call_options = HeaderValue::from_str(&format!("client={name}"))
            .map_err(|e| Error::new(Kind::Internal, "the client name is no header value").caused_by(e))?;
        let (usage, offset) = (Usage::default(), ClockOffset::default());
        Ok(Self { inner: Arc::new(Inner { auth, http, options, call_options, clock, usage, offset }) })
    }

    /// The login that calls are made with.
    pub fn auth(&self) -> &Auth {
        &self.inner.auth
    }

    /// What the org says of its limit, and what we used.
    pub fn usage(&self) -> &Usage {
        &self.inner.usage
    }

    /// How far the org's clock is ahead of ours.
    pub fn clock_offset(&self) -> &ClockOffset {
        &self.inner.offset
    }

    /// The clock that this client reads.
    pub fn clock(&self) -> &SharedClock {
        &self.inner.clock
    }

    /// The client name that the org puts into `changeOrigin`.
    pub fn client_name(&self) -> &str {
        &self.inner.options.client_name
    }

    /// The path of `tail` in the configured API version: `/services/data/v66.0/<tail>`.
    pub fn path(&self, tail: &str) -> String {
        format!("/services/data/v{}/{}", self.inner.options.api_version, tail.trim_start_matches('/'))
    }

    /// Makes one call. `path` is a tail of the versioned path, or absolute when it begins with `/services/`; its parts are
    /// percent-encoded already ([`encode_segment`]). `headers` are added, but [`CALL_OPTIONS`] takes the place of the usual
    /// one. A refused token is renewed once.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Json>,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, RestError> {
        let path = if path.starts_with("/services/") { path.to_owned() } else { self.path(path) };
        let body =
            match body {
                Some(json) => Some(Bytes::from(serde_json::to_vec(json).map_err(|e| {
                    Error::new(Kind::Internal, "a request body cannot be written as JSON").caused_by(e)
                })?)),
                None => None,
            };
        let session = self.inner.auth.session().await?;
        let first = self.once(&session, &method, &path, query, body.clone(), headers).await;
        match first {
            Err(RestError::Api(refused)) if is_stale_session(&refused) => {
                let session = self.inner.auth.refresh(&session).await?;
                self.once(&session, &method, &path, query, body, headers).await
            }
            other => other,
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Answer, RestError> {
        self.call(Method::GET, path, query, None, &[]).await
    }

    /// `POST` of JSON.
    pub async fn post(&self, path: &str, body: &Json) -> Result<Answer, RestError> {
        self.call(Method::POST, path, &[], Some(body), &[]).await
    }

    /// The first page of a query.
    pub async fn query(&self, rows: Rows, soql: &str) -> Result<QueryPage, RestError> {
        let path = match rows {
            Rows::Live => "query",
            Rows::All => "queryAll",
        };
        page(&self.get(path, &[("q", soql)]).await?)
    }

    /// The page that [`QueryPage::next`] names.
    pub async fn query_more(&self, next: &str) -> Result<QueryPage, RestError> {
        if !next.starts_with("/services/data/") {
            let message = "Salesforce named a next query page that is not a path of its API";
            return Err(Error::new(Kind::Protocol, message).into());
        }
        page(&self.get(next, &[]).await?)
    }

    /// Records by id, in the order of `ids`; `None` where there is no such record, it is deleted, or we may not see it.
    /// At most [`RETRIEVE_IDS_MAX`] ids.
    pub async fn retrieve(
        &self,
        sobject: &str,
        ids: &[&str],
        fields: &[&str],
    ) -> Result<Vec<Option<Record>>, RestError> {
        let path = format!("composite/sobjects/{}", encode_segment(sobject));
        let answer = self.post(&path, &json!({ "ids": ids, "fields": fields })).await?;
        let mut records: Vec<Option<Record>> = answer.json()?;
        if records.len() != ids.len() {
            let message = format!("Salesforce answered {} records where {} were asked for", records.len(), ids.len());
            return Err(Error::new(Kind::Protocol, message).into());
        }
        for record in records.iter_mut().flatten() {
            record.remove("attributes");
        }
        Ok(records)
    }

    async fn once(
        &self,
        session: &Session,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Bytes>,
        headers: &[(&'static str, &str)],
    ) -> Result<Answer, RestError> {
        let inner = &*self.inner;
        let url = format!("{}{path}", session.instance_url());
        let mut request = inner
            .http
            .request(method.clone(), url)
            .timeout(inner.options.timeout)
            .bearer_auth(session.token().expose_secret())
            .header("sforce-auto-assign", "FALSE");
        if headers.iter().all(|(name, _)| *name != CALL_OPTIONS) {
            request = request.header(CALL_OPTIONS, inner.call_options.clone());
        }
        if !query.is_empty() {
            request = request.query(query);
        }
        for (name, value) in headers {
            request = request.header(HeaderName::from_static(name), *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let unreachable = |error: reqwest::Error| {
            let what = if error.is_timeout() {
                "did not answer in time"
            } else {
                "cannot be reached, or the connection broke"
            };
            Error::new(Kind::Unavailable, format!("Salesforce at {} {what} ({method} {path})", session.instance_url()))
                .caused_by(error.without_url())
        };
        inner.usage.calls.fetch_add(1, Ordering::Relaxed);
        let sent_at = inner.clock.now();
        let mut response = request.send().await.map_err(unreachable)?;
        let received_at = inner.clock.now();
        let status = response.status().as_u16();
        let headers = std::mem::take(response.headers_mut());
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(info) = text("sforce-limit-info") {
            inner.usage.learn(info);
        }
        if let Some(date) = text("date") {
            inner.offset.observe(date, sent_at, received_at);
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                let message = format!("Salesforce answered {method} {path} with more than {ANSWER_BYTES_MAX} bytes");
                return Err(Error::new(Kind::Protocol, message).into());
            }
        }
        let body = body.freeze();
        match status {
            200..=300 | 304 => Ok(Answer { status, headers, body }),
            _ => Err(parse_error(status, &body).into()),
        }
    }
}

fn page(answer: &Answer) -> Result<QueryPage, RestError> {
    let QueryAnswer { total_size, next_records_url, mut records } = answer.json()?;
    for record in &mut records {
        record.remove("attributes");
    }
    Ok(QueryPage { records, total: total_size, next: next_records_url })
}

/// Whether a new token may mend it. A token without the API scope is refused for good.
fn is_stale_session(refused: &ApiError) -> bool {
    refused.status == 401
        && refused.code != "INVALID_AUTH_HEADER"
        && !refused.message.contains("not valid for use with")
}

/// What an answer that is not a success says: a JSON array of errors, a JSON object, or something for a browser.
pub fn parse_error(status: u16, body: &[u8]) -> ApiError {
    let fallback = |message: String| ApiError { status, code: format!("HTTP_{status}"), message, fields: Vec::new() };
    let first = match serde_json::from_slice::<Json>(body) {
        Ok(Json::Array(mut all)) if !all.is_empty() => all.swap_remove(0),
        Ok(object @ Json::Object(_)) => object,
        Ok(other) => return fallback(format!("status {status}, {} bytes", other.to_string().len())),
        Err(_) => return fallback(describe_text(status, body)),
    };
    let text = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| first.get(name).and_then(Json::as_str))
            .map(str::to_owned)
            .filter(|s| !s.is_empty())
    };
    let fields = first.get("fields").and_then(Json::as_array);
    ApiError {
        status,
        code: text(&["errorCode", "statusCode", "error"]).unwrap_or_else(|| format!("HTTP_{status}")),
        message: text(&["message", "error_description"]).unwrap_or_else(|| format!("status {status}")),
        fields: fields.into_iter().flatten().filter_map(Json::as_str).map(str::to_owned).collect(),
    }
}

/// A short text for an answer that is not JSON: an HTML page's title, or the start of a plain text.
fn describe_text(status: u16, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..body.len().min(8192)).unwrap_or_default());
    let lower = text.to_ascii_lowercase();
    let title = lower.find("<title>").zip(lower.find("</title>")).and_then(|(start, end)| text.get(start + 7..end));
    match title {
        Some(title) => format!("status {status}, a web page titled {:?}", title.trim()),
        None if lower.contains("<html") => format!("status {status}, a web page"),
        None if text.trim().is_empty() => format!("status {status}, an empty answer"),
        None => format!("status {status}: {}", text.trim().chars().take(200).collect::<String>()),
    }
}

/// Percent-encodes one segment of a path: everything but unreserved characters.
pub fn encode_segment(segment: &str) -> String {
    let mut text = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push('%');
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(if nibble < 10 { b'0' + nibble } else { b'A' + nibble - 10 }));
            }
        }
    }
    text
}

#[cfg(test)]
#[path = "rest_tests.rs"]
pub(crate) mod tests;
