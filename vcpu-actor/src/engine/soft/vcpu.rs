//! One software processor as an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actors::contract::boot::EntryState;
use actors::contract::space::{FaultOrigin, NestedFault};
use actors::{Access, Gpa, Gva, VcpuId};
use devices::apic::{LocalApic, Signals};
use parking_lot::Mutex;
use pmap_actor::ept::last_tables::LastTables;
use pmap_actor::handle::SpaceHandle;
use shootdown::{Generation, InGuest};
use soft_cpu::event::{self, DeviceAccess};
use soft_cpu::{Processor, Stop};

use super::entry;
use super::exchange::BOOT;
use super::machine::Common;
use super::nearby::{Nearby, Own};
use super::second_stage::Tables;
use crate::engine::{Direction, Engine, Exit, Looks, MmioAccess, PortAccess, Trip};
use crate::{KickKind, Knocker};

/// A vcpu that executes its guest's instructions itself.
pub struct SoftVcpu {
    id: VcpuId,
    common: Arc<Common>,
    processor: Processor,
    own: Arc<Mutex<Own>>,
    knock: Arc<AtomicU8>,
    knocker: Knocker,
    filled_at: Arc<AtomicU64>,
    /// It waits for INIT and SIPI.
    waits_to_be_started: bool,
    stop: Stop,
    /// What a device's access reads or writes.
    data: [u8; 8],
}

impl SoftVcpu {
    pub(super) fn new(id: VcpuId, common: Arc<Common>, space: &SpaceHandle) -> Self {
        let filled_at = Arc::new(AtomicU64::new(0));
        let tables = Tables {
            last: LastTables::new(space.view()),
            memory: space.guest_memory().clone(),
            completed: space.completed(),
            filled_at: filled_at.clone(),
        };
        let apic = LocalApic::new(id.0.into(), id.0 == 0)
            .with_address_bits(u8::try_from(soft_cpu::PHYSICAL_BITS).expect("below 64"));
        let own = Arc::new(Mutex::new(Own { apic, signals: Signals::default() }));
        let nearby = Nearby { vcpu: id, common: common.clone(), own: own.clone(), spins: 0 };
        let mut processor =
            Processor::new(Box::new(nearby), Box::new(tables), common.code.clone(), id.index());
        if common.options.check_translations {
            processor.check_translations();
        }
        let knock = Arc::new(AtomicU8::new(0));
        Self {
            id,
            common,
            processor,
            own,
            knocker: Knocker::by_flag_alone(knock.clone()),
            knock,
            filled_at,
            waits_to_be_started: true,
            stop: Stop::Again,
            data: [0; 8],
        }
    }

    /// Takes what must be done before the next instruction: a reset, a start, a non-maskable interrupt.
    fn take_special(&mut self) {
        let mut own = self.own.lock();
        own.collect(&self.common.exchange.place(self.id).inbox);
        let special = std::mem::take(&mut own.signals);
        if special.init {
            self.processor.init_reset();
            let address = own.apic.init();
            self.common.exchange.directory.publish(address);
            // The first processor does not wait: it begins where firmware is (Intel SDM vol. 3, "Typical BSP
            // Initialization Sequence"; the others' wait is in "Typical AP Initialization Sequence").
            self.waits_to_be_started = self.id != BOOT;
        }
        if let Some(page) = special.startup
            && self.waits_to_be_started
        {
            self.processor.start_at(page);
            self.waits_to_be_started = false;
        }
        if special.nmi && !self.waits_to_be_started {
            self.processor.raise_nmi();
        }
    }

    /// Gives the processor what a device answered.
    fn complete(&mut self) {
        if matches!(self.stop, Stop::PortRead(_) | Stop::Mmio(_) | Stop::StringPort(_)) {
            self.processor.answer(u64::from_le_bytes(self.data));
            self.stop = Stop::Again;
        }
    }

    /// When the guest's own clock wakes it.
    fn wakes_at(&self) -> Option<Instant> {
        let own = self.own.lock().apic.deadline();
        let edge = if self.id == BOOT { self.common.chipset.next_edge() } else { None };
        let deadline = own.into_iter().chain(edge).min()?;
        self.common.epoch.checked_add(Duration::from_nanos(deadline))
    }

    fn rip(&self) -> u64 {
        self.processor.cpu.rip
    }

    fn fault(&self, fault: &event::NestedFault) -> NestedFault {
        NestedFault {
            vcpu: self.id,
            gpa: Gpa(fault.gpa),
            access: match fault.access {
                event::Access::Read => Access::Read,
                event::Access::Write => Access::Write,
                event::Access::Execute => Access::Execute,
            },
            origin: FaultOrigin {
                gva: Some(Gva(fault.gva)),
                is_table_walk: fault.is_table_walk,
                rip: fault.rip,
                cr3: fault.cr3,
            },
        }
    }

