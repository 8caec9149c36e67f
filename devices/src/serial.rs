//! The first serial port: a 16550A whose transmitter tells the truth.
//!
//! The registers are vm-superio's. What this file adds is flow control, in both directions,
//! and interrupts that follow the conditions they stand for:
//!
//! * The transmitter is empty (LSR bits 5 and 6) only while the cable to the console has
//!   room. So a guest that polls waits *in the guest*, where it can be paused and stopped,
//!   and a guest that uses interrupts gets its interrupt when there is room again
//!   ([`Serial::room`]). A guest that does not look loses bytes, and they are counted.
//! * Input is taken only when the guest listens: its receive interrupt is enabled, or it
//!   polls. What is typed (or piped in) before the driver is up is not lost in a FIFO that
//!   the driver clears; it stays with the console, which is told when to offer it again.
//! * IIR names the highest *enabled* condition, as an encoded number. (vm-superio ors the
//!   bits, so that "data" and "transmitter empty" together read as "line status".)
//!
//! Source: TI PC16550D data sheet, section 8 (registers). Almost all of a booting Linux's
//! exits end here, two per byte, so a byte takes two short locks, no allocation and no
//! system call but the console's wake-up (see [`crate::cable`]).

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use actors::device::{Device, Effect, IrqLine};
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use crate::cable::Cable;
use crate::registers;

/// Receive and transmit holding registers; the divisor's low byte behind DLAB.
const DATA: u8 = 0;
/// Interrupt enable; the divisor's high byte behind DLAB.
const INTERRUPT_ENABLE: u8 = 1;
/// Read: interrupt identification. Write: FIFO control.
const INTERRUPT_ID: u8 = 2;
const FIFO_CONTROL: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;

const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMITTER_EMPTY: u8 = 1 << 1;
const ENABLE_ALL: u8 = 0x0f;

const ID_FIFOS: u8 = 0xc0;
const ID_NONE: u8 = 0x01;
const ID_TRANSMITTER_EMPTY: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;

const FIFO_CLEAR_RECEIVER: u8 = 1 << 1;
const LINE_DIVISOR: u8 = 1 << 7;
const MODEM_LOOP: u8 = 1 << 4;

const STATUS_DATA: u8 = 1 << 0;
const STATUS_TRANSMITTER: u8 = 0x60; // Holding register and shift register, both empty.

/// So many reads of a ready LSR in a row, and nothing else: the guest polls for input. One
/// that polls for output finds it ready at the first.
const POLLS_THAT_LISTEN: u8 = 16;

/// Bytes of vm-superio's receive FIFO.
const RECEIVE_FIFO: usize = 64;

struct Pulse(Arc<dyn IrqLine>);

impl Trigger for Pulse {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// The end of the cable that vm-superio writes to.
struct Transmitter(Cable);

impl io::Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().for_each(|&byte| self.0.push(byte));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port.
pub struct Serial {
    registers: vm_superio::Serial<Pulse, NoEvents, Transmitter>,
    line: Arc<dyn IrqLine>,
    cable: Cable,
    /// What the guest wrote to the registers of these names.
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    /// "Transmitter empty" waits to be read from IIR.
    empty_is_pending: bool,
    /// Reads of a ready LSR since the guest did anything else to the port.
    polls: u8,
    /// Input was refused: say so when it would be taken.
    refused: bool,
}

impl Serial {
    /// A port that pulls `line` and sends into `cable`.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>, cable: Cable) -> Self {
        let trigger = Pulse(line.clone());
        let transmitter = Transmitter(cable.clone());
        Self {
            registers: vm_superio::Serial::new(trigger, transmitter),
            line,
            cable,
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            empty_is_pending: false,
            polls: 0,
            refused: false,
        }
    }

