//! The console actor: between the guest's serial port and this process's stdin, stdout and
//! signals.
//!
//! It owns a thread that sleeps in `poll` and has no periodic wake-ups. Promises:
//!
//! * **No vcpu waits for it.** Output goes through the [cable](crate::cable), whose lock is
//!   held for a copy at most. When stdout takes nothing, the cable fills up and the guest
//!   sees a serial port that is busy.
//! * **It never waits in `write`**, so that signals are served and it can be ended while
//!   stdout takes nothing. Where stdout is a pipe or a terminal it is opened once more
//!   without blocking; the open file that others share is left alone.
//! * **A closed stdout is told once** ([`Tidings::ConsoleClosed`]); what the guest prints
//!   after that is discarded, and counted.
//! * **The first wish for the end** (Ctrl-C, SIGTERM, SIGHUP) is told to the machine
//!   ([`Tidings::Interrupted`]). At the second the terminal is given back and the process
//!   ends at once with [`EXIT_AT_ONCE`].
//! * **The terminal is given back** however the console ends, a panic included.
//!
//! It hears nobody but its owner ([`Console::finish`]) and tells the machine; it waits for
//! nobody. Files: `thread` (the loop), `source` (stdin), `sink` (stdout), `signals`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actors::ActorName;
use actors::contract::guest::{TellMachine, Tidings};
use actors::contract::vcpu::Break;
use actors::device::Shared;
use actors::pulse::Pulse;
use actors::threads::{Joined, spawn};
use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use crate::cable::{Cable, OutputTally};
use crate::serial::Serial;
use crate::terminal;

mod signals;
mod sink;
mod source;
mod thread;

pub use signals::{BlockedSignals, SignalInbox, block_signals};
pub use sink::{Output, Reader};
pub use source::Input;

/// The exit status of a process that was interrupted a second time: 128 + SIGINT, as shells
/// report it.
pub const EXIT_AT_ONCE: i32 = 130;

/// How much longer than its patience [`Console::finish`] waits for the thread itself.
const GRACE: Duration = Duration::from_secs(1);

/// As patient as it gets: a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Who is plugged into what.
pub struct Setup {
    /// The cable that the serial port sends into.
    pub cable: Cable,
    /// The serial port that gets the input.
    pub serial: Shared<Serial>,
    /// Where input comes from.
    pub input: Input,
    /// Where output goes.
    pub output: Output,
    /// The signals that end the run. `None`: they are somebody else's business.
    pub signals: Option<SignalInbox>,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
#[error("the console cannot {what}: {why}")]
pub struct ConsoleError {
    /// What was tried.
    pub what: &'static str,
    /// The operating system's reason.
    pub why: io::Error,
}

impl ConsoleError {
    fn when(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |why| Self { what, why }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Farewell {
    /// What became of the bytes that the guest sent.
    pub output: OutputTally,
    /// Of those accepted, the bytes that stdout did not take in time.
    pub unwritten: u64,
}

/// A running console. Dropping it ends it without waiting for stdout.
#[must_use = "dropping it ends the console"]
pub struct Console {
    cable: Cable,
    orders: Arc<Mutex<Orders>>,
    pulse: Pulse,
    unwritten: Receiver<u64>,
    thread: Option<Joined>,
}

/// What the owner wants.
#[derive(Default)]
struct Orders {
    /// Write what is left, and be gone by then.
    finish_by: Option<Instant>,
    /// For tests of the supervision.
    broken: Option<Break>,
}

impl Console {
    /// Opens input and output, takes the terminal if input is one, and starts the thread,
    /// whose end is told as [`Tidings::Gone`].
    ///
    /// # Errors
    ///
    /// When the operating system refuses a descriptor, the terminal or the thread.
    pub fn start(setup: Setup, tell: TellMachine) -> Result<Self, ConsoleError> {
        let cable = setup.cable.clone();
        let orders = Arc::new(Mutex::new(Orders::default()));
        let pulse = Pulse::default();
        let (done, unwritten) = crossbeam_channel::bounded(1);
        let mut thread = thread::Thread::new(setup, orders.clone(), pulse.clone(), tell.clone())?;
        let ended = move |actor, ending| tell(Tidings::Gone { actor, ending });
        let body = move || {
            let unwritten = thread.run();
            // The terminal is given back before anybody hears that we are done.
            drop(thread);
            // An owner that has lost patience does not want to know.
            done.send(unwritten).ok();
        };
        let thread = spawn(ActorName::Console, ended, body)
            .map_err(ConsoleError::when("start its thread"))?;
        Ok(Self { cable, orders, pulse, unwritten, thread: Some(thread) })
    }

    /// Its sign of life.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// What has become of the guest's output so far.
    #[must_use]
    pub fn tally(&self) -> OutputTally {
        self.cable.tally()
    }

    /// For tests of the supervision: it panics, or hangs.
    pub fn break_it(&self, how: Break) {
        self.orders.lock().broken = Some(how);
        self.cable.call();
    }

    /// Writes what is left, for at most `patience`, gives the terminal back and ends the
    /// thread. Call it when no vcpu runs any more.
    pub fn finish(mut self, patience: Duration) -> Farewell {
        self.end(patience)
    }

    fn end(&mut self, patience: Duration) -> Farewell {
        let Some(thread) = self.thread.take() else {
            return Farewell::default();
        };
        let patience = patience.min(LONGEST);
        self.orders.lock().finish_by = Some(Instant::now() + patience);
        self.cable.call();
        let unwritten = match self.unwritten.recv_timeout(patience + GRACE) {
            Ok(unwritten) => {
                thread.join();
                unwritten
            }
            Err(error) => {
                // It has panicked, or it hangs; a thread that hangs cannot be joined.
                if error.is_disconnected() {
                    thread.join();
                }
                terminal::restore();
                self.cable.waiting() as u64
            }
        };
        Farewell { output: self.cable.tally(), unwritten }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}
