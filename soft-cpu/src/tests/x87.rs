//! x87 instructions: numbers, stack, exceptions.

use super::x87_state::{guest_with_handlers, vector};
use super::{CODE, DATA, Guest};
use crate::cpu::reg;
use crate::flags;
use crate::x87_state::Extended;

/// Runs bytes, with RDI at [`DATA`], up to a `ud2`.
fn run(guest: &mut Guest, code: &[&[u8]]) {
    guest.processor.cpu.gpr[reg::RDI] = DATA;
    guest.run_bytes(&[&code.concat()[..], &[0x0f, 0x0b]].concat());
}

/// After `fninit` and `code`.
fn after(code: &[&[u8]]) -> Guest {
    let mut guest = guest_with_handlers();
    run(&mut guest, &[&[&[0xdb, 0xe3][..]], code].concat());
    assert_eq!(vector(&guest), 6, "it ends with ud2");
    guest
}

fn extended(exponent: u16, significand: u64) -> Extended {
    Extended { significand, exponent }
}

/// A small integer as an 80-bit number.
fn integer(value: u64) -> Extended {
    if value == 0 {
        return Extended::default();
    }
    let shift = value.leading_zeros();
    extended(u16::try_from(0x3fff + 63 - shift).unwrap(), value << shift)
}

/// `fninit`, and eight times `fild word [rdi + ...]`, of 10 to 17: ST(i) is 17 - i.
fn full_stack(guest: &mut Guest) -> Vec<u8> {
    let mut code = vec![0xdb, 0xe3];
    for index in 0..8u8 {
        guest.memory.write(DATA + 2 * u64::from(index), &[10 + index, 0]);
        code.extend_from_slice(&[0xdf, 0x47, 2 * index]);
    }
    code
}

const FLD1: &[u8] = &[0xd9, 0xe8];
const FSTP_M80: &[u8] = &[0xdb, 0x3f];

#[test]
fn constants_are_rounded_as_the_control_word_says() {
    let guest = after(&[&[0xd9, 0xeb], FSTP_M80]);
    let nearest = extended(0x4000, 0xc90f_daa2_2168_c235);
    assert_eq!(guest.memory.read(DATA, 10), nearest.to_bytes());
    let mut guest = guest_with_handlers();
    guest.memory.write(DATA + 16, &[0x7f, 0x07]);
    run(&mut guest, &[&[0xdb, 0xe3, 0xd9, 0x6f, 0x10, 0xd9, 0xeb]]);
    assert_eq!(guest.processor.cpu.x87.stack(0), extended(0x4000, 0xc90f_daa2_2168_c234));
}

#[test]
fn precision_control_cuts_results() {
    for (control, significand) in [
        (0x07fu16, 0xaaaa_ab00_0000_0000u64),
        (0x27f, 0xaaaa_aaaa_aaaa_a800),
        (0x37f, 0xaaaa_aaaa_aaaa_aaab),
    ] {
        let mut guest = guest_with_handlers();
        guest.memory.write(DATA, &control.to_le_bytes());
        guest.memory.write(DATA + 2, &[3, 0]);
        // fldcw; fld1; fidiv word
        run(&mut guest, &[&[0xdb, 0xe3, 0xd9, 0x2f], FLD1, &[0xde, 0x77, 2]]);
        let unit = &guest.processor.cpu.x87;
        assert_eq!(unit.stack(0), extended(0x3ffd, significand));
        assert_eq!(unit.status() & 0x3f, 0x20, "inexact");
    }
}

#[test]
fn integers_are_rounded_in_four_ways() {
    for (control, expected) in [(0x37fu16, 2), (0x77f, 2), (0xb7f, 3), (0xf7f, 2)] {
        let mut guest = guest_with_handlers();
        guest.memory.write(DATA, &control.to_le_bytes());
        guest.memory.write(DATA + 8, &2.5f64.to_le_bytes());
        // fldcw; fld qword; fist dword; fisttp word; fnstsw ax
        run(
            &mut guest,
            &[&[0xdb, 0xe3, 0xd9, 0x2f, 0xdd, 0x47, 8, 0xdb, 0x57, 16, 0xdf, 0x4f, 20]],
        );
        assert_eq!(guest.memory.read(DATA + 16, 6), [expected, 0, 0, 0, 2, 0]);
        assert_eq!(guest.processor.cpu.x87.top(), 0);
    }
}

