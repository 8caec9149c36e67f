//! What lies where in the memory of every built-in guest that leaves real mode.
//!
//! ```text
//!   0x00_7000  PARAMETERS  what the host tells the guest: how many vcpus, ...
//!   0x00_8000  START       the way in for every vcpu (`start.rs`); SIPIs point here
//!   0x00_8800  PRINT       routines that print (`print.rs`)
//!   0x00_8a00  EXCEPTIONS  what reports an exception (`exceptions.rs`)
//!   0x00_9000  IMAGE       the guest; every vcpu comes to its first byte
//!   0x01_0000  TABLES      the guest's page tables, made by the host (24 KiB)
//!   0x10_0000  STACKS      one page per vcpu
//!   0x20_0000  OWN         whatever the guest works on
//! ```

use actors::Gpa;

/// One page of parameters: 64-bit words; see `start.rs` for the first ones.
pub const PARAMETERS: Gpa = Gpa(0x7000);

/// The shared way in, below 1 MiB and on a page: vcpus started by a SIPI begin at its
/// first byte, in real mode.
pub const START: Gpa = Gpa(0x8000);

/// [`START`] as a real-mode segment.
pub const START_SEGMENT: u16 = 0x800;

/// Routines that print.
pub const PRINT: Gpa = Gpa(0x8800);

/// What reports an exception.
pub const EXCEPTIONS: Gpa = Gpa(0x8a00);

/// Where an image is loaded.
pub const IMAGE: Gpa = Gpa(0x9000);

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
