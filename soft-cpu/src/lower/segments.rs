//! Segment registers, far transfers, system calls, software interrupts. The rules are in `system/`.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use super::system::need_visible;
use super::{Found, Place, by_width, bytes_of, ends, goes_on, is_memory, register};
use crate::cpu::{CodeSize, Cpu, attend, efer, reg, seg};
use crate::event::{Exception, Raised};
use crate::flags::{self, Flags};
use crate::lower::control::after;
use crate::op::{Done, Handler, Op};
use crate::segment::Segment;
use crate::system::deliver::Source;
pub(super) use crate::system::far::low16;
use crate::system::segments::{is_null, requested};
use crate::width::{B2, B4, B8, Width};

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    match i.mnemonic() {
        Mnemonic::Mov => mov(i, op),
        Mnemonic::Push => {
            op.src = number_of(i.op0_register())?;
            let bytes = usize::try_from(-i.stack_pointer_increment()).ok()?;
            goes_on(by_width!(bytes, push_segment)?)
        }
        Mnemonic::Pop => {
            op.dst = number_of(i.op0_register())?;
            let bytes = usize::try_from(i.stack_pointer_increment()).ok()?;
            ends(by_width!(bytes, pop_segment)?)
        }
        Mnemonic::Lds => load_far(i, op, seg::DS),
        Mnemonic::Les => load_far(i, op, seg::ES),
        Mnemonic::Lfs => load_far(i, op, seg::FS),
        Mnemonic::Lgs => load_far(i, op, seg::GS),
        Mnemonic::Lss => load_far(i, op, seg::SS),
        Mnemonic::Jmp => far(i, op, false),
        Mnemonic::Call => far(i, op, true),
        Mnemonic::Retf => {
            op.imm = if i.op_count() == 1 { i.immediate(0) & 0xffff } else { 0 };
            ends(match i.code() {
                Code::Retfw | Code::Retfw_imm16 => return_far::<B2>,
                Code::Retfd | Code::Retfd_imm16 => return_far::<B4>,
                _ => return_far::<B8>,
            })
        }
        Mnemonic::Iret => ends(return_from_interrupt::<B2>),
        Mnemonic::Iretd => ends(return_from_interrupt::<B4>),
        Mnemonic::Iretq => ends(return_from_interrupt::<B8>),
        Mnemonic::Int => {
            op.imm = i.immediate(0) & 0xff;
            ends(interrupt)
        }
        Mnemonic::Int3 => {
            op.imm = 3;
            ends(interrupt)
        }
        Mnemonic::Int1 => ends(trap),
        Mnemonic::Into => ends(interrupt_on_overflow),
        Mnemonic::Syscall => ends(system_call),
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            ends(if i.code() == Code::Sysretq { system_return::<B8> } else { system_return::<B4> })
        }
        Mnemonic::Sysenter => ends(system_enter),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            ends(if i.code() == Code::Sysexitq { system_exit::<B8> } else { system_exit::<B4> })
        }
        Mnemonic::Lldt => load_system_segment(i, op, load_local_table, load_local_table_memory),
        Mnemonic::Ltr => load_system_segment(i, op, load_task, load_task_memory),
        Mnemonic::Sldt => store_system_segment::<false>(i, op),
        Mnemonic::Str => store_system_segment::<true>(i, op),
        Mnemonic::Lar => question::<Rights>(i, op),
        Mnemonic::Lsl => question::<Limit>(i, op),
        Mnemonic::Verr => verify(i, op, verify_register::<false>, verify_memory::<false>),
        Mnemonic::Verw => verify(i, op, verify_register::<true>, verify_memory::<true>),
        Mnemonic::Arpl if place.code_size != CodeSize::Bits64 => {
            op.src = register(i, 1)?;
            match register(i, 0) {
                Some(dst) => {
                    op.dst = dst;
                    goes_on(adjust_register)
                }
                None => goes_on(adjust_memory),
            }
        }
        _ => None,
    }
}

/// The number of a segment register, as instructions encode it.
fn number_of(register: Register) -> Option<u8> {
    Some(match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::DS => 3,
        Register::FS => 4,
        Register::GS => 5,
        _ => return None,
    })
}

fn undefined(cpu: &mut Cpu) -> Raised {
    cpu.throw(Exception::UNDEFINED)
}

