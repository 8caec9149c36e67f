//! Saving and loading the x87 unit's and the SSE registers' state.

use iced_x86::code_asm::*;

use super::{DATA, Guest};
use crate::cpu::{cr0, cr4, reg, seg};
use crate::segment::Segment;
use crate::x87_state::Extended;

/// Vectors of a guest whose handlers say which one it was.
pub(super) fn guest_with_handlers() -> Guest {
    const TABLE: u64 = 0x4000;
    const HANDLERS: u64 = 0x5000;
    const DESCRIPTORS: u64 = 0x6000;
    const DEVICE: u32 = 0x3000_0000;
    let mut guest = Guest::long();
    // A code segment for the gates: long, ring 0.
    guest.memory.write64(DESCRIPTORS + 8, 0x00af_9b00_0000_ffff);
    guest.memory.write64(DESCRIPTORS + 16, 0x00cf_9300_0000_ffff);
    for vector in 0..32u64 {
        let handler = HANDLERS + 16 * vector;
        guest.memory.write64(TABLE + 16 * vector, handler | 8 << 16 | 0x8e00 << 32);
        // mov ebp, 0x100 + vector; mov [DEVICE], eax: ends the run.
        let number = u8::try_from(vector).unwrap();
        let mut bytes = vec![0xbd, number, 1, 0, 0, 0x89, 0x04, 0x25];
        bytes.extend_from_slice(&DEVICE.to_le_bytes());
        guest.memory.write(handler, &bytes);
    }
    let cpu = &mut guest.processor.cpu;
    cpu.gdtr.base = DESCRIPTORS;
    cpu.gdtr.limit = 23;
    cpu.idtr.base = TABLE;
    cpu.idtr.limit = 511;
    guest
}

/// Which exception the guest ended with.
pub(super) fn vector(guest: &Guest) -> u64 {
    guest.reg(reg::RBP).wrapping_sub(0x100)
}

fn half(guest: &Guest, at: u64) -> u16 {
    u16::from_le_bytes(guest.memory.read(at, 2).try_into().unwrap())
}

#[test]
fn fninit_makes_the_unit_as_linux_expects_it() {
    let mut guest = Guest::long();
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(dword_ptr(rdi), -1).unwrap();
        a.fninit().unwrap();
        a.fnstsw(word_ptr(rdi)).unwrap();
        a.fnstcw(word_ptr(rdi + 2)).unwrap();
        a.mov(eax, -1).unwrap();
        a.fnstsw(ax).unwrap();
        a.wait().unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((half(&guest, DATA), half(&guest, DATA + 2)), (0, 0x37f));
    assert_eq!(guest.reg(reg::RAX), 0xffff_0000);
}

