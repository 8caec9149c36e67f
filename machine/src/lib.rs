//! A whole machine: who is made in which order, who starts and stops it, and how it ends.
//!
//! [`Machine::build`] takes a [`MachineSpec`] and makes the guest's memory, the pmap, the
//! devices, the vcpus, the loader and the supervisor, in that order. [`Machine::start`] loads
//! and runs the guest, [`Machine::wait`] waits for its end, and [`Machine::finish`] joins
//! every thread and adds up what was counted.
//!
//! This is a crate of its own, below the command, because the benchmarks need whole machines
//! and the command needs the benchmarks.
//!
//! Reading order: `spec.rs` (what was meant) → `build.rs` (who gets whose handle) →
//! `supervisor.rs` (the machine actor) → `phase.rs`, `watch.rs` (pure tables) →
//! `machine.rs` (what the owner holds) → `outcome.rs`, `report.rs` (how it ended).

mod build;
pub mod engines;
pub mod host;
mod machine;
pub mod outcome;
mod paging;
pub mod phase;
pub mod report;
pub mod spec;
mod supervisor;
mod tracer;
mod verification;
pub mod watch;

pub use build::BuildError;
pub use engines::EngineKind;
pub use machine::{Ended, Machine};
pub use outcome::{ExitStatus, Outcome};
pub use paging::BadPaging;
pub use report::Report;
pub use spec::{ConsoleKind, EngineChoice, HugePages, MachineSpec, ShootdownMode};
pub use supervisor::MachineError;
pub use verification::Verification;
