//! A case: a `skep` command line, the status it must end with, and what must be
//! seen in what it printed and wrote.

use std::time::Duration;

use crate::initrd::{GOODBYE, HELLO};

/// Where a case's trace goes, when it has one: in the folder it runs in.
pub(crate) const TRACE: &str = "trace.jsonl";

/// Where a case's report goes, when it has one.
pub(crate) const REPORT: &str = "report.json";

/// What the status of a run of `skep` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Well = 0,
    AskedForReset = 3,
    GuestFailed = 5,
    TimedOut = 6,
    PmapDied = 7,
    ActorDied = 8,
}

/// What must be seen after a run of `skep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
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
    /// The report names no instruction that the engine does not know.
    NothingUnknown,
    /// The guest's lines of work are those of this machine.
    SameWork,
}

/// One run of `skep`, and how it must go.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// What is claimed.
    pub(crate) name: String,
    /// What skep is given.
    pub(crate) arguments: Vec<String>,
    /// How it must end.
    pub(crate) status: Status,
    /// What must be seen.
    pub(crate) seen: Vec<Seen>,
    /// A run that has not ended by now will not, and neither did its own `--timeout` end it.
    pub(crate) limit: Duration,
}

/// How long a run may take to end after its `--timeout`.
const GRACE: Duration = Duration::from_secs(60);

/// A run of `skep` on its way to a [`Case`].
#[derive(Clone, Debug)]
pub(crate) struct Run {
    engine: &'static str,
    options: Vec<(String, String)>,
    switches: Vec<&'static str>,
    timeout: Duration,
    status: Status,
    seen: Vec<Seen>,
}

/// A guest that comes with skep, on this engine.
pub(crate) fn guest(engine: &'static str, name: &str, cpus: u32) -> Run {
    Run::new(engine).with("--guest", name).with("-c", &cpus.to_string()).with("--timeout", "120")
}

/// A Linux guest of 512 MiB on this engine, with our initrd, which must reach its
/// first process and see what it was given.
pub(crate) fn linux(
    engine: &'static str,
    image: &str,
    initrd: &str,
    cpus: u32,
    cmdline: &str,
) -> Run {
    Run::new(engine)
        .with("--kernel", image)
        .with("--initrd", initrd)
        .with("--cmdline", &format!("console=ttyS0 panic=-1 {cmdline}"))
        .with("-c", &cpus.to_string())
        // On an idle machine it takes 10 to 20 s, on one with four times as much to do as
        // it has processors a minute.
        .timeout(240)
        .memory("512", 512)
        .sees(Seen::Line(HELLO.to_owned()))
        .sees(Seen::Line(format!("nproc={cpus}")))
}

impl Run {
    fn new(engine: &'static str) -> Self {
        Self {
            engine,
            options: Vec::new(),
            switches: Vec::new(),
            timeout: Duration::ZERO,
            status: Status::Well,
            seen: Vec::new(),
        }
    }

    /// Sets an option, in the place of an earlier value.
    pub(crate) fn with(mut self, option: &str, value: &str) -> Self {
        self.options.retain(|(name, _)| name != option);
        self.options.push((option.to_owned(), value.to_owned()));
        self
    }

    /// Ends the run after so many seconds.
    pub(crate) fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self.with("--timeout", &seconds.to_string())
    }

    /// Sets an option that takes no value.
    pub(crate) fn switched(mut self, option: &'static str) -> Self {
        self.switches.push(option);
        self
    }

    /// Gives the guest memory, of which it must see about `mib`.
    pub(crate) fn memory(mut self, size: &str, mib: u64) -> Self {
        self.seen.retain(|seen| !matches!(seen, Seen::MemTotal { .. }));
        self.seen.push(Seen::MemTotal { mib });
        self.with("-m", size)
    }

    pub(crate) fn ends(self, status: Status) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn sees(mut self, what: Seen) -> Self {
        self.seen.push(what);
        self
    }

    /// For a guest that may be ended before it has said anything.
    pub(crate) fn sees_only(self, what: Seen) -> Self {
        Self { seen: vec![what], ..self }
    }

    pub(crate) fn case(self, name: &str) -> Case {
        let mut seen = self.seen;
        let ends_itself = matches!(self.status, Status::Well | Status::AskedForReset);
        if ends_itself && seen.contains(&Seen::Line(HELLO.to_owned())) {
            seen.push(Seen::Line(GOODBYE.to_owned()));
        }
        let mut arguments = ["run", "--engine", self.engine].map(str::to_owned).to_vec();
        for (option, value) in self.options {
            arguments.extend([option, value]);
        }
        arguments.extend(self.switches.into_iter().map(str::to_owned));
        let limit = self.timeout + GRACE;
        Case { name: name.to_owned(), arguments, status: self.status, seen, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_that_ends_itself_must_say_goodbye_and_another_need_not() {
        let boot = || linux("kvm", "k", "i", 1, "");
        let goodbye = Seen::Line(GOODBYE.to_owned());
        assert!(boot().case("a").seen.contains(&goodbye));
        let ended = boot().ends(Status::TimedOut).case("b");
        assert!(!ended.seen.contains(&goodbye));
        assert!(!guest("soft", "hello", 1).case("c").seen.contains(&goodbye));
    }

    #[test]
    fn a_run_names_its_engine_and_the_last_value_of_an_option_counts() {
        let run = guest("soft", "smp", 2).with("-c", "4").switched("--check-translations");
        let words = "run --engine soft --guest smp --timeout 120 -c 4 --check-translations";
        assert_eq!(run.case("a").arguments.join(" "), words);
    }
}
