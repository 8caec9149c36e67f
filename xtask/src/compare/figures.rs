//! Medians, spreads and ratios of a handful of measurements.

use std::fmt;
use std::time::Duration;

/// Measurements of one thing, in seconds, in the order they were taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Series(Vec<f64>);

impl Series {
    /// Adds one measurement.
    pub(super) fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64());
    }

    /// The middle one; of an even number, the mean of the middle two.
    ///
    /// # Panics
    ///
    /// Without any measurement.
    pub(super) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    /// Each measurement less the one of the same round in `other`.
    pub(super) fn less(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours - theirs).collect())
    }

    /// How this compares with `other`: the ratio of the medians.
    pub(super) fn ratio(&self, other: &Self) -> f64 {
        self.median() / other.median()
    }

    /// The median of the ratios of the same round, which a slow spell of the
    /// machine disturbs less.
    pub(super) fn ratio_by_round(&self, other: &Self) -> f64 {
        Self(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect()).median()
    }
}

/// `median [least-most]`, in seconds.
impl fmt::Display for Series {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        write!(out, "{:.3} [{least:.3}-{most:.3}]", self.median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_an_odd_and_the_mean_of_an_even_number() {
        assert_eq!(Series(vec![9.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Series(vec![4.0, 1.0, 2.0, 9.0]).median(), 3.0);
    }

    #[test]
    fn ratios_are_of_medians_or_of_rounds() {
        let ours = Series(vec![1.0, 2.0, 9.0]);
        let theirs = Series(vec![2.0, 8.0, 10.0]);
        assert_eq!(ours.ratio(&theirs), 0.25);
        assert_eq!(ours.ratio_by_round(&theirs), 0.5);
        assert_eq!(theirs.less(&ours).median(), 1.0);
    }

    #[test]
    fn a_series_shows_its_median_and_its_spread() {
        assert_eq!(Series(vec![3.0, 1.0, 2.0]).to_string(), "2.000 [1.000-3.000]");
    }
}
