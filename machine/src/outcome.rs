//! How a run ended, in one sentence and one exit status.

use actors::ActorName;
use actors::contract::guest::{GuestEnd, GuestFault};
use serde::Serialize;

/// The exit statuses of the command, all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub enum ExitStatus {
    /// The guest powered off or asked to end well.
    Success = 0,
    /// The host refused something, or skep has a bug.
    Error = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// The guest asked for a reset.
    Reset = 3,
    /// A triple fault.
    TripleFault = 4,
    /// A test guest reported failure.
    GuestFailed = 5,
    /// `--timeout` passed.
    Timeout = 6,
    /// The pmap actor died or hangs.
    PmapDied = 7,
    /// Another actor died or hangs.
    ActorDied = 8,
    /// The guest did what no machine can go on from: a hole, read-only memory, an
    /// instruction that the engine cannot run.
    GuestFault = 9,
    /// The kernel or the initrd cannot be booted.
    BadImage = 10,
    /// The host lacks /dev/kvm, userfaultfd, memory, or the permission to use them.
    HostLacks = 11,
    /// Nobody reads the console any more.
    ConsoleClosed = 12,
    /// Ctrl-C, SIGTERM or SIGHUP.
    Interrupted = 130,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outcome {
    /// The guest asked for its end.
    #[error("{0}")]
    Guest(GuestEnd),
    /// The guest did what no machine can go on from.
    #[error("{0}")]
    Fault(GuestFault),
    /// An actor's thread died of a panic.
    #[error("the {actor} actor died: {why}")]
    Died {
        /// Who.
        actor: ActorName,
        /// The panic's words.
        why: String,
    },
    /// An actor is busy with one thing for too long.
    #[error("the {actor} actor hangs: it has not moved for {seconds} s")]
    Hangs {
        /// Who.
        actor: ActorName,
        /// How long.
        seconds: u64,
    },
    /// An actor's work was refused by the host, or it is late.
    #[error("the {actor} actor cannot go on: {what}")]
    HostFailed {
        /// Who.
        actor: ActorName,
        /// What, and the operating system's reason.
        what: String,
    },
    /// The image cannot be booted.
    #[error("{0}")]
    BadImage(String),
    /// The time is up.
    #[error("the guest did not end within {0} s (--timeout)")]
    Timeout(u64),
    /// Nobody reads the console.
    #[error("stdout was closed, so nobody reads the guest's console any more")]
    ConsoleClosed,
    /// An operator asked for the end.
    #[error("interrupted")]
    Interrupted,
    /// Whoever held the machine let go of it.
    #[error("the machine was stopped by its owner")]
    Stopped,
}

impl Outcome {
    /// The command's exit status.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::Guest(GuestEnd::PowerOff) | Self::Stopped => ExitStatus::Success,
            Self::Guest(GuestEnd::Reset) => ExitStatus::Reset,
            Self::Guest(GuestEnd::Failed(_)) => ExitStatus::GuestFailed,
            Self::Fault(GuestFault::Triple { .. }) => ExitStatus::TripleFault,
            Self::Fault(_) => ExitStatus::GuestFault,
            Self::Died { actor, .. }
            | Self::Hangs { actor, .. }
            | Self::HostFailed { actor, .. } => match actor {
                ActorName::Pmap => ExitStatus::PmapDied,
                _ => ExitStatus::ActorDied,
            },
            Self::BadImage(_) => ExitStatus::BadImage,
            Self::Timeout(_) => ExitStatus::Timeout,
            Self::ConsoleClosed => ExitStatus::ConsoleClosed,
            Self::Interrupted => ExitStatus::Interrupted,
        }
    }
}

impl ExitStatus {
    /// This, unless it says that all is well although it is not.
    #[must_use]
    pub fn worse_than_success(self) -> Self {
        if self == Self::Success { Self::Error } else { self }
    }
}
