//! `/dev/kvm`: what this host can do for us, and why it cannot.

use std::ffi::CString;
use std::fmt;
use std::path::Path;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_X86_DISABLE_EXITS, KVM_MAX_CPUID_ENTRIES,
    KVM_X86_DISABLE_EXITS_HLT, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// Why KVM cannot be used, each with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvmError {
    /// The device does not exist.
    #[error(
        "there is no {path}: enable virtualisation in the firmware and load kvm_intel or kvm_amd \
         (sudo modprobe kvm_amd)"
    )]
    Missing {
        /// The device.
        path: String,
    },
    /// The device may not be opened.
    #[error(
        "no permission to open {path}: join its group (sudo usermod -aG kvm $USER) and log in again"
    )]
    NoPermission {
        /// The device.
        path: String,
    },
    /// Another hypervisor holds the processor.
    #[error(
        "{path} is busy: another hypervisor is using the processor's virtualisation; stop it first"
    )]
    Busy {
        /// The device.
        path: String,
    },
    /// What was opened is not KVM.
    #[error("{path} is not KVM: it does not answer the question for its version")]
    NotKvm {
        /// The device.
        path: String,
    },
    /// KVM of another time.
    #[error(
        "KVM speaks version {found} of its interface, and only version 12 has ever been in use"
    )]
    WrongVersion {
        /// What it speaks.
        found: i32,
    },
    /// Something a guest cannot do without is missing.
    #[error("this host's KVM lacks {what}, which every guest here needs")]
    Lacks {
        /// What is missing.
        what: &'static str,
    },
    /// More processors than KVM has.
    #[error("{asked} vcpus were asked for, and this host's KVM runs at most {most} in one guest")]
    TooManyVcpus {
        /// How many were asked for.
        asked: u16,
        /// How many there can be.
        most: usize,
    },
    /// A guest without processors.
    #[error("a guest needs at least one vcpu")]
    NoVcpus,
    /// Anything else the kernel refuses.
    #[error("KVM refused to {what}: {why}")]
    Refused {
        /// What was tried.
        what: String,
        /// The operating system's reason.
        why: String,
    },
}

/// Says what the kernel refused.
pub(super) fn refused<E: fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> KvmError {
    let what = what.into();
    move |error| KvmError::Refused { what, why: error.to_string() }
}

/// Who built the processor's virtualisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// VMX, EPT.
    Intel,
    /// SVM, nested paging.
    Amd,
}

/// What stands behind `/dev/kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmFlavor {
    /// The processor runs the guest.
    Hardware(Vendor),
    /// Software runs the guest's kernel-mode code by emulation (module `kvm_pvm`): 0.7 to 3
    /// microseconds an instruction, some instructions not at all. User-mode code runs natively.
    Software,
    /// Neither could be recognised.
    Unknown,
}

impl fmt::Display for KvmFlavor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Hardware(Vendor::Intel) => "hardware-assisted (Intel VMX)",
            Self::Hardware(Vendor::Amd) => "hardware-assisted (AMD SVM)",
            Self::Software => "software (kvm_pvm: kernel-mode guest code is emulated)",
            Self::Unknown => "of an unknown kind",
        })
    }
}

impl KvmFlavor {
    /// What this host's KVM is, from the processor's flags and the kernel's modules.
    #[must_use]
    pub fn detect() -> Self {
        // A host without /proc or /sys is one of which nothing is known.
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::of(&cpuinfo, |module| Path::new("/sys/module").join(module).exists())
    }

    fn of(cpuinfo: &str, is_loaded: impl Fn(&str) -> bool) -> Self {
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
        let has = |flag| flags.split_whitespace().any(|word| word == flag);
        // Only one of these modules can be in charge, and the software one loads only where it is;
        // the hardware ones may be loaded or built in without finding a processor for them.
        if is_loaded("kvm_pvm") {
            Self::Software
        } else if is_loaded("kvm_intel") && has("vmx") {
            Self::Hardware(Vendor::Intel)
        } else if is_loaded("kvm_amd") && has("svm") {
            Self::Hardware(Vendor::Amd)
        } else {
            Self::Unknown
        }
    }
}

/// What a host's KVM offers, as far as anybody asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// What stands behind it.
    pub flavor: KvmFlavor,
    /// How many vcpus it recommends for one guest at most.
    pub recommended_vcpus: usize,
    /// How many vcpus one guest can have.
    pub max_vcpus: usize,
    /// How many memory slots one guest can have.
    pub max_slots: usize,
    /// How many bits a guest-physical address has.
    pub address_bits: u32,
    /// Whether it *says* that it reports faults on guest memory with their address. (For memory
    /// mapped from a process it does not, up to Linux 6.18.)
    pub claims_memory_fault_info: bool,
    /// Whether a halted vcpu can be made to stay on its cpu.
    pub can_disable_halt_exits: bool,
    /// Whether the local APIC's timer has a TSC-deadline mode.
    pub has_tsc_deadline: bool,
}

/// An open `/dev/kvm` that has all that a guest needs.
#[derive(Debug)]
pub struct KvmSystem {
    kvm: Kvm,
    path: String,
    facts: KvmFacts,
    cpuid: Vec<kvm_cpuid_entry2>,
}

/// What no guest can do without, in words.
const NEEDED: [(Cap, &str); 11] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::UserMemory, "memory slots"),
    (Cap::SetTssAddr, "a settable task-state address"),
    (Cap::SetIdentityMapAddr, "a settable identity map"),
    (Cap::ExtCpuid, "settable processor features"),
    (Cap::MpState, "processor states"),
    (Cap::Irqfd, "interrupts by file descriptor"),
    (Cap::IrqRouting, "settable interrupt routing"),
    (Cap::Pit2, "an in-kernel interval timer"),
    (Cap::ImmediateExit, "immediate exits"),
    (Cap::SyncMmu, "memory that follows the host's mapping"),
];

