//! The guests that come with skep, through the command, and what their reports say.

use crate::support::{json, kvm, scratch, skep};
use serde_json::Value;

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a count")
}

#[test]
fn hello_prints_its_line_and_nothing_else_is_on_stdout() {
    let Some(_cpus) = kvm() else { return };
    let ran = skep("run --guest hello --timeout 60");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 1);
    assert!(ran.stdout.starts_with("hello from skep"), "{}", ran.stdout);
}

#[test]
fn four_vcpus_greet_and_only_what_they_touched_is_resident() {
    let Some(_cpus) = kvm() else { return };
    let path = scratch("smp.json");
    let ran =
        skep(&format!("run --engine kvm -c 4 -m 256 --guest smp --timeout 60 --report {path}"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let mut greetings: Vec<_> = ran.stdout.lines().collect();
    greetings.sort_unstable();
    let expected =
        ["vcpu 0 says hello", "vcpu 1 says hello", "vcpu 2 says hello", "vcpu 3 says hello"];
    assert_eq!(greetings, expected);

    let report = json(&path);
    let resident = number(&report["space"]["resident_bytes"]);
    assert!((1 << 20..16 << 20).contains(&resident), "{resident} of 256 MiB");
    assert_eq!(report["vcpu"].as_array().map(Vec::len), Some(4));
    assert!(number(&report["space"]["faults"]["zero_filled"]) > 0);
    let leaves = number(&report["space"]["resident_leaves"]);
    assert!(leaves * 4096 <= resident, "{leaves} leaves, {resident} bytes");
}

/// Runs a storm and returns its report.
fn storm(guest: &str, vcpus: u16, mode: &str) -> Value {
    let path = scratch(&format!("{guest}-{vcpus}-{mode}.json"));
    let ran = skep(&format!(
        "run --engine kvm -c {vcpus} --guest {guest} --shootdown {mode} --timeout 400 --report {path}"
    ));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report = json(&path);
    assert!(number(&report["storm"]["in_use"]) >= 1_000, "{}", report["storm"]);
    // Every raise ends for every vcpu exactly once, as a flush done or saved.
    let raised = number(&report["space"]["shootdowns"]["raised"]);
    assert_eq!(number(&report["space"]["generation"]), raised);
    for vcpu in report["vcpu"].as_array().expect("vcpus") {
        let ended = number(&vcpu["flushes_done"]) + number(&vcpu["flushes_saved"]);
        assert_eq!(ended, raised, "{vcpu}");
    }
    report
}

fn knocks(report: &Value) -> u64 {
    number(&report["space"]["shootdowns"]["knocks"])
}

#[test]
fn a_storm_left_to_the_kernel_ends_well_without_a_knock() {
    let Some(_cpus) = kvm() else { return };
    assert_eq!(knocks(&storm("storm", 4, "kernel")), 0);
}

#[test]
fn a_storm_by_default_knocks_on_nobody_because_kvm_caches_nothing_here() {
    let Some(_cpus) = kvm() else { return };
    assert_eq!(knocks(&storm("storm", 4, "auto")), 0);
}

#[test]
fn a_broadcast_storm_knocks_and_times_every_shootdown() {
    let Some(_cpus) = kvm() else { return };
    let report = storm("storm", 4, "broadcast");
    assert!(knocks(&report) > 0);
    let shootdowns = &report["space"]["shootdowns"];
    assert_eq!(number(&shootdowns["latency"]["count"]), number(&shootdowns["raised"]));
    assert!(number(&shootdowns["latency"]["p50_ns"]) > 0);
}

#[test]
fn a_storm_in_kernel_mode_ends_well_too() {
    let Some(_cpus) = kvm() else { return };
    // One vcpu: where privileged code is emulated each touch takes long.
    let path = scratch("storm0.json");
    let ran = skep(&format!(
        "run -c 2 --guest storm0 --shootdown broadcast --storm-invalidations 50 --timeout 400 --report {path}"
    ));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(number(&json(&path)["storm"]["in_use"]) >= 50);
}

#[test]
fn a_guest_notices_when_the_host_mapping_is_left_alone() {
    let Some(_cpus) = kvm() else { return };
    let ran = skep("run -c 2 --guest storm --test-switch keep-host-mappings --timeout 400");
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stdout.contains("stale read"), "{}", ran.stdout);
}

#[test]
fn the_trace_has_one_line_for_each_fault_of_the_report() {
    let Some(_cpus) = kvm() else { return };
    let (trace, report) = (scratch("faults.jsonl"), scratch("faults.json"));
    let ran = skep(&format!("run -c 2 --guest smp --timeout 60 --trace {trace} --report {report}"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let text = std::fs::read_to_string(&trace).expect("the trace was written");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let faults = &json(&report)["space"]["faults"];
    assert_eq!(lines.len() as u64, number(&faults["total"]));
    let known = lines.iter().filter(|line| line["vcpu"].is_u64()).count();
    assert_eq!(known as u64, number(&faults["vcpu_known"]));
    assert!(lines.iter().all(|line| line["gpa"].as_str().is_some_and(|gpa| gpa.ends_with("000"))));
}

#[test]
fn wired_memory_is_resident_before_the_guest_starts_and_never_faults() {
    let Some(_cpus) = kvm() else { return };
    let report = scratch("wired.json");
    let ran = skep(&format!("run -c 2 -m 32 -S --guest smp --timeout 60 --report {report}"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let space = &json(&report)["space"];
    assert_eq!(number(&space["faults"]["total"]), 0);
    assert_eq!(number(&space["wired_pages"]), 32 << 8);
    assert_eq!(number(&space["resident_bytes"]), 32 << 20);
}
