//! What the `storm` guest and the monitor say to each other, and where.
//!
//! ```text
//!   0x20_0000  CONTROL  one page, written by the monitor but for two words
//!     +0x000   stop         not zero: finish
//!     +0x040   focuses      8 pages: every second touch goes to one of them, in turn
//!     +0x080   lock         the guest's own: who prints an alarm
//!     +0x0c0   finished     the guest's own: how many vcpus have finished
//!     +0x800   page words   of data page i at +0x800 + i * 64
//!   0x20_1000  VCPUS    one page per vcpu, written by that vcpu
//!     +0x000   touching     (touch number << 8) + page + 1; 0 between two touches
//!     +0x040   progress     touches begun
//!     +0x048   renewals     touches that found a generation newer than the last time
//!     +0x050   skipped      touches given up because the page was closed
//!     +0x058   rereads      words read again because they were caught half written
//!     +0x060   alarm        what it found wrong: code, page, page word, found, expected
//!     +0x100   uses         of data page i, at + i * 8: touches that looked and checked
//!     +0x200   own          of data page i: what this vcpu wrote there last, or 0
//!     +0x300   seen         of data page i: the generation of this vcpu's last touch
//!   0x40_0000  DATA     32 pages, a map entry of their own
//!     page i, +N * 64       the slot of vcpu N
//! ```
//!
//! A **page word** is *generation* << 2 | *[mode](Mode)*: the monitor's promise about that
//! data page. A **stamp** is what a vcpu writes into its slot: (generation mod 2^16) << 16 |
//! (touch number mod 2^16). Both are 32 bits wide and travel *sealed*: the upper half of the
//! 64-bit word is the complement of the lower one. So no sealed word is zero, and a word
//! that was caught half written (possible where privileged code is emulated: copies of 8
//! bytes need not be atomic there) is recognised and read again.
//!
//! The control words must be written through memory that stays where it is: hold or wire
//! [`control_range`] for the whole run.

use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use actors::{Gpa, GpaRange, PAGE_SIZE, PageSize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Piece;
use super::places::OWN;

/// The page the monitor writes.
pub const CONTROL: Gpa = OWN;
/// The page of vcpu 0; those of the others follow.
pub const VCPUS: Gpa = Gpa(CONTROL.0 + PAGE_SIZE);
/// The first data page.
pub const DATA: Gpa = Gpa(CONTROL.0 + (2 << 20));
/// How many data pages there are: the guest draws them with five random bits.
pub const DATA_PAGES: u16 = 32;
/// How many pages the guest aims at, at most.
pub const FOCUSES: u16 = 8;
/// Bytes from one slot of a data page, or one page word, to the next.
pub const SLOT_STRIDE: u64 = 64;
/// As many as a data page has slots.
pub const MOST_VCPUS: u16 = 64;
/// What generations start with: a page word that was lost reads as 0 and is never valid.
pub const FIRST_GENERATION: u32 = 1;

/// Offsets in [`CONTROL`].
pub(super) mod control {
    pub(in super::super) const STOP: u64 = 0;
    pub(in super::super) const FOCUS: u64 = 0x40;
    pub(in super::super) const LOCK: u64 = 0x80;
    pub(in super::super) const FINISHED: u64 = 0xc0;
    pub(in super::super) const PAGE_WORDS: u64 = 0x800;
}

/// Offsets in a vcpu's page.
pub(super) mod vcpu {
    pub(in super::super) const TOUCHING: u64 = 0;
    pub(in super::super) const PROGRESS: u64 = 0x40;
    pub(in super::super) const RENEWALS: u64 = 0x48;
    pub(in super::super) const SKIPPED: u64 = 0x50;
    pub(in super::super) const REREADS: u64 = 0x58;
    pub(in super::super) const ALARM: u64 = 0x60;
    pub(in super::super) const USES: u64 = 0x100;
    pub(in super::super) const OWN: u64 = 0x200;
    pub(in super::super) const SEEN: u64 = 0x300;
}

/// What the guest may do with a data page until the page word changes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Read and write. What was written stays.
    Open = 0,
    /// Read only; what was written is going to vanish: a slot may turn to zero.
    Changing = 1,
    /// Read only. What was written stays.
    ReadOnly = 2,
    /// Keep away: there may be no memory.
    Closed = 3,
}

/// Why the control words cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("the storm guest's control word at {at} is not in guest memory: {why}")]
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

/// All data pages: the range to keep as a map entry of its own.
///
/// # Panics
///
/// Never: the constants are whole pages.
#[must_use]
pub fn data_range() -> GpaRange {
    GpaRange::new(DATA, u64::from(DATA_PAGES) * PAGE_SIZE).expect("whole pages")
}

