//! What is claimed of a run, and whether it holds.
//!
//! * **Whole**: the guest printed that every pass found the hashes of the first.
//! * **Out and in**: all of the guest's memory is paged out every few seconds (`--test-switch sweep`), and the guest rests
//!   before each pass for longer than two such pageouts are apart. What one of them leaves in memory is counted: held,
//!   wired, or used while it was on its way. So in each pass every page of the data but those, at the very most, had to come
//!   back: the pages that came back must be as many.
//! * **Within the limit**: resident pages and compressed ones together, as the pmap counted them whenever
//!   they grew, and the blocks of the guest's memory, as seen from outside four times a second, stayed within a tenth
//!   of the limit.
//! * **Looked at**: there were harvests.

use super::matrix::{Case, DATA_BYTES, PASSES, RESIDENT_MIB};
use super::sampler::Sampled;
use crate::initrd::SOAK_LINE;
use crate::json::number_named;
use crate::watch::Watched;

/// A tenth more than the limit, in bytes.
const MOST_BYTES: u64 = (RESIDENT_MIB << 20) / 10 * 11;
/// Pages of the data.
const DATA_PAGES: u64 = DATA_BYTES / 4096;

/// How a run went.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) seconds: f64,
    /// Why it was not clean, if it was not.
    pub(super) wrong: Option<String>,
    /// Passes that found every byte.
    pub(super) passes: u64,
    pub(super) pages_out: u64,
    pub(super) pages_in: u64,
    /// Pages that must have come back at the least.
    pub(super) wanted_in: u64,
    pub(super) sweeps: u64,
    pub(super) disk_in: u64,
    pub(super) compressed_in: u64,
    pub(super) harvests: u64,
    pub(super) promotions: u64,
    pub(super) demotions: u64,
    pub(super) bit_faults: u64,
    /// As the pmap counted, in bytes.
    pub(super) peak_bytes: u64,
    pub(super) sampled: Sampled,
}

/// Reads what a run left behind.
pub(super) fn judge(case: &Case, watched: &Watched, report: &str, sampled: Sampled) -> Row {
    let number = |name: &str| number_named(report, name).unwrap_or(0);
    let lines = watched.stdout.lines().map(|line| line.trim_end_matches('\r'));
    let soaks: Vec<&str> = lines.filter_map(|line| line.strip_prefix(SOAK_LINE)).collect();
    let passes = (1..=PASSES)
        .filter(|pass| soaks.contains(&format!("pass {pass} equal").as_str()))
        .count() as u64;
    let mut row = Row {
        name: case.name(),
        seconds: watched.ended.as_secs_f64(),
        wrong: None,
        passes,
        pages_out: number("pages_out"),
        pages_in: number("pages_in"),
        wanted_in: PASSES * DATA_PAGES.saturating_sub(number("most_left_pages")),
        sweeps: number("sweeps"),
        disk_in: number("disk_pages_in"),
        compressed_in: number("compressed_pages_in"),
        harvests: number("harvests"),
        promotions: number("promotions") + number("superpages_entered"),
        demotions: number("demotions"),
        bit_faults: number("accessed_faults") + number("modified_faults"),
        peak_bytes: number("peak_bytes"),
        sampled,
    };
    let status = watched.status.map(|status| status.code());
    row.wrong = wrong(&row, status, &soaks, report);
    row
}

/// Why a run is not clean.
fn wrong(row: &Row, status: Option<Option<i32>>, soaks: &[&str], report: &str) -> Option<String> {
    match status {
        None => return Some("it had not ended when its time was up".to_owned()),
        Some(Some(0)) => {}
        Some(code) => return Some(format!("skep ended with {code:?}")),
    }
    let filled = format!("filled {DATA_BYTES} bytes");
    if !soaks.contains(&filled.as_str()) {
        return Some(format!("the guest never said \"{filled}\""));
    }
    if row.passes != PASSES {
        return Some(format!("{} of {PASSES} passes found every byte", row.passes));
    }
    // A report that lacks a number would pass for one in which it is 0.
    for name in ["pages_in", "pages_out", "peak_bytes", "harvests", "sweeps", "most_left_pages"] {
        if number_named(report, name).is_none() {
            return Some(format!("the report has no {name}"));
        }
    }
    if row.sweeps < PASSES {
        return Some(format!("all memory was paged out only {} times", row.sweeps));
    }
    if row.pages_in < row.wanted_in || row.pages_out < row.wanted_in {
        return Some(format!(
            "{} pages out and {} in, and {} of each at least were to be",
            row.pages_out, row.pages_in, row.wanted_in
        ));
    }
    let seen = row.sampled.guest_bytes;
    for (bytes, what) in [
        (row.peak_bytes, "resident and compressed pages took"),
        (seen, "the guest's memory occupied"),
    ] {
        if bytes > MOST_BYTES {
            return Some(format!("{what} {bytes} bytes, more than {MOST_BYTES}"));
        }
        if bytes == 0 {
            return Some(format!("{what} nothing: nobody looked"));
        }
    }
    (row.harvests == 0).then(|| "nobody looked at the working set".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;
    use std::time::Duration;

    use super::super::matrix;
    use super::*;

    const GOOD: &str = r#"{ "pages_out": 200000, "pages_in": 199000, "most_left_pages": 1000, "sweeps": 9,
        "peak_bytes": 134217728, "harvests": 300 }"#;
    const CONSOLE: &str =
        "HELLO\r\nsoak filled 314575242 bytes\r\nsoak pass 1 equal\r\nsoak pass 2 equal\r\n";

    fn judged(console: &str, report: &str, guest_bytes: u64) -> Option<String> {
        let watched = Watched {
            status: Some(ExitStatus::from_raw(0)),
            stdout: console.to_owned(),
            stderr: String::new(),
            first_byte: None,
            marked: None,
            ended: Duration::from_secs(9),
            processor: Duration::ZERO,
        };
        let sampled = Sampled { guest_bytes, own_bytes: 0, looks: 1 };
        judge(&matrix::all("soft")[0], &watched, report, sampled).wrong
    }

    #[test]
    fn a_run_is_clean_when_every_claim_holds() {
        assert_eq!(judged(CONSOLE, GOOD, 128 << 20), None);
    }

    #[test]
    fn a_run_is_not_clean_when_any_claim_fails() {
        let different = CONSOLE.replace("pass 2 equal", "pass 2 different");
        assert!(judged(&different, GOOD, 1).unwrap().contains("1 of 2 passes"));
        let few = GOOD.replace("199000", "151599");
        assert!(judged(CONSOLE, &few, 1).unwrap().contains("151600 of each"));
        let large = GOOD.replace("134217728", "147639501");
        assert!(judged(CONSOLE, &large, 1).unwrap().contains("compressed pages took 147639501"));
        assert!(judged(CONSOLE, GOOD, 150 << 20).unwrap().contains("memory occupied"));
        assert!(judged(CONSOLE, GOOD, 0).unwrap().contains("nobody looked"));
        let unlooked = GOOD.replace("300 }", "0 }");
        assert!(judged(CONSOLE, &unlooked, 1).unwrap().contains("working set"));
        let lacking = GOOD.replace("\"sweeps\"", "\"sweep\"");
        assert!(judged(CONSOLE, &lacking, 1).unwrap().contains("no sweeps"));
    }
}
