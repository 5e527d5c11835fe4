//! `[salesforce]`: which org, as whom, and how much of its allowance Tidelock may use.

use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::document::{Document, hint};
use super::secret::Surroundings;

/// How Tidelock logs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// The OAuth client credentials flow: a client id and secret; the app's run-as user.
    #[default]
    ClientCredentials,
    /// The OAuth JWT bearer flow: a client id, a user name and a private key.
    Jwt,
}

/// The org.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["login_url", "client_id"]))]
pub struct Salesforce {
    /// Where to log in: the org's My Domain, or login.salesforce.com and test.salesforce.com with `auth = "jwt"`.
    pub login_url: String,
    /// How to log in.
    pub auth: Auth,
    /// The connected app's consumer key.
    pub client_id: String,
    /// The environment variable that holds the consumer secret (client_credentials).
    pub client_secret_env: Option<String>,
    /// The file that holds the consumer secret (client_credentials).
    pub client_secret_file: Option<PathBuf>,
    /// The user to act as (jwt).
    pub username: Option<String>,
    /// The file of the private key, PEM (jwt).
    pub private_key_file: Option<PathBuf>,
    /// The assertion's audience (jwt), if it is not `login_url`.
    pub audience: Option<String>,
    /// The API version.
    #[schemars(regex(pattern = r"^[0-9]{2,3}\.0$"))]
    pub api_version: String,
    /// Where the Pub/Sub API is.
    pub pubsub_endpoint: String,
    /// More root certificates to trust (PEM), for a proxy or the sandbox.
    pub ca_certificate: Option<PathBuf>,
    /// The org's id. If it is given, Tidelock stops when it finds itself logged in to another one.
    pub organization_id: Option<String>,
    /// The name by which our own API calls show in change events.
    pub client_name: String,
    /// How many API requests may be under way at once.
    #[schemars(range(min = 1, max = 25))]
    pub requests_in_flight: u32,
    /// The share of the org's daily API calls that Tidelock may use, in percent.
    #[schemars(range(min = 1, max = 100))]
    pub daily_calls_percent: u32,
    /// The consumer secret, once it was looked up.
    #[serde(skip)]
    #[schemars(skip)]
    pub client_secret: Option<SecretString>,
    /// The private key as PEM text, once it was looked up.
    #[serde(skip)]
    #[schemars(skip)]
    pub private_key: Option<SecretString>,
}

impl Default for Salesforce {
    fn default() -> Self {
        Self {
            login_url: String::new(),
            auth: Auth::default(),
            client_id: String::new(),
            client_secret_env: None,
            client_secret_file: None,
            username: None,
            private_key_file: None,
            audience: None,
            api_version: "66.0".to_owned(),
            pubsub_endpoint: "https://api.pubsub.salesforce.com:7443".to_owned(),
            ca_certificate: None,
            organization_id: None,
            client_name: "tidelock".to_owned(),
            requests_in_flight: 4,
            daily_calls_percent: 50,
            client_secret: None,
            private_key: None,
        }
    }
}

const SECTION: &str = "salesforce";

