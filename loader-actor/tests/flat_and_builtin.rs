//! Guests without a file format: flat binaries, and those that come with skep.

mod common;

use actors::contract::boot::{BootSource, EntryMode};
use actors::{Gpa, Gva, PAGE_SIZE};
use common::{Files, MIB, TestMemory, load_of, pages};

#[test]
fn a_flat_binary_begins_in_real_mode_where_it_lies_with_its_stack_below() {
    let files = Files::new();
    let code = [0xb0, 0x2a, 0xe6, 0xf4]; // mov al, 42; out 0xf4, al
    for name in ["test.bin", "test.flat", "TEST.BIN"] {
        let memory = TestMemory::of(MIB);
        let loaded = memory.place(&load_of(&files.with(name, &code))).unwrap();
        assert_eq!(loaded.format, "flat binary");
        assert_eq!(loaded.entry.mode, EntryMode::Real { segment: 0 });
        assert_eq!((loaded.entry.rip, loaded.entry.rsp), (Gva(0x1000), Gva(0x1000)));
        assert_eq!(memory.bytes(0x1000), code);
    }
}

#[test]
fn a_flat_binary_is_not_a_kernel_by_its_name_only() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let loaded = memory.place(&load_of(&files.with("vmlinux.bin", &common::pvh_elf()))).unwrap();
    assert_eq!(loaded.format, "PVH ELF");
}

#[test]
fn the_biggest_flat_binary_fits_and_a_guest_of_64_kib_has_no_tables() {
    let files = Files::new();
    let biggest = vec![0x90; 0x9_e000];
    let memory = TestMemory::of(MIB);
    memory.place(&load_of(&files.with("big.bin", &biggest))).unwrap();
    assert_eq!(&memory.bytes(0xe_0000), b"RSD PTR ");

    let memory = TestMemory::of(64 << 10);
    let loaded = memory.place(&load_of(&files.with("small.bin", &[0xf4]))).unwrap();
    assert_eq!(loaded.bytes, 1);
    assert_eq!(pages(&memory.record()), [Gpa(0x1000)]);

    let refused = memory.place(&load_of(&files.path("big.bin"))).unwrap_err().to_string();
    assert!(refused.contains("the flat binary [0x1000, 0x9f000) lies outside"), "{refused}");
}

#[test]
fn every_built_in_guest_is_placed_and_begins_inside_what_was_placed() {
    for name in loader_actor::guests::names() {
        let memory = TestMemory::of(256 * MIB);
        let mut load = load_of("".as_ref());
        load.source = BootSource::Builtin(name);
        let loaded = memory.place(&load).unwrap();
        assert_eq!(loaded.format, "built-in guest");
        let held = pages(&memory.record());
        let first = match loaded.entry.mode {
            EntryMode::Real { segment } => u64::from(segment) * 16 + loaded.entry.rip.0,
            EntryMode::Protected | EntryMode::Long { .. } => loaded.entry.rip.0,
        };
        assert!(held.contains(&Gpa(first).page()), "{name} begins at {first:#x}");
        assert!(held.len() as u64 * PAGE_SIZE < 2 * MIB, "{name} is small");
    }
}
