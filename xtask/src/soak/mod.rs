//! `cargo xtask soak`: whether a guest's memory is the same after it went out and came back.
//!
//! A stock Linux fills 300 MiB with random data, hashes it, and hashes it again and again, while no more than 128 MiB
//! of its memory may be resident and somebody looks at its working set ten times a second. All layouts of
//! the nested tables have their turn ([`matrix`]). What is claimed of each run, and how it is known, is said in [`judge`].
//!
//! The same goes on in the lab, on KVM: there, this program runs itself.

mod judge;
mod matrix;
mod sampler;
mod table;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::arguments::Arguments;
use crate::cache::Cache;
use crate::failure::{Failure, Outcome, about};
use crate::fetch;
use crate::initrd::{self, HELLO};
use crate::lab::image::{GUEST_INITRD, PROGRAMS, guest_bzimage};
use crate::lab::{LAB_FAILED, Lab, shell_line};
use crate::ours;
use crate::process::{last_lines, print, say};
use crate::watch::watch;
use judge::Row;
use matrix::{Case, Images, REPORT, SWAP};
use sampler::Sampler;

/// What `--help` says.
pub(crate) const HELP: &str = "\
Runs a stock Linux whose data does not fit into the memory it may keep, and checks
that every byte comes back as it was.

Usage: cargo xtask soak [OPTIONS]

  --minutes N   begin no further run after so many minutes (default 10); each case
                runs at least once, however long that takes
  --lab         on KVM, in the lab, instead of the software engine here
  --only WORD   only cases whose name contains this (may be given again)
  --once        each case once
  --list        print the cases and what each runs
  --json        print the rows as JSON instead of a table

The guest has 512 MiB, of which 128 may be resident, a swap file, and a look at its
working set every 100 ms. It fills 300 MiB of a tmpfs with random data, hashes it,
rests, and hashes it twice more. Every few seconds all of its memory is paged
out, so that between two passes every page was out and has to come back.

Cases: --superpages on and off, --ad hw (software engine only) and emulated, 1 and 4
vcpus. A run takes some minutes. Progress is on stderr; the table, with what each run
paged, is on stdout. The status is 0 when every run was clean.
";

/// The hidden subcommand that does it, inside the lab.
pub(crate) const INSIDE: &str = "soak-inside";

/// What was typed.
#[derive(Clone, Debug)]
struct Soak {
    minutes: u64,
    lab: bool,
    only: Vec<String>,
    once: bool,
    list: bool,
    json: bool,
}

/// Where the runs take place.
struct Place {
    skep: PathBuf,
    folder: PathBuf,
}

