//! Which engine runs the guest, and what differs with it: who the pmap works for, where interrupt lines lead, what makes
//! a vcpu.

use std::sync::Arc;

use actors::VcpuId;
use actors::contract::host::KvmPages;
use actors::device::{Bus, IrqLine, Taken};
use actors::threads::Joined;
use pmap_actor::handle::SpaceHandle;
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::host::userfault::Userfault;
use pmap_actor::space_actor::Consumer;
use serde::Serialize;
use vcpu_actor::engine::Engine;
use vcpu_actor::engine::kvm::{Halts, KvmFlavor, KvmSystem, KvmVm};
use vcpu_actor::engine::soft::{SoftMachine, SoftOptions};
use vcpu_actor::{VcpuConfig, VcpuHandle};

use crate::build::{BuildError, host};
use crate::spec::{EngineChoice, MachineSpec, ShootdownMode};

/// What runs a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Linux's KVM.
    Kvm,
    /// skep's own processor.
    Soft,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// An engine, and why it was taken.
pub(crate) struct Chosen {
    pub(crate) kind: EngineKind,
    /// For people: what it is on this host, or why it is not the other one.
    pub(crate) why: String,
    kvm: Option<KvmSystem>,
}

/// What a run wants that KVM cannot give, if anything.
fn needs_soft(spec: &MachineSpec) -> Option<&'static str> {
    if spec.hardware_ad {
        Some(
            "--ad hw: KVM's own tables are hidden, so accessed and dirty bits are always emulated there",
        )
    } else if spec.check_translations {
        Some("--check-translations: only the software engine sees every use of a translation")
    } else if spec.skip_flush {
        Some("the broken flush of the tests: on KVM a flush forgets nothing to begin with")
    } else {
        None
    }
}

/// What a run wants that the software engine cannot give.
fn needs_kvm(spec: &MachineSpec) -> Option<&'static str> {
    if spec.shootdown == ShootdownMode::Kernel {
        Some("--shootdown kernel: there is no kernel to leave it to on the software engine")
    } else if spec.skip_mirror_unmap {
        Some("stale host mappings: the software engine has none")
    } else {
        None
    }
}

/// Takes the engine that was asked for, or the one that fits this host and this run.
pub(crate) fn choose(spec: &MachineSpec) -> Result<Chosen, BuildError> {
    let wrong = |engine, why| Err(BuildError::WrongEngine { engine, why });
    match spec.engine {
        EngineChoice::Kvm => {
            if let Some(why) = needs_soft(spec) {
                return wrong(EngineKind::Kvm, why);
            }
            let system = KvmSystem::open()?;
            Ok(Chosen::kvm(system))
        }
        EngineChoice::Soft => match needs_kvm(spec) {
            Some(why) => wrong(EngineKind::Soft, why),
            None => Ok(Chosen::soft("it was asked for".to_owned())),
        },
        EngineChoice::Auto => {
            if let Some(why) = needs_kvm(spec) {
                if let Some(also) = needs_soft(spec) {
                    return Err(BuildError::Contradiction { why, also });
                }
                return Ok(Chosen::kvm(KvmSystem::open()?));
            }
            if let Some(why) = needs_soft(spec) {
                return Ok(Chosen::soft(why.to_owned()));
            }
            Ok(fitting())
        }
    }
}

/// The engine that fits this host, where the run fits both.
pub(crate) fn fitting() -> Chosen {
    let system = match (KvmFlavor::detect(), KvmSystem::open()) {
        (KvmFlavor::Hardware(_), Ok(system)) => system,
        (flavor, Ok(_)) => return Chosen::soft(format!("KVM here is {flavor}")),
        (_, Err(error)) => return Chosen::soft(error.to_string()),
    };
    // KVM's faults come that way and no other. Often a user may have the one and not the other.
    match Userfault::open() {
        Ok(_) => Chosen::kvm(system),
        Err(error) => Chosen::soft(error.to_string()),
    }
}

impl Chosen {
    fn kvm(system: KvmSystem) -> Self {
        let why = format!("KVM here is {}", system.facts().flavor);
        Self { kind: EngineKind::Kvm, why, kvm: Some(system) }
    }

    fn soft(why: String) -> Self {
        Self { kind: EngineKind::Soft, why, kvm: None }
    }

