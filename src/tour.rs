//! Drives the guest `tour`: carries out what the itinerary says, one order at a time, and tells what was visited.

use std::fmt::Write as _;
use std::time::Duration;

use actors::contract::boot::MemoryPort;
use actors::contract::space::{SpaceError, SpaceRequest};
use loader_actor::guests::tour::control::{TourControl, control_range};
use loader_actor::guests::tour::driver::{Answer, Order, Step, TourDriver, Visit};
use loader_actor::guests::tour::script::{Setting, itinerary};
use serde::Serialize;
use skep::{EngineKind, Gpa, GpaRange, Machine, PAGE_SIZE, Protection};
use tokio::sync::oneshot;
use vm_memory::{Bytes, GuestAddress};

use crate::cli::{AccessedDirty, HugePagesKind, RunArgs, Switched};
use crate::say;

/// What a tour was like.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TourReport {
    /// Deeds that vcpus did.
    pub(crate) deeds: u64,
    /// What was not what it should have been, if anything was; the tour ended there.
    pub(crate) astray: Option<String>,
    /// Each transition, in order.
    pub(crate) transitions: Vec<VisitReport>,
}

/// One transition.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct VisitReport {
    transition: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'static str>,
    faults: u64,
    bit_faults: u64,
    shootdowns: u64,
    pages_out: u64,
    pages_in: u64,
    promotions: u64,
    demotions: u64,
}

impl From<&Visit> for VisitReport {
    fn from(visit: &Visit) -> Self {
        let Visit { transition, skipped, faults, bit_faults, shootdowns, .. } = *visit;
        let Visit { pages_out, pages_in, promotions, demotions, .. } = *visit;
        Self {
            transition,
            skipped,
            faults,
            bit_faults,
            shootdowns,
            pages_out,
            pages_in,
            promotions,
            demotions,
        }
    }
}

/// Options with which a tour cannot count: somebody else would move its pages.
///
/// # Errors
///
/// A sentence that names the option.
pub(crate) fn check(args: &RunArgs) -> Result<(), String> {
    let others = [
        (args.resident.is_some(), "--resident"),
        (args.harvest_every.is_some(), "--harvest-every"),
        (args.wire, "-S"),
        (args.huge_pages == HugePagesKind::Reserved, "--huge-pages reserved"),
    ];
    match others.iter().find(|(is_given, _)| *is_given) {
        None => Ok(()),
        Some((_, option)) => Err(format!(
            "the tour counts every move of its pages, and {option} would move them: leave it out"
        )),
    }
}

/// Takes the guest on its tour. Returns when that is over, or when the machine has ended.
///
/// # Errors
///
/// A sentence, when the guest's control words cannot be reached.
pub(crate) fn drive(machine: &Machine, args: &RunArgs) -> Result<TourReport, String> {
    let space = machine.space();
    // The control words stay where they are for the whole run.
    let held = [control_range(args.cpus)];
    space.hold(&held, Protection::READ | Protection::WRITE).map_err(|error| error.to_string())?;
    let is_kvm = machine.engine() == EngineKind::Kvm;
    let setting = Setting {
        vcpus: args.cpus,
        emulated: is_kvm || args.ad == AccessedDirty::Emulated,
        // The host mapping that KVM follows has no right to execute of its own.
        sees_executions: is_kvm || args.ad == AccessedDirty::Hw,
        superpages: args.superpages == Switched::On,
        swap: args.swap.is_some(),
    };
    let mut tour = Tour { machine, control: TourControl::new(space.memory()), deeds: 0 };
    let mut driver = TourDriver::new(itinerary(setting));
    let astray = tour.travel(&mut driver)?;
    if let Some(sentence) = &astray {
        say(sentence);
    }
    tour.control.stop(astray.is_none()).map_err(|error| error.to_string())?;
    let transitions = driver.visits().iter().map(VisitReport::from).collect();
    Ok(TourReport { deeds: tour.deeds, astray, transitions })
}

struct Tour<'m> {
    machine: &'m Machine,
    control: TourControl<'m>,
    deeds: u64,
}

