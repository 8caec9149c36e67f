//! What MMX instructions compute: 64 bits as bytes, words or doublewords, lane by lane (Intel SDM vol. 2, the
//! 64-bit operands of each).

use iced_x86::Mnemonic;

use super::{by_immediate, on_memory, on_registers};
use crate::op::Handler;
use crate::width::{B4, B8};

/// An instruction of two operands; the destination is the first.
pub(super) trait Compute: 'static {
    fn apply(a: u64, b: u64) -> u64;
}

/// Where the second operand is.
#[derive(Clone, Copy)]
pub(super) enum Second {
    Register,
    Double,
    Quad,
    Immediate,
}

fn words_of(value: u64) -> [u16; 4] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|lane| u16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]))
}

fn from_words(lanes: [u16; 4]) -> u64 {
    lanes.iter().rev().fold(0, |value, lane| value << 16 | u64::from(*lane))
}

fn doubles_of(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

fn from_doubles(lanes: [u32; 2]) -> u64 {
    u64::from(lanes[1]) << 32 | u64::from(lanes[0])
}

#[inline(always)]
fn bytes(a: u64, b: u64, lane: impl Fn(u8, u8) -> u8) -> u64 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u64::from_le_bytes(std::array::from_fn(|index| lane(a[index], b[index])))
}

#[inline(always)]
fn words(a: u64, b: u64, lane: impl Fn(u16, u16) -> u16) -> u64 {
    let (a, b) = (words_of(a), words_of(b));
    from_words(std::array::from_fn(|index| lane(a[index], b[index])))
}

#[inline(always)]
fn doubles(a: u64, b: u64, lane: impl Fn(u32, u32) -> u32) -> u64 {
    let (a, b) = (doubles_of(a), doubles_of(b));
    from_doubles(std::array::from_fn(|index| lane(a[index], b[index])))
}

#[inline(always)]
fn signed_bytes(a: u64, b: u64, lane: impl Fn(i8, i8) -> i8) -> u64 {
    bytes(a, b, |a, b| lane(a.cast_signed(), b.cast_signed()).cast_unsigned())
}

#[inline(always)]
fn signed_words(a: u64, b: u64, lane: impl Fn(i16, i16) -> i16) -> u64 {
    words(a, b, |a, b| lane(a.cast_signed(), b.cast_signed()).cast_unsigned())
}

/// The upper half of a product.
fn upper(product: u32) -> u16 {
    let [_, _, low, high] = product.to_le_bytes();
    u16::from_le_bytes([low, high])
}

fn product(a: u16, b: u16) -> i32 {
    i32::from(a.cast_signed()) * i32::from(b.cast_signed())
}

/// Rounded up.
fn average(a: u32, b: u32) -> u32 {
    (a + b + 1) >> 1
}

/// All ones for true.
fn truth(is_so: bool) -> u8 {
    u8::from(is_so).wrapping_neg()
}

/// All ones for true.
fn word_truth(is_so: bool) -> u16 {
    u16::from(is_so).wrapping_neg()
}

/// All ones for true.
fn double_truth(is_so: bool) -> u32 {
    u32::from(is_so).wrapping_neg()
}

fn low_byte(value: impl Into<i32>) -> u8 {
    value.into().to_le_bytes()[0]
}

fn low_word(value: i32) -> u16 {
    let [low, high, ..] = value.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// Four words of `a`, then four of `b`, each cut to a byte between the limits.
fn pack_words(a: u64, b: u64, least: i16, most: i16) -> u64 {
    let (a, b) = (words_of(a), words_of(b));
    u64::from_le_bytes(std::array::from_fn(|index| {
        let word = if index < 4 { a[index] } else { b[index - 4] };
        low_byte(word.cast_signed().clamp(least, most))
    }))
}

fn pack_doubles(a: u64, b: u64) -> u64 {
    let (a, b) = (doubles_of(a), doubles_of(b));
    from_words([a[0], a[1], b[0], b[1]].map(|double| {
        low_word(double.cast_signed().clamp(i32::from(i16::MIN), i32::from(i16::MAX)))
    }))
}

/// Bytes of both in turn, from byte `first` on.
fn interleave_bytes(a: u64, b: u64, first: usize) -> u64 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u64::from_le_bytes(std::array::from_fn(|index| {
        let from = if index % 2 == 0 { a } else { b };
        from[first + index / 2]
    }))
}

fn interleave_words(a: u64, b: u64, first: usize) -> u64 {
    let (a, b) = (words_of(a), words_of(b));
    from_words([a[first], b[first], a[first + 1], b[first + 1]])
}

/// Sums of products of neighbours.
fn multiply_add(a: u64, b: u64) -> u64 {
    let (a, b) = (words_of(a), words_of(b));
    from_doubles(std::array::from_fn(|index| {
        let low = product(a[2 * index], b[2 * index]);
        let high = product(a[2 * index + 1], b[2 * index + 1]);
        low.wrapping_add(high).cast_unsigned()
    }))
}

/// The sum of the differences of bytes.
fn differences(a: u64, b: u64) -> u64 {
    a.to_le_bytes().iter().zip(b.to_le_bytes()).map(|(a, b)| u64::from(a.abs_diff(b))).sum()
}

/// A count beyond the lane's width, as the width.
fn count(amount: u64, width: u32) -> u32 {
    u32::try_from(amount).map_or(width, |amount| amount.min(width))
}

