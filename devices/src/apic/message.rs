//! What travels between interrupt controllers.

use super::Address;

/// Whether an interrupt is over once it was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// An event. Nobody hears of its end.
    Edge,
    /// A line that stays up: its controller wants to hear of the end of the interrupt.
    Level,
}

/// For whom. Broadcast addresses have become [`Destination::All`] on the sender's side, where
/// the width of an address (8 bits in a local xAPIC and an I/O APIC, 32 in an x2APIC) is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The processor with this local APIC id.
    Physical(u32),
    /// Every processor whose logical address this selects.
    Logical(u32),
    /// Every processor.
    All,
    /// Every processor but the one with this local APIC id, which is the sender.
    Others(u32),
}

impl Destination {
    /// What a sender means by `field`, whose broadcast address is `broadcast`: all ones, in
    /// physical and in logical mode. SDM, APIC, "Broadcast/Self Delivery Mode".
    pub(super) fn of_field(field: u32, broadcast: u32, is_logical: bool) -> Self {
        match field {
            all if all == broadcast => Self::All,
            logical if is_logical => Self::Logical(logical),
            physical => Self::Physical(physical),
        }
    }
}

/// What to do there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// Interrupt with this vector.
    Fixed(u8),
    /// Interrupt one of those addressed with this vector.
    LowestPriority(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// Reset the processor and let it wait for a start-up message. (The de-assertion that
    /// follows it on old buses means nothing to a local APIC of this kind and is not sent.)
    Init,
    /// Start in real mode at this 4 KiB page below 1 MiB, if it waits to be started.
    Startup(u8),
}

impl Delivery {
    /// Whether only a local APIC that software has switched on (spurious vector register,
    /// bit 8) takes it. SDM, APIC, "Local APIC State After It Has Been Software Disabled".
    #[must_use]
    pub fn needs_software_enabled(self) -> bool {
        matches!(self, Self::Fixed(_) | Self::LowestPriority(_))
    }
}

/// One message on the bus between the controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// For whom.
    pub destination: Destination,
    /// What to do there.
    pub delivery: Delivery,
    /// Of fixed and lowest-priority delivery. Between processors it is always an edge.
    pub trigger: Trigger,
}

impl Message {
    /// What arrives at each vcpu that [`Directory::destinations`](super::Directory::destinations)
    /// names, if that is an interrupt with a vector.
    #[must_use]
    pub fn interrupt(&self) -> Option<Interrupt> {
        match self.delivery {
            Delivery::Fixed(vector) | Delivery::LowestPriority(vector) => {
                Some(Interrupt { vector, trigger: self.trigger })
            }
            Delivery::Nmi | Delivery::Init | Delivery::Startup(_) => None,
        }
    }
}

/// An interrupt with a vector, at its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// Which entry of the interrupt table.
    pub vector: u8,
    /// Whether somebody waits for its end.
    pub trigger: Trigger,
}

/// What others must hear of, after a write to a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "others would never hear of it"]
pub enum Command {
    /// Deliver this to whom the [`Directory`](super::Directory) says; that may include the
    /// sender.
    Send(Message),
    /// A level-triggered interrupt is over: tell the I/O APIC.
    EndOfInterrupt(u8),
    /// This vcpu answers to another address from now on: publish it in the
    /// [`Directory`](super::Directory) before the guest goes on.
    Publish(Address),
}
