//! KVM's copy: the guest view of the memfd, which its memory slots point at.
//!
//! # Huge mappings
//!
//! KVM maps 2 MiB at once where the host mapping does. The host makes one with `MADV_COLLAPSE`,
//! which it refuses while the block is registered with a userfaultfd that write-protects. So for
//! about half a millisecond the block is *not* registered, and the kernel serves faults in it by
//! itself ([`KvmMirror::promote`] says why nobody sees anything it should not).
//!
//! The host drops *all* of a huge mapping when a part of it is write-protected, unmapped or freed. Our
//! tables then have leaves for the rest, so the rest is mapped again at once: 511 nested faults would
//! cost the guest a hundred times as much. For this the mirror remembers where it made huge ones.
//!
//! # Reserved huge pages
//!
//! userfaultfd cannot fill them with zeroes, and nothing smaller than 2 MiB of them can be protected or
//! taken away. So memory that is made of them is mapped as a whole at the start and never watched: that
//! fits a guest that is wired as a whole, and no other. What would take something away is refused.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use actors::contract::device::ScatterList;
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};

use super::{Contents, MappedHuge, Mirror, Promoted};
use crate::host::huge::{HUGE, HugePages, HugeSupport, NoHugePages, NotHuge};
use crate::host::memory::GuestMemory;
use crate::host::pagemap::{HostPage, Pagemap};
use crate::host::userfault::{Installed, Userfault};
use crate::vmspace::Served;

/// How often a block is tried whose pages the kernel is using.
const ATTEMPTS: u32 = 3;

/// A block that was made huge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Block {
    /// Mapped by one entry.
    Mapped,
    /// Mapped by pages; the object still holds one huge page, which ends when a part of it is freed.
    Split,
}

/// The guest view of the memfd.
#[derive(Debug)]
pub struct KvmMirror {
    memory: Arc<GuestMemory>,
    userfault: Arc<Userfault>,
    /// For tests that a guest notices: `unmap` and `free` do nothing.
    skip_unmap: bool,
    /// What this host can do: asked when it is first needed.
    offered: Option<Result<(), NoHugePages>>,
    pagemap: Option<Pagemap>,
    /// By the address of their first byte.
    huge: BTreeMap<Gpa, Block>,
}

impl KvmMirror {
    /// Registers the whole guest view: from now on every first touch is ours to serve.
    ///
    /// # Errors
    ///
    /// The host's refusal.
    pub fn new(
        memory: Arc<GuestMemory>,
        userfault: Arc<Userfault>,
        skip_unmap: bool,
    ) -> io::Result<Self> {
        for slot in memory.slots() {
            match memory.pages() {
                HugePages::Transparent => userfault.register(slot.host, slot.range.len())?,
                HugePages::Reserved => memory.populate_view(slot.range)?,
            }
        }
        Ok(Self {
            memory,
            userfault,
            skip_unmap,
            offered: None,
            pagemap: None,
            huge: BTreeMap::new(),
        })
    }

    fn address(&self, range: GpaRange) -> u64 {
        self.memory.guest_address(range.start())
    }

    /// Of reserved huge pages: mapped as a whole since the start.
    fn is_fixed(&self) -> bool {
        self.memory.pages() == HugePages::Reserved
    }

