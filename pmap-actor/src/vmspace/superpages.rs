//! When 512 pages become one leaf, and when they had better not.
//!
//! Promotion costs a look at 512 entries, and on KVM a copy of 2 MiB; what it saves are walks and, on KVM, nested faults. It is of no
//! use where the next harvest takes it apart again. So a block is not promoted
//!
//! * when somebody takes dirty epochs: writable superpages are demoted by each taking, because one modified bit
//!   cannot speak for 512 pages;
//! * with emulated bits, when pages are aged (a limit on memory, or harvests at intervals): hardware's right to read *is* the
//!   accessed bit, and a writable superpage cannot lose it. (With hardware's own bits it is cleared in place.)
//! * on KVM, when it is read-only: write-protecting or ageing any part of a huge host mapping splits it, so
//!   only blocks that are writable and dirty as a whole stay.
//!
//! And a block that was demoted, or could not be promoted, is left alone for a while: for so many faults in it, and twice as many each time.
//! Otherwise a page whose rights change often would have its block copied by the host again and again.

use std::collections::{BTreeMap, HashMap};
use std::io;

use actors::contract::page::Resized;
use actors::contract::space::SpaceError;
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};

use super::fault::{Source, Toucher};
use super::{Removed, Served, Told, Unserved, VmSpace, host};
use crate::ept::attribute::Attribute;
use crate::ept::masks::PmapFlags;
use crate::ept::tables::{BLOCK, Block};
use crate::host::huge::NotHuge;
use crate::host::userfault::Installed;
use crate::map::MapEntry;
use crate::mirror::{Contents, MappedHuge, Mirror, Promoted};
use crate::object::Page;
use crate::pmap::{Unaccessed, Wanted};

/// Bytes of blocks that the host is asked for in one call: each takes it half a millisecond, and several times that if it is
/// slow.
const AT_ONCE: u64 = 16 * BLOCK;

/// When to make superpages. (The pmap's flags say whether there can be any.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superpages {
    /// A whole block comes with its first touched page, where nothing of it is there yet.
    pub at_once: bool,
    /// Blocks that are not writable and dirty as a whole are of no use.
    pub writable_only: bool,
}

/// Promotions that did not happen for reasons that the pmap does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// The next harvest would take it apart.
    pub(super) would_not_last: u64,
    /// Read-only, where that is of no use.
    pub(super) read_only: u64,
    /// The host did not make its mapping huge, by its reason.
    pub(super) host_refused: BTreeMap<&'static str, u64>,
}

impl Counted {
    fn refused(&mut self, why: NotHuge) {
        *self.host_refused.entry(why.name()).or_default() += 1;
    }
}

/// Blocks that were demoted, or could not be promoted, and are left alone.
#[derive(Debug, Default)]
pub(super) struct Cooling(HashMap<u64, Patience>);

#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Faults in the block until it is looked at again.
    left: u32,
    /// Faults the next time.
    next: u32,
}

impl Cooling {
    const FIRST: u32 = 16;
    const LAST: u32 = 1 << 20;

    /// The block of `at` is left alone, longer than the last time.
    pub(super) fn leave_alone(&mut self, at: Gpa) {
        let new = Patience { left: 0, next: Self::FIRST };
        let patience = self.0.entry(block_of(at).start().0).or_insert(new);
        patience.left = patience.next;
        patience.next = (patience.next * 2).min(Self::LAST);
    }

    /// A fault in the block of `at`: whether it may be looked at.
    fn may_look(&mut self, at: Gpa) -> bool {
        let Some(patience) = self.0.get_mut(&block_of(at).start().0) else { return true };
        patience.left = patience.left.saturating_sub(1);
        patience.left == 0
    }
}

/// The block of `at`.
fn block_of(at: Gpa) -> GpaRange {
    GpaRange::new(Gpa(at.0 / BLOCK * BLOCK), BLOCK).expect("memory ends before 64 bits")
}

/// The blocks that lie in `range` as a whole, if there are any.
fn whole_blocks(range: GpaRange) -> Option<GpaRange> {
    let start = range.start().0.next_multiple_of(BLOCK);
    let bytes = (range.end().0 / BLOCK * BLOCK).checked_sub(start)?;
    GpaRange::new(Gpa(start), bytes).ok()
}

/// Where the block after that of `at` begins.
fn block_after(at: Gpa) -> Gpa {
    block_of(at).end()
}

impl<M: Mirror> VmSpace<M> {
    /// Whether a superpage that may be written would be taken apart before it was of use.
    fn would_not_last(&self) -> bool {
        let aged = self.is_harvested || self.content.is_limited();
        self.content.epochs.is_watched() || (aged && self.guest.masks().emulated)
    }

    /// Looks whether the block of `at` is full now, and promotes it if that is of use.
    ///
    /// # Errors
    ///
    /// The host's, after which nobody reaches the block any more: the guest cannot go on.
    pub(super) fn consider_promotion(&mut self, at: Gpa) -> io::Result<()> {
        if !self.guest.may_promote(at) || !self.cooling.may_look(at) {
            return Ok(());
        }
        if self.would_not_last() {
            self.blocks.would_not_last += 1;
            return Ok(());
        }
        if !self.promote_block(at)? {
            self.cooling.leave_alone(at);
        }
        Ok(())
    }

