//! Durations, kept as a histogram.

use std::time::Duration;

use actors::contract::space::Quantiles;
use hdrhistogram::Histogram;

/// 1 ns to 60 s, three digits. Recording never allocates.
#[derive(Debug)]
pub struct Latency {
    histogram: Histogram<u64>,
    total_ns: u64,
}

impl Default for Latency {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Self { histogram: histogram.expect("the bounds are fixed and valid"), total_ns: 0 }
    }
}

/// A duration in whole nanoseconds, of which 64 bits hold 584 years.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Latency {
    /// Adds one.
    pub fn record(&mut self, duration: Duration) {
        let value = nanoseconds(duration);
        self.total_ns += value;
        self.histogram.saturating_record(value.max(1));
    }

    /// All of them together.
    #[must_use]
    pub fn total_ns(&self) -> u64 {
        self.total_ns
    }

    /// Their mean; nothing when there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.total_ns.checked_div(self.histogram.len()).unwrap_or(0))
    }

    /// The histogram in a few numbers; all zero when it is empty.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        quantiles(shootdown::Quantiles::of(&self.histogram))
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
