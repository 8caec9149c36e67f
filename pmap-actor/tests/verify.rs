//! Whatever the pmap is asked to do, its tables, its books, the memory object and the host's own
//! mapping agree afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::contract::device::{PassthruDevice, ScatterList, Segment};
use actors::contract::page::Touch;
use actors::contract::space::{FaultOrigin, NestedFault, SpaceError};
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{Access, Gpa, GpaRange, PAGE_SIZE, Protection, VcpuId};
use pmap_actor::handle::SpaceHandle;
use pmap_actor::host::huge::{HugePages, HugeSupport, free_reserved};
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::host::userfault::Userfault;
use pmap_actor::roster::Roster;
use pmap_actor::space_actor::{Consumer, ShootdownMode, SpaceConfig, start};
use shootdown::Domain;

const BLOCK: u64 = 512;
const PAGES: u64 = 3 * BLOCK;
const RWX: Protection = Protection::all();
const RW: Protection = Protection::READ.union(Protection::WRITE);
const RX: Protection = Protection::READ.union(Protection::EXECUTE);
const STEPS: u64 = 400;

fn pages(first: u64, count: u64) -> GpaRange {
    GpaRange::new(Gpa(first * PAGE_SIZE), count * PAGE_SIZE).unwrap()
}

fn config(consumer: Consumer) -> SpaceConfig {
    let layout = MemoryLayout::split(PAGES * PAGE_SIZE, LOWMEM_LIMIT, 48).unwrap();
    let roster = Roster::new(1);
    roster.enter(VcpuId(0), 0, Arc::new(|| {}));
    SpaceConfig {
        memory: Arc::new(GuestMemory::new(layout).unwrap()),
        consumer,
        domain: Arc::new(Domain::new(1)),
        roster: Arc::new(roster),
        mode: ShootdownMode::Auto,
        fault_around_pages: 4,
        spin_for_faults: Duration::ZERO,
        trace: None,
        epoch: Instant::now(),
        swap: None,
        resident_limit_bytes: None,
        harvest_every: None,
        swap_fault: None,
        tell: Arc::new(|_| {}),
    }
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % end
    }

    fn range(&mut self) -> GpaRange {
        if self.below(3) == 0 {
            return pages(self.below(PAGES / BLOCK) * BLOCK, BLOCK);
        }
        let count = 1 + self.below(40);
        pages(self.below(PAGES - count + 1), count)
    }
}

/// As much memory of a device as that.
fn device(range: GpaRange) -> ScatterList {
    let file = tempfile::tempfile().unwrap();
    file.set_len(range.len()).unwrap();
    let all = Segment { offset: 0, len: range.len() };
    ScatterList::new(Arc::new(file), vec![all]).unwrap()
}

fn touch(space: &SpaceHandle, page: u64, access: Access) -> Result<(), SpaceError> {
    let origin = FaultOrigin { gva: None, is_table_walk: false, rip: 0, cr3: 0 };
    space.fault(NestedFault { vcpu: VcpuId(0), gpa: Gpa(page * PAGE_SIZE), access, origin })
}

/// One step; what a state forbids may be refused.
fn step(space: &SpaceHandle, numbers: &mut Numbers) -> String {
    let range = numbers.range();
    let first = range.start().0 / PAGE_SIZE;
    match numbers.below(13) {
        0..=2 => {
            // What userfaultfd can report.
            let access = [Access::Read, Access::Write][usize::from(numbers.below(2) == 1)];
            format!("touch {first} {access:?}: {:?}", touch(space, first, access))
        }
        3 | 4 => {
            for page in first..first + range.pages() {
                drop(touch(space, page, Access::Write));
            }
            let promoted = space.promote(pages(0, PAGES));
            format!("write all of {range}, promote: {promoted:?}")
        }
        5 => format!("forget {range}: {:?}", space.forget(range)),
        6 => format!("protect {range}: {:?}", space.protect(range, RX)),
        7 => format!("protect {range} no more: {:?}", space.protect(range, RWX)),
        8 => format!("harvest {range}: {:?}", space.harvest(range, Touch::all()).is_ok()),
        9 => format!("demote {range}: {:?}", space.demote(range)),
        10 => {
            let gone = space.unmap(range);
            let device = space.map_device(range, device(range), RW);
            format!("unmap {range} and show a device there: {gone:?}, {device:?}")
        }
        11 => {
            let device = PassthruDevice { segment: 0, bus: 1, function: 0 };
            let reached = space.assign_passthru(device);
            let refused = space.protect(range, RX);
            assert!(reached.is_err() || refused.is_err(), "memory changed meanwhile");
            let verified = space.verify().unwrap();
            assert!(verified.agrees(), "{verified}\nwith a passthru device");
            let done = space.unassign_passthru(device);
            format!(
                "a passthru device: {reached:?}, protect {range} meanwhile: {refused:?}, {done:?}"
            )
        }
        _ => {
            let gone = space.unmap(range);
            let back = space.map(range, RWX);
            format!("unmap {range}: {gone:?}, {back:?}")
        }
    }
}

