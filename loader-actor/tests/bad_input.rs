//! Whatever cannot be booted is refused in one sentence, nothing is held afterwards, and
//! nothing was written.

mod common;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use actors::contract::boot::BootSource;
use actors::contract::space::SpaceError;
use common::{
    CODE, Files, Header, LOAD, MIB, NOTE, TestMemory, bzimage, cpio, elf, load_of, payload, put,
    pvh_elf, pvh_note,
};
use loader_actor::LoadError;

/// Why a file with this name and these bytes is refused by a 64 MiB guest.
fn refusal_of(name: &str, bytes: &[u8]) -> String {
    let files = Files::new();
    refusal(&files.with(name, bytes)).replace(&format!("{}", files.path("").display()), "")
}

fn refusal(kernel: &Path) -> String {
    let memory = TestMemory::of(64 * MIB);
    let refused = memory.place(&load_of(kernel)).unwrap_err();
    assert_eq!(memory.record(), [], "a refused guest holds nothing");
    assert!(refused.is_about_the_input());
    refused.to_string()
}

/// The same for an initrd beside a good kernel.
fn refusal_of_initrd(bytes: &[u8]) -> String {
    let files = Files::new();
    let mut load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    load.initrd = Some(files.with("initrd", bytes));
    let memory = TestMemory::of(64 * MIB);
    let refused = memory.place(&load).unwrap_err().to_string();
    assert_eq!(memory.record(), [], "a refused guest holds nothing");
    refused.replace(&format!("{}", files.path("").display()), "")
}

fn refusal_of_command_line(kernel: &[u8], cmdline: &str) -> String {
    let files = Files::new();
    let mut load = load_of(&files.with("kernel", kernel));
    load.cmdline = cmdline.to_owned();
    TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string()
}

#[test]
fn a_missing_file_is_named() {
    let refused = refusal(Path::new("/no/such/kernel"));
    assert_eq!(
        refused,
        "cannot open the kernel /no/such/kernel: No such file or directory (os error 2)"
    );
}

#[test]
fn only_regular_files_are_read() {
    let files = Files::new();
    let pipe = files.path("pipe");
    let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
    make_pipe(&name);
    for (path, kind) in [
        (files.path(""), "a directory"),
        (pipe, "a pipe"),
        ("/dev/zero".into(), "a character device"),
    ] {
        let expected = format!("the kernel {} is {kind}, not a file", path.display());
        assert_eq!(refusal(&path), expected);
    }
}

/// A named pipe nobody writes to.
fn make_pipe(name: &std::ffi::CStr) {
    let made = std::process::Command::new("mkfifo").arg(name.to_str().unwrap()).status().unwrap();
    assert!(made.success());
}

#[test]
fn a_file_that_may_not_be_read_is_refused_with_the_systems_reason() {
    let files = Files::new();
    let path = files.with("vmlinuz", &bzimage(&payload()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o0)).unwrap();
    if std::fs::read(&path).is_ok() {
        eprintln!("skipped: this user may read everything");
        return;
    }
    assert!(refusal(&path).contains("Permission denied"));
}

#[test]
fn an_empty_file_is_refused() {
    assert_eq!(refusal_of("vmlinuz", &[]), "the kernel vmlinuz is empty");
    // Empty at second sight: it has a length of 0 and would have bytes.
    assert!(refusal(Path::new("/proc/version")).contains("is empty"));
}

#[test]
fn garbage_is_refused_unless_its_name_says_that_it_is_meant() {
    for garbage in [&b"x"[..], b"#!/bin/sh\n", &[0x90; 5000], &[0; 512], &[0xff; 700]] {
        assert_eq!(
            refusal_of("vmlinuz", garbage),
            "the kernel vmlinuz is nothing that can be booted here: it is neither a Linux bzImage \
             nor an ELF (a flat 16-bit binary must be named *.bin or *.flat)"
        );
    }
}

#[test]
fn a_compressed_kernel_is_told_apart_from_garbage() {
    assert_eq!(
        refusal_of("vmlinux.gz", &[0x1f, 0x8b, 8, 0]),
        "the kernel vmlinux.gz is compressed with gzip: unpack it first"
    );
    assert!(refusal_of("vmlinux.zst", &[0x28, 0xb5, 0x2f, 0xfd]).contains("zstd"));
}

