//! Is this something Linux can unpack as its first file system?
//!
//! The kernel says little when it is not ("Initramfs unpacking failed", and then a panic
//! about a missing root), so the first bytes are looked at here, and a plain cpio archive is
//! walked from header to header until its trailer. What is compressed is not unpacked: a
//! compressed archive that was cut short is for the kernel to notice.

use actors::pulse::Pulse;

use crate::image::{compression, field};
use crate::input::{Input, InputError};

/// Why a file is no initrd. Each reads on after "the initrd FILE".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadInitrd {
    /// Nothing known.
    #[error(
        "is neither a cpio archive (newc) nor a file system image nor compressed with anything \
         Linux unpacks"
    )]
    Unknown,
    /// A cpio archive without its end.
    #[error(
        "is a cpio archive cut short: an entry needs {needed} bytes and the file has {len}, and \
         there was no trailer before"
    )]
    CutShort {
        /// Where the entry would end, in bytes.
        needed: u64,
        /// How long the file is, in bytes.
        len: u64,
    },
    /// A cpio archive with something else in it.
    #[error("is a cpio archive that is garbled at byte {at:#x}: no entry begins there")]
    Garbled {
        /// Where an entry should have begun.
        at: u64,
    },
}

/// Bytes that decide: an ext2 file system has its magic number at 1080.
const HEAD: u16 = 1082;

/// Checks `input`. The outer error is the reader's.
pub(crate) fn check(input: &Input, pulse: &Pulse) -> Result<Result<(), BadInitrd>, InputError> {
    let head = input.head(HEAD)?;
    if is_cpio(&head) {
        return walk_cpio(input, pulse);
    }
    if compression(&head).is_some() || is_file_system(&head) {
        return Ok(Ok(()));
    }
    Ok(Err(BadInitrd::Unknown))
}

/// `newc`, without and with checksums: the two kinds Linux reads.
fn is_cpio(head: &[u8]) -> bool {
    head.starts_with(b"070701") || head.starts_with(b"070702")
}

/// The file systems Linux accepts as a ram disk (`identify_ramdisk_image`).
fn is_file_system(head: &[u8]) -> bool {
    const CRAMFS: [u8; 4] = 0x28cd_3d45_u32.to_le_bytes();
    const EXT2: [u8; 2] = 0xef53_u16.to_le_bytes();
    const MINIX: [[u8; 2]; 2] = [0x137f_u16.to_le_bytes(), 0x138f_u16.to_le_bytes()];
    head.starts_with(b"-rom1fs-")
        || head.starts_with(b"hsqs")
        || head.starts_with(&CRAMFS)
        || field(head, 1024 + 56) == Some(EXT2)
        || field(head, 1024 + 16).is_some_and(|magic| MINIX.contains(&magic))
}

/// Goes from entry to entry until the trailer. What follows it is another archive or
/// padding, and not looked at.
fn walk_cpio(input: &Input, pulse: &Pulse) -> Result<Result<(), BadInitrd>, InputError> {
    /// Header (110 characters), and the name of a trailer with its zero.
    const ENTRY: usize = 110 + TRAILER.len();
    const TRAILER: &[u8] = b"TRAILER!!!\0";
    let len = input.len();
    let mut window = Window { input, at: 0, bytes: Vec::new() };
    let mut at = 0;
    loop {
        pulse.beat();
        let needed = at + ENTRY as u64;
        if needed > len {
            // The shortest entry has a name of one character, but is never the last one.
            return Ok(Err(BadInitrd::CutShort { needed, len }));
        }
        let entry: [u8; ENTRY] = window.read(at)?;
        let numbers = hexadecimal(&entry, 54).zip(hexadecimal(&entry, 94));
        let Some((file_len, name_len)) = numbers.filter(|_| is_cpio(&entry)) else {
            return Ok(Err(BadInitrd::Garbled { at }));
        };
        if name_len == TRAILER.len() as u64 && &entry[110..] == TRAILER {
            return Ok(Ok(()));
        }
        // At most twice 2^32 beyond a file's length: no overflow.
        let data = (at + 110 + name_len).next_multiple_of(4);
        let needed = data + file_len;
        if needed > len {
            return Ok(Err(BadInitrd::CutShort { needed, len }));
        }
        at = needed.next_multiple_of(4);
    }
}

/// The part of a file looked at last: an archive of many small files is not read entry by
/// entry.
struct Window<'i> {
    input: &'i Input,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// Most bytes in a window: one read costs little more than that of a header.
    const MOST: u64 = 16 << 10;

    /// `N` bytes at `at`; they must end inside the file.
    fn read<const N: usize>(&mut self, at: u64) -> Result<[u8; N], InputError> {
        let here = |window: &Self| {
            let offset = usize::try_from(at.checked_sub(window.at)?).ok()?;
            field(&window.bytes, offset)
        };
        if let Some(bytes) = here(self) {
            return Ok(bytes);
        }
        let len = (self.input.len() - at).min(Self::MOST.max(N as u64));
        self.bytes.resize(usize::try_from(len).expect("a small window"), 0);
        self.at = at;
        self.input.read_at(at, &mut self.bytes)?;
        Ok(here(self).expect("the window begins here and is at least this long"))
    }
}

/// The eight hexadecimal digits at `at`.
fn hexadecimal(entry: &[u8], at: usize) -> Option<u64> {
    let digits: [u8; 8] = field(entry, at)?;
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number * 16 + u64::from(digit))
    })
}
