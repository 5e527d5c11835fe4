//! From configuration to connections.

use std::path::PathBuf;
use std::time::Duration;

use crate::clock::{self, SharedClock};
use crate::config::{Auth as AuthKind, Config, SslMode as ConfigSslMode};
use crate::error::{Error, Kind, Result};
use crate::postgres::endpoint::{Endpoint, Host, SslMode};
use crate::salesforce::auth::{Auth, AuthOptions, Flow};
use crate::salesforce::http_client;
use crate::salesforce::pubsub::{PubSub, PubSubOptions};
use crate::salesforce::rest::{Rest, RestOptions};

/// The longest that one call to Salesforce may take.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// Where the database is.
pub fn endpoint(config: &Config) -> Endpoint {
    let postgres = &config.postgres;
    let host =
        if postgres.is_socket() { Host::Unix(PathBuf::from(&postgres.host)) } else { Host::Tcp(postgres.host.clone()) };
    Endpoint {
        port: postgres.port,
        password: postgres.password.clone(),
        sslmode: match postgres.sslmode {
            ConfigSslMode::Disable => SslMode::Disable,
            ConfigSslMode::Allow => SslMode::Allow,
            ConfigSslMode::Prefer => SslMode::Prefer,
            ConfigSslMode::Require => SslMode::Require,
            ConfigSslMode::VerifyCa => SslMode::VerifyCa,
            ConfigSslMode::VerifyFull => SslMode::VerifyFull,
        },
        root_cert: postgres.sslrootcert.clone(),
        client_cert: postgres.sslcert.clone(),
        client_key: postgres.sslkey.clone(),
        connect_timeout: Duration::from_secs(postgres.connect_timeout_seconds.into()),
        application_name: "tidelock".into(),
        ..Endpoint::new(host, &postgres.dbname, &postgres.user)
    }
}

/// The ways into an org.
#[derive(Clone)]
pub struct Org {
    /// REST.
    pub rest: Rest,
    /// The Pub/Sub API.
    pub pubsub: PubSub,
}

/// How to reach the org. Nothing is sent yet.
pub fn salesforce(config: &Config) -> Result<Org> {
    salesforce_with(config, clock::system())
}

fn salesforce_with(config: &Config, clock: SharedClock) -> Result<Org> {
    let settings = &config.salesforce;
    let extra_ca_pem = match &settings.ca_certificate {
        Some(path) => Some(std::fs::read(path).map_err(|e| {
            Error::new(Kind::Configuration, format!("[salesforce] ca_certificate: cannot read {}", path.display()))
                .caused_by(e)
        })?),
        None => None,
    };
    let missing = |what: &str| Error::new(Kind::Configuration, format!("[salesforce] has no {what}"));
    let flow = match settings.auth {
        AuthKind::ClientCredentials => Flow::ClientCredentials {
            client_secret: settings
                .client_secret
                .clone()
                .ok_or_else(|| missing("client_secret_env or client_secret_file"))?,
        },
        AuthKind::Jwt => Flow::Jwt {
            username: settings.username.clone().ok_or_else(|| missing("username"))?,
            audience: settings.audience.clone().unwrap_or_else(|| settings.login_url.clone()),
            private_key: settings.private_key.clone().ok_or_else(|| missing("private_key_file"))?,
        },
    };
    let options = AuthOptions {
        login_url: settings.login_url.clone(),
        client_id: settings.client_id.clone(),
        flow,
        instance_url: None,
        timeout: CALL_TIMEOUT,
    };
    let http = http_client(extra_ca_pem.as_deref())?;
    let auth = Auth::for_organization(options, settings.organization_id.clone(), http.clone(), clock.clone())?;
    let rest = Rest::new(
        auth.clone(),
        http,
        clock,
        RestOptions {
            api_version: settings.api_version.clone(),
            client_name: settings.client_name.clone(),
            timeout: CALL_TIMEOUT,
        },
    )?;
    let pubsub = PubSub::new(
        PubSubOptions { endpoint: settings.pubsub_endpoint.clone(), extra_ca_pem, ..PubSubOptions::default() },
        auth,
    )?;
    Ok(Org { rest, pubsub })
}
