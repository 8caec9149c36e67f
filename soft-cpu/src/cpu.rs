//! The processor's state, and how handlers reach registers and addresses.

use std::sync::Arc;

use crate::code_map::{CodeMap, Reader};
use crate::event::{DeviceAccess, Event, Exception, Raised};
use crate::flags::{self, Flags};
use crate::nested::SecondStage;
use crate::nested_cache::NestedCache;
use crate::op::Op;
use crate::replay::Replay;
use crate::segment::{Segment, TableRegister};
use crate::surroundings::Surroundings;
use crate::system::cpuid::Model;
use crate::system::msr::MemoryTypes;
use crate::tlb::{FetchTlb, Tlb, View};
use crate::walk::WalkCache;
use crate::width::Width;
use crate::x87_state::X87;

/// Slots of [`Cpu::gpr`] behind the sixteen registers.
pub mod slot {
    /// Always 0: no base, no index, a flat segment.
    pub const ZERO: u8 = 16;
    /// The address of the running trace (its offset in the code segment).
    pub const RIP: u8 = 17;
    /// Base of ES; CS, SS, DS, FS and GS follow.
    pub const SEGMENTS: u8 = 18;
    /// Base of FS.
    pub const FS: u8 = SEGMENTS + 4;
    /// Base of GS.
    pub const GS: u8 = SEGMENTS + 5;
    /// Always 0, like [`ZERO`]; a fault there is a stack fault.
    pub const FLAT_STACK: u8 = 24;
}

/// Registers by number.
pub mod reg {
    /// The accumulator.
    pub const RAX: usize = 0;
    /// The counter.
    pub const RCX: usize = 1;
    /// Data.
    pub const RDX: usize = 2;
    /// Base.
    pub const RBX: usize = 3;
    /// The stack pointer.
    pub const RSP: usize = 4;
    /// The frame pointer.
    pub const RBP: usize = 5;
    /// Source of strings.
    pub const RSI: usize = 6;
    /// Destination of strings.
    pub const RDI: usize = 7;
}

/// Segment registers by number, as instructions encode them.
pub mod seg {
    /// Extra.
    pub const ES: usize = 0;
    /// Code.
    pub const CS: usize = 1;
    /// Stack.
    pub const SS: usize = 2;
    /// Data.
    pub const DS: usize = 3;
    /// More.
    pub const FS: usize = 4;
    /// Even more.
    pub const GS: usize = 5;
}

/// CR0.
pub mod cr0 {
    /// Protection enable.
    pub const PE: u64 = 1 << 0;
    /// Monitor coprocessor.
    pub const MP: u64 = 1 << 1;
    /// Emulate coprocessor.
    pub const EM: u64 = 1 << 2;
    /// Task switched.
    pub const TS: u64 = 1 << 3;
    /// Extension type, always set.
    pub const ET: u64 = 1 << 4;
    /// Numeric error.
    pub const NE: u64 = 1 << 5;
    /// Write protect.
    pub const WP: u64 = 1 << 16;
    /// Alignment mask.
    pub const AM: u64 = 1 << 18;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Cache disable.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
}

/// CR4.
pub mod cr4 {
    /// Time-stamp disable.
    pub const TSD: u64 = 1 << 2;
    /// Debugging extensions.
    pub const DE: u64 = 1 << 3;
    /// Page-size extensions.
    pub const PSE: u64 = 1 << 4;
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine check.
    pub const MCE: u64 = 1 << 6;
    /// Global pages.
    pub const PGE: u64 = 1 << 7;
    /// FXSAVE and SSE.
    pub const OSFXSR: u64 = 1 << 9;
    /// SIMD exceptions.
    pub const OSXMMEXCPT: u64 = 1 << 10;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// FSGSBASE instructions.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE.
    pub const OSXSAVE: u64 = 1 << 18;
    /// No execution of user pages by the supervisor.
    pub const SMEP: u64 = 1 << 20;
    /// No access to user pages by the supervisor.
    pub const SMAP: u64 = 1 << 21;
}

/// EFER.
pub mod efer {
    /// System-call extensions.
    pub const SCE: u64 = 1 << 0;
    /// Long mode enable.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute enable.
    pub const NXE: u64 = 1 << 11;
}

/// How wide code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    /// Real mode, 16-bit segments.
    Bits16,
    /// 32-bit segments.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Bits of [`Cpu::attend`]: what must be looked at between two traces.
