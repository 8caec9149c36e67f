//! What the host's own counters say of a guest's memory.

use serde::Serialize;

/// Beside the pmap's own counters, and never mixed with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostMapping {
    /// The guest view; none where the host does not tell (a kernel without `CONFIG_PROC_PAGE_MONITOR`).
    pub view: Option<ViewMapping>,
    /// KVM's entries; none on the software engine, which has no tables of a kernel's, and where KVM does not count
    /// (Linux before 5.14).
    pub kvm: Option<KvmPages>,
}

/// How the host maps the guest view now: sums over its part of `/proc/self/smaps`, in bytes
/// (`Documentation/filesystems/proc.rst` in Linux).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ViewMapping {
    /// `Rss`: mapped, by pages of any size but reserved ones.
    pub rss_bytes: u64,
    /// `AnonHugePages`: of that, by entries of 2 MiB and anonymous. Guest memory never is.
    pub anon_huge_bytes: u64,
    /// `ShmemPmdMapped`: of that, by entries of 2 MiB and shared: what was promoted.
    pub shmem_huge_bytes: u64,
    /// `FilePmdMapped`: of that, by entries of 2 MiB and of a file. Guest memory never is.
    pub file_huge_bytes: u64,
    /// `Shared_Hugetlb` and `Private_Hugetlb`: mapped by reserved huge pages.
    pub reserved_huge_bytes: u64,
}

impl ViewMapping {
    /// All that is mapped, in bytes.
    #[must_use]
    pub fn mapped_bytes(&self) -> u64 {
        self.rss_bytes + self.reserved_huge_bytes
    }

    /// Of that, by entries of 2 MiB, in bytes.
    #[must_use]
    pub fn huge_bytes(&self) -> u64 {
        self.anon_huge_bytes
            + self.shmem_huge_bytes
            + self.file_huge_bytes
            + self.reserved_huge_bytes
    }
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
