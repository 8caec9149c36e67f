//! The x87 unit's registers, and the MMX registers that are the same (Intel SDM vol. 1, "x87 FPU Execution
//! Environment" and "Programming with Intel MMX Technology").
//!
//! The segment selectors of the last instruction and operand are not kept: they read as 0, which a processor
//! announces in CPUID leaf 7, EBX bit 13 ([`SELECTORS_ARE_ZERO`]).

use crate::cpu::{Cpu, cr0};
use crate::event::{Exception, Raised};

/// What XCR0 may hold: x87 and SSE state. CPUID leaf 0xD, subleaf 0, EDX:EAX.
pub const XCR0_SUPPORTED: u64 = 0b11;
/// Bytes of an XSAVE area of that state: the legacy region and the header. CPUID leaf 0xD, subleaf 0, EBX and ECX.
pub const XSAVE_AREA_BYTES: u32 = 576;
/// Extensions of XSAVE: XSAVEOPT. CPUID leaf 0xD, subleaf 1, EAX.
pub const XSAVE_EXTENSIONS: u32 = 1;
/// CPUID leaf 7, subleaf 0, EBX: the x87 unit's code and data selectors always read as 0.
pub const SELECTORS_ARE_ZERO: u32 = 1 << 13;
/// The bits that MXCSR may hold; what FXSAVE stores as MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;

/// Bits of the status word.
pub(crate) mod status {
    /// Invalid operation.
    pub(crate) const IE: u16 = 1 << 0;
    /// Overflow.
    pub(crate) const OE: u16 = 1 << 3;
    /// Underflow.
    pub(crate) const UE: u16 = 1 << 4;
    /// The six exceptions.
    pub(crate) const EXCEPTIONS: u16 = 0x3f;
    /// Stack fault.
    pub(crate) const SF: u16 = 1 << 6;
    /// An unmasked exception is flagged: both ES and B.
    pub(crate) const PENDING: u16 = 0x8080;
    /// Where TOP is.
    pub(crate) const TOP_SHIFT: u32 = 11;
}

/// An 80-bit number, as it lies in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extended {
    /// With its integer bit.
    pub significand: u64,
    /// Sign (bit 15) and biased exponent.
    pub exponent: u16,
}

impl Extended {
    /// From ten bytes, lowest first.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self {
            significand: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            exponent: u16::from_le_bytes([i, j]),
        }
    }

    /// To ten bytes, lowest first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 10] {
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.significand.to_le_bytes());
        bytes[8..].copy_from_slice(&self.exponent.to_le_bytes());
        bytes
    }

    /// Its two bits in the full tag word, if the register is not empty: 0 valid, 1 zero, 2 special.
    fn tag(self) -> u16 {
        match (self.exponent & 0x7fff, self.significand) {
            (0, 0) => 1,
            (0 | 0x7fff, _) => 2,
            (_, significand) if significand >> 63 == 0 => 2,
            _ => 0,
        }
    }
}

/// The unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X87 {
    /// R0 to R7; ST(i) is R(TOP + i).
    pub registers: [Extended; 8],
    /// Control word.
    pub control: u16,
    /// Status word; change it with [`X87::set_status`].
    status: u16,
    /// One bit for each of R0 to R7: not empty. The abridged tag word of FXSAVE.
    pub occupied: u8,
    /// The last instruction's opcode: 11 bits.
    pub opcode: u16,
    /// Where the last instruction is: its offset in the code segment.
    pub instruction: u64,
    /// Where its memory operand is: its offset in its segment.
    pub data: u64,
}

impl X87 {
    /// As after power-on (Intel SDM vol. 3, "Processor State After Reset").
    #[must_use]
    pub fn new() -> Self {
        Self {
            registers: [Extended::default(); 8],
            control: 0x40,
            status: 0,
            // Tag word 0x5555: all zero, none empty.
            occupied: 0xff,
            opcode: 0,
            instruction: 0,
            data: 0,
        }
    }

    /// As after FNINIT: the registers keep what they hold, but are empty.
    pub fn initialise(&mut self) {
        self.control = 0x37f;
        self.status = 0;
        self.occupied = 0;
        self.opcode = 0;
        self.instruction = 0;
        self.data = 0;
    }

    /// Which register ST(0) is.
    #[inline(always)]
    #[must_use]
    pub fn top(&self) -> usize {
        usize::from(self.status >> status::TOP_SHIFT & 7)
    }

