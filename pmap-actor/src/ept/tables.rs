//! Four levels of tables, one writer, any number of lock-free readers.
//!
//! The pmap actor is the only writer ([`Tables`]). Readers walk the same pages through a
//! [`View`] while it writes. What a reader may still *use* after an entry was removed is
//! the shootdown's business: a table page taken out of the tree is handed back only through a
//! ticket ([`TableFrame`]), so a walk that began before the removal never meets a reused page.
//!
//! # Orderings
//!
//! A new table is filled (Relaxed) before the entry that leads to it is stored with
//! Release (T1); a reader loads entries with Acquire (T2, pairs with T1). A leaf is removed
//! or changed with a Relaxed read-modify-write (T3): R1/R2 of the shootdown publish it, and a
//! reader's accessed or dirty bit (T4, a read-modify-write, too) is in what T3 finds, or does
//! not happen. [`view`](super::view) has the whole argument; that of promotion and demotion
//! is in `tables/block.rs`.
//!
//! Reading order: this file (one entry) → `tables/range.rs` (many) → `tables/block.rs` (512 leaves and
//! the one that stands for them all).

mod block;
mod range;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actors::layout::MemoryLayout;
use actors::{Gpa, PageSize};

use super::arena::Arena;
pub use super::arena::TableFrame;
use super::entry::{Leaf, level_of};
use super::masks::{FRAME_MASK, Masks, PmapFlags, PmapType};
use super::view::walk;
pub use super::view::{ADDRESS_BITS, View};
pub use block::Block;

/// Bytes in a block.
pub(crate) const BLOCK: u64 = PageSize::Size2MiB.bytes();

/// The writer.
pub struct Tables {
    arena: Arc<Arena>,
    masks: Masks,
    flags: PmapFlags,
    /// Valid entries in each table (FreeBSD's wire count of a page-table page).
    used: Vec<u16>,
    free: Vec<TableFrame>,
    /// Leaves of 4 KiB.
    pages: u64,
    /// Leaves of 2 MiB.
    superpages: u64,
    /// The table page of each promoted block, by the block's number, kept for its demotion.
    saved: BTreeMap<u64, TableFrame>,
}

