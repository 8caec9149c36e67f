//! A local APIC's model-specific registers, and which accesses fault.
//!
//! ```text
//!   0x1b           IA32_APIC_BASE: off, xAPIC or x2APIC, and where
//!   0x6e0          IA32_TSC_DEADLINE
//!   0x800..0x840   the registers, in x2APIC mode only
//! ```
//!
//! Source: SDM, APIC, "Extended XAPIC (x2APIC)": "x2APIC Register Address Space", "Reserved
//! Bit Checking", "x2APIC States".

use super::super::message::Command;
use super::super::register::Register;
use super::{BASE_BOOTSTRAP, BASE_ENABLED, BASE_X2APIC, GeneralProtection, LocalApic, Mode};

/// Whether there is a local APIC, in which mode, and where.
const APIC_BASE: u32 = 0x1b;
/// At which value of the time-stamp counter the timer interrupts.
const TSC_DEADLINE: u32 = 0x6e0;
/// Where the registers begin.
const REGISTERS: u32 = 0x800;
const REGISTERS_END: u32 = 0x900;

impl LocalApic {
    /// Whether `msr` belongs to the local APIC.
    #[must_use]
    pub fn owns_msr(msr: u32) -> bool {
        matches!(msr, APIC_BASE | TSC_DEADLINE | REGISTERS..REGISTERS_END)
    }

    fn register(&self, msr: u32) -> Result<Register, GeneralProtection> {
        let number = msr.checked_sub(REGISTERS).and_then(|number| u8::try_from(number).ok());
        number
            .filter(|_| self.mode() == Mode::X2Apic)
            .and_then(Register::as_msr)
            .ok_or(GeneralProtection { msr })
    }

    /// `RDMSR`.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`]: there is no such register in this mode, it is write-only, or it
    /// is not the local APIC's.
    pub fn read_msr(&self, msr: u32, now: u64) -> Result<u64, GeneralProtection> {
        match msr {
            APIC_BASE => return Ok(self.base),
            TSC_DEADLINE => return Ok(self.tsc_deadline(now)),
            _ => {}
        }
        match self.register(msr)? {
            Register::Command => Ok(self.command_msr()),
            register if register.is_readable_msr() => Ok(self.load(register, now).into()),
            _ => Err(GeneralProtection { msr }),
        }
    }

    /// `WRMSR`. What it causes must reach the others before the guest goes on.
    ///
    /// # Errors
    ///
    /// [`GeneralProtection`]: there is no such register in this mode, it is read-only, a
    /// reserved bit is set, there is no way from the present mode to that one, or it is not
    /// the local APIC's.
    pub fn write_msr(
        &mut self,
        msr: u32,
        value: u64,
        now: u64,
    ) -> Result<Option<Command>, GeneralProtection> {
        match msr {
            APIC_BASE => return self.write_base(value),
            TSC_DEADLINE => {
                self.set_tsc_deadline(value, now);
                return Ok(None);
            }
            _ => {}
        }
        let register = self.register(msr)?;
        let allowed = register.msr_bits().filter(|bits| value & !bits == 0);
        match (allowed, register) {
            (None, _) => Err(GeneralProtection { msr }),
            (Some(_), Register::Command) => Ok(self.set_command_msr(value)),
            (Some(_), _) => {
                // Without reserved bits nothing but the command is wider.
                let value = u32::try_from(value).map_err(|_| GeneralProtection { msr })?;
                Ok(self.store(register, value, now))
            }
        }
    }

    fn write_base(&mut self, value: u64) -> Result<Option<Command>, GeneralProtection> {
        let refused = GeneralProtection { msr: APIC_BASE };
        let page = ((1_u64 << self.address_bits) - 1) & !0xfff;
        if value & !(page | BASE_BOOTSTRAP | BASE_X2APIC | BASE_ENABLED) != 0 {
            return Err(refused);
        }
        let wanted = (value & BASE_ENABLED != 0, value & BASE_X2APIC != 0);
        match (self.mode(), wanted) {
            // x2APIC without being on, straight from off to x2APIC, and back from it.
            (_, (false, true)) | (Mode::Off, (true, true)) | (Mode::X2Apic, (true, false)) => {
                return Err(refused);
            }
            _ => {}
        }
        Ok(self.set_base(value))
    }
}