/// Descriptors have no meaning in real mode.
fn need_descriptors(cpu: &mut Cpu) -> Done {
    if cpu.has_descriptors() { Ok(()) } else { Err(undefined(cpu)) }
}

// ---- moving selectors -----------------------------------------------------------------------

fn mov(i: &Instruction, op: &mut Op) -> Option<Found> {
    if let Some(which) = number_of(i.op1_register()) {
        op.src = which;
        return match register(i, 0) {
            Some(dst) => {
                op.dst = dst;
                goes_on(by_width!(bytes_of(i, 0), read_segment)?)
            }
            None => goes_on(store_segment),
        };
    }
    let which = number_of(i.op0_register())?;
    if usize::from(which) == seg::CS {
        return ends(crate::trace_cache::undefined);
    }
    op.dst = which;
    match register(i, 1) {
        Some(src) => {
            op.src = src;
            ends(load_segment)
        }
        None => ends(load_segment_memory),
    }
}

fn selector_of(cpu: &Cpu, which: u8) -> u64 {
    u64::from(cpu.segments[usize::from(which.min(5))].selector)
}

fn read_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.set::<W>(op.dst, selector_of(cpu, op.src));
    Ok(())
}

fn store_segment(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.store::<B2>(op, selector_of(cpu, op.src))
}

/// Loads a segment register and goes on; after SS nothing interrupts before one more instruction.
fn loaded(cpu: &mut Cpu, op: &Op, which: u8, selector: u64) -> Done {
    let which = usize::from(which.min(5));
    cpu.load_segment(which, low16(selector))?;
    if which == seg::SS {
        cpu.attend |= attend::SHADOW | attend::NO_TRAP;
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

fn load_segment(cpu: &mut Cpu, op: &Op) -> Done {
    let selector = cpu.get::<B2>(op.src);
    loaded(cpu, op, op.dst, selector)
}

fn load_segment_memory(cpu: &mut Cpu, op: &Op) -> Done {
    let selector = cpu.load::<B2>(op)?;
    loaded(cpu, op, op.dst, selector)
}

fn push_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.push::<W>(selector_of(cpu, op.src))
}

fn pop_segment<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let selector = cpu.top::<W>(0)?;
    // The stack pointer that moves is the old stack's.
    let mask = cpu.stack_mask();
    let sp = cpu.gpr[reg::RSP].wrapping_add(W::BYTES as u64) & mask;
    loaded(cpu, op, op.dst, selector)?;
    if mask == 0xffff {
        cpu.set::<B2>(4, sp);
    } else {
        cpu.gpr[reg::RSP] = sp;
    }
    Ok(())
}

fn load_far(i: &Instruction, op: &mut Op, which: usize) -> Option<Found> {
    op.dst = register(i, 0)?;
    op.extra = u16::try_from(which).ok()?;
    ends(by_width!(bytes_of(i, 0), load_far_pointer)?)
}

/// Reads a far pointer: its offset and selector.
fn far_pointer<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(u64, u16), Raised> {
    let address = cpu.address(op);
    let offset = cpu.load_at::<W>(address, op.segment)?;
    let selector = cpu.load_at::<B2>(address.wrapping_add(W::BYTES as u64), op.segment)?;
    Ok((offset, low16(selector)))
}

fn load_far_pointer<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (offset, selector) = far_pointer::<W>(cpu, op)?;
    loaded(cpu, op, op.extra.to_le_bytes()[0], u64::from(selector))?;
    cpu.set::<W>(op.dst, offset);
    Ok(())
}

// ---- far transfers --------------------------------------------------------------------------

fn far(i: &Instruction, op: &mut Op, calls: bool) -> Option<Found> {
    match i.op0_kind() {
        OpKind::FarBranch16 => {
            op.imm = u64::from(i.far_branch16()) | u64::from(i.far_branch_selector()) << 32;
            ends(if calls { call_direct::<B2> } else { jump_direct })
        }
        OpKind::FarBranch32 => {
            op.imm = u64::from(i.far_branch32()) | u64::from(i.far_branch_selector()) << 32;
            ends(if calls { call_direct::<B4> } else { jump_direct })
        }
        _ => ends(match i.code() {
            Code::Jmp_m1616 => jump_indirect::<B2>,
            Code::Jmp_m1632 => jump_indirect::<B4>,
            Code::Jmp_m1664 => jump_indirect::<B8>,
            Code::Call_m1616 => call_indirect::<B2>,
            Code::Call_m1632 => call_indirect::<B4>,
            Code::Call_m1664 => call_indirect::<B8>,
            _ => return None,
        }),
    }
}

