//! A guest's memory without a pmap, and files to put into it.

#![expect(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use actors::contract::boot::{BootSource, Load, Loaded, MemoryPort};
use actors::contract::space::SpaceError;
use actors::layout::{LOWMEM_LIMIT, MemoryLayout};
use actors::{Gpa, GpaRange, PAGE_SIZE, Protection};
use loader_actor::{LoadError, place};
use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const MIB: u64 = 1 << 20;

/// Memory that keeps a record of its holds.
pub struct TestMemory {
    layout: MemoryLayout,
    memory: GuestMemoryMmap,
    held: Mutex<Vec<GpaRange>>,
    record: Mutex<Vec<(Vec<GpaRange>, bool)>>,
    refusal: Option<SpaceError>,
}

impl TestMemory {
    pub fn of(bytes: u64) -> Self {
        let layout = MemoryLayout::split(bytes, LOWMEM_LIMIT, 48).unwrap();
        let ranges: Vec<_> = layout
            .ranges()
            .map(|range| (GuestAddress(range.start().0), usize::try_from(range.len()).unwrap()))
            .collect();
        Self {
            layout,
            memory: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
            held: Mutex::new(Vec::new()),
            record: Mutex::new(Vec::new()),
            refusal: None,
        }
    }

    /// Memory whose owner always refuses.
    pub fn refusing(bytes: u64, refusal: SpaceError) -> Self {
        Self { refusal: Some(refusal), ..Self::of(bytes) }
    }

    pub fn layout(&self) -> MemoryLayout {
        self.layout
    }

    pub fn place(&self, load: &Load) -> Result<Loaded, LoadError> {
        let answer = place(load, self.layout, self);
        assert_eq!(*self.held.lock(), [], "everything held is given back, whatever happened");
        self.assert_only_held_pages_were_written();
        answer
    }

    /// What was held and given back, and whether it was installed then.
    pub fn record(&self) -> Vec<(Vec<GpaRange>, bool)> {
        self.record.lock().clone()
    }

    pub fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn long_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// The first 256 MiB of each range are looked at: more would take long, and nothing in
    /// these tests writes further up than the end of low memory.
    fn assert_only_held_pages_were_written(&self) {
        let record = self.record.lock();
        let held = |gpa| record.iter().flat_map(|(ranges, _)| ranges).any(|r| r.contains(gpa));
        let mut page = vec![0; usize::try_from(PAGE_SIZE).unwrap()];
        let zeroes = page.clone();
        for range in self.layout.ranges() {
            for gpa in range.iter_pages().take(65_536).filter(|gpa| !held(*gpa)) {
                self.memory.read_slice(&mut page, GuestAddress(gpa.0)).unwrap();
                assert!(page == zeroes, "{gpa} was written without a hold");
            }
        }
    }
}

impl MemoryPort for TestMemory {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn hold(&self, ranges: &[GpaRange], access: Protection) -> Result<(), SpaceError> {
        assert_eq!(access, Protection::WRITE);
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let mut held = self.held.lock();
        for range in ranges {
            assert!(self.layout.covers(*range), "{range} is not memory");
            assert!(held.iter().all(|other| other.intersection(*range).is_none()));
            held.push(*range);
        }
        Ok(())
    }

    fn release(&self, ranges: &[GpaRange], install: bool) {
        self.held.lock().retain(|held| !ranges.contains(held));
        self.record.lock().push((ranges.to_vec(), install));
    }
}

/// A port whose hold does something first.
pub struct Odd<F> {
    pub memory: TestMemory,
    first: F,
}

impl<F: Fn() + Send + Sync> MemoryPort for Odd<F> {
    fn memory(&self) -> &GuestMemoryMmap {
        self.memory.memory()
    }

    fn hold(&self, ranges: &[GpaRange], access: Protection) -> Result<(), SpaceError> {
        (self.first)();
        self.memory.hold(ranges, access)
    }

    fn release(&self, ranges: &[GpaRange], install: bool) {
        self.memory.release(ranges, install);
    }
}

pub fn odd<F: Fn() + Send + Sync>(first: F) -> Arc<Odd<F>> {
    Arc::new(Odd { memory: TestMemory::of(64 * MIB), first })
}

/// "Start this file", with one vcpu and nothing else.
pub fn load_of(kernel: &Path) -> Load {
    Load {
        source: BootSource::File(kernel.to_owned()),
        initrd: None,
        cmdline: String::new(),
        vcpus: 1,
    }
}

