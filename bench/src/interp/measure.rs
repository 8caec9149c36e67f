//! How often a loop must run to be measured, and what came out.

use std::time::Duration;

use super::rows::Row;
use crate::error::BenchError;

/// Somebody who can run loops.
pub(crate) trait Runner {
    /// Runs the loop so often, and returns the cpu time that it took; nothing when it cannot run there.
    ///
    /// # Errors
    ///
    /// [`BenchError`], when it died of it.
    fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError>;

    /// How wrong its clock may be.
    fn grain(&self) -> Duration {
        Duration::from_micros(1)
    }
}

/// The first try takes some microseconds wherever it runs.
const FIRST: u64 = 16;
/// What is shorter than this many grains of the clock says little.
const GRAINS: u32 = 40;

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64().max(1e-9)
}

/// Iterations that take about `target`; nothing when the loop cannot run there.
pub(crate) fn calibrate(
    runner: &mut dyn Runner,
    row: &Row,
    target: Duration,
) -> Result<Option<u64>, BenchError> {
    let target = target.max(runner.grain() * GRAINS);
    let enough = (target / 16).max(runner.grain() * 4);
    let mut iterations = FIRST;
    loop {
        let Some(took) = runner.run(row, iterations)? else { return Ok(None) };
        if took >= enough {
            return Ok(Some(scaled(iterations, seconds(target) / seconds(took))));
        }
        // At most sixteen times as much: the first run pays for pages that are new.
        let factor = (seconds(enough) / seconds(took) * 1.5).clamp(2.0, 16.0);
        iterations = scaled(iterations, factor);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a positive number, and about right is enough"
)]
fn scaled(iterations: u64, factor: f64) -> u64 {
    ((iterations as f64 * factor) as u64).max(1)
}

/// One measurement: nanoseconds an iteration.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52 iterations")]
pub(crate) fn per_iteration(time: Duration, iterations: u64) -> f64 {
    seconds(time) * 1e9 / iterations as f64
}

/// The middle one; the mean of the two in the middle when they are even in number.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + upper) / 2.0 } else { upper })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interp::rows;

    /// Takes so long for each iteration, and cannot do what needs a system.
    struct Steady(Duration);

    impl Runner for Steady {
        fn run(&mut self, row: &Row, iterations: u64) -> Result<Option<Duration>, BenchError> {
            let times = u32::try_from(iterations).unwrap();
            Ok(row.blob_index().map(|_| self.0 * times))
        }
    }

    #[test]
    fn a_loop_is_repeated_until_it_takes_as_long_as_was_asked_for() {
        let rows = rows::all();
        for (each, expected) in [(50, 400_000), (5_000, 4_000), (400_000, 50)] {
            let mut runner = Steady(Duration::from_nanos(each));
            let target = Duration::from_millis(20);
            let found = calibrate(&mut runner, &rows[0], target).unwrap().unwrap();
            assert!(found.abs_diff(expected) * 100 <= expected, "{found} for {expected}");
        }
    }

    #[test]
    fn what_cannot_run_is_not_measured() {
        let row = rows::all().into_iter().find(|row| row.name == "d1").unwrap();
        let mut runner = Steady(Duration::from_nanos(5));
        assert_eq!(calibrate(&mut runner, &row, Duration::from_millis(1)).unwrap(), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
