#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `smp`: every vcpu starts, works on private and shared pages, says hello, and when all
//! have done so vcpu 0 checks the work and powers off.
//!
//! ```text
//!   0x20_0000  LOCK, DONE  a spinlock for the serial port; how many vcpus have finished
//!   0x40_0000  SHARED      32 pages; everybody adds to the first word of each
//!   0x42_0000  PRIVATE     448 pages in all; vcpu N has PRIVATE_PAGES of them, from
//!                          PRIVATE + N * PRIVATE_PAGES * 4096 on
//! ```
//!
//! That is 2 MiB with the stacks and tables, whatever the number of vcpus. The guest runs
//! at CPL 0 from beginning to end and halts the vcpus that are done.
//!
//! What it checks, each with its own code on the debug-exit port: a private page holds what
//! its vcpu wrote into it ([`WRONG_PRIVATE_PAGE`]), a shared one holds the sum of what all
//! added ([`WRONG_SHARED_SUM`]). An addition lost between two vcpus, or a page lost between
//! two faults, makes them wrong.

use std::arch::global_asm;

use actors::Gpa;
use actors::platform::{
    DEBUG_EXIT, PM1_CONTROL, PM1_SLEEP_ENABLE, PM1_SLEEP_TYPE_SHIFT, S5_SLEEP_TYPE,
};

use super::image::image_between;
use super::places::{IMAGE, MOST_VCPUS, OWN, PARAMETERS};
use super::start::OWN_PARAMETERS;
use super::{Guest, Level, print, start};

/// The guest ends with this code when a private page holds something else than was written.
pub const WRONG_PRIVATE_PAGE: u8 = 0x31;
/// The guest ends with this code when a shared page holds another sum than it should.
pub const WRONG_SHARED_SUM: u8 = 0x32;

/// The pages everybody adds to.
pub const SHARED: Gpa = Gpa(OWN.0 + (2 << 20));
/// How many they are.
pub const SHARED_PAGES: u64 = 32;
/// The pages of vcpu 0, then those of vcpu 1, and so on.
pub const PRIVATE: Gpa = Gpa(SHARED.0 + SHARED_PAGES * 4096);
/// All private pages together.
pub const PRIVATE_PAGES: u64 = 448;

/// All vcpus greet, compute and check.
pub const GUEST: Guest = Guest {
    name: "smp",
    about: "every vcpu starts, takes a lock, prints, adds to shared pages; then powers off",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare: |_, vcpus| {
        let each = PRIVATE_PAGES / u64::from(vcpus.max(1));
        start::pieces(vcpus, Level::Kernel, &[each])
    },
    memory_bytes: PRIVATE.0 + PRIVATE_PAGES * 4096,
    most_vcpus: MOST_VCPUS,
};

