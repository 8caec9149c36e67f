#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `storm`: vcpus read and write pages while the monitor keeps taking them away, and notice
//! when they are shown what is no longer there.
//!
//! # The promise under test
//!
//! Once the monitor's invalidation of a page is complete, no vcpu reaches the old page any
//! more; and an invalidation that keeps the contents loses none of them.
//!
//! # The players
//!
//! * The *monitor* ([`storm_driver`](super::storm_driver)) changes one data page at a time and
//!   writes that page's **page word**: a generation and a [`Mode`]. A new generation
//!   begins with a page of zeroes.
//! * Each *vcpu* owns one **slot** in every data page, and alone writes it: stamps, which
//!   name the generation. It remembers what it wrote there last (`own`).
//!
//! Layout and encodings: [`storm_control`].
//!
//! # The dance
//!
//! ```text
//!   vcpu: one touch of page i                    monitor: ends generation g of page i
//!   G1  touching := (touch number, i)            M1  page word := (g, changing or closed)
//!   G2  ── locked exchange: a full fence ──      M2  ── fence SeqCst ──
//!   G3  read the page word: (g, mode)            M3  wait until each touch of i that was
//!       closed? go to G7                             under way is over
//!   G4  own slot: exactly what I wrote           M4  take the page away; wait until that
//!       last in generation g, or 0                   is complete
//!   G5  another slot: 0, or a stamp of g         M5  page word := (g + 1, open)
//!   G6  open? write my slot; read it again
//!   G7  touching := 0
//! ```
//!
//! Each side writes its own word and then reads the other's, with a full fence between: so
//! a touch either sees the new page word at G3, or is seen by the monitor at M3 and waited
//! for. A touch that sees `changing` may go on reading during M4: that is how a page is
//! taken away *while it is in use*. A touch that sees `closed` keeps away.
//!
//! # Why every alarm is true
//!
//! Let a touch have read (g, mode) at G3, and the machine be right. Then:
//!
//! 1. *Nobody writes a stamp of g after M3 of generation g.* Stamps are written at G6, in
//!    touches that read (g, open); M3 waits for all of them. And nobody writes one before M5
//!    of generation g - 1, which published g.
//! 2. *No slot holds a stamp older than g.* The touch read g, so M5 of g - 1 was over,
//!    hence its M4 was complete and the page began anew with zeroes; by 1 nobody wrote
//!    older stamps since. An older stamp was therefore read from a page that is no longer
//!    there: [`STALE`].
//! 3. *In `open` and `read-only` the contents are whole.* The next M4 comes after M3, which
//!    waits for this touch. So the own slot, which only this vcpu writes, is exactly
//!    `own`: what it wrote since generation g began, or 0 (it sets `own` to 0 when it finds
//!    a new generation). Anything else was lost, or read from another page: [`LOST`].
//! 4. *In `changing` a slot may also be zero*, as M4 goes on meanwhile; and another vcpu may
//!    already write stamps of g + 1, as M5 does not wait for readers. It cannot be g + 2:
//!    M3 of generation g + 1 waits for this touch. Anything newer than that, or a word that is
//!    no stamp and stays none when read again, was never written there: [`FOREIGN`].
//!
//! A Forget (translations go, contents stay) happens in `open`, without any announcement and
//! under full fire: rule 3 is its test. What cannot be noticed here: a translation that was
//! to go, stayed, and still leads to the right page, and a write allowed too long.
//!
//! # After
//!
//! When the monitor says stop, vcpu 0 waits for the others, prints one line and ends through
//! the debug-exit port with 0. The first alarm prints a line and ends with its code.

use std::arch::global_asm;

use actors::platform::DEBUG_EXIT;

use super::image::image_between;
use super::places::{IMAGE, PARAMETERS};
use super::storm_control::{
    self, CONTROL, DATA, DATA_PAGES, FOCUSES, MOST_VCPUS, Mode, SLOT_STRIDE, VCPUS, control, vcpu,
};
use super::{Guest, Level, Piece, print, start};

/// Ends with this code: a stamp of an older generation, from a page that is gone.
pub const STALE: u8 = 0x51;
/// Ends with this code: the own slot does not hold what was written last.
pub const LOST: u8 = 0x52;
/// Ends with this code: a word that nobody can have written there.
pub const FOREIGN: u8 = 0x53;

/// How often a word that is no stamp is read again before it counts as [`FOREIGN`].
const MOST_REREADS: u32 = 1000;

/// The storm at CPL 3.
pub const GUEST: Guest = Guest {
    name: "storm",
    about: "vcpus use pages that the monitor keeps taking away; a stale read fails the run",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare: |_, vcpus| prepare(vcpus, Level::User),
    memory_bytes: DATA.0 + DATA_PAGES as u64 * actors::PAGE_SIZE,
    most_vcpus: MOST_VCPUS,
};

