//! What is tested in the lab: each case a `skep` command line, and what it must
//! print and end with.
//!
//! All cases run in one lab, which boots in a few seconds. There, this same
//! program goes through the list and reports ([`inside`]); out here the report
//! is counted ([`run`]). When the lab vanishes, which emulated hosts do, rarely,
//! the next one goes on with the case it vanished in; twice in one case is a
//! failure of that case.

use std::ffi::OsString;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Outcome};
use crate::initrd::{GOODBYE, HELLO};
use crate::kernels::LINES;
use crate::lab::image::{GUEST_INITRD, PROGRAMS, guest_bzimage, guest_vmlinux};
use crate::lab::run::{Ended, Stream};
use crate::lab::{LAB_FAILED, Lab, shell_line};
use crate::ours;
use crate::process::{last_lines, print, say};
use crate::watch::{Watched, watch};

/// What `--help` says.
pub(crate) const HELP: &str = "\
Runs the lab suite alone: stock kernels under skep, on real nested paging.

Usage: cargo xtask suite [--list] [WORD]...

  --list   print the cases and what each runs
  WORD     only the cases whose name contains one of these words

    cargo xtask suite 6.1 reboot

It is the last step of `cargo xtask test`.
";

/// A guest that has not ended by now will not. The longest boots take a quarter.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// After so many failed cases the rest would only fail as well.
const ENOUGH_FAILURES: usize = 3;

/// The word on the lab kernel's command line that says how many cases to skip.
const SKIP: &str = "lab.skip=";

/// What the status of a run of `skep` must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Well = 0,
    AskedForReset = 3,
    TimedOut = 6,
}

/// What must be seen in what a run of `skep` printed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// This line on the guest's console.
    Line(String),
    /// The guest sees nearly all of this memory: the kernel keeps some of it.
    MemTotal { mib: u64 },
}

/// One run of `skep`, and how it must go.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    arguments: Vec<String>,
    status: Status,
    seen: Vec<Seen>,
}

/// All cases, the quickest first.
fn cases() -> Vec<Case> {
    let mut cases = vec![built_in("hello", 1), built_in("smp", 2)];
    for line in LINES {
        for image in [guest_bzimage(line), guest_vmlinux(line)] {
            for cpus in [1, 2, 4] {
                let form = image.rsplit('/').next().unwrap_or_default();
                cases.push(
                    Linux::new(&image, cpus, "512", "quiet")
                        .case(&format!("Debian {line} {form} with {cpus} vcpus powers off")),
                );
            }
        }
    }
    let newest = guest_bzimage("6.12");
    let newest_elf = guest_vmlinux("6.12");
    cases.push(
        Linux::new(&newest, 2, "512", "earlyprintk=ttyS0").case("its full log reaches the console"),
    );
    cases.push(
        Linux::new(&newest, 2, "4G", "quiet").case("memory continues above the hole below 4 GiB"),
    );
    cases.push(
        Linux::new(&newest, 2, "512", "quiet skep.test=reboot")
            .ends(Status::AskedForReset)
            .case("a reboot through ACPI"),
    );
    cases.push(
        Linux::new(&newest_elf, 1, "512", "quiet reboot=k skep.test=reboot")
            .ends(Status::AskedForReset)
            .case("a reboot through the keyboard controller"),
    );
    cases.push(
        Linux::new(&newest, 2, "512", "quiet skep.test=stay")
            .limited_to(20)
            .case("a guest that never ends is ended by --timeout"),
    );
    cases
}

fn built_in(guest: &str, cpus: u32) -> Case {
    let arguments = format!("run --engine kvm -c {cpus} -m 64 --guest {guest} --timeout 60");
    Case {
        name: format!("the built-in guest {guest}"),
        arguments: arguments.split(' ').map(str::to_owned).collect(),
        status: Status::Well,
        seen: Vec::new(),
    }
}

/// A Linux guest with our initrd, on its way to a [`Case`].
struct Linux {
    image: String,
    cpus: u32,
    memory: String,
    cmdline: String,
    status: Status,
    timeout: u64,
}

impl Linux {
    fn new(image: &str, cpus: u32, memory: &str, cmdline: &str) -> Self {
        Self {
            image: image.to_owned(),
            cpus,
            memory: memory.to_owned(),
            cmdline: format!("console=ttyS0 panic=-1 {cmdline}"),
            status: Status::Well,
            timeout: 100,
        }
    }

    fn ends(self, status: Status) -> Self {
        Self { status, ..self }
    }

    fn limited_to(self, seconds: u64) -> Self {
        Self { timeout: seconds, status: Status::TimedOut, ..self }
    }

