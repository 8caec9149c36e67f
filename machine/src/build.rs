//! Who is made in which order, and who gets whose handle.
//!
//! ```text
//!   memory ─▶ (KVM machine) ─▶ tracer ─▶ pmap ─▶ engine ─▶ console, devices ─▶ vcpus ─▶ loader, supervisor
//! ```
//!
//! Each needs only what stands to its left. When a step fails, what was made is dropped from
//! right to left: handles go, so threads end.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, System};
use actors::contract::guest::{TellMachine, Tidings};
use actors::device::Bus;
use actors::layout::BadLayout;
use actors::pulse::Pulse;
use actors::threads::{self, Joined};
use actors::{ActorName, Protection, VcpuId, platform};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use devices::cable::Cable;
use devices::console::{Console, Input, Output, Setup, block_signals};
use devices::power::PowerManagement;
use devices::serial::Serial;
use devices::{Wiring, attach};
use loader_actor::LoaderHandle;
use parking_lot::Mutex;
use pmap_actor::handle::SpaceHandle;
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::roster::Roster;
use pmap_actor::space_actor::{self, SpaceConfig};
use shootdown::{Domain, SeatId};
use tokio::sync::{mpsc, oneshot};
use vcpu_actor::engine::kvm::KvmError;
use vcpu_actor::{KickKind, Turns, VcpuConfig, VcpuHandle, pause_all};

use crate::engines::{self, EngineKind, Hardware};
use crate::host::meminfo;
use crate::machine::{Machine, TheEnd};
use crate::outcome::ExitStatus;
use crate::paging::{self, BadPaging};
use crate::phase::Phase;
use crate::spec::{ConsoleKind, HugePages, MachineSpec};
use crate::supervisor::MachineActor;
use crate::tracer;
use crate::verification::Verifier;
use crate::watch::Watch;

/// How long a fresh vcpu thread may take to answer its first order.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Why a machine cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The memory makes no sense.
    #[error(transparent)]
    Layout(#[from] BadLayout),
    /// What may leave memory, and where to, makes no sense.
    #[error(transparent)]
    Paging(#[from] BadPaging),
    /// KVM cannot do it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// That engine cannot do what is asked for.
    #[error("the {engine} engine cannot do that: {why}")]
    WrongEngine {
        /// Which.
        engine: EngineKind,
        /// What it cannot do.
        why: &'static str,
    },
    /// Each engine lacks something that is asked for.
    #[error("no engine does both: {why}; {also}")]
    Contradiction {
        /// What only KVM can do.
        why: &'static str,
        /// What only the software engine can do.
        also: &'static str,
    },
    /// Too many vcpus, or none.
    #[error("{0}")]
    Vcpus(String),
    /// More than the host can address.
    #[error("the host has no room for {bytes} bytes of guest memory: {why}")]
    Memory {
        /// What was wanted.
        bytes: u64,
        /// The operating system's reason.
        why: io::Error,
    },
    /// The operator has not reserved enough huge pages, or the host does not give them.
    #[error("--huge-pages reserved: {0}")]
    ReservedPages(io::Error),
    /// Wired memory must be there.
    #[error(
        "{wanted} bytes of guest memory cannot be wired (-S): the host has {available} bytes \
         available; ask for less, or leave out -S to page on demand"
    )]
    NotEnoughToWire {
        /// What was wanted.
        wanted: u64,
        /// `MemAvailable`.
        available: u64,
    },
    /// The pmap cannot start.
    #[error(transparent)]
    Pmap(#[from] space_actor::StartError),
    /// Something else the host refused.
    #[error("cannot {what}: {why}")]
    Host {
        /// What was tried.
        what: String,
        /// The reason.
        why: String,
    },
}

