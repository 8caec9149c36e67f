//! Whom to knock on, and whose thread is whose.

use std::sync::{Arc, OnceLock};

use actors::VcpuId;
use shootdown::SeatId;

/// Makes one vcpu come out of the guest; sticky, callable from any thread, never blocks.
pub type Knock = Arc<dyn Fn() + Send + Sync>;

struct Member {
    thread: u32,
    knock: Knock,
}

/// The vcpus of one vmspace. Each is entered once, before it runs.
pub struct Roster {
    members: Box<[OnceLock<Member>]>,
}

impl Roster {
    /// Room for `vcpus` members, none entered yet.
    #[must_use]
    pub fn new(vcpus: u16) -> Self {
        Self { members: (0..vcpus).map(|_| OnceLock::new()).collect() }
    }

    /// Enters `vcpu`, whose operating-system thread is `thread`.
    ///
    /// # Panics
    ///
    /// When it is entered already: a vcpu has one thread for life.
    pub fn enter(&self, vcpu: VcpuId, thread: u32, knock: Knock) {
        let entered = self.members[vcpu.index()].set(Member { thread, knock });
        assert!(entered.is_ok(), "{vcpu} is on the roster already");
    }

    /// Knocks on whoever sits at `seat`.
    pub(crate) fn knock(&self, seat: SeatId) {
        // A seat that is in the guest has a thread, and a thread is entered before it runs.
        if let Some(member) = self.members[seat.0].get() {
            (member.knock)();
        }
    }

    /// The vcpu whose thread has this id: none for a kernel worker's.
    pub(crate) fn vcpu_of(&self, thread: u32) -> Option<VcpuId> {
        let is_it =
            |member: &OnceLock<Member>| member.get().is_some_and(|member| member.thread == thread);
        let index = self.members.iter().position(is_it)?;
        u16::try_from(index).ok().map(VcpuId)
    }
}
