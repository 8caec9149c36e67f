//! Guests made of a few instructions: flat binaries, bytes that are entered in real mode at `0000:1000`.
//!
//! Most are 32-bit or 64-bit code behind a way into protected or long mode ([`Guest::protected`], [`Guest::long`]):
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

use crate::engines::{Engine, Observed, on_every_engine};
use crate::support::{Ran, scratch, skep};

/// Where a flat binary begins.
const IMAGE: usize = 0x1000;
/// Where the guest's own 32-bit code begins.
const CODE: usize = 0x1058;
/// Where its 64-bit code begins.
const LONG_CODE: u32 = 0x2000;
/// Where its interrupt table is, and the stubs behind that.
pub(crate) const GATES: u32 = 0x6000;
const STUBS: u32 = GATES + 32 * 16;
/// What `lidt` reads: for the table above, and for one without entries.
const GATES_REGISTER: u32 = 0x6300;
const NO_GATES_REGISTER: u32 = 0x7000;
/// Ends the guest with a code.
const END: u32 = 0xf4;
/// Selectors: flat data, 64-bit code, a task, and code and data for CPL 3.
const DATA: u32 = 0x10;
const LONG: u16 = 0x28;
pub(crate) const TASK: u16 = 0x30;
pub(crate) const USER_CODE: i32 = 0x18 | 3;
pub(crate) const USER_DATA: i32 = 0x20 | 3;
/// The local APIC's registers.
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;
/// In the hole for devices, where none is.
pub(crate) const NO_DEVICE: u32 = 0xd000_0000;
/// The guests' page tables: the root, and the table of 2 MiB leaves.
pub(crate) const ROOT: u32 = 0x9000;
pub(crate) const LEAVES: u32 = 0xb000;
/// Present, writable; and a leaf as well.
pub(crate) const TABLE: u32 = 0x03;
pub(crate) const LEAF: u32 = 0x83;

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
pub(crate) struct Guest {
    bytes: Vec<u8>,
}

impl Guest {
    /// These bytes in real mode.
    pub(crate) fn real(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec() }
    }

    /// `code` in protected mode, flat, without paging; any exception is a triple fault.
    pub(crate) fn protected(
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        Self::made(NO_GATES_REGISTER, code, |_| Ok(()))
    }

    /// The same, but an exception ends the guest with its vector as its code.
    pub(crate) fn reporting(
        code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Self {
        Self::made(GATES_REGISTER, code, |_| Ok(()))
    }

    /// `code` in long mode, on the page tables at [`ROOT`]; an exception ends the guest with its vector as its code.
    pub(crate) fn long(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
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
    pub(crate) fn run(&self, engine: Engine, words: &str) -> Ran {
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
    pub(crate) fn ends(&self, words: &str, status: i32, says: &str) {
        on_every_engine(|engine| {
            let ran = self.run(engine, words);
            assert_eq!(ran.status, status, "on {engine}: {}", ran.stderr);
            let observed = ran.observed();
            assert!(observed.says(says), "on {engine}, not {says:?}: {}", ran.stderr);
            status
        });
    }

    /// Runs it on every engine until its time is up.
    pub(crate) fn goes_on(&self, words: &str) -> Vec<Observed> {
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
pub(crate) fn well(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.out(END, al)
}

/// Ends with this code unless the zero flag is set.
pub(crate) fn unless_equal(a: &mut CodeAssembler, failure: u32) -> Result<(), IcedError> {
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
pub(crate) fn address_of(
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
pub(crate) fn garbage(seed: u64) -> Vec<u8> {
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
