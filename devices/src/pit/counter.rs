//! One of the timer's counters: when it was loaded, and what follows from that.
//!
//! ```text
//!   mode                       the output is                   it rises at tick (from the load)
//!   0  interrupt at the end    low until the end               N
//!   1  one pulse per trigger   low until the end               N
//!   2  rate generator          low for the last tick           N, 2N, 3N, ...
//!   3  square wave             high for the first half         N, 2N, 3N, ...
//!   4  strobe at the end       low for the tick at the end     N + 1
//!   5  strobe per trigger      low for the tick at the end     N + 1
//! ```
//!
//! A count is loaded one tick after it was written, or after the gate rose: in modes 1 and 5
//! only then, in modes 2 and 3 then again. In modes 0 and 4 a low gate stops the count, in
//! modes 2 and 3 it stops the wave, with the output high. A count written while a wave runs
//! takes over at the end of its period (in mode 3 the data sheet says: of its half).
//! Source: Intel 8254 data sheet, "Mode Definitions".

/// What a counter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    End,
    Pulse,
    Rate,
    Square,
    Strobe,
    TriggeredStrobe,
}

impl Mode {
    /// Bits 1 to 3 of a control word; 6 and 7 are 2 and 3 again.
    fn of_word(word: u8) -> Self {
        match word >> 1 & 7 {
            0 => Self::End,
            1 => Self::Pulse,
            2 | 6 => Self::Rate,
            3 | 7 => Self::Square,
            4 => Self::Strobe,
            _ => Self::TriggeredStrobe,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::End => 0,
            Self::Pulse => 1,
            Self::Rate => 2,
            Self::Square => 3,
            Self::Strobe => 4,
            Self::TriggeredStrobe => 5,
        }
    }

    fn is_wave(self) -> bool {
        matches!(self, Self::Rate | Self::Square)
    }

    fn is_triggered(self) -> bool {
        matches!(self, Self::Pulse | Self::TriggeredStrobe)
    }
}

/// Which byte of a count a read or write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Low,
    High,
    LowThenHigh,
}

impl Access {
    fn of_word(word: u8) -> Self {
        match word >> 4 & 3 {
            1 => Self::Low,
            2 => Self::High,
            _ => Self::LowThenHigh,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Low => 1,
            Self::High => 2,
            Self::LowThenHigh => 3,
        }
    }
}

