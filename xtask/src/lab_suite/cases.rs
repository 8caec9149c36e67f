//! The cases in the lab.

use crate::kernels::LINES;
use crate::lab::image::{GUEST_INITRD, guest_bzimage, guest_vmlinux};
use crate::suite::case::{self, Case, REPORT, Run, Seen, Status, TRACE};

/// The lab's KVM is a genuine one.
const ENGINE: &str = "kvm";

/// All cases, the quickest first.
pub(super) fn all() -> Vec<Case> {
    let mut cases = built_in();
    cases.extend(stock_kernels());
    cases.extend(particular_boots());
    cases.extend(deaths());
    cases
}

/// Guests that come with skep.
fn built_in() -> Vec<Case> {
    let mut cases = vec![
        guest("hello", 1).case("the built-in guest hello"),
        guest("smp", 4).case("the built-in guest smp, four vcpus"),
    ];
    for whom in ["auto", "broadcast", "kernel"] {
        let proof = match whom {
            "broadcast" => Seen::NotZero("knocks"),
            "kernel" => Seen::Zero("knocks"),
            _ => Seen::Said("powered off".to_owned()),
        };
        let storm = guest("storm", 2)
            .with("--shootdown", whom)
            // One costs the lab 20 ms and more: its kernel stops every vcpu for it.
            .with("--storm-invalidations", "200")
            .with("--report", REPORT)
            .sees(proof);
        cases.push(storm.case(&format!("a storm of invalidations under --shootdown {whom}")));
    }
    cases.push(
        guest("storm", 2)
            .with("--test-switch", "keep-host-mappings")
            .ends(Status::GuestFailed)
            .case("a translation that was not dropped is noticed by the guest"),
    );
    cases
}

/// What the project promises to boot, unmodified.
fn stock_kernels() -> Vec<Case> {
    let mut cases = Vec::new();
    for line in LINES {
        for (form, image) in [("bzImage", guest_bzimage(line)), ("vmlinux", guest_vmlinux(line))] {
            for cpus in [1, 2, 4] {
                let name = format!("Debian {line} {form} with {cpus} vcpus powers off");
                cases.push(linux(&image, cpus, "quiet").case(&name));
            }
        }
    }
    cases
}

/// Boots in which something besides the boot is of interest.
fn particular_boots() -> Vec<Case> {
    let newest = guest_bzimage("6.12");
    vec![
        linux(&newest, 2, "earlyprintk=ttyS0").case("a boot with its full log on the console"),
        linux(&newest, 2, "quiet")
            .memory("4G", 4096)
            .case("memory continues above the hole below 4 GiB"),
        linux(&newest, 2, "quiet skep.test=reboot")
            .ends(Status::AskedForReset)
            .case("a reboot through ACPI"),
        linux(&guest_vmlinux("6.12"), 1, "quiet reboot=k skep.test=reboot")
            .ends(Status::AskedForReset)
            .case("a reboot through the keyboard controller"),
        linux(&newest, 2, "quiet skep.test=stay")
            .timeout(20)
            .ends(Status::TimedOut)
            .sees_only(Seen::Said("did not end within 20 s".to_owned()))
            .case("a guest that never ends is ended by --timeout"),
        // The exercise takes the last 16 MiB, which end at 5 GiB.
        linux(&newest, 2, "quiet mem=5104M skep.test=stay skep.beats=20")
            .memory("4G", 4096 - 16)
            .with("--test-switch", "exercise")
            .sees(Seen::Said("exercised: 100 pauses, 1000 remaps".to_owned()))
            .case("Linux survives 100 pauses and 1000 remaps of memory it does not use"),
        linux(&newest, 2, "quiet")
            .with("--trace", TRACE)
            .with("--report", REPORT)
            .sees(Seen::WholeTrace)
            .case("a trace of a boot has a line for every fault"),
        linux(&newest, 2, "quiet")
            .with("--trace", TRACE)
            .with("--report", REPORT)
            .with("--trace-vcpus", "exact")
            .sees(Seen::WholeTrace)
            .sees(Seen::EveryVcpuKnown)
            .case("--trace-vcpus exact names the vcpu of every fault"),
    ]
}

/// Each actor dying, and hanging, while Linux runs.
fn deaths() -> Vec<Case> {
    let image = guest_bzimage("6.12");
    let mut cases = Vec::new();
    for actor in ["pmap", "machine", "loader", "console", "tracer", "vcpu1"] {
        for (how, words) in [("panic", "died"), ("hang", "hangs")] {
            let status = match actor {
                "pmap" => Status::PmapDied,
                _ => Status::ActorDied,
            };
            let name = actor.replace("vcpu", "vcpu ");
            let death = linux(&image, 2, "quiet skep.test=stay")
                .with("--test-switch", &format!("{actor}-{how}"))
                .with("--trace", TRACE)
                .ends(status)
                .sees_only(Seen::Said(format!("the {name} actor {words}")));
            cases.push(death.case(&format!("Linux runs and the {actor} actor {how}s")));
        }
    }
    cases
}

fn guest(name: &str, cpus: u32) -> Run {
    case::guest(ENGINE, name, cpus)
}

fn linux(image: &str, cpus: u32, cmdline: &str) -> Run {
    case::linux(ENGINE, image, GUEST_INITRD, cpus, cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let mut names: Vec<String> = all().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