fn jump_direct(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.far_jump(low16(op.imm >> 32), op.imm & 0xffff_ffff)
}

fn jump_indirect<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (offset, selector) = far_pointer::<W>(cpu, op)?;
    cpu.far_jump(selector, offset)
}

fn call_direct<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let back = after(cpu, op);
    cpu.far_call::<W>(low16(op.imm >> 32), op.imm & 0xffff_ffff, back)
}

fn call_indirect<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (offset, selector) = far_pointer::<W>(cpu, op)?;
    let back = after(cpu, op);
    cpu.far_call::<W>(selector, offset, back)
}

fn return_far<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    cpu.far_return::<W>(op.imm)
}

fn return_from_interrupt<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.interrupt_return::<W>()
}

// ---- software interrupts --------------------------------------------------------------------

/// Goes to a handler that will return behind this instruction.
fn enter_handler(cpu: &mut Cpu, op: &Op, vector: u8, source: Source) -> Done {
    let before = cpu.rip;
    cpu.rip = after(cpu, op);
    let delivered = cpu.deliver(vector, None, source);
    if delivered.is_err() {
        cpu.rip = before;
    }
    delivered
}

fn interrupt(cpu: &mut Cpu, op: &Op) -> Done {
    enter_handler(cpu, op, op.imm.to_le_bytes()[0], Source::Software)
}

fn trap(cpu: &mut Cpu, op: &Op) -> Done {
    enter_handler(cpu, op, 1, Source::Processor)
}

fn interrupt_on_overflow(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.flags.overflow() {
        return enter_handler(cpu, op, 4, Source::Software);
    }
    cpu.rip = after(cpu, op);
    Ok(())
}

// ---- system calls (Intel's flavour: SYSCALL exists in 64-bit mode only) ---------------------

/// A flat code segment; `size` is L or D.
fn flat_code(selector: u16, privilege: u8, is_long: bool) -> Segment {
    let size = if is_long { 0x2000 } else { 0x4000 };
    let attributes = 0x809b | size | u16::from(privilege) << 5;
    Segment { selector: selector & !3 | u16::from(privilege), base: 0, limit: u32::MAX, attributes }
}

fn flat_stack(selector: u16, privilege: u8) -> Segment {
    let attributes = 0xc093 | u16::from(privilege) << 5;
    Segment { selector: selector & !3 | u16::from(privilege), base: 0, limit: u32::MAX, attributes }
}

fn system_call(cpu: &mut Cpu, op: &Op) -> Done {
    if cpu.code_size != CodeSize::Bits64 || cpu.efer & efer::SCE == 0 {
        return Err(undefined(cpu));
    }
    let rflags = cpu.rflags();
    cpu.gpr[reg::RCX] = after(cpu, op);
    cpu.gpr[11] = rflags & !flags::RF;
    let selector = low16(cpu.msr.star >> 32);
    cpu.set_segment(seg::CS, flat_code(selector, 0, true));
    cpu.set_segment(seg::SS, flat_stack((selector & !3).wrapping_add(8), 0));
    cpu.set_cpl(0);
    cpu.set_rflags(rflags & !(cpu.msr.sfmask | flags::RF | flags::VM));
    cpu.rip = cpu.msr.lstar;
    // Where the mask clears TF, the step that was begun before it is not reported.
    if !cpu.has(flags::TF) {
        cpu.attend |= attend::NO_TRAP;
    }
    Ok(())
}

