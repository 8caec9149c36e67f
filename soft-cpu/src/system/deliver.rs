//! Delivering exceptions and interrupts (Intel SDM vol. 3, "Interrupt and Exception Handling").

use crate::cpu::{Cpu, attend, reg, seg, slot};
use crate::event::{Event, Exception, Raised};
use crate::flags;
use crate::segment::Segment;
use crate::system::segments::named;
use crate::width::B8;

/// Why nothing was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undelivered {
    /// The third fault in a row: the processor shuts down.
    TripleFault,
    /// Something outside must happen first; then the delivery is tried again.
    Event(Event),
}

/// Where an event comes from: what checks its gate gets, and how its error code is marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An exception, or the processor's own trap.
    Processor,
    /// An interrupt line.
    External,
    /// `int n`, `int3`, `into`: the gate's privilege counts.
    Software,
}

/// How two exceptions in a row combine (Intel SDM vol. 3, table "Conditions for Generating a Double Fault").
fn is_double(first: u8, second: u8) -> bool {
    let contributory = |vector| matches!(vector, 0 | 10..=13);
    match first {
        14 => second == 14 || contributory(second),
        first if contributory(first) => contributory(second),
        _ => false,
    }
}

impl Cpu {
    /// Delivers an exception of the instruction at `rip`, and whatever the delivery itself raises.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) -> Result<(), Undelivered> {
        /// Double fault.
        const DOUBLE: u8 = 8;
        let mut now = exception;
        loop {
            if let Some(address) = now.address {
                self.cr2 = address;
            }
            if self.deliver(now.vector, now.error, Source::Processor).is_ok() {
                return Ok(());
            }
            let next = std::mem::replace(&mut self.event, Event::None);
            if let Event::Exception(Exception { address: Some(address), .. }) = next {
                // Also where it becomes a double fault, whose handler looks there.
                self.cr2 = address;
            }
            match next {
                Event::Exception(_) if now.vector == DOUBLE => {
                    return Err(Undelivered::TripleFault);
                }
                Event::Exception(next) if is_double(now.vector, next.vector) => {
                    now = Exception::coded(DOUBLE, 0);
                }
                Event::Exception(next) => now = next,
                other => return Err(Undelivered::Event(other)),
            }
        }
    }

    /// Delivers an external interrupt that was acknowledged.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) -> Result<(), Undelivered> {
        if self.deliver(vector, None, Source::External).is_ok() {
            return Ok(());
        }
        match std::mem::replace(&mut self.event, Event::None) {
            // The interrupt is lost to the exception, as on hardware.
            Event::Exception(exception) => self.deliver_exception(exception),
            other => Err(Undelivered::Event(other)),
        }
    }

    /// Goes to the handler of `vector`. All or nothing.
    pub(crate) fn deliver(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
    ) -> Result<(), Raised> {
        if !self.has_descriptors() {
            self.deliver_real(vector)?;
        } else if self.is_long() {
            self.deliver_long(vector, error, source)?;
        } else {
            self.deliver_protected(vector, error, source)?;
        }
        // The handler's first instruction is not preceded by a trap: TF was cleared on the way.
        self.attend |= attend::NO_TRAP;
        Ok(())
    }

    /// Through a 64-bit gate.
    fn deliver_long(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
    ) -> Result<(), Raised> {
        let external = u32::from(source != Source::Software);
        let gate_error = u32::from(vector) << 3 | 2 | external;
        let offset = u64::from(vector) * 16;
        if offset + 15 > u64::from(self.idtr.limit) {
            return Err(self.throw(Exception::general_protection(gate_error)));
        }
        let low = self.load_system::<B8>(self.idtr.base.wrapping_add(offset))?;
        let high = self.load_system::<B8>(self.idtr.base.wrapping_add(offset + 8))?;
        let kind = low >> 40 & 0x1f;
        if kind != 0xe && kind != 0xf {
            return Err(self.throw(Exception::general_protection(gate_error)));
        }
        let privilege = low >> 45 & 3;
        if source == Source::Software && u64::from(self.cpl) > privilege {
            return Err(self.throw(Exception::general_protection(gate_error & !1)));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.throw(Exception::not_present(gate_error)));
        }
        #[expect(clippy::cast_possible_truncation, reason = "sixteen bits")]
        let selector = (low >> 16) as u16;
        let target = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let code = self.handler_segment(selector, external)?;
        let cpl = if code.kind() & 4 == 0 { code.privilege() } else { self.cpl };
        let stack = low >> 32 & 7;
        let top = if stack != 0 {
            self.task_field::<B8>(28 + 8 * stack, named(self.tr.selector) | external)?
        } else if cpl < self.cpl {
            self.task_field::<B8>(4 + 8 * u64::from(cpl), named(self.tr.selector) | external)?
        } else {
            self.gpr[reg::RSP]
        };
        if !self.is_canonical(top) {
            return Err(self.throw(Exception::stack(external)));
        }
        if !self.is_canonical(target) {
            return Err(self.throw(Exception::general_protection(external)));
        }
        let before = self.cpl;
        let resumes = u64::from(source == Source::Processor) * flags::RF;
        let frame = [
            u64::from(self.segments[seg::SS].selector),
            self.gpr[reg::RSP],
            self.rflags() | if vector == 1 { 0 } else { resumes },
            u64::from(self.segments[seg::CS].selector),
            self.rip,
        ];
        // The new stack is the new privilege's: SMAP and U/S are judged by it.
        self.set_cpl(cpl);
        let mut sp = top & !15;
        let mut pushed = Ok(());
        for value in frame.into_iter().chain(error.map(u64::from)) {
            sp = sp.wrapping_sub(8);
            pushed = self.store_at::<B8>(sp, slot::FLAT_STACK, value);
            if pushed.is_err() {
                break;
            }
        }
        if let Err(raised) = pushed {
            self.set_cpl(before);
            return Err(raised);
        }
        if cpl != before {
            self.set_segment(seg::SS, Segment::null(u16::from(cpl)));
        }
        self.gpr[reg::RSP] = sp;
        let mut rflags = self.rflags() & !(flags::TF | flags::NT | flags::RF | flags::VM);
        if kind == 0xe {
            rflags &= !flags::IF;
        }
        self.set_rflags(rflags);
        let selector = selector & !3 | u16::from(cpl);
        self.set_segment(seg::CS, Segment { selector, ..code });
        self.rip = target;
        Ok(())
    }

    /// The code segment a 64-bit gate leads to.
    fn handler_segment(&mut self, selector: u16, external: u32) -> Result<Segment, Raised> {
        if selector & !3 == 0 {
            return Err(self.throw(Exception::general_protection(external)));
        }
        let error = u32::from(selector & !3) | external;
        let descriptor = match self.descriptor(selector)? {
            Some(descriptor) => descriptor,
            None => return Err(self.throw(Exception::general_protection(error))),
        };
        let code = Segment::from_descriptor(selector, descriptor);
        let is_code = code.kind() & 0x18 == 0x18;
        if !is_code || code.privilege() > self.cpl || !code.is_long() || code.is_big() {
            return Err(self.throw(Exception::general_protection(error)));
        }
        if !code.is_present() {
            return Err(self.throw(Exception::not_present(error)));
        }
        Ok(code)
    }
}