/// One counter. All times are ticks of the timer's clock.
#[derive(Debug)]
pub(super) struct Counter {
    mode: Mode,
    access: Access,
    is_decimal: bool,
    gate: bool,
    /// What it counts down from, once that was written: 1 to 65536 (or a bit more than
    /// 10000, for decimals with digits above nine).
    initial: Option<u64>,
    /// What it will count down from.
    next_initial: Option<u64>,
    /// The tick at which the count was loaded,
    loaded: Option<u64>,
    /// and at which a low gate stopped it.
    stopped: Option<u64>,
    /// The low byte of a count whose high byte is still to come.
    half_written: Option<u8>,
    /// The next byte read is the high one.
    reads_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Counter {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode: Mode::End,
            access: Access::LowThenHigh,
            is_decimal: false,
            gate,
            initial: None,
            next_initial: None,
            loaded: None,
            stopped: None,
            half_written: None,
            reads_high: false,
            latched: None,
            latched_status: None,
        }
    }

    /// A control word for this counter: it waits for a count.
    pub(super) fn control(&mut self, word: u8) {
        *self = Self {
            mode: Mode::of_word(word),
            access: Access::of_word(word),
            is_decimal: word & 1 != 0,
            ..Self::new(self.gate)
        };
    }

    /// How many counts there are: zero is all of them.
    fn modulus(&self) -> u64 {
        if self.is_decimal { 10_000 } else { 0x1_0000 }
    }

    /// How many ticks have passed since the load; `None` if there was none.
    fn elapsed(&self, now: u64) -> Option<u64> {
        Some(self.stopped.unwrap_or(now).saturating_sub(self.loaded?))
    }

    /// A new count takes over once the period is through.
    pub(super) fn settle(&mut self, now: u64) {
        let (Some(initial), Some(elapsed)) = (self.initial, self.elapsed(now)) else {
            return;
        };
        if self.mode.is_wave()
            && elapsed >= initial
            && let Some(next) = self.next_initial.take()
        {
            self.initial = Some(next);
            self.loaded = self.loaded.map(|loaded| loaded.saturating_add(initial));
        }
    }

    /// What the output is at `now`, which [`Counter::settle`] has been told.
    pub(super) fn output(&self, now: u64) -> bool {
        let (Some(initial), Some(elapsed)) = (self.initial, self.elapsed(now)) else {
            return self.mode != Mode::End;
        };
        match self.mode {
            Mode::End | Mode::Pulse => elapsed >= initial,
            Mode::Rate | Mode::Square if !self.gate => true,
            Mode::Rate => initial == 1 || elapsed % initial != initial - 1,
            Mode::Square => elapsed % initial < initial.div_ceil(2),
            Mode::Strobe | Mode::TriggeredStrobe => elapsed != initial,
        }
    }

    /// The first tick after `now` at which the output rises by itself.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let (initial, loaded) = (self.initial?, self.loaded?);
        if !self.gate && !self.mode.is_triggered() {
            return None;
        }
        let at = match self.mode {
            Mode::End | Mode::Pulse => loaded.checked_add(initial)?,
            Mode::Strobe | Mode::TriggeredStrobe => loaded.checked_add(initial)?.checked_add(1)?,
            // A period of one tick is no wave; the data sheet forbids it.
            Mode::Rate | Mode::Square if initial == 1 => return None,
            Mode::Rate | Mode::Square => {
                let periods = now.saturating_sub(loaded) / initial + 1;
                loaded.checked_add(periods.checked_mul(initial)?)?
            }
        };
        Some(at).filter(|at| *at > now)
    }

    fn count(&self, now: u64) -> u16 {
        let modulus = self.modulus();
        let (Some(initial), Some(elapsed)) = (self.initial, self.elapsed(now)) else {
            return self.encode(self.initial.unwrap_or(0) % modulus);
        };
        let count = match self.mode {
            Mode::Rate => initial - elapsed % initial,
            Mode::Square => {
                // By twos, from an even number, twice per period.
                let place = elapsed % initial;
                let half = initial.div_ceil(2);
                let in_half = if place < half { place } else { place - half };
                (initial & !1).saturating_sub(2 * in_half)
            }
            // On past zero.
            _ => initial % modulus + modulus - elapsed % modulus,
        };
        self.encode(count % modulus)
    }

    /// As four decimal digits, or as it is.
    fn encode(&self, count: u64) -> u16 {
        let digits = |count: u64| {
            let digit = |power: u64, shift: u32| (count / power % 10) << shift;
            digit(1, 0) | digit(10, 4) | digit(100, 8) | digit(1000, 12)
        };
        let count = if self.is_decimal { digits(count) } else { count };
        u16::try_from(count).unwrap_or(0)
    }

    /// What was written means: zero is the largest count.
    fn decode(&self, written: u16) -> u64 {
        let value = if self.is_decimal {
            let digit = |shift: u32| u64::from(written >> shift & 0xf);
            digit(0) + 10 * digit(4) + 100 * digit(8) + 1000 * digit(12)
        } else {
            u64::from(written)
        };
        if value == 0 { self.modulus() } else { value }
    }

    /// Keeps the count for the next read; one that is kept already stays.
    pub(super) fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(now));
            self.reads_high = false;
        }
    }

    /// Keeps the state for the next read: output, whether the count is still to be loaded,
    /// and how it was programmed.
    pub(super) fn latch_status(&mut self, now: u64) {
        let awaits_load = self.half_written.is_some()
            || self.next_initial.is_some()
            || self.loaded.is_none_or(|loaded| now < loaded);
        let status = u8::from(self.output(now)) << 7
            | u8::from(awaits_load) << 6
            | self.access.number() << 4
            | self.mode.number() << 1
            | u8::from(self.is_decimal);
        self.latched_status.get_or_insert(status);
    }

    pub(super) fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched.unwrap_or_else(|| self.count(now));
        let [low, high] = count.to_le_bytes();
        let is_high = match self.access {
            Access::Low => false,
            Access::High => true,
            Access::LowThenHigh => self.reads_high,
        };
        self.reads_high = self.access == Access::LowThenHigh && !is_high;
        if !self.reads_high {
            self.latched = None;
        }
        if is_high { high } else { low }
    }

    pub(super) fn write(&mut self, byte: u8, now: u64) {
        let written = match (self.access, self.half_written.take()) {
            (Access::Low, _) => u16::from(byte),
            (Access::High, _) => u16::from(byte) << 8,
            (Access::LowThenHigh, Some(low)) => u16::from_le_bytes([low, byte]),
            (Access::LowThenHigh, None) => {
                self.half_written = Some(byte);
                if self.mode == Mode::End {
                    self.loaded = None;
                }
                return;
            }
        };
        let initial = self.decode(written);
        if self.mode.is_triggered() || self.mode.is_wave() && self.loaded.is_some() && self.gate {
            self.next_initial = Some(initial);
        } else {
            self.initial = Some(initial);
            self.load(now);
            if !self.gate {
                self.stopped = self.loaded;
            }
        }
    }

    fn load(&mut self, now: u64) {
        self.initial = self.next_initial.take().or(self.initial);
        self.loaded = self.initial.map(|_| now.saturating_add(1));
        self.stopped = None;
    }

    /// The gate goes up or down. Only the rise is a trigger.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        let falls = self.gate && !gate;
        self.gate = gate;
        if rises && (self.mode.is_wave() || self.mode.is_triggered()) {
            self.load(now);
        } else if rises {
            let pause = self.stopped.take().map_or(0, |stopped| now.saturating_sub(stopped));
            self.loaded = self.loaded.map(|loaded| loaded.saturating_add(pause));
        } else if falls && !self.mode.is_triggered() {
            self.stopped = self.loaded.map(|loaded| loaded.max(now));
        }
    }
}
