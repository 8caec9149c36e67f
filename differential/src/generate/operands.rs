//! Filling in an instruction's operands.

use iced_x86::{Encoder, Instruction, OpCodeOperandKind, OpKind, Register};

use super::catalogue::{Form, Prefix, is_either, is_memory};
use super::known::{Known, WIDE};
use crate::layout::{GS_BASE, HIGH};
use crate::random::Random;
use crate::values;

/// Makes an instruction of `form`; nothing if the encoder refuses the operands that came up, as it does for
/// AH to BH beside registers that need REX.
pub(crate) fn fill(form: &Form, random: &mut Random, known: &Known) -> Option<Instruction> {
    let mut instruction = Instruction::default();
    instruction.set_code(form.code);
    let mut is_first_immediate = true;
    for (operand, kind) in (0_u32..).zip(form.code.op_code().op_kinds().iter().copied()) {
        if is_memory(kind) || is_either(kind) && form.memory {
            instruction.set_op_kind(operand, OpKind::Memory);
            if kind == OpCodeOperandKind::mem_offs {
                offset(&mut instruction, random);
            } else {
                memory(&mut instruction, random, known);
            }
        } else if let Some(register) = register(kind, random, known) {
            instruction.set_op_kind(operand, OpKind::Register);
            instruction.set_op_register(operand, register);
        } else if !implied(&mut instruction, operand, kind, random) {
            immediate(&mut instruction, operand, kind, random, is_first_immediate)?;
            is_first_immediate = false;
        }
    }
    match form.prefix {
        Prefix::None => {}
        Prefix::Lock => instruction.set_has_lock_prefix(true),
        Prefix::Rep => instruction.set_has_rep_prefix(true),
        Prefix::Repne => instruction.set_has_repne_prefix(true),
    }
    encodes(&instruction).then_some(instruction)
}

/// Whether the encoder takes it, wherever its branch leads.
pub(crate) fn encodes(instruction: &Instruction) -> bool {
    let mut copy = *instruction;
    if crate::sequence::is_branch(&copy) {
        copy.set_near_branch64(0x3000_0000);
    }
    Encoder::new(64).encode(&copy, 0x3000_0000).is_ok()
}

/// A register of `file` with `count` members from `first` on.
fn any_of(random: &mut Random, first: Register, count: u32) -> Register {
    first + u32::try_from(random.below(u64::from(count))).unwrap_or(0)
}

/// A general register's number; those that hold addresses are spared mostly, the stack pointer nearly always.
fn general(random: &mut Random, known: &Known) -> u32 {
    let mut number = random.index(16);
    for _ in 0..3 {
        let spare = if number == 4 { 95 } else { 60 };
        if !(known.is_useful(number) && random.percent(spare)) {
            break;
        }
        number = random.index(16);
    }
    u32::try_from(number).unwrap_or(0)
}

/// The register operand, where it is one.
fn register(kind: OpCodeOperandKind, random: &mut Random, known: &Known) -> Option<Register> {
    use OpCodeOperandKind as K;
    Some(match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => {
            if random.percent(25) {
                any_of(random, Register::AH, 4)
            } else {
                let number = general(random, known);
                // The enumeration has AL..BL, AH..BH, SPL..R15L.
                Register::AL + if number < 4 { number } else { number + 4 }
            }
        }
        K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
            Register::AX + general(random, known)
        }
        K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
            Register::EAX + general(random, known)
        }
        K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
            Register::RAX + general(random, known)
        }
        K::mm_or_mem | K::mm_reg | K::mm_rm => any_of(random, Register::MM0, 8),
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => any_of(random, Register::XMM0, 16),
        K::seg_reg => random.pick(&[Register::DS, Register::ES, Register::SS]),
        K::cr_reg => random.pick(&[
            Register::CR0,
            Register::CR2,
            Register::CR3,
            Register::CR4,
            Register::CR8,
        ]),
        K::dr_reg => random.pick(&[Register::DR0, Register::DR3, Register::DR6, Register::DR7]),
        K::es => Register::ES,
        K::cs => Register::CS,
        K::ss => Register::SS,
        K::ds => Register::DS,
        K::fs => Register::FS,
        K::gs => Register::GS,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::st0 => Register::ST0,
        K::sti_opcode => any_of(random, Register::ST0, 8),
        _ => return None,
    })
}

