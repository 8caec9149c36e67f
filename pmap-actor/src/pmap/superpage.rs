//! Promotion and demotion: 512 pages that say the same as one leaf, and back.
//!
//! FreeBSD's rules (`pmap_promote_pde`, `pmap_demote_pde_locked`). A block is promoted when its 512 pages are all mapped, used,
//! contiguous from an aligned frame, and agree in everything else. A page that may be written and was not loses that right
//! first (no shootdown: nobody can have cached a right to store to a clean page); so a superpage is either read-only, or writable *and* dirty as a
//! whole: a clean one would need one dirty bit for 512 pages at its first store.
//!
//! Demotion gives the pages what the superpage says. Where it cannot (no table page is left) or where it would be of no use (never
//! used, and no table saved), the superpage is removed instead, which a pmap may always do; but never a wired one.
//!
//! The entries themselves change in `ept/tables/block.rs`, which argues why no reader's bit is lost.

use actors::{Gpa, PAGE_SIZE, PageSize};

use super::effects::Harvest;
use super::{Effects, Ledger, Pmap, assert_sound, block_of, extent};
use crate::ept::entry::Leaf;
use crate::ept::masks::{FRAME_MASK, Masks, PmapFlags};
use crate::ept::tables::{ADDRESS_BITS, BLOCK, Block};

/// Why a block is not promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPromoted {
    /// This pmap has no superpages.
    #[error("this pmap has no superpages")]
    Unsupported,
    /// It is one.
    #[error("it is a superpage already")]
    Already,
    /// Not all of it is mapped.
    #[error("{0} of its 512 pages are mapped")]
    NotFull(u16),
    /// This page was not used since it was last asked about.
    #[error("the page at {0} was not used")]
    NotAccessed(Gpa),
    /// The first page's frame is not a multiple of 2 MiB.
    #[error("frame {0:#x} is not aligned to 2 MiB")]
    NotAligned(u64),
    /// This page's frame does not follow the one before.
    #[error("the frame of the page at {0} does not follow the one before")]
    NotContiguous(Gpa),
    /// This page differs from the first in rights, memory type or wiring, or is not managed.
    #[error("the page at {0} has other attributes than the first, or is a device's")]
    MixedAttributes(Gpa),
    /// This page is dirty and the first is not, or the other way round.
    #[error("of the first page and that at {0}, one is dirty and one is not")]
    MixedDirty(Gpa),
}

/// What to do with pages that were not used yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaccessed {
    /// They are a reason not to promote.
    Refuse,
    /// They count as used from now on, as in later FreeBSD. Where bits are emulated, hardware may then read them.
    Mark,
}

/// What needed a demotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demotion {
    Enter,
    Remove,
    Protect,
    Wire,
    Harvest,
    Page,
    Advise,
    Asked,
}

impl Pmap {
    /// Whether promotion of the block of `at` is worth a look: superpages are on, and all 512 pages are mapped by leaves of their own.
    /// One walk, no look at the pages.
    #[must_use]
    pub fn may_promote(&self, at: Gpa) -> bool {
        self.flags.contains(PmapFlags::SUPERPAGES) && self.tables.block(at) == Block::Pages(512)
    }

    /// Whether the block of `at` could be promoted right now. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`NotPromoted`].
    pub fn can_promote(&self, at: Gpa, unaccessed: Unaccessed) -> Result<(), NotPromoted> {
        self.candidate(block_of(at), unaccessed).map(|_| ())
    }

    /// Lets one superpage stand for the block of `at`. Nobody loses a right that could be cached, so no shootdown follows.
    ///
    /// # Errors
    ///
    /// [`NotPromoted`]; no page has lost anything then.
    pub fn promote(&mut self, at: Gpa, unaccessed: Unaccessed) -> Result<Effects, NotPromoted> {
        let block = block_of(at);
        let promoted = self.candidate(block, unaccessed).and_then(|first| {
            self.saturate(block, first).then_some(first).ok_or(NotPromoted::MixedDirty(block))
        });
        let first = promoted.inspect_err(|cause| self.tally.refused_promotions.count(cause))?;
        let superpage = self.masks.to_superpage(saturated(&self.masks, first));
        assert_sound(&self.masks, self.flags, Leaf { entry: superpage, size: PageSize::Size2MiB });
        self.tables.promote(block, superpage);
        self.tally.promotions += 1;
        Ok(Effects { promoted: vec![block], ..Effects::default() })
    }

