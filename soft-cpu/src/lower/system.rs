//! What only a kernel may do, or only a kernel's caller: control registers, model-specific registers, tables, `hlt`,
//! interrupts on and off, ports, `cpuid`, the clock. The rules are in `system/`.

use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::{Found, Place, by_width, bytes_of, ends, goes_on, immediate, register};
use crate::cpu::{After, CodeSize, Cpu, attend, cr0, cr4, reg, seg};
use crate::event::{DeviceAccess, Exception};
use crate::flags;
use crate::lower::control::after;
use crate::op::{Done, Handler, Op};
use crate::segment::TableRegister;
use crate::width::{B2, B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    match i.mnemonic() {
        Mnemonic::Mov => special_register(i, op),
        Mnemonic::Clts => ends(clear_task_switched),
        Mnemonic::Lmsw => {
            op.src = register(i, 0).unwrap_or(op.src);
            ends(if register(i, 0).is_some() { load_status } else { load_status_memory })
        }
        Mnemonic::Smsw => match register(i, 0) {
            Some(dst) => {
                op.dst = dst;
                goes_on(by_width!(bytes_of(i, 0), store_status)?)
            }
            None => goes_on(store_status_memory),
        },
        Mnemonic::Invlpg => ends(invalidate_page),
        Mnemonic::Invd | Mnemonic::Wbinvd => goes_on(supervisor_nop),
        Mnemonic::Lgdt | Mnemonic::Lidt => {
            let is_interrupts = i.mnemonic() == Mnemonic::Lidt;
            ends(match (table_bytes(i), is_interrupts) {
                (3, false) => load_table::<3, false>,
                (3, true) => load_table::<3, true>,
                (4, false) => load_table::<4, false>,
                (4, true) => load_table::<4, true>,
                (_, false) => load_table::<8, false>,
                (_, true) => load_table::<8, true>,
            })
        }
        Mnemonic::Sgdt | Mnemonic::Sidt => {
            let is_interrupts = i.mnemonic() == Mnemonic::Sidt;
            goes_on(match (table_bytes(i), is_interrupts) {
                (8, false) => store_table::<B8, false>,
                (8, true) => store_table::<B8, true>,
                (_, false) => store_table::<B4, false>,
                (_, true) => store_table::<B4, true>,
            })
        }
        Mnemonic::Rdmsr => goes_on(read_model_specific),
        Mnemonic::Wrmsr => ends(write_model_specific),
        Mnemonic::Rdtsc => goes_on(read_time::<false>),
        Mnemonic::Rdtscp => goes_on(read_time::<true>),
        Mnemonic::Rdpid => {
            op.dst = register(i, 0)?;
            goes_on(read_processor)
        }
        // There are no counters to read.
        Mnemonic::Rdpmc => goes_on(protected),
        Mnemonic::Cpuid => goes_on(identify),
        Mnemonic::Hlt => ends(halt),
        Mnemonic::Cli => goes_on(interrupts_off),
        Mnemonic::Sti => ends(interrupts_on),
        Mnemonic::Clac => goes_on(set_access_check::<false>),
        Mnemonic::Stac => goes_on(set_access_check::<true>),
        Mnemonic::In => port(i, op, 1, 0, port_in),
        Mnemonic::Out => port(i, op, 0, 1, port_out),
        Mnemonic::Swapgs if place.code_size == CodeSize::Bits64 => goes_on(swap_gs),
        Mnemonic::Rdfsbase => {
            base(i, op, read_base::<{ seg::FS }, B4>, read_base::<{ seg::FS }, B8>)
        }
        Mnemonic::Rdgsbase => {
            base(i, op, read_base::<{ seg::GS }, B4>, read_base::<{ seg::GS }, B8>)
        }
        Mnemonic::Wrfsbase => {
            base(i, op, write_base::<{ seg::FS }, B4>, write_base::<{ seg::FS }, B8>)
        }
        Mnemonic::Wrgsbase => {
            base(i, op, write_base::<{ seg::GS }, B4>, write_base::<{ seg::GS }, B8>)
        }
        _ => None,
    }
}

