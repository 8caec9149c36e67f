//! The swap file: a mark, then slots.
//!
//! ```text
//!   byte 0          4096        8192
//!   ├─ the mark ────┼─ slot 0 ──┼─ slot 1 ── ...
//! ```
//!
//! The mark says whose file it is, so that nobody else's is overwritten (`open.rs`). What the
//! slots hold is of no use after the run: which page is where, and every checksum, is known
//! only to the pmap that wrote them.
//!
//! Where the file system allows it, the host's page cache is passed by (`O_DIRECT`). The
//! cache would keep a second copy of just what was to leave memory; and it says that a write
//! is done before the disk was asked, so that a disk that is full or broken would be heard of
//! when the page is lost. That is why bytes travel in a [`RunBuffer`], which is aligned.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::swap::faulty::{FaultyIo, SwapFault};
use crate::swap::{PAGE_BYTES, Page, Slot, SwapError, open};

/// How the host reads and writes. The file does; tests have others.
pub trait SwapIo: Send + Sync {
    /// Reads some of what is at `offset`; 0 bytes at the end.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes some of `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// The operating system's.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
}

impl SwapIo for File {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, bytes, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }
}

/// Neither read nor written, because it has no slots.
struct Nothing;

impl SwapIo for Nothing {
    fn read_at(&self, _bytes: &mut [u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// How large the file is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes of pages, taken from the disk now.
    Reserved(u64),
    /// At most so many bytes of pages, taken from the disk as they are written.
    Sparse(u64),
}

impl Room {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Reserved(bytes) | Self::Sparse(bytes) => bytes,
        }
    }
}

/// Why there is no swap file.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A directory, a pipe, a terminal, ...
    #[error(
        "{} is {what}: swap needs a regular file, one that does not exist yet, or a block device",
        path.display()
    )]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// "a directory", "a pipe", ...
        what: &'static str,
    },
    /// It has contents, and they are not ours to overwrite.
    #[error(
        "{} is not empty, and skep did not make it: it is left alone; name another file for \
         swap, or empty this one first",
        path.display()
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// Another machine, or a mount, has it.
    #[error("{} is in use: two machines cannot share one swap file", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("there is no room for {bytes} bytes of swap in {}: {why}", path.display())]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// How many were asked for.
        bytes: u64,
        /// The operating system's reason.
        why: io::Error,
    },
    /// No slot fits.
    #[error("{bytes} bytes of swap are too few: one page and its mark take 8192")]
    TooSmall {
        /// How many there would be.
        bytes: u64,
    },
    /// Slots are counted in 32 bits.
    #[error("{bytes} bytes of swap are too many: the most are 16 TiB")]
    TooLarge {
        /// How many were asked for.
        bytes: u64,
    },
    /// The host refused something else.
    #[error("the host refused to {what} {}: {why}", path.display())]
    Host {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        why: io::Error,
    },
}

/// Space for neighbouring pages, aligned for `O_DIRECT`.
pub struct RunBuffer {
    bytes: Vec<u8>,
    start: usize,
    pages: usize,
}

impl RunBuffer {
    /// Zeroes.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let bytes = vec![0; (pages + 1) * PAGE_BYTES];
        // The vector never grows, so its bytes stay where they are.
        let start = bytes.as_ptr().align_offset(PAGE_BYTES);
        // The contract of `align_offset` lets it give up, though never on a page's bytes.
        Self { bytes, start: if start <= PAGE_BYTES { start } else { 0 }, pages }
    }

    /// Its pages.
    #[must_use]
    pub fn pages(&self) -> &[Page] {
        self.bytes[self.start..].as_chunks().0.get(..self.pages).unwrap_or_default()
    }

    /// Its pages.
    #[must_use]
    pub fn pages_mut(&mut self) -> &mut [Page] {
        self.bytes[self.start..].as_chunks_mut().0.get_mut(..self.pages).unwrap_or_default()
    }
}

/// An open swap file, ours alone until it is dropped. A file that took its room as it grew
/// is then cut back to its mark; one whose room was reserved, and a device, keep room and
/// contents. The next run may have it.
pub struct SwapFile {
    io: Box<dyn SwapIo>,
    /// The file, if it is to be cut back.
    sparse: Option<File>,
    path: PathBuf,
    slots: u32,
    bypasses_cache: bool,
}

impl SwapFile {
    /// Opens the file, or makes it, for nobody else to read; takes it for us alone; makes
    /// room in it. A file of skep's from an earlier run loses its contents; nobody else's file
    /// is changed.
    ///
    /// A device that is larger than `room` is used in part; one that is smaller is an error
    /// if the room was to be [`Room::Reserved`], and used whole otherwise.
    ///
    /// # Errors
    ///
    /// [`CreateError`].
    pub fn create(path: &Path, room: Room) -> Result<Self, CreateError> {
        let opened = open::open(path, room)?;
        Ok(Self {
            io: Box::new(opened.file),
            sparse: opened.sparse,
            path: path.to_owned(),
            slots: opened.slots,
            bypasses_cache: opened.bypasses_cache,
        })
    }

