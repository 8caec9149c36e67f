use super::*;
use crate::swap::PAGE_BYTES;
use crate::swap::codec::tests::{packed, page_of};

const PAGES: u64 = 2048;
const PAGE: u64 = actors::PAGE_SIZE;

fn content(slots: u32, resident_pages: u64) -> Content {
    let resident_bytes = resident_pages.saturating_mul(PAGE);
    Content::new(PAGES, Some(StoreLimits { slots, resident_bytes }))
}

fn unlimited() -> Content {
    content(1024, u64::MAX)
}

/// What a page of noise becomes, which goes to disk at once; and what a page does that stays in the tier.
fn raw(seed: u64) -> Laundered {
    Laundered::Packed(packed(&page_of(seed, PAGE_BYTES)))
}

fn small(seed: u64) -> Laundered {
    Laundered::Packed(packed(&page_of(seed, 512)))
}

/// These pages begin to leave, and their shootdown is over.
fn leave(content: &mut Content, pages: &[u64]) -> OutTicket {
    let ticket = content.begin_out(true);
    for &page in pages {
        content.leave(page, ticket);
    }
    let freed = content.unreachable(ticket, pages);
    assert!(freed.is_empty(), "they are dirty");
    ticket
}

fn appear(content: &mut Content, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| content.appear(page));
}

fn writes(content: &mut Content) -> Vec<Write> {
    let jobs = content.take_jobs().into_iter();
    jobs.filter_map(|job| if let Job::Write(write) = job { Some(write) } else { None }).collect()
}

fn fetches(content: &mut Content) -> Vec<Fetch> {
    let jobs = content.take_jobs().into_iter();
    jobs.filter_map(|job| if let Job::Fetch(fetch) = job { Some(fetch) } else { None }).collect()
}

/// Puts these pages on the disk, in slots that follow each other.
fn put_on_disk(content: &mut Content, pages: &[u64]) {
    appear(content, pages.iter().copied());
    let ticket = leave(content, pages);
    content.take_jobs();
    content.laundered(ticket.0, pages.iter().map(|page| (*page, raw(*page))).collect());
    for write in writes(content) {
        content.written(write.ticket, Ok(1)).unwrap();
    }
    for &page in pages {
        assert!(matches!(content.get(page), Page::Stored(Stored::Disk(_))), "page {page}");
    }
    content.take_ended();
}

fn slot_of(content: &Content, page: u64) -> Slot {
    content.get(page).slot().unwrap()
}

#[test]
fn a_page_that_is_wanted_while_it_leaves_is_as_it_was_and_what_was_packed_is_dropped() {
    let mut content = unlimited();
    appear(&mut content, [1, 2]);
    let ticket = leave(&mut content, &[1, 2]);
    content.rescue(1);
    assert_eq!(content.get(1), Page::Resident(Kept::Nothing));
    let (freed, unreadable) = content.laundered(ticket.0, vec![(1, small(1)), (2, small(2))]);
    assert_eq!((freed, unreadable), (vec![2], None));
    assert_eq!(content.get(1), Page::Resident(Kept::Nothing));
    assert_eq!(content.get(2), Page::Stored(Stored::Compressed));
    let ended = content.take_ended();
    let out = PagedOut { freed_pages: 1, rescued_pages: 1, ..PagedOut::default() };
    assert_eq!(ended, [(ticket, out)]);
}

#[test]
fn an_answer_about_an_earlier_pageout_of_a_page_is_not_taken_for_the_later_one() {
    let mut content = unlimited();
    appear(&mut content, [1]);
    let first = leave(&mut content, &[1]);
    content.rescue(1);
    let second = leave(&mut content, &[1]);
    let (freed, _) = content.laundered(first.0, vec![(1, small(1))]);
    assert!(freed.is_empty(), "the page was stored to since");
    assert_eq!(content.get(1), Page::Leaving(Kept::Nothing));
    let (freed, _) = content.laundered(second.0, vec![(1, small(2))]);
    assert_eq!(freed, [1]);
    content.take_jobs();
    assert!(!content.is_waiting_for_workers());
}

#[test]
fn a_page_that_was_forgotten_while_it_was_packed_stays_forgotten() {
    let mut content = unlimited();
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.forget(1);
    let (freed, _) = content.laundered(ticket.0, vec![(1, small(1))]);
    assert_eq!((freed, content.get(1)), (vec![], Page::Absent));
    assert_eq!(content.tally().compressed_pages, 0);
    assert_eq!(content.take_ended().len(), 1);
}

#[test]
fn a_slot_is_nobody_elses_until_the_write_to_it_was_heard_of() {
    let mut content = content(4, u64::MAX);
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.laundered(ticket.0, vec![(1, raw(1))]);
    let write = writes(&mut content).remove(0);
    assert_eq!(content.slots(), (3, 4));
    content.forget(1);
    assert_eq!(content.slots(), (3, 4), "somebody is writing there");
    content.written(write.ticket, Ok(1)).unwrap();
    assert_eq!(content.slots(), (4, 4));
    assert_eq!(content.get(1), Page::Absent);
}

