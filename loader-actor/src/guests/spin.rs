#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `spin`: every vcpu counts upwards in memory for ever, and never leaves the guest by
//! itself. For measuring how long it takes to get a busy vcpu out.
//!
//! ```text
//!   0x20_0000  COUNTERS  the counter of vcpu N: a 64-bit word at COUNTERS + N * 64
//! ```
//!
//! A counter that moved since one looked proves that its vcpu was executing.

use std::arch::global_asm;

use actors::Gpa;

use super::image::image_between;
use super::places::{IMAGE, MOST_VCPUS, OWN};
use super::{Guest, Level, start};

/// Where the counters are.
pub const COUNTERS: Gpa = OWN;

/// Bytes from one counter to the next: a cache line, so that vcpus do not slow each other.
pub const COUNTER_STRIDE: u64 = 64;

/// Counts for ever.
pub const GUEST: Guest = Guest {
    name: "spin",
    about: "every vcpu counts in memory for ever, at CPL 3 and without an exit",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare: |_, vcpus| start::pieces(vcpus, Level::User, &[]),
    memory_bytes: COUNTERS.0 + MOST_VCPUS as u64 * COUNTER_STRIDE,
    most_vcpus: MOST_VCPUS,
};

/// The address of the counter of vcpu `index`.
#[must_use]
pub fn counter(index: u16) -> Gpa {
    Gpa(COUNTERS.0 + u64::from(index) * COUNTER_STRIDE)
}

image_between!(image, skep_guest_spin, skep_guest_spin_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_spin, "a", @progbits
    .globl skep_guest_spin, skep_guest_spin_end
    .hidden skep_guest_spin, skep_guest_spin_end
    .balign 16
    .code64
skep_guest_spin:
    // edi: this vcpu's number. rdi: its counter.
    imul    edi, edi, {STRIDE}
    add     edi, {COUNTERS}
.Lspin_next:
    inc     qword ptr [rdi]
    jmp     .Lspin_next
skep_guest_spin_end:
    .popsection
    "#,
    STRIDE = const COUNTER_STRIDE,
    COUNTERS = const COUNTERS.0,
);
