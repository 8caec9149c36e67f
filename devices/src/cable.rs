//! The cable between the guest's serial port and the console: a bounded ring of bytes.
//!
//! Vcpu threads put bytes in, one at a time; the console's thread takes them out in
//! chunks. A byte costs a short lock and a store. The console is woken by
//!
//! * a newline, or the ring becoming half full: the doorbell, which makes a system call
//!   only if the console sleeps;
//! * the first byte after the last wake-up, by a timer of [`PROMPT_DELAY`], so that a
//!   prompt without a newline appears. It is armed at most once at a time, and not at all
//!   when nothing is printed.
//!
//! When the ring is full the guest is told so (the line status register) and the ring remembers
//! that somebody was; the console then says when there is room ([`crate::serial::Serial::room`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actors::doorbell::Doorbell;
use parking_lot::Mutex;

use crate::sys::Timer;

/// Bytes that fit into the ring.
pub const CAPACITY: usize = 64 * 1024;

/// How much room a "ready" promises: a driver that has seen the transmitter empty once
/// sends a whole FIFO (16 bytes in a 16550A, 64 in its successors) without looking again.
pub const PROMISED_ROOM: usize = 64;

/// How long the beginning of a line may stay invisible.
pub const PROMPT_DELAY: Duration = Duration::from_millis(10);

/// Half full: time to wake the console, and below it time to let the guest go on.
const HALF: usize = CAPACITY / 2;

/// What has happened to the bytes that the guest sent: `accepted + lost` of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputTally {
    /// Bytes taken.
    pub accepted: u64,
    /// Bytes that were sent although the port was not ready, and that are gone.
    pub lost: u64,
    /// Of those accepted, the bytes that nobody read (the null console, a closed stdout).
    pub discarded: u64,
}

/// Where the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// To the console.
    Open,
    /// To the console, which cannot write now and looks by itself: no need to wake it.
    Blocked,
    /// Nowhere: they are accepted and forgotten.
    Closed,
}

struct Ring {
    bytes: VecDeque<u8>,
    mode: Mode,
    /// The bell was rung for what waits: the console must not go to sleep over it.
    urgent: bool,
    /// The timer is running: it will see to what waits.
    armed: bool,
    /// The guest was told to wait.
    starved: bool,
    tally: OutputTally,
}

/// The cable. Cheap to clone; the clones are the same cable.
#[derive(Clone)]
pub struct Cable {
    shared: Arc<Shared>,
}

struct Shared {
    ring: Mutex<Ring>,
    bell: Doorbell,
    timer: Timer,
    /// The serial port has room for input that it refused before.
    takes_input: AtomicBool,
    /// The console's owner has left an order for it.
    has_order: AtomicBool,
}

/// What a byte pushed means for the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    No,
    Now,
    Soon,
}

