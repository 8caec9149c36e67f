//! Guests that come with skep: a few hundred instructions each, assembled in the source.
//!
//! A [`Guest`] is an image (bytes between two labels of a `global_asm!` block), where it
//! is loaded, the registers its boot vcpu starts with, and the further bytes the host has
//! to place: page tables and parameters, made for the machine at hand.
//!
//! They run on hardware-assisted KVM and on hosts whose KVM *emulates* privileged code at
//! 0.7-3 us an instruction and runs only CPL 3 natively: privileged parts are short and use
//! plain integer instructions, whatever runs for long runs at CPL 3 with IOPL 3.
//!
//! Reading order: [`hello`], [`places`] (what lies where in all the others), [`start`] (how
//! every vcpu gets in), then the guest at hand; `storm` is a protocol, told at its head, and `tour` an itinerary.

use actors::Gpa;
use actors::contract::boot::EntryState;
use actors::layout::MemoryLayout;
pub use start::Level;

pub mod exceptions;
pub mod hello;
mod image;
pub mod loops;
pub mod places;
mod print;
pub mod smp;
pub mod spin;
pub mod start;
pub mod storm;
pub mod storm_control;
pub mod storm_driver;
pub mod sweep;
mod tables;
pub mod toucher;
pub mod tour;

/// Bytes to place in the guest's memory, and where.
pub type Piece = (Gpa, Vec<u8>);

/// A guest that comes with skep.
#[derive(Debug)]
pub struct Guest {
    /// What `--guest` calls it.
    pub name: &'static str,
    /// What it does, in one line for `--help`.
    pub about: &'static str,
    /// Its bytes, assembled into our own binary.
    pub image: fn() -> &'static [u8],
    /// Where the image's first byte goes.
    pub load_at: Gpa,
    /// How vcpu 0 begins. The others wait for INIT and SIPI.
    pub entry: fn() -> EntryState,
    /// The bytes to place beside the image: page tables, parameters. May overlap
    /// neither the image nor each other.
    ///
    /// Call [`Guest::pieces`], which checks the machine first.
    pub prepare: fn(memory: &MemoryLayout, vcpus: u16) -> Vec<Piece>,
    /// It touches addresses from 0 up to here, in bytes: the low memory it needs.
    pub memory_bytes: u64,
    /// It gives work to at most this many vcpus.
    pub most_vcpus: u16,
}

/// Why a guest cannot run on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    /// It would touch addresses where there is no memory.
    #[error(
        "guest \"{name}\" needs {needs} bytes of memory below the device hole, and has {has}: \
         give it more with -m"
    )]
    TooLittleMemory {
        /// Which guest.
        name: &'static str,
        /// What it needs, in bytes.
        needs: u64,
        /// What there is, in bytes.
        has: u64,
    },
    /// It has no place for so many vcpus, or there is none.
    #[error("guest \"{name}\" runs on 1 to {most} vcpus, not on {vcpus}")]
    Vcpus {
        /// Which guest.
        name: &'static str,
        /// What it can use.
        most: u16,
        /// What there are.
        vcpus: u16,
    },
}

impl Guest {
    /// Everything to place before vcpu 0 starts, the image included. The pieces do not
    /// overlap.
    ///
    /// # Errors
    ///
    /// [`Unsuitable`] when the machine is too small for it or has too many vcpus.
    pub fn pieces(&self, memory: &MemoryLayout, vcpus: u16) -> Result<Vec<Piece>, Unsuitable> {
        if memory.low().len() < self.memory_bytes {
            return Err(Unsuitable::TooLittleMemory {
                name: self.name,
                needs: self.memory_bytes,
                has: memory.low().len(),
            });
        }
        if vcpus == 0 || vcpus > self.most_vcpus {
            return Err(Unsuitable::Vcpus { name: self.name, most: self.most_vcpus, vcpus });
        }
        let mut pieces = vec![(self.load_at, (self.image)().to_vec())];
        pieces.extend((self.prepare)(memory, vcpus));
        Ok(pieces)
    }
}

/// All of them, in the order of `--help`.
pub const ALL: &[&Guest] = &[
    &hello::GUEST,
    &smp::GUEST,
    &storm::GUEST,
    &storm::GUEST_AT_CPL_0,
    &spin::GUEST,
    &toucher::GUEST,
    &sweep::GUEST,
    &tour::GUEST,
    &loops::GUEST,
];

/// The guest that `--guest` calls `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Guest> {
    ALL.iter().copied().find(|guest| guest.name == name)
}

/// Their names, in the order of `--help`.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|guest| guest.name)
}

#[cfg(test)]
mod storm_model;
#[cfg(test)]
mod tests;
