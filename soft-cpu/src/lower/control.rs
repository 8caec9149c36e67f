//! Going elsewhere: near jumps, conditions, calls, returns, loops.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Found, Place, by_width, bytes_of, ends, is_memory, register};
use crate::cpu::{CodeSize, Cpu, reg, slot};
use crate::flags::Flags;
use crate::op::{Done, Handler, Op};
use crate::width::{B2, B4, B8, Width};

/// One of the sixteen conditions.
pub(crate) trait Condition: 'static {
    fn holds(flags: Flags) -> bool;
    /// Whether it holds after `a - b`, whose flags are `flags`. A comparison of the numbers says the same with less work.
    #[inline(always)]
    fn compares<W: Width>(_a: u64, _b: u64, flags: Flags) -> bool {
        Self::holds(flags)
    }
}

macro_rules! conditions {
    ($($name:ident |$flags:ident| $body:expr $(, |$a:ident, $b:ident| $compared:expr)?;)*) => {$(
        pub(crate) struct $name;
        impl Condition for $name {
            #[inline(always)]
            fn holds($flags: Flags) -> bool { $body }
            $(
                #[inline(always)]
                fn compares<W: Width>(a: u64, b: u64, _flags: Flags) -> bool {
                    let ($a, $b) = (signed::<W>(a), signed::<W>(b));
                    $compared
                }
            )?
        }
    )*};
}

conditions! {
    Overflow |f| f.overflow();
    NoOverflow |f| !f.overflow();
    Below |f| f.carry(), |a, b| a.cast_unsigned() < b.cast_unsigned();
    NotBelow |f| !f.carry(), |a, b| a.cast_unsigned() >= b.cast_unsigned();
    Equal |f| f.zero();
    NotEqual |f| !f.zero();
    NotAbove |f| f.carry() | f.zero(), |a, b| a.cast_unsigned() <= b.cast_unsigned();
    Above |f| !(f.carry() | f.zero()), |a, b| a.cast_unsigned() > b.cast_unsigned();
    Sign |f| f.sign();
    NoSign |f| !f.sign();
    Even |f| f.parity();
    Odd |f| !f.parity();
    Less |f| f.sign() != f.overflow(), |a, b| a < b;
    NotLess |f| f.sign() == f.overflow(), |a, b| a >= b;
    NotGreater |f| f.zero() | (f.sign() != f.overflow()), |a, b| a <= b;
    Greater |f| !f.zero() & (f.sign() == f.overflow()), |a, b| a > b;
}

/// As a signed number. The order of two unsigned ones is that of both sign-extended and taken as unsigned.
#[inline(always)]
fn signed<W: Width>(value: u64) -> i64 {
    W::sign_extend(value).cast_signed()
}

