//! Atomics, or loom's when a model runs, with every step of a dance under its letter.
//!
//! The dances say `order(E3, Acquire)` and `fence(E2)`, not just `Acquire` and `fence`:
//! the letter ties the line to the drawing at the top of its file, and is how a model
//! breaks exactly that line (the `mutant` module, which exists for loom only). Without loom these are
//! the ordering itself, a fence, and `true`.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// A lettered step of the dances in `domain.rs` and `kick.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Domain: the trip gets a number of its own.
    E0,
    /// Domain: the vcpu says that it goes in.
    E1,
    /// Domain: fence between E1 and E3.
    E2,
    /// Domain: the vcpu reads the generation.
    E3,
    /// Domain: the vcpu flushes.
    E4,
    /// Domain: the raiser counts the generation up.
    R1,
    /// Domain: fence between R1 and R3.
    R2,
    /// Domain: the raiser looks who is in.
    R3,
    /// Domain: the raiser leaves word that it waits.
    K1,
    /// Domain: fence between K1 and W1.
    K2,
    /// Domain: the raiser looks who is still on the same trip.
    W1,
    /// Domain: the vcpu says that it is out.
    L1,
    /// Domain: fence between L1 and L3.
    L2,
    /// Domain: the vcpu looks whether somebody waits.
    L3,
    /// Domain: the vcpu says up to where it has accounted for raises.
    A1,
    /// Kick: the word is set.
    S2,
    /// Kick: the signal is sent.
    S3,
    /// Kick: the word is taken.
    V1,
}

/// The ordering of `step`. A mutant relaxes it.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn order(_: Step, ordering: Ordering) -> Ordering {
    ordering
}

/// The `SeqCst` fence that is `step`. A mutant leaves it out.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) fn fence(_: Step) {
    std::sync::atomic::fence(Ordering::SeqCst);
}

/// Whether `step` is taken. Always; but a mutant leaves it out.
#[cfg(not(loom))]
#[inline(always)]
pub(crate) const fn taken(_: Step) -> bool {
    true
}

#[cfg(loom)]
pub(crate) use crate::mutant::{fence, order, taken};
