//! `skep bench`: what can be asked, and how the answer is given.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use actors::PAGE_SIZE;
use clap::{Args, Subcommand, ValueEnum, value_parser};
use loader_actor::guests::{spin, toucher};
use machine::ExitStatus;

use crate::error::{BenchError, host};
use crate::report::Report;
use crate::{dirty, fault, harvest, interp, shootdown, table};

/// Where "-" leads.
const STDOUT: &str = "-";

/// What was asked.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Every figure stands beside a bare loop taken in the same run, in turns with it. Ratios below
1.35 between two runs mean nothing; within a run they do, as far as the range over its rounds says.

Exit status: 0 when every bound was met or not judged, 1 when one was missed in a clean run.")]
pub struct BenchArgs {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// How long until every vcpu has left the guest, beside the bare kick
    Shootdown(ShootdownArgs),
    /// What a first touch of a page costs the guest, beside a bare fault handler
    Fault(FaultArgs),
    /// What it costs to learn which pages a guest stored to, by each of the host's ways
    Dirty(DirtyArgs),
    /// What a harvest of accessed and modified bits costs, beside a shootdown for each page and KVM's dirty log
    Harvest(HarvestArgs),
    /// How fast the software processor is, beside the real one, QEMU's translator and KVM
    Interp(InterpArgs),
}

/// How a result is written.
#[derive(Debug, Default, Args)]
pub(crate) struct OutputArgs {
    /// Write the result as JSON, too; `-` writes it to stdout instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// `skep bench dirty`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
KVM's dirty log and dirty ring, and userfaultfd's write-protection, one store at a time
(an event and its answer) and asynchronous (the kernel notes it by itself). For each: what it costs
to watch all pages, what a first store costs the guest, and what it costs to collect all pages,
which are watched again.")]
pub(crate) struct DirtyArgs {
    /// How much the guest writes
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = value_parser!(u64).range(1..=2048))]
    pub(crate) mebibytes: u64,

    /// Rounds, after a first one that warms up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = value_parser!(u64).range(1..=1000))]
    pub(crate) rounds: u64,

    #[command(flatten)]
    output: OutputArgs,
}

/// Where harvests are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    /// The software engine; bits are emulated by faults
    Soft,
    /// The software engine, whose page walk sets the bits as newer processors do
    SoftHw,
    /// KVM, which has forgotten a translation before its host mapping is gone: nobody is knocked on
    Kvm,
    /// KVM, and every vcpu is knocked on nevertheless
    KvmKicked,
}

impl On {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::SoftHw => "soft-hw",
            Self::Kvm => "kvm",
            Self::KvmKicked => "kvm-kicked",
        }
    }

    pub(crate) fn is_kvm(self) -> bool {
        matches!(self, Self::Kvm | Self::KvmKicked)
    }
}

/// `skep bench harvest`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
A harvest reads and clears the accessed and modified bits of many pages, and shoots down what
processors may have cached of them: once, for all pages together. The vcpus run while it is taken.

  all pages, both bits          as for a working set and a backup at once
  all pages, stores (an epoch)  what a backup or a migration asks for
  few pages, both bits          the same scan, when little was touched since the last one
  page by page, both bits       the same work with a shootdown for each page; extrapolated from --sample pages
  all pages, stores (bare)      KVM's dirty log, without skep: what reading (and clearing) it takes

Scan is reading and clearing, and making the host's mapping follow; shootdown is from the first knock
until the last vcpu is out. The second table says what it costs the guest to touch its pages again,
and by which faults its bits were set: none where whoever walks the tables sets them.

  skep bench harvest                                             all of it, in some minutes
  skep bench harvest --memory 64 --rounds 1 --on soft            a quick look
  skep bench harvest --memory 256 --on soft,soft-hw --json out.json")]
pub(crate) struct HarvestArgs {
    /// How much is resident, touched and harvested, in MiB
    #[arg(long = "memory", value_name = "MIB", default_value_t = 1024, value_parser = value_parser!(u64).range(1..=2048))]
    pub(crate) mebibytes: u64,

    /// How many vcpus touch it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=64))]
    pub(crate) vcpus: u16,