/// Picks the copy of a handler that was compiled for a condition.
macro_rules! by_condition {
    ($condition:expr, $handler:ident $(, $generic:ty)*) => {{
        use crate::lower::control as c;
        use iced_x86::ConditionCode as Cc;
        let handler: Option<crate::op::Handler> = match $condition {
            Cc::o => Some($handler::<c::Overflow $(, $generic)*>),
            Cc::no => Some($handler::<c::NoOverflow $(, $generic)*>),
            Cc::b => Some($handler::<c::Below $(, $generic)*>),
            Cc::ae => Some($handler::<c::NotBelow $(, $generic)*>),
            Cc::e => Some($handler::<c::Equal $(, $generic)*>),
            Cc::ne => Some($handler::<c::NotEqual $(, $generic)*>),
            Cc::be => Some($handler::<c::NotAbove $(, $generic)*>),
            Cc::a => Some($handler::<c::Above $(, $generic)*>),
            Cc::s => Some($handler::<c::Sign $(, $generic)*>),
            Cc::ns => Some($handler::<c::NoSign $(, $generic)*>),
            Cc::p => Some($handler::<c::Even $(, $generic)*>),
            Cc::np => Some($handler::<c::Odd $(, $generic)*>),
            Cc::l => Some($handler::<c::Less $(, $generic)*>),
            Cc::ge => Some($handler::<c::NotLess $(, $generic)*>),
            Cc::le => Some($handler::<c::NotGreater $(, $generic)*>),
            Cc::g => Some($handler::<c::Greater $(, $generic)*>),
            Cc::None => None,
        };
        handler
    }};
}
pub(crate) use by_condition;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let near =
        |kind| matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let handler: Handler = match i.mnemonic() {
        Mnemonic::Jmp if near(i.op0_kind()) => {
            target(i, op, place);
            jump
        }
        Mnemonic::Jmp if is_memory(i, 0) && !is_far(i) => {
            by_width!(i.memory_size().size(), jump_memory)?
        }
        Mnemonic::Jmp if register(i, 0).is_some() => {
            op.src = register(i, 0)?;
            by_width!(bytes_of(i, 0), jump_register)?
        }
        Mnemonic::Call if near(i.op0_kind()) => {
            target(i, op, place);
            match (place.code_size, i.op0_kind()) {
                (CodeSize::Bits64, OpKind::NearBranch64) => call64,
                (_, OpKind::NearBranch32) => call::<B4>,
                (_, OpKind::NearBranch16) => call::<B2>,
                _ => return None,
            }
        }
        Mnemonic::Call if is_memory(i, 0) && !is_far(i) => {
            by_width!(i.memory_size().size(), call_memory)?
        }
        Mnemonic::Call if register(i, 0).is_some() => {
            op.src = register(i, 0)?;
            by_width!(bytes_of(i, 0), call_register)?
        }
        Mnemonic::Ret => {
            op.imm = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
            match i.stack_pointer_increment() - i32::try_from(op.imm).ok()? {
                8 => ret64,
                4 => ret::<B4>,
                2 => ret::<B2>,
                _ => return None,
            }
        }
        Mnemonic::Loop
        | Mnemonic::Loope
        | Mnemonic::Loopne
        | Mnemonic::Jrcxz
        | Mnemonic::Jecxz
        | Mnemonic::Jcxz => {
            target(i, op, place);
            let bytes = counter_bytes(i);
            match i.mnemonic() {
                Mnemonic::Loop => by_width!(bytes, looped::<Always>)?,
                Mnemonic::Loope => by_width!(bytes, looped::<Equal>)?,
                Mnemonic::Loopne => by_width!(bytes, looped::<NotEqual>)?,
                _ => by_width!(bytes, jump_if_no_count)?,
            }
        }
        _ if near(i.op0_kind()) => {
            target(i, op, place);
            by_condition!(i.condition_code(), jump_if)?
        }
        _ => return None,
    };
    ends(handler)
}

conditions! {
    Always |_f| true;
}

fn is_far(i: &Instruction) -> bool {
    use iced_x86::Code;
    matches!(
        i.code(),
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    )
}

/// Which of CX, ECX and RCX a loop counts in.
fn counter_bytes(i: &Instruction) -> usize {
    use iced_x86::Code;
    match i.code() {
        Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 2,
        Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 8,
        _ => 4,
    }
}

/// The branch's target from the trace's start, and how much of an instruction pointer counts.
fn target(i: &Instruction, op: &mut Op, place: &Place) {
    let start = i.ip().wrapping_sub(place.offset as u64);
    op.imm = i.near_branch_target().wrapping_sub(start);
    op.cut = match i.op0_kind() {
        OpKind::NearBranch16 => 48,
        OpKind::NearBranch32 => 32,
        _ => 0,
    };
}

#[inline(always)]
pub(super) fn go(cpu: &mut Cpu, op: &Op, offset: u64) {
    let rip = cpu.gpr[usize::from(slot::RIP)].wrapping_add(offset);
    cpu.rip = rip << (op.cut & 63) >> (op.cut & 63);
}

