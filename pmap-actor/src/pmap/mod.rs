//! The pmap: which page is where *now*, for one kind of tables.
//!
//! Every operation of FreeBSD's machine-dependent pmap (`sys/amd64/amd64/pmap.c`), on entries alone: no threads, no
//! host calls, no waiting. A [`Pmap`] is a cache of somebody's map, and its operations say what they did:
//!
//! * the return value, [`Effects`]: which translations processors must forget (the shootdown), which pages hardware
//!   can no longer read or write (for a second copy of the tables, as KVM has one), which table pages are free after the shootdown
//!   ([`Pmap::give_back`]);
//! * harvested bits go to a [`Harvest`], neighbours together: nothing here remembers that a page was dirty.
//!
//! ```text
//!   room              operations                                              FreeBSD
//!   enter.rs          enter, enter_range, enter_quick, enter_object,          pmap_enter, pmap_enter_quick,
//!                     enter_superpage, copy                                   pmap_enter_object, pmap_copy
//!   remove.rs         remove                                                  pmap_remove
//!   protect.rs        protect, wire, unwire                                   pmap_protect, pmap_unwire
//!   accessed_dirty.rs emulate_accessed_dirty, harvest, advise                 pmap_emulate_accessed_dirty, pmap_advise
//!   page.rs           is_/clear_ modified and referenced, ts_referenced,      pmap_is_modified, pmap_ts_referenced,
//!                     remove_write, remove_page, of one page here             pmap_remove_all, …
//!   page_wide.rs      the same for a page wherever it is mapped               (the loops over pv entries)
//!   superpage.rs      may_promote, can_promote, promote, demote               pmap_promote_pde, pmap_demote_pde
//!   look.rs           extract, extract_allowing, rights, mapping, mincore, …  pmap_extract…, pmap_get_mapping
//! ```
//!
//! # Rules for the caller
//!
//! * *Frames and table pages are free after the shootdown* that [`Effects::needs_shootdown`] asks for, never before; and what was
//!   harvested is complete only then, because until then a processor may store through what it has cached. Copy a dirty page after it.
//! * Shootdowns are complete, or joined ([`Effects::join`]), before the next call's answer that none is needed is believed.
//! * *Look before entering*: when [`Pmap::rights`] allows the access already, somebody was faster. Entering a page that is part of a superpage
//!   demotes it, needed or not, as in FreeBSD. Then [`Pmap::emulate_accessed_dirty`], then the full fault.
//! * Entering asks for no shootdown when there was nothing, or when rights only grew: the worst that happens is
//!   a second fault.
//! * [`Pmap::protect`] only takes rights away. Rights that are given come with the next fault, by [`Pmap::enter`] (wired
//!   ranges are entered again at once).
//! * After entering, [`Pmap::emulate_accessed_dirty`] or [`Pmap::promote`], a second copy is brought to what [`Pmap::rights`] says. Everything
//!   else only takes rights away, and says where.
//! * Entering never promotes by itself: [`Pmap::may_promote`] is cheap to ask after each fault, [`Pmap::can_promote`] looks at all
//!   512 pages, and between it and [`Pmap::promote`] the host may be asked to make the memory contiguous.
//! * Whoever harvests a part of a superpage may be told about pages outside the range: those that the superpage's one bit speaks for, and those of
//!   a superpage that had to be removed.
//! * Addresses are those of the tables: guest-physical for `PtEpt`, frames for the monitor's own `PtX86`. Nobody's hardware walks the
//!   latter: what the monitor does with a page, it says by [`View::translate`], as a processor would.
//! * A second copy that cannot tell a fetch from a load (KVM's) takes the flags to emulate bits *and* of execute-only, since pages that may be
//!   executed can be aged only so; otherwise ageing removes them.
//!
//! # Invariants (asserted in debug builds)
//!
//! Modified implies writable, and with emulated bits accessed: hardware's W is never without software's RW and hardware's R. (With
//! hardware bits an aged page may still be dirty: clearing accessed alone is legal there.) A writable superpage is
//! modified. No entry is one that hardware would call misconfigured.
//!
//! Beyond the original: a page without execute really is not executable, since the bit that FreeBSD sets in every user's entry *is*
//! EPT's execute permission.
//!
//! Rejected: FreeBSD's refusal of executable superpages (a processor erratum; no processor reads these tables).

mod accessed_dirty;
mod effects;
mod enter;
mod look;
mod page;
mod page_wide;
mod protect;
mod remove;
mod superpage;
mod tally;

use actors::layout::MemoryLayout;
use actors::{Gpa, GpaRange};

use crate::ept::entry::Leaf;
use crate::ept::masks::{Masks, PmapFlags, PmapType};
use crate::ept::tables::{Block, TableFrame, Tables, View};

pub use accessed_dirty::{Advice, Ageing, What};
pub use effects::{Effects, Harvest, Runs};
pub use enter::{NotEntered, Wanted};
pub use look::Incore;
pub use page::References;
pub use page_wide::{Mappings, PageEffects};
pub use superpage::{NotPromoted, Unaccessed};
pub use tally::PmapTally;

use effects::{Ledger, block_of, extent};
use superpage::Demotion;

/// Tables of one kind, and every operation on them.
pub struct Pmap {
    kind: PmapType,
    flags: PmapFlags,
    masks: Masks,
    tables: Tables,
    tally: PmapTally,
    wired_pages: u64,
}

