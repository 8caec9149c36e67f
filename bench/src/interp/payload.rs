#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! A system of its own around the loops, for emulators of whole machines.
//!
//! ```text
//!   0x010_0000  this image: multiboot header, code; tables at + 0x1000; the blob at + 0x4000
//!   0x020_0000  page tables, which it makes: 256 MiB at their own addresses, 4 KiB pages, open to CPL 3
//!   0x032_0000  top of its stack; 0x030_0000 and 0x034_0000: of those for traps and for CPL 3
//!   0x100_0000  the arena
//!   0xfff_f000  a page that is not mapped
//! ```
//!
//! It is entered as multiboot says: 32-bit protected mode, flat, no paging. It goes to long mode with interrupts off and
//! obeys COM1, once it has said `r`: a byte that says which loop, eight bytes that say how often. It answers `s` just before the loop
//! begins and `e` when it has ended.
//!
//! Loops beyond those of the blob need a system: `syscall` from CPL 3, a software interrupt, a page
//! fault, a reload of CR3, a port.

use std::arch::global_asm;

use loader_actor::guests::loops;

/// Where the image begins, and how far from there it is entered.
pub(crate) const LOAD: u64 = 0x10_0000;
/// Where the blob is in it.
const BLOB: u64 = 0x4000;
/// Memory the machine needs, in bytes.
pub(crate) const MEMORY: u64 = 256 << 20;
/// COM1's data and line-status registers.
pub(crate) const DATA_PORT: u16 = 0x3f8;
pub(crate) const STATUS_PORT: u16 = 0x3fd;
/// Orders are taken, a loop begins, a loop has ended.
pub(crate) const READY: u8 = b'r';
pub(crate) const STARTED: u8 = b's';
pub(crate) const ENDED: u8 = b'e';

const TABLES: u64 = 0x20_0000;
const ARENA: u64 = 0x100_0000;
const PAGES: u64 = MEMORY / 4096;
const TASK: u64 = LOAD + 0x2100;

const _: () = assert!(ARENA + loops::ARENA_BYTES < MEMORY - 4096);

/// The image: a multiboot kernel without a format of its own, to be placed at [`LOAD`].
pub(crate) fn image() -> Vec<u8> {
    let mut image = code().to_vec();
    image.resize(usize::try_from(BLOB).expect("16 KiB"), 0);
    image.extend_from_slice(loops::blob());
    image
}

/// Where it is entered: the header's last word.
pub(crate) fn entry() -> u64 {
    let bytes = code()[28..32].try_into().expect("four bytes");
    u64::from(u32::from_le_bytes(bytes))
}

/// What makes it run loop `which` (the blob's, then its own) so often.
pub(crate) fn command(which: u8, iterations: u64) -> [u8; 9] {
    let mut bytes = [which; 9];
    bytes[1..].copy_from_slice(&iterations.to_le_bytes());
    bytes
}

fn code() -> &'static [u8] {
    // SAFETY: both symbols are defined in the block below; only their addresses are used.
    unsafe extern "C" {
        safe static skep_payload: u8;
        safe static skep_payload_end: u8;
    }
    let start = &raw const skep_payload;
    let length = (&raw const skep_payload_end).addr() - start.addr();
    // SAFETY: one block in a read-only section defines both, in this order: all bytes between them are
    // initialised, never written, and live for ever.
    unsafe { std::slice::from_raw_parts(start, length) }
}

