//! What must come before an instruction, or after, so that it does something interesting that both sides agree on.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::known::{WIDE, number_of};
use super::{Draft, operands};
use crate::layout::{GS_BASE, HIGH, LOW, LOW_PAGES, PAGE};
use crate::random::Random;
use crate::state::FX_MXCSR;
use crate::values;

/// A memory operand at a fixed address below 2 GiB.
fn at(address: u64) -> MemoryOperand {
    MemoryOperand::with_displ(address, 8)
}

impl Draft<'_> {
    /// `mov register, value`, which is then known.
    pub(super) fn load(&mut self, number: usize, value: u64) {
        self.helper(Instruction::with2(Code::Mov_r64_imm64, WIDE[number], value));
        self.known.set(number, value);
    }

    /// Sees to it that `instruction` finds what it needs; `false` if it should rather be made anew.
    pub(super) fn prepare(&mut self, instruction: &mut Instruction, random: &mut Random) -> bool {
        use Mnemonic as M;
        match instruction.mnemonic() {
            // 16-bit results of counts above 16 are undefined (Intel SDM vol. 2, SHLD).
            M::Shld | M::Shrd
                if instruction.memory_size().size() == 2 || is_narrow(instruction) =>
            {
                let count = u8::try_from(random.below(17)).unwrap_or(0) | random.byte() & 0xe0;
                if instruction.op2_kind() == OpKind::Immediate8 {
                    instruction.set_immediate8(count);
                } else {
                    if uses(instruction, 1) {
                        return false;
                    }
                    self.helper(Instruction::with2(
                        Code::Mov_r8_imm8,
                        Register::CL,
                        u32::from(count),
                    ));
                }
            }
            M::Div | M::Idiv if random.percent(65) => {
                return self.prepare_division(instruction, random);
            }
            M::Bt | M::Bts | M::Btr | M::Btc => return self.prepare_bit(instruction, random),
            M::Cmpxchg if random.percent(50) => self.prepare_exchange(instruction),
            M::Cmpxchg8b | M::Cmpxchg16b if random.percent(60) => {
                self.prepare_pair(instruction, random)
            }
            M::Mov
                if instruction.op0_kind() == OpKind::Register
                    && instruction.op0_register().is_segment_register() =>
            {
                return self.prepare_selector(instruction, random);
            }
            M::Ldmxcsr => {
                let value = mxcsr(random);
                self.stage(instruction, Code::Mov_rm32_imm32, value, random);
            }
            M::Fldcw if random.percent(80) => {
                let value = 0x7f | u32::from(random.byte() & 0x0f) << 8;
                let value =
                    if random.percent(20) { value & !(1 << random.below(6)) } else { value };
                self.stage(instruction, Code::Mov_rm16_imm16, value, random);
            }
            M::Fldenv | M::Frstor => self.prepare_environment(instruction, random),
            M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64 => self.place(instruction, random, 16),
            M::Fxrstor | M::Fxrstor64 => {
                self.place(instruction, random, 512);
                let field = at(instruction.memory_displacement64() + FX_MXCSR as u64);
                self.helper(Instruction::with2(Code::Mov_rm32_imm32, field, mxcsr(random)));
            }
            M::Xlatb if random.percent(90) => {
                let narrow = instruction.memory_base() == Register::EBX;
                let address = values::address(random, 256, true, false);
                self.load(
                    3,
                    if narrow { address | values::integer(random) << 32 } else { address },
                );
            }
            // Whether bytes that the mask leaves out can fault is up to the processor (Intel SDM vol. 2, MASKMOVDQU).
            M::Maskmovq | M::Maskmovdqu => self.load(7, LOW + random.below(LOW_PAGES * PAGE - 16)),
            M::Leave if random.percent(90) => self.load(5, values::address(random, 8, false, true)),
            M::Enter => {
                instruction.set_immediate16(u16::from(random.byte() & 0x3f));
                if instruction.immediate8_2nd() & 31 != 0 {
                    self.load(5, values::address(random, 256, false, true));
                }
            }
            _ if instruction.is_string_instruction() => self.prepare_string(instruction, random),
            _ => {}
        }
        true
    }

    /// Bytes that neither maker defines, or that the makers define differently, are overwritten.
    pub(super) fn clean_up(&mut self, instruction: &Instruction) {
        let address = instruction.memory_displacement64();
        let mut wipe = |code: Code, offset: u64| {
            self.helper(Instruction::with2(code, at(address + offset), 0x1111));
        };
        match instruction.code() {
            // Instruction and data pointers, and the last opcode (AMD APM vol. 2, "x87 State").
            Code::Fnstenv_m14byte | Code::Fnsave_m94byte => wipe(Code::Mov_rm64_imm32, 6),
            Code::Fnstenv_m28byte | Code::Fnsave_m108byte => {
                wipe(Code::Mov_rm64_imm32, 12);
                wipe(Code::Mov_rm64_imm32, 20);
            }
            // The same, and the mask of valid MXCSR bits.
            Code::Fxsave_m512byte | Code::Fxsave64_m512byte => {
                wipe(Code::Mov_rm16_imm16, 6);
                wipe(Code::Mov_rm64_imm32, 8);
                wipe(Code::Mov_rm64_imm32, 16);
                wipe(Code::Mov_rm32_imm32, 28);
            }
            _ => {}
        }
    }

    /// Puts the instruction's operand at a fixed address with room for the largest image.
    fn place(&mut self, instruction: &mut Instruction, random: &mut Random, aligned: u64) {
        let address = LOW + random.below(0x1e00 / aligned + 1) * aligned;
        instruction.set_segment_prefix(Register::None);
        operands::absolute(instruction, address, false);
    }

    /// Writes `value` where the instruction reads it.
    fn stage(
        &mut self,
        instruction: &mut Instruction,
        code: Code,
        value: u32,
        random: &mut Random,
    ) {
        self.place(instruction, random, 4);
        self.helper(Instruction::with2(code, at(instruction.memory_displacement64()), value));
    }

    /// An environment or a whole state, as the processor itself writes them.
    fn prepare_environment(&mut self, instruction: &mut Instruction, random: &mut Random) {
        self.place(instruction, random, 16);
        let save = match instruction.code() {
            Code::Fldenv_m14byte => Code::Fnstenv_m14byte,
            Code::Fldenv_m28byte => Code::Fnstenv_m28byte,
            Code::Frstor_m94byte => Code::Fnsave_m94byte,
            _ => Code::Fnsave_m108byte,
        };
        if let Ok(made) = Instruction::with1(save, at(instruction.memory_displacement64())) {
            self.define(&made);
            self.push(made, None);
            self.clean_up(&made);
        }
    }

    /// A dividend whose quotient has a chance to fit.
    fn prepare_division(&mut self, instruction: &Instruction, random: &mut Random) -> bool {
        let bytes = match instruction.op0_kind() {
            OpKind::Register => instruction.op0_register().size(),
            _ => instruction.memory_size().size(),
        };
        let signed = instruction.mnemonic() == Mnemonic::Idiv;
        let extend = match (bytes, signed) {
            (1, true) => Code::Cbw,
            (2, true) => Code::Cwd,
            (4, true) => Code::Cdq,
            (8, true) => Code::Cqo,
            _ => Code::INVALID,
        };
        if uses(instruction, 2) {
            return false;
        }
        if extend != Code::INVALID {
            self.helper(Ok(Instruction::with(extend)));
        } else if bytes == 1 {
            self.helper(Instruction::with2(
                Code::Mov_r8_imm8,
                Register::AH,
                u32::try_from(random.below(3)).unwrap_or(0),
            ));
        } else {
            self.load(2, random.pick(&[0, 0, 0, 1, 7]));
        }
        true
    }

    /// Bit offsets in registers reach memory far away: keep them near.
    fn prepare_bit(&mut self, instruction: &Instruction, random: &mut Random) -> bool {
        if instruction.op0_kind() != OpKind::Memory
            || instruction.op1_kind() != OpKind::Register
            || random.percent(5)
        {
            return true;
        }
        let Some(number) = number_of(instruction.op1_register()) else { return true };
        let memory = [instruction.memory_base(), instruction.memory_index()];
        if memory.into_iter().any(|part| number_of(part) == Some(number)) || number == 4 {
            return false;
        }
        self.load(number, random.below(700).wrapping_sub(350));
        true
    }

    /// Lets a compare-and-exchange find what it compares with.
    fn prepare_exchange(&mut self, instruction: &Instruction) {
        let is_memory = instruction.op0_kind() == OpKind::Memory;
        let (load, accumulator) = match instruction.op1_register().size() {
            1 => (Code::Mov_r8_rm8, Register::AL),
            2 => (Code::Mov_r16_rm16, Register::AX),
            4 => (Code::Mov_r32_rm32, Register::EAX),
            _ => (Code::Mov_r64_rm64, Register::RAX),
        };
        if !is_memory {
            return self.helper(Instruction::with2(load, accumulator, instruction.op0_register()));
        }
        let uses_accumulator = [instruction.memory_base(), instruction.memory_index()]
            .into_iter()
            .any(|part| number_of(part) == Some(0));
        if !uses_accumulator {
            let mut made = *instruction;
            made.set_has_lock_prefix(false);
            made.set_code(load);
            made.set_op0_kind(OpKind::Register);
            made.set_op0_register(accumulator);
            made.set_op1_kind(OpKind::Memory);
            self.helper(Ok(made));
        }
    }

    /// The same for two halves.
    fn prepare_pair(&mut self, instruction: &mut Instruction, random: &mut Random) {
        self.place(instruction, random, 16);
        let address = instruction.memory_displacement64();
        if instruction.mnemonic() == Mnemonic::Cmpxchg8b {
            self.helper(Instruction::with2(Code::Mov_r32_rm32, Register::EAX, at(address)));
            self.helper(Instruction::with2(Code::Mov_r32_rm32, Register::EDX, at(address + 4)));
        } else {
            self.helper(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, at(address)));
            self.helper(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, at(address + 8)));
        }
    }

    /// Selectors that both sides have (null, or user data), or none has.
    fn prepare_selector(&mut self, instruction: &mut Instruction, random: &mut Random) -> bool {
        let Some(number) = number_of(instruction.op1_register()) else {
            // From memory: anything.
            return instruction.op0_register() != Register::SS || random.percent(50);
        };
        if number == 4 {
            return false;
        }
        let selector =
            random.pick(&[0, 1, 2, 3, 0x28, 0x2b, 0x2b, 0x2b, 0x33, 0x83, 0x1007, 0xfff8]);
        self.load(number, values::integer(random) & !0xffff | selector);
        true
    }

    /// Addresses and a count for a string instruction.
    fn prepare_string(&mut self, instruction: &mut Instruction, random: &mut Random) {
        let kinds = [instruction.op0_kind(), instruction.op1_kind()];
        let narrow =
            kinds.iter().any(|kind| matches!(kind, OpKind::MemoryESEDI | OpKind::MemorySegESI));
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let count = match random.below(20) {
            0 => 0,
            1 => values::integer(random),
            2 | 3 => random.below(1500),
            _ => random.below(40),
        };
        let above = |random: &mut Random| if narrow { values::integer(random) << 32 } else { 0 };
        if repeated && !random.percent(2) {
            let bits = above(random);
            self.load(1, count | bits);
        }
        let span = count.min(600) * instruction.memory_size().size() as u64;
        for (number, mine) in [
            (6, [OpKind::MemorySegRSI, OpKind::MemorySegESI]),
            (7, [OpKind::MemoryESRDI, OpKind::MemoryESEDI]),
        ] {
            if !kinds.iter().any(|kind| mine.contains(kind)) || random.percent(3) {
                continue;
            }
            let room = if random.percent(80) { span + 8 } else { 8 };
            let mut address = values::address(random, room, narrow, false);
            if number == 6 && random.percent(5) && !narrow {
                instruction.set_segment_prefix(Register::GS);
                address = HIGH.wrapping_sub(GS_BASE).wrapping_add(random.below(0x1000));
            }
            let bits = above(random);
            self.load(number, address | bits);
        }
        // Overlapping copies.
        if let (Some(source), true) = (self.known.value(6), random.percent(10)) {
            self.load(7, source.wrapping_add(random.below(40)).wrapping_sub(20));
        }
    }
}

/// A value for MXCSR: mostly masked, with a reserved bit now and then (bit 17 is not: AMD has it).
fn mxcsr(random: &mut Random) -> u32 {
    let value = 0x1f80 | u32::from(random.byte() & 0x3f) | u32::from(random.byte() & 0xe0) << 8;
    let value = if random.percent(15) { value & !(0x80 << random.below(6)) } else { value };
    if random.percent(5) { value | 0x40_0000 } else { value }
}

/// Whether the operands have 16 bits.
fn is_narrow(instruction: &Instruction) -> bool {
    instruction.op1_kind() == OpKind::Register && instruction.op1_register().is_gpr16()
}

/// Whether an operand or an address of `instruction` uses general register `number`.
fn uses(instruction: &Instruction, number: usize) -> bool {
    let operands = (0..instruction.op_count())
        .filter(|at| instruction.op_kind(*at) == OpKind::Register)
        .map(|at| instruction.op_register(at));
    operands
        .take(2)
        .chain([instruction.memory_base(), instruction.memory_index()])
        .any(|register| register != Register::CL && number_of(register) == Some(number))
}
