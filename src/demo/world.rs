//! A database, an org, and a configuration that joins them.

use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::postgres::endpoint::{Endpoint, Host};
use crate::sandbox::{self, Client, Running, Sandbox, Seed};

use super::guardian::Guardian;
use super::server::{PostgresServer, ServerSettings};

/// The integration user's OAuth client.
const CLIENT: (&str, &str) = ("tidelock-demo", "not-a-secret");

/// How large the org is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Accounts.
    pub accounts: u32,
    /// Contacts.
    pub contacts: u32,
    /// Opportunities.
    pub opportunities: u32,
    /// Cases.
    pub cases: u32,
}

/// A database and an org to join. Dropping it ends both and removes their files.
pub struct World {
    /// The database server.
    pub server: PostgresServer,
    /// The org.
    pub org: Running,
    /// Where configuration and log are.
    pub directory: Scratch,
}

/// A folder that is removed when dropped, or when the program ends in any other way (as far as there is a shell to do it).
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _guardian: Option<Guardian>,
}

impl Scratch {
    /// Makes a folder under the system's one for temporary files.
    pub fn new(name: &str) -> Result<Self> {
        let mut random = [0_u8; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Error::new(Kind::Internal, "no randomness"))?;
        let path = std::env::temp_dir().join(format!("{name}-{:016x}", u64::from_be_bytes(random)));
        std::fs::create_dir(&path)
            .map_err(|e| Error::new(Kind::Storage, format!("cannot make {}", path.display())).caused_by(e))?;
        // A container without a shell has none: there, only an orderly end removes the folder.
        let guardian = Guardian::over(&path)
            .inspect_err(|error| tracing::debug!(error = error.explain(), "a folder has no guardian"))
            .ok();
        Ok(Self { path, _guardian: guardian })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to the system's own cleaning.
        drop(std::fs::remove_dir_all(&self.path));
    }
}

impl World {
    /// Starts a server and an org of the given size.
    pub async fn start(size: Size, cancel: &CancellationToken) -> Result<Self> {
        let directory = Scratch::new("tidelock-demo")?;
        let server = PostgresServer::start(ServerSettings::default()).await?;
        let org = Sandbox::start(
            sandbox::Config {
                clients: vec![Client::new(CLIENT.0, CLIENT.1, "integration@example.com")],
                seed: Seed {
                    seed: 7,
                    accounts: size.accounts,
                    contacts: size.contacts,
                    opportunities: size.opportunities,
                    cases: size.cases,
                },
                keepalive: std::time::Duration::from_secs(2),
                ..sandbox::Config::default()
            },
            cancel.child_token(),
        )
        .await?;
        Ok(Self { server, org, directory })
    }

    /// The configuration file's text, as a person would write it.
    pub fn configuration(&self, mappings: &str) -> String {
        let Endpoint { host, port, database, user, .. } = self.server.endpoint();
        let host = match host {
            Host::Unix(path) => path.display().to_string(),
            Host::Tcp(host) => host,
        };
        let (url, log) = (self.org.url(), self.directory.path().join("log"));
        let secret = self.directory.path().join("client_secret");
        format!(
            r#"[link]
name = "demo"
log = "{log}"

[postgres]
host = "{host}"
port = {port}
dbname = "{database}"
user = "{user}"

[salesforce]
login_url = "{url}"
pubsub_endpoint = "{url}"
auth = "client_credentials"
client_id = "{client}"
client_secret_file = "{secret}"

[http]
listen = "off"

{mappings}"#,
            log = log.display(),
            client = CLIENT.0,
            secret = secret.display(),
        )
    }

    /// Writes the configuration file and reads it as `tidelock run` would.
    pub fn configure(&self, mappings: &str) -> Result<(PathBuf, Config)> {
        let path = self.directory.path().join("tidelock.toml");
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text)
                .map_err(|e| Error::new(Kind::Storage, format!("cannot write {}", path.display())).caused_by(e))
        };
        write(&self.directory.path().join("client_secret"), CLIENT.1)?;
        write(&path, &self.configuration(mappings))?;
        let config = Config::load(&path).map_err(|errors| Error::new(Kind::Configuration, errors.to_string()))?;
        Ok((path, config))
    }
}
