//! Linux begins: as a bzImage, and as an ELF with and without a PVH note.

mod common;

use actors::contract::boot::{EntryMode, EntryState};
use actors::{Gpa, Gva, platform};
use common::{
    CODE, Files, Header, LOAD, MIB, NOTE, TestMemory, bzimage, cpio, elf, load_of, pages, payload,
    pvh_elf, pvh_note,
};

const ZERO_PAGE: u64 = 0x7000;
const START_INFO: u64 = 0x6000;

#[test]
fn a_bzimage_begins_at_its_64_bit_entry_with_the_zero_page_in_rsi() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    let loaded = memory.place(&load).unwrap();
    assert_eq!(loaded.format, "Linux bzImage");
    assert_eq!(loaded.entry.rip, Gva(2 * MIB + 0x200));
    assert_eq!(loaded.entry.rsi, ZERO_PAGE);
    assert_eq!(
        loaded.entry.mode,
        EntryMode::Long {
            cr3: Gpa(0x8000),
            gdt: Gpa(0x5000),
            gdt_limit: 31,
            code: 0x10,
            data: 0x18,
            cpl: 0
        }
    );
    assert_eq!(memory.long_bytes(2 * MIB, payload().len()), payload());
    // Page tables: root to the next, and 2 MiB onto themselves at the end.
    assert_eq!(memory.u64(0x8000), 0x9003);
    assert_eq!(memory.u64(0xa000 + 8), 0x20_0083);
    assert_eq!(memory.u64(0x5010), 0x00af_9b00_0000_ffff);
}

#[test]
fn the_zero_page_says_where_everything_is() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    let archive = cpio("init", b"#!/bin/sh");
    load.initrd = Some(files.with("initrd", &archive));
    load.cmdline = "console=ttyS0".to_owned();
    memory.place(&load).unwrap();

    let cmdline = u64::from(memory.u32(ZERO_PAGE + 0x228));
    assert_eq!(&memory.bytes(cmdline), b"console=ttyS0\0");
    let initrd = u64::from(memory.u32(ZERO_PAGE + 0x218));
    assert_eq!(memory.u32(ZERO_PAGE + 0x21c) as usize, archive.len());
    assert_eq!(initrd, 64 * MIB - 4096, "the last page of memory has room for it");
    assert_eq!(memory.long_bytes(initrd, archive.len()), archive);
    assert_eq!(memory.u64(ZERO_PAGE + 0x70), platform::ACPI_TABLES.0);
    assert_eq!(&memory.bytes(platform::ACPI_TABLES.0), b"RSD PTR ");
    assert_eq!(memory.bytes(ZERO_PAGE + 0x210), [0xff], "type_of_loader");
    assert_eq!(&memory.bytes(ZERO_PAGE + 0x202), b"HdrS");
    // Three lines of memory map: address, length, kind; the last one is all above 1 MiB.
    assert_eq!(memory.bytes(ZERO_PAGE + 0x1e8), [3]);
    let last = ZERO_PAGE + 0x2d0 + 2 * 20;
    assert_eq!((memory.u64(last), memory.u64(last + 8)), (MIB, 63 * MIB));
    assert_eq!(memory.u32(last + 16), 1);
}

#[test]
fn header_bytes_that_the_file_does_not_own_are_not_handed_on() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut image = bzimage(&payload());
    image[0x201] = 0x62; // the header ends at 0x264: before handover_offset
    image[0x264..0x270].fill(0xee);
    memory.place(&load_of(&files.with("vmlinuz", &image))).unwrap();
    assert_eq!(memory.u32(ZERO_PAGE + 0x260), 0x10_0000, "init_size is inside the header");
    assert_eq!(memory.u32(ZERO_PAGE + 0x264), 0);
}

#[test]
fn what_follows_a_bzimage_in_its_file_is_not_loaded() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let signed = [bzimage(&payload()), b"a signature".repeat(500)].concat();
    memory.place(&load_of(&files.with("vmlinuz", &signed))).unwrap();
    assert_eq!(memory.bytes(2 * MIB + payload().len() as u64), [0; 64]);
}

#[test]
fn the_initrd_stays_below_the_kernels_limit_and_off_the_kernel() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut image = bzimage(&payload());
    common::put(&mut image, 0x22c, 0x2f_ffffu32.to_le_bytes()); // initrd_addr_max
    let mut load = load_of(&files.with("vmlinuz", &image));
    load.initrd = Some(files.with("initrd", &cpio("init", &[1; 5000])));
    memory.place(&load).unwrap();
    // The kernel has 2 MiB to 3 MiB; the limit is 3 MiB: below the kernel there is room.
    assert_eq!(memory.u32(ZERO_PAGE + 0x218), 0x20_0000 - 0x2000);
}

