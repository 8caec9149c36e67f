//! What the monitor does to a `storm` guest, and in which order: a pure step function.
//!
//! The driver orders, somebody else executes ([`Order`]): it knows no actor, no thread and
//! no clock. It works on one page at a time, in rounds; each round is a script:
//!
//! ```text
//!   forget    used, Forget, used
//!   protect   used, (g, read-only), drained, used, read-only, used, read-write, used,
//!             (g, changing), drained, used, Zero, (g + 1, open), used
//!   replace   used, (g, closed), drained, Unmap, Map, (g + 1, open), used
//!   discard   used, (g, changing), drained, used, Discard, (g + 1, open), used
//!   harvest   used, Harvest, used
//!   page out  used, PageOut, used
//!   promote   used, Promote, used
//! ```
//!
//! The last three keep the contents, as *forget* does, and are under full fire like it.
//!
//! *used* waits until some vcpu has looked at the page and checked it once more; *drained*
//! waits until every touch that was under way is over (M3 in `storm.rs`). So an order with
//! `used` directly before and after it took a page away that the guest was using at that
//! moment: the guest's own counters say so. Those are counted in [`Storms::in_use`]. A page
//! between Unmap and Map cannot be in use: a touch would find a hole.
//!
//! Which page and which script comes next depends on the seed alone, so that a run can be
//! repeated.

use std::collections::VecDeque;
use std::ops::Range;

use actors::{GpaRange, Protection};

use super::storm_control::{
    ControlError, DATA_PAGES, FIRST_GENERATION, Mode, StormControl, data_block, data_page,
};

/// What whoever drives the storm has to do now, to completion, before the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Forget the translations and keep the contents.
    Forget(GpaRange),
    /// Forget the memory and what it held.
    Unmap(GpaRange),
    /// Have fresh memory there.
    Map(GpaRange),
    /// Allow only this from now on.
    Protect(GpaRange, Protection),
    /// Unmap and Map at once: what it held is gone, and at no moment is there a hole. Only
    /// with [`Mix::discard`].
    Discard(GpaRange),
    /// Write zeroes there, through the monitor's own view of guest memory.
    Zero(GpaRange),
    /// Read and clear accessed and modified bits.
    Harvest(GpaRange),
    /// Take the page out of memory.
    PageOut(GpaRange),
    /// Make a superpage of it, where that can be.
    Promote(GpaRange),
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Do this, then ask again.
    Do(Order),
    /// The guest has to run a little. See whether it still lives, let go of the processor for
    /// some ten microseconds, and ask again. Merely yielding is not enough where vcpus and the
    /// monitor share processors: it costs whole scheduling slices (4 vcpus on 2 processors:
    /// 46 ms a round instead of 2.6).
    Wait,
    /// All rounds are done and the guest knows it: it will end by itself.
    Finished,
}

/// How often each script comes, relative to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Forget, in full use.
    pub forget: u32,
    /// Read-only and back, in use by readers; then the contents are zeroed.
    pub protect: u32,
    /// Unmap and map, while nobody touches the page.
    pub replace: u32,
    /// Unmap and map at once, in use by readers: for whoever can do that.
    pub discard: u32,
    /// Harvest a page, in full use.
    pub harvest: u32,
    /// Page one out, in full use: for whoever has somewhere to put it.
    pub page_out: u32,
    /// Ask for a superpage, in full use.
    pub promote: u32,
}

impl Mix {
    /// Everything that can be done with one request after the other.
    pub const WITHOUT_DISCARD: Self = Self { discard: 0, ..Self::ALL };
    /// Everything.
    pub const ALL: Self =
        Self { forget: 2, protect: 1, replace: 1, discard: 2, harvest: 1, page_out: 1, promote: 1 };
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Storms {
    /// Rounds begun.
    pub rounds: u64,
    /// Orders that took a translation or a right away.
    pub invalidations: u64,
    /// Of those: orders on a page the guest used directly before and directly after, in
    /// the guest's own counting.
    pub in_use: u64,
    /// Of those: pages whose use counter moved while the order was being carried out.
    pub used_meanwhile: u64,
}

/// One act of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Wait until the page is used again.
    Used,
    /// Publish the page's mode, in its present generation.
    Mode(Mode),
    /// Wait until every touch that is under way is over.
    Drained,
    /// Have this done.
    Order(Order),
    /// Publish the next generation, open.
    Renew,
}

