//! One shootdown at a time: raised, waited for, and what it carried given back.

use std::time::Instant;

use actors::contract::guest::Tidings;
use actors::contract::page::{DirtyConsumer, DirtyEpoch, Harvest, PagedOut, Resized};
use actors::contract::space::{RaiseTimes, Reply, SpaceError};
use actors::{ActorName, VcpuId};
use shootdown::{Domain, Generation, Overdue, Ticket};

use super::{OVERDUE, SpaceActor};
use crate::content::OutTicket;
use crate::latency::nanoseconds;
use crate::mirror::Mirror;
use crate::vmspace::Removed;

/// Who waits for a shootdown, and for what answer.
pub(super) enum Waiting {
    Done(Reply<()>),
    Raised(Reply<RaiseTimes>),
    Harvested(Harvest, Reply<Harvest>),
    Dirty(DirtyConsumer, Harvest, Reply<DirtyEpoch>),
    Resized(Resized, Reply<Resized>),
    /// For a look at the working set: the harvest, and when it began.
    Sample(Harvest, Instant),
    /// For pages that leave: whoever waits for them waits longer.
    PagedOut(OutTicket, Reply<PagedOut>),
}

/// A shootdown that is not over.
pub(super) struct OnItsWay {
    /// Until it is redeemed.
    ticket: Option<Ticket<Removed>>,
    /// From then on.
    removed: Option<Removed>,
    generation: Generation,
    pub(super) raised_at: Instant,
    knocked: u32,
    waiting: Vec<Waiting>,
    reported_overdue: bool,
}

impl OnItsWay {
    /// Whether every vcpu has come out or flushed: the look at W1 of the dance.
    pub(super) fn is_over(&mut self, domain: &Domain) -> bool {
        if let Some(ticket) = self.ticket.take() {
            match domain.redeem(ticket) {
                Ok(removed) => self.removed = Some(removed),
                Err(ticket) => self.ticket = Some(ticket),
            }
        }
        self.removed.is_some()
    }
}

impl<M: Mirror> SpaceActor<M> {
    /// Starts the shootdown of what was removed; answers at once where nothing was.
    pub(super) fn raise(&mut self, removed: Removed, waiting: Vec<Waiting>) {
        let raised_at = Instant::now();
        let mut knocked = 0;
        let roster = &self.config.roster;
        let ticket = self.config.domain.raise(removed, self.whom, |seat| {
            roster.knock(seat);
            knocked += 1;
        });
        self.counted.shootdowns.raised(usize::try_from(knocked).unwrap_or(usize::MAX));
        self.on_its_way = Some(OnItsWay {
            generation: ticket.target(),
            ticket: Some(ticket),
            removed: None,
            raised_at,
            knocked,
            waiting,
            reported_overdue: false,
        });
        // Nobody in the guest, nobody to wait for: it is over before it began.
        self.finish_shootdown();
    }

    pub(super) fn finish_shootdown(&mut self) -> bool {
        let Some(mut shootdown) = self.on_its_way.take() else { return false };
        if !shootdown.is_over(&self.config.domain) {
            self.look_for_overdue(&mut shootdown);
            self.on_its_way = Some(shootdown);
            return false;
        }
        let completion = shootdown.raised_at.elapsed();
        self.counted.shootdowns.completed(completion);
        // There is one shootdown at a time, so all before this one are over, too.
        self.completed.reached(shootdown.generation);
        let given = shootdown.removed.map_or(Ok(()), |removed| self.space.give_back(removed));
        let times =
            RaiseTimes { completion_ns: nanoseconds(completion), knocked: shootdown.knocked };
        for waiting in shootdown.waiting {
            self.answer_waiting(waiting, &given, times);
        }
        self.try_parked_again();
        true
    }

    pub(super) fn answer_waiting(
        &mut self,
        waiting: Waiting,
        given: &Result<(), SpaceError>,
        times: RaiseTimes,
    ) {
        let ended = |mut harvest: Harvest| {
            harvest.knocked = times.knocked;
            harvest.took_ns = harvest.scan_ns + times.completion_ns;
            harvest
        };
        match waiting {
            Waiting::Done(reply) => answer(reply, given.clone()),
            Waiting::Raised(reply) => answer(reply, given.clone().map(|()| times)),
            Waiting::Resized(resized, reply) => answer(reply, given.clone().map(|()| resized)),
            Waiting::Harvested(harvest, reply) => {
                answer(reply, given.clone().map(|()| ended(harvest)));
            }
            Waiting::Dirty(consumer, harvest, reply) => {
                let taken = given.clone().and_then(|()| self.space.take_dirty(consumer));
                let epoch = taken.map(|(number, pages)| DirtyEpoch {
                    number,
                    pages,
                    harvest: ended(harvest),
                });
                answer(reply, epoch);
            }
            Waiting::Sample(harvest, began) => self.keep_sample(&harvest, began),
            Waiting::PagedOut(ticket, reply) => match given {
                Ok(()) => self.await_out(ticket, reply),
                Err(error) => answer(reply, Err(error.clone())),
            },
        }
    }

    fn look_for_overdue(&self, shootdown: &mut OnItsWay) {
        let Some(ticket) = &shootdown.ticket else { return };
        if shootdown.reported_overdue {
            return;
        }
        if let Err(overdue) = Overdue::check(ticket, shootdown.raised_at.elapsed(), OVERDUE) {
            shootdown.reported_overdue = true;
            let first = overdue.seats.first().map_or(0, |seat| seat.0);
            let vcpu = VcpuId(u16::try_from(first).expect("seats are vcpus"));
            let what = overdue.to_string();
            (self.config.tell)(Tidings::HostFailed { actor: ActorName::Vcpu(vcpu), what });
        }
    }
}

/// Answers; an asker that stopped waiting is not an error.
pub(super) fn answer<T>(reply: Reply<T>, value: Result<T, SpaceError>) {
    drop(reply.send(value));
}
