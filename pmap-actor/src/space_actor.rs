//! The pmap actor: one thread that owns a vmspace, serves its faults and its mailbox, and
//! carries what it removes through shootdowns.
//!
//! # The loop
//!
//! ```text
//!   ┌──▶ faults ──▶ the shootdown on its way ──▶ one request ──▶ nothing to do? sleep ──┐
//!   └────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! # Why it cannot deadlock
//!
//! A vcpu may sleep in the kernel on a fault while this actor waits for that vcpu to come
//! out. At CPL 3 the knock's signal brings it out; in KVM's own accesses on the guest's
//! behalf it does not, and only an answer to the fault does. So faults are served first,
//! and are served *while* a shootdown is on its way. They never get a frame or a table page
//! that a ticket still carries: those come back only through [`VmSpace::give_back`]. Requests
//! wait while a shootdown is on its way, so a range cannot be mapped again before its
//! frames are free. Several removals that wait in the mailbox share one raise.
//!
//! # How it waits
//!
//! For a ticket: it spins for [`SPIN_FOR_TICKET`], because an acknowledgement takes about
//! as long as waking a sleeping thread, and then sleeps, because a vcpu that needs *this*
//! cpu to come out would wait for a spinner for milliseconds. A vcpu that leaves the guest
//! after a knock rings the bell (the dance's L3).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::contract::guest::{GuestFault, TellMachine, Tidings};
use actors::contract::space::{
    FaultService, FaultTally, RaiseTimes, Reply, ShootdownTally, SpaceError, SpaceRequest,
    SpaceTally,
};
use actors::doorbell::Doorbell;
use actors::pulse::Pulse;
use actors::threads::{self, Joined};
use actors::{ActorName, Gpa, VcpuId};
use crossbeam_channel::{Receiver, Sender, TryRecvError};
use shootdown::{Domain, Overdue, Tally, Ticket, Whom};
use tracing::error;

use crate::ept::masks::PmapFlags;
use crate::handle::{SpaceHandle, seal};
use crate::host::memory::GuestMemory;
use crate::host::userfault::{BATCH, Fault, NoUserfault, Userfault};
use crate::latency::{Latency, nanoseconds, quantiles};
use crate::mirror::KvmMirror;
use crate::record::{Action, FaultRecord};
use crate::roster::Roster;
use crate::vmspace::{Removed, Unserved, VmSpace};

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
    /// thread caches translations: so nobody.
    #[default]
    Auto,
    /// Everyone in the guest, always: measures the protocol itself.
    Broadcast,
    /// Nobody: leaves all of it to the host kernel.
    Kernel,
}

/// What a pmap actor is made of.
pub struct SpaceConfig {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
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
    /// Where tidings go.
    pub tell: TellMachine,
    /// For tests that a guest notices: leave the host mapping alone when translations are
    /// removed.
    pub skip_mirror_unmap: bool,
}

