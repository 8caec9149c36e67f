//! The loop: trace after trace, and between two of them whatever else wants the processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::code_map::CodeMap;
use crate::cpu::{After, Cpu, NonMaskable, attend, slot};
use crate::event::{
    Access, DeviceAccess, Event, Exception, Misconfiguration, NestedFault, StaleUse,
};
use crate::flags;
use crate::nested::SecondStage;
use crate::op::Op;
use crate::surroundings::Surroundings;
use crate::system::Undelivered;
use crate::trace_cache::{Trace, TraceCache};

/// Traces between two looks at what other processors decoded.
const TRACES_PER_GLANCE: u32 = 8;

/// Such looks between two at the clock: 512 traces, some 20 us.
const GLANCES_PER_LOOK: u32 = 64;

/// How many of `ops` come before `op`, one of them.
fn count_before(ops: &[Op], op: &Op) -> u64 {
    let bytes = std::ptr::from_ref(op).addr() - ops.as_ptr().addr();
    (bytes / size_of::<Op>()) as u64
}

/// Carries out `trace`, whose records are `ops`. Fails with the address of the instruction that was not done.
#[inline(always)]
fn carry_out(cpu: &mut Cpu, ops: &[Op], trace: &Trace, own_frame: u32) -> Result<(), u64> {
    let retires = trace.retires;
    cpu.gpr[usize::from(slot::RIP)] = cpu.rip;
    cpu.own_frame = own_frame;
    // Counted beforehand: no instruction reads it, and the loop has one thing less to keep.
    cpu.retired = cpu.retired.wrapping_add(u64::from(retires));
    let mut rest = ops;
    loop {
        // Several places to call from: a processor guesses better where a call leads when it is not always the same one.
        macro_rules! one_more {
            () => {
                let [op, others @ ..] = rest else { return Ok(()) };
                if (op.run)(cpu, op).is_err() {
                    return Err(give_back(cpu, ops, op, retires));
                }
                rest = others;
            };
        }
        one_more!();
        one_more!();
        one_more!();
        one_more!();
    }
}

/// `op` and what follows it was not done: not retired either. The address of `op`.
#[cold]
#[inline(never)]
fn give_back(cpu: &mut Cpu, ops: &[Op], op: &Op, retires: u16) -> u64 {
    // Before it each record is one instruction: a pair comes last.
    let undone = u64::from(retires).wrapping_sub(count_before(ops, op));
    cpu.retired = cpu.retired.wrapping_sub(undone);
    cpu.gpr[usize::from(slot::RIP)].wrapping_add(u64::from(op.offset))
}

/// Why [`Processor::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The flag was up.
    Knocked,
    /// Nothing; run it again.
    Again,
    /// The guest sleeps until an interrupt. Run it again when there may be one.
    Halted,
    /// A port is written. Nothing to answer.
    PortWrite(DeviceAccess),
    /// A port is read: [`Processor::answer`] before running on.
    PortRead(DeviceAccess),
    /// A device's memory is read or written: answer before running on.
    Mmio(DeviceAccess),
    /// A string instruction reads or writes a port: answer before running on.
    StringPort(DeviceAccess),
    /// The nested tables refuse an access. Run on once they allow it.
    Nested(NestedFault),
    /// The nested tables are broken.
    Misconfigured(Misconfiguration),
    /// Page tables or instructions are where no memory is.
    NoMemory {
        /// The guest-physical address.
        gpa: u64,
        /// What was tried.
        access: Access,
        /// The instruction.
        rip: u64,
    },
    /// Three faults in a row.
    TripleFault,
    /// The checking mode caught a stale translation.
    Stale(StaleUse),
}

/// A processor and the code it has decoded.
pub struct Processor {
    /// Its state. Look and change only while it is not running.
    pub cpu: Cpu,
    cache: TraceCache,
    /// What a [`Stop`] asks for.
    asked: Option<DeviceAccess>,
}

impl Processor {
    /// As after power-on.
    #[must_use]
    pub fn new(
        surroundings: Box<dyn Surroundings>,
        second_stage: Box<dyn SecondStage>,
        code: Arc<CodeMap>,
        own: usize,
    ) -> Self {
        Self {
            cpu: Cpu::new(surroundings, second_stage, code, own),
            cache: TraceCache::new(),
            asked: None,
        }
    }

