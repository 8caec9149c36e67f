//! Random code in random states, for as long as one likes: nothing may panic, and nothing may touch memory that is not the
//! guest's, which lies between two pages that nobody may touch.
//!
//! ```sh
//! cargo run -p soft-cpu --example fuzz -- --seconds 600 [--seed N]
//! ```
//!
//! Every case is made from its own number: a failure names it, and `--case N` runs it alone. Run it with debug assertions
//! (without `--release`): overflow is then a panic, too.

#![expect(unsafe_code, reason = "guest memory between guard pages")]
#![expect(clippy::print_stdout, reason = "a tool that says what it did")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use iced_x86::{Code, Encoder, Instruction, OpKind, Register};
use soft_cpu::cpu::{cr0, cr4, efer, reg, seg};
use soft_cpu::event::{Access, DeviceAccess};
use soft_cpu::guest_memory::{HostPage, PAGE};
use soft_cpu::nested::{NestedPage, NestedRefusal, SecondStage};
use soft_cpu::segment::Segment;
use soft_cpu::surroundings::Refused;
use soft_cpu::{CodeMap, Processor, Stop, Surroundings};

/// Guest memory: 1 MiB.
const PAGES: u64 = 256;
/// Trips into the guest that one case makes at most.
const TRIPS: u32 = 40;
/// Looks at the clock (512 traces each) before a case is brought out.
const LOOKS: u32 = 2;

/// splitmix64: small, and good enough to choose with.
#[derive(Clone)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Values that instructions stumble over, and addresses in memory.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.next(),
            5 => 0xffff_8000_0000_0000 | self.below(1 << 20),
            // The end of a page: accesses cross it.
            6 => self.below(PAGES) * PAGE + PAGE - 1 - self.below(16),
            _ => self.below(PAGES * PAGE),
        }
    }
}

/// One mapping with a guard on either side, for all cases.
#[derive(Clone, Copy)]
struct Memory(*mut u8);

// SAFETY: the mapping is never unmapped, and only this thread and the processor on it touch it.
unsafe impl Send for Memory {}

impl Memory {
    fn new() -> Self {
        let bytes = usize::try_from((PAGES + 2) * PAGE).expect("a megabyte");
        let page = usize::try_from(PAGE).expect("small");
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever there is room.
        let whole =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(whole, libc::MAP_FAILED, "no memory");
        let middle = whole.cast::<u8>().wrapping_add(page);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: all but the first and the last page of that mapping.
        assert_eq!(unsafe { libc::mprotect(middle.cast(), bytes - 2 * page, access) }, 0);
        Self(middle)
    }

    fn page(self, gpa: u64) -> HostPage {
        let offset = usize::try_from(gpa / PAGE * PAGE).expect("inside memory");
        // SAFETY: inside the mapping, which stays; nobody makes references into it.
        unsafe { HostPage::new(self.0.wrapping_add(offset)) }
    }

    fn write(self, gpa: u64, bytes: &[u8]) {
        for (at, byte) in (gpa..).zip(bytes) {
            self.page(at).at(at).store::<soft_cpu::width::B1>(u64::from(*byte));
        }
    }

    fn write64(self, gpa: u64, value: u64) {
        self.write(gpa, &value.to_le_bytes());
    }
}

struct Nested {
    memory: Memory,
    chance: Chance,
    /// How often the nested tables refuse: one in so many.
    refuses: u64,
}

impl SecondStage for Nested {
    fn translate(&mut self, gpa: u64, access: Access) -> Result<NestedPage, NestedRefusal> {
        if gpa >= PAGES * PAGE {
            return Err(NestedRefusal::Device);
        }
        if self.chance.one_in(self.refuses) {
            return Err(NestedRefusal::Violation([access == Access::Write, false, false]));
        }
        let frame = u32::try_from(gpa / PAGE).expect("few pages");
        let writable = access == Access::Write || self.chance.one_in(2);
        Ok(NestedPage { host: self.memory.page(gpa), frame, writable, executable: true })
    }
}

struct Around {
    chance: Chance,
    knock: Arc<AtomicU8>,
    looks: u32,
}

impl Surroundings for Around {
    fn now(&mut self) -> u64 {
        self.chance.next()
    }

    fn poll(&mut self) -> bool {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS) {
            self.knock.store(1, Ordering::Relaxed);
        }
        self.chance.one_in(3)
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.chance.byte();
        (vector >= 32).then_some(vector)
    }

    fn local_read(&mut self, access: &DeviceAccess) -> Option<u64> {
        (access.at & 0x1000 != 0).then(|| self.chance.value())
    }

    fn local_write(&mut self, access: &DeviceAccess) -> bool {
        access.at & 0x1000 != 0
    }

    fn port_is_deaf(&mut self, port: u16) -> bool {
        port & 1 != 0
    }

    fn read_msr(&mut self, msr: u32) -> Option<Result<u64, Refused>> {
        (msr & 0x800 != 0).then(|| Ok(self.chance.value()))
    }

    fn write_msr(&mut self, msr: u32, _value: u64) -> Option<Result<(), Refused>> {
        (msr & 0x800 != 0).then_some(Err(Refused))
    }

    fn task_priority(&mut self) -> u64 {
        self.chance.below(16)
    }

    fn unimplemented(&mut self, _rip: u64, _name: &str) {}
}

