//! Everything that speaks to Salesforce.
//!
//! [`auth`] gets tokens and shares them between [`rest`] and [`pubsub`], so that one refresh serves both. [`rest`] carries
//! every HTTP call: it counts them, reads the org's own count, and measures how far the org's clock is from ours.
//!
//! [`capture`] follows the org's change events: [`pubsub`] delivers them, [`avro`] and [`bitmap`] decode them,
//! `capture_event` says what one means for mapped rows, and [`reread`] reads what events cannot tell. [`backfill`] copies
//! whole objects.
//!
//! Invariants:
//! * a secret is never in a log line, an error or a `Debug`;
//! * a token is sent over TLS only, but for loopback addresses;
//! * every network call has a timeout;
//! * no event is left out in silence: what the stream cannot tell is read, and a notice says so.

pub mod auth;
pub mod avro;
pub mod backfill;
pub mod bitmap;
pub mod capture;
mod capture_event;
pub mod capture_status;
mod capture_tell;
pub mod describe;
pub mod errors;
pub mod limits;
pub mod offset;
pub mod preflight;
pub mod pubsub;
pub mod reread;
pub mod rest;
#[cfg(test)]
mod stub;
pub mod target;

#[cfg(test)]
mod sandbox_tests;

use std::time::Duration;

use crate::change::Str;
use crate::error::{Error, Kind, Result};

/// The 18-character form of a Salesforce id: 15 characters get their checksum, everything else is returned as it is.
///
/// The checksum has one character for each five: the `j`th bit of its value says whether the `j`th of the five is upper case.
pub fn id18(id: &str) -> Str {
    if id.len() != 15 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Str::new(id);
    }
    let mut text = id.to_owned();
    for five in id.as_bytes().chunks(5) {
        let value =
            five.iter().enumerate().fold(0u8, |bits, (j, b)| if b.is_ascii_uppercase() { bits | 1 << j } else { bits });
        text.push(char::from(if value < 26 { b'A' + value } else { b'0' + value - 26 }));
    }
    text.into()
}

/// The HTTP client for all calls to Salesforce. `extra_ca_pem` holds certificates to trust besides the system's.
///
/// Redirects are not followed: they would carry tokens and forms to another host.
pub fn http_client(extra_ca_pem: Option<&[u8]>) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("tidelock/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(15))
        .pool_idle_timeout(Duration::from_mins(1))
        .tcp_keepalive(Duration::from_secs(30));
    if let Some(pem) = extra_ca_pem {
        let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| {
            Error::new(Kind::Configuration, "the extra CA file for Salesforce is not a PEM bundle of certificates")
                .caused_by(e)
        })?;
        if certificates.is_empty() {
            return Err(Error::new(Kind::Configuration, "the extra CA file for Salesforce has no certificate in it"));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|e| {
        Error::new(
            Kind::Configuration,
            "the HTTP client for Salesforce cannot be set up; check the system's CA certificates",
        )
        .caused_by(e)
    })
}

/// Checks that secrets may be sent to this address: https, or http to this machine.
pub(crate) fn check_secure(what: &str, url: &str) -> Result<reqwest::Url> {
    let parsed = reqwest::Url::parse(url).map_err(|e| {
        Error::new(
            Kind::Configuration,
            format!("{what} {url:?} is not a URL; write it like https://mydomain.my.salesforce.com"),
        )
        .caused_by(e)
    })?;
    if parsed.scheme() == "https" || parsed.scheme() == "http" && is_loopback(parsed.host_str().unwrap_or_default()) {
        return Ok(parsed);
    }
    Err(Error::new(
        Kind::Configuration,
        format!(
            "{what} {url:?} must start with https:// (http:// is taken for loopback addresses only, since tokens would be readable on the way)"
        ),
    ))
}

/// Whether a URL's host is this machine.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_get_their_checksum() {
        for (short, long) in [
            ("001000000000001", "001000000000001AAA"),
            ("00D000000000001", "00D000000000001EAA"),
            ("00NDp00000BbvCY", "00NDp00000BbvCYMAZ"),
            ("aBcDeFgHiJkLmNo", "aBcDeFgHiJkLmNoKVK"),
            ("ZZZZZZZZZZZZZZZ", "ZZZZZZZZZZZZZZZ555"),
        ] {
            assert_eq!(id18(short), long);
            assert_eq!(id18(long), long);
        }
        assert_eq!(id18("001*"), "001*");
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for good in ["https://x.my.salesforce.com", "http://127.0.0.1:1", "http://localhost:8080", "http://[::1]:9"] {
            assert!(check_secure("url", good).is_ok(), "{good}");
        }
        for bad in
            ["http://x.my.salesforce.com", "http://10.0.0.1", "ftp://localhost", "x", "http://127.0.0.1.evil.com"]
        {
            assert!(check_secure("url", bad).is_err(), "{bad}");
        }
    }
}
