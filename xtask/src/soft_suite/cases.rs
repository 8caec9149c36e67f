//! The cases on the software engine: the everyday ones, and those of `--all`.

use std::path::Path;

use crate::fetch::Fetched;
use crate::kernels::LINES;
use crate::lab::image::{GUEST_INITRD, guest_bzimage, guest_vmlinux};
use crate::suite::case::{self, Case, REPORT, Run, Seen, Status};

const ENGINE: &str = "soft";

/// What guests boot: a kernel of each line in both forms, and their initrd.
pub(super) struct Images {
    kernels: Vec<Kernel>,
    initrd: String,
}

struct Kernel {
    line: &'static str,
    bzimage: String,
    vmlinux: String,
}

impl Images {
    pub(super) fn fetched(fetched: &Fetched, initrd: &Path) -> Self {
        let name = |path: &Path| path.display().to_string();
        let kernels = fetched.kernels.iter().map(|guest| Kernel {
            line: guest.line,
            bzimage: name(&guest.shipped.bzimage()),
            vmlinux: name(&guest.unpacked.vmlinux()),
        });
        Self { kernels: kernels.collect(), initrd: name(initrd) }
    }

    /// As the lab calls them.
    pub(super) fn by_name() -> Self {
        let kernel = |line: &&'static str| Kernel {
            line,
            bzimage: guest_bzimage(line),
            vmlinux: guest_vmlinux(line),
        };
        Self { kernels: LINES.iter().map(kernel).collect(), initrd: GUEST_INITRD.to_owned() }
    }

    fn linux(&self, image: &str, cpus: u32, cmdline: &str) -> Run {
        case::linux(ENGINE, image, &self.initrd, cpus, cmdline)
            .with("--report", REPORT)
            .sees(Seen::NothingUnknown)
    }

    /// The newest kernel as Debian ships it.
    fn newest(&self, cpus: u32, cmdline: &str) -> Run {
        let newest = self.kernels.last().expect("there is a line of kernels");
        self.linux(&newest.bzimage, cpus, cmdline)
    }
}

/// All cases, or the everyday ones of them.
pub(super) fn cases(images: &Images, all: bool) -> Vec<Case> {
    let mut cases = boots(images, all);
    cases.extend(endings(images));
    cases.extend(work(images));
    if all {
        cases.extend(layouts(images));
    }
    cases
}

/// What the project promises to boot, unmodified. Every day each number of vcpus, each line and each form
/// has its turn, not each of their combinations.
fn boots(images: &Images, all: bool) -> Vec<Case> {
    const EVERYDAY: [(&str, &str, u32); 4] = [
        ("6.12", "bzImage", 2),
        ("6.12", "vmlinux", 1),
        ("6.1", "bzImage", 1),
        ("6.1", "vmlinux", 4),
    ];
    let mut cases = Vec::new();
    for kernel in &images.kernels {
        for (form, image) in [("bzImage", &kernel.bzimage), ("vmlinux", &kernel.vmlinux)] {
            for cpus in [1, 2, 4] {
                let line = kernel.line;
                if all || EVERYDAY.contains(&(line, form, cpus)) {
                    let name = format!("soft: Debian {line} {form} with {cpus} vcpus powers off");
                    cases.push(images.linux(image, cpus, "quiet").case(&name));
                }
            }
        }
    }
    cases
}

fn endings(images: &Images) -> Vec<Case> {
    vec![
        images
            .newest(2, "quiet skep.test=reboot")
            .ends(Status::AskedForReset)
            .case("soft: a reboot through ACPI"),
        images
            .newest(1, "quiet")
            .memory("4G", 4096)
            .case("soft: memory continues above the hole below 4 GiB"),
    ]
}

/// Not only a boot: a hash, packing, many processes, four at once.
fn work(images: &Images) -> Vec<Case> {
    let name = "soft: four vcpus work as this machine does: hashing, packing, forking";
    let work = images
        .newest(4, "quiet skep.test=work")
        .timeout(600)
        .sees(Seen::SameWork)
        .sees(Seen::Line("busy_cpus=4".to_owned()));
    vec![work.case(name)]
}

/// Accessed and dirty bits set by whoever walks, or by faults; leaves of 2 MiB, or none; and a boot of which
/// every use of a translation is checked.
fn layouts(images: &Images) -> Vec<Case> {
    let mut cases = Vec::new();
    for who in ["hw", "emulated"] {
        for leaves in ["on", "off"] {
            let name = format!("soft: a boot with --ad {who} --superpages {leaves}");
            let run = images.newest(2, "quiet").with("--ad", who).with("--superpages", leaves);
            cases.push(run.case(&name));
        }
    }
    cases.push(
        images
            .newest(1, "quiet")
            .timeout(1200)
            .switched("--check-translations")
            .case("soft: a boot of which every use of a translation is checked"),
    );
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_has_each_line_each_form_and_each_number_of_vcpus() {
        let cases = cases(&Images::by_name(), false);
        let somewhere = |word: &str| cases.iter().any(|case| case.name.contains(word));
        for line in LINES {
            assert!(somewhere(&format!("Debian {line} ")), "{line}");
        }
        for word in ["bzImage", "vmlinux", "with 1 ", "with 2 ", "with 4 ", "work"] {
            assert!(somewhere(word), "{word}");
        }
    }

    #[test]
    fn all_is_more_and_every_case_asks_for_the_software_engine() {
        let images = Images::by_name();
        let (everyday, all) = (cases(&images, false), cases(&images, true));
        assert!(everyday.iter().all(|case| all.iter().any(|other| other.name == case.name)));
        assert_eq!(all.len(), 12 + 3 + 5);
        for case in all {
            assert!(case.arguments.join(" ").starts_with("run --engine soft "), "{}", case.name);
            assert!(case.name.starts_with("soft: "), "{}", case.name);
        }
    }
}
