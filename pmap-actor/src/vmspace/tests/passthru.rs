//! Devices that reach the guest's memory by themselves: what they need of it, and what cannot be done meanwhile.

use actors::contract::device::{DmaMapping, NoPassthru, PassthruDevice, Segment};
use actors::contract::page::Advice;

use super::*;

const RW: Protection = Protection::READ.union(Protection::WRITE);

fn device(bus: u8) -> PassthruDevice {
    PassthruDevice { segment: 0, bus, function: 8 }
}

fn assign<M: Mirror>(space: &mut VmSpace<M>, bus: u8) -> Result<Vec<DmaMapping>, SpaceError> {
    space.assign_passthru(device(bus), || {})
}

fn registers() -> ScatterList {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    ScatterList::new(Arc::new(file), vec![Segment { offset: 0, len: PAGE_SIZE }]).unwrap()
}

#[test]
fn the_first_device_has_all_memory_wired_and_the_last_one_that_goes_unwires_what_was_not_wired_before()
 {
    let mut space = full(1);
    assert_eq!(space.wire(range(8, 4), || {}).unwrap(), Done::Now);
    assert!(space.domain().is_none());
    let reached = assign(&mut space, 1).unwrap();
    assert_eq!(reached, [DmaMapping { range: range(0, PAGES), frame: 0, protection: RW }]);
    assert_eq!((space.wired_pages(), space.resident_pages()), (PAGES, PAGES));
    assert_eq!(assign(&mut space, 2).unwrap(), reached);
    space.unassign_passthru(device(1)).unwrap();
    assert_eq!(space.wired_pages(), PAGES);
    let in_it: Vec<_> = space.domain().unwrap().devices().collect();
    assert_eq!(in_it, [device(2)]);
    space.unassign_passthru(device(2)).unwrap();
    assert!(space.domain().is_none());
    assert_eq!(space.wired_pages(), 4);
    let done = space.unmap(range(12, PAGES - 12)).unwrap();
    space.give_back(done).unwrap();
}

#[test]
fn a_device_reaches_what_the_guest_may_read_with_the_guest_s_rights_and_no_device_s_memory() {
    let layout = MemoryLayout::split(PAGES * PAGE_SIZE, 32 * PAGE_SIZE, 48).unwrap();
    let memory = Arc::new(GuestMemory::new(layout).unwrap());
    let settings = settings(PmapFlags::empty(), 1);
    let mut space = VmSpace::new(memory.clone(), settings, SoftMirror::new(memory));
    let high = GpaRange::new(Gpa(4 << 30), 32 * PAGE_SIZE).unwrap();
    for (range, protection) in [
        (range(0, 4), RWX),
        (range(4, 4), RW),
        (range(8, 2), RX),
        (range(11, 3), Protection::empty()),
        (range(16, 16), RW),
        (high, RW),
    ] {
        space.map(range, protection).unwrap();
    }
    space.map_device(range(10, 1), &registers(), RW).unwrap();
    let read = Protection::READ;
    let reached = assign(&mut space, 1).unwrap();
    assert_eq!(
        reached,
        [
            DmaMapping { range: range(0, 8), frame: 0, protection: RW },
            DmaMapping { range: range(8, 2), frame: 8 * PAGE_SIZE, protection: read },
            DmaMapping { range: range(16, 16), frame: 16 * PAGE_SIZE, protection: RW },
            DmaMapping { range: high, frame: 32 * PAGE_SIZE, protection: RW },
        ]
    );
    for mapping in reached {
        for (page, index) in mapping.range.iter_pages().zip(0..) {
            assert_eq!(space.extract(page), Some(mapping.frame + index * PAGE_SIZE));
        }
    }
}

#[test]
fn memory_stays_as_it_is_while_a_device_reaches_it_and_a_device_s_own_may_come_and_go() {
    let fixed = |range| SpaceError::from(NoPassthru::Fixed(range));
    let wired = |range| SpaceError::WrongState { range, state: "wired" };
    let unseen = SpaceError::from(NoPassthru::Unseen);
    let mut space = space(1);
    space.map(range(0, 32), RWX).unwrap();
    assign(&mut space, 1).unwrap();
    let some = range(4, 2);
    assert_eq!(space.map(range(40, 2), RWX), Err(fixed(range(40, 2))));
    assert_eq!(space.unmap(some).unwrap_err(), wired(some));
    assert_eq!(space.forget(some).unwrap_err(), wired(some));
    assert_eq!(space.advise(some, Advice::Free).unwrap_err(), wired(some));
    assert_eq!(space.protect(some, RX).unwrap_err(), fixed(some));
    assert_eq!(space.protect(some, Protection::empty()).unwrap_err(), fixed(some));
    assert_eq!(space.unwire(some).unwrap_err(), fixed(some));
    assert_eq!(space.page_out(some).unwrap_err(), SpaceError::NoStore(some));
    assert_eq!(space.begin_dirty().unwrap_err(), unseen);
    assert_eq!(space.harvest(some, Touch::MODIFIED).unwrap_err(), unseen);
    assert_eq!(space.tables().leaves(), 32);
    assert_eq!(space.wired_pages(), 32);

    // What looks, holds, or is a device's.
    let (done, found) = space.harvest(some, Touch::ACCESSED).unwrap();
    assert_eq!((found.accessed.count(), done.translations()), (2, 0));
    assert_eq!(space.hold(&[some], RWX).unwrap(), Done::Now);
    space.release(&[some], false).unwrap();
    space.map_device(range(40, 1), &registers(), RW).unwrap();
    let done = space.unmap(range(40, 1)).unwrap();
    space.give_back(done).unwrap();

    space.unassign_passthru(device(1)).unwrap();
    let done = space.unmap(some).unwrap();
    space.give_back(done).unwrap();
}

