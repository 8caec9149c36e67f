//! Page tables and descriptors for kernels that are entered in 64-bit mode.
//!
//! The boot protocol wants the kernel, the zero page and the command line mapped where
//! they are. Here the low 4 GiB are, with 2 MiB pages: six pages of tables, which works
//! on every x86-64 processor, while 1 GiB pages would save four of them on most.

use actors::{Gpa, PAGE_SIZE, PageSize};

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
/// Entries in one table.
const ENTRIES: u64 = 512;
/// Tables of the level that maps 2 MiB each: one per GiB.
const DIRECTORIES: u64 = 4;

/// Bytes of the descriptor table.
pub(crate) const DESCRIPTORS_LEN: u64 = 32;
/// Selector of the code segment: Linux's `__BOOT_CS`.
pub(crate) const CODE: u16 = 0x10;
/// Selector of the data segments: Linux's `__BOOT_DS`.
pub(crate) const DATA: u16 = 0x18;

/// Tables to be placed at `root` (a page, followed by five more) that map the low 4 GiB
/// onto themselves.
pub(crate) fn identity_tables(root: Gpa) -> Vec<u8> {
    let table = |number: u64| root.0 + number * PAGE_SIZE;
    let link = PRESENT | WRITABLE;
    let one = |entry: u64| std::iter::once(entry).chain(std::iter::repeat(0));
    let pad = |count: u64| usize::try_from(count).expect("at most 512");
    let top = one(table(1) | link).take(pad(ENTRIES));
    let directories = (0..DIRECTORIES)
        .map(|gib| table(2 + gib) | link)
        .chain(std::iter::repeat(0))
        .take(pad(ENTRIES));
    let leaves =
        (0..DIRECTORIES * ENTRIES).map(|n| (n * PageSize::Size2MiB.bytes()) | link | LARGE);
    top.chain(directories).chain(leaves).flat_map(u64::to_le_bytes).collect()
}

/// The descriptor table: nothing, nothing, [`CODE`], [`DATA`]; both flat, privilege level
/// 0 and marked as used already, so that loading them writes nothing.
pub(crate) fn descriptors() -> Vec<u8> {
    // Intel SDM volume 3A, section 3.4.5. Access byte 0x9b: present, code, readable;
    // 0x93: present, data, writable. Flags 0xa: 4 KiB units, 64-bit; 0xc: 4 KiB units, 32-bit.
    const TABLE: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    TABLE.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Translates as the processor would.
    fn walk(tables: &[u8], root: u64, address: u64) -> Option<u64> {
        let mut table = root;
        for shift in [39, 30, 21] {
            let index = (address >> shift) & 511;
            let at = usize::try_from(table - root + index * 8).unwrap();
            let entry = u64::from_le_bytes(tables[at..at + 8].try_into().unwrap());
            if entry & PRESENT == 0 {
                return None;
            }
            assert_ne!(entry & WRITABLE, 0);
            let next = entry & !0xfff;
            if shift == 21 {
                assert_ne!(entry & LARGE, 0);
                return Some(next | (address & 0x1f_ffff));
            }
            assert_eq!(entry & LARGE, 0);
            table = next;
        }
        unreachable!("the third level returns")
    }

    proptest! {
        #[test]
        fn the_low_four_gib_map_onto_themselves(address in 0..(4u64 << 30)) {
            let tables = identity_tables(Gpa(0x8000));
            prop_assert_eq!(tables.len(), 0x6000);
            prop_assert_eq!(walk(&tables, 0x8000, address), Some(address));
        }

        #[test]
        fn nothing_above_is_mapped(address in (4u64 << 30)..(1 << 47)) {
            prop_assert_eq!(walk(&identity_tables(Gpa(0x8000)), 0x8000, address), None);
        }
    }

    #[test]
    fn the_selectors_name_the_descriptors() {
        let table = descriptors();
        // The type of a segment: present, and code or data.
        assert_eq!(table[usize::from(CODE) + 5], 0x9b);
        assert_eq!(table[usize::from(DATA) + 5], 0x93);
    }
}
