//! The memory map ("e820") that the kernel believes before it looks for itself.
//!
//! | from | to | |
//! |---|---|---|
//! | `0x0` | `0x9fc00` | usable |
//! | `0x9fc00` | `0x100000` | reserved: the firmware's, with the ACPI tables |
//! | `0x100000` | end of low memory | usable |
//! | 4 GiB | end of high memory | usable |
//!
//! The firmware's area is *reserved* as a whole rather than "ACPI reclaimable": the tables'
//! lock (FACS) is written to for ever, and 128 KiB are not worth a second kind.

use actors::Gpa;
use actors::layout::MemoryLayout;

use crate::low_memory::{EXTENDED_MEMORY, FIRMWARE};

/// Memory type 1 of ACPI 6.4 table 15.1, and of Xen's start info.
pub(crate) const USABLE: u32 = 1;
/// Memory type 2.
pub(crate) const RESERVED: u32 = 2;

/// One line of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: Gpa,
    /// In bytes, never 0.
    pub(crate) len: u64,
    /// [`USABLE`] or [`RESERVED`].
    pub(crate) kind: u32,
}

/// All memory of `layout`, upwards, without gaps inside a range. At most four lines.
pub(crate) fn memory_map(layout: &MemoryLayout) -> Vec<Stretch> {
    let low_end = layout.low().end().0;
    let edges = [0, FIRMWARE.0, EXTENDED_MEMORY.0, low_end];
    let kinds = [USABLE, RESERVED, USABLE];
    let mut map: Vec<Stretch> = edges
        .windows(2)
        .zip(kinds)
        .map(|(edge, kind)| (edge[0], edge[1].min(low_end), kind))
        .filter(|(start, end, _)| start < end)
        .map(|(start, end, kind)| Stretch { start: Gpa(start), len: end - start, kind })
        .collect();
    map.extend(layout.high().map(|high| Stretch {
        start: high.start(),
        len: high.len(),
        kind: USABLE,
    }));
    map
}

#[cfg(test)]
mod tests {
    use actors::PAGE_SIZE;
    use actors::layout::LOWMEM_LIMIT;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn map_of(bytes: u64) -> Vec<(u64, u64, u32)> {
        let layout = MemoryLayout::split(bytes, LOWMEM_LIMIT, 48).unwrap();
        memory_map(&layout).iter().map(|line| (line.start.0, line.len, line.kind)).collect()
    }

    #[test]
    fn four_gib_continue_above_the_hole() {
        assert_eq!(
            map_of(4096 * MIB),
            [
                (0, 0x9_fc00, USABLE),
                (0x9_fc00, 0x6_0400, RESERVED),
                (MIB, 3071 * MIB, USABLE),
                (4096 * MIB, 1024 * MIB, USABLE),
            ]
        );
    }

    #[test]
    fn a_tiny_guest_has_only_the_lines_it_has_memory_for() {
        assert_eq!(map_of(64 << 10), [(0, 64 << 10, USABLE)]);
        assert_eq!(map_of(MIB), [(0, 0x9_fc00, USABLE), (0x9_fc00, 0x6_0400, RESERVED)]);
    }

    proptest! {
        #[test]
        fn every_byte_of_memory_is_on_exactly_one_line(pages in 1..(1u64 << 30)) {
            let layout = MemoryLayout::split(pages * PAGE_SIZE, LOWMEM_LIMIT, 52).unwrap();
            let map = memory_map(&layout);
            prop_assert!(map.windows(2).all(|pair| pair[0].start.0 + pair[0].len <= pair[1].start.0));
            prop_assert_eq!(map.iter().map(|line| line.len).sum::<u64>(), layout.total());
            for line in &map {
                let inside = layout.ranges().any(|range| {
                    range.start() <= line.start && line.start.0 + line.len <= range.end().0
                });
                prop_assert!(line.len > 0 && inside, "{:?}", line);
            }
        }
    }
}
