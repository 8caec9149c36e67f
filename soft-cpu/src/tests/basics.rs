//! Flow, memory and exceptions, in the small.

use iced_x86::code_asm::*;

use super::{CODE, DATA, Guest, STACK};
use crate::Stop;
use crate::cpu::reg;

#[test]
fn a_loop_counts() {
    let mut guest = Guest::long();
    let stop = guest.run(|a| {
        let mut top = a.create_label();
        a.mov(rcx, 1000u64).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(rcx).unwrap();
        a.jnz(top).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(stop, Stop::TripleFault);
    assert_eq!(guest.reg(reg::RAX), 500_500);
}

#[test]
fn calls_return_and_the_stack_is_level() {
    let mut guest = Guest::long();
    guest.run(|a| {
        let mut function = a.create_label();
        let mut end = a.create_label();
        a.mov(edi, 5).unwrap();
        a.call(function).unwrap();
        a.jmp(end).unwrap();
        a.set_label(&mut function).unwrap();
        a.push(rdi).unwrap();
        a.lea(rax, qword_ptr(rdi + rdi * 4 + 3)).unwrap();
        a.pop(rbx).unwrap();
        a.ret().unwrap();
        a.set_label(&mut end).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((guest.reg(reg::RAX), guest.reg(reg::RBX)), (28, 5));
    assert_eq!(guest.reg(reg::RSP), STACK);
}

#[test]
fn an_access_across_pages_reads_and_writes_both() {
    let mut guest = Guest::long();
    guest.run(|a| {
        a.mov(rdi, DATA + 0xffc).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.mov(rbx, qword_ptr(rdi + 1)).unwrap();
        a.add(dword_ptr(rdi + 2), 1).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.memory.read64(DATA + 0xffc), 0x1122_3344_5567_7788);
    assert_eq!(guest.reg(reg::RBX), 0x0011_2233_4455_6677);
}

#[test]
fn code_that_changes_the_next_instruction_runs_the_new_one() {
    let mut guest = Guest::long();
    // mov byte [rip+1], 7; mov eax, 1
    let bytes = [0xc6, 0x05, 1, 0, 0, 0, 7, 0xb8, 1, 0, 0, 0, 0x0f, 0x0b];
    guest.run_bytes(&bytes);
    assert_eq!(guest.reg(reg::RAX), 7);
    assert_eq!(guest.memory.read(CODE + 8, 1), [7]);
}

#[test]
fn a_stale_trace_is_never_run_again() {
    let mut guest = Guest::long();
    // Calls a function in another page twice, changing its immediate in between.
    let function = DATA;
    guest.memory.write(function, &[0xb8, 1, 0, 0, 0, 0xc3]);
    guest.run(|a| {
        a.mov(rbx, function).unwrap();
        a.call(rbx).unwrap();
        a.mov(ebp, eax).unwrap();
        a.mov(byte_ptr(rbx + 1), 9).unwrap();
        a.call(rbx).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!((guest.reg(reg::RBP), guest.reg(reg::RAX)), (1, 9));
}

#[test]
fn a_device_is_asked_and_the_instruction_done_again() {
    let mut guest = Guest::long();
    let device = 0x3000_0000u64;
    let stop = guest.run(|a| {
        a.mov(rbx, device).unwrap();
        a.mov(eax, 5).unwrap();
        a.add(dword_ptr(rbx), eax).unwrap();
        a.ud2().unwrap();
    });
    let Stop::Mmio(read) = stop else { panic!("{stop:?}") };
    assert_eq!((read.at, read.bytes, read.value), (device, 4, None));
    guest.processor.answer(37);
    let stop = guest.processor.run(&0.into());
    let Stop::Mmio(write) = stop else { panic!("{stop:?}") };
    assert_eq!((write.at, write.bytes, write.value), (device, 4, Some(42)));
    guest.processor.answer(0);
    assert_eq!(guest.processor.run(&0.into()), Stop::TripleFault);
    assert!(!guest.processor.owes_completion());
}

#[test]
fn a_misaligned_access_is_an_alignment_check_for_users_who_asked_for_it() {
    use crate::cpu::cr0;
    use crate::flags;
    for (is_on, offset, vector) in [(true, 1, 17), (true, 4, 0), (false, 1, 0)] {
        let mut guest = Guest::with_kernel();
        guest.become_user();
        if is_on {
            guest.processor.cpu.cr0 |= cr0::AM;
            guest.processor.cpu.mode_changed();
        }
        let rflags = guest.processor.cpu.rflags() | flags::AC;
        guest.processor.cpu.set_rflags(rflags);
        let stop = guest.run_user(|a| {
            a.mov(rbx, DATA + offset).unwrap();
            // The first one would fill a translation that the second must not hit.
            a.mov(al, byte_ptr(rbx)).unwrap();
            a.mov(eax, dword_ptr(rbx)).unwrap();
            a.add(dword_ptr(rbx), eax).unwrap();
            a.ud2().unwrap();
        });
        let (seen, _) = guest.handled(stop);
        assert_eq!(seen, if vector == 0 { 6 } else { vector }, "{is_on} {offset}");
    }
}
