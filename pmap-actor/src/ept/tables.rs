//! Four levels of tables, one writer, any number of lock-free readers.
//!
//! The pmap actor is the only writer ([`Tables`]). Readers walk the same pages through
//! [`View`] while it writes; each entry is one aligned 64-bit atomic, so a reader sees
//! an old entry or a new one, never half of each. What a reader may still *use* after an
//! entry was removed is the shootdown's business: a table page taken out of the tree is
//! handed back only through a ticket ([`TableFrame`] in `Removed`), so a walk that began
//! before the removal never meets a reused page.
//!
//! # Orderings
//!
//! A new table is zeroed (Relaxed) before the entry that leads to it is stored with
//! Release (T1); a reader loads entries with Acquire (T2, pairs with T1). A removed leaf is
//! cleared Relaxed (T3): R1/R2 of the shootdown publish it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use actors::layout::MemoryLayout;
use actors::{Gpa, GpaRange, PAGE_SIZE};

use super::masks::{FRAME_MASK, Masks};

/// Entries in a table.
const ENTRIES: usize = 512;
/// Bits of guest-physical address that four levels translate.
pub const ADDRESS_BITS: u32 = 48;
/// Tables in one chunk of the arena: 256 KiB at a time.
const CHUNK: usize = 64;

type Table = [AtomicU64; ENTRIES];

/// The pages tables are made of. Grows, never shrinks, never moves.
struct Arena {
    chunks: Box<[OnceLock<Box<[Table; CHUNK]>>]>,
}

impl Arena {
    /// Room for the tables of `layout`, twice: once in the tree, once on their way through a
    /// shootdown.
    fn new(layout: MemoryLayout) -> Self {
        let leaf_tables = layout.end().0.div_ceil(PAGE_SIZE << 9);
        let upper_tables = layout.end().0.div_ceil(PAGE_SIZE << 18) + 512 + 1;
        let chunks = (2 * (leaf_tables + upper_tables)).div_ceil(CHUNK as u64);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    fn table(&self, frame: TableFrame) -> &Table {
        let index = frame.index();
        &self.chunks[index / CHUNK].get().expect("an entry leads only to tables that were made")
            [index % CHUNK]
    }

    fn make_chunk(&self, chunk: usize) {
        self.chunks[chunk].get_or_init(|| {
            let zero = |_| std::array::from_fn(|_| AtomicU64::new(0));
            let tables: Vec<Table> = (0..CHUNK).map(zero).collect();
            tables.into_boxed_slice().try_into().expect("as many tables as a chunk has")
        });
    }
}

/// A table page that was taken out of the tree. Only the shootdown gives it back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a table page may be reused only after its shootdown"]
pub struct TableFrame(u64);

impl TableFrame {
    fn index(&self) -> usize {
        usize::try_from(self.0 / PAGE_SIZE).expect("the arena is smaller than the address space")
    }
}

/// The writer.
pub struct Tables {
    arena: Arc<Arena>,
    masks: Masks,
    /// Valid entries in each table (FreeBSD's wire count of a page-table page).
    used: Vec<u16>,
    free: Vec<TableFrame>,
    leaves: u64,
}

/// A reader: walks while the writer writes. Cheap to clone.
#[derive(Clone)]
pub struct View {
    arena: Arc<Arena>,
    masks: Masks,
}

/// Where the slot of `gpa` is in its table at `level` (4: root, 1: leaf).
fn slot(gpa: Gpa, level: u32) -> usize {
    usize::try_from(gpa.0 >> (12 + 9 * (level - 1)) & 511).expect("nine bits")
}

/// Walks from the root as far as the tables lead; calls `see` with each entry met.
fn walk(arena: &Arena, masks: &Masks, gpa: Gpa, mut see: impl FnMut(u64)) -> Option<u64> {
    if gpa.0 >> ADDRESS_BITS != 0 {
        return None;
    }
    let mut table = TableFrame(0);
    for level in (1..=4).rev() {
        let entry = arena.table(table)[slot(gpa, level)].load(Ordering::Acquire); // T2: pairs with T1.
        if entry & masks.valid == 0 {
            return None;
        }
        see(entry);
        if level == 1 {
            return Some(entry);
        }
        table = TableFrame(entry & FRAME_MASK);
    }
    None
}

impl View {
    /// The leaf that translates `gpa`, if there is one.
    #[must_use]
    pub fn leaf(&self, gpa: Gpa) -> Option<u64> {
        walk(&self.arena, &self.masks, gpa, |_| {})
    }
}

impl Tables {
    /// An empty root, for translations of what lies in `layout`.
    #[must_use]
    pub fn new(masks: Masks, layout: MemoryLayout) -> Self {
        let arena = Arc::new(Arena::new(layout));
        arena.make_chunk(0);
        Self { arena, masks, used: vec![0], free: Vec::new(), leaves: 0 }
    }

