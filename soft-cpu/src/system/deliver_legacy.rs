//! The same outside long mode: through the vector table of real mode, and through 16- and 32-bit gates.

use crate::cpu::{Cpu, reg, seg};
use crate::event::Exception;
use crate::flags;
use crate::op::Done;
use crate::segment::Segment;
use crate::system::deliver::Source;
use crate::system::far::low16;
use crate::system::segments::{is_null, named};
use crate::width::{B2, B4, B8};

impl Cpu {
    /// Real mode: a far pointer for each vector, three words on the stack, never an error code (Intel SDM vol. 3,
    /// "Interrupt and Exception Handling" of "8086 Emulation").
    pub(super) fn deliver_real(&mut self, vector: u8) -> Done {
        let offset = 4 * u64::from(vector);
        if offset + 3 > u64::from(self.idtr.limit) {
            return Err(self.protect());
        }
        let pointer = self.load_system::<B4>(self.idtr.base.wrapping_add(offset))?;
        let own = u64::from(self.segments[seg::CS].selector);
        self.push_all::<B2>(&[self.rflags(), own, self.rip])?;
        let cleared = flags::IF | flags::TF | flags::AC | flags::RF;
        self.set_rflags(self.rflags() & !cleared);
        let code = self.real_segment(seg::CS, low16(pointer >> 16));
        self.set_segment(seg::CS, code);
        self.rip = pointer & 0xffff;
        Ok(())
    }

    /// Protected mode: through a gate of the interrupt descriptor table.
    pub(super) fn deliver_protected(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
    ) -> Done {
        let external = u32::from(source != Source::Software);
        let gate_error = u32::from(vector) << 3 | 2 | external;
        let offset = 8 * u64::from(vector);
        if offset + 7 > u64::from(self.idtr.limit) {
            return Err(self.throw(Exception::general_protection(gate_error)));
        }
        let gate = self.load_system::<B8>(self.idtr.base.wrapping_add(offset))?;
        let kind = gate >> 40 & 0x1f;
        if kind == 5 {
            self.refuse("a task gate");
        }
        if !matches!(kind, 6 | 7 | 0xe | 0xf) {
            return Err(self.throw(Exception::general_protection(gate_error)));
        }
        if source == Source::Software && u64::from(self.cpl) > gate >> 45 & 3 {
            return Err(self.throw(Exception::general_protection(gate_error)));
        }
        if gate >> 47 & 1 == 0 {
            return Err(self.throw(Exception::not_present(gate_error)));
        }
        let is_wide = kind & 8 != 0;
        let high = if is_wide { gate >> 32 & 0xffff_0000 } else { 0 };
        let code = self.gate_segment(low16(gate >> 16), external)?;
        let resumes = u64::from(source == Source::Processor && vector != 1) * flags::RF;
        let state = [
            self.rflags() | resumes,
            u64::from(self.segments[seg::CS].selector),
            self.rip & 0xffff_ffff,
        ];
        let inwards = !code.is_conforming() && code.privilege() < self.cpl;
        if inwards {
            let cpl = code.privilege();
            let (stack, sp) = self.inner_stack(cpl, external)?;
            let old = [u64::from(self.segments[seg::SS].selector), self.gpr[reg::RSP]];
            let frame: Vec<u64> =
                old.into_iter().chain(state).chain(error.map(u64::from)).collect();
            let sp = if is_wide {
                self.push_on::<B4>(&stack, cpl, sp, &frame)?
            } else {
                self.push_on::<B2>(&stack, cpl, sp, &frame)?
            };
            self.set_segment(seg::SS, stack);
            self.enter_code(code, cpl, gate & 0xffff | high)?;
            self.set_stack_pointer(sp);
        } else {
            let frame: Vec<u64> = state.into_iter().chain(error.map(u64::from)).collect();
            if is_wide {
                self.push_all::<B4>(&frame)?;
            } else {
                self.push_all::<B2>(&frame)?;
            }
            self.enter_code(code, self.cpl, gate & 0xffff | high)?;
        }
        let mut rflags = self.rflags() & !(flags::TF | flags::NT | flags::RF | flags::VM);
        if kind & 1 == 0 {
            rflags &= !flags::IF;
        }
        self.set_rflags(rflags);
        Ok(())
    }

    /// The code segment that a 16- or 32-bit gate leads to.
    fn gate_segment(
        &mut self,
        selector: u16,
        external: u32,
    ) -> Result<Segment, crate::event::Raised> {
        if is_null(selector) {
            return Err(self.throw(Exception::general_protection(external)));
        }
        let descriptor = self.need_descriptor(selector, Exception::general_protection, external)?;
        let code = Segment::from_descriptor(selector, descriptor);
        let error = named(selector) | external;
        if !code.is_code() || code.privilege() > self.cpl {
            return Err(self.throw(Exception::general_protection(error)));
        }
        if !code.is_present() {
            return Err(self.throw(Exception::not_present(error)));
        }
        self.mark_accessed(code)
    }
}
