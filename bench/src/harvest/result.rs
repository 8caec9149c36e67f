//! The result of `skep bench harvest`: medians of rounds, and what they are worth.

use std::fmt::Write;

use serde::Serialize;

use crate::environment::Labels;
use crate::noise::Noise;
use crate::samples::ratio;
use crate::table;

/// A harvest of everything costs at most this part of one shootdown for each page.
const AT_MOST_OF_ONE_BY_ONE: f64 = 0.1;

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct HarvestReport {
    pub(crate) bench: &'static str,
    /// Who ran where, and what is held up against what.
    pub(crate) placement: String,
    pub(crate) labels: Labels,
    pub(crate) noise: Noise,
    /// Pages of 4 KiB that are resident, touched and harvested.
    pub(crate) pages: u64,
    pub(crate) vcpus: u16,
    pub(crate) rounds: u64,
    /// Who was not here, and why.
    pub(crate) absent: Vec<String>,
    pub(crate) harvests: Vec<Row<Found>>,
    pub(crate) touches: Vec<Row<Guest>>,
    pub(crate) ratios: Vec<Compared>,
    pub(crate) verdicts: Vec<Verdict>,
}

/// Something measured in every round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row<T> {
    /// Where: an engine, or the bare host.
    pub(crate) on: String,
    pub(crate) what: &'static str,
    /// Most of it was not measured, but extrapolated from a sample.
    pub(crate) is_extrapolated: bool,
    /// Of each number its own median over the rounds.
    pub(crate) median: T,
    /// The shortest and the longest time of a round: [`Found::took_ns`], or [`Guest::touch_ns`].
    pub(crate) shortest_ns: u64,
    pub(crate) longest_ns: u64,
}

/// What one harvest found and took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    /// Pages that it reports.
    pub(crate) pages: u64,
    /// Pages that it looked at.
    pub(crate) examined_pages: u64,
    /// Reading and clearing, and making the host follow.
    pub(crate) scan_ns: u64,
    /// From the first knock to the last vcpu out.
    pub(crate) shootdown_ns: u64,
    /// Vcpus that were knocked on.
    pub(crate) knocks: u64,
}

impl Found {
    pub(crate) fn took_ns(&self) -> u64 {
        self.scan_ns + self.shootdown_ns
    }
}

/// What a pass over the pages cost the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Guest {
    /// Of all vcpus together.
    pub(crate) touches: u64,
    /// One touch, of a vcpu's wall time.
    pub(crate) touch_ns: u64,
    /// Faults that set an accessed bit.
    pub(crate) accessed_faults: u64,
    /// Faults that set a modified bit.
    pub(crate) modified_faults: u64,
    /// Any other fault.
    pub(crate) other_faults: u64,
}

/// What a row is made of: numbers, and the time that stands for them.
pub(crate) trait Measured: Copy {
    fn time_ns(&self) -> u64;
    /// Of each number the median.
    fn median(all: &[Self]) -> Self;
}

fn median_of<T>(all: &[T], number: impl Fn(&T) -> u64) -> u64 {
    let mut numbers: Vec<u64> = all.iter().map(number).collect();
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or(0)
}

impl Measured for Found {
    fn time_ns(&self) -> u64 {
        self.took_ns()
    }

    fn median(all: &[Self]) -> Self {
        Self {
            pages: median_of(all, |one| one.pages),
            examined_pages: median_of(all, |one| one.examined_pages),
            scan_ns: median_of(all, |one| one.scan_ns),
            shootdown_ns: median_of(all, |one| one.shootdown_ns),
            // The most, not the median: none may be above.
            knocks: all.iter().map(|one| one.knocks).max().unwrap_or(0),
        }
    }
}

impl Measured for Guest {
    fn time_ns(&self) -> u64 {
        self.touch_ns
    }

    fn median(all: &[Self]) -> Self {
        Self {
            touches: median_of(all, |one| one.touches),
            touch_ns: median_of(all, |one| one.touch_ns),
            accessed_faults: median_of(all, |one| one.accessed_faults),
            modified_faults: median_of(all, |one| one.modified_faults),
            other_faults: median_of(all, |one| one.other_faults),
        }
    }
}

