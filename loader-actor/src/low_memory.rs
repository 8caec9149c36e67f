//! Where the loader puts what firmware would have left in low memory.
//!
//! | from | to | what | for |
//! |---|---|---|---|
//! | `0x0` | `0x1000` | nothing: the real-mode vectors; a flat image's stack grows down into it | flat |
//! | `0x1000` | `0x9f000` | a flat image, as far as it reaches | flat |
//! | `0x4000` | `0x5000` | a stack | 64-bit entry |
//! | `0x5000` | `0x5020` | descriptor table | 64-bit entry |
//! | `0x6000` | `0x7000` | start info, its modules and its memory map | PVH |
//! | `0x7000` | `0x8000` | zero page (`struct boot_params`) | 64-bit entry |
//! | `0x8000` | `0xe000` | page tables | 64-bit entry |
//! | `0x20000` | `0x30000` | command line | Linux |
//! | `0x9fc00` | `0x100000` | the firmware's: reserved in the memory map | all |
//! | `0xe0000` | `0x100000` | ACPI tables, the root pointer first | all |
//!
//! Only what the way of starting at hand needs is claimed, so a kernel may use the rest.

use actors::Gpa;

/// First byte of a flat image, and the top of the stack it starts with.
pub(crate) const FLAT_IMAGE: Gpa = Gpa(0x1000);
/// First byte a flat image may not reach: whole pages below the firmware's area.
pub(crate) const FLAT_END: Gpa = Gpa(0x9_f000);

/// A page of stack for kernels that begin with a call.
pub(crate) const BOOT_STACK: Gpa = Gpa(0x4000);
/// Bytes of that stack.
pub(crate) const BOOT_STACK_LEN: u64 = 0x1000;

/// Descriptor table for the 64-bit entry.
pub(crate) const DESCRIPTORS: Gpa = Gpa(0x5000);

/// PVH start info. Its modules and its memory map follow in the same page.
pub(crate) const START_INFO: Gpa = Gpa(0x6000);
/// PVH module list.
pub(crate) const START_INFO_MODULES: Gpa = Gpa(0x6040);
/// PVH memory map.
pub(crate) const START_INFO_MEMORY_MAP: Gpa = Gpa(0x6080);

/// Linux's `struct boot_params`.
pub(crate) const ZERO_PAGE: Gpa = Gpa(0x7000);

/// Root of the boot page tables; the other five pages follow it.
pub(crate) const PAGE_TABLES: Gpa = Gpa(0x8000);

/// The kernel command line.
pub(crate) const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Most bytes a command line may have here, its final zero included.
pub(crate) const COMMAND_LINE_ROOM: u64 = 0x1_0000;

/// Start of the firmware's area: where the extended BIOS data area begins on a PC.
pub(crate) const FIRMWARE: Gpa = Gpa(0x9_fc00);
/// Where ordinary memory goes on: 1 MiB.
pub(crate) const EXTENDED_MEMORY: Gpa = Gpa(0x10_0000);
