//! The itinerary: which transitions there are, how each is brought about, and what must be seen before and after.
//!
//! Each works on pages of its own that nobody touched before, save those about the block. Whatever differs with the
//! engine or the layout is said in a [`Setting`]; a transition that it rules out is skipped, with the reason.

use std::fmt::{self, Display, Formatter};

use actors::contract::page::{PagedOut, Resized, Settled, Touch};
use actors::contract::space::SpaceTally;
use actors::{Gpa, GpaRange, PAGE_SIZE};

use super::control::{Deed, PAGES, SINGLE_PAGES, What};
use super::driver::Order;
use super::sight::{Kind, Sight};

mod bits;
mod blocks;
mod epochs;
mod places;
mod rights;

/// What matters about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// How many vcpus.
    pub vcpus: u16,
    /// Accessed and dirty bits are set by faults, not by whoever walks the tables.
    pub emulated: bool,
    /// An execution counts as a use. It does not where bits are emulated and a page may be executed and not read.
    pub sees_executions: bool,
    /// There may be superpages.
    pub superpages: bool,
    /// There is a swap file.
    pub swap: bool,
}

/// One transition.
#[derive(Clone, Debug)]
pub struct Transition {
    /// "from -> to, by what".
    pub name: &'static str,
    /// Why it is left out, if it is.
    pub skipped: Option<&'static str>,
    /// What is done, and what must come of it.
    pub acts: Vec<Act>,
    /// How the pmap's counts must have grown.
    pub counts: Vec<(Counter, Amount)>,
}

/// One thing to do, and what must come of it.
#[derive(Clone, Debug)]
pub enum Act {
    /// A vcpu does this, and every page is right.
    Deed(Deed),
    /// The pmap does this.
    Do(Order),
    /// The pmap refuses this, in these words.
    Refused(Order, &'static str),
    /// A harvest finds all of these pages, or none.
    Harvest(GpaRange, Touch, Found),
    /// A pageout does exactly this.
    Out(GpaRange, PagedOut),
    /// The last of these pages is caught on its way out: if not at once, then after this was done again.
    Rescue(GpaRange, Deed),
    /// A promotion or demotion does exactly this.
    Resize(Order, Resized),
    /// A page looks like this.
    See(Gpa, Sight),
    /// A page looks like this before long.
    Until(Gpa, Sight),
    /// Somebody wants dirty epochs from now on.
    Begin,
    /// The epoch that is taken has exactly these of those pages.
    Take(GpaRange, Vec<Gpa>),
    /// It is settled like this.
    Settle(Settled),
    /// Nobody wants epochs any more.
    End,
}

/// Whether a harvest finds the pages: all, none, or it does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// As accessed.
    pub accessed: Option<bool>,
    /// As modified.
    pub modified: Option<bool>,
}

impl Found {
    fn accessed(is: bool) -> Self {
        Self { accessed: Some(is), modified: None }
    }

    fn modified(is: bool) -> Self {
        Self { accessed: None, modified: Some(is) }
    }
}

/// By how much a count must have grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// By so much.
    Exactly(u64),
    /// By so much or more.
    AtLeast(u64),
}

impl Amount {
    pub(super) fn is(self, grew: u64) -> bool {
        match self {
            Self::Exactly(wanted) => grew == wanted,
            Self::AtLeast(wanted) => grew >= wanted,
        }
    }
}

impl Display for Amount {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(wanted) => write!(out, "{wanted}"),
            Self::AtLeast(wanted) => write!(out, "{wanted} at least"),
        }
    }
}

/// What the pmap counts, as far as the tour asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Faults that were served, but for second reports of the same.
    Faults,
    /// Faults that only set emulated bits.
    BitFaults,
    /// Pages of zeroes made by faults.
    ZeroFilled,
    /// Shootdowns.
    Shootdowns,
    /// Superpages made, in either way.
    Promotions,
    /// Superpages unmade.
    Demotions,
    /// Harvests.
    Harvests,
    /// Pages that left memory.
    PagesOut,
    /// Pages that came back.
    PagesIn,
    /// From the compressed tier.
    CompressedIn,
    /// From disk.
    DiskIn,
    /// Pages written to disk.
    Written,
    /// Pages caught on their way out.
    Rescued,
}

impl Counter {
    pub(super) fn of(self, tally: &SpaceTally) -> u64 {
        let SpaceTally { faults, pmap, reclaim, shootdowns, .. } = tally;
        match self {
            Self::Faults => faults.total.saturating_sub(faults.already_there),
            Self::BitFaults => pmap.accessed_faults.saturating_add(pmap.modified_faults),
            Self::ZeroFilled => faults.zero_filled,
            Self::Shootdowns => shootdowns.raised,
            Self::Promotions => pmap.promotions.saturating_add(pmap.superpages_entered),
            Self::Demotions => pmap.demotions,
            Self::Harvests => pmap.harvests,
            Self::PagesOut => reclaim.pages_out,
            Self::PagesIn => reclaim.pages_in,
            Self::CompressedIn => reclaim.compressed_pages_in,
            Self::DiskIn => reclaim.disk_pages_in,
            Self::Written => reclaim.written_pages,
            Self::Rescued => reclaim.rescued_pages,
        }
    }
}

