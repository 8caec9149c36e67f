//! Recent answers of the nested tables, for the guest's own page tables and code: a walk in two dimensions
//! would otherwise read twenty-four entries. Emptied with the generation, like every other translation.

use crate::guest_memory::PAGE;
use crate::nested::NestedPage;

const ENTRIES: usize = 512;

#[derive(Clone, Copy)]
struct Entry {
    /// The page's number.
    number: u64,
    page: NestedPage,
}

/// Guest-physical page to host page.
pub(crate) struct NestedCache {
    entries: Box<[Option<Entry>; ENTRIES]>,
}

fn index(gpa: u64) -> usize {
    (gpa / PAGE) as usize & (ENTRIES - 1)
}

impl NestedCache {
    pub(crate) fn new() -> Self {
        Self { entries: Box::new([None; ENTRIES]) }
    }

    pub(crate) fn get(&self, gpa: u64) -> Option<NestedPage> {
        let entry = self.entries[index(gpa)].as_ref()?;
        (entry.number == gpa / PAGE).then_some(entry.page)
    }

    pub(crate) fn put(&mut self, gpa: u64, page: NestedPage) {
        self.entries[index(gpa)] = Some(Entry { number: gpa / PAGE, page });
    }

    pub(crate) fn flush(&mut self) {
        self.entries.fill(None);
    }
}
