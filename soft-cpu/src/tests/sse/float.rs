//! Floating-point results against Rust's own arithmetic.

use iced_x86::code_asm::*;

use super::applied;
use crate::cpu::reg;
use crate::flags::{CF, PF, ZF};
use crate::tests::{DATA, Guest};

/// Numbers of every kind but NaN: results of those are not Rust's to say.
const NUMBERS: [f64; 12] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    3.25e7,
    1e-30,
    -7.7e30,
    1.0 / 3.0,
    1e-40,
    f64::MAX,
    1e-310,
    f64::INFINITY,
];

fn singles(value: u128) -> [f32; 4] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|at| f32::from_le_bytes(bytes[4 * at..][..4].try_into().unwrap()))
}

fn doubles(value: u128) -> [f64; 2] {
    let bytes = value.to_le_bytes();
    std::array::from_fn(|at| f64::from_le_bytes(bytes[8 * at..][..8].try_into().unwrap()))
}

pub(super) fn of_singles(values: [f32; 4]) -> u128 {
    values.iter().rev().fold(0, |all, value| all << 32 | u128::from(value.to_bits()))
}

pub(super) fn of_doubles(values: [f64; 2]) -> u128 {
    u128::from(values[1].to_bits()) << 64 | u128::from(values[0].to_bits())
}

#[expect(clippy::cast_possible_truncation, reason = "that is the conversion")]
fn pairs() -> impl Iterator<Item = ([f32; 4], [f32; 4], [f64; 2], [f64; 2])> {
    (0..NUMBERS.len()).flat_map(|first| {
        (0..NUMBERS.len()).map(move |second| {
            let double = |at: usize| NUMBERS[at % NUMBERS.len()];
            let single = |at: usize| double(at) as f32;
            (
                [single(first), single(first + 1), single(first + 2), single(first + 3)],
                [single(second), single(second + 5), single(second + 6), single(second + 7)],
                [double(first), double(first + 1)],
                [double(second), double(second + 5)],
            )
        })
    })
}

/// The same NaN or the same bits: which NaN an invalid operation makes is checked elsewhere.
fn same(got: f64, expected: f64) -> bool {
    got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
}

macro_rules! arithmetic {
    ($($packed_single:ident $single:ident $packed_double:ident $double:ident |$a:ident, $b:ident| $body:expr;)*) => {$(
        #[test]
        fn $packed_double() {
            let mut guest = Guest::long();
            let of_single = |$a: f32, $b: f32| -> f32 { $body };
            let of_double = |$a: f64, $b: f64| -> f64 { $body };
            for (a, b, c, d) in pairs() {
                let (ab, bb) = (of_singles(a), of_singles(b));
                for got in [
                    applied(&mut guest, ab, bb, |code| code.$packed_single(xmm1, xmm9)),
                    applied(&mut guest, ab, bb, |code| code.$packed_single(xmm1, xmmword_ptr(rdi))),
                ] {
                    for (at, got) in singles(got).into_iter().enumerate() {
                        assert!(same(got.into(), of_single(a[at], b[at]).into()), "{a:?} {b:?} {got}");
                    }
                }
                for got in [
                    applied(&mut guest, ab, bb, |code| code.$single(xmm1, xmm9)),
                    applied(&mut guest, ab, bb, |code| code.$single(xmm1, dword_ptr(rdi))),
                ] {
                    assert!(same(singles(got)[0].into(), of_single(a[0], b[0]).into()));
                    assert_eq!(got >> 32, ab >> 32, "the rest stays");
                }
                let (cb, db) = (of_doubles(c), of_doubles(d));
                for got in [
                    applied(&mut guest, cb, db, |code| code.$packed_double(xmm1, xmm9)),
                    applied(&mut guest, cb, db, |code| code.$packed_double(xmm1, xmmword_ptr(rdi))),
                ] {
                    for (at, got) in doubles(got).into_iter().enumerate() {
                        assert!(same(got, of_double(c[at], d[at])), "{c:?} {d:?} {got}");
                    }
                }
                for got in [
                    applied(&mut guest, cb, db, |code| code.$double(xmm1, xmm9)),
                    applied(&mut guest, cb, db, |code| code.$double(xmm1, qword_ptr(rdi))),
                ] {
                    assert!(same(doubles(got)[0], of_double(c[0], d[0])));
                    assert_eq!(got >> 64, cb >> 64, "the rest stays");
                }
            }
        }
    )*};
}

