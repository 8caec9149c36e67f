//! The contents of a guest's pages: in memory, leaving, stored, arriving; and who must be told
//! when they change.
//!
//! This is the object with its pager, without tables and without threads: plain state that
//! says what is to be done ([`Job`]) and is told what was done. The vmspace moves translations and
//! frames, the actor carries jobs to the workers of [`swap`](crate::swap) and answers back.
//!
//! # Who may be late
//!
//! Answers of workers come when they come, and the page may have gone elsewhere meanwhile: a
//! fault rescued it, it was unmapped, it left a second time. So each pageout has a ticket, and what
//! was read says which slot and which contents it was ordered as; an answer that does not find its own is of no use, and is dropped. A
//! slot is never given to another page while a write to it is under way.

use std::collections::HashMap;
use std::ops::Range;

use actors::contract::page::{PagedOut, ReclaimTally};
use actors::pages::PageSet;

use crate::epochs::Epochs;
use crate::object::{Kept, MAX_SLOTS, Page, Pages, Stored};
use crate::swap::tier::Leaving;
use crate::swap::workers::{Fetch, FetchPage, Launder, Write, WritePage};
use crate::swap::{CLUSTER_PAGES, Checksum, Laundered, Slot, Slots, SwapError, Tier};

/// Pages read along with one that is wanted, at most.
const READAHEAD: usize = 7;
/// Pages read along before their use is judged.
const READAHEAD_TRIAL: u64 = 256;

/// One of several pageouts that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OutTicket(pub u64);

/// What a worker is to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// For pageout.
    Launder(Launder),
    /// For pageout.
    Write(Write),
    /// For pagein.
    Fetch(Fetch),
}

/// How much there may be of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Slots of the swap file; 0 when there is none.
    pub slots: u32,
    /// Bytes of frames and compressed pages together; `u64::MAX` when there is no limit.
    pub resident_bytes: u64,
}

impl StoreLimits {
    /// Above this the clock begins to run.
    fn high(self) -> u64 {
        self.resident_bytes - self.resident_bytes / 32
    }

    /// Below this it stops.
    fn low(self) -> u64 {
        self.resident_bytes - self.resident_bytes / 16
    }

    /// What compressed pages may take before they go to disk: a quarter, or, where there is no
    /// disk, whatever there is.
    fn tier_budget(self) -> u64 {
        match (self.slots, self.resident_bytes) {
            (0, _) => u64::MAX,
            // No limit on memory: pages leave because somebody said so, and wait for company here.
            (_, u64::MAX) => 64 << 20,
            (_, bytes) => bytes / 4,
        }
    }
}

/// Where pages go.
#[derive(Debug)]
struct Store {
    limits: StoreLimits,
    slots: Slots,
    /// By slot, as far as slots were ever written; of those that hold a page.
    checksums: Vec<Option<Checksum>>,
    tier: Tier,
}

impl Store {
    fn keep_checksum(&mut self, slot: Slot, checksum: Checksum) {
        let index = slot.0 as usize;
        if self.checksums.len() <= index {
            self.checksums.resize(index + 1, None);
        }
        self.checksums[index] = Some(checksum);
    }
}