#[test]
fn a_control_word_keeps_no_reserved_bits() {
    let mut guest = Guest::long();
    guest.memory.write(DATA, &[0xff, 0xff, 0, 0]);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fldcw(word_ptr(rdi)).unwrap();
        a.fnstcw(word_ptr(rdi)).unwrap();
        a.fldcw(word_ptr(rdi + 2)).unwrap();
        a.fnstcw(word_ptr(rdi + 2)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((half(&guest, DATA), half(&guest, DATA + 2)), (0x1f7f, 0x40));
}

/// A state in which every field differs from every other.
fn colour(guest: &mut Guest) {
    let cpu = &mut guest.processor.cpu;
    for index in 0..8 {
        let number = 0x11 * (u64::try_from(index).unwrap() + 1);
        cpu.x87.registers[index] = Extended {
            significand: number * 0x0101_0101_0101_0101,
            exponent: u16::try_from(0x4000 + number).unwrap(),
        };
    }
    for (number, register) in (0xa0u128..).zip(&mut cpu.xmm) {
        *register = number * 0x0101_0101_0101_0101_0101_0101_0101_0101;
    }
    cpu.x87.set_control(0x0c7f);
    cpu.x87.set_status(0x4100 | 5 << 11 | 0x20);
    cpu.x87.occupied = 0b1110_0001;
    cpu.x87.opcode = 0x5a5;
    cpu.x87.instruction = 0x1234_5678_9abc_def0;
    cpu.x87.data = 0x0fed_cba9_8765_4321;
    cpu.mxcsr = 0x3f80;
}

/// What `fxsave64` makes of it, byte by byte.
fn expected_image() -> Vec<u8> {
    let mut image = vec![0x7f, 0x0c, 0x20, 0x69, 0b1110_0001, 0, 0xa5, 0x05];
    image.extend_from_slice(&0x1234_5678_9abc_def0u64.to_le_bytes());
    image.extend_from_slice(&0x0fed_cba9_8765_4321u64.to_le_bytes());
    image.extend_from_slice(&[0x80, 0x3f, 0, 0, 0xff, 0xff, 0, 0]);
    for index in 0..8u8 {
        // ST(0) is R5.
        let number = 0x11 * ((index + 5) % 8 + 1);
        image.extend_from_slice(&[number; 8]);
        image.extend_from_slice(&[number, 0x40, 0, 0, 0, 0, 0, 0]);
    }
    for number in 0xa0..0xb0u8 {
        image.extend_from_slice(&[number; 16]);
    }
    image
}

#[test]
fn fxsave64_writes_the_architectures_layout_and_nothing_behind_it() {
    let mut guest = Guest::long();
    guest.memory.write(DATA, &[0xee; 520]);
    colour(&mut guest);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fxsave64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let image = expected_image();
    assert_eq!(guest.memory.read(DATA, 416), image);
    assert_eq!(guest.memory.read(DATA + 416, 104), [0xee; 104]);
}

#[test]
fn fxsave_without_rex_w_cuts_the_pointers() {
    let mut guest = Guest::long();
    colour(&mut guest);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fxsave(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let mut image = expected_image();
    image[12..16].fill(0);
    image[20..24].fill(0);
    assert_eq!(guest.memory.read(DATA, 416), image);
}

#[test]
fn outside_64_bit_mode_there_are_eight_sse_registers() {
    let mut guest = Guest::long();
    guest.memory.write(DATA, &[0xee; 512]);
    colour(&mut guest);
    let cpu = &mut guest.processor.cpu;
    let code = cpu.segments[seg::CS];
    cpu.set_segment(seg::CS, Segment { attributes: 0xc09b, ..code });
    cpu.gpr[reg::RDI] = DATA;
    let before = cpu.xmm;
    // fxsave [edi]; pxor xmm0, xmm0; fxrstor [edi]; ud2
    guest.run_bytes(&[0x0f, 0xae, 0x07, 0x66, 0x0f, 0xef, 0xc0, 0x0f, 0xae, 0x0f, 0x0f, 0x0b]);
    let mut image = expected_image();
    image[12..16].fill(0);
    image[20..24].fill(0);
    image[288..].fill(0xee);
    assert_eq!(guest.memory.read(DATA, 416), image);
    assert_eq!(guest.processor.cpu.xmm, before);
}

#[test]
fn what_fxsave_wrote_fxrstor_reads() {
    let mut guest = Guest::long();
    colour(&mut guest);
    let before = guest.processor.cpu.x87.clone();
    let sse = guest.processor.cpu.xmm;
    guest.run(|a| {
        // Across a page boundary.
        a.mov(rdi, DATA + 0xf00).unwrap();
        a.fxsave64(ptr(rdi)).unwrap();
        a.fninit().unwrap();
        a.fxsave64(ptr(rdi + 0x400)).unwrap();
        a.fxrstor64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    assert_eq!(cpu.x87, before);
    assert_eq!((cpu.xmm, cpu.mxcsr), (sse, 0x3f80));
    assert_eq!(guest.memory.read(DATA + 0x1300, 5), [0x7f, 3, 0, 0, 0]);
}

#[test]
fn fxsave_to_a_page_that_is_not_there_changes_nothing() {
    let mut guest = guest_with_handlers();
    // The second half of the area has no translation.
    let hole = 0x40_0000 - 256;
    guest.memory.write64(0x3000 + 16, 0);
    guest.memory.write(hole, &[0xee; 256]);
    colour(&mut guest);
    guest.run(|a| {
        a.mov(rdi, hole).unwrap();
        a.fxsave64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((vector(&guest), guest.processor.cpu.cr2), (14, 0x40_0000));
    assert_eq!(guest.memory.read(hole, 256), [0xee; 256]);
}

#[test]
fn an_area_must_be_aligned_and_mxcsr_must_be_legal() {
    let mut guest = guest_with_handlers();
    guest.run(|a| {
        a.mov(rdi, DATA + 8).unwrap();
        a.fxsave64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(vector(&guest), 13);

    let mut guest = guest_with_handlers();
    colour(&mut guest);
    let before = guest.processor.cpu.x87.clone();
    guest.memory.write(DATA + 24, &[0, 0, 1, 0]);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fxrstor64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(vector(&guest), 13);
    assert_eq!(guest.processor.cpu.x87, before);
}

#[test]
fn a_switched_task_and_an_absent_unit_are_reported() {
    for (bits, code, expected) in [
        (cr0::TS, &[0xdb, 0xe3][..], 7),
        (cr0::EM, &[0xdb, 0xe3], 7),
        (cr0::TS, &[0x9b], 7),
        (cr0::EM, &[0x9b], 6),
        (cr0::TS, &[0x0f, 0xae, 0x04, 0x24], 7),
        (cr0::EM, &[0x0f, 0xae, 0x04, 0x24], 6),
        (cr0::TS, &[0x0f, 0x77], 7),
        (cr0::EM | cr0::TS, &[0x0f, 0x77], 6),
    ] {
        let mut guest = guest_with_handlers();
        guest.processor.cpu.cr0 |= bits;
        guest.processor.cpu.mode_changed();
        guest.run_bytes(&[code, &[0x0f, 0x0b]].concat());
        assert_eq!(vector(&guest), expected, "{bits:#x} {code:x?}");
    }
}

#[test]
fn a_pending_exception_is_raised_by_waiting_instructions_only() {
    for (code, expected) in [
        (&[0x9b][..], 16),
        (&[0xd9, 0x2f], 16),
        (&[0x0f, 0x77], 16),
        // fnstsw ax, fnstcw, fnclex, fninit, fnsave: then ud2.
        (&[0xdf, 0xe0], 6),
        (&[0xd9, 0x3f], 6),
        (&[0xdb, 0xe2, 0x9b], 6),
        (&[0xdb, 0xe3, 0x9b], 6),
        (&[0xdd, 0x37, 0x9b], 6),
        (&[0xd9, 0x37, 0x9b], 6),
    ] {
        let mut guest = guest_with_handlers();
        let cpu = &mut guest.processor.cpu;
        cpu.gpr[reg::RDI] = DATA;
        cpu.x87.set_control(0x37b);
        cpu.x87.set_status(4);
        assert!(cpu.x87.is_pending());
        guest.run_bytes(&[code, &[0x0f, 0x0b]].concat());
        assert_eq!(vector(&guest), expected, "{code:x?}");
    }
}

#[test]
fn fnsave_writes_the_protected_layout_and_initialises() {
    let mut guest = Guest::long();
    colour(&mut guest);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.fnsave(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let mut image = vec![0x7f, 0x0c, 0xff, 0xff, 0x20, 0x69, 0xff, 0xff];
    // R1 to R4 are empty; R0 and R5 to R7 hold 0x11.. (no integer bit: special), 0x66.. to 0x88.. (the last valid).
    image.extend_from_slice(&[0xfe, 0x2b, 0xff, 0xff]);
    image.extend_from_slice(&0x9abc_def0u32.to_le_bytes());
    image.extend_from_slice(&[0, 0, 0xa5, 5]);
    image.extend_from_slice(&0x8765_4321u32.to_le_bytes());
    image.extend_from_slice(&[0, 0, 0xff, 0xff]);
    for index in 0..8u8 {
        let number = 0x11 * ((index + 5) % 8 + 1);
        image.extend_from_slice(&[number; 9]);
        image.push(0x40);
    }
    assert_eq!(guest.memory.read(DATA, 108), image);
    let unit = &guest.processor.cpu.x87;
    assert_eq!((unit.control, unit.status(), unit.occupied), (0x37f, 0, 0));
}

#[test]
fn frstor_reads_what_fnsave_wrote_in_both_sizes() {
    for prefix in [&[][..], &[0x66]] {
        let mut guest = Guest::long();
        colour(&mut guest);
        guest.processor.cpu.gpr[reg::RDI] = DATA + 0xff0;
        let before = guest.processor.cpu.x87.clone();
        let code = [prefix, &[0xdd, 0x37], prefix, &[0xdd, 0x27, 0x0f, 0x0b]].concat();
        guest.run_bytes(&code);
        let after = &guest.processor.cpu.x87;
        assert_eq!(after.registers, before.registers);
        assert_eq!(
            (after.control, after.status(), after.occupied),
            (before.control, before.status(), before.occupied)
        );
        let kept = if prefix.is_empty() { 0xffff_ffff } else { 0xffff };
        assert_eq!(after.instruction, before.instruction & kept);
        assert_eq!(after.data, before.data & kept);
    }
}

#[test]
fn an_environment_over_a_missing_page_names_its_last_byte() {
    for (before, named) in [(6, 0x40_0015), (1, 0x40_0000)] {
        let mut guest = guest_with_handlers();
        guest.memory.write64(0x3000 + 16, 0);
        guest.processor.cpu.gpr[reg::RDI] = 0x40_0000 - before;
        guest.run_bytes(&[0xd9, 0x27, 0x0f, 0x0b]);
        assert_eq!((vector(&guest), guest.processor.cpu.cr2), (14, named));
    }
}

/// With XSAVE switched on, and both components.
fn guest_with_xsave() -> Guest {
    let mut guest = guest_with_handlers();
    guest.processor.cpu.cr4 |= cr4::OSXSAVE;
    guest.processor.cpu.xcr0 = 3;
    guest.processor.cpu.mode_changed();
    guest
}

#[test]
fn xsave_writes_the_components_asked_for_and_says_so() {
    let mut guest = guest_with_xsave();
    guest.memory.write(DATA, &[0xee; 576]);
    guest.memory.write64(DATA + 512, 4);
    colour(&mut guest);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(eax, 0xffff_fffdu32).unwrap();
        a.mov(edx, -1).unwrap();
        a.xsave64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let image = expected_image();
    assert_eq!(guest.memory.read(DATA, 24), image[..24]);
    // RFBM is what is asked for and enabled: without SSE, no MXCSR.
    assert_eq!(guest.memory.read(DATA + 24, 8), [0xee; 8]);
    assert_eq!(guest.memory.read(DATA + 32, 128), image[32..160]);
    assert_eq!(guest.memory.read(DATA + 160, 352), [0xee; 352]);
    assert_eq!(guest.memory.read64(DATA + 512), 5);
    assert_eq!(guest.memory.read(DATA + 520, 56), [0xee; 56]);
}

#[test]
fn xrstor_loads_what_is_present_and_initialises_the_rest() {
    let mut guest = guest_with_xsave();
    guest.memory.write(DATA, &expected_image());
    guest.memory.write64(DATA + 512, 1);
    guest.processor.cpu.xmm = [7; 16];
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(eax, -1).unwrap();
        a.mov(edx, -1).unwrap();
        a.xrstor64(ptr(rdi)).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    // MXCSR comes from memory whether or not SSE state is present.
    assert_eq!((cpu.xmm, cpu.mxcsr), ([0; 16], 0x3f80));
    assert_eq!((cpu.x87.top(), cpu.x87.opcode, cpu.x87.occupied), (5, 0x5a5, 0xe1));
}

#[test]
fn xrstor_refuses_headers_it_does_not_know() {
    for (offset, value) in [(0, 4u64), (0, 1 << 63), (8, 1 << 63), (8, 1), (16, 1)] {
        let mut guest = guest_with_xsave();
        guest.memory.write64(DATA + 512 + offset, value);
        guest.run(|a| {
            a.mov(rdi, DATA).unwrap();
            a.mov(eax, 3).unwrap();
            a.xrstor64(ptr(rdi)).unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(vector(&guest), 13, "{value:#x} at {offset}");
    }
}

#[test]
fn xcr0_takes_only_what_is_advertised() {
    for (index, value, expected) in
        [(0, 1, 6), (0, 3, 6), (0, 2, 13), (0, 0, 13), (0, 7, 13), (1, 3, 13)]
    {
        let mut guest = guest_with_xsave();
        guest.processor.cpu.xcr0 = 1;
        guest.run(|a| {
            a.mov(ecx, index).unwrap();
            a.mov(eax, value).unwrap();
            a.xor(edx, edx).unwrap();
            a.xsetbv().unwrap();
            a.xor(eax, eax).unwrap();
            a.xor(ecx, ecx).unwrap();
            a.xgetbv().unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(vector(&guest), expected, "{value} to {index}");
        if expected == 6 {
            assert_eq!(Ok(guest.reg(reg::RAX)), u64::try_from(value));
        }
    }
    let mut guest = guest_with_xsave();
    guest.processor.cpu.cr4 &= !cr4::OSXSAVE;
    guest.run(|a| a.xgetbv().unwrap());
    assert_eq!(vector(&guest), 6);
}
