//! One guest's vmspace: the map, the tables, and the host mapping that follows them.
//!
//! Plain state and plain methods: no threads, no messages, no waiting. The actor
//! (`space_actor.rs`) owns one and carries what an operation [`Removed`] through a
//! shootdown; only then does it come back here, to [`VmSpace::give_back`].
//!
//! The pmap is a cache of the map: an entry of the tables may be forgotten at any time,
//! because the next touch faults and asks again. So not-present to present needs no
//! shootdown, and neither do permissions that only grow; the worst that happens is a second
//! fault, which is answered "already there".

use std::io;
use std::sync::Arc;

use actors::contract::space::SpaceError;
use actors::pages::PageSet;
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};

use crate::ept::entry::Leaf;
use crate::ept::masks::{Masks, PmapFlags, PmapType};
use crate::ept::tables::{TableFrame, Tables};
use crate::host::memory::GuestMemory;
use crate::host::userfault::Installed;
use crate::map::VmMap;
use crate::mirror::Mirror;
use crate::runs::{run_around, runs};

/// A guest's memory: what should be there, what is there, and who must be told.
pub struct VmSpace<M> {
    memory: Arc<GuestMemory>,
    map: VmMap,
    tables: Tables,
    mirror: M,
    /// Pages that are in their object, whether or not the guest can reach them.
    resident: PageSet,
    holds: Vec<GpaRange>,
    refused: Vec<GpaRange>,
    wired_pages: u64,
    /// Pages of one fault-around window; 1 turns it off.
    around: u64,
}

/// What an operation took away. Only the shootdown's end makes it free.
#[derive(Debug, Default)]
#[must_use = "frames and table pages are lost unless they are given back after the shootdown"]
pub struct Removed {
    /// Ranges whose frames leave their object.
    frames: Vec<GpaRange>,
    /// Table pages nobody points at any more.
    tables: Vec<TableFrame>,
    /// Translations that were removed or lost rights.
    translations: u64,
}

impl Removed {
    /// Whether nothing was removed that anybody could have cached: no shootdown is needed.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.translations == 0
    }

    /// Translations that were removed or lost rights.
    #[must_use]
    pub fn translations(&self) -> u64 {
        self.translations
    }

    /// Adds what another operation removed, so that both share one shootdown.
    pub fn join(&mut self, mut other: Self) {
        self.frames.append(&mut other.frames);
        self.tables.append(&mut other.tables);
        self.translations += other.translations;
    }
}

/// How a fault was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// This many fresh pages of zeroes, the touched one among them.
    ZeroFilled(u64),
    /// This many pages that were in their object already.
    MappedExisting(u64),
    /// Somebody was faster; whoever waited was woken.
    AlreadyThere,
    /// Stores are allowed (again).
    WriteUnprotected,
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
}

