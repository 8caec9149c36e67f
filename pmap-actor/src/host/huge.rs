//! Huge pages: what this host can do, and why it cannot.
//!
//! *Transparent* ones are made where and when the pmap promotes a block of 2 MiB, with
//! `MADV_COLLAPSE` (Linux 6.1), which works whatever `shmem_enabled` says, save `deny`. *Reserved* ones are taken
//! from the pool an operator filled ([`HugePages::Reserved`]).

#![expect(unsafe_code, reason = "asks prctl and madvise, and makes a memfd")]

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::FromRawFd;
use std::path::Path;
use std::ptr;

use actors::{Gpa, PageSize};
use serde::Serialize;

use super::object;
use super::window::{MADV_COLLAPSE, Window, allocate};

/// Bytes of a huge page: one leaf above the last level.
pub const HUGE: u64 = PageSize::Size2MiB.bytes();

const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage";
const RESERVED: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// What backs a guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HugePages {
    /// Pages of 4 KiB; the pmap makes huge ones of them where it promotes a block.
    #[default]
    Transparent,
    /// Huge pages the operator reserved (`/proc/sys/vm/nr_hugepages`), taken for the whole guest
    /// at its start. Nothing of 4 KiB can be taken away from them, so such a guest is wired.
    Reserved,
}

/// What this host's transparent huge pages can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugeSupport {
    /// A block of which nothing exists can be allocated as one huge page at once (`object.rs`: we may mount a tmpfs, or
    /// `shmem_enabled` is `advise`, `within_size` or `always`). Else 512 pages are allocated and copied together,
    /// which takes about five times as long.
    pub at_once: bool,
}

/// Why this host has no transparent huge pages for guest memory.
#[derive(Debug, thiserror::Error)]
pub enum NoHugePages {
    /// Not in this kernel.
    #[error("this kernel has no transparent huge pages (CONFIG_TRANSPARENT_HUGEPAGE)")]
    Absent,
    /// Not the size of a leaf.
    #[error("this host's huge pages are of {bytes} bytes, and a superpage of a guest is of {HUGE}")]
    OtherSize {
        /// Theirs.
        bytes: u64,
    },
    /// Turned off for us.
    #[error("transparent huge pages are turned off for this process (PR_SET_THP_DISABLE)")]
    Disabled,
    /// Turned off for shared memory.
    #[error("huge pages of shared memory are turned off ({TRANSPARENT}/shmem_enabled is \"deny\")")]
    Denied,
    /// Too old.
    #[error(
        "this kernel cannot make huge pages of shared memory: MADV_COLLAPSE, which Linux 6.1 has, \
         is refused"
    )]
    NoCollapse,
    /// Anything else.
    #[error("huge pages could not be tried out: {0}")]
    Other(#[source] io::Error),
}

impl HugeSupport {
    /// Tries it out on two megabytes of its own: takes about a millisecond.
    ///
    /// # Errors
    ///
    /// [`NoHugePages`]: one sentence that says why.
    pub fn probe() -> Result<Self, NoHugePages> {
        Self::ask()?;
        let (file, at_once) = object::create().map_err(NoHugePages::Other)?;
        match try_it_out(&file, at_once).map_err(NoHugePages::Other)? {
            // No room now says nothing about what the kernel can do.
            Ok(()) => {}
            Err(error) if NotHuge::is_passing(&error) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(NoHugePages::NoCollapse);
            }
            Err(error) => return Err(NoHugePages::Other(error)),
        }
        Ok(Self { at_once })
    }

    /// What the kernel says, without a trial: for those who find out with the first block that they need. (A block that is refused then
    /// stays in small pages, and the refusal is counted.)
    pub(crate) fn ask() -> Result<(), NoHugePages> {
        let size = fs::read_to_string(format!("{TRANSPARENT}/hpage_pmd_size"));
        let size = size.map_err(|_| NoHugePages::Absent)?;
        match size.trim().parse() {
            Ok(HUGE) => {}
            Ok(bytes) => return Err(NoHugePages::OtherSize { bytes }),
            Err(_) => return Err(NoHugePages::Absent),
        }
        // SAFETY: no pointers are involved.
        if unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } == 1 {
            return Err(NoHugePages::Disabled);
        }
        if chosen(&read(&format!("{TRANSPARENT}/shmem_enabled"))) == "deny" {
            return Err(NoHugePages::Denied);
        }
        // Advice is checked before the range is, and an empty range is none.
        // SAFETY: nothing is advised about.
        if unsafe { libc::madvise(ptr::null_mut(), 0, MADV_COLLAPSE) } != 0 {
            return Err(NoHugePages::NoCollapse);
        }
        Ok(())
    }

    /// Whether `shmem_enabled` lets memfds have huge pages where they are advised.
    pub(super) fn is_advice_taken_by_memfds() -> bool {
        // Linux 6.8 can override the old setting by size; "inherit" means the old one.
        let by_size = read(&format!("{TRANSPARENT}/hugepages-2048kB/shmem_enabled"));
        let general = read(&format!("{TRANSPARENT}/shmem_enabled"));
        allows_advice(chosen(&by_size), chosen(&general))
    }
}

/// Whether two megabytes of pages can be made one page; the outer error is about making them.
fn try_it_out(file: &File, at_once: bool) -> io::Result<io::Result<()>> {
    file.set_len(HUGE)?;
    let window = Window::new(file, 0, HUGE)?;
    if at_once {
        // Cheaper to collapse; and if it fails, small ones come next.
        let _ = window.populate_huge();
    }
    allocate(file, libc::FALLOC_FL_KEEP_SIZE, 0, HUGE)?;
    Ok(window.collapse())
}

