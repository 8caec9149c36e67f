//! 512 leaves that say the same, and the one leaf that says it for them.
//!
//! *Promotion* replaces the entry that leads to a block's last table by a 2 MiB leaf, and saves the table. *Demotion*
//! fills the saved table (or a new one) with what the leaf says by then, and puts it back. Neither changes
//! what anybody may do, so neither needs a shootdown; and readers walk all the while.
//!
//! # Why no accessed or dirty bit is lost
//!
//! A reader that loaded the entry above *before* the promotion still walks the table that is saved meanwhile, as long
//! as it does not flush. What could it set there that nobody would harvest? Nothing, because a table is saved only when
//! it is **saturated**: each of its leaves has accessed, and each either has dirty or is not writable. The
//! promoter makes it so first (`Tables::exchange`, a compare-and-exchange per leaf, T3), and with that:
//!
//! * a store through a clean writable leaf comes before the exchange that takes the right away, which then fails, and the block
//!   is not promoted; or it comes after, and its T4 fails (the reader walks again and finds no right);
//! * after it, a reader finds every bit set that it would set, and writes nothing (`mark` in `view.rs`).
//!
//! So the saved table never changes under the 2 MiB leaf, and holds no news. Nor does it matter that it grows stale when
//! the leaf above it changes: a reader that is still in it uses a translation older than that change, like
//! one in its TLB, and whatever took a right or a bit from the 2 MiB leaf needs a shootdown for both.
//!
//! Demotion therefore **refills** the table, never harvests it (T5). While it does, a late reader may walk there: it finds the
//! old saturated leaf and writes nothing, or the new one and marks that, which then is seen like any other mark, because
//! no leaf is filled twice with less. (If the 2 MiB leaf changes meanwhile, the exchange that ends the demotion fails, and the
//! table is filled again with one more bit. Only accessed can be missing: a writable superpage is dirty.) The exchange is Release and is a T1: who
//! finds the table through it finds it filled. A reader whose T4 was meant for the 2 MiB leaf fails and walks again.
//!
//! A removed superpage's saved table is emptied by plain stores, for the same reason: there is no news in it.

use std::sync::atomic::Ordering;

use actors::{Gpa, PageSize};

use super::super::arena::ENTRIES;
use super::super::entry::Leaf;
use super::super::masks::{FRAME_MASK, Masks};
use super::{BLOCK, TableFrame, Tables};

/// What is there for an aligned 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Nothing.
    Empty,
    /// A table with this many leaves: 1 to 512.
    Pages(u16),
    /// One leaf.
    Superpage(Leaf),
}

impl Tables {
    /// What is there for the block of `gpa`.
    #[must_use]
    pub fn block(&self, gpa: Gpa) -> Block {
        if gpa.0 >> super::ADDRESS_BITS != 0 {
            return Block::Empty;
        }
        let Some(directory) = self.table_at(gpa, 2) else {
            return Block::Empty;
        };
        let entry = self.arena.place(&directory, gpa, 2).load(Ordering::Relaxed);
        if !self.masks.is_valid(entry) {
            Block::Empty
        } else if Masks::is_leaf(entry, 2) {
            Block::Superpage(Leaf { entry, size: PageSize::Size2MiB })
        } else {
            Block::Pages(self.used[TableFrame(entry & FRAME_MASK).index()])
        }
    }

    /// The 512 entries of the block of `gpa`, if it has a table, upwards.
    pub fn entries(&self, gpa: Gpa) -> Option<impl Iterator<Item = u64>> {
        let table = self.table_at(gpa, 1)?;
        Some(self.arena.entries(&table).iter().map(|place| place.load(Ordering::Relaxed)))
    }

