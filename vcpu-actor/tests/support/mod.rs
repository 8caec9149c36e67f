//! A machine of bare vcpus for tests: memory, a domain, two buses, and no other actor.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test program includes this file and uses another part of it"
)]
#![expect(unsafe_code, reason = "maps the guest's memory and shares it with a guest")]

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actors::contract::boot::{EntryMode, EntryState};
use actors::contract::guest::{GuestEnd, Tidings};
use actors::contract::space::SpaceError;
use actors::device::{Bus, Device, Effect};
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::pulse::Pulse;
use actors::threads::Joined;
use actors::{Gpa, Gva, VcpuId};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;
use shootdown::{Domain, SeatId};
use vcpu_actor::engine::kvm::{Halts, KvmSystem, KvmVm};
use vcpu_actor::{KickKind, OrderError, Turns, VcpuConfig, VcpuHandle, start};

/// Nobody waits longer than this for anything: far beyond what a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The port whose bytes the test hears.
pub const SAY: u16 = 0x3f8;
/// The port that ends the guest: 0 well, otherwise not.
pub const END: u16 = 0xf4;

/// Where real-mode code goes.
pub const CODE: u64 = 0x1000;
/// Where user-mode code goes.
pub const USER_CODE: u64 = 0x2000;
/// A counter for each user-mode vcpu, a cache line apart.
pub const COUNTERS: u64 = 0x4000;
const TABLES: u64 = 0x9000;
const GDT: u64 = 0x500;

pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// This host's KVM; or says aloud why the test is skipped.
pub fn kvm() -> Option<KvmSystem> {
    match KvmSystem::open() {
        Ok(system) => Some(system),
        Err(why) => {
            skipped(&why);
            None
        }
    }
}

/// Says so past the test harness, which would keep the words of a passing test to itself.
pub fn skipped(why: &impl std::fmt::Display) {
    let test = std::thread::current();
    let name = test.name().unwrap_or("a test");
    writeln!(std::io::stderr(), "SKIPPED {name}: {why}").expect("stderr is open");
}

/// Anonymous memory that a guest uses. Lives until the test program ends: a guest may still be
/// looking at it when its handle is gone.
#[derive(Clone, Copy)]
pub struct Memory {
    base: *mut u8,
    len: usize,
}

impl Memory {
    pub fn new(len: usize) -> Self {
        // SAFETY: a new mapping wherever the kernel likes.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: base.cast(), len }
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        assert!(at + bytes.len() <= self.len);
        let place = self.base.wrapping_add(at);
        // SAFETY: inside the mapping, which is never unmapped; no guest runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
    }

    /// Takes a page away from whoever looks, as a host mapping may change under a guest.
    pub fn forbid(&self, page: u64) {
        let place = self.base.wrapping_add(usize::try_from(page).unwrap());
        // SAFETY: inside the mapping; nothing of ours refers to that page from now on.
        let done = unsafe { libc::mprotect(place.cast(), 4096, libc::PROT_NONE) };
        assert_eq!(done, 0);
    }

    /// A number that the guest may be writing.
    pub fn number(&self, at: u64) -> &'static AtomicU64 {
        let at = usize::try_from(at).unwrap();
        assert!(at + 8 <= self.len && at.is_multiple_of(8));
        let place = self.base.wrapping_add(at).cast();
        // SAFETY: inside the mapping, which is never unmapped, aligned.
        unsafe { AtomicU64::from_ptr(place) }
    }
}

/// Tells the test what it hears; answers reads with the number of the read.
struct Ear {
    tell: Sender<Vec<u8>>,
    reads: u8,
}

impl Device for Ear {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.reads);
        self.reads = self.reads.wrapping_add(1);
    }
    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        drop(self.tell.send(data.to_vec()));
        Effect::None
    }
}

struct Exit;

impl Device for Exit {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        Effect::Ends(match data[0] {
            0 => GuestEnd::PowerOff,
            code => GuestEnd::Failed(code),
        })
    }
}

