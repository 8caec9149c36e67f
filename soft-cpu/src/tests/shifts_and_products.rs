//! Shifts, products and bits at their edges, against evaluation one bit at a time and in 128 bits.

use super::{DATA, Guest};
use crate::Stop;
use crate::cpu::reg;
use crate::flags::{ARITHMETIC, CF, OF, PF, SF, ZF};

const VALUES: [u64; 12] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8001,
    0x7fff_ffff,
    0x8000_0001,
    0x7fff_ffff_ffff_fffe,
    0xa5c3_8000_8000_8081,
];

/// Runs `bytes` with RAX, RCX, RDX and flags as given; what they are then, or `None` if it was not done.
fn after(guest: &mut Guest, bytes: &[u8], state: [u64; 4]) -> Option<[u64; 4]> {
    let cpu = &mut guest.processor.cpu;
    [cpu.gpr[reg::RAX], cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]] = [state[0], state[1], state[2]];
    cpu.set_rflags(state[3]);
    let mut code = bytes.to_vec();
    // mov bl, 1: gone on.
    code.extend([0xb3, 1, 0x0f, 0x0b]);
    guest.processor.cpu.gpr[reg::RBX] = 0;
    assert_eq!(guest.run_bytes(&code), Stop::TripleFault);
    let cpu = &guest.processor.cpu;
    (cpu.gpr[reg::RBX] == 1).then(|| {
        let flags = cpu.rflags() & ARITHMETIC;
        [cpu.gpr[reg::RAX], cpu.gpr[reg::RCX], cpu.gpr[reg::RDX], flags]
    })
}

fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

/// A register after a write of its low `bits`.
fn written(before: u64, value: u64, bits: u32) -> u64 {
    if bits >= 32 { value & mask(bits) } else { before & !mask(bits) | value & mask(bits) }
}

/// SF, ZF and PF of a result.
fn flags_of(value: u64, bits: u32) -> u64 {
    let value = value & mask(bits);
    let sign = if value >> (bits - 1) == 1 { SF } else { 0 };
    let zero = if value == 0 { ZF } else { 0 };
    let parity = if (value & 0xff).count_ones().is_multiple_of(2) { PF } else { 0 };
    sign | zero | parity
}

/// A shift (numbered as in its encoding) one bit at a time: the result, CF and OF.
fn shifted(kind: u8, a: u64, count: u64, carry: bool, bits: u32) -> (u64, bool, bool) {
    let count = count & if bits == 64 { 63 } else { 31 };
    let (mut a, mut cf) = (a & mask(bits), carry);
    for _ in 0..count {
        let (top, low) = (a >> (bits - 1) & 1, a & 1);
        let into = |bit: u64| bit << (bits - 1);
        (a, cf) = match kind {
            0 => (a << 1 | top, top == 1),
            1 => (a >> 1 | into(low), low == 1),
            2 => (a << 1 | u64::from(cf), top == 1),
            3 => (a >> 1 | into(u64::from(cf)), low == 1),
            4 | 6 => (a << 1, top == 1),
            5 => (a >> 1, low == 1),
            _ => (a >> 1 | into(top), low == 1),
        };
        a &= mask(bits);
    }
    let top = a >> (bits - 1) & 1 == 1;
    let of = match kind {
        0 | 2 | 4 | 6 => top != cf,
        7 => false,
        _ => top != (a >> (bits - 2) & 1 == 1),
    };
    (a, cf, of)
}

#[test]
fn every_shift_by_every_count_is_that_many_shifts_by_one() {
    let mut guest = Guest::long();
    for (bits, prefix, opcode) in [(8, 0, 0xd2), (16, 0x66, 0xd3), (32, 0, 0xd3), (64, 0x48, 0xd3)]
    {
        for kind in 0..8u8 {
            for count in (0..35).chain([63, 64, 255]) {
                // op rAX, cl; through a nop where there is no prefix.
                let prefix = if prefix == 0 { 0x90 } else { prefix };
                let bytes = [prefix, opcode, 0xc0 | kind << 3];
                for (number, a) in VALUES.into_iter().enumerate() {
                    let before = if number % 2 == 0 { ARITHMETIC } else { 0 };
                    let state = [a, count, 0, before];
                    let [rax, _, _, flags] = after(&mut guest, &bytes, state).unwrap();
                    let (result, cf, of) = shifted(kind, a, count, before & CF != 0, bits);
                    assert_eq!(rax, written(a, result, bits), "{bits} {kind} {count} {a:#x}");
                    let masked = count & if bits == 64 { 63 } else { 31 };
                    if masked == 0 {
                        assert_eq!(flags, before, "{bits} {kind} {count} {a:#x}");
                        continue;
                    }
                    // Beyond an operand's own bits CF is undefined, and OF beyond one.
                    if masked <= u64::from(bits) || kind < 4 {
                        assert_eq!(flags & CF != 0, cf, "{bits} {kind} {count} {a:#x}");
                    }
                    if masked == 1 {
                        assert_eq!(flags & OF != 0, of, "{bits} {kind} {count} {a:#x}");
                    }
                    let others = SF | ZF | PF;
                    let expected = if kind < 4 { before } else { flags_of(result, bits) };
                    assert_eq!(flags & others, expected & others, "{bits} {kind} {count} {a:#x}");
                }
            }
        }
    }
}

