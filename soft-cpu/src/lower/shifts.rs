//! Shifts and rotations: `shl` to `sar`, `rol` to `rcr`, `shld`, `shrd`.
//!
//! A count is taken modulo 64 for 64-bit operands and modulo 32 for all others (Intel SDM vol. 2, "SAL/SAR/SHL/SHR"): an
//! 8- or 16-bit operand may be shifted by more than it has. A count of 0 changes no flag. OF is defined
//! for a count of 1 only; what is computed here fits every count, as AMD's and Intel's processors do it.

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic};

use super::liveness::Wanted;
use super::{Found, Place, by_width, bytes_of, goes_on, immediate, register};
use crate::cpu::{Cpu, reg};
use crate::flags::Flags;
use crate::op::{Done, Handler, Op};
use crate::width::{B4, B8, Width};

/// A shift of one operand.
trait Shift: 'static {
    /// The result and the flags after it, for a count of 1 to 31, or 63 for 64 bits.
    fn apply<W: Width>(flags: Flags, a: u64, count: u32) -> (u64, Flags);
}

macro_rules! shifts {
    ($($name:ident: |$flags:ident, $a:ident, $count:ident, $width:ident| $body:expr;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<$width: Width>($flags: Flags, $a: u64, $count: u32) -> (u64, Flags) {
                $body
            }
        }
    )*};
}

/// Whether the two top bits differ.
#[inline(always)]
fn top_bits_differ<W: Width>(value: u64) -> bool {
    W::sign(value ^ value << 1)
}

shifts! {
    Shl: |_flags, a, count, W| {
        let result = a << count & W::MASK;
        // The last bit that went out at the top: for narrow operands it still stands above them.
        let last = if W::BITS >= 32 { a >> (W::BITS - count) } else { a << count >> W::BITS };
        let carry = last & 1 != 0;
        (result, Flags::shifted::<W>(result, carry, carry != W::sign(result)))
    };
    Shr: |_flags, a, count, W| {
        let before = a >> (count - 1);
        let result = before >> 1;
        (result, Flags::shifted::<W>(result, before & 1 != 0, top_bits_differ::<W>(result)))
    };
    Sar: |_flags, a, count, W| {
        let before = W::sign_extend(a).cast_signed() >> (count - 1);
        let result = (before >> 1).cast_unsigned() & W::MASK;
        (result, Flags::shifted::<W>(result, before & 1 != 0, false))
    };
    Rol: |flags, a, count, W| {
        let by = count % W::BITS;
        let result = if by == 0 { a } else { (a << by | a >> (W::BITS - by)) & W::MASK };
        let carry = result & 1 != 0;
        (result, flags.with_carry_and_overflow(carry, carry != W::sign(result)))
    };
    Ror: |flags, a, count, W| {
        let by = count % W::BITS;
        let result = if by == 0 { a } else { (a >> by | a << (W::BITS - by)) & W::MASK };
        (result, flags.with_carry_and_overflow(W::sign(result), top_bits_differ::<W>(result)))
    };
    Rcl: |flags, a, count, W| {
        // One bit more goes round: CF, above the operand.
        let size = W::BITS + 1;
        let by = count % size;
        if by == 0 {
            return (a, flags);
        }
        let whole = u128::from(flags.carry()) << W::BITS | u128::from(a);
        let (result, carry) = split::<W>(whole << by | whole >> (size - by));
        (result, flags.with_carry_and_overflow(carry, carry != W::sign(result)))
    };
    Rcr: |flags, a, count, W| {
        let size = W::BITS + 1;
        let by = count % size;
        if by == 0 {
            return (a, flags);
        }
        let whole = u128::from(flags.carry()) << W::BITS | u128::from(a);
        let (result, carry) = split::<W>(whole >> by | whole << (size - by));
        (result, flags.with_carry_and_overflow(carry, top_bits_differ::<W>(result)))
    };
}

/// A shift whose flags nobody asks for.
struct Silent<S>(PhantomData<S>);

