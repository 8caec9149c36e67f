//! Reading the files a guest begins with, none of which is trusted.
//!
//! Only regular files are read: a directory has no bytes, a pipe never ends its opening,
//! `/dev/zero` never ends at all. Headers are read once, checked, and *pinned*: whoever
//! copies the file afterwards sees the bytes that were checked even when somebody changes
//! the file meanwhile.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use actors::pulse::Pulse;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Which of the guest's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What is started.
    Kernel,
    /// The first file system.
    Initrd,
}

impl std::fmt::Display for Role {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
        })
    }
}

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The operating system would not open it.
    #[error("cannot open the {role} {}: {why}", .path.display())]
    Open {
        /// Which file.
        role: Role,
        /// Where it was expected.
        path: PathBuf,
        /// The operating system's reason.
        why: String,
    },
    /// A directory, a device, a pipe, a socket.
    #[error("the {role} {} is {kind}, not a file", .path.display())]
    NotAFile {
        /// Which file.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// What it is instead.
        kind: &'static str,
    },
    /// No bytes.
    #[error("the {role} {} is empty", .path.display())]
    Empty {
        /// Which file.
        role: Role,
        /// Where it is.
        path: PathBuf,
    },
    /// Reading failed half-way.
    #[error("cannot read the {role} {}: {why}", .path.display())]
    Read {
        /// Which file.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// The operating system's reason.
        why: String,
    },
    /// It ended before the length it had when it was opened.
    #[error("the {role} {} became shorter while it was read", .path.display())]
    Shrank {
        /// Which file.
        role: Role,
        /// Where it is.
        path: PathBuf,
    },
}

/// An open regular file with at least one byte.
#[derive(Debug)]
pub(crate) struct Input {
    role: Role,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Input {
    pub(crate) fn open(role: Role, path: &Path) -> Result<Self, InputError> {
        let open_error =
            |why: io::Error| InputError::Open { role, path: path.to_owned(), why: why.to_string() };
        // Without O_NONBLOCK, opening a pipe waits for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)
            .map_err(open_error)?;
        let metadata = file.metadata().map_err(open_error)?;
        if !metadata.is_file() {
            return Err(InputError::NotAFile {
                role,
                path: path.to_owned(),
                kind: kind_in_words(metadata.file_type()),
            });
        }
        if metadata.len() == 0 {
            return Err(InputError::Empty { role, path: path.to_owned() });
        }
        Ok(Self { role, path: path.to_owned(), file, len: metadata.len() })
    }

    /// Its length in bytes, when it was opened. Never 0.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `buffer` from `offset`, which must not end beyond the file.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), InputError> {
        self.file.read_exact_at(buffer, offset).map_err(|why| self.failed(&why))
    }

    /// The first `most` bytes, or the whole file if it is shorter.
    pub(crate) fn head(&self, most: u16) -> Result<Vec<u8>, InputError> {
        let most = u64::from(most).min(self.len);
        let mut bytes = vec![0; usize::try_from(most).expect("most came from 16 bits")];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn failed(&self, why: &io::Error) -> InputError {
        if why.kind() == ErrorKind::UnexpectedEof {
            return InputError::Shrank { role: self.role, path: self.path.clone() };
        }
        InputError::Read { role: self.role, path: self.path.clone(), why: why.to_string() }
    }

    /// A reader of the bytes before `end`, for copying into guest memory.
    pub(crate) fn reader(&self, end: u64, pulse: &Pulse) -> Pinned<'_> {
        Pinned {
            input: self,
            pulse: pulse.clone(),
            position: 0,
            end: end.min(self.len),
            pins: Vec::new(),
            trouble: None,
        }
    }
}

fn kind_in_words(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() {
        "a block device"
    } else {
        "a character device"
    }
}

/// Bytes that were read, and where they came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A file that ends at a chosen byte and whose pinned parts never change.
///
/// Fills what it is given as far as the file reaches: a kernel of more bytes than one
/// system call moves is no special case for its users.
#[derive(Debug)]
pub(crate) struct Pinned<'i> {
    input: &'i Input,
    pulse: Pulse,
    position: u64,
    end: u64,
    pins: Vec<Pin>,
    trouble: Option<io::Error>,
}

/// Between two signs of life at most this much is copied, in bytes.
const STRIDE: u64 = 4 << 20;

enum Piece<'p> {
    Pinned(&'p [u8]),
    File(usize),
    End,
}

