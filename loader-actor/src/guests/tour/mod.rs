#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `tour`: vcpus that do to pages what the monitor tells them, one deed at a time, so that a page is led through
//! every state it can be in and through every transition between them.
//!
//! The guest knows nothing of states. Each vcpu waits for an order in its own slot ([`control`]), reads, writes or
//! executes, and says what it found. The monitor's half has the itinerary: [`script`] says which transitions there are
//! and what each must look like, [`driver`] goes from one to the next and compares.
//!
//! # What is in a page
//!
//! The first 8 bytes of a page are its *content*, and they are code: `mov eax, TAG; ret` and two `nop` ([`content`]). So one
//! pattern serves reading (is it that?), writing, and executing (does it return the tag?). A page of zeroes is code,
//! too: 2,048 times `add [rax], al`, after which the processor runs into the next page. The guest enters with rax at a
//! place of its own whose address ends in zero, so nothing changes, and whoever has a page of zeroes executed
//! puts code into the page behind it.
//!
//! # After
//!
//! When the monitor says that the tour is over, vcpu 0 ends through the debug-exit port: with 0, or, where a page was
//! not what it should have been, with [`ASTRAY`].

use std::arch::global_asm;

use actors::platform::DEBUG_EXIT;

use super::image::image_between;
use super::places::IMAGE;
use super::{Guest, Level, Piece, print, start};
use control::{CONTROL, MEMORY_BYTES, MOST_VCPUS, STOP, VCPUS, slot};

pub mod control;
pub mod driver;
pub mod script;
mod sight;

pub use sight::{Kind, Sight};

/// Ends with this code: the monitor found a page that was not what it should have been.
pub const ASTRAY: u8 = 0x61;

/// The tour.
pub const GUEST: Guest = Guest {
    name: "tour",
    about: "leads a page through every state and transition there is, and checks each",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare,
    memory_bytes: MEMORY_BYTES,
    most_vcpus: MOST_VCPUS,
};

/// The 8 bytes that a page with this tag begins with: `mov eax, TAG; ret; nop; nop`.
#[must_use]
pub fn content(tag: u32) -> u64 {
    0x9090_c300_0000_00b8 | u64::from(tag) << 8
}

fn prepare(_memory: &actors::layout::MemoryLayout, vcpus: u16) -> Vec<Piece> {
    let mut pieces = start::pieces(vcpus, Level::User, &[]);
    pieces.extend(control::pieces(vcpus));
    pieces
}

