#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! The guest that runs the loops one after the other and times them with its own clock.

use std::arch::global_asm;

use actors::layout::MemoryLayout;
use actors::platform::DEBUG_EXIT;
use actors::{Gpa, PAGE_SIZE};

use super::{ARENA_BYTES, LOOPS, blob};
use crate::guests::image::image_between;
use crate::guests::places::{IMAGE, OWN, PARAMETERS, TABLES};
use crate::guests::start::OWN_PARAMETERS;
use crate::guests::{Guest, Level, Piece, start};

/// Where the guest has the blob.
pub const PLACE: Gpa = Gpa(0xc000);
/// What each loop took, in ticks of the time-stamp counter.
pub const RESULTS: Gpa = OWN;
/// Its page tables for the arena.
const SMALL: Gpa = Gpa(OWN.0 + (64 << 10));
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
    let tables = pieces.iter_mut().find(|(at, _)| *at == TABLES);
    let (_, upper) = tables.expect("every guest in 64-bit mode has page tables");
    let small = small_pages(upper);
    pieces.push(small);
    pieces.push((PLACE, blob().to_vec()));
    pieces.push((RESULTS, vec![0; (LOOPS.len() + 1) * 8]));
    pieces
}

/// Tables that map the arena in pages of 4 KiB; the leaves of 2 MiB in `upper` give way to them. Present, writable, for
/// users, accessed and dirty.
fn small_pages(upper: &mut [u8]) -> Piece {
    const LARGE: u64 = 2 << 20;
    let level_2 = 2 * PAGE_SIZE;
    for table in 0..ARENA_BYTES / LARGE {
        let entry = level_2 + (ARENA.0 / LARGE + table) * 8;
        let at = usize::try_from(entry).expect("an offset in six pages");
        upper[at..at + 8].copy_from_slice(&((SMALL.0 + table * PAGE_SIZE) | 0x27).to_le_bytes());
    }
    let pages = (0..ARENA_BYTES / PAGE_SIZE).map(|page| (ARENA.0 + page * PAGE_SIZE) | 0x67);
    (SMALL, pages.flat_map(u64::to_le_bytes).collect())
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
    inc     qword ptr [{PROGRESS}]
    call    .Lloops_run
    mov     qword ptr [rbx*8 + {RESULTS}], rax
    inc     qword ptr [{PROGRESS}]
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
    PROGRESS = const RESULTS.0 + 8 * LOOPS.len() as u64,
    ARENA = const ARENA.0,
    COUNT = const LOOPS.len(),
    DEBUG_EXIT = const DEBUG_EXIT,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_blob_and_tables_stay_apart() {
        assert!(IMAGE.0 + image().len() as u64 <= PLACE.0);
        assert!(PLACE.0 + blob().len() as u64 <= TABLES.0);
    }

    #[test]
    fn the_arena_is_mapped_to_itself_by_small_pages_and_its_neighbours_as_before() {
        let memory = MemoryLayout::split(128 << 20, actors::layout::LOWMEM_LIMIT, 48).unwrap();
        let pieces = GUEST.pieces(&memory, 1).unwrap();
        let word = |gpa: u64| {
            let holds =
                |piece: &&Piece| (piece.0.0..piece.0.0 + piece.1.len() as u64).contains(&gpa);
            let (at, bytes) = pieces.iter().find(holds).unwrap();
            let offset = usize::try_from(gpa - at.0).unwrap();
            u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
        };
        for linear in [ARENA.0, ARENA.0 + 0x12_3000, ARENA.0 + ARENA_BYTES - PAGE_SIZE] {
            let table = word(TABLES.0 + 2 * PAGE_SIZE + (linear >> 21) * 8);
            assert_eq!(table & 0xfff, 0x27);
            assert_eq!(word((table & !0xfff) + (linear >> 12) % 512 * 8), linear | 0x67);
        }
        for linear in [ARENA.0 - 1, ARENA.0 + ARENA_BYTES] {
            let leaf = word(TABLES.0 + 2 * PAGE_SIZE + (linear >> 21) * 8);
            assert_eq!(leaf & !0xfff, linear & !0x1f_ffff);
        }
    }
}
