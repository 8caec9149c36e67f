//! The vmspace against a dumb model: after every operation, each page is reachable exactly
//! as the model says, in our tables and in the host mapping alike; or, where an engine walks
//! the tables itself, for a walker in either layout.

mod device;
mod found;
mod model;
mod passthru;

use std::collections::BTreeMap;

use actors::contract::device::ScatterList;
use actors::contract::page::Touch;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use vm_memory::{Bytes, GuestAddress};

use actors::{Access, Protection};

use super::*;
use crate::host::userfault::Installed;
use crate::mirror::{Contents, MappedHuge, Promoted, SoftMirror};

/// A host mapping as a table of pages: present means reachable, the value means writable.
struct ScriptedMirror {
    memory: Arc<GuestMemory>,
    pages: BTreeMap<u64, bool>,
    refused: Vec<GpaRange>,
    /// What it was told to take out of reach, call by call.
    unmapped: Vec<GpaRange>,
    /// Where the host has no memory.
    broken: Option<Gpa>,
}

impl ScriptedMirror {
    fn put(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
        if self.broken.is_some_and(|broken| range.contains(broken)) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let mut done = 0;
        for page in range.iter_pages() {
            if self.pages.contains_key(&page.0) {
                break;
            }
            self.pages.insert(page.0, writable);
            done += PAGE_SIZE;
        }
        Ok(if done == 0 { Installed::AlreadyThere } else { Installed::Bytes(done) })
    }
}

impl Mirror for ScriptedMirror {
    fn map_zeroed(&mut self, range: GpaRange) -> io::Result<Installed> {
        self.put(range, true)
    }
    fn map_existing(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
        self.put(range, writable)
    }
    fn set_writable(&mut self, range: GpaRange, writable: bool) -> io::Result<()> {
        for (_, state) in self.pages.range_mut(range.start().0..range.end().0) {
            *state = writable;
        }
        Ok(())
    }
    fn unmap(&mut self, range: GpaRange) -> io::Result<()> {
        self.unmapped.push(range);
        self.pages.retain(|page, _| !range.contains(Gpa(*page)));
        Ok(())
    }
    fn free(&mut self, range: GpaRange) -> io::Result<()> {
        self.memory.free(range)
    }
    fn refuse(&mut self, range: GpaRange) -> io::Result<()> {
        self.refused.push(range);
        Ok(())
    }
    fn admit(&mut self, range: GpaRange) -> io::Result<()> {
        self.refused.retain(|page| *page != range);
        Ok(())
    }
    fn wake(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }
    fn mend(&mut self, page: GpaRange, access: Access, may_write: bool) -> io::Result<Served> {
        if let Installed::Bytes(_) = self.put(page, may_write)? {
            return Ok(Served::MappedExisting(1));
        }
        let was_writable = self.pages.insert(page.start().0, may_write);
        Ok(if access == Access::Write && was_writable == Some(false) {
            Served::WriteUnprotected
        } else {
            Served::AlreadyThere
        })
    }
    fn promote(&mut self, _block: GpaRange) -> io::Result<Promoted> {
        Ok(Promoted::Huge)
    }
    fn map_huge(&mut self, block: GpaRange, _contents: Contents) -> io::Result<MappedHuge> {
        self.put(block, true).map(|_| MappedHuge::Huge)
    }
    fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> io::Result<()> {
        self.memory.show_device(range, memory, protection)?;
        self.put(range, protection.contains(Protection::WRITE)).map(drop)
    }
    fn unmap_device(&mut self, range: GpaRange) -> io::Result<()> {
        self.unmap(range)?;
        SoftMirror::new(self.memory.clone()).free_device(range)
    }
    fn free_device(&mut self, _range: GpaRange) -> io::Result<()> {
        Ok(())
    }
}

const PAGES: u64 = 64;
const RWX: Protection = Protection::all();
const RX: Protection = Protection::READ.union(Protection::EXECUTE);

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa(start * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
}

