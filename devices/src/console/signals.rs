//! The signals that mean "end the run", as something the console's thread reads.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::sys::{SignalSet, next_signal};

const WANTED: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// SIGTERM and SIGHUP that come this shortly after the first signal are the same wish:
/// coreutils' `timeout` sends its signal to the process and then to its group, and a
/// closing terminal is reported by the kernel and by the shell.
const SAME_WISH: Duration = Duration::from_millis(100);

/// SIGINT, SIGTERM and SIGHUP are kept out of this thread and of all that it starts from
/// now on. Dropping this lets them in again.
#[derive(Debug)]
#[must_use = "dropping it lets the signals end the process"]
pub struct BlockedSignals {
    before: SignalSet,
    /// A signal mask belongs to its thread.
    not_send: PhantomData<*const ()>,
}

/// Blocks SIGINT, SIGTERM and SIGHUP in the calling thread. Call it in `main`, before any
/// thread is started: threads inherit what is blocked, and a signal goes to whichever
/// thread lets it in.
///
/// # Errors
///
/// The operating system's.
pub fn block_signals() -> io::Result<BlockedSignals> {
    let before = SignalSet::of(&WANTED).block()?;
    Ok(BlockedSignals { before, not_send: PhantomData })
}

impl BlockedSignals {
    /// Where the blocked signals arrive instead. Hand it to the console.
    ///
    /// # Errors
    ///
    /// The operating system's, when it is out of file descriptors.
    pub fn inbox(&self) -> io::Result<SignalInbox> {
        Ok(SignalInbox { fd: SignalSet::of(&WANTED).descriptor()? })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Restoring a mask that the kernel gave out cannot fail.
        drop(self.before.set());
    }
}

/// The signals' inbox.
#[derive(Debug)]
pub struct SignalInbox {
    fd: OwnedFd,
}

impl SignalInbox {
    /// The next signal that has arrived.
    pub(crate) fn next(&self) -> Option<libc::c_int> {
        next_signal(self.fd.as_fd())
    }
}

impl AsRawFd for SignalInbox {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What to do about a wish for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Tell the machine.
    End,
    /// It has been told, and somebody is impatient.
    EndAtOnce,
    /// The same wish once more.
    Nothing,
}

/// How the wish for the end was expressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// By a person, at a keyboard.
    Key,
    /// By a program.
    Program,
}

impl Wish {
    pub(crate) fn of(signal: libc::c_int) -> Self {
        if signal == libc::SIGINT { Self::Key } else { Self::Program }
    }
}

/// Remembers whether the end was wished for before.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    first: Option<Instant>,
}

impl Wishes {
    pub(crate) fn hear(&mut self, wish: Wish, now: Instant) -> Answer {
        match (self.first, wish) {
            (None, _) => {
                self.first = Some(now);
                Answer::End
            }
            (Some(first), Wish::Program) if now.duration_since(first) < SAME_WISH => {
                Answer::Nothing
            }
            (Some(_), _) => Answer::EndAtOnce,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(wishes: &[(Wish, u64)]) -> Vec<Answer> {
        let start = Instant::now();
        let mut heard = Wishes::default();
        wishes
            .iter()
            .map(|&(wish, at)| heard.hear(wish, start + Duration::from_millis(at)))
            .collect()
    }

    #[test]
    fn the_second_ctrl_c_is_impatience_however_fast() {
        assert_eq!(answers(&[(Wish::Key, 0), (Wish::Key, 0)]), [Answer::End, Answer::EndAtOnce]);
    }

    #[test]
    fn a_program_that_signals_process_and_group_means_it_once() {
        assert_eq!(
            answers(&[(Wish::Program, 0), (Wish::Program, 1)]),
            [Answer::End, Answer::Nothing]
        );
    }

    #[test]
    fn a_program_that_comes_back_later_is_impatient() {
        assert_eq!(
            answers(&[(Wish::Program, 0), (Wish::Program, 100)]),
            [Answer::End, Answer::EndAtOnce]
        );
    }

    #[test]
    fn sigint_is_a_person_and_sigterm_a_program() {
        assert_eq!(Wish::of(libc::SIGINT), Wish::Key);
        assert_eq!(Wish::of(libc::SIGTERM), Wish::Program);
        assert_eq!(Wish::of(libc::SIGHUP), Wish::Program);
    }
}
