//! A device's memory in the guest view, in place of frames.
//!
//! Guest memory has a stretch of the guest view for each of its addresses. Where the map has a device's memory
//! instead, that part of the view maps the device's file: a software engine reaches it there like any frame, and KVM follows
//! the host mapping. The memory object has nothing at these offsets then, and the backing view shows that nothing.

#![expect(unsafe_code, reason = "maps files over parts of the guest view")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use actors::contract::device::ScatterList;
use actors::{GpaRange, Protection};

use super::huge::HugePages;
use super::memory::{GuestMemory, checked};

/// What one can do with a part of the guest view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    None,
    Read,
    ReadWrite,
}

impl GuestMemory {
    /// Shows `list` at `range`, for which [`GuestMemory::can_show`]; it is one stretch of memory. Who touches the range meanwhile finds
    /// what was there, or the device. userfaultfd watches the range no more.
    ///
    /// # Errors
    ///
    /// The operating system's; then some of the range may show the device ([`GuestMemory::show_memory`]).
    pub(crate) fn show_device(
        &self,
        range: GpaRange,
        list: &ScatterList,
        protection: Protection,
    ) -> io::Result<()> {
        let writable = protection.contains(Protection::WRITE);
        let rights = if writable { Rights::ReadWrite } else { Rights::Read };
        let mut at = range.start();
        for segment in list.segments() {
            let part = GpaRange::new(at, segment.len).map_err(io::Error::other)?;
            self.show(part, list.file(), segment.offset, rights)?;
            at = part.end();
        }
        Ok(())
    }

    /// Whether `list` can be shown at `range`, as far as that is known before anything is changed.
    ///
    /// # Errors
    ///
    /// A sentence: memory of reserved huge pages, a list of another length, a file that ends too early; or the operating
    /// system's, when it does not say how long the file is.
    pub(crate) fn can_show(&self, range: GpaRange, list: &ScatterList) -> io::Result<()> {
        let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if self.pages() == HugePages::Reserved {
            return refused(
                "memory of reserved huge pages is wired as a whole: no part of it can give way to a device".into(),
            );
        }
        if list.len() != range.len() {
            return refused(format!(
                "it has {} bytes, and {} are asked for",
                list.len(),
                range.len()
            ));
        }
        let file = list.file().metadata()?;
        // What a device's own file has is known when it is mapped.
        let ends_early = |end: u64| file.file_type().is_file() && end > file.len();
        for segment in list.segments() {
            let end = segment.offset + segment.len;
            if ends_early(end) {
                return refused(format!("its file ends at {:#x}, before {end:#x}", file.len()));
            }
        }
        Ok(())
    }

    /// Shows the memory object again, out of everybody's reach until [`GuestMemory::set_view_access`]: whoever must be told
    /// of first touches has the time to say so.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(crate) fn show_memory(&self, range: GpaRange) -> io::Result<()> {
        self.show(range, &self.file, self.frame_of(range.start()), Rights::None)
    }

    fn show(&self, range: GpaRange, file: &File, offset: u64, rights: Rights) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let access = match rights {
            Rights::None => libc::PROT_NONE,
            Rights::Read => libc::PROT_READ,
            Rights::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let (place, len) = (self.place(range), self.len(range));
        // SAFETY: `place` checks that MAP_FIXED replaces a part of the guest view and nothing else; that is a mapping of
        // ours of which no reference is ever made, and it stays mapped, so the addresses that
        // `GuestMemory::host_of_frame` gave out stay valid.
        let mapped = unsafe { libc::mmap(place, len, access, flags, file.as_raw_fd(), offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: advice about what was just mapped; changes no contents.
            checked(unsafe { libc::madvise(place, len, advice) })?;
        }
        Ok(())
    }
}
