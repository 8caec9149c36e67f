//! Where a guest's memory lies: one total, split around the hole for devices.
//!
//! bhyve's rule (`vm_setup_memory` in libvmmapi): the low part ends at the start of the
//! PCI hole at the latest, what is left over continues at 4 GiB. Nothing is ever mapped
//! between the two.

use crate::{Gpa, GpaRange, PAGE_SIZE};

/// Where the hole for devices starts unless the API says otherwise
/// (libvmmapi's `vm_open`: 3 GiB).
pub const LOWMEM_LIMIT: u64 = 3 << 30;

/// Where memory above the hole starts.
pub const HIGHMEM_BASE: Gpa = Gpa(4 << 30);

/// A guest's memory: one or two ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLayout {
    low: GpaRange,
    high: Option<GpaRange>,
}

/// Why a guest cannot have this much memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    /// None at all.
    #[error("a guest needs memory: 0 bytes were asked for")]
    Zero,
    /// Not whole pages.
    #[error("{0} bytes of memory are not whole 4 KiB pages")]
    NotPages(u64),
    /// More than addresses can name.
    #[error(
        "{bytes} bytes of memory end beyond what {bits} bits of guest-physical address can name"
    )]
    TooWide {
        /// What was asked for.
        bytes: u64,
        /// How wide a guest-physical address is.
        bits: u32,
    },
    /// A low-memory limit that is not a page-aligned address in (0, 4 GiB].
    #[error("a low-memory limit of {0:#x} is not a page-aligned address of at most 4 GiB")]
    BadLimit(u64),
}

impl MemoryLayout {
    /// Splits `total` bytes around the hole that starts at `lowmem_limit`.
    ///
    /// # Errors
    ///
    /// [`BadLayout`]; `address_bits` is the guest-physical address width.
    pub fn split(total: u64, lowmem_limit: u64, address_bits: u32) -> Result<Self, BadLayout> {
        if total == 0 {
            return Err(BadLayout::Zero);
        }
        if !total.is_multiple_of(PAGE_SIZE) {
            return Err(BadLayout::NotPages(total));
        }
        if lowmem_limit == 0
            || !lowmem_limit.is_multiple_of(PAGE_SIZE)
            || lowmem_limit > HIGHMEM_BASE.0
        {
            return Err(BadLayout::BadLimit(lowmem_limit));
        }
        let low = total.min(lowmem_limit);
        let too_wide = BadLayout::TooWide { bytes: total, bits: address_bits };
        let low = GpaRange::new(Gpa(0), low).map_err(|_| too_wide)?;
        let high = match total - low.len() {
            0 => None,
            rest => Some(GpaRange::new(HIGHMEM_BASE, rest).map_err(|_| too_wide)?),
        };
        let layout = Self { low, high };
        if address_bits < 64 && layout.end().0 > 1 << address_bits {
            return Err(too_wide);
        }
        Ok(layout)
    }

    /// Memory from address 0 up.
    #[must_use]
    pub fn low(&self) -> GpaRange {
        self.low
    }

    /// Memory from 4 GiB up, if there is any.
    #[must_use]
    pub fn high(&self) -> Option<GpaRange> {
        self.high
    }

    /// Both, upwards.
    pub fn ranges(&self) -> impl Iterator<Item = GpaRange> {
        std::iter::once(self.low).chain(self.high)
    }

    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges().map(GpaRange::len).sum()
    }

    /// The first address above all memory.
    #[must_use]
    pub fn end(&self) -> Gpa {
        self.high.unwrap_or(self.low).end()
    }

    /// Whether all of `range` is memory.
    #[must_use]
    pub fn covers(&self, range: GpaRange) -> bool {
        self.ranges().any(|memory| memory.covers(range))
    }

    /// Whether devices, not memory, live at `gpa`: the hole between low memory and 4 GiB.
    #[must_use]
    pub fn is_device_hole(&self, gpa: Gpa) -> bool {
        gpa >= self.low.end() && gpa < HIGHMEM_BASE
    }
}

