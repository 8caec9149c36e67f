//! Interrupts between vcpus, and from controllers to them: messages, each to one vcpu's inbox.
//!
//! # How a message finds its reader awake
//!
//! ```text
//!   sender                                     the vcpu's thread
//!   X1  post (inbox.rs: P1, P2)                Y1  asleep = true      (its guest is halted)
//!   X2  ── fence SeqCst ──                     Y2  ── fence SeqCst ──
//!   X3  asleep? then an order into its         Y3  mail? then it does not sleep
//!       mailbox: "look"                        Y4  sleeps at its mailbox
//!   X4  else knock: in the guest it            Y5  asleep = false
//!       comes out                              Y6  collect, on its way in
//! ```
//!
//! Either the sender sees Y1 and wakes it, or Y3 sees the mail. A vcpu that is neither asleep nor in the guest
//! collects on its way in. Only the first message since the last collection wakes: whoever was woken
//! collects before it sleeps again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use actors::VcpuId;
use devices::apic::{Directory, Inbox, Message};

use crate::VcpuHandle;
use crate::handle::Reader;

/// The vcpu that the old controllers and the interval timer concern.
pub(super) const BOOT: VcpuId = VcpuId(0);

/// One vcpu's place.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) inbox: Inbox,
    asleep: AtomicBool,
    reader: OnceLock<Reader>,
}

impl Place {
    /// "I go to sleep": whether the vcpu may, because there is no mail.
    pub(super) fn falls_asleep(&self) -> bool {
        self.asleep.store(true, Ordering::Relaxed); // Y1
        fence(Ordering::SeqCst); // Y2: pairs with X2.
        let sleeps = !self.inbox.has_mail(); // Y3
        if !sleeps {
            self.wakes();
        }
        sleeps
    }

    /// "I am awake."
    pub(super) fn wakes(&self) {
        self.asleep.store(false, Ordering::Relaxed); // Y5
    }

    fn wake(&self) {
        fence(Ordering::SeqCst); // X2: pairs with Y2.
        // Before the vcpus run nobody needs to be woken.
        let Some(reader) = self.reader.get() else { return };
        if self.asleep.load(Ordering::Relaxed) {
            reader.nudge(); // X3
        } else {
            reader.knocker.knock(); // X4
        }
    }
}

/// All places of a machine, and who is addressed how.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) directory: Directory,
    places: Box<[Place]>,
}

impl Exchange {
    pub(super) fn new(vcpus: u8) -> Self {
        Self {
            directory: Directory::new(vcpus),
            places: (0..vcpus).map(|_| Place::default()).collect(),
        }
    }

    pub(super) fn place(&self, vcpu: VcpuId) -> &Place {
        &self.places[vcpu.index()]
    }

    /// From now on messages to this vcpu wake it.
    pub(super) fn enter(&self, vcpu: &VcpuHandle) {
        // Entered once per machine; a second time would be the same handle.
        let _first = self.place(vcpu.id()).reader.set(vcpu.reader());
    }

    /// Delivers to everyone who is meant.
    pub(super) fn send(&self, message: &Message) {
        for vcpu in self.directory.destinations(message).iter() {
            let place = self.place(vcpu);
            if place.inbox.post(message) {
                place.wake(); // X1
            }
        }
    }

    /// Makes one vcpu look at what else concerns it (the interval timer, the old controllers).
    pub(super) fn nudge(&self, vcpu: VcpuId) {
        self.place(vcpu).wake();
    }
}

#[cfg(test)]
mod tests {
    use devices::apic::{Delivery, Destination, Trigger};

    use super::*;

    #[test]
    fn nobody_falls_asleep_over_mail() {
        let exchange = Exchange::new(2);
        let place = exchange.place(VcpuId(1));
        assert!(place.falls_asleep());
        place.wakes();
        let delivery = Delivery::Nmi;
        let destination = Destination::Physical(1);
        exchange.send(&Message { destination, delivery, trigger: Trigger::Edge });
        assert!(!place.falls_asleep());
        assert!(exchange.place(BOOT).falls_asleep(), "it was not for this one");
    }
}
