//! Traces the page faults of a guest and says which pages cost most.
//!
//! ```sh
//! cargo run --example trace_faults
//! ```
//!
//! An argument, `kvm` or `soft`, names the engine.

#![expect(clippy::print_stdout, reason = "an example that talks")]

use std::fs;

use serde_json::Value;
use skep::{BootSource, Machine, MachineSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("faults.jsonl");

    let mut spec = MachineSpec::new(BootSource::Builtin("smp"));
    spec.vcpus = 2;
    spec.trace = Some(path.clone());
    // One page for each fault, so that every first touch is in the trace.
    spec.fault_around_pages = 1;
    if let Some(engine) = std::env::args().nth(1) {
        spec.engine = engine.parse()?;
    }

    let mut machine = Machine::build(spec)?;
    machine.start()?;
    let outcome = machine.wait();
    let ended = machine.finish(outcome);

    // The file is complete when the machine is finished: one line of JSON for each fault.
    let text = fs::read_to_string(&path)?;
    let mut faults = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let in_report = ended.report.space.map_or(0, |space| space.faults.total);
    println!("{} faults traced, {in_report} in the report", faults.len());
    if faults.len() as u64 != in_report {
        return Err("the trace and the report disagree".into());
    }

    faults.sort_by_key(|fault| std::cmp::Reverse(fault["service_ns"].as_u64()));
    for fault in faults.iter().take(5) {
        println!(
            "{} {} of {}: {} in {} ns",
            fault["vcpu"].as_u64().map_or("a vcpu".to_owned(), |vcpu| format!("vcpu {vcpu}")),
            fault["access"].as_str().unwrap_or_default(),
            fault["gpa"].as_str().unwrap_or_default(),
            fault["action"].as_str().unwrap_or_default(),
            fault["service_ns"]
        );
    }
    Ok(())
}
