//! `[http]`: where health, readiness, metrics and status are served.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::document::{Document, hint};

/// The HTTP port.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The address and port, or `off`.
    pub listen: String,
    /// `listen` as an address; none if it is off.
    #[serde(skip)]
    #[schemars(skip)]
    pub address: Option<SocketAddr>,
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: "127.0.0.1:8370".to_owned(), address: None }
    }
}

impl Http {
    pub(super) fn check(&mut self, doc: &mut Document<'_>) {
        if self.listen != "off" {
            match self.listen.parse() {
                Ok(address) => self.address = Some(address),
                Err(_) => {
                    doc.fault(
                        "http.listen",
                        "`listen` is neither an IP address with a port nor `off`",
                        hint("http", "listen"),
                    );
                }
            }
        }
    }
}
