#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `hello`: one line on the serial port, then power off.
//!
//! The smallest guest there is. It stays in 16-bit real mode, as a processor begins, uses
//! no stack and no memory but its image, and ends through ACPI.
//!
//! ```text
//!   0x8000  hello_start  code: cs = ds = 0x800, so every offset counts from here
//!           text         the line, ended by a zero byte
//! ```

use std::arch::global_asm;

use actors::Gva;
use actors::contract::boot::{EntryMode, EntryState};
use actors::platform::{COM1, PM1_CONTROL, PM1_SLEEP_ENABLE, PM1_SLEEP_TYPE_SHIFT, S5_SLEEP_TYPE};

use super::Guest;
use super::image::image_between;
use super::places::{START, START_SEGMENT, TABLES};

/// Prints one line and powers off.
pub const GUEST: Guest = Guest {
    name: "hello",
    about: "vcpu 0 prints one line and powers off",
    image,
    load_at: START,
    entry,
    prepare: |_, _| Vec::new(),
    memory_bytes: TABLES.0,
    most_vcpus: super::places::MOST_VCPUS,
};

fn entry() -> EntryState {
    EntryState {
        mode: EntryMode::Real { segment: START_SEGMENT },
        rip: Gva(0),
        rsp: Gva(0),
        rsi: 0,
        rbx: 0,
        rflags: 2,
    }
}

image_between!(image, skep_guest_hello_start, skep_guest_hello_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_hello, "a", @progbits
    .globl skep_guest_hello_start, skep_guest_hello_end
    .hidden skep_guest_hello_start, skep_guest_hello_end
    .balign 16
    .code16
skep_guest_hello_start:

    // si walks the text. Offsets count from the image's start: that is what ds points at.
    mov     si, offset .Lhello_text_offset
    mov     dx, {serial}
    cld

    // One character after the other, until the zero. The transmitter is always ready.
.Lhello_next:
    lodsb
    test    al, al
    jz      .Lhello_done
    out     dx, al
    jmp     .Lhello_next

    // ACPI S5. If nobody listens, stay: the run's time limit ends it.
.Lhello_done:
    mov     dx, {pm1_control}
    mov     ax, {power_off}
    out     dx, ax
.Lhello_stay:
    hlt
    jmp     .Lhello_stay

.Lhello_text:
    .asciz  "hello from skep: one vcpu, sixteen bits, no memory to speak of\n"
skep_guest_hello_end:
    .set .Lhello_text_offset, .Lhello_text - skep_guest_hello_start
    .code64
    .popsection
    "#,
    serial = const COM1,
    pm1_control = const PM1_CONTROL,
    power_off = const (S5_SLEEP_TYPE as u16) << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP_ENABLE,
);
