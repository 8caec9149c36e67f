//! What is known about the registers at one point of a sequence that is being made.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, Register};

/// The general registers with 64 bits, in the order of their encoding.
pub(crate) const WIDE: [Register; 16] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RSP,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// The values of those registers that no instruction has written yet, or a plain move has.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    values: [Option<u64>; 16],
}

impl Known {
    /// At the start everything is known.
    pub(crate) fn new(general: &[u64; 16]) -> Self {
        Self { values: general.map(Some) }
    }

    /// A register's value.
    pub(crate) fn value(&self, number: usize) -> Option<u64> {
        self.values[number]
    }

    /// A plain move has written it.
    pub(crate) fn set(&mut self, number: usize, value: u64) {
        self.values[number] = Some(value);
    }

    /// Whether a memory operand may want this register's value.
    pub(crate) fn is_useful(&self, number: usize) -> bool {
        number == 4 || self.values[number].is_some_and(is_address)
    }

    /// The registers that `instruction` writes, as a mask.
    pub(crate) fn written(factory: &mut InstructionInfoFactory, instruction: &Instruction) -> u16 {
        let mut mask = 0;
        for used in factory.info(instruction).used_registers() {
            let writes = matches!(
                used.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            if writes && let Some(number) = number_of(used.register()) {
                mask |= 1 << number;
            }
        }
        mask
    }

    /// Forgets what `instruction` writes.
    pub(crate) fn pass(&mut self, factory: &mut InstructionInfoFactory, instruction: &Instruction) {
        let written = Self::written(factory, instruction);
        let stack = self.values[4];
        for (number, value) in self.values.iter_mut().enumerate() {
            if written & 1 << number != 0 {
                *value = None;
            }
        }
        if instruction.is_stack_instruction() && written & 1 << 4 != 0 {
            let moved = i64::from(instruction.stack_pointer_increment());
            self.values[4] = stack.filter(|_| moved != 0).map(|old| old.wrapping_add_signed(moved));
        }
    }
}

/// Whether the value lies in or near a data area.
fn is_address(value: u64) -> bool {
    use crate::layout::{HIGH, LOW};
    value.wrapping_sub(LOW - 0x1000) < 0x5000 || value.wrapping_sub(HIGH - 0x1000) < 0x4000
}

/// The number of a general register, or of the one it is part of.
pub(crate) fn number_of(register: Register) -> Option<usize> {
    let full = register.full_register();
    WIDE.iter().position(|wide| *wide == full)
}
