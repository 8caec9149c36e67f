//! Everything that computes, compares or moves numbers: done by the host's unit (`host_x87.rs`).

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::cpu::{Cpu, slot};
use crate::flags::{self, Flags};
use crate::host_x87::{self, Around};
use crate::lower::{Found, goes_on};
use crate::op::{Done, Handler, Op};
use crate::x87_state::{X87, status};

/// What keeps a store from being done, if unmasked: invalid operation, overflow, underflow.
const NOT_STORED: u16 = status::IE | status::OE | status::UE;

pub(super) fn lower(i: &Instruction, op: &mut Op) -> Option<Found> {
    let code = i.op_code();
    let found = u16::try_from(code.op_code()).ok()?;
    match code.op_code_len() {
        // D8 to DF with a memory operand.
        1 if (0xd8..=0xdf).contains(&found) && i.op0_kind() == OpKind::Memory => {
            let form = u16::try_from(code.group_index()).ok()?;
            op.extra = host_x87::find(found << 8 | form << 3 | 2)?;
            op.imm = u64::from((found & 7) << 8 | form << 3 | modrm(i));
            goes_on(memory_form(i, found << 4 | form)?)
        }
        2 if (0xd8..=0xdf).contains(&(found >> 8)) => {
            let index = (0..i.op_count())
                .filter(|which| i.op_kind(*which) == OpKind::Register)
                .map(|which| i.op_register(which))
                .filter(|register| register.is_st())
                .map(Register::number)
                .max()
                .unwrap_or(0);
            let index = u16::try_from(index).ok()?;
            op.imm = u64::from((found & 0x7ff) + index);
            // ST(2) and above change places with ST(1) meanwhile, which a push could tell from
            // the register that it is about to fill.
            let is_last = found == 0xd9c0 && index == 7;
            op.extra = host_x87::find(found + if is_last { 7 } else { index.min(1) })?;
            op.dst = if is_last { 0 } else { u8::try_from(index).ok()? };
            goes_on(if touches_flags(i) { with_flags } else { on_registers })
        }
        _ => None,
    }
}

/// The handler for a memory operand, by the first byte and the number in ModRM.
fn memory_form(i: &Instruction, form: u16) -> Option<Handler> {
    let is_store = matches!(
        form,
        0xd92 | 0xd93 | 0xdb1..=0xdb3 | 0xdb7 | 0xdd1..=0xdd3 | 0xdf1..=0xdf3 | 0xdf6 | 0xdf7
    );
    Some(match (is_store, i.memory_size().size()) {
        (false, 2) => from_memory::<2>,
        (false, 4) => from_memory::<4>,
        (false, 8) => from_memory::<8>,
        (false, 10) => from_memory::<10>,
        (true, 2) => to_memory::<2>,
        (true, 4) => to_memory::<4>,
        (true, 8) => to_memory::<8>,
        (true, 10) => to_memory::<10>,
        _ => return None,
    })
}

/// Whether RFLAGS is read or written.
fn touches_flags(i: &Instruction) -> bool {
    matches!(
        i.mnemonic(),
        Mnemonic::Fcomi
            | Mnemonic::Fcomip
            | Mnemonic::Fucomi
            | Mnemonic::Fucomip
            | Mnemonic::Fcmovb
            | Mnemonic::Fcmove
            | Mnemonic::Fcmovbe
            | Mnemonic::Fcmovu
            | Mnemonic::Fcmovnb
            | Mnemonic::Fcmovne
            | Mnemonic::Fcmovnbe
            | Mnemonic::Fcmovnu
    )
}

/// Mod and r/m of the ModRM byte, which belong to the opcode that FNSAVE stores.
fn modrm(i: &Instruction) -> u16 {
    let base = i.memory_base();
    let mode = match (i.memory_displ_size(), base) {
        (0, _) | (_, Register::None | Register::RIP | Register::EIP) => 0,
        (1, _) => 0x40,
        _ => 0x80,
    };
    let has_index = i.memory_index() != Register::None;
    let place = match (base, base.size()) {
        (Register::RIP | Register::EIP, _) => 5,
        (Register::None, _) if i.memory_displ_size() == 2 => 6,
        // Without a base: with an SIB byte in 64-bit code, and wherever there is an index.
        (Register::None, _) if has_index || i.code_size() == iced_x86::CodeSize::Code64 => 4,
        (Register::None, _) => 5,
        (_, 2) => match (base, i.memory_index()) {
            (Register::BX, Register::SI) => 0,
            (Register::BX, Register::DI) => 1,
            (Register::BP, Register::SI) => 2,
            (Register::BP, Register::DI) => 3,
            (Register::SI, _) => 4,
            (Register::DI, _) => 5,
            (Register::BP, _) => 6,
            _ => 7,
        },
        _ if has_index => 4,
        _ => base.number() & 7,
    };
    mode | u16::try_from(place).unwrap_or(0)
}

/// Notes the instruction, as the next environment that is stored tells it.
#[inline(always)]
fn note(cpu: &mut Cpu, op: &Op) {
    let instruction = cpu.gpr[usize::from(slot::RIP)].wrapping_add(u64::from(op.offset));
    cpu.x87.instruction = instruction;
    cpu.x87.opcode = u16::from_le_bytes([op.imm.to_le_bytes()[0], op.imm.to_le_bytes()[1]]);
}

/// Runs it with ST(i) in ST(1)'s place.
fn run(unit: &mut X87, op: &Op, around: &mut Around) {
    if op.dst < 2 {
        return host_x87::run(op.extra, unit, around);
    }
    let (one, other) = ((unit.top() + 1) & 7, (unit.top() + usize::from(op.dst)) & 7);
    swap(unit, one, other);
    host_x87::run(op.extra, unit, around);
    swap(unit, one, other);
}

fn swap(unit: &mut X87, one: usize, other: usize) {
    unit.registers.swap(one, other);
    let differ = (unit.occupied >> one ^ unit.occupied >> other) & 1;
    unit.occupied ^= differ << one | differ << other;
}

fn on_registers(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    run(&mut cpu.x87, op, &mut Around::default());
    note(cpu, op);
    Ok(())
}

fn with_flags(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let before = cpu.flags.bits();
    let mut around = Around {
        flags: before.to_le_bytes()[0],
        overflow: u8::from(before & flags::OF != 0),
        ..Around::default()
    };
    run(&mut cpu.x87, op, &mut around);
    let overflow = if around.overflow == 0 { 0 } else { flags::OF };
    cpu.flags = Flags::from_bits(u64::from(around.flags) | overflow);
    note(cpu, op);
    Ok(())
}

fn from_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let mut around = Around::default();
    let address = cpu.address(op);
    cpu.check_operand(address, op.segment, BYTES)?;
    cpu.load_image(address, op.segment, &mut around.operand[..BYTES])?;
    host_x87::run(op.extra, &mut cpu.x87, &mut around);
    note(cpu, op);
    cpu.x87.data = cpu.offset(op);
    Ok(())
}

fn to_memory<const BYTES: usize>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.check_x87_waiting()?;
    let address = cpu.address(op);
    cpu.check_operand(address, op.segment, BYTES)?;
    cpu.open_image(address, op.segment, BYTES)?;
    let mut around = Around::default();
    let mut unit = cpu.x87.clone();
    host_x87::run(op.extra, &mut unit, &mut around);
    if unit.status() & !unit.control & NOT_STORED == 0 {
        cpu.store_image(address, op.segment, &around.operand[..BYTES])?;
    }
    cpu.x87 = unit;
    note(cpu, op);
    cpu.x87.data = cpu.offset(op);
    Ok(())
}
