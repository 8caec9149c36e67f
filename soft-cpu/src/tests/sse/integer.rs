//! Packed integers, logic, shifts and shuffles.

use iced_x86::code_asm::*;

use super::agrees;
use crate::tests::Guest;

macro_rules! lanes {
    ($name:ident, $lane:ty, $count:literal) => {
        fn $name(value: u128) -> [$lane; $count] {
            let bytes = value.to_le_bytes();
            std::array::from_fn(|index| {
                let size = size_of::<$lane>();
                <$lane>::from_le_bytes(bytes[index * size..][..size].try_into().unwrap())
            })
        }
    };
}

lanes!(u8s, u8, 16);
lanes!(i8s, i8, 16);
lanes!(u16s, u16, 8);
lanes!(i16s, i16, 8);
lanes!(u32s, u32, 4);
lanes!(i32s, i32, 4);
lanes!(u64s, u64, 2);

/// Elements, the lowest first, put together.
trait Together {
    fn together(self) -> u128;
}

macro_rules! together {
    ($($lane:ty)*) => {$(
        impl<const N: usize> Together for [$lane; N] {
            fn together(self) -> u128 {
                let bytes: Vec<u8> = self.iter().flat_map(|lane| lane.to_le_bytes()).collect();
                u128::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}

together! { u8 i8 u16 i16 u32 i32 u64 }

/// `f` of each pair of elements.
fn each<T: Copy, R, const N: usize>(a: [T; N], b: [T; N], f: impl Fn(T, T) -> R) -> [R; N] {
    std::array::from_fn(|index| f(a[index], b[index]))
}

#[test]
fn sums_and_differences_wrap_or_saturate_in_each_element() {
    let mut guest = Guest::long();
    agrees!(guest, paddb, |a, b| each(u8s(a), u8s(b), u8::wrapping_add).together());
    agrees!(guest, paddw, |a, b| each(u16s(a), u16s(b), u16::wrapping_add).together());
    agrees!(guest, paddd, |a, b| each(u32s(a), u32s(b), u32::wrapping_add).together());
    agrees!(guest, paddq, |a, b| each(u64s(a), u64s(b), u64::wrapping_add).together());
    agrees!(guest, psubb, |a, b| each(u8s(a), u8s(b), u8::wrapping_sub).together());
    agrees!(guest, psubq, |a, b| each(u64s(a), u64s(b), u64::wrapping_sub).together());
    agrees!(guest, paddsb, |a, b| each(i8s(a), i8s(b), i8::saturating_add).together());
    agrees!(guest, paddusw, |a, b| each(u16s(a), u16s(b), u16::saturating_add).together());
    agrees!(guest, psubsw, |a, b| each(i16s(a), i16s(b), i16::saturating_sub).together());
    agrees!(guest, psubusb, |a, b| each(u8s(a), u8s(b), u8::saturating_sub).together());
}

#[test]
fn products_keep_the_half_that_their_name_says() {
    let mut guest = Guest::long();
    let word = |value: i32| value.to_le_bytes();
    agrees!(guest, pmullw, |a, b| each(i16s(a), i16s(b), i16::wrapping_mul).together());
    agrees!(guest, pmulhw, |a, b| each(i16s(a), i16s(b), |a, b| {
        let product = word(i32::from(a) * i32::from(b));
        i16::from_le_bytes([product[2], product[3]])
    })
    .together());
    agrees!(guest, pmulhuw, |a, b| each(u16s(a), u16s(b), |a, b| {
        let product = (u32::from(a) * u32::from(b)).to_le_bytes();
        u16::from_le_bytes([product[2], product[3]])
    })
    .together());
    agrees!(guest, pmuludq, |a, b| {
        let (a, b) = (u32s(a), u32s(b));
        [u64::from(a[0]) * u64::from(b[0]), u64::from(a[2]) * u64::from(b[2])].together()
    });
    agrees!(guest, pmaddwd, |a, b| {
        let products = each(i16s(a), i16s(b), |a, b| i32::from(a) * i32::from(b));
        [0, 2, 4, 6].map(|at| products[at].wrapping_add(products[at + 1])).together()
    });
    agrees!(guest, psadbw, |a, b| {
        let apart = each(u8s(a), u8s(b), |a, b| u64::from(a.abs_diff(b)));
        [apart[..8].iter().sum::<u64>(), apart[8..].iter().sum()].together()
    });
}

#[test]
fn comparisons_averages_and_extremes_are_taken_in_each_element() {
    let mut guest = Guest::long();
    let all = |yes: bool| if yes { u8::MAX } else { 0 };
    agrees!(guest, pcmpeqb, |a, b| each(u8s(a), u8s(b), |a, b| all(a == b)).together());
    agrees!(guest, pcmpgtb, |a, b| each(i8s(a), i8s(b), |a, b| all(a > b)).together());
    agrees!(guest, pcmpgtd, |a, b| each(i32s(a), i32s(b), |a, b| -i32::from(a > b)).together());
    agrees!(guest, pcmpeqw, |a, b| each(i16s(a), i16s(b), |a, b| -i16::from(a == b)).together());
    agrees!(guest, pminub, |a, b| each(u8s(a), u8s(b), u8::min).together());
    agrees!(guest, pmaxsw, |a, b| each(i16s(a), i16s(b), i16::max).together());
    agrees!(guest, pavgw, |a, b| each(u16s(a), u16s(b), |a, b| {
        u16::try_from((u32::from(a) + u32::from(b)).div_ceil(2)).unwrap()
    })
    .together());
}

#[test]
fn logic_works_on_all_bits() {
    let mut guest = Guest::long();
    agrees!(guest, pand, |a, b| a & b);
    agrees!(guest, andnps, |a: u128, b| !a & b);
    agrees!(guest, orpd, |a, b| a | b);
    agrees!(guest, pxor, |a, b| a ^ b);
}

#[test]
fn packing_saturates_and_unpacking_interleaves() {
    let mut guest = Guest::long();
    agrees!(guest, packuswb, |a, b| {
        let narrow = |word: i16| u8::try_from(word.clamp(0, 255)).unwrap();
        let (a, b) = (i16s(a).map(narrow), i16s(b).map(narrow));
        std::array::from_fn::<u8, 16, _>(|at| if at < 8 { a[at] } else { b[at - 8] }).together()
    });
    agrees!(guest, packssdw, |a, b| {
        let narrow = |long: i32| i16::try_from(long.clamp(-32768, 32767)).unwrap();
        let (a, b) = (i32s(a).map(narrow), i32s(b).map(narrow));
        std::array::from_fn::<i16, 8, _>(|at| if at < 4 { a[at] } else { b[at - 4] }).together()
    });
    agrees!(guest, punpcklbw, |a, b| {
        let (a, b) = (u8s(a), u8s(b));
        std::array::from_fn::<u8, 16, _>(|at| if at % 2 == 0 { a[at / 2] } else { b[at / 2] })
            .together()
    });
    agrees!(guest, unpckhps, |a, b| {
        let (a, b) = (u32s(a), u32s(b));
        [a[2], b[2], a[3], b[3]].together()
    });
    agrees!(guest, punpckhqdq, |a, b| [u64s(a)[1], u64s(b)[1]].together());
}

#[test]
fn a_shift_by_more_than_the_element_leaves_nothing_or_the_sign() {
    let mut guest = Guest::long();
    let value = 0x8123_4567_89ab_cdef_fedc_ba98_7654_3210u128;
    for count in [0u32, 1, 7, 15, 16, 31, 32, 63, 64, 255] {
        let words = u16s(value).map(|word| word.checked_shl(count).unwrap_or(0)).together();
        let longs = i32s(value).map(|long| long >> count.min(31)).together();
        let quads = u64s(value).map(|quad| quad.checked_shr(count).unwrap_or(0)).together();
        let by = u128::from(count);
        let mut one = |code: &mut dyn FnMut(&mut CodeAssembler) -> Result<(), IcedError>| {
            super::applied(&mut guest, value, by, |assembler| code(assembler))
        };
        assert_eq!(one(&mut |code| code.psllw(xmm1, xmm9)), words);
        assert_eq!(one(&mut |code| code.psllw(xmm1, xmmword_ptr(rdi))), words);
        assert_eq!(one(&mut |code| code.psllw(xmm1, count)), words);
        assert_eq!(one(&mut |code| code.psrad(xmm1, xmm9)), longs);
        assert_eq!(one(&mut |code| code.psrad(xmm1, count)), longs);
        assert_eq!(one(&mut |code| code.psrlq(xmm1, xmm9)), quads);
        assert_eq!(one(&mut |code| code.psrlq(xmm1, count)), quads);
        let bytes = |shift: fn(u128, u32) -> Option<u128>| {
            count.checked_mul(8).and_then(|bits| shift(value, bits)).unwrap_or(0)
        };
        assert_eq!(one(&mut |code| code.pslldq(xmm1, count)), bytes(u128::checked_shl));
        assert_eq!(one(&mut |code| code.psrldq(xmm1, count)), bytes(u128::checked_shr));
    }
    let huge = super::applied(&mut guest, value, 1 << 40, |code| code.pslld(xmm1, xmm9));
    assert_eq!(huge, 0, "all 64 bits of the count matter");
}

#[test]
fn an_immediate_byte_chooses_elements() {
    let mut guest = Guest::long();
    let (a, b) =
        (0x1111_2222_3333_4444_5555_6666_7777_8888, 0x9999_aaaa_bbbb_cccc_dddd_eeee_ffff_0000u128);
    for choice in 0..256u32 {
        let two = |at: u32| (choice >> at & 3) as usize;
        let (x, y, words) = (u32s(a), u32s(b), u16s(b));
        let got = super::applied(&mut guest, a, b, |code| code.pshufd(xmm1, xmm9, choice));
        assert_eq!(got, [y[two(0)], y[two(2)], y[two(4)], y[two(6)]].together());
        let got =
            super::applied(&mut guest, a, b, |code| code.shufps(xmm1, xmmword_ptr(rdi), choice));
        assert_eq!(got, [x[two(0)], x[two(2)], y[two(4)], y[two(6)]].together());
        let got = super::applied(&mut guest, a, b, |code| code.pshuflw(xmm1, xmm9, choice));
        let mut expected = words;
        (0..4).for_each(|at| expected[at as usize] = words[two(2 * at)]);
        assert_eq!(got, expected.together());
        let got = super::applied(&mut guest, a, b, |code| code.pshufhw(xmm1, xmm9, choice));
        let mut expected = words;
        (0..4).for_each(|at| expected[4 + at as usize] = words[4 + two(2 * at)]);
        assert_eq!(got, expected.together());
        let got = super::applied(&mut guest, a, b, |code| code.shufpd(xmm1, xmm9, choice));
        let halves = [u64s(a)[(choice & 1) as usize], u64s(b)[(choice >> 1 & 1) as usize]];
        assert_eq!(got, halves.together());
    }
}
