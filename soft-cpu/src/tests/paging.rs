//! Page faults, their error codes, accessed and dirty bits.

use iced_x86::code_asm::*;

use super::kernel::{GDT, sel};
use super::{CODE, Guest};
use crate::cpu::{cr0, cr4, efer, reg};
use crate::flags;

/// The entry of the 2 MiB page that [`PLACE`] is in.
const ENTRY: u64 = 0x3000 + 8;
const PLACE: u64 = 0x20_0000;
const FRAME: u64 = 0x20_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 0x20;
const DIRTY: u64 = 0x40;
const LARGE: u64 = 0x80;
const NX: u64 = 1 << 63;

/// A kernel whose page at [`PLACE`] has these bits.
fn guest(bits: u64) -> Guest {
    let guest = Guest::with_kernel();
    guest.memory.write64(ENTRY, if bits == 0 { 0 } else { FRAME | LARGE | PRESENT | bits });
    guest
}

fn reads(a: &mut CodeAssembler) {
    a.mov(al, byte_ptr(PLACE + 5)).unwrap();
}

fn writes(a: &mut CodeAssembler) {
    a.mov(byte_ptr(PLACE + 5), cl).unwrap();
}

fn fetches(a: &mut CodeAssembler) {
    a.mov(eax, u32::try_from(PLACE + 5).unwrap()).unwrap();
    a.jmp(rax).unwrap();
}

