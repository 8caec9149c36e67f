//! `skep run`: from what was typed to how it ended.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Duration;

use actors::contract::boot::BootSource;
use actors::layout::parse_memory_size;
use actors::swap::BadSwap;
use loader_actor::guests;
use machine::host::meminfo;
use machine::spec::block_signals;
use skep::{
    ConsoleKind, EngineChoice, ExitStatus, HugePages, Machine, MachineSpec, Report, ShootdownMode,
};
use tracing_subscriber::EnvFilter;

use crate::cli::{
    AccessedDirty, EngineKind, HugePagesKind, RunArgs, Shootdown, Switched, TraceVcpus,
};
use crate::switches::{Driven, Switch};
use crate::{Failure, say, storm, summary, switches, tour};

fn usage(sentence: impl ToString) -> Failure {
    Failure::new(ExitStatus::Usage, sentence)
}

pub(crate) fn run(args: RunArgs) -> Result<ExitStatus, Failure> {
    let error = |sentence: String| Failure::new(ExitStatus::Error, sentence);
    tell_stories();
    let (spec, switch) = meant(&args)?;
    warn_about_memory(&spec);
    // Made before anything runs, so that a path that cannot be written costs nothing.
    let report = args.report.as_deref().map(create).transpose()?;
    // Before the first thread: threads inherit what is blocked.
    let _signals = block_signals().map_err(|why| error(format!("cannot take Ctrl-C: {why}")))?;

    let build = Machine::build(spec).map_err(|why| Failure::new(why.exit_status(), why))?;
    let mut machine = build;
    // A guest that cannot begin has an outcome that says why; wait for that.
    let started = machine.start().is_ok();
    let driven =
        if started { switches::drive(&machine, switch, &args) } else { Ok(Driven::default()) };
    let driven = match driven {
        Ok(driven) => driven,
        Err(why) => {
            machine.stop();
            let outcome = machine.wait();
            let ended = machine.finish(outcome);
            return Err(Failure::new(ended.outcome.exit_status().worse_than_success(), why));
        }
    };
    let outcome = machine.wait();
    let ended = machine.finish(outcome);
    if let Some(file) = report {
        write_report(file, args.report.as_deref(), &ended.report, &driven)?;
    }
    summary::print(&ended, &driven);
    say(&ended.outcome);
    let status = ended.outcome.exit_status();
    if let Some(verified) = &ended.report.verified
        && !verified.found.agrees()
    {
        let count = verified.found.count;
        say(format_args!("the nested tables and the host disagree in {count} places (--verify)"));
        return Ok(status.worse_than_success());
    }
    Ok(status)
}

/// Logs go to stderr, and only when asked for: RUST_LOG=debug.
fn tell_stories() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// From what was typed to what was meant.
fn meant(args: &RunArgs) -> Result<(MachineSpec, Option<Switch>), Failure> {
    if args.highmem.is_some() {
        return Err(usage(
            "-M is gone: give the total with -m, and skep puts what does not fit below 3 GiB at 4 GiB",
        ));
    }
    let source = match (&args.kernel, &args.guest) {
        (Some(kernel), _) => BootSource::File(kernel.clone()),
        (None, Some(name)) => {
            let guest = guests::find(name).ok_or_else(|| {
                let names: Vec<_> = guests::names().collect();
                usage(format!("there is no guest \"{name}\": there are {}", names.join(", ")))
            })?;
            BootSource::Builtin(guest.name)
        }
        (None, None) => return Err(usage("nothing to boot: give --kernel FILE or --guest NAME")),
    };
    let mut spec = MachineSpec::new(source);
    spec.vcpus = args.cpus;
    spec.memory_bytes = parse_memory_size(&args.memory).map_err(usage)?;
    spec.initrd = args.initrd.clone();
    spec.cmdline = args.cmdline.clone();
    spec.wire = args.wire;
    spec.huge_pages = match args.huge_pages {
        HugePagesKind::Transparent => HugePages::Transparent,
        HugePagesKind::Reserved => HugePages::Reserved,
    };
    let limit = args.resident.as_deref().map(parse_memory_size).transpose();
    spec.resident_limit_bytes = limit.map_err(|why| usage(format!("--resident: {why}")))?;
    let swap = args.swap.as_deref().map(str::parse).transpose();
    spec.swap = swap.map_err(|why: BadSwap| usage(format!("--swap: {why}")))?;
    spec.verify = args.verify;
    spec.harvest_every = args.harvest_every.map(Duration::from_millis);
    spec.engine = match args.engine {
        EngineKind::Auto => EngineChoice::Auto,
        EngineKind::Kvm => EngineChoice::Kvm,
        EngineKind::Soft => EngineChoice::Soft,
    };
    spec.hardware_ad = args.ad == AccessedDirty::Hw;
    spec.superpages = args.superpages == Switched::On;
    spec.check_translations = args.check_translations;
    spec.shootdown = match args.shootdown {
        Shootdown::Auto => ShootdownMode::Auto,
        Shootdown::Broadcast => ShootdownMode::Broadcast,
        Shootdown::Kernel => ShootdownMode::Kernel,
    };
    spec.fault_around_pages = args.fault_around;
    if storm::is_one(args) {
        storm::check(args).map_err(usage)?;
    }
    if args.guest.as_deref() == Some(guests::tour::GUEST.name) {
        tour::check(args).map_err(usage)?;
        // It wants to know of each page what became of that page.
        spec.fault_around_pages = 1;
    }
    spec.trace = args.trace.clone();
    spec.exact_vcpus = args.trace_vcpus == TraceVcpus::Exact;
    spec.timeout = args.timeout.map(Duration::from_secs);
    spec.console = ConsoleKind::Terminal;
    let switch = args.test_switch.as_deref().map(Switch::parse).transpose().map_err(usage)?;
    spec.skip_mirror_unmap = switch == Some(Switch::KeepHostMappings);
    spec.skip_flush = switch == Some(Switch::SkipFlush);
    if let Some(Switch::SwapFault(fault, after)) = switch {
        spec.swap_fault = Some((fault, after));
    }
    spec.layout().map_err(usage)?;
    Ok((spec, switch))
}

/// More memory than the host has is allowed, because it is paged on demand; one line says so.
fn warn_about_memory(spec: &MachineSpec) {
    if let Some(bytes) = meminfo("MemTotal").map(|kilobytes| kilobytes * 1024)
        && spec.memory_bytes > bytes
    {
        say(format_args!(
            "the guest has {} bytes of memory and the host {bytes}: what the guest touches must fit",
            spec.memory_bytes
        ));
    }
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|why| {
        let sentence = format!("the report {} cannot be written: {why}", path.display());
        Failure::new(ExitStatus::Error, sentence)
    })
}

fn write_report(
    file: File,
    path: Option<&Path>,
    report: &Report,
    driven: &Driven,
) -> Result<(), Failure> {
    #[derive(serde::Serialize)]
    struct Whole<'r> {
        #[serde(flatten)]
        report: &'r Report,
        #[serde(flatten)]
        driven: &'r Driven,
    }
    let mut file = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut file, &Whole { report, driven })
        .map_err(std::io::Error::other)
        .and_then(|()| file.write_all(b"\n"))
        .and_then(|()| file.flush())
        .map_err(|why| {
            let path = path.map(Path::display).map(|path| path.to_string()).unwrap_or_default();
            Failure::new(ExitStatus::Error, format!("the report {path} cannot be written: {why}"))
        })
}
