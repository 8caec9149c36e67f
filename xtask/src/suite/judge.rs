//! Running a case and saying whether it went as it must.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::case::{Case, REPORT, Seen, TRACE};
use crate::failure::Outcome;
use crate::initrd::{HELLO, WORK_LINE};
use crate::json::number_named;
use crate::process::last_lines;
use crate::watch::{Watched, watch};

/// After so many failed cases the rest would only fail as well.
pub(crate) const ENOUGH_FAILURES: usize = 3;

/// Where cases run, and what they are compared with.
#[derive(Debug)]
pub(crate) struct Setting<'a> {
    /// The program.
    pub(crate) skep: &'a Path,
    /// Where traces and reports go.
    pub(crate) folder: &'a Path,
    /// What the guests' work must print.
    pub(crate) work: &'a str,
}

/// How a case went: how long it took, and why it failed if it did.
#[derive(Debug)]
pub(crate) struct Went {
    pub(crate) seconds: f64,
    pub(crate) wrong: Option<Wrong>,
}

/// A failed case.
#[derive(Debug)]
pub(crate) struct Wrong {
    /// In a sentence.
    pub(crate) why: String,
    /// What was typed and the end of what was printed, in lines.
    pub(crate) shown: Vec<String>,
}

/// Runs a case to its end.
///
/// # Errors
///
/// When `skep` cannot be started at all.
pub(crate) fn run(case: &Case, setting: &Setting<'_>) -> Outcome<Went> {
    for leftover in [TRACE, REPORT] {
        let _ = fs::remove_file(setting.folder.join(leftover)); // Most cases leave none.
    }
    let mut command = Command::new(setting.skep);
    command.args(&case.arguments).current_dir(setting.folder);
    let watched = watch(&mut command, HELLO, case.limit, |_| ())?;
    let seconds = watched.ended.as_secs_f64();
    let wrong = judge(case, &watched, setting).err();
    let wrong = wrong.map(|why| Wrong { why, shown: shown(case, &watched) });
    Ok(Went { seconds, wrong })
}

fn shown(case: &Case, watched: &Watched) -> Vec<String> {
    let mut lines = vec![format!("    skep {}", case.arguments.join(" "))];
    for (name, text) in [("console", &watched.stdout), ("stderr", &watched.stderr)] {
        lines.push(format!("    the end of its {name}:"));
        let end = last_lines(text, 20);
        lines.extend(end.lines().map(|line| format!("    | {}", line.trim_end())));
    }
    lines
}

/// Why this is not how the case must go; nothing when it is.
fn judge(case: &Case, watched: &Watched, setting: &Setting<'_>) -> Result<(), String> {
    let wanted = case.status as i32;
    match watched.status.map(|status| (status.code(), status)) {
        None => return Err(format!("had not ended after {} s", case.limit.as_secs())),
        Some((Some(code), _)) if code == wanted => {}
        Some((_, status)) => return Err(format!("ended with {status}, not {wanted}")),
    }
    case.seen.iter().try_for_each(|seen| look_for(seen, watched, setting))
}

