//! Strings: `movs`, `stos`, `lods`, `scas`, `cmps`, with and without repetition.
//!
//! # How a repetition is done
//!
//! Page by page: one translation, then one repeated instruction of the host's, or a loop. What pages cannot do (an
//! element across two of them, a device, code) goes element by element. After each piece the registers say
//! how far it got, so a fault leaves them exact, and after some 4 KiB the handler ends with
//! [`Event::Interrupted`]: the loop looks at interrupts and knocks, and comes back.
//!
//! # Overlap
//!
//! The host copies bytes upwards, the guest elements. The two differ only when an element's own first bytes land on
//! its last: when the destination is less than an element above the source. That is decided by host addresses,
//! because two guest pages may be the same memory.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Found, Place, by_width, goes_on, segment_slot};
use crate::access::room;
use crate::cpu::{Cpu, reg};
use crate::event::{Access, Event, Raised};
use crate::flags::{self, DF};
use crate::guest_memory::PAGE;
use crate::op::{Done, Op};
use crate::width::Width;

/// Bytes that one call moves, about.
const BULK: u64 = 4096;
/// Elements that one call looks at one by one.
const ELEMENTS: u32 = 512;
/// What a piece costs at least, in elements: one that could not be done in its page is slow.
const SLOW: u64 = 8;

pub(super) fn lower(i: &Instruction, op: &mut Op, place: &Place) -> Option<Found> {
    let repeated = i.has_rep_prefix() || i.has_repne_prefix();
    let (bytes, family) = match i.mnemonic() {
        // Two of them share their names with SSE2.
        Mnemonic::Movsd | Mnemonic::Cmpsd if !i.is_string_instruction() => return None,
        Mnemonic::Movsb => (1, Family::Movs),
        Mnemonic::Movsw => (2, Family::Movs),
        Mnemonic::Movsd => (4, Family::Movs),
        Mnemonic::Movsq => (8, Family::Movs),
        Mnemonic::Stosb => (1, Family::Stos),
        Mnemonic::Stosw => (2, Family::Stos),
        Mnemonic::Stosd => (4, Family::Stos),
        Mnemonic::Stosq => (8, Family::Stos),
        Mnemonic::Lodsb => (1, Family::Lods),
        Mnemonic::Lodsw => (2, Family::Lods),
        Mnemonic::Lodsd => (4, Family::Lods),
        Mnemonic::Lodsq => (8, Family::Lods),
        Mnemonic::Scasb => (1, Family::Scas),
        Mnemonic::Scasw => (2, Family::Scas),
        Mnemonic::Scasd => (4, Family::Scas),
        Mnemonic::Scasq => (8, Family::Scas),
        Mnemonic::Cmpsb => (1, Family::Cmps),
        Mnemonic::Cmpsw => (2, Family::Cmps),
        Mnemonic::Cmpsd => (4, Family::Cmps),
        Mnemonic::Cmpsq => (8, Family::Cmps),
        _ => return None,
    };
    let handler = match (family, repeated) {
        (Family::Movs, false) => by_width!(bytes, movs),
        (Family::Movs, true) => by_width!(bytes, repeat_movs),
        (Family::Stos, false) => by_width!(bytes, stos),
        (Family::Stos, true) => by_width!(bytes, repeat_stos),
        (Family::Lods, false) => by_width!(bytes, lods),
        (Family::Lods, true) => by_width!(bytes, repeat_lods),
        (Family::Scas, false) => by_width!(bytes, scas),
        (Family::Scas, true) => by_width!(bytes, repeat_scas),
        (Family::Cmps, false) => by_width!(bytes, cmps),
        (Family::Cmps, true) => by_width!(bytes, repeat_cmps),
    };
    fill_strings(i, op, place)?;
    // What `scas` and `cmps` go on while: ZF set (`repe`) or clear (`repne`).
    op.extra = u16::from(i.has_rep_prefix());
    goes_on(handler?)
}

#[derive(Clone, Copy)]
enum Family {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
}

