//! The software engine: `soft-cpu` behind the engine contract.
//!
//! A vcpu's thread executes the guest's instructions itself and walks our nested tables. Where KVM sleeps in the kernel, it
//! leaves the guest: for a page it asks the pmap, for an interrupt it sleeps at its mailbox. A knock is a flag
//! that the processor reads between two runs of instructions; no signal is needed, because a vcpu
//! in the guest is in no system call.
//!
//! ```text
//!   machine.rs       what the vcpus share: I/O APIC, code map, clock
//!   vcpu.rs          the engine
//!   entry.rs         a boot protocol's registers
//!   exchange.rs      interrupts between vcpus, and how they find their readers awake
//!   nearby.rs        the local APIC and the clock, as the processor sees them
//!   second_stage.rs  our tables, as the processor's hardware
//! ```

mod entry;
mod exchange;
mod machine;
mod nearby;
mod second_stage;
mod vcpu;

pub use machine::{MOST_VCPUS, SoftMachine, SoftOptions};
pub use vcpu::SoftVcpu;
