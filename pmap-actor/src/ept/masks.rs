//! Which bit means what, by the pmap's type and flags.
//!
//! FreeBSD computes these on entry to each pmap function (`pmap_valid_bit`,
//! `pmap_rw_bit`, `pmap_accessed_bit`, `pmap_modified_bit`, `pmap_cache_bits` in
//! `sys/amd64/amd64/pmap.c`); here they are computed once per pmap and then only read.
//!
//! ```text
//!   logical     PtX86     PtEpt, hardware A/D   PtEpt, emulated A/D
//!   valid       bit 0     bit 0 (R)             bit 52 (ignored by hardware)
//!   writable    bit 1     bit 1 (W)             bit 53 (ignored by hardware)
//!   accessed    bit 5     bit 8                 bit 0 (R)
//!   modified    bit 6     bit 9                 bit 1 (W)
//!   global      bit 8     none                  none
//!   executable  not bit 63  bit 2 (X)           bit 2 (X)
//!   superpage   bit 7     bit 7                 bit 7
//!   cache       3, 4, 7   3..5 type, 6 IPAT     3..5 type, 6 IPAT   (x86: 12 for 7 in a superpage)
//!   managed     bit 10, software                 bit 10, software
//!   wired       bit 11, software (bit 9, its older place, is EPT's dirty bit)
//! ```
//!
//! The emulated layout reads: validity and writability are software's, and the hardware
//! permissions *are* the accessed and modified bits. A page nobody touched since the last
//! harvest is not readable, so the next access traps and sets accessed; a clean one is not
//! writable, so the next store traps and sets modified.
//!
//! With hardware A/D whoever walks sets the two bits itself ([`view`](super::view)). Of a table's own
//! bits nothing is ever harvested: tables are made as accessed and modified, as FreeBSD does. What a leaf says is
//! read in `entry.rs`, and its memory type in `attribute.rs`; the leaves themselves are composed by the
//! [`pmap`](crate::pmap).

/// The frame field of an entry.
pub const FRAME_MASK: u64 = 0x000f_ffff_ffff_f000;

/// In an entry above the last level: it is a leaf.
const SUPERPAGE: u64 = 1 << 7;
/// Must be clear in a 2 MiB leaf: the part of the frame that lies inside the superpage.
const SUPERPAGE_RESERVED: u64 = 0x001f_f000;
/// Must be clear in an entry that leads to a table.
const TABLE_RESERVED: u64 = 0xf8;

/// Who walks these tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmapType {
    /// An ordinary process's tables.
    PtX86,
    /// Nested tables in Intel's EPT format.
    PtEpt,
}

bitflags::bitflags! {
    /// What the walker of a `PtEpt` pmap supports. FreeBSD's `pm_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PmapFlags: u32 {
        /// 2 MiB leaves are allowed (`PMAP_PDE_SUPERPAGE`).
        const SUPERPAGES = 1 << 8;
        /// The walker does not set accessed and dirty bits (`PMAP_EMULATE_AD_BITS`).
        const EMULATE_AD_BITS = 1 << 9;
        /// Executable and unreadable is legal (`PMAP_SUPPORTS_EXEC_ONLY`).
        const EXECUTE_ONLY = 1 << 10;
    }
}

/// The bits of one pmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// Whose format this is.
    pub kind: PmapType,
    /// The entry leads somewhere.
    pub valid: u64,
    /// Stores are allowed.
    pub writable: u64,
    /// Somebody used it since this was last cleared.
    pub accessed: u64,
    /// Somebody stored to it since this was last cleared.
    pub modified: u64,
    /// Survives an address-space switch; nested tables have no such thing.
    pub global: u64,
    /// Set when instructions may be fetched (EPT), or clear (x86: bit 63 forbids).
    pub executable: u64,
    /// Set when instructions may *not* be fetched; 0 where there is no such bit.
    pub no_execute: u64,
    /// User mode may use it; nested walks have no modes.
    pub user: u64,
    /// A leaf above the last level.
    pub superpage: u64,
    /// In the reverse map (software).
    pub managed: u64,
    /// Pinned by policy (software).
    pub wired: u64,
    /// All bits of the memory type, but for x86's PAT bit (`attribute.rs`).
    pub cache_mask: u64,
    /// Whether accessed and modified *are* the hardware's permissions.
    pub emulated: bool,
}

