//! One page in two pmaps of different kinds; and what can be asked without changing anything.

use actors::{Access, Gpa, PAGE_SIZE, PageSize, Protection};

use super::super::{Incore, Mappings, NotEntered, Pmap, PmapFlags, PmapType, References, Wanted};
use super::{Heard, PAGES, READ, RW, RWX, RX, block, enter, kinds, page, pmap, promoted, range};
use crate::ept::attribute::Attribute;
use crate::ept::view::Refused;

/// Where the guest has the page, and its frame, where the monitor has it.
const IN_GUEST: Gpa = Gpa(3 * PAGE_SIZE);
const FRAME: Gpa = Gpa((PAGES + 5) * PAGE_SIZE);

fn guests() -> impl Iterator<Item = Pmap> {
    kinds().filter(|which| which.0 == PmapType::PtEpt).map(pmap)
}

/// A page that the guest has read and the monitor, inside a superpage, has written.
fn both(guest: &mut Pmap) -> Pmap {
    let mut backing = pmap((PmapType::PtX86, PmapFlags::SUPERPAGES));
    promoted(&mut backing, 1, RW, Access::Write);
    let wanted = Wanted::memory(RX, Access::Read);
    let effects = guest.enter(IN_GUEST, FRAME.0, wanted, &mut Heard::default());
    assert!(!effects.needs_shootdown());
    backing
}

#[test]
fn a_page_is_modified_if_any_mapping_says_so_each_in_its_own_bits() {
    for mut guest in guests() {
        let mut backing = both(&mut guest);
        let mut page = Mappings::new(Some((&mut guest, IN_GUEST)), Some((&mut backing, FRAME)));
        assert!(page.is_modified() && page.is_referenced() && page.is_mapped());
        assert_eq!(page.wired_mappings(), 0);
        let (mut here, mut there) = (Heard::default(), Heard::default());
        let effects = page.clear_modify(&mut here, &mut there);
        assert!(!page.is_modified() && page.is_referenced());
        assert_eq!((here.modified, there.modified), (vec![], vec![FRAME.0 / PAGE_SIZE]));
        assert!(!effects.guest.needs_shootdown() && effects.backing.needs_shootdown());
        assert_eq!(effects.backing.demoted, [block(1).start()]);
        assert!(backing.is_modified(block(1).start()), "its neighbours are as they were");
    }
}

#[test]
fn what_takes_a_page_out_takes_it_out_everywhere_and_leaves_its_neighbours() {
    for mut guest in guests() {
        let mut backing = both(&mut guest);
        let mut page = Mappings::new(Some((&mut guest, IN_GUEST)), Some((&mut backing, FRAME)));
        let (mut here, mut there) = (Heard::default(), Heard::default());
        let effects = page.remove_all(&mut here, &mut there);
        assert!(!page.is_mapped() && !page.is_modified());
        assert_eq!((effects.guest.translations, effects.backing.translations), (1, 1));
        assert_eq!((here.referenced, there.modified), (vec![3], vec![PAGES + 5]));
        assert_eq!((guest.resident_pages(), backing.resident_pages()), (0, PAGES - 1));
        guest.give_back(effects.guest.emptied);
        guest.release();
    }
}

#[test]
fn references_are_counted_over_all_mappings_and_a_superpage_waits_for_its_turn() {
    for mut guest in guests() {
        let mut backing = both(&mut guest);
        let mut page = Mappings::new(Some((&mut guest, IN_GUEST)), Some((&mut backing, FRAME)));
        let (found, effects) = page.ts_referenced(&mut Heard::default(), &mut Heard::default());
        assert_eq!(found, References { cleared: 1, kept: 1 });
        assert!(effects.backing.demoted.is_empty());
        let (found, _) = page.ts_referenced(&mut Heard::default(), &mut Heard::default());
        assert_eq!(found, References { cleared: 0, kept: 1 });
        let effects = page.clear_reference(&mut Heard::default(), &mut Heard::default());
        assert_eq!(effects.backing.demoted, [block(1).start()]);
        assert!(!page.is_referenced());
    }
}

#[test]
fn a_page_without_write_anywhere_is_clean_when_that_is_harvested() {
    for mut guest in guests() {
        let mut backing = both(&mut guest);
        let mut page = Mappings::new(Some((&mut guest, IN_GUEST)), Some((&mut backing, FRAME)));
        let (mut here, mut there) = (Heard::default(), Heard::default());
        let effects = page.remove_write(&mut here, &mut there);
        assert_eq!(effects.backing.unwritable.as_slice(), [range(PAGES + 5, 1)]);
        assert_eq!(there.modified, [PAGES + 5]);
        assert_eq!((guest.rights(IN_GUEST), backing.rights(FRAME)), (RX, READ));
    }
}

