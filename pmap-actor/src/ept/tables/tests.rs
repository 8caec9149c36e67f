//! The writer's structure: what is entered, removed, given back.

use actors::layout::LOWMEM_LIMIT;
use actors::{GpaRange, PAGE_SIZE, Protection};

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