    /// No file, and no slots: for a machine whose pages only ever go to the compressed tier.
    #[must_use]
    pub fn none() -> Self {
        Self::over(Box::new(Nothing), 0)
    }

    /// A file of `slots` slots that is read and written by `io`. For tests.
    #[must_use]
    pub fn over(io: Box<dyn SwapIo>, slots: u32) -> Self {
        Self { io, sparse: None, path: PathBuf::from("(none)"), slots, bypasses_cache: false }
    }

    /// The same file, which fails as asked from the `after`th read or write on. For tests.
    #[must_use]
    pub fn breaking(mut self, fault: SwapFault, after: u64) -> Self {
        let inner = std::mem::replace(&mut self.io, Box::new(Nothing));
        self.io = Box::new(FaultyIo::new(inner, fault, after));
        self
    }

    /// As it was named.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many pages it can hold.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether reads and writes pass the host's page cache by.
    #[must_use]
    pub fn bypasses_cache(&self) -> bool {
        self.bypasses_cache
    }

    /// Reads the slots from `first` on, as many as there are `pages`.
    ///
    /// # Errors
    ///
    /// [`SwapError::Read`], [`SwapError::Truncated`], [`SwapError::NoSuchSlot`]; `pages` then
    /// hold nothing of use. What was read is not compared with anything: the caller has the
    /// checksums.
    pub fn read(&self, first: Slot, pages: &mut [Page]) -> Result<(), SwapError> {
        let start = self.offset(first, pages.len())?;
        let bytes = pages.as_flattened_mut();
        let mut done = 0;
        while done < bytes.len() {
            match self.io.read_at(&mut bytes[done..], start + done as u64) {
                Ok(0) => return Err(SwapError::Truncated { slot: slot_at(first, done) }),
                Ok(some) => done = (done + some).min(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Past the page cache a read ends within a block only at the end of the file,
                // and the rest of the block cannot be asked for.
                Err(error)
                    if error.raw_os_error() == Some(libc::EINVAL)
                        && !done.is_multiple_of(PAGE_BYTES) =>
                {
                    return Err(SwapError::Truncated { slot: slot_at(first, done) });
                }
                Err(error) => {
                    let slot = slot_at(first, done);
                    return Err(SwapError::Read { slot, why: error.to_string() });
                }
            }
        }
        Ok(())
    }

    /// Writes `pages` to the slots from `first` on.
    ///
    /// # Errors
    ///
    /// [`SwapError::Write`], [`SwapError::DiskFull`], [`SwapError::NoSuchSlot`]; the slots then
    /// hold nothing of use.
    pub fn write(&self, first: Slot, pages: &[Page]) -> Result<(), SwapError> {
        let start = self.offset(first, pages.len())?;
        let bytes = pages.as_flattened();
        let mut done = 0;
        while done < bytes.len() {
            match self.io.write_at(&bytes[done..], start + done as u64) {
                Ok(0) => {
                    let why = "not a byte was taken".to_owned();
                    return Err(SwapError::Write { slot: slot_at(first, done), why });
                }
                Ok(some) => done = (done + some).min(bytes.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let slot = slot_at(first, done);
                    return Err(match error.raw_os_error() {
                        Some(libc::ENOSPC | libc::EDQUOT) => SwapError::DiskFull { slot },
                        _ => SwapError::Write { slot, why: error.to_string() },
                    });
                }
            }
        }
        Ok(())
    }

    /// Where `count` slots from `first` on begin, if there are that many.
    fn offset(&self, first: Slot, count: usize) -> Result<u64, SwapError> {
        let end = u64::from(first.0).saturating_add(count as u64);
        if end > u64::from(self.slots) {
            let last = u32::try_from(end - 1).unwrap_or(u32::MAX);
            return Err(SwapError::NoSuchSlot { slot: Slot(last), slots: self.slots });
        }
        Ok((u64::from(first.0) + 1) * PAGE_BYTES as u64)
    }
}

impl Drop for SwapFile {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.sparse.as_ref().map(|file| file.set_len(PAGE_BYTES as u64)) {
            warn!(path = %self.path.display(), %error, "the swap file could not be cut back");
        }
    }
}

