//! The reference of `fault`: a bare fault handler.
//!
//! ```text
//!   vcpu thread                        handler
//!   KVM_RUN: touches a page  ────▶     polls, reads the event
//!   sleeps in the kernel               UFFDIO_ZEROPAGE of the window the page lies in
//!   goes on                  ◀────     (which wakes it)
//! ```
//!
//! The same guest, the same registration (missing, minor and write-protect faults of a shared
//! mapping of a memfd), the same placement and as many pages per call as the subject. It asks
//! no map whether the page may exist, keeps no tables, counts nothing and answers nobody.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use actors::doorbell::Doorbell;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{GpaRange, PAGE_SIZE};
use loader_actor::guests::toucher;
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::host::userfault::{BATCH, Fault, Installed, Userfault};

use crate::bare_vm::{BareVcpu, BareVm, Ran};
use crate::error::{BenchError, host};
use crate::fault::{Touched, Where};
use crate::kernel;

/// Runs `toucher` once, in a machine made for it.
pub(crate) fn touch_all(place: &Where) -> Result<Touched, BenchError> {
    let layout = MemoryLayout::split(place.memory_bytes(), LOWMEM_LIMIT, u64::BITS)
        .map_err(host("lay out a guest's memory"))?;
    let memory = GuestMemory::new(layout).map_err(host("make a guest's memory"))?;
    let memory = Arc::new(memory);
    let (vm, vcpus) = BareVm::new(&toucher::GUEST, &memory, 1)?;
    let userfault = Userfault::open().map_err(host("open a userfaultfd"))?;
    for slot in memory.slots() {
        let done = userfault.register(slot.host, slot.range.len());
        done.map_err(host("watch guest memory with userfaultfd"))?;
    }
    let mut handler =
        Handler { userfault, window: place.around * PAGE_SIZE, spin: place.spin, served: 0 };
    // What was placed is within the guest's reach from the start, as the loader does it.
    for (at, bytes) in &vm.pieces {
        let range = GpaRange::covering(*at, bytes.len() as u64).map_err(host("install a guest"))?;
        for page in range.iter_pages() {
            let host_page = memory.guest_address(page);
            handler.install_existing(host_page).map_err(host("install a guest"))?;
        }
    }
    let bell = Doorbell::new().map_err(host("make an eventfd"))?;
    let over = AtomicBool::new(false);
    let served = std::thread::scope(|scope| {
        let pager = Builder::new().name("bench-pager".to_owned());
        let pager = pager.spawn_scoped(scope, || {
            kernel::pin(0, &place.pager)?;
            handler.serve_until(&over, &bell)
        });
        let pager = pager.map_err(host("start a thread"))?;
        let mut ran = Ok(());
        for vcpu in vcpus {
            let thread = Builder::new().name("bench-vcpu".to_owned());
            let thread = thread.spawn_scoped(scope, || run(vcpu, &place.vcpu));
            ran = thread.map_or_else(
                |why| Err(why.to_string()),
                |thread| thread.join().unwrap_or_else(|_| Err("it panicked".to_owned())),
            );
        }
        over.store(true, Ordering::Release);
        bell.ring();
        let served = pager.join().unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        ran.map_err(host("run the bare guest"))?;
        served.map_err(host("serve the bare guest's faults"))
    })?;
    Touched::read(memory.backing(), place, served)
}

/// Runs the guest to its end.
fn run(mut vcpu: BareVcpu, cpus: &[usize]) -> Result<(), String> {
    kernel::pin(0, cpus).map_err(|why| why.to_string())?;
    loop {
        match vcpu.run() {
            Ran::Interrupted => {}
            Ran::Ended(0) => return Ok(()),
            other => return Err(format!("{other:?}")),
        }
    }
}

/// Dropping it closes the userfaultfd: then the kernel fills pages by itself, and nobody waits
/// for ever.
struct Handler {
    userfault: Userfault,
    window: u64,
    spin: Duration,
    served: u64,
}

impl Handler {
    /// Returns how many faults there were.
    fn serve_until(mut self, over: &AtomicBool, bell: &Doorbell) -> io::Result<u64> {
        let nothing = Fault { address: 0, is_write: false, is_write_protect: false, thread: 0 };
        let mut faults = [nothing; BATCH];
        let mut last = Instant::now();
        loop {
            let count = self.userfault.read(&mut faults)?;
            for fault in &faults[..count] {
                self.serve(fault.address)?;
            }
            if count > 0 {
                last = Instant::now();
                continue;
            }
            if over.load(Ordering::Acquire) {
                return Ok(self.served);
            }
            if last.elapsed() < self.spin {
                std::hint::spin_loop();
                continue;
            }
            let _ = bell.sleep([self.userfault.as_raw_fd()], -1, || over.load(Ordering::Acquire));
        }
    }

    fn serve(&mut self, address: u64) -> io::Result<()> {
        self.served += 1;
        let start = address / self.window * self.window;
        loop {
            match self.userfault.zero(start, self.window)? {
                Installed::Bytes(_) => return Ok(()),
                Installed::AlreadyThere => return self.install_existing(address),
                Installed::Busy => {}
            }
        }
    }

    /// A page that is in the memfd already, or in the guest's reach already.
    fn install_existing(&mut self, address: u64) -> io::Result<()> {
        let page = address / PAGE_SIZE * PAGE_SIZE;
        loop {
            match self.userfault.map(page, PAGE_SIZE, true) {
                Ok(Installed::Bytes(_)) => return Ok(()),
                Ok(Installed::AlreadyThere) => return self.userfault.wake(page, PAGE_SIZE),
                Ok(Installed::Busy) => {}
                // Not in the memfd: its window was, in part.
                Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                    return self.userfault.zero(page, PAGE_SIZE).map(drop);
                }
                Err(error) => return Err(error),
            }
        }
    }
}
