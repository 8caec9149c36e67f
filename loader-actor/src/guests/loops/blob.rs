#![expect(unsafe_code, reason = "assembles the loops and takes their bytes as a slice")]
//! The loops' code.
//!
//! What counts is between a loop's first label and its branch back; nothing there refers to an address of its
//! own. Where values matter (a division, a square root) they neither grow nor vanish.

use std::arch::global_asm;

use super::LOOPS;
use crate::guests::image::image_between;

image_between!(
    /// The loops, to be placed on a 16-byte boundary, anywhere.
    pub blob, skep_loops, skep_loops_end);

/// Where in the blob loop `index` begins.
///
/// # Panics
///
/// When there is no such loop.
#[must_use]
pub fn run_offset(index: usize) -> usize {
    offset(2 * index)
}

/// Where in the blob the preparation of loop `index` begins.
///
/// # Panics
///
/// When there is no such loop.
#[must_use]
pub fn prepare_offset(index: usize) -> usize {
    offset(2 * index + 1)
}

fn offset(entry: usize) -> usize {
    assert!(entry < 2 * LOOPS.len(), "the table has no entry {entry}");
    let bytes = blob()[4 * entry..4 * entry + 4].try_into().expect("four bytes");
    usize::try_from(u32::from_le_bytes(bytes)).expect("an offset in a page or two")
}

