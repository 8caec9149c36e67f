//! The tier between memory and disk: packed pages, by page number.
//!
//! ```text
//!            put                  cluster                 written
//!   (none) ───────▶  resting  ───────────────▶ leaving ───────────▶ (none: on the disk)
//!     ▲                │  ▲                      │ │
//!     └───── take ─────┘  └────── stays ─────────┘ │   the write failed
//!     └──────────────────── take ──────────────────┘   what is written is of no use then
//! ```
//!
//! A page that is leaving can be read until it was written. A write knows its page by number
//! *and* stamp: if the page was taken meanwhile, or taken and put again, the stamp differs,
//! and the slot is a copy of nothing.
//!
//! **Who goes first.** Pages that did not compress, because they take as much memory as
//! before; then, while those that stay take more than the budget, the oldest. Whoever goes
//! takes its neighbours by page number along, because what lies together on the disk comes
//! back with one read.

use std::collections::BTreeMap;

use crate::swap::Packed;

/// Bytes that each page costs besides its own: an entry in each of two maps, whose nodes are
/// between 5 and 11 of 11 full and are counted as six. (600 bytes for 11 entries by page, with
/// the inner nodes' share; 216 by age.) With 135 000 pages, put in order or at random, the
/// sum is within 2 % of what the allocator says it gave.
pub const BOOKKEEPING: u64 = 136;

/// Which page, as it was when it began to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaving {
    /// Page number.
    pub page: u64,
    stamp: u64,
}

/// A page to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// Which.
    pub leaving: Leaving,
    /// What.
    pub packed: Packed,
}

#[derive(Debug)]
struct Entry {
    packed: Packed,
    /// When it came.
    stamp: u64,
    is_leaving: bool,
}

/// The owner of all packed pages that are in memory.
#[derive(Debug)]
pub struct Tier {
    pages: BTreeMap<u64, Entry>,
    /// Those that rest, by stamp: compressed.
    by_age: BTreeMap<u64, u64>,
    /// Those that rest, by stamp: raw.
    raw_by_age: BTreeMap<u64, u64>,
    budget: u64,
    bytes: u64,
    leaving_bytes: u64,
    next_stamp: u64,
}

impl Tier {
    /// Empty. `budget`: bytes, bookkeeping included, above which the oldest pages leave.
    #[must_use]
    pub fn new(budget: u64) -> Self {
        Self {
            pages: BTreeMap::new(),
            by_age: BTreeMap::new(),
            raw_by_age: BTreeMap::new(),
            budget,
            bytes: 0,
            leaving_bytes: 0,
            next_stamp: 0,
        }
    }

