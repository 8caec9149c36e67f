//! What the mailbox asks for.

use std::io;
use std::time::Instant;

use actors::contract::page::Touch;
use actors::contract::space::{
    RaiseTimes, Reply, ShootdownTally, SpaceError, SpaceRequest, SpaceTally,
};
use actors::contract::verify::Verified;
use crossbeam_channel::TryRecvError;

use super::paging::Parked;
use super::shootdowns::{Waiting, answer};
use super::{SHARED_RAISE, SpaceActor};
use crate::fault_lane::Asked;
use crate::host::huge::HugePages;
use crate::latency::{nanoseconds, quantiles};
use crate::mirror::Mirror;
use crate::verify::Realised;
use crate::vmspace::{Done, Removed};

/// What a request that may take something away came to.
enum TakenAway {
    /// This, and somebody waits for its shootdown.
    This(Removed, Waiting),
    /// It was refused, and whoever asked has been told.
    Nothing,
    /// It does not ask for such a thing.
    Other(SpaceRequest),
}

impl<M: Mirror> SpaceActor<M> {
    fn next_request(&mut self) -> Option<SpaceRequest> {
        if let Some(request) = self.set_aside.take() {
            return Some(request);
        }
        match self.mailbox.try_recv() {
            Ok(request) => Some(request),
            Err(TryRecvError::Empty) => None,
            // Every handle is gone: nobody can ask anything any more.
            Err(TryRecvError::Disconnected) => {
                self.retired = true;
                None
            }
        }
    }

    pub(super) fn serve_request(&mut self) -> bool {
        let Some(request) = self.next_request() else { return false };
        self.serve_this(request);
        true
    }

    /// Serves one request: first, whatever takes something away, with those like it that wait behind it.
    pub(super) fn serve_this(&mut self, request: SpaceRequest) {
        let Some(request) = self.serve_removals(request) else { return };
        match request {
            SpaceRequest::Raise { reply } => {
                self.raise(Removed::default(), vec![Waiting::Raised(reply)]);
            }
            SpaceRequest::Map { range, protection, reply } => {
                answer(reply, self.space.map(range, protection));
            }
            SpaceRequest::MapDevice { range, memory, protection, reply } => {
                answer(reply, self.space.map_device(range, &memory, protection));
            }
            SpaceRequest::AssignPassthru { device, reply } => {
                let pulse = &self.pulse;
                answer(reply, self.space.assign_passthru(device, || pulse.beat()));
            }
            SpaceRequest::UnassignPassthru { device, reply } => {
                answer(reply, self.space.unassign_passthru(device));
            }
            SpaceRequest::Wire { range, reply } => {
                let pulse = &self.pulse;
                let wired = self.space.wire(range, || pulse.beat());
                self.answer_or_park(wired, reply, |reply| SpaceRequest::Wire { range, reply });
            }
            SpaceRequest::Unwire { range, reply } => answer(reply, self.space.unwire(range)),
            SpaceRequest::Hold { ranges, access, reply } => {
                let held = self.space.hold(&ranges, access);
                self.answer_or_park(held, reply, |reply| SpaceRequest::Hold {
                    ranges,
                    access,
                    reply,
                });
            }
            SpaceRequest::Release { ranges, install } => {
                if let Err(error) = self.space.release(&ranges, install) {
                    self.host_failed("end a hold", &io::Error::other(error));
                }
            }
            SpaceRequest::BeginDirty { reply } => {
                answer(reply, self.can_watch_stores().and_then(|()| self.space.begin_dirty()));
            }
            SpaceRequest::SettleDirty { consumer, number, how, reply } => {
                answer(reply, self.space.settle_dirty(consumer, number, how));
            }
            SpaceRequest::EndDirty { consumer, reply } => {
                answer(reply, self.space.end_dirty(consumer));
            }
            SpaceRequest::Promote { range, reply } => answer(reply, self.space.promote(range)),
            SpaceRequest::Verify { reply } => answer(reply, self.verify()),
            SpaceRequest::Page { at, reply } => answer(reply, self.space.page(at)),
            SpaceRequest::Mapping { at, reply } => {
                answer(reply, Ok(self.space.tables().chain(at)));
            }
            // A handle puts these into their own lane, where they need not wait.
            SpaceRequest::Fault { fault, reply } => self.serve_asked(Asked { fault, reply }),
            SpaceRequest::Count { reply } => drop(reply.send(self.tally())),
            SpaceRequest::SetFaultService(when) => self.fault_service = when,
            SpaceRequest::Break(how) => how.happen(),
            SpaceRequest::Retire { reply } => {
                self.retired = true;
                drop(reply.send(self.tally()));
            }
            SpaceRequest::Unmap { .. }
            | SpaceRequest::Forget { .. }
            | SpaceRequest::Protect { .. }
            | SpaceRequest::Harvest { .. }
            | SpaceRequest::TakeDirty { .. }
            | SpaceRequest::PageOut { .. }
            | SpaceRequest::Demote { .. }
            | SpaceRequest::Advise { .. } => unreachable!("it takes something away"),
        }
    }