global_asm!(
    r#"
    .pushsection .rodata.skep_loops, "a", @progbits
    .globl skep_loops, skep_loops_end
    .hidden skep_loops, skep_loops_end
    .balign 4096
    .code64
    .macro  skep_loop run, prepare
    .long   \run - skep_loops, \prepare - skep_loops
    .endm
skep_loops:
    skep_loop .Lloop_a1, .Lloop_nothing
    skep_loop .Lloop_a2, .Lloop_nothing
    skep_loop .Lloop_a3, .Lloop_nothing
    skep_loop .Lloop_a4, .Lloop_nothing
    skep_loop .Lloop_b1, .Lloop_nothing
    skep_loop .Lloop_chase, .Lloop_chain
    skep_loop .Lloop_chase, .Lloop_chain
    skep_loop .Lloop_chase, .Lloop_chain
    skep_loop .Lloop_chase, .Lloop_chain
    skep_loop .Lloop_c1, .Lloop_nothing
    skep_loop .Lloop_c2, .Lloop_nothing
    skep_loop .Lloop_c2_far, .Lloop_nothing
    skep_loop .Lloop_c3, .Lloop_nothing
    skep_loop .Lloop_c4, .Lloop_nothing
    skep_loop .Lloop_e1, .Lloop_nothing
    skep_loop .Lloop_e2, .Lloop_nothing
    .purgem skep_loop

    .balign 32
.Lloop_a1:
    dec     rdi
    jnz     .Lloop_a1
    ret

    .balign 32
.Lloop_a2:
    mov     eax, 1
    mov     edx, 2
.Lloop_a2_next:
    add     rax, rdx
    xor     rdx, rdi
    lea     r8, [rax + rdx*2 + 5]
    rol     r9, 7
    adc     r10, r8
    cmp     rax, r9
    dec     rdi
    jnz     .Lloop_a2_next
    ret

    // A congruence's high bits decide about the branch: nobody predicts them.
    .balign 32
.Lloop_a3:
    mov     r8d, 12345
.Lloop_a3_next:
    imul    r8, r8, 1103515245
    add     r8, 12345
    mov     rax, r8
    shr     rax, 33
    test    eax, 0x400
    jz      .Lloop_a3_skip
    xor     rdx, rax
.Lloop_a3_skip:
    push    rax
    call    .Lloop_a3_leaf
    pop     rcx
    add     r9, rcx
    dec     rdi
    jnz     .Lloop_a3_next
    ret
.Lloop_a3_leaf:
    lea     rax, [rax + rdx]
    xor     r10, rax
    ret

    .balign 32
.Lloop_a4:
    mov     eax, 3
.Lloop_a4_next:
    add     qword ptr [rsi], rax
    inc     qword ptr [rsi + 8]
    xor     dword ptr [rsi + 16], edi
    sub     qword ptr [rsi + 24], 7
    or      byte ptr [rsi + 32], 1
    not     qword ptr [rsi + 40]
    dec     rdi
    jnz     .Lloop_a4_next
    ret

    .balign 32
.Lloop_b1:
    xor     ecx, ecx
.Lloop_b1_next:
    mov     rax, qword ptr [rsi + rcx]
    add     ecx, 8
    and     ecx, 0x3fff
    dec     rdi
    jnz     .Lloop_b1_next
    ret

    .balign 32
.Lloop_chase:
    mov     rax, rsi
.Lloop_chase_next:
    mov     rax, qword ptr [rax]
    dec     rdi
    jnz     .Lloop_chase_next
    ret

    // Chains one word in each of rdi pages, a power of two, in an order that visits all: a congruence of full period.
    // Which of a page's 64 lines has the word depends on the page, so that all sets of a cache get their share.
.Lloop_chain:
    lea     r8, [rdi - 1]
    xor     eax, eax
    mov     r9, rsi
.Lloop_chain_next:
    imul    eax, eax, 1664525
    add     eax, 1013904223
    and     eax, r8d
    mov     ecx, eax
    lea     edx, [rax*4]
    shr     ecx, 4
    xor     edx, ecx
    and     edx, 63
    mov     ecx, eax
    shl     rcx, 12
    shl     edx, 6
    add     rcx, rsi
    add     rcx, rdx
    mov     qword ptr [r9], rcx
    mov     r9, rcx
    dec     rdi
    jnz     .Lloop_chain_next
.Lloop_nothing:
    ret

    .macro  skep_copy label, unit, count, distance
    .balign 32
\label:
    mov     r8, rdi
    mov     r9, rsi
1:
    mov     rsi, r9
    lea     rdi, [r9 + \distance]
    mov     ecx, \count
    rep movs\unit
    dec     r8
    jnz     1b
    ret
    .endm
    skep_copy .Lloop_c1, b, 0x10000, 0x28000
    skep_copy .Lloop_c2, q, 0x2000, 0x28000
    skep_copy .Lloop_c2_far, q, 0x2000, 0x1000000
    skep_copy .Lloop_c3, b, 64, 0x28000
    .purgem skep_copy

    .balign 32
.Lloop_c4:
    mov     r8, rdi
    mov     eax, 1
.Lloop_c4_next:
    mov     rdi, rsi
    mov     ecx, 0x2000
    rep stosq
    dec     r8
    jnz     .Lloop_c4_next
    ret

    .balign 32
.Lloop_e1:
    mov     eax, 1
    cvtsi2sd xmm4, eax
    cvtsi2sd xmm2, eax
    cvtsi2sd xmm3, eax
    mov     eax, 2
    cvtsi2sd xmm5, eax
    unpcklpd xmm5, xmm5
    movapd  xmm1, xmm4
    divsd   xmm1, xmm5
    movapd  xmm0, xmm4
    movapd  xmm6, xmm2
    unpcklpd xmm6, xmm6
    movapd  xmm8, xmm5
    movapd  xmm9, xmm6
.Lloop_e1_next:
    mulsd   xmm0, xmm1
    addsd   xmm0, xmm2
    divsd   xmm3, xmm4
    mulpd   xmm5, xmm6
    sqrtpd  xmm7, xmm5
    paddd   xmm8, xmm9
    dec     rdi
    jnz     .Lloop_e1_next
    ret

    .balign 32
.Lloop_e2:
    mov     eax, 1
.Lloop_e2_next:
    lock xadd qword ptr [rsi], rax
    dec     rdi
    jnz     .Lloop_e2_next
    ret
    .balign 16
skep_loops_end:
    .popsection
    "#
);