/// Fills in where strings are: `segment` for the source, `src` for the destination, `cut` for both.
pub(super) fn fill_strings(i: &Instruction, op: &mut Op, place: &Place) -> Option<()> {
    let mut cut = None;
    for kind in i.op_kinds() {
        match kind {
            OpKind::MemorySegSI | OpKind::MemoryESDI => cut = Some(48),
            OpKind::MemorySegESI | OpKind::MemoryESEDI => cut = Some(32),
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => cut = Some(0),
            _ => {}
        }
    }
    op.cut = cut?;
    op.segment = segment_slot(i.memory_segment(), place);
    op.src = segment_slot(Register::ES, place);
    Some(())
}

// ---- where, and how far ----------------------------------------------------------------------

/// What of a register counts in an address.
#[inline(always)]
fn mask(op: &Op) -> u64 {
    u64::MAX >> (op.cut & 63)
}

/// Adds to what counts of a register: 32 bits clear the upper half, 16 leave the rest.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, register: usize, by: u64) {
    let whole = cpu.gpr[register];
    let mask = mask(op);
    let kept = if op.cut == 48 { whole & !mask } else { 0 };
    cpu.gpr[register] = kept | whole.wrapping_add(by) & mask;
}

/// The step from one element to the next.
#[inline(always)]
pub(super) fn step<W: Width>(cpu: &Cpu) -> u64 {
    let bytes = W::BYTES as u64;
    if cpu.has(DF) { bytes.wrapping_neg() } else { bytes }
}

/// The address of the source.
#[inline(always)]
pub(super) fn source(cpu: &Cpu, op: &Op) -> u64 {
    cpu.based(op, cpu.gpr[reg::RSI] & mask(op))
}

/// The address of the destination.
#[inline(always)]
pub(super) fn destination(cpu: &Cpu, op: &Op) -> u64 {
    let base = cpu.gpr[usize::from(op.src)];
    base.wrapping_add(cpu.gpr[reg::RDI] & mask(op))
}

#[inline(always)]
pub(super) fn advance_source<W: Width>(cpu: &mut Cpu, op: &Op, elements: u64) {
    let by = step::<W>(cpu).wrapping_mul(elements);
    advance(cpu, op, reg::RSI, by);
}

#[inline(always)]
pub(super) fn advance_destination<W: Width>(cpu: &mut Cpu, op: &Op, elements: u64) {
    let by = step::<W>(cpu).wrapping_mul(elements);
    advance(cpu, op, reg::RDI, by);
}

/// How many are left.
#[inline(always)]
pub(super) fn left(cpu: &Cpu, op: &Op) -> u64 {
    cpu.gpr[reg::RCX] & mask(op)
}

#[inline(always)]
pub(super) fn count_down(cpu: &mut Cpu, op: &Op, elements: u64) {
    advance(cpu, op, reg::RCX, elements.wrapping_neg());
}

/// Whole elements from `address` on in its page, before the offset in `register` wraps: 0 when the first crosses the
/// page's end, or may not lie where it does.
#[inline(always)]
fn whole_elements<W: Width>(cpu: &Cpu, op: &Op, register: usize, address: u64) -> u64 {
    let bytes = W::BYTES as u64;
    if !address.is_multiple_of(bytes) && cpu.is_strict() {
        return 0;
    }
    let offset = cpu.gpr[register] & mask(op);
    let before_wrap = (mask(op) - offset).saturating_add(1);
    let above = room(address).min(before_wrap) / bytes;
    if cpu.has(DF) && above > 0 {
        return (address % PAGE).min(offset) / bytes + 1;
    }
    above
}

/// Stops between two elements: the registers say where to go on.
#[cold]
pub(super) fn pause(cpu: &mut Cpu) -> Done {
    // Answers that the elements so far have used.
    cpu.replay.retire();
    Err(cpu.raise(Event::Interrupted))
}

/// After an element that is done: whether a device had a part in it, and the rest should wait until interrupts and knocks have
/// been looked at.
#[inline(always)]
fn retire(cpu: &mut Cpu) -> bool {
    let asked = cpu.replay.is_pending();
    if asked {
        cpu.replay.retire();
    }
    asked
}

// ---- elements --------------------------------------------------------------------------------

