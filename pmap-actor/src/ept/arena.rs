//! The pages that tables are made of.
//!
//! They lie in this process's own memory, not in the guest's: the *frame* of a table is its
//! offset in the arena. The arena grows, never shrinks and never moves, so a reader that
//! follows an entry always lands in a table; whether it is still the right one is the
//! shootdown's business.
//!
//! A software processor walks here whenever its TLB misses, and the walk is a chain of loads
//! that wait for each other. So the tables of all but the largest guests lie in one piece,
//! whose address a walk needs to look up only once.

#![expect(unsafe_code, reason = "tables are allocated as zeroes, which the host makes lazily")]

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use actors::layout::MemoryLayout;
use actors::{Gpa, PAGE_SIZE};

/// Entries in a table.
pub(super) const ENTRIES: u16 = 512;
/// Tables in one piece of the arena: 64 MiB of address space, enough for
/// guest-physical addresses up to 14 GiB.
const PIECE: usize = 1 << 14;

type Table = [AtomicU64; ENTRIES as usize];

/// All tables of one pmap.
pub(super) struct Arena {
    first: Box<[Table]>,
    more: Box<[OnceLock<Box<[Table]>>]>,
}

/// A whole piece of empty tables. Takes no memory until they are used.
fn piece() -> Box<[Table]> {
    let zeroed = Box::new_zeroed_slice(PIECE);
    // SAFETY: an atomic integer has the representation of the integer, so zeroes are a valid
    // `Table`.
    unsafe { zeroed.assume_init() }
}

impl Arena {
    /// Room for the tables of `layout`, twice: once in the tree, once on their way through a
    /// shootdown.
    pub(super) fn new(layout: MemoryLayout) -> Self {
        let leaf_tables = layout.end().0.div_ceil(PAGE_SIZE << 9);
        let upper_tables = layout.end().0.div_ceil(PAGE_SIZE << 18) + 512 + 1;
        let pieces = (2 * (leaf_tables + upper_tables)).div_ceil(PIECE as u64);
        Self { first: piece(), more: (1..pieces).map(|_| OnceLock::new()).collect() }
    }

    /// Tables there is room for.
    pub(super) fn capacity(&self) -> usize {
        PIECE * (1 + self.more.len())
    }

    /// The entries of `table`.
    pub(super) fn entries(&self, table: &TableFrame) -> &[AtomicU64; ENTRIES as usize] {
        let index = table.index();
        self.first.get(index).unwrap_or_else(|| self.table_further_on(index))
    }

    /// The entry in `table`, which is of `level` (4: root, 1: last), on the way to `gpa`.
    pub(super) fn place(&self, table: &TableFrame, gpa: Gpa, level: u32) -> &AtomicU64 {
        let table = self.entries(table);
        &table[usize::try_from(gpa.0 >> (12 + 9 * (level - 1)) & 511).expect("nine bits")]
    }

    #[cold]
    fn table_further_on(&self, index: usize) -> &Table {
        let piece = self.more[index / PIECE - 1].get();
        &piece.expect("an entry leads only to tables that were made")[index % PIECE]
    }

    /// Makes table `index` exist, all zeroes.
    pub(super) fn make(&self, index: usize) -> TableFrame {
        if index >= PIECE {
            self.more[index / PIECE - 1].get_or_init(piece);
        }
        TableFrame(index as u64 * PAGE_SIZE)
    }
}

/// A table page that was taken out of the tree. Only the shootdown gives it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a table page may be reused only after its shootdown"]
pub struct TableFrame(pub(super) u64);

impl TableFrame {
    /// Where every walk begins.
    pub(super) const ROOT: Self = Self(0);

    /// Its number in the arena.
    pub(super) fn index(&self) -> usize {
        usize::try_from(self.0 / PAGE_SIZE).expect("the arena is smaller than the address space")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use actors::layout::LOWMEM_LIMIT;

    use super::*;

    #[test]
    fn tables_of_the_first_piece_and_of_the_next_are_empty_and_apart() {
        let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, 48).unwrap();
        let arena = Arena::new(layout);
        assert!(arena.capacity() > 2 * PIECE);
        let indices = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, arena.capacity() - 1];
        let tables = indices.map(|index| arena.make(index));
        for (number, table) in (1..).zip(&tables) {
            let place = arena.place(table, Gpa(0x1000), 1);
            assert_eq!(place.swap(number, Ordering::Relaxed), 0);
        }
        for (number, table) in (1..).zip(&tables) {
            assert_eq!(arena.place(table, Gpa(0x1000), 1).load(Ordering::Relaxed), number);
        }
    }

    #[test]
    fn the_tables_of_fourteen_gigabytes_lie_in_one_piece() {
        let layout = MemoryLayout::split(13 << 30, LOWMEM_LIMIT, 48).unwrap();
        assert_eq!(layout.end(), Gpa(14 << 30));
        assert_eq!(Arena::new(layout).capacity(), PIECE);
    }
}