#[test]
fn a_flat_binary_that_reaches_the_firmwares_area_is_refused() {
    assert_eq!(
        refusal_of("big.bin", &vec![0x90; 0x9_e001]),
        "the kernel big.bin is a flat binary of 647169 bytes: at most 647168 fit between 0x1000 \
         and 0x9f000"
    );
}

#[test]
fn a_bzimage_cut_short_anywhere_is_refused() {
    let whole = bzimage(&payload());
    let wanted = whole.len();
    for len in [1024, wanted - 1, wanted / 2, 1025, 620] {
        assert_eq!(
            refusal_of("vmlinuz", &whole[..len]),
            format!(
                "the kernel vmlinuz is a bzImage cut short: it has {len} bytes and its header \
                 announces {wanted}"
            )
        );
    }
    assert!(refusal_of("vmlinuz", &whole[..619]).contains("announces 620"));
}

/// A bzImage with one number changed.
fn bzimage_with<const N: usize>(at: usize, number: [u8; N]) -> String {
    let mut image = bzimage(&payload());
    put(&mut image, at, number);
    refusal_of("vmlinuz", &image)
}

#[test]
fn each_impossible_bzimage_header_has_its_own_sentence() {
    assert_eq!(
        bzimage_with(0x206, 0x0205u16.to_le_bytes()),
        "the kernel vmlinuz speaks Linux boot protocol 2.05: 2.12 or newer (Linux 3.8) is needed"
    );
    assert_eq!(
        bzimage_with(0x211, [0u8]),
        "the kernel vmlinuz is a Linux zImage for memory below 1 MiB: build a bzImage"
    );
    assert_eq!(
        bzimage_with(0x236, [0u8]),
        "the kernel vmlinuz is a 32-bit Linux: its header names no 64-bit entry point"
    );
    assert_eq!(
        bzimage_with(0x1f4, 0x20u32.to_le_bytes()),
        "the kernel vmlinuz is a bzImage of 512 bytes behind its setup code, which end before its \
         entry point"
    );
    let announced = 1024 + 16 * 0xffff_ffffu64;
    assert!(bzimage_with(0x1f4, [0xff; 4]).contains(&format!("announces {announced}")));
    assert!(bzimage_with(0x1f1, [0xff]).contains("cut short"), "setup sectors beyond the end");
}

#[test]
fn a_bzimage_that_wants_memory_that_is_not_there_is_refused() {
    assert_eq!(
        bzimage_with(0x258, (64 * MIB).to_le_bytes()),
        "the kernel [0x4000000, 0x4100000) lies outside the guest's memory, [0x0, 0x4000000): give \
         the guest more memory or use an image made for these addresses"
    );
    assert!(bzimage_with(0x260, 0x3f0_0000u32.to_le_bytes()).contains("lies outside"));
    assert!(bzimage_with(0x258, [0xff; 8]).contains("wraps around the address space"));
    // It is at least as long as its file, whatever it says.
    let mut modest = bzimage(&payload());
    put(&mut modest, 0x258, (64 * MIB - 0x1000).to_le_bytes());
    put(&mut modest, 0x260, 0u32.to_le_bytes());
    assert!(refusal_of("vmlinuz", &modest).contains("[0x3fff000, 0x4002000) lies outside"));
    assert_eq!(
        bzimage_with(0x258, 0u64.to_le_bytes()),
        "the kernel [0x0, 0x100000) overlaps the firmware's area [0x9fc00, 0x100000)"
    );
}

/// An ELF that has one segment of code at `at`, changed by `change`.
fn elf_with(change: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut image = pvh_elf();
    change(&mut image);
    refusal_of("vmlinux", &image)
}

