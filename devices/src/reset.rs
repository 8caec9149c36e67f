//! The reset register of PC chipsets, one port.
//!
//! Bit 1 chooses how much is reset, bit 2 does it. ACPI's reset register leads here (the
//! FADT says "write 0x06"), and so does Linux's `reboot=pci`, which sets bit 1 first.
//! Source: Intel ICH data sheets, "RST_CNT: Reset Control Register".

use actors::contract::guest::GuestEnd;
use actors::device::{Device, Effect};

const SYSTEM_RESET: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;
const FULL_RESET: u8 = 1 << 3;

/// The register.
#[derive(Debug, Default)]
pub struct ResetRegister {
    /// Which kind of reset was chosen.
    kind: u8,
}

impl Device for ResetRegister {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.kind);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        let Some(&value) = data.first() else {
            return Effect::None;
        };
        self.kind = value & (SYSTEM_RESET | FULL_RESET);
        if value & RESET_CPU != 0 { Effect::Ends(GuestEnd::Reset) } else { Effect::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choosing_a_reset_is_not_resetting() {
        let mut register = ResetRegister::default();
        assert_eq!(register.write(0, &[0x02]), Effect::None);
        let mut data = [0];
        register.read(0, &mut data);
        assert_eq!(data, [0x02]);
        assert_eq!(register.write(0, &[0x06]), Effect::Ends(GuestEnd::Reset));
    }
}
