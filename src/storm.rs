//! Drives the guest `storm`: several drivers at once, each on pages of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use actors::contract::boot::MemoryPort;
use actors::contract::page::Touch;
use actors::contract::space::SpaceRequest;
use loader_actor::guests::storm_control::{
    DATA_PAGES, StormControl, StormTally, control_range, data_block,
};
use loader_actor::guests::storm_driver::{Mix, Order, Step, StormDriver, Storms};
use serde::Serialize;
use skep::{Machine, Protection, SpaceError};
use tokio::sync::oneshot::{self, error::TryRecvError};
use vm_memory::{Bytes, GuestAddress};

use crate::cli::{HugePagesKind, RunArgs};
use crate::say;
use crate::switches::Switch;

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
/// How many orders of a storm lie between two comparisons (`--verify`).
const ORDERS_BETWEEN_LOOKS: u64 = 100;

/// Whether the guest is a storm, at whatever privilege level.
pub(crate) fn is_one(args: &RunArgs) -> bool {
    args.guest.as_deref().is_some_and(|guest| guest.starts_with("storm"))
}

/// Options with which nothing can be taken away from the guest.
///
/// # Errors
///
/// A sentence that names the option.
pub(crate) fn check(args: &RunArgs) -> Result<(), String> {
    let option = match (args.huge_pages, args.wire) {
        (HugePagesKind::Reserved, _) => "--huge-pages reserved",
        (HugePagesKind::Transparent, true) => "-S",
        (HugePagesKind::Transparent, false) => return Ok(()),
    };
    Err(format!("the storm takes pages away from the guest, and {option} keeps them: leave it out"))
}

/// Storms until enough pages were taken away in use, or the machine has ended.
///
/// # Errors
///
/// A sentence, when the pmap refuses what it must not, or the storm is too weak.
pub(crate) fn drive(
    machine: &Machine,
    mut switch: Option<Switch>,
    args: &RunArgs,
) -> Result<StormReport, String> {
    let wanted = args.storm_invalidations;
    let space = machine.space();
    // The control words stay where they are for the whole run.
    let held = [control_range(args.cpus)];
    space.hold(&held, Protection::READ | Protection::WRITE).map_err(|error| error.to_string())?;
    // All of the block that the data pages are in: else it could never become a superpage.
    let block = [data_block()];
    if space.guest_memory().layout().covers(block[0]) {
        space
            .hold(&block, Protection::READ | Protection::WRITE)
            .map_err(|error| error.to_string())?;
        space.release(&block, true);
    }
    let memory = space.memory();
    let control = StormControl::new(memory, args.cpus);
    // Where pages have nowhere to go none can leave.
    let has_store = args.swap.is_some() || args.resident.is_some();
    let mix = Mix { page_out: u32::from(has_store), ..Mix::WITHOUT_DISCARD };
    let mut storm = Storm::new(machine, mix, wanted);
    let mut waited = Wait::default();
    let mut next_look = ORDERS_BETWEEN_LOOKS;
    while !storm.is_over() {
        if storm.pass(&control)? {
            waited = Wait::default();
        } else if waited.is_long() && has_ended(machine) {
            break;
        } else {
            waited.once_more();
        }
        if args.verify && storm.orders >= next_look {
            next_look = storm.orders + ORDERS_BETWEEN_LOOKS;
            look(machine)?;
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

/// Stops the guest in the middle of the storm, which has everything compared.
fn look(machine: &Machine) -> Result<(), String> {
    match machine.pause().and_then(|()| machine.resume()) {
        // Its end is the reason.
        Err(_) if has_ended(machine) => Ok(()),
        done => done.map_err(|error| format!("the storm cannot be paused: {error}")),
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
    asked: Option<Answer>,
    is_done: bool,
}

impl<'m> Storm<'m> {
    /// Enough rounds for `wanted` invalidations of pages in use.
    fn new(machine: &'m Machine, mix: Mix, wanted: u64) -> Self {
        // Five of seven rounds invalidate a page in use.
        let rounds = wanted.div_ceil(DRIVERS.into()).saturating_mul(2) + 1;
        let share = DATA_PAGES / DRIVERS;
        let hand = |number: u16| Hand {
            driver: StormDriver::one_of_many(
                number.into(),
                mix,
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
                match answer() {
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

/// What became of an order, once the pmap has answered; what else the answer tells is for others.
type Answer = Box<dyn FnMut() -> Result<Result<(), SpaceError>, TryRecvError>>;

/// The end of a conversation that an answer comes back on.
type Reply<T> = oneshot::Sender<Result<T, SpaceError>>;

/// Asks for an order to be carried out; nothing comes back for what is done already.
fn carry_out(machine: &Machine, order: Order) -> Result<Option<Answer>, String> {
    fn ask<T: 'static>(
        machine: &Machine,
        request: impl FnOnce(Reply<T>) -> SpaceRequest,
    ) -> Result<Option<Answer>, String> {
        let (reply, mut answer) = oneshot::channel();
        // A pmap that is gone drops the question, and the next pass finds out why.
        drop(machine.space().tell(request(reply)));
        Ok(Some(Box::new(move || answer.try_recv().map(|answer| answer.map(drop)))))
    }
    use SpaceRequest as R;
    match order {
        Order::Forget(range) => ask(machine, |reply| R::Forget { range, reply }),
        Order::Unmap(range) => ask(machine, |reply| R::Unmap { range, reply }),
        Order::Map(range) => {
            ask(machine, |reply| R::Map { range, protection: Protection::all(), reply })
        }
        Order::Protect(range, protection) => {
            ask(machine, |reply| R::Protect { range, protection, reply })
        }
        Order::Harvest(range) => {
            let what = Touch::ACCESSED | Touch::MODIFIED;
            ask(machine, |reply| R::Harvest { range, what, reply })
        }
        Order::PageOut(range) => ask(machine, |reply| R::PageOut { range, reply }),
        Order::Promote(range) => {
            let promoted = ask(machine, |reply| R::Promote { range, reply })?;
            Ok(promoted.map(|mut answer| -> Answer {
                Box::new(move || match answer()? {
                    // Another driver has a page of the block out of the map just now.
                    Err(SpaceError::NotMapped(_)) => Ok(Ok(())),
                    answer => Ok(answer),
                })
            }))
        }
        Order::Discard(_) => Err("no mix of ours asks for that".to_owned()),
        Order::Zero(range) => {
            let memory = machine.space().memory();
            for word in 0..range.len() / 8 {
                // Whole words: the guest never sees half of one.
                let at = GuestAddress(range.start().0 + word * 8);
                memory.store(0u64, at, Ordering::Relaxed).map_err(|error| error.to_string())?;
            }
            Ok(None)
        }
    }
}
