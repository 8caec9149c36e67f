//! What has arrived for a local APIC whose owner is busy: any thread posts, the owner collects.
//!
//! # The promise
//!
//! A message that [`Inbox::post`] has taken is in what one later [`Inbox::collect`] returns or
//! accepts, and the owner is told to look: either its flag is up, or the sender was told to
//! wake it. Two messages of one kind may become one, as in a local APIC.
//!
//! # The dance
//!
//! ```text
//!   a sender                                the owner
//!   P1  set the bit that is the message     C1  swap the flag to "nothing"
//!   P2  swap the flag to "something";       C2  swap the bits to none
//!       it said "nothing"? wake the owner
//! ```
//!
//! A sender whose P2 comes before C1 has its bit seen at C2. One whose P2 comes after C1 finds
//! the flag down, and wakes the owner, who collects again; if C2 saw its bit already it finds
//! nothing, which does no harm.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::local::LocalApic;
use super::message::{Delivery, Interrupt, Message, Trigger};

const NMI: u32 = 1 << 8;
const INIT: u32 = 1 << 9;
/// The page is in bits 0 to 7.
const STARTUP: u32 = 1 << 10;
const PAGE: u32 = 0xff;

/// One vcpu's.
#[derive(Debug, Default)]
pub struct Inbox {
    has_mail: AtomicBool,
    vectors: [AtomicU64; 4],
    /// Of each vector: how it was posted last.
    levels: [AtomicU64; 4],
    signals: AtomicU32,
}

/// What arrived and is no interrupt with a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the processor would never hear of them"]
pub struct Signals {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// Reset: [`LocalApic::init`], then wait for a start. Comes before `startup`.
    pub init: bool,
    /// Start at this 4 KiB page, if waiting to be started.
    pub startup: Option<u8>,
}

