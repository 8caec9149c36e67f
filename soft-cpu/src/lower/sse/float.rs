//! Arithmetic and comparisons of floating-point numbers, under the guest's MXCSR.

use iced_x86::{Code, Instruction};

use super::unmasked::calculate_unmasked;
use super::{Aligned, Register, Short, Source, from_either, get, imm8, permit, set};
use crate::cpu::Cpu;
use crate::event::Raised;
use crate::flags::{CF, Flags, PF, ZF};
use crate::host_sse::{self as host, Compare, Float, mxcsr};
use crate::op::{Done, Handler, Op};
use crate::width::{B4, B8};

/// Works on two registers' contents.
pub(super) trait Binary: Float<Destination = u128, Source = u128, Result = u128> {}
impl<O: Float<Destination = u128, Source = u128, Result = u128>> Binary for O {}

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Addps_xmm_xmmm128 => packed::<host::Addps>(i, op),
        Code::Addpd_xmm_xmmm128 => packed::<host::Addpd>(i, op),
        Code::Addss_xmm_xmmm32 => single::<host::Addss>(i, op),
        Code::Addsd_xmm_xmmm64 => double::<host::Addsd>(i, op),
        Code::Subps_xmm_xmmm128 => packed::<host::Subps>(i, op),
        Code::Subpd_xmm_xmmm128 => packed::<host::Subpd>(i, op),
        Code::Subss_xmm_xmmm32 => single::<host::Subss>(i, op),
        Code::Subsd_xmm_xmmm64 => double::<host::Subsd>(i, op),
        Code::Mulps_xmm_xmmm128 => packed::<host::Mulps>(i, op),
        Code::Mulpd_xmm_xmmm128 => packed::<host::Mulpd>(i, op),
        Code::Mulss_xmm_xmmm32 => single::<host::Mulss>(i, op),
        Code::Mulsd_xmm_xmmm64 => double::<host::Mulsd>(i, op),
        Code::Divps_xmm_xmmm128 => packed::<host::Divps>(i, op),
        Code::Divpd_xmm_xmmm128 => packed::<host::Divpd>(i, op),
        Code::Divss_xmm_xmmm32 => single::<host::Divss>(i, op),
        Code::Divsd_xmm_xmmm64 => double::<host::Divsd>(i, op),
        Code::Minps_xmm_xmmm128 => packed::<host::Minps>(i, op),
        Code::Minpd_xmm_xmmm128 => packed::<host::Minpd>(i, op),
        Code::Minss_xmm_xmmm32 => single::<host::Minss>(i, op),
        Code::Minsd_xmm_xmmm64 => double::<host::Minsd>(i, op),
        Code::Maxps_xmm_xmmm128 => packed::<host::Maxps>(i, op),
        Code::Maxpd_xmm_xmmm128 => packed::<host::Maxpd>(i, op),
        Code::Maxss_xmm_xmmm32 => single::<host::Maxss>(i, op),
        Code::Maxsd_xmm_xmmm64 => double::<host::Maxsd>(i, op),
        Code::Sqrtps_xmm_xmmm128 => packed::<host::Sqrtps>(i, op),
        Code::Sqrtpd_xmm_xmmm128 => packed::<host::Sqrtpd>(i, op),
        Code::Sqrtss_xmm_xmmm32 => single::<host::Sqrtss>(i, op),
        Code::Sqrtsd_xmm_xmmm64 => double::<host::Sqrtsd>(i, op),
        Code::Rcpps_xmm_xmmm128 => packed::<host::Rcpps>(i, op),
        Code::Rcpss_xmm_xmmm32 => single::<host::Rcpss>(i, op),
        Code::Rsqrtps_xmm_xmmm128 => packed::<host::Rsqrtps>(i, op),
        Code::Rsqrtss_xmm_xmmm32 => single::<host::Rsqrtss>(i, op),
        Code::Cmpps_xmm_xmmm128_imm8 => compare::<host::Cmpps, Aligned>(i, op),
        Code::Cmppd_xmm_xmmm128_imm8 => compare::<host::Cmppd, Aligned>(i, op),
        Code::Cmpss_xmm_xmmm32_imm8 => compare::<host::Cmpss, Short<B4>>(i, op),
        Code::Cmpsd_xmm_xmmm64_imm8 => compare::<host::Cmpsd, Short<B8>>(i, op),
        Code::Comiss_xmm_xmmm32 => to_flags::<host::Comiss, Short<B4>>(i, op),
        Code::Comisd_xmm_xmmm64 => to_flags::<host::Comisd, Short<B8>>(i, op),
        Code::Ucomiss_xmm_xmmm32 => to_flags::<host::Ucomiss, Short<B4>>(i, op),
        Code::Ucomisd_xmm_xmmm64 => to_flags::<host::Ucomisd, Short<B8>>(i, op),
        _ => None,
    }
}

