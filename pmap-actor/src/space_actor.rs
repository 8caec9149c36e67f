//! The pmap actor: one thread that owns a vmspace, serves its faults and its mailbox, and
//! carries what it removes through shootdowns.
//!
//! # The loop
//!
//! ```text
//!   ┌──▶ faults ──▶ workers' answers ──▶ the shootdown on its way ──▶ one request, one round of the clock ──▶ sleep ──┐
//!   └──────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Why it cannot deadlock
//!
//! *On KVM* a vcpu may sleep in the kernel on a fault while this actor waits for that vcpu to
//! come out. At CPL 3 the knock's signal brings it out; in KVM's own accesses on the guest's
//! behalf it does not, and only an answer to the fault does. So faults are served first,
//! and are served *while* a shootdown is on its way. They never get a frame or a table page
//! that a ticket still carries: those come back only through [`VmSpace::give_back`]. Requests
//! wait while a shootdown is on its way, so a range cannot be mapped again before its
//! frames are free. Several removals that wait in the mailbox share one raise.
//!
//! *On the software engine* a vcpu comes out of the guest first, and then asks and waits
//! (`fault_lane.rs`). No shootdown waits for a vcpu that is out, so there is no circle even if
//! nobody served it meanwhile; it is served all the same, in the same place and under the
//! same rules, because another vcpu's long trip is no reason to stand still.
//!
//! # How it waits
//!
//! For a ticket: it spins for [`SPIN_FOR_TICKET`], because an acknowledgement takes about
//! as long as waking a sleeping thread, and then sleeps, because a vcpu that needs *this*
//! cpu to come out would wait for a spinner for milliseconds. A vcpu that leaves the guest
//! after a knock rings the bell (the dance's L3), and so does a vcpu that asks.
//!
//! This file is the actor and its loop; `space_actor/` has what the loop does: `faults.rs`,
//! `shootdowns.rs`, `requests.rs`, `paging.rs`.

mod faults;
mod looks;
mod paging;
mod requests;
mod shootdowns;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::ActorName;
use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::space::{FaultService, FaultTally, SpaceRequest};
use actors::doorbell::Doorbell;
use actors::pulse::Pulse;
use actors::swap::SwapSpec;
use actors::threads::{self, Joined};
use crossbeam_channel::{Receiver, Sender};
use shootdown::{Domain, Tally, Whom};
use tracing::error;

use self::looks::Looks;
use self::paging::Paging;
use self::shootdowns::OnItsWay;
use crate::completed::Completed;
use crate::content::StoreLimits;
use crate::ept::masks::PmapFlags;
use crate::fault_lane::FaultLane;
use crate::handle::{Reach, SpaceHandle};
use crate::host::huge::HugePages;
use crate::host::memory::GuestMemory;
use crate::host::userfault::{NoUserfault, Userfault};
use crate::latency::Latency;
use crate::mirror::{KvmMirror, Mirror, SoftMirror};
use crate::record::FaultRecord;
use crate::roster::Roster;
use crate::swap::faulty::SwapFault;
use crate::swap::workers::{self, Workers, WorkersConfig};
use crate::swap::{CreateError, Room, SwapFile};
use crate::vmspace::{Settings, Superpages, VmSpace};

/// How long to spin for acknowledgements before sleeping. A kick that finds its vcpu
/// running is acknowledged in about 30 us; past 50 us the vcpu is not on a cpu.
const SPIN_FOR_TICKET: Duration = Duration::from_micros(50);

/// Looks at a ticket between two looks for faults, while spinning.
const LOOKS_PER_TURN: u32 = 8;

/// How long a vcpu may take to leave the guest before the machine is told.
const OVERDUE: Duration = Duration::from_secs(5);

/// Requests the mailbox holds. Askers wait for answers, so there are few of them.
const MAILBOX: usize = 64;

/// Removals that may share one raise.
const SHARED_RAISE: usize = 64;

/// Whom an invalidation knocks on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShootdownMode {
    /// Only whoever may still use a removed translation from user space. On KVM the host
    /// kernel has flushed its own tables before the mirror's call returned, and no vcpu
    /// thread caches translations: so nobody. On the software engine every vcpu has a TLB of
    /// its own: so everyone in the guest.
    #[default]
    Auto,
    /// Everyone in the guest, always: measures the protocol itself.
    Broadcast,
    /// Nobody: leaves all of it to the host kernel. KVM only.
    Kernel,
}

