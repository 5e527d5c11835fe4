//! `tidelock sandbox`: a stand-in org to try a mapping against.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::Result;
use crate::sandbox::{Client, Config, OrgFile, Sandbox, Seed, random_org_id};

use super::Verdict;
use super::output::{self, Output};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where to listen: REST and Pub/Sub, plain and TLS, on one port.
    #[arg(long, default_value = "127.0.0.1:8380")]
    listen: SocketAddr,
    /// A file with custom objects, fields, flows, users and OAuth clients (docs/sandbox.md).
    #[arg(long)]
    org: Option<PathBuf>,
    /// The org's id, 15 or 18 characters; without it, each start is another org.
    #[arg(long)]
    org_id: Option<String>,
    /// Believable accounts to begin with; contacts, opportunities and cases follow in proportion.
    #[arg(long, default_value_t = 100)]
    accounts: u32,
    /// Makes the records; the same seed makes the same ones.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long events are kept, in seconds.
    #[arg(long, default_value_t = 72 * 3_600)]
    retention_seconds: u64,
    /// How often an idle subscription is told that it is alive, in seconds.
    #[arg(long, default_value_t = 270)]
    keepalive_seconds: u64,
    /// How long an access token lives, in seconds.
    #[arg(long, default_value_t = 7_200)]
    token_seconds: u64,
    /// API requests a day.
    #[arg(long, default_value_t = 5_000_000)]
    daily_requests: u64,
    /// Where to write the certificate that TLS clients are to trust.
    #[arg(long)]
    certificate: Option<PathBuf>,
}

/// The client that a sandbox knows unless its org file names others.
pub(crate) const CLIENT_ID: &str = "tidelock";
/// Its secret.
pub(crate) const CLIENT_SECRET: &str = "sandbox-secret";

pub(super) async fn run(arguments: Arguments, output: Output, cancel: CancellationToken) -> Result<Verdict> {
    let org = arguments.org.as_deref().map(OrgFile::load).transpose()?.unwrap_or_default();
    let of_file: Vec<String> = org.clients.iter().map(|client| client.client_id.clone()).collect();
    let n = arguments.accounts;
    let seed = Seed { seed: arguments.seed, accounts: n, contacts: n * 3, opportunities: n, cases: n };
    let config = Config {
        listen: arguments.listen,
        org_id: arguments.org_id.map_or_else(random_org_id, Ok)?,
        clients: if of_file.is_empty() {
            vec![Client::new(CLIENT_ID, CLIENT_SECRET, "integration@example.com")]
        } else {
            Vec::new()
        },
        org,
        seed,
        retention: Duration::from_secs(arguments.retention_seconds),
        keepalive: Duration::from_secs(arguments.keepalive_seconds),
        token_lifetime: Duration::from_secs(arguments.token_seconds),
        daily_requests: arguments.daily_requests,
        ..Config::default()
    };
    let running = Sandbox::start(config, cancel.child_token()).await?;
    if let Some(path) = &arguments.certificate {
        std::fs::write(path, &running.certificate_pem).map_err(|e| {
            crate::error::Error::new(crate::error::Kind::Storage, format!("cannot write {}", path.display()))
                .caused_by(e)
        })?;
    }
    let address = running.address;
    if output.is_json() {
        let clients: Vec<_> = if of_file.is_empty() {
            vec![json!({ "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET })]
        } else {
            of_file.iter().map(|id| json!({ "client_id": id })).collect()
        };
        output::json(&json!({ "address": address.to_string(), "org_id": running.org_id(), "clients": clients }))?;
    } else {
        let id = running.org_id();
        output::line(&format!(
            "sandbox org {id} at http://{address} and https://{address} (REST and Pub/Sub on one port)"
        ))?;
        output::line(&if of_file.is_empty() {
            format!("OAuth client credentials: client_id {CLIENT_ID}, client_secret {CLIENT_SECRET}")
        } else {
            format!("OAuth clients, with the secrets or keys of the org file: {}", of_file.join(", "))
        })?;
        output::line(&format!("admin endpoint: http://{address}/sandbox; Ctrl-C stops it"))?;
    }
    cancel.cancelled().await;
    running.stop().await?;
    Ok(Verdict::Good)
}
