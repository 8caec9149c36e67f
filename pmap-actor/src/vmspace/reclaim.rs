//! Pages out: by a clock over accessed bits, or because somebody said so.
//!
//! The clock's hand goes over all pages in the order of their frames. A page that was used since the hand last came by is
//! aged (its accessed bits are cleared) and passed over: its second chance. One that was not leaves: its translations are
//! removed, here and in the monitor's pmap, with one shootdown for the whole round; then it is out of everybody's reach, and
//! what happens to its contents is `content.rs`'s business. Held and wired pages are passed over and counted.

use actors::contract::space::SpaceError;
use actors::{Gpa, GpaRange, PAGE_SIZE};

use super::{Removed, Told, VmSpace};
use crate::content::OutTicket;
use crate::mirror::Mirror;
use crate::object::Page;
use crate::pmap::{Harvest, What};

/// Pages that leave with one shootdown, at most.
const ROUND: usize = 256;
/// Pages the hand passes in one round, at most: so long may a fault wait for the clock.
const GLANCE: u64 = 4096;
/// Pages that may wait to be packed.
const LAUNDERING: u64 = 2 * ROUND as u64;
/// Pages the hand looks at before it takes any out: a piece of the range that one call removes.
const WINDOW: u64 = 64;

/// Why a page stays.
enum Stays {
    Held,
    Wired,
    /// Not in memory, or leaving already.
    Elsewhere,
}

/// Stores count; uses count for the next harvest, and for the hand only of pages that are not aged by this call: it knows of the others.
struct Aged<'a> {
    told: Told<'a>,
    aged: std::ops::Range<u64>,
}

impl Harvest for Aged<'_> {
    fn modified(&mut self, range: GpaRange) {
        self.told.modified(range);
    }

    fn referenced(&mut self, range: GpaRange) {
        let pages = self.told.pages(range);
        self.told.content.unheard.accessed.insert_all(pages.clone());
        for page in pages.filter(|page| !self.aged.contains(page)) {
            self.told.content.used(page);
        }
    }
}