impl<S: Shift> Shift for Silent<S> {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64, count: u32) -> (u64, Flags) {
        (S::apply::<W>(flags, a, count).0, flags)
    }
}

/// A shift of whose flags only CF is asked for.
struct CarryOnly<S>(PhantomData<S>);

impl<S: Shift> Shift for CarryOnly<S> {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64, count: u32) -> (u64, Flags) {
        let (result, after) = S::apply::<W>(flags, a, count);
        (result, flags.only_carry(after.carry()))
    }
}

/// The handler of a shift of a register by an immediate count that is not 0, when not all of its flags are asked for.
pub(super) fn quieter(i: &Instruction, wanted: Wanted) -> Option<Handler> {
    match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => quieter_shift::<Shl>(i, wanted),
        Mnemonic::Shr => quieter_shift::<Shr>(i, wanted),
        Mnemonic::Sar => quieter_shift::<Sar>(i, wanted),
        Mnemonic::Rol => quieter_shift::<Rol>(i, wanted),
        Mnemonic::Ror => quieter_shift::<Ror>(i, wanted),
        _ => None,
    }
}

fn quieter_shift<S: Shift>(i: &Instruction, wanted: Wanted) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    match wanted {
        Wanted::Nothing => by_width!(bytes, register_immediate::<Silent<S>>),
        Wanted::Carry => by_width!(bytes, register_immediate::<CarryOnly<S>>),
    }
}

/// The count of a shift by an immediate number, as it counts.
pub(super) fn count_of(i: &Instruction) -> Option<u32> {
    let count = immediate(i, 1)?;
    Some(if bytes_of(i, 0) == 8 { masked::<B8>(count) } else { masked::<B4>(count) })
}

/// An operand, and the bit above it.
#[expect(clippy::cast_possible_truncation, reason = "masked to the operand's width")]
#[inline(always)]
fn split<W: Width>(whole: u128) -> (u64, bool) {
    (whole as u64 & W::MASK, whole >> W::BITS & 1 != 0)
}

/// A shift that draws bits from a second operand.
trait Double: 'static {
    /// The result and the flags after it, for a count of 1 to 31, or 63 for 64 bits.
    fn apply<W: Width>(a: u64, b: u64, count: u32) -> (u64, Flags);
}

struct Shld;
struct Shrd;

impl Double for Shld {
    #[inline(always)]
    fn apply<W: Width>(a: u64, b: u64, count: u32) -> (u64, Flags) {
        let (result, carry) = if W::BITS == 16 {
            // Beyond 16 the first operand follows once more.
            let three = (a << 16 | b) << 16 | a;
            (three << count >> 32 & 0xffff, three >> (48 - count) & 1 != 0)
        } else {
            let rest = W::BITS - count;
            ((a << count | b >> rest) & W::MASK, a >> rest & 1 != 0)
        };
        (result, Flags::shifted::<W>(result, carry, carry != W::sign(result)))
    }
}

impl Double for Shrd {
    #[inline(always)]
    fn apply<W: Width>(a: u64, b: u64, count: u32) -> (u64, Flags) {
        let (result, carry) = if W::BITS == 16 {
            let three = (a << 16 | b) << 16 | a;
            (three >> count & 0xffff, three >> (count - 1) & 1 != 0)
        } else {
            ((a >> count | b << (W::BITS - count)) & W::MASK, a >> (count - 1) & 1 != 0)
        };
        (result, Flags::shifted::<W>(result, carry, top_bits_differ::<W>(result)))
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = match i.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(i, op),
        Mnemonic::Shr => shift::<Shr>(i, op),
        Mnemonic::Sar => shift::<Sar>(i, op),
        Mnemonic::Rol => shift::<Rol>(i, op),
        Mnemonic::Ror => shift::<Ror>(i, op),
        Mnemonic::Rcl => shift::<Rcl>(i, op),
        Mnemonic::Rcr => shift::<Rcr>(i, op),
        Mnemonic::Shld => double::<Shld>(i, op),
        Mnemonic::Shrd => double::<Shrd>(i, op),
        _ => return None,
    };
    goes_on(handler?)
}