/// The block of 2 MiB that the data pages are the beginning of: what may become a superpage.
///
/// # Panics
///
/// Never: [`DATA`] is the start of a block.
#[must_use]
pub fn data_block() -> GpaRange {
    GpaRange::new(DATA, PageSize::Size2MiB.bytes()).expect("a block")
}

/// Data page `index`.
///
/// # Panics
///
/// When `index` is not below [`DATA_PAGES`].
#[must_use]
pub fn data_page(index: u16) -> GpaRange {
    assert!(index < DATA_PAGES, "there is no data page {index}");
    GpaRange::page_of(Gpa(DATA.0 + u64::from(index) * PAGE_SIZE))
}

/// `payload` with its complement above it.
#[must_use]
pub fn sealed(payload: u32) -> u64 {
    u64::from(payload) | u64::from(!payload) << 32
}

/// The page word that says `generation` and `mode`. Generations count modulo 2^30.
#[must_use]
pub fn page_word(generation: u32, mode: Mode) -> u64 {
    sealed(generation << 2 | mode as u32)
}

/// What lies there before the guest starts: every page open in its first generation, and
/// every vcpu aware of it.
pub(super) fn pieces(vcpus: u16) -> Vec<Piece> {
    let data_pages = u64::from(DATA_PAGES);
    let monitor = page_of_words(|offset| match offset.checked_sub(control::PAGE_WORDS) {
        Some(at) if at % SLOT_STRIDE == 0 && at / SLOT_STRIDE < data_pages => {
            page_word(FIRST_GENERATION, Mode::Open)
        }
        _ => 0,
    });
    let one_vcpu = page_of_words(|offset| match offset.checked_sub(vcpu::SEEN) {
        Some(at) if at / 8 < data_pages => u64::from(FIRST_GENERATION),
        _ => 0,
    });
    let all_vcpus = one_vcpu.repeat(usize::from(vcpus));
    vec![(CONTROL, monitor), (VCPUS, all_vcpus)]
}

/// A page whose 64-bit word at each offset is `word(offset)`.
fn page_of_words(word: impl Fn(u64) -> u64) -> Vec<u8> {
    let offsets = (0..PAGE_SIZE).step_by(8);
    offsets.flat_map(|offset| word(offset).to_le_bytes()).collect()
}

/// The monitor's end of the conversation.
#[derive(Clone, Copy, Debug)]
pub struct StormControl<'m> {
    memory: &'m GuestMemoryMmap,
    vcpus: u16,
}

/// What the guest counted, all vcpus together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StormTally {
    /// Touches begun.
    pub touches: u64,
    /// Touches that found a newer generation than that vcpu's last touch of that page.
    pub renewals: u64,
    /// Touches given up because the page was closed.
    pub skipped: u64,
    /// Words read again because they were caught half written.
    pub rereads: u64,
}

/// What a vcpu found wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Which vcpu.
    pub vcpu: u16,
    /// The code it ends the run with: see `storm`'s constants.
    pub code: u8,
    /// Index of the data page.
    pub page: u64,
    /// The page word it had read, unsealed.
    pub page_word: u32,
    /// What it found.
    pub found: u64,
    /// What had to be there, if that is one value.
    pub expected: u64,
}

impl<'m> StormControl<'m> {
    /// Talks through `memory`, the view of guest memory that is the monitor's own.
    #[must_use]
    pub fn new(memory: &'m GuestMemoryMmap, vcpus: u16) -> Self {
        Self { memory, vcpus }
    }

    /// Tells the guest to finish: vcpu 0 then ends the run through the debug-exit port.
    ///
    /// # Errors
    ///
    /// [`ControlError`], as for all of these: the words are not in guest memory.
    pub fn stop(&self) -> Result<(), ControlError> {
        self.store(Gpa(CONTROL.0 + control::STOP), 1)
    }

