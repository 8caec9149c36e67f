//! What the host says of its own mapping: `/proc/self/pagemap`, and its ioctl `PAGEMAP_SCAN`.
//!
//! Both look without touching: a page that is not mapped stays so. What they say is true of one
//! moment; the host may drop the mapping of any page that is not locked right afterwards.
//! (`Documentation/admin-guide/mm/pagemap.rst` in Linux.)

#![expect(unsafe_code, reason = "PAGEMAP_SCAN has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use actors::PAGE_SIZE;

/// Bits of a pagemap entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const WRITE_PROTECTED: u64 = 1 << 57;

/// What a page may be, as `PAGEMAP_SCAN` says it (`linux/fs.h`).
pub mod category {
    /// Not write-protected through userfaultfd: written, where write-protection is asynchronous.
    pub const WRITTEN: u64 = 1 << 1;
    /// Mapped.
    pub const PRESENT: u64 = 1 << 3;
    /// Mapped by an entry that covers 2 MiB.
    pub const HUGE: u64 = 1 << 6;
}

/// Of [`ScanArgument::flags`]: write-protect again what is reported, and refuse memory that is
/// not under asynchronous write-protection.
const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const _: () = assert!(size_of::<ScanArgument>() == 0x60);
const _: () = assert!(size_of::<Region>() == 24);

/// Regions taken by one call.
const AT_ONCE: usize = 512;

/// How one page of this process is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage {
    /// The processor finds it without a fault.
    pub present: bool,
    /// It is in the host's swap, or is being moved at this moment: the kernel brings it back.
    pub swapped: bool,
    /// Stores to it fault, or would if it were present.
    pub write_protected: bool,
}

impl HostPage {
    fn of(entry: u64) -> Self {
        Self {
            present: entry & PRESENT != 0,
            swapped: entry & SWAPPED != 0,
            write_protected: entry & WRITE_PROTECTED != 0,
        }
    }
}

/// A stretch of host addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Of its first byte.
    pub start: u64,
    /// Of the byte behind it.
    pub end: u64,
}

/// This process's own mapping, to be asked.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Opens it. Needs no privilege: it is our own.
    ///
    /// # Errors
    ///
    /// The operating system's, where `/proc` is missing for instance.
    pub fn open() -> io::Result<Self> {
        Ok(Self { file: File::open("/proc/self/pagemap")? })
    }

    /// How `pages` pages from the host address `start` on are mapped.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn read(&self, start: u64, pages: u64) -> io::Result<Vec<HostPage>> {
        let bytes = usize::try_from(pages * 8).map_err(io::Error::other)?;
        let mut entries = vec![0; bytes];
        self.file.read_exact_at(&mut entries, start / PAGE_SIZE * 8)?;
        let entries = entries.chunks_exact(8);
        Ok(entries
            .map(|entry| HostPage::of(u64::from_ne_bytes(entry.try_into().expect("eight bytes"))))
            .collect())
    }

    /// The parts of `start .. end` that are mapped by entries of 2 MiB; `None` where the kernel
    /// cannot tell (Linux before 6.7).
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn huge(&self, start: u64, end: u64) -> io::Result<Option<Vec<Stretch>>> {
        let mut found = Vec::new();
        let wanted = category::HUGE | category::PRESENT;
        match self.scan(start, end, wanted, 0, |stretch| found.push(stretch)) {
            Ok(()) => Ok(Some(found)),
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reports the pages of `start .. end` that were written since this was last called, and
    /// write-protects them again. For memory registered with a userfaultfd that has
    /// [`WP_ASYNC`](super::userfault::feature::WP_ASYNC); Linux 6.7.
    ///
    /// # Errors
    ///
    /// The operating system's; `EPERM` for other memory.
    pub fn take_written(&self, start: u64, end: u64, see: impl FnMut(Stretch)) -> io::Result<()> {
        self.scan(start, end, category::WRITTEN, WP_MATCHING | CHECK_WPASYNC, see)
    }

    fn scan(
        &self,
        start: u64,
        end: u64,
        wanted: u64,
        flags: u64,
        mut see: impl FnMut(Stretch),
    ) -> io::Result<()> {
        let mut regions = [Region::default(); AT_ONCE];
        let mut from = start;
        while from < end {
            let mut argument = ScanArgument {
                size: size_of::<ScanArgument>() as u64,
                flags,
                start: from,
                end,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: AT_ONCE as u64,
                category_mask: wanted,
                return_mask: wanted,
                ..ScanArgument::default()
            };
            // SAFETY: the kernel reads and writes one argument of the size it is told, and at most
            // `vec_len` regions, which are plain integers and outlive the call.
            let count =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
            let Ok(count) = usize::try_from(count) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            };
            for region in regions.iter().take(count) {
                see(Stretch { start: region.start, end: region.end });
            }
            // Where the walk stopped: the end, or where the vector was full.
            from = argument.walk_end.max(from + PAGE_SIZE);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_its_bits_say() {
        let page =
            |present, swapped, write_protected| HostPage { present, swapped, write_protected };
        assert_eq!(HostPage::of(0), page(false, false, false));
        assert_eq!(HostPage::of(1 << 63 | 1 << 57), page(true, false, true));
        assert_eq!(HostPage::of(1 << 62), page(false, true, false));
        // A write-protected page that was dropped: the mark is kept in a swap entry.
        assert_eq!(HostPage::of(1 << 62 | 1 << 57), page(false, true, true));
    }

    #[test]
    fn a_page_of_ours_is_present_and_not_write_protected() {
        let word = Box::new(7u64);
        let page = (&raw const *word).addr() as u64;
        let pages = Pagemap::open().unwrap().read(page, 1).unwrap();
        assert!(pages[0].present && !pages[0].write_protected);
    }
}