/// Vcpus that share memory and a domain.
pub struct Bare {
    pub vm: KvmVm,
    pub memory: Memory,
    pub domain: Arc<Domain>,
    pub vcpus: Vec<VcpuHandle>,
    /// What the guest wrote to [`SAY`].
    pub said: Receiver<Vec<u8>>,
    /// What was told to the machine.
    pub tidings: Receiver<Tidings>,
    /// How often a raiser was woken.
    pub wakes: Arc<AtomicU64>,
    pub pulses: Vec<Pulse>,
    threads: Vec<Joined>,
}

/// Vcpus with `len` bytes of memory, whose threads wait for orders. Whoever calls this is the raiser
/// that they wake.
pub fn bare(kvm: &KvmSystem, vcpus: u16, len: usize, kick: KickKind) -> Bare {
    bare_with(kvm, vcpus, len, kick, Halts::SleepInTheKernel)
}

/// The same, with a choice of what a halted vcpu does.
pub fn bare_with(kvm: &KvmSystem, vcpus: u16, len: usize, kick: KickKind, halts: Halts) -> Bare {
    let mut vm = KvmVm::create(kvm, vcpus, halts).unwrap();
    let memory = Memory::new(len);
    let layout = MemoryLayout::split(len as u64, LOWMEM_LIMIT, kvm.facts().address_bits).unwrap();
    // SAFETY: `Memory` is never unmapped, and the tests touch it through atomics once a guest runs.
    unsafe { vm.add_memory(layout.low(), memory.base as u64) }.unwrap();

    let (tell_said, said) = unbounded();
    let (tell_machine, tidings) = unbounded();
    let ear = Arc::new(Mutex::new(Ear { tell: tell_said, reads: 0 }));
    let mut ports = Bus::default();
    ports.attach(SAY.into(), 4, ear).unwrap();
    ports.attach(END.into(), 1, Arc::new(Mutex::new(Exit))).unwrap();
    let (ports, mmio) = (Arc::new(ports), Arc::new(Bus::default()));

    let domain = Arc::new(Domain::new(vcpus.into()));
    let wakes = Arc::new(AtomicU64::new(0));
    let mut machine = Bare {
        memory,
        domain: domain.clone(),
        vcpus: Vec::new(),
        said,
        tidings,
        wakes: wakes.clone(),
        pulses: Vec::new(),
        threads: Vec::new(),
        vm,
    };
    for id in (0..vcpus).map(VcpuId) {
        let tell = tell_machine.clone();
        let wakes = wakes.clone();
        let raiser = std::thread::current();
        let pulse = Pulse::default();
        let (handle, joined) = start(VcpuConfig {
            id,
            engine: machine.vm.create_vcpu(id).unwrap(),
            domain: domain.clone(),
            seat: SeatId(id.index()),
            ports: ports.clone(),
            mmio: mmio.clone(),
            // KVM's faults go through the host mapping; nobody asks here.
            faults: Arc::new(|_| Err(SpaceError::Dead("is not there"))),
            layout,
            tell: Arc::new(move |tidings| drop(tell.send(tidings))),
            wake: Arc::new(move || {
                wakes.fetch_add(1, Ordering::Relaxed);
                raiser.unpark();
            }),
            pulse: pulse.clone(),
            kick,
            turns: Turns::of(usize::from(vcpus)),
        })
        .unwrap();
        machine.vcpus.push(handle);
        machine.threads.push(joined);
        machine.pulses.push(pulse);
    }
    machine
}

impl Bare {
    /// Lets vcpu 0 run `code` in real mode at [`CODE`].
    pub fn run_real(&self, code: &[u8]) {
        self.memory.write(CODE, code);
        self.begin(
            0,
            EntryState {
                mode: EntryMode::Real { segment: 0 },
                rip: Gva(CODE),
                rsp: Gva(0x800),
                rsi: 0,
                rbx: 0,
                rflags: 2,
            },
        );
        self.vcpus[0].run().unwrap();
    }

