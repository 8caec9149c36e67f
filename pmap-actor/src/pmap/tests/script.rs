//! Random sequences of everything, beside the model, a processor that caches translations, and a second copy of the tables.
//!
//! Besides that each page is mapped exactly as the model says:
//!
//! * a translation that is cached, and that no operation asked a shootdown for, is still right;
//! * a store is remembered, by its page's modified bit or by whoever was told, whether it went through the tables or
//!   through a cached translation; and so is a use;
//! * a second copy that follows [`Effects`] and [`Pmap::rights`] allows what hardware may do, and no more.

use std::collections::BTreeMap;
use std::ops::Range;

use actors::{Access, Protection};
use proptest::prelude::*;

use super::super::{Advice, Ageing, Effects, Pmap, PmapFlags, PmapType, Unaccessed, Wanted, What};
use super::model::Dumb;
use super::step::{Op, assert_same};
use super::{Heard, PAGES, kinds, page, pmap};
use crate::ept::attribute::Attribute;
use crate::ept::view::Translation;

/// Three blocks.
const ALL: Range<u64> = 0..3 * PAGES;

/// What somebody does: one operation, or many of a kind.
#[derive(Clone, Debug)]
enum Step {
    One(Op),
    /// A processor that caches what it finds goes there; what it may not do it asks for, and gets.
    Touch(u64, Access, Wanted),
    /// So does it with every page of a block.
    TouchBlock(u64, Access, Wanted),
    /// And then somebody promotes it.
    PromoteTouched(u64, Access, Wanted),
}

struct World {
    pmap: Pmap,
    dumb: Dumb,
    /// By page: a processor's.
    cached: BTreeMap<u64, Translation>,
    /// What the second copy allows, of reading and writing.
    mirror: Vec<Protection>,
    /// Stores and uses that nobody was told of yet.
    stored: Vec<bool>,
    used: Vec<bool>,
}

