//! The reader of an ordinary process's tables (Intel SDM vol. 3, "4-level paging and 5-level paging"), as user mode.
//!
//! Accessed and dirty bits are always hardware's here. They are set as in nested tables, by one
//! compare-and-exchange each and only where they are not set yet.

use std::sync::atomic::Ordering;

use actors::{Access, Gpa, PageSize, Protection};

use super::super::arena::TableFrame;
use super::super::entry::frame_in;
use super::super::masks::{FRAME_MASK, Masks, PmapFlags};
use super::{Changed, Refused, Translation, View, mark};

impl View {
    pub(super) fn walk_as_x86(
        &self,
        gpa: Gpa,
        access: Access,
    ) -> Result<Result<Translation, Refused>, Changed> {
        let mut table = TableFrame::ROOT;
        let mut common = Protection::all();
        let mut level = 4;
        let (place, entry) = loop {
            let place = self.arena.place(&table, gpa, level);
            let entry = place.load(Ordering::Acquire); // T2: pairs with T1.
            if !self.masks.is_valid(entry) {
                return Ok(Err(Refused::violation(0)));
            }
            let large = level > 1 && entry & self.masks.superpage != 0;
            let allowed = level == 2 && self.flags.contains(PmapFlags::SUPERPAGES);
            if large && !allowed {
                return Ok(Err(Refused::Misconfigured { level, entry }));
            }
            common &= self.masks.hardware_rights(entry);
            if Masks::is_leaf(entry, level) {
                break (place, entry);
            }
            mark(place, entry, self.masks.accessed)?;
            table = TableFrame(entry & FRAME_MASK);
            level -= 1;
        };
        if !common.contains(access.needs()) {
            return Ok(Err(Refused::violation(common.bits().into())));
        }
        let dirty = if access == Access::Write { self.masks.modified } else { 0 };
        let used = self.masks.accessed | dirty;
        mark(place, entry, used)?;
        let size = if level == 1 { PageSize::Size4KiB } else { PageSize::Size2MiB };
        Ok(Ok(Translation {
            frame: frame_in(entry, size),
            bytes: size.bytes(),
            readable: true,
            writable: common.contains(Protection::WRITE)
                && (entry | used) & self.masks.modified != 0,
            executable: common.contains(Protection::EXECUTE),
        }))
    }
}
