//! Flags that nobody asks for.
//!
//! Most instructions set six flags, and most of them are set anew before anything looks. Within a trace that can be known: an
//! instruction may leave out a flag that another one behind it sets, when nothing between the two, the other
//! included, reads the flag, or can leave the trace. Whoever is outside finds all flags right: at the trace's end, and at each
//! instruction that can fault or stop, which is every one with an operand in memory and every one not named here.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{arithmetic, multiply, shifts};
use crate::op::{Handler, Op};

/// CF, in a set of flags.
const CARRY: u8 = 1;
/// The other five.
const REST: u8 = 2;
const ALL: u8 = CARRY | REST;

/// What of its flags an instruction has to leave, if not all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// None of them.
    Nothing,
    /// CF.
    Carry,
}

/// What an instruction does with flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    /// Those that must be right before it.
    reads: u8,
    /// Those it may change.
    changes: u8,
    /// Those that do not depend on what was before it.
    sets: u8,
}

const LEAVES: Use = Use { reads: ALL, changes: 0, sets: 0 };
const PASSES: Use = Use { reads: 0, changes: 0, sets: 0 };
const SETS: Use = Use { reads: 0, changes: ALL, sets: ALL };

/// What is known of an instruction that can neither fault nor stop; of any other that it leaves.
fn flag_use(i: &Instruction) -> Use {
    if i.mnemonic() == Mnemonic::Lea {
        return PASSES;
    }
    let is_general = |which: u32| match i.op_kind(which) {
        OpKind::Register => i.op_register(which).is_gpr(),
        OpKind::Memory => false,
        _ => true,
    };
    if !(0..i.op_count()).all(is_general) {
        return LEAVES;
    }
    match i.mnemonic() {
        Mnemonic::Mov
        | Mnemonic::Movzx
        | Mnemonic::Movsx
        | Mnemonic::Movsxd
        | Mnemonic::Not
        | Mnemonic::Nop => PASSES,
        Mnemonic::Add
        | Mnemonic::Sub
        | Mnemonic::And
        | Mnemonic::Or
        | Mnemonic::Xor
        | Mnemonic::Cmp
        | Mnemonic::Test
        | Mnemonic::Neg => SETS,
        Mnemonic::Adc | Mnemonic::Sbb => Use { reads: CARRY, ..SETS },
        Mnemonic::Inc | Mnemonic::Dec => Use { reads: 0, changes: REST, sets: REST },
        Mnemonic::Imul if i.op_count() > 1 => SETS,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            match shifts::count_of(i) {
                None => LEAVES,
                Some(0) => PASSES,
                Some(_) => SETS,
            }
        }
        Mnemonic::Rol | Mnemonic::Ror => match shifts::count_of(i) {
            None => LEAVES,
            Some(0) => PASSES,
            // OF too, but four of the five others stay.
            Some(_) => Use { reads: 0, changes: ALL, sets: CARRY },
        },
        _ => LEAVES,
    }
}

/// Gives the instructions of a trace, whose records are `ops`, handlers that leave out flags nobody asks for.
pub(super) fn silence(ops: &mut [Op], instructions: &[Instruction]) {
    // Whoever comes behind the trace may ask for any.
    let mut live = ALL;
    for (op, instruction) in ops.iter_mut().zip(instructions).rev() {
        let Use { reads, changes, sets } = flag_use(instruction);
        if changes & live != changes
            && let Some(run) = quieter(instruction, changes & live)
        {
            op.run = run;
        }
        live = live & !sets | reads;
    }
}

/// The handler that leaves only these of the flags it may change, or more.
fn quieter(instruction: &Instruction, live: u8) -> Option<Handler> {
    let wanted = match live {
        0 => Wanted::Nothing,
        CARRY => Wanted::Carry,
        _ => return None,
    };
    arithmetic::quieter(instruction, wanted)
        .or_else(|| shifts::quieter(instruction, wanted))
        .or_else(|| match instruction.mnemonic() {
            Mnemonic::Imul => multiply::quieter(instruction, wanted),
            _ => None,
        })
}
