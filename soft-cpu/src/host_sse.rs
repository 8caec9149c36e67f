//! SSE instructions, done by the host's own: the same bits, the same NaN payloads, the same exceptions.
//!
//! # Invariant
//!
//! Every block here works on registers alone (and on the constants and locals it is handed by address); none
//! touches guest memory. Outside of this module MXCSR is as Rust wants it: rounding to nearest, every
//! exception masked, denormals kept. An instruction that looks at MXCSR runs between two `ldmxcsr`: the first
//! brings the guest's rounding and denormal modes (with every exception masked and none flagged), the second brings
//! the host's back; what was flagged in between is handed out with the result. A signal in between
//! does no harm: its handler starts with a fresh MXCSR (Linux, x86: `fpu__clear_user_states`).

#![expect(unsafe_code, reason = "instructions on registers, some under the guest's MXCSR")]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use crate::float_lanes::{self, Arithmetic, Lanes, is_denormal};

/// MXCSR as Rust wants it.
const HOST: u32 = mxcsr::ALL_MASKED;

/// Bits of MXCSR (Intel SDM vol. 1, "MXCSR Control and Status Register").
pub(crate) mod mxcsr {
    /// Invalid operation.
    pub(crate) const IE: u32 = 1 << 0;
    /// A denormal operand.
    pub(crate) const DE: u32 = 1 << 1;
    /// Division by zero.
    pub(crate) const ZE: u32 = 1 << 2;
    /// Overflow.
    pub(crate) const OE: u32 = 1 << 3;
    /// Underflow.
    pub(crate) const UE: u32 = 1 << 4;
    /// An inexact result.
    pub(crate) const PE: u32 = 1 << 5;
    /// All six flags.
    pub(crate) const FLAGS: u32 = IE | DE | ZE | OE | UE | PE;
    /// Denormal operands count as zeroes.
    pub(crate) const DAZ: u32 = 1 << 6;
    /// From a flag to the bit that masks its exception.
    pub(crate) const TO_MASK: u32 = 7;
    /// Every exception masked.
    pub(crate) const ALL_MASKED: u32 = FLAGS << TO_MASK;
    /// Rounding control.
    pub(crate) const ROUNDING: u32 = 3 << 13;
    /// Tiny results become zeroes.
    pub(crate) const FTZ: u32 = 1 << 15;
}

#[inline(always)]
fn vector(bits: u128) -> __m128i {
    // SAFETY: both types are 16 bytes without any meaning of their own.
    unsafe { std::mem::transmute::<u128, __m128i>(bits) }
}

#[inline(always)]
fn bits(vector: __m128i) -> u128 {
    // SAFETY: as for `vector`.
    unsafe { std::mem::transmute::<__m128i, u128>(vector) }
}

/// An instruction with a destination and a source that neither reads nor changes MXCSR.
pub(crate) trait Plain: 'static {
    /// The new destination, from the old one and the source.
    fn apply(destination: u128, source: u128) -> u128;
}

macro_rules! plain {
    ($($name:ident $text:literal)*) => {$(
        pub(crate) struct $name;
        impl Plain for $name {
            #[inline(always)]
            fn apply(destination: u128, source: u128) -> u128 {
                let mut destination = vector(destination);
                // SAFETY: it works on the two registers alone.
                unsafe {
                    asm!(concat!($text, " {0}, {1}"), inout(xmm_reg) destination,
                        in(xmm_reg) vector(source), options(pure, nomem, nostack, preserves_flags));
                }
                bits(destination)
            }
        }
    )*};
}

