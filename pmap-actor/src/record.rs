//! What the trace keeps of each nested fault.

use actors::contract::space::FaultOrigin;
use actors::{Access, Gpa, VcpuId};
use serde::Serialize;

use crate::vmspace::Served;

/// What was done about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// A fresh page of zeroes.
    ZeroFilled,
    /// The page was in its object already.
    MappedExisting,
    /// The page came back from the compressed tier or from disk.
    PagedIn,
    /// Somebody was faster.
    AlreadyThere,
    /// Stores are allowed (again).
    WriteUnprotected,
    /// The access was ended with an error.
    Refused,
}

impl Action {
    pub(crate) fn of(served: Served) -> (Self, u64) {
        match served {
            Served::ZeroFilled(pages) => (Self::ZeroFilled, pages),
            Served::MappedExisting(pages) => (Self::MappedExisting, pages),
            Served::PagedIn => (Self::PagedIn, 1),
            Served::AlreadyThere => (Self::AlreadyThere, 0),
            Served::WriteUnprotected => (Self::WriteUnprotected, 0),
        }
    }
}

/// One nested fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// From the machine's start to the moment the pmap saw the fault.
    pub time_ns: u64,
    /// Who touched it; unknown when a kernel worker took the fault in the vcpu's stead.
    pub vcpu: Option<VcpuId>,
    /// Where: to the byte, or, from an engine that does not say (KVM), the page.
    pub gpa: Gpa,
    /// With what intent. (KVM tells a fetch from no load.)
    pub access: Access,
    /// What the vcpu was doing, where the engine says so. KVM's does not.
    pub origin: Option<FaultOrigin>,
    /// What was done.
    pub action: Action,
    /// Pages that became reachable.
    pub pages: u64,
    /// From the moment the pmap saw it to the end of the call that resolved it.
    pub service_ns: u64,
}
