//! Moves: which bytes go where, what must be aligned, and who may.

use iced_x86::code_asm::*;

use crate::Stop;
use crate::cpu::{Cpu, cr0, cr4, reg};
use crate::event::Event;
use crate::op::Op;
use crate::tests::{CODE, DATA, Guest};

const A: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const B: u128 = 0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110;

/// What one instruction raises: its vector.
pub(super) fn raised(
    guest: &mut Guest,
    instruction: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Option<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    instruction(&mut assembler).unwrap();
    let bytes = assembler.assemble(CODE).unwrap();
    let mut decoder = iced_x86::Decoder::with_ip(64, &bytes, CODE, 0);
    let place = crate::lower::Place {
        offset: 0,
        code_size: crate::cpu::CodeSize::Bits64,
        big_stack: false,
    };
    let op: Op = crate::lower::lower(&decoder.decode(), &place).op;
    let cpu: &mut Cpu = &mut guest.processor.cpu;
    cpu.gpr[17] = CODE;
    let done = (op.run)(cpu, &op);
    match std::mem::replace(&mut cpu.event, Event::None) {
        Event::Exception(exception) => {
            assert!(done.is_err());
            Some(exception.vector)
        }
        other => {
            assert_eq!((done, other), (Ok(()), Event::None));
            None
        }
    }
}

#[test]
fn whole_registers_go_to_memory_and_back() {
    let mut guest = Guest::long();
    guest.processor.cpu.xmm[3] = A;
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.movdqa(xmmword_ptr(rdi), xmm3).unwrap();
        a.movups(xmmword_ptr(rdi + 0x23), xmm3).unwrap();
        a.movntdq(xmmword_ptr(rdi + 0x40), xmm3).unwrap();
        a.movdqu(xmm12, xmmword_ptr(rdi + 0x23)).unwrap();
        a.movaps(xmm1, xmm12).unwrap();
        a.movaps(xmm2, xmmword_ptr(rdi + 0x40)).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    assert_eq!([cpu.xmm[12], cpu.xmm[1], cpu.xmm[2]], [A; 3]);
    assert_eq!(guest.memory.read(DATA, 16), A.to_le_bytes());
}

#[test]
fn a_short_load_clears_the_rest_and_a_short_move_leaves_it() {
    let mut guest = Guest::long();
    let mut one = |code: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        super::applied(&mut guest, A, B, code)
    };
    assert_eq!(one(|a| a.movss(xmm1, dword_ptr(rdi))), B & 0xffff_ffff);
    assert_eq!(one(|a| a.movss(xmm1, xmm9)), A >> 32 << 32 | B & 0xffff_ffff);
    assert_eq!(one(|a| a.movsd_2(xmm1, qword_ptr(rdi))), B << 64 >> 64);
    assert_eq!(one(|a| a.movsd_2(xmm1, xmm9)), A >> 64 << 64 | B << 64 >> 64);
    assert_eq!(one(|a| a.movq(xmm1, qword_ptr(rdi))), B << 64 >> 64);
    assert_eq!(one(|a| a.movq(xmm1, xmm9)), B << 64 >> 64);
    assert_eq!(one(|a| a.movd(xmm1, dword_ptr(rdi))), B & 0xffff_ffff);
    assert_eq!(one(|a| a.movlps(xmm1, qword_ptr(rdi))), A >> 64 << 64 | B << 64 >> 64);
    assert_eq!(one(|a| a.movhpd(xmm1, qword_ptr(rdi))), A << 64 >> 64 | B << 64);
    assert_eq!(one(|a| a.movhlps(xmm1, xmm9)), A >> 64 << 64 | B >> 64);
    assert_eq!(one(|a| a.movlhps(xmm1, xmm9)), A << 64 >> 64 | B << 64);
    assert_eq!(one(|a| a.pinsrw(xmm1, word_ptr(rdi), 0x8d)), {
        A & !(0xffff << 80) | (B & 0xffff) << 80
    });
}

#[test]
fn general_registers_exchange_bits_with_vectors() {
    let mut guest = Guest::long();
    guest.processor.cpu.xmm[1] = 0x8000_0000_0000_0001_ff00_0000_8090_a0b0;
    guest.run(|a| {
        a.movq(rax, xmm1).unwrap();
        a.mov(rbx, u64::MAX).unwrap();
        a.movd(ebx, xmm1).unwrap();
        a.movq(xmm2, rax).unwrap();
        a.pextrw(ecx, xmm1, 7).unwrap();
        a.pmovmskb(edx, xmm1).unwrap();
        a.movmskps(esi, xmm1).unwrap();
        a.movmskpd(ebp, xmm1).unwrap();
        a.mov(r8, DATA).unwrap();
        a.movd(dword_ptr(r8), xmm1).unwrap();
        a.movhps(qword_ptr(r8 + 4), xmm1).unwrap();
        a.movnti(dword_ptr(r8 + 12), edx).unwrap();
        a.ud2().unwrap();
    });
    let cpu = &guest.processor.cpu;
    assert_eq!(guest.reg(reg::RAX), 0xff00_0000_8090_a0b0);
    assert_eq!(guest.reg(reg::RBX), 0x8090_a0b0);
    assert_eq!(cpu.xmm[2], 0xff00_0000_8090_a0b0);
    assert_eq!(guest.reg(reg::RCX), 0x8000);
    assert_eq!(guest.reg(reg::RDX), 0b1000_0000_1000_1111);
    assert_eq!((guest.reg(reg::RSI), guest.reg(reg::RBP)), (0b1011, 0b11));
    assert_eq!(guest.memory.read64(DATA), 0x0000_0001_8090_a0b0);
    assert_eq!(guest.memory.read64(DATA + 8), 0x0000_808f_8000_0000);
}

