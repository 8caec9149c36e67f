//! A virtual processor as an actor.
//!
//! A vcpu is a thread that owns an [engine](engine::Engine) and nothing else. It obeys
//! [orders](actors::contract::vcpu::Order) from a bounded mailbox, which it looks at between two trips
//! into the guest; whoever sends one also [knocks](Knocker), so that a running guest comes out. Every
//! trip goes through the [shootdown domain](shootdown::Domain): in the guest is a value the thread
//! holds, and giving it up is the first thing that happens when the guest comes out. What the guest
//! wants is served on the same thread, by the devices' [`Bus`](actors::device::Bus). A guest that ends, or
//! cannot go on, is told to the machine; the vcpu then parks for good and waits to be retired.
//!
//! # The engine contract
//!
//! An engine knows how to run guest code and no actor at all. *Enter* runs the guest until it wants
//! something or somebody knocks, and only says which; *exit* says what it wants, and is asked after the
//! vcpu has left the shootdown domain, because whoever waits for the vcpu shall not wait for a decoder.
//! *Flush* forgets every cached translation; it is called on the way in and never inside. On KVM
//! there is nothing to forget yet: the host kernel drops its own translations when the host mapping
//! changes, and this engine keeps no host pointer into guest memory between two trips. The count of
//! flushes is the domain's.
//!
//! # Why nobody waits in a circle
//!
//! A vcpu thread waits in three places only. *At its mailbox*, out of the guest: nobody who needs the
//! vcpu's acknowledgement waits for it there, since it counts as out. *In the guest*, perhaps asleep in the
//! kernel on a page fault: the pmap that must answer the fault goes on serving while it waits for a
//! shootdown, and a knock ends the trip in all other cases. *For a device's lock*, while serving: out
//! of the guest again, and devices wait for nobody. Orders are told, never asked: a full mailbox is an
//! error for the sender, not a wait. So every arrow of waiting points from the machine to the vcpu, and
//! none points back.
//!
//! # Reading order
//!
//! `state.rs` (what a vcpu does next, as a table) → `thread.rs` (does it) → `knock/` (how it is brought
//! out) → `serve.rs` (who answers an exit) → [`engine`] (what runs the guest) → `handle.rs` and
//! `together.rs` (what everybody else holds) → `turns.rs` (vcpus that share a processor).

pub mod engine;
mod handle;
mod knock;
mod serve;
mod state;
mod thread;
mod together;
mod turns;

pub use handle::{OrderError, VcpuHandle};
pub use knock::{ExitFlag, KickKind, Knocker, SignalError};
pub use thread::{ServeFault, VcpuConfig, Wake, start};
pub use together::{Overdue, Pausing, pause_all, run_all};
pub use turns::Turns;
