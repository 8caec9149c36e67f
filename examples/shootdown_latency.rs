//! Raises a thousand shootdowns against busy vcpus and says how long they took.
//!
//! ```sh
//! cargo run --release --example shootdown_latency
//! ```
//!
//! An argument, `kvm` or `soft`, names the engine.
//!
//! This is the short way to a number. `skep bench shootdown` is the careful one: it takes bare
//! baselines in the same run and proves for each sample that its vcpus were running.

#![expect(clippy::print_stdout, reason = "an example that talks")]

use skep::{BootSource, Machine, MachineSpec, ShootdownMode};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut spec = MachineSpec::new(BootSource::Builtin("spin"));
    spec.vcpus = 1;
    // Knock on every vcpu in the guest, whether or not the host kernel has flushed already.
    spec.shootdown = ShootdownMode::Broadcast;
    if let Some(engine) = std::env::args().nth(1) {
        spec.engine = engine.parse()?;
    }

    let mut machine = Machine::build(spec)?;
    machine.start()?;

    // Nothing is removed: the generation moves on, and whoever is in the guest must notice.
    let mut busy = Vec::new();
    while busy.len() < 1_000 {
        let times = machine.space().raise()?;
        if times.knocked > 0 {
            busy.push(times.completion_ns);
        }
    }
    machine.stop();
    let outcome = machine.wait();
    let ended = machine.finish(outcome);

    busy.sort_unstable();
    println!(
        "from raise to acknowledgement: p50 {} ns, p90 {} ns, p99 {} ns",
        busy[busy.len() / 2],
        busy[busy.len() * 9 / 10],
        busy[busy.len() * 99 / 100]
    );
    let flushes = &ended.report.vcpu[0].flushes;
    println!("{} flushes done, {} saved", flushes.flushes_done, flushes.flushes_saved);
    Ok(())
}
