//! What else the host was doing, and whether that spoils the figures.

use std::fs;

use serde::Serialize;

use crate::error::{BenchError, host};

/// More foreign work than this, in per cent of all cpu time, makes a run dirty.
const FOREIGN_PERCENT: f64 = 4.0;
/// More time stolen by the host's own host than this makes a run dirty.
const STEAL_PERCENT: f64 = 0.5;

/// Cpu time, in ticks of the kernel's accounting, since the start of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    /// Of all cpus together, whatever they did.
    all: u64,
    /// Of those, at work: not idle, not stolen.
    busy: u64,
    /// Of those, stolen.
    steal: u64,
    /// Of the busy ones: this process.
    own: u64,
}

/// What else went on during a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Noise {
    /// Work that was not this process's, of all cpu time.
    pub(crate) foreign_percent: f64,
    /// Time in which the host itself was not running, of all cpu time.
    pub(crate) steal_percent: f64,
    /// Either is more than a measurement bears.
    pub(crate) is_dirty: bool,
}

/// A run that is not over.
#[derive(Debug)]
pub(crate) struct NoiseMeter {
    before: Ticks,
}

impl NoiseMeter {
    pub(crate) fn start() -> Result<Self, BenchError> {
        Ok(Self { before: Ticks::now()? })
    }

    pub(crate) fn stop(self) -> Result<Noise, BenchError> {
        Ok(Noise::between(self.before, Ticks::now()?))
    }
}

impl Ticks {
    fn now() -> Result<Self, BenchError> {
        let read = |path: &str| fs::read_to_string(path).map_err(host(format!("read {path}")));
        let (everybody, own) = (read("/proc/stat")?, read("/proc/self/stat")?);
        Self::parse(&everybody, &own)
            .ok_or("it is not what proc(5) says")
            .map_err(host("understand /proc/stat"))
    }

    /// Fields as in proc(5). Time in guests is part of the user time in both files.
    fn parse(everybody: &str, own: &str) -> Option<Self> {
        let line = everybody.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> =
            line.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let &[user, nice, system, idle, iowait, irq, softirq, steal, ..] = fields.as_slice() else {
            return None;
        };
        let busy = user + nice + system + irq + softirq;
        // The name, in parentheses, may contain anything; what follows it does not.
        let mut own = own.rsplit_once(')')?.1.split_whitespace().skip(11);
        let user: u64 = own.next()?.parse().ok()?;
        let system: u64 = own.next()?.parse().ok()?;
        Some(Self { all: busy + idle + iowait + steal, busy, steal, own: user + system })
    }
}

impl Noise {
    fn between(before: Ticks, after: Ticks) -> Self {
        let all = after.all.saturating_sub(before.all);
        let busy = after.busy.saturating_sub(before.busy);
        let own = after.own.saturating_sub(before.own);
        let percent = |part: u64| {
            // Ticks of a run: far below 2^32, so exact.
            let of = |ticks: u64| f64::from(u32::try_from(ticks).unwrap_or(u32::MAX));
            if all == 0 { 0.0 } else { of(part) / of(all) * 100.0 }
        };
        let foreign_percent = percent(busy.saturating_sub(own));
        let steal_percent = percent(after.steal.saturating_sub(before.steal));
        let is_dirty = foreign_percent > FOREIGN_PERCENT || steal_percent > STEAL_PERCENT;
        Self { foreign_percent, steal_percent, is_dirty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 10 50 800 5 3 2 30 40 0\ncpu0 1 2 3\n";
    const SELF: &str = "42 (a (b) c) R 1 1 1 0 -1 0 0 0 0 0 60 20 0 0 20 0 1";

    fn ticks(all: u64, busy: u64, steal: u64, own: u64) -> Ticks {
        Ticks { all, busy, steal, own }
    }

    #[test]
    fn the_kernels_accounts_are_read_whatever_the_process_is_called() {
        assert_eq!(Ticks::parse(STAT, SELF), Some(ticks(1000, 165, 30, 80)));
    }

    #[test]
    fn accounts_that_are_cut_short_are_not_guessed_at() {
        assert_eq!(Ticks::parse("cpu  1 2 3\n", SELF), None);
        assert_eq!(Ticks::parse(STAT, "42 (name) R 1 2"), None);
        assert_eq!(Ticks::parse("", ""), None);
    }

    #[test]
    fn foreign_work_and_stolen_time_make_a_run_dirty_and_own_work_does_not() {
        let start = ticks(0, 0, 0, 0);
        let own = Noise::between(start, ticks(1000, 900, 0, 880));
        assert!(!own.is_dirty, "{own:?}");
        assert!((own.foreign_percent - 2.0).abs() < 1e-9, "{own:?}");
        assert!(Noise::between(start, ticks(1000, 900, 0, 850)).is_dirty);
        assert!(Noise::between(start, ticks(1000, 900, 6, 900)).is_dirty);
        assert!(!Noise::between(start, start).is_dirty);
    }
}