/// Accessed and modified bits that went with their translations, or that the clock cleared: kept for the next
/// harvest, which would miss them.
#[derive(Debug)]
pub(crate) struct Unheard {
    pub(crate) accessed: PageSet,
    pub(crate) modified: PageSet,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Content {
    pages: Pages,
    /// Who wants to know of stores.
    pub(crate) epochs: Epochs,
    /// Used, as a harvest or a removal found out, since the clock last came by.
    referenced: PageSet,
    /// What no harvest has heard of yet, and no table says any more.
    pub(crate) unheard: Unheard,
    /// Read along with another, and not used yet.
    ahead: PageSet,
    store: Option<Store>,
    /// The pageout that each leaving page belongs to.
    leaving: HashMap<u64, OutTicket>,
    /// Pageouts whose end somebody waits for: pages still to hear of, and what happened so far.
    awaited: HashMap<OutTicket, (u64, PagedOut)>,
    ended: Vec<(OutTicket, PagedOut)>,
    next_ticket: u64,
    /// Pages being read, as they were ordered.
    arriving: HashMap<u64, FetchPage>,
    /// Writes under way: each page's copy, its slot and its checksum.
    writes: HashMap<u64, Vec<(Leaving, Slot, Checksum)>>,
    next_write: u64,
    jobs: Vec<Job>,
    /// Pages that workers have been told of and not answered for.
    laundering: u64,
    writing: u64,
    is_reclaiming: bool,
    pub(crate) tally: ReclaimTally,
}

impl Content {
    /// Of `pages` pages, all absent. Without limits nothing can leave.
    pub(crate) fn new(pages: u64, limits: Option<StoreLimits>) -> Self {
        let store = limits.map(|limits| Store {
            slots: Slots::new(limits.slots.min(MAX_SLOTS)),
            checksums: Vec::new(),
            tier: Tier::new(limits.tier_budget()),
            limits,
        });
        Self {
            pages: Pages::new(pages),
            epochs: Epochs::new(pages),
            referenced: PageSet::new(pages),
            unheard: Unheard { accessed: PageSet::new(pages), modified: PageSet::new(pages) },
            ahead: PageSet::new(pages),
            store,
            leaving: HashMap::new(),
            awaited: HashMap::new(),
            ended: Vec::new(),
            next_ticket: 0,
            arriving: HashMap::new(),
            writes: HashMap::new(),
            next_write: 0,
            jobs: Vec::new(),
            laundering: 0,
            writing: 0,
            is_reclaiming: false,
            tally: ReclaimTally::default(),
        }
    }

    /// How many pages there are.
    pub(crate) fn len(&self) -> u64 {
        self.pages.len()
    }

    /// Where `page` is.
    pub(crate) fn get(&self, page: u64) -> Page {
        self.pages.get(page)
    }

    /// Whether pages can leave at all.
    pub(crate) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    /// Whether memory is limited, so that pages leave without being told to.
    pub(crate) fn is_limited(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.limits.resident_bytes != u64::MAX)
    }

    /// Pages that take memory of the guest's object.
    pub(crate) fn frames(&self) -> u64 {
        self.pages.frames()
    }

    // ---- what happens to a page in memory ------------------------------------------------

    fn set(&mut self, page: u64, state: Page) {
        self.pages.set(page, state);
        if state.has_frame() {
            self.note_peak();
        }
    }

    fn note_peak(&mut self) {
        self.tally.peak_bytes = self.tally.peak_bytes.max(self.usage());
    }

    /// Somebody stored to `pages`, which are in memory: their copies in the store are good no
    /// longer, and everybody who wants to know learns of it.
    pub(crate) fn stored(&mut self, pages: Range<u64>) {
        self.epochs.stored_to_all(pages.clone());
        // Without a store there is no copy of any page.
        if self.has_store() {
            pages.for_each(|page| self.give_copy_up(page));
        }
    }

    fn give_copy_up(&mut self, page: u64) {
        let state = self.pages.get(page);
        let dirty = match state {
            Page::Resident(Kept::Zero | Kept::Disk(_)) => Page::Resident(Kept::Nothing),
            Page::Leaving(Kept::Zero | Kept::Disk(_)) => Page::Leaving(Kept::Nothing),
            _ => return,
        };
        self.release_slot(state.slot());
        self.pages.set(page, dirty);
    }

    /// Somebody used `page`.
    pub(crate) fn used(&mut self, page: u64) {
        self.referenced.insert(page);
    }

    /// Somebody used all of `pages`.
    pub(crate) fn used_all(&mut self, pages: Range<u64>) {
        self.referenced.insert_all(pages);
    }

