//! The writer's structure: what is entered, removed, given back.

use std::cell::Cell;

use actors::layout::LOWMEM_LIMIT;
use actors::{Access, GpaRange, PAGE_SIZE, Protection};

use super::*;

fn tables() -> Tables {
    let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, 48).unwrap();
    Tables::new(PmapType::PtEpt, PmapFlags::EMULATE_AD_BITS, layout)
}

fn range(start: u64, pages: u64) -> GpaRange {
    GpaRange::new(Gpa(start), pages * PAGE_SIZE).unwrap()
}

fn fill(tables: &mut Tables, range: GpaRange) {
    for gpa in range.iter_pages() {
        let leaf = tables.masks().leaf(gpa.0, Protection::all());
        assert_eq!(tables.enter(gpa, leaf), 0);
    }
}

#[test]
fn what_was_entered_is_found_by_the_writer_and_by_a_reader() {
    let mut tables = tables();
    let view = tables.view();
    fill(&mut tables, range(0x7f_ffff_f000, 2));
    for gpa in [0x7f_ffff_f000, 0x80_0000_0000] {
        let leaf = view.leaf(Gpa(gpa + 5)).unwrap();
        assert_eq!(leaf.frame(), gpa);
        assert_eq!(tables.leaf(Gpa(gpa)), Some(leaf));
    }
    assert_eq!(view.leaf(Gpa(0x80_0000_1000)), None);
    assert_eq!(view.leaf(Gpa(1 << 48)), None);
}

#[test]
fn a_chain_has_four_entries_and_ends_in_the_leaf() {
    let mut tables = tables();
    fill(&mut tables, range(0x1000, 1));
    let chain = tables.chain(Gpa(0x1000));
    assert_eq!(chain.len(), 4);
    assert_eq!(chain.last().copied(), tables.leaf(Gpa(0x1000)).map(|leaf| leaf.entry));
    assert_eq!(tables.chain(Gpa(0x2000)).len(), 3);
    assert_eq!(tables.chain(Gpa(1 << 39)).len(), 0);
}

#[test]
fn mapped_pages_are_counted_in_whole_blocks_and_in_parts_of_them() {
    let mut tables = tables();
    // The end of one block, the whole next, a superpage, and a page far away.
    fill(&mut tables, range(0x1f_e000, 2));
    fill(&mut tables, range(0x20_0000, 512));
    let leaf = tables.masks().leaf(0x40_0000, Protection::all()) | tables.masks().superpage;
    assert!(tables.enter_superpage(Gpa(0x40_0000), leaf));
    fill(&mut tables, range(0x80_0000_0000, 1));
    for (start, pages, mapped) in [
        (0, 512, 2),
        (0, 511, 1),
        (0, 1024, 514),
        (0x20_1000, 511, 511),
        (0x20_1000, 1024, 1023),
        (0x40_0000, 512, 512),
        (0x60_0000, 512, 0),
        (0, (0x80_0000_1000) >> 12, 1027),
    ] {
        assert_eq!(tables.mapped_pages_in(range(start, pages)), mapped, "{start:#x} {pages}");
    }
}

#[test]
fn emptied_tables_leave_the_tree_and_come_back_only_when_given_back() {
    let mut tables = tables();
    fill(&mut tables, range(0x20_0000 - 0x1000, 2));
    assert_eq!(tables.table_pages(), 5);
    let mut emptied = Vec::new();
    let mut seen = Vec::new();
    let removed = tables.remove(range(0, 1024), &mut emptied, |gpa, _| seen.push(gpa));
    assert_eq!((removed, tables.leaves()), (2, 0));
    assert_eq!(seen, [Gpa(0x1f_f000), Gpa(0x20_0000)]);
    assert_eq!(emptied.len(), 4);
    assert_eq!(tables.table_pages(), 5, "not given back yet");
    tables.give_back(emptied);
    assert_eq!(tables.table_pages(), 1);
    fill(&mut tables, range(0, 1));
    assert_eq!(tables.table_pages(), 4);
    assert_eq!(tables.leaf(Gpa(0x1000)), None, "a reused table is all zeroes");
}

#[test]
fn a_table_with_a_leaf_left_stays() {
    let mut tables = tables();
    fill(&mut tables, range(0, 3));
    let mut emptied = Vec::new();
    assert_eq!(tables.remove(range(0x1000, 1), &mut emptied, |_, _| {}), 1);
    assert!(emptied.is_empty());
    assert!(tables.leaf(Gpa(0)).is_some() && tables.leaf(Gpa(0x1000)).is_none());
}

#[test]
fn an_update_touches_valid_leaves_only_and_counts_changes() {
    let mut tables = tables();
    fill(&mut tables, range(0x1f_f000, 2));
    let writable = tables.masks().writable;
    let mut seen = Vec::new();
    let mut clear = |tables: &mut Tables| {
        let see = |_, before: Leaf, after: u64| seen.push(before.entry & !after);
        tables.update(range(0, 1024), |leaf| leaf.entry & !writable, see)
    };
    assert_eq!(clear(&mut tables), 2);
    assert_eq!(clear(&mut tables), 0);
    assert_eq!(seen, [writable, writable]);
    assert_eq!(tables.leaf(Gpa(0x20_0000)).unwrap().entry & writable, 0);
}

/// Tables with hardware bits and a full block 0 of writable pages, accessed but clean.
fn full_block() -> Tables {
    let layout = MemoryLayout::split(64 << 20, LOWMEM_LIMIT, 48).unwrap();
    let mut tables = Tables::new(PmapType::PtEpt, PmapFlags::SUPERPAGES, layout);
    for gpa in range(0, 512).iter_pages() {
        let leaf = tables.masks().leaf(gpa.0, Protection::all()) | tables.masks().accessed;
        tables.enter(gpa, leaf);
    }
    tables
}

