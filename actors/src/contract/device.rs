//! Memory of a device, and devices that reach the guest's memory by themselves (passthru).
//!
//! What a real device is to the host (a VFIO group, an interrupt, a reset) is no business of the pmap. It has to know two
//! things: which bytes of which file the guest is to see where, and that somebody else uses the guest's memory.

use std::fs::File;
use std::sync::Arc;

use crate::{GpaRange, PAGE_SIZE, Protection};

/// A piece of a device's memory: bytes of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Of the first byte, in the file; a multiple of 4 KiB.
    pub offset: u64,
    /// In bytes; a multiple of 4 KiB, and not 0.
    pub len: u64,
}

/// A device's memory, in the order in which the guest sees it: FreeBSD's `sglist` under an object of type `OBJT_SG`, of
/// offsets in a file instead of physical addresses. What can be mapped shared can be behind it: a file, a memfd, a region
/// of VFIO.
///
/// The file must not become shorter as long as it is mapped: a touch behind its end would end the process.
#[derive(Clone, Debug)]
pub struct ScatterList {
    file: Arc<File>,
    segments: Vec<Segment>,
    len: u64,
}

/// Why pieces of a file are no device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadScatterList {
    /// There is none.
    #[error("a device's memory has no bytes")]
    Empty,
    /// Not whole pages, or more than offsets can name.
    #[error("bytes {:#x} of {:#x} of a device's file are not whole 4 KiB pages at an offset that can be named", .0.len, .0.offset)]
    Segment(Segment),
    /// All together are too many.
    #[error("a device's memory is longer than 64 bits can say")]
    TooLong,
}

impl ScatterList {
    /// Memory that consists of these pieces of `file`.
    ///
    /// # Errors
    ///
    /// [`BadScatterList`].
    pub fn new(file: Arc<File>, segments: Vec<Segment>) -> Result<Self, BadScatterList> {
        let mut len = 0u64;
        for segment in &segments {
            let whole = segment.offset.is_multiple_of(PAGE_SIZE)
                && segment.len.is_multiple_of(PAGE_SIZE)
                && segment.len > 0;
            // Offsets are signed in the host's interface.
            let end = segment.offset.checked_add(segment.len).filter(|end| *end <= 1 << 63);
            if !whole || end.is_none() {
                return Err(BadScatterList::Segment(*segment));
            }
            len = len.checked_add(segment.len).ok_or(BadScatterList::TooLong)?;
        }
        if len == 0 {
            return Err(BadScatterList::Empty);
        }
        Ok(Self { file, segments, len })
    }

    /// Where its bytes are.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The pieces, in order.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// All of it, in bytes; never 0.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty one cannot be made")]
    pub fn len(&self) -> u64 {
        self.len
    }
}

/// A device of the host that is given to the guest, by the bus address that the host knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PassthruDevice {
    /// PCI segment.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device (5 bits) and function (3 bits).
    pub function: u8,
}

impl std::fmt::Display for PassthruDevice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, bus, function } = self;
        write!(out, "{segment:04x}:{bus:02x}:{:02x}.{}", function >> 3, function & 7)
    }
}

/// What an IOMMU translates for a passthru device: guest-physical addresses to frames, offsets in the guest's memory object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMapping {
    /// By what addresses the device reaches it: the guest's own.
    pub range: GpaRange,
    /// Of the first byte; the others follow.
    pub frame: u64,
    /// What the device may do: what the guest may, save to execute.
    pub protection: Protection,
}

/// Why there is no passthru, or why something is not done while there is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPassthru {
    /// Memory is to leave, and a device may reach it at any time.
    #[error(
        "a passthru device may use any of the guest's memory at any time, so none of it can leave: not together with {flags}"
    )]
    Leaves {
        /// Flags of the command that were given.
        flags: &'static str,
    },
    /// Not all of it can be wired.
    #[error("all {bytes} bytes of the guest's memory must be wired for a passthru device: {why}")]
    DoesNotFit {
        /// How much there is.
        bytes: u64,
        /// What stands against it.
        why: String,
    },
    /// A device's stores do not set modified bits.
    #[error(
        "what a passthru device stores is seen by nobody, so there is no passthru together with dirty epochs or harvests of modified bits"
    )]
    Unseen,
    /// A device would go on with the map as it was.
    #[error("guest-physical {0} cannot change while a passthru device is assigned")]
    Fixed(GpaRange),
    /// It is there already.
    #[error("passthru device {0} is assigned to this guest already")]
    Assigned(PassthruDevice),
    /// It is not there.
    #[error("passthru device {0} is not assigned to this guest")]
    NotAssigned(PassthruDevice),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(segments: &[(u64, u64)]) -> Result<u64, BadScatterList> {
        let file = Arc::new(File::open("/dev/zero").unwrap());
        let segments = segments.iter().map(|&(offset, len)| Segment { offset, len }).collect();
        ScatterList::new(file, segments).map(|list| list.len())
    }

    #[test]
    fn a_list_is_as_long_as_its_pieces_which_may_be_in_any_order_and_overlap() {
        assert_eq!(list(&[(0x5000, 0x2000), (0, 0x1000), (0x5000, 0x1000)]), Ok(0x4000));
    }

    #[test]
    fn pieces_that_are_not_whole_pages_or_end_beyond_what_an_offset_can_name_are_refused() {
        for (offset, len) in [
            (1, 0x1000),
            (0, 0x800),
            (0x1000, 0),
            (!0xfff, 0x1000),
            (1 << 63, 0x1000),
            (0, u64::MAX),
        ] {
            let refused = Err(BadScatterList::Segment(Segment { offset, len }));
            assert_eq!(list(&[(0, 0x1000), (offset, len)]), refused);
        }
        assert_eq!(list(&[]), Err(BadScatterList::Empty));
        let half = (0, 1 << 63);
        assert_eq!(list(&[half, half]), Err(BadScatterList::TooLong));
    }

    #[test]
    fn a_device_is_called_as_the_host_calls_it() {
        let device = PassthruDevice { segment: 0, bus: 0x3b, function: 0x1f << 3 | 2 };
        assert_eq!(device.to_string(), "0000:3b:1f.2");
    }
}
