//! Who may do what: instructions of the kernel, model-specific registers, returns, segments.

use iced_x86::code_asm::*;

use super::kernel::{GDT, sel};
use super::{CODE, DATA, Guest};
use crate::Stop;
use crate::cpu::{cr4, efer, reg, seg};
use crate::flags;

type Program = fn(&mut CodeAssembler);

#[test]
fn users_get_protection_faults_from_the_kernels_instructions() {
    let programs: [Program; 17] = [
        |a| a.hlt().unwrap(),
        |a| a.sti().unwrap(),
        |a| a.clts().unwrap(),
        |a| a.mov(cr3, rax).unwrap(),
        |a| a.mov(rax, cr0).unwrap(),
        |a| a.mov(rax, cr8).unwrap(),
        |a| a.mov(dr7, rax).unwrap(),
        |a| a.invlpg(byte_ptr(rax)).unwrap(),
        |a| a.wbinvd().unwrap(),
        |a| a.lgdt(qword_ptr(DATA)).unwrap(),
        |a| a.lidt(qword_ptr(DATA)).unwrap(),
        |a| a.lldt(ax).unwrap(),
        |a| a.ltr(ax).unwrap(),
        |a| a.lmsw(ax).unwrap(),
        |a| a.rdmsr().unwrap(),
        |a| a.swapgs().unwrap(),
        |a| a.sysretq().unwrap(),
    ];
    for program in programs {
        let mut guest = Guest::with_kernel();
        guest.become_user();
        guest.fails_with(13, Some(0), program);
    }
    // These do not even exist for users.
    for program in [(|a| a.clac().unwrap()) as Program, |a| a.stac().unwrap()] {
        let mut guest = Guest::with_kernel();
        guest.become_user();
        guest.fails_with(6, None, program);
    }
}

#[test]
fn what_a_control_bit_takes_from_users_is_a_protection_fault() {
    let cases: [(u64, Program); 5] = [
        (cr4::TSD, |a| a.rdtsc().unwrap()),
        (cr4::UMIP, |a| a.sgdt(qword_ptr(DATA)).unwrap()),
        (cr4::UMIP, |a| a.smsw(eax).unwrap()),
        (cr4::UMIP, |a| a.str(eax).unwrap()),
        (cr4::UMIP, |a| a.sldt(eax).unwrap()),
    ];
    for (bit, program) in cases {
        let mut guest = Guest::with_kernel();
        guest.become_user();
        guest.processor.cpu.cr4 |= bit;
        guest.fails_with(13, Some(0), program);
        let mut guest = Guest::with_kernel();
        guest.become_user();
        guest.fails_with(6, None, |a| {
            program(a);
            a.ud2().unwrap();
        });
    }
}

