//! Moving data: `mov`, `movzx`, `movsx`, `lea`, `xchg`, `cmovcc`, `setcc`.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use super::{Found, Place, by_width, bytes_of, goes_on, immediate, is_memory, register};
use crate::cpu::Cpu;
use crate::lower::control::{Condition, by_condition};
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = match i.mnemonic() {
        Mnemonic::Mov => mov(i, op),
        Mnemonic::Movzx => extend::<false>(i, op),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend::<true>(i, op),
        Mnemonic::Lea => {
            op.dst = register(i, 0)?;
            by_width!(bytes_of(i, 0), lea)
        }
        Mnemonic::Xchg => xchg(i, op),
        Mnemonic::Nop => Some(nop as Handler),
        _ if is_cmov(i) => cmov(i, op),
        _ if is_set(i) => set(i, op),
        _ => None,
    };
    goes_on(handler?)
}

fn is_cmov(i: &Instruction) -> bool {
    i.condition_code() != ConditionCode::None
        && i.op_count() == 2
        && i.op0_kind() == OpKind::Register
}

fn is_set(i: &Instruction) -> bool {
    i.condition_code() != ConditionCode::None
        && i.op_count() == 1
        && matches!(i.op0_kind(), OpKind::Register | OpKind::Memory)
}

fn mov(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let plain = |which| match i.op_kind(which) {
        OpKind::Register => i.op_register(which).is_gpr(),
        _ => true,
    };
    // Segment, control and debug registers are elsewhere.
    if !plain(0) || !plain(1) {
        return None;
    }
    let bytes = bytes_of(i, 0);
    if let Some(value) = immediate(i, 1) {
        op.imm = value;
        if let Some(dst) = register(i, 0) {
            op.dst = dst;
            return by_width!(bytes, register_immediate);
        }
        return by_width!(bytes, memory_immediate);
    }
    let is_far = matches!(
        i.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    ) && op.imm != 0;
    match (register(i, 0), register(i, 1)) {
        (Some(dst), Some(src)) => {
            (op.dst, op.src) = (dst, src);
            by_width!(bytes, register_register)
        }
        (Some(dst), None) if is_memory(i, 1) => {
            op.dst = dst;
            if is_far { by_width!(bytes, load_far) } else { by_width!(bytes, load) }
        }
        (None, Some(src)) if is_memory(i, 0) => {
            op.src = src;
            if is_far { by_width!(bytes, store_far) } else { by_width!(bytes, store) }
        }
        _ => None,
    }
}

fn extend<const SIGNED: bool>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = register(i, 0)?;
    let (to, from) = (bytes_of(i, 0), bytes_of(i, 1));
    macro_rules! pick {
        ($handler:ident, $($to:literal $from:literal $t:ty, $f:ty;)*) => {
            match (to, from) {
                $(($to, $from) => Some($handler::<SIGNED, $t, $f> as Handler),)*
                _ => None,
            }
        };
    }
    if let Some(src) = register(i, 1) {
        op.src = src;
        pick!(extend_register, 2 1 B2, B1; 4 1 B4, B1; 8 1 B8, B1; 2 2 B2, B2; 4 2 B4, B2; 8 2 B8, B2; 4 4 B4, B4; 8 4 B8, B4;
            2 4 B2, B2;)
    } else {
        pick!(extend_memory, 2 1 B2, B1; 4 1 B4, B1; 8 1 B8, B1; 2 2 B2, B2; 4 2 B4, B2; 8 2 B8, B2; 4 4 B4, B4; 8 4 B8, B4;
            2 4 B2, B2;)
    }
}

fn xchg(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    match (register(i, 0), register(i, 1)) {
        (Some(dst), Some(src)) => {
            (op.dst, op.src) = (dst, src);
            by_width!(bytes, exchange_registers)
        }
        (None, Some(src)) | (Some(src), None) => {
            op.src = src;
            by_width!(bytes, exchange_memory)
        }
        _ => None,
    }
}