#[test]
fn each_impossible_elf_header_has_its_own_sentence() {
    let cases: [(usize, &[u8], &str); 9] = [
        (4, &[1], "is a 32-bit ELF: only 64-bit kernels can be booted"),
        (5, &[2], "is a big-endian ELF: only x86-64 kernels can be booted"),
        (18, &[183, 0], "is an ELF for machine 183: only x86-64 (62) can be booted"),
        (
            16,
            &[4, 0],
            "is an ELF of type 4 (1 is an object file, 3 a library or movable program, 4 a core dump): only executables (2) can be booted",
        ),
        (54, &[55, 0], "is an ELF whose program headers have 55 bytes each instead of 56"),
        (32, &[63, 0], "is an ELF whose program headers begin at 0x3f, inside its file header"),
        (56, &[0xff, 0xff], "is an ELF with 65535 program headers: at most 64 are accepted"),
        (56, &[0, 0], "is an ELF that loads nothing: it has no segment with bytes in it"),
        (
            64,
            &[3, 0],
            "is a program for a running system, not a kernel: it asks for an interpreter",
        ),
    ];
    for (at, bytes, sentence) in cases {
        let refused = elf_with(|image| image[at..at + bytes.len()].copy_from_slice(bytes));
        assert_eq!(refused, format!("the kernel vmlinux {sentence}"));
    }
}

#[test]
fn an_elf_cut_short_is_refused_with_the_part_that_is_missing() {
    let whole = pvh_elf();
    let cut = |len: usize| refusal_of("vmlinux", &whole[..len]);
    assert_eq!(
        cut(63),
        "the kernel vmlinux is an ELF cut short: its header needs 64 bytes at 0x0, the file has 63"
    );
    assert!(cut(100).contains("its table of program headers needs 112 bytes at 0x40"));
    assert!(cut(0x1005).contains("a segment needs 30 bytes at 0x1000, the file has 4101"));
    let far = |image: &mut Vec<u8>| put(image, 32, u64::MAX.to_le_bytes());
    assert!(elf_with(far).contains("its table of program headers needs 112 bytes at 0xfff"));
}

/// Which number of a program header.
const OFFSET: usize = 8;
const PHYSICAL: usize = 24;
const FILE_LEN: usize = 32;
const MEMORY_LEN: usize = 40;

/// The good ELF with one number of its only segment changed.
fn segment_with(field: usize, number: u64) -> String {
    elf_with(|image| put(image, 64 + field, number.to_le_bytes()))
}

#[test]
fn each_impossible_segment_has_its_own_sentence() {
    assert_eq!(
        segment_with(MEMORY_LEN, 29),
        "the kernel vmlinux is an ELF whose segment 0 has 30 bytes in the file and only 29 in \
         memory"
    );
    assert!(segment_with(OFFSET, u64::MAX).contains("a segment needs 30 bytes at 0xffff"));
    assert!(segment_with(OFFSET, 0x2000).contains("a segment needs 30 bytes at 0x2000"));
    assert_eq!(
        segment_with(PHYSICAL, 63 * MIB),
        "the kernel vmlinux is an ELF whose PVH entry point 0x100004 lies in none of its \
         segments' physical addresses"
    );
    let huge = 1u64 << 40;
    let both = elf_with(|image| {
        put(image, 64 + FILE_LEN, huge.to_le_bytes());
        put(image, 64 + MEMORY_LEN, huge.to_le_bytes());
    });
    assert!(both.contains("a segment needs 1099511627776 bytes at 0x1000"));
    assert_eq!(
        segment_with(MEMORY_LEN, u64::MAX),
        "segment 0 of the kernel (0xffffffffffffffff bytes at 0x100000) wraps around the address \
         space"
    );
    assert_eq!(
        segment_with(MEMORY_LEN, 64 * MIB),
        "segment 0 of the kernel [0x100000, 0x4100000) lies outside the guest's memory, [0x0, \
         0x4000000): give the guest more memory or use an image made for these addresses"
    );
}

/// Code at 1 MiB with its entry there, and a second segment.
fn two_segments(at: u64, memory_len: u64) -> String {
    let code = |at, memory_len| Header {
        kind: LOAD,
        offset: 0x1000,
        at,
        file_len: CODE.len() as u64,
        memory_len,
    };
    let headers = [code(MIB, 0x1000), code(at, memory_len)];
    refusal_of("vmlinux", &elf(MIB, &headers, &[(0x1000, CODE)]))
}

