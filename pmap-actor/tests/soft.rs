//! The pmap beside an engine that walks its tables: the test plays the vcpu.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::contract::guest::{GuestFault, Tidings};
use actors::contract::space::{
    FaultOrigin, FaultService, NestedFault, SpaceError, SpaceRequest, SpaceTally,
};
use actors::contract::vcpu::Break;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{Access, ActorName, Gpa, GpaRange, Gva, PAGE_SIZE, Protection, VcpuId};
use crossbeam_channel::{Receiver, bounded, unbounded};
use pmap_actor::ept::view::Refused;
use pmap_actor::handle::SpaceHandle;
use pmap_actor::host::memory::GuestMemory;
use pmap_actor::record::{Action, FaultRecord};
use pmap_actor::roster::Roster;
use pmap_actor::space_actor::{Consumer, ShootdownMode, SpaceConfig, StartError, Threads, start};
use shootdown::{Domain, Generation, Left, SeatId};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

const PAGES: u64 = 64;
const ME: VcpuId = VcpuId(0);
const MY_SEAT: SeatId = SeatId(0);
const SOFT: Consumer = Consumer::Soft { hardware_ad: true, superpages: false };

/// A pmap of 64 mapped pages, and everything it says and does to others.
struct World {
    space: SpaceHandle,
    domain: Arc<Domain>,
    told: Receiver<Tidings>,
    records: Receiver<FaultRecord>,
    knocks: Receiver<()>,
    threads: Threads,
}

fn config(consumer: Consumer, mode: ShootdownMode) -> (SpaceConfig, Receiver<()>) {
    let layout = MemoryLayout::split(PAGES * PAGE_SIZE, LOWMEM_LIMIT, 48).unwrap();
    let roster = Roster::new(1);
    let (knock, knocks) = unbounded();
    roster.enter(ME, 0, Arc::new(move || knock.send(()).unwrap()));
    let config = SpaceConfig {
        memory: Arc::new(GuestMemory::new(layout).unwrap()),
        consumer,
        domain: Arc::new(Domain::new(1)),
        roster: Arc::new(roster),
        mode,
        fault_around_pages: 1,
        spin_for_faults: Duration::ZERO,
        trace: None,
        epoch: Instant::now(),
        swap: None,
        resident_limit_bytes: None,
        harvest_every: None,
        swap_fault: None,
        tell: Arc::new(|_| {}),
    };
    (config, knocks)
}

fn world(consumer: Consumer) -> World {
    let (mut config, knocks) = config(consumer, ShootdownMode::Auto);
    let (tell, told) = unbounded();
    let (trace, records) = unbounded();
    config.tell = Arc::new(move |news| drop(tell.send(news)));
    config.trace = Some(trace);
    let domain = config.domain.clone();
    let (space, threads) = start(config).unwrap();
    space.map(range(0, PAGES), Protection::all()).unwrap();
    World { space, domain, told, records, knocks, threads }
}

impl World {
    fn end(self) -> SpaceTally {
        let tally = self.space.retire().unwrap();
        self.threads.into_iter().for_each(|(_, thread)| thread.join());
        tally
    }
}

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa(start * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
}

fn fault(page: u64, access: Access) -> NestedFault {
    let origin =
        FaultOrigin { gva: Some(Gva(0xffff_8000)), is_table_walk: false, rip: 0x10, cr3: 0x2000 };
    NestedFault { vcpu: ME, gpa: Gpa(page * PAGE_SIZE + 5), access, origin }
}

#[test]
fn after_an_answer_the_tables_allow_what_was_asked_for() {
    for hardware_ad in [true, false] {
        let world = world(Consumer::Soft { hardware_ad, superpages: false });
        let view = world.space.view();
        assert_eq!(view.has_hardware_ad(), hardware_ad);
        for (page, access) in (3..).zip(Access::ALL) {
            let asked = fault(page, access);
            assert!(matches!(view.translate(asked.gpa, access), Err(Refused::Violation { .. })));
            world.space.fault(asked).unwrap();
            let found = view.translate(asked.gpa, access).unwrap();
            assert_eq!((found.frame, found.bytes), (page * PAGE_SIZE, PAGE_SIZE));
            world.space.fault(asked).unwrap();
        }
        let tally = world.end();
        assert_eq!((tally.faults.total, tally.faults.vcpu_known), (6, 6));
        assert_eq!((tally.faults.zero_filled, tally.faults.already_there), (3, 3));
        assert_eq!(tally.resident_bytes, 3 * PAGE_SIZE);
        assert_eq!(tally.fault_service.count, 6);
    }
}

