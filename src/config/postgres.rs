//! `[postgres]`: where the database is, as whom, and what Tidelock's objects in it are called.

use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::document::{Document, hint};
use super::link::{NAME_MAX, name_problem};
use super::passfile;
use super::secret::Surroundings;

/// How the connection is protected; the words are libpq's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server insists on it, without checking who it is.
    Allow,
    /// TLS if the server has it, without checking who it is.
    #[default]
    Prefer,
    /// TLS always; the certificate is checked if `sslrootcert` is given.
    Require,
    /// TLS always, with a certificate that the authorities in `sslrootcert` vouch for.
    VerifyCa,
    /// As `verify-ca`, and the certificate is the host's; without `sslrootcert`, the machine's authorities count.
    VerifyFull,
}

/// How changes in the database are captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    /// From the server's write-ahead log, by logical replication.
    #[default]
    Wal,
    /// From triggers that log changes into a table, as Heroku Connect does: for servers without logical replication.
    Trigger,
}

/// What numbers are stored as in mirror tables that `init` makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Numbers {
    /// `double precision`, as Heroku Connect has it.
    #[default]
    DoublePrecision,
    /// `numeric`, which is exact.
    Numeric,
}

/// The database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Postgres {
    /// The connection as a URI without a password: `postgresql://user@host:5432/database?sslmode=verify-full`.
    /// Instead of the keys `host`, `port`, `dbname` and `user`.
    pub url: Option<String>,
    /// The host, or the folder of a unix-domain socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub dbname: String,
    /// The role. It needs REPLICATION, unless triggers capture changes.
    pub user: String,
    /// The environment variable that holds the password. With neither this nor `password_file`, the password is the one that fits in
    /// the file that PGPASSFILE names, if it is set. Servers that ask for none (trust, peer, a client certificate) need none of them.
    pub password_env: Option<String>,
    /// The file that holds the password.
    pub password_file: Option<PathBuf>,
    /// How the connection is protected.
    pub sslmode: SslMode,
    /// Root certificates (PEM) instead of the system's.
    pub sslrootcert: Option<PathBuf>,
    /// The client certificate (PEM).
    pub sslcert: Option<PathBuf>,
    /// The client certificate's key (PEM).
    pub sslkey: Option<PathBuf>,
    /// The schema of the mirror tables.
    pub schema: String,
    /// How changes are captured.
    pub capture: Capture,
    /// For how many days captured changes are kept in `_trigger_log_archive`, where triggers capture them; with 0 they are not.
    #[schemars(range(min = 0, max = 3650))]
    pub trigger_archive_days: u32,
    /// The replication slot; `tidelock_` and the link's name if left out.
    pub slot: String,
    /// The publication; `tidelock_` and the link's name if left out.
    pub publication: String,
    /// Whether the slot is to be taken over by standbys, so that it goes on when one is promoted. Needs PostgreSQL 17, and
    /// `sync_replication_slots` on the standby.
    pub failover_slot: bool,
    /// Whether row filters of the publication are on purpose: rows that they leave out are not kept in step.
    pub row_filters: bool,
    /// What numbers are stored as in the tables that `init` makes.
    pub numbers: Numbers,
    /// How many connections read existing rows at a time, of all tables together.
    #[schemars(range(min = 1, max = 16))]
    pub copy_connections: u32,
    /// How often the slot is moved on while the database is idle, in seconds.
    #[schemars(range(min = 1, max = 3600))]
    pub heartbeat_seconds: u32,
    /// How long connecting may take, in seconds.
    #[schemars(range(min = 1, max = 300))]
    pub connect_timeout_seconds: u32,
    /// The password, once it was looked up.
    #[serde(skip)]
    #[schemars(skip)]
    pub password: Option<SecretString>,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            url: None,
            host: String::new(),
            port: 5432,
            dbname: String::new(),
            user: String::new(),
            password_env: None,
            password_file: None,
            sslmode: SslMode::default(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            schema: "salesforce".to_owned(),
            capture: Capture::default(),
            trigger_archive_days: 7,
            slot: String::new(),
            publication: String::new(),
            failover_slot: false,
            row_filters: false,
            numbers: Numbers::default(),
            copy_connections: 4,
            heartbeat_seconds: 10,
            connect_timeout_seconds: 10,
            password: None,
        }
    }
}

const SECTION: &str = "postgres";

/// libpq's variable with the path of its password file.
const PASSFILE_VARIABLE: &str = "PGPASSFILE";
/// The channel of the triggers, `<schema>.hc_trigger_log`, is a name of the server's too.
const TRIGGER_SCHEMA_MAX: usize = NAME_MAX - ".hc_trigger_log".len();

