//! Interrupts between vcpus, and from controllers to them: messages, each to one vcpu's letter box.
//!
//! # The letter box
//!
//! An interrupt that is requested twice before it is taken is requested once: so a letter box is a set, one bit for each
//! vector and each special event. It cannot be full, and nobody who sends ever waits.
//!
//! # How a letter finds its reader awake
//!
//! ```text
//!   sender                                     the vcpu's thread
//!   X1  bit into the letter box                Y1  asleep = true      (its guest is halted)
//!   X2  ── fence SeqCst ──                     Y2  ── fence SeqCst ──
//!   X3  asleep? then an order into its         Y3  letters? then it does not sleep
//!       mailbox: "look"                        Y4  sleeps at its mailbox
//!   X4  knock (in the guest: it comes out)     Y5  asleep = false
//! ```
//!
//! Either the sender sees Y1 and wakes it, or Y3 sees the letter. A vcpu that is neither asleep nor in the guest looks
//! at its letters on its way in; one in the guest comes out at the knock, or looks at its next look at the clock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use actors::VcpuId;
use devices::apic::{Delivery, Directory, Interrupt, Message, Trigger};

use crate::VcpuHandle;
use crate::handle::Reader;

/// The vcpu that the old controllers and the interval timer concern.
pub(super) const BOOT: VcpuId = VcpuId(0);

/// Events without a vector.
const INIT: u32 = 1 << 0;
const NMI: u32 = 1 << 1;
const STARTUP: u32 = 1 << 2;
/// Where the page of a start-up message is.
const PAGE_SHIFT: u32 = 8;
const PAGE_MASK: u32 = 0xff << PAGE_SHIFT;

/// One vcpu's letter box.
#[derive(Debug, Default)]
pub(super) struct LetterBox {
    edges: [AtomicU64; 4],
    levels: [AtomicU64; 4],
    events: AtomicU32,
    asleep: AtomicBool,
    reader: OnceLock<Reader>,
}

/// What is not an interrupt with a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Special {
    /// Reset, and wait to be started. Comes before the others.
    pub(super) init: bool,
    /// Start at this page.
    pub(super) startup: Option<u8>,
    /// A non-maskable interrupt.
    pub(super) nmi: bool,
}

impl LetterBox {
    fn put(&self, message: &Message) {
        let insert = |set: &[AtomicU64; 4], vector: u8| {
            // Relaxed: X2 orders it.
            set[usize::from(vector / 64)].fetch_or(1 << (vector % 64), Ordering::Relaxed);
        };
        match message.delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => match message.trigger {
                Trigger::Edge => insert(&self.edges, vector),
                Trigger::Level => insert(&self.levels, vector),
            },
            Delivery::Nmi => drop(self.events.fetch_or(NMI, Ordering::Relaxed)),
            // A reset undoes a start that was not taken yet.
            Delivery::Init => self.change_events(|events| events & !(STARTUP | PAGE_MASK) | INIT),
            Delivery::Startup(page) => self.change_events(|events| {
                events & !PAGE_MASK | STARTUP | u32::from(page) << PAGE_SHIFT
            }),
        }
    }

    fn change_events(&self, change: impl Fn(u32) -> u32) {
        let change = |events| Some(change(events));
        // It never refuses.
        let _before = self.events.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Whether there is anything in it.
    pub(super) fn has_letters(&self) -> bool {
        let any = |set: &[AtomicU64; 4]| set.iter().any(|word| word.load(Ordering::Relaxed) != 0);
        any(&self.edges) || any(&self.levels) || self.events.load(Ordering::Relaxed) != 0
    }

    /// Takes every interrupt with a vector.
    pub(super) fn take_interrupts(&self, mut take: impl FnMut(Interrupt)) {
        for (set, trigger) in [(&self.edges, Trigger::Edge), (&self.levels, Trigger::Level)] {
            for (word, base) in set.iter().zip([0u8, 64, 128, 192]) {
                if word.load(Ordering::Relaxed) == 0 {
                    continue;
                }
                // Acquire: what the sender did before it sent.
                let mut bits = word.swap(0, Ordering::Acquire);
                while bits != 0 {
                    let place = u8::try_from(bits.trailing_zeros()).expect("below 64");
                    take(Interrupt { vector: base + place, trigger });
                    bits &= bits - 1;
                }
            }
        }
    }

    /// Takes the rest.
    pub(super) fn take_special(&self) -> Special {
        if self.events.load(Ordering::Relaxed) == 0 {
            return Special::default();
        }
        let events = self.events.swap(0, Ordering::Acquire);
        let [_, page, ..] = events.to_le_bytes();
        Special {
            init: events & INIT != 0,
            startup: (events & STARTUP != 0).then_some(page),
            nmi: events & NMI != 0,
        }
    }

    /// "I go to sleep": whether the vcpu may, because there are no letters.
    pub(super) fn falls_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed); // Y1
        fence(Ordering::SeqCst); // Y2: pairs with X2.
        let sleeps = !self.has_letters(); // Y3
        if !sleeps {
            self.wakes();
        }
        sleeps
    }

    /// "I am awake."
    pub(super) fn wakes(&self) {
        self.asleep.store(false, Ordering::Relaxed); // Y5
    }
}

