//! How a guest starts: from a boot protocol's registers to the processor's.
//!
//! The same state as on KVM (`engine/kvm/regs.rs`).

use actors::contract::boot::{EntryMode, EntryState};
use soft_cpu::cpu::{Cpu, cr0, cr4, efer, reg, seg};
use soft_cpu::segment::{Segment, TableRegister};

/// Present, code or data, writable or readable, accessed.
const DATA: u16 = 0x93;
const CODE: u16 = 0x9b;
/// A 64-bit code segment; a 32-bit one; with a limit in pages.
const LONG: u16 = 0x2000;
const BIG: u16 = 0x4000;
const PAGES: u16 = 0x8000;

/// Puts `entry` into a processor as after power-on.
pub(super) fn set(cpu: &mut Cpu, entry: &EntryState) {
    cpu.gdtr = TableRegister { base: 0, limit: 0 };
    cpu.idtr = TableRegister { base: 0, limit: 0 };
    // A reset processor has its caches off; no boot protocol starts like that.
    cpu.cr0 = cr0::ET;
    let (code, data, cpl) = match entry.mode {
        EntryMode::Real { segment } => {
            cpu.idtr.limit = 0x3ff;
            (Segment::real_code(segment), Segment::real(segment), 0)
        }
        EntryMode::Protected => {
            cpu.cr0 |= cr0::PE;
            (flat(0x8, CODE | BIG, 0), flat(0x10, DATA | BIG, 0), 0)
        }
        EntryMode::Long { cr3, gdt, gdt_limit, code, data, cpl } => {
            cpu.cr0 |= cr0::PE | cr0::PG;
            cpu.cr3 = cr3.0;
            cpu.cr4 = cr4::PAE;
            cpu.efer = efer::LME;
            cpu.gdtr = TableRegister { base: gdt.0, limit: gdt_limit };
            // The two low bits of a selector ask for a level; the current one is the code segment's.
            let level = u16::from(cpl);
            let code = flat(code & !3 | level, CODE | LONG, cpl);
            (code, flat(data & !3 | level, DATA | BIG, cpl), cpl)
        }
    };
    for which in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        cpu.set_segment(which, data);
    }
    cpu.set_segment(seg::CS, code);
    cpu.set_cpl(cpl);
    cpu.gpr[..16].fill(0);
    cpu.gpr[reg::RSP] = entry.rsp.0;
    cpu.gpr[reg::RSI] = entry.rsi;
    cpu.gpr[reg::RBX] = entry.rbx;
    cpu.rip = entry.rip.0;
    cpu.set_rflags(entry.rflags);
    cpu.mode_changed();
}

/// All 4 GiB; in 64-bit mode base and limit do not matter.
fn flat(selector: u16, attributes: u16, privilege: u8) -> Segment {
    let attributes = attributes | PAGES | u16::from(privilege) << 5;
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}
