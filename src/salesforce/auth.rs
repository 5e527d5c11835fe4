//! Getting a token, and keeping one that works.
//!
//! Two OAuth flows: client credentials, and JWT bearer. The token is shared by REST and gRPC: whoever finds it refused asks
//! for another with [`Auth::refresh`], naming the session that was refused, and however many find it so at once, one
//! request is made. Salesforce does not say when a token expires, so a refusal is the only sign.
//!
//! A failure that a person must mend is remembered for a while, because repeated failures lock the user out.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{check_secure, id18};
use crate::change::Str;
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};

/// How long a refusal that a person must mend is answered from memory.
const REFUSAL_HOLD: Duration = Duration::from_secs(30);

/// How long an assertion is good for. Salesforce takes at most three minutes.
const ASSERTION_SECONDS: i64 = 170;

/// The most of an answer from the token endpoint that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// How a token is had.
#[derive(Debug, Clone)]
pub enum Flow {
    /// OAuth client credentials: the connected app runs as its configured user. Needs a My Domain login URL.
    ClientCredentials {
        /// The connected app's secret.
        client_secret: SecretString,
    },
    /// OAuth JWT bearer: the connected app has our certificate, and we sign with its key.
    Jwt {
        /// Who to act as.
        username: String,
        /// `https://login.salesforce.com`, `https://test.salesforce.com`, or the My Domain URL.
        audience: String,
        /// The RSA private key, PEM.
        private_key: SecretString,
    },
}

/// Where and as whom to log in.
#[derive(Debug, Clone)]
pub struct AuthOptions {
    /// The host with the token endpoint, for example `https://mydomain.my.salesforce.com`.
    pub login_url: String,
    /// The connected app's consumer key.
    pub client_id: String,
    /// How a token is had.
    pub flow: Flow,
    /// Where to send API calls, if not to the `instance_url` that the token answer names.
    pub instance_url: Option<String>,
    /// The longest that one request may take.
    pub timeout: Duration,
}

/// A token, and whose it is.
pub struct Session {
    token: SecretString,
    instance_url: String,
    organization_id: Str,
    user_id: Str,
    generation: u64,
}

impl Session {
    /// The access token.
    pub fn token(&self) -> &SecretString {
        &self.token
    }

    /// Where API calls go: scheme, host and port, without a trailing slash.
    pub fn instance_url(&self) -> &str {
        &self.instance_url
    }

    /// The org's id, 18 characters.
    pub fn organization_id(&self) -> &Str {
        &self.organization_id
    }

