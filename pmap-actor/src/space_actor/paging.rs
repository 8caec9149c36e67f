//! Between the vmspace and the workers of its store: jobs out, answers in, and whoever waits meanwhile.
//!
//! A fault whose page is on disk is *parked*: its vcpu sleeps in the kernel (KVM) or at its mailbox (software engine), and
//! everybody else is served. When something has arrived, or left, all who are parked try again: there are never more than
//! vcpus, and a few requests. A vcpu that is kicked out of its fault comes back with the same one; on KVM, in the kernel's own
//! accesses, tens of thousands of times a second. So a fault without an asker is parked once for each page.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::Instant;

use actors::ActorName;
use actors::contract::guest::Tidings;
use actors::contract::page::PagedOut;
use actors::contract::space::{Reply, SpaceRequest};

use super::SpaceActor;
use super::faults::Met;
use super::shootdowns::answer;
use crate::content::{Job, OutTicket};
use crate::mirror::Mirror;
use crate::swap::workers::{Answer, NotTaken, Workers};

/// Who waits for something to arrive or to leave.
pub(super) enum Parked {
    /// A fault, and who asked, if somebody did.
    Fault(Met, Option<Reply<()>>),
    /// A request that needs pages.
    Request(SpaceRequest),
}

/// What goes on beside the mailbox.
#[derive(Default)]
pub(super) struct Paging {
    pub(super) workers: Option<Workers>,
    /// Jobs that no worker took yet.
    backlog: VecDeque<Job>,
    parked: Vec<Parked>,
    /// Whether something happened that those who are parked wait for.
    try_again: bool,
    outs: HashMap<OutTicket, Reply<PagedOut>>,
    /// Those that ended before their shootdown did: their last page was rescued meanwhile.
    ended_early: HashMap<OutTicket, PagedOut>,
    said_it_is_stuck: bool,
}

impl Paging {
    pub(super) fn with(workers: Option<Workers>) -> Self {
        Self { workers, ..Self::default() }
    }
}

impl<M: Mirror> SpaceActor<M> {
    // ---- who waits -----------------------------------------------------------------------

    pub(super) fn park(&mut self, who: Parked) {
        self.paging.parked.push(who);
    }

    pub(super) fn park_fault(&mut self, met: Met, reply: Option<Reply<()>>) {
        let same_page = |parked: &Parked| matches!(parked, Parked::Fault(other, None) if other.gpa.page() == met.gpa.page());
        if reply.is_none() && self.paging.parked.iter().any(same_page) {
            return;
        }
        self.space.count_waiting();
        self.park(Parked::Fault(met, reply));
    }

    /// Something arrived or left: whoever is parked tries again, at the next turn.
    pub(super) fn try_parked_again(&mut self) {
        self.paging.try_again = !self.paging.parked.is_empty();
    }

    pub(super) fn serve_parked(&mut self) -> bool {
        if !std::mem::take(&mut self.paging.try_again) {
            return false;
        }
        for who in std::mem::take(&mut self.paging.parked) {
            match who {
                Parked::Fault(met, reply) => self.serve_or_park(met, reply),
                // Requests wait for shootdowns, because a range may be on its way out.
                Parked::Request(request) if self.on_its_way.is_some() => {
                    self.paging.parked.push(Parked::Request(request));
                    self.paging.try_again = true;
                }
                Parked::Request(request) => self.serve_this(request),
            }
        }
        true
    }

    // ---- workers -------------------------------------------------------------------------

    /// Hands out what is to be done, as far as somebody takes it.
    pub(super) fn send_jobs(&mut self) {
        self.paging.backlog.extend(self.space.take_jobs());
        let Some(workers) = &self.paging.workers else { return };
        // A full lane holds up its own kind only: a page that is wanted does not wait behind a write.
        let mut left = VecDeque::new();
        let (mut pageout_is_busy, mut pagein_is_busy) = (false, false);
        for job in self.paging.backlog.drain(..) {
            let kept = match job {
                Job::Fetch(order) if !pagein_is_busy => {
                    kept(workers.try_fetch(order), &mut pagein_is_busy, Job::Fetch)
                }
                Job::Launder(order) if !pageout_is_busy => {
                    kept(workers.try_launder(order), &mut pageout_is_busy, Job::Launder)
                }
                Job::Write(order) if !pageout_is_busy => {
                    kept(workers.try_write(order), &mut pageout_is_busy, Job::Write)
                }
                job => Some(job),
            };
            left.extend(kept);
        }
        self.paging.backlog = left;
    }

