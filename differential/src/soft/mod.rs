//! The software processor: the same sequences, in user mode of a small guest.
//!
//! Reading order: [`guest`] (what it sees around itself) → this file (one run).

mod guest;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use soft_cpu::cpu::{After, Cpu, attend, cr0, cr4, efer, seg};
use soft_cpu::event::Access;
use soft_cpu::nested::{NestedPage, NestedRefusal, SecondStage};
use soft_cpu::segment::{Segment, TableRegister};
use soft_cpu::surroundings::Surroundings;
use soft_cpu::x87_state::Extended;
use soft_cpu::{CodeMap, Processor, Stop};

use iced_x86::CpuidFeature;

use crate::generate::catalogue::Features;
use crate::layout::{
    CODE_FILL, DATA_BYTES, EXIT, GS_BASE, SLOTS, USER_CODE, USER_STACK, code_of_slot,
};
use crate::native::NativeError;
use crate::native::region::with_end;
use crate::state::{Ending, FX_MXCSR, FX_STACK, FX_XMM, FloatingState, Input, Outcome, State};
use crate::templates;
use guest::{FRAMES, GDT, GDT_LIMIT, Guest, HANDLER_STRIDE, IDT, KERNEL, ROOT, STACK_TOP, TSS};

/// Looks at the clock after which a sequence counts as endless; the processor looks every few hundred traces.
const PATIENCE: u32 = 400;

/// What the processor's surroundings tell us.
#[derive(Debug, Default)]
struct Told {
    /// Looks at the clock in this run.
    polls: AtomicU32,
    /// Set to make the processor come out.
    knock: AtomicU8,
    /// An instruction that it does not know.
    unknown: parking_lot::Mutex<Option<String>>,
}

/// The processor's surroundings: nothing ever happens there.
struct Quiet(Arc<Told>);

impl Surroundings for Quiet {
    fn now(&mut self) -> u64 {
        0
    }
    fn poll(&mut self) -> bool {
        if self.0.polls.fetch_add(1, Ordering::Relaxed) > PATIENCE {
            self.0.knock.store(1, Ordering::Relaxed);
        }
        false
    }
    fn unimplemented(&mut self, _rip: u64, name: &str) {
        *self.0.unknown.lock() = Some(name.to_owned());
    }
}

/// Guest-physical memory without a second dimension.
struct Flat(Arc<Guest>);

impl SecondStage for Flat {
    fn translate(&mut self, gpa: u64, access: Access) -> Result<NestedPage, NestedRefusal> {
        let frame = u32::try_from(gpa >> 12).map_err(|_| NestedRefusal::Device)?;
        // Ends the run at the way out and at every handler, whatever instructions the processor knows.
        if access == Access::Execute && self.0.ends.contains(&(frame as usize)) {
            return Err(NestedRefusal::Violation([true, true, false]));
        }
        let host = self.0.pages.page(frame as usize).ok_or(NestedRefusal::Device)?;
        Ok(NestedPage { host, frame, writable: true, executable: true })
    }
}

/// A software processor in its guest.
pub struct Soft {
    processor: Processor,
    guest: Arc<Guest>,
    map: Arc<CodeMap>,
    told: Arc<Told>,
    /// Which bytes of each slot's code are not [`CODE_FILL`].
    written: [(usize, usize); SLOTS],
    /// What the last run's [`Ending::Unknown`] or [`Ending::Stopped`] is about.
    pub remark: String,
}

impl std::fmt::Debug for Soft {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Soft").field("remark", &self.remark).finish_non_exhaustive()
    }
}

impl Soft {
    /// One, in long mode.
    ///
    /// # Errors
    ///
    /// When the host has no memory for its guest.
    pub fn start() -> Result<Self, NativeError> {
        let guest = Arc::new(Guest::new()?);
        for slot in 0..SLOTS {
            guest.put(guest.code_frame(slot), 0, &[CODE_FILL; crate::layout::CODE_BYTES]);
        }
        let told = Arc::new(Told::default());
        let map = CodeMap::new(FRAMES, 1);
        let mut processor = Processor::new(
            Box::new(Quiet(told.clone())),
            Box::new(Flat(guest.clone())),
            map.clone(),
            0,
        );
        let cpu = &mut processor.cpu;
        cpu.cr3 = ROOT;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::UMIP;
        cpu.efer = efer::LME | efer::NXE | efer::SCE;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP | cr0::MP | cr0::AM;
        cpu.gdtr = TableRegister { base: GDT, limit: GDT_LIMIT };
        cpu.idtr = TableRegister { base: IDT, limit: 0xfff };
        cpu.tr = Segment { selector: 0x40, base: TSS, limit: 0x67, attributes: 0x8b };
        cpu.mode_changed();
        Ok(Self { processor, guest, map, told, written: [(0, 0); SLOTS], remark: String::new() })
    }

