//! What *should* be where: FreeBSD's `vm_map`, for guest-physical addresses.
//!
//! Entries do not overlap, lie inside the guest's memory, and are clipped at the edges of
//! whatever is changed (`vm_map_clip_start`, `vm_map_clip_end`). Neighbours that became
//! equal again are joined, so a million small changes do not leave a million entries.

use std::collections::BTreeMap;

use actors::contract::space::SpaceError;
use actors::layout::MemoryLayout;
use actors::{Gpa, GpaRange, Protection};

/// What backs an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Anonymous and demand-zero: FreeBSD's `OBJT_DEFAULT`. The frame of a page is where
    /// the memfd holds its guest-physical address.
    Default,
    /// Memory of a device: FreeBSD's `OBJT_SG`. The guest view shows it in place of the frame, and the memfd has nothing there.
    Sg,
}

/// One stretch of the guest's memory with the same properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Where.
    pub range: GpaRange,
    /// What backs it.
    pub backing: Backing,
    /// What the guest may do.
    pub protection: Protection,
    /// Resident for good.
    pub wired: bool,
}

impl MapEntry {
    fn continues_with(&self, next: &Self) -> bool {
        self.range.end() == next.range.start()
            && (self.backing, self.protection, self.wired)
                == (next.backing, next.protection, next.wired)
    }

    fn cut(&self, range: GpaRange) -> Self {
        Self { range, ..*self }
    }
}

/// All entries of one guest.
#[derive(Debug)]
pub struct VmMap {
    layout: MemoryLayout,
    entries: BTreeMap<u64, MapEntry>,
}

impl VmMap {
    /// An empty map over this memory.
    #[must_use]
    pub fn new(layout: MemoryLayout) -> Self {
        Self { layout, entries: BTreeMap::new() }
    }

    /// The entry `gpa` lies in.
    #[must_use]
    pub fn lookup(&self, gpa: Gpa) -> Option<&MapEntry> {
        let (_, entry) = self.entries.range(..=gpa.0).next_back()?;
        entry.range.contains(gpa).then_some(entry)
    }

    /// The entries that have something in common with `range`, upwards.
    pub fn overlapping(&self, range: GpaRange) -> impl Iterator<Item = &MapEntry> {
        let first =
            self.lookup(range.start()).map_or(range.start().0, |entry| entry.range.start().0);
        self.entries.range(first..range.end().0).map(|(_, entry)| entry)
    }

    /// What of `range` is a device's memory, upwards.
    pub fn devices(&self, range: GpaRange) -> impl Iterator<Item = GpaRange> {
        let devices = self.overlapping(range).filter(|entry| entry.backing == Backing::Sg);
        devices.filter_map(move |entry| entry.range.intersection(range))
    }

    /// Whether every page of `range` has an entry.
    #[must_use]
    pub fn covers(&self, range: GpaRange) -> bool {
        let parts = self.overlapping(range).filter_map(|entry| entry.range.intersection(range));
        parts.map(GpaRange::len).sum::<u64>() == range.len()
    }

    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// Outside the guest's memory, or occupied.
    pub fn insert(
        &mut self,
        range: GpaRange,
        backing: Backing,
        protection: Protection,
    ) -> Result<(), SpaceError> {
        if !self.layout.covers(range) {
            return Err(SpaceError::OutsideMemory(range));
        }
        if self.overlapping(range).next().is_some() {
            return Err(SpaceError::Occupied(range));
        }
        let entry = MapEntry { range, backing, protection, wired: false };
        self.entries.insert(range.start().0, entry);
        self.join(range);
        Ok(())
    }

