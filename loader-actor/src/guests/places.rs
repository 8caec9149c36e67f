//! What lies where in every built-in guest's memory.
//!
//! ```text
//!   0x00_7000  PARAMETERS  what the host tells the guest: how many vcpus, ...
//!   0x00_8000  IMAGE       the guest; its first byte is where a SIPI sends the others
//!   0x01_0000  TABLES      the guest's page tables, made by the host (24 KiB)
//!   0x10_0000  STACKS      one page per vcpu
//!   0x20_0000  ...         whatever the guest works on
//! ```

use actors::Gpa;

/// One page of parameters; see [`Parameter`].
pub const PARAMETERS: Gpa = Gpa(0x7000);

/// Where every image is loaded: below 1 MiB and on a page, because its first instruction
/// is also the first one of the vcpus that are started by SIPI, in real mode.
pub const IMAGE: Gpa = Gpa(0x8000);

/// [`IMAGE`] as a real-mode segment: offsets in it count from the image's first byte.
pub const IMAGE_SEGMENT: u16 = 0x800;

/// Bytes an image may have.
pub const IMAGE_BYTES: u64 = TABLES.0 - IMAGE.0;

/// Root of the page tables; the lower tables follow.
pub const TABLES: Gpa = Gpa(0x1_0000);

/// The stack of vcpu N is the page at `STACKS + N * 4096`; it starts at the page's end.
pub const STACKS: Gpa = Gpa(0x10_0000);

/// Room for stacks, in vcpus: the local APIC's 8-bit ids, less the broadcast id.
pub const MOST_VCPUS: u16 = 255;

/// The first address that belongs to the guest at hand.
pub const OWN: Gpa = Gpa(0x20_0000);

/// Where a byte becomes a character: the first serial port's data register.
pub const SERIAL_PORT: u16 = 0x3f8;

/// Where a byte ends the run: 0 well, anything else as a failure with that code.
pub const DEBUG_EXIT_PORT: u16 = 0xf4;

/// ACPI's PM1 control register.
pub const PM1_CONTROL_PORT: u16 = 0x604;

/// What, written to [`PM1_CONTROL_PORT`], powers the machine off: sleep type 5 and
/// sleep enable (ACPI 6.5, section 4.8.3.2.1).
pub const POWER_OFF: u16 = 5 << 10 | 1 << 13;
