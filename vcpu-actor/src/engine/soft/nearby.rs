//! What a software processor asks without leaving the guest: its local APIC, and the time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use actors::{PAGE_SIZE, VcpuId};
use devices::apic::{Command, Inbox, LocalApic, Signals};
use parking_lot::Mutex;
use soft_cpu::Surroundings;
use soft_cpu::event::DeviceAccess;
use soft_cpu::surroundings::Refused;

use super::exchange::BOOT;
use super::machine::Common;

/// Spins in a row before the vcpu lets others have its cpu: whoever is waited for may need it.
const SPINS: u32 = 64;

/// What a vcpu's engine and its processor's surroundings share.
pub(super) struct Own {
    pub(super) apic: LocalApic,
    /// Collected, and not yet done: the engine does them on the way in.
    pub(super) signals: Signals,
}

impl Own {
    /// Takes all mail: interrupts go to the local APIC, the rest waits here.
    pub(super) fn collect(&mut self, inbox: &Inbox) {
        let signals = inbox.collect(&mut self.apic);
        if signals.init {
            // It undoes a start that was not taken yet.
            self.signals.startup = None;
        }
        self.signals = Signals {
            nmi: self.signals.nmi || signals.nmi,
            init: self.signals.init || signals.init,
            startup: signals.startup.or(self.signals.startup),
        };
    }
}

/// One vcpu's surroundings.
pub(super) struct Nearby {
    pub(super) vcpu: VcpuId,
    pub(super) common: Arc<Common>,
    /// Locked by this vcpu's thread only, and never for long: its engine looks there too.
    pub(super) own: Arc<Mutex<Own>>,
    pub(super) spins: u32,
}

/// The time-stamp counter: nanoseconds since the machine was made.
pub(super) fn ticks(epoch: Instant) -> u64 {
    u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Nearby {
    fn obey(&self, command: Option<Command>) {
        match command {
            None => {}
            Some(Command::Send(message)) => self.common.exchange.send(&message),
            Some(Command::Publish(address)) => self.common.exchange.directory.publish(address),
            Some(Command::EndOfInterrupt(vector)) => {
                self.common.chipset.end_of_interrupt(vector);
            }
        }
    }

    /// The register that an access to the local APIC's page meets.
    fn register(&self, access: &DeviceAccess) -> Option<u32> {
        let page = self.own.lock().apic.page()?;
        let offset = access.at.checked_sub(page.0).filter(|offset| *offset < PAGE_SIZE)?;
        u32::try_from(offset).ok()
    }
}

impl Surroundings for Nearby {
    fn now(&mut self) -> u64 {
        ticks(self.common.epoch)
    }

    fn poll(&mut self) -> bool {
        let now = self.now();
        let mut own = self.own.lock();
        own.collect(&self.common.exchange.place(self.vcpu).inbox);
        let apic = &mut own.apic;
        if apic.deadline().is_some_and(|deadline| deadline <= now) {
            apic.tick(now);
        }
        if self.vcpu != BOOT {
            return apic.pending().is_some();
        }
        let is_external = self.common.external.load(Ordering::Relaxed) && apic.accepts_external();
        let waits = apic.pending().is_some();
        drop(own);
        if self.common.chipset.next_edge().is_some_and(|edge| edge <= now) {
            // May send to this very vcpu: the letter nudges it, and it looks again.
            self.common.chipset.tick();
        }
        waits || is_external
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let apic = &mut self.own.lock().apic;
        if apic.pending().is_some() {
            return Some(apic.acknowledge());
        }
        // (The chipset sends without asking local APICs, so their lock may be held.)
        let takes_external = self.vcpu == BOOT && apic.accepts_external();
        takes_external.then(|| self.common.chipset.acknowledge()).flatten()
    }

    fn local_read(&mut self, access: &DeviceAccess) -> Option<u64> {
        let register = self.register(access)?;
        let now = self.now();
        // Registers are 16 bytes apart and four bytes wide; narrower accesses see part of one.
        let whole = self.own.lock().apic.read(register & !3, now);
        Some(u64::from(whole) >> (8 * (register & 3)))
    }

    fn local_write(&mut self, access: &DeviceAccess) -> bool {
        let Some(register) = self.register(access) else { return false };
        let now = self.now();
        let [a, b, c, d, ..] = access.value.unwrap_or(0).to_le_bytes();
        let value = u32::from_le_bytes([a, b, c, d]);
        // Only whole, aligned registers can be written (Intel SDM vol. 3, "Local APIC Register Address Map").
        let command = match (register % 4, access.bytes) {
            (0, 4 | 8) => self.own.lock().apic.write(register, value, now),
            _ => None,
        };
        self.obey(command);
        true
    }

    fn port_is_deaf(&mut self, port: u16) -> bool {
        self.common.is_deaf(port)
    }

    fn read_msr(&mut self, msr: u32) -> Option<Result<u64, Refused>> {
        if !is_apics(msr) {
            return None;
        }
        let now = self.now();
        Some(self.own.lock().apic.read_msr(msr, now).map_err(|_| Refused))
    }

    fn write_msr(&mut self, msr: u32, value: u64) -> Option<Result<(), Refused>> {
        if !is_apics(msr) {
            return None;
        }
        let now = self.now();
        let done = self.own.lock().apic.write_msr(msr, value, now);
        Some(done.map(|command| self.obey(command)).map_err(|_| Refused))
    }

    fn task_priority(&mut self) -> u64 {
        self.own.lock().apic.cr8().into()
    }

    fn set_task_priority(&mut self, priority: u64) {
        let [class, ..] = priority.to_le_bytes();
        self.own.lock().apic.set_cr8(class & 15);
    }

    fn unimplemented(&mut self, rip: u64, name: &str) {
        self.common.unimplemented(self.vcpu, rip, name);
    }

    fn pause(&mut self) {
        self.spins += 1;
        if self.spins == SPINS {
            self.spins = 0;
            // In the guest all the while: whoever waits for this vcpu wakes it by its turn on a cpu, as always.
            std::thread::yield_now();
        }
    }
}

/// IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC's registers.
fn is_apics(msr: u32) -> bool {
    matches!(msr, 0x1b | 0x6e0 | 0x800..=0x8ff)
}