/// Register and register, or register and 16 aligned bytes.
pub(super) fn packed<O: Binary>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    from_either(i, op, run::<O, Register>, run::<O, Aligned>)
}

/// Register and register, or register and 4 bytes.
pub(super) fn single<O: Binary>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    from_either(i, op, run::<O, Register>, run::<O, Short<B4>>)
}

/// Register and register, or register and 8 bytes.
pub(super) fn double<O: Binary>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    from_either(i, op, run::<O, Register>, run::<O, Short<B8>>)
}

/// The predicate is in the low three bits of the immediate byte; without VEX nobody looks at the others.
fn compare<O: Compare, Memory: Source>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    fn pick<O: Binary, Memory: Source>(i: &Instruction, op: &mut Op) -> Option<Handler> {
        from_either(i, op, run::<O, Register>, run::<O, Memory>)
    }
    match imm8(i)? & 7 {
        0 => pick::<O::Equal, Memory>(i, op),
        1 => pick::<O::Less, Memory>(i, op),
        2 => pick::<O::LessOrEqual, Memory>(i, op),
        3 => pick::<O::Unordered, Memory>(i, op),
        4 => pick::<O::NotEqual, Memory>(i, op),
        5 => pick::<O::NotLess, Memory>(i, op),
        6 => pick::<O::NotLessOrEqual, Memory>(i, op),
        _ => pick::<O::Ordered, Memory>(i, op),
    }
}

fn to_flags<O, Memory>(i: &Instruction, op: &mut Op) -> Option<Handler>
where
    O: Float<Destination = u128, Source = u128, Result = u64>,
    Memory: Source,
{
    from_either(i, op, run_flags::<O, Register>, run_flags::<O, Memory>)
}

fn run<O: Binary, S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let source = S::read(cpu, op)?;
    let result = calculate::<O>(cpu, get(cpu, op.dst), source)?;
    set(cpu, op.dst, result);
    Ok(())
}

fn run_flags<O, S>(cpu: &mut Cpu, op: &Op) -> Done
where
    O: Float<Destination = u128, Source = u128, Result = u64>,
    S: Source,
{
    permit(cpu)?;
    let source = S::read(cpu, op)?;
    let flags = calculate::<O>(cpu, get(cpu, op.dst), source)?;
    cpu.flags = Flags::from_bits(flags & (ZF | PF | CF));
    Ok(())
}

/// Carries `O` out under the guest's MXCSR, and flags there what came up. Fails with #XM when something did that
/// the guest has not masked: then there is no result.
#[inline(always)]
pub(super) fn calculate<O: Float>(
    cpu: &mut Cpu,
    destination: O::Destination,
    source: O::Source,
) -> Result<O::Result, Raised> {
    /// Flags that are clear in most programs, unlike that of inexact results.
    const RARE: u32 = mxcsr::FLAGS & !mxcsr::PE;
    if cpu.mxcsr & !RARE == mxcsr::ALL_MASKED | mxcsr::PE
        && let Some(result) = O::quick(destination, source)
    {
        return Ok(result);
    }
    if cpu.mxcsr & mxcsr::ALL_MASKED != mxcsr::ALL_MASKED {
        return calculate_unmasked::<O>(cpu, destination, source);
    }
    let (result, flagged) = O::apply(cpu.mxcsr & !mxcsr::FLAGS, destination, source);
    cpu.mxcsr |= flagged;
    Ok(result)
}