    /// Where, in turns
    #[arg(
        long,
        value_enum,
        value_name = "WHERE,...",
        value_delimiter = ',',
        default_value = "soft,soft-hw,kvm,kvm-kicked"
    )]
    pub(crate) on: Vec<On>,

    /// For "few pages", and for touches after a harvest: one page of so many is touched
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u64).range(1..=1 << 16))]
    pub(crate) sparse: u64,

    /// For "page by page": so many pages are
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = value_parser!(u64).range(1..=1 << 16))]
    pub(crate) sample: u64,

    /// Rounds in which all take their turns, on fresh machines; medians count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u64).range(1..=1000))]
    pub(crate) rounds: u64,

    #[command(flatten)]
    output: OutputArgs,
}

impl HarvestArgs {
    /// How many pages: as many for each vcpu.
    pub(crate) fn pages(&self) -> u64 {
        let pages = (self.mebibytes << 20) / PAGE_SIZE;
        pages - pages % u64::from(self.vcpus)
    }
}

/// `skep bench interp`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
The same loops, byte for byte, on everything that is here:
  a  registers and branches      c  copies                          e  SSE2, locked
  b  loads and pointer chases    d  system calls, faults, a port       operations
native, in this process, on pages of 4 KiB (none of d: they need a system of their own);
soft, skep's own processor, whose guest-physical memory is one mapping;
soft 2-D, the loops at CPL 3 in a machine of skep's on that processor, below it the pmap's tables;
QEMU TCG, the same guest under qemu-system-x86_64, if that is installed;
KVM guest, the loops at CPL 3 in a machine of skep's, if there is a /dev/kvm: wall time by the
guest's own counter. Everything else is cpu time of whoever executes, so a busy host makes
figures noisy rather than wrong.

  skep bench interp                              all of it, in less than a minute
  skep bench interp --only a2,b4 --rounds 9      two loops, with more care
  skep bench interp --boot bzImage --initrd FILE a stock Linux to its init's first line, and no loops

MIPS are guest instructions: quote them with the loop's name, for one engine spans 20 to 700.")]
pub(crate) struct InterpArgs {
    /// Measure only these loops
    #[arg(long, value_name = "LOOP,...", value_delimiter = ',')]
    pub(crate) only: Vec<String>,

    /// Boot this Linux under the software engine and QEMU's translator; loops only where --only names some
    #[arg(long, value_name = "KERNEL", requires = "initrd")]
    pub(crate) boot: Option<PathBuf>,

    /// Its first file system; the guest must end by itself
    #[arg(long, value_name = "FILE", requires = "boot")]
    pub(crate) initrd: Option<PathBuf>,

    /// What its init prints when it is there
    #[arg(long, value_name = "TEXT", default_value = "HELLO FROM GUEST")]
    pub(crate) line: String,

    /// Rounds in which all take their turns; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = rounds)]
    pub(crate) rounds: usize,

    /// How long a loop runs in one round (longer under QEMU, whose clock is coarse)
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = value_parser!(u64).range(1..=60_000))]
    pub(crate) milliseconds: u64,

    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

fn rounds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err("a number from 1 to 1000 is wanted".to_owned()),
    }
}

/// `skep bench shootdown`.
#[derive(Debug, Args)]
pub(crate) struct ShootdownArgs {
    /// How many vcpus, in turns
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,2,4",
          value_parser = value_parser!(u16).range(1..=i64::from(spin::GUEST.most_vcpus)))]
    pub(crate) vcpus: Vec<u16>,

    /// Samples of each case in one round
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = value_parser!(u64).range(1..))]
    pub(crate) samples: u64,

    /// Rounds, after a first one that warms up
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,

    /// Keep idle cpus awake with spinners of the lowest priority
    #[arg(long)]
    pub(crate) idle_poll: bool,

    #[command(flatten)]
    output: OutputArgs,
}

/// Who serves faults where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pager {
    /// On the vcpu's cpu
    Same,
    /// On another cpu
    Other,
    /// Wherever the host puts it
    Free,
}