    /// Writes code where the processor may have decoded other code before.
    fn place(&mut self, input: &Input) {
        let whole = with_end(&input.code);
        let before = std::mem::replace(
            &mut self.written[input.slot],
            (input.entry, input.entry + whole.len()),
        );
        let first = self.guest.code_frame(input.slot);
        self.guest.pages.write(first * 4096 + before.0, &vec![CODE_FILL; before.1 - before.0]);
        self.guest.pages.write(first * 4096 + input.entry, &whole);
        for frame in first..first + 2 {
            self.map.changed(u32::try_from(frame).unwrap_or(0));
        }
    }

    /// Loads the registers, and everything that an earlier run may have changed.
    fn load(&mut self, input: &Input) {
        let cpu = &mut self.processor.cpu;
        let user = Segment { selector: USER_STACK, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
        for which in [seg::ES, seg::DS, seg::FS, seg::GS] {
            cpu.set_segment(which, Segment::null(0));
        }
        cpu.set_segment(seg::GS, Segment { base: GS_BASE, ..Segment::null(0) });
        cpu.set_segment(seg::SS, user);
        cpu.set_segment(seg::CS, Segment { selector: USER_CODE, attributes: 0xa0fb, ..user });
        cpu.set_cpl(3);
        cpu.gpr[..16].copy_from_slice(&input.state.general);
        cpu.set_rflags(input.state.flags);
        cpu.rip = code_of_slot(input.slot) + input.entry as u64;
        cpu.after = After::Nothing;
        cpu.attend &= attend::STEP;
        cpu.cr2 = 0;
        // Half of all sequences run as on one of several processors: locked operations are locked.
        cpu.is_alone = input.slot.is_multiple_of(2);
        load_floating(cpu, &input.state.floating);
    }

    /// Runs one sequence.
    pub fn run(&mut self, input: &Input, outcome: &mut Outcome) {
        let data = &templates::all().pages[input.template % templates::COUNT];
        self.guest.pages.write(self.guest.data * 4096, data);
        self.place(input);
        self.load(input);
        self.told.polls.store(0, Ordering::Relaxed);
        self.told.knock.store(0, Ordering::Relaxed);
        *self.told.unknown.lock() = None;
        let mut stop = Stop::Again;
        for _ in 0..PATIENCE {
            stop = self.processor.run(&self.told.knock);
            if stop != Stop::Again {
                break;
            }
        }
        self.guest.pages.read(self.guest.data * 4096, &mut outcome.data);
        debug_assert_eq!(outcome.data.len(), DATA_BYTES);
        self.store(stop, outcome);
    }

    /// Writes down what is left.
    fn store(&mut self, stop: Stop, outcome: &mut Outcome) {
        let cpu = &self.processor.cpu;
        let state = &mut outcome.state;
        state.general.copy_from_slice(&cpu.gpr[..16]);
        state.flags = cpu.rflags();
        state.rip = cpu.rip;
        store_floating(cpu, &mut state.floating);
        let ends_here = matches!(stop, Stop::Nested(fault) if fault.access == Access::Execute && fault.gva == cpu.rip);
        let handler = cpu.rip.wrapping_sub(KERNEL);
        outcome.ending = match stop {
            Stop::Knocked => Ending::Endless,
            _ if ends_here && cpu.rip == EXIT && cpu.cpl == 3 => Ending::Finished,
            _ if ends_here && handler < 256 * HANDLER_STRIDE && cpu.cpl == 0 => {
                self.exception(handler, state)
            }
            _ => {
                self.remark = format!("{stop:x?}");
                Ending::Stopped
            }
        };
        if let Some(name) = self.told.unknown.lock().take() {
            self.remark = name;
            outcome.ending = Ending::Unknown;
        }
    }

    /// What the handler that was just called finds on its stack.
    fn exception(&self, handler: u64, state: &mut State) -> Ending {
        let vector = u8::try_from(handler / HANDLER_STRIDE).unwrap_or(u8::MAX);
        let top = usize::try_from(STACK_TOP % 4096).unwrap_or(0);
        let pushed = |back: usize| self.guest.word(self.guest.stack, top - 8 * back);
        state.general[4] = pushed(2);
        state.flags = pushed(3);
        state.rip = pushed(5);
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        let error = if has_error { u32::try_from(pushed(6) & 0xffff_ffff).unwrap_or(0) } else { 0 };
        Ending::Exception { vector, error, address: self.processor.cpu.cr2 }
    }
}

/// x87 and SSE from an FXSAVE image.
fn load_floating(cpu: &mut Cpu, image: &FloatingState) {
    cpu.x87.initialise();
    cpu.x87.control = image.word(0);
    cpu.x87.set_status(image.word(2));
    cpu.x87.occupied = image.0[4];
    for number in 0..8 {
        let at = FX_STACK + 16 * number;
        let bytes: [u8; 10] = image.0[at..at + 10].try_into().unwrap_or_default();
        let register = (cpu.x87.top() + number) & 7;
        cpu.x87.registers[register] = Extended::from_bytes(bytes);
    }
    cpu.mxcsr = image.mxcsr();
    for (number, register) in cpu.xmm.iter_mut().enumerate() {
        let at = FX_XMM + 16 * number;
        let bytes: [u8; 16] = image.0[at..at + 16].try_into().unwrap_or_default();
        *register = u128::from_le_bytes(bytes);
    }
}

/// The same back.
fn store_floating(cpu: &Cpu, image: &mut FloatingState) {
    image.put(0, &cpu.x87.control.to_le_bytes());
    image.put(2, &cpu.x87.status().to_le_bytes());
    image.put(4, &[cpu.x87.occupied, 0]);
    for number in 0..8 {
        let register = cpu.x87.registers[(cpu.x87.top() + number) & 7];
        image.put(FX_STACK + 16 * number, &register.to_bytes());
    }
    image.put(FX_MXCSR, &cpu.mxcsr.to_le_bytes());
    for (number, register) in cpu.xmm.iter().enumerate() {
        image.put(FX_XMM + 16 * number, &register.to_le_bytes());
    }
}

/// What the software processor's CPUID must say, beyond the baseline, and what that allows: leaf, register
/// (index into rax, rcx, rdx, rbx), bit. The host must have it, too.
fn optional() -> [(u32, usize, u32, CpuidFeature, bool); 10] {
    use CpuidFeature as F;
    use std::is_x86_feature_detected as host_has;
    [
        (1, 1, 0, F::SSE3, host_has!("sse3")),
        (1, 1, 1, F::PCLMULQDQ, host_has!("pclmulqdq")),
        (1, 1, 9, F::SSSE3, host_has!("ssse3")),
        (1, 1, 13, F::CMPXCHG16B, host_has!("cmpxchg16b")),
        (1, 1, 19, F::SSE4_1, host_has!("sse4.1")),
        (1, 1, 20, F::SSE4_2, host_has!("sse4.2")),
        (1, 1, 22, F::MOVBE, host_has!("movbe")),
        (1, 1, 23, F::POPCNT, host_has!("popcnt")),
        (7, 3, 19, F::ADX, host_has!("adx")),
        (0x8000_0001, 1, 5, F::LZCNT, host_has!("lzcnt")),
    ]
}

impl Soft {
    /// What its CPUID says that user mode can use, as far as the host can, too.
    #[must_use]
    pub fn features(&mut self) -> Features {
        let mut features = Features::baseline();
        let mut outcome = Outcome::blank();
        for (leaf, register, bit, feature, on_host) in optional() {
            let mut state = State::initial();
            state.general[0] = u64::from(leaf);
            let input = Input { slot: 0, entry: 0, code: vec![0x0f, 0xa2], state, template: 0 };
            self.run(&input, &mut outcome);
            if outcome.ending == Ending::Finished
                && outcome.state.general[register] >> bit & 1 == 1
                && on_host
            {
                features.add(feature);
            }
        }
        features
    }
}
