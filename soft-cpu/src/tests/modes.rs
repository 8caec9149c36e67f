//! Real and protected mode, and the way from one to the other to long mode.

use iced_x86::code_asm::*;

use super::kernel::{GDT, TSS, flat, sel, system_descriptor};
use super::{CODE, DATA, Guest};
use crate::Stop;
use crate::cpu::{CodeSize, cr0, cr4, efer, reg, seg};
use crate::flags;
use crate::segment::{Segment, TableRegister};

/// Code of so many bits, to be placed at `at`.
fn code(bits: u32, at: u64, assemble: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    assemble(&mut assembler);
    assembler.assemble(at).unwrap()
}

/// Where a start-up message with page 0x10 starts: [`CODE`].
const PAGE: u8 = 0x10;

fn after_init() -> Guest {
    let mut guest = Guest::with_kernel();
    guest.processor.init_reset();
    guest.processor.start_at(PAGE);
    guest
}

#[test]
fn a_processor_that_starts_in_real_mode_reaches_long_mode() {
    let mut guest = after_init();
    guest.memory.write(CODE + 0x800, &0x7fu16.to_le_bytes());
    guest.memory.write64(CODE + 0x802, GDT);
    let real = code(16, 0, |a| {
        a.cli().unwrap();
        a.mov(ax, cs).unwrap();
        a.mov(ds, ax).unwrap();
        // With an operand-size prefix: all four bytes of the base.
        a.db(&[0x66, 0x0f, 0x01, 0x16, 0x00, 0x08]).unwrap();
        a.mov(eax, 1).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0x66, 0xea, 0x00, 0x01, 0x01, 0x00, 0x50, 0x00]).unwrap();
    });
    guest.memory.write(CODE, &real);
    let protected = code(32, CODE + 0x100, |a| {
        a.mov(eax, u32::from(sel::DATA)).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.mov(esp, 0x9_0000).unwrap();
        a.mov(eax, u32::try_from(cr4::PAE).unwrap()).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, 0x1000).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, u32::try_from(efer::LME).unwrap()).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, u32::try_from(cr0::PG | cr0::PE).unwrap()).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xea, 0x00, 0x02, 0x01, 0x00, 0x08, 0x00]).unwrap();
    });
    guest.memory.write(CODE + 0x100, &protected);
    let long = code(64, CODE + 0x200, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.push(rax).unwrap();
        a.hlt().unwrap();
    });
    guest.memory.write(CODE + 0x200, &long);
    assert_eq!(guest.processor.run(&0.into()), Stop::Halted);
    assert_eq!(guest.processor.cpu.code_size, CodeSize::Bits64);
    assert_eq!(guest.memory.read64(0x9_0000 - 8), 0x1122_3344_5566_7788);
}

#[test]
fn real_mode_interrupts_go_through_the_vector_table_and_return() {
    let mut guest = after_init();
    guest.processor.cpu.set_rflags(flags::IF | flags::CF);
    guest.memory.write(4 * 0x21, &[0x00, 0x02, 0x00, 0x10]); // 0x1000:0x0200
    guest.memory.write(
        CODE,
        &code(16, 0, |a| {
            a.mov(sp, 0x8000).unwrap();
            a.mov(ax, 0x2000).unwrap();
            a.mov(ss, ax).unwrap();
            a.int(0x21).unwrap();
            a.pushf().unwrap();
            a.hlt().unwrap();
        }),
    );
    guest.memory.write(
        CODE + 0x200,
        &code(16, 0, |a| {
            a.pushf().unwrap();
            a.pop(bx).unwrap();
            a.iret().unwrap();
        }),
    );
    assert_eq!(guest.processor.run(&0.into()), Stop::Halted);
    assert_eq!(guest.reg(reg::RBX) & 0xffff, flags::CF | 2);
    assert_eq!(guest.memory.read(0x2_7ffe, 2), [0x03, 0x02]);
    assert_eq!(guest.reg(reg::RSP), 0x7ffe);
}

#[test]
fn the_same_instruction_pointer_in_another_segment_is_other_code() {
    let mut guest = after_init();
    // 0x1000:0 jumps to 0x2000:0, which halts.
    guest.memory.write(CODE, &[0xea, 0x00, 0x00, 0x00, 0x20]);
    guest.memory.write(0x2_0000, &[0xb8, 0x34, 0x12, 0xf4]);
    assert_eq!(guest.processor.run(&0.into()), Stop::Halted);
    assert_eq!(guest.reg(reg::RAX), 0x1234);
    assert_eq!(guest.processor.cpu.segments[seg::CS].base, 0x2_0000);
}

