//! Four levels of tables, one writer, any number of lock-free readers.
//!
//! The pmap actor is the only writer ([`Tables`]). Readers walk the same pages through a
//! [`View`] while it writes. What a reader may still *use* after an entry was removed is
//! the shootdown's business: a table page taken out of the tree is handed back only through a
//! ticket ([`TableFrame`] in `Removed`), so a walk that began before the removal never
//! meets a reused page.
//!
//! # Orderings
//!
//! A new table is zeroed (Relaxed) before the entry that leads to it is stored with
//! Release (T1); a reader loads entries with Acquire (T2, pairs with T1). A leaf is removed
//! or changed with a Relaxed read-modify-write (T3): R1/R2 of the shootdown publish it, and a
//! reader's accessed or dirty bit (T4, a read-modify-write, too) is in what T3 finds, or does
//! not happen. [`view`](super::view) has the whole argument.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actors::layout::MemoryLayout;
use actors::{Gpa, GpaRange, PAGE_SIZE};

use super::arena::Arena;
pub use super::arena::TableFrame;
use super::masks::{FRAME_MASK, Masks, PmapFlags, PmapType};
use super::view::walk;
pub use super::view::{ADDRESS_BITS, View};

/// The writer.
pub struct Tables {
    arena: Arc<Arena>,
    masks: Masks,
    flags: PmapFlags,
    /// Valid entries in each table (FreeBSD's wire count of a page-table page).
    used: Vec<u16>,
    free: Vec<TableFrame>,
    leaves: u64,
}

impl Tables {
    /// An empty root in EPT format, for translations of what lies in `layout`.
    #[must_use]
    pub fn new(flags: PmapFlags, layout: MemoryLayout) -> Self {
        let arena = Arc::new(Arena::new(layout));
        let masks = Masks::of(PmapType::PtEpt, flags);
        let root = arena.make(0);
        debug_assert_eq!(root, TableFrame::ROOT);
        Self { arena, masks, flags, used: vec![0], free: Vec::new(), leaves: 0 }
    }

    /// Somebody who reads.
    #[must_use]
    pub fn view(&self) -> View {
        View { arena: self.arena.clone(), masks: self.masks, flags: self.flags }
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
        let mut table = TableFrame::ROOT;
        for level in (2..=4).rev() {
            let entry = self.arena.place(&table, gpa, level).load(Ordering::Relaxed);
            table = if entry & self.masks.valid == 0 {
                let made = self.make_table();
                let entry = self.masks.table(made.0);
                self.used[table.index()] += 1;
                // T1: pairs with T2.
                self.arena.place(&table, gpa, level).store(entry, Ordering::Release);
                made
            } else {
                debug_assert!(!Masks::is_leaf(entry, level), "a superpage is in the way");
                TableFrame(entry & FRAME_MASK)
            };
        }
        let before = self.arena.place(&table, gpa, 1).swap(leaf, Ordering::Release);
        if before & self.masks.valid == 0 {
            self.used[table.index()] += 1;
            self.leaves += 1;
        }
        before
    }

    fn make_table(&mut self) -> TableFrame {
        self.free.pop().unwrap_or_else(|| {
            let index = self.used.len();
            assert!(index < self.arena.capacity(), "there is room for the layout's tables twice");
            self.used.push(0);
            self.arena.make(index)
        })
    }

    /// Replaces each leaf of `range` by what `change` makes of it; returns how many changed.
    /// `change` may be asked more than once about a leaf, because readers set bits; `see` is
    /// called once for each leaf that changed, with the leaf before and after.
    ///
    /// # Panics
    ///
    /// When `change` makes an invalid entry of a valid one: that is [`Tables::remove`]'s work.
    pub fn update(
        &mut self,
        range: GpaRange,
        change: impl Fn(u64) -> u64,
        mut see: impl FnMut(u64, u64),
    ) -> u64 {
        let mut changed = 0;
        for part in by_table(range) {
            let Some(table) = self.leaf_table(part.start()) else {
                continue;
            };
            for gpa in part.iter_pages() {
                let place = self.arena.place(&table, gpa, 1);
                let next = |before| {
                    if before & self.masks.valid == 0 {
                        return None;
                    }
                    let after = change(before);
                    assert!(after & self.masks.valid != 0, "a change removed an entry");
                    (after != before).then_some(after)
                };
                // T3: what a reader set in between is kept.
                if let Ok(before) = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
                    see(before, change(before));
                    changed += 1;
                }
            }
        }
        changed
    }

    /// Takes the leaves of `range` out, and the tables that are empty then; calls `see` with
    /// each removed leaf, upwards, as it was at the end: with the bits that readers set. The tables go into `emptied`.
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
                let place = self.arena.place(&table, gpa, 1);
                if place.load(Ordering::Relaxed) & self.masks.valid != 0 {
                    // T3: nobody but this writer makes it invalid in between, but a reader may
                    // set a bit.
                    let entry = place.swap(0, Ordering::Relaxed);
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
            let entry = self.arena.place(&parent, gpa, level).swap(0, Ordering::Relaxed); // T3
            emptied.push(TableFrame(entry & FRAME_MASK));
            self.used[parent.index()] -= 1;
            if self.used[parent.index()] != 0 || level == 4 {
                break;
            }
        }
    }

    /// The table of `level` on the way to `gpa`.
    fn table_at(&self, gpa: Gpa, level: u32) -> Option<TableFrame> {
        let mut table = TableFrame::ROOT;
        for above in (level + 1..=4).rev() {
            let entry = self.arena.place(&table, gpa, above).load(Ordering::Relaxed);
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

    use super::*;

    fn tables() -> Tables {
        let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, 48).unwrap();
        Tables::new(PmapFlags::EMULATE_AD_BITS, layout)
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
        let mut seen = Vec::new();
        let mut clear = |tables: &mut Tables| {
            let see = |before: u64, after: u64| seen.push(before & !after);
            tables.update(range(0, 1024), |leaf| leaf & !writable, see)
        };
        assert_eq!(clear(&mut tables), 2);
        assert_eq!(clear(&mut tables), 0);
        assert_eq!(seen, [writable, writable]);
        assert_eq!(tables.leaf(Gpa(0x20_0000)).unwrap() & writable, 0);
    }
}