mod each_element_is_what_scalar_arithmetic_says {
    use super::*;

    arithmetic! {
        addps addss addpd addsd |a, b| a + b;
        subps subss subpd subsd |a, b| a - b;
        mulps mulss mulpd mulsd |a, b| a * b;
        divps divss divpd divsd |a, b| a / b;
        sqrtps sqrtss sqrtpd sqrtsd |_a, b| b.sqrt();
        minps minss minpd minsd |a, b| if a < b { a } else { b };
        maxps maxss maxpd maxsd |a, b| if a > b { a } else { b };
    }
}

#[test]
fn approximations_are_close_and_leave_mxcsr_alone() {
    let mut guest = Guest::long();
    let b = of_singles([3.0, 0.5, -7.0, 1e10]);
    let got = applied(&mut guest, 0, b, |code| code.rcpps(xmm1, xmm9));
    for (got, of) in singles(got).into_iter().zip(singles(b)) {
        assert!((got * of - 1.0).abs() < 1.5 / 4096.0);
    }
    let b = of_singles([3.0, 0.5, 7.0, 1e10]);
    let got = applied(&mut guest, 0, b, |code| code.rsqrtps(xmm1, xmmword_ptr(rdi)));
    for (got, of) in singles(got).into_iter().zip(singles(b)) {
        assert!((got * of.sqrt() - 1.0).abs() < 1.5 / 4096.0);
    }
    assert_eq!(guest.processor.cpu.mxcsr, 0x1f80);
}

#[test]
fn the_eight_predicates_hold_where_they_should() {
    let mut guest = Guest::long();
    let pairs = [(1.0, 2.0), (2.0, 1.0), (1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::NAN)];
    for (a, b) in pairs {
        let holds = [
            a == b,
            a < b,
            a <= b,
            a.is_nan() || b.is_nan(),
            a != b,
            // Not the opposites: unordered numbers are "not less" too.
            a >= b || a.is_nan() || b.is_nan(),
            a > b || a.is_nan() || b.is_nan(),
            !a.is_nan() && !b.is_nan(),
        ];
        for (predicate, holds) in (0u32..).zip(holds) {
            let all = if holds { u64::MAX } else { 0 };
            // The upper bits of the immediate mean nothing here.
            for choice in [predicate, predicate | 0xf8] {
                let (x, y) = (of_doubles([a, 4.0]), of_doubles([b, 4.0]));
                let got = applied(&mut guest, x, y, |code| code.cmppd(xmm1, xmm9, choice));
                assert_eq!(got & u128::from(u64::MAX), u128::from(all), "{a} {predicate} {b}");
                let got =
                    applied(&mut guest, x, y, |code| code.cmpsd_3(xmm1, qword_ptr(rdi), choice));
                assert_eq!(got, x >> 64 << 64 | u128::from(all));
                #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
                let single = |value: f64| of_singles([value as f32; 4]);
                let got = applied(&mut guest, single(a), single(b), |code| {
                    code.cmpps(xmm1, xmmword_ptr(rdi), choice)
                });
                assert_eq!(got, if holds { u128::MAX } else { 0 });
                let got = applied(&mut guest, single(a), single(b), |code| {
                    code.cmpss(xmm1, xmm9, choice)
                });
                assert_eq!(got, single(a) >> 32 << 32 | u128::from(all & 0xffff_ffff));
            }
        }
    }
}

