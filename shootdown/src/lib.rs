//! Everyone forgets, then you may reuse.
//!
//! Once a [`Ticket`] has been [redeemed](Domain::redeem), no vcpu can reach memory through
//! a translation that was removed before [`Domain::raise`]; only then does the ticket
//! give back the frames and table pages it carries.
//!
//! [`domain`] is the protocol: no actors, no threads, no clocks, so that `tests/loom.rs`
//! can try every order of events in it. [`tally`] counts and times. How to knock on a
//! thread and what a flush does are the business of `vcpu-actor`; which entries to
//! clear is the business of `pmap-actor`.

pub mod domain;
mod sync;

pub use domain::{Domain, Generation, InGuest, Left, SeatCount, SeatId, Ticket, Whom};
