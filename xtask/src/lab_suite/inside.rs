//! Going through the cases, inside the lab, and judging each.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use super::cases::{Case, REPORT, Seen, TRACE};
use super::{CASE_LIMIT, SKIP, chosen};
use crate::failure::Outcome;
use crate::initrd::HELLO;
use crate::json::number_named;
use crate::lab::LAB_FAILED;
use crate::process::{last_lines, print};
use crate::watch::{Watched, watch};

/// After so many failed cases the rest would only fail as well.
const ENOUGH_FAILURES: usize = 3;

/// The hidden subcommand's main.
///
/// # Errors
///
/// When `skep` cannot be started at all.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let words: Vec<String> =
        arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let skip = cmdline
        .split_whitespace()
        .find_map(|word| word.strip_prefix(SKIP)?.parse().ok())
        .unwrap_or(0);
    let mut failures = 0;
    for case in chosen(&words).iter().skip(skip) {
        for leftover in [TRACE, REPORT] {
            let _ = fs::remove_file(leftover); // Most cases leave none.
        }
        let mut command = Command::new("skep");
        command.args(&case.arguments);
        let watched = watch(&mut command, HELLO, CASE_LIMIT, |_| ())
            .map_err(|failure| failure.with_status(LAB_FAILED))?;
        let seconds = watched.ended.as_secs_f64();
        match judge(case, &watched) {
            Ok(()) => print(format!("ok {seconds:.1}"))?,
            Err(why) => {
                show(case, &watched)?;
                print(format!("failed {seconds:.1} {why}"))?;
                failures += 1;
                if failures == ENOUGH_FAILURES {
                    break;
                }
            }
        }
    }
    Ok(0)
}

fn show(case: &Case, watched: &Watched) -> Outcome {
    print(format!("    skep {}", case.arguments.join(" ")))?;
    for (name, text) in [("console", &watched.stdout), ("stderr", &watched.stderr)] {
        print(format!("    the end of its {name}:"))?;
        for line in last_lines(text, 20).lines() {
            print(format!("    | {}", line.trim_end()))?;
        }
    }
    Ok(())
}

/// Why this is not how the case must go; nothing when it is.
fn judge(case: &Case, watched: &Watched) -> Result<(), String> {
    let wanted = case.status as i32;
    match watched.status.map(|status| (status.code(), status)) {
        None => return Err(format!("had not ended after {} s", CASE_LIMIT.as_secs())),
        Some((Some(code), _)) if code == wanted => {}
        Some((_, status)) => return Err(format!("ended with {status}, not {wanted}")),
    }
    case.seen.iter().try_for_each(|seen| look_for(seen, watched))
}

fn look_for(seen: &Seen, watched: &Watched) -> Result<(), String> {
    let console = &watched.stdout;
    match seen {
        Seen::Line(wanted) => lines(console)
            .any(|line| line == wanted)
            .then_some(())
            .ok_or_else(|| format!("never printed {wanted:?}")),
        Seen::Said(wanted) => watched
            .stderr
            .contains(wanted)
            .then_some(())
            .ok_or_else(|| format!("never said {wanted:?}")),
        Seen::MemTotal { mib } => sees_nearly(console, *mib),
        Seen::WholeTrace => {
            let (lines, faults) = (read(TRACE)?.lines().count(), reported("total")?);
            (lines as u64 == faults && faults > 0)
                .then_some(())
                .ok_or_else(|| format!("{lines} lines of trace for {faults} faults"))
        }
        Seen::EveryVcpuKnown => {
            let trace = read(TRACE)?;
            let unknown = trace.lines().filter(|line| line.contains("\"vcpu\":null"));
            match unknown.count() {
                0 => Ok(()),
                count => Err(format!("{count} faults whose vcpu is unknown")),
            }
        }
        Seen::Zero(name) => match reported(name)? {
            0 => Ok(()),
            number => Err(format!("the report's {name} is {number}, not 0")),
        },
        Seen::NotZero(name) => match reported(name)? {
            0 => Err(format!("the report's {name} is 0")),
            _ => Ok(()),
        },
    }
}

fn sees_nearly(console: &str, mib: u64) -> Result<(), String> {
    let total: u64 = lines(console)
        .find_map(|line| line.strip_prefix("memtotal_kb=")?.parse().ok())
        .ok_or("never printed how much memory it sees")?;
    // Linux keeps 1/64 for its page descriptors and some 30 MiB for itself.
    let (most, least) = (mib * 1024, mib * 1024 / 10 * 9);
    (least..=most)
        .contains(&total)
        .then_some(())
        .ok_or_else(|| format!("sees {total} kB of memory, not {least} to {most}"))
}

/// The lines of a console, which end with a carriage return as well.
fn lines(console: &str) -> impl Iterator<Item = &str> {
    console.lines().map(|line| line.trim_end_matches('\r'))
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))
}

fn reported(name: &str) -> Result<u64, String> {
    number_named(&read(REPORT)?, name).ok_or_else(|| format!("the report has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn printed(stdout: &str, stderr: &str) -> Watched {
        Watched {
            status: None,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            first_byte: None,
            marked: None,
            ended: Duration::ZERO,
            processor: Duration::ZERO,
        }
    }

    #[test]
    fn a_line_is_seen_whole_or_not_at_all() {
        let seen = Seen::Line("nproc=2".to_owned());
        assert_eq!(look_for(&seen, &printed("a\r\nnproc=2\r\n", "")), Ok(()));
        assert!(look_for(&seen, &printed("nproc=24\n", "nproc=2\n")).is_err());
    }

    #[test]
    fn what_skep_says_is_not_what_the_guest_prints() {
        let seen = Seen::Said("the guest powered off".to_owned());
        let said = printed("", "skep: the guest powered off\n");
        assert_eq!(look_for(&seen, &said), Ok(()));
        assert!(look_for(&seen, &printed("the guest powered off", "")).is_err());
    }

    #[test]
    fn a_guest_must_see_nine_tenths_of_its_memory_and_no_more_than_all_of_it() {
        assert_eq!(sees_nearly("memtotal_kb=476172\r\n", 512), Ok(()));
        assert!(sees_nearly("memtotal_kb=400000\n", 512).is_err());
        assert!(sees_nearly("memtotal_kb=600000\n", 512).is_err());
        assert!(sees_nearly("", 512).is_err());
    }
}
