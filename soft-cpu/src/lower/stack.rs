//! The stack: `push`, `pop`, `pushf`, `popf`, `leave`.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Found, Place, by_width, ends, goes_on, immediate, is_memory, register};
use crate::cpu::{CodeSize, Cpu, reg, seg, slot};
use crate::event::Raised;
use crate::flags;
use crate::lower::control::after;
use crate::op::{Done, Handler, Op};
use crate::width::{B2, B4, B8, Width};

impl Cpu {
    /// Pushes in 64-bit mode.
    #[inline(always)]
    pub(crate) fn push64(&mut self, value: u64) -> Result<(), Raised> {
        let rsp = self.gpr[reg::RSP].wrapping_sub(8);
        self.store_at::<B8>(rsp, slot::FLAT_STACK, value)?;
        self.gpr[reg::RSP] = rsp;
        Ok(())
    }

    /// Pushes `W` bytes, in any mode.
    pub(crate) fn push<W: Width>(&mut self, value: u64) -> Result<(), Raised> {
        let sp = self.stack_pointer(0u64.wrapping_sub(W::BYTES as u64));
        let (address, slot) = self.stack_address(sp);
        self.store_at::<W>(address, slot, value & W::MASK)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// Pops `W` bytes, in any mode.
    pub(crate) fn pop<W: Width>(&mut self) -> Result<u64, Raised> {
        let value = self.top::<W>(0)?;
        self.move_stack(W::BYTES as u64);
        Ok(value)
    }

    /// Reads `W` bytes, `offset` above the top of the stack.
    pub(crate) fn top<W: Width>(&mut self, offset: u64) -> Result<u64, Raised> {
        let (address, slot) = self.stack_address(self.stack_pointer(offset));
        self.load_at::<W>(address, slot)
    }

    /// Adds to the stack pointer.
    pub(crate) fn move_stack(&mut self, by: u64) {
        self.set_stack_pointer(self.stack_pointer(by));
    }

    fn stack_pointer(&self, moved_by: u64) -> u64 {
        self.gpr[reg::RSP].wrapping_add(moved_by) & self.stack_mask()
    }

    /// What of RSP counts.
    pub(crate) fn stack_mask(&self) -> u64 {
        match self.code_size {
            CodeSize::Bits64 => u64::MAX,
            _ if self.segments[seg::SS].is_big() => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    /// Sets what of RSP counts.
    pub(crate) fn set_stack_pointer(&mut self, sp: u64) {
        match self.stack_mask() {
            0xffff => self.set::<B2>(4, sp & 0xffff),
            _ => self.gpr[reg::RSP] = sp,
        }
    }

    /// The linear address of a stack pointer, and its segment's slot.
    pub(crate) fn stack_address(&self, sp: u64) -> (u64, u8) {
        match self.code_size {
            CodeSize::Bits64 => (sp, slot::FLAT_STACK),
            _ => (sp.wrapping_add(self.segments[seg::SS].base), slot::SEGMENTS + 2),
        }
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let long = place.code_size == CodeSize::Bits64;
    match i.mnemonic() {
        Mnemonic::Push => {
            let bytes = usize::try_from(-i.stack_pointer_increment()).ok()?;
            if let Some(value) = immediate(i, 0) {
                op.imm = value;
                return goes_on(by_width!(bytes, push_immediate)?);
            }
            if let Some(src) = register(i, 0) {
                op.src = src;
                let run: Handler = if long && bytes == 8 {
                    push_register64
                } else {
                    by_width!(bytes, push_register)?
                };
                return goes_on(run);
            }
            if is_memory(i, 0) {
                return goes_on(by_width!(bytes, push_memory)?);
            }
            None
        }
        Mnemonic::Pop => {
            let bytes = usize::try_from(i.stack_pointer_increment()).ok()?;
            if let Some(dst) = register(i, 0) {
                op.dst = dst;
                let run: Handler = if long && bytes == 8 {
                    pop_register64
                } else {
                    by_width!(bytes, pop_register)?
                };
                return goes_on(run);
            }
            if i.op0_kind() == OpKind::Memory {
                return goes_on(by_width!(bytes, pop_memory)?);
            }
            None
        }
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            let bytes = usize::try_from(-i.stack_pointer_increment()).ok()?;
            goes_on(by_width!(bytes, push_flags)?)
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            let bytes = usize::try_from(i.stack_pointer_increment()).ok()?;
            ends(by_width!(bytes, pop_flags)?)
        }
        Mnemonic::Leave => {
            // In 64-bit mode the operand is 64 bits wide, or 16 with a prefix.
            match i.code() {
                iced_x86::Code::Leavew => goes_on(leave::<B2>),
                iced_x86::Code::Leaved => goes_on(leave::<B4>),
                _ => goes_on(leave::<B8>),
            }
        }
        _ => None,
    }
}

fn push_register64(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP].wrapping_sub(8);
    let Some(host) = cpu.writes.hit::<B8>(rsp) else { return push_register64_slowly(cpu, op) };
    host.store::<B8>(cpu.gpr[usize::from(op.src)]);
    cpu.gpr[reg::RSP] = rsp;
    Ok(())
}

#[cold]
#[inline(never)]
fn push_register64_slowly(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push64(cpu.gpr[usize::from(op.src)])
}

fn pop_register64(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP];
    let Some(host) = cpu.reads.hit::<B8>(rsp) else { return pop_register64_slowly(cpu, op) };
    cpu.gpr[reg::RSP] = rsp.wrapping_add(8);
    cpu.gpr[usize::from(op.dst)] = host.load::<B8>();
    Ok(())
}

#[cold]
#[inline(never)]
fn pop_register64_slowly(cpu: &mut Cpu, op: &Op) -> Done {
    let rsp = cpu.gpr[reg::RSP];
    let value = cpu.load_at::<B8>(rsp, slot::FLAT_STACK)?;
    cpu.gpr[reg::RSP] = rsp.wrapping_add(8);
    cpu.gpr[usize::from(op.dst)] = value;
    Ok(())
}

fn push_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push::<W>(cpu.get::<W>(op.src))
}

