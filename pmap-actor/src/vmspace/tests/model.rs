//! The vmspace against a dumb model, whatever is done in whatever order.
//!
//! The model knows what somebody who has no tables, no store and no caches would know of each page: what the map says, what
//! was stored last (a *stamp*), who must be told of it. Everything that can be late is late at random: shootdowns end later
//! than they began, with stores through stale translations in between; workers do their work later than they were told,
//! and are heard later than that, and each of them may fail.
//!
//! `steps.rs`: what may happen. `walker.rs`: who reaches memory. `workers.rs`: pageout and pagein. `follow.rs` and `requests.rs`: each step,
//! done to both. `check.rs`: what must be true after each. `long.rs`: minutes of it.

mod check;
mod follow;
mod long;
mod requests;
mod steps;
mod walker;
mod workers;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use actors::contract::page::{DirtyConsumer, PmapTally, ReclaimTally};
use actors::layout::MemoryLayout;
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::{Outcome, Removed, Settings, Superpages, Unserved, VmSpace};
use crate::content::OutTicket;
use crate::host::memory::GuestMemory;
use crate::mirror::SoftMirror;
use crate::swap::PAGE_BYTES;

use steps::Worker;
pub(super) use steps::{Setup, Span, Step};
use walker::{Dice, Scripted, Tlb, Watched};
use workers::Workers;

const BLOCK_PAGES: u64 = 512;
/// Below the hole: two blocks; above it: one.
const LOW_PAGES: u64 = 2 * BLOCK_PAGES;
const PAGES: u64 = 3 * BLOCK_PAGES;

/// What is known of a page.
#[derive(Clone, Copy, Debug, Default)]
struct Page {
    /// What the map says; `None`: nothing is there.
    protection: Option<Protection>,
    /// It is a device's: nobody's books have it.
    device: bool,
    wired: bool,
    /// What was stored last; 0: nothing.
    stamp: u64,
    /// Somebody said that its contents are of no use: it may be zeroes.
    or_zero: bool,
    /// Its frame goes when the shootdown is over.
    going: bool,
    /// Used, or stored to, by a walk, and in no harvest yet.
    used: bool,
    stored: bool,
}

/// Somebody who counts stores.
struct Consumer {
    id: DirtyConsumer,
    /// Stored to, and in no epoch yet.
    pending: BTreeSet<u64>,
    /// Stored to after the epoch that is being taken was closed: it may be in that one, or in the next.
    fresh: BTreeSet<u64>,
    is_closing: bool,
    taken: Option<(u64, BTreeSet<u64>)>,
}

/// A removal whose shootdown has not ended, or not begun.
struct InFlight {
    removed: Removed,
    raised: bool,
}

