//! Ways to learn which pages a guest stored to, each as bare as it can be: the references of whatever
//! the pmap does about it.
//!
//! | | arm | a first store | collect, and arm again |
//! |---|---|---|---|
//! | dirty log | the slot's flag | KVM, in the kernel | `KVM_GET_DIRTY_LOG` |
//! | dirty log, manual | the flag, and clear all | KVM | `KVM_GET_DIRTY_LOG`, `KVM_CLEAR_DIRTY_LOG` |
//! | dirty ring | the slot's flag | KVM; a full ring ends `KVM_RUN` | the ring, `KVM_RESET_DIRTY_RINGS` |
//! | write-protect | `UFFDIO_WRITEPROTECT` | a userfaultfd event and its answer | the bitmap, `UFFDIO_WRITEPROTECT` |
//! | write-protect, asynchronous | `PAGEMAP_SCAN` | the host kernel, by itself | `PAGEMAP_SCAN` |

#![expect(unsafe_code, reason = "maps a vcpu's ring, and uses ioctls without wrappers")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use actors::PAGE_SIZE;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_PAGE_OFFSET,
    KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1,
    kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use parking_lot::Mutex;
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::host::pagemap::Pagemap;
use pmap_actor::host::userfault::{BATCH, Fault, Userfault, feature};

use crate::bare_vm::give_memory;
use crate::dirtier::{Dirtier, FREE, OnFull, Prepared};
use crate::error::{BenchError, host};
use crate::kernel;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Log,
    ManualLog,
    Ring,
    WriteProtect,
    WriteProtectAsync,
}

impl Method {
    pub(crate) const ALL: [Self; 5] =
        [Self::Log, Self::ManualLog, Self::Ring, Self::WriteProtect, Self::WriteProtectAsync];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Log => "kvm-log",
            Self::ManualLog => "kvm-log-manual",
            Self::Ring => "kvm-ring",
            Self::WriteProtect => "uffd-wp",
            Self::WriteProtectAsync => "uffd-wp-async",
        }
    }
}

/// What one round cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// From "nobody asks" to every page watched.
    pub(crate) arm: Duration,
    /// A pass with every page watched, in ticks.
    pub(crate) watched_ticks: u64,
    /// A pass with nothing watched, in ticks.
    pub(crate) free_ticks: u64,
    /// The answer, with every page watched again.
    pub(crate) collect: Duration,
}

/// Runs `rounds` rounds of one method over `pages` pages: a guest on `vcpu`, whoever serves faults on
/// `pager`.
pub(crate) fn measure(
    method: Method,
    pages: u32,
    rounds: u64,
    vcpu: &[usize],
    pager: &[usize],
) -> Result<Vec<Round>, BenchError> {
    let bytes = FREE.0 + u64::from(pages) * PAGE_SIZE;
    let layout = MemoryLayout::split(bytes, LOWMEM_LIMIT, u64::BITS)
        .map_err(host("lay out a guest's memory"))?;
    let memory = GuestMemory::new(layout).map_err(host("make a guest's memory"))?;
    let memory = Arc::new(memory);
    let prepared = Prepared::new(&memory, pages, |vm| prepare(method, vm))?;
    let ring = (method == Method::Ring).then(|| Ring::map(&prepared)).transpose()?;
    let ring = ring.map(|ring| Arc::new(Mutex::new(ring)));
    let on_full = ring.clone();
    let on_full: OnFull = Box::new(move || match &on_full {
        Some(ring) => {
            let (mut ring, began) = (ring.lock(), Instant::now());
            ring.filled += 1;
            let done = ring.take();
            ring.took += began.elapsed();
            done
        }
        None => Err(io::Error::other("there is no ring")),
    });
    let mut guest = prepared.start(vcpu.to_vec(), on_full)?;
    let mut watch = None;
    let rounds = (|| {
        // Every page is there and mapped before anybody watches.
        guest.pass()?;
        watch = Some(Watch::new(method, &memory, &guest, ring, pager)?);
        let watch = watch.as_mut().expect("just made");
        (0..rounds).map(|_| round(watch, &mut guest)).collect()
    })();
    // Closing a userfaultfd lets a guest go on that waits for it; only then can it end.
    drop(watch);
    guest.end()?;
    rounds
}

fn round(watch: &mut Watch, guest: &mut Dirtier) -> Result<Round, BenchError> {
    // Whatever the last round took out of KVM's tables comes back first.
    guest.pass()?;
    let free_ticks = guest.pass()?;
    let began = Instant::now();
    watch.arm(guest)?;
    let arm = began.elapsed();
    let watched_ticks = guest.pass()?;
    let began = Instant::now();
    let found = watch.collect(guest)?;
    let collect = began.elapsed() + watch.collected_meanwhile();
    let twice = watch.entered_twice();
    if found < guest.pages() || found > guest.pages() + twice {
        let why = format!("{found} pages were found of {} written", guest.pages());
        return Err(BenchError::Unlike(why));
    }
    watch.disarm(guest)?;
    Ok(Round { arm, watched_ticks, free_ticks, collect })
}

