//! Who may use which port (Intel SDM vol. 1, "I/O Protection").

use crate::cpu::Cpu;
use crate::event::Raised;
use crate::width::{B1, B2};

/// Where the task state says where its bitmap starts.
const BITMAP_BASE: u64 = 0x66;

impl Cpu {
    /// Checks that the running code may use `bytes` ports from `port` on: by its privilege, or else by the bitmap in
    /// the task state.
    ///
    /// # Errors
    ///
    /// #GP(0), or what reading the task state raises.
    pub fn may_use_port(&mut self, port: u16, bytes: u8) -> Result<(), Raised> {
        if !self.is_protected() || !self.is_virtual_8086() && self.cpl <= self.iopl() {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        // Only 32-bit and 64-bit task states have a bitmap.
        if !self.tr.is_present() || self.tr.kind() & 0x1d != 9 || BITMAP_BASE + 1 > limit {
            return Err(self.protect());
        }
        let base = self.load_system::<B2>(self.tr.base.wrapping_add(BITMAP_BASE))?;
        let at = base + u64::from(port / 8);
        // Two bytes are always read: the bits may lie in both.
        if at + 1 > limit {
            return Err(self.protect());
        }
        let low = self.load_system::<B1>(self.tr.base.wrapping_add(at))?;
        let high = self.load_system::<B1>(self.tr.base.wrapping_add(at + 1))?;
        let mask = (1u64 << bytes.min(4)) - 1;
        if (low | high << 8) >> (port % 8) & mask != 0 {
            return Err(self.protect());
        }
        Ok(())
    }
}
