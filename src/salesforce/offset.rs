//! How far the org's clock is ahead of ours, from the `Date` header of its answers.
//!
//! The header has whole seconds, so one answer bounds the offset to an interval of a second plus the round trip. The true
//! offset lies in all of these intervals, so their intersection narrows with every call. It widens with age, because clocks
//! drift; when an interval does not meet it at all, a clock was set, and we start over.

use std::sync::{Mutex, PoisonError};

use crate::clock::Micros;

/// How fast the bounds widen, in microseconds per second: more than two ordinary clocks drift apart.
const DRIFT_US_PER_S: i64 = 100;

/// Bounds of the offset, and when they held.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    low: Micros,
    high: Micros,
    at: Micros,
}

/// The measured offset. Shared: every answer may narrow it.
#[derive(Debug, Default)]
pub struct ClockOffset {
    bounds: Mutex<Option<Bounds>>,
}

impl ClockOffset {
    /// Microseconds that the org's clock is ahead of ours (negative when behind); `None` before the first answer.
    pub fn ahead(&self) -> Option<Micros> {
        let bounds = *self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        bounds.map(|b| b.low + (b.high - b.low) / 2)
    }

    /// How far [`ClockOffset::ahead`] may be from the truth, in microseconds.
    pub fn uncertainty(&self) -> Option<Micros> {
        let bounds = *self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        bounds.map(|b| (b.high - b.low) / 2)
    }

    /// Takes in a `Date` header of an answer, with our clock when the request was sent and when the answer came.
    pub(crate) fn observe(&self, date: &str, sent_at: Micros, received_at: Micros) {
        let Ok(date) = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date) else { return };
        if received_at < sent_at {
            return;
        }
        // The org's clock showed something in [date, date + 1 s) at a moment between sending and receiving.
        let date = date.as_microsecond();
        let sample = Bounds { low: date - received_at, high: date + 1_000_000 - sent_at, at: received_at };
        let mut bounds = self.bounds.lock().unwrap_or_else(PoisonError::into_inner);
        *bounds = Some(match *bounds {
            None => sample,
            Some(old) => {
                let drift = (received_at - old.at).max(0) / 1_000_000 * DRIFT_US_PER_S;
                let (low, high) = (sample.low.max(old.low - drift), sample.high.min(old.high + drift));
                if low <= high { Bounds { low, high, at: received_at } } else { sample }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 04:00:00 UTC.
    const T: Micros = 1_795_233_600_000_000;

    fn header(org_time: Micros) -> String {
        let at = jiff::Timestamp::from_microsecond(org_time).unwrap();
        at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }

    #[test]
    fn many_answers_narrow_it() {
        let offset = ClockOffset::default();
        assert_eq!(offset.ahead(), None);
        let truth = 3_450_000;
        for n in 0..40 {
            let sent = T + n * 777_000;
            offset.observe(&header(sent + 10_000 + truth), sent, sent + 20_000);
        }
        let measured = offset.ahead().unwrap();
        assert!((measured - truth).abs() <= 100_000, "{measured}");
        assert!(offset.uncertainty().unwrap() <= 100_000);
    }

    #[test]
    fn a_clock_that_was_set_starts_it_over() {
        let offset = ClockOffset::default();
        offset.observe(&header(T), T, T + 1_000);
        offset.observe(&header(T + 3_600_000_000), T + 1_000, T + 2_000);
        assert!((offset.ahead().unwrap() - 3_600_000_000).abs() < 600_000);
        offset.observe("not a date", T, T);
        assert!(offset.ahead().is_some());
    }
}
