//! The soft TLB: guest-linear page to host address, per kind of access and privilege.
//!
//! An entry's tag is the page's address with the array's epoch in its low twelve bits: emptying an array is one
//! addition, and writes zeroes only once in 4,095 times. Reads, writes and fetches have arrays of their own, so that a
//! copy never evicts its own source; an entry for writes exists only once both dirty bits are set and
//! the frame has no decoded code in it.

use crate::guest_memory::{HostAddress, HostPage, PAGE};
use crate::nested::NestedPage;
use crate::width::Width;

/// Entries of one privilege in an array.
const ENTRIES: usize = 2048;
/// Privileges that are told apart: supervisor, user, and supervisor that may touch user pages (SMAP with AC).
const VIEWS: usize = 4;
/// Epochs that fit below a page's address.
const EPOCHS: u64 = PAGE;

#[derive(Clone, Copy, Default)]
struct Entry {
    tag: u64,
    addend: u64,
}

/// Translations for one kind of access.
pub(crate) struct Tlb {
    entries: Box<[Entry; ENTRIES * VIEWS]>,
    epoch: u64,
    view: usize,
}

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Supervisor = 0,
    User = 1,
    /// CPL below 3, AC set, while SMAP is on.
    Trespasser = 2,
    /// CPL 3 with alignment checks on: nothing is cached, so that every access is looked at.
    Strict = 3,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        let entries = vec![Entry::default(); ENTRIES * VIEWS].into_boxed_slice();
        let entries =
            entries.try_into().unwrap_or_else(|_| unreachable!("the length is the type's"));
        Self { entries, epoch: 1, view: 0 }
    }

    pub(crate) fn see_as(&mut self, view: View) {
        self.view = view as usize * ENTRIES;
    }

    #[inline(always)]
    fn index(&self, address: u64) -> usize {
        Self::index_in(self.view, address)
    }

    #[inline(always)]
    fn index_in(view: usize, address: u64) -> usize {
        ((address / PAGE) as usize & (ENTRIES - 1) | view) & (ENTRIES * VIEWS - 1)
    }

    /// The host address, if the whole access lies in a page that is here.
    #[inline(always)]
    pub(crate) fn hit<W: Width>(&self, address: u64) -> Option<HostAddress> {
        self.hit_bytes(address, W::BYTES as u64)
    }

    /// The same for any number of bytes from 1 to 4,096.
    #[inline(always)]
    pub(crate) fn hit_bytes(&self, address: u64, bytes: u64) -> Option<HostAddress> {
        self.hit_at(self.index(address), address, bytes)
    }

    /// A hit for the supervisor, whoever runs.
    pub(crate) fn hit_supervisor<W: Width>(&self, address: u64) -> Option<HostAddress> {
        let index = Self::index_in(View::Supervisor as usize * ENTRIES, address);
        self.hit_at(index, address, W::BYTES as u64)
    }

    #[inline(always)]
    fn hit_at(&self, index: usize, address: u64, bytes: u64) -> Option<HostAddress> {
        let entry = &self.entries[index];
        // The page of the last byte: when that is another page than the first one's, the entry, which
        // was chosen by the first, cannot have its tag.
        let last = address.wrapping_add(bytes - 1);
        (entry.tag == last & !(PAGE - 1) | self.epoch)
            .then(|| HostAddress::of_hit(address, entry.addend))
    }

    pub(crate) fn fill(&mut self, address: u64, page: HostPage) {
        if self.view == View::Strict as usize * ENTRIES {
            return;
        }
        self.fill_at(self.index(address), address, page);
    }

    /// Fills the supervisor's, whoever runs.
    pub(crate) fn fill_supervisor(&mut self, address: u64, page: HostPage) {
        let index = Self::index_in(View::Supervisor as usize * ENTRIES, address);
        self.fill_at(index, address, page);
    }

    fn fill_at(&mut self, index: usize, address: u64, page: HostPage) {
        let base = address & !(PAGE - 1);
        self.entries[index] = Entry { tag: base | self.epoch, addend: page.addend(base) };
    }

    pub(crate) fn flush(&mut self) {
        self.epoch += 1;
        if self.epoch == EPOCHS {
            self.entries.fill(Entry::default());
            self.epoch = 1;
        }
    }

    /// Drops one page, in every view.
    pub(crate) fn flush_page(&mut self, address: u64) {
        for view in 0..VIEWS {
            let index = Self::index_in(view * ENTRIES, address);
            self.entries[index] = Entry::default();
        }
    }
}

/// Entries of the table for fetches. Only traces that are not at hand by their address come here.
const FETCHES: usize = 1024;

#[derive(Clone, Copy)]
struct Fetch {
    number: u64,
    context: u32,
    page: Option<NestedPage>,
}

const NO_FETCH: Fetch = Fetch { number: 0, context: 0, page: None };

/// Pages that instructions are fetched from, each valid in one [`crate::cpu::Cpu::code_context`].
pub(crate) struct FetchTlb {
    entries: Box<[Fetch; FETCHES]>,
}

impl FetchTlb {
    pub(crate) fn new() -> Self {
        Self { entries: Box::new([NO_FETCH; FETCHES]) }
    }

    fn index(address: u64) -> usize {
        (address / PAGE) as usize & (FETCHES - 1)
    }

    pub(crate) fn hit(&self, address: u64, context: u32) -> Option<NestedPage> {
        let fetch = &self.entries[Self::index(address)];
        let hits = fetch.number == address / PAGE && fetch.context == context;
        fetch.page.filter(|_| hits)
    }

    pub(crate) fn fill(&mut self, address: u64, context: u32, page: NestedPage) {
        let fetch = Fetch { number: address / PAGE, context, page: Some(page) };
        self.entries[Self::index(address)] = fetch;
    }

    /// When contexts begin anew.
    pub(crate) fn flush(&mut self) {
        self.entries.fill(NO_FETCH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::width::{B1, B8};

    #[test]
    fn an_access_that_leaves_its_page_never_hits() {
        let mut tlb = Tlb::new();
        let mut memory = vec![0u8; 3 * 4096];
        let base = memory.as_mut_ptr();
        let page = crate::tests::page_in(base);
        tlb.fill(0x5000, page);
        assert!(tlb.hit::<B8>(0x5ff8).is_some());
        assert!(tlb.hit::<B8>(0x5ff9).is_none());
        assert!(tlb.hit::<B1>(0x5fff).is_some());
        assert!(tlb.hit::<B1>(0x4fff).is_none());
    }

    #[test]
    fn a_flush_empties_every_view_also_when_epochs_wrap() {
        let mut tlb = Tlb::new();
        let mut memory = vec![0u8; 3 * 4096];
        let page = crate::tests::page_in(memory.as_mut_ptr());
        for _ in 0..5000 {
            for view in [View::Supervisor, View::User, View::Trespasser] {
                tlb.see_as(view);
                assert!(tlb.hit::<B1>(0x7000).is_none());
                tlb.fill(0x7000, page);
                assert!(tlb.hit::<B1>(0x7000).is_some());
            }
            tlb.flush();
        }
    }
}
