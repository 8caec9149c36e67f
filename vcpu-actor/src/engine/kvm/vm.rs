//! One virtual machine inside the kernel: its memory slots and interrupt controllers.

#![expect(unsafe_code, reason = "a memory slot gives the guest a piece of this process's memory")]

use std::sync::{Arc, Weak};

use actors::device::IrqLine;
use actors::{GpaRange, VcpuId};
use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_PIT_SPEAKER_DUMMY, KVM_X86_DISABLE_EXITS_HLT, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;

use super::cpuid::{self, Place};
use super::routing::{self, IOAPIC_PINS};
use super::stats::KvmStats;
use super::system::{KvmError, KvmSystem, refused};
use super::vcpu::KvmVcpu;

/// Where KVM keeps three pages it needs on old Intel processors, in the hole for devices just below
/// the firmware's usual place.
const TASK_STATE_ADDRESS: usize = 0xfffb_d000;
/// Where it keeps one more, just below.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What a halted vcpu does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Halts {
    /// It sleeps in the kernel and uses no cpu.
    #[default]
    SleepInTheKernel,
    /// It stays in the guest and occupies its cpu ("exact vcpus"), and the guest is not told of
    /// asynchronous page faults: then every fault on guest memory happens on the vcpu's own thread,
    /// never on a kernel worker's.
    OccupyTheCpu,
}

