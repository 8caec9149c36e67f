//! Arithmetic flags, kept as what they follow from.
//!
//! An instruction leaves its result and its vector of carries; a flag is worked out only when somebody
//! asks for it. Six flags cost an addition and a few logic operations each time, and most are
//! overwritten unread.
//!
//! `result` is sign-extended from the operand's width, so that ZF and SF follow from it at any
//! width. `carries` holds, from the top: the carry out of the top bit (CF), the carry into it (with
//! CF, this gives OF), bit 3 (AF), and two corrections for flags that were loaded rather than computed: bit 0 inverts
//! SF, bits 8–15 are added to the byte whose parity is PF.

use crate::width::Width;

/// Carry flag in RFLAGS.
pub const CF: u64 = 1 << 0;
/// Parity flag.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry flag.
pub const AF: u64 = 1 << 4;
/// Zero flag.
pub const ZF: u64 = 1 << 6;
/// Sign flag.
pub const SF: u64 = 1 << 7;
/// Trap flag.
pub const TF: u64 = 1 << 8;
/// Interrupt flag.
pub const IF: u64 = 1 << 9;
/// Direction flag.
pub const DF: u64 = 1 << 10;
/// Overflow flag.
pub const OF: u64 = 1 << 11;
/// I/O privilege level.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume flag.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check.
pub const AC: u64 = 1 << 18;
/// Identification flag.
pub const ID: u64 = 1 << 21;
/// The six that arithmetic sets.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

const CARRY: u32 = 1 << 31;
const CARRY_IN: u32 = 1 << 30;
const HALF: u32 = 1 << 3;

/// The six arithmetic flags, not worked out yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    result: u64,
    carries: u32,
}

impl Flags {
    /// After a result with these carries out of each bit.
    #[inline(always)]
    #[must_use]
    pub fn carried<W: Width>(result: u64, carries: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "only the top and bit 3 matter")]
        let top =
            if W::BITS == 64 { (carries >> 32) as u32 } else { (carries << (32 - W::BITS)) as u32 };
        #[expect(clippy::cast_possible_truncation, reason = "bit 3")]
        let half = carries as u32 & HALF;
        Self { result: W::sign_extend(result), carries: top & (CARRY | CARRY_IN) | half }
    }

    /// After a logical operation: CF, OF and AF are clear.
    #[inline(always)]
    #[must_use]
    pub fn logical<W: Width>(result: u64) -> Self {
        Self { result: W::sign_extend(result), carries: 0 }
    }

    /// SF, ZF and PF of `result`, CF and OF as given, AF clear.
    #[inline(always)]
    #[must_use]
    pub fn shifted<W: Width>(result: u64, carry: bool, overflow: bool) -> Self {
        let carries = u32::from(carry) << 31 | u32::from(carry != overflow) << 30;
        Self { result: W::sign_extend(result), carries }
    }

    /// The same flags but for CF and OF.
    #[inline(always)]
    #[must_use]
    pub fn with_carry_and_overflow(self, carry: bool, overflow: bool) -> Self {
        let rest = self.carries & !(CARRY | CARRY_IN);
        let carries = rest | u32::from(carry) << 31 | u32::from(carry != overflow) << 30;
        Self { carries, ..self }
    }

    /// The same flags but for CF.
    #[inline(always)]
    #[must_use]
    pub fn with_carry(self, carry: bool) -> Self {
        self.keep_carry_of(Self { result: 0, carries: u32::from(carry) << 31 })
    }

    /// Flags of which only CF is right: for when nobody asks for another before all are set again.
    #[inline(always)]
    #[must_use]
    pub fn only_carry(self, carry: bool) -> Self {
        Self { result: self.result, carries: u32::from(carry) << 31 }
    }

    /// The same flags, but with the CF of `before`: OF stays.
    #[inline(always)]
    #[must_use]
    pub fn keep_carry_of(self, before: Self) -> Self {
        // OF is the difference of the two top bits: where CF changes, its neighbour must.
        let change = (self.carries ^ before.carries) & CARRY;
        Self { carries: self.carries ^ (change | change >> 1), ..self }
    }

    /// From RFLAGS.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        let zero = bits & ZF != 0;
        let sign = bits & SF != 0;
        let parity = bits & PF != 0;
        // A result of 0 has even parity, one of 1 odd.
        let mend_parity = u32::from(parity != zero) << 8;
        let carries = u32::from(sign) | mend_parity | u32::from(bits & AF != 0) << 3;
        Self { result: u64::from(!zero), carries }
            .with_carry_and_overflow(bits & CF != 0, bits & OF != 0)
    }

    /// As RFLAGS has them.
    #[must_use]
    pub fn bits(self) -> u64 {
        let one = |set: bool, bit: u64| if set { bit } else { 0 };
        one(self.carry(), CF)
            | one(self.parity(), PF)
            | one(self.half_carry(), AF)
            | one(self.zero(), ZF)
            | one(self.sign(), SF)
            | one(self.overflow(), OF)
    }

    /// CF.
    #[inline(always)]
    #[must_use]
    pub fn carry(self) -> bool {
        self.carries & CARRY != 0
    }

    /// ZF.
    #[inline(always)]
    #[must_use]
    pub fn zero(self) -> bool {
        self.result == 0
    }

    /// SF.
    #[inline(always)]
    #[must_use]
    pub fn sign(self) -> bool {
        (self.result >> 63) as u32 ^ self.carries & 1 != 0
    }

    /// OF.
    #[inline(always)]
    #[must_use]
    pub fn overflow(self) -> bool {
        (self.carries ^ self.carries << 1) & CARRY != 0
    }

    /// AF.
    #[inline(always)]
    #[must_use]
    pub fn half_carry(self) -> bool {
        self.carries & HALF != 0
    }

    /// PF: whether the low byte has an even number of ones.
    #[inline(always)]
    #[must_use]
    pub fn parity(self) -> bool {
        ((self.result & 0xff) as u32 ^ self.carries >> 8 & 0xff).count_ones() & 1 == 0
    }
}