/// FreeBSD's values of leaves in nested tables, frames omitted.
#[test]
fn entered_leaves_have_freebsds_bits_in_both_layouts() {
    let hardware = (PmapType::PtEpt, PmapFlags::SUPERPAGES);
    let emulated = (PmapType::PtEpt, PmapFlags::SUPERPAGES | PmapFlags::EMULATE_AD_BITS);
    let entry = |which, wanted: Wanted| {
        let mut pmap = pmap(which);
        let _ = pmap.enter(Gpa(0), 0, wanted, &mut Heard::default());
        pmap.leaf(Gpa(0)).unwrap().entry
    };
    let (stored, loaded) = (Wanted::memory(RWX, Access::Write), Wanted::memory(RWX, Access::Read));
    let read_only = Wanted::memory(RX, Access::Read);
    let device = Wanted::device(RWX, Access::Read);
    let wired = Wanted { wired: true, ..stored };
    let rows = [
        (stored, 0x777, 0x0030_0000_0000_0477),
        (loaded, 0x577, 0x0030_0000_0000_0475),
        (read_only, 0x575, 0x0010_0000_0000_0475),
        (device, 0x347, 0x0030_0000_0000_0047),
        (wired, 0xf77, 0x0030_0000_0000_0c77),
    ];
    for (wanted, in_hardware, in_software) in rows {
        assert_eq!(entry(hardware, wanted), in_hardware, "{wanted:?}");
        assert_eq!(entry(emulated, wanted), in_software, "{wanted:?}");
    }
    let mut pmap = pmap(hardware);
    pmap.enter_superpage(Gpa(0), 0, stored).unwrap();
    assert_eq!(pmap.leaf(Gpa(0)).unwrap().entry, 0x7f7);
}

#[test]
fn a_superpage_is_entered_only_where_one_may_be() {
    for which in kinds() {
        let mut pmap = pmap(which);
        let wanted = Wanted::memory(RWX, Access::Write);
        let at = block(1).start();
        if !which.1.contains(PmapFlags::SUPERPAGES) {
            let refused = pmap.enter_superpage(at, at.0, wanted);
            assert_eq!(refused, Err(NotEntered::Unsupported));
            continue;
        }
        let device = Wanted::device(RWX, Access::Write);
        assert_eq!(pmap.enter_superpage(at, at.0, device), Err(NotEntered::Unmanaged(at)));
        for (at, frame) in [(page(PAGES + 1), 0), (at, 0x1000)] {
            let refused = pmap.enter_superpage(at, frame, wanted);
            assert_eq!(refused, Err(NotEntered::NotAligned { at, frame }));
        }
        enter(&mut pmap, page(PAGES + 3), RWX, Access::Read);
        assert_eq!(pmap.enter_superpage(at, at.0, wanted), Err(NotEntered::Occupied(at)));
        assert_eq!(pmap.tally().entered_superpages, 0);
        let mut heard = Heard::default();
        let effects = pmap.remove(block(1), &mut heard);
        pmap.give_back(effects.emptied);
        pmap.enter_superpage(at, at.0, Wanted { wired: true, ..wanted }).unwrap();
        assert_eq!((pmap.wired_pages(), pmap.rights(at)), (PAGES, RWX));
    }
}

#[test]
fn a_copy_takes_what_is_mapped_and_not_what_was_done_with_it() {
    for which in kinds() {
        let mut source = pmap(which);
        enter(&mut source, page(5), RWX, Access::Write);
        let wanted = Wanted { wired: true, ..Wanted::memory(RX, Access::Read) };
        let _ = source.enter(page(6), page(6).0, wanted, &mut Heard::default());
        let _ = source.enter(
            page(7),
            page(7).0,
            Wanted::device(RW, Access::Read),
            &mut Heard::default(),
        );
        let mut copy = pmap(which);
        let copied = copy.copy(&source, range(0, 1024));
        if source.masks().emulated {
            assert_eq!(copied, 0);
            continue;
        }
        assert_eq!((copied, copy.wired_pages(), copy.extract(page(6))), (2, 0, Some(page(6).0)));
        assert!(!copy.is_modified(page(5)) && !copy.is_referenced(page(5)));
        assert_eq!((copy.rights(page(5)), copy.rights(page(6))), (RWX, RX));
        let mut other = pmap((
            if which.0 == PmapType::PtEpt { PmapType::PtX86 } else { PmapType::PtEpt },
            which.1,
        ));
        assert_eq!(other.copy(&source, range(0, 1024)), 0, "of another kind");
    }
}