/// The slot that byte `done` of a run from `first` on lies in.
fn slot_at(first: Slot, done: usize) -> Slot {
    Slot(first.0.saturating_add(u32::try_from(done / PAGE_BYTES).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swap::codec::tests::page_of;

    fn file_in(dir: &tempfile::TempDir, slots: u64) -> SwapFile {
        SwapFile::create(&dir.path().join("swap"), Room::Reserved(slots * 4096)).unwrap()
    }

    fn pages(seeds: std::ops::Range<u64>) -> RunBuffer {
        let mut run = RunBuffer::new(usize::try_from(seeds.end - seeds.start).unwrap());
        for (page, seed) in run.pages_mut().iter_mut().zip(seeds) {
            *page = page_of(seed, PAGE_BYTES);
        }
        run
    }

    fn broken(fault: SwapFault, after: u64) -> (tempfile::TempDir, SwapFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = file_in(&dir, 8).breaking(fault, after);
        (dir, file)
    }

    #[test]
    fn what_was_written_to_a_file_is_read_from_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = file_in(&dir, 8);
        assert_eq!(file.slots(), 8);
        file.write(Slot(1), pages(0..5).pages()).unwrap();
        file.write(Slot(6), pages(5..7).pages()).unwrap();
        let mut back = RunBuffer::new(7);
        file.read(Slot(1), back.pages_mut()).unwrap();
        assert_eq!(back.pages()[..5], *pages(0..5).pages());
        assert_eq!(back.pages()[5..], *pages(5..7).pages());
    }

    #[test]
    fn a_slot_past_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = file_in(&dir, 8);
        let error = file.write(Slot(6), pages(0..3).pages()).unwrap_err();
        assert_eq!(error, SwapError::NoSuchSlot { slot: Slot(8), slots: 8 });
        let error = file.read(Slot(u32::MAX), RunBuffer::new(1).pages_mut()).unwrap_err();
        assert_eq!(error, SwapError::NoSuchSlot { slot: Slot(u32::MAX), slots: 8 });
    }

    #[test]
    fn a_file_that_was_made_shorter_is_called_truncated() {
        for cut in [3 * 4096, 3 * 4096 + 512, 3 * 4096 + 7] {
            let dir = tempfile::tempdir().unwrap();
            let file = file_in(&dir, 8);
            file.write(Slot(0), pages(0..8).pages()).unwrap();
            File::options().write(true).open(file.path()).unwrap().set_len(cut).unwrap();
            let error = file.read(Slot(0), RunBuffer::new(8).pages_mut()).unwrap_err();
            assert_eq!(error, SwapError::Truncated { slot: Slot(2) }, "cut at {cut}");
            file.read(Slot(0), RunBuffer::new(2).pages_mut()).unwrap();
        }
    }

    #[test]
    fn interruptions_and_short_transfers_are_gone_on_with() {
        for fault in [SwapFault::Interrupted, SwapFault::ShortReads, SwapFault::ShortWrites] {
            let (_dir, file) = broken(fault, 0);
            file.write(Slot(0), pages(0..8).pages()).unwrap();
            let mut back = RunBuffer::new(8);
            file.read(Slot(0), back.pages_mut()).unwrap();
            assert_eq!(back.pages(), pages(0..8).pages(), "{fault:?}");
        }
    }

    #[test]
    fn no_file_has_no_slots() {
        let error = SwapFile::none().write(Slot(0), pages(0..1).pages()).unwrap_err();
        assert_eq!(error, SwapError::NoSuchSlot { slot: Slot(0), slots: 0 });
    }

    #[test]
    fn a_disk_that_cannot_read_is_called_so() {
        let (_dir, file) = broken(SwapFault::ReadError, 0);
        file.write(Slot(0), pages(0..2).pages()).unwrap();
        let error = file.read(Slot(1), RunBuffer::new(1).pages_mut()).unwrap_err();
        let why = io::Error::from_raw_os_error(libc::EIO).to_string();
        assert_eq!(error, SwapError::Read { slot: Slot(1), why });
    }

    #[test]
    fn a_disk_that_cannot_write_is_called_so() {
        let (_dir, file) = broken(SwapFault::WriteError, 1);
        file.write(Slot(0), pages(0..2).pages()).unwrap();
        let error = file.write(Slot(2), pages(0..2).pages()).unwrap_err();
        let why = io::Error::from_raw_os_error(libc::EIO).to_string();
        assert_eq!(error, SwapError::Write { slot: Slot(2), why });
    }

    #[test]
    fn a_full_disk_is_called_full() {
        let (_dir, file) = broken(SwapFault::DiskFull, 0);
        let error = file.write(Slot(2), pages(0..2).pages()).unwrap_err();
        assert_eq!(error, SwapError::DiskFull { slot: Slot(2) });
    }

    #[test]
    fn an_end_of_file_in_the_middle_is_called_truncated() {
        let (_dir, file) = broken(SwapFault::Truncated, 0);
        file.write(Slot(0), pages(0..2).pages()).unwrap();
        let error = file.read(Slot(0), RunBuffer::new(2).pages_mut()).unwrap_err();
        assert_eq!(error, SwapError::Truncated { slot: Slot(0) });
    }
}