    /// Input for the guest. Returns how much of it was taken; the rest stays with the
    /// caller, who learns through the cable when to offer it again.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let taken = if self.is_listening() {
            // The only error is a full FIFO.
            self.registers.enqueue_raw_bytes(input).unwrap_or(0)
        } else {
            0
        };
        self.refused = taken < input.len();
        taken
    }

    /// There is room in the cable again: a guest that waits for its interrupt gets it.
    pub fn room(&mut self) {
        if self.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0 {
            self.empty_is_pending = true;
            self.line.pulse();
        }
    }

    fn is_listening(&self) -> bool {
        !self.is_looped()
            && (self.interrupt_enable & ENABLE_RECEIVED != 0 || self.polls >= POLLS_THAT_LISTEN)
    }

    fn is_looped(&self) -> bool {
        self.modem_control & MODEM_LOOP != 0
    }

    fn shows_divisor(&self) -> bool {
        self.line_control & LINE_DIVISOR != 0
    }

    fn has_data(&mut self) -> bool {
        self.registers.read(LINE_STATUS) & STATUS_DATA != 0
    }

    /// In a loop the transmitter leads back into the port, not to the console.
    fn is_transmitter_ready(&self) -> bool {
        self.is_looped() || self.cable.is_ready()
    }

    /// Tells the console that refused input would be taken now.
    fn ask_for_input(&mut self) {
        if self.refused && self.is_listening() && self.registers.fifo_capacity() > 0 {
            self.refused = false;
            self.cable.offer_again();
        }
    }

    fn read_register(&mut self, register: u8) -> u8 {
        match register {
            DATA if !self.shows_divisor() => {
                let byte = self.registers.read(DATA);
                // Not at every byte: the console would be woken for each.
                if self.registers.fifo_capacity() == RECEIVE_FIFO {
                    self.ask_for_input();
                }
                byte
            }
            INTERRUPT_ID => self.identify(),
            LINE_STATUS => self.line_status(),
            _ => self.registers.read(register),
        }
    }

    fn line_status(&mut self) -> u8 {
        let status = self.registers.read(LINE_STATUS);
        if !self.is_transmitter_ready() {
            self.polls = 0;
            return status & !STATUS_TRANSMITTER;
        }
        self.polls = self.polls.saturating_add(1);
        if self.polls == POLLS_THAT_LISTEN {
            self.ask_for_input();
        }
        status
    }

    /// Reading IIR says which condition is worst, and takes note of "transmitter empty".
    fn identify(&mut self) -> u8 {
        self.settle();
        if self.interrupt_enable & ENABLE_RECEIVED != 0 && self.has_data() {
            return ID_FIFOS | ID_RECEIVED;
        }
        if self.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0
            && self.empty_is_pending
            && self.is_transmitter_ready()
        {
            self.empty_is_pending = false;
            return ID_FIFOS | ID_TRANSMITTER_EMPTY;
        }
        ID_FIFOS | ID_NONE
    }

    /// Moves what vm-superio has pending over to us: it pulls the line for a condition only
    /// if that is not pending with it already.
    fn settle(&mut self) {
        let pending = self.registers.read(INTERRUPT_ID);
        self.empty_is_pending |= pending & ID_NONE == 0 && pending & ID_TRANSMITTER_EMPTY != 0;
    }

    fn write_register(&mut self, register: u8, value: u8) {
        match register {
            INTERRUPT_ENABLE if !self.shows_divisor() => {
                self.interrupt_enable = value & ENABLE_ALL;
                // Enabling what is pending pulls the line, even if it was pulled before.
                self.settle();
                self.pass(register, value);
                self.ask_for_input();
            }
            FIFO_CONTROL => {
                if value & FIFO_CLEAR_RECEIVER != 0 {
                    self.clear_receiver();
                }
            }
            LINE_CONTROL => {
                self.line_control = value;
                self.pass(register, value);
            }
            MODEM_CONTROL => {
                self.modem_control = value;
                self.pass(register, value);
                self.ask_for_input();
            }
            _ => self.pass(register, value),
        }
    }

    fn pass(&mut self, register: u8, value: u8) {
        self.registers.write(register, value).expect("neither the line nor the cable can fail");
    }

    fn clear_receiver(&mut self) {
        // The receive register is reached around the divisor, if that is in the way.
        self.pass(LINE_CONTROL, self.line_control & !LINE_DIVISOR);
        while self.has_data() {
            self.registers.read(DATA);
        }
        self.pass(LINE_CONTROL, self.line_control);
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (register, byte) in registers(offset).zip(data) {
            if register != LINE_STATUS && register != DATA {
                self.polls = 0;
            }
            *byte = self.read_register(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        for (register, &byte) in registers(offset).zip(data) {
            self.polls = 0;
            self.write_register(register, byte);
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests;