image_between!(image, skep_guest_smp, skep_guest_smp_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_smp, "a", @progbits
    .globl skep_guest_smp, skep_guest_smp_end
    .hidden skep_guest_smp, skep_guest_smp_end
    .balign 16
    .set .Lsmp_print_text, skep_guest_smp - {TEXT}
    .set .Lsmp_print_decimal, skep_guest_smp - {DECIMAL}
    .set .Lsmp_lock, {OWN}
    .set .Lsmp_done, {OWN} + 64
    .set .Lsmp_vcpus, {PARAMETERS}
    .set .Lsmp_private_each, {PARAMETERS} + {OWN_PARAMETERS}
    .code64
skep_guest_smp:

    // edi: this vcpu's number, kept in r12. r13: its first private page, r14: how many.
    mov     r12d, edi
    mov     r14, qword ptr [.Lsmp_private_each]
    mov     r13, r12
    imul    r13, r14
    shl     r13, 12
    add     r13, {PRIVATE}

    // Private pages: write number and vcpu into each. Then read them all again.
    xor     ecx, ecx
    mov     rbx, r13
.Lsmp_fill:
    mov     eax, ecx
    shl     eax, 16
    lea     eax, [rax + r12 + 1]
    mov     qword ptr [rbx], rax
    add     rbx, 4096
    inc     ecx
    cmp     ecx, r14d
    jb      .Lsmp_fill

    xor     ecx, ecx
    mov     rbx, r13
.Lsmp_look:
    mov     eax, ecx
    shl     eax, 16
    lea     eax, [rax + r12 + 1]
    cmp     qword ptr [rbx], rax
    jne     .Lsmp_wrong_private_page
    add     rbx, 4096
    inc     ecx
    cmp     ecx, r14d
    jb      .Lsmp_look

    // Shared page s, counted from 1: add s * (vcpu + 1) to its first word.
    mov     ecx, 1
    mov     ebx, {SHARED}
.Lsmp_add:
    lea     eax, [r12 + 1]
    imul    eax, ecx
    lock add qword ptr [rbx], rax
    add     rbx, 4096
    inc     ecx
    cmp     ecx, {SHARED_PAGES}
    jbe     .Lsmp_add

    // The greeting, under the lock: one whole line at a time.
.Lsmp_try:
    mov     eax, 1
    xchg    dword ptr [.Lsmp_lock], eax
    test    eax, eax
    jz      .Lsmp_mine
.Lsmp_wait:
    pause
    cmp     dword ptr [.Lsmp_lock], 0
    jne     .Lsmp_wait
    jmp     .Lsmp_try
.Lsmp_mine:
    lea     rsi, [rip + .Lsmp_text_before]
    call    .Lsmp_print_text
    mov     eax, r12d
    call    .Lsmp_print_decimal
    lea     rsi, [rip + .Lsmp_text_after]
    call    .Lsmp_print_text
    mov     dword ptr [.Lsmp_lock], 0

    // One more is done. All but vcpu 0 rest for ever: interrupts are off.
    lock inc qword ptr [.Lsmp_done]
    test    r12d, r12d
    jz      .Lsmp_gather
.Lsmp_rest:
    hlt
    jmp     .Lsmp_rest

    // vcpu 0 waits for the others. Then page s holds s * (1 + 2 + ... + vcpus).
.Lsmp_gather:
    mov     r15, qword ptr [.Lsmp_vcpus]
.Lsmp_gathering:
    pause
    cmp     qword ptr [.Lsmp_done], r15
    jne     .Lsmp_gathering
    lea     rax, [r15 + 1]
    imul    r15, rax
    shr     r15, 1
    mov     ecx, 1
    mov     ebx, {SHARED}
.Lsmp_check:
    mov     eax, ecx
    imul    rax, r15
    cmp     qword ptr [rbx], rax
    jne     .Lsmp_wrong_shared_sum
    add     rbx, 4096
    inc     ecx
    cmp     ecx, {SHARED_PAGES}
    jbe     .Lsmp_check

    // ACPI S5.
    mov     edx, {PM1_CONTROL}
    mov     eax, {POWER_OFF}
    out     dx, ax
    jmp     .Lsmp_rest

.Lsmp_wrong_private_page:
    mov     eax, {WRONG_PRIVATE_PAGE}
    jmp     .Lsmp_fail
.Lsmp_wrong_shared_sum:
    mov     eax, {WRONG_SHARED_SUM}
.Lsmp_fail:
    mov     edx, {DEBUG_EXIT}
    out     dx, al
    jmp     .Lsmp_rest

.Lsmp_text_before:
    .asciz  "vcpu "
.Lsmp_text_after:
    .asciz  " says hello\n"
skep_guest_smp_end:
    .popsection
    "#,
    OWN = const OWN.0,
    PARAMETERS = const PARAMETERS.0,
    OWN_PARAMETERS = const OWN_PARAMETERS,
    SHARED = const SHARED.0,
    SHARED_PAGES = const SHARED_PAGES,
    PRIVATE = const PRIVATE.0,
    TEXT = const print::TEXT,
    DECIMAL = const print::DECIMAL,
    DEBUG_EXIT = const DEBUG_EXIT,
    PM1_CONTROL = const PM1_CONTROL,
    POWER_OFF = const (S5_SLEEP_TYPE as u16) << PM1_SLEEP_TYPE_SHIFT | PM1_SLEEP_ENABLE,
    WRONG_PRIVATE_PAGE = const WRONG_PRIVATE_PAGE,
    WRONG_SHARED_SUM = const WRONG_SHARED_SUM,
);
