//! Far transfers: jumps, calls and returns between code segments, and `iret` (Intel SDM vol. 2, JMP, CALL, RET,
//! IRET; vol. 3, "Privilege Level Checking When Transferring Program Control Between Code Segments").

use crate::cpu::{CodeSize, Cpu, attend, reg, seg, slot};
use crate::event::{Exception, Raised};
use crate::flags;
use crate::op::Done;
use crate::segment::Segment;
use crate::system::segments::{is_null, named, requested};
use crate::width::{B2, B4, B8, Width};

/// What a far pointer leads to.
enum Target {
    /// Code, at the pointer's offset.
    Code(Segment),
    /// A call gate.
    Gate(Gate),
}

/// A call gate.
struct Gate {
    selector: u16,
    offset: u64,
    /// Parameters that a call to more privilege copies.
    parameters: u8,
    /// Bytes of what it pushes.
    bytes: usize,
}

/// Where a return goes.
struct Outer {
    sp: u64,
    stack: Segment,
}

impl Cpu {
    /// `jmp` to another segment.
    pub(crate) fn far_jump(&mut self, selector: u16, offset: u64) -> Done {
        if !self.has_descriptors() {
            return self.go_real(selector, offset);
        }
        let (code, offset) = match self.far_target(selector)? {
            Target::Code(code) => (self.direct(code)?, offset),
            Target::Gate(gate) => {
                let code = self.gate_code(&gate)?;
                if !code.is_conforming() && code.privilege() != self.cpl {
                    return Err(self.throw(Exception::general_protection(named(gate.selector))));
                }
                (code, gate.offset)
            }
        };
        let target = self.checked_target(&code, offset)?;
        self.enter_code(code, self.cpl, target)
    }

    /// `call` to another segment, which returns to `back`; `W` is the operand's size.
    pub(crate) fn far_call<W: Width>(&mut self, selector: u16, offset: u64, back: u64) -> Done {
        let own = u64::from(self.segments[seg::CS].selector);
        if !self.has_descriptors() {
            self.push_all::<W>(&[own, back])?;
            return self.go_real(selector, offset);
        }
        match self.far_target(selector)? {
            Target::Code(code) => {
                let code = self.direct(code)?;
                let target = self.checked_target(&code, offset)?;
                self.push_all::<W>(&[own, back])?;
                self.enter_code(code, self.cpl, target)
            }
            Target::Gate(gate) => {
                let code = self.gate_code(&gate)?;
                let target = self.checked_target(&code, gate.offset)?;
                if !code.is_conforming() && code.privilege() < self.cpl {
                    return self.call_inwards(&gate, code, target, back);
                }
                match gate.bytes {
                    2 => self.push_all::<B2>(&[own, back])?,
                    4 => self.push_all::<B4>(&[own, back])?,
                    _ => self.push_all::<B8>(&[own, back])?,
                }
                self.enter_code(code, self.cpl, target)
            }
        }
    }

