//! What the owner of a machine holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use actors::ActorName;
use actors::ask;
use actors::contract::boot::Loaded;
use actors::contract::host::HostMapping;
use actors::contract::space::{SpaceRequest, SpaceTally};
use actors::contract::vcpu::Break;
use actors::pulse::Pulse;
use actors::threads::Joined;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use devices::console::Console;
use parking_lot::Mutex;
use pmap_actor::handle::SpaceHandle;
use shootdown::Domain;
use tokio::sync::oneshot;
use vcpu_actor::VcpuHandle;

use crate::build::{self, BuildError};
use crate::engines::EngineKind;
use crate::outcome::{ExitStatus, Outcome};
use crate::report::{Report, VcpuReport};
use crate::spec::{ConsoleKind, MachineSpec};
use crate::supervisor::{
    Answer, BreakLoader, BreakMachine, End, MachineActor, MachineError, Pause, Resume, Start, TICK,
};
use crate::tracer;
use crate::verification::Verifier;
use crate::watch::{DEADLINE, Watch};

/// How long loading may take: a disk may be slow, and the pmap has its own deadline.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// How long pausing and resuming may take before the supervisor's own deadlines strike.
const ORDER_DEADLINE: Duration = Duration::from_secs(30);
/// How long threads may take to end once they were told to.
const END_DEADLINE: Duration = Duration::from_secs(3);
/// How long the console may take to write what is left.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(2);

/// A built machine. Dropping it ends it.
pub struct Machine {
    pub(crate) spec: MachineSpec,
    pub(crate) engine: EngineKind,
    pub(crate) engine_detail: String,
    pub(crate) domain: Arc<Domain>,
    pub(crate) space: SpaceHandle,
    pub(crate) vcpus: Vec<VcpuHandle>,
    pub(crate) console: Option<Console>,
    pub(crate) tracer: Option<tracer::Handle>,
    pub(crate) captured: Option<Arc<Mutex<Vec<u8>>>>,
    pub(crate) supervisor: Addr<MachineActor>,
    pub(crate) stop_supervisor: Option<oneshot::Sender<()>>,
    pub(crate) outcome: Receiver<Outcome>,
    pub(crate) end: Mutex<TheEnd>,
    /// Every thread of the machine, and the news of their ends.
    pub(crate) threads: Vec<(ActorName, Joined)>,
    pub(crate) gone: Receiver<ActorName>,
    pub(crate) build_time: Duration,
    pub(crate) loaded: Option<Loaded>,
    pub(crate) load_time: Duration,
    pub(crate) running_since: Option<Instant>,
    pub(crate) verifier: Verifier,
    /// What vcpus need until every one is joined and the userfaultfd is closed.
    pub(crate) kept: build::KeptUntilTheEnd,
}

/// What the owner knows of the end. The supervisor watches everybody; its owner watches it.
pub(crate) struct TheEnd {
    outcome: Option<Outcome>,
    watch: Watch,
    last_look: Instant,
}

impl TheEnd {
    /// Nothing yet; `supervisor` beats with every look it takes.
    pub(crate) fn watching(supervisor: Pulse) -> Self {
        let mut watch = Watch::default();
        watch.add(ActorName::Machine, supervisor);
        Self { outcome: None, watch, last_look: Instant::now() }
    }

    fn look(&mut self) -> Option<Outcome> {
        let since_last = self.last_look.elapsed();
        if since_last < TICK {
            return None;
        }
        self.last_look = Instant::now();
        let actor = self.watch.look(since_last)?;
        Some(Outcome::Hangs { actor, seconds: DEADLINE.as_secs() })
    }
}

/// A machine that is over.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub outcome: Outcome,
    /// In numbers.
    pub report: Report,
    /// What the guest printed, if it was captured.
    pub output: Vec<u8>,
}

impl Machine {
    /// Makes every actor; nothing of the guest is loaded, nothing runs.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; whatever was made is gone again.
    pub fn build(spec: MachineSpec) -> Result<Self, BuildError> {
        build::build(spec)
    }

    fn ask<T, M>(
        &self,
        deadline: Duration,
        message: impl FnOnce(Answer<T>) -> M,
    ) -> Result<T, MachineError>
    where
        M: actix::Message<Result = ()> + Send + 'static,
        MachineActor: actix::Handler<M>,
    {
        let (reply, answer) = oneshot::channel();
        self.supervisor.try_send(message(reply)).map_err(|_| MachineError::Ended)?;
        ask::wait(answer, deadline).map_err(|why| match why {
            ask::NoAnswer::Gone => MachineError::Ended,
            ask::NoAnswer::TooLate => MachineError::TooLate,
        })?
    }

