//! How long a write that was not done is put off, and when it is given up.

use std::time::Duration;

use tokio::time::Instant;

use super::Settings;
use crate::backoff::spread;
use crate::flow::Mended;

/// How long a write waits for what time alone mends before it becomes a dead letter, which says so to a person.
const PATIENCE: Duration = Duration::from_hours(24);

/// The failed attempts to write one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempts {
    all: u32,
    /// Those that nobody knows to be mended by time.
    counted: u32,
    since: Instant,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The write is tried again after this time.
    Wait(Duration),
    /// It becomes a dead letter.
    GiveUp {
        /// How often it was tried.
        attempts: u32,
    },
}

impl Attempts {
    pub(super) const fn new(now: Instant) -> Self {
        Self { all: 0, counted: 0, since: now }
    }

    /// Notes a failed attempt. Waits double up to a ceiling, and are spread, so that what failed together does not come back
    /// together.
    pub(super) fn failed(&mut self, mended: Mended, now: Instant, settings: &Settings) -> Next {
        let doublings = self.all.min(16);
        self.all = self.all.saturating_add(1);
        let given_up = match mended {
            Mended::Perhaps => {
                self.counted += 1;
                self.counted >= settings.attempts_max
            }
            Mended::ByTime => now.duration_since(self.since) >= PATIENCE,
            Mended::ByRoom => false,
        };
        if given_up {
            return Next::GiveUp { attempts: self.all };
        }
        Next::Wait(spread(settings.backoff_least.saturating_mul(1 << doublings).min(settings.backoff_most)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passing_trouble_makes_no_dead_letter_until_a_day_has_gone() {
        let settings = Settings {
            attempts_max: 3,
            backoff_least: Duration::from_millis(100),
            backoff_most: Duration::from_secs(1),
            ..Settings::default()
        };
        let now = Instant::now();
        let mut attempts = Attempts::new(now);
        for full_ms in [100, 200, 400, 800, 1_000, 1_000] {
            let Next::Wait(wait) = attempts.failed(Mended::ByTime, now, &settings) else { panic!() };
            assert!(wait >= Duration::from_millis(full_ms / 2) && wait <= Duration::from_millis(full_ms), "{wait:?}");
        }
        assert!(matches!(attempts.failed(Mended::ByRoom, now + 2 * PATIENCE, &settings), Next::Wait(_)));
        // Only these count, and what has passed does not.
        for _ in 0..2 {
            assert!(matches!(attempts.failed(Mended::Perhaps, now, &settings), Next::Wait(_)));
        }
        assert_eq!(attempts.failed(Mended::Perhaps, now, &settings), Next::GiveUp { attempts: 10 });
        let late = Attempts::new(now).failed(Mended::ByTime, now + PATIENCE, &settings);
        assert_eq!(late, Next::GiveUp { attempts: 1 });
    }
}