    /// The id of the user that we act as, 18 characters.
    pub fn user_id(&self) -> &Str {
        &self.user_id
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("instance_url", &self.instance_url)
            .field("organization_id", &self.organization_id)
            .field("user_id", &self.user_id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Gets tokens and shares them. Clones share one session.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    options: AuthOptions,
    token_url: reqwest::Url,
    userinfo_url: reqwest::Url,
    key: Option<jsonwebtoken::EncodingKey>,
    /// The org that this must be.
    organization_id: Option<String>,
    /// The org that the log has read.
    known: OnceLock<Str>,
    http: reqwest::Client,
    clock: SharedClock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    generation: u64,
    failure: Option<Failure>,
}

struct Failure {
    at: Instant,
    kind: Kind,
    message: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: &'a str,
    aud: &'a str,
    exp: i64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    instance_url: String,
    #[serde(default)]
    id: String,
}

#[derive(Deserialize)]
struct UserInfo {
    organization_id: String,
    user_id: String,
}

#[derive(Deserialize, Default)]
struct Refusal {
    #[serde(default)]
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Auth {
    /// Checks the options; nothing is sent yet.
    pub fn new(options: AuthOptions, http: reqwest::Client, clock: SharedClock) -> Result<Self> {
        Self::for_organization(options, None, http, clock)
    }

    /// Like [`Auth::new`]; a login to another org than `organization_id`, where it is given, is refused.
    pub fn for_organization(
        options: AuthOptions,
        organization_id: Option<String>,
        http: reqwest::Client,
        clock: SharedClock,
    ) -> Result<Self> {
        let base = check_secure("the Salesforce login_url", &options.login_url)?;
        let url = |path: &str| {
            base.join(path).map_err(|e| {
                Error::new(Kind::Configuration, "the Salesforce login_url cannot be extended by a path").caused_by(e)
            })
        };
        if let Some(instance) = &options.instance_url {
            check_secure("the Salesforce instance_url", instance)?;
        }
        let key = match &options.flow {
            Flow::ClientCredentials { .. } => None,
            Flow::Jwt { private_key, .. } => {
                Some(jsonwebtoken::EncodingKey::from_rsa_pem(private_key.expose_secret().as_bytes()).map_err(|_| {
                    // The cause is left out: it could quote the key.
                    Error::new(
                        Kind::Configuration,
                        "the private key for the Salesforce JWT flow is not an RSA key in PEM; \
                         use the key whose certificate is uploaded to the connected app",
                    )
                })?)
            }
        };
        let (token_url, userinfo_url) = (url("/services/oauth2/token")?, url("/services/oauth2/userinfo")?);
        let (known, state) = Default::default();
        Ok(Self {
            inner: Arc::new(Inner {
                options,
                token_url,
                userinfo_url,
                key,
                organization_id,
                known,
                http,
                clock,
                state,
            }),
        })
    }

    /// From now on, a login to another org than the one that the log has read is refused as a lost stream.
    pub fn expect_org(&self, known: &str) {
        // What a log has read does not change.
        self.inner.known.get_or_init(|| id18(known));
    }

    /// The session in use; logs in if there is none.
    pub async fn session(&self) -> Result<Arc<Session>> {
        let asked = Instant::now();
        let mut state = self.inner.state.lock().await;
        if let Some(session) = &state.session {
            return Ok(session.clone());
        }
        self.inner.renew(&mut state, asked).await
    }

    /// A session other than `refused`, which a server would not take. However many ask at once, one login is made.
    pub async fn refresh(&self, refused: &Session) -> Result<Arc<Session>> {
        let asked = Instant::now();
        let mut state = self.inner.state.lock().await;
        if let Some(session) = &state.session
            && session.generation != refused.generation
        {
            return Ok(session.clone());
        }
        self.inner.renew(&mut state, asked).await
    }
}

impl Inner {
    /// Logs in. Who waited for the lock while a login failed gets that failure instead of another attempt.
    async fn renew(&self, state: &mut State, asked: Instant) -> Result<Arc<Session>> {
        if let Some(failure) = &state.failure
            && (asked <= failure.at || failure.kind == Kind::Denied && failure.at.elapsed() < REFUSAL_HOLD)
        {
            return Err(Error::new(failure.kind, failure.message.clone()));
        }
        match self.log_in(state.session.as_deref(), state.generation + 1).await {
            Ok(session) => {
                let session = Arc::new(session);
                tracing::info!(
                    organization_id = %session.organization_id,
                    user_id = %session.user_id,
                    instance_url = %session.instance_url,
                    "logged in to Salesforce"
                );
                state.generation = session.generation;
                state.failure = None;
                state.session = Some(session.clone());
                Ok(session)
            }
            Err(error) => {
                state.failure = Some(Failure { at: Instant::now(), kind: error.kind(), message: error.explain() });
                Err(error)
            }
        }
    }

    async fn log_in(&self, before: Option<&Session>, generation: u64) -> Result<Session> {
        let form = self.form()?;
        let pairs: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.expose_secret())).collect();
        let request = self.http.post(self.token_url.clone()).form(&pairs);
        let (status, body) = self.send("the Salesforce token endpoint", request).await?;
        if status != 200 {
            return Err(refused(status, &body));
        }
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|e| {
            Error::new(Kind::Protocol, "the Salesforce token endpoint answered 200 without a token; check login_url")
                .caused_by(e)
        })?;
        let instance = self.options.instance_url.as_deref().unwrap_or(&answer.instance_url);
        check_secure("the instance_url that Salesforce names", instance)?;
        let (organization_id, user_id) = match before {
            // The identity of a session that was only renewed is known already.
            Some(before)
                if identity_of(&answer.id).is_some_and(|(o, u)| o == before.organization_id && u == before.user_id) =>
            {
                (before.organization_id.clone(), before.user_id.clone())
            }
            _ => self.identity(&answer).await?,
        };
        let known = before.map(|before| &before.organization_id).or_else(|| self.known.get());
        if let Some(known) = known.filter(|known| **known != organization_id) {
            return Err(another_org(known, &organization_id));
        }
        if let Some(wanted) = &self.organization_id
            && short(wanted) != short(&organization_id)
        {
            let text = format!(
                "this login is to org {organization_id}, but `organization_id` in [salesforce] names {wanted}; check \
                 login_url and client_id, or the id",
            );
            return Err(Error::new(Kind::Configuration, text));
        }
        Ok(Session {
            instance_url: instance.trim_end_matches('/').to_owned(),
            token: answer.access_token.into(),
            organization_id,
            user_id,
            generation,
        })
    }