impl BuildError {
    /// The command's exit status.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Layout(_)
            | Self::WrongEngine { .. }
            | Self::Contradiction { .. }
            | Self::Vcpus(_)
            | Self::Kvm(KvmError::NoVcpus | KvmError::TooManyVcpus { .. }) => ExitStatus::Usage,
            Self::Kvm(_)
            | Self::Memory { .. }
            | Self::ReservedPages(_)
            | Self::NotEnoughToWire { .. }
            | Self::Pmap(_) => ExitStatus::HostLacks,
            Self::Paging(bad) => bad.exit_status(),
            Self::Host { .. } => ExitStatus::Error,
        }
    }
}

pub(crate) fn host<E: Display>(what: impl Into<String>) -> impl FnOnce(E) -> BuildError {
    let what = what.into();
    move |why| BuildError::Host { what, why: why.to_string() }
}

/// What must outlive every vcpu thread and the userfaultfd: closing a virtual machine waits
/// for faults that nobody would serve any more.
pub(crate) struct KeptUntilTheEnd {
    pub(crate) hardware: Hardware,
}

/// Where everybody's tidings go.
struct Ears {
    tell: TellMachine,
    tidings: mpsc::UnboundedReceiver<Tidings>,
    gone: Receiver<ActorName>,
}

impl Ears {
    /// Unbounded, because nobody may wait for the machine; and it cannot grow: an actor tells
    /// at most a few things in its life, and each may be its last.
    fn new() -> Self {
        let (heard, tidings) = mpsc::unbounded_channel();
        let (ends, gone) = unbounded();
        let tell: TellMachine = Arc::new(move |news: Tidings| {
            let ended = match &news {
                Tidings::Gone { actor, .. } => Some(*actor),
                _ => None,
            };
            // Whoever listened may be gone at the very end; then nobody wants to know.
            let _nobody = heard.send(news);
            if let Some(actor) = ended {
                let _nobody = ends.send(actor);
            }
        });
        Self { tell, tidings, gone }
    }
}

/// The console, and where captured output collects.
struct Plugged {
    console: Console,
    captured: Option<Arc<Mutex<Vec<u8>>>>,
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
}

