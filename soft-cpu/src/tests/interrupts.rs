//! Interrupts, traps, faults within deliveries.

use iced_x86::code_asm::*;

use super::kernel::{GDT, HANDLERS, IDT, IST, RSP0, TSS};
use super::{CODE, DATA, Guest, STACK};
use crate::Stop;
use crate::cpu::reg;
use crate::flags;

const PAGE: u64 = 4096;

#[test]
fn an_interrupt_whose_delivery_meets_a_nested_fault_is_delivered_exactly_once() {
    for absent in [GDT, IDT, TSS, RSP0 - PAGE, HANDLERS] {
        let mut guest = Guest::with_kernel();
        guest.become_user();
        guest.processor.cpu.set_rflags(flags::IF);
        guest.world.lock().interrupts = vec![0x40];
        guest.world.lock().absent.insert(absent);
        let stop = guest.run(|a| {
            a.nop().unwrap();
            a.ud2().unwrap();
        });
        let Stop::Nested(fault) = stop else { panic!("{absent:#x}: {stop:?}") };
        assert_eq!(fault.gpa / PAGE * PAGE, absent);
        // Again: nothing has changed, and the interrupt is not acknowledged again.
        assert!(matches!(guest.go_on(), Stop::Nested(_)));
        guest.world.lock().absent.clear();
        let stop = guest.go_on();
        let (vector, frame) = guest.handled(stop);
        assert_eq!((vector, frame[0]), (0x40, CODE), "{absent:#x}");
        assert_eq!(guest.world.lock().acknowledged, [0x40]);
        assert!(!guest.processor.cpu.has(flags::IF));
        assert_eq!(guest.reg(reg::RSP), RSP0 - 40);
    }
}

#[test]
fn an_interrupt_waits_until_if_is_set_and_one_more_instruction_is_done() {
    let mut guest = Guest::with_kernel();
    guest.world.lock().interrupts = vec![0x40];
    let stop = guest.run(|a| {
        a.nop().unwrap();
        a.sti().unwrap();
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (6, CODE + 2));
    assert_eq!(frame[2] & flags::IF, flags::IF);
    assert_eq!(guest.world.lock().acknowledged, []);
}

#[test]
fn a_halted_processor_sleeps_until_an_interrupt() {
    let mut guest = Guest::with_kernel();
    let program = |a: &mut CodeAssembler| {
        a.sti().unwrap();
        a.hlt().unwrap();
        a.ud2().unwrap();
    };
    assert_eq!(guest.run(program), Stop::Halted);
    assert_eq!(guest.processor.cpu.rip, CODE + 2);
    assert_eq!(guest.go_on(), Stop::Halted);
    assert_eq!(guest.processor.cpu.rip, CODE + 2);
    guest.world.lock().interrupts = vec![0x41];
    let stop = guest.go_on();
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (0x41, CODE + 2));
}

#[test]
fn a_halted_processor_with_interrupts_off_wakes_for_none_but_the_nonmaskable() {
    let mut guest = Guest::with_kernel();
    assert_eq!(guest.run(|a| a.hlt().unwrap()), Stop::Halted);
    guest.world.lock().interrupts = vec![0x41];
    assert_eq!(guest.go_on(), Stop::Halted);
    assert_eq!(guest.processor.cpu.rip, CODE + 1);
    guest.processor.raise_nmi();
    let stop = guest.go_on();
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (2, CODE + 1));
}

#[test]
fn a_second_nonmaskable_interrupt_waits_for_iret() {
    let mut guest = Guest::with_kernel();
    // inc r14; test r14b, 1; jz out; iretq. The second time: out: hlt.
    let mut handler = CodeAssembler::new(64).unwrap();
    let mut out = handler.create_label();
    handler.inc(r14).unwrap();
    handler.cmp(r14, 2).unwrap();
    handler.je(out).unwrap();
    handler.mov(r13, qword_ptr(DATA)).unwrap();
    handler.iretq().unwrap();
    handler.set_label(&mut out).unwrap();
    handler.hlt().unwrap();
    guest.memory.write(DATA + 0x100, &handler.assemble(DATA + 0x100).unwrap());
    let target = DATA + 0x100;
    let gate = target & 0xffff | 8 << 16 | 0x8e << 40 | (target >> 16) << 48;
    guest.memory.write64(IDT + 32, gate);
    // The handler's page is absent: the processor stops in it, and gets the second one there.
    guest.processor.raise_nmi();
    guest.world.lock().absent.insert(DATA);
    let stop = guest.run(|a| a.ud2().unwrap());
    assert!(matches!(stop, Stop::Nested(_)), "{stop:?}");
    guest.processor.raise_nmi();
    guest.world.lock().absent.clear();
    assert_eq!(guest.go_on(), Stop::Halted);
    assert_eq!(guest.reg(14), 2);
    // One frame deep: the second was taken after the first's `iret`, not in it.
    assert_eq!(guest.reg(reg::RSP), STACK - 40);
}

