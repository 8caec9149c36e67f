//! A vcpu with a scripted engine: everything that has to hold whatever runs the guest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use actors::contract::boot::{EntryMode, EntryState};
use actors::contract::guest::{GuestFault, Tidings};
use actors::contract::space::SpaceError;
use actors::contract::vcpu::Break;
use actors::device::Bus;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::pulse::Pulse;
use actors::threads::{Ending, Joined};
use actors::{ActorName, Gpa, Gva, VcpuId};
use crossbeam_channel::{Receiver, Sender, unbounded};
use shootdown::{Domain, Generation, InGuest, SeatId, Whom};
use vcpu_actor::engine::{Direction, Engine, Exit, Looks, PortAccess, Trip};
use vcpu_actor::{
    ExitFlag, KickKind, Knocker, OrderError, Turns, VcpuConfig, VcpuHandle, pause_all, start,
};

const PATIENCE: Duration = Duration::from_secs(60);
const ME: VcpuId = VcpuId(0);

/// What the engine does on its next trips; after the last one it runs until somebody knocks.
enum Scene {
    /// The guest reads a port, after the test has said so.
    ReadsPort(Receiver<()>),
    /// The host mapping refuses an access, after the test has said so.
    MemoryRefused(Receiver<()>),
    /// The engine's own code fails while in the guest.
    Panics,
}

/// A flag the engine looks at itself.
struct Flag(Arc<AtomicU8>);

impl ExitFlag for Flag {
    fn byte(&self) -> &AtomicU8 {
        &self.0
    }
}

struct Scripted {
    scenes: VecDeque<Scene>,
    flag: Arc<AtomicU8>,
    knocker: Knocker,
    /// Told when the guest is entered.
    entered: Sender<()>,
    refuses_to_settle: bool,
    refuses_to_look: bool,
    last: Option<Scene>,
    data: [u8; 2],
    owes_completion: bool,
    rip: u64,
    flushes: Arc<AtomicU64>,
    excuses: Arc<AtomicU64>,
}

impl Engine for Scripted {
    fn knocker(&self) -> Knocker {
        self.knocker.clone()
    }

    fn settle_on_this_thread(&mut self, _kick: KickKind) -> Result<(), String> {
        match self.refuses_to_settle {
            true => Err("the engine has no room here".to_owned()),
            false => Ok(()),
        }
    }

    fn begin(&mut self, entry: &EntryState) -> Result<(), String> {
        match entry.mode {
            EntryMode::Real { .. } => Ok(()),
            _ => Err("this engine knows real mode only".to_owned()),
        }
    }

    fn flush(&mut self, _now: Generation) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&mut self, _inside: &InGuest<'_>) -> Trip {
        if self.owes_completion {
            self.owes_completion = false;
            self.rip += 1;
        }
        if self.flag.load(Ordering::Relaxed) != 0 {
            return Trip::Knocked;
        }
        self.last = self.scenes.pop_front();
        self.entered.send(()).expect("the test is there");
        match &self.last {
            Some(Scene::ReadsPort(cue) | Scene::MemoryRefused(cue)) => {
                cue.recv().unwrap();
                Trip::Exit
            }
            Some(Scene::Panics) => panic!("the engine is broken"),
            None => {
                while self.flag.load(Ordering::Relaxed) == 0 {
                    std::thread::yield_now();
                }
                Trip::Knocked
            }
        }
    }

    fn exit(&mut self) -> Exit<'_> {
        match self.last {
            Some(Scene::ReadsPort(_)) => {
                self.owes_completion = true;
                Exit::Port(PortAccess {
                    port: 0x80,
                    direction: Direction::Read,
                    size: 1,
                    data: &mut self.data,
                })
            }
            Some(Scene::MemoryRefused(_)) => {
                Exit::MemoryRefused { rip: 0x42, at: Some(Gpa(0x5000)) }
            }
            Some(Scene::Panics) | None => Exit::Nothing,
        }
    }

    fn excuse_pause(&mut self) {
        self.excuses.fetch_add(1, Ordering::Relaxed);
    }

    fn owes_completion(&self) -> bool {
        self.owes_completion
    }

    fn look(&mut self) -> Result<Looks, String> {
        if self.refuses_to_look {
            return Err("it is dark".to_owned());
        }
        Ok(Looks { rip: Gva(self.rip), rsp: Gva(0), cr3: Gpa(0), rflags: 2 })
    }
}

struct Stage {
    vcpu: VcpuHandle,
    thread: Joined,
    tidings: Receiver<Tidings>,
    entered: Receiver<()>,
    domain: Arc<Domain>,
    wakes: Receiver<()>,
    flushes: Arc<AtomicU64>,
    excuses: Arc<AtomicU64>,
}