    /// The same for every block that `range` touches.
    ///
    /// # Errors
    ///
    /// As for one.
    pub(super) fn consider_promotions(&mut self, range: GpaRange) -> io::Result<()> {
        let mut at = range.start();
        while at < range.end() {
            self.consider_promotion(at)?;
            at = block_after(at);
        }
        Ok(())
    }

    /// `false`: it is not one, and why is counted.
    fn promote_block(&mut self, at: Gpa) -> io::Result<bool> {
        let block = block_of(at);
        if self.guest.can_promote(at, Unaccessed::Mark).is_err() {
            // Counts the cause.
            return Ok(self.guest.promote(at, Unaccessed::Mark).is_ok());
        }
        let first = self.guest.rights(block.start());
        if self.settings.superpages.writable_only && !first.contains(Protection::WRITE) {
            self.blocks.read_only += 1;
            return Ok(false);
        }
        match self.mirror.promote(block)? {
            Promoted::Huge => Ok(self.guest.promote(at, Unaccessed::Mark).is_ok()),
            Promoted::Refused(why) => {
                self.blocks.refused(why);
                Ok(false)
            }
        }
    }

    /// An aged superpage was used again, and its one accessed bit allows loads of 512 pages: so does the mirror.
    pub(super) fn reach_block(&mut self, gpa: Gpa, writable: bool) -> io::Result<()> {
        let block = block_of(gpa);
        let mut next = block.start();
        while next < block.end() {
            let rest = GpaRange::new(next, block.end().0 - next.0).expect("part of a block");
            let bytes = match self.mirror.map_existing(rest, writable)? {
                Installed::Bytes(bytes) => bytes,
                Installed::AlreadyThere => PAGE_SIZE,
                Installed::Busy => 0,
            };
            next = Gpa(next.0 + bytes);
        }
        Ok(())
    }

    /// Gives the guest the whole block of `gpa` at once, if nothing of it is there yet and that is wanted.
    pub(super) fn enter_whole_block(
        &mut self,
        gpa: Gpa,
        access: Access,
        entry: &MapEntry,
    ) -> Result<Option<Served>, Unserved> {
        let block = block_of(gpa);
        if !self.may_come_whole(block, entry) || !self.is_absent(block) {
            return Ok(None);
        }
        let pages = block.pages();
        let entered = self.enter_blocks(block, access, entry, Contents::Fresh)?;
        Ok(entered.then_some(Served::ZeroFilled(pages)))
    }

    /// Whether `block`, of which nothing is mapped, may be entered in one piece before the guest asked for all of it.
    fn may_come_whole(&self, block: GpaRange, entry: &MapEntry) -> bool {
        self.settings.superpages.at_once
            && entry.range.covers(block)
            && entry.protection.contains(Protection::WRITE)
            && self.guest.tables().block(block.start()) == Block::Empty
            && !self.content.is_limited()
            && !self.would_not_last()
    }

    /// `range` and what comes along with its first touch, by whomever: all of the blocks at its ends, where they come whole and
    /// nothing of them exists. (Small pages around what a loader wrote cost a guest two dozen faults, and a promotion that copies.)
    pub(super) fn with_its_blocks(&self, range: GpaRange) -> GpaRange {
        self.widened(range, |block| self.is_absent(block))
    }

    /// `range` and the rest of the blocks at its ends, where that is resident, too, and may come whole.
    pub(super) fn with_resident_blocks(&self, range: GpaRange) -> GpaRange {
        let is_resident = |page| matches!(self.content.get(page), Page::Resident(_));
        self.widened(range, |block| self.page_numbers(block).all(is_resident))
    }

    fn widened(&self, range: GpaRange, is_wanted: impl Fn(GpaRange) -> bool) -> GpaRange {
        let is_part = |block: &GpaRange| !range.covers(*block);
        let comes = |at: Gpa| {
            let block = Some(block_of(at)).filter(is_part)?;
            let entry = self.map.lookup(at)?;
            (self.may_come_whole(block, entry) && is_wanted(block)).then_some(block)
        };
        let start = comes(range.start()).map_or(range.start(), GpaRange::start);
        let end = comes(Gpa(range.end().0 - 1)).map_or(range.end(), GpaRange::end);
        GpaRange::new(start, end.0 - start.0).expect("blocks of mapped memory")
    }

