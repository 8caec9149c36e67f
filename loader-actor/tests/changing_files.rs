//! Somebody changes a file between its check and its copying.

mod common;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use actors::contract::boot::MemoryPort;
use common::{
    CODE, Files, Header, LOAD, MIB, NOTE, bzimage, elf, load_of, odd, payload, put, pvh_elf,
    pvh_note,
};
use loader_actor::{InputError, LoadError, Role, place};
use vm_memory::{Bytes, GuestAddress};

/// Writes over the file's bytes without making it another file.
fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn assert_code_is_at(port: &dyn MemoryPort, at: u64, code: &[u8]) {
    let mut bytes = vec![0; code.len()];
    port.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    assert_eq!(bytes, code);
}

#[test]
fn the_headers_that_were_checked_are_the_headers_that_are_followed() {
    let files = Files::new();
    let path = files.with("vmlinux", &pvh_elf());
    // The segment now pretends to be longer, and to belong elsewhere.
    let mut other = pvh_elf();
    put(&mut other, 64 + 24, (32 * MIB).to_le_bytes());
    put(&mut other, 64 + 32, u64::MAX.to_le_bytes());
    let changed = path.clone();
    let port = odd(move || overwrite(&changed, 0, &other[..0x200]));
    place(&load_of(&path), port.memory.layout(), port.as_ref()).unwrap();
    assert_code_is_at(port.as_ref(), MIB, CODE);
    assert_code_is_at(port.as_ref(), 32 * MIB, &[0; 64]);
}

#[test]
fn a_segment_that_contains_its_own_headers_is_copied_as_it_was_checked() {
    let files = Files::new();
    let note = pvh_note(0x10_0100);
    let len = 0x200 + note.len() as u64;
    let headers = [
        Header { kind: LOAD, offset: 0, at: MIB, file_len: len, memory_len: len },
        Header { kind: NOTE, offset: 0x200, at: 0, file_len: note.len() as u64, memory_len: 0 },
    ];
    let image = elf(0, &headers, &[(0x100, b"code"), (0x200, &note)]);
    let path = files.with("vmlinux", &image);
    let changed = path.clone();
    let port = odd(move || overwrite(&changed, 0x1f0, &[0xee; 0x20]));
    place(&load_of(&path), port.memory.layout(), port.as_ref()).unwrap();
    assert_code_is_at(port.as_ref(), MIB, &image[..0x1f0]);
    // Between header and note there was nothing to check: that is as it is now.
    assert_code_is_at(port.as_ref(), MIB + 0x1f0, &[0xee; 0x10]);
    assert_code_is_at(port.as_ref(), MIB + 0x200, &note);
}

#[test]
fn so_it_is_with_a_bzimage() {
    let files = Files::new();
    let path = files.with("vmlinuz", &bzimage(&payload()));
    let changed = path.clone();
    let port = odd(move || overwrite(&changed, 0x1f1, &[0xff; 0x40]));
    place(&load_of(&path), port.memory.layout(), port.as_ref()).unwrap();
    assert_code_is_at(port.as_ref(), 2 * MIB, &payload());
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_named_and_everything_is_given_back() {
    for (name, image) in [("vmlinux", pvh_elf()), ("vmlinuz", bzimage(&payload()))] {
        let files = Files::new();
        let path = files.with(name, &image);
        let shrink = |path: PathBuf| move || fs::File::create(&path).unwrap().set_len(0).unwrap();
        let port = odd(shrink(path.clone()));
        let refused = place(&load_of(&path), port.memory.layout(), port.as_ref()).unwrap_err();
        let expected = InputError::Shrank { role: Role::Kernel, path };
        assert_eq!(refused, LoadError::Input(expected));
        let record = port.memory.record();
        assert_eq!(record.len(), 1);
        assert!(!record[0].1, "given back, and not installed");
    }
}

#[test]
fn a_file_that_grows_is_read_as_far_as_it_reached() {
    let files = Files::new();
    let path = files.with("grows.bin", &[1; 100]);
    let changed = path.clone();
    let port = odd(move || overwrite(&changed, 100, &[2; 100]));
    let loaded = place(&load_of(&path), port.memory.layout(), port.as_ref()).unwrap();
    assert!(loaded.bytes >= 100);
    assert_code_is_at(port.as_ref(), 0x1000, &[[1; 100], [0; 100]].concat());
}
