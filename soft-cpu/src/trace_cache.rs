//! Decoded code, by where its bytes are.
//!
//! A trace is a run of instructions in one page that ends at the first one that may go elsewhere. It is found by frame,
//! offset in the page and [`Cpu::code_key`], so that every address and every address space shares it. That takes a walk, so
//! two shorter ways stand in front, both valid for one [`Cpu::code_context`]: the links of the trace that ran last, which
//! are in the cache because it ran, and a small table by linear address.

use iced_x86::{Decoder, DecoderOptions, Instruction};

use crate::code_map::Marked;
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
const RECENT: usize = 1 << 12;
/// Slots of the table by frame.
const TABLE: usize = 1 << 17;
/// The longest instruction there is.
const LONGEST_INSTRUCTION: usize = 15;

/// A trace: where its records are, and what must still hold for them to be used. Everything that running it needs, so
/// that whoever finds one touches no other memory before its records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    /// The address that leads to it,
    rip: u64,
    /// in this context.
    context: u32,
    /// Of the frame, when it was decoded.
    version: u32,
    pub(crate) frame: u32,
    pub(crate) first: u32,
    /// Records.
    pub(crate) count: u16,
    /// Instructions.
    pub(crate) retires: u16,
    /// Its number: 0 for one that is not kept.
    number: u32,
}

const NOWHERE: Trace = Trace {
    rip: 0,
    context: u32::MAX,
    version: 0,
    frame: 0,
    first: 0,
    count: 0,
    retires: 0,
    number: 0,
};

/// Where a trace led lately. One cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Links([Trace; 2]);

const _: () = assert!(size_of::<Links>() == 64, "one cache line");

/// By what a trace is found: its bytes.
#[derive(Clone, Copy)]
struct Kept {
    trace: Trace,
    /// Offset in the page, and the key.
    place: u32,
}

/// All traces of one processor.
pub(crate) struct TraceCache {
    ops: Vec<Op>,
    /// Number 0 is nobody: from there lead the links of what is not kept.
    kept: Vec<Kept>,
    links: Vec<Links>,
    /// The trace that ran last.
    last: u32,
    table: Box<[u32]>,
    recent: Box<[Trace; RECENT]>,
    /// The fetch epoch of the last look: when it wraps, `recent` is emptied.
    last_epoch: u32,
}

#[expect(clippy::cast_possible_truncation, reason = "masked to the array's size")]
#[inline(always)]
fn recent_index(rip: u64) -> usize {
    (rip ^ rip >> 13) as usize & (RECENT - 1)
}