#[test]
fn sixteen_bytes_across_pages_are_whole() {
    let mut guest = Guest::long();
    for shift in 1..16 {
        guest.processor.cpu.xmm[3] = B;
        guest.processor.cpu.gpr[7] = DATA + 0x1000 - shift;
        guest.run(|a| {
            a.movdqu(xmmword_ptr(rdi), xmm3).unwrap();
            a.movdqu(xmm4, xmmword_ptr(rdi)).unwrap();
            a.ud2().unwrap();
        });
        assert_eq!(guest.processor.cpu.xmm[4], B);
        assert_eq!(guest.memory.read(DATA + 0x1000 - shift, 16), B.to_le_bytes());
    }
}

#[test]
fn a_store_that_faults_in_its_second_page_leaves_the_first_alone() {
    let mut guest = Guest::long();
    // The second large page, in the third table from the root.
    guest.memory.write64(0x3000 + 8, 0);
    let end = 2 << 20;
    guest.memory.write64(end - 8, 0x5555);
    guest.processor.cpu.xmm[3] = B;
    guest.processor.cpu.xmm[4] = u128::MAX;
    guest.processor.cpu.gpr[7] = end - 8;
    assert_eq!(raised(&mut guest, |a| a.movdqu(xmmword_ptr(rdi), xmm3)), Some(14));
    assert_eq!(raised(&mut guest, |a| a.movdqu(xmm3, xmmword_ptr(rdi))), Some(14));
    assert_eq!(raised(&mut guest, |a| a.maskmovdqu(xmm3, xmm4)), Some(14));
    assert_eq!(guest.memory.read64(end - 8), 0x5555);
    assert_eq!(guest.processor.cpu.xmm[3], B);
    // Nothing of the second page is wanted.
    guest.processor.cpu.xmm[4] = u128::from(u64::MAX);
    assert_eq!(raised(&mut guest, |a| a.maskmovdqu(xmm3, xmm4)), None);
    assert_eq!(guest.memory.read(end - 8, 8), B.to_le_bytes()[..8]);
}

#[test]
fn a_store_that_ends_in_a_device_gives_it_its_half() {
    let mut guest = Guest::long();
    guest.processor.cpu.xmm[3] = B;
    guest.processor.cpu.gpr[7] = crate::tests::MEMORY - 8;
    let stop = guest.run(|a| {
        a.movdqu(xmmword_ptr(rdi), xmm3).unwrap();
        a.ud2().unwrap();
    });
    let Stop::Mmio(write) = stop else { panic!("{stop:?}") };
    assert_eq!((write.at, write.bytes), (crate::tests::MEMORY, 8));
    assert_eq!(write.value, u64::try_from(B >> 64).ok());
    guest.processor.answer(0);
    assert_eq!(guest.processor.run(&0.into()), Stop::TripleFault);
    assert_eq!(guest.memory.read(crate::tests::MEMORY - 8, 8), B.to_le_bytes()[..8]);
}

#[test]
fn a_device_gets_sixteen_bytes_in_two_halves() {
    let mut guest = Guest::long();
    let device = 0x3000_0000u64;
    guest.processor.cpu.xmm[3] = B;
    let mut stop = guest.run(|a| {
        a.mov(rbx, device).unwrap();
        a.movaps(xmmword_ptr(rbx), xmm3).unwrap();
        a.movups(xmm4, xmmword_ptr(rbx)).unwrap();
        a.ud2().unwrap();
    });
    let mut seen = Vec::new();
    while let Stop::Mmio(access) = stop {
        seen.push((access.at - device, access.bytes, access.value));
        guest.processor.answer(0x1234 + access.at - device);
        stop = guest.processor.run(&0.into());
    }
    let (low, high) = (0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918);
    assert_eq!(seen, [(0, 8, Some(low)), (8, 8, Some(high)), (0, 8, None), (8, 8, None)]);
    assert_eq!(guest.processor.cpu.xmm[4], 0x123c << 64 | 0x1234);
}