    /// The first entry of a block that may be promoted.
    fn candidate(&self, block: Gpa, unaccessed: Unaccessed) -> Result<u64, NotPromoted> {
        let masks = &self.masks;
        if !self.flags.contains(PmapFlags::SUPERPAGES) || block.0 >> ADDRESS_BITS != 0 {
            return Err(NotPromoted::Unsupported);
        }
        match self.tables.block(block) {
            Block::Superpage(_) => return Err(NotPromoted::Already),
            Block::Empty => return Err(NotPromoted::NotFull(0)),
            Block::Pages(512) => {}
            Block::Pages(some) => return Err(NotPromoted::NotFull(some)),
        }
        let mut entries = self.tables.entries(block).ok_or(NotPromoted::NotFull(0))?;
        let first = entries.next().ok_or(NotPromoted::NotFull(0))?;
        let frame = first & FRAME_MASK;
        let used = |entry: u64| unaccessed == Unaccessed::Mark || entry & masks.accessed != 0;
        if !used(first) {
            return Err(NotPromoted::NotAccessed(block));
        }
        if !frame.is_multiple_of(BLOCK) {
            return Err(NotPromoted::NotAligned(frame));
        }
        if first & masks.managed == 0 {
            return Err(NotPromoted::MixedAttributes(block));
        }
        let dirty = masks.is_modified(first);
        let flexible = FRAME_MASK | masks.accessed | masks.modified | masks.writable;
        // Software's bits above the frame (valid, writable, no-execute) are compared, too.
        for (entry, index) in entries.zip(1..) {
            let page = Gpa(block.0 + index * PAGE_SIZE);
            if !used(entry) {
                return Err(NotPromoted::NotAccessed(page));
            }
            if entry & FRAME_MASK != frame + index * PAGE_SIZE {
                return Err(NotPromoted::NotContiguous(page));
            }
            if (entry ^ first) & !flexible != 0 {
                return Err(NotPromoted::MixedAttributes(page));
            }
            if masks.is_modified(entry) != dirty {
                return Err(NotPromoted::MixedDirty(page));
            }
        }
        Ok(first)
    }

    /// Leaves a walker nothing to set in any page of `block`. False when a store came first.
    fn saturate(&mut self, block: Gpa, first: u64) -> bool {
        let masks = self.masks;
        let dirty = masks.is_modified(first);
        self.tables.exchange(block, |entry| {
            (masks.is_modified(entry) == dirty).then(|| saturated(&masks, entry))
        })
    }

    /// Lets 512 pages stand for the superpage at `at`, if there is one.
    pub fn demote<H: Harvest>(&mut self, at: Gpa, harvest: &mut H) -> Effects {
        let mut ledger = self.ledger(harvest);
        self.demote_if_superpage(at, Demotion::Asked, &mut ledger);
        self.settle(ledger)
    }

    /// Demotes the superpage `leaf` at `block`, or removes it. False when it is gone.
    ///
    /// # Panics
    ///
    /// When it is wired and there is no table page for it.
    pub(super) fn demote_block<H: Harvest>(
        &mut self,
        block: Gpa,
        leaf: Leaf,
        cause: Demotion,
        ledger: &mut Ledger<'_, H>,
    ) -> bool {
        let (masks, flags) = (self.masks, self.flags);
        let wired = leaf.entry & masks.wired != 0;
        let of_use = wired
            || cause == Demotion::Wire
            || leaf.entry & masks.accessed != 0
            || self.tables.has_saved_table(block);
        let page = |superpage, index| {
            let entry = masks.to_page(superpage, index);
            if index == 0 {
                assert_sound(&masks, flags, Leaf { entry, size: PageSize::Size4KiB });
            }
            entry
        };
        if of_use && self.tables.demote(block, page) {
            self.tally.demotions.count(cause);
            ledger.effects.demoted.push(block);
            return true;
        }
        assert!(!wired, "there is no table page to demote the wired superpage at {block}");
        self.tally.destroyed_superpages += 1;
        ledger.effects.destroyed.push(block);
        self.take_out(extent(block, PageSize::Size2MiB), ledger);
        false
    }
}

/// What `entry` becomes before its block is promoted: used, and clean pages read-only.
fn saturated(masks: &Masks, entry: u64) -> u64 {
    let writable = if masks.is_modified(entry) { 0 } else { masks.writable };
    entry & !writable | masks.accessed
}