    /// The guest can reach `page`: if it was read along with another, that was worth it.
    pub(crate) fn mapped(&mut self, page: u64) {
        if self.ahead.remove(page) {
            self.tally.readahead_hits += 1;
        }
    }

    /// Whether somebody used `page` since this was last asked.
    pub(crate) fn was_used(&mut self, page: u64) -> bool {
        self.referenced.remove(page)
    }

    /// A fresh page of zeroes, or one whose contents somebody is about to make.
    pub(crate) fn appear(&mut self, page: u64) {
        debug_assert_eq!(self.get(page), Page::Absent, "page {page} is somewhere already");
        self.set(page, Page::Resident(Kept::Nothing));
        self.epochs.stored(page);
    }

    /// The same for those of `pages` that are absent.
    pub(crate) fn appear_where_absent(&mut self, pages: Range<u64>) {
        for page in pages {
            if self.pages.get(page) == Page::Absent {
                self.pages.set(page, Page::Resident(Kept::Nothing));
                self.epochs.stored(page);
            }
        }
        self.note_peak();
    }

    /// A page that is zeroes in the store is zeroes in memory, and not stored to yet.
    pub(crate) fn appear_as_zeroes(&mut self, page: u64) {
        debug_assert_eq!(self.get(page), Page::Stored(Stored::Zero));
        self.set(page, Page::Resident(Kept::Zero));
        self.tally.pages_in += 1;
    }

    /// A page that was leaving is wanted.
    pub(crate) fn rescue(&mut self, page: u64) {
        let Page::Leaving(kept) = self.get(page) else { return };
        self.pages.set(page, Page::Resident(kept));
        self.tally.rescued_pages += 1;
        if let Some(ticket) = self.leaving.remove(&page) {
            self.one_of(ticket, |out| out.rescued_pages += 1);
        }
    }

    /// The page is no longer part of the guest's memory, or its contents are of no use to
    /// anybody. Whoever works on it will be heard in vain.
    pub(crate) fn forget(&mut self, page: u64) {
        let state = self.pages.set(page, Page::Absent);
        self.release_slot(state.slot());
        match state {
            Page::Stored(Stored::Compressed) => {
                if let Some(store) = &mut self.store {
                    store.tier.take(page);
                }
            }
            Page::Leaving(_) => {
                if let Some(ticket) = self.leaving.remove(&page) {
                    self.one_of(ticket, |out| out.rescued_pages += 1);
                }
            }
            Page::Arriving(_) => {
                self.arriving.remove(&page);
            }
            _ => {}
        }
        self.referenced.remove(page);
        self.unheard.accessed.remove(page);
        self.unheard.modified.remove(page);
        self.ahead.remove(page);
    }

    fn release_slot(&mut self, slot: Option<Slot>) {
        if let (Some(slot), Some(store)) = (slot, &mut self.store) {
            if let Some(checksum) = store.checksums.get_mut(slot.0 as usize) {
                *checksum = None;
            }
            store.slots.release(slot);
        }
    }

    // ---- out -----------------------------------------------------------------------------

    /// A pageout begins. `is_awaited`: somebody wants to hear how it ended.
    pub(crate) fn begin_out(&mut self, is_awaited: bool) -> OutTicket {
        let ticket = OutTicket(self.next_ticket);
        self.next_ticket += 1;
        if is_awaited {
            self.awaited.insert(ticket, (0, PagedOut::default()));
        }
        ticket
    }

    /// `page`, which is resident and has no translation any more, leaves.
    pub(crate) fn leave(&mut self, page: u64, ticket: OutTicket) {
        let Page::Resident(kept) = self.get(page) else { return };
        self.pages.set(page, Page::Leaving(kept));
        self.leaving.insert(page, ticket);
        self.ahead.remove(page);
        if let Some((pages, _)) = self.awaited.get_mut(&ticket) {
            *pages += 1;
        }
    }

