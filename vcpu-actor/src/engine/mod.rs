//! What runs the guest: the contract every engine keeps.
//!
//! The set of engines is closed and known when the program is built: the vcpu's thread is generic, and no
//! call on its way into the guest goes through a table: [`kvm`] and [`soft`].

pub mod kvm;
pub mod soft;

use std::time::Instant;

use actors::contract::boot::EntryState;
use actors::contract::guest::GuestEnd;
use actors::contract::space::NestedFault;
use actors::{Gpa, Gva};
use shootdown::{Generation, InGuest};

use crate::{KickKind, Knocker};

/// Something that can run a guest on the thread that owns it.
pub trait Engine: Send + 'static {
    /// A way to get it out from another thread.
    fn knocker(&self) -> Knocker;

    /// Called on the vcpu's thread, once, before anything else: from here on knocks come by `kick`.
    ///
    /// # Errors
    ///
    /// The host's refusal, in words.
    fn settle_on_this_thread(&mut self, kick: KickKind) -> Result<(), String>;

    /// Sets the registers a boot protocol fixes, and makes the vcpu runnable.
    ///
    /// # Errors
    ///
    /// Why they cannot be set, in words.
    fn begin(&mut self, entry: &EntryState) -> Result<(), String>;

    /// Forgets every translation cached in user space. Called on the way in, never inside.
    fn flush(&mut self, now: Generation);

    /// Runs the guest until it wants something or somebody knocks.
    fn enter(&mut self, inside: &InGuest<'_>) -> Trip;

    /// What the guest wanted when the last trip ended with [`Trip::Exit`].
    fn exit(&mut self) -> Exit<'_>;

    /// Called when the guest runs on after a pause, so that it does not take the lost time for a
    /// hang of its own. What cannot be told is left out.
    fn excuse_pause(&mut self);

    /// Whether the guest has not yet taken what its last exit asked for: it does so at the start of its
    /// next trip, and until then its registers are those of the instruction that asked.
    fn owes_completion(&self) -> bool;

    /// After [`Exit::Halted`], before the thread sleeps at its mailbox: whether it may. From here on an
    /// interrupt sends it an order to look. An engine whose halted vcpus sleep elsewhere is never asked.
    fn falls_asleep(&mut self) -> bool {
        true
    }

    /// It does not sleep any more.
    fn wakes(&mut self) {}

    /// Instructions done so far, where the engine counts them.
    fn instructions(&self) -> Option<u64> {
        None
    }

    /// The registers an operator looks at. Only asked while out of the guest.
    ///
    /// # Errors
    ///
    /// The host's refusal, in words.
    fn look(&mut self) -> Result<Looks, String>;
}

/// How a trip into the guest ended. Deliberately small: it is known before the exit is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    /// Somebody knocked, or a signal came.
    Knocked,
    /// For a reason of the guest's own: ask [`Engine::exit`].
    Exit,
}

/// What the guest wants, or what became of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit<'e> {
    /// Nothing; it can go in again.
    Nothing,
    /// It reads or writes a port.
    Port(PortAccess<'e>),
    /// It reads or writes an address where it has no memory.
    Mmio(MmioAccess<'e>),
    /// It sleeps until an interrupt comes, or until its own clock wakes it: the thread may sleep at its mailbox.
    Halted {
        /// When the clock does.
        until: Option<Instant>,
    },
    /// Our tables do not allow an access: the pmap must be asked before the guest can go on.
    NestedFault(NestedFault),
    /// The engine's own check has caught the use of a translation that a completed shootdown took away.
    StaleTranslation {
        /// Where it was.
        rip: u64,
        /// What was used, in words.
        what: String,
    },
    /// It asked for its own end without a device.
    Ends(GuestEnd),
    /// Three faults in a row.
    TripleFault {
        /// Where it was.
        rip: u64,
    },
    /// The engine cannot run what it met.
    Failed {
        /// Where it was.
        rip: u64,
        /// Why, in words.
        what: String,
    },
    /// The host mapping behind the guest's memory refused an access. Which one is known to
    /// whoever owns that mapping, and was reported from there.
    MemoryRefused {
        /// Where it was.
        rip: u64,
        /// Which address, where the host says so. (As of Linux 6.18 it does not, for memory mapped
        /// from a process, whatever `KVM_CAP_MEMORY_FAULT_INFO` says.)
        at: Option<Gpa>,
    },
    /// The host refused to run the vcpu at all.
    HostFailed {
        /// What, and the operating system's reason.
        what: String,
    },
}

/// From the guest's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest reads: fill the data.
    Read,
    /// The guest writes: take the data.
    Write,
}

/// `in`, `out` and their string forms.
#[derive(Debug, PartialEq, Eq)]
pub struct PortAccess<'e> {
    /// Which port.
    pub port: u16,
    /// Which way.
    pub direction: Direction,
    /// Bytes in one access: 1, 2 or 4.
    pub size: usize,
    /// One or more accesses to the same port, in order: a multiple of `size` bytes. Read by the
    /// guest, or to be filled in place.
    pub data: &'e mut [u8],
}

/// An access to an address without memory.
#[derive(Debug, PartialEq, Eq)]
pub struct MmioAccess<'e> {
    /// Where.
    pub at: Gpa,
    /// Which way.
    pub direction: Direction,
    /// 1 to 8 bytes, in place. Not always a power of two: an access that crosses a page is
    /// delivered in two parts.
    pub data: &'e mut [u8],
}

/// The registers an operator looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    /// The next instruction.
    pub rip: Gva,
    /// The stack.
    pub rsp: Gva,
    /// The root of the guest's own tables.
    pub cr3: Gpa,
    /// The flags register.
    pub rflags: u64,
}
