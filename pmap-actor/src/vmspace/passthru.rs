//! Devices of the host that reach the guest's memory without a vcpu, a fault or a table of ours.
//!
//! As in bhyve (`vm_assign_pptdev`): the first one has all of the guest's memory wired and makes the [`IommuDomain`], the
//! last one that goes ends it and unwires. In between the map of memory stays as it is, because the IOMMU has a copy
//! of it that no shootdown reaches. A device's own memory (`device.rs`) may come and go, and is not in the domain.
//!
//! Impossible together, and refused in either order: memory that leaves (a device does not fault), and counted stores (a
//! device sets no modified bit of ours). Superpages may come and go: frames do not move, and what an IOMMU has mapped the
//! host pins.

use actors::contract::device::{DmaMapping, NoPassthru, PassthruDevice};
use actors::contract::space::SpaceError;
use actors::{GpaRange, Protection};

use super::{Done, Told, VmSpace};
use crate::content::StoreLimits;
use crate::iommu::{IommuDomain, Left};
use crate::map::Backing;
use crate::mirror::Mirror;
use crate::pmap::Harvest;

/// The flags of the command that make memory leave.
fn flags(limits: StoreLimits) -> &'static str {
    match (limits.slots, limits.resident_bytes) {
        (0, _) => "--resident",
        (_, u64::MAX) => "--swap",
        _ => "--resident and --swap",
    }
}

impl<M: Mirror> VmSpace<M> {
    /// A device reaches all of the guest's memory from now on. `beat` is called now and then: the first one takes
    /// as long as wiring it. Returns what it reaches.
    ///
    /// # Errors
    ///
    /// [`NoPassthru`]; what was wired for it is unwired again.
    pub fn assign_passthru(
        &mut self,
        device: PassthruDevice,
        beat: impl FnMut(),
    ) -> Result<Vec<DmaMapping>, SpaceError> {
        if let Some(domain) = &mut self.domain {
            domain.add(device)?;
            return Ok(domain.mappings().to_vec());
        }
        if let Some(limits) = self.settings.store {
            return Err(NoPassthru::Leaves { flags: flags(limits) }.into());
        }
        if self.content.epochs.is_watched() {
            return Err(NoPassthru::Unseen.into());
        }
        let wired = self.wire_all(beat)?;
        let mappings = self.reached();
        self.domain = Some(IommuDomain::of(device, mappings.clone(), wired));
        Ok(mappings)
    }

    /// A device reaches nothing any more: its IOMMU has been told. After the last one, what was wired for them is so no
    /// longer, and all that they could store to counts as stored to.
    ///
    /// # Errors
    ///
    /// It is not assigned, or the host's refusal.
    pub fn unassign_passthru(&mut self, device: PassthruDevice) -> Result<(), SpaceError> {
        let domain = self.domain.take().ok_or(NoPassthru::NotAssigned(device))?;
        match domain.without(device) {
            Left::Domain(domain, done) => {
                self.domain = Some(domain);
                Ok(done?)
            }
            Left::Nobody { wired, mappings } => {
                // What the devices stored to is all that they could have stored to.
                let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
                for mapping in mappings {
                    if mapping.protection.contains(Protection::WRITE) {
                        told.modified(mapping.range);
                    }
                }
                wired.into_iter().try_for_each(|range| self.unwire(range))
            }
        }
    }

    /// Who reaches the guest's memory by himself, and what; there is no domain without a device.
    #[must_use]
    pub fn domain(&self) -> Option<&IommuDomain> {
        self.domain.as_ref()
    }

    /// Wires all memory of the map; returns what of it was not wired before. Or wires nothing.
    fn wire_all(&mut self, mut beat: impl FnMut()) -> Result<Vec<GpaRange>, SpaceError> {
        let loose: Vec<_> = self
            .memory
            .layout()
            .ranges()
            .flat_map(|range| self.map.overlapping(range))
            .filter(|entry| entry.backing == Backing::Default && !entry.wired)
            .map(|entry| entry.range)
            .collect();
        for (index, range) in loose.iter().enumerate() {
            let why = match self.wire(*range, &mut beat) {
                Ok(Done::Now) => continue,
                Ok(Done::Waits) => unreachable!("nothing was stored: there is no store"),
                Err(error) => error.to_string(),
            };
            for done in &loose[..index] {
                self.unwire(*done)?;
            }
            let bytes = self.memory.layout().total();
            return Err(NoPassthru::DoesNotFit { bytes, why }.into());
        }
        Ok(loose)
    }

    /// All memory that the guest reaches, in as few pieces as there can be.
    fn reached(&self) -> Vec<DmaMapping> {
        let mut mappings: Vec<DmaMapping> = Vec::new();
        for range in self.memory.layout().ranges() {
            for entry in self.map.overlapping(range) {
                let protection = entry.protection - Protection::EXECUTE;
                if entry.backing != Backing::Default || !protection.contains(Protection::READ) {
                    continue;
                }
                let range = entry.range;
                let frame = self.memory.frame_of(range.start());
                match mappings.last_mut() {
                    Some(last)
                        if last.range.end() == range.start() && last.protection == protection =>
                    {
                        last.range =
                            GpaRange::new(last.range.start(), last.range.len() + range.len())
                                .expect("two neighbours, of whole pages");
                    }
                    _ => mappings.push(DmaMapping { range, frame, protection }),
                }
            }
        }
        mappings
    }

    /// `Ok` when no device would go on with what `range` was.
    pub(super) fn may_change(&self, range: GpaRange) -> Result<(), SpaceError> {
        match self.domain {
            None => Ok(()),
            Some(_) => Err(NoPassthru::Fixed(range).into()),
        }
    }

    /// `Ok` when every store is seen.
    pub(super) fn must_see_stores(&self) -> Result<(), SpaceError> {
        match self.domain {
            None => Ok(()),
            Some(_) => Err(NoPassthru::Unseen.into()),
        }
    }
}
