//! What lives so close to a processor that asking it must not cost an exit: its local APIC, its clock.

use crate::event::DeviceAccess;

/// "That model-specific register refuses": the guest gets #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The processor's own surroundings. Called on its thread, never concurrently.
///
/// What has a default is what a processor without a local APIC, all of whose ports are heard, finds around itself.
pub trait Surroundings: Send {
    /// The time-stamp counter.
    fn now(&mut self) -> u64;

    /// Lets timers that are due fire, takes messages that came; says whether an interrupt waits to be taken
    /// with IF set.
    fn poll(&mut self) -> bool;

    /// The vector to take now; `None` when there is none after all.
    fn acknowledge(&mut self) -> Option<u8> {
        None
    }

    /// Reads the local APIC's page if `gpa` lies in it: `None` when it does not.
    fn local_read(&mut self, _access: &DeviceAccess) -> Option<u64> {
        None
    }

    /// Writes it; whether it was there.
    fn local_write(&mut self, _access: &DeviceAccess) -> bool {
        false
    }

    /// Whether a write to this port concerns nobody: then it is not worth an exit.
    fn port_is_deaf(&mut self, _port: u16) -> bool {
        false
    }

    /// A model-specific register that belongs to the APIC: `None` when it does not.
    fn read_msr(&mut self, _msr: u32) -> Option<Result<u64, Refused>> {
        None
    }

    /// The same for a write.
    fn write_msr(&mut self, _msr: u32, _value: u64) -> Option<Result<(), Refused>> {
        None
    }

    /// CR8, the task priority.
    fn task_priority(&mut self) -> u64 {
        0
    }

    /// Sets it.
    fn set_task_priority(&mut self, _priority: u64) {}

    /// The guest met an instruction that this processor does not know: it gets #UD, and whoever watches
    /// gets its name.
    fn unimplemented(&mut self, rip: u64, name: &str);

    /// A spin loop says that it spins.
    fn pause(&mut self) {}
}
