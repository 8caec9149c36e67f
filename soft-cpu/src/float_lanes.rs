//! Packed floating-point numbers, looked at element by element.

/// What an instruction calculates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add = 0,
    Multiply = 1,
    Subtract = 4,
    Divide = 6,
    /// A number of 8 bytes becomes one of 4.
    Narrow,
}

/// The elements an instruction works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lanes {
    pub(crate) operation: Arithmetic,
    /// Bytes of an operand.
    pub(crate) from: u32,
    /// Bytes of a result.
    pub(crate) to: u32,
    /// How many.
    pub(crate) count: u32,
}

/// The fields of an element of so many bytes: exponent, all but the sign, the largest exponent.
#[inline(always)]
fn fields(value: u128, bytes: u32, lane: u32) -> (u64, u64, u64) {
    #[expect(clippy::cast_possible_truncation, reason = "an element")]
    let element = (value >> (8 * bytes * lane)) as u64;
    if bytes == 4 {
        (element >> 23 & 0xff, element & 0x7fff_ffff, 0xff)
    } else {
        (element >> 52 & 0x7ff, element << 1, 0x7ff)
    }
}

/// Whether the lowest element is a denormal number.
#[inline(always)]
pub(crate) fn is_denormal(value: u128, bytes: u32) -> bool {
    let (exponent, magnitude, _) = fields(value, bytes, 0);
    exponent == 0 && magnitude != 0
}

impl Lanes {
    /// Whether nothing but an inexact result can have been flagged, rounding to nearest: no operand is denormal, and
    /// every result is well inside the range of normal numbers (then no operand was a NaN or an infinity, and no divisor
    /// zero), or is the zero of a sum.
    #[inline(always)]
    pub(crate) fn are_ordinary(self, destination: u128, source: u128, result: u128) -> bool {
        let sums = matches!(self.operation, Arithmetic::Add | Arithmetic::Subtract);
        let mut fine = true;
        let mut lane = 0;
        // A loop that the compiler unrolls: everything about the lanes is known to it.
        while lane < self.count {
            let (exponent, magnitude, most) = fields(result, self.to, lane);
            fine &= exponent.wrapping_sub(2) < most - 2 || sums && magnitude == 0;
            let (exponent, magnitude, _) = fields(source, self.from, lane);
            fine &= exponent != 0 || magnitude == 0;
            if self.operation != Arithmetic::Narrow {
                let (exponent, magnitude, _) = fields(destination, self.from, lane);
                fine &= exponent != 0 || magnitude == 0;
            }
            lane += 1;
        }
        fine
    }
}

/// Differences in the even elements, sums in the others: all are sums, some of the negated source.
pub(crate) fn alternating(bytes: u32, destination: u128, source: u128) -> (Lanes, u128, u128) {
    let signs = if bytes == 4 { 0x8000_0000_0000_0000_8000_0000 } else { 1 << 63 };
    let operation = Arithmetic::Add;
    (Lanes { operation, from: bytes, to: bytes, count: 16 / bytes }, destination, source ^ signs)
}

/// Each even element with its neighbour above: first the destination's, then the source's.
pub(crate) fn neighbours(
    operation: Arithmetic,
    bytes: u32,
    destination: u128,
    source: u128,
) -> (Lanes, u128, u128) {
    let (bits, count) = (8 * bytes, 16 / bytes);
    let every_other = |first: u32| {
        (0..count).fold(0, |all, lane| {
            let (from, pair) =
                if lane < count / 2 { (destination, lane) } else { (source, lane - count / 2) };
            let element = from >> ((2 * pair + first) * bits) & (u128::MAX >> (128 - bits));
            all | element << (lane * bits)
        })
    };
    (Lanes { operation, from: bytes, to: bytes, count }, every_other(0), every_other(1))
}
