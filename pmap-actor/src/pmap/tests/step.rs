//! One operation, on a pmap and on the model of it, and the comparison.

use std::collections::BTreeSet;
use std::ops::Range;

use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};

use super::super::{Advice, Effects, Pmap, Unaccessed, Wanted, What};
use super::model::{Dumb, State};
use super::{Heard, PAGES, page, range};
use crate::ept::attribute::Attribute;

/// Everything that can be asked of a pmap, in page numbers.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Enter(u64, u64, Wanted),
    EnterQuick(u64, bool),
    EnterObject(Range<u64>, u64, bool),
    EnterSuperpage(u64, Wanted),
    Remove(Range<u64>),
    Protect(Range<u64>, Protection),
    Wire(Range<u64>, bool),
    ClearModify(u64),
    RemoveWrite(u64),
    ClearReference(u64),
    TsReferenced(u64),
    Harvest(Range<u64>, What),
    Advise(Range<u64>, Advice),
    Emulate(u64, Access),
    Promote(u64, Unaccessed),
    Demote(u64),
    Walk(u64, Access),
}

fn pages(numbers: &Range<u64>) -> GpaRange {
    range(numbers.start, numbers.end - numbers.start)
}

fn protection(execute: bool) -> Protection {
    // What is entered without a fault never gets the right to write.
    if execute { Protection::all() } else { Protection::READ | Protection::WRITE }
}

impl Op {
    /// Does it to both; the same answers must come, the same account, the same wired and resident pages.
    pub(super) fn apply(&self, pmap: &mut Pmap, dumb: &mut Dumb) -> (Effects, Heard) {
        dumb.account = Default::default();
        let mut heard = Heard::default();
        let out = &mut heard;
        let effects = match self.clone() {
            Self::Enter(at, frame, wanted) => {
                dumb.enter(at, frame, wanted);
                pmap.enter(page(at), frame * PAGE_SIZE, wanted, out)
            }
            Self::EnterQuick(at, execute) => {
                let free = dumb.find(at).is_none();
                dumb.enter_quick(at, at, execute);
                let rights = protection(execute);
                let entered = pmap.enter_quick(page(at), page(at).0, rights, Attribute::MEMORY);
                assert_eq!(entered, free, "{self:?}");
                Effects::default()
            }
            Self::EnterObject(at, shift, execute) => {
                let before = dumb.resident();
                dumb.enter_object(at.clone(), shift, execute);
                let frame = (at.start + shift) * PAGE_SIZE;
                let rights = protection(execute);
                let entered = pmap.enter_object(pages(&at), frame, rights, Attribute::MEMORY);
                assert_eq!(entered, dumb.resident() - before, "{self:?}");
                Effects::default()
            }
            Self::EnterSuperpage(at, wanted) => {
                let before = dumb.resident();
                dumb.enter_superpage(at, wanted);
                let entered = pmap.enter_superpage(page(at), page(at).0, wanted).is_ok();
                assert_eq!(entered, dumb.resident() != before, "{self:?}");
                Effects::default()
            }
            Self::Remove(at) => {
                dumb.remove(at.clone());
                pmap.remove(pages(&at), out)
            }
            Self::Protect(at, rights) => {
                dumb.protect(at.clone(), rights);
                pmap.protect(pages(&at), rights, out)
            }
            Self::Wire(at, wired) => {
                dumb.wire(at.clone(), wired);
                if wired { pmap.wire(pages(&at), out) } else { pmap.unwire(pages(&at), out) }
            }
            Self::ClearModify(at) => {
                dumb.clear_modify(at);
                pmap.clear_modify(page(at), out)
            }
            Self::RemoveWrite(at) => {
                dumb.remove_write(at);
                pmap.remove_write(page(at), out)
            }
            Self::ClearReference(at) => {
                dumb.clear_reference(at);
                pmap.clear_reference(page(at), out)
            }
            Self::TsReferenced(at) => {
                let (used, kept) = dumb.ts_referenced(at);
                let (found, effects) = pmap.ts_referenced(page(at), out);
                assert_eq!(found.cleared + found.kept, u32::from(used), "{self:?}");
                assert_eq!(found.kept, u32::from(kept), "{self:?}");
                effects
            }
            Self::Harvest(at, what) => {
                dumb.harvest(at.clone(), what);
                pmap.harvest(pages(&at), what, out)
            }
            Self::Advise(at, advice) => {
                dumb.advise(at.clone(), advice);
                pmap.advise(pages(&at), advice, out)
            }
            Self::Emulate(at, access) => {
                let set = dumb.emulate(at, access);
                assert_eq!(pmap.emulate_accessed_dirty(page(at), access), set, "{self:?}");
                Effects::default()
            }
            Self::Promote(at, unaccessed) => {
                let promoted = dumb.promote(at, unaccessed);
                let possible = pmap.can_promote(page(at), unaccessed);
                let done = pmap.promote(page(at), unaccessed);
                assert_eq!(possible.err(), done.as_ref().err().copied());
                assert_eq!(done.is_ok(), promoted, "{self:?}: {done:?}");
                done.unwrap_or_default()
            }
            Self::Demote(at) => {
                dumb.demote(at);
                pmap.demote(page(at), out)
            }
            Self::Walk(at, access) => {
                let allowed = dumb.walk(at, access);
                let found = pmap.view().translate(page(at), access);
                assert_eq!(found.is_ok(), allowed, "{self:?}: {found:?}");
                Effects::default()
            }
        };
        self.compare(pmap, dumb, &effects, &heard);
        (effects, heard)
    }

