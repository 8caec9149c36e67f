//! A reader that remembers the last tables it came to, so that most walks are one load.
//!
//! Hardware does the same: its paging-structure caches know, for 2 MiB of addresses, the last table
//! and what the entries above it allow together (Intel SDM vol. 3, "Caching Translation Information").
//! What is remembered is a translation like any other and goes with the same flush ([`LastTables::forget`]):
//! a table page that leaves the tree is used for something else only when everybody in the guest has
//! left it and been flushed on the way back in.
//!
//! In between the tree may change above a remembered table. A right that was taken away there counts
//! when its shootdown is over, which is after the flush. A table that was taken out of the tree is empty. Whatever
//! is refused by way of a remembered table is asked of the whole tree again, so a right that was *given* counts at once,
//! and what a refusal says is never old. Leaves are never remembered here: each answer reads its leaf.

use actors::{Access, Gpa};

use super::view::{ADDRESS_BITS, Refused, Translation, View};

/// Tables remembered: 512 MiB of guest-physical addresses.
const TABLES: usize = 256;
/// Of no address.
const NO_BLOCK: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct LastTable {
    /// The 2 MiB it is for.
    block: u64,
    /// Its frame in the arena.
    table: u64,
    /// What all entries above it have in common.
    common: u64,
}

const NOTHING: LastTable = LastTable { block: NO_BLOCK, table: 0, common: 0 };

/// A reader of the tables for one vcpu.
pub struct LastTables {
    view: View,
    tables: Box<[LastTable; TABLES]>,
}

impl LastTables {
    /// It remembers nothing yet.
    #[must_use]
    pub fn new(view: View) -> Self {
        Self { view, tables: Box::new([NOTHING; TABLES]) }
    }

    /// The tables themselves.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Must be called whenever the vcpu is flushed.
    pub fn forget(&mut self) {
        self.tables.fill(NOTHING);
    }

    #[expect(clippy::cast_possible_truncation, reason = "masked to the array's size")]
    fn slot(&mut self, block: u64) -> &mut LastTable {
        &mut self.tables[block as usize & (TABLES - 1)]
    }

    /// As [`View::translate`], of what the tables said since the last [`LastTables::forget`] or say now.
    ///
    /// # Errors
    ///
    /// [`Refused`], with what hardware would report: always what the tables say now.
    #[inline]
    pub fn translate(&mut self, gpa: Gpa, access: Access) -> Result<Translation, Refused> {
        let block = gpa.0 >> 21;
        let LastTable { block: known, table, common } = *self.slot(block);
        if known == block
            && let Some(leaf) = self.view.leaf_in(table, common, gpa)
            && let Ok(Ok(translation)) = self.view.use_leaf(&leaf, gpa, access)
        {
            return Ok(translation);
        }
        self.translate_anew(gpa, access)
    }

    #[cold]
    fn translate_anew(&mut self, gpa: Gpa, access: Access) -> Result<Translation, Refused> {
        let block = gpa.0 >> 21;
        *self.slot(block) = NOTHING;
        if gpa.0 >> ADDRESS_BITS != 0 {
            return self.view.translate(gpa, access);
        }
        // As in `View::translate`, and as often at most.
        loop {
            let leaf = self.view.descend(gpa)?;
            let Ok(answer) = self.view.use_leaf(&leaf, gpa, access) else { continue };
            let found = LastTable { block, table: leaf.table.0, common: leaf.common_when_used() };
            if answer.is_ok() && leaf.level == 1 {
                *self.slot(block) = found;
            }
            return answer;
        }
    }
}
#[cfg(test)]
mod tests;