    fn case(self, name: &str) -> Case {
        let options = [
            ("-c", self.cpus.to_string()),
            ("-m", self.memory.clone()),
            ("--kernel", self.image),
            ("--initrd", GUEST_INITRD.to_owned()),
            ("--cmdline", self.cmdline),
            ("--timeout", self.timeout.to_string()),
        ];
        let mut arguments = vec!["run".to_owned(), "--engine".to_owned(), "kvm".to_owned()];
        for (option, value) in options {
            arguments.extend([option.to_owned(), value]);
        }
        let mib = match self.memory.strip_suffix('G') {
            Some(gib) => gib.parse::<u64>().map(|gib| gib * 1024),
            None => self.memory.parse(),
        }
        .expect("the sizes in this file are numbers of MiB, or of GiB with a G");
        let mut seen = vec![
            Seen::Line(HELLO.to_owned()),
            Seen::Line(format!("nproc={}", self.cpus)),
            Seen::MemTotal { mib },
        ];
        if self.status != Status::TimedOut {
            seen.push(Seen::Line(GOODBYE.to_owned()));
        }
        Case { name: name.to_owned(), arguments, status: self.status, seen }
    }
}

impl Case {
    /// Why this is not how it must go; nothing when it is.
    fn judge(&self, watched: &Watched) -> Result<(), String> {
        let wanted = self.status as i32;
        match watched.status.map(|status| (status.code(), status)) {
            None => {
                return Err(format!("had not ended after {} s", CASE_LIMIT.as_secs()));
            }
            Some((Some(code), _)) if code == wanted => {}
            Some((_, status)) => return Err(format!("ended with {status}, not {wanted}")),
        }
        self.seen.iter().try_for_each(|seen| seen.in_text(&watched.stdout))
    }
}

impl Seen {
    fn in_text(&self, console: &str) -> Result<(), String> {
        let lines = || console.lines().map(|line| line.trim_end_matches('\r'));
        match self {
            Seen::Line(wanted) => lines()
                .any(|line| line == wanted)
                .then_some(())
                .ok_or_else(|| format!("never printed {wanted:?}")),
            Seen::MemTotal { mib } => {
                let total: u64 = lines()
                    .find_map(|line| line.strip_prefix("memtotal_kb=")?.parse().ok())
                    .ok_or("never printed how much memory it sees")?;
                // Linux keeps 1/64 for its page descriptors and some 20 MiB for itself.
                let (most, least) = (mib * 1024, mib * 1024 / 10 * 9);
                (least..=most)
                    .contains(&total)
                    .then_some(())
                    .ok_or_else(|| format!("sees {total} kB of memory, not {least} to {most}"))
            }
        }
    }
}

/// How many cases went well and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

/// The command.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let words: Vec<String> =
        arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let (options, words): (Vec<String>, Vec<String>) =
        words.into_iter().partition(|word| word.starts_with('-'));
    match options.as_slice() {
        [] => {}
        [only] if only == "--list" => {
            for case in chosen(&words) {
                print(format!("{}\n    skep {}", case.name, case.arguments.join(" ")))?;
            }
            return Ok(0);
        }
        [other, ..] => {
            return Err(Failure::usage(format!(
                "suite does not know {other}; see `cargo xtask suite --help`"
            )));
        }
    }
    let score = run(&words)?;
    print(format!("{} passed, {} failed", score.passed, score.failed))?;
    Ok(u8::from(score.failed > 0))
}

fn chosen(words: &[String]) -> Vec<Case> {
    let mut cases = cases();
    cases.retain(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word)));
    cases
}

/// Runs the cases whose name contains one of `words`, or all.
///
/// # Errors
///
/// When the lab cannot run here, or no case is meant.
pub(crate) fn run(words: &[String]) -> Outcome<Score> {
    let cases = chosen(words);
    if cases.is_empty() {
        return Err(Failure::usage(format!("no case's name contains {}", words.join(" or "))));
    }
    let program = format!("{PROGRAMS}/xtask");
    let mut inside = vec![program.clone(), INSIDE.to_owned()];
    inside.extend_from_slice(words);
    let mut lab = Lab::new(shell_line(&inside));
    lab.files.push((ours::ourselves()?, program));
    lab.limit = CASE_LIMIT * u32::try_from(cases.len()).unwrap_or(u32::MAX);
    let ready = lab.prepare()?;

    let mut report = Report::new(&cases);
    let mut vanished_in = None;
    loop {
        let skip = format!("{SKIP}{}", report.finished());
        let ended = lab.live(&ready, &skip, &mut |stream, bytes| report.hear(stream, bytes))?;
        match ended {
            Ended::Status(0, _) => return Ok(report.score),
            Ended::Vanished(words) => {
                let at = report.finished();
                say(format!("lab: it vanished in case {}; its last words were:\n{words}", at + 1));
                if vanished_in == Some(at) || at >= cases.len() {
                    report.score.failed += 1;
                    return Ok(report.score);
                }
                vanished_in = Some(at);
                say("lab: starting it once more with that case");
                report.line.clear();
            }
            Ended::Status(status, _) => {
                return Err(Failure::new(format!(
                    "the suite ended with status {status} inside the lab"
                )));
            }
            other => return lab.settle(other).map(|_| report.score),
        }
    }
}

