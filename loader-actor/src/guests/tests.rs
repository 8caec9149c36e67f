//! What holds for every built-in guest, told without running one.

use actors::contract::boot::EntryMode;
use actors::layout::LOWMEM_LIMIT;

use super::*;

fn machine(bytes: u64) -> MemoryLayout {
    MemoryLayout::split(bytes, LOWMEM_LIMIT, 48).unwrap()
}

/// Every guest with everything it has placed, on a machine of 128 MiB, on as many vcpus as
/// it can have.
fn all_placed() -> impl Iterator<Item = (&'static Guest, Vec<Piece>)> {
    ALL.iter().map(|guest| {
        let pieces = guest.pieces(&machine(128 << 20), guest.most_vcpus);
        (*guest, pieces.unwrap())
    })
}

fn end((at, bytes): &Piece) -> u64 {
    at.0 + bytes.len() as u64
}

/// `count` bytes at `at`, as they were placed.
fn placed(pieces: &[Piece], at: Gpa, count: usize) -> Option<&[u8]> {
    pieces.iter().find_map(|(start, bytes)| {
        let offset = usize::try_from(at.0.checked_sub(start.0)?).ok()?;
        bytes.get(offset..offset.checked_add(count)?)
    })
}

#[test]
fn every_guest_is_found_by_the_name_it_bears() {
    for name in names() {
        assert_eq!(find(name).unwrap().name, name);
    }
    assert!(find("no such guest").is_none());
}

#[test]
fn the_pieces_of_a_guest_do_not_overlap_and_lie_in_the_memory_it_asks_for() {
    for (guest, mut pieces) in all_placed() {
        pieces.sort();
        for pair in pieces.windows(2) {
            assert!(end(&pair[0]) <= pair[1].0.0, "{}: {}", guest.name, pair[1].0);
        }
        for piece in &pieces {
            assert!(!piece.1.is_empty(), "{}: {}", guest.name, piece.0);
            assert!(end(piece) <= guest.memory_bytes, "{}: {}", guest.name, piece.0);
        }
    }
}

#[test]
fn what_the_guests_work_on_lies_in_the_memory_they_ask_for() {
    let stacks_end = places::STACKS.0 + u64::from(places::MOST_VCPUS) * 4096;
    assert!(stacks_end <= places::OWN.0);
    let needs = |name| find(name).unwrap().memory_bytes;
    assert!(spin::counter(places::MOST_VCPUS - 1).0 + 8 <= needs("spin"));
    assert!(smp::PRIVATE.0 + smp::PRIVATE_PAGES * 4096 <= needs("smp"));
    for storm in ["storm", "storm0"] {
        let control = storm_control::control_range(storm_control::MOST_VCPUS);
        assert!(control.end() <= storm_control::DATA);
        assert!(storm_control::data_range().end().0 <= needs(storm));
    }
    assert!(toucher::result(toucher::MOST_TOUCHES - 1) < toucher::FREE);
    assert!(sweep::looks(places::MOST_VCPUS - 1).0 + 8 <= sweep::FREE.0);
    assert!(sweep::PASS.0 + 4 * 8 <= sweep::done(0).0);
}

#[test]
fn no_guest_lies_where_firmware_and_video_memory_are() {
    for (guest, pieces) in all_placed() {
        for piece in &pieces {
            let apart = end(piece) <= 0xa_0000 || piece.0.0 >= 0x10_0000;
            assert!(apart, "{}: {}", guest.name, piece.0);
        }
    }
}

#[test]
fn every_guest_begins_inside_what_was_placed() {
    for (guest, pieces) in all_placed() {
        let entry = (guest.entry)();
        let base = match entry.mode {
            EntryMode::Real { segment } => u64::from(segment) << 4,
            EntryMode::Protected | EntryMode::Long { .. } => 0,
        };
        let first = placed(&pieces, Gpa(base + entry.rip.0), 1);
        assert!(first.is_some_and(|byte| byte != [0]), "{}", guest.name);
    }
}

#[test]
fn a_64_bit_entry_has_its_tables_and_its_descriptors_placed() {
    for (guest, pieces) in all_placed() {
        let EntryMode::Long { cr3, gdt, gdt_limit, code, data, cpl } = (guest.entry)().mode else {
            continue;
        };
        assert_eq!(placed(&pieces, cr3, 8).unwrap()[0] & 1, 1, "{}: cr3", guest.name);
        let table = placed(&pieces, gdt, usize::from(gdt_limit) + 1).unwrap();
        let descriptor = |selector: u16| {
            let offset = usize::from(selector & !7);
            u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
        };
        assert_eq!(descriptor(0), 0);
        // Present, code or data, and already accessed; the privilege level that was said.
        let flags = |selector| descriptor(selector) >> 40 & 0xff;
        assert_eq!(flags(code), 0x9b | u64::from(cpl) << 5, "{}: code", guest.name);
        assert_eq!(flags(data), 0x93 | u64::from(cpl) << 5, "{}: data", guest.name);
        assert_eq!(descriptor(code) >> 53 & 1, 1, "{}: 64-bit code", guest.name);
    }
}

#[test]
fn images_end_before_what_comes_after_them() {
    for guest in ALL {
        let image = (guest.image)();
        assert!(!image.is_empty(), "{}", guest.name);
        assert!(image.len() as u64 <= places::IMAGE_BYTES, "{}", guest.name);
    }
}

#[test]
fn a_machine_too_small_is_refused_with_both_numbers() {
    for guest in ALL {
        let small = machine(guest.memory_bytes.next_multiple_of(4096) - 4096);
        let refused = guest.pieces(&small, 1).unwrap_err().to_string();
        for number in [guest.memory_bytes, small.low().len()] {
            assert!(refused.contains(&number.to_string()), "{refused}");
        }
        let enough = machine(guest.memory_bytes.next_multiple_of(4096));
        assert!(guest.pieces(&enough, 1).is_ok(), "{}", guest.name);
    }
}

#[test]
fn no_vcpu_and_one_too_many_are_refused() {
    let memory = machine(128 << 20);
    for guest in ALL {
        let most = guest.most_vcpus;
        assert!(guest.pieces(&memory, most).is_ok());
        for vcpus in [0, most + 1] {
            let refused = Unsuitable::Vcpus { name: guest.name, most, vcpus };
            assert_eq!(guest.pieces(&memory, vcpus), Err(refused));
        }
    }
}
