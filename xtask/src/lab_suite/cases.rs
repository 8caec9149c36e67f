//! The cases: each a `skep` command line, the status it must end with, and what
//! must be seen in what it printed and wrote.

use crate::initrd::{GOODBYE, HELLO};
use crate::kernels::LINES;
use crate::lab::image::{GUEST_INITRD, guest_bzimage, guest_vmlinux};

/// Where a case's trace goes, when it has one.
pub(super) const TRACE: &str = "/tmp/trace.jsonl";

/// Where a case's report goes, when it has one.
pub(super) const REPORT: &str = "/tmp/report.json";

/// What the status of a run of `skep` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Well = 0,
    AskedForReset = 3,
    GuestFailed = 5,
    TimedOut = 6,
    PmapDied = 7,
    ActorDied = 8,
}

/// What must be seen after a run of `skep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// This whole line on the guest's console.
    Line(String),
    /// This somewhere in what skep itself says.
    Said(String),
    /// The guest sees nearly all of this memory: the kernel keeps some of it.
    MemTotal {
        mib: u64,
    },
    /// As many lines in the trace as there are faults in the report.
    WholeTrace,
    /// No fault in the trace whose vcpu is unknown.
    EveryVcpuKnown,
    /// The report's number of this name is zero, or is not.
    Zero(&'static str),
    NotZero(&'static str),
}

/// One run of `skep`, and how it must go.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// What is claimed.
    pub(super) name: String,
    /// What skep is given.
    pub(super) arguments: Vec<String>,
    /// How it must end.
    pub(super) status: Status,
    /// What must be seen.
    pub(super) seen: Vec<Seen>,
}

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
            .with("--timeout", "20")
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

/// A run of `skep` on its way to a [`Case`].
#[derive(Clone, Debug)]
struct Run {
    options: Vec<(String, String)>,
    status: Status,
    seen: Vec<Seen>,
}

fn guest(name: &str, cpus: u32) -> Run {
    let run = Run { options: Vec::new(), status: Status::Well, seen: Vec::new() };
    run.with("--guest", name).with("-c", &cpus.to_string()).with("--timeout", "120")
}

/// A Linux guest of 512 MiB with our initrd, which must reach its first process
/// and see what it was given.
fn linux(image: &str, cpus: u32, cmdline: &str) -> Run {
    let run = Run {
        options: Vec::new(),
        status: Status::Well,
        seen: vec![Seen::Line(HELLO.to_owned()), Seen::Line(format!("nproc={cpus}"))],
    };
    run.with("--kernel", image)
        .with("--initrd", GUEST_INITRD)
        .with("--cmdline", &format!("console=ttyS0 panic=-1 {cmdline}"))
        .with("-c", &cpus.to_string())
        .with("--timeout", "240")
        .memory("512", 512)
}

impl Run {
    /// Sets an option, in the place of an earlier value.
    fn with(mut self, option: &str, value: &str) -> Self {
        self.options.retain(|(name, _)| name != option);
        self.options.push((option.to_owned(), value.to_owned()));
        self
    }

    /// Gives the guest memory, of which it must see about `mib`.
    fn memory(mut self, size: &str, mib: u64) -> Self {
        self.seen.retain(|seen| !matches!(seen, Seen::MemTotal { .. }));
        self.seen.push(Seen::MemTotal { mib });
        self.with("-m", size)
    }

    fn ends(self, status: Status) -> Self {
        Self { status, ..self }
    }

    fn sees(mut self, what: Seen) -> Self {
        self.seen.push(what);
        self
    }

    /// For a guest that may be ended before it has said anything.
    fn sees_only(self, what: Seen) -> Self {
        Self { seen: vec![what], ..self }
    }

    fn case(self, name: &str) -> Case {
        let mut seen = self.seen;
        let ends_itself = matches!(self.status, Status::Well | Status::AskedForReset);
        if ends_itself && seen.contains(&Seen::Line(HELLO.to_owned())) {
            seen.push(Seen::Line(GOODBYE.to_owned()));
        }
        let mut arguments = vec!["run".to_owned(), "--engine".to_owned(), "kvm".to_owned()];
        for (option, value) in self.options {
            arguments.extend([option, value]);
        }
        Case { name: name.to_owned(), arguments, status: self.status, seen }
    }
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

    #[test]
    fn a_linux_that_ends_itself_must_say_goodbye_and_another_need_not() {
        let goodbye = Seen::Line(GOODBYE.to_owned());
        assert!(linux("k", 1, "").case("a").seen.contains(&goodbye));
        let ended = linux("k", 1, "").ends(Status::TimedOut).case("b");
        assert!(!ended.seen.contains(&goodbye));
        assert!(!guest("hello", 1).case("c").seen.contains(&goodbye));
    }
}
