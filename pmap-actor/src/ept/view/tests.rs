//! The reader against a naive evaluator, and against a writer that works at the same time.

use std::sync::atomic::AtomicBool;

use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{GpaRange, PAGE_SIZE, Protection};

use super::super::tables::Tables;
use super::*;

const HARDWARE: PmapFlags = PmapFlags::SUPERPAGES;
const RWX: u64 = READ | WRITE | EXECUTE;
const WRITE_BACK: u64 = 6 << 3;
const SUPERPAGE: u64 = 1 << 7;
/// A page whose four slots all differ.
const GPA: Gpa = Gpa(1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x123);

fn tables(flags: PmapFlags) -> Tables {
    let layout = MemoryLayout::split(600 << 30, LOWMEM_LIMIT, ADDRESS_BITS).unwrap();
    Tables::new(PmapType::PtEpt, flags, layout)
}

fn page(gpa: Gpa) -> GpaRange {
    GpaRange::page_of(gpa)
}

/// Tables with a leaf at [`GPA`], as the pmap makes them.
fn with_leaf(flags: PmapFlags, protection: Protection) -> (Tables, View) {
    let mut tables = tables(flags);
    let leaf = tables.masks().leaf(0x7000, protection);
    tables.enter(GPA, leaf);
    let view = tables.view();
    (tables, view)
}

/// The entry of `level` on the way to [`GPA`], wherever the others lead.
fn place(view: &View, level: u32) -> &AtomicU64 {
    let mut table = TableFrame::ROOT;
    for above in (level + 1..=4).rev() {
        let entry = view.arena.place(&table, GPA, above).load(Ordering::Relaxed);
        table = TableFrame(entry & FRAME_MASK);
    }
    view.arena.place(&table, GPA, level)
}

/// Gives the entry of `level` other bits outside its frame.
fn poke(view: &View, level: u32, bits: u64) {
    let place = place(view, level);
    let frame = place.load(Ordering::Relaxed) & FRAME_MASK;
    place.store(frame | bits, Ordering::Relaxed);
}

fn read(view: &View, level: u32) -> u64 {
    place(view, level).load(Ordering::Relaxed)
}

/// What the manual says, one entry after the other, for entries of these rights (root first).
fn naive(rights: &[u64], access: Access, execute_only: bool) -> Result<u64, &'static str> {
    let mut common = RWX;
    for right in rights {
        match right {
            0 => return Err("violation, nothing"),
            2 | 6 => return Err("misconfigured"),
            4 if !execute_only => return Err("misconfigured"),
            _ => common &= right,
        }
    }
    let needed = match access {
        Access::Read => 1,
        Access::Write => 2,
        Access::Execute => 4,
    };
    if common & needed == 0 { Err("violation") } else { Ok(common) }
}

fn rights(readable: bool, writable: bool, executable: bool) -> u64 {
    u64::from(readable) | u64::from(writable) << 1 | u64::from(executable) << 2
}