const RING_ENTRIES: u32 = 1 << 16;
const RING_BYTES: usize = RING_ENTRIES as usize * 16;

/// What must be said before the first vcpu exists.
fn prepare(method: Method, vm: &VmFd) -> Result<(), BenchError> {
    let enable = |cap, argument| {
        let mut enable = kvm_enable_cap { cap, ..kvm_enable_cap::default() };
        enable.args[0] = argument;
        vm.enable_cap(&enable)
    };
    match method {
        Method::ManualLog => {
            let how = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
            enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, how.into()).map_err(host("log by hand"))
        }
        Method::Ring => enable(KVM_CAP_DIRTY_LOG_RING_ACQ_REL, RING_BYTES as u64)
            .or_else(|_| enable(KVM_CAP_DIRTY_LOG_RING, RING_BYTES as u64))
            .map_err(host("make a ring of dirty pages")),
        _ => Ok(()),
    }
}

/// One method at work.
enum Watch {
    Log { memory: Arc<GuestMemory>, is_manual: bool },
    Ring { memory: Arc<GuestMemory>, ring: Arc<Mutex<Ring>> },
    WriteProtect { memory: Arc<GuestMemory>, handler: Handler },
    Async { memory: Arc<GuestMemory>, userfault: Userfault, pagemap: Pagemap },
}

impl Watch {
    fn new(
        method: Method,
        memory: &Arc<GuestMemory>,
        guest: &Dirtier,
        ring: Option<Arc<Mutex<Ring>>>,
        pager: &[usize],
    ) -> Result<Self, BenchError> {
        let memory = memory.clone();
        Ok(match (method, ring) {
            (Method::Ring, Some(ring)) => Self::Ring { memory, ring },
            (Method::WriteProtect, _) => {
                let handler = Handler::start(&memory, guest, pager)?;
                Self::WriteProtect { memory, handler }
            }
            (Method::WriteProtectAsync, _) => {
                let needed =
                    feature::PAGEFAULT_FLAG_WP | feature::WP_HUGETLBFS_SHMEM | feature::WP_ASYNC;
                let userfault = Userfault::open_with(needed).map_err(host("open a userfaultfd"))?;
                register(&userfault, &memory, guest)?;
                let pagemap = Pagemap::open().map_err(host("open the pagemap"))?;
                Self::Async { memory, userfault, pagemap }
            }
            (method, _) => Self::Log { memory, is_manual: method == Method::ManualLog },
        })
    }

    fn arm(&mut self, guest: &Dirtier) -> Result<(), BenchError> {
        match self {
            Self::Log { memory, is_manual } => {
                give_memory(&guest.machine.vm, memory, KVM_MEM_LOG_DIRTY_PAGES)?;
                if *is_manual {
                    // All bits are set at first, and nothing is protected until they are cleared.
                    clear(&guest.machine.vm, memory, &mut all_ones(memory))?;
                }
                Ok(())
            }
            Self::Ring { memory, ring } => {
                let mut ring = ring.lock();
                (ring.taken, ring.filled, ring.took) = (0, 0, Duration::ZERO);
                give_memory(&guest.machine.vm, memory, KVM_MEM_LOG_DIRTY_PAGES)
            }
            Self::WriteProtect { memory, handler } => handler.protect(memory, guest, true),
            Self::Async { .. } => self.collect(guest).map(drop),
        }
    }

    /// How many pages of the last answer may be in it twice.
    fn entered_twice(&self) -> u64 {
        match self {
            Self::Ring { ring, .. } => ring.lock().filled,
            _ => 0,
        }
    }

    /// What was spent on the last answer while the guest was still writing.
    fn collected_meanwhile(&self) -> Duration {
        match self {
            Self::Ring { ring, .. } => ring.lock().took,
            _ => Duration::ZERO,
        }
    }

