//! The guest around the software processor: page tables, descriptors and handlers that show a sequence the same
//! user mode as Linux does.

use crate::layout::{
    CODE_BYTES, EXIT, HIGH, HIGH_PAGES, LOW, LOW_PAGES, PAGE, READ_ONLY, SLOTS, code_of_slot,
};
use crate::native::NativeError;
use crate::native::region::Pages;
use crate::templates;

/// Pages of guest memory.
pub(super) const FRAMES: usize = 192;
/// The root of the page tables.
pub(super) const ROOT: u64 = PAGE;
/// Where the supervisor's pages are: handlers, IDT, GDT with TSS, stack.
pub(super) const KERNEL: u64 = 0xffff_8000_0000_0000;
/// The interrupt table.
pub(super) const IDT: u64 = KERNEL + PAGE;
/// The descriptor table.
pub(super) const GDT: u64 = KERNEL + 2 * PAGE;
/// The task state.
pub(super) const TSS: u64 = GDT + 0x800;
/// What the stack pointer is when a handler is called.
pub(super) const STACK_TOP: u64 = KERNEL + 4 * PAGE - 64;
/// From one handler to the next.
pub(super) const HANDLER_STRIDE: u64 = 16;
/// The last byte of the descriptor table: sixteen entries, as Linux has.
pub(super) const GDT_LIMIT: u16 = 0x7f;

/// Linux's descriptors (arch/x86/include/asm/segment.h, `gdt_page` in arch/x86/kernel/cpu/common.c).
const DESCRIPTORS: [u64; 16] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0,
    0x0040_f500_0000_0000,
];

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const NO_EXECUTE: u64 = 1 << 63;

/// Guest memory and what lies where in it.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) pages: Pages,
    next: usize,
    /// The first frame of the data areas, one after the other.
    pub(super) data: usize,
    /// The first frame of the code of slot 0.
    pub(super) code: usize,
    /// The supervisor's stack page.
    pub(super) stack: usize,
    /// Where a run ends: the way out, and the handlers.
    pub(super) ends: [usize; 2],
}

impl Guest {
    /// Lays everything out.
    pub(super) fn new() -> Result<Self, NativeError> {
        let mut guest =
            Self { pages: Pages::new(FRAMES)?, next: 2, data: 0, code: 0, stack: 0, ends: [0; 2] };
        let pages_of = |bytes: u64| usize::try_from(bytes / PAGE).unwrap_or(0);
        guest.data = guest.take(pages_of((LOW_PAGES + HIGH_PAGES) * PAGE));
        guest.code = guest.take(SLOTS * CODE_BYTES / 4096);
        let read_only = guest.take(1);
        let exit = guest.take(1);
        let kernel = guest.take(4);
        guest.stack = kernel + 3;
        guest.ends = [exit, kernel];
        for page in 0..LOW_PAGES {
            guest.map(
                LOW + page * PAGE,
                guest.data + pages_of(page * PAGE),
                USER | WRITABLE | NO_EXECUTE,
            );
        }
        for page in 0..HIGH_PAGES {
            let frame = guest.data + pages_of((LOW_PAGES + page) * PAGE);
            guest.map(HIGH + page * PAGE, frame, USER | WRITABLE | NO_EXECUTE);
        }
        guest.map(READ_ONLY, read_only, USER | NO_EXECUTE);
        guest.put(read_only, 0, &templates::all().read_only);
        for slot in 0..SLOTS {
            for page in 0..CODE_BYTES as u64 / PAGE {
                let frame = guest.code_frame(slot) + pages_of(page * PAGE);
                guest.map(code_of_slot(slot) + page * PAGE, frame, USER);
            }
        }
        guest.map(EXIT & !(PAGE - 1), exit, USER);
        for page in 0..4 {
            guest.map(KERNEL + page as u64 * PAGE, kernel + page, WRITABLE);
        }
        guest.fill_kernel(kernel);
        Ok(guest)
    }

    /// The first of a slot's frames.
    pub(super) fn code_frame(&self, slot: usize) -> usize {
        self.code + slot * (CODE_BYTES / 4096)
    }

    /// Frames that nobody has.
    fn take(&mut self, count: usize) -> usize {
        self.next += count;
        assert!(self.next <= FRAMES, "the layout fits");
        self.next - count
    }

    /// Writes into a frame.
    pub(super) fn put(&self, frame: usize, offset: usize, bytes: &[u8]) {
        self.pages.write(frame * 4096 + offset, bytes);
    }

    /// Reads 8 bytes.
    pub(super) fn word(&self, frame: usize, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.pages.read(frame * 4096 + offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Maps one page. Accessed and dirty bits are set already.
    fn map(&mut self, address: u64, frame: usize, rights: u64) {
        const ACCESSED_DIRTY: u64 = 0x60;
        let index = |level: u32| usize::try_from(address >> (12 + 9 * level) & 511).unwrap_or(0);
        let mut table = 1;
        for level in [3, 2, 1] {
            let entry = self.word(table, 8 * index(level));
            table = if entry & PRESENT == 0 {
                let new = self.take(1);
                let entry = (new as u64 * PAGE) | PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
                self.put(table, 8 * index(level), &entry.to_le_bytes());
                new
            } else {
                usize::try_from(entry >> 12 & 0xff_ffff).unwrap_or(0)
            };
        }
        let entry = (frame as u64 * PAGE) | PRESENT | rights | ACCESSED_DIRTY;
        self.put(table, 8 * index(0), &entry.to_le_bytes());
    }

    /// Handlers that halt, and the tables that lead to them.
    fn fill_kernel(&self, kernel: usize) {
        // Nothing stands at the handlers: to get there is enough.
        for vector in 0..256_u64 {
            let handler = KERNEL + vector * HANDLER_STRIDE;
            let at = usize::try_from(vector).unwrap_or(0) * 16;
            // Interrupt gates; user mode may call 3 and 4 only, as under Linux.
            let kind = if vector == 3 || vector == 4 { 0xee00_u64 } else { 0x8e00 };
            let low = handler & 0xffff | 0x10 << 16 | kind << 32 | (handler >> 16 & 0xffff) << 48;
            self.put(kernel + 1, at, &low.to_le_bytes());
            self.put(kernel + 1, at + 8, &(handler >> 32).to_le_bytes());
        }
        for (number, descriptor) in DESCRIPTORS.iter().enumerate() {
            self.put(kernel + 2, 8 * number, &descriptor.to_le_bytes());
        }
        // RSP0, and an I/O map that begins behind the limit: no port is allowed.
        self.put(kernel + 2, 0x804, &STACK_TOP.to_le_bytes());
        self.put(kernel + 2, 0x866, &0x68_u16.to_le_bytes());
    }
}