/// Runs it as a kernel or a user: the page fault's error code, or nothing.
fn fault(guest: &mut Guest, user: bool, program: fn(&mut CodeAssembler)) -> Option<u64> {
    if user {
        guest.become_user();
    }
    // What is done ends in #UD.
    guest.memory.write(PLACE + 5, &[0x0f, 0x0b]);
    let stop = guest.run(|a| {
        program(a);
        a.ud2().unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    if vector == 14 {
        assert_eq!(guest.processor.cpu.cr2, PLACE + 5);
        return Some(frame[0]);
    }
    assert_eq!(vector, 6);
    None
}

#[test]
fn error_codes_say_what_was_tried_and_why_it_failed() {
    let kernel = |bits, program| fault(&mut guest(bits), false, program);
    let user = |bits, program| fault(&mut guest(bits), true, program);
    assert_eq!(kernel(0, reads), Some(0));
    assert_eq!(kernel(0, writes), Some(2));
    assert_eq!(kernel(0, fetches), Some(0x10));
    assert_eq!(user(0, reads), Some(4));
    assert_eq!(user(0, writes), Some(6));
    assert_eq!(user(0, fetches), Some(0x14));
    assert_eq!(user(WRITABLE, reads), Some(5));
    assert_eq!(user(WRITABLE, writes), Some(7));
    assert_eq!(user(WRITABLE, fetches), Some(0x15));
    assert_eq!(user(USER, writes), Some(7));
    assert_eq!(user(USER, reads), None);
    assert_eq!(user(USER | NX, fetches), Some(0x15));
    assert_eq!(user(USER | NX, reads), None);
    assert_eq!(kernel(USER, writes), Some(3));
    assert_eq!(kernel(WRITABLE | NX, fetches), Some(0x11));
    assert_eq!(kernel(WRITABLE | 1 << 14, reads), Some(9));
    assert_eq!(kernel(WRITABLE | 1 << 50, writes), Some(0xb));
    assert_eq!(user(WRITABLE | USER | 1 << 50, fetches), Some(0x1d));
}

#[test]
fn without_write_protection_the_kernel_writes_everywhere() {
    let mut guest = guest(USER);
    guest.processor.cpu.cr0 &= !cr0::WP;
    guest.processor.cpu.mode_changed();
    assert_eq!(fault(&mut guest, false, writes), None);
}

#[test]
fn without_nx_its_bit_is_reserved_and_fetches_are_not_told_apart() {
    let mut guest = guest(WRITABLE | NX);
    guest.processor.cpu.efer &= !efer::NXE;
    assert_eq!(fault(&mut guest, false, reads), Some(9));
    let mut guest = self::guest(0);
    guest.processor.cpu.efer &= !efer::NXE;
    assert_eq!(fault(&mut guest, false, fetches), Some(0));
}

/// With these bits of CR4 set, on tables that keep the kernel's own pages from users.
fn guarded(bits: u64, control: u64) -> Guest {
    let mut guest = guest(bits);
    guest.memory.write64(0x3000, LARGE | PRESENT | WRITABLE);
    guest.processor.cpu.cr4 |= control;
    guest.processor.cpu.mode_changed();
    guest
}

#[test]
fn the_supervisor_neither_runs_nor_reads_what_is_the_users_when_it_guards_itself() {
    assert_eq!(fault(&mut guarded(USER, cr4::SMEP), false, fetches), Some(0x11));
    assert_eq!(fault(&mut guarded(USER, cr4::SMEP), false, reads), None);
    assert_eq!(fault(&mut guarded(USER, cr4::SMAP), false, reads), Some(1));
    assert_eq!(fault(&mut guarded(USER | WRITABLE, cr4::SMAP), false, writes), Some(3));
    // SMAP says nothing about fetches.
    assert_eq!(fault(&mut guarded(USER, cr4::SMAP), false, fetches), None);
    let excused = |a: &mut CodeAssembler| {
        a.stac().unwrap();
        writes(a);
        a.clac().unwrap();
    };
    assert_eq!(fault(&mut guarded(USER | WRITABLE, cr4::SMAP), false, excused), None);
    let too_late = |a: &mut CodeAssembler| {
        a.stac().unwrap();
        reads(a);
        a.clac().unwrap();
        reads(a);
    };
    assert_eq!(fault(&mut guarded(USER, cr4::SMAP), false, too_late), Some(1));
}

#[test]
fn nothing_excuses_a_descriptor_table_in_the_users_pages() {
    let mut guest = guarded(USER | WRITABLE, cr4::SMAP);
    let table = guest.memory.read(GDT, 0x80);
    guest.memory.write(PLACE, &table);
    guest.processor.cpu.gdtr.base = PLACE;
    guest.processor.cpu.set_rflags(flags::AC);
    let stop = guest.run(|a| {
        // The operand is the instruction's own: excused.
        a.mov(al, byte_ptr(PLACE + 5)).unwrap();
        a.mov(ecx, u32::from(sel::USER_DATA)).unwrap();
        a.mov(ds, ecx).unwrap();
    });
    // The handler's code segment is in the table, too.
    assert_eq!(stop, crate::Stop::TripleFault);
    // `mov al, moffs64` and `mov ecx, imm32` are done, `mov ds, ecx` is not.
    assert_eq!(guest.processor.cpu.rip, CODE + 9 + 5);
    assert_eq!(guest.processor.cpu.cr2 & !0xff, PLACE);
}

#[test]
fn reads_set_the_accessed_bit_and_only_writes_that_are_allowed_the_dirty_bit() {
    let bits = |guest: &Guest| guest.memory.read64(ENTRY) & (ACCESSED | DIRTY);
    let mut read = guest(WRITABLE);
    fault(&mut read, false, reads);
    assert_eq!(bits(&read), ACCESSED);
    let mut write = guest(WRITABLE);
    fault(&mut write, false, writes);
    assert_eq!(bits(&write), ACCESSED | DIRTY);
    let mut refused = guest(USER);
    fault(&mut refused, true, writes);
    assert_eq!(bits(&refused) & DIRTY, 0);
    // A page that was read first still gets its dirty bit with the first write.
    let mut both = guest(WRITABLE);
    let program = |a: &mut CodeAssembler| {
        reads(a);
        writes(a);
    };
    fault(&mut both, false, program);
    assert_eq!(bits(&both), ACCESSED | DIRTY);
}

#[test]
fn a_page_that_moves_is_seen_after_invlpg_and_after_each_change_of_a_control_register() {
    type Flush = fn(&mut CodeAssembler);
    let ways: [Flush; 4] = [
        |a| a.invlpg(byte_ptr(PLACE)).unwrap(),
        |a| {
            a.mov(rax, cr3).unwrap();
            a.mov(cr3, rax).unwrap();
        },
        |a| {
            a.mov(rax, cr4).unwrap();
            a.xor(rax, 0x80).unwrap();
            a.mov(cr4, rax).unwrap();
        },
        |a| {
            a.mov(rax, cr0).unwrap();
            a.xor(rax, 0x10000).unwrap();
            a.mov(cr0, rax).unwrap();
        },
    ];
    for way in ways {
        let mut guest = guest(WRITABLE);
        guest.memory.write64(PLACE + 8, 0x1111);
        guest.memory.write64(0x5_0008, 0x2222);
        let stop = guest.run(|a| {
            a.mov(rbx, qword_ptr(PLACE + 8)).unwrap();
            // Now the first 2 MiB.
            a.mov(qword_ptr(ENTRY), 0x83).unwrap();
            way(a);
            a.mov(rcx, qword_ptr(PLACE + 0x5_0008)).unwrap();
            a.mov(rdx, qword_ptr(PLACE + 8)).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(stop, crate::Stop::Halted);
        assert_eq!((guest.reg(reg::RBX), guest.reg(reg::RCX)), (0x1111, 0x2222));
        assert_ne!(guest.reg(reg::RDX), 0x1111);
    }
}

#[test]
fn addresses_that_are_not_canonical_are_protection_faults_and_stack_faults() {
    let bad = 0x8000_0000_0000u64;
    Guest::with_kernel().fails_with(13, Some(0), |a| {
        a.mov(rbx, bad).unwrap();
        a.mov(al, byte_ptr(rbx)).unwrap();
    });
    Guest::with_kernel().fails_with(12, Some(0), |a| {
        a.mov(rbp, bad).unwrap();
        a.mov(al, byte_ptr(rbp)).unwrap();
    });
    let mut guest = Guest::with_kernel();
    let stop = guest.run(|a| {
        a.mov(rbx, bad).unwrap();
        a.jmp(rbx).unwrap();
    });
    let (vector, frame) = guest.handled(stop);
    assert_eq!((vector, frame[0]), (13, 0));
}