plain! {
    Paddb "paddb" Paddw "paddw" Paddd "paddd" Paddq "paddq"
    Paddsb "paddsb" Paddsw "paddsw" Paddusb "paddusb" Paddusw "paddusw"
    Psubb "psubb" Psubw "psubw" Psubd "psubd" Psubq "psubq"
    Psubsb "psubsb" Psubsw "psubsw" Psubusb "psubusb" Psubusw "psubusw"
    Pmullw "pmullw" Pmulhw "pmulhw" Pmulhuw "pmulhuw" Pmuludq "pmuludq"
    Pmaddwd "pmaddwd" Psadbw "psadbw" Pavgb "pavgb" Pavgw "pavgw"
    Pminub "pminub" Pminsw "pminsw" Pmaxub "pmaxub" Pmaxsw "pmaxsw"
    Pcmpeqb "pcmpeqb" Pcmpeqw "pcmpeqw" Pcmpeqd "pcmpeqd"
    Pcmpgtb "pcmpgtb" Pcmpgtw "pcmpgtw" Pcmpgtd "pcmpgtd"
    Psllw "psllw" Pslld "pslld" Psllq "psllq"
    Psrlw "psrlw" Psrld "psrld" Psrlq "psrlq" Psraw "psraw" Psrad "psrad"
    Packsswb "packsswb" Packssdw "packssdw" Packuswb "packuswb"
    Punpcklbw "punpcklbw" Punpcklwd "punpcklwd" Punpckldq "punpckldq" Punpcklqdq "punpcklqdq"
    Pshufb "pshufb" Phaddw "phaddw" Phaddd "phaddd" Phaddsw "phaddsw"
    Phsubw "phsubw" Phsubd "phsubd" Phsubsw "phsubsw" Pmaddubsw "pmaddubsw" Pmulhrsw "pmulhrsw"
    Psignb "psignb" Psignw "psignw" Psignd "psignd" Pabsb "pabsb" Pabsw "pabsw" Pabsd "pabsd"
    Movsldup "movsldup" Movshdup "movshdup"
    Punpckhbw "punpckhbw" Punpckhwd "punpckhwd" Punpckhdq "punpckhdq" Punpckhqdq "punpckhqdq"
}

/// Gathers the sign bits of a register's elements.
pub(crate) trait Signs: 'static {
    /// The bits, the lowest element's first.
    fn gather(source: u128) -> u64;
}

macro_rules! signs {
    ($($name:ident $text:literal)*) => {$(
        pub(crate) struct $name;
        impl Signs for $name {
            #[inline(always)]
            fn gather(source: u128) -> u64 {
                let signs: u64;
                // SAFETY: it works on the two registers alone.
                unsafe {
                    asm!(concat!($text, " {0:e}, {1}"), out(reg) signs, in(xmm_reg) vector(source),
                        options(pure, nomem, nostack, preserves_flags));
                }
                signs
            }
        }
    )*};
}

signs! { Pmovmskb "pmovmskb" Movmskps "movmskps" Movmskpd "movmskpd" }

/// An instruction that looks at MXCSR.
pub(crate) trait Float: 'static {
    /// The old destination, if it matters.
    type Destination: Copy;
    /// The source.
    type Source: Copy;
    /// The new destination.
    type Result;

    /// What is calculated in which elements, if the result can be too large or too small for them, and the two
    /// operands.
    fn lanes(
        _destination: Self::Destination,
        _source: Self::Source,
    ) -> Option<(Lanes, u128, u128)> {
        None
    }

    /// The result under the host's MXCSR, if nothing but [`mxcsr::PE`] can have been flagged. Reading flags takes
    /// longer than anything else here.
    #[inline(always)]
    fn quick(_destination: Self::Destination, _source: Self::Source) -> Option<Self::Result> {
        None
    }

    /// The result, and what was flagged, under the modes of `control`: of that every exception must be masked, and no
    /// flag set.
    fn apply(
        control: u32,
        destination: Self::Destination,
        source: Self::Source,
    ) -> (Self::Result, u32);
}

