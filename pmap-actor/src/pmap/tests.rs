//! The pmap's operations, in both formats and all combinations of flags.

use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{Access, GpaRange, PAGE_SIZE, PageSize, Protection};

use super::*;
use crate::ept::attribute::Attribute;
use crate::ept::tables::BLOCK;

mod mixed;
mod model;
mod script;
mod states;
mod step;
mod threads;

const RWX: Protection = Protection::all();
const RW: Protection = Protection::READ.union(Protection::WRITE);
const RX: Protection = Protection::READ.union(Protection::EXECUTE);
const READ: Protection = Protection::READ;
const PAGES: u64 = BLOCK / PAGE_SIZE;

/// Both formats with every combination of flags.
fn kinds() -> impl Iterator<Item = (PmapType, PmapFlags)> {
    let flags = (0..8).map(|bits| PmapFlags::from_bits_retain(bits << 8));
    flags.flat_map(|flags| [(PmapType::PtEpt, flags), (PmapType::PtX86, flags)])
}

fn with_superpages() -> impl Iterator<Item = (PmapType, PmapFlags)> {
    kinds().filter(|(_, flags)| flags.contains(PmapFlags::SUPERPAGES))
}

fn pmap((kind, flags): (PmapType, PmapFlags)) -> Pmap {
    Pmap::new(kind, flags, MemoryLayout::split(64 << 20, LOWMEM_LIMIT, 48).unwrap())
}

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa(start * PAGE_SIZE), pages * PAGE_SIZE).unwrap()
}

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn block(number: u64) -> GpaRange {
    range(number * PAGES, PAGES)
}

/// What was harvested, page by page.
#[derive(Default, Debug, PartialEq, Eq)]
struct Heard {
    modified: Vec<u64>,
    referenced: Vec<u64>,
}

fn numbers(range: GpaRange) -> impl Iterator<Item = u64> {
    range.iter_pages().map(|page| page.0 / PAGE_SIZE)
}

impl Harvest for Heard {
    fn modified(&mut self, range: GpaRange) {
        self.modified.extend(numbers(range));
    }

    fn referenced(&mut self, range: GpaRange) {
        self.referenced.extend(numbers(range));
    }
}

fn enter(pmap: &mut Pmap, at: Gpa, protection: Protection, access: Access) {
    let effects = pmap.enter(at, at.0, Wanted::memory(protection, access), &mut Heard::default());
    assert!(!effects.needs_shootdown());
}

fn fill(pmap: &mut Pmap, range: GpaRange, protection: Protection, access: Access) {
    range.iter_pages().for_each(|at| enter(pmap, at, protection, access));
}

/// A promoted block: dirty and writable after stores, else read-only.
fn promoted(pmap: &mut Pmap, number: u64, protection: Protection, access: Access) {
    fill(pmap, block(number), protection, access);
    let effects = pmap.promote(block(number).start(), Unaccessed::Refuse).unwrap();
    assert_eq!(effects.promoted, [block(number).start()]);
    assert!(!effects.needs_shootdown());
}

#[test]
fn what_was_entered_is_found_and_allows_what_was_asked_for() {
    for which in kinds() {
        let mut pmap = pmap(which);
        enter(&mut pmap, page(5), RWX, Access::Write);
        enter(&mut pmap, page(6), RX, Access::Read);
        assert_eq!(pmap.extract(Gpa(0x5123)), Some(0x5123));
        assert_eq!((pmap.rights(page(5)), pmap.rights(page(6))), (RWX, RX), "{which:?}");
        assert_eq!(pmap.extract_allowing(page(6), RW), None);
        assert!(pmap.is_modified(page(5)) && !pmap.is_modified(page(6)));
        assert_eq!(pmap.mapping(page(5)).len(), 4);
        assert_eq!((pmap.resident_pages(), pmap.rights(page(7))), (2, Protection::empty()));
    }
}

