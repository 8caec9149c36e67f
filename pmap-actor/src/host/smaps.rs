//! What the host says of the guest view in `/proc/self/smaps`: how much is mapped, and how much of it by huge
//! entries. A walk over what is mapped: some milliseconds for each GiB.

use std::fs;
use std::io;

use actors::contract::host::ViewMapping;

use super::memory::GuestMemory;
use super::pagemap::Stretch;

impl GuestMemory {
    /// How the host maps the guest view now.
    ///
    /// # Errors
    ///
    /// The operating system's: no `/proc`, or a kernel that has no smaps (`CONFIG_PROC_PAGE_MONITOR`).
    pub fn host_mapping(&self) -> io::Result<ViewMapping> {
        let views = self.slots();
        let views: Vec<_> = views
            .map(|slot| Stretch { start: slot.host, end: slot.host + slot.range.len() })
            .collect();
        Ok(sum(&fs::read_to_string("/proc/self/smaps")?, &views))
    }
}

/// Adds up the fields of every mapping that lies in one of `views`. A line that is neither a mapping's first nor a
/// field of interest is passed over: kernels differ in how many there are.
fn sum(smaps: &str, views: &[Stretch]) -> ViewMapping {
    let mut sum = ViewMapping::default();
    let mut is_ours = false;
    for line in smaps.lines() {
        if let Some(mapping) = mapping(line) {
            is_ours =
                views.iter().any(|view| view.start <= mapping.start && mapping.end <= view.end);
            continue;
        }
        let Some((name, value)) = line.split_once(':').filter(|_| is_ours) else { continue };
        let field = match name {
            "Rss" => &mut sum.rss_bytes,
            "AnonHugePages" => &mut sum.anon_huge_bytes,
            "ShmemPmdMapped" => &mut sum.shmem_huge_bytes,
            "FilePmdMapped" => &mut sum.file_huge_bytes,
            "Shared_Hugetlb" | "Private_Hugetlb" => &mut sum.reserved_huge_bytes,
            _ => continue,
        };
        let kilobytes: Option<u64> = value.trim().trim_end_matches(" kB").parse().ok();
        *field = field.saturating_add(kilobytes.unwrap_or(0).saturating_mul(1024));
    }
    sum
}

/// The addresses that a mapping's first line begins with: `start-end`, hexadecimal.
fn mapping(line: &str) -> Option<Stretch> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    Some(Stretch { start: address(start)?, end: address(end)? })
}

#[cfg(test)]
mod tests {
    use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
    use actors::{Gpa, GpaRange};

    use super::*;
    use crate::host::huge::HUGE;

    const SMAPS: &str = "\
55d0-55d8 r--p 00000000 fe:01 1 /bin/ab-cd
Rss:                 400 kB
ShmemPmdMapped:      400 kB
7f00-7f40 rw-s 00000000 00:01 2053 /memfd:skep-guest-memory (deleted)
Size:               9999 kB
Rss:                3072 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
FilePmdMapped:         0 kB
VmFlags: rd wr sh mr mw me ms sd
7f40-7f80 rw-s 00000040 00:01 2053 /memfd:skep-guest-memory (deleted)
Rss:                   8 kB
Shared_Hugetlb:     4096 kB
Private_Hugetlb:    2048 kB
7f80-7fc0 rw-s 00000080 00:01 2053 /memfd:skep-guest-memory (deleted)
Rss:                  16 kB
";

    #[test]
    fn only_mappings_inside_the_view_count_and_all_of_them() {
        let expected = ViewMapping {
            rss_bytes: 3080 << 10,
            shmem_huge_bytes: 2 << 20,
            reserved_huge_bytes: 6 << 20,
            ..ViewMapping::default()
        };
        let found = sum(SMAPS, &[Stretch { start: 0x7f00, end: 0x7f80 }]);
        assert_eq!(found, expected);
        assert_eq!((found.mapped_bytes(), found.huge_bytes()), (9224 << 10, 8 << 20));
        assert_eq!(sum(SMAPS, &[]), ViewMapping::default());
        assert_eq!(sum("", &[Stretch { start: 0, end: u64::MAX }]), ViewMapping::default());
    }

    #[test]
    fn what_is_touched_through_the_view_is_mapped_there_and_what_others_wrote_is_not() {
        let layout = MemoryLayout::split(4 * HUGE, LOWMEM_LIMIT, 48).unwrap();
        let memory = GuestMemory::new(layout).unwrap();
        assert_eq!(memory.host_mapping().unwrap(), ViewMapping::default());
        memory.populate(GpaRange::new(Gpa(0), HUGE).unwrap()).unwrap();
        assert_eq!(memory.host_mapping().unwrap().mapped_bytes(), 0);
        memory.populate_for_walkers(GpaRange::new(Gpa(0), 0x3000).unwrap()).unwrap();
        assert_eq!(memory.host_mapping().unwrap().mapped_bytes(), 0x3000);
    }
}
