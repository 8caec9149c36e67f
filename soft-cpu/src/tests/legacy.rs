//! What 64-bit mode dropped, in 32-bit mode without paging.

use super::{CODE, DATA, Guest};
use crate::cpu::{cr0, reg, seg};
use crate::flags::{AF, CF, Flags};
use crate::segment::Segment;

/// Flat 32-bit segments.
fn guest() -> Guest {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    (cpu.cr0, cpu.efer) = (cr0::PE | cr0::ET, 0);
    let flat = Segment { selector: 0x10, base: 0, limit: u32::MAX, attributes: 0xc093 };
    cpu.set_segment(seg::CS, Segment { selector: 8, attributes: 0xc09b, ..flat });
    cpu.mode_changed();
    guest
}

/// Runs one instruction with AX, CF and AF as given: AX and the two flags after it.
fn after(guest: &mut Guest, bytes: &[u8], ax: u64, carry: bool, half: bool) -> (u64, bool, bool) {
    let cpu = &mut guest.processor.cpu;
    cpu.gpr[reg::RAX] = ax;
    let bits = if carry { CF } else { 0 } | if half { AF } else { 0 };
    cpu.flags = Flags::from_bits(bits);
    let mut code = bytes.to_vec();
    code.extend([0x0f, 0x0b]);
    guest.run_bytes(&code);
    let cpu = &guest.processor.cpu;
    assert_eq!(cpu.rip, CODE + bytes.len() as u64, "done");
    (cpu.gpr[reg::RAX], cpu.flags.carry(), cpu.flags.half_carry())
}

#[test]
fn sums_and_differences_of_packed_digits_are_decimal_after_an_adjustment() {
    let mut guest = guest();
    let packed = |value: u64| ((value / 10) << 4) | (value % 10);
    for a in (0..100).step_by(7).chain([99]) {
        for b in (0..100).step_by(3).chain([99]) {
            let (x, y) = (packed(a), packed(b));
            let half = (x & 15) + (y & 15) > 15;
            let sum = x + y;
            let got = after(&mut guest, &[0x27], sum & 0xff, sum > 0xff, half);
            assert_eq!((got.0, got.1), (packed((a + b) % 100), a + b > 99), "{a} + {b}");
            let difference = x.wrapping_sub(y) & 0xff;
            let got = after(&mut guest, &[0x2f], difference, x < y, x & 15 < y & 15);
            assert_eq!((got.0, got.1), (packed((100 + a - b) % 100), a < b), "{a} - {b}");
        }
    }
}

#[test]
fn unpacked_digits_carry_into_ah() {
    let mut guest = guest();
    // aaa: 8 + 7, with 2 in AH; and 8 + 9, whose low digit carried.
    assert_eq!(after(&mut guest, &[0x37], 0x020f, false, false), (0x0305, true, true));
    assert_eq!(after(&mut guest, &[0x37], 0x0211, false, true), (0x0307, true, true));
    assert_eq!(after(&mut guest, &[0x37], 0x0239, true, false), (0x0209, false, false));
    // aas: 3 - 5.
    assert_eq!(after(&mut guest, &[0x3f], 0x02fe, true, true), (0x0108, true, true));
    // aam, aad, salc
    assert_eq!(after(&mut guest, &[0xd4, 10], 0xff4d, false, false).0, 0x0707);
    assert_eq!(after(&mut guest, &[0xd5, 10], 0x0707, false, false).0, 0x004d);
    assert_eq!(after(&mut guest, &[0xd6], 0x1234, true, false).0, 0x12ff);
}

#[test]
fn all_registers_are_pushed_and_come_back_but_for_the_stack_pointer() {
    let mut guest = guest();
    for number in 0..8 {
        guest.processor.cpu.gpr[number] = 0x1111_1111 * (number as u64 + 1);
    }
    guest.processor.cpu.gpr[reg::RSP] = DATA;
    // pusha; xor edi, edi; mov eax, [esp+12]; mov [esp+12], edi; popa; ud2
    let code = [
        0x60, 0x31, 0xff, 0x8b, 0x44, 0x24, 12, 0x89, 0x7c, 0x24, 12, 0x89, 0xc5, 0x61, 0x0f, 0x0b,
    ];
    guest.run_bytes(&code);
    for number in 0..8 {
        let expected = if number == 4 { DATA } else { 0x1111_1111 * (number as u64 + 1) };
        assert_eq!(guest.reg(number), expected, "{number}");
    }
    assert_eq!(guest.memory.read64(DATA - 8), 0x2222_2222 | 0x1111_1111 << 32);
}

#[test]
fn an_index_out_of_bounds_stops_where_it_is() {
    let mut guest = guest();
    guest.memory.write64(DATA, 0xffff_fffb | 5 << 32);
    let code = [&[0x62, 0x05], &DATA.to_le_bytes()[..4], &[0x0f, 0x0b]].concat();
    for (index, done) in [(-5i32, true), (5, true), (-6, false), (6, false)] {
        guest.processor.cpu.gpr[reg::RAX] = u64::from(index.cast_unsigned());
        guest.run_bytes(&code);
        assert_eq!(guest.processor.cpu.rip, if done { CODE + 6 } else { CODE }, "{index}");
    }
}

/// `daa` and `das` step by step, as the manual writes them: AL, CF and AF.
fn adjusted(subtract: bool, al: u8, carry: bool, half: bool) -> (u64, bool, bool) {
    let by = |value: u8, amount| {
        if subtract { value.overflowing_sub(amount) } else { value.overflowing_add(amount) }
    };
    let (mut value, mut cf, mut af) = (al, false, false);
    if al & 0xf > 9 || half {
        let (next, lost) = by(value, 6);
        (value, cf, af) = (next, carry || lost, true);
    }
    if al > 0x99 || carry {
        (value, cf) = (by(value, 0x60).0, true);
    }
    (value.into(), cf, af)
}

#[test]
fn what_is_no_packed_digit_is_adjusted_as_the_manual_says() {
    let mut guest = guest();
    for subtract in [false, true] {
        for al in 0..=255u8 {
            for (carry, half) in [(false, false), (false, true), (true, false), (true, true)] {
                let code = [if subtract { 0x2f } else { 0x27 }];
                let got = after(&mut guest, &code, al.into(), carry, half);
                assert_eq!(got, adjusted(subtract, al, carry, half), "{al:#x} {carry} {half}");
            }
        }
    }
}