/// All letter boxes of a machine, and who is addressed how.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) directory: Directory,
    boxes: Box<[LetterBox]>,
}

impl Exchange {
    pub(super) fn new(vcpus: u8) -> Self {
        Self {
            directory: Directory::new(vcpus),
            boxes: (0..vcpus).map(|_| LetterBox::default()).collect(),
        }
    }

    pub(super) fn letter_box(&self, vcpu: VcpuId) -> &LetterBox {
        &self.boxes[vcpu.index()]
    }

    /// From now on letters to this vcpu wake it.
    pub(super) fn enter(&self, vcpu: &VcpuHandle) {
        let place = &self.boxes[vcpu.id().index()].reader;
        // Entered once per machine; a second time would be the same handle.
        let _first = place.set(vcpu.reader());
    }

    /// Delivers to everyone who is meant.
    pub(super) fn send(&self, message: &Message) {
        for vcpu in self.directory.destinations(message).iter() {
            let letters = self.letter_box(vcpu);
            letters.put(message); // X1
            self.wake(letters);
        }
    }

    /// Makes one vcpu look at what else concerns it (a timer, the old controllers).
    pub(super) fn nudge(&self, vcpu: VcpuId) {
        self.wake(self.letter_box(vcpu));
    }

    fn wake(&self, letters: &LetterBox) {
        fence(Ordering::SeqCst); // X2: pairs with Y2.
        // Before the vcpus run nobody needs to be woken.
        let Some(reader) = letters.reader.get() else { return };
        if letters.asleep.load(Ordering::Relaxed) {
            reader.nudge(); // X3
        } else {
            reader.knocker.knock(); // X4
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::apic::Destination;

    use super::*;

    fn message(delivery: Delivery) -> Message {
        Message { destination: Destination::All, delivery, trigger: Trigger::Edge }
    }

    #[test]
    fn an_interrupt_that_comes_twice_is_taken_once() {
        let letters = LetterBox::default();
        for vector in [0x20, 0xff, 0x20] {
            letters.put(&message(Delivery::Fixed(vector)));
        }
        let level = Message { trigger: Trigger::Level, ..message(Delivery::Fixed(0x40)) };
        letters.put(&level);
        let mut taken = Vec::new();
        letters.take_interrupts(|interrupt| taken.push((interrupt.vector, interrupt.trigger)));
        assert_eq!(taken, [(0x20, Trigger::Edge), (0xff, Trigger::Edge), (0x40, Trigger::Level)]);
        assert!(!letters.has_letters());
    }

    #[test]
    fn a_reset_undoes_a_start_that_came_before_it_and_not_one_that_comes_after() {
        let letters = LetterBox::default();
        letters.put(&message(Delivery::Startup(7)));
        letters.put(&message(Delivery::Init));
        assert_eq!(letters.take_special(), Special { init: true, ..Special::default() });
        letters.put(&message(Delivery::Init));
        letters.put(&message(Delivery::Startup(9)));
        let both = Special { init: true, startup: Some(9), nmi: false };
        assert_eq!(letters.take_special(), both);
        assert_eq!(letters.take_special(), Special::default());
    }

    #[test]
    fn nobody_falls_asleep_over_a_letter() {
        let letters = LetterBox::default();
        assert!(letters.falls_asleep());
        letters.wakes();
        letters.put(&message(Delivery::Nmi));
        assert!(!letters.falls_asleep());
    }
}