fn memory() -> Arc<GuestMemory> {
    let layout = MemoryLayout::split(PAGES * PAGE_SIZE, LOWMEM_LIMIT, 48).unwrap();
    Arc::new(GuestMemory::new(layout).unwrap())
}

/// For an engine that walks the tables; fault-around is off.
fn soft(flags: PmapFlags) -> VmSpace<SoftMirror> {
    let memory = memory();
    VmSpace::new(memory.clone(), settings(flags, 1), SoftMirror::new(memory))
}

fn settings(flags: PmapFlags, around: u64) -> Settings {
    let superpages = Superpages { at_once: false, writable_only: false };
    Settings { flags, around, superpages, store: None }
}

/// A fault that is served at once.
fn fault<M: Mirror>(space: &mut VmSpace<M>, gpa: Gpa, access: Access) -> Result<Served, Unserved> {
    space.fault(gpa, access).map(|outcome| match outcome {
        Outcome::Served(served) => served,
        Outcome::Waits => panic!("a fault waits"),
    })
}

fn space(around: u64) -> VmSpace<ScriptedMirror> {
    mirrored(PmapFlags::EMULATE_AD_BITS, around)
}

fn mirrored(flags: PmapFlags, around: u64) -> VmSpace<ScriptedMirror> {
    let memory = memory();
    let mirror = ScriptedMirror {
        memory: memory.clone(),
        pages: BTreeMap::new(),
        refused: Vec::new(),
        unmapped: Vec::new(),
        broken: None,
    };
    VmSpace::new(memory, settings(flags, around), mirror)
}

fn full(around: u64) -> VmSpace<ScriptedMirror> {
    let mut space = space(around);
    space.map(range(0, PAGES), RWX).unwrap();
    space
}

#[test]
fn a_first_touch_brings_its_neighbours_and_nothing_beyond_the_window() {
    let mut space = full(16);
    assert_eq!(fault(&mut space, Gpa(0x5123), Access::Write).unwrap(), Served::ZeroFilled(16));
    assert_eq!(space.tables().leaves(), 16);
    assert_eq!(space.extract(Gpa(0x5123)), Some(0x5123));
    assert_eq!(space.extract(Gpa(0x10_000)), None);
}

