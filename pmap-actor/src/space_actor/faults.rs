//! Serving nested faults: the only work that goes on while a shootdown waits.
//!
//! They come two ways: KVM's as events of userfaultfd, whose thread sleeps in the kernel; the
//! software engine's as requests, whose vcpu has left the guest. Both are served alike.

use std::io;
use std::time::{Duration, Instant};

use actors::contract::guest::{GuestFault, Tidings};
use actors::contract::space::{FaultOrigin, FaultService, Reply, SpaceError};
use actors::{Access, Gpa, VcpuId};

use super::SpaceActor;
use super::shootdowns::answer;
use crate::fault_lane::Asked;
use crate::host::userfault::{BATCH, Fault};
use crate::latency::nanoseconds;
use crate::mirror::Mirror;
use crate::record::{Action, FaultRecord};
use crate::vmspace::{Outcome, Unserved};

/// A fault, however it came.
#[derive(Clone, Copy)]
pub(super) struct Met {
    vcpu: Option<VcpuId>,
    pub(super) gpa: Gpa,
    access: Access,
    origin: Option<FaultOrigin>,
    /// When the pmap saw it first.
    seen: Instant,
}

impl<M: Mirror> SpaceActor<M> {
    /// Always, save in tests that hold a fault open.
    pub(super) fn serves_faults(&self) -> bool {
        match self.fault_service {
            FaultService::Prompt => true,
            FaultService::OnlyDuringShootdowns => self.on_its_way.is_some(),
            FaultService::Never => false,
        }
    }

    pub(super) fn serve_faults(&mut self) -> bool {
        let asked = self.serve_lane();
        self.serve_userfaults() || asked
    }

    fn serve_lane(&mut self) -> bool {
        let mut served = 0;
        // As many at a time as of the others, so that neither kind starves anything else.
        while served < BATCH
            && let Some(asked) = self.lane.next()
        {
            self.serve_asked(asked);
            served += 1;
        }
        served > 0
    }

    pub(super) fn serve_asked(&mut self, Asked { fault, reply }: Asked) {
        let met = Met {
            vcpu: Some(fault.vcpu),
            gpa: fault.gpa,
            access: fault.access,
            origin: Some(fault.origin),
            seen: Instant::now(),
        };
        self.serve_or_park(met, Some(reply));
    }

    /// Serves a fault and answers whoever asked; or has both wait for the disk or for room.
    pub(super) fn serve_or_park(&mut self, met: Met, reply: Option<Reply<()>>) {
        match (self.serve(met), reply) {
            (None, reply) => self.park_fault(met, reply),
            (Some(served), Some(reply)) => answer(reply, served),
            (Some(Ok(())), None) => {}
            (Some(Err(_)), None) => {
                if let Err(error) = self.space.refuse(met.gpa) {
                    self.host_failed("end an access that is not allowed", &error);
                }
            }
        }
    }

    fn serve_userfaults(&mut self) -> bool {
        let Some(userfault) = &self.userfault else { return false };
        let nothing = Fault { address: 0, is_write: false, is_write_protect: false, thread: 0 };
        let mut faults = [nothing; BATCH];
        let count = match userfault.read(&mut faults) {
            Ok(count) => count,
            Err(error) => {
                self.host_failed("report faults", &error);
                0
            }
        };
        for fault in &faults[..count] {
            self.serve_userfault(fault);
        }
        count > 0
    }

    fn serve_userfault(&mut self, fault: &Fault) {
        let vcpu = self.config.roster.vcpu_of(fault.thread);
        let Some(gpa) = self.config.memory.gpa_of(fault.address) else {
            let why = io::Error::other(format!("a fault at {:#x}", fault.address));
            return self.host_failed("report faults of guest memory only", &why);
        };
        let is_write = fault.is_write || fault.is_write_protect;
        let access = if is_write { Access::Write } else { Access::Read };
        let seen = Instant::now();
        self.serve_or_park(Met { vcpu, gpa, access, origin: None, seen }, None);
    }

    /// Serves, counts and records. What cannot be allowed the machine hears of first; whoever
    /// waits is told afterwards, by the caller. `None`: it has to wait, and was not counted.
    fn serve(&mut self, met: Met) -> Option<Result<(), SpaceError>> {
        let (action, pages, result) = match self.space.fault(met.gpa, met.access) {
            Ok(Outcome::Waits) => return None,
            Ok(Outcome::Served(served)) => {
                let (action, pages) = Action::of(served);
                (action, pages, Ok(()))
            }
            Err(why) => (Action::Refused, 0, Err(self.tell_refused(met, why))),
        };
        let served = Instant::now();
        self.last_fault = served;
        let service = served - met.seen;
        self.count_fault(action, pages, met.vcpu, service);
        if let Some(trace) = &self.config.trace {
            let record = FaultRecord {
                time_ns: nanoseconds(met.seen - self.config.epoch),
                vcpu: met.vcpu,
                gpa: met.gpa,
                access: met.access,
                origin: met.origin,
                action,
                pages,
                service_ns: nanoseconds(service),
            };
            // A tracer that does not keep up slows faults down rather than lose any; one
            // that is gone has been reported by its own end.
            let _gone = trace.send(record);
        }
        Some(result)
    }

    fn count_fault(&mut self, action: Action, pages: u64, vcpu: Option<VcpuId>, took: Duration) {
        self.counted.fault_service.record(took);
        let tally = &mut self.counted.faults;
        tally.total += 1;
        tally.pages_around += pages.saturating_sub(1);
        *match action {
            Action::ZeroFilled => &mut tally.zero_filled,
            Action::MappedExisting => &mut tally.mapped_existing,
            Action::PagedIn => &mut tally.paged_in,
            Action::AlreadyThere => &mut tally.already_there,
            Action::WriteUnprotected => &mut tally.write_unprotected,
            Action::Refused => &mut tally.refused,
        } += 1;
        *if vcpu.is_some() { &mut tally.vcpu_known } else { &mut tally.vcpu_unknown } += 1;
    }

    /// The access cannot be allowed: tells the machine why, and says it in the words of an
    /// answer.
    fn tell_refused(&self, met: Met, why: Unserved) -> SpaceError {
        let Met { vcpu, gpa: at, access, .. } = met;
        let fault = |fault| (self.config.tell)(Tidings::Faulted(fault));
        match why {
            Unserved::Hole => {
                fault(GuestFault::Hole { vcpu, at });
                SpaceError::Hole(at)
            }
            Unserved::Forbidden => {
                fault(match access {
                    Access::Execute => GuestFault::NotExecutable { vcpu, at },
                    // Memory without the right to load is a hole.
                    Access::Read | Access::Write => GuestFault::ReadOnly { vcpu, at },
                });
                SpaceError::Forbidden { at, wanted: access.needs() }
            }
            Unserved::Host(error) => {
                self.host_failed(&format!("serve the fault at {at}"), &error);
                SpaceError::Host { what: "serve a fault", why: error.to_string() }
            }
            Unserved::Lost(error) => {
                self.guest_cannot_go_on(format!("the page at {at} is lost: {error}"));
                SpaceError::Host { what: "bring a page back", why: error.to_string() }
            }
        }
    }
}
