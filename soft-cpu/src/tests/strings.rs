//! Strings, against an evaluation element by element.

use super::{CODE, DATA, Guest};
use crate::Stop;
use crate::cpu::{reg, seg};
use crate::flags::{CF, DF, ZF};
use crate::segment::Segment;

const RCX: usize = reg::RCX;
const RSI: usize = reg::RSI;
const RDI: usize = reg::RDI;

/// Runs a string instruction with these registers, then `ud2`.
fn run(guest: &mut Guest, bytes: &[u8], count: u64, from: u64, to: u64, flags: u64) {
    let cpu = &mut guest.processor.cpu;
    (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]) = (count, from, to);
    cpu.set_rflags(flags);
    let mut code = bytes.to_vec();
    code.extend([0x0f, 0x0b]);
    assert_eq!(guest.run_bytes(&code), Stop::TripleFault);
    assert_eq!(guest.processor.cpu.rip, CODE + bytes.len() as u64, "stopped at its end");
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap()).collect()
}

const ROOM: usize = 0x6000;

/// `rep movs` by the book, one element after the other.
fn moved(memory: &mut [u8], width: usize, count: usize, from: usize, to: usize, down: bool) {
    let (mut from, mut to) = (from, to);
    for _ in 0..count {
        let element = memory[from..from + width].to_vec();
        memory[to..to + width].copy_from_slice(&element);
        if down {
            (from, to) = (from.wrapping_sub(width), to.wrapping_sub(width));
        } else {
            (from, to) = (from + width, to + width);
        }
    }
}

#[test]
fn copies_that_overlap_replicate_as_they_do_element_by_element() {
    let mut guest = Guest::long();
    let encodings: [(usize, &[u8]); 4] = [
        (1, &[0xf3, 0xa4]),
        (2, &[0x66, 0xf3, 0xa5]),
        (4, &[0xf3, 0xa5]),
        (8, &[0xf3, 0x48, 0xa5]),
    ];
    for (width, bytes) in encodings {
        for down in [false, true] {
            for distance in [-9i64, -8, -3, -1, 0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 4095, 4096, 4100] {
                for (from, count) in
                    [(0x2ff0usize, 5usize), (0x2003, 1), (0x2001, 700), (0x2000, 0)]
                {
                    let to = usize::try_from(from as i64 + distance).unwrap();
                    let mut expected = pattern(ROOM);
                    guest.memory.write(DATA, &expected);
                    moved(&mut expected, width, count, from, to, down);
                    let flags = if down { DF } else { 0 };
                    let (start, end) = (DATA + from as u64, DATA + to as u64);
                    run(&mut guest, bytes, count as u64, start, end, flags);
                    let got = guest.memory.read(DATA, ROOM);
                    assert!(got == expected, "{width} {down} {distance} {from:#x} {count}");
                    let by = (count * width) as u64;
                    let end_of = |at: u64| if down { at.wrapping_sub(by) } else { at + by };
                    assert_eq!(guest.reg(RCX), 0);
                    assert_eq!(guest.reg(RSI), end_of(start));
                    assert_eq!(guest.reg(RDI), end_of(end));
                }
            }
        }
    }
}

#[test]
fn a_copy_between_two_addresses_of_one_page_replicates_too() {
    let mut guest = Guest::long();
    // The page table of 2 MiB pages maps address 8 MiB to DATA once more.
    guest.memory.write64(0x3000 + 8 * 4, DATA | 0x87);
    let alias = 8 << 20;
    let mut expected = pattern(ROOM);
    guest.memory.write(DATA, &expected);
    moved(&mut expected, 8, 300, 0, 3, false);
    run(&mut guest, &[0xf3, 0x48, 0xa5], 300, DATA, alias + 3, 0);
    assert!(guest.memory.read(DATA, ROOM) == expected);
}

#[test]
fn fills_of_every_width_end_where_they_should() {
    let mut guest = Guest::long();
    let encodings: [(usize, &[u8]); 4] = [
        (1, &[0xf3, 0xaa]),
        (2, &[0x66, 0xf3, 0xab]),
        (4, &[0xf3, 0xab]),
        (8, &[0xf3, 0x48, 0xab]),
    ];
    for (width, bytes) in encodings {
        for down in [false, true] {
            for (at, count) in [(0x2ffcusize, 4usize), (0x2001, 700), (0x2ff9, 1500), (0x2000, 0)] {
                if down && count * width > at {
                    continue;
                }
                let mut expected = pattern(ROOM + 0x4000);
                guest.memory.write(DATA, &expected);
                let value = 0x1122_3344_5566_7788u64.to_le_bytes();
                for number in 0..count {
                    let at = if down { at - number * width } else { at + number * width };
                    expected[at..at + width].copy_from_slice(&value[..width]);
                }
                guest.processor.cpu.gpr[reg::RAX] = u64::from_le_bytes(value);
                let flags = if down { DF } else { 0 };
                run(&mut guest, bytes, count as u64, 0, DATA + at as u64, flags);
                assert!(
                    guest.memory.read(DATA, ROOM + 0x4000) == expected,
                    "{width} {down} {at:#x}"
                );
            }
        }
    }
}