impl Cable {
    /// A cable nobody is plugged into.
    ///
    /// # Errors
    ///
    /// The operating system's, when it is out of file descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                ring: Mutex::new(Ring::new()),
                bell: Doorbell::new()?,
                timer: Timer::new()?,
                takes_input: AtomicBool::new(false),
                has_order: AtomicBool::new(false),
            }),
        })
    }

    /// What became of the guest's bytes so far.
    #[must_use]
    pub fn tally(&self) -> OutputTally {
        self.shared.ring.lock().tally
    }

    /// The guest sends a byte. What does not fit is lost, and counted.
    pub(crate) fn push(&self, byte: u8) {
        match self.shared.ring.lock().push(byte) {
            Wake::No => {}
            Wake::Now => self.shared.bell.ring(),
            Wake::Soon => self.shared.timer.ring_once(PROMPT_DELAY),
        }
    }

    /// Whether the guest may send [`PROMISED_ROOM`] bytes. If not, the ring remembers that
    /// somebody waits.
    pub(crate) fn is_ready(&self) -> bool {
        let mut ring = self.shared.ring.lock();
        let ready = ring.mode == Mode::Closed || CAPACITY - ring.bytes.len() >= PROMISED_ROOM;
        ring.starved |= !ready;
        ready
    }

    /// Moves up to `most` bytes to the end of `into`. Returns whether the guest was told to
    /// wait and there is room now.
    #[must_use = "a guest that waits for room would wait for ever"]
    pub(crate) fn take(&self, into: &mut Vec<u8>, most: usize) -> bool {
        let mut ring = self.shared.ring.lock();
        let count = most.min(ring.bytes.len());
        // By slices: the guest's next byte waits for this copy.
        let (front, back) = ring.bytes.as_slices();
        let of_front = count.min(front.len());
        into.extend_from_slice(&front[..of_front]);
        into.extend_from_slice(&back[..count - of_front]);
        ring.bytes.drain(..count);
        ring.urgent &= !ring.bytes.is_empty();
        let make_room = ring.starved && ring.bytes.len() <= HALF;
        ring.starved &= !make_room;
        make_room
    }

    /// Bytes that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.ring.lock().bytes.len()
    }

    /// The console cannot write now (or can again): there is no use in waking it.
    pub(crate) fn set_blocked(&self, blocked: bool) {
        let mut ring = self.shared.ring.lock();
        ring.mode = match (ring.mode, blocked) {
            (Mode::Closed, _) => Mode::Closed,
            (_, true) => Mode::Blocked,
            (_, false) => Mode::Open,
        };
    }

    /// Nobody will read any more: what waits and what comes is forgotten, and so are the
    /// `taken` bytes that the console has taken and not written.
    /// Returns whether the guest was told to wait; there is room for ever now.
    pub(crate) fn close(&self, taken: usize) -> bool {
        let mut ring = self.shared.ring.lock();
        ring.mode = Mode::Closed;
        ring.tally.discarded += (taken + ring.bytes.len()) as u64;
        ring.bytes.clear();
        ring.urgent = false;
        std::mem::take(&mut ring.starved)
    }

    /// The timer rang: the next byte may arm it again.
    pub(crate) fn disarm(&self) {
        if self.shared.timer.hush() {
            self.shared.ring.lock().armed = false;
        }
    }

    /// The serial port takes input that it refused before.
    pub(crate) fn offer_again(&self) {
        self.shared.takes_input.store(true, Ordering::Release); // Pairs with `take_offer`.
        self.shared.bell.ring();
    }

    /// Whether the serial port has asked for input since the last call.
    pub(crate) fn take_offer(&self) -> bool {
        self.shared.takes_input.swap(false, Ordering::Acquire) // Pairs with `offer_again`.
    }

    /// "Look at your orders."
    pub(crate) fn call(&self) {
        self.shared.has_order.store(true, Ordering::Release); // Pairs with `take_call`.
        self.shared.bell.ring();
    }

    /// Whether there was a call since the last time.
    pub(crate) fn take_call(&self) -> bool {
        self.shared.has_order.swap(false, Ordering::Acquire) // Pairs with `call`.
    }

    /// Sleeps until there is something to do or a descriptor of `others` is readable.
    pub(crate) fn sleep<const N: usize>(&self, others: [RawFd; N], timeout_ms: i32) -> [i16; N] {
        self.shared.bell.sleep(others, timeout_ms, || self.has_work())
    }

    /// The timer's descriptor: readable when the beginning of a line has waited long enough.
    pub(crate) fn timer(&self) -> RawFd {
        self.shared.timer.as_raw_fd()
    }

    /// Relaxed: whoever set a flag rings afterwards, and the bell's fences order the two.
    fn has_work(&self) -> bool {
        self.shared.takes_input.load(Ordering::Relaxed)
            || self.shared.has_order.load(Ordering::Relaxed)
            || self.has_urgent_output()
    }

    fn has_urgent_output(&self) -> bool {
        let ring = self.shared.ring.lock();
        ring.urgent && ring.mode == Mode::Open
    }
}

impl Ring {
    fn new() -> Self {
        Self {
            bytes: VecDeque::with_capacity(CAPACITY),
            mode: Mode::Open,
            urgent: false,
            armed: false,
            starved: false,
            tally: OutputTally::default(),
        }
    }

