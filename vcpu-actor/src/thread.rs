//! The thread that does what the [table](crate::state) says.
//!
//! It is the only one that sleeps, enters the guest or answers. The way into the guest is
//! [`VcpuThread::trip`]: no lock, no allocation, no system call but the engine's own.

use std::sync::Arc;
use std::time::Instant;

use actors::contract::guest::{GuestFault, TellMachine, Tidings};
use actors::contract::space::{NestedFault, SpaceError};
use actors::contract::vcpu::{Order, Parked, Snapshot, VcpuTally};
use actors::device::Bus;
use actors::layout::MemoryLayout;
use actors::pulse::Pulse;
use actors::threads::{Joined, spawn};
use actors::{ActorName, VcpuId};
use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};
use parking_lot::Mutex;
use shootdown::{Domain, Generation, Left, SeatId};
use tracing::{debug, trace};

use crate::engine::{Engine, Exit, Trip};
use crate::knock::Listener;
use crate::serve::{Neighbours, Served};
use crate::state::{Act, Event, Next, State};
use crate::turns::Turns;
use crate::{KickKind, VcpuHandle};

/// Wakes whoever waits for vcpus to come out of the guest. Must not block.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Asks the pmap to serve a fault, and waits. Called out of the guest only.
pub type ServeFault = Arc<dyn Fn(NestedFault) -> Result<(), SpaceError> + Send + Sync>;

/// How many exits a vcpu that is asked for its registers serves first, so that they are those of a whole
/// instruction. A string instruction may need more: then they are those of its middle.
const COMPLETIONS: usize = 16;

/// Everything a vcpu's thread needs.
pub struct VcpuConfig<E> {
    /// Which vcpu.
    pub id: VcpuId,
    /// What runs its guest code.
    pub engine: E,
    /// The vcpus it shares page tables with.
    pub domain: Arc<Domain>,
    /// Its seat there, which nobody else uses.
    pub seat: SeatId,
    /// Who lives at which port.
    pub ports: Arc<Bus>,
    /// Who lives at which address.
    pub mmio: Arc<Bus>,
    /// Who serves faults that an engine meets itself.
    pub faults: ServeFault,
    /// Where memory is, and where devices may be.
    pub layout: MemoryLayout,
    /// Where tidings go.
    pub tell: TellMachine,
    /// Called whenever a vcpu comes out that somebody waits for, and when the thread ends.
    pub wake: Wake,
    /// Its sign of life: it rests in the guest and when parked.
    pub pulse: Pulse,
    /// How knocks reach it.
    pub kick: KickKind,
    /// How it comes to a processor.
    pub turns: Turns,
}

impl VcpuConfig<()> {
    /// With an engine, after all.
    #[must_use]
    pub fn with_engine<E>(self, engine: E) -> VcpuConfig<E> {
        VcpuConfig {
            id: self.id,
            engine,
            domain: self.domain,
            seat: self.seat,
            ports: self.ports,
            mmio: self.mmio,
            faults: self.faults,
            layout: self.layout,
            tell: self.tell,
            wake: self.wake,
            pulse: self.pulse,
            kick: self.kick,
            turns: self.turns,
        }
    }
}

/// Starts a vcpu's thread. It waits for orders.
///
/// However the thread ends, by order or by panic: its seat is out of the guest and accounted for,
/// whoever waits for it is woken, its tally is complete, and then the machine is told
/// [`Tidings::Gone`].
///
/// # Errors
///
/// The operating system's, when it has no thread to give.
pub fn start<E: Engine>(config: VcpuConfig<E>) -> std::io::Result<(VcpuHandle, Joined)> {
    let (handle, mailbox, slot) = VcpuHandle::new(config.id, config.engine.knocker());
    let tell = config.tell.clone();
    let joined = spawn(
        ActorName::Vcpu(config.id),
        move |actor, ending| tell(Tidings::Gone { actor, ending }),
        move || live(config, mailbox, slot),
    )?;
    Ok((handle, joined))
}

/// The life of the thread.
fn live<E: Engine>(
    mut config: VcpuConfig<E>,
    mailbox: Receiver<Order>,
    slot: Arc<Mutex<VcpuTally>>,
) {
    let presence = Presence {
        domain: config.domain,
        seat: config.seat,
        cached: Generation::default(),
        wake: config.wake,
        tally: VcpuTally::default(),
        slot,
    };
    if let Err(error) = config.turns.take_here() {
        debug!(%error, "vcpus interrupt each other");
    }
    let settled = Listener::here(&config.engine.knocker(), config.kick).and_then(|listener| {
        config.engine.settle_on_this_thread(config.kick)?;
        Ok(listener)
    });
    let listener = match settled {
        Ok(listener) => listener,
        Err(what) => {
            return (config.tell)(Tidings::HostFailed { actor: ActorName::Vcpu(config.id), what });
        }
    };
    VcpuThread {
        presence,
        listener,
        engine: config.engine,
        engaged: false,
        mailbox,
        ahead: None,
        neighbours: Neighbours {
            id: config.id,
            ports: config.ports,
            mmio: config.mmio,
            layout: config.layout,
        },
        faults: config.faults,
        tell: config.tell,
        pulse: config.pulse,
    }
    .obey();
}