#[test]
fn a_masked_store_writes_the_chosen_bytes_only() {
    let mut guest = Guest::long();
    let at = DATA + 0xff8;
    guest.memory.write(at, &[0xee; 16]);
    guest.processor.cpu.xmm[1] = A;
    guest.processor.cpu.xmm[2] = 0x80ff_0000_0000_0000_9000_0000_0000_0080;
    guest.processor.cpu.gpr[7] = at;
    assert_eq!(raised(&mut guest, |a| a.maskmovdqu(xmm1, xmm2)), None);
    let mut expected = [0xee; 16];
    for index in [0, 7, 14, 15] {
        expected[index] = A.to_le_bytes()[index];
    }
    assert_eq!(guest.memory.read(at, 16), expected);
}

#[test]
fn operands_of_sixteen_bytes_must_be_aligned_unless_the_name_says_otherwise() {
    let mut guest = Guest::long();
    guest.processor.cpu.gpr[7] = DATA + 8;
    guest.processor.cpu.gpr[4] = DATA + 8;
    let at = || xmmword_ptr(rdi);
    assert_eq!(raised(&mut guest, |a| a.movaps(xmm1, at())), Some(13));
    assert_eq!(raised(&mut guest, |a| a.movdqa(xmmword_ptr(rsp), xmm1)), Some(13));
    assert_eq!(raised(&mut guest, |a| a.movntps(at(), xmm1)), Some(13));
    assert_eq!(raised(&mut guest, |a| a.paddb(xmm1, at())), Some(13));
    assert_eq!(raised(&mut guest, |a| a.pshufd(xmm1, at(), 0)), Some(13));
    assert_eq!(raised(&mut guest, |a| a.addps(xmm1, at())), Some(13));
    assert_eq!(raised(&mut guest, |a| a.movups(xmm1, at())), None);
    assert_eq!(raised(&mut guest, |a| a.movdqu(at(), xmm1)), None);
    assert_eq!(raised(&mut guest, |a| a.addsd(xmm1, qword_ptr(rdi - 1))), None);
    // The offset is aligned, the linear address is not.
    guest.processor.cpu.gpr[usize::from(crate::cpu::slot::FS)] = 4;
    guest.processor.cpu.gpr[7] = DATA;
    assert_eq!(raised(&mut guest, |a| a.movaps(xmm1, xmmword_ptr(rdi).fs())), Some(13));
    assert_eq!(raised(&mut guest, |a| a.movaps(xmm1, xmmword_ptr(rdi + 12).fs())), None);
}

#[test]
fn a_switched_task_or_a_system_without_sse_is_told_first() {
    let mut guest = Guest::long();
    // Misaligned on purpose: permission comes first.
    guest.processor.cpu.gpr[7] = DATA + 8;
    let set = |guest: &mut Guest, control0: u64, control4: u64| {
        let cpu = &mut guest.processor.cpu;
        cpu.cr0 = cpu.cr0 & !(cr0::TS | cr0::EM) | control0;
        cpu.cr4 = cpu.cr4 & !cr4::OSFXSR | control4;
        cpu.mode_changed();
    };
    for (control0, control4, vector) in [
        (cr0::TS, cr4::OSFXSR, 7),
        (cr0::EM, cr4::OSFXSR, 6),
        (cr0::EM | cr0::TS, cr4::OSFXSR, 6),
        (0, 0, 6),
        (cr0::TS, 0, 6),
    ] {
        set(&mut guest, control0, control4);
        assert_eq!(raised(&mut guest, |a| a.movaps(xmm1, xmmword_ptr(rdi))), Some(vector));
        assert_eq!(raised(&mut guest, |a| a.addsd(xmm1, xmm2)), Some(vector));
        assert_eq!(raised(&mut guest, |a| a.pshufd(xmm1, xmm2, 1)), Some(vector));
        assert_eq!(raised(&mut guest, |a| a.ldmxcsr(dword_ptr(rdi))), Some(vector));
        assert_eq!(raised(&mut guest, |a| a.movnti(dword_ptr(rdi), eax)), None);
    }
    guest.processor.cpu.cr0 &= !cr0::TS;
    guest.processor.cpu.cr4 |= cr4::OSFXSR;
    guest.processor.cpu.sse_changed();
    assert_eq!(raised(&mut guest, |a| a.movups(xmm1, xmmword_ptr(rdi))), None);
}

#[test]
fn reserved_bits_of_mxcsr_are_refused() {
    let mut guest = Guest::long();
    guest.processor.cpu.gpr[7] = DATA;
    guest.memory.write64(DATA, 0x1_1f80);
    assert_eq!(raised(&mut guest, |a| a.ldmxcsr(dword_ptr(rdi))), Some(13));
    assert_eq!(guest.processor.cpu.mxcsr, 0x1f80);
    guest.memory.write64(DATA, 0xffff);
    assert_eq!(raised(&mut guest, |a| a.ldmxcsr(dword_ptr(rdi))), None);
    assert_eq!(raised(&mut guest, |a| a.stmxcsr(dword_ptr(rdi + 8))), None);
    assert_eq!(guest.memory.read64(DATA + 8), 0xffff);
}
