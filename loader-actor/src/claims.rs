//! Who gets which memory: everything that is placed, or must stay free, claims it first.
//!
//! One rule answers every hostile address: a claim must not wrap around, must lie in the
//! guest's memory and must not meet another claim. Nothing is written before all claims
//! stand.

use actors::Gpa;
use actors::layout::MemoryLayout;

use crate::low_memory::EXTENDED_MEMORY;

/// A stretch of guest memory that somebody has claimed. Byte-exact and never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    what: String,
    start: u64,
    end: u64,
}

/// Why a claim cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    /// Its end lies beyond 2^64.
    #[error("{what} ({len:#x} bytes at {start}) wraps around the address space")]
    Wraps {
        /// Who claims.
        what: String,
        /// From where.
        start: Gpa,
        /// How much, in bytes.
        len: u64,
    },
    /// Part of it is not memory.
    #[error(
        "{what} [{start}, {end}) lies outside the guest's memory, {memory}: give the guest more \
         memory or use an image made for these addresses"
    )]
    Outside {
        /// Who claims.
        what: String,
        /// From where.
        start: Gpa,
        /// To where, exclusive.
        end: Gpa,
        /// What there is, in words.
        memory: String,
    },
    /// Somebody else has part of it.
    #[error("{what} [{start}, {end}) overlaps {other} [{other_start}, {other_end})")]
    Overlaps {
        /// Who claims.
        what: String,
        /// From where.
        start: Gpa,
        /// To where, exclusive.
        end: Gpa,
        /// Who has it.
        other: String,
        /// From where.
        other_start: Gpa,
        /// To where, exclusive.
        other_end: Gpa,
    },
    /// No free stretch is long enough.
    #[error(
        "{what} needs {len} bytes in one piece between {floor} and {ceiling}, and no free stretch \
         there is that long: give the guest more memory"
    )]
    NoRoom {
        /// Who claims.
        what: String,
        /// How much, in bytes.
        len: u64,
        /// The lowest address that would do.
        floor: Gpa,
        /// The address that must not be reached.
        ceiling: Gpa,
    },
}

/// All claims on one guest's memory.
#[derive(Debug)]
pub(crate) struct Claims {
    layout: MemoryLayout,
    claims: Vec<Claim>,
}

impl Claims {
    pub(crate) fn new(layout: MemoryLayout) -> Self {
        Self { layout, claims: Vec::new() }
    }

    /// Claims `len` bytes at `start`. Claiming nothing always succeeds.
    pub(crate) fn claim(
        &mut self,
        what: impl Into<String>,
        start: Gpa,
        len: u64,
    ) -> Result<(), Misplaced> {
        if len == 0 {
            return Ok(());
        }
        let what = what.into();
        let Some(end) = start.checked_add(len) else {
            return Err(Misplaced::Wraps { what, start, len });
        };
        let inside = |memory: actors::GpaRange| memory.start() <= start && end <= memory.end();
        if !self.layout.ranges().any(inside) {
            return Err(Misplaced::Outside { what, start, end, memory: self.in_words() });
        }
        if let Some(other) =
            self.claims.iter().find(|other| start.0 < other.end && other.start < end.0)
        {
            return Err(Misplaced::Overlaps {
                what,
                start,
                end,
                other: other.what.clone(),
                other_start: Gpa(other.start),
                other_end: Gpa(other.end),
            });
        }
        self.claims.push(Claim { what, start: start.0, end: end.0 });
        Ok(())
    }

    /// Claims `len` bytes (not 0) as high as possible in low memory, from 1 MiB up to
    /// `ceiling` (exclusive), page-aligned, and shares no page with another claim.
    /// Returns where.
    pub(crate) fn claim_highest(
        &mut self,
        what: impl Into<String>,
        len: u64,
        ceiling: Gpa,
    ) -> Result<Gpa, Misplaced> {
        let what = what.into();
        let floor = EXTENDED_MEMORY;
        let ceiling = Gpa(ceiling.0.min(self.layout.low().end().0));
        let mut end = ceiling.page().0;
        // Each turn moves `end` below a claim it has not been below yet. Both ends are whole
        // pages, so nobody else is on the pages between them.
        while let Some(start) = end.checked_sub(len).map(|start| Gpa(start).page().0) {
            if start < floor.0 {
                break;
            }
            let in_the_way = self
                .claims
                .iter()
                .filter(|claim| start < claim.end && Gpa(claim.start).page().0 < end)
                .map(|claim| Gpa(claim.start).page().0)
                .min();
            match in_the_way {
                Some(lower) => end = lower,
                None => {
                    self.claim(what, Gpa(start), len)?;
                    return Ok(Gpa(start));
                }
            }
        }
        Err(Misplaced::NoRoom { what, len, floor, ceiling })
    }

    fn in_words(&self) -> String {
        let ranges: Vec<String> = self.layout.ranges().map(|range| range.to_string()).collect();
        ranges.join(" and ")
    }
}

#[cfg(test)]
mod tests {
    use actors::PAGE_SIZE;
    use actors::layout::LOWMEM_LIMIT;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn claims(bytes: u64) -> Claims {
        Claims::new(MemoryLayout::split(bytes, LOWMEM_LIMIT, 48).unwrap())
    }

    #[test]
    fn claims_that_only_touch_are_fine_and_one_shared_byte_is_not() {
        let mut claims = claims(MIB);
        claims.claim("one", Gpa(0x1000), 0x800).unwrap();
        claims.claim("two", Gpa(0x1800), 0x800).unwrap();
        let refused = claims.claim("three", Gpa(0x17ff), 1).unwrap_err();
        assert_eq!(refused.to_string(), "three [0x17ff, 0x1800) overlaps one [0x1000, 0x1800)");
    }

    #[test]
    fn a_claim_must_lie_in_memory_and_not_in_the_hole() {
        let mut claims = claims(4096 * MIB);
        claims.claim("high", Gpa(4096 * MIB), MIB).expect("memory goes on at 4 GiB");
        for (start, len) in
            [(3072 * MIB - 1, 2), (3072 * MIB, 1), (4096 * MIB - 1, 2), (5120 * MIB, 1)]
        {
            let refused = claims.claim("it", Gpa(start), len).unwrap_err();
            assert!(matches!(refused, Misplaced::Outside { .. }), "{refused}");
        }
        assert!(matches!(claims.claim("it", Gpa(u64::MAX), 2), Err(Misplaced::Wraps { .. })));
    }

    #[test]
    fn the_highest_place_is_below_whatever_is_in_the_way_and_shares_no_page_with_it() {
        let mut claims = claims(16 * MIB);
        claims.claim("kernel", Gpa(15 * MIB + 0x234), 0x100).unwrap();
        let at = claims.claim_highest("initrd", MIB, Gpa(u64::MAX)).unwrap();
        assert_eq!(at, Gpa(14 * MIB));
        let small = claims.claim_highest("small", 1, Gpa(u64::MAX)).unwrap();
        assert_eq!(small, Gpa(16 * MIB - PAGE_SIZE));
    }

    #[test]
    fn the_highest_place_respects_its_ceiling_and_its_floor() {
        let mut claims = claims(16 * MIB);
        let at = claims.claim_highest("initrd", MIB, Gpa(8 * MIB + 5)).unwrap();
        assert_eq!(at, Gpa(7 * MIB));
        for len in [6 * MIB + 1, 16 * MIB, u64::MAX] {
            let refused = claims.claim_highest("initrd", len, Gpa(8 * MIB));
            assert!(matches!(refused, Err(Misplaced::NoRoom { .. })), "{len:#x}");
        }
    }
}