/// What others believe about this vcpu, set right when the thread ends, even by a panic.
struct Presence {
    domain: Arc<Domain>,
    seat: SeatId,
    /// The generation this vcpu last flushed at.
    cached: Generation,
    wake: Wake,
    tally: VcpuTally,
    slot: Arc<Mutex<VcpuTally>>,
}

impl Presence {
    fn publish(&self) {
        *self.slot.lock() = self.tally;
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let left = if std::thread::panicking() {
            // `InGuest` was dropped by the unwinding, which says "out" but wakes nobody.
            self.domain.abandon(self.seat)
        } else {
            self.domain.retire(self.seat, &mut self.cached);
            Left::Unnoticed
        };
        trace!(?left, "gone from the domain");
        // Whatever it says: a wake too many costs nothing here, one too few a deadline.
        (self.wake)();
        self.publish();
    }
}

/// Dropped in this order: the presence first, so that nobody waits for the engine to be taken down.
struct VcpuThread<E> {
    presence: Presence,
    listener: Listener,
    engine: E,
    engaged: bool,
    mailbox: Receiver<Order>,
    /// An order that was looked at before its turn.
    ahead: Option<Order>,
    neighbours: Neighbours,
    faults: ServeFault,
    tell: TellMachine,
    pulse: Pulse,
}

impl<E: Engine> VcpuThread<E> {
    fn obey(mut self) {
        self.pulse.beat();
        let mut state = State::Fresh;
        loop {
            state = match state.next() {
                Next::AwaitOrder => {
                    let order = self.await_order();
                    self.follow(state, order)
                }
                Next::LookForOrders => match self.look_for_order() {
                    Some(order) => self.follow(state, order),
                    None => self.on(state, Event::NoOrders).0,
                },
                Next::Enter => {
                    let event = self.enter();
                    self.on(state, event).0
                }
                Next::Serve => {
                    let event = self.serve();
                    self.on(state, event).0
                }
                Next::Finish => break,
            };
        }
        debug!(vcpu = self.neighbours.id.0, "retired");
    }

    /// Asks the table.
    ///
    /// # Panics
    ///
    /// When the event is out of place there: a mistake in this file.
    fn on(&self, state: State, event: Event) -> (State, Act) {
        state.on(event).unwrap_or_else(|mistake| panic!("{mistake}"))
    }

    /// Sleeps until there is an order. A closed mailbox is the order to retire.
    fn await_order(&mut self) -> Order {
        if let Some(order) = self.ahead.take() {
            return order;
        }
        if self.engaged {
            self.listener.disengage();
            self.engaged = false;
        }
        self.presence.publish();
        self.pulse.rest();
        let order = loop {
            match self.mailbox.recv().unwrap_or(Order::Retire) {
                Order::Nudge => {}
                order => break order,
            }
        };
        self.pulse.beat();
        order
    }

    /// Takes an order if there is one.
    fn look_for_order(&mut self) -> Option<Order> {
        if self.engaged {
            self.listener.heed();
        } else {
            self.listener.engage();
            self.engaged = true;
        }
        self.ahead.take().or_else(|| self.peek())
    }

    fn peek(&self) -> Option<Order> {
        loop {
            match self.mailbox.try_recv() {
                Ok(Order::Nudge) => {}
                Ok(order) => return Some(order),
                Err(TryRecvError::Empty) => return None,
                Err(TryRecvError::Disconnected) => return Some(Order::Retire),
            }
        }
    }

