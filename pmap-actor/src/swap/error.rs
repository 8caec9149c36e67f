//! What can go wrong between a page and its copy.

use crate::swap::Slot;

/// Why a page could not be written, or did not come back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// The host could not read. The page is lost.
    #[error("the swap file could not be read at {slot}: {why}")]
    Read {
        /// Where.
        slot: Slot,
        /// The operating system's reason.
        why: String,
    },
    /// The file ends before the slot does: somebody made it shorter. The page is lost.
    #[error("the swap file ends before the end of {slot}: it was truncated")]
    Truncated {
        /// Where.
        slot: Slot,
    },
    /// What was read is not what was written. The page is lost.
    #[error("the swap file returned other bytes than were written ({slot})")]
    OtherBytes {
        /// Where.
        slot: Slot,
    },
    /// The host could not write. The page is still in memory.
    #[error("the swap file could not be written at {slot}: {why}")]
    Write {
        /// Where.
        slot: Slot,
        /// The operating system's reason.
        why: String,
    },
    /// The file system has no room for a slot (possible only where none was reserved). The page is
    /// still in memory.
    #[error("the disk that holds the swap file is full: there is no room for {slot}")]
    DiskFull {
        /// Where.
        slot: Slot,
    },
    /// A copy in memory is not what was put there: the host's memory, or the monitor, is broken.
    #[error("a page that was compressed in memory came back as other bytes: {what}")]
    Spoiled {
        /// What unpacking met.
        what: String,
    },
    /// A slot past the end of the file: a bug of the caller.
    #[error("the swap file has no {slot}: it has {slots} slots")]
    NoSuchSlot {
        /// Which.
        slot: Slot,
        /// How many there are.
        slots: u32,
    },
}