/// `a + b + carry` and its flags.
#[inline(always)]
#[must_use]
pub fn add<W: Width>(a: u64, b: u64, carry: bool) -> (u64, Flags) {
    let result = a.wrapping_add(b).wrapping_add(u64::from(carry)) & W::MASK;
    (result, Flags::carried::<W>(result, a & b | (a | b) & !result))
}

/// `a - b - borrow` and its flags.
#[inline(always)]
#[must_use]
pub fn subtract<W: Width>(a: u64, b: u64, borrow: bool) -> (u64, Flags) {
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & W::MASK;
    (result, Flags::carried::<W>(result, !a & b | !(a ^ b) & result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::width::{B1, B2, B4, B8};

    #[test]
    fn every_combination_of_loaded_flags_reads_back() {
        for number in 0..64u64 {
            let mut bits = 0;
            for (index, flag) in [CF, PF, AF, ZF, SF, OF].into_iter().enumerate() {
                bits |= if number >> index & 1 == 1 { flag } else { 0 };
            }
            let flags = Flags::from_bits(bits);
            assert_eq!(flags.bits(), bits);
            assert_eq!(flags.with_carry(true).bits(), bits | CF);
            assert_eq!(flags.with_carry(false).bits(), bits & !CF);
        }
    }

    fn naive(a: i128, b: i128, result: i128, bits: u32, unsigned: i128) -> u64 {
        let mask = (1i128 << bits) - 1;
        let signed = |v: i128| if v >> (bits - 1) & 1 == 1 { v - (1 << bits) } else { v };
        let _ = (a, b);
        let r = unsigned & mask;
        let mut flags = 0;
        flags |= if unsigned < 0 || unsigned > mask { CF } else { 0 };
        flags |= if r == 0 { ZF } else { 0 };
        flags |= if r >> (bits - 1) & 1 == 1 { SF } else { 0 };
        flags |= if (r & 0xff).count_ones().is_multiple_of(2) { PF } else { 0 };
        flags |= if signed(r) == result { 0 } else { OF };
        flags
    }

    fn check<W: Width>() {
        let bits = W::BITS;
        let mask = i128::from(W::MASK);
        let signed = |v: i128| if v >> (bits - 1) & 1 == 1 { v - (1 << bits) } else { v };
        let edges = [0, 1, 2, 0x7f, 0x80, 0xff, mask / 2, mask / 2 + 1, mask - 1, mask];
        for a in edges {
            for b in edges {
                for carry in [false, true] {
                    let c = i128::from(carry);
                    let (a, b) = (a & mask, b & mask);
                    let (x, y) = (u64::try_from(a).unwrap(), u64::try_from(b).unwrap());
                    let half = |sum: bool| {
                        let (p, q) = (a & 15, b & 15);
                        if sum { p + q + c > 15 } else { p - q - c < 0 }
                    };
                    let af = |set| if set { AF } else { 0 };
                    let expected = naive(a, b, signed(a) + signed(b) + c, bits, a + b + c);
                    assert_eq!(add::<W>(x, y, carry).1.bits(), expected | af(half(true)));
                    let expected = naive(a, b, signed(a) - signed(b) - c, bits, a - b - c);
                    assert_eq!(subtract::<W>(x, y, carry).1.bits(), expected | af(half(false)));
                }
            }
        }
    }

    #[test]
    fn sums_and_differences_set_the_flags_that_arithmetic_on_wide_numbers_says() {
        check::<B1>();
        check::<B2>();
        check::<B4>();
        check::<B8>();
    }
}