#[test]
fn a_double_shift_draws_from_its_source() {
    let mut guest = Guest::long();
    for (bits, prefix) in [(16, 0x66), (32, 0x90), (64, 0x48)] {
        for right in [false, true] {
            let bytes = [prefix, 0x0f, if right { 0xad } else { 0xa5 }, 0xd0];
            for count in 0..u64::from(bits) {
                if count > 31 && bits != 64 {
                    continue;
                }
                for a in VALUES {
                    for b in VALUES {
                        let [rax, _, _, flags] =
                            after(&mut guest, &bytes, [a, count, b, 0]).unwrap();
                        let (a, b) = (a & mask(bits), b & mask(bits));
                        let (low, high) = if right { (a, b) } else { (b, a) };
                        let both = u128::from(high) << bits | u128::from(low);
                        let moved = if right { both >> count } else { both << count >> bits };
                        let result = u64::try_from(moved & u128::from(mask(bits))).unwrap();
                        assert_eq!(rax & mask(bits), result, "{bits} {right} {count}");
                        if count == 0 {
                            assert_eq!(flags, 0);
                            continue;
                        }
                        let last =
                            if right { a >> (count - 1) } else { a >> (u64::from(bits) - count) };
                        let cf = if last & 1 == 1 { CF } else { 0 };
                        let expected = flags_of(result, bits) | cf;
                        assert_eq!(flags & !OF, expected, "{bits} {right} {count}");
                        if count == 1 {
                            let changed = (result ^ a) >> (bits - 1) & 1 == 1;
                            assert_eq!(flags & OF != 0, changed, "{bits} {right}");
                        }
                    }
                }
            }
        }
    }
}

/// The operand's value, sign-extended.
fn signed(value: u64, bits: u32) -> i128 {
    let value = i128::from(value & mask(bits));
    if value >> (bits - 1) == 1 { value - (1 << bits) } else { value }
}

#[test]
fn products_are_those_of_wide_numbers() {
    let mut guest = Guest::long();
    for (bits, prefix, opcode) in
        [(8, 0x90, 0xf6), (16, 0x66, 0xf7), (32, 0x90, 0xf7), (64, 0x48, 0xf7)]
    {
        for is_signed in [false, true] {
            let bytes = [prefix, opcode, if is_signed { 0xe9 } else { 0xe1 }];
            for a in VALUES {
                for b in VALUES {
                    let state = [a, b, 0x1234_5678_9abc_def0, 0];
                    let [rax, _, rdx, flags] = after(&mut guest, &bytes, state).unwrap();
                    let product = if is_signed {
                        (signed(a, bits) * signed(b, bits)).cast_unsigned()
                    } else {
                        u128::from(a & mask(bits)) * u128::from(b & mask(bits))
                    };
                    let low = u64::try_from(product & u128::from(mask(bits))).unwrap();
                    let high = u64::try_from(product >> bits & u128::from(mask(bits))).unwrap();
                    if bits == 8 {
                        assert_eq!(rax, written(a, high << 8 | low, 16));
                    } else {
                        assert_eq!(rax, written(a, low, bits));
                        assert_eq!(rdx, written(state[2], high, bits));
                    }
                    let lost = if is_signed {
                        signed(low, bits).cast_unsigned() != product
                    } else {
                        high != 0
                    };
                    let expected = if lost { CF | OF } else { 0 };
                    assert_eq!(flags & (CF | OF), expected, "{bits} {is_signed} {a:#x} {b:#x}");
                    if is_signed && bits > 8 {
                        let two = [prefix, 0x0f, 0xaf, 0xc1];
                        let [rax, _, _, flags] = after(&mut guest, &two, state).unwrap();
                        assert_eq!((rax, flags & (CF | OF)), (written(a, low, bits), expected));
                    }
                }
            }
        }
    }
}

