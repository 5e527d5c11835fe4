//! The REST API: a function from a request to a response, run under the org's lock.
//!
//! Nothing here waits or knows of sockets, so that the subrequests of a composite request take the same way.

mod bulk;
mod collections;
mod composite;
mod describe;
mod limits;
mod query;
mod rows;

use serde_json::Value as Json;

use super::refusal::Refusal;
use super::state::State;
use super::write::Actor;

/// The oldest and the newest API version that are served.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u32> = 31..=68;

/// A request to a versioned resource.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// In upper case.
    pub(crate) method: String,
    /// The decoded segments after `/services/data/vNN.0`.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) version: u32,
    /// Scheme and host that the client came to.
    pub(crate) origin: String,
    pub(crate) org_id: String,
    /// The name that the client gives itself.
    pub(crate) client: Option<String>,
    pub(crate) batch_size: Option<usize>,
    pub(crate) if_modified_since_ms: Option<i64>,
    pub(crate) if_unmodified_since_ms: Option<i64>,
    pub(crate) body: Vec<u8>,
    pub(crate) user: String,
    pub(crate) now_ms: i64,
    pub(crate) composite_origin: bool,
    pub(crate) daily_requests: u64,
}

impl Request {
    /// The value of a query parameter.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Result<Json, Refusal> {
        serde_json::from_slice(&self.body).map_err(|e| Refusal::new("JSON_PARSER_ERROR", format!("{e}")))
    }

    /// The body as a JSON object.
    pub(crate) fn object(&self) -> Result<serde_json::Map<String, Json>, Refusal> {
        match self.json()? {
            Json::Object(map) => Ok(map),
            _ => Err(Refusal::new("JSON_PARSER_ERROR", "Unexpected input: a JSON object is needed")),
        }
    }

    /// `/services/data/vNN.0`.
    pub(crate) fn base(&self) -> String {
        format!("/services/data/v{}.0", self.version)
    }

    /// Who the changes of this request are by. Composite resources may not tell the client's name.
    pub(crate) fn actor(&self, composite: bool) -> Actor {
        let client = self.client.as_deref().filter(|_| !composite || self.composite_origin);
        let client = client.map(|client| format!(";client={client}")).unwrap_or_default();
        let origin = format!("com/salesforce/api/rest/{}.0{client}", self.version);
        Actor { user: self.user.as_str().into(), origin }
    }
}

/// A response. An empty body is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    /// Something was committed.
    pub(crate) wrote: bool,
}

impl Response {
    /// 200 with a JSON body.
    pub(crate) fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// A status with a JSON body.
    pub(crate) fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    /// The same response to a request that wrote something.
    pub(crate) fn written(mut self) -> Self {
        self.wrote = true;
        self
    }
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.status, refusal.body())
    }
}

pub(crate) use bulk::Job;
pub(crate) use limits::versions;

/// Answers a request whose session has been checked.
pub(crate) fn handle(state: &mut State, request: &Request) -> Response {
    dispatch(state, request).unwrap_or_else(Response::from)
}

fn dispatch(state: &mut State, request: &Request) -> Result<Response, Refusal> {
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    let method = match request.param("_HttpMethod") {
        Some(method) if request.method == "POST" => method.to_ascii_uppercase(),
        _ => request.method.clone(),
    };
    match (method.as_str(), path.as_slice()) {
        ("GET", []) => Ok(limits::resources(request)),
        ("GET", ["limits"]) => Ok(limits::limits(state, request)),
        ("GET", ["limits", "recordCount"]) => Ok(limits::record_count(state, request)),
        ("GET", ["query"] | ["tooling", "query"]) => query::query(state, request, false),
        ("GET", ["queryAll"]) => query::query(state, request, true),
        ("GET", ["query" | "queryAll", locator]) => query::more(state, request, locator),
        ("GET", ["sobjects"]) => Ok(describe::global(state, request)),
        ("GET", ["sobjects", object]) => describe::basic(state, request, object),
        ("GET", ["sobjects", object, "describe"]) => describe::describe(state, request, object),
        ("GET", ["sobjects", object, "updated"]) => rows::updated(state, request, object),
        ("GET", ["sobjects", object, "deleted"]) => rows::deleted(state, request, object),
        ("POST", ["sobjects", object] | ["sobjects", object, "Id"]) => rows::create(state, request, object),
        ("GET", ["sobjects", object, id]) => rows::get(state, request, object, id),
        ("PATCH", ["sobjects", object, id]) => rows::update(state, request, object, id),
        ("DELETE", ["sobjects", object, id]) => rows::delete(state, request, object, id),
        ("GET", ["sobjects", object, field, value]) => rows::get_by_key(state, request, object, field, value),
        ("PATCH", ["sobjects", object, field, value]) => rows::upsert(state, request, object, field, value),
        ("DELETE", ["sobjects", object, field, value]) => rows::delete_by_key(state, request, object, field, value),
        ("POST", ["composite", "sobjects"]) => collections::create(state, request),
        ("PATCH", ["composite", "sobjects"]) => collections::update(state, request),
        ("DELETE", ["composite", "sobjects"]) => collections::delete(state, request),
        ("PATCH", ["composite", "sobjects", object, field]) => collections::upsert(state, request, object, field),
        ("POST" | "GET", ["composite", "sobjects", object]) => collections::retrieve(state, request, object),
        (_, ["jobs", rest @ ..]) => bulk::handle(state, request, &method, rest),
        ("POST", ["composite"]) => composite::composite(state, request),
        ("POST", ["composite", "batch"]) => composite::batch(state, request),
        ("POST", ["composite", "tree", object]) => composite::tree(state, request, object),
        (
            _,
            []
            | ["limits" | "query" | "queryAll" | "sobjects" | "composite"]
            | ["sobjects", _]
            | ["sobjects", _, _]
            | ["sobjects", _, _, _]
            | ["composite", "sobjects"],
        ) => Err(Refusal::new(
            "METHOD_NOT_ALLOWED",
            format!(
                "HTTP Method '{method}' not allowed. Allowed are those that the REST API documents for this resource"
            ),
        )
        .status(405)),
        _ => Err(Refusal::not_found("The requested resource does not exist")),
    }
}
