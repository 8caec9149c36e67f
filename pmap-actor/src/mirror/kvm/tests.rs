//! The mirror against the host itself: what it was told must be what `/proc/self/pagemap` says.
//!
//! Accesses go through `/proc/self/mem`. There the kernel does not wait for userfaultfd but fails
//! instead, so "this access would be a nested fault" can be asked without a thread that sleeps.

#![expect(unsafe_code, reason = "a thread that sleeps in the guest view, as KVM's do")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use actors::contract::device::Segment;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::host::huge::free_reserved;

const WRITABLE: HostPage = HostPage { present: true, swapped: false, write_protected: false };
const READ_ONLY: HostPage = HostPage { write_protected: true, ..WRITABLE };
const GONE: HostPage = HostPage { present: false, ..WRITABLE };

/// The block that is tested: there are others on both sides.
fn block() -> GpaRange {
    GpaRange::new(Gpa(HUGE), HUGE).unwrap()
}

fn page(number: u64) -> GpaRange {
    pages(number, 1)
}

/// Of [`block`].
fn pages(first: u64, count: u64) -> GpaRange {
    GpaRange::new(Gpa(HUGE + first * PAGE_SIZE), count * PAGE_SIZE).unwrap()
}

struct Host {
    mirror: KvmMirror,
    memory: Arc<GuestMemory>,
    /// This process's memory, as a debugger sees it.
    mem: File,
}

impl Host {
    /// `None`, aloud, where the host lacks what is tested.
    fn new() -> Option<Self> {
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(why) => {
                eprintln!("not tested here: {why}");
                return None;
            }
        };
        if let Err(why) = HugeSupport::probe() {
            eprintln!("not tested here: {why}");
            return None;
        }
        if Pagemap::open().unwrap().huge(0x1000, 0x2000).unwrap().is_none() {
            eprintln!("not tested here: Linux 6.7 is needed to see what is mapped huge");
            return None;
        }
        let layout = MemoryLayout::split(8 * HUGE, LOWMEM_LIMIT, 48).unwrap();
        let memory = Arc::new(GuestMemory::new(layout).unwrap());
        let mirror = KvmMirror::new(memory.clone(), userfault, false).unwrap();
        let mem = OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap();
        Some(Self { mirror, memory, mem })
    }

    /// With [`block`] mapped by pages, each of which says its number.
    fn with_a_block() -> Option<Self> {
        let mut host = Self::new()?;
        assert_eq!(host.mirror.map_zeroed(block()).unwrap(), Installed::Bytes(HUGE));
        for (number, at) in (0u64..).zip(block().iter_pages()) {
            host.memory.backing().write_obj(number, GuestAddress(at.0)).unwrap();
        }
        Some(host)
    }

    /// What the guest finds at the first word of a page; `None` when it would fault.
    fn load(&self, at: Gpa) -> Option<u64> {
        let mut word = [0; 8];
        let place = self.memory.guest_address(at);
        self.mem.read_exact_at(&mut word, place).ok().map(|()| u64::from_ne_bytes(word))
    }

    fn store(&self, at: Gpa, value: u64) -> bool {
        let place = self.memory.guest_address(at);
        self.mem.write_all_at(&value.to_ne_bytes(), place).is_ok()
    }

    /// How many of the block's pages the host maps like this.
    fn count(&mut self, like: HostPage) -> usize {
        let pages = self.mirror.look(block()).unwrap();
        pages.into_iter().filter(|page| *page == like).count()
    }

    /// Whether the host maps the block by one entry.
    fn is_huge(&self) -> bool {
        let start = self.memory.guest_address(block().start());
        match Pagemap::open().unwrap().huge(start, start + HUGE).unwrap() {
            Some(stretches) => {
                stretches.iter().any(|it| it.start == start && it.end == start + HUGE)
            }
            None => panic!("it was asked when this host was made"),
        }
    }

    /// Each page but those of `lost` still says its number, to the guest.
    fn keeps_all_but(&self, lost: GpaRange) {
        for (number, at) in (0u64..).zip(block().iter_pages()) {
            let expected = (!lost.contains(at)).then_some(number);
            assert_eq!(self.load(at), expected, "page {number}");
        }
    }
}