#[test]
fn a_comparison_tells_four_outcomes_in_the_flags() {
    let mut guest = Guest::long();
    let outcomes = [(1.0, 2.0, CF), (2.0, 1.0, 0), (1.0, 1.0, ZF), (f64::NAN, 1.0, ZF | PF | CF)];
    for (a, b, flags) in outcomes {
        #[expect(clippy::cast_possible_truncation, reason = "small numbers")]
        let single = |value: f64| of_singles([value as f32; 4]);
        let (x, y) = (of_doubles([a, 0.0]), of_doubles([b, 0.0]));
        let mut with = |a, b, code: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
            // Every flag is written, also those that end up clear.
            guest.processor.cpu.set_rflags(crate::flags::ARITHMETIC);
            guest.processor.cpu.mxcsr = 0x1f80;
            applied(&mut guest, a, b, code);
            let cpu = &guest.processor.cpu;
            (cpu.rflags() & crate::flags::ARITHMETIC, cpu.mxcsr & 0x3f)
        };
        let invalid = u32::from(a.is_nan());
        assert_eq!(with(x, y, |code| code.comisd(xmm1, xmm9)), (flags, invalid));
        assert_eq!(with(x, y, |code| code.ucomisd(xmm1, qword_ptr(rdi))), (flags, 0));
        let (x, y) = (single(a), single(b));
        assert_eq!(with(x, y, |code| code.comiss(xmm1, dword_ptr(rdi))), (flags, invalid));
        assert_eq!(with(x, y, |code| code.ucomiss(xmm1, xmm9)), (flags, 0));
    }
}

#[test]
fn conversions_between_formats_put_their_elements_where_they_belong() {
    let mut guest = Guest::long();
    let mut one = |b: u128, code: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        applied(&mut guest, u128::MAX, b, code)
    };
    let four = of_singles([1.5, -2.5, 3e9, -0.75]);
    let integers = |values: [i32; 4]| {
        values.iter().rev().fold(0, |all, value| all << 32 | u128::from(value.cast_unsigned()))
    };
    let ones = u128::from(u64::MAX) << 64;
    assert_eq!(one(four, |c| c.cvtps2dq(xmm1, xmm9)), integers([2, -2, i32::MIN, -1]));
    assert_eq!(one(four, |c| c.cvttps2dq(xmm1, xmm9)), integers([1, -2, i32::MIN, 0]));
    assert_eq!(one(four, |c| c.cvtps2pd(xmm1, qword_ptr(rdi))), of_doubles([1.5, -2.5]));
    assert_eq!(one(four, |c| c.cvtss2sd(xmm1, dword_ptr(rdi))), { ones | of_doubles([1.5, 0.0]) });
    let two = of_doubles([2.5, -7.5]);
    assert_eq!(one(two, |c| c.cvtpd2dq(xmm1, xmm9)), integers([2, -8, 0, 0]));
    assert_eq!(one(two, |c| c.cvttpd2dq(xmm1, xmmword_ptr(rdi))), integers([2, -7, 0, 0]));
    assert_eq!(one(two, |c| c.cvtpd2ps(xmm1, xmm9)), of_singles([2.5, -7.5, 0.0, 0.0]));
    assert_eq!(one(two, |c| c.cvtsd2ss(xmm1, qword_ptr(rdi))), {
        u128::MAX << 32 | u128::from(2.5f32.to_bits())
    });
    let some = integers([7, -8, 1 << 30, i32::MIN]);
    assert_eq!(one(some, |c| c.cvtdq2pd(xmm1, qword_ptr(rdi))), of_doubles([7.0, -8.0]));
    assert_eq!(one(some, |c| c.cvtdq2ps(xmm1, xmm9)), {
        of_singles([7.0, -8.0, 1_073_741_824.0, -2_147_483_648.0])
    });
}

