//! Goes through the itinerary: a pure step function that orders, compares what came of it, and says at once when a page
//! is not what it should be.
//!
//! The driver knows no actor, no thread and no clock. Whoever drives the tour carries out each [`Order`], answers with
//! what came of it, and is given the next. For each transition the pmap's counts are taken before and after, so that
//! what it cost is known, and what it must have cost is checked; and then the tables are compared with the host.

use std::collections::VecDeque;

use actors::contract::page::{
    Advice, DirtyConsumer, DirtyEpoch, Harvest, PageState, PagedOut, Resized, Settled, Touch,
};
use actors::contract::space::{SpaceError, SpaceTally};
use actors::contract::verify::Verified;
use actors::{Gpa, GpaRange, PAGE_SIZE, Protection};

use super::control::{Deed, Done};
use super::script::{Act, Amount, Counter, Found, Transition};
use super::sight::describe;

/// What whoever drives the tour has to do now, to completion, before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Have a vcpu do this; answer with [`Answer::Done`].
    Deed(Deed),
    /// Write noise to these pages, which nothing compresses, through a hold; the first 8 bytes of each are this.
    Scatter(GpaRange, u64),
    /// Hold for this access, until told to release.
    Hold(GpaRange, Protection),
    /// Release what is held, and install nothing.
    Release(GpaRange),
    /// Have fresh memory there.
    Map(GpaRange),
    /// Forget the memory and what it held.
    Unmap(GpaRange),
    /// Forget the translations and keep the contents.
    Forget(GpaRange),
    /// Allow only this from now on.
    Protect(GpaRange, Protection),
    /// Keep it resident.
    Wire(GpaRange),
    /// No longer.
    Unwire(GpaRange),
    /// Read and clear; answer with [`Answer::Harvest`].
    Harvest(GpaRange, Touch),
    /// Have somebody want dirty epochs; answer with [`Answer::Consumer`].
    BeginDirty,
    /// Take an epoch; answer with [`Answer::Epoch`].
    TakeDirty(DirtyConsumer),
    /// Settle the epoch of this number.
    SettleDirty(DirtyConsumer, u64, Settled),
    /// Nobody wants epochs any more.
    EndDirty(DirtyConsumer),
    /// Page out; answer with [`Answer::PagedOut`].
    PageOut(GpaRange),
    /// Page out, and before that is answered hold the last page for loads; release it at the end. Answer with
    /// [`Answer::PagedOut`].
    Race(GpaRange),
    /// Make superpages; answer with [`Answer::Resized`].
    Promote(GpaRange),
    /// Unmake them; answer with [`Answer::Resized`].
    Demote(GpaRange),
    /// Advise.
    Advise(GpaRange, Advice),
    /// Look at a page; answer with [`Answer::State`]. Where the same page is looked at again and again, let go of the
    /// processor for some microseconds in between.
    Look(Gpa),
    /// Tell the counts; answer with [`Answer::Tally`].
    Count,
    /// Compare the tables with the host and the books; answer with [`Answer::Verified`].
    Verify,
}

/// What came of an [`Order`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// It was carried out, and there is nothing to tell.
    Well,
    /// The pmap would not.
    Refused(SpaceError),
    /// Of [`Order::Deed`].
    Done(Done),
    /// Of [`Order::Harvest`].
    Harvest(Box<Harvest>),
    /// Of [`Order::BeginDirty`].
    Consumer(DirtyConsumer),
    /// Of [`Order::TakeDirty`].
    Epoch(Box<DirtyEpoch>),
    /// Of [`Order::PageOut`] and [`Order::Race`].
    PagedOut(PagedOut),
    /// Of [`Order::Promote`] and [`Order::Demote`].
    Resized(Resized),
    /// Of [`Order::Look`].
    State(PageState),
    /// Of [`Order::Count`].
    Tally(Box<SpaceTally>),
    /// Of [`Order::Verify`].
    Verified(Box<Verified>),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do this, and come back with the answer.
    Do(Order),
    /// Every transition was visited or skipped.
    Finished,
}

