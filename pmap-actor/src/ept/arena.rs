//! The pages that tables are made of.
//!
//! They lie in this process's own memory, not in the guest's: the *frame* of a table is its
//! offset in the arena. The arena grows, never shrinks and never moves, so a reader that
//! follows an entry always lands in a table; whether it is still the right one is the
//! shootdown's business.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use actors::layout::MemoryLayout;
use actors::{Gpa, PAGE_SIZE};

/// Entries in a table.
const ENTRIES: usize = 512;
/// Tables in one chunk of the arena: 256 KiB at a time.
const CHUNK: usize = 64;

type Table = [AtomicU64; ENTRIES];

/// All tables of one pmap.
pub(super) struct Arena {
    chunks: Box<[OnceLock<Box<[Table; CHUNK]>>]>,
}

impl Arena {
    /// Room for the tables of `layout`, twice: once in the tree, once on their way through a
    /// shootdown.
    pub(super) fn new(layout: MemoryLayout) -> Self {
        let leaf_tables = layout.end().0.div_ceil(PAGE_SIZE << 9);
        let upper_tables = layout.end().0.div_ceil(PAGE_SIZE << 18) + 512 + 1;
        let chunks = (2 * (leaf_tables + upper_tables)).div_ceil(CHUNK as u64);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    /// Tables there is room for.
    pub(super) fn capacity(&self) -> usize {
        CHUNK * self.chunks.len()
    }

    /// The entry in `table`, which is of `level` (4: root, 1: last), on the way to `gpa`.
    pub(super) fn place(&self, table: &TableFrame, gpa: Gpa, level: u32) -> &AtomicU64 {
        let index = table.index();
        let chunk = self.chunks[index / CHUNK].get();
        let chunk = chunk.expect("an entry leads only to tables that were made");
        let slot = usize::try_from(gpa.0 >> (12 + 9 * (level - 1)) & 511).expect("nine bits");
        &chunk[index % CHUNK][slot]
    }

    /// Makes table `index` exist, all zeroes.
    pub(super) fn make(&self, index: usize) -> TableFrame {
        self.chunks[index / CHUNK].get_or_init(|| {
            let zero = |_| std::array::from_fn(|_| AtomicU64::new(0));
            let tables: Vec<Table> = (0..CHUNK).map(zero).collect();
            tables.into_boxed_slice().try_into().expect("as many tables as a chunk has")
        });
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
