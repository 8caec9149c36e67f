//! The workers, asked as the pmap asks, over a real file and over files that fail.

use std::ops::Range;

use actors::Gpa;
use actors::layout::MemoryLayout;
use actors::threads::Ending;
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::swap::codec::tests::{packed, page_of};
use crate::swap::faulty::SwapFault;
use crate::swap::file::SwapIo;
use crate::swap::{PAGE_BYTES, Room};

struct Bench {
    workers: Workers,
    threads: [(ActorName, Joined); 2],
    memory: Arc<GuestMemory>,
    bell: Arc<Doorbell>,
    tidings: Receiver<Tidings>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self::with(|file| file)
    }

    fn with(change: impl FnOnce(SwapFile) -> SwapFile) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = SwapFile::create(&dir.path().join("swap"), Room::Reserved(64 * 4096)).unwrap();
        let layout = MemoryLayout::split(16 << 20, 1 << 30, 48).unwrap();
        let memory = Arc::new(GuestMemory::new(layout).unwrap());
        let bell = Arc::new(Doorbell::new().unwrap());
        let (tell, tidings) = crossbeam_channel::unbounded();
        let config = WorkersConfig {
            memory: memory.clone(),
            file: Arc::new(change(file)),
            bell: bell.clone(),
            tell: Arc::new(move |tidings| drop(tell.send(tidings))),
        };
        let (workers, threads) = start(config).unwrap();
        Self { workers, threads, memory, bell, tidings, _dir: dir }
    }

    /// As the pmap does: asleep at the bell, until there is an answer.
    fn answer(&self) -> Answer {
        loop {
            if let Some(answer) = self.workers.answer() {
                return answer;
            }
            let _: [i16; 0] = self.bell.sleep([], -1, || self.workers.has_answers());
        }
    }

    fn write(&self, first: u32, seeds: Range<u64>) -> Result<u32, SwapError> {
        let pages = (first..).map(Slot).zip(seeds.map(contents));
        let pages = pages.map(|(slot, page)| WritePage { slot, packed: packed(&page) });
        self.write_pages(pages.collect())
    }

    fn write_pages(&self, pages: Vec<WritePage>) -> Result<u32, SwapError> {
        self.workers.try_write(Write { ticket: 9, pages }).unwrap();
        match self.answer() {
            Answer::Written { ticket: 9, result } => result,
            other => panic!("expected Written, not {other:?}"),
        }
    }

    /// Page, whether it was wanted, and what came.
    fn fetch(&self, wanted: FetchPage, ahead: Vec<FetchPage>) -> Vec<Came> {
        let count = ahead.len() + 1;
        self.workers.try_fetch(Fetch { wanted, readahead: ahead }).unwrap();
        let came = |_| match self.answer() {
            Answer::Fetched { read, is_readahead, result } => {
                (read.page, !is_readahead, result.map(|page| *page))
            }
            other => panic!("expected Fetched, not {other:?}"),
        };
        (0..count).map(came).collect()
    }

    fn ending(&self) -> (ActorName, Ending) {
        match self.tidings.recv().unwrap() {
            Tidings::Gone { actor, ending } => (actor, ending),
            other => panic!("expected an end, not {other:?}"),
        }
    }
}

type Came = (u64, bool, Result<Page, SwapError>);

/// Some compress, some do not.
fn contents(seed: u64) -> Page {
    page_of(seed, if seed.is_multiple_of(2) { 300 } else { PAGE_BYTES })
}

/// Slot `slot` as `Bench::write` filled it, with `seed`, for page number 100 + seed.
fn at(slot: u32, seed: u64) -> FetchPage {
    FetchPage { page: 100 + seed, slot: Slot(slot), checksum: Checksum::of(&contents(seed)) }
}

fn eio() -> String {
    io::Error::from_raw_os_error(libc::EIO).to_string()
}

