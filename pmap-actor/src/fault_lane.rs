//! The lane in which vcpus wait that ask for what they cannot go on without.
//!
//! It stands beside the mailbox, because faults are served when requests wait: while a
//! shootdown is on its way. It cannot grow: a vcpu waits for its answer before it asks again.
//!
//! And it can be *sealed*, by the actor's end or by whoever finds the actor hanging: those who
//! wait are told that it is gone, and so is everybody who comes later. Both are under one
//! lock, so nobody slips in between and waits for nobody.

use std::collections::VecDeque;

use actors::contract::space::{NestedFault, Reply, SpaceError};
use parking_lot::Mutex;

/// A vcpu that waits.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) fault: NestedFault,
    pub(crate) reply: Reply<()>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Asked>,
    sealed: bool,
}

/// First come, first served.
#[derive(Debug, Default)]
pub(crate) struct FaultLane {
    state: Mutex<State>,
}

impl FaultLane {
    /// Joins the lane. Whoever does must ring the actor's bell afterwards.
    ///
    /// # Errors
    ///
    /// [`SpaceError::Dead`] when it is sealed.
    pub(crate) fn join(&self, fault: NestedFault, reply: Reply<()>) -> Result<(), SpaceError> {
        let mut state = self.state.lock();
        if state.sealed {
            return Err(SpaceError::Dead("is gone"));
        }
        state.waiting.push_back(Asked { fault, reply });
        Ok(())
    }

    /// Who is next.
    pub(crate) fn next(&self) -> Option<Asked> {
        self.state.lock().waiting.pop_front()
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().waiting.is_empty()
    }

    /// Sends everybody away, now and from now on.
    pub(crate) fn seal(&self) {
        let mut state = self.state.lock();
        state.sealed = true;
        // A dropped question is an answer.
        state.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use actors::contract::space::FaultOrigin;
    use actors::{Access, Gpa, VcpuId};
    use tokio::sync::oneshot;

    use super::*;

    fn fault(gpa: u64) -> NestedFault {
        let origin = FaultOrigin { gva: None, is_table_walk: false, rip: 0, cr3: 0 };
        NestedFault { vcpu: VcpuId(0), gpa: Gpa(gpa), access: Access::Read, origin }
    }

    #[test]
    fn sealing_sends_away_those_who_wait_and_those_who_come() {
        let lane = FaultLane::default();
        let (reply, mut answer) = oneshot::channel();
        lane.join(fault(1), reply).unwrap();
        assert!(!lane.is_empty());
        lane.seal();
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        let (reply, _answer) = oneshot::channel();
        assert_eq!(lane.join(fault(2), reply), Err(SpaceError::Dead("is gone")));
        assert!(lane.next().is_none());
    }

    #[test]
    fn who_came_first_is_served_first() {
        let lane = FaultLane::default();
        for gpa in [3, 1, 2] {
            let (reply, _answer) = oneshot::channel();
            lane.join(fault(gpa), reply).unwrap();
        }
        let served: Vec<_> = std::iter::from_fn(|| lane.next()).map(|one| one.fault.gpa).collect();
        assert_eq!(served, [Gpa(3), Gpa(1), Gpa(2)]);
    }
}
