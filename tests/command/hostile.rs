//! Guests that do what no decent guest does. Each ends, with the status and the sentence that fit, and none of them
//! takes skep with it.
//!
//! A guest here is a flat binary: bytes, entered in real mode at `0000:1000`. Most are 32-bit or 64-bit code behind a
//! way into protected or long mode ([`Guest::protected`], [`Guest::long`]):
//!
//! ```text
//!   0x1000  the way in       0x1018  descriptors       0x1058  32-bit code       0x2000  64-bit code
//!   0x6000  interrupt table, and behind it a stub for each vector that ends the guest with the vector's number
//!   0x7000  zeroes: an interrupt table without entries, so that any exception is a triple fault
//!   0x8000  the stack grows down from here
//!   0x9000  long mode: page tables that map the first 4 MiB to themselves, in leaves of 2 MiB
//! ```

use std::fs;

use iced_x86::code_asm::*;
use iced_x86::{Code, IcedError, Instruction};

use crate::engines::{Engine, Observed, cpus, on_every_engine};
use crate::support::{Ran, scratch, skep};

/// Where a flat binary begins.
const IMAGE: usize = 0x1000;
/// Where the guest's own 32-bit code begins.
const CODE: usize = 0x1058;
/// Where its 64-bit code begins.
const LONG_CODE: u32 = 0x2000;
/// Where its interrupt table is, and the stubs behind that.
const GATES: u32 = 0x6000;
const STUBS: u32 = GATES + 32 * 16;
/// What `lidt` reads: for the table above, and for one without entries.
const GATES_REGISTER: u32 = 0x6300;
const NO_GATES_REGISTER: u32 = 0x7000;
/// Ends the guest with a code.
const END: u32 = 0xf4;
/// Selectors: flat data, 64-bit code, a task, and code and data for CPL 3.
const DATA: u32 = 0x10;
const LONG: u16 = 0x28;
const TASK: u16 = 0x30;
const USER_CODE: i32 = 0x18 | 3;
const USER_DATA: i32 = 0x20 | 3;
/// The local APIC's registers.
const LOCAL_APIC: u32 = 0xfee0_0000;
/// In the hole for devices, where none is.
const NO_DEVICE: u32 = 0xd000_0000;
/// The guests' page tables: the root, and the table of 2 MiB leaves.
const ROOT: u32 = 0x9000;
const LEAVES: u32 = 0xb000;
/// Present, writable; and a leaf as well.
const TABLE: u32 = 0x03;
const LEAF: u32 = 0x83;

/// From real mode to [`CODE`], with descriptors for flat segments.
const WAY_IN: [u8; CODE - IMAGE] = [
    0xfa, //                                cli
    0x0f, 0x01, 0x16, 0x18, 0x10, //        lgdt [0x1018]
    0x0f, 0x20, 0xc0, //                    mov eax, cr0
    0x0c, 0x01, //                          or al, 1
    0x0f, 0x22, 0xc0, //                    mov cr0, eax
    0xea, 0x58, 0x10, 0x08, 0x00, //        jmp 0x08:0x1058
    0, 0, 0, 0, 0, //
    0x3f, 0x00, 0x18, 0x10, 0, 0, 0,
    0, //  in the place of the null descriptor: limit and base
    0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0, //  0x08: code
    0xff, 0xff, 0, 0, 0, 0x93, 0xcf, 0, //  0x10: data
    0xff, 0xff, 0, 0, 0, 0xfb, 0xaf, 0, //  0x18: 64-bit code for CPL 3
    0xff, 0xff, 0, 0, 0, 0xf3, 0xcf, 0, //  0x20: data for CPL 3
    0xff, 0xff, 0, 0, 0, 0x9b, 0xaf, 0, //  0x28: 64-bit code
    0x67, 0, 0, 0x70, 0, 0x89, 0, 0, //     0x30: a task state at 0x7000
    0, 0, 0, 0, 0, 0, 0, 0, //              the upper half of its address
];

/// A guest on its way to a file.
struct Guest {
    bytes: Vec<u8>,
}