/// `skep bench fault`.
#[derive(Debug, Args)]
pub(crate) struct FaultArgs {
    /// Where faults are served, in turns
    #[arg(
        long,
        value_enum,
        value_name = "WHERE,...",
        value_delimiter = ',',
        default_value = "same,other,free"
    )]
    pub(crate) placement: Vec<Pager>,

    /// How many pages come with one fault, in turns: powers of two up to 512
    #[arg(long, value_name = "PAGES,...", value_delimiter = ',', default_value = "1,16")]
    pub(crate) around: Vec<u64>,

    /// Faults in one round
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = value_parser!(u64).range(1..=toucher::MOST_TOUCHES))]
    pub(crate) samples: u64,

    /// Rounds, after a first one that warms up
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u64).range(1..))]
    pub(crate) rounds: u64,

    /// How long whoever serves faults watches for the next one before it sleeps
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = value_parser!(u64).range(..=1_000_000))]
    spin: u64,

    /// Keep idle cpus awake with spinners of the lowest priority
    #[arg(long)]
    pub(crate) idle_poll: bool,

    #[command(flatten)]
    output: OutputArgs,
}

impl FaultArgs {
    pub(crate) fn spin(&self) -> Duration {
        Duration::from_micros(self.spin)
    }
}

/// Measures, and writes the table to stdout.
///
/// # Errors
///
/// [`BenchError`], when there is no result. A missed bound is a result:
/// [`ExitStatus::Error`].
pub fn run(args: &BenchArgs) -> Result<ExitStatus, BenchError> {
    match &args.bench {
        Bench::Shootdown(args) => answer(&args.output, || shootdown::run(args)),
        Bench::Fault(args) => {
            fault::check(args)?;
            answer(&args.output, || fault::run(args))
        }
        Bench::Dirty(args) => answer(&args.output, || dirty::run(args)),
        Bench::Harvest(args) => {
            harvest::check(args)?;
            answer(&args.output, || harvest::run(args))
        }
        Bench::Interp(args) => {
            interp::check(args)?;
            answer(&args.output, || interp::run(args))
        }
    }
}

/// What a benchmark has to say.
trait Answer: serde::Serialize {
    fn text(&self) -> String;
    /// Whether a bound was missed in a clean run.
    fn is_missed(&self) -> bool;
}

impl Answer for Report {
    fn text(&self) -> String {
        table::render(self)
    }
    fn is_missed(&self) -> bool {
        self.is_missed()
    }
}

impl Answer for harvest::HarvestReport {
    fn text(&self) -> String {
        self.text()
    }
    fn is_missed(&self) -> bool {
        self.is_missed()
    }
}

impl Answer for interp::InterpReport {
    fn text(&self) -> String {
        interp::render(self)
    }
    fn is_missed(&self) -> bool {
        self.is_missed()
    }
}

fn answer<A: Answer>(
    output: &OutputArgs,
    measure: impl FnOnce() -> Result<A, BenchError>,
) -> Result<ExitStatus, BenchError> {
    let path = output.json.as_deref();
    let to_stdout = path == Some(Path::new(STDOUT));
    // Made before anything is measured, so that a path that cannot be written costs nothing.
    let file = path.filter(|_| !to_stdout).map(create).transpose()?;
    let report = measure()?;
    let json = serde_json::to_string_pretty(&report).map_err(host("write JSON"))? + "\n";
    print(if to_stdout { json.clone() } else { report.text() }.as_bytes())?;
    if let Some((mut file, path)) = file {
        let done = file.write_all(json.as_bytes()).and_then(|()| file.flush());
        done.map_err(unwritten(path))?;
    }
    Ok(if report.is_missed() { ExitStatus::Error } else { ExitStatus::Success })
}

fn create(path: &Path) -> Result<(BufWriter<File>, &Path), BenchError> {
    let file = File::create(path).map_err(unwritten(path))?;
    Ok((BufWriter::new(file), path))
}

fn unwritten(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    move |why| BenchError::File { path: path.display().to_string(), why }
}

