//! The local APIC's timer: two ways to count down, and one to wait for a time.
//!
//! Nothing counts: a running timer is the time at which it will be through. The clock is the
//! guest's time-stamp counter; counts are of a slower one ([`super::TIMER_HZ`]).
//! Source: SDM, APIC, "APIC Timer" and "TSC-Deadline Mode".

use super::TSC_TICKS_PER_TIMER_TICK;

/// What happens at zero. The local vector table's timer entry says it in bits 17 and 18.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    Deadline,
}

impl Mode {
    /// The reserved fourth value counts as one shot.
    pub(super) fn of_entry(entry: u32) -> Self {
        match entry >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::Deadline,
            _ => Self::OneShot,
        }
    }
}

/// The timer. All times are values of the guest's time-stamp counter.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: Mode,
    divide: u32,
    initial: u32,
    /// When it will be through; `None` while it is stopped.
    expires: Option<u64>,
}

impl Timer {
    /// As after power-on: stopped.
    pub(super) fn stopped() -> Self {
        Self { mode: Mode::OneShot, divide: 0, initial: 0, expires: None }
    }

    /// How many ticks of the time-stamp counter one count takes.
    fn unit(&self) -> u64 {
        // Bits 0, 1 and 3: 0 divides by 2, 1 by 4, up to 6 by 128; 7 divides by 1.
        let code = self.divide & 3 | self.divide >> 1 & 4;
        u64::from(TSC_TICKS_PER_TIMER_TICK) << ((code + 1) & 7)
    }

    fn ticks(&self, count: u32) -> u64 {
        // Less than 2^32 times 2^13.
        u64::from(count) * self.unit()
    }

    /// From or to deadline mode the timer stops; between the other two it counts on.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if (self.mode == Mode::Deadline) != (mode == Mode::Deadline) {
            self.expires = None;
            self.initial = 0;
        }
        self.mode = mode;
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// What is left of the count goes on at the new rate.
    pub(super) fn set_divide(&mut self, divide: u32, now: u64) {
        let left = self.count(now);
        self.divide = divide;
        if self.mode != Mode::Deadline && self.expires.is_some() {
            self.expires = Some(now.saturating_add(self.ticks(left)));
        }
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts counting down from `count`; zero stops. Ignored in deadline mode.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode != Mode::Deadline {
            self.initial = count;
            self.expires = (count != 0).then(|| now.saturating_add(self.ticks(count)));
        }
    }

    /// What is left to count. Zero in deadline mode.
    pub(super) fn count(&self, now: u64) -> u32 {
        let Some(expires) = self.expires.filter(|_| self.mode != Mode::Deadline) else {
            return 0;
        };
        let period = self.ticks(self.initial);
        let left = match expires.checked_sub(now) {
            Some(left) if left > 0 => left,
            // Through. It may not have been noticed yet, so several rounds can have passed.
            _ if self.mode == Mode::Periodic && period > 0 => period - (now - expires) % period,
            _ => 0,
        };
        // One that has begun counts whole.
        u32::try_from(left.div_ceil(self.unit())).unwrap_or(u32::MAX)
    }

    /// The deadline; 0 when none is set, it has passed, or the mode is another.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        let set = self.expires.filter(|expires| self.mode == Mode::Deadline && *expires > now);
        set.unwrap_or(0)
    }

    /// Zero disarms. Ignored outside deadline mode.
    pub(super) fn set_deadline(&mut self, deadline: u64) {
        if self.mode == Mode::Deadline {
            self.expires = (deadline != 0).then_some(deadline);
        }
    }

    /// When it will be through next.
    pub(super) fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// The time-stamp counter jumped from `before` to `after`. Counts do not notice; a
    /// deadline is a value of the counter and stays.
    pub(super) fn clock_was_set(&mut self, before: u64, after: u64) {
        if self.mode != Mode::Deadline {
            let moved = |expires: u64| after.saturating_add(expires.saturating_sub(before));
            self.expires = self.expires.map(moved);
        }
    }

    /// Whether it got through since it was last asked. Rounds of a periodic timer that nobody
    /// looked at are one.
    pub(super) fn elapse(&mut self, now: u64) -> bool {
        let Some(expires) = self.expires.filter(|expires| *expires <= now) else {
            return false;
        };
        let period = self.ticks(self.initial);
        self.expires = if self.mode == Mode::Periodic && period > 0 {
            let rounds = (now - expires) / period + 1;
            Some(expires.saturating_add(rounds.saturating_mul(period)))
        } else {
            None
        };
        true
    }
}