fn cmov(i: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = register(i, 0)?;
    if let Some(src) = register(i, 1) {
        op.src = src;
        match bytes_of(i, 0) {
            2 => by_condition!(i.condition_code(), move_register, B2),
            4 => by_condition!(i.condition_code(), move_register, B4),
            _ => by_condition!(i.condition_code(), move_register, B8),
        }
    } else {
        match bytes_of(i, 0) {
            2 => by_condition!(i.condition_code(), move_memory, B2),
            4 => by_condition!(i.condition_code(), move_memory, B4),
            _ => by_condition!(i.condition_code(), move_memory, B8),
        }
    }
}

fn set(i: &Instruction, op: &mut Op) -> Option<Handler> {
    if let Some(dst) = register(i, 0) {
        op.dst = dst;
        return by_condition!(i.condition_code(), set_register);
    }
    by_condition!(i.condition_code(), set_memory)
}

fn nop(_cpu: &mut Cpu, _op: &Op) -> Done {
    Ok(())
}

fn register_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<W>(op.dst, cpu.get::<W>(op.src));
    Ok(())
}

fn register_immediate<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<W>(op.dst, op.imm & W::MASK);
    Ok(())
}

fn load<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(host) = cpu.read_hit::<W>(op) else { return load_slowly::<W>(cpu, op) };
    cpu.set::<W>(op.dst, host.load::<W>());
    Ok(())
}

#[cold]
#[inline(never)]
fn load_slowly<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<W>(op)?;
    cpu.set::<W>(op.dst, value);
    Ok(())
}

fn store<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store::<W>(op, cpu.get::<W>(op.src))
}

fn memory_immediate<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store::<W>(op, op.imm & W::MASK)
}

/// With a 64-bit address in the instruction.
fn load_far<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.based(op, op.imm);
    let value = cpu.load_at::<W>(address, op.segment)?;
    cpu.set::<W>(op.dst, value);
    Ok(())
}

fn store_far<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.based(op, op.imm);
    cpu.store_at::<W>(address, op.segment, cpu.get::<W>(op.src))
}

#[inline(always)]
fn extended<const SIGNED: bool, From: Width>(value: u64) -> u64 {
    if SIGNED { From::sign_extend(value) } else { value }
}

fn extend_register<const SIGNED: bool, To: Width, From: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = extended::<SIGNED, From>(cpu.get::<From>(op.src));
    cpu.set::<To>(op.dst, value & To::MASK);
    Ok(())
}

fn extend_memory<const SIGNED: bool, To: Width, From: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(host) = cpu.read_hit::<From>(op) else {
        return extend_memory_slowly::<SIGNED, To, From>(cpu, op);
    };
    let value = extended::<SIGNED, From>(host.load::<From>());
    cpu.set::<To>(op.dst, value & To::MASK);
    Ok(())
}

#[cold]
#[inline(never)]
fn extend_memory_slowly<const SIGNED: bool, To: Width, From: Width>(
    cpu: &mut Cpu,
    op: &Op,
) -> Done {
    let value = extended::<SIGNED, From>(cpu.load::<From>(op)?);
    cpu.set::<To>(op.dst, value & To::MASK);
    Ok(())
}

fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<W>(op.dst, cpu.offset(op) & W::MASK);
    Ok(())
}

fn exchange_registers<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    cpu.set::<W>(op.dst, b);
    cpu.set::<W>(op.src, a);
    Ok(())
}

/// Locked, with or without the prefix.
fn exchange_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let new = cpu.get::<W>(op.src);
    let address = cpu.address(op);
    let old = cpu.modify::<W>(address, op.segment, |_| new)?;
    cpu.set::<W>(op.src, old);
    Ok(())
}

fn move_register<C: Condition, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let from = if C::holds(cpu.flags) { op.src } else { op.dst };
    // 32 bits clear the upper half either way.
    cpu.set::<W>(op.dst, cpu.get::<W>(from));
    Ok(())
}

fn move_memory<C: Condition, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    // The operand is read either way, and may fault.
    let value = cpu.load::<W>(op)?;
    let value = if C::holds(cpu.flags) { value } else { cpu.get::<W>(op.dst) };
    cpu.set::<W>(op.dst, value);
    Ok(())
}

fn set_register<C: Condition>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<B1>(op.dst, u64::from(C::holds(cpu.flags)));
    Ok(())
}

fn set_memory<C: Condition>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = u64::from(C::holds(cpu.flags));
    cpu.store::<B1>(op, value)
}
