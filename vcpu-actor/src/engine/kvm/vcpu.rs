//! One processor inside the kernel.

#![expect(unsafe_code, reason = "two calls are not among those that kvm-ioctls wraps")]

use actors::contract::boot::EntryState;
use actors::{Gpa, Gva, VcpuId};
use kvm_bindings::{
    CpuId, KVM_MP_STATE_RUNNABLE, Msrs, kvm_cpuid_entry2, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_signal_mask,
};
use kvm_ioctls::VcpuFd;
use shootdown::{Generation, InGuest};
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::exit;
use super::regs;
use super::run_area::{RunArea, RunReport};
use super::system::{KvmError, refused};
use crate::engine::{Engine, Exit, Looks, Trip};
use crate::knock::mask_for_the_guest;
use crate::{KickKind, Knocker};

/// `_IOW(KVMIO, 0x8b, struct kvm_signal_mask)`.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = 0x4004_ae8b;
/// `_IOW(KVMIO, 0x9c, __u64)`.
const KVM_X86_SETUP_MCE: libc::c_ulong = 0x4008_ae9c;

/// `IA32_MCG_CAP`: one bank of machine-check registers, and `IA32_MCG_CTL`. Nothing is ever reported in them. KVM's own
/// default is 32 banks, and a booting Linux visits each: some 170 exits of every vcpu, and a file in sysfs for each.
const MACHINE_CHECKS: u64 = 1 << 8 | 1;

/// IA32_MISC_ENABLE, and its bit for fast string instructions.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_MTRR_DEF_TYPE: range registers on, everything else write-back.
const MEMORY_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Local APIC registers, by offset: what its two pins do.
const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
/// Delivery modes, in place: an interrupt from the old controller; a non-maskable one.
const EXTERNAL: u32 = 7 << 8;
const NON_MASKABLE: u32 = 4 << 8;

/// A vcpu of KVM.
#[derive(Debug)]
pub struct KvmVcpu {
    id: VcpuId,
    fd: VcpuFd,
    report: RunReport,
    knocker: Knocker,
    /// What the last `KVM_RUN` returned.
    returned: Returned,
    owes_completion: bool,
}

/// What `KVM_RUN` returned, when it was no knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Returned {
    /// 0, or a memory fault with its address: the report says the rest.
    Report,
    /// `EAGAIN`: a processor that waited to be started was started, or something else changed.
    Again,
    /// `EFAULT`, and the report says nothing.
    MemoryRefused,
    /// Another error.
    Failed(i32),
}

impl KvmVcpu {
    pub(super) fn new(
        id: VcpuId,
        fd: VcpuFd,
        run_size: usize,
        leaves: &[kvm_cpuid_entry2],
    ) -> Result<Self, KvmError> {
        let cpuid = CpuId::from_entries(leaves).map_err(|error| {
            refused(format!("take so many features for {id}"))(format!("{error:?}"))
        })?;
        fd.set_cpuid2(&cpuid).map_err(refused(format!("set the features of {id}")))?;
        connect_pins(&fd).map_err(refused(format!("set up the local APIC of {id}")))?;
        for (index, data) in [MISC_ENABLE, MEMORY_TYPE] {
            set_where_it_exists(&fd, index, data);
        }
        limit_machine_checks(&fd);
        let (area, report) =
            RunArea::map(&fd, run_size).map_err(refused(format!("share the run area of {id}")))?;
        Ok(Self {
            id,
            fd,
            report,
            knocker: Knocker::new(area),
            returned: Returned::Again,
            owes_completion: false,
        })
    }

    /// Which one it is.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.id
    }

    fn rip(&self) -> u64 {
        // Only for a message about a guest that is over; without it, it says 0.
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

/// Lets the pins of the local APIC do what they do after a reset by firmware: interrupts of the old
/// controller on one, NMI on the other. (Others set their own when INIT resets them.)
fn connect_pins(fd: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut apic = fd.get_lapic()?;
    set_delivery(&mut apic, LINT0, EXTERNAL);
    set_delivery(&mut apic, LINT1, NON_MASKABLE);
    fd.set_lapic(&apic)
}

/// Replaces the delivery mode in one register of a local APIC.
fn set_delivery(apic: &mut kvm_lapic_state, register: usize, mode: u32) {
    // The kernel declares the bytes signed.
    let bytes = &mut apic.regs[register..register + 4];
    let old: [u8; 4] = std::array::from_fn(|index| bytes[index].cast_unsigned());
    let new = u32::from_le_bytes(old) & !(7 << 8) | mode;
    for (byte, value) in bytes.iter_mut().zip(new.to_le_bytes()) {
        *byte = value.cast_signed();
    }
}

/// Sets a model-specific register. Not every kernel has every one of them, and a guest starts without
/// these two as well, only slower.
fn set_where_it_exists(fd: &VcpuFd, index: u32, data: u64) {
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let set = Msrs::from_entries(&[entry]).map(|msrs| fd.set_msrs(&msrs));
    if !matches!(set, Ok(Ok(1))) {
        tracing::debug!("model-specific register {index:#x} is not set: this KVM does not have it");
    }
}

/// A guest starts with KVM's 32 banks as well, only slower.
fn limit_machine_checks(fd: &VcpuFd) {
    // SAFETY: the kernel reads eight bytes.
    if unsafe { ioctl_with_ref(fd, KVM_X86_SETUP_MCE, &MACHINE_CHECKS) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "the guest sees KVM's own machine-check banks");
    }
}

