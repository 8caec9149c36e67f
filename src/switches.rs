//! What the monitor does while a guest runs: drives the `storm`, and, for tests of skep
//! itself, breaks or exercises something on purpose.

use std::time::Duration;

use actors::contract::boot::MemoryPort;
use actors::contract::vcpu::Break;
use loader_actor::guests::storm_control::{StormControl, control_range};
use loader_actor::guests::storm_driver::{Mix, Order, Step, StormDriver};
use serde::Serialize;
use skep::{ActorName, GpaRange, Machine, Protection, VcpuId};
use vm_memory::{Bytes, GuestAddress};

use crate::cli::RunArgs;
use crate::say;

/// Something a test wants done to a running machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// Break an actor.
    Break(ActorName, Break),
    /// Leave the host mapping alone when translations are removed.
    KeepHostMappings,
    /// Pause and resume the machine, and unmap and map the top of its memory.
    Exercise,
}

impl Switch {
    /// Reads the value of `--test-switch`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "keep-host-mappings" => return Ok(Self::KeepHostMappings),
            "exercise" => return Ok(Self::Exercise),
            _ => {}
        }
        let unknown = || {
            format!(
                "there is no test switch \"{text}\": there are keep-host-mappings, exercise, and \
                 ACTOR-panic and ACTOR-hang for machine, pmap, loader, console, tracer and vcpuN"
            )
        };
        let (actor, how) = text.rsplit_once('-').ok_or_else(unknown)?;
        let how = match how {
            "panic" => Break::Panic,
            "hang" => Break::Hang,
            _ => return Err(unknown()),
        };
        let actor = match actor {
            "machine" => ActorName::Machine,
            "pmap" => ActorName::Pmap,
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

/// What a storm was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StormReport {
    /// Rounds begun.
    pub(crate) rounds: u64,
    /// Operations that took a translation or a right away.
    pub(crate) invalidations: u64,
    /// Of those, on a page the guest used directly before and directly after.
    pub(crate) in_use: u64,
    /// Of those, while whose operation the guest used the page.
    pub(crate) used_meanwhile: u64,
    /// Touches the guest began.
    pub(crate) touches: u64,
    /// Touches that found a newer generation than that vcpu's last.
    pub(crate) renewals: u64,
    /// Touches given up because the page was closed.
    pub(crate) skipped: u64,
}

/// How many orders of a storm are carried out before a test breaks something.
const ORDERS_BEFORE_BREAKING: u64 = 100;

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
) -> Result<Option<StormReport>, String> {
    if args.guest.as_deref().is_some_and(|guest| guest.starts_with("storm")) {
        return storm(machine, switch, args).map(Some);
    }
    match switch {
        Some(Switch::Break(actor, how)) => machine.break_(actor, how),
        Some(Switch::Exercise) => exercise(machine)?,
        Some(Switch::KeepHostMappings) | None => {}
    }
    Ok(None)
}

fn storm(machine: &Machine, switch: Option<Switch>, args: &RunArgs) -> Result<StormReport, String> {
    let wanted = args.storm_invalidations;
    let space = machine.space();
    // The control words stay where they are for the whole run.
    let held = [control_range(args.cpus)];
    space.hold(&held, Protection::READ | Protection::WRITE).map_err(|error| error.to_string())?;
    let memory = space.memory();
    let control = StormControl::new(memory, args.cpus);
    // Three of four rounds invalidate a page in use; the rest is slack.
    let mut driver = StormDriver::new(1, Mix::WITHOUT_DISCARD, wanted.saturating_mul(2));
    let mut orders = 0;
    let text = |error: &dyn std::error::Error| error.to_string();
    loop {
        match driver.step(&control).map_err(|error| text(&error))? {
            Step::Do(order) => {
                orders += 1;
                if orders == ORDERS_BEFORE_BREAKING
                    && let Some(Switch::Break(actor, how)) = switch
                {
                    machine.break_(actor, how);
                }
                if let Err(error) = carry_out(machine, order) {
                    // A machine that has ended refuses everything; its end is the reason.
                    if has_ended(machine) {
                        break;
                    }
                    return Err(format!("the storm's {order:?} was refused: {error}"));
                }
            }
            Step::Wait => {
                if has_ended(machine) {
                    break;
                }
                std::thread::yield_now();
            }
            Step::Finished => break,
        }
    }
    for alarm in control.alarms().map_err(|error| text(&error))? {
        say(format_args!("the storm guest raised an alarm: {alarm:?}"));
    }
    let (done, guest) = (driver.storms(), control.tally().map_err(|error| text(&error))?);
    let report = StormReport {
        rounds: done.rounds,
        invalidations: done.invalidations,
        in_use: done.in_use,
        used_meanwhile: done.used_meanwhile,
        touches: guest.touches,
        renewals: guest.renewals,
        skipped: guest.skipped,
    };
    if !has_ended(machine) && done.in_use < wanted {
        let found = done.in_use;
        return Err(format!("the storm hit only {found} pages in use, and {wanted} were wanted"));
    }
    Ok(report)
}

fn has_ended(machine: &Machine) -> bool {
    machine.poll(Duration::ZERO).is_some()
}

fn carry_out(machine: &Machine, order: Order) -> Result<(), String> {
    let space = machine.space();
    let done = match order {
        Order::Forget(range) => space.forget(range).map(drop),
        Order::Unmap(range) => space.unmap(range),
        Order::Map(range) => space.map(range, Protection::all()),
        Order::Protect(range, protection) => space.protect(range, protection),
        Order::Discard(_) => return Err("no mix of ours asks for that".to_owned()),
        Order::Zero(range) => {
            // A copy of whole words: the guest never sees half of one.
            return (0..range.len() / 8).try_for_each(|word| {
                let at = GuestAddress(range.start().0 + word * 8);
                let stored = space.memory().store(0u64, at, std::sync::atomic::Ordering::Relaxed);
                stored.map_err(|error| error.to_string())
            });
        }
    };
    done.map_err(|error| error.to_string())
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
