//! Accessed and modified bits: set by a fault where hardware does not, harvested in bulk, given up on advice.
//!
//! # Setting (`pmap_emulate_accessed_dirty`)
//!
//! | what is there | load | store |
//! |---|---|---|
//! | the pmap does not emulate | no | no |
//! | nothing | no | no |
//! | a superpage | accessed | no: a writable one is modified already |
//! | a page without the right to write | accessed | no |
//! | a writable page | accessed | accessed and modified together |
//!
//! "No" means that the fault is not about these bits. Fetches never come here: hardware's right to execute is not one of them. No
//! shootdown is needed, since rights only grow.
//!
//! # Clearing
//!
//! With emulated bits accessed is hardware's right to read, and may be cleared only where what is left is legal
//! ([`Masks::may_clear_accessed`]): not while modified is set, and of an executable page only where execute-only is supported.
//!
//! [`Pmap::harvest`] goes on where FreeBSD's page-wise routine stops: it clears modified along with accessed if that is what is
//! in the way (its news is handed over, like any other). What still cannot be aged is removed, if it is not wired: the next
//! access brings it back by a fault. So on a pmap that emulates without execute-only, ageing executable pages costs a fault for each.

use actors::{Access, Gpa, GpaRange, PAGE_SIZE, PageSize};

use super::effects::{Harvest, Ledger};
use super::superpage::Demotion;
use super::{Effects, Pmap, extent};
use crate::ept::entry::Leaf;
use crate::ept::masks::{Masks, PmapFlags};
use crate::ept::tables::{BLOCK, Block};

/// How the accessed bits of superpages are harvested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ageing {
    /// As FreeBSD does: one bit speaks for 512 pages, so it is reported each time and cleared only when one of them, chosen by a hash,
    /// is asked about: when the range contains that one.
    Hashed,
    /// Each time.
    Whole,
}

/// What [`Pmap::harvest`] reads and clears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct What {
    /// Modified bits. Writable superpages are demoted: the next store to each page shall be seen.
    pub modified: bool,
    /// Accessed bits.
    pub accessed: Option<Ageing>,
}

impl What {
    /// Stores only: a dirty epoch.
    pub const MODIFIED: Self = Self { modified: true, accessed: None };
    /// Uses only: a working set.
    pub const ACCESSED: Self = Self { modified: false, accessed: Some(Ageing::Whole) };
    /// Both.
    pub const BOTH: Self = Self { modified: true, accessed: Some(Ageing::Whole) };
}

/// What will become of a range (`pmap_advise`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// It will not be used soon. What was stored counts.
    DontNeed,
    /// Its contents are no longer wanted: what was stored does not count.
    Free,
}

impl Pmap {
    /// Whether a fault at `at` was about an emulated bit, which is set now: then the access is simply tried again. False: it needs
    /// the full fault path.
    pub fn emulate_accessed_dirty(&mut self, at: Gpa, access: Access) -> bool {
        let masks = self.masks;
        if !masks.emulated {
            return false;
        }
        let Some(leaf) = self.tables.leaf(at) else { return false };
        let bits = match access {
            Access::Execute => return false,
            Access::Read => masks.accessed,
            Access::Write if leaf.size == PageSize::Size2MiB => return false,
            Access::Write if leaf.entry & masks.writable == 0 => return false,
            Access::Write => masks.accessed | masks.modified,
        };
        let set = self.tables.change(at, |leaf| leaf.entry | bits);
        let Some((before, after)) = set else { return true };
        super::assert_sound(&masks, self.flags, Leaf { entry: after, size: before.size });
        // A second report of the same fault sets nothing.
        let is_news = u64::from(before.entry != after);
        match access {
            Access::Write => self.tally.emulated_writes += is_news,
            Access::Read | Access::Execute => self.tally.emulated_reads += is_news,
        }
        true
    }

    /// Reads and clears bits of `range`, of managed pages; one shootdown is enough for all of it. Wired pages keep accessed, and are reported
    /// each time.
    pub fn harvest<H: Harvest>(&mut self, range: GpaRange, what: What, harvest: &mut H) -> Effects {
        let mut ledger = self.ledger(harvest);
        let mut from = range.start();
        while let Some(part) = self.tables.next_block(from, range.end()) {
            from = part.end();
            if let Block::Superpage(leaf) = self.tables.block(part.start()) {
                self.harvest_superpage(part, leaf, what, &mut ledger);
            } else {
                self.harvest_pages(part, what, &mut ledger);
            }
        }
        self.settle(ledger)
    }