/// Something was not what it should be: which transition, what was looked for, what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tour went astray at \"{transition}\": {wanted} was expected, and {found} was found")]
pub struct Astray {
    /// The transition's name.
    pub transition: &'static str,
    /// What was expected.
    pub wanted: String,
    /// What was found.
    pub found: String,
}

/// What one transition was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visit {
    /// Its name.
    pub transition: &'static str,
    /// Why it was left out, if it was.
    pub skipped: Option<&'static str>,
    /// Faults served.
    pub faults: u64,
    /// Of those: they only set emulated accessed or modified bits.
    pub bit_faults: u64,
    /// Shootdowns.
    pub shootdowns: u64,
    /// Pages that left memory.
    pub pages_out: u64,
    /// Pages that came back.
    pub pages_in: u64,
    /// Superpages made.
    pub promotions: u64,
    /// Superpages unmade.
    pub demotions: u64,
}

/// How often pages are paged out anew in the hope to catch one on its way.
const MOST_RACES: u32 = 500;

/// How often a page is looked at that is on its way to the disk. A look is a question to the pmap and its answer: some
/// ten microseconds and more.
const MOST_LOOKS: u32 = 200_000;

/// Where in a transition the driver is: what it waits for.
#[derive(Debug)]
enum Waiting {
    /// Nothing was ordered yet.
    Fresh,
    /// The counts before.
    Before,
    /// What comes of this.
    For(Act),
    /// The counts after.
    After,
    /// Whether the tables agree with the host.
    Verified,
}

/// Drives one tour.
#[derive(Debug)]
pub struct TourDriver {
    transitions: VecDeque<Transition>,
    /// Of the present transition.
    name: &'static str,
    acts: VecDeque<Act>,
    counts: Vec<(Counter, Amount)>,
    before: SpaceTally,
    waiting: Waiting,
    visits: Vec<Visit>,
    consumer: DirtyConsumer,
    epoch: u64,
    races: u32,
    looks: u32,
}

impl TourDriver {
    /// A tour of these transitions, in this order.
    #[must_use]
    pub fn new(transitions: Vec<Transition>) -> Self {
        Self {
            transitions: transitions.into(),
            name: "the beginning",
            acts: VecDeque::new(),
            counts: Vec::new(),
            before: SpaceTally::default(),
            waiting: Waiting::Fresh,
            visits: Vec::new(),
            consumer: DirtyConsumer(0),
            epoch: 0,
            races: 0,
            looks: 0,
        }
    }

    /// What was visited so far, in order.
    #[must_use]
    pub fn visits(&self) -> &[Visit] {
        &self.visits
    }

    /// What to do now. `answer` is what came of the last order; nothing comes of none, at the first step.
    ///
    /// # Errors
    ///
    /// [`Astray`], after which there is no going on.
    pub fn step(&mut self, answer: Option<Answer>) -> Result<Step, Astray> {
        if let Some(answer) = answer {
            self.compare(answer)?;
        }
        if matches!(self.waiting, Waiting::Fresh) {
            return Ok(self.begin_transition());
        }
        if matches!(self.waiting, Waiting::Verified) {
            return Ok(Step::Do(Order::Verify));
        }
        match self.acts.pop_front() {
            Some(act) => {
                let order = self.order_of(&act);
                self.waiting = Waiting::For(act);
                Ok(Step::Do(order))
            }
            None => {
                self.waiting = Waiting::After;
                Ok(Step::Do(Order::Count))
            }
        }
    }

    fn begin_transition(&mut self) -> Step {
        while let Some(next) = self.transitions.pop_front() {
            if let Some(skipped) = next.skipped {
                let skipped = Some(skipped);
                self.visits.push(Visit { transition: next.name, skipped, ..Visit::default() });
                continue;
            }
            self.name = next.name;
            self.acts = next.acts.into();
            self.counts = next.counts;
            self.races = 0;
            self.waiting = Waiting::Before;
            return Step::Do(Order::Count);
        }
        Step::Finished
    }

