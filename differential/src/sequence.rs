//! A sequence of instructions: how it becomes bytes, and which of its flags mean nothing.

use iced_x86::{Code, Encoder, IcedError, Instruction, Mnemonic, OpKind, Register, RflagsBits};

use crate::generate::catalogue::Family;
use crate::layout::code_of_slot;
use crate::state::{Input, State};

/// An instruction and what must not be forgotten about it.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    /// It.
    pub instruction: Instruction,
    /// Where it leads, if it is a branch or takes the address of one: the index of an item, or how many there are.
    pub target: Option<usize>,
    /// Items of one group make sense only together.
    pub group: u32,
    /// Which form it is there to try; nothing for those that prepare the ground.
    pub form: Option<usize>,
}

/// What one run of both processors starts from.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// What it is about.
    pub family: Family,
    /// The instructions.
    pub items: Vec<Item>,
    /// Registers.
    pub state: State,
    /// Data.
    pub template: usize,
    /// Place in its batch.
    pub slot: usize,
    /// Offset of the first instruction in the slot's pages.
    pub entry: usize,
}

/// A sequence as bytes.
#[derive(Clone, Debug)]
pub struct Assembled {
    /// What both processors get.
    pub input: Input,
    /// Offset of each item in the code, then of the end.
    pub offsets: Vec<usize>,
}

impl Sequence {
    /// Turns it into bytes.
    ///
    /// # Errors
    ///
    /// When the encoder refuses an operand, which the generator asks beforehand.
    pub fn assemble(&self) -> Result<Assembled, IcedError> {
        let base = code_of_slot(self.slot) + self.entry as u64;
        // Lengths do not depend on where branches lead, so one pass finds the addresses and another writes them.
        let mut offsets = Vec::with_capacity(self.items.len() + 1);
        let mut length = 0;
        let mut encoder = Encoder::new(64);
        for item in &self.items {
            offsets.push(length);
            let here = base + length as u64;
            length += encoder.encode(&lead(item.instruction, here), here)?;
        }
        offsets.push(length);
        drop(encoder.take_buffer());
        for item in &self.items {
            let here = base + encoder_position(&offsets, item, self);
            let instruction = match item.target {
                Some(target) => {
                    lead(item.instruction, base + offsets[target.min(self.items.len())] as u64)
                }
                None => item.instruction,
            };
            encoder.encode(&instruction, here)?;
        }
        let input = Input {
            slot: self.slot,
            entry: self.entry,
            code: encoder.take_buffer(),
            state: self.state,
            template: self.template,
        };
        Ok(Assembled { input, offsets })
    }

    /// The flags (as [`RflagsBits`]) that mean nothing before each item, then at the end; nothing if an item
    /// reads one of them, so that the sequence's result is anybody's.
    #[must_use]
    pub fn undefined(&self) -> Option<Vec<u32>> {
        let mut before = vec![0_u32; self.items.len() + 1];
        for (at, item) in self.items.iter().enumerate() {
            if reads(&item.instruction) & before[at] != 0 {
                return None;
            }
            let after = after(&item.instruction, before[at]);
            // Whatever can be reached from here inherits; backward branches are allowed with all flags defined only.
            if let Some(target) = item.target.filter(|_| is_branch(&item.instruction)) {
                if target <= at {
                    if after != 0 {
                        return None;
                    }
                } else {
                    before[target.min(self.items.len())] |= after;
                }
            }
            before[at + 1] |= after;
        }
        Some(before)
    }
}

/// Where an item is: items are distinct objects of the sequence.
fn encoder_position(offsets: &[usize], item: &Item, sequence: &Sequence) -> u64 {
    let start = sequence.items.as_ptr();
    let at = (std::ptr::from_ref(item).addr() - start.addr()) / size_of::<Item>();
    offsets[at] as u64
}

/// The instruction with its branch, or its RIP-relative address, leading to `to`.
fn lead(mut instruction: Instruction, to: u64) -> Instruction {
    if is_branch(&instruction) {
        instruction.set_near_branch64(to);
    } else if instruction.code() == Code::Lea_r64_m && instruction.memory_base() == Register::RIP {
        instruction.set_memory_displacement64(to);
    }
    instruction
}

/// Whether it has a near branch target.
#[must_use]
pub fn is_branch(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && instruction.op0_kind() == OpKind::NearBranch64
}

/// x87's condition codes.
const CONDITIONS: u32 = RflagsBits::C0 | RflagsBits::C1 | RflagsBits::C2 | RflagsBits::C3;

/// The six arithmetic flags.
pub const ARITHMETIC: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// The flags an instruction looks at.
#[must_use]
pub fn reads(instruction: &Instruction) -> u32 {
    use Mnemonic as M;
    let also = match instruction.mnemonic() {
        M::Pushf | M::Pushfq => ARITHMETIC,
        M::Fnstsw | M::Fnsave | M::Fnstenv | M::Fxsave | M::Fxsave64 => CONDITIONS,
        _ => 0,
    };
    instruction.rflags_read() | also
}

/// Whether the instruction may leave all flags alone, depending on a count.
fn may_do_nothing(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let shifts = matches!(
        instruction.mnemonic(),
        M::Shl | M::Shr | M::Sal | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    shifts || instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// OF after a rotation through CF by more than one bit, even by a whole turn, which the decoder takes for none.
fn rotated_overflow(instruction: &Instruction) -> u32 {
    let through_carry = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    let is_one = instruction.op1_kind() == OpKind::Immediate8
        && matches!(instruction.immediate8() & 63, 0 | 1);
    if through_carry && !is_one { RflagsBits::OF } else { 0 }
}

/// The flags that mean nothing after the instruction, given those before.
pub(crate) fn after(instruction: &Instruction, before: u32) -> u32 {
    use Mnemonic as M;
    let undefined = instruction.rflags_undefined() | rotated_overflow(instruction);
    let defined = instruction.rflags_modified() & !undefined;
    match instruction.mnemonic() {
        // These read C0 to C3 from memory, or set them all.
        M::Frstor | M::Fldenv | M::Fxrstor | M::Fxrstor64 | M::Fninit | M::Fnsave => {
            before & !CONDITIONS
        }
        _ if may_do_nothing(instruction) => before | undefined,
        _ => before & !defined | undefined,
    }
}
