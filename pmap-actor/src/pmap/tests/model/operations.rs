//! Every operation, in words.

use actors::{Access, Protection};

use super::super::super::{Advice, Ageing, Unaccessed, Wanted, What};
use super::super::PAGES;
use super::{Dumb, Pages, State};

impl Dumb {
    pub(in super::super) fn enter(&mut self, page: u64, frame: u64, wanted: Wanted) {
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

    pub(in super::super) fn enter_quick(&mut self, page: u64, frame: u64, execute: bool) {
        if self.find(page).is_none() {
            self.enter_unused(page, frame, execute, false);
        }
    }

    pub(in super::super) fn enter_object(&mut self, range: Pages, shift: u64, execute: bool) {
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

    pub(in super::super) fn enter_superpage(&mut self, block: u64, wanted: Wanted) {
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

    pub(in super::super) fn remove(&mut self, range: Pages) {
        self.split_ends(&range, false);
        self.each(range, |_, _| None);
    }

    pub(in super::super) fn protect(&mut self, range: Pages, protection: Protection) {
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

    pub(in super::super) fn wire(&mut self, range: Pages, wired: bool) {
        self.split_ends(&range, true);
        self.each(range, |_, state| Some(State { wired, ..state }));
    }

    pub(in super::super) fn clear_modify(&mut self, page: u64) {
        let Some((_, before)) = self.find(page) else { return };
        if !before.large {
            self.replace(page, Some(before.clean()));
        } else if before.write && self.split(page, false) && !before.wired {
            let state = self.leaves[&page];
            self.replace(page, Some(state.read_only()));
        }
    }

    pub(in super::super) fn remove_write(&mut self, page: u64) {
        if self.find(page).is_some_and(|(_, state)| state.write) && self.split(page, false) {
            let state = self.leaves[&page];
            self.replace(page, Some(state.read_only()));
        }
    }

    /// Without accessed, if need be without modified, or not at all.
    fn aged(&self, state: State) -> Option<State> {
        [state, state.clean()].into_iter().find(|it| self.may_age(*it)).map(State::unused)
    }

    pub(in super::super) fn clear_reference(&mut self, page: u64) {
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
    pub(in super::super) fn ts_referenced(&mut self, page: u64) -> (bool, bool) {
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

    pub(in super::super) fn harvest(&mut self, range: Pages, what: What) {
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

    pub(in super::super) fn advise(&mut self, range: Pages, advice: Advice) {
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

    pub(in super::super) fn emulate(&mut self, page: u64, access: Access) -> bool {
        let set = self.emulated(page, access);
        self.leaves.extend(set);
        set.is_some()
    }

    /// Whether a fault there is about an emulated bit.
    pub(in super::super) fn emulates(&self, page: u64, access: Access) -> bool {
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
    pub(in super::super) fn walk(&mut self, page: u64, access: Access) -> bool {
        let allowed = self.rights(page).contains(access.needs());
        if allowed && !self.emulated {
            let (first, state) = self.find(page).unwrap();
            let modified = state.modified || access == Access::Write;
            self.leaves.insert(first, State { accessed: true, modified, ..state });
        }
        allowed
    }

    pub(in super::super) fn promote(&mut self, block: u64, unaccessed: Unaccessed) -> bool {
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

    pub(in super::super) fn demote(&mut self, page: u64) {
        self.split(page, false);
    }
}