#[inline(always)]
fn move_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (from, to) = (source(cpu, op), destination(cpu, op));
    let value = match cpu.reads.hit::<W>(from) {
        Some(host) => host.load::<W>(),
        None => {
            // A device must not be read before it is certain that the element can be written. (None has an
            // element that crosses a page.)
            let is_whole = room(from) >= W::BYTES as u64;
            if is_whole && cpu.page_for(from, op.segment, Access::Read)?.is_none() {
                cpu.open::<W>(to, op.src)?;
            }
            cpu.load_at::<W>(from, op.segment)?
        }
    };
    cpu.store_at::<W>(to, op.src, value)?;
    advance_source::<W>(cpu, op, 1);
    advance_destination::<W>(cpu, op, 1);
    Ok(())
}

#[inline(always)]
fn store_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let to = destination(cpu, op);
    let value = cpu.get::<W>(0);
    cpu.store_at::<W>(to, op.src, value)?;
    advance_destination::<W>(cpu, op, 1);
    Ok(())
}

#[inline(always)]
fn load_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let from = source(cpu, op);
    let value = cpu.load_at::<W>(from, op.segment)?;
    cpu.set::<W>(0, value);
    advance_source::<W>(cpu, op, 1);
    Ok(())
}

#[inline(always)]
fn scan_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let at = destination(cpu, op);
    let value = cpu.load_at::<W>(at, op.src)?;
    cpu.flags = flags::subtract::<W>(cpu.get::<W>(0), value, false).1;
    advance_destination::<W>(cpu, op, 1);
    Ok(())
}

/// Whether the first operand of `cmps` is touched first: it matters when both fault. The manuals leave it open; AMD's
/// processors do so in `repe cmpsb` only.
#[inline(always)]
fn is_first_first<W: Width>(op: &Op) -> bool {
    W::BYTES == 1 && op.extra != 0
}

#[inline(always)]
fn compare_element<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    let (first, second) = (source(cpu, op), destination(cpu, op));
    let (a, b) = if is_first_first::<W>(op) {
        let a = cpu.load_at::<W>(first, op.segment)?;
        (a, cpu.load_at::<W>(second, op.src)?)
    } else {
        let b = cpu.load_at::<W>(second, op.src)?;
        (cpu.load_at::<W>(first, op.segment)?, b)
    };
    cpu.flags = flags::subtract::<W>(a, b, false).1;
    advance_source::<W>(cpu, op, 1);
    advance_destination::<W>(cpu, op, 1);
    Ok(())
}

fn movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    move_element::<W>(cpu, op)
}

fn stos<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    store_element::<W>(cpu, op)
}

fn lods<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    load_element::<W>(cpu, op)
}

fn scas<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    scan_element::<W>(cpu, op)
}

fn cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    compare_element::<W>(cpu, op)
}

// ---- repetitions -----------------------------------------------------------------------------

/// Element after element.
#[inline(always)]
pub(super) fn repeat(cpu: &mut Cpu, op: &Op, element: impl Fn(&mut Cpu, &Op) -> Done) -> Done {
    for _ in 0..ELEMENTS {
        if left(cpu, op) == 0 {
            return Ok(());
        }
        element(cpu, op)?;
        count_down(cpu, op, 1);
        if retire(cpu) {
            break;
        }
    }
    if left(cpu, op) == 0 { Ok(()) } else { pause(cpu) }
}

fn repeat_lods<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat(cpu, op, load_element::<W>)
}

/// Piece after piece: `piece` does at least one element and at most so many as it is told, and says how many. With
/// `conditional`, only while ZF is as the prefix wants it.
#[inline(always)]
fn repeat_pieces<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    conditional: bool,
    piece: impl Fn(&mut Cpu, &Op, u64) -> Result<u64, Raised>,
) -> Done {
    let mut budget = BULK / W::BYTES as u64;
    loop {
        let count = left(cpu, op);
        if count == 0 {
            return Ok(());
        }
        let done = piece(cpu, op, count.min(budget))?;
        count_down(cpu, op, done);
        budget = budget.saturating_sub(done.max(SLOW));
        if count == done || conditional && cpu.flags.zero() != (op.extra != 0) {
            return Ok(());
        }
        if budget == 0 || retire(cpu) {
            return pause(cpu);
        }
    }
}