impl Pinned<'_> {
    /// From now on the bytes of `pin` are read from it and not from the file.
    pub(crate) fn pin(&mut self, pin: Pin) {
        self.pins.push(pin);
    }

    /// The operating system's words for why a copy failed; `None` when it did not.
    pub(crate) fn trouble(&self) -> Option<InputError> {
        self.trouble.as_ref().map(|why| self.input.failed(why))
    }

    /// What the next at most `wanted` bytes come from.
    fn next_piece(&self, wanted: usize) -> Piece<'_> {
        let wanted = (wanted as u64).min(STRIDE).min(self.end.saturating_sub(self.position));
        if wanted == 0 {
            return Piece::End;
        }
        let mut free = wanted;
        for pin in &self.pins {
            match self.position.checked_sub(pin.offset) {
                Some(inside) if inside < pin.bytes.len() as u64 => {
                    let inside = usize::try_from(inside).expect("less than a slice's length");
                    let rest = &pin.bytes[inside..];
                    let most = usize::try_from(wanted).expect("at most a stride");
                    return Piece::Pinned(&rest[..rest.len().min(most)]);
                }
                Some(_) => {}
                None => free = free.min(pin.offset - self.position),
            }
        }
        Piece::File(usize::try_from(free).expect("at most a stride"))
    }

    fn go_on(&mut self, bytes: usize) {
        self.position += bytes as u64;
        self.pulse.beat();
    }

    fn remember(&mut self, why: &io::Error) {
        self.trouble = Some(io::Error::new(why.kind(), why.to_string()));
    }
}

impl Read for Pinned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = match self.next_piece(buffer.len()) {
            Piece::End => 0,
            Piece::Pinned(bytes) => {
                buffer[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            }
            Piece::File(most) => {
                let read = self.input.file.read_at(&mut buffer[..most], self.position);
                read.inspect_err(|why| self.remember(why))?
            }
        };
        self.go_on(bytes);
        Ok(bytes)
    }
}

impl Seek for Pinned<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Pinned<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        while done < buffer.len() {
            let bytes = match self.next_piece(buffer.len() - done) {
                Piece::End => break,
                Piece::Pinned(bytes) => {
                    buffer.subslice(done, bytes.len())?.copy_from(bytes);
                    bytes.len()
                }
                Piece::File(most) => {
                    let mut piece = buffer.subslice(done, most)?;
                    let mut file = &self.input.file;
                    let moved = file
                        .seek(SeekFrom::Start(self.position))
                        .map_err(VolatileMemoryError::IOError)
                        .and_then(|_| file.as_fd().read_volatile(&mut piece));
                    match moved {
                        Ok(0) => break,
                        Ok(bytes) => bytes,
                        Err(VolatileMemoryError::IOError(why))
                            if why.kind() == ErrorKind::Interrupted =>
                        {
                            continue;
                        }
                        Err(error) => {
                            if let VolatileMemoryError::IOError(why) = &error {
                                self.remember(why);
                            }
                            return Err(error);
                        }
                    }
                }
            };
            done += bytes;
            self.go_on(bytes);
        }
        if done < buffer.len() {
            self.remember(&ErrorKind::UnexpectedEof.into());
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &[u8]) -> Input {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Input::open(Role::Kernel, file.path()).unwrap()
    }

    #[test]
    fn a_reader_ends_where_it_was_told_to() {
        let input = input(b"kernel and signature");
        let mut reader = input.reader(6, &Pulse::default());
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"kernel");
        assert_eq!(reader.seek(SeekFrom::End(-2)).unwrap(), 4);
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 2);
        assert_eq!(reader.seek(SeekFrom::End(1000)).unwrap(), 1006);
        assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
        assert!(reader.seek(SeekFrom::Current(-1007)).is_err());
    }

    #[test]
    fn pinned_bytes_are_read_from_their_pins_wherever_one_begins_to_read() {
        let input = input(b"0123456789");
        let pins = [(2, b"ab"), (3, b"xy"), (7, b"cd")];
        for from in 0..10 {
            let mut reader = input.reader(10, &Pulse::default());
            for (offset, bytes) in pins {
                reader.pin(Pin { offset, bytes: bytes.to_vec() });
            }
            reader.seek(SeekFrom::Start(from)).unwrap();
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            // The first pin wins where two overlap.
            let expected = &b"01aby56cd9"[usize::try_from(from).unwrap()..];
            assert_eq!(bytes, expected, "from {from}");
        }
    }

    #[test]
    fn every_piece_is_a_sign_of_life() {
        let input = input(b"0123456789");
        let pulse = Pulse::default();
        let mut reader = input.reader(10, &pulse);
        let before = pulse.look();
        reader.read_exact(&mut [0; 10]).unwrap();
        assert_ne!(pulse.look(), before);
    }
}
