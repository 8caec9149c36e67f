//! What the mailbox asks for.

use std::io;
use std::time::Instant;

use actors::contract::space::{RaiseTimes, ShootdownTally, SpaceRequest, SpaceTally};
use crossbeam_channel::TryRecvError;

use super::shootdowns::{Waiting, answer};
use super::{SHARED_RAISE, SpaceActor};
use crate::fault_lane::Asked;
use crate::latency::quantiles;
use crate::mirror::Mirror;
use crate::vmspace::Removed;

impl<M: Mirror> SpaceActor<M> {
    fn next_request(&mut self) -> Option<SpaceRequest> {
        if let Some(request) = self.set_aside.take() {
            return Some(request);
        }
        match self.mailbox.try_recv() {
            Ok(request) => Some(request),
            Err(TryRecvError::Empty) => None,
            // Every handle is gone: nobody can ask anything any more.
            Err(TryRecvError::Disconnected) => Some(SpaceRequest::Retire),
        }
    }

    pub(super) fn serve_request(&mut self) -> bool {
        let Some(request) = self.next_request() else { return false };
        match request {
            SpaceRequest::Unmap { .. }
            | SpaceRequest::Forget { .. }
            | SpaceRequest::Protect { .. } => {
                self.serve_removals(request);
            }
            SpaceRequest::Raise { reply } => {
                self.raise(Removed::default(), vec![Waiting::Raised(reply)]);
            }
            SpaceRequest::Map { range, protection, reply } => {
                answer(reply, self.space.map(range, protection));
            }
            SpaceRequest::Wire { range, reply } => {
                let pulse = &self.pulse;
                answer(reply, self.space.wire(range, || pulse.beat()));
            }
            SpaceRequest::Unwire { range, reply } => answer(reply, self.space.unwire(range)),
            SpaceRequest::Hold { ranges, access, reply } => {
                answer(reply, self.space.hold(&ranges, access));
            }
            SpaceRequest::Release { ranges, install } => {
                if let Err(error) = self.space.release(&ranges, install) {
                    self.host_failed("end a hold", &io::Error::other(error));
                }
            }
            SpaceRequest::Mapping { at, reply } => {
                answer(reply, Ok(self.space.tables().chain(at)));
            }
            // A handle puts these into their own lane, where they need not wait.
            SpaceRequest::Fault { fault, reply } => self.serve_asked(Asked { fault, reply }),
            SpaceRequest::Count { reply } => drop(reply.send(self.tally())),
            SpaceRequest::SetFaultService(when) => self.fault_service = when,
            SpaceRequest::Break(how) => how.happen(),
            SpaceRequest::Retire => self.retired = true,
        }
        true
    }

    /// Does this removal and those that wait behind it, and raises once for all of them.
    fn serve_removals(&mut self, first: SpaceRequest) {
        let mut all = Removed::default();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        let began = Instant::now();
        while let Some(request) = next.take() {
            let (removed, asker) = match request {
                SpaceRequest::Unmap { range, reply } => {
                    (self.space.unmap(range), Waiting::Done(reply))
                }
                SpaceRequest::Protect { range, protection, reply } => {
                    (self.space.protect(range, protection), Waiting::Done(reply))
                }
                SpaceRequest::Forget { range, reply } => {
                    (self.space.forget(range), Waiting::Done(reply))
                }
                other => {
                    self.set_aside = Some(other);
                    break;
                }
            };
            match removed {
                Ok(removed) => {
                    all.join(removed);
                    waiting.push(asker);
                }
                Err(error) => asker.refuse(error),
            }
            if waiting.len() < SHARED_RAISE {
                next = self.mailbox.try_recv().ok();
            }
        }
        if all.is_harmless() {
            // Nobody can have cached what was never there.
            let given = self.space.give_back(all);
            let times = RaiseTimes { completion_ns: 0, knocked: 0 };
            waiting.into_iter().for_each(|asker| asker.answer(&given, times));
        } else {
            self.counted.shootdowns.kernel_half_took(began.elapsed());
            self.raise(all, waiting);
        }
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
            ..SpaceTally::default()
        }
    }
}
