//! One shootdown at a time: raised, waited for, and what it carried given back.

use std::time::Instant;

use actors::contract::guest::Tidings;
use actors::contract::space::{RaiseTimes, Reply, SpaceError};
use actors::{ActorName, VcpuId};
use shootdown::{Domain, Generation, Overdue, Ticket};

use super::{OVERDUE, SpaceActor};
use crate::latency::nanoseconds;
use crate::mirror::Mirror;
use crate::vmspace::Removed;

/// Who waits for a shootdown, and for what answer.
pub(super) enum Waiting {
    Done(Reply<()>),
    Raised(Reply<RaiseTimes>),
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
            waiting.answer(&given, times);
        }
        true
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

impl Waiting {
    pub(super) fn answer(self, given: &Result<(), SpaceError>, times: RaiseTimes) {
        match self {
            Self::Done(reply) => answer(reply, given.clone()),
            Self::Raised(reply) => answer(reply, given.clone().map(|()| times)),
        }
    }

    pub(super) fn refuse(self, error: SpaceError) {
        match self {
            Self::Done(reply) => answer(reply, Err(error)),
            Self::Raised(reply) => answer(reply, Err(error)),
        }
    }
}

/// Answers; an asker that stopped waiting is not an error.
pub(super) fn answer<T>(reply: Reply<T>, value: Result<T, SpaceError>) {
    drop(reply.send(value));
}
