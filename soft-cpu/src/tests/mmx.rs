//! MMX against the host's SSE2, which computes the same lanes.

use std::arch::x86_64::*;

use super::x87_state::{guest_with_handlers, vector};
use super::{DATA, Guest};
use crate::cpu::{cr4, reg};

/// What 128-bit instruction does the same in its lower half.
type Oracle = fn(__m128i, __m128i) -> __m128i;

fn wide(value: u64) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_cvtsi64_si128(value.cast_signed()) }
}

fn low(value: __m128i) -> u64 {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_cvtsi128_si64(value) }.cast_unsigned()
}

/// The upper half.
fn high(value: __m128i) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_unpackhi_epi64(value, value) }
}

/// Both operands in one.
fn joined(a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_unpacklo_epi64(a, b) }
}

/// A closure around an intrinsic.
macro_rules! oracle {
    ($a:ident, $b:ident, $result:expr) => {
        |$a, $b| {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { $result }
        }
    };
}

/// Second opcode bytes, and what they do.
const CASES: [(u8, Oracle); 56] = [
    (0xfc, oracle!(a, b, _mm_add_epi8(a, b))),
    (0xfd, oracle!(a, b, _mm_add_epi16(a, b))),
    (0xfe, oracle!(a, b, _mm_add_epi32(a, b))),
    (0xd4, oracle!(a, b, _mm_add_epi64(a, b))),
    (0xf8, oracle!(a, b, _mm_sub_epi8(a, b))),
    (0xf9, oracle!(a, b, _mm_sub_epi16(a, b))),
    (0xfa, oracle!(a, b, _mm_sub_epi32(a, b))),
    (0xfb, oracle!(a, b, _mm_sub_epi64(a, b))),
    (0xec, oracle!(a, b, _mm_adds_epi8(a, b))),
    (0xed, oracle!(a, b, _mm_adds_epi16(a, b))),
    (0xdc, oracle!(a, b, _mm_adds_epu8(a, b))),
    (0xdd, oracle!(a, b, _mm_adds_epu16(a, b))),
    (0xe8, oracle!(a, b, _mm_subs_epi8(a, b))),
    (0xe9, oracle!(a, b, _mm_subs_epi16(a, b))),
    (0xd8, oracle!(a, b, _mm_subs_epu8(a, b))),
    (0xd9, oracle!(a, b, _mm_subs_epu16(a, b))),
    (0xd5, oracle!(a, b, _mm_mullo_epi16(a, b))),
    (0xe5, oracle!(a, b, _mm_mulhi_epi16(a, b))),
    (0xe4, oracle!(a, b, _mm_mulhi_epu16(a, b))),
    (0xf4, oracle!(a, b, _mm_mul_epu32(a, b))),
    (0xf5, oracle!(a, b, _mm_madd_epi16(a, b))),
    (0xf6, oracle!(a, b, _mm_sad_epu8(a, b))),
    (0xe0, oracle!(a, b, _mm_avg_epu8(a, b))),
    (0xe3, oracle!(a, b, _mm_avg_epu16(a, b))),
    (0xda, oracle!(a, b, _mm_min_epu8(a, b))),
    (0xde, oracle!(a, b, _mm_max_epu8(a, b))),
    (0xea, oracle!(a, b, _mm_min_epi16(a, b))),
    (0xee, oracle!(a, b, _mm_max_epi16(a, b))),
    (0x74, oracle!(a, b, _mm_cmpeq_epi8(a, b))),
    (0x75, oracle!(a, b, _mm_cmpeq_epi16(a, b))),
    (0x76, oracle!(a, b, _mm_cmpeq_epi32(a, b))),
    (0x64, oracle!(a, b, _mm_cmpgt_epi8(a, b))),
    (0x65, oracle!(a, b, _mm_cmpgt_epi16(a, b))),
    (0x66, oracle!(a, b, _mm_cmpgt_epi32(a, b))),
    (0xdb, oracle!(a, b, _mm_and_si128(a, b))),
    (0xdf, oracle!(a, b, _mm_andnot_si128(a, b))),
    (0xeb, oracle!(a, b, _mm_or_si128(a, b))),
    (0xef, oracle!(a, b, _mm_xor_si128(a, b))),
    (0x63, oracle!(a, b, _mm_packs_epi16(joined(a, b), a))),
    (0x67, oracle!(a, b, _mm_packus_epi16(joined(a, b), a))),
    (0x6b, oracle!(a, b, _mm_packs_epi32(joined(a, b), a))),
    (0x60, oracle!(a, b, _mm_unpacklo_epi8(a, b))),
    (0x61, oracle!(a, b, _mm_unpacklo_epi16(a, b))),
    (0x62, oracle!(a, b, _mm_unpacklo_epi32(a, b))),
    (0x68, oracle!(a, b, high(_mm_unpacklo_epi8(a, b)))),
    (0x69, oracle!(a, b, high(_mm_unpacklo_epi16(a, b)))),
    (0x6a, oracle!(a, b, high(_mm_unpacklo_epi32(a, b)))),
    (0xf1, oracle!(a, b, _mm_sll_epi16(a, b))),
    (0xf2, oracle!(a, b, _mm_sll_epi32(a, b))),
    (0xf3, oracle!(a, b, _mm_sll_epi64(a, b))),
    (0xd1, oracle!(a, b, _mm_srl_epi16(a, b))),
    (0xd2, oracle!(a, b, _mm_srl_epi32(a, b))),
    (0xd3, oracle!(a, b, _mm_srl_epi64(a, b))),
    (0xe1, oracle!(a, b, _mm_sra_epi16(a, b))),
    (0xe2, oracle!(a, b, _mm_sra_epi32(a, b))),
    (0x6f, |_, b| b),
];

