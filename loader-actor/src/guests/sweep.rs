#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `sweep`: the vcpus touch every page of a stretch whenever they are told to, and count in
//! between. For measuring what it costs to learn which pages a guest used, and what that costs the guest.
//!
//! ```text
//!   0x20_0000  GO       host: the number of the pass to make; 0 before the first
//!   0x20_0008  ...      host, before GO: first address, stride, touches of each vcpu, write
//!   0x20_1000  SLOTS    one of 64 bytes for each vcpu: passes made, ticks of the last one's
//!                       time-stamp counter, looks at GO
//!   0x40_0000  FREE     what is touched
//! ```
//!
//! In a pass vcpu N touches `touches` words, `stride` apart, after those of vcpu N - 1. A write
//! stores the number of the pass. The guest never ends and never leaves by itself: a vcpu whose looks
//! go up is executing.

use std::arch::global_asm;

use actors::layout::MemoryLayout;
use actors::{Gpa, PAGE_SIZE};

use super::image::image_between;
use super::places::{IMAGE, MOST_VCPUS, OWN};
use super::{Guest, Level, start};

/// The number of the pass that the vcpus make, or have made.
pub const GO: Gpa = OWN;
/// What to touch: [`Pass::words`], placed before [`GO`] goes up.
pub const PASS: Gpa = Gpa(OWN.0 + 8);
/// What vcpus have to say.
const SLOTS: Gpa = Gpa(OWN.0 + PAGE_SIZE);
/// Bytes from one vcpu's to the next: a cache line.
const SLOT_STRIDE: u64 = 64;
/// Where memory begins that is free to be touched.
pub const FREE: Gpa = Gpa(OWN.0 + (2 << 20));

/// Touches when it is told to.
pub const GUEST: Guest = Guest {
    name: "sweep",
    about: "every vcpu touches its share of memory when the host says so, and spins in between",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare,
    memory_bytes: FREE.0 + PAGE_SIZE,
    most_vcpus: MOST_VCPUS,
};

/// One pass over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The first address touched: the start of a word of 8 bytes.
    pub start: Gpa,
    /// Bytes from one touch to the next.
    pub stride: u64,
    /// Touches of each vcpu.
    pub count: u64,
    /// Whether to write; otherwise to read.
    pub write: bool,
}

impl Pass {
    /// The words that say so, for [`PASS`]. The host sees to it that all of it is memory: elsewhere the
    /// guest faults, and ends.
    #[must_use]
    pub fn words(&self) -> [u64; 4] {
        [self.start.0, self.stride, self.count, u64::from(self.write)]
    }
}

/// Where the number of the last pass is that vcpu `index` made.
#[must_use]
pub fn done(index: u16) -> Gpa {
    Gpa(SLOTS.0 + u64::from(index) * SLOT_STRIDE)
}

/// Where the ticks are that it took.
#[must_use]
pub fn ticks(index: u16) -> Gpa {
    Gpa(done(index).0 + 8)
}

/// Where its looks at [`GO`] are counted.
#[must_use]
pub fn looks(index: u16) -> Gpa {
    Gpa(done(index).0 + 16)
}

/// What is read and written between passes is there from the start.
fn prepare(_memory: &MemoryLayout, vcpus: u16) -> Vec<super::Piece> {
    let mut pieces = start::pieces(vcpus, Level::User, &[]);
    let own_bytes = done(MOST_VCPUS).0 - OWN.0;
    pieces.push((OWN, (0..own_bytes).map(|_| 0).collect()));
    pieces
}

image_between!(image, skep_guest_sweep, skep_guest_sweep_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_sweep, "a", @progbits
    .globl skep_guest_sweep, skep_guest_sweep_end
    .hidden skep_guest_sweep, skep_guest_sweep_end
    .balign 16
    .code64
skep_guest_sweep:
    // r12: this vcpu's number. rbp: its slot. rbx: what the host says.
    mov     r12d, edi
    mov     ebp, edi
    imul    ebp, ebp, {SLOT_STRIDE}
    add     ebp, {SLOTS}
    mov     ebx, {GO}

.Lsweep_look:
    inc     qword ptr [rbp + 16]
    mov     r8, qword ptr [rbx]
    cmp     r8, qword ptr [rbp]
    je      .Lsweep_look

    // rsi: the word to touch. r9: bytes to the next. rcx: touches left. r10: write?
    mov     r9, qword ptr [rbx + 16]
    mov     rcx, qword ptr [rbx + 24]
    mov     r10, qword ptr [rbx + 32]
    mov     rsi, rcx
    imul    rsi, r9
    imul    rsi, r12
    add     rsi, qword ptr [rbx + 8]
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    mov     r11, rax
    test    rcx, rcx
    jz      .Lsweep_end
    test    r10, r10
    jz      .Lsweep_read
.Lsweep_write:
    mov     qword ptr [rsi], r8
    add     rsi, r9
    dec     rcx
    jnz     .Lsweep_write
    jmp     .Lsweep_end
.Lsweep_read:
    mov     rax, qword ptr [rsi]
    add     rsi, r9
    dec     rcx
    jnz     .Lsweep_read

.Lsweep_end:
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    sub     rax, r11
    mov     qword ptr [rbp + 8], rax
    mov     qword ptr [rbp], r8
    jmp     .Lsweep_look
skep_guest_sweep_end:
    .popsection
    "#,
    SLOTS = const SLOTS.0,
    SLOT_STRIDE = const SLOT_STRIDE,
    GO = const GO.0,
);