    /// Takes the entries of `range` out.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or wired.
    pub fn remove(&mut self, range: GpaRange) -> Result<(), SpaceError> {
        self.must_cover(range)?;
        if self.overlapping(range).any(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "wired" });
        }
        self.clip(range);
        self.entries.retain(|_, entry| !range.covers(entry.range));
        Ok(())
    }

    /// Changes every entry of `range`.
    ///
    /// # Errors
    ///
    /// Not wholly mapped.
    pub fn change(
        &mut self,
        range: GpaRange,
        mut change: impl FnMut(&mut MapEntry),
    ) -> Result<(), SpaceError> {
        self.must_cover(range)?;
        self.clip(range);
        for (_, entry) in self.entries.range_mut(range.start().0..range.end().0) {
            change(entry);
        }
        self.join(range);
        Ok(())
    }

    /// `Ok` when every page of `range` has an entry.
    ///
    /// # Errors
    ///
    /// Not wholly mapped.
    pub fn must_cover(&self, range: GpaRange) -> Result<(), SpaceError> {
        if self.covers(range) { Ok(()) } else { Err(SpaceError::NotMapped(range)) }
    }

    /// Makes entries begin and end at the edges of `range`.
    fn clip(&mut self, range: GpaRange) {
        for edge in [range.start(), range.end()] {
            let Some(&entry) = self.lookup(edge) else {
                continue;
            };
            if entry.range.start() == edge {
                continue;
            }
            let split = |start: Gpa, end: Gpa| {
                GpaRange::new(start, end.0 - start.0).expect("edges are page-aligned")
            };
            let (low, high) = (split(entry.range.start(), edge), split(edge, entry.range.end()));
            self.entries.insert(low.start().0, entry.cut(low));
            self.entries.insert(high.start().0, entry.cut(high));
        }
    }

    /// Joins equal neighbours in and around `range`.
    fn join(&mut self, range: GpaRange) {
        let before = range.start().0.saturating_sub(1);
        let first = self.lookup(Gpa(before)).map_or(range.start().0, |entry| entry.range.start().0);
        let starts: Vec<u64> =
            self.entries.range(first..=range.end().0).map(|(start, _)| *start).collect();
        let mut kept: Option<MapEntry> = None;
        for start in starts {
            let entry = self.entries[&start];
            kept = Some(match kept {
                Some(low) if low.continues_with(&entry) => {
                    let both =
                        GpaRange::new(low.range.start(), low.range.len() + entry.range.len());
                    let joined = low.cut(both.expect("two ranges of whole pages"));
                    self.entries.remove(&start);
                    self.entries.insert(low.range.start().0, joined);
                    joined
                }
                _ => entry,
            });
        }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use actors::layout::LOWMEM_LIMIT;

    use super::*;

    const RWX: Protection = Protection::all();
    const READ: Protection = Protection::READ;

    fn range(start: u64, pages: u64) -> GpaRange {
        GpaRange::new(Gpa(start * 4096), pages * 4096).unwrap()
    }

    fn map() -> VmMap {
        VmMap::new(MemoryLayout::split(1 << 20, LOWMEM_LIMIT, 48).unwrap())
    }

    #[test]
    fn an_entry_is_found_at_each_of_its_addresses_and_nowhere_else() {
        let mut map = map();
        map.insert(range(2, 2), Backing::Default, RWX).unwrap();
        assert!(map.lookup(Gpa(0x1fff)).is_none());
        assert!(map.lookup(Gpa(0x2000)).is_some() && map.lookup(Gpa(0x3fff)).is_some());
        assert!(map.lookup(Gpa(0x4000)).is_none());
    }

    #[test]
    fn overlaps_and_addresses_outside_memory_are_refused() {
        let mut map = map();
        map.insert(range(2, 4), Backing::Default, RWX).unwrap();
        for occupied in [range(0, 3), range(5, 1), range(3, 1), range(0, 10)] {
            assert_eq!(
                map.insert(occupied, Backing::Default, RWX),
                Err(SpaceError::Occupied(occupied))
            );
        }
        let outside = range(255, 2);
        assert_eq!(
            map.insert(outside, Backing::Default, RWX),
            Err(SpaceError::OutsideMemory(outside))
        );
    }

    #[test]
    fn a_change_in_the_middle_splits_and_the_opposite_change_joins_again() {
        let mut map = map();
        map.insert(range(0, 9), Backing::Default, RWX).unwrap();
        map.change(range(3, 3), |entry| entry.protection = READ).unwrap();
        assert_eq!(map.len(), 3);
        assert_eq!(map.lookup(Gpa(0x3000)).unwrap().protection, READ);
        assert_eq!(map.lookup(Gpa(0x6000)).unwrap().range, range(6, 3));
        map.change(range(3, 3), |entry| entry.protection = RWX).unwrap();
        assert_eq!(map.len(), 1);
        assert_eq!(map.lookup(Gpa(0)).unwrap().range, range(0, 9));
    }

    #[test]
    fn removing_a_hole_or_something_wired_changes_nothing() {
        let mut map = map();
        map.insert(range(0, 4), Backing::Default, RWX).unwrap();
        map.insert(range(5, 4), Backing::Default, RWX).unwrap();
        assert_eq!(map.remove(range(3, 3)), Err(SpaceError::NotMapped(range(3, 3))));
        map.change(range(6, 1), |entry| entry.wired = true).unwrap();
        let refused = map.remove(range(5, 4));
        assert_eq!(refused, Err(SpaceError::WrongState { range: range(5, 4), state: "wired" }));
        assert!(map.covers(range(0, 4)) && map.covers(range(5, 4)));
    }

    #[test]
    fn removing_the_middle_leaves_both_ends() {
        let mut map = map();
        map.insert(range(0, 9), Backing::Default, RWX).unwrap();
        map.remove(range(4, 1)).unwrap();
        assert!(map.covers(range(0, 4)) && map.covers(range(5, 4)) && !map.covers(range(4, 1)));
        map.insert(range(4, 1), Backing::Default, RWX).unwrap();
        assert_eq!(map.len(), 1);
    }

    #[test]
    fn device_memory_is_an_entry_of_its_own_beside_memory_with_the_same_rights() {
        let mut map = map();
        map.insert(range(0, 4), Backing::Default, RWX).unwrap();
        map.insert(range(4, 2), Backing::Sg, RWX).unwrap();
        map.insert(range(6, 2), Backing::Sg, RWX).unwrap();
        assert_eq!(map.len(), 2, "neighbours that look alike are joined, these are not alike");
        assert_eq!(map.devices(range(0, 5)).collect::<Vec<_>>(), [range(4, 1)]);
        assert_eq!(map.devices(range(0, 4)).count(), 0);
    }
}
