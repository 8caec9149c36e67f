//! Segment registers and the tables behind them (Intel SDM vol. 3, "Protected-Mode Memory Management" and
//! "Protection").

use crate::cpu::{CodeSize, Cpu, seg};
use crate::event::{Exception, Raised};
use crate::op::Done;
use crate::segment::Segment;
use crate::width::{B1, B8};

/// Makes an exception of an error code.
pub(crate) type Coded = fn(u32) -> Exception;

/// A selector as an error code: without its privilege.
pub(crate) fn named(selector: u16) -> u32 {
    u32::from(selector & !3)
}

/// Whether a selector leads nowhere.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A selector's privilege.
pub(crate) fn requested(selector: u16) -> u8 {
    selector.to_le_bytes()[0] & 3
}

impl Segment {
    /// Whether it is code (and not a system segment).
    pub(crate) const fn is_code(&self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    /// Whether it is data that may be written.
    pub(crate) const fn is_writable_data(&self) -> bool {
        self.kind() & 0x1a == 0x12
    }

    /// Whether it is data, or code that may be read.
    pub(crate) const fn is_readable(&self) -> bool {
        self.kind() & 0x18 == 0x10 || self.kind() & 0x1a == 0x1a
    }

    /// Whether it is code that runs at its caller's privilege.
    pub(crate) const fn is_conforming(&self) -> bool {
        self.kind() & 0x1c == 0x1c
    }
}

impl Cpu {
    /// Fails with #GP(0) unless the privilege level is 0.
    #[inline(always)]
    pub(crate) fn need_supervisor(&mut self) -> Done {
        if self.cpl == 0 { Ok(()) } else { Err(self.protect()) }
    }

    /// Whether segments are descriptors here: protected mode, and no virtual-8086 mode.
    pub(crate) fn has_descriptors(&self) -> bool {
        self.is_protected() && !self.is_virtual_8086()
    }

    /// Where a descriptor is; `None` beyond its table.
    pub(crate) fn descriptor_address(&self, selector: u16) -> Option<u64> {
        let offset = u64::from(selector & !7);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if self.ldtr.is_present() && !is_null(self.ldtr.selector) {
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            return None;
        };
        (offset + 7 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The eight bytes of a descriptor; `None` beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Option<u64>, Raised> {
        match self.descriptor_address(selector) {
            Some(address) => self.load_system::<B8>(address).map(Some),
            None => Ok(None),
        }
    }

    /// The descriptor, or an exception that names the selector (`external` is its lowest bit).
    pub(crate) fn need_descriptor(
        &mut self,
        selector: u16,
        fault: Coded,
        external: u32,
    ) -> Result<u64, Raised> {
        match self.descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.throw(fault(named(selector) | external))),
        }
    }

    /// The upper eight bytes of a 16-byte descriptor of long mode; `None` beyond its table.
    pub(crate) fn descriptor_top(&mut self, selector: u16) -> Result<Option<u64>, Raised> {
        match (self.descriptor_address(selector), self.descriptor_address(selector.wrapping_add(8)))
        {
            (Some(low), Some(high)) if high > low => self.load_system::<B8>(high).map(Some),
            _ => Ok(None),
        }
    }

    /// Sets the accessed bit of a code or data descriptor that was loaded.
    pub(crate) fn mark_accessed(&mut self, segment: Segment) -> Result<Segment, Raised> {
        if segment.attributes & 1 != 0 {
            return Ok(segment);
        }
        let attributes = segment.attributes | 1;
        if let Some(address) = self.descriptor_address(segment.selector) {
            self.store_system::<B1>(address.wrapping_add(5), u64::from(attributes & 0xff))?;
        }
        Ok(Segment { attributes, ..segment })
    }

    /// Loads a segment register other than CS, as `mov` and `pop` do. All or nothing.
    pub(crate) fn load_segment(&mut self, which: usize, selector: u16) -> Done {
        let segment = if !self.has_descriptors() {
            self.real_segment(which, selector)
        } else if which == seg::SS {
            self.mov_stack_segment(selector)?
        } else {
            self.data_segment(selector)?
        };
        self.set_segment(which, segment);
        Ok(())
    }

