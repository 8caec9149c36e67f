//! The vmspace against a dumb model: after every operation, each page is reachable exactly
//! as the model says, in our tables and in the host mapping alike; or, where an engine walks
//! the tables itself, for a walker in either layout.

use std::collections::BTreeMap;

use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::mirror::{MappedHuge, Promoted, SoftMirror};

/// A host mapping as a table of pages: present means reachable, the value means writable.
struct ScriptedMirror {
    memory: Arc<GuestMemory>,
    pages: BTreeMap<u64, bool>,
    refused: Vec<GpaRange>,
}

impl ScriptedMirror {
    fn put(&mut self, range: GpaRange, writable: bool) -> io::Result<Installed> {
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
    fn map_huge(&mut self, block: GpaRange) -> io::Result<MappedHuge> {
        self.put(block, true).map(|_| MappedHuge::Huge)
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
    VmSpace::new(memory.clone(), flags, SoftMirror::new(memory), 1)
}

fn space(around: u64) -> VmSpace<ScriptedMirror> {
    let memory = memory();
    let mirror =
        ScriptedMirror { memory: memory.clone(), pages: BTreeMap::new(), refused: Vec::new() };
    VmSpace::new(memory, PmapFlags::EMULATE_AD_BITS, mirror, around)
}

fn store_if(write: bool) -> Access {
    if write { Access::Write } else { Access::Read }
}

fn full(around: u64) -> VmSpace<ScriptedMirror> {
    let mut space = space(around);
    space.map(range(0, PAGES), RWX).unwrap();
    space
}

#[test]
fn a_first_touch_brings_its_neighbours_and_nothing_beyond_the_window() {
    let mut space = full(16);
    assert_eq!(space.fault(Gpa(0x5123), Access::Write).unwrap(), Served::ZeroFilled(16));
    assert_eq!(space.tables().leaves(), 16);
    assert_eq!(space.extract(Gpa(0x5123)), Some(0x5123));
    assert_eq!(space.extract(Gpa(0x10_000)), None);
}

#[test]
fn a_second_report_of_a_served_fault_only_wakes() {
    let mut space = full(1);
    assert_eq!(space.fault(Gpa(0), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert_eq!(space.fault(Gpa(0), Access::Read).unwrap(), Served::AlreadyThere);
}

#[test]
fn a_page_whose_mapping_the_host_dropped_is_mapped_again_not_zeroed() {
    let mut space = full(1);
    let _ = space.fault(Gpa(0), Access::Write).unwrap();
    space.mirror.pages.clear();
    assert_eq!(space.fault(Gpa(0), Access::Write).unwrap(), Served::MappedExisting(1));
}

#[test]
fn a_touch_of_a_hole_is_a_hole_and_a_store_to_read_only_memory_is_that() {
    let mut space = space(16);
    assert!(matches!(space.fault(Gpa(0), Access::Read), Err(Unserved::Hole)));
    space.map(range(0, 1), RX).unwrap();
    assert!(matches!(space.fault(Gpa(0), Access::Write), Err(Unserved::Forbidden)));
    assert_eq!(space.fault(Gpa(0), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert!(!space.mirror.pages[&0], "read-only memory is mapped read-only");
}

#[test]
fn unmapped_frames_stay_until_the_shootdown_gives_them_back() {
    let mut space = full(1);
    let memory = space.memory().clone();
    memory.backing().write_obj(7u64, GuestAddress(0x3000)).unwrap();
    space.hold(&[range(3, 1)], RWX).unwrap();
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
    let _ = space.fault(Gpa(0), Access::Write).unwrap();
    assert_eq!(space.protect(range(0, 1), RX).unwrap().translations(), 1);
    assert!(space.protect(range(0, 1), RX).unwrap().is_harmless());
    assert!(space.protect(range(0, 1), RWX).unwrap().is_harmless());
    assert_eq!(
        space.protect(range(0, 1), Protection::READ | Protection::WRITE).unwrap().translations(),
        1
    );
    assert_eq!(space.protect(range(0, 1), Protection::empty()).unwrap().translations(), 1);
    assert!(matches!(space.fault(Gpa(0), Access::Read), Err(Unserved::Hole)));
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
    space.hold(&[range(3, 2)], RWX).unwrap();
    assert_eq!(
        space.unmap(range(4, 1)).unwrap_err(),
        SpaceError::WrongState { range: range(4, 1), state: "held" }
    );
    space.release(&[range(3, 2)], false).unwrap();
    space.wire(range(4, 1), || {}).unwrap();
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
    assert!(matches!(space.fault(Gpa(0), Access::Execute), Err(Unserved::Forbidden)));
    assert_eq!(space.tables().leaves(), 0);
    let removed = space.protect(range(0, 1), RX).unwrap();
    assert!(removed.is_harmless());
    assert_eq!(space.fault(Gpa(0), Access::Execute).unwrap(), Served::ZeroFilled(1));
}

#[test]
fn a_fault_sets_the_emulated_bits_that_somebody_cleared() {
    let mut space = soft(PmapFlags::EMULATE_AD_BITS);
    space.map(range(0, 1), Protection::READ | Protection::WRITE).unwrap();
    space.fault(Gpa(0), Access::Write).unwrap();
    let (masks, view) = (*space.tables().masks(), space.tables().view());
    let clear = masks.accessed | masks.modified;
    space.tables.update(range(0, 1), |leaf| leaf.entry & !clear, |_, _, _| {});
    assert_eq!(space.fault(Gpa(0), Access::Read).unwrap(), Served::MappedExisting(1));
    assert!(view.translate(Gpa(0), Access::Read).is_ok_and(|found| !found.writable));
    assert_eq!(space.fault(Gpa(0), Access::Write).unwrap(), Served::WriteUnprotected);
    assert!(view.translate(Gpa(0), Access::Write).is_ok());
    assert_eq!(space.fault(Gpa(0), Access::Write).unwrap(), Served::AlreadyThere);
}

#[test]
fn what_a_walker_finds_is_the_page_itself_zeroed_once_and_kept_until_it_is_freed() {
    let mut space = soft(PmapFlags::empty());
    space.map(range(0, PAGES), RWX).unwrap();
    let (memory, view) = (space.memory().clone(), space.tables().view());
    space.fault(Gpa(0x3000), Access::Write).unwrap();
    memory.backing().write_obj(7u64, GuestAddress(0x3000)).unwrap();
    let removed = space.forget(range(3, 1)).unwrap();
    space.give_back(removed).unwrap();
    assert_eq!(space.fault(Gpa(0x3000), Access::Read).unwrap(), Served::MappedExisting(1));
    let frame = view.translate(Gpa(0x3000), Access::Read).unwrap().frame;
    let host = memory.host_of_frame(frame, PAGE_SIZE).unwrap().as_ptr();
    assert_eq!(host, memory.backing().get_host_address(GuestAddress(0x3000)).unwrap());
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 7);
    let removed = space.unmap(range(3, 1)).unwrap();
    space.give_back(removed).unwrap();
    space.map(range(3, 1), RWX).unwrap();
    assert_eq!(space.fault(Gpa(0x3000), Access::Read).unwrap(), Served::ZeroFilled(1));
    assert_eq!(memory.backing().read_obj::<u64>(GuestAddress(0x3000)).unwrap(), 0);
}

/// What the model says about one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Page {
    mapped: bool,
    writable: bool,
    readable: bool,
    reachable: bool,
    wired: bool,
    /// Stored to since it became reachable.
    dirty: bool,
}

impl Page {
    fn forget(&mut self) {
        (self.reachable, self.dirty) = (false, false);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map(GpaRange, bool),
    Unmap(GpaRange),
    Forget(GpaRange),
    Protect(GpaRange, u8),
    Wire(GpaRange),
    Unwire(GpaRange),
    Touch(u64, bool),
}

fn steps() -> impl Strategy<Value = Step> {
    let ranges =
        || (0..PAGES, 1..=12u64).prop_map(|(start, len)| range(start, len.min(PAGES - start)));
    prop_oneof![
        (ranges(), any::<bool>()).prop_map(|(range, writable)| Step::Map(range, writable)),
        ranges().prop_map(Step::Unmap),
        ranges().prop_map(Step::Forget),
        (ranges(), 0..8u8).prop_map(|(range, bits)| Step::Protect(range, bits)),
        ranges().prop_map(Step::Wire),
        ranges().prop_map(Step::Unwire),
        (0..PAGES, any::<bool>()).prop_map(|(page, write)| Step::Touch(page, write)),
        (0..PAGES, any::<bool>()).prop_map(|(page, write)| Step::Touch(page, write)),
    ]
}

fn of(model: &[Page], range: GpaRange) -> impl Iterator<Item = (usize, Page)> {
    let first = usize::try_from(range.start().0 / PAGE_SIZE).unwrap();
    let pages = usize::try_from(range.pages()).unwrap();
    (first..first + pages).map(move |index| (index, model[index]))
}

fn set(model: &mut [Page], range: GpaRange, change: impl Fn(&mut Page)) {
    let first = usize::try_from(range.start().0 / PAGE_SIZE).unwrap();
    let pages = usize::try_from(range.pages()).unwrap();
    model[first..first + pages].iter_mut().for_each(change);
}

/// Does `step` to both; the answers must agree. `touch` does as a guest would.
fn follow<M: Mirror>(
    space: &mut VmSpace<M>,
    model: &mut [Page],
    step: &Step,
    touch: impl Fn(&mut VmSpace<M>, Gpa, Access) -> bool,
) {
    let all = |range, test: fn(Page) -> bool, model: &[Page]| {
        of(model, range).all(|(_, page)| test(page))
    };
    match *step {
        Step::Map(range, writable) => {
            let allowed = all(range, |page| !page.mapped, model);
            assert_eq!(space.map(range, if writable { RWX } else { RX }).is_ok(), allowed);
            if allowed {
                set(model, range, |page| {
                    *page = Page { mapped: true, readable: true, writable, ..Page::default() }
                });
            }
        }
        Step::Unmap(range) => {
            let allowed = all(range, |page| page.mapped && !page.wired, model);
            let removed = space.unmap(range);
            assert_eq!(removed.is_ok(), allowed);
            if let Ok(removed) = removed {
                let reachable = of(model, range).filter(|(_, page)| page.reachable).count();
                assert_eq!(removed.translations(), reachable as u64);
                space.give_back(removed).unwrap();
                set(model, range, |page| *page = Page::default());
            }
        }
        Step::Forget(range) => {
            let allowed = all(range, |page| page.mapped && !page.wired, model);
            let removed = space.forget(range);
            assert_eq!(removed.is_ok(), allowed);
            if let Ok(removed) = removed {
                space.give_back(removed).unwrap();
                set(model, range, Page::forget);
            }
        }
        Step::Protect(range, bits) => {
            let protection = Protection::from_bits_truncate(bits);
            let readable = protection.contains(Protection::READ);
            let wired = of(model, range).any(|(_, page)| page.wired);
            let allowed = all(range, |page| page.mapped, model) && (readable || !wired);
            let removed = space.protect(range, protection);
            assert_eq!(removed.is_ok(), allowed);
            if let Ok(removed) = removed {
                space.give_back(removed).unwrap();
                set(model, range, |page| {
                    page.readable = readable;
                    page.writable = protection.contains(Protection::WRITE);
                    if !readable {
                        page.forget();
                    }
                });
            }
        }
        Step::Wire(range) => {
            // Wiring what nobody may read is left out: the guest could not reach it anyway.
            if all(range, |page| page.mapped && page.readable, model) {
                space.wire(range, || {}).unwrap();
                set(model, range, |page| (page.wired, page.reachable) = (true, true));
            }
        }
        Step::Unwire(range) => {
            let allowed = all(range, |page| page.mapped && page.wired, model);
            assert_eq!(space.unwire(range).is_ok(), allowed);
            if allowed {
                set(model, range, |page| page.wired = false);
            }
        }
        Step::Touch(index, write) => {
            let page = &mut model[usize::try_from(index).unwrap()];
            let allowed = page.mapped && page.readable && (!write || page.writable);
            assert_eq!(touch(space, Gpa(index * PAGE_SIZE), store_if(write)), allowed);
            page.reachable |= allowed;
            page.dirty |= allowed && write;
        }
    }
}

/// Follows the whole script, and looks at every page after every step.
fn run<M: Mirror>(
    mut space: VmSpace<M>,
    script: &[Step],
    touch: impl Fn(&mut VmSpace<M>, Gpa, Access) -> bool,
    check: impl Fn(&VmSpace<M>, Gpa, &Page),
) {
    let mut model = vec![Page::default(); usize::try_from(PAGES).unwrap()];
    let masks = *space.tables().masks();
    for step in script {
        follow(&mut space, &mut model, step, &touch);
        for (page, gpa) in model.iter().zip((0..PAGES).map(|index| Gpa(index * PAGE_SIZE))) {
            let leaf = space.tables().leaf(gpa).map(|leaf| leaf.entry);
            let writable = leaf.map(|leaf| leaf & masks.writable != 0);
            let wired = leaf.is_some_and(|leaf| leaf & masks.wired != 0);
            assert_eq!(writable, page.reachable.then_some(page.writable), "{gpa} after {step:?}");
            assert_eq!(wired, page.wired, "{gpa} after {step:?}");
            if let Some(leaf) = leaf {
                let expected = if masks.emulated { page.writable } else { page.dirty };
                assert_eq!(leaf & masks.modified != 0, expected, "{gpa} after {step:?}");
                assert!(!Masks::is_misconfigured(leaf, 1, PmapFlags::empty()));
            }
            check(&space, gpa, page);
        }
        let reachable = model.iter().filter(|page| page.reachable).count() as u64;
        assert_eq!(space.tables().leaves(), reachable);
        assert_eq!(space.wired_pages(), model.iter().filter(|page| page.wired).count() as u64);
    }
}

/// A vcpu that walks: it asks only for what it does not find, and then finds it.
fn walk_or_ask(space: &mut VmSpace<SoftMirror>, gpa: Gpa, access: Access) -> bool {
    let view = space.tables().view();
    if view.translate(gpa, access).is_ok() {
        return true;
    }
    let served = space.fault(gpa, access).is_ok();
    assert_eq!(view.translate(gpa, access).is_ok(), served);
    served
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Fault-around is off, so the model can say exactly which page is reachable.
    #[test]
    fn tables_and_host_mapping_say_what_the_model_says(script in prop::collection::vec(steps(), 1..60)) {
        let touch = |space: &mut VmSpace<_>, gpa, access| space.fault(gpa, access).is_ok();
        run(space(1), &script, touch, |space, gpa, page| {
            let mapped = space.mirror.pages.get(&gpa.0).copied();
            assert_eq!(mapped, page.reachable.then_some(page.writable), "{gpa}");
        });
    }

    #[test]
    fn a_walker_finds_what_the_model_says_in_both_layouts(script in prop::collection::vec(steps(), 1..60)) {
        for flags in [PmapFlags::EMULATE_AD_BITS, PmapFlags::empty()] {
            let hardware = flags.is_empty();
            run(soft(flags), &script, walk_or_ask, |space, gpa, page| {
                let found = space.tables().view().translate(gpa, Access::Read);
                let expected = page.reachable.then_some((
                    space.memory().frame_of(gpa),
                    page.writable && (page.dirty || !hardware),
                ));
                assert_eq!(found.ok().map(|found| (found.frame, found.writable)), expected, "{gpa}");
            });
        }
    }

    #[test]
    fn fault_around_never_reaches_outside_the_entry_or_changes_what_is_there(
        script in prop::collection::vec(steps(), 1..60),
        around in 2..20u64,
    ) {
        let mut space = space(around);
        for step in &script {
            match *step {
                Step::Map(range, writable) => drop(space.map(range, if writable { RWX } else { RX })),
                Step::Unmap(range) => {
                    if let Ok(removed) = space.unmap(range) {
                        space.give_back(removed).unwrap();
                    }
                }
                Step::Touch(page, write) => drop(space.fault(Gpa(page * PAGE_SIZE), store_if(write))),
                _ => {}
            }
            for gpa in range(0, PAGES).iter_pages() {
                let entry = space.map.lookup(gpa);
                if let Some(Leaf { entry: leaf, .. }) = space.tables().leaf(gpa) {
                    let writable = leaf & space.tables().masks().writable != 0;
                    prop_assert_eq!(entry.map(|entry| entry.protection.contains(Protection::WRITE)), Some(writable));
                    prop_assert_eq!(space.mirror.pages.get(&gpa.0).copied(), Some(writable));
                    prop_assert!(space.is_resident(gpa));
                } else {
                    prop_assert_eq!(space.mirror.pages.get(&gpa.0), None);
                }
            }
        }
    }
}