#[test]
fn a_copied_superpage_stays_one() {
    for which in [PmapType::PtEpt, PmapType::PtX86] {
        let which = (which, PmapFlags::SUPERPAGES);
        let mut source = pmap(which);
        promoted(&mut source, 1, RWX, Access::Write);
        let mut copy = pmap(which);
        assert_eq!(copy.copy(&source, range(0, 2 * PAGES)), PAGES);
        assert_eq!(copy.leaf(page(PAGES)).map(|leaf| leaf.size), Some(PageSize::Size2MiB));
        assert_eq!(copy.copy(&source, range(0, 2 * PAGES)), 0, "it is there already");
    }
}

#[test]
fn what_is_known_of_a_page_is_told() {
    for which in kinds() {
        let mut pmap = pmap(which);
        assert_eq!((pmap.mincore(page(5)), pmap.is_prefaultable(page(5))), (None, false));
        let wanted = Wanted { wired: true, ..Wanted::memory(RX, Access::Read) };
        let _ = pmap.enter(page(5), page(5).0, wanted, &mut Heard::default());
        let known = Incore {
            size: PageSize::Size4KiB,
            modified: false,
            referenced: true,
            wired: true,
            managed: true,
            protection: RX,
        };
        assert_eq!(pmap.mincore(page(5)), Some(known));
        assert!(pmap.is_prefaultable(page(6)) && !pmap.is_prefaultable(page(5)));
        assert!(pmap.enter_quick(page(6), page(6).0, RWX, Attribute::MEMORY));
        assert!(!pmap.enter_quick(page(6), 0, RWX, Attribute::MEMORY), "it is there already");
        let known = pmap.mincore(page(6)).unwrap();
        assert_eq!(known.protection, RX);
    }
}

#[test]
fn a_walker_of_ordinary_tables_sees_rights_and_leaves_its_marks() {
    let mut pmap = pmap((PmapType::PtX86, PmapFlags::SUPERPAGES));
    let view = pmap.view();
    enter(&mut pmap, page(5), RW, Access::Read);
    assert!(pmap.enter_quick(page(6), page(6).0, READ, Attribute::MEMORY));
    assert!(!pmap.is_referenced(page(6)));
    assert!(!view.translate(page(6), Access::Read).unwrap().writable);
    assert!(pmap.is_referenced(page(6)));
    let clean = view.translate(page(5), Access::Read).unwrap();
    assert!(!clean.writable, "a store must come here first, to set dirty");
    assert!(view.translate(page(5), Access::Write).unwrap().writable);
    assert!(pmap.is_modified(page(5)));
    let refused = Refused::Violation { readable: true, writable: true, executable: false };
    assert_eq!(view.translate(page(5), Access::Execute), Err(refused));
    let nothing = Refused::Violation { readable: false, writable: false, executable: false };
    assert_eq!(view.translate(page(7), Access::Read), Err(nothing));
    assert_eq!(view.translate(Gpa(1 << 48), Access::Read), Err(nothing));
    promoted(&mut pmap, 2, RWX, Access::Write);
    let found = view.translate(page(2 * PAGES + 9), Access::Execute).unwrap();
    assert_eq!((found.frame, found.bytes), (block(2).start().0, block(2).len()));
    assert!(found.writable && found.executable);
}

#[test]
#[should_panic(expected = "released with pages in it")]
fn a_pmap_is_not_released_with_pages_in_it() {
    let mut pmap = pmap((PmapType::PtEpt, PmapFlags::empty()));
    enter(&mut pmap, page(5), Protection::all(), Access::Write);
    pmap.release();
}

#[test]
fn a_page_that_becomes_a_devices_is_asked_for_the_last_time() {
    for which in kinds() {
        let mut pmap = pmap(which);
        enter(&mut pmap, page(5), RW, Access::Write);
        let mut heard = Heard::default();
        let device = Wanted::device(RW, Access::Read);
        let effects = pmap.enter(page(5), page(5).0, device, &mut heard);
        assert!(effects.needs_shootdown(), "it was cached as memory");
        assert_eq!((heard.modified, heard.referenced), (vec![5], vec![5]));
    }
}
