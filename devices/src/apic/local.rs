//! One processor's local APIC: which interrupt is next, and what its registers say.
//!
//! ```text
//!   accept ──▶ requested (IRR) ── acknowledge ──▶ in service (ISR) ── EOI ──▶ done
//!                    │                                   │
//!                    └── deliverable if its class (vector / 16) is above that of
//!                        the processor's priority = max(task priority, in service)
//! ```
//!
//! What is deliverable is worked out when something changes, not when somebody asks: an
//! engine asks far more often. SDM, APIC, "Handling Interrupts" and "Interrupt, Task, and
//! Processor Priority".

use actors::{Gpa, platform};

use super::address::{Address, Mode, Parts};
use super::message::{Command, Interrupt, Trigger};
use super::register::Local;
use super::timer::Timer;
use super::vectors::Vectors;

mod msr;
mod registers;

/// Of a local vector table entry: it does not interrupt.
const MASKED: u32 = 1 << 16;
/// Of LINT0: delivery mode ExtINT, "ask the 8259s for the vector".
const EXTERNAL: u32 = 7 << 8;
const DELIVERY_MODE: u32 = 7 << 8;

/// Spurious interrupt vector register: software has switched the local APIC on.
const SOFTWARE_ENABLED: u32 = 1 << 8;
/// Spurious interrupt vector register: only the processor itself hears of its EOIs.
const NO_BROADCAST: u32 = 1 << 12;
const SPURIOUS_AFTER_RESET: u32 = 0xff;

/// Integrated local APIC, six entries in the local vector table (5 is the last), suppression
/// of end-of-interrupt broadcasts. SDM, APIC, "Local APIC Version Register".
const VERSION: u32 = 0x14 | LAST_ENTRY << 16 | 1 << 24;
const LAST_ENTRY: u32 = 5;
const _: () = assert!(Local::COUNT == 6);

/// Error status register: a vector below 16 was to be sent,
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// or has arrived,
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// or there is no such register. SDM, APIC, "Error Handling".
const ILLEGAL_REGISTER: u32 = 1 << 7;

/// IA32_APIC_BASE: the boot processor, x2APIC mode, switched on.
const BASE_BOOTSTRAP: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;

/// The processor answers with a general protection fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access to MSR {msr:#x} faults (general protection)")]
pub struct GeneralProtection {
    /// Which register.
    pub msr: u32,
}

/// A local APIC. `now`, wherever it is asked for, is the guest's time-stamp counter.
#[derive(Clone, Debug)]
pub struct LocalApic {
    /// The next deliverable vector, 0 for none: first, because it is looked at most.
    ready: u8,
    task_priority: u8,
    processor_priority: u8,
    requested: Vectors,
    in_service: Vectors,
    level_triggered: Vectors,
    timer: Timer,
    id: u32,
    /// Bits of a physical address that IA32_APIC_BASE may have.
    address_bits: u8,
    base: u64,
    spurious: u32,
    local: [u32; Local::COUNT],
    logical: u8,
    is_clustered: bool,
    command: u32,
    command_high: u32,
    /// What has gone wrong since the error status register was last written,
    errors: u32,
    /// and what that write showed.
    error_status: u32,
}

impl LocalApic {
    /// A local APIC after power-on: in xAPIC mode at its usual address, not switched on by
    /// software. `id` is the vcpu's number.
    ///
    /// On the boot processor the first local input passes the 8259s' interrupts on, as
    /// firmware leaves it: there is no firmware here to do so. Source: MultiProcessor
    /// Specification 1.4, section 3.6.2.2, "Virtual Wire Mode".
    #[must_use]
    pub fn new(id: u32, is_bootstrap: bool) -> Self {
        let bootstrap = if is_bootstrap { BASE_BOOTSTRAP } else { 0 };
        let mut apic = Self {
            ready: 0,
            task_priority: 0,
            processor_priority: 0,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level_triggered: Vectors::default(),
            timer: Timer::stopped(),
            id,
            address_bits: 52,
            base: platform::LOCAL_APIC.0 | BASE_ENABLED | bootstrap,
            spurious: SPURIOUS_AFTER_RESET,
            local: [MASKED; Local::COUNT],
            logical: 0,
            is_clustered: false,
            command: 0,
            command_high: 0,
            errors: 0,
            error_status: 0,
        };
        if is_bootstrap {
            *apic.entry_mut(Local::Lint0) = EXTERNAL;
        }
        apic
    }

    /// The same, on a processor whose physical addresses have `bits` bits (CPUID leaf
    /// 0x8000_0008) rather than 52: more than that IA32_APIC_BASE refuses.
    #[must_use]
    pub fn with_address_bits(self, bits: u8) -> Self {
        Self { address_bits: bits.min(52), ..self }
    }

    /// INIT: everything is as after power-on but the id, the mode and the place in memory.
    /// The first local input is masked, on every processor. Publish the address.
    /// SDM, APIC, "Local APIC State After an INIT Reset" and "x2APIC States".
    #[must_use = "the address has changed: publish it"]
    pub fn init(&mut self) -> Address {
        *self = Self {
            base: self.base,
            address_bits: self.address_bits,
            local: [MASKED; Local::COUNT],
            ..Self::new(self.id, false)
        };
        self.address()
    }

    /// The local APIC id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether this is the boot processor's.
    #[must_use]
    pub fn is_bootstrap(&self) -> bool {
        self.base & BASE_BOOTSTRAP != 0
    }

