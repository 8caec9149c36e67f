//! What the host's own counters say of a guest's memory.

use serde::Serialize;

/// Beside the pmap's own counters, and never mixed with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostMapping {
    /// Bytes of the guest view that the host maps by entries of 2 MiB now; none where the kernel cannot
    /// tell (Linux before 6.7).
    pub huge_bytes: Option<u64>,
    /// KVM's entries; none on the software engine, and where KVM does not count (Linux before 5.14).
    pub kvm: Option<KvmPages>,
}

/// Entries of KVM's own hidden tables now, by size: its statistics `pages_4k`, `pages_2m`, `pages_1g`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvmPages {
    /// Of 4 KiB.
    pub pages_4k: u64,
    /// Of 2 MiB.
    pub pages_2m: u64,
    /// Of 1 GiB.
    pub pages_1g: u64,
}
