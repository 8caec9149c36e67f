//! Changes of the map: more memory, less memory, other rights.

use actors::contract::space::SpaceError;
use actors::{GpaRange, Protection};

use super::{Removed, Told, VmSpace, host};
use crate::map::Backing;
use crate::mirror::Mirror;
use crate::object::Page;

impl<M: Mirror> VmSpace<M> {
    /// Adds anonymous memory to the map.
    ///
    /// # Errors
    ///
    /// Outside memory, occupied, a passthru device that would not see it, or the host refuses to admit what was refused before.
    pub fn map(&mut self, range: GpaRange, protection: Protection) -> Result<(), SpaceError> {
        self.may_change(range)?;
        self.map.insert(range, Backing::Default, protection)?;
        self.admit(range)
    }

    /// Whoever touches a page of `range` that was refused is judged anew.
    pub(super) fn admit(&mut self, range: GpaRange) -> Result<(), SpaceError> {
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
        if self.is_held(range) {
            return Err(SpaceError::WrongState { range, state: "held" });
        }
        let devices: Vec<_> = self.map.devices(range).collect();
        self.map.remove(range)?;
        let mut removed = self.remove_devices(devices)?;
        removed.join(self.remove_translations(range)?);
        if self.become_zeroes(range) {
            removed.frames.push(range);
        }
        Ok(removed)
    }

    /// What is there of `range` will be zeroes, which whoever copies it must hear of. Returns whether anything is.
    pub(super) fn become_zeroes(&mut self, range: GpaRange) -> bool {
        let mut any = false;
        for page in range.iter_pages() {
            let number = self.page_number(page);
            if self.content.get(number) != Page::Absent {
                self.content.epochs.stored(number);
                any = true;
            }
        }
        any
    }

    /// Forgets the translations of a range; the map and the contents stay.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or wired, or device memory, or the host's refusal.
    pub fn forget(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        self.map.must_cover(range)?;
        self.must_be_memory(range, "forgotten")?;
        if self.map.overlapping(range).any(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "wired" });
        }
        self.remove_translations(range)
    }

    /// Removes the translations of both pmaps, with what they say of stores and uses.
    pub(super) fn remove_translations(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let effects = self.guest.remove(range, &mut told);
        let removed = self.follow(effects)?;
        // A hold lasts: what is stored through it is not told yet.
        if !self.is_held(range) {
            let frames = self.frames(range);
            let mut told = Told { content: &mut self.content, memory: None };
            let effects = self.monitor.remove(frames, &mut told);
            self.follow_monitor(effects);
        }
        Ok(removed)
    }

    /// Changes what the guest may do. Rights that are lost need a shootdown; rights that are
    /// gained come with the next fault.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, wired (when access is lost altogether), device memory, in a passthru device's reach, or the
    /// host's refusal.
    pub fn protect(
        &mut self,
        range: GpaRange,
        protection: Protection,
    ) -> Result<Removed, SpaceError> {
        self.must_be_memory(range, "protected")?;
        self.may_change(range)?;
        let readable = protection.contains(Protection::READ);
        if !readable && self.map.overlapping(range).any(|entry| entry.wired) {
            return Err(SpaceError::WrongState { range, state: "wired" });
        }
        self.map.change(range, |entry| entry.protection = protection)?;
        self.admit(range)?;
        if !readable {
            // FreeBSD's pmap_protect: no access means remove.
            return self.remove_translations(range);
        }
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let effects = self.guest.protect(range, protection, &mut told);
        let removed = self.follow(effects)?;
        // A wired page never faults: it gets its rights now. Others may not even be in memory.
        let wired = self.map.overlapping(range).filter(|entry| entry.wired);
        let wired: Vec<_> = wired.filter_map(|entry| entry.range.intersection(range)).collect();
        for part in wired {
            if let Err(error) = self.enter_wired(part) {
                // What was lost is lost all the same, and is carried with what faults left over.
                self.left_over.join(removed);
                return Err(host("map guest memory", &error));
            }
        }
        Ok(removed)
    }
}
