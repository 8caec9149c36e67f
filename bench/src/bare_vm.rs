//! KVM and nothing else: what the references run on.
//!
//! The same kind of machine as the subject's: interrupt controllers and timer in the kernel,
//! one memory slot per stretch of memory, the same guest with the same registers. What is left
//! out is everything skep adds: no map, no tables, no actors, no shootdown domain.

#![expect(
    unsafe_code,
    reason = "gives a guest memory of this process, and shares the byte that ends KVM_RUN"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use actors::contract::boot::{EntryMode, EntryState};
use actors::platform::DEBUG_EXIT;
use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_dtable,
    kvm_pit_config, kvm_regs, kvm_run, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use loader_actor::guests::{Guest, Piece};
use pmap_actor::host::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::error::{BenchError, host};
use crate::signal;

/// Where KVM keeps pages of its own on old Intel processors: in the hole for devices.
const TASK_STATE_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Segment types (Intel SDM volume 3, section 3.4.5.1).
const DATA: u8 = 0x3;
const CODE: u8 = 0xb;
const BUSY_TASK: u8 = 0xb;

/// A machine of KVM's. It lives in the kernel until this and its vcpus are dropped.
#[derive(Debug)]
pub(crate) struct BareVm {
    pub(crate) vm: VmFd,
    /// What was placed in the guest's memory, and where.
    pub(crate) pieces: Vec<Piece>,
}

impl BareVm {
    /// A machine with `guest` in `memory`, and its vcpus. The first one begins where the guest
    /// does, the others wait for INIT and SIPI.
    pub(crate) fn new(
        guest: &Guest,
        memory: &Arc<GuestMemory>,
        vcpus: u16,
    ) -> Result<(Self, Vec<BareVcpu>), BenchError> {
        Self::prepared(guest, memory, vcpus, |_| Ok(()))
    }

    /// The same; `prepare` comes before the first vcpu.
    pub(crate) fn prepared(
        guest: &Guest,
        memory: &Arc<GuestMemory>,
        vcpus: u16,
        prepare: impl FnOnce(&VmFd) -> Result<(), BenchError>,
    ) -> Result<(Self, Vec<BareVcpu>), BenchError> {
        let kvm = Kvm::new().map_err(host("open /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(host("create a virtual machine"))?;
        equip(&vm).map_err(host("equip a virtual machine"))?;
        prepare(&vm)?;
        give_memory(&vm, memory, 0)?;
        let pieces =
            guest.pieces(&memory.layout(), vcpus).map_err(host("prepare the built-in guest"))?;
        for (at, bytes) in &pieces {
            let done = memory.backing().write_slice(bytes, GuestAddress(at.0));
            done.map_err(host("place the built-in guest"))?;
        }
        let made: Result<Vec<_>, _> =
            (0..vcpus).map(|id| BareVcpu::new(&kvm, &vm, id, memory)).collect();
        let made = made?;
        if let Some(first) = made.first() {
            begin(&first.fd, &(guest.entry)()).map_err(host("set a vcpu's registers"))?;
        }
        Ok((Self { vm, pieces }, made))
    }
}

/// Makes a memory slot of each stretch, or gives the slots these flags.
pub(crate) fn give_memory(vm: &VmFd, memory: &GuestMemory, flags: u32) -> Result<(), BenchError> {
    for (index, slot) in (0..).zip(memory.slots()) {
        let region = kvm_userspace_memory_region {
            slot: index,
            flags,
            guest_phys_addr: slot.range.start().0,
            memory_size: slot.range.len(),
            userspace_addr: slot.host,
        };
        // SAFETY: the guest view is made for this: no Rust reference into it is ever made,
        // and every vcpu keeps it mapped.
        unsafe { vm.set_user_memory_region(region) }.map_err(host("give a guest memory"))?;
    }
    Ok(())
}

fn equip(vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)?;
    vm.set_tss_address(TASK_STATE_ADDRESS)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() })
}