/// Follows what the inside prints: a line `ok SECONDS` or `failed SECONDS WHY` for
/// each case, after whatever else it has to say about it.
struct Report<'a> {
    cases: &'a [Case],
    score: Score,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

impl<'a> Report<'a> {
    fn new(cases: &'a [Case]) -> Self {
        Self { cases, score: Score::default(), line: Vec::new() }
    }

    fn finished(&self) -> usize {
        self.score.passed + self.score.failed
    }

    fn hear(&mut self, stream: Stream, bytes: &[u8]) -> Outcome {
        if stream == Stream::Stderr {
            say(String::from_utf8_lossy(bytes).trim_end());
            return Ok(());
        }
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.hear_line(String::from_utf8_lossy(&line).trim_end());
        }
        Ok(())
    }

    fn hear_line(&mut self, line: &str) {
        let number = self.finished() + 1;
        let name = self.cases.get(number - 1).map_or("", |case| &case.name);
        let place = format!("  {number:2}/{} {name}", self.cases.len());
        if let Some(seconds) = line.strip_prefix("ok ") {
            self.score.passed += 1;
            say(format!("{place}: ok ({seconds} s)"));
        } else if let Some(rest) = line.strip_prefix("failed ") {
            self.score.failed += 1;
            let (seconds, why) = rest.split_once(' ').unwrap_or((rest, ""));
            say(format!("{place}: FAILED, {why} ({seconds} s)"));
        } else {
            say(line);
        }
    }
}

/// The hidden subcommand that goes through the cases inside the lab.
pub(crate) const INSIDE: &str = "suite-inside";

/// Goes through the cases, inside the lab.
///
/// # Errors
///
/// When `skep` cannot be started at all.
pub(crate) fn inside(arguments: &[OsString]) -> Outcome<u8> {
    let words: Vec<String> =
        arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let skip = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix(SKIP)?.parse().ok())
        .unwrap_or(0);
    let mut failures = 0;
    for case in chosen(&words).iter().skip(skip) {
        let start = Instant::now();
        let mut command = Command::new("skep");
        command.args(&case.arguments);
        let watched = watch(&mut command, HELLO, CASE_LIMIT, |_| ())
            .map_err(|failure| failure.with_status(LAB_FAILED))?;
        let seconds = start.elapsed().as_secs_f64();
        match case.judge(&watched) {
            Ok(()) => print(format!("ok {seconds:.1}"))?,
            Err(why) => {
                print(format!("    skep {}", case.arguments.join(" ")))?;
                for (name, text) in [("console", &watched.stdout), ("stderr", &watched.stderr)] {
                    print(format!("    the end of its {name}:"))?;
                    for line in last_lines(text, 20).lines() {
                        print(format!("    | {}", line.trim_end()))?;
                    }
                }
                print(format!("failed {seconds:.1} {why}"))?;
                failures += 1;
                if failures == ENOUGH_FAILURES {
                    break;
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let mut names: Vec<String> = cases().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_line_is_seen_whole_or_not_at_all() {
        let seen = Seen::Line("nproc=2".to_owned());
        assert_eq!(seen.in_text("a\r\nnproc=2\r\n"), Ok(()));
        assert!(seen.in_text("nproc=24\n").is_err());
    }

    #[test]
    fn a_guest_must_see_nine_tenths_of_its_memory_and_no_more_than_all_of_it() {
        let seen = Seen::MemTotal { mib: 512 };
        assert_eq!(seen.in_text("memtotal_kb=476172\n"), Ok(()));
        assert!(seen.in_text("memtotal_kb=400000\n").is_err());
        assert!(seen.in_text("memtotal_kb=600000\n").is_err());
        assert!(seen.in_text("").is_err());
    }

    #[test]
    fn the_report_counts_lines_that_arrive_in_pieces() {
        let cases = cases();
        let mut report = Report::new(&cases);
        for piece in ["ok 1.", "5\nfai", "led 2.0 never printed \"x\"\nok 3.0\n"] {
            report.hear(Stream::Stdout, piece.as_bytes()).unwrap();
        }
        assert_eq!(report.score, Score { passed: 2, failed: 1 });
    }
}
