//! What an entry says: to hardware, to the pmap, and to whoever may have cached it.

use actors::{Gpa, PAGE_SIZE, PageSize, Protection};

use super::masks::{FRAME_MASK, Masks, PmapFlags, PmapType};

/// A leaf as it was found in the tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// The entry, bit by bit.
    pub entry: u64,
    /// How much it maps.
    pub size: PageSize,
}

impl std::fmt::Debug for Leaf {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{:?}({:#x})", self.size, self.entry)
    }
}

impl Leaf {
    /// The frame of its first byte: a multiple of its size.
    #[must_use]
    pub fn frame(self) -> u64 {
        frame_in(self.entry, self.size)
    }

    /// The frame of the 4 KiB page that `at` lies in.
    #[must_use]
    pub fn frame_of(self, at: Gpa) -> u64 {
        self.frame() + (at.0 & (self.size.bytes() - 1) & !(PAGE_SIZE - 1))
    }
}

/// The frame of a leaf of this size. (The lowest bits of the frame field of a 2 MiB leaf are others': x86
/// keeps a cache bit there.)
pub(super) fn frame_in(entry: u64, size: PageSize) -> u64 {
    entry & FRAME_MASK & !(size.bytes() - 1)
}

/// The level of the table that a leaf of this size is in.
pub(super) const fn level_of(size: PageSize) -> u32 {
    match size {
        PageSize::Size4KiB => 1,
        PageSize::Size2MiB => 2,
    }
}

impl Masks {
    /// Whether the entry leads anywhere, as the pmap reads it.
    #[must_use]
    pub const fn is_valid(&self, entry: u64) -> bool {
        entry & self.valid != 0
    }

    /// Whether it says that the page was stored to: modified *and* writable (FreeBSD asks for both).
    #[must_use]
    pub const fn is_modified(&self, entry: u64) -> bool {
        let both = self.modified | self.writable;
        entry & both == both
    }

    /// Whether it says that the page was used: accessed and valid.
    #[must_use]
    pub const fn is_referenced(&self, entry: u64) -> bool {
        let both = self.accessed | self.valid;
        entry & both == both
    }

    /// What a processor may do by this leaf alone, without a fault.
    #[must_use]
    pub fn hardware_rights(&self, entry: u64) -> Protection {
        // Both formats have these two bits where `Protection` has them.
        let mut rights = Protection::empty();
        rights.set(Protection::READ, entry & 1 != 0);
        rights.set(Protection::WRITE, entry & 2 != 0);
        let executable = match self.kind {
            PmapType::PtX86 => entry & 1 != 0 && entry & self.no_execute == 0,
            PmapType::PtEpt => entry & self.executable != 0,
        };
        rights.set(Protection::EXECUTE, executable);
        rights
    }

    /// What the software side of the entry grants, whatever hardware is told yet.
    #[must_use]
    pub fn protection(&self, entry: u64) -> Protection {
        let mut granted = Protection::empty();
        granted.set(Protection::READ, self.is_valid(entry));
        granted.set(Protection::WRITE, entry & self.writable != 0);
        let executable = match self.kind {
            PmapType::PtX86 => entry & self.no_execute == 0,
            PmapType::PtEpt => entry & self.executable != 0,
        };
        granted.set(Protection::EXECUTE, self.is_valid(entry) && executable);
        granted
    }

    /// Whether some processor may hold a translation made from this leaf. Only an accessed one: who caches it has
    /// set the bit first, or, with emulated bits, was let in only because it was set. Except to fetch
    /// instructions where execute-only is supported: that needs no accessed bit.
    #[must_use]
    pub const fn may_be_cached(&self, entry: u64) -> bool {
        let fetches = if self.emulated { self.executable } else { 0 };
        self.is_valid(entry) && entry & (self.accessed | fetches) != 0
    }

    /// Whether a translation made from `before` may be cached and is wrong now that the leaf of this size is
    /// `after`: it leads elsewhere, allows more, or hides a use that should leave its trace. Gaining
    /// rights is no reason.
    #[must_use]
    pub fn needs_invalidation(&self, before: u64, after: u64, size: PageSize) -> bool {
        if !self.may_be_cached(before) {
            return false;
        }
        let same_place = FRAME_MASK | self.cache_bits(size);
        let executable = self.protection(before).contains(Protection::EXECUTE);
        !self.is_valid(after)
            || (before ^ after) & same_place != 0
            || (self.is_modified(before) && !self.is_modified(after))
            || (executable && !self.protection(after).contains(Protection::EXECUTE))
            || before & !after & self.accessed != 0
    }

    /// FreeBSD's `safe_to_clear_referenced`: whether clearing accessed, and nothing else, leaves an entry that
    /// hardware may meet. With emulated bits accessed *is* hardware's right to read, and writable or executable
    /// without it may be illegal.
    #[must_use]
    pub const fn may_clear_accessed(&self, entry: u64, flags: PmapFlags) -> bool {
        if !self.emulated {
            return true;
        }
        if entry & self.modified != 0 {
            return false;
        }
        entry & self.executable == 0 || flags.contains(PmapFlags::EXECUTE_ONLY)
    }

    /// The accessed bit, where a leaf of these rights would be illegal without it.
    #[must_use]
    pub const fn accessed_if_needed(&self, entry: u64, flags: PmapFlags) -> u64 {
        if self.may_clear_accessed(entry, flags) { 0 } else { self.accessed }
    }

    /// The rule that a leaf of this pmap breaks, if it breaks one. Hardware's word is
    /// [`Masks::is_misconfigured`]; these are ours: modified implies writable; with emulated bits it implies
    /// accessed, too (with hardware's, an aged page is still dirty); a writable superpage is modified.
    #[must_use]
    pub fn broken_rule(&self, leaf: Leaf, flags: PmapFlags) -> Option<&'static str> {
        let Leaf { entry, size } = leaf;
        let is = |mask: u64| entry & mask != 0;
        if !self.is_valid(entry) {
            return (entry != 0).then_some("an invalid leaf has bits");
        }
        if is(self.modified) && !is(self.writable) {
            return Some("modified but not writable");
        }
        if self.emulated && is(self.modified) && !is(self.accessed) {
            return Some("modified but not accessed");
        }
        if size == PageSize::Size2MiB && is(self.writable) && !is(self.modified) {
            return Some("a writable superpage is not modified");
        }
        if size == PageSize::Size2MiB && !is(self.superpage) {
            return Some("a superpage does not say so");
        }
        if self.kind == PmapType::PtEpt && Self::is_misconfigured(entry, level_of(size), flags) {
            return Some("hardware would report a misconfiguration");
        }
        None
    }
}
