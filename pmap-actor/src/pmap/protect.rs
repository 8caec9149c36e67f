//! Taking rights away, and pinning.

use actors::{GpaRange, Protection};

use super::effects::Harvest;
use super::superpage::Demotion;
use super::{Effects, Pmap};

impl Pmap {
    /// Takes the rights that are not in `protection` away (`pmap_protect`); without the right to read the range is removed. Nothing is
    /// ever granted: that is what the next fault does, by [`Pmap::enter`]. A page that loses the right to write loses modified with it,
    /// which is harvested.
    pub fn protect<H: Harvest>(
        &mut self,
        range: GpaRange,
        protection: Protection,
        harvest: &mut H,
    ) -> Effects {
        if !protection.contains(Protection::READ) {
            return self.remove(range, harvest);
        }
        let masks = self.masks;
        let (mut taken, mut forbidden) = (0, 0);
        if !protection.contains(Protection::WRITE) {
            taken |= masks.writable | masks.modified;
        }
        if !protection.contains(Protection::EXECUTE) {
            taken |= masks.executable;
            forbidden |= masks.no_execute;
        }
        if taken | forbidden == 0 {
            return Effects::default();
        }
        let mut ledger = self.ledger(harvest);
        self.demote_ends(range, Demotion::Protect, &mut ledger);
        self.update(range, &mut ledger, |leaf| leaf.entry & !taken | forbidden);
        self.settle(ledger)
    }

    /// Pins what is mapped of `range`: a software bit, no shootdown. [`Effects::changed_pages`] says how many pages were not
    /// wired before; those that are not mapped are not counted, and not wired.
    pub fn wire<H: Harvest>(&mut self, range: GpaRange, harvest: &mut H) -> Effects {
        let wired = self.masks.wired;
        let mut ledger = self.ledger(harvest);
        self.demote_ends(range, Demotion::Wire, &mut ledger);
        self.update(range, &mut ledger, |leaf| leaf.entry | wired);
        self.settle(ledger)
    }

    /// Undoes [`Pmap::wire`] (`pmap_unwire`): a software bit, no shootdown. [`Effects::changed_pages`] says how many pages were wired;
    /// FreeBSD panics at one that was not, here the caller compares.
    pub fn unwire<H: Harvest>(&mut self, range: GpaRange, harvest: &mut H) -> Effects {
        let wired = self.masks.wired;
        let mut ledger = self.ledger(harvest);
        self.demote_ends(range, Demotion::Wire, &mut ledger);
        self.update(range, &mut ledger, |leaf| leaf.entry & !wired);
        self.settle(ledger)
    }
}