#[test]
fn a_promoted_block_is_one_entry_with_the_same_contents_and_is_watched_again() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert!(!host.is_huge());
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    assert!(host.is_huge());
    assert_eq!(host.memory.resident_bytes().unwrap(), HUGE);
    assert_eq!(host.memory.host_mapping().unwrap().shmem_huge_bytes, HUGE);
    for (number, at) in (0u64..).zip(block().iter_pages()) {
        assert_eq!(host.load(at), Some(number));
        assert_eq!(host.memory.backing().read_obj::<u64>(GuestAddress(at.0)).unwrap(), number);
    }
    assert!(host.store(Gpa(HUGE + 8), 5));
    assert_eq!(host.load(Gpa(0)), None, "its neighbours were never mapped");
    assert_eq!(host.load(block().end()), None);
    host.mirror.unmap(block()).unwrap();
    assert_eq!(host.load(block().start()), None, "a touch is a fault of ours again");
}

#[test]
fn a_block_with_a_page_missing_or_write_protected_is_refused_by_its_address() {
    let Some(mut host) = Host::with_a_block() else { return };
    let (third, fifth) = (page(3), page(5));
    host.mirror.set_writable(fifth, false).unwrap();
    let why = NotHuge::WriteProtected(fifth.start());
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Refused(why));
    host.mirror.unmap(third).unwrap();
    let why = NotHuge::NotMapped(third.start());
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Refused(why));
    // Nothing has changed.
    assert_eq!((host.count(GONE), host.count(READ_ONLY), host.count(WRITABLE)), (1, 1, 510));
    assert_eq!(host.load(third.start()), None);
    assert!(!host.store(fifth.start(), 1));
}

#[test]
fn a_piece_of_a_block_and_a_block_off_its_boundary_are_misplaced() {
    let Some(mut host) = Host::with_a_block() else { return };
    for range in [pages(0, 511), pages(1, 511), pages(1, 512), pages(0, 1024)] {
        let refused = host.mirror.promote(range).unwrap();
        assert_eq!(refused, Promoted::Refused(NotHuge::Misplaced));
        let mut map = |contents| host.mirror.map_huge(range, contents).unwrap();
        assert_eq!(map(Contents::Fresh), MappedHuge::Refused(NotHuge::Misplaced));
        if range.len() != 2 * HUGE {
            assert_eq!(map(Contents::Resident), MappedHuge::Refused(NotHuge::Misplaced));
        }
    }
}

#[test]
fn write_protecting_pages_of_a_huge_block_leaves_the_others_mapped_and_writable() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    host.mirror.set_writable(pages(7, 2), false).unwrap();
    assert!(!host.is_huge());
    assert_eq!((host.count(WRITABLE), host.count(READ_ONLY)), (510, 2));
    host.keeps_all_but(GpaRange::new(Gpa(0), PAGE_SIZE).unwrap());
    assert!(!host.store(page(7).start(), 1) && host.store(page(9).start(), 9));
}

#[test]
fn a_huge_block_that_is_write_protected_as_a_whole_can_still_be_read_without_a_fault() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    host.mirror.set_writable(block(), false).unwrap();
    assert_eq!(host.count(READ_ONLY), 512);
    host.keeps_all_but(GpaRange::new(Gpa(0), PAGE_SIZE).unwrap());
}

#[test]
fn unmapping_a_page_of_a_huge_block_leaves_the_others_mapped() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    host.mirror.unmap(pages(100, 3)).unwrap();
    assert_eq!((host.count(WRITABLE), host.count(GONE)), (509, 3));
    host.keeps_all_but(pages(100, 3));
    let again = host.mirror.map_existing(pages(100, 3), true).unwrap();
    assert_eq!(again, Installed::Bytes(3 * PAGE_SIZE), "their contents stayed in the object");
    assert_eq!(host.load(page(101).start()), Some(101));
}

#[test]
fn freeing_a_page_of_a_huge_page_gives_it_back_and_leaves_the_others_mapped_as_they_were() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    host.mirror.set_writable(page(1), false).unwrap();
    host.mirror.unmap(pages(2, 2)).unwrap();
    host.mirror.free(page(2)).unwrap();
    assert_eq!(host.memory.resident_bytes().unwrap(), HUGE - PAGE_SIZE);
    assert_eq!((host.count(WRITABLE), host.count(READ_ONLY), host.count(GONE)), (509, 1, 2));
    host.keeps_all_but(pages(2, 2));
    // Page 3 is in the object still.
    let again = host.mirror.map_existing(page(3), true).unwrap();
    assert_eq!(again, Installed::Bytes(PAGE_SIZE));
    assert_eq!(host.load(page(3).start()), Some(3));
}

