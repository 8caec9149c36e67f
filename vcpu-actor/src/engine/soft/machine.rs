//! What the software processors of one machine share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use actors::device::{Bus, IrqLine, Taken};
use actors::{PAGE_SIZE, VcpuId};
use devices::apic::{Interrupts, Message};
use devices::chipset::Chipset;
use parking_lot::Mutex;
use pmap_actor::handle::SpaceHandle;
use soft_cpu::CodeMap;
use tracing::warn;

use super::exchange::{BOOT, Exchange};
use super::nearby::ticks;
use super::vcpu::SoftVcpu;
use crate::VcpuHandle;

/// Most vcpus a machine of this engine has: their numbers are local APIC ids of eight bits, and 255 is everybody.
pub const MOST_VCPUS: u16 = 255;

/// How the software engine runs a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftOptions {
    /// Compare every use of a cached translation with the tables.
    pub check_translations: bool,
    /// For tests that the checks notice: a flush forgets nothing.
    pub skip_flush: bool,
}

/// Everything that all vcpus see.
pub(super) struct Common {
    pub(super) exchange: Arc<Exchange>,
    pub(super) chipset: Chipset,
    /// The 8259s want the boot vcpu.
    pub(super) external: Arc<AtomicBool>,
    pub(super) code: Arc<CodeMap>,
    pub(super) epoch: Instant,
    pub(super) options: SoftOptions,
    /// One bit for each port: somebody lives there. Set once the devices are in their places.
    claimed: OnceLock<Box<[u64; 1024]>>,
    /// Instructions that the processor does not know, by name, and how often guests met them.
    unimplemented: Mutex<BTreeMap<String, u64>>,
}

impl Common {
    /// Whether a write to `port` concerns nobody.
    pub(super) fn is_deaf(&self, port: u16) -> bool {
        let Some(claimed) = self.claimed.get() else { return false };
        claimed[usize::from(port / 64)] >> (port % 64) & 1 == 0
    }

    pub(super) fn unimplemented(&self, vcpu: VcpuId, rip: u64, name: &str) {
        let mut all = self.unimplemented.lock();
        let times = all.entry(name.to_owned()).or_default();
        *times += 1;
        if *times == 1 {
            warn!(%vcpu, rip = format!("{rip:#x}"), "the software engine does not know {name}: the guest gets #UD");
        }
    }
}

/// A machine of software processors. Cheap to clone.
#[derive(Clone)]
pub struct SoftMachine {
    common: Arc<Common>,
    space: SpaceHandle,
}

/// The two ways out of the interrupt controllers.
struct Outlet {
    exchange: Arc<Exchange>,
    external: Arc<AtomicBool>,
}

impl Interrupts for Outlet {
    fn send(&self, message: &Message) {
        self.exchange.send(message);
    }

    fn external(&self, is_requested: bool) {
        // Relaxed: `nudge` has the fence.
        self.external.store(is_requested, Ordering::Relaxed);
        if is_requested {
            self.exchange.nudge(BOOT);
        }
    }

    fn next_edge_moved(&self) {
        self.exchange.nudge(BOOT);
    }
}

impl SoftMachine {
    /// For `vcpus` processors over the memory of `space`.
    ///
    /// # Errors
    ///
    /// No vcpus, or more than [`MOST_VCPUS`]: in words.
    pub fn new(vcpus: u16, space: SpaceHandle, options: SoftOptions) -> Result<Self, String> {
        let count =
            u8::try_from(vcpus).ok().filter(|count| (1..=MOST_VCPUS).contains(&(*count).into()));
        let count = count.ok_or_else(|| {
            format!("the software engine runs 1 to {MOST_VCPUS} vcpus, and {vcpus} were asked for")
        })?;
        let exchange = Arc::new(Exchange::new(count));
        let external = Arc::new(AtomicBool::new(false));
        let outlet: Arc<dyn Interrupts> =
            Arc::new(Outlet { exchange: exchange.clone(), external: external.clone() });
        let epoch = Instant::now();
        let chipset = Chipset::new(&outlet, move || ticks(epoch));
        let frames = space.guest_memory().layout().total() / PAGE_SIZE;
        let frames =
            usize::try_from(frames).map_err(|_| "more memory than addresses".to_owned())?;
        let common = Common {
            exchange,
            chipset,
            external,
            code: CodeMap::new(frames, usize::from(vcpus)),
            epoch,
            options,
            claimed: OnceLock::new(),
            unimplemented: Mutex::default(),
        };
        Ok(Self { common: Arc::new(common), space })
    }

    /// The interrupt line that global system interrupt `gsi` listens to; `None` where there is none.
    #[must_use]
    pub fn irq_line(&self, gsi: u32) -> Option<Arc<dyn IrqLine>> {
        Some(Arc::new(self.common.chipset.line(gsi)?))
    }

    /// Puts the interrupt controllers on the buses; the devices are there already.
    ///
    /// # Errors
    ///
    /// [`Taken`]: a mistake in [`actors::platform`].
    pub fn attach(&self, ports: &mut Bus, mmio: &mut Bus) -> Result<(), Taken> {
        self.common.chipset.attach(ports, mmio)?;
        let mut claimed = Box::new([0u64; 1024]);
        for port in 0..=u16::MAX {
            if ports.is_claimed(u64::from(port)) {
                claimed[usize::from(port / 64)] |= 1 << (port % 64);
            }
        }
        // Attached once per machine.
        let _first = self.common.claimed.set(claimed);
        Ok(())
    }

    /// Processor `id`. The first one waits for its registers, the others for INIT and SIPI.
    #[must_use]
    pub fn create_vcpu(&self, id: VcpuId) -> SoftVcpu {
        SoftVcpu::new(id, self.common.clone(), &self.space)
    }

    /// From now on interrupts for this vcpu wake it.
    pub fn enter(&self, vcpu: &VcpuHandle) {
        self.common.exchange.enter(vcpu);
    }

    /// Instructions that guests met and the processor does not know.
    #[must_use]
    pub fn unimplemented(&self) -> BTreeMap<String, u64> {
        self.common.unimplemented.lock().clone()
    }
}
