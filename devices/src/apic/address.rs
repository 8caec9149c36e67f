//! To what a local APIC answers, in one word that can be read while its owner changes it.
//!
//! ```text
//!   bits 0-31   local APIC id
//!   bits 32-39  logical destination register (xAPIC; its top 8 bits)
//!   bit  40     logical addresses have clusters (destination format register, xAPIC)
//!   bit  41     software has switched it on (spurious vector register, bit 8)
//!   bits 42-43  off, xAPIC, x2APIC
//! ```

use super::message::{Destination, Message};

const LOGICAL_SHIFT: u32 = 32;
const CLUSTERED: u64 = 1 << 40;
const SOFTWARE_ENABLED: u64 = 1 << 41;
const MODE_SHIFT: u32 = 42;

/// How a local APIC is spoken to. IA32_APIC_BASE chooses; SDM, APIC, "x2APIC States".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Switched off: as if there were none.
    Off,
    /// Registers in memory, 8-bit addresses.
    XApic,
    /// Registers as MSRs, 32-bit addresses.
    X2Apic,
}

/// What a local APIC answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(u64);

/// The parts of an [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) id: u32,
    pub(super) logical: u8,
    pub(super) is_clustered: bool,
    pub(super) is_software_enabled: bool,
    pub(super) mode: Mode,
}

impl Parts {
    pub(super) fn pack(self) -> Address {
        let mode = match self.mode {
            Mode::Off => 0,
            Mode::XApic => 1,
            Mode::X2Apic => 2,
        };
        let flag = |set, bit| if set { bit } else { 0 };
        Address(
            u64::from(self.id)
                | u64::from(self.logical) << LOGICAL_SHIFT
                | flag(self.is_clustered, CLUSTERED)
                | flag(self.is_software_enabled, SOFTWARE_ENABLED)
                | mode << MODE_SHIFT,
        )
    }
}

impl Address {
    /// The address of a local APIC after power-on: in xAPIC mode, not switched on by software.
    #[must_use]
    pub fn after_power_on(id: u32) -> Self {
        let (is_clustered, is_software_enabled) = (false, false);
        Parts { id, logical: 0, is_clustered, is_software_enabled, mode: Mode::XApic }.pack()
    }

    pub(super) fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// The local APIC id.
    #[must_use]
    pub fn id(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    fn logical(self) -> u8 {
        let [_, _, _, _, logical, ..] = self.0.to_le_bytes();
        logical
    }

    /// How it is spoken to.
    #[must_use]
    pub fn mode(self) -> Mode {
        match self.0 >> MODE_SHIFT {
            1 => Mode::XApic,
            2 => Mode::X2Apic,
            _ => Mode::Off,
        }
    }

    /// Whether `message` is for this local APIC, and one it takes in its present state. A
    /// lowest-priority message is for one of those for whom this says yes.
    #[must_use]
    pub fn hears(self, message: &Message) -> bool {
        let is_on = match self.mode() {
            Mode::Off => false,
            _ if message.delivery.needs_software_enabled() => self.0 & SOFTWARE_ENABLED != 0,
            _ => true,
        };
        is_on
            && match message.destination {
                Destination::Physical(id) => id == self.id(),
                Destination::Logical(selector) => self.is_selected(selector),
                Destination::All => true,
                Destination::Others(sender) => sender != self.id(),
            }
    }

    /// SDM, APIC, "Logical Destination Mode" and "Logical Destination Mode in x2APIC Mode".
    fn is_selected(self, selector: u32) -> bool {
        match self.mode() {
            Mode::Off => false,
            Mode::X2Apic => {
                let logical = x2apic_logical(self.id());
                selector >> 16 == logical >> 16 && selector & logical & 0xffff != 0
            }
            Mode::XApic => u8::try_from(selector).is_ok_and(|selector| {
                let logical = self.logical();
                if self.0 & CLUSTERED == 0 {
                    selector & logical != 0
                } else {
                    selector >> 4 == logical >> 4 && selector & logical & 0xf != 0
                }
            }),
        }
    }
}

/// The logical id that an x2APIC derives from its id: clusters of sixteen.
/// SDM, APIC, "Deriving Logical x2APIC ID from the Local x2APIC ID".
pub(super) fn x2apic_logical(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xf)
}
