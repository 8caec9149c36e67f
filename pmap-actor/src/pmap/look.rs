//! Questions that change nothing.

use actors::{Gpa, PAGE_SIZE, PageSize, Protection};

use super::Pmap;
use crate::ept::entry::Leaf;
use crate::ept::tables::Block;

/// What is known of a page (`pmap_mincore`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incore {
    /// How large the leaf is.
    pub size: PageSize,
    /// Stored to since that was last harvested.
    pub modified: bool,
    /// Used since that was last harvested.
    pub referenced: bool,
    /// Pinned.
    pub wired: bool,
    /// Whether the bits are harvested at all.
    pub managed: bool,
    /// What software grants: hardware may have less until the first use or store.
    pub protection: Protection,
}

impl Pmap {
    /// Where `at` leads, to the byte (`pmap_extract`).
    #[must_use]
    pub fn extract(&self, at: Gpa) -> Option<u64> {
        self.tables.leaf(at).map(|leaf| leaf.frame_of(at) + (at.0 & (PAGE_SIZE - 1)))
    }

    /// Where `at` leads, to the byte, if it is mapped with these rights (the question of `pmap_extract_and_hold`; the hold is the caller's).
    /// Emulated bits that would make hardware trap are no obstacle.
    #[must_use]
    pub fn extract_allowing(&self, at: Gpa, rights: Protection) -> Option<u64> {
        let leaf = self.tables.leaf(at)?;
        let granted = self.masks.protection(leaf.entry).contains(rights);
        granted.then(|| leaf.frame_of(at) + (at.0 & (PAGE_SIZE - 1)))
    }

    /// The leaf that translates `at`.
    #[must_use]
    pub fn leaf(&self, at: Gpa) -> Option<Leaf> {
        self.tables.leaf(at)
    }

    /// What hardware may do at `at` without a fault: what a second copy of the tables should allow. Nothing when nothing is mapped.
    #[must_use]
    pub fn rights(&self, at: Gpa) -> Protection {
        let leaf = self.tables.leaf(at);
        leaf.map_or(Protection::empty(), |leaf| self.masks.hardware_rights(leaf.entry))
    }

    /// Every entry on the way to `at`, from the root down (`pmap_get_mapping`).
    #[must_use]
    pub fn mapping(&self, at: Gpa) -> Vec<u64> {
        self.tables.chain(at)
    }

    /// What is known of the page of `at` (`pmap_mincore`, `pmap_page_exists_quick`).
    #[must_use]
    pub fn mincore(&self, at: Gpa) -> Option<Incore> {
        let Leaf { entry, size } = self.tables.leaf(at)?;
        let masks = &self.masks;
        Some(Incore {
            size,
            modified: masks.is_modified(entry),
            referenced: masks.is_referenced(entry),
            wired: entry & masks.wired != 0,
            managed: entry & masks.managed != 0,
            protection: masks.protection(entry),
        })
    }

    /// Whether a page at `at` could be entered without making a table (`pmap_is_prefaultable`): the block has one, and no leaf there.
    #[must_use]
    pub fn is_prefaultable(&self, at: Gpa) -> bool {
        matches!(self.tables.block(at), Block::Pages(_)) && self.tables.leaf(at).is_none()
    }
}
