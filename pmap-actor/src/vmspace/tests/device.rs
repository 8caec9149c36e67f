//! Memory of a device in the map: what the guest finds there, and what every operation does about it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use actors::PageSize;
use actors::contract::device::Segment;
use actors::contract::page::{Advice, Place, Touch};

use super::*;
use crate::ept::attribute::Attribute;
use crate::map::Backing;

const RW: Protection = Protection::READ.union(Protection::WRITE);
const R: Protection = Protection::READ;

/// Of 8 pages, each of which is full of its number.
fn file() -> Arc<File> {
    let file = tempfile::tempfile().unwrap();
    for page in 0..8u8 {
        file.write_all_at(&[page; 4096], u64::from(page) * PAGE_SIZE).unwrap();
    }
    Arc::new(file)
}

/// These pages of `file`, in this order.
fn list(file: &Arc<File>, pages: &[(u64, u64)]) -> ScatterList {
    let segments = pages
        .iter()
        .map(|&(first, count)| Segment { offset: first * PAGE_SIZE, len: count * PAGE_SIZE });
    ScatterList::new(file.clone(), segments.collect()).unwrap()
}

fn all_flags() -> impl Iterator<Item = PmapFlags> {
    let flags = [PmapFlags::SUPERPAGES, PmapFlags::EMULATE_AD_BITS, PmapFlags::EXECUTE_ONLY];
    (0..8u8).map(move |choice| {
        let chosen = flags.into_iter().enumerate().filter(|(bit, _)| choice >> bit & 1 == 1);
        chosen.fold(PmapFlags::empty(), |all, (_, flag)| all | flag)
    })
}

/// What a processor finds at `gpa`: by our tables, then through the guest view.
fn load<M: Mirror>(space: &VmSpace<M>, gpa: Gpa) -> Option<u8> {
    let found = space.tables().view().translate(gpa, Access::Read).ok()?;
    let host = space.memory().host_of_frame(found.frame, 1)?;
    let mut byte = [0];
    let mem = File::open("/proc/self/mem").unwrap();
    mem.read_exact_at(&mut byte, host.as_ptr().addr() as u64 + gpa.0 % PAGE_SIZE).ok()?;
    Some(byte[0])
}

fn store<M: Mirror>(space: &VmSpace<M>, gpa: Gpa, byte: u8) -> bool {
    let Ok(found) = space.tables().view().translate(gpa, Access::Write) else { return false };
    let host = space.memory().host_of_frame(found.frame, 1).unwrap();
    let mem = File::options().write(true).open("/proc/self/mem").unwrap();
    mem.write_all_at(&[byte], host.as_ptr().addr() as u64 + gpa.0 % PAGE_SIZE).is_ok()
}

fn end<M: Mirror>(space: &mut VmSpace<M>, removed: Removed) {
    space.give_back(removed).unwrap();
    let left = space.take_left_over();
    space.give_back(left).unwrap();
}

#[test]
fn the_guest_sees_the_device_s_bytes_in_the_list_s_order_and_the_device_the_guest_s() {
    for flags in all_flags() {
        let mut space = soft(flags);
        let file = file();
        space.map_device(range(3, 4), &list(&file, &[(5, 2), (0, 1), (5, 1)]), RW).unwrap();
        let seen: Vec<_> = (2..8).map(|page| load(&space, Gpa(page * PAGE_SIZE + 9))).collect();
        assert_eq!(seen, [None, Some(5), Some(6), Some(0), Some(5), None]);
        assert!(store(&space, Gpa(0x4fff), 77));
        let mut byte = [0];
        file.read_exact_at(&mut byte, 6 * PAGE_SIZE + 0xfff).unwrap();
        assert_eq!(byte, [77]);
        assert_eq!(space.memory().resident_bytes().unwrap(), 0, "no frame was made for it");
    }
}

