//! Copies of the dances with one line broken, to see whether a model notices.
//!
//! Exists only when loom runs. The environment variable `SKEP_MUTANT` says which line of
//! [`MUTANTS`] is broken for the whole process; unset, none is. `tests/loom.rs` starts
//! itself once per mutant.

use std::sync::OnceLock;

use crate::sync::{Ordering, Step};

/// The environment variable that chooses the mutant.
pub const VARIABLE: &str = "SKEP_MUTANT";

/// What happens to the broken line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// Its ordering is `Relaxed`.
    Relaxed,
    /// It is left out.
    Missing,
}

use Broken::{Missing, Relaxed};

/// Every mutant: its name, the step, what happens to it.
const TABLE: &[(&str, Step, Broken)] = &[
    ("E0-missing", Step::E0, Missing),
    ("E1-relaxed", Step::E1, Relaxed),
    ("E1-missing", Step::E1, Missing),
    ("E2-missing", Step::E2, Missing),
    ("E3-relaxed", Step::E3, Relaxed),
    ("E4-missing", Step::E4, Missing),
    ("R1-relaxed", Step::R1, Relaxed),
    ("R1-missing", Step::R1, Missing),
    ("R2-missing", Step::R2, Missing),
    ("R3-relaxed", Step::R3, Relaxed),
    ("K1-missing", Step::K1, Missing),
    ("K2-missing", Step::K2, Missing),
    ("W1-relaxed", Step::W1, Relaxed),
    ("W1-missing", Step::W1, Missing),
    ("L1-relaxed", Step::L1, Relaxed),
    ("L1-missing", Step::L1, Missing),
    ("L2-missing", Step::L2, Missing),
    ("L3-missing", Step::L3, Missing),
    ("A1-missing", Step::A1, Missing),
    ("S2-relaxed", Step::S2, Relaxed),
    ("S2-missing", Step::S2, Missing),
    ("S3-missing", Step::S3, Missing),
    ("V1-relaxed", Step::V1, Relaxed),
    ("V1-missing", Step::V1, Missing),
];

/// The names that `SKEP_MUTANT` may have.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, ..)| *name)
}

fn is_broken(step: Step, broken: Broken) -> bool {
    static CHOSEN: OnceLock<Option<(Step, Broken)>> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| {
        let wanted = std::env::var(VARIABLE).ok()?;
        let (_, step, broken) = TABLE.iter().find(|(name, ..)| *name == wanted)?;
        Some((*step, *broken))
    });
    *chosen == Some((step, broken))
}

/// The ordering of `step`.
pub(crate) fn order(step: Step, ordering: Ordering) -> Ordering {
    if is_broken(step, Relaxed) { Ordering::Relaxed } else { ordering }
}

/// The `SeqCst` fence that is `step`.
pub(crate) fn fence(step: Step) {
    if taken(step) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Whether `step` is taken.
pub(crate) fn taken(step: Step) -> bool {
    !is_broken(step, Missing)
}