pub(crate) fn build(spec: MachineSpec) -> Result<Machine, BuildError> {
    let epoch = Instant::now();
    let layout = spec.layout()?;
    paging::check(&spec)?;
    // Reserved pages are not among those that are available; whether there are enough is seen when they are taken.
    if spec.wire && spec.huge_pages == HugePages::Transparent {
        must_be_available(layout.total())?;
    }
    let engine = engines::choose(&spec)?;
    let memory =
        GuestMemory::with_pages(layout, spec.huge_pages).map_err(|why| match spec.huge_pages {
            HugePages::Transparent => BuildError::Memory { bytes: layout.total(), why },
            HugePages::Reserved => BuildError::ReservedPages(why),
        })?;
    let memory = Arc::new(memory);
    let vm = engine.make_vm(&spec, &memory)?;

    let Ears { tell, tidings, gone } = Ears::new();
    let mut threads = Vec::new();
    let mut watch = Watch::default();

    let tracer = match &spec.trace {
        None => None,
        Some(path) => {
            let started = tracer::start(path, tell.clone());
            let what = format!("write the fault trace {}", path.display());
            let (records, tracer, thread) = started.map_err(host(what))?;
            watch.add(ActorName::Tracer, tracer.pulse());
            threads.push((ActorName::Tracer, thread));
            Some((records, tracer))
        }
    };
    let (trace, tracer) = tracer.unzip();

    let domain = Arc::new(Domain::new(usize::from(spec.vcpus)));
    let roster = Arc::new(Roster::new(spec.vcpus));
    let (space, space_threads) = space_actor::start(SpaceConfig {
        memory,
        consumer: engine.consumer(&spec),
        domain: domain.clone(),
        roster: roster.clone(),
        mode: spec.shootdown,
        fault_around_pages: spec.fault_around_pages,
        spin_for_faults: spec.spin_for_faults,
        trace,
        epoch,
        swap: spec.swap.clone(),
        resident_limit_bytes: spec.resident_limit_bytes,
        harvest_every: spec.harvest_every,
        swap_fault: spec.swap_fault,
        tell: tell.clone(),
    })?;
    for (actor, pulse) in space.pulses() {
        watch.add(actor, pulse);
    }
    threads.extend(space_threads);
    for range in layout.ranges() {
        space.map(range, Protection::all()).map_err(host("map the guest's memory"))?;
        if let Some(option) = spec.keeps_all() {
            space.wire(range).map_err(host(format!("wire the guest's memory ({option})")))?;
        }
    }

    let hardware = Hardware::new(vm, &spec, &space)?;
    let plugged = plug_in(&spec, &hardware, &tell)?;
    watch.add(ActorName::Console, plugged.console.pulse());

    let turns = Turns::of(usize::from(spec.vcpus));
    let mut vcpus = Vec::with_capacity(usize::from(spec.vcpus));
    for id in (0..spec.vcpus).map(VcpuId) {
        let pulse = Pulse::default();
        let faults = space.clone();
        let config = VcpuConfig {
            id,
            engine: (),
            domain: domain.clone(),
            seat: SeatId(id.index()),
            ports: plugged.ports.clone(),
            mmio: plugged.mmio.clone(),
            faults: Arc::new(move |fault| faults.fault(fault)),
            layout,
            tell: tell.clone(),
            wake: space.waker(),
            pulse: pulse.clone(),
            kick: KickKind::default(),
            turns,
        };
        let (vcpu, thread) = hardware.start_vcpu(id, config)?;
        watch.add(ActorName::Vcpu(id), pulse);
        threads.push((ActorName::Vcpu(id), thread));
        vcpus.push(vcpu);
    }
    enter_in_roster(&roster, &vcpus)?;

    let supervisor_pulse = Pulse::default();
    let (outcome_sender, outcome) = bounded(1);
    let control = Control {
        vcpus: vcpus.clone(),
        space: space.clone(),
        watch,
        pulse: supervisor_pulse.clone(),
        tidings,
        outcome: outcome_sender,
        timeout: spec.timeout,
        tell,
    };
    let (supervisor, stop_supervisor) = control.start(&mut threads)?;

    Ok(Machine {
        engine: engine.kind,
        engine_detail: engine.why,
        domain,
        space,
        vcpus,
        console: Some(plugged.console),
        tracer,
        captured: plugged.captured,
        supervisor,
        end: Mutex::new(TheEnd::watching(supervisor_pulse)),
        stop_supervisor: Some(stop_supervisor),
        outcome,
        threads,
        gone,
        build_time: epoch.elapsed(),
        loaded: None,
        load_time: Duration::ZERO,
        running_since: None,
        verifier: Verifier::new(spec.verify),
        spec,
        kept: KeptUntilTheEnd { hardware },
    })
}

/// Wiring takes memory at once; better an error now than the out-of-memory killer later.
fn must_be_available(wanted: u64) -> Result<(), BuildError> {
    let available = meminfo("MemAvailable")
        .ok_or("it names no MemAvailable")
        .map_err(host("read /proc/meminfo"))?;
    let available = available.saturating_mul(1024);
    if wanted > available {
        return Err(BuildError::NotEnoughToWire { wanted, available });
    }
    Ok(())
}

fn plug_in(
    spec: &MachineSpec,
    hardware: &Hardware,
    tell: &TellMachine,
) -> Result<Plugged, BuildError> {
    let cable = Cable::new().map_err(host("make the console's cable"))?;
    let serial_line = hardware.irq_line(platform::COM1_IRQ)?;
    let serial = Arc::new(Mutex::new(Serial::new(serial_line, cable.clone())));
    let sci_line = hardware.irq_line(platform::SCI_IRQ)?;
    let power = Arc::new(Mutex::new(PowerManagement::new(sci_line)));
    let wiring = Wiring { serial: serial.clone(), power };
    let (mut ports, mut mmio) = attach(wiring).map_err(host("place the devices"))?;
    hardware.attach(&mut ports, &mut mmio).map_err(host("place the interrupt controllers"))?;

    let mut captured = None;
    let mut setup =
        Setup { cable, serial, input: Input::None, output: Output::Null, signals: None };
    match spec.console {
        ConsoleKind::Null => {}
        ConsoleKind::Captured => {
            let (output, all) = Output::collect();
            setup.output = output;
            captured = Some(all);
        }
        ConsoleKind::Terminal => {
            setup.input = Input::stdin().map_err(host("read stdin"))?;
            setup.output = Output::stdout().map_err(host("write stdout"))?;
            // Blocked by `main` before any thread was started (`ConsoleKind::Terminal`).
            let signals = block_signals().map_err(host("take Ctrl-C"))?;
            setup.signals = Some(signals.inbox().map_err(host("take Ctrl-C"))?);
        }
    }
    let console = Console::start(setup, tell.clone()).map_err(host("start the console"))?;
    Ok(Plugged { console, captured, ports: Arc::new(ports), mmio: Arc::new(mmio) })
}