#[test]
fn a_device_s_leaf_is_uncacheable_and_unmanaged_and_no_access_to_it_ever_faults() {
    for flags in all_flags() {
        for protection in [R, RW] {
            let mut space = soft(flags);
            space.map_device(range(3, 1), &list(&file(), &[(0, 1)]), protection).unwrap();
            let masks = *space.tables().masks();
            let leaf = space.tables().leaf(Gpa(0x3000)).unwrap();
            let size = PageSize::Size4KiB;
            assert_eq!((leaf.size, leaf.entry & masks.managed), (size, 0));
            let cache = masks.cache_bits(size);
            assert_eq!(leaf.entry & cache, masks.attribute(Attribute::DEVICE, size) & cache);
            assert_ne!(leaf.entry & cache, masks.attribute(Attribute::MEMORY, size) & cache);
            let writable = protection.contains(Protection::WRITE);
            let view = space.tables().view();
            assert!(view.translate(Gpa(0x3000), Access::Read).is_ok());
            assert_eq!(view.translate(Gpa(0x3000), Access::Write).is_ok(), writable);
            assert!(view.translate(Gpa(0x3000), Access::Execute).is_err());
            // A report from before it was there, and what is not allowed.
            let again = fault(&mut space, Gpa(0x3123), Access::Read).unwrap();
            assert_eq!(again, Served::AlreadyThere);
            let fetch = fault(&mut space, Gpa(0x3123), Access::Execute);
            assert!(matches!(fetch, Err(Unserved::Forbidden)));
            let stored = fault(&mut space, Gpa(0x3123), Access::Write);
            assert_eq!(stored.is_ok(), writable);
            assert_eq!(space.tables().leaf(Gpa(0x3000)), Some(leaf));
        }
    }
}