#[test]
fn bases_are_written_only_when_the_kernel_allows_it_and_only_with_addresses() {
    let mut guest = Guest::with_kernel();
    guest.fails_with(6, None, |a| a.wrfsbase(rax).unwrap());
    let mut guest = Guest::with_kernel();
    guest.become_user();
    guest.processor.cpu.cr4 |= cr4::FSGSBASE;
    guest.fails_with(6, None, |a| {
        a.mov(rax, 0x7fff_1234_5678u64).unwrap();
        a.wrgsbase(rax).unwrap();
        a.rdgsbase(rbx).unwrap();
        a.mov(eax, -1).unwrap();
        a.wrfsbase(eax).unwrap();
        a.rdfsbase(rcx).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((guest.reg(reg::RBX), guest.reg(reg::RCX)), (0x7fff_1234_5678, 0xffff_ffff));
    guest.fails_with(13, Some(0), |a| {
        a.mov(rax, 1u64 << 63).unwrap();
        a.wrgsbase(rax).unwrap();
    });
}

#[test]
fn swapgs_exchanges_the_two_bases() {
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.msr.kernel_gs_base = DATA;
    guest.memory.write64(DATA + 8, 77);
    let stop = guest.run(|a| {
        a.swapgs().unwrap();
        a.mov(rbx, qword_ptr(8).gs()).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!((stop, guest.reg(reg::RBX)), (Stop::Halted, 77));
    assert_eq!(guest.processor.cpu.msr.kernel_gs_base, 0);
}

fn write_msr(guest: &mut Guest, msr: u32, value: u64) -> bool {
    let stop = guest.run(|a| {
        a.mov(ecx, msr).unwrap();
        a.mov(eax, u32::try_from(value & 0xffff_ffff).unwrap()).unwrap();
        a.mov(edx, u32::try_from(value >> 32).unwrap()).unwrap();
        a.wrmsr().unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    match vector {
        6 => true,
        13 => {
            assert_eq!(frame[0], 0);
            false
        }
        other => panic!("vector {other}"),
    }
}

fn read_msr(guest: &mut Guest, msr: u32) -> Option<u64> {
    let stop = guest.run(|a| {
        a.mov(ecx, msr).unwrap();
        a.rdmsr().unwrap();
        a.ud2().unwrap();
    });
    let (vector, _) = guest.handled(stop);
    (vector == 6).then(|| guest.reg(reg::RAX) | guest.reg(reg::RDX) << 32)
}

#[test]
fn model_specific_registers_keep_what_fits_and_refuse_the_rest() {
    let canonical = 0xffff_8000_0000_1234u64;
    let accepted = [
        (0xc000_0080, efer::LME | efer::LMA | efer::SCE),
        (0xc000_0081, 0x1234_5678_9abc_def0),
        (0xc000_0082, canonical),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, canonical),
        (0xc000_0101, canonical),
        (0xc000_0102, canonical),
        (0xc000_0103, 3),
        (0x277, 0x0001_0406_0507_0406),
        (0x2ff, 0xc00),
        (0x200, 0xf000_0000),
        (0x201, 0xf000_0800),
        (0x250, 0x0606_0606_0606_0006),
        (0x174, 0x10),
        (0x175, canonical),
        (0x48, 1 | 1 << 10),
        (0x3b, 1 << 40),
    ];
    for (msr, value) in accepted {
        let mut guest = Guest::with_kernel();
        assert!(write_msr(&mut guest, msr, value), "{msr:#x}");
        assert_eq!(read_msr(&mut guest, msr), Some(value), "{msr:#x}");
    }
    let refused = [
        (0xc000_0080, efer::LME | 1 << 14),
        (0xc000_0080, 0),
        (0xc000_0082, 1 << 48),
        (0xc000_0101, 1 << 63),
        (0xc000_0103, 1 << 32),
        (0x277, 2),
        (0x2ff, 7),
        (0x250, 2),
        (0x201, 1 << 50),
        (0x175, 1 << 47),
        (0x48, 2),
        (0x10a, 0),
        (0xce, 0),
        (0x1234_5678, 0),
    ];
    for (msr, value) in refused {
        assert!(!write_msr(&mut Guest::with_kernel(), msr, value), "{msr:#x}");
    }
    for msr in [0x1234_5678, 0x49, 0x345, 0xc001_0015] {
        assert_eq!(read_msr(&mut Guest::with_kernel(), msr), None, "{msr:#x}");
    }
}

#[test]
fn the_clock_goes_on_from_where_it_is_set() {
    let mut guest = Guest::with_kernel();
    assert!(write_msr(&mut guest, 0x10, 1 << 40));
    let now = read_msr(&mut guest, 0x10).unwrap();
    assert!((1 << 40..1 << 41).contains(&now), "{now:#x}");
    let stop = guest.run(|a| {
        a.rdtscp().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(stop, Stop::Halted);
    assert!(guest.reg(reg::RDX) >= 1 << 8);
}

/// The frame that `iretq` pops.
fn frame(a: &mut CodeAssembler, rip: u64, code: u16, image: u32, top: u64, stack: u16) {
    for value in [u64::from(stack), top, u64::from(image), u64::from(code), rip] {
        a.mov(rax, value).unwrap();
        a.push(rax).unwrap();
    }
    a.iretq().unwrap();
}

#[test]
fn a_return_checks_everything_it_restores() {
    let (user, data) = (sel::USER_CODE, sel::USER_DATA);
    let cases: [(&str, u64, u16, u64, u16); 7] = [
        ("no code", DATA, 0, 0, data),
        ("data as code", DATA, data, u64::from(data & !3), data),
        ("the kernel's stack for a user", DATA, user, u64::from(sel::DATA), sel::DATA),
        ("no stack for a user", DATA, user, 0, 0),
        ("an address that is none", 1 << 47, user, 0, data),
        ("beyond the table", DATA, 0x83, 0x80, data),
        ("a system segment", DATA, sel::TASK, u64::from(sel::TASK), data),
    ];
    for (name, rip, code, error, stack) in cases {
        let mut guest = Guest::with_kernel();
        let stop = guest.run(|a| frame(a, rip, code, 2, 0x7_0000, stack));
        let (vector, frame) = guest.handled(stop);
        assert_eq!((vector, frame[0]), (13, error), "{name}");
        assert_eq!(guest.processor.cpu.cpl, 0, "{name}");
    }
    // Long mode has no nested tasks.
    Guest::with_kernel().fails_with(13, Some(0), |a| {
        a.push(0x4002).unwrap();
        a.popfq().unwrap();
        frame(a, DATA, user, 2, 0x7_0000, data);
    });
    // An absent code segment, by its own vector.
    let absent = Guest::with_kernel().memory.read64(GDT + u64::from(sel::ABSENT));
    assert_eq!(absent >> 47 & 1, 0);
    let mut guest = Guest::with_kernel();
    guest.memory.write64(GDT + u64::from(sel::ABSENT), 0x00af_1b00_0000_ffff);
    let stop = guest.run(|a| frame(a, DATA, sel::ABSENT, 2, 0x7_0000, 0));
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (11, u64::from(sel::ABSENT)));
}

#[test]
fn a_return_to_the_same_privilege_pops_the_stack_pointer_too() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(DATA, &[0xf4]);
    let stop = guest.run(|a| frame(a, DATA, sel::CODE, 2, 0x7_0008, 0));
    assert_eq!(stop, Stop::Halted);
    assert_eq!(guest.reg(reg::RSP), 0x7_0008);
    assert_eq!(guest.processor.cpu.segments[seg::SS].selector, 0);
}

#[test]
fn a_user_cannot_raise_its_io_privilege_or_touch_if_by_returning() {
    let mut guest = Guest::with_kernel();
    guest.become_user();
    guest.memory.write(DATA, &[0x0f, 0x0b]);
    let stop = guest.run(|a| frame(a, DATA, sel::USER_CODE, 0x3202, 0x7_0000, sel::USER_DATA));
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[2]), (6, flags::RF | 2));
}

#[test]
fn sysret_finds_a_bad_address_before_it_leaves_the_kernel() {
    let mut guest = Guest::with_kernel();
    guest.fails_with(13, Some(0), |a| {
        a.mov(rcx, 1u64 << 47).unwrap();
        a.sysretq().unwrap();
    });
    assert_eq!(guest.processor.cpu.cpl, 0);
    // Without SCE neither exists.
    for program in [(|a| a.syscall().unwrap()) as Program, |a| a.sysretq().unwrap()] {
        let mut guest = Guest::with_kernel();
        guest.processor.cpu.efer &= !efer::SCE;
        guest.fails_with(6, None, program);
    }
}

#[test]
fn sysenter_and_sysexit_pair_up() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(DATA, &[0x48, 0x0f, 0x35]); // sysexitq
    let cpu = &mut guest.processor.cpu;
    (cpu.msr.sysenter_cs, cpu.msr.sysenter_esp, cpu.msr.sysenter_eip) = (8, 0x6_0000, DATA);
    let stop = guest.run_user(|a| {
        a.mov(edx, u32::try_from(CODE + 0x40).unwrap()).unwrap();
        a.mov(ecx, 0x7_0000).unwrap();
        a.sysenter().unwrap();
        for _ in 0..0x40 {
            a.nop().unwrap();
        }
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    // As SYSENTER_CS says: 8 + 32 and 8 + 40, for users.
    assert_eq!((vector, frame[1], frame[4], frame[3]), (6, 0x2b, 0x33, 0x7_0000));
    let mut guest = Guest::with_kernel();
    guest.become_user();
    guest.fails_with(13, Some(0), |a| a.sysenter().unwrap());
}

#[test]
fn segments_are_loaded_only_by_those_who_may_use_them() {
    let mut guest = Guest::with_kernel();
    guest.become_user();
    guest.fails_with(13, Some(u64::from(sel::DATA)), |a| {
        a.mov(eax, u32::from(sel::DATA) | 3).unwrap();
        a.mov(ds, eax).unwrap();
    });
    let mut guest = Guest::with_kernel();
    guest.become_user();
    guest.fails_with(13, Some(0), |a| {
        a.xor(eax, eax).unwrap();
        a.mov(es, eax).unwrap();
        a.mov(ss, eax).unwrap();
    });
    // As data: absent is #NP; as a stack it would be #SS.
    Guest::with_kernel().fails_with(11, Some(u64::from(sel::ABSENT)), |a| {
        a.mov(eax, u32::from(sel::ABSENT)).unwrap();
        a.mov(fs, eax).unwrap();
    });
    Guest::with_kernel().fails_with(12, Some(u64::from(sel::ABSENT)), |a| {
        a.mov(eax, u32::from(sel::ABSENT)).unwrap();
        a.mov(ss, eax).unwrap();
    });
    Guest::with_kernel().fails_with(6, None, |a| a.db(&[0x8e, 0xc8]).unwrap()); // mov cs, eax
}

#[test]
fn questions_about_descriptors_answer_in_zf() {
    let mut guest = Guest::with_kernel();
    guest.become_user();
    let stop = guest.run(|a| {
        a.mov(eax, u32::from(sel::USER_DATA)).unwrap();
        a.lsl(ebx, eax).unwrap();
        a.setz(cl).unwrap();
        a.mov(eax, u32::from(sel::DATA)).unwrap();
        a.verw(ax).unwrap();
        a.setz(ch).unwrap();
        a.mov(eax, u32::from(sel::USER_CODE)).unwrap();
        a.lar(edx, eax).unwrap();
        a.verw(ax).unwrap();
        a.setz(sil).unwrap();
        a.verr(ax).unwrap();
        a.setz(dil).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.handled(stop).0, 6);
    assert_eq!((guest.reg(reg::RBX), guest.reg(reg::RCX) & 0xffff), (0xffff_ffff, 1));
    assert_eq!(guest.reg(reg::RDX) & 0xf0_ff00, 0xa0_fb00);
    assert_eq!((guest.reg(reg::RSI) & 0xff, guest.reg(reg::RDI) & 0xff), (0, 1));
}

#[test]
fn a_64_bit_call_gate_leads_users_into_the_kernel_and_retf_out_again() {
    let mut guest = Guest::with_kernel();
    guest.memory.write64(GDT + u64::from(sel::GATE), {
        DATA & 0xffff | u64::from(sel::CODE) << 16 | 0xec << 40 | (DATA >> 16) << 48
    });
    guest.memory.write64(GDT + u64::from(sel::GATE) + 8, 0);
    guest.memory.write(DATA, &[0x8c, 0xcb, 0x48, 0xcb]); // mov ebx, cs; retfq
    guest.memory.write64(DATA + 0x100, u64::from(sel::GATE) << 32);
    let stop = guest.run_user(|a| {
        a.db(&[0xff, 0x1c, 0x25]).unwrap(); // call far [DATA + 0x100]
        a.dd(&[u32::try_from(DATA + 0x100).unwrap()]).unwrap();
        a.mov(ecx, cs).unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (6, CODE + 9));
    assert_eq!(guest.reg(reg::RBX), u64::from(sel::CODE));
    assert_eq!(guest.reg(reg::RCX), u64::from(sel::USER_CODE));
    assert_eq!(frame[3], super::kernel::USER_STACK);
}

#[test]
fn the_processor_says_what_it_is() {
    let guest = Guest::long();
    let cpu = &guest.processor.cpu;
    let leaf = cpu.cpuid(0, 0);
    let name = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    assert_eq!(name, b"GenuineIntel");
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .flat_map(|leaf| {
            let leaf = cpu.cpuid(leaf, 0);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat()
        })
        .collect();
    assert!(brand.starts_with(b"skep software processor\0"));
    let clock = cpu.cpuid(0x15, 0);
    assert_eq!(u64::from(clock.ecx) * u64::from(clock.ebx) / u64::from(clock.eax), 1_000_000_000);
    let beyond = cpu.cpuid(0x7fff_ffff, 0);
    assert_eq!((beyond.eax, beyond.ebx, beyond.ecx, beyond.edx), (0, 0, 0, 0));
}

#[test]
fn everything_advertised_brings_its_control_bits_and_nothing_else_has_any() {
    let mut guest = Guest::with_kernel();
    // The kernel's own pages are not users': SMEP and SMAP are among the bits.
    guest.memory.write64(0x3000, 0x83);
    let all = crate::system::cr4_bits();
    for bit in 0..32 {
        let value = cr4::PAE | 1u64 << bit;
        let allowed = all >> bit & 1 == 1;
        guest.processor.cpu.cr4 = cr4::PAE;
        let stop = guest.run(|a| {
            a.mov(rax, value).unwrap();
            a.mov(cr4, rax).unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(guest.handled(stop).0, if allowed { 6 } else { 13 }, "bit {bit}");
    }
}
