//! Conversions between numbers of several kinds.

use iced_x86::{Code, Instruction};

use super::float::{Binary, calculate, double, packed, single};
use super::third::mm;
use super::{Aligned, General, Register, Short, Source, get, high, joined, low, permit, set, xmm};
use crate::cpu::Cpu;
use crate::event::Raised;
use crate::host_sse::{self as host, Float};
use crate::lower::{is_memory, register};
use crate::op::{Done, Handler, Op};
use crate::width::{B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Cvtdq2ps_xmm_xmmm128 => packed::<host::Cvtdq2ps>(i, op),
        Code::Cvtps2dq_xmm_xmmm128 => packed::<host::Cvtps2dq>(i, op),
        Code::Cvttps2dq_xmm_xmmm128 => packed::<host::Cvttps2dq>(i, op),
        Code::Cvtpd2dq_xmm_xmmm128 => packed::<host::Cvtpd2dq>(i, op),
        Code::Cvttpd2dq_xmm_xmmm128 => packed::<host::Cvttpd2dq>(i, op),
        Code::Cvtpd2ps_xmm_xmmm128 => packed::<host::Cvtpd2ps>(i, op),
        Code::Cvtdq2pd_xmm_xmmm64 => double::<host::Cvtdq2pd>(i, op),
        Code::Cvtps2pd_xmm_xmmm64 => double::<host::Cvtps2pd>(i, op),
        Code::Cvtsd2ss_xmm_xmmm64 => double::<host::Cvtsd2ss>(i, op),
        Code::Cvtss2sd_xmm_xmmm32 => single::<host::Cvtss2sd>(i, op),
        Code::Cvtss2si_r32_xmmm32 => to_general::<host::Cvtss2si32, B4>(i, op),
        Code::Cvtss2si_r64_xmmm32 => to_general::<host::Cvtss2si64, B4>(i, op),
        Code::Cvtsd2si_r32_xmmm64 => to_general::<host::Cvtsd2si32, B8>(i, op),
        Code::Cvtsd2si_r64_xmmm64 => to_general::<host::Cvtsd2si64, B8>(i, op),
        Code::Cvttss2si_r32_xmmm32 => to_general::<host::Cvttss2si32, B4>(i, op),
        Code::Cvttss2si_r64_xmmm32 => to_general::<host::Cvttss2si64, B4>(i, op),
        Code::Cvttsd2si_r32_xmmm64 => to_general::<host::Cvttsd2si32, B8>(i, op),
        Code::Cvttsd2si_r64_xmmm64 => to_general::<host::Cvttsd2si64, B8>(i, op),
        Code::Cvtsi2ss_xmm_rm32 => from_general::<host::Cvtsi2ss32, B4>(i, op),
        Code::Cvtsi2ss_xmm_rm64 => from_general::<host::Cvtsi2ss64, B8>(i, op),
        Code::Cvtsi2sd_xmm_rm32 => from_general::<host::Cvtsi2sd32, B4>(i, op),
        Code::Cvtsi2sd_xmm_rm64 => from_general::<host::Cvtsi2sd64, B8>(i, op),
        // The MMX forms convert what they convert as the SSE forms do, with zeroes beside it.
        Code::Cvtpi2ps_xmm_mmm64 => from_mmx::<host::Cvtdq2ps, true>(i, op),
        Code::Cvtpi2pd_xmm_mmm64 => from_mmx::<host::Cvtdq2pd, false>(i, op),
        Code::Cvtps2pi_mm_xmmm64 => to_mmx::<host::Cvtps2dq, Short<B8>>(i, op),
        Code::Cvttps2pi_mm_xmmm64 => to_mmx::<host::Cvttps2dq, Short<B8>>(i, op),
        Code::Cvtpd2pi_mm_xmmm128 => to_mmx::<host::Cvtpd2dq, Aligned>(i, op),
        Code::Cvttpd2pi_mm_xmmm128 => to_mmx::<host::Cvttpd2dq, Aligned>(i, op),
        _ => None,
    }
}