/// An instruction that exists, with operands of chance; or bytes of chance.
fn instruction(chance: &mut Chance, bits: u32, codes: &[Code]) -> Vec<u8> {
    if chance.one_in(4) {
        return (0..1 + chance.below(15)).map(|_| chance.byte()).collect();
    }
    let which = usize::try_from(chance.below(codes.len() as u64)).expect("few");
    let mut made = Instruction::new();
    made.set_code(codes[which]);
    let wide = if bits == 64 { Register::RAX } else { Register::EAX };
    for operand in 0..made.op_count() {
        use iced_x86::OpCodeOperandKind as K;
        let number = u32::try_from(chance.below(8)).expect("small");
        let kind = codes[which].op_code().op_kind(operand);
        let register = |base: Register| base + number;
        let set_register = |made: &mut Instruction, register| {
            made.set_op_kind(operand, OpKind::Register);
            made.set_op_register(operand, register);
        };
        match kind {
            K::r8_reg | K::r8_or_mem | K::r8_opcode => {
                set_register(&mut made, register(Register::AL))
            }
            K::r16_reg | K::r16_or_mem | K::r16_opcode | K::r16_rm => {
                set_register(&mut made, register(Register::AX));
            }
            K::r32_reg | K::r32_or_mem | K::r32_opcode | K::r32_rm => {
                set_register(&mut made, register(Register::EAX));
            }
            K::r64_reg | K::r64_or_mem | K::r64_opcode | K::r64_rm => {
                set_register(&mut made, register(Register::RAX));
            }
            K::xmm_reg | K::xmm_or_mem | K::xmm_rm => {
                set_register(&mut made, register(Register::XMM0))
            }
            K::mm_reg | K::mm_or_mem | K::mm_rm => set_register(&mut made, register(Register::MM0)),
            K::mem => {
                made.set_op_kind(operand, OpKind::Memory);
                made.set_memory_base(wide + number);
                made.set_memory_displ_size(4);
                made.set_memory_displacement64(chance.below(64));
            }
            K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => {
                let kinds = match kind {
                    K::imm8 => OpKind::Immediate8,
                    K::imm8sex16 => OpKind::Immediate8to16,
                    K::imm8sex32 => OpKind::Immediate8to32,
                    _ => OpKind::Immediate8to64,
                };
                made.set_op_kind(operand, kinds);
                made.set_immediate8(chance.byte());
            }
            K::imm32 => {
                made.set_op_kind(operand, OpKind::Immediate32);
                made.set_immediate32(u32::try_from(chance.value() & 0xffff_ffff).expect("32 bits"));
            }
            _ => {}
        }
    }
    if chance.one_in(6) {
        made.set_has_rep_prefix(true);
    }
    let mut encoder = Encoder::new(bits);
    match encoder.encode(&made, 0x1000) {
        Ok(_) => encoder.take_buffer(),
        Err(_) => (0..1 + chance.below(6)).map(|_| chance.byte()).collect(),
    }
}

/// Puts the processor into a state: some are what a system could be in, some are not.
fn state(processor: &mut Processor, memory: Memory, chance: &mut Chance) -> u32 {
    const ROOT: u64 = 0x2000;
    for entry in 0..4 {
        memory.write64(ROOT + entry * 8, (ROOT + 0x1000) | 7);
        memory.write64(ROOT + 0x1000 + entry * 8, (ROOT + 0x2000) | 7);
    }
    for large in 0..8 {
        memory.write64(ROOT + 0x2000 + large * 8, large << 21 | 0x87);
    }
    let cpu = &mut processor.cpu;
    for register in 0..16 {
        cpu.gpr[register] = chance.value();
        cpu.xmm[register] = u128::from(chance.value()) << 64 | u128::from(chance.value());
    }
    let mode = chance.below(6);
    let cpl = if chance.one_in(2) { 3 } else { 0 };
    let level = u16::from(cpl) << 5;
    let flat = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 | level };
    let (bits, code) = match mode {
        0 => (16, Segment { base: 0, ..Segment::real_code(0) }),
        1 => (32, Segment { attributes: 0xc09b | level, ..flat }),
        2 => (32, Segment { attributes: 0xc09b | level, ..flat }),
        _ => (64, Segment { attributes: 0xa09b | level, ..flat }),
    };
    cpu.cr4 = cr4::PAE | cr4::OSFXSR;
    cpu.cr0 = cr0::ET | if chance.one_in(2) { cr0::WP } else { 0 };
    if mode > 0 {
        cpu.cr0 |= cr0::PE;
    }
    if mode >= 2 {
        cpu.cr0 |= cr0::PG;
        cpu.cr3 = ROOT;
    }
    match mode {
        // Two-level paging over tables that are none.
        2 => cpu.cr4 = cr4::PSE,
        3.. => cpu.efer = efer::LME | efer::NXE | efer::SCE,
        _ => {}
    }
    for bit in
        [cr4::OSXMMEXCPT, cr4::OSXSAVE, cr4::SMEP, cr4::SMAP, cr4::FSGSBASE, cr4::TSD, cr4::UMIP]
    {
        if chance.one_in(2) {
            cpu.cr4 |= bit;
        }
    }
    for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        let odd = Segment { base: chance.value(), ..flat };
        cpu.set_segment(which, if chance.one_in(8) { odd } else { flat });
    }
    cpu.set_segment(seg::CS, code);
    cpu.set_cpl(if mode == 0 { 0 } else { cpl });
    cpu.idtr.base = chance.below(PAGES) * PAGE;
    cpu.gdtr.base = chance.below(PAGES) * PAGE;
    cpu.tr.base = chance.below(PAGES) * PAGE;
    cpu.tr.limit = u32::try_from(chance.below(0x2000)).expect("small");
    cpu.gpr[reg::RSP] = chance.value();
    cpu.mxcsr = u32::try_from(chance.next() & 0xffff).expect("sixteen bits");
    cpu.set_rflags(chance.next());
    cpu.mode_changed();
    bits
}

