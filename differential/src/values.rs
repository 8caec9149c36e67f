//! Values at which processors go wrong.

use crate::layout::{HIGH, HIGH_PAGES, LOW, LOW_PAGES, PAGE};
use crate::random::Random;

/// An integer: an edge of some width, or next to one, or a pattern, or anything.
pub fn integer(random: &mut Random) -> u64 {
    let width = random.pick(&[8_u32, 16, 32, 64]);
    let ones = u64::MAX >> (64 - width);
    let sign = 1_u64 << (width - 1);
    match random.below(16) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => ones,
        4 => sign,
        5 => sign - 1,
        6 => sign.wrapping_neg(),
        7 => random.pick(&[
            0x5555_5555_5555_5555,
            0xaaaa_aaaa_aaaa_aaaa,
            0x0123_4567_89ab_cdef,
            0x8080_8080_8080_8080,
        ]),
        8 => 1 << random.below(64),
        9 => (1_u64 << random.below(64)).wrapping_sub(1),
        10 => random.below(70),
        11 => {
            random.pick(&[ones, sign, sign - 1, 0, 1]).wrapping_add(random.below(5)).wrapping_sub(2)
        }
        12 => random.bits() & ones,
        13 => random.bits() >> random.below(64),
        _ => random.bits(),
    }
}

/// Single precision, by its bits.
pub fn single(random: &mut Random) -> u32 {
    let bits = random.bits().to_le_bytes();
    let anything = u32::from_le_bytes([bits[0], bits[1], bits[2], bits[3]]);
    let sign = anything & 1 << 31;
    match random.below(16) {
        0 => sign,
        1 => sign | 0x7f80_0000,
        2 => sign | 0x7fc0_0000 | anything & 0x3f_ffff,
        3 => sign | 0x7f80_0001 | anything & 0x3f_ffff,
        4 => sign | 1,
        5 => sign | anything & 0x7f_ffff,
        6 => sign | 0x0080_0000 | anything & 3,
        7 => sign | 0x7f7f_ffff,
        8 => sign | 0x3f80_0000,
        9 => {
            sign | random.pick(&[
                0x4f00_0000,
                0x4eff_ffff,
                0x5f00_0000,
                0x5eff_ffff,
                0x4f80_0000,
                0x3f00_0000,
                0x3fc0_0000,
            ])
        }
        10 => (random.below(1000) as f32 / 4.0).to_bits() | sign,
        11 => sign | (100 + u32::from(bits[4] % 60)) << 23 | anything & 0x7f_ffff,
        12 => sign | (126 + u32::from(bits[4] % 34)) << 23 | anything & 0x7f_f000,
        _ => anything,
    }
}

/// Double precision, by its bits.
pub fn double(random: &mut Random) -> u64 {
    let anything = random.bits();
    let sign = anything & 1 << 63;
    let fraction = anything & ((1 << 52) - 1);
    match random.below(16) {
        0 => sign,
        1 => sign | 0x7ff0 << 48,
        2 => sign | 0x7ff8 << 48 | fraction >> 1,
        3 => sign | 0x7ff0 << 48 | 1 | fraction >> 1,
        4 => sign | 1,
        5 => sign | fraction,
        6 => sign | 0x0010 << 48 | fraction & 3,
        7 => sign | 0x7fef_ffff_ffff_ffff,
        8 => sign | 0x3ff0 << 48,
        9 => {
            let edge: f64 = random.pick(&[
                2_147_483_648.0,
                2_147_483_647.0,
                2_147_483_647.5,
                9_223_372_036_854_775_808.0,
                9_223_372_036_854_774_784.0,
                4_294_967_296.0,
                32_768.0,
                32_767.5,
                0.5,
                1.5,
                2.5,
                3.402_823_466_385_288_6e38,
                3.402_823_669_209_385e38,
                1.175_494_35e-38,
                1e-45,
                7e-46,
            ]);
            sign | edge.to_bits()
        }
        10 => sign | (random.below(1000) as f64 / 4.0).to_bits(),
        11 => sign | (1000 + random.below(46)) << 52 | fraction,
        12 => sign | (1022 + random.below(66)) << 52 | fraction & !0xffff,
        13 => sign | f64::from(f32::from_bits(single(random))).to_bits(),
        _ => anything,
    }
}