/// What realises the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consumer {
    /// KVM, which follows the guest view; faults arrive on userfaultfd. Its tables are hidden,
    /// so accessed and modified bits are always emulated.
    Kvm {
        /// For tests that a guest notices: leave the host mapping alone when translations are
        /// removed.
        skip_unmap: bool,
        /// Whether the host mapping may be huge.
        superpages: bool,
    },
    /// Vcpus that walk the tables themselves and ask for what is missing. Needs no privilege.
    Soft {
        /// Whether the walker sets accessed and dirty bits, as newer hardware does, or
        /// faults where they are clear, as older hardware.
        hardware_ad: bool,
        /// Whether it takes 2 MiB leaves; a walker that does not finds them misconfigured.
        superpages: bool,
    },
}

impl Consumer {
    /// The pmap's flags for it.
    fn flags(self) -> PmapFlags {
        match self {
            // An unreadable page that is executable is no translation of hardware's here: the host mapping is gone.
            Self::Kvm { superpages, .. } => Self::walked(false, superpages),
            // With emulated bits a fetch from an aged page leaves no trace then, as on FreeBSD. Without execute-only an aged page would
            // lose its translation instead, all of guest memory being executable: tried, and no bit was ever emulated any more.
            Self::Soft { hardware_ad, superpages } => Self::walked(hardware_ad, superpages),
        }
    }

    fn walked(hardware_ad: bool, superpages: bool) -> PmapFlags {
        let mut flags = PmapFlags::EXECUTE_ONLY;
        flags.set(PmapFlags::EMULATE_AD_BITS, !hardware_ad);
        flags.set(PmapFlags::SUPERPAGES, superpages);
        flags
    }

    /// When to make superpages. A nested fault of KVM costs more than 2 MiB of zeroes, so there a whole block
    /// comes at once; and write-protecting or ageing a part of a huge host mapping splits it, so only writable ones are of use.
    fn superpages(self) -> Superpages {
        match self {
            Self::Kvm { superpages, .. } => Superpages { at_once: superpages, writable_only: true },
            Self::Soft { .. } => Superpages { at_once: false, writable_only: false },
        }
    }

    /// Whom an invalidation knocks on.
    ///
    /// # Errors
    ///
    /// [`StartError::NoKernel`].
    fn whom(self, mode: ShootdownMode) -> Result<Whom, StartError> {
        match (mode, self) {
            (ShootdownMode::Broadcast, _) | (ShootdownMode::Auto, Self::Soft { .. }) => {
                Ok(Whom::Everyone)
            }
            (ShootdownMode::Auto | ShootdownMode::Kernel, Self::Kvm { .. }) => Ok(Whom::Nobody),
            (ShootdownMode::Kernel, Self::Soft { .. }) => Err(StartError::NoKernel),
        }
    }
}

/// What a pmap actor is made of.
pub struct SpaceConfig {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// What realises the tables.
    pub consumer: Consumer,
    /// The vcpus that share it.
    pub domain: Arc<Domain>,
    /// How to knock on them.
    pub roster: Arc<Roster>,
    /// Whom to knock on.
    pub mode: ShootdownMode,
    /// Fault-around window, in pages; 1 turns it off.
    pub fault_around_pages: u64,
    /// How long to watch for the next fault before sleeping. Spinning takes a cpu from
    /// the vcpus; zero unless a cpu is to spare.
    pub spin_for_faults: Duration,
    /// Where records of faults go.
    pub trace: Option<Sender<FaultRecord>>,
    /// What the records' times count from.
    pub epoch: Instant,
    /// Where pages go that leave memory, beyond its compressed tier.
    pub swap: Option<SwapSpec>,
    /// The most that resident guest memory and the compressed tier may take together, in bytes.
    pub resident_limit_bytes: Option<u64>,
    /// How often to look at the guest's working set.
    pub harvest_every: Option<Duration>,
    /// For tests: how the swap file fails, and after how many good calls.
    pub swap_fault: Option<(SwapFault, u64)>,
    /// Where tidings go.
    pub tell: TellMachine,
}

/// Why there is no pmap actor.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No userfaultfd.
    #[error(transparent)]
    Userfault(#[from] NoUserfault),
    /// [`ShootdownMode::Kernel`] for [`Consumer::Soft`].
    #[error(
        "shootdowns cannot be left to the kernel on the software engine: its vcpus cache \
         translations that no kernel knows of; use auto or broadcast"
    )]
    NoKernel,
    /// The swap file.
    #[error(transparent)]
    Swap(#[from] CreateError),
    /// The host refused something else.
    #[error("the host refused to {what}: {why}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The operating system's reason.
        #[source]
        why: io::Error,
    },
}

