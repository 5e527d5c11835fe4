//! Logging in, against a small server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Form;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use tokio::task::JoinSet;

use super::*;
use crate::salesforce::http_client;

/// A token endpoint: counts logins and answers `tok<n>`, or the refusal it is told.
#[derive(Default)]
struct Server {
    logins: AtomicUsize,
    refusal: std::sync::Mutex<Option<(u16, &'static str)>>,
    forms: std::sync::Mutex<Vec<Vec<(String, String)>>>,
}

async fn serve(server: Arc<Server>) -> (SocketAddr, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let token = move |Form(form): Form<Vec<(String, String)>>| {
        let server = server.clone();
        async move {
            let n = server.logins.fetch_add(1, Ordering::SeqCst) + 1;
            server.forms.lock().unwrap().push(form);
            let refusal = *server.refusal.lock().unwrap();
            match refusal {
                Some((status, body)) => (StatusCode::from_u16(status).unwrap(), body.to_owned()),
                None => (
                    StatusCode::OK,
                    format!(
                        r#"{{"access_token":"tok{n}","instance_url":"http://{address}/","id":"http://{address}/id/00D000000000001/005000000000001"}}"#
                    ),
                ),
            }
        }
    };
    let userinfo = |headers: HeaderMap| async move {
        assert!(headers["authorization"].to_str().unwrap().starts_with("Bearer tok"));
        r#"{"sub":"x","organization_id":"00D000000000001EAA","user_id":"005000000000001"}"#
    };
    let app = axum::Router::new()
        .route("/services/oauth2/token", post(token))
        .route("/services/oauth2/userinfo", get(userinfo));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, tasks)
}

fn options(address: SocketAddr, flow: Flow) -> AuthOptions {
    AuthOptions {
        login_url: format!("http://{address}"),
        client_id: "key".into(),
        flow,
        instance_url: None,
        timeout: Duration::from_secs(5),
    }
}

fn auth(address: SocketAddr, flow: Flow) -> Auth {
    Auth::new(options(address, flow), http_client(None).unwrap(), crate::clock::system()).unwrap()
}

fn secret() -> Flow {
    Flow::ClientCredentials { client_secret: "s3cret".into() }
}