impl Tables {
    /// An empty root in this format, for translations of what lies in `layout`.
    #[must_use]
    pub fn new(kind: PmapType, flags: PmapFlags, layout: MemoryLayout) -> Self {
        let arena = Arc::new(Arena::new(layout));
        let root = arena.make(0);
        debug_assert_eq!(root, TableFrame::ROOT);
        Self {
            arena,
            masks: Masks::of(kind, flags),
            flags,
            used: vec![0],
            free: Vec::new(),
            pages: 0,
            superpages: 0,
            saved: BTreeMap::new(),
        }
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

    /// What their walker supports.
    #[must_use]
    pub fn flags(&self) -> PmapFlags {
        self.flags
    }

    /// Leaves in the tables, of either size.
    #[must_use]
    pub fn leaves(&self) -> u64 {
        self.pages + self.superpages
    }

    /// Leaves of 2 MiB.
    #[must_use]
    pub fn superpages(&self) -> u64 {
        self.superpages
    }

    /// 4 KiB pages that leaves of either size map.
    #[must_use]
    pub fn mapped_pages(&self) -> u64 {
        self.pages + (self.superpages << 9)
    }

    /// Tables in use, the root and those saved for a demotion included.
    #[must_use]
    pub fn table_pages(&self) -> u64 {
        (self.used.len() - self.free.len()) as u64
    }

    /// Tables that are kept for the demotion of a promoted block.
    #[must_use]
    pub fn saved_tables(&self) -> u64 {
        self.saved.len() as u64
    }

    /// The leaf that translates `gpa`, if there is one.
    #[must_use]
    pub fn leaf(&self, gpa: Gpa) -> Option<Leaf> {
        walk(&self.arena, &self.masks, gpa, |_| {})
    }

    /// Every entry met on the way to `gpa`, from the root down (FreeBSD's
    /// `pmap_get_mapping`): none when the root's is invalid, at most four, three when the last is a superpage.
    #[must_use]
    pub fn chain(&self, gpa: Gpa) -> Vec<u64> {
        let mut entries = Vec::with_capacity(4);
        walk(&self.arena, &self.masks, gpa, |entry| entries.push(entry));
        entries
    }

    /// Puts a 4 KiB `leaf` where `gpa` is translated, making tables on the way; returns what was
    /// there before (0: nothing).
    ///
    /// # Panics
    ///
    /// For a `gpa` of more than 48 bits or outside the layout (the map admits neither), and when a superpage
    /// is in the way.
    pub fn enter(&mut self, gpa: Gpa, leaf: u64) -> u64 {
        self.enter_with(gpa, |_| leaf).0
    }

    /// As [`Tables::enter`], but the leaf depends on what is there (0: nothing), which readers may change meanwhile:
    /// then `make` is asked again. Returns what was there, and what is now.
    ///
    /// # Panics
    ///
    /// As [`Tables::enter`], and when `make` makes an invalid leaf.
    pub fn enter_with(&mut self, gpa: Gpa, make: impl Fn(u64) -> u64) -> (u64, u64) {
        let table = self.directory_for(gpa, 1);
        let place = self.arena.place(&table, gpa, 1);
        let mut before = place.load(Ordering::Relaxed);
        loop {
            let after = make(before);
            assert!(self.masks.is_valid(after), "an invalid leaf {after:#x} was entered at {gpa}");
            // T3, and Release for the sake of what the page itself was filled with.
            let swapped =
                place.compare_exchange(before, after, Ordering::Release, Ordering::Relaxed);
            match swapped {
                Ok(_) => {
                    if !self.masks.is_valid(before) {
                        self.used[table.index()] += 1;
                        self.pages += 1;
                    }
                    return (before, after);
                }
                Err(now) => before = now,
            }
        }
    }

    /// Puts a 2 MiB `leaf` where the block of `gpa` is translated, unless anything is there already.
    ///
    /// # Panics
    ///
    /// As [`Tables::enter`].
    pub fn enter_superpage(&mut self, gpa: Gpa, leaf: u64) -> bool {
        if !matches!(self.block(gpa), Block::Empty) {
            return false;
        }
        debug_assert!(self.masks.is_valid(leaf) && leaf & self.masks.superpage != 0);
        let directory = self.directory_for(gpa, 2);
        self.used[directory.index()] += 1;
        self.superpages += 1;
        // Release as in `enter_with`.
        self.arena.place(&directory, gpa, 2).store(leaf, Ordering::Release);
        true
    }

    /// The table of `level` on the way to `gpa`, made where there is none.
    fn directory_for(&mut self, gpa: Gpa, level: u32) -> TableFrame {
        assert!(gpa.0 >> ADDRESS_BITS == 0, "{gpa} has more than {ADDRESS_BITS} bits");
        let mut table = TableFrame::ROOT;
        for above in (level + 1..=4).rev() {
            let entry = self.arena.place(&table, gpa, above).load(Ordering::Relaxed);
            table = if self.masks.is_valid(entry) {
                assert!(!Masks::is_leaf(entry, above), "a superpage is in the way at {gpa}");
                TableFrame(entry & FRAME_MASK)
            } else {
                let made = self.make_table().expect("there is room for the layout's tables twice");
                let entry = self.masks.table(made.0);
                self.used[table.index()] += 1;
                // T1: pairs with T2.
                self.arena.place(&table, gpa, above).store(entry, Ordering::Release);
                made
            };
        }
        table
    }

    /// A table page of zeroes, unless all are in use or on their way through a shootdown.
    fn make_table(&mut self) -> Option<TableFrame> {
        if let Some(table) = self.free.pop() {
            return Some(table);
        }
        let index = self.used.len();
        if index >= self.arena.capacity() {
            return None;
        }
        self.used.push(0);
        Some(self.arena.make(index))
    }

    /// Changes the leaf that translates `gpa`: to what `change` makes of it, if it makes anything; returns the leaf before
    /// and the entry after when it changed. `change` may be asked more than once, because readers set bits.
    ///
    /// # Panics
    ///
    /// When `change` makes an invalid entry: that is [`Tables::remove`]'s work.
    pub fn change(&self, gpa: Gpa, change: impl Fn(Leaf) -> u64) -> Option<(Leaf, u64)> {
        let size = self.leaf(gpa)?.size;
        let level = level_of(size);
        let table = self.table_at(gpa, level)?;
        let place = self.arena.place(&table, gpa, level);
        let after = |entry| {
            let after = change(Leaf { entry, size });
            assert!(self.masks.is_valid(after), "a change removed the entry {entry:#x} at {gpa}");
            after
        };
        let next = |entry| Some(after(entry)).filter(|after| *after != entry);
        // T3: what a reader set in between is kept.
        let entry = place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some((Leaf { entry, size }, after(entry)))
    }

    /// The table of `level` on the way to `gpa`.
    fn table_at(&self, gpa: Gpa, level: u32) -> Option<TableFrame> {
        let mut table = TableFrame::ROOT;
        for above in (level + 1..=4).rev() {
            let entry = self.arena.place(&table, gpa, above).load(Ordering::Relaxed);
            if !self.masks.is_valid(entry) || Masks::is_leaf(entry, above) {
                return None;
            }
            table = TableFrame(entry & FRAME_MASK);
        }
        Some(table)
    }

    /// Table pages whose shootdown is over may be used again.
    pub fn give_back(&mut self, emptied: Vec<TableFrame>) {
        // They are all zeroes: each was emptied before it was taken out.
        debug_assert!(emptied.iter().all(|table| self.used[table.index()] == 0));
        self.free.extend(emptied);
    }
}

#[cfg(test)]
mod tests;
