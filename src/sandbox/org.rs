//! The org as its interfaces share it: the state behind its lock, who may come in, and the signals to subscriptions.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::watch;

use super::config::{Client, Config, OrgFile, Person};
use super::id;
use super::state::State;
use crate::clock::SharedClock;
use crate::error::{Error, Kind, Result};

/// The API version that the org speaks for itself.
pub(crate) const VERSION: &str = "66.0";

/// The org and what its interfaces need beside it.
pub(crate) struct Org {
    state: Mutex<State>,
    clock: SharedClock,
    /// The org's 18-character id.
    pub(crate) id: SmolStr,
    pub(crate) instance_url: Option<String>,
    pub(crate) clients: Vec<Client>,
    pub(crate) people: Vec<Person>,
    pub(crate) file: OrgFile,
    pub(crate) token_lifetime_ms: i64,
    pub(crate) daily_requests: u64,
    pub(crate) composite_origin: bool,
    pub(crate) keepalive: Duration,
    pub(crate) idle_close: Duration,
    /// The number of the newest event.
    tip: watch::Sender<u64>,
    /// Counted up to end every open subscription.
    drops: watch::Sender<u64>,
}

impl Org {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let now_ms = config.clock.now().div_euclid(1000);
        let id = id::normalise(&config.org_id)
            .ok_or_else(|| Error::new(Kind::Configuration, format!("{:?} is not an org id", config.org_id)))?;
        let state = State::new(&config, now_ms)?;
        let (tip, drops) = (watch::Sender::new(state.log.tip()), watch::Sender::new(0));
        let mut clients = config.clients;
        clients.extend(config.org.clients.iter().cloned());
        let mut people = config.users;
        people.extend(config.org.users.iter().cloned());
        Ok(Self {
            state: Mutex::new(state),
            clock: config.clock,
            id,
            instance_url: config.instance_url,
            clients,
            people,
            file: config.org,
            token_lifetime_ms: config.token_lifetime.as_millis() as i64,
            daily_requests: config.daily_requests,
            composite_origin: config.composite_origin,
            keepalive: config.keepalive,
            idle_close: config.idle_close,
            tip,
            drops,
        })
    }

    /// The time, in milliseconds.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now().div_euclid(1000)
    }

    /// Runs `work` on the state, and wakes the subscriptions if it told of something. Must not be nested.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let (result, tip) = {
            // A panic in one request leaves at most that request's change behind.
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut state);
            (result, state.log.tip())
        };
        self.tip.send_if_modified(|known| std::mem::replace(known, tip) != tip);
        result
    }

    /// Follows the newest event's number.
    pub(crate) fn watch_tip(&self) -> watch::Receiver<u64> {
        self.tip.subscribe()
    }

    /// Follows the orders to end subscriptions.
    pub(crate) fn watch_drops(&self) -> watch::Receiver<u64> {
        self.drops.subscribe()
    }

    /// Ends every open subscription.
    pub(crate) fn drop_streams(&self) {
        self.drops.send_modify(|count| *count += 1);
    }
}
