//! A swap file that fails on purpose: for tests of what the machine does then.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::swap::file::SwapIo;

/// How a swap file fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SwapFault {
    /// Reads end with EIO.
    ReadError,
    /// Writes end with EIO.
    WriteError,
    /// Writes end with ENOSPC.
    DiskFull,
    /// Reads meet the end of the file.
    Truncated,
    /// One bit of what is read is not what was written.
    OtherBytes,
    /// Reads never return.
    StuckReads,
    /// Writes never return.
    StuckWrites,
    /// Reads give half of what was asked for, which is no failure.
    ShortReads,
    /// Writes take half of what was given, which is no failure.
    ShortWrites,
    /// Every other call is interrupted by a signal, which is no failure.
    Interrupted,
}

impl SwapFault {
    /// Each, by the name a test switch has for it.
    pub const ALL: [(&str, Self); 10] = [
        ("read-error", Self::ReadError),
        ("write-error", Self::WriteError),
        ("disk-full", Self::DiskFull),
        ("truncated", Self::Truncated),
        ("other-bytes", Self::OtherBytes),
        ("stuck-reads", Self::StuckReads),
        ("stuck-writes", Self::StuckWrites),
        ("short-reads", Self::ShortReads),
        ("short-writes", Self::ShortWrites),
        ("interrupted", Self::Interrupted),
    ];

    fn concerns_reads(self) -> bool {
        use SwapFault::{Interrupted, OtherBytes, ReadError, ShortReads, StuckReads, Truncated};
        matches!(self, ReadError | Truncated | OtherBytes | StuckReads | ShortReads | Interrupted)
    }

    fn concerns_writes(self) -> bool {
        use SwapFault::{DiskFull, Interrupted, ShortWrites, StuckWrites, WriteError};
        matches!(self, WriteError | DiskFull | StuckWrites | ShortWrites | Interrupted)
    }
}

/// Reads and writes through another, and fails.
pub(super) struct FaultyIo {
    inner: Box<dyn SwapIo>,
    fault: SwapFault,
    /// Calls of the concerned kind that still succeed.
    left: AtomicU64,
    calls: AtomicU64,
}

impl FaultyIo {
    /// Fails from the `after`th call on, of those that `fault` concerns.
    pub(super) fn new(inner: Box<dyn SwapIo>, fault: SwapFault, after: u64) -> Self {
        Self { inner, fault, left: AtomicU64::new(after), calls: AtomicU64::new(0) }
    }

    /// Whether it is time. Relaxed: a count, which carries nothing else.
    fn fails(&self, concerned: bool) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        concerned && self.left.try_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err()
    }

    fn is_every_other(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(2)
    }
}

impl SwapIo for FaultyIo {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        if !self.fails(self.fault.concerns_reads()) {
            return self.inner.read_at(bytes, offset);
        }
        match self.fault {
            SwapFault::ReadError => Err(io::Error::from_raw_os_error(libc::EIO)),
            SwapFault::Truncated => Ok(0),
            SwapFault::StuckReads => stuck(),
            SwapFault::Interrupted if self.is_every_other() => {
                Err(io::Error::from_raw_os_error(libc::EINTR))
            }
            SwapFault::ShortReads => {
                let half = half_of(bytes.len());
                self.inner.read_at(&mut bytes[..half], offset)
            }
            SwapFault::OtherBytes => {
                let done = self.inner.read_at(bytes, offset)?;
                if let Some(byte) = bytes.get_mut(done / 2) {
                    *byte ^= 0x10;
                }
                Ok(done)
            }
            _ => self.inner.read_at(bytes, offset),
        }
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if !self.fails(self.fault.concerns_writes()) {
            return self.inner.write_at(bytes, offset);
        }
        match self.fault {
            SwapFault::WriteError => Err(io::Error::from_raw_os_error(libc::EIO)),
            SwapFault::DiskFull => Err(io::Error::from_raw_os_error(libc::ENOSPC)),
            SwapFault::StuckWrites => stuck(),
            SwapFault::Interrupted if self.is_every_other() => {
                Err(io::Error::from_raw_os_error(libc::EINTR))
            }
            SwapFault::ShortWrites => self.inner.write_at(&bytes[..half_of(bytes.len())], offset),
            _ => self.inner.write_at(bytes, offset),
        }
    }
}

/// In whole sectors, as a disk does.
fn half_of(len: usize) -> usize {
    (len / 2).next_multiple_of(512).min(len)
}

/// As a disk that went away does.
fn stuck() -> io::Result<usize> {
    loop {
        std::thread::park();
    }
}
