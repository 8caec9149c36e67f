//! Who hangs: a pure reading of pulses.

use std::time::Duration;

use actors::ActorName;
use actors::pulse::{Beat, Pulse};

/// How long an actor may be busy with one thing. Nothing any of them does takes a second,
/// save wiring memory, which beats in between.
pub const DEADLINE: Duration = Duration::from_secs(5);

struct Watched {
    actor: ActorName,
    pulse: Pulse,
    last: Beat,
    unmoved_for: Duration,
}

/// The pulses of a machine's actors.
#[derive(Default)]
pub struct Watch {
    watched: Vec<Watched>,
}

impl Watch {
    /// Watches one more actor.
    pub fn add(&mut self, actor: ActorName, pulse: Pulse) {
        let last = pulse.look();
        self.watched.push(Watched { actor, pulse, last, unmoved_for: Duration::ZERO });
    }

    /// Looks at everybody, `since_last` after the look before; names whoever has been busy
    /// with one thing for [`DEADLINE`].
    pub fn look(&mut self, since_last: Duration) -> Option<ActorName> {
        for watched in &mut self.watched {
            let now = watched.pulse.look();
            if now.is_busy() && now == watched.last {
                watched.unmoved_for += since_last;
            } else {
                watched.unmoved_for = Duration::ZERO;
            }
            watched.last = now;
        }
        let hangs = |watched: &&Watched| watched.unmoved_for >= DEADLINE;
        self.watched.iter().find(hangs).map(|watched| watched.actor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched() -> (Watch, Pulse) {
        let (mut watch, pulse) = (Watch::default(), Pulse::default());
        watch.add(ActorName::Pmap, pulse.clone());
        (watch, pulse)
    }

    #[test]
    fn an_actor_busy_with_one_thing_past_the_deadline_hangs() {
        let (mut watch, pulse) = watched();
        pulse.beat();
        assert_eq!(watch.look(DEADLINE), None, "the first look only sees where it is");
        assert_eq!(watch.look(DEADLINE / 2), None);
        assert_eq!(watch.look(DEADLINE / 2), Some(ActorName::Pmap));
    }

    #[test]
    fn resting_for_ever_is_not_hanging_and_neither_is_beating() {
        let (mut watch, pulse) = watched();
        for _ in 0..3 {
            assert_eq!(watch.look(10 * DEADLINE), None);
        }
        for _ in 0..3 {
            pulse.beat();
            assert_eq!(watch.look(10 * DEADLINE), None);
        }
    }
}
