//! What the monitor does while a guest runs: drives the `storm`, and, for tests of skep
//! itself, breaks or exercises something on purpose.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actors::contract::boot::MemoryPort;
use actors::contract::space::SpaceRequest;
use actors::contract::vcpu::Break;
use loader_actor::guests::storm_control::{DATA_PAGES, StormControl, StormTally, control_range};
use loader_actor::guests::storm_driver::{Mix, Order, Step, StormDriver, Storms};
use serde::Serialize;
use skep::{ActorName, GpaRange, Machine, Protection, SpaceError, VcpuId};
use tokio::sync::oneshot::{self, error::TryRecvError};
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
    /// Leave the software engine's translations alone when it should flush them.
    SkipFlush,
    /// Pause and resume the machine, and unmap and map the top of its memory.
    Exercise,
}

impl Switch {
    /// Reads the value of `--test-switch`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match text {
            "keep-host-mappings" => return Ok(Self::KeepHostMappings),
            "skip-flush" => return Ok(Self::SkipFlush),
            "exercise" => return Ok(Self::Exercise),
            _ => {}
        }
        let unknown = || {
            format!(
                "there is no test switch \"{text}\": there are keep-host-mappings, skip-flush, exercise, and \
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
        Some(Switch::KeepHostMappings | Switch::SkipFlush) | None => {}
    }
    Ok(None)
}

fn storm(
    machine: &Machine,
    mut switch: Option<Switch>,
    args: &RunArgs,
) -> Result<StormReport, String> {
    let wanted = args.storm_invalidations;
    let space = machine.space();
    // The control words stay where they are for the whole run.
    let held = [control_range(args.cpus)];
    space.hold(&held, Protection::READ | Protection::WRITE).map_err(|error| error.to_string())?;
    let memory = space.memory();
    let control = StormControl::new(memory, args.cpus);
    let mut storm = Storm::new(machine, wanted);
    let mut waited = Wait::default();
    while !storm.is_over() {
        if storm.pass(&control)? {
            waited = Wait::default();
        } else if waited.is_long() && has_ended(machine) {
            break;
        } else {
            waited.once_more();
        }
        if storm.orders >= ORDERS_BEFORE_BREAKING
            && let Some(Switch::Break(actor, how)) = switch.take()
        {
            machine.break_(actor, how);
        }
    }
    let text = |error: &dyn std::error::Error| error.to_string();
    control.stop().map_err(|error| text(&error))?;
    for alarm in control.alarms().map_err(|error| text(&error))? {
        say(format_args!("the storm guest raised an alarm: {alarm:?}"));
    }
    let guest = control.tally().map_err(|error| text(&error))?;
    let report = storm.report(guest);
    if !has_ended(machine) && report.in_use < wanted {
        let found = report.in_use;
        return Err(format!("the storm hit only {found} pages in use, and {wanted} were wanted"));
    }
    Ok(report)
}

/// Waiting for a guest that runs: it needs nanoseconds if it is on a cpu. If it is not, it needs
/// ours, and for a while: a thread that merely yields is back before any vcpu that it made
/// room for (300 rounds of a storm on four vcpus and two cpus took 14 s instead of 0.8 s).
#[derive(Default)]
struct Wait(u32);

impl Wait {
    const LOOKS: u32 = 200;
    const LET_GO: Duration = Duration::from_micros(20);

    fn is_long(&self) -> bool {
        self.0 > 0 && self.0.is_multiple_of(Self::LOOKS)
    }

    fn once_more(&mut self) {
        self.0 = self.0.wrapping_add(1);
        if self.is_long() {
            std::thread::park_timeout(Self::LET_GO);
        } else {
            std::hint::spin_loop();
        }
    }
}

fn has_ended(machine: &Machine) -> bool {
    machine.poll(Duration::ZERO).is_some()
}

/// How many drivers work at once, each on pages of its own. A round waits for vcpus to touch
/// a page, and a vcpu that shares its cpu takes time slices to do so: waiting for
/// several at once costs no more, and removals that wait together share one raise.
const DRIVERS: u16 = 8;