    fn must_not_be_fixed(&self) -> io::Result<()> {
        if !self.is_fixed() {
            return Ok(());
        }
        let why =
            "memory of reserved huge pages is wired as a whole: nothing of it can be taken away";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Whether the host has huge pages for guest memory.
    fn are_offered(&mut self) -> bool {
        self.offered.get_or_insert_with(HugeSupport::ask).is_ok()
    }

    /// How the host maps `block`, page by page.
    fn look(&mut self, block: GpaRange) -> io::Result<Vec<HostPage>> {
        let pagemap = match self.pagemap.take() {
            Some(pagemap) => pagemap,
            None => Pagemap::open()?,
        };
        let pages = pagemap.read(self.address(block), block.pages());
        self.pagemap = Some(pagemap);
        pages
    }

    /// Why `block` cannot be promoted as it is.
    fn obstacle(&mut self, block: GpaRange) -> io::Result<Option<NotHuge>> {
        if !self.memory.is_block(block) {
            return Ok(Some(NotHuge::Misplaced));
        }
        if !self.are_offered() {
            return Ok(Some(NotHuge::Unsupported));
        }
        let pages = self.look(block)?;
        Ok(block.iter_pages().zip(pages).find_map(|(at, page)| {
            if !page.present {
                Some(NotHuge::NotMapped(at))
            } else if page.write_protected {
                Some(NotHuge::WriteProtected(at))
            } else {
                None
            }
        }))
    }

    /// Makes every page of `block` exist, in one piece where the host can; none does yet.
    fn make_fresh(&mut self, block: GpaRange) -> io::Result<Result<(), NotHuge>> {
        let frame = self.memory.frame_of(block.start());
        if self.memory.next_contents(frame)?.is_some_and(|found| found < frame + HUGE) {
            return Ok(Err(NotHuge::Occupied));
        }
        if self.memory.takes_advice() {
            // Where it fails, the next step does the same in small pages, or says why not.
            let _ = self.memory.allocate_huge(block);
        }
        if let Err(error) = self.memory.populate(block) {
            self.memory.free(block)?;
            return Ok(Err(NotHuge::of(&error)));
        }
        Ok(Ok(()))
    }

    /// Makes each of `blocks`, all of which exist and the guest may write, one huge mapping: out of
    /// userfaultfd's sight, which is given back whatever happens.
    fn make_huge(&mut self, blocks: GpaRange, is_mapped: bool) -> io::Result<Result<(), NotHuge>> {
        let (address, len) = (self.address(blocks), blocks.len());
        if let Err(error) = self.userfault.unregister(address, len) {
            // Nothing has changed: the process has too many mappings to split one.
            return Ok(Err(NotHuge::of(&error)));
        }
        // One flush of KVM's tables for all of it; else the host takes page after page out, with a
        // flush each. It refuses this for locked memory, which therefore takes longer.
        if is_mapped {
            let _ = self.memory.unmap_view(blocks);
        }
        let mut done = self.memory.collapse_view(blocks);
        for _ in 1..ATTEMPTS {
            if done.as_ref().is_err_and(|error| NotHuge::of(error) == NotHuge::Busy) {
                done = self.memory.collapse_view(blocks);
            }
        }
        if done.is_err() {
            // As it was: every page mapped. (Where even that fails, the next touch of a page is a
            // fault that `mend` serves.)
            let _ = self.memory.populate_view(blocks);
        }
        if let Err(error) = self.userfault.register(address, len) {
            // Nobody may meet a page that we cannot watch.
            self.memory.set_view_access(blocks, false)?;
            return Err(error);
        }
        Ok(done.map_err(|error| NotHuge::of(&error)))
    }

    /// Maps pages that exist again, as far as they are not mapped; `wanted` says how each is to be,
    /// `None` that it is not to be.
    fn restore(&self, block: GpaRange, wanted: impl Fn(Gpa) -> Option<bool>) -> io::Result<()> {
        let mut next = block.start();
        while next < block.end() {
            let writable = wanted(next);
            let mut end = Gpa(next.0 + PAGE_SIZE);
            while end < block.end() && wanted(end) == writable {
                end.0 += PAGE_SIZE;
            }
            if let Some(writable) = writable {
                self.map_all(GpaRange::new(next, end.0 - next.0).expect("whole pages"), writable)?;
            }
            next = end;
        }
        Ok(())
    }

    fn map_all(&self, range: GpaRange, writable: bool) -> io::Result<()> {
        let (mut next, end) = (self.address(range), self.address(range) + range.len());
        while next < end {
            match self.userfault.map(next, end - next, writable)? {
                Installed::Bytes(bytes) => next += bytes,
                Installed::AlreadyThere => next += PAGE_SIZE,
                Installed::Busy => {}
            }
        }
        Ok(())
    }

    /// The blocks that were made huge and have something in common with `range`.
    fn huge_in(&self, range: GpaRange) -> Vec<(GpaRange, Block)> {
        let first = Gpa(range.start().0 / HUGE * HUGE);
        let blocks = self.huge.range(first..range.end());
        blocks.map(|(start, block)| (block_at(*start), *block)).collect()
    }

    /// Takes rights away from `range` with `act`, and leaves the rest of every block that was mapped
    /// huge mapped as it was. `left` is what remains of the range itself: nothing, or read-only.
    fn take_away(
        &mut self,
        range: GpaRange,
        left: Option<bool>,
        act: impl FnOnce(&Self) -> io::Result<()>,
    ) -> io::Result<()> {
        let blocks = self.huge_in(range);
        act(self)?;
        for (block, state) in blocks {
            if state == Block::Mapped {
                self.huge.insert(block.start(), Block::Split);
                self.restore(block, |at| if range.contains(at) { left } else { Some(true) })?;
            }
        }
        Ok(())
    }
}

fn block_at(start: Gpa) -> GpaRange {
    GpaRange::new(start, HUGE).expect("a block was made there")
}

impl Mirror for KvmMirror {
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed> {
        if self.is_fixed() {
            return Ok(Installed::Bytes(range.len()));
        }
        self.userfault.zero(self.address(range), range.len())
    }

