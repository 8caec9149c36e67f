//! The signal that brings a vcpu's thread out of the kernel.
//!
//! It is SIGURG. A *standard* signal is pending once or not at all and can always be sent; a
//! real-time one is queued, and refused with EAGAIN when the user's queue
//! (`RLIMIT_SIGPENDING`) is full, which would be a lost knock. Of the standard signals SIGURG is the
//! one whose default is to be ignored, so that a stray one never ends the process.

#![expect(unsafe_code, reason = "signals are system calls without a safe wrapper in std")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::LazyLock;
use std::sync::OnceLock;

/// The signal.
const KICK: libc::c_int = libc::SIGURG;

/// Why vcpus cannot be knocked on in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    /// The program that embeds us uses the signal.
    #[error("SIGURG, which brings vcpus out of the guest, has another handler in this process")]
    Taken,
    /// The operating system refused.
    #[error("the handler that brings vcpus out of the guest cannot be installed: errno {0}")]
    Refused(i32),
}

/// A handler's only task is to exist: a signal that is handled interrupts a system call.
extern "C" fn nothing(_: libc::c_int) {}

/// Installs the handler, once per process.
pub(super) fn install() -> Result<(), SignalError> {
    static INSTALLED: OnceLock<Result<(), SignalError>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        let mut old = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: a query; `old` has room for the answer.
        if unsafe { libc::sigaction(KICK, ptr::null(), old.as_mut_ptr()) } != 0 {
            return Err(SignalError::Refused(errno()));
        }
        // SAFETY: the query above succeeded, so it is filled.
        let old = unsafe { old.assume_init() };
        if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN {
            return Err(SignalError::Taken);
        }
        // SAFETY: all zeroes is a valid `sigaction`: no flags (so no SA_RESTART), empty mask.
        let mut new: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let handler: extern "C" fn(libc::c_int) = nothing;
        new.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: `new` is valid, and the handler may interrupt anything, for it does nothing.
        if unsafe { libc::sigaction(KICK, &raw const new, ptr::null_mut()) } != 0 {
            return Err(SignalError::Refused(errno()));
        }
        Ok(())
    })
}

/// The calling thread's id, as the kernel counts.
pub(super) fn own_tid() -> i32 {
    // SAFETY: no arguments, no pointers.
    unsafe { libc::gettid() }
}

/// Sends the signal to one thread of this process. Says whether there was such a thread.
///
/// A thread id that was reused meanwhile belongs to this process all the same, and the handler does
/// nothing: the worst that happens is one interrupted system call.
pub(super) fn send(tid: i32) -> bool {
    // Asked once: it is a system call of its own, and a process keeps its number.
    static PROCESS: LazyLock<u32> = LazyLock::new(std::process::id);
    // SAFETY: no pointers are involved.
    unsafe { libc::syscall(libc::SYS_tgkill, *PROCESS, tid, KICK) == 0 }
}

/// Whether the calling thread can be interrupted by the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// At any time.
    Open,
    /// Never, unless a system call opens the door while it runs.
    Blocked,
}

/// Sets that for the calling thread.
pub(super) fn deliver(delivery: Delivery) -> io::Result<()> {
    let how = match delivery {
        Delivery::Open => libc::SIG_UNBLOCK,
        Delivery::Blocked => libc::SIG_BLOCK,
    };
    let set = only_the_kick();
    // SAFETY: `set` is an initialised signal set; the old one is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Takes a pending signal away, if there is one. The calling thread must have it blocked.
pub(super) fn consume() {
    let set = only_the_kick();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers lead to initialised values; no information about the signal is asked
    // for. EAGAIN means that none was pending, which is as good.
    unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const now) };
}

/// The calling thread's blocked signals less the kick, as the kernel's 64-bit set: bit N-1 for
/// signal N. What `KVM_SET_SIGNAL_MASK` wants to be in force while the guest runs.
pub(crate) fn mask_for_the_guest() -> io::Result<[u8; 8]> {
    let mut blocked: u64 = 0;
    // SAFETY: the kernel writes 8 bytes, the size of its signal set, into `blocked`; nothing is changed
    // as the new set is null. (The raw system call, for libc's set is 128 bytes.)
    let failed = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            ptr::null::<u64>(),
            &raw mut blocked,
            size_of::<u64>(),
        )
    };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((blocked & !(1 << (KICK - 1))).to_ne_bytes())
}

fn only_the_kick() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` has room for a signal set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `set` was initialised above, and KICK is a signal.
    unsafe { libc::sigaddset(set.as_mut_ptr(), KICK) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[cfg(test)]
pub(super) mod tests {
    use actors::threads::spawn;
    use actors::{ActorName, VcpuId};

    use super::*;

    fn on_a_thread_of_its_own(body: impl FnOnce() + Send + 'static) {
        let (tell, hear) = crossbeam_channel::bounded(1);
        let ended = move |_, ending| tell.send(ending).unwrap();
        spawn(ActorName::Vcpu(VcpuId(0)), ended, body).unwrap().join();
        assert_eq!(hear.recv().unwrap(), actors::threads::Ending::Returned);
    }

    #[test]
    fn a_blocked_signal_waits_until_it_is_consumed() {
        on_a_thread_of_its_own(|| {
            install().unwrap();
            deliver(Delivery::Blocked).unwrap();
            for _ in 0..3 {
                assert!(send(own_tid()));
            }
            assert!(is_pending());
            consume();
            assert!(!is_pending(), "a standard signal is pending once");
            consume();
        });
    }

    #[test]
    fn a_signal_can_be_sent_however_many_are_pending_already() {
        on_a_thread_of_its_own(|| {
            install().unwrap();
            deliver(Delivery::Blocked).unwrap();
            assert!((0..200_000).all(|_| send(own_tid())));
            consume();
        });
    }

    #[test]
    fn the_mask_for_the_guest_opens_the_door_for_the_kick_alone() {
        on_a_thread_of_its_own(|| {
            deliver(Delivery::Open).unwrap();
            let open = mask_for_the_guest().unwrap();
            deliver(Delivery::Blocked).unwrap();
            assert_eq!(mask_for_the_guest().unwrap(), open);
        });
    }

    #[test]
    fn a_thread_that_does_not_exist_cannot_be_knocked_on() {
        // Linux never gives out the largest thread id there is.
        assert!(!send(i32::MAX));
    }

    pub(in crate::knock) fn is_pending() -> bool {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: `set` has room for the answer.
        unsafe { libc::sigpending(set.as_mut_ptr()) };
        // SAFETY: `set` is initialised, and KICK is a signal.
        unsafe { libc::sigismember(set.as_ptr(), KICK) == 1 }
    }
}