    /// The data of an access, as its bytes.
    fn take_data(&mut self, access: &DeviceAccess) -> (Direction, usize) {
        self.data = access.value.unwrap_or(u64::MAX).to_le_bytes();
        let direction = if access.value.is_some() { Direction::Write } else { Direction::Read };
        (direction, usize::from(access.bytes).min(8))
    }

    fn port(&mut self, access: &DeviceAccess) -> Exit<'_> {
        let (direction, size) = self.take_data(access);
        // Ports are sixteen bits wide, and so are the instructions that name them.
        let port = u16::try_from(access.at & 0xffff).expect("sixteen bits");
        Exit::Port(PortAccess { port, direction, size, data: &mut self.data[..size] })
    }
}

impl Engine for SoftVcpu {
    fn knocker(&self) -> Knocker {
        self.knocker.clone()
    }

    fn settle_on_this_thread(&mut self, _kick: KickKind) -> Result<(), String> {
        Ok(())
    }

    fn begin(&mut self, entry: &EntryState) -> Result<(), String> {
        entry::set(&mut self.processor.cpu, entry);
        self.waits_to_be_started = false;
        Ok(())
    }

    fn flush(&mut self, now: Generation) {
        if self.common.options.skip_flush {
            return;
        }
        // Read by this thread only.
        self.filled_at.store(now.0, Ordering::Relaxed);
        self.processor.flush();
    }

    fn enter(&mut self, _inside: &InGuest<'_>) -> Trip {
        self.complete();
        self.take_special();
        self.stop = if self.waits_to_be_started {
            // A knock is an order: it is looked at before the thread sleeps.
            Stop::Halted
        } else {
            self.processor.run(&self.knock)
        };
        if self.stop == Stop::Knocked { Trip::Knocked } else { Trip::Exit }
    }

    fn exit(&mut self) -> Exit<'_> {
        let rip = self.rip();
        let failed = |what: String| Exit::Failed { rip, what };
        match self.stop {
            Stop::Knocked | Stop::Again => Exit::Nothing,
            Stop::Halted => Exit::Halted {
                until: if self.waits_to_be_started { None } else { self.wakes_at() },
            },
            Stop::PortWrite(access) | Stop::PortRead(access) | Stop::StringPort(access) => {
                self.port(&access)
            }
            Stop::Mmio(access) => {
                let (direction, size) = self.take_data(&access);
                Exit::Mmio(MmioAccess {
                    at: Gpa(access.at),
                    direction,
                    data: &mut self.data[..size],
                })
            }
            Stop::Nested(fault) => Exit::NestedFault(self.fault(&fault)),
            Stop::Misconfigured(broken) => failed(format!(
                "the nested tables are misconfigured for guest-physical {}: entry {:#x} at level {}",
                Gpa(broken.gpa),
                broken.entry,
                broken.level
            )),
            Stop::NoMemory { gpa, access, .. } => failed(format!(
                "it {} guest-physical {}, where there is no memory",
                match access {
                    event::Access::Execute => "fetches instructions from",
                    _ => "has page tables at",
                },
                Gpa(gpa)
            )),
            Stop::TripleFault => Exit::TripleFault { rip },
            Stop::Stale(stale) => Exit::StaleTranslation {
                rip,
                what: format!(
                    "{:?} of guest-linear {:#x} (guest-physical {:#x}) used a translation cached at \
                     generation {} although the shootdown of generation {} was complete: it leads to frame \
                     {:#x}, and the tables say {}",
                    stale.access,
                    stale.gva,
                    stale.gpa,
                    stale.cached_at,
                    stale.completed,
                    stale.cached_frame,
                    match stale.tables_say {
                        None => "nothing is there".to_owned(),
                        Some(frame) if frame == stale.cached_frame =>
                            "less is allowed there".to_owned(),
                        Some(frame) => format!("frame {frame:#x}"),
                    }
                ),
            },
        }
    }

    /// Its clock stands for the host's: there is nothing to tell.
    fn excuse_pause(&mut self) {}

    fn owes_completion(&self) -> bool {
        matches!(self.stop, Stop::PortRead(_) | Stop::Mmio(_) | Stop::StringPort(_))
            || self.processor.owes_completion()
    }

    fn look(&mut self) -> Result<Looks, String> {
        let cpu = &self.processor.cpu;
        Ok(Looks {
            rip: Gva(cpu.rip),
            rsp: Gva(cpu.gpr[soft_cpu::cpu::reg::RSP]),
            cr3: Gpa(cpu.cr3),
            rflags: cpu.rflags(),
        })
    }

    fn falls_asleep(&mut self) -> bool {
        self.common.exchange.place(self.id).falls_asleep()
    }

    fn wakes(&mut self) {
        self.common.exchange.place(self.id).wakes();
    }

    fn instructions(&self) -> Option<u64> {
        Some(self.processor.cpu.retired)
    }
}
