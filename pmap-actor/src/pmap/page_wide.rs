//! One page, wherever it is mapped.
//!
//! FreeBSD walks a page's list of mappings (its pv entries). Here a page has at most two: the guest's, in `PtEpt` format at
//! its guest-physical address, and the monitor's own, in `PtX86` format at its frame. So the reverse map is two
//! places, and FreeBSD's limit of five mappings for each call of `pmap_ts_referenced` is never reached. The two formats keep the same facts in
//! different bits: each pmap uses its own masks.
//!
//! A page that one of the two maps inside a superpage takes the superpage along when it is demoted, in that pmap alone.

use actors::Gpa;

use super::effects::Harvest;
use super::{Effects, Pmap, References};

/// Where one page is mapped, if it is: in the guest's pmap and in the monitor's.
pub struct Mappings<'p> {
    guest: Option<(&'p mut Pmap, Gpa)>,
    backing: Option<(&'p mut Pmap, Gpa)>,
}

/// What an operation did in each of the two. Their shootdowns are different ones.
#[derive(Debug, Default)]
#[must_use = "as for `Effects`"]
pub struct PageEffects {
    /// In the guest's pmap.
    pub guest: Effects,
    /// In the monitor's.
    pub backing: Effects,
}

impl<'p> Mappings<'p> {
    /// A page that may be mapped at these addresses, each in its pmap's own terms.
    #[must_use]
    pub fn new(guest: Option<(&'p mut Pmap, Gpa)>, backing: Option<(&'p mut Pmap, Gpa)>) -> Self {
        Self { guest, backing }
    }

    fn iter(&self) -> impl Iterator<Item = (&Pmap, Gpa)> {
        [&self.guest, &self.backing].into_iter().flatten().map(|(pmap, at)| (&**pmap, *at))
    }

    /// Runs one operation in each pmap. What it harvests is in that pmap's addresses, so there are two places for it.
    fn each<G: Harvest, B: Harvest>(
        &mut self,
        harvest: (&mut G, &mut B),
        guest: impl FnOnce(&mut Pmap, Gpa, &mut G) -> Effects,
        backing: impl FnOnce(&mut Pmap, Gpa, &mut B) -> Effects,
    ) -> PageEffects {
        let mut effects = PageEffects::default();
        if let Some((pmap, at)) = &mut self.guest {
            effects.guest = guest(pmap, *at, harvest.0);
        }
        if let Some((pmap, at)) = &mut self.backing {
            effects.backing = backing(pmap, *at, harvest.1);
        }
        effects
    }

    /// Whether any mapping was stored through (`pmap_is_modified`).
    #[must_use]
    pub fn is_modified(&self) -> bool {
        self.iter().any(|(pmap, at)| pmap.is_modified(at))
    }

    /// Whether any mapping was used (`pmap_is_referenced`).
    #[must_use]
    pub fn is_referenced(&self) -> bool {
        self.iter().any(|(pmap, at)| pmap.is_referenced(at))
    }

    /// Mappings that are wired (`pmap_page_wired_mappings`).
    #[must_use]
    pub fn wired_mappings(&self) -> usize {
        self.iter().filter(|(pmap, at)| pmap.is_wired(*at)).count()
    }

    /// Whether it is mapped at all (`pmap_page_is_mapped`).
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.iter().any(|(pmap, at)| pmap.leaf(at).is_some())
    }

    /// [`Pmap::clear_modify`] of every mapping.
    pub fn clear_modify<G: Harvest, B: Harvest>(
        &mut self,
        guest: &mut G,
        backing: &mut B,
    ) -> PageEffects {
        self.each((guest, backing), Pmap::clear_modify, Pmap::clear_modify)
    }

    /// [`Pmap::clear_reference`] of every mapping.
    pub fn clear_reference<G: Harvest, B: Harvest>(
        &mut self,
        guest: &mut G,
        backing: &mut B,
    ) -> PageEffects {
        self.each((guest, backing), Pmap::clear_reference, Pmap::clear_reference)
    }

    /// [`Pmap::remove_write`] of every mapping.
    pub fn remove_write<G: Harvest, B: Harvest>(
        &mut self,
        guest: &mut G,
        backing: &mut B,
    ) -> PageEffects {
        self.each((guest, backing), Pmap::remove_write, Pmap::remove_write)
    }

    /// [`Pmap::remove_page`] of every mapping (`pmap_remove_all`).
    pub fn remove_all<G: Harvest, B: Harvest>(
        &mut self,
        guest: &mut G,
        backing: &mut B,
    ) -> PageEffects {
        self.each((guest, backing), Pmap::remove_page, Pmap::remove_page)
    }

    /// [`Pmap::ts_referenced`] of every mapping, added up.
    pub fn ts_referenced<G: Harvest, B: Harvest>(
        &mut self,
        guest: &mut G,
        backing: &mut B,
    ) -> (References, PageEffects) {
        let (mut in_guest, mut in_backing) = (References::default(), References::default());
        let effects = self.each(
            (guest, backing),
            |pmap, at, harvest| {
                let (found, effects) = pmap.ts_referenced(at, harvest);
                in_guest = found;
                effects
            },
            |pmap, at, harvest| {
                let (found, effects) = pmap.ts_referenced(at, harvest);
                in_backing = found;
                effects
            },
        );
        let found = References {
            cleared: in_guest.cleared + in_backing.cleared,
            kept: in_guest.kept + in_backing.kept,
        };
        (found, effects)
    }
}