    fn form(&self) -> Result<Vec<(&'static str, SecretString)>> {
        let options = &self.options;
        match (&options.flow, &self.key) {
            (Flow::ClientCredentials { client_secret }, _) => Ok(vec![
                ("grant_type", "client_credentials".into()),
                ("client_id", options.client_id.as_str().into()),
                ("client_secret", client_secret.clone()),
            ]),
            (Flow::Jwt { username, audience, .. }, Some(key)) => {
                let claims = Claims {
                    iss: &options.client_id,
                    sub: username,
                    aud: audience.trim_end_matches('/'),
                    exp: self.clock.now() / 1_000_000 + ASSERTION_SECONDS,
                };
                let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
                let assertion = jsonwebtoken::encode(&header, &claims, key).map_err(|_| {
                    Error::new(
                        Kind::Configuration,
                        "the private key for the Salesforce JWT flow cannot sign; use an RSA key of 2048 bits or more",
                    )
                })?;
                Ok(vec![
                    ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer".into()),
                    ("assertion", assertion.into()),
                ])
            }
            (Flow::Jwt { .. }, None) => Err(Error::new(Kind::Internal, "the JWT flow has no key")),
        }
    }

    /// The org's and user's ids: by userinfo, or by the identity URL where the app may not ask for userinfo.
    async fn identity(&self, answer: &TokenAnswer) -> Result<(Str, Str)> {
        let request = self.http.get(self.userinfo_url.clone()).bearer_auth(&answer.access_token);
        let (status, body) = self.send("the Salesforce userinfo endpoint", request).await?;
        if status == 200
            && let Ok(info) = serde_json::from_slice::<UserInfo>(&body)
        {
            return Ok((id18(&info.organization_id), id18(&info.user_id)));
        }
        if status >= 500 || status == 429 || status == 420 {
            return Err(Error::new(
                Kind::Unavailable,
                format!("the Salesforce userinfo endpoint answered {status}; it is asked again"),
            ));
        }
        identity_of(&answer.id).ok_or_else(|| {
            Error::new(
                Kind::Denied,
                format!("Salesforce gave a token, but its userinfo endpoint answered {status}; give the connected app the scopes api and openid"),
            )
        })
    }

    async fn send(&self, what: &str, request: reqwest::RequestBuilder) -> Result<(u16, Vec<u8>)> {
        let unreachable = |error: reqwest::Error| {
            Error::new(Kind::Unavailable, format!("{what} at {} cannot be reached", self.options.login_url))
                .caused_by(error.without_url())
        };
        let mut response = request.timeout(self.options.timeout).send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(Error::new(
                    Kind::Protocol,
                    format!("{what} answered with more than {ANSWER_BYTES_MAX} bytes; check login_url"),
                ));
            }
        }
        Ok((status, body))
    }
}