    fn map_existing(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
        if self.is_fixed() {
            // Nothing can be read-only here.
            return self.set_writable(range, writable).map(|()| Installed::Bytes(range.len()));
        }
        self.userfault.map(self.address(range), range.len(), writable)
    }

    fn set_writable(&mut self, range: GpaRange, writable: bool) -> io::Result<()> {
        if self.is_fixed() && writable {
            return Ok(());
        }
        self.must_not_be_fixed()?;
        if !writable {
            return self.take_away(range, Some(false), |mirror| mirror.protect(range, true));
        }
        // What is mapped huge is writable, and "allowing" stores to a part of it would split it.
        let mut next = range.start();
        for (block, state) in self.huge_in(range) {
            if state == Block::Mapped {
                self.allow(next, block.start())?;
                next = next.max(block.end());
            }
        }
        self.allow(next, range.end())?;
        self.wake(range)
    }

    fn unmap(&mut self, range: GpaRange) -> io::Result<()> {
        self.must_not_be_fixed()?;
        if self.skip_unmap {
            return Ok(());
        }
        self.take_away(range, None, |mirror| mirror.memory.unmap_view(range))
    }

    /// Freeing a part of a huge page splits it, and the host then drops every mapping of it.
    fn free(&mut self, range: GpaRange) -> io::Result<()> {
        self.must_not_be_fixed()?;
        // Freeing would drop the host mapping too.
        if self.skip_unmap {
            return Ok(());
        }
        let mut rests = Vec::new();
        for (block, _) in self.huge_in(range) {
            if !range.covers(block) {
                rests.push((block, self.look(block)?));
            }
            self.huge.remove(&block.start());
        }
        self.memory.free(range)?;
        for (block, pages) in rests {
            self.restore(block, |at| {
                let page = usize::try_from((at.0 - block.start().0) / PAGE_SIZE);
                let page = pages.get(page.unwrap_or(usize::MAX)).filter(|page| page.present);
                page.filter(|_| !range.contains(at)).map(|page| !page.write_protected)
            })?;
        }
        Ok(())
    }

    fn refuse(&mut self, range: GpaRange) -> io::Result<()> {
        self.must_not_be_fixed()?;
        self.memory.set_view_access(range, false)?;
        self.wake(range)
    }

    fn admit(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.set_view_access(range, true)
    }

    fn wake(&mut self, range: GpaRange) -> io::Result<()> {
        if self.is_fixed() {
            return Ok(());
        }
        self.userfault.wake(self.address(range), range.len())
    }

    /// The host may drop any mapping that is not locked (it swaps the page out), and maps it
    /// again only through us.
    fn mend(&mut self, page: GpaRange, access: Access, may_write: bool) -> io::Result<Served> {
        loop {
            match self.map_existing(page, may_write)? {
                Installed::Bytes(_) => return Ok(Served::MappedExisting(1)),
                Installed::AlreadyThere => break,
                Installed::Busy => {}
            }
        }
        if access == Access::Write {
            self.set_writable(page, true)?;
            return Ok(Served::WriteUnprotected);
        }
        self.wake(page)?;
        Ok(Served::AlreadyThere)
    }

