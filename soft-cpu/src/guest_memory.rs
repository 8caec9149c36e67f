//! Touching guest memory: the only place where an address becomes an access.
//!
//! # Invariant
//!
//! A [`HostPage`] is the host address of 4 KiB that stay mapped, readable and writable, for as long as the
//! processor that was given it may use it: until its owner has flushed it ([`crate::Processor::flush`]), or
//! dropped it. Whoever makes one promises that ([`HostPage::new`]). No Rust reference into guest memory
//! exists anywhere: other virtual processors, the loader and the devices change it at any time.
//!
//! Therefore every access is one machine instruction of its width, written as assembly: it may be unaligned,
//! it cannot be torn by the compiler, and it has the memory order of the processor that is being
//! imitated, because it is executed by one of the same kind (x86-64 on both sides).

#![expect(unsafe_code, reason = "accesses to memory that a guest shares with us")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "one instruction for each width, of which one is compiled"
)]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use crate::width::Width;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// 4 KiB of guest memory, as the host sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPage(u64);

impl HostPage {
    /// The page at `address`.
    ///
    /// # Safety
    ///
    /// `address` is page-aligned, and the 4,096 bytes there keep the module's invariant.
    #[must_use]
    pub unsafe fn new(address: *mut u8) -> Self {
        debug_assert_eq!(address.addr() as u64 % PAGE, 0);
        Self(address.expose_provenance() as u64)
    }

    /// Where `offset` (below 4,096) is.
    #[inline(always)]
    #[must_use]
    pub fn at(self, offset: u64) -> HostAddress {
        HostAddress(self.0 | offset & (PAGE - 1))
    }

    /// What to add to an address of the guest's page `page` to get the host's.
    #[inline(always)]
    pub(crate) fn addend(self, page: u64) -> u64 {
        self.0.wrapping_sub(page)
    }
}

/// An address inside a [`HostPage`]; whoever makes one has seen to it that the access ends in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress(u64);

impl HostAddress {
    /// From a translation that hit: `addend` came from [`HostPage::addend`] of the page of `address`.
    #[inline(always)]
    pub(crate) fn of_hit(address: u64, addend: u64) -> Self {
        Self(address.wrapping_add(addend))
    }

    /// As a number.
    #[cfg(test)]
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    /// How far above `other` it is, in the host's address space.
    #[inline(always)]
    pub(crate) fn minus(self, other: Self) -> u64 {
        self.0.wrapping_sub(other.0)
    }

    /// `bytes` further on, in the same page.
    #[inline(always)]
    pub(crate) fn plus(self, bytes: u64) -> Self {
        debug_assert!(self.0 % PAGE + bytes < PAGE);
        Self(self.0 + bytes)
    }

    /// `bytes` further on, or back when it is negative (as 64 bits); in the same page.
    #[inline(always)]
    pub(crate) fn moved(self, bytes: u64) -> Self {
        let moved = Self(self.0.wrapping_add(bytes));
        debug_assert_eq!(moved.0 / PAGE, self.0 / PAGE);
        moved
    }

