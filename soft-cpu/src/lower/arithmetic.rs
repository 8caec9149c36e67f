//! Sums, differences and logic: `add` to `cmp`, `test`, `inc`, `dec`, `neg`, `not`, and their locked forms.

use std::marker::PhantomData;

use iced_x86::{Instruction, Mnemonic};

use super::liveness::Wanted;
use super::{Found, Place, by_width, bytes_of, goes_on, immediate, is_memory, register};
use crate::cpu::Cpu;
use crate::flags::{self, Flags};
use crate::op::{Done, Handler, Op};
use crate::width::Width;

/// An operation with two operands.
pub(super) trait Binary: 'static {
    /// Whether the destination gets the result.
    const WRITES: bool = true;
    /// Whether the flags are those of the difference of the operands.
    const SUBTRACTS: bool = false;
    /// The result and the flags after it.
    fn apply<W: Width>(flags: Flags, a: u64, b: u64) -> (u64, Flags);
}

macro_rules! binaries {
    ($($name:ident: $writes:literal $subtracts:literal
        |$flags:ident, $a:ident, $b:ident, $width:ident| $body:expr;)*) => {$(
        pub(super) struct $name;
        impl Binary for $name {
            const WRITES: bool = $writes;
            const SUBTRACTS: bool = $subtracts;
            #[inline(always)]
            fn apply<$width: Width>($flags: Flags, $a: u64, $b: u64) -> (u64, Flags) {
                let _ = $flags;
                $body
            }
        }
    )*};
}

binaries! {
    Add: true false |flags, a, b, W| flags::add::<W>(a, b, false);
    Adc: true false |flags, a, b, W| flags::add::<W>(a, b, flags.carry());
    Sub: true true |flags, a, b, W| flags::subtract::<W>(a, b, false);
    Sbb: true false |flags, a, b, W| flags::subtract::<W>(a, b, flags.carry());
    Cmp: false true |flags, a, b, W| flags::subtract::<W>(a, b, false);
    And: true false |flags, a, b, W| (a & b, Flags::logical::<W>(a & b));
    Or: true false |flags, a, b, W| (a | b, Flags::logical::<W>(a | b));
    Xor: true false |flags, a, b, W| (a ^ b, Flags::logical::<W>(a ^ b));
    Test: false false |flags, a, b, W| (a & b, Flags::logical::<W>(a & b));
}

/// An operation with one operand.
pub(super) trait Unary: 'static {
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags);
}

macro_rules! unaries {
    ($($name:ident: |$flags:ident, $a:ident, $width:ident| $body:expr;)*) => {$(
        pub(super) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<$width: Width>($flags: Flags, $a: u64) -> (u64, Flags) {
                $body
            }
        }
    )*};
}

unaries! {
    Inc: |flags, a, W| {
        let (result, after) = flags::add::<W>(a, 1, false);
        (result, after.keep_carry_of(flags))
    };
    Dec: |flags, a, W| {
        let (result, after) = flags::subtract::<W>(a, 1, false);
        (result, after.keep_carry_of(flags))
    };
    Neg: |_flags, a, W| flags::subtract::<W>(0, a, false);
    Not: |flags, a, W| (!a & W::MASK, flags);
}

/// An operation whose flags nobody asks for.
struct Silent<O>(PhantomData<O>);

impl<O: Binary> Binary for Silent<O> {
    const WRITES: bool = O::WRITES;
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64, b: u64) -> (u64, Flags) {
        (O::apply::<W>(flags, a, b).0, flags)
    }
}

impl<O: Unary> Unary for Silent<O> {
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64) -> (u64, Flags) {
        (O::apply::<W>(flags, a).0, flags)
    }
}

/// An operation of whose flags only CF is asked for.
struct CarryOnly<O>(PhantomData<O>);

impl<O: Binary> Binary for CarryOnly<O> {
    const WRITES: bool = O::WRITES;
    #[inline(always)]
    fn apply<W: Width>(flags: Flags, a: u64, b: u64) -> (u64, Flags) {
        let (result, after) = O::apply::<W>(flags, a, b);
        (result, flags.only_carry(after.carry()))
    }
}

