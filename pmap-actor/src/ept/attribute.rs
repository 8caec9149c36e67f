//! How the processor may cache what a leaf maps, and whether the pmap looks after it.
//!
//! ```text
//!   memory type       EPT, bits 5:3    x86, index into the PAT
//!   uncacheable       0                3
//!   write-combining   1                6
//!   write-through     4                1
//!   write-protected   5                5
//!   write-back        6                0
//! ```
//!
//! EPT's number is the type's own (Intel SDM vol. 3, "EPT memory types"), and the bit beside it,
//! ignore-PAT, is always set, so that the guest's PAT and MTRRs cannot weaken the choice. 2, 3 and
//! 7 are reserved there, and 7 is "uncached" in a PAT: so [`MemoryType`] has no such variant.
//! An x86 entry holds an index into the PAT, spread over three bits of which the highest lies elsewhere in
//! a 2 MiB leaf (bit 12) than in a 4 KiB leaf (bit 7); the indices are those of the PAT that FreeBSD programs
//! (`pmap_init_pat` in `sys/amd64/amd64/pmap.c`).

use actors::PageSize;

use super::masks::{Masks, PmapType};

/// A memory type (Intel SDM vol. 3, "Methods of caching available").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Every access goes to the bus, in order.
    Uncacheable,
    /// Not cached; stores are gathered.
    WriteCombining,
    /// Cached; stores go through.
    WriteThrough,
    /// Cached; stores go to the bus and invalidate.
    WriteProtected,
    /// Ordinary memory.
    WriteBack,
}

impl MemoryType {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Uncacheable,
        Self::WriteCombining,
        Self::WriteThrough,
        Self::WriteProtected,
        Self::WriteBack,
    ];

    const fn ept(self) -> u64 {
        match self {
            Self::Uncacheable => 0,
            Self::WriteCombining => 1,
            Self::WriteThrough => 4,
            Self::WriteProtected => 5,
            Self::WriteBack => 6,
        }
    }

    const fn pat_index(self) -> u64 {
        match self {
            Self::WriteBack => 0,
            Self::WriteThrough => 1,
            Self::Uncacheable => 3,
            Self::WriteProtected => 5,
            Self::WriteCombining => 6,
        }
    }
}

/// What kind of page a leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attribute {
    /// How it may be cached.
    pub memory_type: MemoryType,
    /// Whether it is a page of an object: its accessed and modified bits are harvested, and it may become part
    /// of a superpage. A device's pages are not managed.
    pub managed: bool,
}

impl Attribute {
    /// Ordinary memory.
    pub const MEMORY: Self = Self { memory_type: MemoryType::WriteBack, managed: true };
    /// A device's registers.
    pub const DEVICE: Self = Self { memory_type: MemoryType::Uncacheable, managed: false };
}

/// Where the highest bit of an x86 leaf's PAT index is.
const PAT_SMALL: u64 = 1 << 7;
const PAT_LARGE: u64 = 1 << 12;

impl Masks {
    /// The bits of a page of this kind in a leaf of this size.
    #[must_use]
    pub fn attribute(&self, attribute: Attribute, size: PageSize) -> u64 {
        let managed = if attribute.managed { self.managed } else { 0 };
        managed
            | match self.kind {
                PmapType::PtEpt => attribute.memory_type.ept() << 3 | 1 << 6,
                PmapType::PtX86 => {
                    let index = attribute.memory_type.pat_index();
                    let high = if index & 4 != 0 { self.pat(size) } else { 0 };
                    (index & 3) << 3 | high
                }
            }
    }

    /// All bits of the memory type in a leaf of this size.
    #[must_use]
    pub fn cache_bits(&self, size: PageSize) -> u64 {
        self.cache_mask | self.pat(size)
    }

    fn pat(&self, size: PageSize) -> u64 {
        match (self.kind, size) {
            (PmapType::PtEpt, _) => 0,
            (PmapType::PtX86, PageSize::Size4KiB) => PAT_SMALL,
            (PmapType::PtX86, PageSize::Size2MiB) => PAT_LARGE,
        }
    }

    /// The 2 MiB leaf that means what this 4 KiB leaf, the first of its block, means.
    #[must_use]
    pub fn to_superpage(&self, entry: u64) -> u64 {
        let moved = if entry & self.pat(PageSize::Size4KiB) == 0 {
            0
        } else {
            self.pat(PageSize::Size2MiB)
        };
        entry & !self.pat(PageSize::Size4KiB) | moved | self.superpage
    }

    /// The 4 KiB leaf that means for page `index` of its block what this 2 MiB leaf means.
    #[must_use]
    pub fn to_page(&self, entry: u64, index: u64) -> u64 {
        let frame = super::entry::frame_in(entry, PageSize::Size2MiB) + index * actors::PAGE_SIZE;
        let moved = if entry & self.pat(PageSize::Size2MiB) == 0 {
            0
        } else {
            self.pat(PageSize::Size4KiB)
        };
        let bits = entry & !super::masks::FRAME_MASK & !self.superpage;
        frame | bits | moved
    }
}

#[cfg(test)]
mod tests {
    use super::super::masks::PmapFlags;
    use super::*;

    fn both() -> [Masks; 2] {
        [PmapType::PtX86, PmapType::PtEpt].map(|kind| Masks::of(kind, PmapFlags::SUPERPAGES))
    }

    #[test]
    fn a_page_that_becomes_part_of_a_superpage_and_comes_back_is_what_it_was() {
        for masks in both() {
            for memory_type in MemoryType::ALL {
                let attribute = Attribute { memory_type, managed: true };
                let bits = masks.valid | masks.writable | masks.no_execute | masks.wired;
                let page = 0x60_0000 | bits | masks.attribute(attribute, PageSize::Size4KiB);
                let superpage = masks.to_superpage(page);
                let cache = masks.attribute(attribute, PageSize::Size2MiB);
                assert_eq!(superpage, 0x60_0000 | bits | cache | masks.superpage);
                assert_eq!(masks.to_page(superpage, 0), page);
                assert_eq!(masks.to_page(superpage, 511), page + 511 * actors::PAGE_SIZE);
            }
        }
    }

    #[test]
    fn ept_types_are_legal_and_the_guest_cannot_weaken_them() {
        let masks = Masks::of(PmapType::PtEpt, PmapFlags::empty());
        for memory_type in MemoryType::ALL {
            let bits =
                masks.attribute(Attribute { memory_type, managed: false }, PageSize::Size4KiB);
            assert!(!Masks::is_misconfigured(bits | 1, 1, PmapFlags::empty()));
            assert_ne!(bits & 1 << 6, 0);
        }
        assert_eq!(masks.attribute(Attribute::MEMORY, PageSize::Size4KiB), 0x470);
        assert_eq!(masks.attribute(Attribute::DEVICE, PageSize::Size2MiB), 0x040);
    }

    #[test]
    fn the_pat_bit_lies_elsewhere_in_a_superpage() {
        let [x86, _] = both();
        let attribute = Attribute { memory_type: MemoryType::WriteCombining, managed: false };
        assert_eq!(x86.attribute(attribute, PageSize::Size4KiB), 0x90);
        assert_eq!(x86.attribute(attribute, PageSize::Size2MiB), 0x1010);
    }
}