#[test]
fn allowing_stores_where_they_are_allowed_does_not_split_a_huge_block() {
    let Some(mut host) = Host::with_a_block() else { return };
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    host.mirror.set_writable(page(4), true).unwrap();
    let served = host.mirror.mend(page(4), Access::Write, true).unwrap();
    assert_eq!(served, Served::WriteUnprotected);
    host.mirror.set_writable(GpaRange::new(Gpa(0), 4 * HUGE).unwrap(), true).unwrap();
    assert!(host.is_huge());
}

#[test]
fn a_block_that_was_split_and_is_whole_again_can_be_promoted_again() {
    let Some(mut host) = Host::with_a_block() else { return };
    for _ in 0..3 {
        assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
        host.mirror.set_writable(pages(0, 512), false).unwrap();
        host.mirror.set_writable(pages(0, 512), true).unwrap();
        assert_eq!(host.count(WRITABLE), 512);
    }
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    assert!(host.is_huge());
    host.keeps_all_but(GpaRange::new(Gpa(0), PAGE_SIZE).unwrap());
}

#[test]
fn a_locked_block_can_be_promoted() {
    let Some(mut host) = Host::with_a_block() else { return };
    if let Err(why) = host.memory.lock(block()) {
        eprintln!("not tested here: {why}");
        return;
    }
    assert_eq!(host.mirror.promote(block()).unwrap(), Promoted::Huge);
    assert!(host.is_huge());
    host.keeps_all_but(GpaRange::new(Gpa(0), PAGE_SIZE).unwrap());
}

/// Where a vcpu would sleep until it is served, this asks again.
fn until_served(mut access: impl FnMut() -> io::Result<()>) {
    let served = (0..10_000_000).any(|_| access().is_ok());
    assert!(served, "the page never came back");
}

#[test]
fn whoever_counts_in_a_block_that_becomes_huge_and_small_again_loses_no_count() {
    let Some(mut host) = Host::with_a_block() else { return };
    let over = AtomicBool::new(false);
    let place = host.memory.guest_address(page(200).start());
    let mem = host.mem.try_clone().unwrap();
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let mut count = 200u64;
            while !over.load(Ordering::Relaxed) {
                let mut word = [0; 8];
                until_served(|| mem.read_exact_at(&mut word, place));
                assert_eq!(u64::from_ne_bytes(word), count, "a store was lost");
                count += 1;
                until_served(|| mem.write_all_at(&count.to_ne_bytes(), place));
            }
            count
        });
        // While the kernel reads or writes the counter's page for it, the block is busy and stays as it was.
        let mut huge = 0;
        let changes = (0..50).try_for_each(|_| -> io::Result<()> {
            match host.mirror.promote(block())? {
                Promoted::Huge => huge += 1,
                Promoted::Refused(NotHuge::Busy) => {}
                Promoted::Refused(why) => return Err(io::Error::other(why.to_string())),
            }
            host.mirror.unmap(page(511))?;
            host.mirror.map_existing(page(511), true).map(|_| ())
        });
        // Before anything is claimed: a counter that nobody stops would keep this test for ever.
        over.store(true, Ordering::Relaxed);
        let count = counter.join().unwrap();
        changes.unwrap();
        assert!(huge > 0, "it was busy 50 times");
        assert_eq!(host.load(page(200).start()), Some(count));
    });
}

#[test]
fn memory_of_reserved_pages_is_mapped_from_the_start_and_stays() {
    if free_reserved().unwrap_or(0) < 4 {
        eprintln!("not tested here: the host has no 4 reserved huge pages to spare");
        return;
    }
    let Ok(userfault) = Userfault::open() else { return };
    let layout = MemoryLayout::split(4 * HUGE, LOWMEM_LIMIT, 48).unwrap();
    let memory = Arc::new(GuestMemory::with_pages(layout, HugePages::Reserved).unwrap());
    let mut mirror = KvmMirror::new(memory.clone(), Arc::new(userfault), false).unwrap();
    memory.backing().write_obj(7u64, GuestAddress(HUGE)).unwrap();
    assert_eq!(mirror.map_zeroed(page(0)).unwrap(), Installed::Bytes(PAGE_SIZE));
    let mut word = [0; 8];
    let mem = File::open("/proc/self/mem").unwrap();
    mem.read_exact_at(&mut word, memory.guest_address(Gpa(HUGE))).unwrap();
    assert_eq!(u64::from_ne_bytes(word), 7);
    for refused in
        [mirror.unmap(page(0)), mirror.free(block()), mirror.set_writable(page(0), false)]
    {
        assert!(refused.unwrap_err().to_string().contains("wired as a whole"));
    }
}

