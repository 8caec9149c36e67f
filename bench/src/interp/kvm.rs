//! The loops in a guest on this host's KVM, at CPL 3, in a whole machine of skep's.
//!
//! Where KVM is a software one (`kvm_pvm`) only such code runs natively, so the rows that need a system are not asked
//! for. The guest measures with its own time-stamp counter: that is wall time. Its own pages are of 2 MiB, the
//! host's behind them of 4 KiB.

use std::time::Duration;

use actors::contract::boot::BootSource;
use loader_actor::guests::loops::{self, LOOPS};
use machine::{ConsoleKind, ExitStatus, Machine, MachineSpec};
use vm_memory::{Bytes, GuestAddress};

use super::measure::per_iteration;
use crate::clock::TickRate;
use crate::error::{BenchError, host};

/// A guest that takes longer than this has lost its way.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs every loop of the blob once; nanoseconds an iteration, in the blob's order.
pub(crate) fn run(rate: TickRate) -> Result<Vec<f64>, BenchError> {
    let mut spec = MachineSpec::new(BootSource::Builtin(loops::GUEST.name));
    spec.memory_bytes = loops::GUEST.memory_bytes;
    spec.console = ConsoleKind::Null;
    spec.timeout = Some(DEADLINE);
    let mut machine = Machine::build(spec)?;
    // A guest that cannot begin has an outcome that says why.
    let _started = machine.start();
    let outcome = machine.wait();
    let memory = machine.space().guest_memory().clone();
    let ended = machine.finish(outcome);
    if ended.outcome.exit_status() != ExitStatus::Success {
        return Err(BenchError::Ended(ended.outcome.to_string()));
    }
    let mut results = Vec::with_capacity(LOOPS.len());
    for (index, one) in (0u64..).zip(&LOOPS) {
        let at = GuestAddress(loops::RESULTS.0 + 8 * index);
        let read = memory.backing().read_obj(at);
        let ticks: u64 = read.map_err(host("read the guest's results"))?;
        if ticks == 0 {
            return Err(BenchError::Unlike(format!("the guest did not time {}", one.name)));
        }
        let time = Duration::from_nanos(rate.nanoseconds(ticks));
        results.push(per_iteration(time, one.iterations));
    }
    Ok(results)
}
