//! One guest's vmspace: what should be where, what is there, and who is told when that changes.
//!
//! ```text
//!     map       what should be where (map.rs)
//!     guest     what the guest reaches now: tables in EPT format, by guest-physical address
//!     monitor   what the monitor reached for, under holds: an x86 pmap, by frame
//!     content   where each page's contents are (content.rs)
//!     mirror    the host's copy of `guest`'s permissions, where there is one (mirror.rs)
//! ```
//!
//! Plain state and plain methods: no threads, no messages, no waiting. The actor
//! (`space_actor.rs`) owns one and carries what an operation [`Removed`] through a
//! shootdown; only then does it come back here, to [`VmSpace::give_back`].
//!
//! The pmap is a cache of the map: an entry of the tables may be forgotten at any time,
//! because the next touch faults and asks again. So not-present to present needs no
//! shootdown, and neither do permissions that only grow; the worst that happens is a second
//! fault, which is answered "already there".
//!
//! A page can be in two pmaps, of two types: the guest's own, and the monitor's, when the loader or a
//! device held it. Both are at addresses that follow from the frame, so the reverse map (FreeBSD's pv entries) is
//! arithmetic: [`VmSpace::page_number`] and back. What somebody stored through a hold is the monitor's modified bit, and
//! is harvested like the guest's.
//!
//! # What is presumed
//!
//! With emulated bits the first store to a clean page traps. Where nobody would learn anything from the
//! trap, the page is entered as modified at once: it is dirty already, and everyone who counts stores has counted it. Pages that
//! come along with a touched one (fault-around) are entered as accessed, because with emulated bits hardware could not reach them
//! otherwise, and then there would be no point in bringing them. Both layouts presume the same, so that they differ in nothing
//! but who sets the bits.
//!
//! The rooms: `vmspace/fault.rs`, `ranges.rs` (map, unmap, forget, protect), `holds.rs` (hold, wire), `harvest.rs`
//! (harvest, dirty epochs, advice), `superpages.rs`, `reclaim.rs` (out), `arrivals.rs` (in), `device.rs` (memory of a
//! device), `passthru.rs` (devices that reach memory themselves).

mod arrivals;
mod compare;
mod device;
mod fault;
mod harvest;
mod holds;
mod passthru;
mod ranges;
mod reclaim;
mod superpages;

use std::io;
use std::sync::Arc;

use actors::contract::page::{PmapTally, ReclaimTally};
use actors::contract::space::SpaceError;
use actors::{Gpa, GpaRange, PAGE_SIZE, Protection};

use crate::content::{Content, OutTicket, StoreLimits};
use crate::ept::masks::{PmapFlags, PmapType};
use crate::ept::tables::{TableFrame, Tables};
use crate::host::memory::GuestMemory;
use crate::iommu::IommuDomain;
use crate::map::VmMap;
use crate::mirror::Mirror;
use crate::pmap::{Effects, Harvest, Pmap};
use crate::runs::joined;

pub use fault::{Outcome, Served, Unserved};
pub use holds::Done;
pub use superpages::Superpages;

/// Most pages that nobody reaches between two runs that are taken out of the guest's reach together. To look at so many takes a microsecond
/// or two; a host call, which interrupts the vcpus as well, takes ten.
const BRIDGE: u64 = 128;

/// How a vmspace behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the walker of the guest's tables supports.
    pub flags: PmapFlags,
    /// Pages of one fault-around window; 1 turns it off.
    pub around: u64,
    /// When to make superpages.
    pub superpages: Superpages,
    /// Where pages can go; nowhere when there is none.
    pub store: Option<StoreLimits>,
}

/// A guest's memory: what should be there, what is there, and who must be told.
pub struct VmSpace<M> {
    memory: Arc<GuestMemory>,
    map: VmMap,
    guest: Pmap,
    monitor: Pmap,
    content: Content,
    mirror: M,
    holds: Vec<GpaRange>,
    refused: Vec<GpaRange>,
    left_over: Removed,
    settings: Settings,
    /// Blocks are aged or cleaned now and then, so that superpages would not last.
    is_harvested: bool,
    /// Where the clock stands: a page number.
    hand: u64,
    /// Pages the clock passed since it last found one that could leave.
    fruitless: u64,
    harvests: harvest::Counted,
    blocks: superpages::Counted,
    cooling: superpages::Cooling,
    /// Only of a guest with a passthru device.
    domain: Option<IommuDomain>,
}

/// What an operation took away. Only the shootdown's end makes it free.
#[derive(Debug, Default)]
#[must_use = "frames and table pages are lost unless they are given back after the shootdown"]
pub struct Removed {
    /// Ranges whose pages leave their object.
    frames: Vec<GpaRange>,
    /// Ranges whose contents nobody wanted; somebody may have come back for them meanwhile.
    unwanted: Vec<GpaRange>,
    /// Ranges that show a device's memory no more.
    devices: Vec<GpaRange>,
    /// Pages that leave memory, by pageout.
    leaving: Vec<(OutTicket, Vec<u64>)>,
    /// Table pages nobody points at any more.
    tables: Vec<TableFrame>,
    /// Translations that were removed or lost rights.
    translations: u64,
}

