//! What a run was like, in numbers. Units are in the keys.

use std::collections::BTreeMap;

use actors::contract::host::HostMapping;
use actors::contract::space::SpaceTally;
use actors::contract::vcpu::VcpuTally;
use serde::Serialize;
use shootdown::SeatCount;

use crate::engines::EngineKind;
use crate::outcome::ExitStatus;
use crate::spec::HugePages;
use crate::verification::Verification;

/// A finished run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which engine ran the guest.
    pub engine: EngineKind,
    /// What it is on this host ("KVM here is …"), or why it is not the other one.
    pub engine_detail: String,
    /// How many vcpus.
    pub vcpus: u16,
    /// How much memory the guest was given, in bytes.
    pub memory_bytes: u64,
    /// What it was made of.
    pub huge_pages: HugePages,
    /// The most of it that was allowed to be in memory, with what was kept compressed (`--resident`), in bytes.
    pub resident_limit_bytes: Option<u64>,
    /// How it ended, in words.
    pub outcome: String,
    /// The command's exit status.
    pub exit_status: u8,
    /// What the image turned out to be; nothing when it was never loaded.
    pub format: Option<&'static str>,
    /// Bytes the loader placed.
    pub loaded_bytes: u64,
    /// From the build's start to the machine built.
    pub build_ns: u64,
    /// From the start order to the guest loaded.
    pub load_ns: u64,
    /// From the first instruction to the end.
    pub run_ns: u64,
    /// Bytes the guest printed on its serial console.
    pub console_bytes: u64,
    /// Bytes of those that nobody took.
    pub console_lost_bytes: u64,
    /// Each vcpu.
    pub vcpu: Vec<VcpuReport>,
    /// Memory, faults and shootdowns; nothing when the pmap died.
    pub space: Option<SpaceTally>,
    /// What comparing the tables with everything else found, where that was asked for and could be done.
    pub verified: Option<Verification>,
    /// What the host's own counters say of the guest's memory at the end; nothing when the pmap was lost, or a vcpu did
    /// not come out.
    pub host_mapping: Option<HostMapping>,
    /// Instructions that the guest met and the software engine does not know, by name, and how often.
    pub unimplemented: BTreeMap<String, u64>,
    /// Threads that did not end within the deadline, by name.
    pub left_behind: Vec<String>,
}

/// One vcpu.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct VcpuReport {
    /// Which.
    pub vcpu: u16,
    /// What it counted.
    #[serde(flatten)]
    pub exits: VcpuTally,
    /// How its invalidations ended.
    #[serde(flatten)]
    pub flushes: Flushes,
}

/// How one vcpu's invalidations ended: each as one or the other, once.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Flushes {
    /// Entries into the guest that flushed.
    pub flushes_done: u64,
    /// Invalidations that needed no flush of their own.
    pub flushes_saved: u64,
}

impl From<SeatCount> for Flushes {
    fn from(count: SeatCount) -> Self {
        Self { flushes_done: count.done, flushes_saved: count.saved }
    }
}

impl Report {
    /// The exit status as a number.
    pub(crate) fn status(status: ExitStatus) -> u8 {
        status as u8
    }
}