/// One virtual machine. It lives inside the kernel until this and all its vcpus are dropped.
///
/// Its end may wait for kernel workers that sleep on a page fault of the guest: answer or close the
/// userfaultfd before dropping the last of them.
#[derive(Debug)]
pub struct KvmVm {
    vm: Arc<VmFd>,
    vcpus: u16,
    slots: u32,
    max_slots: usize,
    halts: Halts,
    has_tsc_deadline: bool,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl KvmVm {
    /// A machine for `vcpus` processors, with interrupt controllers and interval timer, without memory.
    ///
    /// # Errors
    ///
    /// [`KvmError`]: no or too many vcpus, or what the kernel refused.
    pub fn create(system: &KvmSystem, vcpus: u16, halts: Halts) -> Result<Self, KvmError> {
        let facts = system.facts();
        if vcpus == 0 {
            return Err(KvmError::NoVcpus);
        }
        if usize::from(vcpus) > facts.max_vcpus {
            return Err(KvmError::TooManyVcpus { asked: vcpus, most: facts.max_vcpus });
        }
        let vm = system.kvm().create_vm().map_err(|error| match error.errno() {
            libc::EBUSY => KvmError::Busy { path: system.path().to_owned() },
            _ => refused("create a virtual machine")(error),
        })?;
        if halts == Halts::OccupyTheCpu {
            // Before the first vcpu, or the kernel refuses.
            let mut disable =
                kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..kvm_enable_cap::default() };
            disable.args[0] = KVM_X86_DISABLE_EXITS_HLT.into();
            vm.enable_cap(&disable).map_err(refused("let halted vcpus stay on their cpus"))?;
        }
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(refused("place its identity map"))?;
        vm.set_tss_address(TASK_STATE_ADDRESS).map_err(refused("place its task state"))?;
        vm.create_irq_chip().map_err(refused("create interrupt controllers"))?;
        vm.set_gsi_routing(&routing::table())
            .map_err(refused("lead interrupt lines to their pins"))?;
        let timer = kvm_pit_config {
            // Port 0x61, which belongs to the timer's third channel.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(timer).map_err(refused("create an interval timer"))?;
        Ok(Self {
            vm: Arc::new(vm),
            vcpus,
            slots: 0,
            max_slots: facts.max_slots,
            halts,
            has_tsc_deadline: facts.has_tsc_deadline,
            cpuid: system.cpuid().to_vec(),
        })
    }

    /// Gives the guest memory at `range`: this process's memory from `host` on. Slots are made once
    /// and left alone; what the guest may touch of them is decided by the host mapping, which KVM
    /// follows.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`], with the range: it overlaps another slot, or there are too many.
    ///
    /// # Safety
    ///
    /// The guest reads, writes and executes these bytes from now on. `host .. host + range.len()` must be
    /// reserved for it, in a mapping that stays in place (whatever its protection) as long as the
    /// machine lives, and never be the target of an ordinary reference in this process.
    pub unsafe fn add_memory(&mut self, range: GpaRange, host: u64) -> Result<(), KvmError> {
        let what = || format!("give the guest memory at {range}");
        if self.slots as usize >= self.max_slots {
            return Err(refused(what())(format!("it has only {} memory slots", self.max_slots)));
        }
        let slot = kvm_userspace_memory_region {
            slot: self.slots,
            flags: 0,
            guest_phys_addr: range.start().0,
            memory_size: range.len(),
            userspace_addr: host,
        };
        // SAFETY: the caller's promise.
        unsafe { self.vm.set_user_memory_region(slot) }.map_err(refused(what()))?;
        self.slots += 1;
        Ok(())
    }

    /// The interrupt line that global system interrupt `gsi` listens to. One edge per pulse.
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`]: there is no such interrupt.
    pub fn irq_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, KvmError> {
        // The kernel takes any number, and leads those without a pin nowhere.
        if gsi >= IOAPIC_PINS {
            let what = format!("connect interrupt {gsi}");
            return Err(refused(what)("its I/O APIC has pins 0 to 23 only"));
        }
        Ok(Arc::new(KvmIrqLine { vm: Arc::downgrade(&self.vm), gsi, pulling: Mutex::new(()) }))
    }

    /// KVM's own counters of this machine, to be read at any time; `None` where it has none. They keep
    /// the machine alive in the kernel, as a vcpu does.
    #[must_use]
    pub fn stats(&self) -> Option<KvmStats> {
        KvmStats::open(&*self.vm)
    }

    /// Processor `id`. The first one is runnable; the others wait, asleep in the kernel, for
    /// another to start them (INIT and SIPI).
    ///
    /// # Errors
    ///
    /// [`KvmError::Refused`]: there is one with this number already, or the kernel's own reason.
    pub fn create_vcpu(&self, id: VcpuId) -> Result<KvmVcpu, KvmError> {
        let place = Place { id, count: self.vcpus };
        let leaves = cpuid::shape(&self.cpuid, place, self.halts, self.has_tsc_deadline);
        let fd = self.vm.create_vcpu(id.0.into()).map_err(refused(format!("create {id}")))?;
        KvmVcpu::new(id, fd, self.vm.run_size(), &leaves)
    }
}

/// An interrupt line of the kernel's controllers, pulled on the caller's thread: when [`pulse`](IrqLine::pulse) returns, the
/// interrupt is with the processor that it is for.
///
/// An eventfd (`KVM_IRQFD`) would be one call instead of two, but for a pin the kernel leaves the pull to a worker. Where vcpus keep every
/// processor busy that worker waits for one: 30 to 60 ms each time were measured, of a console that sends 16 bytes an
/// interrupt, and a guest that powers off meanwhile has lost its last lines.
struct KvmIrqLine {
    vm: Weak<VmFd>,
    gsi: u32,
    /// Up and down are two calls. A second "up" before the first's "down" would be no edge.
    pulling: Mutex<()>,
}

impl IrqLine for KvmIrqLine {
    fn pulse(&self) {
        // Without its machine the line leads nowhere.
        let Some(vm) = self.vm.upgrade() else { return };
        let _pulling = self.pulling.lock();
        for level in [true, false] {
            vm.set_irq_line(self.gsi, level)
                .expect("the machine has controllers, and they this pin");
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip};

    use super::*;

    #[test]
    fn an_interrupt_is_with_its_controller_when_the_pulse_returns() {
        let Ok(kvm) = KvmSystem::open() else {
            eprintln!("not tested here: no KVM");
            return;
        };
        let machine = KvmVm::create(&kvm, 1, Halts::default()).unwrap();
        let requested = || {
            let mut chip =
                kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..kvm_irqchip::default() };
            machine.vm.get_irqchip(&mut chip).unwrap();
            // SAFETY: the kernel filled in what was asked for, the state of an 8259.
            unsafe { chip.chip.pic.irr }
        };
        let line = machine.irq_line(4).unwrap();
        assert_eq!(requested(), 0);
        line.pulse();
        assert_eq!(requested(), 1 << 4);
    }
}
