//! Whether what was asked for about memory that leaves can be had at all. Everything is looked at before anything
//! is made.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use actors::PAGE_SIZE;
use actors::swap::SwapSpec;
use pmap_actor::host::huge::HUGE;

use crate::outcome::ExitStatus;
use crate::spec::{HugePages, MachineSpec};

/// What one vcpu must have in memory at once, generously: an instruction reaches at most 14 pages (two of code, two for
/// each of two operands; and, for its exception, two each of the interrupt table, descriptor table, task segment and
/// stack), each through four tables of the guest's: 70 pages. The rest is room for what comes along.
const PER_VCPU: u64 = 1 << 20;
/// Pages on their way out and in, which are in memory until they have arrived.
const UNDERWAY: u64 = 4 << 20;
/// A page's place in the swap file is a number of 28 bits.
const MOST_SLOTS: u64 = 1 << 28;

/// Why memory cannot leave as was asked for.
#[derive(Debug, thiserror::Error)]
pub enum BadPaging {
    /// Wired memory never leaves.
    #[error(
        "{option} keeps all memory resident, so nothing would ever go to --swap {}: leave out one of them",
        path.display()
    )]
    WiredWithSwap {
        /// What keeps it.
        option: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// Wired memory never leaves.
    #[error(
        "{option} keeps all {memory} bytes of memory resident, and --resident allows {limit}: leave out one of them"
    )]
    WiredBeyondLimit {
        /// What keeps it.
        option: &'static str,
        /// All of it, in bytes.
        memory: u64,
        /// What may be resident, in bytes.
        limit: u64,
    },
    /// Memory of huge pages, mapped by small ones.
    #[error(
        "--superpages off maps the guest's memory by pages of 4 KiB, and --huge-pages reserved takes pages of 2 MiB \
         for it that nothing would profit from: leave out one of them"
    )]
    ReservedWithoutSuperpages,
    /// Nothing of it can be aged.
    #[error(
        "--harvest-every looks at which pages were used, and all of --huge-pages reserved always counts as used: \
         leave out one of them"
    )]
    ReservedWithHarvests,
    /// Not whole huge pages.
    #[error(
        "--huge-pages reserved takes whole pages of 2 MiB, and -m {0} bytes are not a multiple of {HUGE} (below \
         and above 4 GiB)"
    )]
    ReservedUneven(u64),
    /// It would do nothing.
    #[error(
        "--resident {limit} bytes would limit nothing: the guest has {memory} bytes of memory (-m) in all"
    )]
    LimitBeyondMemory {
        /// What may be resident, in bytes.
        limit: u64,
        /// All of it, in bytes.
        memory: u64,
    },
    /// Not whole pages.
    #[error("--resident {0} bytes are not whole 4 KiB pages")]
    LimitNotPages(u64),
    /// The guest could not take one step.
    #[error(
        "--resident {limit} bytes are too few for {vcpus} vcpus: {minimum} is the least, {} for pages on their way \
         out and in, and {} for each vcpu, whose every instruction must find all that it touches in memory at once",
        UNDERWAY,
        PER_VCPU
    )]
    LimitTooSmall {
        /// What may be resident, in bytes.
        limit: u64,
        /// The least that may be asked for, in bytes.
        minimum: u64,
        /// How many vcpus.
        vcpus: u16,
    },
    /// No room in the swap file at all.
    #[error("--swap {},size=0 has no room for anything", .0.display())]
    EmptySwap(PathBuf),
    /// Not whole pages.
    #[error("--swap {}: {bytes} bytes are not whole 4 KiB pages", path.display())]
    SwapNotPages {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
    },
    /// More slots than can be numbered.
    #[error("--swap {}: {bytes} bytes are more than {MOST_SLOTS} pages of 4 KiB", path.display())]
    SwapTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, in bytes.
        bytes: u64,
    },
    /// The file cannot be one.
    #[error("--swap {}: {what}", path.display())]
    SwapKind {
        /// The file.
        path: PathBuf,
        /// What is there instead.
        what: &'static str,
    },
    /// The host does not let us write it.
    #[error("--swap {} cannot be written: {why}", path.display())]
    SwapUnwritable {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        why: io::Error,
    },
}