/// Does something once.
fn once(done: &Cell<bool>, what: impl FnOnce()) {
    if !done.replace(true) {
        what();
    }
}

#[test]
fn a_store_that_comes_while_a_block_is_made_read_only_wins_and_the_others_get_their_right_back() {
    let mut tables = full_block();
    let (masks, view) = (*tables.masks(), tables.view());
    let before: Vec<u64> = tables.entries(Gpa(0)).unwrap().collect();
    let (stored, page) = (Cell::new(false), Gpa(300 * PAGE_SIZE));
    let take_right = |entry: u64| {
        if entry & FRAME_MASK == page.0 {
            once(&stored, || assert!(view.translate(page, Access::Write).unwrap().writable));
        }
        (entry & masks.modified == 0).then_some(entry & !masks.writable)
    };
    assert!(!tables.exchange(Gpa(0), take_right));
    let changed: Vec<u64> = tables.entries(Gpa(0)).unwrap().collect();
    let news: Vec<_> = (0..512).filter(|index| changed[*index] != before[*index]).collect();
    assert_eq!(news, [300]);
    assert_eq!(changed[300], before[300] | masks.modified);
}

#[test]
fn a_store_that_comes_after_the_right_was_taken_is_refused() {
    let mut tables = full_block();
    let (masks, view) = (*tables.masks(), tables.view());
    let (tried, page) = (Cell::new(false), Gpa(299 * PAGE_SIZE));
    let take_right = |entry: u64| {
        if entry & FRAME_MASK == page.0 + PAGE_SIZE {
            once(&tried, || assert!(view.translate(page, Access::Write).is_err()));
        }
        (entry & masks.modified == 0).then_some(entry & !masks.writable)
    };
    assert!(tables.exchange(Gpa(0), take_right));
    assert!(tried.get());
}

#[test]
fn a_use_of_a_superpage_that_comes_while_it_is_demoted_is_in_its_pages() {
    let mut tables = full_block();
    let (masks, view) = (*tables.masks(), tables.view());
    let first = tables.leaf(Gpa(0)).unwrap().entry & !masks.writable;
    assert!(tables.exchange(Gpa(0), |entry| Some(entry & !masks.writable)));
    tables.promote(Gpa(0), masks.to_superpage(first & !masks.accessed));
    let used = Cell::new(false);
    let page = |superpage, index| {
        if index == 511 {
            once(&used, || {
                let found = view.translate(Gpa(0x5000), Access::Read).unwrap();
                assert_eq!(found.bytes, BLOCK);
            });
        }
        masks.to_page(superpage, index)
    };
    assert!(tables.demote(Gpa(0), page));
    assert!(used.get());
    assert!(tables.entries(Gpa(0)).unwrap().all(|entry| entry & masks.accessed != 0));
}

#[test]
fn a_superpage_is_one_leaf_for_everybody_and_its_saved_table_comes_back_empty() {
    let mut tables = full_block();
    let view = tables.view();
    let masks = *tables.masks();
    let superpage = masks.to_superpage(tables.leaf(Gpa(0)).unwrap().entry | masks.modified);
    tables.promote(Gpa(0), superpage);
    let leaf = tables.leaf(Gpa(0x12_3000)).unwrap();
    assert_eq!((leaf.entry, leaf.size), (superpage, PageSize::Size2MiB));
    assert_eq!(leaf.frame_of(Gpa(0x12_3456)), 0x12_3000);
    assert_eq!(view.leaf(Gpa(0x12_3000)), Some(leaf));
    assert_eq!((tables.leaves(), tables.mapped_pages()), (1, 512));
    assert_eq!((tables.table_pages(), tables.saved_tables()), (4, 1));
    assert!(!tables.enter_superpage(Gpa(0), superpage), "the block is taken");
    let (mut emptied, mut seen) = (Vec::new(), Vec::new());
    tables.remove(range(0, 1024), &mut emptied, |gpa, leaf| seen.push((gpa, leaf)));
    assert_eq!(seen, [(Gpa(0), leaf)]);
    assert_eq!(emptied.len(), 3);
    tables.give_back(emptied);
    fill(&mut tables, range(511 * PAGE_SIZE, 1));
    assert_eq!(tables.leaf(Gpa(0)), None, "a table page that was saved comes back empty");
}

#[test]
#[should_panic(expected = "part of a superpage")]
fn a_part_of_a_superpage_cannot_be_removed() {
    let mut tables = full_block();
    let superpage = tables.masks().to_superpage(tables.leaf(Gpa(0)).unwrap().entry);
    tables.promote(Gpa(0), superpage);
    tables.remove(range(0, 511), &mut Vec::new(), |_, _| {});
}

#[test]
fn looking_for_what_is_there_skips_what_is_empty() {
    let mut tables = tables();
    let far = range((1 << 39) + (5 << 21), 1);
    fill(&mut tables, range(0x7000, 1));
    fill(&mut tables, far);
    let end = Gpa(1 << 40);
    let part = |from: u64, pages| Some(range(from, pages));
    assert_eq!(tables.next_block(Gpa(0), end), part(0, 512));
    assert_eq!(tables.next_block(Gpa(0x6000), Gpa(0x8000)), part(0x6000, 2));
    assert_eq!(tables.next_block(Gpa(0x20_0000), end), part((1 << 39) + (5 << 21), 512));
    assert_eq!(tables.next_block(Gpa((1 << 39) + (6 << 21)), end), None);
    assert_eq!(tables.next_block(Gpa(u64::MAX - 0xfff), Gpa(u64::MAX)), None);
}
