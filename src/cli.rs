//! What was typed.

use std::path::PathBuf;

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

/// An actor-based virtual machine monitor with its own pmap and shootdowns.
#[derive(Debug, Parser)]
#[command(
    name = "skep",
    version,
    about = "Runs multi-vcpu guests, measures shootdowns, and traces guest page faults.",
    long_about = "skep runs guests on Linux/KVM with a guest-memory manager of its own: every page is \
                  demand-paged by skep's pmap, and every invalidation goes through a checked and \
                  measured shootdown. Start with `skep host`, which says what this host offers.",
    after_long_help = EXIT_STATUSES,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// For `--help`: all of them, so that scripts can tell endings apart.
const EXIT_STATUSES: &str = "\
Exit status:
    0  the guest powered off, or asked to end well
    1  the host refused something, or skep has a bug
    2  the command line makes no sense
    3  the guest asked for a reset
    4  triple fault
    5  a test guest reported failure
    6  --timeout passed
    7  the pmap actor died or hangs
    8  another actor died or hangs (the message names it)
    9  the guest touched a hole or read-only memory, or met an instruction its engine cannot run
   10  the kernel or the initrd cannot be booted
   11  the host lacks /dev/kvm, userfaultfd, memory, or the permission to use them
   12  stdout was closed
  130  Ctrl-C, SIGTERM or SIGHUP";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest
    Run(Box<RunArgs>),
    /// What this host offers, and what to do about what it lacks
    Host(HostArgs),
    /// What shootdowns and faults cost, beside bare baselines from the same run
    Bench(WhenAsked<bench::cli::BenchArgs>),
}

/// Options that are described only when their command was typed: describing those of the benchmarks was a tenth of what
/// `skep run` did before it began (840,000 instructions).
#[derive(Debug)]
pub(crate) struct WhenAsked<A>(pub(crate) A);

impl<A: FromArgMatches> FromArgMatches for WhenAsked<A> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        A::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<A: Args> Args for WhenAsked<A> {
    fn augment_args(command: clap::Command) -> clap::Command {
        // The command's own words come before the options, and last.
        command.defer(|command| {
            let about = command.get_about().cloned().unwrap_or_default();
            A::augment_args(command).about(about)
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        command.defer(A::augment_args_for_update)
    }
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whom invalidations knock on.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shootdown {
    /// Knock only on vcpus that may use a removed translation from user space
    Auto,
    /// Knock on every vcpu in the guest: measures the protocol itself
    Broadcast,
    /// Leave all of it to the host kernel
    Kernel,
}

/// Which engine runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineKind {
    /// KVM where the processor assists it and the run needs nothing that it lacks; else the software engine
    Auto,
    /// Linux's KVM
    Kvm,
    /// skep's own x86-64 processor: runs anywhere, without privileges, and walks the nested tables itself
    Soft,
}

/// Who sets accessed and dirty bits in the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccessedDirty {
    /// Whoever walks them, as newer hardware does (software engine only)
    Hw,
    /// The pmap, by faults, as for older hardware
    Emulated,
}

/// Over the options about memory that leaves.
const PAGING: &str = "Memory that leaves";

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switched {
    /// On
    On,
    /// Off
    Off,
}

/// What the guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HugePagesKind {
    /// Pages of 4 KiB that come with their first touch, and may leave; full blocks become huge pages by themselves
    Transparent,
    /// Huge pages of 2 MiB that the operator has reserved: all of them are taken before the guest starts, and stay
    Reserved,
}

/// How sure the trace is of who faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TraceVcpus {
    /// As KVM reports it: a kernel worker may take a fault in its vcpu's stead
    AsReported,
    /// Always the vcpu; in exchange a halted vcpu occupies its cpu
    Exact,
}

#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  skep run -c 4 --guest smp
  skep run -c 2 -m 512 --kernel bzImage --initrd initrd.gz --cmdline 'console=ttyS0 panic=-1'
  skep run -c 4 --guest storm --shootdown broadcast --report storm.json
  skep run -m 1G --kernel vmlinux --trace faults.jsonl
  skep run -m 2G --resident 512M --swap /var/tmp/guest.swap --kernel vmlinux --initrd initrd.gz
  skep run --guest toucher --harvest-every 100
  skep run -m 1G --huge-pages reserved --kernel vmlinux

The guest's serial console is on stdout, and nothing else is. At a terminal, Ctrl-C ends the
run; Ctrl-A c sends Ctrl-C to the guest, Ctrl-A a sends Ctrl-A, Ctrl-A x ends the run.")]
pub(crate) struct RunArgs {
    /// How many vcpus
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub(crate) cpus: u16,

    /// How much memory: a number of MiB, or a number with K, M, G or T. What does not fit below
    /// 3 GiB continues at 4 GiB
    #[arg(short, long, default_value = "256", value_name = "SIZE")]
    pub(crate) memory: String,

    /// Gone: -m is the total, and skep splits it
    #[arg(short = 'M', value_name = "SIZE", hide = true, allow_hyphen_values = true, num_args = 0..=1)]
    pub(crate) highmem: Option<Option<String>>,