pub mod attend {
    /// An interrupt waits; take it when IF is set.
    pub const INTERRUPT: u32 = 1 << 0;
    /// Nothing may be taken before one more instruction (STI, MOV SS).
    pub const SHADOW: u32 = 1 << 1;
    /// [`super::Cpu::after`] says what the last instruction still wants.
    pub const AFTER: u32 = 1 << 2;
    /// TF is set: trap after each instruction.
    pub const STEP: u32 = 1 << 3;
    /// An instruction was done with TF set: its trap waits.
    pub const TRAP: u32 = 1 << 4;
    /// The last instruction is not followed by a trap, whatever TF was.
    pub const NO_TRAP: u32 = 1 << 5;
    /// The next instruction runs alone: it stores into its own page, or is done again with a device's answer.
    pub const ALONE: u32 = 1 << 6;
    /// Every use of a translation is checked.
    pub const CHECKED: u32 = 1 << 7;
    /// Any of these: traces that were found before are not used.
    pub const ONE_BY_ONE: u32 = STEP | ALONE | CHECKED;
}

/// What an instruction that is done still wants from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    #[default]
    Nothing,
    /// To sleep until an interrupt (`hlt`).
    Halt,
    /// A port is written.
    PortWrite(DeviceAccess),
    /// A port is read into the accumulator.
    PortRead(DeviceAccess),
}

/// Registers of the model that only `rdmsr` and `wrmsr` and their users see.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelSpecific {
    /// STAR.
    pub star: u64,
    /// LSTAR.
    pub lstar: u64,
    /// CSTAR.
    pub cstar: u64,
    /// SFMASK.
    pub sfmask: u64,
    /// The other GS base.
    pub kernel_gs_base: u64,
    /// SYSENTER_CS.
    pub sysenter_cs: u64,
    /// SYSENTER_ESP.
    pub sysenter_esp: u64,
    /// SYSENTER_EIP.
    pub sysenter_eip: u64,
    /// TSC_AUX.
    pub tsc_aux: u64,
    /// What was written to the time-stamp counter beyond its own course.
    pub tsc_offset: u64,
    /// PAT.
    pub pat: u64,
    /// MISC_ENABLE.
    pub misc_enable: u64,
    /// SPEC_CTRL.
    pub speculation_control: u64,
    /// Memory type ranges.
    pub memory_types: MemoryTypes,
}

/// The non-maskable interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonMaskable {
    /// One waits.
    pub is_pending: bool,
    /// One is being handled: until `iret` no other is taken.
    pub is_blocked: bool,
}