#[test]
fn laundering_copies_what_the_frames_hold_and_tells_zeroes() {
    let bench = Bench::new();
    let high = bench.memory.layout().total() / 4096 - 1;
    for (page, seed) in [(3, 4), (high, 5)] {
        let gpa = Gpa(page * 4096);
        bench.memory.backing().write_slice(&contents(seed), GuestAddress(gpa.0)).unwrap();
    }
    let pages = vec![3, 77, high, high + 1];
    bench.workers.try_launder(Launder { ticket: 1, pages }).unwrap();
    let Answer::Laundered { ticket: 1, pages } = bench.answer() else { panic!() };
    let expected = [
        (3, Laundered::Packed(packed(&contents(4)))),
        (77, Laundered::Zero),
        (high, Laundered::Packed(packed(&contents(5)))),
    ];
    assert_eq!(pages[..3], expected);
    assert!(matches!(pages[3], (past, Laundered::Unreadable(_)) if past == high + 1));
}

#[test]
fn pages_come_back_from_the_file_as_they_went() {
    let bench = Bench::new();
    assert_eq!(bench.write(8, 0..20), Ok(1));
    let ahead = (1..20).map(|seed| at(8 + u32::try_from(seed).unwrap(), seed)).collect();
    let came = bench.fetch(at(8, 0), ahead);
    let expected: Vec<Came> =
        (0..20).map(|seed| (100 + seed, seed == 0, Ok(contents(seed)))).collect();
    assert_eq!(came, expected);
}

#[test]
fn each_run_of_neighbouring_slots_is_one_write() {
    let bench = Bench::new();
    let slots = [1, 2, 3, 10, 11, 30, 29];
    let page = |slot| WritePage { slot: Slot(slot), packed: packed(&contents(slot.into())) };
    assert_eq!(bench.write_pages(slots.map(page).into()), Ok(4));
    for slot in slots {
        let came = bench.fetch(at(slot, slot.into()), Vec::new());
        assert_eq!(came, [(100 + u64::from(slot), true, Ok(contents(slot.into())))]);
    }
    assert_eq!(bench.write(0, 0..64), Ok(2), "a run longer than a cluster is cut");
}

#[test]
fn the_wanted_page_is_answered_first_wherever_it_lies() {
    let bench = Bench::new();
    bench.write(0, 0..10).unwrap();
    let came = bench.fetch(at(8, 8), vec![at(1, 1), at(7, 7), at(2, 2), at(9, 9)]);
    let order: Vec<_> = came.iter().map(|(page, wanted, _)| (*page, *wanted)).collect();
    assert_eq!(order, [(108, true), (107, false), (109, false), (101, false), (102, false)]);
    assert!(came.iter().all(|(page, _, came)| *came == Ok(contents(page - 100))));
}

#[test]
fn other_bytes_than_were_written_are_an_error_and_never_a_page() {
    let bench = Bench::with(|file| file.breaking(SwapFault::OtherBytes, 0));
    bench.write(0, 0..2).unwrap();
    let came = bench.fetch(at(1, 1), Vec::new());
    assert_eq!(came, [(101, true, Err(SwapError::OtherBytes { slot: Slot(1) }))]);
    let text = SwapError::OtherBytes { slot: Slot(1) }.to_string();
    assert_eq!(text, "the swap file returned other bytes than were written (slot 1)");
}

#[test]
fn another_pages_good_bytes_are_other_bytes() {
    let bench = Bench::new();
    bench.write(0, 0..2).unwrap();
    let came = bench.fetch(at(0, 1), Vec::new());
    assert_eq!(came, [(101, true, Err(SwapError::OtherBytes { slot: Slot(0) }))]);
}

#[test]
fn a_bad_page_among_good_ones_is_the_only_one_lost() {
    // The first read, of all three, fails; of the single ones, the first.
    struct BadSlot(Box<dyn SwapIo>);
    impl SwapIo for BadSlot {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            let bad = 3 * 4096;
            if (offset..offset + bytes.len() as u64).contains(&bad) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            self.0.read_at(bytes, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(bytes, offset)
        }
    }
    let plain = tempfile::tempfile().unwrap();
    let bench = Bench::with(|_| SwapFile::over(Box::new(BadSlot(Box::new(plain))), 8));
    bench.write(0, 0..4).unwrap();
    let came = bench.fetch(at(1, 1), vec![at(0, 0), at(2, 2), at(3, 3)]);
    let lost = Err(SwapError::Read { slot: Slot(2), why: eio() });
    let expected = [
        (101, true, Ok(contents(1))),
        (100, false, Ok(contents(0))),
        (102, false, lost),
        (103, false, Ok(contents(3))),
    ];
    assert_eq!(came, expected);
}

