//! What a vcpu's thread does next: the whole table, on one screen.
//!
//! ```text
//!              Run              no orders
//!   Fresh ───────────▶ Between ───────────▶ Guest
//!                       ▲  ▲ │ ▲              │ │
//!            Run        │  │ │ └── knocked ───┘ │ exit
//!   Parked ─────────────┘  │ │                  ▼
//!     ▲                    └─┼─── served ──── Serving
//!     └──────── Pause ───────┘                  │ ended
//!                                               ▼
//!   Retired ◀──────── Retire ──────────────── Over
//!             (from everywhere outside the guest)
//! ```
//!
//! The table knows no thread, no lock and no guest. [`thread`](crate::thread) asks it, does what it
//! says, and is the only one that sleeps, enters a guest or answers anybody.

/// Where a vcpu is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Never ran: its registers may still be set.
    Fresh,
    /// Out of the guest because somebody asked for that.
    Parked,
    /// Out of the guest for a moment, to look at its orders.
    Between,
    /// In the guest.
    Guest,
    /// Out of the guest, giving it what it asked for.
    Serving,
    /// The guest has ended on this vcpu: it never enters again.
    Over,
    /// The thread ends.
    Retired,
}

/// What can happen to a vcpu: an order was taken from the mailbox, or a piece of its own work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Order: begin with these registers.
    Begin,
    /// Order: run the guest.
    Run,
    /// Order: come out and stay out.
    Pause,
    /// Order: say what you look like.
    Look,
    /// Order: end.
    Retire,
    /// Order: break, for a test.
    Break,
    /// The mailbox is empty.
    NoOrders,
    /// The guest came out and wants nothing.
    Knocked,
    /// The guest came out and wants something.
    Exit,
    /// It got what it wanted.
    Served,
    /// What it wanted, or did, ends it.
    Ended,
}

/// What an event asks for, then and there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing.
    Nothing,
    /// Set the registers and say so.
    SetRegisters,
    /// Say that registers cannot be set any more.
    RefuseRegisters,
    /// Say that the vcpu is out of the guest and stays out.
    SayParked,
    /// Say what the vcpu looks like.
    SayLooks,
    /// Let the guest know that time has passed without it.
    ExcusePause,
    /// Let the question fall: only a parked vcpu answers it.
    LetFall,
    /// Break, as a test wants it.
    Break,
}

/// What the thread does to learn of the next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Sleep until there is an order.
    AwaitOrder,
    /// Take an order if there is one.
    LookForOrders,
    /// Go into the guest.
    Enter,
    /// Give the guest what it asked for.
    Serve,
    /// Leave the thread.
    Finish,
}

/// Something happened that cannot happen there: a mistake in the thread, not in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} cannot happen to a vcpu that is {state:?}")]
pub(crate) struct OutOfPlace {
    state: State,
    event: Event,
}

impl State {
    /// Where `event` leads, and what it asks for.
    pub(crate) fn on(self, event: Event) -> Result<(Self, Act), OutOfPlace> {
        use {Act as A, Event as E, State as S};
        Ok(match (self, event) {
            (S::Fresh | S::Parked | S::Between | S::Over, E::Retire) => (S::Retired, A::Nothing),
            (S::Fresh | S::Parked | S::Between | S::Over, E::Break) => (self, A::Break),

            (S::Fresh, E::Begin) => (S::Fresh, A::SetRegisters),
            (S::Parked | S::Between | S::Over, E::Begin) => (self, A::RefuseRegisters),

            (S::Fresh | S::Between, E::Run) => (S::Between, A::Nothing),
            (S::Parked, E::Run) => (S::Between, A::ExcusePause),
            (S::Over, E::Run) => (S::Over, A::Nothing),

            // A vcpu that never ran stays one whose registers may be set.
            (S::Fresh | S::Over, E::Pause) => (self, A::SayParked),
            (S::Parked | S::Between, E::Pause) => (S::Parked, A::SayParked),

            (S::Fresh | S::Parked | S::Over, E::Look) => (self, A::SayLooks),
            (S::Between, E::Look) => (S::Between, A::LetFall),

            (S::Between, E::NoOrders) => (S::Guest, A::Nothing),
            (S::Guest, E::Knocked) => (S::Between, A::Nothing),
            (S::Guest, E::Exit) => (S::Serving, A::Nothing),
            (S::Serving, E::Served) => (S::Between, A::Nothing),
            (S::Serving, E::Ended) => (S::Over, A::Nothing),

            (state, event) => return Err(OutOfPlace { state, event }),
        })
    }

