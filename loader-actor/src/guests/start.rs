#![expect(unsafe_code, reason = "assembles the guests' way in and takes its bytes as a slice")]
//! The way in that all multi-vcpu guests share: from wherever a vcpu begins to the guest's
//! first byte in 64-bit mode, with its number in `edi` and a stack of its own.
//!
//! ```text
//!   vcpu 0                               the others
//!   entered by the host at `boot`,       woken by vcpu 0: INIT, SIPI; they begin at
//!   64-bit, CPL 0                        `skep_guest_start`, real mode
//!     wakes the others ───────────────▶    64-bit mode on the host's tables
//!     │                                    own number from the local APIC
//!     └──────────────┬─────────────────────┘
//!                 `arrive`: stack; then to IMAGE, at CPL 0, or by iretq at CPL 3
//!                 with IOPL 3, as PARAMETERS say
//! ```
//!
//! Parameters, 64-bit words from [`PARAMETERS`] on: how many vcpus; the privilege level of
//! the guest (0 or 3). What follows belongs to the guest.
//!
//! Interrupts stay off. An exception is a bug, in the guest or in the machine:
//! `exceptions.rs` reports it.

use std::arch::global_asm;

use actors::contract::boot::{EntryMode, EntryState};
use actors::platform::LOCAL_APIC;
use actors::{Gva, PAGE_SIZE};

use super::image::image_between;
use super::places::{EXCEPTIONS, IMAGE, PARAMETERS, STACKS, START, TABLES};
use super::{Piece, exceptions, print, tables};

/// The privilege level a guest's image runs at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// CPL 0: everything is allowed, and emulated where KVM is a software one.
    Kernel = 0,
    /// CPL 3 with IOPL 3: ports are allowed, native speed everywhere.
    User = 3,
}

/// Offset, in [`PARAMETERS`], of the first word that belongs to the guest.
pub const OWN_PARAMETERS: u64 = 16;

/// What every guest with several vcpus needs beside its image: the way in, the page
/// tables, and its parameters, of which `own` belong to the guest.
pub(super) fn pieces(vcpus: u16, level: Level, own: &[u64]) -> Vec<Piece> {
    let words = [u64::from(vcpus), level as u64];
    let words = words.iter().chain(own).copied();
    let parameters = words.flat_map(u64::to_le_bytes).collect();
    let mut pieces =
        vec![(START, image().to_vec()), print::piece(), tables::piece(), (PARAMETERS, parameters)];
    pieces.extend(exceptions::pieces());
    pieces
}

/// How vcpu 0 begins: at `boot`.
pub(super) fn entry() -> EntryState {
    EntryState {
        mode: EntryMode::Long {
            cr3: TABLES,
            gdt: actors::Gpa(START.0 + GDT_OFFSET),
            gdt_limit: GDT_LIMIT,
            code: KERNEL_CODE,
            data: KERNEL_DATA,
            cpl: 0,
        },
        rip: Gva(START.0 + BOOT_OFFSET),
        rsp: Gva(STACKS.0 + PAGE_SIZE),
        rsi: 0,
        rbx: 0,
        rflags: 2,
    }
}

/// Where in the image the descriptor table is.
const GDT_OFFSET: u64 = 0x40;
/// Its size in bytes, less one.
const GDT_LIMIT: u16 = 5 * 8 - 1;
/// Where in the image vcpu 0 begins.
const BOOT_OFFSET: u64 = 0x80;

/// Selectors, in the order that `sysret` wants as well.
pub(super) const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;
const USER_DATA: u16 = 0x18 | 3;
const USER_CODE: u16 = 0x20 | 3;

