//! The driver's half: what it orders, what it takes for right, and what it says when it is not.

use actors::PageSize;
use actors::contract::page::Place;

use super::super::control::{BLOCK, What};
use super::super::sight::{Kind, Sight};
use super::*;

const PAGE: Gpa = BLOCK;

fn page() -> GpaRange {
    GpaRange::page_of(PAGE)
}

fn transition(acts: Vec<Act>, counts: Vec<(Counter, Amount)>) -> Transition {
    Transition { name: "a -> b", skipped: None, acts, counts }
}

fn state(place: Place) -> Answer {
    Answer::State(PageState {
        place,
        mapped: Some(PageSize::Size4KiB),
        writable: true,
        accessed: true,
        modified: true,
        wired: false,
        held: false,
    })
}

fn tally(demotions: u64) -> Answer {
    let mut tally = SpaceTally::default();
    tally.pmap.demotions = demotions;
    Answer::Tally(Box::new(tally))
}

fn verified(differences: u64) -> Answer {
    let mut verified = Verified::default();
    (0..differences).for_each(|_| verified.differs(Some(PAGE), "ours", "theirs"));
    Answer::Verified(Box::new(verified))
}

/// A driver that has taken the counts before its only transition and given its first order.
fn begun(acts: Vec<Act>, counts: Vec<(Counter, Amount)>) -> (TourDriver, Step) {
    let mut driver = TourDriver::new(vec![transition(acts, counts)]);
    assert_eq!(driver.step(None), Ok(Step::Do(Order::Count)));
    let first = driver.step(Some(tally(3))).unwrap();
    (driver, first)
}

#[test]
fn a_transition_ends_with_its_counts_and_the_tour_with_its_last_transition() {
    let see = Act::See(PAGE, Sight::of(Kind::Dirty));
    let (mut driver, first) = begun(vec![see], vec![(Counter::Demotions, Amount::Exactly(2))]);
    assert_eq!(first, Step::Do(Order::Look(PAGE)));
    let next = driver.step(Some(state(Place::Resident { dirty: true })));
    assert_eq!(next, Ok(Step::Do(Order::Count)));
    assert_eq!(driver.step(Some(tally(5))), Ok(Step::Do(Order::Verify)));
    assert_eq!(driver.step(Some(verified(0))), Ok(Step::Finished));
    let visit = driver.visits()[0];
    assert_eq!((visit.transition, visit.skipped, visit.demotions), ("a -> b", None, 2));
}

#[test]
fn tables_that_disagree_with_the_host_after_a_transition_end_the_tour() {
    let (mut driver, _) = begun(vec![Act::Do(Order::Forget(page()))], Vec::new());
    driver.step(Some(Answer::Well)).unwrap();
    driver.step(Some(tally(3))).unwrap();
    let astray = driver.step(Some(verified(2))).unwrap_err();
    assert!(astray.found.contains("2 differences"), "{astray}");
    assert!(astray.found.contains("ours, but theirs"), "{astray}");
}

#[test]
fn a_page_that_is_elsewhere_ends_the_tour_in_a_sentence() {
    let (mut driver, _) = begun(vec![Act::See(PAGE, Sight::of(Kind::Dirty))], Vec::new());
    let astray = driver.step(Some(state(Place::Compressed))).unwrap_err().to_string();
    assert!(astray.starts_with("the tour went astray at \"a -> b\": "), "{astray}");
    assert!(astray.contains("0x400000 dirty was expected"), "{astray}");
    assert!(astray.contains("compressed, mapped by 4 KiB"), "{astray}");
}