impl Masks {
    /// The bits of a pmap of this type with these flags.
    #[must_use]
    pub fn of(kind: PmapType, flags: PmapFlags) -> Self {
        let software =
            |mask: Self| Self { superpage: SUPERPAGE, managed: 1 << 10, wired: 1 << 11, ..mask };
        let none = Self {
            kind,
            valid: 0,
            writable: 0,
            accessed: 0,
            modified: 0,
            global: 0,
            executable: 0,
            no_execute: 0,
            user: 0,
            superpage: 0,
            managed: 0,
            wired: 0,
            cache_mask: 0,
            emulated: false,
        };
        software(match kind {
            PmapType::PtX86 => Self {
                valid: 1 << 0,
                writable: 1 << 1,
                user: 1 << 2,
                accessed: 1 << 5,
                modified: 1 << 6,
                global: 1 << 8,
                no_execute: 1 << 63,
                cache_mask: 0b11 << 3,
                ..none
            },
            PmapType::PtEpt => {
                let emulated = flags.contains(PmapFlags::EMULATE_AD_BITS);
                let pick =
                    |emulate: u32, hardware: u32| 1 << if emulated { emulate } else { hardware };
                Self {
                    valid: pick(52, 0),
                    writable: pick(53, 1),
                    accessed: pick(0, 8),
                    modified: pick(1, 9),
                    executable: 1 << 2,
                    cache_mask: 0b1111 << 3,
                    emulated,
                    ..none
                }
            }
        })
    }

    /// An entry that leads to the table at `frame`: everything is allowed, the leaves decide.
    #[must_use]
    pub fn table(&self, frame: u64) -> u64 {
        frame
            | self.valid
            | self.writable
            | self.accessed
            | self.modified
            | self.user
            | self.executable
    }

    /// Whether `entry`, found in a table of `level` (4: root, 1: last), ends the walk.
    #[must_use]
    pub const fn is_leaf(entry: u64, level: u32) -> bool {
        level == 1 || (level == 2 && entry & SUPERPAGE != 0)
    }

    /// Whether hardware that reads `entry` as EPT in a table of `level` (4: root, 1: last)
    /// would report a misconfiguration (Intel SDM vol. 3, "EPT misconfigurations"): writable
    /// but unreadable, executable but unreadable without support for it, a reserved memory type
    /// in a leaf, a superpage where there can be none, or another reserved bit. An entry that
    /// allows nothing is not present, and its other bits are ignored.
    #[must_use]
    pub fn is_misconfigured(entry: u64, level: u32, flags: PmapFlags) -> bool {
        let (read, write, execute) = (entry & 1 != 0, entry & 2 != 0, entry & 4 != 0);
        if !(read || write || execute) {
            return false;
        }
        let execute_only = execute && !read && !write;
        let wrong_rights =
            (write && !read) || (execute_only && !flags.contains(PmapFlags::EXECUTE_ONLY));
        let is_leaf = Self::is_leaf(entry, level);
        let wrong_type = is_leaf && matches!(entry >> 3 & 7, 2 | 3 | 7);
        let reserved = match (level, is_leaf) {
            (1, _) => 0,
            (_, true) if flags.contains(PmapFlags::SUPERPAGES) => SUPERPAGE_RESERVED,
            (_, true) => SUPERPAGE,
            (_, false) => TABLE_RESERVED,
        };
        wrong_rights || wrong_type || entry & reserved != 0
    }
}

#[cfg(test)]
mod tests;
