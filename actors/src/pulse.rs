//! How an actor shows that it is alive, and how a hang is told from a rest.
//!
//! Each thread of ours owns one [`Pulse`]. It *beats* whenever it starts on something
//! and *rests* whenever it waits for somebody else (a mailbox, a guest, the kernel's
//! poll). The supervisor looks now and then: an actor that is busy and has not beaten
//! since the last look, for longer than the deadline, hangs. Looking costs the actor
//! nothing, no message is sent, and no guest is interrupted to prove that it runs.
//!
//! A `Pulse` carries no data from one thread to the other, so every access is relaxed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One actor's sign of life. Cheap to clone; the clones are the same pulse.
#[derive(Clone, Debug, Default)]
pub struct Pulse {
    /// Count of beats, shifted left by one; the low bit says "busy".
    word: Arc<AtomicU64>,
}

/// What a look at a [`Pulse`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat(u64);

impl Beat {
    /// The actor is at work, as opposed to waiting for somebody.
    #[must_use]
    pub fn is_busy(self) -> bool {
        self.0 & 1 == 1
    }
}

impl Pulse {
    /// "I start on something."
    pub fn beat(&self) {
        // Only the owner writes: a plain load and store, no locked instruction.
        self.word.store((self.word.load(Relaxed) | 1).wrapping_add(2), Relaxed);
    }

    /// "I wait for somebody else now; that may take for ever."
    pub fn rest(&self) {
        self.word.store(self.word.load(Relaxed) & !1, Relaxed);
    }

    /// What the supervisor sees.
    #[must_use]
    pub fn look(&self) -> Beat {
        Beat(self.word.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_actor_that_beats_again_looks_different() {
        let pulse = Pulse::default();
        assert!(!pulse.look().is_busy());
        pulse.beat();
        let first = pulse.look();
        assert!(first.is_busy());
        pulse.beat();
        assert!(pulse.look().is_busy());
        assert_ne!(first, pulse.look());
    }

    #[test]
    fn a_resting_actor_is_not_busy() {
        let pulse = Pulse::default();
        pulse.beat();
        pulse.rest();
        assert!(!pulse.look().is_busy());
    }
}
