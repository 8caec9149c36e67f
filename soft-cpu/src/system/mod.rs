//! What only a kernel sees: exceptions and interrupts, privilege, control registers.

mod control;
pub mod cpuid;
pub(crate) mod deliver;
mod deliver_legacy;
pub(crate) mod far;
pub mod msr;
mod ports;
pub(crate) mod segments;

pub use deliver::Undelivered;

/// Bits of CR4 that exist.
#[cfg(test)]
pub(crate) fn cr4_bits() -> u64 {
    control::CR4
}
