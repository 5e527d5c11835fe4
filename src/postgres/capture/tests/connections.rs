//! Logging in: ways of authentication, TLS at every level of trust, and what errors say.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secrecy::SecretString;

use super::*;
use crate::demo::server::ServerTls;
use crate::error::{Error, Kind};
use crate::postgres::{Endpoint, Host, Session, SslMode, wire};

/// Opens both kinds of connection; they must agree.
async fn connect(endpoint: &Endpoint) -> Result<bool> {
    let ordinary = Session::open(endpoint).await;
    let replication = wire::connect(endpoint).await;
    match (ordinary, replication) {
        (Ok(session), Ok(mut replication)) => {
            let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
            let encrypted: bool = session.query_one(sql, &[]).await.unwrap().get(0);
            let rows = replication.simple_query(sql).await.unwrap();
            assert_eq!(rows, [[Some(if encrypted { "t" } else { "f" }.to_owned())]]);
            assert!(replication.parameter("server_version").is_some());
            Ok(encrypted)
        }
        (Err(ordinary), Err(replication)) => {
            assert_eq!(ordinary.kind(), replication.kind(), "{ordinary} / {replication}");
            Err(replication)
        }
        (Err(error), Ok(_)) => panic!("only replication was let in: {}", error.explain()),
        (Ok(_), Err(error)) => panic!("only the ordinary session was let in: {}", error.explain()),
    }
}

fn with_password(endpoint: &Endpoint, password: Option<&str>) -> Endpoint {
    Endpoint { password: password.map(SecretString::from), ..endpoint.clone() }
}

#[tokio::test]
async fn passwords_are_given_as_the_server_asks() {
    let hba = "local all postgres trust\n\
               local replication postgres trust\n\
               host all clear 127.0.0.1/32 password\n\
               host all hashed 127.0.0.1/32 md5\n\
               host all salted 127.0.0.1/32 scram-sha-256\n";
    let server = PostgresServer::start(ServerSettings::default().with_hba(hba)).await.unwrap();
    server
        .execute(
            "SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'se cret'; \
             SET password_encryption = 'scram-sha-256'; CREATE ROLE clear LOGIN REPLICATION PASSWORD 'se cret'; \
             CREATE ROLE salted LOGIN REPLICATION PASSWORD 'se cret'",
        )
        .await
        .unwrap();
    for user in ["clear", "hashed", "salted"] {
        let mut endpoint = server.tcp_endpoint();
        endpoint.user = user.into();
        assert!(!connect(&with_password(&endpoint, Some("se cret"))).await.unwrap(), "{user}");
        let wrong = connect(&with_password(&endpoint, Some("wrong"))).await.unwrap_err();
        assert_eq!(wrong.kind(), Kind::Denied, "{user}");
        assert!(wrong.to_string().contains("check the user and the password"), "{wrong}");
        assert!(!wrong.explain().contains("wrong"), "no password in an error");
        let none = connect(&with_password(&endpoint, None)).await.unwrap_err();
        assert_eq!(none.kind(), Kind::Denied, "{user}: {none}");
        assert!(none.to_string().contains("password"), "{none}");
    }
    let mut stranger = server.tcp_endpoint();
    stranger.user = "stranger".into();
    let refused = connect(&stranger).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Denied);
    assert!(refused.to_string().contains("pg_hba.conf"), "{refused}");
    let nowhere = connect(&server.endpoint().with_database("nowhere")).await.unwrap_err();
    assert_eq!(nowhere.kind(), Kind::Configuration);
    assert!(nowhere.to_string().contains("database's name"), "{nowhere}");
}