    /// The guest is halted: sleeps at the mailbox until an order comes, a nudge, or `until`. Out of the guest, so no
    /// shootdown waits for it.
    fn sleep(&mut self, until: Option<Instant>) {
        if self.ahead.is_some() || !self.engine.falls_asleep() {
            return;
        }
        self.presence.tally.halts += 1;
        self.pulse.rest();
        let order = match until {
            None => self.mailbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => self.mailbox.recv_deadline(until),
        };
        self.pulse.beat();
        self.engine.wakes();
        self.ahead = match order {
            Ok(Order::Nudge) | Err(RecvTimeoutError::Timeout) => None,
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Disconnected) => Some(Order::Retire),
        };
    }

    /// Our tables refuse an access: the pmap serves it, while this vcpu waits out of the guest.
    fn ask_for(&mut self, fault: NestedFault) -> Event {
        self.presence.tally.nested_faults += 1;
        self.pulse.rest();
        let served = (self.faults)(fault);
        self.pulse.beat();
        let Err(why) = served else { return Event::Served };
        // The pmap has told the machine what the guest did, or its own end has: this is told only if nobody did.
        let rip = fault.origin.rip;
        let what = why.to_string();
        let fault = GuestFault::Engine { vcpu: self.neighbours.id, rip, what };
        self.tell_unless_retiring(Tidings::Faulted(fault));
        Event::Ended
    }

    fn tell_unless_retiring(&mut self, tidings: Tidings) {
        self.ahead = self.ahead.take().or_else(|| self.peek());
        if !matches!(self.ahead, Some(Order::Retire)) {
            (self.tell)(tidings);
        }
    }

    /// Does what an order asks for.
    fn follow(&mut self, state: State, order: Order) -> State {
        let event = match &order {
            Order::Begin { .. } => Event::Begin,
            Order::Run => Event::Run,
            Order::Pause(_) => Event::Pause,
            Order::Look(_) => Event::Look,
            Order::Retire => Event::Retire,
            Order::Break(_) => Event::Break,
            // Nobody hands these on.
            Order::Nudge => return state,
        };
        let (after, act) = self.on(state, event);
        trace!(vcpu = self.neighbours.id.0, ?event, ?after, "order");
        let vcpu = self.neighbours.id;
        // Whoever asked may have given up meanwhile; then the answer goes nowhere.
        match (act, order) {
            (Act::SetRegisters, Order::Begin { entry, reply }) => {
                drop(reply.send(self.engine.begin(&entry)));
            }
            (Act::RefuseRegisters, Order::Begin { reply, .. }) => {
                let refusal = format!("{vcpu} has begun already: its registers are its own");
                drop(reply.send(Err(refusal)));
            }
            (Act::SayParked, Order::Pause(reply)) => drop(reply.send(Parked { vcpu })),
            (Act::SayLooks, Order::Look(reply)) => return self.say_looks(after, reply),
            (Act::ExcusePause, _) => self.engine.excuse_pause(),
            (Act::Break, Order::Break(how)) => how.happen(),
            (Act::LetFall, question) => drop(question),
            (_, _) => {}
        }
        after
    }

    /// Answers a look, once the guest has what it last asked for.
    fn say_looks(&mut self, state: State, reply: tokio::sync::oneshot::Sender<Snapshot>) -> State {
        let mut after = state;
        if state == State::Parked {
            for _ in 0..COMPLETIONS {
                if !self.engine.owes_completion() {
                    break;
                }
                self.listener.knock_on_myself();
                if self.trip() == Trip::Exit && self.serve() == Event::Ended {
                    after = State::Over;
                    break;
                }
            }
            self.listener.heed();
        }
        match self.engine.look() {
            Ok(looks) => drop(reply.send(Snapshot {
                vcpu: self.neighbours.id,
                rip: looks.rip,
                rsp: looks.rsp,
                cr3: looks.cr3,
                rflags: looks.rflags,
            })),
            Err(what) => debug!(vcpu = self.neighbours.id.0, what, "registers unreadable"),
        }
        after
    }

    fn enter(&mut self) -> Event {
        match self.trip() {
            Trip::Exit => Event::Exit,
            Trip::Knocked => {
                self.presence.tally.knocked_out += 1;
                self.listener.heed_after_knock();
                Event::Knocked
            }
        }
    }

    /// In, and out again. Acknowledging that the guest is out comes before everything else.
    fn trip(&mut self) -> Trip {
        let Presence { domain, seat, cached, wake, tally, .. } = &mut self.presence;
        self.pulse.rest();
        tally.entries += 1;
        let inside = domain.enter(*seat, cached, |now| self.engine.flush(now));
        let trip = self.engine.enter(&inside);
        if inside.leave() == Left::Awaited {
            wake();
        }
        self.pulse.beat();
        tally.instructions = self.engine.instructions();
        trip
    }

    fn serve(&mut self) -> Event {
        let exit = match self.engine.exit() {
            Exit::Halted { until } => {
                self.sleep(until);
                return Event::Served;
            }
            Exit::NestedFault(fault) => return self.ask_for(fault),
            exit => exit,
        };
        match self.neighbours.serve(exit, &mut self.presence.tally) {
            Served::GoOn => return Event::Served,
            Served::Over(tidings) => (self.tell)(tidings),
            Served::OverUnlessRetiring(tidings) => self.tell_unless_retiring(tidings),
        }
        Event::Ended
    }
}