/// 64-bit mode with flat segments, as every built-in guest that is measured begins.
fn begin(fd: &VcpuFd, entry: &EntryState) -> io::Result<()> {
    let EntryMode::Long { cr3, gdt, gdt_limit, code, data, cpl: 0 } = entry.mode else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let flat = |selector, type_| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: u8::from(type_ == DATA),
        l: u8::from(type_ == CODE),
        ..kvm_segment::default()
    };
    let mut system = fd.get_sregs()?;
    system.cs = flat(code, CODE);
    let data = flat(data, DATA);
    let segments = [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss];
    segments.into_iter().for_each(|segment| *segment = data);
    system.tr =
        kvm_segment { limit: 0xffff, type_: BUSY_TASK, present: 1, ..kvm_segment::default() };
    system.gdt = kvm_dtable { base: gdt.0, limit: gdt_limit, ..kvm_dtable::default() };
    system.idt = kvm_dtable::default();
    system.cr3 = cr3.0;
    // Protection, extension type, paging; PAE; long mode enabled and active.
    (system.cr0, system.cr4, system.efer) = (1 << 31 | 1 << 4 | 1, 1 << 5, 1 << 10 | 1 << 8);
    fd.set_sregs(&system)?;
    fd.set_regs(&kvm_regs {
        rip: entry.rip.0,
        rsp: entry.rsp.0,
        rsi: entry.rsi,
        rbx: entry.rbx,
        rflags: entry.rflags | 2,
        ..kvm_regs::default()
    })?;
    Ok(())
}

/// How `KVM_RUN` returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// A signal, or the byte that ends it.
    Interrupted,
    /// The guest wrote this to the debug-exit port.
    Ended(u8),
    /// The vcpu's ring of dirty pages is full.
    RingFull,
    /// In words; no measured guest should do that.
    Otherwise(String),
}

/// A processor of [`BareVm`].
#[derive(Debug)]
pub(crate) struct BareVcpu {
    pub(crate) fd: VcpuFd,
    exit_byte: ExitByte,
    /// The guest's memory stays mapped as long as the processor exists.
    _memory: Arc<GuestMemory>,
}

impl BareVcpu {
    fn new(kvm: &Kvm, vm: &VmFd, id: u16, memory: &Arc<GuestMemory>) -> Result<Self, BenchError> {
        let what = || format!("create vcpu {id}");
        let fd = vm.create_vcpu(id.into()).map_err(host(what()))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host(what()))?;
        fd.set_cpuid2(&cpuid).map_err(host(what()))?;
        let exit_byte = ExitByte::map(&fd, vm.run_size()).map_err(host(what()))?;
        Ok(Self { fd, exit_byte, _memory: memory.clone() })
    }

    /// The byte that ends `KVM_RUN`.
    pub(crate) fn exit_byte(&self) -> ExitByte {
        self.exit_byte.clone()
    }

    /// Lets the signal interrupt `KVM_RUN` although the calling thread has it blocked.
    pub(crate) fn open_to_the_signal(&self) -> io::Result<()> {
        signal::open_inside_the_guest(self.fd.as_raw_fd())
    }

    /// `KVM_RUN`.
    pub(crate) fn run(&mut self) -> Ran {
        match self.fd.run() {
            Err(error) if error.errno() == libc::EINTR => Ran::Interrupted,
            // A processor that waited for its start was started.
            Err(error) if error.errno() == libc::EAGAIN => Ran::Interrupted,
            Ok(VcpuExit::IoOut(port, [value])) if port == DEBUG_EXIT => Ran::Ended(*value),
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => Ran::RingFull,
            Ok(exit) => Ran::Otherwise(format!("the guest came out with {exit:?}")),
            Err(error) => Ran::Otherwise(format!("KVM_RUN failed: {error}")),
        }
    }
}

/// `immediate_exit` in the run area of a vcpu, through a mapping of its own. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct ExitByte {
    area: Arc<RunArea>,
}

/// # Invariants
///
/// `base .. base + len` is mapped, readable and writable, while the value lives; it is at
/// least a `kvm_run`; and of it only `immediate_exit` is touched, as an atomic.
#[derive(Debug)]
struct RunArea {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: by the invariants it leads to one atomic only.
unsafe impl Send for RunArea {}
// SAFETY: as above.
unsafe impl Sync for RunArea {}

impl ExitByte {
    fn map(fd: &impl AsRawFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping wherever the kernel likes; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrInUse)?;
        Ok(Self { area: Arc::new(RunArea { base, len }) })
    }

    fn byte(&self) -> &AtomicU8 {
        let byte = self.area.base.as_ptr().wrapping_add(offset_of!(kvm_run, immediate_exit));
        // SAFETY: mapped while `self` lives, and only ever used as an atomic, by the invariants.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Ends this `KVM_RUN` at the kernel's next look, or the next one at its first.
    pub(crate) fn set(&self) {
        self.byte().store(1, Ordering::Release);
    }

    /// Says whether it was set.
    pub(crate) fn clear(&self) -> bool {
        let byte = self.byte();
        byte.load(Ordering::Relaxed) != 0 && byte.swap(0, Ordering::Acquire) != 0
    }
}

impl Drop for RunArea {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody can reach it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
