//! Putting pages in.
//!
//! Nothing to present, and rights that only grow, need no shootdown: neither hardware nor the software processor caches that
//! something is *not* there. When a valid entry is replaced, one is needed only if a translation may be cached (accessed
//! was set) and would be wrong: another page, a right lost, or modified gone, so that the next store must be seen again.

use actors::{Access, Gpa, GpaRange, PAGE_SIZE, PageSize, Protection};

use super::effects::Harvest;
use super::superpage::Demotion;
use super::{Effects, Ledger, Pmap, assert_sound};
use crate::ept::attribute::Attribute;
use crate::ept::entry::Leaf;
use crate::ept::masks::{FRAME_MASK, PmapFlags, PmapType};
use crate::ept::tables::{BLOCK, Block};

/// How a page is to be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What may be done with it. The right to read is always in it: a page that nobody may read is removed instead.
    pub protection: Protection,
    /// Memory, or a device.
    pub attribute: Attribute,
    /// The access that asks for it: the page is accessed, and modified if it was a store. `None` for a page that comes along with
    /// another.
    pub touched: Option<Access>,
    /// Whether the page is known to be dirty already, so that nothing is learned from its next store. It is entered as modified, and no
    /// trap is taken for it.
    pub dirty: bool,
    /// Pinned by policy.
    pub wired: bool,
}

impl Wanted {
    /// Ordinary memory, for an access that found nothing.
    #[must_use]
    pub fn memory(protection: Protection, access: Access) -> Self {
        Self {
            protection,
            attribute: Attribute::MEMORY,
            touched: Some(access),
            dirty: false,
            wired: false,
        }
    }

    /// A device's page.
    #[must_use]
    pub fn device(protection: Protection, access: Access) -> Self {
        Self { attribute: Attribute::DEVICE, ..Self::memory(protection, access) }
    }
}

/// Why a superpage was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotEntered {
    /// This pmap has no superpages.
    #[error("this pmap has no superpages")]
    Unsupported,
    /// The address or the frame is not a multiple of 2 MiB.
    #[error("a superpage at {at} with frame {frame:#x} is not aligned")]
    NotAligned {
        /// Where it was to be.
        at: Gpa,
        /// Of its first byte.
        frame: u64,
    },
    /// Something is mapped there.
    #[error("something is mapped in the 2 MiB at {0}")]
    Occupied(Gpa),
    /// Pages of devices are mapped one by one.
    #[error("a device's pages at {0} are mapped one by one")]
    Unmanaged(Gpa),
}

impl Pmap {
    /// Maps the page of `at` to `frame` (`pmap_enter`), in place of whatever is there: a superpage is demoted, and of another page
    /// the bits are harvested. An entry for the same page keeps its accessed and modified bits as far as its rights allow.
    ///
    /// # Panics
    ///
    /// For an address of more than 48 bits or outside the layout.
    pub fn enter<H: Harvest>(
        &mut self,
        at: Gpa,
        frame: u64,
        wanted: Wanted,
        harvest: &mut H,
    ) -> Effects {
        self.enter_range(GpaRange::page_of(at), frame, wanted, harvest)
    }

    /// [`Pmap::enter`] of each page of `range`, to the frames from `frame` on.
    ///
    /// # Panics
    ///
    /// As [`Pmap::enter`].
    pub fn enter_range<H: Harvest>(
        &mut self,
        range: GpaRange,
        frame: u64,
        wanted: Wanted,
        harvest: &mut H,
    ) -> Effects {
        let mut ledger = self.ledger(harvest);
        let made = self.compose(0, wanted, PageSize::Size4KiB);
        for page in range.iter_pages() {
            if page == range.start() || page.0.is_multiple_of(BLOCK) {
                self.demote_if_superpage(page, Demotion::Enter, &mut ledger);
            }
            let frame = frame + (page.0 - range.start().0);
            debug_assert_eq!(frame & !FRAME_MASK, 0, "a frame is page-aligned, of at most 52 bits");
            self.enter_page(page, frame, made, &mut ledger);
        }
        self.settle(ledger)
    }

    /// Puts `made`, a leaf without a frame, at `page`, which is in no superpage.
    fn enter_page<H: Harvest>(
        &mut self,
        page: Gpa,
        frame: u64,
        made: u64,
        ledger: &mut Ledger<'_, H>,
    ) {
        let masks = self.masks;
        let kept = masks.accessed | if made & masks.writable != 0 { masks.modified } else { 0 };
        let (entry, after) = self.tables.enter_with(page, |before| {
            let same = masks.is_valid(before) && before & FRAME_MASK == frame;
            made | frame | if same { before & kept } else { 0 }
        });
        let size = PageSize::Size4KiB;
        assert_sound(&masks, self.flags, Leaf { entry: after, size });
        if masks.is_valid(entry) {
            ledger.note(page, Leaf { entry, size }, after);
        } else if after & masks.wired != 0 {
            ledger.wired += 1;
        }
    }

    /// Maps the page of `at` without the right to write, if nothing is there, as a page that nobody has used (`pmap_enter_quick`). Returns
    /// whether it did.
    ///
    /// # Panics
    ///
    /// As [`Pmap::enter`].
    pub fn enter_quick(
        &mut self,
        at: Gpa,
        frame: u64,
        protection: Protection,
        attribute: Attribute,
    ) -> bool {
        let page = at.page();
        if self.tables.leaf(page).is_some() {
            return false;
        }
        let entry = self.compose(frame, unused(protection, attribute), PageSize::Size4KiB);
        assert_sound(&self.masks, self.flags, Leaf { entry, size: PageSize::Size4KiB });
        self.tables.enter(page, entry);
        true
    }

