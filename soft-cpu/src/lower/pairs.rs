//! A comparison and the branch on it, as one record.
//!
//! Only the last two instructions of a trace become one, and only when the first has no operand in memory: then neither can
//! fault, so nothing outside can tell that there is no boundary between them. What runs one instruction at a time (a
//! single step) decodes one at a time.

use iced_x86::{ConditionCode, Instruction, Mnemonic};

use super::arithmetic::{And, Binary, Cmp, Dec, Inc, Sub, Test, Unary};
use super::control::{Condition, by_condition, go};
use super::{bytes_of, immediate, register};
use crate::cpu::Cpu;
use crate::op::{Done, Handler, Op};
use crate::width::{B1, B4, B8, Width};

/// Makes one record of the last two of `ops` from `first` on, if they are such a pair.
pub(super) fn join_last(ops: &mut Vec<Op>, first: usize, instructions: &[Instruction]) {
    let [.., comparison, branch] = instructions else { return };
    if !branch.is_jcc_short_or_near() || ops.len() - first != instructions.len() {
        return;
    }
    let [.., compares, branches] = ops[first..] else { return };
    // The target takes the immediate operand's place.
    let Ok(disp) = i32::try_from(compares.imm.cast_signed()) else { return };
    let Some(run) = handler(comparison, branch.condition_code()) else { return };
    ops.truncate(ops.len() - 2);
    ops.push(Op {
        run,
        imm: branches.imm,
        disp,
        cut: branches.cut,
        len: compares.len + branches.len,
        ..compares
    });
}

fn handler(i: &Instruction, condition: ConditionCode) -> Option<Handler> {
    register(i, 0)?;
    match i.mnemonic() {
        Mnemonic::Cmp => compared::<Cmp>(i, condition),
        Mnemonic::Test => compared::<Test>(i, condition),
        Mnemonic::Sub => compared::<Sub>(i, condition),
        Mnemonic::And => compared::<And>(i, condition),
        Mnemonic::Inc => counted::<Inc>(i, condition),
        Mnemonic::Dec => counted::<Dec>(i, condition),
        _ => None,
    }
}

fn compared<O: Binary>(i: &Instruction, condition: ConditionCode) -> Option<Handler> {
    let is_immediate = immediate(i, 1).is_some();
    if !is_immediate {
        register(i, 1)?;
    }
    match (bytes_of(i, 0), is_immediate) {
        (1, false) => by_condition!(condition, registers, O, B1),
        (4, false) => by_condition!(condition, registers, O, B4),
        (8, false) => by_condition!(condition, registers, O, B8),
        (1, true) => by_condition!(condition, with_immediate, O, B1),
        (4, true) => by_condition!(condition, with_immediate, O, B4),
        (8, true) => by_condition!(condition, with_immediate, O, B8),
        _ => None,
    }
}

fn counted<O: Unary>(i: &Instruction, condition: ConditionCode) -> Option<Handler> {
    match bytes_of(i, 0) {
        4 => by_condition!(condition, counter, O, B4),
        8 => by_condition!(condition, counter, O, B8),
        _ => None,
    }
}

#[inline(always)]
fn both<C: Condition, O: Binary, W: Width>(cpu: &mut Cpu, op: &Op, b: u64) -> Done {
    let a = cpu.get::<W>(op.dst);
    let (result, flags) = O::apply::<W>(cpu.flags, a, b);
    cpu.flags = flags;
    if O::WRITES {
        cpu.set::<W>(op.dst, result);
    }
    let holds = if O::SUBTRACTS { C::compares::<W>(a, b, flags) } else { C::holds(flags) };
    go(cpu, op, if holds { op.imm } else { op.next() });
    Ok(())
}

fn registers<C: Condition, O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = cpu.get::<W>(op.src);
    both::<C, O, W>(cpu, op, b)
}

fn with_immediate<C: Condition, O: Binary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = i64::from(op.disp).cast_unsigned() & W::MASK;
    both::<C, O, W>(cpu, op, b)
}

fn counter<C: Condition, O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (result, flags) = O::apply::<W>(cpu.flags, cpu.get::<W>(op.dst));
    cpu.flags = flags;
    cpu.set::<W>(op.dst, result);
    go(cpu, op, if C::holds(flags) { op.imm } else { op.next() });
    Ok(())
}
