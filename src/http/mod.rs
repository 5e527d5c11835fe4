//! The HTTP port: liveness, readiness, metrics, status, and what a person wants changed in a running link.
//!
//! | request | answers |
//! | --- | --- |
//! | `GET /health` | 200 while the process works |
//! | `GET /ready` | 200 when both captures are connected and neither direction's breaker is open, else 503 with the reasons; besides, the mappings whose rows are being compared with the log |
//! | `GET /metrics` | Prometheus text |
//! | `GET /status` | the figures of `tidelock status`, as JSON |
//! | `POST /conflicts/{offset}/resolve` | decides a parked conflict: `{"choice": {"take": side} or {"value": value}, "by": name}` |
//! | `POST /dead-letters/{offset}/retry`, `…/discard` | `{"by": name}` |
//!
//! A request may name the link and the log that it is for (headers `tidelock-link` and `tidelock-log`), and each answer names
//! its own: where they differ it is 409 and nothing is done, since two links may be given the same port.
//!
//! Changes want `Content-Type: application/json`, which a page of another site cannot send without asking first.

mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::change::Offset;
use crate::error::{Error, Kind, Result};
use crate::ledger::DeadLetterAction;
use crate::status::{Handle, LINK_HEADER, LOG_HEADER};

/// Binds the port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let advice = "choose another `listen` in [http], or stop what uses it";
        Error::new(Kind::Configuration, format!("cannot listen on {address}: {e}; {advice}")).caused_by(e)
    })
}

/// Serves until cancelled.
pub async fn serve(listener: TcpListener, link: Arc<Handle>, cancel: CancellationToken) -> Result<()> {
    let router = Router::new()
        .route("/health", get(async || "ok\n"))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .route("/conflicts/{offset}/resolve", post(resolve))
        .route("/dead-letters/{offset}/{action}", post(dead_letter))
        .layer(middleware::from_fn_with_state(Arc::clone(&link), identify))
        .with_state(link);
    axum::serve(listener, router)
        .with_graceful_shutdown(cancel.cancelled_owned())
        .await
        .map_err(|e| Error::new(Kind::Unavailable, "the HTTP port failed").caused_by(e))
}

/// Refuses what is meant for another link, and says in each answer which one this is.
async fn identify(State(link): State<Arc<Handle>>, request: Request, next: Next) -> Response {
    let own = link.identity();
    let headers = [(LINK_HEADER, &own.link), (LOG_HEADER, &own.log)];
    let other = headers
        .iter()
        .any(|(name, own)| request.headers().get(*name).is_some_and(|asked| asked.as_bytes() != own.as_bytes()));
    let mut response = if other {
        let text = format!(
            "the link that answers here is `{}` with log {}, not the one that is asked for; give each link a `listen` of \
             its own in [http]",
            own.link, own.log
        );
        (StatusCode::CONFLICT, Json(json!({ "error": text }))).into_response()
    } else {
        next.run(request).await
    };
    for (name, own) in headers {
        if let Ok(value) = HeaderValue::from_str(own) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

struct Failed(Error);

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let status = match self.0.kind() {
            Kind::Configuration | Kind::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": self.0.explain() }))).into_response()
    }
}

async fn ready(State(link): State<Arc<Handle>>) -> Result<Response, Failed> {
    let figures = link.figures().await?;
    let mut reasons = Vec::new();
    for direction in [&figures.to_salesforce, &figures.to_postgres] {
        if !direction.capture_connected {
            reasons.push(format!("capture from {} is not connected", direction.from));
        }
        if direction.state == "failing" {
            reasons.push(format!("writes to {} keep failing", direction.to));
        }
    }
    // The link works meanwhile, but for writes to these.
    let compared = figures.backfills.iter().filter(|copy| copy.reconciling().is_some());
    let reconciling: Vec<&str> = compared.map(|copy| copy.mapping.as_str()).collect();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "reconciling": reconciling });
    Ok((status, Json(body)).into_response())
}

async fn metrics(State(link): State<Arc<Handle>>) -> Result<Response, Failed> {
    let text = metrics::encode(link.figures().await?)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn status(State(link): State<Arc<Handle>>) -> Result<Response, Failed> {
    Ok(Json(link.figures().await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolve {
    choice: Value,
    by: String,
}

async fn resolve(
    State(link): State<Arc<Handle>>,
    Path(offset): Path<u64>,
    Json(wanted): Json<Resolve>,
) -> Result<Json<Value>, Failed> {
    link.resolve(Offset(offset), wanted.choice, wanted.by).await?;
    Ok(Json(json!({ "resolved": offset })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    by: String,
}

async fn dead_letter(
    State(link): State<Arc<Handle>>,
    Path((offset, action)): Path<(u64, String)>,
    Json(wanted): Json<By>,
) -> Result<Json<Value>, Failed> {
    let action = match action.as_str() {
        "retry" => DeadLetterAction::Retry,
        "discard" => DeadLetterAction::Discard,
        other => return Err(Error::new(Kind::Configuration, format!("`{other}` is not retry or discard")).into()),
    };
    link.dead_letter(Offset(offset), action, wanted.by).await?;
    Ok(Json(json!({ "dead_letter": offset })))
}
