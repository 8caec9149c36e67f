//! Elements that change their places: packing, unpacking, shuffles by an immediate byte.

use iced_x86::{Code, Instruction};

use super::{Aligned, Register, Source, from_either, get, imm8, permit, plain, set};
use crate::cpu::Cpu;
use crate::host_sse as host;
use crate::op::{Done, Handler, Op};

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Packsswb_xmm_xmmm128 => plain::<host::Packsswb>(i, op),
        Code::Packssdw_xmm_xmmm128 => plain::<host::Packssdw>(i, op),
        Code::Packuswb_xmm_xmmm128 => plain::<host::Packuswb>(i, op),
        Code::Punpcklbw_xmm_xmmm128 => plain::<host::Punpcklbw>(i, op),
        Code::Punpcklwd_xmm_xmmm128 => plain::<host::Punpcklwd>(i, op),
        Code::Punpckldq_xmm_xmmm128 | Code::Unpcklps_xmm_xmmm128 => plain::<host::Punpckldq>(i, op),
        Code::Punpcklqdq_xmm_xmmm128 | Code::Unpcklpd_xmm_xmmm128 => {
            plain::<host::Punpcklqdq>(i, op)
        }
        Code::Punpckhbw_xmm_xmmm128 => plain::<host::Punpckhbw>(i, op),
        Code::Punpckhwd_xmm_xmmm128 => plain::<host::Punpckhwd>(i, op),
        Code::Punpckhdq_xmm_xmmm128 | Code::Unpckhps_xmm_xmmm128 => plain::<host::Punpckhdq>(i, op),
        Code::Punpckhqdq_xmm_xmmm128 | Code::Unpckhpd_xmm_xmmm128 => {
            plain::<host::Punpckhqdq>(i, op)
        }
        Code::Pshufd_xmm_xmmm128_imm8 => by_immediate::<Doublewords>(i, op),
        Code::Pshuflw_xmm_xmmm128_imm8 => by_immediate::<LowWords>(i, op),
        Code::Pshufhw_xmm_xmmm128_imm8 => by_immediate::<HighWords>(i, op),
        Code::Shufps_xmm_xmmm128_imm8 => by_immediate::<Singles>(i, op),
        Code::Shufpd_xmm_xmmm128_imm8 => by_immediate::<Doubles>(i, op),
        _ => None,
    }
}

/// A shuffle that an immediate byte describes.
trait Shuffle: 'static {
    fn apply(destination: u128, source: u128, choice: u64) -> u128;
}

fn by_immediate<O: Shuffle>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.imm = u64::from(imm8(i)?);
    from_either(i, op, run::<O, Register>, run::<O, Aligned>)
}

fn run<O: Shuffle, S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let source = S::read(cpu, op)?;
    set(cpu, op.dst, O::apply(get(cpu, op.dst), source, op.imm));
    Ok(())
}

/// Of four, the one that bits `at` and `at + 1` of `choice` name.
#[inline(always)]
fn of_four<T: Copy>(elements: [T; 4], choice: u64, at: u32) -> T {
    elements[usize::try_from(choice >> at & 3).unwrap_or(0)]
}

#[inline(always)]
fn doublewords(value: u128) -> [u32; 4] {
    #[expect(clippy::cast_possible_truncation, reason = "a part at a time")]
    [0, 32, 64, 96].map(|shift| (value >> shift) as u32)
}

#[inline(always)]
fn whole(parts: [u32; 4]) -> u128 {
    parts.iter().rev().fold(0, |value, part| value << 32 | u128::from(*part))
}

/// The four words of the low half, shuffled.
#[inline(always)]
fn four_words(half: u64, choice: u64) -> u64 {
    let words = [0, 16, 32, 48].map(|shift| half >> shift & 0xffff);
    of_four(words, choice, 0)
        | of_four(words, choice, 2) << 16
        | of_four(words, choice, 4) << 32
        | of_four(words, choice, 6) << 48
}

struct Doublewords;
impl Shuffle for Doublewords {
    #[inline(always)]
    fn apply(_destination: u128, source: u128, choice: u64) -> u128 {
        let parts = doublewords(source);
        whole([0, 2, 4, 6].map(|at| of_four(parts, choice, at)))
    }
}

struct LowWords;
impl Shuffle for LowWords {
    #[inline(always)]
    fn apply(_destination: u128, source: u128, choice: u64) -> u128 {
        super::joined(four_words(super::low(source), choice), super::high(source))
    }
}

struct HighWords;
impl Shuffle for HighWords {
    #[inline(always)]
    fn apply(_destination: u128, source: u128, choice: u64) -> u128 {
        super::joined(super::low(source), four_words(super::high(source), choice))
    }
}

/// Two of the destination's below two of the source's.
struct Singles;
impl Shuffle for Singles {
    #[inline(always)]
    fn apply(destination: u128, source: u128, choice: u64) -> u128 {
        let (below, above) = (doublewords(destination), doublewords(source));
        whole([
            of_four(below, choice, 0),
            of_four(below, choice, 2),
            of_four(above, choice, 4),
            of_four(above, choice, 6),
        ])
    }
}

/// One of the destination's below one of the source's.
struct Doubles;
impl Shuffle for Doubles {
    #[inline(always)]
    fn apply(destination: u128, source: u128, choice: u64) -> u128 {
        let half = |value, choice| {
            if choice & 1 == 0 { super::low(value) } else { super::high(value) }
        };
        super::joined(half(destination, choice), half(source, choice >> 1))
    }
}
