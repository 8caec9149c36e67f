//! The reader: what hardware does with the tables, done by whoever has no hardware for it.
//!
//! A software processor takes [`View::translate`] as its second-stage walker. The walk looks
//! at nothing but what hardware would look at: bits 0, 1 and 2 of each entry, the superpage
//! bit, the frame, and with hardware A/D bits 8 and 9. Which of those the pmap uses as valid,
//! accessed or modified (`masks.rs`) is not this file's business, so both layouts are exercised
//! as a processor would.
//!
//! # Reading while the writer writes
//!
//! Any number of readers walk while the one writer ([`Tables`](super::tables::Tables)) changes
//! entries. Each entry is one aligned 64-bit atomic: a reader sees an old entry or a new one,
//! never half of each. It loads with Acquire (T2), which pairs with the writer's T1, so a
//! table is seen as it was when an entry first led to it.
//!
//! With hardware A/D readers write, too, and neither side may undo the other:
//!
//! ```text
//!   reader                                    writer
//!   T2  entry = load                          T3  compare_exchange(before, 0) remove
//!   T4  compare_exchange(entry, entry | D)    T3  compare_exchange(before, …) update
//!       changed? walk again                       changed? once more
//! ```
//!
//! All of these are read-modify-writes of the same word, which has one order of changes. So a
//! reader's T4 comes before the writer's T3, and what the writer took out or changed has the
//! bit; or it comes after, fails, and the reader walks again and finds the entry gone. A bit
//! is never lost, and an entry that was removed never comes back. That one order is all
//! that is needed: T3 and T4 are Relaxed. (512 entries that become one, or one that becomes 512, are not one word: `tables/block.rs` says
//! what holds them together.) What the *guest* did through a translation is
//! ordered by the shootdown (its L1 and R3), not here.
//!
//! # Who may call
//!
//! Only a vcpu in the guest can rely on the answer, and only until it leaves: a table page that
//! was taken out of the tree is reused when the shootdown is over, and the shootdown waits
//! only for those in the guest. For anybody else the answer is a guess about the past. The same
//! rule lets a vcpu remember table pages until its next flush ([`LastTables`](super::last_tables)).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actors::{Access, Gpa, PageSize};

use super::arena::{Arena, TableFrame};
use super::entry::Leaf;
use super::masks::{FRAME_MASK, Masks, PmapFlags, PmapType};

/// Bits of guest-physical address that four levels translate.
pub const ADDRESS_BITS: u32 = 48;

/// Hardware's permissions, in every entry (Intel SDM vol. 3, "EPT translation mechanism").
const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Hardware's accessed bit, in every entry, and dirty bit, in a leaf (Intel SDM vol. 3,
/// "Accessed and dirty flags for EPT").
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

/// A reader of the tables: walks while the writer writes. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(super) arena: Arc<Arena>,
    pub(super) masks: Masks,
    pub(super) flags: PmapFlags,
}

/// Where a guest-physical address leads, and what may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Offset of the leaf's first byte in the guest's memory object.
    pub frame: u64,
    /// Bytes the leaf covers: 4096 or 2 MiB. `frame` is a multiple of it.
    pub bytes: u64,
    /// May be read.
    pub readable: bool,
    /// May be written *and* the leaf is dirty already: a translation with this right may be
    /// cached, and stores through it need not come here again.
    pub writable: bool,
    /// May be executed.
    pub executable: bool,
}

/// Why hardware would leave the guest instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// EPT violation: bits 5:3 of its exit qualification, the rights that all entries on the
    /// way have in common. None when there is no translation at all.
    #[error(
        "an EPT violation (readable: {readable}, writable: {writable}, executable: {executable})"
    )]
    Violation {
        /// May be read.
        readable: bool,
        /// May be written.
        writable: bool,
        /// May be executed.
        executable: bool,
    },
    /// EPT misconfiguration: an entry that no pmap may make.
    #[error("an EPT misconfiguration: entry {entry:#x} at level {level}")]
    Misconfigured {
        /// Of the table it is in: 4 is the root.
        level: u32,
        /// As it was found.
        entry: u64,
    },
}