fn table_index(frame: u32, place: u32) -> usize {
    let mixed = (u64::from(frame) << 16 ^ u64::from(place)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as usize & (TABLE - 1)
}

impl Trace {
    /// Whether this is what the processor must run now.
    #[inline(always)]
    fn leads(&self, cpu: &Cpu) -> bool {
        self.rip == cpu.rip
            && self.context == cpu.code_context()
            && cpu.code.map.version(self.frame) == self.version
    }
}

impl TraceCache {
    pub(crate) fn new() -> Self {
        let recent = vec![NOWHERE; RECENT].into_boxed_slice();
        Self {
            ops: Vec::new(),
            kept: vec![Kept { trace: NOWHERE, place: u32::MAX }],
            links: vec![Links([NOWHERE; 2])],
            last: 0,
            table: vec![u32::MAX; TABLE].into_boxed_slice(),
            recent: recent.try_into().unwrap_or_else(|_| unreachable!("the length is the type's")),
            last_epoch: 0,
        }
    }

    /// Its records.
    #[inline(always)]
    pub(crate) fn ops_of(&self, trace: &Trace) -> &[Op] {
        let first = trace.first as usize;
        &self.ops[first..first + usize::from(trace.count)]
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.last = 0;
        self.links[0] = Links([NOWHERE; 2]);
        if self.kept.len() == 1 {
            return;
        }
        self.ops.clear();
        self.kept.truncate(1);
        self.links.truncate(1);
        self.table.fill(u32::MAX);
        self.recent.fill(NOWHERE);
    }

    /// The trace at the processor's next instruction, if the last one led there lately and nothing changed.
    #[inline(always)]
    pub(crate) fn follow(&mut self, cpu: &Cpu) -> Option<&Trace> {
        let Links([first, second]) = &self.links[self.last as usize];
        let trace = if first.leads(cpu) {
            first
        } else if second.leads(cpu) {
            second
        } else {
            return None;
        };
        self.last = trace.number;
        Some(trace)
    }

    /// The same, whoever led there.
    pub(crate) fn recall(&mut self, cpu: &Cpu) -> Option<Trace> {
        let recent = self.recent[recent_index(cpu.rip)];
        if !recent.leads(cpu) {
            return None;
        }
        self.link(recent);
        Some(recent)
    }

    /// `to` runs now: the last trace leads there.
    fn link(&mut self, to: Trace) {
        let Links([first, second]) = &mut self.links[self.last as usize];
        // The newest comes first; one of another context is worth nothing.
        if first.context == to.context {
            *second = *first;
        }
        *first = to;
        self.last = to.number;
    }

    /// Finds it by its bytes, or decodes it. With `alone`, a trace of one instruction that is not kept.
    #[cold]
    #[inline(never)]
    pub(crate) fn find(&mut self, cpu: &mut Cpu, alone: bool) -> Result<Trace, Raised> {
        if cpu.fetch_epoch < self.last_epoch {
            // Contexts begin anew: nothing may remember the old ones.
            self.recent.fill(NOWHERE);
            self.links.fill(Links([NOWHERE; 2]));
        }
        self.last_epoch = cpu.fetch_epoch;
        self.forget_unkept();
        if self.ops.len() + 2 * LONGEST > RECORDS {
            self.clear();
        }
        let linear = self.linear(cpu);
        let page = cpu.fetch_page(linear)?;
        let place = (linear % PAGE) as u32 | cpu.code_key() << 12;
        if !alone {
            let number = self.table[table_index(page.frame, place)];
            if let Some(kept) = self.kept.get(number as usize)
                && kept.trace.frame == page.frame
                && kept.place == place
                && cpu.code.map.version(page.frame) == kept.trace.version
            {
                let trace = Trace { rip: cpu.rip, context: cpu.code_context(), ..kept.trace };
                self.remember(trace);
                return Ok(trace);
            }
        }
        let (version, marked) = cpu.code.map.mark(page.frame);
        if marked != Marked::Before || cpu.code.is_behind() {
            // Own translations for stores do not know of the mark.
            cpu.writes.flush();
            cpu.code.catch_up();
        }
        let keep = !alone && marked != Marked::Meanwhile && cpu.code.may_keep();
        let first = self.ops.len();
        let most = if alone { 1 } else { LONGEST };
        let (retires, crossed) = self.decode(cpu, page, linear, most)?;
        let count = self.ops.len() - first;
        let number = |value: usize| u32::try_from(value).expect("fewer records than 32 bits count");
        let few =
            |value: usize| u16::try_from(value).expect("at most the longest and a record more");
        let mut trace = Trace {
            rip: cpu.rip,
            context: cpu.code_context(),
            version,
            frame: page.frame,
            first: number(first),
            count: few(count),
            retires: few(retires),
            number: 0,
        };
        // An instruction that ends in the next page depends on two frames: not kept.
        if keep && !crossed {
            trace.number = number(self.kept.len());
            self.kept.push(Kept { trace, place });
            self.links.push(Links([NOWHERE; 2]));
            self.table[table_index(page.frame, place)] = trace.number;
            self.remember(trace);
        } else {
            self.last = 0;
        }
        Ok(trace)
    }

    /// The last trace may not have been kept.
    fn forget_unkept(&mut self) {
        let kept =
            self.kept.last().map_or(0, |kept| kept.trace.first + u32::from(kept.trace.count));
        self.ops.truncate(kept as usize);
    }

    fn remember(&mut self, trace: Trace) {
        self.recent[recent_index(trace.rip)] = trace;
        self.link(trace);
    }

    fn linear(&self, cpu: &Cpu) -> u64 {
        match cpu.code_size {
            CodeSize::Bits64 => cpu.rip,
            _ => cpu.segments[seg::CS].base.wrapping_add(cpu.rip) & 0xffff_ffff,
        }
    }

    /// Decodes from `linear` on, into `ops`: how many instructions, and whether the (then only) one crossed into the
    /// next page.
    fn decode(
        &mut self,
        cpu: &mut Cpu,
        page: NestedPage,
        linear: u64,
        most: usize,
    ) -> Result<(usize, bool), Raised> {
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
        let first = self.ops.len();
        let mut instructions = [Instruction::default(); LONGEST];
        let (mut offset, mut done, mut crossed, mut ends) = (0, 0, false, false);
        while done < most && !ends && !crossed && offset < there {
            let ip = cpu.rip.wrapping_add(offset as u64);
            let mut decoder = Decoder::with_ip(
                bits,
                &bytes[offset..there],
                ip,
                DecoderOptions::FORCE_RESERVED_NOP,
            );
            let instruction = &mut instructions[done];
            decoder.decode_out(instruction);
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
                decoder.decode_out(instruction);
                crossed = true;
            }
            let place = lower::Place {
                offset,
                code_size: cpu.code_size,
                big_stack: cpu.segments[seg::SS].is_big(),
            };
            let lowered = lower::lower(instruction, &place);
            self.ops.push(lowered.op);
            offset += usize::from(lowered.op.len);
            done += 1;
            ends = lowered.ends;
        }
        if !ends {
            self.ops.push(lower::fall_through(offset));
        }
        lower::refine(&mut self.ops, first, &instructions[..done]);
        Ok((done, crossed))
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
        self.note_large(&translated);
        Ok(page)
    }
}

/// What an instruction that is none does.
pub(crate) fn undefined(cpu: &mut Cpu, _op: &Op) -> Result<(), Raised> {
    Err(cpu.throw(Exception::UNDEFINED))
}

const _: () = assert!(slot::RIP < 32);
