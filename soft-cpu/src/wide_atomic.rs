//! Sixteen bytes in one locked step: `cmpxchg16b`.

use crate::access::Opened;
use crate::cpu::{Cpu, slot};
use crate::event::Raised;
use crate::guest_memory::halves;
use crate::width::B8;

impl Cpu {
    /// Puts `new` at `address`, a multiple of 16, if `expected` is there; returns what was there.
    pub(crate) fn compare_exchange_wide(
        &mut self,
        address: u64,
        segment: u8,
        expected: u128,
        new: u128,
    ) -> Result<u128, Raised> {
        match self.open::<B8>(address, segment)? {
            Opened::Memory(host) => Ok(host.compare_exchange_wide(expected, new)),
            Opened::Elsewhere(address) => self.compare_exchange_wide_slowly(address, expected, new),
        }
    }

    #[cold]
    fn compare_exchange_wide_slowly(
        &mut self,
        address: u64,
        expected: u128,
        new: u128,
    ) -> Result<u128, Raised> {
        if let Some((host, frame)) = self.memory_for_write(address)? {
            let old = host.compare_exchange_wide(expected, new);
            self.note_store(frame);
            return Ok(old);
        }
        // A device: it sees two reads and two writes.
        let low = self.load_at::<B8>(address, slot::ZERO)?;
        let high = self.load_at::<B8>(address.wrapping_add(8), slot::ZERO)?;
        let old = u128::from(high) << 64 | u128::from(low);
        let (high, low) = halves(if old == expected { new } else { old });
        self.store_at::<B8>(address, slot::ZERO, low)?;
        self.store_at::<B8>(address.wrapping_add(8), slot::ZERO, high)?;
        Ok(old)
    }
}