    /// From now on every use of a cached translation is compared with the tables.
    pub fn check_translations(&mut self) {
        self.cpu.checker = Some(Box::default());
        self.cpu.attend |= attend::CHECKED;
        self.cpu.flush_translations();
    }

    /// How many uses were compared.
    #[must_use]
    pub fn compared(&self) -> u64 {
        self.cpu.checker.as_ref().map_or(0, |checker| checker.compared)
    }

    /// Forgets every translation, and everything decoded: the nested tables have changed.
    pub fn flush(&mut self) {
        self.cpu.flush_translations();
        self.cpu.nested.flush();
        self.cpu.second_stage.forget();
        self.cache.clear();
    }

    /// Answers the device access that the last stop asked for. For a write, `value` is ignored.
    pub fn answer(&mut self, value: u64) {
        let Some(access) = self.asked.take() else { return };
        if let After::PortRead(_) = self.cpu.after {
            self.cpu.after = After::Nothing;
            match access.bytes {
                1 => self.cpu.set::<crate::width::B1>(0, value),
                2 => self.cpu.set::<crate::width::B2>(0, value),
                _ => self.cpu.set::<crate::width::B4>(0, value),
            }
            return;
        }
        let value = access.value.unwrap_or(value);
        self.cpu.replay.answer(DeviceAccess { value: Some(value), ..access });
        self.alone(true);
    }

    /// Whether an instruction is half done and waits to be done again.
    #[must_use]
    pub fn owes_completion(&self) -> bool {
        self.asked.is_some() || self.cpu.replay.is_pending()
    }

    /// INIT: as after power-on, but for what the outside gave it.
    pub fn init_reset(&mut self) {
        self.cpu.reset();
        self.alone(false);
        self.asked = None;
    }

    /// Start-up message: begins in real mode at this 4 KiB page.
    pub fn start_at(&mut self, page: u8) {
        let segment = crate::segment::Segment::real_code(u16::from(page) << 8);
        self.cpu.set_segment(crate::cpu::seg::CS, segment);
        self.cpu.rip = 0;
    }

    /// Runs until something is wanted, or `knock` is not 0. At least one instruction is done unless it is up
    /// from the start.
    pub fn run(&mut self, knock: &AtomicU8) -> Stop {
        if self.cpu.code.enter() {
            self.cpu.writes.flush();
        }
        let stop = self.run_inside(knock);
        self.cpu.code.leave();
        stop
    }

    fn run_inside(&mut self, knock: &AtomicU8) -> Stop {
        let mut glances_left = GLANCES_PER_LOOK;
        // What came while the processor was out.
        self.cpu.attend |= attend::INTERRUPT;
        loop {
            for _ in 0..TRACES_PER_GLANCE {
                // Relaxed: the signal of a knock orders nothing but itself; what it announces is read after leaving.
                if knock.load(Ordering::Relaxed) != 0 {
                    return Stop::Knocked;
                }
                let stop = if self.cpu.attend == 0 { self.step() } else { self.attend_and_step() };
                if let Some(stop) = stop {
                    return stop;
                }
            }
            if self.cpu.code.is_behind() {
                self.cpu.writes.flush();
                self.cpu.code.catch_up();
            }
            glances_left -= 1;
            if glances_left == 0 {
                glances_left = GLANCES_PER_LOOK;
                self.cpu.attend |= attend::INTERRUPT;
            }
        }
    }

    /// What wants attention, and then a trace.
    #[cold]
    #[inline(never)]
    fn attend_and_step(&mut self) -> Option<Stop> {
        if let Some(stop) = self.attend() {
            return Some(stop);
        }
        if self.cpu.attend & attend::ONE_BY_ONE == 0 { self.step() } else { self.step_one_by_one() }
    }