/// Puts `$text` between the guest's MXCSR and the host's.
macro_rules! under {
    ($control:ident, $status:ident, $text:expr, $($operands:tt)*) => {
        // SAFETY: between the two loads of MXCSR, which `control` and `HOST` make valid ones, stands one instruction
        // on registers; the only memory touched is the constant and the two locals.
        unsafe {
            asm!("ldmxcsr dword ptr [{control}]", $text, "stmxcsr dword ptr [{status}]",
                "ldmxcsr dword ptr [{host}]",
                control = in(reg) &raw const $control,
                status = in(reg) &raw mut $status,
                host = in(reg) &raw const HOST_MXCSR,
                $($operands)*)
        }
    };
}

/// Executes `$text` under the host's MXCSR. What it flags there stays: Rust wants modes and masks, not flags.
macro_rules! alone {
    ($text:expr, $($operands:tt)*) => {
        // SAFETY: it works on the registers alone; flags count as changed.
        unsafe { asm!($text, $($operands)*, options(pure, nomem, nostack)) }
    };
}

static HOST_MXCSR: u32 = HOST;

macro_rules! floats {
    ($($name:ident $text:literal $($predicate:literal)? $([$operation:ident $from:literal $to:literal $count:literal])? $({$lanes:expr})?)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            type Destination = u128;
            type Source = u128;
            type Result = u128;

            $(
                fn lanes(destination: u128, source: u128) -> Option<(Lanes, u128, u128)> {
                    Some($lanes(destination, source))
                }
            )?

            $(
                fn lanes(destination: u128, source: u128) -> Option<(Lanes, u128, u128)> {
                    let operation = Arithmetic::$operation;
                    Some((Lanes { operation, from: $from, to: $to, count: $count }, destination, source))
                }

                #[inline(always)]
                fn quick(destination: u128, source: u128) -> Option<u128> {
                    let mut result = vector(destination);
                    alone!(concat!($text, " {result}, {source}"),
                        result = inout(xmm_reg) result, source = in(xmm_reg) vector(source));
                    let operation = Arithmetic::$operation;
                    Lanes { operation, from: $from, to: $to, count: $count }
                        .are_ordinary(destination, source, bits(result))
                        .then(|| bits(result))
                }
            )?

            #[inline(always)]
            fn apply(control: u32, destination: u128, source: u128) -> (u128, u32) {
                debug_assert_eq!(control & (HOST | mxcsr::FLAGS), HOST);
                let mut status = 0u32;
                let mut destination = vector(destination);
                under!(control, status, concat!($text, " {destination}, {source}" $(, ", ", $predicate)?),
                    destination = inout(xmm_reg) destination,
                    source = in(xmm_reg) vector(source),
                    options(nostack));
                (bits(destination), status & mxcsr::FLAGS)
            }
        }
    )*};
}

