//! ELF kernels: which bytes go where, and where it begins.
//!
//! Sources: the ELF-64 object file format (version 1.5); Xen's `elfnote.h` for the note
//! that carries the PVH entry point. Segments go to their *physical* addresses.

use actors::Gpa;

use crate::image::field;
use crate::input::Pin;

const MAGIC: [u8; 4] = [0x7f, b'E', b'L', b'F'];
const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;

const LOAD: u32 = 1;
const INTERPRETER: u32 = 3;
const NOTE: u32 = 4;

/// Kernels have five to ten; the limit keeps hostile files from keeping us busy.
const MOST_PROGRAM_HEADERS: u16 = 64;
/// Linux's notes are some 500 bytes.
const MOST_NOTES: u64 = 64 << 10;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: where to enter in 32-bit mode without paging.
const NOTE_PVH_ENTRY: u32 = 18;
const NOTE_OWNER: &[u8] = b"Xen\0";

/// Why an ELF cannot be booted. Each reads on after "the kernel FILE".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadElf {
    /// The file ends too early.
    #[error("is an ELF cut short: {what} needs {len} bytes at {offset:#x}, the file has {file}")]
    CutShort {
        /// Which part.
        what: &'static str,
        /// Where it begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// How long the file is, in bytes.
        file: u64,
    },
    /// Not 64-bit.
    #[error("is a 32-bit ELF: only 64-bit kernels can be booted")]
    NotSixtyFour,
    /// Not little-endian.
    #[error("is a big-endian ELF: only x86-64 kernels can be booted")]
    BigEndian,
    /// Another processor.
    #[error("is an ELF for machine {0}: only x86-64 (62) can be booted")]
    Machine(u16),
    /// An object file, a library, a core dump.
    #[error(
        "is an ELF of type {0} (1 is an object file, 3 a library or movable program, 4 a core \
         dump): only executables (2) can be booted"
    )]
    NotExecutable(u16),
    /// A program that wants a dynamic linker.
    #[error("is a program for a running system, not a kernel: it asks for an interpreter")]
    Program,
    /// Program headers of a strange size.
    #[error("is an ELF whose program headers have {0} bytes each instead of {PROGRAM_HEADER_LEN}")]
    HeaderSize(u16),
    /// Program headers inside the file header.
    #[error("is an ELF whose program headers begin at {0:#x}, inside its file header")]
    HeadersInHeader(u64),
    /// More than any kernel has.
    #[error("is an ELF with {0} program headers: at most {MOST_PROGRAM_HEADERS} are accepted")]
    TooManyHeaders(u16),
    /// No bytes to load.
    #[error("is an ELF that loads nothing: it has no segment with bytes in it")]
    NothingToLoad,
    /// More bytes in the file than in memory.
    #[error(
        "is an ELF whose segment {index} has {file} bytes in the file and only {memory} in memory"
    )]
    FileLargerThanMemory {
        /// Which segment, counted from 0.
        index: usize,
        /// Bytes in the file.
        file: u64,
        /// Bytes in memory.
        memory: u64,
    },
    /// A note section longer than sense.
    #[error("is an ELF with {0} bytes of notes: at most {MOST_NOTES} are accepted")]
    TooManyNotes(u64),
    /// A note that runs out of its section.
    #[error("is an ELF whose notes are garbled: one at byte {offset:#x} runs out of its section")]
    GarbledNotes {
        /// Where the note begins in the file.
        offset: u64,
    },
    /// A PVH note with fewer than four bytes.
    #[error("is an ELF whose PVH entry note has {0} bytes instead of 4")]
    ShortEntryNote(usize),
    /// The entry point is not in the kernel.
    #[error(
        "is an ELF whose {kind} entry point {entry} lies in none of its segments' physical \
         addresses"
    )]
    EntryOutside {
        /// "PVH" or "64-bit".
        kind: &'static str,
        /// Where it says it begins.
        entry: Gpa,
    },
}

/// Bytes of the file that belong at a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Which program header, counted from 0.
    pub(crate) index: usize,
    /// Where it belongs.
    pub(crate) at: Gpa,
    /// Bytes from the file.
    pub(crate) file_len: u64,
    /// Bytes in memory, at least `file_len`: the rest is zero.
    pub(crate) memory_len: u64,
}