fn push_immediate<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push::<W>(op.imm)
}

fn push_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.load::<W>(op)?;
    cpu.push::<W>(value)
}

fn pop_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.pop::<W>()?;
    cpu.set::<W>(op.dst, value);
    Ok(())
}

/// An address that is made with RSP is made with the RSP after the pop (Intel SDM vol. 2, POP).
fn pop_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let before = cpu.gpr[reg::RSP];
    let value = cpu.pop::<W>()?;
    let stored = cpu.store::<W>(op, value);
    if stored.is_err() {
        cpu.gpr[reg::RSP] = before;
    }
    stored
}

fn push_flags<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    let rflags = cpu.rflags() & !(flags::VM | flags::RF);
    cpu.push::<W>(rflags)
}

/// What may change depends on the privilege (Intel SDM vol. 2, POPF). Interrupts may be on now: ends a trace.
fn pop_flags<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let popped = cpu.pop::<W>()?;
    // Neither of the virtual interrupt flags (bits 19 and 20) can be set this way.
    let mut keep = flags::VM | flags::RF | !0x27_7fd5;
    if cpu.is_protected() {
        if cpu.cpl > 0 {
            keep |= flags::IOPL;
        }
        if cpu.cpl > cpu.iopl() {
            keep |= flags::IF;
        }
    }
    keep |= !W::MASK;
    let before = cpu.rflags();
    // RF is cleared whatever was popped.
    cpu.set_rflags((popped & !keep | before & keep) & !flags::RF);
    cpu.rip = after(cpu, op);
    Ok(())
}

fn leave<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    let frame = cpu.gpr[reg::RBP] & cpu.stack_mask();
    let (address, slot) = cpu.stack_address(frame);
    let value = cpu.load_at::<W>(address, slot)?;
    cpu.set_stack_pointer(frame.wrapping_add(W::BYTES as u64) & cpu.stack_mask());
    cpu.set::<W>(5, value);
    Ok(())
}
