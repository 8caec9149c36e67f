//! What can keep an instruction from being done.

/// "I was not done; [`crate::cpu::Cpu::event`] says why." Without content, so that a handler's result is one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raised;

/// How memory is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Written, or read and written.
    Write,
    /// An instruction is fetched.
    Execute,
}

/// An exception of the processor's own. Vectors: Intel SDM vol. 3, "Exception and Interrupt Vectors".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// 0 to 31.
    pub vector: u8,
    /// Pushed where the vector has one.
    pub error: Option<u32>,
    /// For page faults: what goes to CR2.
    pub address: Option<u64>,
}

impl Exception {
    /// Divide error.
    pub const DIVIDE: Self = Self::plain(0);
    /// Breakpoint (`int3`).
    pub const BREAKPOINT: Self = Self::plain(3);
    /// Overflow (`into`).
    pub const OVERFLOW: Self = Self::plain(4);
    /// Bound range exceeded.
    pub const BOUND: Self = Self::plain(5);
    /// Invalid opcode.
    pub const UNDEFINED: Self = Self::plain(6);
    /// Device not available.
    pub const NO_DEVICE: Self = Self::plain(7);
    /// x87 floating-point error.
    pub const FLOATING_POINT: Self = Self::plain(16);
    /// Alignment check.
    pub const ALIGNMENT: Self = Self::coded(17, 0);
    /// SIMD floating-point exception.
    pub const SIMD: Self = Self::plain(19);

    /// One without an error code.
    #[must_use]
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error: None, address: None }
    }

    /// One with an error code.
    #[must_use]
    pub const fn coded(vector: u8, error: u32) -> Self {
        Self { vector, error: Some(error), address: None }
    }

    /// General protection.
    #[must_use]
    pub const fn general_protection(error: u32) -> Self {
        Self::coded(13, error)
    }

    /// Stack-segment fault.
    #[must_use]
    pub const fn stack(error: u32) -> Self {
        Self::coded(12, error)
    }

    /// Segment not present.
    #[must_use]
    pub const fn not_present(selector: u32) -> Self {
        Self::coded(11, selector)
    }

    /// Invalid TSS.
    #[must_use]
    pub const fn invalid_tss(selector: u32) -> Self {
        Self::coded(10, selector)
    }

    /// Page fault at `address`.
    #[must_use]
    pub const fn page_fault(error: u32, address: u64) -> Self {
        Self { vector: 14, error: Some(error), address: Some(address) }
    }
}

/// An access that the nested tables do not allow: what an EPT-violation exit reports (Intel SDM vol. 3,
/// "Exit Qualification for EPT Violations"), and who was at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// The guest-physical address.
    pub gpa: u64,
    /// What was tried.
    pub access: Access,
    /// The guest-linear address behind it.
    pub gva: u64,
    /// Whether the access was to one of the guest's own paging structures, on the way to `gva`.
    pub is_table_walk: bool,
    /// What the nested tables would have allowed: readable, writable, executable.
    pub allowed: [bool; 3],
    /// The instruction.
    pub rip: u64,
    /// The guest's own root.
    pub cr3: u64,
}

/// An entry of the nested tables that no hardware accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misconfiguration {
    /// The guest-physical address.
    pub gpa: u64,
    /// 4 (root) to 1.
    pub level: u32,
    /// The entry.
    pub entry: u64,
}

/// A read or write where devices live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceAccess {
    /// Port number or guest-physical address.
    pub at: u64,
    /// 1, 2, 4 or 8 bytes.
    pub bytes: u8,
    /// What is written, or nothing for a read.
    pub value: Option<u64>,
}

/// A translation was used after the shootdown that took it away was complete: somebody broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleUse {
    /// The linear address that was used.
    pub gva: u64,
    /// The guest-physical address behind it.
    pub gpa: u64,
    /// What was tried.
    pub access: Access,
    /// The generation the translation was cached at.
    pub cached_at: u64,
    /// The generation whose shootdown was complete when it was used.
    pub completed: u64,
    /// The frame it leads to.
    pub cached_frame: u32,
    /// Where the tables lead now: nowhere, or another frame, or the same one with fewer rights.
    pub tables_say: Option<u32>,
}

/// Why the last instruction was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Nothing happened.
    None,
    /// The guest gets an exception.
    Exception(Exception),
    /// The nested tables refuse.
    Nested(NestedFault),
    /// The nested tables are broken.
    Misconfigured(Misconfiguration),
    /// No memory is behind this address: data accesses ask a device there, anything else cannot go on.
    NoMemory {
        /// The guest-physical address.
        gpa: u64,
        /// What was tried.
        access: Access,
    },
    /// A device must be asked first; then the instruction is done again.
    Mmio(DeviceAccess),
    /// The same, for a string instruction on a port.
    StringPort(DeviceAccess),
    /// The checking mode caught a stale translation.
    Stale(StaleUse),
    /// A store into the page this trace came from: the instruction must be done alone, because those after
    /// it may not be what was decoded.
    OwnCode,
    /// A string instruction stopped between two elements for something more urgent; it goes on
    /// from its registers.
    Interrupted,
}
