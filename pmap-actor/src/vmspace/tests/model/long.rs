//! Sequences by number: a few of them always, minutes of them when asked.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::{Tallies, run, steps};

/// Sequences that are always run.
const SOME: u64 = 40;

/// What happened, all together: a fuzzer that never gets anywhere finds nothing.
#[derive(Debug, Default)]
struct Covered {
    sequences: u64,
    steps: usize,
    promotions: u64,
    entered_superpages: u64,
    demotions: u64,
    emulated_faults: u64,
    pages_out: u64,
    clean_pages_out: u64,
    zero_pages_out: u64,
    rescued_pages: u64,
    written_pages: u64,
    compressed_pages_in: u64,
    disk_pages_in: u64,
    readahead_hits: u64,
}

impl Covered {
    fn add(&mut self, steps: usize, (pmap, reclaim): Tallies) {
        self.sequences += 1;
        self.steps += steps;
        self.promotions += pmap.promotions;
        self.entered_superpages += pmap.superpages_entered;
        self.demotions += pmap.demotions;
        self.emulated_faults += pmap.accessed_faults + pmap.modified_faults;
        self.pages_out += reclaim.pages_out;
        self.clean_pages_out += reclaim.clean_pages_out;
        self.zero_pages_out += reclaim.zero_pages_out;
        self.rescued_pages += reclaim.rescued_pages;
        self.written_pages += reclaim.written_pages;
        self.compressed_pages_in += reclaim.compressed_pages_in;
        self.disk_pages_in += reclaim.disk_pages_in;
        self.readahead_hits += reclaim.readahead_hits;
    }

    fn least(&self) -> u64 {
        let counts = [
            self.promotions,
            self.entered_superpages,
            self.demotions,
            self.emulated_faults,
            self.clean_pages_out,
            self.zero_pages_out,
            self.rescued_pages,
            self.written_pages,
            self.compressed_pages_in,
            self.disk_pages_in,
            self.readahead_hits,
        ];
        counts.into_iter().min().unwrap_or(0)
    }
}

/// Draws the sequence of `seed`, runs it, and, when it goes wrong, makes it short.
fn run_seed(seed: u64) -> (usize, Tallies) {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { failure_persistence: None, max_shrink_iters: 4000, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let sequence = (steps::setup(), prop::collection::vec(steps::step(), 1..300));
    let drawn = sequence.new_tree(&mut runner).expect("every draw is good");
    let steps = drawn.current().1.len();
    let done = parking_lot::Mutex::new(None);
    let outcome = runner.run_one(drawn, |(setup, script)| {
        *done.lock() = Some(run(setup, &script));
        Ok::<(), TestCaseError>(())
    });
    if let Err(TestError::Fail(why, (setup, script))) = outcome {
        panic!("seed {seed}: {why}\n{setup:?}\n{script:#?}");
    }
    (steps, done.into_inner().expect("it was run"))
}

/// With `SKEP_FUZZ_SECONDS` goes on for so long, from `SKEP_FUZZ_SEED` on, and tells how far it is.
#[test]
#[expect(clippy::print_stdout, reason = "whoever lets it run for minutes looks at it")]
fn sequences_by_number_hold_and_get_everywhere() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let time = number("SKEP_FUZZ_SECONDS").map(Duration::from_secs);
    let first = number("SKEP_FUZZ_SEED").unwrap_or(1);
    let (began, mut told) = (Instant::now(), Instant::now());
    let mut covered = Covered::default();
    while time.map_or(covered.sequences < SOME, |time| began.elapsed() < time) {
        let (steps, tallies) = run_seed(first + covered.sequences);
        covered.add(steps, tallies);
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{} s: {covered:?}", began.elapsed().as_secs());
        }
    }
    println!("from seed {first}, {} s, nothing found: {covered:?}", began.elapsed().as_secs());
    assert!(covered.least() > 0, "{covered:?}");
}