#[tokio::test]
async fn another_org_than_the_one_named_is_refused() {
    let server = Arc::new(Server::default());
    let (address, _tasks) = serve(server).await;
    let log_in = async |id: &str| {
        let (http, clock) = (http_client(None).unwrap(), crate::clock::system());
        let auth = Auth::for_organization(options(address, secret()), Some(id.into()), http, clock).unwrap();
        auth.session().await
    };
    for same in ["00D000000000001", "00D000000000001EAA", "00D000000000001XXX"] {
        log_in(same).await.unwrap();
    }
    for other in ["00D000000000002", "00D000000000002EAA", "00d000000000001"] {
        let error = log_in(other).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Configuration);
        let said = error.explain();
        assert!(
            said.contains("00D000000000001EAA") && said.contains(other) && said.contains("organization_id"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn another_org_than_the_one_that_was_read_is_a_lost_stream() {
    let server = Arc::new(Server::default());
    let (address, _tasks) = serve(server).await;
    let same = auth(address, secret());
    same.expect_org("00D000000000001");
    let session = same.session().await.unwrap();
    same.refresh(&session).await.unwrap();
    let other = auth(address, secret());
    other.expect_org("00D000000000002EAA");
    let error = other.session().await.unwrap_err();
    assert_eq!(error.kind(), Kind::StreamLost);
    let said = error.explain();
    assert!(["00D000000000001EAA", "00D000000000002EAA", "new log"].iter().all(|word| said.contains(word)), "{said}");
}

#[tokio::test]
async fn a_session_is_shared_and_renewed_once_for_all() {
    let server = Arc::new(Server::default());
    let (address, _tasks) = serve(server.clone()).await;
    let auth = auth(address, secret());
    let session = auth.session().await.unwrap();
    assert_eq!(session.organization_id(), "00D000000000001EAA");
    assert_eq!(session.user_id(), &id18("005000000000001"));
    assert_eq!(session.instance_url(), format!("http://{address}"));
    assert_eq!(auth.session().await.unwrap().token().expose_secret(), "tok1");

    let mut waiting = JoinSet::new();
    for _ in 0..8 {
        let (auth, session) = (auth.clone(), session.clone());
        waiting.spawn(async move { auth.refresh(&session).await.unwrap().token().expose_secret().to_owned() });
    }
    assert!(waiting.join_all().await.iter().all(|token| token == "tok2"));
    assert_eq!(server.logins.load(Ordering::SeqCst), 2);
    assert!(!format!("{auth:?} {session:?}").contains("s3cret"));
    assert!(!format!("{auth:?} {session:?}").contains("tok1"));
}

#[tokio::test]
async fn refusals_say_what_to_do_and_do_not_lock_the_user_out() {
    let server = Arc::new(Server::default());
    let (address, _tasks) = serve(server.clone()).await;
    for (status, body, kind, advice) in [
        (
            400,
            r#"{"error":"invalid_client","error_description":"invalid client credentials"}"#,
            Kind::Denied,
            "consumer secret",
        ),
        (400, r#"{"error":"invalid_grant","error_description":"audience is invalid"}"#, Kind::Denied, "set audience"),
        (400, r#"{"error":"rate_limit_exceeded"}"#, Kind::Limited, "tried again later"),
        (503, "<html>maintenance</html>", Kind::Unavailable, "tried again"),
        (404, "<html></html>", Kind::Configuration, "check login_url"),
        (302, "", Kind::Configuration, "My Domain"),
        (200, "{}", Kind::Protocol, "without a token"),
    ] {
        *server.refusal.lock().unwrap() = Some((status, body));
        let error = auth(address, secret()).session().await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(advice), "{error}");
        assert!(!error.explain().contains("s3cret"));
    }

    *server.refusal.lock().unwrap() =
        Some((400, r#"{"error":"invalid_grant","error_description":"authentication failure"}"#));
    let auth = auth(address, secret());
    let before = server.logins.load(Ordering::SeqCst);
    for _ in 0..5 {
        assert_eq!(auth.session().await.unwrap_err().kind(), Kind::Denied);
    }
    assert_eq!(server.logins.load(Ordering::SeqCst), before + 1);
}

#[tokio::test]
async fn a_jwt_is_signed_with_short_life() {
    // The key is made here, so that none lies in the repository.
    let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
    let pem = {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"))
    };
    let server = Arc::new(Server::default());
    let (address, _tasks) = serve(server.clone()).await;
    let flow = Flow::Jwt {
        username: "sync@example.com".into(),
        audience: "https://login.salesforce.com/".into(),
        private_key: pem.into(),
    };
    auth(address, flow).session().await.unwrap();
    let form = server.forms.lock().unwrap()[0].clone();
    assert_eq!(form[0], ("grant_type".into(), "urn:ietf:params:oauth:grant-type:jwt-bearer".into()));
    assert_eq!(form[1].0, "assertion");
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_audience(&["https://login.salesforce.com"]);
    let public = aws_lc_rs::signature::KeyPair::public_key(&pair);
    let key = jsonwebtoken::DecodingKey::from_rsa_der(public.as_ref());
    let claims = jsonwebtoken::decode::<serde_json::Value>(&form[1].1, &key, &validation).unwrap().claims;
    assert_eq!((claims["iss"].as_str(), claims["sub"].as_str()), (Some("key"), Some("sync@example.com")));
    let life = claims["exp"].as_i64().unwrap() - crate::clock::system().now() / 1_000_000;
    assert!((100..=180).contains(&life), "{life}");
}

#[tokio::test]
async fn a_bad_key_is_told_without_quoting_it() {
    let flow = Flow::Jwt { username: "u".into(), audience: "https://x".into(), private_key: "TOPSECRET".into() };
    let error =
        Auth::new(options(([127, 0, 0, 1], 1).into(), flow), http_client(None).unwrap(), crate::clock::system());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), Kind::Configuration);
    assert!(!error.explain().contains("TOPSECRET"));
}

#[test]
fn identity_urls_are_read() {
    let (organization, user) =
        identity_of("https://login.salesforce.com/id/00D000000000001/005000000000001AAA").unwrap();
    assert_eq!((organization.as_str(), user.as_str()), ("00D000000000001EAA", "005000000000001AAA"));
    assert!(identity_of("https://login.salesforce.com/id/x/y").is_none());
}

/// A login at a small server that runs until the tasks are dropped, for tests of what needs one.
pub(crate) async fn logged_in(tasks: &mut JoinSet<()>) -> Auth {
    let (address, mut serving) = serve(Arc::default()).await;
    tasks.spawn(async move { while serving.join_next().await.is_some() {} });
    auth(address, secret())
}
