//! From single samples to quantiles, round by round.

use hdrhistogram::Histogram;

/// With fewer samples than this the 99.9th percentile is a matter of luck.
pub(crate) const ENOUGH_FOR_P999: u64 = 10_000;

/// A round with fewer samples than this has no median worth comparing: the host was busy elsewhere.
const ENOUGH_FOR_A_MEDIAN: u64 = 30;

/// Samples of one case in one state, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    all: Histogram<u64>,
    round: Histogram<u64>,
    /// The median of each round; nothing for a round with too few samples.
    medians: Vec<Option<u64>>,
}

/// A series in a few numbers, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) min: u64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    /// Only where there are enough samples for it.
    pub(crate) p999: Option<u64>,
    pub(crate) max: u64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("1 ns to 60 s, three digits")
}

impl Default for Series {
    fn default() -> Self {
        Self { all: histogram(), round: histogram(), medians: Vec::new() }
    }
}

impl Series {
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.round.saturating_record(nanoseconds.max(1));
    }

    /// Ends a round. Rounds of different series with the same number were interleaved.
    pub(crate) fn end_round(&mut self) {
        let is_enough = self.round.len() >= ENOUGH_FOR_A_MEDIAN;
        let median = is_enough.then(|| self.round.value_at_quantile(0.5));
        self.medians.push(median);
        self.all.add(&self.round).expect("both have the same bounds");
        self.round.reset();
    }

    /// Forgets the round that is on its way: it was a warm-up.
    pub(crate) fn forget_round(&mut self) {
        self.round.reset();
    }

    pub(crate) fn count(&self) -> u64 {
        self.all.len()
    }

    /// Nothing for a series without samples.
    pub(crate) fn quantiles(&self) -> Option<Quantiles> {
        let at = |quantile| self.all.value_at_quantile(quantile);
        (!self.all.is_empty()).then(|| Quantiles {
            count: self.all.len(),
            min: self.all.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: (self.all.len() >= ENOUGH_FOR_P999).then(|| at(0.999)),
            max: self.all.max(),
        })
    }

    /// This series' median over that of `reference`, for every round in which both have one.
    pub(crate) fn ratios_by_round(&self, reference: &Self) -> Vec<f64> {
        let pairs = self.medians.iter().zip(&reference.medians);
        pairs.filter_map(|(own, other)| Some(ratio((*own)?, (*other)?))).collect()
    }
}

/// One duration over another.
pub(crate) fn ratio(own: u64, other: u64) -> f64 {
    let seconds = |value| std::time::Duration::from_nanos(value).as_secs_f64();
    seconds(own) / seconds(other.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rounds: &[&[u64]]) -> Series {
        let mut series = Series::default();
        for round in rounds {
            round.iter().for_each(|value| series.record(*value));
            series.end_round();
        }
        series
    }

    #[test]
    fn the_last_thousandth_needs_ten_thousand_samples() {
        let mut many = Series::default();
        (1..ENOUGH_FOR_P999).for_each(|value| many.record(value));
        many.end_round();
        assert_eq!(many.quantiles().unwrap().p999, None);
        many.record(ENOUGH_FOR_P999);
        many.end_round();
        let last = many.quantiles().unwrap().p999.unwrap();
        assert!(last.abs_diff(9_990) <= 10, "{last}");
    }

    #[test]
    fn a_series_without_samples_has_no_quantiles() {
        assert_eq!(series(&[&[], &[]]).quantiles(), None);
    }

    #[test]
    fn a_warm_up_leaves_nothing_behind() {
        let mut series = Series::default();
        series.record(1_000_000);
        series.forget_round();
        series.record(10);
        series.end_round();
        let quantiles = series.quantiles().unwrap();
        assert_eq!((quantiles.count, quantiles.max), (1, 10));
    }

    #[test]
    fn rounds_are_compared_only_where_both_have_enough_samples() {
        let round = |value| vec![value; 30];
        let (short, none) = (vec![7; 29], Vec::new());
        let own = series(&[&round(20), &round(30), &round(30), &none]);
        let reference = series(&[&round(10), &none, &short, &round(10)]);
        assert_eq!(own.ratios_by_round(&reference), [2.0]);
    }
}
