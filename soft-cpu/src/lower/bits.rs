//! Single bits and their places: `bt` to `btc`, `bsf`, `bsr`, `popcnt`, `bswap`.
//!
//! `tzcnt` and `lzcnt` are not advertised, and a processor without them reads their bytes as `bsf` and `bsr`
//! with a prefix that means nothing (Intel SDM vol. 2, "TZCNT").

use iced_x86::{Instruction, Mnemonic};

use super::{Found, Place, by_width, bytes_of, goes_on, immediate, is_memory, register};
use crate::cpu::Cpu;
use crate::flags::Flags;
use crate::op::{Done, Handler, Op};
use crate::width::Width;

/// What becomes of the bit that is tested.
trait Change: 'static {
    const WRITES: bool = true;
    fn apply(value: u64, bit: u64) -> u64;
}

macro_rules! changes {
    ($($name:ident: $writes:literal |$value:ident, $bit:ident| $body:expr;)*) => {$(
        struct $name;
        impl Change for $name {
            const WRITES: bool = $writes;
            #[inline(always)]
            fn apply($value: u64, $bit: u64) -> u64 { $body }
        }
    )*};
}

changes! {
    Keep: false |value, _bit| value;
    Set: true |value, bit| value | bit;
    Reset: true |value, bit| value & !bit;
    Complement: true |value, bit| value ^ bit;
}

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = match i.mnemonic() {
        Mnemonic::Bt => test::<Keep>(i, op),
        Mnemonic::Bts => test::<Set>(i, op),
        Mnemonic::Btr => test::<Reset>(i, op),
        Mnemonic::Btc => test::<Complement>(i, op),
        Mnemonic::Bsf | Mnemonic::Tzcnt => scan::<false>(i, op),
        Mnemonic::Bsr | Mnemonic::Lzcnt => scan::<true>(i, op),
        Mnemonic::Popcnt => population(i, op),
        Mnemonic::Bswap => {
            op.dst = register(i, 0)?;
            by_width!(bytes_of(i, 0), swap)
        }
        _ => return None,
    };
    goes_on(handler?)
}

fn test<C: Change>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    if let Some(bit) = immediate(i, 1) {
        op.imm = bit;
        return match register(i, 0) {
            Some(dst) => {
                op.dst = dst;
                by_width!(bytes, register_immediate::<C>)
            }
            None if i.has_lock_prefix() => by_width!(bytes, locked_immediate::<C>),
            None => by_width!(bytes, memory_immediate::<C>),
        };
    }
    op.src = register(i, 1)?;
    match register(i, 0) {
        Some(dst) => {
            op.dst = dst;
            by_width!(bytes, register_register::<C>)
        }
        None if i.has_lock_prefix() => by_width!(bytes, locked_register::<C>),
        None => by_width!(bytes, memory_register::<C>),
    }
}

fn scan<const REVERSE: bool>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    op.dst = register(i, 0)?;
    match (register(i, 1), REVERSE) {
        (Some(src), false) => {
            op.src = src;
            by_width!(bytes, forward_register)
        }
        (Some(src), true) => {
            op.src = src;
            by_width!(bytes, reverse_register)
        }
        (None, false) if is_memory(i, 1) => by_width!(bytes, forward_memory),
        (None, true) if is_memory(i, 1) => by_width!(bytes, reverse_memory),
        _ => None,
    }
}

fn population(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    op.dst = register(i, 0)?;
    if let Some(src) = register(i, 1) {
        op.src = src;
        return by_width!(bytes, population_register);
    }
    by_width!(bytes, population_memory)
}

/// The place of a bit in its operand, as a value with this bit set.
#[inline(always)]
fn place<W: Width>(bit: u64) -> u64 {
    1 << (bit & u64::from(W::BITS - 1))
}

#[inline(always)]
fn in_register<C: Change, W: Width>(cpu: &mut Cpu, op: &Op, bit: u64) -> Done {
    let bit = place::<W>(bit);
    let value = cpu.get::<W>(op.dst);
    cpu.flags = cpu.flags.with_carry(value & bit != 0);
    if C::WRITES {
        cpu.set::<W>(op.dst, C::apply(value, bit));
    }
    Ok(())
}

