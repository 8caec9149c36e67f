//! The proof that every vcpu of a `spin` guest was executing just before a sample.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actors::GpaRange;
use loader_actor::guests::spin;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::{BenchError, host};

/// How long to watch for a vcpu that has a cpu to itself: it needs some 20-50 us to get going
/// after it was knocked out, and on an emulated host a hundred times that.
const WATCH: Duration = Duration::from_millis(2);
/// How long one that moved meanwhile is watched, to see whether it still moves.
const GLANCE: Duration = Duration::from_micros(50);
/// How long to wait for vcpus that are not running at all.
const PATIENCE: Duration = Duration::from_millis(50);

/// The counters that the guest's vcpus count up for as long as they execute.
pub(crate) struct Counters<'m> {
    memory: &'m GuestMemoryMmap,
    vcpus: u16,
    /// Whether waiting here keeps nobody from executing.
    has_own_cpu: bool,
}

/// The memory that the counters of `vcpus` vcpus lie in, in whole pages.
pub(crate) fn range(vcpus: u16) -> Result<GpaRange, BenchError> {
    GpaRange::covering(spin::COUNTERS, spin::COUNTER_STRIDE * u64::from(vcpus.max(1)))
        .map_err(host("find the guest's counters"))
}

impl<'m> Counters<'m> {
    pub(crate) fn new(memory: &'m GuestMemoryMmap, vcpus: u16, has_own_cpu: bool) -> Self {
        Self { memory, vcpus, has_own_cpu }
    }

    fn look(&self) -> Result<Vec<u64>, BenchError> {
        let counter = |vcpu| {
            let at = GuestAddress(spin::counter(vcpu).0);
            self.memory.load(at, Ordering::Relaxed).map_err(host("read the guest's counters"))
        };
        (0..self.vcpus).map(counter).collect()
    }

    fn all_move_within(&self, time: Duration) -> Result<bool, BenchError> {
        let before = self.look()?;
        self.all_moved_since(&before, Instant::now() + time)
    }

    fn all_moved_since(&self, before: &[u64], until: Instant) -> Result<bool, BenchError> {
        loop {
            let now = self.look()?;
            if now.iter().zip(before).all(|(now, before)| now != before) {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::hint::spin_loop();
        }
    }

    /// Waits until every vcpu is executing at this moment, and says whether that came true.
    ///
    /// It cannot, for a vcpu that shares the caller's cpu; then this returns once every vcpu
    /// has executed since, which means that it is in the guest or nearly so.
    pub(crate) fn are_moving(&self) -> Result<bool, BenchError> {
        let began = Instant::now();
        loop {
            let before = self.look()?;
            let watch = if self.has_own_cpu { WATCH } else { GLANCE };
            if self.all_moved_since(&before, Instant::now() + watch)? {
                return Ok(true);
            }
            std::thread::yield_now();
            if self.all_moved_since(&before, Instant::now())? {
                return self.all_move_within(GLANCE);
            }
            if began.elapsed() > PATIENCE {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        let bytes = usize::try_from(spin::GUEST.memory_bytes.next_multiple_of(4096)).unwrap();
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap()
    }

    #[test]
    fn counters_that_stand_still_prove_nothing() {
        let memory = memory();
        assert!(!Counters::new(&memory, 1, true).are_moving().unwrap());
    }

    #[test]
    fn one_counter_of_two_is_not_all() {
        let memory = memory();
        let counters = Counters::new(&memory, 2, true);
        let before = counters.look().unwrap();
        let count = |vcpu| {
            let at = GuestAddress(spin::counter(vcpu).0);
            memory.store(1u64, at, Ordering::Relaxed).unwrap();
        };
        count(0);
        assert!(!counters.all_moved_since(&before, Instant::now()).unwrap());
        count(1);
        assert!(counters.all_moved_since(&before, Instant::now()).unwrap());
    }
}