    /// # Why nobody sees what they should not
    ///
    /// While the block is not registered the kernel serves faults in it by itself, with whatever the
    /// object holds, and writable. Before that the host's own pagemap must say that all 512 pages are
    /// mapped and none is write-protected, so:
    ///
    /// * Every page exists: nothing can be made up as zeroes. Nobody but this thread frees pages; and what
    ///   the host itself takes out in between (swap, migration) it brings back with its contents.
    /// * Everything the kernel allows is allowed: the guest may write all of it, and has.
    /// * A vcpu that sleeps on a fault here is woken by the unregistering and finds a page; a report of
    ///   its fault that was read before that finds a leaf, and `mend` answers it.
    /// * A page that a vcpu brings back while the host copies is waited for by the kernel, page by page
    ///   under its lock, and found again in the copy.
    fn promote(&mut self, block: GpaRange) -> io::Result<Promoted> {
        if self.is_fixed() {
            return Ok(Promoted::Huge);
        }
        if let Some(why) = self.obstacle(block)? {
            return Ok(Promoted::Refused(why));
        }
        Ok(match self.make_huge(block, true)? {
            Ok(()) => {
                self.huge.insert(block.start(), Block::Mapped);
                Promoted::Huge
            }
            Err(why) => Promoted::Refused(why),
        })
    }

    /// The block is allocated first, while it is still registered: a touch meanwhile is a fault that
    /// waits for us. Only when all of it exists is it taken out of userfaultfd's sight, for the reasons that
    /// [`KvmMirror::promote`] gives. (Collapsing it with one page in it, which would save 511 allocations, is refused as long as a
    /// neighbour is registered.)
    fn map_huge(&mut self, blocks: GpaRange, contents: Contents) -> io::Result<MappedHuge> {
        if self.is_fixed() {
            return Ok(MappedHuge::Huge);
        }
        let fits = match contents {
            Contents::Fresh => self.memory.is_block(blocks),
            Contents::Resident => self.memory.are_blocks(blocks),
        };
        if !fits {
            return Ok(MappedHuge::Refused(NotHuge::Misplaced));
        }
        if !self.are_offered() {
            return Ok(MappedHuge::Refused(NotHuge::Unsupported));
        }
        if contents == Contents::Fresh
            && let Err(why) = self.make_fresh(blocks)?
        {
            return Ok(MappedHuge::Refused(why));
        }
        Ok(match self.make_huge(blocks, false)? {
            Ok(()) => {
                let starts = blocks.pieces(HUGE).map(GpaRange::start);
                self.huge.extend(starts.map(|start| (start, Block::Mapped)));
                MappedHuge::Huge
            }
            Err(why) => {
                self.map_all(blocks, true)?;
                MappedHuge::Small(why)
            }
        })
    }

    /// The kernel serves first touches there by itself, from the device: userfaultfd does not watch it.
    fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> io::Result<()> {
        let shown = self.memory.show_device(range, memory, protection);
        if shown.is_err() {
            self.unmap_device(range)?;
        }
        // Whoever came here before there was anything.
        self.wake(range)?;
        shown
    }

    /// Memory again, and none of it in reach before it is watched: else the kernel would serve a first touch with
    /// zeroes that we know nothing of. A touch in between fails, as it is about to anyway.
    fn unmap_device(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.show_memory(range)?;
        self.userfault.register(self.address(range), range.len())?;
        self.memory.set_view_access(range, true)
    }

    fn free_device(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }
}

impl KvmMirror {
    fn protect(&self, range: GpaRange, protect: bool) -> io::Result<()> {
        self.userfault.set_write_protection(self.address(range), range.len(), protect)
    }

    /// Allows stores in `start .. end`, if that is anything.
    fn allow(&self, start: Gpa, end: Gpa) -> io::Result<()> {
        match end.0.checked_sub(start.0) {
            None | Some(0) => Ok(()),
            Some(len) => self.protect(GpaRange::new(start, len).map_err(io::Error::other)?, false),
        }
    }
}

#[cfg(test)]
mod tests;
