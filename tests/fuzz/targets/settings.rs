//! Any text is a configuration, or a list of what is wrong with it; any text is a database's address or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secrecy::ExposeSecret as _;
use tidelock::config::Config;
use tidelock::postgres::Endpoint;

fuzz_target!(|text: &str| {
    if let Err(errors) = Config::parse(text, "fuzz.toml") {
        assert!(!errors.to_string().is_empty());
    }
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        // A password that no other part of the address could hold by chance is nowhere in what is logged.
        let secret = endpoint.password.as_ref().map(|p| p.expose_secret()).filter(|p| p.len() > 8);
        let shown = format!("{endpoint:?}");
        assert!(secret.is_none_or(|secret| text.matches(secret).count() > 1 || !shown.contains(secret)));
    }
});
