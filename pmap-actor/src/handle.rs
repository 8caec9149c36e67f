//! What everybody else holds of the pmap actor.

use std::sync::Arc;
use std::time::Duration;

use actors::ask::{self, NoAnswer};
use actors::contract::boot::MemoryPort;
use actors::contract::device::{DmaMapping, PassthruDevice, ScatterList};
use actors::contract::page::{
    Advice, DirtyConsumer, DirtyEpoch, Harvest, PageState, PagedOut, Resized, Settled, Touch,
};
use actors::contract::space::{
    FaultService, NestedFault, RaiseTimes, SpaceError, SpaceRequest, SpaceTally,
};
use actors::contract::vcpu::Break;
use actors::contract::verify::Verified;
use actors::doorbell::Doorbell;
use actors::pulse::Pulse;
use actors::{ActorName, Gpa, GpaRange, Protection};
use crossbeam_channel::{Sender, TrySendError};
use tokio::sync::oneshot;
use vm_memory::GuestMemoryMmap;

use crate::completed::Completed;
use crate::ept::view::View;
use crate::fault_lane::FaultLane;
use crate::host::memory::GuestMemory;
use crate::host::userfault::Userfault;
use crate::swap::workers::Remote;

/// How long an asker waits for the pmap. Wiring a large guest takes the longest.
const DEADLINE: Duration = Duration::from_secs(60);

/// The pmap actor, as seen from outside. Cheap to clone.
///
/// The methods wait for the answer, with a deadline: call them from threads that may
/// block. Async code sends a [`SpaceRequest`] with [`SpaceHandle::tell`] and awaits the reply.
#[derive(Clone)]
pub struct SpaceHandle {
    pub(crate) requests: Sender<SpaceRequest>,
    pub(crate) bell: Arc<Doorbell>,
    pub(crate) reach: Reach,
    pub(crate) view: View,
    pub(crate) completed: Completed,
    pub(crate) pulse: Pulse,
    pub(crate) workers: Option<Remote>,
}

/// What ends the guest's reach of its memory, without the actor.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) userfault: Option<Arc<Userfault>>,
    pub(crate) lane: Arc<FaultLane>,
}

impl SpaceHandle {
    /// Puts a request into the actor's mailbox, or a fault into its own lane. Never waits.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`] when the actor is gone, or so far behind that its mailbox is full.
    pub fn tell(&self, request: SpaceRequest) -> Result<(), SpaceError> {
        let request = match request {
            SpaceRequest::Fault { fault, reply } => {
                self.reach.lane.join(fault, reply)?;
                self.bell.ring();
                return Ok(());
            }
            request => request,
        };
        let sent = self.requests.try_send(request);
        self.bell.ring();
        sent.map_err(|error| match error {
            TrySendError::Full(_) => SpaceError::Dead("does not keep up: its mailbox is full"),
            TrySendError::Disconnected(_) => SpaceError::Dead("is gone"),
        })
    }

    fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, SpaceError>>) -> SpaceRequest,
    ) -> Result<T, SpaceError> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply))?;
        ask::wait(answer, DEADLINE).unwrap_or_else(|why| Err(dead(why)))
    }

    /// Adds anonymous memory to the map.
    ///
    /// # Errors
    ///
    /// Outside memory, occupied, or [`SpaceError::Dead`].
    pub fn map(&self, range: GpaRange, protection: Protection) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Map { range, protection, reply })
    }

    /// Shows a device's memory in a range that is not mapped: uncacheable, all of it at once, until [`SpaceHandle::unmap`].
    ///
    /// # Errors
    ///
    /// Outside memory, occupied, executable, what the host says, or [`SpaceError::Dead`].
    pub fn map_device(
        &self,
        range: GpaRange,
        memory: ScatterList,
        protection: Protection,
    ) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::MapDevice { range, memory, protection, reply })
    }

    /// A device of the host is to reach the guest's memory: with the first one all of it becomes wired, and the map
    /// stays as it is. Returns what the device's IOMMU has to translate.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Passthru`], or [`SpaceError::Dead`].
    pub fn assign_passthru(&self, device: PassthruDevice) -> Result<Vec<DmaMapping>, SpaceError> {
        self.ask(|reply| SpaceRequest::AssignPassthru { device, reply })
    }

    /// Undoes [`SpaceHandle::assign_passthru`], when the device can reach nothing any more.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Passthru`], or [`SpaceError::Dead`].
    pub fn unassign_passthru(&self, device: PassthruDevice) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::UnassignPassthru { device, reply })
    }

    /// Takes memory out of the map; no vcpu can reach it when this returns, and its frames
    /// are free.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired, held, or [`SpaceError::Dead`].
    pub fn unmap(&self, range: GpaRange) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Unmap { range, reply })
    }

    /// Forgets translations; contents stay.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired, or [`SpaceError::Dead`].
    pub fn forget(&self, range: GpaRange) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Forget { range, reply })
    }

    /// Changes what the guest may do; what was lost is lost on every vcpu when this returns.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired, or [`SpaceError::Dead`].
    pub fn protect(&self, range: GpaRange, protection: Protection) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Protect { range, protection, reply })
    }

    /// Makes a range resident for good.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, no memory for it, or [`SpaceError::Dead`].
    pub fn wire(&self, range: GpaRange) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Wire { range, reply })
    }

    /// Undoes [`SpaceHandle::wire`].
    ///
    /// # Errors
    ///
    /// Not wired, or [`SpaceError::Dead`].
    pub fn unwire(&self, range: GpaRange) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Unwire { range, reply })
    }

    /// Holds the page at `gpa`: FreeBSD's `vm_gpa_hold`.
    ///
    /// # Errors
    ///
    /// Not mapped, not allowed, or [`SpaceError::Dead`].
    pub fn gpa_hold(&self, gpa: Gpa, access: Protection) -> Result<HeldPage, SpaceError> {
        let page = GpaRange::page_of(gpa);
        self.ask(|reply| SpaceRequest::Hold { ranges: vec![page], access, reply })?;
        Ok(HeldPage { space: self.clone(), page })
    }

    /// The raw entries that translate `at`, from the root down: FreeBSD's `pmap_get_mapping`.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn mapping(&self, at: Gpa) -> Result<Vec<u64>, SpaceError> {
        self.ask(|reply| SpaceRequest::Mapping { at, reply })
    }

    /// Reads and clears accessed or modified bits of a range, with one shootdown for all of it.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or [`SpaceError::Dead`].
    pub fn harvest(&self, range: GpaRange, what: Touch) -> Result<Harvest, SpaceError> {
        self.ask(|reply| SpaceRequest::Harvest { range, what, reply })
    }

    /// Begins to tell somebody which pages are stored to. The first epoch has every page that
    /// is not absent.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn begin_dirty(&self) -> Result<DirtyConsumer, SpaceError> {
        self.ask(|reply| SpaceRequest::BeginDirty { reply })
    }

    /// The pages stored to since the epoch before. Nothing is lost if the taker fails before it
    /// settles: the next epoch has what this one had.
    ///
    /// # Errors
    ///
    /// [`SpaceError::NoEpoch`], or [`SpaceError::Dead`].
    pub fn take_dirty(&self, consumer: DirtyConsumer) -> Result<DirtyEpoch, SpaceError> {
        self.ask(|reply| SpaceRequest::TakeDirty { consumer, reply })
    }

    /// Says what became of an epoch that was taken.
    ///
    /// # Errors
    ///
    /// [`SpaceError::NoEpoch`], or [`SpaceError::Dead`].
    pub fn settle_dirty(
        &self,
        consumer: DirtyConsumer,
        number: u64,
        how: Settled,
    ) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::SettleDirty { consumer, number, how, reply })
    }

    /// Ends what [`SpaceHandle::begin_dirty`] began.
    ///
    /// # Errors
    ///
    /// [`SpaceError::NoEpoch`], or [`SpaceError::Dead`].
    pub fn end_dirty(&self, consumer: DirtyConsumer) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::EndDirty { consumer, reply })
    }

    /// Puts pages out of memory; returns when each is out, or known to stay.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, [`SpaceError::NoStore`], or [`SpaceError::Dead`].
    pub fn page_out(&self, range: GpaRange) -> Result<PagedOut, SpaceError> {
        self.ask(|reply| SpaceRequest::PageOut { range, reply })
    }

    /// Makes superpages of the whole blocks of a range, where that can be.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or [`SpaceError::Dead`].
    pub fn promote(&self, range: GpaRange) -> Result<Resized, SpaceError> {
        self.ask(|reply| SpaceRequest::Promote { range, reply })
    }

    /// Makes 4 KiB pages of the superpages that a range touches.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or [`SpaceError::Dead`].
    pub fn demote(&self, range: GpaRange) -> Result<Resized, SpaceError> {
        self.ask(|reply| SpaceRequest::Demote { range, reply })
    }

    /// Says what is thought of a range (FreeBSD's `pmap_advise`).
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired or held where its contents would go, or [`SpaceError::Dead`].
    pub fn advise(&self, range: GpaRange, advice: Advice) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Advise { range, advice, reply })
    }

    /// Where a page is, and who used it.
    ///
    /// # Errors
    ///
    /// [`SpaceError::OutsideMemory`], or [`SpaceError::Dead`].
    pub fn page(&self, at: Gpa) -> Result<PageState, SpaceError> {
        self.ask(|reply| SpaceRequest::Page { at, reply })
    }

    /// Raises an invalidation that removes nothing, and waits for it.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn raise(&self) -> Result<RaiseTimes, SpaceError> {
        self.ask(|reply| SpaceRequest::Raise { reply })
    }

    /// Serves a fault of the software engine: when this returns, the tables allow the access, and
    /// the vcpu walks them again. The vcpu must be out of the guest, and must look for orders
    /// before it goes in again: it may have waited for as long as the pmap was busy. Costs two
    /// wakings of a sleeping thread: tens of microseconds.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Hole`], [`SpaceError::Forbidden`], [`SpaceError::Host`]: the machine has been
    /// told, and the vcpu cannot go on. [`SpaceError::Dead`] when the actor is gone, or the
    /// memory is [sealed](SpaceHandle::seal).
    pub fn fault(&self, fault: NestedFault) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Fault { fault, reply })
    }

    /// A reader of the tables, for an engine that walks them itself.
    #[must_use]
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Which shootdowns are over.
    #[must_use]
    pub fn completed(&self) -> Completed {
        self.completed.clone()
    }

    /// Holds faults open, for tests of the protocol.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn set_fault_service(&self, when: FaultService) -> Result<(), SpaceError> {
        self.tell(SpaceRequest::SetFaultService(when))
    }

    /// Whether a fault waits to be served.
    #[must_use]
    pub fn fault_is_waiting(&self) -> bool {
        let userfault = self.reach.userfault.as_ref();
        !self.reach.lane.is_empty() || userfault.is_some_and(|userfault| userfault.has_fault())
    }

    /// Compares the tables with the host's mapping (on KVM), and the books with the memory object. Vcpus may run
    /// meanwhile. Takes some 100 ns for each page of the guest.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Host`], when the host does not say; [`SpaceError::Dead`].
    pub fn verify(&self) -> Result<Verified, SpaceError> {
        self.ask(|reply| SpaceRequest::Verify { reply })
    }

    /// What the actor counted so far.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn count(&self) -> Result<SpaceTally, SpaceError> {
        self.ask_for_tally(|reply| SpaceRequest::Count { reply })
    }

    fn ask_for_tally(
        &self,
        request: impl FnOnce(oneshot::Sender<SpaceTally>) -> SpaceRequest,
    ) -> Result<SpaceTally, SpaceError> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply))?;
        ask::wait(answer, DEADLINE).map_err(dead)
    }

    /// Ends the actor; what it counted until then. It looks at working sets and reclaims on its own, so what
    /// [`SpaceHandle::count`] said a moment before may be short of this.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn retire(&self) -> Result<SpaceTally, SpaceError> {
        self.ask_for_tally(|reply| SpaceRequest::Retire { reply })
    }

    /// Breaks the actor, or one of the workers of its store, for tests of the supervision.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`].
    pub fn break_(&self, who: ActorName, how: Break) -> Result<(), SpaceError> {
        match who {
            ActorName::Pageout | ActorName::Pagein => {
                if let Some(workers) = &self.workers {
                    workers.break_(who, how);
                }
                Ok(())
            }
            _ => self.tell(SpaceRequest::Break(how)),
        }
    }

    /// Who shows by a pulse that they are alive: the actor, and the workers of its store.
    #[must_use]
    pub fn pulses(&self) -> Vec<(ActorName, Pulse)> {
        let mut pulses = vec![(ActorName::Pmap, self.pulse.clone())];
        pulses.extend(self.workers.iter().flat_map(Remote::pulses));
        pulses
    }

    /// The guest's memory object.
    #[must_use]
    pub fn guest_memory(&self) -> &Arc<GuestMemory> {
        &self.reach.memory
    }

    /// The actor's sign of life.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Rings the actor: a vcpu that came out while somebody waited for it does this.
    #[must_use]
    pub fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let bell = self.bell.clone();
        Arc::new(move || bell.ring())
    }

    /// Ends every access of the guest that needs the actor with an error, from now on, without
    /// the actor: for a machine whose pmap is dead or hangs. Nothing is served as zeroes by
    /// accident, and no vcpu waits for an answer that will not come. (On KVM this ends
    /// *every* access. A vcpu of the software engine keeps what its translations allow until
    /// it is told to stop.)
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn seal(&self) -> std::io::Result<()> {
        self.reach.seal()
    }
}

