//! The engine that lets the host kernel run the guest.
//!
//! [`system`] is `/dev/kvm`: what this host can do. [`vm`] is one virtual machine: memory slots and
//! interrupt controllers, all of them in the kernel. [`vcpu`] is one processor of it: the
//! [`Engine`](crate::engine::Engine). Beside them, without any system call: `cpuid` (what the guest believes
//! it runs on), `regs` (how it starts) and `exit` (why it came out).

mod cpuid;
mod exit;
mod regs;
mod routing;
mod run_area;
mod stats;
pub mod system;
pub mod vcpu;
pub mod vm;

pub use stats::KvmStats;
pub use system::{KvmError, KvmFlavor, KvmSystem, Vendor};
pub use vcpu::KvmVcpu;
pub use vm::{Halts, KvmVm};