    /// Replaces each leaf of the block of `gpa` by what `change` makes of it, unless it makes nothing of one of them: then those before
    /// it are given back what `change` took from them, and what was gained stays. Returns whether all were changed.
    ///
    /// # Panics
    ///
    /// When the block has no table.
    pub fn exchange(&mut self, gpa: Gpa, change: impl Fn(u64) -> Option<u64>) -> bool {
        let table = self.table_at(gpa, 1).expect("a block that is promoted has a table");
        let places = self.arena.entries(&table);
        let mut lost = [0; ENTRIES as usize];
        for (index, place) in places.iter().enumerate() {
            // T3: fails for a store that came before, and then `change` sees it.
            match place.fetch_update(Ordering::Relaxed, Ordering::Relaxed, &change) {
                Ok(before) => {
                    // Asked again with the same entry: the same answer.
                    lost[index] = before & !change(before).unwrap_or(before);
                }
                Err(_) => {
                    for (place, lost) in places.iter().zip(lost) {
                        if lost != 0 {
                            place.fetch_or(lost, Ordering::Relaxed); // T3
                        }
                    }
                    return false;
                }
            }
        }
        true
    }

    /// Lets `superpage` stand for the 512 leaves of the block of `gpa`, which all say the same and are saturated, and saves their table.
    ///
    /// # Panics
    ///
    /// When the block has no full table.
    pub fn promote(&mut self, gpa: Gpa, superpage: u64) {
        debug_assert!(self.masks.is_valid(superpage) && Masks::is_leaf(superpage, 2));
        let table = self.table_at(gpa, 1).expect("a block that is promoted has a table");
        assert_eq!(self.used[table.index()], ENTRIES, "the table is not full");
        let directory = self.table_at(gpa, 2).expect("there is a table below it");
        // T3: a table's own bits are nobody's news. It leads to no table, so it orders nothing.
        self.arena.place(&directory, gpa, 2).swap(superpage, Ordering::Relaxed);
        self.saved.insert(gpa.0 / BLOCK, table);
        self.pages -= u64::from(ENTRIES);
        self.superpages += 1;
    }

    /// Whether the table of the promoted block of `gpa` was saved.
    #[must_use]
    pub fn has_saved_table(&self, gpa: Gpa) -> bool {
        self.saved.contains_key(&(gpa.0 / BLOCK))
    }

    /// The entries of the table that was saved for the block of `gpa`.
    #[cfg(test)]
    pub(crate) fn saved_entries(&self, gpa: Gpa) -> Option<Vec<u64>> {
        let table = self.saved.get(&(gpa.0 / BLOCK))?;
        let places = self.arena.entries(table).iter();
        Some(places.map(|place| place.load(Ordering::Relaxed)).collect())
    }

    /// Lets 512 leaves say what the superpage of `gpa` says: `page` makes each from the 2 MiB entry and its index. False, and nothing
    /// is changed, when there is no table page for them.
    ///
    /// # Panics
    ///
    /// When there is no superpage.
    pub fn demote(&mut self, gpa: Gpa, page: impl Fn(u64, u64) -> u64) -> bool {
        let saved = self.saved.remove(&(gpa.0 / BLOCK));
        let Some(table) = saved.or_else(|| self.make_table()) else {
            return false;
        };
        let directory = self.table_at(gpa, 2).expect("a superpage that is demoted exists");
        let place = self.arena.place(&directory, gpa, 2);
        let mut superpage = place.load(Ordering::Relaxed);
        assert!(self.masks.is_valid(superpage) && Masks::is_leaf(superpage, 2), "no superpage");
        let leads_to_table = self.masks.table(table.0);
        loop {
            // T5: the table is not in the tree; a late reader of it finds nothing to mark.
            for (place, index) in self.arena.entries(&table).iter().zip(0..) {
                place.store(page(superpage, index), Ordering::Relaxed);
            }
            // T1: pairs with T2. Fails when a reader has marked the superpage meanwhile.
            let swapped = place.compare_exchange(
                superpage,
                leads_to_table,
                Ordering::Release,
                Ordering::Relaxed,
            );
            match swapped {
                Ok(_) => break,
                Err(now) => superpage = now,
            }
        }
        self.used[table.index()] = ENTRIES;
        self.pages += u64::from(ENTRIES);
        self.superpages -= 1;
        true
    }
}
