//! What the passthru devices of one guest reach, and that somebody reaches it.
//!
//! bhyve's rule: a guest has an IOMMU domain while, and only while, it has a passthru device (`vm_assign_pptdev`,
//! `vm_unassign_pptdev`). Here that is a matter of types: an [`IommuDomain`] has its first device in a field of its own, and who
//! takes the last one away is left with no domain.
//!
//! There is no IOMMU in here. The domain is what one is to be told, for whoever drives it (VFIO's
//! `VFIO_IOMMU_MAP_DMA` takes such an address, a length, and where the frames are in this process).

use actors::GpaRange;
use actors::contract::device::{DmaMapping, NoPassthru, PassthruDevice};

/// One guest's memory as its passthru devices reach it.
#[derive(Debug)]
pub struct IommuDomain {
    first: PassthruDevice,
    others: Vec<PassthruDevice>,
    mappings: Vec<DmaMapping>,
    wired: Vec<GpaRange>,
}

/// What is left of a domain that lost a device.
#[derive(Debug)]
pub enum Left {
    /// Others are still in it, or it was none of it.
    Domain(IommuDomain, Result<(), NoPassthru>),
    /// Nobody is.
    Nobody {
        /// What was wired for the domain's sake.
        wired: Vec<GpaRange>,
        /// What its devices reached, and may have stored to.
        mappings: Vec<DmaMapping>,
    },
}

impl IommuDomain {
    /// A domain for its first device. `wired`: what was wired for it and was not before.
    #[must_use]
    pub fn of(first: PassthruDevice, mappings: Vec<DmaMapping>, wired: Vec<GpaRange>) -> Self {
        Self { first, others: Vec::new(), mappings, wired }
    }

    /// Who is in it.
    pub fn devices(&self) -> impl Iterator<Item = PassthruDevice> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }

    /// What they reach, upwards.
    #[must_use]
    pub fn mappings(&self) -> &[DmaMapping] {
        &self.mappings
    }

    /// One more device reaches the same.
    ///
    /// # Errors
    ///
    /// It does already.
    pub fn add(&mut self, device: PassthruDevice) -> Result<(), NoPassthru> {
        if self.devices().any(|other| other == device) {
            return Err(NoPassthru::Assigned(device));
        }
        self.others.push(device);
        Ok(())
    }

    /// One device less.
    #[must_use]
    pub fn without(mut self, device: PassthruDevice) -> Left {
        if self.first == device {
            let Some(next) = self.others.pop() else {
                return Left::Nobody { wired: self.wired, mappings: self.mappings };
            };
            self.first = next;
            return Left::Domain(self, Ok(()));
        }
        let found = self.others.iter().position(|other| *other == device);
        let found = found.map(|at| self.others.swap_remove(at));
        let done = found.map(|_| ()).ok_or(NoPassthru::NotAssigned(device));
        Left::Domain(self, done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(bus: u8) -> PassthruDevice {
        PassthruDevice { segment: 0, bus, function: 0 }
    }

    #[test]
    fn a_domain_ends_with_its_last_device_in_whatever_order_they_leave() {
        let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
        for order in orders {
            let mut domain = IommuDomain::of(device(1), Vec::new(), Vec::new());
            domain.add(device(2)).unwrap();
            domain.add(device(3)).unwrap();
            assert_eq!(domain.add(device(3)), Err(NoPassthru::Assigned(device(3))));
            for leaver in &order[..2] {
                let Left::Domain(left, Ok(())) = domain.without(device(*leaver)) else {
                    panic!("{order:?}: nobody is left after {leaver}");
                };
                assert!(left.devices().all(|other| other != device(*leaver)));
                domain = left;
            }
            assert!(matches!(domain.without(device(order[2])), Left::Nobody { .. }));
        }
    }

    #[test]
    fn who_is_not_in_a_domain_leaves_it_as_it_was() {
        let domain = IommuDomain::of(device(1), Vec::new(), Vec::new());
        let Left::Domain(domain, refused) = domain.without(device(2)) else {
            panic!("the domain ended with a device in it");
        };
        assert_eq!(refused, Err(NoPassthru::NotAssigned(device(2))));
        assert_eq!(domain.devices().collect::<Vec<_>>(), [device(1)]);
    }
}
