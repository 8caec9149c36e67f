//! Each kind of disagreement, made on purpose: a comparison that finds nothing proves nothing.

use std::sync::Arc;

use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::pages::PageSet;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::ept::masks::{PmapFlags, PmapType};
use crate::host::huge::HugeSupport;
use crate::host::userfault::{Installed, Userfault};
use crate::mirror::{KvmMirror, Mirror, Promoted};

const RWX: Protection = Protection::all();
const RX: Protection = Protection::READ.union(Protection::EXECUTE);
const BLOCKS: u64 = 4;

fn pages(first: u64, count: u64) -> GpaRange {
    GpaRange::new(Gpa(first * PAGE_SIZE), count * PAGE_SIZE).unwrap()
}

/// Memory whose tables, books and object agree.
struct Space {
    tables: Tables,
    memory: Arc<GuestMemory>,
    books: PageSet,
}

impl Space {
    fn new() -> Self {
        let layout = MemoryLayout::split(BLOCKS * HUGE, LOWMEM_LIMIT, 48).unwrap();
        let flags = PmapFlags::EMULATE_AD_BITS | PmapFlags::SUPERPAGES;
        Self {
            tables: Tables::new(PmapType::PtEpt, flags, layout),
            memory: Arc::new(GuestMemory::new(layout).unwrap()),
            books: PageSet::new(layout.total() / PAGE_SIZE),
        }
    }

    /// Puts pages in the object, the books and the tables.
    fn enter(&mut self, range: GpaRange, protection: Protection) {
        self.memory.populate(range).unwrap();
        for at in range.iter_pages() {
            let leaf = self.tables.masks().leaf(self.memory.frame_of(at), protection);
            self.tables.enter(at, leaf);
            self.books.insert(at.0 / PAGE_SIZE);
        }
    }

    fn verify(&self, realised: Realised) -> Verified {
        verify(&self.tables, &self.memory, &self.books, realised, || {}).unwrap()
    }

    /// The one difference there is, as a sentence.
    fn sentence(&self, realised: Realised) -> String {
        let verified = self.verify(realised);
        assert_eq!(verified.count, 1, "{verified}");
        verified.differences[0].to_string()
    }
}

/// The same, with a guest view that agrees.
struct Mirrored {
    space: Space,
    mirror: KvmMirror,
}

impl Mirrored {
    /// `None`, aloud, where the host lacks what is tested.
    fn new() -> Option<Self> {
        let userfault = match Userfault::open() {
            Ok(userfault) => Arc::new(userfault),
            Err(why) => {
                eprintln!("not tested here: {why}");
                return None;
            }
        };
        let space = Space::new();
        let mirror = KvmMirror::new(space.memory.clone(), userfault, false).unwrap();
        Some(Self { space, mirror })
    }

    fn enter(&mut self, range: GpaRange, protection: Protection) {
        self.space.enter(range, protection);
        let writable = protection.contains(Protection::WRITE);
        let mapped = self.mirror.map_existing(range, writable).unwrap();
        assert_eq!(mapped, Installed::Bytes(range.len()));
    }

    fn verify(&self) -> Verified {
        self.space.verify(Realised::ByGuestView)
    }

    fn sentence(&self) -> String {
        self.space.sentence(Realised::ByGuestView)
    }
}

#[test]
fn what_was_done_alike_agrees() {
    let Some(mut both) = Mirrored::new() else { return };
    assert!(both.verify().agrees());
    both.enter(pages(3, 20), RWX);
    both.enter(pages(700, 2), RX);
    let verified = both.verify();
    assert!(verified.agrees(), "{verified}");
    assert_eq!((verified.pages, verified.mapped_pages), (BLOCKS * 512, 22));
    assert_eq!((verified.dropped_pages, verified.superpages), (0, 0));
}

#[test]
fn a_page_that_the_host_maps_and_the_tables_do_not_is_found() {
    let Some(mut both) = Mirrored::new() else { return };
    both.enter(pages(3, 20), RWX);
    let (gone, mut emptied) = (pages(5, 1), Vec::new());
    both.space.tables.remove(gone, &mut emptied, |_, _| {});
    let expected = "guest-physical 0x5000: our tables have nothing, but the host maps it";
    assert_eq!(both.sentence(), expected);
    both.mirror.unmap(gone).unwrap();
    assert!(both.verify().agrees());
}

#[test]
fn a_page_that_waits_for_its_next_use_and_is_mapped_is_found() {
    let Some(mut both) = Mirrored::new() else { return };
    both.enter(pages(3, 20), RX);
    let masks = *both.space.tables.masks();
    let aged = |leaf: Leaf| leaf.entry & !masks.accessed & !masks.executable;
    both.space.tables.change(Gpa(0x5000), aged).unwrap();
    let sentence = both.sentence();
    assert!(sentence.contains("waits for the page's next use, but the host maps it"), "{sentence}");
}