    /// One instruction, or a trace whose translations are all checked: nothing that was found before is used.
    #[cold]
    #[inline(never)]
    pub(crate) fn step_one_by_one(&mut self) -> Option<Stop> {
        let stepping = self.cpu.attend & attend::STEP != 0;
        let before = self.cpu.retired;
        let is_alone = self.cpu.attend & attend::ALONE != 0;
        let stop = match self.cache.find(&mut self.cpu, is_alone || stepping) {
            Ok(trace) => {
                let own_frame = if is_alone { u32::MAX } else { trace.frame };
                self.run_trace(&trace, own_frame)
            }
            Err(_) => self.interrupted(self.cpu.rip),
        };
        if stop.is_none() && stepping && self.cpu.retired != before {
            self.stepped();
        }
        stop
    }

    /// One instruction was done with TF set before it.
    #[cold]
    fn stepped(&mut self) {
        /// Single step, in DR6.
        const BS: u64 = 1 << 14;
        if self.cpu.attend & attend::NO_TRAP == 0 {
            self.cpu.dr[6] |= BS;
            self.cpu.attend |= attend::TRAP;
        }
    }

    /// One trace.
    #[inline(always)]
    fn step(&mut self) -> Option<Stop> {
        let Some(trace) = self.cache.follow(&self.cpu) else { return self.step_elsewhere() };
        let trace = *trace;
        match carry_out(&mut self.cpu, self.cache.ops_of(&trace), &trace, trace.frame) {
            Ok(()) => None,
            Err(rip) => self.interrupted(rip),
        }
    }

    /// One trace, where the last one did not lead lately.
    #[inline(never)]
    fn step_elsewhere(&mut self) -> Option<Stop> {
        let trace = match self.cache.recall(&self.cpu) {
            Some(trace) => trace,
            None => match self.cache.find(&mut self.cpu, false) {
                Ok(trace) => trace,
                Err(_) => return self.interrupted(self.cpu.rip),
            },
        };
        self.run_trace(&trace, trace.frame)
    }

    fn run_trace(&mut self, trace: &Trace, own_frame: u32) -> Option<Stop> {
        if let Err(rip) = carry_out(&mut self.cpu, self.cache.ops_of(trace), trace, own_frame) {
            return self.interrupted(rip);
        }
        // It was alone for this one instruction, if at all.
        if self.cpu.attend & attend::ALONE != 0 {
            self.alone(false);
            self.cpu.replay.retire();
        }
        None
    }

    /// From now on, or not any more: the next instruction runs alone.
    fn alone(&mut self, is_alone: bool) {
        if is_alone {
            self.cpu.attend |= attend::ALONE;
        } else {
            self.cpu.attend &= !attend::ALONE;
        }
    }

    /// An instruction at `rip` was not done.
    #[cold]
    #[inline(never)]
    fn interrupted(&mut self, rip: u64) -> Option<Stop> {
        let cpu = &mut self.cpu;
        cpu.rip = rip;
        cpu.replay.rewind();
        match std::mem::replace(&mut cpu.event, Event::None) {
            Event::None => None,
            Event::Interrupted => {
                // Whole elements are done: nothing is owed, and interrupts may come between them.
                self.alone(false);
                None
            }
            Event::Exception(exception) => {
                self.alone(false);
                self.cpu.replay.retire();
                self.except(exception)
            }
            Event::OwnCode => {
                self.alone(true);
                None
            }
            Event::Nested(fault) => Some(Stop::Nested(NestedFault { rip, ..fault })),
            Event::Misconfigured(broken) => Some(Stop::Misconfigured(broken)),
            Event::NoMemory { gpa, access } => Some(Stop::NoMemory { gpa, access, rip }),
            Event::Stale(stale) => Some(Stop::Stale(stale)),
            Event::Mmio(access) => {
                self.asked = Some(access);
                Some(Stop::Mmio(access))
            }
            Event::StringPort(access) => {
                self.asked = Some(access);
                Some(Stop::StringPort(access))
            }
        }
    }

    /// Delivers an exception; `Some` when that cannot go on.
    fn except(&mut self, exception: Exception) -> Option<Stop> {
        // Whatever is stored now, the trace is over.
        self.cpu.own_frame = u32::MAX;
        match self.cpu.deliver_exception(exception) {
            Ok(()) => None,
            Err(stop) => Some(self.undelivered(stop)),
        }
    }

