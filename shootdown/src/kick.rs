//! Getting a thread out of `KVM_RUN`, whatever it is doing when we ask.
//!
//! # The promise
//!
//! Once [`ask`] has been called, either the vcpu looks at its orders again, or the
//! `KVM_RUN` it is in, or the next one it calls, ends. No kick is lost, however long its
//! signal takes.
//!
//! # The players
//!
//! * The *asker*, who has left an order in the vcpu's mailbox, or has just raised an
//!   invalidation and seen the vcpu in the guest.
//! * The *vcpu thread*, going round its loop.
//! * The *kernel*, which looks at the word once when `KVM_RUN` begins, and at pending
//!   signals from then on; it delivers a signal when it pleases.
//!
//! # The dance
//!
//! ```text
//!   vcpu thread                           asker
//!   V1  heed: the word was set? clear it  S1  the order, or the raise
//!   V2  look at the orders                S2  set the word
//!   V3  Domain::enter                     S3  signal the thread
//!   V4  KVM_RUN: returns at once if the
//!       word is set or a signal pends
//!   V5  InGuest::leave, and round again
//! ```
//!
//! The signal alone is not enough: delivered between V2 and V4 it runs its empty handler
//! and is gone. The word alone is not enough: the kernel does not look at it twice. With
//! both, a signal that is delivered too early has left the word behind, and a word that
//! is set too late is followed by the signal. That is why S2 precedes S3.
//!
//! V1 precedes V2: whoever clears the word looks at the orders afterwards. The swap at V1
//! acquires what S2 released, so V2 sees the order that the cleared word stood for. A
//! plain store at V1 could overwrite a word without having seen what came before it.
//!
//! V1 precedes V3: an invalidation kicks only a vcpu it has seen in the guest, so after
//! V3 and therefore after V1. E1 of `domain.rs` releases V1, so this holds on every
//! processor. Heeding *inside* the guest region would lose the knock.
//!
//! A kick that comes when the vcpu is on its way out anyway costs one `KVM_RUN` that
//! returns without entering, unless V1 catches it first. A signal that arrives after its
//! word has been heeded costs one needless exit. Neither does harm.
//!
//! # What is *not* here
//!
//! The word itself, which is `immediate_exit` in the run page that the kernel shares with
//! the vcpu thread (`AtomicU8::from_ptr` of its address; never a plain write, two threads
//! and the kernel use it), the signal and its handler. `vcpu-actor` has those. A kick may come
//! late: whoever sends the signal must bear a vcpu thread that has just ended.

use crate::sync::{AtomicU8, Ordering, Step, order, taken};

/// "Come out and look at your orders." Call after the order is in place.
///
/// `signal` must make the vcpu's thread take a signal that interrupts `KVM_RUN`; it is
/// called once, after the word has been set.
pub fn ask(word: &AtomicU8, signal: impl FnOnce()) {
    // S2: Release pairs with V1: the order is seen by whoever takes the word. The system
    // call inside `signal` orders this before the delivery. A swap where a store would do,
    // because loom misplaces a store beside a swap (tokio-rs/loom#254) and could not model
    // it; beside a system call its price is nothing.
    if taken(Step::S2) {
        word.swap(1, order(Step::S2, Ordering::Release));
    }
    if taken(Step::S3) {
        signal(); // S3
    }
}

/// Takes the kicks so far, and says whether there were any. Call before looking at the
/// orders, and before `Domain::enter`.
///
/// Costs a plain load when there were none.
pub fn heed(word: &AtomicU8) -> bool {
    // V1: a kick that this look misses stays set, and ends the next KVM_RUN. Acquire pairs
    // with S2; on the swap, not the look, so that no kick set in between is cleared unseen.
    taken(Step::V1)
        && word.load(Ordering::Relaxed) != 0
        && word.swap(0, order(Step::V1, Ordering::Acquire)) != 0
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_set_before_the_signal_is_sent() {
        let word = AtomicU8::new(0);
        let mut seen = 0;
        ask(&word, || seen = word.load(Ordering::Relaxed));
        assert_eq!(seen, 1);
    }

    #[test]
    fn many_kicks_are_heeded_as_one() {
        let word = AtomicU8::new(0);
        ask(&word, || ());
        ask(&word, || ());
        assert!(heed(&word));
        assert!(!heed(&word));
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }
}
