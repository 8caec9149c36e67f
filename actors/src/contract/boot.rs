//! The machine asks the loader how a guest begins.

use std::path::PathBuf;

use crate::contract::space::SpaceError;
use crate::{Gpa, GpaRange, Gva, Protection};

/// What the guest begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootSource {
    /// A file whose format is detected.
    File(PathBuf),
    /// A guest that comes with skep.
    Builtin(&'static str),
}

/// "Put this into the guest's memory and tell me how vcpu 0 begins."
#[derive(Clone, Debug)]
pub struct Load {
    /// The kernel.
    pub source: BootSource,
    /// Linux only: the first file system.
    pub initrd: Option<PathBuf>,
    /// Linux only: what the kernel reads as its command line.
    pub cmdline: String,
    /// How many processors the tables name.
    pub vcpus: u16,
}

/// How the guest begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What the image turned out to be, in words: "Linux bzImage", "PVH ELF", …
    pub format: &'static str,
    /// Registers of vcpu 0.
    pub entry: EntryState,
    /// Bytes written into guest memory.
    pub bytes: u64,
}

/// Registers of the boot vcpu, as far as a boot protocol fixes them. What is not named
/// is zero; `rflags` is 2; interrupts are off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Which mode it starts in, with what that mode needs.
    pub mode: EntryMode,
    /// The first instruction.
    pub rip: Gva,
    /// The stack.
    pub rsp: Gva,
    /// Linux: the zero page.
    pub rsi: u64,
    /// PVH: the start info.
    pub rbx: u64,
    /// The flags register; bit 1 is always set.
    pub rflags: u64,
}

/// The mode a boot vcpu starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryMode {
    /// 16-bit real mode with every segment at `segment << 4`; `rip` is the offset.
    Real {
        /// The segment registers' value.
        segment: u16,
    },
    /// 32-bit protected mode, flat segments, paging off (PVH).
    Protected,
    /// 64-bit mode, flat segments, paging on.
    Long {
        /// Root of page tables the loader wrote.
        cr3: Gpa,
        /// Where the loader wrote the descriptor table the selectors below refer to.
        gdt: Gpa,
        /// Its size in bytes, less one.
        gdt_limit: u16,
        /// Selector of the code segment.
        code: u16,
        /// Selector of the data segments.
        data: u16,
        /// Privilege level (0 or 3): 3 runs natively where KVM emulates level 0.
        cpl: u8,
    },
}

/// How the loader reaches the guest's memory: through holds, never through tables.
///
/// The pmap's handle is the one that machines use; tests bring their own.
pub trait MemoryPort: Send + Sync {
    /// All of the guest's memory, by guest-physical address. Only held ranges may be
    /// touched: what is not held may be taken away at any time.
    fn memory(&self) -> &vm_memory::GuestMemoryMmap;

    /// Holds `ranges` for `access`. Waits for the pmap, with a deadline: call it from a
    /// thread that may block.
    ///
    /// # Errors
    ///
    /// When a range is not wholly mapped, or the host has no memory for it.
    fn hold(&self, ranges: &[GpaRange], access: Protection) -> Result<(), SpaceError>;

    /// Gives `ranges` back as they were held. With `install`, what is resident enters
    /// the guest's tables in bulk, and is there when this returns, so that its first touch does not fault.
    fn release(&self, ranges: &[GpaRange], install: bool);
}