#[test]
fn nobody_who_asks_is_slept_through() {
    const TIMES: u64 = 20_000;
    let world = world(SOFT);
    for _ in 0..TIMES {
        // Awake all the time, so that it asks again just when the actor goes to sleep.
        let (reply, mut answer) = oneshot::channel();
        let fault = fault(1, Access::Read);
        world.space.tell(SpaceRequest::Fault { fault, reply }).unwrap();
        let asked = Instant::now();
        while answer.try_recv() == Err(TryRecvError::Empty) {
            assert!(asked.elapsed() < Duration::from_secs(60), "slept through");
        }
    }
    assert_eq!(world.end().faults.total, TIMES);
}

#[test]
fn the_trace_says_what_the_vcpu_was_doing() {
    let world = world(SOFT);
    let asked = fault(7, Access::Execute);
    world.space.fault(asked).unwrap();
    let record = world.records.recv().unwrap();
    assert_eq!((record.vcpu, record.gpa, record.access), (Some(ME), asked.gpa, asked.access));
    assert_eq!((record.origin, record.action), (Some(asked.origin), Action::ZeroFilled));
    world.end();
}

#[test]
fn what_is_not_allowed_is_told_to_the_machine_and_then_answered() {
    let world = world(SOFT);
    let beyond = fault(PAGES, Access::Read);
    let at = beyond.gpa;
    assert_eq!(world.space.fault(beyond), Err(SpaceError::Hole(at)));
    let hole = Tidings::Faulted(GuestFault::Hole { vcpu: Some(ME), at });
    assert_eq!(world.told.try_recv(), Ok(hole));

    world.space.protect(range(1, 1), Protection::READ).unwrap();
    let store = fault(1, Access::Write);
    let at = store.gpa;
    let refused = Err(SpaceError::Forbidden { at, wanted: Protection::WRITE });
    assert_eq!(world.space.fault(store), refused);
    let read_only = Tidings::Faulted(GuestFault::ReadOnly { vcpu: Some(ME), at });
    assert_eq!(world.told.try_recv(), Ok(read_only));

    let refused = Err(SpaceError::Forbidden { at, wanted: Protection::EXECUTE });
    assert_eq!(world.space.fault(fault(1, Access::Execute)), refused);
    let not_executable = Tidings::Faulted(GuestFault::NotExecutable { vcpu: Some(ME), at });
    assert_eq!(world.told.try_recv(), Ok(not_executable));

    world.space.fault(fault(1, Access::Read)).unwrap();
    assert_eq!(world.end().faults.refused, 3);
}

#[test]
fn the_very_last_address_is_a_hole_like_any_other() {
    let world = world(SOFT);
    let last = NestedFault { gpa: Gpa(u64::MAX), ..fault(0, Access::Write) };
    assert_eq!(world.space.fault(last), Err(SpaceError::Hole(Gpa(u64::MAX))));
    world.end();
}