/// 32-bit protected mode without paging, with a 32-bit task state and gates.
fn protected() -> Guest {
    let mut guest = Guest::with_kernel();
    let memory = guest.memory.clone();
    memory.write64(GDT + u64::from(sel::TASK), system_descriptor(TSS, 0x1067, 0x8b));
    memory.write64(TSS + 4, 0xa_0000 | u64::from(sel::DATA) << 32);
    for vector in 0..256u64 {
        let target = super::kernel::HANDLERS + 16 * vector;
        let gate = target & 0xffff
            | u64::from(sel::CODE32) << 16
            | 0x8e << 40
            | (target >> 16 & 0xffff) << 48;
        memory.write64(super::kernel::IDT + 8 * vector, gate);
        // mov ebp, vector; hlt
        let mut handler = vec![0xbd];
        handler.extend(u32::try_from(vector).unwrap().to_le_bytes());
        handler.push(0xf4);
        memory.write(target, &handler);
    }
    let cpu = &mut guest.processor.cpu;
    (cpu.cr0, cpu.cr4, cpu.efer) = (cr0::PE | cr0::ET, 0, 0);
    let data = Segment { selector: sel::DATA, base: 0, limit: u32::MAX, attributes: 0xc093 };
    for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        cpu.set_segment(which, data);
    }
    cpu.set_segment(seg::CS, Segment { selector: sel::CODE32, attributes: 0xc09b, ..data });
    cpu.idtr = TableRegister { base: super::kernel::IDT, limit: 0x7ff };
    cpu.mode_changed();
    guest
}

fn words(guest: &Guest, at: u64, count: usize) -> Vec<u32> {
    guest.memory.read(at, 4 * count).as_chunks().0.iter().map(|w| u32::from_le_bytes(*w)).collect()
}

#[test]
fn a_32_bit_user_is_interrupted_onto_the_kernels_stack_and_gets_everything_back() {
    let mut guest = protected();
    // Vector 0x80 is for users and returns.
    let target = super::kernel::HANDLERS + 16 * 0x80;
    let gate = target & 0xffff | u64::from(sel::CODE32) << 16 | 0xee << 40;
    guest.memory.write64(super::kernel::IDT + 8 * 0x80, gate);
    guest.memory.write(target, &[0x8c, 0xd3, 0x89, 0xe1, 0xcf]); // mov ebx, ss; mov ecx, esp; iretd
    let kernel = code(32, CODE, |a| {
        a.push(u32::from(sel::USER_DATA).cast_signed()).unwrap();
        a.push(0x7_0000).unwrap();
        a.push(0x202).unwrap();
        a.push(u32::from(sel::USER_CODE32).cast_signed()).unwrap();
        a.push(i32::try_from(DATA).unwrap()).unwrap();
        a.iretd().unwrap();
    });
    guest.memory.write(
        DATA,
        &code(32, DATA, |a| {
            a.push(5).unwrap();
            a.int(0x80).unwrap();
            a.mov(edi, cs).unwrap();
            a.cli().unwrap();
        }),
    );
    assert_eq!(guest.run_bytes(&kernel), Stop::Halted);
    // `cli` of a user ended in #GP(0), with the frame on the kernel's stack.
    assert_eq!(guest.reg(reg::RBP), 13);
    let top = guest.reg(reg::RSP);
    assert_eq!(top, 0xa_0000 - 24);
    let user_code = u32::from(sel::USER_CODE32);
    let at = u32::try_from(DATA + 6).unwrap();
    let expected = [0, at, user_code, 0x10202, 0x7_0000 - 4, u32::from(sel::USER_DATA)];
    assert_eq!(words(&guest, top, 6), expected);
    // The handler of 0x80 ran on the kernel's stack, below five words.
    assert_eq!(guest.reg(reg::RBX), u64::from(sel::DATA));
    assert_eq!(guest.reg(reg::RCX), 0xa_0000 - 20);
    assert_eq!(guest.reg(reg::RDI), u64::from(user_code));
    // DS was the kernel's, which users may not use: it was lost.
    assert_eq!(guest.processor.cpu.segments[seg::DS].selector, 0);
}

