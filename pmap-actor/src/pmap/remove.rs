//! Taking a range out.

use actors::GpaRange;

use super::effects::Harvest;
use super::superpage::Demotion;
use super::{Effects, Pmap};

impl Pmap {
    /// Removes what is mapped of `range` (`pmap_remove`) and harvests its bits. Empty subtrees are skipped; a superpage that lies wholly
    /// inside goes as one, of another only the part goes. One shootdown is enough for all of it. Wired or not: that is
    /// for the caller to refuse.
    pub fn remove<H: Harvest>(&mut self, range: GpaRange, harvest: &mut H) -> Effects {
        let mut ledger = self.ledger(harvest);
        self.demote_ends(range, Demotion::Remove, &mut ledger);
        self.take_out(range, &mut ledger);
        self.settle(ledger)
    }
}
