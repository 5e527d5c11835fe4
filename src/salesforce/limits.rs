//! How much of the org's allocations is left, and how much of them we may use.
//!
//! The org counts every integration's calls together: its own figure comes with each answer (`Sforce-Limit-Info`) and from
//! `/limits`. [`Budget`] keeps our calls below a share of the daily allocation, and stops writing before the whole org runs
//! out, so that other integrations go on working when we are busy.
//!
//! What we have used is counted in memory, by the hour, for the last 24 hours; a restart forgets it. The org's own figure is
//! not forgotten, so the second guard holds all the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use super::rest::{Rest, RestError};
use crate::clock::{Micros, SharedClock};
use crate::error::{Error, Kind, Result};

const HOUR: Micros = 3_600_000_000;
const HOURS: i64 = 24;

/// How long the org's figure is believed while we wait for it to fall.
const REFRESH_EVERY: Micros = 60_000_000;

/// One allocation of the org.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Allocation {
    /// The most in its period.
    pub max: u64,
    /// What is left of it.
    pub remaining: u64,
}

impl Allocation {
    /// What is used up.
    pub const fn used(self) -> u64 {
        self.max.saturating_sub(self.remaining)
    }

    /// What is used up, in whole percent of the most.
    pub fn used_percent(self) -> u64 {
        self.used().saturating_mul(100).checked_div(self.max).unwrap_or_default()
    }
}

/// What is left of the allocations that matter to us. What the org does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Headroom {
    /// API requests by everybody in 24 hours (`DailyApiRequests`).
    pub api_requests: Option<Allocation>,
    /// Events delivered to subscribers in 24 hours (`DailyDeliveredPlatformEvents`).
    pub delivered_events: Option<Allocation>,
    /// Bulk API 2.0 query jobs in 24 hours (`DailyBulkV2QueryJobs`).
    pub bulk_query_jobs: Option<Allocation>,
    /// Data storage, in megabytes (`DataStorageMB`).
    pub data_storage_mb: Option<Allocation>,
}

