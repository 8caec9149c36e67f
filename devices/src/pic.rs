//! The two interrupt controllers of the PC/AT (8259A), the second behind line 2 of the first.
//!
//! ```text
//!   lines 8-15 ──▶ second ──▶ line 2 ┐
//!   lines 0, 1, 3-7 ─────────────────┴──▶ first ──▶ the boot processor's LINT0
//! ```
//!
//! Their request is a level: [`Interrupts::external`] hears of its changes, and the processor
//! that takes it asks which vector with [`Pic::acknowledge`].
//!
//! Each controller has a command port and a data port; a third pair of ports, one byte per
//! controller, says which lines are level-triggered. Sources: Intel 8259A data sheet (words
//! and modes by their names there); Intel ICH data sheets, "ELCR1" and "ELCR2".
//!
//! What a PC's wiring makes meaningless is remembered nowhere: MCS-80 mode, buffered mode,
//! the level bit of the first initialisation word (the third pair of ports replaces it), and
//! which line the cascade is on.

use std::sync::Arc;

use actors::device::{Device, Effect, Shared};
use parking_lot::Mutex;

use crate::apic::Interrupts;
use crate::registers;

mod chip;

use chip::Chip;

/// The line of the first controller that the second one's request is wired to.
const CASCADE: u8 = 2;
/// Lines that the chipset has as edges only: timer, keyboard and cascade; clock and
/// coprocessor.
const FIRST_MAY_BE_LEVEL: u8 = 0xf8;
const SECOND_MAY_BE_LEVEL: u8 = 0xde;
/// What a controller answers with when the request went away.
const SPURIOUS: u8 = 7;

/// Both controllers.
pub struct Pic {
    interrupts: Arc<dyn Interrupts>,
    first: Chip,
    second: Chip,
    is_requested: bool,
}

impl Pic {
    /// As after power-on: they interrupt nobody until they have been initialised.
    #[must_use]
    pub fn new(interrupts: Arc<dyn Interrupts>) -> Self {
        let first = Chip::new(FIRST_MAY_BE_LEVEL, Some(CASCADE));
        let second = Chip::new(SECOND_MAY_BE_LEVEL, None);
        Self { interrupts, first, second, is_requested: false }
    }

    /// Line 0 to 15 goes up or down. Nothing for another one, and for the cascade.
    pub fn set_line(&mut self, line: u8, is_asserted: bool) {
        if let Some((chip, line)) = self.chip(line) {
            chip.set_line(line, is_asserted);
            self.update();
        }
    }

    /// Line 0 to 15 goes up and down again. One that is level-triggered asks until it was
    /// acknowledged once: who can say "one pulse" only means that.
    pub fn pulse_line(&mut self, line: u8) {
        if let Some((chip, line)) = self.chip(line) {
            chip.pulse_line(line);
            self.update();
        }
    }

    fn chip(&mut self, line: u8) -> Option<(&mut Chip, u8)> {
        match line {
            CASCADE => None,
            0..8 => Some((&mut self.first, line)),
            8..16 => Some((&mut self.second, line - 8)),
            _ => None,
        }
    }

    /// Whether they ask for an interrupt.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.is_requested
    }

    /// The processor takes their interrupt: which vector. If the request went away meanwhile
    /// that is line 7's or line 15's, which is then not in service.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.next() {
            Some(CASCADE) => {
                self.first.acknowledge(CASCADE);
                let line = self.second.next();
                if let Some(line) = line {
                    self.second.acknowledge(line);
                }
                self.second.vector(line.unwrap_or(SPURIOUS))
            }
            Some(line) => {
                self.first.acknowledge(line);
                self.first.vector(line)
            }
            None => self.first.vector(SPURIOUS),
        };
        self.update();
        vector
    }

    /// The second's request reaches the first, and the first's the processor.
    fn update(&mut self) {
        self.first.follow_line(CASCADE, self.second.next().is_some());
        let is_requested = self.first.next().is_some();
        if is_requested != self.is_requested {
            self.is_requested = is_requested;
            self.interrupts.external(is_requested);
        }
    }

    /// Their ports: the first controller's two, the second's two, and the two that say which
    /// lines are level-triggered.
    #[must_use]
    pub fn ports(pic: &Shared<Self>) -> [Shared<dyn Device>; 3] {
        [Which::First, Which::Second, Which::Triggers].map(|which| {
            let ports: Shared<dyn Device> =
                Arc::new(Mutex::new(Ports { pic: Arc::clone(pic), which }));
            ports
        })
    }

    fn read_port(&mut self, which: Which, port: u8) -> u8 {
        let value = match (which, port) {
            (Which::First, 0) => self.first.read_command(),
            (Which::First, 1) => self.first.read_data(),
            (Which::Second, 0) => self.second.read_command(),
            (Which::Second, 1) => self.second.read_data(),
            (Which::Triggers, 0) => self.first.levels(),
            (Which::Triggers, 1) => self.second.levels(),
            _ => u8::MAX,
        };
        // A poll is an acknowledgement.
        self.update();
        value
    }

    fn write_port(&mut self, which: Which, port: u8, value: u8) {
        match (which, port) {
            (Which::First, 0) => self.first.write_command(value),
            (Which::First, 1) => self.first.write_data(value),
            (Which::Second, 0) => self.second.write_command(value),
            (Which::Second, 1) => self.second.write_data(value),
            (Which::Triggers, 0) => self.first.set_levels(value),
            (Which::Triggers, 1) => self.second.set_levels(value),
            _ => {}
        }
        self.update();
    }
}

#[derive(Clone, Copy)]
enum Which {
    First,
    Second,
    Triggers,
}

/// One pair of ports.
struct Ports {
    pic: Shared<Pic>,
    which: Which,
}

impl Device for Ports {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut pic = self.pic.lock();
        for (port, byte) in registers(offset).zip(data) {
            *byte = pic.read_port(self.which, port);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut pic = self.pic.lock();
        for (port, &byte) in registers(offset).zip(data) {
            pic.write_port(self.which, port, byte);
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests;
