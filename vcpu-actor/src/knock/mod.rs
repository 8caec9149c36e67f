//! A knock on a vcpu's thread that cannot be lost.
//!
//! # The promise
//!
//! When [`Knocker::knock`] returns, the vcpu sleeps at its mailbox, or comes out of the guest without
//! waiting for anything, or will look at its orders before it goes in.
//!
//! # The dance
//!
//! A flag and a signal, in the order that [`shootdown::kick`] draws, checks with a model and carries
//! out (its V1, S2 and S3 are here). Around it, one more pair of "set mine, look at yours" spares
//! parked vcpus the signal:
//!
//! ```text
//!   whoever knocks                          vcpu thread
//!   K1  order into the mailbox              T1  engaged = true     (leaving the parking spot)
//!   K2  ── fence SeqCst ──                  T2  ── fence SeqCst ──
//!   K3  not engaged? then nothing to do     T3  look at the mailbox
//!   K4  flag, signal (S2, S3)               T4  in and out of the guest (V1 to V5)
//!                                           T5  engaged = false    (back at the parking spot)
//! ```
//!
//! Either the sender sees T1 and knocks, or T3 sees the order. A thread that is not engaged sleeps at its
//! mailbox, where the order itself wakes it. A shootdown knocks only on a vcpu it has seen in the
//! guest: it sees T1 then, for T1 comes before the entry; or it sees T5, and the trip is over.
//!
//! # Two kinds of delivery
//!
//! [`KickKind::Mask`] keeps the signal blocked outside `KVM_RUN` and lets `KVM_RUN` alone open
//! the door (`KVM_SET_SIGNAL_MASK`). No handler runs, so the vcpu acknowledges sooner, and no device
//! model ever sees an interrupted system call. The pending signal is consumed after the
//! acknowledgement. [`KickKind::Handler`] leaves the signal open and lets the empty handler run.
//! Whoever knocks does the same for both.

mod signal;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, fence};

use shootdown::kick;

pub use signal::SignalError;
pub(crate) use signal::mask_for_the_guest;

/// How the signal reaches a vcpu's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KickKind {
    /// The signal is open all the time, and an empty handler runs.
    Handler,
    /// The signal is blocked except inside `KVM_RUN`, and no handler runs. The default: measured
    /// 5-25 % sooner on a software KVM, and devices are never interrupted.
    #[default]
    Mask,
}

/// A byte that, when it is not 0, ends the guest's next trip or the current one as soon as the
/// engine looks. On KVM it is `immediate_exit` in the vcpu's run area.
pub trait ExitFlag: Send + Sync {
    /// The byte.
    fn byte(&self) -> &AtomicU8;
}

/// For an engine that looks at it itself.
impl ExitFlag for AtomicU8 {
    fn byte(&self) -> &AtomicU8 {
        self
    }
}

/// The same, for an engine that keeps the byte itself.
impl ExitFlag for Arc<AtomicU8> {
    fn byte(&self) -> &AtomicU8 {
        self
    }
}

/// What both sides of a knock look at.
struct Door {
    flag: Box<dyn ExitFlag>,
    /// The vcpu may be in the kernel while it is in the guest: the flag alone would not bring it out.
    needs_signal: bool,
    /// The thread is somewhere between leaving its parking spot and coming back to it.
    engaged: AtomicBool,
    /// The kernel's id of the thread; 0 before it starts and after it ends.
    tid: AtomicI32,
}

impl Door {
    fn is_flag_raised(&self) -> bool {
        self.flag.byte().load(Ordering::Relaxed) != 0
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Door")
            .field("flag", &self.is_flag_raised())
            .field("engaged", &self.engaged)
            .field("tid", &self.tid)
            .finish()
    }
}

/// Brings a vcpu out of the guest, from any thread. Cheap to clone.
/// May outlive the vcpu, and keeps nothing of it alive.
#[derive(Clone, Debug)]
pub struct Knocker {
    door: Arc<Door>,
}

impl Knocker {
    /// A way to get at the vcpu whose engine looks at `flag`.
    #[must_use]
    pub fn new(flag: impl ExitFlag + 'static) -> Self {
        Self::with(Box::new(flag), true)
    }

    /// The same for an engine that is never in the kernel while it is in the guest, and reads the flag
    /// often: a knock is one store.
    #[must_use]
    pub fn by_flag_alone(flag: impl ExitFlag + 'static) -> Self {
        Self::with(Box::new(flag), false)
    }

    fn with(flag: Box<dyn ExitFlag>, needs_signal: bool) -> Self {
        Self {
            door: Arc::new(Door {
                flag,
                needs_signal,
                engaged: AtomicBool::new(false),
                tid: AtomicI32::new(0),
            }),
        }
    }

    /// Brings the vcpu out, if it is in. What it shall find when it looks (an order, a new
    /// generation) must be in its place already.
    ///
    /// Costs one fence when the vcpu is parked, one system call otherwise; never blocks.
    pub fn knock(&self) {
        fence(Ordering::SeqCst); // K2: pairs with T2.
        // K3. Relaxed: the fence orders it.
        if !self.door.engaged.load(Ordering::Relaxed) {
            return;
        }
        // K4.
        kick::ask(self.door.flag.byte(), || {
            if !self.door.needs_signal {
                return;
            }
            // Acquire pairs with the store in `Listener::here`: the thread has its mask by then.
            let tid = self.door.tid.load(Ordering::Acquire);
            if tid != 0 {
                // Not sent only if the thread has ended, which is as far out as it gets.
                signal::send(tid);
            }
        });
    }