    fn undelivered(&mut self, stop: Undelivered) -> Stop {
        let event = match stop {
            Undelivered::TripleFault => return Stop::TripleFault,
            // A stack or a table where a device is: no system can mean that, and its answer would have to be kept
            // until the delivery is tried again.
            Undelivered::Event(Event::Mmio(access)) => {
                let kind = if access.value.is_some() { Access::Write } else { Access::Read };
                Event::NoMemory { gpa: access.at, access: kind }
            }
            Undelivered::Event(event) => event,
        };
        self.cpu.event = event;
        let rip = self.cpu.rip;
        self.interrupted(rip).unwrap_or(Stop::Again)
    }

    /// Makes a non-maskable interrupt wait: it is taken as soon as none is being handled.
    pub fn raise_nmi(&mut self) {
        self.cpu.nmi.is_pending = true;
        self.cpu.attend |= attend::INTERRUPT;
    }

    /// What wants attention between two traces.
    #[cold]
    #[inline(never)]
    fn attend(&mut self) -> Option<Stop> {
        self.cpu.attend &= !attend::NO_TRAP;
        // The last trace is over: a store into its page is one like any other.
        self.cpu.own_frame = u32::MAX;
        if self.cpu.attend & attend::AFTER != 0
            && let Some(stop) = self.finish_instruction()
        {
            return Some(stop);
        }
        if self.cpu.attend & attend::ALONE != 0 {
            // Half an instruction is done: nothing comes between.
            return None;
        }
        let cpu = &mut self.cpu;
        if cpu.attend & attend::TRAP != 0 {
            match cpu.deliver_exception(Exception::plain(1)) {
                Ok(()) => cpu.attend &= !attend::TRAP,
                Err(stop) => return Some(self.undelivered(stop)),
            }
        }
        let cpu = &mut self.cpu;
        if cpu.attend & attend::SHADOW != 0 {
            // One more instruction (or trace: a little later is not wrong) comes first.
            cpu.attend &= !attend::SHADOW;
            return None;
        }
        if cpu.attend & attend::INTERRUPT != 0 {
            cpu.attend &= !attend::INTERRUPT;
            return self.interrupt();
        }
        None
    }

    /// What an instruction that is done still wants.
    fn finish_instruction(&mut self) -> Option<Stop> {
        let cpu = &mut self.cpu;
        match cpu.after {
            After::Nothing => {}
            After::Halt => {
                cpu.attend &= !attend::SHADOW;
                let wakes = cpu.surroundings.poll() && cpu.has(flags::IF)
                    || cpu.nmi.is_pending && !cpu.nmi.is_blocked
                    || cpu.attend & attend::TRAP != 0;
                if !wakes {
                    // Still halted when run again.
                    return Some(Stop::Halted);
                }
                cpu.after = After::Nothing;
                cpu.attend |= attend::INTERRUPT;
            }
            After::PortWrite(access) => {
                cpu.after = After::Nothing;
                cpu.attend &= !attend::AFTER;
                return Some(Stop::PortWrite(access));
            }
            After::PortRead(access) => {
                // Taken back by the answer: without one it is asked again.
                self.asked = Some(access);
                return Some(Stop::PortRead(access));
            }
        }
        cpu.attend &= !attend::AFTER;
        None
    }

    /// Takes an interrupt, if one waits and may be taken. With IF clear it is looked at again when IF is set: that
    /// ends a trace and raises the bit.
    fn interrupt(&mut self) -> Option<Stop> {
        /// The vector of the non-maskable interrupt.
        const NMI: u8 = 2;
        let cpu = &mut self.cpu;
        let waits = cpu.surroundings.poll();
        if cpu.injected.is_none() {
            if cpu.nmi.is_pending && !cpu.nmi.is_blocked {
                cpu.nmi = NonMaskable { is_pending: false, is_blocked: true };
                cpu.injected = Some(NMI);
            } else if waits && cpu.has(flags::IF) {
                cpu.injected = cpu.surroundings.acknowledge();
            }
        }
        let vector = cpu.injected?;
        cpu.attend |= attend::INTERRUPT;
        match cpu.deliver_interrupt(vector) {
            Ok(()) => {
                cpu.injected = None;
                None
            }
            // It still waits, and is delivered before anything else is done.
            Err(stop) => Some(self.undelivered(stop)),
        }
    }
}