#[test]
fn contents_counts_and_refusals_are_compared_too() {
    let deed = Deed { vcpu: 0, what: What::Read, range: page(), value: 7 };
    let (mut driver, _) = begun(vec![Act::Deed(deed)], Vec::new());
    let done = Answer::Done(Done { right: 0, found: 9 });
    assert!(driver.step(Some(done)).unwrap_err().found.contains("0x9"));

    let demoted = (Counter::Demotions, Amount::AtLeast(1));
    let (mut driver, _) = begun(vec![Act::Do(Order::Forget(page()))], vec![demoted]);
    assert_eq!(driver.step(Some(Answer::Well)), Ok(Step::Do(Order::Count)));
    assert!(driver.step(Some(tally(3))).unwrap_err().wanted.contains("Demotions"));

    let wrong = SpaceError::WrongState { range: page(), state: "wired" };
    let unmap = Order::Unmap(page());
    let (mut driver, _) = begun(vec![Act::Refused(unmap.clone(), "held")], Vec::new());
    assert!(driver.step(Some(Answer::Refused(wrong.clone()))).is_err());
    let (mut driver, _) = begun(vec![Act::Refused(unmap.clone(), "held")], Vec::new());
    assert!(driver.step(Some(Answer::Well)).is_err());
    let (mut driver, _) = begun(vec![Act::Do(unmap)], Vec::new());
    assert!(driver.step(Some(Answer::Refused(wrong))).unwrap_err().found.contains("wired"));
}

#[test]
fn a_harvest_finds_exactly_the_pages_it_is_to_find() {
    let act = || {
        let found = super::super::script::Found { accessed: Some(true), modified: Some(false) };
        vec![Act::Harvest(page(), Touch::ACCESSED | Touch::MODIFIED, found)]
    };
    let harvest = |accessed: bool, modified: bool| {
        let mut harvest = Harvest::default();
        for (is, set) in [(accessed, &mut harvest.accessed), (modified, &mut harvest.modified)] {
            *set = actors::pages::PageSet::new(4096);
            if is {
                set.insert(PAGE.0 / PAGE_SIZE);
            }
        }
        Answer::Harvest(Box::new(harvest))
    };
    assert!(begun(act(), Vec::new()).0.step(Some(harvest(true, false))).is_ok());
    let missed = begun(act(), Vec::new()).0.step(Some(harvest(false, false))).unwrap_err();
    assert_eq!(missed.found, "accessed: no page");
    let too_many = begun(act(), Vec::new()).0.step(Some(harvest(true, true))).unwrap_err();
    assert_eq!(too_many.found, "modified: 0x400000");
}

#[test]
fn a_race_is_run_again_with_fresh_contents_until_a_page_is_caught() {
    let deed = Deed { vcpu: 0, what: What::Write, range: page(), value: 7 };
    let (mut driver, first) = begun(vec![Act::Rescue(page(), deed)], Vec::new());
    assert_eq!(first, Step::Do(Order::Race(page())));
    let missed = || Some(Answer::PagedOut(PagedOut::default()));
    assert_eq!(driver.step(missed()), Ok(Step::Do(Order::Deed(deed))));
    let written = Answer::Done(Done { right: 1, found: 0 });
    assert_eq!(driver.step(Some(written)), Ok(Step::Do(Order::Race(page()))));
    let caught = Answer::PagedOut(PagedOut { rescued_pages: 1, ..PagedOut::default() });
    assert_eq!(driver.step(Some(caught)), Ok(Step::Do(Order::Count)));
}

#[test]
fn a_page_on_its_way_is_looked_at_again_until_it_has_arrived() {
    let (mut driver, first) = begun(vec![Act::Until(PAGE, Sight::of(Kind::Disk))], Vec::new());
    let look = Step::Do(Order::Look(PAGE));
    assert_eq!(first, look);
    assert_eq!(driver.step(Some(state(Place::Compressed))), Ok(look));
    let there = driver.step(Some(state(Place::Disk { slot: 3 })));
    assert_eq!(there, Ok(Step::Do(Order::Count)));
}

#[test]
fn what_is_skipped_is_named_with_the_reason_and_nothing_is_ordered_for_it() {
    let left_out = Transition { skipped: Some("no swap"), ..transition(Vec::new(), Vec::new()) };
    let mut driver = TourDriver::new(vec![left_out]);
    assert_eq!(driver.step(None), Ok(Step::Finished));
    assert_eq!(driver.visits()[0].skipped, Some("no swap"));
}