impl Guest {
    /// These bytes in real mode.
    fn real(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec() }
    }

    /// `code` in protected mode, flat, without paging; any exception is a triple fault.
    fn protected(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::made(NO_GATES_REGISTER, code, |_| Ok(()))
    }

    /// The same, but an exception ends the guest with its vector as its code.
    fn reporting(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::made(GATES_REGISTER, code, |_| Ok(()))
    }

    /// `code` in long mode, on the page tables at [`ROOT`]; an exception ends the guest with its vector as its code.
    fn long(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        Self::made(GATES_REGISTER, into_long_mode, code)
    }

    fn made(
        table: u32,
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
        long: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        let assembled = || {
            let mut a = CodeAssembler::new(32)?;
            a.mov(eax, DATA)?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            a.mov(ss, eax)?;
            a.mov(esp, 0x8000)?;
            a.lidt(ptr(table))?;
            code(&mut a)?;
            let mut b = CodeAssembler::new(64)?;
            // An assembler has nothing to say about nothing.
            b.nop()?;
            long(&mut b)?;
            Ok::<_, IcedError>((a.assemble(CODE as u64)?, b.assemble(LONG_CODE.into())?))
        };
        let (code, long) = assembled().expect("the test's own assembly");
        let mut bytes = WAY_IN.to_vec();
        let mut place = |at: usize, piece: &[u8]| {
            assert!(bytes.len() + IMAGE <= at, "{at:#x} is taken");
            bytes.resize(at - IMAGE, 0);
            bytes.extend(piece);
        };
        place(CODE, &code);
        place(LONG_CODE as usize, &long);
        place(GATES as usize, &gates(long.len() > 1));
        place(GATES_REGISTER as usize, &[0xff, 0x01]);
        place(GATES_REGISTER as usize + 2, &GATES.to_le_bytes());
        // Zeroes for the empty table, and nothing of the loader's behind it.
        place(0x8000, &[0]);
        Self { bytes }
    }

    /// Runs it on `engine`, with these words.
    fn run(&self, engine: Engine, words: &str) -> Ran {
        let test = std::thread::current();
        let name = test.name().expect("a test's thread has its name").replace("::", "-");
        let path = scratch(&format!("{name}.bin"));
        fs::write(&path, &self.bytes).expect("scratch file");
        let ran = skep(&format!("run --engine {engine} --kernel {path} {words}"));
        let last = ran.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with("skep: "), "no reason at the end: {}", ran.stderr);
        for never in ["panicked", "left behind", "actor"] {
            assert!(!ran.stderr.contains(never), "{never} on {engine}: {}", ran.stderr);
        }
        ran
    }

    /// Runs it on every engine: it must end with this status and these words on all.
    fn ends(&self, words: &str, status: i32, says: &str) {
        on_every_engine(|engine| {
            let ran = self.run(engine, words);
            assert_eq!(ran.status, status, "on {engine}: {}", ran.stderr);
            let observed = ran.observed();
            assert!(observed.says(says), "on {engine}, not {says:?}: {}", ran.stderr);
            status
        });
    }

    /// Runs it on every engine until its time is up.
    fn goes_on(&self, words: &str) -> Vec<Observed> {
        let all = parking_lot::Mutex::new(Vec::new());
        on_every_engine(|engine| {
            let ran = self.run(engine, &format!("{words} --timeout 1"));
            assert_eq!(ran.status, 6, "on {engine}: {}", ran.stderr);
            all.lock().push(ran.observed());
        });
        all.into_inner()
    }
}

/// Ends with 0: what was to be shown has been shown.
fn well(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.out(END, al)
}

/// Ends with this code unless the zero flag is set.
fn unless_equal(a: &mut CodeAssembler, failure: u32) -> Result<(), IcedError> {
    let mut fine = a.create_label();
    a.je(fine)?;
    a.mov(al, failure)?;
    a.out(END, al)?;
    a.set_label(&mut fine)
}

/// An interrupt gate for each vector, and the stubs they lead to.
fn gates(long: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (code, bytes_each) = if long { (LONG.into(), 16) } else { (0x08, 8) };
    for vector in 0..32_u32 {
        let stub = STUBS + vector * 8;
        bytes.extend((code << 16 | stub).to_le_bytes());
        bytes.extend([0x00, 0x8e, 0, 0]);
        bytes.resize((vector as usize + 1) * bytes_each, 0);
    }
    bytes.resize((STUBS - GATES) as usize, 0);
    for vector in 0..32_u8 {
        // mov al, vector; out END, al; jmp $
        bytes.extend([0xb0, vector, 0xe6, 0xf4, 0xeb, 0xfe, 0x90, 0x90]);
    }
    bytes
}

