#![expect(unsafe_code, reason = "assembles a guest and takes its bytes as a slice")]
//! `toucher`: one vcpu touches page after page and times each touch with its own clock.
//! For measuring what a fault on guest memory costs, as the guest sees it.
//!
//! ```text
//!   0x00_7010  what to touch: start, stride, count, write, paced (64-bit words)
//!   0x20_0000  GO       paced: touch k waits until this is above k
//!   0x20_0040  DONE     touches done
//!   0x20_1000  RESULTS  time-stamp counter ticks of touch k, at + k * 8
//!   0x40_0000  ...      what is touched, unless told otherwise
//! ```
//!
//! The results are placed with the image, so that storing one does not fault. When all is
//! touched the guest ends through the debug-exit port with 0.
//!
//! A result includes two `rdtsc` and their fences: some 20 ns on a page that is there.

use std::arch::global_asm;

use actors::layout::MemoryLayout;
use actors::platform::DEBUG_EXIT;
use actors::{Gpa, GpaRange, PAGE_SIZE};

use super::image::image_between;
use super::places::{IMAGE, OWN, PARAMETERS};
use super::start::OWN_PARAMETERS;
use super::{Guest, Level, Piece, start};

/// How many touches may happen, for a paced guest.
pub const GO: Gpa = OWN;
/// How many touches have happened.
pub const DONE: Gpa = Gpa(OWN.0 + 64);
/// What each touch took, in ticks of the time-stamp counter, 64 bits each.
pub const RESULTS: Gpa = Gpa(OWN.0 + PAGE_SIZE);
/// Room for so many results.
pub const MOST_TOUCHES: u64 = 32 << 10;
/// Where memory begins that is free to be touched.
pub const FREE: Gpa = Gpa(OWN.0 + (2 << 20));

/// Touches page after page.
pub const GUEST: Guest = Guest {
    name: "toucher",
    about: "one vcpu touches page after page and times each touch",
    image,
    load_at: IMAGE,
    entry: start::entry,
    prepare,
    memory_bytes: FREE.0 + PAGE_SIZE,
    most_vcpus: 1,
};

/// What to touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touches {
    /// The first address touched: the start of a word of 8 bytes.
    pub start: Gpa,
    /// Bytes from one touch to the next.
    pub stride: u64,
    /// How many touches.
    pub count: u64,
    /// Whether to write; otherwise to read.
    pub write: bool,
    /// Whether touch k waits until the word at [`GO`] is above k.
    pub paced: bool,
}

/// Why something cannot be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTouches {
    /// No room for the results.
    #[error("{0} touches are more than there is room for results: {MOST_TOUCHES}")]
    TooMany(u64),
    /// Not below the device hole, where the guest's own page tables reach, or in what
    /// belongs to the guest itself.
    #[error(
        "{count} touches of 8 bytes from {start} on, {stride:#x} apart, do not lie in \
         {free}, which is the guest's free memory"
    )]
    Outside {
        /// First touch.
        start: Gpa,
        /// Bytes apart.
        stride: u64,
        /// How many.
        count: u64,
        /// Where they have to be.
        free: GpaRange,
    },
}

impl Touches {
    /// Each of `count` pages once, from [`FREE`] on.
    #[must_use]
    pub fn pages(count: u64, write: bool) -> Self {
        Self { start: FREE, stride: PAGE_SIZE, count, write, paced: false }
    }

    /// The parameters that say this: bytes to place over those of [`Guest::pieces`], before
    /// the guest starts.
    ///
    /// # Errors
    ///
    /// [`BadTouches`] when they do not fit into `memory`.
    pub fn piece(&self, memory: &MemoryLayout) -> Result<Piece, BadTouches> {
        if self.count > MOST_TOUCHES {
            return Err(BadTouches::TooMany(self.count));
        }
        let end = self
            .stride
            .checked_mul(self.count.saturating_sub(1))
            .and_then(|bytes| bytes.checked_add(self.start.0))
            .and_then(|last| last.checked_add(8));
        if self.start < FREE || end.is_none_or(|end| end > memory.low().end().0) {
            let free = memory.low().end().0.saturating_sub(FREE.0);
            return Err(BadTouches::Outside {
                start: self.start,
                stride: self.stride,
                count: self.count,
                free: GpaRange::new(FREE, free).unwrap_or(memory.low()),
            });
        }
        let at = Gpa(PARAMETERS.0 + OWN_PARAMETERS);
        Ok((at, self.words().into_iter().flat_map(u64::to_le_bytes).collect()))
    }

    fn words(&self) -> [u64; 5] {
        [self.start.0, self.stride, self.count, u64::from(self.write), u64::from(self.paced)]
    }
}

/// Where the result of touch `index` is.
///
/// # Panics
///
/// When `index` is not below [`MOST_TOUCHES`].
#[must_use]
pub fn result(index: u64) -> Gpa {
    assert!(index < MOST_TOUCHES, "there is no result {index}");
    Gpa(RESULTS.0 + index * 8)
}

