//! The reference of `shootdown`: the bare kick that it is built on.
//!
//! ```text
//!   initiator                          vcpu thread
//!   t0                                 KVM_RUN, guest counts
//!   immediate_exit = 1, tgkill  ────▶  KVM_RUN returns
//!   spins, then sleeps          ◀────  trips += 1; does the initiator sleep? ring
//!   t1                                 takes the signal, clears the byte, KVM_RUN
//! ```
//!
//! The same guest, the same system calls, the same placement, and the same way to wait as the
//! subject: [`SPIN`], then an eventfd. No generation, no seats, no mailboxes, no actors.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use actors::doorbell::Doorbell;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use loader_actor::guests::spin;
use pmap_actor::host::memory::GuestMemory;

use crate::bare_vm::{BareVcpu, BareVm, ExitByte, Ran};
use crate::environment::Cpus;
use crate::error::{BenchError, host};
use crate::kernel;
use crate::signal::{self, Delivery};

/// How long the initiator spins before it sleeps: as long as the pmap does.
const SPIN: Duration = Duration::from_micros(50);
/// How long a vcpu may take to answer at all.
const DEADLINE: Duration = Duration::from_secs(10);

/// What a vcpu thread does next.
const PARK: u8 = 0;
const RUN: u8 = 1;
const QUIT: u8 = 2;

/// A word on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Line(AtomicU64);

/// What one vcpu thread and the initiator share, on cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
struct Post {
    /// Trips into the guest that are over: an acknowledgement is one more than before.
    trips: AtomicU64,
    mode: AtomicU8,
    is_parked: AtomicBool,
    /// 0 before the thread can be signalled.
    thread: AtomicI32,
    /// Why the thread ended although nobody asked it to.
    ended: OnceLock<String>,
    /// Kicks so far.
    kicks: Line,
    /// The last kick that found the vcpu on its way from one trip to the next: that one ends no
    /// trip, as its byte and its signal are taken before.
    taken_outside: Line,
}

#[derive(Debug)]
struct Vcpu {
    post: Arc<Post>,
    exit_byte: ExitByte,
    handle: Thread,
    joined: Option<JoinHandle<()>>,
}

/// Vcpus of a bare machine that runs `spin`, and how to kick them.
#[derive(Debug)]
pub(crate) struct BareKick {
    vcpus: Vec<Vcpu>,
    kicks: u64,
    bell: Arc<Doorbell>,
    process: i32,
    memory: Arc<GuestMemory>,
    _vm: BareVm,
}

impl BareKick {
    /// Builds the machine; its vcpus are parked.
    pub(crate) fn new(
        vcpus: u16,
        memory_bytes: u64,
        cpus: &Cpus,
        delivery: Delivery,
    ) -> Result<Self, BenchError> {
        signal::install().map_err(host("install a signal handler"))?;
        let layout = MemoryLayout::split(memory_bytes, LOWMEM_LIMIT, u64::BITS)
            .map_err(host("lay out a guest's memory"))?;
        let memory = GuestMemory::new(layout).map_err(host("make a guest's memory"))?;
        let memory = Arc::new(memory);
        let (vm, fresh) = BareVm::new(&spin::GUEST, &memory, vcpus)?;
        let bell = Arc::new(Doorbell::new().map_err(host("make an eventfd"))?);
        let process = signal::own_process();
        let mut all = Self { vcpus: Vec::new(), kicks: 0, bell, process, memory, _vm: vm };
        for (index, vcpu) in fresh.into_iter().enumerate() {
            all.start(index, vcpu, cpus.of_vcpu(index), delivery)?;
        }
        all.wait_until("start", |vcpu| vcpu.post.is_parked.load(Ordering::Acquire))?;
        Ok(all)
    }

    fn start(
        &mut self,
        index: usize,
        vcpu: BareVcpu,
        cpu: usize,
        delivery: Delivery,
    ) -> Result<(), BenchError> {
        let post = Arc::new(Post {
            trips: AtomicU64::new(0),
            mode: AtomicU8::new(PARK),
            is_parked: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            ended: OnceLock::new(),
            kicks: Line::default(),
            taken_outside: Line::default(),
        });
        let exit_byte = vcpu.exit_byte();
        let (shared, bell) = (post.clone(), self.bell.clone());
        let joined = std::thread::Builder::new()
            .name(format!("bench-vcpu-{index}"))
            .spawn(move || {
                if let Err(why) = live(vcpu, &shared, &bell, cpu, delivery) {
                    // Only this thread writes it, once.
                    drop(shared.ended.set(why));
                    bell.ring();
                }
            })
            .map_err(host("start a thread"))?;
        let handle = joined.thread().clone();
        self.vcpus.push(Vcpu { post, exit_byte, handle, joined: Some(joined) });
        Ok(())
    }

    /// The guest's memory, for the proof that it executes.
    pub(crate) fn memory(&self) -> Arc<GuestMemory> {
        self.memory.clone()
    }