#[test]
fn every_failure_of_the_disk_has_its_name() {
    let reads = [
        (SwapFault::ReadError, SwapError::Read { slot: Slot(0), why: eio() }),
        (SwapFault::Truncated, SwapError::Truncated { slot: Slot(0) }),
    ];
    for (fault, expected) in reads {
        let bench = Bench::with(|file| file.breaking(fault, 0));
        bench.write(0, 0..1).unwrap();
        assert_eq!(bench.fetch(at(0, 0), Vec::new()), [(100, true, Err(expected))]);
    }
    let writes = [
        (SwapFault::WriteError, SwapError::Write { slot: Slot(0), why: eio() }),
        (SwapFault::DiskFull, SwapError::DiskFull { slot: Slot(0) }),
    ];
    for (fault, expected) in writes {
        let bench = Bench::with(|file| file.breaking(fault, 0));
        assert_eq!(bench.write(0, 0..1), Err(expected));
    }
}

#[test]
fn a_full_lane_gives_the_order_back_and_takes_it_after_an_answer() {
    /// Reads wait until they may.
    struct Gate(Box<dyn SwapIo>, Arc<Mutex<()>>);
    impl SwapIo for Gate {
        fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
            drop(self.1.lock());
            self.0.read_at(bytes, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
            self.0.write_at(bytes, offset)
        }
    }
    let gate = Arc::new(Mutex::new(()));
    let io = Gate(Box::new(tempfile::tempfile().unwrap()), gate.clone());
    let bench = Bench::with(|_| SwapFile::over(Box::new(io), 8));
    bench.write(0, 0..1).unwrap();
    let closed = gate.lock();
    let order = || Fetch { wanted: at(0, 0), readahead: Vec::new() };
    let taken = (0..).take_while(|_| bench.workers.try_fetch(order()).is_ok()).count();
    assert!((PAGEIN_LANE..=PAGEIN_LANE + 1).contains(&taken), "{taken}");
    assert!(matches!(bench.workers.try_fetch(order()), Err(NotTaken::Busy(_))));
    drop(closed);
    for _ in 0..taken {
        assert!(matches!(bench.answer(), Answer::Fetched { result: Ok(_), .. }));
    }
    bench.workers.try_fetch(order()).unwrap();
    bench.answer();
}

#[test]
fn workers_end_when_the_pmap_drops_them() {
    let Bench { workers, threads, tidings, .. } = Bench::new();
    let remote = workers.remote();
    drop(workers);
    threads.into_iter().for_each(|(_, thread)| thread.join());
    let ends: Vec<_> = tidings.try_iter().collect();
    let returned = |actor| Tidings::Gone { actor, ending: Ending::Returned };
    assert!(
        ends.contains(&returned(ActorName::Pageout)) && ends.contains(&returned(ActorName::Pagein))
    );
    assert!(remote.pulses().iter().all(|(_, pulse)| !pulse.look().is_busy()));
}

#[test]
fn workers_end_when_they_are_told_to_and_take_no_more() {
    let Bench { workers, threads, .. } = Bench::new();
    workers.remote().retire();
    workers.remote().retire();
    threads.into_iter().for_each(|(_, thread)| thread.join());
    let order = Launder { ticket: 0, pages: vec![1] };
    assert!(matches!(workers.try_launder(order), Err(NotTaken::Gone(Launder { ticket: 0, .. }))));
}

#[test]
fn a_worker_that_panics_is_reported_by_name() {
    for actor in [ActorName::Pageout, ActorName::Pagein] {
        let bench = Bench::new();
        bench.workers.remote().break_(actor, Break::Panic);
        let (who, ending) = bench.ending();
        assert_eq!(who, actor);
        assert!(matches!(ending, Ending::Panicked(_)));
    }
}

#[test]
fn a_worker_that_hangs_is_busy_and_stays_so_while_the_other_goes_on() {
    let bench = Bench::with(|file| file.breaking(SwapFault::StuckReads, 0));
    bench.workers.try_fetch(Fetch { wanted: at(0, 0), readahead: Vec::new() }).unwrap();
    let [_, (_, pagein)] = bench.workers.remote().pulses();
    while !pagein.look().is_busy() {
        std::thread::yield_now();
    }
    assert_eq!(bench.write(0, 0..4), Ok(1));
    assert!(pagein.look().is_busy());
}
