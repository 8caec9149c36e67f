//! The interrupt command register: what a write to it sends.
//!
//! ```text
//!   bits 0-7   vector              bit  14     level: 1 asserts
//!   bits 8-10  delivery mode       bit  15     trigger: 1 is level
//!   bit  11    logical             bits 18-19  shorthand: none, self, all, others
//! ```
//!
//! Source: SDM, APIC, "Interrupt Command Register (ICR)" and the table of valid combinations
//! for Pentium 4 and Xeon processors in it: interrupts between processors are edges whatever
//! the trigger bit says, a de-asserted INIT is nothing, and of the shorthands that include the
//! sender only fixed delivery is valid. Invalid combinations send nothing.

use super::message::{Delivery, Destination, Message, Trigger};

const LOGICAL: u32 = 1 << 11;
const ASSERT: u32 = 1 << 14;
const LEVEL: u32 = 1 << 15;

/// Bits that exist when the register is an MSR. There, bit 12 (delivery status) does not.
pub(super) const X2APIC_BITS: u64 = 0xffff_ffff_000c_cfff;
/// Bits that can be written when it is in memory.
pub(super) const XAPIC_BITS: u32 = 0x000c_cfff;

/// What a write to the register means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Nothing,
    /// Vectors 0 to 15 are the processor's own.
    IllegalVector,
    /// A fixed interrupt for the sender itself, with this vector.
    Myself(u8),
    Send(Message),
}

/// `command` is the register's low half. `addressed` is whom its high half names, read as the
/// sender's mode and bit 11 say ([`is_logical`]); `sender` is the sender's local APIC id.
pub(super) fn meaning(command: u32, addressed: Destination, sender: u32) -> Meaning {
    let [vector, ..] = command.to_le_bytes();
    let delivery = match command >> 8 & 7 {
        0 => Delivery::Fixed(vector),
        1 => Delivery::LowestPriority(vector),
        4 => Delivery::Nmi,
        5 if command & LEVEL != 0 && command & ASSERT == 0 => return Meaning::Nothing,
        5 => Delivery::Init,
        6 => Delivery::Startup(vector),
        // 2 is a system management interrupt, 3 and 7 are reserved.
        _ => return Meaning::Nothing,
    };
    if delivery.needs_software_enabled() && vector < 16 {
        return Meaning::IllegalVector;
    }
    let is_fixed = matches!(delivery, Delivery::Fixed(_));
    let destination = match command >> 18 & 3 {
        0 => addressed,
        1 if is_fixed => return Meaning::Myself(vector),
        2 if is_fixed => Destination::All,
        3 => Destination::Others(sender),
        _ => return Meaning::Nothing,
    };
    Meaning::Send(Message { destination, delivery, trigger: Trigger::Edge })
}

/// Whether the command's destination is a logical one.
pub(super) fn is_logical(command: u32) -> bool {
    command & LOGICAL != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: Destination = Destination::Physical(3);
    const MYSELF: u32 = 1 << 18;
    const ALL: u32 = 2 << 18;
    const OTHERS: u32 = 3 << 18;

    fn send(delivery: Delivery, destination: Destination) -> Meaning {
        Meaning::Send(Message { destination, delivery, trigger: Trigger::Edge })
    }

    #[test]
    fn every_delivery_mode_says_what_it_says() {
        for (command, delivery) in [
            (0x0_4041, Delivery::Fixed(0x41)),
            (0x0_c041, Delivery::Fixed(0x41)), // Level: overridden.
            (0x0_4141, Delivery::LowestPriority(0x41)),
            (0x0_4400, Delivery::Nmi),
            (0x0_4500, Delivery::Init),
            (0x0_c500, Delivery::Init),
            (0x0_0500, Delivery::Init), // An edge has no level.
            (0x0_4608, Delivery::Startup(8)),
        ] {
            assert_eq!(meaning(command, TO, 0), send(delivery, TO), "{command:#x}");
        }
    }

    #[test]
    fn deasserted_inits_and_reserved_modes_send_nothing() {
        for command in [0x0_8500, 0x0_4200, 0x0_4341, 0x0_4741] {
            assert_eq!(meaning(command, TO, 0), Meaning::Nothing, "{command:#x}");
        }
    }

    #[test]
    fn shorthands_replace_the_destination() {
        assert_eq!(meaning(MYSELF | 0x41, TO, 7), Meaning::Myself(0x41));
        assert_eq!(meaning(ALL | 0x41, TO, 7), send(Delivery::Fixed(0x41), Destination::All));
        let others = Destination::Others(7);
        assert_eq!(meaning(OTHERS | 0x41, TO, 7), send(Delivery::Fixed(0x41), others));
        assert_eq!(meaning(OTHERS | 0x400, TO, 7), send(Delivery::Nmi, others));
        assert_eq!(meaning(OTHERS | 0x4500, TO, 7), send(Delivery::Init, others));
    }

    #[test]
    fn nobody_resets_or_starts_itself_by_shorthand() {
        for shorthand in [MYSELF, ALL] {
            for mode in [0x141, 0x400, 0x4500, 0x608] {
                assert_eq!(meaning(shorthand | mode, TO, 7), Meaning::Nothing, "{mode:#x}");
            }
        }
    }

    #[test]
    fn the_processors_own_vectors_cannot_be_sent() {
        assert_eq!(meaning(0x0f, TO, 0), Meaning::IllegalVector);
        assert_eq!(meaning(0x10f, TO, 0), Meaning::IllegalVector);
        assert_eq!(meaning(0x10, TO, 0), send(Delivery::Fixed(0x10), TO));
        assert_eq!(meaning(0x40f, TO, 0), send(Delivery::Nmi, TO));
    }
}
