//! Products and quotients: `mul`, `imul`, `div`, `idiv`.
//!
//! CF and OF of a product say that its upper half is more than the lower's sign (or zeroes); its other
//! flags are undefined and follow from the lower half here. A quotient's flags are all undefined and stay.

use iced_x86::{Instruction, Mnemonic};

use super::liveness::Wanted;
use super::{Found, Place, by_width, bytes_of, fail, goes_on, immediate, is_memory, register};
use crate::cpu::{Cpu, reg};
use crate::event::Exception;
use crate::flags::Flags;
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B2, Width};

/// An operation on the accumulator, its upper half, and one more operand.
trait Wide: 'static {
    fn apply<W: Width>(cpu: &mut Cpu, b: u64) -> Done;
}

struct Mul;
struct Imul;
struct Div;
struct Idiv;

impl Wide for Mul {
    #[inline(always)]
    fn apply<W: Width>(cpu: &mut Cpu, b: u64) -> Done {
        let product = u128::from(cpu.get::<W>(0)) * u128::from(b);
        let (low, high) = halves::<W>(product);
        set_pair::<W>(cpu, low, high);
        cpu.flags = Flags::shifted::<W>(low, high != 0, high != 0);
        Ok(())
    }
}

impl Wide for Imul {
    #[inline(always)]
    fn apply<W: Width>(cpu: &mut Cpu, b: u64) -> Done {
        let product = signed::<W>(cpu.get::<W>(0)) * signed::<W>(b);
        let (low, high) = halves::<W>(product.cast_unsigned());
        let lost = signed::<W>(low) != product;
        set_pair::<W>(cpu, low, high);
        cpu.flags = Flags::shifted::<W>(low, lost, lost);
        Ok(())
    }
}

impl Wide for Div {
    #[inline(always)]
    fn apply<W: Width>(cpu: &mut Cpu, b: u64) -> Done {
        let (low, high) = pair::<W>(cpu);
        // Also catches 0: nothing is below it. What follows cannot overflow.
        if high >= b {
            return fail(cpu, Exception::DIVIDE);
        }
        let (quotient, remainder) = if W::BITS < 64 {
            let a = high << (W::BITS & 63) | low;
            (a / b, a % b)
        } else if high == 0 {
            (low / b, low % b)
        } else {
            let (a, b) = (u128::from(high) << 64 | u128::from(low), u128::from(b));
            (halves::<W>(a / b).0, halves::<W>(a % b).0)
        };
        set_pair::<W>(cpu, quotient, remainder);
        Ok(())
    }
}

impl Wide for Idiv {
    #[inline(always)]
    fn apply<W: Width>(cpu: &mut Cpu, b: u64) -> Done {
        let (low, high) = pair::<W>(cpu);
        let b = W::sign_extend(b).cast_signed();
        let divided = if W::BITS < 64 {
            let a = W::sign_extend(high).cast_signed() << (W::BITS & 63) | low.cast_signed();
            narrow_divide(a, b)
                .filter(|(quotient, _)| W::sign_extend(quotient & W::MASK) == *quotient)
        } else if high == (low.cast_signed() >> 63).cast_unsigned() {
            narrow_divide(low.cast_signed(), b)
        } else {
            wide_divide(high, low, b)
        };
        let Some((quotient, remainder)) = divided else {
            return fail(cpu, Exception::DIVIDE);
        };
        set_pair::<W>(cpu, quotient & W::MASK, remainder & W::MASK);
        Ok(())
    }
}

#[inline(always)]
fn narrow_divide(a: i64, b: i64) -> Option<(u64, u64)> {
    Some((a.checked_div(b)?.cast_unsigned(), a.checked_rem(b)?.cast_unsigned()))
}

#[cold]
fn wide_divide(high: u64, low: u64, b: i64) -> Option<(u64, u64)> {
    let a = (u128::from(high) << 64 | u128::from(low)).cast_signed();
    let quotient = i64::try_from(a.checked_div(i128::from(b))?).ok()?;
    let remainder = i64::try_from(a.checked_rem(i128::from(b))?).ok()?;
    Some((quotient.cast_unsigned(), remainder.cast_unsigned()))
}