/// Both, and everybody around them.
struct Bench<M> {
    setup: Setup,
    space: VmSpace<M>,
    memory: Arc<GuestMemory>,
    pages: Vec<Page>,
    holds: Vec<(Span, Protection)>,
    consumers: Vec<Consumer>,
    outs: HashSet<OutTicket>,
    walkers: [Tlb; 2],
    workers: Workers,
    in_flight: Option<InFlight>,
    dice: Dice,
    last_stamp: u64,
    capacity: u32,
    steps: u64,
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

/// A word of the page that was stamped so: odd stamps compress, even ones do not.
fn word(stamp: u64, at: usize) -> u64 {
    match (stamp, at) {
        (0, _) => 0,
        (stamp, 0) => stamp,
        (stamp, _) if stamp % 2 == 1 => 0,
        (stamp, at) => {
            let mixed = (stamp ^ (at as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        }
    }
}

fn contents(stamp: u64) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    for (at, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *place = word(stamp, at).to_le_bytes();
    }
    bytes
}

fn memory() -> Arc<GuestMemory> {
    let layout = MemoryLayout::split(PAGES * PAGE_SIZE, LOW_PAGES * PAGE_SIZE, 48).unwrap();
    Arc::new(GuestMemory::new(layout).unwrap())
}

/// What was done in a sequence.
type Tallies = (PmapTally, ReclaimTally);

pub(super) fn run(setup: Setup, steps: &[Step]) -> Tallies {
    let memory = memory();
    if setup.mirrored {
        let mirror = Scripted::new(memory.clone(), setup.seed);
        Bench::new(setup, memory, mirror).run(steps)
    } else {
        let mirror = SoftMirror::new(memory.clone());
        Bench::new(setup, memory, mirror).run(steps)
    }
}

impl<M: Watched> Bench<M> {
    fn new(setup: Setup, memory: Arc<GuestMemory>, mirror: M) -> Self {
        let Setup { flags, mirrored, at_once, around, store, seed } = setup;
        let superpages = Superpages { at_once, writable_only: mirrored };
        let settings = Settings { flags, around, superpages, store };
        Self {
            setup,
            space: VmSpace::new(memory.clone(), settings, mirror),
            memory,
            pages: vec![Page::default(); index(PAGES)],
            holds: Vec::new(),
            consumers: Vec::new(),
            outs: HashSet::new(),
            walkers: Default::default(),
            workers: Workers::default(),
            in_flight: None,
            dice: Dice(seed),
            last_stamp: 0,
            capacity: store.map_or(0, |store| store.slots),
            steps: 0,
        }
    }

    fn run(mut self, steps: &[Step]) -> Tallies {
        for (first, end) in [(0, LOW_PAGES), (LOW_PAGES, PAGES)] {
            self.follow(&Step::Map(Span { first, pages: end - first }, Protection::all()));
        }
        for step in steps {
            self.follow(step);
            self.hear_ends();
            self.steps += 1;
            self.check(step);
        }
        self.end()
    }

    fn gpa(&self, page: u64) -> Gpa {
        self.memory.gpa_of_frame(page * PAGE_SIZE).unwrap()
    }

    fn range(&self, span: Span) -> GpaRange {
        GpaRange::new(self.gpa(span.first), span.pages * PAGE_SIZE).unwrap()
    }

    fn of(&self, span: Span) -> &[Page] {
        &self.pages[index(span.first)..index(span.first + span.pages)]
    }

    fn of_mut(&mut self, span: Span) -> &mut [Page] {
        &mut self.pages[index(span.first)..index(span.first + span.pages)]
    }

    fn is_held(&self, page: u64) -> bool {
        self.holds.iter().any(|(span, _)| (span.first..span.first + span.pages).contains(&page))
    }

    fn hear_ends(&mut self) {
        self.workers.take(self.space.take_jobs());
        for (ticket, _) in self.space.take_ended_outs() {
            assert!(self.outs.remove(&ticket), "{ticket:?} ended twice, or was not awaited");
        }
    }

    fn read_word(&self, page: u64, at: usize) -> u64 {
        let place = GuestAddress(self.gpa(page).0 + 8 * at as u64);
        u64::from_le(self.memory.backing().read_obj(place).unwrap())
    }

    /// Whether the page's frame holds what was stored last.
    fn holds_stamp(&self, page: u64) -> bool {
        let Page { stamp, or_zero, .. } = self.pages[index(page)];
        let holds =
            |stamp| [0, 1, 511].iter().all(|at| self.read_word(page, *at) == word(stamp, *at));
        holds(stamp) || (or_zero && holds(0))
    }

    /// Everything comes back, and everything goes: what is left then was lost.
    fn end(mut self) -> Tallies {
        self.finish();
        self.drain();
        for page in 0..PAGES {
            let state = self.pages[index(page)];
            if state.protection.is_some_and(|rights| rights.contains(Protection::READ))
                && (state.stamp != 0 || state.or_zero)
            {
                self.bring_back(page);
            }
        }
        self.check(&Step::Finish);
        for consumer in 0..self.consumers.len() {
            self.follow(&Step::Take(consumer));
            self.finish();
        }
        while !self.holds.is_empty() {
            self.follow(&Step::Release(0, false));
        }
        for page in 0..PAGES {
            let one = Span { first: page, pages: 1 };
            if self.pages[index(page)].wired {
                self.space.unwire(self.range(one)).unwrap();
                self.pages[index(page)].wired = false;
            }
        }
        for page in 0..PAGES {
            if self.pages[index(page)].protection.is_some() {
                let first = page;
                let stretch = if first < LOW_PAGES { LOW_PAGES } else { PAGES };
                let more = (first..stretch)
                    .take_while(|page| self.pages[index(*page)].protection.is_some())
                    .count();
                self.follow(&Step::Unmap(Span { first, pages: more as u64 }));
                self.finish();
            }
        }
        self.drain();
        self.check(&Step::Finish);
        assert_eq!(self.space.tables().leaves(), 0);
        assert_eq!((self.space.resident_pages(), self.space.wired_pages()), (0, 0));
        assert_eq!(self.memory.resident_bytes().unwrap(), 0, "frames were lost");
        assert_eq!(self.space.content.slots(), (self.capacity, self.capacity), "slots were lost");
        assert!(!self.space.content.is_waiting_for_workers());
        assert!(self.outs.is_empty(), "nobody heard how {:?} ended", self.outs);
        (self.space.pmap_tally(), self.space.reclaim_tally())
    }

    /// Reads a page as a walker, however long that takes; gives up where there is no way out.
    fn bring_back(&mut self, page: u64) {
        for _ in 0..10_000 {
            if self.touch(0, page, Access::Read) {
                return;
            }
            self.follow(&Step::Reclaim);
            self.finish();
            self.drain();
            if self.space.is_stuck() {
                return;
            }
        }
        panic!("page {page} never came back: {}", self.space.shortage());
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_wrong_or_allowed_too_much_whatever_is_done_in_whatever_order(
        setup in steps::setup(),
        script in prop::collection::vec(steps::step(), 1..80),
    ) {
        run(setup, &script);
    }
}