fn run_case(
    case: u64,
    memory: Memory,
    codes: &[Code],
    ends: &mut BTreeMap<&'static str, u64>,
) -> u64 {
    let mut chance = Chance(case.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x5ee9);
    let knock = Arc::new(AtomicU8::new(0));
    let around = Around { chance: Chance(chance.next()), knock: knock.clone(), looks: 0 };
    let refuses = if chance.one_in(3) { 20 } else { u64::MAX };
    let nested = Nested { memory, chance: Chance(chance.next()), refuses };
    let frames = usize::try_from(PAGES).expect("few");
    let mut processor =
        Processor::new(Box::new(around), Box::new(nested), CodeMap::new(frames, 1), 0);
    if chance.one_in(16) {
        processor.check_translations();
    }
    let bits = state(&mut processor, memory, &mut chance);
    let mut at = 0x1000 + chance.below(0x3f0);
    processor.cpu.rip = at;
    for _ in 0..20 {
        let bytes = instruction(&mut chance, bits, codes);
        memory.write(at, &bytes);
        at += bytes.len() as u64;
    }
    let mut ended = "still running";
    for _ in 0..TRIPS {
        knock.store(0, Ordering::Relaxed);
        match processor.run(&knock) {
            Stop::TripleFault => {
                ended = "triple fault";
                break;
            }
            Stop::NoMemory { .. } => {
                ended = "code or tables where no memory is";
                break;
            }
            Stop::Misconfigured(_) => unreachable!("this second stage has no such"),
            Stop::Stale(stale) => panic!("nothing was shot down: {stale:?}"),
            Stop::Halted => {
                ended = "halted";
                if chance.one_in(2) {
                    processor.raise_nmi();
                }
            }
            Stop::PortRead(_) | Stop::Mmio(_) | Stop::StringPort(_) => {
                processor.answer(chance.value())
            }
            _ => {}
        }
        match chance.below(64) {
            0 => processor.flush(),
            1 => processor.raise_nmi(),
            2 => processor.init_reset(),
            3 => processor.start_at(chance.byte()),
            _ => {}
        }
    }
    *ends.entry(ended).or_default() += 1;
    processor.cpu.retired
}

fn option(name: &str) -> Option<u64> {
    let mut words = std::env::args().skip_while(|word| word != name);
    words
        .nth(1)
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} takes a number, not {text}")))
}

fn main() {
    let codes: Vec<Code> = Code::values().filter(|code| code.op_code().is_instruction()).collect();
    let memory = Memory::new();
    let mut ends = BTreeMap::new();
    if let Some(case) = option("--case") {
        let done = run_case(case, memory, &codes, &mut ends);
        println!("case {case}: {done} instructions, {ends:?}");
        return;
    }
    let limit = Duration::from_secs(option("--seconds").unwrap_or(10));
    let seed = option("--seed").unwrap_or(0);
    let began = Instant::now();
    let (mut cases, mut instructions) = (0u64, 0u64);
    let current = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let shown = current.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        usual(info);
        eprintln!("fuzz: run it again with --case {}", shown.load(Ordering::Relaxed));
    }));
    while began.elapsed() < limit {
        let case = seed.wrapping_mul(1 << 40).wrapping_add(cases);
        current.store(case, Ordering::Relaxed);
        instructions += run_case(case, memory, &codes, &mut ends);
        cases += 1;
    }
    println!(
        "fuzz: {cases} cases with seed {seed}, {instructions} instructions, {} s: no panic, no access outside guest memory",
        began.elapsed().as_secs()
    );
    for (end, count) in ends {
        println!("  {count:>10} {end}");
    }
}
