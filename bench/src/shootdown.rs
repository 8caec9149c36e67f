//! `skep bench shootdown`: how long until every vcpu has left the guest because of us?
//!
//! The subject is a machine that runs `spin` with `--shootdown broadcast`. One sample is one
//! raise that removes nothing, timed on the pmap's own thread from the raise to the last
//! acknowledgement. Each round measures, in this order and for about 200 samples each:
//!
//! ```text
//!   subject ─▶ elided (the same raises, machine paused) ─▶ bare kick, masked ─▶ bare kick,
//!   handled ─▶ signal ─▶ membarrier ─▶ ping-pong ─▶ next round
//! ```
//!
//! Whoever is not measured is out of the guest, or parked. The masked bare kick is the
//! reference: skep's vcpus are kicked in the same way. The handled one says what that is worth.

use std::time::{Duration, Instant};

use actors::contract::boot::BootSource;
use actors::contract::boot::MemoryPort;
use actors::contract::space::RaiseTimes;
use actors::{GpaRange, PAGE_SIZE, Protection};
use loader_actor::guests::spin;
use machine::{ConsoleKind, EngineChoice, Machine, MachineSpec, ShootdownMode};

use crate::bare_kick::BareKick;
use crate::cli::ShootdownArgs;
use crate::environment::{Cpus, IdlePoll, Labels, Pinned, pin_machine};
use crate::error::{BenchError, host};
use crate::executing::{self, Counters};
use crate::noise::NoiseMeter;
use crate::peer::Peer;
use crate::report::{Bound, Case, Ratio, Report};
use crate::samples::Series;
use crate::signal::Delivery;

/// One busy vcpu with a cpu to itself costs at most this much more than the bare kick. (With
/// as many vcpus as cpus somebody is always preempted, and a scheduler's slice is measured.)
const BOUND: Bound = Bound { p50_ratio: 1.15, p99_ratio: Some(1.5) };

/// A block ends after this long even if it has not all its samples: with more vcpus than cpus
/// a sample takes a scheduler's slice.
const BLOCK: Duration = Duration::from_millis(250);

/// Samples by what the vcpus were doing just before.
#[derive(Default)]
struct ByState {
    /// All of them were executing guest instructions.
    executing: Series,
    /// All of them were in the guest as far as anybody can tell; not all had a cpu.
    preempted: Series,
    /// Some were out of the guest, and were not knocked on.
    out: Series,
}

impl ByState {
    fn each(&mut self, act: impl Fn(&mut Series)) {
        [&mut self.executing, &mut self.preempted, &mut self.out].into_iter().for_each(act);
    }

    fn cases(&self, name: &str, cases: &mut Vec<Case>) {
        let all = [
            ("executing", &self.executing),
            ("not all executing", &self.preempted),
            ("not all in guest", &self.out),
        ];
        cases.extend(all.into_iter().filter_map(|(state, of)| Case::of(name, state, of)));
    }

