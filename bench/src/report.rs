//! A result: cases, their ratios, and what they are worth. Units are in the keys.

use serde::Serialize;

use crate::environment::Labels;
use crate::noise::Noise;
use crate::samples::{Series, ratio};

/// Fewer samples than this on either side are not judged.
const ENOUGH_TO_JUDGE: u64 = 1_000;

/// The answer to one question.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Which question.
    pub(crate) bench: &'static str,
    /// Who ran where.
    pub(crate) placement: String,
    /// Where it was answered.
    pub(crate) labels: Labels,
    /// What else was going on.
    pub(crate) noise: Noise,
    /// What was measured.
    pub(crate) cases: Vec<Case>,
    /// How subjects compare with references.
    pub(crate) ratios: Vec<Ratio>,
}

/// One case in one state.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Case {
    /// A path, so that results sort.
    pub(crate) name: String,
    /// What the target was doing just before.
    pub(crate) state: &'static str,
    pub(crate) count: u64,
    pub(crate) min_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    /// Left out where there are too few samples for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p999_ns: Option<u64>,
    pub(crate) max_ns: u64,
}

impl Case {
    /// Nothing for a series without samples.
    pub(crate) fn of(
        name: impl Into<String>,
        state: &'static str,
        series: &Series,
    ) -> Option<Self> {
        let quantiles = series.quantiles()?;
        Some(Self {
            name: name.into(),
            state,
            count: quantiles.count,
            min_ns: quantiles.min,
            p50_ns: quantiles.p50,
            p90_ns: quantiles.p90,
            p99_ns: quantiles.p99,
            p999_ns: quantiles.p999,
            max_ns: quantiles.max,
        })
    }
}

/// The most that a subject may cost, in multiples of its reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bound {
    pub(crate) p50_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ratio: Option<f64>,
}

/// A subject beside its reference.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) subject: String,
    pub(crate) reference: String,
    pub(crate) p50_ratio: f64,
    /// The lowest and the highest of the rounds' ratios of medians, where a round had enough
    /// samples for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ratio_lowest_round: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p50_ratio_highest_round: Option<f64>,
    pub(crate) p99_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bound: Option<Bound>,
    pub(crate) judgement: Judgement,
}

/// What became of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Judgement {
    /// Kept.
    Met,
    /// Not kept, in a clean run.
    Missed,
    /// Something else ran on the host.
    NotJudgedDirty,
    /// Too few samples proved what they measured.
    NotJudgedTooFewSamples,
    /// Nothing was promised.
    NoBound,
}

impl Ratio {
    /// Nothing where either side has no samples.
    pub(crate) fn of(
        subject: (&str, &Series),
        reference: (&str, &Series),
        bound: Option<Bound>,
        is_dirty: bool,
    ) -> Option<Self> {
        let (own, other) = (subject.1.quantiles()?, reference.1.quantiles()?);
        let rounds = subject.1.ratios_by_round(reference.1);
        let (p50_ratio, p99_ratio) = (ratio(own.p50, other.p50), ratio(own.p99, other.p99));
        let is_met = |bound: Bound| {
            p50_ratio <= bound.p50_ratio && bound.p99_ratio.is_none_or(|most| p99_ratio <= most)
        };
        let judgement = match bound {
            None => Judgement::NoBound,
            Some(_) if own.count.min(other.count) < ENOUGH_TO_JUDGE => {
                Judgement::NotJudgedTooFewSamples
            }
            Some(_) if is_dirty => Judgement::NotJudgedDirty,
            Some(bound) if is_met(bound) => Judgement::Met,
            Some(_) => Judgement::Missed,
        };
        Some(Self {
            subject: subject.0.to_owned(),
            reference: reference.0.to_owned(),
            p50_ratio,
            p50_ratio_lowest_round: rounds.iter().copied().reduce(f64::min),
            p50_ratio_highest_round: rounds.iter().copied().reduce(f64::max),
            p99_ratio,
            bound,
            judgement,
        })
    }
}

impl Report {
    /// Whether a bound was missed in a clean run.
    pub(crate) fn is_missed(&self) -> bool {
        self.ratios.iter().any(|ratio| ratio.judgement == Judgement::Missed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constant(value: u64, count: u64) -> Series {
        let mut series = Series::default();
        (0..count).for_each(|_| series.record(value));
        series.end_round();
        series
    }

    fn judged(own: &Series, is_dirty: bool) -> Judgement {
        let reference = constant(1_000, 2_000);
        let bound = Bound { p50_ratio: 1.15, p99_ratio: Some(1.5) };
        let ratio = Ratio::of(("own", own), ("reference", &reference), Some(bound), is_dirty);
        ratio.unwrap().judgement
    }

    #[test]
    fn a_bound_is_met_or_missed_in_a_clean_run_only() {
        assert_eq!(judged(&constant(1_100, 2_000), false), Judgement::Met);
        assert_eq!(judged(&constant(1_200, 2_000), false), Judgement::Missed);
        assert_eq!(judged(&constant(1_200, 2_000), true), Judgement::NotJudgedDirty);
    }

    #[test]
    fn a_tail_alone_can_miss_a_bound() {
        let mut own = constant(1_000, 2_000);
        (0..40).for_each(|_| own.record(1_600));
        own.end_round();
        assert_eq!(judged(&own, false), Judgement::Missed);
    }

    #[test]
    fn too_few_samples_are_not_judged() {
        assert_eq!(judged(&constant(9_000, 999), false), Judgement::NotJudgedTooFewSamples);
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let (some, none) = (constant(1, 1), Series::default());
        assert!(Ratio::of(("own", &some), ("reference", &none), None, false).is_none());
        assert!(Case::of("own", "executing", &none).is_none());
    }
}
