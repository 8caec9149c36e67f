//! Small things between the accumulator, its upper half and the flags: `cbw` to `cqo`, `xlat`, `lahf`, `sahf`, `cmc` to `std`.

use iced_x86::{Instruction, Mnemonic, Register};

use super::{Found, Place, goes_on};
use crate::cpu::{Cpu, reg, slot};
use crate::flags::{self, Flags};
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler: Handler = match i.mnemonic() {
        Mnemonic::Cbw => widen::<B1, B2>,
        Mnemonic::Cwde => widen::<B2, B4>,
        Mnemonic::Cdqe => widen::<B4, B8>,
        Mnemonic::Cwd => spread::<B2>,
        Mnemonic::Cdq => spread::<B4>,
        Mnemonic::Cqo => spread::<B8>,
        Mnemonic::Xlatb => {
            // Its index is AL alone, which no addressing form says; its width is the base's.
            op.base = 3;
            op.index = slot::ZERO;
            op.cut = match i.memory_base() {
                Register::BX => 48,
                Register::EBX => 32,
                _ => 0,
            };
            translate
        }
        Mnemonic::Lahf => flags_to_ah,
        Mnemonic::Sahf => ah_to_flags,
        Mnemonic::Cmc => complement_carry,
        Mnemonic::Clc => set_carry::<false>,
        Mnemonic::Stc => set_carry::<true>,
        Mnemonic::Cld => set_direction::<false>,
        Mnemonic::Std => set_direction::<true>,
        _ => return None,
    };
    goes_on(handler)
}

fn widen<From: Width, To: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.set::<To>(0, From::sign_extend(cpu.get::<From>(0)) & To::MASK);
    Ok(())
}

/// The accumulator's sign, all over rDX.
fn spread<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.set::<W>(2, if W::sign(cpu.get::<W>(0)) { W::MASK } else { 0 });
    Ok(())
}

fn translate(cpu: &mut Cpu, op: &Op) -> Done {
    let offset = cpu.gpr[reg::RBX].wrapping_add(cpu.get::<B1>(0));
    let address = cpu.based(op, offset << (op.cut & 63) >> (op.cut & 63));
    let value = cpu.load_at::<B1>(address, op.segment)?;
    cpu.set::<B1>(0, value);
    Ok(())
}

/// AH, by its slot.
const AH: u8 = 32;

fn flags_to_ah(cpu: &mut Cpu, _op: &Op) -> Done {
    // Bit 1 is always set; bits 3 and 5 never.
    cpu.set::<B1>(AH, cpu.flags.bits() & 0xff | 2);
    Ok(())
}

fn ah_to_flags(cpu: &mut Cpu, _op: &Op) -> Done {
    let overflow = cpu.flags.bits() & flags::OF;
    cpu.flags = Flags::from_bits(cpu.get::<B1>(AH) | overflow);
    Ok(())
}

fn complement_carry(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags = cpu.flags.with_carry(!cpu.flags.carry());
    Ok(())
}

fn set_carry<const SET: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.flags = cpu.flags.with_carry(SET);
    Ok(())
}

fn set_direction<const DOWN: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    let rest = cpu.system_flags & !flags::DF;
    cpu.system_flags = if DOWN { rest | flags::DF } else { rest };
    Ok(())
}