/// Why a memory size cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSize {
    /// Not a number with an optional K, M, G or T.
    #[error("\"{0}\" is not a memory size: write a number of MiB, or a number with K, M, G or T")]
    NotASize(String),
    /// More than 64 bits of bytes.
    #[error("\"{0}\" is more bytes than 64 bits can count")]
    TooBig(String),
}

/// Reads a memory size: a bare number is MiB; K, M, G, T in either case are powers of
/// 1024, optionally followed by B or iB. (bhyve's `vm_parse_memsize` also takes a bare number
/// of bytes from 2^20 up; here a bare number is MiB whatever its size, so that the same
/// text never changes its meaning.)
///
/// # Errors
///
/// [`BadSize`].
pub fn parse_memory_size(text: &str) -> Result<u64, BadSize> {
    let not_a_size = || BadSize::NotASize(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, suffix) = trimmed.split_at(digits);
    let unit: u64 = match suffix.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => 1 << 20,
        "k" | "kb" | "kib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(not_a_size()),
    };
    if number.is_empty() {
        return Err(not_a_size());
    }
    // Only digits are left, so the one way to fail is to be too long.
    let too_big = || BadSize::TooBig(text.to_owned());
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(too_big)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_memory_is_all_low() {
        let layout = MemoryLayout::split(256 << 20, LOWMEM_LIMIT, 48).unwrap();
        assert_eq!(layout.low().end(), Gpa(256 << 20));
        assert_eq!(layout.high(), None);
        assert!(layout.is_device_hole(Gpa(256 << 20)) && !layout.is_device_hole(HIGHMEM_BASE));
    }

    #[test]
    fn what_does_not_fit_below_three_gib_continues_at_four() {
        let layout = MemoryLayout::split(4 * GIB, LOWMEM_LIMIT, 48).unwrap();
        assert_eq!(layout.low().end(), Gpa(3 * GIB));
        assert_eq!(layout.high(), Some(GpaRange::new(HIGHMEM_BASE, GIB).unwrap()));
        assert_eq!(layout.total(), 4 * GIB);
        assert_eq!(layout.end(), Gpa(5 * GIB));
    }

    #[test]
    fn a_changed_limit_moves_the_split() {
        let layout = MemoryLayout::split(2 * GIB, GIB, 48).unwrap();
        assert_eq!((layout.low().len(), layout.high().unwrap().len()), (GIB, GIB));
        assert_eq!(MemoryLayout::split(GIB, 5 * GIB, 48), Err(BadLayout::BadLimit(5 * GIB)));
    }

    #[test]
    fn impossible_totals_are_refused() {
        assert_eq!(MemoryLayout::split(0, LOWMEM_LIMIT, 48), Err(BadLayout::Zero));
        assert_eq!(MemoryLayout::split(4097, LOWMEM_LIMIT, 48), Err(BadLayout::NotPages(4097)));
        for total in [1 << 48, !4095] {
            let refused = MemoryLayout::split(total, LOWMEM_LIMIT, 48);
            assert_eq!(refused, Err(BadLayout::TooWide { bytes: total, bits: 48 }));
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("256", 256 << 20),
            ("256M", 256 << 20),
            ("256mb", 256 << 20),
            ("4G", 4 * GIB),
            ("1t", 1 << 40),
            ("64K", 64 << 10),
            ("0", 0),
        ] {
            assert_eq!(parse_memory_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_named() {
        for text in ["", "G", "-1", "1.5G", "12X", "0x10", "1 G"] {
            assert_eq!(parse_memory_size(text), Err(BadSize::NotASize(text.to_owned())), "{text}");
        }
        for text in ["99999999999999999999", "18446744073709551615T"] {
            assert_eq!(parse_memory_size(text), Err(BadSize::TooBig(text.to_owned())), "{text}");
        }
    }
}