impl Refused {
    fn violation(rights: u64) -> Self {
        Self::Violation {
            readable: rights & READ != 0,
            writable: rights & WRITE != 0,
            executable: rights & EXECUTE != 0,
        }
    }
}

/// An entry changed under the reader.
pub(super) struct Changed;

/// Where a descent ended.
pub(super) struct Landing<'a> {
    place: &'a AtomicU64,
    entry: u64,
    pub(super) level: u32,
    /// The bits that all entries on the way to its table have.
    pub(super) common: u64,
    /// The table it is in.
    pub(super) table: TableFrame,
}

impl Landing<'_> {
    /// `common` once the leaf has been used: who uses it marks the way to it.
    pub(super) fn common_when_used(&self) -> u64 {
        self.common | ACCESSED
    }
}

impl View {
    /// The leaf that translates `gpa`, if there is one: as the pmap reads it, valid bit and
    /// all, and without a trace.
    #[must_use]
    pub fn leaf(&self, gpa: Gpa) -> Option<Leaf> {
        walk(&self.arena, &self.masks, gpa, |_| {})
    }

    /// Whether the walker sets accessed and dirty bits. It then also has to treat its accesses
    /// to the guest's own page tables as stores (Intel SDM vol. 3, "Accessed and dirty flags
    /// for EPT").
    #[must_use]
    pub fn has_hardware_ad(&self) -> bool {
        !self.masks.emulated
    }

    /// Where `gpa` leads, for an access of this kind: a walk of at most four loads. With
    /// hardware A/D it leaves accessed bits on the way and, for a store, a dirty bit, each with
    /// one compare-and-exchange and only where it is not set yet. An access that is refused
    /// leaves no trace.
    ///
    /// # Errors
    ///
    /// [`Refused`], with what hardware would report.
    pub fn translate(&self, gpa: Gpa, access: Access) -> Result<Translation, Refused> {
        if gpa.0 >> ADDRESS_BITS != 0 {
            return Err(Refused::violation(0));
        }
        // A round fails only when somebody else's change came between: of the writer, which
        // has finitely many to make, or of a reader, which sets each bit once.
        loop {
            let walk = match self.masks.kind {
                PmapType::PtEpt => self.walk_as_hardware(gpa, access),
                PmapType::PtX86 => self.walk_as_x86(gpa, access),
            };
            if let Ok(answer) = walk {
                return answer;
            }
        }
    }

    fn walk_as_hardware(
        &self,
        gpa: Gpa,
        access: Access,
    ) -> Result<Result<Translation, Refused>, Changed> {
        match self.descend(gpa) {
            Ok(leaf) => self.use_leaf(&leaf, gpa, access),
            Err(refused) => Ok(Err(refused)),
        }
    }