impl<M: Mirror> VmSpace<M> {
    /// One round of the clock, if memory is short. Nothing when it is not, or when enough is under way.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn reclaim(&mut self) -> Result<Option<Removed>, SpaceError> {
        if !self.content.wants_reclaim() || self.content.laundering() >= LAUNDERING {
            return Ok(None);
        }
        let ticket = self.content.begin_out(false);
        let mut removed = Removed::default();
        let mut leaving = Vec::new();
        let mut passed = 0;
        // Not twice over the same page: the second chance lasts until the next round at least.
        let glance = GLANCE.min(self.content.len());
        while leaving.len() < ROUND && passed < glance {
            let pages = WINDOW.min(self.content.len() - self.hand);
            self.pass(self.hand..self.hand + pages, ticket, &mut removed, &mut leaving)?;
            passed += pages;
            self.hand = (self.hand + pages) % self.content.len();
        }
        self.fruitless = if leaving.is_empty() { self.fruitless + passed } else { 0 };
        // The hand may have begun anew: runs of frames are found upwards.
        leaving.sort_unstable();
        removed.leaving.push((ticket, leaving));
        Ok(Some(removed))
    }

    /// The hand passes over these pages.
    fn pass(
        &mut self,
        window: std::ops::Range<u64>,
        ticket: OutTicket,
        removed: &mut Removed,
        leaving: &mut Vec<u64>,
    ) -> Result<(), SpaceError> {
        let mut out = Vec::new();
        let mut used = Vec::new();
        for page in window {
            match self.may_leave(page) {
                Ok(()) if self.content.was_used(page) | self.is_referenced(page) => {
                    self.content.tally.skipped_used_pages += 1;
                    used.push(page);
                }
                Ok(()) => out.push(page),
                Err(Stays::Held) => self.content.tally.skipped_held_pages += 1,
                Err(Stays::Wired) => self.content.tally.skipped_wired_pages += 1,
                Err(Stays::Elsewhere) => {}
            }
        }
        for range in self.ranges_of(&used) {
            removed.join(self.age(range)?);
        }
        self.take_out(&out, ticket, removed, leaving)
    }

    fn may_leave(&self, page: u64) -> Result<(), Stays> {
        if !matches!(self.content.get(page), Page::Resident(_)) {
            return Err(Stays::Elsewhere);
        }
        let gpa = self.gpa_of(page);
        if self.is_held(GpaRange::page_of(gpa)) {
            return Err(Stays::Held);
        }
        match self.map.lookup(gpa) {
            Some(entry) if entry.wired => Err(Stays::Wired),
            Some(_) => Ok(()),
            // On its way out of the map: its shootdown is under way.
            None => Err(Stays::Elsewhere),
        }
    }

    fn is_referenced(&self, page: u64) -> bool {
        let at = self.gpa_of(page);
        self.guest.is_referenced(at) || self.monitor.is_referenced(Gpa(page * PAGE_SIZE))
    }

    /// Clears accessed bits; their news was heard. That of a superpage spoke for pages, too, which the hand comes to only now.
    fn age(&mut self, range: GpaRange) -> Result<Removed, SpaceError> {
        let frames = self.frames(range);
        let aged = frames.start().0 / PAGE_SIZE..frames.end().0 / PAGE_SIZE;
        let told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let mut told = Aged { told, aged };
        let effects = self.guest.harvest(range, What::ACCESSED, &mut told);
        told.told.memory = None;
        let monitors = self.monitor.harvest(frames, What::ACCESSED, &mut told);
        self.follow_monitor(monitors);
        self.follow(effects)
    }

    /// Removes the translations of these pages, upwards, and has them leave.
    fn take_out(
        &mut self,
        pages: &[u64],
        ticket: OutTicket,
        removed: &mut Removed,
        leaving: &mut Vec<u64>,
    ) -> Result<(), SpaceError> {
        for range in self.ranges_of(pages) {
            removed.join(self.remove_translations(range)?);
        }
        for &page in pages {
            debug_assert!(self.may_leave(page).is_ok(), "page {page} is held or wired, and leaves");
            self.content.leave(page, ticket);
            leaving.push(page);
        }
        Ok(())
    }

    /// The guest-physical ranges of these pages, upwards.
    pub(super) fn ranges_of(&self, pages: &[u64]) -> Vec<GpaRange> {
        let mut ranges: Vec<GpaRange> = Vec::new();
        for &page in pages {
            let one = GpaRange::page_of(self.gpa_of(page));
            match ranges.last_mut() {
                Some(last) if last.end() == one.start() => {
                    *last = GpaRange::new(last.start(), last.len() + PAGE_SIZE)
                        .expect("part of memory");
                }
                _ => ranges.push(one),
            }
        }
        ranges
    }

    /// Puts out what can leave of `range`, used or not. How it ended is heard under the ticket.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, there is nowhere to go, or the host's refusal.
    pub fn page_out(&mut self, range: GpaRange) -> Result<(Removed, OutTicket), SpaceError> {
        self.map.must_cover(range)?;
        if !self.content.has_store() {
            return Err(SpaceError::NoStore(range));
        }
        let ticket = self.content.begin_out(true);
        let mut out = Vec::new();
        for page in range.iter_pages() {
            let number = self.page_number(page);
            match self.may_leave(number) {
                Ok(()) => out.push(number),
                Err(Stays::Held) => self.content.note_out(ticket, |out| out.held_pages += 1),
                Err(Stays::Wired) => self.content.note_out(ticket, |out| out.wired_pages += 1),
                Err(Stays::Elsewhere) => {}
            }
        }
        let (mut removed, mut leaving) = (Removed::default(), Vec::new());
        self.take_out(&out, ticket, &mut removed, &mut leaving)?;
        removed.leaving.push((ticket, leaving));
        Ok((removed, ticket))
    }

    /// Pageouts that somebody waits for and that have ended.
    pub(crate) fn take_ended_outs(&mut self) -> Vec<(OutTicket, actors::contract::page::PagedOut)> {
        self.content.take_ended()
    }

    /// Why nothing can leave although memory is short: nobody is working on it, and the hand went round twice in
    /// vain.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        !self.content.is_waiting_for_workers() && self.fruitless > 2 * self.content.len()
    }

    /// What there is, in words, for whoever has to say that the guest cannot go on.
    #[must_use]
    pub fn shortage(&self) -> String {
        let (free, slots) = self.content.slots();
        let store = match (slots, free) {
            (0, _) => "there is no swap file (--swap)".to_owned(),
            (slots, 0) => format!("the swap file is full ({slots} pages)"),
            (slots, free) => format!("{free} of {slots} pages of the swap file are free"),
        };
        format!(
            "the guest's memory is at its limit (--resident) and nothing can leave: {} bytes are in use, {} pages are \
             wired, {} are held, and {store}",
            self.content.usage(),
            self.wired_pages(),
            self.held_pages(),
        )
    }
}