/// That a login is to another org than the one that the log has read.
fn another_org(known: &str, found: &str) -> Error {
    let text = format!(
        "the change log is of another org than the one that this login is to: it has read org {known}, and [salesforce] leads \
         to org {found}. Lead [salesforce] back to the org that the log has read; or, if this one is to be kept in step \
         from now on, start the link with a new log (`log` in [link]). Nothing was written there, and nothing was deleted"
    );
    Error::new(Kind::StreamLost, text)
}

/// The part of an id that tells ids apart; three more characters only say which of these are capitals.
fn short(id: &str) -> &str {
    id.get(..15).unwrap_or(id)
}

/// The org and user in an identity URL, `https://host/id/<org>/<user>`.
fn identity_of(id_url: &str) -> Option<(Str, Str)> {
    let (_, path) = id_url.split_once("/id/")?;
    let (organization, user) = path.split_once('/')?;
    let plausible = |id: &str| matches!(id.len(), 15 | 18) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    (plausible(organization) && plausible(user)).then(|| (id18(organization), id18(user)))
}

/// What a refusal of the token endpoint means, and what to do.
fn refused(status: u16, body: &[u8]) -> Error {
    let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let (kind, advice) = match refusal.error.as_str() {
        _ if status >= 500 || status == 429 || status == 420 => (Kind::Unavailable, "it is tried again"),
        "" if (300..400).contains(&status) => {
            (Kind::Configuration, "it redirects to another host; set login_url to the org's My Domain URL")
        }
        "" => (Kind::Configuration, "that is not the answer of a token endpoint; check login_url"),
        "rate_limit_exceeded" => (Kind::Limited, "too many logins by this user; it is tried again later"),
        "inactive_org" => (Kind::Denied, "the org is suspended or being moved; ask Salesforce support"),
        "inactive_user" => (Kind::Denied, "activate the user that the connected app runs as"),
        "invalid_client_id" => {
            (Kind::Denied, "check the consumer key; a new connected app takes some minutes until it is known")
        }
        "invalid_client" => (Kind::Denied, "check the consumer secret, and that the app allows this flow"),
        "invalid_app_access" => {
            (Kind::Denied, "pre-authorise the user for the connected app by a profile or permission set")
        }
        "unsupported_grant_type" => (Kind::Denied, "enable this OAuth flow in the connected app"),
        "invalid_grant" => (Kind::Denied, invalid_grant_advice(&refusal.error_description)),
        _ => (Kind::Denied, "check the connected app's settings"),
    };
    let said = match (refusal.error.as_str(), refusal.error_description.as_str()) {
        ("", _) => format!("status {status}"),
        (error, "") => error.to_owned(),
        (error, description) => format!("{error} ({description})"),
    };
    Error::new(kind, format!("Salesforce refused the login: {said}; {advice}"))
}

fn invalid_grant_advice(description: &str) -> &'static str {
    let description = description.to_ascii_lowercase();
    let has = |part: &str| description.contains(part);
    if has("audience") {
        "set audience to https://login.salesforce.com, or https://test.salesforce.com for a sandbox org"
    } else if has("ip restricted") {
        "let this machine's address through the profile's login IP ranges, or relax IP restrictions in the connected app"
    } else if has("approved") {
        "pre-authorise the user for the connected app by a profile or permission set"
    } else if has("assertion") || has("expired") {
        "check this machine's clock, and that the connected app has the certificate of the private key"
    } else if has("not supported on this domain") {
        "set login_url to the org's My Domain URL: login.salesforce.com does not take client credentials"
    } else if has("inactive") {
        "activate the user that the connected app runs as"
    } else {
        "check user name, run-as user and connected app; repeated failures lock the user"
    }
}

#[cfg(test)]
#[path = "auth_tests.rs"]
pub(crate) mod tests;