#[tokio::test]
async fn servers_that_are_not_there_are_unavailable() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut endpoint = Endpoint::new(Host::Tcp("127.0.0.1".into()), "d", "u");
    endpoint.port = port;
    let refused = connect(&endpoint).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable);
    assert!(refused.to_string().contains("is running"), "{refused}");
    endpoint.host = Host::Unix("/nonexistent".into());
    assert_eq!(connect(&endpoint).await.unwrap_err().kind(), Kind::Unavailable);
    // One that takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    endpoint.host = Host::Tcp("127.0.0.1".into());
    endpoint.port = silent.local_addr().unwrap().port();
    endpoint.connect_timeout = Duration::from_millis(200);
    let late = connect(&endpoint).await.unwrap_err();
    assert_eq!(late.kind(), Kind::Unavailable);
    assert!(late.to_string().contains("connect_timeout"), "{late}");
}

#[tokio::test]
async fn a_role_without_replication_is_told_what_it_lacks() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    server.execute("CREATE ROLE plain LOGIN").await.unwrap();
    let mut endpoint = server.endpoint();
    endpoint.user = "plain".into();
    Session::open(&endpoint).await.unwrap();
    let denied = wire::connect(&endpoint).await.err().unwrap();
    assert_eq!(denied.kind(), Kind::Denied);
    assert!(denied.to_string().contains("REPLICATION"), "{denied}");
}

/// Certificates in files.
struct Certificates {
    directory: tempfile::TempDir,
    server: ServerTls,
}

impl Certificates {
    /// An authority, a server certificate for `name` of it, and one for a client.
    fn new(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority_key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let client_key = KeyPair::generate().unwrap();
        let mut client = CertificateParams::new(Vec::new()).unwrap();
        client.distinguished_name.push(rcgen::DnType::CommonName, "certified");
        let client = client.signed_by(&client_key, &issuer).unwrap();
        let other_key = KeyPair::generate().unwrap();
        let other = CertificateParams::new(vec!["other".to_owned()]).unwrap().self_signed(&other_key).unwrap();
        for (file, pem) in [
            ("ca.pem", &authority_pem),
            ("server.pem", &cert.pem()),
            ("client.pem", &client.pem()),
            ("client.key", &client_key.serialize_pem()),
            ("other.pem", &other.pem()),
        ] {
            std::fs::write(directory.path().join(file), pem).unwrap();
        }
        let server = ServerTls {
            cert_pem: cert.pem(),
            key_pem: SecretString::from(key.serialize_pem()),
            client_ca_pem: Some(authority_pem),
        };
        Self { directory, server }
    }

    fn path(&self, file: &str) -> PathBuf {
        Path::join(self.directory.path(), file)
    }
}

fn with_tls(server: &PostgresServer, host: &str, sslmode: SslMode, root_cert: Option<PathBuf>) -> Endpoint {
    Endpoint { host: Host::Tcp(host.into()), sslmode, root_cert, ..server.tcp_endpoint() }
}

