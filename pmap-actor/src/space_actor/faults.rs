//! Serving nested faults: the only work that goes on while a shootdown waits.

use std::io;
use std::time::{Duration, Instant};

use actors::contract::guest::{GuestFault, Tidings};
use actors::contract::space::FaultService;
use actors::{Access, Gpa, VcpuId};

use super::SpaceActor;
use crate::host::userfault::{BATCH, Fault};
use crate::latency::nanoseconds;
use crate::record::{Action, FaultRecord};
use crate::vmspace::Unserved;

impl SpaceActor {
    /// Always, save in tests that hold a fault open.
    pub(super) fn serves_faults(&self) -> bool {
        match self.fault_service {
            FaultService::Prompt => true,
            FaultService::OnlyDuringShootdowns => self.on_its_way.is_some(),
            FaultService::Never => false,
        }
    }

    pub(super) fn serve_faults(&mut self) -> bool {
        let nothing = Fault { address: 0, is_write: false, is_write_protect: false, thread: 0 };
        let mut faults = [nothing; BATCH];
        let count = match self.userfault.read(&mut faults) {
            Ok(count) => count,
            Err(error) => {
                self.host_failed("report faults", &error);
                0
            }
        };
        for fault in &faults[..count] {
            self.serve_fault(fault);
        }
        count > 0
    }

    fn serve_fault(&mut self, fault: &Fault) {
        let seen = Instant::now();
        let vcpu = self.config.roster.vcpu_of(fault.thread);
        let Some(gpa) = self.config.memory.gpa_of(fault.address) else {
            let why = io::Error::other(format!("a fault at {:#x}", fault.address));
            return self.host_failed("report faults of guest memory only", &why);
        };
        let is_write = fault.is_write || fault.is_write_protect;
        let (action, pages) =
            match self.space.fault(gpa, if is_write { Access::Write } else { Access::Read }) {
                Ok(served) => Action::of(served),
                Err(why) => {
                    self.refuse(gpa, vcpu, why);
                    (Action::Refused, 0)
                }
            };
        let served = Instant::now();
        self.last_fault = served;
        let service = served - seen;
        self.count_fault(action, pages, vcpu, service);
        if let Some(trace) = &self.config.trace {
            let record = FaultRecord {
                time_ns: nanoseconds(seen - self.config.epoch),
                vcpu,
                gpa,
                is_write,
                action,
                pages,
                service_ns: nanoseconds(service),
            };
            // A tracer that does not keep up slows faults down rather than lose any; one
            // that is gone has been reported by its own end.
            let _gone = trace.send(record);
        }
    }

    fn count_fault(&mut self, action: Action, pages: u64, vcpu: Option<VcpuId>, took: Duration) {
        self.counted.fault_service.record(took);
        let tally = &mut self.counted.faults;
        tally.total += 1;
        tally.pages_around += pages.saturating_sub(1);
        *match action {
            Action::ZeroFilled => &mut tally.zero_filled,
            Action::MappedExisting => &mut tally.mapped_existing,
            Action::AlreadyThere => &mut tally.already_there,
            Action::WriteUnprotected => &mut tally.write_unprotected,
            Action::Refused => &mut tally.refused,
        } += 1;
        *if vcpu.is_some() { &mut tally.vcpu_known } else { &mut tally.vcpu_unknown } += 1;
    }

    /// The access cannot be allowed. The machine hears why before the vcpu's access fails.
    fn refuse(&mut self, at: Gpa, vcpu: Option<VcpuId>, why: Unserved) {
        match why {
            Unserved::Hole => (self.config.tell)(Tidings::Faulted(GuestFault::Hole { vcpu, at })),
            Unserved::Forbidden(_) => {
                (self.config.tell)(Tidings::Faulted(GuestFault::ReadOnly { vcpu, at }));
            }
            Unserved::Host(error) => self.host_failed(&format!("serve the fault at {at}"), &error),
        }
        if let Err(error) = self.space.refuse(at) {
            self.host_failed("end an access that is not allowed", &error);
        }
    }
}
