//! What lives so close to a processor that asking it must not cost an exit: its local APIC, its clock.

use crate::event::DeviceAccess;

/// "That model-specific register refuses": the guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The processor's own surroundings. Called on its thread, never concurrently.
pub trait Surroundings: Send {
    /// The time-stamp counter.
    fn now(&mut self) -> u64;

    /// Lets timers that are due fire, takes messages that came; says whether an interrupt waits to be taken
    /// with IF set.
    fn poll(&mut self) -> bool;

    /// The vector to take now; `None` when there is none after all.
    fn acknowledge(&mut self) -> Option<u8>;

    /// Reads the local APIC's page if `gpa` lies in it: `None` when it does not.
    fn local_read(&mut self, access: &DeviceAccess) -> Option<u64>;

    /// Writes it; whether it was there.
    fn local_write(&mut self, access: &DeviceAccess) -> bool;

    /// Whether a write to this port concerns nobody: then it is not worth an exit.
    fn port_is_deaf(&mut self, port: u16) -> bool;

    /// A model-specific register that belongs to the APIC: `None` when it does not.
    fn read_msr(&mut self, msr: u32) -> Option<Result<u64, Refused>>;

    /// The same for a write.
    fn write_msr(&mut self, msr: u32, value: u64) -> Option<Result<(), Refused>>;

    /// CR8, the task priority.
    fn task_priority(&mut self) -> u64;

    /// Sets it.
    fn set_task_priority(&mut self, priority: u64);

    /// The guest met an instruction that this processor does not know: it gets #UD, and whoever watches
    /// gets its name.
    fn unimplemented(&mut self, rip: u64, name: &str);

    /// A spin loop says that it spins.
    fn pause(&mut self);
}