impl BadPaging {
    /// The command's exit status.
    #[must_use]
    pub fn exit_status(&self) -> ExitStatus {
        match self {
            Self::SwapKind { .. } | Self::SwapUnwritable { .. } => ExitStatus::Error,
            _ => ExitStatus::Usage,
        }
    }
}

/// Whether the machine's swap file and limits can be had.
pub(crate) fn check(spec: &MachineSpec) -> Result<(), BadPaging> {
    if spec.huge_pages == HugePages::Reserved {
        check_reserved(spec)?;
    }
    if let Some(option) = spec.keeps_all()
        && let Some(swap) = &spec.swap
    {
        return Err(BadPaging::WiredWithSwap { option, path: swap.path.clone() });
    }
    if let Some(limit) = spec.resident_limit_bytes {
        check_limit(limit, spec)?;
    }
    spec.swap.as_ref().map_or(Ok(()), check_swap)
}

fn check_reserved(spec: &MachineSpec) -> Result<(), BadPaging> {
    if !spec.superpages {
        return Err(BadPaging::ReservedWithoutSuperpages);
    }
    if spec.harvest_every.is_some() {
        return Err(BadPaging::ReservedWithHarvests);
    }
    // A layout that is none is told by whoever makes it.
    let layout = spec.layout().ok();
    if layout.is_some_and(|layout| layout.ranges().any(|part| !part.len().is_multiple_of(HUGE))) {
        return Err(BadPaging::ReservedUneven(spec.memory_bytes));
    }
    Ok(())
}

fn check_limit(limit: u64, spec: &MachineSpec) -> Result<(), BadPaging> {
    let memory = spec.memory_bytes;
    if limit > memory {
        return Err(BadPaging::LimitBeyondMemory { limit, memory });
    }
    // A guest with little memory may have all of it.
    let minimum = (UNDERWAY + PER_VCPU * u64::from(spec.vcpus)).min(memory);
    if limit < minimum {
        return Err(BadPaging::LimitTooSmall { limit, minimum, vcpus: spec.vcpus });
    }
    if !limit.is_multiple_of(PAGE_SIZE) {
        return Err(BadPaging::LimitNotPages(limit));
    }
    if let Some(option) = spec.keeps_all().filter(|_| limit < memory) {
        return Err(BadPaging::WiredBeyondLimit { option, memory, limit });
    }
    Ok(())
}

fn check_swap(swap: &SwapSpec) -> Result<(), BadPaging> {
    let path = swap.path.clone();
    match swap.bytes {
        Some(0) => return Err(BadPaging::EmptySwap(path)),
        Some(bytes) if !bytes.is_multiple_of(PAGE_SIZE) => {
            return Err(BadPaging::SwapNotPages { path, bytes });
        }
        Some(bytes) if bytes / PAGE_SIZE > MOST_SLOTS => {
            return Err(BadPaging::SwapTooLarge { path, bytes });
        }
        _ => {}
    }
    match fs::metadata(&path) {
        Ok(there) if there.is_dir() => {
            Err(BadPaging::SwapKind { path, what: "that is a directory: name a file in it" })
        }
        Ok(there) if !there.is_file() && !there.file_type().is_block_device() => {
            let what = "that is neither a regular file nor a block device";
            Err(BadPaging::SwapKind { path, what })
        }
        Ok(_) => OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map(drop)
            .map_err(|why| BadPaging::SwapUnwritable { path, why }),
        Err(_) => try_to_create(&path).map_err(|why| BadPaging::SwapUnwritable { path, why }),
    }
}