    /// A call through a gate to more privilege, on that privilege's stack.
    fn call_inwards(&mut self, gate: &Gate, code: Segment, target: u64, back: u64) -> Done {
        let cpl = code.privilege();
        let own = u64::from(self.segments[seg::CS].selector);
        let (stack, sp) = self.inner_stack(cpl, 0)?;
        let mut frame = vec![u64::from(self.segments[seg::SS].selector), self.gpr[reg::RSP]];
        // From the one that was pushed first, the highest, down.
        for parameter in (0..u64::from(gate.parameters)).rev() {
            frame.push(match gate.bytes {
                2 => self.top::<B2>(2 * parameter)?,
                _ => self.top::<B4>(4 * parameter)?,
            });
        }
        frame.extend([own, back]);
        let sp = match gate.bytes {
            2 => self.push_on::<B2>(&stack, cpl, sp, &frame)?,
            4 => self.push_on::<B4>(&stack, cpl, sp, &frame)?,
            _ => self.push_on::<B8>(&stack, cpl, sp, &frame)?,
        };
        self.set_segment(seg::SS, stack);
        self.enter_code(code, cpl, target)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// `retf`, which drops `extra` bytes of parameters.
    pub(crate) fn far_return<W: Width>(&mut self, extra: u64) -> Done {
        let bytes = W::BYTES as u64;
        let offset = self.top::<W>(0)?;
        let selector = low16(self.top::<W>(bytes)?);
        if !self.has_descriptors() {
            self.move_stack((2 * bytes).wrapping_add(extra));
            return self.go_real(selector, offset);
        }
        let code = self.return_code(selector)?;
        let target = self.checked_target(&code, offset)?;
        let cpl = requested(selector);
        if cpl == self.cpl {
            self.move_stack((2 * bytes).wrapping_add(extra));
            return self.enter_code(code, cpl, target);
        }
        let sp = self.top::<W>((2 * bytes).wrapping_add(extra))?;
        let stack = low16(self.top::<W>((3 * bytes).wrapping_add(extra))?);
        let stack = self.return_stack(stack, cpl, &code)?;
        self.go_out(code, target, &Outer { sp: sp.wrapping_add(extra), stack })
    }

    /// `iret`.
    pub(crate) fn interrupt_return<W: Width>(&mut self) -> Done {
        let bytes = W::BYTES as u64;
        let protected = self.has_descriptors();
        if protected && self.has(flags::NT) {
            if !self.is_long() {
                self.refuse("a return to the previous task");
            }
            return Err(self.protect());
        }
        let offset = self.top::<W>(0)?;
        let selector = low16(self.top::<W>(bytes)?);
        let image = self.top::<W>(2 * bytes)?;
        if !protected {
            self.move_stack(3 * bytes);
            self.restore_flags::<W>(image, self.cpl);
            self.unblock_nmi();
            return self.go_real(selector, offset);
        }
        if !self.is_long() && W::BYTES == 4 && self.cpl == 0 && image & flags::VM != 0 {
            self.refuse("a return to virtual-8086 mode");
            return Err(self.protect());
        }
        let code = self.return_code(selector)?;
        let target = self.checked_target(&code, offset)?;
        let (before, cpl) = (self.cpl, requested(selector));
        // In 64-bit mode the stack pointer is popped whatever the privilege.
        if cpl == before && self.code_size != CodeSize::Bits64 {
            self.move_stack(3 * bytes);
            self.enter_code(code, cpl, target)?;
        } else {
            let sp = self.top::<W>(3 * bytes)?;
            let stack = low16(self.top::<W>(4 * bytes)?);
            let stack = self.return_stack(stack, cpl, &code)?;
            self.go_out(code, target, &Outer { sp, stack })?;
        }
        self.restore_flags::<W>(image, before);
        self.unblock_nmi();
        Ok(())
    }

    /// What `iret` may change in RFLAGS when it was executed at `cpl`.
    ///
    /// RF is not restored: it holds back instruction breakpoints, which this processor does not have, and it would be
    /// clear after the next instruction anyway.
    fn restore_flags<W: Width>(&mut self, image: u64, cpl: u8) {
        let mut change = flags::ARITHMETIC | flags::TF | flags::DF | flags::NT;
        if W::BYTES > 2 {
            change |= flags::AC | flags::ID;
        }
        if cpl == 0 {
            change |= flags::IOPL;
        }
        if cpl <= self.iopl() {
            change |= flags::IF;
        }
        self.set_rflags(image & change | self.rflags() & !change);
    }

    fn unblock_nmi(&mut self) {
        if self.nmi.is_blocked {
            self.nmi.is_blocked = false;
            self.attend |= attend::INTERRUPT;
        }
    }

    // ---- checks --------------------------------------------------------------------------------

    /// What `selector` leads to. The selector of a far jump or call.
    fn far_target(&mut self, selector: u16) -> Result<Target, Raised> {
        if is_null(selector) {
            return Err(self.protect());
        }
        let descriptor = self.need_descriptor(selector, Exception::general_protection, 0)?;
        let segment = Segment::from_descriptor(selector, descriptor);
        if segment.is_code() {
            return Ok(Target::Code(segment));
        }
        let refused = Exception::general_protection(named(selector));
        let bytes = match segment.kind() {
            0xc if self.is_long() => 8,
            0xc => 4,
            0x4 if !self.is_long() => 2,
            1 | 5 | 9 if !self.is_long() => {
                self.refuse("a task switch");
                return Err(self.throw(refused));
            }
            _ => return Err(self.throw(refused)),
        };
        if segment.privilege() < self.cpl.max(requested(selector)) {
            return Err(self.throw(refused));
        }
        if !segment.is_present() {
            return Err(self.throw(Exception::not_present(named(selector))));
        }
        let mut offset = descriptor & 0xffff;
        if bytes > 2 {
            offset |= descriptor >> 32 & 0xffff_0000;
        }
        if bytes == 8 {
            match self.descriptor_top(selector)?.filter(|top| top >> 40 & 0x1f == 0) {
                Some(top) => offset |= top << 32,
                None => return Err(self.throw(refused)),
            }
        }
        let parameters = if bytes == 8 { 0 } else { (descriptor >> 32).to_le_bytes()[0] & 31 };
        Ok(Target::Gate(Gate { selector: low16(descriptor >> 16), offset, parameters, bytes }))
    }

    /// The rules for code that is jumped to or called without a gate.
    fn direct(&mut self, code: Segment) -> Result<Segment, Raised> {
        let allowed = if code.is_conforming() {
            code.privilege() <= self.cpl
        } else {
            requested(code.selector) <= self.cpl && code.privilege() == self.cpl
        };
        self.usable_code(code, allowed)
    }

    /// The code segment behind a call gate.
    fn gate_code(&mut self, gate: &Gate) -> Result<Segment, Raised> {
        if is_null(gate.selector) {
            return Err(self.protect());
        }
        let descriptor = self.need_descriptor(gate.selector, Exception::general_protection, 0)?;
        let code = Segment::from_descriptor(gate.selector, descriptor);
        // A 64-bit gate leads to 64-bit code.
        let size_fits = gate.bytes != 8 || code.is_long() && !code.is_big();
        let allowed = code.is_code() && code.privilege() <= self.cpl && size_fits;
        self.usable_code(code, allowed)
    }

    /// The code segment that a return goes to.
    fn return_code(&mut self, selector: u16) -> Result<Segment, Raised> {
        if is_null(selector) {
            return Err(self.protect());
        }
        let descriptor = self.need_descriptor(selector, Exception::general_protection, 0)?;
        let code = Segment::from_descriptor(selector, descriptor);
        let cpl = requested(selector);
        let privilege_fits = match code.is_conforming() {
            true => code.privilege() <= cpl,
            false => code.privilege() == cpl,
        };
        let allowed = code.is_code() && cpl >= self.cpl && privilege_fits;
        self.usable_code(code, allowed)
    }

    fn usable_code(&mut self, code: Segment, allowed: bool) -> Result<Segment, Raised> {
        let torn = self.is_long() && code.is_long() && code.is_big();
        if !allowed || torn {
            return Err(self.throw(Exception::general_protection(named(code.selector))));
        }
        if !code.is_present() {
            return Err(self.throw(Exception::not_present(named(code.selector))));
        }
        self.mark_accessed(code)
    }

    /// The stack that a return to `code` at privilege `cpl` gets.
    fn return_stack(&mut self, selector: u16, cpl: u8, code: &Segment) -> Result<Segment, Raised> {
        if !is_null(selector) {
            return self.stack_segment(selector, cpl, Exception::general_protection, 0);
        }
        let allowed = self.is_long() && code.is_long() && cpl < 3 && requested(selector) == cpl;
        if allowed { Ok(Segment::null(selector)) } else { Err(self.protect()) }
    }

    /// The instruction pointer in `code` that `offset` means; it must be canonical.
    pub(crate) fn checked_target(&mut self, code: &Segment, offset: u64) -> Result<u64, Raised> {
        if !self.is_long() || !code.is_long() {
            return Ok(offset & 0xffff_ffff);
        }
        if self.is_canonical(offset) { Ok(offset) } else { Err(self.protect()) }
    }

    // ---- changes -------------------------------------------------------------------------------

    /// Another code segment of real mode.
    fn go_real(&mut self, selector: u16, offset: u64) -> Done {
        let code = self.real_segment(seg::CS, selector);
        self.set_segment(seg::CS, code);
        self.rip = offset & 0xffff_ffff;
        Ok(())
    }

    /// Goes on in `code`, which was checked.
    pub(crate) fn enter_code(&mut self, code: Segment, cpl: u8, target: u64) -> Done {
        let selector = code.selector & !3 | u16::from(cpl);
        self.set_segment(seg::CS, Segment { selector, ..code });
        if cpl != self.cpl {
            self.set_cpl(cpl);
        }
        self.rip = target;
        Ok(())
    }

    /// Goes on in `code`, on another stack, and with no more privilege than before.
    fn go_out(&mut self, code: Segment, target: u64, outer: &Outer) -> Done {
        let (before, cpl) = (self.cpl, requested(code.selector));
        self.enter_code(code, cpl, target)?;
        self.set_segment(seg::SS, outer.stack);
        self.set_stack_pointer(outer.sp & self.stack_mask());
        if cpl > before {
            self.drop_inner_segments();
        }
        Ok(())
    }

    /// Segments that the new privilege may not use are lost (Intel SDM vol. 2, RET).
    fn drop_inner_segments(&mut self) {
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = self.segments[which];
            let kept = segment.kind() & 0x10 == 0
                || segment.is_conforming()
                || segment.privilege() >= self.cpl;
            if !kept {
                self.set_segment(which, Segment::null(0));
            }
        }
    }