    fn order_of(&self, act: &Act) -> Order {
        match act {
            Act::Deed(deed) => Order::Deed(*deed),
            Act::Do(order) | Act::Refused(order, _) | Act::Resize(order, _) => order.clone(),
            Act::Harvest(range, touch, _) => Order::Harvest(*range, *touch),
            Act::Out(range, _) => Order::PageOut(*range),
            Act::Rescue(range, _) => Order::Race(*range),
            Act::See(at, _) | Act::Until(at, _) => Order::Look(*at),
            Act::Begin => Order::BeginDirty,
            Act::Take(..) => Order::TakeDirty(self.consumer),
            Act::Settle(how) => Order::SettleDirty(self.consumer, self.epoch, *how),
            Act::End => Order::EndDirty(self.consumer),
        }
    }

    fn astray(&self, wanted: impl ToString, found: impl ToString) -> Astray {
        let (wanted, found) = (wanted.to_string(), found.to_string());
        Astray { transition: self.name, wanted, found }
    }

    /// Compares what came of the last order with what should have.
    fn compare(&mut self, answer: Answer) -> Result<(), Astray> {
        match (std::mem::replace(&mut self.waiting, Waiting::Fresh), answer) {
            (Waiting::Before, Answer::Tally(tally)) => {
                self.before = *tally;
                self.waiting = Waiting::Before;
                Ok(())
            }
            (Waiting::After, Answer::Tally(tally)) => {
                self.waiting = Waiting::Verified;
                self.end_transition(&tally)
            }
            (Waiting::Verified, Answer::Verified(verified)) => {
                let wanted = "tables that agree with the host and the books";
                if verified.agrees() { Ok(()) } else { Err(self.astray(wanted, verified)) }
            }
            (Waiting::For(act), answer) => {
                self.waiting = Waiting::Before;
                self.compare_act(act, answer)
            }
            (waiting, answer) => Err(self.astray(format!("{waiting:?}"), format!("{answer:?}"))),
        }
    }

    fn compare_act(&mut self, act: Act, answer: Answer) -> Result<(), Astray> {
        let fine = |is: bool, why: Astray| if is { Ok(()) } else { Err(why) };
        match (act, answer) {
            (Act::Deed(deed), Answer::Done(done)) => {
                let (pages, right, found) = (deed.range.pages(), done.right, done.found);
                let wanted = format!("{:#x} in {pages} pages at {}", deed.value, deed.range);
                let why = self.astray(wanted, format!("that in {right}, and {found:#x}"));
                fine(right == pages, why)
            }
            (Act::Settle(_) | Act::End, Answer::Well) => Ok(()),
            (Act::Refused(order, words), Answer::Refused(error)) => {
                let wanted = format!("a refusal of {order:?} that says \"{words}\"");
                fine(error.to_string().contains(words), self.astray(wanted, error))
            }
            (Act::See(at, sight), Answer::State(state)) => {
                let why = self.astray(format!("{at} {sight}"), describe(&state));
                fine(sight.fits(&state), why)
            }
            (Act::Until(at, sight), Answer::State(state)) => {
                self.looks += 1;
                if sight.fits(&state) {
                    self.looks = 0;
                } else if self.looks == MOST_LOOKS {
                    let wanted = format!("{at} {sight}, before long,");
                    return Err(self.astray(wanted, describe(&state)));
                } else {
                    self.acts.push_front(Act::Until(at, sight));
                }
                Ok(())
            }
            (Act::Out(range, wanted), Answer::PagedOut(out)) => {
                let why = self.astray(format!("{range}: {wanted:?}"), format!("{out:?}"));
                fine(out == wanted, why)
            }
            (Act::Rescue(range, value), Answer::PagedOut(out)) => self.raced(range, value, out),
            (Act::Resize(order, wanted), Answer::Resized(resized)) => {
                let why = self.astray(format!("{order:?}: {wanted:?}"), format!("{resized:?}"));
                fine(resized == wanted, why)
            }
            (Act::Harvest(range, touch, found), Answer::Harvest(harvest)) => {
                self.compare_harvest(range, touch, found, &harvest)
            }
            (Act::Begin, Answer::Consumer(consumer)) => {
                self.consumer = consumer;
                Ok(())
            }
            (Act::Take(region, wanted), Answer::Epoch(epoch)) => {
                self.epoch = epoch.number;
                let found = pages_in(region, |page| epoch.pages.contains(page));
                let why = self.astray(list(&wanted), list(&found));
                fine(found == wanted, why)
            }
            // Where more than "it was done" matters there is an act of its own.
            (Act::Do(order), answer) if !matches!(answer, Answer::Refused(_)) => {
                let is_a_question =
                    matches!(order, Order::Deed(_) | Order::Look(_) | Order::Count | Order::Verify);
                fine(!is_a_question, self.astray("nobody to ask", format!("{answer:?}")))
            }
            (act, Answer::Refused(error)) => {
                Err(self.astray(format!("{:?}", self.order_of(&act)), format!("\"{error}\"")))
            }
            (act, answer) => Err(self.astray(format!("{act:?}"), format!("{answer:?}"))),
        }
    }