#[test]
fn what_could_not_be_written_is_in_memory_still_and_its_slot_is_free() {
    let mut content = content(4, u64::MAX);
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.laundered(ticket.0, vec![(1, raw(1))]);
    let write = writes(&mut content).remove(0);
    let full = SwapError::DiskFull { slot: write.pages[0].slot };
    assert_eq!(content.written(write.ticket, Err(full.clone())), Err(full));
    assert_eq!((content.get(1), content.slots()), (Page::Stored(Stored::Compressed), (4, 4)));
    let mut bytes = [0; PAGE_BYTES];
    content.unpack(1, &mut bytes).unwrap();
    assert_eq!(bytes, page_of(1, PAGE_BYTES));
}

#[test]
fn a_page_that_comes_back_while_it_is_written_keeps_nothing_of_the_write() {
    let mut content = content(4, u64::MAX);
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.laundered(ticket.0, vec![(1, raw(1))]);
    let write = writes(&mut content).remove(0);
    content.unpacked(1);
    content.written(write.ticket, Ok(1)).unwrap();
    assert_eq!((content.get(1), content.slots()), (Page::Resident(Kept::Nothing), (4, 4)));
}

#[test]
fn a_clean_page_leaves_without_any_work_and_a_store_gives_its_copy_up() {
    let mut content = unlimited();
    put_on_disk(&mut content, &[1]);
    let slot = slot_of(&content, 1);
    content.fetch(1);
    let fetch = fetches(&mut content).remove(0);
    content.arrived(&fetch.wanted);
    assert_eq!(content.get(1), Page::Resident(Kept::Disk(slot)));
    let ticket = content.begin_out(false);
    content.leave(1, ticket);
    assert_eq!(content.unreachable(ticket, &[1]), [1]);
    assert!(content.take_jobs().is_empty());
    assert_eq!(content.get(1), Page::Stored(Stored::Disk(slot)));
    content.fetch(1);
    let fetch = fetches(&mut content).remove(0);
    content.arrived(&fetch.wanted);
    content.stored(1..2);
    assert_eq!((content.get(1), content.slots().0), (Page::Resident(Kept::Nothing), 1024));
}

#[test]
fn a_store_that_is_heard_of_while_its_page_leaves_keeps_it_from_leaving_as_clean() {
    let mut content = unlimited();
    put_on_disk(&mut content, &[1]);
    content.fetch(1);
    let fetch = fetches(&mut content).remove(0);
    content.arrived(&fetch.wanted);
    let ticket = content.begin_out(false);
    content.leave(1, ticket);
    content.stored(1..2);
    assert!(content.unreachable(ticket, &[1]).is_empty());
    assert!(matches!(&content.take_jobs()[..], [Job::Launder(order)] if order.pages == [1]));
}

#[test]
fn zeroes_take_neither_memory_nor_disk() {
    let mut content = unlimited();
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.take_jobs();
    let (freed, _) = content.laundered(ticket.0, vec![(1, Laundered::Zero)]);
    assert_eq!((freed, content.get(1), content.usage()), (vec![1], Page::Stored(Stored::Zero), 0));
    assert!(content.take_jobs().is_empty());
}

#[test]
fn a_page_that_cannot_be_read_stays_and_its_pageout_ends() {
    let mut content = unlimited();
    appear(&mut content, [1, 2]);
    let ticket = leave(&mut content, &[1, 2]);
    let answer = vec![(1, Laundered::Unreadable("bad memory".to_owned())), (2, small(2))];
    let (freed, unreadable) = content.laundered(ticket.0, answer);
    assert_eq!((freed, content.get(1)), (vec![2], Page::Resident(Kept::Nothing)));
    assert!(unreadable.is_some());
    assert_eq!(content.take_ended().len(), 1);
}

#[test]
fn a_pageout_that_somebody_waits_for_ends_exactly_once_however_it_ends() {
    let mut content = unlimited();
    // Nothing to do.
    let ticket = content.begin_out(true);
    content.note_out(ticket, |out| out.held_pages += 3);
    assert!(content.take_ended().is_empty(), "its shootdown is not over");
    content.unreachable(ticket, &[]);
    let out = PagedOut { held_pages: 3, ..PagedOut::default() };
    assert_eq!(content.take_ended(), [(ticket, out)]);
    // All of it is rescued before the shootdown is over.
    appear(&mut content, [1, 2]);
    let ticket = content.begin_out(true);
    content.leave(1, ticket);
    content.leave(2, ticket);
    content.rescue(1);
    content.rescue(2);
    assert!(content.unreachable(ticket, &[1, 2]).is_empty());
    assert_eq!(content.take_ended().len(), 1);
    // Some leave, some are forgotten.
    let ticket = leave(&mut content, &[1, 2]);
    content.forget(1);
    content.laundered(ticket.0, vec![(1, small(1)), (2, small(2))]);
    assert_eq!(content.take_ended().len(), 1);
    assert!(content.take_ended().is_empty());
}

