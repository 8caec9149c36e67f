//! Serving a nested fault: what is missing is brought, as far as it is here; or the fault waits.

use std::io;

use actors::{Access, Gpa, GpaRange, PAGE_SIZE, PageSize, Protection};

use super::{Told, VmSpace};
use crate::ept::attribute::Attribute;
use crate::host::userfault::Installed;
use crate::map::{Backing, MapEntry};
use crate::mirror::Mirror;
use crate::object::{Kept, Page, Stored};
use crate::pmap::Wanted;
use crate::runs::run_around;
use crate::swap::SwapError;

/// How a fault was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// This many fresh pages of zeroes, the touched one among them.
    ZeroFilled(u64),
    /// This many pages that were in their object already.
    MappedExisting(u64),
    /// The page came back from the store.
    PagedIn,
    /// Somebody was faster; whoever waited was woken.
    AlreadyThere,
    /// Stores are allowed (again).
    WriteUnprotected,
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The tables allow the access.
    Served(Served),
    /// The page is on its way from disk, or there is no room for it: to be tried again when
    /// something has arrived or left.
    Waits,
}

/// Why a fault cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Unserved {
    /// The map has nothing there.
    #[error("nothing is mapped there")]
    Hole,
    /// The map allows loads there, but not this.
    #[error("the access is not allowed there")]
    Forbidden,
    /// The host refused; or it lost a page, which must never be served as zeroes.
    #[error("the host refused: {0}")]
    Host(#[from] io::Error),
    /// The page was put out of memory, and what came back is not what it was.
    #[error("a page that was put out of memory is lost: {0}")]
    Lost(#[from] SwapError),
}

/// Who touches pages that are installed.
#[derive(Clone, Copy)]
pub(super) struct Toucher {
    /// One page, whose neighbours come along; or all of them.
    pub(super) at: Option<Gpa>,
    /// How.
    pub(super) access: Access,
}

impl Toucher {
    /// How `page` is touched. One that comes along counts as used: with emulated bits hardware could not reach
    /// it otherwise.
    fn of(self, page: Gpa) -> Access {
        if self.at.is_none_or(|at| at.page() == page) { self.access } else { Access::Read }
    }
}

/// Where the pages of a run come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// They are zeroes that nobody has made yet.
    Zeroes,
    /// They are in the object.
    Object,
}

impl<M: Mirror> VmSpace<M> {
    /// Serves a nested fault at `gpa`: afterwards the tables allow the access, or it waits.
    ///
    /// # Errors
    ///
    /// [`Unserved`]; whoever sleeps on the guest view still does, and [`VmSpace::refuse`]
    /// ends that.
    pub fn fault(&mut self, gpa: Gpa, access: Access) -> Result<Outcome, Unserved> {
        let entry = *self.map.lookup(gpa).ok_or(Unserved::Hole)?;
        if !entry.protection.contains(Protection::READ) {
            return Err(Unserved::Hole);
        }
        if !entry.protection.contains(access.needs()) {
            return Err(Unserved::Forbidden);
        }
        if entry.backing == Backing::Sg {
            // All of it was mapped at once, with all its rights: a report from before that.
            self.mirror.wake(GpaRange::page_of(gpa))?;
            return Ok(Outcome::Served(Served::AlreadyThere));
        }
        if self.guest.leaf(gpa).is_some() {
            let served = self.fault_on_leaf(gpa, access, &entry)?;
            self.consider_promotion(gpa)?;
            return Ok(Outcome::Served(served));
        }
        let page = self.page_number(gpa);
        let served = match self.content.get(page) {
            Page::Absent => self.fault_on_absent(gpa, access, &entry)?,
            Page::Resident(_) => self.fault_on_resident(gpa, access, &entry)?,
            Page::Leaving(_) => {
                self.content.rescue(page);
                self.fault_on_resident(gpa, access, &entry)?
            }
            Page::Stored(_) | Page::Arriving(_) => self.fault_on_stored(gpa, access, &entry)?,
        };
        if let Outcome::Served(_) = served {
            self.consider_promotion(gpa)?;
        }
        Ok(served)
    }