impl Postgres {
    /// Whether the host is the folder of a unix-domain socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    pub(super) fn check(&mut self, doc: &mut Document<'_>, link: &str, around: Option<&Surroundings<'_>>) {
        if let Some(url) = self.url.clone() {
            self.take_url(doc, &url);
        } else if !["host", "dbname", "user"].iter().any(|key| doc.has(&format!("{SECTION}.{key}"))) {
            doc.missing(SECTION, "url");
        } else {
            for key in ["host", "dbname", "user"] {
                if !doc.has(&format!("{SECTION}.{key}")) {
                    doc.missing(SECTION, key);
                }
            }
        }
        for (key, value) in [("host", &self.host), ("dbname", &self.dbname), ("user", &self.user)] {
            if value.is_empty() && (self.url.is_some() || doc.has(&format!("{SECTION}.{key}"))) {
                let at = if self.url.is_some() { "postgres.url".to_owned() } else { format!("{SECTION}.{key}") };
                doc.fault(
                    &at,
                    format!("the connection has no {key}"),
                    hint(SECTION, if self.url.is_some() { "url" } else { key }),
                );
            }
        }
        self.check_names(doc, link);
        self.check_tls(doc, around);
        if self.password_env.is_some() && self.password_file.is_some() {
            doc.fault("postgres.password_file", "both `password_env` and `password_file` are given", "one of the two");
        }
        doc.in_range(SECTION, "copy_connections", self.copy_connections, 1..=16);
        doc.in_range(SECTION, "heartbeat_seconds", self.heartbeat_seconds, 1..=3600);
        doc.in_range(SECTION, "trigger_archive_days", self.trigger_archive_days, 0..=3650);
        doc.in_range(SECTION, "connect_timeout_seconds", self.connect_timeout_seconds, 1..=300);
        if let Some(around) = around {
            self.password = match (&self.password_env, &mut self.password_file) {
                (Some(variable), _) => around.env_secret(doc, SECTION, "password_env", variable),
                (None, Some(path)) => around.file_secret(doc, SECTION, "password_file", path),
                (None, None) => self.passfile(doc, around),
            };
        }
    }

    /// The password in the file that `PGPASSFILE` names, if it names one.
    fn passfile(&self, doc: &mut Document<'_>, around: &Surroundings<'_>) -> Option<SecretString> {
        let path = (around.env)(PASSFILE_VARIABLE).filter(|path| !path.is_empty())?;
        match std::fs::read_to_string(&path) {
            Ok(file) => passfile::find(&file, &self.host, self.port, &self.dbname, &self.user).map(SecretString::from),
            Err(error) => {
                let what = format!("the file {path}, which {PASSFILE_VARIABLE} names, cannot be read: {error}");
                doc.fault(SECTION, what, hint(SECTION, "password_file"));
                None
            }
        }
    }

    fn check_names(&mut self, doc: &mut Document<'_>, link: &str) {
        if self.slot.is_empty() {
            self.slot = format!("tidelock_{link}");
        }
        if self.publication.is_empty() {
            self.publication = format!("tidelock_{link}");
        }
        if let Some(problem) = name_problem(&self.slot, NAME_MAX).filter(|_| doc.has("postgres.slot")) {
            doc.fault("postgres.slot", format!("the slot's name {problem}"), hint(SECTION, "slot"));
        }
        if let Some(problem) = name_problem(&self.publication, NAME_MAX).filter(|_| doc.has("postgres.publication")) {
            doc.fault(
                "postgres.publication",
                format!("the publication's name {problem}"),
                hint(SECTION, "publication"),
            );
        }
        if self.schema.is_empty() || self.schema.len() > NAME_MAX || self.schema.contains('\0') {
            doc.fault("postgres.schema", "the schema's name must have 1 to 63 bytes", hint(SECTION, "schema"));
        } else if self.schema.starts_with("pg_") || self.schema == "information_schema" || self.schema == "tidelock" {
            doc.fault("postgres.schema", format!("the schema `{}` is reserved", self.schema), hint(SECTION, "schema"));
        } else if self.capture == Capture::Trigger && self.schema.len() > TRIGGER_SCHEMA_MAX {
            let what =
                format!("with `capture = \"trigger\"`, the schema's name must have at most {TRIGGER_SCHEMA_MAX} bytes");
            doc.fault("postgres.schema", what, hint(SECTION, "schema"));
        }
    }

    fn check_tls(&mut self, doc: &mut Document<'_>, around: Option<&Surroundings<'_>>) {
        if self.sslcert.is_some() != self.sslkey.is_some() {
            let (there, missing) = if self.sslcert.is_some() { ("sslcert", "sslkey") } else { ("sslkey", "sslcert") };
            doc.fault(
                &format!("{SECTION}.{there}"),
                format!("`{there}` needs `{missing}` too"),
                hint(SECTION, missing),
            );
        }
        if self.sslmode == SslMode::Disable && (self.sslrootcert.is_some() || self.sslcert.is_some()) {
            doc.fault(
                "postgres.sslmode",
                "`sslmode` is disable, but certificates are given",
                "sslmode = \"verify-full\"",
            );
        }
        if self.sslmode == SslMode::VerifyCa && self.sslrootcert.is_none() && !self.is_socket() {
            let at = if doc.has("postgres.sslmode") { "postgres.sslmode" } else { "postgres.url" };
            doc.fault(
                at,
                "`sslmode` is verify-ca, which trusts no authority without `sslrootcert`",
                hint(SECTION, "sslrootcert"),
            );
        }
        let Some(around) = around else { return };
        for (key, path) in
            [("sslrootcert", &mut self.sslrootcert), ("sslcert", &mut self.sslcert), ("sslkey", &mut self.sslkey)]
        {
            if let Some(path) = path {
                around.read(doc, SECTION, key, path);
            }
        }
    }

    /// Takes the parts of the URI over into the keys that they stand for.
    fn take_url(&mut self, doc: &mut Document<'_>, url: &str) {
        for key in ["host", "port", "dbname", "user"] {
            if doc.has(&format!("{SECTION}.{key}")) {
                doc.fault(
                    &format!("{SECTION}.{key}"),
                    format!("`{key}` is given beside `url`"),
                    "either `url` or the single keys",
                );
            }
        }
        let parts = match split_url(url) {
            Ok(parts) => parts,
            Err(problem) => {
                let write = if problem == HAS_PASSWORD { hint(SECTION, "password_env") } else { hint(SECTION, "url") };
                doc.fault("postgres.url", problem, write);
                return;
            }
        };
        for (key, value) in parts {
            if key_is_unknown(&key) {
                doc.fault("postgres.url", format!("the url has the unknown parameter `{key}`"), hint(SECTION, "url"));
            } else if !self.take_part(&key, value) {
                doc.fault("postgres.url", format!("the url's `{key}` is not what it can be"), hint(SECTION, "url"));
            }
            let twice = matches!(key.as_str(), "sslmode" | "sslrootcert" | "sslcert" | "sslkey");
            if twice && doc.has(&format!("{SECTION}.{key}")) {
                doc.fault(&format!("{SECTION}.{key}"), format!("`{key}` is given here and in `url`"), "it once");
            }
        }
    }

    /// Takes one part of the URI over; false if its value is not what it can be.
    fn take_part(&mut self, key: &str, value: String) -> bool {
        use serde::de::value::{Error, StrDeserializer};
        match key {
            "host" => self.host = value,
            "dbname" => self.dbname = value,
            "user" => self.user = value,
            "sslrootcert" => self.sslrootcert = Some(value.into()),
            "sslcert" => self.sslcert = Some(value.into()),
            "sslkey" => self.sslkey = Some(value.into()),
            "port" => return value.parse().map(|port| self.port = port).is_ok(),
            "connect_timeout" => return value.parse().map(|s| self.connect_timeout_seconds = s).is_ok(),
            "sslmode" => {
                let mode = SslMode::deserialize(StrDeserializer::<Error>::new(&value));
                return mode.map(|mode| self.sslmode = mode).is_ok();
            }
            _ => return false,
        }
        true
    }
}

