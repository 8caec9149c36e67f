//! Who used what, and who stored to what: read and cleared in bulk, with one shootdown for all of it.

use actors::contract::page::{
    Advice, DirtyConsumer, Harvest as Harvested, PageState, Place, Settled, Touch,
};
use actors::contract::space::SpaceError;
use actors::pages::PageSet;
use actors::{Gpa, GpaRange, PAGE_SIZE, Protection};

use super::{Removed, Told, VmSpace};
use crate::map::Backing;
use crate::mirror::Mirror;
use crate::object::{Kept, Page, Stored};
use crate::pmap::{Advice as PmapAdvice, Ageing, Harvest, What};

/// What harvests came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) harvests: u64,
    pub(super) accessed_pages: u64,
    pub(super) modified_pages: u64,
}

/// Tells the contents, and whoever asked; what they did not ask for is kept for whoever will.
struct Collected<'a> {
    told: Told<'a>,
    what: Touch,
    accessed: &'a mut PageSet,
    modified: &'a mut PageSet,
}

impl Harvest for Collected<'_> {
    fn modified(&mut self, range: GpaRange) {
        if !self.what.contains(Touch::MODIFIED) {
            return self.told.modified(range);
        }
        let pages = self.told.pages(range);
        self.modified.insert_all(pages.clone());
        self.told.content.stored(pages);
    }

    fn referenced(&mut self, range: GpaRange) {
        if !self.what.contains(Touch::ACCESSED) {
            return self.told.referenced(range);
        }
        let pages = self.told.pages(range);
        self.accessed.insert_all(pages.clone());
        self.told.content.used_all(pages);
    }
}

impl<M: Mirror> VmSpace<M> {
    /// Reads and clears bits of `range` in both pmaps. What was found is true of the past; that nothing of it is missed is
    /// true only after the shootdown.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, stores by a passthru device that nobody sees, or the host's refusal.
    pub fn harvest(
        &mut self,
        range: GpaRange,
        what: Touch,
    ) -> Result<(Removed, Harvested), SpaceError> {
        self.map.must_cover(range)?;
        if what.contains(Touch::MODIFIED) {
            self.must_see_stores()?;
        }
        let pages = self.content.len();
        let mut found = Harvested {
            accessed: PageSet::new(pages),
            modified: PageSet::new(pages),
            examined_pages: self.guest.tables().mapped_pages_in(range),
            ..Harvested::default()
        };
        let removed = self.harvest_into(range, what, &mut found)?;
        found.translations = removed.translations();
        self.note_harvest(&found);
        Ok((removed, found))
    }

    fn note_harvest(&mut self, found: &Harvested) {
        self.harvests.harvests += 1;
        self.harvests.accessed_pages += found.accessed.count();
        self.harvests.modified_pages += found.modified.count();
    }

    fn harvest_into(
        &mut self,
        range: GpaRange,
        what: Touch,
        found: &mut Harvested,
    ) -> Result<Removed, SpaceError> {
        let frames = self.frames(range);
        let pages = self.page_numbers(range);
        let unheard = &mut self.content.unheard;
        if what.contains(Touch::ACCESSED) {
            unheard.accessed.drain_into(pages.clone(), &mut found.accessed);
        }
        if what.contains(Touch::MODIFIED) {
            unheard.modified.drain_into(pages, &mut found.modified);
        }
        let mut collected = Collected {
            told: Told { content: &mut self.content, memory: Some(&self.memory) },
            what,
            accessed: &mut found.accessed,
            modified: &mut found.modified,
        };
        let what = What {
            modified: what.contains(Touch::MODIFIED),
            accessed: what.contains(Touch::ACCESSED).then_some(Ageing::Whole),
        };
        let effects = self.guest.harvest(range, what, &mut collected);
        collected.told.memory = None;
        let monitors = self.monitor.harvest(frames, what, &mut collected);
        self.follow_monitor(monitors);
        // Whoever holds a page for stores may have stored to it, and may still.
        if what.modified {
            for hold in self.holds.clone() {
                let Some(part) = hold.intersection(range) else { continue };
                self.hold_may_store(part);
            }
        }
        self.follow(effects)
    }

    /// Pages of a hold whose monitor's mapping may be stored to are modified again at once.
    fn hold_may_store(&mut self, part: GpaRange) {
        for page in part.iter_pages() {
            let number = self.page_number(page);
            let at = Gpa(number * PAGE_SIZE);
            let writable = self.monitor.extract_allowing(at, Protection::WRITE).is_some();
            if writable {
                self.enter_in_monitor(GpaRange::page_of(page), Protection::WRITE);
            }
        }
    }