/// The handler of an instruction without an operand in memory, when not all of its flags are asked for.
pub(super) fn quieter(i: &Instruction, wanted: Wanted) -> Option<Handler> {
    match i.mnemonic() {
        Mnemonic::Add => quieter_binary::<Add>(i, wanted),
        Mnemonic::Adc => quieter_binary::<Adc>(i, wanted),
        Mnemonic::Sub => quieter_binary::<Sub>(i, wanted),
        Mnemonic::Sbb => quieter_binary::<Sbb>(i, wanted),
        Mnemonic::Cmp => quieter_binary::<Cmp>(i, wanted),
        Mnemonic::And => quieter_binary::<And>(i, wanted),
        Mnemonic::Or => quieter_binary::<Or>(i, wanted),
        Mnemonic::Xor => quieter_binary::<Xor>(i, wanted),
        Mnemonic::Test => quieter_binary::<Test>(i, wanted),
        Mnemonic::Inc => by_width!(bytes_of(i, 0), unary_register::<Silent<Inc>>),
        Mnemonic::Dec => by_width!(bytes_of(i, 0), unary_register::<Silent<Dec>>),
        Mnemonic::Neg if wanted == Wanted::Nothing => {
            by_width!(bytes_of(i, 0), unary_register::<Silent<Neg>>)
        }
        _ => None,
    }
}

fn quieter_binary<O: Binary>(i: &Instruction, wanted: Wanted) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    match (wanted, immediate(i, 1)) {
        (Wanted::Nothing, Some(_)) => by_width!(bytes, register_immediate::<Silent<O>>),
        (Wanted::Nothing, None) => by_width!(bytes, register_register::<Silent<O>>),
        (Wanted::Carry, Some(_)) => by_width!(bytes, register_immediate::<CarryOnly<O>>),
        (Wanted::Carry, None) => by_width!(bytes, register_register::<CarryOnly<O>>),
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = match i.mnemonic() {
        Mnemonic::Add => binary::<Add>(i, op),
        Mnemonic::Adc => binary::<Adc>(i, op),
        Mnemonic::Sub => binary::<Sub>(i, op),
        Mnemonic::Sbb => binary::<Sbb>(i, op),
        Mnemonic::Cmp => binary::<Cmp>(i, op),
        Mnemonic::And => binary::<And>(i, op),
        Mnemonic::Or => binary::<Or>(i, op),
        Mnemonic::Xor => binary::<Xor>(i, op),
        Mnemonic::Test => binary::<Test>(i, op),
        Mnemonic::Inc => unary::<Inc>(i, op),
        Mnemonic::Dec => unary::<Dec>(i, op),
        Mnemonic::Neg => unary::<Neg>(i, op),
        Mnemonic::Not => unary::<Not>(i, op),
        _ => return None,
    };
    goes_on(handler?)
}

fn binary<O: Binary>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    let lock = i.has_lock_prefix();
    if let Some(value) = immediate(i, 1) {
        op.imm = value;
        if let Some(dst) = register(i, 0) {
            op.dst = dst;
            return by_width!(bytes, register_immediate::<O>);
        }
        return if lock {
            by_width!(bytes, locked_immediate::<O>)
        } else {
            by_width!(bytes, memory_immediate::<O>)
        };
    }
    match (register(i, 0), register(i, 1)) {
        (Some(dst), Some(src)) => {
            (op.dst, op.src) = (dst, src);
            by_width!(bytes, register_register::<O>)
        }
        (Some(dst), None) if is_memory(i, 1) => {
            op.dst = dst;
            by_width!(bytes, register_memory::<O>)
        }
        (None, Some(src)) if is_memory(i, 0) => {
            op.src = src;
            if lock {
                by_width!(bytes, locked_register::<O>)
            } else {
                by_width!(bytes, memory_register::<O>)
            }
        }
        _ => None,
    }
}

fn unary<O: Unary>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    match register(i, 0) {
        Some(dst) => {
            op.dst = dst;
            by_width!(bytes, unary_register::<O>)
        }
        None if i.has_lock_prefix() => by_width!(bytes, unary_locked::<O>),
        None => by_width!(bytes, unary_memory::<O>),
    }
}

