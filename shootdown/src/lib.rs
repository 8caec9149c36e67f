//! Everyone forgets, then you may reuse.
//!
//! Once a [`Ticket`] has been [redeemed](Domain::redeem), no vcpu can reach memory through
//! a translation that was removed before [`Domain::raise`]; only then does the ticket
//! give back the frames and table pages it carries.
//!
//! No actors, no threads, no clocks, so that `tests/loom.rs` can try every order of
//! events. How to signal a thread and what a flush does are the business of `vcpu-actor`;
//! which entries to clear, when to sleep and what time it is, that of `pmap-actor`.
//!
//! Reading order:
//!
//! 1. [`domain`]: the protocol, drawn at the top of the file.
//! 2. [`kick`]: the word and the signal that bring a vcpu out of `KVM_RUN`.
//! 3. [`overdue`]: who has not come out in time, as a sentence.
//! 4. [`tally`]: how many raises and knocks, and how long they took.
//! 5. `sync.rs` and `tests/loom.rs`: how all of it is tried, and broken on purpose.
//!
//! # What a user of this crate must do
//!
//! * Clear the entries before [`Domain::raise`], and reuse nothing before
//!   [`Domain::redeem`] has given it back.
//! * Run the guest only while an [`InGuest`] lives, and use cached translations only then.
//! * On [`Left::Awaited`], wake the raiser, in a way that cannot be lost.
//! * While waiting, go on doing what a vcpu in the guest may be waiting for.
//! * When a vcpu thread panics, call [`Domain::abandon`] for its seat; when it ends well,
//!   [`Domain::retire`].

#![forbid(unsafe_code)]

pub mod domain;
pub mod kick;
#[cfg(loom)]
pub mod mutant;
pub mod overdue;
mod sync;
pub mod tally;

pub use domain::{Domain, Generation, InGuest, Left, SeatCount, SeatId, Ticket, Whom};
pub use overdue::Overdue;
pub use tally::{Durations, Quantiles, Tally};

/// The README's example, so that it stays true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
