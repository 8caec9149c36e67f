//! Whatever the bytes are: no panic, no write outside a hold, and a guest that is accepted
//! begins inside what was placed for it.

mod common;

use actors::Gpa;
use actors::contract::boot::EntryMode;
use common::{Files, MIB, TestMemory, bzimage, cpio, load_of, pages, payload, pvh_elf};
use proptest::prelude::*;
use proptest::sample::Index;

/// Numbers that headers get wrong.
fn wicked_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(MIB),
        (0..64u32).prop_map(|shift| 1 << shift),
        (0..64u32).prop_map(|shift| (1 << shift) - 1),
        (0..64u32).prop_map(|shift| u64::MAX << shift),
    ]
}

/// Some bytes of `good`'s first `header` bytes changed, and perhaps its end cut off.
fn mutated(good: Vec<u8>, header: usize) -> impl Strategy<Value = Vec<u8>> {
    let change = (0..header, wicked_number(), 1..=8usize);
    let changes = prop::collection::vec(change, 0..4);
    (changes, prop::option::of(any::<Index>())).prop_map(move |(changes, cut)| {
        let mut bytes = good.clone();
        for (at, number, len) in changes {
            let end = (at + len).min(bytes.len());
            bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
        }
        bytes.truncate(cut.map_or(good.len(), |cut| cut.index(good.len() + 1)));
        bytes
    })
}

/// Loads a kernel with an initrd and checks what must hold for any bytes.
fn survives(name: &str, kernel: &[u8], initrd: Option<&[u8]>) -> Result<(), TestCaseError> {
    let files = Files::new();
    let memory = TestMemory::of(4 * MIB);
    let mut load = load_of(&files.with(name, kernel));
    load.initrd = initrd.map(|bytes| files.with("initrd", bytes));
    let record = match memory.place(&load) {
        Err(refused) => {
            prop_assert_eq!(memory.record(), []);
            prop_assert!(refused.is_about_the_input() && !refused.to_string().contains('\n'));
            return Ok(());
        }
        Ok(loaded) => {
            let offset = loaded.entry.rip.0;
            let first = match loaded.entry.mode {
                EntryMode::Real { segment } => u64::from(segment) * 16 + offset,
                EntryMode::Protected | EntryMode::Long { .. } => offset,
            };
            let record = memory.record();
            prop_assert!(pages(&record).contains(&Gpa(first).page()), "begins at {:#x}", first);
            record
        }
    };
    prop_assert!(record.len() == 1 && record[0].1);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_elf(image in mutated(pvh_elf(), 0x220)) {
        survives("vmlinux", &image, None)?;
    }

    #[test]
    fn any_bzimage(image in mutated(bzimage(&payload()), 0x270)) {
        survives("vmlinuz", &image, Some(&cpio("init", &[1; 100])))?;
    }

    #[test]
    fn any_initrd(archive in mutated(cpio("init", &[1; 300]), 530)) {
        survives("vmlinuz", &bzimage(&payload()), Some(&archive))?;
    }

    #[test]
    fn any_bytes(
        magic in prop::sample::select(vec![&b""[..], b"\x7fELF\x02\x01", b"\x1f\x8b", b"070701"]),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        name in prop::sample::select(vec!["vmlinuz", "test.bin"]),
    ) {
        let image = [magic, &bytes].concat();
        survives(name, &image, None)?;
        survives("vmlinux", &pvh_elf(), Some(&image))?;
    }
}
