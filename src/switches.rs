//! What the monitor does while a guest runs: drives the guests that want to be driven, and, for
//! tests of skep itself, breaks or exercises something on purpose.

use std::time::{Duration, Instant};

use actors::contract::boot::MemoryPort;
use actors::contract::vcpu::Break;
use loader_actor::guests;
use machine::spec::SwapFault;
use serde::Serialize;
use skep::{ActorName, GpaRange, Machine, Protection, VcpuId};
use vm_memory::{Bytes, GuestAddress};

use crate::cli::RunArgs;
use crate::say;
use crate::storm::{self, StormReport};
use crate::tour::{self, TourReport};

/// Something a test wants done to a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// Break an actor.
    Break(ActorName, Break),
    /// Leave the host mapping alone when translations are removed.
    KeepHostMappings,
    /// Leave the software engine's translations alone when it should flush them.
    SkipFlush,
    /// Pause and resume the machine, and unmap and map the top of its memory.
    Exercise,
    /// Page all of the guest's memory out, every few seconds.
    Sweep,
    /// Have the swap file fail, after so many calls that go well.
    SwapFault(SwapFault, u64),
}

impl Switch {
    /// Reads the value of `--test-switch`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "keep-host-mappings" => return Ok(Self::KeepHostMappings),
            "skip-flush" => return Ok(Self::SkipFlush),
            "exercise" => return Ok(Self::Exercise),
            "sweep" => return Ok(Self::Sweep),
            _ => {}
        }
        let unknown = || {
            let faults: Vec<_> =
                SwapFault::ALL.iter().map(|(name, _)| format!("swap-{name}")).collect();
            format!(
                "there is no test switch \"{text}\": there are keep-host-mappings, skip-flush, exercise, sweep, \
                 ACTOR-panic and ACTOR-hang for machine, pmap, pageout, pagein, loader, console, tracer and vcpuN, \
                 and, each alone or with :CALLS, {}",
                faults.join(", ")
            )
        };
        if let Some(fault) = text.strip_prefix("swap-") {
            let (name, after) = fault.split_once(':').unwrap_or((fault, "0"));
            let known = SwapFault::ALL.iter().find(|(known, _)| *known == name);
            let (_, fault) = known.ok_or_else(unknown)?;
            return Ok(Self::SwapFault(*fault, after.parse().map_err(|_| unknown())?));
        }
        let (actor, how) = text.rsplit_once('-').ok_or_else(unknown)?;
        let how = match how {
            "panic" => Break::Panic,
            "hang" => Break::Hang,
            _ => return Err(unknown()),
        };
        let actor = match actor {
            "machine" => ActorName::Machine,
            "pmap" => ActorName::Pmap,
            "pageout" => ActorName::Pageout,
            "pagein" => ActorName::Pagein,
            "loader" => ActorName::Loader,
            "console" => ActorName::Console,
            "tracer" => ActorName::Tracer,
            _ => {
                let number = actor.strip_prefix("vcpu").and_then(|number| number.parse().ok());
                ActorName::Vcpu(VcpuId(number.ok_or_else(unknown)?))
            }
        };
        Ok(Self::Break(actor, how))
    }
}

/// What driving a guest brought to light, for the summary and the report.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Driven {
    /// Of guest `storm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) storm: Option<StormReport>,
    /// Of guest `tour`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tour: Option<TourReport>,
    /// Of [`Switch::Sweep`].
    #[serde(flatten)]
    pub(crate) sweep: Option<SweepReport>,
}

/// What paging out all memory, again and again, was like.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct SweepReport {
    /// How often.
    sweeps: u64,
    /// Pages that left, all together.
    swept_pages: u64,
    /// The most that one sweep left in memory: held, wired, or used while they were leaving.
    most_left_pages: u64,
    /// The longest that one took.
    longest_sweep_ms: u64,
}

