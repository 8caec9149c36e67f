//! Durations, kept as a histogram, and their sum.

use std::time::Duration;

use actors::contract::space::Quantiles;
use shootdown::Durations;

/// As the protocol keeps its own.
#[derive(Debug, Default)]
pub struct Latency {
    durations: Durations,
    total_ns: u64,
}

/// A duration in whole nanoseconds, of which 64 bits hold 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Latency {
    /// Adds one.
    pub fn record(&mut self, duration: Duration) {
        self.total_ns += nanoseconds(duration);
        self.durations.record(duration);
    }

    /// All of them together.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.total_ns
    }

    /// Their mean; nothing when there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.total_ns.checked_div(self.durations.count()).unwrap_or(0))
    }

    /// The histogram in a few numbers; all zero when it is empty.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        quantiles(self.durations.quantiles())
    }
}

/// The protocol's quantiles in the words of the contract: neither crate knows the other.
pub(crate) fn quantiles(of: shootdown::Quantiles) -> Quantiles {
    Quantiles {
        count: of.count,
        min_ns: of.min_ns,
        p50_ns: of.p50_ns,
        p90_ns: of.p90_ns,
        p99_ns: of.p99_ns,
        p999_ns: of.p999_ns,
        max_ns: of.max_ns,
    }
}