    /// The tables have the page: a second report of a served fault, a leaf whose emulated
    /// accessed or modified bit was clear, a right that the map gained, or a host mapping that lags behind.
    fn fault_on_leaf(
        &mut self,
        gpa: Gpa,
        access: Access,
        entry: &MapEntry,
    ) -> Result<Served, Unserved> {
        let page = GpaRange::page_of(gpa);
        let before = self.guest.rights(gpa);
        if !self.guest.emulate_accessed_dirty(gpa, access) {
            let granted = self.guest.extract_allowing(gpa, access.needs()).is_some();
            let emulated = self.guest.masks().emulated;
            // A superpage that may be stored to, and says so: only the host lags behind.
            let up_to_date = granted && (!emulated || before.contains(access.needs()));
            if !up_to_date {
                self.enter(page.start(), entry, access)?;
            }
        }
        let after = self.guest.rights(gpa);
        let writable = after.contains(Protection::WRITE);
        let is_block = self.guest.leaf(gpa).is_some_and(|leaf| leaf.size == PageSize::Size2MiB);
        if is_block && !before.contains(Protection::READ) && after.contains(Protection::READ) {
            self.reach_block(gpa, writable)?;
        }
        let served = self.mirror.mend(page, access, writable)?;
        Ok(match served {
            Served::AlreadyThere if before == after => Served::AlreadyThere,
            Served::AlreadyThere if access == Access::Write => Served::WriteUnprotected,
            Served::AlreadyThere => Served::MappedExisting(1),
            served => served,
        })
    }

    fn fault_on_absent(
        &mut self,
        gpa: Gpa,
        access: Access,
        entry: &MapEntry,
    ) -> Result<Outcome, Unserved> {
        if let Some(served) = self.enter_whole_block(gpa, access, entry)? {
            return Ok(Outcome::Served(served));
        }
        // Where memory is short, nobody is brought along who might push somebody out.
        let around =
            if self.content.has_room(self.settings.around) { self.settings.around } else { 1 };
        let run = run_around(gpa, entry.range, around, |page| {
            self.guest.leaf(page).is_none()
                && self.content.get(self.page_number(page)) == Page::Absent
        });
        if !self.content.has_room(run.pages()) {
            return Ok(Outcome::Waits);
        }
        self.install(run, Toucher { at: Some(gpa), access }, entry, Source::Zeroes)?;
        Ok(Outcome::Served(Served::ZeroFilled(run.pages())))
    }

    fn fault_on_resident(
        &mut self,
        gpa: Gpa,
        access: Access,
        entry: &MapEntry,
    ) -> Result<Outcome, Unserved> {
        let stores = access == Access::Write;
        let dirty = stores || self.is_dirty_already(self.page_number(gpa));
        let run = run_around(gpa, entry.range, self.settings.around, |page| {
            let number = self.page_number(page);
            matches!(self.content.get(number), Page::Resident(_))
                && self.guest.leaf(page).is_none()
                && self.is_dirty_already(number) == dirty
        });
        self.install(run, Toucher { at: Some(gpa), access }, entry, Source::Object)?;
        Ok(Outcome::Served(Served::MappedExisting(run.pages())))
    }

    fn fault_on_stored(
        &mut self,
        gpa: Gpa,
        access: Access,
        entry: &MapEntry,
    ) -> Result<Outcome, Unserved> {
        let page = GpaRange::page_of(gpa);
        let number = self.page_number(gpa);
        if self.content.get(number) == Page::Stored(Stored::Zero)
            && access == Access::Write
            && self.content.has_room(1)
        {
            // Another page of zeroes is as good.
            self.content.forget(number);
            self.install(page, Toucher { at: Some(gpa), access }, entry, Source::Zeroes)?;
            return Ok(Outcome::Served(Served::PagedIn));
        }
        if !self.bring_in(gpa)? {
            return Ok(Outcome::Waits);
        }
        self.install(page, Toucher { at: Some(gpa), access }, entry, Source::Object)?;
        Ok(Outcome::Served(Served::PagedIn))
    }