#[test]
fn segments_may_meet_neither_each_other_nor_what_the_loader_puts_there() {
    assert_eq!(
        two_segments(MIB + 0xfff, 0x100),
        "segment 1 of the kernel [0x100fff, 0x1010ff) overlaps segment 0 of the kernel [0x100000, \
         0x101000)"
    );
    for (at, memory_len, other) in [
        (0x4000, 0x20, "the boot stack [0x4000, 0x5000)"),
        (0x5010, 0x20, "the descriptor table [0x5000, 0x5020)"),
        (0x7fff, 0x100, "the boot page tables [0x8000, 0xe000)"),
        (0x7000, 0x100, "the zero page [0x7000, 0x8000)"),
        (0x9_fbff, 0x100, "the firmware's area [0x9fc00, 0x100000)"),
        (0xe_0000, 0x100, "the firmware's area [0x9fc00, 0x100000)"),
    ] {
        let refused = two_segments(at, memory_len);
        assert!(refused.starts_with("segment 1 of the kernel"), "{refused}");
        assert!(refused.ends_with(&format!("overlaps {other}")), "{refused}");
    }
    // The command line is claimed after the segments.
    assert_eq!(
        two_segments(0x1_0000, 0x2_0000),
        "the command line [0x20000, 0x20001) overlaps segment 1 of the kernel [0x10000, 0x30000)"
    );
    assert!(two_segments(u64::MAX - 0xff, 0x100).contains("wraps around"));
    assert!(two_segments(3072 * MIB, 0x100).contains("lies outside the guest's memory"));
}

/// The good ELF with these notes instead of its own.
fn notes(notes: &[u8], len: u64) -> String {
    let headers = [
        Header { kind: LOAD, offset: 0x1000, at: MIB, file_len: 8, memory_len: 8 },
        Header { kind: NOTE, offset: 0x200, at: 0, file_len: len, memory_len: len },
    ];
    refusal_of("vmlinux", &elf(0, &headers, &[(0x200, notes), (0x1000, CODE)]))
}

#[test]
fn garbled_notes_are_refused() {
    let garbled = "is an ELF whose notes are garbled: one at byte 0x200 runs out of its section";
    for (at, number) in [(0, u32::MAX), (4, u32::MAX), (4, 5), (0, 9)] {
        let mut note = pvh_note(0x10_0000);
        put(&mut note, at, number.to_le_bytes());
        let refused = notes(&note, note.len() as u64);
        assert!(refused.ends_with(garbled), "{refused}");
    }
    assert!(notes(&pvh_note(0), 11).ends_with(garbled));
    let mut short = pvh_note(0x10_0000);
    put(&mut short, 4, 3u32.to_le_bytes());
    assert!(notes(&short, 20).contains("PVH entry note has 3 bytes instead of 4"));
    assert!(notes(&[0; 0x1_1000], 0x1_0001).contains("with 65537 bytes of notes"));
    assert!(notes(&[], 100_000).contains("with 100000 bytes of notes"));
    assert!(notes(&[], 0xfff0).contains("its note section needs 65520 bytes at 0x200"));
}

#[test]
fn an_initrd_that_is_none_is_refused() {
    let refused = refusal_of_initrd(b"nothing Linux knows");
    assert_eq!(
        refused,
        "the initrd initrd is neither a cpio archive (newc) nor a file system image nor compressed \
         with anything Linux unpacks"
    );
    assert_eq!(refusal_of_initrd(b""), "the initrd initrd is empty");
    let files = Files::new();
    let mut load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    load.initrd = Some(files.path("none"));
    let refused = TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string();
    assert!(refused.starts_with("cannot open the initrd"), "{refused}");
}