impl Removed {
    /// Whether nothing was removed that anybody could have cached: no shootdown is needed.
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        self.translations == 0 && self.tables.is_empty()
    }

    /// Translations that were removed or lost rights.
    #[must_use]
    pub fn translations(&self) -> u64 {
        self.translations
    }

    /// Adds what another operation removed, so that both share one shootdown.
    pub fn join(&mut self, mut other: Self) {
        self.frames.append(&mut other.frames);
        self.unwanted.append(&mut other.unwanted);
        self.devices.append(&mut other.devices);
        self.leaving.append(&mut other.leaving);
        self.tables.append(&mut other.tables);
        self.translations += other.translations;
    }
}

/// Where bits go that are cleared on the way to something else: to the pages' contents, and to the next harvest.
struct Told<'a> {
    content: &'a mut Content,
    /// Of a pmap whose addresses are guest-physical; the monitor's are frames.
    memory: Option<&'a GuestMemory>,
}

impl Told<'_> {
    fn pages(&self, range: GpaRange) -> std::ops::Range<u64> {
        let first = match self.memory {
            Some(memory) => memory.frame_of(range.start()),
            None => range.start().0,
        };
        first / PAGE_SIZE..(first + range.len()) / PAGE_SIZE
    }
}

impl Harvest for Told<'_> {
    fn modified(&mut self, range: GpaRange) {
        let pages = self.pages(range);
        self.content.unheard.modified.insert_all(pages.clone());
        self.content.stored(pages);
    }

    fn referenced(&mut self, range: GpaRange) {
        let pages = self.pages(range);
        self.content.unheard.accessed.insert_all(pages.clone());
        self.content.used_all(pages);
    }
}

impl<M: Mirror> VmSpace<M> {
    /// An empty vmspace over `memory`: nothing is mapped.
    #[must_use]
    pub fn new(memory: Arc<GuestMemory>, settings: Settings, mirror: M) -> Self {
        let layout = memory.layout();
        let pages = layout.total() / PAGE_SIZE;
        Self {
            map: VmMap::new(layout),
            guest: Pmap::new(PmapType::PtEpt, settings.flags, layout),
            monitor: Pmap::new(PmapType::PtX86, PmapFlags::empty(), layout),
            content: Content::new(pages, settings.store),
            mirror,
            holds: Vec::new(),
            refused: Vec::new(),
            left_over: Removed::default(),
            settings,
            is_harvested: false,
            hand: 0,
            fruitless: 0,
            harvests: harvest::Counted::default(),
            blocks: superpages::Counted::default(),
            cooling: superpages::Cooling::default(),
            domain: None,
            memory,
        }
    }

