//! Opens connections: socket, TLS as libpq negotiates it, and ordinary sessions on top.
//!
//! Every connection of the crate to PostgreSQL starts here, so that `sslmode`, timeouts and advice on errors are the same
//! for replication and for ordinary sessions. TLS is done before any client library sees the stream.

use std::future::{Future, poll_fn};
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls};
use tokio_rustls::TlsConnector;

use super::endpoint::{Endpoint, Host, SslMode, TcpLiveness};
use super::patience::Patience;
use super::tls;
use crate::error::{Error, Kind, Result};

/// A connected byte stream, encrypted or not.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A connected byte stream of any kind.
pub type BoxedStream = Box<dyn ByteStream>;

/// Drives an ordinary session; it must be polled for the session's client to make progress, and ends with the session.
pub type SessionDriver = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// Whether one attempt to connect uses TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Never,
    IfOffered,
    Always,
}

/// What is tried, in order; a later attempt follows only on a refusal that encryption may explain.
pub(crate) fn attempts(endpoint: &Endpoint) -> &'static [Encryption] {
    if matches!(endpoint.host, Host::Unix(_)) {
        return &[Encryption::Never];
    }
    match endpoint.sslmode {
        SslMode::Disable => &[Encryption::Never],
        SslMode::Allow => &[Encryption::Never, Encryption::Always],
        SslMode::Prefer => &[Encryption::IfOffered, Encryption::Never],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Always],
    }
}

/// Asks the server for TLS: length 8, then the code that no protocol version has.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Connects the socket and negotiates TLS. The caller bounds the time.
pub(crate) async fn open_stream(endpoint: &Endpoint, encryption: Encryption) -> Result<BoxedStream> {
    match &endpoint.host {
        Host::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", endpoint.port));
            let stream = UnixStream::connect(&path).await.map_err(|e| unreachable_server(endpoint, e))?;
            Ok(Box::new(stream))
        }
        Host::Tcp(host) => {
            let stream = TcpStream::connect((host.as_str(), endpoint.port))
                .await
                .map_err(|e| unreachable_server(endpoint, e))?;
            keep_alive(&stream, endpoint.liveness);
            negotiate(endpoint, stream, encryption).await
        }
    }
}

/// Settings that notice a dead peer. Best effort: a platform without them still has the protocol's own timeouts.
fn keep_alive(stream: &TcpStream, liveness: TcpLiveness) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(liveness.idle).with_interval(liveness.interval).with_retries(liveness.count);
    let probed = if liveness.keepalives { socket.set_tcp_keepalive(&keepalive) } else { socket.set_keepalive(false) };
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let probed = probed.and_then(|()| socket.set_tcp_user_timeout(liveness.user_timeout));
    if let Err(error) = stream.set_nodelay(true).and(probed) {
        tracing::debug!(%error, "cannot set keepalive on a PostgreSQL connection");
    }
}

async fn negotiate(endpoint: &Endpoint, mut stream: TcpStream, encryption: Encryption) -> Result<BoxedStream> {
    if encryption == Encryption::Never {
        return Ok(Box::new(stream));
    }
    let mut answer = [0u8; 1];
    let asked = async {
        stream.write_all(&SSL_REQUEST).await?;
        stream.read_exact(&mut answer).await
    };
    asked.await.map_err(|e| broken(endpoint, "asking for TLS", e))?;
    match (answer, encryption) {
        ([b'S'], _) => {
            let (config, name) = tls::client_config(endpoint).await?;
            let encrypted = TlsConnector::from(config).connect(name, stream).await;
            Ok(Box::new(encrypted.map_err(|e| tls_refused(endpoint, e))?))
        }
        ([b'N'], Encryption::IfOffered) => Ok(Box::new(stream)),
        ([b'N'], _) => {
            let message = format!(
                "{endpoint} does not offer TLS, and sslmode={} asks for it; turn on `ssl` in the server's \
                 postgresql.conf, or use sslmode=prefer on a network that you trust",
                endpoint.sslmode.name()
            );
            Err(Error::new(Kind::Configuration, message))
        }
        // An error message instead of an answer: the server is too busy or is no PostgreSQL.
        ([b'E'], _) => Err(Error::new(Kind::Unavailable, format!("{endpoint} refused to negotiate TLS just now"))),
        ([other], _) => {
            let message =
                format!("{endpoint} is not a PostgreSQL server: it answered the TLS request with byte {other:#04x}");
            Err(Error::new(Kind::Protocol, message))
        }
    }
}

