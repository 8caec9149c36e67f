//! What a device is: it is read, it is written, it pulls an interrupt line.
//!
//! A device knows offsets and bytes. It does not know its address, its vcpus or its
//! machine: the [`Bus`] knows who lives where, and what a write *means* for the machine
//! travels back as an [`Effect`].

use std::sync::Arc;

use parking_lot::Mutex;

use crate::contract::guest::GuestEnd;

/// What an access means beyond the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a guest that asked to end would go on"]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest asked for its own end.
    Ends(GuestEnd),
}

/// Something that answers at a range of ports or guest-physical addresses.
pub trait Device: Send {
    /// Fills `data` with what the guest reads at `offset` from the device's base.
    /// `data` has 1, 2, 4 or 8 bytes; an access never crosses the device's end.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest wrote at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;
}

/// Pulling an interrupt line without knowing to whom it leads.
pub trait IrqLine: Send + Sync {
    /// One edge.
    fn pulse(&self);
}

/// A device more than one party holds: the bus, and whoever feeds it from outside.
pub type Shared<D> = Arc<Mutex<D>>;

struct Resident {
    base: u64,
    len: u64,
    device: Shared<dyn Device>,
}

/// Who lives at this address. Built once, then only read: no lock but the device's own.
#[derive(Default)]
pub struct Bus {
    residents: Vec<Resident>,
}

/// Two devices want the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len:#x} bytes at {base:#x} are empty, wrap around, or belong to another device already")]
pub struct Taken {
    /// Where the newcomer wanted to live.
    pub base: u64,
    /// How much it wanted.
    pub len: u64,
}

impl Bus {
    /// Gives `device` the addresses `base .. base + len`.
    ///
    /// # Errors
    ///
    /// [`Taken`] when some of them belong to somebody else.
    pub fn attach(&mut self, base: u64, len: u64, device: Shared<dyn Device>) -> Result<(), Taken> {
        let taken = Taken { base, len };
        let end = base.checked_add(len).filter(|end| *end > base).ok_or(taken)?;
        if self.residents.iter().any(|other| base < other.base + other.len && other.base < end) {
            return Err(taken);
        }
        let place = self.residents.partition_point(|other| other.base < base);
        self.residents.insert(place, Resident { base, len, device });
        Ok(())
    }

    fn find(&self, at: u64, len: usize) -> Option<(&Resident, u64)> {
        let next = self.residents.partition_point(|resident| resident.base <= at);
        let resident = &self.residents[next.checked_sub(1)?];
        let offset = at - resident.base;
        (offset.checked_add(len as u64)? <= resident.len).then_some((resident, offset))
    }

    /// Whether somebody lives at `at`.
    #[must_use]
    pub fn is_claimed(&self, at: u64) -> bool {
        self.find(at, 1).is_some()
    }

    /// Reads `data.len()` bytes at `at`. Where nobody lives the bus floats: all ones.
    /// Returns whether somebody answered.
    pub fn read(&self, at: u64, data: &mut [u8]) -> bool {
        match self.find(at, data.len()) {
            Some((resident, offset)) => {
                resident.device.lock().read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes `data` at `at`; `None` when nobody lives there.
    pub fn write(&self, at: u64, data: &[u8]) -> Option<Effect> {
        let (resident, offset) = self.find(at, data.len())?;
        Some(resident.device.lock().write(offset, data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl Device for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + u8::try_from(offset).unwrap());
        }
        fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
            self.0 = data[0];
            Effect::None
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.attach(0x10, 4, Arc::new(Mutex::new(Echo(1)))).unwrap();
        bus
    }

    #[test]
    fn an_access_reaches_the_device_at_its_offset() {
        let mut data = [0];
        assert!(bus().read(0x12, &mut data));
        assert_eq!(data, [3]);
    }

    #[test]
    fn where_nobody_lives_the_bus_floats_and_writes_vanish() {
        let mut data = [0; 2];
        for at in [0xe, 0xf, 0x13, 0x14, u64::MAX] {
            assert!(!bus().read(at, &mut data), "{at:#x}");
            assert_eq!(data, [0xff; 2]);
            assert_eq!(bus().write(at, &data), None);
        }
    }

    #[test]
    fn two_devices_cannot_share_an_address() {
        let mut bus = bus();
        for (base, len) in [(0x10, 4), (0xf, 2), (0x13, 1), (0, 0x100), (0x20, 0), (u64::MAX, 2)] {
            assert_eq!(
                bus.attach(base, len, Arc::new(Mutex::new(Echo(0)))),
                Err(Taken { base, len })
            );
        }
        bus.attach(0x14, 1, Arc::new(Mutex::new(Echo(0)))).unwrap();
    }
}
