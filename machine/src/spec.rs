//! What was meant: everything a machine is made from, checked before anything is made.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use actors::contract::boot::{BootSource, Load};
use actors::layout::{BadLayout, LOWMEM_LIMIT, MemoryLayout};
pub use actors::swap::SwapSpec;
pub use devices::console::block_signals;
use pmap_actor::ept::tables::ADDRESS_BITS;
pub use pmap_actor::host::huge::HugePages;
pub use pmap_actor::space_actor::ShootdownMode;
pub use pmap_actor::swap::faulty::SwapFault;

/// Where the guest's serial console leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleKind {
    /// This process's stdin and stdout, and its Ctrl-C. `main` must hold
    /// [`block_signals`] from before its first thread, or the signals end the process.
    Terminal,
    /// Nothing is typed; what the guest prints is kept, and comes with the end.
    Captured,
    /// Nothing is typed; what the guest prints is dropped.
    Null,
}

/// What shall run the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineChoice {
    /// KVM where the processor assists it and the run needs nothing that it lacks, else the software engine.
    #[default]
    Auto,
    /// Linux's KVM.
    Kvm,
    /// skep's own processor.
    Soft,
}

/// A name that is no engine's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no engine \"{0}\": there are auto, kvm and soft")]
pub struct NoSuchEngine(String);

impl FromStr for EngineChoice {
    type Err = NoSuchEngine;

    fn from_str(name: &str) -> Result<Self, NoSuchEngine> {
        match name {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "soft" => Ok(Self::Soft),
            _ => Err(NoSuchEngine(name.to_owned())),
        }
    }
}

/// A machine, as wanted. Fields are plain; [`MachineSpec::layout`] and the build check them.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// How many vcpus.
    pub vcpus: u16,
    /// How much memory, in bytes.
    pub memory_bytes: u64,
    /// Where memory below 4 GiB ends at the latest.
    pub lowmem_limit: u64,
    /// The kernel, or a guest that comes with skep.
    pub source: BootSource,
    /// Linux: the first file system.
    pub initrd: Option<PathBuf>,
    /// Linux: the kernel's command line.
    pub cmdline: String,
    /// Make all memory resident before the guest starts (`-S`).
    pub wire: bool,
    /// What the memory is made of. Reserved huge pages are taken for the whole guest at the start, and stay (as if
    /// `wire` were set).
    pub huge_pages: HugePages,
    /// Where pages go that leave memory.
    pub swap: Option<SwapSpec>,
    /// The most that resident guest memory and pages that are kept compressed may take together, in bytes.
    pub resident_limit_bytes: Option<u64>,
    /// Compare the nested tables with the host's mapping and the books, at each pause and at the end.
    pub verify: bool,
    /// How often to look at the guest's working set; each look costs a shootdown.
    pub harvest_every: Option<Duration>,
    /// For tests: how the swap file fails, and after how many good calls.
    pub swap_fault: Option<(SwapFault, u64)>,
    /// What shall run the guest.
    pub engine: EngineChoice,
    /// Accessed and dirty bits of the nested tables are set by whoever walks them, as newer hardware does, not emulated.
    pub hardware_ad: bool,
    /// The nested tables may have 2 MiB leaves.
    pub superpages: bool,
    /// Software engine: compare every use of a cached translation with the tables.
    pub check_translations: bool,
    /// For tests that the checks notice: a flush of the software engine forgets nothing.
    pub skip_flush: bool,
    /// Whom invalidations knock on.
    pub shootdown: ShootdownMode,
    /// Fault-around window, in pages.
    pub fault_around_pages: u64,
    /// How long the pmap watches for the next fault before it sleeps.
    pub spin_for_faults: Duration,
    /// Where the fault trace goes.
    pub trace: Option<PathBuf>,
    /// Make KVM report every fault on its vcpu's own thread. A halted vcpu then occupies its
    /// cpu.
    pub exact_vcpus: bool,
    /// End the run after this long.
    pub timeout: Option<Duration>,
    /// Where the guest's serial console leads.
    pub console: ConsoleKind,
    /// For tests that a guest notices: leave the host mapping alone when translations are
    /// removed.
    pub skip_mirror_unmap: bool,
}

/// Pages around a touched one that come with it, unless said otherwise. Linux's own
/// fault-around maps as much (64 KiB).
pub const FAULT_AROUND_PAGES: u64 = 16;

impl MachineSpec {
    /// A machine with one vcpu and 256 MiB (bhyve's default) that boots `source`.
    #[must_use]
    pub fn new(source: BootSource) -> Self {
        Self {
            vcpus: 1,
            memory_bytes: 256 << 20,
            lowmem_limit: LOWMEM_LIMIT,
            source,
            initrd: None,
            cmdline: String::new(),
            wire: false,
            huge_pages: HugePages::Transparent,
            swap: None,
            resident_limit_bytes: None,
            harvest_every: None,
            verify: false,
            swap_fault: None,
            engine: EngineChoice::Auto,
            hardware_ad: false,
            superpages: true,
            check_translations: false,
            skip_flush: false,
            shootdown: ShootdownMode::Auto,
            fault_around_pages: FAULT_AROUND_PAGES,
            spin_for_faults: Duration::ZERO,
            trace: None,
            exact_vcpus: false,
            timeout: None,
            console: ConsoleKind::Captured,
            skip_mirror_unmap: false,
        }
    }

    /// Moves the start of the device hole: libvmmapi's `vm_set_lowmem_limit`.
    pub fn set_lowmem_limit(&mut self, limit: u64) {
        self.lowmem_limit = limit;
    }

    /// Where the memory lies.
    ///
    /// # Errors
    ///
    /// [`BadLayout`] when there is no memory, too much, or not whole pages.
    pub fn layout(&self) -> Result<MemoryLayout, BadLayout> {
        MemoryLayout::split(self.memory_bytes, self.lowmem_limit, ADDRESS_BITS)
    }

    /// The option that keeps all memory resident from the start, if one does.
    pub(crate) fn keeps_all(&self) -> Option<&'static str> {
        match (self.huge_pages, self.wire) {
            (HugePages::Reserved, _) => Some("--huge-pages reserved"),
            (HugePages::Transparent, true) => Some("-S"),
            (HugePages::Transparent, false) => None,
        }
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            source: self.source.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            vcpus: self.vcpus,
        }
    }
}