#[inline(always)]
fn in_memory<C: Change, W: Width>(cpu: &mut Cpu, op: &Op, address: u64, bit: u64) -> Done {
    let bit = place::<W>(bit);
    let value = if C::WRITES {
        let operand = cpu.open::<W>(address, op.segment)?;
        let value = cpu.peek::<W>(operand)?;
        cpu.poke::<W>(operand, C::apply(value, bit))?;
        value
    } else {
        cpu.load_at::<W>(address, op.segment)?
    };
    cpu.flags = cpu.flags.with_carry(value & bit != 0);
    Ok(())
}

#[inline(always)]
fn locked<C: Change, W: Width>(cpu: &mut Cpu, op: &Op, address: u64, bit: u64) -> Done {
    let bit = place::<W>(bit);
    let value = cpu.modify::<W>(address, op.segment, |value| C::apply(value, bit))?;
    cpu.flags = cpu.flags.with_carry(value & bit != 0);
    Ok(())
}

/// Where the operand is that has the bit a register counts out: the number is signed, and may lead far away from the
/// address in the instruction (Intel SDM vol. 2, "BT").
#[inline(always)]
fn reached<W: Width>(cpu: &Cpu, op: &Op, bit: u64) -> u64 {
    let operands = W::sign_extend(bit).cast_signed() >> W::BITS.trailing_zeros();
    let away = operands.cast_unsigned().wrapping_mul(W::BYTES as u64);
    let offset = cpu.offset(op).wrapping_add(away);
    cpu.based(op, offset << (op.cut & 63) >> (op.cut & 63))
}

fn register_register<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let bit = cpu.get::<W>(op.src);
    in_register::<C, W>(cpu, op, bit)
}

fn register_immediate<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    in_register::<C, W>(cpu, op, op.imm)
}

fn memory_register<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let bit = cpu.get::<W>(op.src);
    let address = reached::<W>(cpu, op, bit);
    in_memory::<C, W>(cpu, op, address, bit)
}

fn memory_immediate<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.address(op);
    in_memory::<C, W>(cpu, op, address, op.imm)
}

fn locked_register<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let bit = cpu.get::<W>(op.src);
    let address = reached::<W>(cpu, op, bit);
    locked::<C, W>(cpu, op, address, bit)
}

fn locked_immediate<C: Change, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let address = cpu.address(op);
    locked::<C, W>(cpu, op, address, op.imm)
}

/// ZF says that there was no bit; then the destination keeps all 64 of its own.
#[inline(always)]
fn scanned<W: Width>(cpu: &mut Cpu, op: &Op, value: u64, found: u32) -> Done {
    cpu.flags = Flags::logical::<W>(value);
    if value != 0 {
        cpu.set::<W>(op.dst, u64::from(found));
    }
    Ok(())
}

fn forward_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<W>(op.src);
    scanned::<W>(cpu, op, value, value.trailing_zeros())
}

fn forward_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<W>(op)?;
    scanned::<W>(cpu, op, value, value.trailing_zeros())
}

fn reverse_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<W>(op.src);
    scanned::<W>(cpu, op, value, 63u32.wrapping_sub(value.leading_zeros()))
}

fn reverse_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<W>(op)?;
    scanned::<W>(cpu, op, value, 63u32.wrapping_sub(value.leading_zeros()))
}

/// ZF says that there was no bit; the other flags are clear.
#[inline(always)]
fn populated<W: Width>(cpu: &mut Cpu, op: &Op, value: u64) -> Done {
    cpu.set::<W>(op.dst, u64::from(value.count_ones()));
    cpu.flags = Flags::from_bits(if value == 0 { crate::flags::ZF } else { 0 });
    Ok(())
}

fn population_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<W>(op.src);
    populated::<W>(cpu, op, value)
}

fn population_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<W>(op)?;
    populated::<W>(cpu, op, value)
}

/// With 16 bits the result is undefined, and 0 on processors there are.
fn swap<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<W>(op.dst);
    let swapped = match W::BYTES {
        8 => value.swap_bytes(),
        4 => value.swap_bytes() >> 32,
        _ => 0,
    };
    cpu.set::<W>(op.dst, swapped);
    Ok(())
}