global_asm!(
    r#"
    .pushsection .rodata.skep_payload, "a", @progbits
    .globl skep_payload, skep_payload_end
    .hidden skep_payload, skep_payload_end
    .balign 4096
    .set .Lpayload_gdtr_at, .Lpayload_gdtr - skep_payload + {LOAD}
    .code32
skep_payload:
    .long   0x1badb002, 0x00010000, -(0x1badb002 + 0x00010000)
    .long   {LOAD}, {LOAD}, 0, 0
    .long   .Lpayload_entry - skep_payload + {LOAD}

    // One table of each upper kind, then the leaves: present, writable, user, accessed, dirty.
.Lpayload_entry:
    mov     esp, 0x320000
    mov     edi, {TABLES}
    xor     eax, eax
    mov     ecx, 3 * 1024
    cld
    rep stosd
    mov     dword ptr [{TABLES}], {TABLES} + 0x1000 + 0x27
    mov     dword ptr [{TABLES} + 0x1000], {TABLES} + 0x2000 + 0x27
    mov     edi, {TABLES} + 0x2000
    mov     eax, {TABLES} + 0x3000 + 0x27
    mov     ecx, {PAGES} / 512
.Lpayload_table:
    mov     dword ptr [edi], eax
    add     edi, 8
    add     eax, 4096
    dec     ecx
    jnz     .Lpayload_table
    mov     edi, {TABLES} + 0x3000
    mov     eax, 0x67
    mov     ecx, {PAGES}
.Lpayload_leaf:
    mov     dword ptr [edi], eax
    mov     dword ptr [edi + 4], 0
    add     edi, 8
    add     eax, 4096
    dec     ecx
    jnz     .Lpayload_leaf
    mov     dword ptr [edi - 8], 0

    // Long mode: PAE, SSE; system calls; protection, write protection, paging.
    mov     eax, 0x620
    mov     cr4, eax
    mov     eax, {TABLES}
    mov     cr3, eax
    mov     ecx, 0xc0000080
    xor     edx, edx
    mov     eax, 0x101
    wrmsr
    mov     eax, 0x80010033
    mov     cr0, eax
    lgdt    [.Lpayload_gdtr_at]
    .byte   0xea
    .long   .Lpayload_long - skep_payload + {LOAD}
    .short  8

    .code64
.Lpayload_long:
    mov     eax, 0x10
    mov     ds, eax
    mov     es, eax
    mov     ss, eax
    mov     eax, 0x28
    ltr     ax
    lidt    [rip + .Lpayload_idtr]
    xor     eax, eax
    mov     edx, 0x00130008
    mov     ecx, 0xc0000081
    wrmsr
    xor     edx, edx
    lea     rax, [rip + .Lpayload_syscall]
    mov     ecx, 0xc0000082
    wrmsr
    xor     eax, eax
    mov     ecx, 0xc0000084
    wrmsr

    mov     al, {READY}
    call    .Lpayload_send

    // ebx: which loop. rbp: how often.
.Lpayload_next:
    call    .Lpayload_receive
    movzx   ebx, al
    mov     ecx, 8
.Lpayload_count:
    call    .Lpayload_receive
    shl     rax, 56
    shr     rbp, 8
    or      rbp, rax
    dec     ecx
    jnz     .Lpayload_count
    lea     r12, [rip + .Lpayload_own]
    cmp     ebx, {BLOB_LOOPS}
    jae     .Lpayload_found
    lea     r12, [rip + skep_payload + {BLOB}]
    mov     eax, dword ptr [r12 + rbx*8 + 4]
    add     rax, r12
    lea     rdi, [rip + .Lpayload_pages]
    mov     rdi, qword ptr [rdi + rbx*8]
    mov     esi, {ARENA}
    call    rax
    mov     eax, dword ptr [r12 + rbx*8]
    jmp     .Lpayload_run
.Lpayload_found:
    mov     eax, dword ptr [r12 + rbx*4 - {BLOB_LOOPS} * 4]
    lea     r12, [rip + skep_payload]
.Lpayload_run:
    add     r12, rax
    mov     al, {STARTED}
    call    .Lpayload_send
    mov     rdi, rbp
    mov     esi, {ARENA}
    call    r12
    mov     al, {ENDED}
    call    .Lpayload_send
    jmp     .Lpayload_next

    // A byte from COM1, in rax.
.Lpayload_receive:
    mov     edx, {STATUS_PORT}
    in      al, dx
    test    al, 1
    jz      .Lpayload_receive
    mov     edx, {DATA_PORT}
    in      al, dx
    movzx   eax, al
    ret

.Lpayload_send:
    mov     ecx, eax
.Lpayload_full:
    mov     edx, {STATUS_PORT}
    in      al, dx
    test    al, 0x20
    jz      .Lpayload_full
    mov     edx, {DATA_PORT}
    mov     eax, ecx
    out     dx, al
    ret

.Lpayload_own:
    .long   .Lpayload_d1 - skep_payload
    .long   .Lpayload_d2 - skep_payload
    .long   .Lpayload_d3 - skep_payload
    .long   .Lpayload_d4 - skep_payload
    .long   .Lpayload_d5 - skep_payload

    // To CPL 3, and back through the gate 0x81.
.Lpayload_d1:
    lea     rcx, [rip + .Lpayload_d1_next]
.Lpayload_descend:
    mov     qword ptr [rip + .Lpayload_stack], rsp
    mov     esp, 0x340000
    mov     r11d, 2
    sysretq
    .balign 32
.Lpayload_d1_next:
    syscall
    dec     rdi
    jnz     .Lpayload_d1_next
    int     0x81

.Lpayload_syscall:
    sysretq

.Lpayload_ascend:
    mov     rsp, qword ptr [rip + .Lpayload_stack]
    mov     eax, 0x10
    mov     ss, eax
    ret

.Lpayload_d2:
    lea     rcx, [rip + .Lpayload_d2_next]
    jmp     .Lpayload_descend
    .balign 32
.Lpayload_d2_next:
    int     0x80
    dec     rdi
    jnz     .Lpayload_d2_next
    int     0x81

.Lpayload_int80:
    iretq

    // The load is three bytes long; the handler steps over it.
    .balign 32
.Lpayload_d3:
    mov     r8d, {UNMAPPED}
.Lpayload_d3_next:
    mov     rax, qword ptr [r8]
    dec     rdi
    jnz     .Lpayload_d3_next
    ret

.Lpayload_page_fault:
    add     qword ptr [rsp + 8], 3
    add     rsp, 8
    iretq

    .balign 32
.Lpayload_d4:
    mov     rax, cr3
.Lpayload_d4_next:
    mov     cr3, rax
    .irp    page, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    mov     edx, dword ptr [rsi + \page * 4096]
    .endr
    dec     rdi
    jnz     .Lpayload_d4_next
    ret

    .balign 32
.Lpayload_d5:
    out     0x80, al
    dec     rdi
    jnz     .Lpayload_d5
    ret

    .balign 8
.Lpayload_pages:
    .quad   0, 0, 0, 0, 0, {B2}, {B3}, {B4}, {B5}, 0, 0, 0, 0, 0, 0, 0
.Lpayload_gdtr:
    .short  0x37
    .long   {LOAD} + 0x2000
.Lpayload_idtr:
    .short  0xfff
    .quad   {LOAD} + 0x1000

    // The image's code is in its first 4 KiB, so an address is its offset, and LOAD's high half.
    .macro  skep_gate vector, handler, kind
    .org    skep_payload + 0x1000 + \vector * 16
    .short  \handler - skep_payload, 8
    .byte   0, \kind
    .short  {LOAD} >> 16
    .quad   0
    .endm
    skep_gate 14, .Lpayload_page_fault, 0x8e
    skep_gate 0x80, .Lpayload_int80, 0xee
    skep_gate 0x81, .Lpayload_ascend, 0xee
    .purgem skep_gate

    // Kernel code, kernel data, user data, user code, as `sysret` wants them; the task state.
    .org    skep_payload + 0x2000
    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff
    .quad   0x00cff3000000ffff, 0x00affb000000ffff
    .quad   0x0000890000000067 | ({TASK} & 0xffffff) << 16, 0
    .org    skep_payload + 0x2100
    .long   0
    .quad   0x300000
    .org    skep_payload + 0x2100 + 0x68
.Lpayload_stack:
    .quad   0
skep_payload_end:
    .popsection
    "#,
    LOAD = const LOAD,
    TABLES = const TABLES,
    PAGES = const PAGES,
    BLOB = const BLOB,
    ARENA = const ARENA,
    UNMAPPED = const MEMORY - 4096,
    TASK = const TASK,
    BLOB_LOOPS = const loops::LOOPS.len(),
    READY = const READY,
    STARTED = const STARTED,
    ENDED = const ENDED,
    DATA_PORT = const DATA_PORT,
    STATUS_PORT = const STATUS_PORT,
    B2 = const 8,
    B3 = const 128,
    B4 = const 1024,
    B5 = const 16_384,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_one_that_multiboot_loaders_take() {
        let image = image();
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(word(0).wrapping_add(word(4)).wrapping_add(word(8)), 0);
        assert_eq!((word(12), word(16)), (0x10_0000, 0x10_0000));
        assert!((LOAD + 32..LOAD + 0x1000).contains(&entry()));
    }

    #[test]
    fn the_pages_its_own_table_says_are_the_loops() {
        let words: Vec<u8> = loops::LOOPS.iter().flat_map(|one| one.pages.to_le_bytes()).collect();
        assert!(code().windows(words.len()).any(|window| window == words));
    }
}