fn system_return<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    if cpu.code_size != CodeSize::Bits64 || cpu.efer & efer::SCE == 0 {
        return Err(undefined(cpu));
    }
    cpu.need_supervisor()?;
    let target = cpu.get::<W>(1);
    // Intel's processors find a bad address here, at privilege 0.
    let target = cpu.need_canonical(target)?;
    let selector = low16(cpu.msr.star >> 48);
    let is_long = W::BYTES == 8;
    let code = if is_long { selector.wrapping_add(16) } else { selector };
    cpu.set_segment(seg::CS, flat_code(code, 3, is_long));
    cpu.set_segment(seg::SS, flat_stack(selector.wrapping_add(8), 3));
    cpu.set_cpl(3);
    cpu.set_rflags(cpu.gpr[11] & !(flags::RF | flags::VM));
    cpu.rip = target;
    Ok(())
}

fn system_enter(cpu: &mut Cpu, _op: &Op) -> Done {
    let selector = low16(cpu.msr.sysenter_cs);
    if !cpu.is_protected() || is_null(selector) {
        return Err(cpu.protect());
    }
    let long = cpu.is_long();
    cpu.set_rflags(cpu.rflags() & !(flags::VM | flags::IF | flags::RF));
    cpu.set_segment(seg::CS, flat_code(selector, 0, long));
    cpu.set_segment(seg::SS, flat_stack((selector & !3).wrapping_add(8), 0));
    cpu.set_cpl(0);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.gpr[reg::RSP] = cpu.msr.sysenter_esp & mask;
    cpu.rip = cpu.msr.sysenter_eip & mask;
    Ok(())
}

fn system_exit<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    let selector = low16(cpu.msr.sysenter_cs);
    if !cpu.is_protected() || is_null(selector) {
        return Err(cpu.protect());
    }
    cpu.need_supervisor()?;
    let is_long = W::BYTES == 8;
    let (target, stack) = (cpu.get::<W>(2), cpu.get::<W>(1));
    if is_long {
        cpu.need_canonical(target)?;
        cpu.need_canonical(stack)?;
    }
    let code = selector.wrapping_add(if is_long { 32 } else { 16 });
    cpu.set_segment(seg::CS, flat_code(code, 3, is_long));
    cpu.set_segment(seg::SS, flat_stack(code.wrapping_add(8), 3));
    cpu.set_cpl(3);
    cpu.gpr[reg::RSP] = stack;
    cpu.rip = target;
    Ok(())
}

// ---- LDTR and TR ----------------------------------------------------------------------------

fn load_system_segment(
    i: &Instruction,
    op: &mut Op,
    from_register: Handler,
    from_memory: Handler,
) -> Option<Found> {
    match register(i, 0) {
        Some(src) => {
            op.src = src;
            goes_on(from_register)
        }
        None => goes_on(from_memory),
    }
}

fn load_local_table(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    cpu.need_supervisor()?;
    cpu.load_local_table(low16(cpu.get::<B2>(op.src)))
}

fn load_local_table_memory(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    cpu.need_supervisor()?;
    let selector = cpu.load::<B2>(op)?;
    cpu.load_local_table(low16(selector))
}

fn load_task(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    cpu.need_supervisor()?;
    cpu.load_task(low16(cpu.get::<B2>(op.src)))
}

fn load_task_memory(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    cpu.need_supervisor()?;
    let selector = cpu.load::<B2>(op)?;
    cpu.load_task(low16(selector))
}

fn store_system_segment<const TASK: bool>(i: &Instruction, op: &mut Op) -> Option<Found> {
    match register(i, 0) {
        Some(dst) => {
            op.dst = dst;
            goes_on(by_width!(bytes_of(i, 0), read_system_segment::<TASK>)?)
        }
        None => goes_on(write_system_segment::<TASK>),
    }
}

/// `sldt`'s or `str`'s answer.
fn system_selector<const TASK: bool>(cpu: &mut Cpu) -> Result<u64, Raised> {
    need_descriptors(cpu)?;
    need_visible(cpu)?;
    Ok(u64::from(if TASK { cpu.tr.selector } else { cpu.ldtr.selector }))
}

fn read_system_segment<const TASK: bool, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let selector = system_selector::<TASK>(cpu)?;
    cpu.set::<W>(op.dst, selector);
    Ok(())
}

fn write_system_segment<const TASK: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    let selector = system_selector::<TASK>(cpu)?;
    cpu.store::<B2>(op, selector)
}

// ---- questions about descriptors ------------------------------------------------------------

/// What `lar` and `lsl` want to know.
trait Question: 'static {
    /// The answer, if the descriptor is of a type that has one.
    fn answer(segment: &Segment, is_long: bool) -> Option<u64>;
}

