//! A pmap as a dumb person would keep it: a list of what is mapped, in words, without bits, tables or threads.

use std::collections::{BTreeMap, BTreeSet};

use actors::{Access, PAGE_SIZE, PageSize, Protection};

use super::super::{Advice, Ageing, Pmap, PmapFlags, PmapType, Unaccessed, Wanted, What};
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
            if !still(|it| it.modified) {
                self.account.modified.extend(page..page + pages);
            }
            if !still(|it| it.accessed) {
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

    pub(super) fn enter(&mut self, page: u64, frame: u64, wanted: Wanted) {
        self.split(page, false);
        let before = self.leaves.get(&page).copied().filter(|before| before.frame == frame);
        let write = wanted.protection.contains(Protection::WRITE);
        let stored = wanted.touched == Some(Access::Write) || wanted.dirty;
        let modified =
            write && (stored || !wanted.attribute.managed || before.is_some_and(|it| it.modified));
        let new_modified = write && (stored || !wanted.attribute.managed);
        let mut state = State {
            large: false,
            frame,
            write,
            execute: wanted.protection.contains(Protection::EXECUTE),
            accessed: wanted.touched.is_some()
                || new_modified
                || before.is_some_and(|it| it.accessed),
            modified,
            wired: wanted.wired,
            managed: wanted.attribute.managed,
        };
        state.accessed |= !self.is_legal(state);
        self.replace(page, Some(state));
    }

    fn enter_unused(&mut self, page: u64, frame: u64, execute: bool, large: bool) {
        let mut state = State {
            large,
            frame,
            write: false,
            execute,
            accessed: false,
            modified: false,
            wired: false,
            managed: true,
        };
        state.accessed |= !self.is_legal(state);
        self.leaves.insert(page, state);
    }

    fn is_free(&self, block: u64) -> bool {
        self.leaves.range(block..block + PAGES).next().is_none()
    }

    pub(super) fn enter_quick(&mut self, page: u64, frame: u64, execute: bool) {
        if self.find(page).is_none() {
            self.enter_unused(page, frame, execute, false);
        }
    }

    pub(super) fn enter_object(&mut self, range: Pages, shift: u64, execute: bool) {
        let mut page = range.start;
        while page < range.end {
            let frame = page + shift;
            let aligned = page.is_multiple_of(PAGES) && frame.is_multiple_of(PAGES);
            let whole = page + PAGES <= range.end;
            if self.superpages && aligned && whole && self.is_free(page) {
                self.enter_unused(page, frame, execute, true);
                page += PAGES;
            } else {
                self.enter_quick(page, frame, execute);
                page += 1;
            }
        }
    }

    pub(super) fn enter_superpage(&mut self, block: u64, wanted: Wanted) {
        if self.superpages && self.is_free(block) {
            let write = wanted.protection.contains(Protection::WRITE);
            let state = State {
                large: true,
                frame: block,
                write,
                execute: wanted.protection.contains(Protection::EXECUTE),
                accessed: true,
                modified: write,
                wired: wanted.wired,
                managed: true,
            };
            self.leaves.insert(block, state);
        }
    }

    pub(super) fn remove(&mut self, range: Pages) {
        self.split_ends(&range, false);
        self.each(range, |_, _| None);
    }

    pub(super) fn protect(&mut self, range: Pages, protection: Protection) {
        let write = protection.contains(Protection::WRITE);
        let execute = protection.contains(Protection::EXECUTE);
        if !protection.contains(Protection::READ) {
            return self.remove(range);
        }
        if write && execute {
            return;
        }
        self.split_ends(&range, false);
        self.each(range, |_, state| {
            let kept = if write { state } else { state.read_only() };
            Some(State { execute: state.execute && execute, ..kept })
        });
    }

    pub(super) fn wire(&mut self, range: Pages, wired: bool) {
        self.split_ends(&range, true);
        self.each(range, |_, state| Some(State { wired, ..state }));
    }

    pub(super) fn clear_modify(&mut self, page: u64) {
        let Some((_, before)) = self.find(page) else { return };
        if !before.large {
            self.replace(page, Some(before.clean()));
        } else if before.write && self.split(page, false) && !before.wired {
            let state = self.leaves[&page];
            self.replace(page, Some(state.read_only()));
        }
    }

    pub(super) fn remove_write(&mut self, page: u64) {
        if self.find(page).is_some_and(|(_, state)| state.write) && self.split(page, false) {
            let state = self.leaves[&page];
            self.replace(page, Some(state.read_only()));
        }
    }

    /// Without accessed, if need be without modified, or not at all.
    fn aged(&self, state: State) -> Option<State> {
        [state, state.clean()].into_iter().find(|it| self.may_age(*it)).map(State::unused)
    }

    pub(super) fn clear_reference(&mut self, page: u64) {
        let Some((_, before)) = self.find(page) else { return };
        if !before.accessed || before.wired {
            return;
        }
        if before.large {
            self.split(page, false);
            self.replace(page, None);
        } else {
            self.replace(page, self.aged(before));
        }
    }

    /// Says whether it was used, and whether it still says so.
    pub(super) fn ts_referenced(&mut self, page: u64) -> (bool, bool) {
        let Some((first, state)) = self.find(page).filter(|(_, state)| state.accessed) else {
            return (false, false);
        };
        if state.wired || (state.large && Self::speaker(first, state) != page) {
            return (true, true);
        }
        if self.may_age(state) {
            self.replace(first, Some(state.unused()));
        } else {
            self.split(page, false);
            self.replace(page, None);
        }
        (true, false)
    }

    /// The page that speaks for a superpage: FreeBSD's hash of it is 0.
    fn speaker(block: u64, state: State) -> u64 {
        let frames = state.frame..state.frame + PAGES;
        let hash = |frame: u64| (frame ^ (block / PAGES)) & (PAGES - 1);
        block + frames.clone().position(|frame| hash(frame) == 0).unwrap() as u64
    }

    pub(super) fn harvest(&mut self, range: Pages, what: What) {
        let blocks = range.start / PAGES..range.end.div_ceil(PAGES);
        for block in blocks.map(|number| number * PAGES) {
            let part = range.start.max(block)..range.end.min(block + PAGES);
            match self.leaves.get(&block).copied().filter(|state| state.large) {
                Some(state) if state.managed => self.harvest_superpage(block, state, part, what),
                Some(_) => {}
                None => self.harvest_pages(part, what),
            }
        }
    }

    fn harvest_superpage(&mut self, block: u64, state: State, part: Pages, what: What) {
        let speaker = Self::speaker(block, state);
        if what.modified && state.modified {
            if self.split(block, false) {
                self.harvest_pages(part, what);
            }
        } else if what.accessed.is_none() || !state.accessed {
        } else if state.wired || (what.accessed == Some(Ageing::Hashed) && !part.contains(&speaker))
        {
            self.account.referenced.extend(part);
        } else if self.may_age(state) {
            self.replace(block, Some(state.unused()));
        } else if what.accessed == Some(Ageing::Hashed) {
            self.account.referenced.extend(part);
            self.split(block, false);
            self.replace(speaker, None);
        } else if part == (block..block + PAGES) && self.aged(state.read_only()).is_none() {
            self.replace(block, None);
        } else {
            self.split(block, false);
            self.harvest_pages(part, what);
        }
    }

    fn harvest_pages(&mut self, part: Pages, what: What) {
        let kept = self.leaves.range(part.clone()).filter(|(_, state)| {
            what.accessed.is_some() && state.managed && state.accessed && state.wired
        });
        let kept: Vec<u64> = kept.map(|(page, _)| *page).collect();
        self.account.referenced.extend(kept);
        self.each(part, |this, state| {
            if !state.managed {
                return Some(state);
            }
            let clean = if what.modified { state.clean() } else { state };
            if what.accessed.is_none() || !state.accessed || state.wired {
                return Some(clean);
            }
            this.aged(clean)
        });
    }

    pub(super) fn advise(&mut self, range: Pages, advice: Advice) {
        if self.emulated {
            return;
        }
        let modified = self.account.modified.clone();
        let blocks = range.start / PAGES..range.end.div_ceil(PAGES);
        for block in blocks.map(|number| number * PAGES) {
            let part = range.start.max(block)..range.end.min(block + PAGES);
            if let Some(state) = self.leaves.get(&block).copied().filter(|state| state.large) {
                if !state.managed || !self.split(block, false) {
                    continue;
                }
                if !state.wired {
                    self.replace(part.end - 1, None);
                }
            }
            self.each(part, |_, state| {
                Some(if state.managed { state.clean().unused() } else { state })
            });
        }
        if advice == Advice::Free {
            self.account.modified = modified;
        }
    }

    pub(super) fn emulate(&mut self, page: u64, access: Access) -> bool {
        let set = self.emulated(page, access);
        self.leaves.extend(set);
        set.is_some()
    }

    /// Whether a fault there is about an emulated bit.
    pub(super) fn emulates(&self, page: u64, access: Access) -> bool {
        self.emulated(page, access).is_some()
    }

    fn emulated(&self, page: u64, access: Access) -> Option<(u64, State)> {
        let (first, state) = self.find(page).filter(|_| self.emulated)?;
        let after = match access {
            Access::Read => State { accessed: true, ..state },
            Access::Write if !state.large && state.write => {
                State { accessed: true, modified: true, ..state }
            }
            Access::Write | Access::Execute => return None,
        };
        Some((first, after))
    }

    /// An access by a walker: whether it is allowed. Hardware's bits are set.
    pub(super) fn walk(&mut self, page: u64, access: Access) -> bool {
        let allowed = self.rights(page).contains(access.needs());
        if allowed && !self.emulated {
            let (first, state) = self.find(page).unwrap();
            let modified = state.modified || access == Access::Write;
            self.leaves.insert(first, State { accessed: true, modified, ..state });
        }
        allowed
    }

    pub(super) fn promote(&mut self, block: u64, unaccessed: Unaccessed) -> bool {
        let states: Vec<State> =
            (block..block + PAGES).filter_map(|page| self.leaves.get(&page).copied()).collect();
        let Some(first) = states.first().copied().filter(|_| self.superpages) else {
            return false;
        };
        let like = |(index, state): (u64, &State)| {
            let expected = State {
                frame: first.frame + index,
                write: state.write,
                accessed: state.accessed,
                ..first
            };
            *state == expected && (state.accessed || unaccessed == Unaccessed::Mark)
        };
        let fits = states.len() as u64 == PAGES
            && !first.large
            && first.managed
            && first.frame.is_multiple_of(PAGES)
            && (0..).zip(&states).all(like);
        if fits {
            self.leaves.retain(|page, _| !(block..block + PAGES).contains(page));
            let state = State { large: true, accessed: true, write: first.modified, ..first };
            self.leaves.insert(block, state);
            self.saved.insert(block);
        }
        fits
    }

    pub(super) fn demote(&mut self, page: u64) {
        self.split(page, false);
    }
}
