//! The examples do what they say, on every engine.

use std::path::PathBuf;
use std::process::Command;

use crate::engines::{Engine, on_every_engine};
use crate::support::{Ran, ran};

/// Runs an example, which `cargo test` has built beside this test.
fn example(name: &str, engine: Engine) -> Ran {
    let mut command = example_command(name);
    ran(&command.arg(engine.to_string()).output().expect("the example was built"))
}

fn example_command(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().expect("this test is a file");
    path.pop();
    path.pop();
    path.push("examples");
    path.push(name);
    Command::new(path)
}

#[test]
fn multi_vcpu_shows_four_greetings_and_four_vcpus() {
    on_every_engine(|engine| {
        let ran = example("multi_vcpu", engine);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout.starts_with(&format!("engine {engine}: ")), "{}", ran.stdout);
        for vcpu in 0..4 {
            let says = format!("vcpu {vcpu} says hello\n");
            assert!(ran.stdout.contains(&says), "{}", ran.stdout);
            let went = format!("vcpu {vcpu} went into the guest");
            assert!(ran.stdout.contains(&went), "{}", ran.stdout);
        }
    });
}

#[test]
fn shootdown_latency_times_a_thousand_raises_and_each_ends_in_a_flush() {
    on_every_engine(|engine| {
        let ran = example("shootdown_latency", engine);
        assert_eq!(ran.status, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains("p50"), "{}", ran.stdout);
        let last = ran.stdout.lines().last().expect("two lines");
        let done: u64 =
            last.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a count");
        assert!(done >= 999, "{}", ran.stdout);
    });
}

#[test]
fn trace_faults_finds_as_many_lines_as_the_report_has_faults() {
    on_every_engine(|engine| {
        let ran = example("trace_faults", engine);
        assert_eq!(ran.status, 0, "{}{}", ran.stdout, ran.stderr);
        assert!(ran.stdout.contains("zero_filled"), "{}", ran.stdout);
    });
}

#[test]
fn an_engine_that_does_not_exist_is_refused() {
    let ran = ran(&example_command("multi_vcpu").arg("warp").output().expect("it was built"));
    assert_eq!(ran.status, 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("warp"), "{}", ran.stderr);
}