impl Salesforce {
    pub(super) fn check(&mut self, doc: &mut Document<'_>, around: Option<&Surroundings<'_>>) {
        for key in ["login_url", "client_id"] {
            if !doc.has(&format!("{SECTION}.{key}")) {
                doc.missing(SECTION, key);
            }
        }
        if doc.has("salesforce.client_id") && self.client_id.is_empty() {
            doc.fault("salesforce.client_id", "`client_id` is empty", hint(SECTION, "client_id"));
        }
        if doc.has("salesforce.login_url") {
            check_url(doc, "login_url", &mut self.login_url);
        }
        check_url(doc, "pubsub_endpoint", &mut self.pubsub_endpoint);
        let version = self.api_version.strip_suffix(".0").and_then(|v| v.parse::<u32>().ok());
        if !version.is_some_and(|v| (31..=999).contains(&v)) {
            let what = "`api_version` is not a version that Salesforce still serves (31.0 and up)";
            doc.fault("salesforce.api_version", what, hint(SECTION, "api_version"));
        }
        let id = self.organization_id.as_deref();
        if id.is_some_and(|id| !matches!(id.len(), 15 | 18) || !id.starts_with("00D")) {
            let what = "`organization_id` is not an org's id: 15 or 18 characters that begin with 00D";
            doc.fault("salesforce.organization_id", what, hint(SECTION, "organization_id"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if self.client_name.is_empty() || self.client_name.len() > 40 || !self.client_name.bytes().all(plain) {
            let what = "`client_name` must have 1 to 40 letters, digits, points, dashes or underscores";
            doc.fault("salesforce.client_name", what, hint(SECTION, "client_name"));
        }
        doc.in_range(SECTION, "requests_in_flight", self.requests_in_flight, 1..=25);
        doc.in_range(SECTION, "daily_calls_percent", self.daily_calls_percent, 1..=100);
        match self.auth {
            Auth::ClientCredentials => self.check_client_credentials(doc),
            Auth::Jwt => self.check_jwt(doc),
        }
        if let Some(around) = around {
            self.look_up(doc, around);
        }
    }

    fn check_client_credentials(&self, doc: &mut Document<'_>) {
        if self.client_secret_env.is_some() && self.client_secret_file.is_some() {
            let what = "both `client_secret_env` and `client_secret_file` are given";
            doc.fault("salesforce.client_secret_file", what, "one of the two");
        }
        if self.client_secret_env.is_none() && self.client_secret_file.is_none() {
            doc.missing(SECTION, "client_secret_env");
        }
        for key in ["username", "private_key_file", "audience"] {
            if doc.has(&format!("{SECTION}.{key}")) {
                let what = format!("`{key}` is for auth = \"jwt\", but `auth` is client_credentials");
                doc.fault(&format!("{SECTION}.{key}"), what, "auth = \"jwt\"");
            }
        }
        let host = self.login_url.strip_prefix("https://").unwrap_or_default();
        if matches!(host, "login.salesforce.com" | "test.salesforce.com") {
            let what = format!("{host} does not offer the client credentials flow");
            doc.fault("salesforce.login_url", what, hint(SECTION, "login_url"));
        }
    }

    fn check_jwt(&self, doc: &mut Document<'_>) {
        for (key, missing) in
            [("username", self.username.is_none()), ("private_key_file", self.private_key_file.is_none())]
        {
            if missing {
                doc.missing(SECTION, key);
            }
        }
        for key in ["client_secret_env", "client_secret_file"] {
            if doc.has(&format!("{SECTION}.{key}")) {
                let what = format!("`{key}` is for auth = \"client_credentials\", but `auth` is jwt");
                doc.fault(&format!("{SECTION}.{key}"), what, "auth = \"client_credentials\"");
            }
        }
    }

    fn look_up(&mut self, doc: &mut Document<'_>, around: &Surroundings<'_>) {
        self.client_secret = match (&self.client_secret_env, &mut self.client_secret_file) {
            (Some(variable), _) => around.env_secret(doc, SECTION, "client_secret_env", variable),
            (None, Some(path)) => around.file_secret(doc, SECTION, "client_secret_file", path),
            (None, None) => None,
        };
        if let Some(path) = &mut self.private_key_file {
            self.private_key = around.file_secret(doc, SECTION, "private_key_file", path);
        }
        if let Some(path) = &mut self.ca_certificate {
            around.read(doc, SECTION, "ca_certificate", path);
        }
    }
}

/// Takes off a trailing slash; plain http is for this machine only.
fn check_url(doc: &mut Document<'_>, key: &str, url: &mut String) {
    while url.ends_with('/') {
        url.pop();
    }
    let path = format!("{SECTION}.{key}");
    let Some((scheme, authority)) = url.split_once("://") else {
        doc.fault(&path, format!("`{key}` is not an address"), hint(SECTION, key));
        return;
    };
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    let local = matches!(host, "localhost" | "127.0.0.1" | "::1");
    if host.is_empty() || authority.contains(['/', '?', '#', '@', ' ']) {
        doc.fault(&path, format!("`{key}` must be a scheme, a host and maybe a port"), hint(SECTION, key));
    } else if scheme != "https" && !(scheme == "http" && local) {
        doc.fault(
            &path,
            format!("`{key}` must begin with https:// (http:// is for this machine only)"),
            hint(SECTION, key),
        );
    }
}