    fn push(&mut self, byte: u8) -> Wake {
        if self.mode == Mode::Closed {
            self.tally.accepted += 1;
            self.tally.discarded += 1;
            return Wake::No;
        }
        if self.bytes.len() == CAPACITY {
            self.tally.lost += 1;
            return Wake::No;
        }
        self.bytes.push_back(byte);
        self.tally.accepted += 1;
        if self.mode == Mode::Blocked {
            return Wake::No;
        }
        if byte == b'\n' || self.bytes.len() == HALF {
            self.urgent = true;
            return Wake::Now;
        }
        if self.urgent || self.armed {
            return Wake::No;
        }
        self.armed = true;
        Wake::Soon
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each byte of `text` does to a new ring's console.
    fn wakes(ring: &mut Ring, text: &str) -> Vec<Wake> {
        text.bytes().map(|byte| ring.push(byte)).collect()
    }

    #[test]
    fn the_first_byte_arms_the_timer_and_only_the_newline_rings() {
        assert_eq!(wakes(&mut Ring::new(), "ab\n"), [Wake::Soon, Wake::No, Wake::Now]);
    }

    #[test]
    fn the_timer_is_not_armed_while_it_runs_or_while_the_console_comes_anyway() {
        let ring = &mut Ring::new();
        assert_eq!(wakes(ring, "\na"), [Wake::Now, Wake::No]);
        let cable = Cable::new().unwrap();
        cable.push(b'a');
        assert!(cable.shared.ring.lock().armed);
        assert!(!cable.take(&mut Vec::new(), usize::MAX));
        assert_eq!(cable.shared.ring.lock().push(b'b'), Wake::No);
    }

    #[test]
    fn half_full_rings_once() {
        let ring = &mut Ring::new();
        let wakes = wakes(ring, &".".repeat(CAPACITY));
        let rings: Vec<_> = (0..CAPACITY).filter(|&at| wakes[at] == Wake::Now).collect();
        assert_eq!(rings, [HALF - 1]);
    }

    #[test]
    fn a_console_that_cannot_write_is_not_woken_and_does_not_miss_it() {
        let cable = Cable::new().unwrap();
        cable.set_blocked(true);
        assert_eq!(cable.shared.ring.lock().push(b'\n'), Wake::No);
        assert!(!cable.has_work());
        // Whoever unblocks it takes what is there, before it sleeps.
        cable.set_blocked(false);
        assert!(!cable.take(&mut Vec::new(), usize::MAX));
        assert_eq!(cable.shared.ring.lock().push(b'\n'), Wake::Now);
        assert!(cable.has_work());
    }

    #[test]
    fn a_line_keeps_the_console_awake_until_it_is_taken() {
        let cable = Cable::new().unwrap();
        cable.push(b'a');
        assert!(!cable.has_work());
        cable.push(b'\n');
        assert!(cable.has_work());
        assert!(!cable.take(&mut Vec::new(), usize::MAX));
        assert!(!cable.has_work());
    }

    #[test]
    fn offers_and_calls_keep_the_console_awake_until_they_are_taken() {
        let cable = Cable::new().unwrap();
        cable.offer_again();
        assert!(cable.has_work());
        assert!(cable.take_offer());
        cable.call();
        assert!(cable.has_work());
        assert!(cable.take_call());
        assert!(!cable.has_work());
    }

    #[test]
    fn bytes_come_out_in_order_around_the_end_of_the_ring() {
        let cable = Cable::new().unwrap();
        let mut taken = Vec::new();
        (0..CAPACITY).for_each(|_| cable.push(b'.'));
        assert!(!cable.take(&mut taken, CAPACITY - 2));
        taken.clear();
        b"abc".iter().for_each(|&byte| cable.push(byte));
        assert!(!cable.take(&mut taken, 4));
        assert!(!cable.take(&mut taken, 4));
        assert_eq!(taken, b"..abc");
    }

    #[test]
    fn room_is_announced_once_and_only_to_those_who_were_told_to_wait() {
        let cable = Cable::new().unwrap();
        (0..CAPACITY).for_each(|_| cable.push(b'.'));
        assert!(!cable.take(&mut Vec::new(), HALF));
        (0..HALF).for_each(|_| cable.push(b'.'));
        assert!(!cable.is_ready());
        assert!(!cable.take(&mut Vec::new(), HALF - 1));
        assert!(cable.take(&mut Vec::new(), 1));
        assert!(!cable.take(&mut Vec::new(), 1));
    }
}