#[test]
fn a_fresh_block_is_zeroes_in_one_piece_and_is_watched_again() {
    let Some(mut host) = Host::new() else { return };
    assert_eq!(host.mirror.map_huge(block(), Contents::Fresh).unwrap(), MappedHuge::Huge);
    assert!(host.is_huge());
    assert_eq!(host.memory.resident_bytes().unwrap(), HUGE);
    assert!(block().iter_pages().all(|at| host.load(at) == Some(0) && host.store(at, 1)));
    host.mirror.unmap(block()).unwrap();
    assert_eq!(host.load(block().start()), None);
    assert_eq!(host.load(Gpa(0)), None);
}

#[test]
fn a_block_that_exists_is_mapped_in_one_piece_with_what_it_holds_and_is_watched_again() {
    for in_one_piece in [true, false] {
        let Some(mut host) = Host::new() else { return };
        if in_one_piece {
            // Where the host cannot, it is the other case twice.
            let _ = host.memory.allocate_huge(block());
        }
        for (number, at) in block().iter_pages().enumerate() {
            host.memory.backing().write_obj(number as u64, GuestAddress(at.0)).unwrap();
        }
        assert_eq!(host.load(block().start()), None, "nobody reaches it yet");
        assert_eq!(host.mirror.map_huge(block(), Contents::Resident).unwrap(), MappedHuge::Huge);
        assert!(host.is_huge());
        for (number, at) in block().iter_pages().enumerate() {
            assert_eq!(host.load(at), Some(number as u64));
            assert!(host.store(at, 1));
        }
        host.mirror.unmap(block()).unwrap();
        assert_eq!(host.load(block().start()), None);
    }
}

#[test]
fn blocks_in_a_row_that_exist_are_mapped_in_one_piece_each_and_lose_a_page_alone() {
    let Some(mut host) = Host::new() else { return };
    let row = pages(0, 1024);
    host.memory.populate(row).unwrap();
    host.memory.backing().write_obj(7u64, GuestAddress(page(700).start().0)).unwrap();
    assert_eq!(host.mirror.map_huge(row, Contents::Resident).unwrap(), MappedHuge::Huge);
    let start = host.memory.guest_address(row.start());
    let huge = Pagemap::open().unwrap().huge(start, start + 2 * HUGE).unwrap().unwrap();
    assert_eq!(huge.iter().map(|it| it.end - it.start).sum::<u64>(), 2 * HUGE);
    host.mirror.unmap(page(513)).unwrap();
    assert_eq!(host.load(page(513).start()), None);
    assert!(host.is_huge(), "the first of them is as it was");
    assert_eq!(host.load(page(700).start()), Some(7));
    for at in row.iter_pages().filter(|at| *at != page(513).start()) {
        assert!(host.load(at).is_some(), "{at} is mapped still");
    }
}

#[test]
fn a_block_that_was_read_only_before_it_was_unmapped_comes_back_writable() {
    let Some(mut host) = Host::with_a_block() else { return };
    host.mirror.set_writable(block(), false).unwrap();
    host.mirror.unmap(block()).unwrap();
    assert_eq!(host.mirror.map_huge(block(), Contents::Resident).unwrap(), MappedHuge::Huge);
    assert!(host.is_huge());
    assert!(block().iter_pages().all(|at| host.store(at, 1)));
}

#[test]
fn a_block_with_something_in_it_is_not_mapped_as_fresh_and_keeps_it() {
    let Some(mut host) = Host::new() else { return };
    host.memory.backing().write_obj(7u64, GuestAddress(page(300).start().0)).unwrap();
    let refused = host.mirror.map_huge(block(), Contents::Fresh).unwrap();
    assert_eq!(refused, MappedHuge::Refused(NotHuge::Occupied));
    assert_eq!(host.memory.resident_bytes().unwrap(), PAGE_SIZE);
    assert_eq!(host.load(block().start()), None, "nothing was mapped");
}

