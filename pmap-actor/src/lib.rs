//! A guest's physical memory, as two maps.
//!
//! The **map** ([`map::VmMap`]) says what *should* be where: this range is memory, with
//! these rights. The **tables** ([`ept::tables::Tables`]) say what *is* there right now, in
//! the format a processor walks. The tables are a cache of the map: they may forget
//! anything at any time, because the next touch faults and asks again. Together they are
//! the [`vmspace`]. A software processor walks the tables itself ([`ept::view::View`]); the
//! host mapping that KVM follows is kept in step by the [`mirror`].
//!
//! One actor, [`space_actor`], owns all of it, so the two never disagree in public; everybody
//! else holds a [`handle::SpaceHandle`].
//!
//! Reading order: `map.rs` (what should be) → `ept/` (bits and tables) → `pmap/` (every operation on
//! them) → `object.rs`, `content.rs`, `swap/` (where contents are that are not in memory) → `vmspace.rs` (all of it
//! together), `iommu.rs` (who else reaches it) → `mirror.rs` and `host/` (what the host is told) → `space_actor.rs` (who may
//! ask what, and how removals wait for their shootdown).

pub mod completed;
mod content;
mod epochs;
pub mod ept;
mod fault_lane;
pub mod handle;
pub mod host;
pub mod iommu;
pub mod latency;
pub mod map;
pub mod mirror;
mod object;
pub mod pmap;
pub mod record;
pub mod roster;
mod runs;
pub mod space_actor;
pub mod swap;
pub mod verify;
pub mod vmspace;