/// One processor's state. Handlers change it; nobody else sees it while it runs.
pub struct Cpu {
    /// The sixteen registers, then [`slot`]s: what an address may be made of. The rest is never used: with as many
    /// as a byte can number, no index has to be checked.
    pub gpr: [u64; 256],
    /// The next instruction; true between two traces.
    pub rip: u64,
    /// The arithmetic flags.
    pub flags: Flags,
    /// RFLAGS without them.
    pub system_flags: u64,
    /// Why the last instruction was not done.
    pub event: Event,
    /// What the last instruction still wants.
    pub after: After,
    /// What must be looked at between two traces: [`attend`].
    pub attend: u32,
    /// Current privilege level, 0 to 3.
    pub cpl: u8,
    /// How wide code is.
    pub code_size: CodeSize,
    /// The only processor of its guest: nobody sees an access that is not atomic.
    pub is_alone: bool,
    /// ES, CS, SS, DS, FS, GS. Change them with [`Cpu::set_segment`].
    pub segments: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// CR0. After a change: [`Cpu::mode_changed`].
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3. After a change: [`Cpu::flush_translations`].
    pub cr3: u64,
    /// CR4. After a change: [`Cpu::mode_changed`].
    pub cr4: u64,
    /// EFER. After a change: [`Cpu::mode_changed`].
    pub efer: u64,
    /// XCR0.
    pub xcr0: u64,
    /// PAE's four page-directory pointers, loaded with CR3.
    pub pdptes: [u64; 4],
    /// DR0 to DR7.
    pub dr: [u64; 8],
    /// Other model-specific registers.
    pub msr: ModelSpecific,
    /// SSE registers.
    pub xmm: [u128; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// The x87 unit; its registers are the MMX registers too.
    pub x87: X87,
    /// What the last slow load of 16 bytes found.
    pub(crate) loaded128: u128,
    /// Whether SSE instructions are refused: follows from CR0 and CR4 ([`Cpu::mode_changed`],
    /// [`Cpu::sse_changed`]).
    pub(crate) refuses_sse: bool,
    /// Which processor it is: what `cpuid` says of it. By default the guest's processors are numbered from 0.
    pub model: Model,
    /// The non-maskable interrupt. See [`crate::Processor::raise_nmi`].
    pub nmi: NonMaskable,
    /// An interrupt that was acknowledged and is not delivered yet: its delivery met a nested fault.
    pub injected: Option<u8>,
    /// Instructions done.
    pub retired: u64,
    /// Its APIC and clock.
    pub surroundings: Box<dyn Surroundings>,
    /// The nested tables' reader.
    pub second_stage: Box<dyn SecondStage>,
    pub(crate) nested: NestedCache,
    pub(crate) walked: WalkCache,
    pub(crate) reads: Tlb,
    pub(crate) writes: Tlb,
    pub(crate) fetches: FetchTlb,
    pub(crate) code: Reader,
    pub(crate) replay: Replay,
    /// Frame of the running trace; stores to it end the trace first. `u32::MAX`: none (the instruction runs alone).
    pub(crate) own_frame: u32,
    /// Moves on whenever an address may lead to other code than before.
    pub(crate) fetch_epoch: u32,
    /// [`Cpu::code_context`].
    context: u32,
    /// Addresses that large guest pages translate, cached in 4 KiB pieces since the last flush: dropping one
    /// of them drops all.
    pub(crate) large: Option<(u64, u64)>,
    /// The checking mode's own translations.
    pub(crate) checker: Option<Box<crate::checker::Checker>>,
    /// The access under way is to a system structure, not an instruction's operand: AC does not excuse it.
    pub(crate) is_implicit: bool,
}

impl Cpu {
    /// As after power-on, at the reset vector (Intel SDM vol. 3, "Processor State After Reset").
    #[must_use]
    pub fn new(
        surroundings: Box<dyn Surroundings>,
        second_stage: Box<dyn SecondStage>,
        code: Arc<CodeMap>,
        own: usize,
    ) -> Self {
        let is_alone = code.processors() == 1;
        let mut cpu = Self {
            gpr: [0; 256],
            rip: 0xfff0,
            flags: Flags::from_bits(0),
            system_flags: 2,
            event: Event::None,
            after: After::Nothing,
            attend: 0,
            cpl: 0,
            code_size: CodeSize::Bits16,
            is_alone,
            segments: [Segment::real(0); 6],
            ldtr: Segment::null_system(0x82),
            tr: Segment::null_system(0x8b),
            gdtr: TableRegister { base: 0, limit: 0xffff },
            idtr: TableRegister { base: 0, limit: 0xffff },
            cr0: cr0::ET | cr0::NW | cr0::CD,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            pdptes: [0; 4],
            dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
            msr: ModelSpecific { pat: 0x0007_0406_0007_0406, misc_enable: 1, ..Default::default() },
            xmm: [0; 16],
            mxcsr: 0x1f80,
            x87: X87::new(),
            loaded128: 0,
            refuses_sse: true,
            model: Model {
                processors: u32::try_from(code.processors()).unwrap_or(u32::MAX),
                apic_id: u32::try_from(own).unwrap_or(u32::MAX),
            },
            nmi: NonMaskable::default(),
            injected: None,
            retired: 0,
            surroundings,
            second_stage,
            nested: NestedCache::new(),
            walked: WalkCache::new(),
            reads: Tlb::new(),
            writes: Tlb::new(),
            fetches: FetchTlb::new(),
            code: Reader::new(code, own),
            replay: Replay::default(),
            own_frame: u32::MAX,
            fetch_epoch: 1,
            context: 0,
            large: None,
            checker: None,
            is_implicit: false,
        };
        cpu.reset();
        cpu
    }

    /// The state after INIT, which is that after power-on but for the floating-point and model-specific
    /// registers and the cache bits of CR0 (Intel SDM vol. 3, "Processor State After Reset").
    pub fn reset(&mut self) {
        self.gpr = [0; 256];
        self.gpr[reg::RDX] = 0x600;
        self.rip = 0xfff0;
        self.set_rflags(0);
        self.event = Event::None;
        self.after = After::Nothing;
        self.attend &= attend::CHECKED;
        self.injected = None;
        self.nmi = NonMaskable::default();
        self.replay.retire();
        self.ldtr = Segment::null_system(0x82);
        self.tr = Segment::null_system(0x8b);
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.cr0 = self.cr0 & (cr0::NW | cr0::CD) | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        self.cpl = 0;
        for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            self.set_segment(which, Segment::real(0));
        }
        self.set_segment(seg::CS, Segment { base: 0xffff_0000, ..Segment::real_code(0xf000) });
        self.mode_changed();
    }

