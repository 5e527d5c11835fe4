//! What the sandbox is told: where to listen, who may come in, which objects the org has, and how it behaves.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::clock::{self, SharedClock};
use crate::error::{Error, Kind, Result};

/// Everything that [`Sandbox::start`](super::Sandbox::start) needs. The default is a whole org on a free port.
pub struct Config {
    /// Where to listen. The default is a free port of 127.0.0.1.
    pub listen: SocketAddr,
    /// The org's id, 15 or 18 characters.
    pub org_id: String,
    /// The instance URL that OAuth answers give. Without it, it is the scheme and host that the client came to.
    pub instance_url: Option<String>,
    /// A certificate and key to use; without them the sandbox makes its own.
    pub certificate: Option<CertificateFiles>,
    /// Custom objects and fields, flows, validation rules and channels.
    pub org: OrgFile,
    /// Who may come in by OAuth.
    pub clients: Vec<Client>,
    /// People of the org, besides the clients' users.
    pub users: Vec<Person>,
    /// Records that exist when the org begins.
    pub seed: Seed,
    /// How long events are kept.
    pub retention: Duration,
    /// How many events are kept at most.
    pub max_events: usize,
    /// The longest silence of a subscription that waits for events.
    pub keepalive: Duration,
    /// How long a subscription may stay open that asks for nothing.
    pub idle_close: Duration,
    /// How long a token lives after its last use.
    pub token_lifetime: Duration,
    /// API requests per 24 hours.
    pub daily_requests: u64,
    /// What an update does whose values are all there already.
    pub no_op_update: NoOpUpdate,
    /// Whether the same change of several records in one transaction is told in one event.
    pub merge_events: bool,
    /// Whether long texts are told as differences.
    pub diff_fields: bool,
    /// Whether changes made by composite resources tell the client's name in their origin.
    pub composite_origin: bool,
    /// Changed fields of one transaction beyond which events turn into overflow events.
    pub overflow_changes: usize,
    /// The time.
    pub clock: SharedClock,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            org_id: "00D000000000001EAA".to_owned(),
            instance_url: None,
            certificate: None,
            org: OrgFile::default(),
            clients: vec![Client::new("tidelock", "tidelock-secret", "integration@sandbox.example")],
            users: ["Ann Admin", "Bob Seller", "Cleo Support"].into_iter().map(Person::named).collect(),
            seed: Seed::default(),
            retention: Duration::from_hours(72),
            max_events: 500_000,
            keepalive: Duration::from_secs(270),
            idle_close: Duration::from_secs(70),
            token_lifetime: Duration::from_hours(2),
            daily_requests: 100_000,
            no_op_update: NoOpUpdate::default(),
            merge_events: true,
            diff_fields: true,
            composite_origin: true,
            overflow_changes: 100_000,
            clock: clock::system(),
        }
    }
}

/// A PEM certificate chain and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate chain, the server's own first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// What an update does whose values are all stored already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoOpUpdate {
    /// Nothing at all: no stamp moves and no event is told.
    #[default]
    Silent,
    /// The stamps move, and no event is told.
    Stamp,
    /// The stamps move, and an event tells of them alone.
    Event,
}

/// An OAuth client of the org and the user that it acts as.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The consumer key.
    pub client_id: String,
    /// The consumer secret.
    #[serde(default = "no_secret", deserialize_with = "secret")]
    pub client_secret: SecretString,
    /// The user name that client credentials act as.
    pub username: String,
    /// The public key, as PEM, that JWT assertions of this client are checked with.
    #[serde(default)]
    pub public_key_pem: Option<String>,
}

impl Client {
    /// A client with a secret.
    pub fn new(client_id: &str, client_secret: &str, username: &str) -> Self {
        Self {
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned().into(),
            username: username.to_owned(),
            public_key_pem: None,
        }
    }

    /// The same client with the public key (PEM) that its JWT assertions are checked with.
    pub fn with_public_key(mut self, pem: &str) -> Self {
        self.public_key_pem = Some(pem.to_owned());
        self
    }

    pub(crate) fn accepts(&self, secret: &str) -> bool {
        let own = self.client_secret.expose_secret();
        !own.is_empty() && own == secret
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

fn no_secret() -> SecretString {
    String::new().into()
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<SecretString, D::Error> {
    String::deserialize(from).map(Into::into)
}

/// A person of the org.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    /// First and last name.
    pub name: String,
    /// The user name, in the form of an email address.
    pub username: String,
    /// The password for the username-password flow and SOAP login; without one, they are refused.
    #[serde(default = "no_secret", deserialize_with = "secret")]
    pub password: SecretString,
}

impl Person {
    /// A person whose user name follows from the name.
    pub fn named(name: &str) -> Self {
        let username =
            format!("{}@sandbox.example", name.to_lowercase().split_whitespace().collect::<Vec<_>>().join("."));
        Self { name: name.to_owned(), username, password: no_secret() }
    }

    /// The same person with a password.
    pub fn with_password(mut self, password: &str) -> Self {
        self.password = password.to_owned().into();
        self
    }
}

impl Person {
    pub(crate) fn accepts(&self, password: &str) -> bool {
        let own = self.password.expose_secret();
        !own.is_empty() && own == password
    }
}

impl fmt::Debug for Person {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Person").field("name", &self.name).field("username", &self.username).finish_non_exhaustive()
    }
}

/// How many records the org begins with. The same seed gives the same records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Seed {
    /// The seed of all that is random in the sandbox.
    pub seed: u64,
    /// Accounts.
    pub accounts: u32,
    /// Contacts, spread over the accounts.
    pub contacts: u32,
    /// Opportunities, spread over the accounts.
    pub opportunities: u32,
    /// Cases, spread over the contacts.
    pub cases: u32,
}

