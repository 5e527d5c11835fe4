//! Where a database is and how to speak to it: the connection strings that `psql` and libpq take, as URI or keywords.
//!
//! What libpq knows and Tidelock does not honour is refused by name, never ignored, so that nobody believes a setting to
//! be in force that is not. A password never shows in `Debug` or `Display`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use crate::error::{Error, Kind, Result};

/// Where the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A host name or IP address, by TCP.
    Tcp(String),
    /// The directory of a Unix socket.
    Unix(PathBuf),
}

/// Whether and how a connection is encrypted, as libpq has it. Unix sockets are never encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Only if the server insists.
    Allow,
    /// If the server offers it.
    #[default]
    Prefer,
    /// Always, without checking who the server is (with a root certificate file: like `verify-ca`).
    Require,
    /// Always, and the certificate must be signed by a trusted authority.
    VerifyCa,
    /// Always, and the certificate must be signed by a trusted authority and name the host.
    VerifyFull,
}

impl SslMode {
    /// The name in a connection string.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl FromStr for SslMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull]
            .into_iter()
            .find(|m| m.name() == text)
            .ok_or(())
    }
}

/// How a TCP connection finds out that its peer is gone without a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpLiveness {
    /// Whether an idle connection is probed at all.
    pub keepalives: bool,
    /// How long it is idle before the first probe.
    pub idle: Duration,
    /// How long between two probes.
    pub interval: Duration,
    /// How many probes may go unanswered.
    pub count: u32,
    /// How long what was sent, probes too, may go unacknowledged; none for the system's own limit, of many minutes.
    pub user_timeout: Option<Duration>,
}

impl Default for TcpLiveness {
    fn default() -> Self {
        Self {
            keepalives: true,
            idle: Duration::from_secs(30),
            interval: Duration::from_secs(10),
            count: 3,
            user_timeout: Some(Duration::from_mins(1)),
        }
    }
}

impl TcpLiveness {
    /// Takes one of libpq's settings over. As there, 0 is the usual time or number; a `tcp_user_timeout` of 0 is the system's.
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let wrong = || configuration(&format!("has a `{name}` that is not a number it can be"));
        let number: u32 = value.parse().ok().filter(|n| *n <= 2_000_000_000).ok_or_else(wrong)?;
        let usual = Self::default();
        let seconds = |usual| if number == 0 { usual } else { Duration::from_secs(number.into()) };
        match name {
            "keepalives" if number <= 1 => self.keepalives = number == 1,
            // The most that the system takes.
            "keepalives_idle" if number <= 32_767 => self.idle = seconds(usual.idle),
            "keepalives_interval" if number <= 32_767 => self.interval = seconds(usual.interval),
            "keepalives_count" if number <= 127 => self.count = if number == 0 { usual.count } else { number },
            "tcp_user_timeout" => {
                self.user_timeout = Some(Duration::from_millis(number.into())).filter(|limit| !limit.is_zero());
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }
}

/// A database, and everything that is needed to open a session in it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Where the server listens.
    pub host: Host,
    /// Its port, also the suffix of a Unix socket's name.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// The role's password.
    pub password: Option<SecretString>,
    /// Whether and how the connection is encrypted.
    pub sslmode: SslMode,
    /// Trusted authorities, PEM. Absent: those of the machine.
    pub root_cert: Option<PathBuf>,
    /// Our certificate, PEM.
    pub client_cert: Option<PathBuf>,
    /// Our certificate's key, PEM.
    pub client_key: Option<PathBuf>,
    /// How long connecting may take in all: name, socket, TLS and authentication.
    pub connect_timeout: Duration,
    /// What the server shows as `application_name`.
    pub application_name: String,
    /// How a TCP connection finds out that the server is gone.
    pub liveness: TcpLiveness,
}

/// How long connecting may take when the connection string does not say.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

