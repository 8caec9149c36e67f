//! Who reaches memory: processors with caches of translations, and a host mapping as a table of pages.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use actors::contract::device::ScatterList;
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection};

use crate::ept::tables::BLOCK;
use crate::ept::view::Translation;
use crate::host::huge::NotHuge;
use crate::host::memory::GuestMemory;
use crate::host::userfault::Installed;
use crate::mirror::{Contents, MappedHuge, Mirror, Promoted, SoftMirror};
use crate::vmspace::Served;

/// What is not drawn as a step but happens at random all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// A number below `below`.
    pub(super) fn throw(&mut self, below: u64) -> u64 {
        // Knuth's multiplier; the high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % below
    }
}

/// A cached translation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    pub(super) translation: Translation,
    /// It was there when an epoch was closed whose shootdown is not over.
    pub(super) is_old: bool,
}

impl Cached {
    pub(super) fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => self.translation.readable,
            Access::Write => self.translation.writable,
            Access::Execute => self.translation.executable,
        }
    }
}

/// A processor's cache of translations: nothing leaves it but by a shootdown.
#[derive(Debug, Default)]
pub(super) struct Tlb(pub(super) HashMap<(u64, u64), Cached>);

impl Tlb {
    pub(super) fn find(&self, at: Gpa, access: Access) -> Option<Cached> {
        [PAGE_SIZE, BLOCK]
            .into_iter()
            .filter_map(|size| self.0.get(&(at.0 / size, size)))
            .find(|cached| cached.allows(access))
            .copied()
    }

    pub(super) fn keep(&mut self, at: Gpa, translation: Translation) {
        let key = (at.0 / translation.bytes, translation.bytes);
        self.0.insert(key, Cached { translation, is_old: false });
    }
}

/// A mirror whose state can be looked at.
pub(in super::super) trait Watched: Mirror {
    /// Whether `page` is mapped, and writable; outer `None` when there is no second copy.
    fn state(&self, page: Gpa) -> Option<Option<bool>>;
}

impl Watched for SoftMirror {
    fn state(&self, _page: Gpa) -> Option<Option<bool>> {
        None
    }
}

/// A host mapping as a table of pages: present means reachable, the value means writable. It refuses what a host may
/// refuse, at random.
pub(in super::super) struct Scripted {
    memory: Arc<GuestMemory>,
    pages: BTreeMap<u64, bool>,
    dice: Dice,
}

impl Scripted {
    pub(super) fn new(memory: Arc<GuestMemory>, seed: u64) -> Self {
        Self { memory, pages: BTreeMap::new(), dice: Dice(seed) }
    }

    fn put(&mut self, range: GpaRange, writable: bool) -> Installed {
        let mut done = 0;
        // The host may stop early.
        let most = if self.dice.throw(8) == 0 { 2 } else { u64::MAX };
        for page in range.iter_pages().take(usize::try_from(most).unwrap_or(usize::MAX)) {
            if self.pages.contains_key(&page.0) {
                break;
            }
            self.pages.insert(page.0, writable);
            done += PAGE_SIZE;
        }
        if done == 0 { Installed::AlreadyThere } else { Installed::Bytes(done) }
    }

    fn has_any(&self, range: GpaRange) -> bool {
        self.pages.range(range.start().0..range.end().0).next().is_some()
    }
}

impl Watched for Scripted {
    fn state(&self, page: Gpa) -> Option<Option<bool>> {
        Some(self.pages.get(&page.0).copied())
    }
}

impl Mirror for Scripted {
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed> {
        self.memory.populate_for_walkers(range)?;
        Ok(self.put(range, true))
    }

    fn map_existing(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
        if self.dice.throw(16) == 0 {
            return Ok(Installed::Busy);
        }
        Ok(self.put(range, writable))
    }

    fn set_writable(&mut self, range: GpaRange, writable: bool) -> io::Result<()> {
        for (_, state) in self.pages.range_mut(range.start().0..range.end().0) {
            *state = writable;
        }
        Ok(())
    }

    fn unmap(&mut self, range: GpaRange) -> io::Result<()> {
        self.pages.retain(|page, _| !range.contains(Gpa(*page)));
        Ok(())
    }

    fn free(&mut self, range: GpaRange) -> io::Result<()> {
        assert!(!self.has_any(range), "a page of {range} is freed while it is mapped");
        self.memory.free(range)
    }

    fn refuse(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn admit(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn wake(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }

    fn mend(&mut self, page: GpaRange, access: Access, may_write: bool) -> io::Result<Served> {
        match self.pages.insert(page.start().0, may_write) {
            None => Ok(Served::MappedExisting(1)),
            Some(false) if access == Access::Write => Ok(Served::WriteUnprotected),
            Some(_) => Ok(Served::AlreadyThere),
        }
    }

    fn promote(&mut self, block: GpaRange) -> io::Result<Promoted> {
        let whole = self.pages.range(block.start().0..block.end().0);
        let writable = whole.filter(|(_, writable)| **writable).count() as u64;
        if writable != block.pages() {
            return Ok(Promoted::Refused(NotHuge::WriteProtected(block.start())));
        }
        Ok(match self.dice.throw(3) {
            0 => Promoted::Refused(NotHuge::NoMemory),
            _ => Promoted::Huge,
        })
    }

    fn map_huge(&mut self, block: GpaRange, contents: Contents) -> io::Result<MappedHuge> {
        assert!(!self.has_any(block), "a page of {block} is mapped already");
        let answer = match self.dice.throw(3) {
            0 => return Ok(MappedHuge::Refused(NotHuge::NoMemory)),
            1 => MappedHuge::Small(NotHuge::Busy),
            _ => MappedHuge::Huge,
        };
        if contents == Contents::Fresh {
            self.memory.populate_for_walkers(block)?;
        }
        self.pages.extend(block.iter_pages().map(|page| (page.0, true)));
        Ok(answer)
    }

    fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> io::Result<()> {
        assert!(!self.has_any(range), "a page of {range} is mapped already");
        self.memory.show_device(range, memory, protection)?;
        let writable = protection.contains(Protection::WRITE);
        self.pages.extend(range.iter_pages().map(|page| (page.0, writable)));
        Ok(())
    }

    fn unmap_device(&mut self, range: GpaRange) -> io::Result<()> {
        self.unmap(range)?;
        SoftMirror::new(self.memory.clone()).free_device(range)
    }

    fn free_device(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }
}
