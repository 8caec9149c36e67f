//! Who may ask the pmap actor for what: map, unmap, protect, wire, hold, look.
//!
//! Every request that takes a translation away is answered only when its shootdown is
//! complete: after the answer no vcpu can reach memory through what was removed.
//!
//! A vcpu of an engine that walks our tables itself asks for what it could not find there
//! ([`SpaceRequest::Fault`]). It does so *out of the guest*, so no shootdown waits for it
//! while it waits; and its request is served even while a shootdown is on its way.

use tokio::sync::oneshot;

use crate::contract::device::{DmaMapping, NoPassthru, PassthruDevice, ScatterList};
use crate::contract::page::{
    Advice, DirtyConsumer, DirtyEpoch, Harvest, PageState, PagedOut, PmapTally, ReclaimTally,
    Resized, Settled, Touch, WorkingSetSample,
};
use crate::contract::vcpu::Break;
use crate::contract::verify::Verified;
use crate::{Access, Gpa, GpaRange, Gva, Protection, VcpuId};

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, SpaceError>>;

/// Why the pmap will not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// A map entry is there already.
    #[error("guest-physical {0} is mapped already")]
    Occupied(GpaRange),
    /// Part of the range has no map entry.
    #[error("guest-physical {0} is not (wholly) mapped")]
    NotMapped(GpaRange),
    /// The guest has no memory there at all.
    #[error("guest-physical {0} lies outside the guest's memory")]
    OutsideMemory(GpaRange),
    /// The map entry forbids it.
    #[error("guest-physical {at} does not allow {wanted:?}")]
    Forbidden {
        /// Where.
        at: Gpa,
        /// What was wanted.
        wanted: Protection,
    },
    /// The access that faulted has nothing to go to: no map entry, or one without rights.
    #[error("there is no memory at guest-physical {0}")]
    Hole(Gpa),
    /// Asked to unwire what is not wired, or to remove what is wired or held.
    #[error("guest-physical {range} is {state}")]
    WrongState {
        /// Where.
        range: GpaRange,
        /// "wired", "not wired", "held".
        state: &'static str,
    },
    /// The host refused.
    #[error("the host refused to {what}: {why}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The operating system's reason.
        why: String,
    },
    /// Asked for pages to leave, and there is nowhere to go.
    #[error(
        "guest-physical {0} cannot be paged out: the machine has neither a swap file nor a limit on memory"
    )]
    NoStore(GpaRange),
    /// Device memory has no contents of ours, and its translations stay.
    #[error("guest-physical {range} is device memory, which cannot be {what}")]
    Device {
        /// Where; or what of the range asked for is.
        range: GpaRange,
        /// "forgotten", "protected", "wired", "held", "freed".
        what: &'static str,
    },
    /// A device's memory does not go there.
    #[error("device memory cannot be mapped at guest-physical {range}: {why}")]
    BadDevice {
        /// Where.
        range: GpaRange,
        /// Why not.
        why: String,
    },
    /// Not with, or not without, a passthru device.
    #[error(transparent)]
    Passthru(#[from] NoPassthru),
    /// A consumer of dirty pages that does not exist, or an epoch that it does not have.
    #[error("{0}")]
    NoEpoch(String),
    /// The pmap actor is gone or does not answer.
    #[error("the pmap actor {0}")]
    Dead(&'static str),
}

/// What the pmap actor answers.
#[derive(Debug)]
pub enum SpaceRequest {
    /// "There is anonymous memory here from now on." Answered at once; pages come with
    /// the first touch.
    Map {
        /// Where; inside the guest's memory, not mapped.
        range: GpaRange,
        /// What the guest may do with it.
        protection: Protection,
        /// Answer.
        reply: Reply<()>,
    },
    /// "The guest sees this memory of a device here from now on", uncacheable and at once.
    MapDevice {
        /// Where; inside the guest's memory, not mapped, as long as `memory`.
        range: GpaRange,
        /// What it is to see.
        memory: ScatterList,
        /// What it may do with it: not execute.
        protection: Protection,
        /// Answer.
        reply: Reply<()>,
    },
    /// "This device reaches the guest's memory from now on." The first one has all of it wired.
    AssignPassthru {
        /// Which.
        device: PassthruDevice,
        /// Answer: what its IOMMU is to translate.
        reply: Reply<Vec<DmaMapping>>,
    },
    /// "This device does not reach the guest's memory any more." The last one has it unwired.
    UnassignPassthru {
        /// Which.
        device: PassthruDevice,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Forget this memory and what it held." The frames are free when answered.
    Unmap {
        /// Where; wholly mapped.
        range: GpaRange,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Forget the translations, keep the contents": the pmap is a cache of the map.
    Forget {
        /// Where; wholly mapped.
        range: GpaRange,
        /// Answer.
        reply: Reply<()>,
    },
    /// "From now on only this is allowed."
    Protect {
        /// Where; wholly mapped.
        range: GpaRange,
        /// What remains allowed, or is allowed again.
        protection: Protection,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Make it resident and never take it away" (`-S`, passthru).
    Wire {
        /// Where; wholly mapped.
        range: GpaRange,
        /// Answer.
        reply: Reply<()>,
    },
    /// "It may be taken away again."
    Unwire {
        /// Where; wholly wired.
        range: GpaRange,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Keep the pages of these ranges where they are until I release them." Pages that were absent exist then, even
    /// beyond the limit of what may be resident: whoever holds needs them now. The clock takes as many others out.
    Hold {
        /// Where; each wholly mapped.
        ranges: Vec<GpaRange>,
        /// What the holder will do.
        access: Protection,
        /// Answer.
        reply: Reply<()>,
    },
    /// "I am done with these." The pages enter the guest's tables in bulk if `install`.
    Release {
        /// As they were held.
        ranges: Vec<GpaRange>,
        /// Put what is resident of them into the guest's tables now.
        install: bool,
    },
    /// "What do the tables say about this address?" FreeBSD's `pmap_get_mapping`.
    Mapping {
        /// Where.
        at: Gpa,
        /// Answer: the raw entries from the root down; 1 to 4 of them.
        reply: Reply<Vec<u64>>,
    },
    /// "Who used these pages since I last asked, and who stored to them?" Read and cleared, all
    /// with one shootdown.
    Harvest {
        /// Where; wholly mapped.
        range: GpaRange,
        /// What to read and clear.
        what: Touch,
        /// Answer.
        reply: Reply<Harvest>,
    },
    /// "I want to know which pages are stored to." The first epoch has every page that is not
    /// absent now.
    BeginDirty {
        /// Answer.
        reply: Reply<DirtyConsumer>,
    },
    /// "Which were stored to since the epoch before?" What was stored before the answer is in it;
    /// what is stored after it will be in the next.
    TakeDirty {
        /// Who.
        consumer: DirtyConsumer,
        /// Answer.
        reply: Reply<DirtyEpoch>,
    },
    /// "This is what became of the epoch that I took."
    SettleDirty {
        /// Who.
        consumer: DirtyConsumer,
        /// Of the epoch.
        number: u64,
        /// What became of it.
        how: Settled,
        /// Answer.
        reply: Reply<()>,
    },
    /// "I want to know nothing more."
    EndDirty {
        /// Who.
        consumer: DirtyConsumer,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Put these pages out of memory." Answered when each of them is out or known to stay.
    PageOut {
        /// Where; wholly mapped.
        range: GpaRange,
        /// Answer.
        reply: Reply<PagedOut>,
    },
    /// "Make superpages of these blocks where that can be."
    Promote {
        /// Where; whole blocks of 2 MiB in it are meant.
        range: GpaRange,
        /// Answer.
        reply: Reply<Resized>,
    },
    /// "Make 4 KiB pages of these blocks."
    Demote {
        /// Where; blocks that it touches are meant.
        range: GpaRange,
        /// Answer.
        reply: Reply<Resized>,
    },
    /// "This is what I think of this memory."
    Advise {
        /// Where; wholly mapped.
        range: GpaRange,
        /// What.
        advice: Advice,
        /// Answer.
        reply: Reply<()>,
    },
    /// "What is the state of this page?"
    Page {
        /// Where.
        at: Gpa,
        /// Answer.
        reply: Reply<PageState>,
    },
    /// "Bump the generation and wait for every vcpu, but take nothing away."
    Raise {
        /// Answer: what it cost.
        reply: Reply<RaiseTimes>,
    },
    /// "My guest cannot go on without this." Asked by a vcpu that is out of the guest.
    /// Answered when the tables allow the access; or, after the machine was told, with
    /// why they never will: [`SpaceError::Hole`], [`SpaceError::Forbidden`],
    /// [`SpaceError::Host`].
    Fault {
        /// What the engine met.
        fault: NestedFault,
        /// Answer.
        reply: Reply<()>,
    },
    /// "Do your tables say what the host does?"
    Verify {
        /// Answer: what was compared, and where they differ.
        reply: Reply<Verified>,
    },
    /// "What have you counted?"
    Count {
        /// Answer.
        reply: oneshot::Sender<SpaceTally>,
    },
    /// For tests of the protocol: hold faults open.
    SetFaultService(FaultService),
    /// For tests of the supervision.
    Break(Break),
    /// "Close the fault channel and end." Nothing is raised or counted after the answer.
    Retire {
        /// Answer: what was counted until the end.
        reply: oneshot::Sender<SpaceTally>,
    },
}

/// An access that our tables did not allow, as an engine that walks them reports it: an EPT
/// violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Whose guest.
    pub vcpu: VcpuId,
    /// What it touched.
    pub gpa: Gpa,
    /// With what intent. (A walk that sets the guest's own accessed bits stores.)
    pub access: Access,
    /// How it came there.
    pub origin: FaultOrigin,
}

/// What the vcpu was doing when it faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultOrigin {
    /// The linear address that led there; none where there was none (a table walk that loads
    /// cr3's entries in advance, for one).
    pub gva: Option<Gva>,
    /// The access was to the guest's own page tables, on the way to `gva`.
    pub is_table_walk: bool,
    /// Of the instruction.
    pub rip: u64,
    /// The guest's page tables.
    pub cr3: u64,
}

/// When the pmap serves faults: always, save in tests that hold one open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FaultService {
    /// As they come.
    #[default]
    Prompt,
    /// Only while a shootdown waits for vcpus: what the protocol cannot do without.
    OnlyDuringShootdowns,
    /// Not at all.
    Never,
}

/// What one generation-only shootdown cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaiseTimes {
    /// From the raise to the last acknowledgement.
    pub completion_ns: u64,
    /// How many vcpus were in the guest and knocked on.
    pub knocked: u32,
}

/// What the pmap counted over its life. Histograms are summarised in [`Quantiles`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct SpaceTally {
    /// Nested faults served, by what was done.
    pub faults: FaultTally,
    /// From the moment the pmap saw the fault to the end of the call that resolved it.
    pub fault_service: Quantiles,
    /// Time spent serving faults, all together.
    pub fault_service_total_ns: u64,
    /// Leaves in the tables now.
    pub resident_leaves: u64,
    /// Bytes of guest memory the host holds now (the memfd's blocks).
    pub resident_bytes: u64,
    /// 4 KiB pages wired now.
    pub wired_pages: u64,
    /// Pages under a hold now.
    pub held_pages: u64,
    /// Table pages in use now, the root included.
    pub table_pages: u64,
    /// The generation: invalidations so far.
    pub generation: u64,
    /// Shootdowns.
    pub shootdowns: ShootdownTally,
    /// Superpages, accessed and dirty bits.
    pub pmap: PmapTally,
    /// What left memory, and what came back.
    pub reclaim: ReclaimTally,
    /// The working set over time, where harvests at intervals were asked for: the newest last.
    pub working_set: Vec<WorkingSetSample>,
    /// Looks at it that waited because bringing back what the one before them took cost the guest too much.
    pub late_looks: u64,
}

/// Nested faults by what was done about them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct FaultTally {
    /// All of them.
    pub total: u64,
    /// A fresh page of zeroes.
    pub zero_filled: u64,
    /// The page was in its object already; only the translation was missing.
    pub mapped_existing: u64,
    /// The page came back from the compressed tier or from disk.
    pub paged_in: u64,
    /// Somebody had resolved it already: the vcpu was woken.
    pub already_there: u64,
    /// A write to a page that is writable again.
    pub write_unprotected: u64,
    /// An access that cannot be allowed: a hole or a write to read-only memory.
    pub refused: u64,
    /// 4 KiB pages entered beyond the touched ones, by fault-around.
    pub pages_around: u64,
    /// Of `total`: the vcpu is known.
    pub vcpu_known: u64,
    /// Of `total`: a kernel worker took the fault, so the vcpu is not known.
    pub vcpu_unknown: u64,
}

/// Shootdowns and what they cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ShootdownTally {
    /// Invalidations raised.
    pub raised: u64,
    /// Knocks on vcpus that were in the guest.
    pub knocks: u64,
    /// From raise to last acknowledgement.
    pub latency: Quantiles,
    /// The host kernel's half: changing the host mapping, which flushes its own tables.
    pub kernel_half: Quantiles,
}

/// A histogram in a few numbers, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Quantiles {
    /// Samples.
    pub count: u64,
    /// Smallest.
    pub min_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 90 %.
    pub p90_ns: u64,
    /// 99 %.
    pub p99_ns: u64,
    /// 99.9 %.
    pub p999_ns: u64,
    /// Largest.
    pub max_ns: u64,
}