impl<M: Mirror> VmSpace<M> {
    /// An empty vmspace over `memory`: nothing is mapped. `around` is the window of
    /// fault-around in pages.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, flags: PmapFlags, mirror: M, around: u64) -> Self {
        let layout = memory.layout();
        Self {
            map: VmMap::new(layout),
            tables: Tables::new(PmapType::PtEpt, flags, layout),
            mirror,
            resident: PageSet::new(layout.total() / PAGE_SIZE),
            holds: Vec::new(),
            refused: Vec::new(),
            wired_pages: 0,
            around,
            memory,
        }
    }

    /// The memory object underneath.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// 4 KiB pages that are wired.
    #[must_use]
    pub fn wired_pages(&self) -> u64 {
        self.wired_pages
    }

    /// Pages under a hold, counted once per hold.
    #[must_use]
    pub fn held_pages(&self) -> u64 {
        self.holds.iter().map(|range| range.pages()).sum()
    }

    fn page_number(&self, gpa: Gpa) -> u64 {
        self.memory.frame_of(gpa) / PAGE_SIZE
    }

    fn is_resident(&self, gpa: Gpa) -> bool {
        self.resident.contains(self.page_number(gpa))
    }

    /// Serves a nested fault at `gpa`: afterwards the tables allow the access.
    ///
    /// # Errors
    ///
    /// [`Unserved`]; whoever sleeps on the guest view still does, and [`VmSpace::refuse`]
    /// ends that.
    pub fn fault(&mut self, gpa: Gpa, access: Access) -> Result<Served, Unserved> {
        let entry = *self.map.lookup(gpa).ok_or(Unserved::Hole)?;
        if !entry.protection.contains(Protection::READ) {
            return Err(Unserved::Hole);
        }
        if !entry.protection.contains(access.needs()) {
            return Err(Unserved::Forbidden);
        }
        let page = GpaRange::page_of(gpa);
        if self.tables.leaf(gpa).is_some() {
            let may_write = entry.protection.contains(Protection::WRITE);
            return self.fault_on_leaf(page, access, may_write);
        }
        let resident = self.is_resident(gpa);
        let same = |page| self.tables.leaf(page).is_none() && self.is_resident(page) == resident;
        let run = run_around(gpa, entry.range, self.around, same);
        self.install(run, entry.protection, entry.wired)?;
        Ok(if resident {
            Served::MappedExisting(run.pages())
        } else {
            Served::ZeroFilled(run.pages())
        })
    }

    /// The tables have the page: a second report of a served fault, a leaf whose emulated
    /// accessed or modified bit was clear, or a host mapping that lags behind.
    fn fault_on_leaf(
        &mut self,
        page: GpaRange,
        access: Access,
        may_write: bool,
    ) -> Result<Served, Unserved> {
        let touched = self.tables.masks().touched(access);
        let was_clear = self.tables.update(page, |leaf| leaf.entry | touched, |_, _, _| {}) > 0;
        Ok(match self.mirror.mend(page, access, may_write)? {
            Served::AlreadyThere if was_clear && access == Access::Write => {
                Served::WriteUnprotected
            }
            Served::AlreadyThere if was_clear => Served::MappedExisting(1),
            served => served,
        })
    }

    /// Makes `run`, none of which has a leaf and all of which is, or is not, resident, part
    /// of what the guest can reach.
    fn install(&mut self, run: GpaRange, protection: Protection, wired: bool) -> io::Result<()> {
        let writable = protection.contains(Protection::WRITE);
        let mut resident = self.is_resident(run.start());
        if !resident && !writable {
            // There is no way to map a zero page write-protected in one step.
            self.memory.populate(run)?;
            resident = true;
        }
        let mut next = run.start();
        while next < run.end() {
            let rest = GpaRange::new(next, run.end().0 - next.0).expect("part of a range");
            let installed = if resident {
                self.mirror.map_existing(rest, writable)?
            } else {
                self.mirror.map_zeroed(rest)?
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
            self.enter(done, protection, wired);
            next = done.end();
        }
        Ok(())
    }

    fn enter(&mut self, range: GpaRange, protection: Protection, wired: bool) {
        let wired = if wired { self.tables.masks().wired } else { 0 };
        for page in range.iter_pages() {
            let number = self.page_number(page);
            self.resident.insert(number);
            let leaf = self.tables.masks().leaf(number * PAGE_SIZE, protection) | wired;
            self.tables.enter(page, leaf);
        }
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

    /// Adds anonymous memory to the map.
    ///
    /// # Errors
    ///
    /// Outside memory, occupied, or the host refuses to admit what was refused before.
    pub fn map(&mut self, range: GpaRange, protection: Protection) -> Result<(), SpaceError> {
        self.map.insert(range, protection)?;
        let refused = std::mem::take(&mut self.refused);
        let (admit, keep): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|page| range.covers(*page));
        self.refused = keep;
        for page in admit {
            self.mirror
                .admit(page)
                .map_err(|error| host("allow access to a page again", &error))?;
        }
        Ok(())
    }

    /// Takes memory out of the map; its frames are free after the shootdown.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired, held, or the host's refusal.
    pub fn unmap(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        if self.holds.iter().any(|hold| hold.intersection(range).is_some()) {
            return Err(SpaceError::WrongState { range, state: "held" });
        }
        self.map.remove(range)?;
        let mut removed = self.remove_translations(range)?;
        if range.iter_pages().any(|page| self.is_resident(page)) {
            removed.frames.push(range);
        }
        Ok(removed)
    }

    /// Forgets the translations of a range; the map and the contents stay.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or wired, or the host's refusal.
    pub fn forget(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        self.map.must_cover(range)?;
        if self.map.overlapping(range).any(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "wired" });
        }
        self.remove_translations(range)
    }

    fn remove_translations(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        let mut removed = Removed::default();
        removed.translations = self.tables.remove(range, &mut removed.tables, |_, _| {});
        if removed.translations > 0 {
            self.mirror.unmap(range).map_err(|error| host("unmap guest memory", &error))?;
        }
        Ok(removed)
    }

    /// Changes what the guest may do. Rights that are lost need a shootdown.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired (when access is lost altogether), or the host's refusal.
    pub fn protect(
        &mut self,
        range: GpaRange,
        protection: Protection,
    ) -> Result<Removed, SpaceError> {
        let readable = protection.contains(Protection::READ);
        if !readable && self.map.overlapping(range).any(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "wired" });
        }
        self.map.change(range, |entry| entry.protection = protection)?;
        if !readable {
            // FreeBSD's pmap_protect: no access means remove.
            return self.remove_translations(range);
        }
        let masks = *self.tables.masks();
        let after = masks.permissions(protection);
        let (mut lost, mut gained) = (0, 0);
        let change = |leaf: Leaf| leaf.entry & !masks.permission_mask() | after;
        self.tables.update(range, change, |_, Leaf { entry: before, .. }, after| {
            lost += u64::from(loses_rights(&masks, before, after));
            gained += u64::from(before & masks.writable == 0 && after & masks.writable != 0);
        });
        if lost > 0 || gained > 0 {
            let writable = protection.contains(Protection::WRITE);
            self.mirror
                .set_writable(range, writable)
                .map_err(|error| host("change the write protection of guest memory", &error))?;
        }
        Ok(Removed { translations: lost, ..Removed::default() })
    }

    /// Makes a range resident and reachable for good. `beat` is called now and then:
    /// this may take long.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or the host has no memory for it; what was wired so far is
    /// unwired again.
    pub fn wire(&mut self, range: GpaRange, mut beat: impl FnMut()) -> Result<(), SpaceError> {
        const AT_ONCE: u64 = 16 << 20;
        self.map.must_cover(range)?;
        let mut next = range.start();
        while next < range.end() {
            let bytes = AT_ONCE.min(range.end().0 - next.0);
            let part = GpaRange::new(next, bytes).expect("part of a range");
            if let Err(error) = self.wire_part(part) {
                if part.start() > range.start() {
                    let done = GpaRange::new(range.start(), part.start().0 - range.start().0);
                    self.unwire(done.expect("part of a range"))?;
                }
                return Err(host("wire guest memory", &error));
            }
            next = part.end();
            beat();
        }
        Ok(())
    }

    fn wire_part(&mut self, part: GpaRange) -> io::Result<()> {
        self.memory.populate(part)?;
        for page in part.iter_pages() {
            let number = self.page_number(page);
            self.resident.insert(number);
        }
        self.install_resident(part)?;
        self.memory.lock(part)?;
        let wired = self.tables.masks().wired;
        self.wired_pages += self.tables.update(part, |leaf| leaf.entry | wired, |_, _, _| {});
        self.map.change(part, |entry| entry.wired = true).map_err(io::Error::other)
    }

    /// Undoes [`VmSpace::wire`]. A software bit only: no shootdown (`pmap_unwire`).
    ///
    /// # Errors
    ///
    /// Some of it is not wired, or the host's refusal.
    pub fn unwire(&mut self, range: GpaRange) -> Result<(), SpaceError> {
        self.map.must_cover(range)?;
        if !self.map.overlapping(range).all(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "not wired" });
        }
        self.map.change(range, |entry| entry.wired = false)?;
        let wired = self.tables.masks().wired;
        self.wired_pages -= self.tables.update(range, |leaf| leaf.entry & !wired, |_, _, _| {});
        self.memory.unlock(range).map_err(|error| host("unlock guest memory", &error))
    }

    /// Keeps the pages of `ranges` where they are, and makes them exist.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, not allowed, or the host has no memory; nothing is held then.
    pub fn hold(&mut self, ranges: &[GpaRange], access: Protection) -> Result<(), SpaceError> {
        for &range in ranges {
            self.map.must_cover(range)?;
            if let Some(entry) =
                self.map.overlapping(range).find(|entry| !entry.protection.contains(access))
            {
                let at = entry.range.start().max(range.start());
                return Err(SpaceError::Forbidden { at, wanted: access });
            }
        }
        for &range in ranges {
            self.memory
                .populate(range)
                .map_err(|error| host("make guest memory resident", &error))?;
            for page in range.iter_pages() {
                let number = self.page_number(page);
                self.resident.insert(number);
            }
        }
        self.holds.extend_from_slice(ranges);
        Ok(())
    }

    /// Ends one hold of each range; with `install`, what is resident of it enters the
    /// guest's tables in bulk.
    ///
    /// # Errors
    ///
    /// A range that is not held, or the host's refusal.
    pub fn release(&mut self, ranges: &[GpaRange], install: bool) -> Result<(), SpaceError> {
        for &range in ranges {
            let hold = self.holds.iter().position(|hold| *hold == range);
            self.holds
                .swap_remove(hold.ok_or(SpaceError::WrongState { range, state: "not held" })?);
            if install {
                self.install_resident(range).map_err(|error| host("map guest memory", &error))?;
            }
        }
        Ok(())
    }

    /// Enters every resident page of `range` that has no leaf yet.
    fn install_resident(&mut self, range: GpaRange) -> io::Result<()> {
        let entries: Vec<_> = self.map.overlapping(range).copied().collect();
        for entry in entries {
            let part = entry.range.intersection(range).expect("it overlaps");
            let absent = |page| self.is_resident(page) && self.tables.leaf(page).is_none();
            for (run, absent) in runs(part, absent) {
                if absent {
                    self.install(run, entry.protection, entry.wired)?;
                }
            }
        }
        Ok(())
    }

    /// Takes back what a finished shootdown carried: frames go to the host, table pages to
    /// the next walk.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn give_back(&mut self, removed: Removed) -> Result<(), SpaceError> {
        self.tables.give_back(removed.tables);
        for range in removed.frames {
            self.mirror.free(range).map_err(|error| host("free guest memory", &error))?;
            for page in range.iter_pages() {
                let number = self.page_number(page);
                self.resident.remove(number);
            }
        }
        Ok(())
    }

    /// The frame that `gpa` translates to now (FreeBSD's `pmap_extract`).
    #[must_use]
    pub fn extract(&self, gpa: Gpa) -> Option<u64> {
        self.tables.leaf(gpa).map(|leaf| leaf.frame_of(gpa) | gpa.0 & (PAGE_SIZE - 1))
    }
}

/// Whether a leaf that goes from `before` to `after` allows less than it did.
fn loses_rights(masks: &Masks, before: u64, after: u64) -> bool {
    let loses = before & !after & (masks.writable | masks.executable) != 0;
    let forbids = !before & after & masks.no_execute != 0;
    loses || forbids
}

fn host(what: &'static str, error: &io::Error) -> SpaceError {
    SpaceError::Host { what, why: error.to_string() }
}

#[cfg(test)]
mod tests;
