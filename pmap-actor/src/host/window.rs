//! Blocks of the guest's memory object, mapped apart from both views for a moment.
//!
//! Advice about huge pages sticks to a mapping, and would cut a view into pieces. So what needs it
//! is done through a mapping of its own that is gone afterwards.

#![expect(unsafe_code, reason = "maps memory and gives advice about it")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use super::huge::HUGE;

/// `linux/mman.h`: make huge pages of this now.
pub(super) const MADV_COLLAPSE: libc::c_int = 25;

/// Bytes of a block, where a size is wanted.
const BLOCK: usize = 2 << 20;
const _: () = assert!(BLOCK as u64 == HUGE);

/// A mapping of whole blocks, aligned as huge pages must be.
///
/// # Invariants
///
/// `reservation .. + bytes + BLOCK` is a mapping of ours, unmapped on drop; nobody dereferences it.
#[derive(Debug)]
pub(super) struct Window {
    reservation: *mut libc::c_void,
    bytes: usize,
}

impl Window {
    /// Maps `bytes` of `file` at `offset`: both multiples of 2 MiB.
    pub(super) fn new(file: &File, offset: u64, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let reserved = bytes.checked_add(BLOCK).ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh reservation at an address of the kernel's choice.
        let reservation =
            unsafe { libc::mmap(ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0) };
        if reservation == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let window = Self { reservation, bytes };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (start, file) = (window.start(), file.as_raw_fd());
        // SAFETY: MAP_FIXED replaces a part of the reservation made above, nothing else.
        let mapped = unsafe { libc::mmap(start, bytes, access, flags, file, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(window)
    }

    fn start(&self) -> *mut libc::c_void {
        let aligned = self.reservation.addr().next_multiple_of(BLOCK);
        self.reservation.wrapping_byte_add(aligned - self.reservation.addr())
    }

    /// Makes a huge page of what is in each block.
    pub(super) fn collapse(&self) -> io::Result<()> {
        self.advise(MADV_COLLAPSE)
    }

    /// Makes the blocks exist, of a huge page each if the host pleases; changes nothing that exists.
    pub(super) fn populate_huge(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)?;
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: by the invariant the blocks are mapped, and nobody dereferences them.
        let done = unsafe { libc::madvise(self.start(), self.bytes, advice) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: by the invariant it is ours.
        unsafe { libc::munmap(self.reservation, self.bytes + BLOCK) };
    }
}

/// `fallocate`, as often as signals interrupt it.
pub(super) fn allocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let signed = |value| libc::off_t::try_from(value).map_err(io::Error::other);
    let (offset, len) = (signed(offset)?, signed(len)?);
    loop {
        // SAFETY: no pointers are involved.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