    /// How it is spoken to.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match (self.base & BASE_ENABLED != 0, self.base & BASE_X2APIC != 0) {
            (false, _) => Mode::Off,
            (true, false) => Mode::XApic,
            (true, true) => Mode::X2Apic,
        }
    }

    /// Where its page of registers is; `None` unless in xAPIC mode. Accesses of this processor
    /// to that page belong to [`LocalApic::read`] and [`LocalApic::write`], whatever else is
    /// there.
    #[must_use]
    pub fn page(&self) -> Option<Gpa> {
        (self.mode() == Mode::XApic).then_some(Gpa(self.base & !0xfff))
    }

    /// What it answers to.
    #[must_use]
    pub fn address(&self) -> Address {
        Parts {
            id: self.id,
            logical: self.logical,
            is_clustered: self.is_clustered,
            is_software_enabled: self.is_software_enabled(),
            mode: self.mode(),
        }
        .pack()
    }

    fn is_software_enabled(&self) -> bool {
        self.spurious & SOFTWARE_ENABLED != 0 && self.mode() != Mode::Off
    }

    fn entry(&self, local: Local) -> u32 {
        self.local[local.index()]
    }

    fn entry_mut(&mut self, local: Local) -> &mut u32 {
        &mut self.local[local.index()]
    }

    /// The vector of the interrupt that is next, if the processor takes interrupts at all
    /// (its IF is not this controller's business). One load.
    #[inline]
    #[must_use]
    pub fn pending(&self) -> Option<u8> {
        (self.ready != 0).then_some(self.ready)
    }

    /// The processor takes the interrupt that is next. With none pending it gets the spurious
    /// vector, and owes no EOI for it.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(vector) = self.pending() else {
            let [spurious, ..] = self.spurious.to_le_bytes();
            return spurious;
        };
        self.requested.remove(vector);
        self.in_service.insert(vector);
        self.refresh();
        vector
    }

    /// An interrupt arrives, from whichever side. One that is requested already stays one.
    pub fn accept(&mut self, interrupt: Interrupt) {
        if interrupt.vector < 16 {
            self.fail(RECEIVE_ILLEGAL_VECTOR);
        } else if self.is_software_enabled() {
            self.requested.insert(interrupt.vector);
            match interrupt.trigger {
                Trigger::Level => self.level_triggered.insert(interrupt.vector),
                Trigger::Edge => self.level_triggered.remove(interrupt.vector),
            }
            self.refresh();
        }
    }

    /// Whether the processor takes interrupts from the 8259s: their request is wired to the
    /// first local input. With the local APIC off that is the processor's own interrupt pin.
    #[must_use]
    pub fn accepts_external(&self) -> bool {
        let entry = self.entry(Local::Lint0);
        match self.mode() {
            Mode::Off => self.is_bootstrap(),
            _ => entry & MASKED == 0 && entry & DELIVERY_MODE == EXTERNAL,
        }
    }

    fn end_of_interrupt(&mut self) -> Option<Command> {
        let vector = self.in_service.highest()?;
        self.in_service.remove(vector);
        self.refresh();
        let is_heard = self.level_triggered.contains(vector) && self.spurious & NO_BROADCAST == 0;
        is_heard.then_some(Command::EndOfInterrupt(vector))
    }

    /// Works out the processor's priority and what may be delivered at it.
    fn refresh(&mut self) {
        let in_service = self.in_service.highest().unwrap_or(0);
        let task = self.task_priority;
        self.processor_priority =
            if task >> 4 >= in_service >> 4 { task } else { in_service & 0xf0 };
        let requested = self.requested.highest().unwrap_or(0);
        let is_above = requested >> 4 > self.processor_priority >> 4;
        self.ready = if is_above { requested } else { 0 };
    }

    /// The task priority's class, as CR8 shows it: 0 to 15.
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// A write to CR8: the class of the task priority becomes `class` modulo 16. (Faulting on
    /// larger values is the processor's business.)
    pub fn set_cr8(&mut self, class: u8) {
        self.task_priority = class << 4;
        self.refresh();
    }

    /// Notes an error. The first one since the error status register was written interrupts.
    fn fail(&mut self, error: u32) {
        let is_armed = self.errors == 0;
        self.errors |= error;
        if is_armed {
            self.interrupt_locally(Local::Error);
        }
    }

    fn interrupt_locally(&mut self, local: Local) {
        let entry = self.entry(local);
        if entry & MASKED == 0 {
            let [vector, ..] = entry.to_le_bytes();
            self.accept(Interrupt { vector, trigger: Trigger::Edge });
        }
    }

    /// When the timer interrupts next; `None` if it does not. May be in the past: then
    /// [`LocalApic::tick`] is due.
    #[inline]
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.timer.expires().filter(|_| self.entry(Local::Timer) & MASKED == 0)
    }

    /// It is `now`: the timer interrupts if its time has come.
    pub fn tick(&mut self, now: u64) {
        if self.timer.elapse(now) {
            self.interrupt_locally(Local::Timer);
        }
    }

    /// The guest set its time-stamp counter, from `before` to `after`.
    pub fn clock_was_set(&mut self, before: u64, after: u64) {
        self.tick(before);
        self.timer.clock_was_set(before, after);
        self.tick(after);
    }

    /// IA32_TSC_DEADLINE.
    fn tsc_deadline(&self, now: u64) -> u64 {
        self.timer.deadline(now)
    }

    fn set_tsc_deadline(&mut self, deadline: u64, now: u64) {
        self.tick(now);
        self.timer.set_deadline(deadline);
        self.tick(now);
    }
}
