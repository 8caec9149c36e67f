//! MXCSR: modes, sticky flags, and exceptions that are not masked.

use iced_x86::code_asm::*;

use super::float::{of_doubles, of_singles};
use super::moves::raised;
use crate::cpu::{cr4, reg};
use crate::host_sse::mxcsr::{ALL_MASKED, DAZ, DE, FTZ, IE, OE, PE, TO_MASK, UE, ZE};
use crate::tests::{DATA, Guest};

/// Runs one instruction on `a` in xmm1 and `b` in xmm9; the vector raised, xmm1 and MXCSR then.
fn under(
    mxcsr: u32,
    a: u128,
    b: u128,
    code: fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> (Option<u8>, u128, u32) {
    let mut guest = Guest::long();
    guest.processor.cpu.mxcsr = mxcsr;
    guest.processor.cpu.xmm[1] = a;
    guest.processor.cpu.xmm[9] = b;
    let vector = raised(&mut guest, code);
    (vector, guest.processor.cpu.xmm[1], guest.processor.cpu.mxcsr)
}

#[test]
fn results_are_rounded_as_the_guest_wants() {
    let third = 0x3fd5_5555_5555_5555u64;
    for (rounding, up_positive, up_negative) in
        [(0, false, false), (1, false, true), (2, true, false), (3, false, false)]
    {
        let control = ALL_MASKED | rounding << 13;
        let (_, got, after) =
            under(control, of_doubles([1.0, -1.0]), of_doubles([3.0, 3.0]), |c| {
                c.divpd(xmm1, xmm9)
            });
        let (low, high) = (third + u64::from(up_positive), third + u64::from(up_negative));
        assert_eq!(got, u128::from(high | 1 << 63) << 64 | u128::from(low), "mode {rounding}");
        assert_eq!(after, control | PE);
    }
}

#[test]
fn denormal_operands_count_as_zeroes_only_if_asked_to() {
    let tiny = u128::from(1u32);
    let (_, kept, flags) = under(ALL_MASKED, tiny, of_singles([1.0; 4]), |c| c.mulss(xmm1, xmm9));
    assert_eq!((kept, flags), (tiny, ALL_MASKED | DE));
    let (_, zero, flags) =
        under(ALL_MASKED | DAZ, tiny, of_singles([1.0; 4]), |c| c.mulss(xmm1, xmm9));
    assert_eq!((zero, flags), (0, ALL_MASKED | DAZ));
}

#[test]
fn tiny_results_become_zeroes_only_if_asked_to_and_underflow_is_masked() {
    let (a, b) = (of_doubles([f64::MIN_POSITIVE, 0.0]), of_doubles([0.5, 0.0]));
    let code = |c: &mut CodeAssembler| c.mulsd(xmm1, xmm9);
    let half = u128::from(1u64 << 51);
    assert_eq!(under(ALL_MASKED, a, b, code), (None, half, ALL_MASKED), "exact: no flag");
    let flushing = ALL_MASKED | FTZ;
    assert_eq!(under(flushing, a, b, code), (None, 0, flushing | UE | PE));
    // Not masked, an exact tiny result is an underflow, and nothing is flushed.
    let unmasked = flushing & !(UE << TO_MASK);
    assert_eq!(under(unmasked, a, b, code), (Some(19), a, unmasked | UE));
}

#[test]
fn flags_stay_until_they_are_cleared() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    cpu.xmm[1] = of_doubles([1.0, 0.0]);
    cpu.xmm[2] = of_doubles([0.0, 0.0]);
    cpu.xmm[3] = of_doubles([f64::MAX, 0.0]);
    cpu.gpr[reg::RDI] = DATA;
    guest.memory.write64(DATA, u64::from(ALL_MASKED));
    guest.run(|a| {
        a.divsd(xmm1, xmm2).unwrap();
        a.addsd(xmm3, xmm3).unwrap();
        a.addsd(xmm4, xmm4).unwrap();
        a.stmxcsr(dword_ptr(rdi + 4)).unwrap();
        a.ldmxcsr(dword_ptr(rdi)).unwrap();
        a.stmxcsr(dword_ptr(rdi + 8)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.memory.read64(DATA) >> 32, u64::from(ALL_MASKED | ZE | OE | PE));
    assert_eq!(guest.memory.read64(DATA + 8), u64::from(ALL_MASKED));
}

#[test]
fn an_exception_that_is_not_masked_leaves_the_destination_alone() {
    let one = of_doubles([1.0, 1.0]);
    let zero = of_doubles([0.0, 1.0]);
    for flag in [IE, DE, ZE, OE, UE, PE] {
        let control = ALL_MASKED & !(flag << TO_MASK);
        let (vector, got, after) = under(control, one, zero, |c| c.divpd(xmm1, xmm9));
        assert_eq!(vector, (flag == ZE).then_some(19));
        assert_eq!(got == one, flag == ZE);
        assert_eq!(after, control | ZE);
    }
}

#[test]
fn what_is_wrong_with_an_operand_is_told_before_anything_is_calculated() {
    // A division by zero in one element, an inexact one in the other.
    let (a, b) = (of_doubles([1.0, 1.0]), of_doubles([0.0, 3.0]));
    let code = |c: &mut CodeAssembler| c.divpd(xmm1, xmm9);
    let control = ALL_MASKED & !(ZE << TO_MASK);
    assert_eq!(under(control, a, b, code), (Some(19), a, control | ZE));
    let control = ALL_MASKED & !(PE << TO_MASK);
    assert_eq!(under(control, a, b, code), (Some(19), a, control | ZE | PE));
}

#[test]
fn a_flag_from_before_raises_nothing() {
    let control = PE | IE;
    let one = of_doubles([1.0, 1.0]);
    let (vector, got, after) = under(control, one, one, |c| c.addpd(xmm1, xmm9));
    assert_eq!((vector, got, after), (None, of_doubles([2.0, 2.0]), control));
}

#[test]
fn a_system_that_does_not_know_the_exception_gets_an_undefined_opcode() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    cpu.cr4 &= !cr4::OSXMMEXCPT;
    cpu.mode_changed();
    cpu.mxcsr = 0;
    cpu.xmm[1] = of_singles([f32::NAN; 4]);
    cpu.gpr[reg::RAX] = 5;
    cpu.set_rflags(crate::flags::ARITHMETIC);
    let before = cpu.rflags();
    assert_eq!(raised(&mut guest, |c| c.comiss(xmm1, xmm1)), Some(6));
    assert_eq!(raised(&mut guest, |c| c.cvtss2si(eax, xmm1)), Some(6));
    let cpu = &guest.processor.cpu;
    assert_eq!((cpu.rflags(), cpu.gpr[reg::RAX], cpu.mxcsr), (before, 5, IE));
}

#[test]
fn the_payload_of_a_nan_survives() {
    let nan = 0x7ff8_dead_beef_0001u64;
    let signalling = 0xfff0_0000_0000_0042u64;
    let (a, b) = (u128::from(signalling) << 64 | u128::from(nan), of_doubles([1.0, 1.0]));
    let (_, got, flags) = under(ALL_MASKED, a, b, |c| c.addpd(xmm1, xmm9));
    assert_eq!(got, u128::from(signalling | 1 << 51) << 64 | u128::from(nan));
    assert_eq!(flags, ALL_MASKED | IE);
    let (_, made, _) = under(
        ALL_MASKED,
        of_doubles([f64::INFINITY, 0.0]),
        of_doubles([f64::INFINITY, 0.0]),
        |c| c.subsd(xmm1, xmm9),
    );
    assert_eq!(made, 0xfff8_0000_0000_0000, "the indefinite");
}

#[test]
fn an_overflow_that_is_not_masked_is_inexact_only_if_rounding_alone_lost_something() {
    let code = |c: &mut CodeAssembler| c.mulpd(xmm1, xmm9);
    let masked = ALL_MASKED;
    let unmasked = masked & !(OE << TO_MASK);
    let third = f64::from_bits(0x3fd5_5555_5555_5555);
    // A power of two times another, beside a product that needs no rounding.
    let (a, b) = (of_doubles([2f64.powi(1000), 1.5]), of_doubles([2f64.powi(1000), 1.5]));
    assert_eq!(under(masked, a, b, code).2, masked | OE | PE);
    assert_eq!(under(unmasked, a, b, code), (Some(19), a, unmasked | OE));
    // The other element was rounded.
    let (a, b) = (of_doubles([2f64.powi(1000), third]), of_doubles([2f64.powi(1000), third]));
    assert_eq!(under(unmasked, a, b, code), (Some(19), a, unmasked | OE | PE));
    // The one that overflows was rounded.
    let (a, b) = (of_doubles([f64::MAX, 0.0]), of_doubles([f64::MAX, 0.0]));
    assert_eq!(under(unmasked, a, b, code), (Some(19), a, unmasked | OE | PE));
}

#[test]
fn an_underflow_that_is_not_masked_is_inexact_only_if_rounding_alone_lost_something() {
    let masked = ALL_MASKED;
    let unmasked = masked & !(UE << TO_MASK);
    let code = |c: &mut CodeAssembler| c.cvtpd2ps(xmm1, xmm9);
    // Below the smallest normal single: 24 bits are kept if exponents have no limit, fewer if they have.
    let tiny = |significand: f64| of_doubles([significand * 2f64.powi(-140), 1.0]);
    let some = f64::from(0x00ff_ffffu32) / f64::from(1u32 << 23);
    assert_eq!(under(masked, 0, tiny(some), code).2, masked | UE | PE);
    assert_eq!(under(unmasked, 7, tiny(some), code), (Some(19), 7, unmasked | UE));
    assert_eq!(under(unmasked, 7, tiny(1.0 / 3.0), code), (Some(19), 7, unmasked | UE | PE));
}

#[test]
fn nothing_rare_is_missed_once_an_inexact_result_is_flagged() {
    // The flags of ordinary results are not looked at then.
    let control = ALL_MASKED | PE;
    let denormal = f64::from_bits(1);
    let least = f64::MIN_POSITIVE;
    type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let cases: [(Code, f64, f64, u32); 16] = [
        (|c| c.addsd(xmm1, xmm9), 1.0, denormal, DE),
        (|c| c.addsd(xmm1, xmm9), denormal, 1.0, DE),
        (|c| c.addpd(xmm1, xmm9), f64::MAX, f64::MAX, OE),
        (|c| c.addpd(xmm1, xmm9), f64::INFINITY, f64::NEG_INFINITY, IE),
        (|c| c.subsd(xmm1, xmm9), 3.0, 3.0, 0),
        (|c| c.mulsd(xmm1, xmm9), least, 0.3, UE),
        (|c| c.mulsd(xmm1, xmm9), 1e-200, 1e-200, UE),
        (|c| c.mulpd(xmm1, xmm9), 1e200, 1e200, OE),
        (|c| c.divsd(xmm1, xmm9), 1.0, 0.0, ZE),
        (|c| c.divsd(xmm1, xmm9), 0.0, 0.0, IE),
        (|c| c.cvtsd2ss(xmm1, xmm9), 0.0, 1e-300, UE),
        (|c| c.cvtsd2ss(xmm1, xmm9), 0.0, 1e300, OE),
        (|c| c.ucomisd(xmm1, xmm9), 1.0, denormal, DE),
        (|c| c.comisd(xmm1, xmm9), 1.0, f64::NAN, IE),
        (|c| c.cvttsd2si(eax, xmm9), 0.0, 1e10, IE),
        (|c| c.cvtsd2si(rax, xmm9), 0.0, 1e10, 0),
    ];
    for (at, (code, a, b, flag)) in cases.into_iter().enumerate() {
        let (_, _, after) = under(control, of_doubles([a, 1.0]), of_doubles([b, 1.0]), code);
        assert_eq!(after, control | flag, "case {at}");
    }
}