    /// Harvests all that is mapped.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn harvest_all(&mut self, what: Touch) -> Result<(Removed, Harvested), SpaceError> {
        let pages = self.content.len();
        let mut found = Harvested {
            accessed: PageSet::new(pages),
            modified: PageSet::new(pages),
            examined_pages: self.guest.resident_pages(),
            ..Harvested::default()
        };
        let mut removed = Removed::default();
        for range in self.memory.layout().ranges() {
            removed.join(self.harvest_into(range, what, &mut found)?);
        }
        found.translations = removed.translations();
        self.note_harvest(&found);
        Ok((removed, found))
    }

    /// Faults so far that only set an emulated accessed bit.
    pub fn accessed_faults(&self) -> u64 {
        self.guest.tally().emulated_reads
    }

    /// Harvests come at intervals from now on, so that superpages that a harvest would take apart are not made.
    pub fn expect_harvests(&mut self) {
        self.is_harvested = true;
    }

    /// Begins to count stores for somebody, to whom every page that is not absent is news.
    ///
    /// # Errors
    ///
    /// There is a passthru device, whose stores nobody sees.
    pub fn begin_dirty(&mut self) -> Result<DirtyConsumer, SpaceError> {
        self.must_see_stores()?;
        let mut already = PageSet::new(self.content.len());
        for page in (0..self.content.len()).filter(|page| self.content.get(*page) != Page::Absent) {
            already.insert(page);
        }
        Ok(self.content.epochs.begin(already))
    }

    /// The first half of taking an epoch: what is in the tables goes to the consumers. The shootdown comes in between.
    ///
    /// # Errors
    ///
    /// No such consumer, or the host's refusal.
    pub fn close_dirty(
        &mut self,
        consumer: DirtyConsumer,
    ) -> Result<(Removed, Harvested), SpaceError> {
        self.content.epochs.must_exist(consumer).map_err(no_epoch)?;
        self.harvest_all(Touch::MODIFIED)
    }

    /// The second half: the epoch's number and its pages.
    ///
    /// # Errors
    ///
    /// No such consumer.
    pub fn take_dirty(&mut self, consumer: DirtyConsumer) -> Result<(u64, PageSet), SpaceError> {
        self.content.epochs.take(consumer).map_err(no_epoch)
    }

    /// What became of an epoch.
    ///
    /// # Errors
    ///
    /// No such consumer, or it does not have that epoch.
    pub fn settle_dirty(
        &mut self,
        consumer: DirtyConsumer,
        number: u64,
        how: Settled,
    ) -> Result<(), SpaceError> {
        self.content.epochs.settle(consumer, number, how).map_err(no_epoch)
    }

    /// Somebody wants to know nothing more.
    ///
    /// # Errors
    ///
    /// No such consumer.
    pub fn end_dirty(&mut self, consumer: DirtyConsumer) -> Result<(), SpaceError> {
        self.content.epochs.end(consumer).map_err(no_epoch)
    }

    /// Takes advice.
    ///
    /// # Errors
    ///
    /// Not wholly mapped; wired, held or device memory, when its contents are to go; or the host's refusal.
    pub fn advise(&mut self, range: GpaRange, advice: Advice) -> Result<Removed, SpaceError> {
        self.map.must_cover(range)?;
        match advice {
            Advice::DontNeed => {
                for page in range.iter_pages() {
                    let number = self.page_number(page);
                    self.content.was_used(number);
                }
                let mut told =
                    Forgotten(Told { content: &mut self.content, memory: Some(&self.memory) });
                // FreeBSD's advice does nothing with emulated bits; a harvest does it for both.
                let effects = if self.guest.masks().emulated {
                    self.guest.harvest(range, What::ACCESSED, &mut told)
                } else {
                    self.guest.advise(range, PmapAdvice::DontNeed, &mut told)
                };
                self.follow(effects)
            }
            Advice::Free => {
                self.must_be_memory(range, "freed")?;
                if self.is_held(range) {
                    return Err(SpaceError::WrongState { range, state: "held" });
                }
                if self.map.overlapping(range).any(|entry| entry.wired) {
                    return Err(SpaceError::WrongState { range, state: "wired" });
                }
                let mut removed = self.remove_translations(range)?;
                if self.become_zeroes(range) {
                    removed.unwanted.push(range);
                }
                Ok(removed)
            }
        }
    }

    /// Everything about the page of `at`.
    ///
    /// # Errors
    ///
    /// Outside the guest's memory.
    pub fn page(&self, at: Gpa) -> Result<PageState, SpaceError> {
        let range = GpaRange::page_of(at);
        if !self.memory.layout().covers(range) {
            return Err(SpaceError::OutsideMemory(range));
        }
        let number = self.page_number(at);
        let guest = self.guest.mincore(at);
        let monitor = self.monitor.mincore(Gpa(number * PAGE_SIZE));
        let entry = self.map.lookup(at);
        let modified = [guest, monitor].iter().flatten().any(|found| found.modified);
        let is_device = entry.is_some_and(|entry| entry.backing == Backing::Sg);
        let place = match self.content.get(number) {
            _ if is_device => Place::Device,
            Page::Absent => Place::Absent,
            Page::Resident(kept) => Place::Resident { dirty: kept == Kept::Nothing || modified },
            Page::Leaving(_) => Place::Leaving,
            Page::Stored(Stored::Zero) => Place::Zero,
            Page::Stored(Stored::Compressed) => Place::Compressed,
            Page::Stored(Stored::Disk(slot)) => Place::Disk { slot: slot.0 },
            Page::Arriving(_) => Place::Arriving,
        };
        Ok(PageState {
            place,
            mapped: guest.map(|found| found.size),
            writable: entry.is_some_and(|entry| entry.protection.contains(Protection::WRITE)),
            accessed: [guest, monitor].iter().flatten().any(|found| found.referenced),
            modified,
            wired: entry.is_some_and(|entry| entry.wired),
            held: self.is_held(range),
        })
    }
}

/// Stores count; uses were just declared to be of no interest.
pub(super) struct Forgotten<'a>(pub(super) Told<'a>);

impl Harvest for Forgotten<'_> {
    fn modified(&mut self, range: GpaRange) {
        self.0.modified(range);
    }

    fn referenced(&mut self, _range: GpaRange) {}
}

fn no_epoch(error: crate::epochs::EpochError) -> SpaceError {
    SpaceError::NoEpoch(error.to_string())
}
