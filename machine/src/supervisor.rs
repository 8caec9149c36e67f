//! The machine actor: the one place where the phase changes and where an end is decided.
//!
//! It lives on an actix arbiter that never blocks. It tells vcpus what to do and awaits
//! their answers, asks the loader once, hears everybody's tidings, and looks at everybody's
//! pulse. The first reason to end is the outcome; whatever follows is a consequence of it.
//! The owner of the [`Machine`](crate::Machine) hears the outcome, and joins the threads.

use std::future::Future;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, StreamHandler, WrapFuture,
};
use actors::ActorName;
use actors::contract::boot::{Load, Loaded};
use actors::contract::guest::Tidings;
use actors::contract::vcpu::Break;
use actors::pulse::Pulse;
use actors::threads::Ending;
use crossbeam_channel::Sender;
use loader_actor::{LoadError, LoaderHandle};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info};
use vcpu_actor::{VcpuHandle, pause_all, run_all};

use crate::outcome::Outcome;
use crate::phase::{Event, OutOfPlace, Phase};
use crate::watch::Watch;

/// How often pulses are looked at: a fifth of the time an actor may be busy with one thing. Each look wakes a thread, on a
/// processor that a vcpu may be using.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// What the machine actor is made of.
pub(crate) struct MachineActor {
    pub(crate) phase: Phase,
    pub(crate) vcpus: Vec<VcpuHandle>,
    pub(crate) loader: LoaderHandle,
    pub(crate) watch: Watch,
    pub(crate) last_look: Instant,
    pub(crate) pulse: Pulse,
    pub(crate) tidings: Option<mpsc::UnboundedReceiver<Tidings>>,
    pub(crate) outcome: Sender<Outcome>,
    pub(crate) timeout: Option<Duration>,
}

/// Why a machine does not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// Not in this phase.
    #[error(transparent)]
    OutOfPlace(#[from] OutOfPlace),
    /// It has ended, or ends meanwhile.
    #[error("the machine has ended")]
    Ended,
    /// It took too long.
    #[error("the machine did not answer in time")]
    TooLate,
}

/// Answers a request of the owner.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, MachineError>>;

/// "Load the guest and run it." Answered when it runs.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Start(pub(crate) Load, pub(crate) Answer<Loaded>);

/// "Bring every vcpu out." Answered when all are.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Pause(pub(crate) Answer<()>);

/// "Go on."
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Resume(pub(crate) Answer<()>);

/// "End, with this outcome unless there is one already."
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct End(pub(crate) Outcome);

/// For tests of the supervision.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct BreakMachine(pub(crate) Break);

/// For tests of the supervision: breaks the loader, which only this actor can reach.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct BreakLoader(pub(crate) Break);

impl MachineActor {
    /// The phase after `event`; the phase stays where it is when that cannot happen.
    fn step(&mut self, event: Event) -> Result<(), OutOfPlace> {
        let next = self.phase.on(event)?;
        debug!(from = ?self.phase, to = ?next, "phase");
        self.phase = next;
        Ok(())
    }

    /// Ends the machine; only the first reason counts.
    fn end(&mut self, outcome: Outcome) {
        if self.phase == Phase::Off {
            debug!(%outcome, "after the end");
            return;
        }
        info!(%outcome, "the machine ends");
        self.step(Event::End).expect("a machine can end in any phase");
        // The owner may be gone; then nobody wants to know.
        drop(self.outcome.try_send(outcome));
    }

    fn hear(&mut self, tidings: Tidings) {
        let outcome = match tidings {
            Tidings::Ended { end, .. } => Outcome::Guest(end),
            Tidings::Faulted(fault) => Outcome::Fault(fault),
            Tidings::HostFailed { actor, what } => Outcome::HostFailed { actor, what },
            Tidings::ConsoleClosed => Outcome::ConsoleClosed,
            Tidings::Interrupted => Outcome::Interrupted,
            Tidings::Gone { actor, ending: Ending::Panicked(why) } => Outcome::Died { actor, why },
            Tidings::Gone { actor, ending: Ending::Returned } => {
                Outcome::Died { actor, why: "it ended although nobody told it to".to_owned() }
            }
        };
        self.end(outcome);
    }

    fn look_around(&mut self) {
        self.pulse.beat();
        let now = Instant::now();
        let since_last = now - self.last_look;
        self.last_look = now;
        if let Some(actor) = self.watch.look(since_last) {
            self.end(Outcome::Hangs { actor, seconds: crate::watch::DEADLINE.as_secs() });
        }
    }

