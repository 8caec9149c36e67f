//! The ACPI tables as an operating system reads them.

use std::collections::BTreeMap;
use std::process::Command;

use actors::platform;
use loader_actor::{BadProcessorCount, acpi};

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(&bytes[at..at + N]);
    u64::from_le_bytes(wide)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a physical address, as long as it says it is.
fn table_at(area: &[u8], address: u64) -> &[u8] {
    let at = usize::try_from(address - platform::ACPI_TABLES.0).unwrap();
    let len = usize::try_from(number::<4>(area, at + 4)).unwrap();
    &area[at..at + len]
}

/// Every table that can be reached from the root pointer, by its signature.
fn tables(area: &[u8]) -> BTreeMap<String, &[u8]> {
    let name = |table: &[u8]| String::from_utf8(table[..4].to_vec()).unwrap();
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!((sum(&area[..20]), sum(&area[..36])), (0, 0));
    let xsdt = table_at(area, number::<8>(area, 24));
    let mut found = BTreeMap::from([(name(xsdt), xsdt)]);
    for entry in xsdt[36..].chunks_exact(8) {
        let table = table_at(area, number::<8>(entry, 0));
        found.insert(name(table), table);
    }
    let fadt = found["FACP"];
    for pointer in [number::<4>(fadt, 36), number::<8>(fadt, 140)] {
        let table = table_at(area, pointer);
        found.insert(name(table), table);
    }
    found
}

/// The entries of the processor table: kind and contents.
fn processors(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (entry, after) = rest.split_at(rest[1].into());
        entries.push((entry[0], &entry[2..]));
        rest = after;
    }
    entries
}

#[test]
fn every_table_is_found_from_the_root_and_adds_up_to_zero() {
    let area = acpi::tables(4).unwrap();
    let tables = tables(&area);
    assert_eq!(Vec::from_iter(tables.keys()), ["APIC", "DSDT", "FACP", "FACS", "XSDT"]);
    for (name, table) in tables.iter().filter(|(name, _)| *name != "FACS") {
        assert_eq!(sum(table), 0, "{name}");
    }
}

#[test]
fn the_lock_is_64_bytes_at_a_multiple_of_64() {
    let area = acpi::tables(1).unwrap();
    let tables = tables(&area);
    let facs = number::<4>(tables["FACP"], 36);
    assert_eq!((facs % 64, tables["FACS"].len()), (0, 64));
}

#[test]
fn there_is_one_processor_entry_per_vcpu_and_its_apic_id_is_its_number() {
    for vcpus in [1, 4, 255] {
        let area = acpi::tables(vcpus).unwrap();
        let entries = processors(tables(&area)["APIC"]);
        let ids: Vec<u16> = entries
            .iter()
            .filter(|(kind, entry)| *kind == 0 && entry[2..] == [1, 0, 0, 0])
            .map(|(_, entry)| entry[1].into())
            .collect();
        assert_eq!(ids, Vec::from_iter(0..vcpus));
    }
}

#[test]
fn processors_beyond_eight_bits_have_the_long_kind_of_entry() {
    let area = acpi::tables(300).unwrap();
    let entries = processors(tables(&area)["APIC"]);
    let short = entries.iter().filter(|(kind, _)| *kind == 0).count();
    let long: Vec<u64> = entries
        .iter()
        .filter(|(kind, _)| *kind == 9)
        .map(|(_, entry)| number::<4>(entry, 2))
        .collect();
    assert_eq!((short, long), (255, Vec::from_iter(255..300)));
}

#[test]
fn the_timer_and_the_acpi_interrupt_are_wired_as_the_platform_says() {
    let area = acpi::tables(1).unwrap();
    let tables = tables(&area);
    let entries = processors(tables["APIC"]);
    let overrides: Vec<_> = entries
        .iter()
        .filter(|(kind, _)| *kind == 2)
        .map(|(_, entry)| (entry[1], number::<4>(entry, 2), number::<2>(entry, 6)))
        .collect();
    assert_eq!(overrides, [(0, 2, 0), (9, 9, 0xd)]);
    let io_apic = entries.iter().find(|(kind, _)| *kind == 1).unwrap().1;
    assert_eq!((number::<4>(io_apic, 2), number::<4>(io_apic, 6)), (0xfec0_0000, 0));
    assert_eq!(number::<4>(tables["APIC"], 36), 0xfee0_0000);
    assert_eq!(number::<2>(tables["FACP"], 46), 9, "the ACPI interrupt");
}

#[test]
fn powering_off_and_resetting_lead_to_the_platforms_ports() {
    let area = acpi::tables(1).unwrap();
    let tables = tables(&area);
    let fadt = tables["FACP"];
    assert_eq!((fadt[8], fadt.len()), (6, 276));
    assert_eq!((number::<4>(fadt, 56), fadt[88]), (0x600, 4), "events");
    assert_eq!((number::<4>(fadt, 64), fadt[89]), (0x604, 2), "control");
    // The same again as generic addresses: port space, width in bits, port.
    assert_eq!((fadt[148], fadt[149], number::<8>(fadt, 152)), (1, 32, 0x600));
    assert_eq!((fadt[172], fadt[173], number::<8>(fadt, 176)), (1, 16, 0x604));
    assert_eq!((fadt[116], fadt[117], number::<8>(fadt, 120)), (1, 8, 0xcf9), "reset");
    assert_eq!(fadt[128], 6, "what to write there");
    let flags = number::<4>(fadt, 112);
    assert_eq!(flags & (1 << 10), 1 << 10, "the reset register is there");
    assert_eq!(flags & (1 << 20), 0, "not hardware-reduced");
    // Name (_S5_, Package (4) { 5, 0, 0, 0 })
    let s5 = b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x00\x0a\x00\x0a\x00";
    let short = b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00";
    let dsdt = tables["DSDT"];
    assert!(
        dsdt.windows(s5.len()).any(|bytes| bytes == s5)
            || dsdt.windows(short.len()).any(|bytes| bytes == short),
        "{dsdt:02x?}"
    );
}

#[test]
fn impossible_numbers_of_processors_are_refused() {
    assert_eq!(acpi::tables(0), Err(BadProcessorCount::Zero));
    assert_eq!(acpi::tables(u16::MAX), Err(BadProcessorCount::TooMany { vcpus: u16::MAX }));
    let most = acpi::tables(8000).unwrap();
    assert!(most.len() <= 128 << 10);
}

/// Intel's disassembler finds fault with nothing. Skipped, aloud, where it is not installed
/// (Debian: acpica-tools).
#[test]
fn iasl_reads_every_table() {
    let area = acpi::tables(300).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, table) in tables(&area) {
        let file = format!("{}.dat", name.to_lowercase());
        std::fs::write(folder.path().join(&file), table).unwrap();
        let answer = Command::new("iasl").arg("-d").arg(&file).current_dir(&folder).output();
        let Ok(answer) = answer else {
            eprintln!("skipped: iasl is not installed (Debian: apt-get install acpica-tools)");
            return;
        };
        let said = [answer.stdout, answer.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let listing = folder.path().join(file.replace(".dat", ".dsl"));
        let listing = std::fs::read_to_string(listing).unwrap();
        let complaints = ["Error", "Warning", "Invalid", "Unknown", "checksum should be"];
        for text in [&said, &listing] {
            let complaint = complaints.iter().find(|word| text.contains(*word));
            assert_eq!(complaint, None, "{name}: {text}");
        }
        assert!(answer.status.success(), "{name}: {said}");
    }
}
