//! Each processor's local APIC, and the I/O APIC that turns interrupt lines into messages.
//!
//! On KVM the kernel has these; here they serve an engine in this process. Nothing in this
//! module has a thread or a clock: time comes in as the guest's time-stamp counter, and what
//! others must hear goes out as a [`Command`] or through [`Interrupts`].
//!
//! # Who owns what
//!
//! A [`LocalApic`] belongs to one vcpu's thread and is never locked. Whoever sends an
//! interrupt must know who is meant without looking into other vcpus' controllers, so each
//! owner keeps one atomic word in the [`Directory`] up to date: the [`Address`] it answers to.
//!
//! ```text
//!   vcpu 0's thread                                        vcpu 1's thread
//!   LocalApic::write(ICR) ──▶ Command::Send(message)
//!                             Directory::destinations ──▶  Inbox::post
//!                                                          Inbox::collect
//!                                                          LocalApic::accept
//!   IoApic (behind a lock) ─▶ Interrupts::send ─────────▶  LocalApic::pending
//!          ▲                                               LocalApic::acknowledge
//!          └───────── Command::EndOfInterrupt ◀─────────── LocalApic::write(EOI)
//! ```
//!
//! Reading order: [`message`] (what travels), [`directory`] (to whom), [`inbox`] (how it
//! waits there), [`local`] (one processor's view), then its registers and its timer; [`io`]
//! stands by itself.
//!
//! Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller (APIC)",
//! called "SDM, APIC" below; sections are cited by name.
//!
//! Known holes: no system management mode, so SMIs go nowhere. Thermal and performance
//! counter interrupts have their registers and never come. The second local input (LINT1)
//! is not wired; the first one carries the 8259s' request only
//! ([`LocalApic::accepts_external`]) and nothing when it is programmed for a fixed vector.

pub mod address;
pub mod directory;
pub mod inbox;
pub mod io;
pub mod local;
pub mod message;

mod command;
mod register;
mod timer;
mod vectors;

pub use address::Address;
pub use directory::{Directory, Targets};
pub use inbox::{Inbox, Signals};
pub use io::{Interrupts, IoApic};
pub use local::{GeneralProtection, LocalApic};
pub use message::{Command, Delivery, Destination, Interrupt, Message, Trigger};

/// The clock of the local APIC's timer before division, in hertz: the "core crystal clock".
pub const TIMER_HZ: u32 = 25_000_000;

/// How many ticks of the guest's time-stamp counter, which counts nanoseconds, are one tick
/// of the timer's clock.
pub const TSC_TICKS_PER_TIMER_TICK: u32 = 40;

/// EAX, EBX, ECX and EDX of CPUID leaf 0x15, which says so to the guest: the time-stamp
/// counter's ratio to the crystal (denominator, numerator) and the crystal's frequency.
/// Guests set the timer by it. Source: Intel SDM volume 2, CPUID, "Time Stamp Counter and
/// Nominal Core Crystal Clock Information Leaf".
pub const CPUID_LEAF_15: [u32; 4] = [1, TSC_TICKS_PER_TIMER_TICK, TIMER_HZ, 0];

#[cfg(test)]
mod local_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod msr_tests;
#[cfg(test)]
mod timer_tests;