    /// Who the pmap works for.
    pub(crate) fn consumer(&self, spec: &MachineSpec) -> Consumer {
        match self.kind {
            EngineKind::Kvm => {
                Consumer::Kvm { skip_unmap: spec.skip_mirror_unmap, superpages: spec.superpages }
            }
            EngineKind::Soft => {
                Consumer::Soft { hardware_ad: spec.hardware_ad, superpages: spec.superpages }
            }
        }
    }

    /// The kernel's half of a KVM machine: before the pmap, because its memory slots follow the guest view.
    pub(crate) fn make_vm(
        &self,
        spec: &MachineSpec,
        memory: &GuestMemory,
    ) -> Result<Option<KvmVm>, BuildError> {
        let Some(system) = &self.kvm else { return Ok(None) };
        let halts = if spec.exact_vcpus { Halts::OccupyTheCpu } else { Halts::default() };
        let mut vm = KvmVm::create(system, spec.vcpus, halts)?;
        give_memory(&mut vm, memory)?;
        Ok(Some(vm))
    }
}

#[expect(unsafe_code, reason = "gives KVM the addresses of memory that the guest will use")]
fn give_memory(vm: &mut KvmVm, memory: &GuestMemory) -> Result<(), BuildError> {
    for slot in memory.slots() {
        // SAFETY: the guest view is made for this: no Rust reference into it is ever made, it
        // stays mapped as long as `GuestMemory` lives, and the pmap, whose handle every
        // machine keeps until its vcpus are joined, keeps that alive.
        unsafe { vm.add_memory(slot.range, slot.host) }?;
    }
    Ok(())
}

/// What makes vcpus and interrupt lines.
pub(crate) enum Hardware {
    Kvm(KvmVm),
    Soft(SoftMachine),
}

impl Hardware {
    pub(crate) fn new(
        vm: Option<KvmVm>,
        spec: &MachineSpec,
        space: &SpaceHandle,
    ) -> Result<Self, BuildError> {
        if let Some(vm) = vm {
            return Ok(Self::Kvm(vm));
        }
        let options = SoftOptions {
            check_translations: spec.check_translations,
            skip_flush: spec.skip_flush,
        };
        let soft = SoftMachine::new(spec.vcpus, space.clone(), options);
        soft.map(Self::Soft).map_err(BuildError::Vcpus)
    }

    pub(crate) fn irq_line(&self, gsi: u8) -> Result<Arc<dyn IrqLine>, BuildError> {
        match self {
            Self::Kvm(vm) => Ok(vm.irq_line(gsi.into())?),
            Self::Soft(soft) => {
                let line = soft.irq_line(gsi.into()).ok_or("there is no such line");
                line.map_err(host(format!("connect interrupt {gsi}")))
            }
        }
    }

    /// Puts the engine's own controllers on the buses.
    pub(crate) fn attach(&self, ports: &mut Bus, mmio: &mut Bus) -> Result<(), Taken> {
        match self {
            Self::Kvm(_) => Ok(()),
            Self::Soft(soft) => soft.attach(ports, mmio),
        }
    }

    /// Starts one vcpu's thread; `config` is made for whatever its engine is.
    pub(crate) fn start_vcpu(
        &self,
        id: VcpuId,
        config: VcpuConfig<()>,
    ) -> Result<(VcpuHandle, Joined), BuildError> {
        fn start<E: Engine>(
            id: VcpuId,
            engine: E,
            config: VcpuConfig<()>,
        ) -> Result<(VcpuHandle, Joined), BuildError> {
            vcpu_actor::start(config.with_engine(engine))
                .map_err(host(format!("start a thread for {id}")))
        }
        match self {
            Self::Kvm(vm) => start(id, vm.create_vcpu(id)?, config),
            Self::Soft(soft) => {
                let started = start(id, soft.create_vcpu(id), config)?;
                soft.enter(&started.0);
                Ok(started)
            }
        }
    }

    /// What KVM says that it maps; none where there is no KVM, or one that does not count.
    pub(crate) fn kvm_pages(&self) -> Option<KvmPages> {
        match self {
            Self::Kvm(vm) => vm.stats()?.pages().ok(),
            Self::Soft(_) => None,
        }
    }

    /// Instructions that guests met and the engine does not know, by name.
    pub(crate) fn unimplemented(&self) -> std::collections::BTreeMap<String, u64> {
        match self {
            Self::Kvm(_) => std::collections::BTreeMap::new(),
            Self::Soft(soft) => soft.unimplemented(),
        }
    }
}