/// The parts of a URI that have a key of their own here.
const URL_PARTS: [&str; 9] =
    ["host", "port", "dbname", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout"];

fn key_is_unknown(key: &str) -> bool {
    !URL_PARTS.contains(&key)
}

const HAS_PASSWORD: &str = "the url holds a password, and secrets do not belong in this file";

/// The parts of a libpq URI as keyword and value.
fn split_url(url: &str) -> Result<Vec<(String, String)>, &'static str> {
    const MALFORMED: &str = "the url is not a PostgreSQL connection URI";
    let rest = url.strip_prefix("postgresql://").or_else(|| url.strip_prefix("postgres://")).ok_or(MALFORMED)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (user, address),
        None => ("", authority),
    };
    if user.contains(':') {
        return Err(HAS_PASSWORD);
    }
    if address.contains(',') {
        return Err("the url names several hosts, and replication needs the one primary");
    }
    let (host, port) = match address.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(MALFORMED)?;
            (host, port.strip_prefix(':').unwrap_or(port))
        }
        None => address.split_once(':').unwrap_or((address, "")),
    };
    let mut parts = Vec::new();
    let given = [("user", user), ("host", host), ("port", port), ("dbname", path)];
    for (key, value) in given.into_iter().filter(|(_, v)| !v.is_empty()) {
        parts.push((key.to_owned(), decoded(value).ok_or(MALFORMED)?));
    }
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or(MALFORMED)?;
        if key == "password" {
            return Err(HAS_PASSWORD);
        }
        parts.push((key.to_owned(), decoded(value).ok_or(MALFORMED)?));
    }
    Ok(parts)
}

/// Text with `%41` as `A`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte == b'%' {
            let (pair, tail) = tail.split_at_checked(2)?;
            let pair = std::str::from_utf8(pair).ok()?;
            bytes.push(u8::from_str_radix(pair, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*byte);
        }
    }
    String::from_utf8(bytes).ok()
}
