//! A software x86-64 processor.
//!
//! It runs a guest's instructions one after the other, on any host and without privileges, and walks *our* nested
//! page tables as hardware would: two dimensions, accessed and dirty bits, violations that say what hardware says. It
//! knows no actors: time, its local APIC and the nested tables reach it through two traits
//! ([`Surroundings`], [`SecondStage`]), a knock through one byte.
//!
//! # How an instruction is done
//!
//! `run.rs` takes trace after trace from `trace_cache.rs`, which decodes (`lower/`) runs of instructions into 32-byte
//! [`op::Op`]s once, and refines them ([`lower::refine`]): a comparison and the branch that ends the trace become one, and
//! flags that nobody can see are left out. A handler works on [`cpu::Cpu`]; memory goes through `access.rs`: a hit in the soft TLB
//! (`tlb.rs`) and one machine instruction (`guest_memory.rs`), or else a walk of the guest's tables (`walk.rs`) and of ours
//! (`nested_cache.rs`, [`SecondStage`]). What keeps an instruction from being done is an [`event::Event`]: an exception,
//! which `system/` delivers, or a [`run::Stop`] for whoever owns the processor.
//!
//! # Rules for handlers
//!
//! * Change nothing before everything that can fail is done. A nested fault means that the instruction is done
//!   again; a device's answer too.
//! * An instruction that may lead elsewhere, change what code means, or set IF ends its trace
//!   ([`lower::Lowered::ends`]) and sets `rip` itself.
//! * What is not implemented is #UD and a named event, never a guess.
//!
//! # What is not here
//!
//! Segment limits are not checked outside descriptor tables (as far as 64-bit systems use segments, they have none); no
//! virtual-8086 mode, task switches, 5-level paging, nested virtualisation, debug-register breakpoints (the registers keep
//! what is written), machine checks, performance counters. An x87 error is #MF whatever CR0.NE says: there is no FERR#
//! line.

mod access;
mod checker;
pub mod code_map;
pub mod cpu;
pub mod event;
pub mod flags;
mod float_lanes;
pub mod guest_memory;
mod host_sse;
mod host_x87;
pub mod lower;
pub mod nested;
mod nested_cache;
pub mod op;
mod replay;
pub mod run;
pub mod segment;
pub mod surroundings;
pub mod system;
mod tlb;
mod trace_cache;
mod walk;
mod wide_atomic;
pub mod width;
pub mod x87_state;

pub use code_map::CodeMap;
pub use nested::SecondStage;
pub use run::{Processor, Stop};
pub use surroundings::Surroundings;
pub use walk::PHYSICAL_BITS;

#[cfg(test)]
mod tests;