#[test]
fn a_page_that_one_side_alone_may_store_to_is_found_whichever_side_it_is() {
    let Some(mut both) = Mirrored::new() else { return };
    both.enter(pages(3, 20), RWX);
    both.mirror.set_writable(pages(4, 1), false).unwrap();
    let sentence = both.sentence();
    assert!(sentence.ends_with("our leaf allows stores, but the host does not"), "{sentence}");
    both.mirror.set_writable(pages(4, 1), true).unwrap();
    assert!(both.verify().agrees());
    let masks = *both.space.tables.masks();
    let clean = |leaf: Leaf| leaf.entry & !masks.modified;
    both.space.tables.change(Gpa(0x4000), clean).unwrap();
    let sentence = both.sentence();
    assert!(sentence.ends_with("our leaf forbids stores, but the host allows them"), "{sentence}");
}

#[test]
fn a_mapping_that_the_host_dropped_is_counted_and_no_difference() {
    let Some(mut both) = Mirrored::new() else { return };
    both.enter(pages(3, 20), RWX);
    both.space.memory.unmap_view(pages(10, 2)).unwrap();
    let verified = both.verify();
    assert!(verified.agrees(), "{verified}");
    assert_eq!(verified.dropped_pages, 2);
}

#[test]
fn a_superpage_is_one_entry_of_the_host_or_counted_as_split() {
    let Some(mut both) = Mirrored::new() else { return };
    if let Err(why) = HugeSupport::probe() {
        eprintln!("not tested here: {why}");
        return;
    }
    let block = pages(512, 512);
    both.space.memory.populate(block).unwrap();
    assert_eq!(both.mirror.map_existing(block, true).unwrap(), Installed::Bytes(HUGE));
    block.iter_pages().for_each(|at| assert!(both.space.books.insert(at.0 / PAGE_SIZE)));
    let masks = both.space.tables.masks();
    let leaf = masks.leaf(both.space.memory.frame_of(block.start()), RWX) | masks.superpage;
    assert!(both.space.tables.enter_superpage(block.start(), leaf));
    let verified = both.verify();
    assert!(verified.agrees(), "{verified}");
    assert_eq!((verified.superpages, verified.mapped_pages), (1, 512));
    if verified.compared_superpages {
        assert_eq!(verified.split_superpages, 1);
    }
    assert_eq!(both.mirror.promote(block).unwrap(), Promoted::Huge);
    let verified = both.verify();
    assert!(verified.agrees(), "{verified}");
    assert_eq!(verified.split_superpages, 0);
}

#[test]
fn a_leaf_that_leads_to_another_pages_frame_is_found() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    let leaf = space.tables.masks().leaf(0x4000, RWX);
    space.tables.enter(Gpa(0x5000), leaf);
    let sentence = space.sentence(Realised::ByWalking);
    assert!(sentence.contains("leads to frame 0x4000"), "{sentence}");
}

#[test]
fn a_leaf_that_breaks_a_rule_is_found_with_the_rule() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    let accessed = space.tables.masks().accessed;
    space.tables.change(Gpa(0x5000), |leaf| leaf.entry & !accessed).unwrap();
    let sentence = space.sentence(Realised::ByWalking);
    assert!(sentence.contains("modified but not accessed"), "{sentence}");
}

#[test]
fn a_leaf_to_a_page_that_the_books_have_not_is_found() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    space.books.remove(5);
    let verified = space.verify(Realised::ByWalking);
    // The sums differ as well.
    assert_eq!(verified.count, 2, "{verified}");
    assert!(verified.differences[0].to_string().ends_with("our books have no page there"));
}

#[test]
fn contents_that_the_books_do_not_know_of_are_found_where_they_are() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    space.memory.backing().write_obj(7u64, GuestAddress(0x20_5000)).unwrap();
    let verified = space.verify(Realised::ByWalking);
    assert_eq!(verified.count, 2, "{verified}");
    let expected =
        "guest-physical 0x205000: our books have no page there, but the object has contents";
    assert_eq!(verified.differences[0].to_string(), expected);
}

#[test]
fn zeroes_that_the_host_keeps_where_the_books_have_nothing_are_counted_and_are_no_difference() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    space.memory.backing().write_obj(0u64, GuestAddress(0x20_5000)).unwrap();
    let verified = space.verify(Realised::ByWalking);
    assert!(verified.agrees(), "{verified}");
    assert_eq!(verified.kept_pages, 1);
    space.memory.free(pages(4, 1)).unwrap();
    let sentence = space.sentence(Realised::ByWalking);
    assert!(
        sentence.contains(
            "20480 bytes resident, with 1 free pages that are zeroes, but the host holds 16384"
        ),
        "{sentence}"
    );
}

#[test]
fn a_page_that_was_lost_from_the_object_is_missed_in_the_sum() {
    let mut space = Space::new();
    space.enter(pages(3, 4), RWX);
    space.memory.free(pages(4, 1)).unwrap();
    let sentence = space.sentence(Realised::ByWalking);
    let expected = "altogether: our books have 16384 bytes resident, but the host holds 12288";
    assert_eq!(sentence, expected);
}
