//! What a monitor occupies beside its guest's memory, from `/proc/PID/smaps`.

use std::fs;

/// Resident memory of a monitor, in kB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Occupied {
    /// Mappings that are guest memory: at least half as large as the guest's.
    pub(super) guest: u64,
    /// Pages of its own that are in no file.
    pub(super) anonymous: u64,
    /// Pages of files: its program, its libraries, images it has mapped.
    pub(super) file: u64,
}

/// What the process occupies, whose guest has `guest_kb` of memory.
///
/// Nothing when the process is gone.
pub(super) fn of_process(id: u32, guest_kb: u64) -> Option<Occupied> {
    let smaps = fs::read_to_string(format!("/proc/{id}/smaps")).ok()?;
    Some(sum(&smaps, guest_kb))
}

fn sum(smaps: &str, guest_kb: u64) -> Occupied {
    let mut occupied = Occupied::default();
    let mut mapping = Mapping::default();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else {
            continue;
        };
        let kb = || value.parse().unwrap_or(0);
        match name {
            "Size:" => mapping.size = kb(),
            "Rss:" => mapping.resident = kb(),
            "Anonymous:" => mapping.anonymous = kb(),
            // The last line of each mapping.
            "VmFlags:" => std::mem::take(&mut mapping).add_to(&mut occupied, guest_kb),
            // The first line: "7f00-7f10 rw-s 0000 00:01 1234 /memfd:ram (deleted)"; or skep's own name for it.
            _ if !name.ends_with(':') => {
                mapping.is_memfd = line.contains("/memfd:") || line.contains("/skep-guest-memory");
            }
            _ => {}
        }
    }
    occupied
}

#[derive(Default)]
struct Mapping {
    is_memfd: bool,
    size: u64,
    resident: u64,
    anonymous: u64,
}

impl Mapping {
    fn add_to(self, occupied: &mut Occupied, guest_kb: u64) {
        // Guests above 3 GiB have it in two pieces, so half of it is enough.
        if self.size >= guest_kb / 2 {
            // A page of a memfd counts once per view of it; the largest view is all.
            occupied.guest = if self.is_memfd {
                occupied.guest.max(self.resident)
            } else {
                occupied.guest + self.resident
            };
        } else if self.is_memfd {
            occupied.anonymous += self.resident;
        } else {
            occupied.anonymous += self.anonymous;
            occupied.file += self.resident.saturating_sub(self.anonymous);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(name: &str, size: u64, resident: u64, anonymous: u64) -> String {
        format!(
            "7f00-7f10 rw-p 00000000 00:01 1234    {name}\n\
             Size: {size} kB\nRss: {resident} kB\nAnonymous: {anonymous} kB\nVmFlags: rd wr\n"
        )
    }

    #[test]
    fn guest_memory_is_told_from_the_monitors_own_pages_and_its_files() {
        let smaps = [
            mapping("/usr/bin/monitor", 4000, 300, 20),
            mapping("[heap]", 200, 100, 100),
            mapping("", 524_288, 80_000, 80_000),
        ]
        .concat();
        let expected = Occupied { guest: 80_000, anonymous: 120, file: 280 };
        assert_eq!(sum(&smaps, 524_288), expected);
    }

    #[test]
    fn two_views_of_one_memfd_are_one_memory() {
        let smaps = [
            mapping("/memfd:ram (deleted)", 524_288, 80_000, 0),
            mapping("/memfd:ram (deleted)", 524_288, 70_000, 0),
        ]
        .concat();
        assert_eq!(sum(&smaps, 524_288).guest, 80_000);
    }
}
