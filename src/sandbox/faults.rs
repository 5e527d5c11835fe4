//! The ways in which the sandbox can be told to misbehave.

use serde::{Deserialize, Serialize};

/// The faults that are switched on. All are off at the start; probabilities draw from the org's seeded generator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Milliseconds that each REST request waits before it is worked on.
    pub rest_latency_ms: u64,
    /// Milliseconds that each delivery of events waits.
    pub event_latency_ms: u64,
    /// Ends each subscription after so many events; zero is never.
    pub drop_stream_every: u64,
    /// How likely each event is told twice, with the same id and another replay id.
    pub duplicate_events: f64,
    /// How likely each write of a record finds it locked.
    pub lock_rows: f64,
    /// Records that are locked, by 18-character id.
    pub locked_ids: Vec<String>,
    /// The daily API requests are used up.
    pub request_limit_exhausted: bool,
    /// The daily event deliveries are used up.
    pub event_limit_exhausted: bool,
    /// So many of the next events are told as gap events.
    pub gap_next: u64,
    /// So many of the next writes are committed, and their connection is then cut without an answer.
    pub apply_then_drop: u64,
    /// How likely each write is committed and its connection then cut without an answer.
    pub apply_then_drop_probability: f64,
    /// How likely each REST request is answered with 503 before it is looked at.
    pub error_503: f64,
    /// So many of the next REST requests are answered with 503.
    pub error_503_next: u64,
}
