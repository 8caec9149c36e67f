//! Vcpus that outnumber the host's processors.
//!
//! Linux lets a thread that wakes take the processor from the one that runs, when it has slept longer than its share. Where both
//! are vcpus of one guest that is the wrong moment: what woke the sleeper was an interrupt from the other, who sent it in the middle of
//! something and mostly with the lock held that the sleeper wants first. The sleeper then spins until the next tick, and the
//! other stands still. (Processors with pause-loop exits tell the hypervisor; not all have them.) So the vcpus of such a
//! guest are `SCHED_BATCH` (sched(7)): a wake-up waits until the other halts, or its turn is over. All other threads of ours, the pmap's above all,
//! go on preempting them.
//!
//! The price is an interrupt that comes up to a turn later, to a vcpu whose processor another thread is using: where
//! every vcpu can have a processor there is nothing to win, and nothing is changed.
//!
//! Measured in `bench/README.md`, "Vcpus that share a processor".

#![expect(unsafe_code, reason = "asks for another scheduling policy")]

use std::io;

/// How the vcpus of a guest come to their processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turns {
    /// As all threads do.
    Any,
    /// None interrupts another: there are more of them than processors.
    ToTheEnd,
}

impl Turns {
    /// What `vcpus` vcpus do on this host.
    #[must_use]
    pub fn of(vcpus: usize) -> Self {
        if vcpus == 1 {
            return Self::Any;
        }
        // The processors we may use, which are fewer than there are under `taskset` or in a cgroup.
        let processors = std::thread::available_parallelism();
        if processors.is_ok_and(|processors| vcpus > processors.get()) {
            Self::ToTheEnd
        } else {
            Self::Any
        }
    }

    /// For the calling thread. A policy that somebody chose for it (`chrt`) stays.
    ///
    /// # Errors
    ///
    /// The operating system's (a sandbox may forbid the call): the guest runs all the same.
    pub(crate) fn take_here(self) -> io::Result<()> {
        if self == Self::Any || policy() != libc::SCHED_OTHER {
            return Ok(());
        }
        let none = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameters are read during the call only; 0 is this thread.
        match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// This thread's.
fn policy() -> libc::c_int {
    // SAFETY: no pointers are involved.
    unsafe { libc::sched_getscheduler(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The policy of a thread of its own that took its turns so.
    fn after(turns: Turns) -> libc::c_int {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                turns.take_here().unwrap();
                policy()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn only_vcpus_that_outnumber_the_processors_wait_for_the_end_of_a_turn() {
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(Turns::of(processors), Turns::Any);
        assert_eq!(Turns::of(processors + 1), Turns::ToTheEnd);
    }

    #[test]
    fn who_does_not_interrupt_others_is_a_batch_thread_and_only_that_thread() {
        let ours = policy();
        assert_eq!(after(Turns::Any), ours);
        // Unless the tests themselves were given a policy, which stays.
        let expected = if ours == libc::SCHED_OTHER { libc::SCHED_BATCH } else { ours };
        assert_eq!(after(Turns::ToTheEnd), expected);
        assert_eq!(policy(), ours);
    }
}
