//! What came before 64 bits: decimal arithmetic, `bound`, `pusha`, `popa` (none of them in 64-bit mode), and `enter`.

use iced_x86::{Code, Instruction, Mnemonic};

use super::{Found, Place, bytes_of, fail, goes_on, register};
use crate::cpu::{CodeSize, Cpu, reg};
use crate::event::Exception;
use crate::flags::{AF, CF, Flags, OF};
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, B4, B8, Width};

/// AH, by its slot.
const AH: u8 = 32;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let handler: Handler = match i.code() {
        Code::Enterw_imm16_imm8 => enter::<B2>,
        Code::Enterd_imm16_imm8 => enter::<B4>,
        Code::Enterq_imm16_imm8 => enter::<B8>,
        _ if place.code_size == CodeSize::Bits64 => return None,
        Code::Pushaw => push_all::<B2>,
        Code::Pushad => push_all::<B4>,
        Code::Popaw => pop_all::<B2>,
        Code::Popad => pop_all::<B4>,
        _ => match i.mnemonic() {
            Mnemonic::Bound => {
                op.src = register(i, 0)?;
                if bytes_of(i, 0) == 2 { bound::<B2> } else { bound::<B4> }
            }
            Mnemonic::Salc => carry_to_al,
            Mnemonic::Aaa => adjust_unpacked::<false>,
            Mnemonic::Aas => adjust_unpacked::<true>,
            Mnemonic::Daa => adjust_packed::<false>,
            Mnemonic::Das => adjust_packed::<true>,
            Mnemonic::Aam => {
                op.imm = i.immediate(0) & 0xff;
                unpack
            }
            Mnemonic::Aad => {
                op.imm = i.immediate(0) & 0xff;
                pack
            }
            _ => return None,
        },
    };
    if matches!(i.mnemonic(), Mnemonic::Enter) {
        op.imm = i.immediate(0) & 0xffff;
        op.extra = u16::try_from(i.immediate(1) & 31).expect("five bits");
    }
    goes_on(handler)
}

/// Intel SDM vol. 2, "ENTER": a frame, with the frame pointers of `op.extra` enclosing ones.
fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let bytes = W::BYTES as u64;
    let mask = cpu.stack_mask();
    let down = |at: u64, by: u64| at.wrapping_sub(by) & mask;
    let mut top = down(cpu.gpr[reg::RSP], bytes);
    let frame = top;
    store_on_stack::<W>(cpu, top, cpu.get::<W>(5))?;
    let mut enclosing = cpu.gpr[reg::RBP] & mask;
    for level in 1..=op.extra {
        let pointer = if level == op.extra {
            frame
        } else {
            enclosing = down(enclosing, bytes);
            let (address, segment) = cpu.stack_address(enclosing);
            cpu.load_at::<W>(address, segment)?
        };
        top = down(top, bytes);
        store_on_stack::<W>(cpu, top, pointer)?;
    }
    top = down(top, op.imm);
    // The new top must be writable; nothing is written.
    let (address, segment) = cpu.stack_address(top);
    cpu.open::<W>(address, segment)?;
    // Wider than the operand where the stack is.
    if mask == 0xffff || W::BYTES == 2 {
        cpu.set::<B2>(5, frame & B2::MASK);
    } else {
        cpu.gpr[reg::RBP] = frame;
    }
    cpu.set_stack_pointer(top);
    Ok(())
}

fn store_on_stack<W: Width>(cpu: &mut Cpu, at: u64, value: u64) -> Done {
    let (address, segment) = cpu.stack_address(at);
    cpu.store_at::<W>(address, segment, value & W::MASK)
}

/// From the accumulator to DI, the stack pointer as it was before.
fn push_all<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    let before = cpu.gpr[reg::RSP];
    for number in 0..8 {
        let value = if number == 4 { before & W::MASK } else { cpu.get::<W>(number) };
        if let Err(raised) = cpu.push::<W>(value) {
            cpu.gpr[reg::RSP] = before;
            return Err(raised);
        }
    }
    Ok(())
}

/// Back again; what was pushed for the stack pointer is passed over.
fn pop_all<W: Width>(cpu: &mut Cpu, _op: &Op) -> Done {
    let mut values = [0; 8];
    for (offset, value) in (0u64..).step_by(W::BYTES).zip(&mut values) {
        *value = cpu.top::<W>(offset)?;
    }
    cpu.move_stack(8 * W::BYTES as u64);
    for (number, value) in (0u8..8).rev().zip(values) {
        if number != 4 {
            cpu.set::<W>(number, value);
        }
    }
    Ok(())
}

fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let signed = |value| W::sign_extend(value).cast_signed();
    let address = cpu.address(op);
    let low = signed(cpu.load_at::<W>(address, op.segment)?);
    let offset = cpu.offset(op).wrapping_add(W::BYTES as u64);
    let next = cpu.based(op, offset << (op.cut & 63) >> (op.cut & 63));
    let high = signed(cpu.load_at::<W>(next, op.segment)?);
    if (low..=high).contains(&signed(cpu.get::<W>(op.src))) {
        return Ok(());
    }
    fail(cpu, Exception::BOUND)
}

fn carry_to_al(cpu: &mut Cpu, _op: &Op) -> Done {
    cpu.set::<B1>(0, if cpu.flags.carry() { 0xff } else { 0 });
    Ok(())
}

/// SF, ZF and PF of a byte, with CF and AF as given, and OF clear (where it is undefined).
fn decimal_flags(value: u64, carry: bool, half: bool) -> Flags {
    let carries = if carry { CF } else { 0 } | if half { AF } else { 0 };
    Flags::from_bits(Flags::logical::<B1>(value).bits() & !(CF | AF | OF) | carries)
}

/// `aaa` and `aas`.
fn adjust_unpacked<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    let ax = cpu.get::<B2>(0);
    let adjust = ax & 0xf > 9 || cpu.flags.half_carry();
    let adjusted = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(0x106),
    };
    let result = adjusted & 0xff0f;
    cpu.set::<B2>(0, result);
    cpu.flags = decimal_flags(result & 0xff, adjust, adjust);
    Ok(())
}

/// `daa` and `das`.
fn adjust_packed<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Done {
    let al = cpu.get::<B1>(0);
    let (carry, half) = (cpu.flags.carry(), cpu.flags.half_carry());
    let low = al & 0xf > 9 || half;
    let high = al > 0x99 || carry;
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let result = if SUBTRACT { al.wrapping_sub(by) } else { al.wrapping_add(by) } & 0xff;
    // Taking 6 from less borrows, which counts as a carry of its own.
    let borrows = SUBTRACT && low && al < 6;
    cpu.set::<B1>(0, result);
    cpu.flags = decimal_flags(result, high || borrows, low);
    Ok(())
}

/// `aam`.
fn unpack(cpu: &mut Cpu, op: &Op) -> Done {
    let al = cpu.get::<B1>(0);
    let (Some(tens), Some(ones)) = (al.checked_div(op.imm), al.checked_rem(op.imm)) else {
        return fail(cpu, Exception::DIVIDE);
    };
    cpu.set::<B2>(0, tens << 8 | ones);
    cpu.flags = decimal_flags(ones, false, false);
    Ok(())
}

/// `aad`.
fn pack(cpu: &mut Cpu, op: &Op) -> Done {
    let (al, ah) = (cpu.get::<B1>(0), cpu.get::<B1>(AH));
    let result = al.wrapping_add(ah.wrapping_mul(op.imm)) & 0xff;
    cpu.set::<B2>(0, result);
    cpu.flags = decimal_flags(result, false, false);
    Ok(())
}