floats! {
    Addps "addps" [Add 4 4 4] Addpd "addpd" [Add 8 8 2] Addss "addss" [Add 4 4 1] Addsd "addsd" [Add 8 8 1]
    Subps "subps" [Subtract 4 4 4] Subpd "subpd" [Subtract 8 8 2] Subss "subss" [Subtract 4 4 1] Subsd "subsd" [Subtract 8 8 1]
    Mulps "mulps" [Multiply 4 4 4] Mulpd "mulpd" [Multiply 8 8 2] Mulss "mulss" [Multiply 4 4 1] Mulsd "mulsd" [Multiply 8 8 1]
    Divps "divps" [Divide 4 4 4] Divpd "divpd" [Divide 8 8 2] Divss "divss" [Divide 4 4 1] Divsd "divsd" [Divide 8 8 1]
    Addsubps "addsubps" {|a, b| float_lanes::alternating(4, a, b)}
    Addsubpd "addsubpd" {|a, b| float_lanes::alternating(8, a, b)}
    Haddps "haddps" {|a, b| float_lanes::neighbours(Arithmetic::Add, 4, a, b)}
    Haddpd "haddpd" {|a, b| float_lanes::neighbours(Arithmetic::Add, 8, a, b)}
    Hsubps "hsubps" {|a, b| float_lanes::neighbours(Arithmetic::Subtract, 4, a, b)}
    Hsubpd "hsubpd" {|a, b| float_lanes::neighbours(Arithmetic::Subtract, 8, a, b)}
    Minps "minps" Minpd "minpd" Minss "minss" Minsd "minsd"
    Maxps "maxps" Maxpd "maxpd" Maxss "maxss" Maxsd "maxsd"
    Sqrtps "sqrtps" Sqrtpd "sqrtpd" Sqrtss "sqrtss" Sqrtsd "sqrtsd"
    Rcpps "rcpps" Rcpss "rcpss" Rsqrtps "rsqrtps" Rsqrtss "rsqrtss"
    Cvtdq2ps "cvtdq2ps" Cvtps2dq "cvtps2dq" Cvttps2dq "cvttps2dq"
    Cvtdq2pd "cvtdq2pd" Cvtpd2dq "cvtpd2dq" Cvttpd2dq "cvttpd2dq"
    Cvtps2pd "cvtps2pd" Cvtpd2ps "cvtpd2ps" [Narrow 8 4 2] Cvtss2sd "cvtss2sd" Cvtsd2ss "cvtsd2ss" [Narrow 8 4 1]
}

/// One kind of `cmpps` and its like, with its eight predicates.
pub(crate) trait Compare: 'static {
    type Equal: Float<Destination = u128, Source = u128, Result = u128>;
    type Less: Float<Destination = u128, Source = u128, Result = u128>;
    type LessOrEqual: Float<Destination = u128, Source = u128, Result = u128>;
    type Unordered: Float<Destination = u128, Source = u128, Result = u128>;
    type NotEqual: Float<Destination = u128, Source = u128, Result = u128>;
    type NotLess: Float<Destination = u128, Source = u128, Result = u128>;
    type NotLessOrEqual: Float<Destination = u128, Source = u128, Result = u128>;
    type Ordered: Float<Destination = u128, Source = u128, Result = u128>;
}

macro_rules! compares {
    ($($name:ident $module:ident $text:literal)*) => {$(
        pub(crate) struct $name;
        mod $module {
            use super::{Float, HOST, HOST_MXCSR, bits, mxcsr, vector};
            use std::arch::asm;

            floats! {
                Equal $text "0" Less $text "1" LessOrEqual $text "2" Unordered $text "3"
                NotEqual $text "4" NotLess $text "5" NotLessOrEqual $text "6" Ordered $text "7"
            }
        }
        impl Compare for $name {
            type Equal = $module::Equal;
            type Less = $module::Less;
            type LessOrEqual = $module::LessOrEqual;
            type Unordered = $module::Unordered;
            type NotEqual = $module::NotEqual;
            type NotLess = $module::NotLess;
            type NotLessOrEqual = $module::NotLessOrEqual;
            type Ordered = $module::Ordered;
        }
    )*};
}

compares! { Cmpps cmpps "cmpps" Cmppd cmppd "cmppd" Cmpss cmpss "cmpss" Cmpsd cmpsd "cmpsd" }

macro_rules! flag_compares {
    ($($name:ident $text:literal $bytes:literal)*) => {$(
        /// Its result is what it leaves in the low byte of RFLAGS.
        pub(crate) struct $name;
        impl Float for $name {
            type Destination = u128;
            type Source = u128;
            type Result = u64;

            #[inline(always)]
            fn quick(destination: u128, source: u128) -> Option<u64> {
                let flags: u64;
                alone!(concat!($text, " {destination}, {source}\nlahf"),
                    destination = in(xmm_reg) vector(destination),
                    source = in(xmm_reg) vector(source), out("rax") flags);
                // PF: a NaN was there.
                (flags >> 8 & 4 == 0
                    && !is_denormal(destination, $bytes)
                    && !is_denormal(source, $bytes))
                .then_some(flags >> 8 & 0xff)
            }

            #[inline(always)]
            fn apply(control: u32, destination: u128, source: u128) -> (u64, u32) {
                debug_assert_eq!(control & (HOST | mxcsr::FLAGS), HOST);
                let mut status = 0u32;
                let flags: u64;
                under!(control, status, concat!($text, " {destination}, {source}\nlahf"),
                    destination = in(xmm_reg) vector(destination),
                    source = in(xmm_reg) vector(source),
                    out("rax") flags,
                    options(nostack));
                (flags >> 8 & 0xff, status & mxcsr::FLAGS)
            }
        }
    )*};
}

