//! Every state that an entry may have, and every operation on it: exhaustively, for both formats and all flags.

use actors::{Access, PageSize, Protection};

use super::super::{Advice, Ageing, Pmap, PmapFlags, PmapType, Unaccessed, Wanted, What};
use super::model::{Dumb, State};
use super::step::{Op, assert_same};
use super::{PAGES, READ, RWX, RX, kinds, page, pmap};
use crate::ept::attribute::Attribute;
use crate::ept::entry::Leaf;
use crate::ept::masks::Masks;

/// The page that is asked about, in the middle of block 1; and its block.
const PAGE: u64 = PAGES + 7;
const BLOCK: std::ops::Range<u64> = PAGES..2 * PAGES;

/// Every combination of the words, legal or not. A superpage of a device cannot be asked for.
fn combinations() -> impl Iterator<Item = State> {
    (0..128u32).filter_map(|bits| {
        let bit = |index: u32| bits >> index & 1 != 0;
        let large = bit(0);
        let managed = bit(6);
        let frame = if large { BLOCK.start } else { PAGE };
        (!large || managed).then(|| State {
            large,
            frame,
            write: bit(1),
            execute: bit(2),
            accessed: bit(3),
            modified: bit(4),
            wired: bit(5),
            managed,
        })
    })
}

#[test]
fn what_the_invariants_forbid_is_what_the_model_forbids() {
    for (kind, flags) in kinds() {
        let pmap = pmap((kind, flags));
        let dumb = Dumb::new(kind, flags);
        let hardware_knows = kind == PmapType::PtEpt;
        for state in combinations() {
            if state.large && !flags.contains(PmapFlags::SUPERPAGES) {
                continue;
            }
            let size = if state.large { PageSize::Size2MiB } else { PageSize::Size4KiB };
            let leaf = Leaf { entry: state.entry(&pmap), size };
            let broken = pmap.masks().broken_rule(leaf, flags);
            assert_eq!(broken.is_none(), dumb.is_legal(state), "{kind:?} {flags:?} {state:?}");
            assert!(hardware_knows || broken != Some("hardware would report a misconfiguration"));
        }
    }
}

/// Puts this leaf, and nothing else, into an empty pmap; returns the model of it.
fn put(pmap: &mut Pmap, state: State, saved: bool) -> Dumb {
    let entry = state.entry(pmap);
    let mut first = PAGE;
    if state.large {
        first = BLOCK.start;
        if saved {
            for index in 0..PAGES {
                let leaf = pmap.masks().to_page(entry, index);
                pmap.tables.enter(page(BLOCK.start + index), leaf);
            }
            pmap.tables.promote(page(first), entry);
        } else {
            assert!(pmap.tables.enter_superpage(page(first), entry));
        }
    } else {
        pmap.tables.enter(page(first), entry);
    }
    let dumb = Dumb::new(pmap.kind, pmap.flags).with(first, state, saved);
    pmap.wired_pages = dumb.wired();
    dumb
}

fn operations() -> Vec<Op> {
    let mut all = vec![
        Op::EnterQuick(PAGE, true),
        Op::EnterObject(BLOCK, 0, true),
        Op::EnterObject(PAGE..PAGE + 3, 1, false),
        Op::EnterSuperpage(BLOCK.start, Wanted::memory(RWX, Access::Write)),
        Op::ClearModify(PAGE),
        Op::RemoveWrite(PAGE),
        Op::ClearReference(PAGE),
        Op::Demote(PAGE),
        Op::Promote(BLOCK.start, Unaccessed::Mark),
        // Block 1 is page 512 up: of an equal frame, page 513's hash is 0.
        Op::TsReferenced(BLOCK.start + 1),
    ];
    for access in Access::ALL {
        all.push(Op::Emulate(PAGE, access));
        all.push(Op::Walk(PAGE, access));
        let wanted = Wanted::memory(RWX, access);
        let attributes = [Attribute::MEMORY, Attribute::DEVICE];
        for protection in [RWX, RX, READ, Protection::READ | Protection::WRITE] {
            for attribute in attributes {
                let wanted = Wanted { protection, attribute, ..wanted };
                all.push(Op::Enter(PAGE, PAGE, wanted));
                all.push(Op::Enter(PAGE, PAGE + 100, Wanted { wired: true, ..wanted }));
                all.push(Op::Enter(PAGE, PAGE, Wanted { touched: None, ..wanted }));
                all.push(Op::Enter(PAGE, PAGE, Wanted { dirty: true, ..wanted }));
            }
        }
    }
    all.push(Op::TsReferenced(PAGE));
    for at in [PAGE..PAGE + 1, BLOCK, PAGE - 2..PAGE + 3, 0..3 * PAGES] {
        all.push(Op::Remove(at.clone()));
        all.push(Op::Wire(at.clone(), true));
        all.push(Op::Wire(at.clone(), false));
        all.push(Op::Advise(at.clone(), Advice::DontNeed));
        all.push(Op::Advise(at.clone(), Advice::Free));
        for bits in 0..8 {
            all.push(Op::Protect(at.clone(), Protection::from_bits_retain(bits)));
        }
        for modified in [false, true] {
            for accessed in [None, Some(Ageing::Hashed), Some(Ageing::Whole)] {
                all.push(Op::Harvest(at.clone(), What { modified, accessed }));
            }
        }
    }
    all
}

fn every_operation_on_every_state(which: (PmapType, PmapFlags)) {
    let legal = Dumb::new(which.0, which.1);
    let operations = operations();
    let mut pmap = pmap(which);
    for state in combinations().filter(|state| legal.is_legal(*state)) {
        for saved in [false, true] {
            if saved && !state.large {
                continue;
            }
            for op in &operations {
                let mut dumb = put(&mut pmap, state, saved);
                let before = pmap.leaf(page(PAGE));
                let (effects, _) = op.apply(&mut pmap, &mut dumb);
                let looked = [BLOCK.start, BLOCK.start + 1, PAGE, PAGE + 1, BLOCK.end - 1];
                assert_same(&pmap, &dumb, looked.into_iter(), op);
                assert!(
                    effects.promoted.is_empty() || before.is_none(),
                    "one leaf is no block: {op:?} on {state:?}"
                );
                pmap.give_back(effects.emptied);
                let effects = pmap.remove(super::range(0, 3 * PAGES), &mut super::Heard::default());
                pmap.give_back(effects.emptied);
                assert_eq!(pmap.tables().table_pages(), 1, "{op:?} on {state:?} lost a table");
            }
        }
    }
    pmap.release();
}

#[test]
fn nested_tables_with_hardware_bits_do_what_the_model_does() {
    kinds()
        .filter(|which| which.0 == PmapType::PtEpt)
        .filter(|which| !which.1.contains(PmapFlags::EMULATE_AD_BITS))
        .for_each(every_operation_on_every_state);
}

#[test]
fn nested_tables_with_emulated_bits_do_what_the_model_does() {
    kinds()
        .filter(|which| which.0 == PmapType::PtEpt)
        .filter(|which| which.1.contains(PmapFlags::EMULATE_AD_BITS))
        .for_each(every_operation_on_every_state);
}

#[test]
fn ordinary_tables_do_what_the_model_does() {
    for flags in [PmapFlags::empty(), PmapFlags::SUPERPAGES] {
        every_operation_on_every_state((PmapType::PtX86, flags));
    }
}

#[test]
fn ordinary_tables_have_the_same_bits_whatever_the_flags() {
    let masks = |flags| Masks::of(PmapType::PtX86, flags);
    assert!(kinds().all(|(_, flags)| masks(flags) == masks(PmapFlags::empty())));
}
