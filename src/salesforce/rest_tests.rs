//! Calls against a small server.

use std::sync::Mutex;

use axum::extract::Request;
use axum::http::{Response, StatusCode};
use tokio::task::JoinSet;

use super::*;
use crate::salesforce::auth::{AuthOptions, Flow};
use crate::salesforce::http_client;

/// The calls that a server saw.
pub(crate) type Seen = Arc<Mutex<Vec<String>>>;

/// A server that logs in everybody and answers calls by `answer(path and query, token)`.
pub(crate) async fn serve(
    answer: impl Fn(&str, &str) -> (u16, String) + Clone + Send + Sync + 'static,
) -> (Rest, Seen, JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    let log = seen.clone();
    let logins = Arc::new(AtomicU64::new(0));
    let app = axum::Router::new().fallback(move |request: Request| {
        let (answer, log, logins) = (answer.clone(), log.clone(), logins.clone());
        async move {
            let header = |name: &str| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
            let uri = request.uri().to_string();
            let (status, body) = match request.uri().path() {
                "/services/oauth2/token" => {
                    let n = logins.fetch_add(1, Ordering::SeqCst) + 1;
                    (200, format!(r#"{{"access_token":"tok{n}","instance_url":"http://{address}","id":"x/id/00D000000000001/005000000000001"}}"#))
                }
                "/services/oauth2/userinfo" => (403, String::new()),
                _ => {
                    log.lock().unwrap().push(format!(
                        "{} {uri} {} {}",
                        request.method(),
                        header("sforce-call-options"),
                        header("sforce-auto-assign")
                    ));
                    answer(&uri, header("authorization").trim_start_matches("Bearer "))
                }
            };
            Response::builder()
                .status(StatusCode::from_u16(status).unwrap())
                .header("Sforce-Limit-Info", "api-usage=18/15000; per-app-api-usage=17/250(appName=x)")
                .body(axum::body::Body::from(body))
                .unwrap()
        }
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
    let options = AuthOptions {
        login_url: format!("http://{address}"),
        client_id: "key".into(),
        flow: Flow::ClientCredentials { client_secret: "secret".into() },
        instance_url: None,
        timeout: Duration::from_secs(5),
    };
    let (http, clock) = (http_client(None).unwrap(), crate::clock::system());
    let auth = Auth::new(options, http.clone(), clock.clone()).unwrap();
    let options =
        RestOptions { api_version: "66.0".into(), client_name: "tidelock-x".into(), timeout: Duration::from_secs(5) };
    (Rest::new(auth, http, clock, options).unwrap(), seen, tasks)
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let expired = r#"[{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]"#;
    let (rest, seen, _tasks) =
        serve(move |_, token| if token == "tok1" { (401, expired.into()) } else { (200, "{}".into()) }).await;
    assert_eq!(rest.get("limits", &[]).await.unwrap().status, 200);
    assert_eq!(*seen.lock().unwrap(), ["GET /services/data/v66.0/limits client=tidelock-x FALSE"; 2]);
    assert_eq!((rest.usage().used(), rest.usage().limit(), rest.usage().calls()), (18, 15_000, 2));
    assert!(rest.clock_offset().ahead().unwrap().abs() < 2_000_000);
}

#[tokio::test]
async fn a_token_that_is_never_taken_is_denied() {
    let expired = r#"[{"message":"Session expired or invalid","errorCode":"INVALID_SESSION_ID"}]"#;
    let (rest, seen, _tasks) = serve(move |_, _| (401, expired.into())).await;
    assert_eq!(Error::from(rest.get("limits", &[]).await.unwrap_err()).kind(), Kind::Denied);
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn queries_are_paged() {
    let (rest, seen, _tasks) = serve(|uri, _| {
        let body = match uri.strip_prefix("/services/data/v66.0/").unwrap() {
            "queryAll?q=SELECT+Id+FROM+A" => {
                r#"{"totalSize":2,"done":false,"nextRecordsUrl":"/services/data/v66.0/query/01g-1","records":[{"attributes":{"type":"A"},"Id":"1"}]}"#
            }
            "query/01g-1" => r#"{"totalSize":2,"done":true,"records":[{"attributes":{"type":"A"},"Id":"2"}]}"#,
            other => panic!("{other}"),
        };
        (200, body.into())
    })
    .await;
    let first = rest.query(Rows::All, "SELECT Id FROM A").await.unwrap();
    assert_eq!((first.total, first.records.len()), (2, 1));
    assert_eq!(first.records[0]["Id"], "1");
    assert!(!first.records[0].contains_key("attributes"));
    let second = rest.query_more(&first.next.unwrap()).await.unwrap();
    assert_eq!((second.records[0]["Id"].as_str(), second.next), (Some("2"), None));
    assert!(rest.query_more("https://elsewhere/").await.is_err());
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn retrieve_keeps_the_order_and_tells_what_is_not_there() {
    let (rest, _seen, _tasks) = serve(|_, _| (200, r#"[{"attributes":{},"Id":"a"},null]"#.into())).await;
    let records = rest.retrieve("Account", &["a", "b"], &["Id"]).await.unwrap();
    assert_eq!(records[0].as_ref().unwrap()["Id"], "a");
    assert!(records[1].is_none());
    assert!(rest.retrieve("Account", &["a"], &["Id"]).await.is_err());
}

#[tokio::test]
async fn an_answer_that_is_refused_is_typed() {
    let (rest, _seen, _tasks) =
        serve(|_, _| (400, r#"[{"message":"No such column","errorCode":"INVALID_FIELD","fields":["X__c"]}]"#.into()))
            .await;
    match rest.get("query", &[]).await {
        Err(RestError::Api(api)) => {
            assert_eq!((api.code.as_str(), api.fields[0].as_str()), ("INVALID_FIELD", "X__c"));
            assert_eq!(api.kind(), Kind::Configuration);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_of_every_shape_are_read() {
    let html = parse_error(503, b"<html><head><TITLE>Down for maintenance </TITLE></head></html>");
    assert_eq!((html.code.as_str(), html.kind()), ("HTTP_503", Kind::Unavailable));
    assert!(html.message.contains("Down for maintenance"));
    let object = parse_error(400, br#"{"error":"invalid_grant","error_description":"no"}"#);
    assert_eq!((object.code.as_str(), object.message.as_str()), ("invalid_grant", "no"));
    let item = parse_error(400, br#"[{"statusCode":"UNABLE_TO_LOCK_ROW","message":"busy"}]"#);
    assert_eq!((item.code.as_str(), item.kind()), ("UNABLE_TO_LOCK_ROW", Kind::Unavailable));
    let limit =
        parse_error(403, br#"[{"errorCode":"REQUEST_LIMIT_EXCEEDED","message":"TotalRequests Limit exceeded."}]"#);
    assert_eq!(limit.kind(), Kind::Limited);
    for (status, body, kind) in [
        (420, &b""[..], Kind::Unavailable),
        (429, b"[]", Kind::Unavailable),
        (403, b"null", Kind::Denied),
        (400, b"\xff\xfe", Kind::Refused),
        (302, b"", Kind::Configuration),
    ] {
        assert_eq!(parse_error(status, body).kind(), kind, "{status}");
    }
}

#[test]
fn limit_headers_are_read() {
    assert_eq!(parse_limit_info("api-usage=18/15000"), Some((18, 15_000)));
    assert_eq!(parse_limit_info("per-app-api-usage=17/250(appName=x); api-usage=18/15000"), Some((18, 15_000)));
    assert_eq!(parse_limit_info("api-usage=x/y"), None);
}

#[test]
fn path_segments_are_encoded() {
    assert_eq!(encode_segment("a b/c?é"), "a%20b%2Fc%3F%C3%A9");
}
