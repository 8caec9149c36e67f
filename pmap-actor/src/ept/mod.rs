//! The table format in one picture.
//!
//! ```text
//!   gpa  47      39 38      30 29      21 20      12 11        0
//!       ┌──────────┬──────────┬──────────┬──────────┬───────────┐
//!       │ level 4  │ level 3  │ level 2  │ level 1  │ in the page│
//!       └────┬─────┴────┬─────┴────┬─────┴────┬─────┴───────────┘
//!            ▼          ▼          ▼          ▼
//!          root ──▶   table ──▶  table ──▶   leaf: frame and permissions
//!                                   └────▶   or a leaf already: 2 MiB, a *superpage*
//! ```
//!
//! 512 entries of 8 bytes each per table. A *frame* is an offset into the guest's memory
//! object (the memfd); the frame of a *table* is its place in the arena (`arena.rs`). An aligned 2 MiB is a
//! *block*.
//!
//! Reading order: [`masks`] (which bit means what), [`attribute`], [`entry`] (what an entry says) →
//! [`tables`] (the writer) → [`view`] (the readers, and how they and the writer share an entry) → [`last_tables`] (a
//! reader that remembers how far it came).

mod arena;
pub mod attribute;
pub mod entry;
pub mod last_tables;
pub mod masks;
pub mod tables;
pub mod view;
