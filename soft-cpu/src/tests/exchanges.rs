//! Exchanges, conversions, hints.

use iced_x86::code_asm::*;

use super::{CODE, DATA, Guest};
use crate::Stop;
use crate::cpu::reg;
use crate::flags::{AF, CF, DF, OF, PF, SF, ZF};

#[test]
fn a_comparison_that_fails_touches_nothing_but_the_accumulator() {
    let mut guest = Guest::long();
    guest.memory.write64(DATA, 0x1111_2222_3333_4444);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(rcx, 0x9999_8888_7777_6666u64).unwrap();
        a.mov(rax, 0xffff_ffff_3333_4444u64).unwrap();
        // Equal in 32 bits: stored, and RAX keeps its upper half.
        a.lock().cmpxchg(dword_ptr(rdi), ecx).unwrap();
        a.setz(bl).unwrap();
        a.mov(rsi, rax).unwrap();
        a.mov(rbp, 0xeeee_eeee_0000_0001u64).unwrap();
        // Different: EBP keeps its upper half.
        a.cmpxchg(ebp, ecx).unwrap();
        a.setz(bh).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.memory.read64(DATA), 0x1111_2222_7777_6666);
    assert_eq!(guest.reg(reg::RSI), 0xffff_ffff_3333_4444);
    assert_eq!(guest.reg(reg::RBP), 0xeeee_eeee_0000_0001);
    assert_eq!((guest.reg(reg::RAX), guest.reg(reg::RBX)), (1, 1));
}

#[test]
fn pairs_are_exchanged_whole_and_must_be_aligned_when_they_are_wide() {
    let mut guest = Guest::long();
    let cpu = &mut guest.processor.cpu;
    cpu.set_rflags(CF | SF | OF | PF | AF);
    guest.memory.write64(DATA, 1);
    guest.memory.write64(DATA + 8, 2);
    // Across a page, too.
    guest.memory.write64(DATA + 0xffc, 0x6_0000_0005);
    let stop = guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(eax, 1).unwrap();
        a.mov(edx, 2).unwrap();
        a.mov(ebx, 3).unwrap();
        a.mov(ecx, 4).unwrap();
        a.lock().cmpxchg16b(xmmword_ptr(rdi)).unwrap();
        a.pushfq().unwrap();
        a.cmpxchg16b(xmmword_ptr(rdi)).unwrap();
        a.pushfq().unwrap();
        a.mov(r8, rax).unwrap();
        a.mov(r9, rdx).unwrap();
        a.mov(eax, 5).unwrap();
        a.mov(edx, 6).unwrap();
        a.lock().cmpxchg8b(qword_ptr(rdi + 0xffc)).unwrap();
        a.pop(r10).unwrap();
        a.pop(r11).unwrap();
        a.cmpxchg16b(xmmword_ptr(rdi + 8)).unwrap();
    });
    assert_eq!(stop, Stop::TripleFault);
    assert_eq!((guest.memory.read64(DATA), guest.memory.read64(DATA + 8)), (3, 4));
    assert_eq!((guest.reg(8), guest.reg(9)), (3, 4));
    assert_eq!(guest.memory.read64(DATA + 0xffc), 0x4_0000_0003);
    let others = CF | SF | OF | PF | AF;
    assert_eq!(guest.reg(11) & (others | ZF), others | ZF);
    assert_eq!(guest.reg(10) & (others | ZF), others);
}