/// What the driver waits for.
#[derive(Debug)]
enum Waiting {
    /// Every vcpu to begin.
    Begun,
    /// Nothing: the next act may start.
    Nothing,
    /// The use counter to leave this value.
    Used(u64),
    /// These touches to end: what each vcpu had announced, for those on this page.
    Drained(Vec<(usize, u64)>),
    /// Nothing either, but whoever asks has carried an invalidation out; the use counter
    /// stood here when it was ordered.
    Carried(u64),
}

/// Drives one storm.
#[derive(Debug)]
pub struct StormDriver {
    random: u64,
    mix: Mix,
    rounds_left: u64,
    generations: [u32; DATA_PAGES as usize],
    page: u16,
    acts: VecDeque<Act>,
    waiting: Waiting,
    /// The act that just ended was `Used`.
    just_used: bool,
    /// An invalidation that came directly after `Used`: the next `Used` proves it in use.
    to_prove: bool,
    storms: Storms,
    /// The pages it works on.
    pages: Range<u16>,
    /// Nobody else drives this guest.
    is_alone: bool,
}

impl StormDriver {
    /// A storm of `rounds` rounds. The same `seed` and `mix` give the same orders.
    #[must_use]
    pub fn new(seed: u64, mix: Mix, rounds: u64) -> Self {
        Self {
            random: seed,
            mix,
            rounds_left: rounds,
            generations: [FIRST_GENERATION; DATA_PAGES as usize],
            page: 0,
            acts: VecDeque::new(),
            waiting: Waiting::Begun,
            just_used: false,
            to_prove: false,
            storms: Storms::default(),
            pages: 0..DATA_PAGES,
            is_alone: true,
        }
    }

    /// One of several drivers at once, on `pages` of its own (a part of `0..DATA_PAGES`). It does
    /// not stop the guest when it is done: whoever drives them all does
    /// ([`StormControl::stop`]).
    #[must_use]
    pub fn one_of_many(seed: u64, mix: Mix, rounds: u64, pages: Range<u16>) -> Self {
        Self { pages, is_alone: false, ..Self::new(seed, mix, rounds) }
    }

    /// What was done so far.
    #[must_use]
    pub fn storms(&self) -> Storms {
        self.storms
    }

    /// What to do now. Asking says that the last order is complete.
    ///
    /// Never blocks; while the guest does not run, or is gone, it keeps saying
    /// [`Step::Wait`].
    ///
    /// # Errors
    ///
    /// [`ControlError`] when the control words are not in guest memory.
    pub fn step(&mut self, control: &StormControl<'_>) -> Result<Step, ControlError> {
        loop {
            if !self.wait_is_over(control)? {
                return Ok(Step::Wait);
            }
            if let Some(act) = self.acts.pop_front() {
                if let Some(order) = self.begin(act, control)? {
                    return Ok(Step::Do(order));
                }
            } else if self.rounds_left > 0 {
                self.begin_round();
                control.aim(self.page, &self.pages)?;
            } else {
                if self.is_alone {
                    control.stop()?;
                }
                return Ok(Step::Finished);
            }
        }
    }

    /// Whether what the driver waits for has come; if so it waits for nothing.
    fn wait_is_over(&mut self, control: &StormControl<'_>) -> Result<bool, ControlError> {
        match &mut self.waiting {
            Waiting::Nothing => return Ok(true),
            Waiting::Begun => {
                if !control.all_begun()? {
                    return Ok(false);
                }
            }
            Waiting::Drained(touches) => {
                let now = control.touching()?;
                touches.retain(|&(vcpu, touch)| now[vcpu] == touch);
                if !touches.is_empty() {
                    return Ok(false);
                }
            }
            Waiting::Used(before) => {
                if control.uses(self.page)? == *before {
                    return Ok(false);
                }
                self.just_used = true;
                if std::mem::take(&mut self.to_prove) {
                    self.storms.in_use += 1;
                }
            }
            Waiting::Carried(before) => {
                if control.uses(self.page)? != *before {
                    self.storms.used_meanwhile += 1;
                }
            }
        }
        self.waiting = Waiting::Nothing;
        Ok(true)
    }