    /// How a vcpu in this state learns what happens next.
    pub(crate) fn next(self) -> Next {
        match self {
            Self::Fresh | Self::Parked | Self::Over => Next::AwaitOrder,
            Self::Between => Next::LookForOrders,
            Self::Guest => Next::Enter,
            Self::Serving => Next::Serve,
            Self::Retired => Next::Finish,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 7] = [
        State::Fresh,
        State::Parked,
        State::Between,
        State::Guest,
        State::Serving,
        State::Over,
        State::Retired,
    ];
    const EVENTS: [Event; 11] = [
        Event::Begin,
        Event::Run,
        Event::Pause,
        Event::Look,
        Event::Retire,
        Event::Break,
        Event::NoOrders,
        Event::Knocked,
        Event::Exit,
        Event::Served,
        Event::Ended,
    ];
    const ORDERS: [Event; 6] =
        [Event::Begin, Event::Run, Event::Pause, Event::Look, Event::Retire, Event::Break];

    fn after(events: impl IntoIterator<Item = Event>) -> (State, Act) {
        events
            .into_iter()
            .fold((State::Fresh, Act::Nothing), |(state, _), event| state.on(event).unwrap())
    }

    /// The table once more, as rows of a person's reading: state, event, state after, act.
    /// What is not here is out of place.
    const ROWS: [(State, Event, State, Act); 29] = {
        use {Act as A, Event as E, State as S};
        [
            (S::Fresh, E::Begin, S::Fresh, A::SetRegisters),
            (S::Fresh, E::Run, S::Between, A::Nothing),
            (S::Fresh, E::Pause, S::Fresh, A::SayParked),
            (S::Fresh, E::Look, S::Fresh, A::SayLooks),
            (S::Fresh, E::Retire, S::Retired, A::Nothing),
            (S::Fresh, E::Break, S::Fresh, A::Break),
            (S::Parked, E::Begin, S::Parked, A::RefuseRegisters),
            (S::Parked, E::Run, S::Between, A::ExcusePause),
            (S::Parked, E::Pause, S::Parked, A::SayParked),
            (S::Parked, E::Look, S::Parked, A::SayLooks),
            (S::Parked, E::Retire, S::Retired, A::Nothing),
            (S::Parked, E::Break, S::Parked, A::Break),
            (S::Between, E::Begin, S::Between, A::RefuseRegisters),
            (S::Between, E::Run, S::Between, A::Nothing),
            (S::Between, E::Pause, S::Parked, A::SayParked),
            (S::Between, E::Look, S::Between, A::LetFall),
            (S::Between, E::Retire, S::Retired, A::Nothing),
            (S::Between, E::Break, S::Between, A::Break),
            (S::Between, E::NoOrders, S::Guest, A::Nothing),
            (S::Guest, E::Knocked, S::Between, A::Nothing),
            (S::Guest, E::Exit, S::Serving, A::Nothing),
            (S::Serving, E::Served, S::Between, A::Nothing),
            (S::Serving, E::Ended, S::Over, A::Nothing),
            (S::Over, E::Begin, S::Over, A::RefuseRegisters),
            (S::Over, E::Run, S::Over, A::Nothing),
            (S::Over, E::Pause, S::Over, A::SayParked),
            (S::Over, E::Look, S::Over, A::SayLooks),
            (S::Over, E::Retire, S::Retired, A::Nothing),
            (S::Over, E::Break, S::Over, A::Break),
        ]
    };

    #[test]
    fn every_pair_of_state_and_event_leads_where_the_rows_say_or_is_out_of_place() {
        for state in STATES {
            for event in EVENTS {
                let row = ROWS
                    .iter()
                    .find(|row| (row.0, row.1) == (state, event))
                    .map(|row| (row.2, row.3))
                    .ok_or(OutOfPlace { state, event });
                assert_eq!(state.on(event), row, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn a_stop_order_is_noticed_between_two_trips_into_the_guest() {
        let told_to_stop = [Event::Run, Event::NoOrders, Event::Knocked, Event::Pause];
        assert_eq!(after(told_to_stop), (State::Parked, Act::SayParked));
    }

    #[test]
    fn only_an_empty_mailbox_leads_into_the_guest() {
        for state in STATES {
            for event in EVENTS {
                if let Ok((State::Guest, _)) = state.on(event) {
                    assert_eq!((state, event), (State::Between, Event::NoOrders));
                }
            }
        }
    }

    #[test]
    fn a_guest_that_ended_never_runs_again() {
        for event in EVENTS {
            if let Ok((state, _)) = State::Over.on(event) {
                assert!(matches!(state, State::Over | State::Retired), "{event:?}");
            }
        }
    }

    #[test]
    fn whoever_waits_for_an_order_takes_every_order() {
        for state in STATES {
            if matches!(state.next(), Next::AwaitOrder | Next::LookForOrders) {
                for order in ORDERS {
                    assert!(state.on(order).is_ok(), "{state:?} on {order:?}");
                }
            }
        }
    }

    #[test]
    fn nobody_is_told_parked_while_the_guest_could_run_on() {
        for state in STATES {
            for event in EVENTS {
                if let Ok((after, Act::SayParked)) = state.on(event) {
                    assert_eq!(after.next(), Next::AwaitOrder, "{state:?} on {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_mistake_reads_like_a_bug_report() {
        let mistake = State::Serving.on(Event::Pause).unwrap_err();
        assert_eq!(mistake.to_string(), "Pause cannot happen to a vcpu that is Serving");
    }
}