/// The whole itinerary.
#[must_use]
pub fn itinerary(setting: Setting) -> Vec<Transition> {
    let mut guide = Guide { setting, next_page: 0, next_vcpu: 0, transitions: Vec::new() };
    guide.begin();
    places::arriving(&mut guide);
    bits::all(&mut guide);
    rights::all(&mut guide);
    places::leaving(&mut guide);
    epochs::all(&mut guide);
    blocks::all(&mut guide);
    guide.transitions
}

/// There is no memory.
const GONE: Sight = Sight {
    kind: Some(Kind::Absent),
    mapped: Some(None),
    writable: Some(false),
    accessed: None,
    modified: None,
    wired: None,
    held: None,
};

/// Why transitions about the store are left out.
const NO_SWAP: &str = "there is no --swap FILE";
/// Why transitions about superpages are left out.
const NO_SUPERPAGES: &str = "there are no superpages: --superpages off";

/// Makes the itinerary: hands out pages and vcpus.
struct Guide {
    setting: Setting,
    next_page: u16,
    next_vcpu: u16,
    transitions: Vec<Transition>,
}

impl Guide {
    /// Every vcpu does each kind of deed once, so that what it needs for itself is there: its code, its slot, its stack.
    fn begin(&mut self) {
        let page = self.page();
        // A block with a hole cannot become a superpage, nor be entered as one at its first touch: each single page
        // is on its own.
        let last = Gpa(PAGES.0 + u64::from(SINGLE_PAGES - 1) * PAGE_SIZE);
        let mut acts = vec![Act::Do(Order::Unmap(GpaRange::page_of(last))), Act::See(last, GONE)];
        for _ in 0..self.setting.vcpus {
            acts.push(self.write(page, super::content(99)));
        }
        for _ in 0..self.setting.vcpus {
            acts.push(self.execute(page, 99));
        }
        self.add("every vcpu begins", acts, &[]);
    }

    /// Pages that nobody touched, and one behind them that nobody will.
    fn pages(&mut self, count: u16) -> GpaRange {
        let first = self.next_page;
        self.next_page += count + 1;
        assert!(self.next_page < SINGLE_PAGES, "the tour needs more single pages");
        let start = Gpa(PAGES.0 + u64::from(first) * PAGE_SIZE);
        GpaRange::new(start, u64::from(count) * PAGE_SIZE).expect("a few pages")
    }

    fn page(&mut self) -> GpaRange {
        self.pages(1)
    }

    /// Each vcpu has its turn.
    fn deed(&mut self, what: What, range: GpaRange, value: u64) -> Deed {
        let vcpu = self.next_vcpu;
        self.next_vcpu = (vcpu + 1) % self.setting.vcpus.max(1);
        Deed { vcpu, what, range, value }
    }

    fn read(&mut self, range: GpaRange, value: u64) -> Act {
        Act::Deed(self.deed(What::Read, range, value))
    }

    fn write(&mut self, range: GpaRange, value: u64) -> Act {
        Act::Deed(self.deed(What::Write, range, value))
    }

    fn execute(&mut self, range: GpaRange, tag: u32) -> Act {
        Act::Deed(self.deed(What::Execute, range, u64::from(tag)))
    }

    fn add(&mut self, name: &'static str, acts: Vec<Act>, counts: &[(Counter, Amount)]) {
        let counts = counts.to_vec();
        self.transitions.push(Transition { name, skipped: None, acts, counts });
    }

    /// Adds it, or leaves it out where there is a reason.
    fn add_unless(
        &mut self,
        why_not: Option<&'static str>,
        name: &'static str,
        acts: Vec<Act>,
        counts: &[(Counter, Amount)],
    ) {
        self.add(name, acts, counts);
        if let Some(added) = self.transitions.last_mut() {
            added.skipped = why_not;
        }
    }

    fn no_swap(&self) -> Option<&'static str> {
        (!self.setting.swap).then_some(NO_SWAP)
    }

    fn no_superpages(&self) -> Option<&'static str> {
        (!self.setting.superpages).then_some(NO_SUPERPAGES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(superpages: bool, swap: bool) -> Setting {
        Setting { vcpus: 4, emulated: true, sees_executions: true, superpages, swap }
    }

    #[test]
    fn every_transition_has_a_name_of_its_own_and_something_to_do() {
        let all = itinerary(setting(true, true));
        let mut names: Vec<_> = all.iter().map(|transition| transition.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        for transition in &all {
            assert!(!transition.acts.is_empty(), "{}", transition.name);
            let looks = |act: &Act| !matches!(act, Act::Do(_));
            assert!(transition.acts.iter().any(looks), "{}", transition.name);
        }
    }

    #[test]
    fn what_a_run_cannot_show_is_left_out_by_name_and_the_rest_is_the_same() {
        let all = itinerary(setting(true, true));
        let less = itinerary(setting(false, false));
        assert_eq!(all.len(), less.len());
        // Only what shows that superpages can be switched off, and the other way to see executions.
        assert_eq!(all.iter().filter(|transition| transition.skipped.is_some()).count(), 2);
        for why in [NO_SWAP, NO_SUPERPAGES] {
            assert!(less.iter().any(|transition| transition.skipped == Some(why)), "{why}");
        }
        assert!(less.iter().filter(|transition| transition.skipped.is_none()).count() > 10);
    }
}