#[test]
fn quotients_are_those_of_wide_numbers_or_a_divide_error() {
    let mut guest = Guest::long();
    for (bits, prefix, opcode) in
        [(8, 0x90, 0xf6), (16, 0x66, 0xf7), (32, 0x90, 0xf7), (64, 0x48, 0xf7)]
    {
        for is_signed in [false, true] {
            let bytes = [prefix, opcode, if is_signed { 0xf9 } else { 0xf1 }];
            let highs = [0, 1, 2, u64::MAX, 1 << (bits - 1), mask(bits) / 2, 0x40];
            for high in highs {
                for low in VALUES {
                    for b in VALUES {
                        let rax = if bits == 8 { high << 8 & 0xffff | low & 0xff } else { low };
                        let state = [rax, b, high, 0];
                        let got = after(&mut guest, &bytes, state);
                        let wide =
                            u128::from(high & mask(bits)) << bits | u128::from(low & mask(bits));
                        let expected = if is_signed {
                            let spare = 128 - 2 * bits;
                            let a = (wide << spare).cast_signed() >> spare;
                            let b = signed(b, bits);
                            a.checked_div(b).map(|q| (q, a - q * b)).filter(|(q, _)| {
                                signed((q & i128::from(mask(bits))).try_into().unwrap(), bits) == *q
                            })
                        } else {
                            let b = u128::from(b & mask(bits));
                            wide.checked_div(b)
                                .filter(|q| *q <= u128::from(mask(bits)))
                                .map(|q| (q.cast_signed(), (wide - q * b).cast_signed()))
                        };
                        let low_bits = |v: i128| u64::try_from(v & i128::from(mask(bits))).unwrap();
                        let expected = expected.map(|(q, r)| (low_bits(q), low_bits(r)));
                        let got = got.map(|[rax, _, rdx, _]| match bits {
                            8 => (rax & 0xff, rax >> 8 & 0xff),
                            _ => (rax & mask(bits), rdx & mask(bits)),
                        });
                        assert_eq!(got, expected, "{bits} {is_signed} {wide:#x} / {b:#x}");
                    }
                }
            }
        }
    }
}

#[test]
fn bits_beyond_the_operand_are_found_on_both_sides_of_it() {
    use iced_x86::code_asm::*;

    let mut guest = Guest::long();
    guest.memory.write(DATA, &[0; 64]);
    guest.run(|a| {
        a.mov(rdi, DATA + 32).unwrap();
        a.mov(rax, -3i64).unwrap();
        a.bts(qword_ptr(rdi), rax).unwrap();
        a.mov(ecx, 100).unwrap();
        a.bts(dword_ptr(rdi), ecx).unwrap();
        a.bts(word_ptr(rdi), ax).unwrap();
        a.setc(bl).unwrap();
        a.btc(dword_ptr(rdi), 35u32).unwrap();
        a.lock().bts(qword_ptr(rdi), rcx).unwrap();
        a.setc(bh).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.memory.read64(DATA + 24), 1 << 61);
    assert_eq!(guest.memory.read64(DATA + 32), 1 << 3);
    assert_eq!(guest.memory.read64(DATA + 40), 1 << 36);
    assert_eq!(guest.reg(reg::RBX), 0x0101);
}

#[test]
fn a_scan_that_finds_nothing_leaves_its_destination_and_says_so() {
    let mut guest = Guest::long();
    for (value, forward, reverse) in
        [(0, None, None), (1, Some(0), Some(0)), (0x8100_0000, Some(24), Some(31))]
    {
        for (bytes, expected) in [
            ([0x90, 0x0f, 0xbc, 0xc1], forward),
            ([0x90, 0x0f, 0xbd, 0xc1], reverse),
            // With a prefix that would make it tzcnt or lzcnt.
            ([0xf3, 0x0f, 0xbc, 0xc1], forward),
            ([0xf3, 0x0f, 0xbd, 0xc1], reverse),
        ] {
            let before = 0x5555_6666_7777_8888;
            let [rax, _, _, flags] = after(&mut guest, &bytes, [before, value, 0, 0]).unwrap();
            assert_eq!(rax, expected.unwrap_or(before));
            assert_eq!(flags & ZF != 0, expected.is_none());
        }
    }
}
