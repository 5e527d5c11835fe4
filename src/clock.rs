//! The one place that reads the time. Everything else is handed a [`Clock`], so that tests and simulations own it.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// Microseconds since 1970-01-01 00:00:00 UTC.
pub type Micros = i64;

/// Reads the wall clock.
pub trait Clock: Send + Sync {
    /// The time now, in microseconds since the Unix epoch.
    fn now(&self) -> Micros;
}

/// A shared clock.
pub type SharedClock = Arc<dyn Clock>;

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)]
    fn now(&self) -> Micros {
        std::time::SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as Micros)
    }
}

/// The machine's clock, shared.
pub fn system() -> SharedClock {
    Arc::new(SystemClock)
}