#[test]
fn a_cpio_archive_cut_short_or_garbled_is_refused() {
    let whole = cpio("init", &[7; 3000]);
    let cut = refusal_of_initrd(&whole[..2000]);
    assert_eq!(
        cut,
        "the initrd initrd is a cpio archive cut short: an entry needs 3116 bytes and the file has \
         2000, and there was no trailer before"
    );
    assert!(refusal_of_initrd(&whole[..3116]).contains("cut short"), "no trailer");
    assert!(refusal_of_initrd(&whole[..100]).contains("cut short"), "not one header");
    let mut garbled = whole.clone();
    garbled[3116] = b'x';
    let expected = "is a cpio archive that is garbled at byte 0xc2c: no entry begins there";
    assert!(refusal_of_initrd(&garbled).ends_with(expected));
    let mut garbled = whole;
    garbled[54..62].copy_from_slice(b"ffffffff");
    assert!(refusal_of_initrd(&garbled).contains("an entry needs 4294967411 bytes"));
    garbled[54..62].copy_from_slice(b"+fffffff");
    assert!(refusal_of_initrd(&garbled).contains("garbled at byte 0x0"));
}

#[test]
fn an_initrd_with_no_room_is_refused_before_it_is_read() {
    let files = Files::new();
    let mut load = load_of(&files.with("vmlinuz", &bzimage(&payload())));
    let huge = files.with("initrd", b"garbage, but that would be found out later");
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    load.initrd = Some(huge);
    let refused = TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string();
    assert_eq!(
        refused,
        "the initrd needs 1099511627776 bytes in one piece between 0x100000 and 0x4000000, and no \
         free stretch there is that long: give the guest more memory"
    );
}

#[test]
fn a_command_line_the_kernel_would_not_read_to_its_end_is_refused() {
    let long = "x".repeat(2048);
    for kernel in [bzimage(&payload()), pvh_elf()] {
        assert_eq!(
            refusal_of_command_line(&kernel, &long),
            "the command line has 2048 bytes: this kernel reads at most 2047"
        );
        let refused = refusal_of_command_line(&kernel, "quiet\0");
        assert!(refused.contains("zero byte at position 5"), "{refused}");
    }
    let mut terse = bzimage(&payload());
    put(&mut terse, 0x238, 5u32.to_le_bytes());
    assert!(refusal_of_command_line(&terse, "quiets").contains("at most 5"));
    let mut verbose = bzimage(&payload());
    put(&mut verbose, 0x238, [0xff; 4]);
    assert!(refusal_of_command_line(&verbose, &"x".repeat(65_536)).contains("at most 65535"));
}

#[test]
fn what_is_not_linux_takes_no_initrd() {
    let files = Files::new();
    let mut load = load_of(&files.with("test.bin", &[0xf4]));
    load.initrd = Some(files.with("initrd", &cpio("init", &[])));
    let refused = TestMemory::of(MIB).place(&load).unwrap_err();
    assert_eq!(refused.to_string(), "a flat binary takes no initrd: leave it out");
    load.source = BootSource::Builtin("hello");
    let refused = TestMemory::of(64 * MIB).place(&load).unwrap_err();
    assert_eq!(refused.to_string(), "a built-in guest takes no initrd: leave it out");
}

#[test]
fn an_unknown_built_in_guest_is_refused_with_the_list_of_those_there_are() {
    let mut load = load_of(Path::new(""));
    load.source = BootSource::Builtin("goodbye");
    let refused = TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string();
    let expected = "there is no built-in guest \"goodbye\": there are hello";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn too_many_vcpus_for_the_tables_are_refused() {
    let files = Files::new();
    let mut load = load_of(&files.with("vmlinux", &pvh_elf()));
    load.vcpus = 0;
    let none = TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string();
    assert_eq!(none, "a guest needs at least one vcpu");
    load.vcpus = u16::MAX;
    let many = TestMemory::of(64 * MIB).place(&load).unwrap_err().to_string();
    assert_eq!(many, "65535 vcpus do not fit into the 131072 bytes there are for ACPI tables");
}

#[test]
fn when_the_pmap_refuses_the_boot_ends_with_its_reason() {
    let files = Files::new();
    let dead = SpaceError::Dead("does not answer");
    let memory = TestMemory::refusing(64 * MIB, dead.clone());
    let refused = memory.place(&load_of(&files.with("vmlinux", &pvh_elf()))).unwrap_err();
    assert_eq!(refused, LoadError::Memory(dead));
    assert!(!refused.is_about_the_input());
    assert_eq!(
        refused.to_string(),
        "cannot reach guest memory to load the guest: the pmap actor does not answer"
    );
}