/// Extended precision: mantissa, then sign and exponent.
pub fn extended(random: &mut Random) -> [u8; 10] {
    let anything = random.bits();
    let sign = random.pick(&[0_u16, 0x8000]);
    let top = 1_u64 << 63;
    let some_exponent = |random: &mut Random, low: u16, count: u64| {
        low + u16::try_from(random.below(count)).unwrap_or(0)
    };
    let (exponent, mantissa) = match random.below(20) {
        0 => (0, 0),
        1 => (0x7fff, top),
        2 => (0x7fff, top | 1 << 62 | anything >> 2),
        3 => (0x7fff, top | 1 | anything >> 2),
        4 => (0, 1),
        5 => (0, anything >> 1),
        6 => (0, top | anything >> 1),
        7 => (1, top),
        8 => (0x7ffe, u64::MAX),
        9 => (0x3fff, top),
        10 => (0x3ffe, top | anything & 1),
        11 => (some_exponent(random, 1, 0x7ffd), anything >> 1),
        12 => (0x7fff, anything >> 1),
        13 => (some_exponent(random, 0x3ffe, 66), top | anything << random.below(63)),
        14 => (some_exponent(random, 0x3c00, 0x800), top | anything >> 1),
        15 => (some_exponent(random, 0x3f80, 0x100), top | anything >> 1),
        16 | 17 => {
            let wide = f64::from_bits(double(random));
            return widen(if wide.is_nan() { 1.0 } else { wide });
        }
        _ => (some_exponent(random, 0, 0x8000), anything),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
    bytes[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    bytes
}

/// A double that is not a NaN, exactly, as extended precision.
fn widen(value: f64) -> [u8; 10] {
    let bits = value.to_bits();
    let sign = if value.is_sign_negative() { 0x8000_u16 } else { 0 };
    let fraction = bits & ((1 << 52) - 1);
    let (exponent, mantissa) = match bits >> 52 & 0x7ff {
        0 if fraction == 0 => (0, 0),
        0 => {
            let zeros = fraction.leading_zeros();
            (0x3fff - 1022 - (zeros - 11), fraction << zeros)
        }
        0x7ff => (0x7fff, 1 << 63),
        biased => (u32::try_from(biased).unwrap_or(0) + 0x3fff - 1023, 1 << 63 | fraction << 11),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(mantissa));
    bytes[8..].copy_from_slice(&(sign | u16::try_from(exponent).unwrap_or(0)).to_le_bytes());
    bytes
}

/// An address in a data area where `bytes` bytes fit, mostly; at or across an edge sometimes.
/// `aligned` asks for a multiple of `bytes` (a power of two).
pub fn address(random: &mut Random, bytes: u64, low_only: bool, aligned: bool) -> u64 {
    let bytes = bytes.max(1);
    let low = low_only || random.percent(50);
    let (start, pages) = if low { (LOW, LOW_PAGES) } else { (HIGH, HIGH_PAGES) };
    let size = pages * PAGE;
    let near = |random: &mut Random, edge: u64| {
        edge.wrapping_add(random.below(2 * bytes + 1)).wrapping_sub(bytes + bytes / 2)
    };
    let mut offset = match random.below(100) {
        // Across the two pages' border.
        0..=7 => near(random, PAGE),
        // At the end, or over it: into the read-only page, or into nothing.
        8..=10 => near(random, size),
        // Below the start.
        11 => near(random, 0),
        // Cache line borders.
        12..=19 => {
            let line = 1 + random.below(size / 64 - 2);
            near(random, 64 * line)
        }
        _ => random.below(size - bytes.min(size - 1)),
    };
    if aligned {
        offset &= !(bytes.next_power_of_two() - 1);
    }
    start.wrapping_add(offset)
}