fn unreachable_server(endpoint: &Endpoint, error: std::io::Error) -> Error {
    let advice = "check host and port, and that the server is running and listens there";
    Error::new(Kind::Unavailable, format!("cannot connect to PostgreSQL at {endpoint}: {error}; {advice}"))
        .caused_by(error)
}

/// A connection that broke while doing something.
pub(crate) fn broken(endpoint: &Endpoint, doing: &str, error: std::io::Error) -> Error {
    Error::new(Kind::Unavailable, format!("the connection to PostgreSQL at {endpoint} broke while {doing}: {error}"))
        .caused_by(error)
}

fn tls_refused(endpoint: &Endpoint, error: std::io::Error) -> Error {
    let certificate = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>())
        .is_some_and(|e| matches!(e, rustls::Error::InvalidCertificate(_)));
    let message = if certificate {
        format!(
            "the certificate of PostgreSQL at {endpoint} is not acceptable with sslmode={}: {error}; name its \
             authority with `sslrootcert`, and the host as the certificate does",
            endpoint.sslmode.name()
        )
    } else {
        format!("TLS with PostgreSQL at {endpoint} failed: {error}")
    };
    let kind = if certificate { Kind::Configuration } else { Kind::Unavailable };
    Error::new(kind, message).caused_by(error)
}

/// `SQLSTATE` of "no pg_hba.conf entry" and the like: another attempt with or without TLS may be let in.
pub(crate) const INVALID_AUTHORIZATION: &str = "28000";

/// What kind of trouble an `SQLSTATE` is: by class, with few exceptions.
pub fn classify(sqlstate: &str) -> Kind {
    match sqlstate {
        // Not ready, shutting down, or busy: another try may do.
        "55006" | "55P03" | "57014" => Kind::Unavailable,
        "42501" => Kind::Denied,
        "P0001" => Kind::Refused,
        _ => match sqlstate.get(..2).unwrap_or_default() {
            "28" => Kind::Denied,
            "22" | "23" | "44" => Kind::Refused,
            "3D" | "3F" | "42" | "0A" | "55" | "26" | "F0" => Kind::Configuration,
            _ => Kind::Unavailable,
        },
    }
}

/// What to do about an error that a server answers to a login, as far as the code tells.
fn login_advice(endpoint: &Endpoint, sqlstate: &str) -> &'static str {
    match sqlstate {
        "28P01" if endpoint.password.is_none() => "; the server wants a password and none is configured",
        "28P01" => "; check the user and the password",
        INVALID_AUTHORIZATION => "; check that the role may log in, and the server's pg_hba.conf (role, address, TLS)",
        "3D000" => "; check the database's name, or create it",
        "42501" => "; grant what is missing: replication needs the role attribute REPLICATION",
        "53300" => "; raise max_connections (or max_wal_senders), or close other sessions",
        "57P03" => "; the server is starting up or shutting down",
        _ => "",
    }
}

/// What PgBouncer answers to what only a server of its own can grant, such as `replication`.
const POOLER_REFUSAL: &str = "unsupported startup parameter";

/// The error for a server's refusal of a login.
pub(crate) fn login_refused(endpoint: &Endpoint, sqlstate: &str, message: &str) -> Error {
    if message.contains(POOLER_REFUSAL) {
        let text = format!(
            "{endpoint} is a connection pooler such as PgBouncer ({message}); replication and the lock of a link need a session \
             of their own, so name the host and port of the PostgreSQL server itself"
        );
        return Error::new(Kind::Configuration, text);
    }
    let advice = login_advice(endpoint, sqlstate);
    let text = format!("PostgreSQL at {endpoint} refused the connection: {message} (SQLSTATE {sqlstate}){advice}");
    Error::new(classify(sqlstate), text)
}

/// The error for a statement that failed; `doing` says what it was for ("creating the slot `x`").
pub fn database_error(doing: &str, error: tokio_postgres::Error) -> Error {
    let described = match error.as_db_error() {
        Some(db) => {
            let hint = db.hint().map(|h| format!("; {h}")).unwrap_or_default();
            let text = format!("{doing}: {} (SQLSTATE {}){hint}", db.message(), db.code().code());
            Error::new(classify(db.code().code()), text)
        }
        None => Error::new(Kind::Unavailable, format!("{doing}: the PostgreSQL session failed: {error}")),
    };
    described.caused_by(error)
}