#[test]
fn a_call_gate_copies_its_parameters_to_the_inner_stack() {
    let mut guest = protected();
    // To DATA, two parameters.
    let gate =
        DATA & 0xffff | u64::from(sel::CODE32) << 16 | 2 << 32 | 0xec << 40 | (DATA >> 16) << 48;
    guest.memory.write64(GDT + u64::from(sel::GATE), gate);
    guest.memory.write(DATA, &code(32, DATA, |a| a.hlt().unwrap()));
    let cpu = &mut guest.processor.cpu;
    let user = Segment { selector: sel::USER_DATA, base: 0, limit: u32::MAX, attributes: 0xc0f3 };
    cpu.set_segment(seg::SS, user);
    cpu.set_segment(seg::CS, Segment { selector: sel::USER_CODE32, attributes: 0xc0fb, ..user });
    cpu.set_cpl(3);
    cpu.gpr[reg::RSP] = 0x7_0000;
    let stop = guest.run_bytes(&code(32, CODE, |a| {
        a.push(0x111).unwrap();
        a.push(0x222).unwrap();
        a.db(&[0x9a, 0, 0, 0, 0, 0x73, 0]).unwrap();
    }));
    assert_eq!(stop, Stop::Halted);
    assert_eq!(guest.processor.cpu.cpl, 0);
    let back = u32::try_from(guest.processor.cpu.rip).unwrap();
    assert_eq!(u64::from(back), DATA + 1);
    let top = guest.reg(reg::RSP);
    let frame = words(&guest, top, 6);
    let (code, stack) = (u32::from(sel::USER_CODE32), u32::from(sel::USER_DATA));
    assert_eq!(frame[1..], [code, 0x222, 0x111, 0x7_0000 - 8, stack]);
}

#[test]
fn a_task_switch_is_refused() {
    let mut guest = protected();
    guest.memory.write64(GDT + u64::from(sel::TASK), system_descriptor(TSS, 0x67, 0x89));
    let stop = guest.run_bytes(&[0xea, 0, 0, 0, 0, 0x30, 0]);
    assert_eq!(stop, Stop::Halted);
    assert_eq!(guest.reg(reg::RBP), 13);
    assert_eq!(words(&guest, guest.reg(reg::RSP), 1), [u32::from(sel::TASK)]);
}

#[test]
fn sixteen_bit_code_in_protected_mode_pushes_words_and_keeps_to_its_stack() {
    let mut guest = protected();
    guest.memory.write64(GDT + u64::from(sel::CODE16), flat(0x009b));
    guest.memory.write64(GDT + u64::from(sel::DATA16), 0x0000_9302_0000_ffff);
    let cpu = &mut guest.processor.cpu;
    cpu.gpr[reg::RSP] = 0xdead_0002;
    let stop = guest.run_bytes(&code(32, CODE, |a| {
        a.mov(eax, u32::from(sel::DATA16)).unwrap();
        a.mov(ss, eax).unwrap();
        a.push(0x1234_5678).unwrap();
        a.hlt().unwrap();
    }));
    assert_eq!(stop, Stop::Halted);
    assert_eq!(guest.reg(reg::RSP), 0xdead_fffe);
    assert_eq!(guest.memory.read(0x2_fffe, 2), [0x78, 0x56]);
}

#[test]
fn a_64_bit_kernel_runs_32_bit_users() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(
        DATA,
        &code(32, DATA, |a| {
            a.mov(eax, u32::MAX).unwrap();
            a.inc(eax).unwrap();
            a.push(7).unwrap();
            a.pop(ebx).unwrap();
            a.ud2().unwrap();
        }),
    );
    let stop = guest.run(|a| {
        a.push(i32::from(sel::USER_DATA)).unwrap();
        a.push(0x7_0000).unwrap();
        a.push(0x202).unwrap();
        a.push(i32::from(sel::USER_CODE32)).unwrap();
        a.push(i32::try_from(DATA).unwrap()).unwrap();
        a.iretq().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[1]), (6, u64::from(sel::USER_CODE32)));
    assert_eq!((guest.reg(reg::RBX), frame[3]), (7, 0x7_0000));
}
