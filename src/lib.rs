//! skep runs guests on Linux/KVM with a guest-memory manager of its own.
//!
//! This is the library that the `skep` command is made of. A guest in five lines:
//!
//! ```no_run
//! use skep::{BootSource, Machine, MachineSpec};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut machine = Machine::build(MachineSpec::new(BootSource::Builtin("hello")))?;
//! machine.start()?;
//! let outcome = machine.wait();
//! let ended = machine.finish(outcome);
//! assert!(ended.output.starts_with(b"hello"));
//! # Ok(())
//! # }
//! ```
//!
//! The machine is built of actors; `ARCHITECTURE.md` draws them. `examples/` has a page for
//! each of the three uses: running multi-vcpu guests, measuring shootdowns, tracing faults.

pub use actors::contract::boot::BootSource;
pub use actors::contract::space::{SpaceError, SpaceTally};
pub use actors::{ActorName, Gpa, GpaRange, PAGE_SIZE, Protection, VcpuId};
pub use machine::{
    BuildError, ConsoleKind, Ended, EngineChoice, EngineKind, ExitStatus, HugePages, Machine,
    MachineError, MachineSpec, Outcome, Report, ShootdownMode,
};