/// What every ordinary session of ours has in force, so that values print in one form.
const SESSION_SETTINGS: &str = "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SET intervalstyle = 'postgres'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
     SET idle_in_transaction_session_timeout = '5min'";

/// Opens an ordinary session: values print as ISO 8601 in UTC, floats exactly, bytes as hex.
///
/// The driver must be polled (by an owned task) for the client to make progress; [`Session`] does both.
pub async fn open_session(endpoint: &Endpoint) -> Result<(Client, SessionDriver)> {
    open_waking(endpoint, None, None).await
}

/// How often the time that connecting may take a server may take for the answer to a question.
const ANSWER_FACTOR: u32 = 3;

async fn open_waking(
    endpoint: &Endpoint,
    wake: Option<&Arc<Notify>>,
    patience: Option<Duration>,
) -> Result<(Client, SessionDriver)> {
    match tokio::time::timeout(endpoint.connect_timeout, open_untimed(endpoint, wake, patience)).await {
        Ok(opened) => opened,
        Err(_) => Err(timed_out(endpoint)),
    }
}

pub(crate) fn timed_out(endpoint: &Endpoint) -> Error {
    let seconds = endpoint.connect_timeout.as_secs_f64();
    let message = format!("PostgreSQL at {endpoint} did not let us in within {seconds} s (connect_timeout)");
    Error::new(Kind::Unavailable, message)
}

async fn open_untimed(
    endpoint: &Endpoint,
    wake: Option<&Arc<Notify>>,
    patience: Option<Duration>,
) -> Result<(Client, SessionDriver)> {
    let mut last = None;
    for encryption in attempts(endpoint) {
        match open_once(endpoint, *encryption, wake, patience).await {
            Ok(opened) => return Ok(opened),
            Err((error, true)) => last = last.or(Some(error)),
            Err((error, false)) => return Err(last.unwrap_or(error)),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(Kind::Internal, "no way to connect was tried")))
}

/// One attempt; on failure, whether another kind of encryption may be let in.
async fn open_once(
    endpoint: &Endpoint,
    encryption: Encryption,
    wake: Option<&Arc<Notify>>,
    patience: Option<Duration>,
) -> Result<(Client, SessionDriver), (Error, bool)> {
    let stream: BoxedStream = match open_stream(endpoint, encryption).await {
        Ok(stream) => match patience {
            Some(limit) => Box::new(Patience::new(stream, limit)),
            None => stream,
        },
        Err(error) => {
            let optional = encryption == Encryption::IfOffered && error.kind() != Kind::Unavailable;
            return Err((error, optional));
        }
    };
    let mut config = tokio_postgres::Config::new();
    config
        .user(&endpoint.user)
        .dbname(&endpoint.database)
        .application_name(&endpoint.application_name)
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &endpoint.password {
        config.password(password.expose_secret());
    }
    let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|e| session_refused(endpoint, e))?;
    let address = endpoint.to_string();
    let wake = wake.map(Arc::clone);
    let mut driver: SessionDriver = Box::pin(async move {
        drive(connection, wake).await.map_err(|e| database_error(&format!("the session with {address}"), e))
    });
    let settings = client.batch_execute(SESSION_SETTINGS);
    tokio::select! {
        set = settings => set.map_err(|e| (database_error("setting up the session", e), false))?,
        ended = &mut driver => {
            let error = ended.err().unwrap_or_else(|| Error::new(Kind::Unavailable, "PostgreSQL closed the session"));
            return Err((error, false));
        }
    }
    Ok((client, driver))
}

/// Polls a connection to its end; wakes whoever waits for a notification.
async fn drive(
    mut connection: Connection<BoxedStream, NoTlsStream>,
    wake: Option<Arc<Notify>>,
) -> Result<(), tokio_postgres::Error> {
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let (AsyncMessage::Notification(_), Some(wake)) = (message?, &wake) {
            wake.notify_one();
        }
    }
    Ok(())
}