    fn compare(&self, pmap: &Pmap, dumb: &Dumb, effects: &Effects, heard: &Heard) {
        let set = |pages: &[u64]| pages.iter().copied().collect::<BTreeSet<_>>();
        let blocks = |all: &[Gpa]| all.iter().map(|at| at.0 / PAGE_SIZE).collect::<BTreeSet<_>>();
        let account = super::model::Account {
            translations: effects.translations,
            unreachable: effects.unreachable.pages(),
            unwritable: effects.unwritable.pages(),
            changed: effects.changed_pages,
            demoted: blocks(&effects.demoted),
            destroyed: blocks(&effects.destroyed),
            modified: set(&heard.modified),
            referenced: set(&heard.referenced),
        };
        assert_eq!(account, dumb.account, "{self:?}");
        assert_eq!(account.modified.len(), heard.modified.len(), "{self:?}: reported twice");
        // A late walker of a promoted block's table has nothing to set there.
        if let (Self::Promote(at, _), [_]) = (self, effects.promoted.as_slice()) {
            let masks = pmap.masks();
            for entry in pmap.tables().saved_entries(page(*at)).expect("it was promoted") {
                assert_ne!(entry & masks.accessed, 0, "{self:?} saved {entry:#x}");
                let finished = masks.is_modified(entry) || entry & masks.writable == 0;
                assert!(finished, "{self:?} saved {entry:#x}");
            }
        }
        assert_eq!(pmap.wired_pages(), dumb.wired(), "{self:?}");
        assert_eq!(pmap.resident_pages(), dumb.resident(), "{self:?}");
    }
}

/// Each of these pages is mapped as the model says.
pub(super) fn assert_same(
    pmap: &Pmap,
    dumb: &Dumb,
    numbers: impl Iterator<Item = u64>,
    after: &Op,
) {
    for number in numbers {
        let found = pmap.leaf(page(number)).map(|leaf| State::of(pmap, leaf));
        let expected = dumb.find(number).map(|(_, state)| state);
        assert_eq!(found, expected, "page {number} after {after:?}");
        let rights = dumb.rights(number);
        assert_eq!(pmap.rights(page(number)), rights, "page {number} after {after:?}");
        let frame =
            expected.map(|state| state.frame + if state.large { number % PAGES } else { 0 });
        assert_eq!(pmap.extract(page(number)), frame.map(|frame| frame * PAGE_SIZE));
    }
}
