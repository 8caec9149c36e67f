//! What is remembered, and what never is.

use std::sync::atomic::Ordering;

use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{GpaRange, PAGE_SIZE, Protection};

use super::super::arena::TableFrame;
use super::super::masks::{FRAME_MASK, PmapFlags, PmapType};
use super::super::tables::Tables;
use super::*;

/// Two pages of one block, and one whose block has the same slot.
const GPA: Gpa = Gpa(3 << 21 | 4 << 12 | 0x123);
const NEIGHBOUR: Gpa = Gpa(3 << 21 | 5 << 12);
const RIVAL: Gpa = Gpa((3 + TABLES as u64) << 21 | 4 << 12);

fn tables(flags: PmapFlags) -> Tables {
    let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, ADDRESS_BITS).unwrap();
    Tables::new(PmapType::PtEpt, flags, layout)
}

fn enter(tables: &mut Tables, gpa: Gpa, frame: u64) {
    let leaf = tables.masks().leaf(frame, Protection::all());
    tables.enter(gpa, leaf);
}

fn remove(tables: &mut Tables, gpa: Gpa) -> Vec<TableFrame> {
    let mut emptied = Vec::new();
    assert_eq!(tables.remove(GpaRange::page_of(gpa), &mut emptied, |_, _| {}), 1);
    emptied
}

/// Gives the entry of `level` on the way to [`GPA`] other bits outside its frame.
fn poke(view: &View, level: u32, change: impl Fn(u64) -> u64) {
    let mut table = TableFrame::ROOT;
    for above in (level + 1..=4).rev() {
        let entry = view.arena.place(&table, GPA, above).load(Ordering::Relaxed);
        table = TableFrame(entry & FRAME_MASK);
    }
    let place = view.arena.place(&table, GPA, level);
    place.store(change(place.load(Ordering::Relaxed)), Ordering::Relaxed);
}

#[test]
fn the_way_to_a_table_is_remembered_until_it_is_forgotten() {
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS);
    enter(&mut tables, GPA, 0x7000);
    enter(&mut tables, NEIGHBOUR, 0x8000);
    let mut last = LastTables::new(tables.view());
    assert_eq!(last.translate(GPA, Access::Read).unwrap().frame, 0x7000);
    poke(last.view(), 3, |_| 0);
    assert_eq!(last.translate(NEIGHBOUR, Access::Read).unwrap().frame, 0x8000);
    last.forget();
    assert!(last.translate(NEIGHBOUR, Access::Read).is_err());
}

#[test]
fn leaves_are_read_anew_each_time() {
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS);
    enter(&mut tables, GPA, 0x7000);
    enter(&mut tables, NEIGHBOUR, 0x8000);
    let mut last = LastTables::new(tables.view());
    last.translate(GPA, Access::Read).unwrap();
    assert!(remove(&mut tables, GPA).is_empty(), "the neighbour keeps the table");
    assert!(last.translate(GPA, Access::Read).is_err());
    enter(&mut tables, GPA, 0x9000);
    assert_eq!(last.translate(GPA, Access::Read).unwrap().frame, 0x9000);
}

#[test]
fn a_table_that_left_the_tree_refuses_and_its_successor_is_found_at_once() {
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS);
    enter(&mut tables, GPA, 0x7000);
    let mut last = LastTables::new(tables.view());
    last.translate(GPA, Access::Read).unwrap();
    let emptied = remove(&mut tables, GPA);
    assert!(!emptied.is_empty());
    assert!(last.translate(GPA, Access::Read).is_err());
    enter(&mut tables, GPA, 0x9000);
    assert_eq!(last.translate(GPA, Access::Read).unwrap().frame, 0x9000);
}

#[test]
fn a_right_that_was_given_above_a_remembered_table_counts_at_once() {
    const WRITE: u64 = 1 << 1;
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS);
    enter(&mut tables, GPA, 0x7000);
    let mut last = LastTables::new(tables.view());
    poke(last.view(), 2, |entry| entry & !WRITE);
    assert!(!last.translate(GPA, Access::Read).unwrap().writable);
    assert_eq!(
        last.translate(GPA, Access::Write),
        Err(Refused::Violation { readable: true, writable: false, executable: true })
    );
    last.translate(GPA, Access::Read).unwrap();
    poke(last.view(), 2, |entry| entry | WRITE);
    assert!(last.translate(GPA, Access::Write).unwrap().writable);
}

#[test]
fn blocks_of_one_slot_do_not_answer_for_each_other() {
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS);
    enter(&mut tables, GPA, 0x7000);
    enter(&mut tables, RIVAL, 0x8000);
    let mut last = LastTables::new(tables.view());
    for _ in 0..3 {
        assert_eq!(last.translate(GPA, Access::Read).unwrap().frame, 0x7000);
        assert_eq!(last.translate(RIVAL, Access::Read).unwrap().frame, 0x8000);
    }
    assert!(last.translate(Gpa(GPA.0 | 1 << ADDRESS_BITS), Access::Read).is_err());
}

#[test]
fn with_and_without_memory_every_answer_and_every_trace_is_the_same() {
    for flags in [PmapFlags::EMULATE_AD_BITS, PmapFlags::empty()] {
        for leaf in 0..1024u64 {
            for access in Access::ALL {
                let [mut one, mut other] = [tables(flags), tables(flags)];
                for tables in [&mut one, &mut other] {
                    enter(tables, NEIGHBOUR, 0x8000);
                    enter(tables, GPA, 0x7000);
                    // Rights, memory type, superpage, accessed and dirty bits in each combination.
                    poke(&tables.view(), 1, |entry| entry & FRAME_MASK | leaf);
                }
                let mut last = LastTables::new(one.view());
                last.translate(NEIGHBOUR, Access::Read).unwrap();
                other.view().translate(NEIGHBOUR, Access::Read).unwrap();
                let expected = other.view().translate(GPA, access);
                assert_eq!(last.translate(GPA, access), expected, "{leaf:#x} {access:?}");
                assert_eq!(one.chain(GPA), other.chain(GPA), "{leaf:#x} {access:?}");
            }
        }
    }
}

#[test]
fn a_superpage_answers_for_all_of_its_pages_and_is_not_taken_for_a_table() {
    const SUPERPAGE: u64 = 1 << 7;
    const WRITE_BACK: u64 = 6 << 3;
    let mut tables = tables(PmapFlags::EMULATE_AD_BITS | PmapFlags::SUPERPAGES);
    enter(&mut tables, GPA, 0x7000);
    let mut last = LastTables::new(tables.view());
    last.translate(GPA, Access::Read).unwrap();
    poke(last.view(), 2, |_| 0x40_0000 | SUPERPAGE | WRITE_BACK | 7);
    last.forget();
    for page in 0..512 {
        let gpa = Gpa((GPA.0 >> 21 << 21) + page * PAGE_SIZE);
        let found = last.translate(gpa, Access::Write).unwrap();
        assert_eq!((found.frame, found.bytes), (0x40_0000, 2 << 20));
    }
}