#[test]
fn a_page_that_was_only_read_traps_at_its_first_store_where_bits_are_emulated() {
    for which in kinds() {
        let mut pmap = pmap(which);
        enter(&mut pmap, page(5), RWX, Access::Read);
        let emulated = pmap.masks().emulated;
        assert_eq!(pmap.rights(page(5)).contains(Protection::WRITE), !emulated);
        assert_eq!(pmap.emulate_accessed_dirty(page(5), Access::Write), emulated);
        assert_eq!(pmap.is_modified(page(5)), emulated);
    }
}

#[test]
fn what_is_removed_is_harvested_and_asks_for_one_shootdown() {
    for which in kinds() {
        let mut pmap = pmap(which);
        fill(&mut pmap, range(5, 2), RWX, Access::Write);
        enter(&mut pmap, page(7), RWX, Access::Read);
        let mut heard = Heard::default();
        let effects = pmap.remove(range(0, 1024), &mut heard);
        assert_eq!((heard.modified, heard.referenced), (vec![5, 6], vec![5, 6, 7]));
        assert_eq!(effects.translations, 3);
        assert_eq!(effects.unreachable.as_slice(), [range(5, 3)]);
        assert_eq!(effects.emptied.len(), 3);
        pmap.give_back(effects.emptied);
        pmap.release();
    }
}

#[test]
fn a_block_of_equal_pages_becomes_a_superpage_and_pages_again() {
    for which in with_superpages() {
        for (protection, access) in [(RWX, Access::Write), (RX, Access::Read), (RW, Access::Write)]
        {
            let mut pmap = pmap(which);
            promoted(&mut pmap, 3, protection, access);
            let at = Gpa(block(3).start().0 + 0x12_3456);
            assert_eq!(pmap.leaf(at).unwrap().size, PageSize::Size2MiB);
            assert_eq!((pmap.extract(at), pmap.mapping(at).len()), (Some(at.0), 3));
            assert_eq!((pmap.resident_pages(), pmap.tables().leaves()), (512, 1));
            assert_eq!(pmap.rights(at), protection);
            let effects = pmap.demote(at, &mut Heard::default());
            assert_eq!(effects.demoted, [block(3).start()]);
            assert!(!effects.needs_shootdown(), "nothing was lost");
            assert_eq!((pmap.resident_pages(), pmap.tables().leaves()), (512, 512));
            assert_eq!((pmap.extract(at), pmap.rights(at)), (Some(at.0), protection));
            assert_eq!(pmap.tables().saved_tables(), 0);
        }
    }
}

#[test]
fn clean_writable_pages_lose_the_right_to_write_when_they_are_promoted() {
    for which in with_superpages() {
        let mut pmap = pmap(which);
        promoted(&mut pmap, 0, RWX, Access::Read);
        assert_eq!(pmap.rights(page(9)), RX);
        assert!(!pmap.emulate_accessed_dirty(page(9), Access::Write));
        let wanted = Wanted::memory(RWX, Access::Write);
        let effects = pmap.enter(page(9), page(9).0, wanted, &mut Heard::default());
        assert_eq!(effects.demoted, [page(0)]);
        assert!(!effects.needs_shootdown(), "rights only grew");
        assert_eq!((pmap.rights(page(9)), pmap.rights(page(8))), (RWX, RX));
    }
}