    /// Goes down to the leaf, and leaves no trace.
    pub(super) fn descend(&self, gpa: Gpa) -> Result<Landing<'_>, Refused> {
        let mut table = TableFrame::ROOT;
        let mut common = !0;
        let mut level = 4;
        loop {
            let place = self.arena.place(&table, gpa, level);
            let entry = place.load(Ordering::Acquire); // T2: pairs with T1.
            if Masks::is_misconfigured(entry, level, self.flags) {
                return Err(Refused::Misconfigured { level, entry });
            }
            if entry & (READ | WRITE | EXECUTE) == 0 {
                return Err(Refused::violation(0));
            }
            if Masks::is_leaf(entry, level) {
                return Ok(Landing { place, entry, level, common, table });
            }
            common &= entry;
            table = TableFrame(entry & FRAME_MASK);
            level -= 1;
        }
    }

    /// The leaf for `gpa` in a last table that was found before, if it has one that hardware would take. `common` is
    /// what [`Landing::common`] was then.
    #[inline]
    pub(super) fn leaf_in(&self, table: u64, common: u64, gpa: Gpa) -> Option<Landing<'_>> {
        let table = TableFrame(table);
        let place = self.arena.place(&table, gpa, 1);
        let entry = place.load(Ordering::Acquire); // T2: pairs with T1.
        let is_good =
            entry & (READ | WRITE | EXECUTE) != 0 && !Masks::is_misconfigured(entry, 1, self.flags);
        is_good.then_some(Landing { place, entry, level: 1, common, table })
    }

    /// Checks rights, and sets accessed and dirty bits as far as the tables are for it.
    #[inline]
    pub(super) fn use_leaf(
        &self,
        leaf: &Landing<'_>,
        gpa: Gpa,
        access: Access,
    ) -> Result<Result<Translation, Refused>, Changed> {
        let Landing { place, entry, level, common, .. } = *leaf;
        let rights = common & entry & (READ | WRITE | EXECUTE);
        let needed = u64::from(access.needs().bits());
        if rights & needed == 0 {
            return Ok(Err(Refused::violation(rights)));
        }
        let mut writable = rights & WRITE != 0;
        if self.has_hardware_ad() {
            if common & ACCESSED == 0 {
                self.mark_tables(gpa, level)?;
            }
            let used = if access == Access::Write { ACCESSED | DIRTY } else { ACCESSED };
            mark(place, entry, used)?;
            writable &= (entry | used) & DIRTY != 0;
        }
        let size = if level == 1 { PageSize::Size4KiB } else { PageSize::Size2MiB };
        Ok(Ok(Translation {
            frame: entry & FRAME_MASK & !(size.bytes() - 1),
            bytes: size.bytes(),
            readable: rights & READ != 0,
            writable,
            executable: rights & EXECUTE != 0,
        }))
    }

    /// Sets accessed in the entries that lead to the table of `leaf_level`.
    #[cold]
    fn mark_tables(&self, gpa: Gpa, leaf_level: u32) -> Result<(), Changed> {
        let mut table = TableFrame::ROOT;
        for level in (leaf_level + 1..=4).rev() {
            let place = self.arena.place(&table, gpa, level);
            let entry = place.load(Ordering::Acquire); // T2: pairs with T1.
            if entry & (READ | WRITE | EXECUTE) == 0 || Masks::is_leaf(entry, level) {
                return Err(Changed);
            }
            mark(place, entry, ACCESSED)?;
            table = TableFrame(entry & FRAME_MASK);
        }
        Ok(())
    }
}

// The rights of an access are hardware's bits, in hardware's order.
const _: () = assert!(Access::Read.needs().bits() as u64 == READ);
const _: () = assert!(Access::Write.needs().bits() as u64 == WRITE);
const _: () = assert!(Access::Execute.needs().bits() as u64 == EXECUTE);

/// Sets `bits` in an entry that was found as `entry`.
fn mark(place: &AtomicU64, entry: u64, bits: u64) -> Result<(), Changed> {
    if entry & bits == bits {
        return Ok(());
    }
    let marked = entry | bits;
    match place.compare_exchange(entry, marked, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Ok(()), // T4
        Err(_) => Err(Changed),
    }
}

/// Walks as the pmap reads its own tables, by its own valid bit, as far as they lead; calls
/// `see` with each entry met.
pub(super) fn walk(
    arena: &Arena,
    masks: &Masks,
    gpa: Gpa,
    mut see: impl FnMut(u64),
) -> Option<Leaf> {
    if gpa.0 >> ADDRESS_BITS != 0 {
        return None;
    }
    let mut table = TableFrame::ROOT;
    for level in (1..=4).rev() {
        let entry = arena.place(&table, gpa, level).load(Ordering::Acquire); // T2: pairs with T1.
        if entry & masks.valid == 0 {
            return None;
        }
        see(entry);
        if Masks::is_leaf(entry, level) {
            let size = if level == 1 { PageSize::Size4KiB } else { PageSize::Size2MiB };
            return Some(Leaf { entry, size });
        }
        table = TableFrame(entry & FRAME_MASK);
    }
    None
}

mod x86;

#[cfg(test)]
mod tests;
