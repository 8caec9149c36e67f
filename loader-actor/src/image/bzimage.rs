//! The setup header of a Linux bzImage.
//!
//! Source: the kernel's `Documentation/arch/x86/boot.rst`, "The Linux/x86 Boot Protocol".
//! Only the 64-bit entry is used (protocol 2.12 and newer, Linux 3.8 of 2013): it needs no
//! real-mode code and no decompressor in 32-bit mode.

use actors::Gpa;
use linux_loader::bootparam::setup_header;
use vm_memory::ByteValued;

use crate::image::field;
use crate::input::Pin;

/// Where the setup header lies in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// Where the magic number "HdrS" lies.
const MAGIC_AT: usize = 0x202;
/// Where the byte lies that says how long the header is: its end, counted from `MAGIC_AT`.
const HEADER_LEN_AT: usize = 0x201;
const MAGIC: [u8; 4] = *b"HdrS";
const SECTOR: u64 = 512;

/// Oldest protocol that knows the 64-bit entry.
const OLDEST: u16 = 0x020c;
/// `loadflags`: the kernel proper belongs at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry.
const KERNEL_64: u16 = 1;
/// The 64-bit entry lies so many bytes into the kernel proper.
pub(crate) const ENTRY_OFFSET: u64 = 0x200;

/// Why a bzImage cannot be booted. Each reads on after "the kernel FILE".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadBzImage {
    /// The file ends before its own header or before what the header announces.
    #[error("is a bzImage cut short: it has {len} bytes and its header announces {announced}")]
    CutShort {
        /// Bytes there are.
        len: u64,
        /// Bytes there should be.
        announced: u64,
    },
    /// Older than the 64-bit entry.
    #[error(
        "speaks Linux boot protocol {}.{:02}: 2.12 or newer (Linux 3.8) is needed",
        .version >> 8, .version & 0xff
    )]
    TooOld {
        /// Major version in the high byte, minor in the low.
        version: u16,
    },
    /// A zImage.
    #[error("is a Linux zImage for memory below 1 MiB: build a bzImage")]
    Low,
    /// A 32-bit kernel.
    #[error("is a 32-bit Linux: its header names no 64-bit entry point")]
    NoLongModeEntry,
    /// So short that the entry point lies behind its end.
    #[error("is a bzImage of {len} bytes behind its setup code, which end before its entry point")]
    NoEntry {
        /// Bytes of the kernel proper.
        len: u64,
    },
}

/// A bzImage whose header has been checked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BzImage {
    /// The setup header, zero from where the file says it ends.
    pub(crate) header: setup_header,
    /// The header as it stands in the file.
    pub(crate) pin: Pin,
    /// First byte behind the kernel proper in the file. Whatever follows is not loaded:
    /// a signature, for instance.
    pub(crate) end: u64,
    /// Bytes of the kernel proper: setup code left out.
    pub(crate) payload_len: u64,
}

pub(crate) fn looks_like_one(head: &[u8]) -> bool {
    field(head, MAGIC_AT) == Some(MAGIC)
}

impl BzImage {
    /// Reads the header from the first KiB of a file of `len` bytes.
    pub(crate) fn parse(head: &[u8], len: u64) -> Result<Self, BadBzImage> {
        let whole = HEADER + size_of::<setup_header>();
        let cut_short = BadBzImage::CutShort { len, announced: whole as u64 };
        let in_file = head.get(HEADER..whole).ok_or(cut_short)?;
        let known = MAGIC_AT + usize::from(*head.get(HEADER_LEN_AT).ok_or(cut_short)?);
        let mut bytes = in_file.to_vec();
        bytes.iter_mut().skip(known - HEADER).for_each(|b| *b = 0);
        let header = *setup_header::from_slice(&bytes).ok_or(cut_short)?;

        let version = header.version;
        if header.loadflags & LOADED_HIGH == 0 {
            return Err(BadBzImage::Low);
        }
        if version < OLDEST {
            return Err(BadBzImage::TooOld { version });
        }
        if header.xloadflags & KERNEL_64 == 0 {
            return Err(BadBzImage::NoLongModeEntry);
        }
        // 0 stands for 4, for the sake of very old kernels.
        let setup_sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup_len = (setup_sectors + 1) * SECTOR;
        let payload_len = u64::from(header.syssize) * 16;
        let end = setup_len + payload_len;
        if end > len {
            return Err(BadBzImage::CutShort { len, announced: end });
        }
        if payload_len <= ENTRY_OFFSET {
            return Err(BadBzImage::NoEntry { len: payload_len });
        }
        Ok(Self {
            header,
            pin: Pin { offset: HEADER as u64, bytes: in_file.to_vec() },
            end,
            payload_len,
        })
    }

    /// Where it belongs: where it would otherwise move itself before it unpacks.
    pub(crate) fn load_at(&self) -> Gpa {
        Gpa(self.header.pref_address)
    }

    /// Bytes from there that it uses before it has read the memory map.
    pub(crate) fn memory_len(&self) -> u64 {
        u64::from(self.header.init_size).max(self.payload_len)
    }

    /// Most characters of a command line, the final zero not counted.
    pub(crate) fn most_cmdline(&self) -> u64 {
        u64::from(self.header.cmdline_size)
    }

    /// The first address an initrd must not reach.
    pub(crate) fn initrd_ceiling(&self) -> Gpa {
        Gpa(u64::from(self.header.initrd_addr_max) + 1)
    }
}
