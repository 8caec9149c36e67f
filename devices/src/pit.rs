//! The interval timer of the PC (8254): three counters, and the port beside them.
//!
//! ```text
//!   0x40  counter 0: interrupt line 0        0x43  control words
//!   0x41  counter 1: once refreshed memory   0x61  bit 0: gate of counter 2, bit 1: speaker,
//!   0x42  counter 2: the speaker's tone            bit 4: refresh, bit 5: output of counter 2
//! ```
//!
//! Nothing ticks: a counter is the time at which it was loaded, and its count and output
//! follow from the clock. What must happen *at* a time, the interrupt, its owner has to ask
//! for: [`Pit::next_edge`] says when, [`Pit::tick`] whether.
//!
//! Sources: Intel 8254 data sheet; Intel ICH data sheets, "NMI_SC: NMI Status and Control
//! Register" (port 0x61).
//!
//! Known holes: rising edges that a control word makes at once are no interrupts; edges that
//! nobody asked for in time are one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actors::device::{Device, Effect, Shared};
use parking_lot::Mutex;

use crate::apic::Interrupts;
use crate::registers;

mod counter;

use counter::Counter;

/// The clock of all three counters, in hertz.
pub const PIT_HZ: u32 = 1_193_182;
const NANOSECONDS: u128 = 1_000_000_000;

const CONTROL: u8 = 3;
/// In a control word: the counter's number; 3 is the read-back command.
const SELECT_SHIFT: u32 = 6;
const READ_BACK: u8 = 3;
/// In a control word: which byte or bytes of a count; 0 latches the count instead.
const ACCESS: u8 = 3 << 4;
/// In a read-back command, when clear: latch counts, latch states.
const KEEP_COUNT: u8 = 1 << 5;
const KEEP_STATUS: u8 = 1 << 4;

/// Port 0x61.
const SPEAKER_GATE: u8 = 1 << 0;
const SPEAKER_BITS: u8 = 0x0f;
const REFRESH: u8 = 1 << 4;
const SPEAKER_OUTPUT: u8 = 1 << 5;
/// Ticks between two changes of the refresh bit: about 15 us.
const REFRESH_TICKS: u64 = 18;

/// How an idle timer's next edge is written in a word.
const NEVER: u64 = u64::MAX;

/// The timer. Times are nanoseconds of the clock it was made with.
pub struct Pit {
    clock: Box<dyn Fn() -> u64 + Send>,
    interrupts: Arc<dyn Interrupts>,
    counters: [Counter; 3],
    /// Port 0x61, as written.
    speaker: u8,
    /// Up to which tick edges of counter 0 have been looked for,
    seen: u64,
    /// and one was found that nobody has been told of.
    owes_edge: bool,
    next_edge: Arc<AtomicU64>,
}