#[test]
fn what_devices_could_store_to_was_stored_to_when_the_last_one_has_gone() {
    let mut space = full(1);
    // Wired before, and harvested since: its entries do not say that they were stored to.
    assert_eq!(space.wire(range(8, 4), || {}).unwrap(), Done::Now);
    let (done, _) = space.harvest(range(0, PAGES), Touch::MODIFIED).unwrap();
    space.give_back(done).unwrap();
    let done = space.protect(range(20, 2), RX).unwrap();
    space.give_back(done).unwrap();
    assign(&mut space, 1).unwrap();
    space.unassign_passthru(device(1)).unwrap();
    let (done, found) = space.harvest(range(0, PAGES), Touch::MODIFIED).unwrap();
    space.give_back(done).unwrap();
    let missing: Vec<_> = (0..PAGES).filter(|page| !found.modified.contains(*page)).collect();
    assert_eq!(missing, [20, 21], "all but what no device could store to");
}

#[test]
fn memory_that_leaves_and_a_device_are_refused_together_by_the_flags_names() {
    for (slots, resident_bytes, flags) in [
        (0, 1 << 20, "not together with --resident"),
        (9, u64::MAX, "not together with --swap"),
        (9, 1 << 20, "not together with --resident and --swap"),
    ] {
        let memory = memory();
        let store = Some(StoreLimits { slots, resident_bytes });
        let settings = Settings { store, ..settings(PmapFlags::empty(), 1) };
        let mut space = VmSpace::new(memory.clone(), settings, SoftMirror::new(memory));
        space.map(range(0, PAGES), RWX).unwrap();
        let refused = assign(&mut space, 1).unwrap_err().to_string();
        assert!(refused.ends_with(flags), "{refused}");
        assert!(space.domain().is_none() && space.wired_pages() == 0);
    }
}

#[test]
fn a_device_whose_stores_somebody_would_count_is_refused_until_he_does_not() {
    let mut space = full(1);
    let consumer = space.begin_dirty().unwrap();
    assert_eq!(assign(&mut space, 1).unwrap_err(), NoPassthru::Unseen.into());
    space.end_dirty(consumer).unwrap();
    assign(&mut space, 1).unwrap();
}

#[test]
fn memory_that_does_not_fit_is_said_to_and_nothing_stays_wired() {
    let mut space = space(1);
    space.map(range(0, 8), RWX).unwrap();
    space.map(range(16, 8), RWX).unwrap();
    space.mirror.broken = Some(Gpa(20 * PAGE_SIZE));
    let refused = assign(&mut space, 1).unwrap_err().to_string();
    let said = format!("all {} bytes of the guest's memory must be wired", PAGES * PAGE_SIZE);
    assert!(refused.starts_with(&said) && refused.contains("out of memory"), "{refused}");
    assert!(space.domain().is_none() && space.wired_pages() == 0);
    space.mirror.broken = None;
    assign(&mut space, 1).unwrap();
    assert_eq!(space.wired_pages(), 16);
}

#[test]
fn a_device_is_assigned_once_and_unassigned_once() {
    let mut space = full(1);
    let gone = SpaceError::from(NoPassthru::NotAssigned(device(1)));
    assert_eq!(space.unassign_passthru(device(1)), Err(gone.clone()));
    assign(&mut space, 1).unwrap();
    assert_eq!(assign(&mut space, 1).unwrap_err(), NoPassthru::Assigned(device(1)).into());
    let other = NoPassthru::NotAssigned(device(2)).into();
    assert_eq!(space.unassign_passthru(device(2)), Err(other));
    assert_eq!(space.wired_pages(), PAGES, "nobody else's leaving ends the domain");
    space.unassign_passthru(device(1)).unwrap();
    assert_eq!(space.unassign_passthru(device(1)), Err(gone));
}