    /// Moves TOP.
    pub fn set_top(&mut self, top: usize) {
        let top = u16::try_from(top & 7).expect("three bits");
        self.status = self.status & !(7 << status::TOP_SHIFT) | top << status::TOP_SHIFT;
    }

    /// Status word.
    #[inline(always)]
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Sets the status word; whether an exception is pending follows from the control word.
    pub fn set_status(&mut self, bits: u16) {
        self.status = bits;
        self.settle();
    }

    /// Sets the control word. Reserved bits are as processors have them: bit 6 set, the others clear.
    pub fn set_control(&mut self, bits: u16) {
        self.control = bits & 0x1f3f | 0x40;
        self.settle();
    }

    /// Works out ES and B.
    fn settle(&mut self) {
        if self.status & !self.control & status::EXCEPTIONS == 0 {
            self.status &= !status::PENDING;
        } else {
            self.status |= status::PENDING;
        }
    }

    /// Whether the next waiting instruction raises #MF.
    #[inline(always)]
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.status & 0x80 != 0
    }

    /// The full tag word: two bits for each of R0 to R7, 3 for empty.
    #[must_use]
    pub fn tags(&self) -> u16 {
        (0..8).fold(0, |tags, index| {
            let empty = self.occupied >> index & 1 == 0;
            tags | if empty { 3 } else { self.registers[index].tag() } << (2 * index)
        })
    }

    /// Sets which registers are empty from a full tag word; what else it says is known anyway.
    pub fn set_tags(&mut self, tags: u16) {
        self.occupied = (0..8)
            .fold(0, |occupied, index| occupied | u8::from(tags >> (2 * index) & 3 != 3) << index);
    }

    /// ST(i).
    #[must_use]
    pub fn stack(&self, index: usize) -> Extended {
        self.registers[(self.top() + index) & 7]
    }

    /// Sets ST(i), but not its tag.
    pub fn set_stack(&mut self, index: usize, value: Extended) {
        self.registers[(self.top() + index) & 7] = value;
    }
}

impl Default for X87 {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// An MMX register.
    #[inline(always)]
    #[must_use]
    pub fn mmx(&self, register: u8) -> u64 {
        self.x87.registers[usize::from(register & 7)].significand
    }

    /// Sets an MMX register, and what every MMX instruction does besides ([`Cpu::touch_mmx`]).
    #[inline(always)]
    pub fn set_mmx(&mut self, register: u8, value: u64) {
        self.x87.registers[usize::from(register & 7)] =
            Extended { significand: value, exponent: 0xffff };
        self.touch_mmx();
    }

    /// What every MMX instruction but EMMS does to the x87 unit, also one that only reads: TOP becomes 0
    /// and no register is empty.
    #[inline(always)]
    pub fn touch_mmx(&mut self) {
        self.x87.set_top(0);
        self.x87.occupied = 0xff;
    }

    /// Whether an MMX instruction may be done (also one that mixes MMX and SSE registers): #UD with CR0.EM, #NM with
    /// CR0.TS, #MF with an x87 exception pending.
    #[inline(always)]
    pub fn check_mmx(&mut self) -> Result<(), Raised> {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 || self.x87.is_pending() {
            return Err(self.refuse_mmx());
        }
        Ok(())
    }

    #[cold]
    fn refuse_mmx(&mut self) -> Raised {
        self.throw(if self.cr0 & cr0::EM != 0 {
            Exception::UNDEFINED
        } else if self.cr0 & cr0::TS != 0 {
            Exception::NO_DEVICE
        } else {
            Exception::FLOATING_POINT
        })
    }

    /// Whether an x87 instruction may be done that does not look at pending exceptions: #NM with CR0.EM or
    /// CR0.TS.
    #[inline(always)]
    pub(crate) fn check_x87(&mut self) -> Result<(), Raised> {
        if self.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.throw(Exception::NO_DEVICE));
        }
        Ok(())
    }

    /// The same for one that looks: also #MF. With CR0.NE clear a PC would signal by an interrupt line
    /// instead (FERR#); here it is #MF all the same.
    #[inline(always)]
    pub(crate) fn check_x87_waiting(&mut self) -> Result<(), Raised> {
        self.check_x87()?;
        if self.x87.is_pending() {
            return Err(self.throw(Exception::FLOATING_POINT));
        }
        Ok(())
    }
}