struct Rights;
struct Limit;

impl Question for Rights {
    fn answer(segment: &Segment, is_long: bool) -> Option<u64> {
        let known = segment.kind() & 0x10 != 0
            || match segment.kind() {
                2 | 9 | 0xb | 0xc => true,
                1 | 3 | 4 | 5 => !is_long,
                _ => false,
            };
        known.then(|| {
            // The second doubleword under 00fxff00h, where the limit's bits are undefined: as stored, which is 0 here.
            u64::from(segment.attributes & 0xf0ff) << 8
        })
    }
}

impl Question for Limit {
    fn answer(segment: &Segment, is_long: bool) -> Option<u64> {
        let known = segment.kind() & 0x10 != 0
            || match segment.kind() {
                2 | 9 | 0xb => true,
                1 | 3 => !is_long,
                _ => false,
            };
        known.then_some(u64::from(segment.limit))
    }
}

fn question<Q: Question>(i: &Instruction, op: &mut Op) -> Option<Found> {
    op.dst = register(i, 0)?;
    let bytes = bytes_of(i, 0);
    match register(i, 1) {
        Some(src) => {
            op.src = src;
            goes_on(by_width!(bytes, ask_register::<Q>)?)
        }
        None if is_memory(i, 1) => goes_on(by_width!(bytes, ask_memory::<Q>)?),
        None => None,
    }
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    let bits = cpu.flags.bits() & !flags::ZF | if zero { flags::ZF } else { 0 };
    cpu.flags = Flags::from_bits(bits);
}

fn ask<Q: Question, W: Width>(cpu: &mut Cpu, op: &Op, selector: u16) -> Done {
    let segment = cpu.visible_descriptor(selector)?;
    let answer = segment.and_then(|segment| Q::answer(&segment, cpu.is_long()));
    set_zero(cpu, answer.is_some());
    if let Some(value) = answer {
        cpu.set::<W>(op.dst, value & W::MASK);
    }
    Ok(())
}

fn ask_register<Q: Question, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    ask::<Q, W>(cpu, op, low16(cpu.get::<B2>(op.src)))
}

fn ask_memory<Q: Question, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    let selector = cpu.load::<B2>(op)?;
    ask::<Q, W>(cpu, op, low16(selector))
}

fn verify(i: &Instruction, op: &mut Op, in_register: Handler, in_memory: Handler) -> Option<Found> {
    load_system_segment(i, op, in_register, in_memory)
}

fn verify_selector<const WRITE: bool>(cpu: &mut Cpu, selector: u64) -> Done {
    let segment = cpu.visible_descriptor(low16(selector))?;
    let allowed = segment.is_some_and(|segment| match WRITE {
        true => segment.is_writable_data(),
        false => segment.is_readable(),
    });
    set_zero(cpu, allowed);
    Ok(())
}

fn verify_register<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    verify_selector::<WRITE>(cpu, cpu.get::<B2>(op.src))
}

fn verify_memory<const WRITE: bool>(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    let selector = cpu.load::<B2>(op)?;
    verify_selector::<WRITE>(cpu, selector)
}

/// The selector with at least the privilege number of the other, if it had less.
fn adjusted(selector: u64, other: u64) -> Option<u64> {
    let (own, other) = (requested(low16(selector)), requested(low16(other)));
    (own < other).then_some(selector & !3 | u64::from(other))
}

fn adjust_register(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    let adjusted = adjusted(cpu.get::<B2>(op.dst), cpu.get::<B2>(op.src));
    if let Some(selector) = adjusted {
        cpu.set::<B2>(op.dst, selector);
    }
    set_zero(cpu, adjusted.is_some());
    Ok(())
}

fn adjust_memory(cpu: &mut Cpu, op: &Op) -> Done {
    need_descriptors(cpu)?;
    let address = cpu.address(op);
    let operand = cpu.open::<B2>(address, op.segment)?;
    let selector = cpu.peek::<B2>(operand)?;
    let adjusted = adjusted(selector, cpu.get::<B2>(op.src));
    if let Some(selector) = adjusted {
        cpu.poke::<B2>(operand, selector)?;
    }
    set_zero(cpu, adjusted.is_some());
    Ok(())
}