    // ---- registers -----------------------------------------------------------------------

    /// Where a register of `W` bytes is. Only bytes have names for a part of one that is not the lowest.
    #[inline(always)]
    fn slot<W: Width>(register: u8) -> u8 {
        if W::BYTES == 1 { register & 31 } else { register }
    }

    /// Reads a register of `W` bytes. For bytes, slots 32 to 35 are AH, CH, DH and BH.
    #[inline(always)]
    #[must_use]
    pub fn get<W: Width>(&self, register: u8) -> u64 {
        let whole = self.gpr[usize::from(Self::slot::<W>(register))];
        if W::BYTES == 1 { whole >> (register >> 2 & 8) & 0xff } else { whole & W::MASK }
    }

    /// Writes a register: 32 bits clear the upper half, 8 and 16 leave the rest.
    #[inline(always)]
    pub fn set<W: Width>(&mut self, register: u8, value: u64) {
        let whole = &mut self.gpr[usize::from(Self::slot::<W>(register))];
        *whole = match W::BYTES {
            8 => value,
            4 => value & W::MASK,
            2 => *whole & !W::MASK | value & W::MASK,
            _ => {
                let shift = register >> 2 & 8;
                *whole & !(0xff << shift) | (value & 0xff) << shift
            }
        };
    }