#[test]
fn a_pvh_kernel_begins_in_32_bit_mode_with_the_start_info_in_rbx() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut load = load_of(&files.with("vmlinux", &pvh_elf()));
    let archive = cpio("init", b"#!/bin/sh");
    load.initrd = Some(files.with("initrd", &archive));
    load.cmdline = "quiet".to_owned();
    let loaded = memory.place(&load).unwrap();
    assert_eq!(loaded.format, "PVH ELF");
    let expected = EntryState {
        mode: EntryMode::Protected,
        rip: Gva(0x10_0004),
        rsp: Gva(0),
        rsi: 0,
        rbx: START_INFO,
        rflags: 2,
    };
    assert_eq!(loaded.entry, expected);
    assert_eq!(memory.long_bytes(MIB, CODE.len()), CODE);

    assert_eq!(memory.u32(START_INFO), 0x336e_c578);
    assert_eq!(memory.u32(START_INFO + 4), 1, "version");
    assert_eq!(memory.u32(START_INFO + 12), 1, "modules");
    let module = memory.u64(START_INFO + 16);
    assert_eq!(memory.u64(module), 64 * MIB - 4096);
    assert_eq!(memory.u64(module + 8), archive.len() as u64);
    assert_eq!(&memory.bytes(memory.u64(START_INFO + 24)), b"quiet\0");
    assert_eq!(memory.u64(START_INFO + 32), platform::ACPI_TABLES.0);
    let map = memory.u64(START_INFO + 40);
    assert_eq!(memory.u32(START_INFO + 48), 3, "lines of memory map");
    assert_eq!((memory.u64(map), memory.u64(map + 8)), (0, 0x9_fc00));
    assert_eq!((memory.u64(map + 48), memory.u64(map + 56)), (MIB, 63 * MIB));
}

#[test]
fn an_elf_without_a_pvh_note_begins_in_64_bit_mode() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let code =
        Header { kind: LOAD, offset: 0x1000, at: MIB, file_len: CODE.len() as u64, memory_len: 64 };
    let image = elf(MIB + 1, &[code], &[(0x1000, CODE)]);
    let loaded = memory.place(&load_of(&files.with("vmlinux", &image))).unwrap();
    assert_eq!(loaded.format, "64-bit ELF");
    assert!(matches!(loaded.entry.mode, EntryMode::Long { .. }));
    assert_eq!((loaded.entry.rip, loaded.entry.rsi), (Gva(MIB + 1), ZERO_PAGE));
    assert_eq!(&memory.bytes(ZERO_PAGE + 0x202), b"HdrS");
}

#[test]
fn memory_above_four_gib_is_in_both_memory_maps() {
    let files = Files::new();
    let memory = TestMemory::of(4096 * MIB);
    memory.place(&load_of(&files.with("vmlinuz", &bzimage(&payload())))).unwrap();
    assert_eq!(memory.bytes(ZERO_PAGE + 0x1e8), [4]);
    let last = ZERO_PAGE + 0x2d0 + 3 * 20;
    assert_eq!((memory.u64(last), memory.u64(last + 8)), (4096 * MIB, 1024 * MIB));

    let memory = TestMemory::of(4096 * MIB);
    memory.place(&load_of(&files.with("vmlinux", &pvh_elf()))).unwrap();
    let map = memory.u64(START_INFO + 40);
    assert_eq!((memory.u64(map + 72), memory.u64(map + 80)), (4096 * MIB, 1024 * MIB));
}

#[test]
fn only_the_pages_that_are_written_are_held_and_all_are_installed() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let loaded = memory.place(&load_of(&files.with("vmlinux", &pvh_elf()))).unwrap();
    let record = memory.record();
    assert_eq!(record.len(), 1);
    assert!(record[0].1, "installed");
    // Start info, command line (its zero), tables, code; the zeroes behind the code are not
    // written, so their two pages are not among them.
    let expected = [0x6000, 0x2_0000, 0xe_0000, 0x10_0000].map(Gpa);
    assert_eq!(pages(&record), expected);
    assert!(loaded.bytes < 4 * 4096);
}

#[test]
fn an_archive_of_many_files_is_accepted_and_so_is_whatever_follows_its_trailer() {
    let files = Files::new();
    let mut load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    let trailer = cpio("x", &[]).len() - 112; // the first entry has no contents
    let many: Vec<u8> = (0..3000usize)
        .flat_map(|n| {
            let mut one = cpio(&format!("file-{n}"), &vec![7; n % 90]);
            one.truncate(one.len() - trailer);
            one
        })
        .collect();
    let archive = [many, cpio("last", &[1; 20_000]), b"\x1f\x8b another one".to_vec()].concat();
    load.initrd = Some(files.with("initrd", &archive));
    TestMemory::of(64 * MIB).place(&load).unwrap();
}

#[test]
fn the_pvh_entry_is_found_among_other_notes_and_only_if_it_is_xens() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut stranger = pvh_note(0xdead);
    stranger[12..16].copy_from_slice(b"Yen\0");
    // A note whose name and contents are both padded: "GNUx" of five bytes, three of contents.
    let mut odd = Vec::new();
    [5u32, 3, 1].iter().for_each(|number| odd.extend(number.to_le_bytes()));
    odd.extend(b"GNUx\0\0\0\0abc\0");
    let notes = [stranger, odd, pvh_note(0x10_0002)].concat();
    let headers = [
        Header { kind: LOAD, offset: 0x1000, at: MIB, file_len: 16, memory_len: 16 },
        Header { kind: NOTE, offset: 0x200, at: 0, file_len: notes.len() as u64, memory_len: 0 },
    ];
    let image = elf(0, &headers, &[(0x200, &notes), (0x1000, CODE)]);
    let loaded = memory.place(&load_of(&files.with("vmlinux", &image))).unwrap();
    assert_eq!((loaded.format, loaded.entry.rip), ("PVH ELF", Gva(0x10_0002)));
}

#[test]
fn no_setup_sectors_mean_four() {
    let (files, memory) = (Files::new(), TestMemory::of(64 * MIB));
    let mut image = bzimage(&payload());
    image[0x1f1] = 0;
    image.splice(1024..1024, [0; 3 * 512]);
    memory.place(&load_of(&files.with("vmlinuz", &image))).unwrap();
    assert_eq!(memory.long_bytes(2 * MIB, payload().len()), payload());
}