impl Headroom {
    /// Reads the answer of `/limits`. Limits that are not asked for, and details per connected app, are passed over.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let all: BTreeMap<String, serde_json::Value> = serde_json::from_slice(body).map_err(|e| {
            Error::new(Kind::Protocol, "Salesforce answered /limits with something that is not a JSON object")
                .caused_by(e)
        })?;
        let of = |name: &str| all.get(name).and_then(|limit| Allocation::deserialize(limit).ok());
        Ok(Self {
            api_requests: of("DailyApiRequests"),
            delivered_events: of("DailyDeliveredPlatformEvents"),
            bulk_query_jobs: of("DailyBulkV2QueryJobs"),
            data_storage_mb: of("DataStorageMB"),
        })
    }

    /// Asks the org. Where the user may not see `/limits` (it needs "View Setup and Configuration"), API requests come from
    /// the header that every answer has, and the rest is `None`.
    pub async fn fetch(rest: &Rest) -> Result<Self> {
        match rest.get("limits", &[]).await {
            Ok(answer) => Self::parse(&answer.body),
            Err(RestError::Api(refused))
                if matches!(refused.status, 403 | 404) && refused.code != "REQUEST_LIMIT_EXCEEDED" =>
            {
                Ok(Self { api_requests: last_told(rest), ..Self::default() })
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The API requests as the last answer of any call told them; `None` before the first.
pub fn last_told(rest: &Rest) -> Option<Allocation> {
    let (used, max) = (rest.usage().used(), rest.usage().limit());
    (max > 0).then(|| Allocation { max, remaining: max.saturating_sub(used) })
}

/// How much of the org's daily API requests we may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetOptions {
    /// Our own share of the allocation, in percent.
    pub share_percent: u8,
    /// The part of the allocation that we leave to others: when less than this is left to the whole org, we wait.
    pub reserve_percent: u8,
}

impl Default for BudgetOptions {
    fn default() -> Self {
        Self { share_percent: 50, reserve_percent: 5 }
    }
}

/// How far our share is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Below 70 %.
    #[default]
    Plenty,
    /// From 70 %.
    Low,
    /// From 90 %.
    VeryLow,
    /// Used up: writes wait.
    Spent,
}

/// Guards the org's daily API requests. Clones share one count.
#[derive(Clone)]
pub struct Budget {
    inner: Arc<Inner>,
}

struct Inner {
    options: BudgetOptions,
    clock: SharedClock,
    state: Mutex<State>,
}

/// Why a call must wait.
#[derive(Debug)]
enum Stop {
    /// Our own share is used up; only time helps.
    Share(Error),
    /// The org as a whole has too little left, as far as it last told.
    Org(Error),
}

impl Stop {
    fn into_error(self) -> Error {
        match self {
            Self::Share(error) | Self::Org(error) => error,
        }
    }
}

#[derive(Default)]
struct State {
    /// Our calls by hour since the epoch, oldest first, 24 hours at most.
    hours: VecDeque<(i64, u64)>,
    /// What [`super::rest::Usage::calls`] said when it was last counted.
    counted: u64,
    refreshed_at: Option<Micros>,
    level: Level,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Budget").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl Budget {
    /// A budget of which nothing is used yet.
    pub fn new(options: BudgetOptions, clock: SharedClock) -> Self {
        Self { inner: Arc::new(Inner { options, clock, state: Mutex::default() }) }
    }

    /// Our calls in the last 24 hours, as far as this process knows.
    pub fn own_calls(&self) -> u64 {
        self.state().hours.iter().map(|(_, calls)| calls).sum()
    }

    /// How far our share is used, as last looked at.
    pub fn level(&self) -> Level {
        self.state().level
    }

    /// Whether another call may be made; [`Kind::Limited`] says that it must wait. While the org's own figure forbids it, the
    /// figure is asked for anew once a minute.
    pub async fn permit(&self, rest: &Rest) -> Result<()> {
        let now = self.inner.clock.now();
        let error = match self.look(now, rest.usage().calls(), last_told(rest)) {
            Ok(()) => return Ok(()),
            Err(Stop::Share(error)) => return Err(error),
            Err(Stop::Org(error)) => error,
        };
        if !self.refresh_is_due(now) {
            return Err(error);
        }
        if let Err(cause) = Headroom::fetch(rest).await {
            return Err(error.caused_by(cause));
        }
        self.look(now, rest.usage().calls(), last_told(rest)).map_err(Stop::into_error)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refresh_is_due(&self, now: Micros) -> bool {
        let mut state = self.state();
        let due = state.refreshed_at.is_none_or(|at| now - at >= REFRESH_EVERY);
        if due {
            state.refreshed_at = Some(now);
        }
        due
    }

    /// Counts the calls made since the last look, and decides. `calls` is how many we made since the start.
    fn look(&self, now: Micros, calls: u64, org: Option<Allocation>) -> Result<(), Stop> {
        let options = self.inner.options;
        let mut state = self.state();
        let own = state.count(now, calls);
        let Some(org) = org.filter(|org| org.max > 0) else { return Ok(()) };
        let share = org.max.saturating_mul(u64::from(options.share_percent)) / 100;
        let reserve = org.max.saturating_mul(u64::from(options.reserve_percent)) / 100;
        let starved = org.remaining <= reserve;
        let level = match own.saturating_mul(100) / share.max(1) {
            _ if starved || own >= share => Level::Spent,
            0..70 => Level::Plenty,
            70..90 => Level::Low,
            _ => Level::VeryLow,
        };
        state.enter(level, own, share, org);
        if own >= share {
            return Err(Stop::Share(Error::new(
                Kind::Limited,
                format!(
                    "{own} API calls in 24 hours are all of Tidelock's share ({}% of the org's {}); writes to Salesforce wait \
                     until the oldest are 24 hours ago, or until the share is raised",
                    options.share_percent, org.max
                ),
            )));
        }
        if starved {
            return Err(Stop::Org(Error::new(
                Kind::Limited,
                format!(
                    "the org has {} of its {} daily API requests left, and {}% are kept for its other integrations; writes to \
                     Salesforce wait until more are left",
                    org.remaining, org.max, options.reserve_percent
                ),
            )));
        }
        Ok(())
    }
}

impl State {
    /// Our calls in the last 24 hours, with those since the last look.
    fn count(&mut self, now: Micros, calls: u64) -> u64 {
        let hour = now.div_euclid(HOUR);
        let new = calls.saturating_sub(self.counted);
        self.counted = calls;
        match self.hours.back_mut() {
            Some((last, count)) if *last >= hour => *count += new,
            _ => self.hours.push_back((hour, new)),
        }
        while self.hours.front().is_some_and(|(first, _)| *first <= hour - HOURS) {
            self.hours.pop_front();
        }
        self.hours.iter().map(|(_, calls)| calls).sum()
    }

    /// Says so when more of the share is used up than before.
    fn enter(&mut self, level: Level, own: u64, share: u64, org: Allocation) {
        if level > self.level {
            tracing::warn!(
                own_calls = own,
                own_share = share,
                org_remaining = org.remaining,
                org_max = org.max,
                ?level,
                "the Salesforce API budget is running low"
            );
        }
        self.level = level;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::salesforce::stub::{Stub, refusal};

    struct Stopped;

    impl Clock for Stopped {
        fn now(&self) -> Micros {
            0
        }
    }

    fn budget() -> Budget {
        Budget::new(BudgetOptions { share_percent: 50, reserve_percent: 10 }, Arc::new(Stopped))
    }

    #[test]
    fn the_answer_of_limits_is_read_with_details_and_gaps() {
        let body = br#"{"DailyApiRequests":{"Max":15000,"Remaining":14998,"My App":{"Max":0,"Remaining":0}},
            "DailyDeliveredPlatformEvents":{"Max":25000,"Remaining":0},"DataStorageMB":{"Max":-1},"New":7}"#;
        let headroom = Headroom::parse(body).unwrap();
        assert_eq!(headroom.api_requests, Some(Allocation { max: 15_000, remaining: 14_998 }));
        assert_eq!(headroom.delivered_events.unwrap().used_percent(), 100);
        assert_eq!((headroom.data_storage_mb, headroom.bulk_query_jobs), (None, None));
        assert_eq!(Headroom::parse(b"[]").unwrap_err().kind(), Kind::Protocol);
        assert_eq!(Allocation { max: 0, remaining: 0 }.used_percent(), 0);
    }

    #[test]
    fn our_share_ends_and_comes_back_after_a_day() {
        let budget = budget();
        let org = Some(Allocation { max: 1000, remaining: 900 });
        budget.look(0, 349, org).unwrap();
        assert_eq!(budget.level(), Level::Plenty);
        budget.look(HOUR, 350, org).unwrap();
        assert_eq!(budget.level(), Level::Low);
        budget.look(HOUR, 499, org).unwrap();
        assert_eq!(budget.level(), Level::VeryLow);
        let error = budget.look(HOUR, 500, org).unwrap_err().into_error();
        assert_eq!((error.kind(), budget.level(), budget.own_calls()), (Kind::Limited, Level::Spent, 500));
        assert!(error.to_string().contains("50% of the org's 1000"), "{error}");
        assert!(budget.look(23 * HOUR, 500, org).is_err());
        budget.look(24 * HOUR, 500, org).unwrap();
        assert_eq!(budget.own_calls(), 151);
    }

    #[test]
    fn the_org_keeps_its_reserve_whoever_used_the_rest() {
        let budget = budget();
        budget.look(0, 1, Some(Allocation { max: 1000, remaining: 101 })).unwrap();
        let stop = budget.look(0, 1, Some(Allocation { max: 1000, remaining: 100 })).unwrap_err();
        assert!(matches!(stop, Stop::Org(_)));
        let error = stop.into_error();
        assert!(error.to_string().contains("other integrations"), "{error}");
        budget.look(0, 1, None).unwrap();
    }

    #[tokio::test]
    async fn a_starved_org_is_asked_again_now_and_then() {
        let left = Arc::new(Mutex::new(5));
        let told = left.clone();
        let stub = Stub::start(move |_| {
            let remaining = *told.lock().unwrap();
            (200, format!(r#"{{"DailyApiRequests":{{"Max":100,"Remaining":{remaining}}}}}"#))
        })
        .await;
        stub.set_usage(95, 100);
        let budget = Budget::new(BudgetOptions { share_percent: 50, reserve_percent: 10 }, stub.rest.clock().clone());
        budget.permit(&stub.rest).await.unwrap();
        stub.rest.get("limits", &[]).await.unwrap();
        assert_eq!(budget.permit(&stub.rest).await.unwrap_err().kind(), Kind::Limited);
        stub.set_usage(10, 100);
        // Within the minute the org is believed.
        assert_eq!(budget.permit(&stub.rest).await.unwrap_err().kind(), Kind::Limited);
        assert_eq!(stub.asked().len(), 2);
        budget.state().refreshed_at = None;
        budget.permit(&stub.rest).await.unwrap();
        assert_eq!(budget.level(), Level::Plenty);
        let headroom = Headroom::fetch(&stub.rest).await.unwrap();
        assert_eq!(headroom.api_requests.unwrap().max, 100);
    }

    #[tokio::test]
    async fn without_leave_to_see_limits_the_header_tells() {
        let stub = Stub::start(|_| (403, refusal("INSUFFICIENT_ACCESS", "no"))).await;
        let headroom = Headroom::fetch(&stub.rest).await.unwrap();
        assert_eq!(
            headroom,
            Headroom { api_requests: Some(Allocation { max: 15_000, remaining: 14_982 }), ..Headroom::default() }
        );
        let stub = Stub::start(|_| (403, refusal("REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded."))).await;
        assert_eq!(Headroom::fetch(&stub.rest).await.unwrap_err().kind(), Kind::Limited);
    }

    #[test]
    fn a_clock_that_steps_back_loses_no_calls() {
        let budget = budget();
        budget.look(5 * HOUR, 10, None).unwrap();
        budget.look(4 * HOUR, 20, None).unwrap();
        assert_eq!(budget.own_calls(), 20);
    }
}