impl Engine for KvmVcpu {
    fn knocker(&self) -> Knocker {
        self.knocker.clone()
    }

    fn settle_on_this_thread(&mut self, kick: KickKind) -> Result<(), String> {
        /// `kvm_signal_mask` with the kernel's eight bytes behind it.
        #[repr(C)]
        struct Mask {
            head: kvm_signal_mask,
            set: [u8; 8],
        }
        if kick == KickKind::Handler {
            return Ok(());
        }
        let why = |error: std::io::Error| format!("KVM takes no signal mask: {error}");
        let mask = Mask {
            head: kvm_signal_mask { len: 8, ..kvm_signal_mask::default() },
            set: mask_for_the_guest().map_err(why)?,
        };
        // SAFETY: the kernel reads the head and as many bytes behind it as it says.
        match unsafe { ioctl_with_ref(&self.fd, KVM_SET_SIGNAL_MASK, &mask) } {
            0 => Ok(()),
            _ => Err(why(std::io::Error::last_os_error())),
        }
    }

    fn begin(&mut self, entry: &EntryState) -> Result<(), String> {
        let why = |what| move |error: kvm_ioctls::Error| format!("KVM refused the {what}: {error}");
        let reset = self.fd.get_sregs().map_err(why("reading of registers"))?;
        self.fd.set_sregs(&regs::system(entry, &reset)).map_err(why("system registers"))?;
        self.fd.set_regs(&regs::general(entry)).map_err(why("general registers"))?;
        self.fd
            .set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })
            .map_err(why("start of a processor"))
    }

    /// Nothing is cached in user space: the kernel forgets by itself when the host mapping changes, and no
    /// host pointer into guest memory survives a trip here. The domain counts the flush.
    fn flush(&mut self, _now: Generation) {}

    fn enter(&mut self, _inside: &InGuest<'_>) -> Trip {
        self.owes_completion = false;
        self.returned = match self.fd.run() {
            Ok(_) => Returned::Report,
            Err(error) => match error.errno() {
                libc::EINTR => return Trip::Knocked,
                libc::EAGAIN => Returned::Again,
                libc::EFAULT => Returned::MemoryRefused,
                errno => Returned::Failed(errno),
            },
        };
        Trip::Exit
    }

    fn exit(&mut self) -> Exit<'_> {
        match self.returned {
            Returned::Again => Exit::Nothing,
            Returned::MemoryRefused => Exit::MemoryRefused { rip: self.rip(), at: None },
            Returned::Failed(errno) => Exit::HostFailed {
                what: format!(
                    "KVM cannot run the vcpu: {}",
                    std::io::Error::from_raw_os_error(errno)
                ),
            },
            Returned::Report => {
                let Self { fd, report, owes_completion, .. } = self;
                let rip = || fd.get_regs().map_or(0, |regs| regs.rip);
                let exit = exit::decode(report.bytes(), rip);
                *owes_completion = matches!(exit, Exit::Port(_) | Exit::Mmio(_));
                exit
            }
        }
    }

    /// A guest that reads KVM's clock finds a mark there and forgives its watchdogs.
    fn excuse_pause(&mut self) {
        // EINVAL: the guest has no such clock, so there is nothing to tell.
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::trace!(vcpu = self.id.0, %error, "the guest is not told of its pause");
        }
    }

    fn owes_completion(&self) -> bool {
        self.owes_completion
    }

    fn look(&mut self) -> Result<Looks, String> {
        let why = |error: kvm_ioctls::Error| format!("KVM does not show the registers: {error}");
        let regs = self.fd.get_regs().map_err(why)?;
        let sregs = self.fd.get_sregs().map_err(why)?;
        Ok(Looks {
            rip: Gva(regs.rip),
            rsp: Gva(regs.rsp),
            cr3: Gpa(sregs.cr3),
            rflags: regs.rflags,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::system::KvmSystem;
    use super::super::vm::{Halts, KvmVm};
    use super::*;

    #[test]
    fn a_guest_sees_one_bank_of_machine_checks() {
        const IA32_MCG_CAP: u32 = 0x179;
        let Ok(kvm) = KvmSystem::open() else {
            eprintln!("not tested here: no KVM");
            return;
        };
        let machine = KvmVm::create(&kvm, 1, Halts::default()).unwrap();
        let vcpu = machine.create_vcpu(VcpuId(0)).unwrap();
        let asked = kvm_msr_entry { index: IA32_MCG_CAP, ..kvm_msr_entry::default() };
        let mut asked = Msrs::from_entries(&[asked]).unwrap();
        assert_eq!(vcpu.fd.get_msrs(&mut asked).unwrap(), 1);
        assert_eq!(asked.as_slice()[0].data, MACHINE_CHECKS);
    }
}
