//! Vcpus, devices and the pmap tell the machine what became of the guest.
//!
//! All of these are *told*: nobody waits for the machine.

use std::fmt;

use serde::Serialize;

use crate::threads::Ending;
use crate::{ActorName, Gpa, VcpuId};

/// How a guest ends by its own wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "code")]
pub enum GuestEnd {
    /// ACPI S5, or the debug-exit port with 0.
    PowerOff,
    /// The reset register or the keyboard controller's reset line.
    Reset,
    /// The debug-exit port, with a code other than 0: a test guest that failed.
    Failed(u8),
}

/// What the guest did that no machine can go on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// Three faults in a row; real hardware resets.
    #[error("{vcpu} took a triple fault at rip {rip:#x}")]
    Triple {
        /// Who.
        vcpu: VcpuId,
        /// Where it was, as far as the engine knows.
        rip: u64,
    },
    /// An access where there is neither memory nor a device.
    #[error("{} touched a hole at guest-physical {at}: no memory and no device is there", who(.vcpu))]
    Hole {
        /// Who, where known.
        vcpu: Option<VcpuId>,
        /// Where.
        at: Gpa,
    },
    /// A write to memory that the machine has made read-only.
    #[error("{} wrote to guest-physical {at}, which is read-only", who(.vcpu))]
    ReadOnly {
        /// Who, where known.
        vcpu: Option<VcpuId>,
        /// Where.
        at: Gpa,
    },
    /// A fetch of an instruction from memory that the machine has made not executable.
    #[error("{} executed guest-physical {at}, which is not executable", who(.vcpu))]
    NotExecutable {
        /// Who, where known.
        vcpu: Option<VcpuId>,
        /// Where.
        at: Gpa,
    },
    /// A translation was used after the shootdown that took it away was complete: the protocol is broken, in skep or by
    /// a test.
    #[error("stale translation: {vcpu} at rip {rip:#x}: {what}")]
    Stale {
        /// Who.
        vcpu: VcpuId,
        /// Where it was.
        rip: u64,
        /// What was used, with both generations.
        what: String,
    },
    /// The engine met something it cannot run.
    #[error("{vcpu} cannot go on at rip {rip:#x}: {what}")]
    Engine {
        /// Who.
        vcpu: VcpuId,
        /// Where it was.
        rip: u64,
        /// The engine's own words.
        what: String,
    },
}

fn who(vcpu: &Option<VcpuId>) -> String {
    vcpu.map_or_else(|| "a vcpu".to_owned(), |id| id.to_string())
}

/// "This became of the guest, or of me."
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tidings {
    /// The guest asked to end.
    Ended {
        /// On which vcpu.
        by: VcpuId,
        /// How.
        end: GuestEnd,
    },
    /// The guest cannot go on.
    Faulted(GuestFault),
    /// The host refused something an actor cannot do without.
    HostFailed {
        /// Whose work it was.
        actor: ActorName,
        /// What, and the operating system's reason.
        what: String,
    },
    /// The reader of the guest's console went away.
    ConsoleClosed,
    /// An operator asked for the end (Ctrl-C, SIGTERM).
    Interrupted,
    /// An actor's thread is over. Expected only after the machine told it to end.
    Gone {
        /// Who.
        actor: ActorName,
        /// How.
        ending: Ending,
    },
}

impl fmt::Display for GuestEnd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => out.write_str("the guest powered off"),
            Self::Reset => out.write_str("the guest asked for a reset"),
            Self::Failed(code) => write!(out, "the guest reported failure {code}"),
        }
    }
}

/// Where tidings go: any number of senders, one machine. Never blocks.
pub type TellMachine = std::sync::Arc<dyn Fn(Tidings) + Send + Sync>;
