//! The examples do what they say.

use std::path::PathBuf;
use std::process::Command;

use crate::support::{Ran, kvm, ran};

/// Runs an example, which `cargo test` has built beside this test.
fn example(name: &str) -> Ran {
    let mut path: PathBuf = std::env::current_exe().expect("this test is a file");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    ran(&Command::new(path).output().expect("the example was built"))
}

#[test]
fn multi_vcpu_shows_four_greetings_and_four_vcpus() {
    let Some(_cpus) = kvm() else { return };
    let ran = example("multi_vcpu");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    for vcpu in 0..4 {
        assert!(ran.stdout.contains(&format!("vcpu {vcpu} says hello\n")), "{}", ran.stdout);
        assert!(ran.stdout.contains(&format!("vcpu {vcpu} went into the guest")), "{}", ran.stdout);
    }
}

#[test]
fn shootdown_latency_times_a_thousand_raises_and_each_ends_in_a_flush() {
    let Some(_cpus) = kvm() else { return };
    let ran = example("shootdown_latency");
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("p50"), "{}", ran.stdout);
    let last = ran.stdout.lines().last().expect("two lines");
    let done: u64 = last.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a count");
    assert!(done >= 999, "{}", ran.stdout);
}

#[test]
fn trace_faults_finds_as_many_lines_as_the_report_has_faults() {
    let Some(_cpus) = kvm() else { return };
    let ran = example("trace_faults");
    assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("zero_filled"), "{}", ran.stdout);
}
