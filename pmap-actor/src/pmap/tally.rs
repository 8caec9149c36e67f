//! Counts of what a pmap did.

use super::superpage::{Demotion, NotPromoted};

/// What a pmap did so far. Counts of events, unless the name says pages (of 4 KiB).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PmapTally {
    /// Blocks that became one superpage.
    pub promotions: u64,
    /// Superpages that were entered as such.
    pub entered_superpages: u64,
    /// Promotions that did not happen.
    pub refused_promotions: RefusedPromotions,
    /// Superpages that became pages.
    pub demotions: Demotions,
    /// Superpages that were removed instead of demoted.
    pub destroyed_superpages: u64,
    /// Loads that set an emulated accessed bit.
    pub emulated_reads: u64,
    /// Stores that set an emulated modified bit.
    pub emulated_writes: u64,
    /// Pages whose modified bit was harvested.
    pub modified_pages: u64,
    /// Pages whose accessed bit was harvested.
    pub referenced_pages: u64,
}

/// Promotions that were tried and did not happen, by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RefusedPromotions {
    /// This pmap has no superpages.
    pub unsupported: u64,
    /// It was a superpage already.
    pub already: u64,
    /// Some page was missing.
    pub not_full: u64,
    /// Some page was not used yet.
    pub not_accessed: u64,
    /// The first page does not begin 2 MiB of frames.
    pub not_aligned: u64,
    /// Some page is elsewhere.
    pub not_contiguous: u64,
    /// Some page has other rights or another memory type, or a device is there.
    pub mixed_attributes: u64,
    /// Some pages are dirty and some are not.
    pub mixed_dirty: u64,
}

/// Superpages that became pages, by what needed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Demotions {
    /// A page was entered there.
    pub enter: u64,
    /// A part was removed.
    pub remove: u64,
    /// A part got other rights, or all of it might.
    pub protect: u64,
    /// A part was wired or unwired.
    pub wire: u64,
    /// Its modified or accessed bits were harvested.
    pub harvest: u64,
    /// An operation on one page.
    pub page: u64,
    /// Advice about a range.
    pub advise: u64,
    /// Somebody asked for it.
    pub asked: u64,
}

impl Demotions {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { enter, remove, protect, wire, harvest, page, advise, asked } = *self;
        enter + remove + protect + wire + harvest + page + advise + asked
    }

    pub(super) fn count(&mut self, cause: Demotion) {
        *match cause {
            Demotion::Enter => &mut self.enter,
            Demotion::Remove => &mut self.remove,
            Demotion::Protect => &mut self.protect,
            Demotion::Wire => &mut self.wire,
            Demotion::Harvest => &mut self.harvest,
            Demotion::Page => &mut self.page,
            Demotion::Advise => &mut self.advise,
            Demotion::Asked => &mut self.asked,
        } += 1;
    }
}

impl RefusedPromotions {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self {
            unsupported,
            already,
            not_full,
            not_accessed,
            not_aligned,
            not_contiguous,
            mixed_attributes,
            mixed_dirty,
        } = *self;
        unsupported
            + already
            + not_full
            + not_accessed
            + not_aligned
            + not_contiguous
            + mixed_attributes
            + mixed_dirty
    }

    pub(super) fn count(&mut self, cause: &NotPromoted) {
        *match cause {
            NotPromoted::Unsupported => &mut self.unsupported,
            NotPromoted::Already => &mut self.already,
            NotPromoted::NotFull(_) => &mut self.not_full,
            NotPromoted::NotAccessed(_) => &mut self.not_accessed,
            NotPromoted::NotAligned(_) => &mut self.not_aligned,
            NotPromoted::NotContiguous(_) => &mut self.not_contiguous,
            NotPromoted::MixedAttributes(_) => &mut self.mixed_attributes,
            NotPromoted::MixedDirty(_) => &mut self.mixed_dirty,
        } += 1;
    }
}
