//! A machine that is verified compares at each pause and at its end, and never otherwise.

use std::path::Path;

use actors::contract::boot::BootSource;
use loader_actor::guests::spin;
use machine::{ConsoleKind, EngineChoice, ExitStatus, Machine, MachineSpec};

const MEMORY: u64 = 16 << 20;

#[test]
fn each_pause_and_the_end_are_one_comparison_of_all_pages() {
    for engine in [EngineChoice::Soft, EngineChoice::Kvm] {
        if engine == EngineChoice::Kvm && !Path::new("/dev/kvm").exists() {
            eprintln!("skipped on KVM: there is no /dev/kvm here");
            continue;
        }
        for verify in [true, false] {
            let mut spec = MachineSpec::new(BootSource::Builtin(spin::GUEST.name));
            spec.engine = engine;
            spec.memory_bytes = MEMORY;
            spec.console = ConsoleKind::Null;
            spec.verify = verify;
            let mut machine = Machine::build(spec).unwrap();
            machine.start().unwrap();
            for _ in 0..3 {
                machine.pause().unwrap();
                machine.resume().unwrap();
            }
            machine.stop();
            let outcome = machine.wait();
            let ended = machine.finish(outcome);
            assert_eq!(ended.outcome.exit_status(), ExitStatus::Success, "{}", ended.outcome);
            let mapped = ended.report.host_mapping.and_then(|mapping| mapping.view).unwrap();
            // On KVM what was loaded is mapped before the guest runs; the software engine maps what it touches, if it came to that.
            let least = u64::from(engine == EngineChoice::Kvm);
            assert!((least..=MEMORY).contains(&mapped.mapped_bytes()), "{engine:?}: {mapped:?}");
            assert_eq!(ended.report.verified.is_some(), verify);
            if let Some(verified) = ended.report.verified {
                assert!(verified.found.agrees(), "{verified}");
                assert_eq!(verified.comparisons, 4);
                assert_eq!(verified.compared_pages, 4 * MEMORY / 4096);
            }
        }
    }
}