#[test]
fn who_reads_a_page_reads_those_along_that_lie_beside_it_in_memory_and_on_disk() {
    let mut content = unlimited();
    put_on_disk(&mut content, &(10..30).collect::<Vec<_>>());
    content.forget(14);
    content.fetch(10);
    let fetch = fetches(&mut content).remove(0);
    assert_eq!(fetch.wanted.page, 10);
    let along: Vec<_> = fetch.readahead.iter().map(|read| read.page).collect();
    assert_eq!(along, [11, 12, 13], "14 is not there any more");
    assert!(matches!(content.get(11), Page::Arriving(_)));
    content.fetch(15);
    assert_eq!(fetches(&mut content)[0].readahead.len(), READAHEAD);
}

#[test]
fn nothing_is_read_along_once_that_has_not_paid() {
    let mut content = unlimited();
    put_on_disk(&mut content, &(0..400).collect::<Vec<_>>());
    let mut along = 0;
    for page in (0..400).step_by(1 + READAHEAD) {
        content.fetch(page);
        along += fetches(&mut content)[0].readahead.len() as u64;
    }
    assert!((READAHEAD_TRIAL..READAHEAD_TRIAL + 8).contains(&along), "{along}");
    // Those were of use after all.
    (0..100).filter(|page| page % 8 != 0).for_each(|page| content.mapped(page));
    put_on_disk(&mut content, &[500, 501]);
    content.fetch(500);
    assert_eq!(fetches(&mut content)[0].readahead.len(), 1);
}

#[test]
fn what_was_only_read_along_and_did_not_arrive_stays_on_disk() {
    let mut content = unlimited();
    put_on_disk(&mut content, &[1, 2]);
    let slot = slot_of(&content, 2);
    content.fetch(1);
    let fetch = fetches(&mut content).remove(0);
    content.did_not_arrive(&fetch.readahead[0]);
    assert_eq!(content.get(2), Page::Stored(Stored::Disk(slot)));
    assert!(!content.is_arriving(&fetch.readahead[0]) && content.is_arriving(&fetch.wanted));
}

#[test]
fn nobody_waits_for_the_reading_of_a_page_that_was_forgotten_meanwhile() {
    let mut content = unlimited();
    put_on_disk(&mut content, &[1]);
    content.fetch(1);
    let fetch = fetches(&mut content).remove(0);
    content.forget(1);
    assert!(!content.is_arriving(&fetch.wanted));
    assert_eq!((content.get(1), content.slots()), (Page::Absent, (1024, 1024)));
    // The page and the slot have other contents now.
    appear(&mut content, [1]);
    let ticket = leave(&mut content, &[1]);
    content.laundered(ticket.0, vec![(1, raw(77))]);
    for write in writes(&mut content) {
        content.written(write.ticket, Ok(1)).unwrap();
    }
    content.fetch(1);
    assert!(!content.is_arriving(&fetch.wanted), "its checksum is another");
}

#[test]
fn pages_begin_to_leave_near_the_limit_and_go_on_until_there_is_some_room() {
    let mut content = content(0, 320);
    appear(&mut content, 0..310);
    assert!(!content.wants_reclaim());
    appear(&mut content, 310..311);
    assert!(content.wants_reclaim(), "more than 31/32");
    assert!(content.has_room(9) && !content.has_room(10));
    let ticket = leave(&mut content, &(0..10).collect::<Vec<_>>());
    assert!(content.wants_reclaim(), "301 pages will be left, and 300 are 15/16");
    leave(&mut content, &[10]);
    assert!(!content.wants_reclaim(), "that was enough");
    assert!(!content.has_room(10), "what leaves is there until it is packed");
    content.laundered(ticket.0, (0..10).map(|page| (page, Laundered::Zero)).collect());
    assert!(content.has_room(10) && !content.wants_reclaim());
}

#[test]
fn without_a_limit_there_is_room_and_nobody_leaves_by_themselves() {
    for mut content in [unlimited(), Content::new(PAGES, None)] {
        appear(&mut content, 0..PAGES);
        assert!(content.has_room(u64::MAX / PAGE) && !content.wants_reclaim());
        assert!(!content.is_limited());
    }
}

#[test]
fn what_does_not_fit_the_tier_goes_to_disk_in_clusters_of_neighbours() {
    let mut content = content(1024, 1024);
    let pages: Vec<_> = (0..1000).collect();
    appear(&mut content, pages.iter().copied());
    let ticket = leave(&mut content, &pages);
    content.take_jobs();
    content.laundered(ticket.0, pages.iter().map(|page| (*page, raw(*page))).collect());
    let writes = writes(&mut content);
    assert_eq!(writes.iter().map(|write| write.pages.len()).sum::<usize>(), 1000);
    for write in &writes {
        let follows = |pair: &[WritePage]| pair[0].slot.0 + 1 == pair[1].slot.0;
        assert!(write.pages.len() <= CLUSTER_PAGES && write.pages.windows(2).all(follows));
    }
}
