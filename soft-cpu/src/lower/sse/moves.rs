//! Moves between SSE registers, memory and general registers. None looks at what it moves.

use iced_x86::{Code, Instruction, OpKind};

use super::{
    Aligned, General, Register, Short, Source, Unaligned, aligned, from_either, get, high, imm8,
    joined, low, permit, set, xmm,
};
use crate::cpu::{Cpu, reg};
use crate::event::Exception;
use crate::host_sse::{Movmskpd, Movmskps, Pmovmskb, Signs};
use crate::lower::register;
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, B4, B8, Width};
use crate::x87_state::MXCSR_MASK;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Handler> {
    match i.code() {
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => {
            from_either(i, op, whole::<Register>, whole::<Aligned>)
        }
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 => {
            from_either(i, op, whole::<Register>, whole::<Unaligned>)
        }
        Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movntps_m128_xmm
        | Code::Movntpd_m128_xmm
        | Code::Movntdq_m128_xmm => to_either(i, op, whole::<Register>, store_aligned),
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            to_either(i, op, whole::<Register>, store_unaligned)
        }
        Code::Movss_xmm_xmmm32 => from_either(i, op, merge_low::<B4>, whole::<Short<B4>>),
        Code::Movsd_xmm_xmmm64 => from_either(i, op, merge_low::<B8>, whole::<Short<B8>>),
        Code::Movss_xmmm32_xmm => to_either(i, op, merge_low::<B4>, store_low::<B4>),
        Code::Movsd_xmmm64_xmm => to_either(i, op, merge_low::<B8>, store_low::<B8>),
        Code::Movq_xmm_xmmm64 => from_either(i, op, only_low, whole::<Short<B8>>),
        Code::Movq_xmmm64_xmm => to_either(i, op, only_low, store_low::<B8>),
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => from_memory(i, op, load_low),
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => from_memory(i, op, load_high),
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => to_either(i, op, only_low, store_low::<B8>),
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => to_either(i, op, only_low, store_high),
        Code::Movhlps_xmm_xmm => between(i, op, high_to_low),
        Code::Movlhps_xmm_xmm => between(i, op, low_to_high),
        Code::Movd_xmm_rm32 => from_general::<B4>(i, op),
        Code::Movq_xmm_rm64 => from_general::<B8>(i, op),
        Code::Movd_rm32_xmm => to_general::<B4>(i, op),
        Code::Movq_rm64_xmm => to_general::<B8>(i, op),
        Code::Movnti_m32_r32 => non_temporal(i, op, store_general::<B4>),
        Code::Movnti_m64_r64 => non_temporal(i, op, store_general::<B8>),
        Code::Movmskps_r32_xmm | Code::Movmskps_r64_xmm => signs::<Movmskps>(i, op),
        Code::Movmskpd_r32_xmm | Code::Movmskpd_r64_xmm => signs::<Movmskpd>(i, op),
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => signs::<Pmovmskb>(i, op),
        Code::Pinsrw_xmm_r32m16_imm8 | Code::Pinsrw_xmm_r64m16_imm8 => insert_word(i, op),
        Code::Pextrw_r32_xmm_imm8 | Code::Pextrw_r64_xmm_imm8 => extract_word(i, op),
        Code::Maskmovdqu_rDI_xmm_xmm => masked(i, op),
        Code::Ldmxcsr_m32 => Some(load_control as Handler),
        Code::Stmxcsr_m32 => Some(store_control as Handler),
        _ => None,
    }
}

/// The handler for a source that is a register, as the destination is one or memory.
fn to_either(i: &Instruction, op: &mut Op, register: Handler, memory: Handler) -> Option<Handler> {
    op.src = xmm(i, 1)?;
    if i.op_kind(0) == OpKind::Memory {
        return Some(memory);
    }
    op.dst = xmm(i, 0)?;
    Some(register)
}

fn from_memory(i: &Instruction, op: &mut Op, handler: Handler) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    Some(handler)
}

fn between(i: &Instruction, op: &mut Op, handler: Handler) -> Option<Handler> {
    (op.dst, op.src) = (xmm(i, 0)?, xmm(i, 1)?);
    Some(handler)
}

fn from_general<W: Width>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    match register(i, 1) {
        Some(src) => {
            op.src = src;
            Some(whole::<General<W>>)
        }
        None => Some(whole::<Short<W>>),
    }
}

fn to_general<W: Width>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.src = xmm(i, 1)?;
    match register(i, 0) {
        Some(dst) => {
            op.dst = dst;
            Some(set_general::<W>)
        }
        None => Some(store_low::<W>),
    }
}

fn non_temporal(i: &Instruction, op: &mut Op, handler: Handler) -> Option<Handler> {
    op.src = register(i, 1)?;
    Some(handler)
}