/// Several drivers at work on one guest.
struct Storm<'m> {
    machine: &'m Machine,
    hands: Vec<Hand>,
    orders: u64,
}

/// One driver, and the request it waits for.
struct Hand {
    driver: StormDriver,
    asked: Option<oneshot::Receiver<Result<(), SpaceError>>>,
    is_done: bool,
}

impl<'m> Storm<'m> {
    /// Enough rounds for `wanted` invalidations of pages in use.
    fn new(machine: &'m Machine, wanted: u64) -> Self {
        // Three of four rounds invalidate a page in use.
        let rounds = wanted.div_ceil(DRIVERS.into()).saturating_mul(3) / 2 + 1;
        let share = DATA_PAGES / DRIVERS;
        let hand = |number: u16| Hand {
            driver: StormDriver::one_of_many(
                number.into(),
                Mix::WITHOUT_DISCARD,
                rounds,
                number * share..(number + 1) * share,
            ),
            asked: None,
            is_done: false,
        };
        Self { machine, hands: (0..DRIVERS).map(hand).collect(), orders: 0 }
    }

    fn is_over(&self) -> bool {
        self.hands.iter().all(|hand| hand.is_done)
    }

    /// Lets every driver do what it can now; says whether anything was done.
    fn pass(&mut self, control: &StormControl<'_>) -> Result<bool, String> {
        let mut did = false;
        for hand in &mut self.hands {
            if let Some(answer) = &mut hand.asked {
                match answer.try_recv() {
                    Ok(Ok(())) => hand.asked = None,
                    Err(TryRecvError::Empty) => continue,
                    // A machine that has ended refuses everything; its end is the reason.
                    refused if has_ended(self.machine) => {
                        tracing::debug!(?refused, "after the end");
                        self.hands.iter_mut().for_each(|hand| hand.is_done = true);
                        return Ok(false);
                    }
                    refused => return Err(format!("the storm was refused: {refused:?}")),
                }
            }
            if hand.is_done {
                continue;
            }
            match hand.driver.step(control).map_err(|error| error.to_string())? {
                Step::Do(order) => {
                    self.orders += 1;
                    hand.asked = carry_out(self.machine, order)?;
                    did = true;
                }
                Step::Wait => {}
                Step::Finished => hand.is_done = true,
            }
        }
        Ok(did)
    }

    fn report(&self, guest: StormTally) -> StormReport {
        let sum =
            |of: fn(Storms) -> u64| self.hands.iter().map(|hand| of(hand.driver.storms())).sum();
        StormReport {
            rounds: sum(|storms| storms.rounds),
            invalidations: sum(|storms| storms.invalidations),
            in_use: sum(|storms| storms.in_use),
            used_meanwhile: sum(|storms| storms.used_meanwhile),
            touches: guest.touches,
            renewals: guest.renewals,
            skipped: guest.skipped,
        }
    }
}

/// Where the pmap answers an order.
type Answer = oneshot::Receiver<Result<(), SpaceError>>;

/// Asks for an order to be carried out; nothing comes back for what is done already.
fn carry_out(machine: &Machine, order: Order) -> Result<Option<Answer>, String> {
    let (reply, answer) = oneshot::channel();
    let request = match order {
        Order::Forget(range) => SpaceRequest::Forget { range, reply },
        Order::Unmap(range) => SpaceRequest::Unmap { range, reply },
        Order::Map(range) => SpaceRequest::Map { range, protection: Protection::all(), reply },
        Order::Protect(range, protection) => SpaceRequest::Protect { range, protection, reply },
        Order::Discard(_) => return Err("no mix of ours asks for that".to_owned()),
        Order::Zero(range) => {
            let memory = machine.space().memory();
            for word in 0..range.len() / 8 {
                // Whole words: the guest never sees half of one.
                let at = GuestAddress(range.start().0 + word * 8);
                memory.store(0u64, at, Ordering::Relaxed).map_err(|error| error.to_string())?;
            }
            return Ok(None);
        }
    };
    // A pmap that is gone drops the question, and the next pass finds out why.
    drop(machine.space().tell(request));
    Ok(Some(answer))
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