    /// Maps what is free of `range` to the frames from `frame` on, read-only and unused (`pmap_enter_object`): as superpages where a block is
    /// wholly inside, wholly free and aligned in both, else page by page. Returns how many pages were mapped.
    ///
    /// # Panics
    ///
    /// As [`Pmap::enter`].
    pub fn enter_object(
        &mut self,
        range: GpaRange,
        frame: u64,
        protection: Protection,
        attribute: Attribute,
    ) -> u64 {
        let before = self.resident_pages();
        let wanted = unused(protection, attribute);
        let mut at = range.start();
        while at < range.end() {
            let frame = frame + (at.0 - range.start().0);
            let covered = range.end().0 - at.0 >= BLOCK;
            if covered && self.put_superpage(at, frame, wanted).is_ok() {
                at = Gpa(at.0 + BLOCK);
            } else {
                self.enter_quick(at, frame, protection, attribute);
                at = Gpa(at.0 + PAGE_SIZE);
            }
        }
        self.resident_pages() - before
    }

    /// Maps a whole free block to 2 MiB of frames as one superpage: accessed, and modified if it may be written, for memory whose first
    /// access is at hand.
    ///
    /// # Errors
    ///
    /// [`NotEntered`]; nothing has changed then.
    ///
    /// # Panics
    ///
    /// As [`Pmap::enter`].
    pub fn enter_superpage(
        &mut self,
        at: Gpa,
        frame: u64,
        wanted: Wanted,
    ) -> Result<(), NotEntered> {
        // Writable superpages are always modified.
        let touched = Some(wanted.touched.unwrap_or(Access::Read));
        self.put_superpage(at, frame, Wanted { touched, dirty: true, ..wanted })?;
        if wanted.wired {
            self.wired_pages += BLOCK / PAGE_SIZE;
        }
        Ok(())
    }

    fn put_superpage(&mut self, at: Gpa, frame: u64, wanted: Wanted) -> Result<(), NotEntered> {
        if !self.flags.contains(PmapFlags::SUPERPAGES) {
            return Err(NotEntered::Unsupported);
        }
        if !wanted.attribute.managed {
            return Err(NotEntered::Unmanaged(at));
        }
        if !at.0.is_multiple_of(BLOCK) || !frame.is_multiple_of(BLOCK) {
            return Err(NotEntered::NotAligned { at, frame });
        }
        if self.tables.block(at) != Block::Empty {
            return Err(NotEntered::Occupied(at));
        }
        let entry = self.compose(frame, wanted, PageSize::Size2MiB);
        assert_sound(&self.masks, self.flags, Leaf { entry, size: PageSize::Size2MiB });
        self.tables.enter_superpage(at, entry);
        self.tally.entered_superpages += 1;
        Ok(())
    }

    /// Maps what `source` maps of `range` and this does not, as unused, unwired and not modified (`pmap_copy`). Advisory: it does
    /// nothing between pmaps of different kinds, or with emulated bits, where an executable entry that is not accessed may be
    /// illegal. Returns how many pages were mapped.
    ///
    /// # Panics
    ///
    /// As [`Pmap::enter`].
    pub fn copy(&mut self, source: &Self, range: GpaRange) -> u64 {
        if self.kind != source.kind || self.masks.emulated || source.masks.emulated {
            return 0;
        }
        let before = self.resident_pages();
        let masks = self.masks;
        let mut from = range.start();
        while let Some(part) = source.tables.next_block(from, range.end()) {
            from = part.end();
            for at in part.iter_pages() {
                let Some(leaf) = source.tables.leaf(at) else { continue };
                if leaf.entry & masks.managed == 0 {
                    continue;
                }
                let fresh = leaf.entry & !masks.wired;
                if leaf.size == PageSize::Size2MiB {
                    // A writable one stays modified, as every writable superpage.
                    if part.len() == BLOCK
                        && self.flags.contains(PmapFlags::SUPERPAGES)
                        && self.tables.enter_superpage(at, fresh)
                    {
                        self.tally.entered_superpages += 1;
                    }
                    break;
                }
                if self.tables.leaf(at).is_none() {
                    self.tables.enter(at, fresh & !masks.modified & !masks.accessed);
                }
            }
        }
        self.resident_pages() - before
    }

    /// A leaf for `frame`.
    fn compose(&self, frame: u64, wanted: Wanted, size: PageSize) -> u64 {
        let masks = &self.masks;
        debug_assert_eq!(frame & !FRAME_MASK, 0, "a frame is page-aligned and has at most 52 bits");
        debug_assert!(
            wanted.protection.contains(Protection::READ),
            "a page that nobody may read is removed"
        );
        let mut entry = frame | masks.valid | masks.user;
        entry |= masks.attribute(wanted.attribute, size);
        entry |= if wanted.protection.contains(Protection::EXECUTE) {
            masks.executable
        } else {
            masks.no_execute
        };
        if size == PageSize::Size2MiB {
            entry |= masks.superpage;
        }
        if wanted.wired {
            entry |= masks.wired;
        }
        let stored = wanted.touched == Some(Access::Write) || wanted.dirty;
        if wanted.protection.contains(Protection::WRITE) {
            entry |= masks.writable;
            // Nobody asks for an unmanaged page's modified bit, so no trap is taken for it.
            if stored || !wanted.attribute.managed {
                entry |= masks.modified | masks.accessed;
            }
        }
        if wanted.touched.is_some() {
            entry |= masks.accessed;
        }
        debug_assert_eq!(self.kind == PmapType::PtX86, masks.no_execute != 0);
        entry | masks.accessed_if_needed(entry, self.flags)
    }
}

/// Read-only and unused.
fn unused(protection: Protection, attribute: Attribute) -> Wanted {
    let protection = protection - Protection::WRITE;
    Wanted { protection, attribute, touched: None, dirty: false, wired: false }
}