    /// Hears what the workers did.
    pub(super) fn hear_workers(&mut self) -> bool {
        let mut heard = false;
        while let Some(said) = self.paging.workers.as_ref().and_then(Workers::answer) {
            heard = true;
            match said {
                Answer::Laundered { ticket, pages } => {
                    if let Err(error) = self.space.laundered(ticket, pages) {
                        self.host_failed("put pages out of memory", &io::Error::other(error));
                    }
                }
                Answer::Written { ticket, result } => {
                    if let Err(error) = self.space.written(ticket, result) {
                        // Nothing is lost: the pages are in memory. But the limit cannot be kept.
                        self.guest_cannot_go_on(error.to_string());
                    }
                }
                Answer::Fetched { read, is_readahead, result } => {
                    if let Err(error) = self.space.fetched(read, is_readahead, result) {
                        self.guest_cannot_go_on(error.to_string());
                    }
                }
            }
        }
        if heard {
            self.try_parked_again();
            self.answer_outs();
        }
        heard
    }

    /// The host, not the guest, is to blame, and nothing wrong has reached it.
    pub(super) fn guest_cannot_go_on(&self, what: String) {
        (self.config.tell)(Tidings::HostFailed { actor: ActorName::Pmap, what });
    }

    // ---- out -----------------------------------------------------------------------------

    pub(super) fn await_out(&mut self, ticket: OutTicket, reply: Reply<PagedOut>) {
        self.answer_outs();
        match self.paging.ended_early.remove(&ticket) {
            Some(out) => answer(reply, Ok(out)),
            None => drop(self.paging.outs.insert(ticket, reply)),
        }
    }

    pub(super) fn answer_outs(&mut self) {
        for (ticket, out) in self.space.take_ended_outs() {
            match self.paging.outs.remove(&ticket) {
                Some(reply) => answer(reply, Ok(out)),
                None => drop(self.paging.ended_early.insert(ticket, out)),
            }
        }
    }

    /// One round of the clock, where memory is short.
    pub(super) fn reclaim(&mut self) -> bool {
        let began = Instant::now();
        match self.space.reclaim() {
            Ok(None) => {
                self.look_for_a_way_out();
                false
            }
            Ok(Some(removed)) => {
                self.carry(removed, Vec::new(), began);
                true
            }
            Err(error) => {
                self.host_failed("put pages out of memory", &io::Error::other(error));
                false
            }
        }
    }

    /// Somebody waits for room that nobody can make.
    fn look_for_a_way_out(&mut self) {
        if self.paging.parked.is_empty() || self.paging.said_it_is_stuck || !self.space.is_stuck() {
            return;
        }
        self.paging.said_it_is_stuck = true;
        self.guest_cannot_go_on(self.space.shortage());
    }

    /// What faults took away by the way.
    pub(super) fn carry_left_over(&mut self) -> bool {
        let left = self.space.take_left_over();
        if left.is_harmless() {
            return false;
        }
        self.carry(left, Vec::new(), Instant::now());
        true
    }
}

/// What is left of a job that was offered.
fn kept<T>(
    offered: Result<(), NotTaken<T>>,
    is_busy: &mut bool,
    again: impl FnOnce(T) -> Job,
) -> Option<Job> {
    match offered {
        Ok(()) => None,
        // One that is gone was reported by its own end: the machine is stopping.
        Err(NotTaken::Busy(order) | NotTaken::Gone(order)) => {
            *is_busy = true;
            Some(again(order))
        }
    }
}