    /// Lets the guest run.
    pub(crate) fn resume(&self) {
        for vcpu in &self.vcpus {
            vcpu.post.is_parked.store(false, Ordering::Relaxed);
            vcpu.post.mode.store(RUN, Ordering::Release);
            vcpu.handle.unpark();
        }
    }

    /// Brings the guest out, and keeps it there.
    pub(crate) fn pause(&self) -> Result<(), BenchError> {
        for vcpu in &self.vcpus {
            vcpu.post.mode.store(PARK, Ordering::Release);
            self.kick_one(vcpu, self.kicks);
        }
        self.wait_until("park", |vcpu| vcpu.post.is_parked.load(Ordering::Acquire))
    }

    fn kick_one(&self, vcpu: &Vcpu, number: u64) {
        vcpu.post.kicks.0.store(number, Ordering::Relaxed); // The byte publishes it.
        vcpu.exit_byte.set();
        let thread = vcpu.post.thread.load(Ordering::Acquire);
        if thread != 0 {
            signal::send(self.process, thread);
        }
    }

    /// Kicks every vcpu and waits until all are out of the guest. Returns how long it took.
    pub(crate) fn kick(&mut self) -> Result<Duration, BenchError> {
        self.kicks += 1;
        let trips = |vcpu: &Vcpu| vcpu.post.trips.load(Ordering::Acquire);
        let before: Vec<u64> = self.vcpus.iter().map(trips).collect();
        let is_out = |vcpu: &Vcpu, before: u64| {
            trips(vcpu) != before || vcpu.post.taken_outside.0.load(Ordering::Acquire) == self.kicks
        };
        let all_out = || self.vcpus.iter().zip(&before).all(|(vcpu, trips)| is_out(vcpu, *trips));
        let began = Instant::now();
        self.vcpus.iter().for_each(|vcpu| self.kick_one(vcpu, self.kicks));
        while !all_out() {
            if began.elapsed() < SPIN {
                std::hint::spin_loop();
            } else if began.elapsed() < DEADLINE && !self.has_ended() {
                let _: [i16; 0] = self.bell.sleep([], 1_000, all_out);
            } else {
                return Err(self.silent("come out of the guest"));
            }
        }
        Ok(began.elapsed())
    }

    fn wait_until(&self, what: &str, all: impl Fn(&Vcpu) -> bool) -> Result<(), BenchError> {
        let began = Instant::now();
        while !self.vcpus.iter().all(&all) {
            if began.elapsed() > DEADLINE || self.has_ended() {
                return Err(self.silent(what));
            }
            let ready = || self.has_ended() || self.vcpus.iter().all(&all);
            let _: [i16; 0] = self.bell.sleep([], 1_000, ready);
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.post.ended.get().is_some())
    }

    fn silent(&self, what: &str) -> BenchError {
        let ended = self.vcpus.iter().find_map(|vcpu| vcpu.post.ended.get());
        let why = ended.map_or("it does not answer", String::as_str);
        host(format!("make a bare vcpu {what}"))(why)
    }
}

impl Drop for BareKick {
    fn drop(&mut self) {
        for vcpu in &self.vcpus {
            vcpu.post.mode.store(QUIT, Ordering::Release);
            vcpu.handle.unpark();
            self.kick_one(vcpu, self.kicks);
        }
        for vcpu in &mut self.vcpus {
            if let Some(thread) = vcpu.joined.take() {
                // A panic was printed by its thread; there is nothing to add.
                drop(thread.join());
            }
        }
    }
}

/// The life of a vcpu thread.
fn live(
    mut vcpu: BareVcpu,
    post: &Post,
    bell: &Doorbell,
    cpu: usize,
    delivery: Delivery,
) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    kernel::pin(0, &[cpu]).map_err(text)?;
    signal::deliver(delivery).map_err(text)?;
    if delivery == Delivery::Mask {
        vcpu.open_to_the_signal().map_err(text)?;
    }
    post.thread.store(kernel::own_tid(), Ordering::Release);
    let exit_byte = vcpu.exit_byte();
    loop {
        // Before the look at what to do: a kick after this ends the next trip.
        if exit_byte.clear() {
            post.taken_outside.0.store(post.kicks.0.load(Ordering::Relaxed), Ordering::Release);
            bell.ring();
        }
        match post.mode.load(Ordering::Acquire) {
            PARK => {
                post.is_parked.store(true, Ordering::Release);
                bell.ring();
                std::thread::park();
                continue;
            }
            QUIT => return Ok(()),
            _ => {}
        }
        let ran = vcpu.run();
        post.trips.fetch_add(1, Ordering::Release);
        bell.ring();
        if let Ran::Ended(_) | Ran::Otherwise(_) = ran {
            return Err(format!("{ran:?}"));
        }
        if delivery == Delivery::Mask {
            signal::consume();
        }
    }
}
