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
    /// not up, or whose tables announce no such button, does not hear it.
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct CountedLine(AtomicUsize);

    impl IrqLine for CountedLine {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    const STATUS: u64 = 0;
    const ENABLE: u64 = 2;
    const CONTROL: u64 = 4;

    fn bench() -> (PowerManagement, Arc<CountedLine>) {
        let line = Arc::new(CountedLine::default());
        (PowerManagement::new(line.clone()), line)
    }

    fn read(power: &mut PowerManagement, offset: u64) -> u16 {
        let mut data = [0; 2];
        power.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn write(power: &mut PowerManagement, offset: u64, value: u16) -> Effect {
        power.write(offset, &value.to_le_bytes())
    }

    fn sleep(kind: u8) -> u16 {
        PM1_SLEEP_ENABLE | u16::from(kind) << PM1_SLEEP_TYPE_SHIFT
    }

    const OFF: Effect = Effect::Ends(GuestEnd::PowerOff);

    #[test]
    fn acpi_mode_is_always_on() {
        let power = &mut bench().0;
        assert_eq!(read(power, CONTROL), PM1_SCI_ENABLE);
        assert_eq!(write(power, CONTROL, 0), Effect::None);
        assert_eq!(read(power, CONTROL), PM1_SCI_ENABLE);
    }

    #[test]
    fn what_is_enabled_reads_back() {
        let power = &mut bench().0;
        assert_eq!(write(power, ENABLE, 0x0521), Effect::None);
        assert_eq!(read(power, ENABLE), 0x0521);
    }

    #[test]
    fn soft_off_needs_the_type_and_the_go() {
        let power = &mut bench().0;
        assert_eq!(write(power, CONTROL, sleep(5) & !PM1_SLEEP_ENABLE), Effect::None);
        assert_eq!(write(power, CONTROL, sleep(1)), Effect::None);
        assert_eq!(write(power, CONTROL, sleep(5)), OFF);
    }

    #[test]
    fn soft_off_may_come_as_its_high_byte() {
        let [_, high] = sleep(5).to_le_bytes();
        assert_eq!(bench().0.write(CONTROL + 1, &[high]), OFF);
    }

    #[test]
    fn the_go_does_not_read_back_and_the_type_does() {
        let power = &mut bench().0;
        assert_eq!(write(power, CONTROL, sleep(1)), Effect::None);
        assert_eq!(read(power, CONTROL), PM1_SCI_ENABLE | 1 << PM1_SLEEP_TYPE_SHIFT);
    }

    #[test]
    fn a_pressed_button_shows_until_a_one_is_written_to_it() {
        let (mut power, line) = bench();
        let power = &mut power;
        assert_eq!(write(power, ENABLE, POWER_BUTTON), Effect::None);
        power.press_power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        assert_eq!(write(power, STATUS, !POWER_BUTTON), Effect::None);
        assert_eq!(read(power, STATUS), POWER_BUTTON);
        assert_eq!(write(power, STATUS, POWER_BUTTON), Effect::None);
        assert_eq!(read(power, STATUS), 0);
    }

    #[test]
    fn a_button_pressed_early_interrupts_when_it_is_enabled() {
        let (mut power, line) = bench();
        power.press_power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 0);
        assert_eq!(write(&mut power, ENABLE, POWER_BUTTON), Effect::None);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
    }
}