    /// Loads the guest; the machine goes on hearing tidings meanwhile.
    fn load(&self, load: Load) -> impl Future<Output = Result<Loaded, Outcome>> + use<> {
        let (loader, boot_vcpu) = (self.loader.clone(), self.vcpus[0].clone());
        async move {
            let loaded = loader.load(load).await.map_err(|error| match error {
                LoadError::Gone(why) => {
                    Outcome::Died { actor: ActorName::Loader, why: format!("it {why}") }
                }
                error => Outcome::BadImage(error.to_string()),
            })?;
            let vcpu = ActorName::Vcpu(boot_vcpu.id());
            let failed = |what: String| Outcome::HostFailed { actor: vcpu, what };
            let told =
                boot_vcpu.begin(loaded.entry.clone()).map_err(|why| failed(why.to_string()))?;
            let taken = told.await.map_err(|_| failed("ended before it began".to_owned()))?;
            taken.map_err(failed)?;
            Ok(loaded)
        }
    }
}

impl Actor for MachineActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        let tidings = self.tidings.take().expect("an actor starts once");
        context.add_stream(Heard(tidings));
        context.run_interval(TICK, |machine, _| machine.look_around());
        if let Some(timeout) = self.timeout {
            let seconds = timeout.as_secs();
            context.run_later(timeout, move |machine, _| machine.end(Outcome::Timeout(seconds)));
        }
        self.pulse.beat();
    }
}

/// The tidings as a stream.
struct Heard(mpsc::UnboundedReceiver<Tidings>);

impl futures_core::Stream for Heard {
    type Item = Tidings;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Tidings>> {
        self.0.poll_recv(context)
    }
}

impl StreamHandler<Tidings> for MachineActor {
    fn handle(&mut self, tidings: Tidings, _: &mut Context<Self>) {
        self.hear(tidings);
    }

    /// Every sender is gone; the owner is joining threads, and stops this actor itself.
    fn finished(&mut self, _: &mut Context<Self>) {}
}

impl Handler<Start> for MachineActor {
    type Result = ();

    fn handle(&mut self, Start(load, answer): Start, context: &mut Context<Self>) {
        if let Err(why) = self.step(Event::Load) {
            drop(answer.send(Err(why.into())));
            return;
        }
        let loaded = self.load(load).into_actor(self).map(|loaded, machine, _| {
            let answered = match loaded {
                Ok(loaded) => machine.step(Event::Loaded).map_err(Into::into).map(|()| loaded),
                Err(outcome) => {
                    machine.end(outcome);
                    Err(MachineError::Ended)
                }
            };
            if answered.is_ok() && run_all(&machine.vcpus).is_err() {
                // A vcpu that cannot be told is gone, and its own tidings say why.
                debug!("a vcpu was gone before it could run");
            }
            drop(answer.send(answered));
        });
        context.spawn(loaded);
    }
}

impl Handler<Pause> for MachineActor {
    type Result = ();

    fn handle(&mut self, Pause(answer): Pause, context: &mut Context<Self>) {
        if let Err(why) = self.step(Event::Pause) {
            drop(answer.send(Err(why.into())));
            return;
        }
        // Everybody is told before anybody is waited for.
        let out = pause_all(&self.vcpus).done().into_actor(self).map(|out, machine, _| {
            // A vcpu that ended instead has told why; the machine is off then.
            let all_out = out.map_err(|_| MachineError::Ended);
            let paused = all_out.and_then(|()| machine.step(Event::AllOut).map_err(Into::into));
            drop(answer.send(paused));
        });
        context.spawn(out);
    }
}

impl Handler<Resume> for MachineActor {
    type Result = ();

    fn handle(&mut self, Resume(answer): Resume, _: &mut Context<Self>) {
        let resumed = self.step(Event::Resume).map_err(MachineError::from);
        let resumed = resumed.and_then(|()| run_all(&self.vcpus).map_err(|_| MachineError::Ended));
        drop(answer.send(resumed));
    }
}

impl Handler<End> for MachineActor {
    type Result = ();

    fn handle(&mut self, End(outcome): End, _: &mut Context<Self>) {
        self.end(outcome);
    }
}

impl Handler<BreakMachine> for MachineActor {
    type Result = ();

    fn handle(&mut self, BreakMachine(how): BreakMachine, _: &mut Context<Self>) {
        how.happen();
    }
}

impl Handler<BreakLoader> for MachineActor {
    type Result = ();

    fn handle(&mut self, BreakLoader(how): BreakLoader, _: &mut Context<Self>) {
        self.loader.break_(how);
    }
}