fn repeat_movs<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat_pieces::<W>(cpu, op, false, |cpu, op, most| {
        let (from, to) = (source(cpu, op), destination(cpu, op));
        let elements = most
            .min(whole_elements::<W>(cpu, op, reg::RSI, from))
            .min(whole_elements::<W>(cpu, op, reg::RDI, to));
        if elements > 1
            && let Some(read) = cpu.page_for(from, op.segment, Access::Read)?
            && let Some(write) = cpu.page_for(to, op.src, Access::Write)?
        {
            let above = write.minus(read);
            let apart = W::BYTES == 1 || above == 0 || above >= W::BYTES as u64;
            if apart && !cpu.has(DF) {
                write.copy_from(read, elements * W::BYTES as u64);
            } else {
                let step = step::<W>(cpu);
                for index in 0..elements {
                    let by = step.wrapping_mul(index);
                    write.moved(by).store::<W>(read.moved(by).load::<W>());
                }
            }
            advance_source::<W>(cpu, op, elements);
            advance_destination::<W>(cpu, op, elements);
            return Ok(elements);
        }
        move_element::<W>(cpu, op)?;
        Ok(1)
    })
}

fn repeat_stos<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat_pieces::<W>(cpu, op, false, |cpu, op, most| {
        let to = destination(cpu, op);
        let elements = most.min(whole_elements::<W>(cpu, op, reg::RDI, to));
        if elements > 1
            && let Some(write) = cpu.page_for(to, op.src, Access::Write)?
        {
            // Downwards, too: nobody reads in between.
            let down = if cpu.has(DF) { step::<W>(cpu).wrapping_mul(elements - 1) } else { 0 };
            write.moved(down).fill::<W>(cpu.get::<W>(0), elements);
            advance_destination::<W>(cpu, op, elements);
            return Ok(elements);
        }
        store_element::<W>(cpu, op)?;
        Ok(1)
    })
}

/// Compares elements of pages that are at hand, while ZF is as the prefix wants it: `pair` reads both of those that
/// are so many bytes from the first. Says how many were compared, and leaves the flags of the last.
#[inline(always)]
fn compare_in_pages<W: Width>(
    cpu: &mut Cpu,
    op: &Op,
    elements: u64,
    pair: impl Fn(u64) -> (u64, u64),
) -> u64 {
    let (wanted, step) = (op.extra != 0, step::<W>(cpu));
    let (mut done, mut by) = (0, 0u64);
    loop {
        let (a, b) = pair(by);
        done += 1;
        by = by.wrapping_add(step);
        if (a == b) != wanted || done == elements {
            cpu.flags = flags::subtract::<W>(a, b, false).1;
            return done;
        }
    }
}

fn repeat_scas<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat_pieces::<W>(cpu, op, true, |cpu, op, most| {
        let at = destination(cpu, op);
        let elements = most.min(whole_elements::<W>(cpu, op, reg::RDI, at));
        if elements > 0
            && let Some(host) = cpu.page_for(at, op.src, Access::Read)?
        {
            let wanted = cpu.get::<W>(0);
            let done =
                compare_in_pages::<W>(cpu, op, elements, |by| (wanted, host.moved(by).load::<W>()));
            advance_destination::<W>(cpu, op, done);
            return Ok(done);
        }
        scan_element::<W>(cpu, op)?;
        Ok(1)
    })
}

fn repeat_cmps<W: Width>(cpu: &mut Cpu, op: &Op) -> Done {
    repeat_pieces::<W>(cpu, op, true, |cpu, op, most| {
        let (first, second) = (source(cpu, op), destination(cpu, op));
        let elements = most
            .min(whole_elements::<W>(cpu, op, reg::RSI, first))
            .min(whole_elements::<W>(cpu, op, reg::RDI, second));
        if !is_first_first::<W>(op) {
            cpu.page_for(second, op.src, Access::Read)?;
        }
        if elements > 0
            && let Some(a) = cpu.page_for(first, op.segment, Access::Read)?
            && let Some(b) = cpu.page_for(second, op.src, Access::Read)?
        {
            let done = compare_in_pages::<W>(cpu, op, elements, |by| {
                (a.moved(by).load::<W>(), b.moved(by).load::<W>())
            });
            advance_source::<W>(cpu, op, done);
            advance_destination::<W>(cpu, op, done);
            return Ok(done);
        }
        compare_element::<W>(cpu, op)?;
        Ok(1)
    })
}