impl Endpoint {
    /// An endpoint with defaults for everything else: port 5432, `sslmode=prefer`, no password.
    pub fn new(host: Host, database: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            host,
            port: 5432,
            database: database.into(),
            user: user.into(),
            password: None,
            sslmode: SslMode::default(),
            root_cert: None,
            client_cert: None,
            client_key: None,
            connect_timeout: CONNECT_TIMEOUT,
            application_name: "tidelock".into(),
            liveness: TcpLiveness::default(),
        }
    }

    /// Reads a libpq connection string: `postgresql://user:password@host:port/database?sslmode=...` or
    /// `host=... dbname=... user=...`. Errors never repeat the string, since it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let uri = ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let settings = match uri {
            Some(rest) => uri_settings(rest)?,
            None => keyword_settings(text)?,
        };
        Self::from_settings(settings)
    }

    fn from_settings(settings: Vec<(String, String)>) -> Result<Self> {
        let mut endpoint = Self::new(Host::Tcp("localhost".into()), "", "");
        for (name, value) in settings {
            endpoint.set(&name, value)?;
        }
        if endpoint.user.is_empty() {
            return Err(configuration("names no user; add `user=...`, or `user@` before the host"));
        }
        if endpoint.database.is_empty() {
            endpoint.database.clone_from(&endpoint.user);
        }
        if endpoint.client_cert.is_some() != endpoint.client_key.is_some() {
            return Err(configuration("must give `sslcert` and `sslkey` together"));
        }
        Ok(endpoint)
    }

    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "host" => self.host = parse_host(&value)?,
            "hostaddr" => self.host = Host::Tcp(value),
            "port" => self.port = parse_port(&value)?,
            "dbname" => self.database = value,
            "user" => self.user = value,
            "password" => self.password = Some(SecretString::from(value)),
            "sslmode" => {
                self.sslmode = value.parse().map_err(|()| {
                    configuration(
                        "has an unknown `sslmode`; use disable, allow, prefer, require, verify-ca or verify-full",
                    )
                })?;
            }
            "sslrootcert" if value == "system" => {
                self.root_cert = None;
                self.sslmode = SslMode::VerifyFull;
            }
            "sslrootcert" => self.root_cert = Some(value.into()),
            "sslcert" => self.client_cert = Some(value.into()),
            "sslkey" => self.client_key = Some(value.into()),
            "connect_timeout" => self.connect_timeout = parse_timeout(&value)?,
            "application_name" | "fallback_application_name" => self.application_name = value,
            "ssl" if value == "true" => self.sslmode = SslMode::Require,
            "channel_binding" | "gssencmode" if matches!(value.as_str(), "disable" | "prefer") => {}
            "target_session_attrs" if matches!(value.as_str(), "any" | "read-write" | "primary") => {}
            "client_encoding" if value.eq_ignore_ascii_case("utf8") || value == "auto" => {}
            "keepalives" | "keepalives_idle" | "keepalives_interval" | "keepalives_count" | "tcp_user_timeout" => {
                self.liveness.set(name, &value)?;
            }
            _ => {
                let known = "host, hostaddr, port, dbname, user, password, sslmode, sslrootcert, sslcert, sslkey, \
                             connect_timeout, application_name, keepalives and tcp_user_timeout";
                return Err(configuration(&format!(
                    "has the parameter `{name}`, which (or whose value) Tidelock does not support; it knows {known}"
                )));
            }
        }
        Ok(())
    }

    /// The endpoint with another database.
    pub fn with_database(mut self, database: impl Into<String>) -> Self {
        self.database = database.into();
        self
    }

    /// The endpoint with another `application_name`.
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// The connection string as keywords, **with the password**: for handing to a program of the user's, never for a log.
    pub fn to_connection_string(&self) -> SecretString {
        let host = match &self.host {
            Host::Tcp(host) => host.clone(),
            Host::Unix(directory) => directory.display().to_string(),
        };
        let mut text = format!(
            "host={} port={} dbname={} user={} sslmode={}",
            quoted(&host),
            self.port,
            quoted(&self.database),
            quoted(&self.user),
            self.sslmode.name(),
        );
        if let Some(password) = &self.password {
            text.push_str(" password=");
            text.push_str(&quoted(password.expose_secret()));
        }
        for (name, path) in
            [("sslrootcert", &self.root_cert), ("sslcert", &self.client_cert), ("sslkey", &self.client_key)]
        {
            if let Some(path) = path {
                text.extend([" ", name, "=", &quoted(&path.display().to_string())]);
            }
        }
        let TcpLiveness { keepalives, idle, interval, count, user_timeout } = self.liveness;
        if self.liveness != TcpLiveness::default() {
            for (name, value) in [
                ("keepalives", u128::from(keepalives)),
                ("keepalives_idle", u128::from(idle.as_secs())),
                ("keepalives_interval", u128::from(interval.as_secs())),
                ("keepalives_count", u128::from(count)),
                ("tcp_user_timeout", user_timeout.unwrap_or_default().as_millis()),
            ] {
                text.extend([" ", name, "=", &value.to_string()]);
            }
        }
        SecretString::from(text)
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

/// `user@host:port/database`, without the password.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp(host) if host.contains(':') => write!(f, "{}@[{host}]:{}", self.user, self.port)?,
            Host::Tcp(host) => write!(f, "{}@{host}:{}", self.user, self.port)?,
            Host::Unix(directory) => write!(f, "{}@{}:{}", self.user, directory.display(), self.port)?,
        }
        write!(f, "/{}", self.database)
    }
}

