//! The guests that come with skep, through the command, and what their reports say.

use crate::engines::{Engine, cpus, kvm, on_every_engine};
use crate::support::{Ran, json, scratch, skep};
use serde_json::Value;

pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().expect("a count")
}

/// Runs `skep run` with these words on one engine, and reads its report.
pub(crate) fn reported(engine: Engine, name: &str, words: &str) -> (Ran, Value) {
    let path = scratch(&format!("{name}-{engine}.json"));
    let ran = skep(&format!("run --engine {engine} {words} --report {path}"));
    let report = json(&path);
    assert_eq!(report["engine"], engine.to_string());
    (ran, report)
}

#[test]
fn hello_prints_its_line_and_nothing_else_is_on_stdout() {
    on_every_engine(|engine| {
        let ran = skep(&format!("run --engine {engine} --guest hello --timeout 60"));
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout.lines().count(), 1);
        assert!(ran.stdout.starts_with("hello from skep"), "{}", ran.stdout);
        ran.observed()
    });
}

#[test]
fn the_engine_that_is_taken_unasked_is_named_with_the_reason() {
    let _cpus = cpus();
    let path = scratch("auto.json");
    let ran = skep(&format!("run --guest hello --timeout 60 --report {path}"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let report = json(&path);
    let (engine, why) = (&report["engine"], &report["engine_detail"]);
    let line = format!("  engine      {}: {}", engine.as_str().unwrap(), why.as_str().unwrap());
    assert!(ran.stderr.lines().any(|said| said == line), "{}", ran.stderr);
}

#[test]
fn four_vcpus_greet_and_only_what_they_touched_is_resident() {
    on_every_engine(|engine| {
        let (ran, report) = reported(engine, "smp", "-c 4 -m 256 --guest smp --timeout 60");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let mut greetings: Vec<_> = ran.stdout.lines().collect();
        greetings.sort_unstable();
        let expected =
            ["vcpu 0 says hello", "vcpu 1 says hello", "vcpu 2 says hello", "vcpu 3 says hello"];
        assert_eq!(greetings, expected);

        let space = &report["space"];
        let resident = number(&space["resident_bytes"]);
        assert!((1 << 20..16 << 20).contains(&resident), "{resident} of 256 MiB");
        assert!(number(&space["faults"]["zero_filled"]) > 0);
        let leaves = number(&space["resident_leaves"]);
        assert!(leaves * 4096 <= resident, "{leaves} leaves, {resident} bytes");
        let vcpus = report["vcpu"].as_array().map_or(0, Vec::len);
        ran.observed()
            .count("vcpus", vcpus as u64)
            .count("loaded bytes", number(&report["loaded_bytes"]))
            .count("console bytes", number(&report["console_bytes"]))
            .count("refused faults", number(&space["faults"]["refused"]))
    });
}

#[test]
fn the_toucher_touches_every_page_it_was_told_to() {
    on_every_engine(|engine| {
        let (ran, report) = reported(engine, "toucher", "--guest toucher --timeout 60");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(number(&report["space"]["faults"]["zero_filled"]) > 0);
        ran.observed()
    });
}

#[test]
fn a_guest_that_spins_is_ended_by_its_timeout() {
    on_every_engine(|engine| {
        let ran = skep(&format!("run --engine {engine} -c 3 --guest spin --timeout 1"));
        assert_eq!(ran.status, 6, "{}", ran.stderr);
        ran.observed()
    });
}

/// Runs a storm and returns what happened and its report.
pub(crate) fn storm(engine: Engine, name: &str, words: &str) -> (Ran, Value) {
    let (ran, report) = reported(engine, name, &format!("{words} --timeout 400"));
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    // Every raise ends for every vcpu exactly once, as a flush done or saved.
    let raised = number(&report["space"]["shootdowns"]["raised"]);
    assert_eq!(number(&report["space"]["generation"]), raised);
    for vcpu in report["vcpu"].as_array().expect("vcpus") {
        let ended = number(&vcpu["flushes_done"]) + number(&vcpu["flushes_saved"]);
        assert_eq!(ended, raised, "{vcpu}");
    }
    (ran, report)
}

pub(crate) fn in_use(report: &Value) -> u64 {
    number(&report["storm"]["in_use"])
}

fn knocks(report: &Value) -> u64 {
    number(&report["space"]["shootdowns"]["knocks"])
}

#[test]
fn a_storm_left_to_the_kernel_ends_well_without_a_knock() {
    // The software engine has no kernel to leave it to, and says so: see `bad_input`.
    let Some(_cpus) = kvm() else { return };
    let (_, report) = storm(Engine::Kvm, "storm-kernel", "-c 4 --guest storm --shootdown kernel");
    assert!(in_use(&report) >= 1_000, "{}", report["storm"]);
    assert_eq!(knocks(&report), 0);
}

#[test]
fn a_storm_by_default_knocks_on_those_who_may_hold_translations() {
    on_every_engine(|engine| {
        let (ran, report) = storm(engine, "storm-auto", "-c 4 --guest storm --shootdown auto");
        assert!(in_use(&report) >= 1_000, "{}", report["storm"]);
        match engine {
            // KVM keeps none for longer than the host mapping lives.
            Engine::Kvm => assert_eq!(knocks(&report), 0),
            Engine::Soft => assert!(knocks(&report) > 0),
        }
        ran.observed().without_numbers()
    });
}

#[test]
fn a_broadcast_storm_knocks_and_times_every_shootdown() {
    on_every_engine(|engine| {
        let words = "-c 4 --guest storm --shootdown broadcast";
        let (ran, report) = storm(engine, "storm-broadcast", words);
        assert!(in_use(&report) >= 1_000, "{}", report["storm"]);
        assert!(knocks(&report) > 0);
        let shootdowns = &report["space"]["shootdowns"];
        assert_eq!(number(&shootdowns["latency"]["count"]), number(&shootdowns["raised"]));
        assert!(number(&shootdowns["latency"]["p50_ns"]) > 0);
        ran.observed().without_numbers()
    });
}

#[test]
fn a_storm_in_kernel_mode_ends_well_too() {
    on_every_engine(|engine| {
        // Few: where privileged code is emulated each touch takes long.
        let words = "-c 2 --guest storm0 --shootdown broadcast --storm-invalidations 50";
        let (ran, report) = storm(engine, "storm0", words);
        assert!(in_use(&report) >= 50, "{}", report["storm"]);
        ran.observed().without_numbers()
    });
}

#[test]
fn a_guest_notices_when_the_host_mapping_is_left_alone() {
    // The software engine does not use the host mapping, and says so: see `bad_input`. Its own test of this kind is in
    // `soft`: a flush that forgets nothing.
    let Some(_cpus) = kvm() else { return };
    let ran =
        skep("run --engine kvm -c 2 --guest storm --test-switch keep-host-mappings --timeout 400");
    assert_eq!(ran.status, 5, "{}", ran.stderr);
    assert!(ran.stdout.contains("stale read"), "{}", ran.stdout);
}

#[test]
fn the_trace_has_one_line_for_each_fault_of_the_report() {
    on_every_engine(|engine| {
        let trace = scratch(&format!("faults-{engine}.jsonl"));
        let words = format!("-c 2 --guest smp --timeout 60 --trace {trace}");
        let (ran, report) = reported(engine, "faults", &words);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let text = std::fs::read_to_string(&trace).expect("the trace was written");
        let faults: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
        let counted = &report["space"]["faults"];
        let total = number(&counted["total"]);
        assert_eq!(faults.len() as u64, total);
        let known = faults.iter().filter(|fault| fault["vcpu"].is_u64()).count();
        assert_eq!(known as u64, number(&counted["vcpu_known"]));
        let is_page = |fault: &Value| fault["gpa"].as_str().is_some_and(|gpa| gpa.ends_with("000"));
        // KVM tells the page, the software engine the byte.
        assert!(engine == Engine::Soft || faults.iter().all(is_page), "{text}");
        // Only an engine that walks the tables itself knows where the guest was.
        let placed = faults.iter().filter(|fault| !fault["rip"].is_null()).count() as u64;
        assert_eq!(placed, if engine == Engine::Soft { total } else { 0 }, "{text}");
        ran.observed()
    });
}

#[test]
fn wired_memory_is_resident_before_the_guest_starts_and_never_faults() {
    on_every_engine(|engine| {
        let (ran, report) = reported(engine, "wired", "-c 2 -m 32 -S --guest smp --timeout 60");
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        let space = &report["space"];
        assert_eq!(number(&space["faults"]["total"]), 0);
        assert_eq!(number(&space["wired_pages"]), 32 << 8);
        assert_eq!(number(&space["resident_bytes"]), 32 << 20);
        ran.observed()
    });
}