#[test]
fn a_second_report_of_a_served_fault_only_wakes() {
    let mut space = full(1);
    assert_eq!(fault(&mut space, Gpa(0), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert_eq!(fault(&mut space, Gpa(0), Access::Read).unwrap(), Served::AlreadyThere);
}

#[test]
fn a_page_whose_mapping_the_host_dropped_is_mapped_again_not_zeroed() {
    let mut space = full(1);
    let _ = fault(&mut space, Gpa(0), Access::Write).unwrap();
    space.mirror.pages.clear();
    assert_eq!(fault(&mut space, Gpa(0), Access::Write).unwrap(), Served::MappedExisting(1));
}

#[test]
fn a_touch_of_a_hole_is_a_hole_and_a_store_to_read_only_memory_is_that() {
    let mut space = space(16);
    assert!(matches!(fault(&mut space, Gpa(0), Access::Read), Err(Unserved::Hole)));
    space.map(range(0, 1), RX).unwrap();
    assert!(matches!(fault(&mut space, Gpa(0), Access::Write), Err(Unserved::Forbidden)));
    assert_eq!(fault(&mut space, Gpa(0), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert!(!space.mirror.pages[&0], "read-only memory is mapped read-only");
}

#[test]
fn unmapped_frames_stay_until_the_shootdown_gives_them_back() {
    let mut space = full(1);
    let memory = space.memory().clone();
    memory.backing().write_obj(7u64, GuestAddress(0x3000)).unwrap();
    assert_eq!(space.hold(&[range(3, 1)], RWX).unwrap(), Done::Now);
    space.release(&[range(3, 1)], true).unwrap();
    let removed = space.unmap(range(3, 1)).unwrap();
    assert!(!removed.is_harmless());
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 7);
    space.give_back(removed).unwrap();
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0);
}

#[test]
fn what_was_never_touched_needs_no_shootdown() {
    let mut space = full(1);
    assert!(space.unmap(range(3, 5)).unwrap().is_harmless());
    assert!(space.protect(range(9, 5), RX).unwrap().is_harmless());
    assert!(space.forget(range(20, 5)).unwrap().is_harmless());
}

#[test]
fn only_lost_rights_need_a_shootdown() {
    let mut space = full(1);
    let _ = fault(&mut space, Gpa(0), Access::Write).unwrap();
    assert_eq!(space.protect(range(0, 1), RX).unwrap().translations(), 1);
    assert!(space.protect(range(0, 1), RX).unwrap().is_harmless());
    assert!(space.protect(range(0, 1), RWX).unwrap().is_harmless());
    assert_eq!(
        space.protect(range(0, 1), Protection::READ | Protection::WRITE).unwrap().translations(),
        1
    );
    assert_eq!(space.protect(range(0, 1), Protection::empty()).unwrap().translations(), 1);
    assert!(matches!(fault(&mut space, Gpa(0), Access::Read), Err(Unserved::Hole)));
}

#[test]
fn a_refused_page_is_admitted_when_it_is_mapped_again() {
    let mut space = space(1);
    space.refuse(Gpa(0x1234)).unwrap();
    assert_eq!(space.mirror.refused, [range(1, 1)]);
    space.map(range(0, 4), RWX).unwrap();
    assert!(space.mirror.refused.is_empty());
}

#[test]
fn held_and_wired_memory_is_not_unmapped_and_wired_memory_not_forgotten() {
    let mut space = full(1);
    assert_eq!(space.hold(&[range(3, 2)], RWX).unwrap(), Done::Now);
    assert_eq!(
        space.unmap(range(4, 1)).unwrap_err(),
        SpaceError::WrongState { range: range(4, 1), state: "held" }
    );
    space.release(&[range(3, 2)], false).unwrap();
    assert_eq!(space.wire(range(4, 1), || {}).unwrap(), Done::Now);
    assert_eq!((space.wired_pages(), space.held_pages()), (1, 0));
    for refused in [
        space.unmap(range(4, 1)),
        space.forget(range(0, 9)),
        space.protect(range(4, 1), Protection::empty()),
    ] {
        assert!(matches!(refused, Err(SpaceError::WrongState { state: "wired", .. })));
    }
    space.unwire(range(4, 1)).unwrap();
    assert!(matches!(
        space.unwire(range(4, 1)),
        Err(SpaceError::WrongState { state: "not wired", .. })
    ));
    assert_eq!(space.wired_pages(), 0);
}

#[test]
fn a_fetch_needs_the_right_to_execute() {
    let mut space = soft(PmapFlags::empty());
    space.map(range(0, 1), Protection::READ | Protection::WRITE).unwrap();
    assert!(matches!(fault(&mut space, Gpa(0), Access::Execute), Err(Unserved::Forbidden)));
    assert_eq!(space.tables().leaves(), 0);
    let removed = space.protect(range(0, 1), RX).unwrap();
    assert!(removed.is_harmless());
    assert_eq!(fault(&mut space, Gpa(0), Access::Execute).unwrap(), Served::ZeroFilled(1));
}

#[test]
fn a_fault_sets_the_emulated_bits_that_a_harvest_cleared() {
    let mut space = soft(PmapFlags::EMULATE_AD_BITS);
    space.map(range(0, 1), Protection::READ | Protection::WRITE).unwrap();
    fault(&mut space, Gpa(0), Access::Write).unwrap();
    let consumer = space.begin_dirty().unwrap();
    let view = space.tables().view();
    let (removed, found) = space.harvest(range(0, 1), Touch::all()).unwrap();
    assert_eq!((found.accessed.count(), found.modified.count(), removed.translations()), (1, 1, 1));
    space.give_back(removed).unwrap();
    space.take_dirty(consumer).unwrap();
    assert!(view.translate(Gpa(0), Access::Read).is_err());
    assert_eq!(fault(&mut space, Gpa(0), Access::Read).unwrap(), Served::MappedExisting(1));
    assert!(view.translate(Gpa(0), Access::Read).is_ok_and(|found| !found.writable));
    assert_eq!(fault(&mut space, Gpa(0), Access::Write).unwrap(), Served::WriteUnprotected);
    assert!(view.translate(Gpa(0), Access::Write).is_ok());
    assert_eq!(fault(&mut space, Gpa(0), Access::Write).unwrap(), Served::AlreadyThere);
}

/// Touches these pages, ages all of memory, and says what the host was told.
fn told_of_a_harvest(space: &mut VmSpace<ScriptedMirror>, touched: &[u64]) -> Vec<GpaRange> {
    for page in touched {
        fault(space, Gpa(page * PAGE_SIZE), Access::Write).unwrap();
    }
    space.mirror.unmapped.clear();
    let (removed, found) = space.harvest_all(Touch::all()).unwrap();
    assert!(found.accessed.count() >= touched.len() as u64);
    space.give_back(removed).unwrap();
    space.mirror.unmapped.clone()
}

#[test]
fn few_pages_are_taken_out_of_reach_in_one_call_across_those_that_are_so_already() {
    // An aged page has no entry, or one that hardware can only execute.
    for flags in [PmapFlags::EMULATE_AD_BITS, PmapFlags::all()] {
        let mut space = mirrored(flags, 1);
        space.map(range(0, PAGES), RWX).unwrap();
        let all: Vec<_> = (0..32).collect();
        assert_eq!(told_of_a_harvest(&mut space, &all), [range(0, 32)]);
        // Between them pages that were aged before, and from 32 on some that never existed.
        assert_eq!(told_of_a_harvest(&mut space, &[1, 9, 17, 40, 60]), [range(1, 60)]);
    }
}

#[test]
fn what_is_in_reach_wired_or_not_mapped_does_not_come_along() {
    let mut space = full(1);
    // Locked, and nothing of it in the tables: the host would refuse to drop it.
    let _ = space.protect(range(4, 1), Protection::empty()).unwrap();
    assert_eq!(space.wire(range(4, 1), || {}).unwrap(), Done::Now);
    let removed = space.unmap(range(20, 1)).unwrap();
    space.give_back(removed).unwrap();
    let told = told_of_a_harvest(&mut space, &[1, 2, 8, 17, 23, 25]);
    assert_eq!(told, [range(1, 2), range(8, 10), range(23, 3)]);
    fault(&mut space, Gpa(30 * PAGE_SIZE), Access::Read).unwrap();
    assert!(space.is_out_of_reach(range(28, 2)) && space.is_out_of_reach(range(31, 33)));
    assert!(!space.is_out_of_reach(range(28, 3)), "a page of it is in the guest's reach");
}

#[test]
fn what_a_walker_finds_is_the_page_itself_zeroed_once_and_kept_until_it_is_freed() {
    let mut space = soft(PmapFlags::empty());
    space.map(range(0, PAGES), RWX).unwrap();
    let (memory, view) = (space.memory().clone(), space.tables().view());
    fault(&mut space, Gpa(0x3000), Access::Write).unwrap();
    memory.backing().write_obj(7u64, GuestAddress(0x3000)).unwrap();
    let removed = space.forget(range(3, 1)).unwrap();
    space.give_back(removed).unwrap();
    assert_eq!(fault(&mut space, Gpa(0x3000), Access::Read).unwrap(), Served::MappedExisting(1));
    let frame = view.translate(Gpa(0x3000), Access::Read).unwrap().frame;
    let host = memory.host_of_frame(frame, PAGE_SIZE).unwrap();
    assert_eq!(host.addr().get() as u64, memory.guest_address(Gpa(0x3000)));
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 7);
    let removed = space.unmap(range(3, 1)).unwrap();
    space.give_back(removed).unwrap();
    space.map(range(3, 1), RWX).unwrap();
    assert_eq!(fault(&mut space, Gpa(0x3000), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0);
}