#[test]
fn a_shootdown_knocks_on_who_is_in_the_guest_and_serves_faults_until_they_are_out() {
    let world = world(SOFT);
    world.space.fault(fault(3, Access::Write)).unwrap();
    let (space, completed) = (world.space.clone(), world.space.completed());
    let mut cached = Generation::default();
    let trip = world.domain.enter(MY_SEAT, &mut cached, |_| {});
    std::thread::scope(|scope| {
        let (done, is_done) = bounded(1);
        scope.spawn(move || done.send(space.unmap(range(3, 1))).unwrap());
        // The knock says that the raise has been made, and that it waits for this seat.
        world.knocks.recv_timeout(Duration::from_secs(60)).unwrap();
        let view = world.space.view();
        assert!(view.translate(Gpa(3 * PAGE_SIZE), Access::Read).is_err());
        // Another vcpu, say: it is answered although the shootdown is on its way.
        world.space.fault(fault(4, Access::Write)).unwrap();
        let frame = view.translate(Gpa(4 * PAGE_SIZE), Access::Write).unwrap().frame;
        assert_ne!(frame, 3 * PAGE_SIZE);
        assert!(is_done.is_empty(), "the shootdown cannot be over while its vcpu is in the guest");
        assert_eq!(completed.generation(), Generation(0));
        assert_eq!(trip.leave(), Left::Awaited);
        world.space.waker()();
        is_done.recv().unwrap().unwrap();
    });
    assert_eq!(completed.generation(), Generation(1));
    let tally = world.end();
    assert_eq!((tally.shootdowns.raised, tally.shootdowns.knocks), (1, 1));
    assert_eq!(tally.resident_bytes, PAGE_SIZE, "only the page of the second fault is left");
}

#[test]
fn a_vcpu_that_is_out_is_not_knocked_on_and_flushes_on_its_way_in() {
    let world = world(SOFT);
    world.space.fault(fault(3, Access::Write)).unwrap();
    world.space.forget(range(3, 1)).unwrap();
    assert!(world.knocks.is_empty());
    assert_eq!(world.space.completed().generation(), Generation(1));
    let (mut cached, mut flushed) = (Generation::default(), None);
    let trip = world.domain.enter(MY_SEAT, &mut cached, |now| flushed = Some(now));
    assert_eq!(flushed, Some(Generation(1)));
    assert_eq!(trip.leave(), Left::Unnoticed);
    world.end();
}

#[test]
fn leaving_shootdowns_to_a_kernel_is_refused_by_name() {
    let (config, _knocks) = config(SOFT, ShootdownMode::Kernel);
    let refused = start(config).err().unwrap();
    assert!(matches!(refused, StartError::NoKernel));
    assert!(refused.to_string().contains("cannot be left to the kernel"));
}

/// Asks on a thread of its own while nothing is served, and returns what it is told after
/// `end` has been called.
fn told_when(end: impl FnOnce(&SpaceHandle)) -> Result<(), SpaceError> {
    let world = world(SOFT);
    world.space.set_fault_service(FaultService::Never).unwrap();
    // A second request, so that the first has been heard.
    world.space.count().unwrap();
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| world.space.fault(fault(3, Access::Read)));
        while !world.space.fault_is_waiting() {
            std::thread::yield_now();
        }
        end(&world.space);
        asker.join().unwrap()
    })
}

#[test]
fn looks_that_are_always_due_keep_nobody_waiting_and_end_with_the_last_word() {
    let (mut config, _knocks) = config(SOFT, ShootdownMode::Auto);
    config.harvest_every = Some(Duration::from_nanos(1));
    let domain = config.domain.clone();
    let (space, threads) = start(config).unwrap();
    space.map(range(0, PAGES), Protection::all()).unwrap();
    let view = space.view();
    for page in 0..PAGES {
        // As a processor does: whatever a look aged is used again.
        space.fault(fault(page, Access::Write)).unwrap();
        view.translate(Gpa(page * PAGE_SIZE), Access::Write).unwrap();
    }
    let last = space.retire().unwrap();
    threads.into_iter().for_each(|(_, thread)| thread.join());
    assert!(last.working_set.iter().any(|sample| sample.accessed_pages > 0));
    assert!(last.shootdowns.raised > 0);
    assert_eq!(last.shootdowns.raised, domain.generation().0);
}

#[test]
fn who_waits_is_told_when_the_pmap_ends_panics_or_is_given_up() {
    let gone = Err(SpaceError::Dead("is gone"));
    assert_eq!(told_when(|space| drop(space.retire().unwrap())), gone);
    assert_eq!(told_when(|space| space.break_(ActorName::Pmap, Break::Panic).unwrap()), gone);
    assert_eq!(told_when(|space| space.seal().unwrap()), gone);
}
