//! Decoded code, by where its bytes are.
//!
//! A trace is a run of instructions in one page that ends at the first one that may go elsewhere. It is found by frame,
//! offset in the page and [`Cpu::code_key`], so that every address and every address space shares it; in
//! front stands a small table by linear address, valid for one fetch epoch.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::cpu::{CodeSize, Cpu, seg, slot};
use crate::event::{Access, Event, Exception, Raised};
use crate::guest_memory::PAGE;
use crate::lower;
use crate::nested::NestedPage;
use crate::op::Op;
use crate::width::B1;

/// Instructions in a trace, at most: bounds how long a knock can stay unseen.
pub(crate) const LONGEST: usize = 32;
/// Records kept; then all are forgotten.
const RECORDS: usize = 512 << 10;
/// Entries of the table by linear address.
const RECENT: usize = 1 << 13;
/// Slots of the table by frame.
const TABLE: usize = 1 << 17;
/// The longest instruction there is.
const LONGEST_INSTRUCTION: usize = 15;

/// Where a trace's records are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    pub(crate) first: u32,
    pub(crate) count: u32,
    pub(crate) frame: u32,
    pub(crate) version: u32,
    /// Offset in the page, and the key.
    place: u32,
}

#[derive(Clone, Copy)]
struct Recent {
    rip: u64,
    context: u32,
    trace: u32,
}

const NOWHERE: Recent = Recent { rip: 0, context: u32::MAX, trace: 0 };