    /// A page was caught on its way, or everybody tries once more: with pages that were written anew, because
    /// a page whose copy is good leaves at once.
    fn raced(&mut self, range: GpaRange, write: Deed, out: PagedOut) -> Result<(), Astray> {
        if out.rescued_pages > 0 {
            return Ok(());
        }
        self.races += 1;
        if self.races == MOST_RACES {
            let wanted = format!("a page caught on its way out in one of {MOST_RACES} attempts");
            return Err(self.astray(wanted, "none"));
        }
        self.acts.push_front(Act::Rescue(range, write));
        self.acts.push_front(Act::Deed(write));
        Ok(())
    }

    fn compare_harvest(
        &self,
        range: GpaRange,
        touch: Touch,
        wanted: Found,
        harvest: &Harvest,
    ) -> Result<(), Astray> {
        for (is_asked, name, wanted, set) in [
            (touch.contains(Touch::ACCESSED), "accessed", wanted.accessed, &harvest.accessed),
            (touch.contains(Touch::MODIFIED), "modified", wanted.modified, &harvest.modified),
        ] {
            let found = pages_in(range, |page| set.contains(page));
            // What nobody asked for may be told all the same: where accessed cannot go without modified.
            let wanted: Vec<Gpa> = match wanted {
                Some(true) if is_asked => range.iter_pages().collect(),
                Some(false) if is_asked => Vec::new(),
                _ => continue,
            };
            if found != wanted {
                let as_set = |pages: &[Gpa]| format!("{name}: {}", list(pages));
                return Err(self.astray(as_set(&wanted), as_set(&found)));
            }
        }
        Ok(())
    }

    fn end_transition(&mut self, after: &SpaceTally) -> Result<(), Astray> {
        let before = &self.before;
        let grown = |counter: Counter| counter.of(after).saturating_sub(counter.of(before));
        for (counter, amount) in &self.counts {
            let grew = grown(*counter);
            if !amount.is(grew) {
                let wanted = format!("{counter:?} growing by {amount}");
                return Err(self.astray(wanted, format!("by {grew}")));
            }
        }
        self.visits.push(Visit {
            transition: self.name,
            skipped: None,
            faults: grown(Counter::Faults),
            bit_faults: grown(Counter::BitFaults),
            shootdowns: grown(Counter::Shootdowns),
            pages_out: grown(Counter::PagesOut),
            pages_in: grown(Counter::PagesIn),
            promotions: grown(Counter::Promotions),
            demotions: grown(Counter::Demotions),
        });
        Ok(())
    }
}

/// Pages of `region` whose number is wanted. The tour works below the hole for devices, where a page's number in its
/// object is that of its address.
fn pages_in(region: GpaRange, is: impl Fn(u64) -> bool) -> Vec<Gpa> {
    region.iter_pages().filter(|page| is(page.0 / PAGE_SIZE)).collect()
}

fn list(pages: &[Gpa]) -> String {
    const MOST: usize = 8;
    let names: Vec<_> = pages.iter().take(MOST).map(ToString::to_string).collect();
    match pages.len() {
        0 => "no page".to_owned(),
        count if count > MOST => format!("{count} pages: {}, ...", names.join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
#[path = "driver_tests.rs"]
mod tests;