image_between!(image, skep_guest_start, skep_guest_start_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_start, "a", @progbits
    .globl skep_guest_start, skep_guest_start_end
    .hidden skep_guest_start, skep_guest_start_end
    .balign 16
    .set .Lstart_gdtr_offset, .Lstart_gdtr - skep_guest_start
    .set .Lstart_long_at, .Lstart_long - skep_guest_start + {START}

    // A SIPI leads here: cs is the image, real mode, everything else as after INIT.
    .code16
skep_guest_start:
    mov     ax, cs
    mov     ds, ax
    lgdt    [.Lstart_gdtr_offset]

    // Straight to 64-bit mode: PAE, the host's tables, long mode, then paging and
    // protection at once (AMD64 manual volume 2, section 14.6 allows this from real mode).
    mov     eax, {CR4}
    mov     cr4, eax
    mov     eax, {TABLES}
    mov     cr3, eax
    mov     ecx, {MSR_EFER}
    xor     edx, edx
    mov     eax, {EFER_LME}
    wrmsr
    mov     eax, {CR0}
    mov     cr0, eax
    .byte   0x66, 0xea              // jmp KERNEL_CODE:long, with a 32-bit offset
    .long   .Lstart_long_at
    .short  {KERNEL_CODE}

    // Flat segments; all but `user code` and `kernel code` ignore base and limit anyway.
    // The accessed bits are set: nobody writes here.
    .org    skep_guest_start + {GDT_OFFSET}
    .quad   0
    .quad   0x00af9b000000ffff      // kernel code, 64-bit
    .quad   0x00cf93000000ffff      // kernel data
    .quad   0x00cff3000000ffff      // user data
    .quad   0x00affb000000ffff      // user code, 64-bit
.Lstart_gdtr:
    .short  {GDT_LIMIT}
    .long   {START} + {GDT_OFFSET}
.Lstart_idtr:
    .short  {IDT_LIMIT}
    .quad   {EXCEPTIONS}

    // vcpu 0 begins here. It lets guests use SSE, as the others did. It switches its local APIC on (spurious
    // vector 0xff), as every system does before it sends: KVM's list of targets may lack the last vcpu until then.
    .org    skep_guest_start + {BOOT_OFFSET}
    .code64
    mov     eax, {CR4}
    mov     cr4, rax
    mov     ebx, {LOCAL_APIC}
    mov     dword ptr [rbx + 0xf0], 0x1ff

    // INIT to each of the others, then its SIPI: the high half of the interrupt command
    // register takes the target, the low half sends. Between the two a PC waits 10 ms; a
    // virtual local APIC needs no rest.
    mov     ecx, 1
.Lstart_wake:
    cmp     ecx, dword ptr [{PARAMETERS}]
    jae     .Lstart_all_woken
    mov     eax, ecx
    shl     eax, 24
    mov     dword ptr [rbx + 0x310], eax
    mov     dword ptr [rbx + 0x300], 0x4500             // INIT, assert
    mov     dword ptr [rbx + 0x310], eax
    mov     dword ptr [rbx + 0x300], 0x4600 + {VECTOR}  // SIPI
    inc     ecx
    jmp     .Lstart_wake
.Lstart_all_woken:
    xor     edi, edi
    jmp     .Lstart_arrive

    // The others: who am I?
.Lstart_long:
    mov     eax, {KERNEL_DATA}
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     ebx, {LOCAL_APIC}
    mov     edi, dword ptr [rbx + 0x20]
    shr     edi, 24

    // Everybody, with its number in edi.
.Lstart_arrive:
    mov     esp, edi
    shl     esp, 12
    add     esp, {STACKS} + 4096
    lidt    [rip + .Lstart_idtr]
    mov     esi, {IMAGE}
    cmp     byte ptr [{PARAMETERS} + 8], 0
    jne     .Lstart_descend
    jmp     rsi

    // Down to CPL 3: what iretq pops is where to go on, flags with IOPL 3, and the stack.
.Lstart_descend:
    mov     rax, rsp
    push    {USER_DATA}
    push    rax
    push    {FLAGS_IOPL_3}
    push    {USER_CODE}
    push    rsi
    iretq
skep_guest_start_end:
    .popsection
    "#,
    START = const START.0,
    VECTOR = const START.0 >> 12,
    IMAGE = const IMAGE.0,
    TABLES = const TABLES.0,
    STACKS = const STACKS.0,
    PARAMETERS = const PARAMETERS.0,
    LOCAL_APIC = const LOCAL_APIC.0,
    GDT_OFFSET = const GDT_OFFSET,
    GDT_LIMIT = const GDT_LIMIT,
    IDT_LIMIT = const exceptions::LIMIT,
    EXCEPTIONS = const EXCEPTIONS.0,
    BOOT_OFFSET = const BOOT_OFFSET,
    KERNEL_CODE = const KERNEL_CODE,
    KERNEL_DATA = const KERNEL_DATA,
    USER_CODE = const USER_CODE,
    USER_DATA = const USER_DATA,
    // PAE; SSE, and its exceptions.
    CR4 = const 1 << 5 | 1 << 9 | 1 << 10,
    // Protection, extension type, numeric errors, paging; caches on.
    CR0 = const 0x8000_0031_u32,
    MSR_EFER = const 0xc000_0080_u32,
    EFER_LME = const 1 << 8,
    // Bit 1 is always set; interrupts stay off.
    FLAGS_IOPL_3 = const 3 << 12 | 2,
);
