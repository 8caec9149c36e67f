//! What the `tour` guest and the monitor say to each other, and where.
//!
//! ```text
//!   0x20_0000  CONTROL  one page, written by the monitor
//!     +0x000   stop         1: all was well; 2: a page was not what it should be
//!     +0x008   total        deeds that were ordered
//!   0x20_1000  VCPUS    one page per vcpu
//!     +0x000   order        the monitor's, written last: a number that grows
//!     +0x008   what         1 read, 2 write, 3 execute
//!     +0x010   address      of the first page
//!     +0x018   pages        how many, one after the other; an execution has one
//!     +0x020   value        what to write, or to find; the tag that an execution returns
//!     +0x040   done         the vcpu's, written last: the order's number
//!     +0x048   right        how many pages were as they should be
//!     +0x050   found        the last that was not; what an execution returned
//!     +0x058   deeds        orders obeyed
//!     +0x100   scratch      where the code of a page of zeroes adds nothing
//!   0x40_0000  BLOCK    512 pages, for everything about superpages
//!   0x60_0000  PAGES    512 pages, for everything else
//! ```
//!
//! The control words must be written through memory that stays where it is: hold [`control_range`] for the whole run.

use std::sync::atomic::Ordering;

use actors::{Gpa, GpaRange, PAGE_SIZE, PageSize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::super::Piece;
use super::super::places::OWN;

/// The page the monitor writes.
pub const CONTROL: Gpa = OWN;
/// The slot of vcpu 0; those of the others follow, a page each.
pub const VCPUS: Gpa = Gpa(CONTROL.0 + PAGE_SIZE);
/// As many as fit below [`BLOCK`].
pub const MOST_VCPUS: u16 = 64;
/// The block that becomes a superpage and ceases to be one.
pub const BLOCK: Gpa = Gpa(CONTROL.0 + PageSize::Size2MiB.bytes());
/// The first of the single pages.
pub const PAGES: Gpa = Gpa(BLOCK.0 + PageSize::Size2MiB.bytes());
/// How many single pages there are.
pub const SINGLE_PAGES: u16 = 512;
/// What the guest needs: everything up to the last page.
pub const MEMORY_BYTES: u64 = PAGES.0 + SINGLE_PAGES as u64 * PAGE_SIZE;

/// Offsets in [`CONTROL`].
pub(super) const STOP: u64 = 0;
pub(super) const TOTAL: u64 = 8;

/// Offsets in a vcpu's slot.
pub(super) mod slot {
    pub(in super::super) const ORDER: u64 = 0;
    pub(in super::super) const WHAT: u64 = 0x08;
    pub(in super::super) const ADDRESS: u64 = 0x10;
    pub(in super::super) const PAGES: u64 = 0x18;
    pub(in super::super) const VALUE: u64 = 0x20;
    pub(in super::super) const DONE: u64 = 0x40;
    pub(in super::super) const RIGHT: u64 = 0x48;
    pub(in super::super) const FOUND: u64 = 0x50;
    pub(in super::super) const DEEDS: u64 = 0x58;
    pub(in super::super) const SCRATCH: u64 = 0x100;
}

/// What a vcpu can do to pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum What {
    /// Look whether each begins with the value.
    Read = 1,
    /// Write the value to the beginning of each.
    Write = 2,
    /// Run the one page, and look whether it returns the value.
    Execute = 3,
}

/// Something for a vcpu to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deed {
    /// Which vcpu.
    pub vcpu: u16,
    /// What.
    pub what: What,
    /// To which pages.
    pub range: GpaRange,
    /// With which value.
    pub value: u64,
}

/// What came of a [`Deed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// How many pages were as they should be.
    pub right: u64,
    /// The last thing that was not; 0 if all were.
    pub found: u64,
}

/// Why the control words cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("the tour guest's control word at {at} is not in guest memory: {why}")]
pub struct ControlError {
    /// Which word.
    pub at: Gpa,
    /// What vm-memory says.
    #[source]
    pub why: GuestMemoryError,
}

