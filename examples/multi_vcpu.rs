//! Runs a guest with four vcpus and says what each of them did.
//!
//! ```sh
//! cargo run --example multi_vcpu
//! ```
//!
//! An argument, `kvm` or `soft`, names the engine.

#![expect(clippy::print_stdout, reason = "an example that talks")]

use skep::{BootSource, Machine, MachineSpec, Outcome};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What is wanted: `smp` starts every vcpu, each takes a lock and greets.
    let mut spec = MachineSpec::new(BootSource::Builtin("smp"));
    spec.vcpus = 4;
    if let Some(engine) = std::env::args().nth(1) {
        spec.engine = engine.parse()?;
    }

    // Every actor is made here, and nothing runs yet.
    let mut machine = Machine::build(spec)?;
    println!("engine {}: {}", machine.engine(), machine.engine_detail());

    // The loader places the guest, the vcpus go, and some time later it is over.
    machine.start()?;
    let outcome = machine.wait();
    let ended = machine.finish(outcome);

    print!("{}", String::from_utf8_lossy(&ended.output));
    for vcpu in &ended.report.vcpu {
        println!(
            "vcpu {} went into the guest {} times and served {} port accesses",
            vcpu.vcpu, vcpu.exits.entries, vcpu.exits.port_accesses
        );
    }
    match ended.outcome {
        Outcome::Guest(_) => Ok(()),
        other => Err(other.into()),
    }
}
