//! A shootdown across a fault that is held open: it must end, at every privilege level.

use std::path::Path;
use std::time::Duration;

use actors::contract::boot::BootSource;
use actors::contract::guest::GuestEnd;
use actors::contract::space::FaultService;
use machine::{Machine, MachineSpec, Outcome, ShootdownMode};

/// Starts a machine, lets `first` faults be served, and from then on serves them as `when`
/// says; returns when its vcpu sleeps on one. Nothing where there is no KVM, aloud.
fn with_an_open_fault(source: BootSource, first: u64, when: FaultService) -> Option<Machine> {
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm here");
        return None;
    }
    let mut spec = MachineSpec::new(source);
    spec.shootdown = ShootdownMode::Broadcast;
    spec.fault_around_pages = 1;
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
    Some(machine)
}

fn ends_well(machine: Machine) {
    let outcome = machine.wait();
    assert_eq!(outcome, Outcome::Guest(GuestEnd::PowerOff));
    let ended = machine.finish(outcome);
    assert_eq!(ended.report.left_behind, [""; 0]);
}

#[test]
fn in_user_mode_the_knock_brings_the_vcpu_out_and_the_fault_stays_open() {
    let toucher = BootSource::Builtin("toucher");
    let Some(machine) = with_an_open_fault(toucher, 20, FaultService::Never) else { return };
    // Past its start at CPL 0, the guest only touches pages.
    let before = machine.space().count().expect("a tally").faults.total;
    for _ in 0..10 {
        let times = machine.space().raise().expect("the shootdown ends");
        assert!(times.knocked <= 1);
    }
    assert_eq!(machine.space().count().expect("a tally").faults.total, before);
    machine.space().set_fault_service(FaultService::Prompt).expect("the pmap listens");
    ends_well(machine);
}

#[test]
fn in_kernel_mode_the_fault_is_served_while_the_shootdown_waits() {
    let path = format!("{}/touches-a-page.bin", env!("CARGO_TARGET_TMPDIR"));
    // mov byte [0x9000], 1; mov al, 0; out 0xf4, al
    let code = [0xc6, 0x06, 0x00, 0x90, 0x01, 0xb0, 0x00, 0xe6, 0xf4];
    std::fs::write(&path, code).expect("scratch file");
    let source = BootSource::File(path.into());
    let when = FaultService::OnlyDuringShootdowns;
    let Some(machine) = with_an_open_fault(source, 0, when) else { return };
    // Without that, this would wait for a vcpu that waits for this.
    while machine.poll(Duration::ZERO).is_none() {
        machine.space().raise().expect("the shootdown ends");
    }
    assert!(machine.space().count().expect("a tally").faults.total >= 1);
    ends_well(machine);
}
