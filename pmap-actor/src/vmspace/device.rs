//! Memory of a device in the map: shown at once, there until it is unmapped, and in nobody's books.
//!
//! FreeBSD's object of type `OBJT_SG`, as bhyve maps the registers of a passthru device (`vmm_mmio_alloc`): uncacheable,
//! *unmanaged*, so nothing asks for its accessed and modified bits, ages, harvests or promotes it, and without contents that
//! could be held, paged out or counted against a limit.
//!
//! Beyond the original: all of it is entered when it is mapped, with all its rights, and not page by page with the first
//! touch. It costs no memory, and so there is never a fault to serve: on KVM nobody could report one, because
//! userfaultfd watches memory only. Therefore its translations cannot be forgotten or change their rights, either; who
//! wants that unmaps it.
//!
//! It lies at guest-physical addresses that have no memory of the map, inside the layout, where the guest view
//! has a place for it and KVM a memory slot. (bhyve's lies in the hole below 4 GiB.) The memory type is in our tables;
//! KVM takes its own from the host's mapping of the device.

use actors::contract::device::ScatterList;
use actors::contract::space::SpaceError;
use actors::{Access, GpaRange, Protection};

use super::{Removed, Told, VmSpace, host};
use crate::ept::attribute::Attribute;
use crate::map::Backing;
use crate::mirror::Mirror;
use crate::pmap::Wanted;

impl<M: Mirror> VmSpace<M> {
    /// Shows `memory` in `range` (`vm_map_pptdev_mmio`).
    ///
    /// # Errors
    ///
    /// Outside memory, occupied, to be executed or not to be read; of another length; or the host's refusal. Nothing has
    /// changed then.
    pub fn map_device(
        &mut self,
        range: GpaRange,
        memory: &ScatterList,
        protection: Protection,
    ) -> Result<(), SpaceError> {
        let bad = |why: String| SpaceError::BadDevice { range, why };
        // Who keeps decoded instructions could not know that the device changed them.
        if protection.contains(Protection::EXECUTE) || !protection.contains(Protection::READ) {
            return Err(bad(format!(
                "it can be read, or read and written, and not {protection:?}"
            )));
        }
        self.map.insert(range, Backing::Sg, protection)?;
        let shown = self
            .memory
            .can_show(range, memory)
            .map_err(|error| bad(error.to_string()))
            .and_then(|()| self.admit(range))
            .and_then(|()| {
                let shown = self.mirror.map_device(range, memory, protection);
                shown.map_err(|error| bad(error.to_string()))
            });
        if shown.is_err() {
            self.map.remove(range)?;
            return shown;
        }
        let writable = protection.contains(Protection::WRITE);
        let wanted = Wanted {
            protection,
            attribute: Attribute::DEVICE,
            touched: Some(if writable { Access::Write } else { Access::Read }),
            dirty: writable,
            wired: false,
        };
        let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
        let first = self.memory.frame_of(range.start());
        let effects = self.guest.enter_range(range, first, wanted, &mut told);
        let removed = self.follow(effects)?;
        self.left_over.join(removed);
        Ok(())
    }

    /// Takes device memory, which the map has no longer, out of the guest's reach. The host keeps showing it until the
    /// shootdown is over, where a processor may still use it.
    pub(super) fn remove_devices(&mut self, ranges: Vec<GpaRange>) -> Result<Removed, SpaceError> {
        let mut removed = Removed::default();
        for &range in &ranges {
            let mut told = Told { content: &mut self.content, memory: Some(&self.memory) };
            let effects = self.guest.remove(range, &mut told);
            self.mirror
                .unmap_device(range)
                .map_err(|error| host("unmap a device's memory", &error))?;
            removed.translations += effects.translations;
            removed.tables.extend(effects.emptied);
        }
        removed.devices = ranges;
        Ok(removed)
    }

    /// `Ok` when nothing of `range` is a device's.
    pub(super) fn must_be_memory(
        &self,
        range: GpaRange,
        what: &'static str,
    ) -> Result<(), SpaceError> {
        match self.map.devices(range).next() {
            None => Ok(()),
            Some(range) => Err(SpaceError::Device { range, what }),
        }
    }
}
