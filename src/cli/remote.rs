//! Reaching a log: as a reader beside the process that owns it, or through that process where something is to be changed.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value as Json, json};

use crate::app;
use crate::change::Offset;
use crate::clock;
use crate::config::Config;
use crate::demo::world::Scratch;
use crate::error::{Error, Kind, Result};
use crate::ledger::{self, DeadLetterAction, Ledger};
use crate::log::ChangeLog;
use crate::status::{LINK_HEADER, LOG_HEADER};

use super::blocking;

const TIMEOUT: Duration = Duration::from_secs(10);

/// Something that a person wants changed.
pub(super) enum Action {
    /// Decide a parked conflict.
    Resolve { conflict: Offset, choice: Json, by: String },
    /// Retry or discard a dead letter.
    DeadLetter { letter: Offset, action: DeadLetterAction, by: String },
}

/// The log as it stands, for reading, whether or not a link is running on it.
pub(super) async fn open_for_reading(config: &Config) -> Result<Arc<dyn ChangeLog>> {
    let directory = config.link.log.clone();
    blocking(move || app::open_log_for_reading(&directory)).await
}

/// The log for `log verify`: as its owner where no link runs on it, else as a reader, with a log of its own in a temporary
/// folder for what is computed meanwhile.
pub(super) async fn open_for_verifying(config: &Config) -> Result<(Arc<dyn ChangeLog>, Option<Scratch>)> {
    match open_as_owner(config).await {
        Err(error) if error.kind() == Kind::Configuration => {
            let log = open_for_reading(config).await?;
            let folder = Scratch::new("tidelock-verify")?;
            Ok((log, Some(folder)))
        }
        opened => Ok((opened?, None)),
    }
}

/// The log as its one owner; an error where a link runs on it.
pub(super) async fn open_as_owner(config: &Config) -> Result<Arc<dyn ChangeLog>> {
    let directory = config.link.log.clone();
    blocking(move || app::open_existing_log(&directory)).await
}

impl Action {
    fn by(&self) -> &str {
        match self {
            Self::Resolve { by, .. } | Self::DeadLetter { by, .. } => by,
        }
    }
}

/// Does what a person wants: through the running link where there is one, else on the log itself.
pub(super) async fn act(config: &Config, action: Action) -> Result<()> {
    crate::status::choice::person(action.by())?;
    if post(config, &action).await?.is_some() {
        return Ok(());
    }
    let log = open_as_owner(config).await?;
    let reading = Arc::clone(&log);
    let (ledger, thread) = ledger::start(log, clock::system())?;
    let done = carry_out(action, reading, &ledger).await;
    drop(ledger);
    blocking(move || thread.join().map_err(|_| Error::new(Kind::Internal, "the ledger's thread panicked"))).await?;
    done
}

async fn carry_out(action: Action, log: Arc<dyn ChangeLog>, ledger: &Ledger) -> Result<()> {
    match action {
        Action::Resolve { conflict, choice, by } => {
            let choice = blocking(move || crate::status::choice::parse(&*log, conflict, &choice)).await?;
            ledger.run(move |core| core.resolve(conflict, &choice, &by)).await
        }
        Action::DeadLetter { letter, action, by } => {
            ledger.run(move |core| core.dead_letter(letter, action, &by)).await
        }
    }
}

/// Has the running link do it; none where no link runs.
async fn post(config: &Config, action: &Action) -> Result<Option<Json>> {
    let (path, body) = match action {
        Action::Resolve { conflict, choice, by } => {
            (format!("/conflicts/{conflict}/resolve"), json!({ "choice": choice, "by": by }))
        }
        Action::DeadLetter { letter, action, by } => {
            let verb = match action {
                DeadLetterAction::Retry => "retry",
                DeadLetterAction::Discard => "discard",
            };
            (format!("/dead-letters/{letter}/{verb}"), json!({ "by": by }))
        }
    };
    ask(config, Method::POST, &path, Some(&body), TIMEOUT).await
}

/// The running link's answer to a GET; none where no link runs.
pub(super) async fn get(config: &Config, path: &str) -> Result<Option<Json>> {
    ask(config, Method::GET, path, None, TIMEOUT).await
}

/// Asks the link of this configuration, and no other that has the same port.
async fn ask(
    config: &Config,
    method: Method,
    path: &str,
    body: Option<&Json>,
    timeout: Duration,
) -> Result<Option<Json>> {
    let Some(listen) = config.http.address else { return Ok(None) };
    let directory = config.link.log.clone();
    let log = match blocking(move || app::log_id(&directory)).await {
        // No link runs on a log that is not there.
        Ok(None) => return Ok(None),
        Ok(id) => id,
        // Who may not read the log may still ask its link.
        Err(_) => None,
    };
    let client = reqwest::Client::builder()
        .timeout(timeout)
        .no_proxy()
        .build()
        .map_err(|e| Error::new(Kind::Internal, "cannot make an HTTP client").caused_by(e))?;
    let mut request = client.request(method, format!("http://{listen}{path}")).header(LINK_HEADER, &config.link.name);
    if let Some(log) = log {
        request = request.header(LOG_HEADER, log);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let failed = |error: reqwest::Error| {
        let text = if error.is_timeout() {
            format!("the link at {listen} does not answer; see what its process does, or stop it and try again")
        } else {
            format!("the link at {listen} broke off its answer; try again")
        };
        Error::new(Kind::Unavailable, text).caused_by(error)
    };
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() && !error.is_timeout() => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !answer.headers().contains_key(LINK_HEADER) {
        let text = format!("what answers at {listen} is not this link; give the link another `listen` in [http]");
        return Err(Error::new(Kind::Configuration, text));
    }
    let status = answer.status();
    let text = answer.text().await.map_err(failed)?;
    let json = serde_json::from_str::<Json>(&text);
    if status.is_success() {
        return json
            .map(Some)
            .map_err(|e| Error::new(Kind::Protocol, "the running link's answer cannot be read").caused_by(e));
    }
    let message = json.ok().and_then(|j| j["error"].as_str().map(str::to_owned));
    let kind = if status.is_client_error() { Kind::Configuration } else { Kind::Internal };
    Err(Error::new(kind, message.unwrap_or_else(|| format!("the running link answered {status}"))))
}