/// Tells the pmap whose thread is whose. A vcpu's thread has a number once it has answered.
fn enter_in_roster(roster: &Roster, vcpus: &[VcpuHandle]) -> Result<(), BuildError> {
    let deadline = Instant::now() + FIRST_ANSWER;
    pause_all(vcpus).wait(deadline).map_err(host("start the vcpus"))?;
    for vcpu in vcpus {
        let thread = vcpu.tid().and_then(|thread| u32::try_from(thread).ok());
        let thread =
            thread.ok_or("its thread has ended").map_err(host(format!("start {}", vcpu.id())))?;
        let knocker = vcpu.knocker();
        roster.enter(vcpu.id(), thread, Arc::new(move || knocker.knock()));
    }
    Ok(())
}

/// The control plane's thread: an actix system with the supervisor and the loader's desk.
struct Control {
    vcpus: Vec<VcpuHandle>,
    space: SpaceHandle,
    watch: Watch,
    pulse: Pulse,
    tidings: mpsc::UnboundedReceiver<Tidings>,
    outcome: Sender<crate::outcome::Outcome>,
    timeout: Option<Duration>,
    tell: TellMachine,
}

/// What the control plane's thread says when it is up.
type Up = Result<(Addr<MachineActor>, Joined), io::Error>;

impl Control {
    fn start(
        self,
        threads: &mut Vec<(ActorName, Joined)>,
    ) -> Result<(Addr<MachineActor>, oneshot::Sender<()>), BuildError> {
        let (stop, stopped) = oneshot::channel();
        let (up, is_up) = bounded::<Up>(1);
        let tell = self.tell.clone();
        let ended = move |actor, ending| tell(Tidings::Gone { actor, ending });
        let body = move || {
            System::new().block_on(async move {
                let (up_with, loader) = self.assemble();
                drop(up.send(up_with));
                // Dropping the sender is as good as sending.
                let _ended = stopped.await;
                if let Some(loader) = loader {
                    loader.retire().await;
                }
            });
        };
        let thread =
            threads::spawn(ActorName::Machine, ended, body).map_err(host("start a thread"))?;
        threads.push((ActorName::Machine, thread));
        let up = is_up.recv().map_err(host("start the control plane"))?;
        let (supervisor, loader) = up.map_err(host("start the loader's thread"))?;
        threads.push((ActorName::Loader, loader));
        Ok((supervisor, stop))
    }

    fn assemble(mut self) -> (Up, Option<LoaderHandle>) {
        let layout = self.space.guest_memory().layout();
        let port = Arc::new(self.space.clone());
        let (loader, thread) = match loader_actor::start(layout, port, self.tell.clone()) {
            Ok(started) => started,
            Err(error) => return (Err(error), None),
        };
        self.watch.add(ActorName::Loader, loader.pulse());
        let supervisor = MachineActor {
            phase: Phase::Built,
            vcpus: self.vcpus,
            loader: loader.clone(),
            watch: self.watch,
            last_look: Instant::now(),
            pulse: self.pulse,
            tidings: Some(self.tidings),
            outcome: self.outcome,
            timeout: self.timeout,
        };
        (Ok((supervisor.start(), thread)), Some(loader))
    }
}
