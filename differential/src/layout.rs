//! Where everything lies: the same linear addresses in the child process and in the software processor's guest.

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// How many sequences travel together.
pub const SLOTS: usize = 64;

/// The low data area: two pages to read and write, then one to read only. In reach of 32-bit addresses
/// and of RIP-relative ones. The pages before and behind are absent.
pub const LOW: u64 = 0x2000_0000;

/// Pages of the low area that can be written.
pub const LOW_PAGES: u64 = 2;

/// The read-only page behind them.
pub const READ_ONLY: u64 = LOW + LOW_PAGES * PAGE;

/// The high data area, in reach of 64-bit addresses only. The pages before and behind are absent.
pub const HIGH: u64 = 0x10_0000_0000;

/// Pages of the high area.
pub const HIGH_PAGES: u64 = 2;

/// What GS points at in user mode: into the high area.
pub const GS_BASE: u64 = HIGH + 0x800;

/// Bytes of data that a sequence can change: the low pages, then the high ones.
#[expect(clippy::cast_possible_truncation, reason = "four pages")]
pub const DATA_BYTES: usize = ((LOW_PAGES + HIGH_PAGES) * PAGE) as usize;

/// Code of slot 0.
pub const CODE: u64 = 0x3000_0000;

/// Code bytes of a slot: two pages, so that a sequence may cross from one to the next.
#[expect(clippy::cast_possible_truncation, reason = "two pages")]
pub const CODE_BYTES: usize = 2 * PAGE as usize;

/// From one slot's code to the next one's.
pub const CODE_STRIDE: u64 = 0x4000;

/// What fills the code pages around a sequence: `int3`.
pub const CODE_FILL: u8 = 0xcc;

/// The page with the way in and the way out, far from everything else.
pub const TRAMPOLINE: u64 = 0x2f5a_1357_0000;

/// Where a sequence that is over jumps to.
pub const EXIT: u64 = TRAMPOLINE + 0x200;

/// Selectors of user mode, as Linux hands them out (arch/x86/include/asm/segment.h): 64-bit code.
pub const USER_CODE: u16 = 0x33;

/// User mode's stack.
pub const USER_STACK: u16 = 0x2b;

/// Where slot `slot`'s code starts.
#[must_use]
pub fn code_of_slot(slot: usize) -> u64 {
    CODE + slot as u64 * CODE_STRIDE
}

/// Which bytes of a case's data lie at `address`, if any do.
#[must_use]
pub fn data_offset(address: u64) -> Option<usize> {
    let low = address.wrapping_sub(LOW);
    let high = address.wrapping_sub(HIGH);
    if low < LOW_PAGES * PAGE {
        usize::try_from(low).ok()
    } else if high < HIGH_PAGES * PAGE {
        usize::try_from(LOW_PAGES * PAGE + high).ok()
    } else {
        None
    }
}

/// The address of a byte of a case's data.
#[must_use]
pub fn data_address(offset: usize) -> u64 {
    let offset = offset as u64;
    if offset < LOW_PAGES * PAGE { LOW + offset } else { HIGH + (offset - LOW_PAGES * PAGE) }
}