fn play(scenes: impl IntoIterator<Item = Scene>) -> Stage {
    play_with(scenes, |_| {})
}

fn play_with(
    scenes: impl IntoIterator<Item = Scene>,
    prepare: impl FnOnce(&mut Scripted),
) -> Stage {
    let (tell, tidings) = unbounded();
    let (wake, wakes) = unbounded();
    let (enter, entered) = unbounded();
    let flag = Arc::new(AtomicU8::new(0));
    let flushes = Arc::new(AtomicU64::new(0));
    let excuses = Arc::new(AtomicU64::new(0));
    let domain = Arc::new(Domain::new(1));
    let mut engine = Scripted {
        scenes: scenes.into_iter().collect(),
        knocker: Knocker::new(Flag(flag.clone())),
        flag,
        entered: enter,
        refuses_to_settle: false,
        refuses_to_look: false,
        last: None,
        data: [0; 2],
        owes_completion: false,
        rip: 0x100,
        flushes: flushes.clone(),
        excuses: excuses.clone(),
    };
    prepare(&mut engine);
    let (vcpu, thread) = start(VcpuConfig {
        id: ME,
        engine,
        domain: domain.clone(),
        seat: SeatId(0),
        ports: Arc::new(Bus::default()),
        mmio: Arc::new(Bus::default()),
        faults: Arc::new(|_| Err(SpaceError::Dead("is not there"))),
        layout: MemoryLayout::split(1 << 20, LOWMEM_LIMIT, 40).unwrap(),
        tell: Arc::new(move |tidings| drop(tell.send(tidings))),
        wake: Arc::new(move || {
            // Whoever was waiting may have gone by the time the thread ends.
            let _: Result<(), _> = wake.send(());
        }),
        pulse: Pulse::default(),
        kick: KickKind::default(),
        turns: Turns::Any,
    })
    .unwrap();
    Stage { vcpu, thread, tidings, entered, domain, wakes, flushes, excuses }
}

impl Stage {
    fn run_until_entered(&self) {
        self.vcpu.run().unwrap();
        self.entered.recv_timeout(PATIENCE).unwrap();
    }

    /// Waits until the engine has counted up to `count`, and not beyond.
    fn await_count(&self, counter: &AtomicU64, count: u64) {
        let deadline = Instant::now() + PATIENCE;
        while counter.load(Ordering::Relaxed) < count {
            assert!(Instant::now() < deadline, "it does not get to {count}");
            std::thread::yield_now();
        }
        assert_eq!(counter.load(Ordering::Relaxed), count);
    }

    fn pause(&self) {
        pause_all(std::slice::from_ref(&self.vcpu)).wait(Instant::now() + PATIENCE).unwrap();
    }

    fn tiding(&self) -> Tidings {
        self.tidings.recv_timeout(PATIENCE).unwrap()
    }

    fn retire(self) {
        match self.vcpu.retire() {
            Ok(()) | Err(OrderError::Gone { .. }) => self.thread.join(),
            Err(full) => panic!("{full}"),
        }
    }
}

fn gone(ending: Ending) -> Tidings {
    Tidings::Gone { actor: ActorName::Vcpu(ME), ending }
}

fn entry(mode: EntryMode) -> EntryState {
    EntryState { mode, rip: Gva(0), rsp: Gva(0), rsi: 0, rbx: 0, rflags: 2 }
}

#[test]
fn an_engine_that_cannot_settle_is_told_and_the_thread_ends() {
    let stage = play_with([], |engine| engine.refuses_to_settle = true);
    let failed = Tidings::HostFailed {
        actor: ActorName::Vcpu(ME),
        what: "the engine has no room here".to_owned(),
    };
    assert_eq!(stage.tiding(), failed);
    assert_eq!(stage.tiding(), gone(Ending::Returned));
    stage.thread.join();
    assert_eq!(stage.vcpu.run(), Err(OrderError::Gone { vcpu: ME }));
}

#[test]
fn registers_the_engine_refuses_are_refused_with_its_words() {
    let stage = play([]);
    let reply = |mode| {
        let reply = stage.vcpu.begin(entry(mode)).unwrap();
        reply.blocking_recv().unwrap()
    };
    let why = "this engine knows real mode only".to_owned();
    assert_eq!(reply(EntryMode::Protected), Err(why));
    assert_eq!(reply(EntryMode::Real { segment: 0 }), Ok(()));
    stage.retire();
}

#[test]
fn refused_memory_is_told_with_the_address() {
    let (cue, wait) = unbounded();
    let stage = play([Scene::MemoryRefused(wait)]);
    stage.run_until_entered();
    cue.send(()).unwrap();
    let what = "the host refused an access to the guest's memory at guest-physical 0x5000";
    let fault = GuestFault::Engine { vcpu: ME, rip: 0x42, what: what.to_owned() };
    assert_eq!(stage.tiding(), Tidings::Faulted(fault));
    stage.retire();
}