#[test]
fn numbers_of_every_width_come_back_as_they_went() {
    let mut guest = guest_with_handlers();
    guest.memory.write(DATA, &(-1.5f32).to_le_bytes());
    guest.memory.write(DATA + 8, &std::f64::consts::E.to_le_bytes());
    guest.memory.write64(DATA + 16, 0x8000_0000_0000_0001);
    guest.memory.write(DATA + 32, &extended(0xbfff, 0xf000_0000_0000_0001).to_bytes());
    guest.memory.write(DATA + 48, &[0x21, 0x43, 0x65, 0x87, 9, 0, 0, 0, 0, 0x80]);
    let before = guest.memory.read(DATA, 64);
    run(
        &mut guest,
        &[
            &[0xdb, 0xe3],
            // fld dword, qword; fild qword; fld tbyte; fbld tbyte
            &[0xd9, 0x07, 0xdd, 0x47, 8, 0xdf, 0x6f, 16, 0xdb, 0x6f, 32, 0xdf, 0x67, 48],
            // and back, 0x100 bytes on
            &[0xdf, 0xb7, 0x30, 1, 0, 0, 0xdb, 0xbf, 0x20, 1, 0, 0, 0xdf, 0xbf, 0x10, 1, 0, 0],
            &[0xdd, 0x9f, 8, 1, 0, 0, 0xd9, 0x9f, 0, 1, 0, 0],
        ],
    );
    assert_eq!(guest.memory.read(DATA + 0x100, 64), before);
    assert_eq!(guest.processor.cpu.x87.status(), 0);
    assert_eq!(guest.processor.cpu.x87.occupied, 0);
}

#[test]
fn transcendental_functions_are_the_processors_own() {
    let guest = after(&[FLD1, &[0xd9, 0xfe, 0xdd, 0x1f]]);
    assert_eq!(guest.memory.read(DATA, 8), 1f64.sin().to_le_bytes());
    // atan(1/1) * 4 = pi
    let guest = after(&[FLD1, FLD1, &[0xd9, 0xf3, 0xd8, 0xc0, 0xd8, 0xc0]]);
    assert_eq!(guest.processor.cpu.x87.stack(0), extended(0x4000, 0xc90f_daa2_2168_c235));
}

#[test]
fn every_register_of_the_stack_is_reached() {
    for index in 0..8u8 {
        let other = 17 - u64::from(index);
        // faddp is left out: its result moves with the stack.
        let cases: [(&[u8], usize, u64); 4] = [
            (&[0xd9, 0xc8 + index], 0, other),
            (&[0xd8, 0xc0 + index], 0, 17 + other),
            (&[0xdc, 0xc0 + index], usize::from(index), 17 + other),
            (&[0xdd, 0xd0 + index], usize::from(index), 17),
        ];
        for (code, place, expected) in cases {
            let mut guest = guest_with_handlers();
            let fill = full_stack(&mut guest);
            run(&mut guest, &[&fill, code]);
            let unit = &guest.processor.cpu.x87;
            assert_eq!(unit.stack(place), integer(expected), "{code:x?}");
            assert_eq!((unit.top(), unit.occupied, unit.status() & 0x7f), (0, 0xff, 0));
            let all: u64 = (0..8).map(|i| u64::from(unit.stack(i) == integer(17 - i as u64))).sum();
            assert!(all >= 6, "the others stay: {code:x?}");
        }
    }
}

#[test]
fn a_register_pushes_its_copy() {
    for index in 0..7u8 {
        // ST(7) made free first.
        let mut guest = guest_with_handlers();
        let fill = full_stack(&mut guest);
        run(&mut guest, &[&fill, &[0xdd, 0xc7, 0xd9, 0xc0 + index]]);
        let unit = &guest.processor.cpu.x87;
        assert_eq!(unit.stack(0), integer(17 - u64::from(index)));
        assert_eq!(unit.stack(1), integer(17));
        assert_eq!((unit.top(), unit.occupied), (7, 0xff));
    }
}

#[test]
fn popping_forms_free_the_top() {
    for index in 1..8u8 {
        let mut guest = guest_with_handlers();
        let fill = full_stack(&mut guest);
        // faddp st(i)
        run(&mut guest, &[&fill, &[0xde, 0xc0 + index]]);
        let unit = &guest.processor.cpu.x87;
        assert_eq!(unit.stack(usize::from(index) - 1), integer(34 - u64::from(index)));
        assert_eq!((unit.top(), unit.occupied), (1, 0xfe));
    }
}

#[test]
fn a_ninth_number_overflows_the_stack() {
    let guest = after(&[FLD1; 9]);
    let unit = &guest.processor.cpu.x87;
    // IE, SF, C1; TOP 7.
    assert_eq!(unit.status(), 0x0241 | 7 << 11);
    assert_eq!(unit.stack(0), extended(0xffff, 0xc000_0000_0000_0000));
    assert_eq!(unit.stack(1), integer(1));
}

#[test]
fn an_empty_register_underflows_the_stack() {
    for index in 1..8 {
        let guest = after(&[FLD1, &[0xd8, 0xc0 + index]]);
        let unit = &guest.processor.cpu.x87;
        assert_eq!(unit.status(), 0x41 | 7 << 11);
        assert_eq!(unit.stack(0), extended(0xffff, 0xc000_0000_0000_0000));
    }
}

