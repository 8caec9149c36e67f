//! SSE to SSSE3: what works on the sixteen 128-bit registers.
//!
//! A handler is compiled for each operation and each kind of source ([`Source`]). The operations themselves are the
//! host's ([`crate::host_sse`]).

mod convert;
mod float;
mod integer;
mod moves;
mod shuffle;
mod third;
mod unmasked;

use std::marker::PhantomData;

use iced_x86::{Instruction, OpKind};

use super::{Found, Place, goes_on};
use crate::cpu::{Cpu, cr0, cr4};
use crate::event::{Exception, Raised};
use crate::host_sse::Plain;
use crate::op::{Done, Handler, Op};
use crate::width::Width;

/// What works, as bits of CPUID leaf 1's EDX (Intel SDM vol. 2, `CPUID`): SSE and SSE2.
pub(crate) const ADVERTISED_EDX: u32 = 1 << 25 | 1 << 26;

/// The same for ECX: SSE3 and SSSE3, if the host has them.
pub(crate) fn advertised_ecx() -> u32 {
    third::advertised()
}

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = moves::lower(i, op)
        .or_else(|| integer::lower(i, op))
        .or_else(|| shuffle::lower(i, op))
        .or_else(|| float::lower(i, op))
        .or_else(|| convert::lower(i, op))
        .or_else(|| third::lower(i, op));
    goes_on(handler?)
}

// ---- permission ------------------------------------------------------------------------------

/// Every handler's first step (but for the few that need none): may SSE be used now?
#[inline(always)]
fn permit(cpu: &mut Cpu) -> Done {
    if cpu.refuses_sse {
        return Err(refuse(cpu));
    }
    Ok(())
}

/// Intel SDM vol. 3, "Exceptions and Conditions in CR0 and CR4 for SSE": emulation and a system that does not save
/// the registers come before a task switch.
#[cold]
#[inline(never)]
fn refuse(cpu: &mut Cpu) -> Raised {
    let undefined = cpu.cr0 & cr0::EM != 0 || cpu.cr4 & cr4::OSFXSR == 0;
    cpu.throw(if undefined { Exception::UNDEFINED } else { Exception::NO_DEVICE })
}

// ---- operands --------------------------------------------------------------------------------

/// Where the second operand comes from.
trait Source: 'static {
    /// Its bits, zeroes above.
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised>;
}

/// An SSE register, whole.
struct Register;
/// 16 bytes that must be aligned.
struct Aligned;
/// 16 bytes anywhere.
struct Unaligned;
/// Fewer bytes, anywhere.
struct Short<W>(PhantomData<W>);
/// The low bytes of a general register.
struct General<W>(PhantomData<W>);

impl Source for Register {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        Ok(get(cpu, op.src))
    }
}

impl Source for Aligned {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        let address = aligned(cpu, op)?;
        cpu.load128_at(address, op.segment)
    }
}

impl Source for Unaligned {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        let address = cpu.address(op);
        cpu.load128_at(address, op.segment)
    }
}

impl<W: Width> Source for Short<W> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        cpu.load::<W>(op).map(u128::from)
    }
}

impl<W: Width> Source for General<W> {
    #[inline(always)]
    fn read(cpu: &mut Cpu, op: &Op) -> Result<u128, Raised> {
        Ok(u128::from(cpu.get::<W>(op.src)))
    }
}

/// The linear address of an operand that must be aligned to 16 bytes.
#[inline(always)]
fn aligned(cpu: &mut Cpu, op: &Op) -> Result<u64, Raised> {
    let address = cpu.address(op);
    if !address.is_multiple_of(16) {
        return Err(misaligned(cpu));
    }
    Ok(address)
}

#[cold]
#[inline(never)]
fn misaligned(cpu: &mut Cpu) -> Raised {
    cpu.protect()
}

#[inline(always)]
fn get(cpu: &Cpu, register: u8) -> u128 {
    cpu.xmm[usize::from(register & 15)]
}

#[inline(always)]
fn set(cpu: &mut Cpu, register: u8, value: u128) {
    cpu.xmm[usize::from(register & 15)] = value;
}

/// The low 64 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "that is the point")]
fn low(value: u128) -> u64 {
    value as u64
}

/// The high 64 bits.
#[inline(always)]
fn high(value: u128) -> u64 {
    low(value >> 64)
}

/// `low` and `high` together.
#[inline(always)]
fn joined(low: u64, high: u64) -> u128 {
    u128::from(low) | u128::from(high) << 64
}

/// The number of operand `which`, an SSE register.
fn xmm(i: &Instruction, which: u32) -> Option<u8> {
    let register = i.op_register(which);
    (i.op_kind(which) == OpKind::Register && register.is_xmm())
        .then(|| u8::try_from(register.number()).ok())
        .flatten()
}

/// The immediate byte, if there is one.
fn imm8(i: &Instruction) -> Option<u8> {
    (0..i.op_count()).any(|which| i.op_kind(which) == OpKind::Immediate8).then(|| i.immediate8())
}

/// The handler for a destination that is a register: `register` or `memory`, as the source is.
fn from_either(
    i: &Instruction,
    op: &mut Op,
    register: Handler,
    memory: Handler,
) -> Option<Handler> {
    op.dst = xmm(i, 0)?;
    if i.op_kind(1) == OpKind::Memory {
        return Some(memory);
    }
    op.src = xmm(i, 1)?;
    Some(register)
}

// ---- the most common shape -------------------------------------------------------------------

/// The handler of a plain operation: register and register, or register and aligned memory.
fn plain<O: Plain>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    from_either(i, op, run_plain::<O, Register>, run_plain::<O, Aligned>)
}

fn run_plain<O: Plain, S: Source>(cpu: &mut Cpu, op: &Op) -> Done {
    permit(cpu)?;
    let source = S::read(cpu, op)?;
    set(cpu, op.dst, O::apply(get(cpu, op.dst), source));
    Ok(())
}
