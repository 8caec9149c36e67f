//! What only a kernel sees: exceptions and interrupts, privilege, control registers.

mod deliver;

pub use deliver::Undelivered;