fn print(text: &[u8]) -> Result<(), BenchError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text).and_then(|()| stdout.flush()).map_err(BenchError::Stdout)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Command::try_parse_from(["bench"].into_iter().chain(line.split_whitespace()))
            .map(|command| command.args)
    }

    #[test]
    fn lists_are_taken_in_order() {
        let Bench::Shootdown(args) = parse("shootdown --vcpus 4,1").unwrap().bench else {
            panic!("another benchmark");
        };
        assert_eq!(args.vcpus, [4, 1]);
        let Bench::Fault(args) = parse("fault --placement free,same").unwrap().bench else {
            panic!("another benchmark");
        };
        assert_eq!(args.placement, [Pager::Free, Pager::Same]);
    }

    /// Runs what `line` asks for, and returns the names and states of its cases. Nothing where
    /// there is no KVM.
    fn cases_of(line: &str) -> Option<Vec<(String, &'static str)>> {
        let _turn = crate::ONE_AT_A_TIME.lock();
        if !Path::new("/dev/kvm").exists() {
            return None;
        }
        let report = match parse(line).unwrap().bench {
            Bench::Shootdown(args) => shootdown::run(&args),
            Bench::Fault(args) => fault::run(&args),
            Bench::Dirty(args) => dirty::run(&args),
            Bench::Harvest(_) | Bench::Interp(_) => panic!("another kind of report"),
        };
        let report = report.unwrap();
        // So few samples are never judged.
        assert!(!report.is_missed());
        let text = table::render(&report);
        assert!(report.cases.iter().all(|case| text.contains(&case.name)), "{text}");
        Some(report.cases.into_iter().map(|case| (case.name, case.state)).collect())
    }

    #[test]
    fn a_small_shootdown_run_has_the_subject_and_every_reference() {
        for vcpus in [1, 3] {
            let line = format!("shootdown --vcpus {vcpus} --rounds 1 --samples 3 --idle-poll");
            let Some(cases) = cases_of(&line) else { return };
            for name in ["shootdown/raise", "shootdown/elided", "bare-kick/mask"] {
                let name = format!("{name}/{vcpus}-vcpu");
                assert!(cases.iter().any(|case| case.0 == name), "{name}: {cases:?}");
            }
        }
    }

    #[test]
    fn a_small_fault_run_tells_served_touches_from_those_that_came_along() {
        let line = "fault --placement same,free --around 1,4 --samples 5 --rounds 1 --spin 5";
        let Some(cases) = cases_of(line) else { return };
        for side in ["fault", "bare-fault"] {
            for place in ["same", "free"] {
                let name = |around| format!("{side}/{place}/around-{around}");
                assert!(cases.contains(&(name(1), "served")), "{cases:?}");
                assert!(!cases.contains(&(name(1), "came along")), "{cases:?}");
                assert!(cases.contains(&(name(4), "served")), "{cases:?}");
                assert!(cases.contains(&(name(4), "came along")), "{cases:?}");
            }
        }
    }

    /// A harvest where no privilege is needed; the bare logs are left out where there is no KVM.
    #[test]
    fn a_small_harvest_finds_what_was_touched_with_one_knock_for_each_vcpu() {
        let _turn = crate::ONE_AT_A_TIME.lock();
        let line =
            "harvest --memory 1 --vcpus 2 --on soft,soft-hw --sparse 8 --sample 3 --rounds 1";
        let Bench::Harvest(args) = parse(line).unwrap().bench else { panic!("another benchmark") };
        let report = harvest::run(&args).unwrap();
        let of = |on, what: &str| {
            let row = report.harvests.iter().find(|row| row.on == on && row.what.starts_with(what));
            row.unwrap().median
        };
        for on in ["soft", "soft-hw"] {
            let pages = [("all pages, both", 256), ("few", 32)];
            for (what, pages) in pages {
                assert_eq!(of(on, what).pages, pages, "{on}: {what}");
                assert!(of(on, what).knocks <= 2, "{on}: {what}");
            }
        }
        let faults = |on, what: &str| {
            let row = report.touches.iter().find(|row| row.on == on && row.what.starts_with(what));
            let guest = row.unwrap().median;
            (guest.accessed_faults, guest.modified_faults)
        };
        assert_eq!(faults("soft", "store, nothing"), (0, 0));
        assert_eq!(faults("soft", "store, both"), (0, 32));
        assert_eq!(faults("soft", "store, modified"), (0, 32));
        assert_eq!(faults("soft", "load, both"), (32, 0));
        assert_eq!(faults("soft-hw", "store, both"), (0, 0));
        assert!(!report.is_missed());
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_runs() {
        for line in ["", "shootdown --vcpus 0", "shootdown --vcpus 256", "shootdown --rounds 0"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in [
            "fault --around 3",
            "fault --around 0",
            "fault --around 1024",
            "harvest --memory 1 --sparse 257",
        ] {
            let refused = run(&parse(line).unwrap()).unwrap_err();
            assert_eq!(refused.exit_status(), ExitStatus::Usage, "{line}");
        }
    }
}