    /// The series to compare: of vcpus that were executing, unless there was no cpu for that.
    fn compared(&self, has_room: bool) -> &Series {
        if has_room || self.executing.count() > self.preempted.count() {
            &self.executing
        } else {
            &self.preempted
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// skep's own shootdown.
struct Subject {
    machine: Machine,
    counters: GpaRange,
    vcpus: u16,
    has_own_cpu: bool,
    raised: ByState,
    elided: Series,
}

impl Subject {
    fn start(vcpus: u16, cpus: &Cpus) -> Result<Self, BenchError> {
        let mut spec = MachineSpec::new(BootSource::Builtin(spin::GUEST.name));
        spec.engine = EngineChoice::Kvm;
        spec.vcpus = vcpus;
        spec.memory_bytes = memory_bytes();
        spec.shootdown = ShootdownMode::Broadcast;
        spec.console = ConsoleKind::Null;
        let mut machine = Machine::build(spec)?;
        pin_machine(&machine, &[cpus.initiator()], |vcpu| vec![cpus.of_vcpu(vcpu)])?;
        if machine.start().is_err() {
            return Err(BenchError::Ended(machine.wait().to_string()));
        }
        let counters = executing::range(vcpus)?;
        // They stay where they are for the whole run.
        let access = Protection::READ | Protection::WRITE;
        machine.space().hold(&[counters], access).map_err(host("hold the guest's counters"))?;
        let has_own_cpu = cpus.has_room_for(vcpus);
        let subject = Self {
            machine,
            counters,
            vcpus,
            has_own_cpu,
            raised: ByState::default(),
            elided: Series::default(),
        };
        subject.pause()?;
        Ok(subject)
    }

    fn pause(&self) -> Result<(), BenchError> {
        self.machine.pause().map_err(|why| self.ended(&why))
    }

    fn raise(&self) -> Result<RaiseTimes, BenchError> {
        self.machine.space().raise().map_err(|why| self.ended(&why))
    }

    fn ended(&self, why: &dyn std::error::Error) -> BenchError {
        let outcome = self.machine.poll(Duration::from_secs(1));
        BenchError::Ended(outcome.map_or_else(|| why.to_string(), |outcome| outcome.to_string()))
    }

    fn block(&mut self, samples: u64) -> Result<(), BenchError> {
        self.machine.resume().map_err(|why| self.ended(&why))?;
        let memory = self.machine.space().guest_memory().clone();
        let counters = Counters::new(memory.backing(), self.vcpus, self.has_own_cpu);
        let began = Instant::now();
        for _ in 0..samples {
            let is_moving = counters.are_moving()?;
            let times = self.raise()?;
            let series = match (is_moving, times.knocked == u32::from(self.vcpus)) {
                (true, true) => &mut self.raised.executing,
                (false, true) => &mut self.raised.preempted,
                (_, false) => &mut self.raised.out,
            };
            series.record(times.completion_ns);
            if began.elapsed() > BLOCK {
                break;
            }
        }
        self.pause()?;
        for _ in 0..samples {
            let times = self.raise()?;
            if times.knocked != 0 {
                let why = format!("a paused machine had {} vcpus in the guest", times.knocked);
                return Err(BenchError::Unlike(why));
            }
            self.elided.record(times.completion_ns);
        }
        Ok(())
    }

    fn finish(self) -> (ByState, Series) {
        self.machine.space().release(&[self.counters], false);
        self.machine.stop();
        let outcome = self.machine.wait();
        let _ended = self.machine.finish(outcome);
        (self.raised, self.elided)
    }
}

/// The kick that the subject is built on, in one kind of delivery.
struct Kick {
    bare: BareKick,
    vcpus: u16,
    has_own_cpu: bool,
    taken: ByState,
}

impl Kick {
    fn start(vcpus: u16, cpus: &Cpus, delivery: Delivery) -> Result<Self, BenchError> {
        Ok(Self {
            bare: BareKick::new(vcpus, memory_bytes(), cpus, delivery)?,
            vcpus,
            has_own_cpu: cpus.has_room_for(vcpus),
            taken: ByState::default(),
        })
    }

    fn block(&mut self, samples: u64) -> Result<(), BenchError> {
        self.bare.resume();
        let memory = self.bare.memory();
        let counters = Counters::new(memory.backing(), self.vcpus, self.has_own_cpu);
        let began = Instant::now();
        for _ in 0..samples {
            let is_moving = counters.are_moving()?;
            let took = self.bare.kick()?;
            let taken = &mut self.taken;
            let series = if is_moving { &mut taken.executing } else { &mut taken.preempted };
            series.record(nanoseconds(took));
            if began.elapsed() > BLOCK {
                break;
            }
        }
        self.bare.pause()
    }
}

/// What needs no virtual machine at all.
struct Floors {
    peer: Peer,
    signal: ByState,
    membarrier: ByState,
    ping_pong: ByState,
}

impl Floors {
    fn start(cpus: &Cpus) -> Result<Self, BenchError> {
        Ok(Self {
            peer: Peer::start(cpus.of_vcpu(0))?,
            signal: ByState::default(),
            membarrier: ByState::default(),
            ping_pong: ByState::default(),
        })
    }

    fn block(&mut self, samples: u64) -> Result<(), BenchError> {
        self.peer.spin(true);
        let peer = &self.peer;
        block_of(&mut self.signal, samples, peer, || Ok(peer.signal_round_trip()))?;
        block_of(&mut self.membarrier, samples, peer, Peer::membarrier)?;
        block_of(&mut self.ping_pong, samples, peer, || Ok(peer.ping_pong()))?;
        self.peer.spin(false);
        Ok(())
    }

    fn all(&mut self) -> [(&'static str, &mut ByState); 3] {
        [
            ("floor/signal-round-trip", &mut self.signal),
            ("floor/membarrier", &mut self.membarrier),
            ("floor/ping-pong", &mut self.ping_pong),
        ]
    }
}

fn block_of(
    series: &mut ByState,
    samples: u64,
    peer: &Peer,
    take: impl Fn() -> Result<Duration, BenchError>,
) -> Result<(), BenchError> {
    let began = Instant::now();
    for _ in 0..samples {
        let is_moving = peer.is_moving();
        let took = nanoseconds(take()?);
        if is_moving { &mut series.executing } else { &mut series.preempted }.record(took);
        if began.elapsed() > BLOCK {
            break;
        }
    }
    Ok(())
}

/// Enough for the guest, in whole pages.
fn memory_bytes() -> u64 {
    spin::GUEST.memory_bytes.next_multiple_of(PAGE_SIZE)
}

/// Everything measured with one number of vcpus.
struct Measured {
    vcpus: u16,
    raised: ByState,
    elided: Series,
    masked: ByState,
    handled: ByState,
    floors: Option<Floors>,
}

impl Measured {
    /// One round more than asked for: the first is a warm-up.
    fn take(
        vcpus: u16,
        args: &ShootdownArgs,
        cpus: &Cpus,
        floors: Option<Floors>,
    ) -> Result<Self, BenchError> {
        let mut subject = Subject::start(vcpus, cpus)?;
        let mut masked = Kick::start(vcpus, cpus, Delivery::Mask)?;
        let mut handled = Kick::start(vcpus, cpus, Delivery::Handler)?;
        let mut floors = floors;
        for round in 0..=args.rounds {
            let end = if round == 0 { Series::forget_round } else { Series::end_round };
            subject.block(args.samples)?;
            masked.block(args.samples)?;
            handled.block(args.samples)?;
            subject.raised.each(end);
            end(&mut subject.elided);
            masked.taken.each(end);
            handled.taken.each(end);
            if let Some(floors) = &mut floors {
                floors.block(args.samples)?;
                floors.all().into_iter().for_each(|(_, series)| series.each(end));
            }
        }
        let (raised, elided) = subject.finish();
        let (masked, handled) = (masked.taken, handled.taken);
        Ok(Self { vcpus, raised, elided, masked, handled, floors })
    }

    fn name(&self, what: &str) -> String {
        format!("{what}/{}-vcpu", self.vcpus)
    }

    fn cases(&mut self, cases: &mut Vec<Case>) {
        self.raised.cases(&self.name("shootdown/raise"), cases);
        cases.extend(Case::of(self.name("shootdown/elided"), "nobody in guest", &self.elided));
        self.masked.cases(&self.name("bare-kick/mask"), cases);
        self.handled.cases(&self.name("bare-kick/handler"), cases);
        for (name, series) in self.floors.iter_mut().flat_map(Floors::all) {
            series.cases(name, cases);
        }
    }

    fn ratios(&self, cpus: &Cpus, is_dirty: bool, ratios: &mut Vec<Ratio>) {
        let has_room = cpus.has_room_for(self.vcpus);
        let subject = (&*self.name("shootdown/raise"), self.raised.compared(has_room));
        let bound = (self.vcpus == 1 && has_room).then_some(BOUND);
        let references = [
            (self.name("bare-kick/mask"), &self.masked, bound),
            (self.name("bare-kick/handler"), &self.handled, None),
        ];
        ratios.extend(references.into_iter().filter_map(|(name, of, bound)| {
            Ratio::of(subject, (&name, of.compared(has_room)), bound, is_dirty)
        }));
    }
}

/// Measures.
pub(crate) fn run(args: &ShootdownArgs) -> Result<Report, BenchError> {
    let cpus = Cpus::allowed()?;
    // Whatever a machine starts besides its vcpus stays on the initiator's cpu.
    let _pinned = Pinned::to(&[cpus.initiator()])?;
    let _idle_poll = args.idle_poll.then(|| IdlePoll::start(&cpus)).transpose()?;
    let meter = NoiseMeter::start()?;
    let mut all: Vec<Measured> = Vec::new();
    for &vcpus in &args.vcpus {
        let is_first = all.is_empty();
        let floors =
            (is_first && cpus.has_room_for(1)).then(|| Floors::start(&cpus)).transpose()?;
        all.push(Measured::take(vcpus, args, &cpus, floors)?);
    }
    let noise = meter.stop()?;
    let (mut cases, mut ratios) = (Vec::new(), Vec::new());
    for measured in &mut all {
        measured.cases(&mut cases);
        measured.ratios(&cpus, noise.is_dirty, &mut ratios);
    }
    let kvm = vcpu_actor::engine::kvm::KvmFlavor::detect().to_string();
    Ok(Report {
        bench: "shootdown",
        placement: format!(
            "initiator (pmap) on cpu {}, vcpus from cpu {} on, round robin",
            cpus.initiator(),
            cpus.of_vcpu(0)
        ),
        labels: Labels::of(&kvm, &cpus, args.idle_poll),
        noise,
        cases,
        ratios,
    })
}
