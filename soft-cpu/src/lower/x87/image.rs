//! Operands of tens to hundreds of bytes.

use crate::access::room;
use crate::cpu::Cpu;
use crate::event::Raised;
use crate::width::{B1, B2, B4, B8, Width};

impl Cpu {
    /// Reads `image.len()` bytes at `address`, in pieces of at most eight.
    pub(crate) fn load_image(
        &mut self,
        address: u64,
        segment: u8,
        image: &mut [u8],
    ) -> Result<(), Raised> {
        let mut at = address;
        for piece in image.chunks_mut(8) {
            let value = match piece.len() {
                8 => self.load_at::<B8>(at, segment)?,
                4 => self.load_at::<B4>(at, segment)?,
                2 => self.load_at::<B2>(at, segment)?,
                bytes => {
                    let mut value = 0;
                    for index in 0..bytes as u64 {
                        let byte = self.load_at::<B1>(at.wrapping_add(index), segment)?;
                        value |= byte << (8 * index);
                    }
                    value
                }
            };
            piece.copy_from_slice(&value.to_le_bytes()[..piece.len()]);
            at = at.wrapping_add(8);
        }
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
    pub(crate) fn store_image(
        &mut self,
        address: u64,
        segment: u8,
        image: &[u8],
    ) -> Result<(), Raised> {
        let mut at = address;
        for piece in image.chunks(8) {
            let mut whole = [0; 8];
            whole[..piece.len()].copy_from_slice(piece);
            let value = u64::from_le_bytes(whole);
            match piece.len() {
                8 => self.store_at::<B8>(at, segment, value)?,
                4 => self.store_at::<B4>(at, segment, value & B4::MASK)?,
                2 => self.store_at::<B2>(at, segment, value & B2::MASK)?,
                bytes => {
                    for index in 0..bytes as u64 {
                        let byte = value >> (8 * index) & 0xff;
                        self.store_at::<B1>(at.wrapping_add(index), segment, byte)?;
                    }
                }
            }
            at = at.wrapping_add(8);
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
