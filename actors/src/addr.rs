//! Addresses and ranges: one type per kind of number.

use std::fmt;

/// Bytes in the smallest page of every table here.
pub const PAGE_SIZE: u64 = 4096;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// The start of the page this address lies in.
            #[must_use]
            pub fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// The address `bytes` further up, unless that wraps around.
            #[must_use]
            pub fn checked_add(self, bytes: u64) -> Option<Self> {
                self.0.checked_add(bytes).map(Self)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address.
    Gpa
}
address! {
    /// A guest-linear ("virtual") address.
    Gva
}

/// How much one leaf of a page table maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PageSize {
    /// A leaf of the last level.
    Size4KiB,
    /// A leaf one level up: a superpage.
    Size2MiB,
}

impl PageSize {
    /// Bytes in one such page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Size4KiB => PAGE_SIZE,
            Self::Size2MiB => 512 * PAGE_SIZE,
        }
    }
}

/// A page-aligned, non-empty, non-wrapping stretch of guest-physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GpaRange {
    start: Gpa,
    len: u64,
}

/// Why two numbers are not a [`GpaRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// Zero bytes.
    #[error("an empty range at {0}")]
    Empty(Gpa),
    /// Start or length is not a multiple of 4096.
    #[error("{len:#x} bytes at {start} are not whole pages")]
    Unaligned {
        /// Where it starts.
        start: Gpa,
        /// How long it is.
        len: u64,
    },
    /// The end lies beyond 2^64.
    #[error("{len:#x} bytes at {start} wrap around the address space")]
    Wraps {
        /// Where it starts.
        start: Gpa,
        /// How long it is.
        len: u64,
    },
}

impl GpaRange {
    /// A range of whole pages.
    ///
    /// # Errors
    ///
    /// [`BadRange`] when it is empty, not page-aligned, or wraps around.
    pub fn new(start: Gpa, len: u64) -> Result<Self, BadRange> {
        if len == 0 {
            return Err(BadRange::Empty(start));
        }
        if !start.0.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(BadRange::Unaligned { start, len });
        }
        if start.0.checked_add(len).is_none() {
            return Err(BadRange::Wraps { start, len });
        }
        Ok(Self { start, len })
    }

    /// The smallest range of whole pages that contains `len` bytes at `start`.
    ///
    /// # Errors
    ///
    /// [`BadRange`] when it is empty or wraps around.
    pub fn covering(start: Gpa, len: u64) -> Result<Self, BadRange> {
        if len == 0 {
            return Err(BadRange::Empty(start));
        }
        let wraps = BadRange::Wraps { start, len };
        let last = start.0.checked_add(len - 1).ok_or(wraps)?;
        let end = (last & !(PAGE_SIZE - 1)).checked_add(PAGE_SIZE).ok_or(wraps)?;
        Self::new(start.page(), end - start.page().0)
    }

    /// The one page that contains `gpa`.
    ///
    /// # Panics
    ///
    /// For the very last page of the 64-bit space, which no guest has.
    #[must_use]
    pub fn page_of(gpa: Gpa) -> Self {
        Self::new(gpa.page(), PAGE_SIZE).expect("guest-physical addresses have at most 52 bits")
    }

    /// First byte.
    #[must_use]
    pub fn start(self) -> Gpa {
        self.start
    }

    /// First byte after it.
    #[must_use]
    pub fn end(self) -> Gpa {
        Gpa(self.start.0 + self.len)
    }

    /// Bytes in it: a positive multiple of 4096.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// 4 KiB pages in it.
    #[must_use]
    pub fn pages(self) -> u64 {
        self.len / PAGE_SIZE
    }

    /// Whether `gpa` lies in it.
    #[must_use]
    pub fn contains(self, gpa: Gpa) -> bool {
        gpa >= self.start && gpa < self.end()
    }

    /// Whether all of `other` lies in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        other.start >= self.start && other.end() <= self.end()
    }

    /// What the two have in common.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self { start, len: end.0 - start.0 })
    }

    /// Its pieces of `bytes` bytes, upwards; the last may be shorter.
    ///
    /// # Panics
    ///
    /// When `bytes` is not a positive multiple of 4096.
    pub fn pieces(self, bytes: u64) -> impl Iterator<Item = Self> {
        assert!(bytes > 0 && bytes.is_multiple_of(PAGE_SIZE), "{bytes} bytes are not whole pages");
        (0..self.len.div_ceil(bytes)).map(move |piece| {
            let from = piece * bytes;
            Self { start: Gpa(self.start.0 + from), len: bytes.min(self.len - from) }
        })
    }

    /// The addresses of its pages, upwards.
    pub fn iter_pages(self) -> impl Iterator<Item = Gpa> {
        (0..self.pages()).map(move |page| Gpa(self.start.0 + page * PAGE_SIZE))
    }
}

impl fmt::Debug for GpaRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "[{}, {})", self.start, self.end())
    }
}

impl fmt::Display for GpaRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, out)
    }
}

bitflags::bitflags! {
    /// What a guest may do with a range. FreeBSD's `vm_prot_t`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Protection: u8 {
        /// May be read.
        const READ = 1;
        /// May be written.
        const WRITE = 2;
        /// May be executed.
        const EXECUTE = 4;
    }
}

/// What an access does with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Loads.
    Read,
    /// Stores, or loads and stores.
    Write,
    /// Fetches an instruction.
    Execute,
}

impl Access {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Execute];

    /// The right it needs.
    #[must_use]
    pub const fn needs(self) -> Protection {
        match self {
            Self::Read => Protection::READ,
            Self::Write => Protection::WRITE,
            Self::Execute => Protection::EXECUTE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_wraps_is_refused_and_named() {
        let start = Gpa(u64::MAX - PAGE_SIZE + 1);
        assert_eq!(
            GpaRange::new(start, 2 * PAGE_SIZE),
            Err(BadRange::Wraps { start, len: 2 * PAGE_SIZE })
        );
        assert!(GpaRange::covering(Gpa(u64::MAX), 2).is_err());
    }

    #[test]
    fn covering_takes_every_page_that_is_touched() {
        let range = GpaRange::covering(Gpa(0x1fff), 2).unwrap();
        assert_eq!((range.start(), range.end()), (Gpa(0x1000), Gpa(0x3000)));
        assert_eq!(range.iter_pages().collect::<Vec<_>>(), [Gpa(0x1000), Gpa(0x2000)]);
    }

    #[test]
    fn pieces_cover_a_range_and_the_last_is_what_is_left() {
        let range = GpaRange::new(Gpa(0x3000), 5 * PAGE_SIZE).unwrap();
        let pieces: Vec<_> =
            range.pieces(2 * PAGE_SIZE).map(|part| (part.start().0, part.pages())).collect();
        assert_eq!(pieces, [(0x3000, 2), (0x5000, 2), (0x7000, 1)]);
        assert_eq!(range.pieces(1 << 40).collect::<Vec<_>>(), [range]);
    }

    #[test]
    fn ranges_that_only_touch_have_nothing_in_common() {
        let low = GpaRange::new(Gpa(0), 0x1000).unwrap();
        let high = GpaRange::new(Gpa(0x1000), 0x1000).unwrap();
        assert_eq!(low.intersection(high), None);
        assert!(!low.contains(Gpa(0x1000)));
    }
}
