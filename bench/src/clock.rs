//! The time-stamp counter, which the guest reads as well.

#![expect(unsafe_code, reason = "reading the time-stamp counter is an intrinsic")]

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// How long the two clocks are compared. Ten times the error of one comparison (some 100 ns,
/// if nothing comes in between) is a hundred-thousandth of it.
const COMPARED_FOR: Duration = Duration::from_millis(50);

/// Turns ticks into nanoseconds. Deltas of a guest are valid: no machine here scales its
/// guest's counter, only shifts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickRate {
    nanoseconds_per_tick: f64,
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has it, and Linux leaves it open to user space.
    unsafe { _rdtsc() }
}

/// Both clocks at one moment: of several readings the one with the least in between.
fn both() -> (u64, Instant) {
    let reading = || {
        let before = ticks();
        let now = Instant::now();
        let after = ticks();
        (after - before, before + (after - before) / 2, now)
    };
    let readings = (0..32).map(|_| reading());
    let (_, ticks, now) =
        readings.min_by_key(|(width, _, _)| *width).expect("there are 32 of them");
    (ticks, now)
}

impl TickRate {
    /// Compares the two clocks for 50 ms.
    pub(crate) fn measure() -> Self {
        let (first_ticks, first) = both();
        while first.elapsed() < COMPARED_FOR {
            std::hint::spin_loop();
        }
        let (last_ticks, last) = both();
        let nanoseconds = (last - first).as_secs_f64() * 1e9;
        // Both differences are far below 2^52.
        let ticks = Duration::from_nanos(last_ticks - first_ticks).as_secs_f64() * 1e9;
        Self { nanoseconds_per_tick: nanoseconds / ticks }
    }

    /// `ticks` in whole nanoseconds.
    pub(crate) fn nanoseconds(self, ticks: u64) -> u64 {
        let seconds = Duration::from_nanos(ticks).as_secs_f64() * self.nanoseconds_per_tick;
        let duration = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds_at_the_measured_rate() {
        let rate = TickRate { nanoseconds_per_tick: 0.4 };
        assert_eq!(rate.nanoseconds(0), 0);
        assert_eq!(rate.nanoseconds(250_000), 100_000);
        // A register full of nonsense is a long time, not a panic.
        assert!(rate.nanoseconds(u64::MAX) > 1 << 60);
    }
}
