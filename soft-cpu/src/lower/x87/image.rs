//! Operands of tens to hundreds of bytes.

use crate::access::room;
use crate::cpu::{Cpu, slot};
use crate::event::{Access, Exception, Raised};
use crate::width::{B1, B2, B4, B8};

impl Cpu {
    /// Reads `image.len()` bytes at `address`, in pieces of 16, 8, 4, 2 and 1.
    #[inline]
    pub(crate) fn load_image(
        &mut self,
        address: u64,
        segment: u8,
        image: &mut [u8],
    ) -> Result<(), Raised> {
        let mut done = 0;
        while done < image.len() {
            let rest = &mut image[done..];
            let at = address.wrapping_add(done as u64);
            done += if let Some(piece) = rest.first_chunk_mut::<16>() {
                *piece = self.load128_at(at, segment)?.to_le_bytes();
                16
            } else if let Some(piece) = rest.first_chunk_mut() {
                *piece = self.load_at::<B8>(at, segment)?.to_le_bytes();
                8
            } else if let Some(piece) = rest.first_chunk_mut() {
                let [a, b, c, d, ..] = self.load_at::<B4>(at, segment)?.to_le_bytes();
                *piece = [a, b, c, d];
                4
            } else if let Some(piece) = rest.first_chunk_mut() {
                let [a, b, ..] = self.load_at::<B2>(at, segment)?.to_le_bytes();
                *piece = [a, b];
                2
            } else {
                rest[0] = self.load_at::<B1>(at, segment)?.to_le_bytes()[0];
                1
            };
        }
        Ok(())
    }

    /// Refuses an operand that runs over the end of the addresses there are, before any page is looked at.
    #[inline(always)]
    pub(crate) fn check_operand(
        &mut self,
        address: u64,
        segment: u8,
        bytes: usize,
    ) -> Result<(), Raised> {
        if self.is_canonical(address.wrapping_add((bytes as u64).wrapping_sub(1))) {
            return Ok(());
        }
        Err(self.throw(match segment {
            slot::FLAT_STACK => Exception::stack(0),
            _ => Exception::general_protection(0),
        }))
    }

    /// Makes sure that `bytes` bytes at `address` may be read: the first word, then the last byte, as AMD's
    /// processors look at an environment. So CR2 is theirs too, where the second page is missing.
    pub(crate) fn check_ends(
        &mut self,
        address: u64,
        segment: u8,
        bytes: usize,
    ) -> Result<(), Raised> {
        self.page_for(address, segment, Access::Read)?;
        self.page_for(address.wrapping_add(1), segment, Access::Read)?;
        let last = address.wrapping_add((bytes as u64).wrapping_sub(1));
        self.page_for(last, segment, Access::Read)?;
        Ok(())
    }

    /// Makes sure that `bytes` bytes at `address`, at most a page, may be written.
    pub(crate) fn open_image(
        &mut self,
        address: u64,
        segment: u8,
        bytes: usize,
    ) -> Result<(), Raised> {
        self.open::<B1>(address, segment)?;
        let in_page = room(address);
        if (bytes as u64) > in_page {
            self.open::<B1>(address.wrapping_add(in_page), segment)?;
        }
        Ok(())
    }

    /// Writes `image` at `address`, which has been opened. Should another processor take a page away in
    /// between, what is there already is written again when the instruction is.
    #[inline]
    pub(crate) fn store_image(
        &mut self,
        address: u64,
        segment: u8,
        image: &[u8],
    ) -> Result<(), Raised> {
        let mut done = 0;
        while done < image.len() {
            let rest = &image[done..];
            let at = address.wrapping_add(done as u64);
            done += if let Some(piece) = rest.first_chunk::<16>() {
                self.store128_at(at, segment, u128::from_le_bytes(*piece))?;
                16
            } else if let Some(piece) = rest.first_chunk() {
                self.store_at::<B8>(at, segment, u64::from_le_bytes(*piece))?;
                8
            } else if let Some(piece) = rest.first_chunk() {
                self.store_at::<B4>(at, segment, u64::from(u32::from_le_bytes(*piece)))?;
                4
            } else if let Some(piece) = rest.first_chunk() {
                self.store_at::<B2>(at, segment, u64::from(u16::from_le_bytes(*piece)))?;
                2
            } else {
                self.store_at::<B1>(at, segment, u64::from(rest[0]))?;
                1
            };
        }
        Ok(())
    }
}

/// Puts `bytes` into `image` at `offset`.
pub(super) fn put<const N: usize>(image: &mut [u8], offset: usize, bytes: [u8; N]) {
    image[offset..offset + N].copy_from_slice(&bytes);
}

/// Takes bytes out of `image` at `offset`.
pub(super) fn take<const N: usize>(image: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&image[offset..offset + N]);
    bytes
}
