//! The loops in a guest at CPL 3, in a whole machine of skep's: with KVM, and with the software engine.
//!
//! Where KVM is a software one (`kvm_pvm`) only such code runs natively, so the rows that need a system are not asked
//! for. With the software engine it is translation in two dimensions, the pmap's tables below the guest's, that
//! these figures have and those of the bare processor have not. Pages are of 4 KiB in both dimensions.
//!
//! The guest measures with its own time-stamp counter: wall time. On the software engine a thread looks at the
//! guest's progress and at the clock of its vcpu's cpu time instead.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actors::contract::boot::BootSource;
use loader_actor::guests::loops::{self, LOOPS};
use machine::{ConsoleKind, EngineChoice, ExitStatus, Machine, MachineSpec};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::measure::per_iteration;
use super::pages::cpu_time_of_thread;
use crate::clock::TickRate;
use crate::error::{BenchError, host};

/// A guest that takes longer than this has lost its way.
const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at the guest's progress: a hundredth of what most loops take on the software engine.
const LOOK: Duration = Duration::from_micros(200);

/// When the vcpu, by its own cpu time, was seen to begin a loop and to have ended it.
type Seen = [(Option<Duration>, Option<Duration>); LOOPS.len()];

/// Runs every loop of the blob once; nanoseconds an iteration, in the blob's order.
pub(crate) fn run(engine: EngineChoice, rate: TickRate) -> Result<Vec<f64>, BenchError> {
    let mut spec = MachineSpec::new(BootSource::Builtin(loops::GUEST.name));
    spec.memory_bytes = loops::GUEST.memory_bytes;
    spec.console = ConsoleKind::Null;
    spec.timeout = Some(DEADLINE);
    spec.engine = engine;
    let mut machine = Machine::build(spec)?;
    let vcpu = machine.vcpus().first().and_then(|vcpu| vcpu.tid());
    let memory = machine.space().guest_memory().clone();
    let is_over = &AtomicBool::new(false);
    let backing = memory.backing();
    let (seen, outcome) = std::thread::scope(|scope| {
        let watcher = vcpu
            .filter(|_| engine == EngineChoice::Soft)
            .map(|vcpu| scope.spawn(move || watch(backing, vcpu, is_over)));
        // A guest that cannot begin has an outcome that says why.
        let _started = machine.start();
        let outcome = machine.wait();
        is_over.store(true, Ordering::Relaxed);
        let seen = watcher.and_then(|watcher| watcher.join().ok());
        (seen.unwrap_or_default(), outcome)
    });
    let ended = machine.finish(outcome);
    if ended.outcome.exit_status() != ExitStatus::Success {
        return Err(BenchError::Ended(ended.outcome.to_string()));
    }
    let mut results = Vec::with_capacity(LOOPS.len());
    for (index, one) in LOOPS.iter().enumerate() {
        let ticks = word(memory.backing(), index)?;
        if ticks == 0 {
            return Err(BenchError::Unlike(format!("the guest did not time {}", one.name)));
        }
        let wall = Duration::from_nanos(rate.nanoseconds(ticks));
        let time = match seen[index] {
            (Some(began), Some(ended)) => ended.saturating_sub(began),
            _ => wall,
        };
        results.push(per_iteration(time, one.iterations));
    }
    Ok(results)
}

fn word(memory: &GuestMemoryMmap, index: usize) -> Result<u64, BenchError> {
    let at = GuestAddress(loops::RESULTS.0 + 8 * index as u64);
    memory.read_obj(at).map_err(host("read the guest's results"))
}

/// Looks at the guest's progress until it is over.
fn watch(memory: &GuestMemoryMmap, vcpu: i32, is_over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut before = 0;
    while !is_over.load(Ordering::Relaxed) {
        let progress = word(memory, LOOPS.len()).unwrap_or(before);
        if progress != before {
            before = progress;
            let index = usize::try_from(progress.saturating_sub(1) / 2).unwrap_or(usize::MAX);
            if let (Some(one), Ok(now)) = (seen.get_mut(index), cpu_time_of_thread(vcpu)) {
                // Odd: it begins. Even: it has ended.
                if progress % 2 == 1 { one.0 = Some(now) } else { one.1 = Some(now) }
            }
        }
        std::thread::park_timeout(LOOK);
    }
    seen
}