/// Unless told otherwise: writes to every page there is, or as many as have results.
fn prepare(memory: &MemoryLayout, vcpus: u16) -> Vec<Piece> {
    let free_pages = memory.low().end().0.saturating_sub(FREE.0) / PAGE_SIZE;
    let touches = Touches::pages(free_pages.min(MOST_TOUCHES), true);
    let mut pieces = start::pieces(vcpus, Level::User, &touches.words());
    let own_bytes = RESULTS.0 + MOST_TOUCHES * 8 - OWN.0;
    pieces.push((OWN, (0..own_bytes).map(|_| 0).collect()));
    pieces
}

image_between!(image, skep_guest_toucher, skep_guest_toucher_end);

global_asm!(
    r#"
    .pushsection .rodata.skep_guest_toucher, "a", @progbits
    .globl skep_guest_toucher, skep_guest_toucher_end
    .hidden skep_guest_toucher, skep_guest_toucher_end
    .balign 16
    .code64
skep_guest_toucher:

    // rsi: the word to touch. r8: bytes to the next. r9: touches left. r10: write? r11:
    // paced? rdi: the result's place. rbx: touches done.
    mov     rsi, qword ptr [{TOUCHES}]
    mov     r8, qword ptr [{TOUCHES} + 8]
    mov     r9, qword ptr [{TOUCHES} + 16]
    mov     r10, qword ptr [{TOUCHES} + 24]
    mov     r11, qword ptr [{TOUCHES} + 32]
    mov     edi, {RESULTS}
    xor     ebx, ebx

.Ltoucher_next:
    cmp     rbx, r9
    jae     .Ltoucher_end
    test    r11, r11
    jz      .Ltoucher_go
.Ltoucher_wait:
    pause
    cmp     rbx, qword ptr [{GO}]
    jae     .Ltoucher_wait

    // The fences keep the touch between the two readings of the clock.
.Ltoucher_go:
    lfence
    rdtsc
    lfence
    mov     ecx, eax
    shl     rdx, 32
    or      rcx, rdx
    test    r10, r10
    jz      .Ltoucher_read
    mov     qword ptr [rsi], rbx
    jmp     .Ltoucher_touched
.Ltoucher_read:
    mov     rax, qword ptr [rsi]
.Ltoucher_touched:
    lfence
    rdtsc
    shl     rdx, 32
    or      rax, rdx
    sub     rax, rcx
    mov     qword ptr [rdi], rax
    add     rdi, 8
    add     rsi, r8
    inc     rbx
    mov     qword ptr [{DONE}], rbx
    jmp     .Ltoucher_next

.Ltoucher_end:
    xor     eax, eax
    mov     edx, {DEBUG_EXIT}
    out     dx, al
.Ltoucher_rest:
    pause
    jmp     .Ltoucher_rest
skep_guest_toucher_end:
    .popsection
    "#,
    TOUCHES = const PARAMETERS.0 + OWN_PARAMETERS,
    RESULTS = const RESULTS.0,
    GO = const GO.0,
    DONE = const DONE.0,
    DEBUG_EXIT = const DEBUG_EXIT,
);

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> MemoryLayout {
        MemoryLayout::split(8 << 20, actors::layout::LOWMEM_LIMIT, 48).unwrap()
    }

    #[test]
    fn touches_that_end_with_memory_are_taken_and_one_more_is_not() {
        let pages = (memory().low().end().0 - FREE.0) / PAGE_SIZE;
        assert!(Touches::pages(pages, true).piece(&memory()).is_ok());
        let refused = Touches::pages(pages + 1, true).piece(&memory()).unwrap_err();
        assert!(refused.to_string().contains("0x400000"), "{refused}");
    }

    #[test]
    fn touches_that_wrap_around_or_hit_the_guest_itself_are_refused() {
        let well = Touches::pages(2, false);
        for (start, stride) in [
            (IMAGE, PAGE_SIZE),
            (FREE, u64::MAX),
            (Gpa(u64::MAX), PAGE_SIZE),
            (Gpa(u64::MAX - 7), 0),
        ] {
            let touches = Touches { start, stride, ..well };
            assert!(touches.piece(&memory()).is_err(), "{touches:?}");
        }
        let many = Touches::pages(MOST_TOUCHES + 1, false);
        assert_eq!(many.piece(&memory()), Err(BadTouches::TooMany(MOST_TOUCHES + 1)));
    }

    #[test]
    fn by_default_every_free_page_is_written() {
        let pieces = GUEST.pieces(&memory(), 1).unwrap();
        let (_, parameters) = pieces.iter().find(|(at, _)| *at == PARAMETERS).unwrap();
        let words: Vec<u64> = parameters
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [1, 3, FREE.0, PAGE_SIZE, 1024, 1, 0]);
    }
}
