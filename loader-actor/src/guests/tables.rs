//! The guest's own page tables: everything below 4 GiB at its own address, for CPL 3 too.
//!
//! ```text
//!   0x10000  level 4: one entry
//!   0x11000  level 3: four entries
//!   0x12000  level 2: four tables of 512 entries, 2 MiB each
//! ```
//!
//! The accessed and dirty bits are set beforehand, so that no processor ever writes to
//! these pages: where KVM shadows the guest's tables, such a write costs an exit.

use actors::PAGE_SIZE;

use super::Piece;
use super::places::TABLES;

/// Entries of one table.
const ENTRIES: u16 = 512;

/// Gigabytes mapped: all that 32-bit addresses reach, which is where the local APIC is.
const GIGABYTES: u64 = 4;

/// A page-table entry's low bits (AMD64 manual volume 2, section 5.4).
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// On level 2: a leaf of 2 MiB.
const LARGE: u64 = 1 << 7;

/// Levels 4, 3 and 2, one after the other, for [`TABLES`].
pub(super) fn piece() -> Piece {
    let table = PRESENT | WRITABLE | USER | ACCESSED;
    let leaf = table | DIRTY | LARGE;
    let level_3 = TABLES.0 + PAGE_SIZE;
    let level_2 = level_3 + PAGE_SIZE;

    let top = one_table([level_3 | table]);
    let middle = one_table((0..GIGABYTES).map(|giga| (level_2 + giga * PAGE_SIZE) | table));
    let leaves = (0..GIGABYTES * u64::from(ENTRIES)).map(|index| (index << 21) | leaf);

    let words = top.chain(middle).chain(leaves);
    (TABLES, words.flat_map(u64::to_le_bytes).collect())
}

/// `first`, filled up to a whole table with absent entries.
fn one_table(first: impl IntoIterator<Item = u64>) -> impl Iterator<Item = u64> {
    let absent = std::iter::repeat(0);
    first.into_iter().chain(absent).take(usize::from(ENTRIES))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a processor does with a linear address below 2^48.
    fn translate(linear: u64) -> (u64, u64) {
        let (at, bytes) = piece();
        let word = |gpa: u64| {
            let offset = usize::try_from(gpa - at.0).unwrap();
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
        };
        let mut table = TABLES.0;
        for shift in [39, 30, 21] {
            let entry = word(table + (linear >> shift) % u64::from(ENTRIES) * 8);
            if entry & PRESENT == 0 || entry & LARGE != 0 {
                return (entry & !0x1f_ffff | linear & 0x1f_ffff, entry & 0xfff);
            }
            table = entry & !0xfff;
        }
        panic!("a table where a leaf belongs, for {linear:#x}");
    }

    #[test]
    fn every_address_below_four_gib_is_itself_and_open_to_all() {
        for linear in [0, 0x8000, 0x20_0123, 0x3fff_ffff, 0xfee0_0300, 0xffff_ffff] {
            let (physical, bits) = translate(linear);
            assert_eq!(physical, linear);
            let all = PRESENT | WRITABLE | USER | ACCESSED | DIRTY;
            assert_eq!(bits & all, all, "{linear:#x}");
        }
    }

    #[test]
    fn above_four_gib_nothing_is_mapped() {
        for linear in [1 << 32, 1 << 39, (1 << 47) - 1] {
            assert_eq!(translate(linear).1 & PRESENT, 0, "{linear:#x}");
        }
    }

    #[test]
    fn the_tables_end_where_they_say() {
        let (at, bytes) = piece();
        assert_eq!((at, bytes.len() as u64), (TABLES, 24 << 10));
    }
}
