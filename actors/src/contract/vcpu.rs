//! The machine gives a vcpu its orders.
//!
//! Orders go through a bounded crossbeam mailbox that the vcpu's thread drains between
//! two trips into the guest; whoever sends one then *knocks*, so that a running guest
//! comes out. To stop many vcpus, tell all of them before waiting for any.

use serde::Serialize;
use tokio::sync::oneshot;

use crate::contract::boot::EntryState;
use crate::{Gpa, Gva, VcpuId};

/// What a vcpu thread obeys.
#[derive(Debug)]
pub enum Order {
    /// "Begin like this": the registers of the boot vcpu. Only before the first `Run`.
    Begin {
        /// What the loader prepared.
        entry: Box<EntryState>,
        /// Answered when they are set, or why they are not.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// "Leave the parking spot and run the guest."
    Run,
    /// "Come out and stay out." Answered once the guest is out.
    Pause(oneshot::Sender<Parked>),
    /// "What do you look like?" Only a parked vcpu answers.
    Look(oneshot::Sender<Snapshot>),
    /// "There may be an interrupt for you": wakes a vcpu whose guest is halted. Means nothing otherwise.
    Nudge,
    /// "Finish; your thread ends after this."
    Retire,
    /// For tests of the supervision: "die of a panic" or "hang".
    Break(Break),
}

/// How a test breaks an actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// A panic on its thread.
    Panic,
    /// An endless wait in the middle of its work.
    Hang,
}

impl Break {
    /// Does it.
    ///
    /// # Panics
    ///
    /// Always, or never returns.
    pub fn happen(self) {
        match self {
            Self::Panic => panic!("asked to break, by a test"),
            Self::Hang => loop {
                std::thread::park();
            },
        }
    }
}

/// "I am out of the guest and stay out."
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Who.
    pub vcpu: VcpuId,
}

/// What a parked vcpu looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Who.
    pub vcpu: VcpuId,
    /// The next instruction.
    pub rip: Gva,
    /// The stack.
    pub rsp: Gva,
    /// The root of the guest's own tables.
    pub cr3: Gpa,
    /// The flags register.
    pub rflags: u64,
}

/// What a vcpu counted over its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VcpuTally {
    /// Trips into the guest.
    pub entries: u64,
    /// Port reads and writes served.
    pub port_accesses: u64,
    /// Memory-mapped reads and writes served.
    pub mmio_accesses: u64,
    /// Of those two, the ones at addresses where nobody lives.
    pub unclaimed_accesses: u64,
    /// Times the guest came out because somebody knocked.
    pub knocked_out: u64,
    /// Nested faults it asked the pmap to serve (an engine that walks our tables itself).
    pub nested_faults: u64,
    /// Times the guest was halted and the thread slept at its mailbox.
    pub halts: u64,
    /// Instructions done, where the engine counts them.
    pub instructions: Option<u64>,
    /// Anything else that brought it out.
    pub other_exits: u64,
}
