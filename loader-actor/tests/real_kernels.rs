//! Distribution kernels, where there are some: `SKEP_TEST_KERNELS` names a folder of files
//! called `vmlinuz-*` (bzImage) and `vmlinux-*` (ELF). Skipped, aloud, without it.

mod common;

use std::path::PathBuf;

use actors::Gva;
use actors::contract::boot::EntryMode;
use common::{Files, MIB, TestMemory, cpio, load_of};

fn kernels(prefix: &str) -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("SKEP_TEST_KERNELS") else {
        eprintln!("skipped: SKEP_TEST_KERNELS names no folder of kernels");
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .collect();
    files.sort();
    assert_ne!(files.len(), 0, "SKEP_TEST_KERNELS has no {prefix}*");
    files
}

#[test]
fn real_bzimages_are_placed_where_they_prefer() {
    let files = Files::new();
    for path in kernels("vmlinuz-") {
        for bytes in [128 * MIB, 512 * MIB, 4096 * MIB] {
            let memory = TestMemory::of(bytes);
            let mut load = load_of(&path);
            load.initrd = Some(files.with("initrd", &cpio("init", &[7; 1 << 20])));
            load.cmdline = "console=ttyS0 panic=-1".to_owned();
            load.vcpus = 4;
            let loaded = memory.place(&load).unwrap();
            eprintln!("{}: {loaded:x?}", path.display());
            assert_eq!(loaded.entry.rip, Gva(0x100_0200));
            let image = std::fs::read(&path).unwrap();
            let setup = (usize::from(image[0x1f1]) + 1) * 512;
            let placed = memory.long_bytes(0x100_0000, 10 << 20);
            assert!(placed[..] == image[setup..setup + (10 << 20)]);
        }
    }
}

#[test]
fn real_vmlinuxes_begin_at_their_pvh_entry() {
    for path in kernels("vmlinux-") {
        for bytes in [128 * MIB, 4096 * MIB] {
            let memory = TestMemory::of(bytes);
            let started = std::time::Instant::now();
            let loaded = memory.place(&load_of(&path)).unwrap();
            eprintln!("{}: {loaded:x?} in {:?}", path.display(), started.elapsed());
            assert_eq!(loaded.format, "PVH ELF");
            assert_eq!(loaded.entry.mode, EntryMode::Protected);
            let segments = 0x100_0000..0x500_0000;
            assert!(segments.contains(&loaded.entry.rip.0));
        }
    }
}

#[test]
fn a_guest_too_small_for_its_kernel_is_told_so() {
    for path in kernels("vmlinux-").into_iter().chain(kernels("vmlinuz-")) {
        for bytes in [64 << 10, MIB, 16 * MIB, 32 * MIB] {
            let refused = TestMemory::of(bytes).place(&load_of(&path)).unwrap_err();
            eprintln!("{refused}");
            assert!(refused.to_string().contains("lies outside the guest's memory"));
        }
    }
}