image_between!(image, skep_guest_tour, skep_guest_tour_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_tour, "a", @progbits
    .globl skep_guest_tour, skep_guest_tour_end
    .hidden skep_guest_tour, skep_guest_tour_end
    .balign 16
    .set .Ltour_print_text, skep_guest_tour - {TEXT}
    .set .Ltour_print_decimal, skep_guest_tour - {DECIMAL}
    .code64
skep_guest_tour:

    // edi: this vcpu's number. For good:
    //   r15  this vcpu's slot             r14  CONTROL
    //   r13  number of the last order     r12d this vcpu's number
    mov     r12d, edi
    mov     r15d, edi
    shl     r15d, 12
    add     r15d, {VCPUS}
    mov     r14d, {CONTROL}
    xor     r13d, r13d

.Ltour_wait:
    mov     rax, qword ptr [r14 + {STOP}]
    test    rax, rax
    jnz     .Ltour_over
    mov     rax, qword ptr [r15 + {ORDER}]
    cmp     rax, r13
    jne     .Ltour_obey
    pause
    jmp     .Ltour_wait

    // rsi: where. rcx: how many pages. rbx: what to write or to find. r8: how many were as they should be. r9: the
    // last thing found that was not; of an execution, what it returned.
.Ltour_obey:
    mov     r13, rax
    mov     edx, dword ptr [r15 + {WHAT}]
    mov     rsi, qword ptr [r15 + {ADDRESS}]
    mov     rcx, qword ptr [r15 + {PAGES}]
    mov     rbx, qword ptr [r15 + {VALUE}]
    xor     r8d, r8d
    xor     r9d, r9d
    cmp     edx, {EXECUTE}
    je      .Ltour_execute
    cmp     edx, {WRITE}
    je      .Ltour_write

.Ltour_read:
    test    rcx, rcx
    jz      .Ltour_done
    mov     rax, qword ptr [rsi]
    cmp     rax, rbx
    jne     .Ltour_other
    inc     r8
    jmp     .Ltour_read_on
.Ltour_other:
    mov     r9, rax
.Ltour_read_on:
    add     rsi, 4096
    dec     rcx
    jmp     .Ltour_read

.Ltour_write:
    test    rcx, rcx
    jz      .Ltour_done
    mov     qword ptr [rsi], rbx
    inc     r8
    add     rsi, 4096
    dec     rcx
    jmp     .Ltour_write

    // What is executed changes eax and nothing else.
.Ltour_execute:
    lea     rax, [r15 + {SCRATCH}]
    call    rsi
    mov     r9d, eax
    cmp     eax, ebx
    jne     .Ltour_done
    inc     r8

.Ltour_done:
    mov     qword ptr [r15 + {RIGHT}], r8
    mov     qword ptr [r15 + {FOUND}], r9
    mov     qword ptr [r15 + {DONE}], r13
    inc     qword ptr [r15 + {DEEDS}]
    jmp     .Ltour_wait

    // rax: 1 when all was well. vcpu 0 says so and ends; the others rest.
.Ltour_over:
    test    r12d, r12d
    jnz     .Ltour_rest
    mov     r12, rax
    lea     rsi, [rip + .Ltour_text_tour]
    call    .Ltour_print_text
    mov     rax, qword ptr [r14 + {TOTAL}]
    call    .Ltour_print_decimal
    lea     rsi, [rip + .Ltour_text_well]
    xor     r13d, r13d
    cmp     r12d, 1
    je      .Ltour_say
    lea     rsi, [rip + .Ltour_text_astray]
    mov     r13d, {ASTRAY}
.Ltour_say:
    call    .Ltour_print_text
    mov     eax, r13d
    mov     edx, {DEBUG_EXIT}
    out     dx, al
.Ltour_rest:
    pause
    jmp     .Ltour_rest

.Ltour_text_tour:
    .asciz  "tour: "
.Ltour_text_well:
    .asciz  " deeds, and every page was what it should be\n"
.Ltour_text_astray:
    .asciz  " deeds, and then a page was not what it should be\n"
skep_guest_tour_end:
    .popsection
    "#,
    TEXT = const print::TEXT,
    DECIMAL = const print::DECIMAL,
    CONTROL = const CONTROL.0,
    VCPUS = const VCPUS.0,
    STOP = const STOP,
    TOTAL = const control::TOTAL,
    ORDER = const slot::ORDER,
    WHAT = const slot::WHAT,
    ADDRESS = const slot::ADDRESS,
    PAGES = const slot::PAGES,
    VALUE = const slot::VALUE,
    DONE = const slot::DONE,
    RIGHT = const slot::RIGHT,
    FOUND = const slot::FOUND,
    DEEDS = const slot::DEEDS,
    SCRATCH = const slot::SCRATCH,
    WRITE = const control::What::Write as u32,
    EXECUTE = const control::What::Execute as u32,
    ASTRAY = const ASTRAY,
    DEBUG_EXIT = const DEBUG_EXIT,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pages_content_is_code_that_returns_its_tag() {
        // The encodings: Intel SDM volume 2, MOV (B8+rd id) and RET (C3).
        assert_eq!(
            content(0x4433_2211).to_le_bytes(),
            [0xb8, 0x11, 0x22, 0x33, 0x44, 0xc3, 0x90, 0x90]
        );
    }
}
