//! What a call did, for everybody who has to follow: processors, the host mapping, objects.

use actors::{Gpa, GpaRange, PageSize, Protection};

use crate::ept::entry::Leaf;
use crate::ept::masks::Masks;
use crate::ept::tables::{BLOCK, TableFrame};

/// Where harvested bits go: to whoever keeps the pages' own state. Neighbours come together, upwards, and a
/// superpage as 512 pages.
pub trait Harvest {
    /// These pages were stored to, and the entries no longer say so: they are dirty.
    fn modified(&mut self, range: GpaRange);
    /// These pages were used since they were last asked about.
    fn referenced(&mut self, range: GpaRange);
}

/// One closure for stores, one for uses.
impl<M: FnMut(GpaRange), R: FnMut(GpaRange)> Harvest for (M, R) {
    fn modified(&mut self, range: GpaRange) {
        self.0(range);
    }

    fn referenced(&mut self, range: GpaRange) {
        self.1(range);
    }
}

/// Ranges that grow upwards; neighbours are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs(Vec<GpaRange>);

impl Runs {
    /// Adds a range.
    pub fn push(&mut self, range: GpaRange) {
        match self.0.last_mut() {
            Some(last) if last.end() == range.start() => *last = both(*last, range),
            _ => self.0.push(range),
        }
    }

    /// The ranges, in the order of their discovery: upwards within one call.
    #[must_use]
    pub fn as_slice(&self) -> &[GpaRange] {
        &self.0
    }

    /// 4 KiB pages in all of them.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.0.iter().map(|range| range.pages()).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn append(&mut self, other: Self) {
        other.0.into_iter().for_each(|range| self.push(range));
    }
}

/// Two neighbours as one range.
fn both(low: GpaRange, high: GpaRange) -> GpaRange {
    GpaRange::new(low.start(), low.len() + high.len()).expect("two ranges of whole pages")
}

/// What an operation did to the tables, beyond what was asked.
#[derive(Debug, Default)]
#[must_use = "processors may still use what was taken away, and table pages are lost unless they are given back"]
pub struct Effects {
    /// Translations that went away, lost rights or lost a bit, and that some processor may have cached: each
    /// superpage is one.
    pub translations: u64,
    /// Pages that hardware could read before and cannot any more, whether they went away or were aged.
    pub unreachable: Runs,
    /// Pages that hardware can still read, and could write before.
    pub unwritable: Runs,
    /// 4 KiB pages whose entries were changed or removed, whoever noticed.
    pub changed_pages: u64,
    /// Blocks whose superpage became 512 pages.
    pub demoted: Vec<Gpa>,
    /// Blocks whose superpage could not become pages, or was of no use, and is gone.
    pub destroyed: Vec<Gpa>,
    /// Blocks whose pages became a superpage.
    pub promoted: Vec<Gpa>,
    /// Table pages that nobody leads to any more. Some walker may still be in them.
    pub emptied: Vec<TableFrame>,
}

impl Effects {
    /// Whether a shootdown must come before frames or table pages are used again, or before what was taken away
    /// counts as taken. False means that no processor can hold anything that is wrong now, *provided* that the
    /// shootdowns of earlier calls are complete: an entry whose accessed bit an earlier call cleared looks
    /// unused, and is so only after that call's shootdown.
    #[must_use]
    pub fn needs_shootdown(&self) -> bool {
        self.translations > 0 || !self.emptied.is_empty()
    }

    /// Adds what another call did, so that both share one shootdown.
    pub fn join(&mut self, mut other: Self) {
        self.translations += other.translations;
        self.unreachable.append(other.unreachable);
        self.unwritable.append(other.unwritable);
        self.changed_pages += other.changed_pages;
        self.demoted.append(&mut other.demoted);
        self.destroyed.append(&mut other.destroyed);
        self.promoted.append(&mut other.promoted);
        self.emptied.append(&mut other.emptied);
    }
}