#[inline(always)]
fn signed<W: Width>(value: u64) -> i128 {
    i128::from(W::sign_extend(value).cast_signed())
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the operand's width")]
#[inline(always)]
fn halves<W: Width>(value: u128) -> (u64, u64) {
    (value as u64 & W::MASK, (value >> W::BITS) as u64 & W::MASK)
}

/// The accumulator and what stands above it: AH for bytes, else rDX.
#[inline(always)]
fn pair<W: Width>(cpu: &Cpu) -> (u64, u64) {
    let low = cpu.get::<W>(0);
    if W::BYTES == 1 { (low, cpu.get::<B1>(32)) } else { (low, cpu.get::<W>(2)) }
}

#[inline(always)]
fn set_pair<W: Width>(cpu: &mut Cpu, low: u64, high: u64) {
    if W::BYTES == 1 {
        cpu.set::<B2>(0, high << 8 | low);
    } else {
        cpu.set::<W>(0, low);
        cpu.set::<W>(2, high);
    }
}

pub(super) fn lower(i: &Instruction, op: &mut Op, _place: &Place) -> Option<Found> {
    let handler = match i.mnemonic() {
        Mnemonic::Mul => wide::<Mul>(i, op),
        Mnemonic::Imul if i.op_count() == 1 => wide::<Imul>(i, op),
        Mnemonic::Imul => imul(i, op),
        Mnemonic::Div => wide::<Div>(i, op),
        Mnemonic::Idiv => wide::<Idiv>(i, op),
        _ => return None,
    };
    goes_on(handler?)
}

fn wide<O: Wide>(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    if let Some(src) = register(i, 0) {
        op.src = src;
        return by_width!(bytes, wide_register::<O>);
    }
    by_width!(bytes, wide_memory::<O>)
}

/// With two operands (the first is a factor, too), or three, of which the last is immediate.
fn imul(i: &Instruction, op: &mut Op) -> Option<Handler> {
    let bytes = bytes_of(i, 0);
    op.dst = register(i, 0)?;
    if let Some(src) = register(i, 1) {
        op.src = src;
    } else if !is_memory(i, 1) {
        return None;
    }
    let in_memory = is_memory(i, 1);
    if i.op_count() == 3 {
        op.imm = immediate(i, 2)?;
        return if in_memory {
            by_width!(bytes, memory_times_immediate)
        } else {
            by_width!(bytes, register_times_immediate)
        };
    }
    if in_memory { by_width!(bytes, times_memory) } else { by_width!(bytes, times_register) }
}

fn wide_register<O: Wide, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    O::apply::<W>(cpu, b)
}

fn wide_memory<O: Wide, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.load::<W>(op)?;
    O::apply::<W>(cpu, b)
}

#[inline(always)]
fn multiply<W: Width>(cpu: &mut Cpu, op: &Op, a: u64, b: u64) -> Done {
    let (a, b) = (W::sign_extend(a).cast_signed(), W::sign_extend(b).cast_signed());
    let (product, wrapped) = a.overflowing_mul(b);
    let result = product.cast_unsigned() & W::MASK;
    let lost = wrapped || W::sign_extend(result) != product.cast_unsigned();
    cpu.set::<W>(op.dst, result);
    cpu.flags = Flags::shifted::<W>(result, lost, lost);
    Ok(())
}

fn times_register<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (cpu.get::<W>(op.dst), cpu.get::<W>(op.src));
    multiply::<W>(cpu, op, a, b)
}

fn times_memory<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.load::<W>(op)?;
    let a = cpu.get::<W>(op.dst);
    multiply::<W>(cpu, op, a, b)
}

/// The handler of a product of registers and immediates in one register, when nobody asks for its flags.
pub(super) fn quieter(i: &Instruction, wanted: Wanted) -> Option<Handler> {
    if wanted != Wanted::Nothing {
        return None;
    }
    match i.op_count() {
        3 => by_width!(bytes_of(i, 0), register_times_immediate_silently),
        _ => by_width!(bytes_of(i, 0), times_register_silently),
    }
}

fn times_register_silently<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let product = cpu.get::<W>(op.dst).wrapping_mul(cpu.get::<W>(op.src));
    cpu.set::<W>(op.dst, product & W::MASK);
    Ok(())
}

fn register_times_immediate_silently<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let product = cpu.get::<W>(op.src).wrapping_mul(op.imm);
    cpu.set::<W>(op.dst, product & W::MASK);
    Ok(())
}

fn register_times_immediate<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.get::<W>(op.src);
    multiply::<W>(cpu, op, a, op.imm & W::MASK)
}

fn memory_times_immediate<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let a = cpu.load::<W>(op)?;
    multiply::<W>(cpu, op, a, op.imm & W::MASK)
}

const _: () = assert!(reg::RAX == 0 && reg::RDX == 2, "slots of the accumulator's two halves");
