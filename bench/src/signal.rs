//! The benchmark's own signal: SIGUSR1, whose handler counts.
//!
//! Not the one that skep's vcpus use: a reference must not lean on the subject.

#![expect(unsafe_code, reason = "signals are system calls without a safe wrapper in std")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

const SIGNAL: libc::c_int = libc::SIGUSR1;

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;

/// Handlers run so far, in the whole process.
static HANDLED: AtomicU64 = AtomicU64::new(0);

/// How often the handler ran so far.
pub(crate) fn handled() -> u64 {
    HANDLED.load(Ordering::Acquire)
}

extern "C" fn count(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Release);
}

/// How the signal reaches a vcpu's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Open all the time: the handler runs.
    Handler,
    /// Blocked except inside `KVM_RUN`: no handler runs, and the signal is taken afterwards.
    Mask,
}

/// Installs the handler. Doing it again changes nothing.
pub(crate) fn install() -> io::Result<()> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags (so no SA_RESTART), empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int) = count;
    action.sa_sigaction = handler as libc::sighandler_t;
    // SAFETY: `action` is valid, and its handler does nothing but one atomic addition.
    if unsafe { libc::sigaction(SIGNAL, &raw const action, ptr::null_mut()) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// This process, for [`send`].
pub(crate) fn own_process() -> i32 {
    // SAFETY: no pointers are involved.
    unsafe { libc::getpid() }
}

/// Sends the signal to one thread of this process.
pub(crate) fn send(process: i32, thread: i32) {
    // SAFETY: no pointers are involved. A thread that is gone needs no signal.
    unsafe { libc::syscall(libc::SYS_tgkill, process, thread, SIGNAL) };
}

/// Opens the calling thread to the signal, or closes it.
pub(crate) fn deliver(delivery: Delivery) -> io::Result<()> {
    let how = match delivery {
        Delivery::Handler => libc::SIG_UNBLOCK,
        Delivery::Mask => libc::SIG_BLOCK,
    };
    let set = only_ours();
    // SAFETY: `set` is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Opens the door to the signal while the vcpu behind `vcpu_fd` is in `KVM_RUN`, and only then.
/// The calling thread has it blocked.
pub(crate) fn open_inside_the_guest(vcpu_fd: libc::c_int) -> io::Result<()> {
    /// `kvm_signal_mask` with the kernel's eight bytes behind it.
    #[repr(C)]
    struct Mask {
        len: u32,
        set: [u8; 8],
    }
    let mut blocked: u64 = 0;
    // SAFETY: the kernel writes 8 bytes, the size of its signal set, into `blocked`; nothing is
    // changed as the new set is null.
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
    let mask = Mask { len: 8, set: (blocked & !(1 << (SIGNAL - 1))).to_ne_bytes() };
    // SAFETY: the kernel reads the length and as many bytes behind it as it says.
    match unsafe { libc::ioctl(vcpu_fd, KVM_SET_SIGNAL_MASK, &raw const mask) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a pending signal away, if there is one. The calling thread has it blocked.
pub(crate) fn consume() {
    let set = only_ours();
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both pointers lead to initialised values. EAGAIN: none was pending, as good.
    unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const now) };
}

fn only_ours() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` has room for a signal set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: `set` was initialised above, and SIGNAL is a signal.
    unsafe { libc::sigaddset(set.as_mut_ptr(), SIGNAL) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::own_tid;

    #[test]
    fn a_blocked_signal_is_consumed_without_its_handler() {
        let _turn = crate::ONE_AT_A_TIME.lock();
        install().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                deliver(Delivery::Mask).unwrap();
                send(own_process(), own_tid());
                consume();
                let before = handled();
                deliver(Delivery::Handler).unwrap();
                // Nothing was left, so opening the door let nothing in.
                assert_eq!(handled(), before);
                send(own_process(), own_tid());
                assert_eq!(handled(), before + 1);
            });
        });
    }
}
