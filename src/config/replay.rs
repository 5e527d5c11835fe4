//! `[replay]`: how many writes go out together, and how often a failed one is tried again.

use schemars::JsonSchema;
use serde::Deserialize;

use super::document::{Document, hint};

/// Limits of replay.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// The most writes in one transaction of ours in PostgreSQL.
    #[schemars(range(min = 1, max = 5000))]
    pub postgres_batch: u32,
    /// The most writes in one request to Salesforce.
    #[schemars(range(min = 1, max = 200))]
    pub salesforce_batch: u32,
    /// How long changes are gathered for one request to Salesforce, in milliseconds: each request costs an API call.
    #[schemars(range(min = 0, max = 60_000))]
    pub salesforce_linger_ms: u32,
    /// How often a write is tried before it becomes a dead letter, where its error may pass.
    #[schemars(range(min = 1, max = 1000))]
    pub attempts: u32,
    /// The pause before the second try, in milliseconds. It doubles from try to try.
    #[schemars(range(min = 10, max = 600_000))]
    pub backoff_min_ms: u32,
    /// The longest pause between two tries, in milliseconds.
    #[schemars(range(min = 10, max = 3_600_000))]
    pub backoff_max_ms: u32,
}

impl Default for Replay {
    fn default() -> Self {
        Self {
            postgres_batch: 1_000,
            salesforce_batch: 200,
            salesforce_linger_ms: 25,
            attempts: 10,
            backoff_min_ms: 500,
            backoff_max_ms: 60_000,
        }
    }
}

impl Replay {
    pub(super) fn check(&self, doc: &mut Document<'_>) {
        doc.in_range("replay", "postgres_batch", self.postgres_batch, 1..=5000);
        doc.in_range("replay", "salesforce_batch", self.salesforce_batch, 1..=200);
        doc.in_range("replay", "salesforce_linger_ms", self.salesforce_linger_ms, 0..=60_000);
        doc.in_range("replay", "attempts", self.attempts, 1..=1000);
        doc.in_range("replay", "backoff_min_ms", self.backoff_min_ms, 10..=600_000);
        doc.in_range("replay", "backoff_max_ms", self.backoff_max_ms, 10..=3_600_000);
        if self.backoff_max_ms < self.backoff_min_ms {
            doc.fault(
                "replay.backoff_max_ms",
                "`backoff_max_ms` is less than `backoff_min_ms`",
                hint("replay", "backoff_max_ms"),
            );
        }
    }
}