/// Pairs of operands: the edges, small counts, and deterministic noise.
fn operands() -> Vec<(u64, u64)> {
    let edges = [
        0,
        u64::MAX,
        0x8000_8000_8000_8000,
        0x7fff_7fff_7fff_7fff,
        0x8080_8080_7f7f_7f7f,
        0x8000_0000_7fff_ffff,
        0x00ff_ff00_0100_0001,
    ];
    let counts = [1, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1 << 32, 1 << 63];
    let mut pairs: Vec<_> =
        edges.iter().flat_map(|a| edges.iter().chain(&counts).map(|b| (*a, *b))).collect();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    pairs.extend((0..40).map(|_| (next(), next())));
    pairs
}

fn run(guest: &mut Guest, code: &[u8]) {
    guest.processor.cpu.gpr[reg::RDI] = DATA;
    guest.run_bytes(&[code, &[0x0f, 0x0b]].concat());
    assert_eq!(vector(guest), 6, "{code:x?} ends with ud2");
}

#[test]
fn every_lane_operation_computes_what_sse2_computes() {
    let mut guest = guest_with_handlers();
    for (opcode, oracle) in CASES {
        // op mm2, mm5; op mm3, [rdi]
        let code = [0x0f, opcode, 0xd5, 0x0f, opcode, 0x1f];
        for (a, b) in operands() {
            // The handler has left the guest somewhere else.
            let cpu = &mut guest.processor.cpu;
            for (register, value) in [(2, a), (3, a), (5, b)] {
                cpu.set_mmx(register, value);
            }
            guest.memory.write64(DATA, b);
            run(&mut guest, &code);
            let expected = low(oracle(wide(a), wide(b)));
            let cpu = &guest.processor.cpu;
            assert_eq!(
                (cpu.mmx(2), cpu.mmx(3)),
                (expected, expected),
                "0f {opcode:02x} of {a:#x}, {b:#x}"
            );
        }
    }
}

#[test]
fn shifts_by_an_immediate_take_all_of_it() {
    let value = 0x8123_4567_89ab_cdef;
    let cases: [(u8, u8, Oracle); 8] = [
        (0x71, 2, oracle!(a, b, _mm_srl_epi16(a, b))),
        (0x71, 4, oracle!(a, b, _mm_sra_epi16(a, b))),
        (0x71, 6, oracle!(a, b, _mm_sll_epi16(a, b))),
        (0x72, 2, oracle!(a, b, _mm_srl_epi32(a, b))),
        (0x72, 4, oracle!(a, b, _mm_sra_epi32(a, b))),
        (0x72, 6, oracle!(a, b, _mm_sll_epi32(a, b))),
        (0x73, 2, oracle!(a, b, _mm_srl_epi64(a, b))),
        (0x73, 6, oracle!(a, b, _mm_sll_epi64(a, b))),
    ];
    let mut guest = guest_with_handlers();
    for (opcode, form, oracle) in cases {
        for count in [0, 1, 15, 16, 31, 32, 63, 64, 255] {
            guest.processor.cpu.set_mmx(6, value);
            run(&mut guest, &[0x0f, opcode, 0xc6 | form << 3, count]);
            let expected = low(oracle(wide(value), wide(u64::from(count))));
            assert_eq!(guest.processor.cpu.mmx(6), expected, "0f {opcode:x} /{form} by {count}");
        }
    }
}