/// Page tables, then long mode, then [`LONG_CODE`].
fn into_long_mode(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let entries = [(ROOT, 0xa000 | TABLE), (0xa000, LEAVES | TABLE)];
    let leaves = [(LEAVES, LEAF), (LEAVES + 8, 0x20_0000 | LEAF)];
    for (at, entry) in entries.into_iter().chain(leaves) {
        a.mov(dword_ptr(at), entry)?;
    }
    a.mov(eax, 1 << 5)?; // PAE
    a.mov(cr4, eax)?;
    a.mov(eax, ROOT)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?; // EFER: LME
    a.rdmsr()?;
    a.or(eax, 1 << 8)?;
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0000u32)?;
    a.mov(cr0, eax)?;
    let jump = Instruction::with_far_branch(Code::Jmp_ptr1632, LONG, LONG_CODE)?;
    a.add_instruction(jump)
}

/// Sets `eax` to the address of what `code` assembles, and goes on behind it.
fn address_of(
    a: &mut CodeAssembler,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut behind = a.create_label();
    a.call(behind)?;
    code(a)?;
    a.set_label(&mut behind)?;
    a.pop(eax)
}

/// Bytes without a meaning, the same for the same seed.
fn garbage(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    // lidt [0x7000], so that the first exception is the last.
    let start = [0x0f, 0x01, 0x1e, 0x00, 0x70];
    start.into_iter().chain(std::iter::repeat_with(&mut next).take(2048)).collect()
}

#[test]
fn garbage_ends_for_a_reason() {
    let _cpus = cpus();
    for seed in 1..=24 {
        let ran = Guest::real(&garbage(seed)).run(Engine::Soft, "-m 16 --timeout 1");
        // Whatever it happens to mean: a triple fault mostly, an endless loop, a word to the reset register.
        assert!([0, 3, 4, 5, 6, 9].contains(&ran.status), "seed {seed}: {}", ran.stderr);
    }
}

#[test]
fn an_instruction_that_does_not_exist_without_a_handler_is_a_triple_fault() {
    Guest::protected(|a| a.ud2()).ends("", 4, "triple fault");
    Guest::reporting(|a| a.ud2()).ends("", 5, "the guest reported failure 6");
}

#[test]
fn a_jump_to_where_devices_or_nobody_lives_is_named() {
    for target in [LOCAL_APIC, NO_DEVICE] {
        let jump = Guest::protected(|a| {
            a.mov(eax, target)?;
            a.jmp(eax)
        });
        jump.ends("-m 16 --timeout 60", 9, "cannot go on");
    }
}

#[test]
fn an_instruction_that_begins_in_memory_and_ends_beyond_it_cannot_be_fetched() {
    let straddles = Guest::protected(|a| {
        // mov eax, imm32, of which only the first byte is there.
        a.mov(byte_ptr(0xff_ffff), 0xb8)?;
        a.mov(eax, 0xff_ffff)?;
        a.jmp(eax)
    });
    straddles.ends("-m 16 --timeout 60", 9, "cannot go on");
}

#[test]
fn a_store_beyond_all_memory_touches_a_hole() {
    let stores = Guest::long(|a| {
        // Its 2 MiB at 2 MiB are those at 5 GiB.
        a.mov(rax, 0x1_4000_0083u64)?;
        a.mov(qword_ptr(LEAVES + 8), rax)?;
        a.mov(rax, u64::from(ROOT))?;
        a.mov(cr3, rax)?;
        a.mov(dword_ptr(0x20_0010), 1)
    });
    stores.ends("-m 16 --timeout 60", 9, "touched a hole at guest-physical 0x140000010");
}

