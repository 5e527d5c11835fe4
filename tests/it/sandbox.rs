//! `tidelock sandbox`, and the examples of docs/sandbox.md.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value as Json, json};
use tidelock::demo::server::{PostgresServer, ServerSettings};

use super::link::{complaint, printed};

struct Sandbox {
    process: Child,
    said: Json,
}

impl Sandbox {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelock"));
        command.args(["sandbox", "--listen", "127.0.0.1:0", "--output", "json"]).args(arguments);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, said: serde_json::from_str(&line).unwrap() }
    }

    fn url(&self) -> String {
        format!("http://{}", self.said["address"].as_str().unwrap())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

async fn logs_in(url: &str, id: &str, secret: &str) -> bool {
    let form = [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret)];
    let asked = reqwest::Client::new().post(format!("{url}/services/oauth2/token")).form(&form).send();
    asked.await.unwrap().status().is_success()
}

/// The example of the document that begins with this comment.
fn example(first_line: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sandbox.md");
    let text = std::fs::read_to_string(path).unwrap();
    let start = text.find(&format!("```toml\n{first_line}\n")).unwrap() + "```toml\n".len();
    text[start..].split("```").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_login_that_is_printed_works() {
    let sandbox = Sandbox::start(&["--accounts", "1"]);
    let client = &sandbox.said["clients"][0];
    let (id, secret) = (client["client_id"].as_str().unwrap(), client["client_secret"].as_str().unwrap());
    assert!(logs_in(&sandbox.url(), id, secret).await);

    let folder = tempfile::tempdir().unwrap();
    let org = folder.path().join("org.toml");
    std::fs::write(&org, "[[clients]]\nclient_id = \"mine\"\nclient_secret = \"s\"\nusername = \"a@b.example\"\n")
        .unwrap();
    let sandbox = Sandbox::start(&["--org", org.to_str().unwrap()]);
    assert_eq!(sandbox.said["clients"], json!([{ "client_id": "mine" }]), "those of the file and no others");
    assert!(logs_in(&sandbox.url(), "mine", "s").await);
    assert!(!logs_in(&sandbox.url(), id, secret).await);
}

/// Nothing of an org that was stopped is in the next one, so no link may take it for the same.
#[test]
fn each_start_is_another_org_unless_it_is_given_an_id() {
    let id = |arguments: &[&str]| Sandbox::start(arguments).said["org_id"].as_str().unwrap().to_owned();
    let (one, other) = (id(&["--accounts", "1"]), id(&["--accounts", "1"]));
    assert!(one.starts_with("00D") && one.len() == 18 && one != other, "{one} {other}");
    assert_eq!(id(&["--accounts", "1", "--org-id", "00D000000000007"]), "00D000000000007EAA");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_of_the_document_work() {
    let folder = tempfile::tempdir().unwrap();
    let org = folder.path().join("org.toml");
    std::fs::write(&org, example("# org.toml")).unwrap();
    let sandbox = Sandbox::start(&["--org", org.to_str().unwrap(), "--accounts", "5"]);
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    let config = folder.path().join("tidelock.toml");
    let database = format!(
        "host = \"{}\"\nport = {}\ndbname = \"postgres\"\nuser = \"postgres\"",
        server.directory().display(),
        server.port()
    );
    let text = example("# tidelock.toml")
        .replace("http://127.0.0.1:8380", &sandbox.url())
        .replace("url = \"postgresql://postgres@localhost:5432/postgres\"", &database);
    assert!(text.contains(&database) && text.contains(&sandbox.url()), "{text}");
    std::fs::write(&config, text).unwrap();
    std::fs::write(folder.path().join("client_secret"), "my-secret").unwrap();
    for arguments in [&["init"][..], &["check"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_tidelock")).arg("--config").arg(&config).args(arguments).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}{}", printed(&output), complaint(&output));
    }

    let client = reqwest::Client::new();
    let send = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.unwrap();
        let (good, text) = (answer.status().is_success(), answer.text().await.unwrap());
        assert!(good, "{text}");
        serde_json::from_str::<Json>(&text).unwrap()
    };
    let operations = json!([{ "op": "create", "object": "Account", "fields": { "Name": "Acme", "Phone": "1" } }]);
    let body = json!({ "user": "Maria Keller", "operations": operations }).to_string();
    send(client.post(format!("{}/sandbox/commit", sandbox.url())).body(body)).await;
    let dump = send(client.get(format!("{}/sandbox/dump/Account", sandbox.url()))).await;
    let acme = dump["records"].as_array().unwrap().iter().find(|r| r["Name"] == "Acme").unwrap();
    assert_eq!((&acme["Site"], &acme["Tier__c"]), (&json!("ACME"), &json!("Silver")));
    let faults = json!({ "error_503": 0.2, "duplicate_events": 0.5, "apply_then_drop_probability": 0.1 }).to_string();
    let faults = send(client.patch(format!("{}/sandbox/faults", sandbox.url())).body(faults)).await;
    assert_eq!(faults["duplicate_events"], 0.5);
}