    /// How many pages were written; they are watched again.
    fn collect(&mut self, guest: &Dirtier) -> Result<u64, BenchError> {
        match self {
            Self::Log { memory, is_manual } => {
                let bytes = usize::try_from(memory.layout().low().len()).map_err(host("count"))?;
                let log = guest.machine.vm.get_dirty_log(0, bytes);
                let mut bits = log.map_err(host("read KVM's dirty log"))?;
                let free = usize::try_from(FREE.0 / PAGE_SIZE / 64).map_err(host("count"))?;
                let found = bits[free..].iter().map(|word| u64::from(word.count_ones())).sum();
                if *is_manual {
                    clear(&guest.machine.vm, memory, &mut bits)?;
                }
                Ok(found)
            }
            Self::Ring { ring, .. } => {
                let mut ring = ring.lock();
                ring.take().map_err(host("read a ring of dirty pages"))?;
                Ok(ring.taken)
            }
            Self::WriteProtect { memory, handler } => {
                let found = handler.written.iter().map(|word| word.swap(0, Ordering::Relaxed));
                let found = found.map(|word| u64::from(word.count_ones())).sum();
                handler.protect(memory, guest, true)?;
                Ok(found)
            }
            Self::Async { memory, pagemap, .. } => {
                let start = memory.guest_address(guest.range().start());
                let mut found = 0;
                pagemap
                    .take_written(start, start + guest.range().len(), |stretch| {
                        found += (stretch.end - stretch.start) / PAGE_SIZE;
                    })
                    .map_err(host("scan the pagemap"))?;
                Ok(found)
            }
        }
    }

    fn disarm(&mut self, guest: &Dirtier) -> Result<(), BenchError> {
        match self {
            Self::Log { memory, .. } => give_memory(&guest.machine.vm, memory, 0),
            Self::Ring { memory, ring } => {
                give_memory(&guest.machine.vm, memory, 0)?;
                ring.lock().take().map_err(host("read a ring of dirty pages"))
            }
            Self::WriteProtect { memory, handler } => handler.protect(memory, guest, false),
            Self::Async { memory, userfault, .. } => {
                let start = memory.guest_address(guest.range().start());
                let done = userfault.set_write_protection(start, guest.range().len(), false);
                done.map_err(host("allow stores again"))
            }
        }
    }
}

fn register(
    userfault: &Userfault,
    memory: &GuestMemory,
    guest: &Dirtier,
) -> Result<(), BenchError> {
    let start = memory.guest_address(guest.range().start());
    let done = userfault.register_write_protect(start, guest.range().len());
    done.map_err(host("watch guest memory with userfaultfd"))
}

fn all_ones(memory: &GuestMemory) -> Vec<u64> {
    let words = (memory.layout().low().len() / PAGE_SIZE).div_ceil(64);
    vec![u64::MAX; usize::try_from(words).unwrap_or(0)]
}

/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)` and `_IO(KVMIO, 0xc7)`.
const KVM_CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;
const KVM_RESET_DIRTY_RINGS: u64 = 0xaec7;
const _: () = assert!(size_of::<kvm_clear_dirty_log>() == 0x18);

/// Write-protects the pages of these bits again.
fn clear(vm: &VmFd, memory: &GuestMemory, bits: &mut [u64]) -> Result<(), BenchError> {
    let pages = memory.layout().low().len() / PAGE_SIZE;
    let argument = kvm_clear_dirty_log {
        slot: 0,
        num_pages: u32::try_from(pages).map_err(host("count pages"))?,
        first_page: 0,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bits.as_mut_ptr().cast(),
        },
    };
    // SAFETY: the kernel reads one bit for each page of the slot, which `bits` has.
    let done = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const argument) };
    if done == 0 {
        return Ok(());
    }
    Err(host("clear KVM's dirty log")(io::Error::last_os_error()))
}

/// A vcpu's ring of dirty pages.
///
/// # Invariants
///
/// `base` is a mapping of [`RING_BYTES`] bytes of the vcpu's, unmapped on drop; each entry (flags and slot, 32 bits
/// each, then the page's number in the slot) is used through atomics only.
struct Ring {
    base: NonNull<u8>,
    vm: RawFd,
    next: u32,
    /// Pages taken so far.
    taken: u64,
    /// How often it was full: the store that met that is made again, and may be entered again.
    filled: u64,
    /// What emptying it took, then.
    took: Duration,
}

// SAFETY: by the invariants it leads to atomics only.
unsafe impl Send for Ring {}

impl Ring {
    fn map(prepared: &Prepared) -> Result<Self, BenchError> {
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE.cast_signed();
        let fd = prepared.vcpu().fd.as_raw_fd();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new shared mapping wherever the kernel likes; nothing of ours is replaced.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), RING_BYTES, access, libc::MAP_SHARED, fd, offset)
        };
        let base = (base != libc::MAP_FAILED).then(|| NonNull::new(base.cast())).flatten();
        let base = base.ok_or_else(io::Error::last_os_error);
        let base = base.map_err(host("map a ring of dirty pages"))?;
        Ok(Self {
            base,
            vm: prepared.machine().vm.as_raw_fd(),
            next: 0,
            taken: 0,
            filled: 0,
            took: Duration::ZERO,
        })
    }

    /// Takes what is in it, and lets KVM watch those pages again.
    fn take(&mut self) -> io::Result<()> {
        const DIRTY: u32 = 1;
        const RESET: u32 = 2;
        loop {
            let index = (self.next % RING_ENTRIES) as usize;
            let flags = self.base.as_ptr().wrapping_add(index * 16);
            // SAFETY: in the mapping, and only ever used as an atomic, by the invariants.
            let flags = unsafe { AtomicU32::from_ptr(flags.cast()) };
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                break;
            }
            let page = self.base.as_ptr().wrapping_add(index * 16 + 8);
            // SAFETY: in the mapping, and written by the kernel before the flags said so.
            let page = unsafe { AtomicU64::from_ptr(page.cast()) }.load(Ordering::Relaxed);
            flags.store(RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            // The guest's own page tables are written by its processor.
            self.taken += u64::from(page >= FREE.0 / PAGE_SIZE);
        }
        // SAFETY: this ioctl takes no argument; the machine outlives its ring's user.
        let done = unsafe { libc::ioctl(self.vm, KVM_RESET_DIRTY_RINGS, 0) };
        if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` mapped; nobody can reach it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), RING_BYTES) };
    }
}

