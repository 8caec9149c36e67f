//! The machine's phases: a pure table.
//!
//! ```text
//!   built ──load──▶ loading ──loaded──▶ running ⇄ pausing ─▶ paused
//!     └────────────────┴──────────end──────┴─────────┴──────────┴──▶ off
//! ```

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Every actor exists; memory is empty.
    Built,
    /// The loader is at work.
    Loading,
    /// The vcpus were told to run.
    Running,
    /// The vcpus were told to come out; not all are.
    Pausing,
    /// All vcpus are out and stay out.
    Paused,
    /// Over.
    Off,
}

/// What happens to a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it to start.
    Load,
    /// The loader is done, and the boot vcpu has its registers.
    Loaded,
    /// Somebody wants it paused.
    Pause,
    /// All vcpus are out.
    AllOut,
    /// Somebody wants it to go on.
    Resume,
    /// Its end, for whatever reason.
    End,
}

/// Something that cannot happen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a machine that is {phase:?}")]
pub struct OutOfPlace {
    /// What.
    pub event: Event,
    /// Where the machine is.
    pub phase: Phase,
}

impl Phase {
    /// Where `event` leads.
    ///
    /// # Errors
    ///
    /// [`OutOfPlace`]; the machine stays where it is.
    pub fn on(self, event: Event) -> Result<Self, OutOfPlace> {
        use {Event as E, Phase as P};
        Ok(match (self, event) {
            (P::Built, E::Load) => P::Loading,
            (P::Loading, E::Loaded) | (P::Paused, E::Resume) => P::Running,
            (P::Running, E::Pause) => P::Pausing,
            (P::Pausing, E::AllOut) => P::Paused,
            // Ending twice is not a mistake: two vcpus may end a guest at once.
            (_, E::End) => P::Off,
            (phase, event) => return Err(OutOfPlace { event, phase }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(events: &[Event]) -> Result<Phase, OutOfPlace> {
        events.iter().try_fold(Phase::Built, |phase, event| phase.on(*event))
    }

    #[test]
    fn a_machine_pauses_and_resumes_as_often_as_one_likes() {
        use Event::{AllOut, End, Load, Loaded, Pause, Resume};
        let life = [Load, Loaded, Pause, AllOut, Resume, Pause, AllOut];
        assert_eq!(after(&life), Ok(Phase::Paused));
        assert_eq!(after(&[Load, Loaded, Pause, End, End]), Ok(Phase::Off));
    }

    #[test]
    fn what_is_over_stays_over() {
        for event in [Event::Load, Event::Loaded, Event::Pause, Event::AllOut, Event::Resume] {
            assert_eq!(Phase::Off.on(event), Err(OutOfPlace { event, phase: Phase::Off }));
        }
        let message = Phase::Off.on(Event::Pause).unwrap_err().to_string();
        assert_eq!(message, "Pause cannot happen to a machine that is Off");
    }

    #[test]
    fn a_machine_that_does_not_run_is_neither_paused_nor_resumed() {
        assert!(after(&[Event::Pause]).is_err());
        assert!(after(&[Event::Load, Event::Pause]).is_err());
        assert!(after(&[Event::Load, Event::Loaded, Event::Resume]).is_err());
    }
}
