//! Pages that must stay: under a hold, or wired.

use std::io;

use actors::contract::space::SpaceError;
use actors::{Access, GpaRange, Protection};

use super::fault::{Source, Toucher};
use super::{Told, VmSpace, host};
use crate::ept::attribute::Attribute;
use crate::mirror::Mirror;
use crate::object::Page;
use crate::pmap::Wanted;
use crate::runs::runs;

/// Whether something was done, or waits for pages on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "what waits must be tried again"]
pub enum Done {
    /// It is done.
    Now,
    /// To be tried again, from the start, when something has arrived or left.
    Waits,
}

impl<M: Mirror> VmSpace<M> {
    /// Makes a range resident and reachable for good. `beat` is called now and then:
    /// this may take long.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, device memory, or the host has no memory for it; what was wired so far is
    /// unwired again.
    pub fn wire(&mut self, range: GpaRange, mut beat: impl FnMut()) -> Result<Done, SpaceError> {
        const AT_ONCE: u64 = 16 << 20;
        self.map.must_cover(range)?;
        self.must_be_memory(range, "wired")?;
        if !self.bring_in_all(range)? {
            return Ok(Done::Waits);
        }
        for part in range.pieces(AT_ONCE) {
            if let Err(error) = self.wire_part(part) {
                if part.start() > range.start() {
                    let done = GpaRange::new(range.start(), part.start().0 - range.start().0);
                    self.unwire(done.expect("part of a range"))?;
                }
                return Err(host("wire guest memory", &error));
            }
            beat();
        }
        Ok(Done::Now)
    }

    fn wire_part(&mut self, part: GpaRange) -> io::Result<()> {
        self.make_resident(part)?;
        self.enter_wired(part)?;
        self.memory.lock(part)?;
        self.map.change(part, |entry| entry.wired = true).map_err(io::Error::other)?;
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let effects = self.guest.wire(part, &mut told);
        let removed = self.follow(effects).map_err(io::Error::other)?;
        self.left_over.join(removed);
        self.consider_promotions(part)
    }

    /// Enters all of `range`, which is resident, with all the rights that the map gives, as used and stored to: a wired page
    /// never faults.
    pub(super) fn enter_wired(&mut self, range: GpaRange) -> io::Result<()> {
        let entries: Vec<_> = self.map.overlapping(range).copied().collect();
        for entry in entries {
            if !entry.protection.contains(Protection::READ) {
                continue;
            }
            let part = entry.range.intersection(range).expect("it overlaps");
            let writable = entry.protection.contains(Protection::WRITE);
            let access = if writable { Access::Write } else { Access::Read };
            for (run, has_leaf) in runs(part, |page| self.guest.leaf(page).is_some()) {
                if !has_leaf {
                    self.install(run, Toucher { at: None, access }, &entry, Source::Object)?;
                    continue;
                }
                for page in run.iter_pages() {
                    self.enter(page, &entry, access)?;
                }
                for page in run.iter_pages() {
                    self.mirror.mend(GpaRange::page_of(page), access, writable)?;
                }
            }
        }
        Ok(())
    }

