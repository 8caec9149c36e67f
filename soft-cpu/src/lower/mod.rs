//! From decoded bytes to [`Op`]s: one file per family of instructions.
//!
//! A family's `lower` looks at the instruction and either fills the operand fields and returns its handler, or
//! returns `None`: not mine. Handlers stand in the same file, below.

mod accumulator;
mod arithmetic;
mod bits;
mod control;
mod exchange;
mod hints;
mod legacy;
mod liveness;
mod mmx;
mod moves;
mod multiply;
mod pairs;
mod port_strings;
mod segments;
mod shifts;
pub(crate) mod sse;
mod stack;
mod strings;
mod system;
mod x87;

use iced_x86::{Code, Instruction, MemorySize, OpKind, Register};

use crate::cpu::{CodeSize, Cpu, slot};
use crate::event::{Exception, Raised};
use crate::op::{Done, Handler, Op};

/// What an instruction's meaning depends on besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Where it starts, from the trace's start.
    pub offset: usize,
    /// How wide code is.
    pub code_size: CodeSize,
    /// Whether the stack segment is 32 bits wide (outside 64-bit mode).
    pub big_stack: bool,
}

/// A family's answer.
#[derive(Clone, Copy, Debug)]
pub struct Lowered {
    /// The record.
    pub op: Op,
    /// Whether it ends its trace: then the handler sets `rip`.
    pub ends: bool,
}

/// A handler, and whether the instruction ends its trace.
#[derive(Clone, Copy)]
pub(crate) struct Found {
    pub(crate) run: Handler,
    pub(crate) ends: bool,
}

/// The handler of an instruction that goes on to the next one.
pub(crate) fn goes_on(run: Handler) -> Option<Found> {
    Some(Found { run, ends: false })
}

/// The handler of an instruction that ends its trace: it sets `rip`.
pub(crate) fn ends(run: Handler) -> Option<Found> {
    Some(Found { run, ends: true })
}

/// Decodes one instruction into its record.
#[must_use]
pub fn lower(instruction: &Instruction, place: &Place) -> Lowered {
    let mut op = Op {
        run: crate::trace_cache::undefined,
        imm: 0,
        disp: 0,
        offset: u16::try_from(place.offset).expect("a trace is shorter than a page"),
        extra: 0,
        dst: slot::ZERO,
        src: slot::ZERO,
        base: slot::ZERO,
        index: slot::ZERO,
        scale: 0,
        segment: slot::ZERO,
        cut: 0,
        len: u8::try_from(instruction.len().max(1)).expect("at most fifteen bytes"),
    };
    if instruction.is_invalid() {
        return Lowered { op, ends: true };
    }
    let found = fill_memory(instruction, &mut op, place).and_then(|()| {
        arithmetic::lower(instruction, &mut op, place)
            .or_else(|| mmx::lower(instruction, &mut op))
            .or_else(|| moves::lower(instruction, &mut op, place))
            .or_else(|| control::lower(instruction, &mut op, place))
            .or_else(|| stack::lower(instruction, &mut op, place))
            .or_else(|| shifts::lower(instruction, &mut op, place))
            .or_else(|| multiply::lower(instruction, &mut op, place))
            .or_else(|| bits::lower(instruction, &mut op, place))
            .or_else(|| strings::lower(instruction, &mut op, place))
            .or_else(|| port_strings::lower(instruction, &mut op, place))
            .or_else(|| accumulator::lower(instruction, &mut op, place))
            .or_else(|| exchange::lower(instruction, &mut op, place))
            .or_else(|| hints::lower(instruction, &mut op, place))
            .or_else(|| legacy::lower(instruction, &mut op, place))
            .or_else(|| x87::lower(instruction, &mut op, place))
            .or_else(|| sse::lower(instruction, &mut op, place))
            .or_else(|| segments::lower(instruction, &mut op, place))
            .or_else(|| system::lower(instruction, &mut op, place))
    });
    match found {
        Some(found) => {
            op.run = found.run;
            Lowered { op, ends: found.ends }
        }
        None => {
            op.run = unimplemented;
            op.imm = u64::from(instruction.code() as u16);
            Lowered { op, ends: true }
        }
    }
}

/// Makes a trace shorter and quieter, now that all of it is known: `ops` are the records of `instructions`, and perhaps
/// one that only goes on behind them.
pub fn refine(ops: &mut Vec<Op>, first: usize, instructions: &[Instruction]) {
    pairs::join_last(ops, first, instructions);
    liveness::silence(&mut ops[first..], instructions);
}

/// Goes on at the instruction after the trace.
#[must_use]
pub fn fall_through(offset: usize) -> Op {
    fn run(cpu: &mut Cpu, op: &Op) -> Done {
        cpu.rip = cpu.gpr[usize::from(slot::RIP)].wrapping_add(u64::from(op.offset));
        if cpu.code_size != CodeSize::Bits64 {
            cpu.rip &= 0xffff_ffff;
        }
        Ok(())
    }
    Op {
        run,
        imm: 0,
        disp: 0,
        offset: u16::try_from(offset).expect("a trace is shorter than a page"),
        extra: 0,
        dst: slot::ZERO,
        src: slot::ZERO,
        base: slot::ZERO,
        index: slot::ZERO,
        scale: 0,
        segment: slot::ZERO,
        cut: 0,
        len: 0,
    }
}

