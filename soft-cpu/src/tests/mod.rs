//! A small guest for tests of instructions: flat memory, long mode, identity mapping by 2 MiB pages.

#![expect(unsafe_code, reason = "tests give the processor memory of their own")]

mod basics;
mod exchanges;
mod hostile;
mod interrupts;
mod kernel;
mod legacy;
mod mmx;
mod modes;
mod paging;
mod privilege;
mod refined;
mod shifts_and_products;
mod sse;
mod strings;
mod system;
mod x87;
mod x87_state;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use iced_x86::code_asm::CodeAssembler;

use crate::cpu::{After, cr0, cr4, efer, reg, seg};
use crate::event::Access;
use crate::guest_memory::{HostPage, PAGE};
use crate::nested::{NestedPage, NestedRefusal, SecondStage};
use crate::segment::Segment;
use crate::surroundings::Surroundings;
use crate::width::B1;
use crate::{CodeMap, Processor, Stop};

/// The first whole page at or after `memory`, which the caller keeps.
pub(crate) fn page_in(memory: *mut u8) -> HostPage {
    let aligned = memory.wrapping_add(memory.align_offset(4096));
    // SAFETY: tests allocate one page more than they use and keep it as long as the page is used.
    unsafe { HostPage::new(aligned) }
}

/// Guest memory: 4 MiB, never freed while the processor lives.
pub(crate) const MEMORY: u64 = 4 << 20;
/// Where [`Guest::run`] puts code.
pub(crate) const CODE: u64 = 0x1_0000;
/// The top of its stack.
pub(crate) const STACK: u64 = 0x9_0000;
/// Room for data.
pub(crate) const DATA: u64 = 0x20_0000;
const ROOT: u64 = 0x1000;

#[derive(Clone)]
pub(crate) struct Memory(Arc<Vec<u8>>);

impl Memory {
    fn new() -> Self {
        Self(Arc::new(vec![0; usize::try_from(MEMORY + PAGE).unwrap()]))
    }

    fn page(&self, gpa: u64) -> HostPage {
        let first = page_in(self.0.as_ptr().cast_mut());
        let address = first.at(0).raw() + gpa / PAGE * PAGE;
        // SAFETY: inside the vector, which the memory's owner keeps.
        unsafe {
            HostPage::new(std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap()))
        }
    }

    pub(crate) fn write(&self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            self.page(at).at(at).store::<B1>(u64::from(*byte));
        }
    }

    pub(crate) fn write64(&self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }

    pub(crate) fn read(&self, gpa: u64, bytes: usize) -> Vec<u8> {
        (gpa..).take(bytes).map(|at| self.page(at).at(at).load::<B1>().to_le_bytes()[0]).collect()
    }

    pub(crate) fn read64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.read(gpa, 8).try_into().unwrap())
    }
}

/// What the outside does to a guest under test.
#[derive(Default)]
pub(crate) struct Outside {
    /// Vectors that wait.
    pub(crate) interrupts: Vec<u8>,
    /// Vectors that were taken.
    pub(crate) acknowledged: Vec<u8>,
    /// Pages that the nested tables refuse, by address.
    pub(crate) absent: BTreeSet<u64>,
    /// Looks at the clock until the knock, if there is to be one.
    pub(crate) patience: Option<u32>,
    /// Instructions and features that were missing.
    pub(crate) missing: Vec<String>,
}

/// Shared between a test and its guest's surroundings.
pub(crate) type World = Arc<parking_lot::Mutex<Outside>>;

struct Flat(Memory, World);

impl SecondStage for Flat {
    fn translate(&mut self, gpa: u64, _access: Access) -> Result<NestedPage, NestedRefusal> {
        if gpa >= MEMORY {
            return Err(NestedRefusal::Device);
        }
        if self.1.lock().absent.contains(&(gpa / PAGE * PAGE)) {
            return Err(NestedRefusal::Violation([false; 3]));
        }
        let frame = u32::try_from(gpa / PAGE).unwrap();
        Ok(NestedPage { host: self.0.page(gpa), frame, writable: true, executable: true })
    }
}

struct Alone {
    time: u64,
    world: World,
    knock: Arc<AtomicU8>,
}

impl Surroundings for Alone {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }
    fn poll(&mut self) -> bool {
        let mut world = self.world.lock();
        if let Some(patience) = &mut world.patience {
            *patience = patience.saturating_sub(1);
            if *patience == 0 {
                self.knock.store(1, Ordering::Relaxed);
            }
        }
        !world.interrupts.is_empty()
    }
    fn acknowledge(&mut self) -> Option<u8> {
        let mut world = self.world.lock();
        let vector = world.interrupts.pop()?;
        world.acknowledged.push(vector);
        Some(vector)
    }
    fn unimplemented(&mut self, rip: u64, name: &str) {
        self.world.lock().missing.push(format!("{name} at {rip:#x}"));
    }
}

/// A processor with memory around it.
pub(crate) struct Guest {
    pub(crate) processor: Processor,
    pub(crate) memory: Memory,
    pub(crate) world: World,
    pub(crate) knock: Arc<AtomicU8>,
}

impl Guest {
    /// In long mode at CPL 0, with interrupts off and no interrupt table.
    pub(crate) fn long() -> Self {
        let memory = Memory::new();
        let frames = usize::try_from(MEMORY / PAGE).unwrap();
        let world = World::default();
        let knock = Arc::new(AtomicU8::new(0));
        let second = Box::new(Flat(memory.clone(), world.clone()));
        let alone = Box::new(Alone { time: 0, world: world.clone(), knock: knock.clone() });
        let mut processor = Processor::new(alone, second, CodeMap::new(frames, 1), 0);
        memory.write64(ROOT, (ROOT + 0x1000) | 7);
        memory.write64(ROOT + 0x1000, (ROOT + 0x2000) | 7);
        for large in 0..512 {
            memory.write64(ROOT + 0x2000 + 8 * large, large << 21 | 0x87);
        }
        let cpu = &mut processor.cpu;
        cpu.cr3 = ROOT;
        cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
        cpu.efer = efer::LME | efer::NXE | efer::SCE;
        cpu.cr0 = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP | cr0::MP;
        let flat = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
        for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            cpu.set_segment(which, flat);
        }
        cpu.set_segment(seg::CS, Segment { selector: 8, attributes: 0xa09b, ..flat });
        cpu.mode_changed();
        cpu.gpr[reg::RDX] = 0;
        cpu.gpr[reg::RSP] = STACK;
        cpu.idtr.limit = 0;
        Self { processor, memory, world, knock }
    }

    /// Runs `code`, placed at [`CODE`]; how it ended. Code that is done says `hlt` or `int3` (with no interrupt
    /// table: a triple fault).
    pub(crate) fn run(&mut self, assemble: impl FnOnce(&mut CodeAssembler)) -> Stop {
        let mut assembler = CodeAssembler::new(64).unwrap();
        assemble(&mut assembler);
        let bytes = assembler.assemble(CODE).unwrap();
        self.run_bytes(&bytes)
    }

    /// The same with bytes.
    pub(crate) fn run_bytes(&mut self, bytes: &[u8]) -> Stop {
        self.memory.write(CODE, bytes);
        self.processor.flush();
        // Not halted any more.
        self.processor.cpu.after = After::Nothing;
        self.processor.cpu.rip = CODE;
        self.go_on()
    }

    /// Runs on.
    pub(crate) fn go_on(&mut self) -> Stop {
        self.processor.run(&self.knock)
    }

    /// A general register.
    pub(crate) fn reg(&self, register: usize) -> u64 {
        self.processor.cpu.gpr[register]
    }
}