/// Does what has to be done while the guest runs. Returns when that is done, or when the
/// machine has ended.
///
/// # Errors
///
/// A sentence, when the pmap refuses what it must not, or the storm is too weak.
pub(crate) fn drive(
    machine: &Machine,
    switch: Option<Switch>,
    args: &RunArgs,
) -> Result<Driven, String> {
    if storm::is_one(args) {
        return Ok(Driven {
            storm: Some(storm::drive(machine, switch, args)?),
            ..Driven::default()
        });
    }
    if args.guest.as_deref() == Some(guests::tour::GUEST.name) {
        return Ok(Driven { tour: Some(tour::drive(machine, args)?), ..Driven::default() });
    }
    match switch {
        Some(Switch::Break(actor, how)) => machine.break_(actor, how),
        Some(Switch::Exercise) => exercise(machine)?,
        Some(Switch::Sweep) => {
            return Ok(Driven { sweep: Some(sweep(machine)?), ..Driven::default() });
        }
        Some(Switch::KeepHostMappings | Switch::SkipFlush | Switch::SwapFault(..)) | None => {}
    }
    Ok(Driven::default())
}

/// How often `exercise` pauses, and how often it unmaps.
const PAUSES: u32 = 100;
const REMAPS: u32 = 1_000;
/// How much of the top of memory `exercise` uses; the guest must leave it alone (`mem=`).
const EXERCISED: u64 = 16 << 20;

/// Pauses and resumes a running machine, and unmaps and maps memory that the guest leaves
/// alone: resident, reachable, then gone, each time.
fn exercise(machine: &Machine) -> Result<(), String> {
    let refused =
        |what: &'static str| move |error: &dyn std::fmt::Display| format!("{what}: {error}");
    for _ in 0..PAUSES {
        machine.pause().map_err(|error| refused("pause was refused")(&error))?;
        machine.resume().map_err(|error| refused("resume was refused")(&error))?;
    }
    let space = machine.space();
    let layout = space.guest_memory().layout();
    let top = layout.high().unwrap_or(layout.low());
    let range = GpaRange::new(skep::Gpa(top.end().0 - EXERCISED), EXERCISED);
    let range = range.map_err(|error| error.to_string())?;
    let page = GpaRange::page_of(range.start());
    for round in 0..REMAPS {
        let why = |error: skep::SpaceError| format!("round {round} on {range}: {error}");
        space.hold(&[page], Protection::WRITE).map_err(why)?;
        let at = GuestAddress(page.start().0);
        let before: u32 = space.memory().read_obj(at).map_err(|error| error.to_string())?;
        if before != 0 {
            return Err(format!("round {round}: fresh memory at {range} held {before:#x}"));
        }
        space.memory().write_obj(round + 1, at).map_err(|error| error.to_string())?;
        space.release(&[page], true);
        space.unmap(range).map_err(why)?;
        space.map(range, Protection::all()).map_err(why)?;
    }
    say(format_args!("exercised: {PAUSES} pauses, {REMAPS} remaps of {range} while the guest ran"));
    Ok(())
}

/// How long a guest is left alone between two sweeps.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(10);

/// Pages all of the guest's memory out, again and again, until the machine has ended.
fn sweep(machine: &Machine) -> Result<SweepReport, String> {
    let space = machine.space();
    let mut report = SweepReport::default();
    while machine.poll(BETWEEN_SWEEPS).is_none() {
        let began = Instant::now();
        let mut left = 0;
        for range in space.guest_memory().layout().ranges() {
            match space.page_out(range) {
                Ok(out) => {
                    report.swept_pages += out.freed_pages;
                    left += out.held_pages + out.wired_pages + out.rescued_pages;
                }
                // A machine that has ended refuses everything; its end is the reason.
                Err(_) if machine.poll(Duration::ZERO).is_some() => return Ok(report),
                Err(error) => return Err(format!("paging out {range} was refused: {error}")),
            }
        }
        report.sweeps += 1;
        report.most_left_pages = report.most_left_pages.max(left);
        let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        report.longest_sweep_ms = report.longest_sweep_ms.max(took);
    }
    Ok(report)
}
