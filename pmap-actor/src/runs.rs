//! Runs of neighbouring pages that have something in common.

use actors::{Gpa, GpaRange, PAGE_SIZE};

/// The longest run of pages around `at`, inside `within` and inside one aligned window of
/// `window` pages, for which `same` holds (it holds for `at`).
pub(crate) fn run_around(
    at: Gpa,
    within: GpaRange,
    window: u64,
    same: impl Fn(Gpa) -> bool,
) -> GpaRange {
    let reach = window.max(1) * PAGE_SIZE;
    let page = at.page();
    let low = Gpa(page.0 / reach * reach).max(within.start());
    let high = Gpa((page.0 / reach + 1).saturating_mul(reach)).min(within.end());
    let mut start = page;
    while start > low && same(Gpa(start.0 - PAGE_SIZE)) {
        start = Gpa(start.0 - PAGE_SIZE);
    }
    let mut end = Gpa(page.0 + PAGE_SIZE);
    while end < high && same(end) {
        end = Gpa(end.0 + PAGE_SIZE);
    }
    GpaRange::new(start, end.0 - start.0).expect("at least one whole page")
}

/// Cuts `range` into the longest runs of pages for which `class` gives the same answer.
pub(crate) fn runs<C: PartialEq>(range: GpaRange, class: impl Fn(Gpa) -> C) -> Vec<(GpaRange, C)> {
    let mut found: Vec<(GpaRange, C)> = Vec::new();
    for page in range.iter_pages() {
        let kind = class(page);
        match found.last_mut() {
            Some((run, same)) if *same == kind => {
                *run = GpaRange::new(run.start(), run.len() + PAGE_SIZE).expect("part of a range");
            }
            _ => found.push((GpaRange::page_of(page), kind)),
        }
    }
    found
}

/// `runs`, each joined with the one behind it where at most `bridge` pages lie between the two and `may_join` says that
/// these may come along.
pub(crate) fn joined(
    runs: &[GpaRange],
    bridge: u64,
    may_join: impl Fn(GpaRange) -> bool,
) -> Vec<GpaRange> {
    let mut found: Vec<GpaRange> = Vec::new();
    for &run in runs {
        let Some(last) = found.last_mut() else {
            found.push(run);
            continue;
        };
        let gap = run.start().0.checked_sub(last.end().0);
        let gap = gap.and_then(|bytes| GpaRange::new(last.end(), bytes).ok());
        match gap {
            Some(gap) if gap.pages() <= bridge && may_join(gap) => {
                let len = run.end().0 - last.start().0;
                *last = GpaRange::new(last.start(), len).expect("two ranges of whole pages");
            }
            _ => found.push(run),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> GpaRange {
        GpaRange::new(Gpa(start * 4096), pages * 4096).unwrap()
    }

    #[test]
    fn a_run_stops_at_the_window_the_range_and_the_first_difference() {
        let all = range(0, 100);
        assert_eq!(run_around(Gpa(0x11_123), all, 16, |_| true), range(16, 16));
        assert_eq!(run_around(Gpa(0x11_000), range(17, 3), 16, |_| true), range(17, 3));
        assert_eq!(run_around(Gpa(0x14_000), all, 16, |page| page.0 != 0x12_000), range(0x13, 13));
        assert_eq!(run_around(Gpa(0x14_000), all, 1, |_| true), range(0x14, 1));
    }

    #[test]
    fn runs_are_joined_across_short_gaps_that_may_come_along_and_never_backwards() {
        let runs = [range(0, 2), range(5, 1), range(10, 1), range(12, 3), range(1, 1)];
        let join = |bridge, may: fn(GpaRange) -> bool| joined(&runs, bridge, may);
        assert_eq!(join(3, |_| true), [range(0, 6), range(10, 5), range(1, 1)]);
        assert_eq!(join(2, |_| true), [range(0, 2), range(5, 1), range(10, 5), range(1, 1)]);
        assert_eq!(join(100, |gap| gap != range(2, 3)), [range(0, 2), range(5, 10), range(1, 1)]);
        assert_eq!(join(100, |_| false), runs);
        assert_eq!(joined(&[], 100, |_| true), []);
    }

    #[test]
    fn runs_cover_the_range_without_gaps() {
        let found = runs(range(3, 7), |page| page.0 / 4096 / 4);
        let parts: Vec<_> = found.into_iter().map(|(run, _)| run).collect();
        assert_eq!(parts, [range(3, 1), range(4, 4), range(8, 2)]);
    }
}