// ---- control and debug registers ------------------------------------------------------------

/// The number of a control or debug register.
fn number_of(register: Register) -> Option<u8> {
    (register.is_cr() || register.is_dr()).then(|| u8::try_from(register.number()).ok()).flatten()
}

fn special_register(i: &Instruction, op: &mut Op) -> Option<Found> {
    if let (Some(dst), Some(which)) = (register(i, 0), number_of(i.op1_register())) {
        (op.dst, op.src) = (dst, which);
        let is_debug = i.op1_register().is_dr();
        return goes_on(
            match (i.code() == Code::Mov_r64_cr || i.code() == Code::Mov_r64_dr, is_debug) {
                (true, false) => read_control::<B8>,
                (false, false) => read_control::<B4>,
                (true, true) => read_debug::<B8>,
                (false, true) => read_debug::<B4>,
            },
        );
    }
    if let (Some(which), Some(src)) = (number_of(i.op0_register()), register(i, 1)) {
        (op.dst, op.src) = (which, src);
        return ends(match i.code() {
            Code::Mov_cr_r64 => write_control::<B8>,
            Code::Mov_cr_r32 => write_control::<B4>,
            Code::Mov_dr_r64 => write_debug::<B8>,
            Code::Mov_dr_r32 => write_debug::<B4>,
            _ => return None,
        });
    }
    None
}

fn read_control<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let value = cpu.read_control(op.src)?;
    cpu.set::<W>(op.dst, value & W::MASK);
    Ok(())
}

fn write_control<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    // How wide the instruction pointer is may change with the register.
    let next = after(cpu, op);
    let value = cpu.get::<W>(op.src);
    cpu.write_control(op.dst, value)?;
    cpu.rip = next;
    Ok(())
}

fn read_debug<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.read_debug(op.src)?;
    cpu.set::<W>(op.dst, value & W::MASK);
    Ok(())
}

fn write_debug<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<W>(op.src);
    cpu.write_debug(op.dst, value)?;
    cpu.rip = after(cpu, op);
    Ok(())
}

fn clear_task_switched(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let next = after(cpu, op);
    cpu.write_cr0(cpu.cr0 & !cr0::TS)?;
    cpu.rip = next;
    Ok(())
}

fn load_status(cpu: &mut Cpu, op: &Op) -> Done {
    let value = cpu.get::<B2>(op.src);
    load_status_word(cpu, op, value)
}

fn load_status_memory(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let value = cpu.load::<B2>(op)?;
    load_status_word(cpu, op, value)
}

/// `lmsw` reaches PE, MP, EM and TS, and cannot clear PE.
fn load_status_word(cpu: &mut Cpu, op: &Op, value: u64) -> Done {
    cpu.need_supervisor()?;
    let next = after(cpu, op);
    let kept = cpu.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    cpu.write_cr0(kept | value & 0xf)?;
    cpu.rip = next;
    Ok(())
}

/// Fails with #GP(0) where user-mode instruction prevention keeps the answer from users.
pub(super) fn need_visible(cpu: &mut Cpu) -> Done {
    if cpu.cpl > 0 && cpu.cr4 & cr4::UMIP != 0 { Err(cpu.protect()) } else { Ok(()) }
}

fn store_status<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    need_visible(cpu)?;
    cpu.set::<W>(op.dst, cpu.cr0 & W::MASK);
    Ok(())
}

fn store_status_memory(cpu: &mut Cpu, op: &Op) -> Done {
    need_visible(cpu)?;
    cpu.store::<B2>(op, cpu.cr0 & 0xffff)
}

