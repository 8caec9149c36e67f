//! Two threads that do what the pmap must not wait for.
//!
//! *pageout* copies frames, packs them, and writes clusters to the swap file. *pagein* reads
//! pages from it. They are two, so that a fault never waits behind a long write.
//!
//! **Orders** go through bounded lanes and are only ever *tried*: a full lane gives the order
//! back ([`NotTaken::Busy`]), to be tried again when the next answer was heard.
//! [`PAGEOUT_LANE`] and [`PAGEIN_LANE`] orders may wait, and one more is being worked on.
//!
//! **Answers** come through one channel, each followed by a ring of the pmap's doorbell. Every
//! order that was taken gets its answers, in the order in which each worker took them, unless
//! the worker dies; the machine then hears of it by name ([`Tidings::Gone`]), and the next
//! order is given back ([`NotTaken::Gone`]). The channel has no bound of its own: it never
//! holds more than the answers to the orders that the lanes can hold.
//!
//! **A hang** (a disk that does not answer) is seen by the pulse: a worker beats before every
//! call that may take long, and rests only while it has no orders. A call that takes longer than
//! the machine's deadline looks like a hang, whatever the disk's excuse.
//!
//! **The end**: when the pmap drops its [`Workers`], or [`Remote::retire`] is called. Orders
//! that still wait are dropped. A worker that is stuck in the disk does not end.

mod pagein;
mod pageout;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use actors::ActorName;
use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::vcpu::Break;
use actors::doorbell::Doorbell;
use actors::pulse::Pulse;
use actors::threads::{self, Joined};
use crossbeam_channel::{Receiver, Sender, TrySendError};

use crate::host::memory::GuestMemory;
use crate::swap::{Checksum, Laundered, Packed, Page, Slot, SwapError, SwapFile};

/// Orders that may wait for pageout.
pub const PAGEOUT_LANE: usize = 32;

/// Orders that may wait for pagein: more than a machine has vcpus that fault at once, usually.
pub const PAGEIN_LANE: usize = 128;

/// Answers have no order that they wait behind: the channel between both workers and the pmap.
type Answers = Sender<Answer>;

/// "These pages leave: copy and pack them." Nobody maps their frames any more, or a page
/// that was touched meanwhile is rescued when the answer comes.
#[derive(Debug)]
pub struct Launder {
    /// Comes back with the answer.
    pub ticket: u64,
    /// Page numbers.
    pub pages: Vec<u64>,
}

/// A page with a place to be written to.
#[derive(Clone, Debug)]
pub struct WritePage {
    /// Where.
    pub slot: Slot,
    /// What.
    pub packed: Packed,
}

/// "Write these." Pages whose slots are neighbours, in order, are written with one call.
#[derive(Debug)]
pub struct Write {
    /// Comes back with the answer.
    pub ticket: u64,
    /// All of it succeeds, or the whole order failed.
    pub pages: Vec<WritePage>,
}

/// A page to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPage {
    /// Page number.
    pub page: u64,
    /// Where it was written.
    pub slot: Slot,
    /// What it was.
    pub checksum: Checksum,
}

/// "The guest waits for this one; and it may want those next."
#[derive(Debug)]
pub struct Fetch {
    /// Answered first.
    pub wanted: FetchPage,
    /// Answered afterwards, one by one. Those whose slots are neighbours of the wanted one's, and
    /// of each other's, come with the same read.
    pub readahead: Vec<FetchPage>,
}

/// What the workers answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Launder`].
    Laundered {
        /// The order's.
        ticket: u64,
        /// Each of its pages, in its order.
        pages: Vec<(u64, Laundered)>,
    },
    /// To [`Write`].
    Written {
        /// The order's.
        ticket: u64,
        /// How many calls it took; or why the slots hold nothing of use.
        result: Result<u32, SwapError>,
    },
    /// To [`Fetch`]: once for each of its pages.
    Fetched {
        /// As it was ordered: an answer to an earlier reading of the same page may differ.
        read: FetchPage,
        /// Whether nobody waits for it.
        is_readahead: bool,
        /// The page, compared with its checksum.
        result: Result<Box<Page>, SwapError>,
    },
}

/// An order that was not taken.
#[derive(Debug)]
pub enum NotTaken<T> {
    /// The lane is full: try again after the next answer.
    Busy(T),
    /// The worker's thread is over; the machine has been told.
    Gone(T),
}

/// What both workers are made of.
pub struct WorkersConfig {
    /// Whose frames are copied.
    pub memory: Arc<GuestMemory>,
    /// Where pages are written.
    pub file: Arc<SwapFile>,
    /// Rung after every answer.
    pub bell: Arc<Doorbell>,
    /// Where the end of a worker is told.
    pub tell: TellMachine,
}

/// What a worker is told besides its work.
enum Control {
    Break(Break),
    Retire,
}

/// The pmap's end of both workers.
pub struct Workers {
    launder_and_write: Sender<pageout::Order>,
    fetch: Sender<Fetch>,
    answers: Receiver<Answer>,
    remote: Remote,
}

/// What the machine needs of the workers: their pulses, and ways to end and to break them.
/// Cheap to clone. Does not keep them alive.
#[derive(Clone)]
pub struct Remote {
    pageout: RemoteEnd,
    pagein: RemoteEnd,
}

#[derive(Clone)]
struct RemoteEnd {
    control: Sender<Control>,
    pulse: Pulse,
}