    /// Starts one act. An order is for somebody else.
    fn begin(
        &mut self,
        act: Act,
        control: &StormControl<'_>,
    ) -> Result<Option<Order>, ControlError> {
        let page = self.page;
        let generation = &mut self.generations[usize::from(page)];
        let after_use = std::mem::take(&mut self.just_used);
        match act {
            Act::Used => self.waiting = Waiting::Used(control.uses(page)?),
            Act::Mode(mode) => control.publish(page, *generation, mode)?,
            Act::Renew => {
                *generation = generation.wrapping_add(1);
                control.publish(page, *generation, Mode::Open)?;
            }
            Act::Drained => {
                let touches = control.touching()?.into_iter().enumerate();
                let of_this_page = touches.filter(|(_, touch)| touch & 0xff == u64::from(page) + 1);
                self.waiting = Waiting::Drained(of_this_page.collect());
            }
            Act::Order(order) => {
                if order.invalidates() {
                    self.storms.invalidations += 1;
                    self.to_prove = after_use;
                    self.waiting = Waiting::Carried(control.uses(page)?);
                }
                return Ok(Some(order));
            }
        }
        Ok(None)
    }

    /// Draws a page and a script.
    fn begin_round(&mut self) {
        use Act as A;
        self.rounds_left -= 1;
        self.storms.rounds += 1;
        let [byte, ..] = self.draw().to_le_bytes();
        // A driver without pages has the first one: nothing else is in range.
        let pages = self.pages.end.saturating_sub(self.pages.start).max(1);
        self.page = self.pages.start + u16::from(byte) % pages;
        let range = data_page(self.page);
        let script: &[Act] = match self.draw_script() {
            Script::Forget => &[A::Used, A::Order(Order::Forget(range)), A::Used],
            Script::Protect => &[
                A::Used,
                A::Mode(Mode::ReadOnly),
                A::Drained,
                A::Used,
                A::Order(Order::Protect(range, Protection::READ)),
                A::Used,
                A::Order(Order::Protect(range, Protection::all())),
                A::Used,
                A::Mode(Mode::Changing),
                A::Drained,
                A::Used,
                A::Order(Order::Zero(range)),
                A::Renew,
                A::Used,
            ],
            Script::Replace => &[
                A::Used,
                A::Mode(Mode::Closed),
                A::Drained,
                A::Order(Order::Unmap(range)),
                A::Order(Order::Map(range)),
                A::Renew,
                A::Used,
            ],
            Script::Harvest => &[A::Used, A::Order(Order::Harvest(range)), A::Used],
            Script::PageOut => &[A::Used, A::Order(Order::PageOut(range)), A::Used],
            Script::Promote => &[A::Used, A::Order(Order::Promote(data_block())), A::Used],
            Script::Discard => &[
                A::Used,
                A::Mode(Mode::Changing),
                A::Drained,
                A::Used,
                A::Order(Order::Discard(range)),
                A::Renew,
                A::Used,
            ],
        };
        self.acts.extend(script);
    }

    fn draw_script(&mut self) -> Script {
        let weights = [
            (Script::Forget, self.mix.forget),
            (Script::Protect, self.mix.protect),
            (Script::Replace, self.mix.replace),
            (Script::Discard, self.mix.discard),
            (Script::Harvest, self.mix.harvest),
            (Script::PageOut, self.mix.page_out),
            (Script::Promote, self.mix.promote),
        ];
        let total: u64 = weights.iter().map(|&(_, weight)| u64::from(weight)).sum();
        let mut drawn = self.draw().checked_rem(total).unwrap_or(0);
        for (script, weight) in weights {
            let weight = u64::from(weight);
            if drawn < weight {
                return script;
            }
            drawn -= weight;
        }
        // A mix of nothing: the one script that every machine can play.
        Script::Forget
    }

    /// The next random number: splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// What happens to a page in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Forget,
    Protect,
    Replace,
    Discard,
    Harvest,
    PageOut,
    Promote,
}

impl Order {
    /// Whether it takes a translation or a right away.
    #[must_use]
    pub fn invalidates(&self) -> bool {
        match self {
            Self::Forget(_)
            | Self::Unmap(_)
            | Self::Discard(_)
            | Self::Harvest(_)
            | Self::PageOut(_) => true,
            Self::Protect(_, allowed) => !allowed.contains(Protection::WRITE),
            Self::Map(_) | Self::Zero(_) | Self::Promote(_) => false,
        }
    }
}

#[cfg(test)]
#[path = "storm_driver_tests.rs"]
mod tests;