    /// RFLAGS, whole.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.bits()
    }

    /// Sets RFLAGS, whole; the reserved bits are as they must be.
    pub fn set_rflags(&mut self, bits: u64) {
        const SYSTEM: u64 = 0x3f_7700 & !flags::ARITHMETIC;
        let before = self.system_flags;
        self.flags = Flags::from_bits(bits);
        self.system_flags = bits & SYSTEM | 2;
        if self.system_flags & flags::TF == 0 {
            self.attend &= !attend::STEP;
        } else {
            self.attend |= attend::STEP;
        }
        if self.system_flags & !before & flags::IF != 0 {
            self.attend |= attend::INTERRUPT;
        }
        if (before ^ self.system_flags) & flags::AC != 0 {
            self.view_changed();
        }
    }

    /// Whether a system flag is set.
    #[inline(always)]
    #[must_use]
    pub fn has(&self, flag: u64) -> bool {
        self.system_flags & flag != 0
    }

    /// I/O privilege level.
    #[must_use]
    pub fn iopl(&self) -> u8 {
        u8::try_from(self.system_flags >> 12 & 3).expect("two bits")
    }

    // ---- addresses -----------------------------------------------------------------------

    /// The linear address of an instruction's memory operand.
    #[inline(always)]
    #[must_use]
    pub fn address(&self, op: &Op) -> u64 {
        self.based(op, self.offset(op))
    }

    /// Its offset in the segment (what `lea` computes).
    #[inline(always)]
    #[must_use]
    pub fn offset(&self, op: &Op) -> u64 {
        let index = self.gpr[usize::from(op.index)] << (op.scale & 3);
        let sum = self.gpr[usize::from(op.base)]
            .wrapping_add(index)
            .wrapping_add(i64::from(op.disp).cast_unsigned());
        sum << (op.cut & 63) >> (op.cut & 63)
    }

    /// The linear address of `offset` in the operand's segment.
    #[inline(always)]
    #[must_use]
    pub fn based(&self, op: &Op, offset: u64) -> u64 {
        self.gpr[usize::from(op.segment)].wrapping_add(offset)
    }

    // ---- modes ---------------------------------------------------------------------------

    /// Whether long mode is active.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Whether segments are descriptors.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Whether this is virtual-8086 mode.
    #[must_use]
    pub fn is_virtual_8086(&self) -> bool {
        self.has(flags::VM)
    }

    /// Sets a segment register and what follows from it: the base in its slot, and for CS how wide code is, for
    /// SS how privileged it is. Checks nothing.
    pub fn set_segment(&mut self, which: usize, segment: Segment) {
        if which == seg::CS && self.segments[seg::CS].base != segment.base {
            // The same instruction pointer is another address now.
            self.flush_fetches();
        }
        self.segments[which] = segment;
        self.gpr[usize::from(slot::SEGMENTS) + which] = segment.base;
        match which {
            seg::CS => self.code_size_changed(),
            seg::SS => self.context_changed(),
            _ => {}
        }
    }

    /// Sets the privilege level.
    pub fn set_cpl(&mut self, cpl: u8) {
        self.cpl = cpl & 3;
        self.view_changed();
    }

    fn code_size_changed(&mut self) {
        let code = &self.segments[seg::CS];
        self.code_size = match (self.is_protected() && !self.is_virtual_8086(), self.is_long()) {
            (false, _) => CodeSize::Bits16,
            (true, true) if code.is_long() => CodeSize::Bits64,
            (true, _) if code.is_big() => CodeSize::Bits32,
            (true, _) => CodeSize::Bits16,
        };
        self.context_changed();
    }

    /// Call after any change of CR0, CR4 or EFER: forgets every translation, and works out what follows.
    pub fn mode_changed(&mut self) {
        let long = self.efer & efer::LME != 0 && self.cr0 & cr0::PG != 0;
        self.efer = if long { self.efer | efer::LMA } else { self.efer & !efer::LMA };
        self.code_size_changed();
        self.sse_changed();
        self.view_changed();
        self.flush_translations();
    }

    /// Call after a change of nothing but CR0.TS (`clts`).
    pub fn sse_changed(&mut self) {
        self.refuses_sse = self.cr0 & (cr0::EM | cr0::TS) != 0 || self.cr4 & cr4::OSFXSR == 0;
    }

    /// Call after a change of CPL or AC: who sees which pages.
    pub fn view_changed(&mut self) {
        let trespasses = self.cr4 & cr4::SMAP != 0 && self.has(flags::AC);
        let view = match (self.cpl, trespasses) {
            (3, _) if self.is_strict() => View::Strict,
            (3, _) => View::User,
            (_, true) => View::Trespasser,
            (_, false) => View::Supervisor,
        };
        self.reads.see_as(view);
        self.writes.see_as(view);
        self.context_changed();
    }

    /// Whether accesses that are not aligned raise #AC (Intel SDM vol. 3, "Alignment Check Exception").
    pub(crate) fn is_strict(&self) -> bool {
        self.cpl == 3 && self.has(flags::AC) && self.cr0 & cr0::AM != 0
    }

    /// What decoded instructions depend on besides their bytes: part of a trace's key.
    #[must_use]
    pub(crate) fn code_key(&self) -> u32 {
        let size = match self.code_size {
            CodeSize::Bits16 => 0,
            CodeSize::Bits32 => 1,
            CodeSize::Bits64 => 2,
        };
        size | u32::from(self.segments[seg::SS].is_big()) << 2
    }

    /// What addresses of instructions depend on besides CR3: compared with [`Cpu::fetch_epoch`] in it.
    #[inline(always)]
    #[must_use]
    pub(crate) fn code_context(&self) -> u32 {
        self.context
    }

    /// Call after any change of what it is made of.
    fn context_changed(&mut self) {
        self.context = self.fetch_epoch << 4 | self.code_key() << 1 | u32::from(self.cpl == 3);
    }

    // ---- events --------------------------------------------------------------------------

    /// Ends the running instruction: it was not done, for this reason.
    #[cold]
    pub fn raise(&mut self, event: Event) -> Raised {
        self.event = event;
        Raised
    }

    /// Ends it with an exception for the guest.
    #[cold]
    pub fn throw(&mut self, exception: Exception) -> Raised {
        self.raise(Event::Exception(exception))
    }

    /// Ends it with #GP(0).
    #[cold]
    pub fn protect(&mut self) -> Raised {
        self.throw(Exception::general_protection(0))
    }

    /// Forgets every guest translation (but not the nested ones).
    pub fn flush_translations(&mut self) {
        self.reads.flush();
        self.writes.flush();
        self.flush_fetches();
        self.large = None;
        if let Some(checker) = &mut self.checker {
            checker.forget();
        }
    }

    pub(crate) fn flush_fetches(&mut self) {
        self.walked.flush();
        // When epochs begin anew, what remembers them is emptied (the traces' table by itself).
        self.fetch_epoch = self.fetch_epoch.wrapping_add(1) & 0x0fff_ffff;
        if self.fetch_epoch == 0 {
            self.fetches.flush();
        }
        self.context_changed();
    }

    /// Forgets the translation of one page (`invlpg`).
    pub fn flush_page(&mut self, address: u64) {
        if self.large.is_some_and(|(first, last)| (first..=last).contains(&address)) {
            return self.flush_translations();
        }
        self.reads.flush_page(address);
        self.writes.flush_page(address);
        self.flush_fetches();
        if let Some(checker) = &mut self.checker {
            checker.forget_page(address);
        }
    }
}