    /// Answers; or keeps the request until something has arrived or left.
    fn answer_or_park(
        &mut self,
        done: Result<Done, SpaceError>,
        reply: Reply<()>,
        again: impl FnOnce(Reply<()>) -> SpaceRequest,
    ) {
        match done {
            Ok(Done::Waits) => self.park(Parked::Request(again(reply))),
            Ok(Done::Now) => answer(reply, Ok(())),
            Err(error) => answer(reply, Err(error)),
        }
    }

    /// Does this removal and those that wait behind it, and raises once for all of them. Gives back what is none.
    fn serve_removals(&mut self, first: SpaceRequest) -> Option<SpaceRequest> {
        let began = Instant::now();
        let mut all = Removed::default();
        let mut waiting = Vec::new();
        match self.take_away(first) {
            TakenAway::Other(request) => return Some(request),
            TakenAway::Nothing => {}
            TakenAway::This(removed, asker) => {
                all.join(removed);
                waiting.push(asker);
            }
        }
        while waiting.len() < SHARED_RAISE
            && let Ok(next) = self.mailbox.try_recv()
        {
            match self.take_away(next) {
                TakenAway::Other(request) => {
                    self.set_aside = Some(request);
                    break;
                }
                TakenAway::Nothing => {}
                TakenAway::This(removed, asker) => {
                    all.join(removed);
                    waiting.push(asker);
                }
            }
        }
        self.carry(all, waiting, began);
        None
    }

    /// Raises for what was removed; or gives it back at once, because nobody can have cached what was never there.
    pub(super) fn carry(&mut self, removed: Removed, waiting: Vec<Waiting>, began: Instant) {
        if !removed.is_harmless() {
            self.counted.shootdowns.kernel_half_took(began.elapsed());
            return self.raise(removed, waiting);
        }
        let given = self.space.give_back(removed);
        let times = RaiseTimes { completion_ns: 0, knocked: 0 };
        for asker in waiting {
            self.answer_waiting(asker, &given, times);
        }
        self.try_parked_again();
    }