#[test]
fn a_step_traps_behind_each_instruction_and_says_so_in_dr6() {
    let mut guest = Guest::with_kernel();
    let stop = guest.run(|a| {
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    // push imm32, popfq, nop: the trap of popfq's own boundary is not taken.
    assert_eq!((vector, frame[0]), (1, CODE + 7));
    assert_eq!(frame[2] & flags::TF, flags::TF);
    assert_eq!(guest.processor.cpu.dr[6] & 1 << 14, 1 << 14);
    assert!(!guest.processor.cpu.has(flags::TF));
}

#[test]
fn a_step_over_something_that_is_not_done_traps_nowhere() {
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.set_rflags(flags::TF);
    let stop = guest.run(|a| a.ud2().unwrap());
    assert_eq!(guest.handled(stop).0, 6);
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.set_rflags(flags::TF);
    let stop = guest.run(|a| a.int(0x50).unwrap());
    assert_eq!(guest.handled(stop).0, 0x50);
}

#[test]
fn a_step_over_a_port_traps_after_the_answer() {
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.set_rflags(flags::TF);
    let stop = guest.run(|a| a.in_(al, 0x60).unwrap());
    assert!(matches!(stop, Stop::PortRead(_)), "{stop:?}");
    guest.processor.answer(9);
    let stop = guest.go_on();
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], guest.reg(reg::RAX) & 0xff), (1, CODE + 2, 9));
}

#[test]
fn a_step_whose_trap_meets_a_nested_fault_traps_exactly_once() {
    let mut guest = Guest::with_kernel();
    guest.set_gate(1, 0x8e, 1);
    guest.processor.cpu.set_rflags(flags::TF);
    guest.world.lock().absent.insert(IST);
    let stop = guest.run(|a| {
        a.inc(rax).unwrap();
        a.ud2().unwrap();
    });
    assert!(matches!(stop, Stop::Nested(_)), "{stop:?}");
    guest.world.lock().absent.clear();
    let stop = guest.go_on();
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], guest.reg(reg::RAX)), (1, CODE + 3, 1));
}

#[test]
fn the_load_of_ss_keeps_interrupts_away_from_the_next_instruction() {
    let mut guest = Guest::with_kernel();
    guest.world.lock().interrupts = vec![0x40];
    // What keeps it away from `mov ss` is `sti`, and from `ud2` is `mov ss`.
    let stop = guest.run(|a| {
        a.mov(eax, 0x10).unwrap();
        a.sti().unwrap();
        a.mov(ss, eax).unwrap();
        a.ud2().unwrap();
    });
    assert_eq!(guest.handled(stop).0, 6);
}

#[test]
fn a_fault_in_the_delivery_of_a_fault_is_a_double_fault_and_another_one_ends_everything() {
    let mut guest = Guest::with_kernel();
    guest.set_gate(13, 0x0e, 0); // Not present.
    let stop = guest.run_user(|a| a.cli().unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], frame[1]), (8, 0, CODE));
    let mut guest = Guest::with_kernel();
    guest.set_gate(13, 0x0e, 0);
    guest.set_gate(8, 0x0e, 0);
    assert_eq!(guest.run_user(|a| a.cli().unwrap()), Stop::TripleFault);
    // A benign fault does not combine: #UD whose gate is absent is #NP, about that gate.
    let mut guest = Guest::with_kernel();
    guest.set_gate(6, 0x0e, 0);
    guest.fails_with(11, Some(6 << 3 | 2 | 1), |a| a.ud2().unwrap());
}

#[test]
fn a_stack_that_runs_out_is_a_double_fault_on_its_own_stack_and_cr2_says_where() {
    let mut guest = Guest::with_kernel();
    guest.set_gate(8, 0x8e, 1);
    // The 2 MiB page at 6 MiB is absent.
    guest.memory.write64(0x3000 + 8 * 3, 0);
    guest.processor.cpu.gpr[reg::RSP] = 0x70_0000;
    let stop = guest.run(|a| a.push(rax).unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], frame[1], frame[4]), (8, 0, CODE, 0x70_0000));
    assert_eq!(guest.processor.cpu.cr2, 0x70_0000 - 8);
    assert_eq!(guest.reg(reg::RSP), IST + 0x1000 - 48);
}

#[test]
fn a_stack_where_a_device_is_ends_the_guest_with_a_reason() {
    let mut guest = Guest::with_kernel();
    guest.processor.cpu.gpr[reg::RSP] = 0x3000_0000;
    let stop = guest.run(|a| a.ud2().unwrap());
    let Stop::NoMemory { gpa, rip, .. } = stop else { panic!("{stop:?}") };
    assert_eq!((gpa, rip), (0x3000_0000 - 8, CODE));
}

#[test]
fn software_interrupts_ask_for_the_gates_privilege_and_return_behind_themselves() {
    let mut guest = Guest::with_kernel();
    guest.set_gate(0x80, 0xef, 0);
    guest.processor.cpu.set_rflags(flags::IF);
    let stop = guest.run_user(|a| a.int(0x80).unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (0x80, CODE + 2));
    // A trap gate leaves interrupts on.
    assert!(guest.processor.cpu.has(flags::IF));
    guest = Guest::with_kernel();
    guest.become_user();
    guest.fails_with(13, Some(0x81 << 3 | 2), |a| a.int(0x81).unwrap());
    // `int1` is the processor's own: no privilege is asked for.
    let mut guest = Guest::with_kernel();
    let stop = guest.run_user(|a| a.int1().unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (1, CODE + 1));
    assert_eq!(guest.processor.cpu.dr[6] & 1 << 14, 0);
}
