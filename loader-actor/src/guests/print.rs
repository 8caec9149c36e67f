#![expect(
    unsafe_code,
    reason = "assembles routines for the guests and takes their bytes as a slice"
)]
//! Printing on the serial port: three routines that lie at [`PRINT`] beside every guest
//! with several vcpus.
//!
//! | at | prints | uses up |
//! |---|---|---|
//! | [`TEXT`] | the text at rsi, up to its zero byte | rax, rdx, rsi |
//! | [`DECIMAL`] | rax in decimal | rax, rbx, rcx, rdx |
//! | [`HEXADECIMAL`] | rax in hexadecimal | rax, rbx, rcx, rdx |
//!
//! Nobody asks the port whether it is ready: a virtual one always is.

use std::arch::global_asm;

use actors::platform::COM1;

use super::Piece;
use super::image::image_between;
use super::places::{IMAGE, PRINT};

/// Prints text, as bytes from a guest's image: `.set print_text, image_start - TEXT`.
pub(super) const TEXT: u64 = IMAGE.0 - PRINT.0;
/// Prints decimal numbers; in the same terms.
pub(super) const DECIMAL: u64 = TEXT - 0x20;
/// Prints hexadecimal numbers; in the same terms.
pub(super) const HEXADECIMAL: u64 = TEXT - 0x60;

/// The routines, where they belong.
pub(super) fn piece() -> Piece {
    (PRINT, image().to_vec())
}

image_between!(image, skep_guest_print, skep_guest_print_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_print, "a", @progbits
    .globl skep_guest_print, skep_guest_print_end
    .hidden skep_guest_print, skep_guest_print_end
    .balign 16
    .code64
skep_guest_print:

    // Text at rsi.
    mov     edx, {COM1}
.Lprint_next:
    movzx   eax, byte ptr [rsi]
    test    eax, eax
    jz      .Lprint_end
    out     dx, al
    inc     rsi
    jmp     .Lprint_next
.Lprint_end:
    ret

    // rax in decimal: digits are pushed, the last one first, and popped again.
    .org    skep_guest_print + {TEXT} - {DECIMAL}
    mov     ecx, 10
.Lprint_number:
    xor     ebx, ebx
.Lprint_divide:
    xor     edx, edx
    div     rcx
    push    rdx
    inc     ebx
    test    rax, rax
    jnz     .Lprint_divide
    mov     edx, {COM1}
.Lprint_digit:
    pop     rax
    cmp     eax, 10
    jb      .Lprint_below_ten
    add     eax, 'a' - '0' - 10
.Lprint_below_ten:
    add     eax, '0'
    out     dx, al
    dec     ebx
    jnz     .Lprint_digit
    ret

    // rax in hexadecimal.
    .org    skep_guest_print + {TEXT} - {HEXADECIMAL}
    mov     ecx, 16
    jmp     .Lprint_number
skep_guest_print_end:
    .popsection
    "#,
    COM1 = const COM1,
    TEXT = const TEXT,
    DECIMAL = const DECIMAL,
    HEXADECIMAL = const HEXADECIMAL,
);