macro_rules! computes {
    ($($name:ident |$a:ident, $b:ident| $body:expr;)*) => {
        $(
            struct $name;
            impl Compute for $name {
                #[inline(always)]
                fn apply($a: u64, $b: u64) -> u64 { $body }
            }
        )*

        /// The handler of an instruction of two operands.
        pub(super) fn pick(mnemonic: Mnemonic, second: Second) -> Option<Handler> {
            Some(match mnemonic {
                $(Mnemonic::$name => match second {
                    Second::Register => on_registers::<$name>,
                    Second::Double => on_memory::<$name, B4>,
                    Second::Quad => on_memory::<$name, B8>,
                    Second::Immediate => by_immediate::<$name>,
                },)*
                _ => return None,
            })
        }
    };
}

// Of shifts, the second operand is the count.
computes! {
    Paddb |a, b| bytes(a, b, u8::wrapping_add);
    Paddw |a, b| words(a, b, u16::wrapping_add);
    Paddd |a, b| doubles(a, b, u32::wrapping_add);
    Paddq |a, b| u64::wrapping_add(a, b);
    Psubb |a, b| bytes(a, b, u8::wrapping_sub);
    Psubw |a, b| words(a, b, u16::wrapping_sub);
    Psubd |a, b| doubles(a, b, u32::wrapping_sub);
    Psubq |a, b| u64::wrapping_sub(a, b);
    Paddsb |a, b| signed_bytes(a, b, i8::saturating_add);
    Paddsw |a, b| signed_words(a, b, i16::saturating_add);
    Paddusb |a, b| bytes(a, b, u8::saturating_add);
    Paddusw |a, b| words(a, b, u16::saturating_add);
    Psubsb |a, b| signed_bytes(a, b, i8::saturating_sub);
    Psubsw |a, b| signed_words(a, b, i16::saturating_sub);
    Psubusb |a, b| bytes(a, b, u8::saturating_sub);
    Psubusw |a, b| words(a, b, u16::saturating_sub);
    Pmullw |a, b| words(a, b, u16::wrapping_mul);
    Pmulhw |a, b| words(a, b, |a, b| upper(product(a, b).cast_unsigned()));
    Pmulhuw |a, b| words(a, b, |a, b| upper(u32::from(a) * u32::from(b)));
    Pmuludq |a, b| (a & 0xffff_ffff) * (b & 0xffff_ffff);
    Pmaddwd |a, b| multiply_add(a, b);
    Psadbw |a, b| differences(a, b);
    Pavgb |a, b| bytes(a, b, |a, b| average(a.into(), b.into()).to_le_bytes()[0]);
    Pavgw |a, b| words(a, b, |a, b| low_word(average(a.into(), b.into()).cast_signed()));
    Pminub |a, b| bytes(a, b, u8::min);
    Pmaxub |a, b| bytes(a, b, u8::max);
    Pminsw |a, b| signed_words(a, b, i16::min);
    Pmaxsw |a, b| signed_words(a, b, i16::max);
    Pcmpeqb |a, b| bytes(a, b, |a, b| truth(a == b));
    Pcmpeqw |a, b| words(a, b, |a, b| word_truth(a == b));
    Pcmpeqd |a, b| doubles(a, b, |a, b| double_truth(a == b));
    Pcmpgtb |a, b| bytes(a, b, |a, b| truth(a.cast_signed() > b.cast_signed()));
    Pcmpgtw |a, b| words(a, b, |a, b| word_truth(a.cast_signed() > b.cast_signed()));
    Pcmpgtd |a, b| doubles(a, b, |a, b| double_truth(a.cast_signed() > b.cast_signed()));
    Pand |a, b| a & b;
    Pandn |a, b| !a & b;
    Por |a, b| a | b;
    Pxor |a, b| a ^ b;
    Packsswb |a, b| pack_words(a, b, i16::from(i8::MIN), i16::from(i8::MAX));
    Packuswb |a, b| pack_words(a, b, 0, i16::from(u8::MAX));
    Packssdw |a, b| pack_doubles(a, b);
    Punpcklbw |a, b| interleave_bytes(a, b, 0);
    Punpckhbw |a, b| interleave_bytes(a, b, 4);
    Punpcklwd |a, b| interleave_words(a, b, 0);
    Punpckhwd |a, b| interleave_words(a, b, 2);
    Punpckldq |a, b| b << 32 | a & 0xffff_ffff;
    Punpckhdq |a, b| b & !0xffff_ffff | a >> 32;
    Psllw |a, by| words(a, 0, |a, _| a.checked_shl(count(by, 16)).unwrap_or(0));
    Psrlw |a, by| words(a, 0, |a, _| a.checked_shr(count(by, 16)).unwrap_or(0));
    Psraw |a, by| signed_words(a, 0, |a, _| a >> count(by, 15));
    Pslld |a, by| doubles(a, 0, |a, _| a.checked_shl(count(by, 32)).unwrap_or(0));
    Psrld |a, by| doubles(a, 0, |a, _| a.checked_shr(count(by, 32)).unwrap_or(0));
    Psrad |a, by| doubles(a, 0, |a, _| (a.cast_signed() >> count(by, 31)).cast_unsigned());
    Psllq |a, by| a.checked_shl(count(by, 64)).unwrap_or(0);
    Psrlq |a, by| a.checked_shr(count(by, 64)).unwrap_or(0);
}

/// Words of `value` in the order that `order` tells, two bits each.
pub(super) fn shuffle(value: u64, order: u64) -> u64 {
    let lanes = words_of(value);
    from_words(std::array::from_fn(|index| lanes[(order >> (2 * index) & 3) as usize]))
}

/// The top bits of the eight bytes.
pub(super) fn byte_signs(value: u64) -> u64 {
    value.to_le_bytes().iter().rev().fold(0, |signs, byte| signs << 1 | u64::from(byte >> 7))
}
