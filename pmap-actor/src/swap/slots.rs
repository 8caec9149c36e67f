//! Which slots of the swap file are free.
//!
//! A bit for each slot. Allocation is *next fit*: it goes on where it last stopped, so that
//! what is written together, one cluster after the other, lies together. Where no run of the
//! wanted length is found within `LOOK_AHEAD` slots behind the first free one, the longest
//! that was seen is taken: a shorter write is better than a long search on the pmap's thread.

use std::fmt;

use serde::Serialize;

/// 4096 bytes of the swap file, counted from 0. 32 bits of them are 16 TiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Slot(pub u32);

impl fmt::Display for Slot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "slot {}", self.0)
    }
}

/// Neighbouring slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRun {
    /// The first.
    pub first: Slot,
    /// How many; at least one.
    pub count: u32,
}

impl SlotRun {
    /// Each of them, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = Slot> {
        // A run lies below the capacity, which is a `u32`: the sum cannot overflow.
        (self.first.0..self.first.0 + self.count).map(Slot)
    }
}

/// Slots looked at for a longer run once a free one was found: 256 MiB of the file, a thousand
/// words of bits.
const LOOK_AHEAD: u32 = 1 << 16;

/// The owner of all slots of a swap file.
#[derive(Debug)]
pub struct Slots {
    /// A set bit is a slot in use. Bits past the capacity are set.
    words: Vec<u64>,
    capacity: u32,
    free: u32,
    /// Where the next search begins.
    hand: u32,
}

impl Slots {
    /// All free.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        let mut words = vec![0; capacity.div_ceil(64) as usize];
        if let Some(last) = words.last_mut()
            && !capacity.is_multiple_of(64)
        {
            *last = u64::MAX << (capacity % 64);
        }
        Self { words, capacity, free: capacity, hand: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many are free.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Whether somebody has `slot`. A slot past the end is nobody's to have.
    #[must_use]
    pub fn is_used(&self, slot: Slot) -> bool {
        slot.0 >= self.capacity || self.words[word_of(slot.0)] & bit_of(slot.0) != 0
    }

    /// Takes up to `wanted` neighbouring slots: at least one, unless none is free or wanted.
    pub fn allocate(&mut self, wanted: u32) -> Option<SlotRun> {
        if wanted == 0 || self.free == 0 {
            return None;
        }
        let end = self.capacity;
        let first = self.next(self.hand, end, false).or_else(|| self.next(0, self.hand, false))?;
        let give_up = first.saturating_add(LOOK_AHEAD).min(end);
        let mut best = SlotRun { first: Slot(first), count: 0 };
        let mut from = Some(first);
        while let Some(start) = from {
            // No further than the run is wanted: the rest of the file may be free.
            let most = start.saturating_add(wanted).min(end);
            let stop = self.next(start, most, true).unwrap_or(most);
            if stop - start > best.count {
                best = SlotRun { first: Slot(start), count: stop - start };
            }
            if best.count == wanted {
                break;
            }
            from = self.next(stop, give_up, false);
        }
        for slot in best.iter() {
            self.words[word_of(slot.0)] |= bit_of(slot.0);
        }
        self.free -= best.count;
        self.hand = best.first.0 + best.count;
        Some(best)
    }

    /// Gives `slot` back.
    ///
    /// # Panics
    ///
    /// When nobody had it: somebody is about to overwrite what somebody else wrote.
    pub fn release(&mut self, slot: Slot) {
        assert!(slot.0 < self.capacity && self.is_used(slot), "{slot} is free already");
        self.words[word_of(slot.0)] &= !bit_of(slot.0);
        self.free += 1;
    }

    /// The first slot in `from..until` that is in use, or free, as `used` says.
    fn next(&self, from: u32, until: u32, used: bool) -> Option<u32> {
        let flip = if used { 0 } else { u64::MAX };
        let mut mask = u64::MAX << (from % 64);
        for place in word_of(from)..until.div_ceil(64) as usize {
            let found = (self.words.get(place)? ^ flip) & mask;
            if found != 0 {
                let slot = u32::try_from(place).ok()? * 64 + found.trailing_zeros();
                return (slot < until).then_some(slot);
            }
            mask = u64::MAX;
        }
        None
    }
}

fn word_of(slot: u32) -> usize {
    (slot / 64) as usize
}

fn bit_of(slot: u32) -> u64 {
    1 << (slot % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(first: u32, count: u32) -> SlotRun {
        SlotRun { first: Slot(first), count }
    }

    #[test]
    fn what_is_written_one_after_the_other_lies_together() {
        let mut slots = Slots::new(100);
        assert_eq!(slots.allocate(32), Some(run(0, 32)));
        slots.release(Slot(3));
        assert_eq!(slots.allocate(32), Some(run(32, 32)));
        assert_eq!(slots.allocate(32), Some(run(64, 32)));
        assert_eq!(slots.allocate(32), Some(run(96, 4)), "the end of the file");
        assert_eq!(slots.allocate(32), Some(run(3, 1)), "and round again");
        assert_eq!(slots.allocate(32), None);
    }

    #[test]
    fn where_no_run_is_long_enough_the_longest_is_taken() {
        let mut slots = Slots::new(200);
        while slots.allocate(50).is_some() {}
        for slot in [10, 20, 21, 22, 70, 71, 130, 131] {
            slots.release(Slot(slot));
        }
        assert_eq!(slots.allocate(8), Some(run(20, 3)));
        assert_eq!(slots.allocate(2), Some(run(70, 2)), "goes on from there");
    }

    #[test]
    fn a_file_without_slots_has_none_to_give() {
        let mut slots = Slots::new(0);
        assert_eq!(slots.allocate(1), None);
        assert!(slots.is_used(Slot(0)));
    }

    #[test]
    #[should_panic(expected = "slot 5 is free already")]
    fn a_slot_is_not_given_back_twice() {
        let mut slots = Slots::new(64);
        slots.allocate(6).unwrap();
        slots.release(Slot(5));
        slots.release(Slot(5));
    }

    proptest! {
        #[test]
        fn no_slot_has_two_owners_and_none_is_lost(
            capacity in 0u32..300,
            steps in prop::collection::vec((any::<bool>(), 0u32..40, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut slots = Slots::new(capacity);
            let mut model = BTreeSet::new();
            for (takes, wanted, which) in steps {
                if takes {
                    let given = slots.allocate(wanted);
                    let has_some = wanted > 0 && model.len() < capacity as usize;
                    prop_assert_eq!(given.is_some(), has_some);
                    for slot in given.into_iter().flat_map(SlotRun::iter) {
                        prop_assert!(slot.0 < capacity);
                        prop_assert!(model.insert(slot), "{} has an owner", slot);
                    }
                    prop_assert!(given.is_none_or(|run| (1..=wanted).contains(&run.count)));
                } else if !model.is_empty() {
                    let slot = *model.iter().nth(which.index(model.len())).unwrap();
                    model.remove(&slot);
                    slots.release(slot);
                }
                prop_assert_eq!(slots.free() as usize, capacity as usize - model.len());
                prop_assert!((0..capacity).all(|at| slots.is_used(Slot(at)) == model.contains(&Slot(at))));
            }
        }
    }
}
