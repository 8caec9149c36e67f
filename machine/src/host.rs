//! What a host offers to machines: looked at one by one, without making any.

use std::fs;
use std::os::unix::fs::MetadataExt;

use pmap_actor::host::huge::{self, HugeSupport};
use pmap_actor::host::userfault::{Userfault, feature};
use serde::Serialize;
use vcpu_actor::engine::kvm::{KvmFlavor, KvmSystem};

use crate::engines::fitting;

/// One thing a machine needs, or profits from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// Whether it is there and may be used.
    pub works: bool,
    /// Whether `skep run` cannot do without it.
    pub needed: bool,
    /// What was found, in words.
    pub detail: String,
    /// The one command that mends it, where there is one.
    pub remedy: Option<String>,
}

impl Finding {
    fn works(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, works: true, needed: true, detail: detail.into(), remedy: None }
    }

    fn lacks(what: &'static str, detail: impl Into<String>, remedy: Option<&str>) -> Self {
        let remedy = remedy.map(str::to_owned);
        Self { what, works: false, needed: true, detail: detail.into(), remedy }
    }

    fn optional(self) -> Self {
        Self { needed: false, ..self }
    }
}

/// Looks at everything.
#[must_use]
pub fn survey() -> Vec<Finding> {
    let mut findings = vec![engine()];
    findings.push(kvm());
    findings.push(nested_paging());
    findings.push(userfault());
    findings.push(cpus());
    findings.push(memory());
    findings.push(locked_memory());
    findings.push(shared_huge_pages());
    findings.push(reserved_huge_pages());
    findings
}

/// The software engine needs nothing that a host could lack, so there always is one.
fn engine() -> Finding {
    let chosen = fitting();
    Finding::works("engine", format!("--engine auto takes {}: {}", chosen.kind, chosen.why))
}

/// What only KVM needs is no lack: the software engine does without.
fn kvm() -> Finding {
    const WHAT: &str = "/dev/kvm";
    let finding = match KvmSystem::open() {
        Ok(system) => {
            let facts = system.facts();
            let detail = format!(
                "{}; up to {} vcpus ({} recommended), {} memory slots, {}-bit guest-physical addresses",
                facts.flavor,
                facts.max_vcpus,
                facts.recommended_vcpus,
                facts.max_slots,
                facts.address_bits
            );
            Finding::works(WHAT, detail)
        }
        // The sentence says what to do.
        Err(error) => Finding::lacks(WHAT, error.to_string(), None),
    };
    finding.optional()
}

fn nested_paging() -> Finding {
    const WHAT: &str = "hardware-assisted";
    let finding = match KvmFlavor::detect() {
        flavor @ KvmFlavor::Hardware(_) => Finding::works(WHAT, flavor.to_string()),
        flavor => {
            let detail = format!(
                "KVM here is {flavor}: the built-in guests run on it, stock kernels do not; on the software \
                 engine they do"
            );
            Finding::lacks(WHAT, detail, None)
        }
    };
    finding.optional()
}

fn userfault() -> Finding {
    const WHAT: &str = "userfaultfd";
    let finding = match Userfault::open() {
        Ok(_) => {
            let features = Userfault::features().unwrap_or(feature::NEEDED);
            Finding::works(WHAT, format!("for kernel faults too; features {features:#x}"))
        }
        Err(error) => {
            Finding::lacks(WHAT, error.to_string(), Some("sudo chmod a+rw /dev/userfaultfd"))
        }
    };
    finding.optional()
}

fn cpus() -> Finding {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let detail = format!("{cpus}; more vcpus than cpus run, and share them");
    Finding::works("cpus", detail).optional()
}

/// The number in a field of `/proc/meminfo`: kB, for what is a size.
#[must_use]
pub fn meminfo(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn memory() -> Finding {
    let (total, available) = (meminfo("MemTotal"), meminfo("MemAvailable"));
    let detail = match (total, available) {
        (Some(total), Some(available)) => format!(
            "{} MiB, {} MiB available: guests may be given more, and may touch this much",
            total / 1024,
            available / 1024
        ),
        _ => "unknown: /proc/meminfo cannot be read".to_owned(),
    };
    Finding::works("memory", detail).optional()
}

fn locked_memory() -> Finding {
    const WHAT: &str = "locked memory (-S)";
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let soft = limit.and_then(|line| line.split_whitespace().next()).unwrap_or("unknown");
    // Root is not bound by the limit.
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    let finding = if is_root || soft == "unlimited" {
        Finding::works(WHAT, "without limit")
    } else {
        Finding::lacks(WHAT, format!("limited to {soft} bytes"), Some("ulimit -l unlimited"))
    };
    finding.optional()
}

/// Without them guests run on pages of 4 KiB.
fn shared_huge_pages() -> Finding {
    const WHAT: &str = "shared huge pages";
    let finding = match HugeSupport::probe() {
        Ok(HugeSupport { at_once }) => {
            let how = if at_once { "allocated in one piece" } else { "collapsed from 4 KiB pages" };
            Finding::works(WHAT, format!("2 MiB of guest memory can become one page ({how})"))
        }
        Err(why) => Finding::lacks(WHAT, why.to_string(), None),
    };
    finding.optional()
}

fn reserved_huge_pages() -> Finding {
    const WHAT: &str = "reserved huge pages";
    let finding = match huge::free_reserved() {
        Some(free) => Finding::works(WHAT, format!("{free} of 2 MiB to spare")),
        None => Finding::lacks(WHAT, "this kernel has none of 2 MiB (CONFIG_HUGETLBFS)", None),
    };
    finding.optional()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_needed_and_missing_says_what_to_do() {
        for finding in survey().into_iter().filter(|finding| finding.needed && !finding.works) {
            assert!(finding.detail.len() > 10 || finding.remedy.is_some(), "{finding:?}");
        }
    }
}