impl Inbox {
    /// Puts in what `message` brings to each of its
    /// [destinations](super::Directory::destinations). Returns whether the owner must be woken
    /// or knocked on: it has not been since it last collected.
    #[must_use = "the owner would sleep on"]
    pub fn post(&self, message: &Message) -> bool {
        // P1. Relaxed where not said otherwise: P2 orders it.
        match message.delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => {
                let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
                match message.trigger {
                    Trigger::Level => {
                        self.levels[word].fetch_or(bit, Ordering::Relaxed);
                    }
                    Trigger::Edge if self.levels[word].load(Ordering::Relaxed) & bit != 0 => {
                        self.levels[word].fetch_and(!bit, Ordering::Relaxed);
                    }
                    Trigger::Edge => {}
                }
                // Release: pairs with C2, which may see this before P2, and then sees the level.
                self.vectors[word].fetch_or(bit, Ordering::Release);
            }
            Delivery::Nmi => {
                self.signals.fetch_or(NMI, Ordering::Relaxed);
            }
            Delivery::Init => self.signal(|signals| signals & !(STARTUP | PAGE) | INIT),
            Delivery::Startup(page) => {
                self.signal(|signals| signals & !PAGE | STARTUP | u32::from(page));
            }
        }
        // P2. Release: pairs with C1, which sees P1's bit with it. Acquire: nothing to see, but
        // the swaps of all senders and the owner are one chain.
        !self.has_mail.swap(true, Ordering::AcqRel)
    }

    fn signal(&self, change: impl Fn(u32) -> u32) {
        let mut old = self.signals.load(Ordering::Relaxed);
        while let Err(other) = self.signals.compare_exchange_weak(
            old,
            change(old),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            old = other;
        }
    }

    /// Whether there may be something to collect. One load.
    #[inline]
    #[must_use]
    pub fn has_mail(&self) -> bool {
        // Relaxed: C1 orders what is collected.
        self.has_mail.load(Ordering::Relaxed)
    }

    /// Takes everything out: interrupts go to `apic`, the rest is returned.
    pub fn collect(&self, apic: &mut LocalApic) -> Signals {
        // C1. Acquire: pairs with P2.
        if !self.has_mail.swap(false, Ordering::AcqRel) {
            return Signals::default();
        }
        // C2. Relaxed where not said otherwise: ordered by C1.
        for (first, (vectors, levels)) in
            (0..=192_u8).step_by(64).zip(self.vectors.iter().zip(&self.levels))
        {
            // Acquire: pairs with P1, for the level.
            let mut taken = vectors.swap(0, Ordering::Acquire);
            let levels = levels.load(Ordering::Relaxed);
            while taken != 0 {
                // At most 63.
                let bit = u8::try_from(taken.trailing_zeros()).unwrap_or(63);
                taken &= taken - 1;
                let is_level = levels >> bit & 1 != 0;
                let trigger = if is_level { Trigger::Level } else { Trigger::Edge };
                apic.accept(Interrupt { vector: first + bit, trigger });
            }
        }
        let signals = self.signals.swap(0, Ordering::Relaxed);
        let [page, ..] = signals.to_le_bytes();
        Signals {
            nmi: signals & NMI != 0,
            init: signals & INIT != 0,
            startup: (signals & STARTUP != 0).then_some(page),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::local_tests::{EOI, apic};
    use super::super::message::{Command, Destination};
    use super::*;

    fn message(delivery: Delivery, trigger: Trigger) -> Message {
        Message { destination: Destination::All, delivery, trigger }
    }

    fn edge(vector: u8) -> Message {
        message(Delivery::Fixed(vector), Trigger::Edge)
    }

    fn signal(delivery: Delivery) -> Message {
        message(delivery, Trigger::Edge)
    }

    #[test]
    fn every_vector_arrives_with_its_trigger() {
        let inbox = Inbox::default();
        for vector in (16..=255).step_by(13) {
            let mut apic = apic(0);
            for (trigger, ends) in [
                (Trigger::Level, Some(Command::EndOfInterrupt(vector))),
                (Trigger::Edge, None),
                (Trigger::Level, Some(Command::EndOfInterrupt(vector))),
            ] {
                assert!(inbox.post(&message(Delivery::LowestPriority(vector), trigger)));
                assert_eq!(inbox.collect(&mut apic), Signals::default());
                assert_eq!(apic.acknowledge(), vector);
                assert_eq!(apic.write(EOI, 0, 0), ends);
            }
        }
    }

    #[test]
    fn only_the_first_message_since_the_last_collection_wakes() {
        let inbox = Inbox::default();
        assert!(!inbox.has_mail());
        assert!(inbox.post(&edge(0x41)));
        assert!(!inbox.post(&edge(0x42)));
        assert!(inbox.has_mail());
        let mut apic = apic(0);
        assert_eq!(inbox.collect(&mut apic), Signals::default());
        assert!(!inbox.has_mail());
        assert_eq!((apic.acknowledge(), apic.pending()), (0x42, None));
        assert!(inbox.post(&edge(0x42)));
    }

    #[test]
    fn signals_are_returned_once() {
        let inbox = Inbox::default();
        let mut apic = apic(1);
        for delivery in [Delivery::Nmi, Delivery::Init, Delivery::Startup(0x9a)] {
            let _wake = inbox.post(&signal(delivery));
        }
        let all = Signals { nmi: true, init: true, startup: Some(0x9a) };
        assert_eq!(inbox.collect(&mut apic), all);
        assert_eq!(inbox.collect(&mut apic), Signals::default());
    }

    #[test]
    fn a_reset_cancels_the_start_before_it_and_a_second_start_the_first() {
        let inbox = Inbox::default();
        let mut apic = apic(1);
        for delivery in [Delivery::Startup(0x9a), Delivery::Init] {
            let _wake = inbox.post(&signal(delivery));
        }
        assert_eq!(inbox.collect(&mut apic), Signals { init: true, ..Signals::default() });
        for page in [0xff, 0x08] {
            let _wake = inbox.post(&signal(Delivery::Startup(page)));
        }
        assert_eq!(inbox.collect(&mut apic).startup, Some(0x08));
    }

    #[test]
    fn nothing_is_lost_between_senders_and_an_owner_who_only_looks_when_woken() {
        const SENDERS: u8 = 3;
        let inbox = &Inbox::default();
        let (wake, woken) = crossbeam_channel::unbounded();
        let taken = std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                let wake = wake.clone();
                scope.spawn(move || {
                    for vector in (16 + sender..=255).step_by(SENDERS.into()) {
                        if inbox.post(&edge(vector)) {
                            wake.send(()).unwrap();
                        }
                    }
                });
            }
            drop(wake);
            let mut apic = apic(0);
            let mut taken = BTreeSet::new();
            for () in woken {
                assert_eq!(inbox.collect(&mut apic), Signals::default());
                while apic.pending().is_some() {
                    assert!(taken.insert(apic.acknowledge()));
                    assert_eq!(apic.write(EOI, 0, 0), None);
                }
            }
            taken
        });
        assert_eq!(taken, (16..=255).collect());
    }
}