#[test]
fn an_exchange_with_a_sum_leaves_the_sum_when_both_are_one_register() {
    let mut guest = Guest::long();
    guest.memory.write64(DATA, 0xff);
    guest.run(|a| {
        a.mov(rdi, DATA).unwrap();
        a.mov(eax, 21).unwrap();
        a.xadd(rax, rax).unwrap();
        a.mov(ebx, 2).unwrap();
        a.lock().xadd(byte_ptr(rdi), bl).unwrap();
        a.mov(ecx, 5).unwrap();
        a.xadd(qword_ptr(rdi), rcx).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((guest.reg(reg::RAX), guest.reg(reg::RBX), guest.reg(reg::RCX)), (42, 0xff, 1));
    assert_eq!(guest.memory.read64(DATA), 6);
}

#[test]
fn conversions_spread_the_sign() {
    let mut guest = Guest::long();
    guest.memory.write(DATA + 0x85, &[0x77]);
    guest.run(|a| {
        a.mov(rax, 0x1234_5678_9abc_de80u64).unwrap();
        a.mov(rdx, -1i64).unwrap();
        a.cbw().unwrap();
        a.mov(r8, rax).unwrap();
        a.cwde().unwrap();
        a.mov(r9, rax).unwrap();
        a.cdqe().unwrap();
        a.mov(r10, rax).unwrap();
        a.mov(eax, 1).unwrap();
        a.cwd().unwrap();
        a.mov(r11, rdx).unwrap();
        a.cdq().unwrap();
        a.mov(r12, rdx).unwrap();
        a.mov(rax, -9i64).unwrap();
        a.cqo().unwrap();
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, 0xff85).unwrap();
        a.xlatb().unwrap();
        a.ud2().unwrap();
    });
    let registers: Vec<u64> = (8..13).map(|register| guest.reg(register)).collect();
    assert_eq!(
        registers,
        [0x1234_5678_9abc_ff80, 0xffff_ff80, u64::MAX << 7, 0xffff_ffff_ffff_0000, 0]
    );
    assert_eq!((guest.reg(reg::RDX), guest.reg(reg::RAX)), (u64::MAX, 0xff77));
}

#[test]
fn flags_go_through_ah_and_single_flags_change_alone() {
    let mut guest = Guest::long();
    guest.processor.cpu.set_rflags(OF);
    guest.run(|a| {
        a.mov(eax, 0xff00).unwrap();
        a.sahf().unwrap();
        a.pushfq().unwrap();
        a.pop(rbx).unwrap();
        a.cmc().unwrap();
        a.lahf().unwrap();
        a.stc().unwrap();
        a.cmc().unwrap();
        a.std().unwrap();
        a.pushfq().unwrap();
        a.pop(rcx).unwrap();
        a.clc().unwrap();
        a.cld().unwrap();
        a.ud2().unwrap();
    });
    let all = CF | PF | AF | ZF | SF | OF;
    assert_eq!(guest.reg(reg::RBX) & (all | DF), all);
    assert_eq!(guest.reg(reg::RAX), 0xd600);
    assert_eq!(guest.reg(reg::RCX) & (all | DF), all & !CF | DF);
    assert_eq!(guest.processor.cpu.rflags() & (all | DF), all & !CF);
}

#[test]
fn every_hint_does_nothing_whatever_its_operand() {
    let mut guest = Guest::long();
    // nop [far away], endbr64, rdsspq rax, prefetchw, prefetcht0, reserved ones, pause, fences
    let mut code = vec![0xb8, 0x77, 0, 0, 0];
    let hints: [&[u8]; 11] = [
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0x70],
        &[0xf3, 0x0f, 0x1e, 0xfa],
        &[0xf3, 0x48, 0x0f, 0x1e, 0xc8],
        &[0x0f, 0x0d, 0x08],
        &[0x0f, 0x18, 0x08],
        &[0x0f, 0x1a, 0xc1],
        &[0x66, 0x0f, 0x1b, 0xc1],
        &[0x0f, 0x1c, 0x00],
        &[0xf3, 0x90],
        &[0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8, 0x0f, 0xae, 0xf8],
        &[0x0f, 0xae, 0x3c, 0x25, 0, 0, 0x20, 0],
    ];
    for hint in hints {
        code.extend(hint);
    }
    let end = CODE + code.len() as u64;
    code.extend([0x0f, 0x0b]);
    assert_eq!(guest.run_bytes(&code), Stop::TripleFault);
    assert_eq!(guest.processor.cpu.rip, end);
    assert_eq!(guest.reg(reg::RAX), 0x77);
}

#[test]
fn frames_enclose_others() {
    let mut guest = Guest::long();
    guest.memory.write64(DATA - 8, 0xaaaa);
    guest.run(|a| {
        a.mov(rbp, DATA).unwrap();
        a.enter(0x20, 2).unwrap();
        a.mov(rax, rsp).unwrap();
        a.leave().unwrap();
        a.ud2().unwrap();
    });
    let frame = super::STACK - 8;
    assert_eq!(guest.memory.read64(frame), DATA);
    assert_eq!(guest.memory.read64(frame - 8), 0xaaaa);
    assert_eq!(guest.memory.read64(frame - 16), frame);
    assert_eq!(guest.reg(reg::RAX), frame - 16 - 0x20);
    assert_eq!((guest.reg(reg::RBP), guest.reg(reg::RSP)), (DATA, super::STACK));
}

#[test]
fn what_is_no_address_is_a_stack_fault_by_its_base_alone() {
    // bts [base], r12 with a bit that is far outside: rcx; rcx with ss; rbp; rbp with ds.
    let cases: [(&[u8], u32); 4] = [
        (&[0x4c, 0x0f, 0xab, 0x21], 13),
        (&[0x36, 0x4c, 0x0f, 0xab, 0x21], 13),
        (&[0x4c, 0x0f, 0xab, 0x65, 0], 12),
        (&[0x3e, 0x4c, 0x0f, 0xab, 0x65, 0], 12),
    ];
    for (bytes, vector) in cases {
        let mut guest = Guest::long();
        let cpu = &mut guest.processor.cpu;
        cpu.gpr[12] = 1 << 62;
        // A gate for the one that is expected, and none for the other.
        cpu.idtr.base = DATA;
        cpu.idtr.limit = 16 * 14 - 1;
        let mut gate = [0u8; 16];
        gate[2] = 8;
        gate[5] = 0x8e;
        let handler = CODE + 0x100 * u64::from(vector);
        gate[..2].copy_from_slice(&handler.to_le_bytes()[..2]);
        gate[6..8].copy_from_slice(&handler.to_le_bytes()[2..4]);
        guest.memory.write(DATA + 16 * u64::from(vector), &gate);
        // A code segment for it.
        guest.processor.cpu.gdtr.base = DATA + 0x1000;
        guest.memory.write64(DATA + 0x1008, 0x00af_9b00_0000_ffff);
        // mov al, 1; hlt
        guest.memory.write(handler, &[0xb0, 1, 0xf4]);
        assert_eq!(guest.run_bytes(bytes), Stop::Halted, "{bytes:x?}");
        assert_eq!(guest.reg(reg::RAX), 1, "{bytes:x?}");
    }
}
