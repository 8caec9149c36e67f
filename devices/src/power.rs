//! ACPI's fixed power management registers: events, and going to sleep for good.
//!
//! ```text
//!   offset 0  PM1 status   what happened; writing a one clears the bit
//!   offset 2  PM1 enable   what is worth an interrupt
//!   offset 4  PM1 control  bit 0: ACPI mode; bits 10-12: sleep type; bit 13: sleep now
//! ```
//!
//! The only event is the power button. There is no power management timer, no sleep but
//! S5, and no way out of ACPI mode. Source: ACPI 6.4, section 4.8.3.1 and 4.8.3.2.

use std::sync::Arc;

use actors::contract::guest::GuestEnd;
use actors::device::{Device, Effect, IrqLine};
use actors::platform::{
    PM1_EVENT_LEN, PM1_SCI_ENABLE, PM1_SLEEP_ENABLE, PM1_SLEEP_TYPE_SHIFT, S5_SLEEP_TYPE,
};

use crate::registers;

/// In status: the button was pressed. In enable: that is worth an interrupt.
const POWER_BUTTON: u16 = 1 << 8;
/// Three bits.
const SLEEP_TYPE_MASK: u16 = 7 << PM1_SLEEP_TYPE_SHIFT;

/// The registers.
pub struct PowerManagement {
    line: Arc<dyn IrqLine>,
    status: u16,
    enable: u16,
    control: u16,
}

impl PowerManagement {
    /// `line` is the system control interrupt.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self { line, status: 0, enable: 0, control: PM1_SCI_ENABLE }
    }

    /// Asks the guest to shut down, as a person at the machine would. A guest whose ACPI is
    /// not up does not hear it.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
        if self.enable & POWER_BUTTON != 0 {
            self.line.pulse();
        }
    }

    fn read_register(&self, register: u8) -> u8 {
        let [status_low, status_high] = self.status.to_le_bytes();
        let [enable_low, enable_high] = self.enable.to_le_bytes();
        let [control_low, control_high] = self.control.to_le_bytes();
        match register {
            0 => status_low,
            1 => status_high,
            2 => enable_low,
            3 => enable_high,
            4 => control_low,
            5 => control_high,
            _ => u8::MAX,
        }
    }

    fn write_register(&mut self, register: u8, value: u8) -> Effect {
        let high = u16::from(value) << 8;
        match register {
            0 => self.status &= !u16::from(value),
            1 => self.status &= !high,
            2 => self.enable = self.enable & 0xff00 | u16::from(value),
            3 => return self.enable_high(high),
            // ACPI mode stays on, and nothing else in the low byte has a meaning here.
            4 => {}
            5 => return self.sleep(high),
            _ => {}
        }
        Effect::None
    }

    /// Enabling what has happened already is an interrupt too.
    fn enable_high(&mut self, high: u16) -> Effect {
        self.enable = self.enable & 0x00ff | high;
        if self.enable & self.status & POWER_BUTTON != 0 {
            self.line.pulse();
        }
        Effect::None
    }

    fn sleep(&mut self, high: u16) -> Effect {
        self.control = PM1_SCI_ENABLE | high & SLEEP_TYPE_MASK;
        let kind = (high & SLEEP_TYPE_MASK) >> PM1_SLEEP_TYPE_SHIFT;
        if high & PM1_SLEEP_ENABLE != 0 && kind == u16::from(S5_SLEEP_TYPE) {
            Effect::Ends(GuestEnd::PowerOff)
        } else {
            Effect::None
        }
    }
}

/// Event block and control block lie next to each other.
const _: () = assert!(PM1_EVENT_LEN == 4);

impl Device for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in registers(offset).zip(data) {
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        for (register, &byte) in registers(offset).zip(data) {
            match self.write_register(register, byte) {
                Effect::None => {}
                ends => effect = ends,
            }
        }
        effect
    }
}