/// Answers write-protect faults: notes the page and lets the guest go on.
struct Handler {
    userfault: Arc<Userfault>,
    written: Arc<Vec<AtomicU64>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Handler {
    fn start(memory: &GuestMemory, guest: &Dirtier, cpus: &[usize]) -> Result<Self, BenchError> {
        let needed = feature::PAGEFAULT_FLAG_WP | feature::WP_HUGETLBFS_SHMEM;
        let userfault = Userfault::open_with(needed).map_err(host("open a userfaultfd"))?;
        register(&userfault, memory, guest)?;
        let userfault = Arc::new(userfault);
        let words = usize::try_from(guest.pages().div_ceil(64)).map_err(host("count pages"))?;
        let written: Arc<Vec<AtomicU64>> =
            Arc::new((0..words).map(|_| AtomicU64::new(0)).collect());
        let over = Arc::new(AtomicBool::new(false));
        let (start, cpus) = (memory.guest_address(guest.range().start()), cpus.to_vec());
        let thread = Builder::new().name("bench-pager".to_owned());
        let parts = (userfault.clone(), written.clone(), over.clone());
        let serve = move || {
            let (userfault, written, over) = parts;
            kernel::pin(0, &cpus)?;
            let nothing = Fault { address: 0, is_write: false, is_write_protect: false, thread: 0 };
            let mut faults = [nothing; BATCH];
            while !over.load(Ordering::Acquire) {
                let count = userfault.read(&mut faults)?;
                for fault in &faults[..count] {
                    let page = (fault.address - start) / PAGE_SIZE;
                    if let Some(word) =
                        usize::try_from(page / 64).ok().and_then(|at| written.get(at))
                    {
                        word.fetch_or(1 << (page % 64), Ordering::Relaxed);
                    }
                    userfault.set_write_protection(start + page * PAGE_SIZE, PAGE_SIZE, false)?;
                }
                if count == 0 {
                    let mut entry = libc::pollfd {
                        fd: userfault.as_raw_fd(),
                        events: libc::POLLIN,
                        revents: 0,
                    };
                    // SAFETY: one initialised entry that outlives the call.
                    unsafe { libc::poll(&raw mut entry, 1, 10) };
                }
            }
            Ok(())
        };
        let thread = thread.spawn(serve).map_err(host("start a thread"))?;
        Ok(Self { userfault, written, over, thread: Some(thread) })
    }

    fn protect(
        &self,
        memory: &GuestMemory,
        guest: &Dirtier,
        protect: bool,
    ) -> Result<(), BenchError> {
        let start = memory.guest_address(guest.range().start());
        let done = self.userfault.set_write_protection(start, guest.range().len(), protect);
        done.map_err(host("write-protect guest memory"))
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_finds_exactly_what_was_written() {
        let _turn = crate::ONE_AT_A_TIME.lock();
        if !std::path::Path::new("/dev/kvm").exists() {
            return;
        }
        let cpus = kernel::allowed_cpus().unwrap();
        for method in Method::ALL {
            // `measure` fails when a method finds more or less.
            match measure(method, 300, 2, &cpus, &cpus) {
                Ok(rounds) => assert!(rounds.iter().all(|round| round.watched_ticks > 0)),
                Err(BenchError::Host { what, why }) => {
                    eprintln!("not tested here: {}: cannot {what}: {why}", method.name());
                }
                Err(other) => panic!("{}: {other}", method.name()),
            }
        }
    }
}
