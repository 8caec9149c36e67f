//! What skep costs, each figure beside a bare loop taken in the same run.
//!
//! A benchmark here answers a question somebody asked (`README.md` has them). The *subject* is
//! a whole [`Machine`](machine::Machine), as `skep run` makes it. The *reference* is the least
//! that could do the same work: the same guest, the same system calls, the same placement, and
//! no actor, map or table. Both run in one process, in turns of some 200 samples, because two
//! runs on one host differ by a third for reasons that are nobody's.
//!
//! A sample counts only if it proves what it measured: that the vcpu was executing just
//! before, or that the touch was served by a fault. Everything else is kept apart, under its
//! own state. `interp` compares processors rather than loops of system calls: it has a room of its own.
//!
//! Reading order: `cli.rs` (what can be asked) → `shootdown.rs`, `fault.rs`, `dirty.rs` (the questions) →
//! `bare_kick.rs`, `bare_fault.rs`, `bare_dirty.rs`, `peer.rs` (the references) → `bare_vm.rs` (KVM and nothing
//! else) → `samples.rs`, `report.rs`, `table.rs` (from nanoseconds to a verdict) →
//! `environment.rs`, `noise.rs` (what the host was doing) → `kernel.rs`, `signal.rs`, `clock.rs`
//! (small rooms for system calls).

mod bare_dirty;
mod bare_fault;
mod bare_kick;
mod bare_vm;
pub mod cli;
mod clock;
mod dirtier;
mod dirty;
mod environment;
mod error;
mod executing;
mod fault;
mod harvest;
mod interp;
mod kernel;
mod noise;
mod peer;
mod report;
mod samples;
mod shootdown;
mod signal;
mod table;

pub use error::BenchError;

/// Tests that build machines or send the signal take turns: both are the whole process's.
#[cfg(test)]
static ONE_AT_A_TIME: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