/// What an operation does to a range with a device in it.
#[derive(Debug, PartialEq)]
enum Answer {
    /// The device stays as it is, and nothing was found out about it.
    Passed,
    /// `SpaceError::Device`, with this word.
    Refused(&'static str),
    /// Another refusal, for the reason that the words name.
    Other(String),
}

type Operation<M> = fn(&mut VmSpace<M>, GpaRange) -> Result<(), SpaceError>;

fn removed<M: Mirror>(
    space: &mut VmSpace<M>,
    done: Result<Removed, SpaceError>,
) -> Result<(), SpaceError> {
    done.map(|removed| end(space, removed))
}

/// Every operation on a range, and what it does where a device is.
fn operations<M: Mirror>() -> Vec<(&'static str, Operation<M>, Answer)> {
    let other = |what: &str| Answer::Other(what.to_owned());
    vec![
        ("map", |space, range| space.map(range, RWX), other("is mapped already")),
        (
            "map a device",
            |space, range| {
                let pages = range.pages();
                space.map_device(range, &list(&file(), &[(0, pages)]), R)
            },
            other("is mapped already"),
        ),
        (
            "forget",
            |space, range| {
                let done = space.forget(range);
                removed(space, done)
            },
            Answer::Refused("forgotten"),
        ),
        (
            "protect",
            |space, range| {
                let done = space.protect(range, R);
                removed(space, done)
            },
            Answer::Refused("protected"),
        ),
        (
            "take all rights",
            |space, range| {
                let done = space.protect(range, Protection::empty());
                removed(space, done)
            },
            Answer::Refused("protected"),
        ),
        ("wire", |space, range| space.wire(range, || {}).map(drop), Answer::Refused("wired")),
        ("unwire", |space, range| space.unwire(range), other("is not wired")),
        (
            "hold",
            |space, range| space.hold(&[range], Protection::READ).map(drop),
            Answer::Refused("held"),
        ),
        (
            "advise that it is free",
            |space, range| {
                let done = space.advise(range, Advice::Free);
                removed(space, done)
            },
            Answer::Refused("freed"),
        ),
        (
            "advise that it is not needed",
            |space, range| {
                let done = space.advise(range, Advice::DontNeed);
                removed(space, done)
            },
            Answer::Passed,
        ),
        (
            "page out",
            |space, range| {
                let (done, _) = space.page_out(range)?;
                end(space, done);
                Ok(())
            },
            Answer::Passed,
        ),
        (
            "harvest",
            |space, range| {
                let (done, found) = space.harvest(range, Touch::all())?;
                for page in space.map.devices(range).flat_map(|part| part.iter_pages()) {
                    let number = space.page_number(page);
                    let seen = found.accessed.contains(number) || found.modified.contains(number);
                    assert!(!seen, "a device's page {number} was harvested");
                }
                end(space, done);
                Ok(())
            },
            Answer::Passed,
        ),
        (
            "take an epoch",
            |space, range| {
                let consumer = space.begin_dirty()?;
                let (done, _) = space.close_dirty(consumer)?;
                let (_, pages) = space.take_dirty(consumer)?;
                for page in space.map.devices(range).flat_map(|part| part.iter_pages()) {
                    assert!(!pages.contains(space.page_number(page)), "{page} is in an epoch");
                }
                end(space, done);
                space.end_dirty(consumer)
            },
            Answer::Passed,
        ),
        ("promote", |space, range| space.promote(range).map(drop), Answer::Passed),
        (
            "demote",
            |space, range| {
                let (done, _) = space.demote(range)?;
                end(space, done);
                Ok(())
            },
            Answer::Passed,
        ),
    ]
}

fn answer(done: Result<(), SpaceError>, expected: &Answer) -> Answer {
    match (done, expected) {
        (Ok(()), _) => Answer::Passed,
        (Err(SpaceError::Device { what, .. }), _) => Answer::Refused(what),
        (Err(error), Answer::Other(words)) if error.to_string().contains(words) => {
            Answer::Other(words.clone())
        }
        (Err(error), _) => Answer::Other(error.to_string()),
    }
}

/// A device in pages 8 to 11, and memory that was stored to on both sides of it.
fn with_a_device<M: Mirror>(mut space: VmSpace<M>) -> VmSpace<M> {
    for around in [range(0, 8), range(12, PAGES - 12)] {
        space.map(around, RWX).unwrap();
        for page in around.iter_pages() {
            fault(&mut space, page, Access::Write).unwrap();
        }
    }
    space.map_device(range(8, 4), &list(&file(), &[(4, 4)]), RW).unwrap();
    space
}

fn every_operation<M: Mirror>(make: impl Fn() -> VmSpace<M>) {
    // The device alone, a part of it, and with memory before, behind, and on both sides.
    for span in [range(8, 4), range(9, 1), range(4, 6), range(10, 8), range(0, PAGES)] {
        for (name, operation, expected) in operations::<M>() {
            let mut space = with_a_device(make());
            let entries = |space: &VmSpace<M>| -> Vec<_> {
                range(8, 4).iter_pages().map(|page| space.tables().leaf(page)).collect()
            };
            let before = entries(&space);
            let done = operation(&mut space, span);
            assert_eq!(answer(done, &expected), expected, "{name} of {span}");
            assert_eq!(entries(&space), before, "{name} of {span} changed a device's leaf");
            for (page, byte) in range(8, 4).iter_pages().zip(4..) {
                assert_eq!(load(&space, page), Some(byte), "after {name} of {span}");
                let state = space.page(page).unwrap();
                assert_eq!((state.place, state.wired, state.held), (Place::Device, false, false));
            }
            assert_eq!(space.map.devices(range(0, PAGES)).collect::<Vec<_>>(), [range(8, 4)]);
        }
    }
}

#[test]
fn every_operation_passes_over_device_memory_or_refuses_it_by_name() {
    // Pages can leave, where they are told to.
    let store = Some(StoreLimits { slots: 0, resident_bytes: u64::MAX });
    for flags in all_flags() {
        every_operation(|| {
            let memory = memory();
            let settings = Settings { store, ..settings(flags, 1) };
            VmSpace::new(memory.clone(), settings, SoftMirror::new(memory))
        });
    }
    every_operation(|| {
        let mut space = space(1);
        space.content = Content::new(PAGES, store);
        space
    });
}

#[test]
fn device_memory_counts_for_no_limit_and_the_clock_passes_over_it() {
    let memory = memory();
    let limits = StoreLimits { slots: 0, resident_bytes: 8 * PAGE_SIZE };
    let settings = Settings { store: Some(limits), ..settings(PmapFlags::EMULATE_AD_BITS, 1) };
    let mut space = VmSpace::new(memory.clone(), settings, SoftMirror::new(memory));
    space.map(range(0, 8), RWX).unwrap();
    space.map_device(range(8, 8), &list(&file(), &[(0, 8)]), RW).unwrap();
    for page in range(0, 8).iter_pages() {
        fault(&mut space, page, Access::Write).unwrap();
    }
    assert_eq!(space.resident_pages(), 8);
    // Once around to age, once more to take.
    for _ in 0..2 {
        let done = space.reclaim().unwrap().expect("memory is short");
        end(&mut space, done);
    }
    assert_eq!(space.tables().leaves(), 8, "all memory left, and nothing else");
    for (page, byte) in range(8, 8).iter_pages().zip(0..) {
        assert_eq!(load(&space, page), Some(byte));
    }
    let tally = space.reclaim_tally();
    assert_eq!((tally.skipped_used_pages, tally.skipped_wired_pages), (8, 0));
}

#[test]
fn device_memory_that_is_unmapped_is_in_reach_until_the_shootdown_and_memory_begins_there_as_zeroes()
 {
    for flags in all_flags() {
        let mut space = soft(flags);
        let file = file();
        space.map_device(range(8, 4), &list(&file, &[(4, 4)]), RW).unwrap();
        let stale = space.tables().view().translate(Gpa(0x9000), Access::Read).unwrap();
        let place = space.memory().host_of_frame(stale.frame, 1).unwrap().as_ptr().addr() as u64;
        let look = || {
            let mut byte = [0];
            let mem = File::open("/proc/self/mem").unwrap();
            mem.read_exact_at(&mut byte, place).unwrap();
            byte[0]
        };
        // A part of it, with nothing on one side.
        let done = space.unmap(range(9, 2)).unwrap();
        assert_eq!((done.translations(), load(&space, Gpa(0x9000))), (2, None));
        assert_eq!(look(), 5, "a processor that was not knocked on yet still uses the device");
        end(&mut space, done);
        assert_eq!(load(&space, Gpa(0x8000)), Some(4));
        assert_eq!(load(&space, Gpa(0xb000)), Some(7));
        space.map(range(9, 2), RWX).unwrap();
        fault(&mut space, Gpa(0x9000), Access::Write).unwrap();
        assert_eq!(load(&space, Gpa(0x9000)), Some(0));
        assert!(store(&space, Gpa(0x9000), 9));
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5 * PAGE_SIZE).unwrap();
        assert_eq!(byte, [5], "the device does not hear of it");
        let done = space.unmap(range(8, 4)).unwrap();
        end(&mut space, done);
        assert_eq!((space.tables().leaves(), space.resident_pages()), (0, 0));
        assert_eq!(space.memory().resident_bytes().unwrap(), 0);
    }
}

