//! Where the guest's input comes from.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use crate::sys;
use crate::terminal::{EndWanted, Keys, RawTerminal, standard_input};

/// Where the guest's input comes from.
#[derive(Debug)]
pub enum Input {
    /// Nowhere: nothing is ever typed.
    None,
    /// From a file, a pipe or a socket, until its end; or from a terminal, which the guest
    /// gets (see [`crate::terminal`]) until the console ends.
    Descriptor(OwnedFd),
}

impl Input {
    /// This process's stdin.
    ///
    /// # Errors
    ///
    /// The operating system's, when it is out of file descriptors.
    pub fn stdin() -> io::Result<Self> {
        standard_input().map(Self::Descriptor)
    }
}

/// Bytes read at once.
const CHUNK: usize = 1024;
/// Bytes that may be typed ahead of a guest that does not listen; what is typed beyond is
/// lost, as in any keyboard buffer.
const TYPE_AHEAD: usize = 4096;

/// An [`Input`], opened, with what was read and not yet taken.
pub(crate) struct Source {
    fd: Option<OwnedFd>,
    /// Somebody types, and some of it is for us.
    keyboard: Option<Keyboard>,
    pending: Vec<u8>,
}

struct Keyboard {
    keys: Keys,
    _raw: RawTerminal,
}

impl Source {
    pub(crate) fn open(input: Input) -> io::Result<Self> {
        let mut source = Self { fd: None, keyboard: None, pending: Vec::new() };
        let Input::Descriptor(fd) = input else {
            return Ok(source);
        };
        if sys::is_terminal(fd.as_fd()) {
            let Some(raw) = RawTerminal::enter(fd.as_fd())? else {
                // Somebody else's terminal, for now: reading it would stop this process.
                tracing::debug!("stdin is a terminal that others use: it is not read");
                return Ok(source);
            };
            source.keyboard = Some(Keyboard { keys: Keys::default(), _raw: raw });
        }
        source.fd = Some(fd);
        Ok(source)
    }

    /// The descriptor to wait for, or -1: a keyboard is always read, for the keys that are
    /// for us; anything else only as the guest takes it.
    pub(crate) fn readiness(&self) -> RawFd {
        match &self.fd {
            Some(fd) if self.keyboard.is_some() || self.pending.is_empty() => fd.as_raw_fd(),
            _ => -1,
        }
    }

    /// Reads what is there. Call when [`Self::readiness`] is readable.
    pub(crate) fn read(&mut self) -> Option<EndWanted> {
        let fd = self.fd.as_ref()?;
        let mut chunk = [0; CHUNK];
        match sys::read(fd.as_fd(), &mut chunk) {
            // The end, or a terminal that was hung up: nothing more will come.
            Ok(0) => self.fd = None,
            Ok(count) => return self.keep(&chunk[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => {
                tracing::debug!(%error, "stdin cannot be read any more");
                self.fd = None;
            }
        }
        None
    }

    fn keep(&mut self, bytes: &[u8]) -> Option<EndWanted> {
        let Some(keyboard) = &mut self.keyboard else {
            self.pending.extend_from_slice(bytes);
            return None;
        };
        let end = keyboard.keys.sort(bytes, &mut self.pending);
        self.pending.truncate(TYPE_AHEAD);
        end
    }

    /// Offers what was read to `taker`, which says how much of it was taken.
    pub(crate) fn offer(&mut self, taker: impl FnOnce(&[u8]) -> usize) {
        if !self.pending.is_empty() {
            let taken = taker(&self.pending).min(self.pending.len());
            self.pending.drain(..taken);
        }
    }
}