    /// The kernel: a Linux bzImage, a PVH ELF (vmlinux), or a flat binary (.bin)
    #[arg(
        short,
        long,
        value_name = "FILE",
        conflicts_with = "guest",
        required_unless_present = "guest"
    )]
    pub(crate) kernel: Option<PathBuf>,

    /// Linux: the first file system
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) initrd: Option<PathBuf>,

    /// Linux: the kernel's command line
    #[arg(long, value_name = "STR", default_value = "console=ttyS0 panic=-1")]
    pub(crate) cmdline: String,

    /// A guest that comes with skep
    #[arg(long, value_name = "NAME")]
    pub(crate) guest: Option<String>,

    /// What runs the guest
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) engine: EngineKind,

    /// Who sets accessed and dirty bits in the nested tables. `hw` needs the software engine: KVM's own
    /// tables are hidden
    #[arg(long, value_enum, default_value = "emulated", value_name = "WHO")]
    pub(crate) ad: AccessedDirty,

    /// Whether the nested tables may have 2 MiB leaves
    #[arg(long, value_enum, default_value = "on", value_name = "ON|OFF")]
    pub(crate) superpages: Switched,

    /// Compare every use of a cached translation with the nested tables, and end the run when one is used
    /// after its shootdown was complete (software engine; many times slower)
    #[arg(long)]
    pub(crate) check_translations: bool,

    /// Whom an invalidation knocks on
    #[arg(long, value_enum, default_value = "auto", value_name = "WHOM")]
    pub(crate) shootdown: Shootdown,

    /// Make all memory resident before the guest starts, and keep it so
    #[arg(short = 'S', long)]
    pub(crate) wire: bool,

    /// What the guest's memory is made of. `reserved` needs one huge page for each 2 MiB of -m, and a host that has too
    /// few to spare (/proc/sys/vm/nr_hugepages) refuses at the start; nothing of it can leave, so it goes with neither
    /// --swap nor --resident, --harvest-every or --superpages off
    #[arg(
        long,
        value_enum,
        default_value = "transparent",
        value_name = "WHICH",
        visible_alias = "hugepages"
    )]
    pub(crate) huge_pages: HugePagesKind,

    /// The most memory that the guest's resident pages and its compressed ones may take together. What it
    /// has not used for longest leaves: pages of zeroes are dropped, others are compressed in memory, and the
    /// oldest of those go to the --swap file. Without one, what does not compress stays
    #[arg(long, value_name = "SIZE", help_heading = PAGING)]
    pub(crate) resident: Option<String>,

    /// Where pages go that leave memory: a file or a block device that is empty or held an earlier run's pages; a file
    /// is made if it is not there. It takes up to SIZE, or as much as the guest has memory
    #[arg(long, value_name = "FILE[,size=SIZE]", help_heading = PAGING)]
    pub(crate) swap: Option<String>,

    /// Look every so many milliseconds at which pages the guest has used, for the working set in the summary
    /// and the report. Each look takes accessed bits back, by one shootdown; it comes later where bringing back what
    /// the one before it took would cost about a quarter of the guest's time, or more
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000),
          help_heading = PAGING)]
    pub(crate) harvest_every: Option<u64>,

    /// Whenever the machine is paused, and at its end, compare the nested tables with what the host maps and with the
    /// books, and say what differs; the status is then 1. (`--guest storm` pauses now and then for it)
    #[arg(long)]
    pub(crate) verify: bool,

    /// How many pages come with a touched one, in one aligned window; 1 turns it off
    #[arg(long, value_name = "PAGES", default_value_t = machine::spec::FAULT_AROUND_PAGES,
          value_parser = clap::value_parser!(u64).range(1..=512))]
    pub(crate) fault_around: u64,

    /// Write one line of JSON for each nested fault
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,

    /// How the trace names vcpus. With a real KVM a kernel worker may take a fault in its
    /// vcpu's stead, and the vcpu is then unknown; `exact` makes every fault name its vcpu, at
    /// the cost that a halted vcpu occupies its cpu
    #[arg(long, value_enum, default_value = "as-reported", value_name = "HOW")]
    pub(crate) trace_vcpus: TraceVcpus,

    /// Write what was counted and timed, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// End the run after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,

    /// For tests of skep itself: break something on purpose. ACTOR-panic and ACTOR-hang break
    /// an actor (machine, pmap, pageout, pagein, loader, console, tracer, vcpuN) once the guest runs;
    /// keep-host-mappings and skip-flush leave stale translations; exercise pauses and remaps a running
    /// guest; sweep pages all of it out, every few seconds; swap-FAULT and swap-FAULT:CALLS have the swap file
    /// fail, at once or after so many good calls
    #[arg(long, value_name = "WHAT", hide = true)]
    pub(crate) test_switch: Option<String>,

    /// guest `storm`: how many invalidations of pages in use there are at least
    #[arg(long, value_name = "N", default_value_t = 1000, hide = true)]
    pub(crate) storm_invalidations: u64,
}