fn configuration(what: &str) -> Error {
    Error::new(Kind::Configuration, format!("the PostgreSQL connection string {what}"))
}

fn quoted(value: &str) -> String {
    if !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\') {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn parse_host(value: &str) -> Result<Host> {
    if value.contains(',') {
        return Err(configuration("names several hosts; name the one that takes writes"));
    }
    Ok(match value {
        "" => Host::Tcp("localhost".into()),
        path if path.starts_with('/') => Host::Unix(path.into()),
        name => Host::Tcp(name.into()),
    })
}

fn parse_port(value: &str) -> Result<u16> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(configuration("has a port that is not a number from 1 to 65535")),
    }
}

fn parse_timeout(value: &str) -> Result<Duration> {
    match value.parse::<u64>() {
        Ok(0) => Ok(CONNECT_TIMEOUT),
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err(configuration("has a `connect_timeout` that is not a number of seconds up to 3600")),
    }
}

/// The settings of what follows `postgresql://`.
fn uri_settings(rest: &str) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut push = |name: &str, value: &str| -> Result<()> {
        settings.push((name.to_owned(), percent_decoded(value)?));
        Ok(())
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, address) = match authority.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, authority),
    };
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').map_or((credentials, None), |(u, p)| (u, Some(p)));
        push("user", user)?;
        if let Some(password) = password {
            push("password", password)?;
        }
    }
    let (host, port) = split_address(address)?;
    if !host.is_empty() {
        push("host", host)?;
    }
    if !port.is_empty() {
        push("port", port)?;
    }
    if !path.is_empty() {
        push("dbname", path)?;
    }
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| configuration("has a query parameter without `=`"))?;
        push(&percent_decoded(name)?, value)?;
    }
    Ok(settings)
}

fn split_address(address: &str) -> Result<(&str, &str)> {
    if let Some(rest) = address.strip_prefix('[') {
        let (host, rest) =
            rest.split_once(']').ok_or_else(|| configuration("has an IPv6 address without its closing `]`"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if rest.is_empty() => Ok((host, "")),
            None => Err(configuration("has something other than a port after its IPv6 address")),
        };
    }
    Ok(address.rsplit_once(':').unwrap_or((address, "")))
}

fn percent_decoded(text: &str) -> Result<String> {
    let malformed = || configuration("has a `%` that is not followed by two hexadecimal digits of UTF-8 text");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| (b as char).to_digit(16)).ok_or_else(malformed);
        bytes.push((digit()? << 4 | digit()?) as u8);
    }
    String::from_utf8(bytes).map_err(|_| malformed())
}

