//! Looks at the working set, at intervals.
//!
//! A look takes accessed bits back. Where they are emulated every page that is used again costs a fault, and looks that come too
//! often would leave the guest time for nothing else. So a look waits until bringing back what the one before it took has cost
//! no more than [`SHARE`] allows. Each look's price ends by itself, for no page is brought back twice.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use actors::contract::page::{Harvest, Touch, WorkingSetSample};

use super::SpaceActor;
use super::shootdowns::Waiting;
use crate::latency::nanoseconds;
use crate::mirror::Mirror;

/// Looks that are kept: the newest.
const SAMPLES: usize = 4096;

/// One part in so many of the pmap's time may go to faults that a look caused. The guest loses about four times as
/// much, for leaving, waking and entering again come on top.
const SHARE: u32 = 16;

/// When to look.
#[derive(Debug)]
struct Pace {
    every: Duration,
    next: Instant,
    /// When the last look began.
    last: Instant,
    /// Faults on pages without an accessed bit before it.
    returned: u64,
    /// Whether the next one waits for what the last one cost.
    waits: bool,
    /// How many had to.
    late: u64,
}

impl Pace {
    fn new(every: Duration, now: Instant) -> Self {
        Self { every, next: now + every, last: now, returned: 0, waits: false, late: 0 }
    }

    /// Whether it is time: `returned` pages lost their bit and were used again so far, for `each` of the pmap's time.
    fn is_due(&mut self, now: Instant, returned: u64, each: Duration) -> bool {
        if now < self.next {
            return false;
        }
        let pages = u32::try_from(returned - self.returned).unwrap_or(u32::MAX);
        let paid = self.last + each.saturating_mul(pages).saturating_mul(SHARE);
        if now >= paid {
            return true;
        }
        self.late += u64::from(!self.waits);
        (self.waits, self.next) = (true, paid);
        false
    }

    /// One begins. One that came late is not made up for.
    fn begin(&mut self, now: Instant, returned: u64) {
        self.next = now.max(self.next + self.every);
        (self.last, self.returned, self.waits) = (now, returned, false);
    }
}

/// Looks at the working set, and what they found.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Nothing where nobody wants any.
    pace: Option<Pace>,
    /// Whether a look was the last thing that was done of looks and requests.
    was_last: bool,
    pub(super) samples: VecDeque<WorkingSetSample>,
}

impl Looks {
    /// How many had to wait for what the one before them cost.
    pub(super) fn late(&self) -> u64 {
        self.pace.as_ref().map_or(0, |pace| pace.late)
    }
}

impl<M: Mirror> SpaceActor<M> {
    /// How long until the next look; nothing when there is none.
    pub(super) fn until_next_look(&self) -> Option<Duration> {
        let next = self.looks.pace.as_ref()?.next;
        Some(next.saturating_duration_since(Instant::now()))
    }

    pub(super) fn begin_looks(&mut self) {
        if let Some(every) = self.config.harvest_every {
            self.space.expect_harvests();
            self.looks.pace = Some(Pace::new(every, Instant::now()));
        }
    }

    /// A look or a request, in turn where both wait: looks that take longer than the time between them
    /// shall not keep requests waiting for ever, nor requests looks.
    pub(super) fn look_or_serve(&mut self) -> bool {
        let was_last = std::mem::take(&mut self.looks.was_last);
        (!was_last && self.look_when_due())
            || self.serve_request()
            || (was_last && self.look_when_due())
    }

    fn look_when_due(&mut self) -> bool {
        let Some(pace) = &mut self.looks.pace else { return false };
        let (began, returned) = (Instant::now(), self.space.accessed_faults());
        if !pace.is_due(began, returned, self.counted.fault_service.mean()) {
            return false;
        }
        pace.begin(began, returned);
        self.looks.was_last = true;
        match self.space.harvest_all(Touch::ACCESSED) {
            Ok((removed, found)) => {
                self.carry(removed, vec![Waiting::Sample(found, began)], began);
            }
            Err(error) => self.host_failed("look at the working set", &io::Error::other(error)),
        }
        true
    }

    pub(super) fn keep_sample(&mut self, harvest: &Harvest, began: Instant) {
        if self.looks.samples.len() == SAMPLES {
            self.looks.samples.pop_front();
        }
        self.looks.samples.push_back(WorkingSetSample {
            time_ns: nanoseconds(began - self.config.epoch),
            accessed_pages: harvest.accessed.count(),
            resident_pages: self.space.resident_pages(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn looks_keep_their_interval_where_they_cost_little_and_one_that_is_late_is_not_made_up_for() {
        let start = Instant::now();
        let mut pace = Pace::new(100 * MS, start);
        assert!(!pace.is_due(start + 99 * MS, 0, MS));
        assert!(pace.is_due(start + 100 * MS, 6, MS));
        pace.begin(start + 100 * MS, 6);
        assert!(!pace.is_due(start + 199 * MS, 6, MS));
        assert!(pace.is_due(start + 450 * MS, 6, MS));
        pace.begin(start + 450 * MS, 6);
        assert_eq!(pace.next, start + 450 * MS);
    }

    #[test]
    fn a_look_waits_until_what_the_last_one_took_has_cost_no_more_than_its_share() {
        let start = Instant::now();
        let mut pace = Pace::new(100 * MS, start);
        pace.begin(start + 100 * MS, 0);
        // 50 ms of faults are a sixteenth of 800.
        assert!(!pace.is_due(start + 200 * MS, 50, MS));
        assert_eq!((pace.late, pace.next), (1, start + 900 * MS));
        // More came back meanwhile.
        assert!(!pace.is_due(start + 900 * MS, 60, MS));
        assert_eq!(pace.next, start + 1060 * MS);
        assert!(pace.is_due(start + 1060 * MS, 60, MS));
        pace.begin(start + 1060 * MS, 60);
        assert!(pace.is_due(start + 1160 * MS, 60, MS), "what is paid for is forgotten");
        assert_eq!(pace.late, 1, "it is one look, however often it waits");
        pace.begin(start + 1160 * MS, 60);
        assert!(!pace.is_due(start + 1260 * MS, 110, MS));
        assert_eq!(pace.late, 2);
    }
}