fn index(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

const MIRRORED: Protection = Protection::READ.union(Protection::WRITE);

impl World {
    fn new(which: (PmapType, PmapFlags)) -> Self {
        let pages = index(ALL.end);
        Self {
            pmap: pmap(which),
            dumb: Dumb::new(which.0, which.1),
            cached: BTreeMap::new(),
            mirror: vec![Protection::empty(); pages],
            stored: vec![false; pages],
            used: vec![false; pages],
        }
    }

    fn apply(&mut self, op: &Op) {
        let (effects, heard) = op.apply(&mut self.pmap, &mut self.dumb);
        self.hear(op, &heard);
        self.follow(op, effects);
    }

    fn hear(&mut self, op: &Op, heard: &Heard) {
        heard.modified.iter().for_each(|page| self.stored[index(*page)] = false);
        heard.referenced.iter().for_each(|page| self.used[index(*page)] = false);
        if let Op::Advise(_, Advice::Free) = op {
            // Contents that nobody wants. (A superpage may be removed for a part of it.)
            for number in ALL {
                self.stored[index(number)] &= self.pmap.is_modified(page(number));
            }
        }
    }

    fn follow(&mut self, op: &Op, effects: Effects) {
        if effects.needs_shootdown() {
            self.cached.clear();
        }
        self.pmap.give_back(effects.emptied);
        let numbers = |range| super::numbers(range).map(index);
        for range in effects.unreachable.as_slice() {
            numbers(*range).for_each(|page| self.mirror[page] = Protection::empty());
        }
        for range in effects.unwritable.as_slice() {
            numbers(*range).for_each(|page| self.mirror[page] -= Protection::WRITE);
        }
        // What the caller knows to have grown.
        let grown = match op {
            Op::Enter(at, ..) | Op::EnterQuick(at, _) | Op::Emulate(at, _) => {
                // A superpage has one accessed bit.
                let block = at / PAGES * PAGES;
                if self.pmap.tables().block(page(*at)) == crate::ept::tables::Block::Pages(512) {
                    *at..at + 1
                } else {
                    block..block + PAGES
                }
            }
            Op::EnterObject(at, ..) => at.clone(),
            Op::EnterSuperpage(at, _) | Op::Promote(at, _) => *at..at + PAGES,
            _ => 0..0,
        };
        for number in grown {
            self.mirror[index(number)] = self.pmap.rights(page(number)) & MIRRORED;
        }
    }

    /// Goes there as a processor does.
    fn touch(&mut self, number: u64, access: Access, wanted: Wanted) {
        let right = |found: &Translation| match access {
            Access::Read => found.readable,
            Access::Write => found.writable,
            Access::Execute => found.executable,
        };
        let by_cache = self.cached.get(&number).is_some_and(right);
        let by_walk = |this: &mut Self| {
            if !this.dumb.rights(number).contains(access.needs()) {
                return false;
            }
            let _ = Op::Walk(number, access).apply(&mut this.pmap, &mut this.dumb);
            // What the walk just found is cached, for the whole leaf or for this page: for this page.
            let found = this.pmap.view().translate(page(number), access).unwrap();
            this.cached.insert(number, found);
            true
        };
        if !by_cache && !by_walk(self) {
            if access != Access::Execute && self.dumb.emulates(number, access) {
                self.apply(&Op::Emulate(number, access));
            } else if wanted.protection.contains(access.needs()) {
                let wanted = Wanted { touched: Some(access), ..wanted };
                self.apply(&Op::Enter(number, number, wanted));
            } else {
                return;
            }
            assert!(by_walk(self), "page {number}: {access:?} is refused again");
        }
        let managed = self.pmap.mincore(page(number)).is_some_and(|known| known.managed);
        self.stored[index(number)] |= access == Access::Write && managed;
        // A fetch leaves no trace where execute-only is supported and bits are emulated.
        self.used[index(number)] |= access != Access::Execute && managed;
    }

    fn step(&mut self, step: &Step) {
        let last = match step {
            Step::One(op) => {
                self.apply(op);
                op.clone()
            }
            Step::Touch(at, access, wanted) => {
                self.touch(*at, *access, *wanted);
                Op::Walk(*at, *access)
            }
            Step::TouchBlock(at, access, wanted) => {
                (*at..at + PAGES).for_each(|page| self.touch(page, *access, *wanted));
                Op::Walk(*at, *access)
            }
            Step::PromoteTouched(at, access, wanted) => {
                (*at..at + PAGES).for_each(|page| self.touch(page, *access, *wanted));
                let promote = Op::Promote(*at, Unaccessed::Refuse);
                self.apply(&promote);
                promote
            }
        };
        // Each step looks at a few pages, the end at all.
        self.check(&last, ALL.filter(|number| number % 61 == 0 || PLACES.contains(number)));
    }

    fn check(&self, after: &Op, numbers: impl Iterator<Item = u64> + Clone) {
        assert_same(&self.pmap, &self.dumb, numbers.clone(), after);
        for number in numbers {
            let (at, slot) = (page(number), index(number));
            let bits = self.pmap.mincore(at);
            let modified = bits.is_some_and(|known| known.modified);
            assert!(!self.stored[slot] || modified, "the store to {number} is lost: {after:?}");
            let referenced = bits.is_some_and(|known| known.referenced);
            assert!(!self.used[slot] || referenced, "the use of {number} is lost: {after:?}");
            let rights = self.pmap.rights(at) & MIRRORED;
            assert_eq!(self.mirror[slot], rights, "the second copy of {number}: {after:?}");
        }
        for (number, found) in &self.cached {
            let at = page(*number);
            let rights = self.pmap.rights(at);
            let what = format!("the cached {found:?} of page {number} after {after:?}");
            let leaf = self.pmap.leaf(at).unwrap_or_else(|| panic!("{what}: nothing is there"));
            let frame = found.frame + (at.0 & (found.bytes - 1));
            assert_eq!(leaf.frame_of(at), frame, "{what}");
            assert!(!found.readable || rights.contains(Protection::READ), "{what}");
            assert!(!found.executable || rights.contains(Protection::EXECUTE), "{what}");
            assert!(!found.writable || self.pmap.is_modified(at), "{what}");
        }
    }
}

/// The ends of blocks, one place in the middle, and the pages that speak for blocks: they are met more often than others.
const PLACES: [u64; 12] = [0, 1, 2, 7, 511, 512, 513, 519, 1023, 1024, 1026, 1535];

fn somewhere() -> impl Strategy<Value = u64> {
    prop_oneof![prop::sample::select(PLACES.to_vec()), ALL]
}

fn some_range() -> impl Strategy<Value = Range<u64>> {
    prop_oneof![
        (somewhere(), somewhere()).prop_map(|(a, b)| a.min(b)..a.max(b) + 1),
        somewhere().prop_map(|at| at..at + 1),
        (0..3u64).prop_map(|block| block * PAGES..(block + 1) * PAGES),
        Just(ALL),
    ]
}

fn some_access() -> impl Strategy<Value = Access> {
    prop::sample::select(Access::ALL.to_vec())
}

fn some_rights() -> impl Strategy<Value = Protection> {
    (0..8u8).prop_map(Protection::from_bits_retain)
}

/// As a fault would want it.
fn wanted() -> impl Strategy<Value = Wanted> {
    let rights = some_rights().prop_map(|rights| rights | Protection::READ);
    let device = prop::bool::weighted(0.05);
    (rights, some_access(), device, prop::bool::weighted(0.2), prop::bool::weighted(0.1)).prop_map(
        |(protection, access, device, dirty, wired)| {
            let attribute = if device { Attribute::DEVICE } else { Attribute::MEMORY };
            let touched = Some(access);
            Wanted { protection, attribute, touched, dirty, wired }
        },
    )
}

fn what() -> impl Strategy<Value = What> {
    let ageing = prop::sample::select(vec![None, Some(Ageing::Hashed), Some(Ageing::Whole)]);
    (any::<bool>(), ageing).prop_map(|(modified, accessed)| What { modified, accessed })
}

fn some_block() -> impl Strategy<Value = u64> {
    (0..3u64).prop_map(|number| number * PAGES)
}

fn unaccessed() -> impl Strategy<Value = Unaccessed> {
    prop::sample::select(vec![Unaccessed::Refuse, Unaccessed::Mark])
}

fn advice() -> impl Strategy<Value = Advice> {
    prop::sample::select(vec![Advice::DontNeed, Advice::Free])
}

fn operation() -> impl Strategy<Value = Op> {
    let shift = prop::sample::select(vec![0, 0, 0, 512, 1]);
    prop_oneof![
        (somewhere(), prop::sample::select(vec![0, 0, 100]), wanted(), any::<bool>()).prop_map(
            |(at, shift, wanted, touched)| {
                let touched = wanted.touched.filter(|_| touched);
                Op::Enter(at, at + shift, Wanted { touched, ..wanted })
            }
        ),
        (somewhere(), any::<bool>()).prop_map(|(at, execute)| Op::EnterQuick(at, execute)),
        (some_range(), shift, any::<bool>())
            .prop_map(|(at, shift, execute)| Op::EnterObject(at, shift, execute)),
        (some_block(), wanted()).prop_map(|(at, wanted)| {
            Op::EnterSuperpage(at, Wanted { attribute: Attribute::MEMORY, ..wanted })
        }),
        some_range().prop_map(Op::Remove),
        (some_range(), some_rights()).prop_map(|(at, rights)| Op::Protect(at, rights)),
        (some_range(), any::<bool>()).prop_map(|(at, wired)| Op::Wire(at, wired)),
        somewhere().prop_map(Op::ClearModify),
        somewhere().prop_map(Op::RemoveWrite),
        somewhere().prop_map(Op::ClearReference),
        somewhere().prop_map(Op::TsReferenced),
        (some_range(), what()).prop_map(|(at, what)| Op::Harvest(at, what)),
        (some_range(), what()).prop_map(|(at, what)| Op::Harvest(at, what)),
        (some_range(), advice()).prop_map(|(at, advice)| Op::Advise(at, advice)),
        (somewhere(), some_access()).prop_map(|(at, access)| Op::Emulate(at, access)),
        (some_block(), unaccessed()).prop_map(|(at, how)| Op::Promote(at, how)),
        somewhere().prop_map(Op::Demote),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let memory = || wanted().prop_map(|wanted| Wanted { attribute: Attribute::MEMORY, ..wanted });
    prop_oneof![
        4 => operation().prop_map(Step::One),
        1 => (some_block(), some_access(), memory())
            .prop_map(|(at, access, wanted)| Step::TouchBlock(at, access, wanted)),
        3 => (some_block(), some_access(), memory())
            .prop_map(|(at, access, wanted)| Step::PromoteTouched(at, access, wanted)),
        3 => (somewhere(), some_access(), wanted())
            .prop_map(|(at, access, wanted)| Step::Touch(at, access, wanted)),
    ]
}

/// A few, or as many as are asked for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_allowed_too_much_whatever_is_done_in_whatever_order(
        script in prop::collection::vec(step(), 1..40),
    ) {
        for which in kinds().filter(|(kind, flags)| {
            *kind == PmapType::PtEpt || PmapFlags::SUPERPAGES.contains(*flags)
        }) {
            let mut world = World::new(which);
            for step in &script {
                world.step(step);
            }
            world.check(&Op::Demote(0), ALL);
        }
    }
}
