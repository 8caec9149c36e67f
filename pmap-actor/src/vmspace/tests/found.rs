//! Sequences that once went wrong, made short.

use actors::Access::{self, Read, Write};
use actors::Protection;
use actors::contract::page::Advice;

use super::model::{Setup, Span, Step, run};
use crate::content::StoreLimits;
use crate::ept::masks::PmapFlags;

const RWX: Protection = Protection::all();
const FEW: StoreLimits = StoreLimits { slots: 64, resident_bytes: u64::MAX };

fn setup(flags: PmapFlags) -> Setup {
    Setup { flags, mirrored: false, at_once: false, around: 1, store: Some(FEW), seed: 1 }
}

fn everywhere(steps: &[Step]) {
    for flags in [PmapFlags::empty(), PmapFlags::EMULATE_AD_BITS, PmapFlags::all()] {
        run(setup(flags), steps);
    }
    run(Setup { mirrored: true, ..setup(PmapFlags::all()) }, steps);
}

fn span(first: u64, pages: u64) -> Span {
    Span { first, pages }
}

fn touch(page: u64, access: Access) -> Step {
    Step::Touch(0, page, access)
}

/// All of the range got translations, and what was not in memory was served as zeroes.
#[test]
fn new_rights_for_a_range_reach_only_its_wired_pages_at_once() {
    everywhere(&[
        touch(5, Write),
        Step::PageOut(span(5, 1)),
        Step::Finish,
        Step::Drain,
        Step::Wire(span(8, 1)),
        Step::Protect(span(0, 512), RWX),
        touch(5, Read),
        Step::Drain,
        touch(5, Read),
    ]);
}

/// The frame of a page that a fault had brought back, and that was stored to since, was freed under its translation.
#[test]
fn what_is_stored_after_a_page_was_given_up_is_not_given_up_with_it() {
    everywhere(&[
        touch(5, Write),
        Step::Advise(span(0, 8), Advice::Free),
        touch(5, Write),
        Step::Finish,
        touch(5, Read),
        Step::PageOut(span(0, 8)),
        Step::Finish,
        Step::Drain,
        touch(5, Read),
    ]);
}

/// The tables allowed loads of 512 pages again, and the host mapping of one.
#[test]
fn an_aged_superpage_that_is_used_again_is_reached_as_a_whole() {
    for flags in [PmapFlags::all(), PmapFlags::all() - PmapFlags::EXECUTE_ONLY] {
        for mirrored in [false, true] {
            let steps = [
                Step::TouchAll(0, Write),
                Step::Protect(span(0, 512), Protection::READ | Protection::EXECUTE),
                Step::Advise(span(0, 300), Advice::DontNeed),
                touch(0, Read),
                touch(511, Read),
            ];
            for seed in 0..4 {
                run(Setup { mirrored, store: None, seed, ..setup(flags) }, &steps);
            }
        }
    }
}

/// A consumer kept what a page had held before it was unmapped.
#[test]
fn who_takes_epochs_hears_that_an_unmapped_page_is_zeroes() {
    everywhere(&[
        touch(5, Write),
        Step::Begin,
        Step::Take(0),
        Step::Finish,
        Step::Settle(0, actors::contract::page::Settled::Acknowledged),
        Step::Unmap(span(5, 1)),
        Step::Take(0),
        Step::Finish,
    ]);
}

/// What a device stored through a hold that is over is the monitor's modified bit, until the page leaves: copies that the
/// store has of the page (as zeroes, or on disk) are good no longer.
#[test]
fn what_was_stored_through_a_hold_leaves_with_the_page() {
    for before in [Read, Write] {
        for lose in [Step::PageOut(span(5, 1)), Step::Forget(span(5, 1))] {
            everywhere(&[
                touch(5, before),
                Step::PageOut(span(5, 1)),
                Step::Finish,
                Step::Drain,
                // Read back, it is clean: its copy in the store is good.
                touch(5, Read),
                Step::Drain,
                touch(5, Read),
                Step::Hold(span(5, 1), Protection::READ | Protection::WRITE),
                Step::HoldStore(0, 0),
                Step::Release(0, false),
                lose,
                Step::Finish,
                Step::PageOut(span(5, 1)),
                Step::Finish,
                Step::Drain,
                touch(5, Read),
                Step::Drain,
                touch(5, Read),
            ]);
        }
    }
}

/// Not a failure: what the other sequences are to be believed by.
#[test]
fn a_block_comes_at_once_where_that_is_wanted() {
    let setup = Setup { at_once: true, store: None, ..setup(PmapFlags::SUPERPAGES) };
    let (pmap, _) = run(setup, &[touch(5, Write), touch(500, Read)]);
    assert_eq!((pmap.superpages_entered, pmap.promotions), (1, 0));
}

/// What a loader wrote is dirty as a whole: its blocks need no promotion afterwards.
#[test]
fn a_block_that_was_filled_under_a_hold_comes_at_once_when_it_is_released() {
    for at_once in [true, false] {
        let setup = Setup { at_once, store: None, ..setup(PmapFlags::SUPERPAGES) };
        let rw = Protection::READ | Protection::WRITE;
        let whole = span(0, 512);
        let load = [Step::Hold(whole, rw), Step::HoldStore(0, 7), Step::Release(0, true)];
        let (pmap, _) = run(setup, &[&load[..], &[touch(5, Write), touch(500, Read)]].concat());
        assert_eq!((pmap.superpages_entered, pmap.promotions), (1, 0));
        // A page short of a block, and there is one only where a first touch brings it all.
        let short = [Step::Hold(span(0, 511), rw), Step::Release(0, true), touch(5, Write)];
        let (pmap, _) = run(setup, &short);
        assert_eq!((pmap.superpages_entered, pmap.promotions), (u64::from(at_once), 0));
    }
}

/// Two loads into one block: the first one's release enters all of it, what the second one stores is seen.
#[test]
fn a_hold_of_a_few_pages_is_a_first_touch_of_their_block() {
    let setup = Setup { at_once: true, store: None, ..setup(PmapFlags::SUPERPAGES) };
    let rw = Protection::READ | Protection::WRITE;
    let both = [
        Step::Hold(span(500, 20), rw),
        Step::Hold(span(3, 2), rw),
        Step::HoldStore(1, 0),
        Step::Release(1, true),
        Step::HoldStore(0, 7),
        Step::Release(0, true),
    ];
    let touches = [touch(3, Read), touch(400, Write), touch(507, Read), touch(1000, Read)];
    let (pmap, _) = run(setup, &[&both[..], &touches[..]].concat());
    assert_eq!((pmap.superpages_entered, pmap.promotions), (2, 0));
    // Not where pages are to leave, and not where some of the block may not be written.
    let limit = StoreLimits { slots: 64, resident_bytes: 1 << 20 };
    let (pmap, _) = run(Setup { store: Some(limit), ..setup }, &both);
    assert_eq!(pmap.superpages_entered, 0);
    let protect = Step::Protect(span(0, 1), Protection::READ);
    let (pmap, _) = run(setup, &[&[protect], &both[..]].concat());
    assert_eq!(pmap.superpages_entered, 1);
}
