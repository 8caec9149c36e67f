//! The result of `skep bench interp`. Units are in the keys, or beside the figures.

use serde::Serialize;

use super::boot::{self, Boot};
use super::rows::{Budget, Row, Unit};
use super::{JUDGED, median};
use crate::environment::Labels;
use crate::noise::Noise;

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct InterpReport {
    pub(crate) bench: &'static str,
    pub(crate) labels: Labels,
    /// The first line of its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) qemu: Option<String>,
    pub(crate) noise: Noise,
    /// Who was not here, or could not run which loop, and why.
    pub(crate) absent: Vec<String>,
    pub(crate) loops: Vec<Told>,
    pub(crate) boots: Vec<Boot>,
}

/// One loop, measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) figures: Vec<Figure>,
}

impl Measured {
    pub(crate) fn new(row: Row) -> Self {
        Self { row, figures: Vec::new() }
    }
}

/// One loop, measured and judged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Told {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) unit: Unit,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<Budget>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<Verdict>,
    pub(crate) figures: Vec<Figure>,
}

/// What became of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// Which column was judged.
    pub(crate) column: &'static str,
    pub(crate) is_met: bool,
}

/// What one contender took for a loop.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) column: &'static str,
    /// In the row's unit: the median.
    pub(crate) value: f64,
    /// The median of the rounds.
    pub(crate) ns_per_iteration: f64,
    /// The quickest round and the slowest.
    pub(crate) ns_lowest: f64,
    pub(crate) ns_highest: f64,
    pub(crate) rounds: usize,
}

impl Figure {
    /// Nothing without times; they are in nanoseconds an iteration.
    pub(crate) fn of(column: &'static str, row: &Row, times: &[f64]) -> Option<Self> {
        let middle = median(times)?;
        Some(Self {
            column,
            value: row.told(middle),
            ns_per_iteration: middle,
            ns_lowest: times.iter().copied().fold(f64::INFINITY, f64::min),
            ns_highest: times.iter().copied().fold(0.0, f64::max),
            rounds: times.len(),
        })
    }
}

impl InterpReport {
    pub(crate) fn new(
        labels: Labels,
        qemu: Option<String>,
        noise: Noise,
        absent: Vec<String>,
        measured: Vec<Measured>,
        boots: Vec<Boot>,
    ) -> Self {
        let loops = measured
            .iter()
            .map(|one| Told {
                name: one.row.name,
                about: one.row.about,
                unit: one.row.unit,
                budget: one.row.budget,
                verdict: judge(one, &measured),
                figures: one.figures.clone(),
            })
            .collect();
        Self { bench: "interp", labels, qemu, noise, absent, loops, boots }
    }

    /// Whether a budget was missed on a host that had nothing else to do.
    pub(crate) fn is_missed(&self) -> bool {
        let missed = |told: &Told| told.verdict.is_some_and(|verdict| !verdict.is_met);
        !self.noise.is_dirty && (self.loops.iter().any(missed) || self.boots.iter().any(is_slow))
    }

    /// The columns that have figures, in the order of their first.
    pub(crate) fn columns(&self) -> Vec<&'static str> {
        let mut columns = Vec::new();
        for figure in self.loops.iter().flat_map(|told| &told.figures) {
            if !columns.contains(&figure.column) {
                columns.push(figure.column);
            }
        }
        columns
    }
}

/// Only the software engine was promised anything.
pub(crate) fn is_slow(boot: &Boot) -> bool {
    boot.who == "soft" && boot.cpu_seconds > boot::MOST_SECONDS
}

fn figure<'a>(one: &'a Measured, column: &str) -> Option<&'a Figure> {
    one.figures.iter().find(|figure| figure.column == column)
}

/// Nothing without a budget, or without the figures it needs.
fn judge(one: &Measured, all: &[Measured]) -> Option<Verdict> {
    let budget = one.row.budget?;
    let own = JUDGED.iter().find_map(|column| figure(one, column))?;
    let is_met = match budget {
        Budget::AtLeast(least) => own.value >= least,
        Budget::AtMost(most) => own.value <= most,
        Budget::Within(factor, other) => {
            let other = all.iter().find(|other_row| other_row.row.name == other)?;
            let other = figure(other, own.column)?;
            own.ns_per_iteration <= factor * other.ns_per_iteration
        }
    };
    Some(Verdict { column: own.column, is_met })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::rows;

    fn measured(name: &str, figures: &[(&'static str, f64)]) -> Measured {
        let row = rows::all().into_iter().find(|row| row.name == name).unwrap();
        let figures =
            figures.iter().filter_map(|(column, time)| Figure::of(column, &row, &[*time]));
        Measured { figures: figures.collect(), row }
    }

    fn verdict(all: &[Measured]) -> Option<(&'static str, bool)> {
        judge(&all[0], all).map(|verdict| (verdict.column, verdict.is_met))
    }

    #[test]
    fn a_budget_is_met_at_its_edge_and_missed_beyond() {
        assert_eq!(verdict(&[measured("b4", &[("soft", 20.0)])]), Some(("soft", true)));
        assert_eq!(verdict(&[measured("b4", &[("soft", 20.1)])]), Some(("soft", false)));
        // Eight instructions at 350 MIPS take 22.86 ns.
        assert_eq!(verdict(&[measured("a2", &[("soft", 22.8)])]), Some(("soft", true)));
        assert_eq!(verdict(&[measured("a2", &[("soft", 22.9)])]), Some(("soft", false)));
    }

    #[test]
    fn two_dimensions_are_judged_where_there_are_both_and_others_never() {
        let both = measured("b4", &[("soft", 15.0), ("soft 2-D", 25.0)]);
        assert_eq!(verdict(&[both]), Some(("soft 2-D", false)));
        assert_eq!(verdict(&[measured("b4", &[("native", 5.0), ("QEMU TCG", 80.0)])]), None);
    }

    #[test]
    fn a_copy_that_aliases_is_compared_with_one_that_does_not() {
        let (far, near) = (measured("c2'", &[("soft", 90.0)]), measured("c2", &[("soft", 30.0)]));
        assert_eq!(verdict(&[far.clone(), near]), Some(("soft", true)));
        assert_eq!(
            verdict(&[far.clone(), measured("c2", &[("soft", 29.0)])]),
            Some(("soft", false))
        );
        assert_eq!(verdict(&[far]), None);
    }
}
