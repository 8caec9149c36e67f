//! Comparing the tables with what they should agree with.
//!
//! ```text
//!   our tables ──▶ a leaf: legal, and leading to the page's own frame?
//!              ──▶ the guest view (KVM): what the guest may do by the one, may it do by the other?
//!   our books  ──▶ the memory object: is what we call resident there, and nothing else?
//! ```
//!
//! # When it is true
//!
//! It runs on the pmap's thread, between two requests, while no shootdown is on its way. Nobody
//! else changes the tables' rights or the guest view, so vcpus may run meanwhile: a walker
//! of the software engine only sets accessed and dirty bits, and KVM changes nothing at all.
//!
//! The host does: it may drop any mapping that is not locked (it swaps the page out, moves it, splits a
//! huge one) whenever it likes. So a page that our tables allow and the host does not map is *not* a
//! difference: the next touch is a fault that maps it again. It is counted apart
//! ([`Verified::dropped_pages`]), because on a host with memory to spare there should be none. The
//! other direction (the host allows what our tables forbid) is always a difference, and so is a
//! page that the host write-protects and our tables do not: it never does that by itself.

use std::io;

use actors::contract::verify::Verified;
use actors::{Gpa, GpaRange, PAGE_SIZE, PageSize, Protection};

use crate::ept::entry::Leaf;
use crate::ept::tables::Tables;
use crate::host::huge::{HUGE, HugePages};
use crate::host::memory::GuestMemory;
use crate::host::pagemap::{HostPage, Pagemap, Stretch};

/// What realises the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Realised {
    /// Whoever walks them: there is nothing to compare them with.
    ByWalking,
    /// KVM, which follows the guest view.
    ByGuestView,
}

/// What the pmap's books say of pages by their numbers (frames in units of 4 KiB).
pub trait Books {
    /// Whether the page is in memory (on its way out, too).
    fn is_resident(&self, page: u64) -> bool;
    /// How many are.
    fn resident_pages(&self) -> u64;
}

impl Books for actors::pages::PageSet {
    fn is_resident(&self, page: u64) -> bool {
        self.contains(page)
    }
    fn resident_pages(&self) -> u64 {
        self.count()
    }
}

/// Compares everything; `beat` is called now and then. Takes some 100 ns a page.
///
/// # Errors
///
/// The host's, when it does not answer.
pub fn verify(
    tables: &Tables,
    memory: &GuestMemory,
    books: &impl Books,
    realised: Realised,
    mut beat: impl FnMut(),
) -> io::Result<Verified> {
    let mut found = Verified::default();
    let mut host = match realised {
        Realised::ByWalking => None,
        Realised::ByGuestView => Some(Host::new(memory)?),
    };
    found.compared_superpages = host.as_ref().is_some_and(|host| host.huge.is_some());
    for range in memory.layout().ranges() {
        let mut next = range.start();
        while next < range.end() {
            let end = Gpa((next.0 / HUGE + 1) * HUGE).min(range.end());
            let block = GpaRange::new(next, end.0 - next.0).map_err(io::Error::other)?;
            let mut checked = Block { tables, memory, books, found: &mut found };
            match &mut host {
                None => checked.walk(block),
                Some(host) => checked.compare(block, host)?,
            }
            beat();
            next = end;
        }
    }
    // Reserved pages come and go by the 2 MiB, and cannot be asked for their contents.
    if memory.pages() == HugePages::Transparent {
        object(memory, books, &mut found, beat)?;
    }
    Ok(found)
}

/// The host's own words.
struct Host {
    pagemap: Pagemap,
    /// What it maps by entries of 2 MiB, upwards; none where it cannot tell.
    huge: Option<Vec<Stretch>>,
}

impl Host {
    fn new(memory: &GuestMemory) -> io::Result<Self> {
        let pagemap = Pagemap::open()?;
        let mut huge = Some(Vec::new());
        for slot in memory.slots() {
            let end = slot.host + slot.range.len();
            huge = huge.zip(pagemap.huge(slot.host, end)?).map(|(mut all, mut more)| {
                all.append(&mut more);
                all
            });
        }
        if let Some(huge) = &mut huge {
            huge.sort_unstable_by_key(|stretch| stretch.start);
        }
        Ok(Self { pagemap, huge })
    }

    fn maps_huge(&self, address: u64) -> Option<bool> {
        let huge = self.huge.as_ref()?;
        let behind = huge.partition_point(|stretch| stretch.start <= address);
        let last = huge[..behind].last();
        Some(last.is_some_and(|stretch| address + HUGE <= stretch.end))
    }
}

/// At most 2 MiB, of one table.
struct Block<'a, B> {
    tables: &'a Tables,
    memory: &'a GuestMemory,
    books: &'a B,
    found: &'a mut Verified,
}

