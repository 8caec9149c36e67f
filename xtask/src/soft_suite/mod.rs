//! Stock guests on the software engine, directly on this machine: no lab, no
//! `/dev/kvm`, no privileges.
//!
//! Each case is a `skep` command line ([`cases`]). One guest works rather than merely
//! boots: the same script runs here, with the same busybox, and what both print must
//! be the same.

mod cases;

use std::fs;
use std::path::Path;
use std::process::Command;

use cases::Images;

use crate::cache::Cache;
use crate::failure::{Outcome, about};
use crate::fetch;
use crate::initrd;
use crate::ours;
use crate::process::{output, say};
use crate::suite::case::{Case, Seen};
use crate::suite::judge::{self, ENOUGH_FAILURES, Setting};
use crate::suite::{Score, named};

/// The cases that are meant, with images named as in the lab; for lists.
pub(crate) fn names(words: &[String], all: bool) -> Vec<Case> {
    named(cases::cases(&Images::by_name(), all), words)
}

/// Runs the cases whose name contains one of `words`, or every one of this part: the
/// everyday ones, or `all`.
///
/// # Errors
///
/// When the kernels cannot be fetched, or skep cannot be built or started.
pub(crate) fn run(words: &[String], all: bool) -> Outcome<Score> {
    let cache = Cache::open()?;
    let fetched = fetch::all(&cache)?;
    let images = Images::fetched(&fetched, &initrd::write(&cache, &fetched.busybox)?);
    let cases = named(cases::cases(&images, all), words);
    say("soft: building skep (a minute or two the first time)");
    let skep = ours::build_skep()?;
    let folder = ours::target()?.join("xtask-test/soft");
    fs::create_dir_all(&folder).map_err(about("create", &folder))?;
    let compares = cases.iter().any(|case| case.seen.contains(&Seen::SameWork));
    let work = if compares { work_here(&fetched.busybox, &folder)? } else { String::new() };
    let setting = Setting { skep: &skep, folder: &folder, work: &work };

    let mut score = Score::default();
    for (number, case) in (1..).zip(&cases) {
        let went = judge::run(case, &setting)?;
        let place = format!("  {number:2}/{} {}", cases.len(), case.name);
        let seconds = went.seconds;
        let Some(wrong) = went.wrong else {
            say(format!("{place}: ok ({seconds:.1} s)"));
            score.passed += 1;
            continue;
        };
        wrong.shown.iter().for_each(say);
        say(format!("{place}: FAILED, {} ({seconds:.1} s)", wrong.why));
        score.failed += 1;
        if score.failed == ENOUGH_FAILURES {
            say(format!("soft: {ENOUGH_FAILURES} cases failed: the rest was not run"));
            break;
        }
    }
    Ok(score)
}

/// What the guest's script of work prints on this machine, with the guest's busybox.
fn work_here(busybox: &Path, folder: &Path) -> Outcome<String> {
    let folder = folder.join("work");
    fs::create_dir_all(&folder).map_err(about("create", &folder))?;
    let script = folder.join("script");
    fs::write(&script, initrd::WORK).map_err(about("write", &script))?;
    let mut command = Command::new(busybox);
    command.arg("sh").arg(&script).arg(busybox).current_dir(&folder);
    Ok(String::from_utf8_lossy(&output(&mut command)?).into_owned())
}