    /// Undoes [`VmSpace::wire`]. A software bit only: no shootdown (`pmap_unwire`).
    ///
    /// # Errors
    ///
    /// Some of it is not wired, a passthru device needs it to be, or the host's refusal.
    pub fn unwire(&mut self, range: GpaRange) -> Result<(), SpaceError> {
        self.map.must_cover(range)?;
        self.may_change(range)?;
        if !self.map.overlapping(range).all(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "not wired" });
        }
        self.map.change(range, |entry| entry.wired = false)?;
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let effects = self.guest.unwire(range, &mut told);
        let removed = self.follow(effects)?;
        self.left_over.join(removed);
        self.memory.unlock(range).map_err(|error| host("unlock guest memory", &error))
    }

    /// Makes the frames of a range exist, and what comes with them. What was absent is zeroes, and dirty.
    fn make_resident(&mut self, range: GpaRange) -> io::Result<()> {
        let range = self.with_its_blocks(range);
        self.allocate_whole_blocks(range);
        self.memory.populate(range)?;
        self.content.appear_where_absent(self.page_numbers(range));
        Ok(())
    }

    /// Keeps the pages of `ranges` where they are, and makes them exist.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, not allowed, device memory, or the host has no memory; nothing is held then.
    pub fn hold(&mut self, ranges: &[GpaRange], access: Protection) -> Result<Done, SpaceError> {
        for &range in ranges {
            self.map.must_cover(range)?;
            // It is not in the backing view. bhyve's `vm_gpa_hold` knows only memory, too.
            self.must_be_memory(range, "held")?;
            if let Some(entry) =
                self.map.overlapping(range).find(|entry| !entry.protection.contains(access))
            {
                let at = entry.range.start().max(range.start());
                return Err(SpaceError::Forbidden { at, wanted: access });
            }
        }
        let mut all_here = true;
        for &range in ranges {
            all_here &= self.bring_in_all(range)?;
        }
        if !all_here {
            return Ok(Done::Waits);
        }
        for &range in ranges {
            self.make_resident(range)
                .map_err(|error| host("make guest memory resident", &error))?;
            self.enter_in_monitor(range, access);
        }
        self.holds.extend_from_slice(ranges);
        Ok(Done::Now)
    }

    /// The monitor may reach for `range` from now on. What it may store it is taken to store.
    pub(super) fn enter_in_monitor(&mut self, range: GpaRange, access: Protection) {
        let stores = access.contains(Protection::WRITE);
        let touched = Some(if stores { Access::Write } else { Access::Read });
        let protection = (access | Protection::READ) - Protection::EXECUTE;
        let frames = self.frames(range);
        // Mostly nobody held any of it before: no need to walk for each page.
        let is_unmapped = self.monitor.tables().mapped_pages_in(frames) == 0;
        let masks = self.monitor.masks();
        // An earlier hold's right to store lasts.
        let earlier = |frame| {
            let leaf = if is_unmapped { None } else { self.monitor.leaf(frame) };
            leaf.map_or(Protection::empty(), |leaf| masks.protection(leaf.entry))
        };
        for (run, earlier) in runs(frames, earlier) {
            let wanted = Wanted {
                protection: protection | earlier,
                attribute: Attribute::MEMORY,
                touched,
                dirty: false,
                wired: true,
            };
            let mut told = Told { content: &mut self.content, memory: None };
            let effects = self.monitor.enter_range(run, run.start().0, wanted, &mut told);
            self.follow_monitor(effects);
        }
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
            // Mostly nobody else holds any of it.
            let parts = match self.is_held(range) {
                false => vec![(range, false)],
                true => runs(range, |page| self.is_held(GpaRange::page_of(page))),
            };
            for (run, is_held) in parts {
                if !is_held {
                    let frames = self.frames(run);
                    let mut told = Told { content: &mut self.content, memory: None };
                    let effects = self.monitor.unwire(frames, &mut told);
                    self.follow_monitor(effects);
                }
            }
            if install {
                self.install_resident(range).map_err(|error| host("map guest memory", &error))?;
            }
        }
        Ok(())
    }

    /// Enters every resident page of `range` that has no leaf yet, and what came with it.
    fn install_resident(&mut self, range: GpaRange) -> io::Result<()> {
        let range = self.with_resident_blocks(range);
        let entries: Vec<_> = self.map.overlapping(range).copied().collect();
        for entry in entries {
            if !entry.protection.contains(Protection::READ) {
                continue;
            }
            let part = entry.range.intersection(range).expect("it overlaps");
            // After loading nothing is mapped yet: no need to walk for each page.
            let is_unmapped = self.guest.tables().mapped_pages_in(part) == 0;
            let class = |page| {
                let number = self.page_number(page);
                let is_missing = matches!(self.content.get(number), Page::Resident(_))
                    && (is_unmapped || self.guest.leaf(page).is_none());
                (is_missing, self.is_dirty_already(number))
            };
            for (run, (is_missing, is_dirty)) in runs(part, class) {
                if is_missing {
                    self.install_by_blocks(run, is_dirty, &entry)?;
                }
            }
        }
        Ok(())
    }
}