impl Tour<'_> {
    /// From one order to the next, up to the end; what went astray, if anything did.
    fn travel(&mut self, driver: &mut TourDriver) -> Result<Option<String>, String> {
        let mut answer = None;
        loop {
            let order = match driver.step(answer) {
                Ok(Step::Do(order)) => order,
                Ok(Step::Finished) => return Ok(None),
                // A machine that has ended refuses everything; its end is the reason.
                Err(_) if self.has_ended() => return Ok(None),
                Err(astray) => return Ok(Some(astray.to_string())),
            };
            answer = match self.carry_out(order) {
                Ok(answer) => Some(answer),
                Err(_) if self.has_ended() => return Ok(None),
                Err(why) => return Err(why),
            };
        }
    }

    fn has_ended(&self) -> bool {
        self.machine.poll(Duration::ZERO).is_some()
    }

    fn carry_out(&mut self, order: Order) -> Result<Answer, String> {
        let space = self.machine.space();
        let answered = match order {
            Order::Deed(deed) => {
                self.deeds += 1;
                self.control.order(self.deeds, &deed).map_err(|error| error.to_string())?;
                loop {
                    let done = self.control.done(self.deeds, deed.vcpu);
                    if let Some(done) = done.map_err(|error| error.to_string())? {
                        return Ok(Answer::Done(done));
                    }
                    if self.has_ended() {
                        return Err("the machine has ended".to_owned());
                    }
                    rest();
                }
            }
            Order::Scatter(range, content) => self.scatter(range, content).map(|()| Answer::Well),
            Order::Race(range) => self.race(range),
            Order::Hold(range, access) => space.hold(&[range], access).map(|()| Answer::Well),
            Order::Release(range) => {
                space.release(&[range], false);
                Ok(Answer::Well)
            }
            Order::Map(range) => space.map(range, Protection::all()).map(|()| Answer::Well),
            Order::Unmap(range) => space.unmap(range).map(|()| Answer::Well),
            Order::Forget(range) => space.forget(range).map(|()| Answer::Well),
            Order::Protect(range, allowed) => space.protect(range, allowed).map(|()| Answer::Well),
            Order::Wire(range) => space.wire(range).map(|()| Answer::Well),
            Order::Unwire(range) => space.unwire(range).map(|()| Answer::Well),
            Order::Harvest(range, touch) => {
                space.harvest(range, touch).map(Box::new).map(Answer::Harvest)
            }
            Order::BeginDirty => space.begin_dirty().map(Answer::Consumer),
            Order::TakeDirty(whose) => space.take_dirty(whose).map(Box::new).map(Answer::Epoch),
            Order::SettleDirty(whose, number, how) => {
                space.settle_dirty(whose, number, how).map(|()| Answer::Well)
            }
            Order::EndDirty(whose) => space.end_dirty(whose).map(|()| Answer::Well),
            Order::PageOut(range) => space.page_out(range).map(Answer::PagedOut),
            Order::Promote(range) => space.promote(range).map(Answer::Resized),
            Order::Demote(range) => space.demote(range).map(Answer::Resized),
            Order::Advise(range, advice) => space.advise(range, advice).map(|()| Answer::Well),
            Order::Look(at) => {
                rest();
                space.page(at).map(Answer::State)
            }
            Order::Verify => space.verify().map(Box::new).map(Answer::Verified),
            Order::Count => space.count().map(Box::new).map(Answer::Tally),
        };
        Ok(answered.unwrap_or_else(Answer::Refused))
    }

    /// Noise behind the content: nothing compresses it.
    fn scatter(&self, range: GpaRange, content: u64) -> Result<(), SpaceError> {
        let space = self.machine.space();
        space.hold(&[range], Protection::READ | Protection::WRITE)?;
        let mut random = content ^ range.start().0;
        for page in range.iter_pages() {
            for word in 0..PAGE_SIZE / 8 {
                // Steele, Lea and Flood's splitmix64.
                random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut mixed = (random ^ random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                let value = if word == 0 { content } else { mixed ^ mixed >> 31 };
                let at = GuestAddress(page.0 + word * 8);
                space.memory().write_obj(value, at).map_err(|error| SpaceError::Host {
                    what: "write to held memory",
                    why: error.to_string(),
                })?;
            }
        }
        space.release(&[range], false);
        Ok(())
    }

    /// Both questions are in the pmap's mailbox before it has answered the first.
    fn race(&self, range: GpaRange) -> Result<Answer, SpaceError> {
        let space = self.machine.space();
        let (reply, out) = oneshot::channel();
        space.tell(SpaceRequest::PageOut { range, reply })?;
        let last = GpaRange::page_of(Gpa(range.end().0 - PAGE_SIZE));
        space.hold(&[last], Protection::READ)?;
        space.release(&[last], false);
        let out = actors::ask::wait(out, PATIENCE);
        out.unwrap_or(Err(SpaceError::Dead("did not answer"))).map(Answer::PagedOut)
    }
}

/// How long a pageout may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A vcpu that shares its cpu with us needs it.
fn rest() {
    std::thread::park_timeout(Duration::from_micros(20));
}

/// What was visited, as a table.
pub(crate) fn table(report: &TourReport) -> String {
    let visits = &report.transitions;
    let wide = visits.iter().map(|visit| visit.transition.chars().count()).max().unwrap_or(0);
    let mut text = format!(
        "\n  {:wide$}  faults  of bits  shootdowns   out    in  2M up  2M down\n",
        "transition"
    );
    for visit in visits.iter().filter(|visit| visit.skipped.is_none()) {
        let VisitReport { transition, faults, bit_faults, shootdowns, .. } = visit;
        let VisitReport { pages_out, pages_in, promotions, demotions, .. } = visit;
        let _infallible = writeln!(
            text,
            "  {transition:wide$}  {faults:6}  {bit_faults:7}  {shootdowns:10}  {pages_out:4}  {pages_in:4}  {promotions:5}  {demotions:7}"
        );
    }
    for visit in visits {
        if let Some(why) = visit.skipped {
            let _infallible = writeln!(text, "  {:wide$}  skipped: {why}", visit.transition);
        }
    }
    let visited = visits.iter().filter(|visit| visit.skipped.is_none()).count();
    let _infallible = writeln!(
        text,
        "  {visited} transitions visited, {} skipped; {} deeds",
        visits.len() - visited,
        report.deeds
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_transition_and_the_reason_for_each_that_was_skipped() {
        let visit = Visit { transition: "a -> b", faults: 12, ..Visit::default() };
        let skipped = Visit { transition: "b -> c, by d", skipped: Some("no d"), ..visit };
        let transitions = [visit, skipped].iter().map(VisitReport::from).collect();
        let table = table(&TourReport { deeds: 5, astray: None, transitions });
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[1].starts_with("  transition    faults"), "{table}");
        assert!(lines[2].starts_with("  a -> b            12"), "{table}");
        assert_eq!(lines[3], "  b -> c, by d  skipped: no d");
        assert_eq!(lines[4], "  1 transitions visited, 1 skipped; 5 deeds");
    }
}
