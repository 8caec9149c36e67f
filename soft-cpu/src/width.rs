//! Operand widths, as types: each handler is compiled once for each.
//!
//! A value travels as a `u64` with zeroes above its width.

/// An operand's width.
pub trait Width: 'static {
    /// In bytes.
    const BYTES: usize;
    /// In bits.
    const BITS: u32;
    /// Ones where the value is.
    const MASK: u64;

    /// Copies the sign upwards.
    #[inline(always)]
    #[must_use]
    fn sign_extend(value: u64) -> u64 {
        let shift = 64 - Self::BITS;
        ((value << shift).cast_signed() >> shift).cast_unsigned()
    }

    /// Whether the top bit is set.
    #[inline(always)]
    #[must_use]
    fn sign(value: u64) -> bool {
        value >> (Self::BITS - 1) & 1 != 0
    }
}

macro_rules! widths {
    ($($name:ident $bytes:literal $doc:literal),*) => {$(
        #[doc = $doc]
        #[derive(Debug)]
        pub struct $name;
        impl Width for $name {
            const BYTES: usize = $bytes;
            const BITS: u32 = $bytes * 8;
            const MASK: u64 = u64::MAX >> (64 - $bytes * 8);
        }
    )*};
}

widths!(B1 1 "A byte.", B2 2 "A word.", B4 4 "A doubleword.", B8 8 "A quadword.");