    /// Lets every vcpu run `code` at privilege level 3 at [`USER_CODE`], with ports open, the first
    /// 2 MiB mapped as they are, the next 2 MiB mapped to 5 GiB, and rbx at a counter of its own.
    pub fn run_user(&self, code: &[u8]) {
        self.prepare_user(code);
        vcpu_actor::run_all(&self.vcpus).unwrap();
    }

    pub fn prepare_user(&self, code: &[u8]) {
        // Present, writable, for the user; the last level also: large page.
        let (table, page) = (0x7u64, 0x87u64);
        let entries = [
            (TABLES, (TABLES + 0x1000) | table),
            (TABLES + 0x1000, (TABLES + 0x2000) | table),
            (TABLES + 0x2000, page),
            (TABLES + 0x2008, 5 << 30 | page),
        ];
        for (at, entry) in entries {
            self.memory.write(at, &entry.to_le_bytes());
        }
        self.memory.write(USER_CODE, code);
        for index in 0..self.vcpus.len() {
            let entry = EntryState {
                mode: EntryMode::Long {
                    cr3: Gpa(TABLES),
                    gdt: Gpa(GDT),
                    gdt_limit: 31,
                    code: 0x10,
                    data: 0x18,
                    cpl: 3,
                },
                rip: Gva(USER_CODE),
                rsp: Gva(0x8000),
                rsi: 0,
                rbx: counter(index),
                // Interrupts off; ports open at level 3.
                rflags: 0x3002,
            };
            self.begin(index, entry);
        }
    }

    pub fn begin(&self, index: usize, entry: EntryState) {
        let reply = self.vcpus[index].begin(entry).unwrap();
        reply.blocking_recv().unwrap().unwrap();
    }

    /// How often a vcpu went round its loop.
    pub fn count(&self, index: usize) -> u64 {
        self.memory.number(counter(index)).load(Ordering::Relaxed)
    }

    /// Waits until every vcpu has gone on from `before`.
    pub fn await_progress(&self, before: &[u64]) {
        let deadline = deadline();
        for (index, before) in before.iter().enumerate() {
            while self.count(index) == *before {
                assert!(Instant::now() < deadline, "vcpu {index} makes no progress");
                std::thread::yield_now();
            }
        }
    }

    /// Waits until some vcpu has gone on from `before`: then at least one is busy in the guest.
    pub fn await_any_progress(&self, before: &[u64]) {
        let deadline = deadline();
        while self.counts() == before {
            assert!(Instant::now() < deadline, "no vcpu makes progress");
            std::thread::yield_now();
        }
    }

    pub fn counts(&self) -> Vec<u64> {
        (0..self.vcpus.len()).map(|it| self.count(it)).collect()
    }

    /// What the guest says next on [`SAY`].
    pub fn hear(&self) -> Vec<u8> {
        self.said.recv_timeout(PATIENCE).expect("the guest is silent")
    }

    /// What the machine is told next.
    pub fn tiding(&self) -> Tidings {
        self.tidings.recv_timeout(PATIENCE).expect("nothing was told to the machine")
    }

    /// Ends all threads, and waits for them.
    pub fn retire(mut self) {
        for vcpu in &self.vcpus {
            match vcpu.retire() {
                // One that has ended by itself is as good.
                Ok(()) | Err(OrderError::Gone { .. }) => {}
                Err(full) => panic!("{full}"),
            }
        }
        self.join();
    }

    pub fn join(&mut self) {
        let deadline = deadline();
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                assert!(Instant::now() < deadline, "a thread does not end");
                std::thread::yield_now();
            }
            thread.join();
        }
    }
}

fn counter(index: usize) -> u64 {
    COUNTERS + 128 * index as u64
}

/// ```text
///     again:  inc  qword [rbx]
///             jmp  again
/// ```
pub const COUNT: &[u8] = &[0x48, 0xff, 0x03, 0xeb, 0xfb];