fn invalidate_page(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let address = cpu.address(op);
    if cpu.is_canonical(address) {
        let address = if cpu.is_long() { address } else { address & 0xffff_ffff };
        cpu.flush_page(address);
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

fn supervisor_nop(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.need_supervisor()
}

fn protected(cpu: &mut Cpu, _op: &Op) -> Done {
    Err(cpu.protect())
}

// ---- descriptor tables ----------------------------------------------------------------------

/// Bytes of a table's address in memory: a 16-bit operand keeps three.
fn table_bytes(i: &Instruction) -> usize {
    match i.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 3,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    }
}

fn load_table<const BYTES: usize, const INTERRUPTS: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let address = cpu.address(op);
    let limit = cpu.load_at::<B2>(address, op.segment)?;
    let at = address.wrapping_add(2);
    let base = if BYTES == 8 {
        let base = cpu.load_at::<B8>(at, op.segment)?;
        cpu.need_canonical(base)?
    } else {
        let base = cpu.load_at::<B4>(at, op.segment)?;
        if BYTES == 3 { base & 0xff_ffff } else { base }
    };
    let limit = super::segments::low16(limit);
    let register = TableRegister { base, limit };
    if INTERRUPTS {
        cpu.idtr = register;
    } else {
        cpu.gdtr = register;
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

fn store_table<W: Width, const INTERRUPTS: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    need_visible(cpu)?;
    let register = if INTERRUPTS { cpu.idtr } else { cpu.gdtr };
    let address = cpu.address(op);
    let limit = cpu.open::<B2>(address, op.segment)?;
    let base = cpu.open::<W>(address.wrapping_add(2), op.segment)?;
    cpu.poke::<B2>(limit, u64::from(register.limit))?;
    cpu.poke::<W>(base, register.base & W::MASK)
}

// ---- model-specific registers, clock, identity ----------------------------------------------

/// The number that ECX holds, and the value in EDX:EAX.
fn model_specific(cpu: &Cpu) -> (u32, u64) {
    let low = cpu.gpr[reg::RAX] & 0xffff_ffff;
    (low32(cpu.gpr[reg::RCX]), low | cpu.gpr[reg::RDX] << 32)
}

fn low32(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).expect("thirty-two bits")
}

fn split(cpu: &mut Cpu, value: u64) {
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
}

fn read_model_specific(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.need_supervisor()?;
    let (msr, _) = model_specific(cpu);
    let value = cpu.read_msr(msr)?;
    split(cpu, value);
    Ok(())
}

fn write_model_specific(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    let next = after(cpu, op);
    let (msr, value) = model_specific(cpu);
    cpu.write_msr(msr, value)?;
    cpu.rip = next;
    Ok(())
}

fn read_time<const PROCESSOR: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    if cpu.cpl > 0 && cpu.cr4 & cr4::TSD != 0 {
        return Err(cpu.protect());
    }
    let time = cpu.time();
    split(cpu, time);
    if PROCESSOR {
        cpu.gpr[reg::RCX] = cpu.msr.tsc_aux;
    }
    Ok(())
}

fn read_processor(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<B8>(op.dst, cpu.msr.tsc_aux);
    Ok(())
}

fn identify(cpu: &mut Cpu, _op: &Op) -> Done {
    let leaf = cpu.cpuid(low32(cpu.gpr[reg::RAX]), low32(cpu.gpr[reg::RCX]));
    cpu.gpr[reg::RAX] = u64::from(leaf.eax);
    cpu.gpr[reg::RBX] = u64::from(leaf.ebx);
    cpu.gpr[reg::RCX] = u64::from(leaf.ecx);
    cpu.gpr[reg::RDX] = u64::from(leaf.edx);
    Ok(())
}

// ---- sleeping, interrupts -------------------------------------------------------------------

fn halt(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.need_supervisor()?;
    cpu.after = After::Halt;
    cpu.attend |= attend::AFTER;
    cpu.rip = after(cpu, op);
    Ok(())
}

