//! A shootdown across a fault that is held open: it must end, at every privilege level, on every engine.

use std::path::Path;
use std::time::Duration;

use actors::contract::boot::BootSource;
use actors::contract::guest::GuestEnd;
use actors::contract::space::FaultService;
use machine::{EngineChoice, Machine, MachineSpec, Outcome, ShootdownMode};

/// Each engine of this host; says aloud which is missing.
fn on_every_engine(scenario: impl Fn(EngineChoice)) {
    scenario(EngineChoice::Soft);
    if Path::new("/dev/kvm").exists() {
        scenario(EngineChoice::Kvm);
    } else {
        eprintln!("skipped on KVM: there is no /dev/kvm here");
    }
}

/// Starts a machine, lets `first` faults be served, and from then on serves them as `when`
/// says; returns when its vcpu waits for one.
fn with_an_open_fault(
    engine: EngineChoice,
    source: BootSource,
    first: u64,
    when: FaultService,
) -> Machine {
    let mut spec = MachineSpec::new(source);
    spec.engine = engine;
    spec.shootdown = ShootdownMode::Broadcast;
    spec.fault_around_pages = 1;
    // Else the rest of its block comes with a guest's code, and the guest has nothing to fault on.
    spec.superpages = false;
    spec.timeout = Some(Duration::from_secs(120));
    let mut machine = Machine::build(spec).expect("a machine");
    if first == 0 {
        machine.space().set_fault_service(when).expect("the pmap listens");
    }
    machine.start().expect("the guest runs");
    let still_runs = || assert_eq!(machine.poll(Duration::from_millis(1)), None, "too early");
    while machine.space().count().expect("a tally").faults.total < first {
        still_runs();
    }
    machine.space().set_fault_service(when).expect("the pmap listens");
    while !machine.space().fault_is_waiting() {
        still_runs();
    }
    machine
}

fn ends_well(machine: Machine) {
    let outcome = machine.wait();
    assert_eq!(outcome, Outcome::Guest(GuestEnd::PowerOff));
    let ended = machine.finish(outcome);
    assert_eq!(ended.report.left_behind, [""; 0]);
}

#[test]
fn in_user_mode_the_knock_brings_the_vcpu_out_and_the_fault_stays_open() {
    on_every_engine(|engine| {
        let toucher = BootSource::Builtin("toucher");
        let machine = with_an_open_fault(engine, toucher, 20, FaultService::Never);
        // Past its start at CPL 0, the guest only touches pages.
        let before = machine.space().count().expect("a tally").faults.total;
        // On the software engine a vcpu that waits for its fault is out of the guest: nobody to knock on.
        let most = if engine == EngineChoice::Soft { 0 } else { 1 };
        for _ in 0..10 {
            let times = machine.space().raise().expect("the shootdown ends");
            assert!(times.knocked <= most, "{engine:?}: {times:?}");
        }
        assert_eq!(machine.space().count().expect("a tally").faults.total, before);
        machine.space().set_fault_service(FaultService::Prompt).expect("the pmap listens");
        ends_well(machine);
    });
}

#[test]
fn in_kernel_mode_the_fault_is_served_while_the_shootdown_waits() {
    let path = format!("{}/touches-a-page.bin", env!("CARGO_TARGET_TMPDIR"));
    // mov byte [0x9000], 1; mov al, 0; out 0xf4, al
    let code = [0xc6, 0x06, 0x00, 0x90, 0x01, 0xb0, 0x00, 0xe6, 0xf4];
    std::fs::write(&path, code).expect("scratch file");
    on_every_engine(|engine| {
        let source = BootSource::File(path.clone().into());
        // On the software engine no shootdown ever waits for a vcpu with an open fault, at any level: it ends at once,
        // and the fault stays open.
        let when = match engine {
            EngineChoice::Soft => FaultService::Never,
            _ => FaultService::OnlyDuringShootdowns,
        };
        let machine = with_an_open_fault(engine, source, 0, when);
        if engine == EngineChoice::Soft {
            assert_eq!(machine.space().raise().expect("the shootdown ends").knocked, 0);
            machine.space().set_fault_service(FaultService::Prompt).expect("the pmap listens");
        }
        // On KVM, without that, this would wait for a vcpu that waits for this.
        while machine.poll(Duration::ZERO).is_none() {
            machine.space().raise().expect("the shootdown ends");
        }
        assert!(machine.space().count().expect("a tally").faults.total >= 1);
        ends_well(machine);
    });
}