    /// Whether nothing is learned from the next store to a page: the store has no copy of it, and everyone who counts
    /// stores has counted one.
    pub(super) fn is_dirty_already(&self, page: u64) -> bool {
        matches!(self.content.get(page), Page::Resident(Kept::Nothing))
            && self.content.epochs.all_know(page)
    }

    /// Makes `run`, none of which has a leaf and all of which comes from the same place, part of what the guest can
    /// reach. Its pages are dirty already, or are not, all alike, save one that is being stored to.
    pub(super) fn install(
        &mut self,
        run: GpaRange,
        toucher: Toucher,
        entry: &MapEntry,
        mut source: Source,
    ) -> io::Result<()> {
        let may_write = entry.protection.contains(Protection::WRITE);
        if source == Source::Zeroes {
            if !may_write {
                // There is no way to map a zero page write-protected in one step.
                self.memory.populate(run)?;
                source = Source::Object;
            }
            for page in run.iter_pages() {
                let number = self.page_number(page);
                self.content.appear(number);
            }
        }
        let stores = toucher.access == Access::Write;
        let dirty = stores || self.is_dirty_already(self.page_number(run.start()));
        let writable = may_write && (dirty || !self.guest.masks().emulated);
        let mut next = run.start();
        while next < run.end() {
            let rest = GpaRange::new(next, run.end().0 - next.0).expect("part of a range");
            let installed = match source {
                Source::Zeroes => self.mirror.map_zeroed(rest)?,
                Source::Object => self.mirror.map_existing(rest, writable)?,
            };
            let bytes = match installed {
                Installed::Bytes(bytes) => bytes,
                // The host has it (a page our tables forgot, and nobody else may forget).
                Installed::AlreadyThere => {
                    let page = GpaRange::page_of(next);
                    self.mirror.set_writable(page, writable)?;
                    self.mirror.wake(page)?;
                    PAGE_SIZE
                }
                Installed::Busy => continue,
            };
            let done = GpaRange::new(next, bytes).map_err(io::Error::other)?;
            for page in done.iter_pages() {
                self.enter(page, entry, toucher.of(page))?;
            }
            next = done.end();
        }
        Ok(())
    }

    /// Enters one page of the object into the guest's tables.
    pub(super) fn enter(&mut self, page: Gpa, entry: &MapEntry, touched: Access) -> io::Result<()> {
        let number = self.page_number(page);
        debug_assert!(
            matches!(self.content.get(number), Page::Resident(_)),
            "page {number} is entered, and is not in memory"
        );
        let wanted = Wanted {
            protection: entry.protection,
            attribute: Attribute::MEMORY,
            touched: Some(touched),
            dirty: self.is_dirty_already(number),
            wired: entry.wired,
        };
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let effects = self.guest.enter(page, number * PAGE_SIZE, wanted, &mut told);
        self.content.mapped(number);
        // Rights only grew; but a superpage that was in the way may be gone.
        let removed = self.follow(effects).map_err(io::Error::other)?;
        self.left_over.join(removed);
        Ok(())
    }

    /// What faults took away, which they seldom do: it needs a shootdown of its own.
    pub fn take_left_over(&mut self) -> super::Removed {
        std::mem::take(&mut self.left_over)
    }

    /// Ends the wait of whoever touches the page of `gpa`: the touch fails.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn refuse(&mut self, gpa: Gpa) -> io::Result<()> {
        let page = GpaRange::page_of(gpa);
        if !self.refused.contains(&page) {
            self.refused.push(page);
        }
        self.mirror.refuse(page)
    }
}