impl Reach {
    pub(crate) fn seal(&self) -> std::io::Result<()> {
        self.lane.seal();
        let Some(userfault) = &self.userfault else { return Ok(()) };
        for slot in self.memory.slots() {
            self.memory.set_view_access(slot.range, false)?;
            userfault.wake(slot.host, slot.range.len())?;
        }
        Ok(())
    }
}

fn dead(why: NoAnswer) -> SpaceError {
    SpaceError::Dead(match why {
        NoAnswer::Gone => "is gone",
        NoAnswer::TooLate => "did not answer in time",
    })
}

/// One page of guest memory that stays where it is while this lives.
pub struct HeldPage {
    space: SpaceHandle,
    page: GpaRange,
}

impl HeldPage {
    /// The page.
    #[must_use]
    pub fn range(&self) -> GpaRange {
        self.page
    }

    /// Guest memory, of which only [`HeldPage::range`] may be touched.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        self.space.reach.memory.backing()
    }
}

impl Drop for HeldPage {
    fn drop(&mut self) {
        self.space.release(&[self.page], false);
    }
}

impl MemoryPort for SpaceHandle {
    fn memory(&self) -> &GuestMemoryMmap {
        self.reach.memory.backing()
    }

    fn hold(&self, ranges: &[GpaRange], access: Protection) -> Result<(), SpaceError> {
        self.ask(|reply| SpaceRequest::Hold { ranges: ranges.to_vec(), access, reply })
    }

    fn release(&self, ranges: &[GpaRange], install: bool) {
        // A release must not be lost to a full mailbox: it waits. A pmap that is gone has
        // no holds to end.
        let request = SpaceRequest::Release { ranges: ranges.to_vec(), install };
        drop(self.requests.send_timeout(request, DEADLINE));
        self.bell.ring();
        if install {
            // Requests are served in order, so an empty hold is answered when all of it is installed. Else the guest's first touch
            // may come before: its page is then entered alone, and the block around it never as a whole.
            drop(self.hold(&[], Protection::empty()));
        }
    }
}
