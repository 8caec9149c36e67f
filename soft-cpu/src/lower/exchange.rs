//! Exchanges that a comparison or a sum decides: `cmpxchg`, `cmpxchg8b`, `cmpxchg16b`, `xadd`.
//!
//! A destination in memory must be writable whatever the comparison says (Intel SDM vol. 2, "CMPXCHG").

use iced_x86::{Instruction, Mnemonic};

use super::{Found, Place, by_width, bytes_of, goes_on, register};
use crate::cpu::{Cpu, reg};
use crate::flags::{self, Flags, ZF};
use crate::op::{Done, Handler, Op};
use crate::width::{B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let lock = i.has_lock_prefix();
    let handler: Option<Handler> = match i.mnemonic() {
        Mnemonic::Cmpxchg => {
            op.src = register(i, 1)?;
            let bytes = bytes_of(i, 0);
            match register(i, 0) {
                Some(dst) => {
                    op.dst = dst;
                    by_width!(bytes, compare_exchange_register)
                }
                None if lock => by_width!(bytes, compare_exchange_locked),
                None => by_width!(bytes, compare_exchange_memory),
            }
        }
        Mnemonic::Xadd => {
            op.src = register(i, 1)?;
            let bytes = bytes_of(i, 0);
            match register(i, 0) {
                Some(dst) => {
                    op.dst = dst;
                    by_width!(bytes, exchange_add_register)
                }
                None if lock => by_width!(bytes, exchange_add_locked),
                None => by_width!(bytes, exchange_add_memory),
            }
        }
        Mnemonic::Cmpxchg8b => Some(compare_exchange_8),
        Mnemonic::Cmpxchg16b => Some(compare_exchange_16),
        _ => None,
    };
    goes_on(handler?)
}

/// The flags and the accumulator after a comparison with `old`; whether they were equal.
#[inline(always)]
fn compared<W: Width>(cpu: &mut Cpu, old: u64) -> bool {
    let expected = cpu.get::<W>(0);
    cpu.flags = flags::subtract::<W>(expected, old, false).1;
    if expected != old {
        cpu.set::<W>(0, old);
    }
    expected == old
}

/// A register keeps all 64 of its bits when the comparison fails, and so does the accumulator when it does not.
fn compare_exchange_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (old, new) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    if compared::<W>(cpu, old) {
        cpu.set::<W>(op.dst, new);
    }
    Ok(())
}

fn compare_exchange_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (expected, new) = (cpu.get::<W>(0), cpu.get::<W>(op.src));
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let old = cpu.peek::<W>(operand)?;
    cpu.poke::<W>(operand, if old == expected { new } else { old })?;
    compared::<W>(cpu, old);
    Ok(())
}

fn compare_exchange_locked<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (expected, new) = (cpu.get::<W>(0), cpu.get::<W>(op.src));
    let address = cpu.address(op);
    let change = |old| if old == expected { new } else { old };
    let old = cpu.modify::<W>(address, op.segment, change)?;
    compared::<W>(cpu, old);
    Ok(())
}

fn exchange_add_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    let (sum, flags) = flags::add::<W>(a, b, false);
    // In this order: of one register with itself the sum remains.
    cpu.set::<W>(op.src, a);
    cpu.set::<W>(op.dst, sum);
    cpu.flags = flags;
    Ok(())
}

fn exchange_add_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    let address = cpu.address(op);
    let operand = cpu.open::<W>(address, op.segment)?;
    let old = cpu.peek::<W>(operand)?;
    let (sum, flags) = flags::add::<W>(old, b, false);
    cpu.poke::<W>(operand, sum)?;
    cpu.set::<W>(op.src, old);
    cpu.flags = flags;
    Ok(())
}

fn exchange_add_locked<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    let address = cpu.address(op);
    let old = cpu.modify::<W>(address, op.segment, |a| a.wrapping_add(b))?;
    cpu.set::<W>(op.src, old);
    cpu.flags = flags::add::<W>(old, b, false).1;
    Ok(())
}

/// The same flags but for ZF.
fn with_zero(flags: Flags, zero: bool) -> Flags {
    Flags::from_bits(if zero { flags.bits() | ZF } else { flags.bits() & !ZF })
}

/// Locked with or without the prefix: nobody can tell.
fn compare_exchange_8(cpu: &mut Cpu, op: &Op) -> Done {
    let of = |cpu: &Cpu, high, low| cpu.get::<B4>(high) << 32 | cpu.get::<B4>(low);
    let (expected, new) = (of(cpu, 2, 0), of(cpu, 1, 3));
    let address = cpu.address(op);
    let change = |old| if old == expected { new } else { old };
    let old = cpu.modify::<B8>(address, op.segment, change)?;
    cpu.flags = with_zero(cpu.flags, old == expected);
    if old != expected {
        cpu.set::<B4>(0, old & B4::MASK);
        cpu.set::<B4>(2, old >> 32);
    }
    Ok(())
}

fn compare_exchange_16(cpu: &mut Cpu, op: &Op) -> Done {
    let of = |cpu: &Cpu, high: usize, low: usize| {
        u128::from(cpu.gpr[high]) << 64 | u128::from(cpu.gpr[low])
    };
    let (expected, new) = (of(cpu, reg::RDX, reg::RAX), of(cpu, reg::RCX, reg::RBX));
    let address = cpu.address(op);
    if !address.is_multiple_of(16) {
        return Err(cpu.protect());
    }
    let old = cpu.compare_exchange_wide(address, op.segment, expected, new)?;
    cpu.flags = with_zero(cpu.flags, old == expected);
    if old != expected {
        let (high, low) = crate::guest_memory::halves(old);
        (cpu.gpr[reg::RAX], cpu.gpr[reg::RDX]) = (low, high);
    }
    Ok(())
}
