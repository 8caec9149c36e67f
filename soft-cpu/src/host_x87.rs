//! x87 instructions, done by the host's own unit: so every bit is as on hardware, transcendental functions, stack
//! faults, precision control and responses to unmasked exceptions included.
//!
//! # Invariant
//!
//! An instruction runs between FRSTOR of the guest's registers and FNSAVE. FNSAVE leaves the unit as FNINIT
//! does, which is how the ABI wants it between functions (System V x86-64 psABI, "Registers": empty stack; control word
//! 0x37f). An unmasked exception of the guest's instruction is only flagged by it; it would be raised by the next
//! *waiting* instruction, and FNSAVE is none. FRSTOR never loads flags that would be raised by the instruction
//! itself: they are taken out first. Memory operands are sixteen bytes of our own, more than any of these
//! instructions touches.

#![expect(
    unsafe_code,
    reason = "executes x87 instructions on registers that are saved and restored"
)]

use std::arch::asm;

use crate::x87_state::{Extended, X87, status};

/// What an instruction reads and writes besides the unit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Around {
    /// The memory operand.
    pub(crate) operand: [u8; 16],
    /// The low byte of RFLAGS.
    pub(crate) flags: u8,
    /// Overflow flag: 0 or 1.
    pub(crate) overflow: u8,
}

/// FNSAVE's image in 32-bit protected layout.
#[derive(Clone, Copy)]
#[repr(C)]
struct Image {
    control: u32,
    status: u32,
    tags: u32,
    pointers: [u32; 4],
    registers: [[u8; 10]; 8],
}

const _: () = assert!(size_of::<Image>() == 108, "the layout of FNSAVE");

/// One instruction: its two bytes are compiled in.
type Native = fn(&mut Image, &mut Around);

fn execute<const FIRST: u8, const SECOND: u8>(image: &mut Image, around: &mut Around) {
    let accumulator = u64::from(around.flags) << 8 | u64::from(around.overflow & 1);
    let after: u64;
    // SAFETY: the module's invariant. RDX is the operand's address in every memory form of the table.
    unsafe {
        asm!(
            "frstor [{image}]",
            // OF first, then the others.
            "add al, 127",
            "sahf",
            ".byte {first}, {second}",
            "seto al",
            "lahf",
            "fnsave [{image}]",
            image = in(reg) std::ptr::from_mut(image),
            first = const FIRST,
            second = const SECOND,
            inout("rax") accumulator => after,
            in("rdx") around.operand.as_mut_ptr(),
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _,
            out("mm4") _, out("mm5") _, out("mm6") _, out("mm7") _,
            options(nostack),
        );
    }
    let [overflow, flags, ..] = after.to_le_bytes();
    (around.flags, around.overflow) = (flags, overflow);
}

/// The table: for each first byte, second bytes with ST(i) for ST(0) (ST(1) follows it), then second
/// bytes as they are, then memory forms by their number in the ModRM byte.
macro_rules! natives {
    ($($first:literal: [$($stack:literal)*] [$($single:literal)*] [$($form:literal)*];)*) => {
        &[$(
            $(
                (($first as u16) << 8 | $stack, execute::<$first, $stack> as Native),
                (($first as u16) << 8 | $stack + 1, execute::<$first, { $stack + 1 }> as Native),
            )*
            $((($first as u16) << 8 | $single, execute::<$first, $single> as Native),)*
            // ModRM: memory at RDX.
            $((($first as u16) << 8 | $form << 3 | 2, execute::<$first, { $form << 3 | 2 }> as Native),)*
        )*]
    };
}

static NATIVES: &[(u16, Native)] = natives! {
    0xd8: [0xc0 0xc8 0xd0 0xd8 0xe0 0xe8 0xf0 0xf8] [] [0 1 2 3 4 5 6 7];
    0xd9: [0xc0 0xc8 0xd8]
        [0xc7 0xd0 0xe0 0xe1 0xe4 0xe5 0xe8 0xe9 0xea 0xeb 0xec 0xed 0xee 0xf0 0xf1 0xf2 0xf3 0xf4 0xf5 0xf6 0xf7
            0xf8 0xf9 0xfa 0xfb 0xfc 0xfd 0xfe 0xff]
        [0 2 3];
    0xda: [0xc0 0xc8 0xd0 0xd8] [0xe9] [0 1 2 3 4 5 6 7];
    0xdb: [0xc0 0xc8 0xd0 0xd8 0xe8 0xf0] [] [0 1 2 3 5 7];
    0xdc: [0xc0 0xc8 0xd0 0xd8 0xe0 0xe8 0xf0 0xf8] [] [0 1 2 3 4 5 6 7];
    0xdd: [0xc0 0xc8 0xd0 0xd8 0xe0 0xe8] [] [0 1 2 3];
    0xde: [0xc0 0xc8 0xd0 0xe0 0xe8 0xf0 0xf8] [0xd9] [0 1 2 3 4 5 6 7];
    0xdf: [0xc0 0xc8 0xd0 0xd8 0xe8 0xf0] [] [0 1 2 3 4 5 6 7];
};

/// The number of the instruction with these two bytes, for [`run`].
pub(crate) fn find(bytes: u16) -> Option<u16> {
    let found = NATIVES.iter().position(|(known, _)| *known == bytes)?;
    u16::try_from(found).ok()
}

/// Runs instruction `number` on `unit`, which has no exception pending. The pointers to the last instruction are
/// left alone.
pub(crate) fn run(number: u16, unit: &mut X87, around: &mut Around) {
    let Some((_, native)) = NATIVES.get(usize::from(number)) else { return };
    let unmasked = !unit.control & status::EXCEPTIONS;
    let mut image = Image {
        control: u32::from(unit.control),
        status: u32::from(unit.status() & !unmasked & !status::PENDING),
        tags: u32::from(coarse_tags(unit.occupied)),
        pointers: [0; 4],
        registers: [[0; 10]; 8],
    };
    for (index, bytes) in image.registers.iter_mut().enumerate() {
        *bytes = unit.stack(index).to_bytes();
    }
    native(&mut image, around);
    let [low, high, ..] = image.status.to_le_bytes();
    unit.set_status(u16::from_le_bytes([low, high]));
    let [low, high, ..] = image.tags.to_le_bytes();
    unit.set_tags(u16::from_le_bytes([low, high]));
    for (index, bytes) in image.registers.iter().enumerate() {
        unit.set_stack(index, Extended::from_bytes(*bytes));
    }
}

/// A full tag word that only tells empty from valid; more FRSTOR does not look at.
fn coarse_tags(occupied: u8) -> u16 {
    (0..8).fold(0, |tags, index| tags | (u16::from(!occupied >> index & 1) * 3) << (2 * index))
}
