//! A report as text, in microseconds.

use std::fmt::Write;

use crate::environment::Labels;
use crate::noise::Noise;
use crate::report::{Case, Judgement, Ratio, Report};
use crate::samples::ratio;

const MICROSECOND: u64 = 1_000;

pub(crate) fn microseconds(nanoseconds: u64) -> String {
    let value = ratio(nanoseconds, MICROSECOND);
    if nanoseconds < 10 * MICROSECOND { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// What is said before any figure: where it was measured, and what else went on.
pub(crate) fn head(bench: &str, placement: &str, labels: &Labels, noise: Noise) -> String {
    let idle_poll = if labels.idle_poll { "on" } else { "off" };
    let lines = [
        format!("skep bench {bench}"),
        format!("  engine     {}, KVM {}", labels.engine, labels.kvm),
        format!("  host       Linux {}, {} cpus, {}", labels.kernel, labels.cpus, labels.processor),
        format!("  skep       {} ({} build)", labels.version, labels.build),
        format!("  placement  {placement}; idle-poll {idle_poll}"),
        format!("  host was   {}", noise_in_words(noise)),
    ];
    lines.iter().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The whole report.
pub(crate) fn render(report: &Report) -> String {
    let mut text = head(report.bench, &report.placement, &report.labels, report.noise);
    text.push('\n');
    cases(&mut text, &report.cases);
    if !report.ratios.is_empty() {
        text.push('\n');
        ratios(&mut text, &report.ratios);
    }
    text
}

fn noise_in_words(noise: Noise) -> String {
    let verdict = if noise.is_dirty { "dirty: bounds are not judged" } else { "clean" };
    format!(
        "{verdict} (foreign work {:.1} % of cpu time, stolen {:.1} %)",
        noise.foreign_percent, noise.steal_percent
    )
}

fn cases(text: &mut String, cases: &[Case]) {
    let width = |of: fn(&Case) -> usize, head: usize| cases.iter().map(of).fold(head, usize::max);
    let name = width(|case| case.name.len(), "microseconds".len());
    let state = width(|case| case.state.len(), "state".len());
    let mut line = |cells: [&str; 8]| {
        let [first, second, numbers @ ..] = cells;
        let mut row = format!("{first:name$}  {second:state$}");
        for number in numbers {
            // Writing to a String cannot fail.
            let _written = write!(row, " {number:>9}");
        }
        *text += row.trim_end();
        text.push('\n');
    };
    line(["microseconds", "state", "p50", "p90", "p99", "p99.9", "max", "n"]);
    for case in cases {
        let p999 = case.p999_ns.map_or_else(|| "-".to_owned(), microseconds);
        line([
            &case.name,
            case.state,
            &microseconds(case.p50_ns),
            &microseconds(case.p90_ns),
            &microseconds(case.p99_ns),
            &p999,
            &microseconds(case.max_ns),
            &case.count.to_string(),
        ]);
    }
}

fn ratios(text: &mut String, ratios: &[Ratio]) {
    for ratio in ratios {
        let verdict = match ratio.judgement {
            Judgement::Met => "bound met",
            Judgement::Missed => "BOUND MISSED",
            Judgement::NotJudgedDirty => "bound not judged: run is dirty",
            Judgement::NotJudgedTooFewSamples => "bound not judged: too few samples",
            Judgement::NoBound => "no bound",
        };
        let limits = ratio.bound.map_or_else(String::new, |bound| {
            let tail = bound.p99_ratio.map_or_else(String::new, |most| format!(", p99 <= {most}"));
            format!(" (p50 <= {}{tail})", bound.p50_ratio)
        });
        let rounds = match (ratio.p50_ratio_lowest_round, ratio.p50_ratio_highest_round) {
            (Some(lowest), Some(highest)) => format!("rounds {lowest:.2} to {highest:.2}"),
            _ => "no round with enough samples".to_owned(),
        };
        *text += &format!(
            "{} / {}\n    p50 x {:.2} ({rounds}), p99 x {:.2}: {verdict}{limits}\n",
            ratio.subject, ratio.reference, ratio.p50_ratio, ratio.p99_ratio,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Bound;
    use crate::samples::Series;

    #[test]
    fn every_case_is_a_line_and_a_rare_quantile_is_left_out() {
        let mut series = Series::default();
        (0..100).for_each(|_| series.record(31_600));
        series.end_round();
        let case = Case::of("kick/bare", "executing", &series).unwrap();
        let mut text = String::new();
        cases(&mut text, &[case]);
        let line = text.lines().nth(1).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["kick/bare", "executing", "31.6", "31.6", "31.6", "-", "31.6", "100"]);
    }

    #[test]
    fn a_verdict_names_both_sides_and_the_bound() {
        let mut series = Series::default();
        (0..2_000).for_each(|_| series.record(5_000));
        series.end_round();
        let bound = Bound { p50_ratio: 1.2, p99_ratio: None };
        let ratio = Ratio::of(("a", &series), ("b", &series), Some(bound), false).unwrap();
        let mut text = String::new();
        ratios(&mut text, &[ratio]);
        assert!(text.starts_with("a / b\n    p50 x 1.00 (rounds 1.00 to 1.00)"), "{text}");
        assert!(text.trim_end().ends_with("bound met (p50 <= 1.2)"), "{text}");
    }

    #[test]
    fn small_numbers_keep_more_digits() {
        assert_eq!([microseconds(131), microseconds(31_640)], ["0.13", "31.6"]);
    }
}