/// The address after this instruction.
#[inline(always)]
pub(crate) fn after(cpu: &Cpu, op: &Op) -> u64 {
    let rip = cpu.gpr[usize::from(slot::RIP)].wrapping_add(op.next());
    if cpu.code_size == CodeSize::Bits64 { rip } else { rip & 0xffff_ffff }
}

fn jump(cpu: &mut Cpu, op: &Op) -> Done {
    go(cpu, op, op.imm);
    Ok(())
}

fn jump_if<C: Condition>(cpu: &mut Cpu, op: &Op) -> Done {
    let offset = if C::holds(cpu.flags) { op.imm } else { op.next() };
    go(cpu, op, offset);
    Ok(())
}

/// Refuses targets that are no addresses, while the branch itself can still be blamed (Intel SDM vol. 2, "JMP",
/// "CALL", "RET": #GP(0) before anything is changed).
#[inline(always)]
fn allow(cpu: &mut Cpu, target: u64) -> Done {
    if cpu.is_canonical(target) { Ok(()) } else { Err(cpu.protect()) }
}

fn jump_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = cpu.get::<W>(op.src);
    allow(cpu, target)?;
    cpu.rip = target;
    Ok(())
}

fn jump_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = cpu.load::<W>(op)?;
    allow(cpu, target)?;
    cpu.rip = target;
    Ok(())
}

fn call64(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP].wrapping_sub(8);
    let Some(host) = cpu.writes.hit::<B8>(rsp) else { return call64_slowly(cpu, op) };
    host.store::<B8>(cpu.gpr[usize::from(slot::RIP)].wrapping_add(op.next()));
    cpu.gpr[reg::RSP] = rsp;
    go(cpu, op, op.imm);
    Ok(())
}

#[cold]
#[inline(never)]
fn call64_slowly(cpu: &mut Cpu, op: &Op) -> Done {
    let back = cpu.gpr[usize::from(slot::RIP)].wrapping_add(op.next());
    cpu.push64(back)?;
    go(cpu, op, op.imm);
    Ok(())
}

fn call<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let back = after(cpu, op);
    cpu.push::<W>(back)?;
    go(cpu, op, op.imm);
    Ok(())
}

fn call_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = cpu.get::<W>(op.src);
    allow(cpu, target)?;
    let back = after(cpu, op);
    cpu.push::<W>(back)?;
    cpu.rip = target;
    Ok(())
}

fn call_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = cpu.load::<W>(op)?;
    allow(cpu, target)?;
    let back = after(cpu, op);
    cpu.push::<W>(back)?;
    cpu.rip = target;
    Ok(())
}

fn ret64(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP];
    let Some(host) = cpu.reads.hit::<B8>(rsp) else { return ret64_slowly(cpu, op) };
    let target = host.load::<B8>();
    if !cpu.is_canonical(target) {
        return Err(cpu.protect());
    }
    cpu.rip = target;
    cpu.gpr[reg::RSP] = rsp.wrapping_add(8).wrapping_add(op.imm);
    Ok(())
}

#[cold]
#[inline(never)]
fn ret64_slowly(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP];
    let target = cpu.load_at::<B8>(rsp, slot::FLAT_STACK)?;
    allow(cpu, target)?;
    cpu.rip = target;
    cpu.gpr[reg::RSP] = rsp.wrapping_add(8).wrapping_add(op.imm);
    Ok(())
}

fn ret<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let target = cpu.pop::<W>()?;
    cpu.move_stack(op.imm);
    cpu.rip = target;
    Ok(())
}

fn looped<C: Condition, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = cpu.get::<W>(1).wrapping_sub(1) & W::MASK;
    cpu.set::<W>(1, count);
    let offset = if count != 0 && C::holds(cpu.flags) { op.imm } else { op.next() };
    go(cpu, op, offset);
    Ok(())
}

fn jump_if_no_count<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let offset = if cpu.get::<W>(1) == 0 { op.imm } else { op.next() };
    go(cpu, op, offset);
    Ok(())
}