    /// Loads the guest and runs it. Returns once it runs.
    ///
    /// # Errors
    ///
    /// [`MachineError::Ended`] when the guest cannot begin; [`Machine::wait`] says why.
    pub fn start(&mut self) -> Result<(), MachineError> {
        let began = Instant::now();
        let loaded = self.ask(LOAD_DEADLINE, |reply| Start(self.spec.load(), reply))?;
        self.load_time = began.elapsed();
        self.loaded = Some(loaded);
        self.running_since = Some(Instant::now());
        Ok(())
    }

    /// Brings every vcpu out of the guest. Returns when all are out; where [`MachineSpec::verify`] is set, when the
    /// tables were compared, too.
    ///
    /// # Errors
    ///
    /// [`MachineError`] when it does not run.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.ask(ORDER_DEADLINE, Pause)?;
        self.verifier.compare(&self.space);
        Ok(())
    }

    /// Lets a paused machine go on.
    ///
    /// # Errors
    ///
    /// [`MachineError`] when it is not paused.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.ask(ORDER_DEADLINE, Resume)
    }

    /// Ends the machine from outside.
    pub fn stop(&self) {
        // A supervisor that is gone has ended the machine already.
        drop(self.supervisor.try_send(End(Outcome::Stopped)));
    }

    /// The guest's memory.
    #[must_use]
    pub fn space(&self) -> &SpaceHandle {
        &self.space
    }

    /// The vcpus.
    #[must_use]
    pub fn vcpus(&self) -> &[VcpuHandle] {
        &self.vcpus
    }

    /// What runs the guest.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine
    }

    /// What that is on this host, or why it is not the other one.
    #[must_use]
    pub fn engine_detail(&self) -> &str {
        &self.engine_detail
    }

    /// Breaks an actor, for tests of the supervision.
    pub fn break_(&self, target: ActorName, how: Break) {
        // An actor that is gone already is broken enough.
        match target {
            ActorName::Machine => drop(self.supervisor.try_send(BreakMachine(how))),
            ActorName::Loader => drop(self.supervisor.try_send(BreakLoader(how))),
            ActorName::Pmap | ActorName::Pageout | ActorName::Pagein => {
                drop(self.space.break_(target, how));
            }
            ActorName::Console => {
                if let Some(console) = &self.console {
                    console.break_it(how);
                }
            }
            ActorName::Vcpu(id) => {
                if let Some(vcpu) = self.vcpus.get(id.index()) {
                    let _gone = vcpu.break_(how);
                }
            }
            ActorName::Tracer => {
                if let Some(tracer) = &self.tracer {
                    tracer.break_(how);
                }
            }
        }
    }

    /// Waits for the end, for `patience` at most.
    #[must_use]
    pub fn poll(&self, patience: Duration) -> Option<Outcome> {
        let mut end = self.end.lock();
        if end.outcome.is_none() {
            end.outcome = match self.outcome.recv_timeout(patience) {
                Ok(outcome) => Some(outcome),
                Err(RecvTimeoutError::Disconnected) => {
                    let why = "its handler panicked".to_owned();
                    Some(Outcome::Died { actor: ActorName::Machine, why })
                }
                Err(RecvTimeoutError::Timeout) => end.look(),
            };
        }
        end.outcome.clone()
    }

    /// Waits for the end.
    #[must_use]
    pub fn wait(&self) -> Outcome {
        loop {
            if let Some(outcome) = self.poll(TICK) {
                return outcome;
            }
        }
    }

    /// Ends every thread, gives the terminal back, and adds up what was counted.
    #[must_use]
    pub fn finish(mut self, outcome: Outcome) -> Ended {
        let run_time = self.running_since.map_or(Duration::ZERO, |since| since.elapsed());
        let (space, host_mapping) = self.end_threads(&outcome);
        let farewell = self.console.take().map(|console| console.finish(CONSOLE_PATIENCE));
        let farewell = farewell.unwrap_or_default();
        // A guest may be gone before anybody notices that nobody reads what it printed. Where
        // the console is a user's, output that was thrown away is not success.
        let is_users = self.spec.console == ConsoleKind::Terminal;
        let lost_its_reader = is_users && farewell.output.discarded > 0;
        let outcome = match outcome.exit_status() {
            ExitStatus::Success if lost_its_reader => Outcome::ConsoleClosed,
            _ => outcome,
        };
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let flushes = self.domain.counts();
        let vcpu = self.vcpus.iter().zip(flushes).map(|(vcpu, flushes)| VcpuReport {
            vcpu: vcpu.id().0,
            exits: vcpu.tally(),
            flushes: flushes.into(),
        });
        let report = Report {
            engine: self.engine,
            engine_detail: self.engine_detail.clone(),
            vcpus: self.spec.vcpus,
            memory_bytes: self.spec.memory_bytes,
            huge_pages: self.spec.huge_pages,
            resident_limit_bytes: self.spec.resident_limit_bytes,
            outcome: outcome.to_string(),
            exit_status: Report::status(outcome.exit_status()),
            format: self.loaded.as_ref().map(|loaded| loaded.format),
            loaded_bytes: self.loaded.as_ref().map_or(0, |loaded| loaded.bytes),
            build_ns: nanoseconds(self.build_time),
            load_ns: nanoseconds(self.load_time),
            run_ns: nanoseconds(run_time),
            console_bytes: farewell.output.accepted,
            console_lost_bytes: farewell.output.lost
                + farewell.output.discarded
                + farewell.unwritten,
            vcpu: vcpu.collect(),
            space,
            verified: self.verifier.result(),
            host_mapping,
            unimplemented: self.kept.hardware.unimplemented(),
            left_behind: self.threads.iter().map(|(actor, _)| actor.to_string()).collect(),
        };
        let output =
            self.captured.take().map_or_else(Vec::new, |all| std::mem::take(&mut *all.lock()));
        Ended { outcome, report, output }
    }

    /// Vcpus first, then the pmap that serves their faults, then whoever the pmap tells.
    fn end_threads(&mut self, outcome: &Outcome) -> (Option<SpaceTally>, Option<HostMapping>) {
        let (hangs, is_lost) = match outcome {
            Outcome::Hangs { actor, .. } => (Some(*actor), *actor == ActorName::Pmap),
            Outcome::Died { actor, .. } => (None, *actor == ActorName::Pmap),
            _ => (None, false),
        };
        if is_lost {
            // Nobody serves faults any more: whoever waits for one must not wait for ever.
            self.seal();
        }
        for vcpu in &self.vcpus {
            // A vcpu that cannot be told is gone, or hangs and is left behind.
            let _gone = vcpu.retire();
        }
        // Who hangs is not waited for.
        let is_vcpu = |actor| matches!(actor, ActorName::Vcpu(_)) && Some(actor) != hangs;
        let all_came_out = self.wait_until_gone(is_vcpu);
        if !all_came_out && !is_lost {
            // In the kernel on a fault that nobody will serve.
            self.seal();
            self.wait_until_gone(is_vcpu);
        }
        // What is sealed is mapped to nobody, whatever the tables say.
        let host_mapping = (all_came_out && !is_lost).then(|| {
            self.verifier.compare(&self.space);
            self.host_mapping()
        });
        // What it counts last: it raises on its own, for looks at the working set and for room.
        let space = if is_lost {
            let _gone = self.space.tell(SpaceRequest::Retire { reply: oneshot::channel().0 });
            None
        } else {
            self.space.retire().ok()
        };
        if let Some(stop) = self.stop_supervisor.take() {
            let _gone = stop.send(());
        }
        // The loader ends when the supervisor's thread does; the tracer when the pmap does.
        let waits_for = |actor| match actor {
            ActorName::Loader => Some(ActorName::Machine),
            ActorName::Tracer => Some(ActorName::Pmap),
            _ => None,
        };
        self.wait_until_gone(|actor| {
            hangs.is_none_or(|hangs| actor != hangs && waits_for(actor) != Some(hangs))
        });
        (space, host_mapping)
    }

    /// While the pmap lives: it keeps the mapping.
    fn host_mapping(&self) -> HostMapping {
        let view = self.space.guest_memory().host_mapping();
        let view = view.inspect_err(|error| tracing::debug!(%error, "the host does not tell"));
        HostMapping { view: view.ok(), kvm: self.kept.hardware.kvm_pages() }
    }

    fn seal(&self) {
        if let Err(error) = self.space.seal() {
            tracing::error!(%error, "guest memory could not be sealed");
        }
    }

    /// Waits until every thread that `which` names has ended, and joins them.
    fn wait_until_gone(&mut self, which: impl Fn(ActorName) -> bool) -> bool {
        let deadline = Instant::now() + END_DEADLINE;
        while self.threads.iter().any(|(actor, _)| which(*actor)) {
            match self.gone.recv_deadline(deadline) {
                Ok(actor) => self.join(actor),
                Err(_) => return false,
            }
        }
        true
    }

    /// Joins the thread of an actor that said, as its last word, that it is gone.
    fn join(&mut self, gone: ActorName) {
        if let Some(place) = self.threads.iter().position(|(actor, _)| *actor == gone) {
            self.threads.swap_remove(place).1.join();
        }
    }
}
