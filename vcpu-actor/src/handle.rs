//! What everybody else holds of a vcpu.

use std::sync::{Arc, Weak};

use actors::VcpuId;
use actors::contract::boot::EntryState;
use actors::contract::vcpu::{Break, Order, Parked, Snapshot, VcpuTally};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::Knocker;

/// Orders a mailbox holds. A vcpu empties it between any two trips, and nobody sends more than a few
/// orders without waiting for an answer: a full one belongs to a vcpu that hangs.
const MAILBOX: usize = 32;

/// A vcpu, from outside. Cheap to clone. No method waits.
///
/// When the last clone is dropped the vcpu retires: nobody could give it orders any more.
#[derive(Clone, Debug)]
pub struct VcpuHandle {
    desk: Arc<Desk>,
}

/// Why an order was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It has not looked at its orders for a long time.
    #[error("{vcpu} takes no orders: {MAILBOX} are waiting for it already")]
    Full {
        /// Who.
        vcpu: VcpuId,
    },
    /// Its thread is over.
    #[error("{vcpu} takes no orders: its thread has ended")]
    Gone {
        /// Who.
        vcpu: VcpuId,
    },
}

#[derive(Debug)]
struct Desk {
    id: VcpuId,
    /// Empty only while the desk is being dropped.
    orders: Option<Sender<Order>>,
    knocker: Knocker,
    tally: Arc<Mutex<VcpuTally>>,
}

impl Drop for Desk {
    fn drop(&mut self) {
        // First the mailbox closes, then the vcpu comes out and finds it closed.
        self.orders = None;
        self.knocker.knock();
    }
}

/// Reaches a vcpu as long as somebody else has a handle to it.
#[derive(Clone, Debug)]
pub(crate) struct Reader {
    pub(crate) knocker: Knocker,
    desk: Weak<Desk>,
}

impl Reader {
    /// "There may be an interrupt for you." Lost when its mailbox is full: then it is awake, or about to be.
    pub(crate) fn nudge(&self) {
        let Some(desk) = self.desk.upgrade() else { return };
        if let Some(orders) = &desk.orders {
            drop(orders.try_send(Order::Nudge));
        }
    }
}

impl VcpuHandle {
    /// A handle, and the two things the thread keeps of it.
    pub(crate) fn new(
        id: VcpuId,
        knocker: Knocker,
    ) -> (Self, Receiver<Order>, Arc<Mutex<VcpuTally>>) {
        let (orders, mailbox) = bounded(MAILBOX);
        let tally = Arc::default();
        let desk = Desk { id, orders: Some(orders), knocker, tally: Arc::clone(&tally) };
        let handle = Self { desk: Arc::new(desk) };
        (handle, mailbox, tally)
    }

    /// Which vcpu this is.
    #[must_use]
    pub fn id(&self) -> VcpuId {
        self.desk.id
    }

    /// "Begin like this." Before the first [`run`](Self::run) only; also makes an application processor
    /// runnable that would otherwise wait for its INIT and SIPI.
    ///
    /// # Errors
    ///
    /// [`OrderError`]; the reply says whether the registers were taken.
    pub fn begin(
        &self,
        entry: EntryState,
    ) -> Result<oneshot::Receiver<Result<(), String>>, OrderError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Order::Begin { entry: Box::new(entry), reply })?;
        Ok(answer)
    }

    /// "Run the guest."
    ///
    /// # Errors
    ///
    /// [`OrderError`].
    pub fn run(&self) -> Result<(), OrderError> {
        self.tell(Order::Run)
    }

    /// "Come out and stay out." The reply comes once the guest is out.
    ///
    /// # Errors
    ///
    /// [`OrderError`].
    pub fn pause(&self) -> Result<oneshot::Receiver<Parked>, OrderError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Order::Pause(reply))?;
        Ok(answer)
    }

    /// "What do you look like?" A vcpu that is not parked lets the question fall: the reply is then an
    /// error.
    ///
    /// # Errors
    ///
    /// [`OrderError`].
    pub fn look(&self) -> Result<oneshot::Receiver<Snapshot>, OrderError> {
        let (reply, answer) = oneshot::channel();
        self.tell(Order::Look(reply))?;
        Ok(answer)
    }

    /// "Finish." The thread ends soon afterwards, whatever the guest is doing.
    ///
    /// # Errors
    ///
    /// [`OrderError`]; [`OrderError::Gone`] is as good as done.
    pub fn retire(&self) -> Result<(), OrderError> {
        self.tell(Order::Retire)
    }

    /// A way to wake the vcpu that does not keep it.
    pub(crate) fn reader(&self) -> Reader {
        Reader { knocker: self.knocker(), desk: Arc::downgrade(&self.desk) }
    }

    /// For tests of the supervision: "panic" or "hang".
    ///
    /// # Errors
    ///
    /// [`OrderError`].
    pub fn break_(&self, how: Break) -> Result<(), OrderError> {
        self.tell(Order::Break(how))
    }

    /// A way to bring it out without an order, for shootdowns.
    #[must_use]
    pub fn knocker(&self) -> Knocker {
        self.desk.knocker.clone()
    }

    /// The kernel's id of its thread, by which userfaultfd names it: known once the vcpu has answered
    /// anything, gone when its thread ends.
    #[must_use]
    pub fn tid(&self) -> Option<i32> {
        self.desk.knocker.tid()
    }

    /// What it has counted up to the last time it parked; all of it once its thread has ended.
    #[must_use]
    pub fn tally(&self) -> VcpuTally {
        *self.desk.tally.lock()
    }

    fn tell(&self, order: Order) -> Result<(), OrderError> {
        let vcpu = self.desk.id;
        let orders = self.desk.orders.as_ref().ok_or(OrderError::Gone { vcpu })?;
        orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => OrderError::Full { vcpu },
            TrySendError::Disconnected(_) => OrderError::Gone { vcpu },
        })?;
        self.desk.knocker.knock();
        Ok(())
    }
}