    /// Pages in it, those that are leaving included.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages.len() as u64
    }

    /// Bytes it takes, bookkeeping included: what the host's allocator was asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of [`Tier::bytes`]: of pages that are being written and will be gone.
    #[must_use]
    pub fn leaving_bytes(&self) -> u64 {
        self.leaving_bytes
    }

    /// Changes the budget, in bytes; what is over it leaves with the next clusters.
    pub fn set_budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }

    /// Whether [`Tier::cluster`] has something to write.
    #[must_use]
    pub fn has_too_much(&self) -> bool {
        !self.raw_by_age.is_empty() || (self.is_over() && !self.by_age.is_empty())
    }

    fn is_over(&self) -> bool {
        self.bytes - self.leaving_bytes > self.budget
    }

    /// Keeps a page. A copy that was there is replaced.
    pub fn put(&mut self, page: u64, packed: Packed) {
        self.take(page);
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.bytes += cost(&packed);
        self.ages(&packed).insert(stamp, page);
        self.pages.insert(page, Entry { packed, stamp, is_leaving: false });
    }

    /// The copy of a page, whether or not it is leaving.
    #[must_use]
    pub fn get(&self, page: u64) -> Option<&Packed> {
        self.pages.get(&page).map(|entry| &entry.packed)
    }

    /// Forgets a page and gives its copy. A write of it that is on its way will be heard to
    /// be of no use ([`Tier::written`]).
    pub fn take(&mut self, page: u64) -> Option<Packed> {
        let entry = self.pages.remove(&page)?;
        let cost = cost(&entry.packed);
        self.bytes -= cost;
        if entry.is_leaving {
            self.leaving_bytes -= cost;
        } else {
            self.ages(&entry.packed).remove(&entry.stamp);
        }
        Some(entry.packed)
    }

    /// Who is to be written next: up to `most` pages with neighbouring numbers, in their
    /// order; they are leaving from now on. Empty when nobody has to go, or `most` is 0.
    ///
    /// Each of them must be heard of again: [`Tier::written`] or [`Tier::stays`].
    #[must_use]
    pub fn cluster(&mut self, most: usize) -> Vec<Spill> {
        let is_over = self.is_over();
        let oldest = self.raw_by_age.first_key_value();
        let oldest = oldest.or_else(|| is_over.then(|| self.by_age.first_key_value()).flatten());
        let Some((_, &oldest)) = oldest else { return Vec::new() };
        if most == 0 {
            return Vec::new();
        }
        let goes = |entry: &Entry| !entry.is_leaving && (is_over || entry.packed.is_raw());
        // Up first: a guest that filled memory upwards is left in the same order.
        let mut chosen = Vec::with_capacity(most);
        let above = self.pages.range(oldest..).zip(oldest..);
        let above = above.take_while(|((page, entry), expected)| *page == expected && goes(entry));
        chosen.extend(above.take(most).map(|((page, _), _)| *page));
        let below = self.pages.range(..oldest).rev().zip((0..oldest).rev());
        let below = below.take_while(|((page, entry), expected)| *page == expected && goes(entry));
        chosen.extend(below.take(most - chosen.len()).map(|((page, _), _)| *page));
        chosen.sort_unstable();
        chosen.into_iter().filter_map(|page| self.leave(page)).collect()
    }

    fn leave(&mut self, page: u64) -> Option<Spill> {
        let entry = self.pages.get_mut(&page)?;
        entry.is_leaving = true;
        let (packed, stamp) = (entry.packed.clone(), entry.stamp);
        self.ages(&packed).remove(&stamp);
        self.leaving_bytes += cost(&packed);
        Some(Spill { leaving: Leaving { page, stamp }, packed })
    }

    /// A write is done: the page is forgotten here. `false` when it was taken meanwhile: then
    /// what was written is of no use to anybody.
    #[must_use = "what was written may be of no use"]
    pub fn written(&mut self, leaving: Leaving) -> bool {
        self.is_still(leaving) && self.take(leaving.page).is_some()
    }

    /// A write did not happen: the page, unless it was taken meanwhile, rests again, as old as
    /// before.
    pub fn stays(&mut self, leaving: Leaving) {
        if !self.is_still(leaving) {
            return;
        }
        let Some(entry) = self.pages.get_mut(&leaving.page) else { return };
        entry.is_leaving = false;
        let packed = entry.packed.clone();
        self.leaving_bytes -= cost(&packed);
        self.ages(&packed).insert(leaving.stamp, leaving.page);
    }

    fn is_still(&self, leaving: Leaving) -> bool {
        let entry = self.pages.get(&leaving.page);
        entry.is_some_and(|entry| entry.is_leaving && entry.stamp == leaving.stamp)
    }

    fn ages(&mut self, packed: &Packed) -> &mut BTreeMap<u64, u64> {
        if packed.is_raw() { &mut self.raw_by_age } else { &mut self.by_age }
    }
}