#[test]
fn where_devices_could_be_and_none_is_stores_are_lost_and_loads_are_all_ones() {
    let probes = Guest::reporting(|a| {
        a.mov(dword_ptr(NO_DEVICE), 5)?;
        a.cmp(dword_ptr(NO_DEVICE), -1)?;
        unless_equal(a, 0x44)?;
        // The end of 16 MiB of memory, and a little of what comes behind it.
        a.mov(edi, 0xff_f000)?;
        a.mov(ecx, 0x1040)?;
        a.mov(al, 0x77)?;
        a.rep().stosb()?;
        a.cmp(dword_ptr(0xff_fffc), 0x7777_7777)?;
        unless_equal(a, 0x45)?;
        a.cmp(dword_ptr(0x100_0000), -1)?;
        unless_equal(a, 0x46)?;
        well(a)
    });
    probes.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn accesses_across_pages_and_half_registers_are_whole() {
    let misaligned = Guest::reporting(|a| {
        // Across two pages, one of them touched for the first time; locked.
        a.mov(dword_ptr(0x10_0ffd), 0x0403_0201)?;
        a.mov(eax, 0x1010_1010)?;
        a.lock().add(dword_ptr(0x10_0ffd), eax)?;
        a.cmp(dword_ptr(0x10_0ffd), 0x1413_1211)?;
        unless_equal(a, 0x41)?;
        a.cmp(byte_ptr(0x10_1000), 0x14)?;
        unless_equal(a, 0x42)?;
        // A word across the end of the local APIC's version register: no answer is wrong, none may hurt.
        a.mov(eax, dword_ptr(LOCAL_APIC + 0x31))?;
        a.mov(dword_ptr(LOCAL_APIC + 0x82), eax)?;
        a.mov(eax, dword_ptr(LOCAL_APIC + 0xffd))?;
        well(a)
    });
    misaligned.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn a_misaligned_vector_is_a_general_protection_fault() {
    let misaligned = Guest::reporting(|a| {
        // Vectors exist.
        a.mov(eax, 1 << 9)?;
        a.mov(cr4, eax)?;
        a.movaps(xmm0, xmmword_ptr(0x10_0000))?;
        a.movaps(xmm0, xmmword_ptr(0x10_0001))?;
        well(a)
    });
    misaligned.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
}

#[test]
fn a_misaligned_word_at_cpl_3_is_an_alignment_check_where_that_is_on() {
    let misaligned = Guest::long(|a| {
        // A task state at 0x7000 with a stack for CPL 0; everything is open to CPL 3; alignment is checked.
        a.mov(dword_ptr(0x7004), 0x8000)?;
        a.mov(eax, u32::from(TASK))?;
        a.ltr(ax)?;
        for table in [ROOT, 0xa000, LEAVES, LEAVES + 8] {
            a.or(dword_ptr(table), 4)?;
        }
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rax, cr0)?;
        a.or(eax, 1 << 18)?;
        a.mov(cr0, rax)?;
        // Down to CPL 3 with the flag AC: stack, flags, code.
        a.push(USER_DATA)?;
        a.push(0x5000)?;
        a.push(1 << 18 | 2)?;
        a.push(USER_CODE)?;
        let mut user = a.create_label();
        a.lea(rax, ptr(user))?;
        a.push(rax)?;
        a.iretq()?;
        a.set_label(&mut user)?;
        a.mov(eax, dword_ptr(0x10_0000))?;
        a.mov(eax, dword_ptr(0x10_0001))?;
        a.hlt()
    });
    misaligned.ends("-m 16 --timeout 60", 5, "the guest reported failure 17");
}

#[test]
fn a_stack_that_runs_into_nothing_is_a_triple_fault() {
    // Below 2 MiB there are 2 MiB, and below these nothing: the fault finds no stack to be reported on.
    let overflows = Guest::long(|a| {
        a.mov(dword_ptr(LEAVES + 8 * 8), 0x20_0000 | LEAF)?;
        a.mov(esp, 0x108_0000)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.push(rax)?;
        a.jmp(again)
    });
    overflows.ends("-m 16 --timeout 60", 4, "triple fault");
}

#[test]
fn recursion_without_an_end_ends() {
    // The calls run down through everything below the stack, which is where their code is.
    let recurses = Guest::protected(|a| {
        let mut again = a.create_label();
        a.mov(esp, 0x5000)?;
        a.set_label(&mut again)?;
        a.call(again)
    });
    let _cpus = cpus();
    let ran = recurses.run(Engine::Soft, "-m 16 --timeout 1");
    assert!([4, 6, 9].contains(&ran.status), "{}", ran.stderr);
}

#[test]
fn page_tables_of_nonsense_are_a_triple_fault() {
    // Nothing is present; a leaf with reserved bits; a root that is a leaf; a table that is its own table.
    for (at, entry) in [(ROOT, 0), (LEAVES, 0x2083), (ROOT, LEAF), (ROOT, ROOT | TABLE)] {
        let nonsense = Guest::long(|a| {
            a.mov(dword_ptr(at), entry)?;
            a.mov(rax, u64::from(ROOT))?;
            a.mov(cr3, rax)?;
            a.ud2()
        });
        nonsense.ends("-m 16 --timeout 60", 4, "triple fault");
    }
}

#[test]
fn page_tables_where_no_memory_is_are_named() {
    for root in [LOCAL_APIC, NO_DEVICE] {
        let nowhere = Guest::long(|a| {
            a.mov(eax, root)?;
            a.mov(cr3, rax)
        });
        on_every_engine(|engine| {
            let ran = nowhere.run(engine, "-m 16 --timeout 60");
            match engine {
                // Its walker reads nothing from there, and finds the page absent.
                Engine::Kvm => assert!([4, 9].contains(&ran.status), "{}", ran.stderr),
                Engine::Soft => {
                    assert_eq!(ran.status, 9, "{}", ran.stderr);
                    assert!(ran.stderr.contains("has page tables at"), "{}", ran.stderr);
                }
            }
        });
    }
}

#[test]
fn an_interrupt_table_where_no_memory_is_ends_the_guest() {
    for table in [LOCAL_APIC, NO_DEVICE] {
        let nowhere = Guest::protected(|a| {
            a.mov(dword_ptr(0xa000), 0xffff)?;
            a.mov(dword_ptr(0xa002), table)?;
            a.lidt(ptr(0xa000))?;
            a.ud2()
        });
        on_every_engine(|engine| {
            let ran = nowhere.run(engine, "-m 16 --timeout 60");
            assert!([4, 9].contains(&ran.status), "on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn a_jump_through_a_descriptor_that_is_no_code_is_a_general_protection_fault() {
    for selector in [0x10, TASK, 0x7ff8] {
        let jumps = Guest::reporting(|a| {
            a.add_instruction(Instruction::with_far_branch(Code::Jmp_ptr1632, selector, 0x1058)?)
        });
        on_every_engine(|engine| {
            let ran = jumps.run(engine, "-m 16 --timeout 60");
            // A processor without task switches may refuse it in its own way.
            let may = if selector == TASK { vec![4, 5, 9] } else { vec![5] };
            assert!(may.contains(&ran.status), "{selector:#x} on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn floods_of_ports_end_when_their_time_is_up() {
    // Nobody's, the keyboard controller's, the interval timer's, the second 8259's.
    for port in [0x80_u16, 0x60, 0x40, 0xa1] {
        let floods = Guest::protected(|a| {
            let mut again = a.create_label();
            a.mov(edx, u32::from(port))?;
            a.set_label(&mut again)?;
            a.in_(al, dx)?;
            a.out(dx, al)?;
            a.out(dx, eax)?;
            a.jmp(again)
        });
        floods.goes_on("-m 16");
    }
}

#[test]
fn a_flood_of_the_console_arrives_and_ends() {
    let floods = Guest::protected(|a| {
        let mut again = a.create_label();
        a.mov(edi, 0x10_0000)?;
        a.mov(al, u32::from(b'x'))?;
        a.mov(ecx, 64)?;
        a.rep().stosb()?;
        a.mov(byte_ptr(0x10_003f), u32::from(b'\n'))?;
        a.mov(edx, 0x3f8)?;
        a.set_label(&mut again)?;
        a.mov(esi, 0x10_0000)?;
        a.mov(ecx, 64)?;
        a.rep().outsb()?;
        a.jmp(again)
    });
    for observed in floods.goes_on("-m 16") {
        let line = "x".repeat(63);
        assert!(observed.printed(&line), "not one whole line");
    }
}

#[test]
fn a_guest_that_sleeps_for_ever_is_ended_by_its_timeout() {
    Guest::real(&[0xfa, 0xf4, 0xeb, 0xfd]).goes_on("-m 16"); // cli; hlt; jmp back to it
}

#[test]
fn a_first_vcpu_that_resets_itself_begins_where_firmware_would_be() {
    let resets_itself = Guest::protected(|a| {
        a.mov(dword_ptr(LOCAL_APIC + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(LOCAL_APIC + 0x310), 0)?;
        a.mov(dword_ptr(LOCAL_APIC + 0x300), 0x4500)?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    resets_itself.ends("-m 16 -c 2 --timeout 60", 9, "vcpu 0 cannot go on at rip 0xfff0");
}

#[test]
fn floods_of_interrupts_end_when_their_time_is_up() {
    // To itself, as fast as it can, and to everybody else: start-up messages, resets, non-maskable ones.
    for command in [0x0004_4020, 0x000c_4601, 0x000c_4500, 0x000c_4400_u32] {
        let floods = Guest::protected(|a| {
            let mut again = a.create_label();
            a.mov(dword_ptr(LOCAL_APIC + 0xf0), 0x1ff)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(LOCAL_APIC + 0x300), command)?;
            a.jmp(again)
        });
        // Others that are started at page 1 run the same guest from real mode: floods from everybody.
        on_every_engine(|engine| {
            let ran = floods.run(engine, "-m 16 -c 3 --timeout 1");
            assert!([4, 6].contains(&ran.status), "{command:#x} on {engine}: {}", ran.stderr);
        });
    }
}

#[test]
fn a_timer_that_fires_all_the_time_ends_when_its_time_is_up() {
    let floods = Guest::long(|a| {
        // The local APIC is where it always is, in the second 2 MiB.
        a.mov(dword_ptr(LEAVES + 8), LOCAL_APIC & !0x1f_ffff | LEAF)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        let apic = 0x20_0000 + (LOCAL_APIC & 0x1f_ffff);
        // The gate of vector 0x1f leads to the handler below.
        let (mut handler, mut again) = (a.create_label(), a.create_label());
        a.lea(rax, ptr(handler))?;
        a.mov(word_ptr(GATES + 0x1f * 16), ax)?;
        a.mov(dword_ptr(apic + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(apic + 0x3e0), 0xb)?; // divide by 1
        a.mov(dword_ptr(apic + 0x320), 1 << 17 | 0x1f)?; // periodic
        a.mov(dword_ptr(apic + 0x380), 1)?;
        a.sti()?;
        a.set_label(&mut again)?;
        a.jmp(again)?;
        a.set_label(&mut handler)?;
        a.mov(dword_ptr(apic + 0xb0), 0)?;
        a.iretq()
    });
    floods.goes_on("-m 16");
}

#[test]
fn code_that_changes_itself_does_what_it_has_become() {
    let changes = Guest::reporting(|a| {
        // Adds 1 to 100 by writing each into the instruction that comes next.
        address_of(a, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(byte_ptr(ebx + 4), cl)?; // three bytes long
            a.add(eax, 0x55)?; // the number is its second byte
            a.dec(ecx)?;
            a.jne(again)?;
            a.ret()
        })?;
        a.mov(ebx, eax)?;
        a.xor(eax, eax)?;
        a.mov(ecx, 100)?;
        a.call(ebx)?;
        a.cmp(eax, 5050)?;
        unless_equal(a, 0x43)?;
        well(a)
    });
    changes.ends("-m 16 --timeout 60", 0, "the guest powered off");
}

#[test]
fn registers_that_no_processor_has_are_a_general_protection_fault() {
    for number in [0x1234_5678_u32, 0xffff_ffff] {
        let reads = Guest::reporting(|a| {
            a.mov(ecx, number)?;
            a.rdmsr()
        });
        reads.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
        let writes = Guest::reporting(|a| {
            a.mov(ecx, number)?;
            a.wrmsr()
        });
        writes.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
    }
    // Bits of CR4 that nobody has.
    let control = Guest::reporting(|a| {
        a.mov(eax, 0x8000_0000u32)?;
        a.mov(cr4, eax)
    });
    control.ends("-m 16 --timeout 60", 5, "the guest reported failure 13");
}