#[tokio::test]
async fn tls_is_used_as_sslmode_says() {
    use SslMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let certificates = Certificates::new("localhost");
    let server = PostgresServer::start(ServerSettings::default().with_tls(certificates.server.clone())).await.unwrap();
    let (ca, other, own) =
        (certificates.path("ca.pem"), certificates.path("other.pem"), certificates.path("server.pem"));
    // By 127.0.0.1 the certificate's name does not fit.
    for (host, mode, root, encrypted) in [
        ("127.0.0.1", Disable, None, Some(false)),
        ("127.0.0.1", Allow, None, Some(false)),
        ("127.0.0.1", Prefer, None, Some(true)),
        ("127.0.0.1", Require, None, Some(true)),
        ("127.0.0.1", Require, Some(&ca), Some(true)),
        ("127.0.0.1", Require, Some(&other), None),
        ("127.0.0.1", VerifyCa, Some(&ca), Some(true)),
        ("127.0.0.1", VerifyCa, Some(&own), Some(true)),
        ("127.0.0.1", VerifyCa, Some(&other), None),
        ("127.0.0.1", VerifyCa, None, None),
        ("127.0.0.1", VerifyFull, Some(&ca), None),
        ("localhost", VerifyFull, Some(&ca), Some(true)),
        ("localhost", VerifyFull, Some(&own), Some(true)),
        ("localhost", VerifyFull, Some(&other), None),
    ] {
        let endpoint = with_tls(&server, host, mode, root.cloned());
        match (connect(&endpoint).await, encrypted) {
            (Ok(is), Some(expected)) => assert_eq!(is, expected, "{host} {mode:?} {root:?}"),
            (Err(error), None) => {
                assert_eq!(error.kind(), Kind::Configuration, "{host} {mode:?} {root:?}: {}", error.explain());
                assert!(error.to_string().contains("sslrootcert"), "{error}");
            }
            (Ok(_), None) => panic!("{host} {mode:?} {root:?} was accepted"),
            (Err(error), Some(_)) => panic!("{host} {mode:?} {root:?}: {}", error.explain()),
        }
    }
    let rootless = connect(&with_tls(&server, "127.0.0.1", VerifyCa, None)).await.unwrap_err();
    assert!(rootless.to_string().contains("verify-full"), "{rootless}");
    let missing = with_tls(&server, "localhost", VerifyFull, Some("/nonexistent.pem".into()));
    assert_eq!(connect(&missing).await.unwrap_err().kind(), Kind::Configuration);
    // By the Unix socket it makes no difference.
    let local = Endpoint { sslmode: VerifyFull, ..server.endpoint() };
    assert!(!connect(&local).await.unwrap());
}

#[tokio::test]
async fn a_server_that_lets_in_only_with_or_without_tls_is_met_half_way() {
    let certificates = Certificates::new("localhost");
    let hba = "local all postgres trust\nlocal replication postgres trust\n\
               hostssl all secure 127.0.0.1/32 trust\nhostnossl all open 127.0.0.1/32 trust\n\
               hostssl all certified 127.0.0.1/32 cert\n";
    let settings = ServerSettings::default().with_hba(hba).with_tls(certificates.server.clone());
    let server = PostgresServer::start(settings).await.unwrap();
    for role in ["secure", "open", "certified"] {
        server.execute(&format!("CREATE ROLE {role} LOGIN REPLICATION")).await.unwrap();
    }
    let to = |user: &str, sslmode: SslMode| {
        let endpoint = with_tls(&server, "127.0.0.1", sslmode, None);
        Endpoint { user: user.into(), ..endpoint }
    };
    let refused = |result: Result<bool>| -> Error {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        error
    };
    assert!(connect(&to("secure", SslMode::Allow)).await.unwrap());
    assert!(connect(&to("secure", SslMode::Prefer)).await.unwrap());
    refused(connect(&to("secure", SslMode::Disable)).await);
    assert!(!connect(&to("open", SslMode::Prefer)).await.unwrap());
    assert!(!connect(&to("open", SslMode::Allow)).await.unwrap());
    let error = refused(connect(&to("open", SslMode::Require)).await);
    assert!(error.to_string().contains("pg_hba.conf"), "{error}");
    refused(connect(&to("certified", SslMode::Require)).await);
    let with_certificate = Endpoint {
        client_cert: Some(certificates.path("client.pem")),
        client_key: Some(certificates.path("client.key")),
        ..to("certified", SslMode::Require)
    };
    assert!(connect(&with_certificate).await.unwrap());
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    let server = PostgresServer::start(ServerSettings::default()).await.unwrap();
    for mode in [SslMode::Require, SslMode::VerifyCa, SslMode::VerifyFull] {
        let refused = connect(&with_tls(&server, "127.0.0.1", mode, None)).await.unwrap_err();
        assert_eq!(refused.kind(), Kind::Configuration);
        assert!(refused.to_string().contains("does not offer TLS"), "{refused}");
    }
    for mode in [SslMode::Disable, SslMode::Allow, SslMode::Prefer] {
        assert!(!connect(&with_tls(&server, "127.0.0.1", mode, None)).await.unwrap());
    }
}
