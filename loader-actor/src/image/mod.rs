//! Which kind of file is this, and what does it want?
//!
//! Decided by the first bytes, never by trust: every number of a header is checked before
//! anything is written. Only a flat binary, which has no header, is known by its name.

use crate::input::Input;

pub(crate) mod bzimage;
pub(crate) mod elf;
pub(crate) mod flat;

use bzimage::{BadBzImage, BzImage};
use elf::{BadElf, Elf};
use flat::BadFlat;

/// A kernel file whose headers have been checked.
#[derive(Debug)]
pub(crate) enum Image {
    /// Linux as distributions ship it.
    BzImage(BzImage),
    /// A kernel as the linker made it.
    Elf(Elf),
    /// Bytes without a header, for 16-bit real mode.
    Flat,
}

/// What is wrong with a kernel file. Each reads on after "the kernel FILE".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// A bzImage with an impossible header.
    #[error(transparent)]
    BzImage(#[from] BadBzImage),
    /// An ELF with an impossible header.
    #[error(transparent)]
    Elf(#[from] BadElf),
    /// A flat binary that cannot be placed.
    #[error(transparent)]
    Flat(#[from] BadFlat),
    /// A kernel inside a container.
    #[error("is compressed with {0}: unpack it first")]
    Compressed(&'static str),
    /// None of the above.
    #[error(
        "is nothing that can be booted here: it is neither a Linux bzImage nor an ELF (a flat \
         16-bit binary must be named *.bin or *.flat)"
    )]
    Unknown,
}

/// Bytes from the start of a file that decide what it is: a bzImage's setup header ends
/// before.
const HEAD: u16 = 1024;

impl Image {
    /// Says what `input` is, and checks its headers.
    pub(crate) fn detect(input: &Input) -> Result<Self, crate::LoadError> {
        let head = input.head(HEAD)?;
        let bad = |why: BadImage| crate::LoadError::kernel(input.path(), why);
        if bzimage::looks_like_one(&head) {
            let parsed = BzImage::parse(&head, input.len());
            return parsed.map(Self::BzImage).map_err(|why| bad(why.into()));
        }
        if elf::looks_like_one(&head) {
            let mut read = |offset, len: usize| {
                let mut bytes = vec![0; len];
                input.read_at(offset, &mut bytes).map(|()| bytes)
            };
            let parsed = Elf::parse(&mut read, input.len())?;
            return parsed.map(Self::Elf).map_err(|why| bad(why.into()));
        }
        if flat::is_named_like_one(input.path()) {
            return flat::check(input.len()).map(|()| Self::Flat).map_err(|why| bad(why.into()));
        }
        Err(bad(compression(&head).map_or(BadImage::Unknown, BadImage::Compressed)))
    }
}

/// What `head` is compressed with, by its magic number.
pub(crate) fn compression(head: &[u8]) -> Option<&'static str> {
    const MAGIC: [(&[u8], &str); 8] = [
        (&[0x1f, 0x8b], "gzip"),
        (&[0x1f, 0x9e], "gzip"),
        (b"BZh", "bzip2"),
        (&[0x5d, 0x00, 0x00], "lzma"),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0x00], "xz"),
        (&[0x89, b'L', b'Z', b'O', 0x00], "lzo"),
        (&[0x02, 0x21, 0x4c, 0x18], "lz4"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    ];
    MAGIC.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, name)| *name)
}

/// `bytes[at..at + N]`, when there are so many.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