/// The actor's threads, by name: the pmap's own first, then the workers of its store, if it has one.
pub type Threads = Vec<(ActorName, Joined)>;

/// Starts the actor's thread; for KVM, it watches the guest view first.
///
/// # Errors
///
/// [`StartError`].
pub fn start(config: SpaceConfig) -> Result<(SpaceHandle, Threads), StartError> {
    let whom = config.consumer.whom(config.mode)?;
    let memory = config.memory.clone();
    match config.consumer {
        Consumer::Kvm { skip_unmap, .. } => {
            let userfault = Arc::new(Userfault::open()?);
            let what = match memory.pages() {
                HugePages::Transparent => "watch guest memory with userfaultfd",
                HugePages::Reserved => "map the guest's reserved huge pages",
            };
            let mirror =
                KvmMirror::new(memory, userfault.clone(), skip_unmap).map_err(host(what))?;
            start_with(config, whom, mirror, Some(userfault))
        }
        Consumer::Soft { .. } => start_with(config, whom, SoftMirror::new(memory), None),
    }
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |why| StartError::Host { what, why }
}

fn start_with<M: Mirror + Send + 'static>(
    config: SpaceConfig,
    whom: Whom,
    mirror: M,
    userfault: Option<Arc<Userfault>>,
) -> Result<(SpaceHandle, Threads), StartError> {
    let bell = Arc::new(Doorbell::new().map_err(host("make an eventfd"))?);
    let (requests, mailbox) = crossbeam_channel::bounded(MAILBOX);
    let memory = config.memory.clone();
    let (store, workers, mut threads) = match start_store(&config, &bell)? {
        Some(started) => (Some(started.limits), Some(started.workers), started.threads),
        None => (None, None, Vec::new()),
    };
    let settings = Settings {
        flags: config.consumer.flags(),
        around: config.fault_around_pages,
        superpages: config.consumer.superpages(),
        store,
    };
    let space = VmSpace::new(memory.clone(), settings, mirror);
    let reach = Reach { memory, userfault, lane: Arc::default() };
    let handle = SpaceHandle {
        requests,
        bell: bell.clone(),
        reach: reach.clone(),
        view: space.tables().view(),
        completed: Completed::default(),
        pulse: Pulse::default(),
        workers: workers.as_ref().map(Workers::remote),
    };
    let mut actor = SpaceActor {
        space,
        userfault: reach.userfault.clone(),
        lane: reach.lane.clone(),
        mailbox,
        bell,
        pulse: handle.pulse.clone(),
        whom,
        completed: handle.completed.clone(),
        on_its_way: None,
        set_aside: None,
        counted: Counted::default(),
        last_fault: Instant::now(),
        fault_service: FaultService::default(),
        retired: false,
        paging: Paging::with(workers),
        looks: Looks::default(),
        config,
    };
    actor.begin_looks();
    let tell = actor.config.tell.clone();
    // The tracer ends when the last sender goes: that, too, must be heard as a consequence.
    let trace = actor.config.trace.clone();
    let ended = move |actor, ending| {
        let was_planned = ending == threads::Ending::Returned;
        // Told first: what the vcpus will say of the sealed memory is only a consequence.
        tell(Tidings::Gone { actor, ending });
        if was_planned {
            reach.lane.seal();
        } else if let Err(error) = reach.seal() {
            // Closing the userfaultfd would let the kernel fill pages on its own. Unless this
            // end was planned, nothing may be served any more.
            error!(%error, "guest memory could not be sealed");
        }
        drop((reach, trace));
    };
    let thread = threads::spawn(ActorName::Pmap, ended, move || actor.run())
        .map_err(host("start a thread"))?;
    threads.insert(0, (ActorName::Pmap, thread));
    Ok((handle, threads))
}

/// A store: how much fits, and who does its slow work.
struct Started {
    limits: StoreLimits,
    workers: Workers,
    threads: Threads,
}

