//! What was loaded is mapped before the guest runs.

use std::path::Path;

use actors::contract::boot::BootSource;
use loader_actor::guests::hello;
use machine::{ConsoleKind, EngineChoice, ExitStatus, Machine, MachineSpec};

/// A guest that touches nothing else, so often that a first touch which overtakes the loader's release would show.
#[test]
fn a_guest_that_stays_in_its_first_block_never_faults_on_kvm() {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm here");
        return;
    }
    for round in 0..50 {
        let mut spec = MachineSpec::new(BootSource::Builtin(hello::GUEST.name));
        spec.engine = EngineChoice::Kvm;
        spec.memory_bytes = 16 << 20;
        spec.console = ConsoleKind::Null;
        let mut machine = Machine::build(spec).unwrap();
        machine.start().unwrap();
        let outcome = machine.wait();
        let ended = machine.finish(outcome);
        assert_eq!(ended.outcome.exit_status(), ExitStatus::Success, "{}", ended.outcome);
        assert_eq!(ended.report.space.unwrap().faults.total, 0, "round {round}");
    }
}