/// A folder of files that goes away with its test.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn with(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// One program header of a [`elf`].
#[derive(Clone, Copy)]
pub struct Header {
    pub kind: u32,
    pub offset: u64,
    pub at: u64,
    pub file_len: u64,
    pub memory_len: u64,
}

pub const LOAD: u32 = 1;
pub const NOTE: u32 = 4;

/// An x86-64 executable with these program headers and contents; what lies where in the
/// file is the caller's to say.
pub fn elf(entry: u64, headers: &[Header], contents: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    bytes.resize(16, 0);
    bytes.extend(2u16.to_le_bytes()); // executable
    bytes.extend(62u16.to_le_bytes()); // x86-64
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(entry.to_le_bytes());
    bytes.extend(64u64.to_le_bytes()); // program headers follow
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(64u16.to_le_bytes());
    bytes.extend(56u16.to_le_bytes());
    bytes.extend(u16::try_from(headers.len()).unwrap().to_le_bytes());
    bytes.extend([0; 6]);
    for header in headers {
        bytes.extend(header.kind.to_le_bytes());
        bytes.extend(7u32.to_le_bytes());
        for field in [header.offset, 0, header.at, header.file_len, header.memory_len, 4] {
            bytes.extend(field.to_le_bytes());
        }
    }
    for (offset, content) in contents {
        let from = usize::try_from(*offset).unwrap();
        let end = from + content.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[from..end].copy_from_slice(content);
    }
    bytes
}

/// A Xen note that says where to enter.
pub fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    for number in [4u32, 4, 18] {
        note.extend(number.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

pub const CODE: &[u8] = b"code of the kernel, as it were";

/// A PVH kernel: code at 1 MiB, zeroes behind it, a note.
pub fn pvh_elf() -> Vec<u8> {
    let note = pvh_note(0x10_0004);
    elf(
        0xffff_ffff_8100_0000,
        &[
            Header {
                kind: LOAD,
                offset: 0x1000,
                at: MIB,
                file_len: CODE.len() as u64,
                memory_len: 0x3000,
            },
            Header {
                kind: NOTE,
                offset: 0x200,
                at: 0,
                file_len: note.len() as u64,
                memory_len: note.len() as u64,
            },
        ],
        &[(0x200, &note), (0x1000, CODE)],
    )
}

/// Changes a number in a file.
pub fn put<const N: usize>(bytes: &mut [u8], at: usize, number: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&number);
}

/// A bzImage of protocol 2.15: one sector of setup code after the first, then `payload`,
/// for 2 MiB, needing 1 MiB there.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    put(&mut bytes, 0x1f1, [1u8]);
    let sixteens = u32::try_from(payload.len().div_ceil(16)).unwrap();
    put(&mut bytes, 0x1f4, sixteens.to_le_bytes());
    put(&mut bytes, 0x1fe, 0xaa55u16.to_le_bytes());
    put(&mut bytes, 0x200, [0xeb, 0x6a]); // jmp over the header: it ends at 0x26c
    put(&mut bytes, 0x202, *b"HdrS");
    put(&mut bytes, 0x206, 0x020fu16.to_le_bytes());
    put(&mut bytes, 0x211, [1u8]); // loadflags: high
    put(&mut bytes, 0x22c, 0x7fff_ffffu32.to_le_bytes()); // initrd_addr_max
    put(&mut bytes, 0x230, 0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(&mut bytes, 0x234, [1u8]); // relocatable
    put(&mut bytes, 0x236, 1u16.to_le_bytes()); // xloadflags: 64-bit entry
    put(&mut bytes, 0x238, 2047u32.to_le_bytes()); // cmdline_size
    put(&mut bytes, 0x258, (2 * MIB).to_le_bytes()); // pref_address
    put(&mut bytes, 0x260, 0x10_0000u32.to_le_bytes()); // init_size
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes
}

/// A payload whose bytes tell where they are.
pub fn payload() -> Vec<u8> {
    (0..0x3000u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect()
}

/// A cpio archive with one file.
pub fn cpio(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, contents) in [(name, contents), ("TRAILER!!!", &[])] {
        let mut fields = [0; 13];
        fields[6] = contents.len();
        fields[11] = name.len() + 1;
        bytes.extend(b"070701");
        fields.iter().for_each(|field| bytes.extend(format!("{field:08x}").bytes()));
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// The pages that were held, upwards.
pub fn pages(record: &[(Vec<GpaRange>, bool)]) -> Vec<Gpa> {
    record.iter().flat_map(|(ranges, _)| ranges).flat_map(|range| range.iter_pages()).collect()
}
