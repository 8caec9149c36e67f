//! The words skep's actors share, and the few tools every one of them needs.
//!
//! Nothing here knows a page table, a processor or a file format. A message type
//! lives in the file of its *conversation*, so that it can be read without reading
//! who handles it:
//!
//! | conversation | who asks | who answers | what the asker does meanwhile |
//! |---|---|---|---|
//! | [`contract::space`] | machine, loader, bench | pmap | waits with a deadline |
//! | [`contract::boot`] | machine | loader | goes on; the reply arrives as a message |
//! | [`contract::vcpu`] | machine, bench | vcpu N | tells all first, then waits |
//! | [`contract::guest`] | vcpu, devices, pmap | machine | never waits: these are *told* |
//!
//! Reading order: [`addr`] (numbers), [`contract`] (sentences), [`device`] (what a
//! device is), [`pulse`] and [`threads`] (how an actor shows it is alive and how its
//! death is noticed), [`doorbell`] (how a sleeping thread is woken). [`platform`] says where
//! the fixed devices live.

pub mod addr;
pub mod ask;
pub mod contract;
pub mod device;
pub mod doorbell;
pub mod id;
pub mod layout;
pub mod pages;
pub mod platform;
pub mod pulse;
pub mod swap;
pub mod threads;

pub use addr::{Access, Gpa, GpaRange, Gva, PAGE_SIZE, PageSize, Protection};
pub use id::{ActorName, VcpuId};
