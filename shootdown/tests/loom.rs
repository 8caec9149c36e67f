//! Every order of events in the dances of `domain.rs` and `kick.rs`.
//!
//! `cargo model` runs this; without `--cfg loom` it is empty. Each test is a claim, named as
//! a sentence that goes on from the one before it. Modules, in reading order:
//!
//! * `world`: what the models are made of;
//! * `frames`: what has been given back cannot be read;
//! * `waking`: whoever sleeps is woken, whoever is in the way is told;
//! * `counting`: every raise ends once;
//! * `kicks`: no kick is lost, with a third thread for the kernel;
//! * `mutants`: each line broken once, and a claim that notices.
//!
//! `tests/README.md` has the figures and the table of mutants.

#![cfg(loom)]

#[path = "loom/counting.rs"]
mod counting;
#[path = "loom/frames.rs"]
mod frames;
#[path = "loom/kicks.rs"]
mod kicks;
#[path = "loom/mutants.rs"]
mod mutants;
#[path = "loom/waking.rs"]
mod waking;
#[path = "loom/world.rs"]
mod world;