/// Opens the swap file and starts the workers, where pages can leave at all.
fn start_store(config: &SpaceConfig, bell: &Arc<Doorbell>) -> Result<Option<Started>, StartError> {
    let file = match &config.swap {
        Some(swap) => {
            let memory = config.memory.layout().total();
            let room = swap.bytes.map_or(Room::Sparse(memory), Room::Reserved);
            SwapFile::create(&swap.path, room)?
        }
        // Nothing is ever written: there are no slots.
        None if config.resident_limit_bytes.is_some() => SwapFile::none(),
        None => return Ok(None),
    };
    let file = match config.swap_fault {
        Some((fault, after)) => file.breaking(fault, after),
        None => file,
    };
    let limits = StoreLimits {
        slots: file.slots(),
        resident_bytes: config.resident_limit_bytes.unwrap_or(u64::MAX),
    };
    let (workers, threads) = workers::start(WorkersConfig {
        memory: config.memory.clone(),
        file: Arc::new(file),
        bell: bell.clone(),
        tell: config.tell.clone(),
    })
    .map_err(host("start a thread"))?;
    Ok(Some(Started { limits, workers, threads: threads.into() }))
}

/// What was counted so far.
#[derive(Default)]
struct Counted {
    faults: FaultTally,
    fault_service: Latency,
    shootdowns: Tally,
}

struct SpaceActor<M> {
    space: VmSpace<M>,
    /// How KVM's faults arrive; vcpus of the software engine ask.
    userfault: Option<Arc<Userfault>>,
    lane: Arc<FaultLane>,
    mailbox: Receiver<SpaceRequest>,
    bell: Arc<Doorbell>,
    pulse: Pulse,
    whom: Whom,
    completed: Completed,
    on_its_way: Option<OnItsWay>,
    /// A request that was taken out of the mailbox too early.
    set_aside: Option<SpaceRequest>,
    counted: Counted,
    last_fault: Instant,
    fault_service: FaultService,
    retired: bool,
    paging: Paging,
    looks: Looks,
    config: SpaceConfig,
}

impl<M: Mirror> SpaceActor<M> {
    fn run(mut self) {
        while !self.retired {
            self.pulse.beat();
            let mut did = self.serves_faults() && self.serve_faults();
            did |= self.hear_workers();
            did |= self.finish_shootdown();
            did |= self.serve_parked();
            if self.on_its_way.is_none() {
                did |= self.carry_left_over() || self.look_or_serve();
            }
            // Who has retired has said what it counted, and raises nothing any more.
            if self.on_its_way.is_none() && !self.retired {
                did |= self.reclaim();
            }
            self.answer_outs();
            self.send_jobs();
            if !did && !self.retired {
                self.wait();
            }
        }
    }

    // ---- waiting -------------------------------------------------------------------------

    fn wait(&mut self) {
        let timeout = match &mut self.on_its_way {
            Some(shootdown) => {
                let age = shootdown.raised_at.elapsed();
                if age < SPIN_FOR_TICKET {
                    // Several looks for each look at the userfaultfd, which is a system call.
                    for _ in 0..LOOKS_PER_TURN {
                        if shootdown.is_over(&self.config.domain) {
                            break;
                        }
                        std::hint::spin_loop();
                    }
                    return;
                }
                OVERDUE.saturating_sub(age).max(Duration::from_millis(1))
            }
            None if self.last_fault.elapsed() < self.config.spin_for_faults => {
                std::hint::spin_loop();
                return;
            }
            None => self.until_next_look().unwrap_or(Duration::MAX),
        };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(-1);
        self.pulse.rest();
        let serves_faults = self.serves_faults();
        let (lane, mailbox, domain) = (&self.lane, &self.mailbox, &self.config.domain);
        let workers = &self.paging.workers;
        // While a shootdown is on its way mail does not count; its end does, and so do faults.
        let shootdown = &mut self.on_its_way;
        let ready = || {
            let somebody_asks = serves_faults && !lane.is_empty();
            let somebody_answers = workers.as_ref().is_some_and(Workers::has_answers);
            somebody_asks
                || somebody_answers
                || match shootdown {
                    Some(shootdown) => shootdown.is_over(domain),
                    None => !mailbox.is_empty(),
                }
        };
        // Poll passes over a negative descriptor.
        let watched = self.userfault.as_ref().filter(|_| serves_faults);
        let faults = watched.map_or(-1, |userfault| userfault.as_raw_fd());
        let events = self.bell.sleep([faults], timeout, ready);
        if events[0] & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            self.host_failed("wait for faults", &io::Error::other("userfaultfd was closed"));
        }
    }

    fn host_failed(&self, what: &str, why: &io::Error) {
        let what = format!("the host refused to {what}: {why}");
        (self.config.tell)(Tidings::HostFailed { actor: ActorName::Pmap, what });
    }
}