    /// The memory object underneath.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The guest's tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        self.guest.tables()
    }

    /// 4 KiB pages that are wired.
    #[must_use]
    pub fn wired_pages(&self) -> u64 {
        self.guest.wired_pages()
    }

    /// Pages under a hold, counted once per hold.
    #[must_use]
    pub fn held_pages(&self) -> u64 {
        self.holds.iter().map(|range| range.pages()).sum()
    }

    /// Pages of the guest that take memory.
    #[must_use]
    pub fn resident_pages(&self) -> u64 {
        self.content.frames()
    }

    /// What was done with superpages and with accessed and modified bits.
    #[must_use]
    pub fn pmap_tally(&self) -> PmapTally {
        let guest = self.guest.tally();
        let refused = guest.refused_promotions;
        let failures = [
            ("unsupported", refused.unsupported),
            ("not_full", refused.not_full),
            ("not_accessed", refused.not_accessed),
            ("not_aligned", refused.not_aligned),
            ("not_contiguous", refused.not_contiguous),
            ("mixed_attributes", refused.mixed_attributes),
            ("mixed_dirty", refused.mixed_dirty),
            ("would_not_last", self.blocks.would_not_last),
            ("read_only", self.blocks.read_only),
        ];
        let by_host = self.blocks.host_refused.iter().map(|(cause, times)| (*cause, *times));
        PmapTally {
            promotions: guest.promotions,
            superpages_entered: guest.entered_superpages,
            demotions: guest.demotions.total() + guest.destroyed_superpages,
            promotion_failures: failures
                .into_iter()
                .chain(by_host)
                .filter(|(_, times)| *times > 0)
                .map(|(cause, times)| (cause.to_owned(), times))
                .collect(),
            superpages: self.guest.tables().superpages(),
            accessed_faults: guest.emulated_reads,
            modified_faults: guest.emulated_writes,
            harvests: self.harvests.harvests,
            harvested_accessed_pages: self.harvests.accessed_pages,
            harvested_modified_pages: self.harvests.modified_pages,
        }
    }

    /// What left memory, and what came back.
    #[must_use]
    pub fn reclaim_tally(&self) -> ReclaimTally {
        self.content.tally()
    }

    /// A fault waits for the disk or for room.
    pub(crate) fn count_waiting(&mut self) {
        self.content.tally.waited_faults += 1;
    }

    fn page_number(&self, gpa: Gpa) -> u64 {
        self.memory.frame_of(gpa) / PAGE_SIZE
    }

    /// The numbers of the pages of `range`.
    fn page_numbers(&self, range: GpaRange) -> std::ops::Range<u64> {
        let first = self.page_number(range.start());
        first..first + range.pages()
    }

    /// The monitor's address of `range`: its frames.
    fn frames(&self, range: GpaRange) -> GpaRange {
        let first = Gpa(self.memory.frame_of(range.start()));
        GpaRange::new(first, range.len()).expect("frames of whole pages")
    }

    fn is_held(&self, range: GpaRange) -> bool {
        self.holds.iter().any(|hold| hold.intersection(range).is_some())
    }

    /// Brings the mirror to what the guest's tables say after a call, and keeps what the shootdown has to give back.
    fn follow(&mut self, effects: Effects) -> Result<Removed, SpaceError> {
        for block in effects.demoted.iter().chain(&effects.destroyed) {
            self.cooling.leave_alone(*block);
        }
        let is_out_of_reach = |gap| self.is_out_of_reach(gap);
        for run in joined(effects.unreachable.as_slice(), BRIDGE, is_out_of_reach) {
            self.mirror.unmap(run).map_err(|error| host("unmap guest memory", &error))?;
        }
        for run in effects.unwritable.as_slice() {
            self.mirror
                .set_writable(*run, false)
                .map_err(|error| host("change the write protection of guest memory", &error))?;
        }
        Ok(Removed {
            translations: effects.translations,
            tables: effects.emptied,
            ..Removed::default()
        })
    }

    /// Whether nobody can read anything of `gap`, which is what [`Effects::unreachable`] means, and the mirror may be told so again: not of
    /// locked memory, which the host does not let go, nor of what the map no longer has. (A device's memory is always in reach.)
    fn is_out_of_reach(&self, gap: GpaRange) -> bool {
        self.map.covers(gap)
            && !self.map.overlapping(gap).any(|entry| entry.wired)
            && !gap.iter_pages().any(|page| self.guest.rights(page).contains(Protection::READ))
    }

    /// The monitor's pmap has no other walkers: its tables are free at once.
    fn follow_monitor(&mut self, effects: Effects) {
        self.monitor.give_back(effects.emptied);
    }

    /// Takes back what a finished shootdown carried: frames go to the host, table pages to
    /// the next walk, pages that leave to the store.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn give_back(&mut self, removed: Removed) -> Result<(), SpaceError> {
        self.guest.give_back(removed.tables);
        for range in removed.frames {
            self.mirror.free(range).map_err(|error| host("free guest memory", &error))?;
            for page in range.iter_pages() {
                let number = self.page_number(page);
                self.content.forget(number);
            }
        }
        for range in removed.unwanted {
            // A fault that was served since brought a page back as it was, and it may have been stored to.
            let is_unwanted = |page: &Gpa| self.guest.leaf(*page).is_none();
            let pages = range.iter_pages().filter(is_unwanted);
            let pages: Vec<_> = pages.map(|page| self.page_number(page)).collect();
            self.free_pages(&pages)?;
            pages.into_iter().for_each(|page| self.content.forget(page));
        }
        for range in removed.devices {
            self.mirror
                .free_device(range)
                .map_err(|error| host("end the mapping of a device's memory", &error))?;
        }
        for (ticket, pages) in removed.leaving {
            let freed = self.content.unreachable(ticket, &pages);
            self.free_pages(&freed)?;
        }
        Ok(())
    }

    /// Gives the frames of these pages, upwards, back to the host.
    fn free_pages(&mut self, pages: &[u64]) -> Result<(), SpaceError> {
        for range in self.ranges_of(pages) {
            self.mirror.free(range).map_err(|error| host("free guest memory", &error))?;
        }
        Ok(())
    }

    /// Where `page` is in guest-physical memory.
    fn gpa_of(&self, page: u64) -> Gpa {
        self.memory.gpa_of_frame(page * PAGE_SIZE).expect("a page lies in memory")
    }

    /// The frame that `gpa` translates to now (FreeBSD's `pmap_extract`). Of device memory: where it is in the guest
    /// view, at an offset of which the memory object has nothing.
    #[must_use]
    pub fn extract(&self, gpa: Gpa) -> Option<u64> {
        let leaf = self.guest.tables().leaf(gpa)?;
        Some(leaf.frame_of(gpa) | gpa.0 & (PAGE_SIZE - 1))
    }
}

fn host(what: &'static str, error: &io::Error) -> SpaceError {
    SpaceError::Host { what, why: error.to_string() }
}

#[cfg(test)]
mod tests;
