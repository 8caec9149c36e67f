//! How a guest begins.
//!
//! The loader is given a [`Load`] (a kernel, an initrd, a command line, how many vcpus) and
//! answers with a [`Loaded`]: the bytes are in the guest's memory, and these are the
//! registers of vcpu 0. In order, a boot is:
//!
//! 1. **Read**: the kernel file is opened (regular files only) and its first bytes say what
//!    it is. Every number in its headers is checked.
//! 2. **Describe**: what firmware would have said is written down: memory map, ACPI tables,
//!    command line, and for a 64-bit start page tables and descriptors.
//! 3. **Claim**: everything that will lie in memory claims its place. Two claims that meet,
//!    or one outside of memory, end the boot here; nothing has been written yet.
//! 4. **Hold**: the pages that will be written, and only those, are held by the pmap.
//! 5. **Write**: the kernel goes from its file into memory without a copy in between.
//! 6. **Release**: the pages go into the guest's tables in bulk, so that its first steps
//!    do not fault.
//!
//! | file | known by | begins in |
//! |---|---|---|
//! | Linux bzImage, protocol 2.12 or newer | `HdrS` at `0x202` | 64-bit mode, zero page in `rsi` |
//! | ELF with a Xen PVH note | `\x7fELF`, note 18 | 32-bit mode, start info in `rbx` |
//! | ELF without one (`vmlinux` without PVH) | `\x7fELF` | 64-bit mode, zero page in `rsi` |
//! | flat binary | its name, `*.bin` or `*.flat` | 16-bit mode at `0000:1000` |
//!
//! Linux wants `console=ttyS0` on its command line to be heard. It powers off and reboots
//! through the ACPI tables; `reboot=k` takes the keyboard controller's reset line instead,
//! `panic=-1` reboots at once after a panic.
//!
//! Everybody else holds a [`LoaderHandle`]. The work itself is a plain function, [`place`].
//!
//! Reading order: `place` (the six steps) → `image` (what is this file) → `tables` (what
//! firmware would have said) → `claims` (who gets which memory) → `loader_actor` (the front
//! desk) → [`guests`] (the ones that come with skep).
//!
//! [`Load`]: actors::contract::boot::Load
//! [`Loaded`]: actors::contract::boot::Loaded

mod claims;
mod command_line;
mod error;
pub mod guests;
mod hold;
mod image;
mod initrd;
mod input;
mod loader_actor;
mod low_memory;
mod place;
mod tables;

pub use claims::Misplaced;
pub use command_line::BadCommandLine;
pub use error::LoadError;
pub use image::BadImage;
pub use image::bzimage::BadBzImage;
pub use image::elf::BadElf;
pub use image::flat::BadFlat;
pub use initrd::BadInitrd;
pub use input::{InputError, Role};
pub use loader_actor::{LoaderActor, LoaderHandle, start};
pub use place::place;
pub use tables::acpi;
pub use tables::acpi::BadProcessorCount;