/// #UD, and its name for whoever watches.
fn unimplemented(cpu: &mut Cpu, op: &Op) -> Done {
    let rip = cpu.gpr[usize::from(slot::RIP)].wrapping_add(u64::from(op.offset));
    let code = usize::try_from(op.imm).ok().and_then(|code| Code::values().nth(code));
    let name = code.map_or_else(|| "an unknown instruction".to_owned(), |code| format!("{code:?}"));
    cpu.surroundings.unimplemented(rip, &name);
    Err(cpu.throw(Exception::UNDEFINED))
}

/// Fills in the memory operand, if there is one.
fn fill_memory(instruction: &Instruction, op: &mut Op, place: &Place) -> Option<()> {
    let has_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory)
        || instruction.memory_size() != MemorySize::Unknown;
    if !has_memory {
        return Some(());
    }
    op.segment = segment_slot(instruction.memory_segment(), place);
    if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
        return Some(());
    }
    let base = instruction.memory_base();
    if op.segment == slot::ZERO && matches!(base, Register::RSP | Register::RBP) {
        // Prefixes that name a flat segment are ignored: the base register alone makes it a stack's.
        op.segment = slot::FLAT_STACK;
    }
    let index = instruction.memory_index();
    op.scale = u8::try_from(instruction.memory_index_scale().trailing_zeros()).ok()?;
    let displacement = instruction.memory_displacement64();
    op.cut = match (base, index, instruction.memory_displ_size()) {
        (Register::EIP, _, _) => 32,
        (Register::RIP, _, _) => 0,
        (Register::None, Register::None, size) => match size {
            2 => 48,
            4 => 32,
            _ => 0,
        },
        (register, Register::None, _) | (_, register, _) => match register.size() {
            2 => 48,
            4 => 32,
            _ => 0,
        },
    };
    if base == Register::RIP || base == Register::EIP {
        // iced gives the target; ours is relative to the trace's start.
        op.base = slot::RIP;
        let start = instruction.ip().wrapping_sub(place.offset as u64);
        let relative = displacement.wrapping_sub(start).cast_signed();
        let relative = if base == Register::EIP { relative << 32 >> 32 } else { relative };
        op.disp = i32::try_from(relative).ok()?;
        return Some(());
    }
    op.base = general(base).unwrap_or(slot::ZERO);
    op.index = general(index).unwrap_or(slot::ZERO);
    match i32::try_from(displacement.cast_signed()) {
        Ok(short) => op.disp = short,
        Err(_) if op.cut != 0 => {
            // 16 and 32 bits wide: only the low bits count.
            #[expect(clippy::cast_possible_truncation, reason = "the rest is cut off")]
            let short = displacement as i32;
            op.disp = short;
        }
        // Only `mov` between the accumulator and a 64-bit address has such: see `moves`.
        Err(_) => op.imm = displacement,
    }
    Some(())
}

/// The slot of a segment register's base; flat in 64-bit mode but for FS and GS.
pub(crate) fn segment_slot(segment: Register, place: &Place) -> u8 {
    let number = match segment {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    };
    match (place.code_size, number) {
        (CodeSize::Bits64, 0..=3) => slot::ZERO,
        _ => slot::SEGMENTS + number,
    }
}

/// The slot of a general register: its number, or 32 to 35 for AH, CH, DH, BH.
pub(crate) fn general(register: Register) -> Option<u8> {
    if !register.is_gpr() {
        return None;
    }
    Some(match register {
        Register::AH => 32,
        Register::CH => 33,
        Register::DH => 34,
        Register::BH => 35,
        _ => u8::try_from(register.full_register().number()).expect("sixteen registers"),
    })
}

/// The slot of operand `which`, a general register.
pub(crate) fn register(instruction: &Instruction, which: u32) -> Option<u8> {
    (instruction.op_kind(which) == OpKind::Register)
        .then(|| general(instruction.op_register(which)))
        .flatten()
}

/// Whether operand `which` is an immediate, and which: sign-extended.
pub(crate) fn immediate(instruction: &Instruction, which: u32) -> Option<u64> {
    match instruction.op_kind(which) {
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64
        | OpKind::Immediate8_2nd => Some(instruction.immediate(which)),
        _ => None,
    }
}

/// Whether operand `which` is in memory.
pub(crate) fn is_memory(instruction: &Instruction, which: u32) -> bool {
    instruction.op_kind(which) == OpKind::Memory
}

/// Bytes of operand `which`, a general register or in memory.
pub(crate) fn bytes_of(instruction: &Instruction, which: u32) -> usize {
    match instruction.op_kind(which) {
        OpKind::Register => instruction.op_register(which).size(),
        _ => instruction.memory_size().size(),
    }
}

/// Picks the copy of a handler that was compiled for so many bytes.
macro_rules! by_width {
    ($bytes:expr, $($handler:ident)::+ $(::<$($generic:ty),+>)?) => {
        match $bytes {
            1 => Some($($handler)::+::<$($($generic,)+)? crate::width::B1> as crate::op::Handler),
            2 => Some($($handler)::+::<$($($generic,)+)? crate::width::B2> as crate::op::Handler),
            4 => Some($($handler)::+::<$($($generic,)+)? crate::width::B4> as crate::op::Handler),
            8 => Some($($handler)::+::<$($($generic,)+)? crate::width::B8> as crate::op::Handler),
            _ => None,
        }
    };
}
pub(crate) use by_width;

/// An exception, from a handler.
pub(crate) fn fail(cpu: &mut Cpu, exception: Exception) -> Result<(), Raised> {
    Err(cpu.throw(exception))
}
