//! The real processor: sequences run in a child process, at fixed addresses, sixty-four at a time.
//!
//! The parent writes code and states into memory that both share and passes the turn; the child loads
//! all registers, jumps, and comes back through a jump at the sequence's end, with no system call on
//! the way. Only what faults costs a signal. The child can make no system calls but those that the way back takes
//! (a seccomp filter), has a timer against sequences without an end, and is replaced when it dies.
//!
//! Reading order: [`region`] (what both share, and the parent's side) → [`child`] (the other side).

pub mod child;
pub mod region;

use crate::layout::SLOTS;
use crate::state::{Ending, Input, Outcome};
use region::Region;

/// Why nothing can be run natively.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The host refuses something that the child needs.
    #[error("the host refuses {what}: {source}")]
    Refused {
        /// What.
        what: &'static str,
        /// How it says so.
        source: std::io::Error,
    },
    /// The child ended while it ran a sequence; the next one is there already.
    #[error("the child process ended ({status}) while it ran sequence {slot} of its batch")]
    Died {
        /// Wait status.
        status: String,
        /// Which one.
        slot: usize,
    },
    /// Too much at once.
    #[error("{0} sequences do not fit a batch of {SLOTS}")]
    TooMany(usize),
    /// Code that does not fit its pages.
    #[error("{bytes} bytes of code do not fit at offset {entry}")]
    TooLong {
        /// Of code.
        bytes: usize,
        /// Where.
        entry: usize,
    },
}

/// A child process and what it shares with us.
#[derive(Debug)]
pub struct Native {
    region: Region,
    /// How many sequences are on their way.
    under_way: usize,
}

impl Native {
    /// Starts the child.
    ///
    /// # Errors
    ///
    /// When the host refuses a mapping, the fork, or something else of [`NativeError::Refused`].
    pub fn start() -> Result<Self, NativeError> {
        Ok(Self { region: Region::start()?, under_way: 0 })
    }

    /// Hands sequences to the child, which starts at once. Their places are their indices.
    ///
    /// # Errors
    ///
    /// [`NativeError::TooMany`], [`NativeError::TooLong`].
    pub fn submit(&mut self, inputs: &[Input]) -> Result<(), NativeError> {
        if inputs.len() > SLOTS {
            return Err(NativeError::TooMany(inputs.len()));
        }
        for (place, input) in inputs.iter().enumerate() {
            self.region.prepare(place, input)?;
        }
        self.under_way = inputs.len();
        self.region.pass_turn(inputs.len());
        Ok(())
    }

    /// Waits for the child and shows what came out, one after the other.
    ///
    /// # Errors
    ///
    /// [`NativeError::Died`]; the outcomes of this batch are lost, and the next batch finds a new child.
    pub fn collect(&mut self, mut show: impl FnMut(usize, &Outcome)) -> Result<(), NativeError> {
        self.region.await_turn()?;
        let mut outcome = Outcome::blank();
        for place in 0..self.under_way {
            self.region.read_outcome(place, &mut outcome);
            show(place, &outcome);
        }
        Ok(())
    }

    /// Runs one sequence alone.
    ///
    /// # Errors
    ///
    /// As [`Self::submit`] and [`Self::collect`].
    pub fn run(&mut self, input: &Input) -> Result<Outcome, NativeError> {
        self.submit(std::slice::from_ref(input))?;
        let mut result = Outcome::blank();
        self.collect(|_, outcome| result.clone_from(outcome))?;
        Ok(result)
    }

    /// Whether the child really runs at the addresses and in the mode that sequences expect: an empty
    /// sequence ends where it should.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub fn is_sane(&mut self) -> Result<bool, NativeError> {
        let empty = Input {
            slot: 0,
            entry: 0,
            code: vec![0x90],
            state: crate::state::State::initial(),
            template: 0,
        };
        Ok(self.run(&empty)?.ending == Ending::Finished)
    }
}
