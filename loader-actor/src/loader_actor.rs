//! The front desk: one short handler per message; the work is done elsewhere.
//!
//! ```text
//!   machine ──LoadRequest──▶ LoaderActor (actix) ──Job──▶ worker thread ──holds──▶ pmap
//!           ◀──── the message's future ────────────────────┘
//! ```
//!
//! The desk never blocks: it passes the job on and returns the future of the reply. The
//! worker is a named thread that may block, on files and on the pmap. Its end, however it
//! comes, is told to the machine as the loader's end; and when the desk goes, its half of
//! the channel goes with it, so the worker ends and that is told as well.

use std::io;
use std::sync::Arc;

use actix::{Actor, ActorContext, Addr, Context, Handler, Message, ResponseFuture};
use actors::ActorName;
use actors::contract::boot::{Load, Loaded, MemoryPort};
use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::vcpu::Break;
use actors::layout::MemoryLayout;
use actors::pulse::Pulse;
use actors::threads::{self, Joined};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::error::LoadError;
use crate::place::place_alive;

/// Requests the desk keeps for a busy worker. A machine boots once, so more than one
/// waiting is somebody's mistake, and is answered with [`LoadError::Gone`].
const MAILBOX: usize = 2;

/// How a guest begins, as an actor. Owns the way to the worker; talk to it through
/// [`LoaderHandle`].
#[derive(Debug)]
pub struct LoaderActor {
    /// `None` once it is retired.
    worker: Option<Sender<Job>>,
}

/// What everybody else holds. Cheap to clone; the clones reach the same loader.
#[derive(Clone, Debug)]
pub struct LoaderHandle {
    desk: Addr<LoaderActor>,
    pulse: Pulse,
}

/// "Put this into the guest's memory and tell me how vcpu 0 begins."
#[derive(Debug, Message)]
#[rtype(result = "Result<Loaded, LoadError>")]
struct LoadRequest(Load);

/// "Die of a panic", or "hang": for tests of the supervision.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct BreakRequest(Break);

/// "You are not needed any more."
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Retire;

/// What the worker does.
#[derive(Debug)]
enum Job {
    Load { load: Box<Load>, reply: oneshot::Sender<Result<Loaded, LoadError>> },
    Break(Break),
}

/// Starts the loader of one machine, on the current actix arbiter and on a thread
/// `skep-loader` of its own. Join the thread after [`LoaderHandle::retire`].
///
/// Its end is told as [`Tidings::Gone`] from [`ActorName::Loader`].
///
/// # Errors
///
/// The operating system's, when it has no thread to give.
///
/// # Panics
///
/// Outside of an actix system.
pub fn start(
    layout: MemoryLayout,
    port: Arc<dyn MemoryPort>,
    tell: TellMachine,
) -> io::Result<(LoaderHandle, Joined)> {
    let (worker, jobs) = bounded(MAILBOX);
    let pulse = Pulse::default();
    let joined = {
        let pulse = pulse.clone();
        threads::spawn(
            ActorName::Loader,
            move |actor, ending| tell(Tidings::Gone { actor, ending }),
            move || work(&jobs, layout, port.as_ref(), &pulse),
        )?
    };
    let desk = LoaderActor { worker: Some(worker) }.start();
    Ok((LoaderHandle { desk, pulse }, joined))
}

/// The worker's life: one job after the other, until the desk is gone.
fn work(jobs: &Receiver<Job>, layout: MemoryLayout, port: &dyn MemoryPort, pulse: &Pulse) {
    for job in jobs {
        pulse.beat();
        match job {
            Job::Load { load, reply } => {
                let answer = place_alive(&load, layout, port, pulse);
                // Before the answer: whoever has it finds a loader at rest.
                pulse.rest();
                // Whoever asked may have gone: then nobody wants to know.
                drop(reply.send(answer));
            }
            Job::Break(how) => how.happen(),
        }
    }
}

impl LoaderHandle {
    /// Loads a guest. The future is ready when its bytes are in place.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; [`LoadError::Gone`] when there is no loader to do it.
    pub async fn load(&self, load: Load) -> Result<Loaded, LoadError> {
        match self.desk.send(LoadRequest(load)).await {
            Ok(answer) => answer,
            Err(_) => Err(LoadError::Gone("has ended")),
        }
    }

    /// Breaks it: for tests of the supervision.
    pub fn break_(&self, how: Break) {
        self.desk.do_send(BreakRequest(how));
    }

    /// Its sign of life: busy while a guest is being loaded.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Ends it. Ready when the worker has been told; it finishes the work in hand, and its
    /// end is told like any other.
    pub async fn retire(&self) {
        // A desk that is gone has taken the worker along.
        self.desk.send(Retire).await.unwrap_or_default();
    }
}

impl LoaderActor {
    fn pass_on(&self, job: Job) -> Result<(), LoadError> {
        let ended = LoadError::Gone("has ended");
        let worker = self.worker.as_ref().ok_or(ended.clone())?;
        worker.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => LoadError::Gone("is busy with other guests"),
            TrySendError::Disconnected(_) => ended,
        })
    }
}

impl Actor for LoaderActor {
    type Context = Context<Self>;
}

impl Handler<LoadRequest> for LoaderActor {
    type Result = ResponseFuture<Result<Loaded, LoadError>>;

    fn handle(&mut self, LoadRequest(load): LoadRequest, _: &mut Context<Self>) -> Self::Result {
        let (reply, answer) = oneshot::channel();
        let load = Box::new(load);
        let passed = self.pass_on(Job::Load { load, reply });
        Box::pin(async move {
            passed?;
            let died = LoadError::Gone("died while it loaded the guest");
            answer.await.unwrap_or(Err(died))
        })
    }
}

impl Handler<BreakRequest> for LoaderActor {
    type Result = ();

    fn handle(&mut self, BreakRequest(how): BreakRequest, _: &mut Context<Self>) {
        // A worker that is gone already is broken enough.
        drop(self.pass_on(Job::Break(how)));
    }
}

impl Handler<Retire> for LoaderActor {
    type Result = ();

    fn handle(&mut self, Retire: Retire, context: &mut Context<Self>) {
        self.worker = None;
        context.stop();
    }
}
