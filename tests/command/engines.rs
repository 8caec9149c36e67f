//! One scenario, every engine: written once, run on each engine that this host has, and what must not depend on
//! the engine is compared.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Formatter, Write as _};
use std::io::Write as _;
use std::path::Path;

use parking_lot::{Mutex, MutexGuard};

use crate::support::Ran;

/// One guest at a time: each wants every cpu of this machine.
static CPUS: Mutex<()> = Mutex::new(());

/// The machine's cpus.
pub(crate) fn cpus() -> MutexGuard<'static, ()> {
    CPUS.lock()
}

/// What runs guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    Kvm,
    Soft,
}

impl Display for Engine {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        })
    }
}

/// The machine's cpus, or nothing, aloud, where there is no KVM to run guests with.
pub(crate) fn kvm() -> Option<MutexGuard<'static, ()>> {
    if has_kvm() { Some(cpus()) } else { None }
}

fn has_kvm() -> bool {
    let has = Path::new("/dev/kvm").exists();
    if !has {
        skipped("on KVM: there is no /dev/kvm here");
    }
    has
}

/// Says so past the test harness, which would keep the words of a passing test to itself.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current();
    let name = test.name().unwrap_or("a test");
    writeln!(std::io::stderr(), "SKIPPED {name} {why}").expect("stderr is open");
}

/// Runs a scenario on each engine of this host. What it returns is what must be the same on all.
pub(crate) fn on_every_engine<O: Debug + PartialEq>(scenario: impl Fn(Engine) -> O) {
    let _cpus = cpus();
    let soft = scenario(Engine::Soft);
    if has_kvm() {
        let kvm = scenario(Engine::Kvm);
        assert!(kvm == soft, "the engines disagree:\n{}", side_by_side(&kvm, &soft));
    }
}

/// Two values in lines, those that differ marked.
fn side_by_side(kvm: &impl Debug, soft: &impl Debug) -> String {
    let (kvm, soft) = (format!("{kvm:#?}"), format!("{soft:#?}"));
    let (mut left, mut right) = (kvm.lines(), soft.lines());
    let width = kvm.lines().map(|line| line.chars().count()).max().unwrap_or(0).clamp(3, 100);
    let mut table = format!("  {:width$} | {}\n", "kvm", "soft");
    loop {
        let (left, right) = match (left.next(), right.next()) {
            (None, None) => return table,
            (left, right) => (left.unwrap_or_default(), right.unwrap_or_default()),
        };
        let mark = if left == right { ' ' } else { '*' };
        let _infallible = writeln!(table, "{mark} {left:width$} | {right}");
    }
}

/// What a user sees of a run that must not depend on the engine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    status: i32,
    /// In order: for guests whose vcpus print in any order.
    console: Vec<String>,
    /// How it ended.
    sentence: String,
    /// Of the report.
    counters: BTreeMap<&'static str, u64>,
}

impl Ran {
    /// Everything but counters.
    pub(crate) fn observed(&self) -> Observed {
        let mut console: Vec<String> = self.stdout.lines().map(str::to_owned).collect();
        console.sort_unstable();
        Observed {
            status: self.status,
            console,
            sentence: self.stderr.lines().last().unwrap_or_default().to_owned(),
            counters: BTreeMap::new(),
        }
    }
}

impl Observed {
    /// Whether the sentence at the end has these words.
    pub(crate) fn says(&self, words: &str) -> bool {
        self.sentence.contains(words)
    }

    /// The same without the numbers on its console, which depend on how fast everybody is.
    pub(crate) fn without_numbers(mut self) -> Self {
        let no_digits = |line: &String| line.chars().filter(|c| !c.is_ascii_digit()).collect();
        self.console = self.console.iter().map(no_digits).collect();
        self
    }

    /// Whether this whole line is on the console.
    pub(crate) fn printed(&self, line: &str) -> bool {
        self.console.iter().any(|printed| printed == line)
    }

    /// And this counter.
    pub(crate) fn count(mut self, name: &'static str, value: u64) -> Self {
        self.counters.insert(name, value);
        self
    }
}

#[test]
fn a_disagreement_is_printed_side_by_side() {
    let ran = |stdout: &str| {
        let (stdout, stderr) = (stdout.to_owned(), "skep: the guest powered off\n".to_owned());
        Ran { status: 0, stdout, stderr }.observed()
    };
    let table =
        side_by_side(&ran("one\ntwo\n").count("faults", 3), &ran("one\n").count("faults", 4));
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("  kvm ") && lines[0].ends_with("| soft"), "{table}");
    assert!(lines.iter().any(|line| line.starts_with("*") && line.contains("\"two\"")), "{table}");
    assert!(lines.iter().any(|line| line.starts_with(" ") && line.contains("\"one\"")), "{table}");
}
