//! The system calls of the console, each as a safe function.
//!
//! Nothing here decides anything: descriptors in, results out.

#![expect(
    unsafe_code,
    reason = "terminals, signal descriptors, timers and epoll have no safe wrapper in std"
)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// What kind of thing a descriptor is, as far as writing without waiting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pipe,
    Terminal,
    Socket,
    /// Files and devices that never make a writer wait for a reader.
    Other,
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Takes over a descriptor that the kernel has just handed out.
fn own(result: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the system call that returned `fd` has just created it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor of the process's own, by number, for as long as it stays open.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are involved; a number that is not open is refused.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })
}

pub(crate) fn read(fd: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `into` is writable for its whole length.
    check_len(unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) })
}

pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: `bytes` is readable for its whole length.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// Writes to a socket without waiting and without a SIGPIPE.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `bytes` is readable for its whole length.
    check_len(unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) })
}

pub(crate) fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers are involved.
    unsafe { libc::isatty(fd.as_raw_fd()) == 1 }
}

pub(crate) fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    if is_terminal(fd) {
        return Ok(Kind::Terminal);
    }
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` has room for what fstat writes.
    check(unsafe { libc::fstat(fd.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: fstat succeeded, so it has filled `stat`.
    let stat = unsafe { stat.assume_init() };
    Ok(match stat.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Pipe,
        libc::S_IFSOCK => Kind::Socket,
        _ => Kind::Other,
    })
}

/// Opens what `fd` is open on once more, for writing without waiting.
///
/// O_NONBLOCK belongs to the *open file*, which a terminal's stdout shares with the shell
/// and with our own stderr: setting it on `fd` would change theirs.
pub(crate) fn reopen_for_writing(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    let flags = libc::O_WRONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: `path` ends in a zero byte and outlives the call.
    own(unsafe { libc::open(path.as_ptr(), flags) })
}

/// Whether writing to `fd` waits when there is no room.
#[cfg(test)]
pub(crate) fn may_wait(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers are involved.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0 }
}

/// Which of `wanted` (or POLLERR, POLLHUP, POLLNVAL) each descriptor reports right now.
/// Negative descriptors report nothing.
pub(crate) fn poll_now<const N: usize>(fds: [RawFd; N], wanted: i16) -> [i16; N] {
    let mut list = fds.map(|fd| libc::pollfd { fd, events: wanted, revents: 0 });
    // SAFETY: `list` holds N initialised entries and outlives the call. The number fits.
    unsafe { libc::poll(list.as_mut_ptr(), N as libc::nfds_t, 0) };
    list.map(|polled| polled.revents)
}

/// A clock that can be waited for like a descriptor.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no pointers are involved.
        own(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) }).map(Self)
    }

    /// Rings once, `after` from now (rounded up to a nanosecond).
    pub(crate) fn ring_once(&self, after: Duration) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = libc::itimerspec {
            it_interval: zero,
            it_value: libc::timespec {
                tv_sec: libc::time_t::try_from(after.as_secs()).unwrap_or(libc::time_t::MAX),
                // Zero would disarm it.
                tv_nsec: i64::from(after.subsec_nanos()).max(1),
            },
        };
        // SAFETY: `setting` is initialised; no old setting is asked for. The call cannot fail
        // on a live timer with a valid time.
        unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), 0, &raw const setting, std::ptr::null_mut())
        };
    }

    /// Takes the ring out of it. Returns whether it had rung.
    pub(crate) fn hush(&self) -> bool {
        read(self.0.as_fd(), &mut [0; 8]).is_ok()
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor that is readable when another one takes output (or is broken).
#[derive(Debug)]
pub(crate) struct Writable(OwnedFd);

impl Writable {
    /// `None` where the kernel cannot wait for such a thing: a file, which never waits.
    pub(crate) fn watch(fd: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        // SAFETY: no pointers are involved.
        let epoll = own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        let mut event = libc::epoll_event {
            events: u32::try_from(libc::EPOLLOUT).expect("a small positive number"),
            u64: 0,
        };
        let (watcher, watched) = (epoll.as_raw_fd(), fd.as_raw_fd());
        // SAFETY: `event` is initialised and outlives the call.
        match check(unsafe {
            libc::epoll_ctl(watcher, libc::EPOLL_CTL_ADD, watched, &raw mut event)
        }) {
            Ok(_) => Ok(Some(Self(epoll))),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsRawFd for Writable {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A set of signals.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl std::fmt::Debug for SignalSet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("SignalSet")
    }
}

impl SignalSet {
    pub(crate) fn of(signals: &[libc::c_int]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` has room for a signal set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for &signal in signals {
            // SAFETY: `set` was initialised by sigemptyset.
            unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
        }
        // SAFETY: sigemptyset initialised it and cannot fail.
        Self(unsafe { set.assume_init() })
    }

    /// Adds these to what the calling thread keeps out. Returns what it kept out before.
    pub(crate) fn block(&self) -> io::Result<Self> {
        self.change(libc::SIG_BLOCK)
    }

    /// The calling thread keeps out exactly these.
    pub(crate) fn set(&self) -> io::Result<Self> {
        self.change(libc::SIG_SETMASK)
    }

    fn change(&self, how: libc::c_int) -> io::Result<Self> {
        let mut old = Self::of(&[]);
        // SAFETY: both sets are initialised and outlive the call.
        match unsafe { libc::pthread_sigmask(how, &raw const self.0, &raw mut old.0) } {
            0 => Ok(old),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// A descriptor that delivers these signals, as long as they are blocked.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: the set is initialised and outlives the call.
        own(unsafe { libc::signalfd(-1, &raw const self.0, flags) })
    }
}

/// The number of the next signal that waits in a signal descriptor.
pub(crate) fn next_signal(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    // The first field of `signalfd_siginfo` is the number, four bytes wide.
    let mut record = [0; size_of::<libc::signalfd_siginfo>()];
    if read(fd, &mut record).ok()? != record.len() {
        return None;
    }
    Some(libc::c_int::from_ne_bytes(*record.first_chunk()?))
}

/// A terminal's settings.
#[derive(Clone, Copy)]
pub(crate) struct Settings(libc::termios);

impl Settings {
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: `settings` has room for what tcgetattr writes.
        check(unsafe { libc::tcgetattr(fd.as_raw_fd(), settings.as_mut_ptr()) })?;
        // SAFETY: tcgetattr succeeded, so it has filled them.
        Ok(Self(unsafe { settings.assume_init() }))
    }

    pub(crate) fn apply(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: the settings are initialised and outlive the call.
        check(unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, &raw const self.0) })?;
        Ok(())
    }

    /// Change them by field.
    pub(crate) fn fields(&mut self) -> &mut libc::termios {
        &mut self.0
    }
}

/// Whether this process may read the terminal and change it: a process of the background
/// would be stopped for trying.
pub(crate) fn is_in_foreground(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: no pointers are involved.
    let owner = unsafe { libc::tcgetpgrp(fd.as_raw_fd()) };
    // SAFETY: as above.
    let ours = unsafe { libc::getpgrp() };
    // A terminal that is nobody's (not our controlling one) stops nobody.
    owner < 0 || owner == ours
}

/// Calls `farewell` when the process ends by `exit`.
pub(crate) fn at_exit(farewell: extern "C" fn()) {
    // SAFETY: `farewell` is a function without captures that lives as long as the process.
    unsafe { libc::atexit(farewell) };
}

/// Ends the process now: no destructors, no flushing.
pub(crate) fn exit_at_once(status: i32) -> ! {
    // SAFETY: ending a process is always sound.
    unsafe { libc::_exit(status) }
}