    // ---- stacks --------------------------------------------------------------------------------

    /// Pushes several values; the stack pointer moves when all are written.
    pub(crate) fn push_all<W: Width>(&mut self, values: &[u64]) -> Done {
        let mut down = 0u64;
        for value in values {
            down = down.wrapping_sub(W::BYTES as u64);
            let sp = self.gpr[reg::RSP].wrapping_add(down) & self.stack_mask();
            let (address, slot) = self.stack_address(sp);
            self.store_at::<W>(address, slot, value & W::MASK)?;
        }
        self.move_stack(down);
        Ok(())
    }

    /// Writes values below `sp` of another stack, with the rights of `cpl`; returns its new stack pointer, which
    /// nobody has been given yet.
    pub(crate) fn push_on<W: Width>(
        &mut self,
        stack: &Segment,
        cpl: u8,
        sp: u64,
        values: &[u64],
    ) -> Result<u64, Raised> {
        let (long, before) = (self.is_long(), self.cpl);
        let mask = if long {
            u64::MAX
        } else if stack.is_big() {
            0xffff_ffff
        } else {
            0xffff
        };
        self.set_cpl(cpl);
        let mut at = sp & mask;
        let mut pushed = Ok(());
        for value in values {
            at = at.wrapping_sub(W::BYTES as u64) & mask;
            // A bad address is a stack fault in long mode; elsewhere there is none.
            let address = if long { at } else { at.wrapping_add(stack.base) & 0xffff_ffff };
            pushed = self.store_at::<W>(address, slot::FLAT_STACK, value & W::MASK);
            if pushed.is_err() {
                break;
            }
        }
        self.set_cpl(before);
        pushed.map(|()| at)
    }