/// The settings of `name=value name='quoted value'`.
fn keyword_settings(text: &str) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(settings);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_whitespace() && *c != '=') {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(configuration(
                "is neither a `postgresql://` URI nor `name=value` settings: a name has no `=` after it",
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        settings.push((name, keyword_value(&mut chars)?));
    }
}

fn keyword_value(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<String> {
    let mut value = String::new();
    let is_quoted = chars.next_if_eq(&'\'').is_some();
    loop {
        match chars.next() {
            None if is_quoted => return Err(configuration("has a quoted value without its closing quote")),
            None => return Ok(value),
            Some('\'') if is_quoted => return Ok(value),
            Some(c) if !is_quoted && c.is_whitespace() => return Ok(value),
            Some('\\') => value.extend(chars.next()),
            Some(c) => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_says_everything() {
        let e = Endpoint::parse(
            "postgresql://al%69ce:p%40ss%2Fw@db.example.com:6543/crm?sslmode=verify-full&sslrootcert=/etc/ca.pem\
             &connect_timeout=7&application_name=t",
        )
        .unwrap();
        assert_eq!(e.host, Host::Tcp("db.example.com".into()));
        assert_eq!((e.port, e.database.as_str(), e.user.as_str()), (6543, "crm", "alice"));
        assert_eq!(e.password.as_ref().unwrap().expose_secret(), "p@ss/w");
        assert_eq!(e.sslmode, SslMode::VerifyFull);
        assert_eq!(e.root_cert, Some("/etc/ca.pem".into()));
        assert_eq!(e.connect_timeout, Duration::from_secs(7));
        assert_eq!(e.application_name, "t");
        assert_eq!(e.to_string(), "alice@db.example.com:6543/crm");
        assert!(!format!("{e:?}").contains("p@ss"));
    }

    #[test]
    fn short_uris_have_libpqs_defaults() {
        let e = Endpoint::parse("postgres://bob@localhost").unwrap();
        assert_eq!((e.port, e.database.as_str(), e.sslmode), (5432, "bob", SslMode::Prefer));
        let e = Endpoint::parse("postgres://bob@[::1]:1234/x").unwrap();
        assert_eq!((&e.host, e.port), (&Host::Tcp("::1".into()), 1234));
        let e = Endpoint::parse("postgres://bob@%2Frun%2Fpg/x").unwrap();
        assert_eq!(e.host, Host::Unix("/run/pg".into()));
        let e = Endpoint::parse("postgres:///x?host=/run/pg&user=bob").unwrap();
        assert_eq!(e.host, Host::Unix("/run/pg".into()));
    }

    #[test]
    fn keywords_may_be_quoted() {
        let e = Endpoint::parse(r"host = /tmp user='it''s'").map(|_| ());
        assert!(e.is_err(), "libpq escapes with a backslash");
        let e =
            Endpoint::parse(r"host=/tmp port=5433 user='it\'s me' dbname=a\ b password='' sslmode=disable").unwrap();
        assert_eq!((e.user.as_str(), e.database.as_str()), ("it's me", "a b"));
        let again = Endpoint::parse(e.to_connection_string().expose_secret()).unwrap();
        assert_eq!(format!("{e:?}"), format!("{again:?}"));
    }

    #[test]
    fn a_silent_peer_is_noticed_as_the_string_says() {
        let usual = Endpoint::parse("postgres://a@b/c").unwrap();
        assert_eq!(usual.liveness, TcpLiveness::default());
        let told = "postgres://a@b/c?keepalives=0&keepalives_idle=5&keepalives_interval=7&keepalives_count=2&tcp_user_timeout=1500";
        let told = Endpoint::parse(told).unwrap();
        let expected = TcpLiveness {
            keepalives: false,
            idle: Duration::from_secs(5),
            interval: Duration::from_secs(7),
            count: 2,
            user_timeout: Some(Duration::from_millis(1_500)),
        };
        assert_eq!(told.liveness, expected);
        let again = Endpoint::parse(told.to_connection_string().expose_secret()).unwrap();
        assert_eq!(again.liveness, expected);
        let system =
            Endpoint::parse("postgres://a@b/c?keepalives_idle=0&keepalives_count=0&tcp_user_timeout=0").unwrap();
        assert_eq!(system.liveness, TcpLiveness { user_timeout: None, ..TcpLiveness::default() });
        for bad in
            ["keepalives=2", "keepalives=yes", "keepalives_count=999", "tcp_user_timeout=-1", "keepalives_idle=1.5"]
        {
            let error = Endpoint::parse(&format!("postgres://a@b/c?{bad}")).unwrap_err();
            assert!(error.to_string().contains(bad.split_once('=').unwrap().0), "{error}");
        }
    }

    #[test]
    fn what_is_not_honoured_is_refused_by_name() {
        for (text, says) in [
            ("postgres://a@b/c?options=-csearch_path%3Dx", "`options`"),
            ("postgres://a@b/c?channel_binding=require", "`channel_binding`"),
            ("postgres://a@b,c/d", "several hosts"),
            ("postgres://a@b:0/d", "port"),
            ("postgres://a@b/d?sslmode=on", "sslmode"),
            ("postgres://b/d", "no user"),
            ("postgres://a:%zz@b/d", "hexadecimal"),
            ("user=a sslcert=x", "together"),
            ("just text", "neither"),
        ] {
            let error = Endpoint::parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Configuration);
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_endpoint_or_an_error(text in "\\PC{0,60}") {
            for text in [format!("postgres://{text}"), text] {
                if let Err(error) = Endpoint::parse(&text) {
                    proptest::prop_assert_eq!(error.kind(), Kind::Configuration);
                }
            }
        }
    }
}