#[test]
fn general_registers_are_converted_at_their_width() {
    let mut guest = Guest::long();
    guest.memory.write64(DATA, (-9_000_000_000_000_000_000i64).cast_unsigned());
    guest.processor.cpu.xmm[1] = of_doubles([-5_000_000_000.75, 0.0]);
    guest.processor.cpu.xmm[2] = of_singles([3.5, 0.0, 0.0, 0.0]);
    guest.processor.cpu.xmm[5] = u128::MAX;
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.cvtsd2si(rax, xmm1).unwrap();
        a.cvttsd2si(rbx, xmm1).unwrap();
        a.mov(rcx, -1i64).unwrap();
        a.cvtsd2si(ecx, xmm1).unwrap();
        a.cvtss2si(edx, xmm2).unwrap();
        a.cvttss2si(rbp, xmm2).unwrap();
        a.mov(esi, -6).unwrap();
        a.cvtsi2sd(xmm3, rsi).unwrap();
        a.cvtsi2sd(xmm4, esi).unwrap();
        a.cvtsi2ss(xmm5, qword_ptr(rdi)).unwrap();
        a.cvtsi2sd(xmm6, dword_ptr(rdi + 4)).unwrap();
        a.ud2().unwrap();
    });
    let signed = |register| guest.reg(register).cast_signed();
    assert_eq!(signed(reg::RAX), -5_000_000_001);
    assert_eq!(signed(reg::RBX), -5_000_000_000);
    assert_eq!(guest.reg(reg::RCX), 0x8000_0000, "the integer indefinite, zeroes above");
    assert_eq!((guest.reg(reg::RDX), guest.reg(reg::RBP)), (4, 3));
    let cpu = &guest.processor.cpu;
    assert_eq!(doubles(cpu.xmm[3])[0], 4_294_967_290.0);
    assert_eq!(doubles(cpu.xmm[4])[0], -6.0);
    assert_eq!(cpu.xmm[5], u128::MAX << 32 | u128::from((-9e18f32).to_bits()));
    assert_eq!(doubles(cpu.xmm[6])[0], f64::from(-2_095_475_793i32));
}

#[test]
fn mmx_registers_are_converted_and_then_the_x87_stack_is_full() {
    let mut guest = Guest::long();
    guest.processor.cpu.x87.initialise();
    guest.memory.write64(DATA, 0xffff_fff9_0000_0007);
    guest.memory.write(DATA + 16, &of_singles([2.5, -7.5, f32::NAN, f32::NAN]).to_le_bytes());
    guest.memory.write(DATA + 32, &of_doubles([1e300, -0.75]).to_le_bytes());
    guest.processor.cpu.gpr[reg::RDI] = DATA;
    guest.processor.cpu.xmm[1] = of_singles([0.0, 0.0, 5.0, 6.0]);
    guest.run(|a| {
        a.cvtpi2ps(xmm1, qword_ptr(rdi)).unwrap();
        a.cvtpi2pd(xmm2, qword_ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.processor.cpu.x87.tags(), 0xffff, "nothing of MMX was touched");
    assert_eq!(guest.processor.cpu.xmm[1], of_singles([7.0, -7.0, 5.0, 6.0]));
    assert_eq!(guest.processor.cpu.xmm[2], of_doubles([7.0, -7.0]));
    guest.run(|a| {
        a.movups(xmm4, xmmword_ptr(rdi + 16)).unwrap();
        a.cvtps2pi(mm0, qword_ptr(rdi + 16)).unwrap();
        a.cvttps2pi(mm1, xmm4).unwrap();
        a.cvtpi2pd(xmm3, mm0).unwrap();
        a.cvttpd2pi(mm2, xmmword_ptr(rdi + 32)).unwrap();
        a.cvtpd2pi(mm3, xmm3).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    assert_eq!(cpu.xmm[3], of_doubles([2.0, -8.0]));
    assert_eq!(cpu.mmx(1), 0xffff_fff9_0000_0002);
    assert_eq!(cpu.mmx(2), 0x8000_0000);
    assert_eq!(cpu.mmx(3), 0xffff_fff8_0000_0002);
    assert_eq!(
        cpu.mxcsr & 0x3f,
        0x21,
        "inexact, and one number out of range; the NaNs are not looked at"
    );
    assert_ne!(cpu.x87.tags(), 0xffff);
}
