//! Many leaves at once.
//!
//! A superpage counts as one leaf, and must lie wholly inside the range: whoever wants a part of it demotes it first
//! ([`Tables::demote`](super::Tables::demote)).

use std::sync::atomic::{AtomicU64, Ordering};

use actors::{Gpa, GpaRange, PageSize};

use super::super::entry::Leaf;
use super::super::masks::{FRAME_MASK, Masks};
use super::{ADDRESS_BITS, BLOCK, TableFrame, Tables};

impl Tables {
    /// The first part of `[from, end)` that lies in one block and has anything in it. Whole empty subtrees are skipped
    /// at once.
    #[must_use]
    pub fn next_block(&self, from: Gpa, end: Gpa) -> Option<GpaRange> {
        let mut at = from;
        while at < end && at.0 >> ADDRESS_BITS == 0 {
            let Some(absent) = self.level_of_absence(at) else {
                let block_end = Gpa((at.0 / BLOCK + 1) * BLOCK).min(end);
                return GpaRange::new(at, block_end.0 - at.0).ok();
            };
            let reach = 1 << (12 + 9 * (absent - 1));
            at = Gpa((at.0 / reach + 1) * reach);
        }
        None
    }

    /// The level above the last where the walk to `gpa` ends for lack of an entry.
    fn level_of_absence(&self, gpa: Gpa) -> Option<u32> {
        let mut table = TableFrame::ROOT;
        for level in (2..=4).rev() {
            let entry = self.arena.place(&table, gpa, level).load(Ordering::Relaxed);
            if !self.masks.is_valid(entry) {
                return Some(level);
            }
            table = TableFrame(entry & FRAME_MASK);
        }
        None
    }

    /// 4 KiB pages of `range` that leaves of either size map.
    #[must_use]
    pub fn mapped_pages_in(&self, range: GpaRange) -> u64 {
        let mut pages = 0;
        let mut from = range.start();
        while let Some(part) = self.next_block(from, range.end()) {
            from = part.end();
            let is_mapped = |gpa: &Gpa| self.leaf(*gpa).is_some();
            pages += match self.table_at(part.start(), 1) {
                None => part.pages(),
                // Nothing needs to be looked at: the table's entries are counted.
                Some(table) if part.len() == BLOCK => u64::from(self.used[table.index()]),
                Some(_) => part.iter_pages().filter(is_mapped).count() as u64,
            };
        }
        pages
    }

    /// Judges each leaf of `range`, upwards: `judge` says what becomes of it, 0 for nothing, which takes it out; and so are the tables taken that
    /// are empty then, into `emptied`, with those that were saved for the demotion of a superpage. `judge` may be
    /// asked more than once about a leaf, because readers set bits; `see` is called once for each, changed or not, with
    /// the leaf before, as it was at the end, and the entry after.
    ///
    /// # Panics
    ///
    /// When a superpage lies partly inside.
    pub fn revise(
        &mut self,
        range: GpaRange,
        emptied: &mut Vec<TableFrame>,
        judge: impl Fn(Leaf) -> u64,
        mut see: impl FnMut(Gpa, Leaf, u64),
    ) {
        let mut from = range.start();
        while let Some(part) = self.next_block(from, range.end()) {
            from = part.end();
            let start = part.start();
            let Some(table) = self.table_at(start, 1) else {
                assert!(part.len() == BLOCK, "{part} is part of a superpage that was not demoted");
                let size = PageSize::Size2MiB;
                let directory = self.table_at(start, 2).expect("something is in this block");
                let place = self.arena.place(&directory, start, 2);
                if let Some((before, after)) = settle(&self.masks, place, size, &judge) {
                    if after == 0 {
                        self.unhook_superpage(start, emptied);
                    }
                    see(start, before, after);
                }
                continue;
            };
            let mut removed = 0;
            for gpa in part.iter_pages() {
                let place = self.arena.place(&table, gpa, 1);
                let size = PageSize::Size4KiB;
                if let Some((before, after)) = settle(&self.masks, place, size, &judge) {
                    removed += u16::from(after == 0);
                    see(gpa, before, after);
                }
            }
            self.pages -= u64::from(removed);
            self.used[table.index()] -= removed;
            if self.used[table.index()] == 0 {
                self.unhook(start, 2, emptied);
            }
        }
    }

    /// Replaces each leaf of `range` by what `change` makes of it; returns how many changed, and calls `see` with
    /// those.
    ///
    /// # Panics
    ///
    /// As [`Tables::revise`], and when `change` makes an invalid entry.
    pub fn update(
        &mut self,
        range: GpaRange,
        change: impl Fn(Leaf) -> u64,
        mut see: impl FnMut(Gpa, Leaf, u64),
    ) -> u64 {
        let mut changed = 0;
        let masks = self.masks;
        let judge = |leaf| {
            let after = change(leaf);
            assert!(masks.is_valid(after), "a change removed {leaf:?}");
            after
        };
        self.revise(range, &mut Vec::new(), judge, |at, before, after| {
            if after != before.entry {
                changed += 1;
                see(at, before, after);
            }
        });
        changed
    }

    /// Takes the leaves of `range` out; calls `see` with each. Returns how many there were.
    ///
    /// # Panics
    ///
    /// As [`Tables::revise`].
    pub fn remove(
        &mut self,
        range: GpaRange,
        emptied: &mut Vec<TableFrame>,
        mut see: impl FnMut(Gpa, Leaf),
    ) -> u64 {
        let before = self.leaves();
        self.revise(range, emptied, |_| 0, |at, leaf, _| see(at, leaf));
        before - self.leaves()
    }

    /// After the entry of a superpage was cleared.
    fn unhook_superpage(&mut self, gpa: Gpa, emptied: &mut Vec<TableFrame>) {
        let directory = self.table_at(gpa, 2).expect("a superpage was just found there");
        self.superpages -= 1;
        self.used[directory.index()] -= 1;
        if let Some(table) = self.saved.remove(&(gpa.0 / BLOCK)) {
            // Nothing to harvest here: see `tables/block.rs`.
            for place in self.arena.entries(&table) {
                place.store(0, Ordering::Relaxed);
            }
            self.used[table.index()] = 0;
            emptied.push(table);
        }
        if self.used[directory.index()] == 0 {
            self.unhook(gpa, 3, emptied);
        }
    }

    /// Takes an empty table of `gpa` out, by its entry in the table of `level`, and its parents as far as they are
    /// empty then.
    fn unhook(&mut self, gpa: Gpa, level: u32, emptied: &mut Vec<TableFrame>) {
        for level in level..=4 {
            let parent = self.table_at(gpa, level).expect("the child was just found");
            let entry = self.arena.place(&parent, gpa, level).swap(0, Ordering::Relaxed); // T3
            emptied.push(TableFrame(entry & FRAME_MASK));
            self.used[parent.index()] -= 1;
            if self.used[parent.index()] != 0 {
                break;
            }
        }
    }
}

/// Lets `judge` decide about the entry of `place`, if it is valid; returns what it was and is.
fn settle(
    masks: &Masks,
    place: &AtomicU64,
    size: PageSize,
    judge: impl Fn(Leaf) -> u64,
) -> Option<(Leaf, u64)> {
    let mut entry = place.load(Ordering::Relaxed);
    loop {
        if !masks.is_valid(entry) {
            return None;
        }
        let before = Leaf { entry, size };
        let after = judge(before);
        if after == entry {
            return Some((before, after));
        }
        // T3: nobody but this writer makes it invalid in between, but a reader may set a bit.
        match place.compare_exchange(entry, after, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Some((before, after)),
            Err(now) => entry = now,
        }
    }
}