    fn take_away(&mut self, request: SpaceRequest) -> TakenAway {
        /// What was removed, or the refusal told.
        fn this<T>(removed: Result<(Removed, Waiting), (SpaceError, Reply<T>)>) -> TakenAway {
            match removed {
                Ok((removed, waiting)) => TakenAway::This(removed, waiting),
                Err((error, reply)) => {
                    answer(reply, Err(error));
                    TakenAway::Nothing
                }
            }
        }
        fn done(removed: Result<Removed, SpaceError>, reply: Reply<()>) -> TakenAway {
            this(match removed {
                Ok(removed) => Ok((removed, Waiting::Done(reply))),
                Err(error) => Err((error, reply)),
            })
        }
        let began = Instant::now();
        match request {
            SpaceRequest::Unmap { range, reply } => done(self.space.unmap(range), reply),
            SpaceRequest::Forget { range, reply } => done(self.space.forget(range), reply),
            SpaceRequest::Protect { range, protection, reply } => {
                let allowed = self.can_watch_stores();
                done(allowed.and_then(|()| self.space.protect(range, protection)), reply)
            }
            SpaceRequest::Advise { range, advice, reply } => {
                done(self.space.advise(range, advice), reply)
            }
            SpaceRequest::Harvest { range, what, reply } => {
                let allowed = match what.contains(Touch::MODIFIED) {
                    true => self.can_watch_stores(),
                    false => Ok(()),
                };
                this(match allowed.and_then(|()| self.space.harvest(range, what)) {
                    Ok((removed, mut found)) => {
                        found.scan_ns = nanoseconds(began.elapsed());
                        Ok((removed, Waiting::Harvested(found, reply)))
                    }
                    Err(error) => Err((error, reply)),
                })
            }
            SpaceRequest::TakeDirty { consumer, reply } => {
                this(match self.space.close_dirty(consumer) {
                    Ok((removed, mut found)) => {
                        found.scan_ns = nanoseconds(began.elapsed());
                        Ok((removed, Waiting::Dirty(consumer, found, reply)))
                    }
                    Err(error) => Err((error, reply)),
                })
            }
            SpaceRequest::Demote { range, reply } => this(match self.space.demote(range) {
                Ok((removed, resized)) => Ok((removed, Waiting::Resized(resized, reply))),
                Err(error) => Err((error, reply)),
            }),
            SpaceRequest::PageOut { range, reply } => this(match self.space.page_out(range) {
                Ok((removed, ticket)) => Ok((removed, Waiting::PagedOut(ticket, reply))),
                Err(error) => Err((error, reply)),
            }),
            other => TakenAway::Other(other),
        }
    }

    /// Whether stores can be taken away from a part of memory, to be seen or forbidden. Before anything is changed: on
    /// KVM they cannot be from reserved huge pages (`mirror/kvm.rs`), and what the tables said by then would be lost.
    fn can_watch_stores(&self) -> Result<(), SpaceError> {
        if self.userfault.is_none() || self.config.memory.pages() == HugePages::Transparent {
            return Ok(());
        }
        Err(SpaceError::Host {
            what: "write-protect a part of the guest's memory",
            why: "it is of reserved huge pages, which are mapped as a whole".to_owned(),
        })
    }

    /// Between two requests, while no shootdown is on its way: `verify.rs` says why that is the moment.
    fn verify(&self) -> Result<Verified, SpaceError> {
        let realised = match &self.userfault {
            Some(_) => Realised::ByGuestView,
            None => Realised::ByWalking,
        };
        let found = self.space.verify(realised, || self.pulse.beat());
        found.map_err(|error| SpaceError::Host { what: "say what it maps", why: error.to_string() })
    }

    fn tally(&self) -> SpaceTally {
        let resident_bytes = self.config.memory.resident_bytes().unwrap_or_else(|error| {
            self.host_failed("tell how much memory the guest has", &error);
            0
        });
        SpaceTally {
            faults: self.counted.faults,
            fault_service: self.counted.fault_service.quantiles(),
            fault_service_total_ns: self.counted.fault_service.total_ns(),
            resident_leaves: self.space.tables().leaves(),
            resident_bytes,
            wired_pages: self.space.wired_pages(),
            held_pages: self.space.held_pages(),
            table_pages: self.space.tables().table_pages(),
            generation: self.config.domain.generation().0,
            shootdowns: ShootdownTally {
                raised: self.counted.shootdowns.raises(),
                knocks: self.counted.shootdowns.knocks(),
                latency: quantiles(self.counted.shootdowns.latency()),
                kernel_half: quantiles(self.counted.shootdowns.kernel_half()),
            },
            pmap: self.space.pmap_tally(),
            reclaim: self.space.reclaim_tally(),
            working_set: self.looks.samples.iter().copied().collect(),
            late_looks: self.looks.late(),
        }
    }
}