    /// The kernel's id of the vcpu's thread while it lives. userfaultfd names threads by it.
    #[must_use]
    pub fn tid(&self) -> Option<i32> {
        // Acquire, as in `knock`; nothing but the number is used.
        Some(self.door.tid.load(Ordering::Acquire)).filter(|tid| *tid != 0)
    }
}

/// The thread's side of the door. Lives on the vcpu's thread and stays there.
#[derive(Debug)]
pub(crate) struct Listener {
    door: Arc<Door>,
    kind: KickKind,
    /// The signal mask and the thread id are this thread's.
    on_this_thread: PhantomData<*const ()>,
}

impl Listener {
    /// Makes the calling thread the one that `knocker` knocks on.
    ///
    /// # Errors
    ///
    /// When the signal cannot be used, in words.
    pub(crate) fn here(knocker: &Knocker, kind: KickKind) -> Result<Self, String> {
        // Without signals neither handler nor mask is wanted.
        let kind = if knocker.door.needs_signal { kind } else { KickKind::Handler };
        if knocker.door.needs_signal {
            signal::install().map_err(|error| error.to_string())?;
        }
        signal::deliver(match kind {
            KickKind::Handler => signal::Delivery::Open,
            KickKind::Mask => signal::Delivery::Blocked,
        })
        .map_err(|error| format!("the thread's signal mask cannot be set: {error}"))?;
        let door = knocker.door.clone();
        // Release pairs with the loads in `Knocker`.
        door.tid.store(signal::own_tid(), Ordering::Release);
        Ok(Self { door, kind, on_this_thread: PhantomData })
    }

    /// "From now on an order may find me in the guest." Call before looking at the mailbox.
    pub(crate) fn engage(&self) {
        self.door.engaged.store(true, Ordering::Relaxed); // T1: ordered by the fence.
        fence(Ordering::SeqCst); // T2: pairs with K2.
    }

    /// "I wait at my mailbox now."
    pub(crate) fn disengage(&self) {
        // T5. Relaxed: whoever still sees the old value knocks once in vain.
        self.door.engaged.store(false, Ordering::Relaxed);
    }

    /// Takes the knocks so far. Call before looking at the mailbox, and before entering.
    pub(crate) fn heed(&self) {
        if kick::heed(self.door.flag.byte()) {
            self.consume_signal();
        }
    }

    /// The same after a trip that a knock, or any signal, has ended.
    pub(crate) fn heed_after_knock(&self) {
        kick::heed(self.door.flag.byte());
        // Even without the flag: the signal may come after its flag has been heeded.
        self.consume_signal();
    }

    /// A blocked signal stays pending and would end every trip from now on. One that arrives after
    /// this ends one trip in vain.
    fn consume_signal(&self) {
        if self.kind == KickKind::Mask {
            signal::consume();
        }
    }

    /// Makes the guest's next trip end before its first instruction.
    pub(crate) fn knock_on_myself(&self) {
        self.door.flag.byte().store(1, Ordering::Relaxed); // Same thread: nothing to order.
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.disengage();
        // Relaxed: a knocker that still sees the old id sends a signal that does nothing.
        self.door.tid.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> (Knocker, Listener) {
        let knocker = Knocker::new(AtomicU8::new(0));
        let listener = Listener::here(&knocker, KickKind::Mask).unwrap();
        (knocker, listener)
    }

    #[test]
    fn a_knock_stays_until_the_thread_looks() {
        let (knocker, listener) = door();
        listener.engage();
        knocker.knock();
        assert!(listener.door.is_flag_raised());
        listener.heed();
        assert!(!listener.door.is_flag_raised());
    }

    #[test]
    fn the_mask_keeps_the_signal_away_until_the_thread_consumes_it() {
        let (knocker, listener) = door();
        listener.engage();
        knocker.knock();
        assert!(signal::tests::is_pending());
        listener.heed();
        assert!(!signal::tests::is_pending());
    }

    #[test]
    fn a_signal_that_comes_after_its_flag_was_heeded_is_consumed_by_the_trip_it_ends() {
        let (_knocker, listener) = door();
        listener.engage();
        signal::send(signal::own_tid());
        listener.heed();
        assert!(signal::tests::is_pending(), "without the flag nobody looks for it");
        listener.heed_after_knock();
        assert!(!signal::tests::is_pending());
    }

    #[test]
    fn a_parked_vcpu_is_not_knocked_on() {
        let (knocker, listener) = door();
        knocker.knock();
        assert!(!listener.door.is_flag_raised());
        listener.engage();
        listener.disengage();
        knocker.knock();
        assert!(!listener.door.is_flag_raised());
    }

    #[test]
    fn the_thread_id_is_known_exactly_while_the_thread_listens() {
        let knocker = Knocker::new(AtomicU8::new(0));
        assert_eq!(knocker.tid(), None);
        let listener = Listener::here(&knocker, KickKind::Handler).unwrap();
        assert_eq!(knocker.tid(), Some(signal::own_tid()));
        drop(listener);
        assert_eq!(knocker.tid(), None);
        knocker.knock();
    }
}