/// Whether this code may touch IF. (Virtual interrupts, VME and PVI, are not advertised.)
fn need_interrupt_privilege(cpu: &mut Cpu) -> Done {
    if cpu.is_protected() && cpu.cpl > cpu.iopl() { Err(cpu.protect()) } else { Ok(()) }
}

fn interrupts_off(cpu: &mut Cpu, _op: &Op) -> Done {
    need_interrupt_privilege(cpu)?;
    cpu.system_flags &= !flags::IF;
    Ok(())
}

fn interrupts_on(cpu: &mut Cpu, op: &Op) -> Done {
    need_interrupt_privilege(cpu)?;
    if !cpu.has(flags::IF) {
        cpu.system_flags |= flags::IF;
        cpu.attend |= attend::SHADOW | attend::INTERRUPT;
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

fn set_access_check<const ON: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    if cpu.cpl > 0 {
        return Err(cpu.throw(Exception::UNDEFINED));
    }
    if ON {
        cpu.system_flags |= flags::AC;
    } else {
        cpu.system_flags &= !flags::AC;
    }
    cpu.view_changed();
    Ok(())
}

// ---- ports ----------------------------------------------------------------------------------

fn port(i: &Instruction, op: &mut Op, number: u32, data: u32, run: Handler) -> Option<Found> {
    op.extra = u16::try_from(i.op_register(data).size()).ok()?;
    match immediate(i, number) {
        Some(port) => op.imm = port & 0xff,
        // Above every port: it is in DX.
        None => op.imm = u64::MAX,
    }
    ends(run)
}

/// Which port, and how many bytes.
fn port_of(cpu: &mut Cpu, op: &Op) -> Result<(u16, u8), crate::event::Raised> {
    let number = if op.imm == u64::MAX { cpu.gpr[reg::RDX] } else { op.imm };
    let port = super::segments::low16(number);
    let bytes = op.extra.to_le_bytes()[0];
    cpu.may_use_port(port, bytes)?;
    Ok((port, bytes))
}

fn port_in(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, bytes) = port_of(cpu, op)?;
    cpu.after = After::PortRead(DeviceAccess { at: u64::from(port), bytes, value: None });
    cpu.attend |= attend::AFTER;
    cpu.rip = after(cpu, op);
    Ok(())
}

fn port_out(cpu: &mut Cpu, op: &Op) -> Done {
    let (port, bytes) = port_of(cpu, op)?;
    if !cpu.surroundings.port_is_deaf(port) {
        let value = cpu.gpr[reg::RAX] & ((1 << (8 * u32::from(bytes.min(4)))) - 1);
        let access = DeviceAccess { at: u64::from(port), bytes, value: Some(value) };
        cpu.after = After::PortWrite(access);
        cpu.attend |= attend::AFTER;
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

// ---- bases of FS and GS ---------------------------------------------------------------------

fn base(i: &Instruction, op: &mut Op, short: Handler, long: Handler) -> Option<Found> {
    op.dst = register(i, 0)?;
    goes_on(if bytes_of(i, 0) == 8 { long } else { short })
}

fn swap_gs(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.need_supervisor()?;
    let other = std::mem::replace(&mut cpu.msr.kernel_gs_base, cpu.segments[seg::GS].base);
    cpu.set_base(seg::GS, other);
    Ok(())
}

fn need_base_instructions(cpu: &mut Cpu) -> Done {
    if cpu.cr4 & cr4::FSGSBASE == 0 { Err(cpu.throw(Exception::UNDEFINED)) } else { Ok(()) }
}

fn read_base<const WHICH: usize, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    need_base_instructions(cpu)?;
    cpu.set::<W>(op.dst, cpu.segments[WHICH].base & W::MASK);
    Ok(())
}

fn write_base<const WHICH: usize, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    need_base_instructions(cpu)?;
    let base = cpu.get::<W>(op.dst);
    let base = cpu.need_canonical(base)?;
    cpu.set_base(WHICH, base);
    Ok(())
}