    /// Sends every second touch of every vcpu to data page `page`: all of them, or as many as
    /// `pages` are of all data pages. So several who work on pages of their own do not take
    /// the touches from each other.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn aim(&self, page: u16, pages: &Range<u16>) -> Result<(), ControlError> {
        for focus in 0..FOCUSES {
            if pages.contains(&(focus * (DATA_PAGES / FOCUSES))) {
                let at = CONTROL.0 + control::FOCUS + u64::from(focus) * 8;
                self.store(Gpa(at), u64::from(page % DATA_PAGES))?;
            }
        }
        Ok(())
    }

    /// Publishes `generation` and `mode` of data page `page`.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn publish(&self, page: u16, generation: u32, mode: Mode) -> Result<(), ControlError> {
        let at = CONTROL.0 + control::PAGE_WORDS + u64::from(page % DATA_PAGES) * SLOT_STRIDE;
        self.store(Gpa(at), page_word(generation, mode))?;
        // M2: the page word first, then a look at who is touching. Pairs with the
        // guest's locked exchange between its announcement and its look at the page word.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Which page each vcpu is touching, as announced: 0 between two touches.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn touching(&self) -> Result<Vec<u64>, ControlError> {
        (0..self.vcpus).map(|vcpu| self.of(vcpu, vcpu::TOUCHING)).collect()
    }

    /// How often the vcpus have looked at data page `page` and checked what they saw.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn uses(&self, page: u16) -> Result<u64, ControlError> {
        self.sum(vcpu::USES + u64::from(page % DATA_PAGES) * 8)
    }

    /// Whether every vcpu has begun.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn all_begun(&self) -> Result<bool, ControlError> {
        for vcpu in 0..self.vcpus {
            if self.of(vcpu, vcpu::PROGRESS)? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the guest counted so far.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn tally(&self) -> Result<StormTally, ControlError> {
        Ok(StormTally {
            touches: self.sum(vcpu::PROGRESS)?,
            renewals: self.sum(vcpu::RENEWALS)?,
            skipped: self.sum(vcpu::SKIPPED)?,
            rereads: self.sum(vcpu::REREADS)?,
        })
    }

    /// What vcpus found wrong, if any did.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn alarms(&self) -> Result<Vec<Alarm>, ControlError> {
        let mut alarms = Vec::new();
        for vcpu in 0..self.vcpus {
            let word = |index: u64| self.of(vcpu, vcpu::ALARM + index * 8);
            let code = word(0)?.to_le_bytes()[0];
            if code != 0 {
                let [a, b, c, d, ..] = word(2)?.to_le_bytes();
                alarms.push(Alarm {
                    vcpu,
                    code,
                    page: word(1)?,
                    page_word: u32::from_le_bytes([a, b, c, d]),
                    found: word(3)?,
                    expected: word(4)?,
                });
            }
        }
        Ok(alarms)
    }

    fn of(&self, vcpu: u16, offset: u64) -> Result<u64, ControlError> {
        self.load(Gpa(VCPUS.0 + u64::from(vcpu) * PAGE_SIZE + offset))
    }

    fn sum(&self, offset: u64) -> Result<u64, ControlError> {
        (0..self.vcpus).try_fold(0, |sum: u64, vcpu| Ok(sum.wrapping_add(self.of(vcpu, offset)?)))
    }

    fn load(&self, at: Gpa) -> Result<u64, ControlError> {
        // Acquire: what a vcpu did before it wrote this word has happened.
        self.memory
            .load(GuestAddress(at.0), Ordering::Acquire)
            .map_err(|why| ControlError { at, why })
    }

    fn store(&self, at: Gpa, word: u64) -> Result<(), ControlError> {
        // Release: the invalidation before it is complete for whoever reads this word.
        self.memory
            .store(word, GuestAddress(at.0), Ordering::Release)
            .map_err(|why| ControlError { at, why })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sealed_word_is_zero_and_half_of_one_is_not_sealed() {
        let is_sealed = |word: u64| word >> 32 == !word & 0xffff_ffff;
        for payload in [0, 1, u32::MAX, 0x0001_0002] {
            assert_ne!(sealed(payload), 0);
            assert!(is_sealed(sealed(payload)));
        }
        assert!(!is_sealed(0));
        let (older, newer) = (sealed(0x0001_0002), sealed(0x0001_0003));
        assert!(!is_sealed(older & 0xffff_ffff | newer & !0xffff_ffff));
    }

    #[test]
    fn the_guest_starts_with_every_page_open_in_the_first_generation() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
        for (at, bytes) in pieces(2) {
            memory.write_slice(&bytes, GuestAddress(at.0)).unwrap();
        }
        for index in 0..u64::from(DATA_PAGES) {
            let at = GuestAddress(CONTROL.0 + 0x800 + index * 64);
            assert_eq!(memory.read_obj::<u64>(at).unwrap(), sealed(1 << 2));
        }
        let control = StormControl::new(&memory, 2);
        assert_eq!(control.tally().unwrap(), StormTally::default());
        assert!(!control.all_begun().unwrap());
        assert!(control.alarms().unwrap().is_empty());
    }

    #[test]
    fn control_words_outside_memory_are_an_error_that_names_the_word() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let error = StormControl::new(&memory, 1).stop().unwrap_err();
        assert_eq!(error.at, CONTROL);
        assert!(error.to_string().contains("0x200000"), "{error}");
    }
}
