//! SSE3 and SSSE3, on a host that has them.

use iced_x86::code_asm::*;

use super::agrees;
use super::float::{of_doubles, of_singles};
use crate::cpu::reg;
use crate::tests::{DATA, Guest};

/// Bytes, the lowest first.
fn bytes(value: u128) -> [u8; 16] {
    value.to_le_bytes()
}

fn words(value: u128) -> [i16; 8] {
    let bytes = bytes(value);
    std::array::from_fn(|at| i16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

fn together(words: [i16; 8]) -> u128 {
    words.iter().rev().fold(0, |all, word| all << 16 | u128::from(word.cast_unsigned()))
}

#[test]
fn neighbours_are_added_and_elements_picked() {
    if !std::arch::is_x86_feature_detected!("ssse3") {
        return;
    }
    let mut guest = Guest::long();
    agrees!(guest, phaddw, |a, b| {
        let all = [words(a), words(b)].concat();
        together(std::array::from_fn(|at| all[2 * at].wrapping_add(all[2 * at + 1])))
    });
    agrees!(guest, phsubsw, |a, b| {
        let all = [words(a), words(b)].concat();
        together(std::array::from_fn(|at| all[2 * at].saturating_sub(all[2 * at + 1])))
    });
    agrees!(guest, psignw, |a, b| {
        let (a, b) = (words(a), words(b));
        together(std::array::from_fn(|at| a[at].wrapping_mul(b[at].signum())))
    });
    agrees!(guest, pabsw, |_a, b| together(words(b).map(i16::wrapping_abs)));
    agrees!(guest, pshufb, |a, b| {
        let from = bytes(a);
        let pick = |by: u8| if by & 0x80 == 0 { from[usize::from(by & 15)] } else { 0 };
        u128::from_le_bytes(bytes(b).map(pick))
    });
    let (a, b) =
        (0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110, 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    for by in 0..40u32 {
        let got = super::applied(&mut guest, a, b, |code| code.palignr(xmm1, xmm9, by));
        let both = [bytes(b), bytes(a), [0; 16]].concat();
        let expected: Vec<u8> =
            (0..16).map(|at| both.get(at + by as usize).copied().unwrap_or(0)).collect();
        assert_eq!(bytes(got).to_vec(), expected, "by {by}");
    }
}

#[test]
fn horizontal_sums_take_the_destination_first() {
    if !std::arch::is_x86_feature_detected!("sse3") {
        return;
    }
    let mut guest = Guest::long();
    let (a, b) = (of_singles([1.0, 2.0, 3.0, 4.0]), of_singles([10.0, 20.0, 30.0, 40.0]));
    let got = super::applied(&mut guest, a, b, |code| code.haddps(xmm1, xmm9));
    assert_eq!(got, of_singles([3.0, 7.0, 30.0, 70.0]));
    let got = super::applied(&mut guest, a, b, |code| code.addsubps(xmm1, xmmword_ptr(rdi)));
    assert_eq!(got, of_singles([-9.0, 22.0, -27.0, 44.0]));
    let got = super::applied(&mut guest, a, b, |code| code.movsldup(xmm1, xmm9));
    assert_eq!(got, of_singles([10.0, 10.0, 30.0, 30.0]));
    let (a, b) = (of_doubles([1.0, 2.0]), of_doubles([5.0, 3.0]));
    let got = super::applied(&mut guest, a, b, |code| code.hsubpd(xmm1, xmm9));
    assert_eq!(got, of_doubles([-1.0, 2.0]));
    let got = super::applied(&mut guest, a, b, |code| code.movddup(xmm1, qword_ptr(rdi)));
    assert_eq!(got, of_doubles([5.0, 5.0]));
    let got = super::applied(&mut guest, a, b, |code| code.lddqu(xmm1, xmmword_ptr(rdi - 3)));
    assert_eq!(got, b << 24);
}

#[test]
fn on_mmx_registers_eight_bytes_are_all_there_is() {
    if !std::arch::is_x86_feature_detected!("ssse3") {
        return;
    }
    let mut guest = Guest::long();
    guest.processor.cpu.x87.initialise();
    guest.memory.write64(DATA, 0x0706_0504_0302_0100);
    // The fourth bit of an index means nothing here, the eighth zero.
    guest.memory.write64(DATA + 8, 0x8000_070f_0801_0203);
    guest.processor.cpu.gpr[reg::RDI] = DATA;
    guest.run(|a| {
        a.movq(mm0, qword_ptr(rdi)).unwrap();
        a.movq(mm1, mm0).unwrap();
        a.movq(mm2, mm0).unwrap();
        a.movq(mm3, qword_ptr(rdi + 8)).unwrap();
        a.pshufb(mm0, mm3).unwrap();
        a.phaddw(mm1, qword_ptr(rdi + 8)).unwrap();
        a.palignr(mm2, mm3, 3).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    assert_eq!(cpu.mmx(0), 0x0000_0707_0001_0203);
    assert_eq!(cpu.mmx(1), 0x870f_0a04_0c0a_0402);
    assert_eq!(cpu.mmx(2), 0x0201_0080_0007_0f08);
}
