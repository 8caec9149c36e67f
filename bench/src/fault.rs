//! `skep bench fault`: what does the first touch of a page cost the guest?
//!
//! The guest `toucher` writes to one page after the other and times each write with its own
//! time-stamp counter. In the subject a machine's pmap serves the faults, as in any run of
//! skep; in the reference a bare handler does. Each block is a fresh machine with as much
//! memory as it takes, so the same page is never touched twice. Where one fault brings a whole
//! window of pages, the first touch of each window is compared; the others came along.

use std::time::Duration;

use actors::PAGE_SIZE;
use actors::contract::boot::BootSource;
use loader_actor::guests::toucher;
use machine::{ConsoleKind, EngineChoice, ExitStatus, Machine, MachineSpec};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::bare_fault;
use crate::cli::{FaultArgs, Pager};
use crate::clock::TickRate;
use crate::environment::{Cpus, IdlePoll, Labels, Pinned, pin_machine};
use crate::error::{BenchError, host};
use crate::noise::NoiseMeter;
use crate::report::{Bound, Case, Ratio, Report};
use crate::samples::Series;

/// A fault that our pmap serves costs at most this much more than a bare one.
const BOUND: Bound = Bound { p50_ratio: 1.2, p99_ratio: None };

/// A guest that takes longer than this has lost a fault.
const DEADLINE: Duration = Duration::from_secs(120);

/// The largest window there is, in pages: what one table maps.
const MOST_AROUND: u64 = 512;

/// One way to serve faults.
#[derive(Clone, Debug)]
pub(crate) struct Where {
    name: String,
    /// Where the vcpu runs.
    pub(crate) vcpu: Vec<usize>,
    /// Where whoever serves its faults runs.
    pub(crate) pager: Vec<usize>,
    /// Pages that one fault brings.
    pub(crate) around: u64,
    /// How long whoever serves faults watches for the next before sleeping.
    pub(crate) spin: Duration,
    faults: u64,
    is_judged: bool,
}

impl Where {
    fn new(pager: Pager, around: u64, args: &FaultArgs, cpus: &Cpus) -> Self {
        let (near, far) = (vec![cpus.of_vcpu(0)], vec![cpus.initiator()]);
        let all = cpus.all().to_vec();
        let (name, vcpu, pager_cpus) = match pager {
            Pager::Same => ("same", near.clone(), near),
            Pager::Other => ("other", near, far),
            Pager::Free => ("free", all.clone(), all),
        };
        Self {
            name: format!("{name}/around-{around}"),
            vcpu,
            pager: pager_cpus,
            around,
            spin: args.spin(),
            faults: args.samples,
            // Where the host moves threads about, either side may have had the luck.
            is_judged: pager != Pager::Free,
        }
    }

    fn touches(&self) -> u64 {
        self.faults * self.around
    }

    /// The guest touches every page that is free, so this says how many there are.
    pub(crate) fn memory_bytes(&self) -> u64 {
        toucher::FREE.0 + self.touches() * PAGE_SIZE
    }
}

/// What one run of the guest measured.
#[derive(Debug)]
pub(crate) struct Touched {
    /// In ticks of the time-stamp counter, in order.
    ticks: Vec<u64>,
}

impl Touched {
    /// Reads the results of a guest that has ended; `served` faults brought it there.
    pub(crate) fn read(
        memory: &GuestMemoryMmap,
        place: &Where,
        served: u64,
    ) -> Result<Self, BenchError> {
        let what = "read the guest's results";
        let done: u64 = memory.read_obj(GuestAddress(toucher::DONE.0)).map_err(host(what))?;
        if done != place.touches() {
            let why = format!("the guest touched {done} pages of {}", place.touches());
            return Err(BenchError::Unlike(why));
        }
        if served < place.faults {
            let why = format!("{served} faults were served where {} were due", place.faults);
            return Err(BenchError::Unlike(why));
        }
        let result = |touch| memory.read_obj(GuestAddress(toucher::result(touch).0));
        let ticks: Result<Vec<u64>, _> = (0..done).map(result).collect();
        Ok(Self { ticks: ticks.map_err(host(what))? })
    }
}

/// Touches of one side, in one placement.
#[derive(Default)]
struct Side {
    faulted: Series,
    came_along: Series,
}

impl Side {
    fn add(&mut self, touched: &Touched, around: u64, rate: TickRate) {
        for (touch, ticks) in (0u64..).zip(&touched.ticks) {
            let is_first = touch.is_multiple_of(around);
            let series = if is_first { &mut self.faulted } else { &mut self.came_along };
            series.record(rate.nanoseconds(*ticks));
        }
    }

