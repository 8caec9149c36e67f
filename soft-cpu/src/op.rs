//! An instruction, decoded once: 32 bytes, two to a cache line.

use crate::cpu::Cpu;
use crate::event::Raised;

/// How a handler ends: `Err` when it could not be done, and then nothing of it was done (but for
/// whole elements of a string instruction); why is in [`Cpu::event`].
pub type Done = Result<(), Raised>;

/// What carries an instruction out.
pub type Handler = fn(&mut Cpu, &Op) -> Done;

/// A decoded instruction.
///
/// Its address is that of the trace it is in plus `offset`. The fields mean what its handler
/// takes them to mean; the addressing form is always the same (see [`Cpu::address`]).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// Carries it out.
    pub run: Handler,
    /// Immediate operand, sign-extended to 64 bits; or a branch's target, from the trace's start.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Where it starts, from the trace's start.
    pub offset: u16,
    /// For the handler.
    pub extra: u16,
    /// Destination register (a slot of [`Cpu::gpr`], or another file's).
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Base register's slot.
    pub base: u8,
    /// Index register's slot.
    pub index: u8,
    /// Shift of the index: 0 to 3.
    pub scale: u8,
    /// Slot of the segment's base.
    pub segment: u8,
    /// Bits to cut off an address: 0, 32 or 48.
    pub cut: u8,
    /// Length in bytes: 1 to 15, or that of two ([`crate::lower::refine`]).
    pub len: u8,
}

impl Op {
    /// Where the next instruction starts, from the trace's start.
    #[inline(always)]
    #[must_use]
    pub fn next(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

const _: () = assert!(size_of::<Op>() == 32, "two to a cache line");
