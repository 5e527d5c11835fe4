//! Waiting longer after each failure.

use std::time::Duration;

/// Waits between attempts: doubling from a base to a ceiling, each drawn evenly from its upper half, so that many clients
/// that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    ceiling: Duration,
    failures: u32,
}

impl Backoff {
    /// Starts at `base` and never waits longer than `ceiling`.
    pub const fn new(base: Duration, ceiling: Duration) -> Self {
        Self { base, ceiling, failures: 0 }
    }

    /// The wait before the next attempt.
    pub fn next_wait(&mut self) -> Duration {
        let full = self.base.saturating_mul(1u32 << self.failures.min(20)).min(self.ceiling);
        self.failures = self.failures.saturating_add(1);
        spread(full)
    }

    /// How many attempts failed since the last success.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// The next wait is the base again.
    pub const fn succeeded(&mut self) {
        self.failures = 0;
    }
}

/// A wait drawn evenly from the upper half of `full`.
pub fn spread(full: Duration) -> Duration {
    let mut random = [0u8; 2];
    // Without randomness the wait is the longest one, which is still right.
    let part = aws_lc_rs::rand::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65_535.0);
    full.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        for full_ms in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.next_wait();
            assert!(wait >= Duration::from_millis(full_ms / 2) && wait <= Duration::from_millis(full_ms), "{wait:?}");
        }
        backoff.succeeded();
        assert!(backoff.next_wait() <= Duration::from_millis(100));
    }
}
