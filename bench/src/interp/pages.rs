//! Memory in pages of 4 KiB, whatever the host would rather use; and clocks of cpu time.

#![expect(unsafe_code, reason = "maps memory for loops and guests, and reads two clocks")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::time::Duration;

use soft_cpu::guest_memory::{HostPage, PAGE};

/// Anonymous memory of this process, without huge pages.
///
/// # Invariants
///
/// `base .. base + bytes` is mapped, readable and writable, from here to the end of the value's life; it starts on a
/// page. No reference into it is made while a guest or a loop may write there.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it is memory; whoever has it decides who touches it.
unsafe impl Send for Pages {}
// SAFETY: as above: a shared reference gives addresses only.
unsafe impl Sync for Pages {}

impl Pages {
    /// So many bytes, a multiple of the page's size, all zero. Nothing is allocated before it is touched.
    pub(crate) fn new(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping wherever the kernel likes; nothing of ours is replaced.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: exactly what was mapped. A kernel without huge pages refuses, and needs no advice.
        let _refused = unsafe { libc::madvise(base, bytes, libc::MADV_NOHUGEPAGE) };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self { base, bytes })
    }

    pub(crate) fn address(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Copies `from` to `offset`.
    ///
    /// # Panics
    ///
    /// When it does not fit.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) {
        let offset = usize::try_from(offset).expect("an offset in memory");
        assert!(offset.checked_add(from.len()).is_some_and(|end| end <= self.bytes));
        let to = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: inside the mapping, as asserted; `from` is a reference and cannot lie there.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
    }

    /// The page at `offset`; nothing beyond the end. Use it no longer than the value.
    pub(crate) fn page(&self, offset: u64) -> Option<HostPage> {
        let offset = usize::try_from(offset & !(PAGE - 1)).ok()?;
        if offset >= self.bytes {
            return None;
        }
        // SAFETY: a page of the mapping, which stays while `self` does.
        Some(unsafe { HostPage::new(self.base.as_ptr().wrapping_add(offset)) })
    }

    /// Lets code run there that was written before.
    pub(crate) fn make_executable(&self) -> io::Result<()> {
        let access = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: our own mapping; from now on nobody writes there.
        match unsafe { libc::mprotect(self.base.as_ptr().cast(), self.bytes, access) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped; nobody can reach it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

fn clock(which: libc::clockid_t) -> io::Result<Duration> {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the kernel fills `time`.
    if unsafe { libc::clock_gettime(which, time.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a valid time, and the kernel has filled it since.
    let time = unsafe { time.assume_init() };
    let seconds = u64::try_from(time.tv_sec).map_err(io::Error::other)?;
    Ok(Duration::from_secs(seconds) + Duration::from_nanos(time.tv_nsec.unsigned_abs()))
}

/// How long the calling thread has been executing.
pub(crate) fn own_cpu_time() -> io::Result<Duration> {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// How long another process has been executing, as of the scheduler's last look: a few milliseconds old where it is
/// executing now.
pub(crate) fn cpu_time_of(process: u32) -> io::Result<Duration> {
    let process = libc::pid_t::try_from(process).map_err(io::Error::other)?;
    let mut which = 0;
    // SAFETY: the C library fills `which`.
    match unsafe { libc::clock_getcpuclockid(process, &raw mut which) } {
        0 => clock(which),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// How long another thread of this process has been executing.
pub(crate) fn cpu_time_of_thread(thread: i32) -> io::Result<Duration> {
    // A clock's number: the thread's, inverted, above three bits that say "of one thread" (4) and "as the scheduler
    // counts" (2). See `posix-timers.h` of the kernel; the C library makes them the same way.
    clock(!thread << 3 | 6)
}

/// Calls the function at `code`, which keeps System V's rules.
///
/// # Safety
///
/// Code begins there that returns, keeps what a function must keep, and touches no memory but its stack and
/// the arena at `second`, as large as it takes it to be.
pub(crate) unsafe fn call(code: *const u8, first: u64, second: *mut u8) {
    // SAFETY: the caller says that a function of this kind begins there.
    let function: extern "sysv64" fn(u64, *mut u8) = unsafe { std::mem::transmute(code) };
    function(first, second);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_and_beyond_the_end_is_nothing() {
        let pages = Pages::new(2 * PAGE).unwrap();
        pages.write(PAGE + 8, &[1, 2, 3, 4]);
        let page = pages.page(PAGE + 123).unwrap();
        assert_eq!(page.at(8).load::<soft_cpu::width::B4>(), 0x0403_0201);
        assert!(pages.page(2 * PAGE).is_none());
    }

    #[test]
    fn cpu_time_of_this_process_is_not_less_than_that_of_this_thread() {
        let own = own_cpu_time().unwrap();
        assert!(cpu_time_of(std::process::id()).unwrap() >= own);
        assert!(cpu_time_of_thread(crate::kernel::own_tid()).unwrap() >= own);
    }
}