    /// Somebody who reads.
    #[must_use]
    pub fn view(&self) -> View {
        View { arena: self.arena.clone(), masks: self.masks }
    }

    /// The bits of these tables.
    #[must_use]
    pub fn masks(&self) -> &Masks {
        &self.masks
    }

    /// Leaves in the tables.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Tables in use, the root included.
    #[must_use]
    pub fn table_pages(&self) -> u64 {
        (self.used.len() - self.free.len()) as u64
    }

    /// The leaf that translates `gpa`, if there is one.
    #[must_use]
    pub fn leaf(&self, gpa: Gpa) -> Option<u64> {
        walk(&self.arena, &self.masks, gpa, |_| {})
    }

    /// Every entry met on the way to `gpa`, from the root down (FreeBSD's
    /// `pmap_get_mapping`): none when the root's is invalid, at most four.
    #[must_use]
    pub fn chain(&self, gpa: Gpa) -> Vec<u64> {
        let mut entries = Vec::with_capacity(4);
        walk(&self.arena, &self.masks, gpa, |entry| entries.push(entry));
        entries
    }

    /// Puts `leaf` where `gpa` is translated, making tables on the way; returns what was
    /// there before (0: nothing).
    ///
    /// # Panics
    ///
    /// For a `gpa` of more than 48 bits or outside the layout: the map admits neither.
    pub fn enter(&mut self, gpa: Gpa, leaf: u64) -> u64 {
        assert!(gpa.0 >> ADDRESS_BITS == 0, "{gpa} has more than {ADDRESS_BITS} bits");
        let mut table = TableFrame(0);
        for level in (2..=4).rev() {
            let at = slot(gpa, level);
            let entry = self.arena.table(TableFrame(table.0))[at].load(Ordering::Relaxed);
            table = if entry & self.masks.valid == 0 {
                let made = self.make_table();
                let entry = self.masks.table(made.0);
                self.used[table.index()] += 1;
                self.arena.table(table)[at].store(entry, Ordering::Release); // T1: pairs with T2.
                made
            } else {
                TableFrame(entry & FRAME_MASK)
            };
        }
        let before =
            self.arena.table(TableFrame(table.0))[slot(gpa, 1)].swap(leaf, Ordering::Release);
        if before & self.masks.valid == 0 {
            self.used[table.index()] += 1;
            self.leaves += 1;
        }
        before
    }

    fn make_table(&mut self) -> TableFrame {
        self.free.pop().unwrap_or_else(|| {
            let index = self.used.len();
            assert!(
                index < CHUNK * self.arena.chunks.len(),
                "there is room for the layout's tables twice"
            );
            self.arena.make_chunk(index / CHUNK);
            self.used.push(0);
            TableFrame(index as u64 * PAGE_SIZE)
        })
    }