fn shift<S: Shift>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    let dst = register(i, 0);
    op.dst = dst.unwrap_or(op.dst);
    // The other source is CL.
    match (immediate(i, 1), dst) {
        (Some(count), Some(_)) => {
            op.imm = count;
            by_width!(bytes, register_immediate::<S>)
        }
        (Some(count), None) => {
            op.imm = count;
            by_width!(bytes, memory_immediate::<S>)
        }
        (None, Some(_)) => by_width!(bytes, register_counted::<S>),
        (None, None) => by_width!(bytes, memory_counted::<S>),
    }
}

fn double<D: Double>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    op.src = register(i, 1)?;
    let dst = register(i, 0);
    op.dst = dst.unwrap_or(op.dst);
    match (immediate(i, 2), dst) {
        (Some(count), Some(_)) => {
            op.imm = count;
            by_width!(bytes, double_register_immediate::<D>)
        }
        (Some(count), None) => {
            op.imm = count;
            by_width!(bytes, double_memory_immediate::<D>)
        }
        (None, Some(_)) => by_width!(bytes, double_register_counted::<D>),
        (None, None) => by_width!(bytes, double_memory_counted::<D>),
    }
}

/// What of a count counts.
#[expect(clippy::cast_possible_truncation, reason = "masked to six bits")]
#[inline(always)]
fn masked<W: Width>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

#[inline(always)]
fn register_by<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Done {
    let count = masked::<W>(count);
    let mut result = cpu.get::<W>(op.dst);
    if count != 0 {
        (result, cpu.flags) = S::apply::<W>(cpu.flags, result, count);
    }
    // Also when nothing moved: 32 bits clear the upper half.
    cpu.set::<W>(op.dst, result);
    Ok(())
}

#[inline(always)]
fn memory_by<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Done {
    let count = masked::<W>(count);
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let a = cpu.peek::<W>(operand)?;
    let (result, flags) =
        if count == 0 { (a, cpu.flags) } else { S::apply::<W>(cpu.flags, a, count) };
    cpu.poke::<W>(operand, result)?;
    cpu.flags = flags;
    Ok(())
}

fn register_immediate<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    register_by::<S, W>(cpu, op, op.imm)
}

fn register_counted<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = cpu.gpr[reg::RCX];
    register_by::<S, W>(cpu, op, count)
}

fn memory_immediate<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    memory_by::<S, W>(cpu, op, op.imm)
}

fn memory_counted<S: Shift, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = cpu.gpr[reg::RCX];
    memory_by::<S, W>(cpu, op, count)
}

#[inline(always)]
fn double_register<D: Double, W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Done {
    let count = masked::<W>(count);
    let mut result = cpu.get::<W>(op.dst);
    if count != 0 {
        (result, cpu.flags) = D::apply::<W>(result, cpu.get::<W>(op.src), count);
    }
    cpu.set::<W>(op.dst, result);
    Ok(())
}

#[inline(always)]
fn double_memory<D: Double, W: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Done {
    let count = masked::<W>(count);
    let b = cpu.get::<W>(op.src);
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let a = cpu.peek::<W>(operand)?;
    let (result, flags) = if count == 0 { (a, cpu.flags) } else { D::apply::<W>(a, b, count) };
    cpu.poke::<W>(operand, result)?;
    cpu.flags = flags;
    Ok(())
}

fn double_register_immediate<D: Double, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    double_register::<D, W>(cpu, op, op.imm)
}

fn double_register_counted<D: Double, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = cpu.gpr[reg::RCX];
    double_register::<D, W>(cpu, op, count)
}

fn double_memory_immediate<D: Double, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    double_memory::<D, W>(cpu, op, op.imm)
}

fn double_memory_counted<D: Double, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let count = cpu.gpr[reg::RCX];
    double_memory::<D, W>(cpu, op, count)
}