impl Default for Seed {
    fn default() -> Self {
        Self { seed: 1, accounts: 0, contacts: 0, opportunities: 0, cases: 0 }
    }
}

/// The org file: what this org has beyond the standard objects. TOML or JSON.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OrgFile {
    /// Custom objects, and custom fields or changed attributes of standard objects.
    pub objects: Vec<ObjectSpec>,
    /// Automation that changes fields in the same transaction.
    pub flows: Vec<FlowSpec>,
    /// Rules that refuse records.
    pub validations: Vec<ValidationSpec>,
    /// Custom event channels by name (without `/data/` and `__chn`).
    pub channels: Vec<ChannelSpec>,
    /// More OAuth clients.
    pub clients: Vec<Client>,
    /// More people.
    pub users: Vec<Person>,
}

impl OrgFile {
    /// Reads an org file; `.json` is JSON, everything else TOML.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::new(Kind::Configuration, format!("cannot read {}", path.display())).caused_by(e))?;
        let parsed = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
            serde_json::from_str(&text).map_err(|e| e.to_string())
        } else {
            toml::from_str(&text).map_err(|e| e.to_string())
        };
        parsed.map_err(|e| Error::new(Kind::Configuration, format!("{} is not an org file: {e}", path.display())))
    }

    /// Reads an org file's text in TOML.
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| Error::new(Kind::Configuration, format!("not an org file: {e}")))
    }
}

/// An object of the org file: a custom object, or a standard one that gets more fields.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectSpec {
    /// The API name, such as `Invoice__c` or `Account`.
    pub name: String,
    /// The label; without it, it follows from the name.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether change events tell of it.
    #[serde(default = "yes")]
    pub events: bool,
    /// For a custom object: `Name` is counted up with this prefix instead of being given.
    #[serde(default)]
    pub auto_number: Option<String>,
    /// Its fields.
    #[serde(default)]
    pub fields: Vec<FieldSpec>,
}

/// A field of the org file. One that exists has the given attributes changed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FieldSpec {
    /// The API name.
    pub name: String,
    /// The type as describe names it, and `location`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// Characters.
    pub length: Option<u32>,
    /// Digits in all.
    pub precision: Option<u32>,
    /// Digits after the decimal point.
    pub scale: Option<u32>,
    /// Whether it must have a value.
    pub required: Option<bool>,
    /// Whether no two records may have the same value.
    pub unique: Option<bool>,
    /// Whether it can be upserted by.
    pub external_id: Option<bool>,
    /// Whether uniqueness tells upper from lower case.
    pub case_sensitive: Option<bool>,
    /// Picklist values.
    pub values: Option<Vec<String>>,
    /// Whether other picklist values are refused.
    pub restricted: Option<bool>,
    /// The objects that it refers to.
    pub reference_to: Option<Vec<String>>,
    /// The name of the relationship to the parent.
    pub relationship: Option<String>,
    /// The name of the relationship to the children.
    pub child_relationship: Option<String>,
    /// `clear`, `cascade` or `restrict`: what the parent's delete does.
    pub on_delete: Option<String>,
    /// The value of a record that is created without one.
    pub default: Option<serde_json::Value>,
    /// Whether it holds rich text.
    pub html: Option<bool>,
}

/// A flow: sets a field in the transaction of the change that fires it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowSpec {
    /// The object.
    pub object: String,
    /// `create`, `update` or `both`.
    #[serde(default = "both")]
    pub when: String,
    /// Fires only when this field changes.
    #[serde(default)]
    pub if_changed: Option<String>,
    /// Fires only for records that this SOQL condition holds for, such as `Industry = 'Energy'`.
    #[serde(default)]
    pub only_if: Option<String>,
    /// The field that is set.
    pub set: String,
    /// A constant, or one of `upper(F)`, `lower(F)`, `copy(F)`, `increment(F)`, `concat(F, 'text', G)`, `null()`.
    pub to: serde_json::Value,
    /// Whether it runs after the record is saved, so that its change is told in an event of its own.
    #[serde(default)]
    pub after: bool,
}

/// A validation rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationSpec {
    /// The object.
    pub object: String,
    /// A SOQL condition that refuses a record when it holds, such as `Amount < 0`.
    pub error_if: String,
    /// What the refusal says.
    pub message: String,
    /// The field that it is said of.
    #[serde(default)]
    pub field: Option<String>,
}

/// A custom event channel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelSpec {
    /// The name without `__chn`.
    pub name: String,
    /// The objects whose events it carries.
    pub objects: Vec<String>,
}

fn yes() -> bool {
    true
}

fn both() -> String {
    "both".to_owned()
}
