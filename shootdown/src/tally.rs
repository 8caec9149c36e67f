//! How many invalidations there were, and how long they took.
//!
//! Times are kept in HDR histograms from 1 ns to 60 s with three significant digits, so a
//! quantile is at most 0.1 % off. Their memory (about 110 KB each: counts of 32 bits, that stay at the most
//! they can hold) is taken once, in [`Durations::new`]; recording never allocates.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time told apart from a longer one, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// What a raiser counts over its life. One per raiser, and so without locks.
#[derive(Clone, Debug)]
pub struct Tally {
    raised: u64,
    knocks: u64,
    latency: Durations,
    kernel_half: Durations,
}

/// How long something took, each time.
#[derive(Clone, Debug)]
pub struct Durations(Histogram<u32>);

/// A histogram in a few numbers, in nanoseconds. All zero when there were no samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quantiles {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %. Means little with fewer than 10,000 samples.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self { raised: 0, knocks: 0, latency: Durations::new(), kernel_half: Durations::new() }
    }

    /// One invalidation was raised and knocked on `knocks` vcpus
    /// ([`Ticket::waiting`](crate::Ticket::waiting) straight after the raise).
    pub fn raised(&mut self, knocks: usize) {
        self.raised += 1;
        self.knocks += knocks as u64;
    }

    /// One invalidation is over, `took` after it was raised.
    pub fn completed(&mut self, took: Duration) {
        self.latency.record(took);
    }

    /// The host kernel's half of one invalidation took this long: changing the host
    /// mapping, which flushes the host's own tables.
    pub fn kernel_half_took(&mut self, took: Duration) {
        self.kernel_half.record(took);
    }

    /// Invalidations raised.
    #[must_use]
    pub fn raises(&self) -> u64 {
        self.raised
    }

    /// Vcpus knocked on, all invalidations together.
    #[must_use]
    pub fn knocks(&self) -> u64 {
        self.knocks
    }

    /// From raise to last acknowledgement.
    #[must_use]
    pub fn latency(&self) -> Quantiles {
        self.latency.quantiles()
    }

    /// The host kernel's half.
    #[must_use]
    pub fn kernel_half(&self) -> Quantiles {
        self.kernel_half.quantiles()
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self::new()
    }
}

impl Durations {
    /// None yet.
    ///
    /// # Panics
    ///
    /// Never: the bounds are fixed and valid.
    #[must_use]
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Self(histogram.expect("1 < 60 s, and three digits are allowed"))
    }

    /// Adds one; beyond the bounds it counts as the bound.
    pub fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        self.0.saturating_record(nanoseconds.clamp(1, LONGEST_NS));
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// All of them in a few numbers.
    #[must_use]
    pub fn quantiles(&self) -> Quantiles {
        let histogram = &self.0;
        if histogram.is_empty() {
            return Quantiles::default();
        }
        Quantiles {
            count: histogram.len(),
            min_ns: histogram.min(),
            p50_ns: histogram.value_at_quantile(0.5),
            p90_ns: histogram.value_at_quantile(0.9),
            p99_ns: histogram.value_at_quantile(0.99),
            p999_ns: histogram.value_at_quantile(0.999),
            max_ns: histogram.max(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Equal to three significant digits.
    fn close(left: u64, right: u64) -> bool {
        left.abs_diff(right) <= right / 1000
    }

    #[test]
    fn quantiles_are_right_to_three_digits() {
        let mut tally = Tally::new();
        for microseconds in 1..=10_000 {
            tally.completed(Duration::from_micros(microseconds));
        }
        let latency = tally.latency();
        assert_eq!(latency.count, 10_000);
        assert!(close(latency.min_ns, 1_000), "{latency:?}");
        assert!(close(latency.p50_ns, 5_000_000), "{latency:?}");
        assert!(close(latency.p90_ns, 9_000_000), "{latency:?}");
        assert!(close(latency.p99_ns, 9_900_000), "{latency:?}");
        assert!(close(latency.p999_ns, 9_990_000), "{latency:?}");
        assert!(close(latency.max_ns, 10_000_000), "{latency:?}");
        assert_eq!(tally.kernel_half(), Quantiles::default());
    }

    #[test]
    fn every_knock_of_every_raise_is_counted() {
        let mut tally = Tally::new();
        tally.raised(2);
        tally.raised(0);
        tally.raised(3);
        assert_eq!((tally.raises(), tally.knocks()), (3, 5));
    }

    #[test]
    fn times_beyond_the_bounds_count_as_the_bounds() {
        let mut tally = Tally::new();
        tally.kernel_half_took(Duration::ZERO);
        tally.kernel_half_took(Duration::MAX);
        let half = tally.kernel_half();
        assert_eq!((half.count, half.min_ns), (2, 1));
        assert!(close(half.max_ns, LONGEST_NS), "{half:?}");
    }
}
