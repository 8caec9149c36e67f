//! Sixteen bytes in one locked step.
//!
//! # Invariant
//!
//! As everywhere, a [`HostAddress`] lies in a page that keeps the invariant of `guest_memory.rs`. Here it is also a
//! multiple of 16, so that all sixteen bytes lie in that page, and the host's instruction, which wants it, does not
//! fault. The caller has checked it, as the guest's own instruction must.
//!
//! Every x86-64 processor but the very first has `cmpxchg16b`.

#![expect(unsafe_code, reason = "a locked access to memory that a guest shares with us")]

use std::arch::asm;

use crate::access::Opened;
use crate::cpu::{Cpu, slot};
use crate::event::Raised;
use crate::guest_memory::HostAddress;
use crate::width::B8;

/// The upper and the lower half.
#[expect(clippy::cast_possible_truncation, reason = "halves")]
pub(crate) fn halves(value: u128) -> (u64, u64) {
    ((value >> 64) as u64, value as u64)
}

/// Replaces `old` by `new` in one locked step; returns what was there.
fn compare_exchange(at: HostAddress, old: u128, new: u128) -> u128 {
    assert!(at.raw().is_multiple_of(16), "checked by the caller");
    let (old_high, old_low) = halves(old);
    let (new_high, new_low) = halves(new);
    let (low, high): (u64, u64);
    // SAFETY: the module's invariant. The compiler keeps rbx to itself: it is put back.
    unsafe {
        asm!("xchg rsi, rbx", "lock cmpxchg16b [rdi]", "mov rbx, rsi",
            in("rdi") at.raw(), inout("rsi") new_low => _, in("rcx") new_high,
            inout("rax") old_low => low, inout("rdx") old_high => high, options(nostack));
    }
    u128::from(high) << 64 | u128::from(low)
}

impl Cpu {
    /// Puts `new` at `address`, a multiple of 16, if `expected` is there; returns what was there.
    pub(crate) fn compare_exchange_wide(
        &mut self,
        address: u64,
        segment: u8,
        expected: u128,
        new: u128,
    ) -> Result<u128, Raised> {
        match self.open::<B8>(address, segment)? {
            Opened::Memory(host) => Ok(compare_exchange(host, expected, new)),
            Opened::Elsewhere(address) => self.compare_exchange_wide_slowly(address, expected, new),
        }
    }

    #[cold]
    fn compare_exchange_wide_slowly(
        &mut self,
        address: u64,
        expected: u128,
        new: u128,
    ) -> Result<u128, Raised> {
        if let Some((host, frame)) = self.memory_for_write(address)? {
            let old = compare_exchange(host, expected, new);
            self.note_store(frame);
            return Ok(old);
        }
        // A device: it sees two reads and two writes.
        let low = self.load_at::<B8>(address, slot::ZERO)?;
        let high = self.load_at::<B8>(address.wrapping_add(8), slot::ZERO)?;
        let old = u128::from(high) << 64 | u128::from(low);
        let (high, low) = halves(if old == expected { new } else { old });
        self.store_at::<B8>(address, slot::ZERO, low)?;
        self.store_at::<B8>(address.wrapping_add(8), slot::ZERO, high)?;
        Ok(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_expected_is_replaced() {
        let mut memory = vec![0u8; 3 * 4096];
        let at = crate::tests::page_in(memory.as_mut_ptr()).at(0xff0);
        let (first, second) = (1 << 100 | 5, 7 << 64 | 9);
        assert_eq!(compare_exchange(at, 0, first), 0);
        assert_eq!(compare_exchange(at, 0, second), first);
        assert_eq!((at.load::<B8>(), at.plus(8).load::<B8>()), (5, 1 << 36));
        assert_eq!(compare_exchange(at, first, second), first);
        assert_eq!((at.load::<B8>(), at.plus(8).load::<B8>()), (9, 7));
    }
}