impl<T: Measured> Row<T> {
    /// Nothing without rounds.
    pub(crate) fn of(on: &str, what: &'static str, rounds: &[T]) -> Option<Self> {
        let times = || rounds.iter().map(Measured::time_ns);
        Some(Self {
            on: on.to_owned(),
            what,
            is_extrapolated: false,
            median: T::median(rounds),
            shortest_ns: times().min()?,
            longest_ns: times().max()?,
        })
    }

    pub(crate) fn extrapolated(self) -> Self {
        Self { is_extrapolated: true, ..self }
    }
}

/// One harvest beside another way to learn the same.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Compared {
    pub(crate) subject: String,
    pub(crate) reference: String,
    pub(crate) ratio: f64,
}

/// What became of a promise.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Verdict {
    pub(crate) promise: String,
    pub(crate) is_met: bool,
    /// A busy host says nothing about times.
    pub(crate) is_judged: bool,
}

impl HarvestReport {
    /// Compares the rows, and judges.
    pub(crate) fn concluded(mut self) -> Self {
        let row = |on: &str, what: &str| {
            self.harvests.iter().find(|row| row.on == on && row.what == what)
        };
        let mut ratios = Vec::new();
        let mut verdicts = Vec::new();
        let mut compare = |subject: &Row<Found>, reference: &Row<Found>| {
            let ratio = ratio(subject.median.took_ns(), reference.median.took_ns());
            let name = |row: &Row<Found>| format!("{}: {}", row.on, row.what);
            ratios.push(Compared { subject: name(subject), reference: name(reference), ratio });
            ratio
        };
        for all in self.harvests.iter().filter(|row| row.what == super::ALL) {
            let most = u64::from(self.vcpus);
            verdicts.push(Verdict {
                promise: format!(
                    "{}: {} knocks for {} pages, at most one for each of {most} vcpus",
                    all.on, all.median.knocks, all.median.pages
                ),
                is_met: all.median.knocks <= most,
                is_judged: true,
            });
            let Some(one_by_one) = row(&all.on, super::ONE_BY_ONE) else { continue };
            let part = compare(all, one_by_one);
            verdicts.push(Verdict {
                promise: format!(
                    "{}: {part:.4} of what one shootdown for each page takes, at most \
                     {AT_MOST_OF_ONE_BY_ONE}",
                    all.on
                ),
                is_met: part <= AT_MOST_OF_ONE_BY_ONE,
                is_judged: !self.noise.is_dirty,
            });
        }
        for epoch in self.harvests.iter().filter(|row| row.what == super::STORES) {
            for log in self.harvests.iter().filter(|row| row.what == super::BARE) {
                compare(epoch, log);
            }
        }
        (self.ratios, self.verdicts) = (ratios, verdicts);
        self
    }

    /// Whether a promise was broken.
    pub(crate) fn is_missed(&self) -> bool {
        self.verdicts.iter().any(|verdict| verdict.is_judged && !verdict.is_met)
    }

    /// The report as text.
    pub(crate) fn text(&self) -> String {
        let mut text = table::head(self.bench, &self.placement, &self.labels, self.noise);
        for absent in &self.absent {
            text += &format!("  left out   {absent}\n");
        }
        text.push('\n');
        self.harvest_lines(&mut text);
        text.push('\n');
        self.touch_lines(&mut text);
        text.push('\n');
        for Compared { subject, reference, ratio } in &self.ratios {
            text += &format!("{subject} / {reference}: x {ratio:.4}\n");
        }
        for Verdict { promise, is_met, is_judged } in &self.verdicts {
            let verdict = match (is_met, is_judged) {
                (true, true) => "met",
                (false, true) => "MISSED",
                (_, false) => "not judged: run is dirty",
            };
            text += &format!("{promise}: {verdict}\n");
        }
        text
    }

    fn harvest_lines(&self, text: &mut String) {
        let head =
            ["pages", "scan", "ns/page", "shootdown", "total", "shortest", "longest", "knocks"];
        line(text, ["harvest, microseconds", ""], head.map(str::to_owned));
        for row in &self.harvests {
            let found = &row.median;
            let mark = if row.is_extrapolated { "~" } else { "" };
            let numbers = [
                found.pages.to_string(),
                table::microseconds(found.scan_ns),
                format!("{:.1}", ratio(found.scan_ns, found.examined_pages)),
                table::microseconds(found.shootdown_ns),
                table::microseconds(found.took_ns()),
                table::microseconds(row.shortest_ns),
                table::microseconds(row.longest_ns),
                found.knocks.to_string(),
            ];
            line(text, [&row.on, row.what], numbers.map(|number| format!("{mark}{number}")));
        }
        if self.harvests.iter().any(|row| row.is_extrapolated) {
            *text += "~ extrapolated from a sample of the pages\n";
        }
    }