/// Starts both threads. They end on their own when the [`Workers`] are dropped.
///
/// # Errors
///
/// The operating system's, when it has no thread to give.
pub fn start(config: WorkersConfig) -> io::Result<(Workers, [(ActorName, Joined); 2])> {
    let (tell_answers, answers) = crossbeam_channel::unbounded();
    let (launder_and_write, pageout_orders) = crossbeam_channel::bounded(PAGEOUT_LANE);
    let (fetch, pagein_orders) = crossbeam_channel::bounded(PAGEIN_LANE);
    let (pageout_remote, pageout_worker) =
        Worker::new(pageout_orders, tell_answers.clone(), config.bell.clone());
    let (pagein_remote, pagein_worker) = Worker::new(pagein_orders, tell_answers, config.bell);
    let remote = Remote { pageout: pageout_remote, pagein: pagein_remote };
    let workers = Workers { launder_and_write, fetch, answers, remote };

    let file = config.file.clone();
    let tell = config.tell.clone();
    let ended = move |actor, ending| tell(Tidings::Gone { actor, ending });
    let pageout = threads::spawn(ActorName::Pageout, ended, move || {
        pageout::Pageout::new(config.memory, file).run(&pageout_worker);
    })?;
    let tell = config.tell;
    let ended = move |actor, ending| tell(Tidings::Gone { actor, ending });
    let pagein = threads::spawn(ActorName::Pagein, ended, move || {
        pagein::Pagein::new(config.file).run(&pagein_worker);
    });
    match pagein {
        Ok(pagein) => Ok((workers, [(ActorName::Pageout, pageout), (ActorName::Pagein, pagein)])),
        Err(error) => {
            drop(workers);
            pageout.join();
            Err(error)
        }
    }
}

impl Workers {
    /// Tries to give an order to pageout.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub fn try_launder(&self, order: Launder) -> Result<(), NotTaken<Launder>> {
        let sent = self.launder_and_write.try_send(pageout::Order::Launder(order));
        not_taken(sent, |order| match order {
            pageout::Order::Launder(order) => order,
            pageout::Order::Write(_) => unreachable!("it gives back what it was given"),
        })
    }

    /// Tries to give an order to pageout.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub fn try_write(&self, order: Write) -> Result<(), NotTaken<Write>> {
        let sent = self.launder_and_write.try_send(pageout::Order::Write(order));
        not_taken(sent, |order| match order {
            pageout::Order::Write(order) => order,
            pageout::Order::Launder(_) => unreachable!("it gives back what it was given"),
        })
    }

    /// Tries to give an order to pagein.
    ///
    /// # Errors
    ///
    /// [`NotTaken`].
    pub fn try_fetch(&self, order: Fetch) -> Result<(), NotTaken<Fetch>> {
        not_taken(self.fetch.try_send(order), |order| order)
    }

    /// The next answer, if there is one.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Whether an answer waits: for whoever is about to sleep at the doorbell.
    #[must_use]
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// What the machine needs of them.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Remote {
    /// The pulses, by name.
    #[must_use]
    pub fn pulses(&self) -> [(ActorName, Pulse); 2] {
        [
            (ActorName::Pageout, self.pageout.pulse.clone()),
            (ActorName::Pagein, self.pagein.pulse.clone()),
        ]
    }

    /// Tells both to end when they are done with what they are at.
    pub fn retire(&self) {
        for end in [&self.pageout, &self.pagein] {
            // A full lane has a word in it that ends the worker as well; a closed one has no worker.
            let _over = end.control.try_send(Control::Retire);
        }
    }

    /// Breaks one of them, for tests of the supervision. Others have no such worker.
    pub fn break_(&self, actor: ActorName, how: Break) {
        let end = match actor {
            ActorName::Pageout => &self.pageout,
            ActorName::Pagein => &self.pagein,
            _ => return,
        };
        // As above.
        let _over = end.control.try_send(Control::Break(how));
    }
}

/// A worker's end: its lane, and where its answers go.
struct Worker<T> {
    orders: Receiver<T>,
    control: Receiver<Control>,
    answers: Answers,
    bell: Arc<Doorbell>,
    pulse: Pulse,
}

impl<T> Worker<T> {
    fn new(orders: Receiver<T>, answers: Answers, bell: Arc<Doorbell>) -> (RemoteEnd, Self) {
        // One word ends a worker, one way or another.
        let (control, told) = crossbeam_channel::bounded(1);
        let pulse = Pulse::default();
        let worker = Self { orders, control: told, answers, bell, pulse: pulse.clone() };
        (RemoteEnd { control, pulse }, worker)
    }

    /// Waits for the next order; `None` when it is time to end.
    fn next(&self) -> Option<T> {
        self.pulse.rest();
        crossbeam_channel::select_biased! {
            // A closed lane: only a remote was left, and it went.
            recv(self.control) -> told => match told {
                Ok(Control::Break(how)) => {
                    self.pulse.beat();
                    how.happen();
                    None
                }
                Ok(Control::Retire) | Err(_) => None,
            },
            recv(self.orders) -> order => {
                let order = order.ok()?;
                self.pulse.beat();
                Some(order)
            }
        }
    }

    fn answer(&self, answer: Answer) {
        // A pmap that is gone needs no answers; the closed lane ends this worker.
        let _gone = self.answers.send(answer);
        self.bell.ring();
    }
}

fn not_taken<S, T>(
    sent: Result<(), TrySendError<S>>,
    back: impl FnOnce(S) -> T,
) -> Result<(), NotTaken<T>> {
    sent.map_err(|error| match error {
        TrySendError::Full(order) => NotTaken::Busy(back(order)),
        TrySendError::Disconnected(order) => NotTaken::Gone(back(order)),
    })
}