/// String operands and the like, where the instruction itself says which registers make the address.
fn implied(
    instruction: &mut Instruction,
    operand: u32,
    kind: OpCodeOperandKind,
    random: &mut Random,
) -> bool {
    use OpCodeOperandKind as K;
    // One address size for all operands: the second follows the first.
    let narrow = if operand == 0 {
        random.percent(15)
    } else {
        matches!(instruction.op_kind(0), OpKind::MemoryESEDI | OpKind::MemorySegESI)
            || !matches!(instruction.op_kind(0), OpKind::MemoryESRDI | OpKind::MemorySegRSI)
                && random.percent(15)
    };
    let memory = match kind {
        K::seg_rSI => [OpKind::MemorySegRSI, OpKind::MemorySegESI],
        K::es_rDI => [OpKind::MemoryESRDI, OpKind::MemoryESEDI],
        K::seg_rDI => [OpKind::MemorySegRDI, OpKind::MemorySegEDI],
        K::seg_rBX_al => {
            instruction.set_op_kind(operand, OpKind::Memory);
            instruction.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
            instruction.set_memory_index(Register::AL);
            return true;
        }
        K::br64_1 | K::br64_4 => {
            instruction.set_op_kind(operand, OpKind::NearBranch64);
            return true;
        }
        _ => return false,
    };
    instruction.set_op_kind(operand, memory[usize::from(narrow)]);
    true
}

/// Immediates.
fn immediate(
    instruction: &mut Instruction,
    operand: u32,
    kind: OpCodeOperandKind,
    random: &mut Random,
    is_first: bool,
) -> Option<()> {
    use OpCodeOperandKind as K;
    let value = values::integer(random);
    let bytes = value.to_le_bytes();
    let small = i8::from_le_bytes([bytes[0]]);
    let signed = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let op_kind = match kind {
        K::imm8 if is_first => {
            instruction.set_immediate8(bytes[0]);
            OpKind::Immediate8
        }
        K::imm8 => {
            instruction.set_immediate8_2nd(random.pick(&[0, 0, 1, 1, 2, 3, 31, 33]));
            OpKind::Immediate8_2nd
        }
        K::imm8_const_1 => {
            instruction.set_immediate8(1);
            OpKind::Immediate8
        }
        K::imm8sex16 => {
            instruction.set_immediate8to16(i16::from(small));
            OpKind::Immediate8to16
        }
        K::imm8sex32 => {
            instruction.set_immediate8to32(i32::from(small));
            OpKind::Immediate8to32
        }
        K::imm8sex64 => {
            instruction.set_immediate8to64(i64::from(small));
            OpKind::Immediate8to64
        }
        K::imm16 => {
            instruction.set_immediate16(u16::from_le_bytes([bytes[0], bytes[1]]));
            OpKind::Immediate16
        }
        K::imm32 => {
            instruction.set_immediate32(signed.cast_unsigned());
            OpKind::Immediate32
        }
        K::imm32sex64 => {
            instruction.set_immediate32to64(i64::from(signed));
            OpKind::Immediate32to64
        }
        K::imm64 => {
            instruction.set_immediate64(value);
            OpKind::Immediate64
        }
        _ => return None,
    };
    instruction.set_op_kind(operand, op_kind);
    Some(())
}

/// An address in the instruction itself.
fn offset(instruction: &mut Instruction, random: &mut Random) {
    let bytes = instruction.memory_size().size() as u64;
    let narrow = random.percent(25);
    let address = values::address(random, bytes, narrow, false);
    instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
    instruction.set_memory_displacement64(address);
}