#[test]
fn comparisons_set_flags_and_moves_obey_them() {
    let mut guest = guest_with_handlers();
    let fill = full_stack(&mut guest);
    guest.processor.cpu.set_rflags(flags::OF | flags::SF | flags::AF);
    // fcomi st(3): 17 against 14; fcmovnbe st(5)
    run(&mut guest, &[&fill, &[0xdb, 0xf3, 0xdb, 0xd5]]);
    assert_eq!(guest.processor.cpu.rflags() & flags::ARITHMETIC, 0);
    assert_eq!(guest.processor.cpu.x87.stack(0), integer(12));
    // fucomip st(2): 12 against 15; fcmovb st(3)
    run(&mut guest, &[&[0xdf, 0xea, 0xda, 0xc3]]);
    assert_eq!(guest.processor.cpu.rflags() & flags::ARITHMETIC, flags::CF);
    assert_eq!(guest.processor.cpu.x87.stack(0), integer(13));
}

#[test]
fn an_unmasked_exception_waits_for_the_next_instruction_and_tells_where_it_was() {
    let mut guest = guest_with_handlers();
    guest.memory.write(DATA, &[0x7b, 3, 0, 0, 0, 0, 0, 0]);
    // fldcw with division unmasked; fld1; fidiv dword [rdi + 4]; mov ecx, 1; fld1
    run(&mut guest, &[&[0xdb, 0xe3, 0xd9, 0x2f], FLD1, &[0xda, 0x77, 4, 0xb9, 1, 0, 0, 0], FLD1]);
    assert_eq!((vector(&guest), guest.reg(reg::RCX)), (16, 1));
    let unit = &guest.processor.cpu.x87;
    assert_eq!(unit.stack(0), integer(1), "the operand stays");
    assert_eq!(unit.status() & 0x80ff, 0x8084);
    assert_eq!(
        (unit.instruction, unit.data, unit.opcode),
        (CODE + 6, DATA + 4, 0x277),
        "where the division was"
    );
}

#[test]
fn what_does_not_fit_is_not_stored_when_unmasked() {
    let mut guest = guest_with_handlers();
    guest.memory.write(DATA, &[0x77, 3, 0, 0]);
    guest.memory.write(DATA + 4, &[0xee; 4]);
    guest.memory.write(DATA + 8, &1e300f64.to_le_bytes());
    // fldcw with overflow unmasked; fld qword; fstp dword
    run(&mut guest, &[&[0xdb, 0xe3, 0xd9, 0x2f, 0xdd, 0x47, 8, 0xd9, 0x5f, 4]]);
    assert_eq!(guest.memory.read(DATA + 4, 4), [0xee; 4]);
    let unit = &guest.processor.cpu.x87;
    assert_eq!((unit.top(), unit.status() & 0xff), (7, 0x88));
}

#[test]
fn a_store_that_faults_pops_nothing() {
    let mut guest = guest_with_handlers();
    guest.memory.write64(0x3000 + 16, 0);
    guest.processor.cpu.gpr[reg::RBX] = 0x40_0000 - 4;
    run(&mut guest, &[&[0xdb, 0xe3], FLD1, &[0xdb, 0x3b]]);
    assert_eq!((vector(&guest), guest.processor.cpu.cr2), (14, 0x40_0000));
    let unit = &guest.processor.cpu.x87;
    assert_eq!((unit.top(), unit.stack(0)), (7, integer(1)));
    assert_eq!(unit.instruction, CODE + 2, "it was not done");
}

#[test]
fn an_operand_over_the_end_of_the_addresses_is_refused_before_its_page_is_looked_at() {
    for code in [&[0xdb, 0x2b][..], &[0xdb, 0x3b], &[0xd9, 0x03]] {
        let mut guest = guest_with_handlers();
        guest.processor.cpu.gpr[reg::RBX] = 0x7fff_ffff_fffd;
        run(&mut guest, &[&[0xdb, 0xe3], code]);
        assert_eq!(vector(&guest), 13, "{code:x?}");
    }
}

#[test]
fn any_image_may_be_restored_and_computed_with() {
    // A multiplicative generator: deterministic garbage.
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        seed >> 32
    };
    for _ in 0..200 {
        let mut guest = guest_with_handlers();
        for at in (0..512).step_by(4) {
            guest.memory.write(DATA + at, &next().to_le_bytes()[..4]);
        }
        guest.memory.write(DATA + 24, &[0x80, 0x1f, 0, 0]);
        let mut code = vec![0x0f, 0xae, 0x0f];
        for _ in 0..16 {
            let [first, second, ..] = next().to_le_bytes();
            code.extend_from_slice(&[0xd8 | first & 7, second | 0xc0, 0xdb, 0xe2]);
        }
        run(&mut guest, &[&code, &[0xdd, 0x37]]);
    }
}
