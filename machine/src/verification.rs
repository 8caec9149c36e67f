//! `--verify`: the pmap's tables beside what the host does, whenever the machine stands still.

use actors::contract::space::SpaceError;
use actors::contract::verify::Verified;
use parking_lot::Mutex;
use pmap_actor::handle::SpaceHandle;
use serde::Serialize;

/// What was compared so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// How often: at each pause, and at the end.
    pub comparisons: u64,
    /// Pages of 4 KiB that were compared, in all of them together.
    pub compared_pages: u64,
    /// What the last one saw, and the differences of all of them. (One that is there each time counts each time.)
    #[serde(flatten)]
    pub found: Verified,
}

impl Verification {
    fn add(&mut self, mut found: Verified) {
        self.comparisons += 1;
        self.compared_pages += found.pages;
        found.come_after(&self.found);
        self.found = found;
    }
}

impl std::fmt::Display for Verification {
    /// Lines: a summary, and the differences that were kept.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let times = self.comparisons;
        if times > 1 {
            write!(out, "{times} times, {} pages in all; the last: ", self.compared_pages)?;
        }
        write!(out, "{}", self.found)
    }
}

/// Compares, where that was asked for.
pub(crate) struct Verifier {
    so_far: Option<Mutex<Verification>>,
}

impl Verifier {
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self { so_far: is_wanted.then(Mutex::default) }
    }

    /// Compares once. A comparison that cannot be made is a difference: nobody knows that there is none.
    pub(crate) fn compare(&self, space: &SpaceHandle) {
        let Some(so_far) = &self.so_far else { return };
        let found = match space.verify() {
            Ok(found) => found,
            // Its death is told elsewhere, and it is the reason.
            Err(SpaceError::Dead(_)) => return,
            Err(error) => {
                let mut found = Verified::default();
                found.differs(None, "our tables were to be compared", error.to_string());
                found
            }
        };
        so_far.lock().add(found);
    }

    /// The outcome; none where nobody asked, or nothing could be compared.
    pub(crate) fn result(&self) -> Option<Verification> {
        let so_far = self.so_far.as_ref()?.lock();
        (so_far.comparisons > 0).then(|| so_far.clone())
    }
}

#[cfg(test)]
mod tests {
    use actors::contract::verify::KEPT_DIFFERENCES;

    use super::*;

    fn found(pages: u64, differences: u64) -> Verified {
        let mut found = Verified { pages, ..Verified::default() };
        (0..differences).for_each(|_| found.differs(None, "ours", "theirs"));
        found
    }

    #[test]
    fn a_difference_of_any_comparison_outlives_the_later_ones() {
        let mut all = Verification::default();
        for (pages, differences) in [(4, 0), (8, 1), (16, 0)] {
            all.add(found(pages, differences));
        }
        assert_eq!((all.comparisons, all.compared_pages, all.found.pages), (3, 28, 16));
        assert_eq!((all.found.count, all.found.differences.len()), (1, 1));
        assert!(all.to_string().starts_with("3 times, 28 pages in all; the last: 16 pages"));
    }

    #[test]
    fn the_differences_of_many_comparisons_are_all_counted_and_the_first_are_kept() {
        let mut all = Verification::default();
        (0..100).for_each(|_| all.add(found(1, 3)));
        assert_eq!((all.found.count, all.found.differences.len()), (300, KEPT_DIFFERENCES));
    }
}
