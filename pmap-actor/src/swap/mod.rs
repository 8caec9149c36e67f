//! Where pages go that the guest does not use: a compressed tier in memory, and a file.
//!
//! Nothing here knows a vmspace, a guest-physical address or a translation. A *page number* is
//! a frame divided by 4096; a *slot* is 4096 bytes of the swap file.
//!
//! ```text
//!     the pmap's thread                            pageout's thread
//!     ─────────────────                            ────────────────
//!     "these pages leave"  ─────── Launder ──────▶ copies the frame, compresses
//!     tier.rs  keeps       ◀────── Laundered ───── zero? packed, with a checksum
//!     over its budget: a cluster of neighbours,
//!     slots.rs gives slots ─────── Write ────────▶ unpacks, one write for each run
//!     tier forgets         ◀────── Written ───────
//!                                                  pagein's thread
//!                                                  ───────────────
//!     a fault on such a page ───── Fetch ────────▶ one read for each run, compares checksums
//!     the page arrives     ◀────── Fetched ───────
//! ```
//!
//! Three promises:
//!
//! * **Never wrong bytes.** A page gets its checksum when it is packed and is compared with it
//!   whenever it comes back, from memory or from the disk. What does not match is an error
//!   with a name ([`error::SwapError`]) and never data.
//! * **Never lost on the way.** What is being written is served from memory until the write
//!   was heard to be done; a write that failed leaves it there.
//! * **The pmap never waits.** It owns slots and tier, so there are no locks; orders to the
//!   workers are tried, not waited for; answers come through a channel and a doorbell.
//!
//! Reading order: `codec.rs` (what a packed page is) → `slots.rs`, `tier.rs` (who owns what)
//! → `file.rs`, `open.rs` (the swap file) → `workers/` (who does the slow things).
//! `faulty.rs` is for tests of the monitor: a file that fails as asked.

pub mod codec;
pub mod error;
pub mod faulty;
pub mod file;
mod open;
pub mod slots;
pub mod tier;
pub mod workers;

pub use codec::{Checksum, Laundered, PAGE_BYTES, Packed, Page};
pub use error::SwapError;
pub use file::{CreateError, Room, SwapFile};
pub use slots::{Slot, SlotRun, Slots};
pub use tier::{Spill, Tier};

/// How many pages are written, or read, with one call of the host: 128 KiB, past which disks
/// gain little from longer ones and a fault that waits for its page loses.
pub const CLUSTER_PAGES: usize = 32;