/// The same at CPL 0.
pub const GUEST_AT_CPL_0: Guest = Guest {
    name: "storm0",
    about: "storm at CPL 0, where a software KVM emulates",
    prepare: |_, vcpus| prepare(vcpus, Level::Kernel),
    ..GUEST
};

fn prepare(vcpus: u16, level: Level) -> Vec<Piece> {
    let mut pieces = start::pieces(vcpus, level, &[]);
    pieces.extend(storm_control::pieces(vcpus));
    pieces
}

image_between!(image, skep_guest_storm, skep_guest_storm_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_storm, "a", @progbits
    .globl skep_guest_storm, skep_guest_storm_end
    .hidden skep_guest_storm, skep_guest_storm_end
    .balign 16
    .set .Lstorm_print_text, skep_guest_storm - {TEXT}
    .set .Lstorm_print_decimal, skep_guest_storm - {DECIMAL}
    .set .Lstorm_print_hex, skep_guest_storm - {HEXADECIMAL}
    .set .Lstorm_lock, {CONTROL} + {LOCK}
    .set .Lstorm_finished, {CONTROL} + {FINISHED}
    .code64
skep_guest_storm:

    // edi: this vcpu's number. For good:
    //   r15  this vcpu's page             r12  offset of its slot in a data page
    //   r14  CONTROL                      rbp  offset behind the last vcpu's slot
    //   r13  offset of the slot to look at in the next touch
    //   r11  random                       r9   touch number << 8
    mov     r15d, edi
    shl     r15d, 12
    add     r15d, {VCPUS}
    mov     r14d, {CONTROL}
    mov     r12d, edi
    imul    r12d, r12d, {SLOT_STRIDE}
    mov     ebp, dword ptr [{PARAMETERS}]
    imul    ebp, ebp, {SLOT_STRIDE}
    xor     r13d, r13d
    lea     r11d, [rdi + 1]
    imul    r11d, r11d, 0x9e3779b1
    xor     r9d, r9d

    // Which page? rbx: one that the monitor aims at, and a random one, in turn.
.Lstorm_next:
    cmp     qword ptr [r14 + {STOP}], 0
    jne     .Lstorm_finish
    test    r9d, 0x100
    jz      .Lstorm_elsewhere
    mov     eax, r9d
    shr     eax, 9
    and     eax, {FOCUSES} - 1
    mov     ebx, dword ptr [r14 + rax*8 + {FOCUS}]
    and     ebx, {DATA_PAGES} - 1
    jmp     .Lstorm_announce
.Lstorm_elsewhere:
    imul    r11d, r11d, 1664525
    add     r11d, 1013904223
    mov     ebx, r11d
    shr     ebx, 27

    // G1, G2. Then rsi: the data page. edx: how often words may be read again.
.Lstorm_announce:
    add     r9, 0x100
    lea     rax, [r9 + rbx + 1]
    xchg    qword ptr [r15 + {TOUCHING}], rax
    mov     esi, ebx
    shl     esi, 12
    add     esi, {DATA}
    mov     edx, {MOST_REREADS}

    // G3. r8d: the page word. edi: its generation, where a stamp has it.
.Lstorm_read_word:
    mov     eax, ebx
    imul    eax, eax, {SLOT_STRIDE}
    mov     rax, qword ptr [r14 + rax + {PAGE_WORDS}]
    mov     rcx, rax
    shr     rcx, 32
    not     ecx
    cmp     ecx, eax
    jne     .Lstorm_word_again
    mov     r8d, eax
    and     ecx, 3
    cmp     ecx, {CLOSED}
    je      .Lstorm_skip
    shr     eax, 2
    mov     edi, eax
    shl     edi, 16

    // A new generation: nothing of mine is in that page.
    cmp     rax, qword ptr [r15 + rbx*8 + {SEEN}]
    je      .Lstorm_own
    mov     qword ptr [r15 + rbx*8 + {SEEN}], rax
    mov     qword ptr [r15 + rbx*8 + {OWN}], 0
    inc     qword ptr [r15 + {RENEWALS}]

    // G4. rcx: what must be there. rax: what is there.
.Lstorm_own:
    mov     rcx, qword ptr [r15 + rbx*8 + {OWN}]
    mov     rax, qword ptr [rsi + r12]
    cmp     rax, rcx
    jne     .Lstorm_own_differs

    // G5. One slot in each touch, in turn.
.Lstorm_other:
    mov     rax, qword ptr [rsi + r13]
    test    rax, rax
    jz      .Lstorm_other_is_fine
    mov     rcx, rax
    shr     rcx, 32
    not     ecx
    cmp     ecx, eax
    jne     .Lstorm_other_again
    xor     ecx, edi
    shr     ecx, 16
    jnz     .Lstorm_other_differs
.Lstorm_other_is_fine:
    add     r13d, {SLOT_STRIDE}
    cmp     r13d, ebp
    jb      .Lstorm_write
    xor     r13d, r13d

    // G6. The stamp: generation and touch number, sealed.
.Lstorm_write:
    test    r8d, 3
    jnz     .Lstorm_used
    mov     eax, r9d
    shr     eax, 8
    movzx   eax, ax
    or      eax, edi
    mov     ecx, eax
    not     ecx
    shl     rcx, 32
    or      rcx, rax
    mov     qword ptr [r15 + rbx*8 + {OWN}], rcx
    mov     qword ptr [rsi + r12], rcx
    mov     rax, qword ptr [rsi + r12]
    cmp     rax, rcx
    jne     .Lstorm_own_differs
.Lstorm_used:
    inc     qword ptr [r15 + rbx*8 + {USES}]

    // G7.
.Lstorm_end_of_touch:
    mov     qword ptr [r15 + {TOUCHING}], 0
    inc     qword ptr [r15 + {PROGRESS}]
    jmp     .Lstorm_next
.Lstorm_skip:
    inc     qword ptr [r15 + {SKIPPED}]
    jmp     .Lstorm_end_of_touch

    // The own slot is not what it should be. Zero is right while the page is changing. A
    // stamp of another time is an alarm; what is no stamp is read again.
.Lstorm_own_differs:
    test    rax, rax
    jnz     .Lstorm_own_is_something
    mov     eax, r8d
    and     eax, 3
    cmp     eax, {CHANGING}
    je      .Lstorm_other
    xor     eax, eax
    jmp     .Lstorm_lost
.Lstorm_own_is_something:
    mov     r10, rax
    shr     r10, 32
    not     r10d
    cmp     r10d, eax
    je      .Lstorm_wrong_stamp
    inc     qword ptr [r15 + {REREADS}]
    dec     edx
    jnz     .Lstorm_own
    jmp     .Lstorm_foreign

    // Another slot is no stamp: read it again.
.Lstorm_other_again:
    inc     qword ptr [r15 + {REREADS}]
    xor     ecx, ecx
    dec     edx
    jnz     .Lstorm_other
    jmp     .Lstorm_foreign

    // It is a stamp of another generation: right if that is the next one, while changing.
.Lstorm_other_differs:
    mov     ecx, eax
    sub     ecx, edi
    shr     ecx, 16
    cmp     ecx, 1
    mov     ecx, 0
    jne     .Lstorm_wrong_stamp
    mov     ecx, r8d
    and     ecx, 3
    cmp     ecx, {CHANGING}
    mov     ecx, 0
    je      .Lstorm_other_is_fine
    jmp     .Lstorm_foreign

    // The page word itself is half written.
.Lstorm_word_again:
    inc     qword ptr [r15 + {REREADS}]
    dec     edx
    jnz     .Lstorm_read_word
    mov     r8d, 0
    xor     ecx, ecx
    jmp     .Lstorm_foreign

    // rax is a stamp that must not be there. Older than the page word: stale. Of the same
    // generation: an older one of mine. Newer: nobody can have written it.
.Lstorm_wrong_stamp:
    mov     r10d, eax
    sub     r10d, edi
    sar     r10d, 16
    js      .Lstorm_stale
    jz      .Lstorm_lost
.Lstorm_foreign:
    mov     r13d, {FOREIGN}
    lea     r14, [rip + .Lstorm_text_foreign]
    jmp     .Lstorm_alarm
.Lstorm_lost:
    mov     r13d, {LOST}
    lea     r14, [rip + .Lstorm_text_lost]
    jmp     .Lstorm_alarm
.Lstorm_stale:
    mov     r13d, {STALE}
    lea     r14, [rip + .Lstorm_text_stale]

    // For the monitor to read; the code last. Then one line, by the first who gets here.
.Lstorm_alarm:
    mov     qword ptr [r15 + {ALARM} + 8], rbx
    mov     qword ptr [r15 + {ALARM} + 16], r8
    mov     qword ptr [r15 + {ALARM} + 24], rax
    mov     qword ptr [r15 + {ALARM} + 32], rcx
    mov     qword ptr [r15 + {ALARM}], r13
    mov     eax, 1
    xchg    dword ptr [.Lstorm_lock], eax
    test    eax, eax
    jnz     .Lstorm_rest
    mov     rsi, r14
    call    .Lstorm_print_text
    lea     rsi, [rip + .Lstorm_text_vcpu]
    call    .Lstorm_print_text
    mov     eax, r12d
    shr     eax, 6
    call    .Lstorm_print_decimal
    lea     rsi, [rip + .Lstorm_text_page]
    call    .Lstorm_print_text
    mov     rax, qword ptr [r15 + {ALARM} + 8]
    call    .Lstorm_print_decimal
    lea     rsi, [rip + .Lstorm_text_generation]
    call    .Lstorm_print_text
    mov     eax, r8d
    shr     eax, 2
    call    .Lstorm_print_hex
    lea     rsi, [rip + .Lstorm_text_mode]
    call    .Lstorm_print_text
    mov     eax, r8d
    and     eax, 3
    call    .Lstorm_print_decimal
    lea     rsi, [rip + .Lstorm_text_found]
    call    .Lstorm_print_text
    mov     rax, qword ptr [r15 + {ALARM} + 24]
    call    .Lstorm_print_hex
    lea     rsi, [rip + .Lstorm_text_expected]
    call    .Lstorm_print_text
    mov     rax, qword ptr [r15 + {ALARM} + 32]
    call    .Lstorm_print_hex
    lea     rsi, [rip + .Lstorm_text_end]
    call    .Lstorm_print_text
    mov     eax, r13d
    mov     edx, {DEBUG_EXIT}
    out     dx, al
.Lstorm_rest:
    pause
    jmp     .Lstorm_rest

    // The monitor said stop. vcpu 0 waits for the others and adds up.
.Lstorm_finish:
    lock inc qword ptr [.Lstorm_finished]
    test    r12d, r12d
    jnz     .Lstorm_rest
    mov     r12d, dword ptr [{PARAMETERS}]
.Lstorm_gather:
    pause
    cmp     qword ptr [.Lstorm_finished], r12
    jne     .Lstorm_gather
    xor     r13d, r13d
    xor     r14d, r14d
.Lstorm_add:
    add     r13, qword ptr [r15 + {PROGRESS}]
    add     r14, qword ptr [r15 + {RENEWALS}]
    add     r15, 4096
    dec     r12d
    jnz     .Lstorm_add
    lea     rsi, [rip + .Lstorm_text_storm]
    call    .Lstorm_print_text
    mov     rax, r13
    call    .Lstorm_print_decimal
    lea     rsi, [rip + .Lstorm_text_touches]
    call    .Lstorm_print_text
    mov     rax, r14
    call    .Lstorm_print_decimal
    lea     rsi, [rip + .Lstorm_text_renewals]
    call    .Lstorm_print_text
    xor     eax, eax
    mov     edx, {DEBUG_EXIT}
    out     dx, al
    jmp     .Lstorm_rest

.Lstorm_text_storm:
    .asciz  "storm: "
.Lstorm_text_touches:
    .asciz  " touches, "
.Lstorm_text_renewals:
    .asciz  " of them of a page renewed since the last, no stale read\n"
.Lstorm_text_stale:
    .asciz  "stale read: "
.Lstorm_text_lost:
    .asciz  "lost contents: "
.Lstorm_text_foreign:
    .asciz  "foreign contents: "
.Lstorm_text_vcpu:
    .asciz  "vcpu "
.Lstorm_text_page:
    .asciz  " page "
.Lstorm_text_generation:
    .asciz  " generation 0x"
.Lstorm_text_mode:
    .asciz  " mode "
.Lstorm_text_found:
    .asciz  " found 0x"
.Lstorm_text_expected:
    .asciz  " wanted 0x"
.Lstorm_text_end:
    .asciz  "\n"
skep_guest_storm_end:
    .popsection
    "#,
    TEXT = const print::TEXT,
    DECIMAL = const print::DECIMAL,
    HEXADECIMAL = const print::HEXADECIMAL,
    LOCK = const control::LOCK,
    FINISHED = const control::FINISHED,
    PARAMETERS = const PARAMETERS.0,
    CONTROL = const CONTROL.0,
    VCPUS = const VCPUS.0,
    DATA = const DATA.0,
    DATA_PAGES = const DATA_PAGES,
    SLOT_STRIDE = const SLOT_STRIDE,
    STOP = const control::STOP,
    FOCUS = const control::FOCUS,
    FOCUSES = const FOCUSES,
    PAGE_WORDS = const control::PAGE_WORDS,
    TOUCHING = const vcpu::TOUCHING,
    PROGRESS = const vcpu::PROGRESS,
    RENEWALS = const vcpu::RENEWALS,
    SKIPPED = const vcpu::SKIPPED,
    REREADS = const vcpu::REREADS,
    ALARM = const vcpu::ALARM,
    USES = const vcpu::USES,
    OWN = const vcpu::OWN,
    SEEN = const vcpu::SEEN,
    CLOSED = const Mode::Closed as u32,
    CHANGING = const Mode::Changing as u32,
    MOST_REREADS = const MOST_REREADS,
    STALE = const STALE,
    LOST = const LOST,
    FOREIGN = const FOREIGN,
    DEBUG_EXIT = const DEBUG_EXIT,
);