    fn each(&mut self, act: impl Fn(&mut Series)) {
        act(&mut self.faulted);
        act(&mut self.came_along);
    }

    fn cases(&self, name: &str, cases: &mut Vec<Case>) {
        cases.extend(Case::of(name, "served", &self.faulted));
        cases.extend(Case::of(name, "came along", &self.came_along));
    }
}

/// Runs the guest once, in a whole machine.
fn touch_all(place: &Where) -> Result<Touched, BenchError> {
    let mut spec = MachineSpec::new(BootSource::Builtin(toucher::GUEST.name));
    spec.engine = EngineChoice::Kvm;
    spec.memory_bytes = place.memory_bytes();
    spec.fault_around_pages = place.around;
    spec.spin_for_faults = place.spin;
    spec.console = ConsoleKind::Null;
    spec.timeout = Some(DEADLINE);
    let mut machine = Machine::build(spec)?;
    pin_machine(&machine, &place.pager, |_| place.vcpu.clone())?;
    // A guest that cannot begin has an outcome that says why.
    let _started = machine.start();
    let outcome = machine.wait();
    let memory = machine.space().guest_memory().clone();
    let ended = machine.finish(outcome);
    if ended.outcome.exit_status() != ExitStatus::Success {
        return Err(BenchError::Ended(ended.outcome.to_string()));
    }
    let served = ended.report.space.map_or(0, |space| space.faults.total);
    Touched::read(memory.backing(), place, served)
}

/// Refuses windows that cannot be.
pub(crate) fn check(args: &FaultArgs) -> Result<(), BenchError> {
    for &around in &args.around {
        if !around.is_power_of_two() || around > MOST_AROUND {
            let most = format!("a power of two up to {MOST_AROUND}");
            return Err(BenchError::Usage(format!("--around {around} is not {most}")));
        }
        let touches = args.samples.saturating_mul(around);
        if touches > toucher::MOST_TOUCHES {
            return Err(BenchError::Usage(format!(
                "--samples {} with --around {around} are {touches} touches, and the guest has \
                 room for {} results: ask for more rounds instead",
                args.samples,
                toucher::MOST_TOUCHES
            )));
        }
    }
    Ok(())
}

/// Measures.
pub(crate) fn run(args: &FaultArgs) -> Result<Report, BenchError> {
    let cpus = Cpus::allowed()?;
    let rate = TickRate::measure();
    let _idle_poll = args.idle_poll.then(|| IdlePoll::start(&cpus)).transpose()?;
    let meter = NoiseMeter::start()?;
    let mut all = Vec::new();
    for &pager in &args.placement {
        // Whatever a machine starts besides these two stays out of the vcpu's way.
        let others = if pager == Pager::Free { cpus.all() } else { &[cpus.initiator()] };
        let _pinned = Pinned::to(others)?;
        for &around in &args.around {
            let place = Where::new(pager, around, args, &cpus);
            let (mut subject, mut bare) = (Side::default(), Side::default());
            for round in 0..=args.rounds {
                let end = if round == 0 { Series::forget_round } else { Series::end_round };
                subject.add(&touch_all(&place)?, around, rate);
                bare.add(&bare_fault::touch_all(&place)?, around, rate);
                subject.each(end);
                bare.each(end);
            }
            all.push((place, subject, bare));
        }
    }
    let noise = meter.stop()?;
    let (mut cases, mut ratios) = (Vec::new(), Vec::new());
    for (place, subject, bare) in &all {
        let (own, other) = (format!("fault/{}", place.name), format!("bare-fault/{}", place.name));
        subject.cases(&own, &mut cases);
        bare.cases(&other, &mut cases);
        let bound = place.is_judged.then_some(BOUND);
        let sides = ((own.as_str(), &subject.faulted), (other.as_str(), &bare.faulted));
        ratios.extend(Ratio::of(sides.0, sides.1, bound, noise.is_dirty));
    }
    let kvm = vcpu_actor::engine::kvm::KvmFlavor::detect().to_string();
    Ok(Report {
        bench: "fault",
        placement: format!(
            "vcpu on cpu {}; faults served on the same cpu, on cpu {}, or wherever the host likes",
            cpus.of_vcpu(0),
            cpus.initiator()
        ),
        labels: Labels::of(&kvm, &cpus, args.idle_poll),
        noise,
        cases,
        ratios,
    })
}
