//! A pmap as a dumb person would keep it: a list of what is mapped, in words, without bits, tables or threads.

mod operations;

use std::collections::{BTreeMap, BTreeSet};

use actors::{PAGE_SIZE, PageSize, Protection};

use super::super::{Pmap, PmapFlags, PmapType};
use super::PAGES;
use crate::ept::attribute::Attribute;
use crate::ept::entry::Leaf;

/// What is mapped somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) large: bool,
    /// Number of the first frame.
    pub(super) frame: u64,
    pub(super) write: bool,
    pub(super) execute: bool,
    pub(super) accessed: bool,
    pub(super) modified: bool,
    pub(super) wired: bool,
    pub(super) managed: bool,
}

impl State {
    fn pages(self) -> u64 {
        if self.large { PAGES } else { 1 }
    }

    fn clean(self) -> Self {
        Self { modified: false, ..self }
    }

    fn read_only(self) -> Self {
        Self { write: false, modified: false, ..self }
    }

    fn unused(self) -> Self {
        Self { accessed: false, ..self }
    }

    /// As bits.
    pub(super) fn entry(self, pmap: &Pmap) -> u64 {
        let masks = pmap.masks();
        let size = if self.large { PageSize::Size2MiB } else { PageSize::Size4KiB };
        let attribute = if self.managed { Attribute::MEMORY } else { Attribute::DEVICE };
        let pick = |condition, bits| if condition { bits } else { 0 };
        (self.frame * PAGE_SIZE)
            | masks.valid
            | masks.user
            | masks.attribute(attribute, size)
            | pick(self.large, masks.superpage)
            | pick(self.write, masks.writable)
            | pick(self.execute, masks.executable)
            | pick(!self.execute, masks.no_execute)
            | pick(self.accessed, masks.accessed)
            | pick(self.modified, masks.modified)
            | pick(self.wired, masks.wired)
    }

    /// From bits; they must say nothing else.
    pub(super) fn of(pmap: &Pmap, leaf: Leaf) -> Self {
        let masks = pmap.masks();
        let entry = leaf.entry;
        let state = Self {
            large: leaf.size == PageSize::Size2MiB,
            frame: leaf.frame() / PAGE_SIZE,
            write: entry & masks.writable != 0,
            execute: masks.protection(entry).contains(Protection::EXECUTE),
            accessed: entry & masks.accessed != 0,
            modified: entry & masks.modified != 0,
            wired: entry & masks.wired != 0,
            managed: entry & masks.managed != 0,
        };
        assert_eq!(state.entry(pmap), entry, "{entry:#x} says more than {state:?}");
        state
    }
}

/// What an operation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) translations: u64,
    pub(super) unreachable: u64,
    pub(super) unwritable: u64,
    pub(super) changed: u64,
    pub(super) demoted: BTreeSet<u64>,
    pub(super) destroyed: BTreeSet<u64>,
    pub(super) modified: BTreeSet<u64>,
    pub(super) referenced: BTreeSet<u64>,
}

/// The whole pmap.
#[derive(Clone, Debug)]
pub(super) struct Dumb {
    emulated: bool,
    superpages: bool,
    execute_only: bool,
    /// By first page.
    leaves: BTreeMap<u64, State>,
    /// Blocks whose superpage once was pages.
    saved: BTreeSet<u64>,
    pub(super) account: Account,
}

fn block_of(page: u64) -> u64 {
    page / PAGES * PAGES
}

type Pages = std::ops::Range<u64>;

impl Dumb {
    pub(super) fn new(kind: PmapType, flags: PmapFlags) -> Self {
        let nested = kind == PmapType::PtEpt;
        Self {
            emulated: nested && flags.contains(PmapFlags::EMULATE_AD_BITS),
            superpages: flags.contains(PmapFlags::SUPERPAGES),
            execute_only: flags.contains(PmapFlags::EXECUTE_ONLY),
            leaves: BTreeMap::new(),
            saved: BTreeSet::new(),
            account: Account::default(),
        }
    }

    /// A pmap with one leaf in it, which may be a superpage that was promoted.
    pub(super) fn with(mut self, page: u64, state: State, saved: bool) -> Self {
        self.leaves.insert(page, state);
        if saved {
            self.saved.insert(page);
        }
        self
    }