    /// The stack that the task state keeps for privilege `cpl`: checked, but not entered.
    pub(crate) fn inner_stack(&mut self, cpl: u8, external: u32) -> Result<(Segment, u64), Raised> {
        let error = named(self.tr.selector) | external;
        if self.is_long() {
            let sp = self.task_field::<B8>(4 + 8 * u64::from(cpl), error)?;
            if !self.is_canonical(sp) {
                return Err(self.throw(Exception::stack(external)));
            }
            return Ok((Segment::null(u16::from(cpl)), sp));
        }
        // A 16-bit task state has 16-bit fields; a 32-bit one 32-bit ones.
        let is_small = self.tr.kind() & 8 == 0;
        let (sp, selector) = if is_small {
            let at = 2 + 4 * u64::from(cpl);
            (self.task_field::<B2>(at, error)?, self.task_field::<B2>(at + 2, error)?)
        } else {
            let at = 4 + 8 * u64::from(cpl);
            (self.task_field::<B4>(at, error)?, self.task_field::<B2>(at + 4, error)?)
        };
        let selector = low16(selector);
        if is_null(selector) {
            return Err(self.throw(Exception::invalid_tss(external)));
        }
        let stack = self.stack_segment(selector, cpl, Exception::invalid_tss, external)?;
        Ok((stack, sp))
    }

    /// A field of the task state.
    pub(crate) fn task_field<W: Width>(&mut self, offset: u64, error: u32) -> Result<u64, Raised> {
        if offset + W::BYTES as u64 - 1 > u64::from(self.tr.limit) {
            return Err(self.throw(Exception::invalid_tss(error)));
        }
        self.load_system::<W>(self.tr.base.wrapping_add(offset))
    }

    /// The guest wants something that this processor does not have: whoever watches gets its name.
    pub(crate) fn refuse(&mut self, what: &str) {
        let rip = self.rip;
        self.surroundings.unimplemented(rip, what);
    }
}

/// A selector among wider things.
pub(crate) fn low16(value: u64) -> u16 {
    u16::try_from(value & 0xffff).expect("sixteen bits")
}