fn register_register<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (result, flags) = O::apply::<W>(cpu.flags, cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    cpu.flags = flags;
    if O::WRITES {
        cpu.set::<W>(op.dst, result);
    }
    Ok(())
}

fn register_immediate<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (result, flags) = O::apply::<W>(cpu.flags, cpu.get::<W>(op.dst), op.imm & W::MASK);
    cpu.flags = flags;
    if O::WRITES {
        cpu.set::<W>(op.dst, result);
    }
    Ok(())
}

fn register_memory<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    match cpu.read_hit::<W>(op) {
        Some(host) => {
            register_with::<O, W>(cpu, op, host.load::<W>());
            Ok(())
        }
        None => register_memory_slowly::<O, W>(cpu, op),
    }
}

#[cold]
#[inline(never)]
fn register_memory_slowly<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.load::<W>(op)?;
    register_with::<O, W>(cpu, op, b);
    Ok(())
}

#[inline(always)]
fn register_with<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op, b: u64) {
    let (result, flags) = O::apply::<W>(cpu.flags, cpu.get::<W>(op.dst), b);
    cpu.flags = flags;
    if O::WRITES {
        cpu.set::<W>(op.dst, result);
    }
}

#[inline(always)]
fn memory<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op, b: u64) -> Done {
    let hit = if O::WRITES { cpu.write_hit::<W>(op) } else { cpu.read_hit::<W>(op) };
    let Some(host) = hit else { return memory_slowly::<O, W>(cpu, op, b) };
    let (result, flags) = O::apply::<W>(cpu.flags, host.load::<W>(), b);
    if O::WRITES {
        host.store::<W>(result);
    }
    cpu.flags = flags;
    Ok(())
}

#[cold]
#[inline(never)]
fn memory_slowly<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op, b: u64) -> Done {
    if !O::WRITES {
        let a = cpu.load::<W>(op)?;
        cpu.flags = O::apply::<W>(cpu.flags, a, b).1;
        return Ok(());
    }
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let a = cpu.peek::<W>(operand)?;
    let (result, flags) = O::apply::<W>(cpu.flags, a, b);
    cpu.poke::<W>(operand, result)?;
    cpu.flags = flags;
    Ok(())
}

fn memory_register<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    memory::<O, W>(cpu, op, b)
}

fn memory_immediate<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    memory::<O, W>(cpu, op, op.imm & W::MASK)
}

#[inline(always)]
fn locked<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op, b: u64) -> Done {
    let before = cpu.flags;
    let address = cpu.address(op);
    let old = cpu.modify::<W>(address, op.segment, |a| O::apply::<W>(before, a, b).0)?;
    cpu.flags = O::apply::<W>(before, old, b).1;
    Ok(())
}

fn locked_register<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    locked::<O, W>(cpu, op, b)
}

fn locked_immediate<O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    locked::<O, W>(cpu, op, op.imm & W::MASK)
}

fn unary_register<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (result, flags) = O::apply::<W>(cpu.flags, cpu.get::<W>(op.dst));
    cpu.flags = flags;
    cpu.set::<W>(op.dst, result);
    Ok(())
}

fn unary_memory<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let Some(host) = cpu.write_hit::<W>(op) else { return unary_memory_slowly::<O, W>(cpu, op) };
    let (result, flags) = O::apply::<W>(cpu.flags, host.load::<W>());
    host.store::<W>(result);
    cpu.flags = flags;
    Ok(())
}

#[cold]
#[inline(never)]
fn unary_memory_slowly<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let a = cpu.peek::<W>(operand)?;
    let (result, flags) = O::apply::<W>(cpu.flags, a);
    cpu.poke::<W>(operand, result)?;
    cpu.flags = flags;
    Ok(())
}

fn unary_locked<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let before = cpu.flags;
    let address = cpu.address(op);
    let old = cpu.modify::<W>(address, op.segment, |a| O::apply::<W>(before, a).0)?;
    cpu.flags = O::apply::<W>(before, old).1;
    Ok(())
}
