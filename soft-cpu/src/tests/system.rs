//! Privilege, tables, control registers, system calls.

use iced_x86::code_asm::*;

use super::kernel::{GDT, IST, RSP0, TSS, USER_STACK, sel};
use super::{CODE, DATA, Guest, STACK};
use crate::Stop;
use crate::cpu::{CodeSize, cr0, cr4, efer, reg, seg};
use crate::flags;

#[test]
fn a_system_call_goes_to_the_kernel_and_back() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(DATA, &[0x48, 0x0f, 0x07]); // sysretq
    let cpu = &mut guest.processor.cpu;
    cpu.msr.star = 0x0018_0008 << 32;
    cpu.msr.lstar = DATA;
    cpu.msr.sfmask = flags::IF;
    cpu.set_rflags(flags::IF | flags::CF);
    let stop = guest.run_user(|a| {
        a.mov(eax, 7).unwrap();
        a.syscall().unwrap();
        a.mov(ebx, cs).unwrap();
        a.mov(edx, ss).unwrap();
        a.int3().unwrap();
    });
    // `int3` is not for users: its gate's privilege is 0.
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (13, 3 << 3 | 2));
    assert_eq!(guest.reg(reg::RBX), u64::from(sel::USER_CODE));
    assert_eq!(guest.reg(reg::RDX), u64::from(sel::USER_DATA));
    assert_eq!(guest.reg(reg::RCX), CODE + 7);
    assert_eq!(guest.reg(11), flags::IF | flags::CF | 2);
    assert_eq!(frame[3], flags::IF | flags::CF | flags::RF | 2);
    assert_eq!((frame[2], frame[4]), (u64::from(sel::USER_CODE), USER_STACK));
    assert_eq!(guest.reg(reg::RSP), RSP0 - 48);
}

#[test]
fn a_fault_of_a_user_switches_to_the_kernels_stack_and_pushes_where_it_was() {
    let mut guest = Guest::with_kernel();
    let stop = guest.run_user(|a| a.cli().unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!(vector, 13);
    let (code, stack) = (u64::from(sel::USER_CODE), u64::from(sel::USER_DATA));
    assert_eq!(frame, [0, CODE, code, flags::RF | 2, USER_STACK, stack]);
    assert_eq!(guest.processor.cpu.cpl, 0);
    assert_eq!(guest.processor.cpu.segments[seg::SS].selector, 0);
}

#[test]
fn a_gate_with_a_stack_of_its_own_uses_it_also_without_a_change_of_privilege() {
    let mut guest = Guest::with_kernel();
    guest.set_gate(6, 0x8e, 3);
    let stop = guest.run(|a| a.ud2().unwrap());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], frame[3]), (6, CODE, STACK));
    assert_eq!(guest.reg(reg::RSP), IST + 0x3000 - 40);
}

#[test]
fn iret_to_a_user_restores_everything() {
    let mut guest = Guest::with_kernel();
    let stop = guest.run(|a| {
        a.push(i32::from(sel::USER_DATA)).unwrap();
        a.push(0xd_0000).unwrap();
        a.push(0x246).unwrap();
        a.push(i32::from(sel::USER_CODE)).unwrap();
        a.push(0x20_0000).unwrap();
        a.iretq().unwrap();
    });
    // Zeroes: add [rax], al, which writes to the page at 0 and goes on; to the next page's end and beyond memory.
    assert!(matches!(stop, Stop::NoMemory { .. } | Stop::Halted | Stop::Mmio(_)), "{stop:?}");
    assert_eq!(guest.processor.cpu.cpl, 3);
    assert_eq!(guest.reg(reg::RSP), USER_STACK);
}

#[test]
fn ports_are_for_those_the_bitmap_allows() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(TSS + 0x68 + 0x60 / 8, &[!(1 << 4)]); // port 0x64
    let stop = guest.run_user(|a| {
        a.in_(al, 0x64).unwrap();
        a.in_(ax, 0x64).unwrap();
    });
    let Stop::PortRead(read) = stop else { panic!("{stop:?}") };
    assert_eq!((read.at, read.bytes), (0x64, 1));
    guest.processor.answer(0xa5);
    let stop = guest.processor.run(&0.into());
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0], frame[1]), (13, 0, CODE + 2));
    assert_eq!(guest.reg(reg::RAX), 0xa5);
}

#[test]
fn the_kernel_loads_its_tables() {
    let mut guest = Guest::with_kernel();
    guest.memory.write(DATA, &0x7fu16.to_le_bytes());
    guest.memory.write64(DATA + 2, GDT);
    let stop = guest.run(|a| {
        a.mov(rbx, DATA).unwrap();
        a.lgdt(qword_ptr(rbx)).unwrap();
        a.sgdt(qword_ptr(rbx + 16)).unwrap();
        a.mov(eax, u32::from(sel::TASK)).unwrap();
        a.ltr(ax).unwrap();
        a.str(ecx).unwrap();
        a.mov(eax, u32::from(sel::LOCAL)).unwrap();
        a.lldt(ax).unwrap();
        a.mov(eax, u32::from(sel::USER_DATA)).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(fs, eax).unwrap();
        a.xor(eax, eax).unwrap();
        a.mov(ss, eax).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(stop, Stop::Halted);
    assert_eq!(guest.memory.read(DATA + 16, 10), guest.memory.read(DATA, 10));
    assert_eq!(guest.reg(reg::RCX), u64::from(sel::TASK));
    let busy = guest.memory.read(GDT + u64::from(sel::TASK) + 5, 1);
    assert_eq!(busy, [0x8b]);
    assert_eq!(guest.processor.cpu.ldtr.base, 0x9000);
    assert_eq!(guest.processor.cpu.tr.base, TSS);
    // Busy now: not again.
    guest.fails_with(13, Some(u64::from(sel::TASK)), |a| {
        a.mov(eax, u32::from(sel::TASK)).unwrap();
        a.ltr(ax).unwrap();
    });
}

#[test]
fn control_registers_refuse_what_does_not_fit_together() {
    let on = cr0::PE | cr0::PG | cr0::ET | cr0::NE | cr0::WP;
    for bad in [on & !cr0::PE, on & !cr0::PG, on | cr0::NW, on | 1 << 40] {
        Guest::with_kernel().fails_with(13, Some(0), |a| {
            a.mov(rax, bad).unwrap();
            a.mov(cr0, rax).unwrap();
        });
    }
    for bad in [0, cr4::PAE | cr4::PCIDE, cr4::PAE | 1 << 13, cr4::PAE | 1 << 40] {
        Guest::with_kernel().fails_with(13, Some(0), |a| {
            a.mov(rax, bad).unwrap();
            a.mov(cr4, rax).unwrap();
        });
    }
    Guest::with_kernel().fails_with(13, Some(0), |a| {
        a.mov(rax, 1u64 << 46).unwrap();
        a.mov(cr3, rax).unwrap();
    });
    Guest::with_kernel().fails_with(13, Some(0), |a| {
        a.mov(eax, 16).unwrap();
        a.mov(cr8, rax).unwrap();
    });
    // Long mode is not left by EFER while paging is on.
    Guest::with_kernel().fails_with(13, Some(0), |a| {
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.mov(eax, u32::try_from(efer::NXE).unwrap()).unwrap();
        a.xor(edx, edx).unwrap();
        a.wrmsr().unwrap();
    });
    assert_eq!(Guest::with_kernel().processor.cpu.code_size, CodeSize::Bits64);
}