    /// Real mode changes the base and keeps the limit and the size (Intel SDM vol. 3, "Switching Back to
    /// Real-Address Mode").
    pub(crate) fn real_segment(&self, which: usize, selector: u16) -> Segment {
        let before = self.segments[which];
        let kind = if which == seg::CS { 0x9b } else { 0x93 };
        Segment {
            selector,
            base: u64::from(selector) << 4,
            attributes: before.attributes & 0xf000 | kind,
            ..before
        }
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment, Raised> {
        if is_null(selector) {
            return Ok(Segment::null(selector));
        }
        let descriptor = self.need_descriptor(selector, Exception::general_protection, 0)?;
        let segment = Segment::from_descriptor(selector, descriptor);
        let privilege = self.cpl.max(requested(selector));
        if !segment.is_readable() || !segment.is_conforming() && privilege > segment.privilege() {
            return Err(self.throw(Exception::general_protection(named(selector))));
        }
        if !segment.is_present() {
            return Err(self.throw(Exception::not_present(named(selector))));
        }
        self.mark_accessed(segment)
    }

    fn mov_stack_segment(&mut self, selector: u16) -> Result<Segment, Raised> {
        if is_null(selector) {
            let allowed = self.code_size == CodeSize::Bits64
                && self.cpl < 3
                && requested(selector) == self.cpl;
            return if allowed { Ok(Segment::null(selector)) } else { Err(self.protect()) };
        }
        self.stack_segment(selector, self.cpl, Exception::general_protection, 0)
    }

    /// A stack segment for code at privilege `cpl`; `fault` is raised where it is none. The selector is not null.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        fault: Coded,
        external: u32,
    ) -> Result<Segment, Raised> {
        let descriptor = self.need_descriptor(selector, fault, external)?;
        let segment = Segment::from_descriptor(selector, descriptor);
        let suits =
            requested(selector) == cpl && segment.privilege() == cpl && segment.is_writable_data();
        if !suits {
            return Err(self.throw(fault(named(selector) | external)));
        }
        if !segment.is_present() {
            return Err(self.throw(Exception::stack(named(selector) | external)));
        }
        self.mark_accessed(segment)
    }

    // ---- LDTR and TR ------------------------------------------------------------------------

    /// A system segment of the GDT: its descriptor's type must be in `kinds`.
    fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<Segment, Raised> {
        if selector & 4 != 0 {
            return Err(self.throw(Exception::general_protection(named(selector))));
        }
        let descriptor = self.need_descriptor(selector, Exception::general_protection, 0)?;
        let mut segment = Segment::from_descriptor(selector, descriptor);
        if !kinds.contains(&segment.kind()) {
            return Err(self.throw(Exception::general_protection(named(selector))));
        }
        if !segment.is_present() {
            return Err(self.throw(Exception::not_present(named(selector))));
        }
        if self.is_long() {
            // The upper half's own type field must be 0 (Intel SDM vol. 3, "Segment Descriptor Tables in IA-32e Mode").
            let top = self.descriptor_top(selector)?.filter(|top| top >> 40 & 0x1f == 0);
            let base = top.map(|top| segment.base | top << 32);
            match base.filter(|base| self.is_canonical(*base)) {
                Some(base) => segment.base = base,
                None => return Err(self.throw(Exception::general_protection(named(selector)))),
            }
        }
        Ok(segment)
    }

    /// `lldt`.
    pub(crate) fn load_local_table(&mut self, selector: u16) -> Done {
        self.ldtr = if is_null(selector) {
            Segment { selector, ..Segment::null_system(0) }
        } else {
            self.system_segment(selector, &[2])?
        };
        Ok(())
    }

    /// `ltr`: marks the task busy.
    pub(crate) fn load_task(&mut self, selector: u16) -> Done {
        if is_null(selector) {
            return Err(self.protect());
        }
        // In long mode an available 16-bit task state has no meaning.
        let kinds: &[u8] = if self.is_long() { &[9] } else { &[1, 9] };
        let segment = self.system_segment(selector, kinds)?;
        let attributes = segment.attributes | 2;
        if let Some(address) = self.descriptor_address(selector) {
            self.store_system::<B1>(address.wrapping_add(5), u64::from(attributes & 0xff))?;
        }
        self.tr = Segment { attributes, ..segment };
        Ok(())
    }

    // ---- questions about descriptors ---------------------------------------------------------

    /// The descriptor that `lar`, `lsl`, `verr` and `verw` may look at: `None` when they may not.
    pub(crate) fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Segment>, Raised> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(descriptor) = self.descriptor(selector)? else { return Ok(None) };
        let segment = Segment::from_descriptor(selector, descriptor);
        let privilege = self.cpl.max(requested(selector));
        let visible = segment.is_conforming() || privilege <= segment.privilege();
        Ok(visible.then_some(segment))
    }
}
