//! A guest that writes one word to each page of a stretch whenever it is told to.
//!
//! ```text
//!   0x20_0000  GO      host: the number of the pass to make; all ones ends the guest
//!   0x20_0040  DONE    guest: the number of the pass it has made
//!   0x20_0080  TICKS   guest: what that pass took, in ticks of the time-stamp counter
//!   0x40_0000  ...     what is written
//! ```
//!
//! It borrows the way in and the page tables of the built-in guest `toucher`, whose room for
//! results ends where a gigabyte begins, and runs at CPL 3, natively everywhere.

use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, sync::Arc};

use actors::platform::DEBUG_EXIT;
use actors::{Gpa, GpaRange};
use kvm_ioctls::VmFd;
use loader_actor::guests::places::{IMAGE, OWN};
use loader_actor::guests::toucher;
use pmap_actor::host::memory::GuestMemory;
use vm_memory::{Bytes, GuestAddress};

use crate::bare_vm::{BareVcpu, BareVm, Ran};
use crate::error::{BenchError, host};
use crate::kernel;

const GO: GuestAddress = GuestAddress(OWN.0);
const DONE: GuestAddress = GuestAddress(OWN.0 + 0x40);
const TICKS: GuestAddress = GuestAddress(OWN.0 + 0x80);
const END: u64 = u64::MAX;

/// A pass that takes longer than this has lost a fault.
const DEADLINE: Duration = Duration::from_secs(300);

/// Where it writes: as much as there is from here on.
pub(crate) const FREE: Gpa = toucher::FREE;

/// What to do when the vcpu's ring of dirty pages is full.
pub(crate) type OnFull = Box<dyn FnMut() -> io::Result<()> + Send>;

/// The guest and its machine.
pub(crate) struct Dirtier {
    pub(crate) machine: BareVm,
    memory: Arc<GuestMemory>,
    pages: u32,
    passes: u64,
    vcpu: Option<JoinHandle<Result<(), String>>>,
}

/// A machine whose vcpu does not run yet.
pub(crate) struct Prepared {
    dirtier: Dirtier,
    vcpu: BareVcpu,
}

impl Prepared {
    /// A guest that writes `pages` pages.
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        pages: u32,
        prepare: impl FnOnce(&VmFd) -> Result<(), BenchError>,
    ) -> Result<Self, BenchError> {
        let (machine, mut vcpus) = BareVm::prepared(&toucher::GUEST, memory, 1, prepare)?;
        let vcpu = vcpus.pop().ok_or("there is none").map_err(host("make a vcpu"))?;
        let placed = memory.backing().write_slice(&code(pages), GuestAddress(IMAGE.0));
        placed.map_err(host("place the guest"))?;
        let memory = memory.clone();
        let dirtier = Dirtier { machine, memory, pages, passes: 0, vcpu: None };
        Ok(Self { dirtier, vcpu })
    }

    pub(crate) fn vcpu(&self) -> &BareVcpu {
        &self.vcpu
    }

    pub(crate) fn machine(&self) -> &BareVm {
        &self.dirtier.machine
    }

    /// Lets it run, on these cpus.
    pub(crate) fn start(
        mut self,
        cpus: Vec<usize>,
        mut on_full: OnFull,
    ) -> Result<Dirtier, BenchError> {
        let thread = Builder::new().name("bench-vcpu".to_owned());
        let run = move || {
            kernel::pin(0, &cpus).map_err(|why| why.to_string())?;
            loop {
                match self.vcpu.run() {
                    Ran::Interrupted => {}
                    Ran::Ended(_) => return Ok(()),
                    Ran::RingFull => on_full().map_err(|why| why.to_string())?,
                    other @ Ran::Otherwise(_) => return Err(format!("{other:?}")),
                }
            }
        };
        self.dirtier.vcpu = Some(thread.spawn(run).map_err(host("start a thread"))?);
        Ok(self.dirtier)
    }
}

