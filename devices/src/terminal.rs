//! The operator's terminal, while the guest has it.
//!
//! [`RawTerminal`] hands keys to the guest as they are typed, unechoed; dropping it gives
//! the terminal back. So does the end of the process by `exit`, and [`restore`], for the
//! one way out that runs no destructors (a second Ctrl-C). Panics unwind, so they drop it.
//!
//! Two things stay with the terminal. Ctrl-C still raises SIGINT, so that a guest that does
//! not react can be ended. And output is still processed: messages on stderr keep their
//! line ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Once;

use parking_lot::Mutex;

use crate::sys::{Settings, SignalSet, at_exit, duplicate, is_in_foreground, is_terminal};

/// What to type, for `--help`.
pub const KEYS_HELP: &str = "\
Keys, when stdin is a terminal:
  Ctrl-C      end the run; once more: end it at once
  Ctrl-A x    end the run, too
  Ctrl-A c    send Ctrl-C to the guest
  Ctrl-A a    send Ctrl-A to the guest";

/// How the terminal was before the guest got it. One per process: there is one terminal.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);

struct Before {
    terminal: OwnedFd,
    settings: Settings,
}

/// The guest has the terminal. Dropping this gives it back.
#[derive(Debug)]
#[must_use = "dropping it gives the terminal back at once"]
pub struct RawTerminal {
    _private: (),
}

impl RawTerminal {
    /// Gives `terminal` to the guest. `None` if it is no terminal, if this process is in
    /// its background (a change would stop the process), or if the guest has one already.
    ///
    /// # Errors
    ///
    /// The terminal's, when it refuses.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        if !is_terminal(terminal) || !is_in_foreground(terminal) {
            return Ok(None);
        }
        let mut before = BEFORE.lock();
        if before.is_some() {
            return Ok(None);
        }
        let settings = Settings::of(terminal)?;
        let keep = terminal.try_clone_to_owned()?;
        raw(settings).apply(terminal)?;
        *before = Some(Before { terminal: keep, settings });
        static ONCE: Once = Once::new();
        ONCE.call_once(|| at_exit(restore));
        Ok(Some(Self { _private: () }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if the guest has it. May be called at any time, any number of
/// times; the last resort before `_exit`.
pub extern "C" fn restore() {
    if let Some(before) = BEFORE.lock().take() {
        // From the background (a shell has taken the terminal back meanwhile) a change is
        // only allowed to those who keep SIGTTOU out; the others are stopped by it.
        let mask = SignalSet::of(&[libc::SIGTTOU]).block();
        // A terminal that is gone cannot be mended, and needs not be.
        drop(before.settings.apply(before.terminal.as_fd()));
        drop(mask.and_then(|mask| mask.set()));
    }
}

/// `settings`, changed for a guest.
fn raw(mut settings: Settings) -> Settings {
    let fields = settings.fields();
    // No lines, no echo, and no keys with a meaning of their own (Ctrl-V, Ctrl-O)...
    fields.c_lflag &= !(libc::ICANON | libc::ECHO | libc::IEXTEN);
    // ...but for Ctrl-C: signals stay on, without those of Ctrl-\ and Ctrl-Z.
    fields.c_cc[libc::VQUIT] = libc::_POSIX_VDISABLE;
    fields.c_cc[libc::VSUSP] = libc::_POSIX_VDISABLE;
    // Return arrives as a carriage return, as from a serial line; Ctrl-S does not stop us.
    fields.c_iflag &= !(libc::ICRNL | libc::INLCR | libc::IGNCR | libc::IXON | libc::ISTRIP);
    fields.c_cc[libc::VMIN] = 1;
    fields.c_cc[libc::VTIME] = 0;
    settings
}

/// This process's stdin, as a descriptor of our own.
///
/// # Errors
///
/// The operating system's, when it is out of file descriptors.
pub(crate) fn standard_input() -> io::Result<OwnedFd> {
    duplicate(libc::STDIN_FILENO)
}

/// This process's stdout, as a descriptor of our own.
pub(crate) fn standard_output() -> io::Result<OwnedFd> {
    duplicate(libc::STDOUT_FILENO)
}

/// The key that announces a word to us, not to the guest.
const PREFIX: u8 = 0x01; // Ctrl-A
const CTRL_C: u8 = 0x03;

/// What was typed, told apart from what was meant for us.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    /// The last key was the prefix.
    prefixed: bool,
}

/// "End the run."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EndWanted;

impl Keys {
    /// Appends what is for the guest to `guest`. A prefix followed by a key without a
    /// meaning is swallowed with it.
    pub(crate) fn sort(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<EndWanted> {
        let mut end = None;
        for &key in typed {
            match (std::mem::take(&mut self.prefixed), key) {
                (false, PREFIX) => self.prefixed = true,
                (false, key) => guest.push(key),
                (true, b'x') => end = Some(EndWanted),
                (true, b'a') => guest.push(PREFIX),
                (true, b'c') => guest.push(CTRL_C),
                (true, _) => {}
            }
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest gets of what is typed in these pieces, and whether the end is wanted.
    fn sorted(pieces: &[&[u8]]) -> (Vec<u8>, bool) {
        let mut keys = Keys::default();
        let mut guest = Vec::new();
        let mut end = false;
        for piece in pieces {
            end |= keys.sort(piece, &mut guest).is_some();
        }
        (guest, end)
    }

    #[test]
    fn plain_keys_are_for_the_guest() {
        let typed = b"ls\r\x1b[A\x1c\x1a";
        assert_eq!(sorted(&[typed]), (typed.to_vec(), false));
    }

    #[test]
    fn the_prefix_and_x_end_the_run_in_one_piece_or_two() {
        assert_eq!(sorted(&[b"a\x01xb"]), (b"ab".to_vec(), true));
        assert_eq!(sorted(&[b"a\x01", b"xb"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn the_prefix_sends_itself_and_ctrl_c() {
        assert_eq!(sorted(&[b"\x01a\x01c"]), (b"\x01\x03".to_vec(), false));
    }

    #[test]
    fn the_prefix_swallows_keys_without_a_meaning() {
        assert_eq!(sorted(&[b"\x01zx\x01\x01x"]), (b"xx".to_vec(), false));
    }
}