#[test]
fn whoever_sleeps_in_a_fresh_block_goes_on() {
    let Some(mut host) = Host::new() else { return };
    let at = page(77).start();
    let mut bytes = [1u8; 8];
    std::thread::scope(|scope| {
        let (memory, userfault) = (host.memory.clone(), host.mirror.userfault.clone());
        let sleeper = scope.spawn(move || {
            // A system call that reads the guest view sleeps as KVM does.
            let mut pair = [0; 2];
            // SAFETY: two descriptors fit.
            assert_eq!(unsafe { libc::pipe(pair.as_mut_ptr()) }, 0);
            let place = std::ptr::with_exposed_provenance(
                usize::try_from(memory.guest_address(at)).unwrap(),
            );
            // SAFETY: eight bytes of the guest view, which only the kernel touches here.
            assert_eq!(unsafe { libc::write(pair[1], place, 8) }, 8);
            // SAFETY: eight bytes of ours.
            assert_eq!(unsafe { libc::read(pair[0], bytes.as_mut_ptr().cast(), 8) }, 8);
            bytes
        });
        while !userfault.has_fault() {
            std::thread::yield_now();
        }
        assert_eq!(host.mirror.map_huge(block(), Contents::Fresh).unwrap(), MappedHuge::Huge);
        assert_eq!(sleeper.join().unwrap(), [0; 8]);
    });
    assert!(!host.mirror.userfault.has_fault());
}

#[test]
fn a_device_s_memory_is_the_kernel_s_business_and_what_follows_it_is_watched_again() {
    let Some(mut host) = Host::with_a_block() else { return };
    let device = tempfile::tempfile().unwrap();
    device.write_all_at(&77u64.to_ne_bytes(), PAGE_SIZE).unwrap();
    device.set_len(3 * PAGE_SIZE).unwrap();
    let segments = vec![Segment { offset: PAGE_SIZE, len: 2 * PAGE_SIZE }];
    let list = ScatterList::new(Arc::new(device), segments).unwrap();
    let (place, rw) = (pages(4, 2), Protection::READ | Protection::WRITE);
    host.mirror.unmap(place).unwrap();
    host.mirror.free(place).unwrap();
    host.mirror.map_device(place, &list, rw).unwrap();
    // Nobody faults there, and both see the same bytes.
    assert_eq!(host.load(place.start()), Some(77));
    assert!(host.store(Gpa(place.start().0 + PAGE_SIZE), 78));
    let mut word = [0; 8];
    list.file().read_exact_at(&mut word, 2 * PAGE_SIZE).unwrap();
    assert_eq!(u64::from_ne_bytes(word), 78);
    assert_eq!(host.load(page(3).start()), Some(3));
    assert_eq!(host.load(page(6).start()), Some(6));
    let memory = host.memory.resident_bytes().unwrap();
    assert_eq!(memory, HUGE - place.len(), "the object has nothing there");

    host.mirror.unmap_device(place).unwrap();
    host.mirror.free_device(place).unwrap();
    for at in place.iter_pages() {
        assert_eq!(host.load(at), None, "a first touch is a fault again");
        assert!(!host.store(at, 1));
    }
    assert_eq!(host.mirror.map_zeroed(place).unwrap(), Installed::Bytes(place.len()));
    assert_eq!(host.load(place.start()), Some(0));
}

#[test]
fn a_device_s_memory_that_the_host_does_not_map_leaves_memory_that_is_watched() {
    let Some(mut host) = Host::new() else { return };
    let device = tempfile::tempfile().unwrap();
    device.set_len(PAGE_SIZE).unwrap();
    // The first piece is mapped, the second lies where no file has anything.
    let offsets = [0, (1 << 63) - PAGE_SIZE];
    let segments = offsets.map(|offset| Segment { offset, len: PAGE_SIZE });
    let list = ScatterList::new(Arc::new(device), segments.to_vec()).unwrap();
    let place = pages(4, 2);
    let rw = Protection::READ | Protection::WRITE;
    host.mirror.map_device(place, &list, rw).unwrap_err();
    for at in place.iter_pages() {
        assert_eq!(host.load(at), None);
    }
    assert_eq!(host.mirror.map_zeroed(place).unwrap(), Installed::Bytes(place.len()));
    assert_eq!(host.load(place.start()), Some(0));
}