    fn harvest_superpage<H: Harvest>(
        &mut self,
        part: GpaRange,
        leaf: Leaf,
        what: What,
        ledger: &mut Ledger<'_, H>,
    ) {
        let masks = self.masks;
        let entry = leaf.entry;
        let block = extent(part.start(), leaf.size);
        if entry & masks.managed == 0 {
            return;
        }
        if what.modified && masks.is_modified(entry) {
            if self.demote_block(block.start(), leaf, Demotion::Harvest, ledger) {
                self.harvest_pages(part, what, ledger);
            }
            return;
        }
        let Some(ageing) = what.accessed else { return };
        if entry & masks.accessed == 0 {
            return;
        }
        let chosen = chosen_page(block.start(), leaf);
        if entry & masks.wired != 0 || (ageing == Ageing::Hashed && !part.contains(chosen)) {
            ledger.referenced(part);
        } else if masks.may_clear_accessed(entry, self.flags) {
            self.update(block, ledger, |leaf| leaf.entry & !masks.accessed);
        } else if ageing == Ageing::Hashed {
            // One page goes, and when it comes back the block may be promoted again.
            ledger.referenced(part);
            if self.demote_block(block.start(), leaf, Demotion::Harvest, ledger) {
                self.take_out(GpaRange::page_of(chosen), ledger);
            }
        } else if part == block && !masks.may_clear_accessed(entry & !masks.modified, self.flags) {
            self.take_out(block, ledger);
        } else if self.demote_block(block.start(), leaf, Demotion::Harvest, ledger) {
            self.harvest_pages(part, what, ledger);
        }
    }

    fn harvest_pages<H: Harvest>(
        &mut self,
        part: GpaRange,
        what: What,
        ledger: &mut Ledger<'_, H>,
    ) {
        let (masks, flags) = (self.masks, self.flags);
        let asked = |entry: u64| {
            what.accessed.is_some() && entry & masks.accessed != 0 && entry & masks.managed != 0
        };
        let judge = |leaf: Leaf| {
            let entry = leaf.entry;
            if entry & masks.managed == 0 {
                return entry;
            }
            let kept = if what.modified { entry & !masks.modified } else { entry };
            if !asked(entry) || entry & masks.wired != 0 {
                return kept;
            }
            aged(&masks, flags, kept)
        };
        self.revise(part, ledger, judge, |at, before, after, ledger| {
            if asked(before.entry) && after & masks.accessed != 0 {
                ledger.referenced(extent(at, before.size));
            }
        });
    }

    /// Gives bits up (`pmap_advise`): modified and accessed of managed pages. With emulated bits nothing is done. Superpages are demoted, and one
    /// page of each is removed if it is not wired, so that its return may promote the block again.
    pub fn advise<H: Harvest>(
        &mut self,
        range: GpaRange,
        advice: Advice,
        harvest: &mut H,
    ) -> Effects {
        let masks = self.masks;
        if masks.emulated {
            return Effects::default();
        }
        let mut forget = Forgetful { harvest, forgets_stores: advice == Advice::Free };
        let mut ledger = self.ledger(&mut forget);
        let mut from = range.start();
        while let Some(part) = self.tables.next_block(from, range.end()) {
            from = part.end();
            if let Block::Superpage(leaf) = self.tables.block(part.start()) {
                let block = extent(part.start(), leaf.size).start();
                if leaf.entry & masks.managed == 0
                    || !self.demote_block(block, leaf, Demotion::Advise, &mut ledger)
                {
                    continue;
                }
                if leaf.entry & masks.wired == 0 {
                    let last = Gpa(part.end().0 - PAGE_SIZE);
                    self.take_out(GpaRange::page_of(last), &mut ledger);
                }
            }
            self.update(part, &mut ledger, |leaf| {
                let managed = leaf.entry & masks.managed != 0;
                leaf.entry & !if managed { masks.modified | masks.accessed } else { 0 }
            });
        }
        self.settle(ledger)
    }
}

/// What a page becomes that shall look unused: without accessed, if need be without modified; or nothing.
pub(super) fn aged(masks: &Masks, flags: PmapFlags, entry: u64) -> u64 {
    for kept in [entry, entry & !masks.modified] {
        if masks.may_clear_accessed(kept, flags) {
            return kept & !masks.accessed;
        }
    }
    0
}

/// The page of a superpage that speaks for its accessed bit: FreeBSD's hash of its frame and of the block's number.
/// (A pmap's own address is in FreeBSD's. Two pmaps map one page at different addresses here, which does as well.)
pub(super) fn chosen_page(block: Gpa, leaf: Leaf) -> Gpa {
    let index = ((leaf.frame() / PAGE_SIZE) ^ (block.0 / BLOCK)) % PAGES;
    // The pages of an aligned frame count up from 0 in the bits that the hash looks at: this one's hash is 0.
    Gpa(block.0 + index * PAGE_SIZE)
}

const PAGES: u64 = BLOCK / PAGE_SIZE;

/// Hands uses on, and stores unless they are not wanted.
struct Forgetful<'h, H> {
    harvest: &'h mut H,
    forgets_stores: bool,
}

impl<H: Harvest> Harvest for Forgetful<'_, H> {
    fn modified(&mut self, range: GpaRange) {
        if !self.forgets_stores {
            self.harvest.modified(range);
        }
    }

    fn referenced(&mut self, range: GpaRange) {
        self.harvest.referenced(range);
    }
}
