//! The console's thread: one loop around one `poll`.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use actors::contract::guest::{TellMachine, Tidings};
use actors::device::Shared;
use actors::pulse::Pulse;
use parking_lot::Mutex;

use super::signals::{Answer, SignalInbox, Wish, Wishes};
use super::sink::{Sink, Written};
use super::source::Source;
use super::{ConsoleError, EXIT_AT_ONCE, Orders, Output, Setup};
use crate::cable::Cable;
use crate::serial::Serial;
use crate::{sys, terminal};

/// Bytes taken from the cable at once.
const CHUNK: usize = 16 * 1024;
/// Chunks written before looking at anything else: a guest that prints without end must not
/// keep us from hearing Ctrl-C.
const CHUNKS_PER_ROUND: usize = 8;

pub(super) struct Thread {
    cable: Cable,
    serial: Shared<Serial>,
    source: Source,
    sink: Sink,
    signals: Option<SignalInbox>,
    orders: Arc<Mutex<Orders>>,
    pulse: Pulse,
    tell: TellMachine,

    wishes: Wishes,
    finish_by: Option<Instant>,
    /// Taken from the cable; written up to `written`.
    chunk: Vec<u8>,
    written: usize,
    /// The sink takes nothing now.
    blocked: bool,
}

/// Whether there is more to do without waiting for anybody.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Work,
    Nothing,
}

impl Thread {
    pub(super) fn new(
        setup: Setup,
        orders: Arc<Mutex<Orders>>,
        pulse: Pulse,
        tell: TellMachine,
    ) -> Result<Self, ConsoleError> {
        let sink = Sink::open(setup.output).map_err(ConsoleError::when("open its output"))?;
        // Last, so that a failure leaves the terminal alone.
        let source = Source::open(setup.input).map_err(ConsoleError::when("open its input"))?;
        if sink.is_null() && setup.cable.close(0) {
            setup.serial.lock().room();
        }
        Ok(Self {
            cable: setup.cable,
            serial: setup.serial,
            source,
            sink,
            signals: setup.signals,
            orders,
            pulse,
            tell,
            wishes: Wishes::default(),
            finish_by: None,
            chunk: Vec::with_capacity(CHUNK),
            written: 0,
            blocked: false,
        })
    }

    /// Serves until it is told to finish. Returns how many bytes were not written.
    pub(super) fn run(&mut self) -> u64 {
        loop {
            self.pulse.beat();
            if self.cable.take_call() {
                self.look_at_orders();
            }
            if self.cable.take_offer() {
                self.offer_input();
            }
            let left = self.write_some();
            if self.finish_by.is_some() && self.is_over(left) {
                self.pulse.rest();
                return self.unwritten();
            }
            self.wait(left);
        }
    }

    fn look_at_orders(&mut self) {
        let mut orders = self.orders.lock();
        self.finish_by = orders.finish_by;
        let broken = orders.broken.take();
        drop(orders);
        if let Some(how) = broken {
            how.happen();
        }
    }

    fn is_over(&self, left: Left) -> bool {
        let out_of_time = self.finish_by.is_some_and(|by| Instant::now() >= by);
        out_of_time || left == Left::Nothing && self.unwritten() == 0
    }

    fn unwritten(&self) -> u64 {
        (self.chunk.len() - self.written + self.cable.waiting()) as u64
    }

    /// Waits for something to do, unless something is left, and does what has come.
    fn wait(&mut self, left: Left) {
        let is_finishing = self.finish_by.is_some();
        let input = if is_finishing { -1 } else { self.source.readiness() };
        let signals = self.signals.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let output = if self.blocked { self.sink.readiness() } else { -1 };
        let descriptors = [input, self.cable.timer(), signals, output];
        let [typed, timer, signalled, _] = if left == Left::Work {
            sys::poll_now(descriptors, libc::POLLIN)
        } else {
            self.pulse.rest();
            let events = self.cable.sleep(descriptors, self.patience());
            self.pulse.beat();
            events
        };
        if signalled != 0 {
            self.hear_signals();
        }
        if timer != 0 {
            self.cable.disarm();
        }
        if typed != 0 {
            if self.source.read().is_some() {
                self.hear(Wish::Key);
            }
            self.offer_input();
        }
    }

    /// Milliseconds until the end, rounded up; -1 if there is none.
    fn patience(&self) -> i32 {
        let Some(by) = self.finish_by else { return -1 };
        let left = by.saturating_duration_since(Instant::now());
        i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    }

    fn offer_input(&mut self) {
        let serial = &self.serial;
        self.source.offer(|bytes| serial.lock().receive(bytes));
    }

    fn hear_signals(&mut self) {
        while let Some(signal) = self.signals.as_ref().and_then(SignalInbox::next) {
            self.hear(Wish::of(signal));
        }
    }

    fn hear(&mut self, wish: Wish) {
        match self.wishes.hear(wish, Instant::now()) {
            Answer::End => (self.tell)(Tidings::Interrupted),
            Answer::Nothing => {}
            Answer::EndAtOnce => {
                terminal::restore();
                sys::exit_at_once(EXIT_AT_ONCE);
            }
        }
    }

    /// Writes what the sink takes, but not for ever.
    fn write_some(&mut self) -> Left {
        for _ in 0..CHUNKS_PER_ROUND {
            if self.written == self.chunk.len() && !self.take_chunk() {
                return Left::Nothing;
            }
            match self.sink.write(&self.chunk[self.written..]) {
                Written::Some(count) => {
                    self.written += count;
                    self.set_blocked(false);
                }
                Written::NotNow => {
                    self.set_blocked(true);
                    return Left::Nothing;
                }
                Written::Never(error) => {
                    self.lose_reader(&error);
                    return Left::Nothing;
                }
            }
        }
        Left::Work
    }

    /// Takes the next bytes from the cable. Returns whether there were any.
    fn take_chunk(&mut self) -> bool {
        self.chunk.clear();
        self.written = 0;
        if self.cable.take(&mut self.chunk, CHUNK) {
            self.serial.lock().room();
        }
        !self.chunk.is_empty()
    }

    fn set_blocked(&mut self, blocked: bool) {
        if self.blocked != blocked {
            self.blocked = blocked;
            self.cable.set_blocked(blocked);
        }
    }

    /// Nobody reads any more: says so, and goes on without.
    fn lose_reader(&mut self, error: &io::Error) {
        tracing::debug!(%error, "the guest's output cannot be written any more");
        self.sink = Sink::open(Output::Null).expect("nothing is opened for nowhere");
        self.blocked = false;
        let rest = self.chunk.len() - self.written;
        self.chunk.clear();
        self.written = 0;
        if self.cable.close(rest) {
            self.serial.lock().room();
        }
        (self.tell)(Tidings::ConsoleClosed);
    }
}