    fn touch_lines(&self, text: &mut String) {
        let head =
            ["touches", "ns each", "shortest", "longest", "accessed", "modified", "other", ""];
        line(text, ["touch, and its faults", ""], head.map(str::to_owned));
        for row in &self.touches {
            let guest = &row.median;
            let numbers = [
                guest.touches,
                guest.touch_ns,
                row.shortest_ns,
                row.longest_ns,
                guest.accessed_faults,
                guest.modified_faults,
                guest.other_faults,
            ];
            let mut cells: [String; 8] = Default::default();
            for (cell, number) in cells.iter_mut().zip(numbers) {
                *cell = number.to_string();
            }
            line(text, [&row.on, row.what], cells);
        }
    }
}

fn line(text: &mut String, names: [&str; 2], numbers: [String; 8]) {
    let mut row = format!("{:21} {:32}", names[0], names[1]);
    for number in numbers {
        // Writing to a String cannot fail.
        let _written = write!(row, " {number:>10}");
    }
    *text += row.trim_end();
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::super::{ALL, BARE, ONE_BY_ONE, STORES};
    use super::*;
    use crate::environment::Cpus;

    fn found(scan_ns: u64, knocks: u64) -> Found {
        Found { pages: 100, examined_pages: 100, scan_ns, shootdown_ns: 10, knocks }
    }

    fn report(is_dirty: bool, rows: &[(&str, &'static str, Found)]) -> HarvestReport {
        let row =
            |(on, what, found): &(&str, &'static str, Found)| Row::of(on, what, &[*found]).unwrap();
        HarvestReport {
            bench: "harvest",
            placement: String::new(),
            labels: Labels::of("some", &Cpus::allowed().unwrap(), false),
            noise: Noise { foreign_percent: 0.0, steal_percent: 0.0, is_dirty },
            pages: 100,
            vcpus: 2,
            rounds: 1,
            absent: Vec::new(),
            harvests: rows.iter().map(row).collect(),
            touches: Vec::new(),
            ratios: Vec::new(),
            verdicts: Vec::new(),
        }
        .concluded()
    }

    #[test]
    fn more_knocks_than_vcpus_are_a_promise_broken_on_any_host() {
        for is_dirty in [false, true] {
            assert!(!report(is_dirty, &[("soft", ALL, found(1, 2))]).is_missed());
            assert!(report(is_dirty, &[("soft", ALL, found(1, 3))]).is_missed());
        }
    }

    #[test]
    fn time_is_judged_on_a_quiet_host_only() {
        let slow = [("soft", ALL, found(50, 2)), ("soft", ONE_BY_ONE, found(500, 200))];
        assert!(report(false, &slow).is_missed());
        assert!(!report(true, &slow).is_missed());
        let fast = [("soft", ALL, found(30, 2)), ("soft", ONE_BY_ONE, found(500, 200))];
        assert!(!report(false, &fast).is_missed());
        // Of another engine's it says nothing.
        let other = [("soft", ALL, found(50, 2)), ("kvm", ONE_BY_ONE, found(500, 200))];
        assert!(!report(false, &other).is_missed());
    }

    #[test]
    fn stores_are_held_up_against_the_bare_log_and_the_table_says_so() {
        let rows = [("kvm", STORES, found(90, 0)), ("kvm-log", BARE, found(40, 0))];
        let report = report(false, &rows);
        assert!((report.ratios[0].ratio - 2.0).abs() < 1e-9);
        let text = report.text();
        assert!(text.contains(&format!("kvm: {STORES} / kvm-log: {BARE}: x 2.0000")), "{text}");
    }

    #[test]
    fn of_knocks_the_most_counts_and_of_times_the_median() {
        let rounds = [found(5, 1), found(900, 2), found(7, 0)];
        let row = Row::of("soft", ALL, &rounds).unwrap();
        assert_eq!((row.median.scan_ns, row.median.knocks), (7, 2));
        assert_eq!((row.shortest_ns, row.longest_ns), (15, 910));
        assert!(Row::<Found>::of("soft", ALL, &[]).is_none());
    }
}