fn signs<O: Signs>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    (op.dst, op.src) = (register(i, 0)?, xmm(i, 1)?);
    Some(gather::<O>)
}

fn insert_word(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    op.imm = u64::from(imm8(i)? & 7) * 16;
    match register(i, 1) {
        Some(src) => {
            op.src = src;
            Some(insert::<General<B2>>)
        }
        None => Some(insert::<Short<B2>>),
    }
}

fn extract_word(i: &Instruction, op: &mut Op) -> Option<Handler> {
    (op.dst, op.src) = (register(i, 0)?, xmm(i, 1)?);
    op.imm = u64::from(imm8(i)? & 7) * 16;
    Some(extract)
}

/// The operand in memory is not spelt out: it is where RDI points, in a segment that may be chosen.
fn masked(i: &Instruction, op: &mut Op) -> Option<Handler> {
    (op.dst, op.src) = (xmm(i, 1)?, xmm(i, 2)?);
    op.base = u8::try_from(reg::RDI).ok()?;
    op.cut = match i.op_kind(0) {
        OpKind::MemorySegDI => 48,
        OpKind::MemorySegEDI => 32,
        _ => 0,
    };
    Some(store_masked)
}

/// The destination becomes the source; what a short one lacks is zero.
pub(super) fn whole<S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let value = S::read(cpu, op)?;
    set(cpu, op.dst, value);
    Ok(())
}

fn store_aligned(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let address = aligned(cpu, op)?;
    cpu.store128_at(address, op.segment, get(cpu, op.src))
}

fn store_unaligned(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let address = cpu.address(op);
    cpu.store128_at(address, op.segment, get(cpu, op.src))
}

/// Between registers, the scalar moves leave the rest alone.
fn merge_low<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let mask = u128::from(W::MASK);
    set(cpu, op.dst, get(cpu, op.dst) & !mask | get(cpu, op.src) & mask);
    Ok(())
}

fn store_low<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.store::<W>(op, low(get(cpu, op.src)) & W::MASK)
}

fn store_high(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.store::<B8>(op, high(get(cpu, op.src)))
}

fn load_low(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let value = cpu.load::<B8>(op)?;
    set(cpu, op.dst, joined(value, high(get(cpu, op.dst))));
    Ok(())
}

fn load_high(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let value = cpu.load::<B8>(op)?;
    set(cpu, op.dst, joined(low(get(cpu, op.dst)), value));
    Ok(())
}

fn only_low(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, joined(low(get(cpu, op.src)), 0));
    Ok(())
}

fn high_to_low(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, joined(high(get(cpu, op.src)), high(get(cpu, op.dst))));
    Ok(())
}

fn low_to_high(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    set(cpu, op.dst, joined(low(get(cpu, op.dst)), low(get(cpu, op.src))));
    Ok(())
}

fn set_general<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.set::<W>(op.dst, low(get(cpu, op.src)) & W::MASK);
    Ok(())
}

/// Touches no SSE register, so that nothing in CR0 or CR4 forbids it.
fn store_general<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store::<W>(op, cpu.get::<W>(op.src))
}

fn gather<O: Signs>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.set::<B8>(op.dst, O::gather(get(cpu, op.src)));
    Ok(())
}

fn insert<S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let word = S::read(cpu, op)?;
    let shift = op.imm & 0x70;
    set(cpu, op.dst, get(cpu, op.dst) & !(0xffff << shift) | word << shift);
    Ok(())
}

fn extract(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.set::<B8>(op.dst, low(get(cpu, op.src) >> (op.imm & 0x70)) & 0xffff);
    Ok(())
}

/// `maskmovdqu`: bytes whose mask has its top bit set. Every page is found writable before the first is written.
fn store_masked(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let address = cpu.address(op);
    let chosen = Pmovmskb::gather(get(cpu, op.src));
    let bytes = get(cpu, op.dst).to_le_bytes();
    for index in (0..16).filter(|index| chosen >> index & 1 != 0) {
        cpu.open::<B1>(address.wrapping_add(index), op.segment)?;
    }
    for (index, byte) in (0..16).zip(bytes).filter(|(index, _)| chosen >> index & 1 != 0) {
        cpu.store_at::<B1>(address.wrapping_add(index), op.segment, u64::from(byte))?;
    }
    Ok(())
}

fn load_control(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let value = cpu.load::<B4>(op)?;
    match u32::try_from(value) {
        Ok(value) if value & !MXCSR_MASK == 0 => cpu.mxcsr = value,
        _ => return super::super::fail(cpu, Exception::general_protection(0)),
    }
    Ok(())
}

fn store_control(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    cpu.store::<B4>(op, u64::from(cpu.mxcsr))
}
