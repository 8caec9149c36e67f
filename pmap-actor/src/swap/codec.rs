//! A page, its checksum, and its packed form.
//!
//! Pages are compressed with LZ4 in its block format, through an implementation without
//! `unsafe`. A page that stays larger than [`WORTH_KEEPING`] is kept as it is: such pages
//! gain little in memory and are the first to go to the disk. The checksum (XXH3, 64 bits) is
//! of the page, not of its packed form, so one value goes with it through memory, disk and
//! back.
//!
//! Measured on one core of a shared server, release build, pages of a Linux kernel image, of a
//! large shared library and of source text, each page's best of nine: packing takes 3.1 to 4.4
//! us, unpacking 0.9 to 1.1 us, the checksum 0.1 us of either; what compresses becomes 1.7 to
//! 2.3 KiB. Noise is found to be noise in 0.9 us.

use std::fmt;
use std::sync::Arc;

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use twox_hash::XxHash3_64;

use crate::swap::SwapError;

/// Bytes of a page, and of a slot.
pub const PAGE_BYTES: usize = 4096;

/// A page that compresses to no more bytes than this is kept compressed.
pub const WORTH_KEEPING: usize = PAGE_BYTES / 4 * 3;

/// What a page contains.
pub type Page = [u8; PAGE_BYTES];

/// Tells a page's contents from others: XXH3, 64 bits. Not a defence against whoever chooses
/// the bytes; a defence against disks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Checksum(u64);

impl Checksum {
    /// Of a page.
    #[must_use]
    pub fn of(page: &Page) -> Self {
        Self(XxHash3_64::oneshot(page))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

/// A page on its way out, with the checksum of what it was. Cheap to clone; the clones share
/// the bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Packed {
    /// As long as a page: the page itself. Shorter: an LZ4 block.
    bytes: Arc<[u8]>,
    checksum: Checksum,
}

impl Packed {
    /// How many bytes it takes, without bookkeeping.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it did not compress.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.bytes.len() == PAGE_BYTES
    }

    /// Of the page.
    #[must_use]
    pub fn checksum(&self) -> Checksum {
        self.checksum
    }

    /// Makes a page of it again.
    ///
    /// # Errors
    ///
    /// [`SwapError::Spoiled`] when it is not the page that was packed; `page` then holds
    /// nothing of use.
    pub fn unpack_into(&self, page: &mut Page) -> Result<(), SwapError> {
        if self.is_raw() {
            page.copy_from_slice(&self.bytes);
        } else {
            let done = decompress_into(&self.bytes, page)
                .map_err(|error| SwapError::Spoiled { what: error.to_string() })?;
            if done != PAGE_BYTES {
                let what = format!("{done} bytes instead of {PAGE_BYTES}");
                return Err(SwapError::Spoiled { what });
            }
        }
        let now = Checksum::of(page);
        if now != self.checksum {
            let what = format!("checksum {now:?} instead of {:?}", self.checksum);
            return Err(SwapError::Spoiled { what });
        }
        Ok(())
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Packed({} bytes, {:?})", self.bytes.len(), self.checksum)
    }
}

/// What became of a page that was to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Laundered {
    /// It is all zeroes: there is nothing to keep.
    Zero,
    /// This is its copy.
    Packed(Packed),
    /// The frame could not be read; the operating system's reason.
    Unreadable(String),
}

/// Packs pages, one after the other, with one working space for all of them.
pub struct Packer {
    table: CompressTable,
    room: Vec<u8>,
}

impl Default for Packer {
    fn default() -> Self {
        let room = vec![0; get_maximum_output_size(PAGE_BYTES)];
        Self { table: CompressTable::small(), room }
    }
}

impl Packer {
    /// Packs a page, or finds that it is all zeroes.
    pub fn pack(&mut self, page: &Page) -> Laundered {
        if is_zero(page) {
            return Laundered::Zero;
        }
        let compressed = compress_into_with_table(page, &mut self.room, &mut self.table);
        let bytes = match compressed {
            Ok(len) if len <= WORTH_KEEPING => &self.room[..len],
            // Too long; or no room, which is longer still.
            _ => page.as_slice(),
        };
        Laundered::Packed(Packed { bytes: bytes.into(), checksum: Checksum::of(page) })
    }
}

/// Whether there is nothing in it. A whole page of it takes less than compressing it would.
fn is_zero(page: &Page) -> bool {
    page.as_chunks::<64>().0.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page of `seed`'s noise up to `noisy` bytes, and a pattern behind.
    pub(crate) fn page_of(seed: u64, noisy: usize) -> Page {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut page = [0x5a; PAGE_BYTES];
        for word in page[..noisy].as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        page
    }

    pub(crate) fn packed(page: &Page) -> Packed {
        match Packer::default().pack(page) {
            Laundered::Packed(packed) => packed,
            other => panic!("expected bytes, not {other:?}"),
        }
    }

    #[test]
    fn a_page_of_zeroes_is_nothing_and_one_bit_is_something() {
        assert_eq!(Packer::default().pack(&[0; PAGE_BYTES]), Laundered::Zero);
        for place in [0, 63, 64, 2047, PAGE_BYTES - 1] {
            let mut page = [0; PAGE_BYTES];
            page[place] = 0x80;
            assert!(!packed(&page).is_raw());
        }
    }

    #[test]
    fn what_does_not_compress_is_kept_as_it_is() {
        let page = page_of(1, PAGE_BYTES);
        let packed = packed(&page);
        assert!(packed.is_raw());
        let mut back = [0; PAGE_BYTES];
        packed.unpack_into(&mut back).unwrap();
        assert_eq!(back, page);
    }

    #[test]
    fn no_length_between_three_quarters_and_a_page_is_kept() {
        let lengths: Vec<_> = (0..=64).map(|part| packed(&page_of(7, part * 64)).bytes()).collect();
        assert!(lengths.contains(&PAGE_BYTES));
        assert!(lengths.iter().all(|len| *len <= WORTH_KEEPING || *len == PAGE_BYTES));
    }

    #[test]
    fn a_flipped_bit_in_memory_is_an_error_and_never_a_page() {
        for page in [page_of(1, 600), page_of(2, PAGE_BYTES)] {
            let good = packed(&page);
            for place in 0..good.bytes.len() {
                let mut bytes = good.bytes.to_vec();
                bytes[place] ^= 1;
                let bad = Packed { bytes: bytes.into(), checksum: good.checksum };
                let mut back = [0; PAGE_BYTES];
                // An LZ4 block may say the same in two ways; what it says is what counts.
                match bad.unpack_into(&mut back) {
                    Ok(()) => assert_eq!(back, page),
                    Err(error) => assert!(matches!(error, SwapError::Spoiled { .. })),
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_page_comes_back_as_it_was(
            start in prop::collection::vec(any::<u8>(), 0..PAGE_BYTES),
            period in 1usize..300,
        ) {
            let mut page = [0; PAGE_BYTES];
            for (place, byte) in page.iter_mut().enumerate() {
                *byte = start.get(place % period).copied().unwrap_or(3);
            }
            let mut packer = Packer::default();
            // Twice: what one page leaves in the working space must not reach the next.
            for _ in 0..2 {
                match packer.pack(&page) {
                    Laundered::Packed(packed) => {
                        let mut back = [0xff; PAGE_BYTES];
                        packed.unpack_into(&mut back).unwrap();
                        prop_assert_eq!(back, page);
                    }
                    other => prop_assert_eq!((other, page), (Laundered::Zero, [0; PAGE_BYTES])),
                }
            }
        }
    }
}