/// The tick of 1.193182 MHz that `nanoseconds` falls into.
fn tick_of(nanoseconds: u64) -> u64 {
    let ticks = u128::from(nanoseconds) * u128::from(PIT_HZ) / NANOSECONDS;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// The first nanosecond of `tick`.
fn nanoseconds_of(tick: u64) -> u64 {
    let nanoseconds = (u128::from(tick) * NANOSECONDS).div_ceil(PIT_HZ.into());
    u64::try_from(nanoseconds).unwrap_or(NEVER - 1)
}

impl Pit {
    /// No counter counts. `clock` says how many nanoseconds have passed and never goes back;
    /// `interrupts` hears when the next edge moves.
    #[must_use]
    pub fn new(interrupts: Arc<dyn Interrupts>, clock: impl Fn() -> u64 + Send + 'static) -> Self {
        let gates = [true, true, false];
        Self {
            clock: Box::new(clock),
            interrupts,
            counters: gates.map(Counter::new),
            speaker: 0,
            seen: 0,
            owes_edge: false,
            next_edge: Arc::new(AtomicU64::new(NEVER)),
        }
    }

    /// When the interrupt line rises next, on the timer's own clock; may be in the past.
    #[must_use]
    pub fn next_edge(&self) -> Option<u64> {
        NextEdge(Arc::clone(&self.next_edge)).get()
    }

    /// The same for somebody who will not wait for a lock.
    #[must_use]
    pub fn watch(&self) -> NextEdge {
        NextEdge(Arc::clone(&self.next_edge))
    }

    /// Whether the interrupt line has risen since this was last asked. (However often.)
    pub fn tick(&mut self) -> bool {
        let now = self.look();
        let has_risen = std::mem::take(&mut self.owes_edge);
        self.publish(now);
        has_risen
    }

    /// What time is it, and has counter 0 risen up to now?
    fn look(&mut self) -> u64 {
        let now = tick_of((self.clock)()).max(self.seen);
        // They have settled at `seen`.
        let [interrupting, ..] = &self.counters;
        if interrupting.next_rise(self.seen).is_some_and(|rise| rise <= now) {
            self.owes_edge = true;
        }
        self.seen = now;
        for counter in &mut self.counters {
            counter.settle(now);
        }
        now
    }

    /// Works out when the next edge is; returns whether that is another time than it was.
    fn publish(&mut self, now: u64) -> bool {
        let [interrupting, ..] = &self.counters;
        let rise = if self.owes_edge { Some(now) } else { interrupting.next_rise(now) };
        let at = rise.map_or(NEVER, |rise| nanoseconds_of(rise).min(NEVER - 1));
        // Pairs with the load in `NextEdge::get`; whoever sees the time asks under the lock.
        self.next_edge.swap(at, Ordering::AcqRel) != at
    }

    /// What a write to a port was for.
    fn done(&mut self, now: u64) {
        if self.publish(now) {
            self.interrupts.next_edge_moved();
        }
    }

    fn control(&mut self, word: u8, now: u64) {
        let selected = word >> SELECT_SHIFT;
        for (place, counter) in (0..).zip(&mut self.counters) {
            if selected == READ_BACK {
                if word & 2 << place != 0 {
                    if word & KEEP_COUNT == 0 {
                        counter.latch(now);
                    }
                    if word & KEEP_STATUS == 0 {
                        counter.latch_status(now);
                    }
                }
            } else if selected == place {
                if word & ACCESS == 0 {
                    counter.latch(now);
                } else {
                    counter.control(word);
                }
            }
        }
    }

    fn read_port(&mut self, port: u8) -> u8 {
        let now = self.look();
        let counter = self.counters.get_mut(usize::from(port));
        // The control port is write-only.
        counter.map_or(0, |counter| counter.read(now))
    }

    fn write_port(&mut self, port: u8, value: u8) {
        let now = self.look();
        if port == CONTROL {
            self.control(value, now);
        } else if let Some(counter) = self.counters.get_mut(usize::from(port)) {
            counter.write(value, now);
        }
        self.done(now);
    }

    fn read_speaker(&mut self) -> u8 {
        let now = self.look();
        let [.., tone] = &self.counters;
        let output = if tone.output(now) { SPEAKER_OUTPUT } else { 0 };
        let refresh = if (now / REFRESH_TICKS).is_multiple_of(2) { 0 } else { REFRESH };
        self.speaker | output | refresh
    }

    fn write_speaker(&mut self, value: u8) {
        let now = self.look();
        self.speaker = value & SPEAKER_BITS;
        let [.., tone] = &mut self.counters;
        tone.set_gate(value & SPEAKER_GATE != 0, now);
    }

    /// The timer's four ports, and the port beside them (0x61).
    #[must_use]
    pub fn ports(pit: &Shared<Self>) -> (Shared<dyn Device>, Shared<dyn Device>) {
        (Arc::clone(pit) as Shared<dyn Device>, Arc::new(Mutex::new(Speaker(Arc::clone(pit)))))
    }
}

impl Device for Pit {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in registers(offset).zip(data) {
            *byte = self.read_port(port);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        for (port, &byte) in registers(offset).zip(data) {
            self.write_port(port, byte);
        }
        Effect::None
    }
}

/// Port 0x61.
struct Speaker(Shared<Pit>);

impl Device for Speaker {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.lock().read_speaker());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Effect {
        if let Some(&value) = data.first() {
            self.0.lock().write_speaker(value);
        }
        Effect::None
    }
}

/// When a timer's interrupt line rises next, without a lock.
#[derive(Clone, Debug)]
pub struct NextEdge(Arc<AtomicU64>);

impl NextEdge {
    /// In nanoseconds of the timer's clock; may be in the past.
    #[must_use]
    pub fn get(&self) -> Option<u64> {
        // Pairs with the store in `Pit::publish`.
        Some(self.0.load(Ordering::Acquire)).filter(|at| *at != NEVER)
    }
}

#[cfg(test)]
mod tests;