    /// Something of an awaited pageout that did not leave in the first place.
    pub(crate) fn note_out(&mut self, ticket: OutTicket, note: impl FnOnce(&mut PagedOut)) {
        if let Some((_, out)) = self.awaited.get_mut(&ticket) {
            note(out);
        }
    }

    fn one_of(&mut self, ticket: OutTicket, note: impl FnOnce(&mut PagedOut)) {
        let Some((pages, out)) = self.awaited.get_mut(&ticket) else { return };
        note(out);
        *pages -= 1;
        if *pages == 0 {
            self.end_out(ticket);
        }
    }

    fn end_out(&mut self, ticket: OutTicket) {
        if let Some((_, out)) = self.awaited.remove(&ticket) {
            self.ended.push((ticket, out));
        }
    }

    /// Pageouts whose last page was heard of.
    pub(crate) fn take_ended(&mut self) -> Vec<(OutTicket, PagedOut)> {
        std::mem::take(&mut self.ended)
    }

    /// The shootdown of these pages, upwards, is over: nobody can reach them. Those that are
    /// clean are gone at once, and their frames are returned; the others are to be packed.
    pub(crate) fn unreachable(&mut self, ticket: OutTicket, pages: &[u64]) -> Vec<u64> {
        let mut freed = Vec::new();
        let mut dirty = Vec::new();
        for &page in pages {
            if self.leaving.get(&page) != Some(&ticket) {
                continue;
            }
            let stored = match self.get(page) {
                Page::Leaving(Kept::Zero) => Stored::Zero,
                Page::Leaving(Kept::Disk(slot)) => Stored::Disk(slot),
                _ => {
                    dirty.push(page);
                    continue;
                }
            };
            self.leaving.remove(&page);
            self.pages.set(page, Page::Stored(stored));
            self.tally.pages_out += 1;
            self.tally.clean_pages_out += 1;
            freed.push(page);
            self.one_of(ticket, |out| {
                out.freed_pages += 1;
                out.clean_pages += 1;
            });
        }
        if self.awaited.get(&ticket).is_some_and(|(left, _)| *left == 0) {
            self.end_out(ticket);
        }
        if !dirty.is_empty() {
            self.laundering += dirty.len() as u64;
            self.jobs.push(Job::Launder(Launder { ticket: ticket.0, pages: dirty }));
        }
        freed
    }

    /// A worker packed these pages. Returns those whose frames are free now, and why some page could not be
    /// read, if one could not: it is in memory still.
    pub(crate) fn laundered(
        &mut self,
        ticket: u64,
        pages: Vec<(u64, Laundered)>,
    ) -> (Vec<u64>, Option<SwapError>) {
        let ticket = OutTicket(ticket);
        let mut freed = Vec::with_capacity(pages.len());
        let mut unreadable = None;
        for (page, how) in pages {
            self.laundering -= 1;
            if self.leaving.get(&page) != Some(&ticket) {
                continue;
            }
            let Some(store) = &mut self.store else { continue };
            let stored = match how {
                Laundered::Zero => {
                    self.tally.zero_pages_out += 1;
                    Stored::Zero
                }
                Laundered::Packed(packed) => {
                    store.tier.put(page, packed);
                    Stored::Compressed
                }
                Laundered::Unreadable(what) => {
                    self.rescue(page);
                    unreadable = Some(SwapError::Spoiled { what });
                    continue;
                }
            };
            self.leaving.remove(&page);
            self.pages.set(page, Page::Stored(stored));
            self.tally.pages_out += 1;
            freed.push(page);
            self.one_of(ticket, |out| {
                out.freed_pages += 1;
                out.clean_pages += u64::from(stored == Stored::Zero);
            });
        }
        self.tally.peak_bytes = self.tally.peak_bytes.max(self.usage());
        self.spill();
        (freed, unreadable)
    }

