//! Which cpus a thread may use, and the cheapest way to interrupt one.

#![expect(unsafe_code, reason = "affinity, scheduling and membarrier are bare system calls")]

use std::io;
use std::mem::MaybeUninit;

/// `MEMBARRIER_CMD_PRIVATE_EXPEDITED` and its registration (`linux/membarrier.h`).
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The calling thread's id, as the kernel counts.
pub(crate) fn own_tid() -> i32 {
    // SAFETY: no arguments, no pointers.
    unsafe { libc::gettid() }
}

/// The cpus that the calling thread may use, in ascending order.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel fills `set`, whose size it is told; 0 is the calling thread.
    checked(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: all zeroes is a valid set, and the kernel has filled it since.
    let set = unsafe { set.assume_init() };
    let size = usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)?;
    // SAFETY: every number is below the set's size.
    Ok((0..size).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Lets thread `tid` of this process (0: the calling one) use only `cpus`.
pub(crate) fn pin(tid: i32, cpus: &[usize]) -> io::Result<()> {
    // SAFETY: a set of plain bits; all zeroes is the empty one.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)?;
    for &cpu in cpus.iter().filter(|cpu| **cpu < size) {
        // SAFETY: `cpu` is below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: the kernel reads `set`, whose size it is told.
    checked(unsafe { libc::sched_setaffinity(tid, size_of_val(&set), &raw const set) })
}

/// Lets the calling thread run only where nobody else wants to (`SCHED_IDLE`).
pub(crate) fn run_only_when_idle() -> io::Result<()> {
    // SAFETY: all zeroes is what this policy wants.
    let parameters: libc::sched_param = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel reads `parameters`; 0 is the calling thread.
    checked(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) })
}

fn membarrier_command(command: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers are involved.
    if unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Announces that this process will use [`membarrier`].
pub(crate) fn register_membarrier() -> io::Result<()> {
    membarrier_command(REGISTER_PRIVATE_EXPEDITED)
}

/// Interrupts every cpu on which a thread of this process is running, and waits for all of
/// them: the least the kernel needs to interrupt another cpu on our behalf.
pub(crate) fn membarrier() -> io::Result<()> {
    membarrier_command(PRIVATE_EXPEDITED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_what_it_was_given_and_nothing_else() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let all = allowed_cpus().unwrap();
                let last = *all.last().unwrap();
                pin(0, &[last]).unwrap();
                assert_eq!(allowed_cpus().unwrap(), [last]);
            });
        });
    }

    #[test]
    fn a_cpu_that_no_set_has_room_for_is_an_error_not_a_panic() {
        assert!(pin(0, &[usize::MAX]).is_err());
    }
}