fn agrees_after_every_step(consumer: Consumer) {
    let (space, threads) = start(config(consumer)).unwrap();
    space.map(pages(0, PAGES), RWX).unwrap();
    let mut numbers = Numbers(42);
    let mut done = Vec::new();
    for _ in 0..STEPS {
        done.push(step(&space, &mut numbers));
        let verified = space.verify().unwrap();
        let last = done.iter().rev().take(5).collect::<Vec<_>>();
        assert!(verified.agrees(), "{verified}\nafter, newest first: {last:#?}");
    }
    let tally = space.count().unwrap();
    let superpages = tally.pmap.promotions + tally.pmap.superpages_entered;
    let expected = match consumer {
        Consumer::Kvm { superpages, .. } => superpages && HugeSupport::probe().is_ok(),
        Consumer::Soft { superpages, .. } => superpages,
    };
    assert_eq!(superpages > 0, expected, "{:?}", tally.pmap);
    assert_eq!(tally.pmap.demotions > 0, expected, "{:?}", tally.pmap);
    drop(space.retire().unwrap());
    threads.into_iter().for_each(|(_, thread)| thread.join());
}

#[test]
fn the_tables_agree_with_the_hosts_mapping_after_every_step() {
    if let Err(why) = Userfault::open() {
        eprintln!("not tested here: {why}");
        return;
    }
    for superpages in [false, true] {
        agrees_after_every_step(Consumer::Kvm { skip_unmap: false, superpages });
    }
}

#[test]
fn the_tables_of_a_walker_agree_with_the_books_after_every_step() {
    for (hardware_ad, superpages) in [(false, false), (false, true), (true, false), (true, true)] {
        agrees_after_every_step(Consumer::Soft { hardware_ad, superpages });
    }
}

#[test]
fn a_mirror_that_forgets_to_unmap_is_found() {
    if let Err(why) = Userfault::open() {
        eprintln!("not tested here: {why}");
        return;
    }
    let consumer = Consumer::Kvm { skip_unmap: true, superpages: false };
    let (space, threads) = start(config(consumer)).unwrap();
    space.map(pages(0, PAGES), RWX).unwrap();
    touch(&space, 5, Access::Write).unwrap();
    assert!(space.verify().unwrap().agrees());
    space.forget(pages(5, 1)).unwrap();
    let verified = space.verify().unwrap();
    assert_eq!(verified.count, 1, "{verified}");
    let expected = "guest-physical 0x5000: our tables have nothing, but the host maps it";
    assert_eq!(verified.differences[0].to_string(), expected);
    drop(space.retire().unwrap());
    threads.into_iter().for_each(|(_, thread)| thread.join());
}

#[test]
fn stores_to_reserved_huge_pages_cannot_be_watched_on_kvm_and_whoever_asks_changes_nothing() {
    let needed = PAGES / BLOCK;
    if Userfault::open().is_err() || free_reserved().is_none_or(|free| free < needed) {
        eprintln!("not tested here: no userfaultfd, or no {needed} reserved huge pages to spare");
        return;
    }
    let mut config = config(Consumer::Kvm { skip_unmap: false, superpages: true });
    let layout = config.memory.layout();
    config.memory = Arc::new(GuestMemory::with_pages(layout, HugePages::Reserved).unwrap());
    let (space, threads) = start(config).unwrap();
    let all = pages(0, PAGES);
    space.map(all, RWX).unwrap();
    space.wire(all).unwrap();
    for refused in [
        space.begin_dirty().map(drop),
        space.protect(pages(3, 1), RX),
        space.harvest(all, Touch::all()).map(drop),
    ] {
        assert!(refused.unwrap_err().to_string().contains("mapped as a whole"));
    }
    assert!(space.harvest(all, Touch::ACCESSED).is_ok());
    let verified = space.verify().unwrap();
    assert!(verified.agrees(), "{verified}");
    assert_eq!((verified.mapped_pages, verified.superpages), (PAGES, needed));
    drop(space.retire().unwrap());
    threads.into_iter().for_each(|(_, thread)| thread.join());
}