/// The pages that the monitor and the guest talk through.
///
/// # Panics
///
/// Never: [`MOST_VCPUS`] pages fit.
#[must_use]
pub fn control_range(vcpus: u16) -> GpaRange {
    GpaRange::new(CONTROL, (1 + u64::from(vcpus)) * PAGE_SIZE).expect("a few pages above 2 MiB")
}

/// What lies there before the guest starts: no order.
pub(super) fn pieces(vcpus: u16) -> Vec<Piece> {
    let range = control_range(vcpus);
    vec![(range.start(), vec![0; usize::try_from(range.len()).unwrap_or(0)])]
}

/// The monitor's end of the conversation.
#[derive(Clone, Copy, Debug)]
pub struct TourControl<'m> {
    memory: &'m GuestMemoryMmap,
}

impl<'m> TourControl<'m> {
    /// Talks through `memory`, the view of guest memory that is the monitor's own.
    #[must_use]
    pub fn new(memory: &'m GuestMemoryMmap) -> Self {
        Self { memory }
    }

    /// Orders a deed, the `number`th of all.
    ///
    /// # Errors
    ///
    /// [`ControlError`], as for all of these: the words are not in guest memory.
    pub fn order(&self, number: u64, deed: &Deed) -> Result<(), ControlError> {
        let at = |offset| Self::of(deed.vcpu, offset);
        self.store(Gpa(CONTROL.0 + TOTAL), number)?;
        self.store(at(slot::WHAT), u64::from(deed.what as u32))?;
        self.store(at(slot::ADDRESS), deed.range.start().0)?;
        self.store(at(slot::PAGES), deed.range.pages())?;
        self.store(at(slot::VALUE), deed.value)?;
        self.store(at(slot::ORDER), number)
    }

    /// What came of order `number`, once it is done.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn done(&self, number: u64, vcpu: u16) -> Result<Option<Done>, ControlError> {
        let at = |offset| Self::of(vcpu, offset);
        if self.load(at(slot::DONE))? != number {
            return Ok(None);
        }
        let (right, found) = (self.load(at(slot::RIGHT))?, self.load(at(slot::FOUND))?);
        Ok(Some(Done { right, found }))
    }

    /// Ends the tour: vcpu 0 then ends the run through the debug-exit port.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn stop(&self, went_well: bool) -> Result<(), ControlError> {
        self.store(CONTROL, if went_well { 1 } else { 2 })
    }

    fn of(vcpu: u16, offset: u64) -> Gpa {
        Gpa(VCPUS.0 + u64::from(vcpu % MOST_VCPUS) * PAGE_SIZE + offset)
    }

    fn load(&self, at: Gpa) -> Result<u64, ControlError> {
        // Acquire: what the vcpu wrote before `done` has happened.
        self.memory
            .load(GuestAddress(at.0), Ordering::Acquire)
            .map_err(|why| ControlError { at, why })
    }

    fn store(&self, at: Gpa, word: u64) -> Result<(), ControlError> {
        // Release: what the order says is there for whoever reads its number.
        self.memory
            .store(word, GuestAddress(at.0), Ordering::Release)
            .map_err(|why| ControlError { at, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_done_when_its_own_number_comes_back() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
        let control = TourControl::new(&memory);
        let range = GpaRange::page_of(BLOCK);
        let deed = Deed { vcpu: 1, what: What::Write, range, value: 7 };
        control.order(3, &deed).unwrap();
        assert_eq!(control.done(3, 1).unwrap(), None);
        // As the guest does it.
        let slot = VCPUS.0 + PAGE_SIZE;
        for (offset, word) in [(slot::RIGHT, 1), (slot::FOUND, 9), (slot::DONE, 3_u64)] {
            memory.write_obj(word, GuestAddress(slot + offset)).unwrap();
        }
        assert_eq!(control.done(3, 1).unwrap(), Some(Done { right: 1, found: 9 }));
        assert_eq!(control.done(4, 1).unwrap(), None);
    }

    #[test]
    fn control_words_outside_memory_are_an_error_that_names_the_word() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let error = TourControl::new(&memory).stop(true).unwrap_err();
        assert!(error.to_string().contains("0x200000"), "{error}");
    }
}