impl Pmap {
    /// An empty pmap for what lies in `layout` (`pmap_pinit_type`). Flags that the kind has no use for are ignored: an ordinary
    /// process's tables always have hardware's accessed and modified bits.
    #[must_use]
    pub fn new(kind: PmapType, flags: PmapFlags, layout: MemoryLayout) -> Self {
        let tables = Tables::new(kind, flags, layout);
        let masks = *tables.masks();
        Self { kind, flags, masks, tables, tally: PmapTally::default(), wired_pages: 0 }
    }

    /// Whose format the tables have.
    #[must_use]
    pub fn kind(&self) -> PmapType {
        self.kind
    }

    /// What the walker supports.
    #[must_use]
    pub fn flags(&self) -> PmapFlags {
        self.flags
    }

    /// Which bit means what.
    #[must_use]
    pub fn masks(&self) -> &Masks {
        &self.masks
    }

    /// The tables, to look at.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Somebody who walks.
    #[must_use]
    pub fn view(&self) -> View {
        self.tables.view()
    }

    /// What was done so far.
    #[must_use]
    pub fn tally(&self) -> PmapTally {
        self.tally
    }

    /// 4 KiB pages that are mapped, by leaves of either size.
    #[must_use]
    pub fn resident_pages(&self) -> u64 {
        self.tables.mapped_pages()
    }

    /// 4 KiB pages whose leaf is wired.
    #[must_use]
    pub fn wired_pages(&self) -> u64 {
        self.wired_pages
    }

    /// Table pages whose shootdown is over may be used again.
    pub fn give_back(&mut self, emptied: Vec<TableFrame>) {
        self.tables.give_back(emptied);
    }

    /// The end (`pmap_release`).
    ///
    /// # Panics
    ///
    /// When anything is still mapped: that would be a page whose dirty bit nobody asked for.
    pub fn release(self) {
        assert_eq!(self.resident_pages(), 0, "a pmap was released with pages in it");
        assert_eq!(self.tables.saved_tables(), 0, "a pmap was released with saved tables");
    }

    fn ledger<'h, H: Harvest>(&self, harvest: &'h mut H) -> Ledger<'h, H> {
        Ledger::new(&self.masks, harvest)
    }

    /// Ends a call.
    fn settle<H: Harvest>(&mut self, mut ledger: Ledger<'_, H>) -> Effects {
        ledger.close();
        self.wired_pages = self
            .wired_pages
            .checked_add_signed(ledger.wired)
            .expect("no more pages become unwired than were wired");
        self.tally.modified_pages += ledger.modified_pages;
        self.tally.referenced_pages += ledger.referenced_pages;
        ledger.effects
    }

    /// Changes each leaf of `range`, in which superpages lie wholly.
    fn update<H: Harvest>(
        &mut self,
        range: GpaRange,
        ledger: &mut Ledger<'_, H>,
        change: impl Fn(Leaf) -> u64,
    ) {
        self.revise(range, ledger, change, |_, _, _, _| {});
    }

    /// Changes or, where `judge` says 0, removes each leaf of `range`, in which superpages lie wholly; `see` sees all of them.
    fn revise<H: Harvest>(
        &mut self,
        range: GpaRange,
        ledger: &mut Ledger<'_, H>,
        judge: impl Fn(Leaf) -> u64,
        mut see: impl FnMut(Gpa, Leaf, u64, &mut Ledger<'_, H>),
    ) {
        let (masks, flags) = (self.masks, self.flags);
        let mut emptied = Vec::new();
        self.tables.revise(range, &mut emptied, judge, |at, before, after| {
            assert_sound(&masks, flags, Leaf { entry: after, size: before.size });
            ledger.note(at, before, after);
            see(at, before, after, ledger);
        });
        ledger.effects.emptied.append(&mut emptied);
    }

    /// Removes each leaf of `range`, in which superpages lie wholly.
    fn take_out<H: Harvest>(&mut self, range: GpaRange, ledger: &mut Ledger<'_, H>) {
        self.revise(range, ledger, |_| 0, |_, _, _, _| {});
    }

    /// Demotes the superpages that lie partly in `range`.
    fn demote_ends<H: Harvest>(
        &mut self,
        range: GpaRange,
        cause: Demotion,
        ledger: &mut Ledger<'_, H>,
    ) {
        let first = block_of(range.start());
        if first != range.start() || !range.contains(last_page(first)) {
            self.demote_if_superpage(first, cause, ledger);
        }
        let last = block_of(range.end());
        if last != range.end() && last != first {
            self.demote_if_superpage(last, cause, ledger);
        }
    }

    /// False when there was a superpage, and it is gone.
    fn demote_if_superpage<H: Harvest>(
        &mut self,
        at: Gpa,
        cause: Demotion,
        ledger: &mut Ledger<'_, H>,
    ) -> bool {
        match self.tables.block(at) {
            Block::Superpage(leaf) => self.demote_block(block_of(at), leaf, cause, ledger),
            Block::Empty | Block::Pages(_) => true,
        }
    }
}

/// The last page of the block that begins at `block`.
fn last_page(block: Gpa) -> Gpa {
    Gpa(block.0 + crate::ept::tables::BLOCK - actors::PAGE_SIZE)
}

/// No rule of ours or of hardware's is broken by this leaf.
fn assert_sound(masks: &Masks, flags: PmapFlags, leaf: Leaf) {
    if cfg!(debug_assertions)
        && let Some(rule) = masks.broken_rule(leaf, flags)
    {
        panic!("{leaf:?}: {rule}");
    }
}

#[cfg(test)]
mod tests;
