#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! The guest that runs the loops one after the other and times them with its own clock.

use std::arch::global_asm;

use actors::Gpa;
use actors::layout::MemoryLayout;
use actors::platform::DEBUG_EXIT;

use super::{ARENA_BYTES, LOOPS, blob};
use crate::guests::image::image_between;
use crate::guests::places::{IMAGE, OWN, PARAMETERS};
use crate::guests::start::OWN_PARAMETERS;
use crate::guests::{Guest, Level, Piece, start};

/// Where the guest has the blob.
pub const PLACE: Gpa = Gpa(0xc000);
/// What each loop took, in ticks of the time-stamp counter.
pub const RESULTS: Gpa = OWN;
/// Where its arena begins.
pub const ARENA: Gpa = Gpa(OWN.0 + (2 << 20));

/// Runs the loops and ends.
pub const GUEST: Guest = Guest {
    name: "loops",
    about: "one vcpu runs small loops at CPL 3 and times each",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare,
    memory_bytes: ARENA.0 + ARENA_BYTES,
    most_vcpus: 1,
};

fn prepare(_memory: &MemoryLayout, vcpus: u16) -> Vec<Piece> {
    let iterations = LOOPS.map(|one| [one.iterations, one.pages]);
    let mut pieces = start::pieces(vcpus, Level::User, iterations.as_flattened());
    pieces.push((PLACE, blob().to_vec()));
    pieces.push((RESULTS, vec![0; LOOPS.len() * 8]));
    pieces
}

image_between!(image, skep_guest_loops, skep_guest_loops_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_loops, "a", @progbits
    .globl skep_guest_loops, skep_guest_loops_end
    .hidden skep_guest_loops, skep_guest_loops_end
    .balign 16
    .code64
skep_guest_loops:
    // ebx: the loop's number.
    xor     ebx, ebx
.Lloops_next:
    mov     ebp, ebx
    shl     ebp, 4
    mov     rdi, qword ptr [rbp + {PARAMETERS} + 8]
    mov     esi, {ARENA}
    mov     eax, dword ptr [rbx*8 + {PLACE} + 4]
    add     eax, {PLACE}
    call    rax

    mov     rdi, qword ptr [rbp + {PARAMETERS}]
    shr     rdi, 4
    inc     rdi
    call    .Lloops_run
    mov     rdi, qword ptr [rbp + {PARAMETERS}]
    call    .Lloops_run
    mov     qword ptr [rbx*8 + {RESULTS}], rax
    inc     ebx
    cmp     ebx, {COUNT}
    jb      .Lloops_next

    xor     eax, eax
    mov     edx, {DEBUG_EXIT}
    out     dx, al
.Lloops_rest:
    pause
    jmp     .Lloops_rest

    // Runs the loop rdi times; rax: ticks.
.Lloops_run:
    mov     esi, {ARENA}
    mov     r11d, dword ptr [rbx*8 + {PLACE}]
    add     r11d, {PLACE}
    lfence
    rdtsc
    lfence
    shl     rdx, 32
    or      rax, rdx
    push    rax
    call    r11
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    pop     rcx
    sub     rax, rcx
    ret
skep_guest_loops_end:
    .popsection
    "#,
    PARAMETERS = const PARAMETERS.0 + OWN_PARAMETERS,
    PLACE = const PLACE.0,
    RESULTS = const RESULTS.0,
    ARENA = const ARENA.0,
    COUNT = const LOOPS.len(),
    DEBUG_EXIT = const DEBUG_EXIT,
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::places::TABLES;

    #[test]
    fn image_blob_and_tables_stay_apart() {
        assert!(IMAGE.0 + image().len() as u64 <= PLACE.0);
        assert!(PLACE.0 + blob().len() as u64 <= TABLES.0);
    }
}