impl<B: Books> Block<'_, B> {
    fn walk(&mut self, block: GpaRange) {
        for at in block.iter_pages() {
            self.found.pages += 1;
            if let Some(leaf) = self.tables.leaf(at) {
                self.check(at, leaf);
            }
        }
    }

    fn compare(&mut self, block: GpaRange, host: &mut Host) -> io::Result<()> {
        let address = self.memory.guest_address(block.start());
        let pages = host.pagemap.read(address, block.pages())?;
        for (at, page) in block.iter_pages().zip(pages) {
            self.found.pages += 1;
            let leaf = self.tables.leaf(at);
            if leaf.is_some_and(|leaf| !self.check(at, leaf)) {
                continue;
            }
            let rights = leaf.map_or(Protection::empty(), |leaf| {
                self.tables.masks().hardware_rights(leaf.entry)
            });
            self.compare_rights(at, leaf, rights, page);
            let is_first = at == block.start();
            if is_first && leaf.is_some_and(|leaf| leaf.size == PageSize::Size2MiB) {
                let is_split = host.maps_huge(address) == Some(false);
                self.found.split_superpages += u64::from(is_split);
            }
        }
        Ok(())
    }

    /// What is true of a leaf whoever uses it. Whether it leads to memory at all: a device's page has no
    /// frame of ours.
    fn check(&mut self, at: Gpa, leaf: Leaf) -> bool {
        self.found.mapped_pages += 1;
        let (entry, masks) = (leaf.entry, self.tables.masks());
        // Of a superpage once.
        if at.0.is_multiple_of(leaf.size.bytes()) {
            self.found.superpages += u64::from(leaf.size == PageSize::Size2MiB);
            if let Some(rule) = masks.broken_rule(leaf, self.tables.flags()) {
                self.found.differs(Some(at), format!("our leaf is {entry:#x}"), rule);
            }
        }
        if entry & masks.managed == 0 {
            return false;
        }
        // A page has one frame, and a frame one page: so no frame can have two leaves.
        let (ours, own) = (leaf.frame_of(at), self.memory.frame_of(at));
        if ours != own {
            let ours = format!("our leaf leads to frame {ours:#x}");
            self.found.differs(Some(at), ours, format!("the page's own is {own:#x}"));
        }
        if !self.books.is_resident(own / PAGE_SIZE) {
            self.found.differs(Some(at), "our tables have a leaf", "our books have no page there");
        }
        true
    }

    fn compare_rights(&mut self, at: Gpa, leaf: Option<Leaf>, ours: Protection, host: HostPage) {
        if !ours.contains(Protection::READ) {
            if host.present {
                let ours = match leaf {
                    None => "our tables have nothing",
                    Some(_) => "our leaf waits for the page's next use",
                };
                self.found.differs(Some(at), ours, "the host maps it");
            }
        } else if !host.present {
            self.found.dropped_pages += 1;
        } else if ours.contains(Protection::WRITE) == host.write_protected {
            let (ours, theirs) = if host.write_protected {
                ("our leaf allows stores", "the host does not")
            } else {
                ("our leaf forbids stores", "the host allows them")
            };
            self.found.differs(Some(at), ours, theirs);
        }
    }
}

/// Compares the books with the object. A page that was allocated and never touched has no contents to be
/// found by; so what has contents must be in the books page by page, and the sums must be equal. What the books lack
/// may be there as zeroes: where the host cannot split a huge page of which a part is freed (`truncate_inode_partial_folio`
/// in Linux), it zeroes that part and keeps it.
fn object(
    memory: &GuestMemory,
    books: &impl Books,
    found: &mut Verified,
    mut beat: impl FnMut(),
) -> io::Result<()> {
    let end = memory.layout().total();
    let mut frame = 0;
    let mut contents = [0; 4096];
    while let Some(start) = memory.next_contents(frame)?.filter(|start| *start < end) {
        frame = memory.next_hole(start)?.clamp(start + PAGE_SIZE, end);
        for page in start / PAGE_SIZE..frame / PAGE_SIZE {
            if books.is_resident(page) {
                continue;
            }
            memory.copy_frame(page, &mut contents)?;
            if contents == [0; 4096] {
                found.kept_pages += 1;
            } else {
                let at = memory.gpa_of_frame(page * PAGE_SIZE);
                found.differs(at, "our books have no page there", "the object has contents");
            }
        }
        beat();
    }
    let ours = (books.resident_pages() + found.kept_pages) * PAGE_SIZE;
    let theirs = memory.resident_bytes()?;
    if ours != theirs {
        let kept = match found.kept_pages {
            0 => String::new(),
            kept => format!(", with {kept} free pages that are zeroes"),
        };
        let ours = format!("our books have {ours} bytes resident{kept}");
        found.differs(None, ours, format!("the host holds {theirs}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
