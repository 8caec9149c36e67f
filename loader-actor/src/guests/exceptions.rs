#![expect(
    unsafe_code,
    reason = "assembles handlers for the guests and takes their bytes as a slice"
)]
//! What happens when a guest with several vcpus takes an exception: none of them should,
//! so it says which one, where, and ends through the debug-exit port with [`EXCEPTION`] +
//! vector. Without this, a lost page of code would be a triple fault and nothing else.
//!
//! ```text
//!   0x0_0004  RSP0      where the processor finds the stack for an exception at CPL 3
//!   0x0_8000  STACK     the stack grows down from here, in the parameters' page
//!   0x0_8a00  TABLE     32 gates
//!   0x0_8c00            32 stubs of 8 bytes, which push their vector; the report
//! ```
//!
//! No vcpu loads a task register: INIT leaves it as a task segment at address 0 (AMD64
//! manual volume 2, section 14.1.3), so the stack pointer for CPL 0 is the word at address
//! 4. All vcpus share that stack: the first exception ends the run.

use std::arch::global_asm;

use actors::Gpa;
use actors::platform::DEBUG_EXIT;

use super::Piece;
use super::image::image_between;
use super::places::{EXCEPTIONS, PRINT, START};
use super::print;

/// The guest ends with this code plus the exception's vector: 0x60 to 0x7f.
pub const EXCEPTION: u8 = 0x60;

/// Where a task segment has the stack pointer for CPL 0.
const RSP0: Gpa = Gpa(4);

/// The stack for reports: below the way in, at the end of the parameters' page.
const STACK: Gpa = START;

/// Bytes of the table, less one.
pub(super) const LIMIT: u16 = 32 * 16 - 1;

/// Table, stubs and report; and the stack pointer.
pub(super) fn pieces() -> [Piece; 2] {
    [(EXCEPTIONS, image().to_vec()), (RSP0, STACK.0.to_le_bytes().to_vec())]
}

image_between!(image, skep_guest_exceptions, skep_guest_exceptions_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_exceptions, "a", @progbits
    .globl skep_guest_exceptions, skep_guest_exceptions_end
    .hidden skep_guest_exceptions, skep_guest_exceptions_end
    .balign 16
    .set .Lexceptions_print_text, skep_guest_exceptions - ({EXCEPTIONS} - {PRINT})
    .set .Lexceptions_print_hex, .Lexceptions_print_text + ({TEXT} - {HEXADECIMAL})
    .code64
skep_guest_exceptions:

    // Gates: interrupt gates to kernel code, on the stack of CPL 0.
    .set    .Lexceptions_vector, 0
    .rept   32
    .short  {EXCEPTIONS} + {STUBS} + .Lexceptions_vector * 8
    .short  {KERNEL_CODE}
    .short  0x8e00
    .short  0
    .quad   0
    .set    .Lexceptions_vector, .Lexceptions_vector + 1
    .endr

    // Stubs.
    .set    .Lexceptions_vector, 0
    .rept   32
    .org    skep_guest_exceptions + {STUBS} + .Lexceptions_vector * 8
    push    .Lexceptions_vector
    jmp     .Lexceptions_report
    .set    .Lexceptions_vector, .Lexceptions_vector + 1
    .endr

    // On the stack: vector; for vectors 8, 10 to 14, 17, 21, 29 and 30 an error code; rip.
.Lexceptions_report:
    lea     rsi, [rip + .Lexceptions_text_exception]
    call    .Lexceptions_print_text
    mov     rax, qword ptr [rsp]
    call    .Lexceptions_print_hex
    pop     r12
    mov     eax, {WITH_ERROR_CODE}
    bt      eax, r12d
    jnc     .Lexceptions_where
    lea     rsi, [rip + .Lexceptions_text_error]
    call    .Lexceptions_print_text
    mov     rax, qword ptr [rsp]
    call    .Lexceptions_print_hex
    pop     rax
.Lexceptions_where:
    lea     rsi, [rip + .Lexceptions_text_rip]
    call    .Lexceptions_print_text
    mov     rax, qword ptr [rsp]
    call    .Lexceptions_print_hex
    lea     rsi, [rip + .Lexceptions_text_address]
    call    .Lexceptions_print_text
    mov     rax, cr2
    call    .Lexceptions_print_hex
    lea     rsi, [rip + .Lexceptions_text_end]
    call    .Lexceptions_print_text
    lea     eax, [r12 + {EXCEPTION}]
    mov     edx, {DEBUG_EXIT}
    out     dx, al
.Lexceptions_rest:
    hlt
    jmp     .Lexceptions_rest

.Lexceptions_text_exception:
    .asciz  "exception 0x"
.Lexceptions_text_error:
    .asciz  " error 0x"
.Lexceptions_text_rip:
    .asciz  " rip 0x"
.Lexceptions_text_address:
    .asciz  " cr2 0x"
.Lexceptions_text_end:
    .asciz  "\n"
skep_guest_exceptions_end:
    .popsection
    "#,
    EXCEPTIONS = const EXCEPTIONS.0,
    PRINT = const PRINT.0,
    TEXT = const print::TEXT,
    HEXADECIMAL = const print::HEXADECIMAL,
    STUBS = const 32 * 16,
    KERNEL_CODE = const super::start::KERNEL_CODE,
    WITH_ERROR_CODE = const WITH_ERROR_CODE,
    EXCEPTION = const EXCEPTION,
    DEBUG_EXIT = const DEBUG_EXIT,
);

/// One bit for each vector that pushes an error code (AMD64 manual volume 2, section 8.2).
const WITH_ERROR_CODE: u32 = 1 << 8
    | 1 << 10
    | 1 << 11
    | 1 << 12
    | 1 << 13
    | 1 << 14
    | 1 << 17
    | 1 << 21
    | 1 << 29
    | 1 << 30;
