//! Each line of the dances is broken once, and some claim must fail.
//!
//! A mutant is a process: this test binary, started again for one claim with
//! `SKEP_MUTANT` set. (Not a caught panic: loom may abort when a broken model unwinds.)
//! `shootdown::mutant` breaks lines of the crate; [`neglects`] breaks its callers here.
//! The table with all its rows is in `tests/README.md`.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use shootdown::mutant;

/// Every claim, in the order of the table's columns.
const CLAIMS: [&str; 18] = [
    "frames::a_frame_given_back_cannot_be_read_by_a_guest_that_enters_once",
    "frames::nor_by_a_guest_that_comes_and_goes_twice",
    "frames::nor_by_a_guest_that_comes_and_goes_three_times",
    "frames::nor_by_two_guests_that_enter_once",
    "frames::nor_by_two_guests_that_come_and_go",
    "frames::nor_by_a_guest_that_comes_and_goes_and_never_looks_who_waits",
    "frames::two_open_tickets_each_keep_their_own_frame",
    "waking::a_sleeping_raiser_is_woken_by_a_guest_that_enters_once",
    "waking::and_by_one_that_comes_and_goes_twice",
    "waking::and_by_one_that_comes_and_goes_three_times",
    "waking::and_by_two_guests",
    "waking::one_sleep_may_wait_for_two_tickets",
    "waking::a_vcpu_that_panics_in_the_guest_is_waited_for_no_longer",
    "counting::every_raise_is_a_flush_done_or_saved_once_the_vcpu_has_retired",
    "counting::and_once_a_vcpu_that_panicked_was_abandoned",
    "kicks::an_order_followed_by_a_kick_is_always_looked_at",
    "kicks::a_knock_always_ends_the_trip_that_was_seen",
    "kicks::an_order_and_a_knock_do_not_hide_each_other",
];

/// Every mutant and, by claim, whether that notices: `x` yes, `.` no.
const MUTANTS: [(&str, &str); 30] = [
    ("E0-missing", "........xx.x....xx"),
    ("E1-relaxed", ".....x.....x......"),
    ("E1-missing", "xxxxxxx..........."),
    ("E2-missing", "xxxxxxx..........."),
    ("E3-relaxed", ".xx.xxx..........."),
    ("E4-missing", "xxxxxxx......xx..."),
    ("R1-relaxed", ".xx.xxx..........."),
    ("R1-missing", "xxxxxxx......xx..."),
    ("R2-missing", "xxxxxxx..........."),
    ("R3-relaxed", "...........x......"),
    ("K1-missing", ".......xxxxxx...xx"),
    ("K2-missing", "........xx.xx....."),
    ("W1-relaxed", "xxxxxxx..........."),
    ("W1-missing", "xxxxxxx..........."),
    ("L1-relaxed", "xxxxxxx..........."),
    ("L1-missing", ".......xxxxxx...xx"),
    ("L2-missing", "........xx.xx....."),
    ("L3-missing", ".......xxxxxx...xx"),
    ("A1-missing", ".............xx..."),
    ("S2-relaxed", "...............x.x"),
    ("S2-missing", "...............xxx"),
    ("S3-missing", "...............xxx"),
    ("V1-relaxed", "...............x.x"),
    ("V1-missing", "...............xxx"),
    ("knock-missing", ".......xxxxx......"),
    ("wake-missing", ".......xxxxxx....."),
    ("abandon-missing", "............x....."),
    ("S3-before-S2", "...............xxx"),
    ("V2-before-V1", "...............x.x"),
    ("V1-after-V3", "................xx"),
];

/// Those among the mutants that are a duty of the caller, neglected.
const NEGLECTED: [&str; 6] = [
    "knock-missing",
    "wake-missing",
    "abandon-missing",
    "S3-before-S2",
    "V2-before-V1",
    "V1-after-V3",
];

/// Whether the chosen mutant neglects this duty.
pub(crate) fn neglects(duty: &str) -> bool {
    debug_assert!(NEGLECTED.contains(&duty), "{duty} is not in the list");
    std::env::var(mutant::VARIABLE).is_ok_and(|chosen| chosen == duty)
}

/// Whether `claim` fails for `mutant`.
fn notices(claim: &str, mutant: &str) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", claim])
        .env(mutant::VARIABLE, mutant)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("running 1 test"), "{claim} is not the name of a claim");
    !output.status.success()
}

/// Calls `work` with each number below `count`, two at a time.
fn in_pairs(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count) {
            work(number);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

#[test]
fn every_line_and_every_duty_has_a_mutant() {
    let mut known: Vec<_> = mutant::names().chain(NEGLECTED).collect();
    let mut listed: Vec<_> = MUTANTS.iter().map(|(name, _)| *name).collect();
    known.sort_unstable();
    listed.sort_unstable();
    assert_eq!(known, listed);
}

/// Tries the first claim of each row. With `SKEP_MATRIX` set, all of them, which takes 10 to 18
/// minutes on a busy machine, and prints the rows.
#[test]
fn every_mutant_is_noticed() {
    let all = std::env::var_os("SKEP_MATRIX").is_some();
    in_pairs(MUTANTS.len(), |number| {
        let (mutant, expected) = MUTANTS[number];
        if all {
            let mark = |claim: &&str| if notices(claim, mutant) { 'x' } else { '.' };
            let found: String = CLAIMS.iter().map(mark).collect();
            eprintln!("{mutant:16} {found}");
            assert_eq!(found, expected, "{mutant}");
        } else {
            let claim = CLAIMS[expected.find('x').expect("every mutant is noticed by some claim")];
            assert!(notices(claim, mutant), "{mutant} is not noticed by {claim}");
        }
    });
}