    /// Enters `blocks`, of which nothing is mapped and which the guest may write, each in one piece where that can be had. `false`:
    /// nothing was done.
    fn enter_blocks(
        &mut self,
        blocks: GpaRange,
        access: Access,
        entry: &MapEntry,
        contents: Contents,
    ) -> io::Result<bool> {
        let is_huge = match self.mirror.map_huge(blocks, contents)? {
            MappedHuge::Refused(why) => {
                self.blocks.refused(why);
                return Ok(false);
            }
            MappedHuge::Small(why) => {
                self.blocks.refused(why);
                false
            }
            MappedHuge::Huge => true,
        };
        let numbers = self.page_numbers(blocks);
        match contents {
            Contents::Fresh => self.content.appear_where_absent(numbers),
            Contents::Resident => numbers.for_each(|page| self.content.mapped(page)),
        }
        let wanted = Wanted {
            protection: entry.protection,
            attribute: Attribute::MEMORY,
            touched: Some(access),
            dirty: true,
            wired: entry.wired,
        };
        for block in blocks.pieces(BLOCK) {
            let frame = self.memory.frame_of(block.start());
            if !is_huge || self.guest.enter_superpage(block.start(), frame, wanted).is_err() {
                for page in block.iter_pages() {
                    self.enter(page, entry, access)?;
                }
            }
        }
        Ok(true)
    }

    /// Enters `run`, all of it resident, without a leaf, and dirty or not all alike: whole blocks in one piece where a promotion would
    /// make them one right afterwards.
    pub(super) fn install_by_blocks(
        &mut self,
        run: GpaRange,
        is_dirty: bool,
        entry: &MapEntry,
    ) -> io::Result<()> {
        let are_wanted = is_dirty
            && entry.protection.contains(Protection::WRITE)
            && self.settings.flags.contains(PmapFlags::SUPERPAGES)
            && !self.would_not_last();
        let mut next = run.start();
        if are_wanted && let Some(blocks) = whole_blocks(run) {
            for row in blocks.pieces(AT_ONCE) {
                if self.enter_blocks(row, Access::Read, entry, Contents::Resident)? {
                    self.install_unused(next, row.start(), entry)?;
                    next = row.end();
                }
            }
        }
        self.install_unused(next, run.end(), entry)
    }

    /// Enters `start .. end` by pages that nobody has asked for yet.
    fn install_unused(&mut self, start: Gpa, end: Gpa, entry: &MapEntry) -> io::Result<()> {
        let Some(bytes) = end.0.checked_sub(start.0).filter(|bytes| *bytes > 0) else {
            return Ok(());
        };
        let part = GpaRange::new(start, bytes).map_err(io::Error::other)?;
        let nobody = Toucher { at: Some(Gpa(u64::MAX)), access: Access::Read };
        self.install(part, nobody, entry, Source::Object)?;
        self.consider_promotions(part)
    }

    /// Where blocks of which nothing exists are about to be filled, they may as well be huge pages of the host from the
    /// start: a promotion has nothing to copy then. What the host refuses comes in small pages.
    pub(super) fn allocate_whole_blocks(&self, range: GpaRange) {
        let is_wanted = self.settings.flags.contains(PmapFlags::SUPERPAGES)
            && self.memory.takes_advice()
            && !self.content.is_limited();
        let Some(blocks) = whole_blocks(range).filter(|_| is_wanted) else { return };
        for row in blocks.pieces(AT_ONCE) {
            // Whatever it came to, the rest is populated next.
            if !self.allocate_if_fresh(row) {
                for block in row.pieces(BLOCK) {
                    self.allocate_if_fresh(block);
                }
            }
        }
    }

    /// `false`: something of `blocks` exists, or they cannot be huge pages.
    fn allocate_if_fresh(&self, blocks: GpaRange) -> bool {
        self.memory.are_blocks(blocks)
            && self.is_absent(blocks)
            && self.memory.allocate_huge(blocks).is_ok()
    }

    /// Whether nothing of `range` exists anywhere.
    fn is_absent(&self, range: GpaRange) -> bool {
        self.page_numbers(range).all(|page| self.content.get(page) == Page::Absent)
    }

    /// Promotes the whole blocks of `range` that can be.
    ///
    /// # Errors
    ///
    /// Not wholly mapped.
    pub fn promote(&mut self, range: GpaRange) -> Result<Resized, SpaceError> {
        self.map.must_cover(range)?;
        let mut resized = Resized::default();
        let mut at = block_of(range.start());
        while at.start() < range.end() {
            if range.covers(at)
                && !matches!(self.guest.tables().block(at.start()), Block::Superpage(_))
            {
                let promoted = self
                    .promote_block(at.start())
                    .map_err(|error| host("make a host mapping huge", &error))?;
                if promoted {
                    resized.changed_blocks += 1;
                } else {
                    resized.refused_blocks += 1;
                }
            }
            at = block_of(at.end());
        }
        Ok(resized)
    }

    /// Demotes every superpage that `range` touches.
    ///
    /// # Errors
    ///
    /// Not wholly mapped, or the host's refusal.
    pub fn demote(&mut self, range: GpaRange) -> Result<(Removed, Resized), SpaceError> {
        self.map.must_cover(range)?;
        let mut resized = Resized::default();
        let mut removed = Removed::default();
        let mut at = range.start();
        while at < range.end() {
            let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
            let effects = self.guest.demote(at, &mut told);
            resized.changed_blocks += effects.demoted.len() as u64;
            resized.refused_blocks += effects.destroyed.len() as u64;
            removed.join(self.follow(effects)?);
            at = block_after(at);
        }
        Ok((removed, resized))
    }
}