/// How an ELF wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// 32-bit, without paging, at the address of its Xen note.
    Pvh(Gpa),
    /// 64-bit, like the 64-bit entry of Linux: it has no such note.
    Long(Gpa),
}

/// An ELF whose headers have been checked. That its segments fit into the guest and do
/// not meet is for the claims to find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Elf {
    /// What is loaded: each has bytes in memory, maybe none in the file.
    pub(crate) segments: Vec<Segment>,
    /// How it begins.
    pub(crate) start: Start,
    /// The headers and notes as they stand in the file.
    pub(crate) pins: Vec<Pin>,
}

pub(crate) fn looks_like_one(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

struct ProgramHeader {
    kind: u32,
    offset: u64,
    physical: u64,
    file_len: u64,
    memory_len: u64,
}

impl ProgramHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32::from_le_bytes(field(bytes, 0)?),
            offset: u64::from_le_bytes(field(bytes, 8)?),
            physical: u64::from_le_bytes(field(bytes, 24)?),
            file_len: u64::from_le_bytes(field(bytes, 32)?),
            memory_len: u64::from_le_bytes(field(bytes, 40)?),
        })
    }
}

impl Elf {
    /// Reads the headers of a file of `file` bytes through `read(offset, len)`, which is
    /// only asked for what lies inside the file.
    ///
    /// The outer error is the reader's.
    pub(crate) fn parse<E>(
        read: &mut impl FnMut(u64, usize) -> Result<Vec<u8>, E>,
        file: u64,
    ) -> Result<Result<Self, BadElf>, E> {
        let mut trouble = None;
        let parsed = Self::parse_with(file, &mut |what, offset: u64, len: usize| {
            let end = offset.checked_add(len as u64);
            if end.is_none_or(|end| end > file) {
                return Err(BadElf::CutShort { what, offset, len: len as u64, file });
            }
            // What is returned here is never seen: `trouble` comes first.
            read(offset, len).or_else(|why| {
                trouble = Some(why);
                Ok(vec![0; len])
            })
        });
        trouble.map_or(Ok(parsed), Err)
    }

