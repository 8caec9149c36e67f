//! Where the guest's output goes, without ever waiting for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::sys::{self, Kind, Writable};
use crate::terminal::standard_output;

/// A function that reads the guest's output.
pub type Reader = Box<dyn FnMut(&[u8]) + Send>;

/// Where the guest's output goes.
pub enum Output {
    /// Nowhere.
    Null,
    /// Into a file, a pipe, a terminal or a socket.
    Descriptor(OwnedFd),
    /// To a function of the caller's, in pieces, on the console's thread.
    Capture(Reader),
}

impl Output {
    /// This process's stdout.
    ///
    /// # Errors
    ///
    /// The operating system's, when it is out of file descriptors.
    pub fn stdout() -> io::Result<Self> {
        standard_output().map(Self::Descriptor)
    }

    /// Into a list of bytes, which may be looked at while the guest runs.
    #[must_use]
    pub fn collect() -> (Self, Arc<Mutex<Vec<u8>>>) {
        let all = Arc::new(Mutex::new(Vec::new()));
        let copy = all.clone();
        let capture = move |bytes: &[u8]| copy.lock().extend_from_slice(bytes);
        (Self::Capture(Box::new(capture)), all)
    }
}

/// Bytes that a pipe with room takes at once: one page, PIPE_BUF.
const PIPE_PIECE: usize = 4096;
/// Bytes that a terminal with room takes at once. Linux calls one writable when fewer than
/// 256 bytes wait, and promises nothing beyond.
const TERMINAL_PIECE: usize = 1;

/// What became of a piece.
#[derive(Debug)]
pub(crate) enum Written {
    /// So much of it was taken; at least one byte.
    Some(usize),
    /// Nothing can be taken now.
    NotNow,
    /// Nothing will ever be taken again.
    Never(io::Error),
}

/// How to write without waiting.
enum Way {
    Null,
    Capture(Reader),
    /// An open file of our own that does not wait.
    Private(OwnedFd),
    /// `send` has a flag for it.
    Socket(OwnedFd),
    /// Ask first, then write no more than surely fits. `usize::MAX` for what never waits.
    Careful {
        fd: OwnedFd,
        piece: usize,
    },
}

/// An [`Output`], opened.
pub(crate) struct Sink {
    way: Way,
    writable: Option<Writable>,
}

impl Sink {
    pub(crate) fn open(output: Output) -> io::Result<Self> {
        let way = match output {
            Output::Null => Way::Null,
            Output::Capture(function) => Way::Capture(function),
            Output::Descriptor(fd) => Way::of(fd)?,
        };
        let writable = match &way {
            Way::Null | Way::Capture(_) => None,
            Way::Private(fd) | Way::Socket(fd) | Way::Careful { fd, .. } => {
                Writable::watch(fd.as_fd())?
            }
        };
        Ok(Self { way, writable })
    }

    /// Nobody will ever see what is written.
    pub(crate) fn is_null(&self) -> bool {
        matches!(self.way, Way::Null)
    }

    /// A descriptor that is readable when a sink that said "not now" takes bytes again.
    pub(crate) fn readiness(&self) -> RawFd {
        self.writable.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// Writes some of `bytes`, which are not none.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Written {
        loop {
            let result = match &mut self.way {
                Way::Null => Ok(bytes.len()),
                Way::Capture(function) => {
                    function(bytes);
                    Ok(bytes.len())
                }
                Way::Private(fd) => sys::write(fd.as_fd(), bytes),
                Way::Socket(fd) => sys::send(fd.as_fd(), bytes),
                Way::Careful { fd, piece } => {
                    if sys::poll_now([fd.as_raw_fd()], libc::POLLOUT) == [0] {
                        return Written::NotNow;
                    }
                    sys::write(fd.as_fd(), &bytes[..bytes.len().min(*piece)])
                }
            };
            return match result {
                Ok(0) => Written::Never(io::ErrorKind::WriteZero.into()),
                Ok(count) => Written::Some(count),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => continue,
                    io::ErrorKind::WouldBlock => Written::NotNow,
                    _ => Written::Never(error),
                },
            };
        }
    }
}

impl Way {
    fn of(fd: OwnedFd) -> io::Result<Self> {
        let kind = sys::kind(fd.as_fd())?;
        let piece = match kind {
            Kind::Socket => return Ok(Self::Socket(fd)),
            // Opened once more, a file would begin at its beginning.
            Kind::Other => usize::MAX,
            Kind::Pipe => PIPE_PIECE,
            Kind::Terminal => TERMINAL_PIECE,
        };
        Ok(match kind {
            Kind::Pipe | Kind::Terminal => match sys::reopen_for_writing(fd.as_fd()) {
                Ok(private) => Self::Private(private),
                // Another user's, or /proc is not there.
                Err(_) => Self::Careful { fd, piece },
            },
            Kind::Socket | Kind::Other => Self::Careful { fd, piece },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where a pipe cannot be opened once more.
    fn careful(fd: OwnedFd) -> Sink {
        Sink {
            writable: Writable::watch(fd.as_fd()).unwrap(),
            way: Way::Careful { fd, piece: PIPE_PIECE },
        }
    }

    /// Writes until nothing is taken. Returns how much was.
    fn fill(sink: &mut Sink) -> usize {
        let mut all = 0;
        while let Written::Some(some) = sink.write(&[b'.'; 10_000]) {
            all += some;
        }
        all
    }

    fn is_readable(fd: RawFd) -> bool {
        sys::poll_now([fd], libc::POLLIN) != [0]
    }

    #[test]
    fn a_pipe_that_others_share_is_filled_without_waiting_for_its_reader() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = careful(writer.into());
        let all = fill(&mut sink);
        assert!(all > 0);
        assert!(matches!(sink.write(b"."), Written::NotNow));
        assert!(!is_readable(sink.readiness()));

        io::Read::read_exact(&mut reader, &mut vec![0; all]).unwrap();

        assert!(is_readable(sink.readiness()));
        assert!(matches!(sink.write(b"."), Written::Some(1)));
    }

    #[test]
    fn waiting_is_not_forbidden_to_those_who_share_the_pipe() {
        let (_reader, writer) = io::pipe().unwrap();
        let shared: OwnedFd = writer.into();
        let sink = Sink::open(Output::Descriptor(shared.try_clone().unwrap())).unwrap();
        assert!(matches!(sink.way, Way::Private(_)));
        assert!(sys::may_wait(shared.as_fd()));
    }

    #[test]
    fn a_pipe_without_a_reader_never_takes_anything() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut sink = Sink::open(Output::Descriptor(writer.into())).unwrap();
        let Written::Never(error) = sink.write(b".") else {
            panic!("written to nobody");
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
