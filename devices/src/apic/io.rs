//! The I/O APIC: interrupt lines go in, messages come out.
//!
//! ```text
//!   0x00  which register (one byte)         register 0        id
//!   0x10  that register (four bytes)        register 1        version, last pin
//!   0x40  end of interrupt: a vector        register 2        arbitration id
//!                                           0x10 + 2 * pin    redirection, low half
//!                                           0x11 + 2 * pin    redirection, high half
//! ```
//!
//! Source: Intel 82093AA data sheet, "Register Description"; the end-of-interrupt register,
//! and version 0x20 with it: Intel ICH data sheets, "EOIR: EOI Register".
//!
//! # Lines
//!
//! A pin is asserted or it is not; the polarity bit is remembered and means nothing. An edge
//! on a masked pin is lost, as the data sheet says. A device that can only say "one pulse"
//! ([`IrqLine`](actors::device::IrqLine)) on a pin that the guest made level-triggered means
//! "I am asserted until you have looked at me": the pulse is kept until it was delivered once.
//!
//! Known hole: a level sent to nobody (no processor answers to the address) counts as sent,
//! and its pin waits for an end that never comes; a bus would try again. Making the pin an
//! edge and a level again, or the end-of-interrupt register, frees it.

use std::sync::Arc;

use actors::device::{Device, Effect};
use actors::platform::IO_APIC_PINS;

use super::message::{Delivery, Destination, Message, Trigger};

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const END_OF_INTERRUPT: u64 = 0x40;

const VERSION: u32 = 0x20;
/// In the version register: the last pin's number.
const LAST_PIN_SHIFT: u32 = 16;
const FIRST_REDIRECTION: u8 = 0x10;

const LOGICAL: u64 = 1 << 11;
const REMOTE_REQUEST: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
/// Vector, delivery mode, destination mode, polarity, trigger, mask, destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const DESTINATION_SHIFT: u32 = 56;

/// Where interrupt controllers put what they have to say. Called with a controller's lock
/// held: it must not call back, and must not wait.
pub trait Interrupts: Send + Sync {
    /// Deliver `message` to whom the [`Directory`](super::Directory) says.
    fn send(&self, message: &Message);

    /// The 8259s' request to the boot processor went up or down.
    fn external(&self, is_requested: bool);

    /// The interval timer's next edge is at another time than it was: whoever sleeps until it
    /// must look again.
    fn next_edge_moved(&self);
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    redirection: u64,
    is_asserted: bool,
    /// A pulse on a level-triggered pin that nobody was told of yet.
    has_pulsed: bool,
}

impl Pin {
    fn is(&self, bit: u64) -> bool {
        self.redirection & bit != 0
    }

    fn vector(&self) -> u8 {
        let [vector, ..] = self.redirection.to_le_bytes();
        vector
    }

    /// What an interrupt on this pin sends. System management interrupts and "ask the 8259s"
    /// (which are wired to the boot processor, not to a pin) send nothing.
    fn message(&self) -> Option<Message> {
        let vector = self.vector();
        let (delivery, trigger) = match self.redirection >> 8 & 7 {
            0 => (Delivery::Fixed(vector), self.trigger()),
            1 => (Delivery::LowestPriority(vector), self.trigger()),
            4 => (Delivery::Nmi, Trigger::Edge),
            5 => (Delivery::Init, Trigger::Edge),
            _ => return None,
        };
        let field = u32::try_from(self.redirection >> DESTINATION_SHIFT).unwrap_or(0xff);
        let destination = Destination::of_field(field, 0xff, self.is(LOGICAL));
        Some(Message { destination, delivery, trigger })
    }

    fn trigger(&self) -> Trigger {
        if self.is(LEVEL) { Trigger::Level } else { Trigger::Edge }
    }
}

/// The controller.
pub struct IoApic {
    interrupts: Arc<dyn Interrupts>,
    select: u8,
    id: u8,
    pins: [Pin; IO_APIC_PINS as usize],
}

impl IoApic {
    /// Every pin masked.
    #[must_use]
    pub fn new(interrupts: Arc<dyn Interrupts>) -> Self {
        let pin = Pin { redirection: MASKED, is_asserted: false, has_pulsed: false };
        Self { interrupts, select: 0, id: 0, pins: [pin; IO_APIC_PINS as usize] }
    }

