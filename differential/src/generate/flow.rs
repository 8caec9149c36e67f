//! Branches, calls and returns: they need somewhere to go.

use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::catalogue::Form;
use super::known::WIDE;
use super::{Draft, operands};
use crate::layout::{USER_CODE, USER_STACK};
use crate::random::Random;
use crate::values;

/// Whether [`Draft::branch`] makes this one.
pub(super) fn is_about(code: Code) -> bool {
    use Mnemonic as M;
    code.is_jcc_short_or_near()
        || matches!(
            code.mnemonic(),
            M::Call | M::Jmp | M::Ret | M::Loop | M::Loope | M::Loopne | M::Jecxz | M::Jrcxz
        )
}

/// `lea register, [rip + …]`: the address of a place in the sequence.
fn address_of(register: Register) -> Instruction {
    let place = MemoryOperand::with_base_displ_size(Register::RIP, 0, 8);
    Instruction::with2(Code::Lea_r64_m, register, place).unwrap_or_default()
}

impl Draft<'_> {
    /// Adds an instruction that leads to `target`.
    fn leading(&mut self, instruction: Instruction, form: Option<usize>, target: usize) {
        self.push(instruction, form);
        if let Some(item) = self.items.last_mut() {
            item.target = Some(target);
        }
    }

    /// The next item's index, and `ahead` more.
    fn ahead(&self, ahead: usize) -> usize {
        self.items.len() + ahead
    }

    /// A register that nothing needs.
    fn scratch(&self, random: &mut Random) -> Register {
        loop {
            let number = random.index(16);
            if number != 4 {
                return WIDE[number];
            }
        }
    }

    /// Something harmless that leaves a mark, so that it shows whether it was executed.
    fn mark(&mut self, random: &mut Random) {
        let value = i32::from(random.byte());
        let register = self.scratch(random);
        if register != Register::RCX {
            self.helper(Instruction::with2(Code::Add_rm64_imm8, register, value >> 1));
        }
    }

    /// Adds the branch `form` and whatever it takes that it leads somewhere.
    pub(super) fn branch(&mut self, form: &Form, chosen: usize, random: &mut Random) {
        use Mnemonic as M;
        let mut instruction = Instruction::default();
        instruction.set_code(form.code);
        if random.percent(6) {
            self.flags_or_return_from_interrupt(random);
        }
        match (form.code.mnemonic(), form.code) {
            (M::Ret, _) => self.returning(form, chosen, random),
            (_, Code::Jmp_rm64 | Code::Call_rm64) => self.indirect(form, chosen, random),
            (M::Call, _) if random.percent(60) => {
                // call to; (back:) jmp over; to: …; ret; over:
                instruction.set_op0_kind(OpKind::NearBranch64);
                self.leading(instruction, Some(chosen), self.ahead(2));
                let mut over = Instruction::default();
                over.set_code(Code::Jmp_rel8_64);
                over.set_op0_kind(OpKind::NearBranch64);
                let target = self.ahead(3);
                self.leading(over, None, target);
                let register = self.scratch(random);
                self.helper(Instruction::with2(Code::Add_rm64_imm8, register, 3));
                self.helper(Ok(Instruction::with(Code::Retnq)));
            }
            (M::Loop | M::Loope | M::Loopne, _) if random.percent(50) => {
                let narrow = random.percent(30);
                self.load(
                    1,
                    (random.below(20) + 1) | if narrow { values::integer(random) << 32 } else { 0 },
                );
                let start = self.ahead(0);
                self.mark(random);
                if random.percent(50) {
                    self.mark(random);
                }
                // All flags must be defined where a loop closes.
                self.helper(Instruction::with2(Code::Cmp_rm64_imm8, self.scratch(random), 1));
                instruction.set_code(looping(form.code, narrow));
                instruction.set_op0_kind(OpKind::NearBranch64);
                self.leading(instruction, Some(chosen), start);
            }
            _ => {
                instruction.set_op0_kind(OpKind::NearBranch64);
                if !operands::encodes(&instruction) {
                    return;
                }
                self.define(&instruction);
                let ahead = 1 + random.index(4);
                self.leading(instruction, Some(chosen), self.ahead(ahead));
                self.mark(random);
            }
        }
    }

    /// A return to a place of our own, or, rarely, to whatever lies on the stack.
    fn returning(&mut self, form: &Form, chosen: usize, random: &mut Random) {
        let Some(instruction) = operands::fill(form, random, &self.known) else { return };
        if !random.percent(4) {
            let register = self.scratch(random);
            let target = self.ahead(3);
            self.leading(address_of(register), None, target);
            self.helper(Instruction::with1(Code::Push_r64, register));
        }
        let mut instruction = instruction;
        if instruction.op_count() == 1 && random.percent(95) {
            instruction.set_immediate16(u16::from(random.byte()));
        }
        self.push(instruction, Some(chosen));
        self.mark(random);
    }

    /// A jump or call through a register or through memory.
    fn indirect(&mut self, form: &Form, chosen: usize, random: &mut Random) {
        let register = self.scratch(random);
        let mut instruction = Instruction::default();
        instruction.set_code(form.code);
        if form.memory {
            let address = values::address(random, 8, true, false);
            let place = MemoryOperand::with_displ(address, 8);
            let target = self.ahead(3 + random.index(2));
            self.leading(address_of(register), None, target);
            self.helper(Instruction::with2(Code::Mov_rm64_r64, place, register));
            instruction.set_op0_kind(OpKind::Memory);
            operands::absolute(&mut instruction, address, false);
        } else {
            let target = self.ahead(2 + random.index(2));
            self.leading(address_of(register), None, target);
            instruction.set_op0_kind(OpKind::Register);
            instruction.set_op0_register(register);
        }
        self.push(instruction, Some(chosen));
        self.mark(random);
    }

    /// `popfq` with flags that do no harm, or a whole `iretq` to the same privilege.
    fn flags_or_return_from_interrupt(&mut self, random: &mut Random) {
        let flags = 0x202 | random.bits() & 0x0020_0cd5 | if random.percent(4) { 0x100 } else { 0 };
        let flags = i32::try_from(flags).unwrap_or(0x202);
        if random.percent(50) {
            self.helper(Instruction::with1(Code::Pushq_imm32, flags));
            let pop = if random.percent(20) { Code::Popfw } else { Code::Popfq };
            if pop == Code::Popfw {
                self.helper(Instruction::with2(Code::Add_rm64_imm8, Register::RSP, 6));
                // The two bytes that are popped are the upper ones of what was pushed: zero.
            }
            return self.helper(Ok(Instruction::with(pop)));
        }
        let register = self.scratch(random);
        self.helper(Instruction::with2(Code::Mov_r64_rm64, register, Register::RSP));
        self.helper(Instruction::with1(Code::Pushq_imm32, i32::from(USER_STACK)));
        self.helper(Instruction::with1(Code::Push_r64, register));
        self.helper(Instruction::with1(Code::Pushq_imm32, flags));
        self.helper(Instruction::with1(Code::Pushq_imm32, i32::from(USER_CODE)));
        let register = self.scratch(random);
        let target = self.ahead(3);
        self.leading(address_of(register), None, target);
        self.helper(Instruction::with1(Code::Push_r64, register));
        self.push(Instruction::with(Code::Iretq), None);
    }
}

/// The same loop with RCX or ECX as its counter.
fn looping(code: Code, narrow: bool) -> Code {
    match (code.mnemonic(), narrow) {
        (Mnemonic::Loop, false) => Code::Loop_rel8_64_RCX,
        (Mnemonic::Loop, true) => Code::Loop_rel8_64_ECX,
        (Mnemonic::Loope, false) => Code::Loope_rel8_64_RCX,
        (Mnemonic::Loope, true) => Code::Loope_rel8_64_ECX,
        (_, false) => Code::Loopne_rel8_64_RCX,
        (_, true) => Code::Loopne_rel8_64_ECX,
    }
}