fn look_for(seen: &Seen, watched: &Watched, setting: &Setting<'_>) -> Result<(), String> {
    let console = &watched.stdout;
    let read = |file: &str| read(&setting.folder.join(file));
    let reported = |name: &str| {
        number_named(&read(REPORT)?, name).ok_or_else(|| format!("the report has no {name}"))
    };
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
        Seen::NothingUnknown => match unknown_instructions(&read(REPORT)?)? {
            none if none.is_empty() => Ok(()),
            some => Err(format!("met instructions that the engine does not know: {some}")),
        },
        Seen::SameWork => compare_work(console, setting.work),
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

/// What stands between the braces of `"unimplemented": { ... }`.
fn unknown_instructions(report: &str) -> Result<String, String> {
    let found = || {
        let (_, rest) = report.split_once("\"unimplemented\"")?;
        let (_, rest) = rest.split_once('{')?;
        let (inside, _) = rest.split_once('}')?;
        Some(inside.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    found().ok_or_else(|| "the report does not say which instructions were unknown".to_owned())
}

/// The guest's lines of work beside this machine's; nothing when they are the same.
fn compare_work(console: &str, here: &str) -> Result<(), String> {
    let work = |text: &str| -> Vec<String> {
        let all = lines(text).filter(|line| line.starts_with(WORK_LINE));
        all.map(|line| line.trim_end().to_owned()).collect()
    };
    let (there, here) = (work(console), work(here));
    if here.is_empty() {
        return Err("this machine did no work to compare with".to_owned());
    }
    if there == here {
        return Ok(());
    }
    let missing = || "(nothing)".to_owned();
    let pairs = (0..there.len().max(here.len())).map(|number| {
        let side = |lines: &[String]| lines.get(number).cloned().unwrap_or_else(missing);
        (side(&there), side(&here))
    });
    let different = pairs.filter(|(there, here)| there != here);
    let told = different.map(|(there, here)| format!("the guest: {there}; here: {here}"));
    Err(format!("did other work than this machine: {}", told.collect::<Vec<_>>().join("; ")))
}

/// The lines of a console, which end with a carriage return as well.
fn lines(console: &str) -> impl Iterator<Item = &str> {
    console.lines().map(|line| line.trim_end_matches('\r'))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn look(seen: &Seen, watched: &Watched) -> Result<(), String> {
        let folder = Path::new("/no/such/folder");
        let work = "work sum 5\nwork hash ab\n";
        look_for(seen, watched, &Setting { skep: Path::new("skep"), folder, work })
    }

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
        assert_eq!(look(&seen, &printed("a\r\nnproc=2\r\n", "")), Ok(()));
        assert!(look(&seen, &printed("nproc=24\n", "nproc=2\n")).is_err());
    }

    #[test]
    fn what_skep_says_is_not_what_the_guest_prints() {
        let seen = Seen::Said("the guest powered off".to_owned());
        let said = printed("", "skep: the guest powered off\n");
        assert_eq!(look(&seen, &said), Ok(()));
        let printed = printed("the guest powered off", "");
        assert!(look(&seen, &printed).is_err());
    }

    #[test]
    fn a_guest_must_see_nine_tenths_of_its_memory_and_no_more_than_all_of_it() {
        assert_eq!(sees_nearly("memtotal_kb=476172\r\n", 512), Ok(()));
        assert!(sees_nearly("memtotal_kb=400000\n", 512).is_err());
        assert!(sees_nearly("memtotal_kb=600000\n", 512).is_err());
        assert!(sees_nearly("", 512).is_err());
    }

    #[test]
    fn work_must_be_the_same_and_the_difference_is_named() {
        let same = printed("HELLO\r\nwork sum 5\r\nwork hash ab\r\nbye\r\n", "");
        assert_eq!(look(&Seen::SameWork, &same), Ok(()));
        let other = printed("work sum 5\r\nwork hash ac\r\n", "");
        let why = look(&Seen::SameWork, &other).unwrap_err();
        assert!(why.ends_with("the guest: work hash ac; here: work hash ab"), "{why}");
        let less = look(&Seen::SameWork, &printed("work sum 5\n", ""));
        assert!(less.unwrap_err().contains("(nothing)"));
    }

    #[test]
    fn unknown_instructions_are_those_between_the_braces() {
        assert_eq!(
            unknown_instructions("{\"a\": 1, \"unimplemented\": {}, \"b\": {}}").unwrap(),
            ""
        );
        let some = "\"unimplemented\": {\n  \"Aesenc\": 3\n  }";
        assert_eq!(unknown_instructions(some).unwrap(), "\"Aesenc\": 3");
        assert!(unknown_instructions("{}").is_err());
    }
}