    pub(super) fn find(&self, page: u64) -> Option<(u64, State)> {
        let exact = self.leaves.get(&page).map(|state| (page, *state));
        let block = block_of(page);
        exact.or_else(|| self.leaves.get(&block).filter(|it| it.large).map(|it| (block, *it)))
    }

    pub(super) fn wired(&self) -> u64 {
        self.leaves.values().filter(|state| state.wired).map(|state| state.pages()).sum()
    }

    pub(super) fn resident(&self) -> u64 {
        self.leaves.values().map(|state| state.pages()).sum()
    }

    /// What hardware may do.
    pub(super) fn rights(&self, page: u64) -> Protection {
        self.find(page).map_or(Protection::empty(), |(_, state)| self.hardware(state))
    }

    fn hardware(&self, state: State) -> Protection {
        let mut rights = Protection::empty();
        rights.set(Protection::READ, !self.emulated || state.accessed);
        rights.set(Protection::WRITE, if self.emulated { state.modified } else { state.write });
        rights.set(Protection::EXECUTE, state.execute);
        rights
    }

    pub(super) fn is_legal(&self, state: State) -> bool {
        let rules = [
            !state.modified || state.write,
            !state.large || !state.write || state.modified,
            !state.large || self.superpages,
            !self.emulated || !state.modified || state.accessed,
            !self.emulated || !state.execute || state.accessed || self.execute_only,
        ];
        rules.iter().all(|rule| *rule)
    }

    fn may_age(&self, state: State) -> bool {
        self.is_legal(state.unused())
    }

    fn replace(&mut self, page: u64, after: Option<State>) {
        let before = self.leaves.remove(&page);
        if let Some(after) = after {
            assert!(self.is_legal(after), "the model made {after:?}");
            self.leaves.insert(page, after);
        } else {
            self.saved.remove(&page);
        }
        let Some(before) = before else { return };
        if Some(before) == after {
            return;
        }
        let pages = before.pages();
        let same = after.filter(|after| after.frame == before.frame);
        let unlike = after.is_some_and(|after| after.managed != before.managed);
        let still = |is: fn(&State) -> bool| !is(&before) || same.as_ref().is_some_and(is);
        let right = same.is_some()
            && !unlike
            && still(|it| it.modified)
            && still(|it| it.execute)
            && still(|it| it.accessed);
        let cached = before.accessed || (self.emulated && before.execute);
        self.account.translations += u64::from(cached && !right);
        self.account.changed += pages;
        let had = self.hardware(before);
        let has = same.map_or(Protection::empty(), |after| self.hardware(after));
        if (had - has).contains(Protection::READ) {
            self.account.unreachable += pages;
        } else if (had - has).contains(Protection::WRITE) {
            self.account.unwritable += pages;
        }
        if before.managed {
            if !still(|it| it.modified && it.managed) {
                self.account.modified.extend(page..page + pages);
            }
            if !still(|it| it.accessed && it.managed) {
                self.account.referenced.extend(page..page + pages);
            }
        }
    }

    /// Makes pages of the superpage of `page`, if there is one. False when it is gone.
    fn split(&mut self, page: u64, at_any_price: bool) -> bool {
        let Some((block, state)) = self.find(page).filter(|(_, state)| state.large) else {
            return true;
        };
        if !(state.accessed || state.wired || at_any_price || self.saved.contains(&block)) {
            self.account.destroyed.insert(block);
            self.replace(block, None);
            return false;
        }
        self.account.demoted.insert(block);
        self.leaves.remove(&block);
        self.saved.remove(&block);
        for index in 0..PAGES {
            let frame = state.frame + index;
            self.leaves.insert(block + index, State { large: false, frame, ..state });
        }
        true
    }

    fn split_ends(&mut self, range: &Pages, at_any_price: bool) {
        for page in [range.start, range.end - 1] {
            let block = block_of(page);
            if block < range.start || block + PAGES > range.end {
                self.split(page, at_any_price);
            }
        }
    }

    fn each(&mut self, range: Pages, change: impl Fn(&Self, State) -> Option<State>) {
        let found: Vec<_> = self.leaves.range(range).map(|(page, state)| (*page, *state)).collect();
        for (page, state) in found {
            let after = change(self, state);
            self.replace(page, after);
        }
    }
}