/// Bytes a page takes here: its own, with two counters before them, rounded up with a word as
/// allocators do; and [`BOOKKEEPING`].
#[must_use]
pub fn cost(packed: &Packed) -> u64 {
    (packed.bytes() as u64 + 24).next_multiple_of(16) + BOOKKEEPING
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::swap::PAGE_BYTES;
    use crate::swap::codec::tests::{packed, page_of};

    fn small(seed: u64) -> Packed {
        packed(&page_of(seed, 512))
    }

    fn raw(seed: u64) -> Packed {
        packed(&page_of(seed, PAGE_BYTES))
    }

    fn numbers(cluster: &[Spill]) -> Vec<u64> {
        cluster.iter().map(|spill| spill.leaving.page).collect()
    }

    #[test]
    fn nobody_leaves_while_the_budget_holds() {
        let mut tier = Tier::new(2 * cost(&small(0)));
        tier.put(1, small(0));
        tier.put(2, small(0));
        assert!(!tier.has_too_much());
        assert_eq!(tier.cluster(8), []);
        tier.put(3, small(0));
        assert!(tier.has_too_much());
    }

    #[test]
    fn the_oldest_leaves_and_takes_its_neighbours_along() {
        let mut tier = Tier::new(0);
        for page in [50, 90, 49, 52, 51, 7] {
            tier.put(page, small(page));
        }
        assert_eq!(numbers(&tier.cluster(3)), [50, 51, 52]);
        assert_eq!(numbers(&tier.cluster(3)), [90]);
        assert_eq!(numbers(&tier.cluster(3)), [49], "its neighbour is leaving already");
        assert_eq!(tier.cluster(0), []);
        assert_eq!(numbers(&tier.cluster(3)), [7]);
        assert_eq!(tier.cluster(3), []);
    }

    #[test]
    fn what_did_not_compress_leaves_at_once_and_alone() {
        let mut tier = Tier::new(u64::MAX);
        tier.put(5, small(1));
        tier.put(6, raw(2));
        tier.put(7, raw(3));
        tier.put(8, small(4));
        assert_eq!(numbers(&tier.cluster(8)), [6, 7]);
        assert!(!tier.has_too_much());
    }

    #[test]
    fn a_page_is_read_from_memory_until_it_is_written() {
        let mut tier = Tier::new(0);
        tier.put(5, small(1));
        let cluster = tier.cluster(8);
        assert_eq!(tier.get(5), Some(&small(1)));
        assert!(tier.written(cluster[0].leaving));
        assert_eq!(tier.get(5), None);
        assert_eq!((tier.bytes(), tier.leaving_bytes()), (0, 0));
    }

    #[test]
    fn a_write_of_a_page_that_was_taken_and_put_again_is_of_no_use() {
        let mut tier = Tier::new(0);
        tier.put(5, small(1));
        let first = tier.cluster(8)[0].leaving;
        tier.put(5, small(2));
        let second = tier.cluster(8)[0].leaving;
        assert!(!tier.written(first));
        assert_eq!(tier.get(5), Some(&small(2)));
        assert!(tier.written(second));
    }

    #[test]
    fn a_page_whose_write_failed_is_as_old_as_before() {
        let mut tier = Tier::new(0);
        tier.put(5, small(1));
        let five = tier.cluster(1)[0].leaving;
        tier.put(1, small(1));
        tier.stays(five);
        assert_eq!(tier.leaving_bytes(), 0);
        assert_eq!(numbers(&tier.cluster(1)), [5]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put { page: u64, seed: u64, raw: bool },
        Take { page: u64 },
        Cluster { most: usize },
        Hear { which: prop::sample::Index, written: bool },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u64..24, 1u64..9, any::<bool>())
                .prop_map(|(page, seed, raw)| Step::Put { page, seed, raw }),
            1 => (0u64..24).prop_map(|page| Step::Take { page }),
            2 => (0usize..6).prop_map(|most| Step::Cluster { most }),
            2 => (any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(which, written)| Step::Hear { which, written }),
        ]
    }

    proptest! {
        #[test]
        fn the_tier_agrees_with_a_map_and_its_sums_are_the_sums_of_its_pages(
            steps in prop::collection::vec(step(), 0..120),
            budget in 0u64..8000,
        ) {
            let mut tier = Tier::new(budget);
            // Page to (copy, put number, whether it leaves).
            let mut model: BTreeMap<u64, (Packed, usize, bool)> = BTreeMap::new();
            let mut on_their_way: Vec<(Spill, usize)> = Vec::new();
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put { page, seed, raw: is_raw } => {
                        let packed = if is_raw { raw(seed) } else { small(seed) };
                        tier.put(page, packed.clone());
                        model.insert(page, (packed, number, false));
                    }
                    Step::Take { page } => {
                        let expected = model.remove(&page).map(|(packed, ..)| packed);
                        prop_assert_eq!(tier.take(page), expected);
                    }
                    Step::Cluster { most } => {
                        let has_too_much = tier.has_too_much();
                        let cluster = tier.cluster(most);
                        prop_assert_eq!(!cluster.is_empty(), has_too_much && most > 0);
                        prop_assert!(cluster.len() <= most);
                        let pages = numbers(&cluster);
                        prop_assert!(pages.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                        for spill in cluster {
                            let entry = model.get_mut(&spill.leaving.page).unwrap();
                            prop_assert!(!entry.2 && entry.0 == spill.packed);
                            entry.2 = true;
                            on_their_way.push((spill, entry.1));
                        }
                    }
                    Step::Hear { which, written } if !on_their_way.is_empty() => {
                        let (spill, put) =
                            on_their_way.swap_remove(which.index(on_their_way.len()));
                        let page = spill.leaving.page;
                        let is_still = model.get(&page).is_some_and(|entry| entry.1 == put);
                        if written {
                            prop_assert_eq!(tier.written(spill.leaving), is_still);
                            if is_still {
                                model.remove(&page);
                            }
                        } else {
                            tier.stays(spill.leaving);
                            if is_still {
                                model.get_mut(&page).unwrap().2 = false;
                            }
                        }
                    }
                    Step::Hear { .. } => {}
                }
                let sum = |leaves: bool| -> u64 {
                    model.values().filter(|e| e.2 == leaves).map(|e| cost(&e.0)).sum()
                };
                prop_assert_eq!(tier.bytes(), sum(true) + sum(false));
                prop_assert_eq!(tier.leaving_bytes(), sum(true));
                prop_assert_eq!(tier.pages(), model.len() as u64);
                prop_assert!((0..24).all(|page| tier.get(page) == model.get(&page).map(|e| &e.0)));
                let raw_rests = model.values().any(|e| !e.2 && e.0.is_raw());
                prop_assert_eq!(tier.has_too_much(), raw_rests || sum(false) > budget);
            }
        }
    }
}
