//! A swap file that fails, in every way it can: the guest ends with a reason that names it, and never with wrong data.

use crate::engines::on_every_engine;
use crate::support::{scratch, skep};

/// A tour, which puts pages on disk and wants them back, over a swap file that fails.
fn over_a_file_that_fails(fault: &str, status: i32, sentence: &str) {
    on_every_engine(|engine| {
        let swap = scratch(&format!("{fault}-{engine}.swap"));
        let ran = skep(&format!(
            "run --engine {engine} --guest tour --swap {swap} --test-switch swap-{fault} --timeout 200"
        ));
        assert_eq!(ran.status, status, "{fault}: {}", ran.stderr);
        // How far the console came by then is no matter of the fault.
        assert!(ran.stderr.contains(sentence), "{fault}: {}", ran.stderr);
    });
}

#[test]
fn reads_that_fail_lose_a_page_and_say_which_slot() {
    over_a_file_that_fails("read-error", 7, "the swap file could not be read at slot");
}

#[test]
fn a_file_that_was_truncated_is_not_read_as_zeroes() {
    over_a_file_that_fails("truncated", 7, "it was truncated");
}

#[test]
fn other_bytes_than_were_written_never_reach_the_guest() {
    over_a_file_that_fails(
        "other-bytes",
        7,
        "the swap file returned other bytes than were written",
    );
}

#[test]
fn writes_that_fail_end_the_run_before_anything_is_lost() {
    over_a_file_that_fails("write-error:3", 7, "the swap file could not be written at slot");
    over_a_file_that_fails("disk-full", 7, "the disk that holds the swap file is full");
}

#[test]
fn a_disk_that_does_not_answer_is_noticed() {
    over_a_file_that_fails("stuck-reads", 8, "the pagein actor hangs");
}

#[test]
fn short_and_interrupted_calls_are_no_failures() {
    for fault in ["short-reads", "short-writes", "interrupted"] {
        over_a_file_that_fails(fault, 0, "the guest powered off");
    }
}

/// The worker dies while pages wait for it.
fn without(worker: &str) {
    on_every_engine(|engine| {
        let swap = scratch(&format!("{worker}-panic-{engine}.swap"));
        let ran = skep(&format!(
            "run --engine {engine} --guest storm --storm-invalidations 1000000000 --swap {swap} \
             --test-switch {worker}-panic --timeout 200"
        ));
        assert_eq!(ran.status, 8, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("skep: the {worker} actor died")), "{}", ran.stderr);
    });
}

#[test]
fn a_pageout_that_panics_ends_the_run() {
    without("pageout");
}

#[test]
fn a_pagein_that_panics_ends_the_run() {
    without("pagein");
}