/// Why there is no pmap actor.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No userfaultfd.
    #[error(transparent)]
    Userfault(#[from] NoUserfault),
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

/// Registers the guest view and starts the actor's thread.
///
/// # Errors
///
/// [`StartError`].
pub fn start(config: SpaceConfig) -> Result<(SpaceHandle, Joined), StartError> {
    let host = |what| move |why| StartError::Host { what, why };
    let userfault = Arc::new(Userfault::open()?);
    let mirror = KvmMirror::new(config.memory.clone(), userfault.clone(), config.skip_mirror_unmap)
        .map_err(host("watch guest memory with userfaultfd"))?;
    let bell = Arc::new(Doorbell::new().map_err(host("make an eventfd"))?);
    let (requests, mailbox) = crossbeam_channel::bounded(MAILBOX);
    let pulse = Pulse::default();
    let handle = SpaceHandle {
        requests,
        bell: bell.clone(),
        memory: config.memory.clone(),
        userfault: userfault.clone(),
        pulse: pulse.clone(),
    };
    let flags = PmapFlags::EMULATE_AD_BITS;
    let actor = SpaceActor {
        space: VmSpace::new(config.memory.clone(), flags, mirror, config.fault_around_pages),
        userfault: userfault.clone(),
        mailbox,
        bell,
        pulse,
        on_its_way: None,
        set_aside: None,
        counted: Counted::default(),
        last_fault: Instant::now(),
        fault_service: FaultService::default(),
        retired: false,
        config,
    };
    let tell = actor.config.tell.clone();
    let memory = actor.config.memory.clone();
    // The tracer ends when the last sender goes: that, too, must be heard as a consequence.
    let trace = actor.config.trace.clone();
    let ended = move |actor, ending| {
        let was_planned = ending == threads::Ending::Returned;
        // Told first: what the vcpus will say of the sealed memory is only a consequence.
        tell(Tidings::Gone { actor, ending });
        // Closing the userfaultfd would let the kernel fill pages on its own. Unless this end
        // was planned, nothing may be served any more.
        if !was_planned && let Err(error) = seal(&memory, &userfault) {
            error!(%error, "guest memory could not be sealed");
        }
        drop((userfault, trace));
    };
    let thread = threads::spawn(ActorName::Pmap, ended, move || actor.run())
        .map_err(host("start a thread"))?;
    Ok((handle, thread))
}

/// What was counted so far.
#[derive(Default)]
struct Counted {
    faults: FaultTally,
    fault_service: Latency,
    shootdowns: Tally,
}

/// Who waits for a shootdown, and for what answer.
enum Waiting {
    Done(Reply<()>),
    Raised(Reply<RaiseTimes>),
}

/// A shootdown that is not over.
struct OnItsWay {
    /// Until it is redeemed.
    ticket: Option<Ticket<Removed>>,
    /// From then on.
    removed: Option<Removed>,
    raised_at: Instant,
    knocked: u32,
    waiting: Vec<Waiting>,
    reported_overdue: bool,
}

impl OnItsWay {
    /// Whether every vcpu has come out or flushed: the look at W1 of the dance.
    fn is_over(&mut self, domain: &Domain) -> bool {
        if let Some(ticket) = self.ticket.take() {
            match domain.redeem(ticket) {
                Ok(removed) => self.removed = Some(removed),
                Err(ticket) => self.ticket = Some(ticket),
            }
        }
        self.removed.is_some()
    }
}

struct SpaceActor {
    space: VmSpace<KvmMirror>,
    userfault: Arc<Userfault>,
    mailbox: Receiver<SpaceRequest>,
    bell: Arc<Doorbell>,
    pulse: Pulse,
    on_its_way: Option<OnItsWay>,
    /// A request that was taken out of the mailbox too early.
    set_aside: Option<SpaceRequest>,
    counted: Counted,
    last_fault: Instant,
    fault_service: FaultService,
    retired: bool,
    config: SpaceConfig,
}

impl SpaceActor {
    fn run(mut self) {
        while !self.retired {
            self.pulse.beat();
            let mut did = self.serves_faults() && self.serve_faults();
            did |= self.finish_shootdown();
            if self.on_its_way.is_none() {
                did |= self.serve_request();
            }
            if !did {
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
            None => Duration::MAX,
        };
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(-1);
        self.pulse.rest();
        let serves_faults = self.serves_faults();
        let (mailbox, domain) = (&self.mailbox, &self.config.domain);
        // While a shootdown is on its way mail does not count; its end does.
        let shootdown = &mut self.on_its_way;
        let ready = || match shootdown {
            Some(shootdown) => shootdown.is_over(domain),
            None => !mailbox.is_empty(),
        };
        // Poll passes over a negative descriptor.
        let faults = if serves_faults { self.userfault.as_raw_fd() } else { -1 };
        let events = self.bell.sleep([faults], timeout, ready);
        if events[0] & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
            self.host_failed("wait for faults", &io::Error::other("userfaultfd was closed"));
        }
    }

    fn host_failed(&self, what: &str, why: &io::Error) {
        let what = format!("the host refused to {what}: {why}");
        (self.config.tell)(Tidings::HostFailed { actor: ActorName::Pmap, what });
    }

    // ---- faults --------------------------------------------------------------------------

    /// Always, save in tests that hold a fault open.
    fn serves_faults(&self) -> bool {
        match self.fault_service {
            FaultService::Prompt => true,
            FaultService::OnlyDuringShootdowns => self.on_its_way.is_some(),
            FaultService::Never => false,
        }
    }

    fn serve_faults(&mut self) -> bool {
        let nothing = Fault { address: 0, is_write: false, is_write_protect: false, thread: 0 };
        let mut faults = [nothing; BATCH];
        let count = match self.userfault.read(&mut faults) {
            Ok(count) => count,
            Err(error) => {
                self.host_failed("report faults", &error);
                0
            }
        };
        for fault in &faults[..count] {
            self.serve_fault(fault);
        }
        count > 0
    }

    fn serve_fault(&mut self, fault: &Fault) {
        let seen = Instant::now();
        let vcpu = self.config.roster.vcpu_of(fault.thread);
        let Some(gpa) = self.config.memory.gpa_of(fault.address) else {
            let why = io::Error::other(format!("a fault at {:#x}", fault.address));
            return self.host_failed("report faults of guest memory only", &why);
        };
        let is_write = fault.is_write || fault.is_write_protect;
        let (action, pages) = match self.space.fault(gpa, is_write) {
            Ok(served) => Action::of(served),
            Err(why) => {
                self.refuse(gpa, vcpu, why);
                (Action::Refused, 0)
            }
        };
        let served = Instant::now();
        self.last_fault = served;
        let service = served - seen;
        self.count_fault(action, pages, vcpu, service);
        if let Some(trace) = &self.config.trace {
            let record = FaultRecord {
                time_ns: nanoseconds(seen - self.config.epoch),
                vcpu,
                gpa,
                is_write,
                action,
                pages,
                service_ns: nanoseconds(service),
            };
            // A tracer that does not keep up slows faults down rather than lose any; one
            // that is gone has been reported by its own end.
            let _gone = trace.send(record);
        }
    }

    fn count_fault(&mut self, action: Action, pages: u64, vcpu: Option<VcpuId>, took: Duration) {
        self.counted.fault_service.record(took);
        let tally = &mut self.counted.faults;
        tally.total += 1;
        tally.pages_around += pages.saturating_sub(1);
        *match action {
            Action::ZeroFilled => &mut tally.zero_filled,
            Action::MappedExisting => &mut tally.mapped_existing,
            Action::AlreadyThere => &mut tally.already_there,
            Action::WriteUnprotected => &mut tally.write_unprotected,
            Action::Refused => &mut tally.refused,
        } += 1;
        *if vcpu.is_some() { &mut tally.vcpu_known } else { &mut tally.vcpu_unknown } += 1;
    }

    /// The access cannot be allowed. The machine hears why before the vcpu's access fails.
    fn refuse(&mut self, at: Gpa, vcpu: Option<VcpuId>, why: Unserved) {
        match why {
            Unserved::Hole => (self.config.tell)(Tidings::Faulted(GuestFault::Hole { vcpu, at })),
            Unserved::ReadOnly => {
                (self.config.tell)(Tidings::Faulted(GuestFault::ReadOnly { vcpu, at }));
            }
            Unserved::Host(error) => self.host_failed(&format!("serve the fault at {at}"), &error),
        }
        if let Err(error) = self.space.refuse(at) {
            self.host_failed("end an access that is not allowed", &error);
        }
    }

    // ---- shootdowns ----------------------------------------------------------------------

    /// Starts the shootdown of what was removed; answers at once where nothing was.
    fn raise(&mut self, removed: Removed, waiting: Vec<Waiting>) {
        let raised_at = Instant::now();
        let whom = match self.config.mode {
            ShootdownMode::Broadcast => Whom::Everyone,
            ShootdownMode::Auto | ShootdownMode::Kernel => Whom::Nobody,
        };
        let mut knocked = 0;
        let roster = &self.config.roster;
        let ticket = self.config.domain.raise(removed, whom, |seat| {
            roster.knock(seat);
            knocked += 1;
        });
        self.counted.shootdowns.raised(usize::try_from(knocked).unwrap_or(usize::MAX));
        self.on_its_way = Some(OnItsWay {
            ticket: Some(ticket),
            removed: None,
            raised_at,
            knocked,
            waiting,
            reported_overdue: false,
        });
        // Nobody in the guest, nobody to wait for: it is over before it began.
        self.finish_shootdown();
    }

    fn finish_shootdown(&mut self) -> bool {
        let Some(mut shootdown) = self.on_its_way.take() else { return false };
        if !shootdown.is_over(&self.config.domain) {
            self.look_for_overdue(&mut shootdown);
            self.on_its_way = Some(shootdown);
            return false;
        }
        let completion = shootdown.raised_at.elapsed();
        self.counted.shootdowns.completed(completion);
        let given = shootdown.removed.map_or(Ok(()), |removed| self.space.give_back(removed));
        let times =
            RaiseTimes { completion_ns: nanoseconds(completion), knocked: shootdown.knocked };
        for waiting in shootdown.waiting {
            waiting.answer(&given, times);
        }
        true
    }

    fn look_for_overdue(&self, shootdown: &mut OnItsWay) {
        let Some(ticket) = &shootdown.ticket else { return };
        if shootdown.reported_overdue {
            return;
        }
        if let Err(overdue) = Overdue::check(ticket, shootdown.raised_at.elapsed(), OVERDUE) {
            shootdown.reported_overdue = true;
            let first = overdue.seats.first().map_or(0, |seat| seat.0);
            let vcpu = VcpuId(u16::try_from(first).expect("seats are vcpus"));
            let what = overdue.to_string();
            (self.config.tell)(Tidings::HostFailed { actor: ActorName::Vcpu(vcpu), what });
        }
    }

    // ---- requests ------------------------------------------------------------------------

    fn next_request(&mut self) -> Option<SpaceRequest> {
        if let Some(request) = self.set_aside.take() {
            return Some(request);
        }
        match self.mailbox.try_recv() {
            Ok(request) => Some(request),
            Err(TryRecvError::Empty) => None,
            // Every handle is gone: nobody can ask anything any more.
            Err(TryRecvError::Disconnected) => Some(SpaceRequest::Retire),
        }
    }

    fn serve_request(&mut self) -> bool {
        let Some(request) = self.next_request() else { return false };
        match request {
            SpaceRequest::Unmap { .. }
            | SpaceRequest::Forget { .. }
            | SpaceRequest::Protect { .. } => {
                self.serve_removals(request);
            }
            SpaceRequest::Raise { reply } => {
                self.raise(Removed::default(), vec![Waiting::Raised(reply)]);
            }
            SpaceRequest::Map { range, protection, reply } => {
                answer(reply, self.space.map(range, protection));
            }
            SpaceRequest::Wire { range, reply } => {
                let pulse = &self.pulse;
                answer(reply, self.space.wire(range, || pulse.beat()));
            }
            SpaceRequest::Unwire { range, reply } => answer(reply, self.space.unwire(range)),
            SpaceRequest::Hold { ranges, access, reply } => {
                answer(reply, self.space.hold(&ranges, access));
            }
            SpaceRequest::Release { ranges, install } => {
                if let Err(error) = self.space.release(&ranges, install) {
                    self.host_failed("end a hold", &io::Error::other(error));
                }
            }
            SpaceRequest::Mapping { at, reply } => {
                answer(reply, Ok(self.space.tables().chain(at)));
            }
            SpaceRequest::Count { reply } => drop(reply.send(self.tally())),
            SpaceRequest::SetFaultService(when) => self.fault_service = when,
            SpaceRequest::Break(how) => how.happen(),
            SpaceRequest::Retire => self.retired = true,
        }
        true
    }

    /// Does this removal and those that wait behind it, and raises once for all of them.
    fn serve_removals(&mut self, first: SpaceRequest) {
        let mut all = Removed::default();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        let began = Instant::now();
        while let Some(request) = next.take() {
            let (removed, asker) = match request {
                SpaceRequest::Unmap { range, reply } => {
                    (self.space.unmap(range), Waiting::Done(reply))
                }
                SpaceRequest::Protect { range, protection, reply } => {
                    (self.space.protect(range, protection), Waiting::Done(reply))
                }
                SpaceRequest::Forget { range, reply } => {
                    (self.space.forget(range), Waiting::Done(reply))
                }
                other => {
                    self.set_aside = Some(other);
                    break;
                }
            };
            match removed {
                Ok(removed) => {
                    all.join(removed);
                    waiting.push(asker);
                }
                Err(error) => asker.refuse(error),
            }
            if waiting.len() < SHARED_RAISE {
                next = self.mailbox.try_recv().ok();
            }
        }
        if all.is_harmless() {
            // Nobody can have cached what was never there.
            let given = self.space.give_back(all);
            let times = RaiseTimes { completion_ns: 0, knocked: 0 };
            waiting.into_iter().for_each(|asker| asker.answer(&given, times));
        } else {
            self.counted.shootdowns.kernel_half_took(began.elapsed());
            self.raise(all, waiting);
        }
    }

    fn tally(&self) -> SpaceTally {
        let resident_bytes = self.config.memory.resident_bytes().unwrap_or_else(|error| {
            self.host_failed("tell how much memory the guest has", &error);
            0
        });
        SpaceTally {
            faults: self.counted.faults,
            fault_service: self.counted.fault_service.quantiles(),
            fault_service_total_ns: self.counted.fault_service.total_ns(),
            resident_leaves: self.space.tables().leaves(),
            resident_bytes,
            wired_pages: self.space.wired_pages(),
            held_pages: self.space.held_pages(),
            table_pages: self.space.tables().table_pages(),
            generation: self.config.domain.generation().0,
            shootdowns: ShootdownTally {
                raised: self.counted.shootdowns.raises(),
                knocks: self.counted.shootdowns.knocks(),
                latency: quantiles(self.counted.shootdowns.latency()),
                kernel_half: quantiles(self.counted.shootdowns.kernel_half()),
            },
        }
    }
}

impl Waiting {
    fn answer(self, given: &Result<(), SpaceError>, times: RaiseTimes) {
        match self {
            Self::Done(reply) => answer(reply, given.clone()),
            Self::Raised(reply) => answer(reply, given.clone().map(|()| times)),
        }
    }

    fn refuse(self, error: SpaceError) {
        match self {
            Self::Done(reply) => answer(reply, Err(error)),
            Self::Raised(reply) => answer(reply, Err(error)),
        }
    }
}

/// Answers; an asker that stopped waiting is not an error.
fn answer<T>(reply: Reply<T>, value: Result<T, SpaceError>) {
    drop(reply.send(value));
}