    /// Sends what the tier has too much of to disk.
    fn spill(&mut self) {
        const UNDER_WAY: u64 = 32 * CLUSTER_PAGES as u64;
        let Some(store) = &mut self.store else { return };
        while self.writing < UNDER_WAY && store.tier.has_too_much() {
            let wanted = u32::try_from(CLUSTER_PAGES).expect("a few pages");
            let Some(run) = store.slots.allocate(wanted) else { return };
            let cluster = store.tier.cluster(run.count as usize);
            for unused in run.iter().skip(cluster.len()) {
                store.slots.release(unused);
            }
            if cluster.is_empty() {
                return;
            }
            let ticket = self.next_write;
            self.next_write += 1;
            self.writing += cluster.len() as u64;
            let mut under_way = Vec::with_capacity(cluster.len());
            let mut pages = Vec::with_capacity(cluster.len());
            for (spill, slot) in cluster.into_iter().zip(run.iter()) {
                under_way.push((spill.leaving, slot, spill.packed.checksum()));
                pages.push(WritePage { slot, packed: spill.packed });
            }
            self.writes.insert(ticket, under_way);
            self.jobs.push(Job::Write(Write { ticket, pages }));
        }
    }

    /// A write is done, with so many calls; or it is not, and its pages are where they were: in
    /// memory.
    ///
    /// # Errors
    ///
    /// That it is not.
    pub(crate) fn written(
        &mut self,
        ticket: u64,
        result: Result<u32, SwapError>,
    ) -> Result<(), SwapError> {
        let under_way = self.writes.remove(&ticket).unwrap_or_default();
        self.writing -= under_way.len() as u64;
        let Some(store) = &mut self.store else { return Ok(()) };
        for &(leaving, slot, checksum) in &under_way {
            if result.is_err() {
                store.tier.stays(leaving);
            } else if store.tier.written(leaving) {
                store.keep_checksum(slot, checksum);
                self.pages.set(leaving.page, Page::Stored(Stored::Disk(slot)));
                self.tally.written_pages += 1;
                continue;
            }
            store.slots.release(slot);
        }
        self.tally.writes += u64::from(result?);
        self.spill();
        Ok(())
    }

    // ---- in ------------------------------------------------------------------------------

    /// The copy of a page in the compressed tier.
    ///
    /// # Errors
    ///
    /// [`SwapError::Spoiled`]: memory went bad.
    pub(crate) fn unpack(&self, page: u64, into: &mut crate::swap::Page) -> Result<(), SwapError> {
        let missing = || SwapError::Spoiled { what: format!("page {page} is not in the tier") };
        let packed = self.store.as_ref().and_then(|store| store.tier.get(page));
        packed.ok_or_else(missing)?.unpack_into(into)
    }

    /// The contents of a compressed page are in its frame.
    pub(crate) fn unpacked(&mut self, page: u64) {
        if let Some(store) = &mut self.store {
            store.tier.take(page);
        }
        self.set(page, Page::Resident(Kept::Nothing));
        self.tally.pages_in += 1;
        self.tally.compressed_pages_in += 1;
    }

    /// Has `page`, which is on disk, read; and those beside it that lie beside it there, where
    /// that pays.
    pub(crate) fn fetch(&mut self, page: u64) {
        let Some(wanted) = self.expect(page) else { return };
        let mut readahead = Vec::new();
        let most = if self.readahead_pays() { READAHEAD } else { 0 };
        let mut slot = wanted.slot;
        for page in (page + 1..self.len()).take(most) {
            slot = Slot(slot.0 + 1);
            if self.get(page) != Page::Stored(Stored::Disk(slot)) || !self.has_room(1) {
                break;
            }
            let Some(expected) = self.expect(page) else { break };
            self.ahead.insert(page);
            self.tally.readahead_pages += 1;
            readahead.push(expected);
        }
        self.jobs.push(Job::Fetch(Fetch { wanted, readahead }));
    }

