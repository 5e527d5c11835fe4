//! Clients that others wrote, unmodified, against the sandbox: simple-salesforce, jsforce, salesforce-pubsub-api-client.
//!
//! They are installed once into a folder beside the build's output. Where they cannot be installed (no network, no
//! Python, no Node.js) the test says so and passes, unless `TIDELOCK_REQUIRE_CLIENTS` is set.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidelock::sandbox::{Client, Config, Person, Running, Sandbox};
use tokio_util::sync::CancellationToken;

use super::link::say_skipped;

const USERNAME: &str = "ann.admin@sandbox.example";
const PASSWORD: &str = "a password for tests";
const INSTALL_TIMEOUT: Duration = Duration::from_mins(5);
const RUN_TIMEOUT: Duration = Duration::from_mins(2);

/// The folder of the scripts.
fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// A folder beside the build's output that is kept between runs.
fn cache(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs a command and gives its output, or why it failed.
async fn run(command: &mut Command, patience: Duration) -> Result<String, String> {
    let log = tempfile::NamedTempFile::new().map_err(|e| e.to_string())?;
    let sink = || log.reopen().map_err(|e| e.to_string());
    let child = command.stdin(Stdio::null()).stdout(sink()?).stderr(sink()?).spawn();
    let mut child = child.map_err(|e| e.to_string())?;
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill().map_err(|e| e.to_string())?;
                child.wait().map_err(|e| e.to_string())?;
                break None;
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let output = std::fs::read_to_string(log.path()).map_err(|e| e.to_string())?;
    match status {
        Some(status) if status.success() => Ok(output),
        Some(status) => Err(format!("{status}\n{output}")),
        None => Err(format!("it took too long\n{output}")),
    }
}

/// Whether an installation is there; a failure is loud, and fatal where clients are required.
fn installed(what: &str, outcome: Result<String, String>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(why) => {
            assert!(std::env::var_os("TIDELOCK_REQUIRE_CLIENTS").is_none(), "{what} cannot be installed: {why}");
            say_skipped(&format!("{what} cannot be installed, so it was NOT tested against the sandbox: {why}"));
            false
        }
    }
}

async fn sandbox() -> (Running, PathBuf) {
    let config = Config {
        clients: vec![Client::new("app", "app-secret", "integration@sandbox.example")],
        users: vec![Person::named("Ann Admin").with_password(PASSWORD)],
        ..Config::default()
    };
    let running = Sandbox::start(config, CancellationToken::new()).await.unwrap();
    let certificate = cache("certificates").join(format!("{}.pem", running.address.port()));
    std::fs::write(&certificate, &running.certificate_pem).unwrap();
    (running, certificate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simple_salesforce_works_against_the_sandbox() {
    let folder = cache("python");
    let marker = folder.join("simple_salesforce/__init__.py");
    let requirements = scripts().join("requirements.txt");
    let outcome = if marker.exists() {
        Ok(String::new())
    } else {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]).arg(&folder);
        run(pip.arg("-r").arg(requirements), INSTALL_TIMEOUT).await
    };
    if !installed("simple-salesforce", outcome) {
        return;
    }
    let (running, certificate) = sandbox().await;
    let mut python = Command::new("python3");
    python.arg(scripts().join("rows.py")).args([&running.https_url(), USERNAME, PASSWORD]);
    python.env("PYTHONPATH", &folder).env("PYTHONDONTWRITEBYTECODE", "1").env("REQUESTS_CA_BUNDLE", &certificate);
    let output = run(&mut python, RUN_TIMEOUT).await;
    std::fs::remove_file(&certificate).unwrap();
    running.stop().await.unwrap();
    assert!(output.unwrap().contains("all is well"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pubsub_client_and_jsforce_work_against_the_sandbox() {
    let folder = cache("node");
    std::fs::copy(scripts().join("package.json"), folder.join("package.json")).unwrap();
    std::fs::copy(scripts().join("events.mjs"), folder.join("events.mjs")).unwrap();
    let marker = folder.join("node_modules/salesforce-pubsub-api-client/package.json");
    let outcome = if marker.exists() && folder.join("node_modules/jsforce/package.json").exists() {
        Ok(String::new())
    } else {
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
            "--loglevel",
            "error",
        ]);
        run(npm.current_dir(&folder), INSTALL_TIMEOUT).await
    };
    if !installed("salesforce-pubsub-api-client", outcome) {
        return;
    }
    let (running, certificate) = sandbox().await;
    let mut node = Command::new("node");
    node.current_dir(&folder).arg("events.mjs").env("NODE_EXTRA_CA_CERTS", &certificate);
    node.args([running.https_url().as_str(), "app", "app-secret", USERNAME, PASSWORD]);
    let output = run(&mut node, RUN_TIMEOUT).await;
    std::fs::remove_file(&certificate).unwrap();
    running.stop().await.unwrap();
    assert!(output.unwrap().contains("all is well"));
}
