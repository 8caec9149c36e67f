//! How many invalidations there were, and how long they took.
//!
//! Times are kept in HDR histograms from 1 ns to 60 s with three significant digits, so a
//! quantile is at most 0.1 % off. Their memory (about 220 KB each) is taken once, in
//! [`Tally::new`]; recording never allocates.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest time told apart from a longer one, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;

/// What a raiser counts over its life. One per raiser, and so without locks.
#[derive(Clone, Debug)]
pub struct Tally {
    raised: u64,
    knocks: u64,
    latency: Histogram<u64>,
    kernel_half: Histogram<u64>,
}

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
        Self { raised: 0, knocks: 0, latency: histogram(), kernel_half: histogram() }
    }

    /// One invalidation was raised and knocked on `knocks` vcpus
    /// ([`Ticket::waiting`](crate::Ticket::waiting) straight after the raise).
    pub fn raised(&mut self, knocks: usize) {
        self.raised += 1;
        self.knocks += knocks as u64;
    }

    /// One invalidation is over, `took` after it was raised.
    pub fn completed(&mut self, took: Duration) {
        self.latency.saturating_record(nanoseconds(took));
    }

    /// The host kernel's half of one invalidation took this long: changing the host
    /// mapping, which flushes the host's own tables.
    pub fn kernel_half_took(&mut self, took: Duration) {
        self.kernel_half.saturating_record(nanoseconds(took));
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
        Quantiles::of(&self.latency)
    }

    /// The host kernel's half.
    #[must_use]
    pub fn kernel_half(&self) -> Quantiles {
        Quantiles::of(&self.kernel_half)
    }
}

impl Quantiles {
    /// Sums up `histogram`, whose values are nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
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

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("1 < 60 s, and 3 digits are allowed")
}

/// Within the histogram's bounds, so that recording neither grows nor refuses.
fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS).clamp(1, LONGEST_NS)
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