/// Makes the file and takes it away again: whoever swaps makes it for good.
fn try_to_create(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use actors::contract::boot::BootSource;

    use super::*;

    fn spec() -> MachineSpec {
        let mut spec = MachineSpec::new(BootSource::Builtin("hello"));
        spec.vcpus = 4;
        spec
    }

    fn limited(limit: u64) -> MachineSpec {
        MachineSpec { resident_limit_bytes: Some(limit), ..spec() }
    }

    fn swapped(path: &Path, bytes: Option<u64>) -> MachineSpec {
        MachineSpec { swap: Some(SwapSpec { path: path.to_owned(), bytes }), ..spec() }
    }

    fn why(spec: &MachineSpec) -> String {
        check(spec).expect_err("it makes no sense").to_string()
    }

    #[test]
    fn a_limit_lies_between_what_a_step_takes_and_all_there_is() {
        check(&limited(8 << 20)).unwrap();
        check(&limited(256 << 20)).unwrap();
        let least = why(&limited((8 << 20) - 4096));
        assert!(least.contains("8388608 is the least") && least.contains("4 vcpus"), "{least}");
        assert!(why(&limited((256 << 20) + 4096)).contains("limit nothing"));
        assert!(why(&limited((9 << 20) + 1)).contains("whole 4 KiB pages"));
        // All of a small guest may be resident.
        check(&MachineSpec { memory_bytes: 2 << 20, ..limited(2 << 20) }).unwrap();
    }

    #[test]
    fn wired_memory_goes_with_neither_a_swap_file_nor_a_limit() {
        let wired = MachineSpec { wire: true, ..limited(64 << 20) };
        let sentence = why(&wired);
        assert!(sentence.contains("-S") && sentence.contains("--resident"), "{sentence}");
        let wired = MachineSpec { wire: true, ..swapped(Path::new("s"), None) };
        let sentence = why(&wired);
        assert!(sentence.contains("-S") && sentence.contains("--swap s"), "{sentence}");
        check(&MachineSpec { wire: true, ..limited(256 << 20) }).unwrap();
    }

    #[test]
    fn reserved_huge_pages_are_whole_stay_and_are_mapped_as_such() {
        let reserved = |spec| MachineSpec { huge_pages: HugePages::Reserved, ..spec };
        check(&reserved(spec())).unwrap();
        check(&reserved(limited(256 << 20))).unwrap();
        for (spec, other) in [
            (limited(64 << 20), "--resident"),
            (swapped(Path::new("s"), None), "--swap s"),
            (MachineSpec { superpages: false, ..spec() }, "--superpages off"),
            (MachineSpec { harvest_every: Some(Duration::ZERO), ..spec() }, "--harvest-every"),
            (MachineSpec { memory_bytes: 3 << 20, ..spec() }, "-m 3145728"),
            // All of it is whole, but not its part below 4 GiB.
            (MachineSpec { lowmem_limit: 3 << 20, memory_bytes: 4 << 20, ..spec() }, "-m 4194304"),
        ] {
            let sentence = why(&reserved(spec));
            assert!(sentence.contains("--huge-pages reserved"), "{sentence}");
            assert!(sentence.contains(other), "{sentence}");
        }
    }

    #[test]
    fn a_swap_file_has_room_in_whole_pages_that_can_be_numbered() {
        let path = Path::new("/nonexistent/swap");
        assert!(why(&swapped(path, Some(0))).contains("no room"));
        assert!(why(&swapped(path, Some(6 << 10))).contains("whole 4 KiB pages"));
        assert!(why(&swapped(path, Some((1 << 40) + 4096))).contains("more than 268435456 pages"));
        // All else being well it is the path that is wrong.
        assert!(why(&swapped(path, Some(1 << 40))).contains("cannot be written"));
    }

    #[test]
    fn a_swap_file_is_a_regular_file_that_can_be_written_and_a_look_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("skep-paging-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("swap");
        let fresh = check(&swapped(&file, None));
        let is_left = file.exists();
        fs::write(&file, "kept").unwrap();
        let existing = check(&swapped(&file, None));
        let kept = fs::read_to_string(&file);
        let directory = why(&swapped(&folder, None));
        let device = why(&swapped(Path::new("/dev/null"), None));
        fs::remove_dir_all(&folder).unwrap();
        fresh.unwrap();
        assert!(!is_left);
        existing.unwrap();
        assert_eq!(kept.unwrap(), "kept");
        assert!(directory.contains("is a directory"), "{directory}");
        assert!(device.contains("neither a regular file"), "{device}");
    }
}
