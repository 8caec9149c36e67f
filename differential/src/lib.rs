//! The software processor against the real one, instruction by instruction.
//!
//! Random and edge-case sequences of user-mode instructions run twice from the same state: natively, in a child process
//! ([`native`]), and in `soft-cpu`, in user mode of a small guest with the same addresses mapped ([`soft`]). What is
//! left must be the same: registers, flags that mean something, x87 and SSE state, data, or else the same exception
//! with the same error code at the same place ([`compare`]).
//!
//! A sequence ([`sequence::Sequence`]) follows from a family, a seed and a number ([`generate`]), so that whatever
//! fails can be replayed; a failing one is made small ([`shrink`]) before it is shown ([`report`]).
//!
//! Reading order: `layout.rs` (where everything lies) → `state.rs` → `native/` → `soft/` → `sequence.rs` → `generate/` →
//! `compare.rs` → `campaign.rs`.
//!
//! # What is not compared
//!
//! What processors of different makers do differently, or documents leave open: undefined flags, x87's pointers to the last
//! instruction and operand, the order in which the two operands of one instruction fault. System calls,
//! clocks, CPUID, and whatever shows the host kernel's own tables.

pub mod campaign;
pub mod compare;
pub mod generate;
pub mod layout;
pub mod native;
pub mod random;
pub mod report;
pub mod sequence;
pub mod shrink;
pub mod soft;
pub mod state;
pub mod templates;
pub mod values;