flag_compares! { Comiss "comiss" 4 Comisd "comisd" 8 Ucomiss "ucomiss" 4 Ucomisd "ucomisd" 8 }

const INDEFINITE32: u64 = 1 << 31;
const INDEFINITE64: u64 = 1 << 63;

macro_rules! to_general {
    ($($name:ident $indefinite:ident $text:literal)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            type Destination = ();
            type Source = u128;
            type Result = u64;

            #[inline(always)]
            fn quick((): (), source: u128) -> Option<u64> {
                let result: u64;
                alone!($text, source = in(xmm_reg) vector(source), result = out(reg) result);
                // What is out of range becomes the indefinite.
                (result != $indefinite).then_some(result)
            }

            #[inline(always)]
            fn apply(control: u32, (): (), source: u128) -> (u64, u32) {
                debug_assert_eq!(control & (HOST | mxcsr::FLAGS), HOST);
                let mut status = 0u32;
                let result: u64;
                under!(control, status, $text,
                    source = in(xmm_reg) vector(source),
                    result = out(reg) result,
                    options(nostack));
                (result, status & mxcsr::FLAGS)
            }
        }
    )*};
}

to_general! {
    Cvtss2si32 INDEFINITE32 "cvtss2si {result:e}, {source}" Cvtss2si64 INDEFINITE64 "cvtss2si {result:r}, {source}"
    Cvtsd2si32 INDEFINITE32 "cvtsd2si {result:e}, {source}" Cvtsd2si64 INDEFINITE64 "cvtsd2si {result:r}, {source}"
    Cvttss2si32 INDEFINITE32 "cvttss2si {result:e}, {source}" Cvttss2si64 INDEFINITE64 "cvttss2si {result:r}, {source}"
    Cvttsd2si32 INDEFINITE32 "cvttsd2si {result:e}, {source}" Cvttsd2si64 INDEFINITE64 "cvttsd2si {result:r}, {source}"
}

macro_rules! from_general {
    ($($name:ident $text:literal)*) => {$(
        pub(crate) struct $name;
        impl Float for $name {
            type Destination = u128;
            type Source = u64;
            type Result = u128;

            #[inline(always)]
            fn quick(destination: u128, source: u64) -> Option<u128> {
                let mut destination = vector(destination);
                alone!($text, destination = inout(xmm_reg) destination, source = in(reg) source);
                Some(bits(destination))
            }

            #[inline(always)]
            fn apply(control: u32, destination: u128, source: u64) -> (u128, u32) {
                debug_assert_eq!(control & (HOST | mxcsr::FLAGS), HOST);
                let mut status = 0u32;
                let mut destination = vector(destination);
                under!(control, status, $text,
                    destination = inout(xmm_reg) destination,
                    source = in(reg) source,
                    options(nostack));
                (bits(destination), status & mxcsr::FLAGS)
            }
        }
    )*};
}

from_general! {
    Cvtsi2ss32 "cvtsi2ss {destination}, {source:e}" Cvtsi2ss64 "cvtsi2ss {destination}, {source:r}"
    Cvtsi2sd32 "cvtsi2sd {destination}, {source:e}" Cvtsi2sd64 "cvtsi2sd {destination}, {source:r}"
}