/// A memory object without a name in any file system; `flags` beyond `MFD_CLOEXEC`.
pub(super) fn memfd(name: &CStr, flags: libc::c_uint) -> io::Result<File> {
    // SAFETY: the name is a C string; no other pointers are involved.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was just created and nobody else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A file of sysfs; nothing where there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The word in brackets: how sysfs marks a choice.
fn chosen(text: &str) -> &str {
    text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(word, _)| word)
}

fn allows_advice(by_size: &str, general: &str) -> bool {
    match (by_size, general) {
        (_, "deny") => false,
        (_, "force") => true,
        ("inherit" | "", general) => matches!(general, "always" | "within_size" | "advise"),
        (by_size, _) => matches!(by_size, "always" | "within_size" | "advise"),
    }
}

/// Why a block did not become huge. Everything is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotHuge {
    /// [`NoHugePages`], or memory of another kind.
    Unsupported,
    /// It is not an aligned block, or its frames are not.
    Misplaced,
    /// The host mapping lacks a page of it.
    NotMapped(Gpa),
    /// A page of it may not be written.
    WriteProtected(Gpa),
    /// Asked for a fresh block, and a page of it exists.
    Occupied,
    /// The host has no 2 MiB in one piece, or no memory at all.
    NoMemory,
    /// A page of it is in use by the kernel (I/O, for one): later it may work.
    Busy,
    /// The host's own reason, by its number.
    Refused(i32),
}

impl NotHuge {
    /// The cause, from what the host said.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM | libc::ENOSPC) => Self::NoMemory,
            // `EBUSY` is a memory cgroup that is full.
            Some(libc::EBUSY) => Self::NoMemory,
            Some(libc::EAGAIN) => Self::Busy,
            other => Self::Refused(other.unwrap_or(0)),
        }
    }

    fn is_passing(error: &io::Error) -> bool {
        matches!(Self::of(error), Self::NoMemory | Self::Busy)
    }

    /// One word for counting by cause.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Misplaced => "misplaced",
            Self::NotMapped(_) => "not mapped by the host",
            Self::WriteProtected(_) => "write-protected by the host",
            Self::Occupied => "occupied",
            Self::NoMemory => "no memory",
            Self::Busy => "busy",
            Self::Refused(_) => "refused by the host",
        }
    }
}

impl fmt::Display for NotHuge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported => out.write_str("this host has no huge pages for it"),
            Self::Misplaced => out.write_str("it is not an aligned block of 2 MiB"),
            Self::NotMapped(at) => write!(out, "the host does not map its page at {at}"),
            Self::WriteProtected(at) => write!(out, "its page at {at} is write-protected"),
            Self::Occupied => out.write_str("a page of it exists already"),
            Self::NoMemory => out.write_str("the host has no 2 MiB in one piece to spare"),
            Self::Busy => out.write_str("the kernel is using a page of it"),
            Self::Refused(number) => {
                write!(out, "the host refused: {}", io::Error::from_raw_os_error(*number))
            }
        }
    }
}

fn pool(name: &str) -> Option<u64> {
    let text = fs::read_to_string(Path::new(RESERVED).join(name)).ok()?;
    text.trim().parse().ok()
}

/// Huge pages of 2 MiB in the operator's pool that nobody has taken or been promised: `None` where
/// this kernel has no such pool.
#[must_use]
pub fn free_reserved() -> Option<u64> {
    Some(pool("free_hugepages")?.saturating_sub(pool("resv_hugepages")?))
}

/// Those that somebody has, or was promised.
#[must_use]
pub fn taken_reserved() -> u64 {
    let free = free_reserved().unwrap_or(0);
    pool("nr_hugepages").map_or(0, |all| all.saturating_sub(free))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_trial_shows_the_kernel_says_without_one() {
        assert_eq!(HugeSupport::ask().is_ok(), HugeSupport::probe().is_ok());
    }

    #[test]
    fn a_choice_is_the_word_in_brackets() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), "never");
        assert_eq!(chosen("always [inherit] never\n"), "inherit");
        assert_eq!(chosen(""), "");
    }

    #[test]
    fn advice_counts_where_the_size_or_what_it_inherits_from_allows_it() {
        assert!(allows_advice("inherit", "advise") && allows_advice("", "always"));
        assert!(!allows_advice("inherit", "never"));
        assert!(allows_advice("advise", "never") && !allows_advice("never", "always"));
        assert!(!allows_advice("always", "deny") && allows_advice("never", "force"));
    }

    #[test]
    fn a_host_that_is_full_is_told_from_one_that_is_busy_and_one_that_cannot() {
        let cause = |number| NotHuge::of(&io::Error::from_raw_os_error(number));
        assert_eq!(cause(libc::ENOMEM), NotHuge::NoMemory);
        assert_eq!(cause(libc::EBUSY), NotHuge::NoMemory);
        assert_eq!(cause(libc::EAGAIN), NotHuge::Busy);
        assert_eq!(cause(libc::EINVAL), NotHuge::Refused(libc::EINVAL));
    }

    #[test]
    fn a_host_says_what_it_can_do_or_why_it_cannot() {
        match HugeSupport::probe() {
            Ok(_) => {}
            Err(why) => assert!(why.to_string().len() > 20),
        }
    }
}