#[test]
fn scans_and_comparisons_stop_at_the_first_that_differs_or_is_equal() {
    let mut guest = Guest::long();
    let mut bytes = vec![7u8; 0x3000];
    bytes[0x1234] = 9;
    guest.memory.write(DATA, &bytes);
    guest.processor.cpu.gpr[reg::RAX] = 9;
    // repne scasb
    run(&mut guest, &[0xf2, 0xae], 0x3000, 0, DATA, 0);
    assert_eq!((guest.reg(RDI), guest.reg(RCX)), (DATA + 0x1235, 0x3000 - 0x1235));
    assert_ne!(guest.processor.cpu.rflags() & ZF, 0);
    // repe cmpsb
    guest.memory.write(DATA + 0x8000, &[7; 0x3000]);
    run(&mut guest, &[0xf3, 0xa6], 0x3000, DATA, DATA + 0x8000, 0);
    assert_eq!((guest.reg(RSI), guest.reg(RDI)), (DATA + 0x1235, DATA + 0x9235));
    assert_eq!(guest.processor.cpu.rflags() & (ZF | CF), 0);
    // Nothing to do changes no flag.
    run(&mut guest, &[0xf3, 0xa6], 0, DATA, DATA + 0x8000, ZF | CF);
    assert_eq!(guest.processor.cpu.rflags() & (ZF | CF), ZF | CF);
    // Equal to the end.
    run(&mut guest, &[0xf3, 0x48, 0xa7], 0x200, DATA, DATA + 0x8000, 0);
    assert_eq!((guest.reg(RCX), guest.processor.cpu.rflags() & ZF), (0, ZF));
}

#[test]
fn downwards_they_cross_pages_too() {
    let mut guest = Guest::long();
    let mut words = vec![7u8; 0x3000];
    words[0x123..0x12b].fill(9);
    guest.memory.write(DATA, &words);
    guest.memory.write(DATA + 0x8000, &[7; 0x3000]);
    let last = 0x2fa3u64;
    let count = (last - 0x123) / 8 + 1;
    // std; repe cmpsq
    let from = DATA + last;
    run(&mut guest, &[0xf3, 0x48, 0xa7], 10_000, from, from + 0x8000, DF);
    assert_eq!((guest.reg(RSI), guest.reg(RCX)), (DATA + 0x11b, 10_000 - count));
    assert_eq!(guest.reg(RDI), DATA + 0x811b);
    // repne scasq
    guest.processor.cpu.gpr[reg::RAX] = 0x0909_0909_0909_0909;
    run(&mut guest, &[0xf2, 0x48, 0xaf], count, 0, from, DF);
    assert_eq!((guest.reg(RDI), guest.reg(RCX)), (DATA + 0x11b, 0));
    assert_ne!(guest.processor.cpu.rflags() & ZF, 0);
    // rep lodsw leaves the last; 2,000 words of two pages.
    guest.memory.write(DATA + 0x1000, &pattern(0x2000));
    run(&mut guest, &[0x66, 0xf3, 0xad], 2000, DATA + 0x1001 + 3998, 0, DF);
    let expected = pattern(3);
    assert_eq!(guest.reg(reg::RAX) & 0xffff, u64::from(expected[1]) | u64::from(expected[2]) << 8);
    assert_eq!((guest.reg(RSI), guest.reg(RCX)), (DATA + 0xfff, 0));
}

#[test]
fn sixteen_bits_of_a_register_wrap_and_the_rest_stays() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    // 16-bit addresses exist outside 64-bit mode only: flat 32-bit code, no paging.
    (cpu.cr0, cpu.efer) = (1, 0);
    let code = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xc09b };
    cpu.set_segment(seg::CS, code);
    let base = u32::try_from(DATA).unwrap();
    cpu.set_segment(seg::ES, Segment { base: base.into(), attributes: 0xc093, ..code });
    cpu.mode_changed();
    cpu.gpr[reg::RAX] = 0x5a;
    for (flags, start, end) in [(0, 0x1234_fffc, 0x1234_0004), (DF, 0x1234_0003, 0x1234_fffb)] {
        guest.memory.write(DATA, &[0; 16]);
        guest.memory.write(DATA + 0xfff0, &[0; 32]);
        // addr16 rep stosb
        run(&mut guest, &[0x67, 0xf3, 0xaa], 0x7777_0008, 0, start, flags);
        assert_eq!((guest.reg(RDI), guest.reg(RCX)), (end, 0x7777_0000));
        assert_eq!(guest.memory.read(DATA, 5), [0x5a, 0x5a, 0x5a, 0x5a, 0]);
        assert_eq!(guest.memory.read(DATA + 0xfffb, 6), [0, 0x5a, 0x5a, 0x5a, 0x5a, 0]);
    }
}