impl KvmSystem {
    /// Opens `/dev/kvm` and checks that it has what a guest needs.
    ///
    /// # Errors
    ///
    /// [`KvmError`] names the cause and the remedy.
    pub fn open() -> Result<Self, KvmError> {
        Self::open_at("/dev/kvm")
    }

    /// The same for a device elsewhere.
    ///
    /// # Errors
    ///
    /// [`KvmError`] names the cause and the remedy.
    pub fn open_at(path: &str) -> Result<Self, KvmError> {
        let name = || path.to_owned();
        let c_path = CString::new(path).map_err(|_| KvmError::Missing { path: name() })?;
        let kvm = Kvm::new_with_path(c_path).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR => {
                KvmError::Missing { path: name() }
            }
            libc::EACCES | libc::EPERM => KvmError::NoPermission { path: name() },
            libc::EBUSY => KvmError::Busy { path: name() },
            _ => refused(format!("open {path}"))(error),
        })?;
        match kvm.get_api_version() {
            found if u32::try_from(found) == Ok(KVM_API_VERSION) => {}
            found if found < 0 => return Err(KvmError::NotKvm { path: name() }),
            found => return Err(KvmError::WrongVersion { found }),
        }
        for (capability, what) in NEEDED {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Lacks { what });
            }
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(refused("name the processor features it supports"))?
            .as_slice()
            .to_vec();
        let halt_bit = KVM_X86_DISABLE_EXITS_HLT.cast_signed();
        let facts = KvmFacts {
            flavor: KvmFlavor::detect(),
            recommended_vcpus: kvm.get_nr_vcpus(),
            max_vcpus: kvm.get_max_vcpus(),
            max_slots: kvm.get_nr_memslots(),
            address_bits: address_bits(&cpuid),
            claims_memory_fault_info: kvm.check_extension_raw(KVM_CAP_MEMORY_FAULT_INFO.into()) > 0,
            can_disable_halt_exits: kvm.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into())
                & halt_bit
                != 0,
            has_tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        };
        Ok(Self { kvm, path: name(), facts, cpuid })
    }

    /// What it offers.
    #[must_use]
    pub fn facts(&self) -> KvmFacts {
        self.facts
    }

    pub(super) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn cpuid(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }
}

/// Leaf 0x8000_0008, EAX: bits 23-16 are the guest's width where it differs, bits 7-0 the width. 36
/// where the leaf is missing (Intel SDM volume 3, section 4.1.4).
fn address_bits(cpuid: &[kvm_cpuid_entry2]) -> u32 {
    let leaf = cpuid.iter().find(|leaf| leaf.function == 0x8000_0008);
    match leaf.map_or(0, |leaf| leaf.eax) {
        0 => 36,
        eax if eax >> 16 & 0xff != 0 => eax >> 16 & 0xff,
        eax => eax & 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMD: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt\n\n";
    const INTEL: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx ept\n\n";
    const PLAIN: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu sse\n\n";

    #[test]
    fn the_flavor_is_told_from_flags_and_modules() {
        let flavor = |cpuinfo, modules: &[&str]| KvmFlavor::of(cpuinfo, |it| modules.contains(&it));
        let (intel, amd) = (Vendor::Intel, Vendor::Amd);
        assert_eq!(flavor(AMD, &["kvm_amd"]), KvmFlavor::Hardware(amd));
        assert_eq!(flavor(INTEL, &["kvm_intel"]), KvmFlavor::Hardware(intel));
        assert_eq!(flavor(PLAIN, &["kvm_pvm"]), KvmFlavor::Software);
        // Hardware that is there but not in charge.
        assert_eq!(flavor(AMD, &["kvm_pvm"]), KvmFlavor::Software);
        // A module without its hardware, and hardware without its module.
        assert_eq!(flavor(PLAIN, &["kvm_amd"]), KvmFlavor::Unknown);
        assert_eq!(flavor(AMD, &[]), KvmFlavor::Unknown);
        assert_eq!(flavor("", &[]), KvmFlavor::Unknown);
    }

    #[test]
    fn an_address_is_as_wide_as_the_processor_says() {
        let leaf =
            |eax| kvm_cpuid_entry2 { function: 0x8000_0008, eax, ..kvm_cpuid_entry2::default() };
        assert_eq!(address_bits(&[leaf(0x3030)]), 48);
        assert_eq!(address_bits(&[leaf(0x0028_3030)]), 40);
        assert_eq!(address_bits(&[]), 36);
    }

    #[test]
    fn a_device_that_is_not_there_is_named_with_the_remedy() {
        let error = KvmSystem::open_at("/dev/no-such-kvm").unwrap_err();
        let path = "/dev/no-such-kvm".to_owned();
        assert_eq!(error, KvmError::Missing { path });
        assert!(error.to_string().contains("modprobe"));
    }

    #[test]
    fn a_device_that_is_not_kvm_is_named() {
        let error = KvmSystem::open_at("/dev/null").unwrap_err();
        let path = "/dev/null".to_owned();
        assert_eq!(error, KvmError::NotKvm { path });
    }

    #[test]
    fn a_path_that_cannot_be_a_path_is_refused() {
        assert!(KvmSystem::open_at("/dev/k\0vm").is_err());
    }
}
