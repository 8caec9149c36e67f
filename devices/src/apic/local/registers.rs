//! A local APIC's registers: what reads show and what writes do, whichever way they come.

use super::super::address::x2apic_logical;
use super::super::command::{self, Meaning};
use super::super::message::{Command, Destination, Interrupt, Trigger};
use super::super::register::{DIVIDE_BITS, Local, Register, SPURIOUS_BITS};
use super::super::timer;
use super::{
    ILLEGAL_REGISTER, LocalApic, MASKED, Mode, SEND_ILLEGAL_VECTOR, SOFTWARE_ENABLED, VERSION,
};

impl LocalApic {
    /// Reads the register `offset` bytes into the page. Zero, and a note in the error status,
    /// where there is none. All ones unless in xAPIC mode.
    pub fn read(&mut self, offset: u32, now: u64) -> u32 {
        if self.mode() != Mode::XApic {
            return u32::MAX;
        }
        match Register::in_memory(offset) {
            Some(register) => self.load(register, now),
            None => {
                self.fail(ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes the register `offset` bytes into the page. Nothing unless in xAPIC mode.
    pub fn write(&mut self, offset: u32, value: u32, now: u64) -> Option<Command> {
        if self.mode() != Mode::XApic {
            return None;
        }
        match Register::in_memory(offset) {
            Some(register) => self.store(register, value, now),
            None => {
                self.fail(ILLEGAL_REGISTER);
                None
            }
        }
    }

    /// [`LocalApic::read`] of any width. Registers are four bytes wide, sixteen apart: what
    /// reaches beyond one reads as zeroes there.
    pub fn read_bytes(&mut self, offset: u32, data: &mut [u8], now: u64) {
        let value = self.read(offset & !3, now).to_le_bytes();
        // At most 3.
        let skip = usize::try_from(offset & 3).unwrap_or(0);
        data.fill(0);
        for (byte, from) in data.iter_mut().zip(value.iter().skip(skip)) {
            *byte = *from;
        }
    }

    /// [`LocalApic::write`] of any width: only four bytes at once are a write.
    /// SDM, APIC, "The Local APIC Block Diagram": other widths are undefined.
    pub fn write_bytes(&mut self, offset: u32, data: &[u8], now: u64) -> Option<Command> {
        let value = <[u8; 4]>::try_from(data).ok()?;
        self.write(offset, u32::from_le_bytes(value), now)
    }

    pub(super) fn load(&self, register: Register, now: u64) -> u32 {
        let is_x2apic = self.mode() == Mode::X2Apic;
        match register {
            Register::Id if is_x2apic => self.id,
            Register::Id => self.id << 24,
            Register::Version => VERSION,
            Register::TaskPriority => self.task_priority.into(),
            Register::ProcessorPriority => self.processor_priority.into(),
            Register::LogicalDestination if is_x2apic => x2apic_logical(self.id),
            Register::LogicalDestination => u32::from(self.logical) << 24,
            Register::DestinationFormat if self.is_clustered => 0x0fff_ffff,
            Register::DestinationFormat => 0xffff_ffff,
            Register::Spurious => self.spurious,
            Register::InService(part) => self.in_service.part(part),
            Register::TriggerMode(part) => self.level_triggered.part(part),
            Register::Requested(part) => self.requested.part(part),
            Register::ErrorStatus => self.error_status,
            Register::Command => self.command,
            Register::CommandHigh => self.command_high,
            Register::Local(local) => self.entry(local),
            Register::InitialCount => self.timer.initial(),
            Register::CurrentCount => self.timer.count(now),
            Register::Divide => self.timer.divide(),
            // The old bus's arbitration and remote reads are no more; the rest is write-only.
            Register::ArbitrationPriority
            | Register::RemoteRead
            | Register::EndOfInterrupt
            | Register::SelfInterrupt => 0,
        }
    }

    /// Reserved and read-only bits and registers are left as they are.
    pub(super) fn store(&mut self, register: Register, value: u32, now: u64) -> Option<Command> {
        let [low, .., high] = value.to_le_bytes();
        let before = self.address();
        match register {
            Register::TaskPriority => {
                self.task_priority = low;
                self.refresh();
            }
            Register::EndOfInterrupt => return self.end_of_interrupt(),
            Register::LogicalDestination => self.logical = high,
            // Anything but "flat" (all ones) has clusters; only all zeroes is defined to.
            Register::DestinationFormat => self.is_clustered = high >> 4 != 0xf,
            Register::Spurious => self.set_spurious(value, now),
            Register::ErrorStatus => self.error_status = std::mem::take(&mut self.errors),
            Register::Command => {
                self.command = value & command::XAPIC_BITS;
                let [.., field] = self.command_high.to_le_bytes();
                let is_logical = command::is_logical(value);
                return self.send(Destination::of_field(field.into(), 0xff, is_logical));
            }
            Register::CommandHigh => self.command_high = u32::from(high) << 24,
            Register::Local(local) => self.set_entry(local, value, now),
            Register::InitialCount => {
                self.tick(now);
                self.timer.set_initial(value, now);
            }
            Register::Divide => {
                self.tick(now);
                self.timer.set_divide(value & DIVIDE_BITS, now);
            }
            Register::SelfInterrupt => {
                return self.obey(match low {
                    0..16 => Meaning::IllegalVector,
                    vector => Meaning::Myself(vector),
                });
            }
            Register::Id
            | Register::Version
            | Register::ArbitrationPriority
            | Register::ProcessorPriority
            | Register::RemoteRead
            | Register::InService(_)
            | Register::TriggerMode(_)
            | Register::Requested(_)
            | Register::CurrentCount => {}
        }
        let after = self.address();
        (after != before).then_some(Command::Publish(after))
    }

    /// The interrupt command register as an MSR.
    pub(super) fn command_msr(&self) -> u64 {
        u64::from(self.command_high) << 32 | u64::from(self.command)
    }

    pub(super) fn set_command_msr(&mut self, value: u64) -> Option<Command> {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.command = u32::from_le_bytes([a, b, c, d]);
        self.command_high = u32::from_le_bytes([e, f, g, h]);
        let is_logical = command::is_logical(self.command);
        self.send(Destination::of_field(self.command_high, u32::MAX, is_logical))
    }

    fn send(&mut self, addressed: Destination) -> Option<Command> {
        self.obey(command::meaning(self.command, addressed, self.id))
    }

    fn obey(&mut self, meaning: Meaning) -> Option<Command> {
        match meaning {
            Meaning::Nothing => {}
            Meaning::IllegalVector => self.fail(SEND_ILLEGAL_VECTOR),
            Meaning::Myself(vector) => self.accept(Interrupt { vector, trigger: Trigger::Edge }),
            Meaning::Send(message) => return Some(Command::Send(message)),
        }
        None
    }

    /// Switching off by software masks the whole local vector table, for as long as it is off.
    /// SDM, APIC, "Local APIC State After It Has Been Software Disabled".
    fn set_spurious(&mut self, value: u32, now: u64) {
        // What was due before the mask still comes.
        self.tick(now);
        self.spurious = value & SPURIOUS_BITS;
        if self.spurious & SOFTWARE_ENABLED == 0 {
            self.local.iter_mut().for_each(|entry| *entry |= MASKED);
        }
    }

    fn set_entry(&mut self, local: Local, value: u32, now: u64) {
        // A timer that was through while masked does not interrupt when the mask falls.
        self.tick(now);
        let kept_masked = if self.spurious & SOFTWARE_ENABLED == 0 { MASKED } else { 0 };
        *self.entry_mut(local) = value & local.bits() | kept_masked;
        if local == Local::Timer {
            self.timer.set_mode(timer::Mode::of_entry(value));
        }
    }

    /// Off and on again, or from one mode to another; `base` has been checked.
    pub(super) fn set_base(&mut self, base: u64) -> Option<Command> {
        let before = self.address();
        self.base = base;
        if self.mode() == Mode::Off {
            // What it was is lost. SDM, APIC, "Enabling or Disabling the Local APIC".
            let _published_below = self.init();
        }
        let after = self.address();
        (after != before).then_some(Command::Publish(after))
    }
}