    /// The line at `pin` goes up or down. Nothing for a pin there is not.
    pub fn set_line(&mut self, pin: u8, is_asserted: bool) {
        let Some(state) = self.pins.get_mut(usize::from(pin)) else {
            return;
        };
        let rises = is_asserted && !state.is_asserted;
        state.is_asserted = is_asserted;
        if state.is(LEVEL) {
            self.serve_level(pin);
        } else if rises {
            self.serve_edge(pin);
        }
    }

    /// The line at `pin` goes up and down again.
    pub fn pulse_line(&mut self, pin: u8) {
        let Some(state) = self.pins.get_mut(usize::from(pin)) else {
            return;
        };
        if state.is(LEVEL) {
            state.has_pulsed = true;
            self.serve_level(pin);
        } else {
            self.serve_edge(pin);
        }
    }

    /// A processor is done with a level-triggered interrupt: pins with this vector may ask
    /// again, and do if they are still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..IO_APIC_PINS {
            let Some(state) = self.pins.get_mut(usize::from(pin)) else {
                return;
            };
            if state.is(REMOTE_REQUEST) && state.vector() == vector {
                state.redirection &= !REMOTE_REQUEST;
                self.serve_level(pin);
            }
        }
    }

    fn serve_edge(&mut self, pin: u8) {
        let state = self.pins.get(usize::from(pin));
        if let Some(message) = state.filter(|pin| !pin.is(MASKED)).and_then(Pin::message) {
            self.interrupts.send(&message);
        }
    }

    /// A level-triggered pin asks once, and again only after the end of that interrupt.
    fn serve_level(&mut self, pin: u8) {
        let Some(state) = self.pins.get_mut(usize::from(pin)) else {
            return;
        };
        let asks = state.is_asserted || state.has_pulsed;
        if !asks || !state.is(LEVEL) || state.is(MASKED) || state.is(REMOTE_REQUEST) {
            return;
        }
        state.has_pulsed = false;
        if let Some(message) = state.message() {
            // Non-maskable interrupts and INIT have no end to wait for.
            if message.trigger == Trigger::Level {
                state.redirection |= REMOTE_REQUEST;
            }
            self.interrupts.send(&message);
        }
    }

    fn redirection(register: u8) -> Option<(u8, bool)> {
        let offset = register.checked_sub(FIRST_REDIRECTION)?;
        Some((offset / 2, offset % 2 == 1)).filter(|(pin, _)| *pin < IO_APIC_PINS)
    }

    fn read_selected(&self) -> u32 {
        let half = |(pin, is_high): (u8, bool)| {
            let redirection = self.pins.get(usize::from(pin))?.redirection;
            let half = if is_high { redirection >> 32 } else { redirection & 0xffff_ffff };
            u32::try_from(half).ok()
        };
        match self.select {
            // The arbitration id follows the id.
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION | u32::from(IO_APIC_PINS - 1) << LAST_PIN_SHIFT,
            register => Self::redirection(register).and_then(half).unwrap_or(0),
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.select == 0 {
            let [.., id] = value.to_le_bytes();
            self.id = id & 0xf;
            return;
        }
        let Some((pin, is_high)) = Self::redirection(self.select) else {
            return;
        };
        let Some(state) = self.pins.get_mut(usize::from(pin)) else {
            return;
        };
        let old = state.redirection;
        let new = if is_high {
            old & 0xffff_ffff | u64::from(value) << 32
        } else {
            old & !0xffff_ffff | u64::from(value)
        };
        state.redirection = new & WRITABLE | old & REMOTE_REQUEST;
        if !state.is(LEVEL) {
            // Only a level has an end. Drivers of old controllers end interrupts this way.
            state.redirection &= !REMOTE_REQUEST;
            state.has_pulsed = false;
        }
        self.serve_level(pin);
    }
}

impl Device for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            SELECT => self.select.into(),
            WINDOW => self.read_selected(),
            _ => 0,
        };
        data.fill(0);
        for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *byte = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut value = [0; 4];
        for (byte, from) in value.iter_mut().zip(data) {
            *byte = *from;
        }
        match offset {
            SELECT => [self.select, ..] = value,
            WINDOW => self.write_selected(u32::from_le_bytes(value)),
            END_OF_INTERRUPT => self.end_of_interrupt(value[0]),
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests;