/// To a general register; `W` is as wide as the operand in memory. A 32-bit result comes with zeroes above.
fn to_general<O, W>(i: &Instruction, op: &mut Op) -> Option<Handler>
where
    O: Float<Destination = (), Source = u128, Result = u64>,
    W: Width,
{
    op.dst = register(i, 0)?;
    if is_memory(i, 1) {
        return Some(run_to_general::<O, Short<W>>);
    }
    op.src = xmm(i, 1)?;
    Some(run_to_general::<O, Register>)
}

/// From a general register or memory, `W` wide.
fn from_general<O, W>(i: &Instruction, op: &mut Op) -> Option<Handler>
where
    O: Float<Destination = u128, Source = u64, Result = u128>,
    W: Width,
{
    op.dst = xmm(i, 0)?;
    if is_memory(i, 1) {
        return Some(run_from_general::<O, Short<W>>);
    }
    op.src = register(i, 1)?;
    Some(run_from_general::<O, General<W>>)
}

fn from_mmx<O: Binary, const KEEPS_HIGH: bool>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    if is_memory(i, 1) {
        return Some(run_from_memory::<O, KEEPS_HIGH>);
    }
    op.src = mm(i, 1)?;
    Some(run_from_mmx::<O, KEEPS_HIGH>)
}

fn to_mmx<O: Binary, Memory: Source>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = mm(i, 0)?;
    if is_memory(i, 1) {
        return Some(run_to_mmx::<O, Memory>);
    }
    op.src = xmm(i, 1)?;
    match i.code() {
        Code::Cvtps2pi_mm_xmmm64 | Code::Cvttps2pi_mm_xmmm64 => Some(run_to_mmx::<O, LowHalf>),
        _ => Some(run_to_mmx::<O, Register>),
    }
}

/// The low half of an SSE register.
struct LowHalf;
impl Source for LowHalf {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        Ok(joined(low(get(cpu, op.src)), 0))
    }
}

#[inline(always)]
fn two_integers<O: Binary, const KEEPS_HIGH: bool>(cpu: &mut Cpu, op: &Op, source: u64) -> Done {
    let destination = get(cpu, op.dst);
    let result = calculate::<O>(cpu, destination, u128::from(source))?;
    let result = if KEEPS_HIGH { joined(low(result), high(destination)) } else { result };
    set(cpu, op.dst, result);
    Ok(())
}

fn run_from_mmx<O: Binary, const KEEPS_HIGH: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.check_mmx()?;
    // The unit goes over to MMX even where the conversion then raises #XM.
    cpu.touch_mmx();
    two_integers::<O, KEEPS_HIGH>(cpu, op, cpu.mmx(op.src))
}

/// From memory, the MMX registers and with them the x87 unit stay as they are.
fn run_from_memory<O: Binary, const KEEPS_HIGH: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let source = cpu.load::<B8>(op)?;
    two_integers::<O, KEEPS_HIGH>(cpu, op, source)
}

fn run_to_mmx<O: Binary, S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.check_mmx()?;
    let source = S::read(cpu, op)?;
    // The unit goes over to MMX even where the conversion then raises #XM.
    cpu.touch_mmx();
    let result = calculate::<O>(cpu, 0, source)?;
    cpu.set_mmx(op.dst, low(result));
    Ok(())
}

fn run_to_general<O, S>(cpu: &mut Cpu, op: &Op) -> Done
where
    O: Float<Destination = (), Source = u128, Result = u64>,
    S: Source,
{
    permit(cpu)?;
    let source = S::read(cpu, op)?;
    let result = calculate::<O>(cpu, (), source)?;
    cpu.set::<B8>(op.dst, result);
    Ok(())
}

fn run_from_general<O, S>(cpu: &mut Cpu, op: &Op) -> Done
where
    O: Float<Destination = u128, Source = u64, Result = u128>,
    S: Source,
{
    permit(cpu)?;
    let source = low(S::read(cpu, op)?);
    let result = calculate::<O>(cpu, get(cpu, op.dst), source)?;
    set(cpu, op.dst, result);
    Ok(())
}