    fn parse_with(
        file: u64,
        read: &mut impl FnMut(&'static str, u64, usize) -> Result<Vec<u8>, BadElf>,
    ) -> Result<Self, BadElf> {
        let header = read("its header", 0, HEADER_LEN)?;
        let entry = Gpa(u64::from_le_bytes(at(&header, 24)));
        let (table_offset, count) = check_header(&header)?;
        let table_len = usize::from(count) * PROGRAM_HEADER_LEN;
        let table = read("its table of program headers", table_offset, table_len)?;
        let headers =
            || table.chunks_exact(PROGRAM_HEADER_LEN).filter_map(ProgramHeader::read).enumerate();
        let mut pins = vec![
            Pin { offset: 0, bytes: header },
            Pin { offset: table_offset, bytes: table.clone() },
        ];

        if headers().any(|(_, header)| header.kind == INTERPRETER) {
            return Err(BadElf::Program);
        }
        let mut segments = Vec::new();
        for (index, header) in headers().filter(|(_, header)| header.kind == LOAD) {
            segments.extend(segment(index, &header, file)?);
        }
        if segments.iter().all(|segment| segment.file_len == 0) {
            return Err(BadElf::NothingToLoad);
        }
        let mut start = Start::Long(entry);
        for (_, header) in headers().filter(|(_, header)| header.kind == NOTE) {
            let len = usize::try_from(header.file_len)
                .ok()
                .filter(|_| header.file_len <= MOST_NOTES)
                .ok_or(BadElf::TooManyNotes(header.file_len))?;
            let notes = read("its note section", header.offset, len)?;
            if let Some(entry) = pvh_entry(&notes, header.offset)? {
                start = Start::Pvh(entry);
            }
            pins.push(Pin { offset: header.offset, bytes: notes });
        }
        let (kind, entry) = match start {
            Start::Pvh(entry) => ("PVH", entry),
            Start::Long(entry) => ("64-bit", entry),
        };
        // Without overflow: the offset into the segment is what is compared.
        let begins_in = |segment: &Segment| {
            let offset = entry.0.checked_sub(segment.at.0);
            offset.is_some_and(|offset| offset < segment.file_len)
        };
        if !segments.iter().any(begins_in) {
            return Err(BadElf::EntryOutside { kind, entry });
        }
        Ok(Self { segments, start, pins })
    }
}

/// Checks the file header; says where the program headers are and how many.
fn check_header(header: &[u8]) -> Result<(u64, u16), BadElf> {
    if header[4] != CLASS_64 {
        return Err(BadElf::NotSixtyFour);
    }
    if header[5] != LITTLE_ENDIAN {
        return Err(BadElf::BigEndian);
    }
    let machine = u16::from_le_bytes(at(header, 18));
    if machine != X86_64 {
        return Err(BadElf::Machine(machine));
    }
    let kind = u16::from_le_bytes(at(header, 16));
    if kind != EXECUTABLE {
        return Err(BadElf::NotExecutable(kind));
    }
    let table_offset = u64::from_le_bytes(at(header, 32));
    let entry_len = u16::from_le_bytes(at(header, 54));
    let count = u16::from_le_bytes(at(header, 56));
    if count == 0 {
        return Err(BadElf::NothingToLoad);
    }
    if usize::from(entry_len) != PROGRAM_HEADER_LEN {
        return Err(BadElf::HeaderSize(entry_len));
    }
    if table_offset < HEADER_LEN as u64 {
        return Err(BadElf::HeadersInHeader(table_offset));
    }
    if count > MOST_PROGRAM_HEADERS {
        return Err(BadElf::TooManyHeaders(count));
    }
    Ok((table_offset, count))
}

/// What a LOAD header asks for, if anything.
fn segment(index: usize, header: &ProgramHeader, file: u64) -> Result<Option<Segment>, BadElf> {
    if header.file_len > header.memory_len {
        return Err(BadElf::FileLargerThanMemory {
            index,
            file: header.file_len,
            memory: header.memory_len,
        });
    }
    let end = header.offset.checked_add(header.file_len);
    if header.file_len > 0 && end.is_none_or(|end| end > file) {
        return Err(BadElf::CutShort {
            what: "a segment",
            offset: header.offset,
            len: header.file_len,
            file,
        });
    }
    Ok((header.memory_len > 0).then_some(Segment {
        index,
        at: Gpa(header.physical),
        file_len: header.file_len,
        memory_len: header.memory_len,
    }))
}

/// Looks for the PVH entry point in `notes`, which begin at byte `offset` of the file.
fn pvh_entry(notes: &[u8], offset: u64) -> Result<Option<Gpa>, BadElf> {
    // Name and contents are padded to four bytes each; the lengths say how much of it
    // counts. At most 2^32 + 3 each, so nothing overflows.
    let padded = |len: u32| (len as usize).next_multiple_of(4);
    let mut rest = notes;
    while !rest.is_empty() {
        let here = offset + (notes.len() - rest.len()) as u64;
        let garbled = BadElf::GarbledNotes { offset: here };
        let name_len = u32::from_le_bytes(field(rest, 0).ok_or(garbled)?);
        let len = u32::from_le_bytes(field(rest, 4).ok_or(garbled)?);
        let kind = u32::from_le_bytes(field(rest, 8).ok_or(garbled)?);
        let body = rest.get(12..).ok_or(garbled)?;
        let name = body.get(..name_len as usize).ok_or(garbled)?;
        let contents = body.get(padded(name_len)..).ok_or(garbled)?;
        let contents_end = contents.get(..len as usize).ok_or(garbled)?;
        if kind == NOTE_PVH_ENTRY && name == NOTE_OWNER {
            let entry = field(contents_end, 0).ok_or(BadElf::ShortEntryNote(contents_end.len()))?;
            return Ok(Some(Gpa(u32::from_le_bytes(entry).into())));
        }
        // The last note's padding may be missing.
        rest = contents.get(padded(len)..).unwrap_or_default();
    }
    Ok(None)
}

/// `header[from..from + N]`: the header has its 64 bytes.
fn at<const N: usize>(header: &[u8], from: usize) -> [u8; N] {
    field(header, from).expect("the file header was read whole")
}
