//! What can be asked about pages: where each one is, who used it, and that it be put elsewhere.
//!
//! These are answers and choices; the questions are [`SpaceRequest`](super::space::SpaceRequest)s.

use serde::Serialize;

use crate::PageSize;
use crate::pages::PageSet;

bitflags::bitflags! {
    /// What a harvest reads and clears.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Touch: u8 {
        /// Somebody used the page.
        const ACCESSED = 1;
        /// Somebody stored to it.
        const MODIFIED = 2;
    }
}

/// What a harvest found: one read-and-clear of a range, and one shootdown for all of it. Bits that went with their
/// translations in between (forgotten, paged out, write-protected, aged by the clock) are in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Harvest {
    /// Pages used since the last harvest of accessed bits. A page of a superpage counts when
    /// anything in it was used; a fresh page, and each that fault-around brought, counts as used.
    pub accessed: PageSet,
    /// Pages stored to since the last harvest of modified bits; a fresh page counts.
    pub modified: PageSet,
    /// Pages that were looked at: those with a translation.
    pub examined_pages: u64,
    /// Translations that lost a right, and so needed the shootdown.
    pub translations: u64,
    /// Vcpus that were knocked on.
    pub knocked: u32,
    /// From the first entry read to the last vcpu out.
    pub took_ns: u64,
    /// Of that: reading and clearing entries, and mirroring them to the host.
    pub scan_ns: u64,
}

/// Somebody who wants to know which pages were stored to since they last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct DirtyConsumer(pub u32);

/// Pages stored to between two takings. Until it is settled it is neither forgotten nor given
/// out again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyEpoch {
    /// Which taking: 1 is the first.
    pub number: u64,
    /// Page numbers.
    pub pages: PageSet,
    /// The harvest that closed it.
    pub harvest: Harvest,
}

/// What became of an epoch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Its pages are safe: forget them.
    Acknowledged,
    /// They are not: the next epoch has them, too.
    PutBack,
}

/// Advice about a range (FreeBSD's `pmap_advise`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Not needed soon: age it at once. What was stored there counts as stored.
    DontNeed,
    /// Its contents are not needed: it becomes zeroes when the host wants the memory.
    Free,
}

/// Where a page's contents are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "where")]
pub enum Place {
    /// Nowhere: it was never touched, and is zeroes.
    Absent,
    /// In memory.
    Resident {
        /// It differs from the copy in the store, or there is none.
        dirty: bool,
    },
    /// In memory, out of the guest's reach, and on its way to the store.
    Leaving,
    /// In the store, as "all zeroes".
    Zero,
    /// In the store's compressed tier, in memory.
    Compressed,
    /// On disk.
    Disk {
        /// The slot in the swap file, in units of 4 KiB.
        slot: u32,
    },
    /// On its way from disk.
    Arriving,
    /// Device memory: its own kind of object.
    Device,
}

/// Everything about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageState {
    /// Where its contents are.
    #[serde(flatten)]
    pub place: Place,
    /// The size of its translation, if it has one.
    #[serde(serialize_with = "size_in_bytes")]
    pub mapped: Option<PageSize>,
    /// The guest may store to it (as the map says; with emulated bits the next store may trap).
    pub writable: bool,
    /// Used since the last harvest.
    pub accessed: bool,
    /// Stored to since the last harvest.
    pub modified: bool,
    /// Wired.
    pub wired: bool,
    /// Under a hold.
    pub held: bool,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn size_in_bytes<S: serde::Serializer>(
    size: &Option<PageSize>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    size.map(|size| size.bytes()).serialize(serializer)
}

/// What a pageout on demand did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PagedOut {
    /// Pages whose frames were freed.
    pub freed_pages: u64,
    /// Of those: their copy in the store was good still, or they were zeroes, and nothing was written.
    pub clean_pages: u64,
    /// Left alone: under a hold.
    pub held_pages: u64,
    /// Left alone: wired.
    pub wired_pages: u64,
    /// Left alone: used again while they were on their way out.
    pub rescued_pages: u64,
}

/// What a request to promote or demote did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resized {
    /// Blocks of 2 MiB that changed.
    pub changed_blocks: u64,
    /// Blocks that could not.
    pub refused_blocks: u64,
}

/// What the pmap counted of superpages and of accessed and dirty bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PmapTally {
    /// Blocks of 4 KiB pages that became one 2 MiB leaf.
    pub promotions: u64,
    /// Blocks that were entered as one 2 MiB leaf at once.
    pub superpages_entered: u64,
    /// 2 MiB leaves that became 4 KiB pages again.
    pub demotions: u64,
    /// Promotions that did not happen, by cause.
    pub promotion_failures: std::collections::BTreeMap<String, u64>,
    /// 2 MiB leaves now.
    pub superpages: u64,
    /// Faults that only set an emulated accessed bit.
    pub accessed_faults: u64,
    /// Faults that only set an emulated modified bit (and accessed).
    pub modified_faults: u64,
    /// Harvests.
    pub harvests: u64,
    /// Pages harvested as accessed, all together.
    pub harvested_accessed_pages: u64,
    /// Pages harvested as modified, all together.
    pub harvested_modified_pages: u64,
}

/// What the clock and the store did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReclaimTally {
    /// Pages that left memory.
    pub pages_out: u64,
    /// Pages that came back, by a fault or a hold.
    pub pages_in: u64,
    /// Of those out: all zeroes, so nothing was kept.
    pub zero_pages_out: u64,
    /// Of those out: the copy in the store was good still.
    pub clean_pages_out: u64,
    /// Of those in: from the compressed tier.
    pub compressed_pages_in: u64,
    /// Of those in: from disk.
    pub disk_pages_in: u64,
    /// Of those in: read along with a neighbour, and used later.
    pub readahead_hits: u64,
    /// Pages read along with a neighbour.
    pub readahead_pages: u64,
    /// Pages used again while they were leaving.
    pub rescued_pages: u64,
    /// Pages the clock passed over because they were held, wired, or used since it last came by.
    pub skipped_held_pages: u64,
    /// See above.
    pub skipped_wired_pages: u64,
    /// See above.
    pub skipped_used_pages: u64,
    /// Faults that waited for the disk or for room.
    pub waited_faults: u64,
    /// Writes to the swap file.
    pub writes: u64,
    /// Pages written.
    pub written_pages: u64,
    /// In the compressed tier now: pages.
    pub compressed_pages: u64,
    /// In the compressed tier now: bytes of memory it takes.
    pub compressed_bytes: u64,
    /// On disk now.
    pub disk_pages: u64,
    /// The largest that resident guest memory and the compressed tier together ever were.
    pub peak_bytes: u64,
}

/// One look at the guest's working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkingSetSample {
    /// From the machine's start.
    pub time_ns: u64,
    /// Pages used since the look before, as the tables say. Where memory is limited the clock clears accessed bits, too, and
    /// what it cleared since the last look is not in here.
    pub accessed_pages: u64,
    /// Pages in memory.
    pub resident_pages: u64,
}