    /// The page is arriving from now on.
    fn expect(&mut self, page: u64) -> Option<FetchPage> {
        let Page::Stored(Stored::Disk(slot)) = self.get(page) else { return None };
        let checksum = *self.store.as_ref()?.checksums.get(slot.0 as usize)?;
        let checksum = checksum.expect("a slot that holds a page was written");
        let expected = FetchPage { page, slot, checksum };
        self.arriving.insert(page, expected);
        self.set(page, Page::Arriving(slot));
        Some(expected)
    }

    /// One page in four that was read along must have been used.
    fn readahead_pays(&self) -> bool {
        let ReclaimTally { readahead_pages, readahead_hits, .. } = self.tally;
        readahead_pages < READAHEAD_TRIAL || readahead_hits * 4 >= readahead_pages
    }

    /// Whether this, which was read, is what somebody still waits for. (An answer of an
    /// earlier reading of the same slot may differ; then its checksum does, too.)
    pub(crate) fn is_arriving(&self, read: &FetchPage) -> bool {
        self.arriving.get(&read.page) == Some(read)
    }

    /// Its contents are in its frame.
    pub(crate) fn arrived(&mut self, read: &FetchPage) {
        self.arriving.remove(&read.page);
        self.set(read.page, Page::Resident(Kept::Disk(read.slot)));
        self.tally.pages_in += 1;
        self.tally.disk_pages_in += 1;
    }

    /// It could not be read: it is where it was.
    pub(crate) fn did_not_arrive(&mut self, read: &FetchPage) {
        self.arriving.remove(&read.page);
        self.ahead.remove(read.page);
        self.pages.set(read.page, Page::Stored(Stored::Disk(read.slot)));
    }

    // ---- how much ------------------------------------------------------------------------

    /// Bytes of guest memory in frames and in the compressed tier.
    pub(crate) fn usage(&self) -> u64 {
        let tier = self.store.as_ref().map_or(0, |store| store.tier.bytes());
        self.frames() * actors::PAGE_SIZE + tier
    }

    /// Whether so many more pages may have frames.
    pub(crate) fn has_room(&self, pages: u64) -> bool {
        let Some(store) = &self.store else { return true };
        self.usage().saturating_add(pages * actors::PAGE_SIZE) <= store.limits.resident_bytes
    }

    /// Whether pages should leave now.
    pub(crate) fn wants_reclaim(&mut self) -> bool {
        let Some(store) = &self.store else { return false };
        let limits = store.limits;
        if limits.resident_bytes == u64::MAX {
            return false;
        }
        // What is being written will be gone.
        let usage = self.usage() - store.tier.leaving_bytes();
        let leaving = self.leaving.len() as u64 * actors::PAGE_SIZE;
        let bound = if self.is_reclaiming { limits.low() } else { limits.high() };
        self.is_reclaiming = usage.saturating_sub(leaving) > bound;
        self.is_reclaiming
    }

    /// Whether workers owe an answer.
    pub(crate) fn is_waiting_for_workers(&self) -> bool {
        self.laundering + self.writing > 0 || !self.arriving.is_empty() || !self.jobs.is_empty()
    }

    /// Pages that are being packed, of which there should not be too many at once.
    pub(crate) fn laundering(&self) -> u64 {
        self.laundering
    }

    /// Free slots of the swap file, and how many there are.
    pub(crate) fn slots(&self) -> (u32, u32) {
        self.store.as_ref().map_or((0, 0), |store| (store.slots.free(), store.slots.capacity()))
    }

    /// What workers are to do.
    pub(crate) fn take_jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// What was counted, with what there is now.
    pub(crate) fn tally(&self) -> ReclaimTally {
        let Some(store) = &self.store else { return self.tally };
        ReclaimTally {
            compressed_pages: store.tier.pages(),
            compressed_bytes: store.tier.bytes(),
            disk_pages: u64::from(store.slots.capacity() - store.slots.free()),
            ..self.tally
        }
    }
}

#[cfg(test)]
mod tests;
