//! Names of things.

use std::fmt;

use serde::Serialize;

/// Which vcpu of a machine, counted from 0. Also its local APIC id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct VcpuId(pub u16);

impl VcpuId {
    /// Its place in an array of all vcpus.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for VcpuId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "vcpu {}", self.0)
    }
}

/// Who is who: the name an operator reads when an actor dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActorName {
    /// The supervisor.
    Machine,
    /// The owner of the vmspace.
    Pmap,
    /// The one who packs the pages that leave, and writes them to the swap file.
    Pageout,
    /// The one who reads pages from the swap file.
    Pagein,
    /// The one who places the first bytes.
    Loader,
    /// The guest's serial console on this terminal.
    Console,
    /// The one who writes the fault trace.
    Tracer,
    /// A virtual processor.
    Vcpu(VcpuId),
}

impl fmt::Display for ActorName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => out.write_str("machine"),
            Self::Pmap => out.write_str("pmap"),
            Self::Pageout => out.write_str("pageout"),
            Self::Pagein => out.write_str("pagein"),
            Self::Loader => out.write_str("loader"),
            Self::Console => out.write_str("console"),
            Self::Tracer => out.write_str("tracer"),
            Self::Vcpu(id) => write!(out, "{id}"),
        }
    }
}