#[test]
fn every_combination_of_rights_on_every_level_is_judged_as_the_manual_says() {
    for flags in [
        PmapFlags::SUPERPAGES | PmapFlags::EMULATE_AD_BITS,
        PmapFlags::SUPERPAGES | PmapFlags::EMULATE_AD_BITS | PmapFlags::EXECUTE_ONLY,
        PmapFlags::SUPERPAGES,
        PmapFlags::SUPERPAGES | PmapFlags::EXECUTE_ONLY,
    ] {
        let (_tables, view) = with_leaf(flags, Protection::all());
        let execute_only = flags.contains(PmapFlags::EXECUTE_ONLY);
        for combination in 0..8u64.pow(4) {
            let entries: Vec<u64> = (0..4).map(|level| combination >> (3 * level) & 7).collect();
            for (level, rights) in (1..=4).rev().zip(&entries) {
                let leaf = if level == 1 { WRITE_BACK | ACCESSED | DIRTY } else { ACCESSED };
                poke(&view, level, rights | leaf);
            }
            for access in Access::ALL {
                let expected = naive(&entries, access, execute_only);
                match view.translate(GPA, access) {
                    Ok(found) => {
                        let all = rights(found.readable, found.writable, found.executable);
                        assert_eq!(expected, Ok(all), "{entries:?} {access:?}");
                        assert_eq!((found.frame, found.bytes), (0x7000, 4096));
                    }
                    Err(Refused::Misconfigured { level, entry }) => {
                        assert_eq!(expected, Err("misconfigured"), "{entries:?} {access:?}");
                        assert_eq!(entry, read(&view, level));
                    }
                    Err(Refused::Violation { readable, writable, executable }) => {
                        let seen = rights(readable, writable, executable);
                        match expected {
                            Err("violation, nothing") => assert_eq!(seen, 0),
                            Err("violation") => {
                                assert_eq!(seen, entries.iter().fold(RWX, |all, one| all & one));
                            }
                            other => panic!("{entries:?} {access:?}: {other:?}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_superpage_leads_to_its_first_byte_and_covers_two_megabytes() {
    let (_tables, view) = with_leaf(HARDWARE, Protection::all());
    place(&view, 2).store(0x60_0000 | SUPERPAGE | WRITE_BACK | RWX, Ordering::Relaxed);
    let found = view.translate(GPA, Access::Write).unwrap();
    assert_eq!((found.frame, found.bytes), (0x60_0000, 2 << 20));
    assert!(found.readable && found.writable && found.executable);
    assert_eq!(read(&view, 2) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    poke(&view, 2, SUPERPAGE | WRITE_BACK | READ);
    let refused = view.translate(GPA, Access::Write);
    assert_eq!(
        refused,
        Err(Refused::Violation { readable: true, writable: false, executable: false })
    );
}

#[test]
fn a_misaligned_or_unsupported_superpage_is_a_misconfiguration() {
    let (_tables, view) = with_leaf(HARDWARE, Protection::all());
    let entry = 0x60_1000 | SUPERPAGE | WRITE_BACK | RWX;
    place(&view, 2).store(entry, Ordering::Relaxed);
    let misconfigured = Err(Refused::Misconfigured { level: 2, entry });
    assert_eq!(view.translate(GPA, Access::Read), misconfigured);
    let (_tables, view) = with_leaf(PmapFlags::empty(), Protection::all());
    let entry = 0x60_0000 | SUPERPAGE | WRITE_BACK | RWX;
    place(&view, 2).store(entry, Ordering::Relaxed);
    let misconfigured = Err(Refused::Misconfigured { level: 2, entry });
    assert_eq!(view.translate(GPA, Access::Read), misconfigured);
}

#[test]
fn addresses_that_four_levels_do_not_reach_are_violations() {
    let (_tables, view) = with_leaf(HARDWARE, Protection::all());
    let nothing = Err(Refused::Violation { readable: false, writable: false, executable: false });
    for gpa in [1 << ADDRESS_BITS, u64::MAX, (1 << ADDRESS_BITS) - 1, 0] {
        assert_eq!(view.translate(Gpa(gpa), Access::Read), nothing);
    }
}

#[test]
fn hardware_marks_what_it_used_and_grants_a_store_only_to_a_dirty_leaf() {
    let (_tables, view) = with_leaf(HARDWARE, Protection::all());
    for level in 2..=4 {
        poke(&view, level, RWX);
    }
    let clean = view.translate(GPA, Access::Read).unwrap();
    assert!(!clean.writable, "a store must come here first, to set dirty");
    assert!((1..=4).all(|level| read(&view, level) & (ACCESSED | DIRTY) == ACCESSED));
    assert!(!view.translate(GPA, Access::Execute).unwrap().writable);
    assert!(view.translate(GPA, Access::Write).unwrap().writable);
    assert_eq!(read(&view, 1) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
    assert!((2..=4).all(|level| read(&view, level) & DIRTY == 0));
    assert!(view.translate(GPA, Access::Read).unwrap().writable, "it is dirty by now");
}

#[test]
fn an_access_that_is_refused_leaves_no_mark() {
    let (_tables, view) = with_leaf(HARDWARE, Protection::READ);
    poke(&view, 3, RWX);
    let before: Vec<u64> = (1..=4).map(|level| read(&view, level)).collect();
    for access in [Access::Write, Access::Execute] {
        let refused = view.translate(GPA, access).unwrap_err();
        let readable = Refused::Violation { readable: true, writable: false, executable: false };
        assert_eq!(refused, readable);
    }
    assert_eq!((1..=4).map(|level| read(&view, level)).collect::<Vec<_>>(), before);
}

#[test]
fn with_emulated_bits_nothing_is_set_and_rights_are_the_bits() {
    let (mut tables, view) = with_leaf(PmapFlags::EMULATE_AD_BITS, Protection::all());
    let masks = *tables.masks();
    let before = read(&view, 1);
    assert!(view.translate(GPA, Access::Read).unwrap().writable);
    assert!(view.translate(GPA, Access::Write).unwrap().writable);
    assert_eq!(read(&view, 1), before);
    tables.update(page(GPA), |leaf| leaf.entry & !masks.modified, |_, _, _| {});
    assert!(!view.translate(GPA, Access::Read).unwrap().writable);
    let refused = view.translate(GPA, Access::Write).unwrap_err();
    assert_eq!(refused, Refused::Violation { readable: true, writable: false, executable: true });
    tables.update(page(GPA), |leaf| leaf.entry & !masks.accessed & !masks.executable, |_, _, _| {});
    let refused = view.translate(GPA, Access::Read).unwrap_err();
    let nothing = Refused::Violation { readable: false, writable: false, executable: false };
    assert_eq!(refused, nothing, "valid for software, and not present for hardware");
    assert!(view.leaf(GPA).is_some());
}

/// Ends the readers even when the writer's assertion fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Readers store through their translations while the writer removes, changes and enters the
/// leaf again. Each store that found a right to store is in what the writer took out or
/// changed; and nothing comes back after a removal.
#[test]
fn every_dirty_bit_that_a_reader_set_is_seen_by_the_writer_and_no_removed_leaf_comes_back() {
    const READERS: usize = 2;
    const ROUNDS: u64 = 600;
    let mut tables = tables(HARDWARE);
    let leaf = tables.masks().leaf(0, Protection::all());
    // Something else in the same table, so that it stays where it is.
    tables.enter(Gpa(GPA.0 + PAGE_SIZE), leaf);
    // A round's leaf has the round as its frame, so a reader knows which leaf it marked.
    let stored: Vec<AtomicU64> = (0..=ROUNDS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let mut dirty = vec![false; stored.len()];
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            let view = tables.view();
            let (stored, over) = (&stored, &over);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    if let Ok(found) = view.translate(GPA, Access::Write) {
                        assert!(found.writable);
                        let round = usize::try_from(found.frame / PAGE_SIZE).unwrap();
                        stored[round].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _over = Over(&over);
        for round in 1..=ROUNDS {
            let index = usize::try_from(round).unwrap();
            let mut see = |entry: u64| {
                assert_eq!(entry & FRAME_MASK, round * PAGE_SIZE);
                dirty[index] |= entry & DIRTY != 0;
            };
            let before = tables.enter(GPA, leaf | (round * PAGE_SIZE));
            assert_eq!(before, 0, "round {round}: a removed leaf came back");
            if round % 2 == 0 {
                // Half the rounds let a reader through first, so that there is something to lose.
                while stored[index].load(Ordering::Relaxed) == 0 {
                    let leaf = tables.leaf(GPA).map(Leaf::frame);
                    assert_eq!(leaf, Some(round * PAGE_SIZE), "an older leaf came back");
                    std::thread::yield_now();
                }
            }
            if round % 3 == 0 {
                // Cleaned, as a pager would: what was dirty is in what it saw.
                tables.update(
                    page(GPA),
                    |leaf| leaf.entry & !DIRTY,
                    |_, before, _| see(before.entry),
                );
            }
            tables.remove(page(GPA), &mut Vec::new(), |_, leaf| see(leaf.entry));
        }
    });
    for (round, stored) in stored.iter().enumerate() {
        assert!(dirty[round] || stored.load(Ordering::Relaxed) == 0, "round {round} lost a store");
    }
    assert!(dirty.iter().filter(|dirty| **dirty).count() as u64 >= ROUNDS / 2);
}

/// A reader stores once a round, while the writer changes another bit of the same leaf.
#[test]
fn a_dirty_bit_survives_the_writers_change_of_another_bit() {
    const ROUNDS: u64 = 2_000;
    let mut tables = tables(HARDWARE);
    let leaf = tables.masks().leaf(0, Protection::all());
    let wired = tables.masks().wired;
    tables.enter(Gpa(GPA.0 + PAGE_SIZE), leaf);
    let stored = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let view = tables.view();
        let (stored, over) = (&stored, &over);
        scope.spawn(move || {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                // Looks without a trace until the next round's leaf is there.
                if view.leaf(GPA).is_some_and(|leaf| leaf.frame() != last) {
                    last = view.translate(GPA, Access::Write).unwrap().frame;
                    stored.store(last, Ordering::Relaxed);
                }
            }
        });
        let _over = Over(over);
        for round in 1..=ROUNDS {
            tables.enter(GPA, leaf | (round * PAGE_SIZE));
            while stored.load(Ordering::Relaxed) != round * PAGE_SIZE {
                let toggle = |leaf: Leaf| {
                    assert_eq!(leaf.frame(), round * PAGE_SIZE, "an older leaf came back");
                    leaf.entry ^ wired
                };
                tables.update(page(GPA), toggle, |_, _, _| {});
            }
            let see =
                |_, leaf: Leaf| assert!(leaf.entry & DIRTY != 0, "round {round} lost a store");
            tables.remove(page(GPA), &mut Vec::new(), see);
        }
    });
}