#[test]
fn every_reason_against_a_promotion_is_named_and_counted() {
    for which in kinds() {
        let mut pmap = pmap(which);
        let at = page(0);
        if !which.1.contains(PmapFlags::SUPERPAGES) {
            let refused = pmap.promote(at, Unaccessed::Refuse).unwrap_err();
            assert_eq!(refused, NotPromoted::Unsupported);
            continue;
        }
        let refused = |pmap: &mut Pmap| {
            assert!(pmap.can_promote(at, Unaccessed::Refuse).is_err());
            let before: Vec<_> = pmap.tables().entries(at).into_iter().flatten().collect();
            let refused = pmap.promote(at, Unaccessed::Refuse).unwrap_err();
            let after: Vec<_> = pmap.tables().entries(at).into_iter().flatten().collect();
            assert_eq!(before, after, "a refusal leaves no trace");
            refused
        };
        let put = |pmap: &mut Pmap, number, frame, wanted| {
            let _ = pmap.enter(page(number), frame, wanted, &mut Heard::default());
        };
        assert_eq!(refused(&mut pmap), NotPromoted::NotFull(0));
        fill(&mut pmap, range(0, 511), RW, Access::Write);
        assert_eq!(refused(&mut pmap), NotPromoted::NotFull(511));
        let stored = Wanted::memory(RW, Access::Write);
        put(&mut pmap, 511, 0x100_0000, stored);
        assert_eq!(refused(&mut pmap), NotPromoted::NotContiguous(page(511)));
        put(&mut pmap, 511, page(511).0, Wanted { protection: RWX, ..stored });
        assert_eq!(refused(&mut pmap), NotPromoted::MixedAttributes(page(511)));
        put(&mut pmap, 511, page(511).0, Wanted { wired: true, ..stored });
        assert_eq!(refused(&mut pmap), NotPromoted::MixedAttributes(page(511)));
        let _ = pmap.remove(range(511, 1), &mut Heard::default());
        enter(&mut pmap, page(511), RW, Access::Read);
        assert_eq!(refused(&mut pmap), NotPromoted::MixedDirty(page(511)));
        let _ = pmap.remove(range(511, 1), &mut Heard::default());
        assert!(pmap.enter_quick(page(511), page(511).0, READ, Attribute::MEMORY));
        assert_eq!(refused(&mut pmap), NotPromoted::NotAccessed(page(511)));
        enter(&mut pmap, page(511), RW, Access::Write);
        let _ = pmap.promote(at, Unaccessed::Refuse).unwrap();
        assert_eq!(pmap.can_promote(at, Unaccessed::Refuse), Err(NotPromoted::Already));
        for index in 0..PAGES {
            put(&mut pmap, PAGES + index, page(index + 1).0, stored);
        }
        let refusal = pmap.promote(page(PAGES), Unaccessed::Refuse);
        assert_eq!(refusal.unwrap_err(), NotPromoted::NotAligned(0x1000));
        for at in block(2).iter_pages() {
            let _ = pmap.enter(at, at.0, Wanted::device(RW, Access::Write), &mut Heard::default());
        }
        let refusal = pmap.promote(page(2 * PAGES), Unaccessed::Refuse);
        assert_eq!(refusal.unwrap_err(), NotPromoted::MixedAttributes(page(2 * PAGES)));
        assert_eq!((pmap.tally().promotions, pmap.tally().refused_promotions.total()), (1, 9));
    }
}

#[test]
fn pages_that_nobody_used_can_be_marked_for_a_promotion() {
    for which in with_superpages() {
        let mut pmap = pmap(which);
        for at in block(0).iter_pages() {
            assert!(pmap.enter_quick(at, at.0, READ, Attribute::MEMORY));
        }
        assert!(pmap.promote(page(0), Unaccessed::Refuse).is_err());
        assert_eq!(pmap.promote(page(0), Unaccessed::Mark).unwrap().promoted, [page(0)]);
        assert!(pmap.is_referenced(page(7)) && pmap.rights(page(7)) == READ);
    }
}

#[test]
fn a_superpage_goes_as_one_and_a_part_of_it_as_a_part() {
    for which in with_superpages() {
        let mut pmap = pmap(which);
        for number in 0..3 {
            promoted(&mut pmap, number, RWX, Access::Write);
        }
        let mut heard = Heard::default();
        let effects = pmap.remove(range(500, 512 + 20), &mut heard);
        assert_eq!(effects.demoted, [page(0), page(1024)]);
        assert_eq!(effects.translations, 12 + 1 + 8);
        assert_eq!(effects.unreachable.as_slice(), [range(500, 532)]);
        assert_eq!(effects.emptied.len(), 1, "the table that was saved for the whole block");
        assert_eq!(heard.modified, (500..1032).collect::<Vec<_>>());
        assert_eq!(pmap.resident_pages(), 3 * 512 - 532);
    }
}