/// All traces of one processor.
pub(crate) struct TraceCache {
    pub(crate) ops: Vec<Op>,
    traces: Vec<Trace>,
    table: Box<[u32]>,
    recent: Box<[Recent; RECENT]>,
    /// The fetch epoch of the last look: when it wraps, `recent` is emptied.
    last_epoch: u32,
    /// Traces decoded so far.
    pub(crate) decoded: u64,
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the array's size")]
#[inline(always)]
fn recent_index(rip: u64) -> usize {
    (rip ^ rip >> 13) as usize & (RECENT - 1)
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the array's size")]
fn table_index(frame: u32, place: u32) -> usize {
    let mixed = (u64::from(frame) << 16 ^ u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize & (TABLE - 1)
}

impl TraceCache {
    pub(crate) fn new() -> Self {
        let recent = vec![NOWHERE; RECENT].into_boxed_slice();
        Self {
            ops: Vec::new(),
            traces: Vec::new(),
            table: vec![u32::MAX; TABLE].into_boxed_slice(),
            recent: recent.try_into().unwrap_or_else(|_| unreachable!("the length is the type's")),
            last_epoch: 0,
            decoded: 0,
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        if self.traces.is_empty() {
            return;
        }
        self.ops.clear();
        self.traces.clear();
        self.table.fill(u32::MAX);
        self.recent.fill(NOWHERE);
    }

    /// The trace at the processor's next instruction, if it was there lately and nothing changed.
    #[inline(always)]
    pub(crate) fn recall(&self, cpu: &Cpu) -> Option<Trace> {
        let recent = &self.recent[recent_index(cpu.rip)];
        if recent.rip != cpu.rip || recent.context != cpu.code_context() {
            return None;
        }
        let trace = self.traces[recent.trace as usize];
        (cpu.code.map.version(trace.frame) == trace.version).then_some(trace)
    }

    /// Finds it by its bytes, or decodes it. With `alone`, a trace of one instruction that is not kept.
    #[cold]
    #[inline(never)]
    pub(crate) fn find(&mut self, cpu: &mut Cpu, alone: bool) -> Result<Trace, Raised> {
        if cpu.fetch_epoch < self.last_epoch {
            self.recent.fill(NOWHERE);
        }
        self.last_epoch = cpu.fetch_epoch;
        self.forget_unkept();
        if self.ops.len() + 2 * LONGEST > RECORDS {
            self.clear();
        }
        let linear = self.linear(cpu);
        let page = cpu.fetch_page(linear)?;
        #[expect(clippy::cast_possible_truncation, reason = "an offset in a page")]
        let place = (linear % PAGE) as u32 | cpu.code_key() << 12;
        if !alone {
            let index = self.table[table_index(page.frame, place)];
            if let Some(trace) = self.traces.get(index as usize)
                && trace.frame == page.frame
                && trace.place == place
                && cpu.code.map.version(trace.frame) == trace.version
            {
                let trace = *trace;
                self.remember(cpu, index);
                return Ok(trace);
            }
        }
        let (version, is_new) = cpu.code.map.mark(page.frame);
        if is_new {
            // Own translations for stores do not know of the mark.
            cpu.writes.flush();
        }
        let keep = !alone && cpu.code.may_keep();
        let first = self.ops.len();
        let crossed = self.decode(cpu, page, linear, if alone { 1 } else { LONGEST })?;
        let count = self.ops.len() - first;
        self.decoded += 1;
        let number = |value: usize| u32::try_from(value).expect("fewer records than 32 bits count");
        let trace =
            Trace { first: number(first), count: number(count), frame: page.frame, version, place };
        // An instruction that ends in the next page depends on two frames: not kept.
        if keep && !crossed {
            let index = number(self.traces.len());
            self.traces.push(trace);
            self.table[table_index(page.frame, place)] = index;
            self.remember(cpu, index);
        }
        Ok(trace)
    }

    /// The last trace may not have been kept.
    fn forget_unkept(&mut self) {
        let kept = self.traces.last().map_or(0, |trace| (trace.first + trace.count) as usize);
        self.ops.truncate(kept);
    }

    fn remember(&mut self, cpu: &Cpu, trace: u32) {
        self.recent[recent_index(cpu.rip)] =
            Recent { rip: cpu.rip, context: cpu.code_context(), trace };
    }

    fn linear(&self, cpu: &Cpu) -> u64 {
        match cpu.code_size {
            CodeSize::Bits64 => cpu.rip,
            _ => cpu.segments[seg::CS].base.wrapping_add(cpu.rip) & 0xffff_ffff,
        }
    }

    /// Decodes from `linear` on, into `ops`; whether the (then only) instruction crossed into the next page.
    fn decode(
        &mut self,
        cpu: &mut Cpu,
        page: NestedPage,
        linear: u64,
        most: usize,
    ) -> Result<bool, Raised> {
        let bits = match cpu.code_size {
            CodeSize::Bits16 => 16,
            CodeSize::Bits32 => 32,
            CodeSize::Bits64 => 64,
        };
        let mut bytes = [0u8; LONGEST * LONGEST_INSTRUCTION];
        let there = usize::try_from(PAGE - linear % PAGE).expect("at most a page").min(bytes.len());
        for (offset, byte) in (0u64..).zip(&mut bytes[..there]) {
            *byte = page.host.at(linear % PAGE + offset).load::<B1>().to_le_bytes()[0];
        }
        let mut offset = 0;
        for done in 0..most {
            let ip = cpu.rip.wrapping_add(offset as u64);
            let mut decoder = Decoder::with_ip(
                bits,
                &bytes[offset..there],
                ip,
                DecoderOptions::FORCE_RESERVED_NOP,
            );
            let mut instruction = Instruction::default();
            decoder.decode_out(&mut instruction);
            let mut crossed = false;
            if instruction.is_invalid() && there - offset < LONGEST_INSTRUCTION {
                if done > 0 {
                    break;
                }
                let mut whole = [0u8; LONGEST_INSTRUCTION];
                let here = there - offset;
                whole[..here].copy_from_slice(&bytes[offset..there]);
                let next_page = cpu.fetch_page(linear.wrapping_add((offset + here) as u64))?;
                for (at, byte) in (0u64..).zip(&mut whole[here..]) {
                    *byte = next_page.host.at(at).load::<B1>().to_le_bytes()[0];
                }
                let mut decoder =
                    Decoder::with_ip(bits, &whole, ip, DecoderOptions::FORCE_RESERVED_NOP);
                decoder.decode_out(&mut instruction);
                crossed = true;
            }
            let place = lower::Place {
                offset,
                code_size: cpu.code_size,
                big_stack: cpu.segments[seg::SS].is_big(),
            };
            let lowered = lower::lower(&instruction, &place);
            self.ops.push(lowered.op);
            offset += usize::from(lowered.op.len);
            if lowered.ends {
                return Ok(crossed);
            }
            if crossed || offset >= there {
                self.ops.push(lower::fall_through(offset));
                return Ok(crossed);
            }
        }
        self.ops.push(lower::fall_through(offset));
        Ok(false)
    }
}

impl Cpu {
    /// The page to fetch instructions from.
    fn fetch_page(&mut self, linear: u64) -> Result<NestedPage, Raised> {
        if !self.is_canonical(linear) {
            return Err(self.protect());
        }
        let user = self.cpl == 3;
        if let Some(mut checker) = self.checker.take() {
            let found = checker.find(self, linear, Access::Execute, user);
            self.checker = Some(checker);
            return found?
                .map_err(|gpa| self.raise(Event::NoMemory { gpa, access: Access::Execute }));
        }
        let context = self.code_context();
        if let Some(page) = self.fetches.hit(linear, context) {
            return Ok(page);
        }
        let translated = self.walk(linear, Access::Execute, user)?;
        let page = self.nested_page(translated.gpa, Access::Execute, linear, false)?;
        self.fetches.fill(linear, context, page);
        if let Some((first, last)) = translated.large {
            let (low, high) = self.large.unwrap_or((first, last));
            self.large = Some((low.min(first), high.max(last)));
        }
        Ok(page)
    }
}

/// What an instruction that is none does.
pub(crate) fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<(), Raised> {
    Err(cpu.throw(Exception::UNDEFINED))
}

const _: () = assert!(slot::RIP < 32);