fn session_refused(endpoint: &Endpoint, error: tokio_postgres::Error) -> (Error, bool) {
    let Some(db) = error.as_db_error() else {
        // The driver tells these apart by their texts alone.
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let no_password = endpoint.password.is_none() && cause.contains("password missing");
        let not_trusted = error.to_string().contains("authentication");
        let kind = if no_password || not_trusted { Kind::Denied } else { Kind::Unavailable };
        let why = if no_password {
            "the server wants a password and none is configured".to_owned()
        } else if cause.is_empty() {
            error.to_string()
        } else {
            format!("{error}: {cause}")
        };
        let described = format!("PostgreSQL at {endpoint} did not complete the login: {why}");
        return (Error::new(kind, described).caused_by(error), false);
    };
    let code = db.code().code();
    (login_refused(endpoint, code, db.message()), code == INVALID_AUTHORIZATION)
}

/// An ordinary session whose driver it owns: it ends when this is dropped.
pub struct Session {
    client: Client,
    driver: JoinSet<Result<()>>,
}

impl Session {
    /// Opens a session (see [`open_session`]).
    pub async fn open(endpoint: &Endpoint) -> Result<Self> {
        Ok(Self::driven(open_session(endpoint).await?))
    }

    /// Opens a session for questions that are answered soon. A server that does not answer one within three times `connect_timeout`
    /// is given up: the question and all after it are [`Kind::Unavailable`].
    pub async fn brief(endpoint: &Endpoint) -> Result<Self> {
        Self::answering_within(endpoint, endpoint.connect_timeout * ANSWER_FACTOR).await
    }

    /// Opens a session whose server is given up when it leaves a question without an answer for so long.
    pub async fn answering_within(endpoint: &Endpoint, limit: Duration) -> Result<Self> {
        Ok(Self::driven(open_waking(endpoint, None, Some(limit)).await?))
    }

    /// Opens a session that wakes whoever waits whenever a notification comes (`LISTEN`).
    pub async fn listening(endpoint: &Endpoint, wake: &Arc<Notify>) -> Result<Self> {
        Ok(Self::driven(open_waking(endpoint, Some(wake), None).await?))
    }

    fn driven((client, connection): (Client, SessionDriver)) -> Self {
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let ended = connection.await;
            if let Err(error) = &ended {
                // Whoever uses the session learns only that it is closed.
                tracing::debug!(error = %error.explain(), "a session with PostgreSQL has ended");
            }
            ended
        });
        Self { client, driver }
    }

    /// Ends the session and waits until the server has been told.
    pub async fn close(self) -> Result<()> {
        let Self { client, mut driver } = self;
        drop(client);
        match tokio::time::timeout(Duration::from_secs(5), driver.join_next()).await {
            Ok(Some(Ok(ended))) => ended,
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooler_is_told_from_a_server() {
        let endpoint = Endpoint::new(Host::Tcp("db".into()), "app", "tide");
        let error = login_refused(&endpoint, "08P01", "unsupported startup parameter: replication");
        assert_eq!(error.kind(), Kind::Configuration);
        assert!(error.to_string().contains("PgBouncer"), "{error}");
        assert_eq!(login_refused(&endpoint, "08P01", "broken").kind(), Kind::Unavailable);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_connection_gives_a_dead_peer_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        keep_alive(&stream, TcpLiveness::default());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_mins(1)));
        let off = TcpLiveness { keepalives: false, user_timeout: None, ..TcpLiveness::default() };
        keep_alive(&stream, off);
        assert!(!socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap().unwrap_or_default(), Duration::ZERO);
    }

    #[test]
    fn sqlstates_have_one_kind_each() {
        for (code, kind) in [
            ("28P01", Kind::Denied),
            ("28000", Kind::Denied),
            ("42501", Kind::Denied),
            ("3D000", Kind::Configuration),
            ("42P01", Kind::Configuration),
            ("23505", Kind::Refused),
            ("22P02", Kind::Refused),
            ("P0001", Kind::Refused),
            ("40001", Kind::Unavailable),
            ("40P01", Kind::Unavailable),
            ("53300", Kind::Unavailable),
            ("57P03", Kind::Unavailable),
            ("55006", Kind::Unavailable),
            ("", Kind::Unavailable),
        ] {
            assert_eq!(classify(code), kind, "{code}");
        }
    }
}