/// The command.
///
/// # Errors
///
/// When the kernels cannot be fetched, or skep cannot be built or started.
pub(crate) fn main(arguments: &[OsString]) -> Outcome<u8> {
    let soak = parse(arguments)?;
    let engine = if soak.lab { "kvm" } else { "soft" };
    let cases = chosen(&soak, engine)?;
    if soak.list {
        let images = Images { kernel: guest_bzimage("6.12"), initrd: GUEST_INITRD.to_owned() };
        for case in &cases {
            let words = case.arguments(&images).join(" ");
            print(format!("{}\n    skep {words}", case.name()))?;
        }
        return Ok(0);
    }
    if soak.lab {
        return in_the_lab(&soak, arguments, cases.len());
    }
    let cache = Cache::open()?;
    let fetched = fetch::all(&cache)?;
    let initrd = initrd::write(&cache, &fetched.busybox)?;
    let newest = fetched.kernels.last().ok_or_else(|| Failure::new("there is no kernel"))?;
    let kernel = newest.shipped.bzimage().display().to_string();
    let images = Images { kernel, initrd: initrd.display().to_string() };
    say("soak: building skep (a minute or two the first time)");
    let skep = ours::build_skep()?;
    // Of this process: two soaks at once would take each other's reports.
    let folder = ours::target()?.join(format!("xtask-test/soak-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(about("create", &folder))?;
    let place = Place { skep, folder };
    let status = go(&soak, &cases, &images, &place)?;
    if status == 0 {
        // What went wrong is there to be looked at.
        fs::remove_dir_all(&place.folder).map_err(about("remove", &place.folder))?;
    }
    Ok(status)
}

fn in_the_lab(soak: &Soak, arguments: &[OsString], cases: usize) -> Outcome<u8> {
    let program = format!("{PROGRAMS}/xtask");
    let mut inside = vec![program.clone(), INSIDE.to_owned()];
    for argument in arguments {
        inside.push(argument.to_string_lossy().into_owned());
    }
    let mut lab = Lab::new(shell_line(&inside));
    lab.files.push((ours::ourselves()?, program));
    let cases = u32::try_from(cases).unwrap_or(u32::MAX);
    lab.limit = Duration::from_secs(soak.minutes.saturating_mul(60)) + matrix::limit("kvm") * cases;
    lab.run()
}

/// The same, inside the lab.
///
/// # Errors
///
/// When skep cannot be started.
pub(crate) fn inside(arguments: &[OsString]) -> Outcome<u8> {
    let soak = parse(arguments)?;
    let cases = chosen(&soak, "kvm")?;
    let images = Images { kernel: guest_bzimage("6.12"), initrd: GUEST_INITRD.to_owned() };
    let place = Place { skep: Path::new(PROGRAMS).join("skep"), folder: PathBuf::from("/tmp") };
    go(&soak, &cases, &images, &place).map_err(|failure| failure.with_status(LAB_FAILED))
}

/// Runs every case, and again from the first, until the time is up.
fn go(soak: &Soak, cases: &[Case], images: &Images, place: &Place) -> Outcome<u8> {
    let began = Instant::now();
    let limit = Duration::from_secs(soak.minutes.saturating_mul(60));
    let mut rows = Vec::new();
    for number in 0.. {
        let is_first_round = number < cases.len();
        if !is_first_round && (soak.once || began.elapsed() >= limit) {
            break;
        }
        let case = &cases[number % cases.len()];
        let run = number + 1;
        say(format!("soak: run {run}, {}", case.name()));
        let row = one(case, images, place)?;
        let verdict = row.wrong.as_deref().unwrap_or("clean");
        say(format!("soak: run {run}, {}: {verdict} ({:.0} s)", case.name(), row.seconds));
        rows.push(row);
    }
    let wrong = rows.iter().filter(|row| row.wrong.is_some()).count();
    print(if soak.json { table::json(&rows) } else { table::text(&rows) })?;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let clean = rows.len() - wrong;
    say(format!("soak: {clean} runs clean, {wrong} not, in {minutes:.1} minutes"));
    Ok(u8::from(wrong > 0))
}

/// One run.
fn one(case: &Case, images: &Images, place: &Place) -> Outcome<Row> {
    for leftover in [REPORT, SWAP] {
        let _ = fs::remove_file(place.folder.join(leftover)); // The first run finds none.
    }
    let mut command = Command::new(&place.skep);
    command.args(case.arguments(images)).current_dir(&place.folder);
    let sampler = Sampler::default();
    let watched = watch(&mut command, HELLO, case.limit(), |process| sampler.begin(process))?;
    let sampled = sampler.end();
    let report = fs::read_to_string(place.folder.join(REPORT)).unwrap_or_default();
    let row = judge::judge(case, &watched, &report, sampled);
    if row.wrong.is_some() {
        for (name, text) in [("console", &watched.stdout), ("stderr", &watched.stderr)] {
            say(format!("    the end of its {name}:"));
            for line in last_lines(text, 25).lines() {
                say(format!("    | {}", line.trim_end()));
            }
        }
    }
    Ok(row)
}

fn chosen(soak: &Soak, engine: &'static str) -> Outcome<Vec<Case>> {
    let mut cases = matrix::all(engine);
    let only = &soak.only;
    cases.retain(|case| only.is_empty() || only.iter().any(|word| case.name().contains(word)));
    if cases.is_empty() {
        return Err(Failure::usage(format!("no case's name contains {}", only.join(" or "))));
    }
    Ok(cases)
}

fn parse(arguments: &[OsString]) -> Outcome<Soak> {
    let mut soak =
        Soak { minutes: 10, lab: false, only: Vec::new(), once: false, list: false, json: false };
    let mut arguments = Arguments::new("soak", arguments);
    while let Some(option) = arguments.option()? {
        match option.as_str() {
            "--minutes" => soak.minutes = arguments.number(&option)?,
            "--lab" => soak.lab = true,
            "--only" => soak.only.push(arguments.value(&option)?),
            "--once" => soak.once = true,
            "--list" => soak.list = true,
            "--json" => soak.json = true,
            _ => return Err(arguments.unknown(&option)),
        }
    }
    Ok(soak)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Outcome<Soak> {
        parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn words_choose_cases_and_a_word_that_chooses_none_is_refused() {
        let soak = parsed(&["--only", "ad hw", "--minutes", "3"]).unwrap();
        assert_eq!(soak.minutes, 3);
        let cases = chosen(&soak, "soft").unwrap();
        assert!(!cases.is_empty() && cases.iter().all(|case| case.name().contains("ad hw")));
        assert_eq!(chosen(&soak, "kvm").unwrap_err().status, 2);
        assert_eq!(parsed(&["--minutes", "many"]).unwrap_err().status, 2);
        assert_eq!(parsed(&["--forever"]).unwrap_err().status, 2);
    }
}