    /// Replaces each leaf of `range` by what `change` makes of it; returns how many changed.
    ///
    /// # Panics
    ///
    /// When `change` makes an invalid entry of a valid one: that is [`Tables::remove`]'s work.
    pub fn update(&mut self, range: GpaRange, mut change: impl FnMut(u64) -> u64) -> u64 {
        let mut changed = 0;
        for part in by_table(range) {
            let Some(table) = self.leaf_table(part.start()) else {
                continue;
            };
            for gpa in part.iter_pages() {
                let place = &self.arena.table(TableFrame(table.0))[slot(gpa, 1)];
                let before = place.load(Ordering::Relaxed);
                if before & self.masks.valid == 0 {
                    continue;
                }
                let after = change(before);
                assert!(after & self.masks.valid != 0, "a change of permissions removed an entry");
                if after != before {
                    place.store(after, Ordering::Relaxed); // T3, as for a removal.
                    changed += 1;
                }
            }
        }
        changed
    }

    /// Takes the leaves of `range` out, and the tables that are empty then; calls `see` with
    /// each removed leaf, upwards. The tables go into `emptied`.
    pub fn remove(
        &mut self,
        range: GpaRange,
        emptied: &mut Vec<TableFrame>,
        mut see: impl FnMut(Gpa, u64),
    ) -> u64 {
        let before = self.leaves;
        for part in by_table(range) {
            let Some(table) = self.leaf_table(part.start()) else {
                continue;
            };
            for gpa in part.iter_pages() {
                let place = &self.arena.table(TableFrame(table.0))[slot(gpa, 1)];
                let entry = place.load(Ordering::Relaxed);
                if entry & self.masks.valid != 0 {
                    place.store(0, Ordering::Relaxed); // T3
                    self.used[table.index()] -= 1;
                    self.leaves -= 1;
                    see(gpa, entry);
                }
            }
            if self.used[table.index()] == 0 {
                self.unhook(part.start(), emptied);
            }
        }
        before - self.leaves
    }

    /// Takes the empty leaf table of `gpa` out, and its parents as far as they are empty then.
    fn unhook(&mut self, gpa: Gpa, emptied: &mut Vec<TableFrame>) {
        for level in 2..=4 {
            let parent = self.table_at(gpa, level).expect("the child was just found");
            let place = &self.arena.table(TableFrame(parent.0))[slot(gpa, level)];
            emptied.push(TableFrame(place.load(Ordering::Relaxed) & FRAME_MASK));
            place.store(0, Ordering::Relaxed); // T3
            self.used[parent.index()] -= 1;
            if self.used[parent.index()] != 0 || level == 4 {
                break;
            }
        }
    }

    /// The table of `level` on the way to `gpa`.
    fn table_at(&self, gpa: Gpa, level: u32) -> Option<TableFrame> {
        let mut table = TableFrame(0);
        for above in (level + 1..=4).rev() {
            let entry = self.arena.table(table)[slot(gpa, above)].load(Ordering::Relaxed);
            if entry & self.masks.valid == 0 {
                return None;
            }
            table = TableFrame(entry & FRAME_MASK);
        }
        Some(table)
    }

    fn leaf_table(&self, gpa: Gpa) -> Option<TableFrame> {
        self.table_at(gpa, 1)
    }

