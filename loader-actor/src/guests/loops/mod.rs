//! `loops`: small loops whose speed says what a processor is good at, and a guest that times them.
//!
//! The loops are one piece of code that runs wherever it is put: called by the guest below, by a program on
//! the host itself, or by a system of its own under another emulator. So the same bytes are measured everywhere.
//!
//! ```text
//!   blob (`blob.rs`): two 32-bit offsets per loop of LOOPS, then the code
//!     run      rdi: iterations, at least 1;  rsi: the arena
//!     prepare  rdi: Loop::pages;             rsi: the arena
//!   both return with `ret` and change only what a System V function may change
//!
//!   guest     0x00_7010  iterations of each loop, 64-bit words
//!             0x00_c000  the blob
//!             0x20_0000  ticks of the time-stamp counter that each loop took, 64-bit words; then one that counts
//!                        every time a loop begins to be timed or ends
//!             0x21_0000  page tables of the arena
//!             0x40_0000  the arena, in pages of 4 KiB
//! ```
//!
//! The guest runs each loop twice, the first time a sixteenth as long, so that no page is new when it
//! counts; then it ends through the debug-exit port with 0.

mod blob;
mod guest;

pub use blob::{blob, prepare_offset, run_offset};
pub use guest::{ARENA, GUEST, PLACE, RESULTS};

/// Bytes a loop may touch, from the arena's start on. Nothing need be in them.
pub const ARENA_BYTES: u64 = 64 << 20;

/// One of the loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loop {
    /// What everybody calls it.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Twice the instructions of one iteration: an unpredictable branch skips one every other time.
    pub half_instructions: u32,
    /// Bytes that one iteration copies or fills; 0 where that is not the point.
    pub bytes: u64,
    /// For its preparation: how many pages are chained.
    pub pages: u64,
    /// Iterations that take some 20 ms at the speed of a processor of 2025.
    pub iterations: u64,
}

const fn row(name: &'static str, about: &'static str, half: u32, iterations: u64) -> Loop {
    Loop { name, about, half_instructions: half, bytes: 0, pages: 0, iterations }
}

const fn chase(name: &'static str, about: &'static str, pages: u64, iterations: u64) -> Loop {
    Loop { pages, ..row(name, about, 6, iterations) }
}

const fn copy(name: &'static str, about: &'static str, bytes: u64, iterations: u64) -> Loop {
    Loop { bytes, ..row(name, about, 12, iterations) }
}

/// All of them, in the blob's order.
pub const LOOPS: [Loop; 16] = [
    row("a1", "dec, jnz", 4, 64 << 20),
    row("a2", "add xor lea rol adc cmp dec jnz", 16, 16 << 20),
    row("a3", "imul, unpredictable branch, call and ret, push and pop", 31, 4 << 20),
    row("a4", "read-modify-write mix on one line", 16, 16 << 20),
    row("b1", "sequential 8-byte loads, 16 KiB", 10, 64 << 20),
    chase("b2", "pointer chase, 8 pages", 8, 16 << 20),
    chase("b3", "pointer chase, 128 pages", 128, 8 << 20),
    chase("b4", "pointer chase, 1,024 pages", 1024, 2 << 20),
    chase("b5", "pointer chase, 16,384 pages", 16_384, 512 << 10),
    copy("c1", "rep movsb, 64 KiB", 64 << 10, 32 << 10),
    copy("c2", "rep movsq, 64 KiB", 64 << 10, 32 << 10),
    copy("c2'", "rep movsq, 64 KiB, 16 MiB apart", 64 << 10, 16 << 10),
    copy("c3", "rep movsb, 64 bytes", 64, 4 << 20),
    Loop { half_instructions: 10, ..copy("c4", "rep stosq, 64 KiB", 64 << 10, 32 << 10) },
    row("e1", "SSE2: mulsd addsd divsd mulpd sqrtpd paddd dec jnz", 16, 4 << 20),
    row("e2", "lock xadd, dec, jnz", 6, 4 << 20),
];

/// Where the loop called `name` is in [`LOOPS`].
#[must_use]
pub fn find(name: &str) -> Option<usize> {
    LOOPS.iter().position(|one| one.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_and_its_preparation_begin_in_the_blob_behind_the_table() {
        let table = LOOPS.len() * 8;
        for (index, one) in LOOPS.iter().enumerate() {
            for offset in [run_offset(index), prepare_offset(index)] {
                assert!((table..blob().len()).contains(&offset), "{}: {offset:#x}", one.name);
            }
            assert_eq!(find(one.name), Some(index));
        }
    }

    #[test]
    fn what_a_loop_touches_fits_into_the_arena() {
        for one in LOOPS {
            assert!(one.pages * 4096 <= ARENA_BYTES, "{}", one.name);
        }
        // The far destination of the copy that aliases.
        const { assert!((16 << 20) + (64 << 10) <= ARENA_BYTES) };
    }
}
