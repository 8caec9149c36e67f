//! Operations on one page, where it is mapped here. (`page_wide.rs`: wherever it is mapped.)

use actors::{Gpa, GpaRange, PAGE_SIZE, PageSize};

use super::accessed_dirty::{aged, chosen_page};
use super::effects::{Harvest, extent};
use super::superpage::Demotion;
use super::{Effects, Ledger, Pmap, block_of};
use crate::ept::entry::Leaf;

/// What [`Pmap::ts_referenced`] found. FreeBSD's count is the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Mappings that were used, and do not say so any more.
    pub cleared: u32,
    /// Mappings that were used and still say so: wired, or a superpage whose turn it is not.
    pub kept: u32,
}

impl Pmap {
    /// Whether the page of `at` was stored to since that was last harvested (`pmap_is_modified`).
    #[must_use]
    pub fn is_modified(&self, at: Gpa) -> bool {
        self.tables.leaf(at).is_some_and(|leaf| self.masks.is_modified(leaf.entry))
    }

    /// Whether the page of `at` was used since that was last harvested (`pmap_is_referenced`). A superpage has one answer for its
    /// 512 pages.
    #[must_use]
    pub fn is_referenced(&self, at: Gpa) -> bool {
        self.tables.leaf(at).is_some_and(|leaf| self.masks.is_referenced(leaf.entry))
    }

    /// Whether the page of `at` is wired here (for `pmap_page_wired_mappings`).
    #[must_use]
    pub fn is_wired(&self, at: Gpa) -> bool {
        self.tables.leaf(at).is_some_and(|leaf| leaf.entry & self.masks.wired != 0)
    }

    /// Clears modified (`pmap_clear_modify`), and hands over what it said. A writable superpage is demoted, and this page loses the right
    /// to write, so that its next store may promote the block again; a wired one is demoted only, and stays modified.
    pub fn clear_modify<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> Effects {
        let masks = self.masks;
        let page = GpaRange::page_of(at);
        let mut ledger = self.ledger(harvest);
        match self.tables.leaf(at) {
            Some(leaf) if leaf.size == PageSize::Size2MiB => {
                let demoted = leaf.entry & masks.writable != 0
                    && self.demote_block(block_of(at), leaf, Demotion::Page, &mut ledger);
                if demoted && leaf.entry & masks.wired == 0 {
                    self.update(page, &mut ledger, |leaf| {
                        leaf.entry & !masks.writable & !masks.modified
                    });
                }
            }
            Some(_) => self.update(page, &mut ledger, |leaf| leaf.entry & !masks.modified),
            None => {}
        }
        self.settle(ledger)
    }

    /// Takes the right to write (`pmap_remove_write`), and modified with it. A writable superpage is demoted.
    pub fn remove_write<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> Effects {
        let masks = self.masks;
        let mut ledger = self.ledger(harvest);
        if let Some(leaf) = self.tables.leaf(at)
            && leaf.entry & masks.writable != 0
            && self.demote_if_superpage(at, Demotion::Page, &mut ledger)
        {
            self.update(GpaRange::page_of(at), &mut ledger, |leaf| {
                leaf.entry & !masks.writable & !masks.modified
            });
        }
        self.settle(ledger)
    }

    /// Removes the page of `at`, out of its superpage if need be (`pmap_remove_all`, for this pmap).
    pub fn remove_page<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> Effects {
        self.remove(GpaRange::page_of(at), harvest)
    }

    /// Clears accessed of this page alone (`pmap_clear_reference`): a superpage is demoted, and the page removed, so that its next use may promote
    /// the block again. Wired pages stay as they are.
    pub fn clear_reference<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> Effects {
        let mut ledger = self.ledger(harvest);
        if let Some(leaf) = self.tables.leaf(at)
            && leaf.entry & self.masks.accessed != 0
            && leaf.entry & self.masks.wired == 0
        {
            if leaf.size == PageSize::Size2MiB {
                self.drop_one_page(at, leaf, &mut ledger);
            } else {
                let (masks, flags) = (self.masks, self.flags);
                let age = |leaf: Leaf| aged(&masks, flags, leaf.entry);
                self.revise(GpaRange::page_of(at), &mut ledger, age, |_, _, _, _| {});
            }
        }
        self.settle(ledger)
    }

    /// Counts and clears what says that the page of `at` was used (`pmap_ts_referenced`). What cannot be cleared by itself is removed
    /// if it is not wired; of a superpage, whose one bit speaks for 512 pages, only when it is this page's turn.
    pub fn ts_referenced<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> (References, Effects) {
        let (masks, flags) = (self.masks, self.flags);
        let mut ledger = self.ledger(harvest);
        let mut found = References::default();
        let used = |leaf: &Leaf| masks.is_referenced(leaf.entry);
        if let Some(leaf) = self.tables.leaf(at).filter(used) {
            let range = extent(at, leaf.size);
            let large = leaf.size == PageSize::Size2MiB;
            let its_turn = !large || chosen_page(range.start(), leaf) == at.page();
            if leaf.entry & masks.wired != 0 || !its_turn {
                found.kept = 1;
            } else {
                found.cleared = 1;
                if masks.may_clear_accessed(leaf.entry, flags) {
                    // A walker may set modified meanwhile only where that is no obstacle.
                    self.update(range, &mut ledger, |leaf| leaf.entry & !masks.accessed);
                } else if large {
                    self.drop_one_page(at, leaf, &mut ledger);
                } else {
                    self.take_out(range, &mut ledger);
                }
            }
        }
        (found, self.settle(ledger))
    }

    /// Demotes a superpage and removes this page of it.
    fn drop_one_page<H: Harvest>(&mut self, at: Gpa, leaf: Leaf, ledger: &mut Ledger<'_, H>) {
        if self.demote_block(block_of(at), leaf, Demotion::Page, ledger) {
            self.take_out(GpaRange::page_of(Gpa(at.0 & !(PAGE_SIZE - 1))), ledger);
        }
    }
}