#[test]
fn what_is_no_device_memory_or_does_not_go_there_is_refused_and_changes_nothing() {
    let mut space = space(1);
    let file = file();
    space.map(range(0, 4), RWX).unwrap();
    space.refuse(Gpa(0x8123)).unwrap();
    let four = list(&file, &[(0, 4)]);
    for (at, list, protection, why) in [
        (range(2, 4), &four, RW, "is mapped already"),
        (range(PAGES - 2, 4), &four, RW, "outside the guest's memory"),
        (range(8, 4), &four, RWX, "read and written"),
        (range(8, 4), &four, Protection::WRITE, "read and written"),
        (range(8, 4), &list(&file, &[(0, 3)]), RW, "12288 bytes, and 16384 are asked for"),
        (range(8, 4), &list(&file, &[(0, 2), (7, 2)]), RW, "ends at 0x8000, before 0x9000"),
    ] {
        let refused = space.map_device(at, list, protection).unwrap_err().to_string();
        assert!(refused.contains(why), "{refused}");
        assert_eq!((space.tables().leaves(), space.map.len()), (0, 1));
    }
    // A file that cannot be written to, which only the host knows.
    let read_only = File::open("/proc/self/exe").unwrap();
    let read_only = list(&Arc::new(read_only), &[(0, 4)]);
    let refused = space.map_device(range(8, 4), &read_only, RW).unwrap_err();
    assert!(matches!(refused, SpaceError::BadDevice { .. }), "{refused}");
    assert_eq!((space.tables().leaves(), space.map.len()), (0, 1));
    space.map_device(range(8, 4), &read_only, R).unwrap();
    assert!(space.mirror.refused.is_empty(), "there is something now");
    assert_eq!(space.map.lookup(Gpa(0x8000)).unwrap().backing, Backing::Sg);
}

#[test]
fn a_block_of_device_memory_is_never_a_superpage() {
    let layout = MemoryLayout::split(4 << 20, LOWMEM_LIMIT, 48).unwrap();
    let memory = Arc::new(GuestMemory::new(layout).unwrap());
    let flags = PmapFlags::SUPERPAGES;
    let mut space = VmSpace::new(memory.clone(), settings(flags, 1), SoftMirror::new(memory));
    let file = tempfile::tempfile().unwrap();
    file.set_len(4 << 20).unwrap();
    let list = list(&Arc::new(file), &[(512, 512)]);
    space.map_device(range(512, 512), &list, RW).unwrap();
    fault(&mut space, Gpa(2 << 20), Access::Write).unwrap();
    let resized = space.promote(range(0, 1024).intersection(range(512, 512)).unwrap()).unwrap();
    assert_eq!((resized.changed_blocks, resized.refused_blocks), (0, 1));
    assert_eq!((space.tables().superpages(), space.tables().leaves()), (0, 512));
}
