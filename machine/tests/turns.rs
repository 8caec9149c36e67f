//! Vcpus that outnumber the host's processors do not interrupt each other; the threads that serve them may.

use std::fs;

use actors::contract::boot::BootSource;
use loader_actor::guests::spin;
use machine::{ConsoleKind, EngineChoice, Machine, MachineSpec};

/// `SCHED_OTHER` and `SCHED_BATCH` of sched(7).
const OTHER: u32 = 0;
const BATCH: u32 = 3;

/// The scheduling policies of our threads whose names begin so.
fn policies(name: &str) -> Vec<u32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap().path());
    let stats = threads.filter_map(|thread| fs::read_to_string(thread.join("stat")).ok());
    let mut found = Vec::new();
    for stat in stats {
        // proc(5): the name is in parentheses, and the policy is field 41.
        let (before, after) = stat.rsplit_once(") ").unwrap();
        if before.split_once('(').unwrap().1.starts_with(name) {
            found.push(after.split(' ').nth(41 - 3).unwrap().parse().unwrap());
        }
    }
    found
}

#[test]
fn vcpus_wait_for_the_end_of_a_turn_only_where_they_outnumber_the_processors() {
    let processors = std::thread::available_parallelism().unwrap().get();
    for (vcpus, expected) in [(processors, OTHER), (processors + 1, BATCH)] {
        let mut spec = MachineSpec::new(BootSource::Builtin(spin::GUEST.name));
        spec.engine = EngineChoice::Soft;
        spec.memory_bytes = 16 << 20;
        spec.console = ConsoleKind::Null;
        spec.vcpus = vcpus.try_into().expect("a test machine has few processors");
        let mut machine = Machine::build(spec).unwrap();
        machine.start().unwrap();
        assert_eq!(policies("skep-vcpu"), vec![expected; vcpus]);
        assert_eq!(policies("skep-pmap"), [OTHER]);
        machine.stop();
        let outcome = machine.wait();
        assert_eq!(machine.finish(outcome).report.left_behind, [""; 0]);
    }
}