    /// Reads.
    #[inline(always)]
    #[must_use]
    pub fn load<W: Width>(self) -> u64 {
        let value: u64;
        // SAFETY: the address is in a page that keeps the module's invariant, and so is its end.
        unsafe {
            match W::BYTES {
                1 => asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags, readonly)),
                2 => asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags, readonly)),
                4 => asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags, readonly)),
                _ => asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags, readonly)),
            }
        }
        value
    }

    /// Writes.
    #[inline(always)]
    pub fn store<W: Width>(self, value: u64) {
        // SAFETY: as for `load`.
        unsafe {
            match W::BYTES {
                1 => {
                    asm!("mov byte ptr [{1}], {0}", in(reg_byte) value.to_le_bytes()[0], in(reg) self.0,
                    options(nostack, preserves_flags))
                }
                2 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags)),
                4 => asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags)),
                _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) self.0,
                    options(nostack, preserves_flags)),
            }
        }
    }

    /// Reads 16 bytes.
    #[inline(always)]
    #[must_use]
    pub fn load128(self) -> u128 {
        let value: __m128i;
        // SAFETY: as for `load`.
        unsafe {
            asm!("movdqu {0}, xmmword ptr [{1}]", out(xmm_reg) value, in(reg) self.0,
                options(nostack, preserves_flags, readonly));
        }
        // SAFETY: both types are 16 bytes without any meaning of their own.
        unsafe { std::mem::transmute::<__m128i, u128>(value) }
    }

    /// Writes 16 bytes.
    #[inline(always)]
    pub fn store128(self, value: u128) {
        // SAFETY: as for `load128`.
        let value = unsafe { std::mem::transmute::<u128, __m128i>(value) };
        // SAFETY: as for `load`.
        unsafe {
            asm!("movdqu xmmword ptr [{1}], {0}", in(xmm_reg) value, in(reg) self.0,
                options(nostack, preserves_flags));
        }
    }

    /// Replaces `old` by `new` in one locked step; returns what was there. Any alignment.
    #[inline(always)]
    #[must_use]
    pub fn compare_exchange<W: Width>(self, old: u64, new: u64) -> u64 {
        let before: u64;
        // SAFETY: as for `load`.
        unsafe {
            match W::BYTES {
                1 => {
                    let low: u8;
                    asm!("lock cmpxchg byte ptr [{1}], {0}", in(reg_byte) new.to_le_bytes()[0],
                        in(reg) self.0, inout("al") old.to_le_bytes()[0] => low, options(nostack));
                    before = u64::from(low);
                }
                2 => asm!("lock cmpxchg word ptr [{1}], {0:x}", in(reg) new, in(reg) self.0,
                    inout("rax") old => before, options(nostack)),
                4 => asm!("lock cmpxchg dword ptr [{1}], {0:e}", in(reg) new, in(reg) self.0,
                    inout("rax") old => before, options(nostack)),
                _ => asm!("lock cmpxchg qword ptr [{1}], {0}", in(reg) new, in(reg) self.0,
                    inout("rax") old => before, options(nostack)),
            }
        }
        before & W::MASK
    }

    /// Puts `value` there in one locked step; returns what was there. Any alignment.
    #[inline(always)]
    #[must_use]
    pub fn exchange<W: Width>(self, value: u64) -> u64 {
        let mut before = value;
        // SAFETY: as for `load`.
        unsafe {
            match W::BYTES {
                1 => {
                    let mut low = value.to_le_bytes()[0];
                    asm!("xchg byte ptr [{1}], {0}", inout(reg_byte) low, in(reg) self.0,
                        options(nostack, preserves_flags));
                    before = u64::from(low);
                }
                2 => asm!("xchg word ptr [{1}], {0:x}", inout(reg) before, in(reg) self.0,
                    options(nostack, preserves_flags)),
                4 => asm!("xchg dword ptr [{1}], {0:e}", inout(reg) before, in(reg) self.0,
                    options(nostack, preserves_flags)),
                _ => asm!("xchg qword ptr [{1}], {0}", inout(reg) before, in(reg) self.0,
                    options(nostack, preserves_flags)),
            }
        }
        before & W::MASK
    }

    /// Replaces sixteen bytes, `old` by `new`, in one locked step; returns what was there. Every x86-64 processor but
    /// the very first has the instruction.
    ///
    /// # Panics
    ///
    /// When the address is no multiple of 16: the caller has checked it, as the guest's own instruction must.
    #[must_use]
    pub fn compare_exchange_wide(self, old: u128, new: u128) -> u128 {
        assert!(self.0.is_multiple_of(16), "checked by the caller");
        let (old_high, old_low) = halves(old);
        let (new_high, new_low) = halves(new);
        let (low, high): (u64, u64);
        // SAFETY: as for `load`; a multiple of 16 has all sixteen bytes in its page. The compiler keeps rbx to itself: it
        // is put back.
        unsafe {
            asm!("xchg rsi, rbx", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
                in("rdi") self.0, inout("rsi") new_low => _, in("rcx") new_high,
                inout("rax") old_low => low, inout("rdx") old_high => high, options(nostack));
        }
        u128::from(high) << 64 | u128::from(low)
    }

    /// Copies `bytes` to here from `from`, upwards, a byte at a time as far as anybody can tell.
    /// Both ranges end in their pages.
    #[inline]
    pub fn copy_from(self, from: Self, bytes: u64) {
        debug_assert!(self.0 % PAGE + bytes <= PAGE && from.0 % PAGE + bytes <= PAGE);
        // SAFETY: as for `load`, for `bytes` bytes, as the caller has seen to (asserted in debug builds).
        unsafe {
            asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") self.0 => _, inout("rsi") from.0 => _,
                options(nostack, preserves_flags));
        }
    }

    /// Stores `count` copies of `value`, upwards. They end in the page.
    #[inline]
    pub fn fill<W: Width>(self, value: u64, count: u64) {
        debug_assert!(self.0 % PAGE + count * W::BYTES as u64 <= PAGE);
        // SAFETY: as for `copy_from`.
        unsafe {
            match W::BYTES {
                1 => asm!("rep stosb", inout("rcx") count => _, inout("rdi") self.0 => _,
                    in("rax") value, options(nostack, preserves_flags)),
                2 => asm!("rep stosw", inout("rcx") count => _, inout("rdi") self.0 => _,
                    in("rax") value, options(nostack, preserves_flags)),
                4 => asm!("rep stosd", inout("rcx") count => _, inout("rdi") self.0 => _,
                    in("rax") value, options(nostack, preserves_flags)),
                _ => asm!("rep stosq", inout("rcx") count => _, inout("rdi") self.0 => _,
                    in("rax") value, options(nostack, preserves_flags)),
            }
        }
    }
}

/// The upper and the lower half.
#[expect(clippy::cast_possible_truncation, reason = "halves")]
pub(crate) fn halves(value: u128) -> (u64, u64) {
    ((value >> 64) as u64, value as u64)
}

#[cfg(test)]
mod tests {
    use crate::width::B8;

    #[test]
    fn of_sixteen_bytes_only_what_was_expected_is_replaced() {
        let mut memory = vec![0u8; 3 * 4096];
        let at = crate::tests::page_in(memory.as_mut_ptr()).at(0xff0);
        let (first, second) = (1 << 100 | 5, 7 << 64 | 9);
        assert_eq!(at.compare_exchange_wide(0, first), 0);
        assert_eq!(at.compare_exchange_wide(0, second), first);
        assert_eq!((at.load::<B8>(), at.plus(8).load::<B8>()), (5, 1 << 36));
        assert_eq!(at.compare_exchange_wide(first, second), first);
        assert_eq!((at.load::<B8>(), at.plus(8).load::<B8>()), (9, 7));
    }
}
