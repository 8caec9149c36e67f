//! Where the contents of each page are: FreeBSD's `vm_object` and its pager, for one guest.
//!
//! ```text
//!                first touch                    the clock, or a pageout on demand
//!     Absent ──────────────────▶ Resident(kept) ──────────────▶ Leaving(kept)
//!       ▲                         ▲   ▲                             │  │
//!       │ unmap                   │   └────── a fault: rescued ─────┘  │ the shootdown is over, and
//!       │ (from anywhere)         │                                    │ the copy is safe
//!                     Arriving ───┤◀── Stored(Zero | Compressed) ◀─────┤
//!                        ▲        │          │ written                 │
//!                        └────────┼──── Stored(Disk) ◀─────────────────┘
//!                        a fault  │
//! ```
//!
//! A resident page is *clean* while the store holds the same contents ([`Kept::Zero`],
//! [`Kept::Disk`]), so it can leave without a write; the first store to it gives the copy up
//! ([`Kept::Nothing`]). Whether somebody stored to it since is in the tables until a harvest,
//! a removal or an ageing moves it here.
//!
//! Anonymous memory is demand-zero (`OBJT_DEFAULT`) until its first pageout makes it swap-backed
//! (`OBJT_SWAP`): here that is the state of each page, not a change of the object's type.
//!
//! Memory of a device (`OBJT_SG`, `vmspace/device.rs`) has no contents of ours: to these books its pages are absent for good.

use crate::swap::Slot;

/// What the store has of a page that is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing: the page is dirty.
    Nothing,
    /// It is all zeroes.
    Zero,
    /// The slot holds the same.
    Disk(Slot),
}

/// Where a page is that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It is all zeroes.
    Zero,
    /// In the compressed tier.
    Compressed,
    /// On disk.
    Disk(Slot),
}

/// One page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Never touched.
    Absent,
    /// In memory.
    Resident(Kept),
    /// In memory, without a translation, on its way out.
    Leaving(Kept),
    /// Not in memory.
    Stored(Stored),
    /// Being read from this slot.
    Arriving(Slot),
}

impl Page {
    /// Whether the page takes memory of the guest's object.
    pub(crate) fn has_frame(self) -> bool {
        matches!(self, Self::Resident(_) | Self::Leaving(_) | Self::Arriving(_))
    }

    /// The slot it occupies.
    pub(crate) fn slot(self) -> Option<Slot> {
        match self {
            Self::Resident(Kept::Disk(slot))
            | Self::Leaving(Kept::Disk(slot))
            | Self::Stored(Stored::Disk(slot))
            | Self::Arriving(slot) => Some(slot),
            _ => None,
        }
    }
}

/// The states of all pages of a guest, by page number (frame / 4 KiB). Four bytes each: a tag and a slot.
#[derive(Debug)]
pub(crate) struct Pages {
    words: Vec<u32>,
    frames: u64,
}

const TAG_BITS: u32 = 4;
/// Slots there can be: 2^28 of 4 KiB, one terabyte.
pub(crate) const MAX_SLOTS: u32 = 1 << (32 - TAG_BITS);

impl Page {
    fn pack(self) -> u32 {
        let tagged = |tag: u32, Slot(slot): Slot| {
            debug_assert!(slot < MAX_SLOTS, "slot {slot} does not fit");
            tag | slot << TAG_BITS
        };
        match self {
            Self::Absent => 0,
            Self::Resident(Kept::Nothing) => 1,
            Self::Resident(Kept::Zero) => 2,
            Self::Resident(Kept::Disk(slot)) => tagged(3, slot),
            Self::Leaving(Kept::Nothing) => 4,
            Self::Leaving(Kept::Zero) => 5,
            Self::Leaving(Kept::Disk(slot)) => tagged(6, slot),
            Self::Stored(Stored::Zero) => 7,
            Self::Stored(Stored::Compressed) => 8,
            Self::Stored(Stored::Disk(slot)) => tagged(9, slot),
            Self::Arriving(slot) => tagged(10, slot),
        }
    }

    fn unpack(word: u32) -> Self {
        let slot = Slot(word >> TAG_BITS);
        match word & ((1 << TAG_BITS) - 1) {
            0 => Self::Absent,
            1 => Self::Resident(Kept::Nothing),
            2 => Self::Resident(Kept::Zero),
            3 => Self::Resident(Kept::Disk(slot)),
            4 => Self::Leaving(Kept::Nothing),
            5 => Self::Leaving(Kept::Zero),
            6 => Self::Leaving(Kept::Disk(slot)),
            7 => Self::Stored(Stored::Zero),
            8 => Self::Stored(Stored::Compressed),
            9 => Self::Stored(Stored::Disk(slot)),
            10 => Self::Arriving(slot),
            tag => unreachable!("no page was ever packed with tag {tag}"),
        }
    }
}

impl Pages {
    /// All absent.
    ///
    /// # Panics
    ///
    /// When so many do not fit the address space: memory of that size cannot be mapped.
    pub(crate) fn new(pages: u64) -> Self {
        // Zeroed lazily by the host, like the memory itself.
        let words = usize::try_from(pages).expect("memory of this size was mapped");
        Self { words: vec![0; words], frames: 0 }
    }

    fn index(page: u64) -> usize {
        usize::try_from(page).expect("as in new")
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.words.len() as u64
    }

    /// Where `page` is.
    pub(crate) fn get(&self, page: u64) -> Page {
        Page::unpack(self.words[Self::index(page)])
    }

    /// Puts `page` there; returns where it was.
    pub(crate) fn set(&mut self, page: u64, state: Page) -> Page {
        let before =
            Page::unpack(std::mem::replace(&mut self.words[Self::index(page)], state.pack()));
        self.frames += u64::from(state.has_frame());
        self.frames -= u64::from(before.has_frame());
        before
    }

    /// Pages that take memory of the guest's object.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Slot = Slot(MAX_SLOTS - 1);

    fn all_states() -> Vec<Page> {
        let kept = [Kept::Nothing, Kept::Zero, Kept::Disk(Slot(0)), Kept::Disk(LAST)];
        let mut all = vec![Page::Absent, Page::Arriving(Slot(0)), Page::Arriving(LAST)];
        all.extend(kept.map(Page::Resident));
        all.extend(kept.map(Page::Leaving));
        all.extend(
            [Stored::Zero, Stored::Compressed, Stored::Disk(Slot(7)), Stored::Disk(LAST)]
                .map(Page::Stored),
        );
        all
    }

    #[test]
    fn every_state_is_found_as_it_was_put_from_every_other() {
        let mut pages = Pages::new(2);
        for before in all_states() {
            for after in all_states() {
                pages.set(1, before);
                assert_eq!(pages.set(1, after), before);
                assert_eq!((pages.get(0), pages.get(1)), (Page::Absent, after));
                assert_eq!(pages.frames(), u64::from(after.has_frame()));
            }
        }
    }
}