/// Keeps the account of one call.
pub(super) struct Ledger<'h, H: Harvest> {
    masks: Masks,
    harvest: &'h mut H,
    pub(super) effects: Effects,
    modified: Option<GpaRange>,
    referenced: Option<GpaRange>,
    /// 4 KiB pages that became wired, less those that no longer are.
    pub(super) wired: i64,
    pub(super) modified_pages: u64,
    pub(super) referenced_pages: u64,
}

/// The range a leaf of this size at `at` translates.
pub(super) fn extent(at: Gpa, size: PageSize) -> GpaRange {
    let start = Gpa(at.0 & !(size.bytes() - 1));
    GpaRange::new(start, size.bytes()).expect("a leaf's address has at most 48 bits")
}

impl<'h, H: Harvest> Ledger<'h, H> {
    pub(super) fn new(masks: &Masks, harvest: &'h mut H) -> Self {
        Self {
            masks: *masks,
            harvest,
            effects: Effects::default(),
            modified: None,
            referenced: None,
            wired: 0,
            modified_pages: 0,
            referenced_pages: 0,
        }
    }

    /// A leaf at `at` changed; `after` is 0 when it went away.
    pub(super) fn note(&mut self, at: Gpa, before: Leaf, after: u64) {
        let masks = self.masks;
        let Leaf { entry, size } = before;
        if !masks.is_valid(entry) || entry == after {
            return;
        }
        let range = extent(at, size);
        self.effects.changed_pages += range.pages();
        self.effects.translations += u64::from(masks.needs_invalidation(entry, after, size));
        let same_page =
            masks.is_valid(after) && before.frame() == Leaf { entry: after, size }.frame();
        let had = masks.hardware_rights(entry);
        let has = if same_page { masks.hardware_rights(after) } else { Protection::empty() };
        if had.contains(Protection::READ) && !has.contains(Protection::READ) {
            self.effects.unreachable.push(range);
        } else if had.contains(Protection::WRITE) && !has.contains(Protection::WRITE) {
            self.effects.unwritable.push(range);
        }
        if entry & masks.managed != 0 {
            // A page that is a device's from now on will not be asked again.
            let kept = same_page && after & masks.managed != 0;
            if masks.is_modified(entry) && !(kept && masks.is_modified(after)) {
                self.modified(range);
            }
            if masks.is_referenced(entry) && !(kept && masks.is_referenced(after)) {
                self.referenced(range);
            }
        }
        let wired = |entry: u64| i64::from(entry & masks.wired != 0) * pages_of(size);
        self.wired += wired(after) - wired(entry);
    }

    /// Pages were stored to, and an entry that said so does not any more.
    pub(super) fn modified(&mut self, range: GpaRange) {
        self.modified_pages += range.pages();
        if let Some(run) = grow(&mut self.modified, range) {
            self.harvest.modified(run);
        }
    }

    /// Pages were used.
    pub(super) fn referenced(&mut self, range: GpaRange) {
        self.referenced_pages += range.pages();
        if let Some(run) = grow(&mut self.referenced, range) {
            self.harvest.referenced(run);
        }
    }

    /// Hands over what is still kept back for its neighbours.
    pub(super) fn close(&mut self) {
        if let Some(run) = self.modified.take() {
            self.harvest.modified(run);
        }
        if let Some(run) = self.referenced.take() {
            self.harvest.referenced(run);
        }
    }
}

pub(super) fn pages_of(size: PageSize) -> i64 {
    match size {
        PageSize::Size4KiB => 1,
        PageSize::Size2MiB => 512,
    }
}

/// Adds `range` to the run that is kept back; returns the run when it ended.
fn grow(kept: &mut Option<GpaRange>, range: GpaRange) -> Option<GpaRange> {
    match kept {
        Some(run) if run.end() == range.start() => {
            *run = both(*run, range);
            None
        }
        _ => kept.replace(range),
    }
}

/// The first address of the block of `at`.
pub(super) fn block_of(at: Gpa) -> Gpa {
    Gpa(at.0 & !(BLOCK - 1))
}