impl Dirtier {
    /// What it writes, in pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.into()
    }

    /// What it writes.
    pub(crate) fn range(&self) -> GpaRange {
        GpaRange::new(FREE, self.pages() * actors::PAGE_SIZE).expect("whole pages")
    }

    /// Lets it write every page once; returns the ticks it took.
    pub(crate) fn pass(&mut self) -> Result<u64, BenchError> {
        const WHAT: &str = "talk with the guest";
        self.passes += 1;
        let memory = self.memory.backing();
        memory.store(self.passes, GO, Ordering::Release).map_err(host(WHAT))?;
        let began = Instant::now();
        loop {
            let done: u64 = memory.load(DONE, Ordering::Acquire).map_err(host(WHAT))?;
            if done == self.passes {
                return memory.load(TICKS, Ordering::Acquire).map_err(host(WHAT));
            }
            if self.vcpu.as_ref().is_none_or(JoinHandle::is_finished) {
                return Err(BenchError::Unlike("the bare guest ended by itself".into()));
            }
            if began.elapsed() > DEADLINE {
                return Err(BenchError::Unlike("the bare guest made no progress".into()));
            }
            std::thread::park_timeout(Duration::from_micros(100));
        }
    }

    /// Ends it.
    pub(crate) fn end(mut self) -> Result<(), BenchError> {
        let told = self.memory.backing().store(END, GO, Ordering::Release);
        told.map_err(host("talk with the guest"))?;
        let Some(vcpu) = self.vcpu.take() else { return Ok(()) };
        let ended = vcpu.join().unwrap_or_else(|_| Err("it panicked".into()));
        ended.map_err(host("run the bare guest"))
    }
}

/// The guest, assembled by hand: it fits on a page, and its two numbers are known only here.
fn code(pages: u32) -> Vec<u8> {
    let own = u32::try_from(OWN.0).expect("below 4 GiB").to_le_bytes();
    let free = u32::try_from(FREE.0).expect("below 4 GiB").to_le_bytes();
    let port = u32::from(DEBUG_EXIT).to_le_bytes();
    let mut code = Vec::new();
    code.push(0xbb); //                              mov   ebx, OWN
    code.extend(own);
    let again = code.len();
    code.extend([0xf3, 0x90]); //             again: pause
    code.extend([0x48, 0x8b, 0x03]); //              mov   rax, [rbx]         ; GO
    code.extend([0x48, 0x83, 0xf8, 0xff]); //        cmp   rax, -1
    code.extend([0x74, 0]); //                       je    end
    let to_end = code.len();
    code.extend([0x48, 0x3b, 0x43, 0x40]); //        cmp   rax, [rbx + 0x40]  ; DONE
    code.extend([0x74, back(code.len() + 2, again)]); // je    again
    code.extend([0x49, 0x89, 0xc0]); //              mov   r8, rax
    code.push(0xbe); //                              mov   esi, FREE
    code.extend(free);
    code.push(0xb9); //                              mov   ecx, pages
    code.extend(pages.to_le_bytes());
    code.extend([0x0f, 0xae, 0xe8, 0x0f, 0x31]); //  lfence; rdtsc
    code.extend([0x48, 0xc1, 0xe2, 0x20]); //        shl   rdx, 32
    code.extend([0x48, 0x09, 0xd0]); //              or    rax, rdx
    code.extend([0x49, 0x89, 0xc1]); //              mov   r9, rax
    let write = code.len();
    code.extend([0x4c, 0x89, 0x06]); //       write: mov   [rsi], r8
    code.extend([0x48, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00]); // add   rsi, 4096
    code.extend([0xff, 0xc9]); //                    dec   ecx
    code.extend([0x75, back(code.len() + 2, write)]); // jnz   write
    code.extend([0x0f, 0xae, 0xe8, 0x0f, 0x31]); //  lfence; rdtsc
    code.extend([0x48, 0xc1, 0xe2, 0x20]); //        shl   rdx, 32
    code.extend([0x48, 0x09, 0xd0]); //              or    rax, rdx
    code.extend([0x4c, 0x29, 0xc8]); //              sub   rax, r9
    code.extend([0x48, 0x89, 0x83, 0x80, 0, 0, 0]); // mov   [rbx + 0x80], rax  ; TICKS
    code.extend([0x4c, 0x89, 0x43, 0x40]); //        mov   [rbx + 0x40], r8   ; DONE
    code.extend([0xeb, back(code.len() + 2, again)]); // jmp   again
    code[to_end - 1] = u8::try_from(code.len() - to_end).expect("it is short");
    code.extend([0x31, 0xc0, 0xba]); //         end: xor   eax, eax
    code.extend(port); //                            mov   edx, DEBUG_EXIT
    code.push(0xee); //                              out   dx, al
    code.extend([0xeb, 0xfe]); //                    jmp   .
    code
}

/// The displacement of a short jump that ends at `from`, back to `to`.
fn back(from: usize, to: usize) -> u8 {
    let distance = u8::try_from(from - to).expect("it is short");
    distance.wrapping_neg()
}