#[test]
fn moves_zero_extend_and_words_go_where_they_are_told() {
    let mut guest = guest_with_handlers();
    let cpu = &mut guest.processor.cpu;
    cpu.gpr[reg::RAX] = 0x1111_2222_3333_4444;
    cpu.gpr[reg::RBX] = u64::MAX;
    cpu.gpr[reg::RCX] = u64::MAX;
    cpu.xmm[9] = 0xaaaa_bbbb_cccc_dddd_0123_4567_89ab_cdef;
    cpu.xmm[8] = u128::MAX;
    run(
        &mut guest,
        &[
            0x0f, 0x6e, 0xc0, // movd mm0, eax
            0x48, 0x0f, 0x6e, 0xc8, // movq mm1, rax
            0x0f, 0x7e, 0x0f, // movd [rdi], mm1
            0x0f, 0xe7, 0x4f, 8, // movntq [rdi + 8], mm1
            0x0f, 0x7e, 0xcb, // movd ebx, mm1
            0x0f, 0x70, 0xd1, 0x1b, // pshufw mm2, mm1, 0x1b
            0x0f, 0xc4, 0xd0, 2, // pinsrw mm2, eax, 2
            0x0f, 0xc5, 0xca, 3, // pextrw ecx, mm2, 3
            0xf2, 0x41, 0x0f, 0xd6, 0xd9, // movdq2q mm3, xmm9
            0xf3, 0x44, 0x0f, 0xd6, 0xc2, // movq2dq xmm8, mm2
            0x0f, 0xd7, 0xd3, // pmovmskb edx, mm3
        ],
    );
    let cpu = &guest.processor.cpu;
    assert_eq!((cpu.mmx(0), cpu.mmx(1)), (0x3333_4444, 0x1111_2222_3333_4444));
    assert_eq!(guest.memory.read64(DATA), 0x3333_4444);
    assert_eq!(guest.memory.read64(DATA + 8), 0x1111_2222_3333_4444);
    assert_eq!(cpu.mmx(2), 0x4444_4444_2222_1111);
    assert_eq!((cpu.gpr[reg::RBX], cpu.gpr[reg::RCX]), (0x3333_4444, 0x4444));
    assert_eq!((cpu.mmx(3), cpu.xmm[8]), (0x0123_4567_89ab_cdef, 0x4444_4444_2222_1111));
    assert_eq!(cpu.gpr[reg::RDX], 0b1111);
}

#[test]
fn an_mmx_register_is_the_lower_part_of_an_x87_register() {
    let mut guest = guest_with_handlers();
    guest.processor.cpu.x87.initialise();
    guest.processor.cpu.x87.set_status(0x4100 | 3 << 11);
    run(&mut guest, &[0x0f, 0x6f, 0x27]);
    let unit = &guest.processor.cpu.x87;
    assert_eq!((unit.top(), unit.occupied, unit.status()), (0, 0xff, 0x4100));
    assert_eq!((unit.stack(4).exponent, unit.stack(3).exponent), (0xffff, 0));
    // A store changes the tags as well, emms empties them.
    guest.processor.cpu.x87.occupied = 0;
    run(&mut guest, &[0x0f, 0x7f, 0x27]);
    assert_eq!(guest.processor.cpu.x87.occupied, 0xff);
    run(&mut guest, &[0x0f, 0x77]);
    assert_eq!(guest.processor.cpu.x87.tags(), 0xffff);
}

#[test]
fn a_masked_store_touches_only_what_is_chosen() {
    let mut guest = guest_with_handlers();
    guest.memory.write64(0x3000 + 16, 0);
    let edge = 0x40_0000 - 4;
    guest.memory.write(edge, &[0xee; 4]);
    guest.processor.cpu.set_mmx(1, 0x8877_6655_4433_2211);
    guest.processor.cpu.set_mmx(2, 0x0000_0000_80ff_007f);
    guest.processor.cpu.gpr[reg::RDI] = edge;
    // maskmovq mm1, mm2: the upper four bytes would be where nothing is.
    guest.run_bytes(&[0x0f, 0xf7, 0xca, 0x0f, 0x0b]);
    assert_eq!(vector(&guest), 6);
    assert_eq!(guest.memory.read(edge, 4), [0xee, 0xee, 0x33, 0x44]);
    guest.processor.cpu.set_mmx(2, u64::MAX);
    guest.processor.cpu.gpr[reg::RDI] = edge;
    guest.run_bytes(&[0x0f, 0xf7, 0xca, 0x0f, 0x0b]);
    assert_eq!(vector(&guest), 14);
    assert_eq!(guest.memory.read(edge, 4), [0xee, 0xee, 0x33, 0x44]);
}

#[test]
fn registers_of_both_kinds_need_the_system_to_save_sse() {
    let mut guest = guest_with_handlers();
    guest.processor.cpu.cr4 &= !cr4::OSFXSR;
    guest.processor.cpu.x87.occupied = 0;
    guest.run_bytes(&[0xf3, 0x0f, 0xd6, 0xc2]);
    assert_eq!((vector(&guest), guest.processor.cpu.x87.occupied), (6, 0));
    guest.run_bytes(&[0x0f, 0xfc, 0xc1, 0x0f, 0x0b]);
    assert_eq!((vector(&guest), guest.processor.cpu.x87.occupied), (6, 0xff));
}