#[test]
fn memory_that_goes_away_while_the_machine_ends_is_not_worth_telling() {
    let (cue, wait) = unbounded();
    let stage = play([Scene::MemoryRefused(wait)]);
    stage.run_until_entered();
    stage.vcpu.retire().unwrap();
    cue.send(()).unwrap();
    assert_eq!(stage.tiding(), gone(Ending::Returned));
    stage.thread.join();
}

#[test]
fn a_panic_in_the_guest_takes_the_vcpu_out_and_wakes_the_raiser() {
    let stage = play([Scene::Panics]);
    stage.run_until_entered();
    let words = "the engine is broken".to_owned();
    assert_eq!(stage.tiding(), gone(Ending::Panicked(words)));
    stage.wakes.recv_timeout(PATIENCE).unwrap();
    let mut knocked = 0;
    let ticket = stage.domain.raise((), Whom::Everyone, |_| knocked += 1);
    assert!(stage.domain.redeem(ticket).is_ok());
    assert_eq!(knocked, 0);
    stage.thread.join();
    let count = stage.domain.counts()[0];
    assert_eq!(count.done + count.saved, 1);
}

#[test]
fn a_raiser_is_woken_by_the_vcpu_it_knocked_on() {
    let stage = play([]);
    stage.run_until_entered();
    let knocker = stage.vcpu.knocker();
    for raises in 1..=100 {
        let mut ticket = stage.domain.raise((), Whom::Everyone, |_| knocker.knock());
        while let Err(early) = stage.domain.redeem(ticket) {
            stage.wakes.recv_timeout(PATIENCE).unwrap();
            ticket = early;
        }
        // It goes back in, and flushes on the way.
        stage.await_count(&stage.flushes, raises);
    }
    stage.retire();
}

#[test]
fn looking_lets_the_guest_have_what_it_asked_for_first() {
    let (cue, wait) = unbounded();
    let stage = play([Scene::ReadsPort(wait)]);
    stage.run_until_entered();
    let pausing = pause_all(std::slice::from_ref(&stage.vcpu));
    cue.send(()).unwrap();
    pausing.wait(Instant::now() + PATIENCE).unwrap();
    // The read was served; the guest takes its answer on the way to the look, and no more.
    let look = || stage.vcpu.look().unwrap().blocking_recv().unwrap();
    assert_eq!(look().rip, Gva(0x101));
    assert_eq!(look().rip, Gva(0x101));
    assert_eq!(stage.vcpu.tally().port_accesses, 2);
    stage.retire();
}

#[test]
fn a_guest_is_told_of_its_pauses_but_not_of_its_start() {
    let stage = play([]);
    stage.run_until_entered();
    stage.run_until_entered();
    assert_eq!(stage.excuses.load(Ordering::Relaxed), 0);
    for pauses in 1..=3 {
        stage.pause();
        stage.vcpu.run().unwrap();
        stage.await_count(&stage.excuses, pauses);
    }
    stage.retire();
}

#[test]
fn registers_that_cannot_be_read_leave_the_question_unanswered() {
    let stage = play_with([], |engine| engine.refuses_to_look = true);
    assert!(stage.vcpu.look().unwrap().blocking_recv().is_err());
    stage.retire();
}

#[test]
fn a_vcpu_that_hangs_fills_its_mailbox_and_the_sender_is_told() {
    let stage = play([]);
    stage.vcpu.break_(Break::Hang).unwrap();
    // Whether the thread has taken the first order yet or not, the mailbox is finite.
    let error = (0..100).find_map(|_| stage.vcpu.run().err()).unwrap();
    assert_eq!(error, OrderError::Full { vcpu: ME });
    assert_eq!(error.to_string(), "vcpu 0 takes no orders: 32 are waiting for it already");
    let overdue =
        pause_all(std::slice::from_ref(&stage.vcpu)).wait(Instant::now() + PATIENCE).unwrap_err();
    assert_eq!(overdue.to_string(), error.to_string());
}

#[test]
fn a_pause_that_ends_in_a_panic_names_who_is_gone() {
    let stage = play([Scene::Panics]);
    stage.vcpu.run().unwrap();
    let pausing = pause_all(std::slice::from_ref(&stage.vcpu));
    // Told before or after its end, it does not come out.
    let overdue = pausing.wait(Instant::now() + PATIENCE).err();
    if let Some(overdue) = overdue {
        assert!(overdue.to_string().starts_with("vcpu 0 "), "{overdue}");
    }
    stage.retire();
}