#[test]
fn with_an_address_size_prefix_the_lower_halves_count() {
    let mut guest = Guest::long();
    guest.memory.write(DATA, &pattern(64));
    // Address-size prefix: only the lower halves count.
    guest.processor.cpu.gpr[reg::RAX] = 0xabcd;
    run(&mut guest, &[0x67, 0xf3, 0xaa], 0xffff_ffff_0000_0010, 0, 0xf_0000_0000 + DATA, 0);
    assert_eq!(guest.memory.read(DATA, 17)[..16], [0xcd; 16]);
    assert_eq!(guest.memory.read(DATA + 16, 1), pattern(17)[16..]);
    assert_eq!((guest.reg(RDI), guest.reg(RCX)), (DATA + 16, 0));
}

#[test]
fn a_fault_in_the_middle_leaves_the_registers_at_the_element_that_met_it() {
    let mut guest = Guest::long();
    // Beyond the first GiB nothing is mapped.
    let end = 1u64 << 30;
    // Its last 2 MiB lead to memory.
    guest.memory.write64(0x3000 + 8 * 511, DATA | 0x87);
    let cpu = &mut guest.processor.cpu;
    (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]) = (1000, DATA + 0x10_0000, end - 100);
    guest.run_bytes(&[0xf3, 0x48, 0xa5]);
    let cpu = &guest.processor.cpu;
    assert_eq!((cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]), (988, DATA + 0x10_0000 + 96, end - 4));
    assert_eq!((cpu.rip, cpu.cr2), (CODE, end));
}

#[test]
fn devices_are_asked_once_for_each_element() {
    let mut guest = Guest::long();
    let device = 0x3000_0000u64;
    guest.memory.write(DATA, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let cpu = &mut guest.processor.cpu;
    (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]) = (2, device, device + 0x100);
    let mut stop = guest.run_bytes(&[0xf3, 0xa5, 0x0f, 0x0b]);
    let mut seen = Vec::new();
    while let Stop::Mmio(access) = stop {
        seen.push((access.at - device, access.value));
        guest.processor.answer(0x10 + access.at - device);
        stop = guest.processor.run(&0.into());
    }
    assert_eq!(stop, Stop::TripleFault);
    assert_eq!(seen, [(0, None), (0x100, Some(0x10)), (4, None), (0x104, Some(0x14))]);
}

#[test]
fn a_string_through_a_port_asks_for_each_element_and_goes_on() {
    let mut guest = Guest::long();
    guest.memory.write(DATA, b"abc");
    let cpu = &mut guest.processor.cpu;
    (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI], cpu.gpr[reg::RDX]) = (3, DATA, DATA + 0x100, 0x1f0);
    // rep outsb; mov cl, 2; rep insw; ud2
    let code = [0xf3, 0x6e, 0xb1, 2, 0x66, 0xf3, 0x6d, 0x0f, 0x0b];
    let mut stop = guest.run_bytes(&code);
    let mut seen = Vec::new();
    while let Stop::StringPort(access) = stop {
        assert_eq!(access.at, 0x1f0);
        seen.push((access.bytes, access.value));
        guest.processor.answer(0xaa00 + seen.len() as u64);
        stop = guest.processor.run(&0.into());
    }
    assert_eq!(stop, Stop::TripleFault);
    let written = [(1, Some(0x61)), (1, Some(0x62)), (1, Some(0x63))];
    assert_eq!(seen, [&written[..], &[(2, None), (2, None)]].concat());
    assert_eq!(guest.memory.read(DATA + 0x100, 4), [4, 0xaa, 5, 0xaa]);
    assert_eq!((guest.reg(RCX), guest.reg(RSI)), (0, DATA + 3));
    assert_eq!(guest.reg(RDI), DATA + 0x104);
}

#[test]
fn a_repetition_checks_alignment_where_that_is_on() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    cpu.cr0 |= crate::cpu::cr0::AM;
    cpu.mode_changed();
    cpu.set_cpl(3);
    // rep movsw from an odd address: nothing is done. From an even one: all.
    for (from, left) in [(DATA + 1, 8), (DATA, 0)] {
        let cpu = &mut guest.processor.cpu;
        cpu.set_cpl(3);
        (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]) = (8, from, DATA + 0x1000);
        cpu.set_rflags(crate::flags::AC);
        guest.run_bytes(&[0x66, 0xf3, 0xa5, 0x0f, 0x0b]);
        assert_eq!(guest.reg(RCX), left);
    }
}

#[test]
fn a_device_is_not_read_for_an_element_that_cannot_be_written() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    // The destination is beyond what is mapped.
    (cpu.gpr[RCX], cpu.gpr[RSI], cpu.gpr[RDI]) = (4, 0x3000_0000, 1 << 30);
    assert_eq!(guest.run_bytes(&[0xf3, 0xa4]), Stop::TripleFault);
    assert_eq!((guest.processor.cpu.cr2, guest.reg(RCX)), (1 << 30, 4));
}