    /// Table pages whose shootdown is over may be used again.
    pub fn give_back(&mut self, emptied: Vec<TableFrame>) {
        // They are all zeroes: that is why they were taken out.
        self.free.extend(emptied);
    }
}

/// Cuts `range` at every 2 MiB, so that each part lies in one leaf table.
fn by_table(range: GpaRange) -> impl Iterator<Item = GpaRange> {
    const REACH: u64 = 512 * PAGE_SIZE;
    let mut next = range.start();
    std::iter::from_fn(move || {
        if next >= range.end() {
            return None;
        }
        let end = Gpa((next.0 / REACH + 1) * REACH).min(range.end());
        let part = GpaRange::new(next, end.0 - next.0).expect("parts of a range are whole pages");
        next = end;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use actors::Protection;
    use actors::layout::LOWMEM_LIMIT;

    use super::super::masks::{PmapFlags, PmapType};
    use super::*;

    fn tables() -> Tables {
        let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, 48).unwrap();
        Tables::new(Masks::of(PmapType::PtEpt, PmapFlags::EMULATE_AD_BITS), layout)
    }

    fn range(start: u64, pages: u64) -> GpaRange {
        GpaRange::new(Gpa(start), pages * PAGE_SIZE).unwrap()
    }

    fn fill(tables: &mut Tables, range: GpaRange) {
        for gpa in range.iter_pages() {
            let leaf = tables.masks().leaf(gpa.0, Protection::all());
            assert_eq!(tables.enter(gpa, leaf), 0);
        }
    }

    #[test]
    fn what_was_entered_is_found_by_the_writer_and_by_a_reader() {
        let mut tables = tables();
        let view = tables.view();
        fill(&mut tables, range(0x7f_ffff_f000, 2));
        for gpa in [0x7f_ffff_f000, 0x80_0000_0000] {
            let leaf = view.leaf(Gpa(gpa + 5)).unwrap();
            assert_eq!(leaf & FRAME_MASK, gpa);
            assert_eq!(tables.leaf(Gpa(gpa)), Some(leaf));
        }
        assert_eq!(view.leaf(Gpa(0x80_0000_1000)), None);
        assert_eq!(view.leaf(Gpa(1 << 48)), None);
    }

    #[test]
    fn a_chain_has_four_entries_and_ends_in_the_leaf() {
        let mut tables = tables();
        fill(&mut tables, range(0x1000, 1));
        let chain = tables.chain(Gpa(0x1000));
        assert_eq!(chain.len(), 4);
        assert_eq!(chain.last(), tables.leaf(Gpa(0x1000)).as_ref());
        assert_eq!(tables.chain(Gpa(0x2000)).len(), 3);
        assert_eq!(tables.chain(Gpa(1 << 39)).len(), 0);
    }

    #[test]
    fn emptied_tables_leave_the_tree_and_come_back_only_when_given_back() {
        let mut tables = tables();
        fill(&mut tables, range(0x20_0000 - 0x1000, 2));
        assert_eq!(tables.table_pages(), 5);
        let mut emptied = Vec::new();
        let mut seen = Vec::new();
        let removed = tables.remove(range(0, 1024), &mut emptied, |gpa, _| seen.push(gpa));
        assert_eq!((removed, tables.leaves()), (2, 0));
        assert_eq!(seen, [Gpa(0x1f_f000), Gpa(0x20_0000)]);
        assert_eq!(emptied.len(), 4);
        assert_eq!(tables.table_pages(), 5, "not given back yet");
        tables.give_back(emptied);
        assert_eq!(tables.table_pages(), 1);
        fill(&mut tables, range(0, 1));
        assert_eq!(tables.table_pages(), 4);
        assert_eq!(tables.leaf(Gpa(0x1000)), None, "a reused table is all zeroes");
    }

    #[test]
    fn a_table_with_a_leaf_left_stays() {
        let mut tables = tables();
        fill(&mut tables, range(0, 3));
        let mut emptied = Vec::new();
        assert_eq!(tables.remove(range(0x1000, 1), &mut emptied, |_, _| {}), 1);
        assert!(emptied.is_empty());
        assert!(tables.leaf(Gpa(0)).is_some() && tables.leaf(Gpa(0x1000)).is_none());
    }

    #[test]
    fn an_update_touches_valid_leaves_only_and_counts_changes() {
        let mut tables = tables();
        fill(&mut tables, range(0x1f_f000, 2));
        let writable = tables.masks().writable;
        assert_eq!(tables.update(range(0, 1024), |leaf| leaf & !writable), 2);
        assert_eq!(tables.update(range(0, 1024), |leaf| leaf & !writable), 0);
        assert_eq!(tables.leaf(Gpa(0x20_0000)).unwrap() & writable, 0);
    }
}
