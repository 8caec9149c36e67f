//! Guest memory by blocks of 2 MiB: what makes them huge, and what is in them.

#![expect(unsafe_code, reason = "gives the kernel advice about memory, and asks it about a file")]

use std::io;
use std::os::fd::AsRawFd;

use actors::GpaRange;

use super::huge::{HUGE, HugePages};
use super::memory::{GuestMemory, checked};
use super::window::{MADV_COLLAPSE, Window};

impl GuestMemory {
    /// Whether `block` is an aligned block of 2 MiB of transparent memory whose frames are aligned, too.
    /// (They are, unless the memory below 4 GiB ends elsewhere.)
    #[must_use]
    pub fn is_block(&self, block: GpaRange) -> bool {
        block.len() == HUGE && self.are_blocks(block)
    }

    /// The same of several in a row.
    #[must_use]
    pub fn are_blocks(&self, blocks: GpaRange) -> bool {
        self.pages() == HugePages::Transparent
            && blocks.len().is_multiple_of(HUGE)
            && blocks.start().0.is_multiple_of(HUGE)
            && self.layout().covers(blocks)
            && self.frame_of(blocks.start()).is_multiple_of(HUGE)
    }

    /// Makes what is in each of `blocks` one huge page, mapped as one in the guest view. Everything of them must
    /// exist: where a page does not, the kernel refuses while a neighbour is registered with
    /// userfaultfd.
    ///
    /// # Errors
    ///
    /// The operating system's; then some pages of them may not be mapped any more.
    pub(crate) fn collapse_view(&self, blocks: GpaRange) -> io::Result<()> {
        self.advise_view(blocks, MADV_COLLAPSE)
    }

    /// Maps what of `range` is not mapped in the guest view. The range must not be registered with
    /// userfaultfd, or the caller would wait for itself.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(crate) fn populate_view(&self, range: GpaRange) -> io::Result<()> {
        self.advise_view(range, libc::MADV_POPULATE_WRITE)
    }

    fn advise_view(&self, range: GpaRange, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range lies in the guest view, which Rust never reads.
        checked(unsafe { libc::madvise(self.place(range), self.len(range), advice) })
    }

    /// Makes `blocks`, one or several in a row of which nothing exists, exist as a huge page each, if the host pleases;
    /// else some pages of them exist afterwards, or none.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(crate) fn allocate_huge(&self, blocks: GpaRange) -> io::Result<()> {
        Window::new(&self.file, self.frame_of(blocks.start()), blocks.len())?.populate_huge()
    }

    /// The first frame at or behind `frame` that has contents, wherever the host keeps them (its swap, too).
    /// A page that was only [populated](GuestMemory::populate) and never touched has none: it is zeroes.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn next_contents(&self, frame: u64) -> io::Result<Option<u64>> {
        self.seek(frame, libc::SEEK_DATA)
    }

    /// The first frame at or behind `frame` that has no contents: the object's end at the latest.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn next_hole(&self, frame: u64) -> io::Result<u64> {
        let found = self.seek(frame, libc::SEEK_HOLE)?;
        Ok(found.unwrap_or(self.layout().total()))
    }

    fn seek(&self, from: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
        let from = libc::off_t::try_from(from).map_err(io::Error::other)?;
        // SAFETY: no pointers are involved. The file's own position has no other user.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), from, whence) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            // Nothing behind it.
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }
}