/// A memory operand that leads to data, mostly.
fn memory(instruction: &mut Instruction, random: &mut Random, known: &Known) {
    let bytes = (instruction.memory_size().size() as u64).max(1);
    let aligned = if bytes >= 16 { random.percent(92) } else { random.percent(40) };
    let choice = random.below(100);
    if choice < 2 {
        return wild(instruction, random);
    }
    for _ in 0..10 {
        let narrow = random.percent(12);
        let target = values::address(random, bytes, narrow, aligned);
        if random.percent(75) && with_registers(instruction, random, known, target, narrow) {
            return maybe_segment(instruction, random);
        }
        if target >= HIGH && random.percent(40) {
            // Through GS, without registers.
            instruction.set_segment_prefix(Register::GS);
            return absolute(instruction, target.wrapping_sub(GS_BASE), false);
        }
        if target < HIGH {
            if random.percent(60) {
                instruction.set_memory_base(if narrow { Register::EIP } else { Register::RIP });
                instruction.set_memory_index(Register::None);
                instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
                instruction.set_memory_displacement64(target);
            } else {
                absolute(instruction, target, narrow);
            }
            return maybe_segment(instruction, random);
        }
    }
    absolute(instruction, values::address(random, bytes, true, aligned), false);
}

/// No registers: the address as a displacement of 32 bits.
pub(crate) fn absolute(instruction: &mut Instruction, address: u64, narrow: bool) {
    instruction.set_memory_base(Register::None);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
    instruction.set_memory_displacement64(address);
}

/// Base, index or both, and the displacement that is missing.
fn with_registers(
    instruction: &mut Instruction,
    random: &mut Random,
    known: &Known,
    target: u64,
    narrow: bool,
) -> bool {
    let candidate = |random: &mut Random| {
        let number = random.index(16);
        known.value(number).map(|value| (number, value))
    };
    let base = if random.percent(92) { candidate(random) } else { None };
    let index = if random.percent(35) {
        candidate(random).filter(|(number, _)| *number != 4)
    } else {
        None
    };
    if base.is_none() && index.is_none() {
        return false;
    }
    let scale = 1_u32 << random.below(4);
    let sum = base
        .map_or(0, |(_, value)| value)
        .wrapping_add(index.map_or(0, |(_, value)| value.wrapping_mul(u64::from(scale))));
    let through_gs = !narrow && target >= HIGH && random.percent(10);
    let missing = target.wrapping_sub(sum).wrapping_sub(if through_gs { GS_BASE } else { 0 });
    let displacement = if narrow {
        let [a, b, c, d, ..] = missing.to_le_bytes();
        i64::from(i32::from_le_bytes([a, b, c, d]))
    } else {
        let signed = missing.cast_signed();
        if i32::try_from(signed).is_err() {
            return false;
        }
        signed
    };
    let file = if narrow { Register::EAX } else { Register::RAX };
    let name = |number: usize| file + u32::try_from(number).unwrap_or(0);
    instruction.set_memory_base(base.map_or(Register::None, |(number, _)| name(number)));
    instruction.set_memory_index(index.map_or(Register::None, |(number, _)| name(number)));
    instruction.set_memory_index_scale(if index.is_some() { scale } else { 1 });
    let wants_one = matches!(base, Some((5 | 13, _)));
    let size = match displacement {
        0 if base.is_some() && !wants_one => 0,
        -128..=127 if base.is_some() => 1,
        _ if narrow => 4,
        _ => 8,
    };
    instruction.set_memory_displ_size(size);
    let written = if narrow {
        displacement.cast_unsigned() & 0xffff_ffff
    } else {
        displacement.cast_unsigned()
    };
    instruction.set_memory_displacement64(written);
    if through_gs {
        instruction.set_segment_prefix(Register::GS);
    }
    true
}

/// Any registers, any displacement: nobody knows where that leads.
fn wild(instruction: &mut Instruction, random: &mut Random) {
    instruction.set_memory_base(WIDE[random.index(16)]);
    let index = WIDE[random.index(16)];
    if index != Register::RSP && random.percent(50) {
        instruction.set_memory_index(index);
        instruction.set_memory_index_scale(1 << random.below(4));
    }
    let bytes = values::integer(random).to_le_bytes();
    let displacement = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    instruction.set_memory_displ_size(8);
    instruction.set_memory_displacement64(i64::from(displacement).cast_unsigned());
}

/// A segment prefix that 64-bit mode ignores.
fn maybe_segment(instruction: &mut Instruction, random: &mut Random) {
    if instruction.segment_prefix() == Register::None && random.percent(3) {
        instruction.set_segment_prefix(random.pick(&[
            Register::DS,
            Register::ES,
            Register::CS,
            Register::SS,
        ]));
    }
}
